//! The sources of values: the command line, the environment, and `[twiddler]`, in this order.

use std::path::PathBuf;

use super::error::ConfigError;
use super::options::{self, CONFIG, ServeArgs, variable};
use super::origin::Origin;
use super::typos;
use crate::daemon::conf::{self, ConfError, DaemonConf, Environment, Inspection};
use crate::words::nearest;

/// The text of a value, and its source.
pub(super) struct RawValue {
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl RawValue {
    /// The error about this value.
    pub(super) fn error(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin.clone(),
            reason: reason.into(),
        }
    }

    /// The items of a list. Commas or line breaks separate them.
    pub(super) fn items(&self) -> impl Iterator<Item = &str> {
        self.text
            .split([',', '\n'])
            .map(str::trim)
            .filter(|item| !item.is_empty())
    }
}

/// The three sources, with the mistakes and notes about them so far.
pub(super) struct Resolver<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) env: &'a Environment<'a>,
    pub(super) conf: Option<DaemonConf>,
    pub(super) mistakes: Vec<ConfigError>,
    pub(super) notes: Vec<String>,
}

impl<'a> Resolver<'a> {
    /// The sources before supervisord's file is read.
    pub(super) fn new(args: &'a ServeArgs, env: &'a Environment<'a>) -> Self {
        Self {
            args,
            env,
            conf: None,
            mistakes: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The value of an option from the first source that has it. An empty environment variable counts as
    /// not set, because compose files and unit files pass on unset variables as empty ones.
    pub(super) fn raw(&self, key: &'static str) -> Option<RawValue> {
        let raw = |text, origin| Some(RawValue { text, origin });
        if let Some(text) = self.args.value(key) {
            return raw(text, Origin::CommandLine(key));
        }
        if let Some(text) = (self.env)(&variable(key)).filter(|text| !text.is_empty()) {
            return raw(text, Origin::Environment(key));
        }
        let keys = &self.conf.as_ref()?.twiddler;
        let entry = keys.iter().find(|entry| entry.key == key)?;
        let file = entry.file.clone();
        raw(entry.value.clone(), Origin::File { file, key })
    }

    /// The source of an option's value; the command line if it is not set.
    pub(super) fn origin(&self, key: &'static str) -> Origin {
        self.raw(key)
            .map_or(Origin::CommandLine(key), |raw| raw.origin)
    }

    /// The value, or `None` for a mistake, which is recorded.
    pub(super) fn ok_or_record<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    /// The parsed value of an option; the default if it is not set or not valid. `choices` says in the error
    /// what to write.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        choices: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let default = || parse(options::default_of(key)?);
        let Some(raw) = self.raw(key) else {
            return default();
        };
        parse(raw.text.trim()).or_else(|| {
            self.mistakes
                .push(raw.error(format!("`{}` is not understood; write {choices}", raw.text)));
            default()
        })
    }

    /// Two values that are only valid together. If one is missing, records a mistake: `reasons` has the
    /// text for a first value alone, and for a second value alone.
    pub(super) fn pair(
        &mut self,
        first: Option<RawValue>,
        second: Option<RawValue>,
        reasons: [&str; 2],
    ) -> Option<(RawValue, RawValue)> {
        let (single, reason) = match (first, second) {
            (Some(first), Some(second)) => return Some((first, second)),
            (None, None) => return None,
            (Some(first), None) => (first, reasons[0]),
            (None, Some(second)) => (second, reasons[1]),
        };
        self.mistakes.push(single.error(reason));
        None
    }

    /// Whether an option is on.
    pub(super) fn is_on(&mut self, key: &'static str) -> bool {
        self.read(key, "true or false", boolean).unwrap_or_default()
    }

    /// The path in a value. A relative path in the file is relative to the file's directory.
    pub(super) fn path(&self, raw: &RawValue) -> PathBuf {
        match (&raw.origin, &self.conf) {
            (Origin::File { .. }, Some(conf)) => conf.here.join(raw.text.trim()),
            _ => raw.text.trim().into(),
        }
    }

    /// Reads supervisord's file, and records its mistakes.
    pub(super) fn read_file(&mut self) {
        let file = self.file();
        let Some(file) = self.ok_or_record(file) else {
            return;
        };
        let inspection = conf::inspect(&file, self.env).map_err(ConfigError::from);
        let Some(Inspection { conf, mistakes }) = self.ok_or_record(inspection) else {
            return;
        };
        self.conf = Some(conf);
        // With the option `supervisord`, the file needs no server.
        let has_address = self.raw("supervisord").is_some();
        let mistakes = mistakes
            .into_iter()
            .filter(|mistake| !(has_address && matches!(mistake, ConfError::NoServer { .. })));
        self.mistakes.extend(mistakes.map(ConfigError::from));
        let unresolved = self.conf.iter().flat_map(|conf| &conf.unresolved_servers);
        let unresolved = unresolved.filter(|_| !has_address);
        let missing = unresolved.map(|server| ConfError::Variable(server.missing.clone()).into());
        self.mistakes.extend(missing.collect::<Vec<ConfigError>>());
    }

    fn file(&self) -> Result<PathBuf, ConfigError> {
        if let Some(path) = self.args.config() {
            return Ok(path);
        }
        if let Some(raw) = self.raw(CONFIG) {
            return Ok(raw.text.into());
        }
        let searched = conf::search();
        let file = searched.iter().find(|path| path.exists()).cloned();
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        file.ok_or_else(|| ConfigError::NoFile {
            searched: searched.iter().map(absolute).collect(),
        })
    }

    /// Records a mistake for each key of `[twiddler]` that is no option.
    pub(super) fn check_keys(&mut self) {
        let known = options::keys();
        let entries = self.conf.iter().flat_map(|conf| &conf.twiddler);
        let unknown = entries
            .filter(|entry| !known.contains(&&*entry.key))
            .map(|entry| ConfigError::UnknownKey {
                file: entry.file.clone(),
                key: entry.key.clone(),
                nearest: nearest(&entry.key, known.iter().copied()),
            });
        self.mistakes.extend(unknown.collect::<Vec<_>>());
    }

    /// Adds notes about misspelt names, and about a proxy that supervisord itself runs.
    pub(super) fn note_typos(&mut self) {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        self.notes.extend(typos::variables(names.iter()));
        let Some(conf) = &self.conf else { return };
        self.notes.extend(typos::sections(conf));
        self.notes.extend(conf.proxies.iter().map(|section| format!(
            "{}: [{section}] runs twiddler below the supervisord that it is in front of; `restart all` and `stop all` through it stop it before the rest is started again; run it as a service of the system",
            conf.file.display()
        )));
    }
}

/// Parses a boolean as supervisord does (`supervisor/datatypes.py`, `boolean`).
fn boolean(text: &str) -> Option<bool> {
    match &*text.to_lowercase() {
        "yes" | "true" | "on" | "1" => Some(true),
        "no" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_those_of_supervisord() {
        for (text, expected) in [
            ("yes", Some(true)),
            ("True", Some(true)),
            ("ON", Some(true)),
            ("1", Some(true)),
            ("no", Some(false)),
            ("false", Some(false)),
            ("off", Some(false)),
            ("0", Some(false)),
            ("y", None),
            ("", None),
            ("2", None),
        ] {
            assert_eq!(boolean(text), expected, "{text}");
        }
    }
}
