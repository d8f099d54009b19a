//! How an update stops and removes processes: all at once, and many of one group in one call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};

use super::Updates;
use super::plan::{Name, Plan};
use super::reply::Outcome;
use crate::audit::Record;
use crate::daemon::{CallError, ProcessInfo, StatusEntry};
use crate::fault::{BAD_NAME, NOT_RUNNING, SUCCESS};
use crate::twiddler::{Authorized, Change, ChangeError};
use crate::xmlrpc::{Fault, Value};

/// How often the state of stopping processes is queried.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The longest wait for a process to stop. The daemon kills it after `stopwaitsecs`, which is far shorter.
const STOP_LIMIT: Duration = Duration::from_secs(3600);
/// The smallest number of processes for which a group is stopped and removed in one call: the daemon takes
/// longer to describe one process than to stop it.
const MANY: usize = 10;
/// The largest number of groups that are stopped this way: each such call occupies a connection while it
/// waits.
const AT_ONCE: usize = 8;

/// The daemon's groups that are stopped and removed as a whole, each with its processes.
pub(super) type WholeGroups = BTreeMap<String, Vec<Name>>;

impl Updates {
    /// The groups that a plan empties and that have at least [`MANY`] processes.
    pub(super) fn whole_groups(&self, plan: &Plan) -> WholeGroups {
        let mut whole_groups = WholeGroups::new();
        let names: BTreeSet<&Name> = plan.leave.iter().chain(&plan.stop).collect();
        self.twiddler.with_registry(|registry| {
            for name @ (group, process) in names {
                let real = registry.real_group(group, process).to_owned();
                whole_groups.entry(real).or_default().push(name.clone());
            }
            whole_groups.retain(|real, names| {
                let members = registry.members_in(real).count();
                let is_emptied = if plan.remove.contains(real) {
                    members == 0
                } else {
                    registry.owner(real).is_some() && members == names.len()
                };
                is_emptied && names.len() >= MANY
            });
        });
        whole_groups.into_iter().take(AT_ONCE).collect()
    }

    /// Stops processes, all at once, and waits for them. Returns those that were running.
    ///
    /// # Errors
    /// When the daemon does not answer, or does not stop a process.
    pub(super) async fn stop(
        &self,
        names: &[Name],
        whole_groups: &WholeGroups,
    ) -> Result<Vec<Name>, ChangeError> {
        let together: BTreeSet<&Name> = whole_groups.values().flatten().collect();
        let (groups, alone): (Vec<&Name>, Vec<&Name>) =
            names.iter().partition(|name| together.contains(name));
        let alone: Vec<Name> = alone.into_iter().cloned().collect();
        let stops = |(_, of_group): &(&String, &Vec<Name>)| {
            groups.iter().any(|name| of_group.contains(name))
        };
        let groups = whole_groups.iter().filter(stops);
        let groups = groups.map(|(real, names)| self.stop_group(real, names));
        let stopping = try_join(try_join_all(groups), self.stop_each(&alone));
        let (mut stopped, alone) = stopping.await?;
        stopped.push(alone);
        Ok(stopped.concat())
    }

    /// Stops all processes of a group of the daemon. Returns those of `names` that were running.
    async fn stop_group(&self, real: &str, names: &[Name]) -> Result<Vec<Name>, ChangeError> {
        let daemon = self.twiddler.daemon();
        let group = [real.into()];
        let stop = daemon.call_waiting("supervisor.stopProcessGroup", &group);
        let entries = match stop.await {
            Ok(Some(entries)) => StatusEntry::read_all(&entries),
            Ok(None) => return self.stop_each(names).await,
            Err(CallError::Fault(fault)) if fault.code == BAD_NAME => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut stopped = BTreeSet::new();
        for entry in entries {
            match entry.status {
                SUCCESS => drop(stopped.insert(entry.name)),
                NOT_RUNNING | BAD_NAME => {}
                code => return Err(Fault::from_reply(code, entry.description).into()),
            }
        }
        let (stopped, others): (Vec<&Name>, Vec<&Name>) = names
            .iter()
            .partition(|(_, process)| stopped.contains(process));
        // The call skips processes that were already stopping and does not wait for them.
        let others = others.into_iter();
        let others = others.map(|(_, process)| format!("{real}:{process}"));
        self.wait_until_stopped(others.collect()).await?;
        Ok(stopped.into_iter().cloned().collect())
    }

    async fn stop_each(&self, names: &[Name]) -> Result<Vec<Name>, ChangeError> {
        let real_names = self.real_names(names);
        let stop = |name: &String| {
            let params = vec![name.as_str().into(), Value::Bool(false)];
            ("supervisor.stopProcess", params)
        };
        let calls: Vec<_> = real_names.iter().map(stop).collect();
        let mut stopped = Vec::new();
        for (name, result) in names.iter().zip(self.twiddler.call_all(&calls).await?) {
            match result {
                Ok(_) => stopped.push(name.clone()),
                Err(fault) if [NOT_RUNNING, BAD_NAME].contains(&fault.code) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        self.wait_until_stopped(real_names).await?;
        Ok(stopped)
    }

    /// Waits until processes have stopped, by their names in the daemon. A process that does not exist
    /// counts as stopped.
    async fn wait_until_stopped(&self, mut stopping: Vec<String>) -> Result<(), ChangeError> {
        let deadline = tokio::time::Instant::now() + STOP_LIMIT;
        while !stopping.is_empty() && tokio::time::Instant::now() < deadline {
            let query = |name: &String| ("supervisor.getProcessInfo", vec![name.as_str().into()]);
            let calls: Vec<_> = stopping.iter().map(query).collect();
            let mut infos = self.twiddler.call_all(&calls).await?.into_iter();
            stopping.retain(|_| {
                let info = infos.next().and_then(Result::ok);
                let info = info.as_ref().and_then(ProcessInfo::read);
                info.is_some_and(|info| !info.state.is_stopped())
            });
            if !stopping.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Removes the processes that leave according to a plan. Where the removal of a whole group fails, its
    /// processes are removed one by one.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn remove_leaving(
        &self,
        plan: &Plan,
        whole_groups: &WholeGroups,
        authorized: &Authorized,
        record: &Record,
        outcome: &mut Outcome,
    ) -> Result<(), ChangeError> {
        let placed = whole_groups
            .iter()
            .filter(|(real, _)| !plan.remove.contains(real));
        let (removals, names): (Vec<_>, Vec<_>) = placed
            .map(|(real, names)| {
                let removal = Change::RemovePlaced {
                    group: names[0].0.clone(),
                    real: real.clone(),
                    processes: names.iter().map(|(_, process)| process.clone()).collect(),
                };
                (removal, names)
            })
            .unzip();
        let change = |changes| self.twiddler.change(changes, authorized.clone(), record);
        let mut removed_names: BTreeSet<&Name> = BTreeSet::new();
        for (names, removed) in names.into_iter().zip(change(removals).await) {
            match removed.map_err(|error| (error.fault(), error)) {
                Ok(()) => removed_names.extend(names),
                Err((Some(_), _)) => {}
                Err((None, error)) => return Err(error),
            }
        }
        let remaining = plan.leave.iter();
        let remaining = remaining.filter(|name| !removed_names.contains(name));
        let remaining: Vec<&Name> = remaining.collect();
        let removal = |(group, process): &&Name| Change::RemoveProcess {
            group: group.clone(),
            process: process.clone(),
        };
        let removed = change(remaining.iter().map(removal).collect()).await;
        for (name, removed) in remaining.into_iter().zip(removed) {
            match removed.map_err(|error| (error.fault(), error)) {
                Ok(()) => {}
                // Another client has removed it.
                Err((Some(fault), _)) if fault.code == BAD_NAME => {}
                Err((Some(fault), _)) => outcome.failed.push((name.clone(), fault.text)),
                Err((None, error)) => return Err(error),
            }
        }
        Ok(())
    }
}
