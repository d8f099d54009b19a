//! `supervisorctl update` and others that stop, remove and add groups after `reloadConfig`.
//!
//! What a live update has put in force lives in groups of its own, so that a group which is made anew
//! as a whole takes that along. With `live_update` the steps themselves restart only what changed.

use std::sync::Arc;

use super::Updates;
use super::difference::{Made, Seen};
use super::plan::{Name, Plan};
use super::reply::Outcome;
use super::stop::Whole;
use crate::audit::Record;
use crate::fault::BAD_NAME;
use crate::registry::Registry;
use crate::twiddler::{Authorized, Change, ChangeError};
use crate::xmlrpc::Value;

impl Updates {
    /// Whether the steps of an update restart only what changed.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Groups that are there, and that an update would change.
    ///
    /// # Errors
    /// When the daemon does not answer, or the files are not valid.
    pub async fn pending(
        self: &Arc<Self>,
        authorized: Authorized,
    ) -> Result<Vec<String>, ChangeError> {
        let updates = self.clone();
        self.on_its_own(authorized.presented(), async move {
            let survey = updates.survey(&[]).await?;
            let pending = survey.differences.into_iter();
            let pending = pending.filter(|one| one.is_pending() && !one.comes && !one.goes);
            Ok(pending.map(|one| one.group).collect())
        })
        .await
    }

    /// Stops what an update of this group has to stop, and says who that was; none where the group can
    /// only be stopped as a whole.
    ///
    /// # Errors
    /// When the daemon does not answer, or the files are not valid.
    pub async fn stop_step(
        self: &Arc<Self>,
        group: &str,
        authorized: Authorized,
    ) -> Result<Option<Vec<(String, String)>>, ChangeError> {
        let (updates, group) = (self.clone(), group.to_owned());
        self.on_its_own(authorized.presented(), async move {
            let _turn = updates.turn.lock().await;
            let survey = updates.survey(std::slice::from_ref(&group)).await?;
            let differences = &survey.differences;
            if let Some(reason) = differences.iter().find_map(|one| one.unknown.as_ref()) {
                tracing::warn!(group, "restarting the group as a whole: {reason}");
            }
            let is_whole = |one: &super::difference::GroupDifference| {
                one.unknown.is_some() || one.whole.is_some() || one.goes
            };
            if differences.iter().any(is_whole) {
                return Ok(None);
            }
            let plan = Plan::new(
                differences,
                &survey.files,
                &survey.seen,
                &survey.added_groups,
            );
            let Ok(plan) = plan else { return Ok(None) };
            // The stop comes before the change that the rest of the steps ask for.
            updates.intend(&survey, &plan)?;
            updates.stop(&plan.stop, &updates.whole(&plan)).await?;
            Ok(Some(plan.stop))
        })
        .await
    }

    /// Puts groups that were added, and that the files define now, among those that have changed: the
    /// files count, as soon as somebody puts them in force.
    pub fn with_defined(&self, reloaded: &mut Value) {
        if self
            .twiddler
            .with_registry(|registry| registry.added_groups().next().is_none())
        {
            return;
        }
        let defined = self.twiddler.configured_groups();
        let is_defined = |name: &str| defined.iter().any(|group| group.name == name);
        let added: Vec<String> = self.twiddler.with_registry(|registry| {
            let added = registry.added_groups().filter(|name| is_defined(name));
            added.map(str::to_owned).collect()
        });
        let lists = match reloaded {
            Value::Array(outer) => outer.first_mut(),
            _ => None,
        };
        if let Some(Value::Array(lists)) = lists
            && let Some(Value::Array(changed)) = lists.get_mut(1)
        {
            changed.extend(added.into_iter().map(Value::from));
        }
    }

    /// Whether what was added here stands where the files define something, so that the daemon must not
    /// add this group by itself.
    pub fn has_clashes(&self, group: &str) -> bool {
        let holds = |registry: &Registry| {
            registry.added_group(group).is_some() || registry.members_of(group).next().is_some()
        };
        if !self.twiddler.with_registry(holds) {
            return false;
        }
        let defined = self.twiddler.configured_groups();
        let Some(defined) = defined.iter().find(|one| one.name == group) else {
            return false;
        };
        self.twiddler.with_registry(|registry| {
            let mut members = registry.members_of(group);
            let is_added_group = registry.added_group(group).is_some();
            is_added_group || members.any(|member| defined.processes.contains(&member.process))
        })
    }

    /// Processes of this group that clients have added.
    pub fn added(&self, group: &str) -> Vec<String> {
        self.twiddler.with_registry(|registry| {
            let members = registry.members_of(group);
            let members = members.filter(|member| !member.is_in_files());
            members.map(|member| member.process.clone()).collect()
        })
    }

    /// Whether the daemon's own group of this name was added, or holds what was.
    pub fn holds_added(&self, group: &str) -> bool {
        self.twiddler.with_registry(|registry| {
            let mut members = registry.members_of(group);
            registry.added_group(group).is_some() || members.any(|member| !member.is_placed())
        })
    }

    /// Starts processes that ran before their group was stopped.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn start_again(
        self: &Arc<Self>,
        names: Vec<(String, String)>,
        authorized: Authorized,
    ) -> Result<(), ChangeError> {
        let updates = self.clone();
        self.on_its_own(authorized.presented(), async move {
            let mut outcome = Outcome::default();
            updates.start(&names, &mut outcome).await?;
            for ((group, process), reason) in outcome.failed {
                tracing::warn!("{group}:{process} does not run again: {reason}");
            }
            Ok(())
        })
        .await
    }

    /// Carries out the removal of a group that was to be added again, and was not. What is not `live`
    /// has been removed from the daemon already, but for what was added.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn give_up(
        self: &Arc<Self>,
        group: &str,
        live: bool,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let (updates, group, record) = (self.clone(), group.to_owned(), record.clone());
        self.on_its_own(authorized.presented(), async move {
            let _turn = updates.turn.lock().await;
            let (_, seen) = updates.look().await?;
            let of_group = seen.iter().filter(|seen| seen.group == group);
            let is_added = |seen: &&Seen| matches!(seen.made, Made::Added(_));
            let is_own = |seen: &Seen| seen.real == group && matches!(seen.made, Made::Base);
            if !live && of_group.clone().any(is_own) {
                // Somebody has added it on the daemon itself.
                return Ok(());
            }
            let name = |seen: &Seen| (seen.group.clone(), seen.process.clone());
            let running = of_group.clone().filter(|seen| seen.is_running()).map(name);
            let running: Vec<Name> = running.collect();
            updates.stop(&running, &Whole::new()).await?;
            let lost = of_group.filter(is_added);
            let mut lost: Vec<String> = lost
                .map(|seen| format!("{group}:{}", seen.process))
                .collect();
            lost.sort();
            let lost = lost.join(", ");
            let removal = Change::RemoveGroup { name: group.clone() };
            for removed in updates.twiddler.change(vec![removal], authorized, &record).await {
                removed?;
            }
            updates.forget(&group);
            tracing::warn!(group, lost, "removed the group: it was stopped and removed as by an update, and not added again within a minute");
            Ok(())
        })
        .await
    }

    /// Forgets a group that is gone.
    fn forget(&self, group: &str) {
        let mut baseline = self.baseline();
        baseline.groups.remove(group);
        baseline.applied.remove(group);
        baseline.restarts.retain(|one| one.group != group);
        drop(baseline);
        self.keep();
    }

    /// Processes of this group that came from the files after the group was made.
    pub fn placed(&self, group: &str) -> Vec<(String, String)> {
        let placed = |registry: &Registry| {
            let members = registry.members_of(group);
            let members = members.filter(|member| member.is_in_files());
            members
                .map(|member| (member.group.clone(), member.process.clone()))
                .collect()
        };
        self.twiddler.with_registry(placed)
    }

    /// Stops those of [`Updates::placed`] that run.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn stop_placed(
        &self,
        group: &str,
        authorized: Authorized,
    ) -> Result<(), ChangeError> {
        let plan = Plan {
            stop: self.placed(group),
            ..Plan::default()
        };
        let work = async { self.stop(&plan.stop, &self.whole(&plan)).await };
        let daemon = self.twiddler.daemon();
        daemon
            .presenting(authorized.presented(), work)
            .await
            .map(drop)
    }

    /// Takes those of [`Updates::placed`] out, because the group itself is removed.
    ///
    /// # Errors
    /// When the daemon does not answer, or one of them runs.
    pub async fn remove_placed(
        &self,
        group: &str,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let changes = self.placed(group).into_iter();
        let changes = changes.map(|(group, process)| Change::RemoveProcess { group, process });
        let removed = self
            .twiddler
            .change(changes.collect(), authorized, record)
            .await;
        for removed in removed {
            match removed {
                Err(error) if error.fault().is_some_and(|fault| fault.code == BAD_NAME) => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Puts the files of one group in force, as the last step of an update.
    ///
    /// # Errors
    /// When the daemon does not answer, or the files are not valid.
    pub async fn add_step(
        self: &Arc<Self>,
        group: &str,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let (updates, group, record) = (self.clone(), group.to_owned(), record.clone());
        self.on_its_own(authorized.presented(), async move {
            let _turn = updates.turn.lock().await;
            updates.resume(&[group], authorized, &record).await
        })
        .await
    }

    /// Finishes an update that has stopped its processes already: those that ran run again.
    pub(super) async fn resume(
        &self,
        groups: &[String],
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let outcome = self.put_in_force(groups, authorized, record).await?;
        tracing::info!(
            peer = %record.peer(),
            user = record.user(),
            "finished an update: {}", outcome.in_words()
        );
        Ok(())
    }
}
