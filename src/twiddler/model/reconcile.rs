//! Reconciliation: compares the registry with the daemon's state, and decides what the registry must be and
//! what the daemon must do.
//!
//! One pure function handles a start of the proxy, a restart of the daemon, an interrupted change, and a
//! change by another client. It is idempotent: after its result was applied, it finds no difference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::answers::{Answers, Query};
use crate::daemon::ProcessInfo;
use crate::daemon::conf::ConfiguredGroup;
use crate::persist::{Contents, real_groups};
use crate::registry::{
    Event, Member, Registry, Rendered, group_of_real_name, is_generated, number_of_real_name,
    real_name,
};

/// The situation of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The proxy has started: it adopts generated groups that the journal does not have.
    FirstStart,
    /// The daemon is in the same epoch.
    SameEpoch,
    /// The daemon restarted without a persist file. It has none of the proxy's groups, except those of a
    /// generated file that was in place when it started.
    NewEpoch,
    /// The daemon restarted and read the persist file, and `--persist` is off now.
    NewEpochPersisted,
    /// The daemon restarted and read the persist file. It must have all additions that clients got replies
    /// about.
    NewEpochPersistent,
}

/// The result of a reconciliation.
#[derive(Debug, Default)]
pub struct Reconciliation {
    /// The new registry.
    pub registry: Registry,
    /// The events that lead from the old registry to the new one, if the epoch is the same.
    pub events: Vec<Event>,
    /// The processes to stop.
    pub stop: Vec<ProcessInfo>,
    /// The groups to stop and remove.
    pub remove: BTreeSet<String>,
    /// The user's own groups among `remove`. They are added again as the user's files define them.
    pub recreate: BTreeSet<String>,
    /// The groups to add again as empty groups, with their priorities, because an interrupted change
    /// removed them.
    pub restore: Vec<(String, i64)>,
}

/// The inputs of [`reconcile`] besides the daemon's answers.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The changes that clients got replies about.
    pub registry: &'a Registry,
    /// The steps of the open intent.
    pub intent: &'a [Event],
    /// The contents of the persist file, now and when the proxy started.
    pub persist_file: &'a Contents,
    /// The groups that the user's files define.
    pub configured: &'a [ConfiguredGroup],
    /// The proxy's own groups: the epoch marker, and the group that tests the delivery.
    pub own: &'a [String],
}

/// The queries whose answers [`reconcile`] needs.
pub fn queries(inputs: Inputs<'_>, mode: Mode) -> Vec<Query> {
    let registry = inputs.registry;
    let mut groups: BTreeSet<String> = BTreeSet::new();
    let mut queries = vec![Query::AllProcesses];
    match mode {
        Mode::FirstStart => groups.extend(inputs.unregistered_persisted_groups()),
        Mode::SameEpoch if inputs.intent.is_empty() => {
            let names = registry.added_groups().chain(registry.marker());
            groups.extend(names.map(str::to_owned));
        }
        Mode::SameEpoch => {
            let about = inputs.intent.iter();
            return about
                .flat_map(|event| queries_about(registry, event))
                .collect();
        }
        Mode::NewEpoch => groups.extend(inputs.all_names()),
        Mode::NewEpochPersisted => groups.extend(registry.added_groups().map(str::to_owned)),
        Mode::NewEpochPersistent => {
            groups.extend(inputs.all_names());
            groups.extend(inputs.persist_file.groups.keys().cloned());
        }
    }
    queries.extend(groups.into_iter().map(Query::Group));
    queries
}

/// Reconciles the `inputs` with the daemon's `answers`.
pub fn reconcile(inputs: Inputs<'_>, answers: &Answers, mode: Mode) -> Reconciliation {
    let registry = inputs.registry;
    match mode {
        Mode::FirstStart => in_same_epoch(registry, adoptions(inputs, answers)),
        Mode::SameEpoch if inputs.intent.is_empty() => {
            in_same_epoch(registry, losses(registry, answers))
        }
        Mode::SameEpoch => Reconciliation {
            restore: groups_to_restore(inputs, answers),
            ..in_same_epoch(registry, executed_steps(inputs, answers))
        },
        Mode::NewEpoch => without_additions(inputs, answers),
        Mode::NewEpochPersisted => with_persist_file(inputs, answers, false),
        Mode::NewEpochPersistent => with_persist_file(inputs, answers, true),
    }
}

/// The events that adopt generated groups, and that mark their numbers as used.
fn adoptions(inputs: Inputs<'_>, answers: &Answers) -> Vec<Event> {
    let mut events = inputs.unregistered(answers);
    let numbers = answers.processes.keys();
    let numbers = numbers.filter_map(|(real, _)| number_of_real_name(real));
    let next = numbers.max().map(|highest| highest + 1);
    let is_new = |next: &u64| *next > inputs.registry.next();
    events.extend(next.filter(is_new).map(Event::Next));
    events
}

/// The reconciliation for a daemon that restarted without a persist file.
fn without_additions(inputs: Inputs<'_>, answers: &Answers) -> Reconciliation {
    let filled = inputs.filled(answers);
    let mut remove = inputs.surplus(answers, inputs.all_names(), &BTreeSet::new());
    remove.extend(filled.iter().cloned());
    let mut registry = inputs.registry.clone();
    registry.clear();
    Reconciliation {
        registry,
        remove,
        recreate: filled,
        ..Reconciliation::default()
    }
}

/// The reconciliation for a daemon that restarted and read the persist file.
fn with_persist_file(inputs: Inputs<'_>, answers: &Answers, persists: bool) -> Reconciliation {
    let registry = in_new_epoch(inputs, answers, persists);
    let hidden = registry.hidden();
    let stop = hidden
        .filter_map(|(real, process, _)| answers.process(real, process))
        .filter(|info| !info.state.is_stopped())
        .cloned()
        .collect();
    let remove = if persists {
        let mut names: BTreeSet<String> = inputs.all_names();
        names.extend(inputs.persist_file.groups.keys().cloned());
        inputs.surplus(answers, names, &real_groups(&registry))
    } else {
        BTreeSet::new()
    };
    Reconciliation {
        registry,
        stop,
        remove,
        ..Reconciliation::default()
    }
}

/// The groups whose presence shows that the epoch is the same. Without a persist file, no two epochs have a
/// real group of the same number, so a real group is as good a sign as the marker.
pub fn signs(registry: &Registry, configured: &[ConfiguredGroup], persists: bool) -> Vec<String> {
    let mut signs: Vec<String> = registry.marker().map(str::to_owned).into_iter().collect();
    if persists {
        return signs;
    }
    if signs.is_empty() {
        // The journal has lost the line about the marker.
        let is_not_configured = |name: &&str| configured.iter().all(|group| group.name != **name);
        signs.extend(
            registry
                .added_groups()
                .filter(is_not_configured)
                .map(str::to_owned),
        );
    }
    let placed = registry.members().filter(|member| member.is_placed());
    let reals: BTreeSet<&String> = placed.map(|member| &member.real).collect();
    signs.extend(reals.into_iter().cloned());
    signs
}

/// Returns whether the daemon lacks something that the registry has, according to its answers about all
/// processes and about the added groups.
pub fn has_losses(registry: &Registry, answers: &Answers) -> bool {
    !losses(registry, answers).is_empty()
}

/// Returns the added groups that contain processes which this proxy did not add. Somebody has recreated
/// them directly on the daemon.
pub fn foreign_groups(registry: &Registry, answers: &Answers) -> BTreeSet<String> {
    let processes = answers.processes.values();
    let is_foreign = |info: &&ProcessInfo| {
        registry.added_group(&info.group).is_some()
            && registry.member(&info.group, &info.name).is_none()
            && registry.hidden_start(&info.group, &info.name).is_none()
    };
    let foreign = processes.filter(is_foreign);
    foreign.map(|info| info.group.clone()).collect()
}

/// Returns the events for placed members whose real groups the daemon does not have any more.
pub fn lost_placed_members(registry: &Registry, answers: &Answers) -> Vec<Event> {
    let placed = registry.members().filter(|member| member.is_placed());
    placed
        .filter(|member| !answers.is_active(&member.real))
        .map(Member::removal)
        .collect()
}

fn in_same_epoch(registry: &Registry, events: Vec<Event>) -> Reconciliation {
    let mut registry = registry.clone();
    for event in &events {
        registry.apply(event.clone());
    }
    Reconciliation {
        registry,
        events,
        ..Reconciliation::default()
    }
}

impl Inputs<'_> {
    fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|group| group.name == name)
    }

    /// Whether the open intent removes this member.
    fn is_leaving(&self, member: &Member) -> bool {
        self.intent.iter().any(|event| match event {
            Event::Left { group, process } => (group, process) == (&member.group, &member.process),
            Event::Hidden { group, process, .. } => {
                (group, process) == (&member.real, &member.process)
            }
            _ => false,
        })
    }

    /// The names of all groups that are in the registry, in the open intent, or the proxy's own.
    fn all_names(&self) -> BTreeSet<String> {
        let reals = self.registry.members().map(|member| member.real.clone());
        let added_by_intent = self.intent.iter().filter_map(|event| match event {
            Event::Group { name, .. } => Some(name.clone()),
            Event::Joined(member) => Some(member.real.clone()),
            _ => None,
        });
        let added = self.registry.added_groups().map(str::to_owned);
        let own = self.own.iter().cloned();
        added
            .chain(reals)
            .chain(added_by_intent)
            .chain(own)
            .collect()
    }

    /// The groups to remove: those in `names` or with a generated name that the daemon has, except those in
    /// `expected_groups`.
    fn surplus(
        &self,
        answers: &Answers,
        names: BTreeSet<String>,
        expected_groups: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let generated = answers.processes.keys().map(|(real, _)| real);
        let generated = generated.filter(|real| is_generated(real)).cloned();
        let active = names.into_iter().filter(|name| answers.is_active(name));
        generated
            .chain(active)
            .filter(|name| !expected_groups.contains(name) && !self.is_configured(name))
            .collect()
    }

    /// The user's groups that are empty by the files, and that the open intent has filled.
    fn filled(&self, answers: &Answers) -> BTreeSet<String> {
        let is_filled = |name: &str| {
            self.intent.iter().any(|event| {
                matches!(event, Event::Joined(member) if member.real == name
                    && answers.process(name, &member.process).is_some())
            })
        };
        let empty = self.configured.iter().filter(|group| group.empty);
        let filled = empty.filter(|group| is_filled(&group.name));
        filled.map(|group| group.name.clone()).collect()
    }

    /// Groups of the persist file that the registry does not have.
    fn unregistered_persisted_groups(&self) -> impl Iterator<Item = String> {
        let names = self.persist_file.groups.keys();
        names
            .filter(|name| !self.is_configured(name) && self.registry.added_group(name).is_none())
            .cloned()
    }

    /// The groups and processes of this proxy that the daemon has and the registry does not.
    fn unregistered(&self, answers: &Answers) -> Vec<Event> {
        let mut unregistered = unregistered(
            self.registry,
            |name| self.is_configured(name),
            self.persist_file,
            answers,
        );
        let groups: BTreeSet<String> = self.unregistered_persisted_groups().collect();
        unregistered.extend(self.unregistered_groups(&groups, answers));
        unregistered
    }

    /// The events for those of `groups` that the daemon has, with the processes that live in them.
    fn unregistered_groups(&self, groups: &BTreeSet<String>, answers: &Answers) -> Vec<Event> {
        let daemon_has = |name: &String| groups.contains(name) && answers.is_active(name);
        let mut unregistered = Vec::new();
        for (name, priority) in &self.persist_file.groups {
            if !daemon_has(name) {
                continue;
            }
            unregistered.push(Event::Group {
                name: name.clone(),
                priority: *priority,
            });
            let processes: BTreeSet<&String> = answers
                .processes
                .values()
                .filter(|info| info.group == *name)
                .filter(|info| self.registry.hidden_start(name, &info.name).is_none())
                .map(|info| &info.name)
                .collect();
            // A single process has one section. Several have one each, in the same order, or share one that
            // cannot be divided without the program.
            for (number, process) in processes.into_iter().enumerate() {
                let section = self.persist_file.own_section(name, number);
                unregistered.push(Event::Joined(Arc::new(Member {
                    group: name.clone(),
                    process: process.clone(),
                    real: name.clone(),
                    index: 0,
                    program: None,
                    section,
                    rendered: Rendered::default(),
                })));
            }
        }
        unregistered
    }
}

fn queries_about(registry: &Registry, event: &Event) -> Vec<Query> {
    let process = |real: &str, process: &str| Query::Process {
        real: real.to_owned(),
        process: process.to_owned(),
    };
    match event {
        Event::Marker(name) | Event::Group { name, .. } => vec![Query::Group(name.clone())],
        Event::GroupGone { name } => {
            let placed = registry
                .members_of(name)
                .filter(|member| member.is_placed());
            let reals = placed.map(|member| Query::Group(member.real.clone()));
            std::iter::once(Query::Group(name.clone()))
                .chain(reals)
                .collect()
        }
        Event::Joined(member) => vec![
            process(&member.real, &member.process),
            Query::Group(member.group.clone()),
        ],
        Event::Left {
            group,
            process: name,
        } => vec![
            process(registry.real_group(group, name), name),
            Query::Group(group.clone()),
        ],
        Event::Hidden { .. } | Event::Shown { .. } | Event::Next(_) => Vec::new(),
    }
}

/// The events for the steps of the intent that the daemon has executed.
fn executed_steps(inputs: Inputs<'_>, answers: &Answers) -> Vec<Event> {
    let is_addition = |event: &Event| matches!(event, Event::Group { .. } | Event::Joined(_));
    // The marker is added together with the other groups. If the daemon lacks it, a group of the same name
    // is somebody else's.
    let is_unread = inputs
        .intent
        .iter()
        .any(|event| matches!(event, Event::Marker(name) if !answers.is_active(name)));
    let steps = inputs.intent.iter();
    steps
        .filter(|event| !(is_unread && is_addition(event)))
        .flat_map(|event| executed_events(inputs.registry, event, answers))
        .collect()
}

/// The events for one step of the intent.
fn executed_events(registry: &Registry, event: &Event, answers: &Answers) -> Vec<Event> {
    let daemon_has = |real: &str, process: &str| answers.process(real, process).is_some();
    let is_executed = match event {
        Event::Marker(name) | Event::Group { name, .. } => answers.is_active(name),
        Event::GroupGone { name } => {
            let placed = registry
                .members_of(name)
                .filter(|member| member.is_placed());
            let (present, missing): (Vec<_>, Vec<_>) =
                placed.partition(|member| answers.is_active(&member.real));
            if answers.is_active(name) || !present.is_empty() {
                return missing.into_iter().map(Member::removal).collect();
            }
            true
        }
        Event::Joined(member) => daemon_has(&member.real, &member.process),
        Event::Left { group, process } => !daemon_has(registry.real_group(group, process), process),
        // Hiding requires no call to the daemon.
        Event::Hidden { .. } => true,
        Event::Shown { .. } | Event::Next(_) => false,
    };
    if is_executed {
        vec![event.clone()]
    } else {
        Vec::new()
    }
}

/// The groups that were removed to be recreated, and were not added again: the daemon had not read their
/// sections when the proxy died.
fn groups_to_restore(inputs: Inputs<'_>, answers: &Answers) -> Vec<(String, i64)> {
    let affected = inputs.intent.iter().filter_map(|event| match event {
        Event::Joined(member) if !member.is_placed() => Some(&member.group),
        Event::Left { group, .. } => Some(group),
        _ => None,
    });
    let affected: BTreeSet<&String> = affected.filter(|group| !answers.is_active(group)).collect();
    let added = |group: &String| Some((group.clone(), inputs.registry.added_group(group)?));
    affected.into_iter().filter_map(added).collect()
}

/// The events that adopt real groups which the daemon has and the registry does not. Their names tell which
/// group their members belong to. `is_configured` returns whether the user's files define a group.
fn unregistered(
    registry: &Registry,
    is_configured: impl Fn(&str) -> bool,
    persist_file: &Contents,
    answers: &Answers,
) -> Vec<Event> {
    let mut infos: Vec<&ProcessInfo> = answers
        .processes
        .values()
        .filter(|info| registry.owner(&info.group).is_none())
        .filter(|info| !is_configured(&info.group))
        .collect();
    // Of two processes with the same name, the older was hidden before the newer was added.
    infos.sort_by_key(|info| (number_of_real_name(&info.group), &info.name));
    let mut hidden = Vec::new();
    let mut joined = Vec::new();
    let mut used_names = BTreeSet::new();
    let mut indices: BTreeMap<&str, u32> = BTreeMap::new();
    for info in infos.into_iter().rev() {
        let Some(group) = group_of_real_name(&info.group) else {
            continue;
        };
        let section = persist_file.placed_section(&info.group, &info.name);
        let was_removed = section.is_none() && persist_file.has_real_group(&info.group);
        let is_used =
            registry.member(group, &info.name).is_some() || !used_names.insert((group, &info.name));
        if was_removed || is_used {
            hidden.push(hide(info));
            continue;
        }
        let index = indices.entry(&info.group).or_default();
        joined.push(Event::Joined(Arc::new(Member {
            group: group.to_owned(),
            process: info.name.clone(),
            real: info.group.clone(),
            index: *index,
            program: None,
            section,
            rendered: Rendered::default(),
        })));
        *index += 1;
    }
    // Hidden processes come first, because a member may have the name of a hidden process.
    let mut unregistered = hidden;
    unregistered.extend(joined);
    unregistered
}

/// The registry for a new epoch in which the daemon read the persist file, according to its answers about
/// all processes and about the added groups. With `persists`, it has also the additions that the daemon
/// lacks, except members that the open intent removes: these are not in the persist file any more.
fn in_new_epoch(inputs: Inputs<'_>, answers: &Answers, persists: bool) -> Registry {
    let old_registry = inputs.registry;
    let mut next = old_registry.next();
    let mut number = |group: &str| {
        next += 1;
        real_name(group, next - 1)
    };
    let mut events = Vec::new();
    for name in old_registry.added_groups() {
        if (persists || answers.is_active(name))
            && let Some(priority) = old_registry.added_group(name)
        {
            let name = name.to_owned();
            events.push(Event::Group { name, priority });
        }
    }
    // Hidden processes come first, because a member may have the name of a hidden process.
    events.extend(hidden_in_new_epoch(old_registry, answers, persists));
    let mut recreate: BTreeMap<String, String> = BTreeMap::new();
    for member in old_registry.members() {
        let present = answers.process(&member.real, &member.process).is_some();
        let should_exist = persists && !inputs.is_leaving(member);
        let can_be_added = should_exist && member.is_reproducible() && !member.is_in_files();
        if !present && !can_be_added {
            continue;
        }
        // The user's files define the groups of the user, and such a group was filled with one program
        // only. A real group that the daemon has cannot get further members.
        let needs_new_group = if member.is_placed() {
            answers.is_active(&member.real)
        } else {
            old_registry.added_group(&member.group).is_none()
        };
        let mut member = member.clone();
        if !present && needs_new_group {
            let real = recreate.entry(member.real.clone());
            let real = real.or_insert_with(|| number(&member.group));
            member.real.clone_from(real);
        }
        events.push(Event::Joined(Arc::new(member)));
    }
    let mut new_registry = Registry::default();
    new_registry.apply(Event::Next(next));
    events
        .into_iter()
        .for_each(|event| new_registry.apply(event));
    new_registry
}

/// The processes of the daemon that clients must not see: those that were hidden before, and further
/// processes in real groups, because the daemon read an older file. With `persists`, added groups that
/// differ are recreated instead.
fn hidden_in_new_epoch(old_registry: &Registry, answers: &Answers, persists: bool) -> Vec<Event> {
    let hidden = old_registry
        .hidden()
        .filter(|(real, _, _)| !persists || old_registry.added_group(real).is_none())
        .filter_map(|(real, process, _)| answers.process(real, process));
    let is_surplus = |info: &&ProcessInfo| {
        let mut members = old_registry.members_in(&info.group).peekable();
        let is_real = members.peek().is_some_and(|member| member.is_placed());
        is_real && members.all(|member| member.process != info.name)
    };
    let surplus = answers.processes.values().filter(is_surplus);
    hidden.chain(surplus).map(hide).collect()
}

/// The events for groups and processes that the daemon does not have any more in the same epoch, according
/// to its answers about all processes and about the added groups.
fn losses(registry: &Registry, answers: &Answers) -> Vec<Event> {
    let daemon_has = |real: &str, process: &str| answers.process(real, process).is_some();
    let members = registry
        .members()
        .filter(|member| !daemon_has(&member.real, &member.process))
        .map(Member::removal);
    // A group stays as long as the daemon has one of its members.
    let has_members = |name: &str| {
        let mut members = registry.members_of(name);
        members.any(|member| daemon_has(&member.real, &member.process))
    };
    let groups = registry
        .added_groups()
        .filter(|name| !answers.is_active(name) && !has_members(name))
        .map(|name| Event::GroupGone {
            name: name.to_owned(),
        });
    let hidden = registry
        .hidden()
        .filter(|(real, process, _)| !daemon_has(real, process))
        .map(|(real, process, _)| Event::Shown {
            group: real.to_owned(),
            process: process.to_owned(),
        });
    members.chain(groups).chain(hidden).collect()
}

fn hide(info: &ProcessInfo) -> Event {
    Event::Hidden {
        group: info.group.clone(),
        process: info.name.clone(),
        start: info.start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::ProcessState;
    use crate::registry::tests::{added, hidden, joined, registry, two};

    fn answers(processes: &[(&str, &str)], groups: &[&str]) -> Answers {
        let mut answers = Answers::default();
        for (real, process) in processes {
            let mut info = ProcessInfo::stopped(real, process, 5);
            info.state = ProcessState::Running;
            answers.insert(info);
        }
        for group in groups {
            answers.groups.insert((*group).to_owned(), true);
        }
        answers
    }

    #[test]
    fn unregistered_processes_are_adopted_by_group_name_and_persist_file() {
        let persist_file = "; web:a\n[program:web~000001~0]\ncommand=x\n\n; web:b\n\
                    [program:web~000001~1]\ncommand=y\n";
        let with_section = |process: &str, index: u32, section: &str| {
            let Event::Joined(mut member) = joined("web", process, "web~000001", index) else {
                unreachable!("it is one that joined")
            };
            Arc::make_mut(&mut member).section = Some(section.to_owned());
            Event::Joined(member)
        };
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Vec<Event>);
        let table: [Row<'_>; 6] = [
            ("", &[("web", "a"), ("other~1", "a")], vec![]),
            (
                "",
                &[("web~000001", "a"), ("web~000001", "b")],
                vec![
                    joined("web", "b", "web~000001", 0),
                    joined("web", "a", "web~000001", 1),
                ],
            ),
            // A process was removed, and its name was used again.
            (
                "",
                &[
                    ("web~000001", "a"),
                    ("web~000001", "b"),
                    ("web~000002", "a"),
                ],
                vec![
                    hidden("web~000001", "a"),
                    joined("web", "a", "web~000002", 0),
                    joined("web", "b", "web~000001", 0),
                ],
            ),
            // The file has the group, but not `c`.
            (
                persist_file,
                &[
                    ("web~000001", "a"),
                    ("web~000001", "b"),
                    ("web~000001", "c"),
                ],
                vec![
                    hidden("web~000001", "c"),
                    with_section("b", 0, "command=y\n"),
                    with_section("a", 1, "command=x\n"),
                ],
            ),
            // The file does not have the group.
            (
                persist_file,
                &[("web~000003", "c")],
                vec![joined("web", "c", "web~000003", 0)],
            ),
            // The user's own group has such a name.
            ("", &[("user~000001", "a")], vec![]),
        ];
        for (persist_file, processes, expected) in table {
            let persist_file = Contents::read(persist_file);
            let is_configured = |name: &str| name.starts_with("user");
            let answers = answers(processes, &[]);
            let unregistered =
                unregistered(&Registry::default(), is_configured, &persist_file, &answers);
            assert_eq!(unregistered, expected, "{processes:?}");
            let again = super::unregistered(
                &registry(&unregistered),
                is_configured,
                &persist_file,
                &answers,
            );
            assert!(again.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn after_a_restart_the_registry_has_what_the_daemon_read_from_its_files() {
        let group = Event::Group {
            name: "own".to_owned(),
            priority: 5,
        };
        let old_registry = [
            vec![group, hidden("web~000001", "gone"), hidden("pool", "p")],
            two(),
            vec![joined("own", "first", "own", 0)],
        ];
        let old_registry = registry(&old_registry.concat());
        let present = |registry: &Registry| -> Vec<String> {
            registry.members().map(Member::real_namespec).collect()
        };
        let covered = |registry: &Registry| -> Vec<String> {
            let hidden = registry.hidden();
            hidden
                .map(|(real, name, _)| format!("{real}:{name}"))
                .collect()
        };
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
        let table: [Row<'_>; 5] = [
            // No added group, and a removed process of the user's.
            (&[("pool", "p")], &[], &["pool:p"]),
            (&[("own", "first")], &["own:first"], &[]),
            (
                &[("web~000001", "a"), ("web~000001", "b")],
                &["web~000001:a", "web~000001:b"],
                &[],
            ),
            // An older file had further processes in the real group.
            (
                &[
                    ("web~000001", "a"),
                    ("web~000001", "b"),
                    ("web~000001", "gone"),
                    ("web~000001", "more"),
                ],
                &["web~000001:a", "web~000001:b"],
                &["web~000001:gone", "web~000001:more"],
            ),
            (&[("web~000009", "x")], &[], &[]),
        ];
        for (processes, members, hidden) in table {
            let answers = answers(processes, &["own"]);
            let persist_file = Contents::default();
            let new_registry = in_new_epoch(
                inputs(&old_registry, &[], &persist_file, &[]),
                &answers,
                false,
            );
            assert_eq!(present(&new_registry), members, "{processes:?}");
            let mut covered = covered(&new_registry);
            covered.sort();
            assert_eq!(covered, hidden, "{processes:?}");
            assert_eq!(new_registry.added_group("own"), Some(5));
            let again = in_new_epoch(
                inputs(&new_registry, &[], &persist_file, &[]),
                &answers,
                false,
            );
            assert_eq!(again.snapshot(), new_registry.snapshot(), "{processes:?}");
        }
    }

    #[test]
    fn within_an_epoch_whatever_the_daemon_lacks_is_a_loss() {
        use crate::registry::tests::left;
        let own = |name: &str| Event::Group {
            name: name.to_owned(),
            priority: 5,
        };
        let group_gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        let uncovered = |real: &str, process: &str| Event::Shown {
            group: real.to_owned(),
            process: process.to_owned(),
        };
        let known = [
            vec![own("empty"), own("own"), hidden("pool", "p")],
            two(),
            vec![
                hidden("web~000001", "c"),
                joined("own", "first", "own", 0),
                joined("own", "more", "own~000002", 0),
            ],
        ];
        let known = registry(&known.concat());
        let all = [
            ("pool", "p"),
            ("web~000001", "a"),
            ("web~000001", "b"),
            ("web~000001", "c"),
            ("own", "first"),
            ("own~000002", "more"),
        ];
        let without = |groups: &[&str]| -> Vec<(&str, &str)> {
            let left = all.iter().filter(|(real, _)| !groups.contains(real));
            left.copied().collect()
        };
        type Row<'a> = (&'a [&'a str], &'a [&'a str], Vec<Event>);
        let table: [Row<'_>; 5] = [
            (&[], &["empty", "own"], vec![]),
            (
                &["web~000001"],
                &["empty", "own"],
                vec![
                    left("web", "a"),
                    left("web", "b"),
                    uncovered("web~000001", "c"),
                ],
            ),
            (&["own"], &["empty"], vec![left("own", "first")]),
            (
                &["own", "own~000002"],
                &[],
                vec![
                    left("own", "first"),
                    left("own", "more"),
                    group_gone("empty"),
                    group_gone("own"),
                ],
            ),
            (&["pool"], &["empty", "own"], vec![uncovered("pool", "p")]),
        ];
        for (groups, active, expected) in table {
            let answers = answers(&without(groups), active);
            let result = losses(&known, &answers);
            assert_eq!(result, expected, "{groups:?}");
            let mut after = known.clone();
            result.into_iter().for_each(|event| after.apply(event));
            assert!(losses(&after, &answers).is_empty(), "{groups:?}");
        }
    }

    #[test]
    fn persisted_members_that_the_daemon_lacks_stay_in_the_registry() {
        use crate::registry::tests::left;
        let with_section = |event: Event| match event {
            Event::Joined(mut member) => {
                Arc::make_mut(&mut member).section = Some("command=x\n".to_owned());
                Event::Joined(member)
            }
            other => other,
        };
        let own = vec![
            joined("empty", "a", "empty", 0),
            joined("empty", "b", "empty", 1),
            joined("part", "d", "part~000004", 0),
            joined("part", "e", "part~000004", 1),
            joined("lost", "c", "lost~000003", 0),
        ];
        let mut events: Vec<Event> = own.into_iter().map(with_section).collect();
        events.extend(two());
        events.push(Event::Next(8));
        let old_registry = registry(&events);
        let present = |answers: &Answers, intent: &[Event]| -> Vec<String> {
            let persist_file = Contents::default();
            let new_registry = in_new_epoch(
                inputs(&old_registry, intent, &persist_file, &[]),
                answers,
                true,
            );
            new_registry.members().map(Member::real_namespec).collect()
        };
        // Both members of the user's empty group move to one real group. Two members have no known
        // definition.
        assert_eq!(
            present(&answers(&[], &[]), &[]),
            [
                "empty~000008:a",
                "empty~000008:b",
                "lost~000003:c",
                "part~000004:d",
                "part~000004:e"
            ]
        );
        let part = answers(&[("part~000004", "d")], &["part~000004"]);
        // An active group cannot get a member.
        assert!(present(&part, &[]).contains(&"part~000009:e".to_owned()));
        for leaves in [left("part", "e"), hidden("part~000004", "e")] {
            let left = present(&part, &[leaves]);
            assert!(left.contains(&"part~000004:d".to_owned()), "{left:?}");
            assert!(left.iter().all(|name| !name.ends_with(":e")), "{left:?}");
        }
    }

    fn inputs<'a>(
        registry: &'a Registry,
        intent: &'a [Event],
        persist_file: &'a Contents,
        configured: &'a [ConfiguredGroup],
    ) -> Inputs<'a> {
        Inputs {
            registry,
            intent,
            persist_file,
            configured,
            own: &[],
        }
    }

    fn own(name: &str) -> Event {
        Event::Group {
            name: name.to_owned(),
            priority: 5,
        }
    }

    #[test]
    fn an_intent_is_closed_with_the_steps_that_the_daemon_has_executed() {
        use crate::registry::tests::left;
        let marker = || Event::Marker("m".to_owned());
        let group_gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        let old_registry = [two(), vec![own("own"), joined("own", "p", "own", 0)]];
        let old_registry = registry(&old_registry.concat());
        let comes = || joined("web", "c", "web~000002", 0);
        type Row<'a> = (
            Vec<Event>,
            &'a [(&'a str, &'a str)],
            &'a [&'a str],
            Vec<Event>,
            &'a [&'a str],
        );
        let table: [Row<'_>; 19] = [
            (vec![], &[], &["own"], vec![], &[]),
            (vec![Event::Next(3)], &[], &[], vec![], &[]),
            (vec![own("new")], &[], &["new"], vec![own("new")], &[]),
            (vec![own("new")], &[], &[], vec![], &[]),
            (
                vec![comes()],
                &[("web~000002", "c")],
                &[],
                vec![comes()],
                &[],
            ),
            (vec![comes()], &[], &["web"], vec![], &[]),
            // Without the marker, a group of that name is somebody else's.
            (
                vec![marker(), comes()],
                &[("web~000002", "c")],
                &[],
                vec![],
                &[],
            ),
            (
                vec![marker(), comes()],
                &[("web~000002", "c")],
                &["m"],
                vec![marker(), comes()],
                &[],
            ),
            (vec![marker(), own("new")], &[], &["new"], vec![], &[]),
            (vec![marker(), comes()], &[], &["m"], vec![marker()], &[]),
            (
                vec![left("web", "a")],
                &[],
                &["web"],
                vec![left("web", "a")],
                &[],
            ),
            (
                vec![left("web", "a")],
                &[("web~000001", "a")],
                &["web"],
                vec![],
                &[],
            ),
            // A group that was removed and not added again.
            (
                vec![left("own", "p")],
                &[],
                &[],
                vec![left("own", "p")],
                &["own"],
            ),
            (
                vec![left("own", "p")],
                &[],
                &["own"],
                vec![left("own", "p")],
                &[],
            ),
            (
                vec![joined("own", "q", "own", 0)],
                &[],
                &[],
                vec![],
                &["own"],
            ),
            // Hiding requires no call to the daemon.
            (
                vec![hidden("web~000001", "a")],
                &[],
                &[],
                vec![hidden("web~000001", "a")],
                &[],
            ),
            (
                vec![group_gone("web")],
                &[],
                &[],
                vec![group_gone("web")],
                &[],
            ),
            (
                vec![group_gone("web")],
                &[],
                &["web"],
                vec![left("web", "a"), left("web", "b")],
                &[],
            ),
            (
                vec![group_gone("web")],
                &[],
                &["web", "web~000001"],
                vec![],
                &[],
            ),
        ];
        let persist_file = Contents::default();
        for (intent, processes, active, expected, restored) in table {
            let intent = if intent.is_empty() {
                vec![Event::Next(1)]
            } else {
                intent
            };
            let answers = answers(processes, active);
            let known = inputs(&old_registry, &intent, &persist_file, &[]);
            let result = reconcile(known, &answers, Mode::SameEpoch);
            assert_eq!(result.events, expected, "{intent:?}");
            let names: Vec<&str> = result
                .restore
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            assert_eq!(names, restored, "{intent:?}");
        }
    }

    #[test]
    fn a_new_epoch_empties_the_registry_and_removes_generated_groups() {
        let empty = |name: &str| ConfiguredGroup {
            name: name.to_owned(),
            priority: 999,
            empty: true,
            processes: Vec::new(),
        };
        let configured = [empty("pool"), empty("user~000001")];
        let old_registry = [two(), vec![own("own"), Event::Next(4)]];
        let old_registry = registry(&old_registry.concat());
        let intent = [joined("pool", "p", "pool", 0), own("soon")];
        type Row<'a> = (
            &'a [(&'a str, &'a str)],
            &'a [&'a str],
            &'a [&'a str],
            &'a [&'a str],
        );
        let table: [Row<'_>; 9] = [
            (&[], &[], &[], &[]),
            (&[("web", "x")], &[], &[], &[]),
            (
                &[("web~000001", "a")],
                &["web~000001"],
                &["web~000001"],
                &[],
            ),
            // Only this proxy generates such a name.
            (&[("other~000009", "a")], &[], &["other~000009"], &[]),
            (&[("user~000001", "a")], &[], &[], &[]),
            (&[], &["own"], &["own"], &[]),
            (&[], &["soon"], &["soon"], &[]),
            (&[("pool", "p")], &[], &["pool"], &["pool"]),
            (&[("pool", "other")], &[], &[], &[]),
        ];
        let persist_file = Contents::default();
        for (processes, active, removed, recreate) in table {
            let answers = answers(processes, active);
            let known = inputs(&old_registry, &intent, &persist_file, &configured);
            let result = reconcile(known, &answers, Mode::NewEpoch);
            let names: Vec<&str> = result.remove.iter().map(String::as_str).collect();
            assert_eq!(names, removed, "{processes:?} {active:?}");
            let names: Vec<&str> = result.recreate.iter().map(String::as_str).collect();
            assert_eq!(names, recreate, "{processes:?} {active:?}");
            assert_eq!(result.registry.snapshot(), [Event::Next(4)]);
        }
    }

    #[test]
    fn a_new_persistent_epoch_keeps_all_members_and_removes_other_generated_groups() {
        let with_section = |event: Event| match event {
            Event::Joined(mut member) => {
                Arc::make_mut(&mut member).section = Some("command=x\n".to_owned());
                Event::Joined(member)
            }
            other => other,
        };
        let mut events: Vec<Event> = two().into_iter().map(with_section).collect();
        events.extend([own("own"), hidden("pool", "p")]);
        let old_registry = registry(&events);
        let persist_file = Contents::read("[group:forgotten]\npriority=3\nprograms=\n");
        type Row<'a> = (
            &'a [(&'a str, &'a str)],
            &'a [&'a str],
            &'a [&'a str],
            &'a [&'a str],
        );
        let table: [Row<'_>; 6] = [
            (&[], &[], &[], &[]),
            (
                &[("web~000001", "a"), ("web~000001", "b")],
                &["own"],
                &[],
                &[],
            ),
            (&[("web~000009", "x")], &[], &["web~000009"], &[]),
            (&[], &["forgotten"], &["forgotten"], &[]),
            (&[("pool", "p")], &[], &[], &["pool:p"]),
            (&[("web~000001", "old")], &[], &[], &["web~000001:old"]),
        ];
        for (processes, active, removed, stopped) in table {
            let answers = answers(processes, active);
            let result = reconcile(
                inputs(&old_registry, &[], &persist_file, &[]),
                &answers,
                Mode::NewEpochPersistent,
            );
            let names: Vec<&str> = result.remove.iter().map(String::as_str).collect();
            assert_eq!(names, removed, "{processes:?}");
            let stop = result.stop.iter();
            let stop: Vec<String> = stop
                .map(|info| format!("{}:{}", info.group, info.name))
                .collect();
            assert_eq!(stop, stopped, "{processes:?}");
            assert_eq!(result.registry.members().count(), 2);
            let again = inputs(&result.registry, &[], &persist_file, &[]);
            let again = reconcile(again, &answers, Mode::NewEpochPersistent);
            assert_eq!(again.registry.snapshot(), result.registry.snapshot());
        }
    }

    #[test]
    fn groups_with_processes_of_somebody_else_are_found() {
        let own = joined("own", "p", "own", 0);
        let known = registry(&[two(), vec![added("own"), own, hidden("own", "left")]].concat());
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Row<'_>; 5] = [
            (&[], &[]),
            (&[("own", "p"), ("own", "left")], &[]),
            (&[("own", "p"), ("own", "strange")], &["own"]),
            // The user's own group, and a real group.
            (&[("web", "strange")], &[]),
            (&[("web~000001", "strange")], &[]),
        ];
        for (processes, expected) in table {
            let foreign_groups = foreign_groups(&known, &answers(processes, &[]));
            assert!(
                foreign_groups.iter().eq(expected),
                "{processes:?}: {foreign_groups:?}"
            );
        }
    }
}
