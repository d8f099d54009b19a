//! Programs that are added and removed, beside the original that does so inside the daemon.

use std::iter;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

use crate::common::leftovers::WorkDir;
use crate::common::{Addr, Daemon, Sidecar};
use crate::measure::{
    Bound, Effort, Line, Turn, alternate, median, milliseconds, ms, percentile, ratio, timed,
};
use crate::setups::{
    ADD, Counter, GROUP, Ours, REMOVE, addition, all_true, in_process, populate, populated_group,
    removal, starting,
};
use crate::wire::{Wire, multicall, request};

const CLIENTS: usize = 8;

/// The option of a program that is not started.
const NOT_STARTED: &str = "autostart=false\n";

/// The parameters that add the program of a number.
type Addition = fn(usize) -> Vec<Value>;

/// A turn: the median time of so many additions, one after another.
fn additions<'a>(addr: &Addr, first: usize, count: usize, addition: Addition) -> Result<Turn<'a>> {
    let mut wire = Wire::open(addr)?;
    let mut numbers = first..;
    Ok(Box::new(move || {
        let mut times = Vec::with_capacity(count);
        for number in numbers.by_ref().take(count) {
            let call = request(ADD, &addition(number));
            times.push(timed(|| wire.call(&call))?.0);
        }
        Ok(median(&times))
    }))
}

/// Adds the programs of these numbers by hand, straight at the daemon, by the calls that it cannot do without, in
/// one request. Returns the time of the request in milliseconds.
fn add_by_hand(
    daemon: &Daemon,
    wire: &mut Wire,
    numbers: Range<usize>,
    options: &str,
) -> Result<f64> {
    let names: Vec<String> = numbers
        .map(|number| format!("{GROUP}~{number:06}"))
        .collect();
    let section = |name| format!("[program:{name}]\ncommand=/bin/cat\n{options}");
    let sections: String = names.iter().map(section).collect();
    daemon.write("conf.d/by-hand.conf", &sections)?;
    let add = |name: String| ("supervisor.addProcessGroup", vec![name.into()]);
    let reload = iter::once(("supervisor.reloadConfig", vec![]));
    let call = multicall(reload.chain(names.into_iter().map(add)));
    Ok(timed(|| wire.call(&call))?.0)
}

/// A turn: the median time of so many additions by hand, one after another.
fn by_hand<'a>(daemon: &'a Daemon, count: usize, options: &'static str) -> Result<Turn<'a>> {
    let mut wire = Wire::open(&daemon.socket().into())?;
    let mut numbers = 0..;
    Ok(Box::new(move || {
        let numbers = numbers.by_ref().take(count);
        let times =
            numbers.map(|number| add_by_hand(daemon, &mut wire, number..number + 1, options));
        Ok(median(&times.collect::<Result<Vec<f64>>>()?))
    }))
}

/// The time in which so many programs are added by hand, as many at a time as there are clients.
fn by_hand_in_batches(count: usize) -> Result<f64> {
    let daemon = Daemon::start(&populated_group())?;
    let mut wire = Wire::open(&daemon.socket().into())?;
    let began = Instant::now();
    for first in (0..count).step_by(CLIENTS) {
        let numbers = first..count.min(first + CLIENTS);
        add_by_hand(&daemon, &mut wire, numbers, NOT_STARTED)?;
    }
    Ok(milliseconds(began.elapsed()))
}

/// One client that adds one program at a time.
pub(crate) fn one_by_one(effort: Effort) -> Result<Vec<Line>> {
    let work = "one addition at a time, one client, p50";
    let mut lines = additions_alone(effort, work, starting, "")?;
    let work = format!("{work}, not started");
    lines.extend(additions_alone(effort, &work, addition, NOT_STARTED)?);
    Ok(lines)
}

/// What one addition takes, and how much of that the daemon takes for what it must do.
fn additions_alone(
    effort: Effort,
    work: &str,
    addition: Addition,
    options: &'static str,
) -> Result<Vec<Line>> {
    let ours = Ours::start(&populated_group())?;
    let theirs = in_process(&populated_group())?;
    let daemon = Daemon::start(&populated_group())?;
    let count = effort.count(10);
    let mut turns = vec![
        additions(&ours.addr(), 0, count, addition)?,
        additions(&theirs.socket().into(), 0, count, addition)?,
        by_hand(&daemon, count, options)?,
    ];
    let figures = alternate(effort.rounds(20), &mut turns)?;
    Ok(vec![
        against_in_process(work, &figures, 2.0),
        against_by_hand(work, &figures, 1.25),
    ])
}

fn against_by_hand(work: &str, figures: &[Vec<f64>], most: f64) -> Line {
    Line {
        against: format!(
            "`reloadConfig` and `addProcessGroup` by hand {}",
            ms(median(&figures[2]))
        ),
        figure: ratio(&figures[0], &figures[2]),
        ..against_in_process(work, figures, most)
    }
}

fn against_in_process(work: &str, figures: &[Vec<f64>], most: f64) -> Line {
    Line {
        work: work.to_owned(),
        ours: ms(median(&figures[0])),
        against: format!("in-process {}", ms(median(&figures[1]))),
        figure: ratio(&figures[0], &figures[1]),
        unit: "x",
        bound: Bound::AtMost(most),
    }
}

/// The time in which so many programs are added by all clients together.
fn by_all(addr: &Addr, count: usize) -> Result<f64> {
    let begin = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let begin = &begin;
                scope.spawn(move || {
                    let mut wire = Wire::open(addr)?;
                    wire.call(&request("supervisor.getState", &[]))?;
                    begin.wait();
                    for number in (client..count).step_by(CLIENTS) {
                        wire.call(&request(ADD, &addition(number)))?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        begin.wait();
        let began = Instant::now();
        for client in clients {
            client.join().expect("a client that does not panic")?;
        }
        Ok(milliseconds(began.elapsed()))
    })
}

/// Many programs, from several clients at once.
pub(crate) fn eight_clients(effort: Effort) -> Result<Vec<Line>> {
    let count = effort.count(1000);
    let mut turns: Vec<Turn<'_>> = vec![
        Box::new(|| by_all(&Ours::start(&populated_group())?.addr(), count)),
        Box::new(|| by_all(&in_process(&populated_group())?.socket().into(), count)),
        Box::new(|| by_hand_in_batches(count)),
    ];
    let figures = alternate(effort.rounds(5), &mut turns)?;
    let work = format!("{count} additions from {CLIENTS} clients");
    let batches = format!("{work}; by hand: {CLIENTS} at a time");
    Ok(vec![
        against_in_process(&work, &figures, 1.0),
        against_by_hand(&batches, &figures, 1.1),
    ])
}

/// The times in which so many programs come and go, in one multicall each.
fn come_and_go(addr: &Addr, count: usize) -> Result<(f64, f64)> {
    let mut wire = Wire::open(addr)?;
    let come = multicall((0..count).map(|number| (ADD, addition(number))));
    let go = multicall((0..count).map(|number| (REMOVE, removal(number))));
    let (coming, answer) = timed(|| wire.value(&come))?;
    all_true(&answer, count)?;
    let (going, answer) = timed(|| wire.value(&go))?;
    all_true(&answer, count)?;
    Ok((coming, going))
}

/// Many programs in one call.
pub(crate) fn one_multicall(effort: Effort) -> Result<Vec<Line>> {
    let count = effort.count(1000);
    let gone = Mutex::new(vec![Vec::new(); 2]);
    let turn = |who: usize, times: (f64, f64)| {
        gone.lock().expect("no panic")[who].push(times.1);
        Ok(times.0)
    };
    let mut turns: Vec<Turn<'_>> = vec![
        Box::new(|| {
            let ours = Ours::start(&populated_group())?;
            turn(0, come_and_go(&ours.addr(), count)?)
        }),
        Box::new(|| {
            let theirs = in_process(&populated_group())?;
            turn(1, come_and_go(&theirs.socket().into(), count)?)
        }),
    ];
    let come = alternate(effort.rounds(5), &mut turns)?;
    drop(turns);
    let gone = gone.into_inner().expect("no panic");
    Ok(vec![
        against_in_process(&format!("{count} additions in one multicall"), &come, 1.0),
        reloads(count)?,
        against_in_process(&format!("{count} removals in one multicall"), &gone, 1.0),
    ])
}

/// How often the daemon has to read its files for that.
fn reloads(count: usize) -> Result<Line> {
    let daemon = Daemon::start(&populated_group())?;
    let dir = WorkDir::new("twc-")?;
    let path = dir.path().join("c.sock");
    let counter = Counter::start(&path, daemon.socket(), "reloadConfig")?;
    let between = format!("unix://{}", path.display());
    let sidecar = Sidecar::start_with(&daemon, &["--supervisord", &between])?;
    let addr = sidecar.tcp_addr().into();
    // The first change of all finds out how files reach the daemon.
    populate(&addr, 0..1)?;
    counter.take();
    populate(&addr, 1..count)?;
    let reloads = counter.take() as f64;
    Ok(Line {
        work: "`reloadConfig` for that".to_owned(),
        ours: String::new(),
        against: String::new(),
        figure: reloads,
        unit: "call",
        bound: Bound::AtMost(1.0),
    })
}

/// One program more, where there are many and where there are few.
pub(crate) fn population(effort: Effort) -> Result<Vec<Line>> {
    let many = Ours::start(&populated_group())?;
    let few = Ours::start(&populated_group())?;
    let (there, least) = (effort.count(1000), 10);
    populate(&many.addr(), 0..there)?;
    populate(&few.addr(), 0..least)?;
    let mut turns = vec![
        additions(&many.addr(), there, 1, addition)?,
        additions(&few.addr(), least, 1, addition)?,
    ];
    let figures = alternate(effort.rounds(60), &mut turns)?;
    let mut line = against_in_process(
        &format!("one addition with {there} programs there"),
        &figures,
        2.0,
    );
    line.against = format!("with {least} {}", ms(median(&figures[1])));
    // The same inside the daemon, to see what the daemon itself makes of so many.
    let (many, few) = (
        in_process(&populated_group())?,
        in_process(&populated_group())?,
    );
    populate(&many.socket().into(), 0..there)?;
    populate(&few.socket().into(), 0..least)?;
    let mut turns = vec![
        additions(&many.socket().into(), there, 1, addition)?,
        additions(&few.socket().into(), least, 1, addition)?,
    ];
    let inside = alternate(effort.rounds(60), &mut turns)?;
    Ok(vec![
        line,
        Line {
            work: "the same in-process".to_owned(),
            ours: ms(median(&inside[0])),
            against: format!("with {least} {}", ms(median(&inside[1]))),
            figure: ratio(&inside[0], &inside[1]),
            unit: "x",
            bound: Bound::None,
        },
    ])
}

/// What somebody waits who only asks for the state, while programs are added: p99.
fn waits_while_adding(addr: &Addr, count: usize) -> Result<f64> {
    const WATCHERS: usize = 2;
    let done = AtomicBool::new(false);
    let call = request("supervisor.getState", &[]);
    thread::scope(|scope| {
        let watchers: Vec<_> = (0..WATCHERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut wire = Wire::open(addr)?;
                    let mut times = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        times.push(timed(|| wire.call(&call))?.0);
                        thread::sleep(Duration::from_millis(1));
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let added = by_all(addr, count);
        done.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for watcher in watchers {
            times.extend(watcher.join().expect("a watcher that does not panic")?);
        }
        added?;
        ensure!(!times.is_empty(), "nobody watched");
        Ok(percentile(&times, 0.99))
    })
}

/// Other clients, while programs are added.
pub(crate) fn bystanders(effort: Effort) -> Result<Vec<Line>> {
    let count = effort.count(1000);
    let mut turns: Vec<Turn<'_>> = vec![
        Box::new(|| waits_while_adding(&Ours::start(&populated_group())?.addr(), count)),
        Box::new(|| {
            let theirs = in_process(&populated_group())?;
            waits_while_adding(&theirs.socket().into(), count)
        }),
    ];
    let figures = alternate(effort.rounds(5), &mut turns)?;
    let work = format!("`getState` of others while {CLIENTS} clients add, p99");
    Ok(vec![against_in_process(&work, &figures, 2.0)])
}
