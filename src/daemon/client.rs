//! Requests to the daemon: forwarded requests of clients, and typed calls of the proxy.
//!
//! Forwarded requests use hyper's connections, which leave paths and header names unchanged. The
//! proxy's own calls use reqwest. Neither repeats a request that the daemon may have received.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use nix::unistd::{Uid, User};

use super::clients::{Client, Clients};
use super::conf::{Credentials, DaemonAddress};
use super::connections::{Body, CONNECT_TIMEOUT, Connections, IDLE_TIMEOUT, ReplyBody, Reuse};
use super::descriptors::{Descriptors, Gauge, Measurement, Transport};
use super::health::Health;
use super::reload::{Head, ReloadResult};
use super::slots::{Full, Share, Slot, SlotLimits, Slots};
use crate::xmlrpc::{self, Fault, Value};

/// Why a typed call has no value.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with a fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The daemon answered with a status other than 200.
    #[error("supervisord answered HTTP {0}")]
    Status(StatusCode),
    /// The daemon cannot be reached, or closed the connection before it answered.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is not XML-RPC.
    #[error("supervisord's answer cannot be read: {0}")]
    Unreadable(#[from] xmlrpc::read::ReadError),
}

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum NoReply {
    /// The request was not sent, because too many calls wait for the daemon.
    #[error("too many calls wait for supervisord")]
    Full,
    /// The daemon cannot be reached, or closed the connection before it answered.
    #[error("{0}")]
    Unreachable(String),
}

/// The number of idle connections that the pool for the proxy's own calls keeps.
const OWN_IDLE: usize = 2;
/// How long the unused end of a reply may take to arrive.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// The authorization that all calls of the current work present.
    static AUTHORIZATION_OF_WORK: Option<HeaderValue>;
    /// The client whose turns the calls of the current work take.
    static ON_BEHALF: Client;
}

/// The client side of one supervisord.
pub struct Daemon {
    address: DaemonAddress,
    is_open: AtomicBool,
    connections: Arc<Connections>,
    http: reqwest::Client,
    rpc_url: String,
    own_authorization: Option<HeaderValue>,
    slots: Arc<Slots>,
    gauge: Arc<Gauge>,
    clients: Clients,
    health: Health,
    /// The latest authorization of a caller that the daemon has accepted, if the proxy has no
    /// credentials of its own.
    remembered: Mutex<Option<HeaderValue>>,
}

impl Daemon {
    /// Returns a client for the daemon at `address` without connecting to it. `credentials` are for the
    /// proxy's own calls.
    ///
    /// # Errors
    /// If the HTTP client cannot be built, or a header cannot hold the credentials.
    pub fn new(address: DaemonAddress, credentials: Option<Credentials>) -> anyhow::Result<Self> {
        Daemon::with(address, credentials, Descriptors::default())
    }

    /// Returns the same for a daemon with these descriptors according to its configuration file.
    ///
    /// # Errors
    /// As [`Daemon::new`].
    pub fn with(
        address: DaemonAddress,
        credentials: Option<Credentials>,
        configured: Descriptors,
    ) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(OWN_IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy();
        let (http, rpc_url) = match &address {
            DaemonAddress::Unix(path) => (
                http.unix_socket(path.clone()),
                "http://localhost/RPC2".to_owned(),
            ),
            DaemonAddress::Tcp { .. } => (http, format!("{address}/RPC2")),
        };
        let gauge = Arc::new(Gauge::new(configured, transport(&address)));
        let limits = SlotLimits::of(configured.ceiling(0));
        let connections = Arc::new(Connections::new(address.clone(), gauge.clone()));
        connections.limit_idle(limits.idle - OWN_IDLE);
        Ok(Daemon {
            connections,
            slots: Arc::new(Slots::new(limits)),
            gauge,
            clients: Clients::new(credentials.is_some()),
            health: Health::default(),
            http: http.build()?,
            rpc_url,
            own_authorization: presentable(credentials.as_ref()).map(basic).transpose()?,
            remembered: Mutex::default(),
            is_open: AtomicBool::new(credentials.is_none()),
            address,
        })
    }

    /// Returns the daemon's address.
    pub fn address(&self) -> &DaemonAddress {
        &self.address
    }

    /// Returns the user id of the daemon, or `None` if the proxy does not reach it over a unix socket.
    pub async fn account(&self) -> Option<u32> {
        Some(self.process().await?.uid())
    }

    /// Returns the credentials of the daemon's process, or `None` if the proxy does not reach it over a
    /// unix socket.
    pub async fn process(&self) -> Option<tokio::net::unix::UCred> {
        let DaemonAddress::Unix(path) = &self.address else {
            return None;
        };
        let connection = tokio::net::UnixStream::connect(path).await.ok()?;
        let peer = connection.peer_cred().ok()?;
        self.gauge.record_peer(&peer);
        Some(peer)
    }

    /// Returns the name of the daemon's account if it is known and is neither root nor the proxy's own.
    /// Such a daemon may be unable to read files that the proxy can read.
    pub async fn other_account(&self) -> Option<String> {
        let uid = Uid::from_raw(self.account().await?);
        if uid.is_root() || uid == Uid::effective() {
            return None;
        }
        let user = User::from_uid(uid).ok().flatten();
        Some(user.map_or_else(|| uid.to_string(), |user| user.name))
    }

    /// Returns whether the daemon requires no credentials, according to its configuration and its
    /// answers so far. The proxy may then make calls for any caller, because the daemon would accept the
    /// same calls from that caller.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Returns the authorization from the proxy's own credentials.
    pub fn own_authorization(&self) -> Option<&HeaderValue> {
        self.own_authorization.as_ref()
    }

    /// Remembers the authorization of a caller that the daemon has accepted, for the proxy's own calls.
    /// Does nothing if the proxy has credentials of its own.
    pub fn remember_authorization(&self, authorization: Option<&HeaderValue>) {
        if self.own_authorization.is_none()
            && let Some(authorization) = authorization
        {
            // This comes first: otherwise a caller without credentials could use these.
            self.is_open.store(false, Ordering::Release);
            let mut remembered = self
                .remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *remembered = Some(authorization.clone());
        }
    }

    /// Runs `work` so that all its own calls present `authorization`, even if another one is remembered
    /// meanwhile.
    pub async fn with_authorization<T>(
        &self,
        authorization: Option<HeaderValue>,
        work: impl Future<Output = T>,
    ) -> T {
        AUTHORIZATION_OF_WORK.scope(authorization, work).await
    }

    fn authorization(&self) -> Option<HeaderValue> {
        AUTHORIZATION_OF_WORK
            .try_with(Clone::clone)
            .unwrap_or_else(|_| self.current_authorization())
    }

    /// Returns the authorization from the proxy's own credentials, or else the remembered one.
    pub fn current_authorization(&self) -> Option<HeaderValue> {
        self.own_authorization.clone().or_else(|| {
            self.remembered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        })
    }

    /// Sends `request` unchanged, with its URI in the form that the client used. Returns the reply as soon
    /// as its head has arrived, with header names in the daemon's case. The request waits for a slot of
    /// its `share`, and takes turns with the other requests of its [`Origin`](super::Origin).
    ///
    /// # Errors
    /// See [`NoReply`].
    pub async fn forward(
        self: &Arc<Self>,
        request: Request<Body>,
        reuse: Reuse,
        share: Share,
    ) -> Result<Response<ReplyBody>, NoReply> {
        self.update_limits();
        let client = self.clients.client(request.extensions(), request.headers());
        let slot = self.slots.take(client, share).await;
        let slot = slot.map_err(|Full| NoReply::Full)?;
        let authorization = request.headers().get(AUTHORIZATION).cloned();
        let reply = self
            .connections
            .send(request, reuse, slot)
            .await
            .map_err(|error| NoReply::Unreachable(self.unreachable(error.as_ref())))?;
        self.clients
            .record_verdict(authorization.as_ref(), reply.status());
        Ok(reply)
    }

    /// Runs `work` so that its own calls take the turns of the client that sent this request.
    pub async fn on_behalf_of<T>(
        &self,
        request: &http::request::Parts,
        work: impl Future<Output = T>,
    ) -> T {
        let client = self.clients.client(&request.extensions, &request.headers);
        ON_BEHALF.scope(client, work).await
    }

    /// Returns whether the daemon has accepted the credentials of this request, or requires none.
    pub fn has_accepted(&self, head: &http::request::Parts) -> bool {
        self.clients.has_accepted(&head.headers)
    }

    /// Returns how many connections each share may have now.
    pub fn limits(&self) -> SlotLimits {
        self.slots.limits()
    }

    /// Returns whether the daemon answers. Sends at most one request a second for all callers.
    pub async fn is_up(self: &Arc<Self>) -> bool {
        let daemon = self.clone();
        let probe = || async move { daemon.answers().await };
        self.health.is_up(probe).await
    }

    /// Returns whether the daemon answers a call. A proxy without credentials of its own accepts 401 as an
    /// answer.
    async fn answers(&self) -> bool {
        let own = self.own_authorization.as_ref();
        match self
            .call_as(own, Share::Own, "supervisor.getState", &[])
            .await
        {
            Ok(_) => true,
            Err(CallError::Status(StatusCode::UNAUTHORIZED)) if own.is_none() => true,
            Err(error) => {
                tracing::debug!(%error, "not healthy");
                false
            }
        }
    }

    /// Returns how many of the daemon's descriptors the proxy uses.
    fn used_descriptors(&self) -> usize {
        self.slots.cost() + self.connections.idle() + OWN_IDLE
    }

    /// Adapts the number of connections to the descriptors that the daemon can spare now.
    fn update_limits(self: &Arc<Self>) {
        let descriptors = match self.gauge.measure() {
            Measurement::Recent => return,
            Measurement::Known(descriptors) => descriptors,
            Measurement::PidNeeded(descriptors) => {
                let daemon = self.clone();
                tokio::spawn(async move {
                    let pid = daemon.call("supervisor.getPID", &[]).await.ok();
                    let pid = pid.as_ref().and_then(Value::as_int);
                    daemon
                        .gauge
                        .record_pid(pid.and_then(|pid| pid.try_into().ok()));
                });
                descriptors
            }
        };
        let limits = SlotLimits::of(descriptors.ceiling(self.used_descriptors()));
        self.slots.resize(limits);
        self.connections.limit_idle(limits.idle - OWN_IDLE);
    }

    /// Returns the authorization for a call on behalf of a caller that the daemon has accepted with
    /// `authorization`: that of the proxy's own credentials, or else the caller's.
    pub fn authorization_for(&self, authorization: Option<&HeaderValue>) -> Option<HeaderValue> {
        let mut header = self.own_authorization.as_ref().or(authorization)?.clone();
        header.set_sensitive(true);
        Some(header)
    }

    /// Calls `method` as the proxy and returns its result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, method: &str, params: &[Value]) -> Result<Value, CallError> {
        self.call_as(self.authorization().as_ref(), Share::Own, method, params)
            .await
    }

    /// Calls a method that the daemon answers after processes have stopped. Returns `None` without a call
    /// if clients' waiting calls use all connections of [`Share::Waiting`], because these may take long.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_waiting(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<Option<Value>, CallError> {
        let Some(_slot) = self.slots.take_free(Client::Proxy, Share::Waiting) else {
            return Ok(None);
        };
        let authorization = self.authorization();
        let call = self.call_in_slot(authorization.as_ref(), method, params);
        call.await.map(Some)
    }

    async fn call_as(
        &self,
        authorization: Option<&HeaderValue>,
        share: Share,
        method: &str,
        params: &[Value],
    ) -> Result<Value, CallError> {
        let _slot = self.own_slot(share).await?;
        self.call_in_slot(authorization, method, params).await
    }

    async fn call_in_slot(
        &self,
        authorization: Option<&HeaderValue>,
        method: &str,
        params: &[Value],
    ) -> Result<Value, CallError> {
        let reply = self.reply(authorization, method, params).await?;
        let body = reply
            .bytes()
            .await
            .map_err(|error| self.unreachable_call(&error))?;
        Ok(xmlrpc::read::response(&body)??)
    }

    async fn own_slot(&self, share: Share) -> Result<Slot, CallError> {
        let client = ON_BEHALF.try_with(|client| *client);
        let client = client.unwrap_or(Client::Proxy);
        let slot = self.slots.take(client, share).await;
        slot.map_err(|Full| CallError::Unreachable(NoReply::Full.to_string()))
    }

    /// Sends a call and returns the reply as soon as its head has arrived. By then the daemon has executed
    /// the call, unless the call takes several iterations of its main loop.
    async fn reply(
        &self,
        authorization: Option<&HeaderValue>,
        method: &str,
        params: &[Value],
    ) -> Result<reqwest::Response, CallError> {
        let mut request = self
            .http
            .post(&self.rpc_url)
            .header(CONTENT_TYPE, "text/xml")
            .body(xmlrpc::write::call(method, params));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let reply = request
            .send()
            .await
            .map_err(|error| self.unreachable_call(&error))?;
        if reply.status() != StatusCode::OK {
            self.is_open.store(false, Ordering::Release);
            return Err(CallError::Status(reply.status()));
        }
        Ok(reply)
    }

    /// Runs `calls` in one `system.multicall` as the proxy. Returns one result per call, in order.
    ///
    /// # Errors
    /// If the multicall as a whole fails. Faults of single calls are in the list.
    pub async fn multicall(
        &self,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, CallError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let results = self.call(MULTICALL, &[multicall_entries(calls)]).await?;
        Ok(multicall_results(results))
    }

    /// Runs `calls` and then `reloadConfig` in one multicall as the proxy. Returns the results of the
    /// calls and that of `reloadConfig`, without waiting for the daemon's list of removed groups.
    ///
    /// # Errors
    /// As [`Daemon::multicall`].
    pub async fn multicall_and_reload(
        &self,
        mut calls: Vec<(&str, Vec<Value>)>,
    ) -> Result<(Vec<Result<Value, Fault>>, Result<ReloadResult, Fault>), CallError> {
        let slot = self.own_slot(Share::Reload).await?;
        let mut head = Head::after(calls.len());
        calls.push(("supervisor.reloadConfig", vec![]));
        let authorization = self.authorization();
        let mut reply = self
            .reply(
                authorization.as_ref(),
                MULTICALL,
                &[multicall_entries(&calls)],
            )
            .await?;
        let mut received = Vec::new();
        let mut body = None;
        while let Some(chunk) = reply
            .chunk()
            .await
            .map_err(|error| self.unreachable_call(&error))?
        {
            received.extend_from_slice(&chunk);
            body = head.complete(&received);
            if body.is_some() {
                drain(reply, slot);
                break;
            }
        }
        let results = xmlrpc::read::response(&body.unwrap_or(received))??;
        let mut results = multicall_results(results);
        let reload = results.pop().unwrap_or(Ok(Value::Nil));
        Ok((results, reload.map(|value| ReloadResult::read(&value))))
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> String {
        format!(
            "supervisord at {} does not answer: {}",
            self.address,
            root_cause(error)
        )
    }

    fn unreachable_call(&self, error: &reqwest::Error) -> CallError {
        CallError::Unreachable(self.unreachable(error))
    }
}

/// Reads the rest of a reply in the background and frees its slot at the end. Closes the connection if the
/// rest takes too long.
fn drain(mut reply: reqwest::Response, slot: Slot) {
    tokio::spawn(async move {
        let _slot = slot;
        let rest = async { while let Ok(Some(_)) = reply.chunk().await {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
    });
}

/// The method that executes several calls.
pub const MULTICALL: &str = "system.multicall";

/// Returns the parameter of a multicall.
pub fn multicall_entries(calls: &[(&str, Vec<Value>)]) -> Value {
    let entry = |(method, params): &(&str, Vec<Value>)| {
        Value::Struct(vec![
            ("methodName".to_owned(), (*method).into()),
            ("params".to_owned(), Value::Array(params.clone())),
        ])
    };
    Value::Array(calls.iter().map(entry).collect())
}

/// Splits the reply of a multicall into one result per call.
pub fn multicall_results(value: Value) -> Vec<Result<Value, Fault>> {
    match value {
        Value::Array(results) => results.into_iter().map(multicall_result).collect(),
        other => vec![Ok(other)],
    }
}

/// Returns one result of a multicall. A struct with a `faultCode` is a fault: the daemon's multicall
/// returns values without an enclosing array (`supervisor/xmlrpc.py`, `multicall`), and none of its
/// methods returns a struct with that member.
///
/// # Errors
/// The fault.
pub fn multicall_result(value: Value) -> Result<Value, Fault> {
    match (
        value.get("faultCode").and_then(Value::as_int),
        value.get("faultString"),
    ) {
        (Some(code), Some(text)) => Err(Fault::from_reply(
            i32::try_from(code).unwrap_or(crate::fault::FAILED),
            text.as_str().unwrap_or_default().to_owned(),
        )),
        _ => Ok(value),
    }
}

fn transport(address: &DaemonAddress) -> Transport {
    match address {
        DaemonAddress::Unix(_) => Transport::UnixSocket,
        DaemonAddress::Tcp { host, .. } => {
            let address = host.parse::<std::net::IpAddr>();
            if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
                Transport::Loopback
            } else {
                Transport::Network
            }
        }
    }
}

/// Returns the credentials unless the password is a digest or unknown.
fn presentable(credentials: Option<&Credentials>) -> Option<&Credentials> {
    credentials.filter(|credentials| credentials.can_be_presented())
}

fn basic(credentials: &Credentials) -> anyhow::Result<HeaderValue> {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the text of the innermost error, which has the reason ("No such file or directory").
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
