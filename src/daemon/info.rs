//! The structs of the daemon's replies.

use crate::xmlrpc::Value;

/// The state of a process (`supervisor/states.py`, `ProcessStates`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessState {
    /// 0: stopped on request, or never started.
    Stopped,
    /// 10: running for less than `startsecs`.
    Starting,
    /// 20: running.
    Running,
    /// 30: waiting for its next attempt to start.
    Backoff,
    /// 40: has received its stop signal and still runs.
    Stopping,
    /// 100: exited without a request.
    Exited,
    /// 200: failed to start, and the daemon does not try again.
    Fatal,
    /// Any other number, including `UNKNOWN` (1000).
    Unknown,
}

impl ProcessState {
    /// Returns the state with this number.
    pub fn from_code(code: i64) -> Self {
        match code {
            0 => Self::Stopped,
            10 => Self::Starting,
            20 => Self::Running,
            30 => Self::Backoff,
            40 => Self::Stopping,
            100 => Self::Exited,
            200 => Self::Fatal,
            _ => Self::Unknown,
        }
    }

    /// Returns the daemon's number for the state.
    pub fn code(self) -> i64 {
        match self {
            Self::Stopped => 0,
            Self::Starting => 10,
            Self::Running => 20,
            Self::Backoff => 30,
            Self::Stopping => 40,
            Self::Exited => 100,
            Self::Fatal => 200,
            Self::Unknown => 1000,
        }
    }

    /// Returns whether the process runs or the daemon is about to start it (`RUNNING_STATES`).
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Starting | Self::Backoff)
    }

    /// Returns whether the daemon would remove the process (`STOPPED_STATES`).
    pub fn is_stopped(self) -> bool {
        matches!(
            self,
            Self::Stopped | Self::Exited | Self::Fatal | Self::Unknown
        )
    }
}

/// The reply of `getProcessInfo` (`supervisor/rpcinterface.py`).
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessInfo {
    /// The group of the process.
    pub group: String,
    /// The name within the group.
    pub name: String,
    /// The state.
    pub state: ProcessState,
    /// The daemon's name for the state.
    pub state_name: String,
    /// The pid, or 0 if the process does not run.
    pub pid: i64,
    /// The time of the last start in seconds since 1970, or 0 if it never started.
    pub start: i64,
    /// One line for users, such as `pid 12, uptime 0:00:05`.
    pub description: String,
    /// The exit status of the last run.
    pub exit_status: i64,
    /// Why the last start failed. Empty if it did not.
    pub spawn_error: String,
}

impl ProcessInfo {
    /// Reads the daemon's struct. Returns `None` if a member is missing that every release has.
    pub fn read(info: &Value) -> Option<Self> {
        let text = |member: &str| Some(info.get(member)?.as_str()?.to_owned());
        let number = |member: &str| info.get(member)?.as_int();
        Some(ProcessInfo {
            group: text("group")?,
            name: text("name")?,
            state: ProcessState::from_code(number("state")?),
            state_name: text("statename")?,
            pid: number("pid")?,
            start: number("start")?,
            description: text("description")?,
            exit_status: number("exitstatus").unwrap_or_default(),
            spawn_error: text("spawnerr").unwrap_or_default(),
        })
    }

    /// Returns the information about a stopped process that last started at `start`.
    pub fn stopped(group: &str, name: &str, start: i64) -> Self {
        ProcessInfo {
            group: group.to_owned(),
            name: name.to_owned(),
            state: ProcessState::Stopped,
            state_name: "STOPPED".to_owned(),
            pid: 0,
            start,
            description: String::new(),
            exit_status: 0,
            spawn_error: String::new(),
        }
    }

    /// Reads the reply of `getAllProcessInfo`. Leaves out structs that cannot be read.
    pub fn read_all(infos: &Value) -> Vec<Self> {
        let infos = infos.as_array().unwrap_or_default();
        infos.iter().filter_map(Self::read).collect()
    }
}

/// The result for one process of a call for a group or for all processes
/// (`supervisor/rpcinterface.py`, `make_allfunc`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusEntry {
    /// The group of the process.
    pub group: String,
    /// The name within the group.
    pub name: String,
    /// `SUCCESS` (80), or the number of a fault.
    pub status: i32,
    /// `OK`, or the text of the fault.
    pub description: String,
}

impl StatusEntry {
    /// Reads the daemon's struct. Returns `None` if a member is missing.
    pub fn read(entry: &Value) -> Option<Self> {
        let text = |member: &str| Some(entry.get(member)?.as_str()?.to_owned());
        Some(StatusEntry {
            group: text("group")?,
            name: text("name")?,
            status: i32::try_from(entry.get("status")?.as_int()?).ok()?,
            description: text("description")?,
        })
    }

    /// Reads the list that such a call returns. Leaves out structs that cannot be read.
    pub fn read_all(entries: &Value) -> Vec<Self> {
        let entries = entries.as_array().unwrap_or_default();
        entries.iter().filter_map(Self::read).collect()
    }

    /// Returns the struct as the daemon writes it.
    pub fn into_value(self) -> Value {
        let member = |name: &str, value: Value| (name.to_owned(), value);
        Value::Struct(vec![
            member("name", self.name.into()),
            member("group", self.group.into()),
            member("status", self.status.into()),
            member("description", self.description.into()),
        ])
    }
}

/// The members of `getAllConfigInfo` about one process that the proxy uses
/// (`supervisor/rpcinterface.py`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigInfo {
    /// The group of the process.
    pub group: String,
    /// The name within the group.
    pub name: String,
    /// The priority of the group.
    pub group_priority: Option<i64>,
    /// The priority within the group.
    pub priority: Option<i64>,
    /// How long the process must run before the daemon considers it started, in seconds.
    pub startsecs: Option<i64>,
    /// How long the process may take to stop, in seconds.
    pub stopwaitsecs: Option<i64>,
}

impl ConfigInfo {
    /// Reads the daemon's struct. Returns `None` if a name is missing. Older releases have no numbers.
    pub fn read(config: &Value) -> Option<Self> {
        let text = |member: &str| Some(config.get(member)?.as_str()?.to_owned());
        let number = |member: &str| config.get(member)?.as_int();
        Some(ConfigInfo {
            group: text("group")?,
            name: text("name")?,
            group_priority: number("group_prio"),
            priority: number("process_prio"),
            startsecs: number("startsecs"),
            stopwaitsecs: number("stopwaitsecs"),
        })
    }

    /// Reads the list. Leaves out structs that cannot be read.
    pub fn read_all(configs: &Value) -> Vec<Self> {
        let configs = configs.as_array().unwrap_or_default();
        configs.iter().filter_map(Self::read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_running_or_stopped_as_in_the_daemon() {
        for (code, running, stopped) in [
            (0, false, true),
            (10, true, false),
            (20, true, false),
            (30, true, false),
            (40, false, false),
            (100, false, true),
            (200, false, true),
            (1000, false, true),
        ] {
            let state = ProcessState::from_code(code);
            assert_eq!(
                (state.is_running(), state.is_stopped()),
                (running, stopped),
                "{code}"
            );
        }
    }

    #[test]
    fn a_struct_without_a_name_is_not_a_process() {
        let member = |name: &str, value: Value| (name.to_owned(), value);
        let mut members = vec![
            member("group", "g".into()),
            member("name", "p".into()),
            member("state", 20.into()),
            member("statename", "RUNNING".into()),
            member("pid", 7.into()),
            member("start", 5.into()),
            member("description", "pid 7, uptime 0:00:01".into()),
        ];
        let info = ProcessInfo::read(&Value::Struct(members.clone())).unwrap();
        assert_eq!((info.pid, info.state), (7, ProcessState::Running));
        members.remove(1);
        assert_eq!(ProcessInfo::read(&Value::Struct(members)), None);
    }
}
