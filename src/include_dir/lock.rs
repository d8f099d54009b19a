//! One proxy at a time in an include directory.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};
use nix::unistd::Uid;

use super::own_file;

/// Begins with a dot, so that the daemon never reads it.
pub(super) const LOCK_NAME: &str = ".twiddler-lock";
/// Strangers cannot open it, so they cannot hold it.
const MODE: u32 = 0o600;
const OPEN_TO_OTHERS: u32 = 0o077;
/// Somebody who cleans up behind a proxy that was killed holds the lock for less than this.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// What is read of what a proxy says of itself.
const LONGEST: u64 = 500;
/// Where the kernel lists who holds which lock (proc(5)).
const LOCKS: &str = "/proc/locks";

/// Held while a proxy uses a directory. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct DirLock {
    file: File,
    dir: PathBuf,
    addresses: String,
}

impl DirLock {
    /// Takes the directory for this process, after a moment if somebody is still cleaning up there.
    /// `like` is whose the lock is to be when there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy uses it; or why the lock cannot be opened.
    pub(super) fn take(dir: &Path, like: Option<&std::fs::Metadata>) -> io::Result<Self> {
        let path = dir.join(LOCK_NAME);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_late = Instant::now() >= deadline;
            let file = open(&path, like)?;
            if file.metadata()?.mode() & OPEN_TO_OTHERS != 0 {
                file.set_permissions(Permissions::from_mode(MODE))?;
            }
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => {
                    let mut lock = DirLock {
                        file,
                        dir: dir.to_owned(),
                        addresses: String::new(),
                    };
                    lock.describe("");
                    return Ok(lock);
                }
                Ok(()) | Err(TryLockError::WouldBlock) if is_late => {
                    return Err(busy(dir, &holder_of(&file)));
                }
                Err(TryLockError::WouldBlock) if is_held_by_stranger(&file) => {
                    // He opened it while others could. He cannot open a new one.
                    std::fs::remove_file(&path)?;
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Takes the directory again where somebody has removed the lock's file. Whether that was so.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy has the directory by now.
    pub fn hold(&mut self) -> io::Result<bool> {
        if is_at(&self.file, &self.dir.join(LOCK_NAME)) {
            return Ok(false);
        }
        match DirLock::take(&self.dir, self.file.metadata().ok().as_ref()) {
            Ok(again) => {
                self.file = again.file;
                self.describe(&self.addresses.clone());
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(error),
            // Where nothing can be written, a change says so, and nobody else can take it either.
            Err(error) => {
                tracing::debug!(%error, "the lock is gone and cannot be made again");
                Ok(false)
            }
        }
    }

    /// Says in the lock's file who holds it: this process, listening on `addresses`.
    pub fn describe(&mut self, addresses: &str) {
        addresses.clone_into(&mut self.addresses);
        let mut text = format!("pid {}", std::process::id());
        if !addresses.is_empty() {
            text = format!("{text}, {addresses}");
        }
        text.push_str("\n# locked by twiddler while it runs, so that there is one at a time\n");
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(text.as_bytes()));
        if let Err(error) = written {
            tracing::debug!(%error, "the lock does not say who holds it");
        }
    }
}

/// Who holds the lock of `dir`; nobody where nobody does. Takes it for an instant.
///
/// # Errors
/// The sentence with which [`DirLock::take`] would refuse.
pub(super) fn holder(dir: &Path) -> io::Result<Option<Holder>> {
    let path = dir.join(LOCK_NAME);
    match own_file::open(&path, File::options().read(true).write(true)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(holder_of(&file))),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => match lock_holder(&path.symlink_metadata()?) {
            Some(pid) => Ok(Some(Holder(format!("pid {pid}")))),
            None => Err(error),
        },
    }
}

/// The lock that a process that was killed has left, if nobody takes it within a moment.
pub(super) fn take_left(dir: &Path) -> Option<File> {
    let path = dir.join(LOCK_NAME);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let file = own_file::open(&path, File::options().read(true).write(true)).ok()?;
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            Err(_) => return None,
        }
    }
}

/// What is known of a proxy that holds a lock: its process number, and where it listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder(String);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_str() {
            "" => f.write_str("another twiddler"),
            known => write!(f, "another twiddler ({known})"),
        }
    }
}

/// Why a proxy does not start beside the one that holds `dir`.
pub(super) fn busy(dir: &Path, holder: &Holder) -> io::Error {
    let dir = dir.display();
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!(
            "{holder} is in front of the same supervisord, with the include directory {dir}: stop it first"
        ),
    )
}

fn open(path: &Path, like: Option<&std::fs::Metadata>) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    match own_file::open(path, options.clone().create_new(true).mode(MODE)) {
        Ok(file) => own_file::give(&file, like).map(|()| file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            own_file::open(path, &mut options)
        }
        Err(error) => Err(error),
    }
}

/// Whether the file of that name is still this one.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |found: std::fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(ours), Ok(there)) => place(ours) == place(there),
        _ => false,
    }
}

fn holder_of(file: &File) -> Holder {
    let mut text = String::new();
    let mut file = file;
    let read = file
        .rewind()
        .and_then(|()| file.take(LONGEST).read_to_string(&mut text));
    let line = text.lines().next().filter(|_| read.is_ok());
    let known = line.filter(|line| line.starts_with("pid ") && !line.contains(char::is_control));
    let pid = || {
        let pid = lock_holder(&file.metadata().ok()?)?;
        Some(format!("pid {pid}"))
    };
    Holder(known.map(str::to_owned).or_else(pid).unwrap_or_default())
}

/// Whether somebody holds the lock whose account has no business with it.
fn is_held_by_stranger(file: &File) -> bool {
    let account = || {
        let found = file.metadata().ok()?;
        let process = PathBuf::from(format!("/proc/{}", lock_holder(&found)?));
        let holder = process.metadata().ok()?.uid();
        Some(![0, found.uid(), Uid::effective().as_raw()].contains(&holder))
    };
    account().unwrap_or(false)
}

/// The process that holds a lock on this file, where it can be seen from here.
fn lock_holder(found: &std::fs::Metadata) -> Option<i32> {
    let place = format!(
        "{:02x}:{:02x}:{}",
        major(found.dev()),
        minor(found.dev()),
        found.ino()
    );
    holder_in(&std::fs::read_to_string(LOCKS).ok()?, &place)
}

fn holder_in(locks: &str, place: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, at, ..] if *at == place => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_in_the_list_of_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:19:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 482 00:19:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 00:19:42 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 11 fe:01:43 0 EOF\n";
        assert_eq!(holder_in(locks, "00:19:42"), Some(482));
        assert_eq!(holder_in(locks, "fe:01:43"), Some(11));
        assert_eq!(holder_in(locks, "fe:01:44"), None);
    }

    #[test]
    fn a_directory_has_one_proxy_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = DirLock::take(dir.path(), None).unwrap();
        for (addresses, known) in [
            ("", ""),
            ("http://127.0.0.1:9002", ", http://127.0.0.1:9002"),
        ] {
            lock.describe(addresses);
            let refused = DirLock::take(dir.path(), None).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
            let said = format!("another twiddler (pid {}{known})", std::process::id());
            assert!(refused.to_string().starts_with(&said), "{refused}");
            assert_eq!(holder(dir.path()).unwrap().unwrap().to_string(), said);
        }
        drop(lock);
        assert_eq!(holder(dir.path()).unwrap(), None);
        DirLock::take(dir.path(), None).unwrap();
    }

    #[test]
    fn an_old_lock_that_others_could_hold_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_NAME);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let _lock = DirLock::take(dir.path(), None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
    }
}
