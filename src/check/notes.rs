//! The notes of `check`: parts that work, but not as well as they could, or not as intended.
//!
//! This module is pure.

use std::path::Path;

use crate::config::Settings;
use crate::daemon::conf::{Credentials, DaemonAddress, DaemonConf};
use crate::start;
use crate::twiddler::DirState;

/// The note if supervisorctl calls the daemon instead of the proxy.
pub(super) fn supervisorctl_bypasses_proxy(
    conf: &DaemonConf,
    daemon: &DaemonAddress,
    settings: &Settings,
) -> Option<String> {
    let url = conf.supervisorctl.serverurl.as_deref()?;
    let address = DaemonAddress::parse(url).ok()?;
    let mut servers = conf.servers.iter();
    let is_daemons = address == *daemon || servers.any(|server| server.address == address);
    let (file, consequence) = (
        conf.file.display(),
        if settings.persist {
            "`supervisorctl restart GROUP:*` there leaves out what was added"
        } else {
            "`supervisorctl update` there stops what was added, and `restart GROUP:*` leaves it out"
        },
    );
    let proxy_url = settings.listen.first().map(start::client_url)?;
    is_daemons.then(|| {
        format!("{file}: [supervisorctl] serverurl = {url} leads past twiddler: {consequence}; write serverurl = {proxy_url}")
    })
}

/// The note if the daemon's file has a digest in place of the password that the proxy would present.
pub(super) fn digest(
    section: &str,
    credentials: &Credentials,
    conf: &DaemonConf,
) -> Option<String> {
    credentials.is_hashed().then(|| {
        format!(
            "{}: [{section}] password is a digest, so supervisord judges each caller, and twiddler does nothing of its own before one has come; write that password in plain text there, or as username and password in [twiddler]",
            conf.file.display()
        )
    })
}

/// The note about a persist file that twiddler did not write, or that `serve` sets aside because persist
/// is off.
pub(super) fn persist_file(dir_state: &DirState, persist: bool, dir: &Path) -> Option<String> {
    if dir_state.persist_file_is_foreign {
        let verb = if persist { "replaces" } else { "sets aside" };
        return Some(format!(
            "the persist file in {} is not one that twiddler has written; twiddler serve {verb} it",
            dir.display()
        ));
    }
    let programs = dir_state.persisted_programs.filter(|_| !persist)?;
    let programs = match programs {
        1 => "1 program".to_owned(),
        many => format!("{many} programs"),
    };
    Some(format!(
        "persist is off, and {} holds a persist file with {programs}, which twiddler serve sets aside; write persist = true in [twiddler] to keep it",
        dir.display()
    ))
}

/// A note for each added group and process that the daemon's files define, too.
pub(super) fn defined_twice(dir_state: &DirState, conf: &DaemonConf) -> Vec<String> {
    let file = conf.file.display();
    let configured = |name: &str| conf.groups.iter().find(|group| group.name == name);
    let groups = dir_state
        .groups
        .iter()
        .filter(|name| configured(name).is_some());
    let groups = groups.map(|name| {
        format!("the group {name} was added, and {file} defines one by now; put the file in force: supervisorctl update")
    });
    let members = dir_state.members.iter().filter(|(group, process)| {
        configured(group).is_some_and(|group| group.processes.contains(process))
    });
    let members = members.map(|(group, process)| {
        format!("{group}:{process} was added, and {file} defines it by now; put the file in force: supervisorctl update")
    });
    groups.chain(members).collect()
}
