//! Whether the daemon answers, and the sentence about each way in which it may not.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use http::StatusCode;

use super::{account, group_name, user_name};
use crate::daemon::conf::{DaemonAddress, DaemonConf};
use crate::daemon::fault::{CANT_REREAD, SHUTDOWN_STATE, UNKNOWN_METHOD};
use crate::daemon::{CallError, Daemon};

/// The releases that this was made for.
const RELEASES: &str = "4.2.5 or 4.3.0";
/// What the daemon's file needs for it to answer at all.
const RPC_INTERFACE: &str = "write [rpcinterface:supervisor] and below it supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface";

/// A daemon that answers.
#[derive(Debug)]
pub struct Reached {
    /// Its release.
    pub version: String,
    /// The account that it runs under, where that can be told.
    pub account: Option<String>,
}

/// Asks the daemon who it is.
///
/// # Errors
/// Why it does not say so; [`about_call`] explains it.
pub async fn reach(daemon: &Daemon) -> Result<Reached, CallError> {
    let version = daemon.call("supervisor.getSupervisorVersion", &[]).await?;
    let account = daemon.account().await.map(user_name);
    Ok(Reached {
        version: version.as_str().unwrap_or("?").to_owned(),
        account,
    })
}

/// What is said of a call to the daemon that did not work: what it means, and what to write.
pub fn about_call(error: &CallError, method: &str, daemon: &Daemon, conf: &DaemonConf) -> String {
    let (address, file) = (daemon.address(), conf.file.display());
    match error {
        CallError::Unreachable(reason) => about_unreachable(address, conf).unwrap_or_else(|| {
            format!("{reason}; start supervisord, or name where it listens with --supervisord")
        }),
        CallError::Status(StatusCode::UNAUTHORIZED) => {
            let section = section_of(address, conf);
            format!(
                "{file}: [{section}]: supervisord at {address} rejects this username and password; write those that it was started with, or start it again"
            )
        }
        CallError::Status(StatusCode::INTERNAL_SERVER_ERROR) => format!(
            "supervisord at {address} failed inside on {method} (HTTP 500); its own log says why"
        ),
        CallError::Status(status) => format!(
            "what listens at {address} answers {method} with HTTP {status}, as no supervisord does; name where supervisord listens with --supervisord"
        ),
        CallError::Unreadable(reason) => format!(
            "what listens at {address} answers {method} with something other than XML-RPC ({reason}); name where supervisord listens with --supervisord"
        ),
        CallError::Fault(fault) => match fault.code {
            UNKNOWN_METHOD => format!(
                "supervisord at {address} does not know {method}; in {file}, {RPC_INTERFACE}, and start supervisord again; where that is there, install supervisor {RELEASES}"
            ),
            SHUTDOWN_STATE => format!(
                "supervisord at {address} is shutting down or restarting; wait until it has started"
            ),
            CANT_REREAD => format!(
                "supervisord cannot read its configuration, so nothing could be added: {}; mend that",
                fault.text
            ),
            _ => format!(
                "supervisord at {address} answers {method} with fault {}: {}; its own log may say why",
                fault.code, fault.text
            ),
        },
    }
}

/// The section that makes the daemon listen at an address.
fn section_of<'a>(address: &DaemonAddress, conf: &'a DaemonConf) -> &'a str {
    let server = conf
        .servers
        .iter()
        .find(|server| server.address == *address);
    server.map_or("unix_http_server", |server| &server.section)
}

/// Why nobody answers at a socket, where its file tells.
fn about_unreachable(address: &DaemonAddress, conf: &DaemonConf) -> Option<String> {
    let DaemonAddress::Unix(path) = address else {
        return None;
    };
    let shown = path.display();
    match std::os::unix::net::UnixStream::connect(path).err()?.kind() {
        ErrorKind::NotFound => Some(format!(
            "there is no socket {shown}; start supervisord, or name where it listens with --supervisord"
        )),
        ErrorKind::ConnectionRefused => Some(format!(
            "nobody listens on the socket {shown}; start supervisord, or name where it listens with --supervisord"
        )),
        ErrorKind::PermissionDenied => Some(about_permissions(path, conf)),
        _ => None,
    }
}

fn about_permissions(path: &Path, conf: &DaemonConf) -> String {
    let (shown, file) = (path.display(), conf.file.display());
    let group = group_name(nix::unistd::getegid().as_raw());
    let Ok(found) = std::fs::metadata(path) else {
        return format!(
            "{} may not enter the directory of supervisord's socket {shown}; give it the right to (chmod o+x), or write another file in [unix_http_server] of {file}",
            account()
        );
    };
    let owner = user_name(found.uid());
    format!(
        "{} may not open supervisord's socket {shown} ({:o} {owner}:{}); in {file}, write chmod = 0770 and chown = {owner}:{group} below [unix_http_server]; until supervisord starts again, this does the same: chgrp {group} {shown} && chmod 770 {shown}",
        account(),
        found.permissions().mode() & 0o7777,
        group_name(found.gid()),
    )
}
