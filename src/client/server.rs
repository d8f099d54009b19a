//! The address of the server that a verb calls, and the credentials for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::uri::{Scheme, Uri};
use nix::unistd::{User, geteuid};
use percent_encoding::percent_decode_str;

use super::args::ClientOptions;
use super::connection::Address;
use super::error::Error;
use crate::config::{Draft, ListenAddr, ServeArgs};
use crate::daemon::conf::Credentials;

/// The server's address and the value of the header `Authorization`. Both come from the options, else
/// from the environment, else from supervisord's configuration file.
///
/// # Errors
/// The URL is not valid, no source names a server, or the socket's owner may not see the credentials.
pub fn resolve(options: &ClientOptions) -> Result<(Address, Option<HeaderValue>), Error> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let config = options.config.iter();
    let args = config.fold(ServeArgs::default(), |args, path| args.with("config", path));
    let draft = Draft::load(&args);
    let username = options.username.clone().or(env("TWIDDLER_CLIENT_USERNAME"));
    let password = options.password.clone().or(env("TWIDDLER_CLIENT_PASSWORD"));
    let credentials = match (username, password) {
        (None, None) => draft
            .daemon_conf
            .as_ref()
            .and_then(|conf| conf.supervisorctl.credentials.clone()),
        (username, password) => Some(Credentials::new(
            username.unwrap_or_default(),
            password.unwrap_or_default(),
        )),
    };
    if let Some(url) = options.server.clone().or_else(|| env("TWIDDLER_SERVER")) {
        let (address, in_url) = parse(&url)?;
        return Ok((address, in_url.or(credentials).as_ref().map(basic)));
    }
    let address = address_of(&draft)?;
    if let (Address::Unix(path), Some(_)) = (&address, &credentials) {
        require_trusted(path)?;
    }
    Ok((address, credentials.as_ref().map(basic)))
}

/// Where `twiddler serve` listens by this configuration: a unix socket if there is one.
fn address_of(draft: &Draft) -> Result<Address, Error> {
    let listen = &draft.settings.listen;
    let is_socket = |address: &&ListenAddr| matches!(address, ListenAddr::Unix(_));
    let address = listen.iter().find(is_socket).or(listen.first());
    match (address, &draft.daemon_conf) {
        (Some(ListenAddr::Unix(path)), Some(_)) => Ok(Address::Unix(path.clone())),
        (Some(ListenAddr::Tcp(address)), Some(_)) => Ok(Address::Tcp {
            host: reachable(address.ip()).to_string(),
            port: address.port(),
            tls: draft.settings.tls.is_some(),
        }),
        _ => {
            let mistakes: Vec<String> = draft.mistakes.iter().map(ToString::to_string).collect();
            Err(Error::Usage(format!(
                "no server is named: pass -s URL or set TWIDDLER_SERVER\n{}",
                mistakes.join("\n")
            )))
        }
    }
}

/// The address to connect to for an address to listen on: the loopback address for `0.0.0.0` and `::`.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Reads `http://[USER:PASSWORD@]HOST[:PORT]`, the same with `https`, or `unix:///PATH`.
fn parse(url: &str) -> Result<(Address, Option<Credentials>), Error> {
    if let Some(path) = url.strip_prefix("unix://") {
        return if path.starts_with('/') {
            Ok((Address::Unix(path.into()), None))
        } else {
            Err(invalid_url(
                url,
                "the socket's path is not absolute; write unix:///PATH",
            ))
        };
    }
    let uri: Uri = url.parse().map_err(|_| {
        invalid_url(
            url,
            "write http://HOST:PORT, https://HOST:PORT or unix:///PATH",
        )
    })?;
    let tls = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        _ => {
            return Err(invalid_url(
                url,
                "write http://, https:// or unix:// in front",
            ));
        }
    };
    if !matches!(uri.path(), "" | "/" | "/RPC2") {
        return Err(invalid_url(
            url,
            "a server has no path; write http://HOST:PORT",
        ));
    }
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let credentials = authority.rsplit_once('@').map(|(pair, _)| {
        let (username, password) = pair.split_once(':').unwrap_or((pair, ""));
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        Credentials::new(decoded(username), decoded(password))
    });
    let host = uri.host().unwrap_or_default();
    let address = Address::Tcp {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        tls,
    };
    Ok((address, credentials))
}

/// The error for a URL. A URL with `@` may contain a password and is not shown.
fn invalid_url(url: &str, reason: &str) -> Error {
    let shown = if url.contains('@') {
        "the server's URL".to_owned()
    } else {
        format!("`{url}`")
    };
    Error::Usage(format!("{shown} cannot be used: {reason}"))
}

/// The value of the header `Authorization` for HTTP basic authentication.
fn basic(credentials: &Credentials) -> HeaderValue {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    let text = format!("Basic {}", STANDARD.encode(pair));
    // Base64 is always a valid header value.
    let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Basic"));
    value.set_sensitive(true);
    value
}

/// Requires that root or this user owns the socket. Another user could have put a socket in the place of
/// the proxy's to collect credentials.
fn require_trusted(socket: &Path) -> Result<(), Error> {
    let Ok(metadata) = socket.metadata() else {
        return Ok(()); // the error of connecting says what is wrong
    };
    let uid = metadata.uid();
    if [0, geteuid().as_raw()].contains(&uid) {
        return Ok(());
    }
    let owner = User::from_uid(uid.into())
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    Err(Error::NotDone(format!(
        "{} belongs to {owner}, not to root or to you, so it gets no credentials: name the server \
         with -s if it is the right one",
        socket.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let tcp = |host: &str, port, tls| Address::Tcp {
            host: host.to_owned(),
            port,
            tls,
        };
        for (url, address, pair) in [
            (
                "unix:///run/t.sock",
                Address::Unix("/run/t.sock".into()),
                None,
            ),
            ("http://localhost:9002", tcp("localhost", 9002, false), None),
            ("http://[::1]:9002/", tcp("::1", 9002, false), None),
            (
                "https://sup.example/RPC2",
                tcp("sup.example", 443, true),
                None,
            ),
            ("http://a:b%40c@h:1", tcp("h", 1, false), Some(("a", "b@c"))),
        ] {
            let (parsed, credentials) = parse(url).unwrap();
            assert_eq!(parsed, address);
            let credentials = credentials.map(|parsed| (parsed.username, parsed.password));
            let pair = pair.map(|(name, word): (&str, &str)| (name.to_owned(), word.to_owned()));
            assert_eq!(credentials, pair, "{url}");
        }
        for url in [
            "",
            "localhost:9002",
            "ftp://h",
            "unix://run/t.sock",
            "http://h/x",
        ] {
            assert!(matches!(parse(url), Err(Error::Usage(_))), "{url}");
        }
        let error = parse("ftp://a:secret@h").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
