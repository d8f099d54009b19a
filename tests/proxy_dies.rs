//! The proxy ends by SIGKILL in the middle of whatever it does. After its next start what it
//! answered holds, what it did not answer holds whole or not at all, and nobody else has noticed.
//!
//! `TWIDDLER_TEST_KILLS` says how often the proxy is killed under a stream of changes.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::changes::{Model, USER, View, change_until_cut, ensure_nothing_astray, neighbours};
use common::dice::setting;
use common::stuck::{GENERATED, slow_sections, stop_in_a_change};
use common::{CallError, Daemon, Dice, LIMIT, Sidecar, eventually, options};

/// Enough for every pull, and over in a short time; 200 or more say something.
const KILLS: usize = 25;
/// What the proxy keeps beside generated files.
const OWN_FILES: [&str; 3] = [
    ".twiddler-journal",
    ".twiddler-lock",
    "zz-twiddler-persist.conf",
];

#[test]
fn what_was_answered_holds_and_what_was_not_holds_whole_or_not_at_all() -> Result<()> {
    kills_lose_nothing(setting("TWIDDLER_TEST_KILLS", KILLS)?, &[])
}

#[test]
fn the_same_holds_for_what_outlives_the_daemon() -> Result<()> {
    kills_lose_nothing(setting("TWIDDLER_TEST_KILLS", KILLS / 2)?, &["--persist"])
}

fn kills_lose_nothing(kills: usize, arguments: &[&str]) -> Result<()> {
    let daemon = Daemon::start(USER)?;
    for name in common::changes::NEIGHBOURS {
        daemon.wait_for_state(name, "RUNNING")?;
    }
    let before = neighbours(&daemon.client())?;
    let sidecar = Sidecar::start_with(&daemon, arguments)?;
    let mut dice = Dice::new(setting("TWIDDLER_TEST_SEED", 4)?);
    let mut model = Model::new();
    let mut made = 0;
    for kill in 0..kills {
        // Sometimes in the very first change of this life, while all is new to it.
        let (first, moment) = (dice.roll(12), moment(&mut dice));
        let answered = AtomicUsize::new(0);
        let open = thread::scope(|scope| {
            let client = sidecar.socket_client().kept_alive();
            let (model, dice, answered) = (&mut model, &mut dice, &answered);
            let stream = scope.spawn(move || {
                change_until_cut(&client, model, dice, |_| {
                    answered.fetch_add(1, Ordering::Relaxed);
                    true
                })
            });
            eventually(LIMIT, || {
                let enough = answered.load(Ordering::Relaxed) >= first || stream.is_finished();
                ensure!(enough, "only {answered:?} changes are answered");
                Ok(())
            })?;
            thread::sleep(moment); // the moment of death, not a wait
            sidecar.kill()?;
            stream.join().expect("the stream does not panic")
        });
        let (open, error) = open.with_context(|| format!("before kill {kill}"))?;
        let cut = matches!(error, Some(CallError::Transport(_)));
        ensure!(cut, "before kill {kill}: {open:?}: {error:?}");
        made += answered.into_inner();
        let case = || format!("after kill {kill} and {made} changes");
        sidecar.start_again()?;
        let view = View::of(&sidecar.socket_client()).with_context(case)?;
        ensure_clean(&daemon).with_context(case)?;
        model
            .apply_those_seen(&open, &view)
            .and_then(|()| model.ensure_shown_by(&view))
            .and_then(|()| ensure_nothing_astray(&model, &daemon.client(), &open))
            .with_context(|| format!("open: {open:?}"))
            .with_context(case)?;
        ensure!(
            neighbours(&daemon.client())? == before,
            "a neighbour was disturbed"
        );
    }
    eprintln!("{made} changes were answered between {kills} kills");
    ensure!(
        !sidecar.stderr_text().contains(" ERROR "),
        "{}",
        sidecar.stderr_text()
    );
    Ok(())
}

/// Somewhere in the time that two or three changes take.
fn moment(dice: &mut Dice) -> Duration {
    Duration::from_micros(u64::try_from(dice.roll(60_000)).unwrap_or_default())
}

/// Nothing that the daemon reads, and nothing that is not the proxy's own.
fn ensure_clean(daemon: &Daemon) -> Result<()> {
    let names = daemon.include_files()?;
    let known = |name: &String| OWN_FILES.contains(&name.as_str());
    ensure!(
        names.iter().all(known),
        "in the include directory: {names:?}"
    );
    Ok(())
}

#[test]
fn a_program_that_the_daemon_refuses_keeps_it_from_nothing_when_the_proxy_dies() -> Result<()> {
    let daemon = Daemon::start(&(slow_sections() + USER))?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    client.call("twiddler.addGroup", ("own", 1))?;
    let refused = options(&[("command", "/bin/cat"), ("user", "nobody-of-this-name")]);
    stop_in_a_change(&daemon, &client, |attempt| {
        let name = format!("bad{attempt}");
        let params = params!["web", name, refused.clone()];
        ("twiddler.addProgramToGroup", params)
    })?;
    let text = fs::read_to_string(daemon.include_dir().join(GENERATED))?;
    ensure!(text.contains("nobody-of-this-name"), "{text}");
    sidecar.kill()?;
    // Still there, and nothing to read.
    let names = daemon.include_files()?;
    ensure!(names.contains(&GENERATED.to_owned()), "{names:?}");
    ensure!(fs::read(daemon.include_dir().join(GENERATED)).is_err());
    daemon.kill_and_start_again()?;
    sidecar.start_again()?;
    let client = sidecar.socket_client();
    client.call("twiddler.getGroupNames", ())?;
    ensure_clean(&daemon)?;
    let log = sidecar.stderr_text();
    ensure!(log.contains("took away a generated file"), "{log}");
    let fault = client.expect_fault("twiddler.addProgramToGroup", ("web", "bad", refused))?;
    ensure!(fault.code == 2, "{fault:?}");
    Ok(())
}
