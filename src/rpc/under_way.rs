//! Updates that are under way: what `reloadConfig` told whom, and what became of that since.
//!
//! `supervisorctl update` and others stop, remove and add again the groups that `reloadConfig` told
//! them of, by calls that look like those of somebody who means the whole group. supervisorctl asks for
//! the version before whatever somebody types, and not between the steps of an update. Knows nothing of
//! the daemon.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::audit::Peer;
use crate::failpoint;
use crate::xmlrpc::Value;

/// How long after its last step an update on one connection leaves alone what was added, where nothing
/// but time tells it from somebody who types.
const TYPED_LATER: Duration = Duration::from_secs(1);
/// How long after its last step an update may go on.
const GOES_ON: Duration = Duration::from_secs(60);
/// So many places are remembered that updates come from.
const MAX_PLACES: usize = 64;

/// How long after its last step an update may go on; shorter where a test says so.
pub(super) fn goes_on() -> Duration {
    failpoint::or_sooner(GOES_ON)
}

/// Where calls come from that need not come by one connection.
pub(super) type Place = (Peer, Option<HeaderValue>);

/// The update that was begun on a connection, if any.
#[derive(Debug, Default)]
pub struct Update(Mutex<Option<Arc<Steps>>>);

/// What was stopped of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Only what changed.
    Changed,
    /// What the files define.
    Own,
}

/// One update: what a caller was told, and what was done for it.
#[derive(Debug)]
pub(super) struct Steps(Mutex<State>);

#[derive(Debug)]
struct State {
    /// What has changed, and what is gone.
    groups: HashSet<String>,
    /// Groups that were stopped, but for what is to run on.
    taken: HashMap<String, How>,
    last: Instant,
}

/// All updates, and groups that are removed to be added again.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    places: Mutex<HashMap<Place, Arc<Steps>>>,
    /// What `reloadConfig` has called changed last, whoever asked.
    changed: Mutex<HashSet<String>>,
    /// What ran of the added members of a changed group when all of it was stopped.
    stopped: Mutex<HashMap<String, Stopped>>,
    put_by: Mutex<HashMap<String, Arc<PutBy>>>,
}

#[derive(Debug)]
struct Stopped {
    ran: BTreeSet<String>,
    at: Instant,
}

/// A group whose removal is not carried out as long as it may be added again.
#[derive(Debug)]
pub(super) struct PutBy {
    /// Members that ran.
    pub(super) ran: BTreeSet<String>,
    /// The update that it is a step of, where that is known.
    pub(super) steps: Option<Arc<Steps>>,
}

impl Update {
    /// The update of this connection, or else of this place.
    pub(super) fn steps(&self, under_way: &UnderWay, place: &Place) -> Option<Arc<Steps>> {
        lock(&self.0).clone().or_else(|| under_way.of(place))
    }

    /// Whether a call about `group` comes so soon on this connection that nobody has typed it.
    pub(super) fn covers(&self, group: &str) -> bool {
        let steps = lock(&self.0).clone();
        steps.is_some_and(|steps| steps.holds(group, TYPED_LATER))
    }
}

impl Steps {
    fn holds(&self, group: &str, goes_on: Duration) -> bool {
        let state = lock(&self.0);
        state.groups.contains(group) && state.last.elapsed() < goes_on
    }

    /// Whether a call about this group may be a step of it.
    pub(super) fn may_go_on(&self, group: &str) -> bool {
        self.holds(group, goes_on())
    }

    /// So much of this group was stopped.
    pub(super) fn take(&self, group: &str, how: How) {
        lock(&self.0).taken.insert(group.to_owned(), how);
        self.touch();
    }

    /// How much of this group was stopped for this update.
    pub(super) fn how(&self, group: &str) -> Option<How> {
        lock(&self.0).taken.get(group).copied()
    }

    /// All of this group is in force, or nothing of it is left.
    pub(super) fn give_back(&self, group: &str) {
        lock(&self.0).taken.remove(group);
    }

    /// A step was made.
    pub(super) fn touch(&self) {
        lock(&self.0).last = Instant::now();
    }
}

impl UnderWay {
    /// Takes note of what `reloadConfig` told a caller.
    pub(super) fn begin(&self, update: &Update, place: Place, reloaded: &Value) {
        let lists = reloaded.as_array().and_then(|outer| outer.first());
        let lists = lists.and_then(Value::as_array).unwrap_or_default();
        let names = |list: &Value| -> HashSet<String> {
            let names = list.as_array().unwrap_or_default().iter();
            let names = names.filter_map(Value::as_str);
            names.map(str::to_owned).collect()
        };
        *lock(&self.changed) = lists.get(1).map(names).unwrap_or_default();
        let steps = Arc::new(Steps(Mutex::new(State {
            groups: lists.iter().skip(1).flat_map(names).collect(),
            taken: HashMap::new(),
            last: Instant::now(),
        })));
        *lock(&update.0) = Some(steps.clone());
        if place.0 == Peer::Unknown {
            return;
        }
        let mut places = lock(&self.places);
        places.retain(|_, steps| lock(&steps.0).last.elapsed() < goes_on());
        if places.len() < MAX_PLACES || places.contains_key(&place) {
            places.insert(place, steps);
        }
    }

    /// What follows of this caller is not an update.
    pub(super) fn end(&self, update: &Update, place: &Place) {
        *lock(&update.0) = None;
        lock(&self.places).remove(place);
    }

    fn of(&self, place: &Place) -> Option<Arc<Steps>> {
        lock(&self.places).get(place).cloned()
    }

    /// Whether the last `reloadConfig` called this group changed.
    pub(super) fn has_changed(&self, group: &str) -> bool {
        lock(&self.changed).contains(group)
    }

    /// All of a group was stopped, and these members of it ran.
    pub(super) fn note_stopped(&self, group: &str, ran: impl IntoIterator<Item = String>) {
        let mut stopped = lock(&self.stopped);
        stopped.retain(|_, one| one.at.elapsed() < goes_on());
        let one = stopped.entry(group.to_owned()).or_insert_with(|| Stopped {
            ran: BTreeSet::new(),
            at: Instant::now(),
        });
        one.ran.extend(ran);
        one.at = Instant::now();
    }

    /// Whether all of a changed group was stopped lately, so that it may come again.
    pub(super) fn was_stopped(&self, group: &str) -> bool {
        let stopped = lock(&self.stopped);
        let one = stopped.get(group);
        one.is_some_and(|one| one.at.elapsed() < goes_on()) && self.has_changed(group)
    }

    /// Puts a group by whose removal was asked for.
    pub(super) fn put_by(&self, group: &str, steps: Option<Arc<Steps>>) -> Arc<PutBy> {
        let ran = lock(&self.stopped).remove(group).map(|one| one.ran);
        let put_by = Arc::new(PutBy {
            ran: ran.unwrap_or_default(),
            steps,
        });
        lock(&self.put_by).insert(group.to_owned(), put_by.clone());
        put_by
    }

    /// The groups that are put by.
    pub(super) fn groups_put_by(&self) -> Vec<String> {
        lock(&self.put_by).keys().cloned().collect()
    }

    /// Whether a group is put by of which only what changed was stopped.
    pub(super) fn is_put_by_live(&self, group: &str) -> bool {
        let put_by = lock(&self.put_by);
        put_by.get(group).is_some_and(|one| one.steps.is_some())
    }

    /// Takes a group back that was put by.
    pub(super) fn take_back(&self, group: &str) -> Option<Arc<PutBy>> {
        lock(&self.stopped).remove(group);
        lock(&self.put_by).remove(group)
    }

    /// The same if it is still this one.
    pub(super) fn give_up(&self, group: &str, put_by: &Arc<PutBy>) -> bool {
        let mut all = lock(&self.put_by);
        let is_it = all.get(group).is_some_and(|one| Arc::ptr_eq(one, put_by));
        is_it && all.remove(group).is_some()
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

    fn place(uid: u32, credentials: Option<&'static str>) -> Place {
        let header = credentials.map(HeaderValue::from_static);
        (Peer::Account(uid), header)
    }

    #[test]
    fn an_update_is_told_by_its_connection_or_else_by_place_and_credentials() {
        let all = UnderWay::default();
        let (one, other) = (Update::default(), Update::default());
        all.begin(&one, place(1, Some("a")), &reloaded(&["web"], &["old"]));
        let knows = |update: &Update, place: &Place, group| {
            let steps = update.steps(&all, place);
            steps.is_some_and(|steps| steps.may_go_on(group))
        };
        for group in ["web", "old"] {
            assert!(knows(&one, &place(2, None), group), "by its connection");
            assert!(knows(&other, &place(1, Some("a")), group), "by its place");
        }
        assert!(!knows(&one, &place(1, Some("a")), "lone"));
        for place in [place(1, None), place(1, Some("b")), place(2, Some("a"))] {
            assert!(!knows(&other, &place, "web"), "{place:?}");
        }
        // Somebody else asks for the version there.
        all.end(&other, &place(1, Some("a")));
        assert!(!knows(&other, &place(1, Some("a")), "web"));
        assert!(knows(&one, &place(1, Some("a")), "web"));
        all.end(&one, &place(1, Some("a")));
        assert!(!knows(&one, &place(1, Some("a")), "web"));
        let unknown = (Peer::Unknown, None);
        all.begin(&one, unknown.clone(), &reloaded(&["web"], &[]));
        assert!(!knows(&other, &unknown, "web"));
    }

    #[test]
    fn a_changed_group_that_was_stopped_is_put_by_once() {
        let all = UnderWay::default();
        all.begin(&Update::default(), place(1, None), &reloaded(&["web"], &[]));
        assert!(!all.was_stopped("web"));
        all.note_stopped("web", ["a".to_owned()]);
        all.note_stopped("web", ["b".to_owned()]);
        all.note_stopped("lone", []);
        assert!(all.was_stopped("web") && !all.was_stopped("lone"));
        let first = all.put_by("web", None);
        assert_eq!(first.ran, ["a", "b"].map(str::to_owned).into());
        assert!(!all.was_stopped("web") && all.groups_put_by() == ["web"]);
        let second = all.put_by("web", None);
        assert!(!all.give_up("web", &first), "it was put by again");
        assert!(all.give_up("web", &second) && all.take_back("web").is_none());
    }
}
