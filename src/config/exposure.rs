//! How open the proxy may be: never more than the daemon's own listeners.
//!
//! Pure: what the files and the sockets of this machine say is looked up by `listen`.

use std::net::IpAddr;

use super::listen::ListenAddr;
use crate::daemon::conf::{Credentials, DaemonAddress, HttpServer};

/// How the daemon is reached, and by whom else.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// The listeners that the daemon's file gives it.
    pub servers: &'a [HttpServer],
    /// Where the proxy reaches it.
    pub address: &'a DaemonAddress,
    /// What it asks for there.
    pub credentials: Option<&'a Credentials>,
}

/// What stands between an account of this machine and the daemon, if the proxy has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Nothing: the daemon has a port that asks for nothing.
    None,
    /// Credentials, which the daemon asks for where the proxy reaches it.
    Daemon,
    /// Credentials of the daemon's port. The proxy reaches the daemon through the socket, so it has
    /// to ask for them itself.
    Port(Credentials),
    /// The permissions of the daemon's socket, and a port of the proxy would be a way around them.
    Socket,
}

/// What the daemon's own listeners allow the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Whether the proxy listens on a port where nothing says where it shall listen.
    pub port_by_default: bool,
    /// What callers of a port of the proxy have to overcome.
    pub barrier: Barrier,
}

impl Upstream<'_> {
    /// What the daemon's listeners allow.
    ///
    /// An address that is not in the daemon's file may lead to another machine or container, whose
    /// ports are not those of this one: then it alone counts.
    pub fn exposure(&self) -> Exposure {
        let ports = self.ports();
        let is_open = ports.contains(&None);
        let is_port = matches!(self.address, DaemonAddress::Tcp { .. });
        let same_on_port = ports.contains(&self.credentials);
        let barrier = match (self.credentials, ports.first().copied().flatten()) {
            (None, _) if is_open => Barrier::None,
            (None, Some(asked)) if !asked.is_unexpanded => Barrier::Port(asked.clone()),
            // What the port asks for is not known here, so nobody can be asked for it.
            (None, _) => Barrier::Socket,
            (Some(own), Some(asked))
                if !is_open && !same_on_port && own.can_be_presented() && !asked.is_unexpanded =>
            {
                Barrier::Port(asked.clone())
            }
            (Some(_), _) => Barrier::Daemon,
        };
        // A digest cannot be presented to the daemon, so who knows the port's password alone would
        // not get through.
        let passes = is_open || same_on_port || matches!(barrier, Barrier::Port(_));
        Exposure {
            port_by_default: is_port || passes,
            barrier,
        }
    }

    /// What each port of the daemon asks for. Where the proxy reaches it through a port, that one
    /// alone counts: its callers are judged there.
    fn ports(&self) -> Vec<Option<&Credentials>> {
        if matches!(self.address, DaemonAddress::Tcp { .. }) {
            return vec![self.credentials];
        }
        let of_file = self
            .servers
            .iter()
            .any(|server| server.address == *self.address);
        let ports = self
            .servers
            .iter()
            .filter(|server| of_file && matches!(server.address, DaemonAddress::Tcp { .. }));
        ports.map(|server| server.credentials.as_ref()).collect()
    }

    /// What keeps callers out of the daemon whom a listener would let in, if the proxy asks for no
    /// credentials of its own. `socket_for_all` says whether every account may open the daemon's
    /// socket.
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

/// The mode of a socket like another one whose owner or group it does not have: those who were
/// judged by these may now be judged by other digits, so none of these may allow them more.
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

    /// A password with a variable that is not set here.
    const UNREAD: &str = "%(ENV_X)s";

    /// A server: where it listens, and the password that it asks for.
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

    /// What a daemon with these servers allows, of which the proxy uses the first.
    fn exposure(servers: &[Server]) -> Exposure {
        let servers: Vec<_> = servers.iter().map(server).collect();
        let upstream = Upstream {
            servers: &servers,
            address: &servers[0].address,
            credentials: servers[0].credentials.as_ref(),
        };
        upstream.exposure()
    }

    fn port_asks(password: &str) -> Barrier {
        Barrier::Port(credentials(Some(password)).unwrap())
    }

    #[test]
    fn a_port_is_the_default_where_the_daemon_has_one_that_is_as_open() {
        for (servers, port_by_default, barrier) in [
            // The socket alone.
            (&[(SOCKET, None)][..], false, Barrier::Socket),
            (&[(SOCKET, Some("a"))], false, Barrier::Daemon),
            (&[(SOCKET, Some(DIGEST))], false, Barrier::Daemon),
            // A port alone, on loopback or wider.
            (&[(PORT, None)], true, Barrier::None),
            (&[(OTHER_PORT, None)], true, Barrier::None),
            (&[(PORT, Some("a"))], true, Barrier::Daemon),
            (&[(PORT, Some(DIGEST))], true, Barrier::Daemon),
            // Both: the proxy reaches the daemon through the socket.
            (&[(SOCKET, None), (PORT, None)], true, Barrier::None),
            (&[(SOCKET, None), (OTHER_PORT, None)], true, Barrier::None),
            (&[(SOCKET, None), (PORT, Some("a"))], true, port_asks("a")),
            (
                &[(SOCKET, None), (PORT, Some(DIGEST))],
                true,
                port_asks(DIGEST),
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
                port_asks("b"),
            ),
            (
                &[(SOCKET, Some("a")), (PORT, Some(DIGEST))],
                true,
                port_asks(DIGEST),
            ),
            // The proxy cannot present a digest for those who know the port's password.
            (
                &[(SOCKET, Some(DIGEST)), (PORT, Some("b"))],
                false,
                Barrier::Daemon,
            ),
            // A password that only the daemon knows: never more open than with a known one.
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
                port_asks("a"),
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
            // The proxy was told to use a port although there is a socket.
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
    fn ports_of_a_file_that_does_not_know_the_address_count_for_nothing() {
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
    fn a_listener_that_opens_what_is_shut_is_named() {
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
            let of_file: Vec<_> = servers.iter().map(server).collect();
            let upstream = Upstream {
                servers: &of_file,
                address: &of_file[0].address,
                credentials: of_file[0].credentials.as_ref(),
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
    fn a_socket_that_cannot_have_owner_or_group_is_open_to_fewer() {
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
