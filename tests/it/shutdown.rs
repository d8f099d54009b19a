//! The end of the proxy after a signal: requests in progress are answered within a time limit, and no files
//! remain.

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::common::daemon::free_port;
use crate::common::include::ensure_include_holds;
use crate::common::stuck::{slow_sections, stop_in_a_change};
use crate::common::{
    Addr, Client, Connection, Daemon, LIMIT, Reply, Sidecar, SidecarOptions, Until, eventually,
    texts,
};
use anyhow::{Result, ensure};
use supervisor_twiddler::server::GRACE;
use supervisor_twiddler::xmlrpc::Value;

const FOLLOWED: &str = "\
[program:talker]
command = /bin/sh -c 'echo hello; exec sleep 600'
startsecs = 0

[program:slow]
command = /bin/cat
autostart = false
startsecs = 3
";

/// A daemon that reads its files slowly, and a proxy that has made its first change.
fn slow_front() -> Result<(Daemon, Sidecar, Client)> {
    let daemon = Daemon::start(&slow_sections())?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("first", 1))?;
    Ok((daemon, sidecar, client))
}

fn add_group(attempt: usize) -> (&'static str, Vec<supervisor_twiddler::xmlrpc::Value>) {
    ("twiddler.addGroup", params![format!("late{attempt}"), 1])
}

fn group_names(client: &Client) -> Result<Vec<String>> {
    let names = client.call("twiddler.getGroupNames", ())?;
    let names = texts(&names)?
        .into_iter()
        .filter(|name| !name.starts_with("slow"));
    Ok(names.map(str::to_owned).collect())
}

/// Follows the log of the talker, and waits for its first line.
fn tail(sidecar: &Sidecar) -> Result<Connection> {
    let client = sidecar.client();
    let mut connection = client.connect()?;
    connection.send(&client.request_bytes("GET", "/logtail/talker", &[], None))?;
    connection.read(Until::Text("hello"))?;
    Ok(connection)
}

/// Ensures that the proxy does not answer and that no file of it remains.
fn ensure_no_leftovers(daemon: &Daemon, sidecar: &Sidecar) -> Result<()> {
    ensure_include_holds(daemon, &[])?;
    let is_temporary = |name: &&String| name.starts_with(".zz-");
    let names = daemon.include_files()?;
    ensure!(names.iter().find(is_temporary).is_none(), "{names:?}");
    for addr in sidecar.addrs() {
        ensure!(
            Client::new(addr.clone()).get("/").is_err(),
            "{addr} answers"
        );
        if let Addr::Unix(path) = addr {
            ensure!(!path.exists(), "{} is there", path.display());
        }
    }
    Ok(())
}

#[test]
fn a_change_in_progress_is_made_and_answered() -> Result<()> {
    let (daemon, sidecar, client) = slow_front()?;
    let (mut call, attempt) = stop_in_a_change(&daemon, &client, add_group)?;
    sidecar.signal("TERM")?;
    sidecar.wait_for_stderr("stopping")?;
    daemon.signal("CONT")?;
    let reply = call.read_reply()?;
    ensure!(reply.text().contains("<boolean>1</boolean>"), "{reply:?}");
    let status = sidecar.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    ensure_no_leftovers(&daemon, &sidecar)?;
    sidecar.start_again()?;
    let names = group_names(&sidecar.client())?;
    ensure!(names.contains(&format!("late{attempt}")), "{names:?}");
    Ok(())
}

#[test]
fn the_wait_for_a_daemon_that_does_not_answer_is_limited() -> Result<()> {
    let (daemon, sidecar, client) = slow_front()?;
    let (_call, attempt) = stop_in_a_change(&daemon, &client, add_group)?;
    let status = sidecar.stop()?;
    ensure!(status.code() == Some(0), "{status}");
    let log = sidecar.stderr_text();
    ensure!(log.contains("has not answered to a change"), "{log}");
    ensure_no_leftovers(&daemon, &sidecar)?;
    daemon.signal("CONT")?;
    sidecar.start_again()?;
    // Whether the change was made or not, the group can be added now, or exists already.
    let client = sidecar.client();
    let late = format!("late{attempt}");
    if !group_names(&client)?.contains(&late) {
        client.call("twiddler.addGroup", (&late, 1))?;
    }
    client.call("twiddler.removeGroup", (&late,))?;
    ensure!(!group_names(&client)?.contains(&late));
    ensure!(group_names(&client)?.contains(&"first".to_owned()));
    Ok(())
}

/// A followed log never ends by itself, so the proxy does not wait for it. It waits for calls.
#[test]
fn followed_logs_are_cut_at_once_and_calls_are_answered() -> Result<()> {
    let daemon = Daemon::start(FOLLOWED)?;
    let sidecar = Sidecar::start(&daemon)?;
    let mut tails = [tail(&sidecar)?, tail(&sidecar)?];
    std::thread::scope(|scope| {
        let client = sidecar.client();
        let starting = scope.spawn(move || client.call("supervisor.startProcess", ("slow",)));
        daemon.wait_for_state("slow", "STARTING")?;
        let start = Instant::now();
        sidecar.signal("TERM")?;
        for tail in &mut tails {
            tail.read(Until::Close)?;
        }
        ensure!(start.elapsed() < GRACE, "{:?}", start.elapsed());
        ensure!(!starting.is_finished(), "the call has ended before");
        let started = starting.join().expect("no panic")?;
        ensure!(started == Value::Bool(true), "{started:?}");
        Ok(())
    })?;
    let status = sidecar.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    let log = sidecar.stderr_text();
    ensure!(!log.contains("cut connections"), "{log}");
    ensure_no_leftovers(&daemon, &sidecar)
}

/// Measures how long connections are refused during a restart: the shortest of several, because a busy
/// machine can be slow.
#[test]
fn a_restart_with_a_followed_log_refuses_connections_only_briefly() -> Result<()> {
    const INSTANT: Duration = Duration::from_millis(50);
    let daemon = Daemon::start(FOLLOWED)?;
    let port = free_port()?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            arguments: &["--listen", &port.to_string()],
            own_listeners: Some(1),
            ..SidecarOptions::default()
        },
    )?;
    let mut refused = Vec::new();
    for _ in 0..10 {
        let _tail = tail(&sidecar)?;
        let (ended, has_ended) = std::sync::mpsc::channel();
        refused.push(std::thread::scope(|scope| -> Result<Duration> {
            let poller = scope.spawn(move || longest_refusal(port, &has_ended));
            sidecar.stop()?;
            sidecar.start_again()?;
            drop(ended);
            Ok(poller.join().expect("no panic"))
        })?);
        if refused.iter().any(|time| *time < INSTANT) {
            return Ok(());
        }
    }
    anyhow::bail!("refused for {refused:?}")
}

/// The longest time in which connections were refused, until the other end of `ended` is dropped.
fn longest_refusal(port: SocketAddr, ended: &Receiver<()>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut accepted = Instant::now();
    while ended.try_recv() != Err(TryRecvError::Disconnected) {
        if TcpStream::connect(port).is_ok() {
            longest = longest.max(accepted.elapsed());
            accepted = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    longest.max(accepted.elapsed())
}

#[test]
fn other_signals_are_ignored() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    for signal in ["USR1", "USR2", "ALRM", "IO", "PIPE", "WINCH", "HUP", "CONT"] {
        sidecar.signal(signal)?;
        sidecar.client().call("twiddler.getGroupNames", ())?;
    }
    let status = sidecar.stop()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

#[test]
fn idle_connections_do_not_delay_the_end() -> Result<()> {
    for signal in ["TERM", "INT"] {
        let daemon = Daemon::start("")?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        let mut idle = client.connect()?;
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        idle.send(request.as_bytes())?;
        ensure!(Reply::parse(&idle.read(Until::Reply)?)?.status == 200);
        let mut silent = client.connect()?;
        let start = Instant::now();
        sidecar.signal(signal)?;
        let status = sidecar.wait()?;
        ensure!(status.code() == Some(0), "{status}");
        ensure!(start.elapsed() < GRACE, "{:?}", start.elapsed());
        ensure!(!sidecar.stderr_text().contains("cut connections"));
        idle.read(Until::Close)?;
        silent.read(Until::Close)?;
        ensure_no_leftovers(&daemon, &sidecar)?;
    }
    Ok(())
}

#[test]
fn a_second_signal_ends_the_proxy_at_once_and_leaves_no_files() -> Result<()> {
    let (daemon, sidecar, client) = slow_front()?;
    let (mut call, _) = stop_in_a_change(&daemon, &client, add_group)?;
    let start = Instant::now();
    sidecar.signal("TERM")?;
    sidecar.wait_for_stderr("stopping")?;
    sidecar.signal("INT")?;
    let status = sidecar.wait()?;
    ensure!(status.code() == Some(1), "{status}");
    ensure!(start.elapsed() < GRACE, "{:?}", start.elapsed());
    ensure!(call.read(Until::Close)?.is_empty(), "answered");
    ensure_no_leftovers(&daemon, &sidecar)?;
    daemon.signal("CONT")?;
    sidecar.start_again()?;
    eventually(LIMIT, || {
        ensure!(group_names(&sidecar.client())?.contains(&"first".to_owned()));
        Ok(())
    })
}

#[test]
fn a_signal_during_the_start_ends_the_proxy() -> Result<()> {
    let daemon = Daemon::start("")?;
    for _ in 0..10 {
        let sidecar = Sidecar::start(&daemon)?;
        let status = sidecar.stop()?;
        ensure!(status.code() == Some(0), "{status}");
    }
    Ok(())
}
