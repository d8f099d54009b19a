//! `twiddler check`: tries what `serve` does, changes nothing, and says what to write where it fails.
//!
//! It goes on after a problem with whatever does not depend on it.

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
use crate::fault::{BAD_NAME, UNKNOWN_METHOD, bare};
use crate::include_dir::{self, Delivery, IncludeDir};
use crate::program;
use crate::start::{self, account};
use crate::twiddler;
use crate::xmlrpc::Value;

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

    /// What is wrong, each sentence on a line of its own.
    fn problem(&mut self, sentences: impl Display) {
        for line in sentences.to_string().lines() {
            self.lines.push(format!("problem  {line}"));
            self.problems += 1;
        }
    }
}

/// Tries whether a proxy with this configuration would work. `typed` are the arguments that it came from,
/// for the command to type next.
pub async fn check(draft: &Draft, typed: &[String]) -> Findings {
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
    next_step(draft, typed, &mut findings);
    findings
}

async fn check_daemon(draft: &Draft, conf: &DaemonConf, findings: &mut Findings) {
    let Some((address, credentials)) = draft.daemon.clone() else {
        if let Some(include) = &draft.include {
            check_own_files(draft, include, conf, None, findings).await;
        }
        return;
    };
    let past = notes::past_the_proxy(conf, &address, &draft.settings);
    past.into_iter().for_each(|note| findings.note(note));
    let unpresented = credentials
        .clone()
        .filter(|credentials| !credentials.can_be_presented());
    let daemon = match Daemon::new(address, credentials) {
        Ok(daemon) => daemon,
        Err(error) => return findings.problem(error),
    };
    let answers = ask(&daemon, draft, conf, unpresented, findings).await;
    let Some(include) = &draft.include else {
        return;
    };
    let is_free = check_own_files(draft, include, conf, Some(&daemon), findings).await;
    if answers && is_free {
        try_include(include, conf, &daemon, findings).await;
    }
}

/// Looks at lock, journal and persist file as `serve` does. Whether no proxy uses the directory.
async fn check_own_files(
    draft: &Draft,
    include: &config::IncludeTarget,
    conf: &DaemonConf,
    daemon: Option<&Daemon>,
    findings: &mut Findings,
) -> bool {
    let opened = match start::include_dir(include, "", daemon).await {
        Ok(opened) => Arc::new(opened),
        Err(error) => {
            findings.problem(error);
            return false;
        }
    };
    let probe = match twiddler::probe(opened.clone(), &conf.file) {
        Ok(probe) => probe,
        Err(error) => {
            findings.problem(error);
            return false;
        }
    };
    let kept = notes::kept_otherwise(&probe, draft.settings.persist, &include.dir);
    let noted = kept.into_iter().chain(notes::defined_twice(&probe, conf));
    noted.for_each(|note| findings.note(note));
    match &probe.holder {
        None => true,
        Some(holder) => {
            findings.problem(opened.busy(holder));
            false
        }
    }
}

/// Puts every question to the daemon that `serve` does, unless what it asks for is
/// `unpresented`: its file holds a digest in place of the password, or a variable that is not set here,
/// of which there is a note already.
async fn ask(
    daemon: &Daemon,
    draft: &Draft,
    conf: &DaemonConf,
    unpresented: Option<Credentials>,
    findings: &mut Findings,
) -> bool {
    let address = daemon.address();
    let answers = match start::reach(daemon).await {
        Ok(reached) => {
            let account = reached.account.map(|name| format!(" (runs as {name})"));
            findings.good(format!(
                "supervisord {} answers at {address}{}",
                reached.version,
                account.unwrap_or_default()
            ));
            own_calls(daemon).await
        }
        Err(CallError::Status(StatusCode::UNAUTHORIZED)) if unpresented.is_some() => {
            findings.good(format!("supervisord answers at {address}"));
            let section = start::section_of(address, conf);
            let digest = unpresented.and_then(|digest| notes::digest(section, &digest, conf));
            digest.into_iter().for_each(|note| findings.note(note));
            return false;
        }
        Err(error) => Err(("supervisor.getSupervisorVersion", error)),
    };
    match answers {
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

/// Makes the proxy's own calls, as far as they change nothing. The methods that can be called, or the
/// first call that does not work.
async fn own_calls(daemon: &Daemon) -> Result<Vec<String>, (&'static str, CallError)> {
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
    let is_known = |method: &&str| methods.iter().any(|known| known == method);
    if let Some(missing) = NEEDED_METHODS.into_iter().find(|method| !is_known(method)) {
        return Err((missing, bare(UNKNOWN_METHOD).into()));
    }
    methods.extend(start::twiddler_methods());
    Ok(methods)
}

/// A name that no program and no group has.
fn program_name() -> String {
    format!("twiddler~check-{}", std::process::id())
}

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
    Ok(ReloadResult::read(&seen).added.contains(&name))
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
    // Noted with the configuration.
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

/// Arguments as they can be typed again, each with a space before it. A password is left out.
fn as_typed(arguments: &[String]) -> String {
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

/// One word for a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_./:=,@%+".contains(letter);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// What to type next.
fn next_step(draft: &Draft, typed: &[String], findings: &mut Findings) {
    let again = as_typed(typed);
    let text = match findings.problems {
        0 => {
            let daemon = draft.daemon.as_ref();
            let asks = daemon.is_some_and(|(_, credentials)| credentials.is_some());
            let status = start::status_command(&draft.settings, asks);
            format!("twiddler serve{again}, then: {status}")
        }
        1 => format!("mend the problem, then: twiddler check{again}"),
        problems => format!("mend the {problems} problems, then: twiddler check{again}"),
    };
    findings.lines.push(format!("next     {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_can_be_typed_again_without_passwords() {
        for (typed, expected) in [
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
            let typed: Vec<String> = typed.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(as_typed(&typed), expected);
        }
    }
}
