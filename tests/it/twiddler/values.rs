//! Option values arrive unchanged.

use std::fs;

use super::{ensure_restarts_cleanly, front, group_names};
use crate::common::include::ensure_include_holds;
use crate::common::{Dice, Picture, eventually, items, member, number, options, text, value};
use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const LETTERS: &[&str] = &[
    "a",
    "B",
    "7",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\n ",
    ";",
    " ;",
    "#",
    " #",
    "\n#",
    "[",
    "]",
    "\n[program:a]\n",
    "\ncommand=/bin/false",
    "\n[include]\nfiles=/etc/*",
    "=",
    ":",
    "%%",
    "%%(here)s",
    "\\",
    "\"",
    "'",
    ",",
    "~",
    "$",
    "`",
    "&",
    "<",
    ">",
    "]]>",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{3000}",
    "ä",
    "\u{1f600}",
    "-",
    "/",
    "*",
    "{",
    "}",
];

fn hostile(dice: &mut Dice, without: &[char]) -> String {
    let mut text = String::new();
    while text.trim().is_empty() {
        text = (0..1 + dice.roll(12)).map(|_| dice.pick(LETTERS)).collect();
        text.retain(|letter| !without.contains(&letter));
    }
    text
}

/// The daemon's expansion of a text without format expressions.
fn expanded(text: &str) -> String {
    text.replace("%%", "%")
}

#[test]
fn a_thousand_hostile_values_arrive_unchanged() -> Result<()> {
    const BATCHES: usize = 10;
    const BATCH: usize = 100;
    let (daemon, _sidecar, client) = front()?;
    let users = ["web", "lone"];
    let before = Picture::of(&daemon, &users)?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let mut dice = Dice::new(1);
    for batch in 0..BATCHES {
        let programs: Vec<(String, String, String)> = (0..BATCH)
            .map(|index| {
                (
                    format!("h{batch}-{index}"),
                    hostile(&mut dice, &[]),
                    hostile(&mut dice, &[]),
                )
            })
            .collect();
        let calls: Vec<(&str, Vec<Value>)> = programs
            .iter()
            .map(|(name, command, directory)| {
                let given = options(&[
                    ("command", command.as_str()),
                    ("directory", directory),
                    ("autostart", "false"),
                ]);
                ("twiddler.addProcessToGroup", params!["g", name, given])
            })
            .collect();
        for (result, (name, command, directory)) in client.multicall(&calls)?.iter().zip(&programs)
        {
            ensure!(
                *result == value(true),
                "{name}: {result:?} for {command:?} in {directory:?}"
            );
        }
        let configs = daemon.call("supervisor.getAllConfigInfo", ())?;
        for (name, command, directory) in &programs {
            let mut matching = items(&configs)?
                .iter()
                .filter(|config| member(config, "name").is_ok_and(|text| text == &value(name)));
            let (Some(config), None) = (matching.next(), matching.next()) else {
                anyhow::bail!("{name} is not there just once");
            };
            for (option, sent) in [("command", command), ("directory", directory)] {
                let arrived = text(member(config, option)?)?;
                ensure!(
                    arrived == expanded(sent),
                    "{name}: {option} {sent:?} arrived as {arrived:?}"
                );
            }
        }
        let names = group_names(&client)?;
        ensure!(names == ["empty", "g", "lone", "web"], "{names:?}");
    }
    let after = Picture::of(&daemon, &users)?;
    before
        .of_groups(&users)
        .ensure_same(&after.of_groups(&users))?;
    ensure_include_holds(&daemon, &[])?;
    ensure_restarts_cleanly(&daemon)
}

#[test]
fn a_child_gets_the_values_that_were_sent() -> Result<()> {
    const PROGRAMS: usize = 40;
    let (_daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let mut dice = Dice::new(2);
    for index in 0..PROGRAMS {
        let group = ["g", "web"][index % 2];
        let name = format!("h{index}");
        let arguments: Vec<String> = (0..1 + dice.roll(4))
            .map(|_| hostile(&mut dice, &[]))
            .collect();
        // Quotes cannot be escaped in a value of `environment`.
        let variable = hostile(&mut dice, &['"', '\'']);
        let quoted: Vec<String> = arguments
            .iter()
            .map(|argument| format!("'{}'", argument.replace('\'', "'\"'\"'")))
            .collect();
        let given = options(&[
            (
                "command",
                format!("/bin/sh -c 'read x' {}", quoted.join(" ")),
            ),
            (
                "environment",
                format!("A=\"{variable}\",B=\"%(program_name)s %(group_name)s\""),
            ),
            ("autostart", "false".to_owned()),
            ("startsecs", "0".to_owned()),
        ]);
        client.call("twiddler.addProcessToGroup", (group, &name, given))?;
        let namespec = format!("{group}:{name}");
        client.call("supervisor.startProcess", (&namespec,))?;
        let info = client.call("supervisor.getProcessInfo", (&namespec,))?;
        let pid = number(member(&info, "pid")?)?;
        let (cmdline, environ) = eventually(crate::common::LIMIT, || {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline"))?;
            ensure!(
                cmdline.starts_with(b"/bin/sh\0"),
                "not yet what it was started as"
            );
            Ok((cmdline, fs::read(format!("/proc/{pid}/environ"))?))
        })?;
        let words = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.trim_end_matches('\0')
                .split('\0')
                .map(str::to_owned)
                .collect()
        };
        let mut expected: Vec<String> = ["/bin/sh", "-c", "read x"].map(str::to_owned).into();
        expected.extend(arguments.iter().map(|argument| expanded(argument)));
        ensure!(
            words(&cmdline) == expected,
            "{:?} and not {expected:?}",
            words(&cmdline)
        );
        let environ = words(&environ);
        for entry in [
            format!("A={}", expanded(&variable)),
            format!("B={name} {group}"),
            format!("SUPERVISOR_GROUP_NAME={group}"),
            format!("SUPERVISOR_PROCESS_NAME={name}"),
        ] {
            ensure!(environ.contains(&entry), "no {entry:?} in {environ:?}");
        }
        client.call("supervisor.stopProcess", (&namespec, false))?;
    }
    Ok(())
}
