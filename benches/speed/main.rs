//! Speed, as ratios: the proxy beside the daemon itself, HAProxy, and the in-process original.
//!
//! `cargo bench` starts everything on this machine, measures each pair in turn in the same run, and
//! prints one table. `cargo bench -- --row NAME` measures one row, `--list` names them, `--smoke`
//! only tries whether all of them work. Nothing is left running.

#[path = "../../tests/it/common/mod.rs"]
mod common;
mod measure;
mod rows;
mod setups;
mod wire;

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use measure::{Effort, Line, table};
use rows::{changes, forwarding, persist, resources, tail, updates};

/// A row's name, and what measures it.
type Row = (&'static str, fn(Effort) -> Result<Vec<Line>>);

const ROWS: &[Row] = &[
    ("latency", forwarding::latency),
    ("throughput", forwarding::throughput),
    ("large", forwarding::large),
    ("placed", forwarding::placed),
    ("add", changes::one_by_one),
    ("adds", changes::eight_clients),
    ("multicall", changes::one_multicall),
    ("population", changes::population),
    ("bystanders", changes::bystanders),
    ("persist", persist::price),
    ("update", updates::edits),
    ("scale", updates::numbers),
    ("tail", tail::followers),
    ("memory", resources::memory),
    ("program", resources::program),
];

const USAGE: &str = "cargo bench -- [--row NAME]... [--smoke] [--list]";

fn main() -> ExitCode {
    common::silence_logs();
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut effort = Effort { smoke: false };
    let mut wanted = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo's own
            "--smoke" => effort.smoke = true,
            "--row" => wanted.push(arguments.next().context(USAGE)?),
            "--list" => {
                ROWS.iter().for_each(|(name, _)| println!("{name}"));
                return Ok(());
            }
            _ => anyhow::bail!("{USAGE}"),
        }
    }
    for name in &wanted {
        ensure!(
            ROWS.iter().any(|(row, _)| row == name),
            "no row {name}: see --list"
        );
    }
    build_release()?;
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for (name, measure) in ROWS {
        if !wanted.is_empty() && !wanted.iter().any(|row| row == name) {
            continue;
        }
        let began = Instant::now();
        match measure(effort) {
            Ok(measured) => {
                eprintln!("{name}: measured in {:.0} s", began.elapsed().as_secs_f64());
                lines.extend(measured);
            }
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    println!("{}", surroundings());
    println!("{}", table(&lines));
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// What `cargo bench` builds unwinds on panic; people run the other.
fn build_release() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--bin", "twiddler"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    ensure!(status.success(), "the release binary cannot be built");
    Ok(())
}

fn surroundings() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let haproxy = setups::haproxy_version()
        .unwrap_or_else(|| "HAProxy is not installed: its lines are missing".to_owned());
    format!("{cores} cores, load {load} at the end; supervisor 4.3.0; {haproxy}\n")
}
