//! SIGHUP: a reload applies valid options, and keeps the old ones otherwise.

use crate::common::{Client, Daemon, LIMIT, Reply, Sidecar, Until, eventually, exchange, value};
use anyhow::{Result, ensure};

/// Writes the daemon's original file with a section `[twiddler]`.
struct Options<'a> {
    daemon: &'a Daemon,
    file: String,
}

impl<'a> Options<'a> {
    fn of(daemon: &'a Daemon) -> Result<Self> {
        let file = daemon.read("supervisord.conf")?;
        Ok(Options { daemon, file })
    }

    fn write(&self, options: &str) -> Result<()> {
        let text = format!("{}\n[twiddler]\n{options}", self.file);
        self.daemon.write("supervisord.conf", &text)
    }

    /// Writes other options and reloads. Returns the log from then on, up to the line with this text.
    fn take_up(&self, sidecar: &Sidecar, options: &str, until: &str) -> Result<String> {
        self.write(options)?;
        let before = sidecar.stderr_text().len();
        sidecar.signal("HUP")?;
        eventually(LIMIT, || {
            let log = sidecar.stderr_text()[before..].to_owned();
            ensure!(log.contains(until), "not {until:?}:\n{log}");
            Ok(log)
        })
    }
}

fn as_user(sidecar: &Sidecar, password: &str) -> Client {
    Client::new(sidecar.tcp_addr()).with_credentials("own", password)
}

#[test]
fn credentials_and_methods_are_applied() -> Result<()> {
    let daemon = Daemon::start("")?;
    let options = Options::of(&daemon)?;
    options.write("username = own\npassword = first\nlog_level = warn\n")?;
    // The addresses are arguments, because the fixture waits for them in the log.
    let sidecar = Sidecar::start_with(&daemon, &["--log-level", "info"])?;
    let first = as_user(&sidecar, "first");
    first.call("twiddler.addGroup", ("one", 1))?;

    let log = options.take_up(
        &sidecar,
        "username = own\npassword = second\nallow = supervisor.get*, twiddler.*\nwhitelist = getGroupNames\n",
        "took up",
    )?;
    ensure!(
        log.contains("took up username and password, allow, whitelist") && !log.contains("second"),
        "{log}"
    );
    let refused = first.call("supervisor.getState", ()).unwrap_err();
    assert_eq!(refused.status(), Some(401));
    let second = as_user(&sidecar, "second");
    second.call("supervisor.getState", ())?;
    assert_eq!(
        second.call("twiddler.getGroupNames", ())?,
        value(vec!["one"])
    );
    assert_eq!(second.expect_fault("supervisor.readLog", (0, 0))?.code, 230);
    assert_eq!(
        second.expect_fault("twiddler.addGroup", ("two", 1))?.code,
        230
    );

    options.take_up(
        &sidecar,
        "",
        "took up username and password, allow, whitelist",
    )?;
    Client::new(sidecar.tcp_addr()).call("twiddler.addGroup", ("two", 1))?;
    Ok(())
}

#[test]
fn the_log_level_and_hosts_are_applied() -> Result<()> {
    let daemon = Daemon::start("")?;
    let options = Options::of(&daemon)?;
    options.write("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let page = |sidecar: &Sidecar| -> Result<u16> {
        let request = "GET / HTTP/1.1\r\nHost: proxy.example.com\r\nUser-Agent: Mozilla/5.0\r\nConnection: close\r\n\r\n";
        let reply = exchange(sidecar.tcp_addr(), request.as_bytes(), Until::Reply)?;
        Ok(Reply::parse(&reply)?.status)
    };
    assert_eq!(page(&sidecar)?, 403);
    options.take_up(
        &sidecar,
        "log_level = debug\nhosts = proxy.example.com\n",
        "took up hosts, log_level",
    )?;
    assert_eq!(page(&sidecar)?, 200);
    sidecar.client().call("twiddler.addGroup", ("one", 1))?;
    sidecar.wait_for_stderr("DEBUG")?;
    Ok(())
}

#[test]
fn a_mistake_changes_nothing() -> Result<()> {
    let daemon = Daemon::start("")?;
    let options = Options::of(&daemon)?;
    options.write("username = own\npassword = first\n")?;
    let sidecar = Sidecar::start(&daemon)?;
    let log = options.take_up(
        &sidecar,
        "username = own\npassword = second\nlog_level = loud\npersist = perhaps\n",
        // The last mistake in the log.
        "log_level: ",
    )?;
    let file = daemon.conf().display().to_string();
    for key in ["log_level", "persist"] {
        let expected = format!("kept the former settings: {file}: [twiddler] {key}: ");
        ensure!(log.contains(&expected), "{expected}: {log}");
    }
    ensure!(!log.contains("took up"), "{log}");
    as_user(&sidecar, "first").call("supervisor.getState", ())?;
    assert!(
        as_user(&sidecar, "second")
            .call("supervisor.getState", ())
            .is_err()
    );
    Ok(())
}

#[test]
fn options_that_need_a_restart_are_named_each_time() -> Result<()> {
    let daemon = Daemon::start("")?;
    let options = Options::of(&daemon)?;
    options.write("chmod = 0700\n")?;
    let sidecar = Sidecar::start(&daemon)?;
    for _ in 0..2 {
        let log = options.take_up(
            &sidecar,
            "chmod = 0770\npersist = true\nlog_format = json\n",
            "restart twiddler to take up",
        )?;
        ensure!(
            log.contains("restart twiddler to take up chmod and chown, persist, log_format"),
            "{log}"
        );
    }
    Ok(())
}

#[test]
fn a_change_of_addresses_opens_nothing_before_the_restart() -> Result<()> {
    let daemon = Daemon::start("")?;
    let options = Options::of(&daemon)?;
    options.write("listen = 0.0.0.0:0\nusername = own\npassword = first\n")?;
    let sidecar = Sidecar::start_options(
        &daemon,
        crate::common::SidecarOptions {
            own_listeners: Some(1),
            ..Default::default()
        },
    )?;
    // Without the password, the new address would be as protected as the daemon, and the old one would not.
    let log = options.take_up(
        &sidecar,
        "listen = unix:///nowhere/t.sock\n",
        "restart twiddler",
    )?;
    ensure!(
        log.contains("restart twiddler to take up username and password, listen"),
        "{log}"
    );
    let port = sidecar.tcp_addr().port();
    let stranger = Client::new(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let refused = stranger.call("supervisor.getState", ()).unwrap_err();
    assert_eq!(refused.status(), Some(401));
    Ok(())
}
