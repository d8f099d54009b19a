//! One XML-RPC call: whose it is, who answers it, and in which names.
//!
//! What concerns nobody's names is passed on with its original bytes. The `twiddler` namespace is
//! answered here, after the daemon let the caller in.

mod allow;
mod bulk;
mod ending;
pub mod methods;
mod multicall;
mod share;
mod steps;
mod supervisor;
mod system;
mod under_way;
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
use crate::audit::{Record, reason, shown};
use crate::current::Current;
use crate::daemon::MainLog;
use crate::daemon::{Daemon, Share};
use crate::failure::{self, Failure, HttpResult};
use crate::fault::{FAILED, NOT_IN_WHITELIST, UNKNOWN_METHOD, bare, fault};
use crate::forward::{self, Payload};
use crate::limits::ClientSlot;
use crate::twiddler::{Authorized, Change, ChangeError, Outcome, Twiddler};
use crate::update::{self, Updates};
use crate::xmlrpc::read::ReadError;
use crate::xmlrpc::{self, Fault, MethodCall, Value};
use methods::{Method, Request};
use under_way::UnderWay;
use wording::Api;

pub use ending::Endings;
pub use under_way::Update;

/// What the daemon is sent instead of a call that cannot be read: it refuses it in its own words.
const UNREADABLE: &[u8] = b"<methodCall/>";

/// Where the daemon takes calls.
const CALLS: &str = "/RPC2";

/// A reply of this many bytes is held back until it is whole.
const IN_ONE_PIECE: u64 = 64 * 1024;

/// A call that takes milliseconds to read.
const LARGE_CALL: usize = 256 * 1024;

/// Answers calls.
#[derive(Clone)]
pub struct Rpc {
    daemon: Arc<Daemon>,
    twiddler: Arc<Twiddler>,
    updates: Arc<Updates>,
    under_way: Arc<UnderWay>,
    policy: Arc<Current<Policy>>,
    main_log: MainLog,
    /// The daemon's configuration file as its texts name it.
    main_file: String,
    endings: Arc<Endings>,
}

/// A call's caller: the head of the HTTP request, and what its connection did before.
pub struct Caller<'a> {
    /// The request's head.
    pub head: &'a Parts,
    /// Whether `supervisorctl update` is under way on this connection.
    pub update: &'a Update,
}

impl Caller<'_> {
    /// What is known of the request.
    fn record(&self) -> Record {
        Record::of(&self.head.extensions)
    }
}

/// An answer that may be a fault, or no XML-RPC at all.
type Answer = Result<Value, Failure>;

impl Rpc {
    /// Answers on behalf of `twiddler` in front of `daemon`, as far as the policy goes that holds
    /// when a call comes.
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
            under_way: Arc::default(),
            policy,
            main_log,
            main_file,
            endings: Arc::default(),
        }
    }

    /// The end of the daemon that is under way, if any.
    pub fn endings(&self) -> Arc<Endings> {
        self.endings.clone()
    }

    /// What was changed in the daemon.
    pub fn twiddler(&self) -> &Arc<Twiddler> {
        &self.twiddler
    }

    /// The daemon behind.
    pub fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// The same for the proxy's own calls: `allow` and `whitelist` are about those of callers.
    pub fn unrestricted(&self) -> Self {
        Rpc {
            policy: Arc::new(Current::new(Policy::default())),
            ..self.clone()
        }
    }

    /// Answers the call in `body`.
    ///
    /// # Errors
    /// Why there is no answer to it.
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
        caller.record().calls(&call.method);
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

    /// Passes a call on with these bytes. The daemon sends a reply in pieces of 4 KiB; one that is
    /// not large goes on in one piece, because nobody can make use of a part of it, and each piece
    /// wakes its reader.
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

    /// Asks the daemon as the caller, and reads the answer.
    async fn ask(&self, caller: &Caller<'_>, method: &str, params: &[Value]) -> Answer {
        let body = xmlrpc::write::call(method, params);
        let share = share::of_call(method, params);
        read_reply(self.forward(caller, body.into(), share).await?).await
    }

    /// Makes a call for the proxy itself, as a client that presents `authorization` makes it.
    ///
    /// # Errors
    /// The fault, and one of the proxy's own where there is no answer.
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
            update: &Update::default(),
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

    /// Lets the daemon decide whether the sender of a request may come in, whatever it asks for.
    ///
    /// # Errors
    /// What the sender is answered instead: the daemon's challenge, or that it is away.
    pub async fn let_in(&self, head: &Parts) -> Result<(), Failure> {
        let mut head = head.clone();
        head.method = http::Method::POST;
        head.uri = Uri::from_static(CALLS);
        let caller = Caller {
            head: &head,
            update: &Update::default(),
        };
        match self.gate(&caller).await {
            Ok(()) | Err(Failure::Fault(_)) => {
                if let Some(slot) = head.extensions.get::<ClientSlot>() {
                    slot.set_authorized();
                }
                Ok(())
            }
            failure => failure,
        }
    }

    /// Lets the daemon decide whether the caller may come in, and whether it is up.
    async fn gate(&self, caller: &Caller<'_>) -> Result<(), Failure> {
        self.ask(caller, "supervisor.getState", &[]).await?;
        let presented = caller.head.headers.get(AUTHORIZATION);
        self.daemon.remember_authorization(presented);
        if let Some(presented) = presented
            && !self.daemon.is_open()
        {
            caller.record().let_in(presented);
        }
        Ok(())
    }

    async fn twiddler_call(&self, caller: &Caller<'_>, name: &str, params: &[Value]) -> Answer {
        match self.read(name, params) {
            Ok(Request::Change(change)) => self.judged_change(caller, change, Api::Twiddler).await,
            Ok(request) => {
                self.gate(caller).await?;
                self.perform(caller, request).await
            }
            Err(fault) => {
                self.gate(caller).await?;
                Err(turned_down(
                    caller,
                    &refused_call(&format!("twiddler.{name}")),
                    fault,
                ))
            }
        }
    }

    /// Makes a change after the daemon let the caller in. Where it asks nobody for credentials, the
    /// change's own questions are judged like the caller's.
    async fn judged_change(&self, caller: &Caller<'_>, change: Change, api: Api) -> Answer {
        if self.daemon.is_open() {
            let authorized = Authorized::NotRequired;
            return self.change(caller, change, &api, authorized).await;
        }
        self.gate(caller).await?;
        self.change(caller, change, &api, self.judged(caller)).await
    }

    /// For a change of a caller whom the daemon let in.
    fn judged(&self, caller: &Caller<'_>) -> Authorized {
        let presented = caller.head.headers.get(AUTHORIZATION);
        Authorized::Checked(self.daemon.authorization_for(presented))
    }

    fn read(&self, name: &str, params: &[Value]) -> Result<Request, Fault> {
        let method: &Method = methods::method(name).ok_or_else(|| bare(UNKNOWN_METHOD))?;
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
                Err(error) => Err(self.refused(caller, error).await),
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
            Request::Change(change) => self.judged_change(caller, change, Api::Twiddler).await,
            Request::Update(request) => {
                let (judged, record) = (self.judged(caller), caller.record());
                let updated = match &request {
                    update::Request::Update(groups) => Some(groups.clone()),
                    _ => None,
                };
                match self.updates.answer(request, judged, &record).await {
                    Ok(value) => {
                        if let Some(groups) = updated {
                            self.take_back(caller, &groups).await;
                        }
                        Ok(value)
                    }
                    Err(error) => Err(self.refused(caller, error).await),
                }
            }
        }
    }

    /// Like the in-process twiddler, complains about an unknown group before anything else.
    async fn invalid(
        &self,
        caller: &Caller<'_>,
        group: &str,
        program: Option<&str>,
        fault: Fault,
    ) -> Failure {
        let group_shown = shown(group);
        let what = match program {
            Some(program) => format!("did not add program {group_shown}:{}", shown(program)),
            None => format!("did not add a program to group {group_shown}"),
        };
        match self.twiddler.require_group(group).await {
            Ok(()) => turned_down(caller, &what, fault),
            Err(error) => match error.fault() {
                Some(fault) => turned_down(caller, &what, fault),
                None => self.refused(caller, error).await,
            },
        }
    }

    /// Makes one change. A daemon that asks for credentials although its file does not say so has
    /// refused all of it, and lets the caller speak for it.
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
            self.gate(caller).await?;
            outcome = self
                .twiddler
                .change(vec![change], self.judged(caller), &caller.record())
                .await
                .pop();
        }
        self.outcome(caller, api, outcome.unwrap_or(Ok(()))).await
    }

    async fn outcome(&self, caller: &Caller<'_>, api: &Api, outcome: Outcome) -> Answer {
        match outcome {
            Ok(()) => Ok(Value::Bool(true)),
            Err(error) => Err(self.refused(caller, api.word(error)).await),
        }
    }

    /// What a caller is told of a change that was not made. Where the daemon did not take the
    /// credentials, it says so itself once more, with its own challenge.
    async fn refused(&self, caller: &Caller<'_>, error: ChangeError) -> Failure {
        if let Some(fault) = error.fault() {
            return fault.into();
        }
        let ChangeError::Status(status) = error else {
            return Failure::Unreachable(error.to_string());
        };
        match self.gate(caller).await {
            Err(failure) => failure,
            Ok(()) => Failure::Unreachable(format!(
                "supervisord answered HTTP {status} to the proxy itself: set username and password in supervisord.conf as the running daemon has them"
            )),
        }
    }

    /// Makes several changes of a caller that the daemon let in, as far as possible together; one
    /// answer for each.
    async fn changes(&self, caller: &Caller<'_>, changes: Vec<(Change, Api)>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(changes.len());
        let authorized = self.judged(caller);
        let record = caller.record();
        let (changes, apis): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        let outcomes = self.twiddler.change(changes, authorized, &record).await;
        for (outcome, api) in outcomes.into_iter().zip(apis) {
            answers.push(self.outcome(caller, &api, outcome).await);
        }
        answers
    }
}

/// Says in the log that a call was refused before anything was done for it.
fn turned_down(caller: &Caller<'_>, what: &str, fault: Fault) -> Failure {
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
    format!("refused {}", shown(method))
}

/// Reads a call; a large one where it keeps nobody waiting.
async fn read_call(body: &Bytes) -> Result<MethodCall, ReadError> {
    if body.len() < LARGE_CALL {
        return xmlrpc::read::call(body);
    }
    let large = body.clone();
    let read = tokio::task::spawn_blocking(move || xmlrpc::read::call(&large)).await;
    read.unwrap_or(Err(ReadError::NoMethod))
}

/// Namespace and method of a name; the daemon knows none with more than one dot
/// (`supervisor/xmlrpc.py`, `traverse`).
fn namespace(method: &str) -> (&str, &str) {
    match method.split_once('.') {
        Some((namespace, name)) if !name.contains('.') => (namespace, name),
        _ => ("", method),
    }
}

/// The HTTP reply for an answer.
fn reply(answer: Answer) -> Response<Body> {
    answer.map_or_else(Failure::into_response, |value| {
        failure::xml(xmlrpc::write::response(&value))
    })
}

/// Reads the answer in a reply of the daemon.
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

/// Reads a reply of the daemon to its end.
async fn collect(body: Body) -> Result<Bytes, Failure> {
    let collected = body.collect().await.map_err(Failure::cut_short)?;
    Ok(collected.to_bytes())
}

/// The daemon's reply with another answer in it: its head stays, but for the length.
fn with_answer(mut head: http::response::Parts, answer: Result<Value, Fault>) -> Response<Body> {
    let body = match answer {
        Ok(value) => xmlrpc::write::response(&value),
        Err(fault) => xmlrpc::write::fault(&fault),
    };
    head.headers
        .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    Response::from_parts(head, Body::from(body))
}

/// The calls of a multicall: method and parameters, as the daemon takes them.
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
