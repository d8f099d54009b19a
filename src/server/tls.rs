//! TLS for TCP listeners: certificate and key, and reading them again.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::{Origin, TlsFiles};
use crate::current::Current;

/// The only protocol that is spoken inside.
const PROTOCOL: &[u8] = b"http/1.1";

/// What TLS connections are made with.
pub struct Tls(Current<ServerConfig>);

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together; the text names the file, and where
    /// it is written.
    pub fn load(files: &TlsFiles) -> io::Result<Self> {
        Ok(Tls(Current::new(read(files)?)))
    }

    /// Reads both again, for connections from now on.
    ///
    /// # Errors
    /// As [`Tls::load`]; what was read before stays in use then.
    pub fn reload(&self, files: &TlsFiles) -> io::Result<()> {
        self.0.set(read(files)?);
        Ok(())
    }

    /// Makes one connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.get().into()
    }
}

fn read(files: &TlsFiles) -> io::Result<ServerConfig> {
    let no_certificate = |error| unreadable(&files.cert_origin, "certificate", &files.cert, &error);
    let certificates = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|all| {
            if all.is_empty() {
                Err(pem::Error::NoItemsFound)
            } else {
                Ok(all)
            }
        })
        .map_err(no_certificate);
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable(&files.key_origin, "key", &files.key, &error));
    let (certificates, key) = match (certificates, key) {
        (Err(one), Err(other)) => return Err(io::Error::other(format!("{one}\n{other}"))),
        (certificates, key) => (certificates?, key?),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| {
            config
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        })
        .map_err(|error| mismatched(files, &error))?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// Of what is in the file, nothing is repeated.
fn unreadable(origin: &Origin, what: &str, file: &Path, error: &pem::Error) -> io::Error {
    let file = file.display();
    let reason = match error {
        pem::Error::Io(error) => format!(
            "the {what} in {file} cannot be read ({error}); name a file that the account of twiddler may read"
        ),
        _ => format!("there is no {what} in PEM in {file}; name a file that holds one"),
    };
    io::Error::new(io::ErrorKind::InvalidData, format!("{origin}: {reason}"))
}

fn mismatched(files: &TlsFiles, error: &rustls::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{}: the key in {} cannot be used with the certificate in {} ({error}); name the key that the certificate was made for",
            files.key_origin,
            files.key.display(),
            files.cert.display()
        ),
    )
}
