//! An update on its way: all stops at once, then groups, then processes.
//!
//! Before the first stop the daemon has read and accepted all that is new. Which processes ran is
//! written down before they are stopped, so that a proxy that takes over starts them again.

use std::collections::{BTreeMap, BTreeSet};

use super::Updates;
use super::baseline::{Base, Restart};
use super::difference::{Made, Seen, base_programs};
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
    fn is_about(&self, seen: &Seen) -> bool {
        seen.group == self.group && seen.process == self.process
    }

    /// Whether it has not run since.
    fn was_left(&self, seen: &Seen) -> bool {
        seen.start == self.start
            || self.is_made_anew && seen.start == 0
            || matches!(seen.made, Made::Update(_))
    }
}

/// Faults of a definition that does not run, however often it is started.
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
        let outcome = self.put_in_force(groups, authorized, record).await?;
        tracing::info!(
            peer = %record.peer(),
            user = record.user(),
            ms = record.millis(),
            "updated: {}", outcome.in_words()
        );
        Ok(outcome.into_value())
    }

    /// Finds what differs, and makes it as the files say. What fails is tried once more, because nobody is
    /// to stay stopped for it; where it fails again, those that were stopped run again as they were.
    ///
    /// # Errors
    /// As [`Updates::survey`] and [`Updates::execute`].
    pub(super) async fn put_in_force(
        &self,
        groups: &[String],
        authorized: Authorized,
        record: &Record,
    ) -> Result<Outcome, ChangeError> {
        let survey = self.survey(groups).await?;
        let plan = self.plan(&survey, groups)?;
        let told = |outcome: Outcome| outcome.of_plan(&plan, survey.seen.len());
        let done = self.execute(&survey, &plan, authorized.clone(), record);
        let refusal = match done.await {
            Ok(outcome) => return Ok(told(self.by_now(&survey, &plan, outcome).await)),
            Err(refusal) => refusal,
        };
        tracing::warn!(reason = %refusal, "trying an update once more");
        let again = async {
            let again = self.survey(groups).await?;
            let rest = self.plan(&again, groups)?;
            let outcome = self.execute(&again, &rest, authorized, record).await?;
            Ok::<_, ChangeError>(self.by_now(&again, &plan, outcome).await)
        };
        match again.await {
            Ok(outcome) => Ok(told(outcome)),
            Err(_) => {
                self.go_back(&survey, &plan).await;
                Err(refusal)
            }
        }
    }

    /// What an update has come to by now: a daemon that has started again meanwhile has put its files in
    /// force by itself, whatever it had failed to do before.
    async fn by_now(&self, survey: &Survey, plan: &Plan, outcome: Outcome) -> Outcome {
        let mut now = Outcome::default();
        match self.twiddler.current().await {
            Ok(epoch) if epoch != survey.epoch => match self.look_after(plan, &mut now).await {
                Ok(()) => now,
                Err(_) => outcome,
            },
            _ => outcome,
        }
    }

    /// Those that an update has stopped, and that the daemon still holds, run again as they were.
    async fn go_back(&self, survey: &Survey, plan: &Plan) {
        let mut left: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (group, process) in &plan.leave {
            left.entry(group).or_default().push(process.clone());
        }
        for (group, names) in left {
            self.put_back(survey, group, &names).await;
        }
        let _left_to_the_next = self.start(&plan.stop, &mut Outcome::default()).await;
    }

    /// What is to be done about what a survey has found, with what an update before has left undone in
    /// these groups, or in all where none is named.
    pub(super) fn plan(&self, survey: &Survey, groups: &[String]) -> Result<Plan, ChangeError> {
        let plan = Plan::new(
            &survey.differences,
            &survey.files,
            &survey.seen,
            &survey.added_groups,
        );
        let mut plan = plan.map_err(|reason| ChangeError::Fault(fault(FAILED, reason)))?;
        let ran = self.baseline().restarts.clone();
        let is_meant = |one: &&Restart| groups.is_empty() || groups.contains(&one.group);
        for one in ran.iter().filter(is_meant) {
            let name: Name = (one.group.clone(), one.process.clone());
            let mut there = survey
                .seen
                .iter()
                .filter(|seen| one.is_about(seen))
                .peekable();
            let is_gone = there.peek().is_none();
            if (is_gone || there.any(|seen| one.was_left(seen))) && !plan.start.contains(&name) {
                plan.start.push(name);
            }
        }
        Ok(plan)
    }

    /// Does what is planned.
    ///
    /// # Errors
    /// When the daemon goes away; what is left then is found by the next update.
    pub(super) async fn execute(
        &self,
        survey: &Survey,
        plan: &Plan,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Outcome, ChangeError> {
        let mut outcome = Outcome::default();
        self.intend(survey, plan)?;
        failpoint::hit("update intended");
        self.adopt(survey, plan).await;
        let whole = self.whole(plan);
        outcome.ran = self.stop(&plan.stop, &whole).await?;
        failpoint::hit("update stopped");
        self.leave(plan, &whole, &authorized, record, &mut outcome)
            .await?;
        failpoint::hit("update left");
        self.make_groups(survey, plan, &mut outcome).await?;
        failpoint::hit("update made");
        let join = plan.join.iter().cloned().map(Box::new);
        let join = join.map(twiddler::Change::AddProgram).collect();
        let joined = self.twiddler.change(join, authorized, record).await;
        let mut rejoining = Vec::new();
        for (program, joined) in plan.join.iter().zip(joined) {
            if let Err(refusal) = joined {
                let names = program.process_names().unwrap_or_default();
                self.put_back(survey, program.group(), &names).await;
                if program.from_files().is_none() {
                    rejoining.push(program.clone());
                }
                let reason = refusal.to_string();
                outcome
                    .skipped
                    .push((program.group().to_owned(), reason.clone()));
                for name in names {
                    outcome
                        .failed
                        .push(((program.group().to_owned(), name), reason.clone()));
                }
            }
        }
        failpoint::hit("update joined");
        self.baseline().rejoining = rejoining;
        self.note_applied(survey, plan, &outcome);
        self.start(&plan.start, &mut outcome).await?;
        failpoint::hit("update started");
        self.look_after(plan, &mut outcome).await?;
        let done: BTreeSet<&Name> = plan.restarted.iter().chain(&plan.start).collect();
        self.baseline().restarts.retain(|one| {
            let name = (one.group.clone(), one.process.clone());
            let is_left = outcome.leaves(&name) || !done.contains(&name);
            is_left && survey.files.group(&one.group).is_some()
        });
        self.keep();
        Ok(outcome)
    }

    /// Writes down which processes are to run again.
    pub(super) fn intend(&self, survey: &Survey, plan: &Plan) -> Result<(), ChangeError> {
        let again: BTreeSet<&Name> = plan.restarted.iter().chain(&plan.start).collect();
        let added = plan.join.iter();
        let added = added.filter(|program| program.from_files().is_none());
        let rejoining: Vec<Program> = added.cloned().collect();
        if again.is_empty() && rejoining.is_empty() {
            return Ok(());
        }
        let restarts = survey
            .seen
            .iter()
            .filter(|seen| again.contains(&(seen.group.clone(), seen.process.clone())))
            .map(|seen| Restart {
                group: seen.group.clone(),
                process: seen.process.clone(),
                start: seen.start,
                is_made_anew: plan.add.contains(&seen.group),
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

    /// Finishes what was cut short while programs that were added were out of the daemon: they join their
    /// groups, and what ran runs.
    pub(super) async fn rejoin(
        &self,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let programs = self.baseline().rejoining.clone();
        if programs.is_empty() {
            return Ok(());
        }
        let (_, seen) = self.look().await?;
        let names: BTreeSet<Name> = programs
            .iter()
            .flat_map(|program| {
                let names = program.process_names().unwrap_or_default().into_iter();
                names.map(|name| (program.group().to_owned(), name))
            })
            .collect();
        let is_there = |program: &Program| {
            let names = program.process_names().unwrap_or_default();
            let mut of_group = seen.iter().filter(|seen| seen.group == program.group());
            of_group.any(|seen| names.contains(&seen.process))
        };
        let missing = programs.iter().filter(|program| !is_there(program));
        for program in missing {
            let (group, name) = (program.group(), program.name());
            tracing::warn!(
                group,
                program = name,
                "adding a program again: its change was cut short"
            );
            let change = twiddler::Change::AddProgram(Box::new(program.clone()));
            let added = self
                .twiddler
                .change(vec![change], authorized.clone(), record);
            for added in added.await {
                match added {
                    Err(ChangeError::Fault(fault)) => {
                        tracing::error!(group, program = name, "it is lost: {}", reason(&fault));
                    }
                    added => added?,
                }
            }
        }
        let ran = self.baseline().restarts.clone().into_iter();
        let ran = ran.map(|one| (one.group, one.process));
        let ran: Vec<Name> = ran.filter(|name| names.contains(name)).collect();
        self.start(&ran, &mut Outcome::default()).await?;
        let mut baseline = self.baseline();
        baseline.rejoining.clear();
        baseline
            .restarts
            .retain(|one| !names.contains(&(one.group.clone(), one.process.clone())));
        drop(baseline);
        self.keep();
        Ok(())
    }

    /// What was added and stays is from now on the files'.
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

    /// The daemon's names of processes.
    pub(super) fn real_names(&self, names: &[Name]) -> Vec<String> {
        self.twiddler.with_registry(|registry| {
            let real = |(group, process): &Name| {
                format!("{}:{process}", registry.real_group(group, process))
            };
            names.iter().map(real).collect()
        })
    }

    /// Removes groups, and lets the daemon make others from what it has read.
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
        // What was read last may be what a change has read meanwhile.
        let results = if plan.leave.is_empty() {
            self.twiddler.call_all(&calls).await?
        } else {
            let mut results = self.twiddler.read_files(&calls).await?;
            // What was accepted before the first stop is added, whatever became of the files.
            drop(results.drain(..1));
            results
        };
        drop(pause);
        let names = plan.remove.iter().chain(&plan.add);
        for (at, (name, told)) in names.zip(results).enumerate() {
            let removes = at < plan.remove.len();
            match told {
                Ok(_) if removes => {
                    self.show_hidden(survey.epoch, name).await;
                    self.baseline().groups.remove(name);
                    self.baseline().applied.remove(name);
                }
                Ok(_) => self.baseline().made(&survey.files, name),
                Err(told) if removes && told.code == BAD_NAME => {}
                // It is still there, for it was not removed.
                Err(_) if outcome.skipped.iter().any(|(group, _)| group == name) => {}
                Err(told) if removes => {
                    outcome.skipped.push((name.clone(), told.text.clone()));
                    let stopped = of_group(&plan.stop, name);
                    self.start(&stopped, &mut Outcome::default()).await?;
                    outcome.failed.extend(hurt(plan, name, &told));
                }
                Err(told) => {
                    outcome.skipped.push((name.clone(), told.text.clone()));
                    let is_lost = plan.remove.contains(name);
                    if let Some(old) = old.get(name).filter(|_| is_lost) {
                        self.restore(plan, old, outcome, &told).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What is in force of these groups.
    fn in_force_before(&self, groups: &[String]) -> BTreeMap<String, Base> {
        let baseline = self.baseline();
        let known = groups.iter().filter_map(|name| {
            let base = baseline.applied.get(name);
            let base = base.or_else(|| baseline.groups.get(name))?;
            Some((name.clone(), base.clone()))
        });
        known.collect()
    }

    /// A group that was removed, and that the daemon does not make anew, runs again as it was: somebody
    /// has let the daemon read other files meanwhile.
    async fn restore(
        &self,
        plan: &Plan,
        old: &Base,
        outcome: &mut Outcome,
        told: &Fault,
    ) -> Result<(), ChangeError> {
        let name = &old.group.name;
        let ran = of_group(&plan.restarted, name);
        outcome.failed.extend(hurt(plan, name, told));
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
            let pause = self.twiddler.pause_for_questions().await?;
            let add = [("supervisor.addProcessGroup", vec![name.as_str().into()])];
            let results = pause.read(Some(&probe.text()), &add).await;
            self.read_plain(&files).await?;
            results?.pop()
        };
        match added {
            Some(Ok(_)) => {
                self.baseline().groups.insert(name.clone(), old.clone());
                self.start(&ran, &mut Outcome::default()).await
            }
            _ => Ok(()),
        }
    }

    /// What was hidden in a group that the daemon has removed is hidden no more.
    async fn show_hidden(&self, epoch: Epoch, group: &str) {
        let hidden: Vec<_> = self.twiddler.with_registry(|registry| {
            let hidden = registry.hidden().filter(|(hidden, _, _)| *hidden == group);
            hidden
                .map(|(_, process, _)| (group.to_owned(), process.to_owned()))
                .collect()
        });
        self.twiddler.show(epoch, hidden).await;
    }

    /// Processes that were taken out and whose new definition was not taken run again as before, where
    /// the daemon still holds them. What was taken out of its own group earlier is not what was there.
    async fn put_back(&self, survey: &Survey, group: &str, names: &[String]) {
        let was_own = |seen: &&Seen| {
            seen.real == group && matches!(seen.made, Made::Base) && names.contains(&seen.process)
        };
        let own: Vec<&Seen> = survey.seen.iter().filter(was_own).collect();
        let held: Vec<&Seen> = self.twiddler.with_registry(|registry| {
            let is_held = |seen: &&Seen| registry.hidden_start(group, &seen.process).is_some();
            own.into_iter().filter(is_held).collect()
        });
        let name = |seen: &&Seen| (group.to_owned(), seen.process.clone());
        let shown: Vec<Name> = held.iter().map(name).collect();
        self.twiddler.show(survey.epoch, shown).await;
        let ran = held.iter().filter(|seen| seen.is_running()).map(name);
        let ran: Vec<Name> = ran.collect();
        let _told_already = self.start(&ran, &mut Outcome::default()).await;
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
        let told = self.twiddler.call_all(&calls).await?;
        for (name, told) in names.iter().zip(told) {
            match told {
                Err(told) if told.code != ALREADY_STARTED => {
                    if CANNOT_SPAWN.contains(&told.code) {
                        outcome.unspawned.insert(name.clone());
                    }
                    outcome.failed.push((name.clone(), told.text));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks once at those that were to come up. The daemon starts what was added in the next turn of
    /// its loop, which is before it answers this.
    async fn look_after(&self, plan: &Plan, outcome: &mut Outcome) -> Result<(), ChangeError> {
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
        let told = self.twiddler.call_all(&calls).await?;
        for (name, told) in names.into_iter().zip(told) {
            if outcome.failed.iter().any(|(failed, _)| *failed == name) {
                continue;
            }
            let info = match told {
                Ok(info) => ProcessInfo::read(&info),
                Err(told) => {
                    outcome.failed.push((name, told.text));
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

/// Of these, those of one group.
fn of_group(names: &[Name], group: &str) -> Vec<Name> {
    let names = names.iter().filter(|(one, _)| one == group);
    names.cloned().collect()
}

/// The processes of a group that an update has not brought to where it was to bring them, and why.
fn hurt(plan: &Plan, group: &str, told: &Fault) -> Vec<(Name, String)> {
    let names = [&plan.restarted, &plan.started, &plan.stopped];
    let names = names.into_iter().flat_map(|names| of_group(names, group));
    names.map(|name| (name, told.text.clone())).collect()
}
