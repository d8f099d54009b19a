//! Why a request gets no answer of its own, and the response that says so.
//!
//! A failure stays one until it leaves the proxy. Its response is made here alone, and carries the
//! [`Reason`] that the request log writes.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, SERVER};
use http::{HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;

use crate::xmlrpc::{self, Fault};

/// What this proxy calls itself in replies of its own.
const OWN_NAME: &str = concat!("twiddler/", env!("CARGO_PKG_VERSION"));
/// Characters of a reason phrase; clients read status lines of 64 KiB, relays less.
const MAX_PHRASE: usize = 512;

/// Why a request gets no answer of its own.
#[derive(Debug)]
pub enum Failure {
    /// An XML-RPC fault.
    Fault(Fault),
    /// What the daemon replied in place of an answer: its challenge, say.
    Reply(Box<Response>),
    /// The daemon cannot be reached, or did not answer.
    Unreachable(String),
    /// Too many wait already: to be tried again in a second.
    Busy(String),
    /// The proxy refuses the request.
    Refused(StatusCode, String),
    /// The proxy refuses the request, which was not read to its end.
    Unread(StatusCode, String),
}

/// A response, or why there is none.
pub type HttpResult = Result<Response, Failure>;

/// Why the proxy itself replied as it did: an extension of its replies, for the log.
#[derive(Clone, Debug)]
pub struct Reason(pub String);

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Failure {
    /// The daemon's reply was not read to its end.
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

/// A reply in XML-RPC.
pub fn xml(body: Vec<u8>) -> Response {
    let length = HeaderValue::from(body.len());
    let mut reply = Response::new(Body::from(body));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    headers.insert(CONTENT_LENGTH, length);
    reply
}

/// The same reply, as the last one of its connection.
pub fn closing(mut reply: Response) -> Response {
    let headers = reply.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// A short reply of our own. XML-RPC clients show their users the reason phrase of an error and
/// nothing else, so it says the same as the body.
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

/// `text` where only printable ASCII may stand. None for nothing to say.
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
    fn a_phrase_stays_on_its_line() {
        let phrase = |text: &str| reason_phrase(text).map(|phrase| phrase.as_bytes().to_vec());
        assert_eq!(phrase("no \r\nX: \u{e9}").unwrap(), b"no ??X: ?");
        assert_eq!(phrase(&"x".repeat(9999)).unwrap().len(), MAX_PHRASE);
    }
}
