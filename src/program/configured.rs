//! Programs of the user's files, as the proxy carries them to the daemon and asks it about them.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::template::Template;
use super::{MAX_NUMPROCS, Name, Program, ProgramError, Scope};

/// What stands between the options that [`Program::render_unshown`] puts into one text.
pub const SEPARATOR: &str = " ~|~ ";
/// The options of which the daemon's lists say nothing, in the order of that text, and
/// `environment` after them. `autostart` is among them because probes are never to start.
pub const UNSHOWN: [&str; 4] = ["umask", "autorestart", "autostart", "stopasgroup"];

/// That a program comes from the user's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromFiles {
    /// `[supervisord] environment` at that time, as it is written.
    pub environment: Option<String>,
    /// It has processes that the files do not say, because it was scaled.
    #[serde(default)]
    pub is_extra: bool,
}

impl Program {
    /// The processes with these numbers of a program that the files define. `total` is what they are
    /// told of how many there are. There is one program for each thousand processes.
    ///
    /// # Errors
    /// When it cannot be carried over to a generated section.
    pub fn configured(
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

    /// The same for a program that a client has added, of which these processes are wanted.
    ///
    /// # Errors
    /// As [`Program::configured`].
    pub fn part(&self, numbers: Range<i64>, total: i64) -> Result<Vec<Self>, ProgramError> {
        let unused = FromFiles {
            environment: None,
            is_extra: false,
        };
        let parts = Self::configured(
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

    /// Where it comes from, unless a client has added it.
    pub fn from_files(&self) -> Option<&FromFiles> {
        self.from_files.as_ref()
    }

    /// Whether its placed processes are told to call the proxy.
    pub fn calls_proxy(&self) -> bool {
        self.calls_proxy
    }

    /// The same as processes that the files do not say.
    #[must_use]
    pub fn as_extra(mut self) -> Self {
        if let Some(from) = &mut self.from_files {
            from.is_extra = true;
        }
        self
    }

    /// How many processes its processes are told that there are.
    pub fn total(&self) -> u32 {
        self.total.unwrap_or(self.numprocs)
    }

    /// The numbers of its processes.
    pub fn numbers(&self) -> Range<i64> {
        self.process_nums()
    }

    /// Its options, as they would stand in a file.
    pub fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    /// A section that is never started, by which the daemon shows what it makes of the options.
    pub fn render_shown(&self, section: &str) -> String {
        self.render(section, Scope::All) + "autostart=false\n"
    }

    /// A section that is never started, in whose command the daemon shows what it makes of the
    /// options that its lists leave out.
    pub fn render_unshown(&self, section: &str) -> String {
        let text = |option: &str| self.options.get(option).map_or("", String::as_str);
        let mut shown: Vec<&str> = UNSHOWN.iter().map(|option| text(option)).collect();
        shown.push(text("environment"));
        let mut options = BTreeMap::from([("command".to_owned(), shown.join(SEPARATOR))]);
        for option in ["process_name", "numprocs", "numprocs_start"] {
            if let Some(text) = self.options.get(option) {
                options.insert(option.to_owned(), text.clone());
            }
        }
        let probe = Self {
            options,
            ..self.clone()
        };
        probe.render_shown(section)
    }
}

/// A value that the daemon reads back as it is written here, with its conversions.
pub fn carried(text: &str) -> String {
    let pieces = Template::parse(text).map(|template| template.0);
    let pieces = pieces.unwrap_or_else(|_| vec![super::template::Piece::Text(text.to_owned())]);
    super::guard::guarded(&pieces).replace('\n', "\n ")
}
