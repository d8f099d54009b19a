//! Log files that the daemon would wait for when it opens them, and serve nobody meanwhile.
//!
//! Only what is there for the proxy can be judged: another container may have something else, and the
//! daemon's own output (`/dev/stdout`, `/dev/fd/N`) is its own business.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};

use super::Program;
use crate::fault::{INCORRECT_PARAMETERS, fault};
use crate::python::repr;
use crate::xmlrpc::Fault;

/// As many links as Linux follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// A file system that does not answer says nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// Below these, what a name means depends on who asks.
const OF_EACH_PROCESS: [&str; 5] = [
    "/proc",
    "/dev/fd",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
];

/// Refuses a program that logs to something that the daemon would wait for.
pub(crate) async fn check(program: &Program) -> Result<(), Fault> {
    let files = program.log_files();
    let is_path = |path: &str| path.starts_with('/');
    if !files.iter().any(|(_, path)| is_path(path)) {
        return Ok(());
    }
    let look = tokio::task::spawn_blocking(move || {
        files.into_iter().find_map(|(option, path)| {
            let reason = obstacle(Path::new(&path)).filter(|_| is_path(&path))?;
            Some(format!("option {}: {reason}", repr(&option)))
        })
    });
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(Some(reason))) => Err(fault(INCORRECT_PARAMETERS, reason)),
        _ => Ok(()),
    }
}

/// Why the daemon must not open a file, if it must not.
fn obstacle(path: &Path) -> Option<&'static str> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if OF_EACH_PROCESS.iter().any(|own| path.starts_with(own)) {
            return None;
        }
        let found = path.symlink_metadata().ok()?;
        if !found.is_symlink() {
            return obstacle_of(&found);
        }
        path = next(&path)?;
    }
    None
}

/// Where a link leads.
fn next(link: &Path) -> Option<PathBuf> {
    Some(link.parent()?.join(std::fs::read_link(link).ok()?))
}

fn obstacle_of(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    if kind.is_fifo() {
        Some("is a FIFO, which keeps supervisord waiting until somebody reads from it")
    } else if kind.is_block_device() {
        Some("is a block device, not a log file")
    } else if kind.is_char_device() && !answers_at_once(found.rdev()) {
        Some("is a device that may keep supervisord waiting")
    } else {
        None
    }
}

/// Memory devices such as `/dev/null`, consoles and pseudo terminals (the kernel's `devices.txt`).
fn answers_at_once(device: u64) -> bool {
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
    fn only_what_is_waited_for_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        std::fs::write(place("file"), "").unwrap();
        nix::unistd::mkfifo(&place("fifo"), Mode::S_IRWXU).unwrap();
        symlink("fifo", place("link")).unwrap();
        symlink(place("link"), place("link-to-link")).unwrap();
        symlink("/dev/stdout", place("stdout")).unwrap();
        symlink("round", place("round")).unwrap();
        for (name, refused) in [
            ("file", false),
            ("missing", false),
            ("fifo", true),
            ("link", true),
            ("link-to-link", true),
            ("stdout", false),
            ("round", false),
        ] {
            assert_eq!(obstacle(&place(name)).is_some(), refused, "{name}");
        }
        for path in ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"] {
            assert_eq!(obstacle(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn devices_that_answer_at_once_are_known_by_their_numbers() {
        for (device, at_once) in [
            ((1, 3), true),
            ((5, 1), true),
            ((136, 0), true),
            ((4, 64), false),
            ((10, 1), false),
        ] {
            assert_eq!(
                answers_at_once(makedev(device.0, device.1)),
                at_once,
                "{device:?}"
            );
        }
    }
}
