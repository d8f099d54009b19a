//! Listeners, and the connections that they accept.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, umask};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::access::Ingress;
use crate::audit::Peer;
use crate::config::exposure::narrowed;
use crate::config::{ListenAddr, SocketAccess};
use crate::daemon::Origin;
use crate::limits::TimedStream;

/// Connections that the kernel holds until they are accepted, where `somaxconn` lets it have so many.
/// It drops what comes beyond, and whoever is dropped tries again after one second, then two, then four.
const BACKLOG: u32 = 4096;
/// Begins the names of sockets that only try whether one could be there.
const TRIAL_PREFIX: &str = ".t";
/// The mode of a new socket until its owner and group are set.
const OWNER_ALONE: u32 = 0o600;

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A unix socket, which is taken away with the listener.
    Unix(UnixListener, SocketFile),
}

/// A socket file that goes with its listener.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already; there is nobody left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or not for us.
    #[error("{0}")]
    Address(#[source] io::Error),
    /// The socket cannot be given to the owner that was named.
    #[error("{0}")]
    Owner(#[source] io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        BindError::Address(error)
    }
}

impl Listener {
    /// Binds `address`. A socket that nobody listens on any more is replaced, and is for those whom
    /// `access` names.
    ///
    /// # Errors
    /// When the address is taken or not allowed.
    pub async fn bind(address: &ListenAddr, access: &SocketAccess) -> Result<Self, BindError> {
        match address {
            ListenAddr::Tcp(address) => Ok(Listener::Tcp(listen(*address)?)),
            ListenAddr::Unix(path) => {
                if is_left_over(path).await? {
                    std::fs::remove_file(path)?;
                }
                Listener::bind_at(path, access)
            }
        }
    }

    /// Tries what [`Listener::bind`] does. A port stays taken while the result lives; a unix socket
    /// is tried under another name beside it, so that nobody finds it there.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn try_bind(
        address: &ListenAddr,
        access: &SocketAccess,
    ) -> Result<Option<Self>, BindError> {
        let ListenAddr::Unix(path) = address else {
            return Listener::bind(address, access).await.map(Some);
        };
        is_left_over(path).await?;
        // The other name may fit where the real one does not.
        std::os::unix::net::SocketAddr::from_pathname(path)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut name = tempfile::Builder::new();
        let trial = name.prefix(TRIAL_PREFIX).rand_bytes(4);
        let trial = trial.make_in(dir, bind_for_owner)?;
        hand_over(trial.path(), access)?;
        Ok(None)
    }

    fn bind_at(path: &Path, access: &SocketAccess) -> Result<Self, BindError> {
        let listener = bind_for_owner(path)?;
        let file = SocketFile(path.to_owned());
        hand_over(path, access)?;
        Ok(Listener::Unix(listener, file))
    }

    /// Where it listens; a port that the system chose is known then.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<ListenAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(ListenAddr::Tcp),
            Listener::Unix(_, file) => Ok(ListenAddr::Unix(file.0.clone())),
        }
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        match self.address() {
            Ok(address) => address.to_string(),
            Err(error) => format!("http://? ({error})"),
        }
    }

    /// The next connection: how it came in, and from whom.
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Ingress, Peer, Origin)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let here = stream.local_addr()?.ip().to_canonical();
                let way = if here.is_loopback() {
                    Ingress::Loopback
                } else {
                    Ingress::Network
                };
                let origin = Origin::at(peer.ip());
                Ok((Box::new(stream), way, Peer::Tcp(peer), origin))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred()?;
                let peer = Peer::Account(process.uid());
                Ok((
                    Box::new(stream),
                    Ingress::Socket,
                    peer,
                    Origin::with(&process),
                ))
            }
        }
    }
}

/// Either kind of connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket of a client that may vanish without a word; nothing where the kernel tells of its end.
    fn tcp(&self) -> Option<&TcpStream>;
}

impl Stream for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Stream for UnixStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Stream for TlsStream<Box<dyn Stream>> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().0.tcp()
    }
}

impl Stream for TimedStream<Box<dyn Stream>> {
    fn tcp(&self) -> Option<&TcpStream> {
        self.get_ref().tcp()
    }
}

/// Listens on a port that may have been listened on a moment ago.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Gives a new socket its owner, its group, and then its mode.
fn hand_over(path: &Path, access: &SocketAccess) -> Result<(), BindError> {
    let mode = if access.like_daemons {
        let has_owner = access.user.is_some() && lchown(path, access.user, None).is_ok();
        let has_group = access.group.is_some() && lchown(path, None, access.group).is_ok();
        narrowed(access.mode, has_owner, has_group)
    } else {
        if access.user.is_some() || access.group.is_some() {
            lchown(path, access.user, access.group).map_err(BindError::Owner)?;
        }
        access.mode
    };
    let set = fchmodat(AT_FDCWD, path, bits(mode), FchmodatFlags::NoFollowSymlink);
    Ok(set.map_err(io::Error::from)?)
}

/// A new socket is there for its owner alone, from its first moment on.
fn bind_for_owner(path: &Path) -> io::Result<UnixListener> {
    let former = umask(bits(0o777 & !OWNER_ALONE));
    let bound = UnixListener::bind(path);
    umask(former);
    bound
}

fn bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

/// Whether a socket file is there without a listener: a left-over of a proxy that died.
async fn is_left_over(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ErrorKind::AlreadyExists.into());
        }
        Ok(_) => {}
    }
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// An access list that lets the group of number 4 do everything with each new file, as the
    /// kernel keeps it (`linux/posix_acl_xattr.h`).
    const DEFAULT_LIST: &str = "
import os, struct, sys
entries = [(1, 7, 0xffffffff), (4, 7, 0xffffffff), (8, 7, 4), (16, 7, 0xffffffff), (32, 7, 0xffffffff)]
packed = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
os.setxattr(sys.argv[1], 'system.posix_acl_default', packed)
";

    #[tokio::test]
    async fn a_new_socket_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str| {
            let path = dir.path().join(name);
            let listener = bind_for_owner(&path).unwrap();
            let found = fs::symlink_metadata(&path).unwrap();
            drop(listener);
            found.permissions().mode() & 0o777
        };
        assert_eq!(mode("plain"), OWNER_ALONE);
        let mut python = Command::new("python3");
        let given = python.args(["-c", DEFAULT_LIST]).arg(dir.path()).output();
        let given = given.unwrap();
        if !given.status.success() {
            // Not every file system has access lists.
            let said = String::from_utf8_lossy(&given.stderr).into_owned();
            assert!(said.contains("Operation not supported"), "{said}");
            return;
        }
        assert_eq!(mode("listed"), OWNER_ALONE);
    }
}
