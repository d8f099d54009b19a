//! XML-RPC and plain HTTP requests over TCP or a unix socket.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use supervisor_twiddler::xmlrpc::{Fault, Value, read, write};

use super::http::{Addr, Connection, Reply, Until, shown};
use super::process::lock;
use super::values::{IntoParams, options, value};
use super::wait::{LIMIT, eventually};

/// A client of a daemon or of the sidecar. Threads can share it.
#[derive(Debug)]
pub struct Client {
    addr: Addr,
    credentials: Option<(String, String)>,
    limit: Duration,
    /// The connection of a client that keeps one alive; `None` inside before the first request.
    kept: Option<Mutex<Option<Connection>>>,
}

impl Client {
    /// A client without credentials that opens a connection for each request.
    pub fn new(addr: impl Into<Addr>) -> Client {
        Client {
            addr: addr.into(),
            credentials: None,
            limit: LIMIT,
            kept: None,
        }
    }

    /// Adds Basic credentials.
    #[must_use]
    pub fn with_credentials(mut self, user: &str, password: &str) -> Client {
        self.credentials = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// Adds these Basic credentials, or removes them.
    #[must_use]
    pub fn with_credentials_of(mut self, credentials: Option<&(String, String)>) -> Client {
        self.credentials = credentials.cloned();
        self
    }

    /// Uses one connection for all requests. If it fails or is closed, the next request opens another one.
    /// Threads that share the client use the connection one at a time.
    #[must_use]
    pub fn kept_alive(mut self) -> Client {
        self.kept = Some(Mutex::new(None));
        self
    }

    /// Sets the time limit of a reply; the default is [`LIMIT`].
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Client {
        self.limit = limit;
        self
    }

    /// The address that it connects to.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Calls a method.
    pub fn call(&self, method: &str, params: impl IntoParams) -> Result<Value, CallError> {
        let body = write::call(method, &params.into_params());
        understood(self.post_call(&body).map_err(CallError::Transport)?)
    }

    /// Calls a method that must answer with a fault, and returns the fault.
    pub fn expect_fault(&self, method: &str, params: impl IntoParams) -> Result<Fault> {
        match self.call(method, params) {
            Err(CallError::Fault(fault)) => Ok(fault),
            Err(error) => Err(error.into()),
            Ok(value) => bail!("{method} answered {value:?} and not a fault"),
        }
    }

    /// Calls `system.multicall`. Returns the values and the fault structs of the reply.
    pub fn multicall(&self, calls: &[(&str, Vec<Value>)]) -> Result<Vec<Value>, CallError> {
        let call = |(method, params): &(&str, Vec<Value>)| {
            options(&[
                ("methodName", value(*method)),
                ("params", Value::Array(params.clone())),
            ])
        };
        let calls = Value::Array(calls.iter().map(call).collect());
        match self.call("system.multicall", [calls])? {
            Value::Array(values) => Ok(values),
            other => Err(CallError::Transport(anyhow::anyhow!(
                "not an array: {other:?}"
            ))),
        }
    }

    /// Posts this body to `/RPC2` as an XML-RPC client does.
    pub fn post_call(&self, body: &[u8]) -> Result<Reply> {
        self.request("POST", "/RPC2", &[("Content-Type", "text/xml")], Some(body))
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request("GET", path, &[], None)
    }

    /// Waits until `/twiddler/health` answers with this status. The proxy updates it once a second.
    pub fn wait_for_health(&self, status: u16) -> Result<Reply> {
        eventually(LIMIT, || {
            let health = self.get("/twiddler/health")?;
            ensure!(health.status == status, "{health:?}");
            Ok(health)
        })
    }

    /// Sends a request of HTTP/1.1 with these headers, `Host`, the credentials, `Content-Length` if there is a
    /// body, and `Connection: close` unless the connection is kept alive.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Reply> {
        let request = self.request_bytes(method, path, headers, body);
        Reply::parse(&self.raw(&request, Until::Reply)?)
    }

    /// The bytes that [`Client::request`] sends.
    pub fn request_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some((user, password)) = &self.credentials {
            head += &format!("Authorization: {}\r\n", basic(user, password));
        }
        if let Some(body) = body {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        if self.kept.is_none() {
            head += "Connection: close\r\n";
        }
        [head.as_bytes(), b"\r\n", body.unwrap_or_default()].concat()
    }

    /// Sends these bytes and returns the bytes received, over the connection that is kept alive if there is
    /// one.
    pub fn raw(&self, request: &[u8], until: Until<'_>) -> Result<Vec<u8>> {
        match &self.kept {
            None => self.exchange(&mut self.connect()?, request, until),
            Some(kept) => self.raw_kept(&mut lock(kept), request, until),
        }
    }

    /// Opens a new connection, to be read and written step by step.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.addr)
    }

    fn raw_kept(
        &self,
        kept: &mut Option<Connection>,
        request: &[u8],
        until: Until<'_>,
    ) -> Result<Vec<u8>> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        if connection.is_closed()? {
            connection = self.connect()?;
        }
        let received = self.exchange(&mut connection, request, until)?;
        *kept = Some(connection); // not after an error: nobody knows what would come next
        Ok(received)
    }

    fn exchange(
        &self,
        connection: &mut Connection,
        request: &[u8],
        until: Until<'_>,
    ) -> Result<Vec<u8>> {
        connection.send(request)?;
        connection.read_within(self.limit, until)
    }

    fn host(&self) -> String {
        match &self.addr {
            Addr::Tcp(addr) => addr.to_string(),
            Addr::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// The value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn understood(reply: Reply) -> Result<Value, CallError> {
    if reply.status != 200 {
        return Err(CallError::Http(Box::new(reply)));
    }
    match read::response(&reply.content()) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(fault)) => Err(CallError::Fault(fault)),
        Err(error) => {
            let body = shown(&reply.content());
            Err(CallError::Transport(anyhow::anyhow!(
                "not an XML-RPC reply ({error}): {body}"
            )))
        }
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub enum CallError {
    /// The reply was a fault.
    Fault(Fault),
    /// The reply had a status other than 200.
    Http(Box<Reply>),
    /// There was no reply, or one that is no XML-RPC response.
    Transport(anyhow::Error),
}

impl CallError {
    /// The fault, if the reply was one.
    pub fn fault(&self) -> Option<&Fault> {
        if let CallError::Fault(fault) = self {
            Some(fault)
        } else {
            None
        }
    }

    /// The HTTP status, if it was not 200.
    pub fn status(&self) -> Option<u16> {
        if let CallError::Http(reply) = self {
            Some(reply.status)
        } else {
            None
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Fault(fault) => write!(f, "fault {}: {}", fault.code, fault.text),
            CallError::Http(reply) => write!(f, "{reply:?}"),
            CallError::Transport(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for CallError {}

/// Fails unless the fault has this code and this text.
pub fn ensure_fault(fault: &Fault, code: i32, text: &str) -> Result<()> {
    let expected = fault.code == code && fault.text == text;
    ensure!(
        expected,
        "fault {}: {:?}, and not {code}: {text:?}",
        fault.code,
        fault.text
    );
    Ok(())
}
