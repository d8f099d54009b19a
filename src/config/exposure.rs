//! Decides how open the proxy may be: never more open than the daemon's own listeners.
//!
//! This module is pure: `listeners` reads the permissions of sockets.

use std::net::IpAddr;

use super::listen::ListenAddr;
use crate::daemon::conf::{Credentials, DaemonAddress, HttpServer};

/// The daemon's listeners.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// The listeners in the daemon's file.
    pub servers: &'a [HttpServer],
    /// The address by which the proxy reaches the daemon.
    pub address: &'a DaemonAddress,
    /// The credentials that the daemon requires there.
    pub credentials: Option<&'a Credentials>,
}

/// What keeps accounts of this machine from calling the daemon through a port of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Nothing: the daemon itself has a port without credentials.
    None,
    /// The credentials that the daemon requires at the proxy's address for it. The daemon checks them.
    Daemon,
    /// The credentials that the daemon requires on its port. The proxy reaches the daemon by the socket, so
    /// the proxy has to check them.
    Port(Credentials),
    /// The permissions of the daemon's socket. A port of the proxy would bypass them.
    Socket,
}

/// How open the daemon's listeners allow the proxy to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Whether the proxy listens on a port if `listen` is not set.
    pub port_by_default: bool,
    /// The barrier for callers of a port of the proxy.
    pub barrier: Barrier,
}

impl Upstream<'_> {
    /// How open the daemon's listeners allow the proxy to be.
    ///
    /// An address that is not in the daemon's file may belong to another machine or container. Then the
    /// listeners in the file do not count, only this address.
    pub fn exposure(&self) -> Exposure {
        let ports = self.ports();
        let is_open = ports.contains(&None);
        let is_port = matches!(self.address, DaemonAddress::Tcp { .. });
        let same_on_port = ports.contains(&self.credentials);
        let barrier = match (self.credentials, ports.first().copied().flatten()) {
            (None, _) if is_open => Barrier::None,
            (None, Some(of_port)) if !of_port.is_unexpanded => Barrier::Port(of_port.clone()),
            // The port's credentials are not known here, so the proxy cannot check them.
            (None, _) => Barrier::Socket,
            (Some(own), Some(of_port))
                if !is_open
                    && !same_on_port
                    && own.can_be_presented()
                    && !of_port.is_unexpanded =>
            {
                Barrier::Port(of_port.clone())
            }
            (Some(_), _) => Barrier::Daemon,
        };
        // If the proxy cannot present its own credentials (a digest), callers with the port's credentials
        // cannot call the daemon through the proxy.
        let passes = is_open || same_on_port || matches!(barrier, Barrier::Port(_));
        Exposure {
            port_by_default: is_port || passes,
            barrier,
        }
    }

    /// The credentials that each port of the daemon requires. If the proxy reaches the daemon by a port,
    /// only this one counts, because the daemon checks callers there.
    fn ports(&self) -> Vec<Option<&Credentials>> {
        if matches!(self.address, DaemonAddress::Tcp { .. }) {
            return vec![self.credentials];
        }
        let is_in_file = self
            .servers
            .iter()
            .any(|server| server.address == *self.address);
        let ports = self
            .servers
            .iter()
            .filter(|server| is_in_file && matches!(server.address, DaemonAddress::Tcp { .. }));
        ports.map(|server| server.credentials.as_ref()).collect()
    }

    /// How the daemon keeps out callers that the proxy would serve on the address `listen` without
    /// credentials of its own; `None` if the daemon does not keep them out. `socket_for_all` says whether
    /// every account may connect to the daemon's socket.
    pub fn keeps_out(&self, listen: &ListenAddr, socket_for_all: bool) -> Option<&'static str> {
        const SOCKET: &str = "by the permissions of its socket";
        if listen.is_for_others() {
            return match self.address {
                DaemonAddress::Unix(_) => Some(SOCKET),
                DaemonAddress::Tcp { .. } if self.credentials.is_some() => {
                    Some("by a password that the proxy holds")
                }
                DaemonAddress::Tcp { host, .. } if is_loopback(host) => {
                    Some("by listening on this machine alone")
                }
                DaemonAddress::Tcp { .. } => None,
            };
        }
        let is_port = matches!(listen, ListenAddr::Tcp(_));
        (is_port && !socket_for_all && self.exposure().barrier == Barrier::Socket).then_some(SOCKET)
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

/// The mode for a socket that is to be like another one with this `mode`, but may lack its owner or its
/// group. An account that the owner's or the group's digit applied to falls under another digit then, so
/// that digit must not allow more.
pub fn narrowed(mode: u32, has_owner: bool, has_group: bool) -> u32 {
    let [owner, mut group, mut others] = [6, 3, 0].map(|shift| (mode >> shift) & 0o7);
    if !has_owner {
        group &= owner;
        others &= owner;
    }
    if !has_group {
        group &= others;
        others = group;
    }
    owner << 6 | group << 3 | others
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "unix:///run/supervisor.sock";
    const PORT: &str = "http://127.0.0.1:9001";
    const OTHER_PORT: &str = "http://10.0.0.5:9001";
    const DIGEST: &str = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4";

    /// A password from an environment variable that is not set.
    const UNREAD: &str = "%(ENV_X)s";

    /// The URL of a server, and the password that it requires.
    type Server = (&'static str, Option<&'static str>);

    fn credentials(password: Option<&str>) -> Option<Credentials> {
        password.map(|password| Credentials {
            is_unexpanded: password.starts_with('%'),
            ..Credentials::new("user".to_owned(), password.to_owned())
        })
    }

    fn server((url, password): &Server) -> HttpServer {
        HttpServer {
            section: String::new(),
            address: DaemonAddress::parse(url).unwrap(),
            credentials: credentials(*password),
            chmod: None,
            chown: None,
        }
    }

    /// The exposure for a daemon with these servers. The proxy calls it by the first.
    fn exposure(servers: &[Server]) -> Exposure {
        let servers: Vec<_> = servers.iter().map(server).collect();
        let upstream = Upstream {
            servers: &servers,
            address: &servers[0].address,
            credentials: servers[0].credentials.as_ref(),
        };
        upstream.exposure()
    }

    fn port_barrier(password: &str) -> Barrier {
        Barrier::Port(credentials(Some(password)).unwrap())
    }

    #[test]
    fn a_port_is_the_default_where_the_daemon_has_one_that_is_as_open() {
        for (servers, port_by_default, barrier) in [
            // Only a socket.
            (&[(SOCKET, None)][..], false, Barrier::Socket),
            (&[(SOCKET, Some("a"))], false, Barrier::Daemon),
            (&[(SOCKET, Some(DIGEST))], false, Barrier::Daemon),
            // Only a port, at a loopback or another address.
            (&[(PORT, None)], true, Barrier::None),
            (&[(OTHER_PORT, None)], true, Barrier::None),
            (&[(PORT, Some("a"))], true, Barrier::Daemon),
            (&[(PORT, Some(DIGEST))], true, Barrier::Daemon),
            // Both: the proxy reaches the daemon by the socket.
            (&[(SOCKET, None), (PORT, None)], true, Barrier::None),
            (&[(SOCKET, None), (OTHER_PORT, None)], true, Barrier::None),
            (
                &[(SOCKET, None), (PORT, Some("a"))],
                true,
                port_barrier("a"),
            ),
            (
                &[(SOCKET, None), (PORT, Some(DIGEST))],
                true,
                port_barrier(DIGEST),
            ),
            (&[(SOCKET, Some("a")), (PORT, None)], true, Barrier::Daemon),
            (
                &[(SOCKET, Some(DIGEST)), (PORT, None)],
                true,
                Barrier::Daemon,
            ),
            (
                &[(SOCKET, Some("a")), (PORT, Some("a"))],
                true,
                Barrier::Daemon,
            ),
            (
                &[(SOCKET, Some(DIGEST)), (PORT, Some(DIGEST))],
                true,
                Barrier::Daemon,
            ),
            (
                &[(SOCKET, Some("a")), (PORT, Some("b"))],
                true,
                port_barrier("b"),
            ),
            (
                &[(SOCKET, Some("a")), (PORT, Some(DIGEST))],
                true,
                port_barrier(DIGEST),
            ),
            // The proxy cannot present a digest on behalf of callers with the port's password.
            (
                &[(SOCKET, Some(DIGEST)), (PORT, Some("b"))],
                false,
                Barrier::Daemon,
            ),
            // A password that only the daemon knows does not make the proxy more open.
            (
                &[(SOCKET, None), (PORT, Some(UNREAD))],
                false,
                Barrier::Socket,
            ),
            (
                &[(SOCKET, Some("a")), (PORT, Some(UNREAD))],
                false,
                Barrier::Daemon,
            ),
            (
                &[(SOCKET, Some(UNREAD)), (PORT, Some("b"))],
                false,
                Barrier::Daemon,
            ),
            (&[(SOCKET, Some(UNREAD))], false, Barrier::Daemon),
            (&[(PORT, Some(UNREAD))], true, Barrier::Daemon),
            (
                &[(SOCKET, Some(UNREAD)), (PORT, Some(UNREAD))],
                true,
                Barrier::Daemon,
            ),
            // Several ports: the most open one counts.
            (
                &[(SOCKET, None), (PORT, Some("a")), (OTHER_PORT, None)],
                true,
                Barrier::None,
            ),
            (
                &[(SOCKET, None), (PORT, Some("a")), (OTHER_PORT, Some("b"))],
                true,
                port_barrier("a"),
            ),
            (
                &[
                    (SOCKET, Some("b")),
                    (PORT, Some("a")),
                    (OTHER_PORT, Some("b")),
                ],
                true,
                Barrier::Daemon,
            ),
            // The option `supervisord` names a port although there is a socket.
            (&[(PORT, Some("a")), (SOCKET, None)], true, Barrier::Daemon),
            (&[(PORT, None), (SOCKET, Some("a"))], true, Barrier::None),
        ] {
            assert_eq!(
                exposure(servers),
                Exposure {
                    port_by_default,
                    barrier
                },
                "{servers:?}"
            );
        }
    }

    #[test]
    fn ports_do_not_count_if_the_file_lacks_the_address() {
        let servers = [server(&(SOCKET, None)), server(&(PORT, None))];
        for (url, port_by_default, barrier) in [
            ("unix:///mnt/supervisor.sock", false, Barrier::Socket),
            ("http://supervisord:9001", true, Barrier::None),
        ] {
            let upstream = Upstream {
                servers: &servers,
                address: &DaemonAddress::parse(url).unwrap(),
                credentials: None,
            };
            assert_eq!(
                upstream.exposure(),
                Exposure {
                    port_by_default,
                    barrier
                },
                "{url}"
            );
        }
    }

    #[test]
    fn a_listener_that_is_more_open_than_the_daemon_is_found() {
        let (local, v6, all, unix) = (
            "127.0.0.1:9002",
            "[::1]:9002",
            "0.0.0.0:9002",
            "unix:///t.sock",
        );
        let (socket, password, machine) = (
            Some("by the permissions of its socket"),
            Some("by a password that the proxy holds"),
            Some("by listening on this machine alone"),
        );
        let closed = false;
        let for_all = true;
        for (servers, socket_for_all, listen, expected) in [
            (&[(SOCKET, None)][..], closed, local, socket),
            (&[(SOCKET, None)], closed, v6, socket),
            (&[(SOCKET, None)], closed, all, socket),
            (&[(SOCKET, None)], closed, unix, None),
            (&[(SOCKET, None)], for_all, local, None),
            (&[(SOCKET, None)], for_all, all, socket),
            (&[(SOCKET, Some("a"))], closed, local, None),
            (&[(SOCKET, Some("a"))], closed, all, socket),
            (&[(SOCKET, None), (PORT, None)], closed, local, None),
            (&[(SOCKET, None), (PORT, None)], closed, all, socket),
            (&[(SOCKET, None), (PORT, Some("a"))], closed, local, None),
            (&[(PORT, None)], closed, local, None),
            (&[(PORT, None)], closed, all, machine),
            (&[(PORT, Some("a"))], closed, local, None),
            (&[(PORT, Some("a"))], closed, all, password),
            (&[(OTHER_PORT, None)], closed, all, None),
        ] {
            let in_file: Vec<_> = servers.iter().map(server).collect();
            let upstream = Upstream {
                servers: &in_file,
                address: &in_file[0].address,
                credentials: in_file[0].credentials.as_ref(),
            };
            let listen = ListenAddr::parse(listen).unwrap();
            assert_eq!(
                upstream.keeps_out(&listen, socket_for_all),
                expected,
                "{servers:?} {listen}"
            );
        }
    }

    #[test]
    fn a_mode_is_narrowed_without_the_owner_or_the_group() {
        for (mode, has_owner, has_group, expected) in [
            (0o700, true, true, 0o700),
            (0o770, true, true, 0o770),
            (0o777, true, true, 0o777),
            (0o770, false, true, 0o770),
            (0o070, false, true, 0o000),
            (0o770, true, false, 0o700),
            (0o770, false, false, 0o700),
            (0o777, true, false, 0o777),
            (0o777, false, false, 0o777),
            (0o707, true, false, 0o700),
            (0o762, true, false, 0o722),
            (0o600, false, false, 0o600),
        ] {
            assert_eq!(
                narrowed(mode, has_owner, has_group),
                expected,
                "{mode:o} {has_owner} {has_group}"
            );
        }
    }
}
