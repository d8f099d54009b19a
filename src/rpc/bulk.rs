//! Calls on a whole group or on all processes, where these are in several real groups or beside hidden
//! processes.
//!
//! They do the same as the daemon's `make_allfunc` (`supervisor/rpcinterface.py`): they act on every process
//! concerned, in the daemon's order, without waiting in between, and then wait for each. One multicall
//! spawns or kills the processes, and queries the state after each call. The states are then polled until
//! all processes are done.

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

/// How often states are polled while processes start or stop: as often as by the daemon itself
/// (`make_allfunc`, `delay`).
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The longest interval, for processes that take long to stop or whose `startsecs` have not passed.
const LONGEST_POLL_INTERVAL: Duration = Duration::from_millis(400);
/// How often the daemon's log names a stopping process (`supervisor/process.py`, `stop_report`).
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// The largest value of `startsecs` and `stopwaitsecs` that is used, so that times do not overflow.
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
    action: BulkAction,
    group: Option<String>,
    signal: Option<Value>,
    wait: bool,
    /// Namespecs of processes that the same multicall has added and that the daemon has started by itself.
    /// In the in-process supervisor_twiddler they do not run yet at this point.
    starting: HashSet<String>,
}

impl BulkCall {
    /// A call on `group`; none if the daemon would not accept the number of parameters.
    pub(super) fn group(action: BulkAction, group: &str, params: &[Value]) -> Option<Self> {
        Self::new(action, Some(group.to_owned()), &params[1..])
    }

    /// A call on all processes; none if the daemon would not accept the number of parameters.
    pub(super) fn all(action: BulkAction, params: &[Value]) -> Option<Self> {
        Self::new(action, None, params)
    }

    fn new(action: BulkAction, group: Option<String>, rest: &[Value]) -> Option<Self> {
        let (signal, wait) = match (action, rest) {
            (BulkAction::Start | BulkAction::Stop | BulkAction::ClearLogs, []) => (None, true),
            (BulkAction::Start | BulkAction::Stop, [wait]) => (None, is_true(wait)),
            (BulkAction::Signal, [signal]) => (Some(signal.clone()), false),
            _ => return None,
        };
        Some(BulkCall {
            action,
            group,
            signal,
            wait,
            starting: HashSet::new(),
        })
    }

    /// Moves the processes that this call concerns from `starting` into it, if it is a start.
    pub(super) fn take_starting(mut self, starting: &mut HashSet<String>) -> Self {
        if self.action == BulkAction::Start {
            let group = self.group.as_deref();
            let is_in = |namespec: &String| {
                let of = namespec.split_once(':').map(|(group, _)| group);
                group.is_none() || of == group
            };
            self.starting = starting.extract_if(is_in).collect();
        }
        self
    }

    /// Whether the call starts processes that the same multicall has added.
    pub(super) fn starts_added(&self) -> bool {
        !self.starting.is_empty()
    }

    fn is_just_added(&self, target: &Target) -> bool {
        let Order { group, process, .. } = &target.order;
        !self.starting.is_empty() && self.starting.contains(&format!("{group}:{process}"))
    }

    /// The daemon's call for this process. A process that the same multicall has added and that has already
    /// exited is only queried, because it has been started.
    fn call(&self, target: &Target) -> (&'static str, Vec<Value>) {
        if self.is_just_added(target) && target.state == EXITED {
            target.query()
        } else {
            (self.method(), self.params(target.real.clone()))
        }
    }

    fn method(&self) -> &'static str {
        match self.action {
            BulkAction::Start => "supervisor.startProcess",
            BulkAction::Stop => "supervisor.stopProcess",
            BulkAction::Signal => "supervisor.signalProcess",
            BulkAction::ClearLogs => "supervisor.clearProcessLogs",
        }
    }

    fn params(&self, real: String) -> Vec<Value> {
        match (&self.signal, self.action) {
            (Some(signal), _) => vec![real.into(), signal.clone()],
            (None, BulkAction::ClearLogs) => vec![real.into()],
            (None, _) => vec![real.into(), Value::Bool(false)],
        }
    }

    fn concerns(&self, target: &Target) -> bool {
        let state = target.state;
        match self.action {
            BulkAction::Start => !RUNNING_STATES.contains(&state) || self.is_just_added(target),
            BulkAction::Stop => RUNNING_STATES.contains(&state),
            BulkAction::Signal => SIGNALLABLE_STATES.contains(&state),
            BulkAction::ClearLogs => true,
        }
    }

    /// Whether the call waits until the processes have started or stopped.
    fn waits(&self) -> bool {
        self.wait && matches!(self.action, BulkAction::Start | BulkAction::Stop)
    }

    /// Whether a process was already done when the call returned. One with `startsecs=0` is running at once,
    /// even if it exits later.
    fn is_done(&self, info: &Value) -> bool {
        match self.action {
            BulkAction::Start => state(info) == RUNNING,
            _ => STOPPED_STATES.contains(&state(info)),
        }
    }

    /// The outcome for a process; none while it is still starting or stopping. A `late` query may have missed
    /// that the process was running. It was if it is EXITED now, because a process that exits too soon is
    /// in BACKOFF.
    fn verdict(&self, info: &Value, name: &str, late: bool) -> Option<Result<(), Fault>> {
        let state = state(info);
        match self.action {
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

/// The number of the state in the daemon's info struct of a process.
pub(super) fn state(info: &Value) -> i64 {
    info.get("state")
        .and_then(Value::as_int)
        .unwrap_or_default()
}

/// Whether the value is true in Python.
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

/// The sort key of processes in a call: by group, and within a group by priority. Python's sort is stable, so
/// equal groups keep the order in which the daemon reads them (`supervisor/options.py`, `Config`), and equal
/// processes the order of the group's `programs`, followed by added processes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    group_priority: i64,
    is_added_group: bool,
    group: String,
    priority: i64,
    rank: Rank,
    process: String,
}

/// The position of a process among those of its group with the same priority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The position in the user's files.
    Configured(usize),
    /// The daemon has the process, but the files do not define it.
    Unknown,
    /// The number of the real group of an added process, which grows with each addition; none for the first
    /// program of an empty group. Processes of one program are ordered by name.
    Added(Option<u64>),
}

/// A process that a call concerns.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The sort key, which also holds the names that clients know.
    order: Order,
    /// The namespec in the daemon.
    real: String,
    state: i64,
    pid: i64,
    startsecs: Duration,
    stopwaitsecs: Duration,
    /// When the daemon's log last named it as stopping.
    last_report: Option<Instant>,
}

impl Target {
    /// The group that clients know.
    pub(super) fn group(&self) -> &str {
        &self.order.group
    }

    /// Whether it is in a real group.
    pub(super) fn is_placed(&self) -> bool {
        self.real
            .split_once(':')
            .is_some_and(|(real, _)| real != self.order.group)
    }

    /// Whether the daemon waits for the process when it shuts down (`get_unstopped_processes`).
    pub(super) fn is_up(&self) -> bool {
        !STOPPED_STATES.contains(&self.state)
    }

    /// Whether the process is this proxy, which can be a program of the same daemon.
    pub(super) fn is_this_proxy(&self) -> bool {
        self.pid == i64::from(std::process::id())
    }

    /// How long the process may take to stop before the daemon kills it.
    pub(super) fn stopwaitsecs(&self) -> Duration {
        self.stopwaitsecs
    }

    /// The parameters of a call that starts or stops the process without waiting.
    pub(super) fn without_waiting(&self) -> Vec<Value> {
        vec![self.real.as_str().into(), Value::Bool(false)]
    }

    /// The call that queries its state.
    pub(super) fn query(&self) -> (&'static str, Vec<Value>) {
        let real = self.real.as_str().into();
        ("supervisor.getProcessInfo", vec![real])
    }

    /// The name that clients know.
    fn namespec(&self) -> String {
        namespec(&self.order.group, &self.order.process)
    }

    /// The status struct of the process (`make_allfunc`).
    fn status(&self, outcome: Result<(), Fault>) -> Value {
        let (status, description) = match outcome {
            Ok(()) => (SUCCESS, "OK".to_owned()),
            Err(fault) => (fault.code, fault.text.replace(&self.real, &self.namespec())),
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
    /// Executes a call on a group or on all processes. Returns the daemon's array of status structs, one for
    /// each process.
    pub(super) async fn run_bulk(&self, caller: &Caller<'_>, bulk: BulkCall) -> Answer {
        let targets: Vec<Target> = self
            .targets(caller, &bulk)
            .await?
            .into_iter()
            .filter(|target| bulk.concerns(target))
            .collect();
        let start = Instant::now();
        let results = self.act(caller, &bulk, &targets).await?;
        let mut statuses = Vec::with_capacity(targets.len());
        let mut failed = Vec::new();
        let mut pending = Vec::new();
        for (target, (result, state_after)) in targets.into_iter().zip(results) {
            let is_just_added = bulk.is_just_added(&target);
            let result = match result {
                Err(fault) if fault.code == ALREADY_STARTED && is_just_added => {
                    Ok(Value::Bool(true))
                }
                result => result,
            };
            match (result, state_after) {
                (Ok(_), Some(Ok(info))) if !bulk.is_done(&info) => {
                    match bulk.verdict(&info, &target.namespec(), is_just_added) {
                        Some(outcome) => failed.push(target.status(outcome)),
                        None => pending.push(target),
                    }
                }
                (Ok(_), Some(Err(fault))) => statuses.push(target.status(Err(fault))),
                (result, _) => statuses.push(target.status(result.map(|_| ()))),
            }
        }
        // The daemon checks these only after it has called all processes, so they come later in its array.
        statuses.append(&mut failed);
        statuses.extend(self.wait_for(caller, &bulk, pending, start).await?);
        Ok(Value::Array(statuses))
    }

    /// Acts on all processes in one multicall. Returns the result for each and, if the call waits, its info
    /// struct right after.
    async fn act(
        &self,
        caller: &Caller<'_>,
        bulk: &BulkCall,
        targets: &[Target],
    ) -> Result<Vec<(Outcome, Option<Outcome>)>, Failure> {
        let calls: Vec<_> = targets
            .iter()
            .flat_map(|target| {
                let act = bulk.call(target);
                let query = bulk.waits().then(|| target.query());
                std::iter::once(act).chain(query)
            })
            .collect();
        let mut results = self.multicall_as(caller, &calls).await?.into_iter();
        let pair = |_: &Target| {
            let result = results.next()?;
            let state_after = if bulk.waits() { results.next() } else { None };
            Some((result, state_after))
        };
        Ok(targets.iter().map_while(pair).collect())
    }

    /// Polls until no process is starting or stopping any more. Returns their status structs.
    async fn wait_for(
        &self,
        caller: &Caller<'_>,
        bulk: &BulkCall,
        mut pending: Vec<Target>,
        start: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut statuses = Vec::new();
        let mut last_query = start;
        // A killed process may have stopped already. A started one is not RUNNING before its `startsecs`.
        let mut pause = match bulk.action {
            BulkAction::Start => POLL_INTERVAL,
            _ => Duration::ZERO,
        };
        while !pending.is_empty() {
            tokio::time::sleep(pause).await;
            let sent = Instant::now();
            let mut calls: Vec<_> = pending.iter().map(Target::query).collect();
            calls.push(("supervisor.getPID", vec![]));
            let mut infos = self.multicall_as(caller, &calls).await?;
            let daemon = infos.pop().and_then(Result::ok);
            let late = last_query.elapsed() > pause + 2 * POLL_INTERVAL;
            last_query = sent;
            let mut unfinished = Vec::new();
            for (target, info) in pending.into_iter().zip(infos) {
                let verdict = match info {
                    Ok(info) => bulk.verdict(&info, &target.namespec(), late),
                    Err(fault) => Some(Err(fault)),
                };
                match verdict {
                    Some(outcome) => statuses.push(target.status(outcome)),
                    None => unfinished.push(target),
                }
            }
            pending = unfinished;
            if bulk.action == BulkAction::Stop && !pause.is_zero() {
                let daemon = daemon.as_ref().and_then(Value::as_int);
                self.report(&mut pending, daemon).await;
            }
            pause = next_pause(bulk, &pending, pause, start.elapsed());
        }
        Ok(statuses)
    }

    /// Writes the daemon's own lines about stopping processes to its log. A log that cannot be written is
    /// ignored.
    async fn report(&self, pending: &mut [Target], daemon: Option<i64>) {
        for target in pending {
            if target
                .last_report
                .is_none_or(|last_report| last_report.elapsed() > REPORT_INTERVAL)
            {
                let text = format!("waiting for {} to stop", target.order.process);
                if let Err(fault) = self.main_log.write(LogLevel::Info, &text, daemon).await {
                    tracing::debug!(
                        fault = fault.text,
                        "cannot write a line to supervisord's log"
                    );
                }
                target.last_report = Some(Instant::now());
            }
        }
    }

    /// The visible processes of the call's group, or of all groups, in the daemon's order.
    ///
    /// # Errors
    /// When the daemon refuses the caller or does not answer, or the group is unknown.
    pub(super) async fn targets(
        &self,
        caller: &Caller<'_>,
        bulk: &BulkCall,
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
        let (mut targets, visible) = self.twiddler.with_registry(|registry| {
            let visible = restarted_hidden(registry, infos);
            let targets: Vec<Target> = infos
                .iter()
                .filter_map(|info| target(registry, &settings, info))
                .filter(|target| {
                    bulk.group
                        .as_ref()
                        .is_none_or(|group| *group == target.order.group)
                })
                .collect();
            (targets, visible)
        });
        self.twiddler.unhide(epoch, visible).await;
        if let Some(group) = &bulk.group
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

    /// Makes several calls with the caller's credentials in one multicall. Returns one result for each.
    pub(super) async fn multicall_as(
        &self,
        caller: &Caller<'_>,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, Failure> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let results = self
            .query(caller, MULTICALL, &[multicall_entries(calls)])
            .await?;
        Ok(multicall_results(results))
    }
}

/// Hidden processes that a client has started directly on the daemon since they were hidden.
fn restarted_hidden(registry: &Registry, infos: &[Value]) -> Vec<(String, String)> {
    infos
        .iter()
        .filter_map(|info| {
            let (group, process) = (info.get("group")?.as_str()?, info.get("name")?.as_str()?);
            let start = registry.hidden_start(group, process)?;
            (!is_still_hidden(info, start)).then(|| (group.to_owned(), process.to_owned()))
        })
        .collect()
}

/// The pause before the next poll, `elapsed` after the start of the call. Once `startsecs` have passed, a
/// process can be RUNNING for a short time only, so it is polled as often as by the daemon. Before, it can
/// only fail, which is visible for at least a second (`supervisor/process.py`, `record_spawnerr`).
fn next_pause(bulk: &BulkCall, pending: &[Target], last: Duration, elapsed: Duration) -> Duration {
    let longer = (last.max(POLL_INTERVAL) * 5 / 4).min(LONGEST_POLL_INTERVAL);
    if bulk.action != BulkAction::Start {
        return if last.is_zero() {
            POLL_INTERVAL
        } else {
            longer
        };
    }
    let remaining = pending
        .iter()
        .map(|target| target.startsecs.saturating_sub(elapsed));
    remaining
        .min()
        .map_or(longer, |time| longer.min(time.max(POLL_INTERVAL)))
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
        last_report: None,
    })
}

/// The value of an option in seconds.
fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.clamp(0, MAX_SECONDS).unsigned_abs())
}

/// Group and process.
type Key = (String, String);

/// Priorities and times from `getAllConfigInfo`, and the order from the user's files.
struct Settings {
    groups: HashMap<String, i64>,
    processes: HashMap<Key, ProcessSettings>,
    places: HashMap<Key, usize>,
}

/// The priority and times of one process.
#[derive(Clone, Copy)]
struct ProcessSettings {
    priority: i64,
    startsecs: i64,
    stopwaitsecs: i64,
}

/// The daemon's defaults (`supervisor/options.py`, `processes_from_section`).
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
                // A program that is listed twice keeps its first position.
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
