//! The daemon's web interface and log tails show placed processes as members of their groups.
//!
//! Replies through the sidecar are compared with those of a daemon whose configuration file has the same
//! groups.

use std::thread;

use crate::common::pages::{ensure_right_length, link, location, row, wait_for_state};
use crate::common::{
    Client, Connection, Daemon, DaemonOptions, LIMIT, Reply, Sidecar, Until, Version, eventually,
    member, options, text, with_both_releases,
};
use anyhow::{Context, Result, ensure};

/// A daemon whose file defines all processes, and one whose groups get some of them through the sidecar.
struct Twins {
    configured: Daemon,
    changed: Daemon,
    sidecar: Sidecar,
}

const WHOLE: &str = "\
[group:web]\nprograms = able,cat,t<&\"x;y\n\
[program:able]\ncommand = /bin/cat\nstartsecs = 0\n\
[program:cat]\ncommand = /bin/cat\nstartsecs = 0\n\
[program:t<&\"x;y]\ncommand = /bin/cat\nstartsecs = 0\nautostart = false\n\
[program:web-2]\ncommand = /bin/cat\nstartsecs = 0\n";

const SMALL: &str = "\
[group:web]\nprograms = able\n\
[program:able]\ncommand = /bin/cat\nstartsecs = 0\n\
[program:web-2]\ncommand = /bin/cat\nstartsecs = 0\n";

impl Twins {
    fn start(version: Version) -> Result<Twins> {
        let start = |body| {
            Daemon::start_with(DaemonOptions {
                version,
                body,
                ..DaemonOptions::default()
            })
        };
        let (configured, changed) = (start(WHOLE)?, start(SMALL)?);
        let sidecar = Sidecar::start(&changed)?;
        let twins = Twins {
            configured,
            changed,
            sidecar,
        };
        twins.add("cat", "true")?;
        twins.add("t<&\"x;y", "false")?;
        for name in ["web:able", "web:cat", "web-2"] {
            twins.wait_for_state(name, "RUNNING")?;
        }
        Ok(twins)
    }

    fn add(&self, process: &str, autostart: &str) -> Result<()> {
        let program = options(&[
            ("command", "/bin/cat"),
            ("startsecs", "0"),
            ("autostart", autostart),
        ]);
        self.client()
            .call("twiddler.addProgramToGroup", ("web", process, program))?;
        Ok(())
    }

    /// A client of the sidecar.
    fn client(&self) -> Client {
        self.sidecar.client()
    }

    fn both(&self) -> [Client; 2] {
        [self.client(), self.configured.client()]
    }

    fn wait_for_state(&self, name: &str, state: &str) -> Result<()> {
        for client in self.both() {
            wait_for_state(&client, name, state)?;
        }
        Ok(())
    }

    /// Sends the same request to both. The replies must be the same but for times and process ids.
    fn same(&self, method: &str, path: &str, form: Option<&str>) -> Result<Reply> {
        let [through, direct] = self.both().map(Client::kept_alive);
        let headers = [
            ("Host", "pages"),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ];
        let exchange = |client: &Client| -> Result<Reply> {
            let bytes = client.request_bytes(method, path, &headers, form.map(str::as_bytes));
            // The client adds a host line of its own, which redirects would repeat.
            let request = String::from_utf8(bytes)?;
            let (line, rest) = request.split_once("\r\n").context("a request line")?;
            let (_, rest) = rest.split_once("\r\n").context("a host line")?;
            let request = format!("{line}\r\n{rest}");
            Reply::parse(&client.raw(request.as_bytes(), Until::Reply)?)
        };
        let (reply, expected) = thread::scope(|scope| {
            let direct = scope.spawn(|| exchange(&direct));
            (exchange(&through), direct.join())
        });
        let (reply, expected) = (
            reply?,
            expected.expect("no panic")?.with_proxy_headers(path),
        );
        let (plain, wanted) = (normalised(&reply), normalised(&expected));
        ensure!(
            plain == wanted,
            "{method} {path} {form:?}\n--- through the sidecar:\n{plain}\n--- expected:\n{wanted}"
        );
        ensure_right_length(&reply)?;
        Ok(reply)
    }
}

/// Runs the check with both releases of the daemon.
fn with_twins(check: impl Fn(&Twins) -> Result<()> + Sync) -> Result<()> {
    with_both_releases(|version| check(&Twins::start(version)?))
}

/// Head and body without values that depend on the time.
fn normalised(reply: &Reply) -> String {
    let head: Vec<&str> = reply
        .head_without_date()
        .into_iter()
        .filter(|line| !line.starts_with("Content-Length:") && !line.starts_with("Last-Modified:"))
        .collect();
    let mut lines: Vec<String> = Vec::new();
    for line in head.join("\n").lines().chain(reply.text().lines()) {
        let line = match line.split_once("<td><span>") {
            Some((before, info)) if info.starts_with("pid ") => format!("{before}(running)"),
            Some((before, info)) if info.contains("M</span>") => format!("{before}(a time)"),
            _ => line.to_owned(),
        };
        let line = match line.split_once("%20at%20") {
            Some((before, _)) => format!("{before}(a time)"),
            None => line,
        };
        lines.push(line);
    }
    lines.join("\n")
}

#[test]
fn the_status_page_is_that_of_a_daemon_with_the_same_configuration() -> Result<()> {
    with_twins(|twins| {
        let page = twins.same("GET", "/", None)?.text();
        let daemon_page = twins.changed.client().get("/")?.text();
        ensure!(
            daemon_page.contains("web~0"),
            "nothing is placed: {daemon_page}"
        );
        let names = ["web:able", "web:cat", "web:t&lt;&amp;\"x;y", "web-2"];
        let at: Vec<usize> = names
            .iter()
            .map(|name| page.find(&format!(">{name}</a>")).context("a name"))
            .collect::<Result<_>>()?;
        ensure!(at.is_sorted(), "not sorted as the daemon does: {page}");
        for path in [
            "/index.html",
            "//index.html?",
            "/%69ndex.html?message=a%20b",
        ] {
            twins.same("GET", path, None)?;
        }
        twins.same("POST", "/", Some("message=hello"))?;
        Ok(())
    })
}

#[test]
fn each_link_of_a_placed_process_works() -> Result<()> {
    with_twins(|twins| {
        let follow = |label: &str, state: &str| -> Result<()> {
            let page = twins.same("GET", "/", None)?.text();
            let reply = twins.same("GET", &link(row(&page, "web:cat")?, label)?, None)?;
            let shown = twins.same("GET", location(&reply)?, None)?.text();
            ensure!(shown.contains("web:cat"), "no message: {shown}");
            twins.wait_for_state("web:cat", state)
        };
        follow("Stop", "STOPPED")?;
        follow("Start", "RUNNING")?;
        follow("Restart", "RUNNING")?;
        follow("Clear Log", "RUNNING")?;
        let page = twins.same("GET", "/", None)?.text();
        twins.same("GET", &link(row(&page, "web:cat")?, "web:cat")?, None)?;
        let strange = row(&page, "web:t&lt;&amp;\"x;y")?;
        let reply = twins.same("GET", &link(strange, "Start")?, None)?;
        twins.same("GET", location(&reply)?, None)?;
        twins.wait_for_state("web:t<&\"x;y", "RUNNING")?;
        twins.same("GET", &link(strange, "web:t&lt;&amp;\"x;y")?, None)?;
        Ok(())
    })
}

#[test]
fn errors_have_the_texts_of_the_daemon() -> Result<()> {
    with_twins(|twins| {
        for path in [
            "/index.html?processname=web:cat&action=start",
            "/index.html?processname=web:t<%26%22x;y&action=stop",
            "/index.html?processname=web%3Acat&action=nonsense",
            "/index.html?processname=&processname=web:cat&action=clearlog",
            "/index.html?processname=web:*&action=stop",
            "/index.html?processname=web:nobody&action=stop",
            "/index.html?action=stop",
            "/tail.html",
            "/tail.html?processname=web:nobody",
            "/tail.html?processname=web:*",
            "/tail.html?processname=web:cat&limit=5",
            "/tail.html?processname=cat",
            "/logtail/web:nobody",
            "/logtail/cat",
            "/logtail/web:cat/none",
        ] {
            // A request line cannot have `<` or `"`.
            twins.same("GET", &path.replace('<', "%3C"), None)?;
        }
        twins.same("POST", "/logtail/web:cat", None)?;
        Ok(())
    })
}

#[test]
fn forms_name_placed_processes() -> Result<()> {
    with_twins(|twins| {
        let stop = "action=stop&processname=web%3Acat";
        twins.same("POST", "/index.html", Some(stop))?;
        twins.wait_for_state("web:cat", "STOPPED")?;
        // The last value of the form is used, otherwise the first one of the query.
        let form = "processname=web:able&processname=web:cat";
        twins.same("POST", "/?action=start&processname=web-2", Some(form))?;
        twins.wait_for_state("web:cat", "RUNNING")?;
        twins.same(
            "POST",
            "/?processname=web:cat&processname=web-2",
            Some("action=stop"),
        )?;
        twins.wait_for_state("web:cat", "STOPPED")?;
        twins.same("POST", "/tail.html", Some("processname=web:cat&limit=2000"))?;
        Ok(())
    })
}

#[test]
fn all_processes_are_stopped_and_restarted() -> Result<()> {
    with_twins(|twins| {
        twins.same("GET", "/?action=stopall", None)?;
        for name in ["web:able", "web:cat", "web-2"] {
            twins.wait_for_state(name, "STOPPED")?;
        }
        twins.same("GET", "/?action=restartall", None)?;
        for name in ["web:able", "web:cat", "web:t<&\"x;y", "web-2"] {
            twins.wait_for_state(name, "RUNNING")?;
        }
        Ok(())
    })
}

#[test]
fn a_log_is_shown_unchanged() -> Result<()> {
    with_twins(|twins| {
        let line = "Supervisor web~000001:cat </pre><title>\n";
        for client in twins.both() {
            client.call("supervisor.sendProcessStdin", ("web:cat", line))?;
            eventually(LIMIT, || {
                let page = client.get("/tail.html?processname=web:cat")?.text();
                ensure!(page.contains("web~000001:cat"), "no log: {page}");
                Ok(())
            })?;
        }
        let page = twins.same("GET", "/tail.html?processname=web:cat&limit=3000", None)?;
        ensure!(page.text().contains("process web:cat</title>"), "{page:?}");
        ensure!(
            page.text().contains("processname=web%3Acat&amp;limit=3000"),
            "{page:?}"
        );
        Ok(())
    })
}

#[test]
fn the_log_of_a_placed_process_streams() -> Result<()> {
    with_twins(|twins| {
        let client = twins.client();
        let page = client.get("/")?.text();
        let link = link(row(&page, "web:cat")?, "Tail -f Stdout")?;
        for path in [
            link.as_str(),
            "/logtail/web:cat",
            "/logtail/web%253Acat/stdout?x=1",
        ] {
            let mut log = Connection::open(twins.sidecar.tcp_addr())?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: pages\r\n\r\n");
            log.send(request.as_bytes())?;
            let head = Reply::parse(&log.read(Until::Head)?)?;
            ensure!(head.status == 200 && head.is_chunked(), "{path}: {head:?}");
            let line = format!("written while {path} is read\n");
            client.call("supervisor.sendProcessStdin", ("web:cat", line.as_str()))?;
            log.read(Until::Text(&line))?;
        }
        let stderr = "/logtail/web:cat/stderr";
        let mut log = Connection::open(twins.sidecar.tcp_addr())?;
        log.send(format!("GET {stderr} HTTP/1.1\r\nHost: pages\r\n\r\n").as_bytes())?;
        ensure!(Reply::parse(&log.read(Until::Head)?)?.status == 200);
        Ok(())
    })
}

#[test]
fn the_daemons_own_names_stay_usable() -> Result<()> {
    let daemon = Daemon::start(SMALL)?;
    let sidecar = Sidecar::start(&daemon)?;
    let program = options(&[("command", "/bin/cat"), ("startsecs", "0")]);
    sidecar
        .client()
        .call("twiddler.addProgramToGroup", ("web", "cat", program))?;
    wait_for_state(&sidecar.client(), "web:cat", "RUNNING")?;
    let real = real_name(&daemon, "cat")?;
    for path in [
        format!("/tail.html?processname={real}"),
        format!("/index.html?processname={real}&action=clearlog"),
        "/tail.html?processname=web:able".to_owned(),
    ] {
        let through = sidecar.socket_client().kept_alive().get(&path)?;
        let direct = daemon.client().kept_alive().get(&path)?;
        through.ensure_same_as(&direct.with_proxy_headers(&path))?;
    }
    let mut log = Connection::open(sidecar.tcp_addr())?;
    log.send(format!("GET /logtail/{real} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
    ensure!(Reply::parse(&log.read(Until::Head)?)?.status == 200);
    Ok(())
}

/// The name of a process in the daemon.
fn real_name(daemon: &Daemon, process: &str) -> Result<String> {
    let infos = daemon.call("supervisor.getAllProcessInfo", ())?;
    let info = crate::common::items(&infos)?
        .iter()
        .find(|info| {
            member(info, "name")
                .and_then(text)
                .is_ok_and(|name| name == process)
        })
        .with_context(|| format!("{process} in {infos:?}"))?;
    Ok(format!("{}:{process}", text(member(info, "group")?)?))
}

#[test]
fn unauthorized_clients_get_a_challenge() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "secret")),
        body: SMALL,
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    daemon.wait_for_state("web:able", "RUNNING")?;
    client.call("supervisor.stopProcess", ("web:able",))?;
    client.call("twiddler.removeProcessFromGroup", ("web", "able"))?;
    let program = options(&[("command", "/bin/cat"), ("startsecs", "0")]);
    client.call("twiddler.addProgramToGroup", ("web", "cat", program))?;
    wait_for_state(&client, "web:cat", "RUNNING")?;
    let stranger = Client::new(sidecar.socket());
    for path in [
        "/",
        "/?action=restartall",
        "/?action=stop&processname=web:cat",
        "/tail.html?processname=web:able",
        "/logtail/web:able",
    ] {
        let reply = stranger.get(path)?;
        let challenge = reply.header("www-authenticate");
        ensure!(reply.status == 401, "{path}: {reply:?}");
        ensure!(
            challenge == Some("Basic realm=\"default\""),
            "{path}: {reply:?}"
        );
    }
    ensure!(client.get("/")?.text().contains(">web:cat</a>"));
    Ok(())
}

#[test]
fn names_are_translated_for_the_first_client_after_a_restart_of_the_proxy() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "secret")),
        body: SMALL,
        ..DaemonOptions::default()
    })?;
    // A password that only the daemon can check.
    let hashed = daemon.read("supervisord.conf")?.replace(
        "password = secret",
        "password = {SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4",
    );
    daemon.write("supervisord.conf", &hashed)?;
    let sidecar = Sidecar::start(&daemon)?;
    let program = options(&[("command", "/bin/cat"), ("startsecs", "0")]);
    let client = sidecar.client();
    client.call("twiddler.getGroupNames", ())?;
    client.call("twiddler.addProgramToGroup", ("web", "cat", program))?;
    sidecar.kill()?;
    sidecar.start_again()?;
    let page = sidecar.client().get("/")?;
    row(&page.text(), "web:cat")?;
    Ok(())
}
