//! Where supervisord is, and what the proxy presents to it.

use super::sources::Resolver;
use crate::daemon::conf::{Credentials, DaemonAddress, HttpServer, UnresolvedServer};

impl Resolver<'_> {
    /// Where the daemon is, and what to present to it. Where nothing says so, the mistake has been
    /// reported with the file.
    pub(super) fn daemon(&mut self) -> Option<(DaemonAddress, Option<Credentials>)> {
        let named = self
            .raw("supervisord")
            .map(|raw| DaemonAddress::parse(&raw.text).map_err(|reason| raw.wrong(reason)));
        let named = match named {
            Some(address) => Some(self.ok_or_record(address)?),
            None => None,
        };
        let servers = self.conf.as_ref().map_or(&[][..], |conf| &conf.servers);
        let unresolved = self.conf.iter().flat_map(|conf| &conf.unresolved_servers);
        let credentials = match &named {
            Some(address) => credentials_for(servers, unresolved, address),
            None => servers.first()?.credentials.clone(),
        };
        let address = named.or_else(|| Some(servers.first()?.address.clone()))?;
        Some((address, credentials))
    }
}

/// What fits an address: the credentials of the section of this address; else of one whose address
/// is not known and may be this; else of that of [`server_for`].
fn credentials_for<'a>(
    servers: &[HttpServer],
    mut unresolved: impl Iterator<Item = &'a UnresolvedServer>,
    address: &DaemonAddress,
) -> Option<Credentials> {
    let fitting = server_for(servers, address);
    let same = fitting.filter(|server| is_same(&server.address, address));
    match (same, unresolved.find(|server| server.may_be_at(address))) {
        (None, Some(unresolved)) => unresolved.credentials.clone(),
        _ => fitting.and_then(|server| server.credentials.clone()),
    }
}

/// The section whose credentials fit an address: the one of this address; else, as a proxy in
/// another container sees other hosts and directories, one with the same port or socket name; else
/// the first that has any.
fn server_for<'a>(servers: &'a [HttpServer], address: &DaemonAddress) -> Option<&'a HttpServer> {
    let find = |fits: &dyn Fn(&HttpServer) -> bool| servers.iter().find(|server| fits(server));
    find(&|server| is_same(&server.address, address))
        .or_else(|| find(&|server| is_alike(&server.address, address)))
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

fn is_alike(one: &DaemonAddress, other: &DaemonAddress) -> bool {
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
