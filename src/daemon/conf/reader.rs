//! The files as they have been read so far: values, and what is wrong with them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfError, MissingVariable};
use super::expand::{Environment, Unexpanded, Variables, pairs};
use super::ini::{Sections, Setting, is_server};
use super::paths::dir_of;

/// An option's value, expanded, and the file that sets it.
type Value = (String, PathBuf);

/// The files as they have been read so far, and what was found wrong with them.
pub(super) struct Reader<'a> {
    pub(super) file: PathBuf,
    pub(super) sections: Sections,
    pub(super) names: Variables<'a>,
    pub(super) mistakes: Vec<ConfError>,
    pub(super) missing: Vec<MissingVariable>,
}

impl<'a> Reader<'a> {
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

    /// Lines that make the daemon refuse all its files are ours to report only in what we need.
    pub(super) fn check_lines(&mut self) {
        let mut outside = false;
        for odd in &self.sections.odd_lines {
            let (file, line) = (odd.file.to_path_buf(), odd.line);
            let problem = match &odd.section {
                Some(section) if concerns_us(section) => format!(
                    "in [{section}] is not an option; write key = value, or indent it if it continues a value"
                ),
                // One is enough: the lines after it are most likely outside as well.
                None if file == self.file && !outside => {
                    outside = true;
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

    pub(super) fn check_supervisord(&mut self) {
        if self.sections.get("supervisord").is_none() {
            self.mistakes.push(ConfError::NoSupervisord {
                file: self.file.clone(),
            });
        }
    }

    /// Lets later expansions see what `[supervisord] environment` sets. The daemon expands that
    /// value twice; where it cannot be read, the daemon says so better than we could.
    pub(super) fn load_environment(&mut self) {
        let text = self.text("supervisord", "environment");
        let expanded = text.and_then(|text| self.names.format(&text).ok());
        self.names.environment = expanded.and_then(|text| pairs(&text)).unwrap_or_default();
    }

    /// An option's value, where it can be expanded.
    pub(super) fn text(&self, section: &str, key: &str) -> Option<String> {
        Some(self.value(section, key).ok()??.0)
    }

    /// An option's value, expanded, and the file that sets it.
    pub(super) fn value(&self, section: &str, key: &str) -> Result<Option<Value>, ConfError> {
        let setting = self.sections.find(section, key);
        let value = setting.map(|setting| self.expanded(section, setting));
        value.transpose()
    }

    /// Like [`Self::value`], as it is written where a variable is not set.
    pub(super) fn value_or_written(
        &mut self,
        section: &str,
        key: &str,
    ) -> Result<Option<Value>, ConfError> {
        let value = self.value(section, key);
        if let Some(value) = self.unless_missing(value).transpose()? {
            return Ok(value);
        }
        let written = self.sections.find(section, key);
        Ok(written.map(|setting| (setting.value.clone(), setting.file.to_path_buf())))
    }

    /// None where a variable is not set, which is noted.
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

    pub(super) fn expanded(&self, section: &str, setting: &Setting) -> Result<Value, ConfError> {
        self.expanded_as(section, setting, &setting.value)
    }

    /// `text`, a part of an option's value, expanded, and the file that sets it.
    pub(super) fn expanded_as(
        &self,
        section: &str,
        setting: &Setting,
        text: &str,
    ) -> Result<Value, ConfError> {
        let file = setting.file.to_path_buf();
        match self.names.format(text) {
            Ok(value) => Ok((value, file)),
            Err(Unexpanded::Variable(variable)) => Err(ConfError::Variable(MissingVariable {
                file,
                section: section.to_owned(),
                key: setting.key.clone(),
                variable,
            })),
            Err(Unexpanded::Wrong(reason)) => {
                let problem = format!("{}: {reason}", setting.key);
                Err(ConfError::section(file, section, problem))
            }
        }
    }

    pub(super) fn keep<T>(&mut self, result: Result<T, ConfError>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }
}

/// Whether the proxy needs what is in a section.
fn concerns_us(section: &str) -> bool {
    ["supervisord", "include", "twiddler"].contains(&section) || is_server(section)
}

/// A file as text, with the line ends that Python's text files have. The daemon takes what its
/// locale can decode; here bytes that are no UTF-8 must not keep the rest from being read.
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
