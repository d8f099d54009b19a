//! The sessions of `supervisorctl update`: which groups `reloadConfig` reported to which client, and which
//! of them the client has stopped and removed since.
//!
//! After `reloadConfig`, `supervisorctl update` stops, removes and adds each group that differs. These calls
//! look like those of a client that wants to stop and remove the whole group. They are told apart by the
//! session: supervisorctl calls `getVersion` before each command that a user types, but not between the steps
//! of an update. The module knows nothing of the daemon.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::audit::Peer;
use crate::failpoint;
use crate::xmlrpc::Value;

/// How long after its last step an update on one connection leaves alone what clients added, where only the
/// time tells its steps from calls that a user types.
const STEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long after its last step a session ends.
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest number of origins whose sessions are remembered.
const MAX_ORIGINS: usize = 64;

/// How long after its last step a session ends; shorter where a test says so.
pub(super) fn session_timeout() -> Duration {
    failpoint::wait_time(SESSION_TIMEOUT)
}

/// The peer and the credentials of a caller, for clients that use a new connection for each call.
pub(super) type CallOrigin = (Peer, Option<HeaderValue>);

/// The update session of a connection, if it has one.
#[derive(Debug, Default)]
pub struct ConnectionUpdate(Mutex<Option<Arc<UpdateSession>>>);

/// Which processes of a group a step has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopScope {
    /// Only the processes that changed.
    Changed,
    /// All processes that the files define.
    Configured,
}

/// One update of one client.
#[derive(Debug)]
pub(super) struct UpdateSession(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The groups that `reloadConfig` reported as changed or removed.
    groups: HashSet<String>,
    /// Groups of which a step has stopped only some processes.
    stopped: HashMap<String, StopScope>,
    last_step: Instant,
}

/// All update sessions, and the groups whose removal is deferred.
#[derive(Debug, Default)]
pub(super) struct UpdateSessions {
    by_origin: Mutex<HashMap<CallOrigin, Arc<UpdateSession>>>,
    /// The groups that the last `reloadConfig` of any client reported as changed.
    changed: Mutex<HashSet<String>>,
    /// Groups that a client stopped as a whole.
    stopped: Mutex<HashMap<String, StoppedGroup>>,
    deferred: Mutex<HashMap<String, Arc<DeferredRemoval>>>,
}

#[derive(Debug)]
struct StoppedGroup {
    /// The added processes that were running.
    running: BTreeSet<String>,
    at: Instant,
}

/// The removal of a group, which is only executed if no client adds the group again in time.
#[derive(Debug)]
pub(super) struct DeferredRemoval {
    /// The added processes that were running before the group was stopped.
    pub(super) running: BTreeSet<String>,
    /// The session that the removal is a step of, if it is known.
    pub(super) session: Option<Arc<UpdateSession>>,
}

impl ConnectionUpdate {
    /// The session of this connection, or else the session of this origin.
    pub(super) fn session(
        &self,
        sessions: &UpdateSessions,
        origin: &CallOrigin,
    ) -> Option<Arc<UpdateSession>> {
        lock(&self.0).clone().or_else(|| sessions.of(origin))
    }

    /// Whether a call about `group` follows so soon on the last step of this connection that no user typed
    /// it.
    pub(super) fn covers(&self, group: &str) -> bool {
        let session = lock(&self.0).clone();
        session.is_some_and(|session| session.covers(group, STEP_INTERVAL))
    }
}

impl UpdateSession {
    fn covers(&self, group: &str, timeout: Duration) -> bool {
        let state = lock(&self.0);
        state.groups.contains(group) && state.last_step.elapsed() < timeout
    }

    /// Whether a call about this group may be a step of this session.
    pub(super) fn may_continue(&self, group: &str) -> bool {
        self.covers(group, session_timeout())
    }

    /// Records that a step has stopped these processes of a group.
    pub(super) fn record_stop(&self, group: &str, scope: StopScope) {
        lock(&self.0).stopped.insert(group.to_owned(), scope);
        self.record_step();
    }

    /// Which processes of the group this session has stopped; none if it did not stop the group.
    pub(super) fn stop_scope(&self, group: &str) -> Option<StopScope> {
        lock(&self.0).stopped.get(group).copied()
    }

    /// Forgets the stop of a group, which was added again or removed for good.
    pub(super) fn forget_stop(&self, group: &str) {
        lock(&self.0).stopped.remove(group);
    }

    /// Records the time of a step.
    pub(super) fn record_step(&self) {
        lock(&self.0).last_step = Instant::now();
    }
}

impl UpdateSessions {
    /// Begins a session with the groups that `reloadConfig` reported to a client.
    pub(super) fn begin(&self, update: &ConnectionUpdate, origin: CallOrigin, reloaded: &Value) {
        let lists = reloaded.as_array().and_then(|outer| outer.first());
        let lists = lists.and_then(Value::as_array).unwrap_or_default();
        let names = |list: &Value| -> HashSet<String> {
            let names = list.as_array().unwrap_or_default().iter();
            let names = names.filter_map(Value::as_str);
            names.map(str::to_owned).collect()
        };
        *lock(&self.changed) = lists.get(1).map(names).unwrap_or_default();
        let session = Arc::new(UpdateSession(Mutex::new(State {
            groups: lists.iter().skip(1).flat_map(names).collect(),
            stopped: HashMap::new(),
            last_step: Instant::now(),
        })));
        *lock(&update.0) = Some(session.clone());
        if origin.0 == Peer::Unknown {
            return;
        }
        let mut by_origin = lock(&self.by_origin);
        by_origin.retain(|_, session| lock(&session.0).last_step.elapsed() < session_timeout());
        if by_origin.len() < MAX_ORIGINS || by_origin.contains_key(&origin) {
            by_origin.insert(origin, session);
        }
    }

    /// Ends the session of a client: its next calls are not steps of an update.
    pub(super) fn end(&self, update: &ConnectionUpdate, origin: &CallOrigin) {
        *lock(&update.0) = None;
        lock(&self.by_origin).remove(origin);
    }

    fn of(&self, origin: &CallOrigin) -> Option<Arc<UpdateSession>> {
        lock(&self.by_origin).get(origin).cloned()
    }

    /// Whether the last `reloadConfig` reported this group as changed.
    pub(super) fn has_changed(&self, group: &str) -> bool {
        lock(&self.changed).contains(group)
    }

    /// Records that a client stopped a whole group, in which these added processes were running.
    pub(super) fn record_group_stop(&self, group: &str, running: impl IntoIterator<Item = String>) {
        let mut stopped = lock(&self.stopped);
        stopped.retain(|_, group| group.at.elapsed() < session_timeout());
        let entry = stopped.entry(group.to_owned());
        let entry = entry.or_insert_with(|| StoppedGroup {
            running: BTreeSet::new(),
            at: Instant::now(),
        });
        entry.running.extend(running);
        entry.at = Instant::now();
    }

    /// Whether a client stopped a whole changed group recently, so that it may add the group again.
    pub(super) fn was_stopped(&self, group: &str) -> bool {
        let stopped = lock(&self.stopped);
        let entry = stopped.get(group);
        entry.is_some_and(|entry| entry.at.elapsed() < session_timeout()) && self.has_changed(group)
    }

    /// Defers the removal of a group.
    pub(super) fn defer_removal(
        &self,
        group: &str,
        session: Option<Arc<UpdateSession>>,
    ) -> Arc<DeferredRemoval> {
        let running = lock(&self.stopped).remove(group).map(|entry| entry.running);
        let deferred = Arc::new(DeferredRemoval {
            running: running.unwrap_or_default(),
            session,
        });
        lock(&self.deferred).insert(group.to_owned(), deferred.clone());
        deferred
    }

    /// The groups whose removal is deferred.
    pub(super) fn deferred_groups(&self) -> Vec<String> {
        lock(&self.deferred).keys().cloned().collect()
    }

    /// Whether the removal of the group is deferred by a session that stopped only changed processes.
    pub(super) fn is_deferred_live(&self, group: &str) -> bool {
        let deferred = lock(&self.deferred);
        deferred.get(group).is_some_and(|one| one.session.is_some())
    }

    /// Cancels the deferred removal of a group, and returns it.
    pub(super) fn cancel_removal(&self, group: &str) -> Option<Arc<DeferredRemoval>> {
        lock(&self.stopped).remove(group);
        lock(&self.deferred).remove(group)
    }

    /// Ends the deferral of this removal. Returns whether it was still deferred.
    pub(super) fn expire(&self, group: &str, deferred: &Arc<DeferredRemoval>) -> bool {
        let mut all = lock(&self.deferred);
        let is_same = all.get(group).is_some_and(|one| Arc::ptr_eq(one, deferred));
        is_same && all.remove(group).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reloaded(changed: &[&str], removed: &[&str]) -> Value {
        let names = |names: &[&str]| {
            let names = names.iter().map(|name| Value::from(*name));
            Value::Array(names.collect())
        };
        let lists = [names(&[]), names(changed), names(removed)];
        Value::Array(vec![Value::Array(lists.into())])
    }

    fn origin(uid: u32, credentials: Option<&'static str>) -> CallOrigin {
        let header = credentials.map(HeaderValue::from_static);
        (Peer::Account(uid), header)
    }

    #[test]
    fn a_session_is_found_by_its_connection_or_else_by_peer_and_credentials() {
        let sessions = UpdateSessions::default();
        let (one, other) = (ConnectionUpdate::default(), ConnectionUpdate::default());
        sessions.begin(&one, origin(1, Some("a")), &reloaded(&["web"], &["old"]));
        let has_session = |update: &ConnectionUpdate, origin: &CallOrigin, group| {
            let session = update.session(&sessions, origin);
            session.is_some_and(|session| session.may_continue(group))
        };
        for group in ["web", "old"] {
            assert!(has_session(&one, &origin(2, None), group), "by connection");
            let same = origin(1, Some("a"));
            assert!(has_session(&other, &same, group), "by origin");
        }
        assert!(!has_session(&one, &origin(1, Some("a")), "lone"));
        for origin in [origin(1, None), origin(1, Some("b")), origin(2, Some("a"))] {
            assert!(!has_session(&other, &origin, "web"), "{origin:?}");
        }
        // Another client of the same origin calls `getVersion`.
        sessions.end(&other, &origin(1, Some("a")));
        assert!(!has_session(&other, &origin(1, Some("a")), "web"));
        assert!(has_session(&one, &origin(1, Some("a")), "web"));
        sessions.end(&one, &origin(1, Some("a")));
        assert!(!has_session(&one, &origin(1, Some("a")), "web"));
        let unknown = (Peer::Unknown, None);
        sessions.begin(&one, unknown.clone(), &reloaded(&["web"], &[]));
        assert!(!has_session(&other, &unknown, "web"));
    }

    #[test]
    fn the_removal_of_a_stopped_changed_group_is_deferred_once() {
        let sessions = UpdateSessions::default();
        let update = ConnectionUpdate::default();
        sessions.begin(&update, origin(1, None), &reloaded(&["web"], &[]));
        assert!(!sessions.was_stopped("web"));
        sessions.record_group_stop("web", ["a".to_owned()]);
        sessions.record_group_stop("web", ["b".to_owned()]);
        sessions.record_group_stop("lone", []);
        assert!(sessions.was_stopped("web") && !sessions.was_stopped("lone"));
        let first = sessions.defer_removal("web", None);
        assert_eq!(first.running, ["a", "b"].map(str::to_owned).into());
        assert!(!sessions.was_stopped("web") && sessions.deferred_groups() == ["web"]);
        let second = sessions.defer_removal("web", None);
        assert!(!sessions.expire("web", &first), "it was deferred again");
        assert!(sessions.expire("web", &second) && sessions.cancel_removal("web").is_none());
    }
}
