//! Where the proxy listens when nothing says so: beside the daemon's socket, for the same accounts.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::{DEFAULT_SOCKET_MODE, SocketAccess, owner, socket_mode};
use crate::daemon::conf::HttpServer;

/// The name of the socket that is made beside the daemon's.
const SOCKET_NAME: &str = "twiddler.sock";
/// What every account may do, of the permissions of a directory or a socket.
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_ENTER: u32 = 0o001;

/// The proxy's socket beside the daemon's.
///
/// # Errors
/// Why there can be none, without what to write instead.
pub fn beside(daemons: &Path) -> Result<PathBuf, String> {
    let dir = daemons.parent().unwrap_or(Path::new("/"));
    let shown = dir.display();
    let refused = |cause: io::Error| format!("twiddler cannot make a socket in {shown} ({cause})");
    let found = fs::metadata(dir).map_err(refused)?;
    if found.permissions().mode() & OTHERS_WRITE != 0 {
        return Err(format!("every account may write in {shown}"));
    }
    eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| refused(errno.into()))?;
    match daemons.file_name() == Some(OsStr::new(SOCKET_NAME)) {
        true => Err(format!("supervisord's own socket is {}", daemons.display())),
        false => Ok(dir.join(SOCKET_NAME)),
    }
}

/// Mode, owner and group of the daemon's socket: its own, or while the daemon is away those that
/// its file gives it (`supervisor/options.py`, `_parse_servernames`: 0700, and its own account).
pub fn access_of(daemons: &Path, server: Option<&HttpServer>) -> SocketAccess {
    if let Ok(found) = fs::metadata(daemons) {
        return SocketAccess {
            mode: found.permissions().mode() & 0o777,
            user: Some(found.uid()),
            group: Some(found.gid()),
            like_daemons: true,
        };
    }
    let (user, group) = server
        .and_then(|server| owner(server.chown.as_deref()?))
        .unwrap_or_default();
    SocketAccess {
        mode: mode_in_file(server),
        user,
        group,
        like_daemons: true,
    }
}

/// Whether every account of this machine may open the daemon's socket.
pub fn is_for_all(daemons: &Path, server: Option<&HttpServer>) -> bool {
    let mode = match fs::metadata(daemons) {
        Ok(found) => found.permissions().mode(),
        Err(_) => mode_in_file(server),
    };
    let is_entered = |dir: &Path| {
        fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & OTHERS_ENTER != 0)
    };
    let dir = daemons.parent().map(fs::canonicalize);
    mode & OTHERS_WRITE != 0 && matches!(dir, Some(Ok(dir)) if dir.ancestors().all(is_entered))
}

fn mode_in_file(server: Option<&HttpServer>) -> u32 {
    server
        .and_then(|server| socket_mode(server.chmod.as_deref()?))
        .unwrap_or(DEFAULT_SOCKET_MODE)
}
