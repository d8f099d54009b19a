//! Whether what is known is about the daemon's present life, and what it has of ours.
//!
//! After a start of the proxy or of the daemon: what was left open is closed by asking, what nobody
//! remembers is taken up, and what is of no use is removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Twiddler;
use super::ask::ask;
use super::change::{Refusal, not_read};
use super::losses::Cause;
use super::persist_file::KeptBefore;
use super::plan::{self, Answers, Found, Question};
use super::reconcile;
use super::registry::{Event, Member, Registry};
use super::script::{ADD, REMOVE};
use crate::daemon::fault::{ALREADY_ADDED, BAD_NAME, STILL_RUNNING};
use crate::program;
use crate::xmlrpc::Value;

/// How often processes that are to go are looked at until they have stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long that takes at most. They are told to stop each time, and the next attempt goes on.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How often a daemon is asked that is away. Whoever calls asks anyway.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The same for one that does not take the proxy's credentials, until a caller lends his.
const ASK_WITHOUT_CREDENTIALS: Duration = Duration::from_secs(5);

impl Twiddler {
    pub(super) async fn settle(&self) -> Result<(), Refusal> {
        let is_first = !self.looked_around.load(Ordering::Relaxed);
        // The option may have been switched off after the daemon read what was kept, or on after it
        // read nothing.
        let outlived = match is_first {
            true => self.kept_before.is_some(),
            false => self.persists,
        };
        let lives_on = match self.with_registry(Registry::is_empty) {
            false => self.lives_on(outlived).await?,
            // Nothing of ours tells one life from the next, so a change cut short is trusted to.
            true => is_first || outlived || !self.was_cut(),
        };
        if !lives_on {
            self.lives.fetch_add(1, Ordering::Relaxed);
            if outlived {
                match is_first {
                    // What marks its life may also have been removed.
                    true => tracing::info!("taking up what supervisord has of what was kept"),
                    false => tracing::info!("supervisord was started again with what was kept"),
                }
                self.take_up_new_life().await?;
            } else {
                self.say_all_gone(match is_first {
                    true => Cause::Unknown,
                    false => Cause::Restarted,
                });
                // What an earlier proxy had begun may have been there for it to read; anything else
                // of that is not there any more.
                if !is_first || !self.open_ends().is_empty() {
                    self.remove_all().await?;
                }
                self.renew(Vec::new());
                self.open_ends().clear();
            }
        }
        self.cut.store(false, Ordering::Relaxed);
        let open_ends = self.open_ends().clone();
        if !open_ends.is_empty() {
            let left = self.close(open_ends).await?;
            *self.open_ends() = left;
            self.keep(None);
        }
        if is_first {
            self.adopt().await?;
            self.looked_around.store(true, Ordering::Relaxed);
            self.keep(None);
        }
        if is_first || !lives_on {
            self.warn_of_clashes();
        }
        Ok(())
    }

    /// Whether something was under way that the daemon has not answered.
    pub(super) fn was_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed) || !self.journal_mut().begun().is_empty()
    }

    /// Takes away what a daemon that started again has of ours: it has read a file that was there
    /// for its former life.
    async fn remove_all(&self) -> Result<(), Refusal> {
        self.remove_strays(self.known_names(), &BTreeSet::new())
            .await?;
        // Of the user's own, those that are empty by his file and were made to hold something.
        let begun = self.under_way();
        let answers = ask(self, vec![Question::AllProcesses]).await?;
        let is_filled = |name: &str| begun.iter().any(|event| is_in(event, name, &answers));
        let configured = self.configured_groups();
        let filled: BTreeSet<&str> = configured
            .iter()
            .filter(|group| group.empty && is_filled(&group.name))
            .map(|group| group.name.as_str())
            .collect();
        self.remove(&filled, &filled).await
    }

    /// Takes away of `ours`, and of all that bears a name that only we give, what is not one of
    /// `known`.
    pub(super) async fn remove_strays(
        &self,
        mut ours: BTreeSet<String>,
        known: &BTreeSet<String>,
    ) -> Result<(), Refusal> {
        ours.extend(self.known_names());
        let configured = self.configured_groups();
        let mut questions = vec![Question::AllProcesses];
        questions.extend(ours.iter().cloned().map(Question::Group));
        let answers = ask(self, questions).await?;
        let generated = answers.processes.keys().map(|(real, _)| real);
        let generated = generated.filter(|real| is_generated(real));
        let active = ours.iter().filter(|name| answers.is_active(name));
        let strays: BTreeSet<&str> = generated
            .chain(active)
            .filter(|name| !known.contains(*name))
            .filter(|name| configured.iter().all(|group| group.name != **name))
            .map(String::as_str)
            .collect();
        self.remove(&strays, &BTreeSet::new()).await
    }

    /// Removes groups from the daemon, and lets it add some of them as its files have them.
    async fn remove(&self, groups: &BTreeSet<&str>, anew: &BTreeSet<&str>) -> Result<(), Refusal> {
        if groups.is_empty() {
            return Ok(());
        }
        // Not while the file is there, or the daemon would read it again.
        let _turn = self.staging.lock().await;
        tracing::warn!(
            ?groups,
            "removing what supervisord read when it started, and is not to have"
        );
        self.call("supervisor.reloadConfig", &[]).await.ok();
        self.stop_and_remove(groups).await?;
        let name = |name: &&str| (ADD, vec![Value::from(*name)]);
        self.multicall(&anew.iter().map(name).collect::<Vec<_>>())
            .await?;
        Ok(())
    }

    /// Stops groups, all at once, and removes each as soon as it is stopped.
    ///
    /// # Errors
    /// When some have not stopped after [`STOP_LIMIT`], or the daemon does not answer.
    pub(super) async fn stop_and_remove(&self, groups: &BTreeSet<&str>) -> Result<(), Refusal> {
        let mut left: Vec<&str> = groups.iter().copied().collect();
        let deadline = tokio::time::Instant::now() + STOP_LIMIT;
        while !left.is_empty() {
            // Each time, because the daemon may start again what had exited.
            let answers = ask(self, vec![Question::AllProcesses]).await?;
            let processes = answers.processes.values();
            self.stop(processes.filter(|found| left.contains(&found.real.as_str())))
                .await?;
            let calls: Vec<_> = left
                .iter()
                .map(|name| (REMOVE, vec![Value::from(*name)]))
                .collect();
            let mut results = self.multicall(&calls).await?.into_iter();
            left.retain(
                |_| matches!(results.next(), Some(Err(told)) if told.code == STILL_RUNNING),
            );
            if !left.is_empty() {
                if tokio::time::Instant::now() >= deadline {
                    return Err(Refusal::Unreachable(format!(
                        "supervisord has not stopped {} in {STOP_LIMIT:?}: stop their processes",
                        left.join(", ")
                    )));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Tells processes to stop, and waits for none of them.
    pub(super) async fn stop(
        &self,
        processes: impl Iterator<Item = &Found>,
    ) -> Result<(), Refusal> {
        let calls: Vec<(&str, Vec<Value>)> = processes
            .filter(|found| !found.is_stopped())
            .map(|found| {
                let name = format!("{}:{}", found.real, found.process);
                (
                    "supervisor.stopProcess",
                    vec![name.into(), Value::Bool(false)],
                )
            })
            .collect();
        self.multicall(&calls).await?;
        Ok(())
    }

    /// The names of all groups that were added, are being added or help to add.
    pub(super) fn known_names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.with_registry(|registry| {
            let reals = registry.members().map(|member| member.real.clone());
            registry
                .added_groups()
                .map(str::to_owned)
                .chain(reals)
                .collect()
        });
        names.extend([self.marker_name(), self.trial_name()]);
        names.extend(
            self.under_way()
                .into_iter()
                .filter_map(|event| match event {
                    Event::Group { name, .. } => Some(name),
                    Event::Joined(member) => Some(member.real),
                    _ => None,
                }),
        );
        names
    }

    /// Steps that the daemon has been asked for, and has not answered.
    pub(super) fn under_way(&self) -> Vec<Event> {
        let mut steps = self.open_ends().clone();
        steps.extend_from_slice(self.journal_mut().begun());
        steps
    }

    /// Takes up real groups that the daemon runs and nobody remembers: their names say whose members
    /// they hold.
    pub(super) async fn adopt(&self) -> Result<(), Refusal> {
        let configured = self.configured_groups();
        let is_configured = |name: &str| configured.iter().any(|group| group.name == name);
        let mut kept = self
            .kept_before
            .as_deref()
            .map(KeptBefore::read)
            .unwrap_or_default();
        kept.groups.retain(|name, _| {
            !is_configured(name)
                && self.with_registry(|registry| registry.added_group(name).is_none())
        });
        let mut questions = vec![Question::AllProcesses];
        questions.extend(kept.groups.keys().cloned().map(Question::Group));
        let answers = ask(self, questions).await?;
        let strays: Vec<Event> = self.with_registry(|registry| {
            let mut strays = reconcile::strays(registry, is_configured, &kept, &answers);
            strays.extend(kept.strays(registry, &answers));
            strays
        });
        if !strays.is_empty() {
            let joined = |event: &&Event| matches!(event, Event::Joined(_));
            let processes = strays.iter().filter(joined).count();
            let processes = match processes {
                1 => "1 process".to_owned(),
                many => format!("{many} processes"),
            };
            tracing::warn!("recovered {processes} from supervisord that the journal does not have");
            self.note(strays);
        }
        let highest = answers
            .processes
            .keys()
            .filter_map(|(real, _)| plan::number_of_real_name(real));
        if let Some(highest) = highest.max() {
            self.reserve_numbers(highest + 1);
        }
        Ok(())
    }

    /// Whether anything of ours is still in the daemon. Real groups are known by their numbers,
    /// which no two lives share unless they are kept, so one of them is as good a sign as the marker.
    pub(super) async fn lives_on(&self, outlived: bool) -> Result<bool, Refusal> {
        let (marker, members) = self.with_registry(|registry| {
            let placed = registry
                .members()
                .filter(|member| member.is_placed())
                .cloned();
            (
                registry.marker().map(str::to_owned),
                placed.collect::<Vec<_>>(),
            )
        });
        let mut signs: Vec<String> = marker.into_iter().collect();
        if signs.is_empty() {
            // The marker's line of the journal was lost.
            let configured = self.configured_groups();
            signs = self.with_registry(|registry| {
                let added = registry.added_groups().map(str::to_owned);
                added
                    .filter(|name| configured.iter().all(|group| group.name != *name))
                    .collect()
            });
        }
        let reals = members.iter().map(|member| &member.real);
        let names: BTreeSet<&String> = signs.iter().chain(reals).collect();
        let questions = names.into_iter().cloned().map(Question::Group).collect();
        let answers = ask(self, questions).await?;
        let active = |name: &str| answers.groups.get(name).copied().unwrap_or(false);
        if outlived {
            let marked = self.with_registry(|registry| registry.marker().is_some_and(active));
            return Ok(marked);
        }
        if signs.iter().any(|name| active(name)) {
            return Ok(true);
        }
        let (alive, gone): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| active(&member.real));
        if alive.is_empty() {
            return Ok(false);
        }
        let gone: Vec<Event> = gone.iter().map(left).collect();
        self.say_gone(&gone, Cause::Unknown);
        self.note(gone);
        self.mark_if_possible().await?;
        Ok(true)
    }

    /// Asks the daemon which of these steps it made, and hands over those that are still open.
    pub(super) async fn close(&self, open_ends: Vec<Event>) -> Result<Vec<Event>, Refusal> {
        let questions = open_ends
            .iter()
            .flat_map(|event| self.questions_about(event))
            .collect();
        let answers = ask(self, questions).await?;
        // A marker goes with additions: without it, what bears their names is somebody else's.
        let unread = open_ends
            .iter()
            .any(|event| matches!(event, Event::Marker(name) if !answers.is_active(name)));
        let happened: Vec<Event> = open_ends
            .iter()
            .filter(|event| !(unread && matches!(event, Event::Group { .. } | Event::Joined(_))))
            .flat_map(|event| self.what_happened(event, &answers))
            .collect();
        if !happened.is_empty() {
            tracing::info!(
                steps = happened.len(),
                "supervisord made a change that was cut short here"
            );
        }
        let lost = self.lost_groups(&open_ends, &answers);
        if let Err(refusal) = self.restore(&lost).await {
            tracing::error!(reason = %refusal, groups = ?lost, "groups were lost in a change that was cut short, and cannot be added again yet");
            self.note(happened);
            return Ok(open_ends);
        }
        match self.busy.try_lock() {
            Ok(_idle) => self.end(self.life_number(), happened)?,
            // What the change under way has begun is not to end by this.
            Err(_) => self.note(happened),
        }
        Ok(Vec::new())
    }

    pub(super) fn questions_about(&self, event: &Event) -> Vec<Question> {
        let process = |real: &str, process: &str| Question::Process {
            real: real.to_owned(),
            process: process.to_owned(),
        };
        match event {
            Event::Marker(name) | Event::Group { name, .. } => vec![Question::Group(name.clone())],
            Event::GroupGone { name } => self.with_registry(|registry| {
                let placed = registry
                    .members_of(name)
                    .filter(|member| member.is_placed());
                let reals = placed.map(|member| Question::Group(member.real.clone()));
                std::iter::once(Question::Group(name.clone()))
                    .chain(reals)
                    .collect()
            }),
            Event::Joined(member) => vec![
                process(&member.real, &member.process),
                Question::Group(member.group.clone()),
            ],
            Event::Left {
                group,
                process: name,
            } => vec![
                process(&self.real_group(group, name), name),
                Question::Group(group.clone()),
            ],
            Event::Hidden { .. } | Event::Shown { .. } | Event::Next(_) => Vec::new(),
        }
    }

    /// What came of a step that was about to be made.
    pub(super) fn what_happened(&self, event: &Event, answers: &Answers) -> Vec<Event> {
        let there = |real: &str, process: &str| {
            answers
                .processes
                .contains_key(&(real.to_owned(), process.to_owned()))
        };
        let whole = match event {
            Event::Marker(name) | Event::Group { name, .. } => answers.is_active(name),
            Event::GroupGone { name } => {
                let left = self.left_of(name, answers);
                if answers.is_active(name) || self.has_placed(name, left.len()) {
                    return left;
                }
                true
            }
            Event::Joined(member) => there(&member.real, &member.process),
            Event::Left { group, process } => !there(&self.real_group(group, process), process),
            // Needs nothing of the daemon.
            Event::Hidden { .. } => true,
            Event::Shown { .. } | Event::Next(_) => false,
        };
        if whole {
            vec![event.clone()]
        } else {
            Vec::new()
        }
    }

    /// Placed members of `group` that are gone from the daemon.
    pub(super) fn left_of(&self, group: &str, answers: &Answers) -> Vec<Event> {
        self.with_registry(|registry| {
            let placed = registry
                .members_of(group)
                .filter(|member| member.is_placed());
            placed
                .filter(|member| !answers.is_active(&member.real))
                .map(left)
                .collect()
        })
    }

    /// Whether `group` has more placed members than so many.
    pub(super) fn has_placed(&self, group: &str, count: usize) -> bool {
        self.with_registry(|registry| {
            registry
                .members_of(group)
                .filter(|member| member.is_placed())
                .count()
                > count
        })
    }

    /// Groups that were taken away to be made anew, and were not: when the proxy died, the daemon
    /// had not read yet what they were to be.
    pub(super) fn lost_groups(&self, open_ends: &[Event], answers: &Answers) -> Vec<(String, i64)> {
        let touched = open_ends.iter().filter_map(|event| match event {
            Event::Joined(member) if !member.is_placed() => Some(&member.group),
            Event::Left { group, .. } => Some(group),
            _ => None,
        });
        let touched: BTreeSet<&String> =
            touched.filter(|group| !answers.is_active(group)).collect();
        self.with_registry(|registry| {
            let added = |group: &String| Some((group.clone(), registry.added_group(group)?));
            touched.into_iter().filter_map(added).collect()
        })
    }

    pub(super) async fn restore(&self, groups: &[(String, i64)]) -> Result<(), Refusal> {
        if groups.is_empty() {
            return Ok(());
        }
        let text: String = groups
            .iter()
            .map(|(name, priority)| program::render_group(name, *priority, &[]))
            .collect();
        let names: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).collect();
        tracing::warn!(groups = ?names, "adding groups again that were lost in a change that was cut short");
        self.add_read(&text, &names).await
    }

    /// Lets the daemon read `text` and add these groups from it.
    pub(super) async fn add_read(&self, text: &str, groups: &[&str]) -> Result<(), Refusal> {
        let staged = self.stage(text).await?;
        let mut calls = vec![("supervisor.reloadConfig", vec![])];
        calls.extend(groups.iter().map(|name| (ADD, vec![Value::from(*name)])));
        let mut results = self.multicall(&calls).await?.into_iter();
        drop(staged);
        results.next().unwrap_or(Ok(Value::Nil))?;
        for result in results {
            match result {
                Err(told) if told.code == BAD_NAME => return Err(not_read(self).await.into()),
                Err(told) if told.code != ALREADY_ADDED => return Err(told.into()),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn real_group(&self, group: &str, process: &str) -> String {
        self.with_registry(|registry| {
            registry
                .member(group, process)
                .map_or(group, |member| &member.real)
                .to_owned()
        })
    }
}

/// Whether a group bears a name that only we give.
pub(super) fn is_generated(real: &str) -> bool {
    plan::number_of_real_name(real).is_some() || real.starts_with("twiddler~")
}

/// Whether a process that was to join `group` under its own name is there.
pub(super) fn is_in(event: &Event, group: &str, answers: &Answers) -> bool {
    matches!(event, Event::Joined(member) if member.real == group
        && answers.processes.contains_key(&(group.to_owned(), member.process.clone())))
}

/// Finds out what the daemon has of ours, as soon as it answers, and again whenever it has broken
/// the connection by which its life is known.
pub(super) async fn keep_watch(twiddler: Arc<Twiddler>) {
    let mut is_away = false;
    loop {
        let pause = match twiddler.same_life().await {
            Ok(()) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!("supervisord answers");
                }
                let since = tokio::time::Instant::now();
                twiddler.watch_life().await;
                // Nothing is gained by asking a daemon all the time that breaks all connections.
                ASK_AGAIN.saturating_sub(since.elapsed())
            }
            Err(refusal) => {
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!(reason = %refusal, "waiting for supervisord");
                }
                match refusal {
                    Refusal::Status(_) => ASK_WITHOUT_CREDENTIALS,
                    _ => ASK_AGAIN,
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

pub(super) fn left(member: &Member) -> Event {
    Event::Left {
        group: member.group.clone(),
        process: member.process.clone(),
    }
}
