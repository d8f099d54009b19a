//! What is to be known, and done, when what is known and what the daemon has may differ.
//!
//! One pure function for a start of the proxy, a restart of the daemon, a change that was cut short and
//! a change that somebody else made. It is idempotent: of what it has put right it finds nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::answers::{Answers, Query};
use crate::daemon::ProcessInfo;
use crate::daemon::conf::ConfiguredGroup;
use crate::persist::{Contents, real_groups};
use crate::registry::Rendered;
use crate::registry::{Event, Member, Registry};
use crate::registry::{group_of_real_name, is_generated, number_of_real_name, real_name};

/// What is known of the daemon's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The proxy has started: groups that nobody remembers are adopted.
    FirstStart,
    /// The daemon goes on.
    SameEpoch,
    /// The daemon started again, and has nothing of ours but what it read by accident.
    NewEpoch,
    /// The daemon started again and read the persist file; nothing is to persist any more.
    NewEpochPersisted,
    /// The daemon started again and read the persist file: it is to have all that clients were told.
    NewEpochPersistent,
}

/// What is to be known and done.
#[derive(Debug, Default)]
pub struct Reconciliation {
    /// What is known from now on.
    pub registry: Registry,
    /// The steps from what was known, where the epoch goes on.
    pub events: Vec<Event>,
    /// Processes that are told to stop.
    pub stop: Vec<ProcessInfo>,
    /// Groups that are stopped and removed.
    pub remove: BTreeSet<String>,
    /// Of these, the user's own: they are added again as his files have them.
    pub anew: BTreeSet<String>,
    /// Empty groups that a change has lost, with their priorities.
    pub restore: Vec<(String, i64)>,
}

/// What is known, as [`reconcile`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What clients were told.
    pub registry: &'a Registry,
    /// The steps that were under way.
    pub intent: &'a [Event],
    /// What the persist file has, and had when the proxy started.
    pub kept: &'a Contents,
    /// What the user's files define.
    pub configured: &'a [ConfiguredGroup],
    /// Groups of the proxy's own: its marker, and one that it has the daemon read to try how.
    pub own: &'a [String],
}

/// What must be asked before [`reconcile`].
pub fn queries(known: Known<'_>, mode: Mode) -> Vec<Query> {
    let registry = known.registry;
    let mut groups: BTreeSet<String> = BTreeSet::new();
    let mut queries = vec![Query::AllProcesses];
    match mode {
        Mode::FirstStart => groups.extend(known.kept_groups()),
        Mode::SameEpoch if known.intent.is_empty() => {
            let names = registry.added_groups().chain(registry.marker());
            groups.extend(names.map(str::to_owned));
        }
        Mode::SameEpoch => {
            let about = known.intent.iter();
            return about
                .flat_map(|event| queries_about(registry, event))
                .collect();
        }
        Mode::NewEpoch => groups.extend(known.names()),
        Mode::NewEpochPersisted => groups.extend(registry.added_groups().map(str::to_owned)),
        Mode::NewEpochPersistent => {
            groups.extend(known.names());
            groups.extend(known.kept.groups.keys().cloned());
        }
    }
    queries.extend(groups.into_iter().map(Query::Group));
    queries
}

/// Decides what is to be known and done, from what is `known` and what the daemon has `answered`.
pub fn reconcile(known: Known<'_>, answers: &Answers, mode: Mode) -> Reconciliation {
    let registry = known.registry;
    match mode {
        Mode::FirstStart => {
            let mut events = known.strays(answers);
            let numbers = answers.processes.keys();
            let numbers = numbers.filter_map(|(real, _)| number_of_real_name(real));
            let next = numbers.max().map(|highest| highest + 1);
            events.extend(next.filter(|next| *next > registry.next()).map(Event::Next));
            going_on(registry, events)
        }
        Mode::SameEpoch if known.intent.is_empty() => going_on(registry, lost(registry, answers)),
        Mode::SameEpoch => Reconciliation {
            restore: lost_groups(known, answers),
            ..going_on(registry, happened(known, answers))
        },
        Mode::NewEpoch => {
            let filled = known.filled(answers);
            let mut remove = known.surplus(answers, known.names(), &BTreeSet::new());
            remove.extend(filled.iter().cloned());
            let mut empty = registry.clone();
            empty.clear();
            Reconciliation {
                registry: empty,
                remove,
                anew: filled,
                ..Reconciliation::default()
            }
        }
        Mode::NewEpochPersisted | Mode::NewEpochPersistent => {
            let persists = mode == Mode::NewEpochPersistent;
            let now = in_new_epoch(known, answers, persists);
            let hidden = now.hidden();
            let stop = hidden
                .filter_map(|(real, process, _)| answers.process(real, process))
                .filter(|info| !info.state.is_stopped())
                .cloned()
                .collect();
            let remove = if persists {
                let mut ours: BTreeSet<String> = known.names();
                ours.extend(known.kept.groups.keys().cloned());
                known.surplus(answers, ours, &real_groups(&now))
            } else {
                BTreeSet::new()
            };
            Reconciliation {
                registry: now,
                stop,
                remove,
                ..Reconciliation::default()
            }
        }
    }
}

/// Groups whose presence shows that the epoch goes on. Real groups are known by their numbers, which
/// no two epochs share unless they persist, so one of them is as good a sign as the marker.
pub fn signs(registry: &Registry, configured: &[ConfiguredGroup], persists: bool) -> Vec<String> {
    let mut signs: Vec<String> = registry.marker().map(str::to_owned).into_iter().collect();
    if persists {
        return signs;
    }
    if signs.is_empty() {
        // The marker's line of the journal was lost.
        let is_ours = |name: &&str| configured.iter().all(|group| group.name != **name);
        signs.extend(registry.added_groups().filter(is_ours).map(str::to_owned));
    }
    let placed = registry.members().filter(|member| member.is_placed());
    let reals: BTreeSet<&String> = placed.map(|member| &member.real).collect();
    signs.extend(reals.into_iter().cloned());
    signs
}

/// Whether something is gone from the daemon, according to its answers about all processes and about the
/// groups that were added.
pub fn lacks(registry: &Registry, answers: &Answers) -> bool {
    !lost(registry, answers).is_empty()
}

/// Groups that were added, and hold processes that nobody has added: somebody has made them anew straight
/// on the daemon.
pub fn held(registry: &Registry, answers: &Answers) -> BTreeSet<String> {
    let processes = answers.processes.values();
    let is_strange = |info: &&ProcessInfo| {
        registry.added_group(&info.group).is_some()
            && registry.member(&info.group, &info.name).is_none()
            && registry.hidden_start(&info.group, &info.name).is_none()
    };
    let strange = processes.filter(is_strange);
    strange.map(|info| info.group.clone()).collect()
}

/// Placed members whose real groups are gone.
pub fn vanished(registry: &Registry, answers: &Answers) -> Vec<Event> {
    let placed = registry.members().filter(|member| member.is_placed());
    placed
        .filter(|member| !answers.is_active(&member.real))
        .map(Member::leaving)
        .collect()
}

fn going_on(registry: &Registry, events: Vec<Event>) -> Reconciliation {
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

impl Known<'_> {
    fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|group| group.name == name)
    }

    /// Whether this member was about to leave.
    fn is_leaving(&self, member: &Member) -> bool {
        self.intent.iter().any(|event| match event {
            Event::Left { group, process } => (group, process) == (&member.group, &member.process),
            Event::Hidden { group, process, .. } => {
                (group, process) == (&member.real, &member.process)
            }
            _ => false,
        })
    }

    /// The names of all groups that were added, are being added or help to add.
    fn names(&self) -> BTreeSet<String> {
        let reals = self.registry.members().map(|member| member.real.clone());
        let coming = self.intent.iter().filter_map(|event| match event {
            Event::Group { name, .. } => Some(name.clone()),
            Event::Joined(member) => Some(member.real.clone()),
            _ => None,
        });
        let added = self.registry.added_groups().map(str::to_owned);
        let own = self.own.iter().cloned();
        added.chain(reals).chain(coming).chain(own).collect()
    }

    /// What the daemon has of `ours`, and of all that bears a name that only we give, and is not one
    /// of `wanted`.
    fn surplus(
        &self,
        answers: &Answers,
        ours: BTreeSet<String>,
        wanted: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let generated = answers.processes.keys().map(|(real, _)| real);
        let generated = generated.filter(|real| is_generated(real)).cloned();
        let active = ours.into_iter().filter(|name| answers.is_active(name));
        generated
            .chain(active)
            .filter(|name| !wanted.contains(name) && !self.is_configured(name))
            .collect()
    }

    /// Of the user's own groups, those that are empty by his file and were made to hold something.
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

    /// Groups of the persist file that nobody remembers.
    fn kept_groups(&self) -> impl Iterator<Item = String> {
        let kept = self.kept.groups.keys();
        kept.filter(|name| !self.is_configured(name) && self.registry.added_group(name).is_none())
            .cloned()
    }

    /// What the daemon has of ours and nobody remembers.
    fn strays(&self, answers: &Answers) -> Vec<Event> {
        let mut strays = strays(
            self.registry,
            |name| self.is_configured(name),
            self.kept,
            answers,
        );
        let groups: BTreeSet<String> = self.kept_groups().collect();
        strays.extend(self.added_strays(&groups, answers));
        strays
    }

    /// Those of these groups that the daemon has, with the processes that they hold themselves.
    fn added_strays(&self, groups: &BTreeSet<String>, answers: &Answers) -> Vec<Event> {
        let is_there = |name: &String| groups.contains(name) && answers.is_active(name);
        let mut strays = Vec::new();
        for (name, priority) in &self.kept.groups {
            if !is_there(name) {
                continue;
            }
            strays.push(Event::Group {
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
            // One process is in one section; several in a section each, in the same order, or all
            // in one that cannot be taken apart without its program.
            for (number, process) in processes.into_iter().enumerate() {
                let section = self.kept.own_section(name, number);
                strays.push(Event::Joined(Arc::new(Member {
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
        strays
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

/// Which steps of the intent the daemon has made.
fn happened(known: Known<'_>, answers: &Answers) -> Vec<Event> {
    let is_addition = |event: &Event| matches!(event, Event::Group { .. } | Event::Joined(_));
    // A marker goes with additions: without it, what bears their names is somebody else's.
    let is_unread = known
        .intent
        .iter()
        .any(|event| matches!(event, Event::Marker(name) if !answers.is_active(name)));
    let steps = known.intent.iter();
    steps
        .filter(|event| !(is_unread && is_addition(event)))
        .flat_map(|event| what_happened(known.registry, event, answers))
        .collect()
}

/// What came of a step that was about to be made.
fn what_happened(registry: &Registry, event: &Event, answers: &Answers) -> Vec<Event> {
    let is_there = |real: &str, process: &str| answers.process(real, process).is_some();
    let is_made = match event {
        Event::Marker(name) | Event::Group { name, .. } => answers.is_active(name),
        Event::GroupGone { name } => {
            let placed = registry
                .members_of(name)
                .filter(|member| member.is_placed());
            let (there, gone): (Vec<_>, Vec<_>) =
                placed.partition(|member| answers.is_active(&member.real));
            if answers.is_active(name) || !there.is_empty() {
                return gone.into_iter().map(Member::leaving).collect();
            }
            true
        }
        Event::Joined(member) => is_there(&member.real, &member.process),
        Event::Left { group, process } => !is_there(registry.real_group(group, process), process),
        // Needs nothing of the daemon.
        Event::Hidden { .. } => true,
        Event::Shown { .. } | Event::Next(_) => false,
    };
    if is_made {
        vec![event.clone()]
    } else {
        Vec::new()
    }
}

/// Groups that were taken away to be made anew, and were not: when the proxy died, the daemon had
/// not read yet what they were to be.
fn lost_groups(known: Known<'_>, answers: &Answers) -> Vec<(String, i64)> {
    let touched = known.intent.iter().filter_map(|event| match event {
        Event::Joined(member) if !member.is_placed() => Some(&member.group),
        Event::Left { group, .. } => Some(group),
        _ => None,
    });
    let touched: BTreeSet<&String> = touched.filter(|group| !answers.is_active(group)).collect();
    let added = |group: &String| Some((group.clone(), known.registry.added_group(group)?));
    touched.into_iter().filter_map(added).collect()
}

/// Takes up real groups that the daemon runs and nobody remembers: their names say whose members they
/// hold. `is_configured` tells the groups of the user's files.
fn strays(
    registry: &Registry,
    is_configured: impl Fn(&str) -> bool,
    kept: &Contents,
    answers: &Answers,
) -> Vec<Event> {
    let mut found: Vec<&ProcessInfo> = answers
        .processes
        .values()
        .filter(|found| registry.owner(&found.group).is_none())
        .filter(|found| !is_configured(&found.group))
        .collect();
    // Of two processes with one name the former was hidden when the latter came.
    found.sort_by_key(|found| (number_of_real_name(&found.group), &found.name));
    let mut hidden = Vec::new();
    let mut joined = Vec::new();
    let mut taken = BTreeSet::new();
    let mut indices: BTreeMap<&str, u32> = BTreeMap::new();
    for found in found.into_iter().rev() {
        let Some(group) = group_of_real_name(&found.group) else {
            continue;
        };
        let section = kept.placed_section(&found.group, &found.name);
        let has_left = section.is_none() && kept.has_real_group(&found.group);
        let is_taken =
            registry.member(group, &found.name).is_some() || !taken.insert((group, &found.name));
        if has_left || is_taken {
            hidden.push(hide(found));
            continue;
        }
        let index = indices.entry(&found.group).or_default();
        joined.push(Event::Joined(Arc::new(Member {
            group: group.to_owned(),
            process: found.name.clone(),
            real: found.group.clone(),
            index: *index,
            program: None,
            section,
            rendered: Rendered::default(),
        })));
        *index += 1;
    }
    // Before those that joined: one of them may bear the name of a hidden one.
    let mut strays = hidden;
    strays.extend(joined);
    strays
}

/// What is known of a daemon that started again, according to its answers about all processes and
/// about the groups that were added. Where what was added `persists`, what it lacks is still to be, but
/// for what was about to leave: that is kept no longer.
fn in_new_epoch(known: Known<'_>, answers: &Answers, persists: bool) -> Registry {
    let before = known.registry;
    let mut next = before.next();
    let mut number = |group: &str| {
        next += 1;
        real_name(group, next - 1)
    };
    let mut events = Vec::new();
    for name in before.added_groups() {
        if (persists || answers.is_active(name))
            && let Some(priority) = before.added_group(name)
        {
            let name = name.to_owned();
            events.push(Event::Group { name, priority });
        }
    }
    // Before those that joined: one of them may bear the name of a hidden one.
    events.extend(hidden_in_new_epoch(before, answers, persists));
    let mut anew: BTreeMap<String, String> = BTreeMap::new();
    for member in before.members() {
        let there = answers.process(&member.real, &member.process).is_some();
        let is_to_be = persists && !known.is_leaving(member);
        let can_be_made = is_to_be && member.is_reproducible() && !member.is_in_files();
        if !there && !can_be_made {
            continue;
        }
        // A group of the user's is as his file says; what it held itself was one program. A real group
        // that is there is as it was read.
        let has_no_place = if member.is_placed() {
            answers.is_active(&member.real)
        } else {
            before.added_group(&member.group).is_none()
        };
        let mut member = member.clone();
        if !there && has_no_place {
            let real = anew.entry(member.real.clone());
            let real = real.or_insert_with(|| number(&member.group));
            member.real.clone_from(real);
        }
        events.push(Event::Joined(Arc::new(member)));
    }
    let mut now = Registry::default();
    now.apply(Event::Next(next));
    events.into_iter().for_each(|event| now.apply(event));
    now
}

/// What clients are not to see of what the daemon has: what was hidden before, and what else is in
/// real groups, because the daemon read an older file. Added groups that differ are made anew where
/// they persist.
fn hidden_in_new_epoch(before: &Registry, answers: &Answers, persists: bool) -> Vec<Event> {
    let hidden = before
        .hidden()
        .filter(|(real, _, _)| !persists || before.added_group(real).is_none())
        .filter_map(|(real, process, _)| answers.process(real, process));
    let is_surplus = |found: &&ProcessInfo| {
        let mut members = before.members_in(&found.group).peekable();
        let is_real = members.peek().is_some_and(|member| member.is_placed());
        is_real && members.all(|member| member.process != found.name)
    };
    let surplus = answers.processes.values().filter(is_surplus);
    hidden.chain(surplus).map(hide).collect()
}

/// What is gone from a daemon that goes on, according to its answers about all processes and about the
/// groups that were added.
fn lost(known: &Registry, answers: &Answers) -> Vec<Event> {
    let is_there = |real: &str, process: &str| answers.process(real, process).is_some();
    let members = known
        .members()
        .filter(|member| !is_there(&member.real, &member.process))
        .map(Member::leaving);
    // A group stays as long as somebody of it is there.
    let has_members = |name: &str| {
        let mut members = known.members_of(name);
        members.any(|member| is_there(&member.real, &member.process))
    };
    let groups = known
        .added_groups()
        .filter(|name| !answers.is_active(name) && !has_members(name))
        .map(|name| Event::GroupGone {
            name: name.to_owned(),
        });
    let hidden = known
        .hidden()
        .filter(|(real, process, _)| !is_there(real, process))
        .map(|(real, process, _)| Event::Shown {
            group: real.to_owned(),
            process: process.to_owned(),
        });
    members.chain(groups).chain(hidden).collect()
}

fn hide(found: &ProcessInfo) -> Event {
    Event::Hidden {
        group: found.group.clone(),
        process: found.name.clone(),
        start: found.start,
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
            let mut found = ProcessInfo::stopped(real, process, 5);
            found.state = ProcessState::Running;
            answers.insert(found);
        }
        for group in groups {
            answers.groups.insert((*group).to_owned(), true);
        }
        answers
    }

    #[test]
    fn what_nobody_remembers_is_known_by_its_name_and_by_the_file() {
        let kept = "; web:a\n[program:web~000001~0]\ncommand=x\n\n; web:b\n\
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
            // One left, and its name was taken again.
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
            // The file speaks of the group, and not of `c`.
            (
                kept,
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
            // The file does not speak of the group.
            (
                kept,
                &[("web~000003", "c")],
                vec![joined("web", "c", "web~000003", 0)],
            ),
            // The user's own group bears such a name.
            ("", &[("user~000001", "a")], vec![]),
        ];
        for (kept, processes, expected) in table {
            let kept = Contents::read(kept);
            let is_configured = |name: &str| name.starts_with("user");
            let answers = answers(processes, &[]);
            let strays = strays(&Registry::default(), is_configured, &kept, &answers);
            assert_eq!(strays, expected, "{processes:?}");
            let again = super::strays(&registry(&strays), is_configured, &kept, &answers);
            assert!(again.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn a_daemon_that_started_again_has_what_its_files_say() {
        let group = Event::Group {
            name: "own".to_owned(),
            priority: 5,
        };
        let before = [
            vec![group, hidden("web~000001", "gone"), hidden("pool", "p")],
            two(),
            vec![joined("own", "first", "own", 0)],
        ];
        let before = registry(&before.concat());
        let there = |registry: &Registry| -> Vec<String> {
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
            // Nothing of ours, and what was removed of the user's.
            (&[("pool", "p")], &[], &["pool:p"]),
            (&[("own", "first")], &["own:first"], &[]),
            (
                &[("web~000001", "a"), ("web~000001", "b")],
                &["web~000001:a", "web~000001:b"],
                &[],
            ),
            // An older file had more in the real group.
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
            let kept = Contents::default();
            let now = in_new_epoch(known(&before, &[], &kept, &[]), &answers, false);
            assert_eq!(there(&now), members, "{processes:?}");
            let mut covered = covered(&now);
            covered.sort();
            assert_eq!(covered, hidden, "{processes:?}");
            assert_eq!(now.added_group("own"), Some(5));
            let again = in_new_epoch(known(&now, &[], &kept, &[]), &answers, false);
            assert_eq!(again.snapshot(), now.snapshot(), "{processes:?}");
        }
    }

    #[test]
    fn what_a_daemon_that_goes_on_has_no_more_is_lost() {
        use crate::registry::tests::left;
        let own = |name: &str| Event::Group {
            name: name.to_owned(),
            priority: 5,
        };
        let gone = |name: &str| Event::GroupGone {
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
        let without = |gone: &[&str]| -> Vec<(&str, &str)> {
            let left = all.iter().filter(|(real, _)| !gone.contains(real));
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
                    gone("empty"),
                    gone("own"),
                ],
            ),
            (&["pool"], &["empty", "own"], vec![uncovered("pool", "p")]),
        ];
        for (groups, active, expected) in table {
            let answers = answers(&without(groups), active);
            let found = lost(&known, &answers);
            assert_eq!(found, expected, "{groups:?}");
            let mut after = known.clone();
            found.into_iter().for_each(|event| after.apply(event));
            assert!(lost(&after, &answers).is_empty(), "{groups:?}");
        }
    }

    #[test]
    fn what_persists_and_is_lacking_is_still_to_be() {
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
        let before = registry(&events);
        let there = |answers: &Answers, intent: &[Event]| -> Vec<String> {
            let kept = Contents::default();
            let now = in_new_epoch(known(&before, intent, &kept, &[]), answers, true);
            now.members().map(Member::real_namespec).collect()
        };
        // Both of the user's empty group move to one real group; nobody knows how to make the two.
        assert_eq!(
            there(&answers(&[], &[]), &[]),
            [
                "empty~000008:a",
                "empty~000008:b",
                "lost~000003:c",
                "part~000004:d",
                "part~000004:e"
            ]
        );
        let part = answers(&[("part~000004", "d")], &["part~000004"]);
        // A group that is there takes nobody in.
        assert!(there(&part, &[]).contains(&"part~000009:e".to_owned()));
        for leaves in [left("part", "e"), hidden("part~000004", "e")] {
            let left = there(&part, &[leaves]);
            assert!(left.contains(&"part~000004:d".to_owned()), "{left:?}");
            assert!(left.iter().all(|name| !name.ends_with(":e")), "{left:?}");
        }
    }

    fn known<'a>(
        registry: &'a Registry,
        intent: &'a [Event],
        kept: &'a Contents,
        configured: &'a [ConfiguredGroup],
    ) -> Known<'a> {
        Known {
            registry,
            intent,
            kept,
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
    fn an_intent_is_closed_by_what_the_daemon_has() {
        use crate::registry::tests::left;
        let marker = || Event::Marker("m".to_owned());
        let gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        let before = [two(), vec![own("own"), joined("own", "p", "own", 0)]];
        let before = registry(&before.concat());
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
            // Without its marker, what bears the name is somebody else's.
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
            // A group that was to be made anew, and is not.
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
            // Hiding asks nothing of the daemon.
            (
                vec![hidden("web~000001", "a")],
                &[],
                &[],
                vec![hidden("web~000001", "a")],
                &[],
            ),
            (vec![gone("web")], &[], &[], vec![gone("web")], &[]),
            (
                vec![gone("web")],
                &[],
                &["web"],
                vec![left("web", "a"), left("web", "b")],
                &[],
            ),
            (vec![gone("web")], &[], &["web", "web~000001"], vec![], &[]),
        ];
        let kept = Contents::default();
        for (intent, processes, active, expected, restored) in table {
            let intent = if intent.is_empty() {
                vec![Event::Next(1)]
            } else {
                intent
            };
            let answers = answers(processes, active);
            let known = known(&before, &intent, &kept, &[]);
            let found = reconcile(known, &answers, Mode::SameEpoch);
            assert_eq!(found.events, expected, "{intent:?}");
            let names: Vec<&str> = found
                .restore
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            assert_eq!(names, restored, "{intent:?}");
        }
    }

    #[test]
    fn of_a_new_epoch_nothing_is_known_and_nothing_of_ours_stays() {
        let empty = |name: &str| ConfiguredGroup {
            name: name.to_owned(),
            priority: 999,
            empty: true,
            processes: Vec::new(),
        };
        let configured = [empty("pool"), empty("user~000001")];
        let before = [two(), vec![own("own"), Event::Next(4)]];
        let before = registry(&before.concat());
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
            // Its name is only given by us, whoever remembers it.
            (&[("other~000009", "a")], &[], &["other~000009"], &[]),
            (&[("user~000001", "a")], &[], &[], &[]),
            (&[], &["own"], &["own"], &[]),
            (&[], &["soon"], &["soon"], &[]),
            (&[("pool", "p")], &[], &["pool"], &["pool"]),
            (&[("pool", "other")], &[], &[], &[]),
        ];
        let kept = Contents::default();
        for (processes, active, removed, anew) in table {
            let answers = answers(processes, active);
            let known = known(&before, &intent, &kept, &configured);
            let found = reconcile(known, &answers, Mode::NewEpoch);
            let names: Vec<&str> = found.remove.iter().map(String::as_str).collect();
            assert_eq!(names, removed, "{processes:?} {active:?}");
            let names: Vec<&str> = found.anew.iter().map(String::as_str).collect();
            assert_eq!(names, anew, "{processes:?} {active:?}");
            assert_eq!(found.registry.snapshot(), [Event::Next(4)]);
        }
    }

    #[test]
    fn of_a_new_epoch_that_persists_all_is_known_and_what_else_is_ours_goes() {
        let with_section = |event: Event| match event {
            Event::Joined(mut member) => {
                Arc::make_mut(&mut member).section = Some("command=x\n".to_owned());
                Event::Joined(member)
            }
            other => other,
        };
        let mut events: Vec<Event> = two().into_iter().map(with_section).collect();
        events.extend([own("own"), hidden("pool", "p")]);
        let before = registry(&events);
        let kept = Contents::read("[group:forgotten]\npriority=3\nprograms=\n");
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
            let found = reconcile(
                known(&before, &[], &kept, &[]),
                &answers,
                Mode::NewEpochPersistent,
            );
            let names: Vec<&str> = found.remove.iter().map(String::as_str).collect();
            assert_eq!(names, removed, "{processes:?}");
            let stop = found.stop.iter();
            let stop: Vec<String> = stop
                .map(|info| format!("{}:{}", info.group, info.name))
                .collect();
            assert_eq!(stop, stopped, "{processes:?}");
            assert_eq!(found.registry.members().count(), 2);
            let again = known(&found.registry, &[], &kept, &[]);
            let again = reconcile(again, &answers, Mode::NewEpochPersistent);
            assert_eq!(again.registry.snapshot(), found.registry.snapshot());
        }
    }

    #[test]
    fn groups_that_somebody_has_filled_are_known_by_strange_processes() {
        let own = joined("own", "p", "own", 0);
        let known = registry(&[two(), vec![added("own"), own, hidden("own", "left")]].concat());
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Row<'_>; 5] = [
            (&[], &[]),
            (&[("own", "p"), ("own", "left")], &[]),
            (&[("own", "p"), ("own", "strange")], &["own"]),
            // The user's own group, and a real one.
            (&[("web", "strange")], &[]),
            (&[("web~000001", "strange")], &[]),
        ];
        for (processes, expected) in table {
            let held = held(&known, &answers(processes, &[]));
            assert!(held.iter().eq(expected), "{processes:?}: {held:?}");
        }
    }
}
