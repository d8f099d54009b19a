//! Changes to groups with running, stopped, exited and failed processes, during other calls, affect only
//! the processes that they name.
//!
//! The changes are the same in every run. `TEST_EFFORT` multiplies their number, and `TEST_SEED` selects
//! others.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::common::dice::{seed, times};
use crate::common::include::ensure_include_holds;
use crate::common::{
    Client, Daemon, Dice, LIMIT, Row, Sidecar, eventually, items, options, rows, value,
};
use anyhow::{Context, Result, anyhow, ensure};
use supervisor_twiddler::xmlrpc::Value;

const CHANGES: usize = 200;
const TRAFFIC: usize = 3;

/// Each group has a running, a never started, an exited and a failed process.
fn user() -> String {
    let mut conf = String::new();
    for group in ["one", "two", "three"] {
        let names = ["runs", "never", "exited", "failed"].map(|name| format!("{group}-{name}"));
        conf += &format!("[group:{group}]\nprograms = {}\n", names.join(","));
        let [runs, never, exited, failed] = &names;
        let say = |next: &str| format!("/bin/sh -c 'echo {group} says; {next}'");
        conf += &format!(
            "[program:{runs}]\ncommand = {}\nstartsecs = 0\n",
            say("exec sleep 600")
        );
        conf += &format!("[program:{never}]\ncommand = /bin/cat\nautostart = false\n");
        conf += &format!(
            "[program:{exited}]\ncommand = {}\nstartsecs = 0\nautorestart = false\nexitcodes = 3\n",
            say("exit 3")
        );
        conf += &format!(
            "[program:{failed}]\ncommand = {}\nstartsecs = 60\nstartretries = 0\nautorestart = false\n",
            say("exit 1")
        );
    }
    conf + "[program:lone]\ncommand = /bin/sleep 600\nstartsecs = 0\n\
            [eventlistener:ears]\nevents = TICK_3600\ncommand = /bin/sleep 600\nstartsecs = 0\n"
}

const GROUPS: [&str; 6] = ["one", "two", "three", "lone", "ears", "added"];

/// Each process that no change names: the daemon's information about it, and its log.
type Bystanders = BTreeMap<String, (Row, String)>;

/// Reads the processes that no change names.
fn bystanders(daemon: &Daemon) -> Result<Bystanders> {
    let mut bystanders = Bystanders::new();
    for row in rows(&daemon.client())? {
        let is_users = row.name.contains('-') || row.name == "lone" || row.name == "ears";
        if is_users || row.name == "stays" {
            let log = fs::read_to_string(&row.logfile)
                .with_context(|| format!("the log of {}", row.namespec()))?;
            bystanders.insert(row.name.clone() + "@" + &row.group, (row, log));
        }
    }
    Ok(bystanders)
}

fn wait_until_settled(daemon: &Daemon) -> Result<()> {
    for group in ["one", "two", "three"] {
        daemon.wait_for_state(&format!("{group}:{group}-runs"), "RUNNING")?;
        daemon.wait_for_state(&format!("{group}:{group}-exited"), "EXITED")?;
        daemon.wait_for_state(&format!("{group}:{group}-failed"), "FATAL")?;
    }
    daemon.wait_for_state("lone", "RUNNING")?;
    daemon.wait_for_state("ears", "RUNNING")?;
    eventually(LIMIT, || {
        let now = bystanders(daemon)?;
        for group in ["one", "two", "three"] {
            let (_, log) = &now[&format!("{group}-runs@{group}")];
            ensure!(*log == format!("{group} says\n"), "{log:?}");
        }
        Ok(())
    })
}

fn program(dice: &mut Dice) -> Value {
    options(&[
        ("command", value("/bin/cat")),
        ("autostart", value(dice.one_in(2))),
        ("startsecs", value(0)),
        ("numprocs", value([1, 1, 3][dice.roll(3)])),
        ("process_name", value("%(program_name)s_%(process_num)d")),
    ])
}

/// Makes a random change or call. Whether it succeeds depends on the earlier ones.
fn change(client: &Client, dice: &mut Dice) -> Result<bool> {
    let group = dice.pick(&GROUPS[..]);
    let name = dice.pick(&["p", "q", "r", "s", "t", "u", "v", "w"]);
    let mut added = rows(client)?;
    added.retain(|row| row.name.contains('_'));
    // About as many removals as additions.
    let has_many = added.len() > 20;
    let result = match (dice.roll(12), dice.choose(&added)) {
        (0, _) => {
            let wrong = options(&[("command", "x %(nope)s")]);
            client.call("twiddler.addProcessToGroup", (group, name, wrong))
        }
        (1, Some(row)) => client.call("supervisor.startProcess", (row.namespec(),)),
        (2, Some(row)) => client.call("supervisor.signalProcess", (row.namespec(), "KILL")),
        (roll, Some(row)) if has_many || roll < 7 => {
            // Sometimes without waiting, so that some are removed while they stop.
            let _ = client.call("supervisor.stopProcess", (row.namespec(), !dice.one_in(4)));
            client.call("twiddler.removeProcessFromGroup", (&row.group, &row.name))
        }
        _ => client.call("twiddler.addProcessToGroup", (group, name, program(dice))),
    };
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.fault().is_some() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The calls of the other clients, which change nothing.
fn traffic(client: &Client, number: usize, is_running: &AtomicBool) -> Result<usize> {
    let mut calls = 0;
    while is_running.load(Ordering::Relaxed) {
        match (number + calls) % 5 {
            0 => drop(client.call("supervisor.getAllProcessInfo", ())?),
            1 => drop(client.call("supervisor.getProcessInfo", ("one:one-runs",))?),
            2 => drop(client.call("twiddler.getGroupNames", ())?),
            3 => drop(client.call("supervisor.reloadConfig", ())?),
            _ => drop(client.get("/")?),
        }
        calls += 1;
    }
    Ok(calls)
}

#[test]
fn random_changes_to_full_groups_do_not_affect_other_processes() -> Result<()> {
    let changes: usize = times(CHANGES)?;
    let seed: u64 = seed(1)?;
    let daemon = Daemon::start(&user())?;
    wait_until_settled(&daemon)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().kept_alive();
    client.call("twiddler.addGroup", ("added", 3))?;
    // Some added processes are not named by any change either.
    for group in ["added", "one", "ears"] {
        let given = options(&[
            ("command", "/bin/sh -c 'echo added; exec sleep 600'"),
            ("startsecs", "0"),
        ]);
        client.call("twiddler.addProcessToGroup", (group, "stays", given))?;
    }
    let before = eventually(LIMIT, || {
        let now = bystanders(&daemon)?;
        ensure!(now.len() == 17, "{:?}", now.keys());
        let up = |(row, log): &(Row, String)| {
            row.name != "stays" || row.state == "RUNNING" && log == "added\n"
        };
        ensure!(now.values().all(up), "{now:?}");
        Ok(now)
    })?;

    let is_running = AtomicBool::new(true);
    let calls = AtomicUsize::new(0);
    let successes = thread::scope(|scope| -> Result<usize> {
        let others: Vec<_> = (0..TRAFFIC)
            .map(|number| {
                let (sidecar, is_running, calls) = (&sidecar, &is_running, &calls);
                scope.spawn(move || -> Result<()> {
                    let client = sidecar.client();
                    calls.fetch_add(traffic(&client, number, is_running)?, Ordering::Relaxed);
                    Ok(())
                })
            })
            .collect();
        let successes = changes_in_turn(&client, &daemon, seed, changes, &before);
        is_running.store(false, Ordering::Relaxed);
        for other in others {
            other
                .join()
                .map_err(|_| anyhow!("a reading client panicked"))??;
        }
        successes
    })?;
    let calls = calls.into_inner();
    println!("{successes} of {changes} changes were made beside {calls} calls of others");
    ensure!(
        successes > changes / 4,
        "only {successes} of {changes} changes were made"
    );
    ensure!(
        calls > changes / 4,
        "only {calls} calls were made beside them"
    );
    ensure_include_holds(&daemon, &[])?;

    // Clients of the sidecar see the same.
    let seen = client.call("supervisor.getAllProcessInfo", ())?;
    for (row, _) in before.values() {
        let name = row.group.split('~').next().unwrap_or_default();
        let shown = Row {
            group: name.to_owned(),
            ..row.clone()
        };
        let is_visible = items(&seen)?
            .iter()
            .any(|info| Row::read(info).is_ok_and(|row| row == shown));
        ensure!(is_visible, "{shown:?} is not visible");
    }
    Ok(())
}

fn changes_in_turn(
    client: &Client,
    daemon: &Daemon,
    seed: u64,
    changes: usize,
    before: &Bystanders,
) -> Result<usize> {
    let mut dice = Dice::new(seed);
    let mut successes = 0;
    for number in 0..changes {
        successes += usize::from(change(client, &mut dice)?);
        if number % 10 == 9 || number + 1 == changes {
            let now = bystanders(daemon)?;
            for (name, earlier) in before {
                ensure!(
                    now.get(name) == Some(earlier),
                    "seed {seed}, change {number}: {name} was\n{earlier:?}\nand is\n{:?}",
                    now.get(name)
                );
            }
        }
    }
    Ok(successes)
}
