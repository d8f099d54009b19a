//! The routes of HTTP requests: calls to `/RPC2`, the proxy's own pages, and all others for the daemon.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};

use crate::body::{self, AuthorizedSender, HeldBody};
use crate::failure::{Failure, HttpResult};
use crate::forward::{self, Payload, Reads};
use crate::lease::{self, Leases};
use crate::limits::{ClientSlot, Phase};
use crate::rpc::{Caller, ConnectionUpdate, Rpc};

/// The bodies of the health page. Every client may read it, so the reason why supervisord does not answer is
/// only in the log.
const UP: &str = r#"{"status":"up"}"#;
const DOWN: &str = r#"{"status":"down"}"#;

/// The state of a connection that its later requests depend on.
#[derive(Clone, Default)]
pub struct Connection(Arc<ConnectionUpdate>);

/// The routes. Each request carries a [`Connection`] among its extensions.
pub fn app(rpc: Arc<Rpc>, leases: Arc<Leases>) -> Router {
    let hold = async move |State(rpc): State<Arc<Rpc>>, Path(name): Path<String>, request| {
        hold_lease(&rpc, &leases, &name, request).await
    };
    Router::new()
        .route("/twiddler/health", get(health))
        .route(&format!("{}{{name}}", lease::PATH), any(hold))
        .route("/twiddler/", any(unknown))
        .route("/twiddler/{*unknown}", any(unknown))
        .fallback(entry)
        .with_state(rpc)
}

/// Answers whether the daemon answers the proxy.
async fn health(State(rpc): State<Arc<Rpc>>) -> Response {
    let (status, body) = if rpc.daemon().is_up().await {
        (StatusCode::OK, UP)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, DOWN)
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Answers 404 for an unknown path below `/twiddler/`, none of which is forwarded to the daemon.
async fn unknown(State(rpc): State<Arc<Rpc>>, request: Request) -> HttpResult {
    let (head, _body) = request.into_parts();
    rpc.authorize_request(&head).await?;
    if let Some(slot) = head.extensions.get::<ClientSlot>() {
        slot.linger();
    }
    Err(Failure::Unread(
        StatusCode::NOT_FOUND,
        format!("twiddler has no page {}", head.uri.path()),
    ))
}

/// Lets an authorized client hold a lease until it disconnects.
async fn hold_lease(rpc: &Rpc, leases: &Arc<Leases>, name: &str, request: Request) -> HttpResult {
    let (head, _) = request.into_parts();
    rpc.authorize_request(&head).await?;
    if head.method != Method::GET {
        let text = format!("a lease is held by GET, not by {}", head.method);
        return Err(Failure::Unread(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    leases.answer(name, head.headers.get(AUTHORIZATION).cloned())
}

async fn entry(State(rpc): State<Arc<Rpc>>, request: Request) -> HttpResult {
    // hyper has already refused a head with two lengths, and has dropped a length beside chunked encoding.
    let (head, body) = request.into_parts();
    let reads = forward::reads(&head.method, &head.uri);
    let slot = head
        .extensions
        .get::<ClientSlot>()
        .cloned()
        .unwrap_or_else(ClientSlot::alone);
    let body = match reads {
        Reads::Nothing => Ok(HeldBody::empty()),
        _ => {
            body::read(&head, body, &slot, async || {
                rpc.authorize_request(&head).await
            })
            .await
        }
    };
    let body = body.inspect_err(|_| slot.linger())?;
    let payload = forward::payload(reads, &head.headers, body.bytes.clone());
    let answering = answer(&rpc, &head, reads, payload);
    if head.extensions.get::<AuthorizedSender>().is_some() || rpc.daemon().has_accepted(&head) {
        slot.set_authorized();
    } else {
        slot.set(Phase::Unauthorized);
    }
    let answer = rpc.daemon().on_behalf_of(&head, answering).await;
    let is_ok = |reply: &Response| reply.status() == StatusCode::OK;
    // The daemon gives this answer only to authorized clients.
    if answer.as_ref().is_ok_and(is_ok) {
        slot.set_authorized();
    }
    answer
}

async fn answer(rpc: &Rpc, head: &Parts, reads: Reads, payload: Payload) -> HttpResult {
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
            rpc.ensure_page_allowed(&caller, form).await?;
            rpc.page(head, payload).await
        }
    }
}
