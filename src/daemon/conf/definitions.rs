//! The programs that the files define, with their options before expansion.
//!
//! This module finds the sections. The daemon judges and expands their options.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::expand::pairs;
use super::groups::{MAX_CONFIGURED, program_of};
use super::ini::Section;
use super::reader::Reader;
use super::{ConfError, Environment};
use crate::python::{int, strip};

/// The groups that the files define.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definitions {
    /// The text of `environment` in `[supervisord]`, which every program inherits.
    pub environment: Option<String>,
    /// The groups, in the order in which the daemon reads them.
    pub groups: Vec<GroupDefinition>,
}

/// A group with its programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDefinition {
    /// The name of the group.
    pub name: String,
    /// The kind of its sections.
    pub kind: Kind,
    /// Whether the group has a `[group:x]` section. Otherwise a single program's section defines it.
    pub has_section: bool,
    /// The priority, or the default if none is set.
    pub priority: i64,
    /// The text of `priority` in the file.
    #[serde(rename = "written_priority")]
    pub priority_text: Option<String>,
    /// The programs, in the order of the group.
    pub programs: Vec<ProgramDefinition>,
}

/// The kind of a group (`supervisor/options.py`, `process_groups_from_parser`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord)]
pub enum Kind {
    /// Ordinary programs.
    Program,
    /// A FastCGI program, whose processes share a socket.
    Fcgi,
    /// Event listeners, which share an event buffer.
    Listener,
}

/// A section that defines processes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramDefinition {
    /// The name of the program.
    pub name: String,
    /// The kind of its section.
    pub kind: Kind,
    /// The number of processes.
    pub numprocs: i64,
    /// The number of the first process.
    pub numprocs_start: i64,
    /// The texts of the options in the file, by name.
    pub options: BTreeMap<String, String>,
}

impl Kind {
    /// Returns the part of the section's name before the colon.
    pub fn section(self) -> &'static str {
        match self {
            Kind::Program => "program",
            Kind::Fcgi => "fcgi-program",
            Kind::Listener => "eventlistener",
        }
    }

    fn of_section(section: &str) -> Option<Self> {
        let kinds = [Kind::Program, Kind::Fcgi, Kind::Listener];
        let kind = section.split_once(':')?.0;
        kinds.into_iter().find(|other| other.section() == kind)
    }
}

/// Leaves out the values of the options, which may be secrets.
impl std::fmt::Debug for ProgramDefinition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgramDefinition")
            .field("name", &self.name)
            .field("numprocs", &self.numprocs)
            .field("options", &self.options.keys())
            .finish_non_exhaustive()
    }
}

impl Definitions {
    /// Returns the group of this name.
    pub fn group(&self, name: &str) -> Option<&GroupDefinition> {
        self.groups.iter().find(|group| group.name == name)
    }
}

impl GroupDefinition {
    /// Returns the program of this name.
    pub fn program(&self, name: &str) -> Option<&ProgramDefinition> {
        self.programs.iter().find(|program| program.name == name)
    }
}

/// Reads the definitions in `file` and the files that it includes. `[include]` is expanded with `env`, the
/// environment of this process, and everything else with `of_daemon`, the daemon's environment.
///
/// # Errors
/// If the file is missing or cannot be read.
pub fn definitions(
    file: &Path,
    env: &Environment<'_>,
    of_daemon: &Environment<'_>,
) -> Result<Definitions, ConfError> {
    let mut reader = Reader::open(file, env)?;
    reader.include();
    reader.names.outer = of_daemon;
    reader.load_environment();
    Ok(reader.definitions())
}

/// Parses the variables of an expanded `environment`. Returns `None` if the daemon would refuse the text.
pub fn variables(text: &str) -> Option<BTreeMap<String, String>> {
    Some(pairs(text)?.into_iter().collect())
}

impl Reader<'_> {
    fn definitions(&self) -> Definitions {
        let environment = self.sections.find("supervisord", "environment");
        Definitions {
            environment: environment.map(|setting| setting.value.clone()),
            groups: self.group_definitions(),
        }
    }

    fn group_definitions(&self) -> Vec<GroupDefinition> {
        let groups = self.groups();
        let definition = |section: &Section| {
            let (kind, name) = section.name.split_once(':')?;
            let name = match kind {
                "eventlistener" => name,
                _ => strip(name),
            };
            let has_section = kind == "group";
            let programs = if has_section {
                self.members(&section.name)
            } else {
                vec![section.name.clone()]
            };
            let configured = groups.iter().find(|group| group.name == name)?;
            let priority = self.sections.find(&section.name, "priority");
            Some(GroupDefinition {
                name: name.to_owned(),
                kind: if has_section {
                    Kind::Program
                } else {
                    Kind::of_section(&section.name)?
                },
                has_section,
                priority: configured.priority,
                priority_text: priority.map(|setting| setting.value.clone()),
                programs: programs
                    .iter()
                    .filter_map(|program| self.program_definition(program, name))
                    .collect(),
            })
        };
        let in_groups = self.sections_in_groups();
        self.sections
            .iter()
            .filter(|section| !in_groups.contains(&section.name))
            .filter_map(definition)
            .collect()
    }

    fn program_definition(&self, section: &str, group: &str) -> Option<ProgramDefinition> {
        let options = self.sections.options(section);
        let start = self.sections.find(section, "numprocs_start");
        let start = start.and_then(|setting| self.names.format(&setting.value).ok());
        Some(ProgramDefinition {
            name: program_of(section).to_owned(),
            kind: Kind::of_section(section)?,
            numprocs: self.numprocs(section, group).clamp(0, MAX_CONFIGURED),
            numprocs_start: start.and_then(|text| int(&text).value()).unwrap_or(0),
            options,
        })
    }
}
