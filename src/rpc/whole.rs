//! Group and all forms on processes that live in several real groups, or beside hidden ones.
//!
//! Does what the daemon's `make_allfunc` does (`supervisor/rpcinterface.py`): to every process that
//! it concerns, by priority, all at once, and then waits for each. The daemon spawns and kills in
//! the order of one multicall without waiting; its states are looked at until all are done.

use std::collections::HashMap;
use std::time::Duration;

use super::{Answer, Caller, Failure, Rpc};
use crate::daemon::fault::{ABNORMAL_TERMINATION, BAD_NAME, SPAWN_ERROR, SUCCESS, fault};
use crate::names::{Verb, is_hidden, is_still_hidden, namespec};
use crate::twiddler::Registry;
use crate::xmlrpc::{Fault, Value};

/// How often states are looked at while processes start or stop: as often as the daemon itself
/// looks (`make_allfunc`, `delay`).
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Processes that take long are looked at less often.
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_millis(400);
const DEFAULT_PRIORITY: i64 = 999;

const STARTING: i64 = 10;
const RUNNING: i64 = 20;
const BACKOFF: i64 = 30;
const STOPPING: i64 = 40;
/// `supervisor/states.py`, `RUNNING_STATES`.
const RUNNING_STATES: [i64; 3] = [STARTING, RUNNING, BACKOFF];
/// `supervisor/states.py`, `SIGNALLABLE_STATES`.
const SIGNALLABLE_STATES: [i64; 3] = [STARTING, RUNNING, STOPPING];
/// `supervisor/states.py`, `STOPPED_STATES`.
const STOPPED_STATES: [i64; 4] = [0, 100, 200, 1000];

/// A call on a whole group, or on all processes.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    verb: Verb,
    group: Option<String>,
    signal: Option<Value>,
    wait: bool,
}

impl Whole {
    /// A call on `group`; nothing if the daemon would not take that many parameters.
    pub(super) fn group(verb: Verb, group: &str, params: &[Value]) -> Option<Self> {
        Self::new(verb, Some(group.to_owned()), &params[1..])
    }

    /// A call on all processes.
    pub(super) fn all(verb: Verb, params: &[Value]) -> Option<Self> {
        Self::new(verb, None, params)
    }

    fn new(verb: Verb, group: Option<String>, rest: &[Value]) -> Option<Self> {
        let (signal, wait) = match (verb, rest) {
            (Verb::Start | Verb::Stop | Verb::ClearLogs, []) => (None, true),
            (Verb::Start | Verb::Stop, [wait]) => (None, is_true(wait)),
            (Verb::Signal, [signal]) => (Some(signal.clone()), false),
            _ => return None,
        };
        Some(Whole {
            verb,
            group,
            signal,
            wait,
        })
    }

    fn method(&self) -> &'static str {
        match self.verb {
            Verb::Start => "supervisor.startProcess",
            Verb::Stop => "supervisor.stopProcess",
            Verb::Signal => "supervisor.signalProcess",
            Verb::ClearLogs => "supervisor.clearProcessLogs",
        }
    }

    fn params(&self, real: String) -> Vec<Value> {
        match (&self.signal, self.verb) {
            (Some(signal), _) => vec![real.into(), signal.clone()],
            (None, Verb::ClearLogs) => vec![real.into()],
            (None, _) => vec![real.into(), Value::Bool(false)],
        }
    }

    fn concerns(&self, state: i64) -> bool {
        match self.verb {
            Verb::Start => !RUNNING_STATES.contains(&state),
            Verb::Stop => RUNNING_STATES.contains(&state),
            Verb::Signal => SIGNALLABLE_STATES.contains(&state),
            Verb::ClearLogs => true,
        }
    }

    /// What a process has come to that was told to start or stop; nothing while it is on its way.
    fn verdict(&self, info: &Value, name: &str) -> Option<Result<(), Fault>> {
        let state = info
            .get("state")
            .and_then(Value::as_int)
            .unwrap_or_default();
        match self.verb {
            Verb::Stop => STOPPED_STATES.contains(&state).then_some(Ok(())),
            Verb::Start => {
                let spawnerr = info
                    .get("spawnerr")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                match state {
                    _ if !spawnerr.is_empty() => Some(Err(fault(SPAWN_ERROR, name))),
                    RUNNING => Some(Ok(())),
                    STARTING => None,
                    _ => Some(Err(fault(ABNORMAL_TERMINATION, name))),
                }
            }
            Verb::Signal | Verb::ClearLogs => Some(Ok(())),
        }
    }
}

/// Python's idea of a true value.
fn is_true(value: &Value) -> bool {
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

/// A process that is dealt with.
#[derive(Clone, Debug)]
struct Target {
    group: String,
    process: String,
    /// The daemon's name for it.
    real: String,
    /// Group's and process's priority.
    priority: (i64, i64),
    state: i64,
}

impl Target {
    /// One group after the other.
    fn order(&self) -> (i64, &str, i64, &str) {
        let (of_group, of_process) = self.priority;
        (of_group, &self.group, of_process, &self.process)
    }

    fn shown(&self) -> String {
        namespec(&self.group, &self.process)
    }

    /// The daemon's struct for it (`make_allfunc`).
    fn status(&self, outcome: Result<(), Fault>) -> Value {
        let (status, description) = match outcome {
            Ok(()) => (SUCCESS, "OK".to_owned()),
            Err(fault) => (fault.code, fault.text.replace(&self.real, &self.shown())),
        };
        Value::Struct(vec![
            ("name".to_owned(), self.process.as_str().into()),
            ("group".to_owned(), self.group.as_str().into()),
            ("status".to_owned(), status.into()),
            ("description".to_owned(), description.into()),
        ])
    }
}

impl Rpc {
    /// Does it, and gives the daemon's kind of list of what became of each process.
    pub(super) async fn whole(&self, caller: &Caller<'_>, whole: Whole) -> Answer {
        let targets: Vec<Target> = self
            .targets(caller, &whole)
            .await?
            .into_iter()
            .filter(|target| whole.concerns(target.state))
            .collect();
        let calls: Vec<_> = targets
            .iter()
            .map(|target| (whole.method(), whole.params(target.real.clone())))
            .collect();
        let results = self.multicall_as(caller, &calls).await?;
        let mut statuses = Vec::with_capacity(targets.len());
        let mut under_way = Vec::new();
        for (target, result) in targets.into_iter().zip(results) {
            match result {
                Ok(_) if whole.wait && matches!(whole.verb, Verb::Start | Verb::Stop) => {
                    under_way.push(target);
                }
                result => statuses.push(target.status(result.map(|_| ()))),
            }
        }
        statuses.extend(self.wait_for(caller, &whole, under_way).await?);
        Ok(Value::Array(statuses))
    }

    /// Looks until none is under way any more.
    async fn wait_for(
        &self,
        caller: &Caller<'_>,
        whole: &Whole,
        mut under_way: Vec<Target>,
    ) -> Result<Vec<Value>, Failure> {
        let mut statuses = Vec::new();
        let mut pause = LOOK_AGAIN;
        while !under_way.is_empty() {
            let calls: Vec<_> = under_way
                .iter()
                .map(|target| {
                    (
                        "supervisor.getProcessInfo",
                        vec![target.real.as_str().into()],
                    )
                })
                .collect();
            let infos = self.multicall_as(caller, &calls).await?;
            let mut left = Vec::new();
            for (target, info) in under_way.into_iter().zip(infos) {
                let verdict = match info {
                    Ok(info) => whole.verdict(&info, &target.shown()),
                    Err(fault) => Some(Err(fault)),
                };
                match verdict {
                    Some(outcome) => statuses.push(target.status(outcome)),
                    None => left.push(target),
                }
            }
            under_way = left;
            if !under_way.is_empty() {
                tokio::time::sleep(pause).await;
                pause = (pause * 5 / 4).min(LOOK_AGAIN_AT_MOST);
            }
        }
        Ok(statuses)
    }

    /// All that clients see of the group, or of everything, in the order of the daemon.
    async fn targets(&self, caller: &Caller<'_>, whole: &Whole) -> Result<Vec<Target>, Failure> {
        let calls = [
            ("supervisor.getAllProcessInfo", vec![]),
            ("supervisor.getAllConfigInfo", vec![]),
        ];
        let life = self.twiddler.life_number();
        let mut results = self.multicall_as(caller, &calls).await?.into_iter();
        let mut next = || results.next().unwrap_or(Ok(Value::Nil));
        let infos = next()?;
        let priorities = Priorities::read(&next()?);
        let infos = infos.as_array().unwrap_or_default();
        let (mut targets, shown) = self.twiddler.with_registry(|registry| {
            let shown = shown_again(registry, infos);
            let targets: Vec<Target> = infos
                .iter()
                .filter_map(|info| target(registry, &priorities, info))
                .filter(|target| {
                    whole
                        .group
                        .as_ref()
                        .is_none_or(|group| *group == target.group)
                })
                .collect();
            (targets, shown)
        });
        self.twiddler.show(life, shown);
        if let Some(group) = &whole.group
            && targets.is_empty()
        {
            self.twiddler
                .require_group(group)
                .await
                .map_err(|refusal| match refusal {
                    crate::twiddler::Refusal::Fault(told) if told.code == BAD_NAME => {
                        Failure::Fault(fault(BAD_NAME, group))
                    }
                    refusal => Failure::http(crate::relay::bad_gateway(&refusal.to_string())),
                })?;
        }
        // Where priorities are equal, the daemon has both in the order of their names
        // (`supervisor/options.py`, `Config`).
        targets.sort_by(|one, other| one.order().cmp(&other.order()));
        Ok(targets)
    }

    /// Several calls in one, as the caller; one result for each.
    pub(super) async fn multicall_as(
        &self,
        caller: &Caller<'_>,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, Failure> {
        let authorization = caller.head.headers.get(http::header::AUTHORIZATION);
        match self.daemon.multicall_as(authorization, calls).await {
            Ok(results) => Ok(results),
            Err(error) => Err(self.failed(caller, error).await),
        }
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

fn target(registry: &Registry, priorities: &Priorities, info: &Value) -> Option<Target> {
    let (real, process) = (info.get("group")?.as_str()?, info.get("name")?.as_str()?);
    let state = info.get("state")?.as_int()?;
    if is_hidden(registry, info) {
        return None;
    }
    let group = registry.owner(real).unwrap_or(real);
    let added = registry
        .member(group, process)
        .and_then(|member| member.program.as_ref());
    let of_group = registry
        .added_group(group)
        .unwrap_or_else(|| priorities.group(group));
    let of_process = added.map_or_else(
        || priorities.process(real, process),
        |program| program.priority(),
    );
    Some(Target {
        group: group.to_owned(),
        process: process.to_owned(),
        real: format!("{real}:{process}"),
        priority: (of_group, of_process),
        state,
    })
}

/// What `getAllConfigInfo` says of priorities.
struct Priorities {
    groups: HashMap<String, i64>,
    processes: HashMap<(String, String), i64>,
}

impl Priorities {
    fn read(configs: &Value) -> Self {
        let mut priorities = Priorities {
            groups: HashMap::new(),
            processes: HashMap::new(),
        };
        for config in configs.as_array().unwrap_or_default() {
            let text = |member: &str| {
                config
                    .get(member)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            };
            let number = |member: &str| config.get(member).and_then(Value::as_int);
            let (Some(group), Some(process)) = (text("group"), text("name")) else {
                continue;
            };
            priorities.groups.insert(
                group.clone(),
                number("group_prio").unwrap_or(DEFAULT_PRIORITY),
            );
            priorities.processes.insert(
                (group, process),
                number("process_prio").unwrap_or(DEFAULT_PRIORITY),
            );
        }
        priorities
    }

    fn group(&self, group: &str) -> i64 {
        self.groups.get(group).copied().unwrap_or(DEFAULT_PRIORITY)
    }

    fn process(&self, group: &str, process: &str) -> i64 {
        let key = (group.to_owned(), process.to_owned());
        self.processes
            .get(&key)
            .copied()
            .unwrap_or(DEFAULT_PRIORITY)
    }
}
