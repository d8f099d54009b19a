//! Refuses log files on which the daemon would block when it opens them.
//!
//! The proxy judges the files that it sees; the daemon's container may have other files at the same
//! paths. It accepts the daemon's own output (`/dev/stdout`, `/dev/fd/N`).

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};

use super::Program;
use crate::fault::{INCORRECT_PARAMETERS, fault};
use crate::python::repr;
use crate::xmlrpc::Fault;

/// The number of symbolic links that Linux follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// How long to wait for a file system. A program is accepted if the file system does not answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Paths below these mean another file in each process.
const PER_PROCESS: [&str; 5] = [
    "/proc",
    "/dev/fd",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
];

/// Refuses a program with a log file on which the daemon would block.
///
/// # Errors
/// The fault `INCORRECT_PARAMETERS` with the option and the reason.
pub(crate) async fn check(program: &Program) -> Result<(), Fault> {
    let files = program.log_files();
    let is_path = |path: &str| path.starts_with('/');
    if !files.iter().any(|(_, path)| is_path(path)) {
        return Ok(());
    }
    let search = tokio::task::spawn_blocking(move || {
        files.into_iter().find_map(|(option, path)| {
            let reason = obstacle(Path::new(&path)).filter(|_| is_path(&path))?;
            Some(format!("option {}: {reason}", repr(&option)))
        })
    });
    match tokio::time::timeout(TIMEOUT, search).await {
        Ok(Ok(Some(reason))) => Err(fault(INCORRECT_PARAMETERS, reason)),
        _ => Ok(()),
    }
}

/// Follows the symbolic links of `path`. Returns why the daemon must not open the file, or `None` if it
/// may.
fn obstacle(path: &Path) -> Option<&'static str> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if PER_PROCESS.iter().any(|prefix| path.starts_with(prefix)) {
            return None;
        }
        let metadata = path.symlink_metadata().ok()?;
        if !metadata.is_symlink() {
            return obstacle_of(&metadata);
        }
        path = link_target(&path)?;
    }
    None
}

fn link_target(link: &Path) -> Option<PathBuf> {
    Some(link.parent()?.join(std::fs::read_link(link).ok()?))
}

fn obstacle_of(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_fifo() {
        Some("is a FIFO, which keeps supervisord waiting until somebody reads from it")
    } else if kind.is_block_device() {
        Some("is a block device, not a log file")
    } else if kind.is_char_device() && !opens_at_once(metadata.rdev()) {
        Some("is a device that may keep supervisord waiting")
    } else {
        None
    }
}

/// Returns whether the character device is a memory device such as `/dev/null`, a console or a pseudo
/// terminal (the kernel's `devices.txt`).
fn opens_at_once(device: u64) -> bool {
    match major(device) {
        1 | 5 | 136..=143 => true,
        4 => minor(device) < 64,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, makedev};

    use super::*;

    #[test]
    fn only_files_that_block_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        symlink("fifo", path("link")).unwrap();
        symlink(path("link"), path("link-to-link")).unwrap();
        symlink("/dev/stdout", path("stdout")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for (name, refused) in [
            ("file", false),
            ("missing", false),
            ("fifo", true),
            ("link", true),
            ("link-to-link", true),
            ("stdout", false),
            ("loop", false),
        ] {
            assert_eq!(obstacle(&path(name)).is_some(), refused, "{name}");
        }
        for path in ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"] {
            assert_eq!(obstacle(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn devices_that_open_at_once_are_recognized_by_their_numbers() {
        for (device, at_once) in [
            ((1, 3), true),
            ((5, 1), true),
            ((136, 0), true),
            ((4, 64), false),
            ((10, 1), false),
        ] {
            assert_eq!(
                opens_at_once(makedev(device.0, device.1)),
                at_once,
                "{device:?}"
            );
        }
    }
}
