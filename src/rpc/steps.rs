//! The steps of `supervisorctl update`: a group is stopped, removed and added again.
//!
//! A step restarts only what changed where that is wanted, and leaves alone what was added where it can
//! be told from a call of somebody who means the whole group. Where it cannot, what was added comes back
//! with its group.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Response, StatusCode};

use super::under_way::{How, Place, PutBy, Steps, goes_on};
use super::{Answer, Caller, Rpc, collect, reply, share, with_answer};
use crate::daemon::StatusEntry;
use crate::failure::HttpResult;
use crate::fault::SUCCESS;
use crate::registry::Registry;
use crate::twiddler::{ChangeError, Epoch};
use crate::xmlrpc::{self, MethodCall, Value};

/// A call that may be a step of an update.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Stop,
    Remove,
    Add,
}

impl Step {
    fn named(name: &str) -> Option<(Self, usize)> {
        Some(match name {
            "stopProcessGroup" => (Step::Stop, 2),
            "removeProcessGroup" => (Step::Remove, 1),
            "addProcessGroup" => (Step::Add, 1),
            _ => return None,
        })
    }

    /// Whether calls of this method may be steps.
    pub(super) fn is_one(name: &str) -> bool {
        Step::named(name).is_some()
    }

    /// The step that a call may be, and the group that it is about.
    pub(super) fn read<'p>(name: &str, params: &'p [Value]) -> Option<(Self, &'p str)> {
        let (step, most) = Step::named(name)?;
        let group = params.first().and_then(Value::as_str)?;
        (params.len() <= most).then_some((step, group))
    }
}

impl Caller<'_> {
    /// Where a call comes from that need not come by one connection.
    pub(super) fn place(&self) -> Place {
        let credentials = self.head.headers.get(AUTHORIZATION).cloned();
        (self.record().peer().without_port(), credentials)
    }
}

impl Rpc {
    /// Answers a call that may be a step of an update.
    pub(super) async fn step(
        &self,
        caller: &Caller<'_>,
        (step, group): (Step, &str),
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let steps = caller.update.steps(&self.under_way, &caller.place());
        let steps = steps.filter(|steps| steps.may_go_on(group));
        match step {
            Step::Stop => self.stop(caller, group, steps, call, body).await,
            Step::Remove => self.remove(caller, group, steps, call, body).await,
            Step::Add => self.add(caller, group, steps, call, body).await,
        }
    }

    async fn stop(
        &self,
        caller: &Caller<'_>,
        group: &str,
        steps: Option<Arc<Steps>>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        if let Some(steps) = &steps
            && self.replaces_steps(group)
            && let Some(answer) = self.stop_what_changed(caller, group, steps).await
        {
            return Ok(reply(answer));
        }
        let is_told = caller.update.covers(group) || self.updates.is_live();
        if let Some(steps) = steps.filter(|_| is_told) {
            return self.stop_own(caller, group, &steps, call, body).await;
        }
        let response = self.answer_supervisor(caller, "stopProcessGroup", call, body);
        self.note_stopped(group, response.await?).await
    }

    /// Stops what has to stop, and says who that was; none where the group can only be stopped as a
    /// whole.
    async fn stop_what_changed(
        &self,
        caller: &Caller<'_>,
        group: &str,
        steps: &Steps,
    ) -> Option<Answer> {
        if let Err(failure) = self.gate(caller).await {
            return Some(Err(failure));
        }
        match self.updates.stop_step(group, self.judged(caller)).await {
            Ok(Some(stopped)) => {
                steps.take(group, How::Changed);
                Some(Ok(statuses(&stopped)))
            }
            Ok(None) => None,
            Err(refusal) => Some(Err(self.refused(caller, refusal).await)),
        }
    }

    /// Stops what the files define of a group.
    async fn stop_own(
        &self,
        caller: &Caller<'_>,
        group: &str,
        steps: &Steps,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let share = share::of_call(&call.method, &call.params);
        let response = self.forward(caller, body, share).await?;
        if response.status() == StatusCode::OK {
            let stopped = self.updates.stop_placed(group, self.judged(caller)).await;
            if let Err(refusal) = stopped {
                return Err(self.refused(caller, refusal).await);
            }
        }
        steps.take(group, How::Own);
        Ok(response)
    }

    /// Takes note of who ran of those that were added, where the group may come again.
    async fn note_stopped(&self, group: &str, response: Response<Body>) -> HttpResult {
        if !self.under_way.has_changed(group) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let body = collect(body).await?;
        if let Ok(Ok(statuses)) = xmlrpc::read::response(&body) {
            let statuses = StatusEntry::read_all(&statuses).into_iter();
            let stopped = statuses.filter(|entry| entry.status == SUCCESS);
            let stopped: BTreeSet<String> = stopped.map(|entry| entry.name).collect();
            let mut ran = self.updates.added_processes(group);
            ran.retain(|process| stopped.contains(process));
            self.under_way.note_stopped(group, ran);
        }
        Ok(Response::from_parts(head, Body::from(body)))
    }

    async fn remove(
        &self,
        caller: &Caller<'_>,
        group: &str,
        steps: Option<Arc<Steps>>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let how = steps.as_ref().and_then(|steps| steps.how(group));
        if let (Some(How::Changed), Some(steps)) = (how, &steps) {
            steps.touch();
            self.put_by(caller, group, Some(steps.clone()));
            return Ok(reply(Ok(Value::Bool(true))));
        }
        if how == Some(How::Own) || steps.is_some() && caller.update.covers(group) {
            return self.remove_own(caller, group, call, body).await;
        }
        if !self.under_way.was_stopped(group) || self.updates.added_processes(group).is_empty() {
            return self
                .answer_supervisor(caller, "removeProcessGroup", call, body)
                .await;
        }
        // What lives in the group itself would be gone with it.
        if self.updates.holds_added(group) {
            self.gate(caller).await?;
            self.put_by(caller, group, None);
            return Ok(reply(Ok(Value::Bool(true))));
        }
        let response = self.remove_own(caller, group, call, body).await?;
        let (response, is_done) = is_done(response).await?;
        if is_done {
            self.put_by(caller, group, None);
        }
        Ok(response)
    }

    /// Removes what the files define of a group.
    async fn remove_own(
        &self,
        caller: &Caller<'_>,
        group: &str,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let epoch = self.twiddler.epoch();
        let (judged, record) = (self.judged(caller), caller.record());
        let removed = self.updates.remove_placed(group, judged, &record).await;
        if let Err(refusal) = removed {
            return Err(self.refused(caller, refusal).await);
        }
        let share = share::of_call(&call.method, &call.params);
        let response = self.forward(caller, body, share).await?;
        self.show_all_of(group, response, epoch).await
    }

    /// Removes the group for good if nobody adds it again in time.
    fn put_by(&self, caller: &Caller<'_>, group: &str, steps: Option<Arc<Steps>>) {
        let put_by = self.under_way.put_by(group, steps);
        let (rpc, group, epoch) = (self.clone(), group.to_owned(), self.twiddler.epoch());
        let (judged, record) = (self.judged(caller), caller.record());
        tokio::spawn(async move {
            tokio::time::sleep(goes_on()).await;
            if !rpc.under_way.give_up(&group, &put_by) || !rpc.twiddler.is_still(epoch) {
                return;
            }
            let is_live = put_by.steps.is_some();
            if let Some(steps) = &put_by.steps {
                steps.give_back(&group);
            }
            let given_up = rpc
                .updates
                .complete_removal(&group, is_live, judged, &record);
            if let Err(error) = given_up.await {
                tracing::warn!(group, reason = %error, "cannot carry out the removal of a group that was not added again");
            }
        });
    }

    async fn add(
        &self,
        caller: &Caller<'_>,
        group: &str,
        steps: Option<Arc<Steps>>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let how = steps.as_ref().and_then(|steps| steps.how(group));
        let is_taken = how == Some(How::Changed) || self.under_way.is_put_by_live(group);
        let put_by = self.under_way.take_back(group);
        let is_ours = is_taken || self.updates.has_clashes(group);
        let added = if is_ours {
            self.add_what_changed(caller, group).await
        } else {
            self.answer_supervisor(caller, "addProcessGroup", call, body)
                .await
        };
        let (response, is_done) = match added {
            Ok(response) => is_done(response).await?,
            Err(failure) => {
                self.put_back_by(caller, group, put_by);
                return Err(failure);
            }
        };
        if !is_done {
            self.put_back_by(caller, group, put_by);
            return Ok(response);
        }
        if !is_ours {
            self.updates.after_add(group);
        }
        if let Some(steps) = &steps {
            steps.give_back(group);
            steps.touch();
        }
        if let Some(put_by) = put_by {
            self.start_again(caller, group, &put_by).await;
        }
        Ok(response)
    }

    async fn add_what_changed(&self, caller: &Caller<'_>, group: &str) -> HttpResult {
        self.gate(caller).await?;
        let (judged, record) = (self.judged(caller), caller.record());
        match self.updates.add_step(group, judged, &record).await {
            Ok(()) => Ok(reply(Ok(Value::Bool(true)))),
            Err(refusal) => Err(self.refused(caller, refusal).await),
        }
    }

    fn put_back_by(&self, caller: &Caller<'_>, group: &str, put_by: Option<Arc<PutBy>>) {
        if let Some(put_by) = put_by {
            self.under_way
                .note_stopped(group, put_by.ran.iter().cloned());
            self.put_by(caller, group, put_by.steps.clone());
        }
    }

    /// Those members run again that ran when their group was stopped.
    async fn start_again(&self, caller: &Caller<'_>, group: &str, put_by: &PutBy) {
        let ran = put_by.ran.iter();
        let ran = ran.map(|process| (group.to_owned(), process.clone()));
        let started = self
            .updates
            .start_again(ran.collect(), self.judged(caller))
            .await;
        if let Err(error) = started {
            tracing::warn!(group, reason = %error, "what was added to the group does not run again");
        }
    }

    /// An update has put these groups in force, all where none is named.
    pub(super) async fn take_back(&self, caller: &Caller<'_>, groups: &[String]) {
        for group in self.under_way.groups_put_by() {
            if (groups.is_empty() || groups.contains(&group))
                && let Some(put_by) = self.under_way.take_back(&group)
            {
                self.start_again(caller, &group, &put_by).await;
            }
        }
    }

    fn replaces_steps(&self, group: &str) -> bool {
        let is_added = |registry: &Registry| registry.added_group(group).is_some();
        self.updates.is_live() || self.twiddler.with_registry(is_added)
    }

    /// With `live_update`, a group has changed exactly if an update would do something about it.
    async fn put_pending(
        &self,
        caller: &Caller<'_>,
        reloaded: &mut Value,
    ) -> Result<(), ChangeError> {
        let pending = self.updates.pending(self.judged(caller)).await?;
        let Value::Array(outer) = reloaded else {
            return Ok(());
        };
        if let Some(Value::Array(lists)) = outer.first_mut()
            && let Some(Value::Array(changed)) = lists.get_mut(1)
        {
            *changed = pending.into_iter().map(Value::from).collect();
        }
        Ok(())
    }

    /// The reply of `reloadConfig` where the steps of an update restart only what changed.
    pub(super) async fn live_reload(
        &self,
        caller: &Caller<'_>,
        response: Response<Body>,
    ) -> HttpResult {
        if response.status() != StatusCode::OK {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let body = collect(body).await?;
        let Ok(Ok(mut reloaded)) = xmlrpc::read::response(&body) else {
            return Ok(Response::from_parts(head, Body::from(body)));
        };
        if let Err(refusal) = self.put_pending(caller, &mut reloaded).await {
            return Err(self.refused(caller, refusal).await);
        }
        self.under_way
            .begin(caller.update, caller.place(), &reloaded);
        Ok(with_answer(head, Ok(reloaded)))
    }

    /// A group that was removed comes back as the user's file has it, with what was hidden.
    async fn show_all_of(&self, group: &str, response: Response<Body>, epoch: Epoch) -> HttpResult {
        let (response, is_done) = is_done(response).await?;
        if is_done {
            let hidden: Vec<_> = self.twiddler.with_registry(|registry| {
                let hidden = registry.hidden().filter(|(hidden, _, _)| *hidden == group);
                let names = hidden.map(|(_, process, _)| (group.to_owned(), process.to_owned()));
                names.collect()
            });
            self.twiddler.show(epoch, hidden).await;
        }
        Ok(response)
    }
}

/// Whether what was asked for was done.
async fn is_done(
    response: Response<Body>,
) -> Result<(Response<Body>, bool), crate::failure::Failure> {
    let (head, body) = response.into_parts();
    let body = collect(body).await?;
    let is_done =
        head.status == StatusCode::OK && matches!(xmlrpc::read::response(&body), Ok(Ok(_)));
    Ok((Response::from_parts(head, Body::from(body)), is_done))
}

/// What `stopProcessGroup` says of those that it has stopped.
fn statuses(stopped: &[(String, String)]) -> Value {
    let status = |(group, name): &(String, String)| {
        let entry = StatusEntry {
            group: group.clone(),
            name: name.clone(),
            status: SUCCESS,
            description: "OK".to_owned(),
        };
        entry.into_value()
    };
    Value::Array(stopped.iter().map(status).collect())
}
