//! What the proxy itself takes: memory, disk, time to start.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::common::leftovers::WorkDir;
use crate::common::sidecar::twiddler_command;
use crate::common::{Addr, Daemon};
use crate::measure::{Bound, Effort, Line, median, milliseconds};
use crate::setups::{GROUP, Ours, populate, populated_group};
use crate::wire::{Wire, request};

const MIB: f64 = 1024.0 * 1024.0;

/// The processor time that a process has used, over all its threads.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Nanoseconds; the clock ticks of `stat` would be as long as what is to be measured.
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let spent = text.split(' ').next().unwrap_or_default();
        total += spent.parse::<u64>().context("schedstat")?;
    }
    Ok(Duration::from_nanos(total))
}

/// What a process has in memory, in MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("VmRSS")?.trim().parse::<f64>()? / 1024.0)
}

/// Many calls of many clients; of what they ask, little is large and some needs translation.
fn load(addr: &Addr, calls: usize, programs: usize) -> Result<()> {
    const CLIENTS: usize = 48;
    let state = request("supervisor.getState", &[]);
    let all = request("supervisor.getAllProcessInfo", &[]);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut wire = Wire::open(addr)?;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= calls {
                            return anyhow::Ok(());
                        }
                        if number % 10_000 == 9_999 {
                            wire.call(&all)?;
                        } else if number % 10 == 9 {
                            let name = format!("{GROUP}:job{}", number % programs);
                            wire.call(&request("supervisor.getProcessInfo", &[name.into()]))?;
                        } else {
                            wire.call(&state)?;
                        }
                    }
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().expect("a client that does not panic"))
    })
}

/// Resident memory, from the start to a busy day.
pub(crate) fn memory(effort: Effort) -> Result<Vec<Line>> {
    let ours = Ours::start(&populated_group())?;
    let pid = ours.sidecar.pid();
    let idle = resident(pid)?;
    let (programs, calls) = (effort.count(1000), effort.count(100_000));
    populate(&ours.addr(), 0..programs)?;
    let populated = resident(pid)?;
    // Growth is what is still added after the first part: caches and connections are there then.
    load(&ours.addr(), calls * 3 / 10, programs)?;
    let early = resident(pid)?;
    load(&ours.addr(), calls * 7 / 10, programs)?;
    let late = resident(pid)?;
    let line = |work: String, against: String, figure, bound| Line {
        work,
        ours: String::new(),
        against,
        figure,
        unit: "MiB",
        bound,
    };
    Ok(vec![
        line(
            "resident, idle".into(),
            String::new(),
            idle,
            Bound::AtMost(12.0),
        ),
        line(
            format!("resident, with {programs} programs and after {calls} calls"),
            format!("before the calls {populated:.1} MiB"),
            late,
            Bound::AtMost(40.0),
        ),
        line(
            "growth over the last 70 % of these calls".into(),
            format!("from {early:.1} MiB"),
            late - early,
            Bound::AtMost(1.0),
        ),
    ])
}

/// The time from the start of the program to the line that says it listens.
fn start(daemon: &Daemon) -> Result<f64> {
    let dir = WorkDir::new("twb-")?;
    let mut command = twiddler_command();
    command
        .args(["serve", "-c"])
        .arg(daemon.conf())
        .args(["--allow-open", "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .stdin(Stdio::null());
    dir.mark(&mut command);
    let began = Instant::now();
    let mut child = command.spawn()?;
    let output = child.stderr.take().context("no pipe")?;
    let mut lines = BufReader::new(output).lines();
    let line = lines.find(|line| {
        line.as_ref()
            .is_ok_and(|line| line.contains("listening on "))
    });
    let took = milliseconds(began.elapsed());
    child.kill()?;
    child.wait()?;
    ensure!(line.is_some(), "it does not listen");
    Ok(took)
}

/// The program itself.
pub(crate) fn program(effort: Effort) -> Result<Vec<Line>> {
    let size = fs::metadata(env!("CARGO_BIN_EXE_twiddler"))?.len() as f64 / MIB;
    let daemon = Daemon::start(&populated_group())?;
    let times: Vec<f64> = (0..effort.count(20))
        .map(|_| start(&daemon))
        .collect::<Result<_>>()?;
    let line = |work: &str, figure, unit, bound| Line {
        work: work.to_owned(),
        ours: String::new(),
        against: String::new(),
        figure,
        unit,
        bound,
    };
    Ok(vec![
        line("release binary", size, "MiB", Bound::AtMost(8.0)),
        line(
            "start to listening",
            median(&times),
            "ms",
            Bound::AtMost(50.0),
        ),
    ])
}
