//! Losses: added groups and processes that were removed without this proxy.
//!
//! A `supervisorctl update` or `remove` directly on the daemon removes additions, and so does a restart of
//! the daemon. The proxy logs their names and removes them from the registry. A reported loss does not come
//! back by itself.

use super::{Event, Member, Registry};
use crate::daemon::conf::ConfiguredGroup;

/// The maximum number of names in one log line.
const MAX_NAMES: usize = 50;

/// How the loss was found.
#[derive(Clone, Copy, Debug)]
pub enum Cause {
    /// The daemon lacks it, in the same epoch.
    Removed,
    /// The daemon restarted.
    Restarted,
    /// The daemon had it when an earlier proxy ran.
    Unknown,
}

/// Logs a loss. `names` is the text of [`describe`]. With `persists`, restarts cause no losses.
pub fn log(names: &str, cause: Cause, persists: bool) {
    match (cause, persists) {
        (Cause::Removed, false) => tracing::warn!(
            "{names}: gone, because somebody ran supervisorctl update or remove on supervisord itself. Write the address of twiddler as serverurl in [supervisorctl], or use --persist"
        ),
        (Cause::Removed, true) => tracing::warn!(
            "{names}: gone, because somebody removed it on supervisord itself. Write the address of twiddler as serverurl in [supervisorctl]"
        ),
        (Cause::Restarted, _) => tracing::warn!(
            "supervisord was started again without --persist: only its configuration files count now. Gone: {names}"
        ),
        (Cause::Unknown, _) => tracing::warn!(
            "{names}: gone since twiddler last ran, because supervisord was started again without --persist, or somebody ran supervisorctl update on it"
        ),
    }
}

/// The events that remove all added groups and members.
pub fn removal_of_all(registry: &Registry) -> Vec<Event> {
    let members = registry.members().map(Member::removal);
    let groups = registry.added_groups().map(|name| Event::GroupGone {
        name: name.to_owned(),
    });
    members.chain(groups).collect()
}

fn is_in_files(registry: &Registry, group: &str, process: &str) -> bool {
    let member = registry.member(group, process);
    member.is_some_and(Member::is_in_files)
}

/// Describes what `events` remove: programs with the names of their processes, and groups. `None` if they
/// remove nothing.
pub fn describe(registry: &Registry, events: &[Event]) -> Option<String> {
    let mut groups: Vec<&str> = Vec::new();
    let mut processes: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::GroupGone { name } => groups.push(name),
            // The daemon has the processes of its files again.
            Event::Left { group, process } if is_in_files(registry, group, process) => {}
            Event::Left { group, process } => processes.push(format!("{group}:{process}")),
            _ => {}
        }
    }
    let programs: std::collections::BTreeSet<(&str, &str)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Left { group, process } => registry.member(group, process),
            _ => None,
        })
        .filter(|member| !member.is_in_files())
        .map(|member| {
            let program = member.program.as_ref().map(|program| program.name());
            (member.group.as_str(), program.unwrap_or(&member.process))
        })
        .collect();
    let programs = match programs.len() {
        0 => None,
        count => Some(counted(count, "program", &processes)),
    };
    let groups = match groups.len() {
        0 => None,
        count => Some(counted(count, "group", &groups)),
    };
    let parts: Vec<String> = programs.into_iter().chain(groups).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

fn counted<T: AsRef<str>>(count: usize, kind: &str, names: &[T]) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {kind}{plural} ({})", listed(names))
}

/// Joins names for one log line. Names beyond the maximum are only counted.
pub fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMES).map(AsRef::as_ref).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Warns about names that are in use twice.
pub fn warn_of_clashes(registry: &Registry, configured: &[ConfiguredGroup]) {
    for clash in clashes(registry, configured) {
        tracing::warn!("{clash}");
    }
}

/// Returns one sentence for each added name that the user's files define too.
fn clashes(registry: &Registry, configured: &[ConfiguredGroup]) -> Vec<String> {
    let mut clashes = Vec::new();
    for group in configured {
        let name = &group.name;
        if registry.added_group(name).is_some() {
            clashes.push(format!(
                "the group {name} was added, and supervisord's files define it now: theirs counts from the next supervisorctl update or start on"
            ));
            continue;
        }
        let duplicates = registry
            .members_of(name)
            .filter(|member| !member.is_in_files())
            .filter(|member| group.processes.contains(&member.process));
        clashes.extend(duplicates.map(|member| {
            let process = &member.process;
            format!(
                "{name}:{process} was added, and supervisord's files define it now: theirs counts from the next supervisorctl update or start on, and nobody restarts where both are the same"
            )
        }));
    }
    clashes
}

#[cfg(test)]
mod tests {
    use super::super::tests::{added, left, registry, two};
    use super::*;

    #[test]
    fn losses_are_described_by_name() {
        let known = registry(&[two(), vec![added("own"), added("other")]].concat());
        let removed_group = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        let table: [(&[Event], Option<&str>); 4] = [
            (&[], None),
            (&[left("web", "a")], Some("1 program (web:a)")),
            (&[removed_group("own")], Some("1 group (own)")),
            (
                &[
                    left("web", "a"),
                    left("web", "b"),
                    removed_group("other"),
                    removed_group("own"),
                ],
                Some("2 programs (web:a, web:b) and 2 groups (other, own)"),
            ),
        ];
        for (events, expected) in table {
            assert_eq!(describe(&known, events).as_deref(), expected);
        }
        assert_eq!(
            describe(&known, &removal_of_all(&known)).as_deref(),
            Some("2 programs (web:a, web:b) and 2 groups (other, own)")
        );
        let names: Vec<String> = (0..60).map(|number| number.to_string()).collect();
        assert!(counted(60, "program", &names).ends_with(" 49 and 10 more)"));
    }

    #[test]
    fn names_in_use_twice_are_found() {
        let known = registry(&[two(), vec![added("own")]].concat());
        let group = |name: &str, processes: &[&str]| ConfiguredGroup {
            name: name.to_owned(),
            priority: 999,
            empty: processes.is_empty(),
            processes: processes.iter().map(|name| (*name).to_owned()).collect(),
        };
        let table = [
            (group("web", &["x", "y"]), 0),
            (group("web", &["a", "x"]), 1),
            (group("web", &["a", "b"]), 2),
            (group("own", &[]), 1),
            (group("other", &["a"]), 0),
        ];
        for (group, expected) in table {
            let found = clashes(&known, std::slice::from_ref(&group));
            assert_eq!(found.len(), expected, "{group:?}");
        }
    }
}
