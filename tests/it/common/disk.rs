//! Disks that fail the proxy: full, or not to be written to.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::{run, succeeded};
use super::sidecar::Sidecar;

/// Runs the proxy so that it meets the limits that these tests set: a file that may not grow fails
/// a write as a full disk does, rather than ending the process, and root is not above permissions.
pub fn launcher() -> Result<Vec<&'static str>> {
    let is_root = fs::metadata("/proc/self")?.uid() == 0;
    let drop_rights: &[&str] = &["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    let ignore = ["/bin/sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    Ok(if is_root {
        [&ignore, drop_rights].concat()
    } else {
        ignore.to_vec()
    })
}

/// Lets no file of the proxy grow beyond so many bytes. Only the soft limit, which anybody may
/// raise again.
pub fn limit_files(sidecar: &Sidecar, bytes: Option<u64>) -> Result<()> {
    let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let mut prlimit = Command::new("prlimit");
    prlimit.args([
        "--pid",
        &sidecar.pid().to_string(),
        &format!("--fsize={limit}:"),
    ]);
    succeeded(run(&mut prlimit)?).context("prlimit, of util-linux")?;
    Ok(())
}

/// Sets a path's permissions.
pub fn set_mode(path: &std::path::Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}
