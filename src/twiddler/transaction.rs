//! One batch of independent changes, from the queries to the outcomes.
//!
//! The transaction plans with the answers that it expects. The daemon then answers the queries and reads
//! the resulting sections in one round trip, and the transaction plans again with the real answers. A plan
//! that the daemon rejects is taken out, and the daemon reads the rest again. One multicall then executes
//! all remaining plans while the generated file is still in place, so that another client's `reloadConfig`
//! reads the same sections.

use super::engine::{Engine, Executed, Intent, Interrupted, Reading, empty_group};
use super::model::answers::{Answers, Query};
use super::model::change::{Change, ChangeError, Outcome};
use super::model::plan::{self, Draft, Plan, Planner};
use super::model::script::{Repair, Script, Verdict};
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::{ConfigInfo, ReloadResult};
use crate::failpoint;
use crate::fault::complaint::names_section;
use crate::fault::{CANT_REREAD, INCORRECT_PARAMETERS, fault};
use crate::include_dir::Staged;
use crate::persist::{self, Prepared};
use crate::program::{Program, Scope, log_files};
use crate::registry::losses::Cause;
use crate::registry::{DEFAULT_PRIORITY, Event, Registry};
use crate::xmlrpc::Fault;

/// Carries out `changes`. The view must be current.
pub(super) async fn carry_out(engine: &mut Engine, changes: &[Change]) -> Batch {
    let configured = engine.configured();
    let batch = match prepare(engine, changes, &configured).await {
        Ok((transaction, ahead)) => transaction.run(engine, ahead).await,
        Err(error) => Batch {
            outcomes: changes.iter().map(|_| Err(error.clone())).collect(),
            has_losses: false,
        },
    };
    engine.leave_to_recovery();
    batch
}

/// The result of a batch.
pub(super) struct Batch {
    /// One outcome for each change.
    pub(super) outcomes: Vec<Outcome>,
    /// Whether the daemon lacks something that the registry has.
    pub(super) has_losses: bool,
}

/// The plans of one batch while the daemon reads and executes them.
struct Transaction<'a> {
    configured: &'a [ConfiguredGroup],
    plans: Vec<Option<Plan>>,
    outcomes: Vec<Outcome>,
    /// Whether the daemon's last `reloadConfig` read sections that were not added.
    is_stale: bool,
    has_losses: bool,
}

/// Queries the daemon and plans each change. In the same round trip, the daemon reads the sections that the
/// expected plans need: a `reloadConfig` alone changes nothing in the daemon.
async fn prepare<'a>(
    engine: &mut Engine,
    changes: &[Change],
    configured: &'a [ConfiguredGroup],
) -> Result<(Transaction<'a>, Option<Reading>), ChangeError> {
    let names = process_names(engine, changes).await;
    let known_names: Vec<Vec<String>> = names
        .iter()
        .map(|names| names.clone().unwrap_or_default())
        .collect();
    let persists = engine.persists();
    let first = engine.with_registry(Registry::next);
    let foreign_groups = engine.foreign_groups.clone();
    let draft = |registry: &Registry, answers: &Answers| {
        let planner = Planner::new(
            registry,
            configured,
            answers,
            first,
            persists,
            &foreign_groups,
        );
        Draft::new(planner, changes, &names)
    };
    let (queries, expected_draft) = engine.with_registry(|registry| {
        let queries = plan::queries(registry, changes, &known_names);
        let expected = Answers::expected(registry, configured, &queries);
        let expected_draft = draft(registry, &expected);
        (queries, expected_draft)
    });
    engine.reserve_numbers(expected_draft.next);
    let (answers, ahead) = read_ahead(engine, queries, expected_draft.plans).await?;
    let Draft {
        plans,
        corrections,
        next,
    } = engine.with_registry(|registry| draft(registry, &answers));
    if !corrections.is_empty() {
        // A daemon that has just restarted lacks these too. That is not a loss to report.
        engine.confirm_epoch().await?;
        engine.log_losses(&corrections, Cause::Removed);
        engine.note(corrections);
    }
    engine.reserve_numbers(next);
    let is_missing = |name: &str| answers.groups.get(name) == Some(&false);
    let has_losses = engine.with_registry(|registry| registry.added_groups().any(is_missing));
    let transaction = Transaction::new(configured, plans, ahead.is_some(), has_losses);
    Ok((transaction, ahead))
}

/// Sends the queries, and in the same round trip lets the daemon read the sections that the `expected`
/// plans need. Only sends the queries if the generated file cannot be written.
async fn read_ahead(
    engine: &mut Engine,
    queries: Vec<Query>,
    expected: Vec<Result<Plan, ChangeError>>,
) -> Result<(Answers, Option<Reading>), Interrupted> {
    let plans: Vec<Plan> = expected.into_iter().flatten().collect();
    // A group that is probed first is read without its members.
    let members = plan::events(plans.iter().filter(|plan| plan.probe_section().is_none()));
    if let Some(text) = text_ahead(engine, &plans)
        && let Ok(intent) = engine.intend(members, engine.needs_marker())
        && let Ok(staged) = engine.stage(intent, text).await
    {
        let (answers, reading) = engine.read(staged, queries).await?;
        return Ok((answers, Some(reading)));
    }
    Ok((engine.query(queries).await?, None))
}

impl<'a> Transaction<'a> {
    fn new(
        configured: &'a [ConfiguredGroup],
        plans: Vec<Result<Plan, ChangeError>>,
        is_stale: bool,
        has_losses: bool,
    ) -> Self {
        let (plans, outcomes) = plans
            .into_iter()
            .map(|plan| match plan {
                Ok(plan) => (Some(plan), Ok(())),
                Err(error) => (None, Err(error)),
            })
            .unzip();
        Transaction {
            configured,
            plans,
            outcomes,
            is_stale,
            has_losses,
        }
    }

    async fn run(mut self, engine: &mut Engine, ahead: Option<Reading>) -> Batch {
        let starts = match self.execute_plans(engine, ahead).await {
            Ok(starts) => starts,
            Err(error) => {
                self.refuse_rest(&error);
                false
            }
        };
        if self.is_stale {
            refresh(engine).await;
        } else if starts {
            wait_for_start(engine).await;
        }
        Batch {
            outcomes: self.outcomes,
            has_losses: self.has_losses,
        }
    }

    /// Executes the plans. Returns whether the daemon starts a process by itself afterwards.
    async fn execute_plans(
        &mut self,
        engine: &mut Engine,
        ahead: Option<Reading>,
    ) -> Result<bool, ChangeError> {
        self.refuse_starting(engine).await?;
        let ahead = self.probe_groups(engine, ahead).await?;
        let reading = self.read(engine, ahead).await?;
        self.act(engine, reading).await
    }

    /// Refuses to hide a process that the daemon may start by itself. The daemon has started such a process
    /// by the next turn of its loop, or never does.
    async fn refuse_starting(&mut self, engine: &mut Engine) -> Result<(), Interrupted> {
        let candidates: Vec<(usize, String, String, i64)> = self
            .pending()
            .filter_map(|(index, plan)| match plan {
                Plan::Hide {
                    real,
                    process,
                    start,
                    may_start: true,
                } => Some((index, real.clone(), process.clone(), *start)),
                _ => None,
            })
            .collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let query = |(_, real, process, _): &(usize, String, String, i64)| Query::Process {
            real: real.clone(),
            process: process.clone(),
        };
        let answers = engine.query(candidates.iter().map(query).collect()).await?;
        for (index, real, process, start) in candidates {
            match answers.process(&real, &process) {
                Some(info) if info.state.is_stopped() && info.start == start => {}
                Some(_) => self.refuse(index, ChangeError::StillRunning(process)),
                None => self.refuse(index, ChangeError::UnknownProcess(process)),
            }
        }
        Ok(())
    }

    /// Probes the groups that are to be filled, because only an empty group can be. A group that the files
    /// define may contain processes, and no call of the daemon tells. So the daemon reads an empty section
    /// for the group: if `reloadConfig` reports the group as changed, it is not empty. The read-ahead
    /// contains that section already.
    async fn probe_groups(
        &mut self,
        engine: &mut Engine,
        ahead: Option<Reading>,
    ) -> Result<Option<Reading>, ChangeError> {
        let mut ahead = ahead;
        loop {
            let sections = probe_sections(self.pending().map(|(_, plan)| plan));
            if sections.is_empty() {
                return Ok(ahead);
            }
            let ahead = usable_or_discard(engine, ahead.take(), |text| text.ends_with(&sections));
            let read = Read {
                text: sections,
                events: Vec::new(),
                adds_marker: false,
            };
            if let Some(reading) = self.read_unless(engine, ahead, read).await? {
                if let Ok(reloaded) = &reading.reloaded {
                    self.place_where_not_empty(engine, reloaded);
                }
                return Ok(Some(reading));
            }
        }
    }

    /// Lets the daemon read the sections, unless the read-ahead contains them. Returns `None` if the daemon
    /// rejects them: one or more plans are refused then.
    async fn read_unless(
        &mut self,
        engine: &mut Engine,
        ahead: Option<Reading>,
        read: Read,
    ) -> Result<Option<Reading>, ChangeError> {
        let reading = match ahead {
            Some(ahead) => ahead,
            None => {
                let intent = engine.intend(read.events, read.adds_marker)?;
                let staged = engine.stage(intent, read.text).await?;
                self.is_stale = true;
                engine.read(staged, Vec::new()).await?.1
            }
        };
        if let Err(fault) = &reading.reloaded {
            let fault = fault.clone();
            engine.abandon(reading.staged.into_intent());
            self.refuse_by_fault(engine, &fault);
            return Ok(None);
        }
        Ok(Some(reading))
    }

    fn place_where_not_empty(&mut self, engine: &mut Engine, reloaded: &ReloadResult) {
        for plan in &mut self.plans {
            if let Some(Plan::Fill { group, .. }) = plan
                && (reloaded.changed.contains(group) || reloaded.added.contains(group))
            {
                *plan = plan
                    .take()
                    .map(|plan| Planner::place_instead(plan, |group| engine.take_number(group)));
            }
        }
    }

    /// Lets the daemon read the sections of all pending plans, and refuses the plans that it rejects. Each
    /// round has at least one plan less. The file stays in place until the daemon has executed the script.
    async fn read(
        &mut self,
        engine: &mut Engine,
        mut ahead: Option<Reading>,
    ) -> Result<Option<Reading>, ChangeError> {
        loop {
            let plans = || self.pending().map(|(_, plan)| plan);
            let Some(text) = text(engine, plans()) else {
                discard(engine, ahead);
                return Ok(None);
            };
            let events = plan::events(plans());
            let ahead = usable_or_discard(engine, ahead.take(), |ahead| ahead == text);
            let read = Read {
                text,
                events,
                adds_marker: engine.needs_marker(),
            };
            if let Some(reading) = self.read_unless(engine, ahead, read).await? {
                if let Ok(reloaded) = &reading.reloaded {
                    self.refuse_unread(engine, reloaded).await;
                }
                return Ok(Some(reading));
            }
        }
    }

    async fn refuse_unread(&mut self, engine: &Engine, reloaded: &ReloadResult) {
        let unread: Vec<usize> = self
            .pending()
            .filter(|(_, plan)| !plan.is_read(reloaded))
            .map(|(index, _)| index)
            .collect();
        if unread.is_empty() {
            return;
        }
        let fault = engine.not_read().await;
        for index in unread {
            self.refuse(index, fault.clone());
        }
    }

    /// Refuses the plan whose section the fault names. If the fault is about something else, all plans that
    /// need a reload are refused.
    fn refuse_by_fault(&mut self, engine: &Engine, fault: &Fault) {
        let blamed = self.pending().find_map(|(index, plan)| {
            let (program, section) = plan.program()?;
            let fault = reread_fault(engine, fault, program, section)?;
            Some((index, fault))
        });
        if let Some((index, fault)) = blamed {
            return self.refuse(index, fault);
        }
        let needs_marker = engine.needs_marker();
        let needs = |plan: &Plan| plan.needs_reload() || needs_marker && plan.needs_marker();
        let unread: Vec<usize> = self
            .pending()
            .filter(|(_, plan)| needs(plan))
            .map(|(index, _)| index)
            .collect();
        for index in unread {
            self.refuse(index, fault.clone());
        }
    }

    /// Executes all pending plans while the staged file is in place. Returns whether the daemon starts a
    /// process by itself afterwards.
    async fn act(
        &mut self,
        engine: &mut Engine,
        reading: Option<Reading>,
    ) -> Result<bool, ChangeError> {
        let events = plan::events(self.pending().map(|(_, plan)| plan));
        if self.pending().next().is_none() {
            discard(engine, reading);
            return Ok(false);
        }
        let adds_marker = engine.needs_marker() && reading.is_some();
        let marker = adds_marker.then(|| engine.marker.clone());
        let script = Script::compose(marker, self.pending());
        let is_read = reading.is_some();
        let (intent, file) = intend(engine, reading, &events, adds_marker)?;
        if script.calls.is_empty() {
            failpoint::hit("hiding");
        }
        let prepared = match engine.prepare_persist_file(events, self.configured) {
            Ok(prepared) => prepared,
            Err(error) => {
                drop(file);
                engine.abandon(intent);
                // The preparation may have removed processes from the file already.
                engine.write_persist_file();
                return Err(error);
            }
        };
        failpoint::hit("prepared");
        engine.confirm_epoch().await?;
        let sync = async {
            if let Some(prepared) = &prepared {
                prepared.sync().await;
            }
        };
        let executing = engine.execute((intent, file), &script.calls);
        let (executed, ()) = tokio::join!(executing, sync);
        let executed = executed?;
        self.is_stale &= !is_read;
        let verdict = engine
            .with_registry(|registry| script.interpret(&self.plans, &executed.results, registry));
        Ok(self.conclude(engine, verdict, executed, prepared).await)
    }

    /// Records the outcome of each plan, repairs changes that the daemon made only in part, and commits.
    /// Returns whether the daemon starts a process by itself afterwards.
    async fn conclude(
        &mut self,
        engine: &mut Engine,
        verdict: Verdict,
        executed: Executed,
        prepared: Option<Prepared>,
    ) -> bool {
        engine.log_losses(&verdict.losses, Cause::Removed);
        self.has_losses |= !verdict.losses.is_empty();
        let Verdict {
            events,
            outcomes,
            repairs,
            starts,
            unmarked,
            ..
        } = verdict;
        for (index, outcome) in outcomes {
            if let (Some(Plan::Fill { group, .. }), Err(_)) = (&self.plans[index], &outcome) {
                // The group may contain processes that this proxy did not add. The next call checks that
                // first.
                engine.foreign_groups.insert(group.clone());
            }
            self.plans[index] = None;
            self.outcomes[index] = outcome;
        }
        if !unmarked.is_empty() {
            let fault = engine.not_read().await;
            for index in unmarked {
                self.refuse(index, fault.clone());
            }
        }
        for (index, repair) in repairs {
            if let Err(error) = self.repair(engine, index, repair).await {
                self.outcomes[index] = Err(error);
                engine.commit_partly(executed, events);
                return starts;
            }
        }
        engine.commit(executed, events, prepared);
        starts
    }

    /// Repairs a change that the daemon made only in part.
    async fn repair(
        &mut self,
        engine: &mut Engine,
        index: usize,
        repair: Repair,
    ) -> Result<(), ChangeError> {
        match repair {
            Repair::StopHidden { real } => self.stop_hidden(engine, index, &real).await,
            Repair::AddBack { reals } => {
                let proxy = engine.proxy_url();
                let texts: Vec<(String, String)> = engine.with_registry(|registry| {
                    let text = |real: &String| {
                        let configured = self.configured;
                        persist::stopped_group(registry, configured, real, proxy)
                    };
                    let texts = reals.iter();
                    texts
                        .filter_map(|real| Some((real.clone(), text(real)?)))
                        .collect()
                });
                if texts.is_empty() {
                    return Ok(());
                }
                let (names, texts): (Vec<String>, Vec<String>) = texts.into_iter().unzip();
                engine.add_read(&texts.concat(), &names).await
            }
            Repair::AddEmpty { group, text } => engine.add_read(&text, &[group]).await,
        }
    }

    /// Stops hidden processes that keep the daemon from removing a real group, because a client started
    /// them directly on the daemon. The outcome names the first of them.
    async fn stop_hidden(
        &mut self,
        engine: &mut Engine,
        index: usize,
        real: &str,
    ) -> Result<(), ChangeError> {
        let query = |process: &str| Query::Process {
            real: real.to_owned(),
            process: process.to_owned(),
        };
        let queries: Vec<Query> = engine.with_registry(|registry| {
            let hidden = registry.hidden().filter(|(held, _, _)| *held == real);
            hidden.map(|(_, process, _)| query(process)).collect()
        });
        let answers = engine.query(queries).await?;
        let mut running = answers
            .processes
            .values()
            .filter(|info| !info.state.is_stopped());
        let Some(first) = running.next() else {
            return Ok(());
        };
        let name = format!("{}:{}", first.group, first.name);
        tracing::warn!(
            process = name,
            "somebody started a process that was removed: stopping it"
        );
        engine.stop(std::iter::once(first).chain(running)).await?;
        self.outcomes[index] = Err(ChangeError::StillRunning(name));
        Ok(())
    }

    fn pending(&self) -> impl Iterator<Item = (usize, &Plan)> {
        self.plans
            .iter()
            .enumerate()
            .filter_map(|(index, plan)| Some((index, plan.as_ref()?)))
    }

    fn refuse(&mut self, index: usize, error: impl Into<ChangeError>) {
        self.plans[index] = None;
        self.outcomes[index] = Err(error.into());
    }

    fn refuse_rest(&mut self, error: &ChangeError) {
        for index in 0..self.plans.len() {
            if self.plans[index].is_some() {
                self.refuse(index, error.clone());
            }
        }
    }
}

/// The sections that the daemon is to read, and the steps of the intent.
struct Read {
    text: String,
    events: Vec<Event>,
    /// Whether the epoch marker is among the sections.
    adds_marker: bool,
}

/// Returns the intent for `events`, and the staged file of the reading. Opens another intent if the reading
/// was for other steps: plans may have been refused since, or need more steps than it had.
fn intend(
    engine: &mut Engine,
    reading: Option<Reading>,
    events: &[Event],
    adds_marker: bool,
) -> Result<(Intent, Option<Staged>), ChangeError> {
    let Some(reading) = reading else {
        return Ok((engine.intend(events.to_vec(), false)?, None));
    };
    let (intent, file) = reading.staged.into_parts();
    if intent.events == events {
        return Ok((intent, file));
    }
    match engine.intend(events.to_vec(), adds_marker) {
        Ok(intent) => Ok((intent, file)),
        Err(error) => {
            drop(file);
            engine.close_intent(Vec::new());
            Err(error)
        }
    }
}

/// Returns the read-ahead if its text meets `is_usable`, and discards it otherwise.
fn usable_or_discard(
    engine: &mut Engine,
    ahead: Option<Reading>,
    is_usable: impl Fn(&str) -> bool,
) -> Option<Reading> {
    match ahead {
        Some(ahead) if is_usable(&ahead.staged.text) => Some(ahead),
        other => {
            discard(engine, other);
            None
        }
    }
}

/// Removes the file of a reading that is not executed.
fn discard(engine: &mut Engine, reading: Option<Reading>) {
    if let Some(reading) = reading {
        engine.abandon(reading.staged.into_intent());
    }
}

/// Lets the daemon read its files without the refused sections. The daemon lists what it read last, and
/// would add such a section for any client that asks.
async fn refresh(engine: &mut Engine) {
    let _withheld = engine.withhold();
    if let Err(error) = engine.query_and_reload(Vec::new()).await {
        tracing::debug!(?error, "supervisord may still list what it read last");
    }
}

/// Makes one short call. The daemon starts added processes in the next turn of its loop
/// (`supervisor/supervisord.py`, `runforever`), so a client that calls after this request sees the started
/// processes.
async fn wait_for_start(engine: &mut Engine) {
    if let Err(error) = engine.call("supervisor.getState").await {
        tracing::debug!(%error, "what was added may not have been started yet");
    }
}

/// The probe sections of the groups that are to be filled.
fn probe_sections<'p>(plans: impl Iterator<Item = &'p Plan>) -> String {
    plans.filter_map(Plan::probe_section).collect()
}

/// The sections to read ahead for these plans, before the daemon has answered the queries. `None` if
/// nothing can be read ahead.
fn text_ahead(engine: &Engine, plans: &[Plan]) -> Option<String> {
    // Recovery hides each process that an open intent hides, so such an intent must be certain.
    if plans.iter().any(|plan| matches!(plan, Plan::Hide { .. })) {
        return None;
    }
    let probes = probe_sections(plans.iter());
    let others = plans.iter().filter(|plan| plan.probe_section().is_none());
    match text(engine, others) {
        Some(text) => Some(text + &probes),
        None if probes.is_empty() => None,
        None => Some(probes),
    }
}

/// The sections that the daemon has to read for these plans, if any.
fn text<'p>(engine: &Engine, plans: impl Iterator<Item = &'p Plan>) -> Option<String> {
    let mut needs_marker = false;
    let needs = |plan: &&Plan| {
        needs_marker |= plan.needs_marker();
        true
    };
    let sections: String = plans
        .filter(needs)
        .map(|plan| plan.sections(engine.proxy_url()))
        .collect();
    let marker = if needs_marker && engine.needs_marker() {
        empty_group(&engine.marker)
    } else {
        String::new()
    };
    let text = marker + &sections;
    (!text.is_empty()).then_some(text)
}

/// The process names of each program. Empty for other changes.
async fn process_names(
    engine: &mut Engine,
    changes: &[Change],
) -> Vec<Result<Vec<String>, ChangeError>> {
    let mut all = Vec::with_capacity(changes.len());
    for change in changes {
        all.push(match change {
            Change::AddProgram(program) => names_of(engine, program).await,
            _ => Ok(Vec::new()),
        });
    }
    all
}

async fn names_of(engine: &mut Engine, program: &Program) -> Result<Vec<String>, ChangeError> {
    log_files::check(program).await?;
    match program.process_names() {
        Some(names) => Ok(names),
        None => names_from_daemon(engine, program).await,
    }
}

/// Lets the daemon expand a `process_name` with expressions that only the daemon can expand. Each process
/// is in a group of its own, because the daemon's list does not keep their order.
async fn names_from_daemon(
    engine: &mut Engine,
    program: &Program,
) -> Result<Vec<String>, ChangeError> {
    let sections: Vec<String> = (0..program.numprocs())
        .map(|_| engine.take_number(program.group()))
        .collect();
    let text: String = (0..)
        .zip(&sections)
        .map(|(index, section)| {
            program.render_placed(section, Scope::One(index), DEFAULT_PRIORITY, None)
        })
        .collect();
    let (reloaded, configs) = engine.read_and_list(text).await?;
    if let Err(fault) = reloaded {
        let blamed = sections
            .iter()
            .find_map(|section| reread_fault(engine, &fault, program, section));
        return Err(blamed.unwrap_or(fault).into());
    }
    let configs = ConfigInfo::read_all(&configs?);
    let name_in = |section: &String| {
        let config = configs.iter().find(|config| config.group == *section);
        config.map(|config| config.name.clone())
    };
    let names: Vec<String> = sections.iter().filter_map(name_in).collect();
    if names.len() != sections.len() {
        return Err(engine.not_read().await.into());
    }
    program
        .check_process_names(&names)
        .map_err(|error| fault(INCORRECT_PARAMETERS, error.into_marked_text()))?;
    Ok(names)
}

/// Rewords the daemon's fault about this `section` so that it refers to the options that the client sent.
/// Returns `None` if the fault is about something else.
fn reread_fault(
    engine: &Engine,
    complaint: &Fault,
    program: &Program,
    section: &str,
) -> Option<Fault> {
    if !names_section(&complaint.text, section) {
        return None;
    }
    if complaint.code != CANT_REREAD {
        return Some(complaint.clone());
    }
    let text = complaint.text.strip_prefix("CANT_REREAD: ");
    let reason = text.unwrap_or(&complaint.text);
    let main_file = engine.conf_file.display().to_string();
    let words = program.in_client_words(reason, section, &main_file);
    Some(fault(INCORRECT_PARAMETERS, words))
}
