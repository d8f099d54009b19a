//! Callers without credentials: their requests cost the proxy and supervisord few resources, and keep nobody
//! out.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    Client, Daemon, DaemonOptions, MIB, Reply, Sidecar, SidecarOptions, Until, argon2_of,
    attributes_of, call_of, crowd, descriptors, eventually, guess, memory, peak_memory,
    raise_file_limit,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::limits::MAX_CONNECTIONS;
use supervisor_twiddler::xmlrpc::write;

/// The user name and the password of supervisord.
const DAEMONS: (&str, &str) = ("daemon", "of the daemon");
/// Ten running programs.
const TEN: &str =
    "[program:cat]\ncommand = /bin/cat\nnumprocs = 10\nprocess_name = %(process_num)d\n";
/// The largest memory of a proxy after [`RECOVERY`].
const MEMORY_AFTER: usize = 40 * MIB;
/// How long a proxy may take to free its memory after an attack.
const RECOVERY: Duration = Duration::from_secs(10);
/// The largest number of descriptors of supervisord.
const DESCRIPTORS: usize = 250;
/// How long supervisord may take to answer on its socket.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// The largest body that is accepted.
const LARGE: usize = 31 * MIB;

/// The memory of one check of a password: a usual setting of argon2.
const CHECK_MEMORY: usize = 64 * MIB;
/// The largest memory of a proxy during an attack, without the check.
const MEMORY: usize = 64 * MIB;

/// A proxy that requires the user name `own` and the password `secret`.
fn guarded(daemon: &Daemon) -> Result<Sidecar> {
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            environment: &[
                ("TWIDDLER_USERNAME", "own"),
                ("TWIDDLER_PASSWORD", &argon2_of("secret", CHECK_MEMORY)?),
            ],
            optimized: true,
            ..SidecarOptions::default()
        },
    )
}

fn own_client(sidecar: &Sidecar) -> Client {
    Client::new(sidecar.tcp_addr()).with_credentials("own", "secret")
}

#[test]
fn guesses_that_disconnect_are_still_checked_one_at_a_time() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = guarded(&daemon)?;
    let stranger = Client::new(sidecar.tcp_addr());
    for number in 0..60 {
        guess(&stranger, number)?;
    }
    own_client(&sidecar).call("supervisor.getState", ())?;
    let peak = peak_memory(sidecar.pid())?;
    assert!(peak <= MEMORY + CHECK_MEMORY, "{} MiB", peak / MIB);
    eventually(RECOVERY, || {
        let remaining = memory(sidecar.pid())?;
        ensure!(
            remaining <= MEMORY_AFTER,
            "{} MiB are left",
            remaining / MIB
        );
        Ok(())
    })
}

#[test]
fn a_flood_of_guesses_does_not_delay_callers_with_the_password() -> Result<()> {
    const WARM_CALLS: usize = 100;
    let daemon = Daemon::start("")?;
    let sidecar = guarded(&daemon)?;
    let (over, guesses) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flood = || {
        let stranger = Client::new(sidecar.tcp_addr());
        while !over.load(Ordering::Relaxed) {
            guess(&stranger, guesses.fetch_add(1, Ordering::Relaxed))?;
        }
        anyhow::Ok(())
    };
    let honest = || {
        eventually(crate::common::LIMIT, || {
            let guess_count = guesses.load(Ordering::Relaxed);
            ensure!(guess_count >= 50, "{guess_count} guesses");
            Ok(())
        })?;
        let user = own_client(&sidecar);
        user.call("supervisor.getState", ())
            .context("before he was let in")?;
        let mut slowest = Duration::ZERO;
        for _ in 0..WARM_CALLS {
            let start = Instant::now();
            user.call("supervisor.getState", ())
                .context("after he was let in")?;
            slowest = slowest.max(start.elapsed());
        }
        anyhow::Ok(slowest)
    };
    let slowest = thread::scope(|scope| {
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        let slowest = honest();
        over.store(true, Ordering::Relaxed);
        for flood in floods {
            flood
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        slowest
    })?;
    println!("{guesses:?} guesses, slowest {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let peak = peak_memory(sidecar.pid())?;
    assert!(peak <= MEMORY + CHECK_MEMORY, "{} MiB", peak / MIB);
    Ok(())
}

/// A proxy and its daemon. The proxy is dropped first.
pub struct Pair {
    pub sidecar: Sidecar,
    pub daemon: Daemon,
}

/// A daemon with ten programs that requires a password, and a proxy without its own.
fn checked_by_the_daemon() -> Result<Pair> {
    judged_by(TEN)
}

/// An optimized proxy in front of a daemon that checks its callers. `body` has its programs, among them ten
/// processes of the group `cat`.
pub fn judged_by(body: &str) -> Result<Pair> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        body,
        ..DaemonOptions::default()
    })?;
    for number in 0..10 {
        daemon.wait_for_state(&format!("cat:{number}"), "RUNNING")?;
    }
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            optimized: true,
            ..SidecarOptions::default()
        },
    )?;
    Ok(Pair { sidecar, daemon })
}

/// Runs an attack on the proxy. Fails unless supervisord meanwhile has few descriptors and answers on its
/// socket quickly, the proxy takes `most` bytes at most, and the proxy frees memory and descriptors afterwards.
fn withstands(
    Pair { sidecar, daemon }: &Pair,
    most: usize,
    attack: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    let pid = sidecar.pid();
    sidecar.client().call("supervisor.getState", ())?;
    let before = descriptors(pid)?;
    thread::scope(|scope| {
        let attack = scope.spawn(attack);
        while !attack.is_finished() {
            let start = Instant::now();
            daemon.call("supervisor.getState", ())?;
            let (time, open) = (start.elapsed(), descriptors(daemon.pid())?);
            ensure!(time < ANSWER_TIME, "supervisord took {time:?}");
            ensure!(open < DESCRIPTORS, "supervisord has {open} descriptors");
        }
        attack
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    let peak = peak_memory(pid)?;
    println!("at most {} MiB", peak / MIB);
    ensure!(peak <= most, "{} MiB at most", peak / MIB);
    eventually(RECOVERY, || {
        let (remaining, open) = (memory(pid)?, descriptors(pid)?);
        ensure!(
            remaining <= MEMORY_AFTER,
            "{} MiB are left",
            remaining / MIB
        );
        ensure!(
            open <= before + 16,
            "{open} descriptors are left of {before}"
        );
        println!("{} MiB afterwards", remaining / MIB);
        Ok(())
    })?;
    sidecar.client().call("supervisor.getState", ())?;
    Ok(())
}

/// Sends a request on many connections at once, in several rounds. Returns how often each status came.
fn all_at_once(
    client: &Client,
    connections: usize,
    rounds: usize,
    body: &[u8],
) -> Result<Vec<(u16, usize)>> {
    let request = client.request_bytes("POST", "/RPC2", &[], Some(body));
    let send = || -> Result<Vec<u16>> {
        (0..rounds)
            .map(|_| {
                let mut connection = client.connect()?;
                connection.send(&request)?;
                let reply = connection.read_within(Duration::from_secs(120), Until::Reply)?;
                Ok(Reply::parse(&reply)?.status)
            })
            .collect()
    };
    let all = thread::scope(|scope| {
        let sending: Vec<_> = (0..connections).map(|_| scope.spawn(send)).collect();
        let mut all = Vec::new();
        for sending in sending {
            let statuses = sending
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            all.extend(statuses?);
        }
        anyhow::Ok(all)
    })?;
    let mut counted = std::collections::BTreeMap::new();
    for status in all {
        *counted.entry(status).or_default() += 1;
    }
    Ok(counted.into_iter().collect())
}

#[test]
fn large_bodies_of_strangers_are_not_read() -> Result<()> {
    let pair = checked_by_the_daemon()?;
    let stranger = Client::new(pair.sidecar.tcp_addr());
    let body = call_of(LARGE);
    withstands(&pair, MEMORY, || {
        let statuses = all_at_once(&stranger, 8, 20, &body)?;
        ensure!(statuses == [(401, 160)], "{statuses:?}");
        Ok(())
    })
}

#[test]
fn many_strangers_with_bodies_are_checked_before_the_bodies_are_read() -> Result<()> {
    let pair = checked_by_the_daemon()?;
    let stranger = Client::new(pair.sidecar.tcp_addr());
    let body = call_of(MIB);
    withstands(&pair, MEMORY, || {
        let statuses = all_at_once(&stranger, 100, 11, &body)?;
        ensure!(statuses == [(401, 1100)], "{statuses:?}");
        Ok(())
    })
}

#[test]
fn millions_of_attributes_of_strangers_are_not_read() -> Result<()> {
    let pair = checked_by_the_daemon()?;
    let stranger = Client::new(pair.sidecar.tcp_addr());
    let body = attributes_of(LARGE);
    withstands(&pair, MEMORY, || {
        let statuses = all_at_once(&stranger, 8, 1, &body)?;
        ensure!(statuses == [(401, 8)], "{statuses:?}");
        Ok(())
    })
}

#[test]
fn large_bodies_of_authorized_callers_are_held_one_at_a_time() -> Result<()> {
    let pair = checked_by_the_daemon()?;
    let authorized = pair.sidecar.client();
    let body = call_of(LARGE);
    withstands(&pair, 200 * MIB, || {
        let statuses = all_at_once(&authorized, 8, 1, &body)?;
        ensure!(statuses == [(200, 8)], "{statuses:?}");
        Ok(())
    })
}

/// Fails unless authorized callers get replies while many connections have sent these bytes and are still
/// open.
fn answers_beside(pair: &Pair, crowd_of: &[u8]) -> Result<()> {
    let stranger = Client::new(pair.sidecar.tcp_addr());
    let waiting = crowd(&stranger, 1000, crowd_of);
    let authorized = pair.sidecar.client();
    for _ in 0..10 {
        authorized.call("supervisor.getState", ())?;
    }
    drop(waiting);
    Ok(())
}

#[test]
fn many_large_heads_and_bodies_cost_little_memory() -> Result<()> {
    raise_file_limit()?;
    let pair = checked_by_the_daemon()?;
    let stranger = Client::new(pair.sidecar.tcp_addr()).kept_alive();
    let long = "x".repeat(240 << 10);
    let head = stranger.request_bytes("GET", "/twiddler/health", &[("X", &long)], None);
    let body = stranger.request_bytes("POST", "/RPC2", &[], Some(&call_of(60 << 10)));
    // The reply 401 shows the proxy that supervisord requires credentials.
    assert_eq!(stranger.get("/")?.status, 401);
    withstands(&pair, MEMORY, || {
        for bytes in [
            &head[..head.len() - 4],
            &head,
            &body[..body.len() - 4],
            &body,
        ] {
            answers_beside(&pair, bytes)?;
        }
        Ok(())
    })
}

#[test]
fn open_connections_keep_no_memory_of_requests() -> Result<()> {
    raise_file_limit()?;
    let pair = checked_by_the_daemon()?;
    let stranger = Client::new(pair.sidecar.tcp_addr()).kept_alive();
    let head_of = |size| {
        let long = "x".repeat(size);
        stranger.request_bytes("GET", "/twiddler/health", &[("X", &long)], None)
    };
    let body = stranger.request_bytes("POST", "/RPC2", &[], Some(&call_of(60 << 10)));
    withstands(&pair, MEMORY, || {
        for (request, status) in [
            (head_of(240 << 10), 200),
            (head_of(22 << 10), 200),
            (body, 401),
        ] {
            answer_one_by_one(&stranger, 1000, &request, status)?;
        }
        Ok(())
    })
}

/// Sends a request on each of `count` connections, one after the other, and keeps all of them open.
fn answer_one_by_one(client: &Client, count: usize, request: &[u8], status: u16) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = client.connect()?;
        connection.send(request)?;
        let answered = connection.read_reply()?.status;
        ensure!(answered == status, "answered {answered}");
        connections.push(connection);
    }
    Ok(())
}

/// More requests than connections are allowed, all of which wait for supervisord.
const CROWD: usize = MAX_CONNECTIONS + 100;

#[test]
fn many_health_requests_keep_nobody_out() -> Result<()> {
    raise_file_limit()?;
    let pair = checked_by_the_daemon()?;
    pair.daemon.signal("STOP")?;
    let stranger = Client::new(pair.sidecar.tcp_addr());
    let request = stranger.request_bytes("GET", "/twiddler/health", &[], None);
    let waiting = crowd(&stranger, CROWD, &request);
    assert_eq!(waiting.len(), CROWD);
    let authorized = pair.sidecar.client();
    let call = write::call("supervisor.getState", &[]);
    let mut honest = authorized.connect()?;
    honest.send(&authorized.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
    assert!(!honest.is_closed()?);
    pair.daemon.signal("CONT")?;
    assert_eq!(honest.read_reply()?.status, 200);
    Ok(())
}

/// Callers with invalid credentials, all of which wait for the daemon.
#[test]
fn many_guesses_keep_nobody_out_while_the_daemon_is_busy() -> Result<()> {
    raise_file_limit()?;
    let pair = checked_by_the_daemon()?;
    let stranger = Client::new(pair.sidecar.tcp_addr()).with_credentials("nobody", "knows");
    let authorized = pair.sidecar.client();
    let idle_client = pair.sidecar.client().kept_alive();
    let call = write::call("supervisor.getState", &[]);
    let request = authorized.request_bytes("POST", "/RPC2", &[], Some(&call));
    let idle_request = idle_client.request_bytes("POST", "/RPC2", &[], Some(&call));
    let mut idle = idle_client.connect()?;
    idle.send(&idle_request)?;
    assert_eq!(idle.read_reply()?.status, 200);
    pair.daemon.signal("STOP")?;
    let mut former = authorized.connect()?;
    former.send(&request)?;
    let guess = stranger.request_bytes("POST", "/RPC2", &[], Some(&call));
    let waiting = crowd(&stranger, CROWD, &guess);
    let mut newcomer = authorized.connect()?;
    newcomer.send(&request)?;
    // Authorized connections stay open, waiting or idle.
    let closed = [
        former.is_closed()?,
        newcomer.is_closed()?,
        idle.is_closed()?,
    ];
    pair.daemon.signal("CONT")?;
    assert_eq!(closed, [false; 3]);
    idle.send(&idle_request)?;
    for mut honest in [former, newcomer, idle] {
        assert_eq!(honest.read_reply()?.status, 200);
    }
    assert_eq!(waiting.len(), CROWD);
    Ok(())
}
