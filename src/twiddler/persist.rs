//! What outlives the daemon: one file that it reads when it starts, and that a person can read.

use std::collections::{BTreeMap, BTreeSet};

use super::change::not_read;
use super::persist_file::{self, KeptBefore, is_same_but_for_address, real_groups, render};
use super::plan::Question;
use super::registry::{Event, Registry};
use super::script::ADD;
use super::{Refusal, Twiddler, ask, plan, reconcile};
use crate::daemon::Reloaded;
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::fault::{CANT_REREAD, SHUTDOWN_STATE};
use crate::failpoint;
use crate::include_dir::{IncludeDir, Prepared};
use crate::program;
use crate::xmlrpc::Value;

impl Twiddler {
    /// Before a change: makes sure that what is to be kept after it can be written. What is to go is
    /// kept no longer from here on: a daemon that starts again once it has made the change must not
    /// bring it back. What does not go after all is kept again afterwards.
    pub(super) fn prepare_kept(&self, events: &[Event]) -> Result<Option<Kept>, Refusal> {
        if !self.persists {
            return Ok(None);
        }
        let configured = self.configured_groups();
        let (without, after) = self.with_registry(|registry| {
            let mut registry = registry.clone();
            let (going, coming): (Vec<&Event>, Vec<&Event>) =
                events.iter().partition(|event| event.takes_away());
            going
                .into_iter()
                .for_each(|event| registry.apply(event.clone()));
            let without = render(&registry, &configured, self.proxy_url());
            coming
                .into_iter()
                .for_each(|event| registry.apply(event.clone()));
            (without, render(&registry, &configured, self.proxy_url()))
        });
        let prepared = || {
            self.keep_text(&without, None)?;
            failpoint::hit("kept without");
            if after == without {
                return Ok(None);
            }
            let prepared = self.include.prepare(&after)?;
            let text = after;
            Ok(Some(Kept { text, prepared }))
        };
        prepared().map_err(|error| self.cannot_write(&error))
    }

    /// After a change: keeps what it came to.
    pub(super) fn keep(&self, kept: Option<Kept>) {
        if !self.persists {
            return;
        }
        let configured = self.configured_groups();
        let text = self.with_registry(|registry| render(registry, &configured, self.proxy_url()));
        if let Err(error) = self.keep_text(&text, kept) {
            tracing::error!(%error, dir = %self.include.path().display(), "what was changed will not outlive supervisord");
        }
    }

    /// Keeps `text`, which may be what was prepared.
    fn keep_text(&self, text: &str, kept: Option<Kept>) -> std::io::Result<()> {
        // What is not ours there is replaced.
        if self.include.kept().ok().flatten().as_deref() == Some(text) {
            return Ok(());
        }
        let prepared = match kept {
            Some(kept) if kept.text == text => kept.prepared,
            _ => self.include.prepare(text)?,
        };
        self.include.keep(prepared)
    }

    /// The daemon started again and read what was kept. What it has is made to be what was answered,
    /// and no more and no less than that: it may have read a file that a change had not reached yet,
    /// or that somebody has put there. All of it can be done twice, and is when it is cut short.
    pub(super) async fn take_up_new_life(&self) -> Result<(), Refusal> {
        let before = self.with_registry(Registry::clone);
        let groups = before.added_groups().map(str::to_owned);
        let mut questions = vec![Question::AllProcesses];
        questions.extend(groups.map(Question::Group));
        let answers = ask(self, questions).await?;
        let number = |group: &str| self.take_number(group);
        let mut now = reconcile::in_new_life(&before, &answers, self.persists, number);
        // What was removed, and a file has started again.
        let hidden = now.hidden();
        self.stop(hidden.filter_map(|(group, process, _)| answers.found(group, process)))
            .await?;
        let settled = match self.persists {
            true => self.put_right(&mut now).await,
            false => Ok(()),
        };
        if let Err(refusal) = &settled
            && !is_about_files(refusal)
        {
            return settled;
        }
        self.renew(now.snapshot());
        if self.persists {
            self.open_ends().clear();
        }
        match settled {
            Ok(()) => self.mark_if_possible().await,
            Err(refusal) => {
                tracing::error!(reason = %refusal, "supervisord lacks what it did not read when it started: it is added again before the next change");
                Ok(())
            }
        }
    }

    /// Puts right what could not be when the daemon's present life was taken up. Until then that is
    /// not marked.
    pub(super) async fn catch_up(&self) -> Result<(), Refusal> {
        let is_behind = |known: &Registry| known.marker().is_none() && !known.is_empty();
        if !self.persists || !self.with_registry(is_behind) {
            return Ok(());
        }
        let _settling = self.settling.lock().await;
        let mut now = self.with_registry(Registry::clone);
        self.put_right(&mut now).await?;
        self.mark().await
    }

    /// Makes the daemon have of ours what `now` says, and keeps that. A member that the daemon does
    /// not take any more is taken out of `now`.
    async fn put_right(&self, now: &mut Registry) -> Result<(), Refusal> {
        let configured = self.configured_groups();
        self.remove_strays(self.names_kept(), &real_groups(now))
            .await?;
        // Each time without one member.
        for _ in 0..=now.members().count() {
            self.keep_text(&render(now, &configured, self.proxy_url()), None)
                .map_err(|error| self.cannot_write(&error))?;
            match self.read_what_is_kept(now).await {
                Err(Refusal::Fault(told)) if told.code == CANT_REREAD => {
                    let event =
                        persist_file::refused_member(now, &told.text).ok_or(told.clone())?;
                    tracing::error!(
                        fault = told.text,
                        ?event,
                        "it cannot be added again, and is forgotten"
                    );
                    self.note(vec![event.clone()]);
                    now.apply(event);
                }
                other => return other,
            }
        }
        Err(not_read(self).await.into())
    }

    /// Lets the daemon read what is kept, and adds what it has not or has otherwise.
    async fn read_what_is_kept(&self, now: &Registry) -> Result<(), Refusal> {
        // Not while a generated file is there.
        let _turn = self.staging.lock().await;
        let reloaded = self.call("supervisor.reloadConfig", &[]).await?;
        let reloaded = Reloaded::read(&reloaded);
        let ours = real_groups(now);
        let ours = || ours.iter().map(String::as_str);
        // Real groups bear a number that no other program has had.
        let changed: BTreeSet<&str> = ours()
            .filter(|name| reloaded.changed.contains(*name) && now.added_group(name).is_some())
            .collect();
        let lacking: Vec<&str> = ours()
            .filter(|name| reloaded.added.contains(*name) || changed.contains(name))
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        tracing::warn!(groups = ?lacking, "adding what supervisord did not read when it started");
        self.stop_and_remove(&changed).await?;
        let calls: Vec<_> = lacking
            .iter()
            .map(|name| (ADD, vec![Value::from(*name)]))
            .collect();
        for (group, added) in lacking.into_iter().zip(self.multicall(&calls).await?) {
            if let Err(told) = added {
                tracing::error!(group, fault = told.text, "it cannot be added again");
            }
        }
        Ok(())
    }

    /// Groups that the daemon may have read from what was kept, now or when this proxy started.
    fn names_kept(&self) -> BTreeSet<String> {
        let now = self.include.kept().ok().flatten();
        let texts = now.iter().chain(&self.kept_before);
        texts
            .flat_map(|text| KeptBefore::read(text).groups.into_keys())
            .collect()
    }

    /// Gives the daemon back groups of ours that a refused change has removed. Their processes were
    /// stopped, and stay so. Hands over what is gone: what cannot be made, because only the daemon
    /// knew it, and what was hidden there.
    pub(super) async fn add_back(&self, reals: &[&str]) -> Result<Vec<Event>, Refusal> {
        let configured = self.configured_groups();
        let (texts, gone) = self.with_registry(|registry| {
            let mut texts = BTreeMap::new();
            let mut gone = Vec::new();
            for real in reals {
                texts.extend(
                    persist_file::stopped_group(registry, &configured, real, self.proxy_url())
                        .map(|text| (*real, text)),
                );
                gone.extend(persist_file::gone_with(registry, real));
            }
            (texts, gone)
        });
        if !texts.is_empty() {
            let names: Vec<&str> = texts.keys().copied().collect();
            let text: String = texts.into_values().collect();
            self.add_read(&text, &names).await?;
        }
        Ok(gone)
    }

    /// Marks this life of the daemon. While the user's files are not valid it cannot be marked, and
    /// is taken for a new one the next time.
    pub(super) async fn mark_if_possible(&self) -> Result<(), Refusal> {
        match self.mark().await {
            Err(Refusal::Fault(told)) if told.code != SHUTDOWN_STATE => {
                tracing::warn!(
                    fault = told.text,
                    "supervisord's present life cannot be marked yet"
                );
                Ok(())
            }
            marked => marked,
        }
    }

    /// Marks this life of the daemon.
    pub(super) async fn mark(&self) -> Result<(), Refusal> {
        let marker = self.marker_name();
        self.add_read(
            &program::render_group(&marker, plan::DEFAULT_PRIORITY, &[]),
            &[&marker],
        )
        .await?;
        self.note(vec![Event::Marker(marker)]);
        Ok(())
    }
}

/// Puts aside what is kept where nothing is to be kept any more, and says so.
///
/// # Errors
/// When the include directory does not allow it.
pub(super) fn set_aside(include: &IncludeDir, kept: Option<&str>) -> std::io::Result<()> {
    if let Some(path) = include.set_aside()? {
        let programs = programs_in(kept.unwrap_or_default());
        tracing::warn!(
            programs,
            "persist is off: supervisord starts no longer what was kept, which is now {}",
            path.display()
        );
    }
    Ok(())
}

/// How many programs a kept text has.
pub(super) fn programs_in(kept: &str) -> usize {
    KeptBefore::read(kept).programs()
}

/// Keeps again what was put aside while nothing was to be kept, if it is what is known now to the
/// letter but for the address of the proxy. Otherwise something has changed since: it stays aside,
/// because what clients were told is gone must not come back.
pub(super) fn take_up_aside(
    include: &IncludeDir,
    registry: &Registry,
    configured: &[ConfiguredGroup],
) {
    let Some(text) = include.read_aside() else {
        return;
    };
    let (programs, path) = (programs_in(&text), include.aside());
    let path = path.display();
    let now = render(registry, configured, None);
    if is_same_but_for_address(&now, &text) && include.take_up_aside().is_ok() {
        tracing::info!(programs, "keeps again what was put aside in {path}");
    } else {
        tracing::warn!(
            programs,
            "{path} was put aside while persist was off, and something has changed since: it stays there. Remove it, or stop supervisord and twiddler, rename it to the persist file, and start both"
        );
    }
}

/// Whether the user's files or the disk are what is in the way.
fn is_about_files(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Fault(told) if told.code != SHUTDOWN_STATE)
}

/// What is to be kept after a change.
pub(super) struct Kept {
    text: String,
    prepared: Prepared,
}
