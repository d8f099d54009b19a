//! Random changes, and the expected state after them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::{Fault, Value};

use super::client::{CallError, Client};
use super::daemon::Daemon;
use super::dice::Dice;
use super::sidecar::Sidecar;
use super::values::{
    IntoValue, column, fault_in, items, member, number, options, text, texts, value,
};
use super::view::rows;
use super::wait::{LIMIT, eventually};

/// The groups of the user's file that the changes concern: one with running processes, one with stopped
/// ones, and an empty one.
pub const USER: &str = "\
[group:web]
programs = front,back

[program:front]
command = /bin/sleep 600
startsecs = 0

[program:back]
command = /bin/sleep 600
startsecs = 0

[group:pool]
programs = p0,p1,p2,p3

[program:p0]
command = /bin/sleep 600
autostart = false

[program:p1]
command = /bin/sleep 600
autostart = false

[program:p2]
command = /bin/sleep 600
autostart = false

[program:p3]
command = /bin/sleep 600
autostart = false

[group:dynamic_procs]
programs =
";

/// Processes that no change concerns.
pub const NEIGHBOURS: [&str; 2] = ["web:front", "web:back"];

/// The largest number of added groups.
const MAX_GROUPS: usize = 5;
/// The largest number of processes in a group.
const MAX_MEMBERS: usize = 8;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    AddGroup {
        group: String,
    },
    AddProgram {
        group: String,
        name: String,
        processes: Vec<String>,
        command: String,
    },
    RemoveProcess {
        group: String,
        process: String,
    },
    RemoveGroup {
        group: String,
    },
}

impl Change {
    /// The call that makes the change.
    pub fn call(&self) -> (&'static str, Vec<Value>) {
        let word = |text: &String| text.into_value();
        match self {
            Change::AddGroup { group } => ("twiddler.addGroup", vec![word(group), value(999)]),
            Change::AddProgram {
                group,
                name,
                processes,
                command,
            } => {
                let several = processes.len() > 1;
                let mut all = vec![
                    ("command", value(command)),
                    ("autostart", value("false")),
                    (
                        "numprocs",
                        value(i32::try_from(processes.len()).unwrap_or(1)),
                    ),
                ];
                if several {
                    let pattern = "%(program_name)s_%(process_num)d";
                    all.push(("process_name", value(pattern)));
                }
                (
                    "twiddler.addProgramToGroup",
                    vec![word(group), word(name), options(&all)],
                )
            }
            Change::RemoveProcess { group, process } => (
                "twiddler.removeProcessFromGroup",
                vec![word(group), word(process)],
            ),
            Change::RemoveGroup { group } => ("twiddler.removeGroup", vec![word(group)]),
        }
    }
}

/// The expected view of a client: every group, with its processes and the commands of the added ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    groups: BTreeMap<String, BTreeMap<String, Option<String>>>,
    /// The number in the next name, so that names differ.
    serial: usize,
}

impl Model {
    /// The groups and processes in [`USER`].
    pub fn new() -> Model {
        let mut groups: BTreeMap<String, BTreeMap<String, Option<String>>> = BTreeMap::new();
        for (group, processes) in [
            ("web", vec!["front", "back"]),
            ("pool", vec!["p0", "p1", "p2", "p3"]),
            ("dynamic_procs", vec![]),
        ] {
            let processes = processes.into_iter().map(|name| (name.to_owned(), None));
            groups.insert(group.to_owned(), processes.collect());
        }
        Model { groups, serial: 0 }
    }

    /// A random change that the current state allows.
    pub fn propose(&mut self, dice: &mut Dice) -> Change {
        loop {
            if let Some(change) = self.attempt(dice) {
                return change;
            }
        }
    }

    fn attempt(&mut self, dice: &mut Dice) -> Option<Change> {
        let group = dice
            .choose(&self.groups.keys().collect::<Vec<_>>())?
            .to_string();
        let own = group.starts_with("added-");
        match dice.roll(10) {
            0 | 1 if self.groups.len() < 3 + MAX_GROUPS => {
                self.serial += 1;
                let group = format!("added-{}", self.serial);
                Some(Change::AddGroup { group })
            }
            2 if own => Some(Change::RemoveGroup { group }),
            3..=6 if self.groups[&group].len() < MAX_MEMBERS => {
                self.serial += 1;
                Some(self.program(group, dice))
            }
            7..=9 => {
                let members = &self.groups[&group];
                let free = members.keys().filter(|name| !is_neighbour(&group, name));
                let process = dice.choose(&free.collect::<Vec<_>>())?.to_string();
                Some(Change::RemoveProcess { group, process })
            }
            _ => None,
        }
    }

    fn program(&self, group: String, dice: &mut Dice) -> Change {
        // The name may be that of a hidden process from the user's file.
        let taken = |name: &str| self.groups[&group].contains_key(name);
        let hidden = ["p0", "p1", "p2", "p3"]
            .into_iter()
            .find(|name| group == "pool" && !taken(name));
        let (name, several) = match hidden {
            Some(name) if dice.one_in(2) => (name.to_owned(), false),
            _ => (format!("prog{}", self.serial), dice.one_in(4)),
        };
        let processes = if several {
            (0..3).map(|number| format!("{name}_{number}")).collect()
        } else {
            vec![name.clone()]
        };
        let command = format!("/bin/sleep {}", 1000 + self.serial);
        Change::AddProgram {
            group,
            name,
            processes,
            command,
        }
    }

    /// Applies the change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::AddGroup { group } => {
                self.groups.insert(group.clone(), BTreeMap::new());
            }
            Change::AddProgram {
                group,
                processes,
                command,
                ..
            } => {
                let members = self.groups.entry(group.clone()).or_default();
                let processes = processes.iter();
                members.extend(processes.map(|name| (name.clone(), Some(command.clone()))));
            }
            Change::RemoveProcess { group, process } => {
                self.groups
                    .entry(group.clone())
                    .or_default()
                    .remove(process);
            }
            Change::RemoveGroup { group } => {
                self.groups.remove(group);
            }
        }
    }

    /// Applies the changes without a reply that `seen` shows. Each must have been made completely or not at all.
    pub fn apply_those_seen(&mut self, open: &[Change], seen: &View) -> Result<()> {
        for change in open {
            if seen.holds(change)? {
                self.apply(change);
            }
        }
        Ok(())
    }

    /// Fails unless `view` is the expected one.
    pub fn ensure_shown_by(&self, view: &View) -> Result<()> {
        let groups: BTreeSet<&String> = self.groups.keys().collect();
        let shown: BTreeSet<&String> = view.groups.iter().collect();
        ensure!(groups == shown, "groups are {shown:?} and not {groups:?}");
        let processes = self.processes();
        ensure!(
            processes == view.processes,
            "processes are {:?} and not {processes:?}",
            view.processes
        );
        for (group, members) in &self.groups {
            for (name, command) in members {
                let known = view.commands.get(&(group.clone(), name.clone()));
                ensure!(
                    command.is_none() || command.as_ref() == known,
                    "the command of {group}:{name} is {known:?} and not {command:?}"
                );
            }
        }
        Ok(())
    }

    /// The group and the name of each process.
    pub fn processes(&self) -> BTreeSet<(String, String)> {
        let of_group = |(group, members): (&String, &BTreeMap<String, Option<String>>)| {
            let names = members.keys();
            names
                .map(|name| (group.clone(), name.clone()))
                .collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of_group).collect()
    }

    /// The names of all groups.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }
}

fn is_neighbour(group: &str, process: &str) -> bool {
    NEIGHBOURS.contains(&format!("{group}:{process}").as_str())
}

/// The view of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub groups: BTreeSet<String>,
    pub processes: BTreeSet<(String, String)>,
    commands: BTreeMap<(String, String), String>,
}

impl View {
    /// Reads the view through the proxy.
    pub fn of(client: &Client) -> Result<View> {
        let groups = client.call("twiddler.getGroupNames", ())?;
        let groups = texts(&groups)?.into_iter().map(str::to_owned).collect();
        let rows = rows(client)?;
        let count = rows.len();
        let processes: BTreeSet<(String, String)> =
            rows.into_iter().map(|row| (row.group, row.name)).collect();
        ensure!(
            count == processes.len(),
            "a process is listed twice: {processes:?}"
        );
        let mut commands = BTreeMap::new();
        let configs = client.call("supervisor.getAllConfigInfo", ())?;
        for config in items(&configs)? {
            let word = |name: &str| Ok::<_, anyhow::Error>(text(member(config, name)?)?.to_owned());
            commands.insert((word("group")?, word("name")?), word("command")?);
        }
        Ok(View {
            groups,
            processes,
            commands,
        })
    }

    /// Whether the change was made. Fails if it was made in part.
    fn holds(&self, change: &Change) -> Result<bool> {
        let there =
            |group: &String, name: &String| self.processes.contains(&(group.clone(), name.clone()));
        Ok(match change {
            Change::AddGroup { group } => self.groups.contains(group),
            Change::AddProgram {
                group, processes, ..
            } => {
                let count = processes.iter().filter(|name| there(group, name)).count();
                let whole = count == 0 || count == processes.len();
                ensure!(whole, "{change:?} was made in part: {:?}", self.processes);
                count > 0
            }
            Change::RemoveProcess { group, process } => !there(group, process),
            Change::RemoveGroup { group } => !self.groups.contains(group),
        })
    }
}

/// The pids of the processes that no change concerns.
pub fn neighbours(client: &Client) -> Result<Vec<i64>> {
    NEIGHBOURS
        .iter()
        .map(|name| {
            let info = client.call("supervisor.getProcessInfo", (*name,))?;
            number(member(&info, "pid")?)
        })
        .collect()
}

/// Makes changes, one or several in a call, until a call has no reply, and applies each made change to the
/// model. Ends also when `goes_on` returns false for a reply. Returns the changes of the last call that were
/// refused or have no reply: a call that reaches a restarted daemon may fail to remove, and still add.
pub fn change_until_cut(
    client: &Client,
    model: &mut Model,
    dice: &mut Dice,
    mut goes_on: impl FnMut(&[Change]) -> bool,
) -> Result<(Vec<Change>, Option<CallError>)> {
    loop {
        let changes = together(model, dice);
        let (open, error) = make_each(client, &changes)?;
        let applied: Vec<Change> = changes
            .into_iter()
            .filter(|it| !open.contains(it))
            .collect();
        applied.iter().for_each(|change| model.apply(change));
        let goes_on = applied.is_empty() || goes_on(&applied);
        if error.is_some() || !goes_on {
            return Ok((open, error));
        }
    }
}

/// Makes these changes in one call, and returns the first error.
pub fn make(client: &Client, changes: &[Change]) -> Result<Option<CallError>> {
    Ok(make_each(client, changes)?.1)
}

/// Makes these changes in one call, and returns the changes that were not made and the first error.
fn make_each(client: &Client, changes: &[Change]) -> Result<(Vec<Change>, Option<CallError>)> {
    if let [change] = changes {
        let (method, params) = change.call();
        return Ok(match client.call(method, params) {
            Ok(_) => (Vec::new(), None),
            Err(error) => (changes.to_vec(), Some(error)),
        });
    }
    let calls: Vec<(&str, Vec<Value>)> = changes.iter().map(Change::call).collect();
    let values = match client.multicall(&calls) {
        Ok(values) => values,
        Err(error) => return Ok((changes.to_vec(), Some(error))),
    };
    ensure!(values.len() == changes.len(), "{changes:?}: {values:?}");
    let fault = values.iter().find_map(fault_in).map(|(code, text)| {
        let code = i32::try_from(code).unwrap_or_default();
        CallError::Fault(Fault::from_reply(code, text.to_owned()))
    });
    let open = changes.iter().zip(&values);
    let open = open.filter(|(_, value)| fault_in(value).is_some());
    Ok((open.map(|(change, _)| change.clone()).collect(), fault))
}

const SHUTDOWN_STATE: i32 = 6;
const BAD_NAME: i32 = 10;

/// A change, or a few changes of different groups.
fn together(model: &mut Model, dice: &mut Dice) -> Vec<Change> {
    let count = if dice.one_in(4) { 3 } else { 1 };
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..count {
        let change = model.propose(dice);
        if changes.iter().all(|other| group(other) != group(&change)) {
            changes.push(change);
        }
    }
    changes
}

fn group(change: &Change) -> &str {
    match change {
        Change::AddGroup { group }
        | Change::AddProgram { group, .. }
        | Change::RemoveProcess { group, .. }
        | Change::RemoveGroup { group } => group,
    }
}

/// Fails unless the daemon has each process of the model once. Beside these it may have stopped, removed
/// processes in groups that have others, but no real group without a shown process. It has no group of the
/// `tried` changes that is not in the model.
pub fn ensure_daemon_matches(model: &Model, direct: &Client, tried: &[Change]) -> Result<()> {
    let mut missing = model.processes();
    let mut own = BTreeSet::new();
    let mut shown = BTreeSet::new();
    let mut hidden = Vec::new();
    // Of two processes with the same name, the first was removed before the second was added.
    for row in rows(direct)?.into_iter().rev() {
        match placed(&row.group) {
            Some(group) if missing.remove(&(group.to_owned(), row.name.clone())) => {
                shown.insert(row.group);
            }
            Some(_) => hidden.push(row),
            None => {
                own.insert((row.group.clone(), row.name.clone()));
                let shown = model
                    .processes()
                    .contains(&(row.group.clone(), row.name.clone()));
                ensure!(
                    shown || row.pid == 0,
                    "{} is removed and runs",
                    row.namespec()
                );
            }
        }
    }
    for row in hidden {
        let is_kept = row.pid == 0 && shown.contains(&row.group);
        ensure!(is_kept, "{} is nobody's: {row:?}", row.namespec());
    }
    missing.retain(|process| !own.contains(process));
    ensure!(missing.is_empty(), "supervisord does not have {missing:?}");
    for change in tried {
        if let Change::AddGroup { group } = change
            && !model.groups().any(|known| known == group)
        {
            let probe = direct.call("supervisor.signalProcessGroup", (group, ""));
            ensure!(
                probe.is_err(),
                "supervisord has {group}, which nobody knows"
            );
        }
    }
    Ok(())
}

/// The group whose members live in this real group.
fn placed(real: &str) -> Option<&str> {
    let (group, number) = real.rsplit_once('~')?;
    number
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(group)
}

/// A way to restart a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// `supervisor.restart()`, through the proxy. Keeps the pid.
    Call,
    /// SIGHUP. Keeps the pid.
    Hangup,
    /// SIGKILL, and a new start.
    Kill,
}

impl Restart {
    /// All ways.
    pub const ALL: [Restart; 3] = [Restart::Call, Restart::Hangup, Restart::Kill];

    /// Restarts the daemon, and waits until it answers.
    pub fn make(self, daemon: &Daemon, client: &Client) -> Result<()> {
        match self {
            Restart::Call => daemon.restart_by(|| {
                client.call("supervisor.restart", ())?;
                Ok(())
            }),
            Restart::Hangup => daemon.restart_by_signal(),
            Restart::Kill => daemon.kill_and_start_again(),
        }
    }

    /// Restarts the daemon during a stream of changes. Another client reads the processes all the time, and never
    /// sees a real name.
    pub fn make_under_changes(
        self,
        daemon: &Daemon,
        sidecar: &Sidecar,
        model: &mut Model,
        dice: &mut Dice,
    ) -> Result<Last> {
        let first = dice.roll(10);
        let answered = AtomicUsize::new(0);
        let (has_started, over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let client = sidecar.socket_client().kept_alive();
            let (answered, has_started, over) = (&answered, &has_started, &over);
            let stream = scope.spawn(move || {
                let mut late = Vec::new();
                let cut = change_until_cut(&client, model, dice, |changes| {
                    answered.fetch_add(1, Ordering::Relaxed);
                    if has_started.load(Ordering::Relaxed) {
                        late.extend_from_slice(changes);
                    }
                    !over.load(Ordering::Relaxed)
                });
                (late, cut)
            });
            let looking_on = scope.spawn(|| watch_names(&sidecar.socket_client(), over));
            let restarted = eventually(LIMIT, || {
                let enough = answered.load(Ordering::Relaxed) >= first || stream.is_finished();
                ensure!(enough, "only {answered:?} changes are answered");
                Ok(())
            })
            .and_then(|()| {
                has_started.store(true, Ordering::Relaxed);
                self.make(daemon, &sidecar.socket_client())
            });
            // The daemon may have restarted between two changes.
            over.store(true, Ordering::Relaxed);
            let (late, cut) = stream.join().expect("the stream does not panic");
            let looked = looking_on.join().expect("who looks on does not panic");
            restarted?;
            looked?;
            let (open, error) = cut?;
            if let Some(error) = error {
                let clear = is_clear(&error) || is_about_another_life(&error);
                ensure!(clear, "{open:?}: {error}");
            }
            Ok(Last { late, open })
        })
    }
}

/// The last changes before and after a restart.
#[derive(Debug)]
pub struct Last {
    /// The changes with a reply after the request for the restart, from the daemon before or after it.
    pub late: Vec<Change>,
    /// The changes that were refused at the end.
    pub open: Vec<Change>,
}

impl Last {
    /// Fails unless the daemon shows the processes of its file, and beside these only changes that it has
    /// answered since the restart.
    pub fn ensure_forgotten(&self, view: &View, direct: &Client) -> Result<()> {
        let mut failure = None;
        for first in (0..=self.late.len()).rev() {
            let mut model = Model::new();
            self.late[first..]
                .iter()
                .for_each(|change| model.apply(change));
            let shown = model
                .ensure_shown_by(view)
                .and_then(|()| ensure_daemon_matches(&model, direct, &self.open));
            match shown {
                Ok(()) => return Ok(()),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.context(format!("{self:?}"))))
    }
}

/// Whether the error says that the daemon does not answer or is shutting down.
fn is_clear(error: &CallError) -> bool {
    let goes = error
        .fault()
        .is_some_and(|fault| fault.code == SHUTDOWN_STATE);
    goes || error.status() == Some(502)
}

/// Whether the error is that of a daemon that has restarted since the change was chosen.
fn is_about_another_life(error: &CallError) -> bool {
    error.fault().is_some_and(|fault| fault.code == BAD_NAME)
}

fn watch_names(client: &Client, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        match client.call("supervisor.getAllProcessInfo", ()) {
            Ok(list) => {
                let groups = column(&list, "group")?;
                let theirs = groups.iter().all(|group| placed(group).is_none());
                ensure!(theirs, "the daemon's own names are shown: {groups:?}");
            }
            // A reply that was cut off ends with the connection.
            Err(CallError::Transport(error)) if format!("{error:#}").starts_with("closed") => {}
            Err(error) => ensure!(is_clear(&error), "an unclear error: {error}"),
        }
    }
    Ok(())
}
