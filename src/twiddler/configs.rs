//! What `getAllConfigInfo` says of processes that were added.
//!
//! The daemon lists what it read last, and what was added is on disk only while it is being added.
//! So the daemon is let read it once more where its entries are missing, and what it said is kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::engine::Engine;
use super::model::change::ChangeError;
use super::model::plan;
use super::model::registry::{Event, Member, Registry};
use crate::program::{self, Scope};
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
            let text = |member: &str| config.get(member).and_then(Value::as_str);
            let (Some(group), Some(process)) = (text("group"), text("name")) else {
                continue;
            };
            if let Some(member) = registry.member(group, process) {
                let config = with_own_serverurl(member, config.clone());
                known.insert((group.to_owned(), process.to_owned()), config);
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Configs {
    /// Completes the daemon's list, whose names are those of clients already: what was added is in
    /// it, in the daemon's order (`supervisor/rpcinterface.py`, `getAllConfigInfo`).
    pub(super) fn complete(&self, registry: &Registry, list: &mut Vec<Value>) {
        list.retain(|config| !is_member(registry, config));
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

/// Lets the daemon read the members whose structs are not known. While the user's own files are not
/// valid it reads nothing, and the list stays as it is.
///
/// # Errors
/// When the daemon does not answer.
pub(super) async fn describe(engine: &mut Engine) -> Result<(), ChangeError> {
    let members = engine.look(|registry| engine.configs.missing(registry));
    // An intent that is open is for recovery alone.
    if members.is_empty() || !engine.journal.intent().is_empty() {
        return Ok(());
    }
    let configured = engine.configured();
    let (text, sections) = engine.look(|registry| {
        let priority = |group: &str| plan::priority(registry, &configured, group);
        sections(&members, priority)
    });
    if let (Ok(_), Ok(Value::Array(mut list))) = engine.read_and_list(text).await? {
        list.retain_mut(|config| give_group(config, &sections));
        engine.look(|registry| engine.configs.learn(registry, &list));
    }
    Ok(())
}

/// One section for each member, under a name that nobody uses, and whose it is.
fn sections(
    members: &[Member],
    priority: impl Fn(&str) -> i64,
) -> (String, HashMap<String, (String, i64)>) {
    let mut text = String::new();
    let mut owners = HashMap::new();
    for (number, member) in members.iter().enumerate() {
        let Some(program) = &member.program else {
            continue;
        };
        let section = format!("twiddler~config~{number}");
        let priority = priority(&member.group);
        text += &program::render_group(&section, priority, &[&section]);
        text += &program.render(&section, Scope::One(member.index));
        owners.insert(section, (member.group.clone(), priority));
    }
    (text, owners)
}

/// Puts the group that clients know into a struct about one of `sections`; others are left out.
fn give_group(config: &mut Value, sections: &HashMap<String, (String, i64)>) -> bool {
    let owner = config
        .get("group")
        .and_then(Value::as_str)
        .and_then(|group| sections.get(group));
    let Some((group, priority)) = owner else {
        return false;
    };
    for (member, value) in [
        ("group", Value::from(group.as_str())),
        ("group_prio", Value::from(*priority)),
        ("inuse", Value::Bool(true)),
    ] {
        if let Some(place) = config.get_mut(member) {
            *place = value;
        }
    }
    true
}

/// Leaves the address of the proxy out, which was not among the options that a client sent: the daemon
/// has then no value, for which it says `none` (`supervisor/rpcinterface.py`, `getAllConfigInfo`).
fn with_own_serverurl(member: &Member, mut config: Value) -> Value {
    let is_told = member.is_placed()
        && member
            .program
            .as_ref()
            .is_some_and(|program| !program.says_serverurl());
    if is_told && let Some(place) = config.get_mut("serverurl") {
        *place = Value::from("none");
    }
    config
}

fn is_member(registry: &Registry, config: &Value) -> bool {
    let text = |member: &str| config.get(member).and_then(Value::as_str);
    match (text("group"), text("name")) {
        (Some(group), Some(process)) => registry.member(group, process).is_some(),
        _ => false,
    }
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
