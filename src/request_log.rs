//! What is logged of each request: a line at `debug`, and warnings about those that are turned away.
//!
//! The outermost layer: it sees each request as it came and each reply as it goes.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, ORIGIN};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tracing::Level;

use crate::access::HEALTH_PATH;
use crate::audit::{Flood, Floods, Peer, Record, shown};
use crate::daemon::Daemon;
use crate::failure::{Failure, Reason};
use crate::xmlrpc;

/// A reply that is a fault is not longer.
const MAX_FAULT: u64 = 8 * 1024;
/// What is said where supervisord itself turned somebody away.
const BY_DAEMON: &str = "supervisord says so";
const AWAY: &str = "answered 502";

/// Logs requests.
pub struct RequestLog {
    daemon: Arc<Daemon>,
    floods: Arc<Floods>,
}

impl RequestLog {
    /// Logs what is asked of `daemon`; counts warnings among `floods`.
    pub fn new(daemon: Arc<Daemon>, floods: Arc<Floods>) -> Self {
        RequestLog { daemon, floods }
    }

    /// Puts the log in front of `app`. Each request carries its [`Peer`] among its extensions, and
    /// from here on its [`Record`].
    pub fn guard(self, app: Router) -> Router {
        app.layer(middleware::from_fn_with_state(Arc::new(self), log))
    }

    /// Takes note of whom the daemon has let in, where it asks for credentials.
    fn identify(&self, asked: &Asked, status: StatusCode) {
        let is_refusal = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_GATEWAY
        );
        if let Some(authorization) = &asked.authorization
            && !is_refusal
            && !self.daemon.is_open()
        {
            asked.record.let_in(authorization);
        }
    }

    fn warn(&self, asked: &Asked, response: &Response) {
        let status = response.status();
        let what = match status {
            StatusCode::UNAUTHORIZED => "answered 401",
            StatusCode::FORBIDDEN => "answered 403",
            StatusCode::BAD_GATEWAY => AWAY,
            StatusCode::SERVICE_UNAVAILABLE => "answered 503",
            _ => return self.floods.end(AWAY),
        };
        // The daemon is away for all alike.
        let from = (what != AWAY).then(|| asked.record.peer().without_port());
        let reason = response.extensions().get::<Reason>();
        let reason = reason.map_or(BY_DAEMON, |reason| &reason.0);
        self.floods.warn(Flood { what, from }, || {
            let origin = asked.origin.as_ref().map(HeaderValue::as_bytes);
            let origin = origin.map(|origin| shown(&String::from_utf8_lossy(origin)));
            tracing::warn!(
                peer = %asked.record.peer(),
                user = asked.record.user(),
                path = shown(asked.uri.path()),
                origin,
                reason = shown(reason),
                "{what}"
            );
        });
    }
}

/// What a request asked for.
struct Asked {
    record: Record,
    method: http::Method,
    uri: http::Uri,
    origin: Option<HeaderValue>,
    authorization: Option<HeaderValue>,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let peer = request.extensions().get::<Peer>().copied();
        let header = |name| request.headers().get(name).cloned();
        Asked {
            record: Record::new(peer.unwrap_or_default()),
            method: request.method().clone(),
            uri: request.uri().clone(),
            origin: header(ORIGIN),
            authorization: header(AUTHORIZATION),
        }
    }

    fn log(&self, status: StatusCode, fault: Option<i32>) {
        let page = || format!("{} {}", self.method, shown(self.uri.path()));
        let method = self.record.method().map_or_else(page, str::to_owned);
        tracing::debug!(
            peer = %self.record.peer(),
            user = self.record.user(),
            method,
            status = status.as_u16(),
            fault,
            ms = self.record.millis(),
            "answered"
        );
    }
}

async fn log(State(log): State<Arc<RequestLog>>, mut request: Request, next: Next) -> Response {
    let asked = Asked::of(&request);
    request.extensions_mut().insert(asked.record.clone());
    let mut response = next.run(request).await;
    log.identify(&asked, response.status());
    if asked.uri.path() != HEALTH_PATH {
        log.warn(&asked, &response);
    }
    if tracing::enabled!(Level::DEBUG) {
        let fault;
        (response, fault) = match asked.record.method() {
            Some(_) => look_for_fault(response).await,
            None => (response, None),
        };
        asked.log(response.status(), fault);
    }
    response
}

/// The number of the fault that a reply is, if it is one. A small reply is read for it.
async fn look_for_fault(response: Response) -> (Response, Option<i32>) {
    if response
        .body()
        .size_hint()
        .exact()
        .is_none_or(|size| size > MAX_FAULT)
    {
        return (response, None);
    }
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return (Failure::cut_short(error).into_response(), None),
    };
    let fault = match xmlrpc::read::response(&body) {
        Ok(Err(fault)) => Some(fault.code),
        _ => None,
    };
    (Response::from_parts(head, Body::from(body)), fault)
}
