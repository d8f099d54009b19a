//! The daemon's include directory. Only this module writes files there.
//!
//! A file appears complete, by rename from a name that begins with a dot, which the daemon never reads. A
//! generated file exists only while the daemon reads it. This module knows nothing of HTTP, RPC or the
//! meaning of the text.

mod lock;
mod own_file;
mod persist_file;
mod staging;
mod watcher;

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tempfile::NamedTempFile;

pub use lock::{DirLock, Holder};
pub use persist_file::{FileId, Growth, Prepared, Withheld};
pub use staging::{Delivery, Staged};
pub use watcher::{COMMAND as CLEAN_UP_COMMAND, clean_up_after_proxy};

use staging::PrivateDir;
use watcher::Watcher;

/// The prefix of files before they are renamed into place. The daemon's include pattern never matches a
/// name that begins with a dot. The next proxy removes such files of a killed proxy.
const HIDDEN_PREFIX: &str = ".zz-twiddler-";
/// Only the owner may read: the daemon runs as root or under the proxy's account.
const MODE_OWNER: u32 = 0o600;
/// The daemon runs under another account and reads through the directory's group.
const MODE_GROUP: u32 = 0o640;

/// The error text if the daemon's `account` cannot read the files in `dir`, with the remedy.
pub fn unreadable_for(account: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "supervisord runs as {account} and cannot read what twiddler writes in {dir}; chgrp {dir} to a group that both accounts are in, and chmod 2770 {dir}"
    )
}

/// The error text if `dir` is not writable, with the remedy.
pub fn unwritable(dir: &Path, error: &io::Error) -> String {
    let dir = dir.display();
    let instead = match error.kind() {
        // The systemd unit may write only to the directory that existed when it was started.
        io::ErrorKind::ReadOnlyFilesystem => {
            "; if it was made anew while twiddler ran, restart twiddler (systemctl restart twiddler)"
                .to_owned()
        }
        io::ErrorKind::NotFound => format!(
            "; make it again (mkdir {dir}), and restart twiddler if it is a systemd service (systemctl restart twiddler)"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "; write chgrp GROUP {dir} && chmod 2775 {dir}, with a group of twiddler's account"
        ),
        _ => String::new(),
    };
    format!("cannot write in the include directory {dir}: {error}{instead}")
}

/// An include directory of the daemon, as the proxy sees it.
#[derive(Debug)]
pub struct IncludeDir {
    dir: PathBuf,
    file_name: String,
    persist_name: Option<String>,
    mode: u32,
    watcher: Option<Watcher>,
    /// The directory that the next [`Delivery::Link`] uses.
    private: Mutex<Option<Arc<PrivateDir>>>,
}

impl IncludeDir {
    /// Opens a directory. `file_name` is the name of generated files, which the daemon's include pattern
    /// matches.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(dir: PathBuf, file_name: String) -> io::Result<Self> {
        File::open(&dir)?;
        Ok(IncludeDir {
            dir,
            file_name,
            persist_name: None,
            mode: MODE_OWNER,
            watcher: None,
            private: Mutex::default(),
        })
    }

    /// Lets a clean-up process remove this proxy's files if this process is killed. Only for the holder of
    /// the lock.
    pub fn watched(mut self) -> Self {
        let persist_name = self.persist_name.clone().unwrap_or_default();
        let names = [self.file_name.clone(), persist_name];
        self.watcher = Some(Watcher::new(self.dir.clone(), names));
        self
    }

    /// Sets the name of the persist file. The daemon reads it before generated files, because their names
    /// sort after it.
    pub fn with_persist_file(mut self, name: String) -> Self {
        self.persist_name = Some(name);
        self
    }

    /// Sets who may read generated files: only the owner if the daemon is root or runs under the proxy's
    /// account (`same_account`), and also the directory's group otherwise. No other account may ever,
    /// because values of `environment` are secrets.
    pub fn readable_for(mut self, same_account: bool) -> Self {
        self.mode = if same_account { MODE_OWNER } else { MODE_GROUP };
        self
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Locks this directory for this process.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy uses it; or an error that names the file in the
    /// way. No file of the proxy is opened through a link, and a FIFO is not waited for.
    pub fn lock(&self) -> io::Result<DirLock> {
        let lock = DirLock::take(&self.dir, self.owner_of(lock::LOCK_NAME).as_ref())?;
        self.ensure_replaceable()?;
        Ok(lock)
    }

    /// The proxy that uses this directory now, if any.
    ///
    /// # Errors
    /// The error that [`IncludeDir::lock`] would return for another reason.
    pub fn holder(&self) -> io::Result<Option<Holder>> {
        let holder = lock::holder(&self.dir)?;
        self.ensure_replaceable()?;
        Ok(holder)
    }

    /// The error with which [`IncludeDir::lock`] refuses because of `holder`.
    pub fn busy(&self, holder: &Holder) -> io::Error {
        lock::busy(&self.dir, holder)
    }

    /// Makes sure that no other proxy uses one of the directories in `others`. This directory is skipped.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when one does.
    pub fn ensure_alone(&self, others: impl Iterator<Item = PathBuf>) -> io::Result<()> {
        let identity = |dir: &Path| Some((dir.metadata().ok()?.dev(), dir.metadata().ok()?.ino()));
        let own_dir = identity(&self.dir);
        for other in others.filter(|other| identity(other) != own_dir) {
            // An unreadable lock does not tell whether a proxy holds it.
            if let Ok(Some(holder)) = lock::holder(&other) {
                return Err(lock::busy(&other, &holder));
            }
        }
        Ok(())
    }

    fn ensure_replaceable(&self) -> io::Result<()> {
        own_file::ensure_replaceable(&self.dir.join(&self.file_name))
    }

    /// Opens the proxy's file of this name for reading. Returns `None` if there is none.
    ///
    /// # Errors
    /// An error that names the file: it is a link or no regular file, or is not readable.
    pub fn read(&self, name: &str) -> io::Result<Option<File>> {
        own_file::open_to_read(&self.dir.join(name))
    }

    /// Replaces the proxy's file of this name in one step, and returns it open. Only its owner may read it.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it. The old file stays then.
    pub fn replace(
        &self,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<File> {
        let mut file = self.temporary().tempfile_in(&self.dir)?;
        own_file::give(file.as_file(), self.owner_of(name).as_ref())?;
        write(file.as_file_mut())?;
        file.persist(self.dir.join(name))
            .map_err(|error| error.error)
    }

    /// The metadata whose owner a file of this name gets: of the present file, of the lock file, or of the
    /// directory.
    fn owner_of(&self, name: &str) -> Option<Metadata> {
        let own = [name, lock::LOCK_NAME].map(|name| self.dir.join(name));
        let metadata = own.iter().find_map(|path| path.symlink_metadata().ok());
        metadata.or_else(|| self.dir.metadata().ok())
    }

    /// Removes the files that a killed proxy left, and puts a withheld persist file back. Returns the
    /// removed paths, without those of private directories that had no text.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file that the daemon reads cannot be removed.
    pub fn sweep(&self) -> io::Result<Vec<PathBuf>> {
        self.put_back()?;
        let mut removed_paths = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_read = name == *self.file_name;
            if !is_read
                && !name
                    .as_encoded_bytes()
                    .starts_with(HIDDEN_PREFIX.as_bytes())
            {
                continue;
            }
            let had_text = !staging::is_waiting(&path);
            let removed = if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match removed {
                Ok(()) if had_text => removed_paths.push(path),
                Ok(()) => {}
                Err(error) if is_read => return Err(own_file::with_path(&path, &error)),
                // The daemon never reads it.
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot remove a file that an earlier proxy left");
                }
            }
        }
        Ok(removed_paths)
    }

    fn write(&self, text: &str) -> io::Result<NamedTempFile> {
        let mut file = self
            .temporary()
            .permissions(Permissions::from_mode(self.mode))
            .tempfile_in(&self.dir)?;
        if self.mode == MODE_GROUP {
            // This works if the proxy is in that group. If not, the daemon must be in the proxy's group.
            let group = std::fs::metadata(&self.dir)?.gid();
            let _ = fchown(file.as_file(), None, Some(group));
        }
        file.write_all(text.as_bytes())?;
        Ok(file)
    }

    fn ensure_watched(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.ensure();
        }
    }

    fn temporary(&self) -> tempfile::Builder<'static, 'static> {
        self.ensure_watched();
        let mut builder = tempfile::Builder::new();
        builder.prefix(HIDDEN_PREFIX);
        builder
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    pub(super) fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    pub(super) fn open(dir: &Path) -> IncludeDir {
        IncludeDir::open(dir.into(), "zz-twiddler.conf".into()).unwrap()
    }

    #[test]
    fn sweeping_removes_only_files_of_the_proxy() {
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

    /// Creates a file of this kind at `path`.
    fn put(kind: &str, path: &Path) {
        match kind {
            "a symbolic link" => symlink("/nowhere/at-all", path).unwrap(),
            "a directory" => std::fs::create_dir(path).unwrap(),
            "a FIFO" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            _ => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        }
    }

    #[test]
    fn links_and_fifos_in_the_place_of_own_files_are_refused() {
        for kind in ["a symbolic link", "a directory", "a FIFO", "a socket"] {
            for name in [lock::LOCK_NAME, "own", "kept.conf"] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join(name);
                put(kind, &path);
                let include = open(dir.path()).with_persist_file("kept.conf".into());
                let refused = match name {
                    "own" => include.read(name).map(drop),
                    "kept.conf" => include.read_persist_file().map(drop),
                    _ => include.lock().map(drop),
                };
                let text = refused.unwrap_err().to_string();
                let named = text.contains(path.to_str().unwrap());
                assert!(named && text.contains(kind), "{text}");
                if name == lock::LOCK_NAME {
                    assert_eq!(include.holder().unwrap_err().to_string(), text);
                }
            }
        }
    }

    #[test]
    fn the_directory_itself_may_be_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", &link).unwrap();
        let include = open(&link);
        let _lock = include.lock().unwrap();
        include.replace("own", |file| file.write_all(b"x")).unwrap();
        assert!(include.read("own").unwrap().is_some());
    }
}
