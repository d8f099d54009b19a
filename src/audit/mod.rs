//! The record of each request for the log: who called which method. It never holds option values or
//! credentials.
//!
//! A leaf: other modules complete the record, and log the outcome.

mod flood;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Extensions, HeaderValue};

use crate::fault::without_values;
use crate::xmlrpc::Fault;

pub use flood::{Flood, Floods};

/// The largest number of characters of a client's text in the log.
const MAX_TEXT: usize = 200;
/// The largest number of characters of a reason in the log. It has the proxy's own words around a client's
/// text.
const MAX_REASON: usize = 1000;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A client over TCP.
    Tcp(SocketAddr),
    /// A client over a unix socket, with the uid of its process.
    Account(u32),
    /// The client is not known.
    #[default]
    Unknown,
}

impl Peer {
    /// The peer without its port, which is the same for all connections of one client.
    #[must_use]
    pub fn without_port(self) -> Self {
        match self {
            Peer::Tcp(address) => Peer::Tcp(SocketAddr::new(address.ip(), 0)),
            other => other,
        }
    }

    /// The address or account as text, without the port.
    fn source(self) -> String {
        match self {
            Peer::Tcp(address) => address.ip().to_string(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => write!(f, "{address}"),
            Peer::Account(uid) => write!(f, "uid:{uid}"),
            Peer::Unknown => f.write_str("?"),
        }
    }
}

/// The record of one request. Clones share it.
#[derive(Clone, Debug)]
pub struct Record(Arc<RecordState>);

#[derive(Debug)]
struct RecordState {
    peer: Peer,
    start: Instant,
    user: OnceLock<String>,
    method: OnceLock<String>,
}

impl Record {
    /// The record of a request of `peer` that begins now.
    pub fn new(peer: Peer) -> Self {
        Record(Arc::new(RecordState {
            peer,
            start: Instant::now(),
            user: OnceLock::new(),
            method: OnceLock::new(),
        }))
    }

    /// The record in a request's extensions; a new one if there is none.
    pub fn of(extensions: &Extensions) -> Self {
        let record = extensions.get::<Record>().cloned();
        record.unwrap_or_else(|| Record::new(Peer::Unknown))
    }

    /// Records the user in these credentials, which are valid.
    pub fn set_user(&self, authorization: &HeaderValue) {
        if let Some(user) = user(authorization) {
            self.0.user.get_or_init(|| user);
        }
    }

    /// Records the method that the request calls.
    pub fn set_method(&self, method: &str) {
        self.0.method.get_or_init(|| log_text(method));
    }

    /// The client that sent the request.
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// The authorized user; none if no credentials are required.
    pub fn user(&self) -> Option<&str> {
        self.0.user.get().map(String::as_str)
    }

    /// The method that the request calls; none for a page.
    pub fn method(&self) -> Option<&str> {
        self.0.method.get().map(String::as_str)
    }

    /// Milliseconds since the request began.
    pub fn millis(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The user name in credentials of HTTP's Basic scheme.
fn user(authorization: &HeaderValue) -> Option<String> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(encoded.trim()).ok()?;
    let (user, _) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    (!user.is_empty()).then(|| log_text(user))
}

/// A client's text for one line of the log: escaped, and cut if it is long.
pub fn log_text(text: &str) -> String {
    on_one_line(text, MAX_TEXT)
}

/// The text of a fault for one line of the log: without option values, escaped, and cut if it is long.
pub fn reason(fault: &Fault) -> String {
    on_one_line(&without_values(fault), MAX_REASON)
}

fn on_one_line(text: &str, max: usize) -> String {
    let mut line = String::new();
    for letter in text.chars().take(max) {
        match letter {
            '"' | '\'' => line.push(letter),
            _ => line.extend(letter.escape_debug()),
        }
    }
    if text.chars().nth(max).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_without_their_passwords() {
        for (header, expected) in [
            ("Basic am9lOnNlY3JldA==", Some("joe")),
            ("basic am9lOnNlOmNyZXQ=", Some("joe")),
            ("Basic OnNlY3JldA==", None),
            ("Basic am9l", None),
            ("Basic ???", None),
            ("Bearer am9lOnNlY3JldA==", None),
            ("", None),
        ] {
            let header = HeaderValue::from_static(header);
            assert_eq!(user(&header).as_deref(), expected, "{header:?}");
        }
    }

    #[test]
    fn texts_of_clients_are_escaped_and_cut() {
        assert_eq!(log_text("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert!(log_text(&"x".repeat(1000)).len() < 300);
    }
}
