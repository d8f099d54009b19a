//! The difference between what runs and what the files say, process by process.
//!
//! Pure. First the texts are compared; what differs there is put to the daemon ([`Probe`]), and what
//! the daemon made of it says who really changed.

use std::collections::{BTreeMap, BTreeSet};

use super::baseline::{Base, Baseline};
use super::probe::{Id, Probe, Reply};
use super::values::Values;
use crate::daemon::ProcessState;
use crate::daemon::conf::{Definitions, GroupDefinition, Kind, ProgramDefinition};
use crate::program::{FromFiles, Program};
use crate::registry::Member;

/// A process as clients see it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The group that clients know.
    pub group: String,
    /// Its name.
    pub process: String,
    /// The daemon's group that holds it.
    pub real: String,
    /// Its state.
    pub state: ProcessState,
    /// When it last started.
    pub start: i64,
    /// What it was made from.
    pub made: Made,
}

/// What a process was made from.
#[derive(Clone, Debug)]
pub enum Made {
    /// From what the daemon's own group was made from.
    Base,
    /// From the files, later than its group.
    Update(Program),
    /// A client has added it.
    Added(Option<Program>),
}

impl Made {
    /// What a member was made from.
    pub fn member(member: &Member) -> Self {
        match &member.program {
            Some(program) if program.from_files().is_some() => Made::Update(program.clone()),
            program => Made::Added(program.clone()),
        }
    }
}

impl Seen {
    /// Whether it runs, or is about to.
    pub fn is_running(&self) -> bool {
        self.state.is_running()
    }

    fn program(&self) -> Option<&Program> {
        match &self.made {
            Made::Base => None,
            Made::Update(program) => Some(program),
            Made::Added(program) => program.as_ref(),
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What the files say.
    pub files: &'a Definitions,
    /// What the groups were made from.
    pub baseline: &'a Baseline,
    /// All processes that clients see.
    pub seen: &'a [Seen],
    /// Groups that the files do not define, and clients have added.
    pub added_groups: &'a BTreeSet<String>,
    /// What the daemon said of the files as they are.
    pub plain: &'a Reply,
}

/// One process that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: i64,
    /// Whether it runs now.
    pub runs: bool,
    /// Whether it is to be started by itself.
    pub autostart: bool,
}

/// How a program differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The files have it, and it is not in force.
    Added,
    /// It is another one in the files.
    Changed,
    /// The files do not have it any more.
    Removed,
    /// It runs with another number of processes than the files say.
    Scaled,
    /// It cannot be told.
    Unknown,
}

impl Change {
    /// As clients are told.
    pub fn name(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Changed => "changed",
            Change::Removed => "removed",
            Change::Scaled => "scaled",
            Change::Unknown => "unknown",
        }
    }
}

/// One option that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionChange {
    /// Its name.
    pub name: String,
    /// What is in force, as it is written.
    pub old: String,
    /// What the files say.
    pub new: String,
}

/// How one program differs.
#[derive(Clone, Debug)]
pub struct ProgramDifference {
    /// Its name; empty for the group itself.
    pub program: String,
    /// How it differs.
    pub change: Change,
    /// The options that differ.
    pub options: Vec<OptionChange>,
    /// Processes whose definition is another one.
    pub replaced: Vec<Process>,
    /// Processes that come.
    pub joining: Vec<Process>,
    /// Processes that go.
    pub leaving: Vec<Process>,
    /// Processes that were added, and are from now on the files'.
    pub adopted: Vec<Process>,
    /// What it is to be.
    pub new: Option<ProgramDefinition>,
    /// A sentence, where it is not evident.
    pub reason: String,
}

impl ProgramDifference {
    /// One that concerns nobody yet.
    pub fn new(program: &str, change: Change) -> Self {
        ProgramDifference {
            program: program.to_owned(),
            change,
            options: Vec::new(),
            replaced: Vec::new(),
            joining: Vec::new(),
            leaving: Vec::new(),
            adopted: Vec::new(),
            new: None,
            reason: String::new(),
        }
    }

    fn concerns_nobody(&self) -> bool {
        let all = [&self.replaced, &self.joining, &self.leaving, &self.adopted];
        all.into_iter().all(Vec::is_empty)
    }

    /// A sentence, where it is not evident why it differs. `is_environment`: what differs is what every
    /// program gets.
    fn explanation(&self, is_environment: bool) -> &'static str {
        if !self.adopted.is_empty() && self.replaced.is_empty() {
            "was added, and the files now define it"
        } else if is_environment {
            "[supervisord] environment changed, which every program gets"
        } else {
            ""
        }
    }
}

/// How one group differs.
#[derive(Clone, Debug)]
pub struct GroupDifference {
    /// Its name.
    pub group: String,
    /// Its programs, those that differ.
    pub programs: Vec<ProgramDifference>,
    /// It is not there yet.
    pub comes: bool,
    /// The files do not have it any more.
    pub goes: bool,
    /// Why it can only be replaced as a whole.
    pub whole: Option<String>,
    /// Why nothing can be told.
    pub unknown: Option<String>,
    /// The priority of its `[group:x]`, in force and in the files, where it is another one.
    pub priority: Option<(i64, i64)>,
}

impl GroupDifference {
    fn new(group: &str) -> Self {
        GroupDifference {
            group: group.to_owned(),
            programs: Vec::new(),
            comes: false,
            goes: false,
            whole: None,
            unknown: None,
            priority: None,
        }
    }

    /// Whether there is anything that an update would do.
    pub fn is_pending(&self) -> bool {
        self.programs
            .iter()
            .any(|program| program.change != Change::Scaled)
            || self.comes
            || self.goes
            || self.unknown.is_some()
            || self.whole.is_some()
            || self.priority.is_some()
    }

    /// The processes that are not as they are to be.
    pub fn differing(&self) -> impl Iterator<Item = &Process> {
        self.programs
            .iter()
            .flat_map(|program| program.replaced.iter().chain(&program.leaving))
    }
}

/// Processes of one program that were made from one text, beside what the files say of them.
#[derive(Debug)]
struct Comparison {
    group: String,
    program: String,
    /// They live in the daemon's own group.
    is_base: bool,
    /// A client has added them.
    is_added: bool,
    old: Vec<Program>,
    new: Vec<Program>,
    old_environment: Option<String>,
    is_same_text: bool,
    old_asked: Option<Asked>,
    new_asked: Option<Asked>,
}

/// What was put to the daemon about texts: in which probe, and by which numbers.
#[derive(Debug)]
struct Asked {
    probe: usize,
    ids: Vec<Id>,
}

/// What has to be asked, and what is known without.
#[derive(Debug)]
pub struct Questions<'a> {
    input: Input<'a>,
    comparisons: Vec<Comparison>,
    /// Groups that are looked into, with why they can only be replaced as a whole.
    groups: BTreeMap<&'a str, Option<String>>,
    /// One for each `[supervisord] environment` that is in force somewhere, or in the files.
    pub probes: Vec<Probe>,
}

/// The sections of the processes of `definition` in `group`, of all of them.
///
/// # Errors
/// A sentence: it cannot be carried over to a generated section.
pub fn programs(
    group: &str,
    definition: &ProgramDefinition,
    environment: Option<&str>,
) -> Result<Vec<Program>, String> {
    let numbers = definition.numprocs_start..definition.numprocs_start + definition.numprocs;
    part(group, definition, environment, numbers, definition.numprocs)
}

/// The same of those with these numbers.
///
/// # Errors
/// As [`programs`].
pub fn part(
    group: &str,
    definition: &ProgramDefinition,
    environment: Option<&str>,
    numbers: std::ops::Range<i64>,
    total: i64,
) -> Result<Vec<Program>, String> {
    let from = FromFiles {
        environment: environment.map(str::to_owned),
        is_extra: false,
    };
    Program::configured(
        group,
        &definition.name,
        &definition.options,
        numbers,
        total,
        &from,
    )
    .map_err(|error| error.to_string())
}

/// The names of processes and their numbers; none where only the daemon can tell.
pub fn names(programs: &[Program]) -> Option<BTreeMap<String, i64>> {
    let mut all = BTreeMap::new();
    for program in programs {
        all.extend(program.process_names()?.into_iter().zip(program.numbers()));
    }
    Some(all)
}

/// What a text says but for how many processes there are.
fn is_same_text(old: &[Program], new: &[Program]) -> bool {
    let counts = |name: &str| matches!(name, "numprocs" | "numprocs_start");
    let (Some(old), Some(new)) = (old.first(), new.first()) else {
        return old.is_empty() && new.is_empty();
    };
    let told = |program: &Program| {
        let mut texts = program.options().values();
        texts.any(|text| text.contains("(numprocs)"))
    };
    let options = |program: &Program| -> Vec<(String, String)> {
        let options = program.options().iter();
        options
            .filter(|(name, _)| !counts(name))
            .map(|(name, text)| (name.clone(), text.clone()))
            .collect()
    };
    let environment = |program: &Program| {
        let from = program.from_files();
        from.and_then(|from| from.environment.clone())
    };
    options(old) == options(new)
        && (old.total() == new.total() || !told(old))
        && environment(old) == environment(new)
}

impl<'a> Questions<'a> {
    /// What has to be asked about `groups`.
    pub fn new(input: Input<'a>, groups: &[&'a str]) -> Self {
        let mut questions = Questions {
            input,
            comparisons: Vec::new(),
            groups: BTreeMap::new(),
            probes: Vec::new(),
        };
        for group in groups {
            let whole = questions.compare_group(group);
            questions.groups.insert(group, whole.err());
        }
        questions.ask();
        questions
    }

    /// Finds what is to be compared in a group.
    ///
    /// # Errors
    /// Why it can only be replaced as a whole.
    fn compare_group(&mut self, group: &'a str) -> Result<(), String> {
        let Some(new) = self.input.files.group(group) else {
            return Ok(());
        };
        let base = self.input.base(group);
        for definition in [Some(new), base.map(|base| &base.group)]
            .into_iter()
            .flatten()
        {
            match definition.kind {
                Kind::Program => {}
                Kind::Fcgi => {
                    return Err("processes of a FastCGI program share a socket".to_owned());
                }
                Kind::Listener => {
                    return Err("event listeners of a pool share a buffer".to_owned());
                }
            }
        }
        let mut found = Vec::new();
        for program in &new.programs {
            found.extend(self.compare_program(group, base, program)?);
        }
        self.comparisons.extend(found);
        Ok(())
    }

    fn compare_program(
        &self,
        group: &str,
        base: Option<&Base>,
        program: &ProgramDefinition,
    ) -> Result<Vec<Comparison>, String> {
        let environment = self.input.files.environment.as_deref();
        let all = programs(group, program, environment)?;
        let scaled = self
            .input
            .baseline
            .scaled(group, &program.name, program.numprocs)
            .is_some();
        // Of a scaled program, those that came later keep what they were told of how many there are.
        let new_for = |old: &Program| {
            let total = i64::from(old.total());
            part(group, program, environment, old.numbers(), total)
        };
        let mut comparisons = Vec::new();
        let mut compare = |old: Vec<Program>, is_base: bool, is_added, old_environment| {
            let new = match (scaled, old.first()) {
                (true, Some(first)) if !is_base => new_for(first)?,
                _ => all.clone(),
            };
            comparisons.push(Comparison {
                group: group.to_owned(),
                program: program.name.clone(),
                is_base,
                is_added,
                is_same_text: is_same_text(&old, &new),
                old,
                new,
                old_environment,
                old_asked: None,
                new_asked: None,
            });
            Ok::<(), String>(())
        };
        if let Some(base) = base
            && let Some(old) = base.group.program(&program.name)
        {
            let environment = base.environment.as_deref();
            let old = programs(group, old, environment)?;
            compare(old, true, false, base.environment.clone())?;
        }
        let mut known: Vec<&Program> = Vec::new();
        for seen in self.input.of(group) {
            let Some(old) = seen.program().filter(|old| old.name() == program.name) else {
                continue;
            };
            if !known.contains(&old) {
                known.push(old);
                let is_added = matches!(seen.made, Made::Added(_));
                let from = old.from_files();
                let environment = match from {
                    Some(from) => from.environment.clone(),
                    None => self.input.files.environment.clone(),
                };
                compare(vec![old.clone()], false, is_added, environment)?;
            }
        }
        Ok(comparisons)
    }

    fn ask(&mut self) {
        let files = self.input.files.environment.as_deref();
        let mut comparisons = std::mem::take(&mut self.comparisons);
        for comparison in &mut comparisons {
            let are_named = names(&comparison.old).is_some() && names(&comparison.new).is_some();
            if comparison.is_same_text && are_named {
                continue;
            }
            let old = comparison.old_environment.as_deref();
            comparison.old_asked = Some(self.ask_for(old, &comparison.old));
            comparison.new_asked = Some(self.ask_for(files, &comparison.new));
        }
        self.comparisons = comparisons;
        let groups: Vec<&str> = self.groups.keys().copied().collect();
        for group in groups {
            if self.is_confirmable(group)
                && let Some(base) = self.input.base(group)
                && let Ok(old) = base_programs(base)
            {
                let probe = self.probe(base.environment.as_deref());
                self.probes[probe].confirm(group, base.group.priority, &old);
            }
        }
    }

    fn ask_for(&mut self, environment: Option<&str>, programs: &[Program]) -> Asked {
        let probe = self.probe(environment);
        let ids = self.probes[probe].value(programs);
        Asked { probe, ids }
    }

    /// The probe in which every program gets this environment.
    fn probe(&mut self, environment: Option<&str>) -> usize {
        let is_it = |probe: &Probe| probe.environment() == environment;
        self.probes.iter().position(is_it).unwrap_or_else(|| {
            let files = self.input.files.environment.as_deref();
            self.probes.push(Probe::new(environment, files));
            self.probes.len() - 1
        })
    }

    /// Whether the daemon is asked for what the group was made from.
    fn is_confirmable(&self, group: &str) -> bool {
        let is_whole = self.groups.get(group).is_some_and(Option::is_some);
        self.input.plain.changed.contains(group) && !is_whole && !self.input.holds_own(group)
    }

    /// The question whether all that did not change according to `replies` is really the same. Each
    /// group is asked for with what is new of it in the places of those.
    pub fn completeness(&self, replies: &Replies) -> Probe {
        let files = self.input.files.environment.as_deref();
        let mut probe = Probe::new(files, files);
        for group in self.groups.keys() {
            if self.is_confirmable(group)
                && !replies.refute(group)
                && let Some(base) = self.input.base(group)
                && base.environment.as_deref() == files
                && let Some(programs) = self.with_what_is_same(base, replies)
            {
                probe.confirm(group, base.group.priority, &programs);
            }
        }
        probe
    }

    /// What the group was made from, with the new text of those that did not change by another one;
    /// none where no text differs that means the same.
    fn with_what_is_same(&self, base: &Base, replies: &Replies) -> Option<Vec<Program>> {
        let group = &base.group.name;
        let mut programs = Vec::new();
        let mut has_new = false;
        for definition in &base.group.programs {
            let old = self::programs(group, definition, base.environment.as_deref()).ok()?;
            let found = self
                .comparisons
                .iter()
                .find(|one| one.is_base && one.group == *group && one.program == definition.name);
            let same = match found {
                Some(found) if !found.is_same_text => found.same(replies),
                _ => BTreeSet::new(),
            };
            let (Some(found), false) = (found, same.is_empty()) else {
                programs.extend(old);
                continue;
            };
            has_new = true;
            let new_numbers = found.new_numbers(replies);
            for (name, number) in names(&old)? {
                let source = if same.contains(&name) {
                    (&found.new, *new_numbers.get(&name)?)
                } else {
                    (&old, number)
                };
                programs.extend(one(source.0, source.1)?);
            }
        }
        has_new.then_some(programs)
    }

    /// What differs, according to what the daemon said.
    pub fn differences(&self, replies: &Replies) -> Vec<GroupDifference> {
        let groups = self.groups.iter();
        groups
            .map(|(group, whole)| self.difference(group, whole.as_deref(), replies))
            .filter(|difference| {
                !difference.programs.is_empty()
                    || difference.comes
                    || difference.goes
                    || difference.unknown.is_some()
                    || difference.whole.is_some()
                    || difference.priority.is_some()
            })
            .collect()
    }

    fn difference(&self, group: &str, whole: Option<&str>, replies: &Replies) -> GroupDifference {
        let mut difference = GroupDifference::new(group);
        let input = self.input;
        let plain = input.plain;
        let Some(new) = input.files.group(group) else {
            difference.goes = true;
            difference.programs = self.all_leaving(group);
            return difference;
        };
        // Processes of an update may be there without a group of the daemon's own.
        let is_there = input
            .of(group)
            .any(|seen| matches!(seen.made, Made::Update(_)));
        difference.comes = plain.added.contains(group) && !is_there;
        if let Some(reason) = whole {
            if plain.changed.contains(group) {
                difference.whole = Some(reason.to_owned());
                difference.programs = self.replaced_as_a_whole(group, new);
            } else if difference.comes {
                difference.programs = self.all_joining(new);
            }
            return difference;
        }
        let is_asked = self.is_confirmable(group) && !input.added_groups.contains(group);
        if is_asked && (input.base(group).is_none() || replies.refute(group)) {
            let edits_environment = input
                .base(group)
                .is_some_and(|base| base.environment != input.files.environment);
            let or_later = if edits_environment {
                ", or [supervisord] environment was edited in a file that is read after those of include_dir"
            } else {
                ""
            };
            difference.unknown = Some(format!(
                "twiddler did not see what group {group} was started from{or_later}: `supervisorctl update {group}` restarts it as a whole"
            ));
            return difference;
        }
        let mut programs: Vec<ProgramDifference> = new
            .programs
            .iter()
            .filter_map(|program| self.program(group, program, replies))
            .collect();
        programs.extend(self.gone(group, new));
        difference.programs = programs;
        difference.priority = self.changed_priority(group, new);
        difference
    }

    fn changed_priority(&self, group: &str, new: &GroupDefinition) -> Option<(i64, i64)> {
        let applied = self.input.baseline.applied.get(group);
        let old = applied.or_else(|| self.input.base(group))?;
        let is_section = old.group.has_section && new.has_section;
        let (old, new) = (old.group.priority, new.priority);
        (is_section && old != new).then_some((old, new))
    }

    /// How a program of the files differs from what runs.
    fn program(
        &self,
        group: &str,
        program: &ProgramDefinition,
        replies: &Replies,
    ) -> Option<ProgramDifference> {
        let of_program = |one: &&Comparison| one.group == group && one.program == program.name;
        let comparisons: Vec<&Comparison> = self.comparisons.iter().filter(of_program).collect();
        let baseline = self.input.baseline;
        let scaled = baseline.scaled(group, &program.name, program.numprocs);
        let environment = self.input.files.environment.as_deref();
        let all = programs(group, program, environment).unwrap_or_default();
        let autostart = all.first().is_none_or(Program::autostarts);
        let mut wanted = names(&all).unwrap_or_default();
        for comparison in &comparisons {
            if scaled.is_none() || wanted.is_empty() {
                wanted.extend(comparison.new_numbers(replies));
            }
        }
        let mut difference = ProgramDifference::new(&program.name, Change::Changed);
        difference.new = Some(program.clone());
        let mut there = BTreeSet::new();
        let mut is_environment = false;
        for comparison in &comparisons {
            let replaced = difference.replaced.len();
            there.extend(self.compare(comparison, replies, autostart, &mut difference));
            let is_replaced = difference.replaced.len() > replaced;
            let has_changed = comparison.old_environment != self.input.files.environment;
            is_environment |= is_replaced && has_changed;
        }
        let others = self.in_its_place(group, &wanted, &there, autostart);
        there.extend(others.iter().map(|process| process.name.clone()));
        difference.replaced.extend(others);
        let is_new = there.is_empty();
        if scaled.is_none() {
            let joining = wanted.iter().filter(|(name, _)| !there.contains(*name));
            difference.joining.extend(joining.map(|(name, number)| {
                Process {
                    name: name.clone(),
                    number: *number,
                    runs: false,
                    autostart: comparisons
                        .first()
                        .map_or(autostart, |one| one.autostart(name, replies, autostart)),
                }
            }));
        }
        if difference.concerns_nobody() {
            difference.change = Change::Scaled;
            difference.options.push(OptionChange {
                name: "numprocs".to_owned(),
                old: scaled?.to_string(),
                new: program.numprocs.to_string(),
            });
            return Some(difference);
        }
        if is_new && !difference.joining.is_empty() {
            difference.change = Change::Added;
        }
        let old = self.old_options(group, program, &comparisons, replies);
        difference.options = option_changes(&old.unwrap_or_default(), &program.options);
        difference.reason = difference.explanation(is_environment).to_owned();
        Some(difference)
    }

    /// Sorts into `difference` what becomes of the processes that were made from the old text of a
    /// comparison. Their names, but for those that were added and are not the files' after all.
    fn compare(
        &self,
        comparison: &Comparison,
        replies: &Replies,
        autostart: bool,
        difference: &mut ProgramDifference,
    ) -> Vec<String> {
        let numbers = comparison.new_numbers(replies);
        let same = comparison.same(replies);
        let mut there = Vec::new();
        for seen in self.input.made_by(comparison) {
            if !comparison.holds(seen, replies) {
                continue;
            }
            let number = numbers.get(&seen.process).copied();
            let process = Process {
                name: seen.process.clone(),
                number: number.unwrap_or_default(),
                runs: seen.is_running(),
                autostart: comparison.autostart(&seen.process, replies, autostart),
            };
            match (number, same.contains(&seen.process)) {
                (None, _) if comparison.is_added => continue,
                (None, _) => difference.leaving.push(process),
                (Some(_), true) if comparison.is_added => difference.adopted.push(process),
                (Some(_), true) => {}
                (Some(_), false) => difference.replaced.push(process),
            }
            there.push(seen.process.clone());
        }
        there
    }

    /// Processes that were added under names that the program wants, and that it was not made of.
    fn in_its_place(
        &self,
        group: &str,
        wanted: &BTreeMap<String, i64>,
        there: &BTreeSet<String>,
        autostart: bool,
    ) -> Vec<Process> {
        let others = self.input.of(group);
        let others = others.filter(|seen| matches!(seen.made, Made::Added(_)));
        let others = others.filter(|seen| !there.contains(&seen.process));
        let process = |seen: &Seen| {
            Some(Process {
                name: seen.process.clone(),
                number: *wanted.get(&seen.process)?,
                runs: seen.is_running(),
                autostart,
            })
        };
        others.filter_map(process).collect()
    }

    /// The options of what is in force, as far as they are known.
    fn old_options(
        &self,
        group: &str,
        program: &ProgramDefinition,
        comparisons: &[&Comparison],
        replies: &Replies,
    ) -> Option<BTreeMap<String, String>> {
        let in_force = |one: &&&Comparison| {
            let made = self.input.made_by(one);
            made.into_iter().any(|seen| one.holds(seen, replies))
        };
        let old = comparisons
            .iter()
            .filter(in_force)
            .max_by_key(|one| !one.is_same_text)
            .or(comparisons.first())?;
        let options_in = |base: &Base| Some(base.group.program(&program.name)?.options.clone());
        let base = self.input.base(group).and_then(options_in);
        let applied = self.input.baseline.applied.get(group);
        let numbers = applied.and_then(options_in).or_else(|| base.clone());
        let numbers = numbers.as_ref().unwrap_or(&program.options);
        match base {
            Some(base) if old.is_base => Some(with_numbers_of(&base, numbers)),
            _ => old
                .old
                .first()
                .map(|old| with_numbers_of(old.options(), numbers)),
        }
    }

    fn gone(&self, group: &str, new: &GroupDefinition) -> Vec<ProgramDifference> {
        let mut gone: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        for seen in self.input.of(group) {
            let program = match &seen.made {
                Made::Added(_) => continue,
                Made::Update(program) => program.name().to_owned(),
                Made::Base => match self.input.base_program(group, &seen.process) {
                    Some(program) => program,
                    None => continue,
                },
            };
            if new.program(&program).is_none() {
                gone.entry(program).or_default().push(leaving(seen));
            }
        }
        let removed = |(program, leaving): (String, _)| removed(&program, leaving);
        gone.into_iter().map(removed).collect()
    }

    fn all_leaving(&self, group: &str) -> Vec<ProgramDifference> {
        let mut gone: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        for seen in self.input.of(group) {
            let program = match &seen.made {
                Made::Added(_) => continue,
                Made::Update(program) => program.name().to_owned(),
                Made::Base => self
                    .input
                    .base_program(group, &seen.process)
                    .unwrap_or_else(|| group.to_owned()),
            };
            gone.entry(program).or_default().push(leaving(seen));
        }
        let removed = |(program, leaving): (String, _)| removed(&program, leaving);
        gone.into_iter().map(removed).collect()
    }

    fn all_joining(&self, new: &GroupDefinition) -> Vec<ProgramDifference> {
        let joining =
            |program: &ProgramDefinition| self.program(&new.name, program, &Replies::default());
        new.programs.iter().filter_map(joining).collect()
    }

    fn replaced_as_a_whole(&self, group: &str, new: &GroupDefinition) -> Vec<ProgramDifference> {
        let base = self.input.base(group);
        let environment = self.input.files.environment.as_deref();
        let mut left: BTreeMap<&str, &Seen> = self
            .input
            .of(group)
            .filter(|seen| !matches!(seen.made, Made::Added(_)))
            .map(|seen| (seen.process.as_str(), seen))
            .collect();
        let mut differences = Vec::new();
        for program in &new.programs {
            let programs = programs(group, program, environment).unwrap_or_default();
            let autostart = programs.first().is_none_or(Program::autostarts);
            let mut difference = ProgramDifference::new(&program.name, Change::Changed);
            difference.new = Some(program.clone());
            let old = base.and_then(|base| base.group.program(&program.name));
            let old = old.map(|old| old.options.clone()).unwrap_or_default();
            difference.options = option_changes(&old, &program.options);
            for (name, number) in names(&programs).unwrap_or_default() {
                let seen = left.remove(name.as_str());
                let process = Process {
                    name,
                    number,
                    runs: seen.is_some_and(Seen::is_running),
                    autostart,
                };
                match seen {
                    Some(_) => difference.replaced.push(process),
                    None => difference.joining.push(process),
                }
            }
            differences.push(difference);
        }
        if !left.is_empty() {
            let gone = left.into_values().map(leaving).collect();
            differences.push(removed(group, gone));
        }
        differences
    }
}

fn leaving(seen: &Seen) -> Process {
    Process {
        name: seen.process.clone(),
        number: 0,
        runs: seen.is_running(),
        autostart: false,
    }
}

fn removed(program: &str, leaving: Vec<Process>) -> ProgramDifference {
    ProgramDifference {
        leaving,
        ..ProgramDifference::new(program, Change::Removed)
    }
}

/// Options of a part of a program, with the numbers of `files`: those of a part are ours.
fn with_numbers_of(
    part: &BTreeMap<String, String>,
    files: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut options = part.clone();
    for name in ["numprocs", "numprocs_start"] {
        match files.get(name) {
            Some(text) => drop(options.insert(name.to_owned(), text.clone())),
            None => drop(options.remove(name)),
        }
    }
    options
}

/// The options that differ as they are written. Of `environment` only the names of variables.
pub fn option_changes(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Vec<OptionChange> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        let text = |options: &BTreeMap<String, String>| options.get(name).cloned();
        let (old, new) = (text(old), text(new));
        if old == new {
            continue;
        }
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        if name == "environment" {
            changes.extend(variable_changes(&old, &new));
        } else {
            let name = name.clone();
            changes.push(OptionChange { name, old, new });
        }
    }
    changes
}

fn variable_changes(old: &str, new: &str) -> Vec<OptionChange> {
    let read = |text: &str| crate::daemon::conf::variables(text).unwrap_or_default();
    let (old, new) = (read(old), read(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = |name: &&&String| old.get(**name) != new.get(**name);
    names
        .iter()
        .filter(differs)
        .map(|name| OptionChange {
            name: format!("environment.{name}"),
            old: String::new(),
            new: String::new(),
        })
        .collect()
}

/// What the daemon said to each reading.
#[derive(Debug, Default)]
pub struct Replies {
    /// To the probes, in their order.
    pub told: Vec<Reply>,
    /// To the question whether the others are the same.
    pub same: Reply,
}

impl Replies {
    /// Whether a group does not run what was believed.
    fn refute(&self, group: &str) -> bool {
        let mut all = self.told.iter().chain([&self.same]);
        all.any(|reply| reply.refuted.contains(group))
    }

    fn values(&self, asked: Option<&Asked>) -> BTreeMap<String, Values> {
        let told = asked.and_then(|asked| Some((self.told.get(asked.probe)?, &asked.ids)));
        told.map(|(reply, ids)| reply.values(ids))
            .unwrap_or_default()
    }
}

impl Comparison {
    fn old_values(&self, replies: &Replies) -> BTreeMap<String, Values> {
        replies.values(self.old_asked.as_ref())
    }

    fn new_values(&self, replies: &Replies) -> BTreeMap<String, Values> {
        replies.values(self.new_asked.as_ref())
    }

    /// The processes that the files want, and their numbers.
    fn new_numbers(&self, replies: &Replies) -> BTreeMap<String, i64> {
        names(&self.new).unwrap_or_else(|| {
            let values = self.new_values(replies);
            values.into_keys().zip(0..).collect()
        })
    }

    /// The processes whose definition the daemon takes for the same.
    fn same(&self, replies: &Replies) -> BTreeSet<String> {
        if self.new_asked.is_none() && self.is_same_text {
            let old = names(&self.old).unwrap_or_default();
            let new = names(&self.new).unwrap_or_default();
            return old
                .into_keys()
                .filter(|name| new.contains_key(name))
                .collect();
        }
        let new = self.new_values(replies);
        let old = self.old_values(replies).into_iter();
        old.filter(|(name, old)| new.get(name).is_some_and(|new| old.equals(new)))
            .map(|(name, _)| name)
            .collect()
    }

    /// Whether a process was made from this.
    fn holds(&self, seen: &Seen, replies: &Replies) -> bool {
        match names(&self.old) {
            Some(names) => names.contains_key(&seen.process),
            None => self.old_values(replies).contains_key(&seen.process),
        }
    }

    fn autostart(&self, process: &str, replies: &Replies, otherwise: bool) -> bool {
        let values = self.new_values(replies);
        values
            .get(process)
            .map_or(otherwise, |values| values.autostart)
    }
}

impl<'a> Input<'a> {
    fn of(self, group: &str) -> impl Iterator<Item = &'a Seen> {
        self.seen.iter().filter(move |seen| seen.group == group)
    }

    /// The processes that were made from the old text of a comparison, and maybe others of its group.
    fn made_by(self, comparison: &Comparison) -> Vec<&'a Seen> {
        let is_it = |seen: &&Seen| match &seen.made {
            Made::Base => comparison.is_base,
            _ => !comparison.is_base && seen.program() == comparison.old.first(),
        };
        self.of(&comparison.group).filter(is_it).collect()
    }

    fn base(self, group: &str) -> Option<&'a Base> {
        if self.added_groups.contains(group) || self.holds_own(group) {
            None
        } else {
            self.baseline.groups.get(group)
        }
    }

    /// Whether processes that were added live in the daemon's own group.
    fn holds_own(self, group: &str) -> bool {
        let is_own = |seen: &Seen| seen.real == group && !matches!(seen.made, Made::Base);
        self.of(group).any(is_own)
    }

    fn base_program(self, group: &str, process: &str) -> Option<String> {
        let base = self.base(group)?;
        let holds = |definition: &&ProgramDefinition| {
            let programs = programs(group, definition, base.environment.as_deref());
            let names = programs.ok().and_then(|programs| names(&programs));
            names.is_some_and(|names| names.contains_key(process))
        };
        let found = base.group.programs.iter().find(holds);
        found.map(|definition| definition.name.clone())
    }
}

/// The sections that a group was made from.
///
/// # Errors
/// As [`programs`].
pub fn base_programs(base: &Base) -> Result<Vec<Program>, String> {
    let mut all = Vec::new();
    for program in &base.group.programs {
        let environment = base.environment.as_deref();
        all.extend(programs(&base.group.name, program, environment)?);
    }
    Ok(all)
}

/// The process with this number alone.
fn one(programs: &[Program], number: i64) -> Option<Vec<Program>> {
    let program = programs
        .iter()
        .find(|program| program.numbers().contains(&number))?;
    let total = i64::from(program.total());
    program.part(number..number + 1, total).ok()
}
