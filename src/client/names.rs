//! The names that people type: namespecs and globs, held against the server's table of processes.

use std::collections::BTreeSet;

use glob::{MatchOptions, Pattern};

use super::error::Error;
use crate::daemon::ProcessInfo;
use crate::namespec::{namespec, split_namespec};

/// Letters of a name that may be wrong for another to be suggested: a third of it.
const LETTERS_PER_MISTAKE: usize = 3;

/// One name as it was typed.
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
    /// Reads a name. The daemon takes no `*`, `?` or `[` in names that its own tools could not
    /// reach, so a name with one of these is a glob, but for `group:*`.
    ///
    /// # Errors
    /// A glob that is not valid.
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

    /// Whether the process is meant. A glob may match the long or the short form of its name.
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

/// The processes that `names` mean, in the table's order, each once; all where none is given.
///
/// # Errors
/// A name that means none, with the nearest one that does.
pub fn select(table: &[ProcessInfo], names: &[String]) -> Result<Vec<ProcessInfo>, Error> {
    if names.is_empty() {
        return Ok(table.to_vec());
    }
    let mut chosen = BTreeSet::new();
    for name in names {
        let selector = Selector::parse(name)?;
        let matching = |index: &usize| selector.matches(&table[*index]);
        let found: Vec<usize> = (0..table.len()).filter(matching).collect();
        if found.is_empty() && selector != Selector::All {
            return Err(Error::UnknownName(unknown(table, name)));
        }
        chosen.extend(found);
    }
    Ok(chosen
        .into_iter()
        .map(|index| table[index].clone())
        .collect())
}

/// The sentence about a name that nobody has.
pub fn unknown(table: &[ProcessInfo], name: &str) -> String {
    match nearest(table, name) {
        Some(other) => format!("no such process or group: {name}; did you mean {other}?"),
        None => format!("no such process or group: {name}"),
    }
}

fn nearest(table: &[ProcessInfo], name: &str) -> Option<String> {
    let specs = table.iter().map(|info| namespec(&info.group, &info.name));
    let groups = table.iter().map(|info| format!("{}:*", info.group));
    let within = table.iter().filter(|info| info.name == name);
    // A group is named with a star, and a process whose group was left out is nearer than any other.
    if table.iter().any(|info| info.group == name) {
        return Some(format!("{name}:*"));
    }
    if let Some(info) = within.into_iter().next() {
        return Some(namespec(&info.group, &info.name));
    }
    // Numbers are what is left out of the names of a program's processes.
    let is_numbered = |spec: &String| {
        let rest = spec.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || "_-".contains(c)))
    };
    let mut numbered = specs.clone().filter(is_numbered);
    if let Some(first) = numbered.next() {
        return Some(numbered.next().map_or(first, |_| format!("{name}*")));
    }
    // Whoever names one process does not mean all of its group.
    let groups = groups.filter(|_| name.contains('*'));
    nearest_of(name, specs.chain(groups))
}

/// The name that `name` was most likely meant for, if any is near.
pub fn nearest_of(name: &str, others: impl Iterator<Item = String>) -> Option<String> {
    let most = (name.chars().count() / LETTERS_PER_MISTAKE).max(1);
    others
        .map(|other| (strsim::levenshtein(name, &other), other))
        .filter(|(distance, _)| *distance <= most)
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
