//! Detects that the daemon has restarted, without a call to it.
//!
//! The daemon closes all connections when it restarts, even on `supervisor.restart()`, which keeps its
//! pid. An idle connection that is still open therefore proves that the epoch is the same. A closed one
//! does not prove a restart, because the daemon also closes connections that are idle for half an hour
//! (`supervisor/medusa/http_server.py`, `zombie_timeout`). The proxy then has to ask the daemon.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::conf::DaemonAddress;

/// An idle connection to the daemon, on which no request is sent.
#[derive(Default)]
pub struct Liveness {
    connection: Mutex<Option<Connection>>,
}

/// How long [`Liveness::broken`] waits if no file descriptor is free to watch the connection.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(500);

enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Liveness {
    /// Returns whether the daemon has run without a restart since [`Liveness::watch`] succeeded. Costs
    /// one system call.
    pub fn is_unbroken(&self) -> bool {
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let open = connection.as_mut().is_some_and(Connection::is_open);
        if !open {
            *connection = None;
        }
        open
    }

    /// Waits until the daemon closes the current connection. Returns at once if there is none.
    pub async fn broken(&self) {
        let duplicate = {
            let connection = self
                .connection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            connection.as_ref().map(Connection::duplicate)
        };
        // The daemon sends nothing on an idle connection, so a read returns at its end or on an error.
        match duplicate {
            Some(Ok(Duplicate::Unix(mut stream))) => drop(stream.read(&mut [0]).await),
            Some(Ok(Duplicate::Tcp(mut stream))) => drop(stream.read(&mut [0]).await),
            // No file descriptor is free. The wait keeps a caller's loop from using a whole core.
            Some(Err(_)) => tokio::time::sleep(WITHOUT_DESCRIPTOR).await,
            None => {}
        }
    }

    /// Drops the connection, so that the daemon counts as restarted.
    pub fn forget(&self) {
        *self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Connects to the daemon at `address`. Replies to later calls are of the current epoch as long as
    /// [`Liveness::is_unbroken`] returns true.
    ///
    /// # Errors
    /// If the daemon cannot be reached.
    pub async fn watch(&self, address: &DaemonAddress) -> std::io::Result<()> {
        let connection = Connection::open(address).await?;
        *self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(connection);
        Ok(())
    }
}

/// A duplicate of a connection, registered with tokio.
enum Duplicate {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Connection {
    fn duplicate(&self) -> std::io::Result<Duplicate> {
        Ok(match self {
            Connection::Unix(stream) => {
                Duplicate::Unix(tokio::net::UnixStream::from_std(stream.try_clone()?)?)
            }
            Connection::Tcp(stream) => {
                Duplicate::Tcp(tokio::net::TcpStream::from_std(stream.try_clone()?)?)
            }
        })
    }

    async fn open(address: &DaemonAddress) -> std::io::Result<Self> {
        // These are the standard library's sockets, because tokio's readiness may be outdated.
        match address {
            DaemonAddress::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await?.into_std()?;
                Ok(Connection::Unix(stream))
            }
            DaemonAddress::Tcp { host, port } => {
                let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                Ok(Connection::Tcp(stream.into_std()?))
            }
        }
    }

    fn is_open(&mut self) -> bool {
        let read = match self {
            Connection::Unix(stream) => stream.read(&mut [0]),
            Connection::Tcp(stream) => stream.read(&mut [0]),
        };
        matches!(read, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
    }
}
