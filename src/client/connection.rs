//! Calls and log streams over HTTP: TCP, TLS or a unix socket.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::Error;
use crate::lease;
use crate::xmlrpc::{self, Fault, Value};

/// How long connecting may take. A reply has no limit: `stopProcess` answers when the process has ended.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const USER_AGENT_NAME: &str = concat!("twiddler/", env!("CARGO_PKG_VERSION"));
/// The characters that are percent-encoded in a segment of a path.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'?').add(b'#').add(b'%').add(b'/');

/// Where a server is. Displays as its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A host without brackets, and a port.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
        /// Whether it speaks TLS.
        tls: bool,
    },
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                let (open, close) = if host.contains(':') {
                    ("[", "]")
                } else {
                    ("", "")
                };
                write!(f, "{scheme}://{open}{host}{close}:{port}")
            }
        }
    }
}

/// A server, with the credentials that requests present to it.
pub struct Connection {
    address: Address,
    /// The value of the header `Authorization`.
    authorization: Option<HeaderValue>,
    /// The HTTP connection of an earlier call, for the next one.
    idle: Mutex<Option<Sender>>,
}

type Sender = SendRequest<Full<Bytes>>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connection {
    /// A server at `address`. The first request connects.
    pub fn new(address: Address, authorization: Option<HeaderValue>) -> Self {
        Connection {
            address,
            authorization,
            idle: Mutex::default(),
        }
    }

    /// Calls `method` and returns its result; `subject` is the name that the call is about, for the text
    /// of a fault.
    ///
    /// # Errors
    /// When the server does not answer, or answers with a fault.
    pub async fn call(
        &self,
        method: &str,
        params: &[Value],
        subject: &str,
    ) -> Result<Value, Error> {
        self.try_call(method, params)
            .await?
            .map_err(|fault| Error::from_fault(fault, method, subject))
    }

    /// Calls `method` and returns its result or its fault.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn try_call(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<Result<Value, Fault>, Error> {
        let body = xmlrpc::write::call(method, params);
        let request = self
            .request(Method::POST, "/RPC2")
            .header(CONTENT_TYPE, "text/xml")
            .header(CONTENT_LENGTH, body.len())
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.unreadable(&error))?;
        let mut sender = self.sender().await?;
        let reply = sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = reply.status();
        let body = reply
            .into_body()
            .collect()
            .await
            .map_err(|error| self.unreachable(&error))?
            .to_bytes();
        self.check_status(status, &body)?;
        *self.idle() = Some(sender);
        xmlrpc::read::response(&body).map_err(|error| self.unreadable(&error))
    }

    /// Opens the stream of a process's log, which begins with the last 1024 bytes and goes on as
    /// the process writes (`supervisor/http.py`, `logtail_handler`). `channel` is `stdout` or `stderr`.
    ///
    /// # Errors
    /// When the server cannot be reached, or has no such log.
    pub async fn follow(&self, namespec: &str, channel: &str) -> Result<Incoming, Error> {
        let name = utf8_percent_encode(namespec, IN_PATH);
        self.open_stream(&format!("/logtail/{name}/{channel}"))
            .await
    }

    /// Holds the lease `name` until the returned stream is dropped.
    ///
    /// # Errors
    /// When the server cannot be reached, or has no leases (HTTP 404 or 405).
    pub async fn hold_lease(&self, name: &str) -> Result<Incoming, Error> {
        let name = utf8_percent_encode(name, IN_PATH);
        self.open_stream(&format!("{}{name}", lease::PATH)).await
    }

    /// Opens a stream on a new connection: the stream occupies it to its end.
    async fn open_stream(&self, path: &str) -> Result<Incoming, Error> {
        let request = self
            .request(Method::GET, path)
            .body(Full::new(Bytes::new()))
            .map_err(|error| self.unreadable(&error))?;
        let mut sender = self.connect().await?;
        let reply: Response<Incoming> = sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = reply.status();
        let body = reply.into_body();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let text = body.collect().await.map(|body| body.to_bytes());
        self.check_status(status, &text.unwrap_or_default())?;
        Err(self.unreadable(&"the stream does not begin with HTTP status 200"))
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let host = match &self.address {
            Address::Unix(_) => "localhost".to_owned(),
            Address::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(USER_AGENT, USER_AGENT_NAME);
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    /// The error for any status but 200. The first line of `body` is its reason, unless the body is a
    /// page.
    fn check_status(&self, status: StatusCode, body: &[u8]) -> Result<(), Error> {
        let server = self.address.to_string();
        let text = String::from_utf8_lossy(body);
        let is_page = text.trim_start().starts_with('<');
        let reason = text.lines().next().filter(|_| !is_page).unwrap_or_default();
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => Err(Error::Refused { server }),
            StatusCode::BAD_GATEWAY => Err(Error::NoSupervisord {
                server,
                reason: reason.to_owned(),
            }),
            status => Err(Error::Status {
                server,
                status: status.as_u16(),
                reason: reason.to_owned(),
            }),
        }
    }

    /// The idle connection, or a new one.
    async fn sender(&self) -> Result<Sender, Error> {
        let idle = self.idle().take();
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        self.connect().await
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Sender, Error> {
        let connecting = async {
            let stream = open(&self.address).await?;
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(std::io::Error::other)
        };
        let (sender, connection) = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| self.unreachable(&"it did not answer in time"))?
            .map_err(|error| self.not_connected(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// The error for a connection that failed. rustls reports `InvalidMessage` where the server does not
    /// speak TLS.
    fn not_connected(&self, error: &std::io::Error) -> Error {
        let is_tls = matches!(self.address, Address::Tcp { tls: true, .. });
        let is_not_tls_message = |error: &tokio_rustls::rustls::Error| {
            matches!(error, tokio_rustls::rustls::Error::InvalidMessage(_))
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if inner.is_some_and(is_not_tls_message) && is_tls {
            self.unreachable(&"it does not speak TLS: write http://")
        } else {
            self.unreachable(error)
        }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Unreachable {
            server: self.address.to_string(),
            reason: reason.to_string(),
            advice: "Is it running? Name another server with -s or TWIDDLER_SERVER",
        }
    }

    fn unreadable(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Unreadable {
            server: self.address.to_string(),
            reason: reason.to_string(),
        }
    }
}

async fn open(address: &Address) -> std::io::Result<Box<dyn Stream>> {
    match address {
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Address::Tcp { host, port, tls } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            if !tls {
                return Ok(Box::new(stream));
            }
            let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
            let connector = TlsConnector::from(Arc::new(tls_config()?));
            Ok(Box::new(connector.connect(name, stream).await?))
        }
    }
}

/// Trusts the certificates that the system trusts, or the ones in the file that SSL_CERT_FILE names.
fn tls_config() -> std::io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_display_as_urls() {
        let tcp = |host: &str, tls| Address::Tcp {
            host: host.to_owned(),
            port: 9002,
            tls,
        };
        for (address, expected) in [
            (Address::Unix("/run/t.sock".into()), "unix:///run/t.sock"),
            (tcp("127.0.0.1", false), "http://127.0.0.1:9002"),
            (tcp("::1", true), "https://[::1]:9002"),
        ] {
            assert_eq!(address.to_string(), expected);
        }
    }
}
