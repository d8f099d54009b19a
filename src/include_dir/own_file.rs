//! The proxy's own files in the include directory: opened only where they are regular files, never
//! through a link, and replaced in one step.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, User};

/// Opens the file at `path` as `options` say. A FIFO or device is not waited for.
///
/// # Errors
/// A sentence that names the file, and says what to do.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = options
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|error| explain(path, error))?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        Ok(file)
    } else {
        Err(misplaced(path, kind))
    }
}

/// The same for reading; nothing where there is no such file.
///
/// # Errors
/// As [`open`].
pub(super) fn open_to_read(path: &Path) -> io::Result<Option<File>> {
    match open(path, File::options().read(true)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is in the place of a file.
///
/// # Errors
/// The sentence of [`open`] where it is something that is not a file of ours.
pub(super) fn ensure_replaceable(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_file() || found.is_symlink() => Ok(()),
        Ok(found) => Err(misplaced(path, found.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(explain(path, error)),
    }
}

fn explain(path: &Path, error: io::Error) -> io::Error {
    let found = path.symlink_metadata();
    if let Ok(found) = &found
        && !found.is_file()
    {
        return misplaced(path, found.file_type());
    }
    let shown = path.display();
    let text = match (error.kind(), found) {
        (io::ErrorKind::PermissionDenied, Ok(found)) => {
            let ours = account(Uid::effective());
            format!(
                "{shown} belongs to {} and cannot be opened by {ours}: chown {ours} it",
                account(Uid::from_raw(found.uid())),
            )
        }
        _ => return about(path, &error),
    };
    io::Error::new(error.kind(), text)
}

/// The error, and what it is about.
pub(super) fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn misplaced(path: &Path, kind: FileType) -> io::Error {
    let what = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    let path = path.display();
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{path} is {what}, but twiddler keeps a regular file of its own there: remove it"),
    )
}

/// The name of an account, or its number where it has none.
pub(super) fn account(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// Gives `file` to the account that `like` belongs to. Only root does so: a run by root takes nothing
/// away from the account of a service.
///
/// # Errors
/// When root may not.
pub(super) fn give(file: &File, like: Option<&std::fs::Metadata>) -> io::Result<()> {
    let Some(like) = like.filter(|_| Uid::effective().is_root()) else {
        return Ok(());
    };
    let found = file.metadata()?;
    if (found.uid(), found.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(like.uid()), Gid::from_raw(like.gid()));
    fchown(file, Some(uid.as_raw()), Some(gid.as_raw()))
}
