//! The structs of the daemon's replies, each read in one place.

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
    /// 40: told to stop, and still there.
    Stopping,
    /// 100: ended by itself.
    Exited,
    /// 200: given up.
    Fatal,
    /// Anything else, `UNKNOWN` (1000) included.
    Unknown,
}

impl ProcessState {
    /// The state of this number.
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

    /// The daemon's number for it.
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

    /// The daemon would start it again or has it up (`RUNNING_STATES`).
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Starting | Self::Backoff)
    }

    /// The daemon would remove it (`STOPPED_STATES`).
    pub fn is_stopped(self) -> bool {
        matches!(
            self,
            Self::Stopped | Self::Exited | Self::Fatal | Self::Unknown
        )
    }
}

/// What `getProcessInfo` says of one process (`supervisor/rpcinterface.py`).
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessInfo {
    /// Its group.
    pub group: String,
    /// Its name within the group.
    pub name: String,
    /// Its state.
    pub state: ProcessState,
    /// The state in the daemon's words.
    pub state_name: String,
    /// Its process number; 0 when there is none.
    pub pid: i64,
    /// When it last started, in seconds since 1970; 0 for never.
    pub start: i64,
    /// One line for people, such as `pid 12, uptime 0:00:05`.
    pub description: String,
    /// The exit status of its last run.
    pub exit_status: i64,
    /// Why it could not be started; empty when it could.
    pub spawn_error: String,
}

impl ProcessInfo {
    /// Reads the daemon's struct; nothing where it lacks one of the members that every release has.
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

    /// A process that is stopped and last started at `start`.
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

    /// Reads the list of `getAllProcessInfo`.
    pub fn read_all(infos: &Value) -> Vec<Self> {
        let infos = infos.as_array().unwrap_or_default();
        infos.iter().filter_map(Self::read).collect()
    }
}

/// What a group or all form says of one process (`supervisor/rpcinterface.py`, `make_allfunc`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusEntry {
    /// Its group.
    pub group: String,
    /// Its name within the group.
    pub name: String,
    /// `SUCCESS` (80) or the number of a fault.
    pub status: i32,
    /// `OK`, or the text of the fault.
    pub description: String,
}

impl StatusEntry {
    /// Reads the daemon's struct.
    pub fn read(entry: &Value) -> Option<Self> {
        let text = |member: &str| Some(entry.get(member)?.as_str()?.to_owned());
        Some(StatusEntry {
            group: text("group")?,
            name: text("name")?,
            status: i32::try_from(entry.get("status")?.as_int()?).ok()?,
            description: text("description")?,
        })
    }

    /// Reads the list that a group or all form returned.
    pub fn read_all(entries: &Value) -> Vec<Self> {
        let entries = entries.as_array().unwrap_or_default();
        entries.iter().filter_map(Self::read).collect()
    }

    /// The struct, as the daemon writes it.
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

/// What `getAllConfigInfo` says of one process of which more than its name counts here
/// (`supervisor/rpcinterface.py`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigInfo {
    /// Its group.
    pub group: String,
    /// Its name within the group.
    pub name: String,
    /// Its group's place among the groups.
    pub group_priority: Option<i64>,
    /// Its place within the group.
    pub priority: Option<i64>,
    /// How long it must run to count as started, in seconds.
    pub startsecs: Option<i64>,
    /// How long it may take to stop, in seconds.
    pub stopwaitsecs: Option<i64>,
}

impl ConfigInfo {
    /// Reads the daemon's struct; nothing where it lacks a name. Older releases lack numbers.
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

    /// Reads the list.
    pub fn read_all(configs: &Value) -> Vec<Self> {
        let configs = configs.as_array().unwrap_or_default();
        configs.iter().filter_map(Self::read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_count_as_the_daemon_counts_them() {
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
    fn a_struct_that_lacks_a_name_is_no_process() {
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
