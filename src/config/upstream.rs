//! The address of supervisord, and the credentials that it requires.

use super::sources::Resolver;
use crate::daemon::conf::{Credentials, DaemonAddress, HttpServer, UnresolvedServer};

impl Resolver<'_> {
    /// The daemon's address and credentials. `None` if no source names the address; that mistake was
    /// recorded when the file was read.
    pub(super) fn daemon(&mut self) -> Option<(DaemonAddress, Option<Credentials>)> {
        let option = self
            .raw("supervisord")
            .map(|raw| DaemonAddress::parse(&raw.text).map_err(|reason| raw.error(reason)));
        let option = match option {
            Some(address) => Some(self.ok_or_record(address)?),
            None => None,
        };
        let servers = self.conf.as_ref().map_or(&[][..], |conf| &conf.servers);
        let unresolved = self.conf.iter().flat_map(|conf| &conf.unresolved_servers);
        let credentials = match &option {
            Some(address) => credentials_for(servers, unresolved, address),
            None => servers.first()?.credentials.clone(),
        };
        let address = option.or_else(|| Some(servers.first()?.address.clone()))?;
        Some((address, credentials))
    }
}

/// The credentials for an address. They come from the section with this address; else from a section whose
/// address contains a missing variable and may be this one; else from [`server_for`].
fn credentials_for<'a>(
    servers: &[HttpServer],
    mut unresolved: impl Iterator<Item = &'a UnresolvedServer>,
    address: &DaemonAddress,
) -> Option<Credentials> {
    let best = server_for(servers, address);
    let exact = best.filter(|server| is_same(&server.address, address));
    match (exact, unresolved.find(|server| server.may_be_at(address))) {
        (None, Some(unresolved)) => unresolved.credentials.clone(),
        _ => best.and_then(|server| server.credentials.clone()),
    }
}

/// The section that most likely belongs to an address: the one with this address; else one with the same
/// port or the same socket name, because host and directory differ in another container; else the first
/// with credentials that can be presented.
fn server_for<'a>(servers: &'a [HttpServer], address: &DaemonAddress) -> Option<&'a HttpServer> {
    let find = |condition: &dyn Fn(&HttpServer) -> bool| {
        let mut servers = servers.iter();
        servers.find(|server| condition(server))
    };
    find(&|server| is_same(&server.address, address))
        .or_else(|| find(&|server| is_similar(&server.address, address)))
        .or_else(|| find(&|server| usable_credentials(server).is_some()))
}

fn is_same(one: &DaemonAddress, other: &DaemonAddress) -> bool {
    let host = |name| {
        if name == "localhost" {
            "127.0.0.1"
        } else {
            name
        }
    };
    match (one, other) {
        (DaemonAddress::Tcp { host: a, port: p }, DaemonAddress::Tcp { host: b, port: q }) => {
            p == q && host(&**a) == host(b)
        }
        _ => one == other,
    }
}

fn is_similar(one: &DaemonAddress, other: &DaemonAddress) -> bool {
    match (one, other) {
        (DaemonAddress::Tcp { port: p, .. }, DaemonAddress::Tcp { port: q, .. }) => p == q,
        (DaemonAddress::Unix(p), DaemonAddress::Unix(q)) => p.file_name() == q.file_name(),
        _ => false,
    }
}

fn usable_credentials(server: &HttpServer) -> Option<&Credentials> {
    let credentials = server.credentials.as_ref();
    credentials.filter(|credentials| credentials.can_be_presented())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_the_section_that_fits_best() {
        let server = |url: &str, name: Option<(&str, &str)>| HttpServer {
            section: String::new(),
            address: DaemonAddress::parse(url).unwrap(),
            credentials: name
                .map(|(name, password)| Credentials::new(name.to_owned(), password.to_owned())),
            chmod: None,
            chown: None,
        };
        let servers = [
            server("unix:///run/a.sock", None),
            server("unix:///run/b.sock", Some(("b", "{SHA}00"))),
            server("http://127.0.0.1:9001", Some(("c", "c"))),
            server("http://127.0.0.1:9003", Some(("d", "d"))),
        ];
        for (url, expected) in [
            ("unix:///run/a.sock", None),
            ("unix:///mnt/a.sock", None),
            ("unix:///run/b.sock", None),
            ("unix:///run/e.sock", Some("c")),
            ("http://localhost:9003", Some("d")),
            ("http://supervisord:9003", Some("d")),
            ("http://supervisord:80", Some("c")),
        ] {
            let server = server_for(&servers, &DaemonAddress::parse(url).unwrap());
            let name = server
                .and_then(usable_credentials)
                .map(|credentials| &*credentials.username);
            assert_eq!(name, expected, "{url}");
        }
    }
}
