//! The daemon's include directory: the only code that puts files there.
//!
//! A file appears whole, by rename from a dot-name that the daemon never reads, and is there only
//! while the daemon reads it. Knows nothing of HTTP, RPC or what the text means.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::seam;

/// Of files that are not in their place yet. The daemon's include pattern skips such names whatever
/// it is, and what a proxy that died has left of them is taken away.
pub const HIDDEN_PREFIX: &str = ".zz-twiddler-";
/// Begins with a dot, so that the daemon never reads it.
const LOCK_NAME: &str = ".twiddler-lock";
/// Enough for the owner alone: the daemon runs as root or as the proxy does.
const MODE_OWNER: u32 = 0o600;
/// The daemon runs under another account and reads through the directory's group.
const MODE_GROUP: u32 = 0o640;

/// How a generated file gets in front of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By a link through this process: when it dies, the daemon finds nothing at the link's end,
    /// so that a file whose program it would refuse can never keep it from starting.
    Link,
    /// As a file of its own, where the daemon cannot look through this process: in another
    /// container, or under another account.
    File,
}

/// A directory that the daemon includes files from, as the proxy sees it.
#[derive(Debug)]
pub struct IncludeDir {
    dir: PathBuf,
    file_name: String,
    kept_name: Option<String>,
    mode: u32,
}

impl IncludeDir {
    /// `file_name` is what generated files are called: it matches the daemon's include pattern.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(dir: PathBuf, file_name: String) -> io::Result<Self> {
        File::open(&dir)?;
        Ok(IncludeDir {
            dir,
            file_name,
            kept_name: None,
            mode: MODE_OWNER,
        })
    }

    /// Names the file that outlives the daemon. The daemon reads it before generated files, which
    /// sort after it.
    pub fn keeping(mut self, kept_name: String) -> Self {
        self.kept_name = Some(kept_name);
        self
    }

    /// Chooses who may read generated files: only the owner where the daemon is known to be root or
    /// to run as the proxy does (`same_account`), the directory's group otherwise. Nobody else ever:
    /// values of `environment` are secrets.
    pub fn readable_for(mut self, same_account: bool) -> Self {
        self.mode = if same_account { MODE_OWNER } else { MODE_GROUP };
        self
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Puts a file with `text` in front of the daemon until the returned guard is dropped.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it; nothing is left behind then.
    pub fn stage(&self, text: &str, delivery: Delivery) -> io::Result<Staged> {
        let file = self.write(text)?;
        seam::reach("written");
        let visible = self.dir.join(&self.file_name);
        match delivery {
            Delivery::File => {
                file.persist(&visible).map_err(|error| error.error)?;
                let paths = vec![TempPath::try_from_path(visible)?];
                Ok(Staged {
                    paths,
                    _handle: None,
                })
            }
            Delivery::Link => {
                // Opened anew for each file: the directory may have been put in its place since.
                let handle = File::open(&self.dir)?;
                let target = through_this_process(&handle, file.path());
                let link = self
                    .temporary()
                    .make_in(&self.dir, |path| symlink(&target, path))?;
                seam::reach("linked");
                link.persist(&visible).map_err(|error| error.error)?;
                let paths = vec![TempPath::try_from_path(visible)?, file.into_temp_path()];
                Ok(Staged {
                    paths,
                    _handle: Some(handle),
                })
            }
        }
    }

    /// Writes what is to outlive the daemon, under a name that it does not read yet.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it.
    pub fn prepare(&self, text: &str) -> io::Result<Prepared> {
        let file = self.write(text)?;
        file.as_file().sync_all()?;
        Ok(Prepared(file))
    }

    /// Puts what was prepared in the place of what was kept before, in one step.
    ///
    /// # Errors
    /// When the directory does not allow it; what was kept before stays then.
    pub fn keep(&self, prepared: Prepared) -> io::Result<()> {
        let Some(name) = &self.kept_name else {
            return Ok(());
        };
        prepared
            .0
            .persist(self.dir.join(name))
            .map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()
    }

    /// What is kept now; nothing where that is not there or no text.
    pub fn kept(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join(self.kept_name.as_ref()?)).ok()
    }

    /// Takes away what was kept.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn keep_nothing(&self) -> io::Result<()> {
        let Some(name) = &self.kept_name else {
            return Ok(());
        };
        match std::fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes away what a proxy that died has left, and says which files those were.
    ///
    /// # Errors
    /// When the directory cannot be read or a file not be removed.
    pub fn sweep(&self) -> io::Result<Vec<PathBuf>> {
        let mut swept = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let ours = name
                .to_str()
                .is_some_and(|name| name == self.file_name || name.starts_with(HIDDEN_PREFIX));
            if ours {
                let path = self.dir.join(&name);
                std::fs::remove_file(&path)?;
                swept.push(path);
            }
        }
        Ok(swept)
    }

    fn write(&self, text: &str) -> io::Result<NamedTempFile> {
        let mut file = self
            .temporary()
            .permissions(Permissions::from_mode(self.mode))
            .tempfile_in(&self.dir)?;
        if self.mode == MODE_GROUP {
            // Allowed where the proxy is in that group. Where not, the daemon must be in the
            // proxy's own.
            let group = std::fs::metadata(&self.dir)?.gid();
            let _ = fchown(file.as_file(), None, Some(group));
        }
        file.write_all(text.as_bytes())?;
        Ok(file)
    }

    fn temporary(&self) -> tempfile::Builder<'static, 'static> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(HIDDEN_PREFIX);
        builder
    }
}

/// A path to a file of the directory behind `handle` that ends with this process. Where process
/// numbers mean other processes, it leads nowhere or to the same file.
fn through_this_process(handle: &File, file: &Path) -> PathBuf {
    let handle = format!("/proc/{}/fd/{}", std::process::id(), handle.as_raw_fd());
    Path::new(&handle).join(file.file_name().unwrap_or_default())
}

/// Held while a proxy uses a directory. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held, not used")] File);

impl DirLock {
    /// Takes the directory for this process.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy uses it; or why it cannot be used.
    pub fn take(dir: &Path) -> io::Result<Self> {
        let path = dir.join(LOCK_NAME);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock(file)),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another twiddler is in front of the same supervisord: stop it first",
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// What is to be kept, not in its place yet; dropping it takes it away.
#[derive(Debug)]
pub struct Prepared(NamedTempFile);

/// A generated file that the daemon can read; dropping it takes it away.
#[derive(Debug)]
pub struct Staged {
    paths: Vec<TempPath>,
    /// The link leads through it.
    _handle: Option<File>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        for path in self.paths.drain(..) {
            let name = path.to_path_buf();
            match path.close() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let path = name.display();
                    tracing::error!(%error, %path, "a generated file cannot be taken away: supervisord goes on reading it");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn open(dir: &Path) -> IncludeDir {
        IncludeDir::open(dir.into(), "zz-twiddler.conf".into()).unwrap()
    }

    #[test]
    fn a_staged_file_is_there_until_its_guard_goes() {
        for delivery in [Delivery::File, Delivery::Link] {
            let dir = tempfile::tempdir().unwrap();
            let staged = open(dir.path()).stage("[group:a]\n", delivery).unwrap();
            let visible: Vec<String> = names(dir.path())
                .into_iter()
                .filter(|name| !name.starts_with('.'))
                .collect();
            assert_eq!(visible, ["zz-twiddler.conf"]);
            drop(staged);
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn a_link_leads_to_the_text_while_its_guard_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = open(dir.path())
            .stage("[group:a]\n", Delivery::Link)
            .unwrap();
        let path = dir.path().join("zz-twiddler.conf");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[group:a]\n");
        // As when the process dies.
        staged._handle = None;
        assert!(std::fs::read_to_string(&path).is_err());
        assert!(std::fs::symlink_metadata(&path).is_ok());
    }

    #[test]
    fn sweeping_takes_our_files_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "zz-twiddler.conf",
            ".zz-twiddler-x1",
            "user.conf",
            ".hidden",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(open(dir.path()).sweep().unwrap().len(), 2);
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, [".hidden", "user.conf"]);
    }

    #[test]
    fn nobody_else_may_read_a_generated_file() {
        let dir = tempfile::tempdir().unwrap();
        for (same_account, mode) in [(true, 0o600), (false, 0o640)] {
            let include = open(dir.path()).readable_for(same_account);
            let _staged = include.stage("", Delivery::File).unwrap();
            let path = dir.path().join("zz-twiddler.conf");
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
                mode
            );
        }
    }

    #[test]
    fn a_directory_has_one_proxy_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let refused = DirLock::take(dir.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        drop(lock);
        DirLock::take(dir.path()).unwrap();
    }
}
