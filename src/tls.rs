//! TLS for TCP listeners: certificate and key, and reading them again.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::TlsFiles;
use crate::current::Current;

/// The only protocol that is spoken inside.
const PROTOCOL: &[u8] = b"http/1.1";

/// What TLS connections are made with.
pub struct Tls(Current<ServerConfig>);

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together; the text names the file and the key of
    /// `[twiddler]`.
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
    let certificates = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable("tls_cert", &files.cert, &error))?;
    if certificates.is_empty() {
        return Err(unreadable(
            "tls_cert",
            &files.cert,
            &pem::Error::NoItemsFound,
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable("tls_key", &files.key, &error))?;
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

fn unreadable(key: &str, file: &Path, error: &pem::Error) -> io::Error {
    let reason = match error {
        pem::Error::Io(error) => error.to_string(),
        // Of what is in the file, nothing is repeated.
        _ => "it holds none in PEM".to_owned(),
    };
    let what = if key == "tls_cert" {
        "certificate"
    } else {
        "key"
    };
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{key}: the {what} in {} cannot be read: {reason}",
            file.display()
        ),
    )
}

fn mismatched(files: &TlsFiles, error: &rustls::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "tls_cert and tls_key: {} and {} cannot be used together: {error}",
            files.cert.display(),
            files.key.display()
        ),
    )
}
