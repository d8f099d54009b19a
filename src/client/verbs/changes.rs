//! `add`, `remove`, `add-group`, `remove-group` and `groups`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Session;
use super::control::{Action, on_processes};
use crate::client::args::{AddArgs, AddGroupArgs, Format, RemoveArgs, RemoveGroupArgs};
use crate::client::error::{Error, NOT_DONE, USAGE};
use crate::client::names::select;
use crate::client::output::Waiting;
use crate::client::words;
use crate::daemon::ProcessInfo;
use crate::fault::{BAD_NAME, NOT_RUNNING, STILL_RUNNING, SUCCESS};
use crate::namespec::{namespec, split_namespec};
use crate::xmlrpc::{Fault, Value};

const DEFAULT_PRIORITY: i64 = 999;
/// The default of `process_name` for a program with several processes.
const PROCESS_NAME: &str = "%(program_name)s_%(process_num)02d";

/// The daemon restarts a process that has exited within this time, or not at all.
const RESTART_TIME: Duration = Duration::from_secs(10);
/// The pause before the next attempt to stop and remove.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// `add`. If the server refuses the program, the group that `--create-group` added is removed.
///
/// # Errors
/// When the server does not answer, or refuses the program or the group.
pub async fn add(session: &Session, args: &AddArgs) -> Result<u8, Error> {
    let (group, Some(name)) = split_namespec(&args.name) else {
        let text = format!("`{}` lacks the program's name: write GROUP:NAME", args.name);
        return Err(Error::Usage(text));
    };
    let options = Value::Struct(options(args)?);
    let params = [group.into(), name.into(), options];
    let created = args.create_group && create(session, group).await?;
    let method = "twiddler.addProcessToGroup";
    let error = match session.server.try_call(method, &params).await {
        Ok(Ok(_)) => return report(session, "added", &namespec(group, name)),
        Ok(Err(fault)) => add_error(fault, method, group, name),
        Err(error) => error,
    };
    if created {
        remove_created_group(session, group).await;
    }
    Err(error)
}

/// The error for a program that the server refused. `BAD_NAME` means that the group does not exist, or
/// that the process does.
fn add_error(fault: Fault, method: &str, group: &str, name: &str) -> Error {
    match (fault.code, fault.text.contains("group: ")) {
        (BAD_NAME, true) => Error::NotDone(format!(
            "no such group: {group}; add it too with --create-group"
        )),
        (BAD_NAME, false) => Error::NotDone(format!(
            "there is a process {} already: remove it first, or change it with set",
            namespec(group, name)
        )),
        _ => Error::from_fault(fault, method, method),
    }
}

/// The options of the program as members of the struct that `addProcessToGroup` takes.
fn options(args: &AddArgs) -> Result<Vec<(String, Value)>, Error> {
    let mut options: Vec<(String, Value)> = Vec::new();
    let mut set = |key: &str, value: &str| {
        if options.iter().any(|(known, _)| known == key) {
            return Err(Error::Usage(format!(
                "{key} is given twice: keep one of them"
            )));
        }
        options.push((key.to_owned(), value.into()));
        Ok(())
    };
    set("command", &words::command(&args.command))?;
    for (key, value) in &args.options {
        set(&key.to_lowercase(), value)?;
    }
    if let Some(numprocs) = args.numprocs {
        set("numprocs", &numprocs.to_string())?;
        let is_named = args
            .options
            .iter()
            .any(|(key, _)| key.eq_ignore_ascii_case("process_name"));
        if numprocs > 1 && !is_named {
            set("process_name", PROCESS_NAME)?;
        }
    }
    Ok(options)
}

/// Adds the group if it does not exist. Returns whether it was added.
async fn create(session: &Session, group: &str) -> Result<bool, Error> {
    let params = [group.into(), DEFAULT_PRIORITY.into()];
    match session
        .server
        .try_call("twiddler.addGroup", &params)
        .await?
    {
        Ok(_) => Ok(true),
        Err(fault) if fault.code == BAD_NAME => Ok(false),
        Err(fault) => Err(Error::from_fault(
            fault,
            "twiddler.addGroup",
            "twiddler.addGroup",
        )),
    }
}

async fn remove_created_group(session: &Session, group: &str) {
    let result = session
        .server
        .call("twiddler.removeGroup", &[group.into()], group)
        .await;
    if let Err(error) = result {
        say!("twiddler: the new group {group} is still there: {error}");
    }
}

/// `remove`.
///
/// # Errors
/// When the server does not answer, or a name is unknown.
pub async fn remove(session: &Session, args: &RemoveArgs) -> Result<u8, Error> {
    let (table, _) = session.table().await?;
    let chosen = select(&table, &args.names)?;
    if args.stop && !stop(session, &chosen).await? {
        return Ok(NOT_DONE);
    }
    let (mut status, mut print_error) = (0, None);
    for info in &chosen {
        let spec = namespec(&info.group, &info.name);
        let params = [info.group.as_str().into(), info.name.as_str().into()];
        let removal = Removal {
            method: "twiddler.removeProcessFromGroup",
            params: &params,
            subject: &spec,
            stops: args.stop,
        };
        let is_target = |one: &ProcessInfo| (&one.group, &one.name) == (&info.group, &info.name);
        match removal.carry_out(session, is_target).await {
            Ok(()) => match report(session, "removed", &spec) {
                // The other processes are removed all the same.
                Err(Error::Output(error)) => print_error = Some(error),
                result => drop(result?),
            },
            Err(error @ Error::Fault { .. }) => {
                say!("twiddler: {error}");
                status = NOT_DONE;
            }
            Err(error) => return Err(error),
        }
    }
    match print_error {
        Some(error) if status == 0 => Err(error.into()),
        _ => Ok(status),
    }
}

/// The call that removes a process or a group.
struct Removal<'a> {
    method: &'a str,
    params: &'a [Value],
    /// The name that the call is about.
    subject: &'a str,
    /// Whether to stop processes that the daemon restarts meanwhile.
    stops: bool,
}

impl Removal<'_> {
    /// Calls the method, and with `stops` again while a process that `is_target` is still running. A
    /// process that has exited and that the daemon is about to restart cannot be stopped before the
    /// daemon has restarted it.
    async fn carry_out(
        &self,
        session: &Session,
        is_target: impl Fn(&ProcessInfo) -> bool,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let call = session.server.call(self.method, self.params, self.subject);
            match call.await {
                Err(Error::Fault { fault, .. })
                    if self.stops
                        && fault.code == STILL_RUNNING
                        && start.elapsed() < RESTART_TIME => {}
                result => return result.map(drop),
            }
            sleep(RETRY_PAUSE).await;
            let (table, _) = session.table().await?;
            let targets: Vec<ProcessInfo> = table.into_iter().filter(&is_target).collect();
            stop(session, &targets).await?;
        }
    }
}

/// Stops the running ones of `processes`. Returns whether all of `processes` are stopped.
async fn stop(session: &Session, processes: &[ProcessInfo]) -> Result<bool, Error> {
    let running: Vec<ProcessInfo> = processes
        .iter()
        .filter(|info| !info.state.is_stopped())
        .cloned()
        .collect();
    if running.is_empty() {
        return Ok(true);
    }
    let names: Vec<String> = running
        .iter()
        .map(|info| namespec(&info.group, &info.name))
        .collect();
    let _waiting = Waiting::on(&format!("{} to stop", names.join(", ")));
    let mut all_stopped = true;
    for entry in on_processes(session, &Action::Stop, &running).await {
        let entry = entry?;
        if !matches!(entry.status, SUCCESS | NOT_RUNNING) {
            let name = namespec(&entry.group, &entry.name);
            say!("twiddler: {name} did not stop: {}", entry.description);
            all_stopped = false;
        }
    }
    Ok(all_stopped)
}

/// `add-group`.
///
/// # Errors
/// When the server does not answer, or refuses the group.
pub async fn add_group(session: &Session, args: &AddGroupArgs) -> Result<u8, Error> {
    let params = [args.name.as_str().into(), args.priority.into()];
    match session
        .server
        .try_call("twiddler.addGroup", &params)
        .await?
    {
        Ok(_) => report(session, "added", &args.name),
        Err(fault) if fault.code == BAD_NAME => Err(Error::NotDone(format!(
            "there is a group {} already",
            args.name
        ))),
        Err(fault) => Err(Error::from_fault(
            fault,
            "twiddler.addGroup",
            "twiddler.addGroup",
        )),
    }
}

/// `remove-group`.
///
/// # Errors
/// When the server does not answer, or refuses to remove the group.
pub async fn remove_group(session: &Session, args: &RemoveGroupArgs) -> Result<u8, Error> {
    let group = args.name.trim_end_matches(":*").trim_end_matches(':');
    if group.is_empty() {
        say!("twiddler: the group's name is empty: write a name");
        return Ok(USAGE);
    }
    if args.stop {
        let (table, _) = session.table().await?;
        let members: Vec<ProcessInfo> = table
            .into_iter()
            .filter(|info| info.group == group)
            .collect();
        if !stop(session, &members).await? {
            return Ok(NOT_DONE);
        }
    }
    let removal = Removal {
        method: "twiddler.removeGroup",
        params: &[group.into()],
        subject: group,
        stops: args.stop,
    };
    let is_member = |info: &ProcessInfo| info.group == group;
    removal.carry_out(session, is_member).await?;
    report(session, "removed", group)
}

/// `groups`.
///
/// # Errors
/// When the server does not answer, or has no such method.
pub async fn groups(session: &Session) -> Result<u8, Error> {
    let method = "twiddler.getGroupNames";
    let names = session.server.call(method, &[], method).await?;
    let names = names.as_array().unwrap_or_default();
    session
        .output
        .names(names.iter().filter_map(Value::as_str))?;
    Ok(0)
}

/// Prints `{name}: {outcome}`, the name alone, or `true`, depending on the format. Returns the exit
/// status 0.
///
/// # Errors
/// When standard output cannot be written.
pub fn report(session: &Session, outcome: &str, name: &str) -> Result<u8, Error> {
    match session.output.format {
        Format::Table => session.output.line(&format!("{name}: {outcome}"))?,
        Format::Name => session.output.line(name)?,
        Format::Json => session.output.json(&Value::Bool(true))?,
    }
    Ok(0)
}
