//! One XML-RPC call: it is answered by the proxy, forwarded to the daemon, or forwarded with translated names.
//!
//! A call without names to translate is forwarded with its original bytes. The `twiddler` namespace is
//! answered here, after the daemon has authorized the caller.

mod allow;
mod bulk;
mod ending;
pub mod methods;
mod multicall;
mod share;
mod steps;
mod supervisor;
mod system;
mod update_sessions;
mod web;
mod wording;

use std::sync::Arc;

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderValue, Request as HttpRequest, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::access::method_policy::Policy;
use crate::audit::{Record, log_text, reason};
use crate::current::Current;
use crate::daemon::MainLog;
use crate::daemon::{Daemon, Share};
use crate::failure::{self, Failure, HttpResult};
use crate::fault::{FAILED, NOT_IN_WHITELIST, UNKNOWN_METHOD, fault, without_detail};
use crate::forward::{self, Payload};
use crate::limits::ClientSlot;
use crate::twiddler::{Authorized, Change, ChangeError, Outcome, Twiddler};
use crate::update::{self, Updates};
use crate::xmlrpc::read::ReadError;
use crate::xmlrpc::{self, Fault, MethodCall, Value};
use methods::{Method, Request};
use update_sessions::UpdateSessions;
use wording::Api;

pub use ending::Endings;
pub use update_sessions::ConnectionUpdate;

/// The body that the daemon gets instead of a call that the proxy cannot read, so that it answers with its own
/// fault.
const UNREADABLE: &[u8] = b"<methodCall/>";

/// The daemon's path for calls.
const CALLS: &str = "/RPC2";

/// The largest reply in bytes that is forwarded in one piece.
const IN_ONE_PIECE: u64 = 64 * 1024;

/// The size in bytes from which a call takes milliseconds to parse.
const LARGE_CALL: usize = 256 * 1024;

/// Answers calls.
#[derive(Clone)]
pub struct Rpc {
    daemon: Arc<Daemon>,
    twiddler: Arc<Twiddler>,
    updates: Arc<Updates>,
    update_sessions: Arc<UpdateSessions>,
    policy: Arc<Current<Policy>>,
    main_log: MainLog,
    /// The path of the daemon's configuration file, as in the daemon's texts.
    main_file: String,
    endings: Arc<Endings>,
}

/// The caller of a method: the head of the HTTP request, and the update session of the connection.
pub struct Caller<'a> {
    /// The head of the request.
    pub head: &'a Parts,
    /// The session of `supervisorctl update` on this connection, if any.
    pub update: &'a ConnectionUpdate,
}

impl Caller<'_> {
    /// The audit record of the request.
    fn record(&self) -> Record {
        Record::of(&self.head.extensions)
    }
}

/// The value of an answer, or the reason why there is none: a fault, or a failure without XML-RPC.
type Answer = Result<Value, Failure>;

impl Rpc {
    /// Answers calls in front of `daemon`. `policy` can be exchanged while calls are answered. `main_file` is
    /// the path of the daemon's configuration file, as in the daemon's texts.
    pub fn new(
        daemon: Arc<Daemon>,
        twiddler: Arc<Twiddler>,
        updates: Arc<Updates>,
        policy: Arc<Current<Policy>>,
        main_log: MainLog,
        main_file: String,
    ) -> Self {
        Rpc {
            daemon,
            twiddler,
            updates,
            update_sessions: Arc::default(),
            policy,
            main_log,
            main_file,
            endings: Arc::default(),
        }
    }

    /// The `shutdown` or `restart` call that is in progress, if any.
    pub fn endings(&self) -> Arc<Endings> {
        self.endings.clone()
    }

    /// The changes in the daemon.
    pub fn twiddler(&self) -> &Arc<Twiddler> {
        &self.twiddler
    }

    /// The daemon.
    pub fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// The same without `allow` and `whitelist`, for the proxy's own calls.
    pub fn unrestricted(&self) -> Self {
        Rpc {
            policy: Arc::new(Current::new(Policy::default())),
            ..self.clone()
        }
    }

    /// Answers the call in `body`. A fault of a `twiddler` method is an answer.
    ///
    /// # Errors
    /// The reason why there is no answer.
    pub async fn answer(&self, caller: &Caller<'_>, body: Bytes) -> HttpResult {
        let call = match read_call(&body).await {
            Ok(call) => call,
            Err(ReadError::TooMany(limit)) => {
                let text = format!("a call may have {limit} elements and attributes");
                return Err(Failure::Refused(StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            Err(_) => {
                let unreadable = Bytes::from_static(UNREADABLE);
                return self.forward(caller, unreadable, Share::Quick).await;
            }
        };
        caller.record().set_method(&call.method);
        self.ensure_allowed(caller, &call, &body).await?;
        let answer = match namespace(&call.method) {
            ("twiddler", name) => self.twiddler_call(caller, name, &call.params).await,
            ("system", "multicall") => return self.multicall(caller, &call, body).await,
            ("system", name) if system::concerns(name, &call.params) => {
                self.system_call(caller, name, &call).await
            }
            ("supervisor", name) => return self.supervisor_call(caller, name, &call, body).await,
            _ => {
                let share = share::of_call(&call.method, &call.params);
                return self.forward(caller, body, share).await;
            }
        };
        Ok(reply(answer))
    }

    /// Forwards a call with these bytes. The daemon sends a reply in pieces of 4 KiB. A small reply is
    /// forwarded in one piece, because a client cannot use a part of it, and each piece would wake the
    /// client.
    async fn forward(&self, caller: &Caller<'_>, body: Bytes, share: Share) -> HttpResult {
        let payload = Payload::Bytes(body);
        let reply = forward::forward(&self.daemon, caller.head, payload, share).await?;
        let size = reply.body().size_hint().exact();
        if size.is_none_or(|size| size > IN_ONE_PIECE) {
            return Ok(reply);
        }
        let (head, body) = reply.into_parts();
        let body = collect(body).await?;
        Ok(Response::from_parts(head, Body::from(body)))
    }

    /// Calls the daemon with the caller's credentials, and reads the answer.
    async fn query(&self, caller: &Caller<'_>, method: &str, params: &[Value]) -> Answer {
        let body = xmlrpc::write::call(method, params);
        let share = share::of_call(method, params);
        read_reply(self.forward(caller, body.into(), share).await?).await
    }

    /// Makes a call for the proxy itself, with the credentials in `authorization`.
    ///
    /// # Errors
    /// The fault of the call. If there is no answer, a fault with the HTTP status.
    pub async fn call_as(
        &self,
        authorization: Option<HeaderValue>,
        method: &str,
        params: &[Value],
    ) -> Result<Value, Fault> {
        let (mut head, ()) = HttpRequest::new(()).into_parts();
        head.method = http::Method::POST;
        head.uri = Uri::from_static(CALLS);
        head.headers
            .extend(authorization.map(|header| (AUTHORIZATION, header)));
        let caller = Caller {
            head: &head,
            update: &ConnectionUpdate::default(),
        };
        let body = xmlrpc::write::call(method, params);
        let reply = self.answer(&caller, body.into()).await;
        let reply = reply.unwrap_or_else(Failure::into_response);
        let status = reply.status();
        let body = collect(reply.into_body()).await.unwrap_or_default();
        match xmlrpc::read::response(&body) {
            Ok(answer) if status == StatusCode::OK => answer,
            _ => Err(fault(FAILED, format!("HTTP {status}"))),
        }
    }

    /// Asks the daemon to authorize the sender of any request.
    ///
    /// # Errors
    /// The reply for the sender: the daemon's challenge, or that the daemon does not answer.
    pub async fn authorize_request(&self, head: &Parts) -> Result<(), Failure> {
        let mut head = head.clone();
        head.method = http::Method::POST;
        head.uri = Uri::from_static(CALLS);
        let caller = Caller {
            head: &head,
            update: &ConnectionUpdate::default(),
        };
        match self.authorize(&caller).await {
            Ok(()) | Err(Failure::Fault(_)) => {
                if let Some(slot) = head.extensions.get::<ClientSlot>() {
                    slot.set_authorized();
                }
                Ok(())
            }
            failure => failure,
        }
    }

    /// Asks the daemon to authorize the caller. It fails too if the daemon shuts down.
    async fn authorize(&self, caller: &Caller<'_>) -> Result<(), Failure> {
        self.query(caller, "supervisor.getState", &[]).await?;
        let presented = caller.head.headers.get(AUTHORIZATION);
        self.daemon.remember_authorization(presented);
        if let Some(presented) = presented
            && !self.daemon.is_open()
        {
            caller.record().set_user(presented);
        }
        Ok(())
    }

    async fn twiddler_call(&self, caller: &Caller<'_>, name: &str, params: &[Value]) -> Answer {
        match self.read(name, params) {
            Ok(Request::Change(change)) => {
                self.authorized_change(caller, change, Api::Twiddler).await
            }
            Ok(request) => {
                self.authorize(caller).await?;
                self.perform(caller, request).await
            }
            Err(fault) => {
                self.authorize(caller).await?;
                Err(log_refusal(
                    caller,
                    &refused_call(&format!("twiddler.{name}")),
                    fault,
                ))
            }
        }
    }

    /// Makes a change after the daemon has authorized the caller. A daemon that requires no credentials is not
    /// asked, because it would answer the queries of the change itself in the same way.
    async fn authorized_change(&self, caller: &Caller<'_>, change: Change, api: Api) -> Answer {
        if self.daemon.is_open() {
            let authorized = Authorized::NotRequired;
            return self.change(caller, change, &api, authorized).await;
        }
        self.authorize(caller).await?;
        self.change(caller, change, &api, self.authorization_of(caller))
            .await
    }

    /// The authorization for changes of a caller that the daemon has authorized.
    fn authorization_of(&self, caller: &Caller<'_>) -> Authorized {
        let presented = caller.head.headers.get(AUTHORIZATION);
        Authorized::Checked(self.daemon.authorization_for(presented))
    }

    /// Reads a call of the `twiddler` namespace.
    ///
    /// # Errors
    /// The fault for an unknown method, for one that `whitelist` does not list, or for wrong parameters.
    fn read(&self, name: &str, params: &[Value]) -> Result<Request, Fault> {
        let method: &Method =
            methods::method(name).ok_or_else(|| without_detail(UNKNOWN_METHOD))?;
        method.check_count(params)?;
        let policy = self.policy.get();
        let whitelist = &policy.whitelist;
        if !whitelist.is_empty() && !whitelist.iter().any(|allowed| allowed == name) {
            return Err(fault(NOT_IN_WHITELIST, name));
        }
        method.request(params, &self.main_file)
    }

    async fn perform(&self, caller: &Caller<'_>, request: Request) -> Answer {
        match request {
            Request::ApiVersion => Ok(methods::API_VERSION.into()),
            Request::GroupNames => match self.twiddler.group_names().await {
                Ok(names) => Ok(Value::Array(names.into_iter().map(Value::from).collect())),
                Err(error) => Err(self.failure_for(caller, error).await),
            },
            Request::Log { level, message } => {
                let pid = self.daemon.call("supervisor.getPID", &[]).await.ok();
                let pid = pid.as_ref().and_then(Value::as_int);
                let written = self.main_log.write(level, &message, pid).await;
                written.inspect_err(|fault| tracing::warn!("{}", fault.text))?;
                Ok(Value::Bool(true))
            }
            Request::Invalid {
                group,
                program,
                fault,
            } => Err(self
                .invalid(caller, &group, program.as_deref(), fault)
                .await),
            Request::Change(change) => self.authorized_change(caller, change, Api::Twiddler).await,
            Request::Update(request) => {
                let (authorized, record) = (self.authorization_of(caller), caller.record());
                let updated = match &request {
                    update::Request::Update(groups) => Some(groups.clone()),
                    _ => None,
                };
                match self.updates.answer(request, authorized, &record).await {
                    Ok(value) => {
                        if let Some(groups) = updated {
                            self.cancel_removals(caller, &groups).await;
                        }
                        Ok(value)
                    }
                    Err(error) => Err(self.failure_for(caller, error).await),
                }
            }
        }
    }

    /// The fault for an addition that is not valid. As in the in-process supervisor_twiddler, the fault for an
    /// unknown group comes first.
    async fn invalid(
        &self,
        caller: &Caller<'_>,
        group: &str,
        program: Option<&str>,
        fault: Fault,
    ) -> Failure {
        let group_text = log_text(group);
        let what = match program {
            Some(program) => format!("did not add program {group_text}:{}", log_text(program)),
            None => format!("did not add a program to group {group_text}"),
        };
        match self.twiddler.require_group(group).await {
            Ok(()) => log_refusal(caller, &what, fault),
            Err(error) => match error.fault() {
                Some(fault) => log_refusal(caller, &what, fault),
                None => self.failure_for(caller, error).await,
            },
        }
    }

    /// Makes one change. If the running daemon requires credentials although its file has none, it refuses the
    /// whole change. The change is then tried again with the caller's credentials.
    async fn change(
        &self,
        caller: &Caller<'_>,
        change: Change,
        api: &Api,
        authorized: Authorized,
    ) -> Answer {
        let mut outcome = self
            .twiddler
            .change(vec![change.clone()], authorized, &caller.record())
            .await
            .pop();
        if let Some(Err(ChangeError::Status(_))) = outcome {
            self.authorize(caller).await?;
            outcome = self
                .twiddler
                .change(
                    vec![change],
                    self.authorization_of(caller),
                    &caller.record(),
                )
                .await
                .pop();
        }
        self.outcome(caller, api, outcome.unwrap_or(Ok(()))).await
    }

    async fn outcome(&self, caller: &Caller<'_>, api: &Api, outcome: Outcome) -> Answer {
        match outcome {
            Ok(()) => Ok(Value::Bool(true)),
            Err(error) => Err(self.failure_for(caller, api.word(error)).await),
        }
    }

    /// The failure for the caller of a change that was not made. If the daemon refused the caller's
    /// credentials, the failure is the daemon's own challenge.
    async fn failure_for(&self, caller: &Caller<'_>, error: ChangeError) -> Failure {
        if let Some(fault) = error.fault() {
            return fault.into();
        }
        let ChangeError::Status(status) = error else {
            return Failure::Unreachable(error.to_string());
        };
        match self.authorize(caller).await {
            Err(failure) => failure,
            Ok(()) => Failure::Unreachable(format!(
                "supervisord answered HTTP {status} to the proxy itself: set username and password in supervisord.conf as the running daemon has them"
            )),
        }
    }

    /// Makes several changes of a caller that the daemon has authorized, together as far as possible. Returns
    /// one answer for each.
    async fn changes(&self, caller: &Caller<'_>, changes: Vec<(Change, Api)>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(changes.len());
        let authorized = self.authorization_of(caller);
        let record = caller.record();
        let (changes, apis): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        let outcomes = self.twiddler.change(changes, authorized, &record).await;
        for (outcome, api) in outcomes.into_iter().zip(apis) {
            answers.push(self.outcome(caller, &api, outcome).await);
        }
        answers
    }
}

/// Logs that a call was refused without any effect, and returns the failure for the caller.
fn log_refusal(caller: &Caller<'_>, what: &str, fault: Fault) -> Failure {
    let record = caller.record();
    let reason = reason(&fault);
    tracing::info!(
        peer = %record.peer(),
        user = record.user(),
        ms = record.millis(),
        "{what}: {reason}"
    );
    fault.into()
}

fn refused_call(method: &str) -> String {
    format!("refused {}", log_text(method))
}

/// Parses a call; a large one on a thread of its own, so that other requests do not wait.
async fn read_call(body: &Bytes) -> Result<MethodCall, ReadError> {
    if body.len() < LARGE_CALL {
        return xmlrpc::read::call(body);
    }
    let large = body.clone();
    let call = tokio::task::spawn_blocking(move || xmlrpc::read::call(&large)).await;
    call.unwrap_or(Err(ReadError::NoMethod))
}

/// Splits a name into namespace and method. The daemon has no method with more than one dot in its name
/// (`supervisor/xmlrpc.py`, `traverse`); the namespace is then empty.
fn namespace(method: &str) -> (&str, &str) {
    match method.split_once('.') {
        Some((namespace, name)) if !name.contains('.') => (namespace, name),
        _ => ("", method),
    }
}

/// The HTTP response for an answer.
fn reply(answer: Answer) -> Response<Body> {
    answer.map_or_else(Failure::into_response, |value| {
        failure::xml(xmlrpc::write::response(&value))
    })
}

/// Reads the answer in an HTTP response of the daemon.
async fn read_reply(reply: Response<Body>) -> Answer {
    if reply.status() != StatusCode::OK {
        return Err(Failure::Reply(Box::new(reply)));
    }
    let body = collect(reply.into_body()).await?;
    let answer = xmlrpc::read::response(&body).map_err(|error| {
        Failure::Unreachable(format!("supervisord's answer cannot be read: {error}"))
    })?;
    Ok(answer?)
}

/// Reads the body of a response to its end.
async fn collect(body: Body) -> Result<Bytes, Failure> {
    let collected = body.collect().await.map_err(Failure::cut_short)?;
    Ok(collected.to_bytes())
}

/// The daemon's response with another answer in it. Its head is unchanged but for the length.
fn with_answer(mut head: http::response::Parts, answer: Result<Value, Fault>) -> Response<Body> {
    let body = match answer {
        Ok(value) => xmlrpc::write::response(&value),
        Err(fault) => xmlrpc::write::fault(&fault),
    };
    head.headers
        .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    Response::from_parts(head, Body::from(body))
}

/// Reads an entry of a multicall as the daemon does; none if it has no method.
fn read_entry(entry: &Value) -> Option<MethodCall> {
    Some(MethodCall {
        method: entry.get("methodName")?.as_str()?.to_owned(),
        params: entry
            .get("params")
            .and_then(Value::as_array)
            .unwrap_or_default()
            .to_vec(),
    })
}
