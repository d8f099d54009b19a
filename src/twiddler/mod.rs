//! The `twiddler` namespace: what was changed at run time, and how it is changed.
//!
//! One worker owns the daemon's epoch, the journal, the generated file and the registry. Everybody
//! else reads the view that it publishes, or sends it a job. Knows nothing of HTTP. Imports run one
//! way: here, `worker`, `transaction` and `recovery`, `engine`, what does I/O, `model`.

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

/// What [`Twiddler::open`] would find in an include directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirState {
    /// The proxy that uses it now.
    pub holder: Option<Holder>,
    /// So many programs are kept for the daemon's next start.
    pub persisted_programs: Option<usize>,
    /// Something is in the place of the persist file that no proxy has written.
    pub persist_file_is_foreign: bool,
    /// The groups that were added.
    pub groups: Vec<String>,
    /// The processes that were added, by group and name.
    pub members: Vec<(String, String)>,
}

/// Looks at the lock, the journal and the persist file as [`Twiddler::open`] does, and changes nothing.
///
/// # Errors
/// The sentence with which [`Twiddler::open`] would refuse, unless a proxy in the same directory is
/// why.
pub fn inspect(include: Arc<IncludeDir>, conf_file: &Path) -> std::io::Result<DirState> {
    let holder = include.holder()?;
    if holder.is_none() {
        ensure_alone(&include, conf_file)?;
    }
    let kept = include.read_persist_file()?;
    let (_, registry) = Journal::open(include)?;
    Ok(DirState {
        holder,
        persisted_programs: kept.as_deref().map(persist::programs_in),
        persist_file_is_foreign: kept.is_some_and(|text| !persist::is_ours(&text)),
        groups: registry.added_groups().map(str::to_owned).collect(),
        members: registry
            .members()
            .map(|member| (member.group.clone(), member.process.clone()))
            .collect(),
    })
}

/// The way to the worker, and what it publishes.
pub struct Twiddler {
    daemon: Arc<Daemon>,
    conf_file: PathBuf,
    view: Arc<RwLock<View>>,
    link: Arc<Liveness>,
    /// What `getAllConfigInfo` said of processes that were added.
    configs: Arc<Configs>,
    /// Not bounded: each connection waits for its own changes, and connections are bounded.
    jobs: mpsc::UnboundedSender<Job>,
    /// Wakes the worker: a reply speaks against what is known.
    doubts: Arc<Notify>,
    include: Arc<IncludeDir>,
    /// Keeps a second proxy from the same include directory.
    lock: Arc<Mutex<DirLock>>,
    /// Why another proxy has this one's ownership.
    lock_lost: watch::Receiver<Option<String>>,
    persists: bool,
}

impl Twiddler {
    /// Takes up what the journal in the include directory says, sweeps away files that a proxy that
    /// died has left there, and starts the worker on the current runtime. What is added outlives
    /// the daemon if it `persists`; otherwise nothing does, also of what was kept before.
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
        if include.put_back()? {
            tracing::info!(
                "put back what is kept: an earlier proxy died in the middle of a change"
            );
        }
        let kept_before = include.read_persist_file()?;
        let (mut journal, registry) = Journal::open(include.clone())?;
        journal.tidy(&registry);
        if persists {
            let configured = conf::configured_groups(&conf_file);
            persist::restore_aside(&include, &registry, &configured);
        } else {
            persist::set_aside(&include, kept_before.as_deref())?
        }
        // What was put aside may be kept again.
        let kept_before = match kept_before {
            None => include.read_persist_file()?,
            kept => kept,
        };
        for path in include.sweep()? {
            tracing::warn!(path = %path.display(), "took away a generated file that an earlier proxy left");
        }
        if let Some(known) = losses::gone(&registry, &losses::everything(&registry)) {
            tracing::info!("known from before: {known}");
        }
        let (jobs, waiting) = mpsc::unbounded_channel();
        let lock = Arc::new(Mutex::new(lock));
        let (lost, lock_lost) = watch::channel(None);
        let marker = registry.marker().map_or_else(fresh_marker, str::to_owned);
        let twiddler = Arc::new(Twiddler {
            daemon: daemon.clone(),
            conf_file: conf_file.clone(),
            view: Arc::new(RwLock::new(View {
                registry,
                ..View::default()
            })),
            link: Arc::default(),
            configs: Arc::default(),
            jobs,
            doubts: Arc::default(),
            include: include.clone(),
            lock: lock.clone(),
            lock_lost,
            persists,
        });
        let engine = Engine {
            daemon,
            link: twiddler.link.clone(),
            journal,
            persist: persists.then(|| PersistFile::new(include.clone())),
            view: twiddler.view.clone(),
            configs: twiddler.configs.clone(),
            include,
            conf_file,
            marker,
            kept_before,
            changes: 0,
            was_withheld: false,
            held: BTreeSet::new(),
            delivery: None,
            proxy_url: None,
        };
        let ownership = Ownership { lock, lost };
        let worker = Worker::new(engine, waiting, twiddler.doubts.clone(), ownership);
        tokio::spawn(worker.run());
        Ok(twiddler)
    }

    /// Takes note of where the proxy listens, says that to a second proxy, and begins to watch the
    /// daemon's epoch. Placed processes are told to call supervisord at `proxy_url`, if there is one.
    pub fn listens_on(&self, addresses: &str, proxy_url: Option<String>) {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.describe(addresses);
        self.send(Job::Listen(proxy_url));
    }

    /// Done when another proxy has taken this one's place, because somebody removed the lock: why this
    /// one has to end. It changes nothing any more.
    pub async fn lock_lost(&self) -> String {
        let mut lock_lost = self.lock_lost.clone();
        match lock_lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Carries out `changes` in order, together as far as they do not concern each other; one
    /// outcome for each. They are carried out even if nobody waits for the answer any more.
    /// The log says what each came to, and of whom `record` speaks.
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

    /// Waits until no change is under way, as long as `patience` lasts, and takes generated files
    /// away. What became of a change that takes longer is found out at the next start.
    pub async fn shut_down(&self, patience: Duration) {
        let stopped = self.ask(Job::Stop);
        if tokio::time::timeout(patience, stopped).await.is_err() {
            tracing::warn!("supervisord has not answered to a change: left it to itself");
        }
        if let Err(error) = self.include.sweep() {
            tracing::error!(%error, "generated files cannot be taken away");
        }
    }

    /// Keeps changes off until the guard is dropped: whoever lets the daemon read its files meanwhile
    /// meets none of ours, and learns of nothing that is about to be noted down. Nothing else may be
    /// asked of the worker while the guard is held, which waits for it; none where it has ended.
    pub async fn pause_reloads(&self) -> Option<ReloadPause> {
        self.ask(Job::PauseReloads).await
    }

    /// Keeps changes off as [`Twiddler::pause_reloads`] does, and lets questions be put.
    ///
    /// # Errors
    /// When the daemon does not answer, or the include directory cannot be written.
    pub async fn pause_for_probes(&self) -> Result<ProbePause, ChangeError> {
        let pause = self.ask(Job::PauseForProbes).await;
        pause.unwrap_or_else(|| Err(shutting_down()))
    }

    /// Lets the daemon read its files, and carries out `calls` while that is what it has read last. The
    /// caller keeps changes off.
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

    /// Carries out `calls` as the proxy itself.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn call_all(
        &self,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, ChangeError> {
        Ok(self.daemon.multicall(calls).await?)
    }

    /// Takes note that members of this epoch are made from something else that means the same, and
    /// that groups which were added are from now on the files'.
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
        // A change of somebody else's may have been cut short: nothing is noted before that is known.
        let _current = self.current().await;
        let _ = self.ask(|done| Job::Note(epoch, events, done)).await;
        self.rewrite_persist_file().await;
    }

    /// Writes the persist file again: the files may define by now what is in it.
    pub async fn rewrite_persist_file(&self) {
        let _ = self.ask(Job::Persist).await;
    }

    /// Whether what is added outlives the daemon.
    pub fn persists(&self) -> bool {
        self.persists
    }

    /// The include directory, for files of the proxy's own.
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

    /// Answers from what is known; `look` must not wait for anything.
    pub fn with_registry<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.view().registry)
    }

    /// Makes sure that what is known is about the daemon's present epoch, and forgets it otherwise.
    /// Costs a system call while the daemon stays up.
    ///
    /// # Errors
    /// When the daemon is away or shuts down.
    pub async fn current(&self) -> Result<Epoch, ChangeError> {
        if !self.is_current() {
            let recovered = self.ask(Job::Recover).await;
            recovered.unwrap_or_else(|| Err(shutting_down()))?;
        }
        Ok(self.epoch())
    }

    /// Whether what is known is about the daemon's present epoch. Waits for nobody.
    fn is_current(&self) -> bool {
        self.view().status != Status::Unknown && self.link.is_unbroken()
    }

    /// Whether the daemon has not started again since this epoch, as far as that can be told without
    /// the worker.
    pub fn is_current_epoch(&self, epoch: Epoch) -> bool {
        self.is_current() && self.epoch() == epoch
    }

    /// The epoch that is known.
    pub fn epoch(&self) -> Epoch {
        self.view().epoch
    }

    /// Makes sure that the daemon has not started again since this epoch.
    ///
    /// # Errors
    /// When it has, or is away.
    pub async fn ensure_epoch(&self, epoch: Epoch) -> Result<(), ChangeError> {
        if self.current().await? == epoch {
            Ok(())
        } else {
            Err(engine::Interrupted::Restarted.into())
        }
    }

    /// Takes note that hidden processes are to be seen again, according to what the daemon said in
    /// this epoch.
    pub async fn unhide(
        &self,
        epoch: Epoch,
        processes: impl IntoIterator<Item = (String, String)>,
    ) {
        // In real groups they never are.
        let is_real = |group: &str| self.with_registry(|registry| registry.owner(group).is_some());
        let events: Vec<Event> = processes
            .into_iter()
            .filter(|(group, _)| !is_real(group))
            .map(|(group, process)| Event::Shown { group, process })
            .collect();
        if !events.is_empty() {
            let _ = self.ask(|done| Job::Note(epoch, events, done)).await;
        }
    }

    /// Has the daemon looked at soon, because a reply speaks against what is known.
    pub fn check_for_losses_soon(&self) {
        self.doubts.notify_one();
    }

    /// The names of all active groups: those with processes, and empty ones that were added here or
    /// that the user's files define.
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
            if reconcile::lacks(registry, &answers) {
                self.check_for_losses_soon();
            }
            visible_groups(registry, &answers)
        }))
    }

    /// Makes sure that there is a group of this name for clients.
    ///
    /// # Errors
    /// That there is none, or why the daemon cannot tell.
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

    /// Completes the daemon's list of configurations, whose names are those of clients already.
    ///
    /// # Errors
    /// When the daemon has to be asked and does not answer.
    pub async fn complete_configs(&self, list: &mut Vec<Value>) -> Result<(), ChangeError> {
        self.with_registry(|registry| self.configs.learn(registry, list));
        if !self.with_registry(|registry| self.configs.missing(registry).is_empty()) {
            let described = self.ask(Job::DescribeMembers).await;
            described.unwrap_or_else(|| Err(shutting_down()))?;
        }
        self.with_registry(|registry| self.configs.complete(registry, list));
        Ok(())
    }

    /// Whether nothing was changed, so that no name can need translation.
    pub fn has_no_changes(&self) -> bool {
        let view = self.view();
        view.adopted && view.registry.is_empty() && view.registry.is_plain()
    }

    /// What the user's files define now. Files that cannot be read define nothing: the daemon says
    /// what is wrong with them when it reads them itself.
    pub fn configured_groups(&self) -> Vec<ConfiguredGroup> {
        conf::configured_groups(&self.conf_file)
    }

    /// Whether these groups, which the user's files define, have something that was added.
    pub fn defines_added(&self, configured: &[ConfiguredGroup]) -> bool {
        self.with_registry(|registry| !without_defined(registry, configured).1.is_empty())
    }

    /// Says which names are in use twice: by what was added, and by the user's files.
    pub fn warn_of_clashes(&self) {
        let configured = self.configured_groups();
        self.with_registry(|registry| losses::warn_of_clashes(registry, &configured));
    }

    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the worker a job and waits for its answer; none where it has ended.
    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Option<T> {
        let (answer, waiting) = oneshot::channel();
        self.send(job(answer));
        waiting.await.ok()
    }

    fn send(&self, job: Job) {
        // A worker that has ended drops the job, and with it the sender of its answer.
        let _ = self.jobs.send(job);
    }
}

fn shutting_down() -> ChangeError {
    ChangeError::Unreachable("the proxy is shutting down".to_owned())
}

/// A name of its own for each proxy.
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
    names.extend(answers.processes.values().map(|found| {
        registry
            .owner(&found.group)
            .unwrap_or(&found.group)
            .to_owned()
    }));
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    names
}
