//! Questions that only the daemon can answer, and its answers.

use std::collections::HashMap;

use crate::daemon::ProcessInfo;
use crate::daemon::conf::ConfiguredGroup;
use crate::registry::Registry;

/// Something that only the daemon knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// Is there an active group of this name?
    Group(String),
    /// What state is the process of this real group in?
    Process { real: String, process: String },
    /// What processes are there at all?
    AllProcesses,
}

/// What the daemon answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// Whether a group is active.
    pub groups: HashMap<String, bool>,
    /// Processes that are there, by real group and name.
    pub processes: HashMap<(String, String), ProcessInfo>,
}

impl Answers {
    /// The process of this real name, where it is there.
    pub fn process(&self, real: &str, process: &str) -> Option<&ProcessInfo> {
        self.processes.get(&(real.to_owned(), process.to_owned()))
    }

    /// Whether the daemon said that a group is active.
    pub fn is_active(&self, group: &str) -> bool {
        self.groups.get(group).copied().unwrap_or(false)
    }

    /// Takes note of a process.
    pub fn insert(&mut self, info: ProcessInfo) {
        let key = (info.group.clone(), info.name.clone());
        self.processes.insert(key, info);
    }

    /// What the daemon will answer if nobody but us has changed anything.
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
                    let joined = registry
                        .members_in(real)
                        .any(|member| member.process == *process);
                    if joined || hidden.is_some() {
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
