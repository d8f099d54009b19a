//! `supervisor.*` calls that name placed or hidden processes, or whose replies list them.

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};

use super::bulk::BulkCall;
use super::steps::Step;
use super::wording::Api;
use super::{Answer, Caller, Rpc, collect, reply, share, with_answer};
use crate::failure::{Failure, HttpResult};
use crate::fault::{ALREADY_ADDED, BAD_NAME, fault};
use crate::namespec::split_namespec;
use crate::registry::{Member, Place, Registry};
use crate::translate::{self, BulkAction, Ending, MethodKind, NameMapping, method_kind};
use crate::twiddler::{Change, ChangeError, Epoch, ReloadPause};
use crate::xmlrpc::{self, Fault, MethodCall, Value};

/// In how many epochs of the daemon the translation of a call is tried.
const MAX_EPOCHS: usize = 8;

/// How a `supervisor` call is answered.
pub(super) enum Translation {
    /// Forward the call unchanged.
    Same,
    /// Send the call with these parameters, and rewrite the answer.
    Query(Vec<Value>, Rewrite),
    /// Execute the call process by process.
    BulkCall(BulkCall),
    /// Make a change.
    Change(Change, Api),
    /// End the daemon, after groups with added processes were stopped.
    End(Ending),
}

/// How an answer of the daemon is rewritten into the client's names.
pub(super) enum Rewrite {
    /// The answer is about one process.
    Process(NameMapping),
    /// The answer is an array of status structs.
    Statuses,
    /// The answer of `getAllProcessInfo`.
    Infos,
    /// The answer of `getAllConfigInfo`.
    Configs,
    /// The answer of `reloadConfig`.
    Reload,
    /// The answer of `addProcessGroup` for this group, which a client added.
    Added(String),
}

impl Rpc {
    /// Answers `supervisor.<name>`; `body` are the original bytes of `call`.
    pub(super) async fn supervisor_call(
        &self,
        caller: &Caller<'_>,
        name: &str,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        if name == "getVersion" {
            self.update_sessions.end(caller.update, &caller.origin());
        }
        if let Some(step) = Step::read(name, &call.params) {
            return self.step(caller, step, call, body).await;
        }
        let response = self.answer_supervisor(caller, name, call, body).await?;
        match method_kind(name) {
            MethodKind::Reload if self.updates.is_live() => {
                self.live_reload(caller, response).await
            }
            _ => Ok(response),
        }
    }

    /// Answers `supervisor.<name>` where the call is not a step of an update.
    pub(super) async fn answer_supervisor(
        &self,
        caller: &Caller<'_>,
        name: &str,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        if method_kind(name) == MethodKind::Reload {
            self.updates.before_reload().await;
        }
        let (translation, epoch) = self.translate(caller, name, &call.params).await?;
        // Until the pause ends, the worker is not asked for anything, because it waits for the end of the
        // pause.
        let kind = method_kind(name);
        let mut pause = match kind {
            // These depend on the daemon's last reading, which must not be that of a probe or a generated file.
            MethodKind::Reload | MethodKind::Configs | MethodKind::AddGroup => {
                self.twiddler.pause_reloads().await
            }
            _ => None,
        };
        match translation {
            Translation::Same => {
                let share = share::of_call(&call.method, &call.params);
                let response = self.forward(caller, body, share).await?;
                if kind != MethodKind::Reload {
                    drop(pause.take());
                }
                // The first change may have been made between the translation and the daemon's answer.
                match rewrite_of_list(method_kind(name), &call.params) {
                    Some(rewrite)
                        if !self.twiddler.with_registry(Registry::needs_no_translation) =>
                    {
                        self.rewrite_response(caller, response, &rewrite, epoch, pause)
                            .await
                    }
                    _ => Ok(response),
                }
            }
            Translation::Query(params, rewrite) => {
                let query = xmlrpc::write::call(&call.method, &params);
                let share = share::of_call(&call.method, &params);
                let response = self.forward(caller, query.into(), share).await?;
                if kind != MethodKind::Reload {
                    drop(pause.take());
                }
                self.rewrite_response(caller, response, &rewrite, epoch, pause)
                    .await
            }
            other => {
                drop(pause);
                Ok(reply(self.execute(caller, other).await))
            }
        }
    }

    /// Executes a call that is not sent to the daemon as one call.
    pub(super) async fn execute(&self, caller: &Caller<'_>, translation: Translation) -> Answer {
        match translation {
            Translation::BulkCall(bulk) => self.run_bulk(caller, bulk).await,
            Translation::Change(change, api) => self.authorized_change(caller, change, api).await,
            Translation::End(ending) => self.end(caller, ending).await,
            Translation::Same | Translation::Query(..) => Ok(Value::Nil),
        }
    }

    /// Decides how a call is answered. Returns the epoch too, because names can mean other processes in the
    /// next epoch.
    ///
    /// # Errors
    /// When the daemon does not answer, or restarts again and again.
    pub(super) async fn translate(
        &self,
        caller: &Caller<'_>,
        name: &str,
        params: &[Value],
    ) -> Result<(Translation, Epoch), Failure> {
        for _ in 0..MAX_EPOCHS {
            let epoch = self.twiddler.epoch();
            let translation = self.translate_now(caller, name, params).await;
            if self.twiddler.epoch() == epoch {
                return Ok((translation?, epoch));
            }
        }
        let reason = "supervisord starts again and again".to_owned();
        Err(Failure::Unreachable(reason))
    }

    async fn translate_now(
        &self,
        caller: &Caller<'_>,
        name: &str,
        params: &[Value],
    ) -> Result<Translation, Failure> {
        let kind = method_kind(name);
        if kind == MethodKind::Nameless || !self.needs_translation(caller).await? {
            return Ok(Translation::Same);
        }
        if let (MethodKind::Process | MethodKind::ProcessOrGroup(_), Some(Value::String(name))) =
            (kind, params.first())
        {
            self.check_hidden(caller, name).await?;
        }
        let decide = |registry: &Registry| decide(registry, kind, params);
        Ok(self.twiddler.with_registry(decide))
    }

    /// Whether there may be changes in the daemon's current epoch. A daemon that refuses the proxy's
    /// credentials counts as unchanged: it refuses the caller in the same way.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn needs_translation(&self, caller: &Caller<'_>) -> Result<bool, Failure> {
        if self.twiddler.has_no_changes() {
            return Ok(false);
        }
        let mut current = self.twiddler.current().await;
        // A proxy without credentials of its own uses those of the first authorized caller.
        if matches!(current, Err(ChangeError::Status(_))) && self.authorize(caller).await.is_ok() {
            current = self.twiddler.current().await;
        }
        match current {
            // A fault means that the daemon shuts down. It may have restarted before the next call.
            Err(ChangeError::Status(_)) => Ok(false),
            Err(ChangeError::Unreachable(reason)) => Err(Failure::Unreachable(reason)),
            Ok(_) | Err(_) => Ok(true),
        }
    }

    /// Ends the hiding of the process of this name, if a client has started it directly on the daemon.
    pub(super) async fn check_hidden(
        &self,
        caller: &Caller<'_>,
        name: &str,
    ) -> Result<(), Failure> {
        let (group, Some(process)) = split_namespec(name) else {
            return Ok(());
        };
        let hidden = self
            .twiddler
            .with_registry(|registry| match registry.place(group, process) {
                Place::Hidden(start) => vec![(group.to_owned(), process.to_owned(), start)],
                _ => Vec::new(),
            });
        self.show_restarted(caller, hidden).await
    }

    /// Does the same for all hidden processes, but those whose names have been given to other processes.
    pub(super) async fn check_all_hidden(&self, caller: &Caller<'_>) -> Result<(), Failure> {
        let hidden = self.twiddler.with_registry(|registry| {
            registry
                .hidden()
                .filter(|(group, process, _)| registry.member(group, process).is_none())
                .map(|(group, process, start)| (group.to_owned(), process.to_owned(), start))
                .collect()
        });
        self.show_restarted(caller, hidden).await
    }

    async fn show_restarted(
        &self,
        caller: &Caller<'_>,
        hidden: Vec<(String, String, i64)>,
    ) -> Result<(), Failure> {
        let epoch = self.twiddler.epoch();
        let calls: Vec<_> = hidden
            .iter()
            .map(|(group, process, _)| {
                let real = format!("{group}:{process}");
                ("supervisor.getProcessInfo", vec![real.into()])
            })
            .collect();
        let infos = self.multicall_as(caller, &calls).await?;
        let visible = hidden.into_iter().zip(infos).filter_map(|(hidden, info)| {
            let (group, process, start) = hidden;
            let info = info.ok()?;
            (!translate::is_still_hidden(&info, start)).then_some((group, process))
        });
        self.twiddler.unhide(epoch, visible).await;
        Ok(())
    }

    /// Rewrites the daemon's response into the client's names.
    ///
    /// # Errors
    /// When the daemon has restarted since `epoch` and does not answer, or the response is cut short.
    async fn rewrite_response(
        &self,
        caller: &Caller<'_>,
        response: Response<Body>,
        rewrite: &Rewrite,
        epoch: Epoch,
        mut pause: Option<ReloadPause>,
    ) -> HttpResult {
        if response.status() != StatusCode::OK {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let body = collect(body).await?;
        if matches!(rewrite, Rewrite::Process(_)) && !may_name_the_process(&body) {
            return Ok(Response::from_parts(head, Body::from(body)));
        }
        // The pause lasts until the response is rewritten, so that no change comes in between. It ends earlier
        // if the worker has to find out about a new epoch.
        if !self.twiddler.is_current_epoch(epoch) {
            drop(pause.take());
            if let Err(ChangeError::Unreachable(reason)) = self.twiddler.ensure_epoch(epoch).await {
                return Err(Failure::Unreachable(reason));
            }
        }
        Ok(match xmlrpc::read::response(&body) {
            Ok(answer) => with_answer(
                head,
                self.rewrite_answer(caller, answer, rewrite, epoch).await,
            ),
            Err(error) => {
                tracing::warn!(%error, "cannot read a reply of supervisord; it is forwarded unchanged");
                Response::from_parts(head, Body::from(body))
            }
        })
    }

    /// Rewrites an answer of the daemon into the client's names, and records what it says about hidden and
    /// missing processes.
    ///
    /// # Errors
    /// The daemon's fault, in the client's names.
    pub(super) async fn rewrite_answer(
        &self,
        caller: &Caller<'_>,
        answer: Result<Value, Fault>,
        rewrite: &Rewrite,
        epoch: Epoch,
    ) -> Result<Value, Fault> {
        match rewrite {
            Rewrite::Process(mapping) => {
                let is_unknown = matches!(&answer, Err(fault) if fault.code == BAD_NAME);
                if is_unknown && mapping.is_known() {
                    self.twiddler.check_for_losses_soon();
                }
                return mapping.rewrite_reply(answer);
            }
            // The daemon says BAD_NAME, because no file defines a group that a client added.
            Rewrite::Added(group) => {
                return answer.map_err(|error| match error.code {
                    BAD_NAME => fault(ALREADY_ADDED, group),
                    _ => error,
                });
            }
            Rewrite::Statuses | Rewrite::Infos | Rewrite::Configs | Rewrite::Reload => {}
        }
        let mut value = answer?;
        self.rewrite_list(rewrite, &mut value, epoch).await;
        match (rewrite, &mut value) {
            (Rewrite::Reload, reloaded) => {
                self.updates.omit_applied(reloaded);
                self.updates.report_defined(reloaded);
                self.update_sessions
                    .begin(caller.update, caller.origin(), reloaded);
                self.twiddler.warn_of_clashes();
            }
            (Rewrite::Configs, Value::Array(list)) => {
                // Added processes that cannot be described are left out, as in the daemon's own list.
                if let Err(error) = self.twiddler.complete_configs(list).await {
                    tracing::warn!(reason = %error, "getAllConfigInfo lacks the added processes");
                }
            }
            _ => {}
        }
        Ok(value)
    }

    /// Rewrites the names in a list of processes or groups. If the list shows that the daemon has restarted, the
    /// epoch is doubted. Hidden processes that a client has started on the daemon become visible.
    async fn rewrite_list(&self, rewrite: &Rewrite, list: &mut Value, epoch: Epoch) {
        let is_doubtful = self.twiddler.with_registry(|registry| match rewrite {
            Rewrite::Infos => translate::lacks_members(registry, list),
            Rewrite::Reload => translate::lacks_marker(registry, list),
            _ => false,
        });
        if is_doubtful {
            self.twiddler.check_for_losses_soon();
        }
        let mut visible = Vec::new();
        self.twiddler.with_registry(|registry| match rewrite {
            Rewrite::Infos => visible = translate::rewrite_infos(registry, list),
            Rewrite::Statuses => translate::rewrite_statuses(registry, list),
            Rewrite::Configs => translate::rewrite_configs(registry, list),
            Rewrite::Reload => translate::rewrite_reloaded(registry, list),
            Rewrite::Process(_) | Rewrite::Added(_) => {}
        });
        self.twiddler.unhide(epoch, visible).await;
    }
}

/// Reads a call on a whole group or on all processes; none for another call, or one that the daemon refuses.
pub(super) fn bulk_call(name: &str, params: &[Value]) -> Option<BulkCall> {
    let first = params.first().and_then(Value::as_str);
    match (method_kind(name), first) {
        (MethodKind::ProcessOrGroup(action), Some(name)) => match split_namespec(name) {
            (group, None) => BulkCall::group(action, group, params),
            _ => None,
        },
        (MethodKind::Group(action), Some(group)) => BulkCall::group(action, group, params),
        (MethodKind::All(action), _) => BulkCall::all(action, params),
        _ => None,
    }
}

fn decide(registry: &Registry, kind: MethodKind, params: &[Value]) -> Translation {
    let name = params.first().and_then(Value::as_str);
    match (kind, name) {
        (MethodKind::Process, Some(name)) => one_process(registry, name, params),
        (MethodKind::ProcessOrGroup(action), Some(name)) => match split_namespec(name) {
            (group, None) => one_group(registry, action, group, params),
            _ => one_process(registry, name, params),
        },
        (MethodKind::Group(action), Some(group)) => one_group(registry, action, group, params),
        (MethodKind::All(action), _) => all_processes(registry, action, params),
        (MethodKind::Infos, _) if !registry.needs_no_translation() => query(params, Rewrite::Infos),
        (MethodKind::Configs, _) if params.is_empty() => query(params, Rewrite::Configs),
        (MethodKind::Reload, _) => query(params, Rewrite::Reload),
        (MethodKind::AddGroup, Some(group)) if registry.added_group(group).is_some() => {
            query(params, Rewrite::Added(group.to_owned()))
        }
        (MethodKind::End(ending), _) if params.is_empty() && has_placed(registry) => {
            Translation::End(ending)
        }
        (MethodKind::RemoveGroup, Some(group)) if params.len() == 1 => {
            remove_group(registry, group)
        }
        _ => Translation::Same,
    }
}

/// The rewrite for the answer of a method that lists all processes.
fn rewrite_of_list(kind: MethodKind, params: &[Value]) -> Option<Rewrite> {
    match kind {
        MethodKind::Infos if params.is_empty() => Some(Rewrite::Infos),
        MethodKind::Configs if params.is_empty() => Some(Rewrite::Configs),
        _ => None,
    }
}

fn query(params: &[Value], rewrite: Rewrite) -> Translation {
    Translation::Query(params.to_vec(), rewrite)
}

fn one_process(registry: &Registry, name: &str, params: &[Value]) -> Translation {
    let Some(mapping) = translate::map_name(registry, name) else {
        return Translation::Same;
    };
    let mut params = params.to_vec();
    params[0] = mapping.real.as_str().into();
    Translation::Query(params, Rewrite::Process(mapping))
}

fn one_group(
    registry: &Registry,
    action: BulkAction,
    group: &str,
    params: &[Value],
) -> Translation {
    match BulkCall::group(action, group, params) {
        Some(bulk) if registry.has_placed_or_hidden(group) => Translation::BulkCall(bulk),
        _ => Translation::Same,
    }
}

fn all_processes(registry: &Registry, action: BulkAction, params: &[Value]) -> Translation {
    match BulkCall::all(action, params) {
        _ if registry.needs_no_translation() => Translation::Same,
        // The daemon's order is by real groups, which is not the order of their members for clients.
        Some(bulk) if registry.hides() || action != BulkAction::ClearLogs => {
            Translation::BulkCall(bulk)
        }
        _ => query(params, Rewrite::Statuses),
    }
}

fn has_placed(registry: &Registry) -> bool {
    registry.members().any(Member::is_placed)
}

fn remove_group(registry: &Registry, group: &str) -> Translation {
    let is_change = registry.has_placed_or_hidden(group)
        || registry.added_group(group).is_some()
        || registry.members_of(group).next().is_some();
    if is_change {
        let name = group.to_owned();
        let api = Api::Supervisor(name.clone());
        Translation::Change(Change::RemoveGroup { name }, api)
    } else {
        Translation::Same
    }
}

/// Whether a reply about one process may name it: only faults and structs do. Logs are forwarded unchanged,
/// because they may hold text that no XML parser accepts.
fn may_name_the_process(body: &[u8]) -> bool {
    const HEAD: usize = 128;
    let head = &body[..body.len().min(HEAD)];
    let contains = |tag: &[u8]| head.windows(tag.len()).any(|window| window == tag);
    contains(b"<fault>") || contains(b"<struct>")
}
