//! Who can reach the proxy: its addresses, and what stands before them.

use std::path::Path;

use super::error::ConfigError;
use super::exposure::{Barrier, Upstream};
use super::listen::{DEFAULT_LISTEN, ListenAddr};
use super::overlap;
use super::socket::{self, SocketAccess, WrittenAccess};
use super::sources::Resolver;
use crate::access::basic_auth::Login;
use crate::daemon::conf::{Credentials, DaemonAddress, HttpServer};

/// Who can reach the proxy.
#[derive(Default)]
pub(super) struct Reach {
    pub(super) listen: Vec<ListenAddr>,
    pub(super) socket: SocketAccess,
    pub(super) port_login: Option<Login>,
    pub(super) is_beside_daemon: bool,
    pub(super) warnings: Vec<String>,
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

    /// Who can reach the proxy: its addresses, and what stands before them. An address that opens
    /// what the daemon keeps shut is a mistake, unless that is meant.
    pub(super) fn reach(
        &mut self,
        listen: Option<Vec<ListenAddr>>,
        socket: WrittenAccess,
        daemon: Option<&(DaemonAddress, Option<Credentials>)>,
        has_login: bool,
    ) -> Reach {
        let meant = self.is_on("allow_open");
        let mut reach = Reach {
            socket: socket.over(SocketAccess::default()),
            ..Reach::default()
        };
        let Some((address, credentials)) = daemon else {
            reach.listen = listen.unwrap_or_default();
            return reach;
        };
        let servers = self.conf.as_ref().map(|conf| conf.servers.clone());
        let servers = servers.unwrap_or_default();
        let upstream = Upstream {
            servers: &servers,
            address,
            credentials: credentials.as_ref(),
        };
        let exposure = upstream.exposure();
        if let Barrier::Port(asked) = &exposure.barrier {
            // A digest that is none is a mistake that the daemon finds before us.
            reach.port_login = Login::new(&asked.username, &asked.password).ok();
        }
        let server = servers.iter().find(|server| server.address == *address);
        reach.listen = match (listen, address) {
            (Some(listen), _) => self.closed(listen, &upstream, server, meant || has_login),
            (None, DaemonAddress::Unix(daemons)) if !exposure.port_by_default => {
                reach.is_beside_daemon = true;
                reach.socket = socket.over(socket::access_of(daemons, server));
                self.beside(daemons).into_iter().collect()
            }
            (None, _) => vec![ListenAddr::Tcp(DEFAULT_LISTEN)],
        };
        if !has_login {
            reach.warnings = opened(&reach.listen, &upstream, server);
        }
        reach.warnings.extend(self.shown_password());
        reach
    }

    /// These addresses; with a mistake for each that opens what the daemon keeps shut, unless that
    /// is `allowed`.
    fn closed(
        &mut self,
        listen: Vec<ListenAddr>,
        upstream: &Upstream<'_>,
        server: Option<&HttpServer>,
        allowed: bool,
    ) -> Vec<ListenAddr> {
        let Some(raw) = self.raw("listen").filter(|_| !allowed) else {
            return listen;
        };
        let is_for_all = is_for_all(upstream.address, server);
        for address in &listen {
            let Some(guard) = upstream.keeps_out(address, is_for_all) else {
                continue;
            };
            let others = if address.is_for_others() {
                "callers"
            } else {
                "accounts of this machine"
            };
            let instead = match upstream.address {
                DaemonAddress::Unix(_) => socket::advice(),
                DaemonAddress::Tcp { .. } => format!("listen = {DEFAULT_LISTEN}"),
            };
            self.mistakes.push(raw.wrong(format!(
                "{address} would let in {others} that supervisord keeps out ({guard}); write username = NAME and password = PASSWORD in [twiddler], or {instead}, or --allow-open if all who reach that address may run commands here"
            )));
        }
        listen
    }

    /// The socket beside the daemon's, where there can be one.
    fn beside(&mut self, daemons: &Path) -> Option<ListenAddr> {
        let made = socket::beside(daemons).map_err(|reason| {
            let file = self.conf.as_ref().map(|conf| conf.file.clone());
            ConfigError::NoListen {
                file: file.unwrap_or_default(),
                reason,
                instead: socket::advice(),
            }
        });
        self.ok_or_record(made).map(ListenAddr::Unix)
    }
}

/// A warning for each address that opens what the daemon keeps shut.
fn opened(
    listen: &[ListenAddr],
    upstream: &Upstream<'_>,
    server: Option<&HttpServer>,
) -> Vec<String> {
    let is_for_all = is_for_all(upstream.address, server);
    let opened = listen
        .iter()
        .filter(|address| upstream.keeps_out(address, is_for_all).is_some());
    let opened = opened.map(|address| {
        format!("{address} is open: whoever reaches it can run commands as supervisord's user")
    });
    opened.collect()
}

/// Whether every account may open the daemon's socket.
fn is_for_all(daemon: &DaemonAddress, server: Option<&HttpServer>) -> bool {
    matches!(daemon, DaemonAddress::Unix(socket) if socket::is_for_all(socket, server))
}
