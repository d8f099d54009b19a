//! Calls that the daemon answers.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::common::Addr;
use crate::measure::{Bound, Effort, Line, Turn, alternate, median, median_time, ms, ratio};
use crate::setups::{HaProxy, Ours, populate, populated_group, programs, running};
use crate::wire::{Wire, request};

/// A turn: the median time of so many calls over a connection that stays open.
fn calls(addr: &Addr, call: Vec<u8>, count: usize) -> Result<Turn<'static>> {
    let mut wire = Wire::open(addr)?;
    wire.call(&call)?;
    Ok(Box::new(move || median_time(count, || wire.call(&call))))
}

/// The smallest call, one at a time.
pub(crate) fn latency(effort: Effort) -> Result<Vec<Line>> {
    let ours = Ours::start(&programs(1))?;
    let haproxy = HaProxy::start(&ours.daemon)?;
    let call = request("supervisor.getState", &[]);
    let count = effort.count(500);
    let mut turns = vec![
        calls(&ours.addr(), call.clone(), count)?,
        calls(&ours.daemon.socket().into(), call.clone(), count)?,
        calls(&ours.daemon.tcp_addr().into(), call.clone(), count)?,
    ];
    if let Some(haproxy) = &haproxy {
        turns.push(calls(&haproxy.addr(), call, count)?);
    }
    let figures = alternate(effort.rounds(14), &mut turns)?;
    let work = "`supervisor.getState`, one connection, p50";
    let line = |against: &str, theirs: &[f64], bound| Line {
        work: work.to_owned(),
        ours: ms(median(&figures[0])),
        against: format!("{against} {}", ms(median(theirs))),
        figure: ratio(&figures[0], theirs),
        unit: "x",
        bound,
    };
    let mut lines = vec![
        line("unix socket", &figures[1], Bound::None),
        line("TCP", &figures[2], Bound::None),
    ];
    if let Some(theirs) = figures.get(3) {
        lines.insert(0, line("HAProxy", theirs, Bound::AtMost(1.15)));
    }
    Ok(lines)
}

/// A turn: calls per second over so many connections at once.
fn crowd(addr: Addr, call: Vec<u8>, connections: usize, time: Duration) -> Turn<'static> {
    Box::new(move || {
        let begin = Barrier::new(connections + 1);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..connections)
                .map(|_| {
                    scope.spawn(|| {
                        let mut wire = Wire::open(&addr)?;
                        wire.call(&call)?;
                        begin.wait();
                        let deadline = Instant::now() + time;
                        let mut done = 0;
                        while Instant::now() < deadline {
                            wire.call(&call)?;
                            done += 1;
                        }
                        anyhow::Ok(done)
                    })
                })
                .collect();
            begin.wait();
            let mut done = 0;
            for client in clients {
                done += client.join().expect("a client that does not panic")?;
            }
            Ok(f64::from(done) / time.as_secs_f64())
        })
    })
}

/// The smallest call, from several clients at once.
pub(crate) fn throughput(effort: Effort) -> Result<Vec<Line>> {
    const CONNECTIONS: usize = 8;
    let ours = Ours::start(&programs(1))?;
    let haproxy = HaProxy::start(&ours.daemon)?;
    let call = request("supervisor.getState", &[]);
    let time = Duration::from_millis(if effort.smoke { 100 } else { 700 });
    let turn = |addr: Addr| crowd(addr, call.clone(), CONNECTIONS, time);
    let mut turns = vec![turn(ours.addr()), turn(ours.daemon.socket().into())];
    turns.extend(haproxy.iter().map(|haproxy| turn(haproxy.addr())));
    let figures = alternate(effort.rounds(12), &mut turns)?;
    let line = |against: &str, theirs: &[f64], bound| Line {
        work: format!("the same over {CONNECTIONS} connections"),
        ours: format!("{:.0}/s", median(&figures[0])),
        against: format!("{against} {:.0}/s", median(theirs)),
        figure: ratio(&figures[0], theirs),
        unit: "x",
        bound,
    };
    let mut lines = vec![line("unix socket", &figures[1], Bound::None)];
    if let Some(theirs) = figures.get(2) {
        lines.insert(0, line("HAProxy", theirs, Bound::AtLeast(1.0)));
    }
    Ok(lines)
}

/// A reply that the daemon sends in several pieces.
pub(crate) fn large(effort: Effort) -> Result<Vec<Line>> {
    let ours = Ours::start(&running(10))?;
    let call = request("supervisor.getAllProcessInfo", &[]);
    let size = Wire::open(&ours.addr())?.exchange(&call)?.len();
    ensure!(size > 4096, "a reply of {size} bytes");
    let unix = ours.daemon.socket().into();
    let haproxy = HaProxy::start(&ours.daemon)?;
    let mut turns = vec![
        calls(&ours.addr(), call.clone(), effort.count(100))?,
        calls(&unix, call.clone(), effort.count(100))?,
        // This one takes ten times as long.
        calls(
            &ours.daemon.tcp_addr().into(),
            call.clone(),
            effort.count(15),
        )?,
    ];
    if let Some(haproxy) = &haproxy {
        turns.push(calls(&haproxy.addr(), call, effort.count(100))?);
    }
    let figures = alternate(effort.rounds(10), &mut turns)?;
    let line = |against: &str, theirs: &[f64], figure, bound| Line {
        work: "`getAllProcessInfo`, 10 processes, TCP client".to_owned(),
        ours: ms(median(&figures[0])),
        against: format!("{against} {}", ms(median(theirs))),
        figure,
        unit: "x",
        bound,
    };
    let (over_unix, faster) = (
        ratio(&figures[0], &figures[1]),
        ratio(&figures[2], &figures[0]),
    );
    let mut lines = vec![
        line("unix socket", &figures[1], over_unix, Bound::AtMost(1.15)),
        line("TCP", &figures[2], faster, Bound::AtLeast(30.0)),
    ];
    if let Some(theirs) = figures.get(3) {
        let figure = ratio(&figures[0], theirs);
        lines.push(line("HAProxy", theirs, figure, Bound::None));
    }
    Ok(lines)
}

/// A reply whose names are put into those of clients.
pub(crate) fn placed(effort: Effort) -> Result<Vec<Line>> {
    let ours = Ours::start(&populated_group())?;
    let there = effort.count(1000);
    populate(&ours.addr(), 0..there)?;
    let call = request("supervisor.getAllProcessInfo", &[]);
    let translated = Wire::open(&ours.addr())?.value(&call)?;
    let shown = translated.as_array().unwrap_or_default();
    ensure!(shown.len() == there + 1, "{} processes", shown.len());
    let mut turns = vec![
        calls(&ours.addr(), call.clone(), 2)?,
        calls(&ours.daemon.socket().into(), call, 2)?,
    ];
    let figures = alternate(effort.rounds(10), &mut turns)?;
    Ok(vec![Line {
        work: format!("`getAllProcessInfo`, {there} placed processes"),
        ours: ms(median(&figures[0])),
        against: format!("unix socket {}", ms(median(&figures[1]))),
        figure: ratio(&figures[0], &figures[1]),
        unit: "x",
        bound: Bound::AtMost(1.05),
    }])
}
