//! The steps of a start, and the error text of each.
//!
//! `serve` takes the steps one after another and stops at the first that fails. `check` tries all of them
//! and prints the same texts. Every text names the file, the section and the key, if there are any, and
//! what to write.

mod allocator;
mod child_url;
mod listen;
mod reach;

use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User};

use crate::config::{self, Settings};
use crate::daemon::Daemon;
use crate::include_dir::IncludeDir;
use crate::server::tls::Tls;

pub use allocator::set_purge_delay;
pub use child_url::child_url;
pub use listen::{client_url, listen, status_command, try_listen};
pub use reach::{
    Identity, call_error, reach, section_of, twiddler_methods, unmatched_patterns, warn,
};

/// The part of the persist file's name that differs from the generated file's. The persist file sorts
/// before the generated file, whose sections win over it.
const PERSIST_STEM: &str = "persist";

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not valid; another start fails, too. The text has a sentence on each line.
    #[error("{0}")]
    Misconfigured(String),
    /// The operating system or the daemon failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Opens the include directory. `stem` becomes part of the generated file's name. Files in it are readable
/// for the account of `daemon`; without a daemon, or if its account is not known, for the directory's
/// group.
///
/// # Errors
/// When the directory cannot be used, or no name of a generated file matches the daemon's pattern.
pub async fn include_dir(
    include: &config::IncludeTarget,
    stem: &str,
    daemon: Option<&Daemon>,
) -> Result<IncludeDir, StartError> {
    let (dir, pattern) = (&include.dir, &include.file_pattern);
    let name = |stem| {
        config::generated_name(pattern, stem).ok_or_else(|| {
            StartError::Misconfigured(format!(
                "[include] files: no file that twiddler writes can match {pattern}; write {}/*.conf beside it",
                dir.display()
            ))
        })
    };
    let include_dir = IncludeDir::open(dir.clone(), name(stem)?);
    let include_dir = include_dir.map_err(|error| unusable_dir(dir, &error))?;
    let account = match daemon {
        Some(daemon) => daemon.account().await,
        None => None,
    };
    let own = nix::unistd::geteuid().as_raw();
    let same_account = account.is_some_and(|account| account == 0 || account == own);
    Ok(include_dir
        .with_persist_file(name(PERSIST_STEM)?)
        .readable_for(same_account))
}

/// The error for an include directory that cannot be used.
pub fn unusable_dir(dir: &Path, error: &io::Error) -> StartError {
    StartError::Misconfigured(format!(
        "cannot use the include directory {}: {error}",
        dir.display()
    ))
}

/// Reads certificate and key; `None` if none are configured.
///
/// # Errors
/// When they cannot be read, or are not valid.
pub fn tls(settings: &Settings) -> Result<Option<Arc<Tls>>, StartError> {
    let tls = settings.tls.as_ref().map(Tls::load).transpose();
    let tls = tls.map_err(|error| StartError::Misconfigured(error.to_string()))?;
    Ok(tls.map(Arc::new))
}

/// The account of this process, for texts about permissions.
pub fn account() -> String {
    let uid = nix::unistd::geteuid();
    format!("{} (uid {uid})", user_name(uid.as_raw()))
}

/// The name of an account, or its number.
pub fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// The name of a group, or its number.
pub fn group_name(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

/// The commands by which root gives this process the permission to write a file.
pub fn make_writable(path: &Path) -> String {
    let (group, path) = (group_name(nix::unistd::getegid().as_raw()), path.display());
    format!("as root: chgrp {group} {path} && chmod g+rw {path}")
}
