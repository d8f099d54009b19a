//! What is to be known, and done, when what is known and what the daemon has may differ.
//!
//! Pure: takes what is known and what the daemon answered, and says what follows.

use std::collections::{BTreeMap, BTreeSet};

use super::persist_file::{KeptBefore, is_known};
use super::plan::{Answers, Found, group_of_real_name, number_of_real_name};
use super::registry::{Event, Member, Registry};
use super::settle::left;

/// Takes up real groups that the daemon runs and nobody remembers: their names say whose members they
/// hold. `is_configured` tells the groups of the user's files.
pub(super) fn strays(
    registry: &Registry,
    is_configured: impl Fn(&str) -> bool,
    kept: &KeptBefore,
    answers: &Answers,
) -> Vec<Event> {
    let mut found: Vec<&Found> = answers
        .processes
        .values()
        .filter(|found| registry.owner(&found.real).is_none())
        .filter(|found| !is_configured(&found.real))
        .collect();
    // Of two processes with one name the former was hidden when the latter came.
    found.sort_by_key(|found| (number_of_real_name(&found.real), &found.process));
    let mut hidden = Vec::new();
    let mut joined = Vec::new();
    let mut taken = BTreeSet::new();
    let mut indices: BTreeMap<&str, u32> = BTreeMap::new();
    for found in found.into_iter().rev() {
        let Some(group) = group_of_real_name(&found.real) else {
            continue;
        };
        let section = kept.placed_section(&found.real, &found.process);
        let has_left = section.is_none() && kept.has_real_group(&found.real);
        let is_taken = registry.member(group, &found.process).is_some()
            || !taken.insert((group, &found.process));
        if has_left || is_taken {
            hidden.push(hide(found));
            continue;
        }
        let index = indices.entry(&found.real).or_default();
        joined.push(Event::Joined(Box::new(Member {
            group: group.to_owned(),
            process: found.process.clone(),
            real: found.real.clone(),
            index: *index,
            program: None,
            section,
        })));
        *index += 1;
    }
    // Before those that joined: one of them may bear the name of a hidden one.
    let mut strays = hidden;
    strays.extend(joined);
    strays
}

/// What is known of a daemon that started again, according to its answers about all processes and
/// about the groups that were added. Where what was added `persists`, what it lacks is still to be.
/// `number` gives the next name for a real group.
pub(super) fn in_new_life(
    before: &Registry,
    answers: &Answers,
    persists: bool,
    mut number: impl FnMut(&str) -> String,
) -> Registry {
    let mut events = vec![Event::Next(before.next())];
    for name in before.added_groups() {
        if (persists || answers.is_active(name))
            && let Some(priority) = before.added_group(name)
        {
            let name = name.to_owned();
            events.push(Event::Group { name, priority });
        }
    }
    // Before those that joined: one of them may bear the name of a hidden one.
    events.extend(hidden_in_new_life(before, answers, persists));
    let mut anew: BTreeMap<String, String> = BTreeMap::new();
    for member in before.members() {
        let there = answers.found(&member.real, &member.process).is_some();
        let can_be_made = persists && is_known(member);
        if !there && !can_be_made {
            continue;
        }
        let mut member = member.clone();
        if !there && !member.is_placed() && before.added_group(&member.group).is_none() {
            // A group of the user's is as his file says; what it held itself was one program.
            let real = anew.entry(member.group.clone());
            let real = real.or_insert_with(|| number(&member.group));
            member.real.clone_from(real);
        }
        events.push(Event::Joined(Box::new(member)));
    }
    let mut now = Registry::default();
    events.into_iter().for_each(|event| now.apply(event));
    now
}

/// What clients are not to see of what the daemon has: what was hidden before, and what else is in
/// real groups, because the daemon read an older file. Added groups that differ are made anew where
/// they persist.
fn hidden_in_new_life(before: &Registry, answers: &Answers, persists: bool) -> Vec<Event> {
    let hidden = before
        .hidden()
        .filter(|(real, _, _)| !persists || before.added_group(real).is_none())
        .filter_map(|(real, process, _)| answers.found(real, process));
    let is_surplus = |found: &&Found| {
        let mut members = before.members_in(&found.real).peekable();
        let is_real = members.peek().is_some_and(|member| member.is_placed());
        is_real && members.all(|member| member.process != found.process)
    };
    let surplus = answers.processes.values().filter(is_surplus);
    hidden.chain(surplus).map(hide).collect()
}

/// What is gone from a daemon that goes on, according to its answers about all processes and about the
/// groups that were added.
pub(super) fn lost(known: &Registry, answers: &Answers) -> Vec<Event> {
    let is_there = |real: &str, process: &str| answers.found(real, process).is_some();
    let members = known
        .members()
        .filter(|member| !is_there(&member.real, &member.process))
        .map(left);
    // A group stays as long as somebody of it is there.
    let has_members = |name: &str| {
        let mut members = known.members_of(name);
        members.any(|member| is_there(&member.real, &member.process))
    };
    let groups = known
        .added_groups()
        .filter(|name| !answers.is_active(name) && !has_members(name))
        .map(|name| Event::GroupGone {
            name: name.to_owned(),
        });
    let hidden = known
        .hidden()
        .filter(|(real, process, _)| !is_there(real, process))
        .map(|(real, process, _)| Event::Shown {
            group: real.to_owned(),
            process: process.to_owned(),
        });
    members.chain(groups).chain(hidden).collect()
}

fn hide(found: &Found) -> Event {
    Event::Hidden {
        group: found.real.clone(),
        process: found.process.clone(),
        start: found.start,
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{hidden, joined, registry, two};
    use super::*;

    fn answers(processes: &[(&str, &str)], groups: &[&str]) -> Answers {
        let mut answers = Answers::default();
        for (real, process) in processes {
            let found = Found {
                real: (*real).to_owned(),
                process: (*process).to_owned(),
                state: 20,
                start: 5,
                exitstatus: 0,
            };
            let key = ((*real).to_owned(), (*process).to_owned());
            answers.processes.insert(key, found);
        }
        for group in groups {
            answers.groups.insert((*group).to_owned(), true);
        }
        answers
    }

    #[test]
    fn what_nobody_remembers_is_known_by_its_name_and_by_the_file() {
        let kept = "; web:a\n[program:web~000001~0]\ncommand=x\n\n; web:b\n\
                    [program:web~000001~1]\ncommand=y\n";
        let with_section = |process: &str, index: u32, section: &str| {
            let Event::Joined(mut member) = joined("web", process, "web~000001", index) else {
                unreachable!("it is one that joined")
            };
            member.section = Some(section.to_owned());
            Event::Joined(member)
        };
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Vec<Event>);
        let table: [Row<'_>; 6] = [
            ("", &[("web", "a"), ("other~1", "a")], vec![]),
            (
                "",
                &[("web~000001", "a"), ("web~000001", "b")],
                vec![
                    joined("web", "b", "web~000001", 0),
                    joined("web", "a", "web~000001", 1),
                ],
            ),
            // One left, and its name was taken again.
            (
                "",
                &[
                    ("web~000001", "a"),
                    ("web~000001", "b"),
                    ("web~000002", "a"),
                ],
                vec![
                    hidden("web~000001", "a"),
                    joined("web", "a", "web~000002", 0),
                    joined("web", "b", "web~000001", 0),
                ],
            ),
            // The file speaks of the group, and not of `c`.
            (
                kept,
                &[
                    ("web~000001", "a"),
                    ("web~000001", "b"),
                    ("web~000001", "c"),
                ],
                vec![
                    hidden("web~000001", "c"),
                    with_section("b", 0, "command=y\n"),
                    with_section("a", 1, "command=x\n"),
                ],
            ),
            // The file does not speak of the group.
            (
                kept,
                &[("web~000003", "c")],
                vec![joined("web", "c", "web~000003", 0)],
            ),
            // The user's own group bears such a name.
            ("", &[("user~000001", "a")], vec![]),
        ];
        for (kept, processes, expected) in table {
            let kept = KeptBefore::read(kept);
            let is_configured = |name: &str| name.starts_with("user");
            let answers = answers(processes, &[]);
            let strays = strays(&Registry::default(), is_configured, &kept, &answers);
            assert_eq!(strays, expected, "{processes:?}");
            let again = super::strays(&registry(&strays), is_configured, &kept, &answers);
            assert!(again.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn a_daemon_that_started_again_has_what_its_files_say() {
        let group = Event::Group {
            name: "own".to_owned(),
            priority: 5,
        };
        let before = [
            vec![group, hidden("web~000001", "gone"), hidden("pool", "p")],
            two(),
            vec![joined("own", "first", "own", 0)],
        ];
        let before = registry(&before.concat());
        let there = |registry: &Registry| -> Vec<String> {
            registry.members().map(Member::real_namespec).collect()
        };
        let covered = |registry: &Registry| -> Vec<String> {
            let hidden = registry.hidden();
            hidden
                .map(|(real, name, _)| format!("{real}:{name}"))
                .collect()
        };
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
        let table: [Row<'_>; 5] = [
            // Nothing of ours, and what was removed of the user's.
            (&[("pool", "p")], &[], &["pool:p"]),
            (&[("own", "first")], &["own:first"], &[]),
            (
                &[("web~000001", "a"), ("web~000001", "b")],
                &["web~000001:a", "web~000001:b"],
                &[],
            ),
            // An older file had more in the real group.
            (
                &[
                    ("web~000001", "a"),
                    ("web~000001", "b"),
                    ("web~000001", "gone"),
                    ("web~000001", "more"),
                ],
                &["web~000001:a", "web~000001:b"],
                &["web~000001:gone", "web~000001:more"],
            ),
            (&[("web~000009", "x")], &[], &[]),
        ];
        for (processes, members, hidden) in table {
            let answers = answers(processes, &["own"]);
            let number = |_: &str| unreachable!("nothing is placed anew");
            let now = in_new_life(&before, &answers, false, number);
            assert_eq!(there(&now), members, "{processes:?}");
            let mut covered = covered(&now);
            covered.sort();
            assert_eq!(covered, hidden, "{processes:?}");
            assert_eq!(now.added_group("own"), Some(5));
            let again = in_new_life(&now, &answers, false, number);
            assert_eq!(again.snapshot(), now.snapshot(), "{processes:?}");
        }
    }

    #[test]
    fn what_a_daemon_that_goes_on_has_no_more_is_lost() {
        use super::super::registry::tests::left;
        let own = |name: &str| Event::Group {
            name: name.to_owned(),
            priority: 5,
        };
        let gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        let uncovered = |real: &str, process: &str| Event::Shown {
            group: real.to_owned(),
            process: process.to_owned(),
        };
        let known = [
            vec![own("empty"), own("own"), hidden("pool", "p")],
            two(),
            vec![
                hidden("web~000001", "c"),
                joined("own", "first", "own", 0),
                joined("own", "more", "own~000002", 0),
            ],
        ];
        let known = registry(&known.concat());
        let all = [
            ("pool", "p"),
            ("web~000001", "a"),
            ("web~000001", "b"),
            ("web~000001", "c"),
            ("own", "first"),
            ("own~000002", "more"),
        ];
        let without = |gone: &[&str]| -> Vec<(&str, &str)> {
            let left = all.iter().filter(|(real, _)| !gone.contains(real));
            left.copied().collect()
        };
        type Row<'a> = (&'a [&'a str], &'a [&'a str], Vec<Event>);
        let table: [Row<'_>; 5] = [
            (&[], &["empty", "own"], vec![]),
            (
                &["web~000001"],
                &["empty", "own"],
                vec![
                    left("web", "a"),
                    left("web", "b"),
                    uncovered("web~000001", "c"),
                ],
            ),
            (&["own"], &["empty"], vec![left("own", "first")]),
            (
                &["own", "own~000002"],
                &[],
                vec![
                    left("own", "first"),
                    left("own", "more"),
                    gone("empty"),
                    gone("own"),
                ],
            ),
            (&["pool"], &["empty", "own"], vec![uncovered("pool", "p")]),
        ];
        for (groups, active, expected) in table {
            let answers = answers(&without(groups), active);
            let found = lost(&known, &answers);
            assert_eq!(found, expected, "{groups:?}");
            let mut after = known.clone();
            found.into_iter().for_each(|event| after.apply(event));
            assert!(lost(&after, &answers).is_empty(), "{groups:?}");
        }
    }

    #[test]
    fn what_persists_and_is_lacking_is_still_to_be() {
        let known = |event: Event| match event {
            Event::Joined(mut member) => {
                member.section = Some("command=x\n".to_owned());
                Event::Joined(member)
            }
            other => other,
        };
        let own = vec![
            joined("empty", "a", "empty", 0),
            joined("empty", "b", "empty", 1),
            joined("lost", "c", "lost~000003", 0),
        ];
        let mut events: Vec<Event> = own.into_iter().map(known).collect();
        events.extend(two());
        let before = registry(&events);
        let mut next = 7;
        let number = |group: &str| {
            next += 1;
            format!("{group}~{next:06}")
        };
        let now = in_new_life(&before, &answers(&[], &[]), true, number);
        let there: Vec<String> = now.members().map(Member::real_namespec).collect();
        // Both of the user's empty group move to one real group; nobody knows how to make the two.
        assert_eq!(there, ["empty~000008:a", "empty~000008:b", "lost~000003:c"]);
    }
}
