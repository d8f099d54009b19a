//! TLS on TCP listeners, and the reload of certificates.

use std::fs;
use std::path::Path;

use crate::common::{Daemon, Sidecar, refused, run_python, stdout_text};
use anyhow::{Result, ensure};

/// Calls two methods over TLS with one certificate as the only authority, and prints the results.
const CALL: &str = "\
import ssl, sys, xmlrpc.client
port, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
proxy = xmlrpc.client.ServerProxy('https://localhost:%s/RPC2' % port, context=context)
print(proxy.supervisor.getState()['statename'], proxy.twiddler.getAPIVersion())";

fn write_certificate(dir: &Path) -> Result<()> {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(dir.join("cert.pem"), certificate.cert.pem())?;
    fs::write(dir.join("key.pem"), certificate.signing_key.serialize_pem())?;
    Ok(())
}

fn options(dir: &Path) -> [String; 4] {
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    [
        "--tls-cert".to_owned(),
        path("cert.pem"),
        "--tls-key".to_owned(),
        path("key.pem"),
    ]
}

fn says_running(sidecar: &Sidecar, authority: &Path) -> Result<bool> {
    let port = sidecar.tcp_addr().port().to_string();
    let output = run_python(CALL, &[&port, &authority.to_string_lossy()])?;
    Ok(output.status.success() && stdout_text(&output) == "RUNNING 1.0\n")
}

#[test]
fn tcp_speaks_tls_and_takes_new_certificates_on_hangup() -> Result<()> {
    let daemon = Daemon::start("")?;
    let dir = daemon.dir();
    write_certificate(dir)?;
    let arguments = options(dir);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let sidecar = Sidecar::start_with(&daemon, &arguments)?;
    sidecar.wait_for_stderr("listening on https://127.0.0.1:")?;
    let former = dir.join("former.pem");
    fs::copy(dir.join("cert.pem"), &former)?;
    assert!(says_running(&sidecar, &former)?);
    // The port does not answer plain HTTP. The socket has no TLS.
    assert!(sidecar.client().call("supervisor.getState", ()).is_err());
    sidecar.socket_client().call("supervisor.getState", ())?;

    write_certificate(dir)?;
    sidecar.signal("HUP")?;
    sidecar.wait_for_stderr("read certificate and key again")?;
    assert!(says_running(&sidecar, &dir.join("cert.pem"))?);
    assert!(!says_running(&sidecar, &former)?);

    fs::write(dir.join("key.pem"), "rubbish")?;
    sidecar.signal("HUP")?;
    let log = sidecar.wait_for_stderr("kept the former settings: ")?;
    ensure!(
        log.contains("--tls-key: ") && !log.contains("rubbish"),
        "{log}"
    );
    assert!(says_running(&sidecar, &dir.join("cert.pem"))?);
    Ok(())
}

#[test]
fn hangup_without_tls_ends_nothing() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    sidecar.signal("HUP")?;
    sidecar.wait_for_stderr("read the options again: nothing new")?;
    sidecar.client().call("supervisor.getState", ())?;
    Ok(())
}

#[test]
fn certificates_that_cannot_be_used_are_explained() -> Result<()> {
    let daemon = Daemon::start("")?;
    let dir = daemon.dir();
    write_certificate(dir)?;
    let refused = |arguments: &[&str]| {
        let port = ["--allow-open", "--listen", "127.0.0.1:0"];
        refused(&daemon, &[&port[..], arguments].concat())
    };
    let [_, cert, _, key] = options(dir);
    let other = daemon.dir().join("other");
    fs::create_dir(&other)?;
    write_certificate(&other)?;
    let other_key = other.join("key.pem").to_string_lossy().into_owned();
    for (arguments, expected) in [
        (vec!["--tls-cert", &*cert], "there is no tls_key"),
        (vec!["--tls-key", &*key], "there is no tls_cert"),
        (
            vec!["--tls-cert", "/no/such/cert.pem", "--tls-key", &*key],
            "/no/such/cert.pem",
        ),
        (
            vec!["--tls-cert", &*key, "--tls-key", &*key],
            "--tls-cert: there is no certificate in PEM in",
        ),
        (
            vec!["--tls-cert", &*cert, "--tls-key", &*cert],
            "--tls-key: there is no key in PEM in",
        ),
        (
            vec!["--tls-cert", &*cert, "--tls-key", &*other_key],
            "cannot be used with the certificate in",
        ),
    ] {
        let error = refused(&arguments)?;
        assert!(error.contains(expected), "{expected}: {error}");
    }
    Ok(())
}
