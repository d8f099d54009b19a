//! The daemon's challenge to a caller without the right credentials, as it would send it.

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

/// What the daemon answers to somebody without the right credentials (`supervisor/medusa`,
/// `auth_handler.py` and `http_server.py`). The date is another one each time.
const CHALLENGE: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nServer: Medusa/1.12\r\nDate: \r\nConnection: close\r\n\
    WWW-Authenticate: Basic realm=\"default\"\r\nContent-Length: 137\r\nContent-Type: text/html\r\n\r\n\
    <head>\r\n<title>Error response</title>\r\n</head>\r\n<body>\r\n<h1>Error response</h1>\r\n\
    <p>Error code 401.\r\n<p>Message: Unauthorized.\r\n</body>\r\n";

/// The challenge, read once.
#[derive(Debug, Default)]
pub(super) struct Challenge(OnceCell<Option<(http::response::Parts, Bytes)>>);

impl Challenge {
    /// The challenge for the client that sent `head`.
    pub(super) async fn reply(&self, head: &Parts) -> Response {
        let read = async || read_reply(CHALLENGE).await.ok();
        let Some((daemons, body)) = self.0.get_or_init(read).await.clone() else {
            let reason = "Unauthorized".to_owned();
            return Failure::Refused(StatusCode::UNAUTHORIZED, reason).into_response();
        };
        let mut reply = Response::from_parts(daemons, Body::from(body));
        let now = httpdate::fmt_http_date(std::time::SystemTime::now());
        let now = HeaderValue::try_from(now).expect("a date is plain text");
        reply.headers_mut().insert(DATE, now);
        forward::for_client(head, reply)
    }
}

/// Reads a reply as if the daemon had sent it: that is how hyper keeps header names in their case.
async fn read_reply(bytes: &'static [u8]) -> anyhow::Result<(http::response::Parts, Bytes)> {
    let (here, mut there) = tokio::io::duplex(CHALLENGE.len() * 2);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(here))
        .await?;
    let connection = tokio::spawn(connection);
    let answering = async {
        there.read_u8().await?; // a reply before the request would be an error
        there.write_all(bytes).await
    };
    let asking = sender.send_request(http::Request::new(Empty::<Bytes>::new()));
    let (answered, reply) = tokio::join!(answering, asking);
    answered?;
    let reply = reply?;
    let (head, body) = reply.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok((head, body))
}
