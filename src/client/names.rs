//! The names in arguments: namespecs and globs, matched against the server's processes.

use std::collections::BTreeSet;

use glob::{MatchOptions, Pattern};

use super::error::Error;
use crate::daemon::ProcessInfo;
use crate::namespec::{namespec, split_namespec};

/// A suggested name may differ from the typed one in one letter out of this many.
const LETTERS_PER_MISTAKE: usize = 3;

/// A name in an argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Selector {
    /// `all`.
    All,
    /// `group:*` or `group:`.
    Group(String),
    /// `group:process`, or `name` for `name:name`.
    Process {
        /// The group.
        group: String,
        /// The process.
        name: String,
    },
    /// A glob over namespecs.
    Glob(Pattern),
}

impl Selector {
    /// Parses a name. A name with `*`, `?` or `[` is a glob, except `group:*`.
    ///
    /// # Errors
    /// The glob is not valid.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let is_glob = |text: &str| text.contains(['*', '?', '[']);
        match split_namespec(text) {
            ("all", Some("all")) => Ok(Selector::All),
            (group, None) if !is_glob(group) => Ok(Selector::Group(group.to_owned())),
            _ if is_glob(text) => Pattern::new(text)
                .map(Selector::Glob)
                .map_err(|error| Error::Usage(format!("`{text}` is not a valid glob: {error}"))),
            (group, name) => Ok(Selector::Process {
                group: group.to_owned(),
                name: name.unwrap_or_default().to_owned(),
            }),
        }
    }

    /// Whether this name selects the process. A glob is matched against `group:process` and against the
    /// namespec, which is `name` for `name:name`.
    pub fn matches(&self, info: &ProcessInfo) -> bool {
        match self {
            Selector::All => true,
            Selector::Group(group) => info.group == *group,
            Selector::Process { group, name } => info.group == *group && info.name == *name,
            Selector::Glob(pattern) => {
                let options = MatchOptions::new();
                let long = format!("{}:{}", info.group, info.name);
                pattern.matches_with(&long, options)
                    || pattern.matches_with(&namespec(&info.group, &info.name), options)
            }
        }
    }
}

/// The processes of `table` that `names` select, in the table's order, each once; all where `names` is
/// empty.
///
/// # Errors
/// A name selects no process. The error suggests the nearest name.
pub fn select(table: &[ProcessInfo], names: &[String]) -> Result<Vec<ProcessInfo>, Error> {
    if names.is_empty() {
        return Ok(table.to_vec());
    }
    let mut chosen = BTreeSet::new();
    for name in names {
        let selector = Selector::parse(name)?;
        let matching = |index: &usize| selector.matches(&table[*index]);
        let matches: Vec<usize> = (0..table.len()).filter(matching).collect();
        if matches.is_empty() && selector != Selector::All {
            return Err(Error::UnknownName(unknown(table, name)));
        }
        chosen.extend(matches);
    }
    Ok(chosen
        .into_iter()
        .map(|index| table[index].clone())
        .collect())
}

/// The error text for a name that selects no process, with the nearest name.
pub fn unknown(table: &[ProcessInfo], name: &str) -> String {
    match nearest(table, name) {
        Some(other) => format!("no such process or group: {name}; did you mean {other}?"),
        None => format!("no such process or group: {name}"),
    }
}

fn nearest(table: &[ProcessInfo], name: &str) -> Option<String> {
    let specs = table.iter().map(|info| namespec(&info.group, &info.name));
    let groups = table.iter().map(|info| format!("{}:*", info.group));
    // `web` for the group `web:*`.
    if table.iter().any(|info| info.group == name) {
        return Some(format!("{name}:*"));
    }
    // `api` for the process `web:api`.
    if let Some(info) = table.iter().find(|info| info.name == name) {
        return Some(namespec(&info.group, &info.name));
    }
    // `web:worker` for the process `web:worker_0`.
    let is_numbered = |spec: &String| {
        let rest = spec.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || "_-".contains(c)))
    };
    let mut numbered = specs.clone().filter(is_numbered);
    if let Some(first) = numbered.next() {
        return Some(numbered.next().map_or(first, |_| format!("{name}*")));
    }
    // A whole group is suggested only for a name with a star.
    let groups = groups.filter(|_| name.contains('*'));
    nearest_of(name, specs.chain(groups))
}

/// The name of `others` with the smallest edit distance to `name`, if that is small enough.
pub fn nearest_of(name: &str, others: impl Iterator<Item = String>) -> Option<String> {
    let max_distance = (name.chars().count() / LETTERS_PER_MISTAKE).max(1);
    others
        .map(|other| (strsim::levenshtein(name, &other), other))
        .filter(|(distance, _)| *distance <= max_distance)
        .min()
        .map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::ProcessState;

    fn table() -> Vec<ProcessInfo> {
        [
            ("mailer", "mailer"),
            ("web", "api"),
            ("web", "worker_0"),
            ("web2", "worker_1"),
            ("pool", "w1"),
            ("pool", "w2"),
        ]
        .map(|(group, name)| ProcessInfo {
            group: group.to_owned(),
            name: name.to_owned(),
            state: ProcessState::Running,
            state_name: "RUNNING".to_owned(),
            pid: 1,
            start: 1,
            description: String::new(),
            exit_status: 0,
            spawn_error: String::new(),
        })
        .to_vec()
    }

    fn chosen(names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        select(&table(), &names)
            .map(|infos| {
                let spec = |info: &ProcessInfo| namespec(&info.group, &info.name);
                infos.iter().map(spec).collect()
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_globs_choose_processes() {
        for (names, expected) in [
            (
                &[][..],
                &[
                    "mailer",
                    "web:api",
                    "web:worker_0",
                    "web2:worker_1",
                    "pool:w1",
                    "pool:w2",
                ][..],
            ),
            (
                &["all"],
                &[
                    "mailer",
                    "web:api",
                    "web:worker_0",
                    "web2:worker_1",
                    "pool:w1",
                    "pool:w2",
                ],
            ),
            (&["web:*"], &["web:api", "web:worker_0"]),
            (&["web:"], &["web:api", "web:worker_0"]),
            (&["web:api", "mailer"], &["mailer", "web:api"]),
            (&["*worker*"], &["web:worker_0", "web2:worker_1"]),
            (&["web?:*"], &["web2:worker_1"]),
            (&["mail*"], &["mailer"]),
            (&["*:[am]*"], &["mailer", "web:api"]),
            (&["web:api", "web:*"], &["web:api", "web:worker_0"]),
        ] {
            let expected = expected.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(chosen(names), Ok(expected), "{names:?}");
        }
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        for (name, expected) in [
            ("mialer", "mialer; did you mean mailer?"),
            ("api", "api; did you mean web:api?"),
            ("web", "web; did you mean web:*?"),
            ("wbe:api", "wbe:api; did you mean web:api?"),
            ("web:worker", "web:worker; did you mean web:worker_0?"),
            ("web3:x", "web3:x"),
            ("web:x", "web:x"),
            ("pool:w", "pool:w; did you mean pool:w*?"),
            ("wep:*", "wep:*; did you mean web:*?"),
            ("database", "database"),
            ("x*", "x*"),
        ] {
            let expected = format!("no such process or group: {expected}");
            assert_eq!(chosen(&[name]), Err(expected), "{name}");
        }
        assert!(chosen(&["[a"]).unwrap_err().contains("not a valid glob"));
    }
}
