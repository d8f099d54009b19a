//! The include directory of a daemon, and what a proxy leaves there.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::daemon::Daemon;
use super::stuck::GENERATED;

/// Fails if the daemon would read other files from its include directory than these.
pub fn ensure_include_holds(daemon: &Daemon, files: &[&str]) -> Result<()> {
    let mut names = daemon.include_files()?;
    names.retain(|name| !name.starts_with('.'));
    ensure!(names == files, "in the include directory: {names:?}");
    Ok(())
}

/// The private directories of proxies, one for the text of each proxy's generated file.
pub fn private_dirs(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let names = daemon.include_files()?.into_iter();
    let paths = names.map(|name| daemon.include_dir().join(name));
    let is_private = |path: &PathBuf| path.join("link").is_symlink();
    Ok(paths.filter(is_private).collect())
}

/// Fails if a file of a change is left: the generated file, a temporary file, or a private directory that has
/// text, or could not serve the next change.
pub fn ensure_no_leftovers(daemon: &Daemon) -> Result<()> {
    let mut left = daemon.include_files()?;
    left.retain(|name| name.starts_with(".zz-") || name == GENERATED);
    for dir in private_dirs(daemon)? {
        let has_text = fs::read_dir(dir.join("files"))?.next().is_some();
        if !has_text && dir.join("entry").is_symlink() {
            left.retain(|name| daemon.include_dir().join(name) != dir);
        }
    }
    ensure!(left.is_empty(), "not removed: {left:?}");
    Ok(())
}
