//! One transaction: plans on their way through the daemon.
//!
//! Stages one generated file, lets the daemon read it and take from it, and says what became of
//! each plan. What one did wrong is taken out and the others are tried again.

use std::collections::HashSet;

use super::change::{Outcome, Refusal, Wording, blames, not_read, reread_fault};
use super::persist::Kept;
use super::plan::{self, Plan, Planner};
use super::registry::Event;
use super::{OnDisk, Twiddler};
use crate::daemon::fault::{ALREADY_ADDED, BAD_NAME, FAILED, SHUTDOWN_STATE, STILL_RUNNING, fault};
use crate::program;
use crate::seam;
use crate::xmlrpc::{Fault, Value};

/// Plans on their way through the daemon.
pub(super) struct Transaction<'a> {
    twiddler: &'a Twiddler,
    /// The daemon's life in which the plans were made. They are nothing for another one.
    life: u64,
    plans: Vec<Option<Plan>>,
    outcomes: Vec<Outcome>,
    /// What happened in this round: noted in one piece, because that ends what was begun.
    events: Vec<Event>,
    /// The plans that were carried out in this round.
    finished: Vec<usize>,
}

/// What a call of the transaction's multicall is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Reload,
    Marker,
    /// Takes the real group away so that it can be added anew.
    Clear(usize),
    Add(usize),
    Remove(usize),
}

impl<'a> Transaction<'a> {
    pub(super) fn new(
        twiddler: &'a Twiddler,
        life: u64,
        plans: Vec<Result<Plan, Refusal>>,
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
            events: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Goes on until every plan is carried out or refused; each round without one that spoils it
    /// settles all.
    pub(super) async fn run(mut self) -> Vec<Outcome> {
        while self.plans.iter().any(Option::is_some) {
            if let Err(refusal) = self.round().await {
                self.refuse_rest(&refusal);
            }
        }
        self.outcomes
    }

    async fn round(&mut self) -> Result<(), Refusal> {
        self.settle_hides().await?;
        self.secure_recreated().await?;
        let Script { text, calls, roles } = self.compose();
        if calls.is_empty() {
            return Ok(());
        }
        let events: Vec<Event> = self.pending().flat_map(|(_, plan)| plan.events()).collect();
        let marker = roles
            .contains(&Role::Marker)
            .then(|| self.twiddler.marker_name());
        seam::reach("planned");
        self.twiddler.begin(marker.as_deref(), &events)?;
        seam::reach("begun");
        let (kept, staged) = match self.put_in_place(&text, &events).await {
            Ok(ready) => ready,
            Err(refusal) => {
                self.end(None)?;
                return Err(refusal);
            }
        };
        let results = match self.carry_out(&calls, staged).await {
            Ok(results) => results,
            Err(refusal) => {
                let marker = marker.map(Event::Marker);
                let open = marker.into_iter().chain(events).collect();
                self.twiddler.leave_open(self.life, open);
                return Err(refusal);
            }
        };
        let settled = self.settle(&roles, results).await;
        if settled.is_err() {
            let open = self.pending().flat_map(|(_, plan)| plan.events()).collect();
            self.twiddler.leave_open(self.life, open);
        }
        self.end(kept)?;
        seam::reach("kept");
        settled
    }

    /// The daemon's answers, if they are of the life in which it was decided what to ask.
    async fn carry_out(
        &self,
        calls: &[(&str, Vec<Value>)],
        staged: Option<OnDisk>,
    ) -> Result<Vec<Result<Value, Fault>>, Refusal> {
        seam::reach("staged");
        let results = self.twiddler.multicall(calls).await?;
        seam::reach("answered");
        drop(staged);
        seam::reach("taken away");
        self.twiddler.lived_on_since(self.life).await?;
        Ok(results)
    }

    /// Takes note of what came of this round. What was done in a former life of the daemon has come
    /// to nothing.
    fn end(&mut self, kept: Option<Kept>) -> Result<(), Refusal> {
        let events = std::mem::take(&mut self.events);
        let finished = std::mem::take(&mut self.finished);
        let ended = self.twiddler.end(self.life, events);
        seam::reach("done");
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

    /// All that must be on disk before the daemon is asked, which must still be in the life in which
    /// it was decided what to ask.
    async fn put_in_place(
        &self,
        text: &str,
        events: &[Event],
    ) -> Result<(Option<Kept>, Option<OnDisk>), Refusal> {
        self.twiddler.lived_on_since(self.life).await?;
        let kept = self.twiddler.prepare_kept(events)?;
        seam::reach("prepared");
        if text.is_empty() {
            return Ok((kept, None));
        }
        let mut staged = self.twiddler.stage(text).await?;
        if !self.twiddler.is_settled() {
            // Not while a file is there: finding out about the daemon's life may need one too.
            drop(staged);
            self.twiddler.lived_on_since(self.life).await?;
            staged = self.twiddler.stage(text).await?;
        }
        Ok((kept, Some(staged)))
    }

    /// Hiding asks nothing of the daemon, but must be known to be about its present life.
    async fn settle_hides(&mut self) -> Result<(), Refusal> {
        let hides: Vec<(usize, Vec<Event>)> = self
            .pending()
            .filter(|(_, plan)| matches!(plan, Plan::Hide { .. }))
            .map(|(index, plan)| (index, plan.events()))
            .collect();
        if hides.is_empty() {
            return Ok(());
        }
        if self.twiddler.needs_marker() {
            self.twiddler.mark().await?;
        }
        let events: Vec<Event> = hides
            .iter()
            .flat_map(|(_, events)| events.clone())
            .collect();
        self.twiddler.begin(None, &events)?;
        seam::reach("hiding");
        let kept = match self.put_in_place("", &events).await {
            Ok((kept, _)) => kept,
            Err(refusal) => {
                self.end(None)?;
                return Err(refusal);
            }
        };
        for (index, events) in hides {
            self.finish(index, events);
        }
        self.end(kept)
    }

    /// Before a real group is made anew, the daemon must have read what it shall be if that fails
    /// half way: its multicall goes on after a fault, and then adds from what it read last.
    async fn secure_recreated(&mut self) -> Result<(), Refusal> {
        let groups: Vec<(usize, String, String)> = self
            .pending()
            .filter_map(|(index, plan)| {
                plan.recreates()
                    .map(|(group, text)| (index, group.to_owned(), text))
            })
            .collect();
        if groups.is_empty() {
            return Ok(());
        }
        let text: String = groups.iter().map(|(_, _, text)| text.as_str()).collect();
        let staged = self.twiddler.stage(&text).await?;
        let reload = self.twiddler.call("supervisor.reloadConfig", &[]).await?;
        drop(staged);
        let different = Reloaded::read(&reload);
        for (index, group, _) in groups {
            if different.removed.contains(&group) {
                self.refuse(index, not_read(self.twiddler));
            } else {
                self.place_if_not_empty(index, &group, &different);
            }
        }
        Ok(())
    }

    /// The daemon finds a group changed by an empty section when it is not empty.
    fn place_if_not_empty(&mut self, index: usize, group: &str, reloaded: &Reloaded) {
        let fills = matches!(self.plans[index], Some(Plan::Fill { .. }));
        if fills && (reloaded.changed.contains(group) || reloaded.added.contains(group)) {
            let plan = self.plans[index].take();
            self.plans[index] = plan
                .map(|plan| Planner::place_instead(plan, |group| self.twiddler.take_number(group)));
        }
    }

    /// The text to stage and the calls to make for all that is pending.
    fn compose(&self) -> Script {
        let mut script = Script::default();
        if self.pending().any(|(_, plan)| plan.needs_reload()) {
            script.push(Role::Reload, "supervisor.reloadConfig", None);
            if self.twiddler.needs_marker() {
                let marker = self.twiddler.marker_name();
                script.text += &program::render_group(&marker, plan::DEFAULT_PRIORITY, &[]);
                script.push(Role::Marker, ADD, Some(&marker));
            }
        }
        for (index, plan) in self.pending() {
            script.text += &plan.sections();
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

    async fn settle(
        &mut self,
        roles: &[Role],
        results: Vec<Result<Value, Fault>>,
    ) -> Result<(), Refusal> {
        let reload = roles
            .iter()
            .zip(&results)
            .find(|(role, _)| **role == Role::Reload);
        let failed = reload.and_then(|(_, result)| result.as_ref().err().cloned());
        let reloaded = reload
            .and_then(|(_, result)| result.as_ref().ok())
            .map(Reloaded::read)
            .unwrap_or_default();
        if failed.is_none()
            && let Some((_, Ok(_))) = roles
                .iter()
                .zip(&results)
                .find(|(r, _)| **r == Role::Marker)
        {
            self.events.push(Event::Marker(self.twiddler.marker_name()));
        }
        self.settle_removals(roles, &results).await?;
        match failed {
            None => self.settle_additions(roles, &results, &reloaded).await,
            Some(told) => {
                self.undo_stray_additions(roles, &results).await?;
                self.blame(&told);
                Ok(())
            }
        }
    }

    /// Real groups that were to go: each says for itself what became of it.
    async fn settle_removals(
        &mut self,
        roles: &[Role],
        results: &[Result<Value, Fault>],
    ) -> Result<(), Refusal> {
        for index in 0..self.plans.len() {
            let told = results_for(Role::Remove(index), roles, results);
            match self.plans[index].clone() {
                Some(Plan::Drop { group, process, .. }) => {
                    self.settle_drop(index, group, process, &told);
                }
                Some(Plan::Dissolve {
                    group,
                    reals,
                    wording,
                }) => {
                    self.settle_dissolve(index, &group, &reals, wording, &told)
                        .await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn settle_drop(
        &mut self,
        index: usize,
        group: String,
        process: String,
        told: &[&Result<Value, Fault>],
    ) {
        match told.first() {
            Some(Err(told)) if told.code == STILL_RUNNING => {
                self.refuse(index, fault(STILL_RUNNING, process));
            }
            Some(Err(told)) if told.code == BAD_NAME => {
                let refusal = fault(BAD_NAME, &process);
                self.finish(index, vec![Event::Left { group, process }]);
                self.refuse(index, refusal);
            }
            Some(Err(told)) => self.refuse(index, told.clone()),
            _ => self.finish(index, vec![Event::Left { group, process }]),
        }
    }

    async fn settle_dissolve(
        &mut self,
        index: usize,
        group: &str,
        reals: &[String],
        wording: Wording,
        told: &[&Result<Value, Fault>],
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
                let owner = registry.owner(first);
                owner.map_or((*first).clone(), |(_, process)| process.to_owned())
            }),
            Wording::Group => group.to_owned(),
        };
        self.finish(index, lost);
        self.refuse(index, fault(STILL_RUNNING, name));
        Ok(())
    }

    async fn settle_additions(
        &mut self,
        roles: &[Role],
        results: &[Result<Value, Fault>],
        reloaded: &Reloaded,
    ) -> Result<(), Refusal> {
        for index in 0..self.plans.len() {
            let Some(plan) = self.plans[index].clone() else {
                continue;
            };
            let cleared = results_for(Role::Clear(index), roles, results);
            let added = results_for(Role::Add(index), roles, results);
            match added.iter().find_map(|result| result.as_ref().err()) {
                None => {
                    let mut events = plan.events();
                    events.extend(self.uncovered(&plan));
                    self.finish(index, events);
                }
                Some(told) => {
                    let told = self.addition_fault(&plan, told, &cleared, reloaded);
                    self.undo(&plan, &cleared, &added).await?;
                    match plan {
                        // It is made anew, and empty, which is what was wanted.
                        Plan::Reset { .. } if is_cleared(&cleared) => {
                            self.finish(index, plan.events());
                        }
                        _ => self.refuse(index, told),
                    }
                }
            }
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

    fn addition_fault(
        &self,
        plan: &Plan,
        told: &Fault,
        cleared: &[&Result<Value, Fault>],
        reloaded: &Reloaded,
    ) -> Fault {
        match plan {
            Plan::Reset { process, .. } if matches!(cleared.first(), Some(Err(told)) if told.code == STILL_RUNNING) => {
                fault(STILL_RUNNING, process)
            }
            Plan::Create { group, .. } if told.code == ALREADY_ADDED => fault(BAD_NAME, group),
            Plan::Place { members, .. }
                if members.iter().any(|m| !reloaded.added.contains(&m.real)) =>
            {
                not_read(self.twiddler)
            }
            Plan::Create { group, .. } if !reloaded.added.contains(group) => {
                not_read(self.twiddler)
            }
            _ if told.code == SHUTDOWN_STATE => told.clone(),
            _ => fault(
                FAILED,
                format!("the group changed meanwhile, call again ({})", told.text),
            ),
        }
    }

    /// Takes away what was added of a plan that failed half way, and gives back what was removed.
    async fn undo(
        &self,
        plan: &Plan,
        cleared: &[&Result<Value, Fault>],
        added: &[&Result<Value, Fault>],
    ) -> Result<(), Refusal> {
        if let Some((group, text)) = plan.recreates()
            && is_cleared(cleared)
        {
            return self.twiddler.add_read(&text, &[group]).await;
        }
        let Plan::Place { members, .. } = plan else {
            return Ok(());
        };
        let calls: Vec<(&str, Vec<Value>)> = members
            .iter()
            .zip(added)
            .filter(|(_, added)| added.is_ok())
            .flat_map(|(member, _)| {
                let real = || vec![member.real.as_str().into()];
                [("supervisor.stopProcessGroup", real()), (REMOVE, real())]
            })
            .collect();
        self.twiddler.multicall(&calls).await?;
        Ok(())
    }

    /// After a reload that failed, the daemon adds from what it read before: a group that bears the
    /// name of one that was empty then.
    async fn undo_stray_additions(
        &self,
        roles: &[Role],
        results: &[Result<Value, Fault>],
    ) -> Result<(), Refusal> {
        let stray: Vec<(&str, Vec<Value>)> = self
            .pending()
            .filter_map(|(index, plan)| match plan {
                Plan::Create { group, .. }
                    if results_for(Role::Add(index), roles, results)
                        .iter()
                        .any(|result| result.is_ok()) =>
                {
                    Some((REMOVE, vec![group.as_str().into()]))
                }
                _ => None,
            })
            .collect();
        self.twiddler.multicall(&stray).await?;
        Ok(())
    }

    /// The daemon names one section that it does not take: its change is refused and the others go
    /// into the next round. A complaint about something else refuses all that need to be read.
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
        let reading: Vec<usize> = self
            .pending()
            .filter(|(_, plan)| plan.needs_reload())
            .map(|(index, _)| index)
            .collect();
        reading
            .into_iter()
            .for_each(|index| self.refuse(index, told.clone()));
    }
}

/// Whether the real group was taken away.
fn is_cleared(cleared: &[&Result<Value, Fault>]) -> bool {
    matches!(cleared.first(), Some(Ok(_)))
}

pub(super) const ADD: &str = "supervisor.addProcessGroup";

pub(super) const REMOVE: &str = "supervisor.removeProcessGroup";

/// The calls of one multicall, and the file that is there while they run.
#[derive(Default)]
pub(super) struct Script {
    text: String,
    calls: Vec<(&'static str, Vec<Value>)>,
    roles: Vec<Role>,
}

impl Script {
    fn push(&mut self, role: Role, method: &'static str, group: Option<&str>) {
        self.calls
            .push((method, group.into_iter().map(Value::from).collect()));
        self.roles.push(role);
    }

    fn plan(&mut self, index: usize, plan: &Plan) {
        match plan {
            Plan::Create { group, .. } => self.push(Role::Add(index), ADD, Some(group)),
            Plan::Fill { group, .. } | Plan::Reset { group, .. } => {
                self.push(Role::Clear(index), REMOVE, Some(group));
                self.push(Role::Add(index), ADD, Some(group));
            }
            Plan::Place { members, .. } => {
                for member in members {
                    self.push(Role::Add(index), ADD, Some(&member.real));
                }
            }
            Plan::Drop { real, .. } => self.push(Role::Remove(index), REMOVE, Some(real)),
            Plan::Dissolve { reals, .. } => {
                for real in reals {
                    self.push(Role::Remove(index), REMOVE, Some(real));
                }
            }
            Plan::Hide { .. } => {}
        }
    }
}

pub(super) fn results_for<'r>(
    wanted: Role,
    roles: &[Role],
    results: &'r [Result<Value, Fault>],
) -> Vec<&'r Result<Value, Fault>> {
    roles
        .iter()
        .zip(results)
        .filter(|(role, _)| **role == wanted)
        .map(|(_, result)| result)
        .collect()
}

/// The answer of `reloadConfig`: what the files have and the daemon has not, and so on.
#[derive(Debug, Default)]
pub(super) struct Reloaded {
    pub(super) added: HashSet<String>,
    pub(super) changed: HashSet<String>,
    removed: HashSet<String>,
}

impl Reloaded {
    /// Reads `[[added, changed, removed]]`.
    pub(super) fn read(value: &Value) -> Self {
        let lists = value
            .as_array()
            .and_then(|outer| outer.first())
            .and_then(Value::as_array);
        let names = |at: usize| {
            lists
                .and_then(|lists| lists.get(at))
                .and_then(Value::as_array)
                .unwrap_or_default()
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        };
        Reloaded {
            added: names(0),
            changed: names(1),
            removed: names(2),
        }
    }
}
