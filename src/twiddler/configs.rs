//! The `getAllConfigInfo` entries of members.
//!
//! The daemon lists what it read last, and the sections of an addition are on disk only during the change.
//! So this module stores the entries that the daemon once listed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::daemon::ConfigInfo;
use crate::registry::{Event, Member, Registry};
use crate::xmlrpc::Value;

/// A group and a process, as clients know them.
type Key = (String, String);

/// The daemon's entries of members, in the names of clients.
#[derive(Default)]
pub(super) struct Configs(Mutex<HashMap<Key, Value>>);

impl Configs {
    /// Removes the entries that `events` make invalid.
    pub(super) fn remove_outdated(&self, events: &[Event]) {
        let mut entries = self.entries();
        for event in events {
            match event {
                Event::Joined(member) => {
                    entries.remove(&key(member));
                }
                Event::Left { group, process } | Event::Hidden { group, process, .. } => {
                    entries.remove(&(group.clone(), process.clone()));
                }
                Event::GroupGone { name } => entries.retain(|(group, _), _| group != name),
                _ => {}
            }
        }
    }

    /// Removes all entries.
    pub(super) fn clear(&self) {
        self.entries().clear();
    }

    /// Stores the entries of `list` that belong to members of `registry`.
    pub(super) fn learn(&self, registry: &Registry, list: &[Value]) {
        let mut entries = self.entries();
        for config in list {
            if let Some(member) = member(registry, config) {
                let config = without_proxy_url(member, config.clone());
                entries.insert(key(member), config);
            }
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the members' entries to the daemon's list, whose names are those of clients already, in the
    /// daemon's order (`supervisor/rpcinterface.py`, `getAllConfigInfo`).
    pub(super) fn complete(&self, registry: &Registry, list: &mut Vec<Value>) {
        list.retain(|config| member(registry, config).is_none());
        let entries = self.entries();
        let members = registry.members();
        list.extend(members.filter_map(|member| entries.get(&key(member)).cloned()));
        list.sort_by(|one, other| name(one).cmp(name(other)));
    }

    /// The members without an entry whose section can be read again.
    pub(super) fn missing(&self, registry: &Registry) -> Vec<Member> {
        let entries = self.entries();
        registry
            .members()
            .filter(|member| member.program.is_some() && !entries.contains_key(&key(member)))
            .cloned()
            .collect()
    }
}

/// Removes the proxy's URL, which was not among the options that the client sent. The daemon lists `none`
/// for an option without a value (`supervisor/rpcinterface.py`, `getAllConfigInfo`).
fn without_proxy_url(member: &Member, mut config: Value) -> Value {
    let calls_proxy = member.is_placed()
        && member
            .program
            .as_ref()
            .is_some_and(|program| !program.sets_serverurl());
    if calls_proxy && let Some(place) = config.get_mut("serverurl") {
        *place = Value::from("none");
    }
    config
}

/// The member that an entry belongs to.
fn member<'r>(registry: &'r Registry, config: &Value) -> Option<&'r Member> {
    let config = ConfigInfo::read(config)?;
    registry.member(&config.group, &config.name)
}

fn key(member: &Member) -> Key {
    (member.group.clone(), member.process.clone())
}

fn name(config: &Value) -> &str {
    config
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}
