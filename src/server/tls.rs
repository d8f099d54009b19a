//! TLS for TCP listeners: loads and reloads certificate and key.

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

/// The only protocol that ALPN offers.
const PROTOCOL: &[u8] = b"http/1.1";

/// The certificate and the key that new connections use.
pub struct Tls(Current<ServerConfig>);

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together. The text names the file and the option.
    pub fn load(files: &TlsFiles) -> io::Result<Self> {
        Ok(Tls(Current::new(read(files)?)))
    }

    /// Reads both again, for new connections.
    ///
    /// # Errors
    /// As [`Tls::load`]; the old certificate and key stay in use then.
    pub fn reload(&self, files: &TlsFiles) -> io::Result<()> {
        self.0.set(read(files)?);
        Ok(())
    }

    /// The acceptor for one connection.
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

/// The error for a `kind` ("certificate" or "key") that cannot be read. It shows nothing of the file's
/// content, which may be the key.
fn unreadable(origin: &Origin, kind: &str, file: &Path, error: &pem::Error) -> io::Error {
    let file = file.display();
    let reason = match error {
        pem::Error::Io(error) => format!(
            "the {kind} in {file} cannot be read ({error}); name a file that the account of twiddler may read"
        ),
        _ => format!("there is no {kind} in PEM in {file}; name a file that holds one"),
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
