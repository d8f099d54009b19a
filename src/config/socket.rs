//! The proxy's unix sockets: mode and owner, and the one beside the daemon's socket, for the same
//! accounts, where nothing says where to listen.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Group, Uid, User, eaccess};

use super::sources::Resolver;
use crate::daemon::conf::HttpServer;

/// The name of the socket that is made beside the daemon's.
const SOCKET_NAME: &str = "twiddler.sock";
/// What every account may do, of the permissions of a directory or a socket.
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_ENTER: u32 = 0o001;
/// The directory that the systemd unit makes for its account, and root may make.
const SERVICE_DIR: &str = "/run/twiddler";
/// In the home of an account that may not.
const OWN_DIR: &str = ".twiddler";

/// A socket is for its owner alone, as supervisord's is by default.
pub const DEFAULT_SOCKET_MODE: u32 = 0o700;

/// Mode and owner of a unix socket, as supervisord has them for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permission bits.
    pub mode: u32,
    /// The owner; none to leave it.
    pub user: Option<u32>,
    /// The group; none to leave it.
    pub group: Option<u32>,
    /// Whether all three are those of the daemon's socket: what the proxy's account may not give is
    /// left, and the mode is narrowed, so that the socket is open to nobody else.
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

/// What is written of mode and owner of the proxy's sockets.
pub(super) struct WrittenAccess {
    mode: Option<u32>,
    owner: Option<(Option<u32>, Option<u32>)>,
}

impl WrittenAccess {
    /// What is written goes before what would be without.
    pub(super) fn over(&self, other: SocketAccess) -> SocketAccess {
        let (user, group) = self.owner.unwrap_or((other.user, other.group));
        SocketAccess {
            mode: self.mode.unwrap_or(other.mode),
            user,
            group,
            like_daemons: other.like_daemons && self.owner.is_none(),
        }
    }
}

impl Resolver<'_> {
    /// What is written of the sockets.
    pub(super) fn socket(&mut self) -> WrittenAccess {
        let someone = "a user, or user:group, that exists here";
        WrittenAccess {
            mode: self.read("chmod", "octal digits such as 0770", socket_mode),
            owner: self.read("chown", someone, owner),
        }
    }
}

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
    if daemons.file_name() == Some(OsStr::new(SOCKET_NAME)) {
        return Err(format!("supervisord's own socket is {}", daemons.display()));
    }
    Ok(dir.join(SOCKET_NAME))
}

/// What to write for a socket where this account may make one and no other may: the line, and what
/// has to be typed before. An account without such a place takes a port.
pub fn advice() -> String {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = std::env::home_dir().filter(|home| is_ours(home));
    let service = Some(PathBuf::from(SERVICE_DIR));
    let is_root = Uid::effective().is_root();
    let there = |dir: &PathBuf| is_ours(dir);
    let (dir, mode) = match service.clone().filter(there).or(runtime.filter(there)) {
        Some(dir) => (Some(dir), None),
        None if is_root => (service, Some("755")),
        None => (own.map(|home| home.join(OWN_DIR)), Some("700")),
    };
    let Some(dir) = dir else {
        return "listen = 127.0.0.1:9002 with username = NAME and password = PASSWORD in [twiddler]"
            .to_owned();
    };
    let line = format!(
        "listen = unix://{}/{SOCKET_NAME} in [twiddler]",
        dir.display()
    );
    match mode.filter(|_| !is_ours(&dir)) {
        Some(mode) => format!("{line}, after mkdir -m {mode} {}", dir.display()),
        None => line,
    }
}

/// Whether this account may make a socket in a directory, and not every account may.
fn is_ours(dir: &Path) -> bool {
    let for_others = |found: fs::Metadata| found.permissions().mode() & OTHERS_WRITE != 0;
    fs::metadata(dir).is_ok_and(|found| found.is_dir() && !for_others(found))
        && eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// Mode, owner and group of the daemon's socket: its own, or while the daemon is away those that
/// its file gives it (`supervisor/options.py`, `_parse_servernames`: 0700, and its own account).
pub fn access_of(daemons: &Path, server: Option<&HttpServer>) -> SocketAccess {
    let (mode, user, group) = match fs::metadata(daemons) {
        Ok(found) => (
            found.permissions().mode() & 0o777,
            Some(found.uid()),
            Some(found.gid()),
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
    let mode = server.and_then(|server| socket_mode(server.chmod.as_deref()?));
    mode.unwrap_or(DEFAULT_SOCKET_MODE)
}

/// The mode of a socket, as the file has it.
fn socket_mode(text: &str) -> Option<u32> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    let mode = u32::from_str_radix(digits, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
}

/// The owner of a socket, as the file has it: a user, and perhaps a group.
fn owner(text: &str) -> Option<(Option<u32>, Option<u32>)> {
    let text = text.trim();
    match text.split_once(':') {
        Some((user, group)) => Some((Some(user_id(user)?), Some(group_id(group)?))),
        None => Some((Some(user_id(text)?), None)),
    }
}

fn user_id(name: &str) -> Option<u32> {
    let named = || User::from_name(name).ok().flatten();
    name.parse().ok().or_else(|| Some(named()?.uid.as_raw()))
}

fn group_id(name: &str) -> Option<u32> {
    let named = || Group::from_name(name).ok().flatten();
    name.parse().ok().or_else(|| Some(named()?.gid.as_raw()))
}
