//! What `getAllConfigInfo` says of processes that were added.
//!
//! The daemon lists what it read last, and what was added is on disk only while it is being added: what
//! the daemon once said of it is kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::daemon::ConfigInfo;
use crate::registry::{Event, Member, Registry};
use crate::xmlrpc::Value;

/// Group and process, as clients know them.
type Key = (String, String);

/// The daemon's config structs of processes that were added, in the client's names.
#[derive(Default)]
pub(super) struct Configs(Mutex<HashMap<Key, Value>>);

impl Configs {
    /// Forgets what is not so any more.
    pub(super) fn forget(&self, events: &[Event]) {
        let mut known = self.known();
        for event in events {
            match event {
                Event::Joined(member) => {
                    known.remove(&key(member));
                }
                Event::Left { group, process } | Event::Hidden { group, process, .. } => {
                    known.remove(&(group.clone(), process.clone()));
                }
                Event::GroupGone { name } => known.retain(|(group, _), _| group != name),
                _ => {}
            }
        }
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.known().clear();
    }

    /// Keeps the structs of `list` that are about members of `registry`.
    pub(super) fn learn(&self, registry: &Registry, list: &[Value]) {
        let mut known = self.known();
        for config in list {
            if let Some(member) = member(registry, config) {
                let config = with_own_serverurl(member, config.clone());
                known.insert(key(member), config);
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes the daemon's list, whose names are those of clients already: what was added is in
    /// it, in the daemon's order (`supervisor/rpcinterface.py`, `getAllConfigInfo`).
    pub(super) fn complete(&self, registry: &Registry, list: &mut Vec<Value>) {
        list.retain(|config| member(registry, config).is_none());
        let known = self.known();
        let members = registry.members();
        list.extend(members.filter_map(|member| known.get(&key(member)).cloned()));
        list.sort_by(|one, other| name(one).cmp(name(other)));
    }

    /// Members whose struct is not known and can be learnt.
    pub(super) fn missing(&self, registry: &Registry) -> Vec<Member> {
        let known = self.known();
        registry
            .members()
            .filter(|member| member.program.is_some() && !known.contains_key(&key(member)))
            .cloned()
            .collect()
    }
}

/// Leaves the address of the proxy out, which was not among the options that a client sent: the daemon
/// has then no value, for which it says `none` (`supervisor/rpcinterface.py`, `getAllConfigInfo`).
fn with_own_serverurl(member: &Member, mut config: Value) -> Value {
    let is_told = member.is_placed()
        && member
            .program
            .as_ref()
            .is_some_and(|program| !program.sets_serverurl());
    if is_told && let Some(place) = config.get_mut("serverurl") {
        *place = Value::from("none");
    }
    config
}

/// The member that a struct is about.
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
