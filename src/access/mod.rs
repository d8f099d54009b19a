//! Who may come in at all, before anything looks at what they want.
//!
//! Turns away browsers that act for another site, and whoever lacks the proxy's own user name and
//! password where it has them. Without, the daemon judges each caller.

pub mod basic_auth;
pub mod browser;
pub mod method_policy;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

use self::browser::{Arrival, Browsers, Head, Scheme, Site};
use crate::access::basic_auth::{BasicAuth, Login, Verdict};
use crate::audit::Record;
use crate::body::LetIn;
use crate::config::Config;
use crate::current::Current;
use crate::daemon::Daemon;
use crate::forward::{self, Reason};
use crate::limits::{ClientSlot, Phase};

/// What everybody may ask.
pub const OPEN_PATH: &str = "/twiddler/health";

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
}

impl AccessRules {
    /// The rules for a proxy in front of `daemon`.
    pub fn of(config: &Config, daemon: &Daemon) -> Self {
        let settings = &config.settings;
        // What the daemon asks callers for, as far as its file tells.
        let asked = config
            .credentials
            .as_ref()
            .and_then(|asked| Login::new(&asked.username, &asked.password).ok());
        let rules = AccessRules::new(
            settings.login.clone(),
            daemon.own_authorization().cloned(),
            &settings.hosts,
            daemon.is_open(),
        )
        .asking_on_ports(settings.port_login.clone())
        .knowing(asked);
        match settings.tls {
            Some(_) => rules.behind_tls(),
            None => rules,
        }
    }

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
        slot.set(Phase::Stranger);
        return next.run(request).await;
    }
    let ingress = request
        .extensions()
        .get::<Ingress>()
        .copied()
        .unwrap_or_default();
    let head = Head {
        method: request.method(),
        target: request.uri(),
        headers: request.headers(),
    };
    if let Some(reason) = rules.browsers.refuses(head, rules.arrival(ingress)) {
        return forward::own_reply(StatusCode::FORBIDDEN, &reason);
    }
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .cloned()
        .unwrap_or_else(|| HeaderValue::from_static(""));
    let Some(auth) = rules.auth(ingress) else {
        let reply = next.run(request).await;
        return match &rules.known {
            Some(known)
                if is_away(&reply)
                    && known.verify(presented.as_bytes()).await != Verdict::Right =>
            {
                let mut away = forward::own_reply(StatusCode::BAD_GATEWAY, AWAY);
                // The log says why.
                if let Some(reason) = reply.extensions().get::<Reason>() {
                    away.extensions_mut().insert(reason.clone());
                }
                away
            }
            _ => reply,
        };
    };
    slot.set(Phase::Stranger);
    match auth.verify(presented.as_bytes()).await {
        Verdict::Right => {
            Record::of(request.extensions()).let_in(&presented);
            request.extensions_mut().insert(LetIn);
        }
        Verdict::Wrong => {
            let (head, body) = request.into_parts();
            if !body.is_end_stream() {
                slot.linger();
            }
            let mut reply = challenge(&head).await;
            let reason = "the username and password are not right";
            reply.extensions_mut().insert(Reason(reason.to_owned()));
            return reply;
        }
        Verdict::Unknown => {
            return forward::own_reply(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many passwords are being checked: try again",
            );
        }
    }
    slot.set(Phase::Busy);
    request.headers_mut().remove(AUTHORIZATION);
    if let Some(presented) = &rules.presented {
        request
            .headers_mut()
            .insert(AUTHORIZATION, presented.clone());
    }
    let reply = next.run(request).await;
    if reply.status() == StatusCode::UNAUTHORIZED {
        // The caller did nothing wrong.
        return forward::bad_gateway(
            "supervisord rejects the proxy's credentials; write username and password in supervisord.conf that the running daemon was started with",
        );
    }
    reply
}

/// What the daemon answers to somebody without the right credentials (`supervisor/medusa`,
/// `auth_handler.py` and `http_server.py`). The date is another one each time.
const CHALLENGE: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nServer: Medusa/1.12\r\nDate: \r\nConnection: close\r\n\
    WWW-Authenticate: Basic realm=\"default\"\r\nContent-Length: 137\r\nContent-Type: text/html\r\n\r\n\
    <head>\r\n<title>Error response</title>\r\n</head>\r\n<body>\r\n<h1>Error response</h1>\r\n\
    <p>Error code 401.\r\n<p>Message: Unauthorized.\r\n</body>\r\n";

async fn challenge(head: &Parts) -> Response {
    static READ: OnceCell<Option<(http::response::Parts, Bytes)>> = OnceCell::const_new();
    let read = READ
        .get_or_init(|| async { read_reply(CHALLENGE).await.ok() })
        .await;
    let Some((daemons, body)) = read.clone() else {
        return forward::own_reply(StatusCode::UNAUTHORIZED, "Unauthorized");
    };
    let mut reply = Response::from_parts(daemons, Body::from(body));
    reply.headers_mut().insert(DATE, now());
    forward::for_client(head, reply)
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

fn now() -> HeaderValue {
    let now = chrono::Utc::now()
        .format("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    HeaderValue::from_str(&now)
        .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}
