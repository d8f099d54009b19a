//! Connections that requests are passed on over, one request at a time on each.
//!
//! The daemon's HTTP server leaves some connections in a state that no later request may meet, so
//! a connection is kept only after a reply that is known to be harmless, and used again only if
//! nothing has come over it since. Knows nothing of what is asked.

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

/// What is sent upstream: bytes of a known length, or the empty body of unknown length that makes
/// the daemon answer 411 by itself.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// How long a connection to the daemon may take; there is no limit on an answer, because starting
/// and stopping with wait take as long as the process does.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle connections are dropped well before the daemon's own 30 minutes
/// (`supervisor/medusa/http_server.py`, `zombie_timeout`).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Kept connections that may turn out to be closed before a request goes over a new one.
const MAX_STALE: usize = 16;
/// A request whose body is no longer is sent to its end though its caller has gone: what such bodies
/// hold of the memory is bounded by the slots alone.
const SMALL_BODY: u64 = 64 * 1024;
/// A reply of more bytes than this takes as long as its reader does.
const LARGE_REPLY: u64 = 64 * 1024;
/// A header block of the daemon's replies is small; its redirects carry what the client sent.
const MAX_REPLY_HEAD: usize = 512 * 1024;

/// Whether a request may meet other requests on its connection.
///
/// The daemon leaves body bytes of many requests unread and answers HEAD and 304 with bytes that
/// no client expects, so only calls under `/RPC2` may share a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// A `POST` under `/RPC2` with its body.
    Shared,
    /// Anything else: a connection of its own, closed afterwards.
    Alone,
}

/// Why there is no reply.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The connections to one daemon.
pub(super) struct Connections {
    address: DaemonAddress,
    gauge: Arc<Gauge>,
    idle: Arc<Idle>,
}

/// Connections that are kept.
#[derive(Default)]
struct Idle {
    ways: Mutex<Vec<PooledConnection>>,
    /// How many may be kept; more may be open while calls are waiting.
    most: AtomicUsize,
}

/// A connection on which one request can be sent. It ends when this is dropped, with whatever the
/// daemon has not taken of a request's body: the daemon drains slowly what follows a head that it has
/// refused.
struct PooledConnection {
    sender: SendRequest<Body>,
    _connection: Serving,
    /// The same socket once more, to ask the kernel about it; only where the way may be kept.
    socket: Option<File>,
    since: Instant,
    /// While it is in use.
    slot: Option<Slot>,
}

/// The task that reads and writes on a connection, ended on drop.
struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connections {
    /// Takes note with `gauge` of whose socket it connects to.
    pub(super) fn new(address: DaemonAddress, gauge: Arc<Gauge>) -> Self {
        Connections {
            address,
            gauge,
            idle: Arc::default(),
        }
    }

    /// How many nobody uses.
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    /// Keeps no more than so many connections that nobody uses.
    pub(super) fn keep_at_most(&self, most: usize) {
        self.idle.most.store(most, Ordering::Relaxed);
        self.idle.lock().truncate(most);
    }

    /// Sends a request and gives the reply's head as soon as it is there. A request that may have
    /// arrived is never sent twice. The `slot` is taken until the connection is free or closed.
    ///
    /// What the daemon answers at once is awaited also when the caller has gone: it accepts one
    /// connection in a turn of its loop, and those that were closed before would fill its queue, so that
    /// nobody reaches it. A large body ends with its caller, who counts for its memory.
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
            // Each that fails is gone, and others are kept in the meantime only by replies.
            for _ in 0..MAX_STALE {
                let Some(mut way) = self.kept() else { break };
                match way.sender.try_send_request(request).await {
                    Ok(reply) => return Ok(self.streamed(reply, way, slot)),
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(error.into_error().into()),
                    },
                }
            }
        }
        let mut way = self.open(reuse).await?;
        let reply = way.sender.send_request(request).await?;
        Ok(self.streamed(reply, way, slot))
    }

    /// A kept connection that is as good as a new one.
    fn kept(&self) -> Option<PooledConnection> {
        let mut idle = self.idle.lock();
        while let Some(way) = idle.pop() {
            if way.is_fresh() {
                return Some(way);
            }
        }
        None
    }

    async fn open(&self, reuse: Reuse) -> Result<PooledConnection, Failure> {
        match &self.address {
            DaemonAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                self.gauge.meet(&stream.peer_cred()?);
                begin(stream, reuse).await
            }
            DaemonAddress::Tcp { host, port } => {
                let connecting = TcpStream::connect((host.as_str(), *port));
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
                    .await
                    .map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
                stream.set_nodelay(true)?;
                begin(stream, reuse).await
            }
        }
    }

    fn streamed(
        &self,
        reply: Response<Incoming>,
        way: PooledConnection,
        mut slot: Slot,
    ) -> Response<ReplyBody> {
        let size = hyper::body::Body::size_hint(reply.body()).exact();
        if size.is_none_or(|size| size > LARGE_REPLY) {
            slot.take_long();
        }
        // Where the daemon finds fault with the head of a request, it takes the body for the next
        // request (`supervisor/medusa/auth_handler.py` does with credentials that it cannot read).
        let was_read = reply.status() == StatusCode::OK;
        reply.map(|body| {
            let mut body = ReplyBody {
                body,
                way: Some(PooledConnection {
                    socket: way.socket.filter(|_| was_read),
                    slot: Some(slot),
                    ..way
                }),
                idle: self.idle.clone(),
            };
            body.keep_way_at_end();
            body
        })
    }
}

async fn begin<S>(stream: S, reuse: Reuse) -> Result<PooledConnection, Failure>
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
    let serving = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to supervisord ended");
        }
    });
    Ok(PooledConnection {
        sender,
        _connection: Serving(serving.abort_handle()),
        socket,
        since: Instant::now(),
        slot: None,
    })
}

impl PooledConnection {
    /// Whether the daemon still holds the other end, and has sent nothing that nobody asked for.
    ///
    /// This asks the kernel, because tokio answers from what it last heard of it, and the daemon
    /// may have restarted this very moment.
    fn is_fresh(&self) -> bool {
        let is_silent = self.socket.as_ref().is_some_and(|mut socket| {
            matches!(socket.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        is_silent && self.sender.is_ready() && self.since.elapsed() < IDLE_TIMEOUT
    }
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Vec<PooledConnection>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a reply of the daemon, as it comes. Its connection ends with it, or is kept.
pub struct ReplyBody {
    body: Incoming,
    /// None once it was kept or given up.
    way: Option<PooledConnection>,
    idle: Arc<Idle>,
}

impl ReplyBody {
    fn look_at(&mut self, data: &Bytes) {
        // The length of a reply that had to wait counts characters, and so falls short of its
        // bytes (`supervisor/xmlrpc.py`, `DeferredXMLRPCResponse`). The rest would be taken for the
        // beginning of the next reply.
        if !data.is_ascii()
            && let Some(way) = &mut self.way
        {
            way.socket = None;
        }
    }

    fn keep_way_at_end(&mut self) {
        if !hyper::body::Body::is_end_stream(&self.body) {
            return;
        }
        let Some(mut way) = self.way.take().filter(|way| way.socket.is_some()) else {
            return;
        };
        way.since = Instant::now();
        let slot = way.slot.take();
        let mut idle = self.idle.lock();
        if idle.len() < self.idle.most.load(Ordering::Relaxed) {
            idle.push(way);
        }
        drop(idle);
        // Whoever is next finds the connection.
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
                    self.look_at(data);
                }
                self.keep_way_at_end();
            }
            Some(Err(_)) | None => self.way = None,
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
