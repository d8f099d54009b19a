//! Whether the daemon answers, and the sentence about each way in which it may not.

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

/// The releases that this was made for.
const RELEASES: &str = "4.2.5 or 4.3.0";
/// What the daemon's file needs for it to answer at all.
const RPC_INTERFACE: &str = "write [rpcinterface:supervisor] and below it supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface";

/// How long the daemon may take to say who it is. It serves nobody while it reads large files.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let asked = daemon.call("supervisor.getSupervisorVersion", &[]);
    let version = timeout(PATIENCE, asked).await.map_err(|_| {
        CallError::Unreachable(format!(
            "supervisord at {} has not answered for {} s",
            daemon.address(),
            PATIENCE.as_secs()
        ))
    })??;
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

/// Patterns of `allow` that let nobody call anything.
pub fn allows_nothing(settings: &Settings, methods: &[String]) -> Vec<String> {
    let Some(allow) = &settings.allow else {
        return Vec::new();
    };
    let unmatched = allow
        .patterns()
        .filter(|pattern| !methods.iter().any(|method| pattern.matches(method)));
    let sentences = unmatched.map(|pattern| {
        let known = methods.iter().map(String::as_str);
        let meant = nearest(pattern.as_str(), known).unwrap_or("one such as supervisor.getState");
        format!("allow: `{pattern}` names no method that supervisord has; write {meant}")
    });
    sentences.collect()
}

/// Says in the log, once, what is in the way when the proxy starts: as `check` does.
pub async fn warn(daemon: &Daemon, conf: &DaemonConf, settings: &Settings) {
    let asked = match reach(daemon).await {
        Ok(_) if settings.allow.is_none() => return,
        Ok(_) => daemon.call("system.listMethods", &[]).await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(names) => {
            let names = names.as_array().unwrap_or_default().iter();
            let mut methods: Vec<String> =
                names.filter_map(Value::as_str).map(str::to_owned).collect();
            methods.extend(twiddler_methods());
            for warning in allows_nothing(settings, &methods) {
                tracing::warn!("{warning}");
            }
        }
        // Said with the configuration.
        Err(CallError::Status(StatusCode::UNAUTHORIZED)) if has_unread_password(daemon, conf) => {}
        Err(error) => {
            let reason = about_call(&error, "supervisor.getSupervisorVersion", daemon, conf);
            tracing::warn!("{reason}");
        }
    }
}

/// Whether the daemon's file takes the password from a variable that is not set here, and no option
/// gives it.
fn has_unread_password(daemon: &Daemon, conf: &DaemonConf) -> bool {
    let mut servers = conf.servers.iter();
    let server = servers.find(|server| server.address == *daemon.address());
    let asked = server.and_then(|server| server.credentials.as_ref());
    asked.is_some_and(|asked| asked.is_unread) && daemon.own_authorization().is_none()
}

/// The proxy's own methods, with their namespace.
pub fn twiddler_methods() -> impl Iterator<Item = String> {
    let methods = METHODS.iter();
    methods.map(|method| format!("twiddler.{}", method.name))
}

/// The section that makes the daemon listen at an address.
pub fn section_of<'a>(address: &DaemonAddress, conf: &'a DaemonConf) -> &'a str {
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
