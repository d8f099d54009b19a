//! Compares addresses that may be spelled in different ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::listen::ListenAddr;
use crate::daemon::conf::DaemonAddress;

/// Whether a connection to the daemon's address would arrive at a listener on `listen`. If the ports are
/// the same, the addresses of a host name are looked up.
pub(super) fn is_daemons(listen: &ListenAddr, daemon: &DaemonAddress) -> bool {
    match (listen, daemon) {
        (ListenAddr::Tcp(here), DaemonAddress::Tcp { host, port }) => {
            here.port() == *port && addresses(host, *port).any(|ip| covers(here.ip(), ip))
        }
        (ListenAddr::Unix(here), DaemonAddress::Unix(there)) => is_same_file(here, there),
        _ => false,
    }
}

/// Whether a process cannot listen on both addresses.
pub(super) fn overlaps(first: &ListenAddr, second: &ListenAddr) -> bool {
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
            let resolved = (host, port).to_socket_addrs();
            resolved.map_or_else(
                |_| Vec::new(),
                |addresses| addresses.map(|address| address.ip()).collect(),
            )
        }
    };
    known.into_iter().map(|ip| ip.to_canonical())
}

fn loopback() -> Vec<IpAddr> {
    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

/// Whether a connection to `ip` arrives at a listener on `listen`.
fn covers(listen: IpAddr, ip: IpAddr) -> bool {
    let listen = listen.to_canonical();
    listen == ip
        || listen.is_unspecified() && (listen.is_ipv6() || ip.is_ipv4()) && is_of_this_machine(ip)
}

/// Whether this is an address of this machine: only these can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether two paths lead to the same file, or to the same name in the same directory.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let inode = |path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let resolved = |path: &Path| -> Option<PathBuf> {
        let dir = path.parent()?.canonicalize().ok()?;
        Some(dir.join(path.file_name()?))
    };
    let same = |one, other| one == other && Option::is_some(&one);
    one == other
        || same(inode(one), inode(other))
        || resolved(one).is_some_and(|one| Some(one) == resolved(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_address_is_recognised_in_every_spelling() {
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
            // An address of another machine.
            ("0.0.0.0:9001", "http://192.0.2.1:9001", false),
            ("127.0.0.1:9001", "unix:///run/s.sock", false),
            ("unix:///run/s.sock", "unix:///run/s.sock", true),
            ("unix:///run/../run/s.sock", "unix:///run/s.sock", true),
            ("unix:///run/t.sock", "unix:///run/s.sock", false),
        ] {
            let listen_addr = ListenAddr::parse(listen).unwrap();
            let daemon_addr = DaemonAddress::parse(daemon).unwrap();
            assert_eq!(
                is_daemons(&listen_addr, &daemon_addr),
                expected,
                "{listen} and {daemon}"
            );
        }
    }

    #[test]
    fn a_socket_is_recognised_by_another_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("run")).unwrap();
        std::os::unix::fs::symlink(path("run"), path("link")).unwrap();
        let is_same = || is_same_file(&path("link/s.sock"), &path("run/s.sock"));
        assert!(is_same(), "before the socket exists");
        let _socket = std::os::unix::net::UnixListener::bind(path("run/s.sock")).unwrap();
        assert!(is_same());
        std::os::unix::fs::symlink(path("run/s.sock"), path("other.sock")).unwrap();
        assert!(is_same_file(&path("other.sock"), &path("run/s.sock")));
        assert!(!is_same_file(&path("third.sock"), &path("run/s.sock")));
    }
}
