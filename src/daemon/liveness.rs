//! Notices that the daemon has started again, without asking it.
//!
//! The daemon closes every connection when it restarts, also on `supervisor.restart()`, which keeps
//! its pid. So an idle connection that is still open means: the same life. One that was closed
//! means only that somebody must ask, because the daemon also closes connections that idle for
//! half an hour (`supervisor/medusa/http_server.py`, `zombie_timeout`).

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::conf::DaemonAddress;

/// A connection to the daemon that is never used.
#[derive(Default)]
pub struct Liveness {
    connection: Mutex<Option<Connection>>,
}

/// How long a connection is taken for unbroken that cannot be waited on.
const UNWATCHED: Duration = Duration::from_millis(500);

enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Liveness {
    /// Whether the daemon has been up without a break since [`Liveness::watch`] succeeded. Costs one
    /// system call.
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

    /// Done when the daemon has broken the connection that is watched now, at once if there is none.
    pub async fn broken(&self) {
        let watched = {
            let connection = self
                .connection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            connection.as_ref().map(Connection::second)
        };
        // The daemon has nothing to say: what comes is the end, however it is told.
        match watched {
            Some(Ok(Second::Unix(mut stream))) => drop(stream.read(&mut [0]).await),
            Some(Ok(Second::Tcp(mut stream))) => drop(stream.read(&mut [0]).await),
            // No descriptor is free to wait on: whoever asks again at once would take all of a core.
            Some(Err(_)) => tokio::time::sleep(UNWATCHED).await,
            None => {}
        }
    }

    /// Trusts the connection no longer.
    pub fn forget(&self) {
        *self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Begins to watch the daemon at `address`. What is asked of the daemon after this is known to
    /// be of the life that is watched.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn watch(&self, address: &DaemonAddress) -> std::io::Result<()> {
        let connection = Connection::open(address).await?;
        *self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(connection);
        Ok(())
    }
}

/// The same connection, to wait on.
enum Second {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Connection {
    fn second(&self) -> std::io::Result<Second> {
        Ok(match self {
            Connection::Unix(stream) => {
                Second::Unix(tokio::net::UnixStream::from_std(stream.try_clone()?)?)
            }
            Connection::Tcp(stream) => {
                Second::Tcp(tokio::net::TcpStream::from_std(stream.try_clone()?)?)
            }
        })
    }

    async fn open(address: &DaemonAddress) -> std::io::Result<Self> {
        // The standard library's sockets, because tokio's answer from what it last heard of the
        // kernel, and this question is about now.
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
