//! Behind nginx and HAProxy with their defaults: pages and redirects below a path, logs that are
//! followed, and errors that say their reason.

use std::net::SocketAddr;

use crate::common::ctl::supervisorctl_command;
use crate::common::daemon::free_port;
use crate::common::pages::{link, row};
use crate::common::reverse_proxy::ReverseProxy;
use crate::common::tools::{self, CHROMIUM, HAPROXY, NGINX};
use crate::common::{
    Browser, Client, Daemon, LIMIT, Process, Reply, Sidecar, SidecarOptions, Until, eventually,
    exchange,
};
use anyhow::{Context, Result, bail, ensure};
use supervisor_twiddler::xmlrpc::write;

const PROGRAMS: &str = "[program:cat]\ncommand = /bin/cat\nstartsecs = 0\n";
/// What nginx is told about hosts, from nothing to what guides advise for a page below a path.
const HOST_LINES: [&str; 3] = [
    "",
    "proxy_set_header Host $http_host;",
    "proxy_set_header Host $http_host/supervisor/index.html;",
];
/// A name by which a browser finds the reverse proxy.
const NAME: &str = "sup.example";

fn start() -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start(PROGRAMS)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let sidecar = Sidecar::start(&daemon)?;
    Ok((daemon, sidecar))
}

/// Asks for a path below `/supervisor/` as a browser that shows `page`, which is of this origin.
fn browse(addr: SocketAddr, site: &str, path: &str) -> Result<Reply> {
    let request = format!(
        "GET /supervisor{path} HTTP/1.1\r\nHost: {site}\r\nUser-Agent: Mozilla/5.0\r\n\
         Referer: http://{site}/supervisor/\r\nConnection: close\r\n\r\n"
    );
    Reply::parse(&exchange(addr, request.as_bytes(), Until::Close)?)
}

/// Clicks on an action of the page below the path, and goes where that leads.
fn act(addr: SocketAddr, site: &str, label: &str) -> Result<String> {
    let page = browse(addr, site, "/")?.text();
    let reply = browse(addr, site, &link(row(&page, "cat")?, label)?)?;
    ensure!(reply.status == 301, "{reply:?}");
    let location = reply.header("location").context("a Location")?;
    let path = location
        .strip_prefix('.')
        .with_context(|| format!("not relative: {location}"))?;
    Ok(browse(addr, site, path)?.text())
}

fn ensure_pages_work(daemon: &Daemon, addr: SocketAddr, site: &str) -> Result<()> {
    let style = browse(addr, site, "/stylesheets/supervisor.css")?;
    ensure!(style.status == 200, "{style:?}");
    for (label, message, state) in [
        ("Stop", "Process cat stopped", "STOPPED"),
        ("Start", "Process cat started", "RUNNING"),
    ] {
        let page = act(addr, site, label)?;
        ensure!(page.contains(message), "{page}");
        daemon.wait_for_state("cat", state)?;
    }
    let images = browse(addr, site, "/images")?;
    ensure!(images.header("location") == Some("./images/"), "{images:?}");
    Ok(())
}

#[test]
fn pages_and_redirects_work_below_a_path_of_haproxy() -> Result<()> {
    if !tools::have(&[HAPROXY])? {
        return Ok(());
    }
    let (daemon, sidecar) = start()?;
    let front = ReverseProxy::haproxy(sidecar.tcp_addr())?;
    ensure_pages_work(&daemon, front.addr(), &front.addr().to_string())
}

/// A sidecar on a port that stays the same with other `hosts`.
fn sidecar_with_hosts(daemon: &Daemon, addr: SocketAddr, hosts: &str) -> Result<Sidecar> {
    let listen = addr.to_string();
    let mut arguments = vec!["--listen", &listen];
    if !hosts.is_empty() {
        arguments.extend(["--hosts", hosts]);
    }
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            arguments: &arguments,
            own_listeners: Some(1),
            ..SidecarOptions::default()
        },
    )
}

/// What a refusal says to write in `hosts`.
fn advised(refusal: &str) -> Result<&str> {
    let (_, rest) = refusal
        .split_once("write hosts = ")
        .with_context(|| format!("no advice: {refusal}"))?;
    let (site, _) = rest.split_once(" in [twiddler]").context("an end")?;
    Ok(site)
}

/// Whatever nginx says of the host, the page works as it is or once the advice has been followed.
#[test]
fn pages_and_redirects_work_below_a_path_of_nginx() -> Result<()> {
    if !tools::have(&[NGINX])? {
        return Ok(());
    }
    for lines in HOST_LINES {
        let daemon = Daemon::start(PROGRAMS)?;
        daemon.wait_for_state("cat", "RUNNING")?;
        let addr = free_port()?;
        let sidecar = sidecar_with_hosts(&daemon, addr, "")?;
        let front = ReverseProxy::nginx(addr, lines)?;
        let site = format!("{NAME}:{}", front.addr().port());
        let refused = browse(front.addr(), &site, "/index.html?action=refresh")?;
        ensure!(refused.status == 403, "{lines} {refused:?}");
        let hosts = advised(&refused.text())?.to_owned();
        sidecar.stop()?;
        let _sidecar = sidecar_with_hosts(&daemon, addr, &hosts)?;
        ensure_pages_work(&daemon, front.addr(), &site)
            .with_context(|| format!("{lines} hosts = {hosts}"))?;
    }
    Ok(())
}

/// On loopback a browser says by itself that its own page asks.
#[test]
fn a_browser_acts_below_a_path() -> Result<()> {
    if !tools::have(&[CHROMIUM, NGINX, HAPROXY])? {
        return Ok(());
    }
    let (daemon, sidecar) = start()?;
    let mut fronts = vec![ReverseProxy::haproxy(sidecar.tcp_addr())?];
    for lines in HOST_LINES {
        fronts.push(ReverseProxy::nginx(sidecar.tcp_addr(), lines)?);
    }
    let browser = Browser::start()?;
    for front in fronts {
        browser.open(&format!("http://{}/supervisor/", front.addr()))?;
        for (label, message, state) in [
            ("Stop", "Process cat stopped", "STOPPED"),
            ("Start", "Process cat started", "RUNNING"),
        ] {
            eventually(LIMIT, || browser.click(&format!("//a[text()='{label}']")))?;
            eventually(LIMIT, || {
                let text = browser.text()?;
                ensure!(text.contains(message), "no {message:?} in {text}");
                Ok(())
            })?;
            ensure!(browser.url()?.contains("/supervisor/?message="));
            daemon.wait_for_state("cat", state)?;
        }
    }
    Ok(())
}

fn ensure_logs_are_followed(daemon: &Daemon, addr: SocketAddr) -> Result<()> {
    let conf = daemon.dir().join("empty.conf");
    std::fs::write(&conf, "[supervisorctl]\n")?;
    let server = format!("http://{addr}");
    let follow = |arguments: &[&str]| -> Result<Process> {
        Process::spawn(supervisorctl_command(&conf, &server).args(arguments))
    };
    let say = |line: &str| daemon.call("supervisor.sendProcessStdin", ("cat", line));
    say("one line\n")?;
    let (main, tail) = (
        follow(&["maintail", "-f"])?,
        follow(&["tail", "-f", "cat"])?,
    );
    // What was there before is shown first, so both are being followed.
    main.wait_for_stdout("spawned: 'cat'")?;
    tail.wait_for_stdout("one line")?;
    say("another line\n")?;
    tail.wait_for_stdout("another line")?;
    daemon.call("supervisor.signalProcess", ("cat", "KILL"))?;
    main.wait_for_stdout("exited: cat (terminated by SIGKILL; not expected)")?;
    daemon.wait_for_state("cat", "RUNNING")
}

#[test]
fn logs_are_followed_through_nginx() -> Result<()> {
    if !tools::have(&[NGINX])? {
        return Ok(());
    }
    let (daemon, sidecar) = start()?;
    let front = ReverseProxy::nginx(sidecar.tcp_addr(), "")?;
    ensure_logs_are_followed(&daemon, front.addr())
}

#[test]
fn logs_are_followed_through_haproxy() -> Result<()> {
    if !tools::have(&[HAPROXY])? {
        return Ok(());
    }
    let (daemon, sidecar) = start()?;
    let front = ReverseProxy::haproxy(sidecar.tcp_addr())?;
    ensure_logs_are_followed(&daemon, front.addr())
}

#[test]
fn errors_say_their_reason_in_the_status_line_on_the_way_too() -> Result<()> {
    if !tools::have(&[NGINX, HAPROXY])? {
        return Ok(());
    }
    let (daemon, sidecar) = start()?;
    let fronts = [
        ReverseProxy::nginx(sidecar.tcp_addr(), "")?,
        ReverseProxy::haproxy(sidecar.tcp_addr())?,
    ];
    daemon.stop()?;
    let call = write::call("supervisor.getState", &[]);
    let addrs = fronts.iter().map(ReverseProxy::addr);
    for addr in addrs.chain([sidecar.tcp_addr()]) {
        let reply = Client::new(addr).post_call(&call)?;
        let Some((_, phrase)) = reply.status_line.split_once(" 502 ") else {
            bail!("{reply:?}");
        };
        ensure!(reply.text().trim_end() == phrase, "{reply:?}");
        ensure!(phrase.contains("does not answer: No such file"), "{phrase}");
    }
    Ok(())
}
