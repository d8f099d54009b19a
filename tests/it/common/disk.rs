//! Makes the proxy's writes fail, as with a full disk or without permission.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::{run, succeeded};
use super::sidecar::Sidecar;

/// The launcher for a proxy that obeys the limits of these tests. A file that may not grow fails a write,
/// as on a full disk, instead of ending the process by SIGXFSZ. Root has to obey permissions, too.
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

/// Limits the size of the proxy's files in bytes. It sets the soft limit, which can be raised again.
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

/// Sets the permissions of a path.
pub fn set_mode(path: &std::path::Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}
