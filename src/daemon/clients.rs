//! Whose turn a call takes: clients as far as they can be told apart before the daemon has judged
//! them.
//!
//! Anybody can present any credentials, so those tell clients apart only after the daemon has taken
//! them. All that come from one place with others, or with none, are one client.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode};

/// Credentials that are remembered because the daemon took them.
const MAX_TAKEN: usize = 256;
/// One machine may have all IPv6 addresses that begin with the same half.
const OF_ONE_MACHINE: u128 = u128::MAX << 64;

/// Where a connection comes from. Each request carries it among its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Another address.
    Address(IpAddr),
    /// A process of this machine.
    Process(i32),
    /// A process that cannot be seen from here, of this account.
    Account(u32),
}

impl Origin {
    /// The peer at `address`. All programs of this machine have all of its loopback addresses.
    pub fn at(address: IpAddr) -> Self {
        Origin::Address(match address.to_canonical() {
            address if address.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & OF_ONE_MACHINE).into(),
            address => address,
        })
    }

    /// The peer with these credentials of a unix socket.
    pub fn with(credentials: &tokio::net::unix::UCred) -> Self {
        match credentials.pid() {
            Some(pid) if pid > 0 => Origin::Process(pid),
            _ => Origin::Account(credentials.uid()),
        }
    }
}

/// Whose turn a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// The proxy itself.
    Proxy,
    /// Somebody at this place, with the credentials of this number, if the daemon takes them.
    At(Option<Origin>, Option<u64>),
}

/// Tells clients apart.
#[derive(Debug, Default)]
pub(super) struct Clients {
    numbers: RandomState,
    credentials: Mutex<Credentials>,
}

#[derive(Debug, Default)]
struct Credentials {
    /// Whether the daemon asks for any, by its file or by having refused some. Otherwise it takes all,
    /// and they tell nothing.
    are_judged: bool,
    /// Numbers of those that it took, the oldest first.
    taken: VecDeque<u64>,
}

impl Clients {
    /// Those of a daemon whose file says whether it asks for credentials.
    pub(super) fn of(asks: bool) -> Self {
        Clients {
            credentials: Mutex::new(Credentials {
                are_judged: asks,
                taken: VecDeque::new(),
            }),
            ..Clients::default()
        }
    }

    /// Whether the daemon has taken what these headers present, or asks for nothing.
    pub(super) fn has_let_in(&self, headers: &HeaderMap) -> bool {
        let number = headers.get(AUTHORIZATION).map(|value| self.number(value));
        let credentials = self.credentials();
        !credentials.are_judged || number.is_some_and(|number| credentials.taken.contains(&number))
    }

    /// Whose turn a request with these extensions and headers takes.
    pub(super) fn client(&self, extensions: &Extensions, headers: &HeaderMap) -> Client {
        let number = headers.get(AUTHORIZATION).map(|value| self.number(value));
        let number = number.filter(|number| self.credentials().taken.contains(number));
        Client::At(extensions.get().copied(), number)
    }

    /// Takes note of what the daemon answered to somebody who presented this.
    pub(super) fn judged(&self, presented: Option<&HeaderValue>, status: StatusCode) {
        let number = presented.map(|value| self.number(value));
        let mut credentials = self.credentials();
        if status == StatusCode::UNAUTHORIZED {
            credentials.are_judged = true;
            credentials.taken.retain(|taken| Some(*taken) != number);
        } else if let Some(number) = number
            && status == StatusCode::OK
            && credentials.are_judged
            && !credentials.taken.contains(&number)
        {
            if credentials.taken.len() >= MAX_TAKEN {
                credentials.taken.pop_front();
            }
            credentials.taken.push_back(number);
        }
    }

    fn number(&self, presented: &HeaderValue) -> u64 {
        self.numbers.hash_one(presented.as_bytes())
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

    fn client_with(clients: &Clients, presented: Option<&HeaderValue>) -> Client {
        let mut headers = HeaderMap::new();
        if let Some(presented) = presented {
            headers.insert(AUTHORIZATION, presented.clone());
        }
        clients.client(&Extensions::new(), &headers)
    }

    #[test]
    fn credentials_count_once_the_daemon_has_taken_them() {
        let clients = Clients::default();
        let [good, bad] = ["Basic good", "Basic bad"].map(HeaderValue::from_static);
        let stranger = Client::At(None, None);
        clients.judged(Some(&bad), StatusCode::OK);
        assert_eq!(client_with(&clients, Some(&bad)), stranger);
        clients.judged(None, StatusCode::UNAUTHORIZED);
        clients.judged(Some(&good), StatusCode::OK);
        let known = client_with(&clients, Some(&good));
        assert_ne!(known, stranger);
        clients.judged(Some(&bad), StatusCode::UNAUTHORIZED);
        for presented in [Some(&bad), None] {
            assert_eq!(client_with(&clients, presented), stranger);
        }
        assert_eq!(client_with(&clients, Some(&good)), known);
        clients.judged(Some(&good), StatusCode::UNAUTHORIZED);
        assert_eq!(client_with(&clients, Some(&good)), stranger);
    }

    #[test]
    fn only_so_many_are_remembered() {
        let clients = Clients::default();
        clients.judged(None, StatusCode::UNAUTHORIZED);
        for number in 0..=MAX_TAKEN {
            let presented = HeaderValue::from_str(&format!("Basic {number}")).unwrap();
            clients.judged(Some(&presented), StatusCode::OK);
        }
        assert_eq!(clients.credentials().taken.len(), MAX_TAKEN);
        let newest = HeaderValue::from_str(&format!("Basic {MAX_TAKEN}")).unwrap();
        assert_ne!(client_with(&clients, Some(&newest)), Client::At(None, None));
    }

    #[test]
    fn addresses_of_one_machine_are_one_peer() {
        let peer = |address: &str| Origin::at(address.parse().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::2:3"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_eq!(peer("127.0.0.1"), peer("127.8.0.2"));
        assert_eq!(peer("127.0.0.1"), peer("::1"));
    }
}
