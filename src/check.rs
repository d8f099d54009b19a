//! `twiddler check`: tries the real thing, changes nothing, and says what to write where it fails.

use std::fmt::Display;
use std::path::Path;

use http::StatusCode;

use crate::config::{self, Config, ListenAddr};
use crate::daemon::conf::LogFile;
use crate::daemon::{CallError, Daemon};
use crate::include_dir::{Delivery, IncludeDir};
use crate::program;
use crate::server::Listener;
use crate::xmlrpc::Value;

/// Marks the file of a check, so that it is never taken for one of a proxy that runs.
const STEM: &str = "check";

/// What was found, a line each.
#[derive(Debug, Default)]
pub struct Findings {
    lines: Vec<String>,
    problems: usize,
}

impl Findings {
    /// The lines to print.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Whether the set-up would work.
    pub fn is_good(&self) -> bool {
        self.problems == 0
    }

    fn good(&mut self, line: impl Display) {
        self.lines.push(format!("ok       {line}"));
    }

    /// Something that works less well than it could.
    fn note(&mut self, line: impl Display) {
        self.lines.push(format!("note     {line}"));
    }

    fn problem(&mut self, line: impl Display) {
        self.lines.push(format!("problem  {line}"));
        self.problems += 1;
    }
}

/// Tries whether a proxy with this configuration would work.
pub async fn check(config: &Config) -> Findings {
    let mut findings = Findings::default();
    findings.good(format!(
        "configuration {}",
        config.daemon_conf.file.display()
    ));
    match Daemon::new(config.daemon.clone(), config.credentials.clone()) {
        Ok(daemon) if reach(&daemon, config, &mut findings).await => {
            try_include(&daemon, config, &mut findings).await;
        }
        Ok(_) => {}
        Err(error) => findings.problem(format!("credentials for supervisord: {error}")),
    }
    try_log(&config.daemon_conf.logfile, &mut findings);
    for address in &config.listen {
        try_listen(address, config, &mut findings).await;
    }
    findings
}

async fn reach(daemon: &Daemon, config: &Config, findings: &mut Findings) -> bool {
    let address = &config.daemon;
    match daemon.call("supervisor.getSupervisorVersion", &[]).await {
        Ok(version) => {
            let version = version.as_str().unwrap_or("of an unknown version").to_owned();
            findings.good(format!("supervisord {version} answers at {address}"));
            return true;
        }
        Err(CallError::Status(StatusCode::UNAUTHORIZED)) => findings.problem(format!(
            "supervisord at {address} does not take the username and password: write in {} those that the running daemon was started with",
            server_section(config)
        )),
        Err(CallError::Unreachable(reason)) => findings.problem(format!(
            "{reason}: start supervisord, or name where it listens by --supervisord"
        )),
        Err(error) => findings.problem(format!("supervisord at {address}: {error}")),
    }
    false
}

fn server_section(config: &Config) -> String {
    config
        .daemon_conf
        .servers
        .iter()
        .find(|server| server.address == config.daemon)
        .map_or_else(
            || "[unix_http_server]".to_owned(),
            |server| format!("[{}]", server.section),
        )
}

/// Lets the daemon read an empty group, and then read again without it.
async fn try_include(daemon: &Daemon, config: &Config, findings: &mut Findings) {
    let dir = config.include.dir.display();
    let Some(name) = config::generated_name(&config.include.file_pattern, STEM) else {
        return findings.problem(format!(
            "no generated file can match {} in [include] files: write files = {dir}/*.conf",
            config.include.file_pattern
        ));
    };
    let group = format!("twiddler~check-{}", std::process::id());
    let text = program::render_group(&group, 999, &[]);
    let opened = IncludeDir::open(config.include.dir.clone(), name);
    let staged = match opened.and_then(|include| include.stage(&text, Delivery::File)) {
        Ok(staged) => staged,
        Err(error) => {
            return findings.problem(format!(
                "cannot write in the include directory {dir}: {error}: let the account of twiddler write there, or name another directory by --include-dir"
            ));
        }
    };
    let seen = daemon.call("supervisor.reloadConfig", &[]).await;
    drop(staged);
    let again = daemon.call("supervisor.reloadConfig", &[]).await;
    match seen.and_then(|seen| again.map(|_| seen)) {
        Ok(seen) if is_added(&seen, &group) => {
            findings.good(format!("supervisord reads generated files in {dir}"));
        }
        Ok(_) => findings.problem(format!(
            "supervisord did not read {dir}: add it to [include] files in {}, restart supervisord if it was started without, and let its account read the directory",
            config.daemon_conf.file.display()
        )),
        Err(CallError::Fault(fault)) => findings.problem(format!(
            "supervisord cannot read its configuration, so nothing could be added: {}",
            fault.text
        )),
        Err(error) => findings.problem(error),
    }
}

fn is_added(reloaded: &Value, group: &str) -> bool {
    let lists = reloaded
        .as_array()
        .and_then(|outer| outer.first())
        .and_then(Value::as_array);
    lists
        .and_then(|lists| lists.first())
        .and_then(Value::as_array)
        .is_some_and(|added| added.iter().any(|name| name.as_str() == Some(group)))
}

fn try_log(logfile: &LogFile, findings: &mut Findings) {
    match logfile {
        LogFile::Syslog => findings.note("supervisord logs to syslog: twiddler.log will answer a fault"),
        LogFile::File(path) => match append_to(path) {
            Ok(()) => findings.good(format!("supervisord's log {}", path.display())),
            Err(error) => findings.note(format!(
                "supervisord's log {} cannot be written from here ({error}): twiddler.log will answer a fault",
                path.display()
            )),
        },
    }
}

fn append_to(path: &Path) -> std::io::Result<()> {
    std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .map(drop)
}

async fn try_listen(address: &ListenAddr, config: &Config, findings: &mut Findings) {
    match Listener::bind(address, &config.socket).await {
        Ok(listener) => findings.good(format!("can listen on {}", listener.url())),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => findings.note(format!(
            "{address} is in use: by a twiddler that runs already, or choose another by --listen"
        )),
        Err(error) => findings.problem(format!(
            "cannot listen on {address}: {error}: choose another address by --listen"
        )),
    }
}
