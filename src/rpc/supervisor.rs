//! `supervisor.*` calls that name, or whose replies list, processes that live elsewhere.

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
use crate::translate::{self, Alias, BulkAction, Ending, MethodKind, method_kind};
use crate::twiddler::{Change, ChangeError, Epoch, ReloadPause};
use crate::xmlrpc::{self, Fault, MethodCall, Value};

/// Epochs of the daemon in which a call is looked at before it is given up.
const MAX_EPOCHS: usize = 8;

/// What to do with a call of the daemon's own namespace.
pub(super) enum Translation {
    /// Pass it on as it is.
    Same,
    /// Ask the daemon this instead, and put its answer back into the client's names.
    Ask(Vec<Value>, Back),
    /// The call is carried out piece by piece.
    BulkCall(BulkCall),
    /// The call is a change.
    Change(Change, Api),
    /// The daemon ends, after what would take it long.
    End(Ending),
}

/// How an answer of the daemon gets back into the client's names.
pub(super) enum Back {
    /// It is about one process.
    Alias(Alias),
    /// It lists what became of each process.
    Statuses,
    /// It is `getAllProcessInfo`'s.
    Infos,
    /// It is `getAllConfigInfo`'s.
    Configs,
    /// It is `reloadConfig`'s.
    ReloadResult,
    /// It is `addProcessGroup`'s, about this group that is there.
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
            self.under_way.end(caller.update, &caller.place());
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
        // Nothing more is asked of the worker while it waits for the end of this.
        let kind = method_kind(name);
        let mut pause = match kind {
            // While a question is put, these would answer with it, or add it.
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
                // The first change of all may have come before the daemon's answer.
                match back_of_list(method_kind(name), &call.params) {
                    Some(back) if !self.twiddler.with_registry(Registry::is_plain) => {
                        self.put_back(caller, response, &back, epoch, pause).await
                    }
                    _ => Ok(response),
                }
            }
            Translation::Ask(params, back) => {
                let asked = xmlrpc::write::call(&call.method, &params);
                let share = share::of_call(&call.method, &params);
                let response = self.forward(caller, asked.into(), share).await?;
                if kind != MethodKind::Reload {
                    drop(pause.take());
                }
                self.put_back(caller, response, &back, epoch, pause).await
            }
            other => {
                drop(pause);
                Ok(reply(self.carry_out(caller, other).await))
            }
        }
    }

    /// What does not go to the daemon as one call.
    pub(super) async fn carry_out(&self, caller: &Caller<'_>, what: Translation) -> Answer {
        match what {
            Translation::BulkCall(whole) => self.whole(caller, whole).await,
            Translation::Change(change, api) => self.judged_change(caller, change, api).await,
            Translation::End(ending) => self.end(caller, ending).await,
            Translation::Same | Translation::Ask(..) => Ok(Value::Nil),
        }
    }

    /// Decides what becomes of a call, and for which epoch of the daemon: names of one mean something
    /// else in the next.
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
            self.look_at_hidden(caller, name).await?;
        }
        let decide = |registry: &Registry| decide(registry, kind, params);
        Ok(self.twiddler.with_registry(decide))
    }

    /// Whether anything may have been changed in the daemon's present epoch. Where the daemon does
    /// not let the proxy in, it tells the caller the same.
    pub(super) async fn needs_translation(&self, caller: &Caller<'_>) -> Result<bool, Failure> {
        if self.twiddler.knows_nothing() {
            return Ok(false);
        }
        let mut settled = self.twiddler.current().await;
        // A proxy without credentials of its own knows none before the first caller.
        if matches!(settled, Err(ChangeError::Status(_))) && self.gate(caller).await.is_ok() {
            settled = self.twiddler.current().await;
        }
        match settled {
            // A daemon that shuts down may be back before it is asked.
            Err(ChangeError::Status(_)) => Ok(false),
            Err(ChangeError::Unreachable(reason)) => Err(Failure::Unreachable(reason)),
            Ok(_) | Err(_) => Ok(true),
        }
    }

    /// A hidden process of this name that somebody started behind our back is to be seen again.
    pub(super) async fn look_at_hidden(
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
        self.look_again(caller, hidden).await
    }

    /// The same for all hidden processes but those whose names are taken again.
    pub(super) async fn look_at_all_hidden(&self, caller: &Caller<'_>) -> Result<(), Failure> {
        let hidden = self.twiddler.with_registry(|registry| {
            registry
                .hidden()
                .filter(|(group, process, _)| registry.member(group, process).is_none())
                .map(|(group, process, start)| (group.to_owned(), process.to_owned(), start))
                .collect()
        });
        self.look_again(caller, hidden).await
    }

    async fn look_again(
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
        let shown = hidden.into_iter().zip(infos).filter_map(|(hidden, info)| {
            let (group, process, start) = hidden;
            let info = info.ok()?;
            (!translate::is_still_hidden(&info, start)).then_some((group, process))
        });
        self.twiddler.show(epoch, shown).await;
        Ok(())
    }

    /// Puts the daemon's reply into the client's names, if it is of this epoch of the daemon.
    async fn put_back(
        &self,
        caller: &Caller<'_>,
        response: Response<Body>,
        back: &Back,
        epoch: Epoch,
        mut pause: Option<ReloadPause>,
    ) -> HttpResult {
        if response.status() != StatusCode::OK {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let body = collect(body).await?;
        if matches!(back, Back::Alias(_)) && !may_name_the_process(&body) {
            return Ok(Response::from_parts(head, Body::from(body)));
        }
        // The pause lasts until the reply is in the client's names, so that no change comes between,
        // unless the worker must be waited for.
        if !self.twiddler.is_still(epoch) {
            drop(pause.take());
            if let Err(ChangeError::Unreachable(reason)) = self.twiddler.ensure_epoch(epoch).await {
                return Err(Failure::Unreachable(reason));
            }
        }
        Ok(match xmlrpc::read::response(&body) {
            Ok(answer) => with_answer(head, self.back(caller, answer, back, epoch).await),
            Err(error) => {
                tracing::warn!(%error, "a reply of supervisord cannot be read and is passed on as it is");
                Response::from_parts(head, Body::from(body))
            }
        })
    }

    /// The same for an answer that was read already.
    pub(super) async fn back(
        &self,
        caller: &Caller<'_>,
        answer: Result<Value, Fault>,
        back: &Back,
        epoch: Epoch,
    ) -> Result<Value, Fault> {
        match back {
            Back::Alias(alias) => {
                let is_unknown = matches!(&answer, Err(told) if told.code == BAD_NAME);
                if is_unknown && alias.leads_somewhere() {
                    self.twiddler.doubt();
                }
                return alias.back(answer);
            }
            // No file defines a group that was added at run time, but it is there all the same.
            Back::Added(group) => {
                return answer.map_err(|told| match told.code {
                    BAD_NAME => fault(ALREADY_ADDED, group),
                    _ => told,
                });
            }
            Back::Statuses | Back::Infos | Back::Configs | Back::ReloadResult => {}
        }
        let mut value = answer?;
        let is_doubtful = self.twiddler.with_registry(|registry| match back {
            Back::Infos => translate::lacks_members(registry, &value),
            Back::ReloadResult => translate::lacks_marker(registry, &value),
            _ => false,
        });
        if is_doubtful {
            self.twiddler.doubt();
        }
        let shown = self.twiddler.with_registry(|registry| match back {
            Back::Infos => translate::rewrite_infos(registry, &mut value),
            Back::Statuses => {
                translate::rewrite_statuses(registry, &mut value);
                Vec::new()
            }
            Back::Configs => {
                translate::rewrite_configs(registry, &mut value);
                Vec::new()
            }
            Back::ReloadResult => {
                translate::rewrite_reloaded(registry, &mut value);
                Vec::new()
            }
            Back::Alias(_) | Back::Added(_) => Vec::new(),
        });
        self.twiddler.show(epoch, shown).await;
        match (back, &mut value) {
            (Back::ReloadResult, reloaded) => {
                self.updates.omit_applied(reloaded);
                self.updates.report_defined(reloaded);
                self.under_way
                    .begin(caller.update, caller.place(), reloaded);
                self.twiddler.warn_of_clashes();
            }
            (Back::Configs, Value::Array(list)) => {
                // What cannot be learnt now is left out, as the daemon leaves it out.
                if let Err(refusal) = self.twiddler.complete_configs(list).await {
                    tracing::warn!(reason = %refusal, "getAllConfigInfo lacks what was added");
                }
            }
            _ => {}
        }
        Ok(value)
    }
}

/// A call on a whole group, or on all processes, of the kind that the daemon would take.
pub(super) fn bulk_call(name: &str, params: &[Value]) -> Option<BulkCall> {
    let first = params.first().and_then(Value::as_str);
    match (method_kind(name), first) {
        (MethodKind::ProcessOrGroup(verb), Some(name)) => match split_namespec(name) {
            (group, None) => BulkCall::group(verb, group, params),
            _ => None,
        },
        (MethodKind::Group(verb), Some(group)) => BulkCall::group(verb, group, params),
        (MethodKind::All(verb), _) => BulkCall::all(verb, params),
        _ => None,
    }
}

fn decide(registry: &Registry, kind: MethodKind, params: &[Value]) -> Translation {
    let name = params.first().and_then(Value::as_str);
    match (kind, name) {
        (MethodKind::Process, Some(name)) => one_process(registry, name, params),
        (MethodKind::ProcessOrGroup(verb), Some(name)) => match split_namespec(name) {
            (group, None) => one_group(registry, verb, group, params),
            _ => one_process(registry, name, params),
        },
        (MethodKind::Group(verb), Some(group)) => one_group(registry, verb, group, params),
        (MethodKind::All(verb), _) => all_processes(registry, verb, params),
        (MethodKind::Infos, _) if !registry.is_plain() => ask(params, Back::Infos),
        (MethodKind::Configs, _) if params.is_empty() => ask(params, Back::Configs),
        (MethodKind::Reload, _) => ask(params, Back::ReloadResult),
        (MethodKind::AddGroup, Some(group)) if registry.added_group(group).is_some() => {
            ask(params, Back::Added(group.to_owned()))
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

/// How a list of processes gets into the client's names.
fn back_of_list(kind: MethodKind, params: &[Value]) -> Option<Back> {
    match kind {
        MethodKind::Infos if params.is_empty() => Some(Back::Infos),
        MethodKind::Configs if params.is_empty() => Some(Back::Configs),
        _ => None,
    }
}

fn ask(params: &[Value], back: Back) -> Translation {
    Translation::Ask(params.to_vec(), back)
}

fn one_process(registry: &Registry, name: &str, params: &[Value]) -> Translation {
    let Some(alias) = translate::alias(registry, name) else {
        return Translation::Same;
    };
    let mut params = params.to_vec();
    params[0] = alias.real.as_str().into();
    Translation::Ask(params, Back::Alias(alias))
}

fn one_group(registry: &Registry, verb: BulkAction, group: &str, params: &[Value]) -> Translation {
    match BulkCall::group(verb, group, params) {
        Some(whole) if registry.is_decorated(group) => Translation::BulkCall(whole),
        _ => Translation::Same,
    }
}

fn all_processes(registry: &Registry, verb: BulkAction, params: &[Value]) -> Translation {
    match BulkCall::all(verb, params) {
        _ if registry.is_plain() => Translation::Same,
        // The daemon orders real groups, and knows no order between the members that they hold.
        Some(whole) if registry.hides() || verb != BulkAction::ClearLogs => {
            Translation::BulkCall(whole)
        }
        _ => ask(params, Back::Statuses),
    }
}

fn has_placed(registry: &Registry) -> bool {
    registry.members().any(Member::is_placed)
}

fn remove_group(registry: &Registry, group: &str) -> Translation {
    let ours = registry.is_decorated(group)
        || registry.added_group(group).is_some()
        || registry.members_of(group).next().is_some();
    if ours {
        let name = group.to_owned();
        let api = Api::Supervisor(name.clone());
        Translation::Change(Change::RemoveGroup { name }, api)
    } else {
        Translation::Same
    }
}

/// Only faults and structs of one process name it; logs are passed on as they are, because they
/// may hold what no XML parser takes.
fn may_name_the_process(body: &[u8]) -> bool {
    const HEAD: usize = 128;
    let head = &body[..body.len().min(HEAD)];
    let contains = |tag: &[u8]| head.windows(tag.len()).any(|window| window == tag);
    contains(b"<fault>") || contains(b"<struct>")
}
