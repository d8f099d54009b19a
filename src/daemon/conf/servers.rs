//! The sections that make the daemon listen, and the `[supervisorctl]` section.

use super::address::{DaemonAddress, without_brackets};
use super::credentials::Credentials;
use super::error::{ConfError, MissingVariable};
use super::expand::home;
use super::ini::{INET_SERVER, Section, UNIX_SERVER};
use super::paths::absolute;
use super::reader::Reader;
use crate::python::{int, strip};

/// A section that makes the daemon listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpServer {
    /// The name of the section.
    pub section: String,
    /// The address to which clients connect.
    pub address: DaemonAddress,
    /// The credentials that clients have to present. With an empty user name, the daemon requires none.
    pub credentials: Option<Credentials>,
    /// The text of `chmod` for the unix socket.
    pub chmod: Option<String>,
    /// The text of `chown` for the unix socket.
    pub chown: Option<String>,
}

/// A section whose address has a variable that is not set in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnresolvedServer {
    /// The missing variable.
    pub missing: MissingVariable,
    /// The same as [`HttpServer::credentials`].
    pub credentials: Option<Credentials>,
}

impl UnresolvedServer {
    /// Returns whether the section may be the one that listens at `address`.
    pub fn may_be_at(&self, address: &DaemonAddress) -> bool {
        self.missing.section.starts_with(UNIX_SERVER) == matches!(address, DaemonAddress::Unix(_))
    }
}

/// The `[supervisorctl]` section (`supervisor/options.py`, `ClientOptions.read_config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervisorctl {
    /// The URL to which supervisorctl connects, expanded.
    pub serverurl: Option<String>,
    /// The credentials that supervisorctl presents, or `None` if neither user name nor password is set.
    pub credentials: Option<Credentials>,
}

impl Reader<'_> {
    /// Returns the sections that make the daemon listen, and those with an unknown address.
    pub(super) fn servers(&mut self) -> (Vec<HttpServer>, Vec<UnresolvedServer>) {
        let unix = self.sections.starting_with(UNIX_SERVER);
        let sections = unix.chain(self.sections.starting_with(INET_SERVER));
        let sections: Vec<Section> = sections.cloned().collect();
        if sections.is_empty() {
            self.mistakes.push(ConfError::NoServer {
                file: self.file.clone(),
            });
        }
        let mut unresolved = Vec::new();
        let servers = sections.iter();
        let servers = servers.filter_map(|section| self.server(section, &mut unresolved));
        (servers.collect(), unresolved)
    }

    fn server(
        &mut self,
        section: &Section,
        unresolved: &mut Vec<UnresolvedServer>,
    ) -> Option<HttpServer> {
        let address = if section.name.starts_with(UNIX_SERVER) {
            self.unix_address(section)
        } else {
            self.inet_address(section)
        };
        let (address, missing) = match address {
            Err(ConfError::Variable(missing)) => (None, Some(missing)),
            address => (self.collect_mistake(address), None),
        };
        let credentials = self.credentials(section);
        let credentials = self.collect_mistake(credentials);
        if let (Some(missing), Some(credentials)) = (missing, &credentials) {
            let credentials = credentials.clone();
            unresolved.push(UnresolvedServer {
                missing,
                credentials,
            });
        }
        // Invalid texts are not checked, because the daemon does not start with them.
        let text = |key| self.text(&section.name, key);
        Some(HttpServer {
            section: section.name.clone(),
            address: address?,
            credentials: credentials?,
            chmod: text("chmod"),
            chown: text("chown"),
        })
    }

    fn unix_address(&self, section: &Section) -> Result<DaemonAddress, ConfError> {
        let example = "/run/supervisor.sock";
        let (path, _) = self.required(&section.name, "file", &section.file, example)?;
        let path = home(strip(&path), self.names.outer);
        Ok(DaemonAddress::Unix(absolute(&path).into()))
    }

    fn inet_address(&self, section: &Section) -> Result<DaemonAddress, ConfError> {
        let (value, file) =
            self.required(&section.name, "port", &section.file, "127.0.0.1:9001")?;
        let (host, port) = value.rsplit_once(':').unwrap_or(("", &value));
        let port = int(port).value().and_then(|port| u16::try_from(port).ok());
        let Some(port) = port.filter(|port| *port > 0) else {
            let problem = format!(
                "port: `{value}` is no port from 1 to 65535, alone or after a host and a colon; write port = 127.0.0.1:9001"
            );
            return Err(ConfError::section(file, &section.name, problem));
        };
        let host = match &*host.to_lowercase() {
            // The daemon listens on all addresses of the machine.
            "" | "*" | "0.0.0.0" => "127.0.0.1".to_owned(),
            host => without_brackets(host).to_owned(),
        };
        Ok(DaemonAddress::Tcp { host, port })
    }

    fn credentials(&mut self, section: &Section) -> Result<Option<Credentials>, ConfError> {
        let before = self.missing.len();
        let username = self.value_or_text(&section.name, "username")?;
        let password = self.value_or_text(&section.name, "password")?;
        let is_unexpanded = self.missing.len() > before;
        let incomplete = |file, present, absent| {
            let problem = format!("has a {present} but no {absent}; write both or neither");
            Err(ConfError::section(file, &section.name, problem))
        };
        match (username, password) {
            (Some((_, file)), None) => incomplete(file, "username", "password"),
            (None, Some((_, file))) => incomplete(file, "password", "username"),
            // With an empty user name the daemon requires no credentials (`supervisor/http.py`,
            // `make_http_servers`).
            (Some((username, _)), Some((password, _))) if !username.is_empty() => {
                Ok(Some(Credentials {
                    username,
                    password,
                    is_unexpanded,
                }))
            }
            _ => Ok(None),
        }
    }

    /// Reads `[supervisorctl]`. Values that cannot be expanded are left out.
    pub(super) fn supervisorctl(&self) -> Supervisorctl {
        let text = |key: &str| self.text("supervisorctl", key);
        let (username, password) = (text("username"), text("password"));
        let credentials = (username.is_some() || password.is_some())
            .then(|| Credentials::new(username.unwrap_or_default(), password.unwrap_or_default()));
        Supervisorctl {
            serverurl: text("serverurl"),
            credentials,
        }
    }
}
