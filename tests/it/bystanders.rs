//! Changes to groups full of running, stopped, exited and failed processes, under traffic: nobody
//! but those that are named notices.
//!
//! The changes are the same in every run. `BYSTANDER_CHANGES` asks for more, `BYSTANDER_SEED` for
//! others.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::common::dice::{seed, times};
use crate::common::view::ensure_include_holds;
use crate::common::{
    Client, Daemon, Dice, LIMIT, Row, Sidecar, eventually, items, options, rows, value,
};
use anyhow::{Context, Result, anyhow, ensure};
use supervisor_twiddler::xmlrpc::Value;

const CHANGES: usize = 200;
const TRAFFIC: usize = 3;

/// In each group one that runs, one that never ran, one that exited and one that failed.
fn user() -> String {
    let mut conf = String::new();
    for group in ["one", "two", "three"] {
        let names = ["runs", "never", "exited", "failed"].map(|name| format!("{group}-{name}"));
        conf += &format!("[group:{group}]\nprograms = {}\n", names.join(","));
        let [runs, never, exited, failed] = &names;
        let say = |then: &str| format!("/bin/sh -c 'echo {group} says; {then}'");
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

/// What a bystander is: all that the daemon says of it, and what it has written.
type Bystanders = BTreeMap<String, (Row, String)>;

/// The processes that no change names.
fn bystanders(daemon: &Daemon) -> Result<Bystanders> {
    let mut found = Bystanders::new();
    for row in rows(&daemon.client())? {
        let is_users = row.name.contains('-') || row.name == "lone" || row.name == "ears";
        if is_users || row.name == "stays" {
            let log = fs::read_to_string(&row.logfile)
                .with_context(|| format!("the log of {}", row.namespec()))?;
            found.insert(row.name.clone() + "@" + &row.group, (row, log));
        }
    }
    Ok(found)
}

fn settled(daemon: &Daemon) -> Result<()> {
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

/// Names that come and go; whether a call works depends on what went before.
fn change(client: &Client, dice: &mut Dice) -> Result<bool> {
    let group = dice.pick(&GROUPS[..]);
    let name = dice.pick(&["p", "q", "r", "s", "t", "u", "v", "w"]);
    let mut added = rows(client)?;
    added.retain(|row| row.name.contains('_'));
    // About as many go as come.
    let crowded = added.len() > 20;
    let done = match (dice.roll(12), dice.choose(&added)) {
        (0, _) => {
            let wrong = options(&[("command", "x %(nope)s")]);
            client.call("twiddler.addProcessToGroup", (group, name, wrong))
        }
        (1, Some(row)) => client.call("supervisor.startProcess", (row.namespec(),)),
        (2, Some(row)) => client.call("supervisor.signalProcess", (row.namespec(), "KILL")),
        (roll, Some(row)) if crowded || roll < 7 => {
            // Without waiting now and then, so that some are to be removed while they stop.
            let _ = client.call("supervisor.stopProcess", (row.namespec(), !dice.one_in(4)));
            client.call("twiddler.removeProcessFromGroup", (&row.group, &row.name))
        }
        _ => client.call("twiddler.addProcessToGroup", (group, name, program(dice))),
    };
    match done {
        Ok(_) => Ok(true),
        Err(error) if error.fault().is_some() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What others do meanwhile: they look, and touch only what is not there.
fn traffic(client: &Client, number: usize, goes_on: &AtomicBool) -> Result<usize> {
    let mut calls = 0;
    while goes_on.load(Ordering::Relaxed) {
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
fn nobody_notices_random_changes_to_full_groups() -> Result<()> {
    let changes: usize = times(CHANGES)?;
    let seed: u64 = seed(1)?;
    let daemon = Daemon::start(&user())?;
    settled(&daemon)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().kept_alive();
    client.call("twiddler.addGroup", ("added", 3))?;
    // Some that were added are bystanders as well.
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

    let goes_on = AtomicBool::new(true);
    let calls = AtomicUsize::new(0);
    let made = thread::scope(|scope| -> Result<usize> {
        let others: Vec<_> = (0..TRAFFIC)
            .map(|number| {
                let (sidecar, goes_on, calls) = (&sidecar, &goes_on, &calls);
                scope.spawn(move || -> Result<()> {
                    let client = sidecar.client();
                    calls.fetch_add(traffic(&client, number, goes_on)?, Ordering::Relaxed);
                    Ok(())
                })
            })
            .collect();
        let made = changes_in_turn(&client, &daemon, seed, changes, &before);
        goes_on.store(false, Ordering::Relaxed);
        for other in others {
            other
                .join()
                .map_err(|_| anyhow!("somebody stopped looking"))??;
        }
        made
    })?;
    let calls = calls.into_inner();
    println!("{made} of {changes} changes were made beside {calls} calls of others");
    ensure!(
        made > changes / 4,
        "only {made} of {changes} changes were made"
    );
    ensure!(
        calls > changes / 4,
        "only {calls} calls were made meanwhile"
    );
    ensure_include_holds(&daemon, &[])?;

    // And what others see of them through the sidecar is the same.
    let seen = client.call("supervisor.getAllProcessInfo", ())?;
    for (row, _) in before.values() {
        let name = row.group.split('~').next().unwrap_or_default();
        let shown = Row {
            group: name.to_owned(),
            ..row.clone()
        };
        let found = items(&seen)?
            .iter()
            .any(|info| Row::read(info).is_ok_and(|row| row == shown));
        ensure!(found, "{shown:?} is not to be seen");
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
    let mut made = 0;
    for number in 0..changes {
        made += usize::from(change(client, &mut dice)?);
        if number % 10 == 9 || number + 1 == changes {
            let now = bystanders(daemon)?;
            for (name, then) in before {
                ensure!(
                    now.get(name) == Some(then),
                    "seed {seed}, change {number}: {name} was\n{then:?}\nand is\n{:?}",
                    now.get(name)
                );
            }
        }
    }
    Ok(made)
}
