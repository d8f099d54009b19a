//! `start`, `stop`, `restart` and `signal`, with the texts of supervisorctl (`supervisorctl.py`,
//! `do_start`, `do_stop`, `do_restart`, `do_signal`).

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

/// How many calls for the processes of one glob run at a time.
const MAX_CALLS: usize = 16;

/// An action on processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Starts them.
    Start,
    /// Stops them.
    Stop,
    /// Sends them this signal, a name or a number.
    Signal(String),
}

impl Action {
    /// The beginning of the daemon's methods for the action.
    fn method(&self) -> &'static str {
        match self {
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Signal(_) => "signal",
        }
    }

    /// The word for a process on which the action succeeded.
    fn outcome(&self) -> &'static str {
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

    /// Whether supervisorctl exits with 0 for this status although the action did nothing.
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
    perform(session, &Action::Start, &args.names).await
}

/// `stop`.
///
/// # Errors
/// When the server does not answer.
pub async fn stop(session: &Session, args: &NamesArgs) -> Result<u8, Error> {
    perform(session, &Action::Stop, &args.names).await
}

/// `signal`.
///
/// # Errors
/// When the server does not answer.
pub async fn signal(session: &Session, args: &SignalArgs) -> Result<u8, Error> {
    perform(session, &Action::Signal(args.signal.clone()), &args.names).await
}

/// `restart` without `--rolling`: stops all processes that `names` select, then starts them, as
/// supervisorctl does.
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

async fn perform(session: &Session, action: &Action, names: &[String]) -> Result<u8, Error> {
    let mut report = Report::default();
    report.carry_out(session, action, names).await?;
    report.finish(session)
}

/// The results of one command's actions.
#[derive(Default)]
struct Report {
    entries: Vec<StatusEntry>,
    /// The word of each action, and for how many processes it succeeded.
    succeeded: Vec<(&'static str, usize)>,
    failed: usize,
    print_error: Option<std::io::Error>,
}

impl Report {
    async fn carry_out(
        &mut self,
        session: &Session,
        action: &Action,
        names: &[String],
    ) -> Result<(), Error> {
        let mut succeeded = 0;
        for name in names {
            for entry in on_name(session, action, name).await? {
                succeeded += usize::from(entry.status == SUCCESS);
                self.failed +=
                    usize::from(entry.status != SUCCESS && !action.is_harmless(entry.status));
                // Without a standard output, the remaining actions are carried out all the same: a
                // restart must not end between stop and start.
                match print(session, action, &entry).await {
                    Err(Error::Output(error)) => self.print_error = Some(error),
                    result => result?,
                }
                self.entries.push(entry);
            }
        }
        self.succeeded.push((action.outcome(), succeeded));
        Ok(())
    }

    fn finish(self, session: &Session) -> Result<u8, Error> {
        match session.output.format {
            Format::Json => session.output.json(&structs(&self.entries))?,
            Format::Table if self.entries.len() > 1 => {
                let mut parts: Vec<String> = self
                    .succeeded
                    .iter()
                    .map(|(outcome, count)| format!("{count} {outcome}"))
                    .collect();
                if self.failed > 0 {
                    parts.push(format!("{} failed", self.failed));
                }
                say!("{}", parts.join(", "));
            }
            Format::Table | Format::Name => {}
        }
        match self.print_error {
            Some(error) if self.failed == 0 => Err(error.into()),
            _ => Ok(if self.failed > 0 { NOT_DONE } else { 0 }),
        }
    }
}

/// Carries out an action for one name of the arguments.
async fn on_name(
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

/// Carries out an action for several processes concurrently. The results are in the order of `processes`;
/// an error means that the server did not answer.
pub async fn on_processes(
    session: &Session,
    action: &Action,
    processes: &[ProcessInfo],
) -> Vec<Result<StatusEntry, Error>> {
    let calls = processes
        .iter()
        .map(|info| on_process(session, action, &info.group, &info.name));
    stream::iter(calls).buffered(MAX_CALLS).collect().await
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
    let name = display_name(entry);
    if entry.status != SUCCESS {
        say!("{name}: ERROR ({})", reason(session, entry).await?);
        return Ok(());
    }
    match session.output.format {
        Format::Table => {
            let line = format!("{name}: {}", action.outcome());
            session.output.line(&line)?;
        }
        Format::Name => session.output.line(&name)?,
        Format::Json => {}
    }
    Ok(())
}

/// The namespec of the process; the group's name for the result of a call on a group.
fn display_name(entry: &StatusEntry) -> String {
    match entry.name.as_str() {
        "*" => entry.group.clone(),
        name => namespec(&entry.group, name),
    }
}

/// Why an action failed, in the texts of supervisorctl, with a suggestion for an unknown name.
async fn reason(session: &Session, entry: &StatusEntry) -> Result<String, Error> {
    let reason = match entry.status {
        BAD_NAME => return bad_name(session, entry).await,
        NOT_IN_WHITELIST => {
            let fault = Fault::from_reply(entry.status, entry.description.clone());
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
    Ok(reason.to_owned())
}

async fn bad_name(session: &Session, entry: &StatusEntry) -> Result<String, Error> {
    let (kind, name) = match entry.name.as_str() {
        "*" => ("group", format!("{}:*", entry.group)),
        _ => ("process", display_name(entry)),
    };
    let (table, _) = session.table().await?;
    let sentence = unknown(&table, &name);
    Ok(match sentence.split_once("; ") {
        Some((_, suggestion)) => format!("no such {kind}; {suggestion}"),
        None => format!("no such {kind}"),
    })
}

/// The results as the daemon's structs (`supervisor/rpcinterface.py`, `make_allfunc`).
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
