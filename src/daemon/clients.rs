//! Distinguishes clients, which take turns for connections to the daemon.
//!
//! A client is an origin with credentials. Credentials only count after the daemon has accepted them,
//! because a client can present any. All requests of one origin with other credentials, or with none,
//! are one client.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode};

/// The largest number of accepted credentials that are remembered.
const MAX_ACCEPTED: usize = 256;
/// The network part of an IPv6 address: one machine may have all addresses of a /64 network.
const IPV6_NETWORK: u128 = u128::MAX << 64;

/// The origin of a connection. Each request has it among its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An IP address.
    Address(IpAddr),
    /// The pid of a process on this machine.
    Process(i32),
    /// The user id of a process that is not visible in the proxy's pid namespace.
    Account(u32),
}

impl Origin {
    /// Returns the origin of a TCP peer. All loopback addresses are one origin, because any program on
    /// this machine can use each of them.
    pub fn at(address: IpAddr) -> Self {
        Origin::Address(match address.to_canonical() {
            address if address.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK).into(),
            address => address,
        })
    }

    /// Returns the origin of a peer of a unix socket.
    pub fn with(credentials: &tokio::net::unix::UCred) -> Self {
        match credentials.pid() {
            Some(pid) if pid > 0 => Origin::Process(pid),
            _ => Origin::Account(credentials.uid()),
        }
    }
}

/// The client whose turn a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// The proxy itself.
    Proxy,
    /// A client at this origin, with the hash of its credentials if the daemon has accepted them.
    At(Option<Origin>, Option<u64>),
}

/// Distinguishes clients by the credentials that the daemon has accepted.
#[derive(Debug, Default)]
pub(super) struct Clients {
    hasher: RandomState,
    credentials: Mutex<Credentials>,
}

#[derive(Debug, Default)]
struct Credentials {
    /// Whether the daemon requires credentials, according to its file or because it has refused some.
    /// Otherwise it accepts any, so that they do not distinguish clients.
    are_required: bool,
    /// The hashes of the credentials that the daemon has accepted, the oldest first.
    accepted: VecDeque<u64>,
}

impl Clients {
    /// Returns the clients of a daemon whose configuration file does or does not require credentials.
    pub(super) fn new(are_required: bool) -> Self {
        Clients {
            credentials: Mutex::new(Credentials {
                are_required,
                accepted: VecDeque::new(),
            }),
            ..Clients::default()
        }
    }

    /// Returns whether the daemon has accepted the credentials in these headers, or requires none.
    pub(super) fn has_accepted(&self, headers: &HeaderMap) -> bool {
        let hash = headers.get(AUTHORIZATION).map(|value| self.hash(value));
        let credentials = self.credentials();
        !credentials.are_required || hash.is_some_and(|hash| credentials.accepted.contains(&hash))
    }

    /// Returns the client that sent a request with these extensions and headers.
    pub(super) fn client(&self, extensions: &Extensions, headers: &HeaderMap) -> Client {
        let hash = headers.get(AUTHORIZATION).map(|value| self.hash(value));
        let hash = hash.filter(|hash| self.credentials().accepted.contains(hash));
        Client::At(extensions.get().copied(), hash)
    }

    /// Records the status with which the daemon answered a request with this authorization.
    pub(super) fn record_verdict(&self, authorization: Option<&HeaderValue>, status: StatusCode) {
        let hash = authorization.map(|value| self.hash(value));
        let mut credentials = self.credentials();
        if status == StatusCode::UNAUTHORIZED {
            credentials.are_required = true;
            credentials.accepted.retain(|other| Some(*other) != hash);
        } else if let Some(hash) = hash
            && status == StatusCode::OK
            && credentials.are_required
            && !credentials.accepted.contains(&hash)
        {
            if credentials.accepted.len() >= MAX_ACCEPTED {
                credentials.accepted.pop_front();
            }
            credentials.accepted.push_back(hash);
        }
    }

    fn hash(&self, authorization: &HeaderValue) -> u64 {
        self.hasher.hash_one(authorization.as_bytes())
    }

    fn credentials(&self) -> MutexGuard<'_, Credentials> {
        self.credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_with(clients: &Clients, authorization: Option<&HeaderValue>) -> Client {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        clients.client(&Extensions::new(), &headers)
    }

    #[test]
    fn credentials_count_after_the_daemon_has_accepted_them() {
        let clients = Clients::default();
        let [good, bad] = ["Basic good", "Basic bad"].map(HeaderValue::from_static);
        let stranger = Client::At(None, None);
        clients.record_verdict(Some(&bad), StatusCode::OK);
        assert_eq!(client_with(&clients, Some(&bad)), stranger);
        clients.record_verdict(None, StatusCode::UNAUTHORIZED);
        clients.record_verdict(Some(&good), StatusCode::OK);
        let known = client_with(&clients, Some(&good));
        assert_ne!(known, stranger);
        clients.record_verdict(Some(&bad), StatusCode::UNAUTHORIZED);
        for authorization in [Some(&bad), None] {
            assert_eq!(client_with(&clients, authorization), stranger);
        }
        assert_eq!(client_with(&clients, Some(&good)), known);
        clients.record_verdict(Some(&good), StatusCode::UNAUTHORIZED);
        assert_eq!(client_with(&clients, Some(&good)), stranger);
    }

    #[test]
    fn the_number_of_remembered_credentials_is_limited() {
        let clients = Clients::default();
        clients.record_verdict(None, StatusCode::UNAUTHORIZED);
        for number in 0..=MAX_ACCEPTED {
            let authorization = HeaderValue::from_str(&format!("Basic {number}")).unwrap();
            clients.record_verdict(Some(&authorization), StatusCode::OK);
        }
        assert_eq!(clients.credentials().accepted.len(), MAX_ACCEPTED);
        let newest = HeaderValue::from_str(&format!("Basic {MAX_ACCEPTED}")).unwrap();
        assert_ne!(client_with(&clients, Some(&newest)), Client::At(None, None));
    }

    #[test]
    fn addresses_of_one_machine_are_one_origin() {
        let origin = |address: &str| Origin::at(address.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::2:3"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
        assert_eq!(origin("127.0.0.1"), origin("127.8.0.2"));
        assert_eq!(origin("127.0.0.1"), origin("::1"));
    }
}
