//! The reasons why a request gets no answer, and their responses.
//!
//! A failure is turned into a response only when it leaves the proxy, and only here. The response carries the
//! [`Reason`] for the request log.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, SERVER};
use http::{HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;

use crate::xmlrpc::{self, Fault};

/// The `Server` header of the proxy's own replies.
const OWN_NAME: &str = concat!("twiddler/", env!("CARGO_PKG_VERSION"));
/// The largest number of characters in a reason phrase. Clients read status lines of 64 KiB, reverse
/// proxies less.
const MAX_PHRASE: usize = 512;

/// The reason why a request gets no answer.
#[derive(Debug)]
pub enum Failure {
    /// An XML-RPC fault.
    Fault(Fault),
    /// The daemon's own reply instead of an answer, such as its challenge.
    Reply(Box<Response>),
    /// The daemon cannot be reached, or did not answer.
    Unreachable(String),
    /// Too many requests wait already. The client can try again in a second.
    Busy(String),
    /// The proxy refuses the request.
    Refused(StatusCode, String),
    /// The proxy refuses the request without reading it to its end.
    Unread(StatusCode, String),
}

/// A response, or the reason why there is none.
pub type HttpResult = Result<Response, Failure>;

/// The reason for a reply of the proxy itself: an extension of the reply, for the log.
#[derive(Clone, Debug)]
pub struct Reason(pub String);

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Failure {
    /// The failure if the daemon closed the connection in the middle of its reply.
    pub fn cut_short(error: impl std::fmt::Display) -> Self {
        Self::Unreachable(format!("supervisord went away: {error}"))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Fault(fault) => xml(xmlrpc::write::fault(&fault)),
            Self::Reply(reply) => *reply,
            Self::Unreachable(reason) => own_reply(StatusCode::BAD_GATEWAY, reason),
            Self::Refused(status, reason) => own_reply(status, reason),
            Self::Busy(reason) => {
                let mut reply = own_reply(StatusCode::SERVICE_UNAVAILABLE, reason);
                let headers = reply.headers_mut();
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
                reply
            }
            Self::Unread(status, reason) => closing(own_reply(status, reason)),
        }
    }
}

/// A response with an XML-RPC body.
pub fn xml(body: Vec<u8>) -> Response {
    let length = HeaderValue::from(body.len());
    let mut reply = Response::new(Body::from(body));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    headers.insert(CONTENT_LENGTH, length);
    reply
}

/// The reply with `Connection: close`.
pub fn closing(mut reply: Response) -> Response {
    let headers = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// A short reply of the proxy itself. XML-RPC clients show only the reason phrase of an error, so it has
/// the same text as the body.
fn own_reply(status: StatusCode, text: String) -> Response {
    let mut reply = Response::new(Body::from(format!("{text}\n")));
    *reply.status_mut() = status;
    if let Some(phrase) = reason_phrase(&text) {
        reply.extensions_mut().insert(phrase);
    }
    reply.extensions_mut().insert(Reason(text));
    let headers = reply.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(OWN_NAME));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain;charset=utf-8"),
    );
    reply
}

/// The text as a reason phrase, with `?` for each character that is not printable ASCII. None for an empty
/// text.
fn reason_phrase(text: &str) -> Option<ReasonPhrase> {
    let fits = |letter: char| letter == ' ' || letter.is_ascii_graphic();
    let phrase: String = text
        .chars()
        .map(|letter| if fits(letter) { letter } else { '?' })
        .take(MAX_PHRASE)
        .collect();
    ReasonPhrase::try_from(phrase).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_phrase_has_no_line_breaks() {
        let phrase = |text: &str| reason_phrase(text).map(|phrase| phrase.as_bytes().to_vec());
        assert_eq!(phrase("no \r\nX: \u{e9}").unwrap(), b"no ??X: ?");
        assert_eq!(phrase(&"x".repeat(9999)).unwrap().len(), MAX_PHRASE);
    }
}
