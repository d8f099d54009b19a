//! `system.multicall` with calls for the daemon and calls that the proxy answers.
//!
//! The results have the order of the calls and the daemon's forms: bare values, and structs for faults
//! (`supervisor/xmlrpc.py`, `multicall`). Successive calls for the daemon are sent to it in one multicall,
//! and successive changes are made together.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::bulk::is_true;
use super::methods::Request;
use super::steps::Step;
use super::supervisor::{self, Rewrite, Translation};
use super::wording::Api;
use super::{
    Answer, Caller, Rpc, log_refusal, namespace, read_entry, read_reply, refused_call, reply,
    share, system,
};
use crate::failure::{Failure, HttpResult};
use crate::fault::{
    ABNORMAL_TERMINATION, ALREADY_STARTED, SHUTDOWN_STATE, SPAWN_ERROR, fault, without_detail,
};
use crate::translate::{self, MethodKind, method_kind};
use crate::twiddler::{Change, ChangeError, Epoch};
use crate::xmlrpc::{self, Fault, MethodCall, Value};

/// The largest number of calls in one multicall. The daemon serves no other client while it executes them.
pub const MAX_CALLS: usize = 10_000;

/// How often the state of a starting process is queried, as by the daemon (`startProcess`, `onwait.delay`).
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The state of a multicall: the results so far, and successive calls or changes that are sent together.
struct Progress<'a> {
    rpc: &'a Rpc,
    caller: &'a Caller<'a>,
    results: Vec<Value>,
    /// Calls for the daemon, with the rewrite of the answer and the epoch in which it is valid.
    queries: Vec<(Value, Option<(Rewrite, Epoch)>)>,
    changes: Vec<(Change, Api)>,
    /// Namespecs of processes that this multicall has added and that the daemon starts by itself.
    starting: HashSet<String>,
    /// Whether the daemon is ending, so that it may not answer any more.
    is_ending: bool,
    /// Whether `allow` has denied an entry.
    has_denied: bool,
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
                if self.is_restricted() || entries.iter().any(|entry| self.concerns(entry)) =>
            {
                Ok(reply(self.mixed(caller, entries).await))
            }
            params => {
                let mut pause = None;
                if let [Value::Array(entries)] = params {
                    if entries.iter().any(|entry| calls(entry, "getVersion")) {
                        self.update_sessions.end(caller.update, &caller.origin());
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

    /// Whether the proxy has to handle an entry, instead of forwarding it unchanged.
    fn concerns(&self, entry: &Value) -> bool {
        let Some(call) = read_entry(entry) else {
            return false;
        };
        match namespace(&call.method) {
            ("twiddler", _) => true,
            ("system", name) => system::concerns(name, &call.params),
            ("supervisor", name) => {
                method_kind(name) != MethodKind::Nameless && !self.twiddler.has_no_changes()
                    || self.concerns_updates(name)
            }
            _ => false,
        }
    }

    /// Whether an update depends on this `supervisor` method even if nothing was added.
    fn concerns_updates(&self, name: &str) -> bool {
        match method_kind(name) {
            MethodKind::Reload | MethodKind::AddGroup => true,
            _ => self.updates.is_live() && Step::is_one(name),
        }
    }

    /// Answers a `supervisor` call as if it were not in a multicall.
    async fn single_call(&self, caller: &Caller<'_>, name: &str, call: &MethodCall) -> Answer {
        let body = xmlrpc::write::call(&call.method, &call.params);
        let response = self
            .supervisor_call(caller, name, call, body.into())
            .await?;
        read_reply(response).await
    }

    async fn mixed(&self, caller: &Caller<'_>, entries: &[Value]) -> Answer {
        self.authorize(caller).await?;
        let mut progress = Progress {
            rpc: self,
            caller,
            results: Vec::with_capacity(entries.len()),
            queries: Vec::new(),
            changes: Vec::new(),
            starting: HashSet::new(),
            is_ending: false,
            has_denied: false,
        };
        for entry in entries {
            progress.answer_entry(entry).await?;
        }
        progress.flush().await?;
        Ok(Value::Array(progress.results))
    }
}

impl Progress<'_> {
    async fn answer_entry(&mut self, entry: &Value) -> Result<(), Failure> {
        if let Some(fault) = self.rpc.entry_denied(entry) {
            self.flush().await?;
            // Only the first denied entry of a multicall is logged.
            if std::mem::replace(&mut self.has_denied, true) {
                return self.push(Err(fault.into()));
            }
            let method = read_entry(entry).map(|call| call.method);
            let what = refused_call(method.as_deref().unwrap_or("an entry"));
            return self.push(Err(log_refusal(self.caller, &what, fault)));
        }
        if self.is_ending {
            return self.push(Err(without_detail(SHUTDOWN_STATE).into()));
        }
        let Some(call) = read_entry(entry) else {
            // The daemon answers an unreadable entry with its own fault.
            return self.query(entry.clone(), None).await;
        };
        match namespace(&call.method) {
            ("twiddler", name) => self.twiddler_entry(name, &call).await,
            ("supervisor", name) => self.supervisor_entry(name, &call, entry).await,
            ("system", name) if system::concerns(name, &call.params) => {
                self.flush().await?;
                let answer = self.rpc.system_call(self.caller, name, &call).await;
                self.push(answer)
            }
            _ => self.query(entry.clone(), None).await,
        }
    }

    async fn twiddler_entry(&mut self, name: &str, call: &MethodCall) -> Result<(), Failure> {
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
                self.push(Err(log_refusal(self.caller, &what, fault)))
            }
        }
    }

    async fn supervisor_entry(
        &mut self,
        name: &str,
        call: &MethodCall,
        entry: &Value,
    ) -> Result<(), Failure> {
        // Earlier changes can change the meaning of names.
        self.flush_changes().await?;
        if Step::is_one(name) || method_kind(name) == MethodKind::Reload || name == "getVersion" {
            self.flush_queries().await?;
            let answer = self.rpc.single_call(self.caller, name, call).await;
            return self.push(answer);
        }
        if name == "startProcess"
            && let Some(Value::String(process)) = call.params.first()
            && self.starting.remove(&full_name(process))
        {
            self.flush_queries().await?;
            let answer = self.rpc.start_added(self.caller, process, call).await;
            return self.push(answer);
        }
        if let Some(bulk) = supervisor::bulk_call(name, &call.params) {
            let bulk = bulk.take_starting(&mut self.starting);
            // The daemon's loop turns before the next call, which starts the other added processes.
            self.starting.clear();
            if bulk.starts_added() {
                self.flush_queries().await?;
                let answer = self.rpc.run_bulk(self.caller, bulk).await;
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
            Translation::Same => self.query(entry.clone(), None).await,
            Translation::Query(params, rewrite) => {
                let entry = Value::Struct(vec![
                    ("methodName".to_owned(), call.method.as_str().into()),
                    ("params".to_owned(), Value::Array(params)),
                ]);
                self.query(entry, Some((rewrite, epoch))).await
            }
            Translation::Change(change, api) => self.change(change, api).await,
            Translation::End(ending) => {
                self.flush().await?;
                let answer = self.rpc.end(self.caller, ending).await;
                self.is_ending = answer.is_ok();
                self.push(answer)
            }
            other => {
                self.flush().await?;
                let answer = self.rpc.execute(self.caller, other).await;
                self.push(answer)
            }
        }
    }

    async fn query(
        &mut self,
        entry: Value,
        rewrite: Option<(Rewrite, Epoch)>,
    ) -> Result<(), Failure> {
        self.flush_changes().await?;
        self.queries.push((entry, rewrite));
        Ok(())
    }

    async fn change(&mut self, change: Change, api: Api) -> Result<(), Failure> {
        self.flush_queries().await?;
        self.changes.push((change, api));
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        self.flush_changes().await?;
        self.flush_queries().await
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

    async fn flush_queries(&mut self) -> Result<(), Failure> {
        if self.queries.is_empty() {
            return Ok(());
        }
        let (entries, rewrites): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queries).into_iter().unzip();
        // This method lists the daemon's last reading, which must not be that of a generated file.
        let lists_configs = entries.iter().any(|entry| calls(entry, "getAllConfigInfo"));
        let pause = if lists_configs {
            self.rpc.twiddler.pause_reloads().await
        } else {
            None
        };
        let answer = self
            .rpc
            .query(self.caller, "system.multicall", &[Value::Array(entries)])
            .await?;
        // The rewrite of the answer may need a reading by the proxy.
        drop(pause);
        let Value::Array(results) = answer else {
            return Ok(());
        };
        for (_, epoch) in rewrites.iter().flatten() {
            let still = self.rpc.twiddler.ensure_epoch(*epoch).await;
            if let Err(ChangeError::Unreachable(reason)) = still {
                return Err(Failure::Unreachable(reason));
            }
        }
        for (result, rewrite) in results.into_iter().zip(rewrites) {
            let result = match rewrite {
                None => Ok(result),
                Some((rewrite, epoch)) => {
                    let answer = crate::daemon::multicall_result(result);
                    self.rpc
                        .rewrite_answer(self.caller, answer, &rewrite, epoch)
                        .await
                }
            };
            self.push(result.map_err(Failure::Fault))?;
        }
        Ok(())
    }

    /// Adds the result of an entry. A fault is a result; any other failure ends the multicall.
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
    /// supervisor_twiddler the process does not run yet, so the call succeeds. Here the daemon may have started
    /// it, which must not be a fault.
    async fn start_added(&self, caller: &Caller<'_>, process: &str, call: &MethodCall) -> Answer {
        let mapping = self
            .twiddler
            .with_registry(|registry| translate::map_name(registry, process));
        let real = mapping.as_ref().map_or(process, |mapping| &mapping.real);
        let info = self
            .query(caller, "supervisor.getProcessInfo", &[real.into()])
            .await;
        if info.is_ok_and(|info| has_been_up(&info)) {
            return Ok(Value::Bool(true));
        }
        let mut params = call.params.clone();
        params[0] = real.into();
        let waits = params.get(1).is_none_or(is_true);
        let mut answer = self.query(caller, &call.method, &params).await;
        if matches!(&answer, Err(Failure::Fault(fault)) if fault.code == ALREADY_STARTED) {
            answer = if waits {
                self.until_started(caller, real).await
            } else {
                Ok(Value::Bool(true))
            };
        }
        match (answer, mapping) {
            (Err(Failure::Fault(fault)), Some(mapping)) => {
                mapping.rewrite_reply(Err(fault)).map_err(Failure::Fault)
            }
            (answer, _) => answer,
        }
    }

    /// Waits until a process is no longer STARTING, which ends after `startsecs`
    /// (`supervisor/rpcinterface.py`, `startProcess`). Returns true, or the daemon's fault for a failed start.
    async fn until_started(&self, caller: &Caller<'_>, real: &str) -> Answer {
        loop {
            let info = self
                .query(caller, "supervisor.getProcessInfo", &[real.into()])
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
                Some("STARTING") => tokio::time::sleep(POLL_INTERVAL).await,
                _ => return Err(fault(ABNORMAL_TERMINATION, real).into()),
            }
        }
    }
}

/// Whether a process has exited after it was RUNNING. Before, it would be in BACKOFF.
fn has_been_up(info: &Value) -> bool {
    info.get("statename").and_then(Value::as_str) == Some("EXITED")
}

/// The namespecs of the processes that the daemon starts by itself after this change.
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

/// The name as `group:process`, or `group:*` for a whole group.
fn full_name(name: &str) -> String {
    match crate::namespec::split_namespec(name) {
        (group, Some(process)) => format!("{group}:{process}"),
        (group, None) => format!("{group}:*"),
    }
}

/// Whether an entry is a call of this `supervisor` method.
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
