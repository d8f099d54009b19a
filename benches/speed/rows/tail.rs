//! Followers of a log.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

use crate::common::{LIMIT, eventually};
use crate::measure::{Bound, Effort, Line};
use crate::rows::resources::cpu_time;
use crate::setups::Ours;
use crate::wire::{Wire, request};

/// Lines a second in the log; each follower gets them all.
const RATE: usize = 20;
const LAST: &str = "the last line";

/// Waits for a word, then writes numbered lines.
fn chatty(lines: usize) -> String {
    let pause = 1.0 / RATE as f64;
    format!(
        "[program:chatty]\ncommand=/bin/sh -c 'echo begins; read go; i=0; while [ $i -lt {lines} ]; \
         do echo line $i; i=$((i+1)); sleep {pause}; done; echo {LAST}; sleep 600'\nstartsecs=0\n\
         stopasgroup=true\n"
    )
}

/// Follows the log to its last line; what came of it.
fn follow(addr: SocketAddr, begin: &Barrier, given_up: &AtomicBool) -> Result<String> {
    let connected = connect(addr);
    begin.wait();
    let mut stream = connected?;
    let mut received = Vec::new();
    let mut buffer = [0; 16384];
    while !given_up.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => received.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        let end = &received[received.len().saturating_sub(64)..];
        if String::from_utf8_lossy(end).contains(LAST) {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&received).into_owned())
}

/// Asks, and waits until the follower is served.
fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, LIMIT)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /logtail/chatty HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let deadline = Instant::now() + LIMIT;
    let mut head = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&head).contains("begins") {
        ensure!(Instant::now() < deadline, "not served");
        if let Ok(1) = stream.read(&mut byte) {
            head.push(byte[0]);
        }
    }
    Ok(stream)
}

/// Whether a follower got every line, in order. Chunk sizes stand between them.
fn is_whole(received: &str, lines: usize) -> bool {
    let mut rest = received;
    (0..lines).all(
        |number| match rest.split_once(&format!("line {number}\n")) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        },
    )
}

/// Many followers of one log.
pub(crate) fn followers(effort: Effort) -> Result<Vec<Line>> {
    // One client may follow 51 logs at a time.
    let count = effort.count(50);
    let lines = effort.count(200);
    let ours = Ours::start(&chatty(lines))?;
    ours.daemon.wait_for_state("chatty", "RUNNING")?;
    eventually(LIMIT, || {
        let log = ours
            .daemon
            .call("supervisor.readProcessStdoutLog", ("chatty", 0, 0))?;
        let text = log.as_str().unwrap_or_default();
        ensure!(text.contains("begins"), "it says nothing");
        Ok(())
    })?;
    let (begin, given_up) = (Barrier::new(count + 1), AtomicBool::new(false));
    let addr = ours.sidecar.tcp_addr();
    thread::scope(|scope| {
        let followers: Vec<_> = (0..count)
            .map(|_| {
                let (begin, given_up) = (&begin, &given_up);
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, move || follow(addr, begin, given_up))
            })
            .collect::<Result<_, _>>()?;
        begin.wait();
        let (ours_before, daemons_before) =
            (cpu_time(ours.sidecar.pid())?, cpu_time(ours.daemon.pid())?);
        let began = Instant::now();
        let go: [Value; 2] = ["chatty".into(), "go\n".into()];
        Wire::open(&addr.into())?.call(&request("supervisor.sendProcessStdin", &go))?;
        let deadline =
            Duration::from_secs_f64(lines as f64 / RATE as f64) + Duration::from_secs(20);
        while began.elapsed() < deadline && !followers.iter().all(|one| one.is_finished()) {
            thread::sleep(Duration::from_millis(20));
        }
        let took = began.elapsed();
        let used = cpu_time(ours.sidecar.pid())? - ours_before;
        let daemons = cpu_time(ours.daemon.pid())? - daemons_before;
        given_up.store(true, Ordering::Relaxed);
        let mut whole = 0;
        for follower in followers {
            let received = follower.join().ok().context("a follower panicked")??;
            whole += usize::from(is_whole(&received, lines));
        }
        let share = |used: Duration| used.as_secs_f64() / took.as_secs_f64() * 100.0;
        Ok(vec![
            Line {
                work: format!("log tail, {count} followers: those that got every line"),
                ours: format!("{whole} of {count}"),
                against: String::new(),
                figure: whole as f64 / count as f64 * 100.0,
                unit: "%",
                bound: Bound::AtLeast(100.0),
            },
            Line {
                work: format!("the same at {} lines a second in all", RATE * count),
                ours: format!("{:.1} % of a core", share(used)),
                against: format!("the daemon itself {:.1} %", share(daemons)),
                figure: share(used),
                unit: "%",
                bound: Bound::AtMost(10.0),
            },
        ])
    })
}
