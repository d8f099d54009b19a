//! Refuses requests that another site makes a browser send (CSRF, DNS rebinding), and keeps pages out of
//! the frames of other sites.
//!
//! A browser adds the user's credentials to every request, also to one that another site caused. So a call
//! or an action must come from a page of this proxy. Browsers name the cause of a request in three headers
//! that pages cannot set: `Sec-Fetch-Site` (only to https and to loopback addresses), `Origin` (with every
//! POST) and `Referer`. Programs send none of them and need none.
//!
//! This module is pure.

use std::fmt;
use std::net::IpAddr;

use http::header::{
    ACCEPT_LANGUAGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERER, REFERRER_POLICY,
    USER_AGENT, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::LEASE_PATH;

/// The header with the relation between the site that caused a request and the site that it goes to.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The prefixes of browsers' `User-Agent`.
const BROWSERS: [&[u8]; 2] = [b"Mozilla/", b"Opera/"];
/// The `Accept-Language` of a program, Node's `fetch`. Browsers name languages.
const ANY_LANGUAGE: &[u8] = b"*";
/// Names of the loopback address that no other site controls: browsers resolve the first themselves, and
/// `/etc/hosts` has the others.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "ip6-localhost", "ip6-loopback"];

/// Scheme, host and port of a page (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    /// In lower case; an IPv6 address is in brackets.
    host: String,
    port: u16,
}

/// The scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl Origin {
    /// The origin of a URL; `None` for another scheme, or an invalid host or port.
    fn of_url(url: &[u8]) -> Option<Origin> {
        let (scheme, rest) = std::str::from_utf8(url).ok()?.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        Origin::at(scheme, rest.split(['/', '?', '#']).next()?)
    }

    /// The origin of `site`, which is `HOST` or `HOST:PORT`.
    fn at(scheme: Scheme, site: &str) -> Option<Origin> {
        let (host, port) = host_and_port(site)?;
        Some(Origin {
            scheme,
            host,
            port: port.unwrap_or(scheme.default_port()),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == self.scheme.default_port() {
            return Ok(());
        }
        write!(f, ":{}", self.port)
    }
}

/// Host and port in a `Host` header. A path behind them is ignored: a reverse proxy that serves the daemon
/// below a path writes it there, so that the daemon's redirects contain it.
fn host_and_port(site: &str) -> Option<(String, Option<u16>)> {
    let site = site.trim().split('/').next()?;
    let (host, port) = match site.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (site, None),
    };
    let port = match port {
        Some(port) if !port.is_empty() => Some(port.parse().ok()?),
        _ => None,
    };
    let host = host.trim_end_matches('.').to_lowercase();
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<IpAddr>().is_ok()),
        None => is_name(&host),
    };
    is_host.then_some((host, port))
}

/// Whether this is a valid host name, or an IPv4 address.
fn is_name(host: &str) -> bool {
    let fits = |letter: char| letter.is_alphanumeric() || ".-_".contains(letter);
    !host.is_empty() && host.chars().all(fits)
}

/// An item of the option `hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    /// A host name by which browsers reach a listener of this proxy.
    Name(String),
    /// The origin of this proxy behind a reverse proxy, as browsers see it.
    Origin(Origin),
}

impl Site {
    /// Parses `proxy.example.com` or `https://proxy.example.com`.
    ///
    /// # Errors
    /// The text is neither a name nor an origin. The error says what to write.
    pub fn parse(text: &str) -> Result<Site, String> {
        let bare = text.strip_suffix('/').unwrap_or(text);
        match bare.split_once("://") {
            Some((_, site)) if !site.contains('/') => {
                Origin::of_url(bare.as_bytes()).map(Site::Origin)
            }
            Some(_) => None,
            None if is_name(bare) => Some(Site::Name(bare.to_lowercase())),
            None => None,
        }
        .ok_or_else(|| {
            format!(
                "`{text}` is not a host name; write a name such as proxy.example.com, without a port, or a whole origin such as https://proxy.example.com or http://proxy.example.com:8080"
            )
        })
    }
}

/// The rules for requests of browsers.
#[derive(Debug)]
pub struct BrowserRules {
    /// The host names of this proxy, in lower case.
    names: Vec<String>,
    /// The origins of this proxy behind reverse proxies.
    origins: Vec<Origin>,
}

/// The listener of a request, as far as the rules depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The scheme of the listener.
    pub scheme: Scheme,
    /// Whether the `Host` header must be a known name. It must at a loopback address, all names of which
    /// are known, and where no credentials are required. Elsewhere the credentials protect against DNS
    /// rebinding: the browser has none for the attacker's name.
    pub checks_host: bool,
}

/// Method, target and headers of a request.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its target.
    pub target: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

impl BrowserRules {
    /// The rules with the items of `hosts` and the name of this machine.
    pub fn new(sites: &[Site], host_name: Option<&str>) -> Self {
        let mut rules = BrowserRules {
            names: host_name.map(str::to_lowercase).into_iter().collect(),
            origins: Vec::new(),
        };
        for site in sites {
            match site {
                Site::Name(name) => rules.names.push(name.clone()),
                Site::Origin(origin) => {
                    rules.names.push(origin.host.clone());
                    rules.origins.push(origin.clone());
                }
            }
        }
        rules
    }

    /// Why a request is refused, and what to write where it should not be; `None` if it is allowed.
    pub fn refusal(&self, head: Head<'_>, arrival: Arrival) -> Option<String> {
        let acts = may_act(head.method, head.target);
        if arrival.checks_host && (acts || head.is_of_browser()) {
            let unknown = head.hosts().find(|host| !self.is_known_host(host, head));
            if let Some(host) = unknown {
                return Some(foreign_host(host));
            }
        }
        if acts {
            self.foreign_cause(head, arrival)
        } else {
            None
        }
    }

    /// Why a request that may act is refused: a page of another site caused it, or may have.
    fn foreign_cause(&self, head: Head<'_>, arrival: Arrival) -> Option<String> {
        if head.headers.contains_key(SEC_FETCH_SITE) {
            // The browser has compared the origins itself, with the one of the reverse proxy if there is
            // one.
            return head
                .values(&SEC_FETCH_SITE)
                .any(|site| !matches!(site, b"same-origin" | b"none"))
                .then(|| "a page of another site caused this request".to_owned());
        }
        if head.headers.contains_key(ORIGIN) {
            return head
                .values(&ORIGIN)
                .find(|origin| !self.is_own_page(origin, head, arrival))
                .map(foreign_page);
        }
        // A browser sends `Origin` with every request but GET and HEAD.
        if !matches!(*head.method, Method::GET | Method::HEAD) || !head.is_of_browser() {
            return None;
        }
        match head.values(&REFERER).next() {
            Some(referer) if self.is_own_page(referer, head, arrival) => None,
            Some(referer) => Some(foreign_page(referer)),
            None => Some(
                "a browser sent this action without the page that it comes from: open the page itself and click there; an address that is typed in or bookmarked acts only over https, on localhost and on 127.0.0.1, and a script whose User-Agent begins with Mozilla/ must send a Referer of this host"
                    .to_owned(),
            ),
        }
    }

    /// Whether the page at this URL belongs to this proxy: its origin is in `hosts`, or has the host and
    /// port that the request goes to.
    fn is_own_page(&self, url: &[u8], head: Head<'_>, arrival: Arrival) -> bool {
        let target = || {
            let host = std::str::from_utf8(head.hosts().next()?).ok()?;
            Origin::at(arrival.scheme, host)
        };
        Origin::of_url(url)
            .is_some_and(|origin| self.origins.contains(&origin) || target() == Some(origin))
    }

    /// Whether an attacker cannot have made this host resolve to the proxy's address. That holds for an
    /// address and for a known name; for programs also for a name without a domain. A browser may resolve
    /// such a name by a reply from the local network (LLMNR, mDNS), which an attacker can send.
    fn is_known_host(&self, host: &[u8], head: Head<'_>) -> bool {
        let Ok(text) = std::str::from_utf8(host) else {
            return false;
        };
        if text.is_empty() {
            return true;
        }
        let Some((name, _)) = host_and_port(text) else {
            return false;
        };
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || LOOPBACK_NAMES.contains(&&*name)
            || name.ends_with(".localhost")
            || self.names.contains(&name)
            || !name.contains('.') && !head.is_of_browser()
    }
}

fn foreign_host(host: &[u8]) -> String {
    let host = String::from_utf8_lossy(host);
    match host_and_port(&host) {
        Some((name, _)) => format!(
            "{name} is not a name of this proxy: if it is, write hosts = {name} in [twiddler]"
        ),
        None => format!("{host:?} in the Host header is not the name of a host"),
    }
}

fn foreign_page(url: &[u8]) -> String {
    match Origin::of_url(url) {
        Some(origin) => format!(
            "a page of {origin} caused this request: if that is this proxy seen through a relay, write hosts = {origin} in [twiddler]"
        ),
        None => "a page of another site caused this request".to_owned(),
    }
}

impl<'a> Head<'a> {
    fn values(self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.headers.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    /// The hosts in `Host` headers and in the target. A request with several is refused if one of them is
    /// not known.
    fn hosts(self) -> impl Iterator<Item = &'a [u8]> {
        let absolute = self
            .target
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        self.values(&HOST).chain(absolute)
    }

    fn is_of_browser(self) -> bool {
        self.headers.contains_key(&SEC_FETCH_SITE)
            || self.headers.contains_key(ORIGIN)
            || self
                .values(&USER_AGENT)
                .any(|agent| BROWSERS.iter().any(|browser| agent.starts_with(browser)))
            || self
                .values(&ACCEPT_LANGUAGE)
                .any(|languages| languages != ANY_LANGUAGE)
    }
}

/// Whether a request may change something: it is a call, a form, a lease, or an action of the web
/// interface, whose actions are links. The target is decoded twice, as the daemon may do.
fn may_act(method: &Method, target: &Uri) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return true;
    }
    let target = target.path_and_query().map_or("", |target| target.as_str());
    let once = percent_decode_str(target).decode_utf8_lossy();
    let twice = percent_decode_str(&once).decode_utf8_lossy();
    once.starts_with("/RPC2")
        || once.starts_with(LEASE_PATH) // its end removes programs
        || once.contains("action=")
        || twice.contains("action=")
}

/// Adds headers to the reply with a page. Other sites cannot show the page in a frame, in which they could
/// make the user click. Sites that the page links to do not learn its URL, by which they could lead the
/// user back to an action. Replies to calls and the daemon's error pages are not changed.
pub fn guard_page(status: StatusCode, headers: &mut HeaderMap) {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_page = match content_type {
        Some(text) if text.starts_with(b"text/html") => status == StatusCode::OK,
        Some(text) => text.starts_with(b"text/plain") || text == b"application/json",
        None => false,
    };
    if !is_page {
        return;
    }
    let same_origin = HeaderValue::from_static("same-origin");
    headers.entry(REFERRER_POLICY).or_insert(same_origin);
    let same_origin = HeaderValue::from_static("SAMEORIGIN");
    headers.entry(X_FRAME_OPTIONS).or_insert(same_origin);
    // A second policy does not replace the first: browsers enforce both.
    let own_frames = HeaderValue::from_static("frame-ancestors 'self'");
    headers.append(CONTENT_SECURITY_POLICY, own_frames);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Arrival = Arrival {
        scheme: Scheme::Http,
        checks_host: true,
    };
    const FIREFOX: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)");

    fn rules() -> BrowserRules {
        let sites = [
            "Proxy.example.com",
            "https://sup.example.com",
            "http://b:81",
        ];
        let sites = sites.map(|text| Site::parse(text).unwrap());
        BrowserRules::new(&sites, Some("Vm"))
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    fn refusal(arrival: Arrival, line: &str, pairs: &[(&str, &str)]) -> Option<String> {
        let (method, target) = line.split_once(' ').unwrap();
        let (method, target) = (method.parse().unwrap(), target.parse().unwrap());
        let head = Head {
            method: &method,
            target: &target,
            headers: &headers(pairs),
        };
        rules().refusal(head, arrival)
    }

    #[track_caller]
    fn check(line: &str, pairs: &[(&str, &str)], passes: bool) {
        let refusal = refusal(PLAIN, line, pairs);
        assert_eq!(refusal.is_none(), passes, "{line} {pairs:?}: {refusal:?}");
    }

    #[test]
    fn unknown_host_names_are_refused() {
        for (host, program, browser) in [
            ("127.0.0.1:9002", true, true),
            ("10.1.2.3", true, true),
            ("[::1]:9002", true, true),
            ("localhost", true, true),
            ("LOCALHOST.:80", true, true),
            ("a.localhost:1", true, true),
            ("vm:8080", true, true),
            ("proxy.example.COM:9001", true, true),
            ("sup.example.com", true, true),
            ("localhost:81/supervisor/index.html", true, true),
            ("", true, true),
            // A browser may have resolved these names by a reply from the local network.
            ("twiddler:9001", true, false),
            ("evil", true, false),
            ("evil.", true, false),
            ("evil.example", false, false),
            ("evil.example.:9002", false, false),
            ("evil.example/localhost", false, false),
            ("proxy.example.com.evil.example", false, false),
            ("127.0.0.1.evil.example", false, false),
            ("localhost@evil.example", false, false),
            ("127.0.0.1:9002@x", false, false),
            ("[::1].evil.example", false, false),
            ("localhost:x", false, false),
            ("/localhost", false, false),
            ("a b", false, false),
            (".", false, false),
            ("..", false, false),
            (":9002", false, false),
        ] {
            check("POST /RPC2", &[("host", host)], program);
            check("GET /", &[("host", host)], true);
            check("GET /", &[("host", host), FIREFOX], browser);
            check(
                "GET /",
                &[("host", host), ("accept-language", "en")],
                browser,
            );
            check("GET /", &[("host", host), ("accept-language", "*")], true);
            let unchecked = Arrival {
                checks_host: false,
                ..PLAIN
            };
            assert_eq!(refusal(unchecked, "POST /RPC2", &[("host", host)]), None);
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        check("POST /RPC2", &two, false);
        check("POST http://evil.example/RPC2", &two[..1], false);
        check("POST /RPC2", &[], true);
    }

    #[test]
    fn the_advice_names_what_to_write() {
        let host = [("host", "sup.example.org:81/x"), FIREFOX];
        let advice = refusal(PLAIN, "GET /", &host).unwrap();
        assert!(
            advice.ends_with("write hosts = sup.example.org in [twiddler]"),
            "{advice}"
        );
        let origin = [("host", "localhost"), ("origin", "https://a.example:443")];
        let advice = refusal(PLAIN, "POST /RPC2", &origin).unwrap();
        assert!(
            advice.ends_with("write hosts = https://a.example in [twiddler]"),
            "{advice}"
        );
    }

    #[test]
    fn pages_of_other_sites_cannot_act() {
        let host = ("host", "proxy.example.com:9002");
        let referer = |page| ("referer", page);
        let origin = |origin| ("origin", origin);
        for (line, header, passes) in [
            ("POST /RPC2", ("sec-fetch-site", "cross-site"), false),
            (
                "GET /twiddler/lease/x",
                ("sec-fetch-site", "cross-site"),
                false,
            ),
            (
                "GET /twiddler/lease/x",
                ("sec-fetch-site", "same-origin"),
                true,
            ),
            ("POST /RPC2", ("sec-fetch-site", "same-site"), false),
            ("POST /RPC2", ("sec-fetch-site", "same-origin"), true),
            ("POST /RPC2", ("sec-fetch-site", "none"), true),
            ("POST /RPC2", origin("http://proxy.example.com:9002"), true),
            ("POST /RPC2", origin("HTTP://Proxy.example.com:9002"), true),
            ("POST /RPC2", origin("http://b:81"), true),
            ("POST /RPC2", origin("https://sup.example.com"), true),
            ("POST /RPC2", origin("https://sup.example.com:443"), true),
            ("POST /RPC2", origin("null"), false),
            ("POST /RPC2", origin("http://evil.example"), false),
            ("POST /%52PC2", origin("http://evil.example"), false),
            ("OPTIONS /RPC2", origin("http://evil.example"), false),
            // Origins that differ in the port or in the scheme.
            ("POST /RPC2", origin("http://proxy.example.com"), false),
            ("POST /RPC2", origin("http://proxy.example.com:9003"), false),
            (
                "POST /RPC2",
                origin("https://proxy.example.com:9002"),
                false,
            ),
            ("POST /RPC2", origin("http://sup.example.com"), false),
            ("POST /RPC2", origin("https://sup.example.com:444"), false),
            ("POST /RPC2", origin("http://vm:8080"), false),
            (
                "POST /RPC2",
                origin("http://x@proxy.example.com:9002"),
                false,
            ),
            ("GET /?action=stop", ("sec-fetch-site", "cross-site"), false),
            (
                "GET /?%61ction=stop",
                ("sec-fetch-site", "cross-site"),
                false,
            ),
            (
                "GET /x%3Faction=stop",
                ("sec-fetch-site", "cross-site"),
                false,
            ),
            ("GET /?action=stop", ("sec-fetch-site", "none"), true),
            ("GET /?action=stop", origin("http://evil.example"), false),
            (
                "GET /?action=stop",
                referer("http://proxy.example.com:9002/"),
                true,
            ),
            (
                "GET /?action=stop",
                referer("http://proxy.example.com:9002?x"),
                true,
            ),
            (
                "GET /?action=stop",
                referer("https://sup.example.com/a/"),
                true,
            ),
            (
                "GET /?action=stop",
                referer("http://proxy.example.com/"),
                false,
            ),
            ("GET /?action=stop", referer("http://evil.example/"), false),
            ("GET /?action=stop", referer("about:client"), false),
            ("GET /?action=stop", ("accept", "text/html"), false),
            ("HEAD /?action=stop", ("accept", "text/html"), false),
            ("GET /RPC2", ("accept", "text/html"), false),
            ("GET /?message=done", ("accept", "text/html"), true),
            ("GET /", ("sec-fetch-site", "cross-site"), true),
        ] {
            check(line, &[host, FIREFOX, header], passes);
        }
        // Programs send none of these headers.
        check("GET /?action=stop", &[host], true);
        check("GET /?action=stop", &[host, ("user-agent", "curl/8")], true);
        check("GET /?action=stop", &[], true);
        check("GET /RPC2", &[host, ("sec-fetch-mode", "cors")], true);
        // Without a `Host`, no page counts as one of this proxy.
        check("POST /RPC2", &[origin("http://localhost")], false);
    }

    #[test]
    fn pages_of_a_listener_with_tls_have_the_scheme_https() {
        let tls = Arrival {
            scheme: Scheme::Https,
            ..PLAIN
        };
        for (host, origin, passes) in [
            ("localhost:9002", "https://localhost:9002", true),
            ("localhost", "https://localhost", true),
            ("localhost:9002", "http://localhost:9002", false),
            ("localhost", "http://localhost:443", false),
        ] {
            let refusal = refusal(tls, "POST /RPC2", &[("host", host), ("origin", origin)]);
            assert_eq!(refusal.is_none(), passes, "{host} {origin}");
        }
    }

    #[test]
    fn a_site_is_a_name_or_an_origin() {
        for (text, expected) in [
            ("a.example", Some("a.example")),
            ("A_b-c", Some("a_b-c")),
            ("https://A.example/", Some("https://a.example")),
            ("http://a:80", Some("http://a")),
            ("http://[::1]:9002", Some("http://[::1]:9002")),
            ("https://a.example:8443", Some("https://a.example:8443")),
            ("a.example:80", None),
            ("a/b", None),
            ("", None),
            ("ftp://a", None),
            ("https://", None),
            ("https://a/b", None),
            ("https://a:x", None),
            ("https://a b", None),
            ("https://x@a", None),
        ] {
            let parsed = Site::parse(text).map(|site| match site {
                Site::Name(name) => name,
                Site::Origin(origin) => origin.to_string(),
            });
            assert_eq!(parsed.ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn other_sites_cannot_frame_pages() {
        for (status, content_type, guarded) in [
            (200, "text/html", true),
            (200, "text/plain;charset=utf-8", true),
            (403, "text/plain;charset=utf-8", true),
            (200, "application/json", true),
            (404, "text/html", false),
            (200, "text/xml", false),
            (200, "image/png", false),
        ] {
            let mut reply = headers(&[("content-type", content_type)]);
            guard_page(StatusCode::from_u16(status).unwrap(), &mut reply);
            assert_eq!(
                reply.contains_key(X_FRAME_OPTIONS),
                guarded,
                "{status} {content_type}"
            );
        }
        let mut reply = headers(&[
            ("content-type", "text/html"),
            ("x-frame-options", "DENY"),
            ("content-security-policy", "default-src 'none'"),
        ]);
        guard_page(StatusCode::OK, &mut reply);
        assert_eq!(reply[X_FRAME_OPTIONS], "DENY");
        assert_eq!(reply.get_all(CONTENT_SECURITY_POLICY).iter().count(), 2);
    }
}
