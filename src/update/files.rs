//! The user's files, watched: what they define by now must not come twice with the daemon's next start.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Updates;
use crate::daemon::conf::{self, DaemonConf};
use crate::registry::Registry;

/// How often the files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What shows that a file is another one, by its path. None where it is not there.
type Traces = BTreeMap<PathBuf, Option<(u64, i64, i64, u64)>>;

fn traces(paths: impl IntoIterator<Item = PathBuf>) -> Traces {
    let trace = |path: PathBuf| {
        let found = path.metadata().ok();
        let found = found.map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()));
        (path, found)
    };
    paths.into_iter().map(trace).collect()
}

impl Updates {
    /// Takes what the files define out of what is kept for the daemon's next start, as soon as they do.
    pub async fn watch_files(self: Arc<Self>) {
        if !self.twiddler.persists() {
            return;
        }
        let mut known = Traces::new();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            if self.twiddler.with_registry(Registry::holds_nothing) {
                known.clear();
                continue;
            }
            let now = traces(known.keys().cloned());
            if now != known || known.is_empty() {
                let main = self.twiddler.conf_file().to_owned();
                let found = conf::inspect(&main, &conf::process_environment);
                let conf = found.ok().map(|found| found.conf);
                let groups = conf.as_ref().map(|conf| conf.groups.as_slice());
                let is_defined = self.twiddler.defines_added(groups.unwrap_or_default());
                // What was edited since it was looked at is seen the next time, and so is a new path.
                let trace = |path: PathBuf| {
                    let seen = now.get(&path).copied().flatten();
                    (path, seen)
                };
                known = paths(main, conf).map(trace).collect();
                if is_defined {
                    self.twiddler.persist_again().await;
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
