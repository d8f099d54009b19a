//! The addresses that the proxy listens on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::error::ConfigError;
use super::overlap;
use super::sources::Resolver;
use crate::daemon::conf::DaemonAddress;

/// Where the daemon itself has a port: the port after supervisord's own, on loopback.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);

/// An address to listen on. Displays as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// An address and a port; port 0 is any free one.
    Tcp(SocketAddr),
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Reads `127.0.0.1:9002`, `[::1]:9002`, `localhost:9002` or `unix:///PATH`.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.starts_with('/') && path.len() > 1 {
                return Ok(Self::Unix(path.into()));
            }
            return Err(format!(
                "the socket's path in `{text}` is not absolute; write unix:///run/twiddler/twiddler.sock, with three slashes"
            ));
        }
        if let Some(port) = text.strip_prefix("*:").or(text.strip_prefix(':')) {
            return Err(format!(
                "`{text}` would open a port to everybody; write 127.0.0.1:{port} for this machine, or 0.0.0.0:{port} if that is meant"
            ));
        }
        // The name has two addresses, and which comes first depends on the machine.
        let local = text
            .strip_prefix("localhost:")
            .map(|port| format!("127.0.0.1:{port}"));
        local.as_deref().unwrap_or(text).parse().map(Self::Tcp).map_err(|_| {
            format!("`{text}` is not an address to listen on; write 127.0.0.1:9002, [::1]:9002 or unix:///run/twiddler/twiddler.sock")
        })
    }

    /// Whether others than this machine's users can reach it.
    pub fn is_for_others(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Resolver<'_> {
    /// The addresses that are written; none where there is no such line.
    pub(super) fn listen(&mut self) -> Option<Vec<ListenAddr>> {
        let raw = self.raw("listen")?;
        if raw.items().next().is_none() {
            let none = format!("there is no address; write {DEFAULT_LISTEN}");
            self.mistakes.push(raw.wrong(none));
        }
        let mut addresses: Vec<ListenAddr> = Vec::new();
        for item in raw.items() {
            let address = ListenAddr::parse(item).map_err(|reason| raw.wrong(reason));
            let Some(address) = self.ok_or_record(address) else {
                continue;
            };
            let mut others = addresses.iter();
            match others.find(|other| overlap::is_included(other, &address)) {
                Some(other) if *other == address => {}
                Some(other) => self.mistakes.push(raw.wrong(format!(
                    "{address} and {other} are one place; leave one of them out"
                ))),
                None => addresses.push(address),
            }
        }
        Some(addresses)
    }

    /// A proxy where the daemon is to listen would talk to itself.
    pub(super) fn check_own_address(
        &mut self,
        listen: &[ListenAddr],
        daemon: Option<&DaemonAddress>,
    ) {
        let Some(daemon) = daemon else { return };
        let servers = self.conf.iter().flat_map(|conf| &conf.servers);
        let named = self.raw("supervisord").map(|raw| raw.origin);
        let server = servers.clone().find(|server| server.address == *daemon);
        let owner = match (&named, server) {
            (None, Some(server)) => format!("[{}]", server.section),
            (Some(origin), _) => origin.to_string(),
            (None, None) => "its file".to_owned(),
        };
        // Of other places in its file, only where the file is known to be about this machine.
        let others = servers
            .filter(|_| named.is_none())
            .map(|server| (&server.address, format!("[{}]", server.section)));
        let places: Vec<_> = [(daemon, owner)].into_iter().chain(others).collect();
        let origin = self.origin("listen");
        for address in listen {
            let mut places = places.iter();
            let taken = places.find(|(place, _)| overlap::is_daemons(address, place));
            if let Some((_, owner)) = taken {
                self.mistakes.push(ConfigError::BadValue {
                    origin: origin.clone(),
                    reason: format!(
                        "{address} is where supervisord listens, by {owner}; choose another address"
                    ),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_are_read_and_displayed() {
        for (text, shown) in [
            ("127.0.0.1:9002", "http://127.0.0.1:9002"),
            ("localhost:0", "http://127.0.0.1:0"),
            ("[::1]:9002", "http://[::1]:9002"),
            ("unix:///run/t.sock", "unix:///run/t.sock"),
        ] {
            assert_eq!(ListenAddr::parse(text).unwrap().to_string(), shown);
        }
    }
}
