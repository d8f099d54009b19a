//! Leases: programs that are removed from supervisord when their client disconnects.
//!
//! A program names its lease in the option [`OPTION`], which supervisord ignores. The lease is therefore known
//! wherever the program is: after a restart of the proxy, and after a restart of the daemon with `--persist`.
//! The client holds the lease with a request that stays open. A lease without a holder expires after
//! [`GRACE`]. Its processes are then stopped and removed, by the same calls that clients make.

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
use crate::audit::log_text;
use crate::failure::{Failure, HttpResult};
use crate::fault::{BAD_NAME, NOT_RUNNING, STILL_RUNNING};
use crate::registry::{Member, Registry};
use crate::rpc::Rpc;
use crate::xmlrpc::{Fault, Value};

/// The option of a program that names its lease.
pub const OPTION: &str = "twiddler_lease";
/// The path of a lease, followed by its name. A client holds the lease by a GET.
pub const PATH: &str = LEASE_PATH;

/// How long a lease may be without a holder, for instance while the proxy restarts.
pub const GRACE: Duration = Duration::from_secs(20);
/// How often leases are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The pause before the processes of a lease are removed again, after this failed.
const RETRY: Duration = Duration::from_secs(60);
/// How often the stop and removal of one process is tried. A process that has exited and is about to be started
/// again cannot be stopped before the daemon has started it.
const ATTEMPTS: usize = 20;
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(300);
/// How often the proxy writes to a holder, to notice that it has disconnected.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The largest number of clients that hold leases at a time. Each occupies a connection without a time limit,
/// and other clients need connections too.
pub const MAX_HOLDERS: usize = 256;

/// All leases that have or had a holder, or that a program names.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Lease>>);

#[derive(Debug)]
struct Lease {
    holders: usize,
    /// Whether its processes are being stopped and removed.
    is_ending: bool,
    /// When it expires if it has no holder.
    expires: Instant,
    /// The credentials of the last holder, with which its programs are removed.
    authorization: Option<HeaderValue>,
}

/// A holder of a lease, until this value is dropped.
#[derive(Debug)]
struct Hold {
    leases: Arc<Leases>,
    name: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(lease) = self.leases.all().get_mut(&self.name) {
            lease.holders -= 1;
            lease.expires = Instant::now() + GRACE;
        }
    }
}

impl Leases {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a holder to a lease; none if there are too many holders.
    fn hold(self: &Arc<Self>, name: &str, authorization: Option<HeaderValue>) -> Option<Hold> {
        let mut all = self.all();
        let holders: usize = all.values().map(|lease| lease.holders).sum();
        if holders >= MAX_HOLDERS {
            return None;
        }
        let lease = all
            .entry(name.to_owned())
            .or_insert_with(Lease::without_holder);
        lease.holders += 1;
        lease.authorization = authorization;
        Some(Hold {
            leases: self.clone(),
            name: name.to_owned(),
        })
    }

    /// The response to a client that wants to hold a lease. The client holds it until it disconnects.
    ///
    /// # Errors
    /// When there are too many holders.
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

    /// The expired leases, with the credentials of their last holders. Each is returned once until
    /// [`Leases::finish`]. Leases that programs name (`program_leases`) and that are not known yet get
    /// [`GRACE`] from now on.
    fn take_expired(&self, program_leases: &[String]) -> Vec<(String, Option<HeaderValue>)> {
        let mut all = self.all();
        for name in program_leases {
            all.entry(name.clone())
                .or_insert_with(Lease::without_holder);
        }
        let now = Instant::now();
        all.iter_mut()
            .filter(|(_, lease)| lease.holders == 0 && !lease.is_ending && lease.expires <= now)
            .map(|(name, lease)| {
                lease.is_ending = true;
                (name.clone(), lease.authorization.clone())
            })
            .collect()
    }

    /// Forgets an expired lease if its processes are removed, or schedules another attempt.
    fn finish(&self, name: &str, is_removed: bool) {
        let mut all = self.all();
        match all.get_mut(name) {
            Some(lease) if lease.holders > 0 => lease.is_ending = false,
            Some(_) if is_removed => drop(all.remove(name)),
            Some(lease) => {
                lease.is_ending = false;
                lease.expires = Instant::now() + RETRY;
                // The daemon may have refused the credentials, for instance after the password changed.
                lease.authorization = None;
            }
            None => {}
        }
    }
}

impl Lease {
    fn without_holder() -> Self {
        Lease {
            holders: 0,
            is_ending: false,
            expires: Instant::now() + GRACE,
            authorization: None,
        }
    }
}

/// Removes the processes of expired leases. Never returns.
pub async fn watch(rpc: Arc<Rpc>, leases: Arc<Leases>) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        let program_leases = rpc.twiddler().with_registry(names_of_leases);
        for (name, authorization) in leases.take_expired(&program_leases) {
            // In tasks of their own, because a process may take long to stop.
            tokio::spawn(remove_expired(
                rpc.clone(),
                leases.clone(),
                name,
                authorization,
            ));
        }
    }
}

async fn remove_expired(
    rpc: Arc<Rpc>,
    leases: Arc<Leases>,
    name: String,
    authorization: Option<HeaderValue>,
) {
    let outcome = remove_processes(&rpc, &name, authorization).await;
    if let Err(reason) = &outcome {
        tracing::warn!(
            "cannot remove what the lease {} has left: {reason}",
            log_text(&name)
        );
    }
    leases.finish(&name, outcome.is_ok());
}

fn names_of_leases(registry: &Registry) -> Vec<String> {
    let names = registry.members().filter_map(lease_of);
    names.map(str::to_owned).collect()
}

/// The lease that a process's program names, or its section if the program is not known.
fn lease_of(member: &Member) -> Option<&str> {
    if let Some(program) = &member.program {
        return program.option(OPTION);
    }
    let lines = member.section.as_deref()?.lines();
    lines
        .filter_map(|line| line.split_once('='))
        .find_map(|(option, value)| (option == OPTION).then_some(value))
}

/// Stops and removes the processes of a lease, and the group with the lease's name if it is empty then.
async fn remove_processes(
    rpc: &Rpc,
    name: &str,
    authorization: Option<HeaderValue>,
) -> Result<(), Fault> {
    // Without a holder's credentials, the proxy's own are used, and never those of another caller.
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
    // A client that was allowed to add a program with a lease also wants its removal, even if `allow` denies
    // the calls for it.
    let unrestricted = rpc.unrestricted();
    for (group, process) in &members {
        let namespec = format!("{group}:{process}");
        let harmless = [BAD_NAME, NOT_RUNNING];
        let mut attempts = 1..ATTEMPTS;
        loop {
            let method = "supervisor.stopProcess";
            call(&unrestricted, method, &[&namespec], &harmless).await?;
            let method = "twiddler.removeProcessFromGroup";
            match call(&unrestricted, method, &[group, process], &[BAD_NAME]).await {
                Err(fault) if fault.code == STILL_RUNNING && attempts.next().is_some() => {
                    sleep(PAUSE).await;
                }
                removed => break removed?,
            }
        }
        tracing::info!("stopped and removed {namespec}: no client holds its lease any more");
    }
    let is_empty = |registry: &Registry| is_empty_group(registry, name);
    if rpc.twiddler().with_registry(is_empty) {
        // A client can hold a lease of any name. A group without programs of the lease may belong to another
        // client, so its removal is not exempt from `allow`.
        let had_programs = members.iter().any(|(group, _)| group == name);
        let rpc = if had_programs { &unrestricted } else { rpc };
        call(rpc, "twiddler.removeGroup", &[name], &[BAD_NAME]).await?;
    }
    Ok(())
}

/// The processes whose programs name the lease.
fn members(registry: &Registry, lease: &str) -> Vec<(String, String)> {
    registry
        .members()
        .filter(|member| lease_of(member) == Some(lease))
        .map(|member| (member.group.clone(), member.process.clone()))
        .collect()
}

/// Whether a client added a group of this name, and the group is empty.
fn is_empty_group(registry: &Registry, name: &str) -> bool {
    registry.added_groups().any(|group| group == name) && registry.members_of(name).next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_without_a_holder_expires_after_a_while() {
        let leases = Arc::new(Leases::default());
        let names = ["a".to_owned()];
        let expired = |leases: &Leases| leases.take_expired(&names).len();
        assert_eq!(expired(&leases), 0);
        tokio::time::advance(GRACE / 2).await;
        let first = leases.hold("a", None);
        let second = leases.hold("a", None);
        tokio::time::advance(GRACE * 3).await;
        assert_eq!(expired(&leases), 0);
        drop(first);
        tokio::time::advance(GRACE).await;
        assert_eq!(expired(&leases), 0);
        drop(second);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(expired(&leases), 0);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(expired(&leases), 1);
        leases.finish("a", false);
        assert_eq!(expired(&leases), 0);
        tokio::time::advance(RETRY).await;
        assert_eq!(expired(&leases), 1);
        leases.finish("a", true);
        assert!(leases.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_with_a_new_holder_is_not_forgotten() {
        let leases = Arc::new(Leases::default());
        drop(leases.hold("a", Some(HeaderValue::from_static("Basic eA=="))));
        tokio::time::advance(GRACE).await;
        assert_eq!(
            leases.take_expired(&[])[0].1.as_ref().unwrap(),
            "Basic eA=="
        );
        let again = leases.hold("a", None);
        leases.finish("a", true);
        assert_eq!(leases.all()["a"].holders, 1);
        drop(again);
        assert!(leases.take_expired(&[]).is_empty());
    }
}
