//! The addresses that the proxy listens on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The default address if the daemon itself has a port: supervisord's default port plus one, on loopback.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);

/// An address to listen on. Displays as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// An address and a port. For the port 0 the kernel chooses a free one.
    Tcp(SocketAddr),
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Parses `127.0.0.1:9002`, `[::1]:9002`, `localhost:9002` or `unix:///PATH`.
    ///
    /// # Errors
    /// The text is no address to listen on. The error says what to write.
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
        // `localhost` has an IPv4 and an IPv6 address, whose order depends on the machine.
        let local = text
            .strip_prefix("localhost:")
            .map(|port| format!("127.0.0.1:{port}"));
        local.as_deref().unwrap_or(text).parse().map(Self::Tcp).map_err(|_| {
            format!("`{text}` is not an address to listen on; write 127.0.0.1:9002, [::1]:9002 or unix:///run/twiddler/twiddler.sock")
        })
    }

    /// Whether other machines can reach the address.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_are_parsed_and_displayed() {
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
