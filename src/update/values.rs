//! The values that the daemon derives from a program's options for each process, and whether two such
//! sets of values are the same to it.
//!
//! The values come from the daemon: it reads a probe and lists its definitions. Pure.

use std::collections::BTreeMap;

use crate::daemon::conf::variables;
use crate::program::SEPARATOR;
use crate::xmlrpc::Value;

/// The value that the daemon lists for a log file that it names itself. If the new definition has it, the
/// daemon treats every old log file as equal (`supervisor/options.py`, `ProcessConfig.__eq__`).
const AUTOMATIC: &str = "auto";
/// Members of the structs of `getAllConfigInfo` that are not compared: they are not part of the definition,
/// or, as `autostart`, are compared separately.
const NOT_COMPARED: [&str; 5] = ["group", "group_prio", "inuse", "name", "autostart"];

/// The values of one process's options, as the daemon reads them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values {
    /// The values that `getAllConfigInfo` lists, by option.
    shown: BTreeMap<String, Value>,
    umask: String,
    autorestart: String,
    /// Whether the daemon starts the process without a call.
    pub autostart: bool,
    stopasgroup: bool,
    environment: BTreeMap<String, String>,
}

impl Values {
    /// Reads the values of one process. `shown` is the struct that `getAllConfigInfo` lists for it.
    /// `unshown` is the command of a probe process, which holds the options that the list lacks.
    /// `environment` is the `[supervisord] environment`, which every program gets. None if `unshown` is
    /// not readable.
    pub fn read(
        shown: &Value,
        unshown: &str,
        environment: &BTreeMap<String, String>,
    ) -> Option<Self> {
        let mut texts = unshown.splitn(5, SEPARATOR.trim());
        let mut next = || texts.next().map(str::trim);
        let (umask, autorestart) = (umask(next()?), autorestart(next()?));
        let (autostart, stopasgroup) = (is_true(next()?, true), is_true(next()?, false));
        let mut all = environment.clone();
        all.extend(variables(next()?)?);
        Some(Values {
            shown: definition(shown),
            umask,
            autorestart,
            autostart,
            stopasgroup,
            environment: all,
        })
    }

    /// Whether `new` is the same definition to the daemon as this one, which is in force.
    pub fn equals(&self, new: &Self) -> bool {
        self.equals_as_shown(new)
            && self.umask == new.umask
            && self.autorestart == new.autorestart
            && self.autostart == new.autostart
            && self.stopasgroup == new.stopasgroup
            && self.environment == new.environment
    }

    /// Whether the values that the daemon lists are the same.
    fn equals_as_shown(&self, new: &Self) -> bool {
        let names = self.shown.keys().chain(new.shown.keys());
        names.into_iter().all(|name| {
            let value = new.shown.get(name);
            let is_automatic = is_log(name) && value.and_then(Value::as_str) == Some(AUTOMATIC);
            is_automatic || self.shown.get(name) == value
        })
    }
}

fn is_log(name: &str) -> bool {
    matches!(name, "stdout_logfile" | "stderr_logfile")
}

fn definition(shown: &Value) -> BTreeMap<String, Value> {
    let Value::Struct(members) = shown else {
        return BTreeMap::new();
    };
    let members = members.iter();
    members
        .filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// `supervisor/datatypes.py`, `octal_type`.
fn umask(text: &str) -> String {
    let digits = text.trim_start_matches("0o").trim_start_matches("0O");
    let number = u32::from_str_radix(digits, 8);
    number.map_or_else(|_| text.to_owned(), |number| number.to_string())
}

/// `supervisor/datatypes.py`, `auto_restart`.
fn autorestart(text: &str) -> String {
    match text.to_lowercase().as_str() {
        "" => "unexpected".to_owned(),
        "yes" | "true" | "on" | "1" => "true".to_owned(),
        "no" | "false" | "off" | "0" => "false".to_owned(),
        other => other.to_owned(),
    }
}

/// `supervisor/datatypes.py`, `boolean`.
fn is_true(text: &str, default: bool) -> bool {
    match text.to_lowercase().as_str() {
        "" => default,
        text => !matches!(text, "no" | "false" | "off" | "0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(shown: &[(&str, &str)], unshown: [&str; 5], all: &[(&str, &str)]) -> Values {
        let text = |(name, text): &(&str, &str)| ((*name).to_owned(), Value::from(*text));
        let shown = Value::Struct(shown.iter().map(text).collect());
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let all = all.iter().map(pair).collect();
        Values::read(&shown, &unshown.join(SEPARATOR), &all).unwrap()
    }

    #[test]
    fn options_that_the_daemon_does_not_list_are_compared_by_its_rules() {
        let table = [
            (
                ["022", "", "", "", ""],
                ["0o22", "unexpected", "yes", "no", ""],
                true,
            ),
            (["", "1", "", "", ""], ["", "TRUE", "", "", ""], true),
            (["", "1", "", "", ""], ["", "", "", "", ""], false),
            (["", "", "off", "", ""], ["", "", "", "", ""], false),
            (["022", "", "", "", ""], ["", "", "", "", ""], false),
            (
                ["", "", "", "", "A=1,B='2'"],
                ["", "", "", "", "B=2, A=\"1\","],
                true,
            ),
            (["", "", "", "", "A=1"], ["", "", "", "", "A=2"], false),
            (["", "", "", "", ""], ["", "", "", "", "ALL=x"], true),
            (["", "", "", "", ""], ["", "", "", "", "ALL=y"], false),
        ];
        for (old, new, expected) in table {
            let all = [("ALL", "x")];
            let (old, new) = (values(&[], old, &all), values(&[], new, &all));
            assert_eq!(old.equals(&new), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn an_automatic_log_file_in_the_new_definition_equals_every_old_one() {
        let log = |text| values(&[("stdout_logfile", text), ("name", text)], [""; 5], &[]);
        assert!(log("/a").equals(&log("auto")));
        assert!(log("auto").equals(&log("auto")));
        assert!(!log("auto").equals(&log("/a")));
        assert!(!log("/a").equals(&log("/b")));
        assert!(!log("/a").equals(&log("none")));
    }
}
