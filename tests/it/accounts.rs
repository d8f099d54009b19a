//! The owners of the proxy's files: after a run by root, they still belong to the account of the service.
//!
//! Only root can switch accounts, so other accounts skip these tests.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::Command;

use crate::common::changes::USER;
use crate::common::disk::set_mode;
use crate::common::process::run;
use crate::common::{Daemon, Sidecar, options, stderr_text};
use anyhow::{Result, ensure};

/// An account that every machine has.
const NOBODY: u32 = 65534;
const OWN_FILES: [&str; 3] = [
    ".twiddler-lock",
    ".twiddler-journal",
    "zz-twiddler-persist.conf",
];

/// Whether this account can run these tests.
fn is_root() -> Result<bool> {
    let is_root = fs::metadata("/proc/self")?.uid() == 0;
    let needed = std::env::var_os("TEST_ALL").is_some();
    ensure!(is_root || !needed, "needs root");
    if !is_root {
        eprintln!("left out: only root can act as several accounts");
    }
    Ok(is_root)
}

fn own_files(daemon: &Daemon) -> Vec<PathBuf> {
    OWN_FILES
        .iter()
        .map(|name| daemon.include_dir().join(name))
        .collect()
}

fn ensure_owned_by_nobody(daemon: &Daemon) -> Result<()> {
    for path in own_files(daemon) {
        let metadata = path.metadata()?;
        let whose = (metadata.uid(), metadata.gid(), metadata.mode() & 0o777);
        ensure!(
            whose == (NOBODY, NOBODY, 0o600),
            "{}: {whose:?}",
            path.display()
        );
    }
    Ok(())
}

fn change(sidecar: &Sidecar, name: &str) -> Result<()> {
    let client = sidecar.client();
    let program = options(&[("command", "/bin/cat"), ("autostart", "false")]);
    client.call("twiddler.addProgramToGroup", ("web", name, program))?;
    client.call("twiddler.addGroup", (name, 1))?;
    client.call("twiddler.removeGroup", (name,))?;
    Ok(())
}

#[test]
fn a_run_by_root_leaves_files_to_their_account() -> Result<()> {
    if !is_root()? {
        return Ok(());
    }
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    change(&sidecar, "first")?;
    sidecar.stop()?;
    for path in own_files(&daemon) {
        chown(path, Some(NOBODY), Some(NOBODY))?;
    }
    sidecar.start_again()?;
    change(&sidecar, "second")?;
    sidecar.stop()?;
    ensure_owned_by_nobody(&daemon)
}

#[test]
fn files_created_by_root_belong_to_the_account_of_the_directory() -> Result<()> {
    if !is_root()? {
        return Ok(());
    }
    let daemon = Daemon::start(USER)?;
    chown(daemon.include_dir(), Some(NOBODY), Some(NOBODY))?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    change(&sidecar, "first")?;
    sidecar.stop()?;
    ensure_owned_by_nobody(&daemon)
}

#[test]
fn files_of_another_account_are_named_with_advice() -> Result<()> {
    if !is_root()? {
        return Ok(());
    }
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    change(&sidecar, "first")?;
    sidecar.stop()?;
    for dir in [daemon.dir(), daemon.include_dir()] {
        set_mode(dir, 0o777)?;
    }
    // A copy of the binary that the account `nobody` can execute.
    let binary = daemon.dir().join("twiddler");
    fs::copy(env!("CARGO_BIN_EXE_twiddler"), &binary)?;
    let socket = format!("unix://{}/nobodys.sock", daemon.dir().display());
    let serve = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
            .arg(&binary)
            .args(["serve", "--listen", &socket, "-c"]);
        run(command.arg(daemon.conf()))
    };
    for (name, more) in [
        (OWN_FILES[0], ""),
        (
            OWN_FILES[1],
            ", or remove it (what was added is then read from supervisord)",
        ),
    ] {
        let path = daemon.include_dir().join(name);
        let ended = serve()?;
        let stderr = stderr_text(&ended);
        let expected = format!(
            "{} belongs to root and cannot be opened by nobody: chown nobody it{more}",
            path.display()
        );
        ensure!(ended.status.code() == Some(2), "{}: {stderr}", ended.status);
        ensure!(stderr.contains(&expected), "{stderr}");
        // The advice works: the next attempt names the next file.
        chown(&path, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

#[test]
fn an_owner_that_an_account_may_not_set_is_reported_with_its_option() -> Result<()> {
    if !is_root()? {
        return Ok(());
    }
    let daemon = Daemon::start(USER)?;
    for dir in [daemon.dir(), daemon.include_dir()] {
        set_mode(dir, 0o777)?;
    }
    let binary = daemon.dir().join("twiddler");
    fs::copy(env!("CARGO_BIN_EXE_twiddler"), &binary)?;
    let socket = format!("unix://{}/nobodys.sock", daemon.dir().display());
    for owner in ["root:root", "nobody:root"] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
            .arg(&binary)
            .args(["serve", "--listen", &socket, "--chown", owner, "-c"]);
        let ended = run(command.arg(daemon.conf()))?;
        let stderr = stderr_text(&ended);
        let expected =
            format!("twiddler: --chown: nobody (uid {NOBODY}) may not give the socket {socket} to");
        ensure!(ended.status.code() == Some(2), "{}: {stderr}", ended.status);
        ensure!(stderr.contains(&expected), "no {expected}: {stderr}");
    }
    Ok(())
}
