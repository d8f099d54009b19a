//! The persist file: what the daemon reads at its start.
//!
//! It is replaced in one step, or grows at its end. It is put aside when nothing is to persist any more, and
//! withheld while the daemon reads files whose contents it has already.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tempfile::NamedTempFile;

use super::{IncludeDir, own_file};
use crate::failpoint;

/// The persist file of a proxy that ran with `--persist` before. The daemon never reads it.
const ASIDE_NAME: &str = ".twiddler-persist.old";
/// The persist file while it is withheld from the daemon.
const WITHHELD_NAME: &str = ".twiddler-persist.withheld";
/// The file grows by writes within one page. The kernel changes a file's size after its page, so that a
/// reader sees all of such a write or nothing, and so does whoever reads the disk after a loss of power.
const PAGE: usize = 4096;

/// Which file it is, and of what size and time: another writer changes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileId {
    fn of(found: &Metadata) -> Self {
        FileId {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
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
            own_file::give(file.as_file(), self.like(name).as_ref())?;
        }
        Ok(Prepared(file))
    }

    /// Puts what was prepared in the place of the persist file, in one step. Which file it is now; `None`
    /// without a persist file.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it; the former file stays then.
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

    /// Makes room for `text` at the end of the persist file, which is still the `known` one. `None` where
    /// it is not, or where it cannot grow: then it is to be replaced.
    ///
    /// # Errors
    /// When the disk has no room for it.
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
        let (offset, length) = (as_offset(size), as_offset(padding + text.len()));
        match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Ok(()) => Ok(Some(Growth {
                path,
                file,
                size: known.size,
                padding,
                text: text.to_owned(),
            })),
            // Not every file system can.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The text of the persist file; `None` where there is none.
    ///
    /// # Errors
    /// When something else is in its place, or it cannot be read.
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

    /// Puts the persist file aside, where the daemon does not read it, beside those that were put aside
    /// before. Its path there; `None` where there was none.
    ///
    /// # Errors
    /// When the directory does not allow it.
    pub fn set_aside(&self) -> io::Result<Option<PathBuf>> {
        let Some(path) = self.persist_name.as_ref().map(|name| self.dir.join(name)) else {
            return Ok(None);
        };
        let free = |path: &PathBuf| path.symlink_metadata().is_err();
        let numbered = (2_u32..).map(|number| self.dir.join(format!("{ASIDE_NAME}.{number}")));
        let aside = std::iter::once(self.aside()).chain(numbered).find(free);
        let Some(aside) = aside else { return Ok(None) };
        match std::fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(own_file::about(&aside, &error)),
        }
    }

    /// Where the persist file is put aside.
    pub fn aside(&self) -> PathBuf {
        self.dir.join(ASIDE_NAME)
    }

    /// The text that was put aside; `None` where that is not there or no text.
    pub fn read_aside(&self) -> Option<String> {
        let mut text = String::new();
        let mut file = self.read(ASIDE_NAME).ok()??;
        file.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Makes the file that was put aside the persist file, unless there is one.
    ///
    /// # Errors
    /// When there is one already, or the directory does not allow it.
    pub fn restore_aside(&self) -> io::Result<()> {
        let Some(name) = &self.persist_name else {
            return Ok(());
        };
        // A link first, because it takes no other's place.
        std::fs::hard_link(self.aside(), self.dir.join(name))?;
        std::fs::remove_file(self.aside())
    }

    /// Withholds the persist file from the daemon until the returned guard is dropped; `None` where there
    /// is none, or the directory does not allow it.
    pub fn withhold(&self) -> Option<Withheld> {
        let path = self.dir.join(self.persist_name.as_ref()?);
        let withheld = self.dir.join(WITHHELD_NAME);
        // The watcher puts it back if this process dies now.
        self.ensure_watched();
        std::fs::rename(&path, &withheld).ok()?;
        Some(Withheld { path, withheld })
    }

    /// Puts back the persist file that a proxy has withheld when it died, unless there is a newer one.
    /// Whether it did.
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

/// Puts a withheld file back where it was, unless another one has taken its place: that is newer.
pub(super) fn put_back(withheld: &Path, path: &Path) -> io::Result<bool> {
    let is_replaced = path.symlink_metadata().is_ok();
    let done = if is_replaced {
        std::fs::remove_file(withheld)
    } else {
        std::fs::rename(withheld, path)
    };
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(own_file::about(path, &error)),
        Ok(()) => Ok(!is_replaced),
    }
}

/// How many bytes are to be between the end of a file of this size and `length` more, so that those are
/// within one page. `None` where they are never.
fn padding(size: usize, length: usize) -> Option<usize> {
    let free = PAGE - size % PAGE;
    match length {
        length if length <= free => Some(0),
        length if length <= PAGE => Some(free),
        _ => None,
    }
}

/// An offset as the kernel takes it.
fn as_offset(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A new persist file that is not in its place yet; dropping it takes it away.
#[derive(Debug)]
pub struct Prepared(NamedTempFile);

impl Prepared {
    /// Has the disk begin with it beside other work: it takes longer than all the rest.
    /// [`IncludeDir::put`] says what is wrong with it.
    pub async fn sync(&self) {
        if let Ok(file) = self.0.as_file().try_clone() {
            let _ = tokio::task::spawn_blocking(move || file.sync_all()).await;
        }
    }
}

/// Text for the end of the persist file, for which there is room.
#[derive(Debug)]
pub struct Growth {
    path: PathBuf,
    file: File,
    size: u64,
    /// Empty lines before the text.
    padding: usize,
    text: String,
}

impl Growth {
    /// Writes it. Which file it is now.
    ///
    /// # Errors
    /// When the disk does not take it; the file is as it was then. When another file has taken its place.
    pub fn write(mut self) -> io::Result<FileId> {
        let written = self.append();
        if written.is_err() {
            self.file.set_len(self.size)?;
        }
        written?;
        let id = FileId::of(&self.file.metadata()?);
        if FileId::of(&self.path.symlink_metadata()?) != id {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(id)
    }

    fn append(&mut self) -> io::Result<()> {
        if self.padding > 0 {
            self.file.write_all(&vec![b'\n'; self.padding])?;
            failpoint::hit("padded");
        }
        self.file.write_all(self.text.as_bytes())?;
        self.file.sync_data()
    }
}

/// The persist file, where the daemon does not read it; dropping it puts it back.
#[derive(Debug)]
pub struct Withheld {
    path: PathBuf,
    withheld: PathBuf,
}

impl Drop for Withheld {
    fn drop(&mut self) {
        if let Err(error) = put_back(&self.withheld, &self.path) {
            tracing::error!(%error, "what is kept cannot be put back: supervisord would not start it");
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
    fn text_that_would_cross_a_page_begins_in_the_next_one() {
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
    fn a_file_grows_by_texts_within_a_page() {
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
    fn a_file_that_another_has_written_does_not_grow() {
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
        for change in changes {
            let file = include.prepare("begin\n").unwrap();
            let known = include.put(file).unwrap().unwrap();
            // A second write in the same tick of the file system's clock bears the same time.
            let before = std::time::SystemTime::UNIX_EPOCH;
            File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_modified(before)
                .unwrap();
            let known = FileId {
                modified: (0, 0),
                ..known
            };
            assert!(include.prepare_growth(known, "more\n").unwrap().is_some());
            change();
            assert!(include.prepare_growth(known, "more\n").unwrap().is_none());
            let _ = std::fs::remove_file(&path);
        }
    }

    #[test]
    fn a_file_that_is_replaced_meanwhile_does_not_grow_unsaid() {
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
    fn what_could_not_be_written_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let include = open(dir.path());
        let known = include
            .put(include.prepare("begin\n").unwrap())
            .unwrap()
            .unwrap();
        let growth = include.prepare_growth(known, "more\n").unwrap().unwrap();
        // It cannot be written through this handle.
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
