//! Plans changes, from the registry and the daemon's answers.
//!
//! Pure: it returns the queries and takes the answers as values. Placement is decided here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::answers::{Answers, Query};
use super::change::{Change, ChangeError};
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::{ProcessInfo, ProcessState, ReloadResult};
use crate::program::{self, Program, Scope};
use crate::registry::{Event, Member, Place, Registry, Rendered, is_still_hidden, real_name};

/// Returns whether the daemon starts a stopped process in the next turn of its loop
/// (`supervisor/process.py`, `transition`). `program` is the process's definition. Returns `None` if that
/// is unknown.
fn will_start(info: &ProcessInfo, program: Option<&Program>) -> Option<bool> {
    match info.state {
        ProcessState::Exited => program?.restarts(info.exit_status),
        ProcessState::Stopped if info.start == 0 => {
            if program?.autostarts() {
                None
            } else {
                Some(false)
            }
        }
        _ => Some(false),
    }
}

/// The steps for one change.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Add an empty group.
    Create { group: String, priority: i64 },
    /// Add a program to a group without processes. The processes keep their own names in the daemon.
    Fill {
        group: String,
        priority: i64,
        section: String,
        program: Box<Program>,
        members: Vec<Member>,
        /// The user's files define the group, or somebody has added a process to it: it may not be empty.
        may_have_processes: bool,
    },
    /// Add a program in a real group.
    Place {
        real: String,
        priority: i64,
        program: Box<Program>,
        members: Vec<Member>,
    },
    /// Remove a real group with its last members.
    Drop {
        group: String,
        processes: Vec<String>,
        real: String,
    },
    /// Hide a process: the daemon keeps it, stopped, and clients do not see it any more.
    Hide {
        /// The daemon's group.
        real: String,
        process: String,
        start: i64,
        /// The daemon may start it by itself in the next turn of its loop.
        may_start: bool,
    },
    /// Remove the last process of a group that clients know: make the group empty again.
    Reset {
        group: String,
        priority: i64,
        process: String,
    },
    /// Remove a group with all its real groups.
    Dissolve { group: String, reals: Vec<String> },
}

impl Plan {
    /// The events if all steps succeed.
    pub fn events(&self) -> Vec<Event> {
        match self {
            Plan::Create { group, priority } => {
                vec![Event::Group {
                    name: group.clone(),
                    priority: *priority,
                }]
            }
            Plan::Fill { members, .. } | Plan::Place { members, .. } => members
                .iter()
                .map(|member| Event::Joined(Arc::new(member.clone())))
                .collect(),
            Plan::Drop {
                group, processes, ..
            } => processes
                .iter()
                .map(|process| left_event(group, process))
                .collect(),
            Plan::Reset { group, process, .. } => vec![left_event(group, process)],
            Plan::Hide {
                real,
                process,
                start,
                ..
            } => vec![Event::Hidden {
                group: real.clone(),
                process: process.clone(),
                start: *start,
            }],
            Plan::Dissolve { group, .. } => vec![Event::GroupGone {
                name: group.clone(),
            }],
        }
    }

    /// The sections that the daemon must read for the plan. Placed processes call `proxy`, as in
    /// [`Program::render_with_proxy_url`].
    pub fn sections(&self, proxy: Option<&str>) -> String {
        match self {
            Plan::Create { group, priority }
            | Plan::Reset {
                group, priority, ..
            } => program::render_group(group, *priority, &[]),
            Plan::Fill {
                group,
                priority,
                section,
                program,
                ..
            } => {
                program::render_group(group, *priority, &[section])
                    + &program.render(section, Scope::All)
            }
            Plan::Place {
                real,
                priority,
                program,
                ..
            } => program.render_placed(real, Scope::Placed, *priority, proxy),
            Plan::Drop { .. } | Plan::Hide { .. } | Plan::Dissolve { .. } => String::new(),
        }
    }

    /// The program that the plan adds, and the section that a fault of the daemon about it names.
    pub fn program(&self) -> Option<(&Program, &str)> {
        match self {
            Plan::Fill {
                program, section, ..
            } => Some((program, section)),
            Plan::Place { program, real, .. } => Some((program, real)),
            _ => None,
        }
    }

    /// An empty section for the group to be filled, if it may have processes. `reloadConfig` lists the
    /// group as changed if it has any.
    pub fn probe_section(&self) -> Option<String> {
        match self {
            Plan::Fill {
                group,
                priority,
                may_have_processes: true,
                ..
            } => Some(program::render_group(group, *priority, &[])),
            _ => None,
        }
    }

    /// Whether the daemon starts a process of the plan by itself.
    pub fn autostarts(&self) -> bool {
        match self {
            Plan::Fill { program, .. } | Plan::Place { program, .. } => program.autostarts(),
            _ => false,
        }
    }

    /// Whether the daemon has to read sections for the plan.
    pub fn needs_reload(&self) -> bool {
        !matches!(
            self,
            Plan::Drop { .. } | Plan::Hide { .. } | Plan::Dissolve { .. }
        )
    }

    /// Whether the registry depends on the daemon's epoch after the plan.
    pub fn needs_marker(&self) -> bool {
        self.needs_reload() || matches!(self, Plan::Hide { .. })
    }

    /// The group that the plan removes and adds again, and the section that restores it as an empty group
    /// if the addition fails.
    pub fn recreated_group(&self) -> Option<(&str, String)> {
        match self {
            Plan::Fill {
                group, priority, ..
            }
            | Plan::Reset {
                group, priority, ..
            } => Some((group, program::render_group(group, *priority, &[]))),
            _ => None,
        }
    }

    /// Whether the daemon has read all sections of the plan.
    pub fn is_read(&self, reloaded: &ReloadResult) -> bool {
        match self {
            Plan::Create { group, .. } => reloaded.added.contains(group),
            Plan::Fill { group, .. } | Plan::Reset { group, .. } => {
                reloaded.changed.contains(group)
            }
            Plan::Place { real, .. } => reloaded.added.contains(real),
            Plan::Drop { .. } | Plan::Hide { .. } | Plan::Dissolve { .. } => true,
        }
    }
}

/// The events if all steps of all `plans` succeed.
pub fn events<'p>(plans: impl IntoIterator<Item = &'p Plan>) -> Vec<Event> {
    plans.into_iter().flat_map(Plan::events).collect()
}

fn left_event(group: &str, process: &str) -> Event {
    Event::Left {
        group: group.to_owned(),
        process: process.to_owned(),
    }
}

/// The queries whose answers are needed to plan `changes`. `names` has the process names of each change
/// that adds a program.
pub fn queries(registry: &Registry, changes: &[Change], names: &[Vec<String>]) -> Vec<Query> {
    let mut queries = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |query: Query| {
        if seen.insert(query.clone()) {
            queries.push(query);
        }
    };
    for (change, names) in changes.iter().zip(names) {
        if let Change::RemoveProcess { group, process } = change
            && let Some(member) = placed(registry, group, process)
        {
            // If the whole real group is removed, the removal itself tells whether the process has stopped.
            if registry.members_in(&member.real).nth(1).is_some() {
                add(locate(registry, group, process));
            }
            continue;
        }
        if let Change::RemovePlaced { .. } = change {
            continue;
        }
        add(Query::Group(change.group().to_owned()));
        match change {
            Change::AddGroup { .. } | Change::RemovePlaced { .. } => {}
            Change::AddProgram(program) => {
                names
                    .iter()
                    .filter(|name| may_be_there(registry, program.group(), name))
                    .for_each(|name| add(locate(registry, program.group(), name)));
            }
            Change::RemoveProcess { group, process } => add(locate(registry, group, process)),
            Change::RemoveGroup { name, .. } if registry.added_group(name).is_some() => {
                registry
                    .members_of(name)
                    .for_each(|member| add(locate(registry, name, &member.process)));
            }
            Change::RemoveGroup { .. } => add(Query::AllProcesses),
        }
    }
    queries
}

fn placed<'r>(registry: &'r Registry, group: &str, process: &str) -> Option<&'r Member> {
    let member = registry.member(group, process);
    member.filter(|member| member.is_placed())
}

/// Returns whether the daemon may have a process of this name. Only this proxy adds processes to an added
/// group.
fn may_be_there(registry: &Registry, group: &str, process: &str) -> bool {
    registry.added_group(group).is_none()
        || registry.member(group, process).is_some()
        || registry.hidden_start(group, process).is_some()
}

fn locate(registry: &Registry, group: &str, process: &str) -> Query {
    let real = registry
        .member(group, process)
        .map_or(group, |member| &member.real);
    Query::Process {
        real: real.to_owned(),
        process: process.to_owned(),
    }
}

/// The plans that follow from the daemon's answers.
pub struct Draft {
    /// One plan for each change, or why it fails.
    pub plans: Vec<Result<Plan, ChangeError>>,
    /// Events that correct the registry according to the answers.
    pub corrections: Vec<Event>,
    /// The first number that is free after these plans.
    pub next: u64,
}

impl Draft {
    /// Plans all `changes`. `names` has the process names of each change that adds a program, or the error
    /// with which the change fails.
    pub fn new(
        mut planner: Planner<'_>,
        changes: &[Change],
        names: &[Result<Vec<String>, ChangeError>],
    ) -> Self {
        let plans = changes
            .iter()
            .zip(names)
            .map(|(change, names)| planner.plan(change, names.as_ref().map_err(Clone::clone)?))
            .collect();
        Draft {
            plans,
            corrections: planner.corrections,
            next: planner.next,
        }
    }
}

/// Plans the changes of one transaction, one after another.
pub struct Planner<'a> {
    registry: &'a Registry,
    configured: &'a [ConfiguredGroup],
    answers: &'a Answers,
    next: u64,
    persists: bool,
    /// Added groups that contain processes which this proxy did not add.
    foreign_groups: &'a BTreeSet<String>,
    /// Groups that a plan of this transaction fills.
    filled: HashSet<String>,
    /// The members that plans of this transaction hide, by the daemon's group.
    leaving: HashMap<String, BTreeSet<String>>,
    /// Events that correct the registry according to the answers.
    corrections: Vec<Event>,
}

impl<'a> Planner<'a> {
    /// Creates a planner. `configured` are the groups of the user's files, `answers` the daemon's answers
    /// to [`queries`], and `next` is the first free number of real groups. With `persists`, additions are
    /// also in the persist file. Groups in `foreign_groups` are probed before they are filled.
    pub fn new(
        registry: &'a Registry,
        configured: &'a [ConfiguredGroup],
        answers: &'a Answers,
        next: u64,
        persists: bool,
        foreign_groups: &'a BTreeSet<String>,
    ) -> Self {
        Planner {
            registry,
            configured,
            answers,
            next,
            persists,
            foreign_groups,
            filled: HashSet::new(),
            leaving: HashMap::new(),
            corrections: Vec::new(),
        }
    }

    /// Plans one change. `names` has the process names if it adds a program.
    ///
    /// # Errors
    /// Why the change fails.
    pub fn plan(&mut self, change: &Change, names: &[String]) -> Result<Plan, ChangeError> {
        match change {
            Change::AddGroup { name, priority } => self.plan_group(name.as_str(), *priority),
            Change::AddProgram(program) => self.plan_program(program, names),
            Change::RemoveProcess { group, process } => self.plan_removal(group, process),
            Change::RemovePlaced { group, real, .. } => {
                self.plan_removal_of_real_group(group, real)
            }
            Change::RemoveGroup { name } => self.plan_removal_of_group(name),
        }
    }

    fn plan_group(&self, group: &str, priority: i64) -> Result<Plan, ChangeError> {
        // A group of the user's files is reserved even while it is inactive: a generated section would
        // replace its section.
        if self.is_configured(group) || self.has_group(group) {
            return Err(ChangeError::NameTaken(group.to_owned()));
        }
        Ok(Plan::Create {
            group: group.to_owned(),
            priority,
        })
    }

    fn plan_program(&mut self, program: &Program, names: &[String]) -> Result<Plan, ChangeError> {
        let group = program.group();
        self.require_group(group)?;
        for name in names {
            if self.visible(group, name).is_some() {
                return Err(ChangeError::NameTaken(name.clone()));
            }
        }
        let priority = self.registry.priority(self.configured, group);
        let program = Box::new(program.clone());
        if self.can_fill(group, names.len()) {
            self.filled.insert(group.to_owned());
            let section = self.take_name(group);
            let members = self.members(&program, names, group);
            return Ok(Plan::Fill {
                group: group.to_owned(),
                priority,
                section,
                program,
                members,
                may_have_processes: self.is_configured(group)
                    || self.foreign_groups.contains(group),
            });
        }
        let real = self.take_name(group);
        let members = self.members(&program, names, &real);
        Ok(Plan::Place {
            real,
            priority,
            program,
            members,
        })
    }

    /// Turns the plan to fill a group, which is not empty after all, into a plan to place the program.
    pub fn place_instead(plan: Plan, name: impl FnOnce(&str) -> String) -> Plan {
        match plan {
            Plan::Fill {
                group,
                priority,
                program,
                mut members,
                ..
            } => {
                let real = name(&group);
                for member in &mut members {
                    member.real.clone_from(&real);
                }
                Plan::Place {
                    real,
                    priority,
                    program,
                    members,
                }
            }
            other => other,
        }
    }

    fn plan_removal(&mut self, group: &str, process: &str) -> Result<Plan, ChangeError> {
        match placed(self.registry, group, process) {
            Some(member) if self.is_last_member(&member.real, process) => Ok(Plan::Drop {
                real: member.real.clone(),
                group: group.to_owned(),
                processes: vec![process.to_owned()],
            }),
            Some(member) => self.plan_hiding(&member.real, group, process),
            None => self.plan_removal_of_own(group, process),
        }
    }

    /// The removal itself tells whether the processes have stopped.
    fn plan_removal_of_real_group(&self, group: &str, real: &str) -> Result<Plan, ChangeError> {
        let members = self.registry.members_in(real);
        let members = members.filter(|member| member.is_placed() && member.group == group);
        let processes: Vec<String> = members.map(|member| member.process.clone()).collect();
        if processes.is_empty() {
            Err(ChangeError::UnknownGroup(real.to_owned()))
        } else {
            Ok(Plan::Drop {
                group: group.to_owned(),
                processes,
                real: real.to_owned(),
            })
        }
    }

    /// Plans the removal of a process that has its own name in the daemon.
    fn plan_removal_of_own(&mut self, group: &str, process: &str) -> Result<Plan, ChangeError> {
        self.require_group(group)?;
        self.require_stopped(group, process)?;
        let is_member = self.registry.member(group, process).is_some();
        if is_member && self.is_last_member(group, process) {
            return Ok(Plan::Reset {
                priority: self.registry.priority(self.configured, group),
                group: group.to_owned(),
                process: process.to_owned(),
            });
        }
        self.plan_hiding(group, group, process)
    }

    fn plan_hiding(&mut self, real: &str, group: &str, process: &str) -> Result<Plan, ChangeError> {
        let info = self.require_stopped(group, process)?;
        let member = self.registry.member(group, process);
        let will_start = will_start(info, member.and_then(|member| member.program.as_ref()));
        if will_start == Some(true) {
            return Err(ChangeError::StillRunning(process.to_owned()));
        }
        let leaving = self.leaving.entry(real.to_owned()).or_default();
        leaving.insert(process.to_owned());
        Ok(Plan::Hide {
            real: real.to_owned(),
            process: process.to_owned(),
            start: info.start,
            may_start: will_start.is_none(),
        })
    }

    /// Returns the process that clients see under this name. Fails unless it has stopped.
    fn require_stopped(
        &mut self,
        group: &str,
        process: &str,
    ) -> Result<&'a ProcessInfo, ChangeError> {
        let info = self
            .visible(group, process)
            .ok_or_else(|| ChangeError::UnknownProcess(process.to_owned()))?;
        if info.state.is_stopped() {
            Ok(info)
        } else {
            Err(ChangeError::StillRunning(process.to_owned()))
        }
    }

    /// Returns whether `process` is the last member of the daemon's group `real`.
    fn is_last_member(&self, real: &str, process: &str) -> bool {
        let leaving = self.leaving.get(real);
        self.registry
            .members_in(real)
            .filter(|member| member.process != process)
            .all(|member| leaving.is_some_and(|leaving| leaving.contains(&member.process)))
    }

    fn plan_removal_of_group(&mut self, group: &str) -> Result<Plan, ChangeError> {
        self.require_group(group)?;
        if let Some(process) = self.first_running(group) {
            return Err(ChangeError::StillRunning(process));
        }
        let placed = self.registry.members_of(group);
        let placed = placed.filter(|member| member.is_placed());
        let reals: BTreeSet<String> = placed.map(|member| member.real.clone()).collect();
        let mut reals: Vec<String> = reals.into_iter().collect();
        if self.answers.is_active(group) {
            reals.push(group.to_owned());
        }
        Ok(Plan::Dissolve {
            group: group.to_owned(),
            reals,
        })
    }

    fn first_running(&self, group: &str) -> Option<String> {
        self.answers
            .processes
            .values()
            .filter(|info| info.group == group || self.registry.owner(&info.group) == Some(group))
            .filter(|info| !info.state.is_stopped())
            .map(|info| info.name.clone())
            .min()
    }

    fn is_configured(&self, group: &str) -> bool {
        let mut groups = self.configured.iter();
        groups.any(|configured| configured.name == group)
    }

    /// Returns whether clients see the group. It may be missing in the daemon while it has placed members.
    fn has_group(&self, group: &str) -> bool {
        self.answers.is_active(group) && self.registry.owner(group).is_none()
            || self.registry.members_of(group).any(Member::is_placed)
    }

    fn require_group(&self, group: &str) -> Result<(), ChangeError> {
        if self.has_group(group) {
            Ok(())
        } else {
            Err(ChangeError::UnknownGroup(group.to_owned()))
        }
    }

    /// Returns the process that clients see under this name, if any. Records a correction if the registry
    /// differs from the answers.
    fn visible(&mut self, group: &str, process: &str) -> Option<&'a ProcessInfo> {
        let place = self.registry.place(group, process);
        let real = match place {
            Place::Placed(member) => &member.real,
            Place::Ordinary | Place::Hidden(_) => group,
        };
        let info = self.answers.process(real, process);
        let name = || (group.to_owned(), process.to_owned());
        match (place, info) {
            (Place::Hidden(start), Some(info))
                if is_still_hidden(start, info.state, info.start) =>
            {
                None
            }
            (Place::Hidden(_), info) => {
                let (group, process) = name();
                self.corrections.push(Event::Shown { group, process });
                info
            }
            (_, None) if self.registry.member(group, process).is_some() => {
                let (group, process) = name();
                self.corrections.push(Event::Left { group, process });
                None
            }
            (_, info) => info,
        }
    }

    /// Returns whether the group has no process and can be removed and added again with the program. With
    /// `persists`, a configured group cannot: its section in the persist file would replace the user's
    /// section. Nor can a program of several processes, because they are removed one by one.
    fn can_fill(&self, group: &str, processes: usize) -> bool {
        let added = self.registry.added_group(group).is_some();
        let configured_empty = || {
            self.configured
                .iter()
                .any(|configured| configured.name == group && configured.empty)
        };
        let known = if self.persists {
            added && processes == 1
        } else {
            added || configured_empty()
        };
        known
            && self.answers.is_active(group)
            && self.registry.members_of(group).next().is_none()
            && !self.registry.has_placed_or_hidden(group)
            && !self.filled.contains(group)
    }

    /// The next name for a real group. It skips names that the user's files use.
    fn take_name(&mut self, group: &str) -> String {
        loop {
            let name = real_name(group, self.next);
            self.next += 1;
            if !self.is_configured(&name) {
                return name;
            }
        }
    }

    fn members(&self, program: &Program, names: &[String], real: &str) -> Vec<Member> {
        (0u32..)
            .zip(names)
            .map(|(index, name)| Member {
                group: program.group().to_owned(),
                process: name.clone(),
                real: real.to_owned(),
                index,
                program: Some(program.clone()),
                section: None,
                rendered: Rendered::default(),
            })
            .collect()
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::program::Name;
    use crate::registry::tests::{hidden, joined, registry, two};
    use crate::xmlrpc::Value;

    use ProcessState::{Exited as EXITED, Running as RUNNING, Stopped as STOPPED};

    pub fn program(group: &str, name: &str, numprocs: usize) -> Change {
        let options = [
            ("command", Value::from("/bin/cat")),
            ("numprocs", Value::Int(i64::try_from(numprocs).unwrap())),
            ("process_name", "%(program_name)s_%(process_num)d".into()),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), value));
        let group = Name::parse(group).unwrap();
        let program = Program::parse(&group, name, &Value::Struct(options.into()), "");
        Change::AddProgram(Box::new(program.unwrap()))
    }

    fn names(change: &Change) -> Vec<String> {
        match change {
            Change::AddProgram(program) => program.process_names().unwrap(),
            _ => Vec::new(),
        }
    }

    pub fn removal(group: &str, process: &str) -> Change {
        Change::RemoveProcess {
            group: group.to_owned(),
            process: process.to_owned(),
        }
    }

    /// The processes of each group in the daemon, with their states and start times.
    #[derive(Clone, Default)]
    struct DaemonState(HashMap<String, BTreeMap<String, (ProcessState, i64)>>);

    impl DaemonState {
        fn answer(&self, queries: &[Query]) -> Answers {
            let mut answers = Answers::default();
            for query in queries {
                match query {
                    Query::Group(name) => {
                        let active = self.0.contains_key(name);
                        answers.groups.insert(name.clone(), active);
                    }
                    Query::Process { real, process } => {
                        if let Some((state, start)) =
                            self.0.get(real).and_then(|group| group.get(process))
                        {
                            let mut info = ProcessInfo::stopped(real, process, *start);
                            info.state = *state;
                            answers.insert(info);
                        }
                    }
                    Query::AllProcesses => unreachable!("no group is removed"),
                }
            }
            answers
        }

        fn make(&mut self, plan: &Plan) {
            match plan {
                Plan::Place { real, members, .. } => {
                    let processes = members.iter();
                    let processes = processes.map(|member| (member.process.clone(), (STOPPED, 5)));
                    assert!(!self.0.contains_key(real), "{real} is there");
                    self.0.insert(real.clone(), processes.collect());
                }
                Plan::Drop { real, .. } => {
                    assert!(self.0.remove(real).is_some(), "{real} is not there");
                }
                Plan::Hide { real, process, .. } => {
                    assert!(self.0[real].contains_key(process), "{real}:{process}");
                }
                other => unreachable!("{other:?}"),
            }
        }
    }

    fn plan_changes(
        registry: &Registry,
        daemon: &DaemonState,
        changes: &[Change],
        next: u64,
    ) -> (Vec<Result<Plan, ChangeError>>, u64) {
        let names: Vec<Vec<String>> = changes.iter().map(names).collect();
        let answers = daemon.answer(&queries(registry, changes, &names));
        let no_groups = BTreeSet::new();
        let planner = Planner::new(registry, &[], &answers, next, false, &no_groups);
        let names: Vec<_> = names.into_iter().map(Ok).collect();
        let draft = Draft::new(planner, changes, &names);
        (draft.plans, draft.next)
    }

    /// A plan in a few words.
    fn short(plan: &Result<Plan, ChangeError>) -> String {
        match plan {
            Ok(Plan::Place { real, members, .. }) => format!("place {} in {real}", members.len()),
            Ok(Plan::Drop { real, .. }) => format!("drop {real}"),
            Ok(Plan::Hide {
                real,
                process,
                may_start,
                ..
            }) => match may_start {
                true => format!("hide {real}:{process} if it stays"),
                false => format!("hide {real}:{process}"),
            },
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn removing_one_of_several_processes_hides_it_and_removing_the_last_removes_the_real_group() {
        let other = joined("web", "c", "web~000002", 0);
        let known = registry(&[two(), vec![hidden("web~000002", "a"), other]].concat());
        let daemon = |a: (ProcessState, i64), b: (ProcessState, i64)| {
            let pair = [("a".to_owned(), a), ("b".to_owned(), b)];
            let lone = [
                ("c".to_owned(), (RUNNING, 5)),
                ("a".to_owned(), (STOPPED, 5)),
            ];
            DaemonState(HashMap::from([
                ("web".to_owned(), BTreeMap::new()),
                ("web~000001".to_owned(), pair.into()),
                ("web~000002".to_owned(), lone.into()),
            ]))
        };
        let (stopped, never) = ((STOPPED, 5), (STOPPED, 0));
        let (running, exited) = ((RUNNING, 5), (EXITED, 5));
        type Row<'a> = (DaemonState, &'a [&'a str], &'a [&'a str]);
        let table: [Row<'_>; 9] = [
            (daemon(stopped, stopped), &["a"], &["hide web~000001:a"]),
            (
                daemon(stopped, stopped),
                &["b", "a"],
                &["hide web~000001:b", "drop web~000001"],
            ),
            (
                daemon(never, stopped),
                &["a"],
                &["hide web~000001:a if it stays"],
            ),
            (
                daemon(exited, stopped),
                &["a"],
                &["hide web~000001:a if it stays"],
            ),
            (daemon(running, stopped), &["a"], &["STILL_RUNNING: a"]),
            // A process whose removal is refused counts as a member.
            (
                daemon(running, stopped),
                &["a", "b"],
                &["STILL_RUNNING: a", "hide web~000001:b"],
            ),
            // The daemon's removal tells whether the last process runs.
            (
                daemon(stopped, running),
                &["a", "b"],
                &["hide web~000001:a", "drop web~000001"],
            ),
            (daemon(stopped, stopped), &["c"], &["drop web~000002"]),
            (daemon(stopped, stopped), &["nope"], &["BAD_NAME: nope"]),
        ];
        for (daemon, processes, expected) in table {
            let changes: Vec<Change> = processes.iter().map(|name| removal("web", name)).collect();
            let (plans, _) = plan_changes(&known, &daemon, &changes, 3);
            let plans: Vec<String> = plans.iter().map(short).collect();
            assert_eq!(plans, expected, "{processes:?}");
        }
    }

    #[test]
    fn a_program_is_placed_in_one_section_and_hidden_names_can_be_used_again() {
        let known = registry(&[two(), vec![hidden("web~000001", "w_0")]].concat());
        let daemon = DaemonState(HashMap::from([("web".to_owned(), BTreeMap::new())]));
        let (plans, next) = plan_changes(&known, &daemon, &[program("web", "w", 3)], 3);
        assert_eq!(short(&plans[0]), "place 3 in web~000003");
        assert_eq!(next, 4);
        let sections = plans[0].as_ref().unwrap().sections(None);
        assert_eq!(sections.matches("[program:").count(), 1, "{sections}");
        assert!(sections.contains("numprocs=3\n"), "{sections}");
        assert!(
            sections.contains("SUPERVISOR_GROUP_NAME=\"web\""),
            "{sections}"
        );
    }

    /// A small random number generator. Each run yields the same numbers.
    pub struct Dice(pub u64);

    impl Dice {
        pub fn roll(&mut self, sides: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(self.0 >> 33).unwrap() % sides
        }
    }

    #[test]
    fn no_real_group_or_hidden_process_remains_after_random_changes() {
        const CHANGES: usize = 10_000;
        let mut dice = Dice(1);
        let mut known = Registry::default();
        let mut daemon = DaemonState(HashMap::from([("web".to_owned(), BTreeMap::new())]));
        let mut next = 1;
        let mut shown: BTreeSet<String> = BTreeSet::new();
        let mut hides = 0;
        for serial in 0..CHANGES {
            let adds = shown.len() < 2 || shown.len() < 40 && dice.roll(2) == 0;
            let changes: Vec<Change> = if adds {
                // A name may be added again while a process of that name is hidden.
                let name = format!("p{}", serial % 50);
                vec![program("web", &name, 1 + dice.roll(5))]
            } else {
                let count = 1 + dice.roll(3);
                let first = dice.roll(shown.len());
                let leave = shown.iter().skip(first).take(count);
                leave.map(|name| removal("web", name)).collect()
            };
            let (plans, after) = plan_changes(&known, &daemon, &changes, next);
            next = after;
            for (change, plan) in changes.iter().zip(plans) {
                let is_used = names(change).iter().any(|name| shown.contains(name));
                assert_eq!(plan.is_err(), adds && is_used, "{plan:?}");
                let Ok(plan) = plan else { continue };
                hides += usize::from(matches!(plan, Plan::Hide { .. }));
                daemon.make(&plan);
                plan.events()
                    .into_iter()
                    .for_each(|event| known.apply(event));
                match change {
                    Change::RemoveProcess { process, .. } => drop(shown.remove(process)),
                    _ => shown.extend(names(change)),
                }
            }
            let members: BTreeSet<String> = known
                .members()
                .map(|member| member.process.clone())
                .collect();
            assert_eq!(members, shown);
            let reals: BTreeSet<&String> = known.members().map(|member| &member.real).collect();
            assert_eq!(daemon.0.len(), reals.len() + 1, "a real group is left");
            for (real, process, _) in known.hidden() {
                assert!(reals.contains(&real.to_owned()), "{real}:{process} is left");
            }
        }
        assert!(hides > CHANGES / 10, "only {hides} were hidden");
    }
}
