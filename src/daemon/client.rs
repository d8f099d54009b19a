//! Requests to the daemon: opaque ones that are passed on, and typed calls of our own.
//!
//! Passing on goes over connections of hyper's, which leaves paths and header names as they are; our
//! own calls go through reqwest. Neither repeats a request that the daemon may have received.

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
use super::descriptors::{Descriptors, Gauge, Look, Reached};
use super::health::Health;
use super::reload::{Head, Reloaded};
use super::slots::{Full, Share, Slot, SlotLimits, Slots};
use crate::xmlrpc::{self, Fault, Value};

/// Why a typed call has no value.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with a fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The daemon answered with something other than 200.
    #[error("supervisord answered HTTP {0}")]
    Status(StatusCode),
    /// The daemon cannot be reached, or went away before it answered.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is no XML-RPC.
    #[error("supervisord's answer cannot be read: {0}")]
    Unreadable(#[from] xmlrpc::read::ReadError),
}

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The daemon was not asked: too many calls wait for it.
    #[error("too many calls wait for supervisord")]
    Full,
    /// The daemon cannot be reached, or went away before it answered.
    #[error("{0}")]
    Unreachable(String),
}

/// Connections of the proxy's own calls that are kept while nobody uses them.
const OWN_IDLE: usize = 2;
/// How long the end of a reply may take that nobody waits for.
const LEFT_OVER_TIME: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// What the calls of a piece of work present, from its first to its last.
    static PRESENTED: Option<HeaderValue>;
    /// Whose turns the own calls of a piece of work take.
    static ON_BEHALF: Client;
}

/// The way to one supervisord.
pub struct Daemon {
    address: DaemonAddress,
    is_open: AtomicBool,
    connections: Arc<Connections>,
    caller: reqwest::Client,
    rpc_url: String,
    own_authorization: Option<HeaderValue>,
    slots: Arc<Slots>,
    gauge: Arc<Gauge>,
    clients: Clients,
    health: Health,
    /// What a caller presented that the daemon let in, for a proxy without credentials of its own.
    lent: Mutex<Option<HeaderValue>>,
}

impl Daemon {
    /// Prepares connections to `address`; nothing is connected yet. `credentials` are for the calls
    /// that the proxy makes of its own accord.
    ///
    /// # Errors
    /// When the TLS-free HTTP client cannot be built, or the credentials cannot stand in a header.
    pub fn new(address: DaemonAddress, credentials: Option<Credentials>) -> anyhow::Result<Self> {
        Daemon::with(address, credentials, Descriptors::default())
    }

    /// The same in front of a daemon whose configuration file grants it these descriptors.
    ///
    /// # Errors
    /// As [`Daemon::new`].
    pub fn with(
        address: DaemonAddress,
        credentials: Option<Credentials>,
        configured: Descriptors,
    ) -> anyhow::Result<Self> {
        let caller = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(OWN_IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy();
        let (caller, rpc_url) = match &address {
            DaemonAddress::Unix(path) => (
                caller.unix_socket(path.clone()),
                "http://localhost/RPC2".to_owned(),
            ),
            DaemonAddress::Tcp { .. } => (caller, format!("{address}/RPC2")),
        };
        let gauge = Arc::new(Gauge::new(configured, reached(&address)));
        let limits = SlotLimits::of(configured.ceiling(0));
        let connections = Arc::new(Connections::new(address.clone(), gauge.clone()));
        connections.keep_at_most(limits.idle - OWN_IDLE);
        Ok(Daemon {
            connections,
            slots: Arc::new(Slots::new(limits)),
            gauge,
            clients: Clients::of(credentials.is_some()),
            health: Health::default(),
            caller: caller.build()?,
            rpc_url,
            own_authorization: usable(credentials.as_ref()).map(basic).transpose()?,
            lent: Mutex::default(),
            is_open: AtomicBool::new(credentials.is_none()),
            address,
        })
    }

    /// Where the daemon is.
    pub fn address(&self) -> &DaemonAddress {
        &self.address
    }

    /// The account that the daemon runs under, where that can be told: over its socket.
    pub async fn account(&self) -> Option<u32> {
        Some(self.process().await?.uid())
    }

    /// The daemon's process, where that can be told: over its socket.
    pub async fn process(&self) -> Option<tokio::net::unix::UCred> {
        let DaemonAddress::Unix(path) = &self.address else {
            return None;
        };
        let connection = tokio::net::UnixStream::connect(path).await.ok()?;
        let peer = connection.peer_cred().ok()?;
        self.gauge.meet(&peer);
        Some(peer)
    }

    /// The account that the daemon runs under, where that can be told and is neither root nor the
    /// proxy's own: it may be unable to read what the proxy may.
    pub async fn other_account(&self) -> Option<String> {
        let uid = Uid::from_raw(self.account().await?);
        if uid.is_root() || uid == Uid::effective() {
            return None;
        }
        let user = User::from_uid(uid).ok().flatten();
        Some(user.map_or_else(|| uid.to_string(), |user| user.name))
    }

    /// Whether the daemon asks nobody for credentials, as far as its configuration and its answers
    /// tell: the proxy then has nobody's to speak with, so the daemon judges its calls as it would
    /// judge anybody's.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// What the proxy presents of its own, if anything.
    pub fn own_authorization(&self) -> Option<&HeaderValue> {
        self.own_authorization.as_ref()
    }

    /// Lets the proxy's own calls present what the daemon let a caller in with. Does nothing for a
    /// proxy that has credentials of its own.
    pub fn lend(&self, authorization: Option<&HeaderValue>) {
        if self.own_authorization.is_none()
            && let Some(authorization) = authorization
        {
            // First of all, so that nobody gets in with them unasked.
            self.is_open.store(false, Ordering::Release);
            let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
            *lent = Some(authorization.clone());
        }
    }

    /// Makes all of `work`'s own calls present `authorization`, whatever is lent meanwhile.
    pub async fn presenting<T>(
        &self,
        authorization: Option<HeaderValue>,
        work: impl Future<Output = T>,
    ) -> T {
        PRESENTED.scope(authorization, work).await
    }

    fn authorization(&self) -> Option<HeaderValue> {
        PRESENTED
            .try_with(Clone::clone)
            .unwrap_or_else(|_| self.known_authorization())
    }

    /// What the proxy has of its own, or was lent last.
    pub fn known_authorization(&self) -> Option<HeaderValue> {
        self.own_authorization.clone().or_else(|| {
            self.lent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        })
    }

    /// Sends `request` as it is, its URI in the form that the client used, and gives the reply's
    /// head as soon as it is there, header names in the daemon's own case. It waits for its turn in
    /// its `share` of the connections, as one of the requests of its [`Origin`](super::Origin).
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn forward(
        self: &Arc<Self>,
        request: Request<Body>,
        reuse: Reuse,
        share: Share,
    ) -> Result<Response<ReplyBody>, Unanswered> {
        self.go_by_its_limit();
        let client = self.clients.client(request.extensions(), request.headers());
        let slot = self.slots.take(client, share).await;
        let slot = slot.map_err(|Full| Unanswered::Full)?;
        let presented = request.headers().get(AUTHORIZATION).cloned();
        let reply = self
            .connections
            .send(request, reuse, slot)
            .await
            .map_err(|error| Unanswered::Unreachable(self.unreachable(error.as_ref())))?;
        self.clients.judged(presented.as_ref(), reply.status());
        Ok(reply)
    }

    /// Has the own calls of `work` take turns with those of others as the calls of this request.
    pub async fn on_behalf_of<T>(
        &self,
        request: &http::request::Parts,
        work: impl Future<Output = T>,
    ) -> T {
        let client = self.clients.client(&request.extensions, &request.headers);
        ON_BEHALF.scope(client, work).await
    }

    /// Whether it has let in whoever sends a request with this head, or lets in everybody.
    pub fn has_let_in(&self, head: &http::request::Parts) -> bool {
        self.clients.has_let_in(&head.headers)
    }

    /// How many connections there may be now.
    pub fn limits(&self) -> SlotLimits {
        self.slots.limits()
    }

    /// Whether the daemon answers the proxy. It is asked at most once a second, whoever wants to
    /// know; one that merely asks a proxy for credentials that has none of its own answers too.
    pub async fn is_up(self: &Arc<Self>) -> bool {
        let daemon = self.clone();
        let ask = || async move { daemon.answers().await };
        self.health.is_up(ask).await
    }

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

    /// How many descriptors of the daemon are in use for us.
    fn taken(&self) -> usize {
        self.slots.cost() + self.connections.idle() + OWN_IDLE
    }

    /// Leaves the daemon the descriptors that it needs now.
    fn go_by_its_limit(self: &Arc<Self>) {
        let found = match self.gauge.look() {
            Look::Recent => return,
            Look::Found(found) => found,
            Look::Ask(found) => {
                let daemon = self.clone();
                tokio::spawn(async move {
                    let pid = daemon.call("supervisor.getPID", &[]).await.ok();
                    let pid = pid.as_ref().and_then(Value::as_int);
                    daemon.gauge.tell(pid.and_then(|pid| pid.try_into().ok()));
                });
                found
            }
        };
        let limits = SlotLimits::of(found.ceiling(self.taken()));
        self.slots.resize(limits);
        self.connections.keep_at_most(limits.idle - OWN_IDLE);
    }

    /// What a call presents that is made for a caller whom the daemon let in with `authorization`:
    /// the proxy's own credentials, where it has any.
    pub fn authorization_for(&self, authorization: Option<&HeaderValue>) -> Option<HeaderValue> {
        let mut presented = self.own_authorization.as_ref().or(authorization)?.clone();
        presented.set_sensitive(true);
        Some(presented)
    }

    /// Calls `method` with the proxy's own credentials.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, method: &str, params: &[Value]) -> Result<Value, CallError> {
        self.call_as(self.authorization().as_ref(), Share::Own, method, params)
            .await
    }

    /// The same of a method that the daemon answers when processes have stopped. None, and no call, where
    /// clients' calls that wait have taken all connections for such: theirs may take long.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_that_waits(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<Option<Value>, CallError> {
        let Some(_slot) = self.slots.take_free(Client::Proxy, Share::Waiting) else {
            return Ok(None);
        };
        let authorization = self.authorization();
        let called = self.call_in_slot(authorization.as_ref(), method, params);
        called.await.map(Some)
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
        slot.map_err(|Full| CallError::Unreachable(Unanswered::Full.to_string()))
    }

    /// The reply as soon as its head is there; the daemon has done what it was asked by then, unless
    /// that takes it several turns of its loop.
    async fn reply(
        &self,
        authorization: Option<&HeaderValue>,
        method: &str,
        params: &[Value],
    ) -> Result<reqwest::Response, CallError> {
        let mut request = self
            .caller
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

    /// Runs `calls` in one `system.multicall`, as the proxy itself; one result for each, in order.
    ///
    /// # Errors
    /// When the multicall as a whole has no answer; faults of single calls are in the list.
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

    /// Runs `calls` and then `reloadConfig` in one multicall, as the proxy itself, and does not wait
    /// for the list of groups that are gone from the files. The results of the calls, and what has
    /// come.
    ///
    /// # Errors
    /// As [`Daemon::multicall`].
    pub async fn multicall_and_reload(
        &self,
        mut calls: Vec<(&str, Vec<Value>)>,
    ) -> Result<(Vec<Result<Value, Fault>>, Result<Reloaded, Fault>), CallError> {
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
        while let Some(piece) = reply
            .chunk()
            .await
            .map_err(|error| self.unreachable_call(&error))?
        {
            received.extend_from_slice(&piece);
            body = head.complete(&received);
            if body.is_some() {
                tokio::spawn(async move {
                    let _slot = slot;
                    let rest = async { while let Ok(Some(_)) = reply.chunk().await {} };
                    let _ = tokio::time::timeout(LEFT_OVER_TIME, rest).await; // closed then
                });
                break;
            }
        }
        let results = xmlrpc::read::response(&body.unwrap_or(received))??;
        let mut results = multicall_results(results);
        let reloaded = results.pop().unwrap_or(Ok(Value::Nil));
        Ok((results, reloaded.map(|value| Reloaded::read(&value))))
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

/// What carries out several calls.
pub const MULTICALL: &str = "system.multicall";

/// A multicall's parameter.
pub fn multicall_entries(calls: &[(&str, Vec<Value>)]) -> Value {
    let entry = |(method, params): &(&str, Vec<Value>)| {
        Value::Struct(vec![
            ("methodName".to_owned(), (*method).into()),
            ("params".to_owned(), Value::Array(params.clone())),
        ])
    };
    Value::Array(calls.iter().map(entry).collect())
}

/// What a multicall returned: one result for each call.
pub fn multicall_results(value: Value) -> Vec<Result<Value, Fault>> {
    match value {
        Value::Array(results) => results.into_iter().map(multicall_result).collect(),
        other => vec![Ok(other)],
    }
}

/// One result of a multicall. A struct with a `faultCode` is a fault: the daemon's multicall returns bare values
/// (`supervisor/xmlrpc.py`, `multicall`), and no other reply of it has such a member.
///
/// # Errors
/// The fault.
pub fn multicall_result(value: Value) -> Result<Value, Fault> {
    match (
        value.get("faultCode").and_then(Value::as_int),
        value.get("faultString"),
    ) {
        (Some(code), Some(text)) => Err(Fault::received(
            i32::try_from(code).unwrap_or(crate::fault::FAILED),
            text.as_str().unwrap_or_default().to_owned(),
        )),
        _ => Ok(value),
    }
}

fn reached(address: &DaemonAddress) -> Reached {
    match address {
        DaemonAddress::Unix(_) => Reached::Socket,
        DaemonAddress::Tcp { host, .. } => {
            let address = host.parse::<std::net::IpAddr>();
            if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
                Reached::Loopback
            } else {
                Reached::Network
            }
        }
    }
}

/// A password that is only known as a digest, or not at all, cannot be presented.
fn usable(credentials: Option<&Credentials>) -> Option<&Credentials> {
    credentials.filter(|credentials| credentials.can_be_presented())
}

fn basic(credentials: &Credentials) -> anyhow::Result<HeaderValue> {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The innermost error is the one that says what to do ("No such file or directory").
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
