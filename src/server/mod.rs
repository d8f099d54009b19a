//! Listeners and connections: how clients get in, and how everything ends.

pub mod tls;

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use http::StatusCode;
use hyper::body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, umask};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::{Sleep, timeout};
use tower_service::Service;

use crate::access::Ingress;
use crate::audit::{Flood, Floods, Peer};
use crate::config::exposure::narrowed;
use crate::config::{ListenAddr, SocketAccess};
use crate::daemon::Origin;
use crate::failure::Failure;
use crate::forward;
use crate::limits::{self, ClientSlot, ClientSlots, HEAD_TIME, Phase, TimedStream};
use crate::routes::Connection;
use crate::server::tls::Tls;

/// How long requests in flight may take to end once the proxy was asked to stop. Log tails, which
/// never end by themselves, get none of it.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long a kept-alive connection may idle, as long as the daemon's own
/// (`supervisor/medusa/http_server.py`, `zombie_timeout`).
pub const IDLE_TIME: Duration = Duration::from_secs(30 * 60);
/// The largest head of a request: the daemon itself takes headers of 200 KB.
pub const MAX_HEAD: usize = 256 * 1024;
/// Header lines in one request.
pub const MAX_HEADER_LINES: usize = 256;
/// A failing `accept` (out of descriptors) is tried again after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(250);
/// Said of connections for which there is no room.
const FULL: Flood = Flood {
    what: "answered 503: all connections wait for supervisord",
    from: None,
};
/// Said where no connection can be had at all.
const NOT_ACCEPTED: Flood = Flood {
    what: "cannot accept a connection",
    from: None,
};
/// How long a client that has closed its side may still wait for its answer.
const PATIENCE: Duration = Duration::from_secs(1);
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
            ListenAddr::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
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

    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Ingress, Peer, Origin)> {
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
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Counts the answers that are under way on a connection, by its clones.
#[derive(Clone, Default)]
struct Underway(Arc<()>);

impl Underway {
    /// The connection and the service hold one each.
    fn is_any(&self) -> bool {
        Arc::strong_count(&self.0) > 2
    }
}

/// The body of an answer, which is under way until it is dropped.
struct Answer {
    body: axum::body::Body,
    _underway: Underway,
}

impl Body for Answer {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that is in no hurry to say that the client has closed its side.
///
/// hyper drops a request as soon as it hears that. But many a script sends its request and says
/// that it is done (`socat` does), and the daemon has answered before it hears it.
struct Patient {
    stream: Box<dyn Stream>,
    underway: Underway,
    patience: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() == before && self.underway.is_any() {
            let patience = self
                .patience
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            ready!(patience.as_mut().poll(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
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

/// Serves `app` on all listeners until `stop` is done; then cuts log tails, lets other requests in
/// flight end within [`GRACE`], and says how many of those were cut.
pub async fn serve(
    listeners: Vec<Listener>,
    app: Router,
    tls: Option<Arc<Tls>>,
    floods: Arc<Floods>,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(ClientSlots::default());
    let graceful = Arc::new(GracefulShutdown::new());
    let (stopping, stops) = watch::channel(false);
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            tokio::spawn(accept(
                listener,
                app.clone(),
                tls.clone(),
                slots.clone(),
                graceful.clone(),
                stops.clone(),
                floods.clone(),
            ))
        })
        .collect();
    stop.await;
    for task in accepting {
        task.abort();
        // An aborted task has dropped its listener when it is joined.
        let _ = task.await;
    }
    stopping.send_replace(true);
    let Ok(graceful) = Arc::try_unwrap(graceful).map_err(|_| ()) else {
        return;
    };
    if tokio::time::timeout(GRACE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = slots.count(),
            "cut connections that did not end by themselves"
        );
    }
}

async fn accept(
    listener: Listener,
    app: Router,
    tls: Option<Arc<Tls>>,
    slots: Arc<ClientSlots>,
    graceful: Arc<GracefulShutdown>,
    stops: watch::Receiver<bool>,
    floods: Arc<Floods>,
) {
    loop {
        match listener.accept().await {
            Ok((mut stream, way, peer, origin)) => {
                let Some(place) = slots.take() else {
                    floods.warn(FULL, || tracing::warn!(%peer, "{}", FULL.what));
                    // As much as fits at once: nobody waits for this one.
                    let _ = poll_once(stream.write(limits::TOO_MANY)).await;
                    continue;
                };
                let slot = place.slot.clone();
                let (app, tls) = (app.clone(), tls.clone().filter(|_| way != Ingress::Socket));
                let (on, watcher) = (slot.clone(), graceful.watcher());
                let connection = async move {
                    let Some(stream) = shake_hands(stream, tls).await else {
                        return Ok(());
                    };
                    watcher
                        .watch(connection(stream, (way, peer, origin), on, app))
                        .await
                };
                let stops = stops.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        ended = connection => if let Err(error) = ended {
                            tracing::debug!(%error, "a connection ended");
                        },
                        () = slot.asked_to_leave() => tracing::debug!("an idle connection made room"),
                        () = endless_at_stop(&slot, stops) => tracing::debug!("cut a follower of a log"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                floods.warn(
                    NOT_ACCEPTED,
                    || tracing::warn!(%error, "{}", NOT_ACCEPTED.what),
                );
                slots.make_room();
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Done when the proxy stops and this connection would keep it from doing so for as long as it may.
async fn endless_at_stop(slot: &ClientSlot, mut stops: watch::Receiver<bool>) {
    if stops.wait_for(|stops| *stops).await.is_err() {
        std::future::pending().await
    }
    slot.endless().await;
}

/// The stream inside, where there is TLS; none where the client does not get that far in time.
async fn shake_hands(stream: Box<dyn Stream>, tls: Option<Arc<Tls>>) -> Option<Box<dyn Stream>> {
    let Some(tls) = tls else { return Some(stream) };
    match timeout(HEAD_TIME, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS with a client");
            None
        }
        Err(_) => None,
    }
}

/// What a future has done without any waiting.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// How long a head is as a client writes it that puts one space behind each colon. hyper takes
/// longer ones than its buffer where they come in large pieces.
fn head_size<B>(request: &http::Request<B>) -> usize {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let site = uri
        .authority()
        .map_or(0, |site| "http://".len() + site.as_str().len());
    let line = request.method().as_str().len() + site + target + "  HTTP/1.1\r\n".len();
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line + headers.sum::<usize>() + "\r\n".len()
}

fn head_too_large() -> http::Response<axum::body::Body> {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let text = format!("the head of a request may have {MAX_HEAD} bytes");
    Failure::Unread(status, text).into_response()
}

fn connection(
    stream: Box<dyn Stream>,
    (way, peer, origin): (Ingress, Peer, Origin),
    slot: ClientSlot,
    app: Router,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    let state = Connection::default();
    let underway = Underway::default();
    let stream = Patient {
        stream: Box::new(TimedStream::new(stream, slot.clone())),
        underway: underway.clone(),
        patience: None,
    };
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(state.clone());
        request.extensions_mut().insert(way);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(origin);
        request.extensions_mut().insert(slot.clone());
        slot.set(Phase::Busy);
        let too_large = head_size(&request) > MAX_HEAD;
        let (slot, underway) = (slot.clone(), underway.clone());
        let is_followed = forward::is_followed(request.uri());
        let reply = app.clone().call(request);
        async move {
            let reply = match too_large {
                true => {
                    slot.linger();
                    head_too_large()
                }
                false => reply.await?,
            };
            if is_followed && reply.status() == StatusCode::OK {
                slot.set_endless();
            }
            let reply = reply.map(|body| Answer {
                body: slot.keep_busy(body),
                _underway: underway,
            });
            Ok::<_, Infallible>(reply)
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADER_LINES);
    builder.serve_connection(TokioIo::new(stream), service)
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
