//! The baseline: the sections that the daemon's groups were made from, as far as they are known.
//!
//! It is stored in a file beside the journal, so that it outlives the proxy. The proxy uses nothing in it
//! before the daemon has confirmed it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::daemon::conf::{Definitions, GroupDefinition};
use crate::include_dir::IncludeDir;
use crate::program::Program;

/// The name of the baseline file. No include pattern of the daemon matches names that begin with a dot.
pub const FILE_NAME: &str = ".twiddler-baseline";

/// The sections that a group was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// `[supervisord] environment` at that time, unexpanded.
    pub environment: Option<String>,
    /// The group's sections at that time.
    pub group: GroupDefinition,
}

/// A program that runs with another number of processes than the files say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// The program's group.
    pub group: String,
    /// The program's name.
    pub program: String,
    /// The number of processes that the client asked for.
    pub numprocs: i64,
    /// The number of processes in the files when the program was scaled.
    pub configured: i64,
    /// The definition of a program that a client added, if it has no process now.
    #[serde(default)]
    pub added: Option<Program>,
}

impl Scale {
    /// Whether a client added the program.
    pub fn is_added(&self) -> bool {
        self.added.is_some()
    }
}

/// A process that an update stopped and that is to run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The process's group.
    pub group: String,
    /// The process's name.
    pub process: String,
    /// Its last start before the update stopped it, in seconds since 1970.
    pub start: i64,
    /// Whether the update removes and adds its group, which resets the time of the last start to 0.
    #[serde(default)]
    pub is_made_anew: bool,
}

/// The contents of the baseline file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The sections that the daemon's own groups were made from, by group.
    pub groups: BTreeMap<String, Base>,
    /// The sections that an update last applied to a group without removing and adding it, by group.
    #[serde(default)]
    pub applied: BTreeMap<String, Base>,
    /// Programs that a client scaled.
    #[serde(default)]
    pub scales: Vec<Scale>,
    /// Processes that ran when an update stopped them, until they run again.
    #[serde(default)]
    pub restarts: Vec<Restart>,
    /// Added programs that an update is about to add again with another definition.
    #[serde(default)]
    pub rejoining: Vec<Program>,
    /// The epoch marker of the daemon, if it had one.
    #[serde(default)]
    pub marker: Option<String>,
}

impl Base {
    /// The sections of this group in the files.
    pub fn of(files: &Definitions, group: &GroupDefinition) -> Self {
        Base {
            environment: files.environment.clone(),
            group: group.clone(),
        }
    }
}

impl Baseline {
    /// Reads the file. A file that does not exist or cannot be read gives an empty baseline.
    pub fn read(include: &IncludeDir) -> Self {
        let mut text = String::new();
        let read = match include.read(FILE_NAME) {
            Ok(Some(mut file)) => file.read_to_string(&mut text).map(|_| ()),
            Ok(None) => return Baseline::default(),
            Err(error) => Err(error),
        };
        let read = read.and_then(|()| Ok(serde_json::from_str(&text)?));
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, path = %include.path().join(FILE_NAME).display(), "what the groups were started from is not known: the file cannot be read");
            Baseline::default()
        })
    }

    /// Whether the file exists.
    pub fn is_written(include: &IncludeDir) -> bool {
        include.path().join(FILE_NAME).is_file()
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When the file cannot be written. The old file is then unchanged.
    pub fn write(&self, include: &IncludeDir) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        include
            .replace(FILE_NAME, |file| {
                file.write_all(&text)?;
                file.sync_data()
            })
            .map(drop)
    }

    /// Records that the daemon made the group `name` from the files.
    pub fn note_made(&mut self, files: &Definitions, name: &str) {
        self.applied.remove(name);
        match files.group(name) {
            Some(group) => drop(self.groups.insert(name.to_owned(), Base::of(files, group))),
            None => drop(self.groups.remove(name)),
        }
    }

    /// The number of processes that a program was scaled to, if the number in the files is still
    /// `configured`.
    pub fn scaled(&self, group: &str, program: &str, configured: i64) -> Option<i64> {
        let is_same = |scale: &&Scale| scale.group == group && scale.program == program;
        let scale = self.scales.iter().find(is_same)?;
        (scale.configured == configured && scale.numprocs != configured).then_some(scale.numprocs)
    }

    /// Forgets that a program was scaled.
    pub fn forget_scale(&mut self, group: &str, program: &str) {
        self.scales
            .retain(|scale| scale.group != group || scale.program != program);
    }

    /// Forgets the scales of configured programs that the files no longer define, or whose `numprocs` has
    /// changed in the files.
    pub fn forget_old_scales(&mut self, files: &Definitions) {
        self.scales.retain(|scale| {
            if scale.is_added() {
                return true;
            }
            let group = files.group(&scale.group);
            let program = group.and_then(|group| group.program(&scale.program));
            program.is_some_and(|program| program.numprocs == scale.configured)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A baseline file, as a proxy of an earlier build may have left it.
    const FILE: &str = r#"{"groups":{"web":{"environment":"A=1","group":{"name":"web","kind":"Program","has_section":true,"priority":5,"written_priority":"5","programs":[{"name":"a","kind":"Program","numprocs":2,"numprocs_start":0,"options":{"command":"/bin/cat"}}]}}},"applied":{},"scales":[{"group":"web","program":"a","numprocs":3,"configured":2,"added":null}],"restarts":[{"group":"web","process":"a","start":7,"is_made_anew":false}],"rejoining":[],"marker":"twiddler~1-2"}"#;

    #[test]
    fn the_names_in_the_file_stay() {
        let baseline: Baseline = serde_json::from_str(FILE).unwrap();
        let value = serde_json::to_value(&baseline).unwrap();
        let expected: serde_json::Value = serde_json::from_str(FILE).unwrap();
        assert_eq!(value, expected);
    }
}
