//! All attacks at once, beside clients who mean well: nobody of them waits or fails, and nothing grows.
//!
//! It lasts 15 s; with `TEST_ALONE=1`, which says that no other test takes its time, a minute, and ten
//! times that with `TEST_EFFORT=10`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::dice::times;
use crate::common::{
    Client, Daemon, MIB, Sidecar, attributes_of, basic, call_of, crowd, descriptors, eventually,
    is_alone, memory, options, peak_memory, raise_file_limit, value,
};
use crate::strangers::{Pair, judged_by};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::limits::MAX_CONNECTIONS;
use supervisor_twiddler::xmlrpc::write;

/// Ten programs that run, and some that take long to start.
const PROGRAMS: &str = "\
[program:cat]\ncommand = /bin/cat\nnumprocs = 10\nprocess_name = %(process_num)d\n\
[program:slow]\ncommand = /bin/sleep 600\nnumprocs = 8\nprocess_name = %(process_num)d\n\
autostart = false\nstartsecs = 8\nstdout_logfile = NONE\nstderr_logfile = NONE\n";

const SHORT: Duration = Duration::from_secs(15);
const LONG: Duration = Duration::from_secs(60);
/// How long clients who mean well may wait, but for one call in a hundred. Attackers and supervisord have
/// the same cores.
const P99: Duration = Duration::from_millis(250);
/// The same beside other tests, which have the cores too.
const P99_IN_COMPANY: Duration = Duration::from_secs(1);
/// How long supervisord may take to answer on its own socket.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// What supervisord may have, of the 1024 that it is given: some are for connections of callers who have
/// gone, which it has not noticed yet.
const DESCRIPTORS: usize = 700;
/// Each attack alone takes no more than 64 MiB.
const MEMORY: usize = 96 * MIB;
const MEMORY_AFTER: usize = 40 * MIB;
const RECOVERY: Duration = Duration::from_secs(10);
/// What memory may differ by from one time of asking to another.
const NOISE: usize = 8 * MIB;
/// The same for descriptors of supervisord: files of logs whose followers have gone are closed by Python's
/// collector, many at a time.
const DESCRIPTOR_NOISE: usize = 150;
/// So many of them come at once.
const AT_ONCE: usize = 10;
/// How long a crowd takes to come. The cores are shared with those who attack.
const STAY: Duration = Duration::from_secs(1);

fn duration() -> Result<Duration> {
    let whole = if is_alone() { LONG } else { SHORT };
    Ok(whole * u32::try_from(times(1)?)?)
}

/// Something that is done to the proxy, again and again.
type Attack = (&'static str, Box<dyn Fn(usize) + Send + Sync>);

fn attacks(sidecar: &Sidecar) -> Vec<Attack> {
    let stranger = Client::new(sidecar.tcp_addr());
    let known = sidecar.client();
    let request = |client: &Client, headers: &[(&str, &str)], body: &[u8]| {
        client.request_bytes("POST", "/RPC2", headers, Some(body))
    };
    let state = write::call("supervisor.getState", &[]);
    let health = stranger.request_bytes("GET", "/twiddler/health", &[], None);
    let ordinary = request(&stranger, &[], &state);
    let half_head = ordinary[..ordinary.len() / 2].to_vec();
    let body = request(&stranger, &[], &call_of(60 << 10));
    let half_body = body[..body.len() / 2].to_vec();
    let large = request(&stranger, &[], &call_of(MIB));
    let attributes = request(&stranger, &[], &attributes_of(MIB));
    let long = "x".repeat(240 << 10);
    let head = stranger.request_bytes("GET", "/", &[("X", &long)], None);
    let tail = known.request_bytes("GET", "/logtail/cat:0", &[], None);
    // Each crowd comes little by little, before the next takes its place.
    let crowd_of = |name: &'static str, number: usize, bytes: Vec<u8>| -> Attack {
        let client = Client::new(sidecar.tcp_addr());
        let attack = move |_| {
            let mut there = Vec::new();
            for _ in 0..number / AT_ONCE {
                there.push(crowd(&client, AT_ONCE, &bytes));
                thread::sleep(STAY * AT_ONCE as u32 / number as u32);
            }
        };
        (name, Box::new(attack))
    };
    let mut attacks = vec![
        crowd_of("nothing is sent", MAX_CONNECTIONS, Vec::new()),
        crowd_of("half a head", 200, half_head),
        crowd_of("half a body", 100, half_body),
        crowd_of("health", 100, health),
        crowd_of("calls without credentials", 100, ordinary),
        crowd_of("large heads", 20, head),
        crowd_of("large bodies", 10, large),
        crowd_of("attributes", 10, attributes),
    ];
    let guesser = Client::new(sidecar.tcp_addr());
    attacks.push((
        "guesses",
        Box::new(move |number| {
            let wrong = basic("daemon", &format!("guess {number}"));
            let bytes =
                guesser.request_bytes("POST", "/RPC2", &[("Authorization", &wrong)], Some(&state));
            let guesses = crowd(&guesser, 10, &bytes);
            thread::sleep(STAY / 10);
            drop(guesses);
        }),
    ));
    // Those who were let in may be greedy too.
    let starter = sidecar.client();
    attacks.push((
        "starts that wait",
        Box::new(move |_| {
            let start = |number| {
                let name = format!("slow:{number}");
                let call = write::call("supervisor.startProcess", &[value(name.as_str())]);
                let bytes = starter.request_bytes("POST", "/RPC2", &[], Some(&call));
                crowd(&starter, 1, &bytes)
            };
            let waiting: Vec<_> = (0..8).map(start).collect();
            thread::sleep(STAY);
            drop(waiting);
            let _ = starter.call("supervisor.stopProcessGroup", ("slow",)); // some did not start
        }),
    ));
    attacks.push((
        "followers who read nothing",
        Box::new(move |_| {
            let crowd = crowd(&known, 20, &tail);
            thread::sleep(STAY);
            drop(crowd);
        }),
    ));
    attacks
}

/// Calls until it is over, and hands over how long each call took.
fn calls(client: &Client, over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        client
            .call("supervisor.getState", ())
            .with_context(|| format!("call {}", took.len()))?;
        took.push(began.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(took)
}

/// Adds and removes a program until it is over.
fn changes(client: &Client, over: &AtomicBool) -> Result<usize> {
    let program = options(&[("command", "/bin/cat"), ("autostart", "false")]);
    let mut made = 0;
    while !over.load(Ordering::Relaxed) {
        client.call(
            "twiddler.addProgramToGroup",
            ("cat", "more", program.clone()),
        )?;
        client.call("twiddler.removeProcessFromGroup", ("cat", "more"))?;
        made += 1;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(made)
}

/// What was taken over time.
#[derive(Default)]
struct Taken {
    /// Bytes of the proxy's memory.
    memory: Vec<usize>,
    /// Descriptors of supervisord.
    descriptors: Vec<usize>,
}

/// What is taken while supervisord answers and has few descriptors.
fn watch(daemon: &Daemon, sidecar: &Sidecar, until: Instant) -> Result<Taken> {
    let mut taken = Taken::default();
    while Instant::now() < until {
        let began = Instant::now();
        daemon.call("supervisor.getState", ())?;
        let (took, open) = (began.elapsed(), descriptors(daemon.pid())?);
        ensure!(took < ANSWER_TIME, "supervisord took {took:?}");
        ensure!(open < DESCRIPTORS, "supervisord has {open} descriptors");
        taken.descriptors.push(open);
        taken.memory.push(memory(sidecar.pid())?);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(taken)
}

/// The medians of the first, the second and the last third.
fn thirds(of: &[usize]) -> Vec<usize> {
    of.chunks(of.len() / 3 + 1).map(median).collect()
}

fn median(of: &[usize]) -> usize {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[test]
fn nobody_fails_or_waits_under_all_attacks_at_once_and_nothing_grows() -> Result<()> {
    raise_file_limit()?;
    let Pair { sidecar, daemon } = judged_by(PROGRAMS)?;
    let pid = sidecar.pid();
    sidecar.client().call("supervisor.getState", ())?;
    let before = descriptors(pid)?;
    let over = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    let attacks = attacks(&sidecar);
    let kept = sidecar.client().kept_alive();
    let each = sidecar.client();
    let changer = sidecar.client();
    let until = Instant::now() + duration()?;
    thread::scope(|scope| -> Result<()> {
        for (name, attack) in &attacks {
            let (over, rounds) = (&over, &rounds);
            thread::Builder::new()
                .name((*name).to_owned())
                .spawn_scoped(scope, move || {
                    for number in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        attack(number);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                })?;
        }
        let honest = [
            scope.spawn(|| calls(&kept, &over)),
            scope.spawn(|| calls(&each, &over)),
        ];
        let changes = scope.spawn(|| changes(&changer, &over));
        let watched = watch(&daemon, &sidecar, until);
        over.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        for (honest, who) in honest
            .into_iter()
            .zip(["kept alive", "a connection a call"])
        {
            let joined = honest.join();
            let times = joined.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            took.extend(times.with_context(|| who.to_owned())?);
        }
        let changed = changes.join();
        let changed = changed.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let changed = changed.context("changes")?;
        took.sort_unstable();
        let p99 = took[took.len() * 99 / 100];
        let taken = watched?;
        let (bytes, open) = (thirds(&taken.memory), thirds(&taken.descriptors));
        println!(
            "{} rounds of attacks, {} calls, p50 {:?}, p99 {p99:?}, slowest {:?}, {changed} changes, \
             MiB {:?}, descriptors of supervisord {open:?}, at most {:?}",
            rounds.load(Ordering::Relaxed),
            took.len(),
            took[took.len() / 2],
            took[took.len() - 1],
            bytes.iter().map(|bytes| bytes / MIB).collect::<Vec<_>>(),
            taken.descriptors.iter().max(),
        );
        ensure!(changed > 0 && took.len() > 100, "{changed}, {}", took.len());
        let most = if is_alone() { P99 } else { P99_IN_COMPANY };
        ensure!(p99 <= most, "{p99:?}");
        ensure!(bytes[2] <= bytes[0] + NOISE, "memory grows: {bytes:?}");
        ensure!(
            !is_alone() || open[2] <= open[1] + DESCRIPTOR_NOISE,
            "descriptors grow: {open:?}"
        );
        Ok(())
    })?;
    let peak = peak_memory(pid)?;
    println!("at most {} MiB", peak / MIB);
    ensure!(peak <= MEMORY, "{} MiB at most", peak / MIB);
    eventually(RECOVERY, || {
        let (left, open) = (memory(pid)?, descriptors(pid)?);
        ensure!(left <= MEMORY_AFTER, "{} MiB are left", left / MIB);
        ensure!(open <= before + 16, "{open} descriptors are left");
        Ok(())
    })
}
