//! The steps of `supervisorctl update`: it stops, removes and adds each group that differs.
//!
//! With `live_update`, the steps restart only the processes that changed. Otherwise, steps that can be told
//! from calls about the whole group leave added processes alone. Where they cannot be told apart, added
//! processes are added again with their group.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Response, StatusCode};

use super::update_sessions::{
    CallOrigin, DeferredRemoval, StopScope, UpdateSession, session_timeout,
};
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
    /// The step of a method, and its largest number of parameters.
    fn of_method(name: &str) -> Option<(Self, usize)> {
        Some(match name {
            "stopProcessGroup" => (Step::Stop, 2),
            "removeProcessGroup" => (Step::Remove, 1),
            "addProcessGroup" => (Step::Add, 1),
            _ => return None,
        })
    }

    /// Whether calls of this method may be steps.
    pub(super) fn is_one(name: &str) -> bool {
        Step::of_method(name).is_some()
    }

    /// The step that a call may be, and the group that it is about.
    pub(super) fn read<'p>(name: &str, params: &'p [Value]) -> Option<(Self, &'p str)> {
        let (step, most) = Step::of_method(name)?;
        let group = params.first().and_then(Value::as_str)?;
        (params.len() <= most).then_some((step, group))
    }
}

impl Caller<'_> {
    /// The peer and credentials of the call.
    pub(super) fn origin(&self) -> CallOrigin {
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
        let sessions = &self.update_sessions;
        let session = caller.update.session(sessions, &caller.origin());
        let session = session.filter(|session| session.may_continue(group));
        match step {
            Step::Stop => self.stop(caller, group, session, call, body).await,
            Step::Remove => self.remove(caller, group, session, call, body).await,
            Step::Add => self.add(caller, group, session, call, body).await,
        }
    }

    async fn stop(
        &self,
        caller: &Caller<'_>,
        group: &str,
        session: Option<Arc<UpdateSession>>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        if let Some(session) = &session
            && self.replaces_steps(group)
            && let Some(answer) = self.stop_changed(caller, group, session).await
        {
            return Ok(reply(answer));
        }
        let is_step = caller.update.covers(group) || self.updates.is_live();
        if let Some(session) = session.filter(|_| is_step) {
            return self
                .stop_configured(caller, group, &session, call, body)
                .await;
        }
        let response = self.answer_supervisor(caller, "stopProcessGroup", call, body);
        self.record_group_stop(group, response.await?).await
    }

    /// Stops the processes that changed, and returns their status structs; none if the group can only be
    /// stopped as a whole.
    async fn stop_changed(
        &self,
        caller: &Caller<'_>,
        group: &str,
        session: &UpdateSession,
    ) -> Option<Answer> {
        if let Err(failure) = self.authorize(caller).await {
            return Some(Err(failure));
        }
        match self
            .updates
            .stop_step(group, self.authorization_of(caller))
            .await
        {
            Ok(Some(stopped)) => {
                session.record_stop(group, StopScope::Changed);
                Some(Ok(statuses(&stopped)))
            }
            Ok(None) => None,
            Err(error) => Some(Err(self.failure_for(caller, error).await)),
        }
    }

    /// Stops the processes of a group that the files define.
    async fn stop_configured(
        &self,
        caller: &Caller<'_>,
        group: &str,
        session: &UpdateSession,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let share = share::of_call(&call.method, &call.params);
        let response = self.forward(caller, body, share).await?;
        if response.status() == StatusCode::OK {
            let stopped = self
                .updates
                .stop_placed(group, self.authorization_of(caller))
                .await;
            if let Err(error) = stopped {
                return Err(self.failure_for(caller, error).await);
            }
        }
        session.record_stop(group, StopScope::Configured);
        Ok(response)
    }

    /// Records which added processes a stop of the whole group has stopped, if a client may add the group
    /// again.
    async fn record_group_stop(&self, group: &str, response: Response<Body>) -> HttpResult {
        if !self.update_sessions.has_changed(group) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let body = collect(body).await?;
        if let Ok(Ok(statuses)) = xmlrpc::read::response(&body) {
            let statuses = StatusEntry::read_all(&statuses).into_iter();
            let stopped = statuses.filter(|entry| entry.status == SUCCESS);
            let stopped: BTreeSet<String> = stopped.map(|entry| entry.name).collect();
            let mut running = self.updates.added_processes(group);
            running.retain(|process| stopped.contains(process));
            self.update_sessions.record_group_stop(group, running);
        }
        Ok(Response::from_parts(head, Body::from(body)))
    }

    async fn remove(
        &self,
        caller: &Caller<'_>,
        group: &str,
        session: Option<Arc<UpdateSession>>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let scope = session
            .as_ref()
            .and_then(|session| session.stop_scope(group));
        if let (Some(StopScope::Changed), Some(session)) = (scope, &session) {
            session.record_step();
            self.defer_removal(caller, group, Some(session.clone()));
            return Ok(reply(Ok(Value::Bool(true))));
        }
        let is_step = session.is_some() && caller.update.covers(group);
        if scope == Some(StopScope::Configured) || is_step {
            return self.remove_configured(caller, group, call, body).await;
        }
        if !self.update_sessions.was_stopped(group)
            || self.updates.added_processes(group).is_empty()
        {
            return self
                .answer_supervisor(caller, "removeProcessGroup", call, body)
                .await;
        }
        // The daemon would remove added processes in the group itself with it.
        if self.updates.holds_added(group) {
            self.authorize(caller).await?;
            self.defer_removal(caller, group, None);
            return Ok(reply(Ok(Value::Bool(true))));
        }
        let response = self.remove_configured(caller, group, call, body).await?;
        let (response, is_successful) = is_successful(response).await?;
        if is_successful {
            self.defer_removal(caller, group, None);
        }
        Ok(response)
    }

    /// Removes the processes of a group that the files define.
    async fn remove_configured(
        &self,
        caller: &Caller<'_>,
        group: &str,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let epoch = self.twiddler.epoch();
        let (authorized, record) = (self.authorization_of(caller), caller.record());
        let removed = self.updates.remove_placed(group, authorized, &record).await;
        if let Err(error) = removed {
            return Err(self.failure_for(caller, error).await);
        }
        let share = share::of_call(&call.method, &call.params);
        let response = self.forward(caller, body, share).await?;
        self.unhide_group(group, response, epoch).await
    }

    /// Defers the removal of a group. If no client adds it before the session ends, it is removed.
    fn defer_removal(&self, caller: &Caller<'_>, group: &str, session: Option<Arc<UpdateSession>>) {
        let deferred = self.update_sessions.defer_removal(group, session);
        let (rpc, group, epoch) = (self.clone(), group.to_owned(), self.twiddler.epoch());
        let (authorized, record) = (self.authorization_of(caller), caller.record());
        tokio::spawn(async move {
            tokio::time::sleep(session_timeout()).await;
            if !rpc.update_sessions.expire(&group, &deferred)
                || !rpc.twiddler.is_current_epoch(epoch)
            {
                return;
            }
            let is_live = deferred.session.is_some();
            if let Some(session) = &deferred.session {
                session.forget_stop(&group);
            }
            let removal = rpc
                .updates
                .complete_removal(&group, is_live, authorized, &record);
            if let Err(error) = removal.await {
                tracing::warn!(group, reason = %error, "cannot remove a group that was not added again");
            }
        });
    }

    async fn add(
        &self,
        caller: &Caller<'_>,
        group: &str,
        session: Option<Arc<UpdateSession>>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        let scope = session
            .as_ref()
            .and_then(|session| session.stop_scope(group));
        let is_live =
            scope == Some(StopScope::Changed) || self.update_sessions.is_deferred_live(group);
        let deferred = self.update_sessions.cancel_removal(group);
        let applies_files = is_live || self.updates.has_clashes(group);
        let added = if applies_files {
            self.add_changed(caller, group).await
        } else {
            self.answer_supervisor(caller, "addProcessGroup", call, body)
                .await
        };
        let (response, is_successful) = match added {
            Ok(response) => is_successful(response).await?,
            Err(failure) => {
                self.defer_again(caller, group, deferred);
                return Err(failure);
            }
        };
        if !is_successful {
            self.defer_again(caller, group, deferred);
            return Ok(response);
        }
        if !applies_files {
            self.updates.after_add(group);
        }
        if let Some(session) = &session {
            session.forget_stop(group);
            session.record_step();
        }
        if let Some(deferred) = deferred {
            self.start_again(caller, group, &deferred).await;
        }
        Ok(response)
    }

    async fn add_changed(&self, caller: &Caller<'_>, group: &str) -> HttpResult {
        self.authorize(caller).await?;
        let (authorized, record) = (self.authorization_of(caller), caller.record());
        match self.updates.add_step(group, authorized, &record).await {
            Ok(()) => Ok(reply(Ok(Value::Bool(true)))),
            Err(error) => Err(self.failure_for(caller, error).await),
        }
    }

    fn defer_again(
        &self,
        caller: &Caller<'_>,
        group: &str,
        deferred: Option<Arc<DeferredRemoval>>,
    ) {
        if let Some(deferred) = deferred {
            self.update_sessions
                .record_group_stop(group, deferred.running.iter().cloned());
            self.defer_removal(caller, group, deferred.session.clone());
        }
    }

    /// Starts the added processes that were running when their group was stopped.
    async fn start_again(&self, caller: &Caller<'_>, group: &str, deferred: &DeferredRemoval) {
        let names = deferred.running.iter();
        let names = names.map(|process| (group.to_owned(), process.clone()));
        let started = self
            .updates
            .start_again(names.collect(), self.authorization_of(caller))
            .await;
        if let Err(error) = started {
            tracing::warn!(group, reason = %error, "cannot start the added processes of the group again");
        }
    }

    /// Cancels the deferred removals of these groups, or of all groups where none is named, because an
    /// update has applied their files.
    pub(super) async fn cancel_removals(&self, caller: &Caller<'_>, groups: &[String]) {
        for group in self.update_sessions.deferred_groups() {
            if (groups.is_empty() || groups.contains(&group))
                && let Some(deferred) = self.update_sessions.cancel_removal(&group)
            {
                self.start_again(caller, &group, &deferred).await;
            }
        }
    }

    /// Whether an update of the group replaces the daemon's own stop of it.
    fn replaces_steps(&self, group: &str) -> bool {
        let is_added = |registry: &Registry| registry.added_group(group).is_some();
        self.updates.is_live() || self.twiddler.with_registry(is_added)
    }

    /// Replaces the list `changed` of a `reloadConfig` reply by the groups that an update would change.
    async fn replace_changed(
        &self,
        caller: &Caller<'_>,
        reloaded: &mut Value,
    ) -> Result<(), ChangeError> {
        let pending = self.updates.pending(self.authorization_of(caller)).await?;
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

    /// The reply of `reloadConfig` with `live_update`: a group has changed exactly if an update would change
    /// it.
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
        if let Err(error) = self.replace_changed(caller, &mut reloaded).await {
            return Err(self.failure_for(caller, error).await);
        }
        self.update_sessions
            .begin(caller.update, caller.origin(), &reloaded);
        Ok(with_answer(head, Ok(reloaded)))
    }

    /// Ends the hiding of processes in a group that the daemon has removed: if a client adds it again, the
    /// daemon makes them anew.
    async fn unhide_group(
        &self,
        group: &str,
        response: Response<Body>,
        epoch: Epoch,
    ) -> HttpResult {
        let (response, is_successful) = is_successful(response).await?;
        if is_successful {
            let hidden: Vec<_> = self.twiddler.with_registry(|registry| {
                let hidden = registry.hidden().filter(|(hidden, _, _)| *hidden == group);
                let names = hidden.map(|(_, process, _)| (group.to_owned(), process.to_owned()));
                names.collect()
            });
            self.twiddler.unhide(epoch, hidden).await;
        }
        Ok(response)
    }
}

/// Reads a response to its end. Returns it, and whether it is an answer without a fault.
async fn is_successful(
    response: Response<Body>,
) -> Result<(Response<Body>, bool), crate::failure::Failure> {
    let (head, body) = response.into_parts();
    let body = collect(body).await?;
    let is_successful =
        head.status == StatusCode::OK && matches!(xmlrpc::read::response(&body), Ok(Ok(_)));
    Ok((Response::from_parts(head, Body::from(body)), is_successful))
}

/// The array that `stopProcessGroup` returns if it has stopped these processes.
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
