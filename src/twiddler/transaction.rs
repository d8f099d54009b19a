//! One batch of changes that do not concern each other, from the questions to the outcomes.
//!
//! It plans on the answers that it expects, lets the daemon answer and read what that takes in one
//! round trip, and plans on the real answers. What one plan did wrong is taken out and the others are
//! read again. Then all that is right is done in one multicall, while the file is still there: whoever
//! else lets the daemon read its files reads the same.

use super::engine::{Engine, Executed, Interrupted, Reading, empty_group};
use super::model::answers::{Answers, Query};
use super::model::change::{Change, ChangeError, Outcome};
use super::model::plan::{self, Draft, Plan, Planner};
use super::model::script::{Repair, Script, Verdict};
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::{ConfigInfo, ReloadResult};
use crate::failpoint;
use crate::fault::complaint::names_section;
use crate::fault::{CANT_REREAD, INCORRECT_PARAMETERS, fault};
use crate::persist;
use crate::persist::Prepared;
use crate::program::{Program, Scope, log_files};
use crate::registry::losses::Cause;
use crate::registry::{DEFAULT_PRIORITY, Event, Registry};
use crate::xmlrpc::Fault;

/// Carries out `changes`. The view is current.
pub(super) async fn carry_out(engine: &mut Engine, changes: &[Change]) -> Batch {
    let configured = engine.configured();
    let batch = match prepare(engine, changes, &configured).await {
        Ok((transaction, ahead)) => transaction.run(engine, ahead).await,
        Err(error) => Batch {
            outcomes: changes.iter().map(|_| Err(error.clone())).collect(),
            is_doubtful: false,
        },
    };
    engine.leave_to_recovery();
    batch
}

/// What a batch came to.
pub(super) struct Batch {
    /// One for each change.
    pub(super) outcomes: Vec<Outcome>,
    /// Something else was gone than was known.
    pub(super) is_doubtful: bool,
}

/// Plans on their way through the daemon.
struct Transaction<'a> {
    configured: &'a [ConfiguredGroup],
    plans: Vec<Option<Plan>>,
    outcomes: Vec<Outcome>,
    /// The daemon has read something last that was not added after all.
    is_stale: bool,
    is_doubtful: bool,
}

/// Asks what must be known and decides what to do for each change. On the way the daemon reads what
/// it will have to if it answers as expected: reading alone changes nothing in it.
async fn prepare<'a>(
    engine: &mut Engine,
    changes: &[Change],
    configured: &'a [ConfiguredGroup],
) -> Result<(Transaction<'a>, Option<Reading>), ChangeError> {
    let names = process_names(engine, changes).await;
    let known: Vec<Vec<String>> = names
        .iter()
        .map(|names| names.clone().unwrap_or_default())
        .collect();
    let persists = engine.persists();
    let first = engine.look(Registry::next);
    let held = engine.held.clone();
    let draft = |registry: &Registry, answers: &Answers| {
        let planner = Planner::new(registry, configured, answers, first, persists, &held);
        Draft::new(planner, changes, &names)
    };
    let (queries, guess) = engine.look(|registry| {
        let queries = plan::queries(registry, changes, &known);
        let expected = Answers::expected(registry, configured, &queries);
        let guess = draft(registry, &expected);
        (queries, guess)
    });
    engine.reserve_numbers(guess.next);
    let (answers, ahead) = read_ahead(engine, queries, guess.plans).await?;
    let Draft {
        plans,
        corrections,
        next,
    } = engine.look(|registry| draft(registry, &answers));
    if !corrections.is_empty() {
        // What a daemon lacks that has just started again is no news.
        engine.confirm_epoch().await?;
        engine.say_gone(&corrections, Cause::Removed);
        engine.note(corrections);
    }
    engine.reserve_numbers(next);
    let lacks = |name: &str| answers.groups.get(name) == Some(&false);
    let is_doubtful = engine.look(|registry| registry.added_groups().any(lacks));
    let (plans, outcomes) = plans
        .into_iter()
        .map(|plan| match plan {
            Ok(plan) => (Some(plan), Ok(())),
            Err(error) => (None, Err(error)),
        })
        .unzip();
    let transaction = Transaction {
        configured,
        plans,
        outcomes,
        is_stale: ahead.is_some(),
        is_doubtful,
    };
    Ok((transaction, ahead))
}

/// Asks, and lets the daemon read on the way what `guess` takes. Where that cannot be written, only
/// asks.
async fn read_ahead(
    engine: &mut Engine,
    queries: Vec<Query>,
    guess: Vec<Result<Plan, ChangeError>>,
) -> Result<(Answers, Option<Reading>), Interrupted> {
    let plans: Vec<Plan> = guess.into_iter().flatten().collect();
    // Of a group that is looked into first, no member is read yet.
    let members = plan::events(plans.iter().filter(|plan| plan.look().is_none()));
    if let Some(text) = text_ahead(engine, &plans)
        && let Ok(intent) = engine.intend(members, engine.needs_marker())
        && let Ok(staged) = engine.stage(intent, text).await
    {
        let (answers, reading) = engine.read(staged, queries).await?;
        return Ok((answers, Some(reading)));
    }
    Ok((engine.query(queries).await?, None))
}

impl Transaction<'_> {
    async fn run(mut self, engine: &mut Engine, ahead: Option<Reading>) -> Batch {
        let starts = match self.make(engine, ahead).await {
            Ok(starts) => starts,
            Err(error) => {
                self.refuse_rest(&error);
                false
            }
        };
        if self.is_stale {
            refresh(engine).await;
        } else if starts {
            take_turn(engine).await;
        }
        Batch {
            outcomes: self.outcomes,
            is_doubtful: self.is_doubtful,
        }
    }

    /// Whether the daemon starts something of it by itself.
    async fn make(
        &mut self,
        engine: &mut Engine,
        ahead: Option<Reading>,
    ) -> Result<bool, ChangeError> {
        self.refuse_those_that_start(engine).await?;
        let ahead = self.look_into_groups(engine, ahead).await?;
        let reading = self.read(engine, ahead).await?;
        self.act(engine, reading).await
    }

    /// A process that may start by itself must not be hidden: by the next turn of the daemon's loop it
    /// has started, or never will.
    async fn refuse_those_that_start(&mut self, engine: &mut Engine) -> Result<(), Interrupted> {
        let doubtful: Vec<(usize, String, String, i64)> = self
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
        if doubtful.is_empty() {
            return Ok(());
        }
        let query = |(_, real, process, _): &(usize, String, String, i64)| Query::Process {
            real: real.clone(),
            process: process.clone(),
        };
        let answers = engine.query(doubtful.iter().map(query).collect()).await?;
        for (index, real, process, start) in doubtful {
            match answers.process(&real, &process) {
                Some(info) if info.state.is_stopped() && info.start == start => {}
                Some(_) => self.refuse(index, ChangeError::StillRunning(process)),
                None => self.refuse(index, ChangeError::UnknownProcess(process)),
            }
        }
        Ok(())
    }

    /// Before a group is filled, it must be known to be empty, and one that the files define may not be. No
    /// call says so; but the daemon finds it changed by an empty section when it is not. That section was
    /// read ahead.
    async fn look_into_groups(
        &mut self,
        engine: &mut Engine,
        ahead: Option<Reading>,
    ) -> Result<Option<Reading>, ChangeError> {
        let mut ahead = ahead;
        loop {
            let looks = looks(self.pending().map(|(_, plan)| plan));
            if looks.is_empty() {
                return Ok(ahead);
            }
            let ahead = usable(engine, ahead.take(), |text| text.ends_with(&looks));
            let read = Read {
                text: looks,
                events: Vec::new(),
                marks: false,
            };
            if let Some(reading) = self.read_unless(engine, ahead, read).await? {
                if let Ok(different) = &reading.reloaded {
                    self.place_where_not_empty(engine, different);
                }
                return Ok(Some(reading));
            }
        }
    }

    /// Lets the daemon read, unless that is what it has read ahead. None where it does not take it: a plan
    /// is refused then.
    async fn read_unless(
        &mut self,
        engine: &mut Engine,
        ahead: Option<Reading>,
        read: Read,
    ) -> Result<Option<Reading>, ChangeError> {
        let reading = match ahead {
            Some(ahead) => ahead,
            None => {
                let intent = engine.intend(read.events, read.marks)?;
                let staged = engine.stage(intent, read.text).await?;
                self.is_stale = true;
                engine.read(staged, Vec::new()).await?.1
            }
        };
        if let Err(told) = &reading.reloaded {
            let told = told.clone();
            engine.abandon(reading.staged.into_intent());
            self.blame(engine, &told);
            return Ok(None);
        }
        Ok(Some(reading))
    }

    fn place_where_not_empty(&mut self, engine: &mut Engine, different: &ReloadResult) {
        for plan in &mut self.plans {
            if let Some(Plan::Fill { group, .. }) = plan
                && (different.changed.contains(group) || different.added.contains(group))
            {
                *plan = plan
                    .take()
                    .map(|plan| Planner::place_instead(plan, |group| engine.take_number(group)));
            }
        }
    }

    /// Lets the daemon read all that is pending, and refuses what it does not take. The file is to
    /// stay until the daemon has taken from it. Each time without one plan.
    async fn read(
        &mut self,
        engine: &mut Engine,
        mut ahead: Option<Reading>,
    ) -> Result<Option<Reading>, ChangeError> {
        loop {
            let plans = || self.pending().map(|(_, plan)| plan);
            let Some(text) = text(engine, plans()) else {
                drop_reading(engine, ahead);
                return Ok(None);
            };
            let events = plan::events(plans());
            let ahead = usable(engine, ahead.take(), |ahead| ahead == text);
            let read = Read {
                text,
                events,
                marks: engine.needs_marker(),
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

    /// The daemon names one section that it does not take: its change is refused. A complaint about
    /// something else refuses all that need to be read.
    fn blame(&mut self, engine: &Engine, told: &Fault) {
        let guilty = self.pending().find_map(|(index, plan)| {
            let (program, section) = plan.program()?;
            let fault = reread_fault(engine, told, program, section)?;
            Some((index, fault))
        });
        if let Some((index, fault)) = guilty {
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
            self.refuse(index, told.clone());
        }
    }

    /// Does all that is pending, while the file is there that it is read from. Whether the daemon
    /// starts something of it by itself.
    async fn act(
        &mut self,
        engine: &mut Engine,
        reading: Option<Reading>,
    ) -> Result<bool, ChangeError> {
        let events = plan::events(self.pending().map(|(_, plan)| plan));
        if self.pending().next().is_none() {
            drop_reading(engine, reading);
            return Ok(false);
        }
        let marks = engine.needs_marker() && reading.is_some();
        let marker = marks.then(|| engine.marker.clone());
        let script = Script::compose(marker, self.pending());
        let is_read = reading.is_some();
        let (intent, file) = match reading {
            Some(reading) => reading.staged.into_parts(),
            None => (engine.intend(events.clone(), false)?, None),
        };
        // What was read for may have been refused since, or be less than what is done.
        let intent = if intent.events == events {
            Ok(intent)
        } else {
            engine.intend(events.clone(), marks)
        };
        let intent = match intent {
            Ok(intent) => intent,
            Err(error) => {
                drop(file);
                engine.close_intent(Vec::new());
                return Err(error);
            }
        };
        if script.calls.is_empty() {
            failpoint::hit("hiding");
        }
        let prepared = match engine.prepare_persist_file(events, self.configured) {
            Ok(prepared) => prepared,
            Err(error) => {
                drop(file);
                engine.abandon(intent);
                // What was to go may be out of it already.
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
        let verdict =
            engine.look(|registry| script.interpret(&self.plans, &executed.results, registry));
        Ok(self.conclude(engine, verdict, executed, prepared).await)
    }

    /// Tells each plan what became of it, puts right what was made half, and writes down what happened.
    /// Whether the daemon starts something of it by itself.
    async fn conclude(
        &mut self,
        engine: &mut Engine,
        verdict: Verdict,
        executed: Executed,
        prepared: Option<Prepared>,
    ) -> bool {
        engine.say_gone(&verdict.gone, Cause::Removed);
        self.is_doubtful |= !verdict.gone.is_empty();
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
                // It may hold what somebody else has put there: the next call asks before.
                engine.held.insert(group.clone());
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

    /// Puts the daemon right after a change that it made half.
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
                let texts: Vec<(String, String)> = engine.look(|registry| {
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

    /// What keeps the daemon from removing a real group may be a hidden process that somebody has
    /// started straight on the daemon: it is told to stop, and named.
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
        let queries: Vec<Query> = engine.look(|registry| {
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

/// What the daemon is to read, and the intent with which it does.
struct Read {
    text: String,
    events: Vec<Event>,
    /// The epoch's marker is among it.
    marks: bool,
}

/// What was read ahead, where its text serves; what does not is taken away.
fn usable(
    engine: &mut Engine,
    ahead: Option<Reading>,
    serves: impl Fn(&str) -> bool,
) -> Option<Reading> {
    match ahead {
        Some(ahead) if serves(&ahead.staged.text) => Some(ahead),
        other => {
            drop_reading(engine, other);
            None
        }
    }
}

/// Takes away what was read and is not acted on.
fn drop_reading(engine: &mut Engine, reading: Option<Reading>) {
    if let Some(reading) = reading {
        engine.abandon(reading.staged.into_intent());
    }
}

/// Lets the daemon read its files without what was refused: it lists what it read last, and would add
/// it for anybody.
async fn refresh(engine: &mut Engine) {
    let _withheld = engine.withhold();
    if let Err(error) = engine.query_and_reload(Vec::new()).await {
        tracing::debug!(?error, "supervisord may still list what it read last");
    }
}

/// The daemon starts what was added in the next turn of its loop (`supervisor/supervisord.py`,
/// `runforever`). Whoever asks after this small call is answered after that.
async fn take_turn(engine: &mut Engine) {
    if let Err(error) = engine.call("supervisor.getState").await {
        tracing::debug!(%error, "what was added may not have been started yet");
    }
}

/// Empty sections of the groups that are to be filled.
fn looks<'p>(plans: impl Iterator<Item = &'p Plan>) -> String {
    plans.filter_map(Plan::look).collect()
}

/// What the daemon has to read for these plans, where that may be before it is known for sure that
/// they are right.
fn text_ahead(engine: &Engine, plans: &[Plan]) -> Option<String> {
    // What is hidden in an intent is hidden by recovery, so it must be right.
    if plans.iter().any(|plan| matches!(plan, Plan::Hide { .. })) {
        return None;
    }
    let looks = looks(plans.iter());
    let others = plans.iter().filter(|plan| plan.look().is_none());
    match text(engine, others) {
        Some(text) => Some(text + &looks),
        None if looks.is_empty() => None,
        None => Some(looks),
    }
}

/// What the daemon has to read for these plans, if anything.
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

/// The names of the processes of each program; empty for other changes.
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

/// Lets the daemon expand a `process_name` that speaks of things only it knows: each process in a
/// group of its own, because the daemon's list does not keep their order.
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
    if let Err(told) = reloaded {
        let blamed = sections
            .iter()
            .find_map(|section| reread_fault(engine, &told, program, section));
        return Err(blamed.unwrap_or(told).into());
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

/// The daemon's complaint about this `section` of its configuration, in words about what the client
/// sent; none where it complains about something else.
fn reread_fault(engine: &Engine, told: &Fault, program: &Program, section: &str) -> Option<Fault> {
    if !names_section(&told.text, section) {
        return None;
    }
    if told.code != CANT_REREAD {
        return Some(told.clone());
    }
    let text = told.text.strip_prefix("CANT_REREAD: ");
    let reason = text.unwrap_or(&told.text);
    let main_file = engine.conf_file.display().to_string();
    let words = program.in_client_words(reason, section, &main_file);
    Some(fault(INCORRECT_PARAMETERS, words))
}
