//! The reader of the configuration files: their sections, expanded values, and mistakes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfError, MissingVariable};
use super::expand::{Environment, ExpandError, Variables, pairs};
use super::ini::{Sections, Setting, is_server};
use super::paths::dir_of;

/// An expanded value and the file that sets it.
type Value = (String, PathBuf);

/// The sections of the files that have been read, and the mistakes in them.
pub(super) struct Reader<'a> {
    pub(super) file: PathBuf,
    pub(super) sections: Sections,
    pub(super) names: Variables<'a>,
    pub(super) mistakes: Vec<ConfError>,
    pub(super) missing: Vec<MissingVariable>,
}

impl<'a> Reader<'a> {
    /// Reads the main file.
    pub(super) fn open(file: &Path, env: &'a Environment<'a>) -> Result<Self, ConfError> {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
        let text = read_text(&file).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => ConfError::Missing { file: file.clone() },
            _ => ConfError::Unreadable {
                file: file.clone(),
                cause,
            },
        })?;
        let mut sections = Sections::default();
        sections.add(&file, &text);
        let names = Variables {
            here: dir_of(&file),
            host: host_name(),
            environment: Vec::new(),
            outer: env,
        };
        Ok(Reader {
            file,
            sections,
            names,
            mistakes: Vec::new(),
            missing: Vec::new(),
        })
    }

    /// Reports invalid lines in the sections that the proxy needs. The daemon itself reports all of them.
    pub(super) fn check_lines(&mut self) {
        let mut has_line_outside = false;
        for invalid in &self.sections.invalid_lines {
            let (file, line) = (invalid.file.to_path_buf(), invalid.line);
            let problem = match &invalid.section {
                Some(section) if is_needed(section) => format!(
                    "in [{section}] is not an option; write key = value, or indent it if it continues a value"
                ),
                // Only the first line is reported, because the next lines are probably outside as well.
                None if file == self.file && !has_line_outside => {
                    has_line_outside = true;
                    "stands before any section; write [supervisord] above it, or name \
                     supervisord's configuration file with -c PATH"
                        .to_owned()
                }
                _ => continue,
            };
            self.mistakes.push(ConfError::Line {
                file,
                line,
                problem,
            });
        }
    }

    /// Reports a missing `[supervisord]` section.
    pub(super) fn check_supervisord(&mut self) {
        if self.sections.get("supervisord").is_none() {
            self.mistakes.push(ConfError::NoSupervisord {
                file: self.file.clone(),
            });
        }
    }

    /// Makes the variables of `[supervisord] environment` available to later expansions. The daemon
    /// expands that value twice. An invalid one is ignored, because the daemon reports it.
    pub(super) fn load_environment(&mut self) {
        let text = self.text("supervisord", "environment");
        let expanded = text.and_then(|text| self.names.format(&text).ok());
        self.names.environment = expanded.and_then(|text| pairs(&text)).unwrap_or_default();
    }

    /// Returns an expanded value, or `None` if it is missing or cannot be expanded.
    pub(super) fn text(&self, section: &str, key: &str) -> Option<String> {
        Some(self.value(section, key).ok()??.0)
    }

    /// Returns an expanded value and the file that sets it.
    pub(super) fn value(&self, section: &str, key: &str) -> Result<Option<Value>, ConfError> {
        let setting = self.sections.find(section, key);
        let value = setting.map(|setting| self.expand(section, setting));
        value.transpose()
    }

    /// Returns the same as [`Self::value`], or the text in the file if a variable is not set.
    pub(super) fn value_or_text(
        &mut self,
        section: &str,
        key: &str,
    ) -> Result<Option<Value>, ConfError> {
        let value = self.value(section, key);
        if let Some(value) = self.unless_missing(value).transpose()? {
            return Ok(value);
        }
        let setting = self.sections.find(section, key);
        Ok(setting.map(|setting| (setting.value.clone(), setting.file.to_path_buf())))
    }

    /// Collects a missing variable and returns `None`. Returns any other result unchanged.
    pub(super) fn unless_missing<T>(
        &mut self,
        value: Result<T, ConfError>,
    ) -> Option<Result<T, ConfError>> {
        match value {
            Err(ConfError::Variable(missing)) => {
                self.missing.push(missing);
                None
            }
            value => Some(value),
        }
    }

    /// Returns the value of a required option. `file` and `example` are for the error.
    pub(super) fn required(
        &self,
        section: &str,
        key: &str,
        file: &Path,
        example: &str,
    ) -> Result<Value, ConfError> {
        self.value(section, key)?.ok_or_else(|| {
            let problem = format!("has no {key}; write {key} = {example}");
            ConfError::section(file.into(), section, problem)
        })
    }

    pub(super) fn expand(&self, section: &str, setting: &Setting) -> Result<Value, ConfError> {
        self.expand_text(section, setting, &setting.value)
    }

    /// Expands `text`, a part of an option's value. Returns it with the file that sets the option.
    pub(super) fn expand_text(
        &self,
        section: &str,
        setting: &Setting,
        text: &str,
    ) -> Result<Value, ConfError> {
        let file = setting.file.to_path_buf();
        match self.names.format(text) {
            Ok(value) => Ok((value, file)),
            Err(ExpandError::Variable(variable)) => Err(ConfError::Variable(MissingVariable {
                file,
                section: section.to_owned(),
                key: setting.key.clone(),
                variable,
            })),
            Err(ExpandError::Invalid(reason)) => {
                let problem = format!("{}: {reason}", setting.key);
                Err(ConfError::section(file, section, problem))
            }
        }
    }

    /// Collects an error among the mistakes and returns `None`.
    pub(super) fn collect_mistake<T>(&mut self, result: Result<T, ConfError>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }
}

/// Returns whether the proxy needs the options of a section.
fn is_needed(section: &str) -> bool {
    ["supervisord", "include", "twiddler"].contains(&section) || is_server(section)
}

/// Reads a text file with Python's universal newlines. Bytes that are not UTF-8 are replaced, because the
/// daemon's locale may be able to decode them.
pub(super) fn read_text(file: &Path) -> io::Result<String> {
    let bytes = fs::read(file)?;
    Ok(String::from_utf8_lossy(&bytes)
        .replace("\r\n", "\n")
        .replace('\r', "\n"))
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
