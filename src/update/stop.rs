//! Processes that stop and leave: all at once, and many of one group of the daemon's by one call.

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

/// How often processes that stop are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long the stop of one process is waited for at most; the daemon kills it long before.
const STOP_LIMIT: Duration = Duration::from_secs(3600);
/// From so many on, the processes of a group that goes are stopped and taken out by one call for all:
/// to say how one of them is takes the daemon longer than to stop it.
const MANY: usize = 10;
/// So many groups at most, because each such call has a connection of its own while it waits.
const AT_ONCE: usize = 8;

/// The daemon's groups that go as a whole, and who leaves with each.
pub(super) type Whole = BTreeMap<String, Vec<Name>>;

impl Updates {
    /// Groups of which a plan leaves nobody, where they hold many.
    pub(super) fn whole(&self, plan: &Plan) -> Whole {
        let mut whole = Whole::new();
        let names: BTreeSet<&Name> = plan.leave.iter().chain(&plan.stop).collect();
        self.twiddler.with_registry(|registry| {
            for name @ (group, process) in names {
                let real = registry.real_group(group, process).to_owned();
                whole.entry(real).or_default().push(name.clone());
            }
            whole.retain(|real, names| {
                let members = registry.members_in(real).count();
                let goes = if plan.remove.contains(real) {
                    members == 0
                } else {
                    registry.owner(real).is_some() && members == names.len()
                };
                goes && names.len() >= MANY
            });
        });
        whole.into_iter().take(AT_ONCE).collect()
    }

    /// Stops processes, all at once, and waits for them. Those that ran.
    pub(super) async fn stop(
        &self,
        names: &[Name],
        whole: &Whole,
    ) -> Result<Vec<Name>, ChangeError> {
        let together: BTreeSet<&Name> = whole.values().flatten().collect();
        let (groups, alone): (Vec<&Name>, Vec<&Name>) =
            names.iter().partition(|name| together.contains(name));
        let alone: Vec<Name> = alone.into_iter().cloned().collect();
        let stops = |(_, of_group): &(&String, &Vec<Name>)| {
            groups.iter().any(|name| of_group.contains(name))
        };
        let groups = whole.iter().filter(stops);
        let groups = groups.map(|(real, names)| self.stop_group(real, names));
        let stopping = try_join(try_join_all(groups), self.stop_each(&alone));
        let (mut ran, alone) = stopping.await?;
        ran.push(alone);
        Ok(ran.concat())
    }

    /// Stops all of a group of the daemon's, where `names` are to go.
    async fn stop_group(&self, real: &str, names: &[Name]) -> Result<Vec<Name>, ChangeError> {
        let daemon = self.twiddler.daemon();
        let group = [real.into()];
        let stop = daemon.call_that_waits("supervisor.stopProcessGroup", &group);
        let entries = match stop.await {
            Ok(Some(entries)) => StatusEntry::read_all(&entries),
            Ok(None) => return self.stop_each(names).await,
            Err(CallError::Fault(told)) if told.code == BAD_NAME => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut ran = BTreeSet::new();
        for entry in entries {
            match entry.status {
                SUCCESS => drop(ran.insert(entry.name)),
                NOT_RUNNING | BAD_NAME => {}
                code => return Err(Fault::received(code, entry.description).into()),
            }
        }
        let (ran, others): (Vec<&Name>, Vec<&Name>) =
            names.iter().partition(|(_, process)| ran.contains(process));
        // The call passes over who stops already, and waits for none of those.
        let others = others.into_iter();
        let others = others.map(|(_, process)| format!("{real}:{process}"));
        self.wait_until_stopped(others.collect()).await?;
        Ok(ran.into_iter().cloned().collect())
    }

    async fn stop_each(&self, names: &[Name]) -> Result<Vec<Name>, ChangeError> {
        let real_names = self.real_names(names);
        let stop = |name: &String| {
            let params = vec![name.as_str().into(), Value::Bool(false)];
            ("supervisor.stopProcess", params)
        };
        let calls: Vec<_> = real_names.iter().map(stop).collect();
        let mut ran = Vec::new();
        for (name, told) in names.iter().zip(self.twiddler.call_all(&calls).await?) {
            match told {
                Ok(_) => ran.push(name.clone()),
                Err(told) if [NOT_RUNNING, BAD_NAME].contains(&told.code) => {}
                Err(told) => return Err(told.into()),
            }
        }
        self.wait_until_stopped(real_names).await?;
        Ok(ran)
    }

    /// Waits for processes that stop, by the daemon's names. Who is not there is not waited for.
    async fn wait_until_stopped(&self, mut left: Vec<String>) -> Result<(), ChangeError> {
        let deadline = tokio::time::Instant::now() + STOP_LIMIT;
        while !left.is_empty() && tokio::time::Instant::now() < deadline {
            let look = |name: &String| ("supervisor.getProcessInfo", vec![name.as_str().into()]);
            let calls: Vec<_> = left.iter().map(look).collect();
            let mut infos = self.twiddler.call_all(&calls).await?.into_iter();
            left.retain(|_| {
                let info = infos.next().and_then(Result::ok);
                let info = info.as_ref().and_then(ProcessInfo::read);
                info.is_some_and(|info| !info.state.is_stopped())
            });
            if !left.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Takes out who leaves in a plan. Where a whole group does not go, each goes for itself.
    pub(super) async fn leave(
        &self,
        plan: &Plan,
        whole: &Whole,
        authorized: &Authorized,
        record: &Record,
        outcome: &mut Outcome,
    ) -> Result<(), ChangeError> {
        let placed = whole.iter().filter(|(real, _)| !plan.remove.contains(real));
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
        let mut gone: BTreeSet<&Name> = BTreeSet::new();
        for (names, removed) in names.into_iter().zip(change(removals).await) {
            match removed.map_err(|error| (error.fault(), error)) {
                Ok(()) => gone.extend(names),
                Err((Some(_), _)) => {}
                Err((None, error)) => return Err(error),
            }
        }
        let left: Vec<&Name> = plan
            .leave
            .iter()
            .filter(|name| !gone.contains(name))
            .collect();
        let removal = |(group, process): &&Name| Change::RemoveProcess {
            group: group.clone(),
            process: process.clone(),
        };
        let removed = change(left.iter().map(removal).collect()).await;
        for (name, removed) in left.into_iter().zip(removed) {
            match removed.map_err(|error| (error.fault(), error)) {
                Ok(()) => {}
                // Somebody else was faster.
                Err((Some(fault), _)) if fault.code == BAD_NAME => {}
                Err((Some(fault), _)) => outcome.failed.push((name.clone(), fault.text)),
                Err((None, error)) => return Err(error),
            }
        }
        Ok(())
    }
}
