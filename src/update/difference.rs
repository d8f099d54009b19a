//! The difference between the daemon's processes and the files, process by process.
//!
//! Pure. It compares the texts first. Where texts differ, the daemon reads both as a [`Probe`], and its
//! reply says which processes really changed.

use std::collections::{BTreeMap, BTreeSet};

use super::baseline::{Base, Baseline};
use super::probe::{Id, Probe, Reply};
use super::values::Values;
use crate::daemon::ProcessState;
use crate::daemon::conf::{Definitions, GroupDefinition, Kind, ProgramDefinition};
use crate::program::{FromFiles, Program};
use crate::registry::Member;

/// A process as clients see it: hidden processes are left out, and members have their group's name.
#[derive(Clone, Debug)]
pub struct VisibleProcess {
    /// The group that clients know.
    pub group: String,
    /// The name of the process.
    pub name: String,
    /// The daemon's group that holds it.
    pub real_group: String,
    /// The state of the process.
    pub state: ProcessState,
    /// When it last started, in seconds since 1970; 0 if it never did.
    pub start: i64,
    /// The definition that it was made from.
    pub origin: Origin,
}

/// The definition that a process was made from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The sections that the daemon's own group was made from.
    Base,
    /// A section of the files, which an update put in force after the group was made.
    Update(Program),
    /// A client added the process. None if the proxy does not know its program.
    Added(Option<Program>),
}

impl Origin {
    /// The origin of a member of the registry.
    pub fn of_member(member: &Member) -> Self {
        match &member.program {
            Some(program) if program.from_files().is_some() => Origin::Update(program.clone()),
            program => Origin::Added(program.clone()),
        }
    }
}

impl VisibleProcess {
    /// Whether the process runs or is about to run.
    pub fn is_running(&self) -> bool {
        self.state.is_running()
    }

    fn program(&self) -> Option<&Program> {
        match &self.origin {
            Origin::Base => None,
            Origin::Update(program) => Some(program),
            Origin::Added(program) => program.as_ref(),
        }
    }
}

/// Everything that a comparison reads.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The definitions in the files.
    pub files: &'a Definitions,
    /// The sections that the groups were made from.
    pub baseline: &'a Baseline,
    /// All processes that clients see.
    pub processes: &'a [VisibleProcess],
    /// Groups that clients added and that the files do not define.
    pub added_groups: &'a BTreeSet<String>,
    /// The daemon's reply to the files without a probe.
    pub plain: &'a Reply,
}

/// One process that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// The name of the process.
    pub name: String,
    /// Its process number (`%(process_num)`).
    pub number: i64,
    /// Whether it runs now.
    pub runs: bool,
    /// Whether the daemon starts it without a call (`autostart`).
    pub autostart: bool,
}

/// How a program differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The files define the program, and the daemon does not have it.
    Added,
    /// The files define the program differently.
    Changed,
    /// The files no longer define the program.
    Removed,
    /// The program has another number of processes than the files say, because a client scaled it.
    Scaled,
    /// The proxy cannot find out.
    Unknown,
}

impl Change {
    /// The value of `change` in replies to clients.
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
    /// The name of the option.
    pub name: String,
    /// The text in force, as it is written.
    pub old: String,
    /// The text in the files.
    pub new: String,
}

/// How one program differs.
#[derive(Clone, Debug)]
pub struct ProgramDifference {
    /// The name of the program; empty for the group itself.
    pub program: String,
    /// The kind of difference.
    pub change: Change,
    /// The options that differ.
    pub options: Vec<OptionChange>,
    /// Processes whose definition changed.
    pub replaced: Vec<Process>,
    /// Processes that the update adds.
    pub joining: Vec<Process>,
    /// Processes that the update removes.
    pub leaving: Vec<Process>,
    /// Processes that a client added and that the files now define in the same way.
    pub adopted: Vec<Process>,
    /// The new definition; none for a program that the update removes.
    pub definition: Option<ProgramDefinition>,
    /// A sentence about the cause, where it is not evident; empty otherwise.
    pub reason: String,
}

impl ProgramDifference {
    /// A difference without processes.
    pub fn new(program: &str, change: Change) -> Self {
        ProgramDifference {
            program: program.to_owned(),
            change,
            options: Vec::new(),
            replaced: Vec::new(),
            joining: Vec::new(),
            leaving: Vec::new(),
            adopted: Vec::new(),
            definition: None,
            reason: String::new(),
        }
    }

    fn has_no_processes(&self) -> bool {
        let all = [&self.replaced, &self.joining, &self.leaving, &self.adopted];
        all.into_iter().all(Vec::is_empty)
    }

    /// A sentence about the cause, where it is not evident; empty otherwise. `is_environment` says that
    /// `[supervisord] environment` differs, which every program gets.
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
    /// The name of the group.
    pub group: String,
    /// The programs of the group that differ.
    pub programs: Vec<ProgramDifference>,
    /// The daemon does not have the group yet.
    pub is_new: bool,
    /// The files no longer define the group.
    pub is_removed: bool,
    /// The reason why the group can only be replaced as a whole.
    pub whole_reason: Option<String>,
    /// The reason why the difference cannot be found out.
    pub unknown_reason: Option<String>,
    /// The priority of `[group:x]` in force and in the files, where they differ.
    pub priority: Option<(i64, i64)>,
}

impl GroupDifference {
    fn new(group: &str) -> Self {
        GroupDifference {
            group: group.to_owned(),
            programs: Vec::new(),
            is_new: false,
            is_removed: false,
            whole_reason: None,
            unknown_reason: None,
            priority: None,
        }
    }

    /// Whether an update would do anything.
    pub fn is_pending(&self) -> bool {
        self.programs
            .iter()
            .any(|program| program.change != Change::Scaled)
            || self.is_new
            || self.is_removed
            || self.unknown_reason.is_some()
            || self.whole_reason.is_some()
            || self.priority.is_some()
    }

    /// The processes that an update stops: those that it replaces and those that it removes.
    pub fn differing(&self) -> impl Iterator<Item = &Process> {
        self.programs
            .iter()
            .flat_map(|program| program.replaced.iter().chain(&program.leaving))
    }
}

/// Processes of one program that were made from one text, and the definition of them in the files.
#[derive(Debug)]
struct Comparison {
    group: String,
    program: String,
    /// The processes are in the daemon's own group.
    is_base: bool,
    /// A client added the processes.
    is_added: bool,
    old: Vec<Program>,
    new: Vec<Program>,
    old_environment: Option<String>,
    is_same_text: bool,
    old_ids: Option<ProbeIds>,
    new_ids: Option<ProbeIds>,
}

/// Where the daemon's values of some texts are: the index of a probe, and the numbers in it.
#[derive(Debug)]
struct ProbeIds {
    probe: usize,
    ids: Vec<Id>,
}

/// The questions to the daemon, and what the proxy knows without asking.
#[derive(Debug)]
pub struct Questions<'a> {
    input: Input<'a>,
    comparisons: Vec<Comparison>,
    /// The groups that are compared, each with the reason if it can only be replaced as a whole.
    groups: BTreeMap<&'a str, Option<String>>,
    /// One probe for each `[supervisord] environment`: that of the files, and those that processes
    /// were made with.
    pub probes: Vec<Probe>,
}

/// The sections for all processes of `definition` in `group`.
///
/// # Errors
/// A sentence that says why the definition cannot be written as a generated section.
pub fn programs(
    group: &str,
    definition: &ProgramDefinition,
    environment: Option<&str>,
) -> Result<Vec<Program>, String> {
    let numbers = definition.numprocs_start..definition.numprocs_start + definition.numprocs;
    part(group, definition, environment, numbers, definition.numprocs)
}

/// The sections for the processes with these `numbers`, where the program has `total` processes.
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
    Program::from_definition(
        group,
        &definition.name,
        &definition.options,
        numbers,
        total,
        &from,
    )
    .map_err(|error| error.to_string())
}

/// The names of processes and their numbers; none where only the daemon knows the names.
pub fn names(programs: &[Program]) -> Option<BTreeMap<String, i64>> {
    let mut all = BTreeMap::new();
    for program in programs {
        all.extend(program.process_names()?.into_iter().zip(program.numbers()));
    }
    Some(all)
}

/// Whether two texts are the same but for the number of processes.
fn is_same_text(old: &[Program], new: &[Program]) -> bool {
    let counts = |name: &str| matches!(name, "numprocs" | "numprocs_start");
    let (Some(old), Some(new)) = (old.first(), new.first()) else {
        return old.is_empty() && new.is_empty();
    };
    let uses_numprocs = |program: &Program| {
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
        && (old.total() == new.total() || !uses_numprocs(old))
        && environment(old) == environment(new)
}

impl<'a> Questions<'a> {
    /// The questions about `groups`.
    pub fn new(input: Input<'a>, groups: &[&'a str]) -> Self {
        let mut questions = Questions {
            input,
            comparisons: Vec::new(),
            groups: BTreeMap::new(),
            probes: Vec::new(),
        };
        for group in groups {
            let compared = questions.compare_group(group);
            questions.groups.insert(group, compared.err());
        }
        questions.build_probes();
        questions
    }

    /// Collects the comparisons of a group.
    ///
    /// # Errors
    /// The reason why the group can only be replaced as a whole.
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
        let mut comparisons = Vec::new();
        for program in &new.programs {
            comparisons.extend(self.compare_program(group, base, program)?);
        }
        self.comparisons.extend(comparisons);
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
        // The later processes of a scaled program keep the `numprocs` that their texts were written with.
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
                old_ids: None,
                new_ids: None,
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
        for process in self.input.of(group) {
            let Some(old) = process.program().filter(|old| old.name() == program.name) else {
                continue;
            };
            if !known.contains(&old) {
                known.push(old);
                let is_added = matches!(process.origin, Origin::Added(_));
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

    fn build_probes(&mut self) {
        let files = self.input.files.environment.as_deref();
        let mut comparisons = std::mem::take(&mut self.comparisons);
        for comparison in &mut comparisons {
            let are_named = names(&comparison.old).is_some() && names(&comparison.new).is_some();
            if comparison.is_same_text && are_named {
                continue;
            }
            let old = comparison.old_environment.as_deref();
            comparison.old_ids = Some(self.add_to_probe(old, &comparison.old));
            comparison.new_ids = Some(self.add_to_probe(files, &comparison.new));
        }
        self.comparisons = comparisons;
        let groups: Vec<&str> = self.groups.keys().copied().collect();
        for group in groups {
            if self.can_confirm(group)
                && let Some(base) = self.input.base(group)
                && let Ok(old) = base_programs(base)
            {
                let probe = self.probe(base.environment.as_deref());
                self.probes[probe].confirm(group, base.group.priority, &old);
            }
        }
    }

    fn add_to_probe(&mut self, environment: Option<&str>, programs: &[Program]) -> ProbeIds {
        let probe = self.probe(environment);
        let ids = self.probes[probe].value(programs);
        ProbeIds { probe, ids }
    }

    /// The index of the probe in which every program gets this environment.
    fn probe(&mut self, environment: Option<&str>) -> usize {
        let has_environment = |probe: &Probe| probe.environment() == environment;
        self.probes
            .iter()
            .position(has_environment)
            .unwrap_or_else(|| {
                let files = self.input.files.environment.as_deref();
                self.probes.push(Probe::new(environment, files));
                self.probes.len() - 1
            })
    }

    /// Whether a probe can ask the daemon if the group runs its base.
    fn can_confirm(&self, group: &str) -> bool {
        let is_whole = self.groups.get(group).is_some_and(Option::is_some);
        self.input.plain.changed.contains(group) && !is_whole && !self.input.holds_own(group)
    }

    /// The probe that asks whether everything that did not change according to `replies` is really the
    /// same. It defines each group with the new texts of the programs that did not change.
    pub fn completeness(&self, replies: &Replies) -> Probe {
        let files = self.input.files.environment.as_deref();
        let mut probe = Probe::new(files, files);
        for group in self.groups.keys() {
            if self.can_confirm(group)
                && !replies.refutes(group)
                && let Some(base) = self.input.base(group)
                && base.environment.as_deref() == files
                && let Some(programs) = self.with_unchanged_texts(base, replies)
            {
                probe.confirm(group, base.group.priority, &programs);
            }
        }
        probe
    }

    /// The sections that the group was made from, with the new text wherever the daemon takes it for the
    /// same definition; none if no such text differs.
    fn with_unchanged_texts(&self, base: &Base, replies: &Replies) -> Option<Vec<Program>> {
        let group = &base.group.name;
        let mut programs = Vec::new();
        let mut has_new = false;
        for definition in &base.group.programs {
            let old = self::programs(group, definition, base.environment.as_deref()).ok()?;
            let comparison = self
                .comparisons
                .iter()
                .find(|one| one.is_base && one.group == *group && one.program == definition.name);
            let same = match comparison {
                Some(comparison) if !comparison.is_same_text => comparison.same(replies),
                _ => BTreeSet::new(),
            };
            let (Some(comparison), false) = (comparison, same.is_empty()) else {
                programs.extend(old);
                continue;
            };
            has_new = true;
            let new_numbers = comparison.new_numbers(replies);
            for (name, number) in names(&old)? {
                let (source, number) = if same.contains(&name) {
                    (&comparison.new, *new_numbers.get(&name)?)
                } else {
                    (&old, number)
                };
                programs.extend(single_process(source, number)?);
            }
        }
        has_new.then_some(programs)
    }

    /// The differences, according to the daemon's replies.
    pub fn differences(&self, replies: &Replies) -> Vec<GroupDifference> {
        let groups = self.groups.iter();
        groups
            .map(|(group, whole_reason)| self.difference(group, whole_reason.as_deref(), replies))
            .filter(|difference| {
                !difference.programs.is_empty()
                    || difference.is_new
                    || difference.is_removed
                    || difference.unknown_reason.is_some()
                    || difference.whole_reason.is_some()
                    || difference.priority.is_some()
            })
            .collect()
    }

    fn difference(
        &self,
        group: &str,
        whole_reason: Option<&str>,
        replies: &Replies,
    ) -> GroupDifference {
        let mut difference = GroupDifference::new(group);
        let input = self.input;
        let plain = input.plain;
        let Some(new) = input.files.group(group) else {
            difference.is_removed = true;
            difference.programs = self.all_leaving(group);
            return difference;
        };
        // Processes that an update added can exist without a group of this name in the daemon.
        let has_processes = input
            .of(group)
            .any(|process| matches!(process.origin, Origin::Update(_)));
        difference.is_new = plain.added.contains(group) && !has_processes;
        if let Some(reason) = whole_reason {
            if plain.changed.contains(group) {
                difference.whole_reason = Some(reason.to_owned());
                difference.programs = self.replacing_whole_group(group, new);
            } else if difference.is_new {
                difference.programs = self.all_joining(new);
            }
            return difference;
        }
        let is_asked = self.can_confirm(group) && !input.added_groups.contains(group);
        if is_asked && (input.base(group).is_none() || replies.refutes(group)) {
            let edits_environment = input
                .base(group)
                .is_some_and(|base| base.environment != input.files.environment);
            let or_later = if edits_environment {
                ", or [supervisord] environment was edited in a file that is read after those of include_dir"
            } else {
                ""
            };
            difference.unknown_reason = Some(format!(
                "twiddler did not see what group {group} was started from{or_later}: `supervisorctl update {group}` restarts it as a whole"
            ));
            return difference;
        }
        let mut programs: Vec<ProgramDifference> = new
            .programs
            .iter()
            .filter_map(|program| self.program(group, program, replies))
            .collect();
        programs.extend(self.removed_programs(group, new));
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

    /// How a program of the files differs from the daemon's processes.
    fn program(
        &self,
        group: &str,
        program: &ProgramDefinition,
        replies: &Replies,
    ) -> Option<ProgramDifference> {
        let is_of_program = |one: &&Comparison| one.group == group && one.program == program.name;
        let comparisons: Vec<&Comparison> = self.comparisons.iter().filter(is_of_program).collect();
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
        difference.definition = Some(program.clone());
        let mut present = BTreeSet::new();
        let mut is_environment = false;
        for comparison in &comparisons {
            let replaced = difference.replaced.len();
            present.extend(self.compare(comparison, replies, autostart, &mut difference));
            let is_replaced = difference.replaced.len() > replaced;
            let has_changed = comparison.old_environment != self.input.files.environment;
            is_environment |= is_replaced && has_changed;
        }
        let others = self.added_with_wanted_names(group, &wanted, &present, autostart);
        present.extend(others.iter().map(|process| process.name.clone()));
        difference.replaced.extend(others);
        let is_new = present.is_empty();
        if scaled.is_none() {
            let joining = wanted.iter().filter(|(name, _)| !present.contains(*name));
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
        if difference.has_no_processes() {
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

    /// Sorts the processes that were made from the old text of a comparison into `difference`: replaced,
    /// leaving, or adopted. Returns their names, without those of added processes that the files do not
    /// define.
    fn compare(
        &self,
        comparison: &Comparison,
        replies: &Replies,
        autostart: bool,
        difference: &mut ProgramDifference,
    ) -> Vec<String> {
        let numbers = comparison.new_numbers(replies);
        let same = comparison.same(replies);
        let mut present = Vec::new();
        for visible in self.input.made_from(comparison) {
            if !comparison.holds(visible, replies) {
                continue;
            }
            let number = numbers.get(&visible.name).copied();
            let process = Process {
                name: visible.name.clone(),
                number: number.unwrap_or_default(),
                runs: visible.is_running(),
                autostart: comparison.autostart(&visible.name, replies, autostart),
            };
            match (number, same.contains(&visible.name)) {
                (None, _) if comparison.is_added => continue,
                (None, _) => difference.leaving.push(process),
                (Some(_), true) if comparison.is_added => difference.adopted.push(process),
                (Some(_), true) => {}
                (Some(_), false) => difference.replaced.push(process),
            }
            present.push(visible.name.clone());
        }
        present
    }

    /// Processes that clients added under names that the files give to this program, without those in
    /// `present`.
    fn added_with_wanted_names(
        &self,
        group: &str,
        wanted: &BTreeMap<String, i64>,
        present: &BTreeSet<String>,
        autostart: bool,
    ) -> Vec<Process> {
        let others = self.input.of(group);
        let others = others.filter(|process| matches!(process.origin, Origin::Added(_)));
        let others = others.filter(|process| !present.contains(&process.name));
        let process = |process: &VisibleProcess| {
            Some(Process {
                name: process.name.clone(),
                number: *wanted.get(&process.name)?,
                runs: process.is_running(),
                autostart,
            })
        };
        others.filter_map(process).collect()
    }

    /// The options in force, as far as they are known.
    fn old_options(
        &self,
        group: &str,
        program: &ProgramDefinition,
        comparisons: &[&Comparison],
        replies: &Replies,
    ) -> Option<BTreeMap<String, String>> {
        let in_force = |one: &&&Comparison| {
            let made = self.input.made_from(one);
            made.into_iter().any(|process| one.holds(process, replies))
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

    fn removed_programs(&self, group: &str, new: &GroupDefinition) -> Vec<ProgramDifference> {
        let program = |process: &VisibleProcess| {
            let program = self.input.program_of(process)?;
            new.program(&program).is_none().then_some(program)
        };
        self.leaving(group, program)
    }

    fn all_leaving(&self, group: &str) -> Vec<ProgramDifference> {
        let program = |process: &VisibleProcess| {
            let program = self.input.program_of(process);
            Some(program.unwrap_or_else(|| group.to_owned()))
        };
        self.leaving(group, program)
    }

    /// The removal of processes of a group that clients did not add. `program` returns the program of each; none for
    /// processes that stay.
    fn leaving(
        &self,
        group: &str,
        program: impl Fn(&VisibleProcess) -> Option<String>,
    ) -> Vec<ProgramDifference> {
        let mut leaving: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        let processes = self.input.of(group);
        for process in processes.filter(|process| !matches!(process.origin, Origin::Added(_))) {
            if let Some(program) = program(process) {
                let process = leaving_process(process);
                leaving.entry(program).or_default().push(process);
            }
        }
        let removed = |(program, leaving): (String, _)| removed_program(&program, leaving);
        leaving.into_iter().map(removed).collect()
    }

    fn all_joining(&self, new: &GroupDefinition) -> Vec<ProgramDifference> {
        let joining =
            |program: &ProgramDefinition| self.program(&new.name, program, &Replies::default());
        new.programs.iter().filter_map(joining).collect()
    }

    fn replacing_whole_group(&self, group: &str, new: &GroupDefinition) -> Vec<ProgramDifference> {
        let base = self.input.base(group);
        let environment = self.input.files.environment.as_deref();
        let mut remaining: BTreeMap<&str, &VisibleProcess> = self
            .input
            .of(group)
            .filter(|process| !matches!(process.origin, Origin::Added(_)))
            .map(|process| (process.name.as_str(), process))
            .collect();
        let mut differences = Vec::new();
        for program in &new.programs {
            let programs = programs(group, program, environment).unwrap_or_default();
            let autostart = programs.first().is_none_or(Program::autostarts);
            let mut difference = ProgramDifference::new(&program.name, Change::Changed);
            difference.definition = Some(program.clone());
            let old = base.and_then(|base| base.group.program(&program.name));
            let old = old.map(|old| old.options.clone()).unwrap_or_default();
            difference.options = option_changes(&old, &program.options);
            for (name, number) in names(&programs).unwrap_or_default() {
                let visible = remaining.remove(name.as_str());
                let process = Process {
                    name,
                    number,
                    runs: visible.is_some_and(VisibleProcess::is_running),
                    autostart,
                };
                match visible {
                    Some(_) => difference.replaced.push(process),
                    None => difference.joining.push(process),
                }
            }
            differences.push(difference);
        }
        if !remaining.is_empty() {
            let leaving = remaining.into_values().map(leaving_process).collect();
            differences.push(removed_program(group, leaving));
        }
        differences
    }
}

fn leaving_process(process: &VisibleProcess) -> Process {
    Process {
        name: process.name.clone(),
        number: 0,
        runs: process.is_running(),
        autostart: false,
    }
}

fn removed_program(program: &str, leaving: Vec<Process>) -> ProgramDifference {
    ProgramDifference {
        leaving,
        ..ProgramDifference::new(program, Change::Removed)
    }
}

/// The options of a part of a program, with `numprocs` and `numprocs_start` of `files`: in a part, the
/// proxy has written its own.
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

/// The options whose texts differ. Of `environment`, only the names of variables: values may be secrets.
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

/// The daemon's replies to the probes.
#[derive(Debug, Default)]
pub struct Replies {
    /// The replies to [`Questions::probes`], in their order.
    pub probes: Vec<Reply>,
    /// The reply to [`Questions::completeness`].
    pub completeness: Reply,
}

impl Replies {
    /// Whether the group does not run what the proxy assumed.
    fn refutes(&self, group: &str) -> bool {
        let mut all = self.probes.iter().chain([&self.completeness]);
        all.any(|reply| reply.refuted.contains(group))
    }

    fn values(&self, ids: Option<&ProbeIds>) -> BTreeMap<String, Values> {
        let values = |ids: &ProbeIds| Some(self.probes.get(ids.probe)?.values(&ids.ids));
        ids.and_then(values).unwrap_or_default()
    }
}

impl Comparison {
    fn old_values(&self, replies: &Replies) -> BTreeMap<String, Values> {
        replies.values(self.old_ids.as_ref())
    }

    fn new_values(&self, replies: &Replies) -> BTreeMap<String, Values> {
        replies.values(self.new_ids.as_ref())
    }

    /// The processes that the files define, and their numbers.
    fn new_numbers(&self, replies: &Replies) -> BTreeMap<String, i64> {
        names(&self.new).unwrap_or_else(|| {
            let values = self.new_values(replies);
            values.into_keys().zip(0..).collect()
        })
    }

    /// The processes whose old and new definitions are the same to the daemon.
    fn same(&self, replies: &Replies) -> BTreeSet<String> {
        if self.new_ids.is_none() && self.is_same_text {
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

    /// Whether the process was made from the old text.
    fn holds(&self, process: &VisibleProcess, replies: &Replies) -> bool {
        match names(&self.old) {
            Some(names) => names.contains_key(&process.name),
            None => self.old_values(replies).contains_key(&process.name),
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
    fn of(self, group: &str) -> impl Iterator<Item = &'a VisibleProcess> {
        self.processes
            .iter()
            .filter(move |process| process.group == group)
    }

    /// The processes that were made from the old text of a comparison, and possibly others of its group.
    fn made_from(self, comparison: &Comparison) -> Vec<&'a VisibleProcess> {
        let is_candidate = |process: &&VisibleProcess| match &process.origin {
            Origin::Base => comparison.is_base,
            _ => !comparison.is_base && process.program() == comparison.old.first(),
        };
        self.of(&comparison.group).filter(is_candidate).collect()
    }

    fn base(self, group: &str) -> Option<&'a Base> {
        if self.added_groups.contains(group) || self.holds_own(group) {
            None
        } else {
            self.baseline.groups.get(group)
        }
    }

    /// Whether processes that were added are in the daemon's group of this name.
    fn holds_own(self, group: &str) -> bool {
        let is_own = |process: &VisibleProcess| {
            process.real_group == group && !matches!(process.origin, Origin::Base)
        };
        self.of(group).any(is_own)
    }

    /// The program of the files that a process was made from, if it is known.
    fn program_of(self, process: &VisibleProcess) -> Option<String> {
        match &process.origin {
            Origin::Base => self.base_program(&process.group, &process.name),
            Origin::Update(program) => Some(program.name().to_owned()),
            Origin::Added(_) => None,
        }
    }

    fn base_program(self, group: &str, process: &str) -> Option<String> {
        let base = self.base(group)?;
        let holds = |definition: &&ProgramDefinition| {
            let programs = programs(group, definition, base.environment.as_deref());
            let names = programs.ok().and_then(|programs| names(&programs));
            names.is_some_and(|names| names.contains_key(process))
        };
        let definition = base.group.programs.iter().find(holds)?;
        Some(definition.name.clone())
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

/// The sections for the process with this number alone.
fn single_process(programs: &[Program], number: i64) -> Option<Vec<Program>> {
    let program = programs
        .iter()
        .find(|program| program.numbers().contains(&number))?;
    let total = i64::from(program.total());
    program.part(number..number + 1, total).ok()
}
