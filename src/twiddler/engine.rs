//! What a transaction and recovery stand on: the intent, the generated file, the daemon's calls, the
//! outcome. The worker alone holds it, by `&mut`.
//!
//! Invariants:
//! 1. A generated file is in place only while an intent is open: a daemon that starts at that moment
//!    reads it too, and recovery knows what to look for.
//! 2. A client is told of a change only when it was written to the journal, as far as the disk takes it.
//! 3. The number of a real group is used once.
//! 4. Whatever is added brings the marker of its epoch along, if that is not there yet.
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
use crate::registry::Journal;
use crate::registry::losses::{self, Cause};
use crate::registry::{DEFAULT_PRIORITY, Event, Registry};
use crate::registry::{is_marker, real_name};
use crate::xmlrpc::{Fault, Value};

/// How often the connection by which the epoch is known is made again during a change. One that
/// idled too long is broken once; a daemon that breaks each is not fit for a change.
const RETRIES: u32 = 5;
/// How long the first of them must last. Each later one twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often processes that are to go are looked at until they have stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long that takes at most. They are told to stop each time, and the next attempt goes on.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// From this many processes on the persist file costs the daemon more than 10 ms a reading.
const MUCH: usize = 32;

/// Everything that the worker owns.
pub(super) struct Engine {
    pub(super) daemon: Arc<Daemon>,
    pub(super) link: Arc<Liveness>,
    pub(super) journal: Journal,
    /// Nothing where what is added does not outlive the daemon.
    pub(super) persist: Option<PersistFile>,
    pub(super) view: Arc<RwLock<View>>,
    pub(super) configs: Arc<Configs>,
    pub(super) include: Arc<IncludeDir>,
    pub(super) conf_file: PathBuf,
    /// The group that marks the daemon's epoch. Each proxy gives it another name, so that the marker of
    /// an earlier epoch is never mistaken.
    pub(super) marker: String,
    /// What was kept when the proxy started, whatever became of it since.
    pub(super) kept_before: Option<String>,
    /// How often what is known was changed.
    pub(super) changes: u64,
    /// The persist file was withheld from the daemon since losses were looked for.
    pub(super) was_withheld: bool,
    /// Groups that were added, and hold processes of somebody else's.
    pub(super) held: BTreeSet<String>,
    /// How generated files reach the daemon, once that was tried.
    pub(super) delivery: Option<Delivery>,
    /// Where placed processes call supervisord, once the proxy listens.
    pub(super) proxy_url: Option<String>,
}

/// Why the worker stops in the middle. An intent that is open stays so: recovery closes it.
#[derive(Clone, Debug)]
pub(super) enum Interrupted {
    /// The daemon started again, or may have.
    Restarted,
    /// It did not answer.
    Unreachable(String),
    /// It stops or restarts, or answered the whole of a multicall with this fault.
    ShuttingDown(Fault),
    /// It did not take the credentials.
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

/// Steps that are written down, and not made yet. It is closed by [`Engine::commit`] or
/// [`Engine::abandon`]; dropped, it stays open in the journal for recovery.
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

/// The same when the daemon has read it, in the epoch that the view describes.
#[must_use]
pub(super) struct Reading {
    pub(super) staged: StagedRead,
    pub(super) reloaded: Result<ReloadResult, Fault>,
}

/// What the daemon answered when it was asked to act, in the epoch that the view describes.
#[must_use]
pub(super) struct Executed {
    intent: Intent,
    pub(super) results: Vec<CallResult>,
}

impl StagedRead {
    /// The intent and the file, to act on.
    pub(super) fn into_parts(self) -> (Intent, Option<Staged>) {
        (self.intent, Some(self.file))
    }

    /// The intent; the file is taken away.
    pub(super) fn into_intent(self) -> Intent {
        self.intent
    }
}

impl Engine {
    /// Answers from what is known.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.read_view().registry)
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

    /// Whether groups of an earlier proxy were looked for.
    pub(super) fn has_adopted(&self) -> bool {
        self.read_view().adopted
    }

    pub(super) fn set_adopted(&mut self) {
        self.publish(|view| view.adopted = true);
    }

    /// Counts another epoch.
    pub(super) fn begin_epoch(&mut self) {
        self.publish(|view| view.epoch = view.epoch.next());
    }

    pub(super) fn persists(&self) -> bool {
        self.persist.is_some()
    }

    /// Says by name what is gone after these, if anything.
    pub(super) fn say_gone(&self, events: &[Event], cause: Cause) {
        if let Some(gone) = self.look(|registry| losses::gone(registry, events)) {
            losses::say(&gone, cause, self.persists());
        }
    }

    pub(super) fn needs_marker(&self) -> bool {
        self.look(|registry| registry.marker().is_none())
    }

    pub(super) fn proxy_url(&self) -> Option<&str> {
        self.proxy_url.as_deref()
    }

    /// An empty group that the daemon is to read and nobody adds.
    fn trial_name(&self) -> String {
        format!("{}~try", self.marker)
    }

    /// Groups that help to add others.
    pub(super) fn own_groups(&self) -> [String; 2] {
        [self.marker.clone(), self.trial_name()]
    }

    /// What the user's files define now. Files that cannot be read define nothing: the daemon says
    /// what is wrong with them when it reads them itself.
    pub(super) fn configured(&self) -> Vec<ConfiguredGroup> {
        conf::configured_groups(&self.conf_file)
    }

    /// Uses up the numbers of real groups below `next`.
    pub(super) fn reserve_numbers(&mut self, next: u64) {
        self.publish(|view| view.registry.apply(Event::Next(next)));
    }

    /// A new name for a real group.
    pub(super) fn take_number(&mut self, group: &str) -> String {
        let next = self.look(Registry::next);
        self.reserve_numbers(next + 1);
        real_name(group, next)
    }

    /// Puts queries to the daemon in one round trip.
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
        let results = self.heard(results)?;
        not_shutting_down(results.iter().find_map(|result| result.as_ref().err()))?;
        Ok(results)
    }

    /// Lets the daemon read its files, after it has answered `queries`.
    pub(super) async fn query_and_reload(
        &mut self,
        queries: Vec<Query>,
    ) -> Result<(Answers, Result<ReloadResult, Fault>), Interrupted> {
        let calls = queries::calls(&queries);
        let answer = self.daemon.multicall_and_reload(calls).await;
        let (results, reloaded) = self.heard(answer)?;
        not_shutting_down(results.iter().find_map(|result| result.as_ref().err()))?;
        not_shutting_down(reloaded.as_ref().err())?;
        let answers = queries::answers(queries, results).map_err(Interrupted::ShuttingDown)?;
        Ok((answers, reloaded))
    }

    /// A daemon that went away before it answered may have started again.
    fn heard<T>(&mut self, answer: Result<T, CallError>) -> Result<T, Interrupted> {
        answer.map_err(|error| {
            if matches!(error, CallError::Unreachable(_)) {
                self.set_status(Status::Unknown);
            }
            error.into()
        })
    }

    /// Leaves what is open to recovery.
    fn interrupted(&mut self, interrupted: Interrupted) -> Interrupted {
        self.set_status(Status::Unknown);
        interrupted
    }

    /// Writes down that `events` are about to happen; the marker comes with them where it `marks`.
    ///
    /// # Errors
    /// When the disk does not take it; then they must not happen.
    pub(super) fn intend(
        &mut self,
        events: Vec<Event>,
        marks: bool,
    ) -> Result<Intent, ChangeError> {
        failpoint::hit("planned");
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let mut steps = vec![Event::Next(view.registry.next())];
        if marks {
            steps.push(Event::Marker(self.marker.clone()));
        }
        steps.extend_from_slice(&events);
        let begun = self.journal.begin(steps, &view.registry);
        if begun.is_ok() {
            view.registry.expect(&events);
        }
        drop(view);
        begun.map_err(|error| self.cannot_write(&error))?;
        failpoint::hit("begun");
        Ok(Intent { events })
    }

    /// Puts `text` in place for the daemon to read.
    ///
    /// # Errors
    /// When the disk does not allow it, or the daemon does not say how it reads: the intent is closed
    /// then, and nothing has happened.
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

    /// Lets the daemon answer `queries` and read what is staged.
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
        let (answers, reloaded) = answer.map_err(|error| self.interrupted(error))?;
        self.confirm_epoch().await?;
        Ok((answers, Reading { staged, reloaded }))
    }

    /// Withholds the persist file from the daemon where much is in it: the daemon has all of that, and
    /// serves nobody while it reads it again. It is there again before anything is changed.
    pub(super) fn withhold(&mut self) -> Option<Withheld> {
        let is_much = self.look(|registry| registry.members().nth(MUCH).is_some());
        let withheld = (self.persists() && is_much).then(|| self.include.withhold())??;
        self.was_withheld = true;
        failpoint::hit("withheld");
        Some(withheld)
    }

    /// Lets the daemon make these calls while the file is in place, and takes that away.
    pub(super) async fn execute(
        &mut self,
        (intent, file): (Intent, Option<Staged>),
        calls: &[Call],
    ) -> Result<Executed, Interrupted> {
        let results = self.multicall(calls).await;
        let results = results.map_err(|error| self.interrupted(error))?;
        failpoint::hit("answered");
        drop(file);
        failpoint::hit("taken away");
        self.confirm_epoch().await?;
        Ok(Executed { intent, results })
    }

    /// Writes down what happened, and keeps it. Clients may be told after this.
    pub(super) fn commit(
        &mut self,
        executed: Executed,
        events: Vec<Event>,
        prepared: Option<Prepared>,
    ) {
        let Executed { intent, .. } = executed;
        drop(intent);
        // Nothing else was changed in between, or what was prepared is out of date.
        let prepared = prepared.filter(|prepared| prepared.is_after(self.changes, &events));
        self.close_intent(events);
        failpoint::hit("done");
        self.put_persist_file(prepared);
        failpoint::hit("kept");
    }

    /// The same for a part of it, while it is not known what became of the rest.
    pub(super) fn commit_partly(&mut self, executed: Executed, events: Vec<Event>) {
        drop(executed);
        self.note(events);
        self.write_persist_file();
        self.set_status(Status::Unknown);
    }

    /// After a change: an intent that is still open is for recovery to close.
    pub(super) fn leave_to_recovery(&mut self) {
        if !self.journal.intent().is_empty() {
            self.set_status(Status::Unknown);
        }
    }

    /// Closes an intent of which nothing has happened.
    pub(super) fn abandon(&mut self, intent: Intent) {
        drop(intent);
        self.close_intent(Vec::new());
    }

    /// Writes down what came of the open intent.
    pub(super) fn close_intent(&mut self, events: Vec<Event>) {
        let events = self.apply_all(events);
        self.publish(|view| view.registry.expect(&[]));
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        self.journal.close(events, &view.registry);
    }

    /// Writes down what happened beside an intent, if one is open.
    pub(super) fn note(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let events = self.apply_all(events);
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        self.journal.note(events, &view.registry);
    }

    /// Publishes what happened; hands it over as the journal has it.
    fn apply_all(&mut self, mut events: Vec<Event>) -> Vec<Event> {
        self.changes += 1;
        self.configs.forget(&events);
        self.publish(|view| {
            for event in &events {
                view.registry.apply(event.clone());
            }
            events.push(Event::Next(view.registry.next()));
        });
        events
    }

    /// Replaces all that is known, and forgets the intent.
    pub(super) fn replace(&mut self, mut registry: Registry) {
        self.changes += 1;
        self.configs.clear();
        registry.expect(&[]);
        self.journal.checkpoint(&registry);
        self.publish(|view| view.registry = registry);
    }

    /// Makes sure that the epoch still is the one that the view describes. Costs a system call while
    /// the connection by which it is known is there.
    pub(super) async fn confirm_epoch(&mut self) -> Result<(), Interrupted> {
        if self.link.is_unbroken() {
            return Ok(());
        }
        let confirmed = self.reconnect().await;
        confirmed.map_err(|error| self.interrupted(error))
    }

    /// Makes the connection again. The marker tells whether the daemon goes on.
    async fn reconnect(&mut self) -> Result<(), Interrupted> {
        let marker = self.look(|registry| registry.marker().map(str::to_owned));
        let marker = marker.ok_or(Interrupted::Restarted)?;
        for retry in 0..=RETRIES {
            self.watch().await?;
            let answers = self.query(vec![Query::Group(marker.clone())]).await?;
            if !answers.is_active(&marker) {
                return Err(Interrupted::Restarted);
            }
            // One that is broken at once takes a moment to be so.
            tokio::time::sleep(RETRY_PAUSE * 2_u32.pow(retry)).await;
            if self.link.is_unbroken() {
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
        self.link.watch(address).await.map_err(|error| {
            Interrupted::Unreachable(format!("supervisord at {address} does not answer: {error}"))
        })
    }

    /// Prepares the persist file for a change, and takes out of it what is to go.
    pub(super) fn prepare_persist_file(
        &mut self,
        events: Vec<Event>,
        configured: &[ConfiguredGroup],
    ) -> Result<Option<Prepared>, ChangeError> {
        let basis = self.basis(configured.to_vec());
        let Some(persist) = &mut self.persist else {
            return Ok(None);
        };
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let prepared = persist.prepare(&view.registry, events, basis);
        drop(view);
        prepared
            .map(Some)
            .map_err(|error| self.cannot_write(&error))
    }

    /// What the text of the persist file follows from now, besides the registry.
    fn basis(&self, configured: Vec<ConfiguredGroup>) -> Basis {
        Basis {
            changes: self.changes,
            configured,
            proxy: self.proxy_url.clone(),
        }
    }

    /// Puts the prepared persist file in place. Where that fails, or nothing that was prepared fits, the whole
    /// file is written.
    fn put_persist_file(&mut self, prepared: Option<Prepared>) {
        if let (Some(persist), Some(prepared)) = (&mut self.persist, prepared) {
            match persist.put(prepared) {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "writing the whole persist file"),
            }
        }
        self.write_persist_file();
    }

    /// Makes the persist file say what the registry says, if anything is to persist.
    pub(super) fn write_persist_file(&mut self) {
        if !self.persists() {
            return;
        }
        let registry = self.look(Registry::clone);
        if let Err(error) = self.write_persist_file_of(&registry) {
            tracing::error!(%error, dir = %self.include.path().display(), "what was changed will not outlive supervisord");
        }
    }

    /// The same for a registry that is to be.
    pub(super) fn write_persist_file_of(&mut self, registry: &Registry) -> io::Result<()> {
        let basis = self.basis(self.configured());
        match &mut self.persist {
            Some(persist) => persist.write(registry, basis),
            None => Ok(()),
        }
    }

    async fn stage_file(&mut self, text: &str) -> Result<Staged, ChangeError> {
        let delivery = self.known_delivery().await?;
        self.stage_by(text, delivery)
    }

    async fn known_delivery(&mut self) -> Result<Delivery, ChangeError> {
        let delivery = match self.delivery {
            Some(delivery) => delivery,
            None => self.try_delivery().await?,
        };
        self.delivery = Some(delivery);
        Ok(delivery)
    }

    /// Opens an intent for questions, and says how they reach the daemon.
    ///
    /// # Errors
    /// When the disk does not take it, or the daemon does not answer.
    pub(super) async fn open_probe_intent(&mut self) -> Result<(Intent, Delivery), ChangeError> {
        let intent = self.intend(Vec::new(), false)?;
        match self.known_delivery().await {
            Ok(delivery) => Ok((intent, delivery)),
            Err(error) => {
                self.abandon(intent);
                Err(error)
            }
        }
    }

    fn stage_by(&self, text: &str, delivery: Delivery) -> Result<Staged, ChangeError> {
        debug_assert!(!self.journal.intent().is_empty(), "no intent is open");
        let staged = self.include.stage(text, delivery);
        staged.map_err(|error| self.cannot_write(&error))
    }

    /// Finds out whether the daemon can look through this process, by an empty group that it reads
    /// and nobody adds.
    async fn try_delivery(&mut self) -> Result<Delivery, ChangeError> {
        let group = self.trial_name();
        let staged = self.stage_by(&empty_group(&group), Delivery::Link)?;
        let reloaded = self.call("supervisor.reloadConfig").await?;
        drop(staged);
        self.warn_of_other_markers(&reloaded);
        let seen = ReloadResult::read(&reloaded).added.contains(&group);
        let delivery = if seen { Delivery::Link } else { Delivery::File };
        tracing::debug!(?delivery, "tried how generated files reach supervisord");
        Ok(delivery)
    }

    /// Another proxy has marked the daemon's epoch, with another include directory. Whether it still
    /// runs cannot be told where its lock is not seen.
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

    /// The fault for a file that the daemon has not read. It needs no restart: the daemon reads
    /// `[include]` again whenever it reads its files.
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

    /// Lets the daemon read `text` and add these groups from it. An intent is open.
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
                Err(told) if told.code == BAD_NAME => return Err(self.not_read().await.into()),
                Err(told) if told.code != ALREADY_ADDED => return Err(told.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the daemon read `text`, adds nothing of it, and lists what it has read: what
    /// `reloadConfig` and `getAllConfigInfo` answer.
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
        let results = results.map_err(|error| self.interrupted(error))?;
        self.abandon(staged.into_intent());
        let mut results = results.into_iter();
        let mut next = || results.next().unwrap_or(Ok(Value::Nil));
        Ok((next(), next()))
    }

    /// Marks the daemon's epoch.
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

    /// Marks the daemon's epoch. While the user's files are not valid it cannot be marked, and is taken
    /// for a new one the next time.
    pub(super) async fn mark_if_possible(&mut self) -> Result<(), ChangeError> {
        match self.mark().await {
            Err(ChangeError::Fault(told)) if told.code != SHUTDOWN_STATE => {
                tracing::warn!(
                    fault = reason(&told),
                    "supervisord's present epoch cannot be marked yet"
                );
                Ok(())
            }
            marked => marked,
        }
    }

    /// Removes groups from the daemon, and lets it add some of them as its files have them.
    pub(super) async fn remove(
        &mut self,
        groups: &BTreeSet<String>,
        anew: &BTreeSet<String>,
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
        self.multicall(&anew.iter().map(add).collect::<Vec<_>>())
            .await?;
        Ok(())
    }

    /// Stops groups, all at once, and removes each as soon as it is stopped.
    ///
    /// # Errors
    /// When some have not stopped after [`STOP_LIMIT`], or the daemon does not answer.
    pub(super) async fn stop_and_remove(
        &mut self,
        groups: &BTreeSet<String>,
    ) -> Result<(), Interrupted> {
        let mut left: Vec<&String> = groups.iter().collect();
        let deadline = Instant::now() + STOP_LIMIT;
        while !left.is_empty() {
            // Each time, because the daemon may start again what had exited.
            let answers = self.query(vec![Query::AllProcesses]).await?;
            let processes = answers.processes.values();
            self.stop(processes.filter(|info| left.contains(&&info.group)))
                .await?;
            let calls: Vec<Call> = left
                .iter()
                .map(|name| (REMOVE, vec![name.as_str().into()]))
                .collect();
            let mut results = self.multicall(&calls).await?.into_iter();
            left.retain(
                |_| matches!(results.next(), Some(Err(told)) if told.code == STILL_RUNNING),
            );
            if left.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                let left: Vec<&str> = left.into_iter().map(String::as_str).collect();
                return Err(Interrupted::Unreachable(format!(
                    "supervisord has not stopped {} in {STOP_LIMIT:?}: stop their processes",
                    left.join(", ")
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Tells processes to stop, and waits for none of them.
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

/// The section of an empty group that helps to add others.
pub(super) fn empty_group(name: &str) -> String {
    program::render_group(name, DEFAULT_PRIORITY, &[])
}

/// Stops where the daemon says that it stops or restarts.
fn not_shutting_down(told: Option<&Fault>) -> Result<(), Interrupted> {
    match told {
        Some(told) if told.code == SHUTDOWN_STATE => Err(Interrupted::ShuttingDown(told.clone())),
        _ => Ok(()),
    }
}
