//! The worker: one loop that owns the engine. It executes changes, recovers after a restart of the daemon,
//! and handles the other jobs.
//!
//! Independent changes that wait together are carried out as one batch.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use http::StatusCode;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::engine::Engine;
use super::model::change::{Authorized, Change, ChangeError, Outcome};
use super::model::view::{Epoch, Status};
use super::outcome_log::log_outcome;
use super::ownership::Ownership;
use super::probe_pause::ProbePause;
use super::{describe, recovery, transaction};
use crate::audit::Record;
use crate::registry::Event;

/// How long the worker waits for further changes before a batch. Clients that got their replies together
/// are likely to send their next changes together. The daemon takes longer than this for one change, and
/// hardly longer for a batch.
const BATCH_WAIT: Duration = Duration::from_millis(1);
/// The interval between two recoveries while the daemon does not answer. A client's call triggers one too.
const RECOVER_INTERVAL: Duration = Duration::from_millis(500);
/// The same interval for a daemon that rejects the proxy's credentials. A caller's accepted credentials
/// trigger a recovery earlier.
const RECOVER_INTERVAL_UNAUTHORIZED: Duration = Duration::from_secs(5);
/// The interval between two checks for losses, if no reply indicates one.
const LOSS_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// A check takes at most one hundredth of the daemon's time: with many processes, checks are rarer.
const LOSS_CHECK_SHARE: u32 = 100;
/// The minimum interval between two checks that replies trigger.
const LOSS_CHECK_MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A request to the worker.
pub(super) enum Job {
    /// Carry out changes, as one batch if they are independent.
    Changes(Vec<ChangeJob>),
    /// Make sure that the view is current.
    Recover(oneshot::Sender<Result<(), ChangeError>>),
    /// Carry out no changes until the guard is dropped.
    PauseReloads(oneshot::Sender<ReloadPause>),
    /// The same with an open intent, so that the caller can send probes.
    PauseForProbes(oneshot::Sender<Result<ProbePause, ChangeError>>),
    /// Read the `getAllConfigInfo` entries of members without a known entry.
    DescribeMembers(oneshot::Sender<Result<(), ChangeError>>),
    /// Record events that happened in this epoch.
    Note(Epoch, Vec<Event>, oneshot::Sender<()>),
    /// Write the persist file again.
    Persist(oneshot::Sender<()>),
    /// Placed processes call supervisord at this URL. The worker begins to watch the daemon.
    Listen(Option<String>),
    /// Stop the worker.
    Stop(oneshot::Sender<()>),
}

/// A change in the worker's queue.
pub(super) struct ChangeJob {
    pub(super) change: Change,
    pub(super) authorized: Authorized,
    /// The caller, for the log.
    pub(super) record: Record,
    pub(super) outcome: oneshot::Sender<Outcome>,
}

/// Holds off changes until it is dropped. The holder must not send a job to the worker and wait for it.
#[derive(Debug)]
#[must_use]
pub struct ReloadPause {
    _guard: oneshot::Sender<()>,
}

/// The loop and its queues.
pub(super) struct Worker {
    engine: Engine,
    jobs: mpsc::UnboundedReceiver<Job>,
    changes: VecDeque<ChangeJob>,
    other_jobs: VecDeque<Job>,
    /// Notified when a reply contradicts the registry.
    loss_check: Arc<Notify>,
    ownership: Ownership,
    /// The size of the last batch. With 1, the worker does not wait for further changes.
    batch_size: usize,
    watches: bool,
    is_away: bool,
    recover_at: Instant,
    check_at: Instant,
    reply_check_at: Instant,
}

/// The next event of the loop.
enum Next {
    Queued(Option<Job>),
    Batch,
    Recover,
    CheckLosses { by_reply: bool },
    Continue,
}

impl Worker {
    pub(super) fn new(
        engine: Engine,
        jobs: mpsc::UnboundedReceiver<Job>,
        loss_check: Arc<Notify>,
        ownership: Ownership,
    ) -> Self {
        let now = Instant::now();
        Worker {
            engine,
            jobs,
            changes: VecDeque::new(),
            other_jobs: VecDeque::new(),
            loss_check,
            ownership,
            batch_size: 1,
            watches: false,
            is_away: false,
            recover_at: now,
            check_at: now + LOSS_CHECK_INTERVAL,
            reply_check_at: now,
        }
    }

    /// Runs until a stop job arrives, or until no sender of jobs is left.
    pub(super) async fn run(mut self) {
        loop {
            if let Some(job) = self.other_jobs.pop_front() {
                if self.ownership.ensure(&self.engine) && self.handle(job).await {
                    continue;
                }
                return;
            }
            match self.next().await {
                Next::Queued(None) => return,
                Next::Queued(Some(job)) => self.queue(job),
                Next::Continue => {}
                _ if !self.ownership.ensure(&self.engine) => return,
                Next::Batch => self.batch().await,
                Next::Recover => self.recover().await,
                Next::CheckLosses { by_reply } => self.check_losses(by_reply).await,
            }
        }
    }

    async fn next(&mut self) -> Next {
        let is_current =
            self.engine.status() != Status::Unknown && self.engine.liveness.is_unbroken();
        let (watches_current, needs_recovery) =
            (self.watches && is_current, self.watches && !is_current);
        let has_changes = !self.changes.is_empty();
        let contradiction = async {
            sleep_until(self.reply_check_at).await;
            self.loss_check.notified().await;
        };
        tokio::select! {
            biased;
            () = contradiction, if watches_current => Next::CheckLosses { by_reply: true },
            // Before the batches, so that a steady stream of changes cannot delay it. It is due at most
            // once in ten seconds.
            () = sleep_until(self.check_at), if watches_current => Next::CheckLosses { by_reply: false },
            () = std::future::ready(()), if has_changes => Next::Batch,
            job = self.jobs.recv() => Next::Queued(job),
            () = sleep_until(self.recover_at), if needs_recovery => Next::Recover,
            () = self.engine.liveness.broken(), if watches_current => Next::Continue,
        }
    }

    fn queue(&mut self, job: Job) {
        match job {
            Job::Changes(changes) => self.changes.extend(changes),
            other => self.other_jobs.push_back(other),
        }
    }

    /// Handles a job. Returns whether the worker continues. The client may have disconnected already.
    async fn handle(&mut self, job: Job) -> bool {
        match job {
            Job::Changes(changes) => self.changes.extend(changes),
            Job::Recover(done) => {
                let _ = done.send(self.make_current().await);
            }
            Job::PauseReloads(pause) => {
                let (guard, dropped) = oneshot::channel();
                if pause.send(ReloadPause { _guard: guard }).is_ok() {
                    let _ = dropped.await;
                }
            }
            Job::PauseForProbes(pause) => self.pause_for_probes(pause).await,
            Job::DescribeMembers(done) => {
                let _ = done.send(describe::describe(&mut self.engine).await);
            }
            Job::Note(epoch, events, done) => {
                // In another epoch, the daemon has started the hidden processes from its files, and no
                // client has.
                if self.engine.epoch() == epoch && self.engine.status() != Status::Unknown {
                    self.engine.note(events);
                }
                let _ = done.send(());
            }
            Job::Persist(done) => {
                if self.engine.status() == Status::Current {
                    self.engine.write_persist_file();
                }
                let _ = done.send(());
            }
            Job::Listen(proxy_url) => {
                self.engine.proxy_url = proxy_url;
                self.watches = true;
            }
            Job::Stop(done) => {
                let _ = done.send(());
                return false;
            }
        }
        true
    }

    /// Recovers as soon as the daemon answers, and again after each break of the liveness connection.
    async fn recover(&mut self) {
        let pause = match self.make_current().await {
            Ok(()) => {
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("supervisord answers");
                }
                // A daemon that closes every connection needs no immediate recovery.
                RECOVER_INTERVAL
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_away, true) {
                    self.log_away(&error);
                }
                match error {
                    ChangeError::Status(_) => RECOVER_INTERVAL_UNAUTHORIZED,
                    _ => RECOVER_INTERVAL,
                }
            }
        };
        self.recover_at = Instant::now() + pause;
    }

    /// Logs why the daemon is not available. A daemon that checks each caller's credentials, because the
    /// proxy has none of its own, is not reported as away: a warning at the start covers that.
    fn log_away(&self, error: &ChangeError) {
        let presents = self.engine.daemon.own_authorization().is_some();
        match error {
            ChangeError::Status(_) if !presents => {
                tracing::info!(reason = %error, "waiting for a caller whom supervisord lets in");
            }
            _ => tracing::warn!(reason = %error, "waiting for supervisord"),
        }
    }

    /// Checks for losses.
    async fn check_losses(&mut self, by_reply: bool) {
        let start = Instant::now();
        if let Err(error) = recovery::check_for_losses(&mut self.engine).await {
            tracing::debug!(reason = %error, "cannot check for losses");
        }
        let now = Instant::now();
        self.check_at = now + LOSS_CHECK_INTERVAL.max((now - start) * LOSS_CHECK_SHARE);
        if by_reply {
            self.reply_check_at = now + LOSS_CHECK_MIN_INTERVAL;
        }
    }

    /// Opens an intent and waits until the caller has sent its probes.
    async fn pause_for_probes(&mut self, pause: oneshot::Sender<Result<ProbePause, ChangeError>>) {
        let opened = match self.make_current().await {
            Ok(()) => self.engine.open_probe_intent().await,
            Err(error) => Err(error),
        };
        let (intent, delivery) = match opened {
            Ok(opened) => opened,
            Err(error) => return drop(pause.send(Err(error))),
        };
        let (guard, dropped) = oneshot::channel();
        let probe_pause = ProbePause {
            _guard: guard,
            daemon: self.engine.daemon.clone(),
            include: self.engine.include.clone(),
            delivery,
        };
        if pause.send(Ok(probe_pause)).is_ok() {
            let _ = dropped.await;
        }
        // A daemon that restarted in between may have read a probe. Recovery removes its groups.
        if self.engine.liveness.is_unbroken() {
            self.engine.abandon(intent)
        } else {
            self.engine.set_status(Status::Unknown)
        }
    }

    /// Carries out the waiting changes that are independent.
    async fn batch(&mut self) {
        self.collect_batch().await;
        let jobs = take_batch(&mut self.changes);
        let presented = jobs.first().and_then(|job| job.authorized.presented());
        let (changes, answers): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .filter_map(|job| self.admit(job))
            .map(|job| (self.with_proxy_url(job.change), (job.record, job.outcome)))
            .unzip();
        self.batch_size = changes.len();
        let daemon = self.engine.daemon.clone();
        let outcomes = daemon
            .with_authorization(presented, self.carry_out(&changes))
            .await;
        for ((change, (record, answer)), outcome) in changes.iter().zip(answers).zip(outcomes) {
            log_outcome(change, &record, &outcome);
            // The client may have disconnected. The change stays valid.
            let _ = answer.send(outcome);
        }
    }

    /// Waits for as many changes as the last batch had, and takes all that have arrived.
    async fn collect_batch(&mut self) {
        let deadline = Instant::now() + BATCH_WAIT;
        while self.changes.len() < self.batch_size
            && let Ok(Some(job)) = timeout_at(deadline, self.jobs.recv()).await
        {
            self.queue(job);
        }
        while let Ok(job) = self.jobs.try_recv() {
            self.queue(job);
        }
    }

    /// Makes the view current. An interrupted change may have removed groups that its intent does not
    /// contain, so a check for losses follows.
    async fn make_current(&mut self) -> Result<(), ChangeError> {
        let was_interrupted = !self.engine.journal.intent().is_empty();
        let recovered = recovery::recover(&mut self.engine).await;
        if was_interrupted && recovered.is_ok() {
            self.loss_check.notify_one();
        }
        recovered
    }

    async fn carry_out(&mut self, changes: &[Change]) -> Vec<Outcome> {
        let mut ready = self.make_current().await;
        if ready.is_ok() {
            ready = recovery::catch_up(&mut self.engine).await;
        }
        if let Err(error) = ready {
            return changes.iter().map(|_| Err(error.clone())).collect();
        }
        let batch = transaction::carry_out(&mut self.engine, changes).await;
        if batch.has_losses {
            self.loss_check.notify_one();
        }
        batch.outcomes
    }

    /// Rejects a change whose credentials were not checked, if the daemon is known to check credentials by
    /// now.
    fn admit(&self, job: ChangeJob) -> Option<ChangeJob> {
        if matches!(job.authorized, Authorized::Checked(_)) || self.engine.daemon.is_open() {
            return Some(job);
        }
        let _ = job
            .outcome
            .send(Err(ChangeError::Status(StatusCode::UNAUTHORIZED)));
        None
    }

    /// Makes an added program call the proxy, if the proxy has a URL.
    fn with_proxy_url(&self, change: Change) -> Change {
        match change {
            Change::AddProgram(program) if self.engine.proxy_url.is_some() => {
                Change::AddProgram(Box::new(program.calling_proxy()))
            }
            other => other,
        }
    }
}

/// Takes independent changes from the front of the queue. A batch has, for one group, only additions of
/// different processes or only removals of different processes, and all its changes have the same
/// credentials. The other changes keep their order.
fn take_batch(waiting: &mut VecDeque<ChangeJob>) -> Vec<ChangeJob> {
    let mut effects: HashMap<String, GroupEffect> = HashMap::new();
    let authorized = waiting.front().map(|job| job.authorized.clone());
    let (batch, rest): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|job| {
        let same_credentials = authorized.as_ref() == Some(&job.authorized);
        let effect = if same_credentials {
            GroupEffect::of(&job.change)
        } else {
            GroupEffect::Alone
        };
        match effects.entry(job.change.group().to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(effect);
                same_credentials
            }
            Entry::Occupied(mut entry) => entry.get_mut().merge(effect),
        }
    });
    waiting.extend(rest);
    batch
}

/// The effect of a batch on one group.
#[derive(Debug)]
enum GroupEffect {
    /// Processes of these names are added.
    Added(HashSet<String>),
    /// Processes of these names are removed.
    Removed(HashSet<String>),
    /// No other change of this group may be in the batch.
    Alone,
}

impl GroupEffect {
    fn of(change: &Change) -> Self {
        match change {
            // If only the daemon knows the process names of a program, they may collide with those of any
            // other change.
            Change::AddProgram(program) => {
                program.process_names().map_or(GroupEffect::Alone, |names| {
                    GroupEffect::Added(names.into_iter().collect())
                })
            }
            Change::RemoveProcess { process, .. } => GroupEffect::Removed([process.clone()].into()),
            Change::AddGroup { .. } | Change::RemovePlaced { .. } | Change::RemoveGroup { .. } => {
                GroupEffect::Alone
            }
        }
    }

    /// Merges `other` if it is independent. After one dependent change, no later change of the group is
    /// merged.
    fn merge(&mut self, other: GroupEffect) -> bool {
        let merged = match (&mut *self, other) {
            (GroupEffect::Added(names), GroupEffect::Added(more))
            | (GroupEffect::Removed(names), GroupEffect::Removed(more))
                if names.is_disjoint(&more) =>
            {
                names.extend(more);
                true
            }
            _ => false,
        };
        if !merged {
            *self = GroupEffect::Alone;
        }
        merged
    }
}
