//! Forwards one request to the daemon, and the reply to the client. Only headers that concern a single
//! connection change.
//!
//! The daemon's HTTP server (`supervisor/medusa/http_server.py`, `supervisor/http.py`) reads the body of few
//! requests, and takes any other body for the next request. This module decides which requests are sent with a
//! body.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, LOCATION,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty, Full};
use percent_encoding::percent_decode_str;

use crate::daemon::{self, Daemon, MAX_QUEUED, NoReply, Reuse, Share};
use crate::failure::{Failure, HttpResult};

/// Headers that concern one connection only (RFC 9110, 7.6.1). The header `Connection` can name more.
const HOP_BY_HOP: [HeaderName; 6] = [
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHORIZATION,
    EXPECT,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// The header that stops nginx from buffering a reply until it has 64 KiB.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// The body of a web form without fields. The daemon never answers a form of 0 bytes.
const EMPTY_FORM: &str = "&";

/// The body that is sent to the daemon.
#[derive(Clone, Debug)]
pub enum Payload {
    /// No body, because the daemon does not read one for this request.
    Nothing,
    /// A body with its `Content-Length`.
    Bytes(Bytes),
    /// No `Content-Length`, so that the daemon answers 411 itself.
    NoLength,
}

/// What the daemon's handler of a request reads as the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// An XML-RPC call.
    Call,
    /// A form of the web interface.
    Form,
    /// Nothing. The daemon would take a body for the next request.
    Nothing,
}

/// What the daemon reads as the body of a request (`supervisor/http.py`; handlers match by prefix).
pub fn reads(method: &Method, uri: &Uri) -> Reads {
    // In absolute form and in that of CONNECT, the target has no path that the daemon knows.
    if *method != Method::POST || uri.authority().is_some() {
        return Reads::Nothing;
    }
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    if path.starts_with("/RPC2") {
        return Reads::Call;
    }
    // The daemon splits the decoded path, so an encoded character can be a delimiter.
    let path = path.split([';', '?', '#']).next().unwrap_or_default();
    match path.trim_start_matches('/') {
        "" | "index.html" | "tail.html" | "ok.html" => Reads::Form,
        _ => Reads::Nothing,
    }
}

/// The body to send to the daemon for the `body` that a client sent.
pub fn payload(reads: Reads, headers: &HeaderMap, body: Bytes) -> Payload {
    match reads {
        Reads::Nothing => Payload::Nothing,
        _ if !headers.contains_key(CONTENT_LENGTH) => Payload::NoLength,
        Reads::Form if body.is_empty() => Payload::Bytes(Bytes::from_static(EMPTY_FORM.as_bytes())),
        Reads::Form | Reads::Call => Payload::Bytes(body),
    }
}

/// Sends the client's request with `payload`, and returns the daemon's reply for that client.
///
/// # Errors
/// As [`send`].
pub async fn forward(
    daemon: &Arc<Daemon>,
    head: &Parts,
    payload: Payload,
    share: Share,
) -> HttpResult {
    let reply = send(daemon, head, &head.uri, payload, share).await?;
    Ok(for_client(head, reply))
}

/// Sends the client's request with the target `uri`.
///
/// # Errors
/// When the daemon did not answer, or too many calls wait for it.
pub async fn send(
    daemon: &Arc<Daemon>,
    head: &Parts,
    uri: &Uri,
    payload: Payload,
    share: Share,
) -> HttpResult {
    let shared = matches!(payload, Payload::Bytes(_)) && reads(&head.method, uri) == Reads::Call;
    let mut request = Request::new(body_of(&payload));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = end_to_end(&head.headers);
    // hyper keeps the client's spelling of header names in an extension.
    *request.extensions_mut() = head.extensions.clone();
    match &payload {
        Payload::Bytes(bytes) => {
            request
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        Payload::Nothing | Payload::NoLength => {
            request.headers_mut().remove(CONTENT_LENGTH);
        }
    }
    let reuse = if shared { Reuse::Shared } else { Reuse::Alone };
    match daemon.forward(request, reuse, share).await {
        Ok(reply) => Ok(reply.map(Body::new)),
        Err(NoReply::Full) => Err(full(daemon, share)),
        Err(NoReply::Unreachable(reason)) => Err(Failure::Unreachable(reason)),
    }
}

/// The failure if too many calls wait already.
fn full(daemon: &Daemon, share: Share) -> Failure {
    let limits = daemon.limits();
    Failure::Busy(match share {
        Share::Tail => format!(
            "{} logs are followed at a time, {} of them by one client: end others first",
            limits.tails,
            limits.per_client(share)
        ),
        _ => {
            format!("{MAX_QUEUED} calls wait for supervisord, most of them yours: try again later")
        }
    })
}

/// Adapts a reply of the daemon to the client's connection.
pub fn for_client(head: &Parts, mut reply: Response<Body>) -> Response<Body> {
    // The daemon adds this header only to replies to HTTP/1.0, which the proxy never uses.
    if head.version == Version::HTTP_10
        && wants_keep_alive(&head.headers)
        && reply.headers().contains_key(CONTENT_LENGTH)
    {
        reply
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("Keep-Alive"));
    }
    *reply.version_mut() = head.version;
    if let Some(location) = reply.headers().get(LOCATION)
        && let Some(location) = relative_location(head.uri.path(), location.as_bytes())
    {
        reply.headers_mut().insert(LOCATION, location);
    }
    // The daemon adds this header only to logs of processes (`supervisor/http.py`, `logtail_handler`).
    if reply.status() == StatusCode::OK && is_followed(&head.uri) {
        let headers = reply.headers_mut();
        headers
            .entry(X_ACCEL_BUFFERING)
            .or_insert(HeaderValue::from_static("no"));
    }
    reply
}

/// Whether a request follows a log, so that its reply never ends (`supervisor/http.py`; handlers match by
/// prefix).
pub fn is_followed(uri: &Uri) -> bool {
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    path.starts_with("/logtail") || path.starts_with("/mainlogtail")
}

/// The target of a redirect of the daemon, relative to the path of the request.
///
/// The daemon writes the host that the client named, or what it takes for its own name, such as that of a unix
/// socket. A reverse proxy can serve it under another host or below a path.
fn relative_location(path: &str, location: &[u8]) -> Option<HeaderValue> {
    const MESSAGE: &str = "?message=";
    let location = std::str::from_utf8(location).ok()?;
    let (dirs, name) = path.rsplit_once('/')?;
    let relative = match location.rsplit_once(MESSAGE) {
        // To the status page (`supervisor/web.py`).
        Some((_, message)) => {
            let up = dirs.matches('/').count();
            let root = if up == 0 { "./" } else { "" };
            format!("{root}{}{MESSAGE}{message}", "../".repeat(up))
        }
        // From a directory to itself with a slash (`supervisor/medusa/default_handler.py`).
        None if location.ends_with('/') => format!("./{name}/"),
        None => return None,
    };
    HeaderValue::try_from(relative).ok()
}

fn body_of(payload: &Payload) -> daemon::Body {
    match payload {
        Payload::Nothing => Empty::new().boxed_unsync(),
        Payload::Bytes(bytes) => Full::new(bytes.clone()).boxed_unsync(),
        Payload::NoLength => Unannounced.boxed_unsync(),
    }
}

/// An empty body of unknown length, so that hyper sends no `Content-Length`.
struct Unannounced;

impl hyper::body::Body for Unannounced {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }
}

/// The headers without those that concern one connection. The daemon ignores header names in `Connection`, so
/// a client must not remove headers by them that the request needs.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut remaining = headers.clone();
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !matches!(*name, AUTHORIZATION | HOST | CONTENT_LENGTH))
        .collect();
    remaining.remove(CONNECTION);
    remaining.remove(KEEP_ALIVE);
    for name in named.iter().chain(&HOP_BY_HOP) {
        remaining.remove(name);
    }
    remaining
}

fn wants_keep_alive(headers: &HeaderMap) -> bool {
    headers
        .get(CONNECTION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("keep-alive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_relative_to_the_path_of_the_request() {
        let unix = "http://<unix domain socket>:/run/s.sock/?message=Process%20a%20stopped";
        for (path, location, expected) in [
            ("/", "http://h:9001/?message=x%3F", Some("./?message=x%3F")),
            (
                "/index.html",
                unix,
                Some("./?message=Process%20a%20stopped"),
            ),
            ("//index.html", "http://h/?message=x", Some("../?message=x")),
            ("/a/b/c", "http://h/?message=x", Some("../../?message=x")),
            ("/", "http://h/?message=y/?message=x", Some("./?message=x")),
            ("/images", "http://localhost/images/", Some("./images/")),
            ("/a:b", "http://<unix domain socket>/a:b/", Some("./a:b/")),
            ("/x/images", "http://localhost/x/images/", Some("./images/")),
            ("/", "http://elsewhere/page", None),
            ("*", "http://localhost/", None),
        ] {
            let relative = relative_location(path, location.as_bytes());
            let relative = relative.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(relative, expected, "{path} {location}");
        }
    }
}
