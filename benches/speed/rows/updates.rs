//! Edited files and numbers of processes, beside what the daemon does for the same itself.

use anyhow::{Context, Result};
use supervisor_twiddler::xmlrpc::Value;

use crate::common::leftovers::WorkDir;
use crate::common::{Addr, Daemon, DaemonOptions, Sidecar};
use crate::measure::{Bound, Effort, Line, Turn, alternate, median, ms, ratio, timed};
use crate::setups::{Counter, programs};
use crate::wire::{Wire, request};

const FILE: &str = "conf.d/edited.conf";
const MEMBERS: usize = 20;
/// So many readings may an update cost more than supervisorctl's.
const READINGS: f64 = 3.0;

/// A group of twenty, of which the first so many have `edition`.
fn edited(changed: usize, edition: usize) -> String {
    let names: Vec<String> = (0..MEMBERS).map(|number| format!("w{number}")).collect();
    let mut text = format!("[group:web]\nprograms={}\n", names.join(","));
    for (number, name) in names.iter().enumerate() {
        let edition = if number < changed { edition } else { 0 };
        text += &format!(
            "[program:{name}]\ncommand=/bin/sleep 600\nstartsecs=0\nenvironment=EDITION=\"{edition}\"\n"
        );
    }
    text
}

fn daemon(effort: Effort) -> Result<Daemon> {
    Daemon::start_with(DaemonOptions {
        body: &programs(effort.count(500) - effort.count(500).min(MEMBERS)),
        files: &[(FILE, &edited(0, 0))],
        tcp: true,
        ..DaemonOptions::default()
    })
}

/// A turn: an edit, and the time in which it is in force.
fn updates<'a>(daemon: &'a Daemon, addr: &Addr, changed: usize) -> Result<Turn<'a>> {
    let mut wire = Wire::open(addr)?;
    let update = request("twiddler.updateConfig", &[]);
    wire.call(&update)?;
    let mut edition = 0;
    Ok(Box::new(move || {
        edition += 1;
        daemon.write(FILE, &edited(changed, edition))?;
        Ok(timed(|| wire.call(&update))?.0)
    }))
}

/// The same by supervisorctl's calls on the daemon itself, and what three readings take.
fn by_steps<'a>(daemon: &'a Daemon, changed: usize) -> Result<Turn<'a>> {
    let mut wire = Wire::open(&daemon.socket().into())?;
    let step = |name: &str| request(&format!("supervisor.{name}"), &["web".into()]);
    let read = request("supervisor.reloadConfig", &[]);
    let calls = [
        read.clone(),
        step("stopProcessGroup"),
        step("removeProcessGroup"),
        step("addProcessGroup"),
    ];
    let mut edition = 0;
    Ok(Box::new(move || {
        edition += 1;
        daemon.write(FILE, &edited(changed, edition))?;
        let steps = timed(|| calls.iter().try_for_each(|call| wire.call(call)))?.0;
        let reading = timed(|| wire.call(&read))?.0;
        Ok(steps + READINGS * reading)
    }))
}

/// `updateConfig` of an edited group.
pub(crate) fn edits(effort: Effort) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for changed in [1, MEMBERS] {
        let (ours, theirs) = (daemon(effort)?, daemon(effort)?);
        let sidecar = Sidecar::start(&ours)?;
        let mut turns = [
            updates(&ours, &sidecar.tcp_addr().into(), changed)?,
            by_steps(&theirs, changed)?,
        ];
        let figures = alternate(effort.rounds(11), &mut turns)?;
        lines.push(Line {
            work: format!(
                "`updateConfig`, {changed} of {MEMBERS} changed, 500 programs in the files"
            ),
            ours: ms(median(&figures[0])),
            against: format!(
                "`supervisorctl update`'s calls and 3 readings {}",
                ms(median(&figures[1]))
            ),
            figure: ratio(&figures[0], &figures[1]),
            unit: "x",
            bound: Bound::AtMost(1.0),
        });
        lines.push(readings(effort, changed)?);
    }
    Ok(lines)
}

/// How often the daemon reads its files for an update.
fn readings(effort: Effort, changed: usize) -> Result<Line> {
    let daemon = daemon(effort)?;
    let dir = WorkDir::new("twc-")?;
    let path = dir.path().join("c.sock");
    let counter = Counter::start(&path, daemon.socket(), "reloadConfig")?;
    let between = format!("unix://{}", path.display());
    let sidecar = Sidecar::start_with(&daemon, &["--supervisord", &between])?;
    let mut turn = updates(&daemon, &sidecar.tcp_addr().into(), changed)?;
    // The first of all finds out how files reach the daemon.
    turn()?;
    counter.take();
    turn()?;
    Ok(Line {
        work: "`reloadConfig` for that".to_owned(),
        ours: String::new(),
        against: String::new(),
        figure: counter.take() as f64,
        unit: "call",
        bound: Bound::AtMost(1.0 + READINGS),
    })
}

/// A configured program that gets many processes and loses them, beside one that is added with so many.
pub(crate) fn numbers(effort: Effort) -> Result<Vec<Line>> {
    let most = effort.count(1000);
    let more = most - 2;
    let program = "[group:web]\nprograms=w\n[program:w]\ncommand=/bin/sleep 600\nstartsecs=0\n\
        numprocs=2\nprocess_name=%(program_name)s_%(process_num)d\n";
    let daemon = Daemon::start_with(DaemonOptions {
        body: program,
        tcp: true,
        extra_supervisord: "minfds=8192\n",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let mut wire = Wire::open(&sidecar.tcp_addr().into())?;
    let count = |count: usize| Value::Int(i64::try_from(count).unwrap_or(i64::MAX));
    let scale = |to: usize| {
        let params = ["web".into(), "w".into(), count(to)];
        request("twiddler.scaleProgram", &params)
    };
    let options = Value::Struct(vec![
        ("command".to_owned(), "/bin/sleep 600".into()),
        ("startsecs".to_owned(), "0".into()),
        ("numprocs".to_owned(), count(more)),
        (
            "process_name".to_owned(),
            "%(program_name)s_%(process_num)d".into(),
        ),
    ]);
    let group = |method: &str| request(method, &["dyn".into()]);
    let add_group = request("twiddler.addGroup", &["dyn".into(), Value::Int(999)]);
    let add = request(
        "twiddler.addProcessToGroup",
        &["dyn".into(), "d".into(), options],
    );
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..effort.rounds(11) {
        figures[0].push(timed(|| wire.call(&scale(most)))?.0);
        figures[1].push(timed(|| wire.call(&scale(2)))?.0);
        wire.call(&add_group)?;
        figures[2].push(timed(|| wire.call(&add))?.0);
        let stop = group("supervisor.stopProcessGroup");
        figures[3].push(timed(|| wire.call(&stop).context("stopping"))?.0);
        wire.call(&group("twiddler.removeGroup"))?;
    }
    let line = |work: String, against: &str, ours: usize| Line {
        work,
        ours: ms(median(&figures[ours])),
        against: format!("{against} {}", ms(median(&figures[ours + 2]))),
        figure: ratio(&figures[ours], &figures[ours + 2]),
        unit: "x",
        bound: Bound::AtMost(1.2),
    };
    let adds = format!("`addProcessToGroup` of {more}");
    let stops = format!("`stopProcessGroup` of {more}");
    Ok(vec![
        line(format!("`scaleProgram` from 2 to {most}"), &adds, 0),
        line(format!("`scaleProgram` from {most} to 2"), &stops, 1),
    ])
}
