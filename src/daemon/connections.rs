//! The pool of connections for forwarded requests, with one request at a time on each.
//!
//! The daemon's HTTP server leaves some connections in a state in which a later request would get a
//! wrong reply. A connection is therefore reused only after a reply that is known to be safe, and only
//! if no byte has arrived since. This module does not look at the contents of requests.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;

use super::conf::DaemonAddress;
use super::descriptors::Gauge;
use super::slots::Slot;

/// The body of a request to the daemon: bytes of a known length, or an empty body of unknown length, to
/// which the daemon answers 411.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// How long connecting to the daemon may take. A reply has no such limit, because a call that starts or
/// stops a process with `wait` takes as long as the process does.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection may be idle. The daemon closes it after 30 minutes
/// (`supervisor/medusa/http_server.py`, `zombie_timeout`).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How many stale connections a request may try before it opens a new one.
const MAX_STALE: usize = 16;
/// The longest body, in bytes, that is sent completely even after its client has closed the connection.
/// The number of slots bounds the memory that these bodies take.
const SMALL_BODY: u64 = 64 * 1024;
/// The longest reply, in bytes, that does not depend on how fast the client reads.
const LARGE_REPLY: u64 = 64 * 1024;
/// The longest head of a reply, in bytes. A redirect of the daemon repeats the path of the request.
const MAX_REPLY_HEAD: usize = 512 * 1024;

/// Whether a request may share its connection with other requests.
///
/// The daemon does not read the bodies of many requests, and sends a body with replies to HEAD and with
/// 304. Only calls to `/RPC2` may therefore share a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// A `POST` to `/RPC2` with a body.
    Shared,
    /// Any other request: it has a connection of its own, which is closed afterwards.
    Alone,
}

/// Why a request has no reply.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The connections to one daemon.
pub(super) struct Connections {
    address: DaemonAddress,
    gauge: Arc<Gauge>,
    idle: Arc<Idle>,
}

/// The idle connections.
#[derive(Default)]
struct Idle {
    connections: Mutex<Vec<PooledConnection>>,
    /// The largest number of idle connections. More may be open while calls are in progress.
    limit: AtomicUsize,
}

/// A connection for one request at a time. Dropping it closes the connection without sending the rest of
/// a body, because the daemon is slow to read a body whose head it has refused.
struct PooledConnection {
    sender: SendRequest<Body>,
    _task: ConnectionTask,
    /// A duplicate of the socket, to ask the kernel about it. `None` if the connection must not be reused.
    socket: Option<File>,
    idle_since: Instant,
    /// The slot that the connection takes while it is in use.
    slot: Option<Slot>,
}

/// The task that reads and writes on a connection. Dropping this aborts it.
struct ConnectionTask(AbortHandle);

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connections {
    /// Returns an empty pool for the daemon at `address`. `gauge` records the peer of each unix socket.
    pub(super) fn new(address: DaemonAddress, gauge: Arc<Gauge>) -> Self {
        Connections {
            address,
            gauge,
            idle: Arc::default(),
        }
    }

    /// Returns the number of idle connections.
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    /// Sets the largest number of idle connections, and closes the surplus.
    pub(super) fn limit_idle(&self, limit: usize) {
        self.idle.limit.store(limit, Ordering::Relaxed);
        self.idle.lock().truncate(limit);
    }

    /// Sends a request and returns the reply as soon as its head has arrived. A request that the daemon
    /// may have received is never sent twice. The `slot` is taken until the connection is idle or closed.
    ///
    /// A quick call with a small body continues if its client closes the connection: the daemon accepts
    /// one connection per iteration of its main loop, so that connections which are closed before would
    /// fill its queue and block all clients. A call with a large body ends with its client, because the
    /// limits count its memory as that client's.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request<Body>,
        reuse: Reuse,
        slot: Slot,
    ) -> Result<Response<ReplyBody>, Failure> {
        let size = hyper::body::Body::size_hint(request.body()).upper();
        if !slot.is_quick() || size.is_none_or(|size| size > SMALL_BODY) {
            return self.exchange(request, reuse, slot).await;
        }
        let connections = self.clone();
        let exchange = async move { connections.exchange(request, reuse, slot).await };
        tokio::spawn(exchange).await?
    }

    async fn exchange(
        &self,
        mut request: Request<Body>,
        reuse: Reuse,
        slot: Slot,
    ) -> Result<Response<ReplyBody>, Failure> {
        if reuse == Reuse::Shared {
            for _ in 0..MAX_STALE {
                let Some(mut connection) = self.pop_idle() else {
                    break;
                };
                match connection.sender.try_send_request(request).await {
                    Ok(reply) => return Ok(self.stream(reply, connection, slot)),
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(error.into_error().into()),
                    },
                }
            }
        }
        let mut connection = self.open(reuse).await?;
        let reply = connection.sender.send_request(request).await?;
        Ok(self.stream(reply, connection, slot))
    }

    /// Returns an idle connection that is usable. Drops the others before it.
    fn pop_idle(&self) -> Option<PooledConnection> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_fresh() {
                return Some(connection);
            }
        }
        None
    }

    async fn open(&self, reuse: Reuse) -> Result<PooledConnection, Failure> {
        match &self.address {
            DaemonAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                self.gauge.record_peer(&stream.peer_cred()?);
                handshake(stream, reuse).await
            }
            DaemonAddress::Tcp { host, port } => {
                let connecting = TcpStream::connect((host.as_str(), *port));
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
                    .await
                    .map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
                stream.set_nodelay(true)?;
                handshake(stream, reuse).await
            }
        }
    }

    /// Returns the reply with a body that returns its connection to the pool at the end.
    fn stream(
        &self,
        reply: Response<Incoming>,
        connection: PooledConnection,
        mut slot: Slot,
    ) -> Response<ReplyBody> {
        let size = hyper::body::Body::size_hint(reply.body()).exact();
        if size.is_none_or(|size| size > LARGE_REPLY) {
            slot.move_to_waiting();
        }
        // If the daemon refuses the head of a request, it reads the body as the next request
        // (`supervisor/medusa/auth_handler.py` does so for malformed credentials).
        let has_read_body = reply.status() == StatusCode::OK;
        reply.map(|body| {
            let mut body = ReplyBody {
                body,
                connection: Some(PooledConnection {
                    socket: connection.socket.filter(|_| has_read_body),
                    slot: Some(slot),
                    ..connection
                }),
                idle: self.idle.clone(),
            };
            body.release_at_end();
            body
        })
    }
}

async fn handshake<S>(stream: S, reuse: Reuse) -> Result<PooledConnection, Failure>
where
    S: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static,
{
    let socket = match reuse {
        Reuse::Shared => Some(File::from(stream.as_fd().try_clone_to_owned()?)),
        Reuse::Alone => None,
    };
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .title_case_headers(true)
        .max_buf_size(MAX_REPLY_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to supervisord ended");
        }
    });
    Ok(PooledConnection {
        sender,
        _task: ConnectionTask(task.abort_handle()),
        socket,
        idle_since: Instant::now(),
        slot: None,
    })
}

impl PooledConnection {
    /// Returns whether the daemon has neither closed the connection nor sent anything on it.
    ///
    /// This reads from the socket, because tokio's readiness may be outdated if the daemon has just
    /// restarted.
    fn is_fresh(&self) -> bool {
        let is_silent = self.socket.as_ref().is_some_and(|mut socket| {
            matches!(socket.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        is_silent && self.sender.is_ready() && self.idle_since.elapsed() < IDLE_TIMEOUT
    }
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Vec<PooledConnection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a reply of the daemon, as a stream. At its end the connection becomes idle or is closed.
pub struct ReplyBody {
    body: Incoming,
    /// `None` after the connection has become idle or was closed.
    connection: Option<PooledConnection>,
    idle: Arc<Idle>,
}

impl ReplyBody {
    /// Excludes the connection from reuse if the reply is not ASCII. The daemon computes the length of a
    /// deferred reply in characters (`supervisor/xmlrpc.py`, `DeferredXMLRPCResponse`), so that the
    /// bytes beyond it would be read as the beginning of the next reply.
    fn check_ascii(&mut self, data: &Bytes) {
        if !data.is_ascii()
            && let Some(connection) = &mut self.connection
        {
            connection.socket = None;
        }
    }

    /// Returns the connection to the pool if the body has ended.
    fn release_at_end(&mut self) {
        if !hyper::body::Body::is_end_stream(&self.body) {
            return;
        }
        let connection = self.connection.take();
        let Some(mut connection) = connection.filter(|connection| connection.socket.is_some())
        else {
            return;
        };
        connection.idle_since = Instant::now();
        let slot = connection.slot.take();
        let mut idle = self.idle.lock();
        if idle.len() < self.idle.limit.load(Ordering::Relaxed) {
            idle.push(connection);
        }
        drop(idle);
        // The slot is released last, so that the next call finds the idle connection.
        drop(slot);
    }
}

impl hyper::body::Body for ReplyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.check_ascii(data);
                }
                self.release_at_end();
            }
            Some(Err(_)) | None => self.connection = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
