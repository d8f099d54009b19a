//! The methods that may be called: `allow` and `whitelist` of `[twiddler]`.
//!
//! Pages of the daemon's web interface do the same as methods, so this module knows the methods that
//! correspond to a page. A request that the daemon may read in another way than this module is denied.
//! This module is pure.

use std::borrow::Cow;

use glob::Pattern;
use http::Method;
use percent_encoding::percent_decode_str;

/// The characters of patterns beside letters and digits.
const PATTERN_MARKS: &str = "._*?[]!-";

/// The methods that may be called.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The methods of all namespaces; `None` allows all.
    pub allow: Option<Allow>,
    /// The `twiddler.*` methods, without the namespace; an empty list allows all.
    pub whitelist: Vec<String>,
}

/// Patterns of the methods that may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow(Vec<Pattern>);

impl Allow {
    /// Parses patterns such as `supervisor.get*`.
    ///
    /// # Errors
    /// A pattern is not valid. The text says why, and what to write.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        patterns
            .into_iter()
            .map(pattern)
            .collect::<Result<_, _>>()
            .map(Allow)
    }

    /// The patterns, in their order.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }

    /// Whether this method, with its namespace, may be called.
    pub fn allows(&self, method: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(method))
    }

    /// The first method of the first need of which no method is allowed; `None` if all needs are met.
    pub fn missing(&self, needs: &[Need]) -> Option<&'static str> {
        needs
            .iter()
            .find(|need| !need.iter().any(|method| self.allows(method)))
            .and_then(|need| need.first().copied())
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || PATTERN_MARKS.contains(letter);
    if !(text == "*" || text.contains('.') && text.chars().all(fits)) {
        return Err(format!(
            "`{text}` names no method; write its namespace too, such as supervisor.getState or supervisor.get*"
        ));
    }
    Pattern::new(text).map_err(|error| {
        format!("`{text}` is no pattern ({error}); write one such as supervisor.get*")
    })
}

/// Whether the document of a call names `method` unambiguously: in one element `methodName` that contains
/// the bare name. XML parsers differ in how they read two such elements, or one with a comment.
pub fn is_plain(body: &[u8], method: &str) -> bool {
    const TAG: &[u8] = b"<methodName";
    let mut tags = body
        .windows(TAG.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == TAG);
    let (Some((at, _)), None) = (tags.next(), tags.next()) else {
        return false;
    };
    body[at..].starts_with(format!("<methodName>{method}</methodName>").as_bytes())
}

/// Methods that do the same. One of them must be allowed; a refusal names the first.
pub type Need = &'static [&'static str];

const STATUS: Need = &["supervisor.getAllProcessInfo", "supervisor.getProcessInfo"];
const STDOUT: Need = &[
    "supervisor.readProcessStdoutLog",
    "supervisor.readProcessLog",
    "supervisor.tailProcessStdoutLog",
    "supervisor.tailProcessLog",
];
const STDERR: Need = &[
    "supervisor.readProcessStderrLog",
    "supervisor.tailProcessStderrLog",
];
const MAIN_LOG: Need = &["supervisor.readLog", "supervisor.readMainLog"];
const START: Need = &["supervisor.startProcess"];
const STOP: Need = &["supervisor.stopProcess"];
const START_ALL: Need = &["supervisor.startAllProcesses"];
const STOP_ALL: Need = &["supervisor.stopAllProcesses"];
const CLEAR: Need = &["supervisor.clearProcessLogs", "supervisor.clearProcessLog"];

/// The needs of a request for a page (`supervisor/http.py` and `supervisor/web.py`). `None` if the daemon
/// may read the request in another way than this function.
pub fn page_needs(
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> Option<Vec<Need>> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Some(Vec::new()); // The daemon refuses it, or answers with a static file.
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    // The daemon splits an encoded path after decoding, and may decode it a second time.
    if decoded.contains(['?', '#', ';', '%']) {
        return None;
    }
    if let Some(rest) = decoded.strip_prefix("/logtail") {
        let channel = rest.splitn(3, '/').nth(2);
        return Some(match channel {
            None | Some("stdout") => vec![STDOUT],
            Some("stderr") => vec![STDERR],
            Some(_) => vec![STDOUT, STDERR],
        });
    }
    if decoded.starts_with("/mainlogtail") {
        return Some(vec![MAIN_LOG]);
    }
    match decoded.trim_start_matches('/') {
        "" | "index.html" => form_needs(query, body).map(|needs| [vec![STATUS], needs].concat()),
        "tail.html" => form_needs(query, body).map(|needs| [vec![STDOUT], needs].concat()),
        "ok.html" => form_needs(query, body),
        _ => Some(Vec::new()),
    }
}

/// The needs of the actions in a form, in its query and in its body.
fn form_needs(query: Option<&str>, body: &[u8]) -> Option<Vec<Need>> {
    let body = String::from_utf8_lossy(body);
    let mut needs = Vec::new();
    // Older releases of Python split fields at semicolons, too.
    for field in query
        .unwrap_or_default()
        .split(['&', ';'])
        .chain(body.split(['&', ';']))
    {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        match (&*form_text(name), &*form_text(value)) {
            // A field of this name overrides the path (`supervisor/web.py`, `continue_request`).
            ("PATH_INFO", _) => return None,
            ("action", "" | "refresh") => {}
            ("action", "start") => needs.push(START),
            ("action", "stop") => needs.push(STOP),
            ("action", "restart") => needs.extend([STOP, START]),
            ("action", "stopall") => needs.push(STOP_ALL),
            ("action", "restartall") => needs.extend([STOP_ALL, START_ALL]),
            ("action", "clearlog") => needs.push(CLEAR),
            ("action", _) => return None,
            _ => {}
        }
    }
    Some(needs)
}

fn form_text(text: &str) -> Cow<'_, str> {
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(patterns: &[&str]) -> Allow {
        Allow::parse(patterns.iter().copied()).unwrap()
    }

    #[test]
    fn patterns_are_matched_against_whole_names() {
        let allow = allow(&["supervisor.get*", "system.listMethods", "twiddler.[al]*"]);
        for (method, expected) in [
            ("supervisor.getState", true),
            ("supervisor.forgetState", false),
            ("supervisor.Getstate", false),
            ("system.listMethods", true),
            ("system.listMethodsX", false),
            ("twiddler.log", true),
            ("twiddler.addGroup", true),
            ("twiddler.removeGroup", false),
            ("xsupervisor.getState", false),
            ("", false),
        ] {
            assert_eq!(allow.allows(method), expected, "{method}");
        }
        assert!(self::allow(&["*"]).allows("anything.atAll"));
    }

    #[test]
    fn patterns_that_name_no_method_are_refused() {
        for text in [
            "getState",
            "supervisor",
            "supervisor.get State",
            "a.b\n",
            "supervisor.[get",
            "a.***",
        ] {
            assert!(Allow::parse([text]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_plain_call_names_its_method_once_and_bare() {
        for (body, expected) in [
            (
                "<methodCall><methodName>a.b</methodName></methodCall>",
                true,
            ),
            ("<methodName>a.b</methodName><params/>", true),
            (
                "<a><methodName>a.c</methodName><methodName>a.b</methodName></a>",
                false,
            ),
            ("<a><methodName>a<!-- -->.b</methodName></a>", false),
            ("<a><methodName>&#97;.b</methodName></a>", false),
            ("<a><methodName x='1'>a.b</methodName></a>", false),
            ("<a><methodName> a.b</methodName></a>", false),
            (
                "<a><!-- <methodName>a.c</methodName> --><methodName>a.b</methodName></a>",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(is_plain(body.as_bytes(), "a.b"), expected, "{body}");
        }
    }

    #[test]
    fn pages_need_the_methods_that_do_the_same() {
        for (path, query, body, expected) in [
            ("/", "", "", Some(vec![STATUS])),
            ("//index.html", "message=x", "", Some(vec![STATUS])),
            ("/", "action=stopall", "", Some(vec![STATUS, STOP_ALL])),
            ("/", "%61ction=%73topall", "", Some(vec![STATUS, STOP_ALL])),
            ("/", "x=1;action=start", "", Some(vec![STATUS, START])),
            (
                "/",
                "action=refresh&action=stop",
                "",
                Some(vec![STATUS, STOP]),
            ),
            (
                "/",
                "action=refresh",
                "action=restart",
                Some(vec![STATUS, STOP, START]),
            ),
            ("/ok.html", "action=clearlog", "", Some(vec![CLEAR])),
            ("/ok.html", "PATH_INFO=/&action=refresh", "", None),
            ("/", "action=other", "", None),
            ("/index.html%3faction=stopall", "", "", None),
            ("/index.html%253faction=stopall", "", "", None),
            ("/%69ndex.html", "action=stop", "", Some(vec![STATUS, STOP])),
            ("/tail.html", "processname=a", "", Some(vec![STDOUT])),
            ("/logtail/a%3Ab", "", "", Some(vec![STDOUT])),
            ("/logtail/a/stderr", "", "", Some(vec![STDERR])),
            ("/logtail/a/x", "", "", Some(vec![STDOUT, STDERR])),
            ("/mainlogtail", "", "", Some(vec![MAIN_LOG])),
            ("/mainlogtail/x", "", "", Some(vec![MAIN_LOG])),
            ("/stylesheets/supervisor.css", "", "", Some(vec![])),
        ] {
            let needs = page_needs(&Method::GET, path, Some(query), body.as_bytes());
            assert_eq!(needs, expected, "{path}?{query} {body}");
        }
    }

    #[test]
    fn the_first_missing_method_is_named() {
        let allow = allow(&["supervisor.get*", "supervisor.tailProcessLog"]);
        assert_eq!(allow.missing(&[STATUS, STDOUT]), None);
        assert_eq!(
            allow.missing(&[STATUS, STOP, START]),
            Some("supervisor.stopProcess")
        );
    }
}
