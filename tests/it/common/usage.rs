//! The memory and the descriptors of a process.

use std::fs;

use anyhow::{Context, Result};

/// Bytes in a MiB.
pub const MIB: usize = 1 << 20;

/// The resident memory of a process in bytes.
pub fn memory(pid: u32) -> Result<usize> {
    kilobytes(pid, "VmRSS:")
}

/// The peak of its resident memory in bytes.
pub fn peak_memory(pid: u32) -> Result<usize> {
    kilobytes(pid, "VmHWM:")
}

/// The number of its open descriptors.
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
