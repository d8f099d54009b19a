//! What comes in over HTTP: calls to `/RPC2`, our own pages, and everything else for the daemon.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use percent_encoding::percent_decode_str;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use crate::daemon::CallError;
use crate::pace::{self, Phase, Seat};
use crate::relay::{self, Payload, Reads};
use crate::rpc::{Caller, Rpc, Update};

/// The largest body that is taken: arguments of 8 MB work with the daemon itself, and each body is
/// held in memory while it is looked at.
pub const MAX_BODY: usize = 32 * 1024 * 1024;

/// How long a body may pause.
pub const BODY_PAUSE: Duration = Duration::from_secs(20);
/// How long a body may take in all.
pub const BODY_TIME: Duration = Duration::from_secs(5 * 60);
/// Logs that are followed at a time: each holds a connection and a file of the daemon for good. The
/// daemon by default gets along with 1024 of both (`minfds`), its programs included.
pub const MAX_TAILS: usize = 128;
/// Other requests that the daemon may have before it at a time.
pub const MAX_REQUESTS: usize = 384;
/// How long a request waits for its turn: as others do while they start and stop.
pub const TURN_TIME: Duration = Duration::from_secs(30);
/// How much memory all large bodies may take together.
pub const MAX_HELD: usize = 8 * MAX_BODY;
/// What each body may take beside that.
const FREE_BODY: usize = 64 * 1024;
/// What is counted of it at a time.
const HELD_UNIT: usize = 1024;

/// Everybody may read it: why supervisord does not answer is in the log.
const DOWN: &str = r#"{"status":"down","reason":"supervisord does not answer"}"#;

/// What happens on one connection and matters to its later requests.
#[derive(Clone, Default)]
pub struct Connection(Arc<Update>);

/// The routes. Each request carries a [`Connection`] among its extensions.
pub fn app(rpc: Arc<Rpc>) -> Router {
    Router::new()
        .route("/twiddler/health", get(health))
        .fallback(entry)
        .with_state(rpc)
}

/// Says whether the daemon answers. What it says is for everybody, so it is no more than that: a
/// daemon that asks for credentials answers too.
async fn health(State(rpc): State<Arc<Rpc>>) -> Response {
    let (status, body) = match rpc.daemon().call("supervisor.getState", &[]).await {
        Ok(_) | Err(CallError::Status(StatusCode::UNAUTHORIZED)) => {
            (StatusCode::OK, r#"{"status":"up"}"#.to_owned())
        }
        Err(error) => {
            tracing::debug!(%error, "not healthy");
            (StatusCode::SERVICE_UNAVAILABLE, DOWN.to_owned())
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn entry(State(rpc): State<Arc<Rpc>>, request: Request) -> Response {
    // hyper has refused a head with two lengths, and forgets a length beside chunks.
    let (head, body) = request.into_parts();
    let reads = relay::reads(&head.method, &head.uri);
    let seat = head
        .extensions
        .get::<Seat>()
        .cloned()
        .unwrap_or_else(Seat::alone);
    let read = match read_body(reads, body, &seat).await {
        Ok(read) => read,
        Err(response) => {
            seat.linger();
            return response;
        }
    };
    let payload = relay::payload(reads, &head.headers, read.bytes.clone());
    let Some(turn) = take_turn(&head).await else {
        return relay::own_reply(
            StatusCode::SERVICE_UNAVAILABLE,
            "supervisord has enough to do for now",
        );
    };
    let answer = answer(&rpc, &head, reads, payload).await;
    answer.map(|body| pace::holding(body, turn))
}

/// Waits until the daemon may be asked one thing more.
async fn take_turn(head: &Parts) -> Option<SemaphorePermit<'static>> {
    static TAILS: Semaphore = Semaphore::const_new(MAX_TAILS);
    static OTHERS: Semaphore = Semaphore::const_new(MAX_REQUESTS);
    let path = percent_decode_str(head.uri.path()).decode_utf8_lossy();
    if path.starts_with("/logtail") || path.starts_with("/mainlogtail") {
        return TAILS.try_acquire().ok();
    }
    timeout(TURN_TIME, OTHERS.acquire()).await.ok()?.ok()
}

async fn answer(rpc: &Rpc, head: &Parts, reads: Reads, payload: Payload) -> Response {
    let connection = head
        .extensions
        .get::<Connection>()
        .cloned()
        .unwrap_or_default();
    let caller = Caller {
        head,
        update: &connection.0,
    };
    match (reads, payload) {
        (Reads::Call, Payload::Bytes(body)) => rpc.answer(&caller, body).await,
        (reads, payload) => {
            let form = match &payload {
                Payload::Bytes(body) if reads == Reads::Form => body.as_ref(),
                _ => &[],
            };
            match rpc.page_left_out(&caller, form).await {
                Some(response) => response,
                None => rpc.page(head, payload).await,
            }
        }
    }
}

/// Bodies that are held at the moment, beyond [`FREE_BODY`] each.
static HELD: Semaphore = Semaphore::const_new(MAX_HELD / HELD_UNIT);

/// A body, and its share of the memory for bodies.
struct Read {
    bytes: Bytes,
    _share: Option<SemaphorePermit<'static>>,
}

async fn read_body(reads: Reads, mut body: Body, seat: &Seat) -> Result<Read, Response> {
    if reads == Reads::Nothing {
        return Ok(Read {
            bytes: Bytes::new(),
            _share: None,
        });
    }
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    seat.set(Phase::Body);
    let deadline = Instant::now() + BODY_TIME;
    let mut read = BytesMut::new();
    let mut share: Option<SemaphorePermit<'static>> = None;
    loop {
        let limit = deadline.min(Instant::now() + BODY_PAUSE);
        let frame = match timeout_at(limit, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                return Err(closing(
                    StatusCode::BAD_REQUEST,
                    "the request body did not arrive",
                ));
            }
            Err(_) => {
                return Err(closing(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request body took too long",
                ));
            }
        };
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        if read.len() + piece.len() > MAX_BODY {
            return Err(too_large());
        }
        read.extend_from_slice(&piece);
        let held = share.as_ref().map_or(FREE_BODY, |share| {
            FREE_BODY + share.num_permits() * HELD_UNIT
        });
        if read.len() > held {
            let Ok(more) = HELD.try_acquire_many(units(read.len() - held)) else {
                return Err(closing(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many large requests at once",
                ));
            };
            match &mut share {
                Some(share) => share.merge(more),
                None => share = Some(more),
            }
        }
    }
    seat.set(Phase::Busy);
    Ok(Read {
        bytes: read.freeze(),
        _share: share,
    })
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(HELD_UNIT)).unwrap_or(u32::MAX)
}

fn too_large() -> Response {
    closing(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("a request body may have {MAX_BODY} bytes"),
    )
}

/// An answer to a request that was not read to its end.
fn closing(status: StatusCode, text: &str) -> Response {
    let mut reply = relay::own_reply(status, text);
    reply
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}
