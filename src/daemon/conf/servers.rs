//! The sections that make the daemon listen, and what `[supervisorctl]` makes of them.

use super::address::{DaemonAddress, without_brackets};
use super::credentials::Credentials;
use super::error::{ConfError, MissingVariable};
use super::expand::home;
use super::ini::{INET_SERVER, Section, UNIX_SERVER};
use super::paths::absolute;
use super::reader::Reader;
use crate::python::{int, strip};

/// One section that makes the daemon listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpServer {
    /// The section's name.
    pub section: String,
    /// Where the daemon listens.
    pub address: DaemonAddress,
    /// What it asks of clients; none where its user name is empty, as the daemon has it.
    pub credentials: Option<Credentials>,
    /// The mode of its unix socket, as it is written.
    pub chmod: Option<String>,
    /// The owner of its unix socket, as it is written.
    pub chown: Option<String>,
}

/// A section that makes the daemon listen at an address that is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnplacedServer {
    /// What its address lacks.
    pub missing: MissingVariable,
    /// What it asks of clients, as [`HttpServer::credentials`].
    pub credentials: Option<Credentials>,
}

impl UnplacedServer {
    /// Whether it can be the one that listens at an address.
    pub fn may_be_at(&self, address: &DaemonAddress) -> bool {
        self.missing.section.starts_with(UNIX_SERVER) == matches!(address, DaemonAddress::Unix(_))
    }
}

/// What `[supervisorctl]` says (`supervisor/options.py`, `ClientOptions.read_config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervisorctl {
    /// Where supervisorctl connects, as written and expanded.
    pub serverurl: Option<String>,
    /// What supervisorctl presents; none where neither name nor password is set.
    pub credentials: Option<Credentials>,
}

impl Reader<'_> {
    /// The sections that make the daemon listen, and those whose address is not known.
    pub(super) fn servers(&mut self) -> (Vec<HttpServer>, Vec<UnplacedServer>) {
        let unix = self.sections.starting_with(UNIX_SERVER);
        let sections = unix.chain(self.sections.starting_with(INET_SERVER));
        let sections: Vec<Section> = sections.cloned().collect();
        if sections.is_empty() {
            self.mistakes.push(ConfError::NoServer {
                file: self.file.clone(),
            });
        }
        let mut unplaced = Vec::new();
        let servers = sections.iter();
        let servers = servers.filter_map(|section| self.server(section, &mut unplaced));
        (servers.collect(), unplaced)
    }

    fn server(
        &mut self,
        section: &Section,
        unplaced: &mut Vec<UnplacedServer>,
    ) -> Option<HttpServer> {
        let address = if section.name.starts_with(UNIX_SERVER) {
            self.unix_address(section)
        } else {
            self.inet_address(section)
        };
        let (address, missing) = match address {
            Err(ConfError::Variable(missing)) => (None, Some(missing)),
            address => (self.keep(address), None),
        };
        let credentials = self.credentials(section);
        let credentials = self.keep(credentials);
        if let (Some(missing), Some(credentials)) = (missing, &credentials) {
            let credentials = credentials.clone();
            unplaced.push(UnplacedServer {
                missing,
                credentials,
            });
        }
        // The daemon itself does not start with those that it does not understand.
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
            // Every address of the machine: to listen on, not to call.
            "" | "*" | "0.0.0.0" => "127.0.0.1".to_owned(),
            host => without_brackets(host).to_owned(),
        };
        Ok(DaemonAddress::Tcp { host, port })
    }

    fn credentials(&mut self, section: &Section) -> Result<Option<Credentials>, ConfError> {
        let before = self.missing.len();
        let username = self.value_or_written(&section.name, "username")?;
        let password = self.value_or_written(&section.name, "password")?;
        let is_unread = self.missing.len() > before;
        let incomplete = |file, present, absent| {
            let problem = format!("has a {present} but no {absent}; write both or neither");
            Err(ConfError::section(file, &section.name, problem))
        };
        match (username, password) {
            (Some((_, file)), None) => incomplete(file, "username", "password"),
            (None, Some((_, file))) => incomplete(file, "password", "username"),
            // supervisor/http.py, `make_http_servers`: an empty name asks for nothing.
            (Some((username, _)), Some((password, _))) if !username.is_empty() => {
                Ok(Some(Credentials {
                    username,
                    password,
                    is_unread,
                }))
            }
            _ => Ok(None),
        }
    }

    /// Values that cannot be expanded here are left out: the proxy does not need them.
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
