//! Live update: what supervisord's files say is put in force, and only what changed restarts.
//!
//! Stands above `twiddler`, which does not know of it. What the groups were made from is kept in a
//! baseline; what differs is found by a pure difference and judged by the daemon, which is
//! asked by probes; the plan says what stops, starts and restarts, and [`Updates`] does it through
//! changes like those of any client.

mod baseline;
mod difference;
mod execute;
mod files;
mod plan;
mod probe;
mod programs;
mod reply;
mod steps;
mod stop;
mod survey;
mod values;
mod variables;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;

use crate::audit::{Peer, Record};
use crate::daemon::conf::Definitions;
use crate::daemon::{Liveness, ProcessInfo};
use crate::fault::{BAD_NAME, INCORRECT_PARAMETERS, fault};
use crate::program::{Name, Program};
use crate::registry::Member;
use crate::twiddler::{Authorized, ChangeError, Epoch, Twiddler};
use crate::xmlrpc::{Fault, Value};
use baseline::Baseline;
use probe::Reply;

pub use probe::PREFIX;

/// How long a daemon that does not answer is left alone.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The same at most for one that answers with a fault: its files are not valid, or it asks for
/// credentials. Each time is twice as long as the time before.
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// What a client wants of the files and programs.
#[derive(Clone, Debug)]
pub enum Request {
    /// `diffConfig(groups)`
    Diff(Vec<String>),
    /// `updateConfig(groups)`
    Update(Vec<String>),
    /// `getAllProgramInfo()`
    Programs,
    /// `getProgramOptions(group, program)`
    Options {
        /// The group.
        group: String,
        /// The program.
        program: String,
    },
    /// `updateProgram(group, program, options)`
    Redefine {
        /// The group.
        group: String,
        /// The program.
        program: String,
        /// Its options.
        options: Value,
    },
    /// `scaleProgram(group, program, numprocs)`
    Scale {
        /// The group.
        group: String,
        /// The program.
        program: String,
        /// How many processes it is to have.
        numprocs: i64,
    },
}

/// Puts what the files say in force.
pub struct Updates {
    twiddler: Arc<Twiddler>,
    baseline: Mutex<Baseline>,
    /// What of it was written last: the disk takes as long for it as the daemon for many calls.
    written: Mutex<Option<Baseline>>,
    /// What the files said when the daemon read them last, as far as the proxy has seen it.
    last_read: Mutex<Option<Definitions>>,
    /// What the variables hold that the files use.
    variables: variables::Known,
    /// The steps of `supervisorctl update` restart only what changed.
    live: bool,
    /// Held by an update, so that the next waits for it.
    turn: tokio::sync::Mutex<()>,
}

impl Updates {
    /// Takes up what is known from before. With `live`, the steps of `supervisorctl update` restart only
    /// what changed.
    pub fn open(twiddler: Arc<Twiddler>, live: bool) -> Arc<Self> {
        let baseline = Baseline::read(twiddler.include_dir());
        Arc::new(Updates {
            twiddler,
            baseline: Mutex::new(baseline),
            written: Mutex::default(),
            last_read: Mutex::default(),
            variables: Mutex::default(),
            live,
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Answers a request of a caller whom the daemon let in.
    ///
    /// # Errors
    /// What the caller is told instead.
    pub async fn answer(
        self: &Arc<Self>,
        request: Request,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Value, ChangeError> {
        let (updates, record) = (self.clone(), record.clone());
        self.on_its_own(authorized.presented(), async move {
            updates.carry_out(request, authorized, &record).await
        })
        .await
    }

    /// Does what presents these credentials to the daemon, to its end: a caller who hangs up leaves
    /// nobody stopped, and no question in what the daemon has read last.
    async fn on_its_own<T: Send + 'static>(
        self: &Arc<Self>,
        presented: Option<HeaderValue>,
        work: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
    ) -> Result<T, ChangeError> {
        let daemon = self.twiddler.daemon().clone();
        let work = tokio::spawn(async move { daemon.presenting(presented, work).await });
        work.await.unwrap_or_else(|error| {
            let reason = format!("the update was cut short: {error}");
            Err(ChangeError::Unreachable(reason))
        })
    }

    async fn carry_out(
        &self,
        request: Request,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Value, ChangeError> {
        // What changes nothing waits for nobody's stops.
        let turn = async || self.turn.lock().await;
        match request {
            Request::Diff(groups) => self.diff(&groups).await,
            Request::Programs => self.all_programs().await,
            Request::Options { group, program } => self.program_options(&group, &program).await,
            Request::Update(groups) => {
                let _turn = turn().await;
                self.rejoin(authorized.clone(), record).await?;
                self.update(&groups, authorized, record).await
            }
            Request::Redefine {
                group,
                program,
                options,
            } => {
                let _turn = turn().await;
                self.rejoin(authorized.clone(), record).await?;
                self.redefine(&group, &program, &options, authorized, record)
                    .await
            }
            Request::Scale {
                group,
                program,
                numprocs,
            } => {
                let _turn = turn().await;
                self.scale(&group, &program, numprocs, authorized, record)
                    .await
            }
        }
    }

    /// Takes note, whenever the daemon may have started again, of what its groups were made from.
    pub async fn watch(self: Arc<Self>) {
        let life = Liveness::default();
        let mut pause = ASK_AGAIN;
        let mut known = None;
        loop {
            let address = self.twiddler.daemon().address();
            let noted = match life.watch(address).await {
                Ok(()) => {
                    let _turn = self.turn.lock().await;
                    self.take_up(&mut known).await
                }
                Err(error) => Err(ChangeError::Unreachable(error.to_string())),
            };
            pause = match &noted {
                Err(ChangeError::Fault(_) | ChangeError::Status(_)) => {
                    ASK_AGAIN_AT_MOST.min(pause * 2)
                }
                _ => ASK_AGAIN,
            };
            match noted {
                Ok(()) => life.broken().await,
                Err(refusal) => {
                    tracing::debug!(reason = %refusal, "what the groups were started from is not known yet");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Finds out what runs, and makes of it what was promised. `known` is the epoch that was seen last.
    async fn take_up(&self, known: &mut Option<Epoch>) -> Result<(), ChangeError> {
        self.learn().await?;
        let epoch = self.twiddler.epoch();
        let goes_on = match known {
            Some(known) => *known == epoch,
            None => self.is_of_this_epoch(),
        };
        if !goes_on && !self.twiddler.persists() {
            let mut baseline = self.baseline();
            baseline.scales.clear();
            baseline.rejoining.clear();
        }
        // The proxy's own: nobody asks for it.
        let own = self.twiddler.daemon().own_authorization().cloned();
        let (own, record) = (Authorized::Checked(own), Record::new(Peer::Unknown));
        self.rejoin(own.clone(), &record).await?;
        self.finish(own.clone(), &record).await?;
        if !goes_on {
            self.scale_again(own, &record).await?;
        }
        *known = Some(epoch);
        Ok(())
    }

    /// Whether the daemon goes on since an earlier proxy has written down what it knew.
    fn is_of_this_epoch(&self) -> bool {
        let marker = self.baseline().marker.clone();
        self.twiddler.with_registry(|registry| {
            let is_it = |known: &str| marker.as_deref().is_none_or(|marker| marker == known);
            registry.marker().is_some_and(is_it)
        })
    }

    /// Lets the daemon say which groups are as the files are now, and keeps what those say.
    async fn learn(&self) -> Result<(), ChangeError> {
        self.forget_variables();
        self.twiddler.current().await?;
        self.remove_probes().await?;
        let files = self.files_as_read_at_start().await?;
        if self.knows(&files) {
            return Ok(());
        }
        let _pause = self.twiddler.pause_reloads().await;
        let reply = self.read_plain(&files).await?;
        self.note_confirmed(&files, &reply);
        Ok(())
    }

    /// Removes what a daemon has of questions that lay there when it started. None of it runs.
    async fn remove_probes(&self) -> Result<(), ChangeError> {
        let list = [("supervisor.getAllProcessInfo", vec![])];
        let infos = self.twiddler.call_all(&list).await?.pop();
        let infos = ProcessInfo::read_all(&infos.unwrap_or(Ok(Value::Nil))?);
        let groups = infos.into_iter().map(|info| info.group);
        let probes: BTreeSet<String> = groups.filter(|group| probe::is_probe(group)).collect();
        if probes.is_empty() {
            return Ok(());
        }
        tracing::warn!(groups = ?probes, "removing questions that supervisord read when it started");
        let remove = |name: String| ("supervisor.removeProcessGroup", vec![name.into()]);
        let calls: Vec<_> = probes.into_iter().map(remove).collect();
        self.twiddler.call_all(&calls).await.map(drop)
    }

    /// Finishes an update that was cut short: what it had stopped runs again.
    async fn finish(&self, own: Authorized, record: &Record) -> Result<(), ChangeError> {
        let restarts = self.baseline().restarts.clone();
        let mut groups: Vec<String> = restarts.into_iter().map(|one| one.group).collect();
        groups.dedup();
        let files = self.files();
        groups.retain(|group| files.group(group).is_some());
        if groups.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            groups = groups.join(", "),
            "finishing an update that was cut short"
        );
        self.resume(&groups, own, record).await
    }

    fn knows(&self, files: &Definitions) -> bool {
        let baseline = self.baseline();
        files.groups.iter().all(|group| {
            let base = baseline.groups.get(&group.name);
            base.is_some_and(|base| base.group == *group && base.environment == files.environment)
        })
    }

    /// Lets the daemon read the files as they are.
    async fn read_plain(&self, files: &Definitions) -> Result<Reply, ChangeError> {
        let results = self.twiddler.read_files(&[]).await?;
        let reloaded = results.into_iter().next().unwrap_or(Ok(Value::Nil))?;
        *self.last_read() = Some(files.clone());
        Ok(probe::Probe::new(None, None).interpret(&reloaded, None))
    }

    /// Keeps what the files say of groups that the daemon found to be so.
    fn note_confirmed(&self, files: &Definitions, reply: &Reply) {
        let mut baseline = self.baseline();
        let before = baseline.clone();
        for group in &files.groups {
            let name = &group.name;
            if !reply.added.contains(name) && !reply.changed.contains(name) {
                // The daemon's own group is as the files are; others of its processes may not be.
                let applied = baseline.applied.get(name).cloned();
                let applied = applied.filter(|_| self.holds_updated(name));
                baseline.made(files, name);
                let applied = applied.map(|applied| (name.clone(), applied));
                baseline.applied.extend(applied);
            }
        }
        let is_gone = |name: &String| {
            reply.added.contains(name) || {
                files.group(name).is_none() && !reply.removed.contains(name)
            }
        };
        baseline.groups.retain(|name, _| !is_gone(name));
        // Processes of an update may be there without a group of the daemon's own.
        baseline
            .applied
            .retain(|name, _| !is_gone(name) || self.holds_updated(name));
        let changed = *baseline != before;
        drop(baseline);
        if changed {
            self.keep();
        }
    }

    fn baseline(&self) -> MutexGuard<'_, Baseline> {
        lock(&self.baseline)
    }

    fn last_read(&self) -> MutexGuard<'_, Option<Definitions>> {
        lock(&self.last_read)
    }

    /// What is known, with what marks the epoch that it is about.
    fn marked(&self) -> Baseline {
        let mut baseline = self.baseline();
        baseline.marker = self
            .twiddler
            .with_registry(|registry| registry.marker().map(str::to_owned));
        baseline.clone()
    }

    /// Keeps what is known for the next proxy.
    fn keep(&self) {
        if let Err(error) = self.write(&self.marked()) {
            let dir = self.twiddler.include_dir().path().display();
            tracing::warn!(%error, %dir, "what the groups were started from is known until this proxy ends");
        }
    }

    /// Writes what is known, where something else was written last or somebody has removed the file.
    fn write(&self, baseline: &Baseline) -> io::Result<()> {
        let include = self.twiddler.include_dir();
        let mut written = lock(&self.written);
        if written.as_ref() != Some(baseline) || !Baseline::is_written(include) {
            *written = None;
            baseline.write(include)?;
            *written = Some(baseline.clone());
        }
        Ok(())
    }

    /// The daemon is about to read its files for somebody.
    pub async fn reading(&self) {
        self.twiddler.persist_again().await;
        *self.last_read() = Some(self.files());
    }

    /// The daemon has made a group from what it read last.
    pub fn made(&self, group: &str) {
        let read = self.last_read().clone();
        if let Some(files) = read {
            self.baseline().made(&files, group);
            self.keep();
        }
    }

    /// Takes groups out of a reply of `reloadConfig` that differ only because an update has put the
    /// files in force without making them anew.
    pub fn without_applied(&self, reloaded: &mut Value) {
        let files = self.last_read().clone().unwrap_or_default();
        let baseline = self.baseline().clone();
        let is_applied = |name: &str| {
            let applied = baseline.applied.get(name);
            let group = files.group(name);
            applied.zip(group).is_some_and(|(applied, group)| {
                applied.group == *group && applied.environment == files.environment
            })
        };
        let Value::Array(outer) = reloaded else {
            return;
        };
        let Some(Value::Array(lists)) = outer.first_mut() else {
            return;
        };
        // Those that the daemon lacks, and those that are another there.
        let in_force: [&dyn Fn(&str) -> bool; 2] = [
            &|name| is_applied(name) && self.holds_updated(name),
            &is_applied,
        ];
        for (list, is_in_force) in lists.iter_mut().zip(in_force) {
            if let Value::Array(names) = list {
                names.retain(|name| !name.as_str().is_some_and(is_in_force));
            }
        }
    }

    /// Whether an update has put processes of a group in force that live outside it.
    fn holds_updated(&self, group: &str) -> bool {
        self.twiddler.with_registry(|registry| {
            let mut members = registry.members_of(group);
            members.any(Member::is_in_files)
        })
    }

    /// Reads a program's options as a client sent them.
    fn parse(&self, group: &str, program: &str, options: &Value) -> Result<Program, Fault> {
        let name = Name::parse_group(group).map_err(|error| fault(INCORRECT_PARAMETERS, error))?;
        let main_file = self.twiddler.conf_file().display().to_string();
        let program = Program::parse(&name, program, options, &main_file);
        program.map_err(|error| fault(INCORRECT_PARAMETERS, error.into_marked_text()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_group(group: &str) -> ChangeError {
    ChangeError::Fault(fault(BAD_NAME, format!("group: {group}")))
}

fn no_program(program: &str) -> ChangeError {
    ChangeError::Fault(fault(BAD_NAME, program))
}
