//! The plan of an update: which processes stop, leave and join, and which groups are recreated.
//!
//! Pure: it turns differences into steps.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::{
    Change, GroupDifference, Origin, Process, ProgramDifference, VisibleProcess, part,
};
use crate::daemon::conf::Definitions;
use crate::program::Program;

/// The group and name of a process, as clients know them.
pub(super) type Name = (String, String);

/// Everything that an update does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Processes that are stopped, all at once.
    pub stop: Vec<Name>,
    /// Processes that are removed.
    pub leave: Vec<Name>,
    /// Groups that are removed from the daemon.
    pub remove: Vec<String>,
    /// Groups that the daemon adds from the files that it has read.
    pub add: Vec<String>,
    /// Programs that join their groups.
    pub join: Vec<Program>,
    /// Processes that are started at the end, because the daemon does not start them by itself.
    pub start: Vec<Name>,
    /// Processes that a client added and that the files now define, with the definition in the files.
    pub adopt: Vec<(Name, Program)>,
    /// Groups that a client added and that the files now define.
    pub adopt_groups: Vec<String>,
    /// Groups whose sections in the files are in force after the update, although the daemon's own group
    /// was made from other sections.
    pub applied: Vec<String>,
    /// Processes that the reply lists as started.
    pub started: Vec<Name>,
    /// Processes that the reply lists as restarted.
    pub restarted: Vec<Name>,
    /// Processes that the reply lists as stopped.
    pub stopped: Vec<Name>,
    /// Groups that the reply lists as added.
    pub added_groups: Vec<String>,
    /// Groups that the reply lists as removed.
    pub removed_groups: Vec<String>,
    /// Groups that the update does not change, each with the reason.
    pub skipped: Vec<(String, String)>,
}

impl Plan {
    /// The steps that remove the differences.
    ///
    /// # Errors
    /// A sentence that says which program cannot be written as a generated section, and why.
    pub fn new(
        differences: &[GroupDifference],
        files: &Definitions,
        processes: &[VisibleProcess],
        added_groups: &BTreeSet<String>,
    ) -> Result<Self, String> {
        let mut plan = Plan::default();
        for difference in differences.iter().filter(|one| one.is_pending()) {
            let group = Group {
                difference,
                files,
                processes: processes
                    .iter()
                    .filter(|process| process.group == difference.group)
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
        if let Some(reason) = &difference.unknown_reason {
            self.skipped.push((name.clone(), reason.clone()));
            return Ok(());
        }
        if difference.is_new {
            self.added_groups.push(name.clone());
        }
        if difference.is_removed {
            self.removed_groups.push(name.clone());
        }
        if group.is_added && group.files.group(name).is_some() {
            self.adopt_groups.push(name.clone());
        }
        for program in &difference.programs {
            self.report(name, program);
        }
        if group.is_recreated() {
            self.recreate(group)
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

    /// Plans the removal of the daemon's group, and its addition where the files define it.
    fn recreate(&mut self, group: &Group<'_>) -> Result<(), String> {
        let difference = group.difference;
        let name = &difference.group;
        for process in group.of_files() {
            let process_name = (name.clone(), process.name.clone());
            if process.is_running() {
                self.stop.push(process_name.clone());
            }
            if matches!(process.origin, Origin::Update(_)) {
                self.leave.push(process_name);
            }
        }
        if !difference.is_new {
            self.remove.push(name.clone());
        }
        if group.files.group(name).is_some() {
            self.add.push(name.clone());
        }
        self.start_replaced(group);
        Ok(())
    }

    fn start_replaced(&mut self, group: &Group<'_>) {
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

    /// Plans the changes of single processes. The daemon's own group keeps its definition.
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
            if let Some(definition) = &program.definition {
                let environment = group.files.environment.as_deref();
                for range in ranges(&numbers) {
                    let total = definition.numprocs;
                    self.join
                        .extend(part(name, definition, environment, range, total)?);
                }
                for process in &program.adopted {
                    let number = process.number;
                    let range = number..number + 1;
                    let one = part(name, definition, environment, range, definition.numprocs)?;
                    let one = one
                        .into_iter()
                        .map(|one| ((name.clone(), process.name.clone()), one));
                    self.adopt.extend(one);
                }
            }
        }
        self.start_replaced(group);
        self.applied.push(name.clone());
        Ok(())
    }

    /// How many processes the plan stops or removes.
    pub fn count_stopped(&self) -> usize {
        let leaving: BTreeSet<&Name> = self.stop.iter().chain(&self.leave).collect();
        leaving.len()
    }
}

/// One group of a plan.
struct Group<'a> {
    difference: &'a GroupDifference,
    files: &'a Definitions,
    processes: Vec<&'a VisibleProcess>,
    /// Whether a client added the group.
    is_added: bool,
}

impl Group<'_> {
    /// The processes that the files define or defined.
    fn of_files(&self) -> impl Iterator<Item = &&VisibleProcess> {
        self.processes
            .iter()
            .filter(|process| !matches!(process.origin, Origin::Added(_)))
    }

    /// Whether the daemon's own group is removed and added again: because it can only be replaced as a
    /// whole, or because the update replaces or removes all of its processes anyway.
    fn is_recreated(&self) -> bool {
        if self.difference.whole_reason.is_some() || self.difference.is_removed {
            return true;
        }
        let programs = &self.difference.programs;
        let adopts = programs.iter().any(|program| !program.adopted.is_empty());
        let differing: BTreeMap<&str, &Process> = self
            .difference
            .differing()
            .map(|process| (process.name.as_str(), process))
            .collect();
        let is_added = |process: &&&VisibleProcess| matches!(process.origin, Origin::Added(_));
        let holds_added = |process: &&VisibleProcess| {
            is_added(&process)
                && (process.real_group == process.group
                    || differing.contains_key(process.name.as_str()))
        };
        !adopts
            && !self.is_added
            && !self.processes.iter().any(holds_added)
            && self
                .of_files()
                .all(|process| differing.contains_key(process.name.as_str()))
    }
}

/// Splits numbers into ranges of consecutive numbers.
pub(super) fn ranges(numbers: &BTreeSet<i64>) -> Vec<std::ops::Range<i64>> {
    let mut ranges: Vec<std::ops::Range<i64>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(range) if range.end == *number => range.end += 1,
            _ => ranges.push(*number..*number + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_numbers_form_one_range() {
        let table = [
            (vec![], vec![]),
            (vec![3], vec![(3, 4)]),
            (vec![0, 1, 2, 5, 7, 8], vec![(0, 3), (5, 6), (7, 9)]),
        ];
        for (numbers, expected) in table {
            let ranges = ranges(&numbers.into_iter().collect()).into_iter();
            let ranges: Vec<(i64, i64)> = ranges.map(|range| (range.start, range.end)).collect();
            assert_eq!(ranges, expected);
        }
    }
}
