//! `twiddler check`: tries what `serve` does, changes nothing, and says what to write where it fails.
//!
//! It goes on after a problem with whatever does not depend on it.

use std::fmt::Display;
use std::path::Path;

use crate::config::{Draft, Settings};
use crate::daemon::conf::{DaemonConf, LogFile};
use crate::daemon::fault::{BAD_NAME, UNKNOWN_METHOD, bare};
use crate::daemon::{CallError, Daemon, Reloaded};
use crate::include_dir::{Delivery, IncludeDir};
use crate::program;
use crate::start::{self, account};
use crate::twiddler::log;
use crate::xmlrpc::{Fault, Value};

/// What the proxy itself calls, beside what it asks each time.
const NEEDED_METHODS: [&str; 7] = [
    "supervisor.addProcessGroup",
    "supervisor.getAllConfigInfo",
    "supervisor.reloadConfig",
    "supervisor.removeProcessGroup",
    "supervisor.stopProcess",
    "supervisor.stopProcessGroup",
    "system.multicall",
];

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
pub async fn check(draft: &Draft) -> Findings {
    let mut findings = Findings::default();
    for mistake in &draft.mistakes {
        findings.problem(mistake);
    }
    if let Some(conf) = &draft.daemon_conf {
        findings.good(format!("configuration {}", conf.file.display()));
        draft.notes.iter().for_each(|note| findings.note(note));
        check_daemon(draft, conf, &mut findings).await;
        check_log(&conf.logfile, &mut findings);
    }
    if let Err(error) = start::tls(&draft.settings) {
        findings.problem(error);
    }
    for warning in &draft.settings.warnings {
        findings.note(warning);
    }
    check_listeners(&draft.settings, &mut findings).await;
    next_step(draft, &mut findings);
    findings
}

async fn check_daemon(draft: &Draft, conf: &DaemonConf, findings: &mut Findings) {
    let Some((address, credentials)) = draft.daemon.clone() else {
        return;
    };
    let daemon = match Daemon::new(address, credentials) {
        Ok(daemon) => daemon,
        Err(error) => return findings.problem(error),
    };
    let answers = ask(&daemon, conf, findings).await;
    let Some(include) = &draft.include else {
        return;
    };
    let stem = format!("check-{}", std::process::id());
    match start::include_dir(include, &stem, &daemon).await {
        Ok(include) if answers => try_include(&daemon, &include, conf, findings).await,
        Ok(_) => {}
        Err(error) => findings.problem(error),
    }
}

/// Puts every question to the daemon that `serve` does.
async fn ask(daemon: &Daemon, conf: &DaemonConf, findings: &mut Findings) -> bool {
    let address = daemon.address();
    match start::reach(daemon).await {
        Ok(reached) => {
            let account = reached
                .account
                .map_or_else(String::new, |name| format!(" (runs as {name})"));
            let version = reached.version;
            findings.good(format!(
                "supervisord {version} answers at {address}{account}"
            ));
        }
        Err(error) => {
            let method = "supervisor.getSupervisorVersion";
            findings.problem(start::about_call(&error, method, daemon, conf));
            return false;
        }
    }
    match first_refused(daemon).await {
        Ok(None) => true,
        Ok(Some((method, fault))) => {
            findings.problem(start::about_call(&fault.into(), method, daemon, conf));
            false
        }
        Err(error) => {
            findings.problem(start::about_call(&error, "system.multicall", daemon, conf));
            false
        }
    }
}

/// The first of the proxy's own calls that the daemon does not carry out.
async fn first_refused(daemon: &Daemon) -> Result<Option<(&'static str, Fault)>, CallError> {
    let nobody = program_name();
    let calls = [
        ("supervisor.getState", vec![]),
        ("supervisor.getPID", vec![]),
        ("supervisor.getAllProcessInfo", vec![]),
        ("supervisor.getProcessInfo", vec![nobody.as_str().into()]),
        // Without a signal's name it reaches nobody.
        (
            "supervisor.signalProcessGroup",
            vec![nobody.as_str().into(), "".into()],
        ),
        ("system.listMethods", vec![]),
    ];
    let results = daemon.multicall(&calls).await?;
    let known: Vec<Value> = match results.last() {
        Some(Ok(Value::Array(methods))) => methods.clone(),
        _ => Vec::new(),
    };
    let faults = calls.iter().zip(results).find_map(|((method, _), result)| {
        let fault = result.err().filter(|fault| fault.code != BAD_NAME)?;
        Some((*method, fault))
    });
    let missing = NEEDED_METHODS
        .into_iter()
        .find(|method| !known.contains(&Value::from(*method)));
    Ok(faults.or_else(|| missing.map(|method| (method, bare(UNKNOWN_METHOD)))))
}

/// A name that no program and no group has.
fn program_name() -> String {
    format!("twiddler~check-{}", std::process::id())
}

async fn try_include(
    daemon: &Daemon,
    include: &IncludeDir,
    conf: &DaemonConf,
    findings: &mut Findings,
) {
    let dir = include.path();
    match is_read(daemon, include).await {
        Ok(true) => findings.good(format!(
            "supervisord reads generated files in {}",
            dir.display()
        )),
        Ok(false) => findings.problem(not_read(daemon, dir, conf).await),
        Err(Unread::Written(error)) => findings.problem(start::unusable_dir(dir, &error)),
        Err(Unread::Call(error)) => {
            findings.problem(start::about_call(
                &error,
                "supervisor.reloadConfig",
                daemon,
                conf,
            ));
        }
    }
}

/// Why it is not known whether the daemon reads a directory.
enum Unread {
    Written(std::io::Error),
    Call(CallError),
}

impl From<std::io::Error> for Unread {
    fn from(error: std::io::Error) -> Self {
        Unread::Written(error)
    }
}

/// Whether the daemon reads what is put into the directory.
///
/// First by a program that it refuses, so that it keeps what it read before: edits of the user's
/// that nobody has let it read yet stay unread. That file is a link through this process, so it
/// cannot outlive it and keep a daemon from starting. A daemon that cannot follow the link is given
/// an empty group, and reads again without.
async fn is_read(daemon: &Daemon, include: &IncludeDir) -> Result<bool, Unread> {
    let name = program_name();
    let staged = include.stage(&format!("[program:{name}]\n"), Delivery::Link)?;
    let refused = daemon.call("supervisor.reloadConfig", &[]).await;
    drop(staged);
    match refused {
        Err(CallError::Fault(fault)) if fault.text.contains(&name) => return Ok(true),
        Err(error) => return Err(Unread::Call(error)),
        Ok(_) => {}
    }
    let text = program::render_group(&name, 999, &[]);
    let staged = include.stage(&text, Delivery::File)?;
    let seen = daemon.call("supervisor.reloadConfig", &[]).await;
    drop(staged);
    let again = daemon.call("supervisor.reloadConfig", &[]).await;
    let seen = again.and(seen).map_err(Unread::Call)?;
    Ok(Reloaded::read(&seen).added.contains(&name))
}

async fn not_read(daemon: &Daemon, dir: &Path, conf: &DaemonConf) -> String {
    let (shown, file) = (dir.display(), conf.file.display());
    let others = daemon.account().await.filter(|uid| *uid != 0);
    match others.filter(|uid| *uid != nix::unistd::geteuid().as_raw()) {
        Some(uid) => format!(
            "supervisord runs as {} and cannot read what twiddler writes in {shown}; chgrp {shown} to a group that both accounts are in, and chmod 2770 {shown}",
            start::user_name(uid)
        ),
        None => format!(
            "supervisord does not read {shown}; write files = {shown}/*.conf below [include] in the file that supervisord was started with, if that is not {file}"
        ),
    }
}

fn check_log(logfile: &LogFile, findings: &mut Findings) {
    let path = match log::target(logfile) {
        log::Target::File(path) => path,
        log::Target::Nothing => {
            return findings.note(
                "supervisord logs to /dev/null, so the lines of twiddler.log are lost with all others",
            );
        }
        log::Target::OutOfReach(reason) => {
            return findings.note(format!("{reason}, so twiddler.log answers a fault"));
        }
    };
    match log::open(path) {
        Ok(_) => findings.good(format!("supervisord's log {}", path.display())),
        Err(error) => findings.note(format!(
            "{} cannot write supervisord's log {} ({error}), so twiddler.log answers a fault; {}",
            account(),
            path.display(),
            start::make_writable(path)
        )),
    }
}

async fn check_listeners(settings: &Settings, findings: &mut Findings) {
    let mut held = Vec::new();
    for address in &settings.listen {
        match start::try_listen(address, settings).await {
            Ok(listener) => {
                findings.good(format!("can listen on {address}"));
                held.extend(listener);
            }
            Err(error) => findings.problem(error),
        }
    }
}

/// What to type next.
fn next_step(draft: &Draft, findings: &mut Findings) {
    let text = match findings.problems {
        0 => format!(
            "twiddler serve, then: {}",
            start::status_command(&draft.settings)
        ),
        1 => "mend the problem, then: twiddler check".to_owned(),
        problems => format!("mend the {problems} problems, then: twiddler check"),
    };
    findings.lines.push(format!("next     {text}"));
}
