//! The persist file in the include directory, which the daemon reads when it starts.
//!
//! The file is replaced in one step, or text is appended. It is put aside when `--persist` is off. It is
//! withheld while the daemon reads files although it has all groups of the persist file already.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{Resource, getrlimit};
use tempfile::NamedTempFile;

use super::{IncludeDir, own_file};
use crate::failpoint;

/// The name under which the persist file is put aside when `--persist` is off. The daemon never reads it.
const ASIDE_NAME: &str = ".twiddler-persist.old";
/// The name of the persist file while it is withheld from the daemon.
const WITHHELD_NAME: &str = ".twiddler-persist.withheld";
/// Each appended text is written within one page. The kernel updates a file's size after its page, so that
/// a reader sees all of the text or none, and so does a reader of the disk after a power failure.
const PAGE: usize = 4096;

/// The identity, size and modification time of a file. A write by another program changes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl IncludeDir {
    /// Writes a new persist file under a name that the daemon does not read.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it.
    pub fn prepare(&self, text: &str) -> io::Result<Prepared> {
        let file = self.write(text)?;
        if let Some(name) = &self.persist_name {
            own_file::give(file.as_file(), self.owner_of(name).as_ref())?;
        }
        Ok(Prepared(file))
    }

    /// Replaces the persist file by the prepared one in one step. Returns the identity of the new file;
    /// `None` if there is no persist file.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it. The old file stays then.
    pub fn put(&self, prepared: Prepared) -> io::Result<Option<FileId>> {
        let Some(name) = &self.persist_name else {
            return Ok(None);
        };
        let file = prepared.0;
        file.as_file().sync_all()?;
        let file = file
            .persist(self.dir.join(name))
            .map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Some(FileId::of(&file.metadata()?)))
    }

    /// Reserves space for `text` at the end of the persist file, if it is still the `known` one. Returns
    /// `None` if it is not or cannot grow: then it must be replaced.
    ///
    /// # Errors
    /// When the disk has no space.
    pub fn prepare_growth(&self, known: FileId, text: &str) -> io::Result<Option<Growth>> {
        let Some(name) = &self.persist_name else {
            return Ok(None);
        };
        let path = self.dir.join(name);
        let Ok(file) = own_file::open(&path, File::options().append(true)) else {
            return Ok(None);
        };
        let size = usize::try_from(known.size).unwrap_or(usize::MAX);
        let Some(padding) = padding(size, text.len()) else {
            return Ok(None);
        };
        if FileId::of(&file.metadata()?) != known {
            return Ok(None);
        }
        let more = padding + text.len();
        ensure_size_allowed(size + more)?;
        let (offset, length) = (as_offset(size), as_offset(more));
        match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Ok(()) => {}
            // Not every file system supports it, and a signal may interrupt it.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EINTR) => {
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        }
        // The reservation may have changed the file's time.
        let id = FileId {
            modified: FileId::of(&file.metadata()?).modified,
            ..known
        };
        Ok(Some(Growth {
            path,
            file,
            id,
            padding,
            text: text.to_owned(),
        }))
    }

    /// The text of the persist file. `None` if there is none.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub fn read_persist_file(&self) -> io::Result<Option<String>> {
        let Some(name) = &self.persist_name else {
            return Ok(None);
        };
        let Some(mut file) = self.read(name)? else {
            return Ok(None);
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Puts the persist file aside under a name that the daemon does not read. Files that were put aside
    /// before stay. Returns the new path; `None` if there was no file.
    ///
    /// # Errors
    /// When the directory does not allow it.
    pub fn set_aside(&self) -> io::Result<Option<PathBuf>> {
        let Some(path) = self.persist_name.as_ref().map(|name| self.dir.join(name)) else {
            return Ok(None);
        };
        let is_free = |path: &PathBuf| path.symlink_metadata().is_err();
        let numbered = (2_u32..).map(|number| self.dir.join(format!("{ASIDE_NAME}.{number}")));
        let aside = std::iter::once(self.aside()).chain(numbered).find(is_free);
        let Some(aside) = aside else { return Ok(None) };
        match std::fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(own_file::with_path(&aside, &error)),
        }
    }

    /// The path of the persist file when it is put aside.
    pub fn aside(&self) -> PathBuf {
        self.dir.join(ASIDE_NAME)
    }

    /// The text of the file that was put aside. `None` if there is no such file or it is not text.
    pub fn read_aside(&self) -> Option<String> {
        let mut text = String::new();
        let mut file = self.read(ASIDE_NAME).ok()??;
        file.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Makes the file that was put aside the persist file.
    ///
    /// # Errors
    /// When there is a persist file already, or the directory does not allow it.
    pub fn restore_aside(&self) -> io::Result<()> {
        let Some(name) = &self.persist_name else {
            return Ok(());
        };
        // Linking first, because a link never replaces a file.
        std::fs::hard_link(self.aside(), self.dir.join(name))?;
        std::fs::remove_file(self.aside())
    }

    /// Withholds the persist file from the daemon until the returned guard is dropped. Returns `None` if
    /// there is no persist file or the directory does not allow it.
    pub fn withhold(&self) -> Option<Withheld> {
        let path = self.dir.join(self.persist_name.as_ref()?);
        let withheld = self.dir.join(WITHHELD_NAME);
        // The clean-up process puts it back if this process is killed now.
        self.ensure_watched();
        std::fs::rename(&path, &withheld).ok()?;
        Some(Withheld { path, withheld })
    }

    /// Puts back the persist file that a killed proxy had withheld, unless there is a newer one. Returns
    /// whether it did.
    ///
    /// # Errors
    /// When the directory does not allow it.
    pub fn put_back(&self) -> io::Result<bool> {
        let Some(name) = &self.persist_name else {
            return Ok(false);
        };
        put_back(&self.dir.join(WITHHELD_NAME), &self.dir.join(name))
    }
}

/// Puts a withheld file back, or removes it if another file has replaced it: that one is newer. Returns
/// whether it was put back.
pub(super) fn put_back(withheld: &Path, path: &Path) -> io::Result<bool> {
    let is_replaced = path.symlink_metadata().is_ok();
    let result = if is_replaced {
        std::fs::remove_file(withheld)
    } else {
        std::fs::rename(withheld, path)
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(own_file::with_path(path, &error)),
        Ok(()) => Ok(!is_replaced),
    }
}

/// Returns the number of padding bytes between the end of a file of `size` bytes and a text of `length`
/// bytes, so that the text is within one page. `None` if the text is longer than a page.
fn padding(size: usize, length: usize) -> Option<usize> {
    let is_free = PAGE - size % PAGE;
    match length {
        length if length <= is_free => Some(0),
        length if length <= PAGE => Some(is_free),
        _ => None,
    }
}

/// Checks the limit of this process on the size of files, which no reservation checks.
///
/// # Errors
/// When a file of this size is too large.
fn ensure_size_allowed(size: usize) -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    if u64::try_from(size).is_ok_and(|size| size <= limit) {
        Ok(())
    } else {
        Err(Errno::EFBIG.into())
    }
}

/// Converts a size to a file offset.
fn as_offset(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A new persist file under a temporary name. Dropping it removes the file.
#[derive(Debug)]
pub struct Prepared(NamedTempFile);

impl Prepared {
    /// Starts to sync the file to disk, concurrently with other work, because this takes longer than all
    /// other steps. Errors are ignored: [`IncludeDir::put`] reports them.
    pub async fn sync(&self) {
        if let Ok(file) = self.0.as_file().try_clone() {
            let _ = tokio::task::spawn_blocking(move || file.sync_all()).await;
        }
    }
}

/// Text to append to the persist file, with space reserved for it.
#[derive(Debug)]
pub struct Growth {
    path: PathBuf,
    file: File,
    /// The file that space was reserved in.
    id: FileId,
    /// The number of line breaks before the text.
    padding: usize,
    text: String,
}

impl Growth {
    /// Appends the text. Returns the identity of the file afterwards.
    ///
    /// # Errors
    /// When the disk does not allow it; the file is unchanged then. When another program has written to the
    /// file or replaced it.
    pub fn write(mut self) -> io::Result<FileId> {
        self.ensure(self.id)?;
        let result = self.append();
        if result.is_err() {
            self.file.set_len(self.id.size)?;
        }
        result?;
        let more = self.padding + self.text.len();
        let id = FileId {
            size: self.id.size + more as u64,
            modified: FileId::of(&self.file.metadata()?).modified,
            ..self.id
        };
        self.ensure(id)?;
        Ok(id)
    }

    /// Checks that the persist file is this one.
    fn ensure(&self, id: FileId) -> io::Result<()> {
        if FileId::of(&self.path.symlink_metadata()?) == id {
            Ok(())
        } else {
            Err(io::Error::other(
                "another program has written the persist file",
            ))
        }
    }

    fn append(&mut self) -> io::Result<()> {
        if self.padding > 0 {
            self.file.write_all(&vec![b'\n'; self.padding])?;
            failpoint::hit("padded");
        }
        self.file.write_all(self.text.as_bytes())?;
        failpoint::hit("appended");
        self.file.sync_data()
    }
}

/// A withheld persist file. Dropping it puts the file back.
#[derive(Debug)]
pub struct Withheld {
    path: PathBuf,
    withheld: PathBuf,
}

impl Drop for Withheld {
    fn drop(&mut self) {
        if let Err(error) = put_back(&self.withheld, &self.path) {
            tracing::error!(%error, "the persist file cannot be put back: supervisord would not start its programs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> IncludeDir {
        let include = IncludeDir::open(dir.to_owned(), "zz-twiddler.conf".to_owned()).unwrap();
        include.with_persist_file("persist.conf".to_owned())
    }

    fn grow(include: &IncludeDir, known: FileId, text: &str) -> Option<FileId> {
        let growth = include.prepare_growth(known, text).unwrap()?;
        Some(growth.write().unwrap())
    }

    #[test]
    fn text_that_would_cross_a_page_boundary_starts_in_the_next_page() {
        let table = [
            (0, 1, Some(0)),
            (0, PAGE, Some(0)),
            (0, PAGE + 1, None),
            (1, PAGE, Some(PAGE - 1)),
            (PAGE - 1, 1, Some(0)),
            (PAGE - 1, 2, Some(1)),
            (PAGE, 2, Some(0)),
            (3 * PAGE - 7, 8, Some(7)),
        ];
        for (size, length, expected) in table {
            assert_eq!(padding(size, length), expected, "{length} after {size}");
        }
    }

    #[test]
    fn each_appended_text_is_within_one_page() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        let first = include.prepare("begin\n").unwrap();
        let mut id = include.put(first).unwrap().unwrap();
        let texts: Vec<String> = (0..60)
            .map(|number| format!("{}{number}\n", "x".repeat(7 * number)))
            .collect();
        for text in &texts {
            let grown = grow(&include, id, text).unwrap();
            assert_eq!(grown.inode, id.inode);
            id = grown;
        }
        let all = include.read_persist_file().unwrap().unwrap();
        let lines: Vec<&str> = all.lines().filter(|line| !line.is_empty()).collect();
        let mut expected = vec!["begin"];
        expected.extend(texts.iter().map(|text| text.trim_end()));
        assert_eq!(lines, expected);
        for text in &texts {
            let start = all.find(text.as_str()).unwrap();
            assert_eq!(start / PAGE, (start + text.len() - 1) / PAGE, "{text}");
        }
    }

    #[test]
    fn a_file_that_another_program_wrote_is_not_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        let path = dir.path().join("persist.conf");
        let changes: [&dyn Fn(); 4] = [
            &|| std::fs::write(&path, "other\n").unwrap(),
            &|| std::fs::write(&path, "longer than before\n").unwrap(),
            &|| std::fs::remove_file(&path).unwrap(),
            &|| {
                std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", &path).unwrap();
            },
        ];
        let begin = || {
            let file = include.prepare("begin\n").unwrap();
            include.put(file).unwrap();
            // A second write within the resolution of the file system's clock has the same time.
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
            FileId::of(&file.metadata().unwrap())
        };
        for change in changes {
            let known = begin();
            change();
            assert!(include.prepare_growth(known, "more\n").unwrap().is_none());
            let _ = std::fs::remove_file(&path);
            let growth = include.prepare_growth(begin(), "more\n").unwrap().unwrap();
            File::open(&path)
                .unwrap()
                .set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
            let growth = Growth {
                id: FileId {
                    modified: (0, 0),
                    ..growth.id
                },
                ..growth
            };
            change();
            assert!(growth.write().is_err());
            let _ = std::fs::remove_file(&path);
        }
    }

    #[test]
    fn appending_to_a_replaced_file_fails() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        let first = include.prepare("begin\n").unwrap();
        let known = include.put(first).unwrap().unwrap();
        let growth = include.prepare_growth(known, "more\n").unwrap().unwrap();
        include.put(include.prepare("other\n").unwrap()).unwrap();
        assert!(growth.write().is_err());
        let text = include.read_persist_file().unwrap();
        assert_eq!(text.as_deref(), Some("other\n"));
    }

    #[test]
    fn a_write_that_fails_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        let known = include
            .put(include.prepare("begin\n").unwrap())
            .unwrap()
            .unwrap();
        let growth = include.prepare_growth(known, "more\n").unwrap().unwrap();
        // This handle is not writable.
        let read_only = File::open(dir.path().join("persist.conf")).unwrap();
        let growth = Growth {
            file: read_only,
            ..growth
        };
        assert!(growth.write().is_err());
        let text = include.read_persist_file().unwrap();
        assert_eq!(text.as_deref(), Some("begin\n"));
    }
}
