//! Translation between the names that clients use and the names in the daemon, in both directions.
//!
//! Pure: each function takes one call or one reply, and the registry. Clients see a process in a real group
//! as a member of the group that it joined. They do not see a hidden process.

use std::collections::HashSet;

use crate::daemon::ProcessState;
use crate::namespec::{namespec, split_namespec};
use crate::registry::{self, Place, Registry};
use crate::xmlrpc::{Fault, Value};

/// The names that a `supervisor.*` method takes or returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// Takes the name of a process.
    Process,
    /// Takes the name of a process, or `group:*` for a whole group.
    ProcessOrGroup(BulkAction),
    /// Takes the name of a group.
    Group(BulkAction),
    /// Acts on all processes.
    All(BulkAction),
    /// `getAllProcessInfo`
    Infos,
    /// `getAllConfigInfo`
    Configs,
    /// `reloadConfig`
    Reload,
    /// `addProcessGroup`
    AddGroup,
    /// `removeProcessGroup`
    RemoveGroup,
    /// Ends the daemon's epoch.
    End(Ending),
    /// Takes and returns no names.
    Nameless,
}

/// The method that ends the daemon's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// `shutdown`
    Shutdown,
    /// `restart`
    Restart,
}

impl Ending {
    /// The name of the method with its namespace.
    pub fn method(self) -> &'static str {
        match self {
            Ending::Shutdown => "supervisor.shutdown",
            Ending::Restart => "supervisor.restart",
        }
    }
}

/// The action of a call on a group or on all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkAction {
    /// Start the processes that are not running.
    Start,
    /// Stop the processes that are running.
    Stop,
    /// Send a signal to the processes in a state that can receive one.
    Signal,
    /// Clear the logs.
    ClearLogs,
}

/// The kind of `supervisor.<method>` (`supervisor/rpcinterface.py`).
pub fn method_kind(method: &str) -> MethodKind {
    match method {
        "startProcess" => MethodKind::ProcessOrGroup(BulkAction::Start),
        "stopProcess" => MethodKind::ProcessOrGroup(BulkAction::Stop),
        "signalProcess" => MethodKind::ProcessOrGroup(BulkAction::Signal),
        "getProcessInfo"
        | "readProcessLog"
        | "readProcessStdoutLog"
        | "readProcessStderrLog"
        | "tailProcessLog"
        | "tailProcessStdoutLog"
        | "tailProcessStderrLog"
        | "clearProcessLog"
        | "clearProcessLogs"
        | "sendProcessStdin" => MethodKind::Process,
        "startProcessGroup" => MethodKind::Group(BulkAction::Start),
        "stopProcessGroup" => MethodKind::Group(BulkAction::Stop),
        "signalProcessGroup" => MethodKind::Group(BulkAction::Signal),
        "startAllProcesses" => MethodKind::All(BulkAction::Start),
        "stopAllProcesses" => MethodKind::All(BulkAction::Stop),
        "signalAllProcesses" => MethodKind::All(BulkAction::Signal),
        "clearAllProcessLogs" => MethodKind::All(BulkAction::ClearLogs),
        "getAllProcessInfo" => MethodKind::Infos,
        "getAllConfigInfo" => MethodKind::Configs,
        "reloadConfig" => MethodKind::Reload,
        "addProcessGroup" => MethodKind::AddGroup,
        "removeProcessGroup" => MethodKind::RemoveGroup,
        "shutdown" => MethodKind::End(Ending::Shutdown),
        "restart" => MethodKind::End(Ending::Restart),
        _ => MethodKind::Nameless,
    }
}

/// A name that no process of the daemon has. A call with it fails as with any unknown name, after all checks
/// that the daemon makes before.
const UNKNOWN_NAME: &str = "twiddler~nowhere:~";

/// The two names of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameMapping {
    /// The namespec in the daemon.
    pub real: String,
    /// The name that the client sent.
    pub client: String,
    /// The group that the client knows, for replies that name it.
    pub group: String,
}

/// The mapping of the process that a client calls `name`; none where the daemon uses the same name, and for
/// whole groups. A hidden process is mapped to a name that the daemon does not know, so the caller must have
/// checked before whether it is still hidden.
pub fn map_name(registry: &Registry, name: &str) -> Option<NameMapping> {
    let (group, Some(process)) = split_namespec(name) else {
        return None;
    };
    let real = match registry.place(group, process) {
        Place::Ordinary => return None,
        Place::Placed(member) => member.real_namespec(),
        Place::Hidden(_) => UNKNOWN_NAME.to_owned(),
    };
    Some(NameMapping {
        real,
        client: name.to_owned(),
        group: group.to_owned(),
    })
}

impl NameMapping {
    /// Whether the daemon can have the process.
    pub fn is_known(&self) -> bool {
        self.real != UNKNOWN_NAME
    }

    /// Rewrites the daemon's answer about this process into the client's names.
    ///
    /// # Errors
    /// The daemon's fault, rewritten too.
    pub fn rewrite_reply(&self, result: Result<Value, Fault>) -> Result<Value, Fault> {
        match result {
            Ok(mut value) => {
                if let Some(group) = value.get_mut("group") {
                    *group = self.group.as_str().into();
                }
                Ok(value)
            }
            Err(fault) => Err(Fault {
                text: self.rewrite_text(&fault.text),
                ..fault
            }),
        }
    }

    /// Rewrites a text of the daemon about this process into the client's names.
    pub fn rewrite_text(&self, text: &str) -> String {
        text.replace(&self.real, &self.client)
    }
}

/// Rewrites an array of status structs into the client's names (`supervisor/rpcinterface.py`,
/// `make_allfunc`).
pub fn rewrite_statuses(registry: &Registry, value: &mut Value) {
    let Value::Array(statuses) = value else {
        return;
    };
    for status in statuses {
        let (Some(real), Some(process)) = (text(status, "group"), text(status, "name")) else {
            continue;
        };
        let Some(group) = registry.owner(&real) else {
            continue;
        };
        let (from, to) = (format!("{real}:{process}"), namespec(group, &process));
        if let Some(Value::String(description)) = status.get_mut("description") {
            *description = description.replace(&from, &to);
        }
        set(status, "group", group);
    }
}

/// Rewrites the answer of `getAllProcessInfo` into the client's names. Returns the hidden processes that a
/// client has started directly on the daemon, so that they become visible.
pub fn rewrite_infos(registry: &Registry, value: &mut Value) -> Vec<(String, String)> {
    let mut restarted = Vec::new();
    let Value::Array(infos) = value else {
        return restarted;
    };
    infos.retain_mut(|info| {
        let (Some(real), Some(process)) = (text(info, "group"), text(info, "name")) else {
            return true;
        };
        if let Some(group) = registry.owner(&real) {
            set(info, "group", group);
            return registry.hidden_start(&real, &process).is_none();
        }
        match registry.hidden_start(&real, &process) {
            None => true,
            Some(start) if is_still_hidden(info, start) => false,
            Some(_) => {
                let is_replaced = registry.member(&real, &process).is_some();
                if !is_replaced {
                    restarted.push((real, process));
                }
                !is_replaced
            }
        }
    });
    infos.sort_by_cached_key(|info| (text(info, "group"), text(info, "name")));
    restarted
}

/// Whether the daemon's answer of `getAllProcessInfo` lacks an added process.
pub fn lacks_members(registry: &Registry, infos: &Value) -> bool {
    let present: HashSet<(&str, &str)> = infos
        .as_array()
        .unwrap_or_default()
        .iter()
        .filter_map(|info| Some((info.get("group")?.as_str()?, info.get("name")?.as_str()?)))
        .collect();
    registry
        .members()
        .any(|member| !present.contains(&(member.real.as_str(), member.process.as_str())))
}

/// Whether the daemon's answer of `reloadConfig` lacks the epoch marker. No file defines the marker, so the
/// daemon lists it as removed as long as it has it.
pub fn lacks_marker(registry: &Registry, reloaded: &Value) -> bool {
    let lists = reloaded.as_array().and_then(|outer| outer.first());
    let removed = lists
        .and_then(Value::as_array)
        .and_then(|lists| lists.get(2));
    let removed = removed.and_then(Value::as_array).unwrap_or_default();
    registry.marker().is_some_and(|marker| {
        let is_marker = |name: &Value| name.as_str() == Some(marker);
        !removed.iter().any(is_marker)
    })
}

/// Whether a process that was hidden when its last start was at `start` is still hidden, according to its
/// info struct.
pub fn is_still_hidden(info: &Value, start: i64) -> bool {
    let number = |member| info.get(member).and_then(Value::as_int);
    matches!((number("state"), number("start")), (Some(state), Some(started))
        if registry::is_still_hidden(start, ProcessState::from_code(state), started))
}

/// Whether the process of this info struct of the daemon is hidden.
pub fn is_hidden(registry: &Registry, info: &Value) -> bool {
    let number = |member| info.get(member).and_then(Value::as_int);
    match (
        text(info, "group"),
        text(info, "name"),
        number("state"),
        number("start"),
    ) {
        (Some(real), Some(process), Some(state), Some(started)) => {
            registry.is_hidden(&real, &process, ProcessState::from_code(state), started)
        }
        _ => false,
    }
}

/// Rewrites the answer of `getAllConfigInfo` into the client's names.
pub fn rewrite_configs(registry: &Registry, value: &mut Value) {
    let Value::Array(configs) = value else { return };
    configs.retain_mut(|config| {
        let (Some(real), Some(process)) = (text(config, "group"), text(config, "name")) else {
            return true;
        };
        // The daemon lists its last reading, which can include removed processes and failed additions.
        if let Some(group) = registry.owner(&real) {
            let member = registry.member(group, &process);
            set(config, "group", group);
            return member.is_some_and(|member| member.real == real);
        }
        let number = registry::number_of_real_name(&real);
        number.is_none_or(|number| number >= registry.next())
            && registry.hidden_start(&real, &process).is_none()
    });
}

/// Removes the groups that twiddler added from the answer of `reloadConfig`.
pub fn rewrite_reloaded(registry: &Registry, value: &mut Value) {
    let Value::Array(outer) = value else { return };
    let Some(Value::Array(lists)) = outer.first_mut() else {
        return;
    };
    for list in lists {
        if let Value::Array(names) = list {
            names.retain(|name| {
                name.as_str()
                    .is_none_or(|name| !is_added_by_twiddler(registry, name))
            });
        }
    }
}

/// Whether twiddler added the daemon's active group of this name.
fn is_added_by_twiddler(registry: &Registry, real: &str) -> bool {
    registry.marker() == Some(real)
        || registry.owner(real).is_some()
        || registry.added_group(real).is_some()
        || registry.members_of(real).any(|member| !member.is_placed())
}

fn text(value: &Value, member: &str) -> Option<String> {
    Some(value.get(member)?.as_str()?.to_owned())
}

fn set(value: &mut Value, member: &str, text: &str) {
    if let Some(place) = value.get_mut(member) {
        *place = text.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::{added, hidden, joined, marker, registry, two};

    /// Two real groups, in the second of which a process is hidden; a hidden process of a group of the files;
    /// an added group with a process; the epoch marker.
    fn sample() -> Registry {
        let events = [
            two(),
            vec![
                joined("web", "c", "web~000002", 0),
                joined("web", "d", "web~000002", 1),
                hidden("web~000002", "d"),
                hidden("web", "out"),
                added("own"),
                joined("own", "p", "own", 0),
                marker("twiddler~1-1"),
            ],
        ];
        registry(&events.concat())
    }

    fn entry(members: &[(&str, Value)]) -> Value {
        let member = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
        Value::Struct(members.iter().map(member).collect())
    }

    fn name_of(entry: &Value) -> String {
        let text = |member| text(entry, member).unwrap_or_default();
        format!("{}:{}", text("group"), text("name"))
    }

    #[test]
    fn names_of_clients_are_mapped_to_names_of_the_daemon() {
        let registry = sample();
        let table = [
            ("web:a", Some("web~000001:a")),
            ("web:c", Some("web~000002:c")),
            // Hidden processes.
            ("web:out", Some(UNKNOWN_NAME)),
            ("web~000002:d", Some(UNKNOWN_NAME)),
            // The same name on both sides.
            ("web:other", None),
            ("own:p", None),
            ("web~000001:a", None),
            // Whole groups.
            ("web:*", None),
            ("web:", None),
            ("a", None),
        ];
        for (name, expected) in table {
            let mapping = map_name(&registry, name);
            assert_eq!(
                mapping.as_ref().map(|mapping| &*mapping.real),
                expected,
                "{name}"
            );
            if let Some(mapping) = mapping {
                assert_eq!(mapping.is_known(), mapping.real != UNKNOWN_NAME);
                let text = mapping.rewrite_text(&format!("BAD_NAME: {}", mapping.real));
                assert_eq!(text, format!("BAD_NAME: {name}"));
            }
        }
    }

    #[test]
    fn status_structs_are_rewritten_into_the_names_of_clients() {
        let registry = sample();
        let table = [
            (
                "web~000001",
                "a",
                "NOT_RUNNING: web~000001:a",
                "web:a",
                "NOT_RUNNING: web:a",
            ),
            ("web~000002", "c", "OK", "web:c", "OK"),
            ("web", "b", "OK", "web:b", "OK"),
            ("own", "p", "FAILED: own:p", "own:p", "FAILED: own:p"),
            ("web~000009", "x", "OK", "web~000009:x", "OK"),
        ];
        for (group, name, description, expected, expected_description) in table {
            let status = entry(&[
                ("group", group.into()),
                ("name", name.into()),
                ("description", description.into()),
            ]);
            let mut list = Value::Array(vec![status]);
            rewrite_statuses(&registry, &mut list);
            let entry = &list.as_array().unwrap()[0];
            assert_eq!(name_of(entry), expected);
            assert_eq!(
                text(entry, "description").as_deref(),
                Some(expected_description)
            );
        }
    }

    #[test]
    fn clients_see_members_and_hidden_processes_that_were_started_again() {
        let registry = sample();
        let (stopped, running) = (0, 20);
        // Group, name, state and start in the daemon, the name that clients see, and whether it is shown again.
        let table = [
            ("web~000001", "a", running, 7, "web:a", false),
            ("web~000002", "c", stopped, 0, "web:c", false),
            ("web~000002", "d", stopped, 5, "", false),
            // A hidden process in a real group is never shown again.
            ("web~000002", "d", running, 9, "", false),
            ("web", "out", stopped, 5, "", false),
            ("web", "out", running, 9, "web:out", true),
            ("web", "out", stopped, 9, "web:out", true),
            ("own", "p", running, 7, "own:p", false),
            ("web", "other", running, 7, "web:other", false),
            ("web~000009", "x", running, 7, "web~000009:x", false),
        ];
        for (group, name, state, start, expected, is_shown_again) in table {
            let info = entry(&[
                ("group", group.into()),
                ("name", name.into()),
                ("state", state.into()),
                ("start", start.into()),
            ]);
            let mut list = Value::Array(vec![info]);
            let visible = rewrite_infos(&registry, &mut list);
            let names: Vec<String> = list.as_array().unwrap().iter().map(name_of).collect();
            assert_eq!(names.concat(), expected, "{group}:{name}");
            assert_eq!(!visible.is_empty(), is_shown_again, "{group}:{name}");
        }
    }

    #[test]
    fn configurations_of_processes_that_the_daemon_does_not_have_are_left_out() {
        let registry = sample();
        let table = [
            ("web~000001", "a", "web:a"),
            // Hidden, never added, or with a number whose group was removed.
            ("web~000002", "d", ""),
            ("web~000001", "z", ""),
            ("web", "out", ""),
            ("web~000000", "x", ""),
            ("web", "other", "web:other"),
            ("own", "p", "own:p"),
            // A group that twiddler did not add, in spite of its name.
            ("web~000777", "x", "web~000777:x"),
        ];
        for (group, name, expected) in table {
            let config = entry(&[("group", group.into()), ("name", name.into())]);
            let mut list = Value::Array(vec![config]);
            rewrite_configs(&registry, &mut list);
            let names: Vec<String> = list.as_array().unwrap().iter().map(name_of).collect();
            assert_eq!(names.concat(), expected, "{group}:{name}");
        }
    }

    #[test]
    fn reload_config_does_not_list_groups_that_twiddler_added() {
        let registry = sample();
        let table = [
            ("web~000001", false),
            ("own", false),
            ("twiddler~1-1", false),
            ("twiddler~2-2", true),
            ("web", true),
            ("other", true),
        ];
        for (name, is_listed) in table {
            for place in 0..3 {
                let mut lists = vec![Value::Array(vec![]); 3];
                lists[place] = Value::Array(vec![name.into()]);
                let mut reloaded = Value::Array(vec![Value::Array(lists.clone())]);
                let removes_marker = place == 2 && name == "twiddler~1-1";
                assert_eq!(lacks_marker(&registry, &reloaded), !removes_marker);
                rewrite_reloaded(&registry, &mut reloaded);
                let unchanged = reloaded == Value::Array(vec![Value::Array(lists)]);
                assert_eq!(unchanged, is_listed, "{name} in {place}");
            }
        }
    }
}
