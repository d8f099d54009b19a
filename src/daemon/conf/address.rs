//! The address of a daemon.

use std::fmt;
use std::path::PathBuf;

use super::paths::normal_path;
use crate::python::is_space;

/// The address of a daemon. Displays as the URL that supervisorctl takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DaemonAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A host, an IPv6 address without its brackets, and a port.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl DaemonAddress {
    /// Parses `unix:///PATH` or `http://HOST:PORT`.
    ///
    /// # Errors
    /// A message with the mistake and the correct form. It does not repeat credentials.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') && path.len() > 1 {
                Ok(Self::Unix(normal_path(path).into()))
            } else {
                Err(format!(
                    "the socket's path in `{text}` is not absolute; write unix:///run/supervisor.sock, with three slashes"
                ))
            };
        }
        if text.contains('@') {
            return Err(
                "a user name or password does not belong into the address; write http://HOST:PORT, \
                 and both into the [inet_http_server] of supervisord.conf"
                    .to_owned(),
            );
        }
        if text.starts_with("https://") {
            return Err(format!(
                "supervisord speaks no TLS; write http:// for https:// in `{text}`"
            ));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(format!(
                "`{text}` is not an address of supervisord; write unix:///run/supervisor.sock or http://127.0.0.1:9001"
            ));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(format!(
                "`{text}` goes on after the port; write http://HOST:PORT"
            ));
        }
        host_and_port(rest).ok_or_else(|| {
            format!("`{text}` lacks a host, or a port from 1 to 65535; write http://127.0.0.1:9001")
        })
    }
}

fn host_and_port(text: &str) -> Option<DaemonAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let has_brackets = host.starts_with('[') && host.ends_with(']');
    let host = without_brackets(host);
    let is_valid =
        !host.is_empty() && !host.contains(is_space) && (has_brackets || !host.contains(':'));
    is_valid.then(|| DaemonAddress::Tcp {
        host: host.to_lowercase(),
        port,
    })
}

pub(super) fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_displayed() {
        let tcp = |host: &str, port| DaemonAddress::Tcp {
            host: host.to_owned(),
            port,
        };
        for (text, expected, url) in [
            (
                "unix:///run/s.sock",
                DaemonAddress::Unix("/run/s.sock".into()),
                "unix:///run/s.sock",
            ),
            (
                "unix:///run/../s@1",
                DaemonAddress::Unix("/s@1".into()),
                "unix:///s@1",
            ),
            (
                "http://127.0.0.1:9001",
                tcp("127.0.0.1", 9001),
                "http://127.0.0.1:9001",
            ),
            ("http://Host:1/", tcp("host", 1), "http://host:1"),
            ("http://[::1]:9001", tcp("::1", 9001), "http://[::1]:9001"),
        ] {
            let address = DaemonAddress::parse(text).unwrap();
            assert_eq!(address, expected, "{text}");
            assert_eq!(address.to_string(), url);
        }
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for text in [
            "",
            "/run/s.sock",
            "localhost:9001",
            "unix://run/s.sock",
            "unix:///",
            "https://h:1",
            "http://u:secret@h:1",
            "http://h:1/RPC2",
            "http://h",
            "http://h:0",
            "http://h:70000",
            "http://:1",
            "http://::1",
            "http://a b:1",
        ] {
            let reason = DaemonAddress::parse(text).unwrap_err();
            assert!(
                reason.contains("write ") && !reason.contains("secret"),
                "{text}: {reason}"
            );
        }
    }
}
