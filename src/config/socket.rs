//! The mode and the owner of the proxy's unix sockets, and the default socket beside the daemon's, which is
//! open to the same accounts.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Group, Uid, User, eaccess};

use super::sources::Resolver;
use crate::daemon::conf::HttpServer;

/// The file name of the default socket.
const SOCKET_NAME: &str = "twiddler.sock";
/// The permission of all other accounts to write to a directory or a socket.
const OTHERS_WRITE: u32 = 0o002;
/// The permission of all other accounts to enter a directory.
const OTHERS_ENTER: u32 = 0o001;
/// The directory that the systemd unit creates for its account, and that root may create.
const SERVICE_DIR: &str = "/run/twiddler";
/// The directory in the home of an account that may not create [`SERVICE_DIR`].
const HOME_DIR: &str = ".twiddler";

/// The default mode: only the owner may connect, as with supervisord's socket.
pub const DEFAULT_SOCKET_MODE: u32 = 0o700;

/// Mode, owner and group of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permission bits.
    pub mode: u32,
    /// The uid of the owner; `None` does not change it.
    pub user: Option<u32>,
    /// The gid of the group; `None` does not change it.
    pub group: Option<u32>,
    /// Whether all three are those of the daemon's socket. If the proxy's account may not set the owner or
    /// the group, the mode is narrowed, so that no other account may connect.
    pub like_daemons: bool,
}

impl Default for SocketAccess {
    fn default() -> Self {
        SocketAccess {
            mode: DEFAULT_SOCKET_MODE,
            user: None,
            group: None,
            like_daemons: false,
        }
    }
}

/// The options `chmod` and `chown`.
pub(super) struct SocketOptions {
    mode: Option<u32>,
    /// The uid and the gid.
    owner: Option<(Option<u32>, Option<u32>)>,
}

impl SocketOptions {
    /// The options, with `default` for the ones that are not set.
    pub(super) fn over(&self, default: SocketAccess) -> SocketAccess {
        let (user, group) = self.owner.unwrap_or((default.user, default.group));
        SocketAccess {
            mode: self.mode.unwrap_or(default.mode),
            user,
            group,
            like_daemons: default.like_daemons && self.owner.is_none(),
        }
    }
}

impl Resolver<'_> {
    /// Reads the options `chmod` and `chown`.
    pub(super) fn socket(&mut self) -> SocketOptions {
        let owners = "a user, or user:group, that exists here";
        SocketOptions {
            mode: self.read("chmod", "octal digits such as 0770", socket_mode),
            owner: self.read("chown", owners, owner),
        }
    }
}

/// The path of the default socket beside the daemon's socket `daemons`.
///
/// # Errors
/// Why the proxy cannot or must not create a socket there. The text has no advice.
pub fn beside(daemons: &Path) -> Result<PathBuf, String> {
    let dir = daemons.parent().unwrap_or(Path::new("/"));
    let shown = dir.display();
    let failed = |cause: io::Error| format!("twiddler cannot make a socket in {shown} ({cause})");
    let metadata = fs::metadata(dir).map_err(failed)?;
    if metadata.permissions().mode() & OTHERS_WRITE != 0 {
        return Err(format!("every account may write in {shown}"));
    }
    eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| failed(errno.into()))?;
    if daemons.file_name() == Some(OsStr::new(SOCKET_NAME)) {
        return Err(format!("supervisord's own socket is {}", daemons.display()));
    }
    Ok(dir.join(SOCKET_NAME))
}

/// The advice for `listen`: a socket in a directory where this account may create one and not every
/// account may, with the command that creates the directory if it does not exist. Without such a directory
/// it is a port with credentials.
pub fn advice() -> String {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let home = std::env::home_dir().filter(|home| is_private(home));
    let service = Some(PathBuf::from(SERVICE_DIR));
    let is_root = Uid::effective().is_root();
    let usable = |dir: &PathBuf| is_private(dir);
    let (dir, mode) = match service.clone().filter(usable).or(runtime.filter(usable)) {
        Some(dir) => (Some(dir), None),
        None if is_root => (service, Some("755")),
        None => (home.map(|home| home.join(HOME_DIR)), Some("700")),
    };
    let Some(dir) = dir else {
        return "listen = 127.0.0.1:9002 with username = NAME and password = PASSWORD in [twiddler]"
            .to_owned();
    };
    let line = format!(
        "listen = unix://{}/{SOCKET_NAME} in [twiddler]",
        dir.display()
    );
    match mode.filter(|_| !is_private(&dir)) {
        Some(mode) => format!("{line}, after mkdir -m {mode} {}", dir.display()),
        None => line,
    }
}

/// Whether this account may create a socket in a directory, and not every account may.
fn is_private(dir: &Path) -> bool {
    let is_open = |metadata: &fs::Metadata| metadata.permissions().mode() & OTHERS_WRITE != 0;
    fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && !is_open(&metadata))
        && eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// Mode, owner and group of the daemon's socket. While the socket does not exist, they come from the
/// daemon's file (`supervisor/options.py`, `_parse_servernames`: by default 0700, and its own account).
pub fn access_of(daemons: &Path, server: Option<&HttpServer>) -> SocketAccess {
    let (mode, user, group) = match fs::metadata(daemons) {
        Ok(metadata) => (
            metadata.permissions().mode() & 0o777,
            Some(metadata.uid()),
            Some(metadata.gid()),
        ),
        Err(_) => {
            let owner = server.and_then(|server| owner(server.chown.as_deref()?));
            let (user, group) = owner.unwrap_or_default();
            (mode_in_file(server), user, group)
        }
    };
    SocketAccess {
        mode,
        user,
        group,
        like_daemons: true,
    }
}

/// Whether every account of this machine may connect to the daemon's socket.
pub fn is_for_all(daemons: &Path, server: Option<&HttpServer>) -> bool {
    let mode = match fs::metadata(daemons) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(_) => mode_in_file(server),
    };
    let can_be_entered = |dir: &Path| {
        fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS_ENTER != 0)
    };
    let dir = daemons.parent().map(fs::canonicalize);
    mode & OTHERS_WRITE != 0 && matches!(dir, Some(Ok(dir)) if dir.ancestors().all(can_be_entered))
}

fn mode_in_file(server: Option<&HttpServer>) -> u32 {
    let mode = server.and_then(|server| socket_mode(server.chmod.as_deref()?));
    mode.unwrap_or(DEFAULT_SOCKET_MODE)
}

/// Parses the mode of a socket: octal digits.
fn socket_mode(text: &str) -> Option<u32> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    let mode = u32::from_str_radix(digits, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
}

/// Parses the owner of a socket, `user` or `user:group`, to a uid and a gid.
fn owner(text: &str) -> Option<(Option<u32>, Option<u32>)> {
    let text = text.trim();
    match text.split_once(':') {
        Some((user, group)) => Some((Some(user_id(user)?), Some(group_id(group)?))),
        None => Some((Some(user_id(text)?), None)),
    }
}

fn user_id(name: &str) -> Option<u32> {
    let user = || User::from_name(name).ok().flatten();
    name.parse().ok().or_else(|| Some(user()?.uid.as_raw()))
}

fn group_id(name: &str) -> Option<u32> {
    let group = || Group::from_name(name).ok().flatten();
    name.parse().ok().or_else(|| Some(group()?.gid.as_raw()))
}
