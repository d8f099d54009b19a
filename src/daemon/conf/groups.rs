//! The groups that the files define, with the names of their processes.

use std::collections::HashSet;

use super::expand::format;
use super::ini::Section;
use super::reader::Reader;
use crate::daemon::descriptors::Descriptors;
use crate::program::ConfiguredProgram;
use crate::python::{int, is_space, strip};

/// The default priority of groups and programs.
const DEFAULT_PRIORITY: i64 = 999;
/// The default priority of event listeners, which start first and stop last.
const DEFAULT_LISTENER_PRIORITY: i64 = -1;
/// The largest number of processes of one program that is read. A larger `numprocs` is cut to it.
pub(super) const MAX_CONFIGURED: i64 = 10_000;

/// A group that the files define, by a `[group:x]` section or by the section of a single program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredGroup {
    /// The name of the group.
    pub name: String,
    /// The priority.
    pub priority: i64,
    /// Whether the group has no process.
    pub empty: bool,
    /// The names of the processes, in the daemon's order among those of one priority
    /// (`supervisor/options.py`, `process_groups_from_parser`). A name that only the daemon can expand
    /// is left out.
    pub processes: Vec<String>,
}

impl Reader<'_> {
    pub(super) fn groups(&self) -> Vec<ConfiguredGroup> {
        let in_groups = self.sections_in_groups();
        let sections = self.sections.iter();
        let groups = sections.filter(|section| !in_groups.contains(&section.name));
        groups.filter_map(|section| self.group(section)).collect()
    }

    /// Returns the names of the program sections that belong to a `[group:x]`.
    pub(super) fn sections_in_groups(&self) -> HashSet<String> {
        let groups = self.sections.starting_with("group:");
        let members = groups.flat_map(|group| self.members(&group.name));
        members.collect()
    }

    fn group(&self, section: &Section) -> Option<ConfiguredGroup> {
        let (kind, name) = section.name.split_once(':')?;
        let priority = match kind {
            "group" | "program" | "fcgi-program" => DEFAULT_PRIORITY,
            "eventlistener" => DEFAULT_LISTENER_PRIORITY,
            _ => return None,
        };
        let members = if kind == "group" {
            self.members(&section.name)
        } else {
            vec![section.name.clone()]
        };
        // The daemon does not strip the names of event listeners.
        let name = if kind == "eventlistener" {
            name
        } else {
            strip(name)
        };
        let processes = members.iter();
        let processes = processes.flat_map(|program| self.processes(program, name));
        Some(ConfiguredGroup {
            name: name.to_owned(),
            priority: self.number(&section.name, "priority").unwrap_or(priority),
            empty: members
                .iter()
                .all(|program| self.numprocs(program, name) <= 0),
            processes: processes.collect(),
        })
    }

    fn processes(&self, section: &str, group: &str) -> Vec<String> {
        let text = |key| {
            let setting = self.sections.find(section, key);
            setting.map(|setting| setting.value.as_str())
        };
        let count = self.numprocs(section, group).clamp(0, MAX_CONFIGURED);
        let first = text("numprocs_start").and_then(|text| int(text).value());
        let first = first.unwrap_or(0);
        let configured = ConfiguredProgram {
            name: program_of(section),
            group,
            process_name: text("process_name"),
            numbers: first..first.saturating_add(count),
        };
        configured.process_names(|name| self.names.get(name))
    }

    /// Returns the names of the program sections that belong to the section `group`.
    pub(super) fn members(&self, group: &str) -> Vec<String> {
        let programs = self.text(group, "programs");
        let programs = programs.filter(|programs| !programs.is_empty());
        let names = programs.iter().flat_map(|programs| programs.split(','));
        let sections = names.map(strip).map(|name| {
            let program = format!("program:{name}");
            if self.sections.get(&program).is_some() {
                program
            } else {
                format!("fcgi-program:{name}")
            }
        });
        sections.collect()
    }

    /// Returns the number of processes of a program: 1 if the option is missing or cannot be expanded.
    pub(super) fn numprocs(&self, section: &str, group: &str) -> i64 {
        let Some(setting) = self.sections.find(section, "numprocs") else {
            return 1;
        };
        let program = program_of(section);
        let text = format(&setting.value, |name| match name {
            "program_name" => Some(program.to_owned()),
            "group_name" => Some(group.to_owned()),
            _ => self.names.get(name),
        });
        text.ok().and_then(|text| int(&text).value()).unwrap_or(1)
    }

    /// Returns `minfds`, or the daemon's default if it is missing or invalid. The daemon reports an
    /// invalid one.
    pub(super) fn minfds(&self) -> usize {
        let number = self.number("supervisord", "minfds");
        let number = number.and_then(|number| number.try_into().ok());
        number.unwrap_or(Descriptors::default().limit)
    }

    fn number(&self, section: &str, key: &str) -> Option<i64> {
        int(&self.text(section, key)?).value()
    }

    /// Returns the names of the program sections that run `twiddler serve`.
    pub(super) fn proxies(&self) -> Vec<String> {
        let is_proxy = |section: &&Section| {
            let command = self.sections.find(&section.name, "command");
            let words = command.into_iter();
            let mut words = words.flat_map(|set| set.value.split(is_space));
            words.any(is_twiddler) && words.any(|word| word == "serve")
        };
        let programs = self.sections.starting_with("program:");
        let proxies = programs.filter(is_proxy);
        proxies.map(|section| section.name.clone()).collect()
    }
}

/// Returns the name of the program that a section defines.
pub(super) fn program_of(section: &str) -> &str {
    section.split_once(':').map_or("", |(_, name)| strip(name))
}

fn is_twiddler(word: &str) -> bool {
    word.rsplit('/').next() == Some("twiddler")
}
