//! Leases: programs that leave supervisord when the client that wanted them is gone.
//!
//! A program names its lease in the option [`OPTION`], which supervisord ignores. So the lease is
//! known wherever the program is: after a restart of the proxy, and in a daemon for which the program
//! was kept. The client holds the lease by a request that stays open. A lease that nobody has held
//! for [`GRACE`] ends: its processes are stopped and removed, by the calls that clients make.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::access::LEASE_PATH;
use crate::audit::shown;
use crate::failure::{Failure, HttpResult};
use crate::fault::{BAD_NAME, NOT_RUNNING, STILL_RUNNING};
use crate::registry::{Member, Registry};
use crate::rpc::Rpc;
use crate::xmlrpc::{Fault, Value};

/// The option of a program that names its lease.
pub const OPTION: &str = "twiddler_lease";
/// Where a lease is held: a GET of this path with the lease's name after it.
pub const PATH: &str = LEASE_PATH;

/// How long a client may be gone, such as while the proxy starts again.
pub const GRACE: Duration = Duration::from_secs(20);
/// How often leases are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A lease that could not be ended is tried again after so long.
const RETRY: Duration = Duration::from_secs(60);
/// What has ended and is about to be started again can be stopped only once it was: it is tried so
/// often, with a pause.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(300);
/// A holder is written to so often: writing finds out that he is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// So many clients may hold leases at a time. Each has a connection for as long as it likes, of which
/// others need some too.
pub const MAX_HOLDERS: usize = 256;

/// All leases that somebody holds, has held, or should hold.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Lease>>);

#[derive(Debug)]
struct Lease {
    holders: usize,
    /// Its processes are being stopped and removed.
    is_ending: bool,
    /// When it ends, unless somebody holds it.
    ends: Instant,
    /// What the last holder presented, with which his programs are removed.
    authorization: Option<HeaderValue>,
}

/// A lease that is held until this is dropped.
#[derive(Debug)]
struct Hold {
    leases: Arc<Leases>,
    name: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(lease) = self.leases.all().get_mut(&self.name) {
            lease.holders -= 1;
            lease.ends = Instant::now() + GRACE;
        }
    }
}

impl Leases {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None where too many are held.
    fn hold(self: &Arc<Self>, name: &str, authorization: Option<HeaderValue>) -> Option<Hold> {
        let mut all = self.all();
        let holders: usize = all.values().map(|lease| lease.holders).sum();
        if holders >= MAX_HOLDERS {
            return None;
        }
        let lease = all.entry(name.to_owned()).or_insert_with(Lease::unheld);
        lease.holders += 1;
        lease.authorization = authorization;
        Some(Hold {
            leases: self.clone(),
            name: name.to_owned(),
        })
    }

    /// The answer to a client that wants to hold a lease: it holds it for as long as it reads.
    ///
    /// # Errors
    /// When too many are held.
    pub fn answer(self: &Arc<Self>, name: &str, authorization: Option<HeaderValue>) -> HttpResult {
        let Some(hold) = self.hold(name, authorization) else {
            let text = format!("{MAX_HOLDERS} leases are held already: try again later");
            return Err(Failure::Busy(text));
        };
        let beats = stream::unfold((hold, Duration::ZERO), async |(hold, pause)| {
            sleep(pause).await;
            Some((Bytes::from_static(b"\n"), (hold, HEARTBEAT)))
        });
        let mut response =
            http::Response::new(Body::from_stream(beats.map(Ok::<_, std::io::Error>)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// The leases that have ended, with what their last holders presented; each until it is settled.
    /// Each lease that programs name (`named`) and that nobody has held yet gets its [`GRACE`], from
    /// now on.
    fn ended(&self, named: &[String]) -> Vec<(String, Option<HeaderValue>)> {
        let mut all = self.all();
        for name in named {
            all.entry(name.clone()).or_insert_with(Lease::unheld);
        }
        let now = Instant::now();
        all.iter_mut()
            .filter(|(_, lease)| lease.holders == 0 && !lease.is_ending && lease.ends <= now)
            .map(|(name, lease)| {
                lease.is_ending = true;
                (name.clone(), lease.authorization.clone())
            })
            .collect()
    }

    /// Forgets a lease of which nothing is left, or tries it again later.
    fn settle(&self, name: &str, is_over: bool) {
        let mut all = self.all();
        match all.get_mut(name) {
            Some(lease) if lease.holders > 0 => lease.is_ending = false,
            Some(_) if is_over => drop(all.remove(name)),
            Some(lease) => {
                lease.is_ending = false;
                lease.ends = Instant::now() + RETRY;
                // It may be what is refused: the password has changed, say.
                lease.authorization = None;
            }
            None => {}
        }
    }
}

impl Lease {
    fn unheld() -> Self {
        Lease {
            holders: 0,
            is_ending: false,
            ends: Instant::now() + GRACE,
            authorization: None,
        }
    }
}

/// Ends leases for as long as the proxy runs.
pub async fn watch(rpc: Arc<Rpc>, leases: Arc<Leases>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let named = rpc.twiddler().with_registry(names_of_leases);
        for (name, authorization) in leases.ended(&named) {
            // Side by side: a process may take as long as it likes to stop.
            tokio::spawn(end_and_settle(
                rpc.clone(),
                leases.clone(),
                name,
                authorization,
            ));
        }
    }
}

async fn end_and_settle(
    rpc: Arc<Rpc>,
    leases: Arc<Leases>,
    name: String,
    authorization: Option<HeaderValue>,
) {
    let outcome = end(&rpc, &name, authorization).await;
    if let Err(reason) = &outcome {
        tracing::warn!(
            "cannot remove what the lease {} has left: {reason}",
            shown(&name)
        );
    }
    leases.settle(&name, outcome.is_ok());
}

fn names_of_leases(registry: &Registry) -> Vec<String> {
    let names = registry.members().filter_map(lease_of);
    names.map(str::to_owned).collect()
}

/// The lease that a process is on. Where only its section is known, that says so too.
fn lease_of(member: &Member) -> Option<&str> {
    if let Some(program) = &member.program {
        return program.option(OPTION);
    }
    let lines = member.section.as_deref()?.lines();
    lines
        .filter_map(|line| line.split_once('='))
        .find_map(|(option, value)| (option == OPTION).then_some(value))
}

/// Stops and removes the processes of a lease, and the group of its name where it is left empty.
async fn end(rpc: &Rpc, name: &str, authorization: Option<HeaderValue>) -> Result<(), Fault> {
    // Not what another caller brought: who has gone without a trace is removed by the proxy's own.
    let authorization = authorization.or_else(|| rpc.daemon().own_authorization().cloned());
    let call = async |rpc: &Rpc, method: &str, params: &[&str], harmless: &[i32]| {
        let params: Vec<Value> = params.iter().map(|text| (*text).into()).collect();
        match rpc.call_as(authorization.clone(), method, &params).await {
            Err(fault) if !harmless.contains(&fault.code) => Err(fault),
            _ => Ok(()),
        }
    };
    let members = rpc
        .twiddler()
        .with_registry(|registry| members(registry, name));
    // Who may add such a program may have it removed, whatever else callers may do.
    let unrestricted = rpc.unrestricted();
    for (group, process) in &members {
        let namespec = format!("{group}:{process}");
        let gone = [BAD_NAME, NOT_RUNNING];
        let mut attempts = 1..ATTEMPTS;
        loop {
            let method = "supervisor.stopProcess";
            call(&unrestricted, method, &[&namespec], &gone).await?;
            let method = "twiddler.removeProcessFromGroup";
            match call(&unrestricted, method, &[group, process], &[BAD_NAME]).await {
                Err(fault) if fault.code == STILL_RUNNING && attempts.next().is_some() => {
                    sleep(PAUSE).await;
                }
                removed => break removed?,
            }
        }
        tracing::info!("stopped and removed {namespec}: the client that held its lease is gone");
    }
    let is_left = |registry: &Registry| is_empty_group(registry, name);
    if rpc.twiddler().with_registry(is_left) {
        // Anybody may hold a lease of any name: a group that had none of its programs may be another's.
        let had_programs = members.iter().any(|(group, _)| group == name);
        let rpc = if had_programs { &unrestricted } else { rpc };
        call(rpc, "twiddler.removeGroup", &[name], &[BAD_NAME]).await?;
    }
    Ok(())
}

/// The processes that are on the lease.
fn members(registry: &Registry, lease: &str) -> Vec<(String, String)> {
    registry
        .members()
        .filter(|member| lease_of(member) == Some(lease))
        .map(|member| (member.group.clone(), member.process.clone()))
        .collect()
}

/// Whether a group of this name was added, and nothing is in it.
fn is_empty_group(registry: &Registry, name: &str) -> bool {
    registry.added_groups().any(|group| group == name) && registry.members_of(name).next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_when_nobody_has_held_it_for_a_while() {
        let leases = Arc::new(Leases::default());
        let named = ["a".to_owned()];
        let ended = |leases: &Leases| leases.ended(&named).len();
        assert_eq!(ended(&leases), 0);
        tokio::time::advance(GRACE / 2).await;
        let first = leases.hold("a", None);
        let second = leases.hold("a", None);
        tokio::time::advance(GRACE * 3).await;
        assert_eq!(ended(&leases), 0);
        drop(first);
        tokio::time::advance(GRACE).await;
        assert_eq!(ended(&leases), 0);
        drop(second);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(ended(&leases), 0);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(ended(&leases), 1);
        leases.settle("a", false);
        assert_eq!(ended(&leases), 0);
        tokio::time::advance(RETRY).await;
        assert_eq!(ended(&leases), 1);
        leases.settle("a", true);
        assert!(leases.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_held_again_stays() {
        let leases = Arc::new(Leases::default());
        drop(leases.hold("a", Some(HeaderValue::from_static("Basic eA=="))));
        tokio::time::advance(GRACE).await;
        assert_eq!(leases.ended(&[])[0].1.as_ref().unwrap(), "Basic eA==");
        let again = leases.hold("a", None);
        leases.settle("a", true);
        assert_eq!(leases.all()["a"].holders, 1);
        drop(again);
        assert!(leases.ended(&[]).is_empty());
    }
}
