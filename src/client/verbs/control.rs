//! `start`, `stop`, `restart` and `signal`, in the words of supervisorctl (`supervisorctl.py`,
//! `do_start` and its like).

use futures_util::StreamExt;
use futures_util::stream;

use super::Session;
use crate::client::args::{Format, NamesArgs, SignalArgs};
use crate::client::error::{Error, NOT_DONE, explain};
use crate::client::names::{Selector, select, unknown};
use crate::client::output::Waiting;
use crate::daemon::{ProcessInfo, StatusEntry};
use crate::fault::{
    ABNORMAL_TERMINATION, ALREADY_STARTED, BAD_NAME, BAD_SIGNAL, NO_FILE, NOT_EXECUTABLE,
    NOT_IN_WHITELIST, NOT_RUNNING, SPAWN_ERROR, SUCCESS,
};
use crate::namespec::namespec;
use crate::xmlrpc::{Fault, Value};

/// Calls that are under way at a time for the processes that one glob means.
const AT_A_TIME: usize = 16;

/// What is done to processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start.
    Start,
    /// Stop.
    Stop,
    /// Send this signal.
    Signal(String),
}

impl Action {
    fn method(&self) -> &'static str {
        match self {
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Signal(_) => "signal",
        }
    }

    fn done(&self) -> &'static str {
        match self {
            Action::Start => "started",
            Action::Stop => "stopped",
            Action::Signal(_) => "signalled",
        }
    }

    fn params(&self, name: Option<&str>) -> Vec<Value> {
        let mut params: Vec<Value> = name.map(Value::from).into_iter().collect();
        if let Action::Signal(signal) = self {
            params.push(signal.as_str().into());
        }
        params
    }

    /// The outcome for which supervisorctl exits with zero although nothing was done.
    fn is_harmless(&self, status: i32) -> bool {
        match self {
            Action::Start => status == ALREADY_STARTED,
            Action::Stop => status == NOT_RUNNING,
            Action::Signal(_) => false,
        }
    }
}

/// `start`.
///
/// # Errors
/// When the server does not answer.
pub async fn start(session: &Session, args: &NamesArgs) -> Result<u8, Error> {
    one(session, &Action::Start, &args.names).await
}

/// `stop`.
///
/// # Errors
/// When the server does not answer.
pub async fn stop(session: &Session, args: &NamesArgs) -> Result<u8, Error> {
    one(session, &Action::Stop, &args.names).await
}

/// `signal`.
///
/// # Errors
/// When the server does not answer.
pub async fn signal(session: &Session, args: &SignalArgs) -> Result<u8, Error> {
    one(session, &Action::Signal(args.signal.clone()), &args.names).await
}

/// `restart` without `--rolling`: stops all that are named, then starts them, as supervisorctl does.
///
/// # Errors
/// When the server does not answer.
pub async fn restart(session: &Session, names: &[String]) -> Result<u8, Error> {
    let mut report = Report::default();
    for action in [Action::Stop, Action::Start] {
        report.carry_out(session, &action, names).await?;
    }
    report.finish(session)
}

async fn one(session: &Session, action: &Action, names: &[String]) -> Result<u8, Error> {
    let mut report = Report::default();
    report.carry_out(session, action, names).await?;
    report.finish(session)
}

/// What came of the actions of one command.
#[derive(Default)]
struct Report {
    entries: Vec<StatusEntry>,
    done: Vec<(&'static str, usize)>,
    failed: usize,
    unprinted: Option<std::io::Error>,
}

impl Report {
    async fn carry_out(
        &mut self,
        session: &Session,
        action: &Action,
        names: &[String],
    ) -> Result<(), Error> {
        let mut done = 0;
        for name in names {
            for entry in perform(session, action, name).await? {
                done += usize::from(entry.status == SUCCESS);
                self.failed +=
                    usize::from(entry.status != SUCCESS && !action.is_harmless(entry.status));
                // Who has no output any more still wants all of it done, such as the start after a stop.
                match print(session, action, &entry).await {
                    Err(Error::Output(error)) => self.unprinted = Some(error),
                    printed => printed?,
                }
                self.entries.push(entry);
            }
        }
        self.done.push((action.done(), done));
        Ok(())
    }

    fn finish(self, session: &Session) -> Result<u8, Error> {
        match session.output.format {
            Format::Json => session.output.json(&structs(&self.entries))?,
            Format::Table if self.entries.len() > 1 => {
                let mut parts: Vec<String> = self
                    .done
                    .iter()
                    .map(|(done, count)| format!("{count} {done}"))
                    .collect();
                if self.failed > 0 {
                    parts.push(format!("{} failed", self.failed));
                }
                say!("{}", parts.join(", "));
            }
            Format::Table | Format::Name => {}
        }
        match self.unprinted {
            Some(error) if self.failed == 0 => Err(error.into()),
            _ => Ok(if self.failed > 0 { NOT_DONE } else { 0 }),
        }
    }
}

/// Carries out an action for one name as it was typed.
async fn perform(
    session: &Session,
    action: &Action,
    name: &str,
) -> Result<Vec<StatusEntry>, Error> {
    let verb = action.method();
    let _waiting = Waiting::on(&format!("{name} to {verb}"));
    match Selector::parse(name)? {
        Selector::All => {
            let method = format!("supervisor.{verb}AllProcesses");
            let entries = session
                .server
                .call(&method, &action.params(None), "")
                .await?;
            Ok(StatusEntry::read_all(&entries))
        }
        Selector::Group(group) => {
            let method = format!("supervisor.{verb}ProcessGroup");
            let params = action.params(Some(&group));
            match session.server.try_call(&method, &params).await? {
                Ok(entries) => Ok(StatusEntry::read_all(&entries)),
                Err(fault) => Ok(vec![entry(&group, "*", Err(fault))]),
            }
        }
        Selector::Process { group, name } => {
            Ok(vec![on_process(session, action, &group, &name).await?])
        }
        Selector::Glob(_) => {
            let (table, _) = session.table().await?;
            let chosen = select(&table, &[name.to_owned()])?;
            let results = on_processes(session, action, &chosen).await;
            results.into_iter().collect()
        }
    }
}

/// Carries out an action for several processes side by side. The results come in their order; an error
/// is one that the server did not answer.
pub async fn on_processes(
    session: &Session,
    action: &Action,
    processes: &[ProcessInfo],
) -> Vec<Result<StatusEntry, Error>> {
    let calls = processes
        .iter()
        .map(|info| on_process(session, action, &info.group, &info.name));
    stream::iter(calls).buffered(AT_A_TIME).collect().await
}

async fn on_process(
    session: &Session,
    action: &Action,
    group: &str,
    name: &str,
) -> Result<StatusEntry, Error> {
    let method = format!("supervisor.{}Process", action.method());
    let params = action.params(Some(&namespec(group, name)));
    let result = session.server.try_call(&method, &params).await?;
    Ok(entry(group, name, result))
}

fn entry(group: &str, name: &str, result: Result<Value, Fault>) -> StatusEntry {
    let (status, description) = match result {
        Ok(_) => (SUCCESS, "OK".to_owned()),
        Err(fault) => (fault.code, fault.text),
    };
    StatusEntry {
        group: group.to_owned(),
        name: name.to_owned(),
        status,
        description,
    }
}

async fn print(session: &Session, action: &Action, entry: &StatusEntry) -> Result<(), Error> {
    let name = shown(entry);
    if entry.status != SUCCESS {
        say!("{name}: ERROR ({})", reason(session, entry).await?);
        return Ok(());
    }
    match session.output.format {
        Format::Table => session.output.line(&format!("{name}: {}", action.done()))?,
        Format::Name => session.output.line(&name)?,
        Format::Json => {}
    }
    Ok(())
}

/// The name in the short form of supervisorctl; a group's own result bears the group's name.
fn shown(entry: &StatusEntry) -> String {
    match entry.name.as_str() {
        "*" => entry.group.clone(),
        name => namespec(&entry.group, name),
    }
}

/// Why an action failed, in the words of supervisorctl, with a suggestion for an unknown name.
async fn reason(session: &Session, entry: &StatusEntry) -> Result<String, Error> {
    let words = match entry.status {
        BAD_NAME => {
            let what = if entry.name == "*" {
                "group"
            } else {
                "process"
            };
            let (table, _) = session.table().await?;
            let typed = match entry.name.as_str() {
                "*" => format!("{}:*", entry.group),
                _ => shown(entry),
            };
            let sentence = unknown(&table, &typed);
            return Ok(match sentence.split_once("; ") {
                Some((_, suggestion)) => format!("no such {what}; {suggestion}"),
                None => format!("no such {what}"),
            });
        }
        NOT_IN_WHITELIST => {
            let fault = Fault::received(entry.status, entry.description.clone());
            return Ok(explain(&fault, ""));
        }
        BAD_SIGNAL => "bad signal name",
        NO_FILE => "no such file",
        NOT_EXECUTABLE => "file is not executable",
        ABNORMAL_TERMINATION => "abnormal termination",
        SPAWN_ERROR => "spawn error",
        ALREADY_STARTED => "already started",
        NOT_RUNNING => "not running",
        _ => &entry.description,
    };
    Ok(words.to_owned())
}

/// The results in the daemon's own form (`supervisor/rpcinterface.py`, `make_allfunc`).
fn structs(entries: &[StatusEntry]) -> Value {
    let value = |entry: &StatusEntry| {
        Value::Struct(vec![
            ("name".to_owned(), entry.name.as_str().into()),
            ("group".to_owned(), entry.group.as_str().into()),
            ("status".to_owned(), entry.status.into()),
            ("description".to_owned(), entry.description.as_str().into()),
        ])
    };
    Value::Array(entries.iter().map(value).collect())
}
