//! Generated files: each is in place only while the daemon reads it.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use tempfile::TempDir;

use super::{IncludeDir, MODE_OWNER, own_file};
use crate::failpoint;

/// The mode of directories that no other account may enter.
const MODE_PRIVATE: u32 = 0o700;
/// Inside such a directory: the directory of the text, the link through this process, and the link to that
/// link, which is moved to the place of the generated file.
const INNER_NAME: &str = "files";
const LINK_NAME: &str = "link";
const ENTRY_NAME: &str = "entry";

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

impl IncludeDir {
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
                    visible,
                    private: None,
                })
            }
            Delivery::Link => self.stage_link(text, visible),
        }
    }

    /// Uses the present private directory, unless somebody has changed it. Otherwise creates a new one, which takes
    /// much longer.
    fn stage_link(&self, text: &str, visible: PathBuf) -> io::Result<Staged> {
        self.ensure_watched();
        let mut present = self.private.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(private) = present.take()
            && let Ok(staged) = private.stage(text, &visible)
            && private.is_target_of(&visible)
        {
            *present = Some(private);
            return Ok(staged);
        }
        let private = Arc::new(PrivateDir::create(self)?);
        let staged = private.stage(text, &visible)?;
        *present = Some(private);
        Ok(staged)
    }
}

/// A directory with a file that is only readable through a link through this process.
///
/// After this process has ended, another process of the account may get its process number and could put a
/// file at the end of the link. But it cannot read the link, so it does not know the file name. It cannot open
/// the directory with the original text either, so that text does not come back.
#[derive(Debug)]
pub(super) struct PrivateDir {
    dir: TempDir,
    /// The open directory, which the link's path contains.
    _handle: File,
    /// The path of the file with the text.
    text: PathBuf,
    /// The metadata whose owner the file gets.
    owner: Option<Metadata>,
}

impl PrivateDir {
    fn create(include: &IncludeDir) -> io::Result<PrivateDir> {
        let private = Permissions::from_mode(MODE_PRIVATE);
        let dir = include
            .temporary()
            .permissions(private)
            .tempdir_in(&include.dir)?;
        let inner = dir.path().join(INNER_NAME);
        DirBuilder::new().mode(MODE_PRIVATE).create(&inner)?;
        let handle = File::open(&inner)?;
        let name = secret_name()?;
        symlink(
            path_through_this_process(&handle, &name),
            dir.path().join(LINK_NAME),
        )?;
        // The link is relative, because the daemon may know the directory by another path.
        let base = dir.path().file_name().unwrap_or_default();
        symlink(Path::new(base).join(LINK_NAME), dir.path().join(ENTRY_NAME))?;
        let owner = include.owner_of(&include.file_name);
        for file in [&handle, &File::open(dir.path())?] {
            own_file::give(file, owner.as_ref())?;
        }
        failpoint::hit("linked");
        Ok(PrivateDir {
            dir,
            _handle: handle,
            text: inner.join(name),
            owner,
        })
    }

    /// Writes the text, and moves the link to `visible`.
    fn stage(self: &Arc<Self>, text: &str, visible: &Path) -> io::Result<Staged> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(MODE_OWNER)
            .open(&self.text)?;
        let written = own_file::give(&file, self.owner.as_ref())
            .and_then(|()| file.write_all(text.as_bytes()));
        failpoint::hit("written");
        let moved = written.and_then(|()| std::fs::rename(self.entry(), visible));
        if let Err(error) = moved {
            let _ = std::fs::remove_file(&self.text); // the next attempt uses another directory
            return Err(error);
        }
        Ok(Staged {
            visible: visible.to_owned(),
            private: Some(Arc::clone(self)),
        })
    }

    /// Whether a reader of `visible` gets the text.
    fn is_target_of(&self, visible: &Path) -> bool {
        let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
        identity(visible).is_some_and(|target| identity(&self.text) == Some(target))
    }

    /// Moves the link back, and removes the text. If the link cannot be moved, the next change uses another
    /// directory.
    fn take_back(&self, visible: &Path) {
        if std::fs::rename(visible, self.entry()).is_err() {
            remove(visible);
        }
        remove(&self.text);
    }

    fn entry(&self) -> PathBuf {
        self.dir.path().join(ENTRY_NAME)
    }
}

/// Whether `path` is a private directory without text, which waits for the next change.
pub(super) fn is_waiting(path: &Path) -> bool {
    let entries = std::fs::read_dir(path.join(INNER_NAME));
    entries.is_ok_and(|mut entries| entries.next().is_none())
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
    visible: PathBuf,
    /// The target, if the file is a link.
    private: Option<Arc<PrivateDir>>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        match &self.private {
            Some(private) => private.take_back(&self.visible),
            None => remove(&self.visible),
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        let path = path.display();
        tracing::error!(%error, %path, "a generated file cannot be removed: supervisord goes on reading it");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{names, open};
    use super::*;

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
        let private = Arc::into_inner(staged.private.take().unwrap()).unwrap();
        let left = private.dir.keep();
        drop(private._handle);
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

    /// What somebody does to a private directory between two changes.
    type Damage = fn(&Path);

    #[test]
    fn a_private_directory_serves_all_changes_until_it_is_damaged() {
        let cases: [(&str, Damage, bool); 5] = [
            ("nothing", |_| {}, true),
            (
                "the directory is removed",
                |dir| std::fs::remove_dir_all(dir).unwrap(),
                false,
            ),
            (
                "the moved link is removed",
                |dir| std::fs::remove_file(dir.join(ENTRY_NAME)).unwrap(),
                false,
            ),
            (
                "the link through the process is removed",
                |dir| std::fs::remove_file(dir.join(LINK_NAME)).unwrap(),
                false,
            ),
            (
                "the directory of the text is another",
                |dir| {
                    std::fs::rename(dir.join(INNER_NAME), dir.join("former")).unwrap();
                    std::fs::create_dir(dir.join(INNER_NAME)).unwrap();
                },
                false,
            ),
        ];
        for (what, damage, stays) in cases {
            let dir = tempfile::tempdir().unwrap();
            let include = open(dir.path());
            drop(include.stage("[group:a]\n", Delivery::Link).unwrap());
            let [first] = &names(dir.path())[..] else {
                panic!("{what}: {:?}", names(dir.path()));
            };
            damage(&dir.path().join(first));
            let visible = dir.path().join("zz-twiddler.conf");
            for text in ["[group:b]\n", "[group:c]\n"] {
                let staged = include.stage(text, Delivery::Link).unwrap();
                assert_eq!(std::fs::read_to_string(&visible).unwrap(), text, "{what}");
                drop(staged);
                assert!(!visible.is_symlink(), "{what}");
            }
            assert_eq!(names(dir.path()) == [first.clone()], stays, "{what}");
            assert_eq!(names(dir.path()).len(), 1, "{what}");
            drop(include);
            assert!(names(dir.path()).is_empty(), "{what}");
        }
    }

    #[test]
    fn no_text_stays_in_the_private_directory() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        drop(include.stage("[group:a]\n", Delivery::Link).unwrap());
        let private = dir.path().join(&names(dir.path())[0]);
        assert!(is_waiting(&private));
        // The next proxy removes it, and has nothing to report.
        assert!(open(dir.path()).sweep().unwrap().is_empty());
        assert!(!private.exists());
    }

    #[test]
    fn a_second_file_replaces_one_that_is_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        let first = include.stage("[group:a]\n", Delivery::Link).unwrap();
        let second = include.stage("[group:b]\n", Delivery::Link).unwrap();
        let visible = dir.path().join("zz-twiddler.conf");
        assert_eq!(std::fs::read_to_string(&visible).unwrap(), "[group:b]\n");
        drop(second);
        drop(first);
        drop(include);
        assert!(names(dir.path()).is_empty());
    }
}
