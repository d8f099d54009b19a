//! The programs that the files define, with their options as they are written.
//!
//! What the daemon would make of them is the daemon's to say: this only finds the sections.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::expand::pairs;
use super::groups::{MAX_CONFIGURED, program_of};
use super::ini::Section;
use super::reader::Reader;
use super::{ConfError, Environment};
use crate::python::{int, strip};

/// What the files define, in the daemon's order of reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definitions {
    /// `[supervisord] environment` as it is written, which the daemon gives to every program.
    pub environment: Option<String>,
    /// The groups.
    pub groups: Vec<GroupDefinition>,
}

/// A group with its programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDefinition {
    /// Its name.
    pub name: String,
    /// Which kind of section makes it.
    pub kind: Kind,
    /// Whether a `[group:x]` of its own makes it, and not the section of a lone program.
    pub has_section: bool,
    /// The number of its priority, and the default where it has none.
    pub priority: i64,
    /// Its priority as it is written.
    pub written_priority: Option<String>,
    /// Its programs, in their order.
    pub programs: Vec<ProgramDefinition>,
}

/// What makes the processes of a group (`supervisor/options.py`, `process_groups_from_parser`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord)]
pub enum Kind {
    /// Programs.
    Program,
    /// A FastCGI program, whose processes share a socket.
    Fcgi,
    /// Event listeners, which share a buffer of events.
    Listener,
}

/// A section that defines processes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramDefinition {
    /// Its name.
    pub name: String,
    /// The kind of its section.
    pub kind: Kind,
    /// How many processes it has; none where that is not known here.
    pub numprocs: i64,
    /// The number of the first.
    pub numprocs_start: i64,
    /// Its options as they are written, by name.
    pub options: BTreeMap<String, String>,
}

impl Kind {
    /// The kind of its section, as the daemon names it.
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
        kinds.into_iter().find(|one| one.section() == kind)
    }
}

/// Leaves the values of options out: they may be secrets.
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
    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&GroupDefinition> {
        self.groups.iter().find(|group| group.name == name)
    }
}

impl GroupDefinition {
    /// The program of this name.
    pub fn program(&self, name: &str) -> Option<&ProgramDefinition> {
        self.programs.iter().find(|program| program.name == name)
    }
}

/// Reads what the files define. Files are found by the variables of `env`, as this process sees them;
/// all else is told by those `of_daemon`.
///
/// # Errors
/// When the file is missing or cannot be read.
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

/// The variables that a text such as `environment` sets, by name; none where the daemon would refuse
/// it. What `%(name)s` stands for in it must be settled before.
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
        let named = |section: &Section| {
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
            let known = groups.iter().find(|group| group.name == name)?;
            let written = self.sections.find(&section.name, "priority");
            Some(GroupDefinition {
                name: name.to_owned(),
                kind: if has_section {
                    Kind::Program
                } else {
                    Kind::of_section(&section.name)?
                },
                has_section,
                priority: known.priority,
                written_priority: written.map(|setting| setting.value.clone()),
                programs: programs
                    .iter()
                    .filter_map(|program| self.program_definition(program, name))
                    .collect(),
            })
        };
        let claimed = self.claimed();
        self.sections
            .iter()
            .filter(|section| !claimed.contains(&section.name))
            .filter_map(named)
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
