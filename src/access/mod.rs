//! Decides which requests are served, before their content is read.
//!
//! Refuses browsers that act for another site. If the proxy has a user name and password of its own,
//! refuses callers without them; otherwise the daemon checks the credentials of each caller.

pub mod basic_auth;
pub mod browser;
mod challenge;
pub mod method_policy;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use hyper::body::Body as _;

use self::browser::{Arrival, BrowserRules, Head, Scheme, Site};
use self::challenge::Challenge;
use crate::access::basic_auth::{BasicAuth, Login, Verdict};
use crate::audit::Record;
use crate::body::AuthorizedSender;
use crate::current::Current;
use crate::daemon::Origin;
use crate::failure::{Failure, Reason};
use crate::limits::{ClientSlot, Phase};

/// The path that needs no credentials.
pub const HEALTH_PATH: &str = "/twiddler/health";
/// A request for a path below this one holds a lease; its end removes programs.
pub const LEASE_PATH: &str = "/twiddler/lease/";

/// The kind of listener through which a connection came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ingress {
    /// A unix socket, which no browser connects to.
    Socket,
    /// A TCP port, at a loopback address.
    Loopback,
    /// A TCP port, at another address.
    #[default]
    Network,
}

/// The access rules.
#[derive(Debug)]
pub struct AccessRules {
    /// Checks the credentials of all callers.
    auth: Option<BasicAuth>,
    /// Checks the credentials of callers over TCP.
    port_auth: Option<BasicAuth>,
    /// Checks the daemon's credentials while the daemon cannot check them.
    daemon_auth: Option<BasicAuth>,
    /// The `Authorization` that the daemon gets in place of the caller's.
    daemon_authorization: Option<HeaderValue>,
    browsers: BrowserRules,
    /// The scheme of the TCP listeners.
    scheme: Scheme,
    /// Whether neither the proxy nor the daemon requires credentials.
    is_open: bool,
    challenge: Challenge,
}

impl AccessRules {
    /// With a `login`, callers must present it, and the daemon gets `daemon_authorization` in place of it.
    /// Without one, the daemon gets the caller's credentials, and `daemon_is_open` says that it requires
    /// none. `hosts` lists the names and origins by which browsers reach this proxy.
    pub fn new(
        login: Option<Login>,
        daemon_authorization: Option<HeaderValue>,
        hosts: &[Site],
        daemon_is_open: bool,
    ) -> Self {
        let host_name = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        AccessRules {
            is_open: login.is_none() && daemon_is_open,
            auth: login.map(BasicAuth::new),
            port_auth: None,
            daemon_auth: None,
            daemon_authorization,
            browsers: BrowserRules::new(hosts, host_name.as_deref()),
            scheme: Scheme::Http,
            challenge: Challenge::default(),
        }
    }

    /// Requires a login of callers over TCP, unless there is one for all callers: the credentials that the
    /// daemon requires on its own port.
    #[must_use]
    pub fn with_port_login(mut self, login: Option<Login>) -> Self {
        if self.auth.is_none() && login.is_some() {
            self.port_auth = login.map(BasicAuth::new);
            self.is_open = false; // The rules for browsers use it, and browsers connect over TCP.
        }
        self
    }

    /// The check for callers through this ingress; `None` if the daemon checks them.
    fn auth(&self, ingress: Ingress) -> Option<&BasicAuth> {
        let port_auth = self
            .port_auth
            .as_ref()
            .filter(|_| ingress != Ingress::Socket);
        self.auth.as_ref().or(port_auth)
    }

    /// Sets the daemon's credentials. While the daemon does not answer, only callers with these
    /// credentials learn the reason.
    #[must_use]
    pub fn with_daemon_login(mut self, login: Option<Login>) -> Self {
        self.daemon_auth = login.map(BasicAuth::new);
        self
    }

    /// Sets that the TCP listeners speak TLS.
    #[must_use]
    pub fn with_tls(mut self) -> Self {
        self.scheme = Scheme::Https;
        self
    }

    /// Puts the current rules in front of `app`. Each request has its [`Ingress`] among its extensions.
    pub fn guard(rules: Arc<Current<AccessRules>>, app: Router) -> Router {
        app.layer(middleware::from_fn_with_state(rules, serve))
    }

    fn arrival(&self, ingress: Ingress) -> Arrival {
        Arrival {
            scheme: match ingress {
                Ingress::Socket => Scheme::Http,
                Ingress::Loopback | Ingress::Network => self.scheme,
            },
            checks_host: ingress == Ingress::Loopback
                || ingress == Ingress::Network && self.is_open,
        }
    }
}

/// The error for callers without the daemon's credentials while the daemon does not answer.
const UNREACHABLE: &str = "supervisord does not answer";

async fn serve(
    State(rules): State<Arc<Current<AccessRules>>>,
    request: Request,
    next: Next,
) -> Response {
    let mut reply = apply(&rules.get(), request, next).await;
    let status = reply.status();
    browser::guard_page(status, reply.headers_mut());
    reply
}

/// `reply`, unless the daemon does not answer and the caller lacks the daemon's credentials. Such a caller
/// gets an error without the reason, which may tell where the daemon is.
async fn hide_reason(
    rules: &AccessRules,
    reply: Response,
    authorization: &HeaderValue,
    origin: Option<Origin>,
) -> Response {
    let Some(auth) = &rules.daemon_auth else {
        return reply;
    };
    if reply.status() != StatusCode::BAD_GATEWAY
        || auth.verify(authorization.as_bytes(), origin).await == Verdict::Valid
    {
        return reply;
    }
    let mut error = Failure::Unreachable(UNREACHABLE.to_owned()).into_response();
    // The log has the reason.
    if let Some(reason) = reply.extensions().get::<Reason>() {
        error.extensions_mut().insert(reason.clone());
    }
    error
}

async fn apply(rules: &AccessRules, mut request: Request, next: Next) -> Response {
    let slot = request.extensions().get::<ClientSlot>().cloned();
    let slot = slot.unwrap_or_else(ClientSlot::alone);
    if request.uri().path() == HEALTH_PATH {
        slot.set(Phase::Unauthorized);
        return next.run(request).await;
    }
    let ingress = request
        .extensions()
        .get::<Ingress>()
        .copied()
        .unwrap_or_default();
    let origin = request.extensions().get::<Origin>().copied();
    let head = Head {
        method: request.method(),
        target: request.uri(),
        headers: request.headers(),
    };
    if let Some(reason) = rules.browsers.refusal(head, rules.arrival(ingress)) {
        return Failure::Refused(StatusCode::FORBIDDEN, reason).into_response();
    }
    let authorization = request
        .headers()
        .get(AUTHORIZATION)
        .cloned()
        .unwrap_or_else(|| HeaderValue::from_static(""));
    slot.set(Phase::Unauthorized);
    let Some(auth) = rules.auth(ingress) else {
        let reply = next.run(request).await;
        return hide_reason(rules, reply, &authorization, origin).await;
    };
    match auth.verify(authorization.as_bytes(), origin).await {
        Verdict::Valid => {
            Record::of(request.extensions()).set_user(&authorization);
            request.extensions_mut().insert(AuthorizedSender);
        }
        Verdict::Invalid => {
            let (head, body) = request.into_parts();
            if !body.is_end_stream() {
                slot.linger();
            }
            let mut reply = rules.challenge.reply(&head).await;
            let reason = "the username and password are not right";
            reply.extensions_mut().insert(Reason(reason.to_owned()));
            return reply;
        }
        Verdict::Unchecked => {
            let reason = "too many passwords are being checked: try again".to_owned();
            return Failure::Refused(StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
        }
    }
    slot.set_authorized();
    request.headers_mut().remove(AUTHORIZATION);
    if let Some(authorization) = &rules.daemon_authorization {
        request
            .headers_mut()
            .insert(AUTHORIZATION, authorization.clone());
    }
    let reply = next.run(request).await;
    if reply.status() == StatusCode::UNAUTHORIZED {
        // The daemon has refused the proxy's credentials, not the caller's.
        return Failure::Unreachable("supervisord rejects the proxy's credentials; write username and password in supervisord.conf that the running daemon was started with".to_owned()).into_response();
    }
    reply
}
