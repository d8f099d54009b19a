//! What was changed in one epoch of the daemon: groups, members and where they live, hidden processes.
//!
//! The registry is pure: it takes events and answers questions about names. The [`Journal`] has it on
//! disk.
//!
//! A *real* name is the one that the daemon knows; the others are those that clients use. A *real group*
//! holds processes of one program that clients see in another group: some are members, and those that
//! left before the last one are hidden.

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
/// So many replies that speak of something gone are not under way at a time.
const MAX_FORMER: usize = 64;

/// Whether a process that was hidden when it had last started at `start` still is: while the daemon
/// says this of it, it is stopped, or about to be, and has not been started since.
pub fn is_still_hidden(start: i64, state: ProcessState, started: i64) -> bool {
    use ProcessState::{Exited, Fatal, Stopped, Stopping};
    // A daemon that starts again starts what was hidden, and is asked to stop it.
    matches!(state, Stopped | Stopping | Exited | Fatal) && started == start
}

/// One thing that happened, as the journal keeps it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Event {
    /// The daemon's life is recognised by this empty group of ours.
    Marker(String),
    /// A group was added.
    Group {
        /// The group.
        name: String,
        /// Its priority.
        priority: i64,
    },
    /// A group that was added is gone, and all its members with it.
    GroupGone {
        /// The group.
        name: String,
    },
    /// A process joined a group.
    Joined(Arc<Member>),
    /// A process that had joined has left, and the daemon does not hold it any more.
    Left {
        /// The group that clients know.
        group: String,
        /// The process.
        process: String,
    },
    /// A process has left although the daemon still holds it; `start` is when it last started.
    Hidden {
        /// The daemon's group.
        group: String,
        /// The process.
        process: String,
        /// When it last started.
        start: i64,
    },
    /// A hidden process is to be seen again, or the daemon holds it no more.
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
    /// Whether there is less to be seen after it.
    pub fn takes_away(&self) -> bool {
        matches!(
            self,
            Event::GroupGone { .. } | Event::Left { .. } | Event::Hidden { .. }
        )
    }
}

/// A process that was added.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Member {
    /// The group that clients know.
    pub group: String,
    /// The process's name, which is the same in the daemon.
    pub process: String,
    /// The daemon's group that holds it: `group` itself, or a real group.
    pub real: String,
    /// Which of the program's processes it is.
    pub index: u32,
    /// What it was made from; unknown for one that was found in the daemon.
    pub program: Option<Program>,
    /// The body of its section, where only that is known: it was kept, and the journal was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// The text of its section.
    #[serde(skip)]
    pub rendered: Rendered,
}

impl Member {
    /// Whether it lives in a real group.
    pub fn is_placed(&self) -> bool {
        self.real != self.group
    }

    /// Whether a daemon that starts again makes it by itself, because its files define it.
    pub fn is_in_files(&self) -> bool {
        let from = self.program.as_ref().and_then(Program::from_files);
        from.is_some_and(|from| !from.is_extra)
    }

    /// Whether its program or section is known, so that it can be made again.
    pub fn is_reproducible(&self) -> bool {
        self.program.is_some() || self.section.is_some()
    }

    /// What happens when it leaves.
    pub fn leaving(&self) -> Event {
        Event::Left {
            group: self.group.clone(),
            process: self.process.clone(),
        }
    }

    /// The daemon's name of the process.
    pub fn real_namespec(&self) -> String {
        format!("{}:{}", self.real, self.process)
    }
}

/// Where a process is that a client named.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// Under that very name, if at all: nothing to translate.
    Ordinary,
    /// In a real group.
    Placed(&'a Member),
    /// Removed, but still held by the daemon; it last started at this time.
    Hidden(i64),
}

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    marker: Option<String>,
    next: u64,
    groups: BTreeMap<String, i64>,
    members: BTreeMap<String, BTreeMap<String, Arc<Member>>>,
    real: HashMap<String, RealGroup>,
    /// Real groups that the daemon may have already, because a change is under way, and the groups
    /// that clients know for them.
    soon: HashMap<String, String>,
    /// Real groups that are gone, latest last: replies may still speak of them.
    former: VecDeque<Former>,
    /// By the daemon's group.
    hidden: BTreeMap<String, BTreeMap<String, i64>>,
}

/// A group of the daemon whose processes clients see in another group.
#[derive(Clone, Debug)]
struct RealGroup {
    /// The group that clients know.
    group: String,
    /// The members that it holds.
    members: BTreeSet<String>,
}

/// A real group that is gone.
#[derive(Clone, Debug)]
struct Former {
    real: String,
    group: String,
    /// What clients did not see of it.
    hidden: BTreeMap<String, i64>,
}

impl Registry {
    /// Takes note of what happened.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Marker(name) => self.marker = Some(name),
            Event::Group { name, priority } => {
                self.groups.insert(name, priority);
            }
            Event::GroupGone { name } => self.forget_group(&name),
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

    /// Takes note of what is about to happen, in place of what was before.
    pub fn expect(&mut self, events: &[Event]) {
        let joining = events.iter().filter_map(|event| match event {
            Event::Joined(member) if member.is_placed() => Some(member),
            _ => None,
        });
        self.soon = joining
            .map(|member| (member.real.clone(), member.group.clone()))
            .collect();
    }

    /// The events from which an equal registry can be made.
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

    /// Forgets everything but the numbers: a daemon that started again knows nothing of it.
    pub fn clear(&mut self) {
        *self = Registry {
            next: self.next,
            ..Registry::default()
        };
    }

    /// Nothing was changed in this life of the daemon.
    pub fn is_empty(&self) -> bool {
        self.marker.is_none() && self.has_no_entries()
    }

    /// Nothing is left of what was changed in this life of the daemon.
    pub fn has_no_entries(&self) -> bool {
        self.groups.is_empty() && self.members.is_empty() && self.hidden.is_empty()
    }

    /// No name needs translation.
    pub fn is_plain(&self) -> bool {
        self.real.is_empty() && self.hidden.is_empty() && self.soon.is_empty()
    }

    /// The empty group by which this life of the daemon is known.
    pub fn marker(&self) -> Option<&str> {
        self.marker.as_deref()
    }

    /// The next number for a real group.
    pub fn next(&self) -> u64 {
        self.next.max(1)
    }

    /// The priority of a group that was added here.
    pub fn added_group(&self, name: &str) -> Option<i64> {
        self.groups.get(name).copied()
    }

    /// The priority of a group that clients know: the one it was added with, or the one in the files.
    pub fn priority(&self, configured: &[ConfiguredGroup], group: &str) -> i64 {
        let in_files = || {
            let mut groups = configured.iter();
            let found = groups.find(|configured| configured.name == group);
            found.map_or(DEFAULT_PRIORITY, |configured| configured.priority)
        };
        self.added_group(group).unwrap_or_else(in_files)
    }

    /// Names of all groups that were added here.
    pub fn added_groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// All processes that were added, by group and name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.shared_members().map(Arc::as_ref)
    }

    fn shared_members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values().flat_map(BTreeMap::values)
    }

    /// The processes that were added to `group`.
    pub fn members_of(&self, group: &str) -> impl Iterator<Item = &Member> {
        self.members
            .get(group)
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(Arc::as_ref)
    }

    /// The process that was added under this name.
    pub fn member(&self, group: &str, process: &str) -> Option<&Member> {
        self.members.get(group)?.get(process).map(Arc::as_ref)
    }

    /// The members that this group of the daemon holds.
    pub fn members_in<'r, 'n>(
        &'r self,
        real: &'n str,
    ) -> impl Iterator<Item = &'r Member> + use<'r, 'n> {
        let held = self.real.get(real).map(|held| held.group.as_str());
        let members = self.members.get(held.unwrap_or(real)).into_iter();
        members
            .flat_map(BTreeMap::values)
            .map(Arc::as_ref)
            .filter(move |member| member.real == real)
    }

    /// The group that clients know for this real group, which is there, is about to be or was. None
    /// for a group that bears its own name.
    pub fn owner(&self, real: &str) -> Option<&str> {
        let there = self.real.get(real).map(|held| &held.group);
        let owner = there.or_else(|| self.soon.get(real));
        let owner = owner.or_else(|| self.former(real).map(|former| &former.group));
        owner.map(String::as_str)
    }

    /// The daemon's group of the process that clients see under this name.
    pub fn real_group<'a>(&'a self, group: &'a str, process: &str) -> &'a str {
        let member = self.member(group, process);
        member.map_or(group, |member| &member.real)
    }

    /// What is seen again of a group of the daemon that is made anew.
    pub fn uncovered(&self, group: &str) -> Vec<Event> {
        self.hidden()
            .filter(|(hidden, _, _)| *hidden == group)
            .map(|(group, process, _)| Event::Shown {
                group: group.to_owned(),
                process: process.to_owned(),
            })
            .collect()
    }

    /// What is lost when the group `real` is removed from the daemon and added again: members that nobody
    /// knows how to make, and that its hidden processes are hidden.
    pub fn lost_if_made_anew(&self, real: &str) -> Vec<Event> {
        let members = self.members_in(real);
        let unknown = members.filter(|member| !member.is_reproducible());
        let mut lost: Vec<Event> = unknown.map(Member::leaving).collect();
        lost.extend(self.uncovered(real));
        lost
    }

    /// Hidden processes: the daemon's group, process, when it last started.
    pub fn hidden(&self) -> impl Iterator<Item = (&str, &str, i64)> {
        self.hidden.iter().flat_map(|(group, processes)| {
            processes
                .iter()
                .map(|(process, start)| (group.as_str(), process.as_str(), *start))
        })
    }

    /// When the hidden process of this real name last started.
    pub fn hidden_start(&self, group: &str, process: &str) -> Option<i64> {
        let former = || Some(&self.former(group)?.hidden);
        self.hidden
            .get(group)
            .or_else(former)?
            .get(process)
            .copied()
    }

    /// Whether clients do not see the process of this real name, of which the daemon says that it is
    /// in this state and last started then. In a real group it is never seen again; elsewhere it is
    /// when somebody starts it.
    pub fn is_hidden(&self, group: &str, process: &str, state: ProcessState, started: i64) -> bool {
        self.hidden_start(group, process).is_some_and(|start| {
            self.owner(group).is_some() || is_still_hidden(start, state, started)
        })
    }

    /// Whether the daemon holds a hidden process anywhere.
    pub fn hides(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// Whether calls on the whole of `group` need translation.
    pub fn has_placed_or_hidden(&self, group: &str) -> bool {
        self.hidden.contains_key(group) || self.members_of(group).any(Member::is_placed)
    }

    /// Where the process is that clients call `group:process`.
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
        // Its name may have been another one's.
        let known = self.member(&member.group, &member.process);
        if known.is_some_and(|known| known.real != member.real) {
            self.leave(&member.group, &member.process);
        }
        if member.is_placed() {
            let held = self.real.entry(member.real.clone());
            let held = held.or_insert_with(|| RealGroup {
                group: member.group.clone(),
                members: BTreeSet::new(),
            });
            held.members.insert(member.process.clone());
        }
        let processes = self.members.entry(member.group.clone()).or_default();
        processes.insert(member.process.clone(), member);
    }

    fn hide(&mut self, group: String, process: String, start: i64) {
        let held = self.real.contains_key(&group);
        self.leave_real(&group, &process);
        if held && !self.real.contains_key(&group) {
            return; // it was the last member
        }
        self.hidden.entry(group).or_default().insert(process, start);
    }

    /// The process of this real name leaves, if it is a member.
    fn leave_real(&mut self, real: &str, process: &str) {
        let held = self.real.get(real).map(|held| held.group.clone());
        let group = held.unwrap_or_else(|| real.to_owned());
        let is_there = |member: &Member| member.real == real;
        if self.member(&group, process).is_some_and(is_there) {
            self.leave(&group, process);
        }
    }

    fn leave(&mut self, group: &str, process: &str) {
        let Some(processes) = self.members.get_mut(group) else {
            return;
        };
        let left = processes.remove(process);
        if processes.is_empty() {
            self.members.remove(group);
        }
        if let Some(member) = left {
            self.release(&member.real, process);
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

    fn forget_group(&mut self, name: &str) {
        self.groups.remove(name);
        self.hidden.remove(name);
        let members = self.members.remove(name).into_iter().flatten();
        for (process, member) in members {
            self.release(&member.real, &process);
        }
    }

    /// A real group goes with its last member, and with it whatever is hidden there.
    fn release(&mut self, real: &str, process: &str) {
        let Some(held) = self.real.get_mut(real) else {
            return;
        };
        held.members.remove(process);
        if !held.members.is_empty() {
            return;
        }
        if let Some(RealGroup { group, .. }) = self.real.remove(real) {
            self.former.push_back(Former {
                real: real.to_owned(),
                group,
                hidden: self.hidden.remove(real).unwrap_or_default(),
            });
        }
        if self.former.len() > MAX_FORMER {
            self.former.pop_front();
        }
    }

    fn former(&self, real: &str) -> Option<&Former> {
        self.former.iter().rev().find(|former| former.real == real)
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
    fn a_real_group_goes_with_its_last_member() {
        let gone = Event::GroupGone {
            name: "web".to_owned(),
        };
        let again = joined("web", "a", "web~000002", 0);
        // What happens to two processes, who is left where, and what is hidden.
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
            // The name belongs to the one that came later.
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
            let covered: Vec<String> = known
                .hidden()
                .map(|(group, process, _)| format!("{group}:{process}"))
                .collect();
            assert_eq!(covered, hidden, "{events:?}");
            assert_eq!(known.is_plain(), members.is_empty(), "{events:?}");
            let same = registry(&known.snapshot());
            assert_eq!(same.snapshot(), known.snapshot(), "{events:?}");
        }
    }

    #[test]
    fn replies_may_speak_of_groups_that_come_or_are_gone() {
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
    fn only_configured_processes_are_seen_again_when_somebody_starts_them() {
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
    fn names_lead_to_members_and_never_to_what_is_hidden() {
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
