//! Listens on the configured addresses, and explains why an address is not available.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::{StartError, account};
use crate::access::HEALTH_PATH;
use crate::config::{ListenAddr, Settings, socket_advice};
use crate::server::{BindError, Listener};

/// How long the program that listens at an address may take to answer.
const OCCUPANT_TIME: Duration = Duration::from_secs(2);
/// How many bytes of its reply are read.
const OCCUPANT_REPLY: u64 = 4096;

/// Listens on one address.
///
/// # Errors
/// When another program listens there, or this one may not. The text says what to do.
pub async fn listen(address: &ListenAddr, settings: &Settings) -> Result<Listener, StartError> {
    match Listener::bind(address, &settings.socket).await {
        Ok(listener) => Ok(listener),
        Err(error) => Err(cannot_listen(address, settings, &error).await),
    }
}

/// Tries whether [`listen`] would work, and leaves no socket file. A port stays bound as long as the
/// returned listener exists.
///
/// # Errors
/// As [`listen`].
pub async fn try_listen(
    address: &ListenAddr,
    settings: &Settings,
) -> Result<Option<Listener>, StartError> {
    match Listener::try_bind(address, &settings.socket).await {
        Ok(listener) => Ok(listener),
        Err(error) => Err(cannot_listen(address, settings, &error).await),
    }
}

async fn cannot_listen(address: &ListenAddr, settings: &Settings, error: &BindError) -> StartError {
    let occupant = match error {
        BindError::Address(error) if error.kind() == ErrorKind::AddrInUse => {
            Some(occupant(address).await)
        }
        _ => None,
    };
    let text = match error {
        BindError::Owner(error) => format!(
            "{}: {} may not give the socket {address} to that owner ({error}); run twiddler as root, or write an owner and a group that it belongs to",
            settings.owner_origin,
            account()
        ),
        BindError::Address(error) => format!(
            "{}: {}",
            settings.listen_origin,
            about_address(address, error, occupant)
        ),
    };
    StartError::Misconfigured(text)
}

/// The program that listens at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    /// Another twiddler.
    Twiddler,
    /// Another program, or a twiddler that does not answer.
    Other,
}

fn about_address(address: &ListenAddr, error: &io::Error, occupant: Option<Occupant>) -> String {
    match (occupant, address, error.kind()) {
        (Some(Occupant::Twiddler), ..) => {
            format!("{address} is taken by another twiddler; stop it, or choose another address")
        }
        (Some(Occupant::Other), ..) => {
            format!("{address} is taken by another program; choose another address")
        }
        (_, ListenAddr::Tcp(tcp), ErrorKind::AddrNotAvailable) => format!(
            "{} is not an address of this machine; choose 127.0.0.1, or one that is",
            tcp.ip()
        ),
        (_, ListenAddr::Tcp(tcp), ErrorKind::PermissionDenied) => format!(
            "{} may not listen on port {}; choose one from 1024 on",
            account(),
            tcp.port()
        ),
        (_, ListenAddr::Unix(path), ErrorKind::NotFound) => format!(
            "the directory of {} does not exist; create it, or choose another path",
            path.display()
        ),
        (_, ListenAddr::Unix(path), ErrorKind::NotADirectory) => format!(
            "the directory of {} is not a directory; choose another path",
            path.display()
        ),
        (_, ListenAddr::Unix(path), ErrorKind::AlreadyExists) => format!(
            "{} exists and is not a socket; remove it, or choose another path",
            path.display()
        ),
        (_, ListenAddr::Unix(path), ErrorKind::InvalidInput) => format!(
            "{} is longer than the path of a socket may be (107 bytes); choose a shorter one",
            path.display()
        ),
        (_, ListenAddr::Unix(path), ErrorKind::PermissionDenied) => format!(
            "{} may not create a socket at {}; write {}",
            account(),
            path.display(),
            socket_advice()
        ),
        _ => format!("cannot listen on {address} ({error}); choose another address"),
    }
}

/// Finds out which program listens at an address, by a request for twiddler's health.
async fn occupant(address: &ListenAddr) -> Occupant {
    let request = async {
        match address {
            ListenAddr::Tcp(tcp) => has_health(TcpStream::connect(reachable(*tcp)).await?).await,
            ListenAddr::Unix(path) => has_health(UnixStream::connect(path).await?).await,
        }
    };
    match timeout(OCCUPANT_TIME, request).await {
        Ok(Ok(true)) => Occupant::Twiddler,
        _ => Occupant::Other,
    }
}

async fn has_health(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<bool> {
    let request =
        format!("GET {HEALTH_PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.take(OCCUPANT_REPLY).read_to_end(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).contains("{\"status\":\""))
}

/// The command line of `supervisorctl status` through the proxy; of curl if every listener speaks TLS,
/// which supervisorctl does not. It has credentials if the proxy requires them, or the daemon
/// (`daemon_asks`).
pub fn status_command(settings: &Settings, daemon_asks: bool) -> String {
    let socket = |address: &&ListenAddr| matches!(address, ListenAddr::Unix(_));
    let listen = &settings.listen;
    let chosen = match settings.tls {
        Some(_) => listen.iter().find(socket),
        None => listen.first(),
    };
    let is_port = matches!(chosen, Some(ListenAddr::Tcp(_)));
    let asks = daemon_asks || settings.login.is_some() || is_port && settings.port_login.is_some();
    let credentials = if asks { " -u USERNAME -p PASSWORD" } else { "" };
    match chosen {
        Some(address) => {
            let url = client_url(address);
            format!("supervisorctl -s {url}{credentials} status")
        }
        None => {
            let https = listen.first().map_or_else(String::new, ToString::to_string);
            let https = https.replacen("http://", "https://", 1);
            format!("curl {https}{HEALTH_PATH} (supervisorctl speaks no TLS)")
        }
    }
}

/// The address at which clients on this machine reach a listener.
pub fn client_url(address: &ListenAddr) -> ListenAddr {
    match address {
        ListenAddr::Tcp(tcp) => ListenAddr::Tcp(reachable(*tcp)),
        socket => socket.clone(),
    }
}

/// The address to connect to for an address to listen on: the loopback address for `0.0.0.0` and `::`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
