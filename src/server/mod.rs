//! Serves connections on all listeners, and ends them when the proxy stops.

mod half_close;
mod listener;
pub mod tls;

pub use self::listener::{BindError, Listener, SocketFile};

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use http::header::CONNECTION;
use http::{HeaderValue, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tower_service::Service;

use self::half_close::{HalfCloseGrace, PendingReplies};
use self::listener::Stream;
use crate::access::Ingress;
use crate::audit::{Flood, Floods, Peer};
use crate::daemon::Origin;
use crate::failure::Failure;
use crate::forward;
use crate::lease;
use crate::limits::{self, ClientSlot, ClientSlots, HEAD_TIME, LARGE_HEAD, Phase, TimedStream};
use crate::routes::Connection;
use crate::server::tls::Tls;

/// How long requests in flight may take after the signal to stop. Streams without an end, such as log
/// tails, are cut at once.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long a connection may be idle between requests: as long as with the daemon
/// (`supervisor/medusa/http_server.py`, `zombie_timeout`).
pub const IDLE_TIME: Duration = Duration::from_secs(30 * 60);
/// The largest head of a request in bytes. The daemon accepts headers of 200 KB.
pub const MAX_HEAD: usize = 256 * 1024;
/// The largest number of header lines of a request.
pub const MAX_HEADER_LINES: usize = 256;
/// The pause after a failed `accept`, for instance without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// The warning about a connection for which there is no slot.
const FULL: Flood = Flood {
    message: "answered 503: all connections wait for supervisord",
    source: None,
};
/// The warning about a failed `accept`.
const NOT_ACCEPTED: Flood = Flood {
    message: "cannot accept a connection",
    source: None,
};

/// Serves `app` on all listeners until `stop` is done. Then it cuts streams without an end, lets other
/// requests in flight end within [`GRACE`], and logs how many connections it cut after that.
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
            Ok((mut stream, ingress, peer, origin)) => {
                let Some(taken) = slots.take() else {
                    floods.warn(FULL, || tracing::warn!(%peer, "{}", FULL.message));
                    // Writes as much as the kernel takes now: waiting would hold up other connections.
                    let _ = stream.write(limits::TOO_MANY).now_or_never();
                    continue;
                };
                let slot = taken.slot.clone();
                let tls = tls.clone().filter(|_| ingress != Ingress::Socket);
                let (app, watcher) = (app.clone(), graceful.watcher());
                let connection_slot = slot.clone();
                let connection = async move {
                    let Some(stream) = handshake(stream, tls).await else {
                        return Ok(());
                    };
                    let caller = (ingress, peer, origin);
                    watcher
                        .watch(connection(stream, caller, connection_slot, app))
                        .await
                };
                let stops = stops.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        result = connection => if let Err(error) = result {
                            tracing::debug!(%error, "a connection ended");
                        },
                        () = slot.evicted() => tracing::debug!("an idle connection made room"),
                        () = endless_at_stop(&slot, stops) => tracing::debug!("cut a follower of a log"),
                    }
                    drop(taken);
                });
            }
            // The client closed the connection before it was accepted. Others can be accepted at once.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                floods.warn(
                    NOT_ACCEPTED,
                    || tracing::warn!(%error, "{}", NOT_ACCEPTED.message),
                );
                slots.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until the proxy stops and this connection has a reply without an end, which would use up the
/// whole [`GRACE`].
async fn endless_at_stop(slot: &ClientSlot, mut stops: watch::Receiver<bool>) {
    if stops.wait_for(|stops| *stops).await.is_err() {
        std::future::pending().await
    }
    slot.endless().await;
}

/// The stream inside TLS; `stream` itself without TLS. `None` if the handshake fails or takes too long.
async fn handshake(stream: Box<dyn Stream>, tls: Option<Arc<Tls>>) -> Option<Box<dyn Stream>> {
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

/// The size of a request's head in bytes, with one space behind each colon. hyper accepts heads larger
/// than its buffer if they arrive in large pieces, so the size is checked here.
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
    (ingress, peer, origin): (Ingress, Peer, Origin),
    slot: ClientSlot,
    app: Router,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    let state = Connection::default();
    let pending = PendingReplies::default();
    let stream = Box::new(TimedStream::new(stream, slot.clone()));
    let stream = HalfCloseGrace::new(stream, pending.clone());
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(state.clone());
        request.extensions_mut().insert(ingress);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(origin);
        request.extensions_mut().insert(slot.clone());
        slot.set(Phase::Busy);
        let head = head_size(&request);
        let (is_large, too_large) = (head > LARGE_HEAD || slot.had_large_head(), head > MAX_HEAD);
        let (slot, pending) = (slot.clone(), pending.clone());
        let uri = request.uri();
        let is_lease = uri.path().starts_with(lease::PATH);
        let is_followed = forward::is_followed(uri) || is_lease;
        let reply = app.clone().call(request);
        async move {
            let reply = if too_large {
                slot.linger();
                head_too_large()
            } else {
                reply.await?
            };
            if is_followed && reply.status() == StatusCode::OK {
                slot.set_endless();
                if is_lease {
                    pending.set_user_timeout();
                }
            }
            let mut reply = reply.map(|body| limits::holding(slot.keep_busy(body), pending));
            // hyper's buffer has grown with the head and is freed only with the connection.
            if is_large {
                let close = HeaderValue::from_static("close");
                reply.headers_mut().insert(CONNECTION, close);
            }
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
