//! The proxy is killed by SIGKILL at a random moment. After its next start, all answered changes are there,
//! each unanswered change has happened completely or not at all, and no other process was affected.
//!
//! `TEST_EFFORT` multiplies how often the proxy is killed under a stream of changes.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::changes::{
    Model, USER, View, change_until_cut, ensure_daemon_matches, neighbours,
};
use crate::common::ctl::python_command;
use crate::common::dice::{seed, times};
use crate::common::disk::set_mode;
use crate::common::include::ensure_no_leftovers;
use crate::common::process::send_signal;
use crate::common::stuck::{GENERATED, slow_sections, stop_in_a_change};
use crate::common::{CallError, Daemon, Dice, LIMIT, Process, Sidecar, eventually, options};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

/// Few enough for each pull request. At least 200 are needed for confidence.
const KILLS: usize = 25;
/// The limit for "within a second".
const SOON: Duration = Duration::from_secs(1);
/// The proxy's files besides generated ones.
const OWN_FILES: [&str; 4] = [
    ".twiddler-baseline",
    ".twiddler-journal",
    ".twiddler-lock",
    "zz-twiddler-persist.conf",
];

#[test]
fn answered_changes_survive_and_others_happen_completely_or_not_at_all() -> Result<()> {
    kills_lose_nothing(times(KILLS)?, &[])
}

#[test]
fn answered_changes_survive_with_persist_too() -> Result<()> {
    kills_lose_nothing(times(KILLS / 2)?, &["--persist"])
}

fn kills_lose_nothing(kills: usize, arguments: &[&str]) -> Result<()> {
    let daemon = Daemon::start(USER)?;
    for name in crate::common::changes::NEIGHBOURS {
        daemon.wait_for_state(name, "RUNNING")?;
    }
    let before = neighbours(&daemon.client())?;
    let sidecar = Sidecar::start_with(&daemon, arguments)?;
    let mut dice = Dice::new(seed(4)?);
    let mut model = Model::new();
    let mut answered_changes = 0;
    for kill in 0..kills {
        // Sometimes during the first change after the start of the proxy.
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
        answered_changes += answered.into_inner();
        let case = || format!("after kill {kill} and {answered_changes} changes");
        sidecar.start_again()?;
        let view = View::of(&sidecar.socket_client()).with_context(case)?;
        ensure_clean(&daemon).with_context(case)?;
        model
            .apply_those_seen(&open, &view)
            .and_then(|()| model.ensure_shown_by(&view))
            .and_then(|()| ensure_daemon_matches(&model, &daemon.client(), &open))
            .with_context(|| format!("open: {open:?}"))
            .with_context(case)?;
        ensure!(
            neighbours(&daemon.client())? == before,
            "a neighbour was disturbed"
        );
    }
    eprintln!("{answered_changes} changes were answered between {kills} kills");
    ensure!(
        !sidecar.stderr_text().contains(" ERROR "),
        "{}",
        sidecar.stderr_text()
    );
    Ok(())
}

/// A random time, within that of two or three changes.
fn moment(dice: &mut Dice) -> Duration {
    Duration::from_micros(u64::try_from(dice.roll(60_000)).unwrap_or_default())
}

/// Fails if the include directory has other files than those of a proxy.
fn ensure_clean(daemon: &Daemon) -> Result<()> {
    ensure_no_leftovers(daemon)?;
    let is_temporary = |name: &str| name.starts_with(".zz-");
    ensure_only(daemon, |name| {
        OWN_FILES.contains(&name) || is_temporary(name)
    })
}

/// Fails if the include directory has a file that a dead proxy has no use for.
fn ensure_removed(daemon: &Daemon) -> Result<()> {
    ensure_only(daemon, |name| OWN_FILES.contains(&name))
}

fn ensure_only(daemon: &Daemon, may_be: impl Fn(&str) -> bool) -> Result<()> {
    let names = daemon.include_files()?;
    ensure!(
        names.iter().all(|name| may_be(name)),
        "in the include directory: {names:?}"
    );
    Ok(())
}

/// Suspends a proxy while the generated file of a program is in place that the daemon refuses.
fn stopped_in_a_change() -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start(&(slow_sections() + USER))?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    client.call("twiddler.addGroup", ("own", 1))?;
    stop_in_a_change(&daemon, &client, |attempt| {
        let name = format!("bad{attempt}");
        (
            "twiddler.addProgramToGroup",
            params!["web", name, refused()],
        )
    })?;
    let text = fs::read_to_string(daemon.include_dir().join(GENERATED))?;
    ensure!(text.contains("nobody-of-this-name"), "{text}");
    Ok((daemon, sidecar))
}

fn refused() -> Value {
    options(&[("command", "/bin/cat"), ("user", "nobody-of-this-name")])
}

#[test]
fn files_of_a_killed_proxy_are_removed_within_a_second() -> Result<()> {
    let (daemon, sidecar) = stopped_in_a_change()?;
    sidecar.kill()?;
    eventually(SOON, || ensure_removed(&daemon))?;
    daemon.kill_and_start_again()?;
    sidecar.start_again()?;
    let client = sidecar.socket_client();
    let fault = client.expect_fault("twiddler.addProgramToGroup", ("web", "bad", refused()))?;
    ensure!(fault.code == 2, "{fault:?}");
    Ok(())
}

#[test]
fn a_change_starts_the_clean_up_process_again() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("first", 1))?;
    let before = children(&sidecar)?;
    ensure!(!before.is_empty(), "no clean-up process");
    send_signal(&before, "KILL")?;
    let mut number = 0;
    eventually(LIMIT, || {
        number += 1;
        client.call("twiddler.addGroup", (format!("another{number}"), 1))?;
        let after = children(&sidecar)?;
        let is_new = |child: &i64| !before.contains(child);
        ensure!(after.iter().any(is_new), "no new clean-up process");
        Ok(())
    })
}

/// The process numbers of the proxy's children.
fn children(sidecar: &Sidecar) -> Result<Vec<i64>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", sidecar.pid()))? {
        let numbers = fs::read_to_string(thread?.path().join("children")).unwrap_or_default(); // it may have ended
        for number in numbers.split_whitespace() {
            children.push(number.parse()?);
        }
    }
    Ok(children)
}

/// Kills the proxy and its children at the same time, as the end of a control group does.
fn kill_all(sidecar: &Sidecar) -> Result<()> {
    sidecar.signal("STOP")?;
    let children = children(sidecar)?;
    if !children.is_empty() {
        send_signal(&children, "KILL")?;
    }
    sidecar.kill()?;
    Ok(())
}

#[test]
fn a_remaining_generated_file_does_not_keep_the_daemon_from_starting() -> Result<()> {
    let (daemon, sidecar) = stopped_in_a_change()?;
    kill_all(&sidecar)?;
    // The link remains, and leads nowhere.
    let names = daemon.include_files()?;
    ensure!(names.contains(&GENERATED.to_owned()), "{names:?}");
    ensure!(fs::read(daemon.include_dir().join(GENERATED)).is_err());
    daemon.kill_and_start_again()?;
    sidecar.start_again()?;
    sidecar.socket_client().call("twiddler.getGroupNames", ())?;
    ensure_clean(&daemon)?;
    let log = sidecar.stderr_text();
    ensure!(log.contains("removed a generated file"), "{log}");
    Ok(())
}

/// A program that gets a given process number under another account, and puts a file of its own at the end
/// of a link through that process, as far as it can read the link.
const SQUATTER: &str = r#"
import os, re, sys, tempfile

wanted, link, fds = int(sys.argv[1]), sys.argv[2], range(3, 64)
text = "[group:owned]\nprograms=owned\n[program:owned]\ncommand=/bin/true\n"

def squat():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    names, at = ["link", "files"], link
    try:
        while True:
            target = os.readlink(at)
            through = re.match(r"/proc/\d+/fd/\d+/(.*)", target)
            if through:
                names.append(through.group(1))
                break
            at = os.path.join(os.path.dirname(at), target)
    except OSError:
        pass
    own = tempfile.mkdtemp()
    os.chmod(own, 0o755)
    for name in names:
        with open(os.path.join(own, name), "w") as file:
            file.write(text)
    handle = os.open(own, os.O_RDONLY)
    for fd in fds:
        if fd != handle:
            os.dup2(handle, fd)
    print("squatting", names[2:], flush=True)
    sys.stdin.read()
    for name in names:
        os.remove(os.path.join(own, name))
    os.rmdir(own)

for _ in range(500):
    try:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(wanted - 1))
    except OSError:
        print("left out", flush=True)
        sys.exit()
    child = os.fork()
    if child == 0:
        if os.getpid() == wanted:
            squat()
        os._exit(0)
    os.waitpid(child, 0)
    if child == wanted:
        sys.exit()
print("never", flush=True)
"#;

#[test]
fn no_other_account_can_put_a_file_at_the_end_of_a_remaining_link() -> Result<()> {
    let (daemon, sidecar) = stopped_in_a_change()?;
    let (pid, link) = (sidecar.pid(), daemon.include_dir().join(GENERATED));
    for dir in [daemon.dir(), daemon.include_dir()] {
        set_mode(dir, 0o755)?;
    }
    kill_all(&sidecar)?;
    let mut command = python_command(SQUATTER);
    command.arg(pid.to_string()).arg(&link);
    let squatter = Process::spawn(&mut command)?;
    let output = eventually(LIMIT, || {
        let output = squatter.stdout_text();
        ensure!(
            output.ends_with('\n'),
            "it says nothing: {}",
            squatter.stderr_text()
        );
        Ok(output)
    })?;
    if output == "left out\n" {
        ensure!(
            std::env::var_os("TEST_ALL").is_none(),
            "needs root, and a /proc/sys to write to"
        );
        eprintln!("left out: only root can take a process number on purpose");
        return Ok(());
    }
    ensure!(output.starts_with("squatting"), "{output}");
    ensure!(fs::read(&link).is_err(), "{}", fs::read_to_string(&link)?);
    daemon.signal("CONT")?;
    let reloaded = daemon.call("supervisor.reloadConfig", ())?;
    ensure!(!format!("{reloaded:?}").contains("owned"), "{reloaded:?}");
    squatter.close_stdin();
    squatter.wait()?;
    Ok(())
}

#[test]
fn the_clean_up_process_runs_only_while_there_are_changes() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let children = || -> Result<usize> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", sidecar.pid()))?;
        Ok(children.split_whitespace().count())
    };
    // At its start, the proxy writes the baseline, after queries to the daemon.
    eventually(LIMIT, || {
        ensure!(children()? == 0, "before any change");
        Ok(())
    })?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("own", 1))?;
    client.call("twiddler.removeGroup", ("own",))?;
    ensure!(children()? == 1, "{} for two changes", children()?);
    eventually(LIMIT, || {
        ensure!(children()? == 0, "still there");
        Ok(())
    })
}
