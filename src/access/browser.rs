//! Requests that another site makes a browser send (CSRF, DNS rebinding), and pages in frames of
//! other sites.
//!
//! Pure. A browser adds the user's credentials to a request whoever caused it, so a call or an
//! action must come from a page of this proxy. Browsers say where a request comes from in three
//! headers that pages cannot set: `Sec-Fetch-Site` (only to https and to loopback), `Origin` (with
//! every POST) and `Referer`. Programs send none of them, and are not asked for any.

use std::fmt;
use std::net::IpAddr;

use http::header::{
    ACCEPT_LANGUAGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERER, REFERRER_POLICY,
    USER_AGENT, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::LEASE_PATH;

/// The relation between the site that caused a request and the one that is asked.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How the user agents of browsers begin.
const BROWSERS: [&[u8]; 2] = [b"Mozilla/", b"Opera/"];
/// What programs say that name no language but send the header: Node's `fetch`.
const ANY_LANGUAGE: &[u8] = b"*";
/// Names that browsers resolve to loopback addresses by themselves, and those of `/etc/hosts`.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "ip6-localhost", "ip6-loopback"];

/// Scheme, host and port of a page (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    /// In lower case, an address of version 6 in its brackets.
    host: String,
    port: u16,
}

/// How a page was fetched.
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
    /// Reads the origin of a URL, whatever its path.
    fn of_url(url: &[u8]) -> Option<Origin> {
        let (scheme, rest) = std::str::from_utf8(url).ok()?.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        Origin::at(scheme, rest.split(['/', '?', '#']).next()?)
    }

    /// `site` is a host, or a host and a port.
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

/// Host and port of what may stand in a `Host` header. A path after it is left out: relays below a
/// path write one there, to have it in the daemon's redirects.
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

/// Whether this can be the name of a host, or an address of version 4.
fn is_name(host: &str) -> bool {
    let fits = |letter: char| letter.is_alphanumeric() || ".-_".contains(letter);
    !host.is_empty() && host.chars().all(fits)
}

/// One item of `hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    /// A name by which browsers reach a listener of this proxy.
    Name(String),
    /// What browsers have in front of the path where they reach this proxy through a relay.
    Origin(Origin),
}

impl Site {
    /// Reads `proxy.example.com` or `https://proxy.example.com`.
    ///
    /// # Errors
    /// What to write instead.
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

/// What decides whether a browser may ask.
#[derive(Debug)]
pub struct Browsers {
    /// Names of this proxy, in lower case.
    names: Vec<String>,
    /// Its origins seen through relays.
    origins: Vec<Origin>,
}

/// How a request arrived, as far as browsers are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What the listener speaks.
    pub scheme: Scheme,
    /// Whether the `Host` header is judged: a page that had its own name point here has no
    /// credentials for it, so where credentials are asked for a name tells nothing; but a loopback
    /// address has no other names than are known.
    pub judges_host: bool,
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

impl Browsers {
    /// With what `hosts` lists, beside the name of this machine.
    pub fn new(sites: &[Site], own_name: Option<&str>) -> Self {
        let mut browsers = Browsers {
            names: own_name.map(str::to_lowercase).into_iter().collect(),
            origins: Vec::new(),
        };
        for site in sites {
            match site {
                Site::Name(name) => browsers.names.push(name.clone()),
                Site::Origin(origin) => {
                    browsers.names.push(origin.host.clone());
                    browsers.origins.push(origin.clone());
                }
            }
        }
        browsers
    }

    /// Says why a request is refused, if it is, and what to do where that is a mistake.
    pub fn refuses(&self, head: Head<'_>, arrival: Arrival) -> Option<String> {
        let acts = acts(head.method, head.target);
        if arrival.judges_host && (acts || head.is_of_browser()) {
            let foreign = head.hosts().find(|host| !self.is_ours(host, head));
            if let Some(host) = foreign {
                return Some(foreign_host(host));
            }
        }
        if acts {
            self.foreign_cause(head, arrival)
        } else {
            None
        }
    }

    /// Why a request that acts does not come from a page of this proxy.
    fn foreign_cause(&self, head: Head<'_>, arrival: Arrival) -> Option<String> {
        if head.headers.contains_key(SEC_FETCH_SITE) {
            // The browser has compared origins itself, and has seen the relay that is asked.
            return head
                .values(&SEC_FETCH_SITE)
                .any(|site| !matches!(site, b"same-origin" | b"none"))
                .then(|| "a page of another site caused this request".to_owned());
        }
        if head.headers.contains_key(ORIGIN) {
            return head
                .values(&ORIGIN)
                .find(|origin| !self.is_own(origin, head, arrival))
                .map(foreign_page);
        }
        // Only where it reads does a browser keep its origin to itself.
        if !matches!(*head.method, Method::GET | Method::HEAD) || !head.is_of_browser() {
            return None;
        }
        match head.values(&REFERER).next() {
            Some(referer) if self.is_own(referer, head, arrival) => None,
            Some(referer) => Some(foreign_page(referer)),
            None => Some(
                "a browser sent this action without the page that it comes from: open the page itself and click there; an address that is typed in or bookmarked acts only over https, on localhost and on 127.0.0.1, and a script whose User-Agent begins with Mozilla/ must send a Referer of this host"
                    .to_owned(),
            ),
        }
    }

    /// Whether a page at this URL is one of this proxy: of the host and port that the request
    /// itself names, or of an origin in `hosts`.
    fn is_own(&self, url: &[u8], head: Head<'_>, arrival: Arrival) -> bool {
        let asked = || {
            let host = std::str::from_utf8(head.hosts().next()?).ok()?;
            Origin::at(arrival.scheme, host)
        };
        Origin::of_url(url)
            .is_some_and(|origin| self.origins.contains(&origin) || asked() == Some(origin))
    }

    /// Whether no stranger can have made a name lead here: an address, a name that is known, and
    /// for programs every name without a domain. (A browser takes such a name from whoever answers
    /// first on the local network, and a page of that machine could then lead it here.)
    fn is_ours(&self, host: &[u8], head: Head<'_>) -> bool {
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

    /// Every host that is named: more than one is not ours if one of them is not.
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

/// Whether a request may change something: every call, every form, and the web interface's actions,
/// which are links. Looked at twice decoded, as the daemon may do.
fn acts(method: &Method, target: &Uri) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return true;
    }
    let target = target.path_and_query().map_or("", |target| target.as_str());
    let once = percent_decode_str(target).decode_utf8_lossy();
    let twice = percent_decode_str(&once).decode_utf8_lossy();
    let ends_what_nobody_holds = once.starts_with(LEASE_PATH);
    once.starts_with("/RPC2")
        || ends_what_nobody_holds
        || once.contains("action=")
        || twice.contains("action=")
}

/// Keeps a page out of the frames of other sites, whose visitors could be made to click in it, and
/// its address from sites that it links to: one of them could lead its visitor back to an action.
/// Replies to calls, and errors of the daemon's, stay as they are.
pub fn guard_page(status: StatusCode, headers: &mut HeaderMap) {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_page = match kind {
        Some(kind) if kind.starts_with(b"text/html") => status == StatusCode::OK,
        Some(kind) => kind.starts_with(b"text/plain") || kind == b"application/json",
        None => false,
    };
    if !is_page {
        return;
    }
    let same_origin = HeaderValue::from_static("same-origin");
    headers.entry(REFERRER_POLICY).or_insert(same_origin);
    let same_origin = HeaderValue::from_static("SAMEORIGIN");
    headers.entry(X_FRAME_OPTIONS).or_insert(same_origin);
    // Beside one that is there already: both hold then.
    let own_frames = HeaderValue::from_static("frame-ancestors 'self'");
    headers.append(CONTENT_SECURITY_POLICY, own_frames);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Arrival = Arrival {
        scheme: Scheme::Http,
        judges_host: true,
    };
    const FIREFOX: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)");

    fn browsers() -> Browsers {
        let sites = [
            "Proxy.example.com",
            "https://sup.example.com",
            "http://b:81",
        ];
        let sites = sites.map(|text| Site::parse(text).unwrap());
        Browsers::new(&sites, Some("Vm"))
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    fn refused(arrival: Arrival, line: &str, pairs: &[(&str, &str)]) -> Option<String> {
        let (method, target) = line.split_once(' ').unwrap();
        let (method, target) = (method.parse().unwrap(), target.parse().unwrap());
        let head = Head {
            method: &method,
            target: &target,
            headers: &headers(pairs),
        };
        browsers().refuses(head, arrival)
    }

    #[track_caller]
    fn check(line: &str, pairs: &[(&str, &str)], passes: bool) {
        let refused = refused(PLAIN, line, pairs);
        assert_eq!(refused.is_none(), passes, "{line} {pairs:?}: {refused:?}");
    }

    #[test]
    fn names_of_others_do_not_lead_in() {
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
            // Whoever answers on the local network may have given the browser its address.
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
            let elsewhere = Arrival {
                judges_host: false,
                ..PLAIN
            };
            assert_eq!(refused(elsewhere, "POST /RPC2", &[("host", host)]), None);
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        check("POST /RPC2", &two, false);
        check("POST http://evil.example/RPC2", &two[..1], false);
        check("POST /RPC2", &[], true);
    }

    #[test]
    fn the_advice_names_what_to_write() {
        let host = [("host", "sup.example.org:81/x"), FIREFOX];
        let advice = refused(PLAIN, "GET /", &host).unwrap();
        assert!(
            advice.ends_with("write hosts = sup.example.org in [twiddler]"),
            "{advice}"
        );
        let origin = [("host", "localhost"), ("origin", "https://a.example:443")];
        let advice = refused(PLAIN, "POST /RPC2", &origin).unwrap();
        assert!(
            advice.ends_with("write hosts = https://a.example in [twiddler]"),
            "{advice}"
        );
    }

    #[test]
    fn pages_of_others_cannot_act() {
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
            // Another port, another scheme.
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
        // A program says none of this.
        check("GET /?action=stop", &[host], true);
        check("GET /?action=stop", &[host, ("user-agent", "curl/8")], true);
        check("GET /?action=stop", &[], true);
        check("GET /RPC2", &[host, ("sec-fetch-mode", "cors")], true);
        // Not without a host to compare with.
        check("POST /RPC2", &[origin("http://localhost")], false);
    }

    #[test]
    fn a_listener_with_tls_has_pages_of_https_alone() {
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
            let refused = refused(tls, "POST /RPC2", &[("host", host), ("origin", origin)]);
            assert_eq!(refused.is_none(), passes, "{host} {origin}");
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
            let read = Site::parse(text).map(|site| match site {
                Site::Name(name) => name,
                Site::Origin(origin) => origin.to_string(),
            });
            assert_eq!(read.ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn pages_are_kept_out_of_frames() {
        for (status, kind, guarded) in [
            (200, "text/html", true),
            (200, "text/plain;charset=utf-8", true),
            (403, "text/plain;charset=utf-8", true),
            (200, "application/json", true),
            (404, "text/html", false),
            (200, "text/xml", false),
            (200, "image/png", false),
        ] {
            let mut reply = headers(&[("content-type", kind)]);
            guard_page(StatusCode::from_u16(status).unwrap(), &mut reply);
            assert_eq!(
                reply.contains_key(X_FRAME_OPTIONS),
                guarded,
                "{status} {kind}"
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
