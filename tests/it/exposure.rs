//! The proxy is not more open than the daemon: its default address, the addresses that it refuses, and the
//! credentials that it requires on its ports.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::disk::{launcher, set_mode};
use crate::common::process::{Process, succeeded};
use crate::common::{
    Addr, Client, Daemon, DaemonOptions, Sidecar, SidecarOptions, items, run, stderr_text,
    stdout_text, twiddler, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::config::{Config, ListenAddr, ServeArgs, Settings};

/// An account without permissions.
const NOBODY: u32 = 65534;
/// A group that every Debian has, without members.
const GROUP: u32 = 4;
/// The digest of `secret` in supervisord's form.
const SHA_OF_SECRET: &str = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4";

/// The file name of the default socket.
const BY_ITSELF: SidecarOptions<'_> = SidecarOptions {
    arguments: &[],
    environment: &[("TWIDDLER_ALLOW_OPEN", "")],
    launcher: &[],
    optimized: false,
    own_listeners: Some(1),
};

/// A daemon with these lines for its socket. Every account may enter its directory.
fn daemon(socket_lines: &str) -> Result<Daemon> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: &format!("[unix_http_server]\n{socket_lines}\n"),
        ..DaemonOptions::default()
    })?;
    set_mode(daemon.dir(), 0o755)?;
    Ok(daemon)
}

/// A daemon that also has a port with these lines, and optionally credentials for both.
fn daemon_with_port(credentials: Option<(&str, &str)>, port_lines: &str) -> Result<Daemon> {
    Daemon::start_with(DaemonOptions {
        tcp: true,
        credentials,
        body: &format!("[inet_http_server]\n{port_lines}\n"),
        ..DaemonOptions::default()
    })
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

fn beside(daemon: &Daemon) -> PathBuf {
    daemon.dir().join("twiddler.sock")
}

/// Mode, owner and group.
fn access(path: &Path) -> Result<(u32, u32, u32)> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("{}", path.display()))?;
    Ok((
        metadata.permissions().mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
    ))
}

/// Whether another account may connect to a socket, which requires write permission. Only root can switch
/// accounts.
fn nobody_may_open(socket: &Path) -> Result<bool> {
    let nobody = NOBODY.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
        .args(["/bin/sh", "-c", "test -w \"$0\""])
        .arg(socket);
    let output = run(&mut command)?;
    let error = stderr_text(&output);
    ensure!(error.is_empty(), "{error}");
    Ok(output.status.success())
}

/// The error of `serve` and `check` about a configuration that they refuse.
fn refused(daemon: &Daemon, arguments: &[&str], launcher: &[&str]) -> Result<String> {
    let conf = daemon.conf().to_string_lossy().into_owned();
    let ended = |verb: &str| -> Result<Output> {
        let rest = [&[verb, "-c", &conf], arguments].concat();
        let output = match launcher.split_first() {
            None => twiddler(&rest)?,
            Some((program, words)) => run(Command::new(program)
                .args(words)
                .arg(env!("CARGO_BIN_EXE_twiddler"))
                .args(&rest))?,
        };
        ensure!(output.status.code() == Some(2), "{verb}: {output:?}");
        Ok(output)
    };
    let (serve, check) = (stderr_text(&ended("serve")?), stdout_text(&ended("check")?));
    for sentence in serve.lines() {
        let sentence = sentence.trim_start_matches("twiddler: ");
        ensure!(
            check.contains(&format!("problem  {sentence}\n")),
            "serve: {serve}\ncheck: {check}"
        );
    }
    Ok(serve)
}

/// The settings from a daemon's file, without options.
fn decided(daemon: &Daemon) -> Result<Settings> {
    let args = ServeArgs::default().with("config", daemon.conf());
    Ok(Config::load_with_env(&args, &|_| None)?.settings)
}

#[test]
fn the_default_socket_is_beside_the_daemons_and_open_to_the_same_accounts() -> Result<()> {
    let given_away = format!("chmod=0770\nchown=0:{GROUP}");
    for (lines, for_all, only_root) in [
        ("", false, false),
        ("chmod=0700", false, false),
        ("chmod=0777", true, false),
        (&*given_away, false, true),
        ("chmod=0750\nchown=65534:65534", true, true),
    ] {
        if only_root && !is_root()? {
            continue;
        }
        let daemon = daemon(lines)?;
        let sidecar = Sidecar::start_options(&daemon, BY_ITSELF)?;
        assert_eq!(sidecar.addrs(), [Addr::Unix(beside(&daemon))], "{lines}");
        assert_eq!(
            access(&sidecar.socket())?,
            access(daemon.socket())?,
            "{lines}"
        );
        if is_root()? {
            assert_eq!(nobody_may_open(daemon.socket())?, for_all, "{lines}");
            assert_eq!(nobody_may_open(&sidecar.socket())?, for_all, "{lines}");
        }
        let client = sidecar.socket_client();
        assert_eq!(client.call("twiddler.getAPIVersion", ())?, value("1.0"));
        sidecar.wait_for_stderr("127.0.0.1:9002, the former default,")?;
        sidecar.stop()?;
        assert!(!beside(&daemon).exists(), "{lines}");
    }
    Ok(())
}

#[test]
fn while_the_daemon_is_down_its_file_decides_the_access_to_the_socket() -> Result<()> {
    let own = fs::metadata("/proc/self")?;
    for (lines, expected) in [
        ("".to_owned(), 0o700),
        (
            format!("chmod=0770\nchown={}:{}", own.uid(), own.gid()),
            0o770,
        ),
        // Only the daemon knows its own group.
        ("chmod=0770".to_owned(), 0o700),
    ] {
        let daemon = daemon(&lines)?;
        daemon.stop()?;
        let sidecar = Sidecar::start_options(&daemon, BY_ITSELF)?;
        let (mode, _, _) = access(&beside(&daemon))?;
        assert_eq!(mode, expected, "{lines}");
        daemon.start_again()?;
        sidecar.socket_client().call("twiddler.getAPIVersion", ())?;
    }
    Ok(())
}

#[test]
fn an_account_of_its_own_gives_the_socket_the_group_but_nobody_more() -> Result<()> {
    if !is_root()? {
        return Ok(());
    }
    let daemon = daemon(&format!("chmod=0770\nchown=0:{GROUP}"))?;
    set_mode(daemon.dir(), 0o775)?;
    set_mode(daemon.include_dir(), 0o777)?;
    std::os::unix::fs::chown(daemon.dir(), None, Some(GROUP))?;
    let group = GROUP.to_string();
    let nobody = NOBODY.to_string();
    // The account may not be able to read the directory of the binary.
    let script = format!(
        "cp \"$1\" {0}/twiddler && shift && exec setpriv --reuid {nobody} --regid {nobody} --groups {group} {0}/twiddler \"$@\"",
        daemon.dir().display()
    );
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            launcher: &["/bin/sh", "-c", &script, "sh"],
            ..BY_ITSELF
        },
    )?;
    assert_eq!(access(&beside(&daemon))?, (0o770, NOBODY, GROUP));
    sidecar.socket_client().call("twiddler.getAPIVersion", ())?;
    Ok(())
}

#[test]
fn a_port_that_lets_in_accounts_whom_the_socket_keeps_out_is_refused() -> Result<()> {
    let daemon = daemon("")?;
    for address in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        let error = refused(&daemon, &["--listen", address], &[])?;
        for expected in [
            "--listen: http://",
            "accounts of this machine that supervisord keeps out",
            "permissions of its socket",
            "username = NAME",
            "listen = unix:///",
            "--allow-open",
        ] {
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
    let one_of_two = ["--listen", "unix:///tmp/t.sock", "--listen", "127.0.0.1:0"];
    assert!(refused(&daemon, &one_of_two, &[])?.contains("http://127.0.0.1:0"));

    let start = |environment: &[(&str, &str)]| {
        Sidecar::start_options(
            &daemon,
            SidecarOptions {
                arguments: &["--listen", "127.0.0.1:0"],
                environment,
                own_listeners: Some(1),
                ..SidecarOptions::default()
            },
        )
    };
    let opened = start(&[("TWIDDLER_ALLOW_OPEN", "true")])?;
    opened.wait_for_stderr("is open: whoever reaches it can run commands")?;
    opened.client().call("supervisor.getState", ())?;
    let conf = daemon.conf().to_string_lossy().into_owned();
    let arguments = [
        "check",
        "-c",
        &conf,
        "--listen",
        "127.0.0.1:0",
        "--allow-open",
    ];
    drop(opened);
    let checked = stdout_text(&twiddler(&arguments)?);
    assert!(
        checked.contains("note     http://127.0.0.1:0 is open"),
        "{checked}"
    );

    let guarded = start(&[
        ("TWIDDLER_ALLOW_OPEN", ""),
        ("TWIDDLER_USERNAME", "own"),
        ("TWIDDLER_PASSWORD", "secret"),
    ])?;
    assert!(!guarded.stderr_text().contains("is open"));
    let stranger = guarded.client().call("supervisor.getState", ());
    assert_eq!(stranger.unwrap_err().status(), Some(401));
    Ok(())
}

#[test]
fn a_port_is_taken_where_every_account_may_open_the_socket_or_must_know_its_password() -> Result<()>
{
    let port = |daemon: &Daemon| {
        Sidecar::start_options(
            daemon,
            SidecarOptions {
                arguments: &["--listen", "127.0.0.1:0"],
                ..BY_ITSELF
            },
        )
    };
    let for_all = daemon("chmod=0777")?;
    let sidecar = port(&for_all)?;
    sidecar.client().call("twiddler.getAPIVersion", ())?;
    assert!(!sidecar.stderr_text().contains("is open"));
    sidecar.stop()?;
    // No other account can connect to a socket in a directory that it may not enter.
    set_mode(for_all.dir(), 0o700)?;
    refused(&for_all, &["--listen", "127.0.0.1:0"], &[])?;

    let asks = Daemon::start_with(DaemonOptions {
        credentials: Some(("u", "secret")),
        ..DaemonOptions::default()
    })?;
    let sidecar = port(&asks)?;
    let stranger = Client::new(sidecar.tcp_addr());
    let error = stranger.call("twiddler.getGroupNames", ()).unwrap_err();
    assert_eq!(error.status(), Some(401));
    let authorized = stranger.with_credentials("u", "secret");
    authorized.call("twiddler.getGroupNames", ())?;
    Ok(())
}

#[test]
fn callers_of_a_port_need_the_credentials_of_the_daemons_port() -> Result<()> {
    let other = Some(("u", "other"));
    for (of_socket, port_password) in [
        (None, "secret"),
        (None, SHA_OF_SECRET),
        (other, "secret"),
        (other, SHA_OF_SECRET),
    ] {
        let port_lines = format!("username=port\npassword={port_password}");
        let daemon = daemon_with_port(of_socket, &port_lines)?;
        assert_eq!(
            decided(&daemon)?.listen,
            [ListenAddr::Tcp("127.0.0.1:9002".parse()?)]
        );
        let sidecar = Sidecar::start(&daemon)?;
        let on_port = |user: &str, password: &str| {
            let client = Client::new(sidecar.tcp_addr()).with_credentials(user, password);
            client
                .call("twiddler.getGroupNames", ())
                .map_err(|error| error.status())
        };
        assert!(
            on_port("port", "secret").is_ok(),
            "{of_socket:?} {port_password}"
        );
        for (user, password) in [("port", "wrong"), ("u", "other"), ("port", port_password)] {
            if (user, password) != ("port", "secret") {
                assert_eq!(on_port(user, password), Err(Some(401)), "{user} {password}");
            }
        }
        let stranger = Client::new(sidecar.tcp_addr());
        assert_eq!(stranger.get("/")?.status, 401);
        assert_eq!(stranger.get("/twiddler/health")?.status, 200);
        let result = stranger.call("twiddler.addGroup", (value("sneaked"), value(1)));
        assert_eq!(result.unwrap_err().status(), Some(401));

        // The proxy's socket requires the same credentials as the daemon's socket.
        let on_socket = sidecar.socket_client();
        assert!(items(&on_socket.call("twiddler.getGroupNames", ())?)?.is_empty());
    }
    Ok(())
}

#[test]
fn a_reload_opens_no_port() -> Result<()> {
    let daemon = daemon("")?;
    let file = daemon.read("supervisord.conf")?;
    let write = |options: &str| daemon.write("supervisord.conf", &format!("{file}\n{options}"));
    write("[twiddler]\nusername = own\npassword = secret\n")?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            arguments: &["--listen", "127.0.0.1:0"],
            ..BY_ITSELF
        },
    )?;
    let stranger = Client::new(sidecar.tcp_addr());
    let status = || {
        stranger
            .call("supervisor.getState", ())
            .map_err(|error| error.status())
    };
    assert_eq!(status(), Err(Some(401)));
    write("")?;
    sidecar.signal("HUP")?;
    sidecar
        .wait_for_stderr("kept the former settings: --listen: http://127.0.0.1:0 would let in")?;
    assert_eq!(status(), Err(Some(401)));
    // The password of the daemon's new port replaces the login.
    write("[inet_http_server]\nport = 127.0.0.1:9\nusername = port\npassword = other\n")?;
    sidecar.signal("HUP")?;
    sidecar.wait_for_stderr("took up username and password, the username and password of")?;
    assert_eq!(status(), Err(Some(401)));
    let authorized = Client::new(sidecar.tcp_addr()).with_credentials("port", "other");
    authorized.call("supervisor.getState", ())?;
    Ok(())
}

#[test]
fn a_port_without_usable_credentials_is_no_default() -> Result<()> {
    // The file has only the digest of the password, so the proxy cannot present it.
    let daemon = daemon_with_port(Some(("u", "secret")), "username=port\npassword=other")?;
    let conf = daemon.read("supervisord.conf")?;
    let hashed = conf.replace("password = secret", &format!("password = {SHA_OF_SECRET}"));
    assert_ne!(hashed, conf);
    daemon.write("supervisord.conf", &hashed)?;
    assert_eq!(
        decided(&daemon)?.listen,
        [ListenAddr::Unix(beside(&daemon))]
    );
    Ok(())
}

#[test]
fn an_open_port_of_the_daemon_allows_an_open_port() -> Result<()> {
    let daemon = daemon_with_port(None, "")?;
    let config = decided(&daemon)?;
    assert_eq!(config.listen, [ListenAddr::Tcp("127.0.0.1:9002".parse()?)]);
    assert!(config.port_login.is_none() && config.warnings.is_empty());
    // With an address from the option, as in another container, the ports in the file do not count.
    let elsewhere = daemon.dir().join("elsewhere.sock");
    let args = ServeArgs::default()
        .with("config", daemon.conf())
        .with("supervisord", Addr::Unix(elsewhere).to_string());
    let config = Config::load_with_env(&args, &|_| None)?;
    assert_eq!(config.settings.listen, [ListenAddr::Unix(beside(&daemon))]);
    Ok(())
}

#[test]
fn no_socket_is_created_in_a_directory_with_other_writers() -> Result<()> {
    let daemon = daemon("")?;
    let line = "write listen = ";
    for mode in [0o777, 0o1777] {
        set_mode(daemon.dir(), mode)?;
        let error = refused(&daemon, &[], &[])?;
        let reason = format!("every account may write in {}", daemon.dir().display());
        assert!(error.contains(&reason) && error.contains(line), "{error}");
    }
    set_mode(daemon.dir(), 0o555)?;
    let error = refused(&daemon, &[], &launcher()?);
    set_mode(daemon.dir(), 0o755)?;
    let error = error?;
    let reason = format!("cannot make a socket in {}", daemon.dir().display());
    assert!(error.contains(&reason) && error.contains(line), "{error}");
    assert!(!beside(&daemon).exists());
    Ok(())
}

/// Follows the advice of the error in a shell of an account, in a file system without preparations. Returns
/// the output of the proxy.
fn follow_advice(daemon: &Daemon, account: &[&str], home: &Path) -> Result<String> {
    const SHELL: &str = r#"
        set -e
        mount -t tmpfs -o mode=755 tmpfs /run
        export HOME="$2"
        unset XDG_RUNTIME_DIR
        shift 2
        said=$("$@" serve -c "$CONF" 2>&1) && exit 3
        echo "$said"
        line=${said#*; write }
        line=${line%% in \[twiddler\]*}
        typed=${said#*, after }
        if [ "$typed" != "$said" ]; then
            echo "typed $typed"
            "${@:1:$#-1}" $typed
        fi
        case $line in
            *password*)
                line="listen = 127.0.0.1:0
username = me
password = secret" ;;
        esac
        printf '[twiddler]\n%s\n' "$line" >> "$CONF"
        exec "$@" serve -c "$CONF"
    "#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "bash", "-c", SHELL, "bash", "--"])
        .arg(home)
        .args(account)
        .arg(daemon.dir().join("twiddler"))
        .env("CONF", daemon.conf());
    let proxy = Process::spawn(&mut command)?;
    let log = proxy.wait_for_stderr("listening on ")?;
    Ok(format!("{}{log}", proxy.stdout_text()))
}

#[test]
fn the_advice_where_to_listen_can_be_followed_by_root_and_by_others() -> Result<()> {
    if !is_root()? {
        ensure!(std::env::var_os("TEST_ALL").is_none(), "needs root");
        eprintln!("left out: only root can act as another account");
        return Ok(());
    }
    let nobody = NOBODY.to_string();
    let other = [
        "setpriv",
        "--reuid",
        &nobody,
        "--regid",
        &nobody,
        "--clear-groups",
    ];
    for (account, has_home) in [(&[][..], false), (&other, true), (&other, false)] {
        // As in supervisord's sample file, the socket is in a directory where every account may write.
        let daemon = daemon("chmod=0777")?;
        set_mode(daemon.dir(), 0o1777)?;
        set_mode(daemon.include_dir(), 0o777)?;
        set_mode(&daemon.conf(), 0o666)?;
        fs::copy(
            env!("CARGO_BIN_EXE_twiddler"),
            daemon.dir().join("twiddler"),
        )?;
        let home = daemon.dir().join("home");
        if has_home {
            fs::create_dir(&home)?;
            std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY))?;
        }
        let output = follow_advice(&daemon, account, &home)?;
        let listening = match (account, has_home) {
            ([], _) => "listening on unix:///run/twiddler/twiddler.sock".to_owned(),
            (_, true) => format!(
                "listening on unix://{}/.twiddler/twiddler.sock",
                home.display()
            ),
            (_, false) => "listening on http://127.0.0.1:".to_owned(),
        };
        ensure!(output.contains(&listening), "no {listening}: {output}");
    }
    Ok(())
}

#[test]
fn a_password_file_must_not_be_readable_by_others() -> Result<()> {
    let daemon = daemon("")?;
    let file = daemon.dir().join("password");
    fs::write(&file, "secret\n")?;
    set_mode(&file, 0o600)?;
    let path = file.to_string_lossy().into_owned();
    let listen = ["--listen", "127.0.0.1:0", "--username", "own"];
    let arguments = [&listen[..], &["--password-file", &path]].concat();
    let options = SidecarOptions {
        arguments: &arguments,
        ..BY_ITSELF
    };
    let sidecar = Sidecar::start_options(&daemon, options)?;
    let own = Client::new(sidecar.tcp_addr()).with_credentials("own", "secret");
    own.call("supervisor.getState", ())?;
    let cmdline = fs::read(format!("/proc/{}/cmdline", sidecar.pid()))?;
    assert!(!String::from_utf8_lossy(&cmdline).contains("secret"));
    assert!(!sidecar.stderr_text().contains("list of processes"));
    sidecar.stop()?;

    set_mode(&file, 0o644)?;
    let error = refused(&daemon, &arguments, &[])?;
    let expected =
        format!("--password-file: every account can read {path}; write chmod 0640 {path}");
    assert!(
        error.contains(&expected) && !error.contains("secret"),
        "{error}"
    );

    set_mode(&file, 0o600)?;
    let both = [&arguments[..], &["--password", "other"]].concat();
    assert!(refused(&daemon, &both, &[])?.contains("write password or password_file"));
    // The source with the higher precedence counts.
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            environment: &[("TWIDDLER_PASSWORD", "other")],
            ..options
        },
    )?;
    let own = Client::new(sidecar.tcp_addr()).with_credentials("own", "secret");
    own.call("supervisor.getState", ())?;
    Ok(())
}

#[test]
fn a_password_on_the_command_line_causes_a_warning() -> Result<()> {
    let daemon = daemon("")?;
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--username",
        "own",
        "--password",
        "canary",
    ];
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            arguments: &arguments,
            ..BY_ITSELF
        },
    )?;
    let log = sidecar.wait_for_stderr("can read --password in the list of processes")?;
    assert!(
        log.contains("TWIDDLER_PASSWORD") && !log.contains("canary"),
        "{log}"
    );
    sidecar.stop()?;
    let conf = daemon.conf().to_string_lossy().into_owned();
    let all = [&["check", "-c", &conf], &arguments[..]].concat();
    let checked = stdout_text(&succeeded(twiddler(&all)?)?);
    assert!(checked.contains("list of processes"), "{checked}");
    Ok(())
}
