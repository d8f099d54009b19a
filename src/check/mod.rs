//! `twiddler check`: tries the steps of `serve`, changes nothing, and prints what to write where a step
//! fails.
//!
//! After a problem it goes on with the steps that do not depend on the failed one.

mod notes;

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

use http::StatusCode;

use crate::config::{self, Draft, Settings};
use crate::daemon::conf::{Credentials, DaemonConf, LogFile};
use crate::daemon::main_log as log;
use crate::daemon::{CallError, Daemon, ReloadResult};
use crate::fault::{BAD_NAME, UNKNOWN_METHOD, without_detail};
use crate::include_dir::{self, Delivery, IncludeDir};
use crate::program;
use crate::start::{self, account};
use crate::twiddler;
use crate::xmlrpc::Value;

/// The methods that the proxy needs and that `check` cannot call, because they change something.
const NEEDED_METHODS: [&str; 7] = [
    "supervisor.addProcessGroup",
    "supervisor.getAllConfigInfo",
    "supervisor.reloadConfig",
    "supervisor.removeProcessGroup",
    "supervisor.stopProcess",
    "supervisor.stopProcessGroup",
    "system.multicall",
];

/// The lines of the output, and the number of problems.
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

    /// Whether there are no problems.
    pub fn is_good(&self) -> bool {
        self.problems == 0
    }

    fn good(&mut self, line: impl Display) {
        self.lines.push(format!("ok       {line}"));
    }

    /// Adds something that works, but not as well as it could.
    fn note(&mut self, line: impl Display) {
        self.lines.push(format!("note     {line}"));
    }

    /// Adds a problem for each line of `sentences`.
    fn problem(&mut self, sentences: impl Display) {
        for line in sentences.to_string().lines() {
            self.lines.push(format!("problem  {line}"));
            self.problems += 1;
        }
    }
}

/// Tries whether a proxy with this configuration would work. The next command in the output repeats
/// `arguments`, from which the configuration was read.
pub async fn check(draft: &Draft, arguments: &[String]) -> Findings {
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
    next_step(draft, arguments, &mut findings);
    findings
}

async fn check_daemon(draft: &Draft, conf: &DaemonConf, findings: &mut Findings) {
    let Some((address, credentials)) = draft.daemon.clone() else {
        if let Some(include) = &draft.include {
            check_own_files(draft, include, conf, None, findings).await;
        }
        return;
    };
    let note = notes::supervisorctl_bypasses_proxy(conf, &address, &draft.settings);
    note.into_iter().for_each(|note| findings.note(note));
    let unknown_password = credentials
        .clone()
        .filter(|credentials| !credentials.can_be_presented());
    let daemon = match Daemon::new(address, credentials) {
        Ok(daemon) => daemon,
        Err(error) => return findings.problem(error),
    };
    let answers = check_calls(&daemon, draft, conf, unknown_password, findings).await;
    let Some(include) = &draft.include else {
        return;
    };
    let is_free = check_own_files(draft, include, conf, Some(&daemon), findings).await;
    if answers && is_free {
        try_include(include, conf, &daemon, findings).await;
    }
}

/// Reads lock, journal and persist file as `serve` does. Returns whether no proxy uses the directory.
async fn check_own_files(
    draft: &Draft,
    include: &config::IncludeTarget,
    conf: &DaemonConf,
    daemon: Option<&Daemon>,
    findings: &mut Findings,
) -> bool {
    let include_dir = match start::include_dir(include, "", daemon).await {
        Ok(include_dir) => Arc::new(include_dir),
        Err(error) => {
            findings.problem(error);
            return false;
        }
    };
    let dir_state = match twiddler::inspect(include_dir.clone(), &conf.file) {
        Ok(dir_state) => dir_state,
        Err(error) => {
            findings.problem(error);
            return false;
        }
    };
    let persist_file = notes::persist_file(&dir_state, draft.settings.persist, &include.dir);
    let notes = persist_file
        .into_iter()
        .chain(notes::defined_twice(&dir_state, conf));
    notes.for_each(|note| findings.note(note));
    match &dir_state.holder {
        None => true,
        Some(holder) => {
            findings.problem(include_dir.busy(holder));
            false
        }
    }
}

/// Makes the calls to the daemon that `serve` makes. Returns whether they worked.
///
/// `unknown_password` has the credentials of the daemon's file if the proxy cannot present them: the
/// password is a digest, or contains a missing environment variable. There is a note about the variable
/// already.
async fn check_calls(
    daemon: &Daemon,
    draft: &Draft,
    conf: &DaemonConf,
    unknown_password: Option<Credentials>,
    findings: &mut Findings,
) -> bool {
    let address = daemon.address();
    let result = match start::reach(daemon).await {
        Ok(identity) => {
            let account = identity.account.map(|name| format!(" (runs as {name})"));
            findings.good(format!(
                "supervisord {} answers at {address}{}",
                identity.version,
                account.unwrap_or_default()
            ));
            own_calls(daemon).await
        }
        Err(CallError::Status(StatusCode::UNAUTHORIZED)) if unknown_password.is_some() => {
            findings.good(format!("supervisord answers at {address}"));
            let section = start::section_of(address, conf);
            let note =
                unknown_password.and_then(|credentials| notes::digest(section, &credentials, conf));
            note.into_iter().for_each(|note| findings.note(note));
            return false;
        }
        Err(error) => Err(("supervisor.getSupervisorVersion", error)),
    };
    match result {
        Ok(methods) => {
            let unmatched = start::unmatched_patterns(&draft.settings, &methods);
            unmatched.iter().for_each(|note| findings.note(note));
            true
        }
        Err((method, error)) => {
            findings.problem(start::call_error(&error, method, daemon, conf));
            false
        }
    }
}

/// Makes the proxy's own calls that change nothing. Returns the methods that the daemon and the proxy have.
///
/// # Errors
/// The first call that failed, or the first needed method that the daemon lacks.
async fn own_calls(daemon: &Daemon) -> Result<Vec<String>, (&'static str, CallError)> {
    let unused = unused_name();
    let calls = [
        ("supervisor.getState", vec![]),
        ("supervisor.getPID", vec![]),
        ("supervisor.getAllProcessInfo", vec![]),
        ("supervisor.getProcessInfo", vec![unused.as_str().into()]),
        // The group does not exist, and the signal's name is empty.
        (
            "supervisor.signalProcessGroup",
            vec![unused.as_str().into(), "".into()],
        ),
        ("system.listMethods", vec![]),
    ];
    let results = daemon.multicall(&calls).await;
    let results = results.map_err(|error| ("system.multicall", error))?;
    let mut methods = Vec::new();
    for ((method, _), result) in calls.iter().zip(results) {
        match result {
            Ok(Value::Array(names)) if *method == "system.listMethods" => {
                methods.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            Err(fault) if fault.code != BAD_NAME => return Err((method, fault.into())),
            _ => {}
        }
    }
    let exists = |method: &&str| methods.iter().any(|name| name == method);
    if let Some(missing) = NEEDED_METHODS.into_iter().find(|method| !exists(method)) {
        return Err((missing, without_detail(UNKNOWN_METHOD).into()));
    }
    methods.extend(start::twiddler_methods());
    Ok(methods)
}

/// A name that no program and no group has.
fn unused_name() -> String {
    format!("twiddler~check-{}", std::process::id())
}

/// Tries whether the daemon reads generated files in the include directory.
async fn try_include(
    include: &config::IncludeTarget,
    conf: &DaemonConf,
    daemon: &Daemon,
    findings: &mut Findings,
) {
    let stem = format!("check-{}", std::process::id());
    let include = match start::include_dir(include, &stem, Some(daemon)).await {
        Ok(include) => include,
        Err(error) => return findings.problem(error),
    };
    let dir = include.path();
    match is_read(daemon, &include).await {
        Ok(true) => findings.good(format!(
            "supervisord reads generated files in {}",
            dir.display()
        )),
        Ok(false) => findings.problem(not_read(daemon, dir, conf).await),
        Err(Unread::Written(error)) => findings.problem(start::unusable_dir(dir, &error)),
        Err(Unread::Call(error)) => {
            findings.problem(start::call_error(
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

/// Whether the daemon reads files in the directory.
///
/// The first attempt stages a program that the daemon refuses: it then keeps the configuration that it has
/// read before, without edits in the user's files. The staged file is a link through this process, so it
/// disappears with the process and cannot keep a daemon from starting. If the daemon cannot follow the
/// link, the second attempt stages an empty group as a file, and then has the daemon read again without it.
async fn is_read(daemon: &Daemon, include: &IncludeDir) -> Result<bool, Unread> {
    let name = unused_name();
    let staged = include.stage(&format!("[program:{name}]\n"), Delivery::Link)?;
    let result = daemon.call("supervisor.reloadConfig", &[]).await;
    drop(staged);
    match result {
        Err(CallError::Fault(fault)) if fault.text.contains(&name) => return Ok(true),
        Err(error) => return Err(Unread::Call(error)),
        Ok(_) => {}
    }
    let text = program::render_group(&name, 999, &[]);
    let staged = include.stage(&text, Delivery::File)?;
    let with_group = daemon.call("supervisor.reloadConfig", &[]).await;
    drop(staged);
    let without_group = daemon.call("supervisor.reloadConfig", &[]).await;
    let reply = without_group.and(with_group).map_err(Unread::Call)?;
    Ok(ReloadResult::read(&reply).added.contains(&name))
}

async fn not_read(daemon: &Daemon, dir: &Path, conf: &DaemonConf) -> String {
    let (shown, file) = (dir.display(), conf.file.display());
    match daemon.other_account().await {
        Some(account) => include_dir::unreadable_for(&account, dir),
        None => format!(
            "supervisord does not read {shown}; write files = {shown}/*.conf below [include] in the file that supervisord was started with, if that is not {file}"
        ),
    }
}

fn check_log(logfile: &LogFile, findings: &mut Findings) {
    // The configuration has a note about it.
    if matches!(logfile, LogFile::Unknown(_)) {
        return;
    }
    let path = match log::target(logfile) {
        log::Target::File(path) => path,
        log::Target::Discarded => {
            return findings.note(
                "supervisord logs to /dev/null, so the lines of twiddler.log are lost with all others",
            );
        }
        log::Target::Unreachable(reason) => {
            return findings.note(format!("{reason}, so twiddler.log answers a fault"));
        }
    };
    match log::open(path) {
        Ok(_) => findings.good(format!("supervisord's log {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => findings.note(format!(
            "there is no supervisord's log {}, so twiddler.log answers a fault; supervisord makes it when it starts, or on SIGUSR2",
            path.display()
        )),
        Err(error) => findings.note(format!(
            "{} cannot write supervisord's log {} ({error}), so twiddler.log answers a fault; {}",
            account(),
            path.display(),
            start::make_writable(path)
        )),
    }
}

async fn check_listeners(settings: &Settings, findings: &mut Findings) {
    // Ports stay bound until all are tried, so that two that overlap are found.
    let mut listeners = Vec::new();
    for address in &settings.listen {
        match start::try_listen(address, settings).await {
            Ok(listener) => {
                findings.good(format!("can listen on {address}"));
                listeners.extend(listener);
            }
            Err(error) => findings.problem(error),
        }
    }
}

/// The arguments for a command line, each with a space before it. A variable replaces the password.
fn command_line(arguments: &[String]) -> String {
    const PASSWORD: &str = "--password";
    const VARIABLE: &str = "\"$PASSWORD\"";
    let mut text = String::new();
    let mut is_password = false;
    for argument in arguments {
        let shown = match argument.split_once('=') {
            _ if is_password => VARIABLE.to_owned(),
            Some((PASSWORD, _)) => format!("{PASSWORD}={VARIABLE}"),
            _ => shell_word(argument),
        };
        is_password = argument == PASSWORD;
        text.push(' ');
        text.push_str(&shown);
    }
    text
}

/// A word, in quotes where a shell would change it.
fn shell_word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_./:=,@%+".contains(letter);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// Adds the command to enter next.
fn next_step(draft: &Draft, arguments: &[String], findings: &mut Findings) {
    let arguments = command_line(arguments);
    let text = match findings.problems {
        0 => {
            let daemon = draft.daemon.as_ref();
            let daemon_asks = daemon.is_some_and(|(_, credentials)| credentials.is_some());
            let status = start::status_command(&draft.settings, daemon_asks);
            format!("twiddler serve{arguments}, then: {status}")
        }
        1 => format!("mend the problem, then: twiddler check{arguments}"),
        problems => format!("mend the {problems} problems, then: twiddler check{arguments}"),
    };
    findings.lines.push(format!("next     {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_command_has_no_passwords() {
        for (arguments, expected) in [
            (&[][..], ""),
            (&["-c", "/etc/s.conf"], " -c /etc/s.conf"),
            (&["--listen", "[::1]:9002"], " --listen '[::1]:9002'"),
            (&["--hosts", "it's, b"], " --hosts 'it'\\''s, b'"),
            (
                &["--password", "x", "--persist"],
                " --password \"$PASSWORD\" --persist",
            ),
            (&["--password=x"], " --password=\"$PASSWORD\""),
            (&["--username", ""], " --username ''"),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(command_line(&arguments), expected);
        }
    }
}
