//! The lock that keeps a second proxy out of an include directory.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};
use nix::unistd::Uid;

use super::own_file;

/// The lock file. The name begins with a dot, so the daemon never reads it.
pub(super) const LOCK_NAME: &str = ".twiddler-lock";
/// Other accounts cannot open the file, so they cannot lock it.
const MODE: u32 = 0o600;
const OTHERS_MASK: u32 = 0o077;
/// How long to wait for the lock. The clean-up process of a killed proxy holds it for less than this.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The maximum number of bytes to read from the lock file.
const MAX_TEXT: u64 = 500;
/// The kernel's list of locks and their holders (proc(5)).
const PROC_LOCKS: &str = "/proc/locks";

/// The lock on an include directory. The kernel releases it when the process ends, for any reason.
#[derive(Debug)]
pub struct DirLock {
    file: File,
    dir: PathBuf,
    addresses: String,
}

impl DirLock {
    /// Locks the directory for this process. Waits a moment if a clean-up process holds the lock. A new
    /// lock file gets the owner of `like`.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy uses the directory; another error when the lock
    /// file cannot be opened.
    pub(super) fn take(dir: &Path, like: Option<&std::fs::Metadata>) -> io::Result<Self> {
        let path = dir.join(LOCK_NAME);
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let is_timeout = Instant::now() >= deadline;
            let file = open(&path, like)?;
            if file.metadata()?.mode() & OTHERS_MASK != 0 {
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
                Ok(()) | Err(TryLockError::WouldBlock) if is_timeout => {
                    return Err(busy(dir, &holder_of(&file)));
                }
                Err(TryLockError::WouldBlock) if is_held_by_other_account(&file) => {
                    // The other account opened the file while its mode allowed that. It cannot open a new
                    // file.
                    std::fs::remove_file(&path)?;
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Locks the directory again if somebody has removed the lock file. Returns whether that was so.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy has locked the directory.
    pub fn retake(&mut self) -> io::Result<bool> {
        if is_at(&self.file, &self.dir.join(LOCK_NAME)) {
            return Ok(false);
        }
        match DirLock::take(&self.dir, self.file.metadata().ok().as_ref()) {
            Ok(new_lock) => {
                self.file = new_lock.file;
                self.describe(&self.addresses.clone());
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(error),
            // If the directory is not writable, the next change reports it, and no other proxy can lock it
            // either.
            Err(error) => {
                tracing::debug!(%error, "the lock file was removed and cannot be created again");
                Ok(false)
            }
        }
    }

    /// Writes the holder to the lock file: this process, listening on `addresses`.
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
            tracing::debug!(%error, "cannot write the holder to the lock file");
        }
    }
}

/// Returns the proxy that holds the lock of `dir`, if any. Takes the lock for an instant to find out.
///
/// # Errors
/// The error that [`DirLock::take`] would return.
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

/// Takes the lock of a killed process. Returns `None` if another process takes it within a moment.
pub(super) fn take_abandoned(dir: &Path) -> Option<File> {
    let path = dir.join(LOCK_NAME);
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        let file = own_file::open(&path, File::options().read(true).write(true)).ok()?;
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY_INTERVAL),
            Err(_) => return None,
        }
    }
}

/// A proxy that holds a lock, with its process number and addresses if they are known.
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

/// The error of a second proxy in the directory that `holder` uses.
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

/// Returns whether `path` still names this open file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open_file), Ok(path_file)) => identity(open_file) == identity(path_file),
        _ => false,
    }
}

fn holder_of(file: &File) -> Holder {
    let mut text = String::new();
    let mut file = file;
    let read = file
        .rewind()
        .and_then(|()| file.take(MAX_TEXT).read_to_string(&mut text));
    let line = text.lines().next().filter(|_| read.is_ok());
    let known = line.filter(|line| line.starts_with("pid ") && !line.contains(char::is_control));
    let pid = || {
        let pid = lock_holder(&file.metadata().ok()?)?;
        Some(format!("pid {pid}"))
    };
    Holder(known.map(str::to_owned).or_else(pid).unwrap_or_default())
}

/// Returns whether a process of an unrelated account holds the lock.
fn is_held_by_other_account(file: &File) -> bool {
    let account = || {
        let metadata = file.metadata().ok()?;
        let process = PathBuf::from(format!("/proc/{}", lock_holder(&metadata)?));
        let holder = process.metadata().ok()?.uid();
        Some(![0, metadata.uid(), Uid::effective().as_raw()].contains(&holder))
    };
    account().unwrap_or(false)
}

/// The process that holds a lock on this file. `None` if it is not visible from here.
fn lock_holder(metadata: &std::fs::Metadata) -> Option<i32> {
    let identity = format!(
        "{:02x}:{:02x}:{}",
        major(metadata.dev()),
        minor(metadata.dev()),
        metadata.ino()
    );
    holder_in(&std::fs::read_to_string(PROC_LOCKS).ok()?, &identity)
}

fn holder_in(locks: &str, identity: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, at, ..] if *at == identity => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_read_from_proc_locks() {
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
            let expected = format!("another twiddler (pid {}{known})", std::process::id());
            assert!(refused.to_string().starts_with(&expected), "{refused}");
            assert_eq!(holder(dir.path()).unwrap().unwrap().to_string(), expected);
        }
        drop(lock);
        assert_eq!(holder(dir.path()).unwrap(), None);
        DirLock::take(dir.path(), None).unwrap();
    }

    #[test]
    fn the_mode_of_an_old_lock_file_is_corrected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_NAME);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let _lock = DirLock::take(dir.path(), None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
    }
}
