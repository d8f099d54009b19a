//! `--persist` with many programs: the persist file is withheld while the daemon reads the sections of a
//! change. All additions must survive any failure at that moment.

use std::fs;

use crate::common::changes::USER;
use crate::common::stuck::{stopping_sidecar, wait_until_stopped};
use crate::common::{Client, Connection, Daemon, LIMIT, Sidecar, eventually, options, rows, value};
use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

/// More programs than the threshold for withholding the file.
const MANY: i64 = 40;
const PERSIST_FILE: &str = "zz-twiddler-persist.conf";
const WITHHELD: &str = ".twiddler-persist.withheld";

struct Stage {
    daemon: Daemon,
    sidecar: Sidecar,
}

impl Stage {
    /// Starts a proxy that has added many programs, one of which runs.
    fn set() -> Result<Stage> {
        let daemon = Daemon::start(USER)?;
        let sidecar = stopping_sidecar(&daemon, &["--persist"], &[])?;
        let stage = Stage { daemon, sidecar };
        let many = options(&[
            ("command", value("/bin/cat")),
            ("autostart", value(false)),
            ("startsecs", value(0)),
            ("numprocs", value(MANY)),
            ("process_name", value("%(program_name)s_%(process_num)d")),
        ]);
        let client = stage.client();
        client.call("twiddler.addProgramToGroup", ("web", "many", many))?;
        client.call("twiddler.addProgramToGroup", ("web", "runs", runs()))?;
        Ok(stage)
    }

    fn client(&self) -> Client {
        self.sidecar.socket_client()
    }

    /// Stops the proxy in an addition, at `point`.
    fn stop_at(&self, point: &str, name: &str) -> Result<Connection> {
        self.daemon.write("stop-at", point)?;
        let client = self.client();
        let mut connection = client.connect()?;
        let params = [value("web"), value(name), runs()];
        let body = write::call("twiddler.addProgramToGroup", &params);
        connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&body)))?;
        wait_until_stopped(self.sidecar.pid())?;
        Ok(connection)
    }

    fn exists(&self, name: &str) -> bool {
        self.daemon.include_dir().join(name).exists()
    }

    /// Fails unless the daemon and the persist file have all additions.
    fn ensure_all(&self) -> Result<()> {
        eventually(LIMIT, || {
            let rows = rows(&self.client())?;
            let many = rows.iter().filter(|row| row.name.starts_with("many_"));
            ensure!(many.count() as i64 == MANY, "{rows:#?}");
            let row = rows.iter().find(|row| row.name == "runs");
            ensure!(row.is_some_and(|row| row.state == "RUNNING"), "{row:?}");
            Ok(())
        })?;
        ensure!(self.exists(PERSIST_FILE) && !self.exists(WITHHELD));
        let persist_file = fs::read_to_string(self.daemon.include_dir().join(PERSIST_FILE))?;
        let sections = persist_file.matches("[program:").count() as i64;
        ensure!(sections > MANY, "{sections} programs are in the file");
        Ok(())
    }
}

fn runs() -> Value {
    options(&[("command", "/bin/sleep 600"), ("startsecs", "0")])
}

#[test]
fn the_daemon_does_not_read_the_persist_file_again() -> Result<()> {
    let stage = Stage::set()?;
    let mut connection = stage.stop_at("withheld", "more")?;
    ensure!(!stage.exists(PERSIST_FILE) && stage.exists(WITHHELD));
    stage.daemon.write("stop-at", "read")?;
    stage.sidecar.signal("CONT")?;
    wait_until_stopped(stage.sidecar.pid())?;
    ensure!(stage.exists(PERSIST_FILE) && !stage.exists(WITHHELD));
    stage.sidecar.signal("CONT")?;
    connection.read_reply()?;
    stage.ensure_all()?;
    stage.daemon.kill_and_start_again()?;
    stage.daemon.wait_for_state("web:front", "RUNNING")?;
    stage.ensure_all()
}

#[test]
fn the_withheld_file_is_put_back_when_the_proxy_dies() -> Result<()> {
    let stage = Stage::set()?;
    let _call = stage.stop_at("withheld", "more")?;
    stage.sidecar.kill()?;
    eventually(LIMIT, || {
        ensure!(stage.exists(PERSIST_FILE) && !stage.exists(WITHHELD));
        Ok(())
    })?;
    // The daemon has all programs by itself.
    stage.daemon.kill_and_start_again()?;
    eventually(LIMIT, || {
        let count = rows(&stage.daemon.client())?.len() as i64;
        ensure!(count > MANY, "{count}");
        Ok(())
    })?;
    stage.sidecar.start_again()?;
    stage.ensure_all()
}

#[test]
fn a_daemon_that_starts_without_the_file_gets_all_programs() -> Result<()> {
    for proxy_dies in [false, true] {
        let stage = Stage::set()?;
        let _call = stage.stop_at("withheld", "more")?;
        stage.daemon.kill_and_start_again()?;
        ensure!(stage.exists(WITHHELD));
        if proxy_dies {
            stage.sidecar.kill()?;
            stage.sidecar.start_again()?;
        } else {
            stage.sidecar.signal("CONT")?;
        }
        stage.ensure_all()?;
    }
    Ok(())
}

#[test]
fn programs_that_an_update_on_the_daemon_removes_are_added_again() -> Result<()> {
    let stage = Stage::set()?;
    let mut connection = stage.stop_at("withheld", "more")?;
    let output = stage.daemon.supervisorctl(&["update"])?;
    let output = String::from_utf8(output.stdout)?;
    ensure!(output.contains("removed process group"), "{output}");
    stage.sidecar.signal("CONT")?;
    connection.read_reply()?;
    let line = "adding again what was removed straight on supervisord";
    stage.sidecar.wait_for_stderr(line)?;
    stage.ensure_all()
}
