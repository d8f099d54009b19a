//! Callers without credentials: what they send costs the proxy and supervisord next to nothing, and
//! keeps nobody out.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{
    Client, Connection, Daemon, MIB, Sidecar, SidecarOptions, basic, eventually, peak_memory,
};
use supervisor_twiddler::xmlrpc::write;

/// What the check of a password takes here: as much as `argon2` is often told to.
const CHECK_MEMORY: usize = 64 * MIB;
/// What a proxy may take beside that.
const MEMORY: usize = 64 * MIB;
/// How long a guess is waited for before its connection is closed.
const GUESS_TIME: Duration = Duration::from_millis(20);

/// A PHC string for a password.
fn argon2_of(password: &str) -> Result<String> {
    use argon2::password_hash::PasswordHasher;
    let params = argon2::Params::new(u32::try_from(CHECK_MEMORY >> 10)?, 3, 1, None)
        .map_err(anyhow::Error::msg)?;
    let hash = argon2::Argon2::from(params)
        .hash_password_with_salt(password.as_bytes(), b"salt of tests")
        .map_err(anyhow::Error::msg)?;
    Ok(hash.to_string())
}

/// A proxy that asks for `own` and `secret`.
fn guarded(daemon: &Daemon) -> Result<Sidecar> {
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            environment: &[
                ("TWIDDLER_USERNAME", "own"),
                ("TWIDDLER_PASSWORD", &argon2_of("secret")?),
            ],
            ..SidecarOptions::default()
        },
    )
}

fn own_client(sidecar: &Sidecar) -> Client {
    Client::new(sidecar.tcp_addr()).with_credentials("own", "secret")
}

/// Sends a guess, and hangs up before it can have been checked.
fn guess(client: &Client, number: usize) -> Result<()> {
    let call = write::call("supervisor.getState", &[]);
    let authorization = basic("own", &format!("guess {number}"));
    let headers = [("Authorization", authorization.as_str())];
    let mut connection: Connection = client.connect()?;
    connection.send(&client.request_bytes("POST", "/RPC2", &headers, Some(&call)))?;
    thread::sleep(GUESS_TIME);
    Ok(())
}

#[test]
fn guesses_that_hang_up_are_still_checked_one_at_a_time() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = guarded(&daemon)?;
    let stranger = Client::new(sidecar.tcp_addr());
    for number in 0..60 {
        guess(&stranger, number)?;
    }
    own_client(&sidecar).call("supervisor.getState", ())?;
    let peak = peak_memory(sidecar.pid())?;
    assert!(peak <= MEMORY + CHECK_MEMORY, "{} MiB", peak / MIB);
    Ok(())
}

#[test]
fn a_flood_of_guesses_neither_keeps_out_nor_delays_whoever_knows_the_password() -> Result<()> {
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
        eventually(common::LIMIT, || {
            let begun = guesses.load(Ordering::Relaxed);
            ensure!(begun >= 50, "{begun} guesses");
            Ok(())
        })?;
        let user = own_client(&sidecar);
        user.call("supervisor.getState", ())
            .context("before he was let in")?;
        let mut slowest = Duration::ZERO;
        for _ in 0..WARM_CALLS {
            let began = Instant::now();
            user.call("supervisor.getState", ())
                .context("after he was let in")?;
            slowest = slowest.max(began.elapsed());
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
