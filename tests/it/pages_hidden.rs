//! Hidden processes, which were removed and which the daemon still has, are on none of its pages.

use crate::common::pages::{ensure_right_length, link, location, row, wait_for_state};
use crate::common::{Daemon, DaemonOptions, Reply, Sidecar, member, options, with_both_releases};
use anyhow::{Result, ensure};

/// A group of two that the file defines, the first of which was removed while the second runs.
fn with_a_hidden_process(check: impl Fn(&Daemon, &Sidecar) -> Result<()> + Sync) -> Result<()> {
    with_both_releases(|version| {
        let daemon = Daemon::start_with(DaemonOptions {
            version,
            body: "[group:web]\nprograms = gone,stays\n[program:gone]\ncommand = /bin/cat\nstartsecs = 0\n\
                   [program:stays]\ncommand = /bin/cat\nstartsecs = 0\n",
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        for name in ["web:gone", "web:stays"] {
            daemon.wait_for_state(name, "RUNNING")?;
        }
        let client = sidecar.client();
        client.call("supervisor.stopProcess", ("web:gone",))?;
        client.call("twiddler.removeProcessFromGroup", ("web", "gone"))?;
        check(&daemon, &sidecar)
    })
}

#[test]
fn a_hidden_process_is_on_no_page() -> Result<()> {
    with_a_hidden_process(|daemon, sidecar| {
        let client = sidecar.client();
        let page = client.get("/")?;
        ensure_right_length(&page)?;
        ensure!(!page.text().contains("gone"), "{page:?}");
        ensure!(
            row(&page.text(), "web:stays")?.starts_with(" class=\"\">"),
            "{page:?}"
        );
        for (hidden, unknown) in [
            ("/logtail/web:gone", "/logtail/web:none"),
            ("/logtail/web%3Agone/stderr", "/logtail/web%3Anone/stderr"),
            (
                "/tail.html?processname=web:gone",
                "/tail.html?processname=web:none",
            ),
            (
                "/?processname=web:gone&action=start",
                "/?processname=web:none&action=start",
            ),
            (
                "/?processname=web:gone&action=bogus",
                "/?processname=web:none&action=bogus",
            ),
        ] {
            let (hidden, unknown) = (client.get(hidden)?, client.get(unknown)?);
            // Both replies are equal but for their dates.
            let text = |reply: &Reply| -> Vec<String> {
                let text = format!("{reply:?}").replace("none", "gone");
                let lines = text
                    .lines()
                    .filter(|line| !line.trim().starts_with("Date: "));
                lines.map(str::to_owned).collect()
            };
            ensure!(text(&hidden) == text(&unknown), "{hidden:?}\n{unknown:?}");
        }
        ensure!(daemon.state("web:gone")? == "STOPPED");
        Ok(())
    })
}

#[test]
fn restarting_all_does_not_start_a_hidden_process() -> Result<()> {
    with_a_hidden_process(|daemon, sidecar| {
        for (method, form) in [("GET", None), ("POST", Some("x=y".as_bytes()))] {
            let pid = member(
                &daemon.call("supervisor.getProcessInfo", ("web:stays",))?,
                "pid",
            )?
            .clone();
            let reply =
                sidecar
                    .client()
                    .request(method, "/index.html?action=restartall", &[], form)?;
            let place = location(&reply)?;
            ensure!(
                place.starts_with("/?message=All%20restarted%20at%20"),
                "{place}"
            );
            ensure!(daemon.state("web:gone")? == "STOPPED");
            ensure!(daemon.state("web:stays")? == "RUNNING");
            let info = daemon.call("supervisor.getProcessInfo", ("web:stays",))?;
            ensure!(*member(&info, "pid")? != pid, "not restarted");
            let shown = sidecar.client().get(place)?.text();
            ensure!(shown.contains(">All restarted at "), "{shown}");
        }
        Ok(())
    })
}

#[test]
fn a_hidden_process_that_was_started_on_the_daemon_is_shown_again() -> Result<()> {
    with_a_hidden_process(|daemon, sidecar| {
        daemon.call("supervisor.startProcess", ("web:gone",))?;
        let page = sidecar.client().get("/")?.text();
        row(&page, "web:gone")?;
        Ok(())
    })?;
    with_a_hidden_process(|daemon, sidecar| {
        daemon.call("supervisor.startProcess", ("web:gone",))?;
        let tail = sidecar.client().get("/tail.html?processname=web:gone")?;
        ensure!(!tail.text().contains("BAD_NAME"), "{tail:?}");
        Ok(())
    })
}

#[test]
fn a_page_of_only_hidden_processes_is_empty() -> Result<()> {
    with_a_hidden_process(|daemon, sidecar| {
        let client = sidecar.client();
        client.call("supervisor.stopProcess", ("web:stays",))?;
        client.call("twiddler.removeProcessFromGroup", ("web", "stays"))?;
        let empty = Daemon::start_with(DaemonOptions {
            version: daemon.version(),
            ..DaemonOptions::default()
        })?;
        let (page, expected) = (client.get("/")?, empty.client().get("/")?);
        ensure!(page.text() == expected.text(), "{page:?}\n{expected:?}");
        ensure_right_length(&page)
    })
}

#[test]
fn a_new_process_takes_the_name_of_a_hidden_one() -> Result<()> {
    with_a_hidden_process(|_, sidecar| {
        let client = sidecar.client();
        let program = options(&[("command", "/bin/cat"), ("startsecs", "0")]);
        client.call("twiddler.addProgramToGroup", ("web", "gone", program))?;
        wait_for_state(&client, "web:gone", "RUNNING")?;
        let page = client.get("/")?.text();
        ensure!(page.matches(">web:gone</a>").count() == 1, "{page}");
        ensure!(page.matches("<tr").count() == 3, "{page}");
        let stop = client.get(&link(row(&page, "web:gone")?, "Stop")?)?;
        ensure!(
            location(&stop)? == "/?message=Process%20web%3Agone%20stopped",
            "{stop:?}"
        );
        Ok(())
    })
}
