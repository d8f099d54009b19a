//! Who did what: what the log says of requests and changes. Never a value, never credentials.
//!
//! A leaf: others fill in what they know of a request, and say what came of it.

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

/// So much is shown of what a caller may make as long as he likes.
const MAX_SHOWN: usize = 200;
/// A reason has words of ours around what callers make.
const MAX_REASON: usize = 1000;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket, from a process of this account.
    Account(u32),
    /// It cannot be told.
    #[default]
    Unknown,
}

impl Peer {
    /// The same for all connections from one place.
    #[must_use]
    pub fn without_port(self) -> Self {
        match self {
            Peer::Tcp(address) => Peer::Tcp(SocketAddr::new(address.ip(), 0)),
            other => other,
        }
    }

    /// Where all these connections come from, as the log says it.
    fn place(self) -> String {
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

/// What is known of one request. Clones share it.
#[derive(Clone, Debug)]
pub struct Record(Arc<Known>);

#[derive(Debug)]
struct Known {
    peer: Peer,
    began: Instant,
    user: OnceLock<String>,
    method: OnceLock<String>,
}

impl Record {
    /// Begins with a request of `peer`.
    pub fn new(peer: Peer) -> Self {
        Record(Arc::new(Known {
            peer,
            began: Instant::now(),
            user: OnceLock::new(),
            method: OnceLock::new(),
        }))
    }

    /// That of the request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        let known = extensions.get::<Record>().cloned();
        known.unwrap_or_else(|| Record::new(Peer::Unknown))
    }

    /// Takes note of the user whose credentials were found right.
    pub fn let_in(&self, authorization: &HeaderValue) {
        if let Some(user) = user(authorization) {
            self.0.user.get_or_init(|| user);
        }
    }

    /// Takes note of what is called.
    pub fn calls(&self, method: &str) {
        self.0.method.get_or_init(|| shown(method));
    }

    /// Where the request came from.
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// The user who was let in, where somebody asked for one.
    pub fn user(&self) -> Option<&str> {
        self.0.user.get().map(String::as_str)
    }

    /// The method that was called.
    pub fn method(&self) -> Option<&str> {
        self.0.method.get().map(String::as_str)
    }

    /// Milliseconds since it came.
    pub fn millis(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The user name of HTTP's Basic scheme.
fn user(authorization: &HeaderValue) -> Option<String> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(encoded.trim()).ok()?;
    let (user, _) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    (!user.is_empty()).then(|| shown(user))
}

/// A text of a caller's on one line of the log.
pub fn shown(text: &str) -> String {
    on_one_line(text, MAX_SHOWN)
}

/// Why a call was refused, on one line of the log and without values.
pub fn reason(fault: &Fault) -> String {
    on_one_line(&without_values(fault), MAX_REASON)
}

fn on_one_line(text: &str, max: usize) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(max) {
        match letter {
            '"' | '\'' => shown.push(letter),
            _ => shown.extend(letter.escape_debug()),
        }
    }
    if text.chars().nth(max).is_some() {
        shown.push('…');
    }
    shown
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
    fn what_callers_send_stays_on_its_line() {
        assert_eq!(shown("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert!(shown(&"x".repeat(1000)).len() < 300);
    }
}
