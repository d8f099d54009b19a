//! Who may come in at all, before anything looks at what they want.
//!
//! Turns away browsers that act for another site, and whoever lacks the proxy's own user name and
//! password where it has them. Without, the daemon judges each caller.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE, HOST, ORIGIN, USER_AGENT};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

use crate::password::{Doorkeeper, Login, Verdict};
use crate::relay;

/// What everybody may ask.
pub const OPEN_PATH: &str = "/twiddler/health";

/// Says which site caused a request; pages cannot set it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How the user agents of all browsers begin.
const BROWSER: &[u8] = b"Mozilla/";

/// How a connection came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
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
pub struct Doors {
    keeper: Option<Doorkeeper>,
    /// Who the daemon would let in; it cannot say so while it is away.
    known: Option<Doorkeeper>,
    /// What the daemon is presented for whoever was let in here.
    presented: Option<HeaderValue>,
    /// Names of this proxy, in lower case.
    hosts: Vec<String>,
    /// Whether nobody asks for credentials, neither here nor in the daemon.
    is_open: bool,
}

impl Doors {
    /// With a `login`, callers must present it, and the daemon gets `presented` instead. Without,
    /// the daemon gets what the caller presents, and `daemon_is_open` says whether it asks for it.
    /// `hosts` are names by which browsers know this proxy.
    pub fn new(
        login: Option<Login>,
        presented: Option<HeaderValue>,
        hosts: &[String],
        daemon_is_open: bool,
    ) -> Self {
        let own_name = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        Doors {
            is_open: login.is_none() && daemon_is_open,
            keeper: login.map(Doorkeeper::new),
            known: None,
            presented,
            hosts: hosts
                .iter()
                .cloned()
                .chain(own_name)
                .map(|name| name.to_lowercase())
                .collect(),
        }
    }

    /// With what the daemon asks for: only who has it is told why the daemon does not answer.
    #[must_use]
    pub fn knowing(mut self, known: Option<Login>) -> Self {
        self.known = known.map(Doorkeeper::new);
        self
    }

    /// Puts the rules in front of `app`. Each request carries its [`Way`] among its extensions.
    pub fn guard(self, app: Router) -> Router {
        app.layer(middleware::from_fn_with_state(Arc::new(self), enter))
    }

    /// Why a browser is turned away, if it is.
    fn turns_away(&self, method: &Method, head: &Head<'_>, way: Way) -> Option<String> {
        let hosts: Vec<&[u8]> = head.hosts().collect();
        let foreign = hosts
            .iter()
            .find(|host| !self.is_ours(host))
            .filter(|_| self.looks_at_hosts(way));
        let acts = acts(method, head.target);
        if let Some(host) = foreign
            && (acts || head.is_of_browser())
        {
            let host = String::from_utf8_lossy(host);
            return Some(format!(
                "{host:?} is no name of this proxy; where it is one, write it in hosts = ... of [twiddler]"
            ));
        }
        if !acts {
            return None;
        }
        if head
            .values(&SEC_FETCH_SITE)
            .any(|site| !matches!(site, b"same-origin" | b"none"))
        {
            return Some("another site caused this request".to_owned());
        }
        let host = hosts.first().copied().unwrap_or_default();
        head.values(&ORIGIN)
            .any(|origin| !self.is_own_origin(origin, host))
            .then(|| "another site caused this request".to_owned())
    }

    /// A page that had its name point here has no credentials for it, so where credentials are
    /// asked for, names tell nothing; but a loopback address has no other names than are known.
    fn looks_at_hosts(&self, way: Way) -> bool {
        way == Way::Loopback || way == Way::Network && self.is_open
    }

    /// Whether nobody else can have made a name lead here: addresses, names without a domain,
    /// and those that are configured.
    fn is_ours(&self, host: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(host) else {
            return false;
        };
        if text.is_empty() {
            return true;
        }
        let Ok(authority) = text.trim().parse::<Authority>() else {
            return false;
        };
        if text.contains('@') {
            return false;
        }
        let name = authority.host().trim_end_matches('.').to_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || name.ends_with(".localhost")
            || self.hosts.contains(&name)
    }

    fn is_own_origin(&self, origin: &[u8], host: &[u8]) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else {
            return false;
        };
        let Some((scheme, site)) = origin.split_once("://") else {
            return false;
        };
        let default_port = if scheme.eq_ignore_ascii_case("https") {
            ":443"
        } else {
            ":80"
        };
        let plain = |site: &str| {
            let site = site.to_lowercase();
            site.strip_suffix(default_port)
                .map(str::to_owned)
                .unwrap_or(site)
        };
        let named = site.parse::<Authority>().is_ok_and(|site| {
            !site.as_str().contains('@') && self.hosts.contains(&site.host().to_lowercase())
        });
        named
            || std::str::from_utf8(host)
                .is_ok_and(|host| !host.is_empty() && plain(site) == plain(host.trim()))
    }
}

/// What a browser says of a request.
struct Head<'a> {
    target: &'a http::Uri,
    headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    fn values(&self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.headers.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    /// Every host that is named: more than one is not ours if one of them is not.
    fn hosts(&self) -> impl Iterator<Item = &'a [u8]> {
        let absolute = self
            .target
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        self.values(&HOST).chain(absolute)
    }

    fn is_of_browser(&self) -> bool {
        self.headers.contains_key(&SEC_FETCH_SITE)
            || self.headers.contains_key(ORIGIN)
            || self
                .values(&USER_AGENT)
                .any(|agent| agent.starts_with(BROWSER))
    }
}

/// Whether a request may change something: every call, every form, and the web interface's actions,
/// which are links. Looked at twice decoded, as the daemon may do.
fn acts(method: &Method, target: &http::Uri) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return true;
    }
    let target = target.path_and_query().map_or("", |target| target.as_str());
    let once = percent_decode_str(target).decode_utf8_lossy();
    let twice = percent_decode_str(&once).decode_utf8_lossy();
    once.starts_with("/RPC2") || once.contains("action=") || twice.contains("action=")
}

/// What strangers are told while the daemon is away.
const AWAY: &str = "supervisord does not answer";

fn is_away(reply: &Response) -> bool {
    reply.status() == StatusCode::BAD_GATEWAY
}

async fn enter(State(doors): State<Arc<Doors>>, mut request: Request, next: Next) -> Response {
    if request.uri().path() == OPEN_PATH {
        return next.run(request).await;
    }
    let way = request
        .extensions()
        .get::<Way>()
        .copied()
        .unwrap_or_default();
    let head = Head {
        target: request.uri(),
        headers: request.headers(),
    };
    if let Some(reason) = doors.turns_away(request.method(), &head, way) {
        tracing::warn!(reason, "answered 403");
        return relay::own_reply(StatusCode::FORBIDDEN, &reason);
    }
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .cloned()
        .unwrap_or_else(|| HeaderValue::from_static(""));
    let Some(keeper) = &doors.keeper else {
        let reply = next.run(request).await;
        return match &doors.known {
            Some(known)
                if is_away(&reply) && known.judge(presented.as_bytes()).await != Verdict::Right =>
            {
                relay::own_reply(StatusCode::BAD_GATEWAY, AWAY)
            }
            _ => reply,
        };
    };
    match keeper.judge(presented.as_bytes()).await {
        Verdict::Right => {}
        Verdict::Wrong => {
            let (head, _) = request.into_parts();
            return challenge(&head).await;
        }
        Verdict::Unknown => {
            return relay::own_reply(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many passwords are being checked: try again",
            );
        }
    }
    request.headers_mut().remove(AUTHORIZATION);
    if let Some(presented) = &doors.presented {
        request
            .headers_mut()
            .insert(AUTHORIZATION, presented.clone());
    }
    let reply = next.run(request).await;
    if reply.status() == StatusCode::UNAUTHORIZED {
        // The caller did nothing wrong.
        return relay::bad_gateway(
            "supervisord does not take the proxy's credentials: set username and password in supervisord.conf as the running daemon has them",
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
        return relay::own_reply(StatusCode::UNAUTHORIZED, "Unauthorized");
    };
    let mut reply = Response::from_parts(daemons, Body::from(body));
    reply.headers_mut().insert(DATE, now());
    relay::for_client(head, reply)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(is_open: bool) -> Doors {
        Doors::new(None, None, &["Proxy.example.com".to_owned()], is_open)
    }

    fn verdict(
        doors: &Doors,
        way: Way,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let target = target.parse().unwrap();
        let head = Head {
            target: &target,
            headers: &map,
        };
        doors
            .turns_away(&method.parse().unwrap(), &head, way)
            .is_none()
    }

    #[test]
    fn names_of_others_do_not_lead_in() {
        for (host, expected) in [
            ("127.0.0.1:9002", true),
            ("10.1.2.3", true),
            ("[::1]:9002", true),
            ("localhost", true),
            ("LOCALHOST.:80", true),
            ("a.localhost:1", true),
            ("twiddler:9001", true),
            ("proxy.example.COM:9001", true),
            ("", true),
            ("evil.example", false),
            ("evil.example.:9002", false),
            ("proxy.example.com.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost@evil.example", false),
            ("127.0.0.1:9002@x", false),
            ("a b", false),
        ] {
            let verdict = verdict(
                &doors(true),
                Way::Loopback,
                "POST",
                "/RPC2",
                &[("host", host)],
            );
            assert_eq!(verdict, expected, "{host}");
        }
    }

    #[test]
    fn names_count_where_they_tell_something() {
        let evil = [("host", "evil.example")];
        for (is_open, way, expected) in [
            (true, Way::Loopback, false),
            (false, Way::Loopback, false),
            (true, Way::Network, false),
            (false, Way::Network, true),
            (true, Way::Socket, true),
        ] {
            assert_eq!(
                verdict(&doors(is_open), way, "POST", "/RPC2", &evil),
                expected,
                "{is_open} {way:?}"
            );
        }
        let doors = doors(true);
        assert!(verdict(&doors, Way::Loopback, "POST", "/RPC2", &[]));
        assert!(verdict(&doors, Way::Loopback, "GET", "/", &evil));
        assert!(!verdict(
            &doors,
            Way::Loopback,
            "GET",
            "/mainlogtail",
            &[evil[0], ("user-agent", "Mozilla/5.0 (X)")]
        ));
        assert!(!verdict(
            &doors,
            Way::Loopback,
            "POST",
            "/RPC2",
            &[("host", "localhost"), evil[0]]
        ));
        assert!(!verdict(
            &doors,
            Way::Loopback,
            "POST",
            "http://evil.example/RPC2",
            &[("host", "localhost")]
        ));
    }

    #[test]
    fn other_sites_cannot_act() {
        let doors = doors(true);
        for (method, target, header, expected) in [
            ("POST", "/RPC2", ("sec-fetch-site", "cross-site"), false),
            ("POST", "/RPC2", ("sec-fetch-site", "same-site"), false),
            ("POST", "/RPC2", ("sec-fetch-site", "same-origin"), true),
            ("POST", "/RPC2", ("sec-fetch-site", "none"), true),
            (
                "OPTIONS",
                "/RPC2",
                ("origin", "https://evil.example"),
                false,
            ),
            ("POST", "/%52PC2", ("origin", "http://evil.example"), false),
            ("POST", "/RPC2", ("origin", "null"), false),
            ("POST", "/RPC2", ("origin", "http://localhost:9002"), true),
            ("POST", "/RPC2", ("origin", "http://localhost:9003"), false),
            (
                "POST",
                "/RPC2",
                ("origin", "https://proxy.example.com"),
                true,
            ),
            ("GET", "/", ("sec-fetch-site", "cross-site"), true),
            (
                "GET",
                "/?action=stopall",
                ("sec-fetch-site", "cross-site"),
                false,
            ),
            (
                "GET",
                "/?%61ction=stopall",
                ("sec-fetch-site", "cross-site"),
                false,
            ),
            (
                "GET",
                "/index.html%3Faction=stopall",
                ("sec-fetch-site", "cross-site"),
                false,
            ),
            (
                "GET",
                "/index.html?processname=a&action=stop",
                ("origin", "http://evil.example"),
                false,
            ),
            (
                "GET",
                "/?message=done",
                ("sec-fetch-site", "cross-site"),
                true,
            ),
            ("GET", "/RPC2", ("sec-fetch-mode", "cors"), true),
        ] {
            let headers = [("host", "localhost:9002"), header];
            assert_eq!(
                verdict(&doors, Way::Loopback, method, target, &headers),
                expected,
                "{method} {target} {header:?}"
            );
        }
    }
}
