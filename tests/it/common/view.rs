//! The processes that a daemon shows, or the sidecar in front of it.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

use super::client::Client;
use super::daemon::Daemon;
use super::values::{items, member, number, text};

/// A process in `getAllProcessInfo`, without the members that change with time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Its state's name.
    pub state: String,
    /// Its pid, or 0.
    pub pid: i64,
    /// The time of its last start, or 0.
    pub start: i64,
    /// The time of its last stop, or 0.
    pub stop: i64,
    /// Its last exit status.
    pub exitstatus: i64,
    /// The path of its log file, or empty.
    pub logfile: String,
}

impl Row {
    /// Reads a struct of `getProcessInfo`.
    pub fn read(info: &Value) -> Result<Row> {
        let word = |name: &str| Ok::<_, anyhow::Error>(text(member(info, name)?)?.to_owned());
        let figure = |name: &str| number(member(info, name)?);
        Ok(Row {
            group: word("group")?,
            name: word("name")?,
            state: word("statename")?,
            pid: figure("pid")?,
            start: figure("start")?,
            stop: figure("stop")?,
            exitstatus: figure("exitstatus")?,
            logfile: word("stdout_logfile")?,
        })
    }

    /// `group:name`.
    pub fn namespec(&self) -> String {
        format!("{}:{}", self.group, self.name)
    }
}

/// The reply of `getAllProcessInfo`.
pub fn infos(client: &Client) -> Result<Vec<Value>> {
    Ok(items(&client.call("supervisor.getAllProcessInfo", ())?)?.to_vec())
}

/// All processes, in the order of the reply.
pub fn rows(client: &Client) -> Result<Vec<Row>> {
    infos(client)?.iter().map(Row::read).collect()
}

/// The state that stays the same if nothing is changed: the processes of a daemon, and its configuration of
/// the programs in the user's files.
#[derive(Debug, PartialEq)]
pub struct Picture {
    processes: Vec<Row>,
    configs: BTreeMap<(String, String), Value>,
}

impl Picture {
    /// Reads the state from the daemon itself. It has the configuration of these groups only.
    pub fn of(daemon: &Daemon, groups: &[&str]) -> Result<Picture> {
        let mut configs = BTreeMap::new();
        for config in items(&daemon.call("supervisor.getAllConfigInfo", ())?)? {
            let group = text(member(config, "group")?)?.to_owned();
            let name = text(member(config, "name")?)?.to_owned();
            if groups.contains(&group.as_str()) {
                configs.insert((group, name), without_automatic_logs(config));
            }
        }
        Ok(Picture {
            processes: rows(&daemon.client())?,
            configs,
        })
    }

    /// The state of these groups.
    #[must_use]
    pub fn of_groups(mut self, groups: &[&str]) -> Picture {
        self.processes
            .retain(|row| groups.contains(&row.group.as_str()));
        self
    }

    /// Fails with the differences, if there are any.
    pub fn ensure_same(&self, now: &Picture) -> Result<()> {
        ensure!(
            self.processes == now.processes,
            "processes were\n{:#?}\nand are\n{:#?}",
            self.processes,
            now.processes
        );
        ensure!(
            self.configs == now.configs,
            "configurations were\n{:#?}\nand are\n{:#?}",
            self.configs,
            now.configs
        );
        Ok(())
    }
}

/// The daemon forgets the name of an automatic log when it reads its files again.
fn without_automatic_logs(config: &Value) -> Value {
    let Value::Struct(members) = config else {
        return config.clone();
    };
    let is_log = |name: &str| name == "stdout_logfile" || name == "stderr_logfile";
    let is_automatic = |value: &Value| {
        text(value).is_ok_and(|path| path == "auto" || path.contains("---supervisor-"))
    };
    let stable = members.iter();
    let stable = stable.filter(|(name, value)| !(is_log(name) && is_automatic(value)));
    Value::Struct(stable.cloned().collect())
}
