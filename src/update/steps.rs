//! The steps of `supervisorctl update` and of other clients that stop, remove and add groups after
//! `reloadConfig`.
//!
//! A live update places processes in groups of their own. If a client stops, removes and adds the whole
//! group, these processes are stopped, removed and added with it. With the option `live_update`, the steps
//! themselves restart only the processes that changed.

use std::sync::Arc;

use super::Updates;
use super::difference::{Origin, VisibleProcess};
use super::plan::{Name, Plan};
use super::reply::Outcome;
use super::stop::WholeGroups;
use crate::audit::Record;
use crate::fault::BAD_NAME;
use crate::registry::Registry;
use crate::twiddler::{Authorized, Change, ChangeError};
use crate::xmlrpc::Value;

impl Updates {
    /// Whether the steps of an update restart only the processes that changed.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The groups that exist and that an update would change.
    ///
    /// # Errors
    /// When the daemon does not answer, or the files are not valid.
    pub async fn pending(
        self: &Arc<Self>,
        authorized: Authorized,
    ) -> Result<Vec<String>, ChangeError> {
        let updates = self.clone();
        self.detached(authorized.presented(), async move {
            let survey = updates.survey(&[]).await?;
            let pending = survey.differences.into_iter();
            let pending = pending.filter(|one| one.is_pending() && !one.is_new && !one.is_removed);
            Ok(pending.map(|one| one.group).collect())
        })
        .await
    }

    /// Stops the processes that an update of this group has to stop, and returns their groups and names;
    /// none if the group can only be stopped as a whole.
    ///
    /// # Errors
    /// When the daemon does not answer, or the files are not valid.
    pub async fn stop_step(
        self: &Arc<Self>,
        group: &str,
        authorized: Authorized,
    ) -> Result<Option<Vec<(String, String)>>, ChangeError> {
        let (updates, group) = (self.clone(), group.to_owned());
        self.detached(authorized.presented(), async move {
            let _turn = updates.turn.lock().await;
            let survey = updates.survey(std::slice::from_ref(&group)).await?;
            let differences = &survey.differences;
            if let Some(reason) = differences
                .iter()
                .find_map(|one| one.unknown_reason.as_ref())
            {
                tracing::warn!(group, "restarting the group as a whole: {reason}");
            }
            let is_whole = |one: &super::difference::GroupDifference| {
                one.unknown_reason.is_some() || one.whole_reason.is_some() || one.is_removed
            };
            if differences.iter().any(is_whole) {
                return Ok(None);
            }
            let plan = Plan::new(
                differences,
                &survey.files,
                &survey.processes,
                &survey.added_groups,
            );
            let Ok(plan) = plan else { return Ok(None) };
            // A crash before the later steps must not leave these processes stopped.
            updates.write_intent(&survey, &plan)?;
            updates
                .stop(&plan.stop, &updates.whole_groups(&plan))
                .await?;
            Ok(Some(plan.stop))
        })
        .await
    }

    /// Adds groups to the list `changed` of a `reloadConfig` reply that clients added and that the files now
    /// define. `supervisorctl update` then replaces them by the group of the files.
    pub fn report_defined(&self, reloaded: &mut Value) {
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

    /// Whether clients have added this group, or processes in it, under names that the files define. The
    /// daemon must then not add the group by itself.
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

    /// The names of the processes that clients added to this group.
    pub fn added_processes(&self, group: &str) -> Vec<String> {
        self.twiddler.with_registry(|registry| {
            let members = registry.members_of(group);
            let members = members.filter(|member| !member.is_in_files());
            members.map(|member| member.process.clone()).collect()
        })
    }

    /// Whether a client added the daemon's own group of this name, or a process in it.
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
        self.detached(authorized.presented(), async move {
            let mut outcome = Outcome::default();
            updates.start(&names, &mut outcome).await?;
            for ((group, process), reason) in outcome.failed {
                tracing::warn!("cannot start {group}:{process} again: {reason}");
            }
            Ok(())
        })
        .await
    }

    /// Completes the removal of a group that a client removed and, unlike `supervisorctl update`, did not
    /// add again. Without `live`, the daemon has removed the group already, and only the processes that
    /// clients added remain.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn complete_removal(
        self: &Arc<Self>,
        group: &str,
        live: bool,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let (updates, group, record) = (self.clone(), group.to_owned(), record.clone());
        self.detached(authorized.presented(), async move {
            let _turn = updates.turn.lock().await;
            let (_, processes) = updates.list_processes().await?;
            let of_group = processes.iter().filter(|process| process.group == group);
            let is_added = |process: &&VisibleProcess| matches!(process.origin, Origin::Added(_));
            let is_own = |process: &VisibleProcess| process.real_group == group && matches!(process.origin, Origin::Base);
            if !live && of_group.clone().any(is_own) {
                // A client of the daemon itself has added the group.
                return Ok(());
            }
            let name = |process: &VisibleProcess| (process.group.clone(), process.name.clone());
            let running = of_group.clone().filter(|process| process.is_running()).map(name);
            let running: Vec<Name> = running.collect();
            updates.stop(&running, &WholeGroups::new()).await?;
            let losses = of_group.filter(is_added);
            let mut losses: Vec<String> = losses
                .map(|process| format!("{group}:{}", process.name))
                .collect();
            losses.sort();
            let lost = losses.join(", ");
            let removal = Change::RemoveGroup { name: group.clone() };
            for removed in updates.twiddler.change(vec![removal], authorized, &record).await {
                removed?;
            }
            updates.forget(&group);
            tracing::warn!(group, lost, "removed the group: a client stopped and removed it like an update, and it was not added again within a minute");
            Ok(())
        })
        .await
    }

    /// Removes a group from the baseline.
    fn forget(&self, group: &str) {
        let mut baseline = self.baseline();
        baseline.groups.remove(group);
        baseline.applied.remove(group);
        baseline.restarts.retain(|one| one.group != group);
        drop(baseline);
        self.save();
    }

    /// The processes of this group that an update placed in groups of their own.
    pub fn placed_processes(&self, group: &str) -> Vec<(String, String)> {
        let placed = |registry: &Registry| {
            let members = registry.members_of(group);
            let members = members.filter(|member| member.is_in_files());
            members
                .map(|member| (member.group.clone(), member.process.clone()))
                .collect()
        };
        self.twiddler.with_registry(placed)
    }

    /// Stops the running processes of [`Updates::placed_processes`].
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn stop_placed(
        &self,
        group: &str,
        authorized: Authorized,
    ) -> Result<(), ChangeError> {
        let plan = Plan {
            stop: self.placed_processes(group),
            ..Plan::default()
        };
        let work = async { self.stop(&plan.stop, &self.whole_groups(&plan)).await };
        let daemon = self.twiddler.daemon();
        daemon
            .with_authorization(authorized.presented(), work)
            .await
            .map(drop)
    }

    /// Removes the processes of [`Updates::placed_processes`], because the group itself is removed.
    ///
    /// # Errors
    /// When the daemon does not answer, or one of the processes runs.
    pub async fn remove_placed(
        &self,
        group: &str,
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let changes = self.placed_processes(group).into_iter();
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

    /// Applies the files to one group, as the last step of an update.
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
        self.detached(authorized.presented(), async move {
            let _turn = updates.turn.lock().await;
            updates.resume(&[group], authorized, &record).await
        })
        .await
    }

    /// Finishes an update that has already stopped its processes, and starts those that were running.
    ///
    /// # Errors
    /// When the daemon does not answer, or the files are not valid.
    pub(super) async fn resume(
        &self,
        groups: &[String],
        authorized: Authorized,
        record: &Record,
    ) -> Result<(), ChangeError> {
        let outcome = self.apply_files(groups, authorized, record).await?;
        tracing::info!(
            peer = %record.peer(),
            user = record.user(),
            "finished an update: {}", outcome.summary()
        );
        Ok(())
    }
}
