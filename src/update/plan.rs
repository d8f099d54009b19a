//! What an update does: who stops, which groups are made anew, which processes leave and join.
//!
//! Pure: from differences to steps.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::{Change, GroupDifference, Made, Process, ProgramDifference, Seen, part};
use crate::daemon::conf::Definitions;
use crate::program::Program;

/// A process by the names that clients use.
pub(super) type Name = (String, String);

/// Everything that an update does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Processes that are stopped, all at once.
    pub stop: Vec<Name>,
    /// Members that leave.
    pub leave: Vec<Name>,
    /// Groups that are removed from the daemon.
    pub remove: Vec<String>,
    /// Groups that the daemon makes from what it has read.
    pub add: Vec<String>,
    /// Programs that join their groups.
    pub join: Vec<Program>,
    /// Processes that are started afterwards, because the daemon does not by itself.
    pub start: Vec<Name>,
    /// Processes that were added and are from now on the files', with what these say.
    pub adopt: Vec<(Name, Program)>,
    /// Added groups that are from now on the files'.
    pub adopt_groups: Vec<String>,
    /// Groups whose files are then in force although the daemon's own group was not made from them.
    pub applied: Vec<String>,
    /// For the answer: who comes, comes back and goes.
    pub started: Vec<Name>,
    /// See [`Plan::started`].
    pub restarted: Vec<Name>,
    /// See [`Plan::started`].
    pub stopped: Vec<Name>,
    /// Groups that were not there.
    pub added_groups: Vec<String>,
    /// Groups that are not there any more.
    pub removed_groups: Vec<String>,
    /// Groups that are left alone, and why.
    pub skipped: Vec<(String, String)>,
}

impl Plan {
    /// What makes the differences go away.
    ///
    /// # Errors
    /// A sentence: a program cannot be carried over.
    pub fn new(
        differences: &[GroupDifference],
        files: &Definitions,
        seen: &[Seen],
        added_groups: &BTreeSet<String>,
    ) -> Result<Self, String> {
        let mut plan = Plan::default();
        for difference in differences.iter().filter(|one| one.is_pending()) {
            let group = Group {
                difference,
                files,
                seen: seen
                    .iter()
                    .filter(|seen| seen.group == difference.group)
                    .collect(),
                is_added: added_groups.contains(&difference.group),
            };
            plan.group(&group)?;
        }
        Ok(plan)
    }

    fn group(&mut self, group: &Group<'_>) -> Result<(), String> {
        let difference = group.difference;
        let name = &difference.group;
        if let Some(reason) = &difference.unknown {
            self.skipped.push((name.clone(), reason.clone()));
            return Ok(());
        }
        if difference.comes {
            self.added_groups.push(name.clone());
        }
        if difference.goes {
            self.removed_groups.push(name.clone());
        }
        if group.is_added && group.files.group(name).is_some() {
            self.adopt_groups.push(name.clone());
        }
        for program in &difference.programs {
            self.report(name, program);
        }
        if group.is_made_anew() {
            self.make_anew(group)
        } else {
            self.change(group)
        }
    }

    fn report(&mut self, group: &str, program: &ProgramDifference) {
        let name = |process: &Process| (group.to_owned(), process.name.clone());
        if program.change == Change::Scaled {
            return;
        }
        self.restarted
            .extend(program.replaced.iter().filter(|one| one.runs).map(name));
        let starting = program.replaced.iter().filter(|one| !one.runs);
        let starting = starting.chain(&program.joining);
        self.started
            .extend(starting.filter(|one| one.autostart).map(name));
        let leaving = program.leaving.iter().filter(|one| one.runs);
        self.stopped.extend(leaving.map(name));
    }

    /// The daemon's own group goes, and comes back as the files say.
    fn make_anew(&mut self, group: &Group<'_>) -> Result<(), String> {
        let difference = group.difference;
        let name = &difference.group;
        for seen in group.of_files() {
            let process = (name.clone(), seen.process.clone());
            if seen.is_running() {
                self.stop.push(process.clone());
            }
            if matches!(seen.made, Made::Update(_)) {
                self.leave.push(process);
            }
        }
        if !difference.comes {
            self.remove.push(name.clone());
        }
        if group.files.group(name).is_some() {
            self.add.push(name.clone());
        }
        self.start_those_that_ran(group);
        Ok(())
    }

    fn start_those_that_ran(&mut self, group: &Group<'_>) {
        let name = &group.difference.group;
        for program in &group.difference.programs {
            let ran = program
                .replaced
                .iter()
                .filter(|one| one.runs && !one.autostart);
            self.start
                .extend(ran.map(|one| (name.clone(), one.name.clone())));
        }
    }

    /// Only processes leave and join; the daemon's own group stays as it was made.
    fn change(&mut self, group: &Group<'_>) -> Result<(), String> {
        let name = &group.difference.group;
        for program in &group.difference.programs {
            if program.change == Change::Scaled {
                continue;
            }
            for process in program.replaced.iter().chain(&program.leaving) {
                let process_name = (name.clone(), process.name.clone());
                if process.runs {
                    self.stop.push(process_name.clone());
                }
                self.leave.push(process_name);
            }
            let joining = program.replaced.iter().chain(&program.joining);
            let numbers: BTreeSet<i64> = joining.map(|process| process.number).collect();
            if let Some(definition) = &program.new {
                let environment = group.files.environment.as_deref();
                for run in runs(&numbers) {
                    let total = definition.numprocs;
                    self.join
                        .extend(part(name, definition, environment, run, total)?);
                }
                for process in &program.adopted {
                    let number = process.number;
                    let run = number..number + 1;
                    let one = part(name, definition, environment, run, definition.numprocs)?;
                    let one = one
                        .into_iter()
                        .map(|one| ((name.clone(), process.name.clone()), one));
                    self.adopt.extend(one);
                }
            }
        }
        self.start_those_that_ran(group);
        self.applied.push(name.clone());
        Ok(())
    }

    /// How many processes are not left alone.
    pub fn gone_or_replaced(&self) -> usize {
        let leaving: BTreeSet<&Name> = self.stop.iter().chain(&self.leave).collect();
        leaving.len()
    }
}

/// What is known of one group.
struct Group<'a> {
    difference: &'a GroupDifference,
    files: &'a Definitions,
    seen: Vec<&'a Seen>,
    /// Clients have added it.
    is_added: bool,
}

impl Group<'_> {
    /// The processes that come from the files.
    fn of_files(&self) -> impl Iterator<Item = &&Seen> {
        self.seen
            .iter()
            .filter(|seen| !matches!(seen.made, Made::Added(_)))
    }

    /// Whether the daemon's own group is made anew: because nothing else is possible, or because nobody
    /// of it goes on anyway, and nobody notices.
    fn is_made_anew(&self) -> bool {
        if self.difference.whole.is_some() || self.difference.goes {
            return true;
        }
        let programs = &self.difference.programs;
        let adopts = programs.iter().any(|program| !program.adopted.is_empty());
        let differing: BTreeMap<&str, &Process> = self
            .difference
            .differing()
            .map(|process| (process.name.as_str(), process))
            .collect();
        let is_added = |seen: &&&Seen| matches!(seen.made, Made::Added(_));
        let holds_added = |seen: &&Seen| {
            is_added(&seen)
                && (seen.real == seen.group || differing.contains_key(seen.process.as_str()))
        };
        !adopts
            && !self.is_added
            && !self.seen.iter().any(holds_added)
            && self
                .of_files()
                .all(|seen| differing.contains_key(seen.process.as_str()))
    }
}

/// Numbers that follow each other.
pub(super) fn runs(numbers: &BTreeSet<i64>) -> Vec<std::ops::Range<i64>> {
    let mut runs: Vec<std::ops::Range<i64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == *number => run.end += 1,
            _ => runs.push(*number..*number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_go_together() {
        let table = [
            (vec![], vec![]),
            (vec![3], vec![(3, 4)]),
            (vec![0, 1, 2, 5, 7, 8], vec![(0, 3), (5, 6), (7, 9)]),
        ];
        for (numbers, expected) in table {
            let found = runs(&numbers.into_iter().collect()).into_iter();
            let found: Vec<(i64, i64)> = found.map(|run| (run.start, run.end)).collect();
            assert_eq!(found, expected);
        }
    }
}
