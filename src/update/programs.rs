//! The list of programs, and changes of one program: new options, and another number of processes.

use std::collections::{BTreeMap, BTreeSet};

use super::baseline::Scale;
use super::difference::{Origin, VisibleProcess, names, part, programs};
use super::plan::{Name, Plan, ranges};
use super::probe::Probe;
use super::reply::{count, object, scaled, strings};
use super::survey::{Survey, read_probe};
use super::values::Values;
use super::{Updates, no_program};
use crate::audit::Record;
use crate::daemon::ProcessInfo;
use crate::daemon::conf::{Definitions, Kind, ProgramDefinition};
use crate::fault::{BAD_NAME, FAILED, INCORRECT_PARAMETERS, fault};
use crate::program::{Program, ProgramError};
use crate::registry::Member;
use crate::twiddler::{Authorized, ChangeError, Epoch};
use crate::xmlrpc::Value;

/// The largest number of processes that `scaleProgram` accepts for one program.
pub const MAX_SCALE: i64 = 10_000;

/// The sort key of a program: group, name, and whether a client added it.
type Key = (String, String, bool);

/// The values of processes, by name.
type ValuesByName = BTreeMap<String, Values>;

impl Updates {
    /// `getAllProgramInfo`
    pub(super) async fn all_programs(&self) -> Result<Value, ChangeError> {
        let (files, processes) = self.list_processes().await?;
        let mut programs: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
        for one in &processes {
            let (program, is_added) = self.program_of(one, &files);
            let key = (one.group.clone(), program, is_added);
            programs.entry(key).or_default().insert(one.name.clone());
        }
        for scale in self
            .baseline()
            .scales
            .iter()
            .filter(|scale| scale.numprocs == 0)
        {
            let key = (scale.group.clone(), scale.program.clone(), scale.is_added());
            programs.entry(key).or_default();
        }
        let infos = programs
            .into_iter()
            .map(|((group, program, is_added), processes)| {
                let kind = self.kind_of(&group, &program, is_added, &files);
                object([
                    ("group", group.into()),
                    ("program", program.into()),
                    (
                        "origin",
                        if is_added { "added" } else { "configured" }.into(),
                    ),
                    ("kind", kind.section().into()),
                    ("numprocs", count(processes.len())),
                    ("processes", strings(processes.into_iter().collect())),
                ])
            });
        Ok(Value::Array(infos.collect()))
    }

    /// `getProgramOptions`
    pub(super) async fn program_options(
        &self,
        group: &str,
        program: &str,
    ) -> Result<Value, ChangeError> {
        let (files, processes) = self.list_processes().await?;
        let of_program = processes
            .iter()
            .filter(|one| one.group == group && self.program_of(one, &files).0 == program);
        let of_program: Vec<&VisibleProcess> = of_program.collect();
        let added = of_program.iter().find_map(|one| match &one.origin {
            Origin::Added(added) => Some(added.clone()),
            _ => None,
        });
        let options = match added.or_else(|| self.scaled_away(group, program).map(Some)) {
            Some(None) => {
                return Err(ChangeError::Fault(fault(
                    FAILED,
                    format!("the options of {program} are not known: it was found in supervisord"),
                )));
            }
            Some(Some(added)) => added.options().clone(),
            None => {
                let definition = self.in_force(group, program, &files);
                let definition = definition
                    .filter(|_| !of_program.is_empty() || self.is_scaled(group, program))
                    .ok_or_else(|| no_program(program))?;
                without_secrets(definition.options)
            }
        };
        let options = options.into_iter();
        Ok(Value::Struct(
            options.map(|(name, text)| (name, text.into())).collect(),
        ))
    }

    /// `updateProgram`
    pub(super) async fn redefine(
        &self,
        group: &str,
        program: &str,
        options: &Value,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Value, ChangeError> {
        let (files, processes) = self.list_processes().await?;
        let (old, is_configured) = self.members(group, program, &files, &processes);
        if old.is_empty() {
            return Err(if is_configured {
                configured(program)
            } else {
                no_program(program)
            });
        }
        let new = self.parse(group, program, options)?;
        let new = if old.iter().any(|(_, old)| old.calls_proxy()) {
            new.calling_proxy()
        } else {
            new
        };
        let epoch = self.twiddler.current().await?;
        let survey = survey_without_differences(epoch, files.clone(), processes.clone());
        let plan = self.replacement(&old, &new).await?;
        let outcome = self
            .execute(&survey, &plan, authorized, record)
            .await?
            .with_plan(&plan, 0);
        match outcome.failed.into_iter().next() {
            Some((_, reason)) => Err(ChangeError::Fault(fault(FAILED, reason))),
            None => Ok(Value::Bool(true)),
        }
    }

    /// The plan that replaces the processes `old` of an added program by the definition `new`. Processes
    /// whose definition is the same to the daemon stay.
    ///
    /// # Errors
    /// The daemon's complaint about `new`, in words about what the client sent.
    async fn replacement(
        &self,
        old: &[(&VisibleProcess, &Program)],
        new: &Program,
    ) -> Result<Plan, ChangeError> {
        let (before, after) = self.probe_values(old, new).await?;
        let numbers = names(std::slice::from_ref(new))
            .unwrap_or_else(|| after.keys().cloned().zip(new.numbers()).collect());
        let mut plan = Plan::default();
        let mut joining = numbers.clone();
        for (process, _) in old {
            let name: Name = (process.group.clone(), process.name.clone());
            let is_same = before
                .get(&process.name)
                .zip(after.get(&process.name))
                .is_some_and(|(before, after)| before.equals(after));
            if is_same && let Some(number) = joining.remove(&process.name) {
                let one = new.part(number..number + 1, i64::from(new.numprocs()));
                let one = one.map_err(failed)?;
                plan.adopt
                    .extend(one.into_iter().map(|one| (name.clone(), one)));
                continue;
            }
            plan.leave.push(name.clone());
            if process.is_running() {
                plan.stop.push(name.clone());
                if numbers.contains_key(&process.name) {
                    plan.restarted.push(name.clone());
                    if !new.autostarts() {
                        plan.start.push(name);
                    }
                } else {
                    plan.stopped.push(name)
                }
            }
        }
        // If all processes join, the program keeps its options as the client sent them, not split by number.
        if joining.len() == numbers.len() {
            plan.join.push(new.clone());
            return Ok(plan);
        }
        let joining: BTreeSet<i64> = joining.into_values().collect();
        for range in ranges(&joining) {
            let parts = new.part(range, i64::from(new.numprocs()));
            plan.join.extend(parts.map_err(failed)?);
        }
        Ok(plan)
    }

    /// The values that the daemon derives from the definitions `old` and from `new`, by the names of processes.
    ///
    /// # Errors
    /// The daemon's complaint about `new`, in words about what the client sent.
    async fn probe_values(
        &self,
        old: &[(&VisibleProcess, &Program)],
        new: &Program,
    ) -> Result<(ValuesByName, ValuesByName), ChangeError> {
        let mut probe = Probe::new(None, None);
        let mut definitions: Vec<Program> = Vec::new();
        for (_, program) in old {
            if !definitions.contains(program) {
                definitions.push((*program).clone());
            }
        }
        let old_ids = probe.value(&definitions);
        let new_ids = probe.value(std::slice::from_ref(new));
        let reply = {
            let pause = self.twiddler.pause_for_probes().await?;
            let reply = read_probe(&pause, &probe).await;
            self.read_plain(&self.files()).await?;
            reply
        };
        let reply = reply.map_err(|error| match error {
            ChangeError::Fault(complaint) => ChangeError::Fault(probe.in_client_words(
                complaint,
                new,
                new_ids[0],
                &self.twiddler.conf_file().display().to_string(),
            )),
            other => other,
        })?;
        Ok((reply.values(&old_ids), reply.values(&new_ids)))
    }

    /// `scaleProgram`
    pub(super) async fn scale(
        &self,
        group: &str,
        program: &str,
        numprocs: i64,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Value, ChangeError> {
        if !(0..=MAX_SCALE).contains(&numprocs) {
            let text = format!("numprocs has to be from 0 to {MAX_SCALE}");
            return Err(ChangeError::Fault(fault(INCORRECT_PARAMETERS, text)));
        }
        let epoch = self.twiddler.current().await?;
        let files = self.files();
        let (members, own) = self.processes_of(group, program, &files).await?;
        let added = members
            .iter()
            .filter_map(|member| match Origin::of_member(member) {
                Origin::Added(added) => added,
                _ => None,
            });
        let lowest = added.min_by_key(|added| added.numbers().start);
        let source = match lowest.or_else(|| self.scaled_away(group, program)) {
            Some(added) => Source::Added(added),
            None => {
                let has_processes = !members.is_empty() || !own.is_empty();
                self.configured_source(group, program, &files, has_processes)?
            }
        };
        if numprocs > 1 && !source.is_numbered() {
            return Err(ChangeError::Fault(fault(
                INCORRECT_PARAMETERS,
                "process_name has to contain %(process_num) for more than one process",
            )));
        }
        let current = source.numbers(&members, own);
        let plan = source.scale_plan(group, current, numprocs, &files)?;
        let survey = survey_without_differences(epoch, files, Vec::new());
        let before = self.baseline().scales.clone();
        self.note_scale(&source, group, program, numprocs);
        let outcome = self.execute(&survey, &plan, authorized, record).await;
        let is_successful = matches!(&outcome, Ok(outcome) if outcome.skipped.is_empty());
        if !is_successful {
            self.baseline().scales = before;
            self.save();
        }
        let outcome = outcome?;
        let mut reasons = outcome.skipped.iter().map(|(_, reason)| reason);
        let not_removed = outcome.failed.iter();
        let not_removed = not_removed.filter(|(name, _)| plan.leave.contains(name));
        let mut not_removed = not_removed.map(|(_, reason)| reason);
        match reasons.next().or_else(|| not_removed.next()) {
            Some(reason) => Err(ChangeError::Fault(fault(FAILED, reason.clone()))),
            None => Ok(scaled(&plan.started, &outcome.was_running)),
        }
    }

    /// The members of a program, and its processes in the daemon's own group with their numbers as far as
    /// they are known. The daemon is asked about each of the latter and about one member of each real group,
    /// because `getAllProcessInfo` takes longer than a stop.
    async fn processes_of(
        &self,
        group: &str,
        program: &str,
        files: &Definitions,
    ) -> Result<(Vec<Member>, Vec<(String, Option<i64>)>), ChangeError> {
        let mut members: Vec<Member> = self
            .twiddler
            .with_registry(|registry| registry.members_of(group).cloned().collect());
        let mut own = self.possible_names(group, program, files);
        for member in &members {
            own.remove(&member.process);
        }
        members.retain(|member| match &member.program {
            Some(definition) => definition.name() == program,
            None => member.process == program,
        });
        // One member stands for all in its real group: a client of the daemon itself can only have removed
        // the whole group.
        let mut reals: BTreeMap<String, String> = BTreeMap::new();
        for member in &members {
            let first = reals.entry(member.real.clone());
            first.or_insert_with(|| member.real_namespec());
        }
        let query = |name: String| ("supervisor.getProcessInfo", vec![Value::from(name)]);
        let names = own.keys().map(|name| format!("{group}:{name}"));
        let calls: Vec<_> = names.chain(reals.values().cloned()).map(query).collect();
        let mut results = self.twiddler.call_all(&calls).await?;
        for (real, result) in reals.into_keys().zip(results.split_off(own.len())) {
            if result.is_err_and(|fault| fault.code == BAD_NAME) {
                members.retain(|member| member.real != real);
            }
        }
        let infos = results.into_iter().filter_map(Result::ok);
        let infos: Vec<ProcessInfo> = infos.filter_map(|info| ProcessInfo::read(&info)).collect();
        let visible = self
            .twiddler
            .with_registry(|registry| super::survey::visible_processes(registry, &infos));
        own.retain(|name, _| visible.iter().any(|process| process.name == *name));
        Ok((members, own.into_iter().collect()))
    }

    /// The possible names of a program's processes in the daemon's own group, with their numbers.
    fn possible_names(
        &self,
        group: &str,
        program: &str,
        files: &Definitions,
    ) -> BTreeMap<String, Option<i64>> {
        let baseline = self.baseline();
        let base = baseline.groups.get(group).map(|base| &base.group);
        let definitions = [base, files.group(group)].into_iter().flatten();
        let mut owners: BTreeMap<String, (&str, Option<i64>)> = BTreeMap::new();
        for definition in definitions.flat_map(|group| &group.programs) {
            let parts = programs(group, definition, None).ok();
            let known = parts.and_then(|parts| names(&parts)).unwrap_or_default();
            for (name, number) in known {
                let owner = owners.entry(name);
                owner.or_insert((&definition.name, Some(number)));
            }
        }
        // Where no definition is known, the process has the name of its program.
        let owner = owners.entry(program.to_owned());
        owner.or_insert((program, None));
        owners.retain(|_, (owner, _)| *owner == program);
        let names = owners.into_iter();
        names.map(|(name, (_, number))| (name, number)).collect()
    }

    /// Removes the surplus processes of scaled programs after a restart of the daemon, which starts as many
    /// processes as the files say.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses a change.
    pub(super) async fn scale_again(
        &self,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let files = self.files();
        self.baseline().forget_old_scales(&files);
        let scales = self.baseline().scales.clone();
        let fewer = scales
            .iter()
            .filter(|scale| !scale.is_added() && scale.numprocs < scale.configured);
        for scale in fewer {
            let Scale { group, program, .. } = scale;
            tracing::info!(group, program, numprocs = scale.numprocs, "scaling again");
            self.scale(group, program, scale.numprocs, authorized.clone(), record)
                .await?;
        }
        Ok(())
    }

    fn note_scale(&self, source: &Source, group: &str, program: &str, numprocs: i64) {
        let mut baseline = self.baseline();
        baseline.forget_scale(group, program);
        let scale = |configured, added| Scale {
            group: group.to_owned(),
            program: program.to_owned(),
            numprocs,
            configured,
            added,
        };
        match source {
            Source::Configured(definition) if definition.numprocs != numprocs => {
                baseline.scales.push(scale(definition.numprocs, None));
            }
            // Without this, the program's options would be forgotten with its last process.
            Source::Added(added) if numprocs == 0 => {
                baseline.scales.push(scale(0, Some(added.clone())));
            }
            _ => {}
        }
        drop(baseline);
        self.save();
    }

    fn configured_source(
        &self,
        group: &str,
        program: &str,
        files: &Definitions,
        has_processes: bool,
    ) -> Result<Source, ChangeError> {
        let definition = self.in_force(group, program, files);
        let definition = definition
            .filter(|_| has_processes || self.is_scaled(group, program))
            .ok_or_else(|| no_program(program))?;
        let is_alone = files
            .group(group)
            .is_some_and(|group| group.kind == Kind::Program);
        match definition.kind {
            Kind::Program => Ok(Source::Configured(definition)),
            Kind::Fcgi if is_alone => Ok(Source::Configured(definition)),
            kind => Err(ChangeError::Fault(fault(
                INCORRECT_PARAMETERS,
                format!(
                    "{program} is an [{}:x], whose number only the files can change",
                    kind.section()
                ),
            ))),
        }
    }

    /// The processes of an added program with their definitions, and whether a program of the files with
    /// this name has processes.
    fn members<'s>(
        &self,
        group: &str,
        program: &str,
        files: &Definitions,
        processes: &'s [VisibleProcess],
    ) -> (Vec<(&'s VisibleProcess, &'s Program)>, bool) {
        let mut added = Vec::new();
        let mut is_configured = false;
        for one in processes.iter().filter(|one| one.group == group) {
            match &one.origin {
                Origin::Added(Some(definition)) if definition.name() == program => {
                    added.push((one, definition));
                }
                Origin::Added(_) => {}
                _ => is_configured |= self.program_of(one, files).0 == program,
            }
        }
        (added, is_configured)
    }

    /// The definitions in the files, and the daemon's processes. The daemon does not read its files for it.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn list_processes(
        &self,
    ) -> Result<(Definitions, Vec<VisibleProcess>), ChangeError> {
        self.twiddler.current().await?;
        let calls = [("supervisor.getAllProcessInfo", vec![])];
        let results = self.twiddler.call_all(&calls).await?;
        let infos = results.into_iter().next().unwrap_or(Ok(Value::Nil))?;
        let infos = ProcessInfo::read_all(&infos);
        let processes = self
            .twiddler
            .with_registry(|registry| super::survey::visible_processes(registry, &infos));
        Ok((self.files(), processes))
    }

    /// The program that a process belongs to, and whether a client added it.
    fn program_of(&self, process: &VisibleProcess, files: &Definitions) -> (String, bool) {
        match &process.origin {
            Origin::Added(Some(program)) => (program.name().to_owned(), true),
            Origin::Added(None) => (process.name.clone(), true),
            Origin::Update(program) => (program.name().to_owned(), false),
            Origin::Base => {
                let baseline = self.baseline();
                let base = baseline.groups.get(&process.group).map(|base| &base.group);
                let groups = [base, files.group(&process.group)].into_iter().flatten();
                let program = groups
                    .flat_map(|group| &group.programs)
                    .find(|program| holds(&process.group, program, &process.name));
                let name = program.map_or(&process.name, |program| &program.name);
                (name.clone(), false)
            }
        }
    }

    fn kind_of(&self, group: &str, program: &str, is_added: bool, files: &Definitions) -> Kind {
        if is_added {
            return Kind::Program;
        }
        let definition = self.in_force(group, program, files);
        definition.map_or(Kind::Program, |definition| definition.kind)
    }

    /// The definition in force; where it is not known, the definition in the files.
    fn in_force(
        &self,
        group: &str,
        program: &str,
        files: &Definitions,
    ) -> Option<ProgramDefinition> {
        let baseline = self.baseline();
        let bases = [baseline.applied.get(group), baseline.groups.get(group)];
        let groups = bases.into_iter().flatten().map(|base| &base.group);
        let mut definitions = groups
            .chain(files.group(group))
            .filter_map(|group| group.program(program));
        definitions.next().cloned()
    }

    fn is_scaled(&self, group: &str, program: &str) -> bool {
        let baseline = self.baseline();
        let mut scales = baseline.scales.iter();
        scales.any(|scale| scale.group == group && scale.program == program)
    }

    /// The definition of an added program that was scaled to 0 processes.
    fn scaled_away(&self, group: &str, program: &str) -> Option<Program> {
        let baseline = self.baseline();
        let mut scales = baseline.scales.iter();
        let scale = scales.find(|scale| scale.group == group && scale.program == program)?;
        scale.added.clone()
    }
}

/// The definition that a program's processes are made from.
enum Source {
    /// A definition in the files, now or earlier.
    Configured(ProgramDefinition),
    /// A definition that a client sent.
    Added(Program),
}

impl Source {
    /// The number of the program's first process.
    fn first(&self) -> i64 {
        match self {
            Source::Configured(definition) => definition.numprocs_start,
            Source::Added(program) => program.numbers().start,
        }
    }

    fn is_numbered(&self) -> bool {
        let options = match self {
            Source::Configured(definition) => &definition.options,
            Source::Added(program) => program.options(),
        };
        let name = options.get("process_name");
        name.is_some_and(|name| name.contains("%(process_num)"))
    }

    /// The names of the program's processes by number. `own` are those in the daemon's own group; one without
    /// a known number gets its position.
    fn numbers(
        &self,
        members: &[Member],
        own: Vec<(String, Option<i64>)>,
    ) -> BTreeMap<i64, String> {
        let own = (self.first()..).zip(own);
        let own = own.map(|(at, (name, number))| (number.unwrap_or(at), name));
        let members = members.iter().map(|member| {
            let program = member.program.as_ref();
            let first = program.map_or(self.first(), |program| program.numbers().start);
            (first + i64::from(member.index), member.process.clone())
        });
        own.chain(members).collect()
    }

    /// The plan that gives the program `numprocs` processes, where it has `current` by number: new processes get the
    /// lowest free numbers, and those with the highest numbers leave.
    ///
    /// # Errors
    /// A fault, if a process cannot be written as a generated section.
    fn scale_plan(
        &self,
        group: &str,
        current: BTreeMap<i64, String>,
        numprocs: i64,
        files: &Definitions,
    ) -> Result<Plan, ChangeError> {
        let wanted = usize::try_from(numprocs).unwrap_or_default();
        let mut plan = Plan::default();
        let joining: BTreeSet<i64> = (self.first()..)
            .filter(|number| !current.contains_key(number))
            .take(wanted.saturating_sub(current.len()))
            .collect();
        for range in ranges(&joining) {
            plan.join.extend(self.part(group, range, numprocs, files)?);
        }
        let surplus = current.into_values().skip(wanted);
        plan.leave = surplus.map(|name| (group.to_owned(), name)).collect();
        plan.stop.clone_from(&plan.leave);
        let autostarts = plan.join.iter().filter(|program| program.autostarts());
        plan.started = autostarts
            .flat_map(|program| program.process_names().unwrap_or_default())
            .map(|name| (group.to_owned(), name))
            .collect();
        Ok(plan)
    }

    /// The sections for the processes with these numbers, where the program has `total` processes. Processes
    /// beyond the `numprocs` of the files are marked as extra.
    fn part(
        &self,
        group: &str,
        numbers: std::ops::Range<i64>,
        total: i64,
        files: &Definitions,
    ) -> Result<Vec<Program>, ChangeError> {
        match self {
            Source::Configured(definition) => {
                let environment = files.environment.as_deref();
                let end = definition.numprocs_start + definition.numprocs;
                let (own, extra) = (
                    numbers.start..numbers.end.min(end).max(numbers.start),
                    numbers.start.max(end).min(numbers.end)..numbers.end,
                );
                let failed = |reason| ChangeError::Fault(fault(FAILED, reason));
                let make = |numbers| part(group, definition, environment, numbers, total);
                let mut parts = make(own).map_err(failed)?;
                let extra = make(extra).map_err(failed)?;
                parts.extend(extra.into_iter().map(Program::as_extra));
                Ok(parts)
            }
            Source::Added(program) => program.part(numbers, total).map_err(failed),
        }
    }
}

/// A survey for changes that do not come from the files.
fn survey_without_differences(
    epoch: Epoch,
    files: Definitions,
    processes: Vec<VisibleProcess>,
) -> Survey {
    Survey {
        epoch,
        files,
        processes,
        added_groups: BTreeSet::new(),
        bases: BTreeMap::new(),
        differences: Vec::new(),
    }
}

/// Whether a program has a process of this name, with any number.
fn holds(group: &str, definition: &ProgramDefinition, process: &str) -> bool {
    let first = definition.numprocs_start;
    let count = definition.numprocs.max(1);
    let parts = part(group, definition, None, first..first + count, count);
    let names = parts.ok().and_then(|parts| names(&parts));
    names.is_some_and(|names| names.contains_key(process))
}

/// Reduces `environment` to the names of its variables: a client that may list programs must not see their
/// secrets.
fn without_secrets(mut options: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if let Some(environment) = options.get_mut("environment") {
        let variables = crate::daemon::conf::variables(environment).unwrap_or_default();
        let names: Vec<String> = variables.into_keys().collect();
        *environment = names.join(",");
    }
    options
}

fn configured(program: &str) -> ChangeError {
    ChangeError::Fault(fault(
        INCORRECT_PARAMETERS,
        format!("{program} is configured in supervisord's files: edit them and update"),
    ))
}

fn failed(error: ProgramError) -> ChangeError {
    ChangeError::Fault(fault(FAILED, error.into_marked_text()))
}
