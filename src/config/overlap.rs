//! Whether two addresses are the same place, however they are spelled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::listen::ListenAddr;
use crate::daemon::conf::DaemonAddress;

/// Whether who listens there would be called where the daemon is called. Of a host's name the
/// addresses are looked up, if the port is the same.
pub(super) fn is_daemons(listen: &ListenAddr, daemon: &DaemonAddress) -> bool {
    match (listen, daemon) {
        (ListenAddr::Tcp(here), DaemonAddress::Tcp { host, port }) => {
            here.port() == *port && addresses(host, *port).any(|ip| covers(here.ip(), ip))
        }
        (ListenAddr::Unix(here), DaemonAddress::Unix(there)) => is_same_file(here, there),
        _ => false,
    }
}

/// Whether the second cannot be listened on beside the first.
pub(super) fn is_included(first: &ListenAddr, second: &ListenAddr) -> bool {
    let is_part = |all: SocketAddr, one: SocketAddr| {
        all.port() == one.port() && one.port() != 0 && covers(all.ip(), one.ip())
    };
    match (first, second) {
        (ListenAddr::Tcp(first), ListenAddr::Tcp(second)) => {
            is_part(*first, *second) || is_part(*second, *first)
        }
        (ListenAddr::Unix(first), ListenAddr::Unix(second)) => is_same_file(first, second),
        _ => false,
    }
}

fn addresses(host: &str, port: u16) -> impl Iterator<Item = IpAddr> {
    let known: Vec<IpAddr> = match (host, host.parse::<IpAddr>()) {
        (_, Ok(ip)) if ip.is_unspecified() => loopback(),
        (_, Ok(ip)) => vec![ip],
        ("localhost", _) => loopback(),
        _ => {
            let found = (host, port).to_socket_addrs();
            found.map_or_else(|_| Vec::new(), |found| found.map(|one| one.ip()).collect())
        }
    };
    known.into_iter().map(|ip| ip.to_canonical())
}

fn loopback() -> Vec<IpAddr> {
    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

/// Whether a connection to `ip` arrives at a listener on `here`.
fn covers(here: IpAddr, ip: IpAddr) -> bool {
    let here = here.to_canonical();
    here == ip
        || here.is_unspecified() && (here.is_ipv6() || ip.is_ipv4()) && is_of_this_machine(ip)
}

/// Only what is an address of this machine can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let inode = |path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let place = |path: &Path| -> Option<PathBuf> {
        let dir = path.parent()?.canonicalize().ok()?;
        Some(dir.join(path.file_name()?))
    };
    let same = |one, other| one == other && Option::is_some(&one);
    one == other
        || same(inode(one), inode(other))
        || place(one).is_some_and(|one| Some(one) == place(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_own_address_is_known_in_every_spelling() {
        for (listen, daemon, expected) in [
            ("127.0.0.1:9001", "http://127.0.0.1:9001", true),
            ("127.0.0.1:9001", "http://localhost:9001", true),
            ("[::1]:9001", "http://localhost:9001", true),
            ("localhost:9001", "http://127.0.0.1:9001", true),
            ("0.0.0.0:9001", "http://127.0.0.1:9001", true),
            ("[::]:9001", "http://127.0.0.1:9001", true),
            ("[::]:9001", "http://localhost:9001", true),
            ("[::ffff:127.0.0.1]:9001", "http://127.0.0.1:9001", true),
            ("127.0.0.1:9001", "http://0.0.0.0:9001", true),
            ("127.0.0.1:9002", "http://127.0.0.1:9001", false),
            ("127.0.0.2:9001", "http://127.0.0.1:9001", false),
            // Another machine's.
            ("0.0.0.0:9001", "http://192.0.2.1:9001", false),
            ("127.0.0.1:9001", "unix:///run/s.sock", false),
            ("unix:///run/s.sock", "unix:///run/s.sock", true),
            ("unix:///run/../run/s.sock", "unix:///run/s.sock", true),
            ("unix:///run/t.sock", "unix:///run/s.sock", false),
        ] {
            let there = DaemonAddress::parse(daemon).unwrap();
            let here = ListenAddr::parse(listen).unwrap();
            assert_eq!(is_daemons(&here, &there), expected, "{listen} and {daemon}");
        }
    }

    #[test]
    fn a_socket_is_the_same_through_another_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("run")).unwrap();
        std::os::unix::fs::symlink(path("run"), path("link")).unwrap();
        let is_same = || is_same_file(&path("link/s.sock"), &path("run/s.sock"));
        assert!(is_same(), "before the daemon is there");
        let _socket = std::os::unix::net::UnixListener::bind(path("run/s.sock")).unwrap();
        assert!(is_same());
        std::os::unix::fs::symlink(path("run/s.sock"), path("other.sock")).unwrap();
        assert!(is_same_file(&path("other.sock"), &path("run/s.sock")));
        assert!(!is_same_file(&path("third.sock"), &path("run/s.sock")));
    }
}
