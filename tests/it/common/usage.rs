//! What a process takes of the machine.

use std::fs;

use anyhow::{Context, Result};

/// Bytes in a MiB.
pub const MIB: usize = 1 << 20;

/// The memory that a process has now, in bytes.
pub fn memory(pid: u32) -> Result<usize> {
    kilobytes(pid, "VmRSS:")
}

/// The most that it has had.
pub fn peak_memory(pid: u32) -> Result<usize> {
    kilobytes(pid, "VmHWM:")
}

/// How many descriptors it has open.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn kilobytes(pid: u32, name: &str) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.with_context(|| format!("no {name}"))?;
    let kilobytes: usize = number.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes << 10)
}
