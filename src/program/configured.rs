//! Programs of the user's files: how the proxy copies them to generated sections, and the probe
//! sections by which it asks the daemon about their options.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{MAX_NUMPROCS, Name, Program, ProgramError, Scope};

/// Separates the options in the command of [`Program::render_unlisted_probe`].
pub const SEPARATOR: &str = " ~|~ ";
/// The options that `getAllConfigInfo` does not list, in the order in which
/// [`Program::render_unlisted_probe`] writes them; `environment` follows. The daemon lists `autostart`,
/// but every probe has to set it to false.
pub const UNLISTED: [&str; 4] = ["umask", "autorestart", "autostart", "stopasgroup"];

/// Marks a program that comes from the user's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromFiles {
    /// The text of `environment` in `[supervisord]` when the program was read.
    pub environment: Option<String>,
    /// Whether the program has more processes than the files define, because a client scaled it.
    #[serde(default)]
    pub is_extra: bool,
}

impl Program {
    /// Returns the processes with these `numbers` of a program that the user's files define. Each
    /// returned program has at most [`MAX_NUMPROCS`] of them. `total` is the value of `%(numprocs)d`.
    ///
    /// # Errors
    /// If the program cannot be copied to a generated section.
    pub fn from_definition(
        group: &str,
        name: &str,
        options: &BTreeMap<String, String>,
        numbers: Range<i64>,
        total: i64,
        from: &FromFiles,
    ) -> Result<Vec<Self>, ProgramError> {
        let group = Name::parse_group(group).map_err(|error| ProgramError(error.into()))?;
        let mut programs = Vec::new();
        let mut first = numbers.start;
        while first < numbers.end {
            let count = (numbers.end - first).min(i64::from(MAX_NUMPROCS));
            let mut options = options.clone();
            options.insert("numprocs".to_owned(), count.to_string());
            options.insert("numprocs_start".to_owned(), first.to_string());
            let program = Self::from_options(group.clone(), name, options)
                .map_err(|refusal| refusal.into_error(name, ""))?;
            programs.push(Self {
                total: u32::try_from(total).ok(),
                from_files: Some(from.clone()),
                ..program
            });
            first += count;
        }
        Ok(programs)
    }

    /// Returns the processes with these `numbers` of this program, which a client has added. `total` is
    /// the value of `%(numprocs)d`.
    ///
    /// # Errors
    /// If the program cannot be copied to a generated section.
    pub fn part(&self, numbers: Range<i64>, total: i64) -> Result<Vec<Self>, ProgramError> {
        let unused = FromFiles {
            environment: None,
            is_extra: false,
        };
        let parts = Self::from_definition(
            self.group(),
            self.name(),
            &self.options,
            numbers,
            total,
            &unused,
        )?;
        let parts = parts.into_iter().map(|part| Self {
            from_files: self.from_files.clone(),
            calls_proxy: self.calls_proxy,
            ..part
        });
        Ok(parts.collect())
    }

    /// Returns the origin in the user's files, or `None` if a client has added the program.
    pub fn from_files(&self) -> Option<&FromFiles> {
        self.from_files.as_ref()
    }

    /// Returns whether `SUPERVISOR_SERVER_URL` of the placed processes points to the proxy.
    pub fn calls_proxy(&self) -> bool {
        self.calls_proxy
    }

    /// Returns the program marked as having more processes than the files define.
    #[must_use]
    pub fn as_extra(mut self) -> Self {
        if let Some(from) = &mut self.from_files {
            from.is_extra = true;
        }
        self
    }

    /// Returns the value of `%(numprocs)d`.
    pub fn total(&self) -> u32 {
        self.total.unwrap_or(self.numprocs)
    }

    /// Returns the numbers of the processes.
    pub fn numbers(&self) -> Range<i64> {
        self.process_nums()
    }

    /// Returns the options with their texts as in a configuration file.
    pub fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    /// Renders a probe: a section that the daemon never starts and whose expanded options it lists in
    /// `getAllConfigInfo`.
    pub fn render_probe(&self, section: &str) -> String {
        self.render(section, Scope::All) + "autostart=false\n"
    }

    /// Renders a probe that has the [`UNLISTED`] options in its command, so that the daemon lists them
    /// expanded in `getAllConfigInfo`.
    pub fn render_unlisted_probe(&self, section: &str) -> String {
        let text = |option: &str| self.options.get(option).map_or("", String::as_str);
        let mut texts: Vec<&str> = UNLISTED.iter().map(|option| text(option)).collect();
        texts.push(text("environment"));
        let mut options = BTreeMap::from([("command".to_owned(), texts.join(SEPARATOR))]);
        for option in ["process_name", "numprocs", "numprocs_start"] {
            if let Some(text) = self.options.get(option) {
                options.insert(option.to_owned(), text.clone());
            }
        }
        let probe = Self {
            options,
            ..self.clone()
        };
        probe.render_probe(section)
    }
}
