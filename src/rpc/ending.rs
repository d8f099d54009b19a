//! `supervisor.shutdown` and `supervisor.restart` where added processes are in real groups.
//!
//! When the daemon ends, it stops its groups one after another, with at least one turn of its loop for each,
//! and the processes of one group together (`supervisor/supervisord.py`, `ordered_stop_groups_phase_1`).
//! Many real groups would make that slow. The proxy therefore stops each of them together with the group
//! that clients see, in the daemon's order, and removes them before the daemon ends.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::bulk::{BulkCall, STOPPED_STATES, Target, state};
use super::{Answer, Caller, ConnectionUpdate, Rpc};
use crate::failure::Failure;
use crate::fault::{SHUTDOWN_STATE, without_detail};
use crate::registry::{Member, Registry};
use crate::translate::{BulkAction, Ending};
use crate::twiddler::Epoch;
use crate::xmlrpc::Value;

/// The pause before stopping processes are queried for the first time. It doubles each time.
const FIRST_POLL: Duration = Duration::from_millis(5);
/// The longest pause between two queries.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the daemon may take to kill a process after its `stopwaitsecs`. A process that still runs then
/// cannot be killed, and the proxy stops waiting for it.
const MARGIN: Duration = Duration::from_secs(5);

/// The `shutdown` or `restart` call that is in progress, if any.
#[derive(Debug, Default)]
pub struct Endings {
    /// Locked during such a call.
    turn: Mutex<()>,
    hurry: watch::Sender<bool>,
}

impl Endings {
    /// Stops waiting for processes, because the proxy ends: the daemon is told to end at once, and stops the
    /// rest itself.
    pub fn hurry(&self) {
        self.hurry.send_replace(true);
    }

    /// Waits until the call in progress has told the daemon to end.
    pub async fn finished(&self) {
        drop(self.turn.lock().await);
    }

    async fn hurried(&self) {
        // The sender is a field of `self`, so it is not dropped during this wait.
        let _ = self.hurry.subscribe().wait_for(|hurry| *hurry).await;
    }
}

impl Rpc {
    /// Stops the groups with added processes, and then ends the daemon. It goes on if the caller disconnects,
    /// as in the daemon. A second call meanwhile gets the daemon's fault `SHUTDOWN_STATE`.
    pub(super) async fn end(&self, caller: &Caller<'_>, ending: Ending) -> Answer {
        let (rpc, head) = (self.clone(), caller.head.clone());
        let work = tokio::spawn(async move {
            let caller = Caller {
                head: &head,
                update: &ConnectionUpdate::default(),
            };
            let work = async {
                let Ok(_turn) = rpc.endings.turn.try_lock() else {
                    rpc.authorize(&caller).await?;
                    return Err(without_detail(SHUTDOWN_STATE).into());
                };
                rpc.stop_and_end(&caller, ending).await
            };
            rpc.daemon.on_behalf_of(&head, work).await
        });
        work.await.unwrap_or_else(|error| {
            let reason = format!("{} was cut short: {error}", ending.method());
            Err(Failure::Unreachable(reason))
        })
    }

    async fn stop_and_end(&self, caller: &Caller<'_>, ending: Ending) -> Answer {
        let Some(everything) = BulkCall::all(BulkAction::Stop, &[]) else {
            return self.query(caller, ending.method(), &[]).await;
        };
        let epoch = self.twiddler.epoch();
        let groups = match self.targets(caller, &everything).await {
            Ok(targets) => to_stop_first(targets),
            // The daemon is ending already. It answers the call below with the same fault.
            Err(Failure::Fault(_)) => Vec::new(),
            Err(failure) => return Err(failure),
        };
        if !groups.is_empty() {
            let record = caller.record();
            tracing::info!(
                peer = %record.peer(),
                user = record.user(),
                groups = groups.len(),
                "stopping groups with added processes before {}",
                ending.method()
            );
        }
        // If this fails, the daemon stops the processes itself when it ends.
        tokio::select! {
            result = self.stop_groups(caller, groups) => if let Err(failure) = result {
                tracing::debug!(?failure, "supervisord stops the remaining processes itself");
            },
            () = self.endings.hurried() => {}
        }
        if ending == Ending::Restart && self.has_started_again(epoch).await {
            return Ok(Value::Bool(true));
        }
        // In one multicall, no other call of the daemon comes in between.
        let real = self.twiddler.with_registry(real_groups);
        let remove = |name: String| ("supervisor.removeProcessGroup", vec![name.into()]);
        let mut calls: Vec<_> = real.into_iter().map(remove).collect();
        calls.push((ending.method(), Vec::new()));
        let result = self.multicall_as(caller, &calls).await?.pop();
        Ok(result.unwrap_or(Ok(Value::Nil))?)
    }

    /// Whether the daemon is in a new epoch because another client has restarted it. It must not be restarted
    /// a second time.
    async fn has_started_again(&self, epoch: Epoch) -> bool {
        !self.twiddler.is_current_epoch(epoch)
            && self.twiddler.current().await.is_ok_and(|now| now != epoch)
    }

    /// Stops one group after another.
    async fn stop_groups(
        &self,
        caller: &Caller<'_>,
        groups: Vec<Vec<Target>>,
    ) -> Result<(), Failure> {
        for group in groups {
            self.stop_together(caller, group).await?;
        }
        Ok(())
    }

    /// Stops the processes of one group, and waits until none runs.
    async fn stop_together(
        &self,
        caller: &Caller<'_>,
        mut running: Vec<Target>,
    ) -> Result<(), Failure> {
        let longest = running.iter().map(Target::stopwaitsecs).max();
        let limit = longest.unwrap_or_default() + MARGIN;
        let start = Instant::now();
        let stop = |target: &Target| ("supervisor.stopProcess", target.without_waiting());
        let calls: Vec<_> = running.iter().map(stop).collect();
        self.multicall_as(caller, &calls).await?;
        let mut pause = FIRST_POLL;
        while !running.is_empty() && start.elapsed() < limit {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_INTERVAL);
            let calls: Vec<_> = running.iter().map(Target::query).collect();
            let mut infos = self.multicall_as(caller, &calls).await?.into_iter();
            running.retain(|_| match infos.next() {
                Some(Ok(info)) => !STOPPED_STATES.contains(&state(&info)),
                _ => false,
            });
        }
        Ok(())
    }
}

/// The running processes by group, in the order in which the daemon stops them: from the last group to the
/// first one that has a running process in a real group. `targets` are in the order of starts.
fn to_stop_first(targets: Vec<Target>) -> Vec<Vec<Target>> {
    let mut groups: Vec<Vec<Target>> = Vec::new();
    // A proxy that stopped itself could not finish the call.
    let targets = targets.into_iter().rev();
    for target in targets.filter(|target| target.is_up() && !target.is_this_proxy()) {
        match groups.last_mut() {
            Some(group) if group[0].group() == target.group() => group.push(target),
            _ => groups.push(vec![target]),
        }
    }
    let is_placed = |group: &Vec<Target>| group.iter().any(Target::is_placed);
    let count = groups
        .iter()
        .rposition(is_placed)
        .map_or(0, |last| last + 1);
    groups.truncate(count);
    groups
}

/// The sorted names of all real groups.
fn real_groups(registry: &Registry) -> Vec<String> {
    let placed = registry.members().filter(|member| member.is_placed());
    let mut names: Vec<String> = placed.map(|member: &Member| member.real.clone()).collect();
    names.sort();
    names.dedup();
    names
}
