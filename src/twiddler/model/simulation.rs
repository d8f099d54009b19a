//! A model check: random changes, crashes of the proxy, restarts of the daemon and actions of other clients
//! directly on the daemon, against a model of the daemon. After each step, the daemon must have all members
//! that clients got replies about.

use std::collections::{BTreeMap, BTreeSet};

use super::answers::{Answers, Query};
use super::change::Change;
use super::plan::tests::{Dice, program, removal};
use super::plan::{self, Draft, Plan, Planner};
use super::reconcile::{self, Inputs, Mode, reconcile};
use super::script::{ADD, Call, CallResult, REMOVE, Repair, Script};
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::{ProcessInfo, ProcessState};
use crate::fault::{ALREADY_ADDED, BAD_NAME, STILL_RUNNING, fault};
use crate::persist::Contents;
use crate::program::Name;
use crate::registry::{Event, Registry, is_generated, is_still_hidden, number_of_real_name};
use crate::xmlrpc::Value;

const STEPS: usize = 100_000;
const GROUPS: [&str; 4] = ["web", "pool", "own", "more"];
const MARKER: &str = "twiddler~1-1";
/// The member of the user's own group.
const USER_PROCESS: &str = "x";

/// The processes of a group of the daemon, with their states and start times.
type Processes = BTreeMap<String, (ProcessState, i64)>;

/// A model of the daemon: its active groups, and those that it has read.
#[derive(Default)]
struct Daemon {
    active: BTreeMap<String, Processes>,
    last_read: BTreeMap<String, Processes>,
}

fn stopped<'a>(names: impl Iterator<Item = &'a str>) -> Processes {
    names
        .map(|name| (name.to_owned(), (ProcessState::Stopped, 0)))
        .collect()
}

/// The groups of the user's files: one with a process, and one without.
fn configured() -> Vec<ConfiguredGroup> {
    let group = |name: &str, processes: &[&str]| ConfiguredGroup {
        name: name.to_owned(),
        priority: 999,
        empty: processes.is_empty(),
        processes: processes.iter().map(|name| (*name).to_owned()).collect(),
    };
    vec![group("web", &[USER_PROCESS]), group("pool", &[])]
}

impl Daemon {
    fn start() -> Self {
        let mut daemon = Daemon::default();
        daemon.reload(&[]);
        daemon.active = daemon.last_read.clone();
        daemon
    }

    /// Reads the user's files and the sections that are staged for `plans`.
    fn reload(&mut self, plans: &[Option<Plan>]) {
        let groups = configured().into_iter();
        let groups = groups.map(|group| {
            let processes = stopped(group.processes.iter().map(String::as_str));
            (group.name, processes)
        });
        self.last_read = groups.collect();
        self.last_read.insert(MARKER.to_owned(), Processes::new());
        for plan in plans.iter().flatten() {
            let (name, processes) = match plan {
                Plan::Create { group, .. } | Plan::Reset { group, .. } => (group, Processes::new()),
                Plan::Fill {
                    group: name,
                    members,
                    ..
                }
                | Plan::Place {
                    real: name,
                    members,
                    ..
                } => (
                    name,
                    stopped(members.iter().map(|member| member.process.as_str())),
                ),
                _ => continue,
            };
            self.last_read.insert(name.clone(), processes);
        }
    }

    fn call(&mut self, (method, params): &Call) -> CallResult {
        let name = params[0].as_str().unwrap_or_default();
        match *method {
            ADD if self.active.contains_key(name) => return Err(fault(ALREADY_ADDED, name)),
            ADD => {
                let processes = self
                    .last_read
                    .get(name)
                    .ok_or_else(|| fault(BAD_NAME, name))?;
                self.active.insert(name.to_owned(), processes.clone());
            }
            REMOVE => {
                let processes = self.active.get(name).ok_or_else(|| fault(BAD_NAME, name))?;
                if processes.values().any(|(state, _)| !state.is_stopped()) {
                    return Err(fault(STILL_RUNNING, name));
                }
                self.active.remove(name);
            }
            other => unreachable!("{other}"),
        }
        Ok(Value::Bool(true))
    }

    fn answer(&self, queries: &[Query]) -> Answers {
        let mut answers = Answers::default();
        let info = |real: &str, name: &str, (state, start): &(ProcessState, i64)| {
            let mut info = ProcessInfo::stopped(real, name, *start);
            info.state = *state;
            info
        };
        for query in queries {
            match query {
                Query::Group(name) => {
                    let is_active = self.active.contains_key(name);
                    answers.groups.insert(name.clone(), is_active);
                }
                Query::Process { real, process } => {
                    let processes = self.active.get(real);
                    let state = processes.and_then(|processes| processes.get(process));
                    if let Some(state) = state {
                        answers.insert(info(real, process, state));
                    }
                }
                Query::AllProcesses => {
                    for (real, processes) in &self.active {
                        processes
                            .iter()
                            .for_each(|(name, process)| answers.insert(info(real, name, process)));
                    }
                }
            }
        }
        answers
    }
}

/// The daemon, the proxy's state, and what clients know.
struct World {
    daemon: Daemon,
    registry: Registry,
    intent: Vec<Event>,
    clock: i64,
    /// The members that clients got replies about.
    expected_members: BTreeSet<(String, String)>,
    numbers: BTreeSet<u64>,
    configured: Vec<ConfiguredGroup>,
    persist_file: Contents,
    programs: Vec<Change>,
    counts: BTreeMap<&'static str, usize>,
    /// Groups that another client has removed directly on the daemon.
    removed: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        let mut programs = Vec::new();
        for group in GROUPS {
            for (name, numprocs) in [("a", 1), ("b", 2), ("c", 3), ("d", 1)] {
                programs.push(program(group, name, numprocs));
            }
        }
        World {
            daemon: Daemon::start(),
            registry: Registry::default(),
            intent: Vec::new(),
            clock: 0,
            expected_members: BTreeSet::new(),
            numbers: BTreeSet::new(),
            configured: configured(),
            persist_file: Contents::default(),
            programs,
            counts: BTreeMap::new(),
            removed: BTreeSet::new(),
        }
    }

    fn count(&mut self, case: &'static str) {
        *self.counts.entry(case).or_default() += 1;
    }

    fn apply(&mut self, events: Vec<Event>) {
        events
            .into_iter()
            .for_each(|event| self.registry.apply(event));
    }

    fn random_change(&self, dice: &mut Dice) -> Change {
        let group = GROUPS[dice.roll(GROUPS.len())];
        match dice.roll(8) {
            0 => Change::AddGroup {
                name: Name::parse(group).unwrap(),
                priority: 5,
            },
            1 => Change::RemoveGroup {
                name: group.to_owned(),
            },
            2..=4 if self.registry.members().count() < 14 => {
                self.programs[dice.roll(self.programs.len())].clone()
            }
            _ => {
                let members: Vec<_> = self.registry.members().collect();
                if members.is_empty() || dice.roll(8) == 0 {
                    removal("web", USER_PROCESS)
                } else {
                    let member = members[dice.roll(members.len())];
                    if member.is_placed() && dice.roll(4) == 0 {
                        Change::RemovePlaced {
                            group: member.group.clone(),
                            real: member.real.clone(),
                            processes: Vec::new(),
                        }
                    } else {
                        removal(&member.group, &member.process)
                    }
                }
            }
        }
    }

    /// Makes one random change. It may be interrupted before the daemon acts, or before its results arrive.
    fn change(&mut self, dice: &mut Dice) {
        let changes = [self.random_change(dice)];
        let names = match &changes[0] {
            Change::AddProgram(program) => program.process_names().unwrap(),
            _ => Vec::new(),
        };
        let names = [names];
        let queries = plan::queries(&self.registry, &changes, &names);
        let answers = self.daemon.answer(&queries);
        let first = self.registry.next();
        let foreign_groups = BTreeSet::new();
        let planner = Planner::new(
            &self.registry,
            &self.configured,
            &answers,
            first,
            false,
            &foreign_groups,
        );
        let draft = Draft::new(planner, &changes, &names.map(Ok));
        self.apply(draft.corrections);
        self.apply(vec![Event::Next(draft.next)]);
        let Some(Ok(plan)) = draft.plans.into_iter().next() else {
            return self.count("refused");
        };
        if let Plan::Place { real, .. } = &plan {
            let number = number_of_real_name(real).unwrap();
            assert!(self.numbers.insert(number), "{real} was used before");
        }
        if matches!(plan, Plan::Fill { ref group, .. } if self.daemon.active.get(group).is_some_and(|processes| !processes.is_empty()))
        {
            return self.count("not empty");
        }
        let needs_marker = plan.needs_marker() && self.registry.marker().is_none();
        let marker = needs_marker.then(|| MARKER.to_owned());
        self.intent = marker.iter().cloned().map(Event::Marker).collect();
        self.intent.extend(plan.events());
        let plans = [Some(plan)];
        match dice.roll(12) {
            0 => {
                self.count("interrupted before the calls");
                return self.interrupt();
            }
            1 => {
                self.count("restarted while the file was there");
                self.daemon = Daemon::default();
                self.daemon.reload(&plans);
                if !needs_marker {
                    self.daemon.last_read.remove(MARKER);
                }
                self.daemon.active = self.daemon.last_read.clone();
                return self.handle_restart();
            }
            _ => {}
        }
        self.daemon.reload(&plans);
        let pending = plans.iter().flatten().map(|plan| (0, plan));
        let script = Script::compose(marker, pending);
        let results: Vec<CallResult> = script
            .calls
            .iter()
            .map(|call| self.daemon.call(call))
            .collect();
        if dice.roll(12) == 0 {
            self.count("interrupted after the calls");
            return self.interrupt();
        }
        let verdict = script.interpret(&plans, &results, &self.registry);
        for (_, repair) in verdict.repairs {
            self.repair(repair);
        }
        self.apply(verdict.events);
        self.intent.clear();
        self.count(match verdict.outcomes[0].1 {
            Ok(()) => "succeeded",
            Err(_) => "refused by the daemon",
        });
        self.expected_members = self.members();
    }

    fn repair(&mut self, repair: Repair) {
        self.count("repaired");
        match repair {
            Repair::StopHidden { real } => {
                let hidden: Vec<String> = self
                    .registry
                    .unhide_events(&real)
                    .into_iter()
                    .filter_map(|event| match event {
                        Event::Shown { process, .. } => Some(process),
                        _ => None,
                    })
                    .collect();
                for process in hidden {
                    let processes = self.daemon.active.get_mut(&real).unwrap();
                    processes.get_mut(&process).unwrap().0 = ProcessState::Stopped;
                }
            }
            Repair::AddBack { reals } => {
                for real in reals {
                    let members = self.registry.members_in(&real);
                    let processes = stopped(members.map(|member| member.process.as_str()));
                    if !processes.is_empty() || self.registry.added_group(&real).is_some() {
                        self.daemon.active.insert(real, processes);
                    }
                }
            }
            Repair::AddEmpty { group, .. } => {
                self.daemon.active.insert(group, Processes::new());
            }
        }
    }

    fn reconcile(&self, mode: Mode) -> reconcile::Reconciliation {
        let inputs = Inputs {
            registry: &self.registry,
            intent: &self.intent,
            persist_file: &self.persist_file,
            configured: &self.configured,
            own: &[MARKER.to_owned()],
        };
        let answers = self.daemon.answer(&reconcile::queries(inputs, mode));
        reconcile(inputs, &answers, mode)
    }

    /// Applies a reconciliation as the engine does.
    fn recover(&mut self, mode: Mode) {
        let reconciliation = self.reconcile(mode);
        for name in &reconciliation.remove {
            self.daemon.active.remove(name);
        }
        for name in &reconciliation.recreate {
            let group = configured().into_iter().find(|group| group.name == *name);
            let processes = stopped(group.unwrap().processes.iter().map(String::as_str));
            self.daemon.active.insert(name.clone(), processes);
        }
        for (name, _) in &reconciliation.restore {
            self.daemon.active.insert(name.clone(), Processes::new());
        }
        self.registry = reconciliation.registry;
        self.intent.clear();
        self.expected_members = self.members();
    }

    /// Interrupts the change: recovery closes the intent, and a check for losses follows.
    fn interrupt(&mut self) {
        self.recover(Mode::SameEpoch);
        self.recover(Mode::SameEpoch);
    }

    /// Handles a restart of the daemon. It must not have any group of the proxy afterwards.
    fn handle_restart(&mut self) {
        self.count("restarted");
        self.recover(Mode::NewEpoch);
        let is_generated_or_added =
            |name: &String| is_generated(name) || ["own", "more"].contains(&name.as_str());
        let remaining: Vec<_> = self
            .daemon
            .active
            .keys()
            .filter(|name| is_generated_or_added(name))
            .collect();
        assert!(
            remaining.is_empty(),
            "{remaining:?} remains of the former epoch"
        );
    }

    /// Another client acts directly on the daemon.
    fn act_as_other_client(&mut self, dice: &mut Dice) {
        let names: Vec<String> = self.daemon.active.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = names[dice.roll(names.len())].clone();
        self.clock += 1;
        let removes = dice.roll(6) == 0 && name != MARKER;
        if removes {
            self.count("somebody removed a group");
            self.removed.insert(name.clone());
            let call = (REMOVE, vec![name.as_str().into()]);
            let _ = self.daemon.call(&call);
        } else if let Some(processes) = self.daemon.active.get_mut(&name) {
            for (state, start) in processes.values_mut() {
                *state = match dice.roll(3) {
                    0 => {
                        *start = self.clock;
                        ProcessState::Running
                    }
                    1 => *state,
                    _ => ProcessState::Stopped,
                };
            }
        }
        self.unhide_started();
        self.recover(Mode::SameEpoch);
    }

    /// Unhides processes of the user's groups that another client started, as calls that list processes do.
    fn unhide_started(&mut self) {
        let hidden = self.registry.hidden();
        let started = hidden.filter(|(real, process, start)| {
            let processes = self.daemon.active.get(*real);
            let info = processes.and_then(|processes| processes.get(*process));
            let is_seen = info.is_some_and(|(state, at)| !is_still_hidden(*start, *state, *at));
            is_seen && self.registry.owner(real).is_none()
        });
        let events: Vec<Event> = started
            .map(|(group, process, _)| Event::Shown {
                group: group.to_owned(),
                process: process.to_owned(),
            })
            .collect();
        self.apply(events);
    }

    /// The regular check for losses. It may only find groups that another client has removed.
    fn check_losses(&mut self) {
        for event in self.reconcile(Mode::SameEpoch).events {
            match &event {
                Event::GroupGone { name } => {
                    assert!(self.removed.contains(name), "{name} was lost");
                }
                other => panic!("{other:?} is found late"),
            }
        }
        self.recover(Mode::SameEpoch);
    }

    fn members(&self) -> BTreeSet<(String, String)> {
        let members = self.registry.members();
        members
            .map(|member| (member.group.clone(), member.process.clone()))
            .collect()
    }

    fn ensure_invariants(&self) {
        for member in self.registry.members() {
            let processes = self.daemon.active.get(&member.real);
            let is_there =
                processes.is_some_and(|processes| processes.contains_key(&member.process));
            assert!(is_there, "{} is not in the daemon", member.real_namespec());
        }
        for name in self.registry.added_groups() {
            let is_there = self.daemon.active.contains_key(name)
                || self
                    .registry
                    .members_of(name)
                    .any(crate::registry::Member::is_placed);
            assert!(is_there, "{name} is not in the daemon");
        }
        for real in self.daemon.active.keys().filter(|name| *name != MARKER) {
            let is_ours = self.registry.owner(real).is_some()
                && self.registry.members_in(real).next().is_some();
            assert_eq!(is_generated(real), is_ours, "{real} is nobody's");
        }
        assert_eq!(self.expected_members, self.members());
        assert!(self.intent.is_empty());
        // Hidden processes alone need no marker: no client expects them.
        let holds = self.registry.members().next().is_some()
            || self.registry.added_groups().next().is_some();
        assert!(
            self.registry.marker().is_some() || !holds,
            "the epoch is not marked"
        );
        let again = self.reconcile(Mode::SameEpoch);
        assert!(again.events.is_empty(), "{:?}", again.events);
    }
}

#[test]
fn members_survive_random_changes_crashes_and_restarts() {
    let mut dice = Dice(7);
    let mut world = World::new();
    for _ in 0..STEPS {
        match dice.roll(40) {
            0 => {
                world.daemon = Daemon::start();
                world.daemon.active.remove(MARKER);
                world.handle_restart();
            }
            1..=8 => world.act_as_other_client(&mut dice),
            _ => world.change(&mut dice),
        }
        world.check_losses();
        world.ensure_invariants();
    }
    for case in [
        "succeeded",
        "refused",
        "refused by the daemon",
        "repaired",
        "interrupted before the calls",
        "interrupted after the calls",
        "restarted",
        "restarted while the file was there",
        "somebody removed a group",
    ] {
        let count = world.counts.get(case).copied().unwrap_or_default();
        assert!(count > 20, "{case}: {count} of {STEPS}");
    }
}
