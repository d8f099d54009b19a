//! The ownership in front of the daemon, which one proxy has at a time.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::engine::Engine;
use crate::daemon::conf;
use crate::include_dir::{DirLock, IncludeDir};

/// What shows that the ownership is this proxy's.
pub(super) struct Ownership {
    pub(super) lock: Arc<Mutex<DirLock>>,
    /// Is told why it is another one's by now.
    pub(super) lost: watch::Sender<Option<String>>,
}

impl Ownership {
    /// Whether it is still this proxy's. A lock that somebody has removed is made again, unless
    /// another proxy has come meanwhile.
    pub(super) fn is_ours(&self, engine: &Engine) -> bool {
        match self.hold(engine) {
            Ok(()) => true,
            Err(error) => {
                let why =
                    format!("somebody removed the lock of this twiddler, which ends: {error}");
                self.lost.send_replace(Some(why));
                false
            }
        }
    }

    fn hold(&self, engine: &Engine) -> io::Result<()> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.hold()? {
            ensure_alone(&engine.include, &engine.conf_file)?;
            let dir = engine.include.path().display();
            tracing::warn!("somebody removed the lock in {dir}: made it again");
        }
        Ok(())
    }
}

/// Makes sure that no other proxy is in front of the same daemon, with another of the directories that
/// it includes. One that was written into the command line of this proxy alone is not seen.
pub(super) fn ensure_alone(include: &IncludeDir, conf_file: &Path) -> io::Result<()> {
    let found = conf::inspect(conf_file, &conf::process_environment);
    let patterns = found.map(|found| found.conf.include).unwrap_or_default();
    include.ensure_alone(patterns.into_iter().map(|pattern| pattern.dir))
}
