//! The proxy's listeners: their addresses, and which callers they serve.

use std::path::Path;

use super::error::ConfigError;
use super::exposure::{Barrier, Upstream};
use super::listen::{DEFAULT_LISTEN, ListenAddr};
use super::overlap;
use super::socket::{self, SocketAccess, SocketOptions};
use super::sources::Resolver;
use crate::access::basic_auth::Login;
use crate::daemon::conf::{Credentials, DaemonAddress, HttpServer};

/// The settings that decide which callers can reach the proxy. `Settings` has the same fields.
#[derive(Default)]
pub(super) struct Listeners {
    pub(super) listen: Vec<ListenAddr>,
    pub(super) socket: SocketAccess,
    pub(super) port_login: Option<Login>,
    pub(super) is_beside_daemon: bool,
    pub(super) warnings: Vec<String>,
}

impl Resolver<'_> {
    /// The addresses in the option `listen`; `None` if it is not set.
    pub(super) fn listen(&mut self) -> Option<Vec<ListenAddr>> {
        let raw = self.raw("listen")?;
        if raw.items().next().is_none() {
            let reason = format!("there is no address; write {DEFAULT_LISTEN}");
            self.mistakes.push(raw.error(reason));
        }
        let mut addresses: Vec<ListenAddr> = Vec::new();
        for item in raw.items() {
            let address = ListenAddr::parse(item).map_err(|reason| raw.error(reason));
            let Some(address) = self.ok_or_record(address) else {
                continue;
            };
            let mut others = addresses.iter();
            match others.find(|other| overlap::overlaps(other, &address)) {
                Some(other) if *other == address => {}
                Some(other) => self.mistakes.push(raw.error(format!(
                    "{address} and {other} are one place; leave one of them out"
                ))),
                None => addresses.push(address),
            }
        }
        Some(addresses)
    }

    /// Records a mistake for each address on which the daemon listens. A proxy that takes the daemon's
    /// address would call itself.
    pub(super) fn check_own_address(
        &mut self,
        listen: &[ListenAddr],
        daemon: Option<&DaemonAddress>,
    ) {
        let Some(daemon) = daemon else { return };
        let servers = self.conf.iter().flat_map(|conf| &conf.servers);
        let option = self.raw("supervisord").map(|raw| raw.origin);
        let server = servers.clone().find(|server| server.address == *daemon);
        let source = match (&option, server) {
            (None, Some(server)) => format!("[{}]", server.section),
            (Some(origin), _) => origin.to_string(),
            (None, None) => "its file".to_owned(),
        };
        // With the option `supervisord`, the other addresses in the file may belong to another machine.
        let others = servers
            .filter(|_| option.is_none())
            .map(|server| (&server.address, format!("[{}]", server.section)));
        let daemons: Vec<_> = [(daemon, source)].into_iter().chain(others).collect();
        let origin = self.origin("listen");
        for address in listen {
            let mut daemons = daemons.iter();
            let same = daemons.find(|(daemon, _)| overlap::is_daemons(address, daemon));
            if let Some((_, source)) = same {
                self.mistakes.push(ConfigError::BadValue {
                    origin: origin.clone(),
                    reason: format!(
                        "{address} is where supervisord listens, by {source}; choose another address"
                    ),
                });
            }
        }
    }

    /// Completes the options `listen` and `socket` by the defaults for this daemon. An address that serves
    /// callers that the daemon keeps out is a mistake, unless the proxy has credentials of its own
    /// (`has_login`) or `allow_open` is on.
    pub(super) fn listeners(
        &mut self,
        listen: Option<Vec<ListenAddr>>,
        socket: SocketOptions,
        daemon: Option<&(DaemonAddress, Option<Credentials>)>,
        has_login: bool,
    ) -> Listeners {
        let allow_open = self.is_on("allow_open");
        let mut listeners = Listeners {
            socket: socket.over(SocketAccess::default()),
            ..Listeners::default()
        };
        let Some((address, credentials)) = daemon else {
            listeners.listen = listen.unwrap_or_default();
            return listeners;
        };
        let servers = self.conf.as_ref().map(|conf| conf.servers.clone());
        let servers = servers.unwrap_or_default();
        let upstream = Upstream {
            servers: &servers,
            address,
            credentials: credentials.as_ref(),
        };
        let exposure = upstream.exposure();
        if let Barrier::Port(of_port) = &exposure.barrier {
            // The daemon itself reports a digest that is not valid.
            listeners.port_login = Login::new(&of_port.username, &of_port.password).ok();
        }
        let server = servers.iter().find(|server| server.address == *address);
        listeners.listen = match (listen, address) {
            (Some(listen), _) => {
                if !allow_open && !has_login {
                    self.refuse_open(&listen, &upstream, server);
                }
                listen
            }
            (None, DaemonAddress::Unix(daemons)) if !exposure.port_by_default => {
                listeners.is_beside_daemon = true;
                listeners.socket = socket.over(socket::access_of(daemons, server));
                self.beside(daemons).into_iter().collect()
            }
            (None, _) => vec![ListenAddr::Tcp(DEFAULT_LISTEN)],
        };
        if !has_login {
            listeners.warnings = open_warnings(&listeners.listen, &upstream, server);
        }
        listeners.warnings.extend(self.password_warning());
        listeners
    }

    /// Records a mistake for each address that serves callers that the daemon keeps out.
    fn refuse_open(
        &mut self,
        listen: &[ListenAddr],
        upstream: &Upstream<'_>,
        server: Option<&HttpServer>,
    ) {
        let Some(raw) = self.raw("listen") else {
            return;
        };
        let is_for_all = is_for_all(upstream.address, server);
        for address in listen {
            let Some(barrier) = upstream.keeps_out(address, is_for_all) else {
                continue;
            };
            let callers = if address.is_for_others() {
                "callers"
            } else {
                "accounts of this machine"
            };
            let instead = match upstream.address {
                DaemonAddress::Unix(_) => socket::advice(),
                DaemonAddress::Tcp { .. } => format!("listen = {DEFAULT_LISTEN}"),
            };
            self.mistakes.push(raw.error(format!(
                "{address} would let in {callers} that supervisord keeps out ({barrier}); write username = NAME and password = PASSWORD in [twiddler], or {instead}, or --allow-open if all who reach that address may run commands here"
            )));
        }
    }

    /// The default socket beside the daemon's; `None` and a mistake if it cannot be created.
    fn beside(&mut self, daemons: &Path) -> Option<ListenAddr> {
        let path = socket::beside(daemons).map_err(|reason| {
            let file = self.conf.as_ref().map(|conf| conf.file.clone());
            ConfigError::NoListen {
                file: file.unwrap_or_default(),
                reason,
                instead: socket::advice(),
            }
        });
        self.ok_or_record(path).map(ListenAddr::Unix)
    }
}

/// A warning for each address that serves callers that the daemon keeps out.
fn open_warnings(
    listen: &[ListenAddr],
    upstream: &Upstream<'_>,
    server: Option<&HttpServer>,
) -> Vec<String> {
    let is_for_all = is_for_all(upstream.address, server);
    listen
        .iter()
        .filter(|address| upstream.keeps_out(address, is_for_all).is_some())
        .map(|address| {
            format!("{address} is open: whoever reaches it can run commands as supervisord's user")
        })
        .collect()
}

/// Whether every account may connect to the daemon's socket.
fn is_for_all(daemon: &DaemonAddress, server: Option<&HttpServer>) -> bool {
    matches!(daemon, DaemonAddress::Unix(socket) if socket::is_for_all(socket, server))
}
