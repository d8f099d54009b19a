//! One transaction: plans on their way through the daemon.
//!
//! First the daemon reads a generated file, which changes nothing in it; what one plan did wrong is
//! taken out and the others are tried again. Then all that is right is done in one multicall, while
//! the file is still there: whoever else lets the daemon read its files reads the same.

use std::time::Duration;

use super::Twiddler;
use super::ask::{ask, ask_and_reload};
use super::change::{Outcome, Refusal, Wording, blames, not_read, reread_fault};
use super::losses::Cause;
use super::persist::Kept;
use super::plan::{self, Plan, Planner, Question};
use super::reading::{Announced, Reading, empty_group, steps, text};
use super::registry::Event;
use super::script::{ADD, REMOVE, Script};
use crate::daemon::Reloaded;
use crate::daemon::fault::{ALREADY_ADDED, BAD_NAME, FAILED, SHUTDOWN_STATE, STILL_RUNNING, fault};
use crate::failpoint;
use crate::xmlrpc::{Fault, Value};

/// How often a transaction begins again because the daemon broke the connection by which its life is
/// known. One that idled too long is broken once; a daemon that breaks each is not fit for a change.
const RETRIES: u32 = 5;
/// The pause before the first of them. Each later one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What the daemon answered to one call of a multicall.
type Told = Result<Value, Fault>;

/// Plans on their way through the daemon.
pub(super) struct Transaction<'a> {
    twiddler: &'a Twiddler,
    /// The life of the daemon that the plans are made for.
    life: u64,
    plans: Vec<Option<Plan>>,
    outcomes: Vec<Outcome>,
    /// What the daemon has read already, and may be right.
    ahead: Option<Reading>,
    /// What happened in this round: noted in one piece, because that ends what was begun.
    events: Vec<Event>,
    /// The plans that were carried out in this round.
    finished: Vec<usize>,
    /// What is written down as about to happen, if anything.
    begun: Option<Vec<Event>>,
    /// The daemon has read something last that was not added after all.
    is_stale: bool,
    /// Something was added that the daemon starts by itself.
    starts: bool,
    /// How often it has begun again.
    retries: u32,
}

impl<'a> Transaction<'a> {
    /// Plans for this `life` of the daemon, of which it has read something `ahead`.
    pub(super) fn new(
        twiddler: &'a Twiddler,
        life: u64,
        plans: Vec<Result<Plan, Refusal>>,
        ahead: Option<Reading>,
    ) -> Self {
        let (plans, outcomes) = plans
            .into_iter()
            .map(|plan| match plan {
                Ok(plan) => (Some(plan), Ok(())),
                Err(refusal) => (None, Err(refusal)),
            })
            .unzip();
        Transaction {
            twiddler,
            life,
            plans,
            outcomes,
            begun: ahead.as_ref().map(|ahead| ahead.staged.steps()),
            is_stale: ahead.is_some(),
            starts: false,
            ahead,
            events: Vec::new(),
            finished: Vec::new(),
            retries: 0,
        }
    }

    /// Goes on until every plan is carried out or refused; each round without one that spoils it
    /// settles all. A round that settles none is a retry, and those are bounded.
    pub(super) async fn run(mut self) -> Vec<Outcome> {
        let mut left = self.pending().count();
        while left > 0 {
            let mut ended = self.round().await;
            if ended.is_ok() && self.pending().count() == left {
                ended = self.retry().await;
            }
            if let Err(refusal) = ended {
                self.refuse_rest(&refusal);
            }
            left = self.pending().count();
        }
        self.ahead = None;
        if let Err(refusal) = self.end(None) {
            tracing::debug!(reason = %refusal, "nothing is left of what was begun");
        }
        if self.is_stale {
            self.refresh().await;
        } else if self.starts {
            self.take_turn().await;
        }
        self.outcomes
    }

    /// Lets the daemon read its files without what was refused: it lists what it read last, and would
    /// add it for anybody.
    async fn refresh(&self) {
        if let Err(refusal) = ask_and_reload(self.twiddler, Vec::new()).await {
            tracing::debug!(reason = %refusal, "supervisord may still list what it read last");
        }
    }

    /// The daemon starts what was added in the next turn of its loop (`supervisor/supervisord.py`,
    /// `runforever`). Whoever asks after this small call is answered after that.
    async fn take_turn(&self) {
        if let Err(refusal) = self.twiddler.call("supervisor.getState", &[]).await {
            tracing::debug!(reason = %refusal, "what was added may not have been started yet");
        }
    }

    /// Waits before it begins again, in case the daemon is about to keep its connections.
    ///
    /// # Errors
    /// When it has begun again often enough.
    async fn retry(&mut self) -> Result<(), Refusal> {
        if self.retries == RETRIES {
            let address = self.twiddler.daemon.address();
            return Err(Refusal::Unreachable(format!(
                "supervisord at {address} closes new connections at once: restart it if that goes on"
            )));
        }
        tokio::time::sleep(RETRY_PAUSE * 2_u32.pow(self.retries)).await;
        self.retries += 1;
        Ok(())
    }

    async fn round(&mut self) -> Result<(), Refusal> {
        self.settle_hides().await?;
        self.look_into_groups().await?;
        let staged = self.read_in().await?;
        self.act(staged).await
    }

    /// Takes note of what came of what was begun, and keeps that. What was done in a former life of
    /// the daemon has come to nothing.
    fn end(&mut self, kept: Option<Kept>) -> Result<(), Refusal> {
        let Some(begun) = self.begun.take() else {
            return Ok(());
        };
        if self.events.is_empty() && !self.lives_on() {
            // If it has started again while the file was there, it has read it.
            self.twiddler.leave_open(self.life, begun);
            return Ok(());
        }
        let events = std::mem::take(&mut self.events);
        let finished = std::mem::take(&mut self.finished);
        let ended = self.twiddler.end(self.life, events);
        failpoint::hit("done");
        match &ended {
            Ok(()) => self.twiddler.keep(kept),
            Err(refusal) => {
                for index in finished {
                    self.refuse(index, refusal.clone());
                }
            }
        }
        ended
    }

    /// Hiding asks nothing of the daemon, but must be known to be about its present life.
    async fn settle_hides(&mut self) -> Result<(), Refusal> {
        self.refuse_those_that_start().await?;
        let hides: Vec<(usize, Vec<Event>)> = self
            .pending()
            .filter(|(_, plan)| matches!(plan, Plan::Hide { .. }))
            .map(|(index, plan)| (index, plan.events()))
            .collect();
        if hides.is_empty() {
            return Ok(());
        }
        // What follows may take a file of its own, and is begun and ended by itself.
        self.ahead = None;
        self.end(None)?;
        if self.twiddler.needs_marker() {
            self.twiddler.mark().await?;
        }
        let events: Vec<Event> = hides
            .iter()
            .flat_map(|(_, events)| events.clone())
            .collect();
        self.begin(None, &events)?;
        failpoint::hit("hiding");
        self.twiddler.lived_on_since(self.life).await?;
        let kept = self.twiddler.prepare_kept(&events)?;
        for (index, events) in hides {
            self.finish(index, events);
        }
        self.end(kept)
    }

    /// A process that may start by itself must not be hidden: by the next turn of the daemon's loop it
    /// has started, or never will.
    async fn refuse_those_that_start(&mut self) -> Result<(), Refusal> {
        let doubtful: Vec<(usize, Question, i64)> = self
            .pending()
            .filter_map(|(index, plan)| match plan {
                Plan::Hide {
                    real,
                    process,
                    start,
                    may_start: true,
                } => {
                    let (real, process) = (real.clone(), process.clone());
                    Some((index, Question::Process { real, process }, *start))
                }
                _ => None,
            })
            .collect();
        if doubtful.is_empty() {
            return Ok(());
        }
        let questions = doubtful.iter().map(|(_, question, _)| question.clone());
        let answers = ask(self.twiddler, questions.collect()).await?;
        for (index, question, start) in doubtful {
            let Question::Process { real, process } = question else {
                continue;
            };
            match answers.found(&real, &process) {
                Some(found) if found.is_stopped() && found.start == start => {}
                Some(_) => self.refuse(index, fault(STILL_RUNNING, process)),
                None => self.refuse(index, fault(BAD_NAME, process)),
            }
        }
        Ok(())
    }

    fn begin(&mut self, marker: Option<&str>, events: &[Event]) -> Result<(), Refusal> {
        self.twiddler.begin(marker, events)?;
        self.begun = Some(steps(marker, events));
        Ok(())
    }

    /// Before a group is filled, it must be known to be empty. No call says so; but the daemon finds
    /// it changed by an empty section when it is not.
    async fn look_into_groups(&mut self) -> Result<(), Refusal> {
        let mut sections = String::new();
        for (_, plan) in self.pending() {
            if let Plan::Fill {
                group, priority, ..
            } = plan
            {
                sections += &empty_group(group, *priority);
            }
        }
        if sections.is_empty() {
            return Ok(());
        }
        self.ahead = None;
        let file = self.twiddler.stage(&sections).await?;
        self.is_stale = true;
        let (_, said) = ask_and_reload(self.twiddler, Vec::new()).await?;
        drop(file);
        match said {
            Ok(different) => self.place_where_not_empty(&different),
            Err(told) => self.blame(&told),
        }
        Ok(())
    }

    fn place_where_not_empty(&mut self, different: &Reloaded) {
        for plan in &mut self.plans {
            if let Some(Plan::Fill { group, .. }) = plan
                && (different.changed.contains(group) || different.added.contains(group))
            {
                *plan = plan.take().map(|plan| {
                    Planner::place_instead(plan, |group| self.twiddler.take_number(group))
                });
            }
        }
    }

    /// Lets the daemon read all that is pending, and refuses what it does not take. The file is to
    /// stay until the daemon has taken from it.
    async fn read_in(&mut self) -> Result<Option<Announced>, Refusal> {
        loop {
            let ahead = self.ahead.take();
            let pending = || self.pending().map(|(_, plan)| plan);
            let Some(text) = text(self.twiddler, pending()) else {
                return Ok(None);
            };
            let Reading { staged, said } = match ahead.filter(|ahead| ahead.staged.text == text) {
                Some(ahead) => ahead,
                None => {
                    let events = plan::events(pending());
                    self.end(None)?;
                    let announced =
                        Announced::begin(self.twiddler, self.life, text, events).await?;
                    announced.read(self.twiddler, Vec::new()).await?.1
                }
            };
            self.begun = Some(staged.steps());
            self.is_stale = true;
            if !self.lives_on() {
                // Not while a file is there: finding out about the daemon's life may need one too.
                drop(staged);
                self.twiddler.lived_on_since(self.life).await?;
                self.retry().await?;
                continue;
            }
            match said {
                Ok(reloaded) => {
                    self.refuse_unread(&reloaded).await;
                    return Ok(Some(staged));
                }
                Err(told) => self.blame(&told),
            }
        }
    }

    async fn refuse_unread(&mut self, reloaded: &Reloaded) {
        let is_unread = |plan: &Option<Plan>| plan.as_ref().is_some_and(|it| !it.is_read(reloaded));
        let unread: Vec<usize> = (0..self.plans.len())
            .filter(|index| is_unread(&self.plans[*index]))
            .collect();
        if unread.is_empty() {
            return;
        }
        let fault = not_read(self.twiddler).await;
        for index in unread {
            self.refuse(index, fault.clone());
        }
    }

    /// The daemon names one section that it does not take: its change is refused. A complaint about
    /// something else refuses all that need to be read.
    fn blame(&mut self, told: &Fault) {
        let guilty = self.pending().find_map(|(index, plan)| {
            let section = plan
                .blamable()
                .into_iter()
                .find(|section| blames(&told.text, section))?;
            Some((index, section.to_owned(), plan.clone()))
        });
        if let Some((index, section, Plan::Fill { program, .. } | Plan::Place { program, .. })) =
            guilty
        {
            let told = reread_fault(self.twiddler, told, Some((&program, &section)));
            return self.refuse(index, told);
        }
        for index in 0..self.plans.len() {
            if self.plans[index].as_ref().is_some_and(Plan::needs_reload) {
                self.refuse(index, told.clone());
            }
        }
    }

    /// Does all that is pending, while the file is there that it is read from.
    async fn act(&mut self, staged: Option<Announced>) -> Result<(), Refusal> {
        let script = self.compose();
        if script.calls.is_empty() {
            return Ok(());
        }
        let events = plan::events(self.pending().map(|(_, plan)| plan));
        let marker = script.marks.then(|| self.twiddler.marker_name());
        if staged.as_ref().is_none_or(|staged| staged.events != events) {
            self.begin(marker.as_deref(), &events)?;
        }
        let Some(kept) = self.prepare_kept(&events)? else {
            // Not while a file is there: finding out about the daemon's life may need one too.
            drop(staged);
            return self.twiddler.lived_on_since(self.life).await;
        };
        let is_read = staged.is_some();
        let results = match self.carry_out(&script.calls, staged).await {
            Ok(results) => results,
            Err(refusal) => {
                let open = self.begun.take().unwrap_or_default();
                self.twiddler.leave_open(self.life, open);
                return Err(refusal);
            }
        };
        self.is_stale &= !is_read;
        let settled = self.settle(&script, &results).await;
        if settled.is_err() {
            let open = plan::events(self.pending().map(|(_, plan)| plan));
            self.twiddler.leave_open(self.life, open);
        }
        self.end(kept)?;
        failpoint::hit("kept");
        settled
    }

    /// What is to be kept after these; nothing at all if the daemon may have started again since it
    /// was decided what to do.
    fn prepare_kept(&self, events: &[Event]) -> Result<Option<Option<Kept>>, Refusal> {
        if !self.lives_on() {
            return Ok(None);
        }
        let kept = self.twiddler.prepare_kept(events)?;
        failpoint::hit("prepared");
        Ok(self.lives_on().then_some(kept))
    }

    fn lives_on(&self) -> bool {
        self.twiddler.is_settled() && self.twiddler.life_number() == self.life
    }

    /// The daemon's answers, if they are of the life in which it was decided what to ask.
    async fn carry_out(
        &self,
        calls: &[(&str, Vec<Value>)],
        staged: Option<Announced>,
    ) -> Result<Vec<Told>, Refusal> {
        let results = self.twiddler.multicall(calls).await?;
        failpoint::hit("answered");
        drop(staged);
        failpoint::hit("taken away");
        self.twiddler.lived_on_since(self.life).await?;
        Ok(results)
    }

    fn compose(&self) -> Script {
        let mut script = Script::default();
        if self.twiddler.needs_marker() && self.pending().any(|(_, plan)| plan.needs_reload()) {
            script.marks = true;
            script.push(ADD, &self.twiddler.marker_name());
        }
        for (index, plan) in self.pending() {
            script.plan(index, plan);
        }
        script
    }

    fn pending(&self) -> impl Iterator<Item = (usize, &Plan)> {
        self.plans
            .iter()
            .enumerate()
            .filter_map(|(index, plan)| Some((index, plan.as_ref()?)))
    }

    fn finish(&mut self, index: usize, events: Vec<Event>) {
        self.plans[index] = None;
        self.finished.push(index);
        self.events.extend(events);
    }

    fn refuse(&mut self, index: usize, refusal: impl Into<Refusal>) {
        self.plans[index] = None;
        self.outcomes[index] = Err(refusal.into());
    }

    fn refuse_rest(&mut self, refusal: &Refusal) {
        for index in 0..self.plans.len() {
            if self.plans[index].is_some() {
                self.refuse(index, refusal.clone());
            }
        }
    }

    async fn settle(&mut self, script: &Script, results: &[Told]) -> Result<(), Refusal> {
        if script.marks && results.first().is_some_and(is_there) {
            self.events.push(Event::Marker(self.twiddler.marker_name()));
        }
        for (index, calls) in &script.steps {
            let told = results.get(calls.clone()).unwrap_or_default();
            if let Some(plan) = self.plans[*index].take()
                && let Err(refusal) = self.settle_plan(*index, &plan, told).await
            {
                self.plans[*index] = Some(plan);
                return Err(refusal);
            }
        }
        Ok(())
    }

    async fn settle_plan(
        &mut self,
        index: usize,
        plan: &Plan,
        told: &[Told],
    ) -> Result<(), Refusal> {
        match plan {
            Plan::Drop {
                group,
                process,
                real,
            } => self.settle_drop(index, group, process, real, told).await,
            Plan::Dissolve {
                group,
                reals,
                wording,
            } => {
                self.settle_dissolve(index, group, reals, *wording, told)
                    .await
            }
            _ => self.settle_addition(index, plan, told).await,
        }
    }

    async fn settle_drop(
        &mut self,
        index: usize,
        group: &str,
        process: &str,
        real: &str,
        told: &[Told],
    ) -> Result<(), Refusal> {
        let left = || Event::Left {
            group: group.to_owned(),
            process: process.to_owned(),
        };
        match told.first() {
            Some(Err(told)) if told.code == STILL_RUNNING => {
                let name = self.still_running(process, real).await?;
                self.refuse(index, fault(STILL_RUNNING, name));
            }
            Some(Err(told)) if told.code == BAD_NAME => {
                self.twiddler.say_gone(&[left()], Cause::Removed);
                self.twiddler.doubt();
                self.finish(index, vec![left()]);
                self.refuse(index, fault(BAD_NAME, process));
            }
            Some(Err(told)) => self.refuse(index, told.clone()),
            _ => self.finish(index, vec![left()]),
        }
        Ok(())
    }

    /// What keeps the daemon from removing the real group of `process`: that, or a hidden process that
    /// somebody has started straight on the daemon, which is told to stop.
    async fn still_running(&self, process: &str, real: &str) -> Result<String, Refusal> {
        let question = |process: &str| Question::Process {
            real: real.to_owned(),
            process: process.to_owned(),
        };
        let questions: Vec<Question> = self.twiddler.with_registry(|registry| {
            let hidden = registry.hidden().filter(|(held, _, _)| *held == real);
            hidden.map(|(_, hidden, _)| question(hidden)).collect()
        });
        let answers = ask(self.twiddler, questions).await?;
        let mut running = answers.processes.values().filter(|it| !it.is_stopped());
        let Some(found) = running.next() else {
            return Ok(process.to_owned());
        };
        let name = format!("{}:{}", found.real, found.process);
        tracing::warn!(
            process = name,
            "somebody started a process that was removed: stopping it"
        );
        self.twiddler
            .stop(std::iter::once(found).chain(running))
            .await?;
        Ok(name)
    }

    async fn settle_dissolve(
        &mut self,
        index: usize,
        group: &str,
        reals: &[String],
        wording: Wording,
        told: &[Told],
    ) -> Result<(), Refusal> {
        let (kept, gone): (Vec<_>, Vec<_>) = reals
            .iter()
            .zip(told)
            .partition(|(_, told)| matches!(told, Err(told) if told.code != BAD_NAME));
        let Some((first, _)) = kept.first() else {
            let name = group.to_owned();
            self.finish(index, vec![Event::GroupGone { name }]);
            return Ok(());
        };
        let gone: Vec<&str> = gone.iter().map(|(real, _)| real.as_str()).collect();
        let lost = self.twiddler.add_back(&gone).await?;
        let name = match wording {
            Wording::Process => self.twiddler.with_registry(|registry| {
                let held = registry.members_in(first).next();
                held.map_or_else(|| (*first).clone(), |member| member.process.clone())
            }),
            Wording::Group => group.to_owned(),
        };
        self.finish(index, lost);
        self.refuse(index, fault(STILL_RUNNING, name));
        Ok(())
    }

    async fn settle_addition(
        &mut self,
        index: usize,
        plan: &Plan,
        told: &[Told],
    ) -> Result<(), Refusal> {
        let added = match plan.recreates() {
            Some(_) => told.get(1..).unwrap_or_default(),
            None => told,
        };
        let failed = added.iter().find(|added| match plan {
            // Whoever else read the file meanwhile may have added what is in it.
            Plan::Place { .. } => !is_there(added),
            _ => added.is_err(),
        });
        let Some(Err(failed)) = failed else {
            self.starts |= plan.autostarts();
            let mut events = plan.events();
            events.extend(self.uncovered(plan));
            self.finish(index, events);
            return Ok(());
        };
        let is_cleared = plan.recreates().is_some() && matches!(told.first(), Some(Ok(_)));
        self.undo(plan, is_cleared, added).await?;
        match plan {
            // It is made anew, and empty, which is what was wanted.
            Plan::Reset { .. } if is_cleared => self.finish(index, plan.events()),
            _ => self.refuse(index, addition_fault(plan, failed, told.first())),
        }
        Ok(())
    }

    /// A group that is made anew holds no hidden processes any more.
    fn uncovered(&self, plan: &Plan) -> Vec<Event> {
        let Some((group, _)) = plan.recreates() else {
            return Vec::new();
        };
        self.twiddler.with_registry(|registry| {
            registry
                .hidden()
                .filter(|(hidden, _, _)| *hidden == group)
                .map(|(group, process, _)| Event::Shown {
                    group: group.to_owned(),
                    process: process.to_owned(),
                })
                .collect()
        })
    }

    /// Takes away what was added of a plan that failed half way, and gives back what was removed.
    async fn undo(&self, plan: &Plan, is_cleared: bool, added: &[Told]) -> Result<(), Refusal> {
        if let Some((group, text)) = plan.recreates()
            && is_cleared
        {
            return self.twiddler.add_read(&text, &[group]).await;
        }
        if let Plan::Place { real, .. } = plan
            && added.first().is_some_and(is_there)
        {
            let real = || vec![real.as_str().into()];
            let calls = [("supervisor.stopProcessGroup", real()), (REMOVE, real())];
            self.twiddler.multicall(&calls).await?;
        }
        Ok(())
    }
}

/// Whether a group that was to be added is there now.
fn is_there(told: &Told) -> bool {
    match told {
        Ok(_) => true,
        Err(told) => told.code == ALREADY_ADDED,
    }
}

/// What a client is told when the daemon did not add a group that it has read; `first` is what it
/// said before that, where the group was to be made anew.
fn addition_fault(plan: &Plan, told: &Fault, first: Option<&Told>) -> Fault {
    match plan {
        Plan::Reset { process, .. } if matches!(first, Some(Err(first)) if first.code == STILL_RUNNING) => {
            fault(STILL_RUNNING, process)
        }
        Plan::Create { group, .. } if told.code == ALREADY_ADDED => fault(BAD_NAME, group),
        _ if told.code == SHUTDOWN_STATE => told.clone(),
        _ => fault(
            FAILED,
            format!("the group changed meanwhile, call again ({})", told.text),
        ),
    }
}
