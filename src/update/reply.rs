//! Differences and outcomes as clients are told of them.

use std::collections::BTreeSet;

use super::difference::{Change, GroupDifference, OptionChange, Process, ProgramDifference};
use super::plan::{Name, Plan};
use super::survey::Survey;
use crate::xmlrpc::Value;

/// What became of an update, beside what was planned.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Groups that are as before, and why.
    pub skipped: Vec<(String, String)>,
    /// Processes that did not come up or could not be added, and why.
    pub failed: Vec<(Name, String)>,
    /// Of these, those that supervisord cannot spawn as they are defined.
    pub unspawned: BTreeSet<Name>,
    /// Those that ran when they were stopped.
    pub ran: Vec<Name>,
    added: Vec<String>,
    removed: Vec<String>,
    started: Vec<Name>,
    restarted: Vec<Name>,
    stopped: Vec<Name>,
    untouched: usize,
}

impl Outcome {
    /// Whether a process is still to be brought to where it is to be.
    pub fn leaves(&self, name: &Name) -> bool {
        let is_it = |(failed, _): &(Name, String)| failed == name;
        self.failed.iter().any(is_it) && !self.unspawned.contains(name)
    }

    /// The whole outcome of a plan with `all` processes before.
    pub fn of_plan(mut self, plan: &Plan, all: usize) -> Self {
        self.skipped.extend(plan.skipped.iter().cloned());
        let failed =
            |name: &Name, failed: &[(Name, String)]| failed.iter().any(|(one, _)| one == name);
        let done = |names: &[Name], failures: &[(Name, String)]| {
            let done = names.iter().filter(|name| !failed(name, failures));
            let mut done: Vec<Name> = done.cloned().collect();
            done.sort();
            done
        };
        self.started = done(&plan.started, &self.failed);
        self.restarted = done(&plan.restarted, &self.failed);
        self.stopped = done(&plan.stopped, &self.failed);
        let is_skipped = |name: &String| self.skipped.iter().any(|(group, _)| group == name);
        let groups = |names: &[String]| {
            let names = names.iter().filter(|name| !is_skipped(name));
            names.cloned().collect::<Vec<String>>()
        };
        self.added = groups(&plan.added_groups);
        self.removed = groups(&plan.removed_groups);
        self.untouched = all.saturating_sub(plan.gone_or_replaced());
        self
    }

    /// The struct that `updateConfig` returns.
    pub fn into_value(self) -> Value {
        let named = |name: &str, first: String, reason: String| {
            object([(name, first.into()), ("reason", reason.into())])
        };
        let skipped = self.skipped.into_iter();
        let skipped = skipped.map(|(group, reason)| named("group", group, reason));
        let failed = self.failed.into_iter();
        let failed = failed.map(|(name, reason)| named("name", namespec(&name), reason));
        object([
            ("added", strings(self.added)),
            ("removed", strings(self.removed)),
            ("started", namespecs(&self.started)),
            ("restarted", namespecs(&self.restarted)),
            ("stopped", namespecs(&self.stopped)),
            ("untouched", count(self.untouched)),
            ("skipped", Value::Array(skipped.collect())),
            ("failed", Value::Array(failed.collect())),
        ])
    }

    /// One line for the log.
    pub fn in_words(&self) -> String {
        format!(
            "{} restarted, {} started, {} stopped, {} untouched, {} failed, {} groups skipped",
            self.restarted.len(),
            self.started.len(),
            self.stopped.len(),
            self.untouched,
            self.failed.len(),
            self.skipped.len(),
        )
    }
}

/// What `scaleProgram` returns.
pub(super) fn scaled(started: &[Name], stopped: &[Name]) -> Value {
    object([
        ("started", namespecs(started)),
        ("stopped", namespecs(stopped)),
    ])
}

/// What `diffConfig` returns.
pub(super) fn differences(survey: &Survey) -> Value {
    let structs = survey
        .differences
        .iter()
        .flat_map(|difference| group(survey, difference));
    Value::Array(structs.collect())
}

fn group(survey: &Survey, difference: &GroupDifference) -> Vec<Value> {
    let name = &difference.group;
    if let Some(reason) = &difference.unknown {
        return vec![entry(name, &unknown(reason), None)];
    }
    let whole = difference.whole.as_deref();
    let mut structs = Vec::new();
    if let Some(own) = own(survey, difference) {
        structs.push(entry(name, &own, whole));
    }
    structs.extend(
        difference
            .programs
            .iter()
            .map(|program| entry(name, program, whole)),
    );
    structs
}

/// The struct of a `[group:x]` itself, which comes, goes or gets another priority.
fn own(survey: &Survey, difference: &GroupDifference) -> Option<ProgramDifference> {
    let defined = survey.files.group(&difference.group);
    let has_section = defined.is_some_and(|group| group.has_section);
    let change = match () {
        () if difference.comes && has_section => Change::Added,
        () if difference.goes && survey.had_section(&difference.group) => Change::Removed,
        () => {
            let (old, new) = difference.priority?;
            let mut own = plain(Change::Changed, "a priority restarts nobody".to_owned());
            own.options.push(OptionChange {
                name: "priority".to_owned(),
                old: old.to_string(),
                new: new.to_string(),
            });
            return Some(own);
        }
    };
    Some(plain(change, String::new()))
}

fn unknown(reason: &str) -> ProgramDifference {
    plain(Change::Unknown, reason.to_owned())
}

fn plain(change: Change, reason: String) -> ProgramDifference {
    ProgramDifference {
        reason,
        ..ProgramDifference::new("", change)
    }
}

fn entry(group: &str, program: &ProgramDifference, whole: Option<&str>) -> Value {
    let names = |processes: &[&Process]| {
        let names = processes.iter();
        let names = names.map(|process| namespec(&(group.to_owned(), process.name.clone())));
        strings(names.collect())
    };
    let restart: Vec<&Process> = program.replaced.iter().filter(|one| one.runs).collect();
    let start = program.replaced.iter().filter(|one| !one.runs);
    let start = start.chain(&program.joining).filter(|one| one.autostart);
    let start: Vec<&Process> = start.collect();
    let stop: Vec<&Process> = program.leaving.iter().filter(|one| one.runs).collect();
    let options = program.options.iter().map(|option| {
        object([
            ("name", option.name.clone().into()),
            ("old", option.old.clone().into()),
            ("new", option.new.clone().into()),
        ])
    });
    let reason = match (program.reason.as_str(), whole) {
        ("", Some(whole)) => format!("{whole}, so the group is replaced as a whole"),
        (reason, _) => reason.to_owned(),
    };
    object([
        ("group", group.into()),
        ("program", program.program.clone().into()),
        ("change", program.change.name().into()),
        ("options", Value::Array(options.collect())),
        ("start", names(&start)),
        ("restart", names(&restart)),
        ("stop", names(&stop)),
        ("whole", Value::Bool(whole.is_some())),
        ("reason", reason.into()),
    ])
}

/// A struct of these members.
pub(super) fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let members = members.into_iter();
    Value::Struct(
        members
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

/// An array of these strings.
pub(super) fn strings(names: Vec<String>) -> Value {
    Value::Array(names.into_iter().map(Value::from).collect())
}

/// A number of processes.
pub(super) fn count(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn namespecs(names: &[Name]) -> Value {
    strings(names.iter().map(namespec).collect())
}

fn namespec((group, process): &Name) -> String {
    format!("{group}:{process}")
}
