//! The one loop that owns the core: changes, a daemon that started again, and what others ask of it.
//!
//! Changes that wait together are carried out as one batch, as far as they do not concern each other.

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

/// How long those are waited for who were answered together and are likely to come back together. A
/// change takes the daemon longer than this, and one for all takes it hardly more than one for each.
const GATHERING: Duration = Duration::from_millis(1);
/// How often a daemon is asked that is away. Whoever calls asks anyway.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The same for one that does not take the proxy's credentials, until a caller brings some.
const ASK_WITHOUT_CREDENTIALS: Duration = Duration::from_secs(5);
/// How often the daemon is asked what is still there, where no reply has told.
const LOOK_AROUND: Duration = Duration::from_secs(10);
/// A look takes a hundredth of the daemon's time at most: with very many processes it is rarer.
const LOOKS_SHARE: u32 = 100;
/// The least time between two looks for the sake of a reply.
const PAUSE: Duration = Duration::from_secs(1);

/// Something that the worker is asked to do.
pub(super) enum Job {
    /// Make changes, together where they go together.
    Changes(Vec<ChangeJob>),
    /// Make sure that the view is current.
    Recover(oneshot::Sender<Result<(), ChangeError>>),
    /// Leave the daemon's files alone until the guard is dropped.
    PauseReloads(oneshot::Sender<ReloadPause>),
    /// The same, and let questions be put meanwhile.
    PauseForProbes(oneshot::Sender<Result<ProbePause, ChangeError>>),
    /// Learn what `getAllConfigInfo` says of members of which that is not known.
    DescribeMembers(oneshot::Sender<Result<(), ChangeError>>),
    /// Take note that something happened in this epoch.
    Note(Epoch, Vec<Event>, oneshot::Sender<()>),
    /// Write the persist file again.
    Persist(oneshot::Sender<()>),
    /// Placed processes call supervisord here; the watch begins.
    Listen(Option<String>),
    /// End.
    Stop(oneshot::Sender<()>),
}

/// A change on its way to the worker.
pub(super) struct ChangeJob {
    pub(super) change: Change,
    pub(super) authorized: Authorized,
    /// Whose change it is.
    pub(super) record: Record,
    pub(super) outcome: oneshot::Sender<Outcome>,
}

/// Keeps changes off until it is dropped. Whoever holds it must not wait for the worker.
#[derive(Debug)]
#[must_use]
pub struct ReloadPause {
    _held: oneshot::Sender<()>,
}

/// The loop and what waits for it.
pub(super) struct Worker {
    engine: Engine,
    jobs: mpsc::UnboundedReceiver<Job>,
    changes: VecDeque<ChangeJob>,
    others: VecDeque<Job>,
    /// A reply spoke against what is known.
    doubts: Arc<Notify>,
    ownership: Ownership,
    /// So many changes were carried out together last. One client by himself waits for nobody.
    batch_size: usize,
    watches: bool,
    is_away: bool,
    recover_at: Instant,
    look_at: Instant,
    look_for_doubt_at: Instant,
}

/// What comes next.
enum Next {
    Queued(Option<Job>),
    Batch,
    Recover,
    Look { for_doubt: bool },
    Again,
}

impl Worker {
    pub(super) fn new(
        engine: Engine,
        jobs: mpsc::UnboundedReceiver<Job>,
        doubts: Arc<Notify>,
        ownership: Ownership,
    ) -> Self {
        let now = Instant::now();
        Worker {
            engine,
            jobs,
            changes: VecDeque::new(),
            others: VecDeque::new(),
            doubts,
            ownership,
            batch_size: 1,
            watches: false,
            is_away: false,
            recover_at: now,
            look_at: now + LOOK_AROUND,
            look_for_doubt_at: now,
        }
    }

    /// Works until it is told to stop, or nobody can ask for anything any more.
    pub(super) async fn run(mut self) {
        loop {
            if let Some(job) = self.others.pop_front() {
                if self.ownership.is_ours(&self.engine) && self.handle(job).await {
                    continue;
                }
                return;
            }
            match self.next().await {
                Next::Queued(None) => return,
                Next::Queued(Some(job)) => self.queue(job),
                Next::Again => {}
                _ if !self.ownership.is_ours(&self.engine) => return,
                Next::Batch => self.batch().await,
                Next::Recover => self.recover().await,
                Next::Look { for_doubt } => self.look(for_doubt).await,
            }
        }
    }

    async fn next(&mut self) -> Next {
        let is_known = self.engine.status() != Status::Unknown && self.engine.link.is_unbroken();
        let (watched, unknown) = (self.watches && is_known, self.watches && !is_known);
        let has_changes = !self.changes.is_empty();
        let doubt = async {
            sleep_until(self.look_for_doubt_at).await;
            self.doubts.notified().await;
        };
        tokio::select! {
            biased;
            () = doubt, if watched => Next::Look { for_doubt: true },
            // Due once in ten seconds at most, also where changes never end.
            () = sleep_until(self.look_at), if watched => Next::Look { for_doubt: false },
            () = std::future::ready(()), if has_changes => Next::Batch,
            job = self.jobs.recv() => Next::Queued(job),
            () = sleep_until(self.recover_at), if unknown => Next::Recover,
            () = self.engine.link.broken(), if watched => Next::Again,
        }
    }

    fn queue(&mut self, job: Job) {
        match job {
            Job::Changes(changes) => self.changes.extend(changes),
            other => self.others.push_back(other),
        }
    }

    /// Whether the worker goes on. Whoever asked may have hung up.
    async fn handle(&mut self, job: Job) -> bool {
        match job {
            Job::Changes(changes) => self.changes.extend(changes),
            Job::Recover(done) => {
                let _ = done.send(self.make_current().await);
            }
            Job::PauseReloads(pause) => {
                let (held, dropped) = oneshot::channel();
                if pause.send(ReloadPause { _held: held }).is_ok() {
                    let _ = dropped.await;
                }
            }
            Job::PauseForProbes(pause) => self.pause_for_probes(pause).await,
            Job::DescribeMembers(done) => {
                let _ = done.send(describe::describe(&mut self.engine).await);
            }
            Job::Note(epoch, events, done) => {
                // In another epoch the files have started what was hidden, and nobody else has.
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

    /// Finds out what the daemon has of ours, as soon as it answers, and again whenever it has broken
    /// the connection by which its epoch is known.
    async fn recover(&mut self) {
        let pause = match self.make_current().await {
            Ok(()) => {
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("supervisord answers");
                }
                // Nothing is gained by asking a daemon all the time that breaks all connections.
                ASK_AGAIN
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_away, true) {
                    self.say_away(&error);
                }
                match error {
                    ChangeError::Status(_) => ASK_WITHOUT_CREDENTIALS,
                    _ => ASK_AGAIN,
                }
            }
        };
        self.recover_at = Instant::now() + pause;
    }

    /// A daemon that judges each caller, because the proxy has nothing to present, is not away: what it
    /// lacks is said at the start.
    fn say_away(&self, error: &ChangeError) {
        let presents = self.engine.daemon.own_authorization().is_some();
        match error {
            ChangeError::Status(_) if !presents => {
                tracing::info!(reason = %error, "waiting for a caller whom supervisord lets in");
            }
            _ => tracing::warn!(reason = %error, "waiting for supervisord"),
        }
    }

    /// Looks for what is gone.
    async fn look(&mut self, for_doubt: bool) {
        let began = Instant::now();
        if let Err(error) = recovery::look_for_losses(&mut self.engine).await {
            tracing::debug!(reason = %error, "cannot look for what is gone");
        }
        let now = Instant::now();
        self.look_at = now + LOOK_AROUND.max((now - began) * LOOKS_SHARE);
        if for_doubt {
            self.look_for_doubt_at = now + PAUSE;
        }
    }

    /// Waits while questions are put, with an intent open.
    async fn pause_for_probes(&mut self, pause: oneshot::Sender<Result<ProbePause, ChangeError>>) {
        let opened = match self.make_current().await {
            Ok(()) => self.engine.open_probe_intent().await,
            Err(error) => Err(error),
        };
        let (intent, delivery) = match opened {
            Ok(opened) => opened,
            Err(error) => return drop(pause.send(Err(error))),
        };
        let (held, dropped) = oneshot::channel();
        let questions = ProbePause {
            _held: held,
            daemon: self.engine.daemon.clone(),
            include: self.engine.include.clone(),
            delivery,
        };
        if pause.send(Ok(questions)).is_ok() {
            let _ = dropped.await;
        }
        // A daemon that has started meanwhile may have read one: what comes next finds that out.
        if self.engine.link.is_unbroken() {
            self.engine.abandon(intent)
        } else {
            self.engine.set_status(Status::Unknown)
        }
    }

    /// Carries out what is waiting, as much of it at once as goes together.
    async fn batch(&mut self) {
        self.collect_batch().await;
        let jobs = take_together(&mut self.changes);
        let presented = jobs.first().and_then(|job| job.authorized.presented());
        let (changes, answers): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .filter_map(|job| self.admit(job))
            .map(|job| (self.with_address(job.change), (job.record, job.outcome)))
            .unzip();
        self.batch_size = changes.len();
        let daemon = self.engine.daemon.clone();
        let outcomes = daemon
            .with_authorization(presented, self.carry_out(&changes))
            .await;
        for ((change, (record, answer)), outcome) in changes.iter().zip(answers).zip(outcomes) {
            log_outcome(change, &record, &outcome);
            // The client may have hung up; the change holds all the same.
            let _ = answer.send(outcome);
        }
    }

    /// Waits for as many as were carried out together before, and takes along whatever else has come.
    async fn collect_batch(&mut self) {
        let deadline = Instant::now() + GATHERING;
        while self.changes.len() < self.batch_size
            && let Ok(Some(job)) = timeout_at(deadline, self.jobs.recv()).await
        {
            self.queue(job);
        }
        while let Ok(job) = self.jobs.try_recv() {
            self.queue(job);
        }
    }

    /// Makes what is known current again. A change that was cut short may have taken something away
    /// that it does not speak of.
    async fn make_current(&mut self) -> Result<(), ChangeError> {
        let was_cut = !self.engine.journal.intent().is_empty();
        let recovered = recovery::recover(&mut self.engine).await;
        if was_cut && recovered.is_ok() {
            self.doubts.notify_one();
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
        if batch.is_doubtful {
            self.doubts.notify_one();
        }
        batch.outcomes
    }

    /// Turns away a change that nobody judged once it is known that the daemon judges.
    fn admit(&self, job: ChangeJob) -> Option<ChangeJob> {
        if matches!(job.authorized, Authorized::Checked(_)) || self.engine.daemon.is_open() {
            return Some(job);
        }
        let _ = job
            .outcome
            .send(Err(ChangeError::Status(StatusCode::UNAUTHORIZED)));
        None
    }

    /// What is added while processes can be told where the proxy is.
    fn with_address(&self, change: Change) -> Change {
        match change {
            Change::AddProgram(program) if self.engine.proxy_url.is_some() => {
                Change::AddProgram(Box::new(program.calling_proxy()))
            }
            other => other,
        }
    }
}

/// Takes changes from the front that do not concern each other: of one group only additions of
/// different processes, or only removals of different processes. What stays keeps its order, and so
/// does whatever is not made with the credentials of the first.
fn take_together(waiting: &mut VecDeque<ChangeJob>) -> Vec<ChangeJob> {
    let mut touched: HashMap<String, Touched> = HashMap::new();
    let authorized = waiting.front().map(|job| job.authorized.clone());
    let (taken, kept): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|job| {
        let presents_the_same = authorized.as_ref() == Some(&job.authorized);
        let touch = if presents_the_same {
            Touched::by(&job.change)
        } else {
            Touched::Alone
        };
        match touched.entry(job.change.group().to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(touch);
                presents_the_same
            }
            Entry::Occupied(mut entry) => entry.get_mut().admit(touch),
        }
    });
    waiting.extend(kept);
    taken
}

/// What the changes of one batch do to one group.
#[derive(Debug)]
enum Touched {
    /// Processes of these names are added.
    Added(HashSet<String>),
    /// Processes of these names are removed.
    Removed(HashSet<String>),
    /// Nothing else may come along.
    Alone,
}

impl Touched {
    fn by(change: &Change) -> Self {
        match change {
            // Programs whose process names only the daemon can tell may collide with any other.
            Change::AddProgram(program) => {
                program.process_names().map_or(Touched::Alone, |names| {
                    Touched::Added(names.into_iter().collect())
                })
            }
            Change::RemoveProcess { process, .. } => Touched::Removed([process.clone()].into()),
            Change::AddGroup { .. } | Change::RemovePlaced { .. } | Change::RemoveGroup { .. } => {
                Touched::Alone
            }
        }
    }

    /// Takes `other` along if it goes with what is there; nothing later does once one did not.
    fn admit(&mut self, other: Touched) -> bool {
        let admitted = match (&mut *self, other) {
            (Touched::Added(names), Touched::Added(more))
            | (Touched::Removed(names), Touched::Removed(more))
                if names.is_disjoint(&more) =>
            {
                names.extend(more);
                true
            }
            _ => false,
        };
        if !admitted {
            *self = Touched::Alone;
        }
        admitted
    }
}
