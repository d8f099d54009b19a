//! The registry: the changes in one epoch of the daemon. It has added groups, members with the groups that
//! they live in, and hidden processes.
//!
//! The registry is pure: it applies events and answers questions about names. The [`Journal`] stores it on
//! disk.
//!
//! A *real* name is the daemon's; the other names are those of clients. A *real group* contains the
//! processes of one program that clients see in another group. A process that is removed before the last
//! one of its real group stays there, hidden.

mod defined;
mod journal;
pub mod losses;
mod real_name;
mod rendered;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use defined::{is_defined, without_defined};
pub use journal::Journal;
pub use real_name::{group_of_real_name, is_generated, is_marker, number_of_real_name, real_name};
pub use rendered::Rendered;

use crate::daemon::ProcessState;
use crate::daemon::conf::ConfiguredGroup;
use crate::program::Program;
use real_name::MAX_NUMBER;

/// The daemon's default priority of a group (`supervisor/options.py`, `process_groups_from_parser`).
pub const DEFAULT_PRIORITY: i64 = 999;
/// The number of removed real groups to remember. There are never as many replies under way that name one.
const MAX_REMOVED: usize = 64;

/// Returns whether a hidden process is still hidden: it is stopped or stopping, and its last start,
/// `started`, is still the one when it was hidden, `start`. Both are Unix times of the daemon.
pub fn is_still_hidden(start: i64, state: ProcessState, started: i64) -> bool {
    use ProcessState::{Exited, Fatal, Stopped, Stopping};
    // Stopping counts too: a restarted daemon starts a hidden process, and the proxy stops it.
    matches!(state, Stopped | Stopping | Exited | Fatal) && started == start
}

/// A change of the registry, as the journal stores it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Event {
    /// The epoch marker was added.
    Marker(String),
    /// A group was added.
    Group {
        /// The group.
        name: String,
        /// Its priority.
        priority: i64,
    },
    /// An added group was removed with all its members.
    GroupGone {
        /// The group.
        name: String,
    },
    /// A process was added.
    Joined(Arc<Member>),
    /// A member was removed, and the daemon does not have it any more.
    Left {
        /// The group that clients know.
        group: String,
        /// The process.
        process: String,
    },
    /// A process was removed, and the daemon still has it.
    Hidden {
        /// The daemon's group.
        group: String,
        /// The process.
        process: String,
        /// Its last start, as the daemon reports it.
        start: i64,
    },
    /// A hidden process became visible again, or the daemon does not have it any more.
    Shown {
        /// The daemon's group.
        group: String,
        /// The process.
        process: String,
    },
    /// The next number of a real group.
    Next(u64),
}

impl Event {
    /// Whether the event removes a group or process from clients' view.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Event::GroupGone { .. } | Event::Left { .. } | Event::Hidden { .. }
        )
    }
}

/// An added process.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Member {
    /// The group that clients know.
    pub group: String,
    /// The process's name, which is the same in the daemon.
    pub process: String,
    /// The daemon's group: `group` itself, or a real group.
    pub real: String,
    /// Its index among the program's processes.
    pub index: u32,
    /// The program's definition. `None` if the process was found in the daemon.
    pub program: Option<Program>,
    /// The body of its section, if only that is known: from the persist file, after the journal was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// The cached text of its section.
    #[serde(skip)]
    pub rendered: Rendered,
}

impl Member {
    /// Whether it lives in a real group.
    pub fn is_placed(&self) -> bool {
        self.real != self.group
    }

    /// Whether a restarted daemon has it by itself, because the user's files define it.
    pub fn is_in_files(&self) -> bool {
        let from = self.program.as_ref().and_then(Program::from_files);
        from.is_some_and(|from| !from.is_extra)
    }

    /// Whether its program or section is known, so that it can be added again.
    pub fn is_reproducible(&self) -> bool {
        self.program.is_some() || self.section.is_some()
    }

    /// The event that removes it.
    pub fn removal(&self) -> Event {
        Event::Left {
            group: self.group.clone(),
            process: self.process.clone(),
        }
    }

    /// The namespec of the process in the daemon.
    pub fn real_namespec(&self) -> String {
        format!("{}:{}", self.real, self.process)
    }
}

/// The location of a process that a client named.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In the daemon under the same name, if the daemon has it.
    Ordinary,
    /// In a real group.
    Placed(&'a Member),
    /// Hidden. The time is its last start.
    Hidden(i64),
}

/// All changes of one epoch.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    marker: Option<String>,
    next: u64,
    groups: BTreeMap<String, i64>,
    members: BTreeMap<String, BTreeMap<String, Arc<Member>>>,
    real: HashMap<String, RealGroup>,
    /// Real groups of the open intent, which the daemon may have already, with the groups that clients
    /// know.
    expected: HashMap<String, String>,
    /// Removed real groups, latest last. Replies that are under way may still contain them.
    removed: VecDeque<RemovedGroup>,
    /// The last start of each hidden process, by the daemon's group and the process name.
    hidden: BTreeMap<String, BTreeMap<String, i64>>,
}

/// A group of the daemon whose processes clients see in another group.
#[derive(Clone, Debug)]
struct RealGroup {
    /// The group that clients know.
    group: String,
    /// Its members.
    members: BTreeSet<String>,
}

/// A removed real group.
#[derive(Clone, Debug)]
struct RemovedGroup {
    real: String,
    group: String,
    /// Its hidden processes.
    hidden: BTreeMap<String, i64>,
}

impl Registry {
    /// Applies an event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Marker(name) => self.marker = Some(name),
            Event::Group { name, priority } => {
                self.groups.insert(name, priority);
            }
            Event::GroupGone { name } => self.remove_group(&name),
            Event::Joined(member) => self.join(member),
            Event::Left { group, process } => self.leave(&group, &process),
            Event::Hidden {
                group,
                process,
                start,
            } => self.hide(group, process, start),
            Event::Shown { group, process } => self.show(&group, &process),
            Event::Next(next) => self.next = self.next.max(next.min(MAX_NUMBER)),
        }
    }

    /// Replaces the real groups of the open intent by those of `events`.
    pub fn expect(&mut self, events: &[Event]) {
        let joining = events.iter().filter_map(|event| match event {
            Event::Joined(member) if member.is_placed() => Some(member),
            _ => None,
        });
        self.expected = joining
            .map(|member| (member.real.clone(), member.group.clone()))
            .collect();
    }

    /// The events that create an equal registry.
    pub fn snapshot(&self) -> Vec<Event> {
        let mut events = vec![Event::Next(self.next)];
        events.extend(self.marker.clone().map(Event::Marker));
        events.extend(self.groups.iter().map(|(name, priority)| Event::Group {
            name: name.clone(),
            priority: *priority,
        }));
        events.extend(self.hidden().map(|(group, process, start)| Event::Hidden {
            group: group.to_owned(),
            process: process.to_owned(),
            start,
        }));
        events.extend(self.shared_members().cloned().map(Event::Joined));
        events
    }

    /// Removes everything except the next number, for a new epoch.
    pub fn clear(&mut self) {
        *self = Registry {
            next: self.next,
            ..Registry::default()
        };
    }

    /// Whether nothing was changed in this epoch.
    pub fn is_empty(&self) -> bool {
        self.marker.is_none() && self.has_no_entries()
    }

    /// Whether nothing but the marker remains of the changes in this epoch.
    pub fn has_no_entries(&self) -> bool {
        self.groups.is_empty() && self.members.is_empty() && self.hidden.is_empty()
    }

    /// Whether no name needs translation.
    pub fn needs_no_translation(&self) -> bool {
        self.real.is_empty() && self.hidden.is_empty() && self.expected.is_empty()
    }

    /// The epoch marker, if the daemon has it.
    pub fn marker(&self) -> Option<&str> {
        self.marker.as_deref()
    }

    /// The next number for a real group.
    pub fn next(&self) -> u64 {
        self.next.max(1)
    }

    /// The priority of an added group. `None` for any other group.
    pub fn added_group(&self, name: &str) -> Option<i64> {
        self.groups.get(name).copied()
    }

    /// The priority of a group that clients know: of the addition, or of the user's files.
    pub fn priority(&self, configured: &[ConfiguredGroup], group: &str) -> i64 {
        let in_files = || {
            let mut groups = configured.iter();
            let group = groups.find(|configured| configured.name == group);
            group.map_or(DEFAULT_PRIORITY, |configured| configured.priority)
        };
        self.added_group(group).unwrap_or_else(in_files)
    }

    /// The names of all added groups.
    pub fn added_groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// All members, ordered by group and name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.shared_members().map(Arc::as_ref)
    }

    fn shared_members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values().flat_map(BTreeMap::values)
    }

    /// The members of `group`, as clients know it.
    pub fn members_of(&self, group: &str) -> impl Iterator<Item = &Member> {
        self.members
            .get(group)
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(Arc::as_ref)
    }

    /// The member of this name, as clients know it.
    pub fn member(&self, group: &str, process: &str) -> Option<&Member> {
        self.members.get(group)?.get(process).map(Arc::as_ref)
    }

    /// The members in this group of the daemon.
    pub fn members_in<'r, 'n>(
        &'r self,
        real: &'n str,
    ) -> impl Iterator<Item = &'r Member> + use<'r, 'n> {
        let real_group = self
            .real
            .get(real)
            .map(|real_group| real_group.group.as_str());
        let members = self.members.get(real_group.unwrap_or(real)).into_iter();
        members
            .flat_map(BTreeMap::values)
            .map(Arc::as_ref)
            .filter(move |member| member.real == real)
    }

    /// The group that clients know for a real group, which is present, expected or removed. `None` if
    /// clients see the group under its own name.
    pub fn owner(&self, real: &str) -> Option<&str> {
        let there = self.real.get(real).map(|real_group| &real_group.group);
        let owner = there.or_else(|| self.expected.get(real));
        let owner = owner.or_else(|| self.removed(real).map(|removed| &removed.group));
        owner.map(String::as_str)
    }

    /// The daemon's group of the process that clients see under this name.
    pub fn real_group<'a>(&'a self, group: &'a str, process: &str) -> &'a str {
        let member = self.member(group, process);
        member.map_or(group, |member| &member.real)
    }

    /// The events that unhide the processes of a group that is removed from the daemon and added again.
    pub fn unhide_events(&self, group: &str) -> Vec<Event> {
        self.hidden()
            .filter(|(hidden, _, _)| *hidden == group)
            .map(|(group, process, _)| Event::Shown {
                group: group.to_owned(),
                process: process.to_owned(),
            })
            .collect()
    }

    /// The losses when the group `real` is removed from the daemon and added again: members without a known
    /// definition, and its hidden processes.
    pub fn losses_if_recreated(&self, real: &str) -> Vec<Event> {
        let members = self.members_in(real);
        let unknown = members.filter(|member| !member.is_reproducible());
        let mut losses: Vec<Event> = unknown.map(Member::removal).collect();
        losses.extend(self.unhide_events(real));
        losses
    }

    /// All hidden processes: the daemon's group, the process, and its last start.
    pub fn hidden(&self) -> impl Iterator<Item = (&str, &str, i64)> {
        self.hidden.iter().flat_map(|(group, processes)| {
            processes
                .iter()
                .map(|(process, start)| (group.as_str(), process.as_str(), *start))
        })
    }

    /// The last start of the hidden process of this real name. `None` if it is not hidden.
    pub fn hidden_start(&self, group: &str, process: &str) -> Option<i64> {
        let removed = || Some(&self.removed(group)?.hidden);
        self.hidden
            .get(group)
            .or_else(removed)?
            .get(process)
            .copied()
    }

    /// Whether clients do not see the process of this real name. The daemon reports `state` and its last
    /// start, `started`. A hidden process in a real group never becomes visible. In another group it does
    /// when a client starts it.
    pub fn is_hidden(&self, group: &str, process: &str, state: ProcessState, started: i64) -> bool {
        self.hidden_start(group, process).is_some_and(|start| {
            self.owner(group).is_some() || is_still_hidden(start, state, started)
        })
    }

    /// Whether there is any hidden process.
    pub fn hides(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// Whether bulk calls on `group` need translation.
    pub fn has_placed_or_hidden(&self, group: &str) -> bool {
        self.hidden.contains_key(group) || self.members_of(group).any(Member::is_placed)
    }

    /// The location of the process that clients call `group:process`.
    pub fn place(&self, group: &str, process: &str) -> Place<'_> {
        match self.member(group, process) {
            Some(member) if member.is_placed() => Place::Placed(member),
            Some(_) => Place::Ordinary,
            None => match self.hidden_start(group, process) {
                Some(start) => Place::Hidden(start),
                None => Place::Ordinary,
            },
        }
    }

    fn join(&mut self, member: Arc<Member>) {
        // A member of the same name in another real group is removed first.
        let known = self.member(&member.group, &member.process);
        if known.is_some_and(|known| known.real != member.real) {
            self.leave(&member.group, &member.process);
        }
        if member.is_placed() {
            let real_group = self.real.entry(member.real.clone());
            let real_group = real_group.or_insert_with(|| RealGroup {
                group: member.group.clone(),
                members: BTreeSet::new(),
            });
            real_group.members.insert(member.process.clone());
        }
        let processes = self.members.entry(member.group.clone()).or_default();
        processes.insert(member.process.clone(), member);
    }

    fn hide(&mut self, group: String, process: String, start: i64) {
        let is_real = self.real.contains_key(&group);
        self.leave_real(&group, &process);
        if is_real && !self.real.contains_key(&group) {
            return; // it was the last member
        }
        self.hidden.entry(group).or_default().insert(process, start);
    }

    /// Removes the process of this real name, if it is a member.
    fn leave_real(&mut self, real: &str, process: &str) {
        let real_group = self
            .real
            .get(real)
            .map(|real_group| real_group.group.clone());
        let group = real_group.unwrap_or_else(|| real.to_owned());
        let is_in_group = |member: &Member| member.real == real;
        if self.member(&group, process).is_some_and(is_in_group) {
            self.leave(&group, process);
        }
    }

    fn leave(&mut self, group: &str, process: &str) {
        let Some(processes) = self.members.get_mut(group) else {
            return;
        };
        let removed_member = processes.remove(process);
        if processes.is_empty() {
            self.members.remove(group);
        }
        if let Some(member) = removed_member {
            self.remove_from_real_group(&member.real, process);
        }
    }

    fn show(&mut self, group: &str, process: &str) {
        let Some(processes) = self.hidden.get_mut(group) else {
            return;
        };
        processes.remove(process);
        if processes.is_empty() {
            self.hidden.remove(group);
        }
    }

    fn remove_group(&mut self, name: &str) {
        self.groups.remove(name);
        self.hidden.remove(name);
        let members = self.members.remove(name).into_iter().flatten();
        for (process, member) in members {
            self.remove_from_real_group(&member.real, &process);
        }
    }

    /// Removes a member from its real group. An empty real group is removed with its hidden processes.
    fn remove_from_real_group(&mut self, real: &str, process: &str) {
        let Some(real_group) = self.real.get_mut(real) else {
            return;
        };
        real_group.members.remove(process);
        if !real_group.members.is_empty() {
            return;
        }
        if let Some(RealGroup { group, .. }) = self.real.remove(real) {
            self.removed.push_back(RemovedGroup {
                real: real.to_owned(),
                group,
                hidden: self.hidden.remove(real).unwrap_or_default(),
            });
        }
        if self.removed.len() > MAX_REMOVED {
            self.removed.pop_front();
        }
    }

    fn removed(&self, real: &str) -> Option<&RemovedGroup> {
        self.removed
            .iter()
            .rev()
            .find(|removed| removed.real == real)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn joined(group: &str, process: &str, real: &str, index: u32) -> Event {
        Event::Joined(Arc::new(Member {
            group: group.to_owned(),
            process: process.to_owned(),
            real: real.to_owned(),
            index,
            program: None,
            section: None,
            rendered: Rendered::default(),
        }))
    }

    pub(crate) fn hidden(real: &str, process: &str) -> Event {
        Event::Hidden {
            group: real.to_owned(),
            process: process.to_owned(),
            start: 5,
        }
    }

    pub(crate) fn left(group: &str, process: &str) -> Event {
        Event::Left {
            group: group.to_owned(),
            process: process.to_owned(),
        }
    }

    pub(crate) fn added(name: &str) -> Event {
        Event::Group {
            name: name.to_owned(),
            priority: 5,
        }
    }

    pub(crate) fn marker(name: &str) -> Event {
        Event::Marker(name.to_owned())
    }

    pub(crate) fn registry(events: &[Event]) -> Registry {
        let mut registry = Registry::default();
        events
            .iter()
            .for_each(|event| registry.apply(event.clone()));
        registry
    }

    /// Two processes of one program in `web~000001`.
    pub(crate) fn two() -> Vec<Event> {
        vec![
            joined("web", "a", "web~000001", 0),
            joined("web", "b", "web~000001", 1),
        ]
    }

    #[test]
    fn a_real_group_is_removed_with_its_last_member() {
        let gone = Event::GroupGone {
            name: "web".to_owned(),
        };
        let again = joined("web", "a", "web~000002", 0);
        // Events for two processes, and the members and hidden processes after them.
        let table: [(&[Event], &[&str], &[&str]); 8] = [
            (&[], &["web~000001:a", "web~000001:b"], &[]),
            (
                &[hidden("web~000001", "a")],
                &["web~000001:b"],
                &["web~000001:a"],
            ),
            (&[hidden("web~000001", "a"), left("web", "b")], &[], &[]),
            (&[left("web", "a"), left("web", "b")], &[], &[]),
            (
                &[hidden("web~000001", "a"), hidden("web~000001", "b")],
                &[],
                &[],
            ),
            (
                &[hidden("web~000001", "a"), again.clone()],
                &["web~000002:a", "web~000001:b"],
                &["web~000001:a"],
            ),
            // The name belongs to the member that was added last.
            (
                &[hidden("web~000001", "a"), again, hidden("web~000001", "a")],
                &["web~000002:a", "web~000001:b"],
                &["web~000001:a"],
            ),
            (&[hidden("web~000001", "a"), gone], &[], &[]),
        ];
        for (events, members, hidden) in table {
            let known = registry(&[&two(), events].concat());
            let there: Vec<String> = known.members().map(Member::real_namespec).collect();
            assert_eq!(there, members, "{events:?}");
            let hidden_processes: Vec<String> = known
                .hidden()
                .map(|(group, process, _)| format!("{group}:{process}"))
                .collect();
            assert_eq!(hidden_processes, hidden, "{events:?}");
            assert_eq!(
                known.needs_no_translation(),
                members.is_empty(),
                "{events:?}"
            );
            let same = registry(&known.snapshot());
            assert_eq!(same.snapshot(), known.snapshot(), "{events:?}");
        }
    }

    #[test]
    fn owners_of_expected_and_removed_groups_are_known() {
        let mut known = registry(&[]);
        known.expect(&two());
        assert_eq!(known.owner("web~000001"), Some("web"));
        known.expect(&[]);
        assert_eq!(known.owner("web~000001"), None);
        two().into_iter().for_each(|event| known.apply(event));
        known.apply(hidden("web~000001", "a"));
        known.apply(left("web", "b"));
        assert_eq!(known.owner("web~000001"), Some("web"));
        assert_eq!(known.hidden_start("web~000001", "a"), Some(5));
        assert_eq!(known.hidden_start("web~000001", "b"), None);
        assert_eq!(known.members_in("web~000001").count(), 0);
    }

    #[test]
    fn only_configured_processes_become_visible_when_a_client_starts_them() {
        let events = [two(), vec![hidden("web~000001", "a"), hidden("web", "c")]].concat();
        let known = registry(&events);
        use ProcessState::{Running as RUNNING, Stopped as STOPPED};
        let table = [
            ("web", "c", STOPPED, 5, true),
            ("web", "c", RUNNING, 6, false),
            ("web", "c", STOPPED, 6, false),
            ("web~000001", "a", STOPPED, 5, true),
            ("web~000001", "a", RUNNING, 6, true),
            ("web~000001", "b", STOPPED, 5, false),
            ("web", "a", STOPPED, 5, false),
        ];
        for (group, process, state, started, expected) in table {
            let is_hidden = known.is_hidden(group, process, state, started);
            assert_eq!(is_hidden, expected, "{group}:{process} {state:?}");
        }
    }

    #[test]
    fn names_resolve_to_members_and_never_to_hidden_processes() {
        let events = [two(), vec![hidden("web~000001", "a"), hidden("web", "c")]].concat();
        let known = registry(&events);
        assert!(matches!(known.place("web", "a"), Place::Ordinary));
        assert!(matches!(known.place("web", "b"), Place::Placed(member) if member.index == 1));
        assert!(matches!(known.place("web", "c"), Place::Hidden(5)));
        assert!(matches!(known.place("web~000001", "a"), Place::Hidden(5)));
        assert!(matches!(known.place("web~000001", "b"), Place::Ordinary));
        assert!(known.has_placed_or_hidden("web") && !known.has_placed_or_hidden("other"));
    }
}
