//! Where values come from: the command line, the environment, and `[twiddler]`, in this order.

use std::path::PathBuf;

use super::error::ConfigError;
use super::options::{self, CONFIG, ServeArgs, variable};
use super::origin::Origin;
use super::typos;
use crate::daemon::conf::{self, ConfError, DaemonConf, Environment, Inspection};
use crate::words::nearest;

/// A value as it was given.
pub(super) struct RawValue {
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl RawValue {
    /// The mistake that this value is.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin.clone(),
            reason: reason.into(),
        }
    }

    /// The values of a list, which commas separate, or the lines of the file.
    pub(super) fn items(&self) -> impl Iterator<Item = &str> {
        self.text
            .split([',', '\n'])
            .map(str::trim)
            .filter(|item| !item.is_empty())
    }
}

/// The three sources, and the mistakes found in them so far.
pub(super) struct Resolver<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) env: &'a Environment<'a>,
    pub(super) conf: Option<DaemonConf>,
    pub(super) mistakes: Vec<ConfigError>,
    pub(super) notes: Vec<String>,
}

impl<'a> Resolver<'a> {
    /// Nothing is known yet but where to look.
    pub(super) fn new(args: &'a ServeArgs, env: &'a Environment<'a>) -> Self {
        Self {
            args,
            env,
            conf: None,
            mistakes: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The value of a key from the best source that has it. An empty variable counts as not set:
    /// that is how compose files and unit files pass on what they do not have.
    pub(super) fn raw(&self, key: &'static str) -> Option<RawValue> {
        let raw = |text, origin| Some(RawValue { text, origin });
        if let Some(text) = self.args.value(key) {
            return raw(text, Origin::CommandLine(key));
        }
        if let Some(text) = (self.env)(&variable(key)).filter(|text| !text.is_empty()) {
            return raw(text, Origin::Environment(key));
        }
        let keys = &self.conf.as_ref()?.twiddler;
        let set = keys.iter().find(|set| set.key == key)?;
        let file = set.file.clone();
        raw(set.value.clone(), Origin::File { file, key })
    }

    /// Where a key was set; the option where it was not.
    pub(super) fn origin(&self, key: &'static str) -> Origin {
        self.raw(key)
            .map_or(Origin::CommandLine(key), |raw| raw.origin)
    }

    /// The value, or nothing where there is a mistake, which is kept.
    pub(super) fn ok_or_record<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    /// A value that is one of a few words; the default where there is none, or a wrong one.
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
                .push(raw.wrong(format!("`{}` is not understood; write {choices}", raw.text)));
            default()
        })
    }

    /// Two values that belong together. One alone is a mistake: `lacks` says what the first lacks,
    /// and what the second.
    pub(super) fn pair(
        &mut self,
        first: Option<RawValue>,
        second: Option<RawValue>,
        lacks: [&str; 2],
    ) -> Option<(RawValue, RawValue)> {
        let (alone, lacks) = match (first, second) {
            (Some(first), Some(second)) => return Some((first, second)),
            (None, None) => return None,
            (Some(first), None) => (first, lacks[0]),
            (None, Some(second)) => (second, lacks[1]),
        };
        self.mistakes.push(alone.wrong(lacks));
        None
    }

    /// Whether an option is on.
    pub(super) fn is_on(&mut self, key: &'static str) -> bool {
        self.read(key, "true or false", boolean).unwrap_or_default()
    }

    /// A path, which in the file is relative to the file.
    pub(super) fn path(&self, raw: &RawValue) -> PathBuf {
        match (&raw.origin, &self.conf) {
            (Origin::File { .. }, Some(conf)) => conf.here.join(raw.text.trim()),
            _ => raw.text.trim().into(),
        }
    }

    /// Reads supervisord's file.
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
        // Who says where supervisord listens need not have it in the file.
        let is_named = self.raw("supervisord").is_some();
        let mistakes = mistakes
            .into_iter()
            .filter(|mistake| !(is_named && matches!(mistake, ConfError::NoServer { .. })));
        self.mistakes.extend(mistakes.map(ConfigError::from));
        let unresolved = self.conf.iter().flat_map(|conf| &conf.unresolved_servers);
        let unresolved = unresolved.filter(|_| !is_named);
        let needed = unresolved.map(|server| ConfError::Variable(server.missing.clone()).into());
        self.mistakes.extend(needed.collect::<Vec<ConfigError>>());
    }

    fn file(&self) -> Result<PathBuf, ConfigError> {
        if let Some(path) = self.args.config() {
            return Ok(path);
        }
        if let Some(raw) = self.raw(CONFIG) {
            return Ok(raw.text.into());
        }
        let searched = conf::search();
        let found = searched.iter().find(|path| path.exists()).cloned();
        let whole = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        found.ok_or_else(|| ConfigError::NoFile {
            searched: searched.iter().map(whole).collect(),
        })
    }

    /// Looks for keys of `[twiddler]` that mean nothing.
    pub(super) fn check_keys(&mut self) {
        let known = options::keys();
        let keys = self.conf.iter().flat_map(|conf| &conf.twiddler);
        let unknown =
            keys.filter(|set| !known.contains(&&*set.key))
                .map(|set| ConfigError::UnknownKey {
                    file: set.file.clone(),
                    key: set.key.clone(),
                    nearest: nearest(&set.key, known.iter().copied()),
                });
        self.mistakes.extend(unknown.collect::<Vec<_>>());
    }

    /// What nearly has a name that counts, and a proxy that its own callers may stop.
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

/// A truth value as supervisord takes it (`supervisor/datatypes.py`, `boolean`).
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
    fn truth_is_told_as_supervisord_tells_it() {
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
