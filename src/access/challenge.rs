//! The reply 401 to a caller without valid credentials: the same that the daemon sends.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::DATE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

use crate::failure::Failure;
use crate::forward;

/// The daemon's reply 401 (`supervisor/medusa/auth_handler.py` and `http_server.py`). `Challenge` fills in
/// the date.
const CHALLENGE: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nServer: Medusa/1.12\r\nDate: \r\nConnection: close\r\n\
    WWW-Authenticate: Basic realm=\"default\"\r\nContent-Length: 137\r\nContent-Type: text/html\r\n\r\n\
    <head>\r\n<title>Error response</title>\r\n</head>\r\n<body>\r\n<h1>Error response</h1>\r\n\
    <p>Error code 401.\r\n<p>Message: Unauthorized.\r\n</body>\r\n";

/// The challenge, parsed once.
#[derive(Debug, Default)]
pub(super) struct Challenge(OnceCell<Option<(http::response::Parts, Bytes)>>);

impl Challenge {
    /// The reply to the request with this head.
    pub(super) async fn reply(&self, head: &Parts) -> Response {
        let parse = async || parse_reply(CHALLENGE).await.ok();
        let Some((reply_head, body)) = self.0.get_or_init(parse).await.clone() else {
            let reason = "Unauthorized".to_owned();
            return Failure::Refused(StatusCode::UNAUTHORIZED, reason).into_response();
        };
        let mut reply = Response::from_parts(reply_head, Body::from(body));
        let now = httpdate::fmt_http_date(std::time::SystemTime::now());
        let now = HeaderValue::try_from(now).expect("a date is plain text");
        reply.headers_mut().insert(DATE, now);
        forward::for_client(head, reply)
    }
}

/// Parses a reply by a client of hyper, which records the case of header names only in this way.
async fn parse_reply(bytes: &'static [u8]) -> anyhow::Result<(http::response::Parts, Bytes)> {
    let (client, mut server) = tokio::io::duplex(CHALLENGE.len() * 2);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(client))
        .await?;
    let connection = tokio::spawn(connection);
    let writing = async {
        server.read_u8().await?; // hyper refuses a reply that arrives before the request is sent
        server.write_all(bytes).await
    };
    let request = sender.send_request(http::Request::new(Empty::<Bytes>::new()));
    let (written, reply) = tokio::join!(writing, request);
    written?;
    let reply = reply?;
    let (head, body) = reply.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok((head, body))
}
