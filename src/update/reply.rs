//! The replies about differences and outcomes, as XML-RPC values.

use std::collections::BTreeSet;

use super::difference::{Change, GroupDifference, OptionChange, Process, ProgramDifference};
use super::plan::{Name, Plan};
use super::survey::Survey;
use crate::xmlrpc::Value;

/// The outcome of an update.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Groups that the update did not change, each with the reason.
    pub skipped: Vec<(String, String)>,
    /// Processes that did not start or could not be added, each with the reason.
    pub failed: Vec<(Name, String)>,
    /// Those of `failed` that supervisord cannot spawn with their definition.
    pub unspawned: BTreeSet<Name>,
    /// Processes that were running when they were stopped.
    pub was_running: Vec<Name>,
    added: Vec<String>,
    removed: Vec<String>,
    started: Vec<Name>,
    restarted: Vec<Name>,
    stopped: Vec<Name>,
    untouched: usize,
}

impl Outcome {
    /// Whether the next update has to try this process again.
    pub fn leaves_undone(&self, name: &Name) -> bool {
        let is_same = |(failed, _): &(Name, String)| failed == name;
        self.failed.iter().any(is_same) && !self.unspawned.contains(name)
    }

    /// Completes the outcome with the groups and processes of its plan. `all` is the number of processes
    /// before the update.
    pub fn with_plan(mut self, plan: &Plan, all: usize) -> Self {
        self.skipped.extend(plan.skipped.iter().cloned());
        let has_failed = |name: &Name| self.failed.iter().any(|(failed, _)| failed == name);
        let successful = |names: &[Name]| {
            let names = names.iter().filter(|name| !has_failed(name));
            let mut names: Vec<Name> = names.cloned().collect();
            names.sort();
            names
        };
        let (started, restarted) = (successful(&plan.started), successful(&plan.restarted));
        let stopped = successful(&plan.stopped);
        (self.started, self.restarted, self.stopped) = (started, restarted, stopped);
        let is_skipped = |name: &String| self.skipped.iter().any(|(group, _)| group == name);
        let groups = |names: &[String]| {
            let names = names.iter().filter(|name| !is_skipped(name));
            names.cloned().collect::<Vec<String>>()
        };
        self.added = groups(&plan.added_groups);
        self.removed = groups(&plan.removed_groups);
        self.untouched = all.saturating_sub(plan.count_stopped());
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
    pub fn summary(&self) -> String {
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

/// The struct that `scaleProgram` returns.
pub(super) fn scaled(started: &[Name], stopped: &[Name]) -> Value {
    object([
        ("started", namespecs(started)),
        ("stopped", namespecs(stopped)),
    ])
}

/// The array that `diffConfig` returns.
pub(super) fn differences(survey: &Survey) -> Value {
    let structs = survey
        .differences
        .iter()
        .flat_map(|difference| group(survey, difference));
    Value::Array(structs.collect())
}

fn group(survey: &Survey, difference: &GroupDifference) -> Vec<Value> {
    let name = &difference.group;
    if let Some(reason) = &difference.unknown_reason {
        return vec![entry(name, &unknown(reason), None)];
    }
    let whole = difference.whole_reason.as_deref();
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

/// The difference of a `[group:x]` itself, if it is added, removed, or gets another priority.
fn own(survey: &Survey, difference: &GroupDifference) -> Option<ProgramDifference> {
    let defined = survey.files.group(&difference.group);
    let has_section = defined.is_some_and(|group| group.has_section);
    let change = match () {
        () if difference.is_new && has_section => Change::Added,
        () if difference.is_removed && survey.had_section(&difference.group) => Change::Removed,
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

/// A struct with these members.
pub(super) fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let members = members.into_iter();
    Value::Struct(
        members
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

/// An array with these strings.
pub(super) fn strings(names: Vec<String>) -> Value {
    Value::Array(names.into_iter().map(Value::from).collect())
}

/// A count as an XML-RPC integer.
pub(super) fn count(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn namespecs(names: &[Name]) -> Value {
    strings(names.iter().map(namespec).collect())
}

fn namespec((group, process): &Name) -> String {
    format!("{group}:{process}")
}
