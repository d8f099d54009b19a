//! The lock on the include directory, which one proxy holds at a time.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::engine::Engine;
use crate::daemon::conf;
use crate::include_dir::{DirLock, IncludeDir};

/// The lock, and the channel on which its loss is announced.
pub(super) struct Ownership {
    pub(super) lock: Arc<Mutex<DirLock>>,
    /// Receives the reason when another proxy holds the lock.
    pub(super) loss: watch::Sender<Option<String>>,
}

impl Ownership {
    /// Returns whether this proxy holds the lock. If somebody removed the lock file, it is created again,
    /// unless another proxy has taken the lock.
    pub(super) fn ensure(&self, engine: &Engine) -> bool {
        match self.retake(engine) {
            Ok(()) => true,
            Err(error) => {
                let why =
                    format!("somebody removed the lock of this twiddler, which ends: {error}");
                self.loss.send_replace(Some(why));
                false
            }
        }
    }

    fn retake(&self, engine: &Engine) -> io::Result<()> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.retake()? {
            ensure_alone(&engine.include, &engine.conf_file)?;
            let dir = engine.include.path().display();
            tracing::warn!("somebody removed the lock in {dir}: made it again");
        }
        Ok(())
    }
}

/// Makes sure that no other proxy uses another of the daemon's include directories. A directory that only
/// this proxy's command line names is not checked.
pub(super) fn ensure_alone(include: &IncludeDir, conf_file: &Path) -> io::Result<()> {
    let inspected = conf::inspect(conf_file, &conf::process_environment);
    let patterns = inspected
        .map(|inspected| inspected.conf.include)
        .unwrap_or_default();
    include.ensure_alone(patterns.into_iter().map(|pattern| pattern.dir))
}
