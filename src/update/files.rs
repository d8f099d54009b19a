//! Watches the user's files. A group that they define must not also be in the persist file when the daemon
//! starts next.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Updates;
use crate::daemon::conf::{self, DaemonConf};
use crate::registry::Registry;

/// How often the files are checked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Inode, time of change (seconds, nanoseconds) and length of each file by its path; none if it does not
/// exist.
type FileStamps = BTreeMap<PathBuf, Option<(u64, i64, i64, u64)>>;

fn file_stamps(paths: impl IntoIterator<Item = PathBuf>) -> FileStamps {
    let stamp = |path: PathBuf| {
        let metadata = path.metadata().ok();
        let stamp = metadata.map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()));
        (path, stamp)
    };
    paths.into_iter().map(stamp).collect()
}

impl Updates {
    /// Rewrites the persist file, without the groups and programs that the files define, as soon as the
    /// files define one of them.
    pub async fn watch_files(self: Arc<Self>) {
        if !self.twiddler.persists() {
            return;
        }
        let mut known = FileStamps::new();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            if self.twiddler.with_registry(Registry::has_no_entries) {
                known.clear();
                continue;
            }
            let now = file_stamps(known.keys().cloned());
            if now != known || known.is_empty() {
                let main = self.twiddler.conf_file().to_owned();
                let inspection = conf::inspect(&main, &conf::process_environment);
                let conf = inspection.ok().map(|inspection| inspection.conf);
                let groups = conf.as_ref().map(|conf| conf.groups.as_slice());
                let is_defined = self.twiddler.defines_added(groups.unwrap_or_default());
                // A file that was edited after `now`, and a new path, are noticed in the next round.
                let stamp = |path: PathBuf| {
                    let stamp = now.get(&path).copied().flatten();
                    (path, stamp)
                };
                known = paths(main, conf).map(stamp).collect();
                if is_defined {
                    self.twiddler.rewrite_persist_file().await;
                    self.twiddler.warn_of_clashes();
                }
            }
        }
    }
}

/// The files that the daemon reads, and the directories in which it looks for more.
fn paths(main: PathBuf, conf: Option<DaemonConf>) -> impl Iterator<Item = PathBuf> {
    let read = conf.into_iter().flat_map(|conf| {
        let dirs = conf.include.into_iter().map(|pattern| pattern.dir);
        dirs.chain(conf.included)
    });
    read.chain([main])
}
