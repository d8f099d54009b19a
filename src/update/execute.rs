//! The execution of an update: first all stops at once, then changes of groups, then of processes.
//!
//! The daemon has read and accepted all new definitions before the first stop. The baseline file lists the
//! running processes before they are stopped. A proxy that starts after a crash reads this list and starts
//! them again.

use std::collections::{BTreeMap, BTreeSet};

use super::Updates;
use super::baseline::{Base, Restart};
use super::difference::{Origin, VisibleProcess, base_programs};
use super::plan::{Name, Plan};
use super::probe::Probe;
use super::reply::Outcome;
use super::survey::Survey;
use crate::audit::{Record, reason};
use crate::daemon::ProcessInfo;
use crate::daemon::conf::Kind;
use crate::failpoint;
use crate::fault::{
    ABNORMAL_TERMINATION, ALREADY_STARTED, BAD_NAME, FAILED, NO_FILE, NOT_EXECUTABLE, SPAWN_ERROR,
    fault,
};
use crate::include_dir::unwritable;
use crate::program::Program;
use crate::twiddler::{self, Authorized, ChangeError, Epoch};
use crate::xmlrpc::{Fault, Value};

impl Restart {
    fn matches(&self, process: &VisibleProcess) -> bool {
        process.group == self.group && process.name == self.process
    }

    /// Whether the process has not started since the update stopped it.
    fn is_undone(&self, process: &VisibleProcess) -> bool {
        process.start == self.start
            || self.is_made_anew && process.start == 0
            || matches!(process.origin, Origin::Update(_))
    }
}

/// Faults of a definition that does not run, no matter how often it is started.
const CANNOT_SPAWN: [i32; 4] = [NO_FILE, NOT_EXECUTABLE, ABNORMAL_TERMINATION, SPAWN_ERROR];

impl Updates {
    /// `diffConfig`
    pub(super) async fn diff(&self, groups: &[String]) -> Result<Value, ChangeError> {
        let survey = self.survey(groups).await?;
        Ok(super::reply::differences(&survey))
    }

    /// `updateConfig`
    pub(super) async fn update(
        &self,
        groups: &[String],
        authorized: Authorized,
        record: &Record,
    ) -> Result<Value, ChangeError> {
        let outcome = self.apply_files(groups, authorized, record).await?;
        tracing::info!(
            peer = %record.peer(),
            user = record.user(),
            ms = record.millis(),
            "updated: {}", outcome.summary()
        );
        Ok(outcome.into_value())
    }

    /// Applies the files to `groups`, or to all groups where none is named. An update that fails is tried
    /// once more, so that no process stays stopped because of a passing error. If it fails again, the
    /// stopped processes are started with their old definitions.
    ///
    /// # Errors
    /// As [`Updates::survey`] and [`Updates::execute`].
    pub(super) async fn apply_files(
        &self,
        groups: &[String],
        authorized: Authorized,
        record: &Record,
    ) -> Result<Outcome, ChangeError> {
        let survey = self.survey(groups).await?;
        let plan = self.plan(&survey, groups)?;
        let complete = |outcome: Outcome| outcome.with_plan(&plan, survey.processes.len());
        let first = self.execute(&survey, &plan, authorized.clone(), record);
        let error = match first.await {
            Ok(outcome) => return Ok(complete(self.after_restart(&survey, &plan, outcome).await)),
            Err(error) => error,
        };
        tracing::warn!(reason = %error, "trying an update once more");
        let second = async {
            let survey = self.survey(groups).await?;
            let rest = self.plan(&survey, groups)?;
            let outcome = self.execute(&survey, &rest, authorized, record).await?;
            Ok::<_, ChangeError>(self.after_restart(&survey, &plan, outcome).await)
        };
        match second.await {
            Ok(outcome) => Ok(complete(outcome)),
            Err(_) => {
                self.roll_back(&survey, &plan).await;
                Err(error)
            }
        }
    }

    /// The outcome of an update if the daemon restarted during it: the daemon then applied its files by
    /// itself, so only processes that do not run now have failed. Without a restart, `outcome` itself.
    async fn after_restart(&self, survey: &Survey, plan: &Plan, outcome: Outcome) -> Outcome {
        let mut now = Outcome::default();
        match self.twiddler.current().await {
            Ok(epoch) if epoch != survey.epoch => match self.check_started(plan, &mut now).await {
                Ok(()) => now,
                Err(_) => outcome,
            },
            _ => outcome,
        }
    }

    /// Starts the processes that an update has stopped and that the daemon still has, with their old
    /// definitions.
    async fn roll_back(&self, survey: &Survey, plan: &Plan) {
        let mut leaving: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (group, process) in &plan.leave {
            leaving.entry(group).or_default().push(process.clone());
        }
        for (group, names) in leaving {
            self.restore_processes(survey, group, &names).await;
        }
        // If this fails, the next update starts them.
        let _ = self.start(&plan.stop, &mut Outcome::default()).await;
    }

    /// The plan for the differences of a survey, and for restarts that an earlier update did not finish in
    /// `groups`, or in all groups where none is named.
    pub(super) fn plan(&self, survey: &Survey, groups: &[String]) -> Result<Plan, ChangeError> {
        let plan = Plan::new(
            &survey.differences,
            &survey.files,
            &survey.processes,
            &survey.added_groups,
        );
        let mut plan = plan.map_err(|reason| ChangeError::Fault(fault(FAILED, reason)))?;
        let restarts = self.baseline().restarts.clone();
        let is_in_groups = |one: &&Restart| groups.is_empty() || groups.contains(&one.group);
        for restart in restarts.iter().filter(is_in_groups) {
            let name: Name = (restart.group.clone(), restart.process.clone());
            let mut present = survey
                .processes
                .iter()
                .filter(|process| restart.matches(process))
                .peekable();
            let is_absent = present.peek().is_none();
            let is_undone = is_absent || present.any(|process| restart.is_undone(process));
            if is_undone && !plan.start.contains(&name) {
                plan.start.push(name);
            }
        }
        Ok(plan)
    }

    /// Executes a plan.
    ///
    /// # Errors
    /// When the daemon stops answering. The next update finds the rest of the differences.
    pub(super) async fn execute(
        &self,
        survey: &Survey,
        plan: &Plan,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Outcome, ChangeError> {
        let mut outcome = Outcome::default();
        self.write_intent(survey, plan)?;
        failpoint::hit("update intended");
        self.adopt(survey, plan).await;
        let whole_groups = self.whole_groups(plan);
        outcome.was_running = self.stop(&plan.stop, &whole_groups).await?;
        failpoint::hit("update stopped");
        self.remove_leaving(plan, &whole_groups, &authorized, record, &mut outcome)
            .await?;
        failpoint::hit("update left");
        self.make_groups(survey, plan, &mut outcome).await?;
        failpoint::hit("update made");
        let rejoining = self
            .add_joining(survey, plan, authorized, record, &mut outcome)
            .await;
        failpoint::hit("update joined");
        self.baseline().rejoining = rejoining;
        self.note_applied(survey, plan, &outcome);
        self.start(&plan.start, &mut outcome).await?;
        failpoint::hit("update started");
        self.check_started(plan, &mut outcome).await?;
        let planned: BTreeSet<&Name> = plan.restarted.iter().chain(&plan.start).collect();
        self.baseline().restarts.retain(|one| {
            let name = (one.group.clone(), one.process.clone());
            let is_undone = outcome.leaves_undone(&name) || !planned.contains(&name);
            is_undone && survey.files.group(&one.group).is_some()
        });
        self.save();
        Ok(outcome)
    }

    /// Adds the programs that join according to a plan. If one fails, the processes in its place are restored.
    /// Returns the programs of clients that failed, so that the next update adds them.
    async fn add_joining(
        &self,
        survey: &Survey,
        plan: &Plan,
        authorized: Authorized,
        record: &Record,
        outcome: &mut Outcome,
    ) -> Vec<Program> {
        let changes = plan.join.iter().cloned().map(Box::new);
        let changes = changes.map(twiddler::Change::AddProgram).collect();
        let results = self.twiddler.change(changes, authorized, record).await;
        let mut rejoining = Vec::new();
        for (program, result) in plan.join.iter().zip(results) {
            let Err(error) = result else { continue };
            let group = program.group();
            let names = program.process_names().unwrap_or_default();
            self.restore_processes(survey, group, &names).await;
            if program.from_files().is_none() {
                rejoining.push(program.clone());
            }
            let reason = error.to_string();
            outcome.skipped.push((group.to_owned(), reason.clone()));
            for name in names {
                let name = (group.to_owned(), name);
                outcome.failed.push((name, reason.clone()));
            }
        }
        rejoining
    }

    /// Writes to the baseline file which processes are to run again and which programs join again.
    ///
    /// # Errors
    /// When the include directory cannot be written.
    pub(super) fn write_intent(&self, survey: &Survey, plan: &Plan) -> Result<(), ChangeError> {
        let again: BTreeSet<&Name> = plan.restarted.iter().chain(&plan.start).collect();
        let added = plan.join.iter();
        let added = added.filter(|program| program.from_files().is_none());
        let rejoining: Vec<Program> = added.cloned().collect();
        if again.is_empty() && rejoining.is_empty() {
            return Ok(());
        }
        let restarts = survey
            .processes
            .iter()
            .filter(|process| again.contains(&(process.group.clone(), process.name.clone())))
            .map(|process| Restart {
                group: process.group.clone(),
                process: process.name.clone(),
                start: process.start,
                is_made_anew: plan.add.contains(&process.group),
            });
        let mut baseline = self.marked();
        baseline.rejoining = rejoining;
        let is_new = |one: &Restart| again.contains(&(one.group.clone(), one.process.clone()));
        baseline.restarts.retain(|one| !is_new(one));
        baseline.restarts.extend(restarts);
        self.write(&baseline).map_err(|error| {
            let dir = self.twiddler.include_dir().path();
            ChangeError::Fault(fault(FAILED, unwritable(dir, &error)))
        })?;
        *self.baseline() = baseline;
        Ok(())
    }

    /// Finishes an update that was interrupted after it had removed added programs from the daemon: adds
    /// them to their groups again, and starts the processes that ran.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn rejoin(
        &self,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let programs = self.baseline().rejoining.clone();
        if programs.is_empty() {
            return Ok(());
        }
        let (_, processes) = self.list_processes().await?;
        let names: BTreeSet<Name> = programs
            .iter()
            .flat_map(|program| {
                let names = program.process_names().unwrap_or_default().into_iter();
                names.map(|name| (program.group().to_owned(), name))
            })
            .collect();
        let is_present = |program: &Program| {
            let names = program.process_names().unwrap_or_default();
            let mut of_group = processes
                .iter()
                .filter(|process| process.group == program.group());
            of_group.any(|process| names.contains(&process.name))
        };
        for program in programs.iter().filter(|program| !is_present(program)) {
            self.add_again(program, authorized.clone(), record).await?;
        }
        let restarts = self.baseline().restarts.clone().into_iter();
        let restarts = restarts.map(|one| (one.group, one.process));
        let restarts: Vec<Name> = restarts.filter(|name| names.contains(name)).collect();
        self.start(&restarts, &mut Outcome::default()).await?;
        let mut baseline = self.baseline();
        baseline.rejoining.clear();
        baseline
            .restarts
            .retain(|one| !names.contains(&(one.group.clone(), one.process.clone())));
        drop(baseline);
        self.save();
        Ok(())
    }

    /// Adds a program that an interrupted update had removed. A fault is logged, because the program is lost.
    async fn add_again(
        &self,
        program: &Program,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let (group, name) = (program.group(), program.name());
        tracing::warn!(
            group,
            program = name,
            "adding a program again: its change was interrupted"
        );
        let change = twiddler::Change::AddProgram(Box::new(program.clone()));
        let results = self.twiddler.change(vec![change], authorized, record);
        for result in results.await {
            match result {
                Err(ChangeError::Fault(fault)) => {
                    tracing::error!(
                        group,
                        program = name,
                        "cannot add the program again: {}",
                        reason(&fault)
                    );
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Marks added processes and groups that stay unchanged as defined by the files.
    async fn adopt(&self, survey: &Survey, plan: &Plan) {
        if plan.adopt.is_empty() && plan.adopt_groups.is_empty() {
            return;
        }
        let members = self.twiddler.with_registry(|registry| {
            let adopted = plan.adopt.iter().filter_map(|((group, process), program)| {
                let mut member = registry.member(group, process)?.clone();
                member.index = 0;
                member.program = Some(program.clone());
                Some(member)
            });
            adopted.collect()
        });
        self.twiddler
            .redefine(survey.epoch, &plan.adopt_groups, members)
            .await;
    }

    /// The names of these processes in the daemon (`group:process`).
    pub(super) fn real_names(&self, names: &[Name]) -> Vec<String> {
        self.twiddler.with_registry(|registry| {
            let real = |(group, process): &Name| {
                format!("{}:{process}", registry.real_group(group, process))
            };
            names.iter().map(real).collect()
        })
    }

    /// Removes groups, and lets the daemon add groups from the files that it has read.
    async fn make_groups(
        &self,
        survey: &Survey,
        plan: &Plan,
        outcome: &mut Outcome,
    ) -> Result<(), ChangeError> {
        if plan.remove.is_empty() && plan.add.is_empty() {
            return Ok(());
        }
        let group = |name: &String| vec![Value::from(name.as_str())];
        let remove = plan.remove.iter();
        let remove = remove.map(|name| ("supervisor.removeProcessGroup", group(name)));
        let add = plan.add.iter();
        let add = add.map(|name| ("supervisor.addProcessGroup", group(name)));
        let calls: Vec<_> = remove.chain(add).collect();
        let old = self.in_force_before(&plan.add);
        let pause = self.twiddler.pause_reloads().await;
        // A change in between may have made the daemon read its generated file, so the files are read again.
        let results = if plan.leave.is_empty() {
            self.twiddler.call_all(&calls).await?
        } else {
            let mut results = self.twiddler.read_files(&calls).await?;
            // The first result is about the files. The daemon accepted them before the first stop; the groups
            // are added even if the files are no longer valid.
            drop(results.drain(..1));
            results
        };
        drop(pause);
        let names = plan.remove.iter().chain(&plan.add);
        for (at, (name, result)) in names.zip(results).enumerate() {
            let removes = at < plan.remove.len();
            match result {
                Ok(_) if removes => {
                    self.unhide_processes(survey.epoch, name).await;
                    self.baseline().groups.remove(name);
                    self.baseline().applied.remove(name);
                }
                Ok(_) => self.baseline().note_made(&survey.files, name),
                Err(fault) if removes && fault.code == BAD_NAME => {}
                // The group cannot be added, because its removal failed.
                Err(_) if outcome.skipped.iter().any(|(group, _)| group == name) => {}
                Err(fault) if removes => {
                    outcome.skipped.push((name.clone(), fault.text.clone()));
                    let stopped = of_group(&plan.stop, name);
                    self.start(&stopped, &mut Outcome::default()).await?;
                    outcome.failed.extend(failures_of(plan, name, &fault));
                }
                Err(fault) => {
                    outcome.skipped.push((name.clone(), fault.text.clone()));
                    let was_removed = plan.remove.contains(name);
                    if let Some(old) = old.get(name).filter(|_| was_removed) {
                        self.restore_group(plan, old, outcome, &fault).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The definitions in force of these groups, as far as they are known.
    fn in_force_before(&self, groups: &[String]) -> BTreeMap<String, Base> {
        let baseline = self.baseline();
        let known = groups.iter().filter_map(|name| {
            let base = baseline.applied.get(name);
            let base = base.or_else(|| baseline.groups.get(name))?;
            Some((name.clone(), base.clone()))
        });
        known.collect()
    }

    /// Adds a group with its old definition, after the daemon has removed it and refused to add the new one:
    /// the daemon read other files in between.
    async fn restore_group(
        &self,
        plan: &Plan,
        old: &Base,
        outcome: &mut Outcome,
        fault: &Fault,
    ) -> Result<(), ChangeError> {
        let name = &old.group.name;
        let restarted = of_group(&plan.restarted, name);
        outcome.failed.extend(failures_of(plan, name, fault));
        let programs = &old.group.programs;
        let are_plain = programs.iter().all(|program| program.kind == Kind::Program);
        let (true, Ok(programs)) = (are_plain, base_programs(old)) else {
            return Ok(());
        };
        let files = self.files();
        let defined = files.group(name).map(|group| &group.programs);
        let defined = defined.into_iter().flatten();
        let claimed = defined.map(|program| (program.kind, program.name.as_str()));
        let mut probe = Probe::new(old.environment.as_deref(), files.environment.as_deref());
        probe.group(name, old.group.priority, &programs, claimed);
        let added = {
            let pause = self.twiddler.pause_for_probes().await?;
            let add = [("supervisor.addProcessGroup", vec![name.as_str().into()])];
            let results = pause.read(Some(&probe.text()), &add).await;
            self.read_plain(&files).await?;
            results?.pop()
        };
        match added {
            Some(Ok(_)) => {
                self.baseline().groups.insert(name.clone(), old.clone());
                self.start(&restarted, &mut Outcome::default()).await
            }
            _ => Ok(()),
        }
    }

    /// Ends the hiding of processes in a group that the daemon has removed.
    async fn unhide_processes(&self, epoch: Epoch, group: &str) {
        let hidden: Vec<_> = self.twiddler.with_registry(|registry| {
            let hidden = registry.hidden().filter(|(hidden, _, _)| *hidden == group);
            hidden
                .map(|(_, process, _)| (group.to_owned(), process.to_owned()))
                .collect()
        });
        self.twiddler.unhide(epoch, hidden).await;
    }

    /// Starts removed processes with their old definition, where the daemon refused the new one and still
    /// has them as hidden processes. Processes that an earlier update had moved out of the daemon's group
    /// are not restored: the hidden process has an even older definition.
    async fn restore_processes(&self, survey: &Survey, group: &str, names: &[String]) {
        let was_own = |process: &&VisibleProcess| {
            process.real_group == group
                && matches!(process.origin, Origin::Base)
                && names.contains(&process.name)
        };
        let own: Vec<&VisibleProcess> = survey.processes.iter().filter(was_own).collect();
        let hidden: Vec<&VisibleProcess> = self.twiddler.with_registry(|registry| {
            let is_hidden =
                |process: &&VisibleProcess| registry.hidden_start(group, &process.name).is_some();
            own.into_iter().filter(is_hidden).collect()
        });
        let name = |process: &&VisibleProcess| (group.to_owned(), process.name.clone());
        let names: Vec<Name> = hidden.iter().map(name).collect();
        self.twiddler.unhide(survey.epoch, names).await;
        let running = hidden.iter().filter(|process| process.is_running());
        let running: Vec<Name> = running.map(name).collect();
        // The outcome already reports these processes as failed.
        let _ = self.start(&running, &mut Outcome::default()).await;
    }

    fn note_applied(&self, survey: &Survey, plan: &Plan, outcome: &Outcome) {
        let mut baseline = self.baseline();
        for name in &plan.applied {
            let is_skipped = outcome.skipped.iter().any(|(group, _)| group == name);
            if let Some(group) = survey.files.group(name).filter(|_| !is_skipped) {
                let applied = Base::of(&survey.files, group);
                baseline.applied.insert(name.clone(), applied);
            }
        }
        baseline.forget_old_scales(&survey.files);
    }

    /// Starts processes without waiting for `startsecs`, and adds those that fail to `outcome`.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn start(
        &self,
        names: &[Name],
        outcome: &mut Outcome,
    ) -> Result<(), ChangeError> {
        let calls: Vec<_> = self
            .real_names(names)
            .into_iter()
            .map(|name| {
                let params = vec![Value::from(name), Value::Bool(false)];
                ("supervisor.startProcess", params)
            })
            .collect();
        let results = self.twiddler.call_all(&calls).await?;
        for (name, result) in names.iter().zip(results) {
            match result {
                Err(fault) if fault.code != ALREADY_STARTED => {
                    if CANNOT_SPAWN.contains(&fault.code) {
                        outcome.unspawned.insert(name.clone());
                    }
                    outcome.failed.push((name.clone(), fault.text));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks once that the started processes run, and adds those that do not to `outcome`. The daemon
    /// starts added processes in the next turn of its loop (`supervisor/supervisord.py`, `runforever`);
    /// after its answer to `getState`, that turn is over.
    async fn check_started(&self, plan: &Plan, outcome: &mut Outcome) -> Result<(), ChangeError> {
        let names: Vec<Name> = plan
            .restarted
            .iter()
            .chain(&plan.started)
            .cloned()
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let calls: Vec<_> = self
            .real_names(&names)
            .into_iter()
            .map(|name| ("supervisor.getProcessInfo", vec![Value::from(name)]))
            .collect();
        self.twiddler
            .call_all(&[("supervisor.getState", vec![])])
            .await?;
        let results = self.twiddler.call_all(&calls).await?;
        for (name, result) in names.into_iter().zip(results) {
            if outcome.failed.iter().any(|(failed, _)| *failed == name) {
                continue;
            }
            let info = match result {
                Ok(info) => ProcessInfo::read(&info),
                Err(fault) => {
                    outcome.failed.push((name, fault.text));
                    continue;
                }
            };
            if let Some(info) =
                info.filter(|info| !info.spawn_error.is_empty() && !info.state.is_running())
            {
                outcome.unspawned.insert(name.clone());
                outcome.failed.push((name, info.spawn_error));
            }
        }
        Ok(())
    }
}

/// The names that are in one group.
fn of_group(names: &[Name], group: &str) -> Vec<Name> {
    let names = names.iter().filter(|(one, _)| one == group);
    names.cloned().collect()
}

/// All processes of a group that the plan concerns, each with the text of the fault that made it fail.
fn failures_of(plan: &Plan, group: &str, fault: &Fault) -> Vec<(Name, String)> {
    let names = [&plan.restarted, &plan.started, &plan.stopped];
    let names = names.into_iter().flat_map(|names| of_group(names, group));
    names.map(|name| (name, fault.text.clone())).collect()
}
