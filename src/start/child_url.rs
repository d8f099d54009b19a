//! The URL at which processes that supervisord starts reach the proxy.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::config::exposure::is_loopback;
use crate::config::{ListenAddr, Settings};
use crate::daemon::Daemon;
use crate::daemon::conf::DaemonAddress;
use crate::server::Listener;

/// The permission to connect to a socket (write), as the digit for others.
const CONNECT: u32 = 0o2;
/// The permission to enter a directory (execute), as the digit for others.
const ENTER: u32 = 0o1;

/// The URL of the proxy for processes that the daemon starts. `None` if the daemon may be on another
/// machine or in another container, or if every listener requires something that such a process lacks:
/// TLS, credentials of the proxy's own, or a permission.
pub async fn child_url(
    listeners: &[Listener],
    settings: &Settings,
    daemon: &Daemon,
) -> Option<String> {
    let process = daemon.process().await;
    let is_here = match daemon.address() {
        // The pid of a process in another container is 0 here.
        DaemonAddress::Unix(_) => process.is_none_or(|process| process.pid() != Some(0)),
        DaemonAddress::Tcp { host, .. } => is_loopback(host),
    };
    if !is_here || settings.login.is_some() {
        return None;
    }
    let addresses: Vec<ListenAddr> = listeners
        .iter()
        .filter_map(|listener| listener.address().ok())
        .collect();
    let is_plain = settings.tls.is_none() && settings.port_login.is_none();
    let account = Account::of(process.map(|process| process.uid()));
    choose(&addresses, is_plain, |socket| account.can_reach(socket))
}

/// The first socket that `reaches` accepts, else the only port. `plain_ports` says that ports speak plain
/// HTTP and require no credentials.
fn choose(
    addresses: &[ListenAddr],
    plain_ports: bool,
    reaches: impl Fn(&Path) -> bool,
) -> Option<String> {
    let socket = addresses.iter().find(
        |address| matches!(address, ListenAddr::Unix(path) if is_writable(path) && reaches(path)),
    );
    let mut ports = addresses
        .iter()
        .filter(|address| matches!(address, ListenAddr::Tcp(_)));
    let port = match (ports.next(), ports.next()) {
        (Some(ListenAddr::Tcp(tcp)), None) if plain_ports && !tcp.ip().is_unspecified() => {
            Some(ListenAddr::Tcp(*tcp))
        }
        _ => None,
    };
    socket.cloned().or(port).map(|address| address.to_string())
}

/// Whether a path can be written in a section of the daemon's files without changes.
fn is_writable(path: &Path) -> bool {
    let is_plain = |text: &str| !text.contains(char::is_control) && text.trim() == text;
    path.to_str().is_some_and(is_plain)
}

/// An account and its groups. An unknown account has the permissions of others.
struct Account {
    uid: Option<u32>,
    groups: Vec<Gid>,
}

impl Account {
    fn of(uid: Option<u32>) -> Self {
        let user = uid.and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
        let groups = user.and_then(|user| {
            let name = CString::new(user.name).ok()?;
            getgrouplist(&name, user.gid).ok()
        });
        Account {
            uid,
            groups: groups.unwrap_or_default(),
        }
    }

    /// Whether the account may connect to the socket and enter all directories above it.
    fn can_reach(&self, socket: &Path) -> bool {
        let may = |path: &Path, right| {
            fs::metadata(path).is_ok_and(|metadata| {
                let mode = metadata.permissions().mode();
                self.may(mode, metadata.uid(), metadata.gid(), right)
            })
        };
        let dir = socket.parent().and_then(|dir| fs::canonicalize(dir).ok());
        may(socket, CONNECT) && dir.is_some_and(|dir| dir.ancestors().all(|dir| may(dir, ENTER)))
    }

    /// Whether the permissions of a file give the account `right`, a digit for others.
    fn may(&self, mode: u32, owner: u32, group: u32, right: u32) -> bool {
        match self.uid {
            Some(0) => true,
            Some(uid) if uid == owner => mode & (right << 6) != 0,
            _ if self.groups.contains(&Gid::from_raw(group)) => mode & (right << 3) != 0,
            _ => mode & right != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(addresses: &[&str], plain_ports: bool) -> Option<String> {
        let addresses: Vec<ListenAddr> = addresses
            .iter()
            .map(|text| match text.strip_prefix("unix://") {
                Some(path) => ListenAddr::Unix(path.into()),
                None => ListenAddr::Tcp(text.parse().unwrap()),
            })
            .collect();
        choose(&addresses, plain_ports, |path| !path.starts_with("/closed"))
    }

    #[test]
    fn a_reachable_socket_wins_over_the_only_port() {
        let (port, other) = ("127.0.0.1:9002", "127.0.0.1:9003");
        let (socket, closed) = ("unix:///run/t.sock", "unix:///closed/t.sock");
        let url = "http://127.0.0.1:9002";
        let table: [(&[&str], bool, Option<&str>); 11] = [
            (&[port], true, Some(url)),
            (&[port], false, None),
            (&[port, other], true, None),
            (&["0.0.0.0:9002"], true, None),
            (&["[::]:9002"], true, None),
            (&["[::1]:9002"], true, Some("http://[::1]:9002")),
            (&[port, socket], false, Some(socket)),
            (&[closed], true, None),
            (&[closed, port], true, Some(url)),
            (&[closed, socket, port], true, Some(socket)),
            (&["unix:///run/a\nb.sock", port], true, Some(url)),
        ];
        for (addresses, plain_ports, expected) in table {
            let url = chosen(addresses, plain_ports);
            assert_eq!(url.as_deref(), expected, "{addresses:?} {plain_ports}");
        }
    }

    #[test]
    fn permissions_are_those_of_owner_group_or_others() {
        const OWNER: u32 = 7;
        const GROUP: u32 = 8;
        let account = |uid, groups: &[u32]| Account {
            uid,
            groups: groups.iter().copied().map(Gid::from_raw).collect(),
        };
        let accounts = [
            account(Some(0), &[]),
            account(Some(OWNER), &[GROUP]),
            account(Some(9), &[1, GROUP]),
            account(Some(9), &[1]),
            account(None, &[]),
        ];
        let table = [
            (0o700, [true, true, false, false, false]),
            (0o020, [true, false, true, false, false]),
            (0o775, [true, true, true, false, false]),
            (0o002, [true, false, false, true, true]),
        ];
        for (mode, expected) in table {
            let may = accounts
                .each_ref()
                .map(|account| account.may(mode, OWNER, GROUP, CONNECT));
            assert_eq!(may, expected, "{mode:o}");
        }
    }
}
