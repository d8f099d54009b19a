//! `supervisor.shutdown` and `supervisor.restart` where added processes live in real groups.
//!
//! When it ends, the daemon stops its groups one after another, each in a turn of its loop at least,
//! and the processes of one group together (`supervisor/supervisord.py`,
//! `ordered_stop_groups_phase_1`). Real groups would make that long, so they are stopped beforehand
//! together with the group that clients see, in the daemon's order, and are gone when it ends.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::bulk::{BulkCall, STOPPED_STATES, Target, state};
use super::{Answer, Caller, Rpc, Update};
use crate::failure::Failure;
use crate::fault::{SHUTDOWN_STATE, bare};
use crate::registry::{Member, Registry};
use crate::translate::{BulkAction, Ending};
use crate::twiddler::Epoch;
use crate::xmlrpc::Value;

/// How long to wait before the first look at what stops, and longer each time.
const FIRST_LOOK: Duration = Duration::from_millis(5);
/// How often to look at most.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long the daemon may take to kill what has not stopped in its `stopwaitsecs`. What still runs
/// then cannot be killed, and is left to the daemon.
const MARGIN: Duration = Duration::from_secs(5);

/// The end of the daemon that is under way, if any.
#[derive(Debug, Default)]
pub struct Endings {
    turn: Mutex<()>,
    hurry: watch::Sender<bool>,
}

impl Endings {
    /// Leaves what is not stopped yet to the daemon, which is told to end at once: the proxy ends.
    pub fn hurry(&self) {
        self.hurry.send_replace(true);
    }

    /// Done when the daemon has been told.
    pub async fn told(&self) {
        drop(self.turn.lock().await);
    }

    async fn hurried(&self) {
        // The sender lives as long as this does.
        let _ = self.hurry.subscribe().wait_for(|hurry| *hurry).await;
    }
}

impl Rpc {
    /// Ends the daemon, after what would take it long. Goes on when the caller has hung up, as the
    /// daemon does. Who comes second is told that it shuts down, as by the daemon.
    pub(super) async fn end(&self, caller: &Caller<'_>, ending: Ending) -> Answer {
        let (rpc, head) = (self.clone(), caller.head.clone());
        let work = tokio::spawn(async move {
            let caller = Caller {
                head: &head,
                update: &Update::default(),
            };
            let work = async {
                let Ok(_turn) = rpc.endings.turn.try_lock() else {
                    rpc.gate(&caller).await?;
                    return Err(bare(SHUTDOWN_STATE).into());
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
            return self.ask(caller, ending.method(), &[]).await;
        };
        let epoch = self.twiddler.epoch();
        let groups = match self.targets(caller, &everything).await {
            Ok(targets) => to_stop_first(targets),
            // The daemon ends already, and says so again.
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
        // The daemon ends in any case, and stops itself what is not stopped here.
        tokio::select! {
            stopped = self.stop_first(caller, groups) => if let Err(failure) = stopped {
                tracing::debug!(?failure, "left to supervisord what is to stop");
            },
            () = self.endings.hurried() => {}
        }
        if ending == Ending::Restart && self.has_started_again(epoch).await {
            return Ok(Value::Bool(true));
        }
        // Nothing comes in between: either all of it is done, or the daemon ends already.
        let real = self.twiddler.with_registry(real_groups);
        let remove = |name: String| ("supervisor.removeProcessGroup", vec![name.into()]);
        let mut calls: Vec<_> = real.into_iter().map(remove).collect();
        calls.push((ending.method(), Vec::new()));
        let result = self.multicall_as(caller, &calls).await?.pop();
        Ok(result.unwrap_or(Ok(Value::Nil))?)
    }

    /// Whether the daemon is in a new epoch: somebody else has restarted it, and once is enough.
    async fn has_started_again(&self, epoch: Epoch) -> bool {
        !self.twiddler.is_still(epoch)
            && self.twiddler.current().await.is_ok_and(|now| now != epoch)
    }

    /// Stops one group after another.
    async fn stop_first(
        &self,
        caller: &Caller<'_>,
        groups: Vec<Vec<Target>>,
    ) -> Result<(), Failure> {
        for group in groups {
            self.stop_together(caller, group).await?;
        }
        Ok(())
    }

    /// Stops the processes of one group, and waits until none runs any more.
    async fn stop_together(
        &self,
        caller: &Caller<'_>,
        mut running: Vec<Target>,
    ) -> Result<(), Failure> {
        let longest = running.iter().map(Target::stopwaitsecs).max();
        let limit = longest.unwrap_or_default() + MARGIN;
        let began = Instant::now();
        let stop = |target: &Target| ("supervisor.stopProcess", target.without_waiting());
        let calls: Vec<_> = running.iter().map(stop).collect();
        self.multicall_as(caller, &calls).await?;
        let mut pause = FIRST_LOOK;
        while !running.is_empty() && began.elapsed() < limit {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN);
            let calls: Vec<_> = running.iter().map(Target::question).collect();
            let mut infos = self.multicall_as(caller, &calls).await?.into_iter();
            running.retain(|_| match infos.next() {
                Some(Ok(info)) => !STOPPED_STATES.contains(&state(&info)),
                _ => false,
            });
        }
        Ok(())
    }
}

/// What runs, group by group in the order in which the daemon stops them: from the last one to the
/// last of those that have a running process in a real group. `targets` are in the order of starts.
fn to_stop_first(targets: Vec<Target>) -> Vec<Vec<Target>> {
    let mut groups: Vec<Vec<Target>> = Vec::new();
    // A proxy that stopped itself would not come to the end of this.
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

/// The names of all real groups, in order.
fn real_groups(registry: &Registry) -> Vec<String> {
    let placed = registry.members().filter(|member| member.is_placed());
    let mut names: Vec<String> = placed.map(|member: &Member| member.real.clone()).collect();
    names.sort();
    names.dedup();
    names
}
