//! The proxy's own files in the include directory. They are opened only if they are regular files, and
//! never through a link.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, User};

/// Opens the file at `path` with `options`. Does not block on a FIFO or device.
///
/// # Errors
/// An error that names the file and the remedy.
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

/// Opens the file at `path` for reading. Returns `None` if there is none.
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

/// Makes sure that the entry at `path`, if any, can be replaced by a file.
///
/// # Errors
/// The error of [`open`] if the entry is neither a regular file nor a symbolic link.
pub(super) fn ensure_replaceable(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() || metadata.is_symlink() => Ok(()),
        Ok(metadata) => Err(misplaced(path, metadata.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(explain(path, error)),
    }
}

fn explain(path: &Path, error: io::Error) -> io::Error {
    let metadata = path.symlink_metadata();
    if let Ok(metadata) = &metadata
        && !metadata.is_file()
    {
        return misplaced(path, metadata.file_type());
    }
    let path_text = path.display();
    let text = match (error.kind(), metadata) {
        (io::ErrorKind::PermissionDenied, Ok(metadata)) => {
            let own_account = account(Uid::effective());
            format!(
                "{path_text} belongs to {} and cannot be opened by {own_account}: chown {own_account} it",
                account(Uid::from_raw(metadata.uid())),
            )
        }
        _ => return with_path(path, &error),
    };
    io::Error::new(error.kind(), text)
}

/// Adds the path to the error text.
pub(super) fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn misplaced(path: &Path, kind: FileType) -> io::Error {
    let kind_text = if kind.is_symlink() {
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
        format!(
            "{path} is {kind_text}, but twiddler keeps a regular file of its own there: remove it"
        ),
    )
}

/// Returns the name of an account, or `uid N` if it has none.
pub(super) fn account(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// Makes the owner of `like` the owner of `file`. Only root does so: files that a run as root creates must
/// not lock out the account of the service.
///
/// # Errors
/// When root is not permitted to.
pub(super) fn give(file: &File, like: Option<&std::fs::Metadata>) -> io::Result<()> {
    let Some(like) = like.filter(|_| Uid::effective().is_root()) else {
        return Ok(());
    };
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(like.uid()), Gid::from_raw(like.gid()));
    fchown(file, Some(uid.as_raw()), Some(gid.as_raw()))
}
