//! nginx and HAProxy in front of a sidecar, with their defaults.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::client::Client;
use super::daemon::free_port;
use super::leftovers::WorkDir;
use super::process::Process;
use super::provision::scrub;
use super::wait::{LIMIT, eventually};

/// The process of a reverse proxy, on a free port of 127.0.0.1. It is ended on drop.
#[derive(Debug)]
pub struct ReverseProxy {
    addr: SocketAddr,
    _process: Process,
    _dir: WorkDir,
}

impl ReverseProxy {
    /// nginx, which forwards `/supervisor/` and all other paths to `upstream`. Both locations have `lines`.
    pub fn nginx(upstream: SocketAddr, lines: &str) -> Result<ReverseProxy> {
        let (dir, addr) = (WorkDir::new("twn-")?, free_port()?);
        let mut conf = String::from("daemon off;\nmaster_process off;\nevents {}\nhttp {\n");
        writeln!(conf, "access_log off;\nserver {{\nlisten {addr};")?;
        for location in ["/", "/supervisor/"] {
            writeln!(
                conf,
                "location {location} {{ proxy_pass http://{upstream}/; {lines} }}"
            )?;
        }
        conf += "}\n";
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(
                conf,
                "{kind}_temp_path {};",
                dir.path().join(kind).display()
            )?;
        }
        conf += "}\n";
        let pid = dir.path().join("pid");
        let conf = format!("pid {};\n{conf}", pid.display());
        let file = written(&dir, &conf)?;
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-c"]).arg(&file);
        ReverseProxy::start(command, addr, dir)
    }

    /// HAProxy, which forwards `/supervisor/` and all other paths to `upstream`.
    pub fn haproxy(upstream: SocketAddr) -> Result<ReverseProxy> {
        ReverseProxy::haproxy_with(upstream, "")
    }

    /// Like [`ReverseProxy::haproxy`], and closes each connection after one call.
    pub fn haproxy_closing(upstream: SocketAddr) -> Result<ReverseProxy> {
        ReverseProxy::haproxy_with(upstream, "  option httpclose\n")
    }

    fn haproxy_with(upstream: SocketAddr, defaults: &str) -> Result<ReverseProxy> {
        let (dir, addr) = (WorkDir::new("twh-")?, free_port()?);
        let conf = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n{defaults}frontend clients\n  bind {addr}\n  default_backend sidecar\n\
             backend sidecar\n  http-request replace-path /supervisor/(.*) /\\1\n  \
             server twiddler {upstream}\n"
        );
        let file = written(&dir, &conf)?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&file);
        ReverseProxy::start(command, addr, dir)
    }

    fn start(mut command: Command, addr: SocketAddr, dir: WorkDir) -> Result<ReverseProxy> {
        scrub(&mut command);
        dir.mark(&mut command);
        let process = Process::spawn(&mut command)?;
        eventually(LIMIT, || {
            ensure!(process.is_alive(), "it ended: {}", process.stderr_text());
            Client::new(addr).get("/twiddler/health").map(drop)
        })
        .with_context(|| process.stderr_text())?;
        Ok(ReverseProxy {
            addr,
            _process: process,
            _dir: dir,
        })
    }

    /// Its port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

fn written(dir: &WorkDir, conf: &str) -> Result<std::path::PathBuf> {
    let file: &Path = &dir.path().join("conf");
    fs::write(file, conf).context("writing its configuration")?;
    Ok(file.to_owned())
}
