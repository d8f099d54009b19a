//! The daemon's include directory: the only code that puts files there.
//!
//! A file appears whole, by rename from a dot-name that the daemon never reads. A generated file is there
//! only while the daemon reads it. This room knows nothing of HTTP, RPC or what the text means.

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

/// Of files that are not in their place yet. The daemon's include pattern skips such names whatever
/// it is, and what a proxy that died has left of them is taken away.
const HIDDEN_PREFIX: &str = ".zz-twiddler-";
/// Enough for the owner alone: the daemon runs as root or as the proxy does.
const MODE_OWNER: u32 = 0o600;
/// Of directories that nobody else may look into.
const MODE_PRIVATE: u32 = 0o700;
/// In such a directory: one that nobody else can open, and the link through this process.
const INNER_NAME: &str = "files";
const LINK_NAME: &str = "link";
/// The daemon runs under another account and reads through the directory's group.
const MODE_GROUP: u32 = 0o640;

/// Says that the daemon's `account` cannot read what is put into `dir`, and what to do.
pub fn unreadable_for(account: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "supervisord runs as {account} and cannot read what twiddler writes in {dir}; chgrp {dir} to a group that both accounts are in, and chmod 2770 {dir}"
    )
}

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

/// Says that nothing can be written in `dir`, and what to do.
pub fn unwritable(dir: &Path, error: &io::Error) -> String {
    let dir = dir.display();
    let instead = match error.kind() {
        // The systemd unit may write to the directory that was there when it was started.
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

/// A directory that the daemon includes files from, as the proxy sees it.
#[derive(Debug)]
pub struct IncludeDir {
    dir: PathBuf,
    file_name: String,
    persist_name: Option<String>,
    mode: u32,
    watcher: Option<Watcher>,
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
            persist_name: None,
            mode: MODE_OWNER,
            watcher: None,
        })
    }

    /// Lets another process take our files away if this one is killed. Only for whoever holds the
    /// lock.
    pub fn watched(mut self) -> Self {
        let persist_name = self.persist_name.clone().unwrap_or_default();
        let names = [self.file_name.clone(), persist_name];
        self.watcher = Some(Watcher::new(self.dir.clone(), names));
        self
    }

    /// Names the persist file. The daemon reads it before generated files, which sort after it.
    pub fn with_persist_file(mut self, name: String) -> Self {
        self.persist_name = Some(name);
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
                // Relative: the daemon may know the directory by another path.
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

    /// Writes `text` where it is read only through a link that leads through this process.
    ///
    /// When the process has ended, another one may get its number, and its account could put files of
    /// its own at the link's end: but it cannot read the link, so it does not know the name that they
    /// must have. Nor can it open the directory in which ours is, so ours does not come back either.
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
        let target = through_this_process(&handle, &name);
        symlink(target, dir.path().join(LINK_NAME))?;
        let like = self.like(&self.file_name);
        for file in [&file, &handle, &File::open(dir.path())?] {
            own_file::give(file, like.as_ref())?;
        }
        Ok(Hidden {
            dir,
            _handle: handle,
        })
    }

    /// Takes this directory for this process.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when another proxy uses it; or a sentence about what is in the
    /// way: no file of ours is opened through a link, or waited for.
    pub fn lock(&self) -> io::Result<DirLock> {
        let lock = DirLock::take(&self.dir, self.like(lock::LOCK_NAME).as_ref())?;
        self.ensure_replaceable()?;
        Ok(lock)
    }

    /// The proxy that uses this directory now, if any.
    ///
    /// # Errors
    /// The sentence with which [`IncludeDir::lock`] would refuse for another reason.
    pub fn holder(&self) -> io::Result<Option<Holder>> {
        let holder = lock::holder(&self.dir)?;
        self.ensure_replaceable()?;
        Ok(holder)
    }

    /// The sentence with which [`IncludeDir::lock`] refuses beside this proxy.
    pub fn busy(&self, holder: &Holder) -> io::Error {
        lock::busy(&self.dir, holder)
    }

    /// Makes sure that no other proxy uses one of these directories, unless it is this one.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when one does.
    pub fn ensure_alone(&self, others: impl Iterator<Item = PathBuf>) -> io::Result<()> {
        let place = |dir: &Path| Some((dir.metadata().ok()?.dev(), dir.metadata().ok()?.ino()));
        let ours = place(&self.dir);
        for other in others.filter(|other| place(other) != ours) {
            // A lock that cannot be looked at is nobody's that is known.
            if let Ok(Some(holder)) = lock::holder(&other) {
                return Err(lock::busy(&other, &holder));
            }
        }
        Ok(())
    }

    fn ensure_replaceable(&self) -> io::Result<()> {
        own_file::ensure_replaceable(&self.dir.join(&self.file_name))
    }

    /// Opens a file of ours for reading; nothing where there is none.
    ///
    /// # Errors
    /// A sentence that names the file: it is a link or no regular file, or may not be read.
    pub fn read(&self, name: &str) -> io::Result<Option<File>> {
        own_file::open_to_read(&self.dir.join(name))
    }

    /// Puts a file of ours in the place of the one of this name, in one step, and hands it over open.
    /// Only its owner may read it.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it; what was there stays then.
    pub fn replace(
        &self,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<File> {
        let mut file = self.temporary().tempfile_in(&self.dir)?;
        own_file::give(file.as_file(), self.like(name).as_ref())?;
        write(file.as_file_mut())?;
        file.persist(self.dir.join(name))
            .map_err(|error| error.error)
    }

    /// Whose a file of this name is to be: whose it is, or whose the lock is, or the directory.
    fn like(&self, name: &str) -> Option<Metadata> {
        let own = [name, lock::LOCK_NAME].map(|name| self.dir.join(name));
        let found = own.iter().find_map(|path| path.symlink_metadata().ok());
        found.or_else(|| self.dir.metadata().ok())
    }

    /// Takes away what a proxy that died has left, says what that was, and puts back what it withheld.
    ///
    /// # Errors
    /// When the directory cannot be read or what the daemon reads there not be removed.
    pub fn sweep(&self) -> io::Result<Vec<PathBuf>> {
        self.put_back()?;
        let mut swept = Vec::new();
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
                Ok(()) => swept.push(path),
                Err(error) if is_read => return Err(own_file::about(&path, &error)),
                // The daemon never reads it.
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot take away what an earlier proxy left");
                }
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

/// A path to a file of the directory behind `handle` that ends with this process. Where process
/// numbers mean other processes, it leads nowhere.
fn through_this_process(handle: &File, name: &str) -> PathBuf {
    let handle = format!("/proc/{}/fd/{}", std::process::id(), handle.as_raw_fd());
    Path::new(&handle).join(name)
}

/// A name that nobody can guess.
fn secret_name() -> io::Result<String> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(io::Error::from)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(secret)))
}

/// A generated file that the daemon can read; dropping it takes it away.
#[derive(Debug)]
pub struct Staged {
    visible: Option<TempPath>,
    hidden: Option<Hidden>,
}

/// What a link leads to while it is there.
#[derive(Debug)]
struct Hidden {
    dir: TempDir,
    /// The link leads through it.
    _handle: File,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(visible) = self.visible.take() {
            let path = visible.to_path_buf();
            tell_unless_gone(&path, visible.close());
        }
        if let Some(hidden) = self.hidden.take() {
            let path = hidden.dir.path().to_owned();
            tell_unless_gone(&path, hidden.dir.close());
        }
    }
}

fn tell_unless_gone(path: &Path, closed: io::Result<()>) {
    if let Err(error) = closed
        && error.kind() != io::ErrorKind::NotFound
    {
        let path = path.display();
        tracing::error!(%error, %path, "a generated file cannot be taken away: supervisord goes on reading it");
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
        // As when the process dies: the number of its handle is free.
        let hidden = staged.hidden.take().unwrap();
        let left = hidden.dir.keep();
        drop(hidden._handle);
        assert!(std::fs::read_to_string(&path).is_err());
        assert!(std::fs::symlink_metadata(&path).is_ok());
        for private in [left.clone(), left.join(INNER_NAME)] {
            assert_eq!(private.metadata().unwrap().mode() & 0o777, MODE_PRIVATE);
        }
        // And the next proxy takes all of it away.
        drop(staged);
        assert_eq!(open(dir.path()).sweep().unwrap(), [left]);
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

    /// Puts something of this kind there.
    fn put(kind: &str, path: &Path) {
        match kind {
            "a symbolic link" => symlink("/nowhere/at-all", path).unwrap(),
            "a directory" => std::fs::create_dir(path).unwrap(),
            "a FIFO" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            _ => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        }
    }

    #[test]
    fn none_of_our_files_is_followed_or_waited_for() {
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
                let said = refused.unwrap_err().to_string();
                let named = said.contains(path.to_str().unwrap());
                assert!(named && said.contains(kind), "{said}");
                if name == lock::LOCK_NAME {
                    assert_eq!(include.holder().unwrap_err().to_string(), said);
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
