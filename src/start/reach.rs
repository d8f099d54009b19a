//! Calls the daemon at the start, and explains why a call failed.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;

use super::{account, group_name, user_name};
use crate::config::Settings;
use crate::daemon::conf::{DaemonAddress, DaemonConf};
use crate::daemon::{CallError, Daemon};
use crate::fault::{CANT_REREAD, SHUTDOWN_STATE, UNKNOWN_METHOD};
use crate::rpc::methods::METHODS;
use crate::words::nearest;
use crate::xmlrpc::Value;

/// The releases of supervisor that are tested.
const RELEASES: &str = "4.2.5 or 4.3.0";
/// The advice for a daemon without the XML-RPC interface.
const RPC_INTERFACE: &str = "write [rpcinterface:supervisor] and below it supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface";

/// How long the daemon may take to answer. It answers no call while it reads large files.
const REPLY_TIME: Duration = Duration::from_secs(10);

/// The daemon's identity.
#[derive(Debug)]
pub struct Identity {
    /// Its release.
    pub version: String,
    /// The name of the account that it runs under, if that is known.
    pub account: Option<String>,
}

/// Asks the daemon for its identity.
///
/// # Errors
/// When the call fails; [`call_error`] explains why.
pub async fn reach(daemon: &Daemon) -> Result<Identity, CallError> {
    let call = daemon.call("supervisor.getSupervisorVersion", &[]);
    let version = timeout(REPLY_TIME, call).await.map_err(|_| {
        CallError::Unreachable(format!(
            "supervisord at {} has not answered for {} s",
            daemon.address(),
            REPLY_TIME.as_secs()
        ))
    })??;
    let account = daemon.account().await.map(user_name);
    Ok(Identity {
        version: version.as_str().unwrap_or("?").to_owned(),
        account,
    })
}

/// The text for a call of `method` that failed: its cause, and what to write.
pub fn call_error(error: &CallError, method: &str, daemon: &Daemon, conf: &DaemonConf) -> String {
    let (address, file) = (daemon.address(), conf.file.display());
    match error {
        CallError::Unreachable(reason) => socket_error(address, conf).unwrap_or_else(|| {
            format!("{reason}; start supervisord, or name where it listens with --supervisord")
        }),
        CallError::Status(StatusCode::UNAUTHORIZED) if daemon.own_authorization().is_none() => {
            let section = section_of(address, conf);
            format!(
                "{file}: [{section}] has no password that twiddler could present, and supervisord at {address} asks for one, so it does nothing of its own before a caller has brought it; write username and password there in plain text, as supervisord was started with"
            )
        }
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

/// The warnings about patterns of `allow` that match none of `methods`.
pub fn unmatched_patterns(settings: &Settings, methods: &[String]) -> Vec<String> {
    let Some(allow) = &settings.allow else {
        return Vec::new();
    };
    let unmatched = allow
        .patterns()
        .filter(|pattern| !methods.iter().any(|method| pattern.matches(method)));
    let sentences = unmatched.map(|pattern| {
        let names = methods.iter().map(String::as_str);
        let tip = nearest(pattern.as_str(), names).unwrap_or("one such as supervisor.getState");
        format!("allow: `{pattern}` names no method that supervisord has; write {tip}")
    });
    sentences.collect()
}

/// Logs the problems that `check` would find with the daemon, once, when the proxy has started.
pub async fn warn(daemon: &Daemon, conf: &DaemonConf, settings: &Settings) {
    let result = match reach(daemon).await {
        Ok(_) if settings.allow.is_none() => return,
        Ok(_) => daemon.call("system.listMethods", &[]).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(names) => {
            let names = names.as_array().unwrap_or_default().iter();
            let mut methods: Vec<String> =
                names.filter_map(Value::as_str).map(str::to_owned).collect();
            methods.extend(twiddler_methods());
            for warning in unmatched_patterns(settings, &methods) {
                tracing::warn!("{warning}");
            }
        }
        // The configuration has a warning about it, which is logged already.
        Err(CallError::Status(StatusCode::UNAUTHORIZED)) if has_unread_password(daemon, conf) => {}
        Err(error) => {
            let text = call_error(&error, "supervisor.getSupervisorVersion", daemon, conf);
            tracing::warn!("{text}");
        }
    }
}

/// Whether the daemon's file takes the password from an environment variable that this process lacks,
/// and no option sets it.
fn has_unread_password(daemon: &Daemon, conf: &DaemonConf) -> bool {
    let mut servers = conf.servers.iter();
    let server = servers.find(|server| server.address == *daemon.address());
    let credentials = server.and_then(|server| server.credentials.as_ref());
    credentials.is_some_and(|credentials| credentials.is_unexpanded)
        && daemon.own_authorization().is_none()
}

/// The names of the proxy's own methods, such as `twiddler.addGroup`.
pub fn twiddler_methods() -> impl Iterator<Item = String> {
    let methods = METHODS.iter();
    methods.map(|method| format!("twiddler.{}", method.name))
}

/// The section of the daemon's file that makes it listen at an address.
pub fn section_of<'a>(address: &DaemonAddress, conf: &'a DaemonConf) -> &'a str {
    let server = conf
        .servers
        .iter()
        .find(|server| server.address == *address);
    server.map_or("unix_http_server", |server| &server.section)
}

/// The text for a socket to which this process cannot connect; `None` for a port and for other errors.
fn socket_error(address: &DaemonAddress, conf: &DaemonConf) -> Option<String> {
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
        ErrorKind::PermissionDenied => Some(permission_error(path, conf)),
        _ => None,
    }
}

fn permission_error(path: &Path, conf: &DaemonConf) -> String {
    let (shown, file) = (path.display(), conf.file.display());
    let group = group_name(nix::unistd::getegid().as_raw());
    let Ok(metadata) = std::fs::metadata(path) else {
        return format!(
            "{} may not enter the directory of supervisord's socket {shown}; give it the right to (chmod o+x), or write another file in [unix_http_server] of {file}",
            account()
        );
    };
    let owner = user_name(metadata.uid());
    format!(
        "{} may not open supervisord's socket {shown} ({:o} {owner}:{}); in {file}, write chmod = 0770 and chown = {owner}:{group} below [unix_http_server]; until supervisord starts again, this does the same: chgrp {group} {shown} && chmod 770 {shown}",
        account(),
        metadata.permissions().mode() & 0o7777,
        group_name(metadata.gid()),
    )
}
