//! Who may come in at all, before anything looks at what they want.
//!
//! Turns away browsers that act for another site, and whoever lacks the proxy's own user name and
//! password where it has them. Without, the daemon judges each caller.

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

use self::browser::{Arrival, Browsers, Head, Scheme, Site};
use self::challenge::Challenge;
use crate::access::basic_auth::{BasicAuth, Login, Verdict};
use crate::audit::Record;
use crate::body::LetIn;
use crate::current::Current;
use crate::daemon::Origin;
use crate::failure::{Failure, Reason};
use crate::limits::{ClientSlot, Phase};

/// What everybody may ask.
pub const OPEN_PATH: &str = "/twiddler/health";
/// Below it a lease is held, whose end removes programs.
pub const LEASE_PATH: &str = "/twiddler/lease/";

/// How a connection came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ingress {
    /// Over a unix socket, which no browser reaches by itself.
    Socket,
    /// Over TCP, from this machine.
    Loopback,
    /// Over TCP, from anywhere.
    #[default]
    Network,
}

/// The rules.
#[derive(Debug)]
pub struct AccessRules {
    auth: Option<BasicAuth>,
    /// The same for callers that come over TCP alone.
    port_auth: Option<BasicAuth>,
    /// Who the daemon would let in; it cannot say so while it is away.
    known: Option<BasicAuth>,
    /// What the daemon is presented for whoever was let in here.
    presented: Option<HeaderValue>,
    browsers: Browsers,
    /// What the TCP listeners speak.
    scheme: Scheme,
    /// Whether nobody asks for credentials, neither here nor in the daemon.
    is_open: bool,
    challenge: Challenge,
}

impl AccessRules {
    /// With a `login`, callers must present it, and the daemon gets `presented` instead. Without,
    /// the daemon gets what the caller presents, and `daemon_is_open` says whether it asks for it.
    /// `hosts` is where browsers find this proxy.
    pub fn new(
        login: Option<Login>,
        presented: Option<HeaderValue>,
        hosts: &[Site],
        daemon_is_open: bool,
    ) -> Self {
        let own_name = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        AccessRules {
            is_open: login.is_none() && daemon_is_open,
            auth: login.map(BasicAuth::new),
            port_auth: None,
            known: None,
            presented,
            browsers: Browsers::new(hosts, own_name.as_deref()),
            scheme: Scheme::Http,
            challenge: Challenge::default(),
        }
    }

    /// With what callers over TCP must present, where there is no login for all: what the daemon
    /// asks for on its own port. The daemon gets `presented` instead, as with a login.
    #[must_use]
    pub fn asking_on_ports(mut self, login: Option<Login>) -> Self {
        if self.auth.is_none() && login.is_some() {
            self.port_auth = login.map(BasicAuth::new);
            self.is_open = false; // over TCP, where it counts
        }
        self
    }

    /// Who lets in those who come in this ingress; none where the daemon does.
    fn auth(&self, ingress: Ingress) -> Option<&BasicAuth> {
        let of_port = self
            .port_auth
            .as_ref()
            .filter(|_| ingress != Ingress::Socket);
        self.auth.as_ref().or(of_port)
    }

    /// With what the daemon asks for: only who has it is told why the daemon does not answer.
    #[must_use]
    pub fn knowing(mut self, known: Option<Login>) -> Self {
        self.known = known.map(BasicAuth::new);
        self
    }

    /// Behind TCP listeners that speak TLS.
    #[must_use]
    pub fn behind_tls(mut self) -> Self {
        self.scheme = Scheme::Https;
        self
    }

    /// Puts the rules that hold when a request comes in front of `app`. Each request carries its
    /// [`Ingress`] among its extensions.
    pub fn guard(rules: Arc<Current<AccessRules>>, app: Router) -> Router {
        app.layer(middleware::from_fn_with_state(rules, enter))
    }

    fn arrival(&self, ingress: Ingress) -> Arrival {
        Arrival {
            scheme: match ingress {
                Ingress::Socket => Scheme::Http,
                Ingress::Loopback | Ingress::Network => self.scheme,
            },
            judges_host: ingress == Ingress::Loopback
                || ingress == Ingress::Network && self.is_open,
        }
    }
}

/// What strangers are told while the daemon is away.
const AWAY: &str = "supervisord does not answer";

fn is_away(reply: &Response) -> bool {
    reply.status() == StatusCode::BAD_GATEWAY
}

async fn enter(
    State(rules): State<Arc<Current<AccessRules>>>,
    request: Request,
    next: Next,
) -> Response {
    let mut reply = admit(&rules.get(), request, next).await;
    let status = reply.status();
    browser::guard_page(status, reply.headers_mut());
    reply
}

async fn admit(rules: &AccessRules, mut request: Request, next: Next) -> Response {
    let slot = request.extensions().get::<ClientSlot>().cloned();
    let slot = slot.unwrap_or_else(ClientSlot::alone);
    if request.uri().path() == OPEN_PATH {
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
    if let Some(reason) = rules.browsers.refuses(head, rules.arrival(ingress)) {
        return Failure::Refused(StatusCode::FORBIDDEN, reason).into_response();
    }
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .cloned()
        .unwrap_or_else(|| HeaderValue::from_static(""));
    slot.set(Phase::Unauthorized);
    let Some(auth) = rules.auth(ingress) else {
        let reply = next.run(request).await;
        return match &rules.known {
            Some(known)
                if is_away(&reply)
                    && known.verify(presented.as_bytes(), origin).await != Verdict::Right =>
            {
                let mut away = Failure::Unreachable(AWAY.to_owned()).into_response();
                // The log says why.
                if let Some(reason) = reply.extensions().get::<Reason>() {
                    away.extensions_mut().insert(reason.clone());
                }
                away
            }
            _ => reply,
        };
    };
    match auth.verify(presented.as_bytes(), origin).await {
        Verdict::Right => {
            Record::of(request.extensions()).let_in(&presented);
            request.extensions_mut().insert(LetIn);
        }
        Verdict::Wrong => {
            let (head, body) = request.into_parts();
            if !body.is_end_stream() {
                slot.linger();
            }
            let mut reply = rules.challenge.reply(&head).await;
            let reason = "the username and password are not right";
            reply.extensions_mut().insert(Reason(reason.to_owned()));
            return reply;
        }
        Verdict::Unknown => {
            let reason = "too many passwords are being checked: try again".to_owned();
            return Failure::Refused(StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
        }
    }
    slot.set_authorized();
    request.headers_mut().remove(AUTHORIZATION);
    if let Some(presented) = &rules.presented {
        request
            .headers_mut()
            .insert(AUTHORIZATION, presented.clone());
    }
    let reply = next.run(request).await;
    if reply.status() == StatusCode::UNAUTHORIZED {
        // The caller did nothing wrong.
        return Failure::Unreachable("supervisord rejects the proxy's credentials; write username and password in supervisord.conf that the running daemon was started with".to_owned()).into_response();
    }
    reply
}
