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
/// Tells the processes of a program apart where the options do not say how.
const PROCESS_NAME: &str = "%(program_name)s_%(process_num)02d";

/// A process that has ended is started again within this time, or not at all.
const STARTS_AGAIN: Duration = Duration::from_secs(10);
/// Between looks whether it was.
const LOOK: Duration = Duration::from_millis(20);

/// `add`. A group that was added for the program goes again when the program cannot be added.
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
    let added = session.server.try_call(method, &params).await;
    let refused = match added {
        Ok(Ok(_)) => return report(session, "added", &namespec(group, name)),
        Ok(Err(fault)) => not_added(fault, method, group, name),
        Err(error) => error,
    };
    if created {
        remove_group_again(session, group).await;
    }
    Err(refused)
}

/// Why a program was not added. The one fault for names means two things.
fn not_added(fault: Fault, method: &str, group: &str, name: &str) -> Error {
    match (fault.code, fault.text.contains("group: ")) {
        (BAD_NAME, true) => Error::NotDone(format!(
            "no such group: {group}; add it too with --create-group"
        )),
        (BAD_NAME, false) => Error::NotDone(format!(
            "there is a process {} already: remove it first, or change it with set",
            namespec(group, name)
        )),
        _ => Error::of(fault, method, method),
    }
}

/// The options of the program, as XML-RPC wants them.
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

/// Adds the group unless it is there; whether it was added.
async fn create(session: &Session, group: &str) -> Result<bool, Error> {
    let params = [group.into(), DEFAULT_PRIORITY.into()];
    match session
        .server
        .try_call("twiddler.addGroup", &params)
        .await?
    {
        Ok(_) => Ok(true),
        Err(fault) if fault.code == BAD_NAME => Ok(false),
        Err(fault) => Err(Error::of(fault, "twiddler.addGroup", "twiddler.addGroup")),
    }
}

async fn remove_group_again(session: &Session, group: &str) {
    let removed = session
        .server
        .call("twiddler.removeGroup", &[group.into()], group)
        .await;
    if let Err(error) = removed {
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
    let (mut status, mut unprinted) = (0, None);
    for info in &chosen {
        let spec = namespec(&info.group, &info.name);
        let params = [info.group.as_str().into(), info.name.as_str().into()];
        let removal = Removal {
            method: "twiddler.removeProcessFromGroup",
            params: &params,
            subject: &spec,
            stops: args.stop,
        };
        let is_meant = |one: &ProcessInfo| (&one.group, &one.name) == (&info.group, &info.name);
        match removal.carry_out(session, is_meant).await {
            Ok(()) => match report(session, "removed", &spec) {
                Err(Error::Output(error)) => unprinted = Some(error),
                reported => drop(reported?),
            },
            Err(error @ Error::Fault { .. }) => {
                say!("twiddler: {error}");
                status = NOT_DONE;
            }
            Err(error) => return Err(error),
        }
    }
    match unprinted {
        Some(error) if status == 0 => Err(error.into()),
        _ => Ok(status),
    }
}

/// A process or a group that is to be removed.
struct Removal<'a> {
    method: &'a str,
    params: &'a [Value],
    subject: &'a str,
    stops: bool,
}

impl Removal<'_> {
    /// Removes it. What has ended and is about to be started again can be stopped only once it was.
    async fn carry_out(
        &self,
        session: &Session,
        is_meant: impl Fn(&ProcessInfo) -> bool,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let removed = session.server.call(self.method, self.params, self.subject);
            match removed.await {
                Err(Error::Fault { fault, .. })
                    if self.stops
                        && fault.code == STILL_RUNNING
                        && begun.elapsed() < STARTS_AGAIN => {}
                removed => return removed.map(drop),
            }
            sleep(LOOK).await;
            let (table, _) = session.table().await?;
            let meant: Vec<ProcessInfo> = table.into_iter().filter(&is_meant).collect();
            stop(session, &meant).await?;
        }
    }
}

/// Stops those that run; whether all are stopped.
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
    let mut all = true;
    for entry in on_processes(session, &Action::Stop, &running).await {
        let entry = entry?;
        if !matches!(entry.status, SUCCESS | NOT_RUNNING) {
            let name = namespec(&entry.group, &entry.name);
            say!("twiddler: {name} did not stop: {}", entry.description);
            all = false;
        }
    }
    Ok(all)
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
        Err(fault) => Err(Error::of(fault, "twiddler.addGroup", "twiddler.addGroup")),
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

/// Says what was done to `name`.
///
/// # Errors
/// When standard output is gone.
pub fn report(session: &Session, done: &str, name: &str) -> Result<u8, Error> {
    match session.output.format {
        Format::Table => session.output.line(&format!("{name}: {done}"))?,
        Format::Name => session.output.line(name)?,
        Format::Json => session.output.json(&Value::Bool(true))?,
    }
    Ok(0)
}
