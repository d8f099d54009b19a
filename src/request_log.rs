//! The request log: a line for each request at `debug`, and warnings about refused requests.
//!
//! It is the outermost layer, which sees each request as the client sent it, and the final reply.

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
use crate::audit::{Flood, Floods, Peer, Record, log_text};
use crate::daemon::Daemon;
use crate::failure::{Failure, Reason};
use crate::xmlrpc;

/// The largest reply in bytes that is searched for a fault.
const MAX_FAULT: u64 = 8 * 1024;
/// The logged reason if supervisord itself refused a request.
const BY_DAEMON: &str = "supervisord says so";
const AWAY: &str = "answered 502";

/// Logs requests.
pub struct RequestLog {
    daemon: Arc<Daemon>,
    floods: Arc<Floods>,
}

impl RequestLog {
    /// Logs requests for `daemon`. `floods` limits the number of warnings.
    pub fn new(daemon: Arc<Daemon>, floods: Arc<Floods>) -> Self {
        RequestLog { daemon, floods }
    }

    /// Puts the log in front of `app`. Requests must have their [`Peer`] as an extension, and get a
    /// [`Record`] as another one.
    pub fn guard(self, app: Router) -> Router {
        app.layer(middleware::from_fn_with_state(Arc::new(self), log))
    }

    /// Records the user of a request that the daemon has authorized, if it requires credentials.
    fn identify(&self, logged: &LoggedRequest, status: StatusCode) {
        let is_refusal = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_GATEWAY
        );
        if let Some(authorization) = &logged.authorization
            && !is_refusal
            && !self.daemon.is_open()
        {
            logged.record.set_user(authorization);
        }
    }

    fn warn(&self, logged: &LoggedRequest, response: &Response) {
        let status = response.status();
        let message = match status {
            StatusCode::UNAUTHORIZED => "answered 401",
            StatusCode::FORBIDDEN => "answered 403",
            StatusCode::BAD_GATEWAY => AWAY,
            StatusCode::SERVICE_UNAVAILABLE => "answered 503",
            _ => return self.floods.end(AWAY),
        };
        // An unreachable daemon concerns all clients, so the client is not part of this warning.
        let source = (message != AWAY).then(|| logged.record.peer().without_port());
        let reason = response.extensions().get::<Reason>();
        let reason = reason.map_or(BY_DAEMON, |reason| &reason.0);
        self.floods.warn(Flood { message, source }, || {
            let origin = logged.origin.as_ref().map(HeaderValue::as_bytes);
            let origin = origin.map(|origin| log_text(&String::from_utf8_lossy(origin)));
            tracing::warn!(
                peer = %logged.record.peer(),
                user = logged.record.user(),
                path = log_text(logged.uri.path()),
                origin,
                reason = log_text(reason),
                "{message}"
            );
        });
    }
}

/// The parts of a request that are logged.
struct LoggedRequest {
    record: Record,
    method: http::Method,
    uri: http::Uri,
    origin: Option<HeaderValue>,
    authorization: Option<HeaderValue>,
}

impl LoggedRequest {
    fn of(request: &Request) -> Self {
        let peer = request.extensions().get::<Peer>().copied();
        let header = |name| request.headers().get(name).cloned();
        LoggedRequest {
            record: Record::new(peer.unwrap_or_default()),
            method: request.method().clone(),
            uri: request.uri().clone(),
            origin: header(ORIGIN),
            authorization: header(AUTHORIZATION),
        }
    }

    fn log(&self, status: StatusCode, fault: Option<i32>) {
        let page = || format!("{} {}", self.method, log_text(self.uri.path()));
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
    let logged = LoggedRequest::of(&request);
    request.extensions_mut().insert(logged.record.clone());
    let mut response = next.run(request).await;
    log.identify(&logged, response.status());
    if logged.uri.path() != HEALTH_PATH {
        log.warn(&logged, &response);
    }
    if tracing::enabled!(Level::DEBUG) {
        let fault;
        (response, fault) = match logged.record.method() {
            Some(_) => look_for_fault(response).await,
            None => (response, None),
        };
        logged.log(response.status(), fault);
    }
    response
}

/// Reads a small reply to find the number of its fault, if it is one. Returns the reply and the number.
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
