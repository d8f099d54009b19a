//! Group and all forms on processes that live in several real groups, or beside hidden ones.
//!
//! Does what the daemon's `make_allfunc` does (`supervisor/rpcinterface.py`): to every process that
//! it concerns, in the daemon's order, all at once, and then waits for each. The daemon spawns and
//! kills in the order of one multicall without waiting, and says beside each call what state it left
//! behind; states are looked at until all are done.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{Answer, Caller, Rpc};
use crate::daemon::conf::{ConfiguredGroup, LogLevel};
use crate::daemon::{ConfigInfo, MULTICALL, StatusEntry, multicall_entries, multicall_results};
use crate::failure::Failure;
use crate::fault::{ABNORMAL_TERMINATION, ALREADY_STARTED, BAD_NAME, SPAWN_ERROR, SUCCESS, fault};
use crate::namespec::namespec;
use crate::program::{DEFAULT_STARTSECS, DEFAULT_STOPWAITSECS, Program};
use crate::registry::{Registry, number_of_real_name};
use crate::translate::{BulkAction, is_hidden, is_still_hidden};
use crate::twiddler::ChangeError;
use crate::xmlrpc::{Fault, Value};

/// How often states are looked at while processes start or stop: as often as the daemon itself
/// looks (`make_allfunc`, `delay`).
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Processes that take long are looked at less often, until they are about to be up.
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_millis(400);
/// How often the daemon's log says who is waited for (`supervisor/process.py`, `stop_report`).
const REPORT_AGAIN: Duration = Duration::from_secs(2);
/// No program needs longer to start or to stop.
const MAX_SECONDS: i64 = 365 * 24 * 60 * 60;
const DEFAULT_PRIORITY: i64 = 999;

const STARTING: i64 = 10;
const RUNNING: i64 = 20;
const BACKOFF: i64 = 30;
const STOPPING: i64 = 40;
const EXITED: i64 = 100;
/// `supervisor/states.py`, `RUNNING_STATES`.
const RUNNING_STATES: [i64; 3] = [STARTING, RUNNING, BACKOFF];
/// `supervisor/states.py`, `SIGNALLABLE_STATES`.
const SIGNALLABLE_STATES: [i64; 3] = [STARTING, RUNNING, STOPPING];
/// `supervisor/states.py`, `STOPPED_STATES`.
pub(super) const STOPPED_STATES: [i64; 4] = [0, EXITED, 200, 1000];

/// The result of one call.
type Outcome = Result<Value, Fault>;

/// A call on a whole group, or on all processes.
#[derive(Clone, Debug)]
pub(super) struct BulkCall {
    verb: BulkAction,
    group: Option<String>,
    signal: Option<Value>,
    wait: bool,
    /// Namespecs of processes that the same multicall has added and the daemon has started by itself.
    /// In the in-process original they are still to be started.
    starting: HashSet<String>,
}

impl BulkCall {
    /// A call on `group`; nothing if the daemon would not take that many parameters.
    pub(super) fn group(verb: BulkAction, group: &str, params: &[Value]) -> Option<Self> {
        Self::new(verb, Some(group.to_owned()), &params[1..])
    }

    /// A call on all processes.
    pub(super) fn all(verb: BulkAction, params: &[Value]) -> Option<Self> {
        Self::new(verb, None, params)
    }

    fn new(verb: BulkAction, group: Option<String>, rest: &[Value]) -> Option<Self> {
        let (signal, wait) = match (verb, rest) {
            (BulkAction::Start | BulkAction::Stop | BulkAction::ClearLogs, []) => (None, true),
            (BulkAction::Start | BulkAction::Stop, [wait]) => (None, is_true(wait)),
            (BulkAction::Signal, [signal]) => (Some(signal.clone()), false),
            _ => return None,
        };
        Some(BulkCall {
            verb,
            group,
            signal,
            wait,
            starting: HashSet::new(),
        })
    }

    /// Takes out of `starting` what this call is to start, as far as it starts anything.
    pub(super) fn take_starting(mut self, starting: &mut HashSet<String>) -> Self {
        if self.verb == BulkAction::Start {
            let group = self.group.as_deref();
            let is_in = |namespec: &String| {
                let of = namespec.split_once(':').map(|(group, _)| group);
                group.is_none() || of == group
            };
            self.starting = starting.extract_if(is_in).collect();
        }
        self
    }

    /// Whether it starts what the same multicall has added.
    pub(super) fn starts_added(&self) -> bool {
        !self.starting.is_empty()
    }

    fn is_starting(&self, target: &Target) -> bool {
        let Order { group, process, .. } = &target.order;
        !self.starting.is_empty() && self.starting.contains(&format!("{group}:{process}"))
    }

    /// The call that does it to this one. Who has ended already has been started.
    fn call(&self, target: &Target) -> (&'static str, Vec<Value>) {
        if self.is_starting(target) && target.state == EXITED {
            target.question()
        } else {
            (self.method(), self.params(target.real.clone()))
        }
    }

    fn method(&self) -> &'static str {
        match self.verb {
            BulkAction::Start => "supervisor.startProcess",
            BulkAction::Stop => "supervisor.stopProcess",
            BulkAction::Signal => "supervisor.signalProcess",
            BulkAction::ClearLogs => "supervisor.clearProcessLogs",
        }
    }

    fn params(&self, real: String) -> Vec<Value> {
        match (&self.signal, self.verb) {
            (Some(signal), _) => vec![real.into(), signal.clone()],
            (None, BulkAction::ClearLogs) => vec![real.into()],
            (None, _) => vec![real.into(), Value::Bool(false)],
        }
    }

    fn concerns(&self, target: &Target) -> bool {
        let state = target.state;
        match self.verb {
            BulkAction::Start => !RUNNING_STATES.contains(&state) || self.is_starting(target),
            BulkAction::Stop => RUNNING_STATES.contains(&state),
            BulkAction::Signal => SIGNALLABLE_STATES.contains(&state),
            BulkAction::ClearLogs => true,
        }
    }

    /// Whether what becomes of a process counts, and not only that it was told.
    fn waits(&self) -> bool {
        self.wait && matches!(self.verb, BulkAction::Start | BulkAction::Stop)
    }

    /// Whether the call alone has brought a process where it is to be. One without `startsecs` is
    /// up at once, whatever becomes of it then.
    fn is_done(&self, info: &Value) -> bool {
        match self.verb {
            BulkAction::Start => state(info) == RUNNING,
            _ => STOPPED_STATES.contains(&state(info)),
        }
    }

    /// What a process has come to that was told to start or stop; nothing while it is on its way.
    /// A look that comes `late` may have missed that it was up: it exits only after it was,
    /// otherwise it backs off.
    fn verdict(&self, info: &Value, name: &str, late: bool) -> Option<Result<(), Fault>> {
        let state = state(info);
        match self.verb {
            BulkAction::Stop => STOPPED_STATES.contains(&state).then_some(Ok(())),
            BulkAction::Start => {
                let spawnerr = info
                    .get("spawnerr")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                match state {
                    EXITED if late => Some(Ok(())),
                    _ if !spawnerr.is_empty() => Some(Err(fault(SPAWN_ERROR, name))),
                    RUNNING => Some(Ok(())),
                    STARTING => None,
                    _ => Some(Err(fault(ABNORMAL_TERMINATION, name))),
                }
            }
            BulkAction::Signal | BulkAction::ClearLogs => Some(Ok(())),
        }
    }
}

/// The number of the state that the daemon says a process to be in.
pub(super) fn state(info: &Value) -> i64 {
    info.get("state")
        .and_then(Value::as_int)
        .unwrap_or_default()
}

/// Python's idea of a true value.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Nil => false,
        Value::Bool(truth) => *truth,
        Value::Int(number) => *number != 0,
        Value::Double(number) => *number != 0.0,
        Value::String(text) | Value::DateTime(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Struct(members) => !members.is_empty(),
    }
}

/// Where a process stands among those that a call concerns: one group after the other, and each by
/// priority. Python's sort leaves what is equal as it is: groups as they are when the daemon starts
/// (`supervisor/options.py`, `Config`), processes as the group's `programs` has them, and what was
/// added behind that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    group_priority: i64,
    is_added_group: bool,
    group: String,
    priority: i64,
    rank: Rank,
    process: String,
}

/// A process's place among those of its group that have its priority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The user's files define it at this place.
    Configured(usize),
    /// The daemon has it, and the files do not say where.
    Unknown,
    /// It was added: real groups are numbered as they come, and the first program of an empty group
    /// needs none. Processes of one program are in the order of their names.
    Added(Option<u64>),
}

/// A process that is dealt with.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Also bears the names that clients know.
    order: Order,
    /// The daemon's name for it.
    real: String,
    state: i64,
    pid: i64,
    startsecs: Duration,
    stopwaitsecs: Duration,
    /// When the log last said that it is waited for.
    reported: Option<Instant>,
}

impl Target {
    /// The group that clients know.
    pub(super) fn group(&self) -> &str {
        &self.order.group
    }

    /// Whether it lives in a real group.
    pub(super) fn is_placed(&self) -> bool {
        self.real
            .split_once(':')
            .is_some_and(|(real, _)| real != self.order.group)
    }

    /// Whether the daemon would wait for it before it ends (`get_unstopped_processes`).
    pub(super) fn is_up(&self) -> bool {
        !STOPPED_STATES.contains(&self.state)
    }

    /// Whether it is this proxy, which may run as a program of the same daemon.
    pub(super) fn is_this_proxy(&self) -> bool {
        self.pid == i64::from(std::process::id())
    }

    /// How long it may take to stop before the daemon kills it.
    pub(super) fn stopwaitsecs(&self) -> Duration {
        self.stopwaitsecs
    }

    /// The parameters of a call that starts or stops it and does not wait.
    pub(super) fn without_waiting(&self) -> Vec<Value> {
        vec![self.real.as_str().into(), Value::Bool(false)]
    }

    /// Asks for its state.
    pub(super) fn question(&self) -> (&'static str, Vec<Value>) {
        let real = self.real.as_str().into();
        ("supervisor.getProcessInfo", vec![real])
    }

    fn shown(&self) -> String {
        namespec(&self.order.group, &self.order.process)
    }

    /// The daemon's struct for it (`make_allfunc`).
    fn status(&self, outcome: Result<(), Fault>) -> Value {
        let (status, description) = match outcome {
            Ok(()) => (SUCCESS, "OK".to_owned()),
            Err(fault) => (fault.code, fault.text.replace(&self.real, &self.shown())),
        };
        let entry = StatusEntry {
            group: self.order.group.clone(),
            name: self.order.process.clone(),
            status,
            description,
        };
        entry.into_value()
    }
}

impl Rpc {
    /// Does it, and gives the daemon's kind of list of what became of each process.
    pub(super) async fn whole(&self, caller: &Caller<'_>, whole: BulkCall) -> Answer {
        let targets: Vec<Target> = self
            .targets(caller, &whole)
            .await?
            .into_iter()
            .filter(|target| whole.concerns(target))
            .collect();
        let began = Instant::now();
        let results = self.act(caller, &whole, &targets).await?;
        let mut statuses = Vec::with_capacity(targets.len());
        let mut failed = Vec::new();
        let mut under_way = Vec::new();
        for (target, (result, left_behind)) in targets.into_iter().zip(results) {
            let is_starting = whole.is_starting(&target);
            let result = match result {
                Err(told) if told.code == ALREADY_STARTED && is_starting => Ok(Value::Bool(true)),
                result => result,
            };
            match (result, left_behind) {
                (Ok(_), Some(Ok(info))) if !whole.is_done(&info) => {
                    match whole.verdict(&info, &target.shown(), is_starting) {
                        Some(outcome) => failed.push(target.status(outcome)),
                        None => under_way.push(target),
                    }
                }
                (Ok(_), Some(Err(fault))) => statuses.push(target.status(Err(fault))),
                (result, _) => statuses.push(target.status(result.map(|_| ()))),
            }
        }
        // The daemon looks at them only after all have been told.
        statuses.append(&mut failed);
        statuses.extend(self.wait_for(caller, &whole, under_way, began).await?);
        Ok(Value::Array(statuses))
    }

    /// Does it to all in one multicall. Gives the result of each, and where it matters the state
    /// that the daemon said was left behind before it turned to anything else.
    async fn act(
        &self,
        caller: &Caller<'_>,
        whole: &BulkCall,
        targets: &[Target],
    ) -> Result<Vec<(Outcome, Option<Outcome>)>, Failure> {
        let calls: Vec<_> = targets
            .iter()
            .flat_map(|target| {
                let act = whole.call(target);
                let ask = whole.waits().then(|| target.question());
                std::iter::once(act).chain(ask)
            })
            .collect();
        let mut results = self.multicall_as(caller, &calls).await?.into_iter();
        let pair = |_: &Target| {
            let result = results.next()?;
            let left_behind = if whole.waits() { results.next() } else { None };
            Some((result, left_behind))
        };
        Ok(targets.iter().map_while(pair).collect())
    }

    /// Looks until none is under way any more.
    async fn wait_for(
        &self,
        caller: &Caller<'_>,
        whole: &BulkCall,
        mut under_way: Vec<Target>,
        began: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut statuses = Vec::new();
        let mut looked = began;
        // What was killed may be gone already; what was started is not up before its time.
        let mut pause = match whole.verb {
            BulkAction::Start => LOOK_AGAIN,
            _ => Duration::ZERO,
        };
        while !under_way.is_empty() {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            let mut calls: Vec<_> = under_way.iter().map(Target::question).collect();
            calls.push(("supervisor.getPID", vec![]));
            let mut infos = self.multicall_as(caller, &calls).await?;
            let daemon = infos.pop().and_then(Result::ok);
            let late = looked.elapsed() > pause + 2 * LOOK_AGAIN;
            looked = asked;
            let mut left = Vec::new();
            for (target, info) in under_way.into_iter().zip(infos) {
                let verdict = match info {
                    Ok(info) => whole.verdict(&info, &target.shown(), late),
                    Err(fault) => Some(Err(fault)),
                };
                match verdict {
                    Some(outcome) => statuses.push(target.status(outcome)),
                    None => left.push(target),
                }
            }
            under_way = left;
            if whole.verb == BulkAction::Stop && !pause.is_zero() {
                let daemon = daemon.as_ref().and_then(Value::as_int);
                self.report(&mut under_way, daemon).await;
            }
            pause = next_pause(whole, &under_way, pause, began.elapsed());
        }
        Ok(statuses)
    }

    /// Says in the daemon's log what it says itself of a process that is waited for, as far as that
    /// log can be written.
    async fn report(&self, under_way: &mut [Target], daemon: Option<i64>) {
        for target in under_way {
            if target
                .reported
                .is_none_or(|reported| reported.elapsed() > REPORT_AGAIN)
            {
                let text = format!("waiting for {} to stop", target.order.process);
                if let Err(fault) = self.main_log.write(LogLevel::Info, &text, daemon).await {
                    tracing::debug!(fault = fault.text, "supervisord's log lacks a line");
                }
                target.reported = Some(Instant::now());
            }
        }
    }

    /// All that clients see of the group, or of everything, in the order of the daemon.
    pub(super) async fn targets(
        &self,
        caller: &Caller<'_>,
        whole: &BulkCall,
    ) -> Result<Vec<Target>, Failure> {
        let calls = [
            ("supervisor.getAllProcessInfo", vec![]),
            ("supervisor.getAllConfigInfo", vec![]),
        ];
        let epoch = self.twiddler.epoch();
        let mut results = self.multicall_as(caller, &calls).await?.into_iter();
        let mut next = || results.next().unwrap_or(Ok(Value::Nil));
        let infos = next()?;
        let settings = Settings::read(&next()?, self.twiddler.configured_groups());
        let infos = infos.as_array().unwrap_or_default();
        let (mut targets, shown) = self.twiddler.with_registry(|registry| {
            let shown = shown_again(registry, infos);
            let targets: Vec<Target> = infos
                .iter()
                .filter_map(|info| target(registry, &settings, info))
                .filter(|target| {
                    whole
                        .group
                        .as_ref()
                        .is_none_or(|group| *group == target.order.group)
                })
                .collect();
            (targets, shown)
        });
        self.twiddler.show(epoch, shown).await;
        if let Some(group) = &whole.group
            && targets.is_empty()
        {
            self.twiddler
                .require_group(group)
                .await
                .map_err(|error| match error {
                    ChangeError::UnknownGroup(_) => Failure::Fault(fault(BAD_NAME, group)),
                    error => Failure::Unreachable(error.to_string()),
                })?;
        }
        targets.sort_by(|one, other| one.order.cmp(&other.order));
        Ok(targets)
    }

    /// Several calls in one, as the caller; one result for each.
    pub(super) async fn multicall_as(
        &self,
        caller: &Caller<'_>,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, Failure> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let results = self
            .ask(caller, MULTICALL, &[multicall_entries(calls)])
            .await?;
        Ok(multicall_results(results))
    }
}

/// Hidden processes that somebody started behind our back.
fn shown_again(registry: &Registry, infos: &[Value]) -> Vec<(String, String)> {
    infos
        .iter()
        .filter_map(|info| {
            let (group, process) = (info.get("group")?.as_str()?, info.get("name")?.as_str()?);
            let start = registry.hidden_start(group, process)?;
            (!is_still_hidden(info, start)).then(|| (group.to_owned(), process.to_owned()))
        })
        .collect()
}

/// How long to wait before the next look, `elapsed` after the start of it all. A process may be up
/// for no longer than the daemon takes to see it, so it is looked at as often as the daemon looks once
/// its time has come; before that it can only fail, and that stays to be seen for a second at least
/// (`supervisor/process.py`, `record_spawnerr`).
fn next_pause(
    whole: &BulkCall,
    under_way: &[Target],
    last: Duration,
    elapsed: Duration,
) -> Duration {
    let longer = (last.max(LOOK_AGAIN) * 5 / 4).min(LOOK_AGAIN_AT_MOST);
    if whole.verb != BulkAction::Start {
        return if last.is_zero() { LOOK_AGAIN } else { longer };
    }
    let left = under_way
        .iter()
        .map(|target| target.startsecs.saturating_sub(elapsed));
    left.min()
        .map_or(longer, |left| longer.min(left.max(LOOK_AGAIN)))
}

fn target(registry: &Registry, settings: &Settings, info: &Value) -> Option<Target> {
    let (real, process) = (info.get("group")?.as_str()?, info.get("name")?.as_str()?);
    let state = info.get("state")?.as_int()?;
    if is_hidden(registry, info) {
        return None;
    }
    let group = registry.owner(real).unwrap_or(real);
    let member = registry.member(group, process);
    let program = member.and_then(|member| member.program.as_ref());
    let added_group = registry.added_group(group);
    let process_settings = settings.process(real, process);
    let startsecs = program.map_or(process_settings.startsecs, Program::startsecs);
    let stopwaitsecs = program.map_or(process_settings.stopwaitsecs, Program::stopwaitsecs);
    Some(Target {
        order: Order {
            group_priority: added_group.unwrap_or_else(|| settings.group(group)),
            is_added_group: added_group.is_some(),
            group: group.to_owned(),
            priority: program.map_or(process_settings.priority, Program::priority),
            rank: match member {
                Some(_) => Rank::Added(number_of_real_name(real)),
                None => settings.rank(group, process),
            },
            process: process.to_owned(),
        },
        real: format!("{real}:{process}"),
        state,
        pid: info.get("pid").and_then(Value::as_int).unwrap_or_default(),
        startsecs: seconds(startsecs),
        stopwaitsecs: seconds(stopwaitsecs),
        reported: None,
    })
}

/// What an option of so many seconds means.
fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.clamp(0, MAX_SECONDS).unsigned_abs())
}

/// Group and process.
type Key = (String, String);

/// What `getAllConfigInfo` says of priorities and times, and the user's files of the order.
struct Settings {
    groups: HashMap<String, i64>,
    processes: HashMap<Key, ProcessSettings>,
    places: HashMap<Key, usize>,
}

/// The same for one process.
#[derive(Clone, Copy)]
struct ProcessSettings {
    priority: i64,
    startsecs: i64,
    stopwaitsecs: i64,
}

/// The daemon's (`supervisor/options.py`, `processes_from_section`).
const DEFAULTS: ProcessSettings = ProcessSettings {
    priority: DEFAULT_PRIORITY,
    startsecs: DEFAULT_STARTSECS,
    stopwaitsecs: DEFAULT_STOPWAITSECS,
};

impl Settings {
    fn read(configs: &Value, configured: Vec<ConfiguredGroup>) -> Self {
        let mut settings = Settings {
            groups: HashMap::new(),
            processes: HashMap::new(),
            places: HashMap::new(),
        };
        for config in ConfigInfo::read_all(configs) {
            let priority = config.group_priority.unwrap_or(DEFAULT_PRIORITY);
            settings.groups.insert(config.group.clone(), priority);
            let process = ProcessSettings {
                priority: config.priority.unwrap_or(DEFAULTS.priority),
                startsecs: config.startsecs.unwrap_or(DEFAULTS.startsecs),
                stopwaitsecs: config.stopwaitsecs.unwrap_or(DEFAULTS.stopwaitsecs),
            };
            let key = (config.group, config.name);
            settings.processes.insert(key, process);
        }
        for group in configured {
            for (place, process) in group.processes.into_iter().enumerate() {
                let key = (group.name.clone(), process);
                // A program that is named twice stays at its first place.
                settings.places.entry(key).or_insert(place);
            }
        }
        settings
    }

    fn group(&self, group: &str) -> i64 {
        self.groups.get(group).copied().unwrap_or(DEFAULT_PRIORITY)
    }

    fn process(&self, group: &str, process: &str) -> ProcessSettings {
        let key = (group.to_owned(), process.to_owned());
        self.processes.get(&key).copied().unwrap_or(DEFAULTS)
    }

    fn rank(&self, group: &str, process: &str) -> Rank {
        let key = (group.to_owned(), process.to_owned());
        self.places
            .get(&key)
            .map_or(Rank::Unknown, |place| Rank::Configured(*place))
    }
}
