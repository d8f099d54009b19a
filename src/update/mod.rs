//! Live update: applies supervisord's files, and restarts only the processes that changed.
//!
//! The module is above `twiddler`, which does not know it. A baseline records the sections that the groups
//! were made from. A pure comparison finds the differences, and the daemon answers probes where texts alone
//! do not decide. The plan says which processes stop, start and restart. [`Updates`] executes it through
//! the same changes as any client.

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

/// The pause before the daemon is asked again, after it did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// The longest pause after a daemon answered with a fault, because its files are not valid or it requires
/// credentials. The pause doubles each time.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A client's request about files or programs.
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
        /// The number of processes that the program is to have.
        numprocs: i64,
    },
}

/// Applies the files, and changes programs.
pub struct Updates {
    twiddler: Arc<Twiddler>,
    baseline: Mutex<Baseline>,
    /// The baseline that was written last. It is compared before a write, because a write takes as long as
    /// many calls of the daemon.
    written: Mutex<Option<Baseline>>,
    /// The definitions in the files at the daemon's last reading that the proxy knows of.
    last_read: Mutex<Option<Definitions>>,
    /// The values of the variables that the files use.
    variables: variables::KnownVariables,
    /// Whether the steps of `supervisorctl update` restart only the processes that changed.
    live: bool,
    /// Locked during an update, so that updates run one after the other.
    turn: tokio::sync::Mutex<()>,
}

impl Updates {
    /// Reads the baseline file. With `live`, the steps of `supervisorctl update` restart only the processes
    /// that changed.
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

    /// Answers the request of an authorized caller.
    ///
    /// # Errors
    /// The fault or status for the caller.
    pub async fn answer(
        self: &Arc<Self>,
        request: Request,
        authorized: Authorized,
        record: &Record,
    ) -> Result<Value, ChangeError> {
        let (updates, record) = (self.clone(), record.clone());
        self.detached(authorized.presented(), async move {
            updates.carry_out(request, authorized, &record).await
        })
        .await
    }

    /// Runs `work` in a task of its own, which presents these credentials to the daemon. The work goes on if
    /// the caller disconnects: otherwise processes could stay stopped, and a probe could stay the daemon's
    /// last reading.
    async fn detached<T: Send + 'static>(
        self: &Arc<Self>,
        presented: Option<HeaderValue>,
        work: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
    ) -> Result<T, ChangeError> {
        let daemon = self.twiddler.daemon().clone();
        let work = tokio::spawn(async move { daemon.with_authorization(presented, work).await });
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
        // Requests that change nothing do not wait for an update.
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

    /// Brings the baseline up to date whenever the daemon may have restarted. Never returns.
    pub async fn watch(self: Arc<Self>) {
        let liveness = Liveness::default();
        let mut pause = RETRY;
        let mut known = None;
        loop {
            let address = self.twiddler.daemon().address();
            let result = match liveness.watch(address).await {
                Ok(()) => {
                    let _turn = self.turn.lock().await;
                    self.resume_epoch(&mut known).await
                }
                Err(error) => Err(ChangeError::Unreachable(error.to_string())),
            };
            pause = match &result {
                Err(ChangeError::Fault(_) | ChangeError::Status(_)) => LONGEST_RETRY.min(pause * 2),
                _ => RETRY,
            };
            match result {
                Ok(()) => liveness.broken().await,
                Err(error) => {
                    tracing::debug!(reason = %error, "what the groups were started from is not known yet");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Confirms the baseline, finishes an interrupted update, and scales again after a restart of the daemon.
    /// `known` is the epoch of the last successful run, and is set to the current one.
    async fn resume_epoch(&self, known: &mut Option<Epoch>) -> Result<(), ChangeError> {
        self.confirm_baseline().await?;
        let epoch = self.twiddler.epoch();
        let is_same_epoch = match known {
            Some(known) => *known == epoch,
            None => self.is_of_this_epoch(),
        };
        if !is_same_epoch && !self.twiddler.persists() {
            let mut baseline = self.baseline();
            baseline.scales.clear();
            baseline.rejoining.clear();
        }
        // No client asks for these calls, so they have the proxy's own credentials.
        let own = self.twiddler.daemon().own_authorization().cloned();
        let (own, record) = (Authorized::Checked(own), Record::new(Peer::Unknown));
        self.rejoin(own.clone(), &record).await?;
        self.finish_interrupted(own.clone(), &record).await?;
        if !is_same_epoch {
            self.scale_again(own, &record).await?;
        }
        *known = Some(epoch);
        Ok(())
    }

    /// Whether the daemon is in the same epoch as when the baseline file was written.
    fn is_of_this_epoch(&self) -> bool {
        let marker = self.baseline().marker.clone();
        self.twiddler.with_registry(|registry| {
            let is_same = |known: &str| marker.as_deref().is_none_or(|marker| marker == known);
            registry.marker().is_some_and(is_same)
        })
    }

    /// Asks the daemon which groups are as the files define them, and records those definitions.
    async fn confirm_baseline(&self) -> Result<(), ChangeError> {
        self.forget_variables();
        self.twiddler.current().await?;
        self.remove_probes().await?;
        let files = self.files_as_read_at_start().await?;
        if self.matches_files(&files) {
            return Ok(());
        }
        let _pause = self.twiddler.pause_reloads().await;
        let reply = self.read_plain(&files).await?;
        self.note_confirmed(&files, &reply);
        Ok(())
    }

    /// Removes the groups of a probe that was in place when the daemon started. Their processes do not run.
    async fn remove_probes(&self) -> Result<(), ChangeError> {
        let list = [("supervisor.getAllProcessInfo", vec![])];
        let infos = self.twiddler.call_all(&list).await?.pop();
        let infos = ProcessInfo::read_all(&infos.unwrap_or(Ok(Value::Nil))?);
        let groups = infos.into_iter().map(|info| info.group);
        let probes: BTreeSet<String> = groups.filter(|group| probe::is_probe(group)).collect();
        if probes.is_empty() {
            return Ok(());
        }
        tracing::warn!(groups = ?probes, "removing the groups of a probe that supervisord read when it started");
        let remove = |name: String| ("supervisor.removeProcessGroup", vec![name.into()]);
        let calls: Vec<_> = probes.into_iter().map(remove).collect();
        self.twiddler.call_all(&calls).await.map(drop)
    }

    /// Finishes an interrupted update, so that the processes that it had stopped run again.
    async fn finish_interrupted(
        &self,
        own: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
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
            "finishing an interrupted update"
        );
        self.resume(&groups, own, record).await
    }

    /// Whether the baseline equals the files.
    fn matches_files(&self, files: &Definitions) -> bool {
        let baseline = self.baseline();
        files.groups.iter().all(|group| {
            let base = baseline.groups.get(&group.name);
            base.is_some_and(|base| base.group == *group && base.environment == files.environment)
        })
    }

    /// Lets the daemon read the files without a probe.
    async fn read_plain(&self, files: &Definitions) -> Result<Reply, ChangeError> {
        let results = self.twiddler.read_files(&[]).await?;
        let reloaded = results.into_iter().next().unwrap_or(Ok(Value::Nil))?;
        *self.last_read() = Some(files.clone());
        Ok(probe::Probe::new(None, None).interpret(&reloaded, None))
    }

    /// Records the definitions of all groups that `reply` does not list as different.
    fn note_confirmed(&self, files: &Definitions, reply: &Reply) {
        let mut baseline = self.baseline();
        let before = baseline.clone();
        for group in &files.groups {
            let name = &group.name;
            if !reply.added.contains(name) && !reply.changed.contains(name) {
                // The daemon's own group is as the files define it. Placed processes can differ.
                let applied = baseline.applied.get(name).cloned();
                let applied = applied.filter(|_| self.holds_updated(name));
                baseline.note_made(files, name);
                let applied = applied.map(|applied| (name.clone(), applied));
                baseline.applied.extend(applied);
            }
        }
        let is_absent = |name: &String| {
            reply.added.contains(name) || {
                files.group(name).is_none() && !reply.removed.contains(name)
            }
        };
        baseline.groups.retain(|name, _| !is_absent(name));
        // Processes that an update added can exist without a group of this name in the daemon.
        baseline
            .applied
            .retain(|name, _| !is_absent(name) || self.holds_updated(name));
        let changed = *baseline != before;
        drop(baseline);
        if changed {
            self.save();
        }
    }

    fn baseline(&self) -> MutexGuard<'_, Baseline> {
        lock(&self.baseline)
    }

    fn last_read(&self) -> MutexGuard<'_, Option<Definitions>> {
        lock(&self.last_read)
    }

    /// The baseline with the current epoch marker.
    fn marked(&self) -> Baseline {
        let mut baseline = self.baseline();
        baseline.marker = self
            .twiddler
            .with_registry(|registry| registry.marker().map(str::to_owned));
        baseline.clone()
    }

    /// Writes the baseline file, so that the next proxy can read it. A failure is logged.
    fn save(&self) {
        if let Err(error) = self.write(&self.marked()) {
            let dir = self.twiddler.include_dir().path().display();
            tracing::warn!(%error, %dir, "what the groups were started from is known until this proxy ends");
        }
    }

    /// Writes the baseline file, if the baseline has changed since the last write or the file is missing.
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

    /// Prepares a `reloadConfig` call of a client: rewrites the persist file, and records the definitions in
    /// the files.
    pub async fn before_reload(&self) {
        self.twiddler.rewrite_persist_file().await;
        *self.last_read() = Some(self.files());
    }

    /// Records that the daemon added a group from its last reading of the files.
    pub fn after_add(&self, group: &str) {
        let files = self.last_read().clone();
        if let Some(files) = files {
            self.baseline().note_made(&files, group);
            self.save();
        }
    }

    /// Removes groups from a reply of `reloadConfig` that differ only because an update has applied the
    /// files without removing and adding the daemon's group.
    pub fn omit_applied(&self, reloaded: &mut Value) {
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
        // One test for the list `added`, one for the list `changed`.
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

    /// Whether the group has placed processes that an update added.
    fn holds_updated(&self, group: &str) -> bool {
        self.twiddler.with_registry(|registry| {
            let mut members = registry.members_of(group);
            members.any(Member::is_in_files)
        })
    }

    /// Parses a program's options as a client sent them.
    ///
    /// # Errors
    /// A fault that says which option is not valid.
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
