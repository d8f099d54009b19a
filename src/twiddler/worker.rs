//! The worker that carries out changes, those that wait together as one transaction.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use http::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, timeout_at};

use super::change::{self, Change, Outcome, Refusal};
use super::{Authorized, Twiddler};
use crate::audit::{Record, shown, without_values};
use crate::program::option_names;

/// A change on its way to the worker.
pub(super) struct Job {
    change: Change,
    authorized: Authorized,
    /// Whose change it is.
    record: Record,
    outcome: oneshot::Sender<Outcome>,
}

impl Twiddler {
    pub(super) fn submit(
        &self,
        change: Change,
        authorized: Authorized,
        record: Record,
    ) -> oneshot::Receiver<Outcome> {
        let (outcome, answer) = oneshot::channel();
        // A worker that is gone drops the job, and with it the sender.
        let _ = self.jobs.send(Job {
            change,
            authorized,
            record,
            outcome,
        });
        answer
    }

    /// Turns away a change that nobody judged once it is known that the daemon judges.
    pub(super) fn admit(&self, job: Job) -> Option<Job> {
        if matches!(job.authorized, Authorized::Checked(_)) || self.daemon.is_open() {
            return Some(job);
        }
        let _ = job
            .outcome
            .send(Err(Refusal::Status(StatusCode::UNAUTHORIZED)));
        None
    }
}

/// How long those are waited for who were answered together and are likely to come back together. A
/// change takes the daemon longer than this, and one for all takes it hardly more than one for each.
const GATHERING: Duration = Duration::from_millis(1);

/// Waits for the first change, and for as many as were carried out together before; takes along
/// whatever else has come. Nothing, when no more will come.
async fn gather(
    jobs: &mut mpsc::UnboundedReceiver<Job>,
    waiting: &mut VecDeque<Job>,
    crowd: usize,
) -> Option<()> {
    if waiting.is_empty() {
        waiting.push_back(jobs.recv().await?);
    }
    let deadline = Instant::now() + GATHERING;
    while waiting.len() < crowd
        && let Ok(Some(job)) = timeout_at(deadline, jobs.recv()).await
    {
        waiting.push_back(job);
    }
    while let Ok(job) = jobs.try_recv() {
        waiting.push_back(job);
    }
    Some(())
}

/// Carries out what is waiting, as much of it at once as goes together.
pub(super) async fn work(twiddler: Arc<Twiddler>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut waiting = VecDeque::new();
    // One client by himself waits for nobody.
    let mut crowd = 1;
    while gather(&mut jobs, &mut waiting, crowd).await.is_some() {
        let _busy = twiddler.busy.lock().await;
        let jobs = take_together(&mut waiting);
        let presented = jobs.first().and_then(|job| job.authorized.presented());
        let (changes, answers): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .filter_map(|job| twiddler.admit(job))
            .map(|job| (job.change, (job.record, job.outcome)))
            .unzip();
        crowd = changes.len();
        let transaction = change::transact(&twiddler, &changes);
        let outcomes = twiddler.daemon.presenting(presented, transaction).await;
        for ((change, (record, answer)), outcome) in changes.iter().zip(answers).zip(outcomes) {
            tell(change, &record, &outcome);
            // The client may have hung up; the change holds all the same.
            let _ = answer.send(outcome);
        }
    }
}

/// Takes changes from the front that do not concern each other: of one group only additions of
/// different processes, or only removals of different processes. What stays keeps its order, and so
/// does whatever is not made with the credentials of the first.
pub(super) fn take_together(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let mut touched: HashMap<String, Touched> = HashMap::new();
    let authorized = waiting.front().map(|job| job.authorized.clone());
    let (taken, kept): (Vec<Job>, Vec<Job>) = waiting.drain(..).partition(|job| {
        let presents_the_same = authorized.as_ref() == Some(&job.authorized);
        let touch = match presents_the_same {
            true => Touched::by(&job.change),
            false => Touched::Alone,
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

/// What the changes of one transaction do to one group.
#[derive(Debug)]
pub(super) enum Touched {
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
            Change::AddGroup { .. } | Change::RemoveGroup { .. } => Touched::Alone,
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

/// Says what a change came to, and whose it was. Never with a value.
pub(super) fn tell(change: &Change, record: &Record, outcome: &Outcome) {
    let (done, undone, subject) = in_words(change);
    let (user, ms) = (record.user(), record.millis());
    let peer = record.peer();
    match outcome {
        Ok(()) => {
            tracing::info!(%peer, user, ms, "{done} {subject}");
            tell_misspelt(change, &subject);
        }
        Err(Refusal::Fault(fault)) => {
            let reason = without_values(fault, &option_names());
            tracing::info!(%peer, user, ms, "did not {undone} {subject}: {reason}");
        }
        // The caller is asked for credentials, and tries again.
        Err(Refusal::Status(status)) => tracing::debug!(%peer, %status, "{undone} {subject}"),
        Err(refusal) => tracing::warn!(%peer, user, ms, "could not {undone} {subject}: {refusal}"),
    }
}

/// Names options that supervisord takes and ignores. Never with a value.
fn tell_misspelt(change: &Change, subject: &str) {
    if let Change::AddProgram(program) = change {
        for (option, meant) in program.misspelt_options() {
            let option = shown(option);
            tracing::warn!("{subject}: supervisord ignores the option {option}; write {meant}");
        }
    }
}

/// What was done, what was not, and to what.
fn in_words(change: &Change) -> (&'static str, &'static str, String) {
    let member = |group: &str, name: &str| format!("{}:{}", shown(group), shown(name));
    match change {
        Change::AddGroup { name, .. } => {
            ("added", "add", format!("group {}", shown(name.as_str())))
        }
        Change::AddProgram(program) => {
            let name = member(program.group(), program.name());
            ("added", "add", format!("program {name}"))
        }
        Change::RemoveProcess { group, process } => {
            let name = member(group, process);
            ("removed", "remove", format!("process {name}"))
        }
        Change::RemoveGroup { name, .. } => ("removed", "remove", format!("group {}", shown(name))),
    }
}
