//! Between the names that clients use and those that the daemon knows, both ways.
//!
//! Pure: works on one call or one reply and on what the registry says. A process that lives in a
//! real group of its own is presented as a member of the group it joined; a hidden one not at all.

use std::collections::HashSet;

use crate::daemon::ProcessState;
use crate::namespec::{namespec, split_namespec};
use crate::registry::{self, Place, Registry};
use crate::xmlrpc::{Fault, Value};

/// What a `supervisor.*` method takes or returns, as far as names go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// Takes one process.
    Process,
    /// Takes one process, or a whole group as `group:*`.
    ProcessOrGroup(BulkAction),
    /// Takes a group.
    Group(BulkAction),
    /// Concerns all processes.
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
    /// Ends the daemon's life.
    End(Ending),
    /// No names at all.
    Nameless,
}

/// How a life of the daemon ends that a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// `shutdown`
    Shutdown,
    /// `restart`
    Restart,
}

impl Ending {
    /// The method's full name.
    pub fn method(self) -> &'static str {
        match self {
            Ending::Shutdown => "supervisor.shutdown",
            Ending::Restart => "supervisor.restart",
        }
    }
}

/// What is done to every process of a group, or to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkAction {
    /// Start those that are not running.
    Start,
    /// Stop those that are running.
    Stop,
    /// Send a signal to those that can take one.
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

/// A name that no process of the daemon has: what is asked of it fails as for any unknown name,
/// after all the checks that the daemon makes before.
const NOWHERE: &str = "twiddler~nowhere:~";

/// One process under its two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// What the daemon is asked.
    pub real: String,
    /// What the client said.
    pub shown: String,
    /// The group that the client knows, for replies that name it.
    pub group: String,
}

/// What to ask the daemon for the process that a client calls `name`; none where that is the same.
/// Hidden processes must have been looked at before: here they are unknown.
pub fn alias(registry: &Registry, name: &str) -> Option<Alias> {
    let (group, Some(process)) = split_namespec(name) else {
        return None;
    };
    let real = match registry.place(group, process) {
        Place::Ordinary => return None,
        Place::Placed(member) => member.real_namespec(),
        Place::Hidden(_) => NOWHERE.to_owned(),
    };
    Some(Alias {
        real,
        shown: name.to_owned(),
        group: group.to_owned(),
    })
}

impl Alias {
    /// Whether the daemon may have the process at all.
    pub fn leads_somewhere(&self) -> bool {
        self.real != NOWHERE
    }

    /// A reply about this process, in the client's names.
    ///
    /// # Errors
    /// The fault that came, in those names too.
    pub fn back(&self, result: Result<Value, Fault>) -> Result<Value, Fault> {
        match result {
            Ok(mut value) => {
                if let Some(group) = value.get_mut("group") {
                    *group = self.group.as_str().into();
                }
                Ok(value)
            }
            Err(fault) => Err(Fault {
                text: self.text_back(&fault.text),
                ..fault
            }),
        }
    }

    /// A text of the daemon about this process, in the client's names.
    pub fn text_back(&self, text: &str) -> String {
        text.replace(&self.real, &self.shown)
    }
}

/// Status structs of group and all forms, in the client's names (`supervisor/rpcinterface.py`,
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

/// What `getAllProcessInfo` shows, and which hidden processes are to be seen again because somebody
/// started them.
pub fn rewrite_infos(registry: &Registry, value: &mut Value) -> Vec<(String, String)> {
    let mut shown_again = Vec::new();
    let Value::Array(infos) = value else {
        return shown_again;
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
                let stands_in = registry.member(&real, &process).is_some();
                if !stands_in {
                    shown_again.push((real, process));
                }
                !stands_in
            }
        }
    });
    infos.sort_by_cached_key(|info| (text(info, "group"), text(info, "name")));
    shown_again
}

/// Whether the daemon's own list of processes lacks one that was added.
pub fn lacks_members(registry: &Registry, infos: &Value) -> bool {
    let there: HashSet<(&str, &str)> = infos
        .as_array()
        .unwrap_or_default()
        .iter()
        .filter_map(|info| Some((info.get("group")?.as_str()?, info.get("name")?.as_str()?)))
        .collect();
    registry
        .members()
        .any(|member| !there.contains(&(member.real.as_str(), member.process.as_str())))
}

/// Whether `reloadConfig` does not list the group that marks the daemon's life: no file has it, so an
/// active one is listed as removed.
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

/// Whether the info of a hidden process that had last started at `start` does not show it again.
pub fn is_still_hidden(info: &Value, start: i64) -> bool {
    let number = |member| info.get(member).and_then(Value::as_int);
    matches!((number("state"), number("start")), (Some(state), Some(started))
        if registry::is_still_hidden(start, ProcessState::from_code(state), started))
}

/// Whether clients do not see the process that this info struct of the daemon's is about.
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

/// What `getAllConfigInfo` shows of the daemon's own list.
pub fn rewrite_configs(registry: &Registry, value: &mut Value) {
    let Value::Array(configs) = value else { return };
    configs.retain_mut(|config| {
        let (Some(real), Some(process)) = (text(config, "group"), text(config, "name")) else {
            return true;
        };
        // The daemon lists what it read last: also what has left since, or was not added after all.
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

/// What `reloadConfig` says, without what was added here: it is neither new nor changed nor gone.
pub fn rewrite_reloaded(registry: &Registry, value: &mut Value) {
    let Value::Array(outer) = value else { return };
    let Some(Value::Array(lists)) = outer.first_mut() else {
        return;
    };
    for list in lists {
        if let Value::Array(names) = list {
            names.retain(|name| name.as_str().is_none_or(|name| !is_ours(registry, name)));
        }
    }
}

/// Whether the daemon's active group of this name is of our making.
fn is_ours(registry: &Registry, real: &str) -> bool {
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

    /// Two processes of one program in a real group; one of another that was hidden there; one in a group
    /// of the files that was taken out; a group that was added, with a process of its own; the marker.
    fn known() -> Registry {
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
    fn names_of_clients_lead_to_the_daemons() {
        let known = known();
        let table = [
            ("web:a", Some("web~000001:a")),
            ("web:c", Some("web~000002:c")),
            // Hidden, whatever else is asked of it.
            ("web:out", Some(NOWHERE)),
            ("web~000002:d", Some(NOWHERE)),
            // The same on both sides.
            ("web:other", None),
            ("own:p", None),
            ("web~000001:a", None),
            // Whole groups.
            ("web:*", None),
            ("web:", None),
            ("a", None),
        ];
        for (name, expected) in table {
            let alias = alias(&known, name);
            assert_eq!(alias.as_ref().map(|alias| &*alias.real), expected, "{name}");
            if let Some(alias) = alias {
                assert_eq!(alias.leads_somewhere(), alias.real != NOWHERE);
                let told = alias.text_back(&format!("BAD_NAME: {}", alias.real));
                assert_eq!(told, format!("BAD_NAME: {name}"));
            }
        }
    }

    #[test]
    fn statuses_bear_the_names_of_clients() {
        let known = known();
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
        for (group, name, description, expected, told) in table {
            let status = entry(&[
                ("group", group.into()),
                ("name", name.into()),
                ("description", description.into()),
            ]);
            let mut list = Value::Array(vec![status]);
            rewrite_statuses(&known, &mut list);
            let entry = &list.as_array().unwrap()[0];
            assert_eq!(name_of(entry), expected);
            assert_eq!(text(entry, "description").as_deref(), Some(told));
        }
    }

    #[test]
    fn clients_see_members_and_what_somebody_started_again() {
        let known = known();
        let (stopped, running) = (0, 20);
        // What the daemon says of one process, as whom clients see it, and whether it is news.
        let table = [
            ("web~000001", "a", running, 7, "web:a", false),
            ("web~000002", "c", stopped, 0, "web:c", false),
            ("web~000002", "d", stopped, 5, "", false),
            // In a real group it is never seen again.
            ("web~000002", "d", running, 9, "", false),
            ("web", "out", stopped, 5, "", false),
            ("web", "out", running, 9, "web:out", true),
            ("web", "out", stopped, 9, "web:out", true),
            ("own", "p", running, 7, "own:p", false),
            ("web", "other", running, 7, "web:other", false),
            ("web~000009", "x", running, 7, "web~000009:x", false),
        ];
        for (group, name, state, start, expected, is_news) in table {
            let info = entry(&[
                ("group", group.into()),
                ("name", name.into()),
                ("state", state.into()),
                ("start", start.into()),
            ]);
            let mut list = Value::Array(vec![info]);
            let shown = rewrite_infos(&known, &mut list);
            let seen: Vec<String> = list.as_array().unwrap().iter().map(name_of).collect();
            assert_eq!(seen.concat(), expected, "{group}:{name}");
            assert_eq!(!shown.is_empty(), is_news, "{group}:{name}");
        }
    }

    #[test]
    fn configurations_of_what_is_not_there_are_left_out() {
        let known = known();
        let table = [
            ("web~000001", "a", "web:a"),
            // Hidden, never added, or of a number that no group has any more.
            ("web~000002", "d", ""),
            ("web~000001", "z", ""),
            ("web", "out", ""),
            ("web~000000", "x", ""),
            ("web", "other", "web:other"),
            ("own", "p", "own:p"),
            // Somebody else's, however it is called.
            ("web~000777", "x", "web~000777:x"),
        ];
        for (group, name, expected) in table {
            let config = entry(&[("group", group.into()), ("name", name.into())]);
            let mut list = Value::Array(vec![config]);
            rewrite_configs(&known, &mut list);
            let seen: Vec<String> = list.as_array().unwrap().iter().map(name_of).collect();
            assert_eq!(seen.concat(), expected, "{group}:{name}");
        }
    }

    #[test]
    fn what_was_added_is_neither_new_nor_changed_nor_gone() {
        let known = known();
        let table = [
            ("web~000001", false),
            ("own", false),
            ("twiddler~1-1", false),
            ("twiddler~2-2", true),
            ("web", true),
            ("other", true),
        ];
        for (name, is_said) in table {
            for place in 0..3 {
                let mut lists = vec![Value::Array(vec![]); 3];
                lists[place] = Value::Array(vec![name.into()]);
                let mut reloaded = Value::Array(vec![Value::Array(lists.clone())]);
                let removes_marker = place == 2 && name == "twiddler~1-1";
                assert_eq!(lacks_marker(&known, &reloaded), !removes_marker);
                rewrite_reloaded(&known, &mut reloaded);
                let unchanged = reloaded == Value::Array(vec![Value::Array(lists)]);
                assert_eq!(unchanged, is_said, "{name} in {place}");
            }
        }
    }
}
