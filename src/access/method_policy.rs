//! Which methods may be called at all: `allow` of `[twiddler]`.
//!
//! Also knows which methods stand behind the pages of the daemon's web interface, which reach them
//! without a call. Where the daemon could understand more of a request than is understood here, the
//! request is left out. A leaf.

use std::borrow::Cow;

use glob::Pattern;
use http::Method;
use percent_encoding::percent_decode_str;

/// Characters in the patterns of methods, beside letters and digits.
const PATTERN_MARKS: &str = "._*?[]!-";

/// What may be called.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The methods of all namespaces; none for all.
    pub allow: Option<Allow>,
    /// The bare names of the `twiddler.*` methods; empty for all.
    pub whitelist: Vec<String>,
}

/// The methods that may be called, as patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow(Vec<Pattern>);

impl Allow {
    /// Reads patterns such as `supervisor.get*`.
    ///
    /// # Errors
    /// What is wrong with one of them, and what to write.
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

    /// The first of these needs that is not met; each is met by any one of its methods.
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

/// Whether a call's document says which method it means in one way only: one element, with nothing
/// but the name in it. Readers of XML differ in what they make of two, and of comments in one.
pub fn is_plain(body: &[u8], method: &str) -> bool {
    const OPENS: &[u8] = b"<methodName";
    let mut found = body
        .windows(OPENS.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == OPENS);
    let (Some((at, _)), None) = (found.next(), found.next()) else {
        return false;
    };
    body[at..].starts_with(format!("<methodName>{method}</methodName>").as_bytes())
}

/// Methods of which one must be allowed; the first is the one to name.
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

/// What stands behind a request for a page (`supervisor/http.py` and `supervisor/web.py`); nothing
/// where that cannot be told for certain.
pub fn page_needs(
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> Option<Vec<Need>> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Some(Vec::new()); // refused by all of the daemon's handlers, or a file of its own
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    // Where the path was encoded, the daemon splits it after decoding, and may decode it again.
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

/// What the actions in a form need, wherever in it they stand.
fn form_needs(query: Option<&str>, body: &[u8]) -> Option<Vec<Need>> {
    let body = String::from_utf8_lossy(body);
    let mut needs = Vec::new();
    // Older releases of Python part fields by semicolons as well.
    for field in query
        .unwrap_or_default()
        .split(['&', ';'])
        .chain(body.split(['&', ';']))
    {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        match (&*form_text(name), &*form_text(value)) {
            // A field of this name chooses another page than the path does.
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
    fn what_names_no_method_is_refused() {
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
    fn a_call_is_plain_if_it_names_its_method_once_and_bare() {
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
    fn pages_need_what_they_do() {
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
    fn the_first_need_that_is_not_met_is_named() {
        let allow = allow(&["supervisor.get*", "supervisor.tailProcessLog"]);
        assert_eq!(allow.missing(&[STATUS, STDOUT]), None);
        assert_eq!(
            allow.missing(&[STATUS, STOP, START]),
            Some("supervisor.stopProcess")
        );
    }
}
