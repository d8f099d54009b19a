//! The steps of a start, and the sentence about each that fails.
//!
//! `serve` takes them one after another and stops at the first that fails; `check` tries all of them
//! and says the same of each. Every sentence names the file, the section and the key where there is
//! one, and what to write.

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

pub use allocator::give_back_at_once;
pub use child_url::child_url;
pub use listen::{client_url, listen, status_command, try_listen};
pub use reach::{Reached, about_call, allows_nothing, reach, section_of, twiddler_methods, warn};

/// Marks the file of what outlives the daemon. It sorts before that of a change, which may say
/// otherwise.
const PERSIST_STEM: &str = "persist";

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something was told that cannot be right; starting again does not help. One sentence a line.
    #[error("{0}")]
    Misconfigured(String),
    /// The system does not give what is needed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Opens the include directory. What is written there is for the account of `daemon`; for the
/// directory's group where there is none.
///
/// # Errors
/// When that is not possible, or no name for a generated file matches the daemon's pattern.
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
    let opened = IncludeDir::open(dir.clone(), name(stem)?);
    let opened = opened.map_err(|error| unusable_dir(dir, &error))?;
    let account = match daemon {
        Some(daemon) => daemon.account().await,
        None => None,
    };
    let own = nix::unistd::geteuid().as_raw();
    let same_account = account.is_some_and(|account| account == 0 || account == own);
    Ok(opened
        .keeping(name(PERSIST_STEM)?)
        .readable_for(same_account))
}

/// What is said of an include directory that cannot be used.
pub fn unusable_dir(dir: &Path, error: &io::Error) -> StartError {
    StartError::Misconfigured(format!(
        "cannot use the include directory {}: {error}",
        dir.display()
    ))
}

/// Reads certificate and key, where there are any.
///
/// # Errors
/// When they cannot be used.
pub fn tls(settings: &Settings) -> Result<Option<Arc<Tls>>, StartError> {
    let loaded = settings.tls.as_ref().map(Tls::load).transpose();
    let loaded = loaded.map_err(|error| StartError::Misconfigured(error.to_string()))?;
    Ok(loaded.map(Arc::new))
}

/// The account that this process runs under, for sentences about permissions.
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

/// What to type as root for this process to be allowed to write a file.
pub fn make_writable(path: &Path) -> String {
    let (group, shown) = (group_name(nix::unistd::getegid().as_raw()), path.display());
    format!("as root: chgrp {group} {shown} && chmod g+rw {shown}")
}
