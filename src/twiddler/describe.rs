//! Lets the daemon read the sections of members again, to list their `getAllConfigInfo` entries.

use std::collections::HashMap;

use super::engine::Engine;
use super::model::change::ChangeError;
use crate::program::{self, Scope};
use crate::registry::Member;
use crate::xmlrpc::Value;

/// Lets the daemon read the sections of members without an entry. If the user's own files are invalid, the
/// daemon reads nothing, and the list stays as it is.
///
/// # Errors
/// When the daemon does not answer.
pub(super) async fn describe(engine: &mut Engine) -> Result<(), ChangeError> {
    let members = engine.with_registry(|registry| engine.configs.missing(registry));
    // Only recovery may close an open intent.
    if members.is_empty() || !engine.journal.intent().is_empty() {
        return Ok(());
    }
    let configured = engine.configured();
    let (text, sections) = engine.with_registry(|registry| {
        let priority = |group: &str| registry.priority(&configured, group);
        sections(&members, priority)
    });
    if let (Ok(_), Ok(Value::Array(mut list))) = engine.read_and_list(text).await? {
        list.retain_mut(|config| restore_group(config, &sections));
        engine.with_registry(|registry| engine.configs.learn(registry, &list));
    }
    Ok(())
}

/// Renders one section for each member, under an unused name. Returns the text, and the group and priority
/// of each section.
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

/// Replaces the group of an entry by the group that clients know. Returns whether the entry belongs to one
/// of `sections`.
fn restore_group(config: &mut Value, sections: &HashMap<String, (String, i64)>) -> bool {
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
