//! What comes in over HTTP: calls to `/RPC2`, our own pages, and everything else for the daemon.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::body::{self, Held};
use crate::daemon::CallError;
use crate::pace::{self, Seat};
use crate::relay::{self, Payload, Reads};
use crate::rpc::{Caller, Rpc, Update};

/// Logs that are followed at a time: each holds a connection and a file of the daemon for good. The
/// daemon by default gets along with 1024 of both (`minfds`), its programs included.
pub const MAX_TAILS: usize = 128;
/// Other requests that the daemon may have before it at a time.
pub const MAX_REQUESTS: usize = 384;
/// How long a request waits for its turn: as others do while they start and stop.
pub const TURN_TIME: Duration = Duration::from_secs(30);
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
    let held = match reads {
        Reads::Nothing => Ok(Held::nothing()),
        _ => body::read(&head, body, &seat, async || rpc.let_in(&head).await).await,
    };
    let held = match held {
        Ok(held) => held,
        Err(response) => {
            seat.linger();
            return response;
        }
    };
    let payload = relay::payload(reads, &head.headers, held.bytes.clone());
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
