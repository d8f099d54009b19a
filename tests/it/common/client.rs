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

/// A client of a daemon or of the sidecar. May be shared by threads.
#[derive(Debug)]
pub struct Client {
    addr: Addr,
    credentials: Option<(String, String)>,
    limit: Duration,
    /// With a kept-alive connection: the one in use, once there is one.
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

    /// With Basic credentials.
    #[must_use]
    pub fn with_credentials(mut self, user: &str, password: &str) -> Client {
        self.credentials = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// With these Basic credentials, or none.
    #[must_use]
    pub fn with_credentials_of(mut self, credentials: Option<&(String, String)>) -> Client {
        self.credentials = credentials.cloned();
        self
    }

    /// With one connection for all requests. Another is opened once it has failed or was closed.
    /// Threads that share it take turns.
    #[must_use]
    pub fn kept_alive(mut self) -> Client {
        self.kept = Some(Mutex::new(None));
        self
    }

    /// With another limit for one reply than [`LIMIT`].
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Client {
        self.limit = limit;
        self
    }

    /// Where it connects to.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Calls a method.
    pub fn call(&self, method: &str, params: impl IntoParams) -> Result<Value, CallError> {
        let body = write::call(method, &params.into_params());
        understood(self.post_call(&body).map_err(CallError::Transport)?)
    }

    /// Calls a method that must answer with a fault.
    pub fn expect_fault(&self, method: &str, params: impl IntoParams) -> Result<Fault> {
        match self.call(method, params) {
            Err(CallError::Fault(fault)) => Ok(fault),
            Err(error) => Err(error.into()),
            Ok(value) => bail!("{method} answered {value:?} and not a fault"),
        }
    }

    /// Calls `system.multicall`; the bare values and fault structs that come back.
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

    /// Posts this body to `/RPC2` as an XML-RPC client would.
    pub fn post_call(&self, body: &[u8]) -> Result<Reply> {
        self.request("POST", "/RPC2", &[("Content-Type", "text/xml")], Some(body))
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request("GET", path, &[], None)
    }

    /// Waits until `/twiddler/health` answers with this status: what it says is up to a second old.
    pub fn wait_for_health(&self, status: u16) -> Result<Reply> {
        eventually(LIMIT, || {
            let health = self.get("/twiddler/health")?;
            ensure!(health.status == status, "{health:?}");
            Ok(health)
        })
    }

    /// A request of HTTP/1.1. `Host`, the credentials, `Content-Length` where there is a body and,
    /// unless the connection is kept, `Connection: close` are added to the headers given.
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

    /// What [`Client::request`] sends.
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

    /// Sends these bytes, over the kept connection if there is one, and takes what comes back.
    pub fn raw(&self, request: &[u8], until: Until<'_>) -> Result<Vec<u8>> {
        match &self.kept {
            None => self.exchange(&mut self.connect()?, request, until),
            Some(kept) => self.raw_kept(&mut lock(kept), request, until),
        }
    }

    /// A connection of its own, to be read and written step by step.
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

/// Why a call has no value.
#[derive(Debug)]
pub enum CallError {
    /// The answer was a fault.
    Fault(Fault),
    /// The answer was a status other than 200.
    Http(Box<Reply>),
    /// There was no answer, or none that can be understood.
    Transport(anyhow::Error),
}

impl CallError {
    /// The fault, where it is one.
    pub fn fault(&self) -> Option<&Fault> {
        if let CallError::Fault(fault) = self {
            Some(fault)
        } else {
            None
        }
    }

    /// The HTTP status, where it is one other than 200.
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

/// Fails unless this is a fault of this number and text.
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
