//! What is to be known, and done, when what is known and what the daemon has may differ.
//!
//! Pure: takes what is known and what the daemon answered, and says what follows.

use std::collections::{BTreeMap, BTreeSet};

use super::persist_file::{KeptBefore, is_known};
use super::plan::{Answers, Found, group_of_real_name, number_of_real_name};
use super::registry::{Event, Member, Registry};

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

fn hide(found: &Found) -> Event {
    Event::Hidden {
        group: found.real.clone(),
        process: found.process.clone(),
        start: found.start,
    }
}
