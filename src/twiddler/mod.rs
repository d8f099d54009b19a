//! The `twiddler` namespace: changes of groups and programs at run time.
//!
//! One worker owns the daemon's epoch, the journal, the generated file and the registry. All other code
//! reads the view that the worker publishes, or sends it a job. This module knows nothing of HTTP. Imports
//! run one way: this file, `worker`, `transaction` and `recovery`, `engine`, the modules that do I/O,
//! `model`.

mod configs;
mod describe;
mod engine;
mod model;
mod outcome_log;
mod ownership;
mod probe_pause;
mod queries;
mod recovery;
mod transaction;
mod worker;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use model::change::{Authorized, Change, ChangeError, Outcome};
pub use model::view::Epoch;
pub use probe_pause::ProbePause;
pub use worker::ReloadPause;

use crate::audit::Record;
use crate::daemon::conf::{self, ConfiguredGroup};
use crate::daemon::{Daemon, Liveness};
use crate::include_dir::{DirLock, Holder, IncludeDir};
use crate::persist::{self, PersistFile};
use crate::registry::{Event, Journal, Member, Registry, losses, without_defined};
use crate::xmlrpc::{Fault, Value};
use configs::Configs;
use engine::Engine;
use model::answers::{Answers, Query};
use model::reconcile;
use model::view::{Status, View};
use ownership::{Ownership, ensure_alone};
use queries::query;
use worker::{ChangeJob, Job, Worker};

/// The state of an include directory, as [`Twiddler::open`] would find it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirState {
    /// The proxy that uses the directory now, if any.
    pub holder: Option<Holder>,
    /// The number of programs in the persist file. `None` if there is no persist file.
    pub persisted_programs: Option<usize>,
    /// Whether the file in the place of the persist file was written by something other than twiddler.
    pub persist_file_is_foreign: bool,
    /// The groups that were added.
    pub groups: Vec<String>,
    /// The processes that were added, by group and name.
    pub members: Vec<(String, String)>,
}

/// Reads the lock, the journal and the persist file of the directory, and changes nothing.
///
/// # Errors
/// The error that [`Twiddler::open`] would return. A proxy that uses the directory is not an error: see
/// [`DirState::holder`].
pub fn inspect(include: Arc<IncludeDir>, conf_file: &Path) -> std::io::Result<DirState> {
    let holder = include.holder()?;
    if holder.is_none() {
        ensure_alone(&include, conf_file)?;
    }
    let persist_file = include.read_persist_file()?;
    let (_, registry) = Journal::open(include)?;
    Ok(DirState {
        holder,
        persisted_programs: persist_file.as_deref().map(persist::programs_in),
        persist_file_is_foreign: persist_file
            .is_some_and(|text| !persist::is_written_by_twiddler(&text)),
        groups: registry.added_groups().map(str::to_owned).collect(),
        members: registry
            .members()
            .map(|member| (member.group.clone(), member.process.clone()))
            .collect(),
    })
}

/// The handle for the rest of the program: it sends jobs to the worker and reads the view.
pub struct Twiddler {
    daemon: Arc<Daemon>,
    conf_file: PathBuf,
    view: Arc<RwLock<View>>,
    liveness: Arc<Liveness>,
    /// The `getAllConfigInfo` entries of members.
    configs: Arc<Configs>,
    /// Unbounded: each connection waits for its own changes, and the number of connections is bounded.
    jobs: mpsc::UnboundedSender<Job>,
    /// Wakes the worker for a check for losses, because a reply contradicts the registry.
    loss_check: Arc<Notify>,
    include: Arc<IncludeDir>,
    /// Keeps a second proxy out of the include directory.
    lock: Arc<Mutex<DirLock>>,
    /// The reason why another proxy holds the lock. `None` while this proxy holds it.
    lock_lost: watch::Receiver<Option<String>>,
    persists: bool,
}

impl Twiddler {
    /// Reads the journal in the include directory, removes files that a killed proxy left there, and starts
    /// the worker on the current runtime. If it `persists`, additions outlive the daemon. Otherwise an
    /// existing persist file is put aside.
    ///
    /// # Errors
    /// When the include directory cannot be used, or another proxy uses it
    /// ([`std::io::ErrorKind::ResourceBusy`]).
    pub fn open(
        daemon: Arc<Daemon>,
        include: IncludeDir,
        conf_file: PathBuf,
        persists: bool,
    ) -> std::io::Result<Arc<Self>> {
        let include = Arc::new(include.watched());
        let lock = include.lock()?;
        ensure_alone(&include, &conf_file)?;
        let (journal, registry, persist_file_at_start) =
            take_over_files(&include, &conf_file, persists)?;
        if let Some(names) = losses::describe(&registry, &losses::removal_of_all(&registry)) {
            tracing::info!("known from before: {names}");
        }
        let (jobs, waiting) = mpsc::unbounded_channel();
        let lock = Arc::new(Mutex::new(lock));
        let (loss, lock_lost) = watch::channel(None);
        let marker = registry.marker().map_or_else(fresh_marker, str::to_owned);
        let twiddler = Arc::new(Twiddler {
            daemon: daemon.clone(),
            conf_file: conf_file.clone(),
            view: Arc::new(RwLock::new(View {
                registry,
                ..View::default()
            })),
            liveness: Arc::default(),
            configs: Arc::default(),
            jobs,
            loss_check: Arc::default(),
            include: include.clone(),
            lock: lock.clone(),
            lock_lost,
            persists,
        });
        let engine = Engine {
            daemon,
            liveness: twiddler.liveness.clone(),
            journal,
            persist: persists.then(|| PersistFile::new(include.clone())),
            view: twiddler.view.clone(),
            configs: twiddler.configs.clone(),
            include,
            conf_file,
            marker,
            persist_file_at_start,
            changes: 0,
            was_withheld: false,
            foreign_groups: BTreeSet::new(),
            delivery: None,
            proxy_url: None,
        };
        let ownership = Ownership { lock, loss };
        let worker = Worker::new(engine, waiting, twiddler.loss_check.clone(), ownership);
        tokio::spawn(worker.run());
        Ok(twiddler)
    }

    /// Stores where the proxy listens: the lock file shows `addresses` to a second proxy, and placed
    /// processes call supervisord at `proxy_url`, if there is one. Starts watching the daemon's epoch.
    pub fn listens_on(&self, addresses: &str, proxy_url: Option<String>) {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.describe(addresses);
        self.send(Job::Listen(proxy_url));
    }

    /// Completes when another proxy holds the lock, because somebody removed its file. Returns the reason,
    /// with which this proxy must end. The worker has stopped by then.
    pub async fn lock_lost(&self) -> String {
        let mut lock_lost = self.lock_lost.clone();
        match lock_lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Carries out `changes` in order, and independent ones as one batch. Returns one outcome for each.
    /// They are carried out even if the caller is dropped. `record` names the caller in the log.
    pub async fn change(
        &self,
        changes: Vec<Change>,
        authorized: Authorized,
        record: &Record,
    ) -> Vec<Outcome> {
        let job = |change| {
            let (outcome, answer) = oneshot::channel();
            let job = ChangeJob {
                change,
                authorized: authorized.clone(),
                record: record.clone(),
                outcome,
            };
            (job, answer)
        };
        let (jobs, waiting): (Vec<_>, Vec<_>) = changes.into_iter().map(job).unzip();
        self.send(Job::Changes(jobs));
        let mut outcomes = Vec::with_capacity(waiting.len());
        for outcome in waiting {
            outcomes.push(outcome.await.unwrap_or_else(|_| Err(shutting_down())));
        }
        outcomes
    }

    /// Waits at most `patience` for the running change, and removes generated files. If the change takes
    /// longer, recovery at the next start determines its outcome.
    pub async fn shut_down(&self, patience: Duration) {
        let stopped = self.request(Job::Stop);
        if tokio::time::timeout(patience, stopped).await.is_err() {
            tracing::warn!(
                "supervisord has not answered to a change: its outcome is determined at the next start"
            );
        }
        if let Err(error) = self.include.sweep() {
            tracing::error!(%error, "generated files cannot be removed");
        }
    }

    /// Holds off changes until the guard is dropped, so that a client's `reloadConfig` reads no generated
    /// file and lists no addition that is not in the registry yet. The holder must not send the worker
    /// another job, which would wait for the guard. Returns `None` if the worker has ended.
    pub async fn pause_reloads(&self) -> Option<ReloadPause> {
        self.request(Job::PauseReloads).await
    }

    /// Holds off changes as [`Twiddler::pause_reloads`] does, and lets the caller send probes.
    ///
    /// # Errors
    /// When the daemon does not answer, or the include directory cannot be written.
    pub async fn pause_for_probes(&self) -> Result<ProbePause, ChangeError> {
        let pause = self.request(Job::PauseForProbes).await;
        pause.unwrap_or_else(|| Err(shutting_down()))
    }

    /// Sends `reloadConfig` and then `calls` to the daemon, in one multicall. Returns all results, that of
    /// `reloadConfig` first. The caller must hold off changes.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn read_files(
        &self,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, ChangeError> {
        let mut all = vec![("supervisor.reloadConfig", vec![])];
        all.extend_from_slice(calls);
        self.call_all(&all).await
    }

    /// Sends `calls` to the daemon in one multicall, with the proxy's own credentials. Returns one result
    /// for each call.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn call_all(
        &self,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, ChangeError> {
        Ok(self.daemon.multicall(calls).await?)
    }

    /// Records that `members` of this `epoch` have an equivalent definition from now on, and that the
    /// user's files define the added `groups` from now on.
    pub async fn redefine(&self, epoch: Epoch, groups: &[String], members: Vec<Member>) {
        let mut events: Vec<Event> = Vec::new();
        for name in groups {
            events.push(Event::GroupGone { name: name.clone() });
            events.extend(self.with_registry(|registry| {
                let of_group = registry.members_of(name).cloned();
                let joined = of_group.map(|member| Event::Joined(Arc::new(member)));
                joined.collect::<Vec<_>>()
            }));
        }
        let members = members.into_iter();
        events.extend(members.map(|member| Event::Joined(Arc::new(member))));
        // Another client's change may have been interrupted. Recovery must come before the note.
        let _current = self.current().await;
        let _ = self.request(|done| Job::Note(epoch, events, done)).await;
        self.rewrite_persist_file().await;
    }

    /// Writes the persist file again, without the processes that the user's files define by now.
    pub async fn rewrite_persist_file(&self) {
        let _ = self.request(Job::Persist).await;
    }

    /// Whether additions outlive the daemon (`--persist`).
    pub fn persists(&self) -> bool {
        self.persists
    }

    /// The include directory.
    pub fn include_dir(&self) -> &Arc<IncludeDir> {
        &self.include
    }

    /// The daemon's configuration file.
    pub fn conf_file(&self) -> &Path {
        &self.conf_file
    }

    /// The daemon.
    pub fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// Calls `read` with the registry. `read` must not block.
    pub fn with_registry<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        read(&self.view().registry)
    }

    /// Makes sure that the view describes the daemon's present epoch, and returns that epoch. Costs one
    /// system call while the daemon stays up.
    ///
    /// # Errors
    /// When the daemon does not answer or shuts down.
    pub async fn current(&self) -> Result<Epoch, ChangeError> {
        if !self.is_current() {
            let recovered = self.request(Job::Recover).await;
            recovered.unwrap_or_else(|| Err(shutting_down()))?;
        }
        Ok(self.epoch())
    }

    /// Whether the view describes the daemon's present epoch. Does not block.
    fn is_current(&self) -> bool {
        self.view().status != Status::Unknown && self.liveness.is_unbroken()
    }

    /// Whether the daemon is still in this epoch, as far as the liveness connection shows it.
    pub fn is_current_epoch(&self, epoch: Epoch) -> bool {
        self.is_current() && self.epoch() == epoch
    }

    /// The epoch that the view describes.
    pub fn epoch(&self) -> Epoch {
        self.view().epoch
    }

    /// Makes sure that the daemon is still in this epoch.
    ///
    /// # Errors
    /// When the daemon restarted, or does not answer.
    pub async fn ensure_epoch(&self, epoch: Epoch) -> Result<(), ChangeError> {
        if self.current().await? == epoch {
            Ok(())
        } else {
            Err(engine::Interrupted::Restarted.into())
        }
    }

    /// Makes hidden processes visible again, because the daemon reported in this epoch that they were
    /// started.
    pub async fn unhide(
        &self,
        epoch: Epoch,
        processes: impl IntoIterator<Item = (String, String)>,
    ) {
        // A hidden process in a real group never becomes visible.
        let is_real = |group: &str| self.with_registry(|registry| registry.owner(group).is_some());
        let events: Vec<Event> = processes
            .into_iter()
            .filter(|(group, _)| !is_real(group))
            .map(|(group, process)| Event::Shown { group, process })
            .collect();
        if !events.is_empty() {
            let _ = self.request(|done| Job::Note(epoch, events, done)).await;
        }
    }

    /// Makes the worker check for losses soon, because a reply contradicts the registry.
    pub fn check_for_losses_soon(&self) {
        self.loss_check.notify_one();
    }

    /// The names of all active groups, as clients know them: groups with processes, and empty groups that
    /// were added or that the user's files define.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn group_names(&self) -> Result<Vec<String>, ChangeError> {
        self.current().await?;
        let configured = self.configured_groups();
        let mut candidates: HashSet<String> =
            self.with_registry(|registry| registry.added_groups().map(str::to_owned).collect());
        let empty = configured.iter().filter(|group| group.empty);
        candidates.extend(empty.map(|group| group.name.clone()));
        let mut queries = vec![Query::AllProcesses];
        queries.extend(candidates.into_iter().map(Query::Group));
        let answers = query(&self.daemon, queries).await?;
        Ok(self.with_registry(|registry| {
            if reconcile::has_losses(registry, &answers) {
                self.check_for_losses_soon();
            }
            visible_groups(registry, &answers)
        }))
    }

    /// Makes sure that clients see a group of this name.
    ///
    /// # Errors
    /// When there is no such group, or the daemon does not answer.
    pub async fn require_group(&self, group: &str) -> Result<(), ChangeError> {
        self.current().await?;
        let answers = query(&self.daemon, vec![Query::Group(group.to_owned())]).await?;
        let active = answers.is_active(group);
        let known = self.with_registry(|registry| {
            active && registry.owner(group).is_none()
                || registry.members_of(group).any(Member::is_placed)
        });
        if known {
            Ok(())
        } else {
            Err(ChangeError::UnknownGroup(group.to_owned()))
        }
    }

    /// Adds the members to the daemon's `getAllConfigInfo` list, whose names are those of clients already.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn complete_configs(&self, list: &mut Vec<Value>) -> Result<(), ChangeError> {
        self.with_registry(|registry| self.configs.learn(registry, list));
        if !self.with_registry(|registry| self.configs.missing(registry).is_empty()) {
            let described = self.request(Job::DescribeMembers).await;
            described.unwrap_or_else(|| Err(shutting_down()))?;
        }
        self.with_registry(|registry| self.configs.complete(registry, list));
        Ok(())
    }

    /// Whether there are no changes, so that no name needs translation.
    pub fn has_no_changes(&self) -> bool {
        let view = self.view();
        view.adopted && view.registry.is_empty() && view.registry.needs_no_translation()
    }

    /// The groups that the user's files define now. Returns none if the files cannot be read: the daemon
    /// reports the error when it reads them itself.
    pub fn configured_groups(&self) -> Vec<ConfiguredGroup> {
        conf::configured_groups(&self.conf_file)
    }

    /// Whether the user's `configured` groups define a group or process that was added.
    pub fn defines_added(&self, configured: &[ConfiguredGroup]) -> bool {
        self.with_registry(|registry| !without_defined(registry, configured).1.is_empty())
    }

    /// Warns about names that are in use twice: added, and in the user's files.
    pub fn warn_of_clashes(&self) {
        let configured = self.configured_groups();
        self.with_registry(|registry| losses::warn_of_clashes(registry, &configured));
    }

    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the worker a job and waits for its answer. Returns `None` if the worker has ended.
    async fn request<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Option<T> {
        let (answer, waiting) = oneshot::channel();
        self.send(job(answer));
        waiting.await.ok()
    }

    fn send(&self, job: Job) {
        // A worker that has ended drops the job with the sender of its answer.
        let _ = self.jobs.send(job);
    }
}

/// Takes over the files of an earlier proxy: removes generated files, and puts the persist file in place or
/// aside. Returns the journal, its registry, and the text of the persist file.
fn take_over_files(
    include: &Arc<IncludeDir>,
    conf_file: &Path,
    persists: bool,
) -> std::io::Result<(Journal, Registry, Option<String>)> {
    if include.put_back()? {
        tracing::info!("put back what is kept: an earlier proxy died in the middle of a change");
    }
    let persist_file = include.read_persist_file()?;
    let (mut journal, registry) = Journal::open(include.clone())?;
    journal.tidy(&registry);
    if persists {
        let configured = conf::configured_groups(conf_file);
        persist::restore_aside(include, &registry, &configured);
    } else {
        persist::set_aside(include, persist_file.as_deref())?;
    }
    // The file that was aside may be the persist file again.
    let persist_file = match persist_file {
        None => include.read_persist_file()?,
        text => text,
    };
    for path in include.sweep()? {
        tracing::warn!(path = %path.display(), "removed a generated file that an earlier proxy left");
    }
    Ok((journal, registry, persist_file))
}

fn shutting_down() -> ChangeError {
    ChangeError::Unreachable("the proxy is shutting down".to_owned())
}

/// Returns a marker name that is unique to this proxy.
fn fresh_marker() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("twiddler~{:x}-{:x}", std::process::id(), now.as_nanos())
}

fn visible_groups(registry: &Registry, answers: &Answers) -> Vec<String> {
    let mut names: HashSet<String> = answers
        .groups
        .iter()
        .filter(|(_, active)| **active)
        .map(|(name, _)| name.clone())
        .collect();
    names.extend(answers.processes.values().map(|info| {
        registry
            .owner(&info.group)
            .unwrap_or(&info.group)
            .to_owned()
    }));
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    names
}
