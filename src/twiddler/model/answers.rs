//! Queries that only the daemon can answer, and its answers.

use std::collections::HashMap;

use crate::daemon::ProcessInfo;
use crate::daemon::conf::ConfiguredGroup;
use crate::registry::Registry;

/// A question about the daemon's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// Whether there is an active group of this name.
    Group(String),
    /// The state of a process of this group of the daemon.
    Process { real: String, process: String },
    /// All processes.
    AllProcesses,
}

/// The daemon's answers.
#[derive(Debug, Default)]
pub struct Answers {
    /// Whether each group is active.
    pub groups: HashMap<String, bool>,
    /// The processes that the daemon has, by its group and name.
    pub processes: HashMap<(String, String), ProcessInfo>,
}

impl Answers {
    /// The process of this real name, if the daemon has it.
    pub fn process(&self, real: &str, process: &str) -> Option<&ProcessInfo> {
        self.processes.get(&(real.to_owned(), process.to_owned()))
    }

    /// Whether the daemon answered that the group is active. `false` for a group that was not in the
    /// queries.
    pub fn is_active(&self, group: &str) -> bool {
        self.groups.get(group).copied().unwrap_or(false)
    }

    /// Adds a process.
    pub fn insert(&mut self, info: ProcessInfo) {
        let key = (info.group.clone(), info.name.clone());
        self.processes.insert(key, info);
    }

    /// The answers to expect if only this proxy has changed the daemon.
    pub fn expected(
        registry: &Registry,
        configured: &[ConfiguredGroup],
        queries: &[Query],
    ) -> Self {
        let mut answers = Answers::default();
        for query in queries {
            match query {
                Query::Group(name) => {
                    let active = registry.added_group(name).is_some()
                        || configured.iter().any(|group| group.name == *name);
                    answers.groups.insert(name.clone(), active);
                }
                Query::Process { real, process } => {
                    let hidden = registry.hidden_start(real, process);
                    let is_member = registry
                        .members_in(real)
                        .any(|member| member.process == *process);
                    if is_member || hidden.is_some() {
                        let start = hidden.unwrap_or_default();
                        answers.insert(ProcessInfo::stopped(real, process, start));
                    }
                }
                Query::AllProcesses => {}
            }
        }
        answers
    }
}
