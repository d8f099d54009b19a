//! The `twiddler` namespace: what was changed at run time, and how it is changed.
//!
//! One worker carries out changes, those that wait together as one transaction; names are looked up
//! by everybody at any time. Knows nothing of HTTP.

mod ask;
mod change;
mod configs;
mod journal;
pub mod log;
mod log_files;
mod losses;
pub mod methods;
mod persist;
mod persist_file;
mod plan;
mod reading;
mod reconcile;
mod registry;
mod script;
mod settle;
mod transaction;
mod worker;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::{Notify, OnceCell, mpsc};

pub use change::{Change, Outcome, Refusal, Wording};
pub use log::MainLog;
pub use plan::{Found, group_of_real_name, number_of_real_name};
pub use registry::{Event, Member, Place, Registry, is_still_hidden};

use crate::audit::Record;
use crate::daemon::conf::{self, ConfiguredGroup};
use crate::daemon::fault::{BAD_NAME, FAILED, SHUTDOWN_STATE, fault};
use crate::daemon::{CallError, Daemon, Life, Reloaded};
use crate::include_dir::{Delivery, DirLock, Holder, IncludeDir, Staged};
use crate::program;
use crate::xmlrpc::{Fault, Value};
use ask::ask;
use configs::Configs;
use journal::{Journal, Opened};
use plan::{Answers, Question};
use worker::Job;

/// How often the daemon is looked at that has started again since the last look.
const LOOKS: usize = 5;

/// Whether the daemon let the one in who wants a change, and so what the change presents to the
/// daemon from its first call to its last, whatever other callers bring meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorized {
    /// It did, with these credentials. The header is marked as sensitive.
    Checked(Option<HeaderValue>),
    /// It was not asked, because it asks nobody for credentials as far as is known. The change
    /// presents none.
    NotRequired,
}

impl Authorized {
    /// What the change presents to the daemon.
    fn presented(&self) -> Option<HeaderValue> {
        match self {
            Authorized::Checked(presented) => presented.clone(),
            Authorized::NotRequired => None,
        }
    }
}

/// What [`Twiddler::open`] would find in an include directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The proxy that uses it now.
    pub holder: Option<Holder>,
    /// So many programs are kept for the daemon's next start.
    pub kept_programs: Option<usize>,
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
pub fn probe(include: Arc<IncludeDir>, conf_file: &Path) -> std::io::Result<Probe> {
    let holder = include.holder()?;
    if holder.is_none() {
        ensure_alone(&include, conf_file)?;
    }
    let kept = include.kept()?;
    let opened = Journal::open(include)?;
    let registry = opened.journal.registry();
    Ok(Probe {
        holder,
        kept_programs: kept.as_deref().map(persist::programs_in),
        groups: registry.added_groups().map(str::to_owned).collect(),
        members: registry
            .members()
            .map(|member| (member.group.clone(), member.process.clone()))
            .collect(),
    })
}

/// Makes sure that no other proxy is in front of the same daemon, with another of the directories that
/// it includes. One that was written into the command line of this proxy alone is not seen.
fn ensure_alone(include: &IncludeDir, conf_file: &Path) -> std::io::Result<()> {
    let found = conf::inspect(conf_file, &conf::process_environment);
    let patterns = found.map(|found| found.conf.include).unwrap_or_default();
    include.ensure_alone(patterns.into_iter().map(|pattern| pattern.dir))
}

/// Everything about what was changed in the daemon's present life.
pub struct Twiddler {
    daemon: Arc<Daemon>,
    include: Arc<IncludeDir>,
    conf_file: PathBuf,
    journal: RwLock<Journal>,
    life: Life,
    /// What is known is about the life that is watched. Not so while that is being found out.
    settled: AtomicBool,
    /// Held while somebody finds out whether the daemon's life is still the same.
    settling: tokio::sync::Mutex<()>,
    /// The daemon did not answer to something: it may have started again.
    cut: AtomicBool,
    /// Steps whose end is not known: the daemon went away before it answered.
    open_ends: Mutex<Vec<Event>>,
    marker: String,
    next: AtomicU64,
    /// Counts the lives of the daemon that were noticed.
    lives: AtomicU64,
    /// What was kept when the proxy started, whatever became of it since.
    kept_before: Option<String>,
    /// What the daemon runs of an earlier proxy was looked for.
    looked_around: AtomicBool,
    /// How generated files reach the daemon, once that was tried.
    delivery: OnceCell<Delivery>,
    /// What is added outlives the daemon.
    persists: bool,
    /// Where placed processes call supervisord, once the proxy listens.
    proxy_url: OnceLock<Option<String>>,
    /// What `getAllConfigInfo` said of processes that were added.
    configs: Configs,
    /// Keeps a second proxy from the same include directory.
    lock: Mutex<DirLock>,
    /// Not bounded: each connection waits for its own changes, and connections are bounded.
    jobs: mpsc::UnboundedSender<Job>,
    /// Held by the worker during a transaction.
    busy: tokio::sync::Mutex<()>,
    /// There is one generated file at a time.
    staging: Arc<tokio::sync::Mutex<()>>,
    /// Wakes whoever watches the daemon's life: a reply speaks against what is known.
    doubts: Notify,
}

/// A generated file, until it is dropped.
struct OnDisk {
    _staged: Staged,
    /// Given on after the file is gone.
    _turn: tokio::sync::OwnedMutexGuard<()>,
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
        let kept_before = include.kept()?;
        let Opened {
            mut journal,
            unfinished,
        } = Journal::open(include.clone())?;
        journal.tidy();
        match persists {
            true => {
                let configured = configured_groups(&conf_file);
                persist::take_up_aside(&include, journal.registry(), &configured);
            }
            false => persist::set_aside(&include, kept_before.as_deref())?,
        }
        // What was put aside may be kept again.
        let kept_before = match kept_before {
            None => include.kept()?,
            kept => kept,
        };
        for path in include.sweep()? {
            tracing::warn!(path = %path.display(), "took away a generated file that an earlier proxy left");
        }
        let (jobs, waiting) = mpsc::unbounded_channel();
        let twiddler = Arc::new(Twiddler {
            daemon,
            include,
            conf_file,
            marker: marker_name(&journal),
            next: AtomicU64::new(journal.registry().next().max(1)),
            lives: AtomicU64::new(0),
            kept_before,
            journal: RwLock::new(journal),
            looked_around: AtomicBool::new(false),
            delivery: OnceCell::new(),
            persists,
            proxy_url: OnceLock::new(),
            configs: Configs::default(),
            lock: Mutex::new(lock),
            life: Life::default(),
            settled: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            settling: tokio::sync::Mutex::default(),
            open_ends: Mutex::new(unfinished),
            jobs,
            busy: tokio::sync::Mutex::default(),
            staging: Arc::default(),
            doubts: Notify::new(),
        });
        twiddler.say_known();
        tokio::spawn(worker::work(twiddler.clone(), waiting));
        Ok(twiddler)
    }

    /// Takes note of where the proxy listens, says that to a second proxy, and begins to watch the
    /// daemon's life. Placed processes are told to call supervisord at `proxy_url`, if there is one.
    pub fn listens_on(self: &Arc<Self>, addresses: &str, proxy_url: Option<String>) {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.describe(addresses);
        // Before the watch, which may write what is kept.
        if self.proxy_url.set(proxy_url).is_ok() {
            tokio::spawn(settle::keep_watch(self.clone()));
        }
    }

    /// Where placed processes call supervisord.
    fn proxy_url(&self) -> Option<&str> {
        self.proxy_url.get()?.as_deref()
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
        let waiting: Vec<_> = changes
            .into_iter()
            .map(|change| self.with_address(change))
            .map(|change| self.submit(change, authorized.clone(), record.clone()))
            .collect();
        let mut outcomes = Vec::with_capacity(waiting.len());
        for outcome in waiting {
            outcomes.push(outcome.await.unwrap_or_else(|_| {
                Err(Refusal::Unreachable(
                    "the proxy is shutting down".to_owned(),
                ))
            }));
        }
        outcomes
    }

    /// What is added while processes can be told where the proxy is.
    fn with_address(&self, change: Change) -> Change {
        match change {
            Change::AddProgram(program) if self.proxy_url().is_some() => {
                Change::AddProgram(Box::new(program.calling_proxy()))
            }
            other => other,
        }
    }

    /// Waits until no change is under way, as long as `patience` lasts, and takes generated files
    /// away. What became of a change that takes longer is found out at the next start.
    pub async fn wind_up(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.busy.lock())
            .await
            .is_err()
        {
            tracing::warn!("supervisord has not answered to a change: left it to itself");
        }
        if let Err(error) = self.include.sweep() {
            tracing::error!(%error, "generated files cannot be taken away");
        }
    }

    /// Keeps changes off until the guard is dropped: whoever lets the daemon read its files meanwhile
    /// meets none of ours, and learns of nothing that is about to be noted down.
    pub async fn quiet(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.busy.lock().await
    }

    /// Answers from what is known; `look` must not wait for anything.
    pub fn with_registry<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(
            self.journal
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .registry(),
        )
    }

    /// Makes sure that what is known is about the daemon's present life, and forgets it otherwise.
    /// Costs a system call while the daemon stays up.
    ///
    /// # Errors
    /// When the daemon is away or shuts down.
    pub async fn same_life(&self) -> Result<(), Refusal> {
        if self.is_settled() {
            return Ok(());
        }
        let _settling = self.settling.lock().await;
        if self.is_settled() {
            return Ok(());
        }
        self.settled.store(false, Ordering::Relaxed);
        self.life
            .watch(self.daemon.address())
            .await
            .map_err(|error| Refusal::Unreachable(self.unreachable(&error)))?;
        let settled = self.settle().await;
        match settled {
            Ok(()) => self.settled.store(true, Ordering::Relaxed),
            Err(_) => self.life.forget(),
        }
        settled
    }

    /// Takes note that hidden processes are to be seen again, according to what the daemon said in
    /// this life: in a new one its file has started them, and nobody else has.
    pub fn show(&self, life: u64, processes: impl IntoIterator<Item = (String, String)>) {
        // In real groups they never are.
        let is_real = |group: &str| self.with_registry(|registry| registry.owner(group).is_some());
        let events: Vec<Event> = processes
            .into_iter()
            .filter(|(group, _)| !is_real(group))
            .map(|(group, process)| Event::Shown { group, process })
            .collect();
        if !events.is_empty() && self.is_settled() {
            self.note_in(life, events);
        }
    }

    /// Tells the lives of the daemon apart that were noticed.
    pub fn life_number(&self) -> u64 {
        self.lives.load(Ordering::Relaxed)
    }

    /// The number of the daemon's present life, once what is known is about that.
    ///
    /// # Errors
    /// When the daemon is away or shuts down, or starts again each time that it is looked at.
    pub async fn present_life(&self) -> Result<u64, Refusal> {
        for _ in 0..LOOKS {
            let life = self.life_number();
            self.same_life().await?;
            if self.life_number() == life {
                return Ok(life);
            }
        }
        Err(started_again())
    }

    /// Makes sure that the daemon has not started again since its life had this number.
    ///
    /// # Errors
    /// When it has, or is away.
    pub async fn lived_on_since(&self, life: u64) -> Result<(), Refusal> {
        self.same_life().await?;
        if self.life_number() == life {
            return Ok(());
        }
        Err(started_again())
    }

    /// The names of all active groups: those with processes, and empty ones that were added here or
    /// that the user's files define.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn group_names(&self) -> Result<Vec<String>, Refusal> {
        self.same_life().await?;
        let mut candidates: HashSet<String> =
            self.with_registry(|registry| registry.added_groups().map(str::to_owned).collect());
        candidates.extend(
            self.configured_groups()
                .into_iter()
                .filter(|group| group.empty)
                .map(|group| group.name),
        );
        let mut questions = vec![Question::AllProcesses];
        questions.extend(candidates.into_iter().map(Question::Group));
        let answers = ask(self, questions).await?;
        Ok(self.with_registry(|registry| {
            if !reconcile::lost(registry, &answers).is_empty() {
                self.doubt();
            }
            visible_groups(registry, &answers)
        }))
    }

    /// Makes sure that there is a group of this name for clients.
    ///
    /// # Errors
    /// The fault for an unknown group, or why the daemon cannot tell.
    pub async fn require_group(&self, group: &str) -> Result<(), Refusal> {
        self.same_life().await?;
        let answers = ask(self, vec![Question::Group(group.to_owned())]).await?;
        let active = answers.groups.values().any(|active| *active);
        let known = self.with_registry(|registry| {
            active && registry.owner(group).is_none()
                || registry.members_of(group).any(Member::is_placed)
        });
        if known {
            Ok(())
        } else {
            Err(Refusal::Fault(fault(BAD_NAME, format!("group: {group}"))))
        }
    }

    /// Whether nothing was changed, so that no name can need translation.
    pub fn knows_nothing(&self) -> bool {
        self.looked_around.load(Ordering::Relaxed)
            && self.with_registry(|registry| registry.is_empty() && registry.is_plain())
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
            && self.life.is_unbroken()
            && !self.cut.load(Ordering::Relaxed)
            && self.open_ends().is_empty()
    }

    /// Puts a generated file in front of the daemon until the guard is dropped.
    async fn stage(&self, text: &str) -> Result<OnDisk, Refusal> {
        let delivery = self
            .delivery
            .get_or_try_init(|| self.try_delivery())
            .await?;
        self.stage_by(text, *delivery).await
    }

    async fn stage_by(&self, text: &str, delivery: Delivery) -> Result<OnDisk, Refusal> {
        let turn = self.staging.clone().lock_owned().await;
        match self.include.stage(text, delivery) {
            Ok(staged) => Ok(OnDisk {
                _staged: staged,
                _turn: turn,
            }),
            Err(error) => Err(self.cannot_write(&error)),
        }
    }

    /// Finds out whether the daemon can look through this process, by an empty group that it reads
    /// and nobody adds.
    async fn try_delivery(&self) -> Result<Delivery, Refusal> {
        let group = self.trial_name();
        let text = program::render_group(&group, plan::DEFAULT_PRIORITY, &[]);
        let staged = self.stage_by(&text, Delivery::Link).await?;
        let reloaded = self.call("supervisor.reloadConfig", &[]).await?;
        drop(staged);
        self.tell_of_other_markers(&reloaded);
        let seen = Reloaded::read(&reloaded).added.contains(&group);
        let delivery = if seen { Delivery::Link } else { Delivery::File };
        tracing::debug!(?delivery, "tried how generated files reach supervisord");
        Ok(delivery)
    }

    /// Another proxy has marked the daemon's present life, with another include directory. Whether it
    /// still runs cannot be told where its lock is not seen.
    fn tell_of_other_markers(&self, reloaded: &Value) {
        let others = Reloaded::gone(reloaded).filter(|name| is_marker(name));
        for marker in others.filter(|name| *name != self.marker) {
            tracing::warn!(
                "supervisord has the group {marker} of another twiddler: if one still runs in front of it, with another include directory, stop one of the two; if none does, supervisorctl remove {marker} straight on supervisord ends this warning"
            );
        }
    }

    fn cannot_write(&self, error: &std::io::Error) -> Refusal {
        let dir = self.include.path().display();
        tracing::error!(%error, %dir, "the include directory cannot be written");
        Refusal::Fault(fault(
            FAILED,
            format!("cannot write in the include directory {dir}: {error}"),
        ))
    }

    fn begin(&self, marker: Option<&str>, events: &[Event]) -> Result<(), Refusal> {
        let mut all = vec![Event::Next(self.next_number())];
        all.extend(marker.map(|name| Event::Marker(name.to_owned())));
        all.extend_from_slice(events);
        self.journal_mut()
            .begin(&all)
            .map_err(|error| self.cannot_write(&error))
    }

    /// Takes note of what came of that which was begun in this life of the daemon.
    ///
    /// # Errors
    /// When it is another life by now: what was taken up of that does not include it.
    fn end(&self, life: u64, events: Vec<Event>) -> Result<(), Refusal> {
        let events = self.completed(events);
        let mut journal = self.journal_mut();
        // Under the lock, so that whoever takes up another life has either counted it or finds this.
        if self.life_number() != life {
            return Err(started_again());
        }
        journal.done(events);
        Ok(())
    }

    /// Ends what an earlier change had begun, once it is known what came of it.
    fn end_what_is_settled(&self, life: u64) -> Result<(), Refusal> {
        if self.open_ends().is_empty() && !self.journal_mut().begun().is_empty() {
            self.end(life, Vec::new())?;
        }
        Ok(())
    }

    /// Takes note of something else.
    fn note(&self, events: Vec<Event>) {
        let events = self.completed(events);
        self.journal_mut().also(events);
    }

    /// The same for what is so in this life of the daemon, and nothing in another.
    fn note_in(&self, life: u64, events: Vec<Event>) {
        let events = self.completed(events);
        let mut journal = self.journal_mut();
        if self.life_number() == life {
            journal.also(events);
        }
    }

    fn completed(&self, mut events: Vec<Event>) -> Vec<Event> {
        self.configs.forget(&events);
        events.push(Event::Next(self.next_number()));
        events
    }

    /// Takes note that the daemon started again and has this of ours.
    fn renew(&self, events: Vec<Event>) {
        self.configs.clear();
        self.journal_mut().renew(events);
    }

    /// Leaves open what became of steps that were begun in this life of the daemon. In another one
    /// nothing is left of them.
    fn leave_open(&self, life: u64, events: Vec<Event>) {
        let mut open_ends = self.open_ends();
        if self.life_number() == life {
            open_ends.extend(events);
        }
    }

    fn needs_marker(&self) -> bool {
        self.with_registry(|registry| registry.marker().is_none())
    }

    fn marker_name(&self) -> String {
        self.marker.clone()
    }

    /// An empty group that the daemon is to read and nobody adds.
    fn trial_name(&self) -> String {
        format!("{}~try", self.marker)
    }

    fn next_number(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn reserve_numbers(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    fn take_number(&self, group: &str) -> String {
        plan::real_name(group, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// What the user's files define now. Files that cannot be read define nothing: the daemon says
    /// what is wrong with them when it reads them itself.
    pub fn configured_groups(&self) -> Vec<ConfiguredGroup> {
        configured_groups(&self.conf_file)
    }

    fn main_file(&self) -> String {
        self.conf_file.display().to_string()
    }

    async fn call(&self, method: &str, params: &[Value]) -> Result<Value, Refusal> {
        Ok(self.daemon.call(method, params).await?)
    }

    async fn multicall(
        &self,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, Refusal> {
        let results = self.heard(self.daemon.multicall(calls).await)?;
        not_shutting_down(results.iter().find_map(|result| result.as_ref().err()))?;
        Ok(results)
    }

    async fn multicall_and_reload(
        &self,
        calls: Vec<(&str, Vec<Value>)>,
    ) -> Result<(Vec<Result<Value, Fault>>, Result<Reloaded, Fault>), Refusal> {
        let (results, reloaded) = self.heard(self.daemon.multicall_and_reload(calls).await)?;
        not_shutting_down(results.iter().find_map(|result| result.as_ref().err()))?;
        not_shutting_down(reloaded.as_ref().err())?;
        Ok((results, reloaded))
    }

    /// Takes note of a daemon that went away before it answered.
    fn heard<T>(&self, answer: Result<T, CallError>) -> Result<T, Refusal> {
        if matches!(answer, Err(CallError::Unreachable(_))) {
            self.cut.store(true, Ordering::Relaxed);
        }
        Ok(answer?)
    }

    fn unreachable(&self, error: &std::io::Error) -> String {
        format!(
            "supervisord at {} does not answer: {error}",
            self.daemon.address()
        )
    }

    fn journal_mut(&self) -> std::sync::RwLockWriteGuard<'_, Journal> {
        self.journal.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_ends(&self) -> MutexGuard<'_, Vec<Event>> {
        self.open_ends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn configured_groups(conf_file: &Path) -> Vec<ConfiguredGroup> {
    conf::inspect(conf_file, &conf::process_environment)
        .map(|found| found.conf.groups)
        .unwrap_or_default()
}

/// Refuses all where the daemon says that it stops or restarts.
fn not_shutting_down(told: Option<&Fault>) -> Result<(), Refusal> {
    match told {
        Some(told) if told.code == SHUTDOWN_STATE => Err(Refusal::Fault(told.clone())),
        _ => Ok(()),
    }
}

fn started_again() -> Refusal {
    Refusal::Unreachable("supervisord was started again meanwhile".to_owned())
}

/// A name of its own for each proxy, so that the marker of an earlier life is never mistaken.
fn marker_name(journal: &Journal) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let fresh = || format!("twiddler~{:x}-{:x}", std::process::id(), now.as_nanos());
    journal
        .registry()
        .marker()
        .map_or_else(fresh, str::to_owned)
}

/// Whether a group bears a name that [`marker_name`] gives.
fn is_marker(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let rest = name.strip_prefix("twiddler~").unwrap_or_default();
    rest.split_once('-')
        .is_some_and(|(pid, time)| number(pid) && number(time))
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
            .owner(&found.real)
            .unwrap_or(&found.real)
            .to_owned()
    }));
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    names
}
