//! The worker's state and its basic operations: the intent, the generated file, calls to the daemon, and
//! the commit. Transactions and recovery use it. Only the worker holds it, by `&mut`.
//!
//! Invariants:
//! 1. A generated file is in place only while an intent is open. A daemon that starts at that moment reads
//!    the file too, and recovery finds the affected groups in the intent.
//! 2. A client gets its reply only after the change was written to the journal, as far as the disk allows
//!    it.
//! 3. No two real groups get the same number.
//! 4. The first addition in an epoch adds the epoch marker too.
//! 5. Only the worker writes the journal, the persist file and the view.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::configs::Configs;
use super::model::answers::{Answers, Query};
use super::model::change::ChangeError;
use super::model::script::{ADD, Call, CallResult, REMOVE};
use super::model::view::{Epoch, Status, View};
use super::queries;
use crate::audit::reason;
use crate::daemon::conf::{self, ConfiguredGroup};
use crate::daemon::{CallError, Daemon, Liveness, ProcessInfo, ReloadResult};
use crate::failpoint;
use crate::fault::{
    ALREADY_ADDED, BAD_NAME, CANT_REREAD, FAILED, SHUTDOWN_STATE, STILL_RUNNING, fault,
};
use crate::include_dir::{self, Delivery, IncludeDir, Staged, Withheld};
use crate::persist::{Basis, PersistFile, Prepared};
use crate::program;
use crate::registry::losses::{self, Cause};
use crate::registry::{DEFAULT_PRIORITY, Event, Journal, Registry, is_marker, real_name};
use crate::xmlrpc::{Fault, Value};

/// The maximum number of reconnections of the liveness connection during a change. The daemon may close an
/// idle connection once. A daemon that closes every new connection cannot serve a change.
const MAX_RECONNECTS: u32 = 5;
/// How long the first new connection must last. The time doubles with each retry.
const RECONNECT_DELAY: Duration = Duration::from_millis(20);
/// The interval between two checks whether processes have stopped.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The time limit for stopping processes. The next attempt continues where this one ended.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// With more processes than this, reading the persist file costs the daemon more than 10 ms.
const WITHHOLD_THRESHOLD: usize = 32;

/// Everything that the worker owns.
pub(super) struct Engine {
    pub(super) daemon: Arc<Daemon>,
    pub(super) liveness: Arc<Liveness>,
    pub(super) journal: Journal,
    /// `None` without `--persist`.
    pub(super) persist: Option<PersistFile>,
    pub(super) view: Arc<RwLock<View>>,
    pub(super) configs: Arc<Configs>,
    pub(super) include: Arc<IncludeDir>,
    pub(super) conf_file: PathBuf,
    /// The name of the epoch marker. Each proxy uses a name of its own, so that it cannot mistake the
    /// marker of an earlier epoch for its own.
    pub(super) marker: String,
    /// The text of the persist file when the proxy started. Later changes do not affect it.
    pub(super) persist_file_at_start: Option<String>,
    /// The number of changes to the registry.
    pub(super) changes: u64,
    /// Whether the persist file was withheld from the daemon since the last check for losses.
    pub(super) was_withheld: bool,
    /// Added groups that contain processes which this proxy did not add.
    pub(super) foreign_groups: BTreeSet<String>,
    /// How generated files reach the daemon. `None` until the first file is staged.
    pub(super) delivery: Option<Delivery>,
    /// The URL at which placed processes call supervisord. `None` until the proxy listens.
    pub(super) proxy_url: Option<String>,
}

/// Why the worker stops an operation before its end. An open intent stays open for recovery.
#[derive(Clone, Debug)]
pub(super) enum Interrupted {
    /// The daemon restarted, or may have restarted.
    Restarted,
    /// The daemon did not answer.
    Unreachable(String),
    /// The daemon is stopping or restarting, or answered the whole multicall with this fault.
    ShuttingDown(Fault),
    /// The daemon rejected the credentials.
    Unauthorized(StatusCode),
}

impl From<Interrupted> for ChangeError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Restarted => {
                ChangeError::Unreachable("supervisord was started again meanwhile".to_owned())
            }
            Interrupted::Unreachable(reason) => ChangeError::Unreachable(reason),
            Interrupted::ShuttingDown(fault) => ChangeError::Fault(fault),
            Interrupted::Unauthorized(status) => ChangeError::Status(status),
        }
    }
}

impl From<CallError> for Interrupted {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Fault(fault) => Interrupted::ShuttingDown(fault),
            CallError::Status(status) => Interrupted::Unauthorized(status),
            CallError::Unreachable(reason) => Interrupted::Unreachable(reason),
            CallError::Unreadable(error) => Interrupted::ShuttingDown(fault(FAILED, error)),
        }
    }
}

/// Steps that are in the journal and not yet executed. [`Engine::commit`] or [`Engine::abandon`] closes the
/// intent. If it is dropped, it stays open in the journal, and recovery closes it.
#[must_use]
pub(super) struct Intent {
    pub(super) events: Vec<Event>,
}

/// A generated file that is in place for the daemon to read.
#[must_use]
pub(super) struct StagedRead {
    pub(super) intent: Intent,
    pub(super) text: String,
    file: Staged,
}

/// A staged file that the daemon has read, in the epoch that the view describes.
#[must_use]
pub(super) struct Reading {
    pub(super) staged: StagedRead,
    pub(super) reloaded: Result<ReloadResult, Fault>,
}

/// The daemon's results of a script, in the epoch that the view describes.
#[must_use]
pub(super) struct Executed {
    intent: Intent,
    pub(super) results: Vec<CallResult>,
}

impl StagedRead {
    /// Returns the intent and the file, for [`Engine::execute`].
    pub(super) fn into_parts(self) -> (Intent, Option<Staged>) {
        (self.intent, Some(self.file))
    }

    /// Removes the file and returns the intent.
    pub(super) fn into_intent(self) -> Intent {
        self.intent
    }
}

impl Engine {
    /// Calls `read` with the registry.
    pub(super) fn with_registry<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        read(&self.read_view().registry)
    }

    fn read_view(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.read_view().epoch
    }

    pub(super) fn status(&self) -> Status {
        self.read_view().status
    }

    pub(super) fn set_status(&mut self, status: Status) {
        self.publish(|view| view.status = status);
    }

    /// Whether this proxy has adopted the groups of an earlier proxy.
    pub(super) fn has_adopted(&self) -> bool {
        self.read_view().adopted
    }

    pub(super) fn set_adopted(&mut self) {
        self.publish(|view| view.adopted = true);
    }

    /// Begins the next epoch.
    pub(super) fn begin_epoch(&mut self) {
        self.publish(|view| view.epoch = view.epoch.next());
    }

    pub(super) fn persists(&self) -> bool {
        self.persist.is_some()
    }

    /// Logs the names of the groups and processes that `events` remove, if any.
    pub(super) fn log_losses(&self, events: &[Event], cause: Cause) {
        if let Some(names) = self.with_registry(|registry| losses::describe(registry, events)) {
            losses::log(&names, cause, self.persists());
        }
    }

    pub(super) fn needs_marker(&self) -> bool {
        self.with_registry(|registry| registry.marker().is_none())
    }

    pub(super) fn proxy_url(&self) -> Option<&str> {
        self.proxy_url.as_deref()
    }

    /// The name of an empty group that the daemon reads and that is never added.
    fn trial_name(&self) -> String {
        format!("{}~try", self.marker)
    }

    /// The names of the proxy's own groups.
    pub(super) fn own_groups(&self) -> [String; 2] {
        [self.marker.clone(), self.trial_name()]
    }

    /// The groups that the user's files define now. Returns none if the files cannot be read: the daemon
    /// reports the error when it reads them itself.
    pub(super) fn configured(&self) -> Vec<ConfiguredGroup> {
        conf::configured_groups(&self.conf_file)
    }

    /// Marks the numbers of real groups below `next` as used.
    pub(super) fn reserve_numbers(&mut self, next: u64) {
        self.publish(|view| view.registry.apply(Event::Next(next)));
    }

    /// Returns a new name for a real group.
    pub(super) fn take_number(&mut self, group: &str) -> String {
        let next = self.with_registry(Registry::next);
        self.reserve_numbers(next + 1);
        real_name(group, next)
    }

    /// Sends queries to the daemon in one round trip.
    pub(super) async fn query(&mut self, queries: Vec<Query>) -> Result<Answers, Interrupted> {
        let results = self.multicall(&queries::calls(&queries)).await?;
        queries::answers(queries, results).map_err(Interrupted::ShuttingDown)
    }

    pub(super) async fn call(&mut self, method: &str) -> Result<Value, CallError> {
        self.daemon.call(method, &[]).await
    }

    pub(super) async fn multicall(
        &mut self,
        calls: &[Call],
    ) -> Result<Vec<CallResult>, Interrupted> {
        let results = self.daemon.multicall(calls).await;
        let results = self.check_answer(results)?;
        ensure_not_shutting_down(results.iter().find_map(|result| result.as_ref().err()))?;
        Ok(results)
    }

    /// Sends `queries` and then `reloadConfig` to the daemon, in one round trip.
    pub(super) async fn query_and_reload(
        &mut self,
        queries: Vec<Query>,
    ) -> Result<(Answers, Result<ReloadResult, Fault>), Interrupted> {
        let calls = queries::calls(&queries);
        let answer = self.daemon.multicall_and_reload(calls).await;
        let (results, reloaded) = self.check_answer(answer)?;
        ensure_not_shutting_down(results.iter().find_map(|result| result.as_ref().err()))?;
        ensure_not_shutting_down(reloaded.as_ref().err())?;
        let answers = queries::answers(queries, results).map_err(Interrupted::ShuttingDown)?;
        Ok((answers, reloaded))
    }

    /// Sets the status to `Unknown` if the daemon did not answer: it may have restarted.
    fn check_answer<T>(&mut self, answer: Result<T, CallError>) -> Result<T, Interrupted> {
        answer.map_err(|error| {
            if matches!(error, CallError::Unreachable(_)) {
                self.set_status(Status::Unknown);
            }
            error.into()
        })
    }

    /// Sets the status to `Unknown`, so that recovery closes the open intent.
    fn set_interrupted(&mut self, interrupted: Interrupted) -> Interrupted {
        self.set_status(Status::Unknown);
        interrupted
    }

    /// Writes `events` to the journal as the open intent. With `adds_marker`, the intent includes the epoch
    /// marker.
    ///
    /// # Errors
    /// When the journal cannot be written. The caller must not execute the steps then.
    pub(super) fn intend(
        &mut self,
        events: Vec<Event>,
        adds_marker: bool,
    ) -> Result<Intent, ChangeError> {
        failpoint::hit("planned");
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let mut steps = vec![Event::Next(view.registry.next())];
        if adds_marker {
            steps.push(Event::Marker(self.marker.clone()));
        }
        steps.extend_from_slice(&events);
        let written = self.journal.begin(steps, &view.registry);
        if written.is_ok() {
            view.registry.expect(&events);
        }
        drop(view);
        written.map_err(|error| self.cannot_write(&error))?;
        failpoint::hit("begun");
        Ok(Intent { events })
    }

    /// Puts a generated file with `text` in place for the daemon to read.
    ///
    /// # Errors
    /// When the file cannot be written, or the daemon does not answer. The intent is closed then, and
    /// nothing has changed.
    pub(super) async fn stage(
        &mut self,
        intent: Intent,
        text: String,
    ) -> Result<StagedRead, ChangeError> {
        match self.stage_file(&text).await {
            Ok(file) => Ok(StagedRead { intent, text, file }),
            Err(error) => {
                self.abandon(intent);
                Err(error)
            }
        }
    }

    /// Lets the daemon answer `queries` and read the staged file.
    pub(super) async fn read(
        &mut self,
        staged: StagedRead,
        queries: Vec<Query>,
    ) -> Result<(Answers, Reading), Interrupted> {
        failpoint::hit("staged");
        let withheld = self.withhold();
        let answer = self.query_and_reload(queries).await;
        drop(withheld);
        failpoint::hit("read");
        let (answers, reloaded) = answer.map_err(|error| self.set_interrupted(error))?;
        self.confirm_epoch().await?;
        Ok((answers, Reading { staged, reloaded }))
    }

    /// Withholds the persist file from the daemon if many processes are in it. The daemon already has these
    /// processes, and serves no other client while it parses them. The file is back before the daemon
    /// changes anything.
    pub(super) fn withhold(&mut self) -> Option<Withheld> {
        let has_many =
            self.with_registry(|registry| registry.members().nth(WITHHOLD_THRESHOLD).is_some());
        let withheld = (self.persists() && has_many).then(|| self.include.withhold())??;
        self.was_withheld = true;
        failpoint::hit("withheld");
        Some(withheld)
    }

    /// Executes `calls` while the file is in place, then removes the file.
    pub(super) async fn execute(
        &mut self,
        (intent, file): (Intent, Option<Staged>),
        calls: &[Call],
    ) -> Result<Executed, Interrupted> {
        let results = self.multicall(calls).await;
        let results = results.map_err(|error| self.set_interrupted(error))?;
        failpoint::hit("answered");
        drop(file);
        failpoint::hit("taken away");
        self.confirm_epoch().await?;
        Ok(Executed { intent, results })
    }

    /// Writes `events` to the journal, the registry and the persist file. The worker may answer clients
    /// after this.
    pub(super) fn commit(
        &mut self,
        executed: Executed,
        events: Vec<Event>,
        prepared: Option<Prepared>,
    ) {
        let Executed { intent, .. } = executed;
        drop(intent);
        // If another change came in between, the prepared file is out of date.
        let prepared = prepared.filter(|prepared| prepared.is_after(self.changes, &events));
        self.close_intent(events);
        failpoint::hit("done");
        self.put_persist_file(prepared);
        failpoint::hit("kept");
    }

    /// Commits the `events` that are certain, and leaves the rest of the intent to recovery.
    pub(super) fn commit_partly(&mut self, executed: Executed, events: Vec<Event>) {
        drop(executed);
        self.note(events);
        self.write_persist_file();
        self.set_status(Status::Unknown);
    }

    /// Sets the status to `Unknown` if an intent is still open after a change, so that recovery closes it.
    pub(super) fn leave_to_recovery(&mut self) {
        if !self.journal.intent().is_empty() {
            self.set_status(Status::Unknown);
        }
    }

    /// Closes an intent of which no step was executed.
    pub(super) fn abandon(&mut self, intent: Intent) {
        drop(intent);
        self.close_intent(Vec::new());
    }

    /// Closes the open intent with the `events` that happened.
    pub(super) fn close_intent(&mut self, events: Vec<Event>) {
        let events = self.apply_all(events);
        self.publish(|view| view.registry.expect(&[]));
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        self.journal.close(events, &view.registry);
    }

    /// Writes `events` to the journal. An open intent stays open.
    pub(super) fn note(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let events = self.apply_all(events);
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        self.journal.note(events, &view.registry);
    }

    /// Applies `events` to the published registry. Returns them as the journal records them.
    fn apply_all(&mut self, mut events: Vec<Event>) -> Vec<Event> {
        self.changes += 1;
        self.configs.remove_outdated(&events);
        self.publish(|view| {
            for event in &events {
                view.registry.apply(event.clone());
            }
            events.push(Event::Next(view.registry.next()));
        });
        events
    }

    /// Replaces the registry and discards the intent.
    pub(super) fn replace(&mut self, mut registry: Registry) {
        self.changes += 1;
        self.configs.clear();
        registry.expect(&[]);
        self.journal.checkpoint(&registry);
        self.publish(|view| view.registry = registry);
    }

    /// Confirms that the daemon is still in the epoch that the view describes. Costs one system call while
    /// the liveness connection is unbroken.
    pub(super) async fn confirm_epoch(&mut self) -> Result<(), Interrupted> {
        if self.liveness.is_unbroken() {
            return Ok(());
        }
        let confirmed = self.reconnect().await;
        confirmed.map_err(|error| self.set_interrupted(error))
    }

    /// Reconnects the liveness connection. The epoch marker shows whether the daemon is still in the same
    /// epoch.
    async fn reconnect(&mut self) -> Result<(), Interrupted> {
        let marker = self.with_registry(|registry| registry.marker().map(str::to_owned));
        let marker = marker.ok_or(Interrupted::Restarted)?;
        for retry in 0..=MAX_RECONNECTS {
            self.watch().await?;
            let answers = self.query(vec![Query::Group(marker.clone())]).await?;
            if !answers.is_active(&marker) {
                return Err(Interrupted::Restarted);
            }
            // The daemon may close a new connection with a short delay.
            tokio::time::sleep(RECONNECT_DELAY * 2_u32.pow(retry)).await;
            if self.liveness.is_unbroken() {
                return Ok(());
            }
        }
        Err(Interrupted::Unreachable(format!(
            "supervisord at {} closes new connections at once: restart it if that goes on",
            self.daemon.address()
        )))
    }

    /// Begins to watch the daemon's epoch.
    pub(super) async fn watch(&mut self) -> Result<(), Interrupted> {
        let address = self.daemon.address();
        self.liveness.watch(address).await.map_err(|error| {
            Interrupted::Unreachable(format!("supervisord at {address} does not answer: {error}"))
        })
    }

    /// Prepares the persist file for a change, and removes from it the groups and processes that the change
    /// removes.
    pub(super) fn prepare_persist_file(
        &mut self,
        events: Vec<Event>,
        configured: &[ConfiguredGroup],
    ) -> Result<Option<Prepared>, ChangeError> {
        let basis = self.persists().then(|| self.basis(configured.to_vec()));
        let (Some(persist), Some(basis)) = (&mut self.persist, basis) else {
            return Ok(None);
        };
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let prepared = persist.prepare(&view.registry, events, basis);
        drop(view);
        prepared
            .map(Some)
            .map_err(|error| self.cannot_write(&error))
    }

    /// The inputs besides the registry that determine the text of the persist file now.
    fn basis(&self, configured: Vec<ConfiguredGroup>) -> Basis {
        Basis {
            changes: self.changes,
            configured,
            proxy: self.proxy_url.clone(),
        }
    }

    /// Puts the prepared persist file in place. Writes the whole file if that fails or nothing is prepared.
    fn put_persist_file(&mut self, prepared: Option<Prepared>) {
        let Some(prepared) = prepared else {
            return self.write_persist_file();
        };
        let result = self.persist.as_mut().map(|persist| persist.put(prepared));
        let Some(Err(error)) = result else {
            return;
        };
        tracing::debug!(%error, "writing the whole persist file");
        let basis = self.basis(self.configured());
        let registry = self.with_registry(Registry::clone);
        let result = self
            .persist
            .as_mut()
            .map(|persist| persist.rewrite(&registry, basis));
        self.report_persist_file(result.unwrap_or(Ok(())));
    }

    /// Writes the registry to the persist file, with `--persist`.
    pub(super) fn write_persist_file(&mut self) {
        if !self.persists() {
            return;
        }
        let registry = self.with_registry(Registry::clone);
        let written = self.write_persist_file_of(&registry);
        self.report_persist_file(written);
    }

    fn report_persist_file(&self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!(%error, dir = %self.include.path().display(), "what was changed will not outlive supervisord");
        }
    }

    /// Writes `registry` to the persist file, with `--persist`.
    pub(super) fn write_persist_file_of(&mut self, registry: &Registry) -> io::Result<()> {
        let basis = self.basis(self.configured());
        match &mut self.persist {
            Some(persist) => persist.write(registry, basis),
            None => Ok(()),
        }
    }

    async fn stage_file(&mut self, text: &str) -> Result<Staged, ChangeError> {
        let delivery = self.delivery().await?;
        self.stage_with(text, delivery)
    }

    async fn delivery(&mut self) -> Result<Delivery, ChangeError> {
        let delivery = match self.delivery {
            Some(delivery) => delivery,
            None => self.test_delivery().await?,
        };
        self.delivery = Some(delivery);
        Ok(delivery)
    }

    /// Opens an intent for probes. Returns it together with the delivery that reaches the daemon.
    ///
    /// # Errors
    /// When the journal cannot be written, or the daemon does not answer.
    pub(super) async fn open_probe_intent(&mut self) -> Result<(Intent, Delivery), ChangeError> {
        let intent = self.intend(Vec::new(), false)?;
        match self.delivery().await {
            Ok(delivery) => Ok((intent, delivery)),
            Err(error) => {
                self.abandon(intent);
                Err(error)
            }
        }
    }

    fn stage_with(&self, text: &str, delivery: Delivery) -> Result<Staged, ChangeError> {
        debug_assert!(!self.journal.intent().is_empty(), "no intent is open");
        let staged = self.include.stage(text, delivery);
        staged.map_err(|error| self.cannot_write(&error))
    }

    /// Tests whether the daemon can follow a link through this process. It stages an empty group that is
    /// never added.
    async fn test_delivery(&mut self) -> Result<Delivery, ChangeError> {
        let group = self.trial_name();
        let staged = self.stage_with(&empty_group(&group), Delivery::Link)?;
        let reloaded = self.call("supervisor.reloadConfig").await?;
        drop(staged);
        self.warn_of_other_markers(&reloaded);
        let is_link_read = ReloadResult::read(&reloaded).added.contains(&group);
        let delivery = if is_link_read {
            Delivery::Link
        } else {
            Delivery::File
        };
        tracing::debug!(?delivery, "tried how generated files reach supervisord");
        Ok(delivery)
    }

    /// Warns if the daemon has the epoch marker of another proxy. That proxy uses another include
    /// directory, so its lock is not visible, and it may not run any more.
    fn warn_of_other_markers(&self, reloaded: &Value) {
        let others = ReloadResult::removed_groups(reloaded).filter(|name| is_marker(name));
        for marker in others.filter(|name| *name != self.marker) {
            tracing::warn!(
                "supervisord has the group {marker} of another twiddler: if one still runs in front of it, with another include directory, stop one of the two; if none does, supervisorctl remove {marker} straight on supervisord ends this warning"
            );
        }
    }

    pub(super) fn cannot_write(&self, error: &std::io::Error) -> ChangeError {
        let text = include_dir::unwritable(self.include.path(), error);
        tracing::error!("{text}");
        ChangeError::Fault(fault(FAILED, text))
    }

    /// The fault for a generated file that the daemon did not read. The user need not restart the daemon:
    /// it reads `[include]` again with each `reloadConfig`.
    pub(super) async fn not_read(&self) -> Fault {
        let dir = self.include.path();
        let text = match self.daemon.other_account().await {
            Some(account) => include_dir::unreadable_for(&account, dir),
            None => format!(
                "supervisord did not read {0}; write files = {0}/*.conf below [include] in the file that supervisord was started with, and let its account read {0}",
                dir.display()
            ),
        };
        fault(CANT_REREAD, text)
    }

    /// Stages `text` and adds these groups from it. The caller has opened an intent.
    pub(super) async fn add_read(
        &mut self,
        text: &str,
        groups: &[String],
    ) -> Result<(), ChangeError> {
        let staged = self.stage_file(text).await?;
        let mut calls: Vec<Call> = vec![("supervisor.reloadConfig", vec![])];
        calls.extend(groups.iter().map(|name| (ADD, vec![name.as_str().into()])));
        let mut results = self.multicall(&calls).await?.into_iter();
        drop(staged);
        results.next().unwrap_or(Ok(Value::Nil))?;
        for result in results {
            match result {
                Err(fault) if fault.code == BAD_NAME => return Err(self.not_read().await.into()),
                Err(fault) if fault.code != ALREADY_ADDED => return Err(fault.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the daemon read `text` and adds no group from it. Returns the results of `reloadConfig` and
    /// `getAllConfigInfo`.
    pub(super) async fn read_and_list(
        &mut self,
        text: String,
    ) -> Result<(CallResult, CallResult), ChangeError> {
        let intent = self.intend(Vec::new(), false)?;
        let staged = self.stage(intent, text).await?;
        let calls: [Call; 2] = [
            ("supervisor.reloadConfig", vec![]),
            ("supervisor.getAllConfigInfo", vec![]),
        ];
        let results = self.multicall(&calls).await;
        let results = results.map_err(|error| self.set_interrupted(error))?;
        self.abandon(staged.into_intent());
        let mut results = results.into_iter();
        let mut next = || results.next().unwrap_or(Ok(Value::Nil));
        Ok((next(), next()))
    }

    /// Adds the epoch marker to the daemon.
    pub(super) async fn mark(&mut self) -> Result<(), ChangeError> {
        let marker = self.marker.clone();
        let intent = self.intend(Vec::new(), true)?;
        let text = empty_group(&marker);
        match self.add_read(&text, std::slice::from_ref(&marker)).await {
            Ok(()) => {
                drop(intent);
                self.close_intent(vec![Event::Marker(marker)]);
                Ok(())
            }
            Err(error) => {
                if error.fault().is_some() {
                    self.abandon(intent);
                }
                Err(error)
            }
        }
    }

    /// Adds the epoch marker to the daemon. If the user's files are invalid, the daemon cannot add it, and
    /// the proxy takes the daemon for a restarted one the next time.
    pub(super) async fn mark_if_possible(&mut self) -> Result<(), ChangeError> {
        match self.mark().await {
            Err(ChangeError::Fault(fault)) if fault.code != SHUTDOWN_STATE => {
                tracing::warn!(
                    fault = reason(&fault),
                    "supervisord's present epoch cannot be marked yet"
                );
                Ok(())
            }
            marked => marked,
        }
    }

    /// Stops and removes `groups`, and then adds the groups in `recreate` as the user's files define them.
    pub(super) async fn remove(
        &mut self,
        groups: &BTreeSet<String>,
        recreate: &BTreeSet<String>,
    ) -> Result<(), Interrupted> {
        if groups.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            ?groups,
            "removing what supervisord read when it started, and is not to have"
        );
        self.call("supervisor.reloadConfig").await.ok();
        self.stop_and_remove(groups).await?;
        let add = |name: &String| (ADD, vec![name.as_str().into()]);
        self.multicall(&recreate.iter().map(add).collect::<Vec<_>>())
            .await?;
        Ok(())
    }

    /// Stops all groups at once, and removes each one as soon as its processes have stopped.
    ///
    /// # Errors
    /// When processes have not stopped within [`STOP_LIMIT`], or the daemon does not answer.
    pub(super) async fn stop_and_remove(
        &mut self,
        groups: &BTreeSet<String>,
    ) -> Result<(), Interrupted> {
        let mut remaining: Vec<&String> = groups.iter().collect();
        let deadline = Instant::now() + STOP_LIMIT;
        while !remaining.is_empty() {
            // Stopped in each round, because the daemon may restart processes that had exited.
            let answers = self.query(vec![Query::AllProcesses]).await?;
            let processes = answers.processes.values();
            self.stop(processes.filter(|info| remaining.contains(&&info.group)))
                .await?;
            let calls: Vec<Call> = remaining
                .iter()
                .map(|name| (REMOVE, vec![name.as_str().into()]))
                .collect();
            let mut results = self.multicall(&calls).await?.into_iter();
            remaining.retain(
                |_| matches!(results.next(), Some(Err(fault)) if fault.code == STILL_RUNNING),
            );
            if remaining.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                let names: Vec<&str> = remaining.into_iter().map(String::as_str).collect();
                return Err(Interrupted::Unreachable(format!(
                    "supervisord has not stopped {} in {STOP_LIMIT:?}: stop their processes",
                    names.join(", ")
                )));
            }
            tokio::time::sleep(STOP_CHECK_INTERVAL).await;
        }
        Ok(())
    }

    /// Sends a stop request for each running process, and does not wait until they have stopped.
    pub(super) async fn stop(
        &mut self,
        processes: impl Iterator<Item = &ProcessInfo>,
    ) -> Result<(), Interrupted> {
        let stop = |info: &ProcessInfo| {
            let name = format!("{}:{}", info.group, info.name);
            (
                "supervisor.stopProcess",
                vec![name.into(), Value::Bool(false)],
            )
        };
        let running = processes.filter(|info| !info.state.is_stopped());
        let calls: Vec<Call> = running.map(stop).collect();
        self.multicall(&calls).await?;
        Ok(())
    }
}

/// The section of an empty group of the proxy's own.
pub(super) fn empty_group(name: &str) -> String {
    program::render_group(name, DEFAULT_PRIORITY, &[])
}

/// Fails if the daemon answers that it is stopping or restarting.
fn ensure_not_shutting_down(fault: Option<&Fault>) -> Result<(), Interrupted> {
    match fault {
        Some(fault) if fault.code == SHUTDOWN_STATE => {
            Err(Interrupted::ShuttingDown(fault.clone()))
        }
        _ => Ok(()),
    }
}
