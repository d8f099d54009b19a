//! Listeners, and the connections that they accept.
//!
//! A socket file is created with mode 0600 and gets its owner, group and mode in this order, so that no
//! other account can connect in between.

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

/// How many connections wait in the kernel until they are accepted (`somaxconn` may lower it). The kernel
/// drops further ones, whose clients try again after one second, then two, then four.
const BACKLOG: u32 = 4096;
/// The prefix of the names of sockets by which `check` tries a directory.
const TRIAL_PREFIX: &str = ".t";
/// The mode of a new socket until its owner and group are set.
const OWNER_ONLY: u32 = 0o600;

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A unix socket, whose file is removed with the listener.
    Unix(UnixListener, SocketFile),
}

/// A socket file, which is removed on drop.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or this process may not listen there.
    #[error("{0}")]
    Address(#[source] io::Error),
    /// This process may not give the socket to the configured owner.
    #[error("{0}")]
    Owner(#[source] io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        BindError::Address(error)
    }
}

impl Listener {
    /// Binds `address`. A socket file without a listener is replaced. The new one gets owner, group and
    /// mode from `access`.
    ///
    /// # Errors
    /// When the address is taken, or this process may not listen there.
    pub async fn bind(address: &ListenAddr, access: &SocketAccess) -> Result<Self, BindError> {
        match address {
            ListenAddr::Tcp(address) => Ok(Listener::Tcp(listen(*address)?)),
            ListenAddr::Unix(path) => {
                if is_stale(path).await? {
                    std::fs::remove_file(path)?;
                }
                Listener::bind_at(path, access)
            }
        }
    }

    /// Tries whether [`Listener::bind`] would work. A port stays bound as long as the returned listener
    /// exists. A unix socket is bound under another name in the same directory and removed, so that no
    /// client connects to it.
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
        is_stale(path).await?;
        // The real path may be too long for a socket although the trial path is not.
        std::os::unix::net::SocketAddr::from_pathname(path)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut name = tempfile::Builder::new();
        let trial = name.prefix(TRIAL_PREFIX).rand_bytes(4);
        let trial = trial.make_in(dir, bind_for_owner)?;
        set_access(trial.path(), access)?;
        Ok(None)
    }

    fn bind_at(path: &Path, access: &SocketAccess) -> Result<Self, BindError> {
        let listener = bind_for_owner(path)?;
        let file = SocketFile(path.to_owned());
        set_access(path, access)?;
        Ok(Listener::Unix(listener, file))
    }

    /// The address on which it listens. For the port 0 it has the port that the kernel chose.
    ///
    /// # Errors
    /// When the kernel does not return the address.
    pub fn address(&self) -> io::Result<ListenAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(ListenAddr::Tcp),
            Listener::Unix(_, file) => Ok(ListenAddr::Unix(file.0.clone())),
        }
    }

    /// The address on which it listens, as a URL.
    pub fn url(&self) -> String {
        match self.address() {
            Ok(address) => address.to_string(),
            Err(error) => format!("http://? ({error})"),
        }
    }

    /// Accepts the next connection. Returns the stream, how it came in, and its peer.
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Ingress, Peer, Origin)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let here = stream.local_addr()?.ip().to_canonical();
                let ingress = if here.is_loopback() {
                    Ingress::Loopback
                } else {
                    Ingress::Network
                };
                let origin = Origin::at(peer.ip());
                Ok((Box::new(stream), ingress, Peer::Tcp(peer), origin))
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

/// A connection over TCP or a unix socket, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The TCP socket, whose client may vanish without a FIN; `None` for a unix socket.
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

/// Listens on a port. `SO_REUSEADDR` lets a restarted proxy listen while old connections are in TIME_WAIT.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sets the owner and the group of a new socket, and then its mode.
fn set_access(path: &Path, access: &SocketAccess) -> Result<(), BindError> {
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
    let result = fchmodat(AT_FDCWD, path, bits(mode), FchmodatFlags::NoFollowSymlink);
    Ok(result.map_err(io::Error::from)?)
}

/// Binds a socket whose file has the mode [`OWNER_ONLY`] from the beginning.
fn bind_for_owner(path: &Path) -> io::Result<UnixListener> {
    let old_umask = umask(bits(0o777 & !OWNER_ONLY));
    let result = UnixListener::bind(path);
    umask(old_umask);
    result
}

fn bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

/// Whether the path is a socket file without a listener, which a killed proxy leaves behind.
///
/// # Errors
/// `AddrInUse` for a socket with a listener, `AlreadyExists` for another file, or why neither is known.
async fn is_stale(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
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

    /// Sets a default ACL that gives the group 4 all permissions on new files, in the kernel's format
    /// (`linux/posix_acl_xattr.h`).
    const SET_DEFAULT_ACL: &str = "
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
            let metadata = fs::symlink_metadata(&path).unwrap();
            drop(listener);
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode("without_acl"), OWNER_ONLY);
        let mut python = Command::new("python3");
        let output = python
            .args(["-c", SET_DEFAULT_ACL])
            .arg(dir.path())
            .output()
            .unwrap();
        if !output.status.success() {
            // Not every file system has ACLs.
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(stderr.contains("Operation not supported"), "{stderr}");
            return;
        }
        assert_eq!(mode("with_acl"), OWNER_ONLY);
    }
}
