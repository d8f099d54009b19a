//! What the daemon's groups were made from, as far as it is known.
//!
//! Kept in a file of its own beside the journal, so that it outlives the proxy. Nothing in it is
//! believed before the daemon has confirmed it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::daemon::conf::{Definitions, GroupDefinition};
use crate::include_dir::IncludeDir;
use crate::program::Program;

/// Begins with a dot: the daemon's include pattern skips such names whatever it is.
pub const FILE_NAME: &str = ".twiddler-baseline";

/// What a group was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// `[supervisord] environment` at that time, as it was written.
    pub environment: Option<String>,
    /// The group's sections at that time.
    pub group: GroupDefinition,
}

/// A program that runs with another number of processes than the files say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Its group.
    pub group: String,
    /// Its name.
    pub program: String,
    /// How many processes it is to have.
    pub numprocs: i64,
    /// How many the files said when it was scaled.
    pub configured: i64,
    /// What it is, where a client has added it and it has no process now.
    #[serde(default)]
    pub added: Option<Program>,
}

impl Scale {
    /// Whether a client has added the program.
    pub fn is_added(&self) -> bool {
        self.added.is_some()
    }
}

/// A process that is being replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Its group.
    pub group: String,
    /// Its name.
    pub process: String,
    /// When it had last started before it was stopped.
    pub start: i64,
    /// Its group is made anew, after which it has never started.
    #[serde(default)]
    pub is_made_anew: bool,
}

/// All that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// What the daemon's own groups were made from.
    pub groups: BTreeMap<String, Base>,
    /// What the files said of a group when they were last put in force without making it anew.
    #[serde(default)]
    pub applied: BTreeMap<String, Base>,
    /// Programs that were scaled.
    #[serde(default)]
    pub scales: Vec<Scale>,
    /// Processes that ran when an update stopped them, until they run again.
    #[serde(default)]
    pub restarts: Vec<Restart>,
    /// Added programs that are about to join their groups, in the place of others that leave.
    #[serde(default)]
    pub rejoining: Vec<Program>,
    /// What marked the daemon's epoch that it is about, where something did.
    #[serde(default)]
    pub marker: Option<String>,
}

impl Base {
    /// What the files say of this group.
    pub fn of(files: &Definitions, group: &GroupDefinition) -> Self {
        Base {
            environment: files.environment.clone(),
            group: group.clone(),
        }
    }
}

impl Baseline {
    /// Reads the file; what is not there or cannot be read is not known.
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

    /// Whether the file is there.
    pub fn is_written(include: &IncludeDir) -> bool {
        include.path().join(FILE_NAME).is_file()
    }

    /// Writes the file in the place of the one that is there.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it; the file is as before then.
    pub fn write(&self, include: &IncludeDir) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        include
            .replace(FILE_NAME, |file| {
                file.write_all(&text)?;
                file.sync_data()
            })
            .map(drop)
    }

    /// Takes note of a group that the daemon made from what the files say.
    pub fn made(&mut self, files: &Definitions, name: &str) {
        self.applied.remove(name);
        match files.group(name) {
            Some(group) => drop(self.groups.insert(name.to_owned(), Base::of(files, group))),
            None => drop(self.groups.remove(name)),
        }
    }

    /// The number that a program was scaled to, if the files still say what they said then.
    pub fn scaled(&self, group: &str, program: &str, configured: i64) -> Option<i64> {
        let is_it = |scale: &&Scale| scale.group == group && scale.program == program;
        let scale = self.scales.iter().find(is_it)?;
        (scale.configured == configured && scale.numprocs != configured).then_some(scale.numprocs)
    }

    /// Forgets what a program was scaled to.
    pub fn forget_scale(&mut self, group: &str, program: &str) {
        self.scales
            .retain(|scale| scale.group != group || scale.program != program);
    }

    /// Forgets the numbers of programs whose number the files have changed, or that they have no more.
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
