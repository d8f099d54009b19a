//! The daemon's include directory. Only this module writes files there.
//!
//! A file appears complete, by rename from a name that begins with a dot, which the daemon never reads. A
//! generated file exists only while the daemon reads it. This module knows nothing of HTTP, RPC or the
//! meaning of the text.

mod lock;
mod own_file;
mod persist_file;
mod watcher;

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink,
};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir, TempPath};

pub use lock::{DirLock, Holder};
pub use persist_file::{FileId, Growth, Prepared, Withheld};
pub use watcher::{COMMAND as CLEAN_UP_COMMAND, clean_up_after_proxy};

use watcher::Watcher;

use crate::failpoint;

/// The prefix of files before they are renamed into place. The daemon's include pattern never matches a
/// name that begins with a dot. The next proxy removes such files of a killed proxy.
const HIDDEN_PREFIX: &str = ".zz-twiddler-";
/// Only the owner may read: the daemon runs as root or under the proxy's account.
const MODE_OWNER: u32 = 0o600;
/// The mode of directories that no other account may enter.
const MODE_PRIVATE: u32 = 0o700;
/// Inside such a directory: the directory of the text, and the link through this process.
const INNER_NAME: &str = "files";
const LINK_NAME: &str = "link";
/// The daemon runs under another account and reads through the directory's group.
const MODE_GROUP: u32 = 0o640;

/// The error text if the daemon's `account` cannot read the files in `dir`, with the remedy.
pub fn unreadable_for(account: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "supervisord runs as {account} and cannot read what twiddler writes in {dir}; chgrp {dir} to a group that both accounts are in, and chmod 2770 {dir}"
    )
}

/// How a generated file reaches the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By a link through this process. If the process dies, the link leads nowhere, so that a file with a
    /// program that the daemon would refuse can never keep it from starting.
    Link,
    /// As a regular file, if the daemon cannot follow a link through this process: in another container, or
    /// under another account.
    File,
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

    /// Puts a generated file with `text` in place until the returned guard is dropped.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it. No file remains then.
    pub fn stage(&self, text: &str, delivery: Delivery) -> io::Result<Staged> {
        let visible = self.dir.join(&self.file_name);
        match delivery {
            Delivery::File => {
                let file = self.write(text)?;
                failpoint::hit("written");
                file.persist(&visible).map_err(|error| error.error)?;
                Ok(Staged {
                    visible: Some(TempPath::try_from_path(visible)?),
                    hidden: None,
                })
            }
            Delivery::Link => {
                let hidden = self.hide(text)?;
                failpoint::hit("written");
                // The link is relative, because the daemon may know the directory by another path.
                let inside = hidden.dir.path().file_name().unwrap_or_default();
                let target = Path::new(inside).join(LINK_NAME);
                let link = self
                    .temporary()
                    .make_in(&self.dir, |path| symlink(&target, path))?;
                failpoint::hit("linked");
                link.persist(&visible).map_err(|error| error.error)?;
                Ok(Staged {
                    visible: Some(TempPath::try_from_path(visible)?),
                    hidden: Some(hidden),
                })
            }
        }
    }

    /// Writes `text` to a file that is only readable through a link through this process.
    ///
    /// After this process has ended, another process of the account may get its process number and could
    /// put a file at the end of the link. But it cannot read the link, so it does not know the file name.
    /// It cannot open the directory with the original text either, so that text does not come back.
    fn hide(&self, text: &str) -> io::Result<Hidden> {
        let private = Permissions::from_mode(MODE_PRIVATE);
        let dir = self
            .temporary()
            .permissions(private)
            .tempdir_in(&self.dir)?;
        let inner = dir.path().join(INNER_NAME);
        DirBuilder::new().mode(MODE_PRIVATE).create(&inner)?;
        let handle = File::open(&inner)?;
        let name = secret_name()?;
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(MODE_OWNER)
            .open(inner.join(&name))?;
        file.write_all(text.as_bytes())?;
        let target = path_through_this_process(&handle, &name);
        symlink(target, dir.path().join(LINK_NAME))?;
        let owner_of = self.owner_of(&self.file_name);
        for file in [&file, &handle, &File::open(dir.path())?] {
            own_file::give(file, owner_of.as_ref())?;
        }
        Ok(Hidden {
            dir,
            _handle: handle,
        })
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
    /// removed paths.
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
            let removed = if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match removed {
                Ok(()) => removed_paths.push(path),
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

/// A path through this process to a file in the directory of `handle`. It is invalid once this process has
/// ended, and in another process-number namespace.
fn path_through_this_process(handle: &File, name: &str) -> PathBuf {
    let handle = format!("/proc/{}/fd/{}", std::process::id(), handle.as_raw_fd());
    Path::new(&handle).join(name)
}

/// Returns a random file name.
fn secret_name() -> io::Result<String> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(io::Error::from)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(secret)))
}

/// A generated file in place for the daemon. Dropping it removes the file.
#[derive(Debug)]
pub struct Staged {
    visible: Option<TempPath>,
    hidden: Option<Hidden>,
}

/// The target of the link.
#[derive(Debug)]
struct Hidden {
    dir: TempDir,
    /// The open directory, which the link's path contains.
    _handle: File,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(visible) = self.visible.take() {
            let path = visible.to_path_buf();
            log_unless_missing(&path, visible.close());
        }
        if let Some(hidden) = self.hidden.take() {
            let path = hidden.dir.path().to_owned();
            log_unless_missing(&path, hidden.dir.close());
        }
    }
}

fn log_unless_missing(path: &Path, closed: io::Result<()>) {
    if let Err(error) = closed
        && error.kind() != io::ErrorKind::NotFound
    {
        let path = path.display();
        tracing::error!(%error, %path, "a generated file cannot be removed: supervisord goes on reading it");
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
    fn a_staged_file_exists_until_its_guard_is_dropped() {
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
    fn a_link_leads_to_the_text_until_its_guard_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = open(dir.path())
            .stage("[group:a]\n", Delivery::Link)
            .unwrap();
        let path = dir.path().join("zz-twiddler.conf");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[group:a]\n");
        // As after the death of the process: the number of the handle is free.
        let hidden = staged.hidden.take().unwrap();
        let left = hidden.dir.keep();
        drop(hidden._handle);
        assert!(std::fs::read_to_string(&path).is_err());
        assert!(std::fs::symlink_metadata(&path).is_ok());
        for private in [left.clone(), left.join(INNER_NAME)] {
            assert_eq!(private.metadata().unwrap().mode() & 0o777, MODE_PRIVATE);
        }
        // The next proxy removes all of it.
        drop(staged);
        assert_eq!(open(dir.path()).sweep().unwrap(), [left]);
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

    #[test]
    fn other_accounts_cannot_read_a_generated_file() {
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
