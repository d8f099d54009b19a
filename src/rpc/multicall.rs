//! `system.multicall` that mixes what the daemon answers and what is answered here.
//!
//! Keeps the order of the calls and the daemon's reply forms: bare values, and structs for faults
//! (`supervisor/xmlrpc.py`, `multicall`). Neighbouring calls for the daemon go to it in one
//! multicall, neighbouring changes are made together.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::bulk::is_true;
use super::methods::Request;
use super::steps::Step;
use super::supervisor::{self, Back, Translation};
use super::wording::Api;
use super::{
    Answer, Caller, Rpc, namespace, read_entry, read_reply, refused_call, reply, share, system,
    turned_down,
};
use crate::failure::{Failure, HttpResult};
use crate::fault::{
    ABNORMAL_TERMINATION, ALREADY_STARTED, SHUTDOWN_STATE, SPAWN_ERROR, bare, fault,
};
use crate::translate::{self, MethodKind, method_kind};
use crate::twiddler::{Change, ChangeError, Epoch};
use crate::xmlrpc::{self, Fault, MethodCall, Value};

/// Calls in one multicall: the daemon carries them out one after the other and serves nobody
/// meanwhile.
pub const MAX_CALLS: usize = 10_000;

/// How often a process that starts is looked at, as the daemon does (`startProcess`, `onwait.delay`).
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Answers so far, and neighbours that wait to go together.
struct Progress<'a> {
    rpc: &'a Rpc,
    caller: &'a Caller<'a>,
    results: Vec<Value>,
    /// With the way back into the client's names, and the daemon's epoch in which it is one.
    asked: Vec<(Value, Option<(Back, Epoch)>)>,
    changes: Vec<(Change, Api)>,
    /// Namespecs of processes that this call has added, and that the daemon starts by itself.
    starting: HashSet<String>,
    /// Whether the daemon ends, and may be gone already.
    ends: bool,
    /// Whether `allow` has left out an entry.
    is_denied: bool,
}

impl Rpc {
    /// Answers a multicall; `body` are its original bytes.
    pub(super) async fn multicall(
        &self,
        caller: &Caller<'_>,
        call: &MethodCall,
        body: Bytes,
    ) -> HttpResult {
        match call.params.as_slice() {
            [Value::Array(entries)] if entries.len() > MAX_CALLS => Err(Failure::Refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a multicall may have {MAX_CALLS} calls"),
            )),
            [Value::Array(entries)]
                if self.is_restricted() || entries.iter().any(|entry| self.touches(entry)) =>
            {
                Ok(reply(self.mixed(caller, entries).await))
            }
            params => {
                let mut pause = None;
                if let [Value::Array(entries)] = params {
                    if entries.iter().any(|entry| calls(entry, "getVersion")) {
                        self.under_way.end(caller.update, &caller.place());
                    }
                    if entries.iter().any(|entry| calls(entry, "getAllConfigInfo")) {
                        pause = self.twiddler.pause_reloads().await;
                    }
                }
                let _pause = pause;
                let share = share::of_call(&call.method, params);
                self.forward(caller, body, share).await
            }
        }
    }

    /// Whether an entry is not for the daemon alone.
    fn touches(&self, entry: &Value) -> bool {
        let Some(call) = read_entry(entry) else {
            return false;
        };
        match namespace(&call.method) {
            ("twiddler", _) => true,
            ("system", name) => system::concerns(name, &call.params),
            ("supervisor", name) => {
                method_kind(name) != MethodKind::Nameless && !self.twiddler.knows_nothing()
                    || self.is_seen(name)
            }
            _ => false,
        }
    }

    /// Whether updates have to know of a call of the daemon's namespace although nothing was added.
    fn is_seen(&self, name: &str) -> bool {
        match method_kind(name) {
            MethodKind::Reload | MethodKind::AddGroup => true,
            _ => self.updates.is_live() && Step::is_one(name),
        }
    }

    /// Answers a call of the daemon's namespace as one that comes alone.
    async fn alone(&self, caller: &Caller<'_>, name: &str, call: &MethodCall) -> Answer {
        let body = xmlrpc::write::call(&call.method, &call.params);
        let response = self
            .supervisor_call(caller, name, call, body.into())
            .await?;
        read_reply(response).await
    }

    async fn mixed(&self, caller: &Caller<'_>, entries: &[Value]) -> Answer {
        self.gate(caller).await?;
        let mut progress = Progress {
            rpc: self,
            caller,
            results: Vec::with_capacity(entries.len()),
            asked: Vec::new(),
            changes: Vec::new(),
            starting: HashSet::new(),
            ends: false,
            is_denied: false,
        };
        for entry in entries {
            progress.take(entry).await?;
        }
        progress.flush().await?;
        Ok(Value::Array(progress.results))
    }
}

impl Progress<'_> {
    async fn take(&mut self, entry: &Value) -> Result<(), Failure> {
        if let Some(fault) = self.rpc.entry_denied(entry) {
            self.flush().await?;
            // One line tells of all of them.
            if std::mem::replace(&mut self.is_denied, true) {
                return self.push(Err(fault.into()));
            }
            let method = read_entry(entry).map(|call| call.method);
            let what = refused_call(method.as_deref().unwrap_or("an entry"));
            return self.push(Err(turned_down(self.caller, &what, fault)));
        }
        if self.ends {
            return self.push(Err(bare(SHUTDOWN_STATE).into()));
        }
        let Some(call) = read_entry(entry) else {
            // The daemon says what it makes of it.
            return self.ask(entry.clone(), None).await;
        };
        match namespace(&call.method) {
            ("twiddler", name) => self.take_own(name, &call).await,
            ("supervisor", name) => self.take_daemons(name, &call, entry).await,
            ("system", name) if system::concerns(name, &call.params) => {
                self.flush().await?;
                let answer = self.rpc.system_call(self.caller, name, &call).await;
                self.push(answer)
            }
            _ => self.ask(entry.clone(), None).await,
        }
    }

    async fn take_own(&mut self, name: &str, call: &MethodCall) -> Result<(), Failure> {
        match self.rpc.read(name, &call.params) {
            Ok(Request::Change(change)) => self.change(change, Api::Twiddler).await,
            Ok(request) => {
                self.flush().await?;
                let answer = self.rpc.perform(self.caller, request).await;
                self.push(answer)
            }
            Err(fault) => {
                self.flush().await?;
                let what = refused_call(&format!("twiddler.{name}"));
                self.push(Err(turned_down(self.caller, &what, fault)))
            }
        }
    }

    async fn take_daemons(
        &mut self,
        name: &str,
        call: &MethodCall,
        entry: &Value,
    ) -> Result<(), Failure> {
        // What goes before may change what names mean.
        self.flush_changes().await?;
        if Step::is_one(name) || method_kind(name) == MethodKind::Reload || name == "getVersion" {
            self.flush_asked().await?;
            let answer = self.rpc.alone(self.caller, name, call).await;
            return self.push(answer);
        }
        if name == "startProcess"
            && let Some(Value::String(process)) = call.params.first()
            && self.starting.remove(&full(process))
        {
            self.flush_asked().await?;
            let answer = self.rpc.start_added(self.caller, process, call).await;
            return self.push(answer);
        }
        if let Some(bulk) = supervisor::bulk_call(name, &call.params) {
            let bulk = bulk.take_starting(&mut self.starting);
            // The daemon's loop turns before the next call, and starts the others.
            self.starting.clear();
            if bulk.starts_added() {
                self.flush_asked().await?;
                let answer = self.rpc.whole(self.caller, bulk).await;
                return self.push(answer);
            }
        }
        let translated = self.rpc.translate(self.caller, name, &call.params).await;
        let (translation, epoch) = match translated {
            Ok(translated) => translated,
            Err(failure) => {
                self.flush().await?;
                return self.push(Err(failure));
            }
        };
        match translation {
            Translation::Same => self.ask(entry.clone(), None).await,
            Translation::Ask(params, back) => {
                let entry = Value::Struct(vec![
                    ("methodName".to_owned(), call.method.as_str().into()),
                    ("params".to_owned(), Value::Array(params)),
                ]);
                self.ask(entry, Some((back, epoch))).await
            }
            Translation::Change(change, api) => self.change(change, api).await,
            Translation::End(ending) => {
                self.flush().await?;
                let answer = self.rpc.end(self.caller, ending).await;
                self.ends = answer.is_ok();
                self.push(answer)
            }
            other => {
                self.flush().await?;
                let answer = self.rpc.carry_out(self.caller, other).await;
                self.push(answer)
            }
        }
    }

    async fn ask(&mut self, entry: Value, back: Option<(Back, Epoch)>) -> Result<(), Failure> {
        self.flush_changes().await?;
        self.asked.push((entry, back));
        Ok(())
    }

    async fn change(&mut self, change: Change, api: Api) -> Result<(), Failure> {
        self.flush_asked().await?;
        self.changes.push((change, api));
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        self.flush_changes().await?;
        self.flush_asked().await
    }

    async fn flush_changes(&mut self) -> Result<(), Failure> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.changes);
        let starting: Vec<Vec<String>> =
            changes.iter().map(|(change, _)| starting(change)).collect();
        let answers = self.rpc.changes(self.caller, changes).await;
        for (answer, starting) in answers.into_iter().zip(starting) {
            if answer.is_ok() {
                self.starting.extend(starting);
            }
            self.push(answer)?;
        }
        Ok(())
    }

    async fn flush_asked(&mut self) -> Result<(), Failure> {
        if self.asked.is_empty() {
            return Ok(());
        }
        let (entries, backs): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.asked).into_iter().unzip();
        // It speaks of what was read last.
        let speaks = entries.iter().any(|entry| calls(entry, "getAllConfigInfo"));
        let pause = if speaks {
            self.rpc.twiddler.pause_reloads().await
        } else {
            None
        };
        let answer = self
            .rpc
            .ask(self.caller, "system.multicall", &[Value::Array(entries)])
            .await?;
        // What comes back may have to be completed by a reading of our own.
        drop(pause);
        let Value::Array(results) = answer else {
            return Ok(());
        };
        for (_, epoch) in backs.iter().flatten() {
            let still = self.rpc.twiddler.ensure_epoch(*epoch).await;
            if let Err(ChangeError::Unreachable(reason)) = still {
                return Err(Failure::Unreachable(reason));
            }
        }
        for (result, back) in results.into_iter().zip(backs) {
            let result = match back {
                None => Ok(result),
                Some((back, epoch)) => {
                    let answer = crate::daemon::multicall_result(result);
                    self.rpc.back(self.caller, answer, &back, epoch).await
                }
            };
            self.push(result.map_err(Failure::Fault))?;
        }
        Ok(())
    }

    /// A fault is one more result; anything else ends the whole call.
    fn push(&mut self, answer: Answer) -> Result<(), Failure> {
        self.results.push(match answer {
            Ok(value) => value,
            Err(Failure::Fault(fault)) => fault_struct(fault),
            Err(failure) => return Err(failure),
        });
        Ok(())
    }
}

impl Rpc {
    /// Answers `startProcess` for a process that the same multicall has added. In the in-process
    /// original nothing has started it by then, so the call works; here the daemon has.
    async fn start_added(&self, caller: &Caller<'_>, process: &str, call: &MethodCall) -> Answer {
        let alias = self
            .twiddler
            .with_registry(|registry| translate::alias(registry, process));
        let real = alias.as_ref().map_or(process, |alias| &alias.real);
        let info = self
            .ask(caller, "supervisor.getProcessInfo", &[real.into()])
            .await;
        if info.is_ok_and(|info| has_been_up(&info)) {
            return Ok(Value::Bool(true));
        }
        let mut params = call.params.clone();
        params[0] = real.into();
        let waits = params.get(1).is_none_or(is_true);
        let mut answer = self.ask(caller, &call.method, &params).await;
        if matches!(&answer, Err(Failure::Fault(told)) if told.code == ALREADY_STARTED) {
            answer = if waits {
                self.until_started(caller, real).await
            } else {
                Ok(Value::Bool(true))
            };
        }
        match (answer, alias) {
            (Err(Failure::Fault(told)), Some(alias)) => {
                alias.back(Err(told)).map_err(Failure::Fault)
            }
            (answer, _) => answer,
        }
    }

    /// Looks until a process is no longer STARTING, which ends after `startsecs`
    /// (`supervisor/rpcinterface.py`, `startProcess`).
    async fn until_started(&self, caller: &Caller<'_>, real: &str) -> Answer {
        loop {
            let info = self
                .ask(caller, "supervisor.getProcessInfo", &[real.into()])
                .await?;
            let spawnerr = info.get("spawnerr").and_then(Value::as_str);
            if has_been_up(&info) {
                return Ok(Value::Bool(true));
            }
            if spawnerr.is_some_and(|text| !text.is_empty()) {
                return Err(fault(SPAWN_ERROR, real).into());
            }
            match info.get("statename").and_then(Value::as_str) {
                Some("RUNNING") => return Ok(Value::Bool(true)),
                Some("STARTING") => tokio::time::sleep(LOOK_AGAIN).await,
                _ => return Err(fault(ABNORMAL_TERMINATION, real).into()),
            }
        }
    }
}

/// Whether a process has ended by itself after it was up: before that it backs off.
fn has_been_up(info: &Value) -> bool {
    info.get("statename").and_then(Value::as_str) == Some("EXITED")
}

/// Namespecs of the processes that the daemon starts by itself when this change is made.
fn starting(change: &Change) -> Vec<String> {
    match change {
        Change::AddProgram(program) if program.autostarts() => {
            let names = program.process_names().unwrap_or_default();
            let namespec = |name| format!("{}:{name}", program.group());
            names.into_iter().map(namespec).collect()
        }
        _ => Vec::new(),
    }
}

/// The name of a process with its group.
fn full(name: &str) -> String {
    match crate::namespec::split_namespec(name) {
        (group, Some(process)) => format!("{group}:{process}"),
        (group, None) => format!("{group}:*"),
    }
}

/// Whether an entry is a call of this method of the daemon's.
fn calls(entry: &Value, method: &str) -> bool {
    let name = entry.get("methodName").and_then(Value::as_str);
    name.and_then(|name| name.strip_prefix("supervisor.")) == Some(method)
}

fn fault_struct(fault: Fault) -> Value {
    Value::Struct(vec![
        ("faultCode".to_owned(), fault.code.into()),
        ("faultString".to_owned(), fault.text.into()),
    ])
}
