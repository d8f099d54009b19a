//! The process that a request for a page or a log names. The request is read as the daemon reads it.

use std::ops::Range;

use bytes::Bytes;
use http::{Method, Uri};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::quote::{field, quote, unquote};

/// The characters that are escaped in a query: those that are not allowed in it, and the question mark, because
/// the daemon unquotes everything before the last one once more (`supervisor/http.py`, `found_terminator`).
const BAD_IN_QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?');

/// The pages that name processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/logtail/NAME`, `/logtail/NAME/CHANNEL`
    Log,
    /// `tail.html`
    Tail,
    /// `/`, `index.html` without an action
    Status,
    /// `index.html` with an action on one process
    Action,
    /// `index.html?action=restartall`
    RestartAll,
}

/// A request for a page that names processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The page.
    pub page: Page,
    /// The process that the request names.
    pub process: Option<String>,
    target: Target,
    position: Position,
}

/// A request's path and query as the daemon sees them, and its body if it is a form.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    path: String,
    query: String,
    form: String,
}

/// The position of the name in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    /// Between `/logtail/` and this channel, which begins with a slash.
    Path(String),
    /// These bytes of the query.
    Query(Range<usize>),
    /// These bytes of the form.
    Form(Range<usize>),
    /// The request names no process.
    Absent,
}

impl PageRequest {
    /// Reads a request. `body` is the form. None for a request for any other page.
    pub fn read(method: &Method, uri: &Uri, body: Option<&[u8]>) -> Option<PageRequest> {
        if uri.scheme().is_some() {
            return None;
        }
        let target = Target::read(uri, body)?;
        let page = target.path.trim_start_matches('/');
        match (method, page) {
            (&Method::GET, _) if target.path.starts_with("/logtail") => PageRequest::log(target),
            (&Method::GET | &Method::POST, "tail.html") => {
                Some(PageRequest::form(Page::Tail, target))
            }
            (&Method::GET | &Method::POST, "" | "index.html") => {
                let page = match target.field("action") {
                    None => Page::Status,
                    Some((action, _)) => match action.as_str() {
                        "refresh" | "stopall" => return None,
                        "restartall" => Page::RestartAll,
                        _ => Page::Action,
                    },
                };
                Some(PageRequest::form(page, target))
            }
            _ => None,
        }
    }

    /// `supervisor/http.py`, `logtail_handler`
    fn log(target: Target) -> Option<PageRequest> {
        let path = if target.path.contains('%') {
            unquote(&target.path)
        } else {
            target.path.clone()
        };
        let (_, rest) = path.trim_start_matches('/').split_once('/')?;
        let (process, channel) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some(PageRequest {
            page: Page::Log,
            process: Some(process.to_owned()),
            position: Position::Path(channel.to_owned()),
            target,
        })
    }

    fn form(page: Page, target: Target) -> PageRequest {
        let named = match page {
            Page::Tail | Page::Action => target.field("processname"),
            Page::Log | Page::Status | Page::RestartAll => None,
        };
        let (process, position) = match named {
            Some((process, place)) => (Some(process), place),
            None => (None, Position::Absent),
        };
        PageRequest {
            page,
            process,
            target,
            position,
        }
    }

    /// The same request for the process `real`: its target and its form, each only if it changes.
    pub fn with_process(&self, real: &str) -> (Option<Uri>, Option<Bytes>) {
        let Target { path, query, form } = &self.target;
        match &self.position {
            // The daemon unquotes the path twice, and searches it for `;`, `?` and `#` in between.
            Position::Path(channel) => {
                let rest = quote(&quote(&format!("{real}{channel}")));
                (target_uri(&format!("/logtail/{rest}"), query), None)
            }
            Position::Query(range) => (
                target_uri(&quote(path), &replaced(query, range, real)),
                None,
            ),
            Position::Form(range) => (None, Some(replaced(form, range, real).into())),
            Position::Absent => (None, None),
        }
    }
}

impl Target {
    /// Reads the target as the daemon does (`supervisor/http.py`, `found_terminator`;
    /// `supervisor/medusa/http_server.py`, `split_uri`).
    fn read(uri: &Uri, body: Option<&[u8]>) -> Option<Target> {
        let raw = uri.path_and_query()?.as_str();
        let decoded = match raw.rsplit_once('?') {
            Some((path, query)) => format!("{}?{query}", unquote(path)),
            None => unquote(raw),
        };
        let whole = decoded.split('#').next().unwrap_or_default();
        let (before, query) = whole.split_once('?').unwrap_or((whole, ""));
        let path = before.split(';').next().unwrap_or_default();
        Some(Target {
            path: path.to_owned(),
            query: query.to_owned(),
            form: std::str::from_utf8(body.unwrap_or_default())
                .ok()?
                .to_owned(),
        })
    }

    /// The value and position of a field: the last one of the form, otherwise the first one of the query.
    /// Empty values are ignored (`supervisor/web.py`, `continue_request`).
    fn field(&self, key: &str) -> Option<(String, Position)> {
        if let Some((value, range)) = fields(&self.form, key).last() {
            return Some((value, Position::Form(range)));
        }
        let (value, range) = fields(&self.query, key).next()?;
        Some((value, Position::Query(range)))
    }
}

/// The target and the form of a request that only makes the daemon redirect to the status page.
pub fn refresh() -> (Uri, Bytes) {
    (
        Uri::from_static("/index.html?action=refresh"),
        Bytes::from_static(b"action=refresh"),
    )
}

/// The values of a field in a query or form, with their positions.
fn fields<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = (String, Range<usize>)> + 'a {
    let mut at = 0;
    text.split('&').filter_map(move |pair| {
        let start = at;
        at += pair.len() + 1;
        let (name, value) = pair.split_once('=')?;
        let end = start + pair.len();
        (!value.is_empty() && field(name) == key).then(|| (field(value), end - value.len()..end))
    })
}

/// The text with the quoted name `real` in `range`.
fn replaced(text: &str, range: &Range<usize>, real: &str) -> String {
    format!(
        "{}{}{}",
        &text[..range.start],
        quote(real),
        &text[range.end..]
    )
}

fn target_uri(path: &str, query: &str) -> Option<Uri> {
    let query = match query {
        "" => String::new(),
        query => format!("?{}", utf8_percent_encode(query, BAD_IN_QUERY)),
    };
    format!("{path}{query}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(uri: &str) -> Option<PageRequest> {
        PageRequest::read(&Method::GET, &uri.parse().expect("a URI"), None)
    }

    fn post(uri: &str, form: &str) -> Option<PageRequest> {
        PageRequest::read(
            &Method::POST,
            &uri.parse().expect("a URI"),
            Some(form.as_bytes()),
        )
    }

    fn page_and_process(request: Option<PageRequest>) -> (Page, Option<String>) {
        let request = request.expect("a page that names processes");
        (request.page, request.process)
    }

    #[test]
    fn requests_are_read_as_the_daemon_reads_them() {
        for (uri, page, process) in [
            ("/logtail/web:cat", Page::Log, Some("web:cat")),
            ("/logtail/web%3Acat/stderr", Page::Log, Some("web:cat")),
            ("/logtail/web%253Acat?x", Page::Log, Some("web:cat")),
            ("/%6cogtail/cat;x", Page::Log, Some("cat")),
            ("/logtail-and-more/cat", Page::Log, Some("cat")),
            ("/", Page::Status, None),
            ("//index.html?message=m&action=", Page::Status, None),
            ("/?processname=cat", Page::Status, None),
            (
                "/?action=restartall&processname=cat",
                Page::RestartAll,
                None,
            ),
            ("/?action=stop", Page::Action, None),
            (
                "/?action=stop&processname=&processname=a+b",
                Page::Action,
                Some("a b"),
            ),
            (
                "/index.html%3Faction=stop&processname=cat",
                Page::Action,
                Some("cat"),
            ),
            (
                "/tail.html?processname=web%3Acat&processname=x",
                Page::Tail,
                Some("web:cat"),
            ),
            ("/tail.html;params?processname=x", Page::Tail, Some("x")),
        ] {
            assert_eq!(
                page_and_process(get(uri)),
                (page, process.map(str::to_owned)),
                "{uri}"
            );
        }
        let form = post(
            "/?processname=a",
            "action=start&processname=b&processname=c",
        );
        assert_eq!(page_and_process(form), (Page::Action, Some("c".to_owned())));
    }

    #[test]
    fn other_requests_are_not_rewritten() {
        for uri in [
            "/ok.html",
            "/mainlogtail",
            "/logtail",
            "/images/x",
            "/?action=refresh",
            "/index.html?action=stopall",
            "/RPC2",
            "/x/logtail/cat",
            "http://host/logtail/cat",
        ] {
            assert_eq!(get(uri), None, "{uri}");
        }
        assert_eq!(post("/logtail/web:cat", ""), None);
    }

    #[test]
    fn the_name_that_the_daemon_reads_is_replaced() {
        for (uri, expected) in [
            (
                "/logtail/web:cat/stderr?x=1",
                "/logtail/web~1%253Acat/stderr?x=1",
            ),
            (
                "/tail.html?a=%20&processname=cat&limit=5",
                "/tail.html?a=%20&processname=web~1%3Acat&limit=5",
            ),
            (
                "/?processname=&action=stop&processname=x&b=1?2",
                "/?processname=&action=stop&processname=web~1%3Acat&b=1%3F2",
            ),
        ] {
            let (uri, form) = get(uri).expect("a page").with_process("web~1:cat");
            assert_eq!(uri.expect("a URI").to_string(), expected);
            assert_eq!(form, None);
        }
        let request = post(
            "/?processname=a&action=stop",
            "processname=b&processname=c&d=%00",
        );
        let (uri, form) = request.expect("a page").with_process("web~1:\u{e9}");
        assert_eq!(uri, None);
        let expected = "processname=b&processname=web~1%3A%C3%A9&d=%00";
        assert_eq!(form.expect("a form"), expected.as_bytes());
    }

    proptest! {
        #[test]
        fn the_rewritten_request_names_the_real_process(
            process in "[a-z?;#%&=+\u{e9}]{1,6}",
            page in "/logtail/x(/y)?|/tail[.]html[?](a=[?%2]{0,4}&)?processname=x(&b=[?%2]{0,4})?",
        ) {
            let real = format!("web~1:{process}");
            let (uri, _) = get(&page).expect("a page").with_process(&real);
            let request = PageRequest::read(&Method::GET, &uri.expect("a URI"), None);
            prop_assert_eq!(request.expect("a page").process, Some(real));
        }
    }
}
