//! Option values and credentials stay secret, in the log and on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::include::private_dirs;
use crate::common::{Client, Daemon, DaemonOptions, Sidecar, SidecarOptions, options, value};
use anyhow::{Result, ensure};

const CANARY: &str = "canary-3f9a";

/// The files in a directory that other accounts than their owner may read.
fn readable_by_others(dir: &std::path::Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let metadata = fs::metadata(entry.path());
            metadata.is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o077 != 0
            })
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn secrets_are_neither_logged_nor_left_where_others_can_read_them() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "of-the-daemon-canary-3f9a")),
        body: "[program:cat]\ncommand = /bin/cat\n",
        ..DaemonOptions::default()
    })?;
    let own = format!("own-{CANARY}");
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            arguments: &["--persist", "--log-level", "trace"],
            environment: &[("TWIDDLER_USERNAME", "own"), ("TWIDDLER_PASSWORD", &own)],
            ..SidecarOptions::default()
        },
    )?;
    let dir = daemon.include_dir().to_owned();
    let done = AtomicBool::new(false);
    let seen = thread::scope(|scope| -> Result<Vec<String>> {
        let watching = scope.spawn(|| {
            let mut seen = Vec::new();
            while !done.load(Ordering::Relaxed) {
                seen.extend(readable_by_others(&dir));
            }
            seen
        });
        let outcome = use_secrets(&sidecar, &own);
        done.store(true, Ordering::Relaxed);
        let seen = watching
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        outcome.map(|()| seen)
    })?;
    assert!(seen.is_empty(), "{seen:?}");
    sidecar.stop()?;
    let log = sidecar.stderr_text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(CANARY)).collect();
    assert!(lines.is_empty(), "{lines:?}");
    assert!(log.contains("stopped"));
    Ok(())
}

fn use_secrets(sidecar: &Sidecar, own: &str) -> Result<()> {
    let client = Client::new(sidecar.tcp_addr()).with_credentials("own", own);
    client.call("twiddler.addGroup", ("g", 999))?;
    let environment = format!("SECRET=\"{CANARY}\"");
    let good = options(&[("command", "/bin/cat"), ("environment", &environment)]);
    for name in ["a", "b", "c"] {
        client.call(
            "twiddler.addProgramToGroup",
            vec![value("g"), value(name), good.clone()],
        )?;
    }
    for bad in [
        options(&[("command", "/no/such/file"), ("environment", "canary-3f9a")]),
        options(&[("command", "/bin/cat"), ("stopsignal", "canary-3f9a")]),
        options(&[("command", "/bin/cat"), ("numprocs", "canary-3f9a")]),
        options(&[("command", "%(canary-3f9a)s")]),
        options(&[("command", "/bin/cat"), ("canary-3f9a", "x")]),
    ] {
        // The call may be refused.
        let _ = client.call(
            "twiddler.addProgramToGroup",
            vec![value("g"), value("d"), bad],
        );
    }
    let _ = client.call(
        "supervisor.sendProcessStdin",
        ("g:a", format!("{CANARY}\n").as_str()),
    );
    let _ = client.call("twiddler.noSuchMethod", (CANARY,));
    for (user, password) in [("own", "wrong-canary-3f9a"), ("canary-3f9a", "x")] {
        let refused = Client::new(sidecar.tcp_addr()).with_credentials(user, password);
        let status = refused
            .call("supervisor.getState", ())
            .err()
            .and_then(|error| error.status());
        ensure!(status == Some(401), "{status:?}");
    }
    client
        .call("twiddler.removeProcessFromGroup", ("g", "c"))
        .ok();
    Ok(())
}

#[test]
fn faults_do_not_show_the_daemons_environment() -> Result<()> {
    let name = format!("/{CANARY}/");
    let daemon = Daemon::start_with(DaemonOptions {
        environment: &[("SECRET", &name)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("g", 1))?;
    let mut refused = 0;
    for option in [
        "autorestart",
        "autostart",
        "environment",
        "exitcodes",
        "numprocs",
        "priority",
        "process_name",
        "startsecs",
        "stdout_logfile",
        "stopsignal",
        "umask",
        "user",
    ] {
        let command = ("command", "/bin/cat");
        let sent = options(&[command, ("autostart", "false"), (option, "%(ENV_SECRET)s")]);
        let answer = client.call("twiddler.addProcessToGroup", ("g", option, sent));
        let Err(error) = answer else { continue };
        let text = error.to_string();
        ensure!(text.contains(option), "{option}: {text}");
        ensure!(!text.contains(CANARY), "{option}: {text}");
        refused += 1;
    }
    ensure!(refused > 8, "{refused} of the options were refused");
    // A fault still contains the values that the client itself has sent.
    let sent = options(&[
        ("command", "/bin/cat %(ENV_SECRET)s"),
        ("user", "nobody-of-this-name"),
    ]);
    let fault = client.expect_fault("twiddler.addProcessToGroup", ("g", "p", sent))?;
    ensure!(
        fault.text.contains("Invalid user name nobody-of-this-name"),
        "{}",
        fault.text
    );
    Ok(())
}

/// The files in the include directory that contain the canary.
fn files_with_canary(daemon: &Daemon) -> Result<Vec<String>> {
    let mut names = daemon.include_files()?;
    for dir in private_dirs(daemon)? {
        for entry in fs::read_dir(dir.join("files"))? {
            names.push(entry?.path().to_string_lossy().into_owned());
        }
    }
    names.retain(|name| {
        let text = fs::read(daemon.include_dir().join(name)).unwrap_or_default();
        text.windows(CANARY.len())
            .any(|part| part == CANARY.as_bytes())
    });
    Ok(names)
}

#[test]
fn values_leave_the_disk_with_their_programs() -> Result<()> {
    for arguments in [&[][..], &["--persist"]] {
        let daemon = Daemon::start("[program:cat]\ncommand = /bin/cat\n")?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let client = sidecar.client();
        let environment = format!("SECRET=\"{CANARY}\"");
        let program = |members: &[(&str, &str)]| {
            let mut all = vec![("command", "/bin/cat"), ("autostart", "false")];
            all.push(("environment", &environment));
            all.extend_from_slice(members);
            options(&all)
        };
        client.call("twiddler.addGroup", ("g", 999))?;
        for (group, name) in [("g", "own"), ("g", "placed"), ("cat", "placed")] {
            client.call("twiddler.addProgramToGroup", (group, name, program(&[])))?;
            ensure!(!files_with_canary(&daemon)?.is_empty(), "{name} is nowhere");
        }
        client.call("twiddler.removeProcessFromGroup", ("cat", "placed"))?;
        client.call("twiddler.removeGroup", ("g",))?;
        let files = files_with_canary(&daemon)?;
        ensure!(files.is_empty(), "after removals: {files:?}");
        let refused = program(&[("user", "nobody-of-this-name")]);
        client.expect_fault("twiddler.addProgramToGroup", ("cat", "refused", refused))?;
        let files = files_with_canary(&daemon)?;
        ensure!(files.is_empty(), "after a refusal: {files:?}");
        client.call("twiddler.addProgramToGroup", ("cat", "lost", program(&[])))?;
        if arguments.is_empty() {
            daemon.kill_and_start_again()?;
            client.call("twiddler.getGroupNames", ())?;
            let files = files_with_canary(&daemon)?;
            ensure!(
                files.is_empty(),
                "after a restart of supervisord: {files:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn values_of_removed_programs_from_an_earlier_version_leave_the_disk_at_the_start() -> Result<()> {
    let daemon = Daemon::start("[program:cat]\ncommand = /bin/cat\n")?;
    let journal = format!(
        "{{\"Done\":[{{\"Group\":{{\"name\":\"{CANARY}\",\"priority\":1}}}}]}}\n\
         {{\"Done\":[{{\"GroupGone\":{{\"name\":\"{CANARY}\"}}}}]}}\n"
    );
    fs::write(daemon.include_dir().join(".twiddler-journal"), journal)?;
    let _sidecar = Sidecar::start(&daemon)?;
    let files = files_with_canary(&daemon)?;
    ensure!(files.is_empty(), "{files:?}");
    Ok(())
}
