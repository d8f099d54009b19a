//! Probes: sections that the daemon reads beside the user's files, and of which no group is added.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::model::change::ChangeError;
use crate::daemon::Daemon;
use crate::failpoint;
use crate::fault::{FAILED, fault};
use crate::include_dir::{Delivery, IncludeDir, unwritable};
use crate::xmlrpc::{Fault, Value};

/// A pause in which the holder can send probes. Changes wait until it is dropped, so the holder must not
/// wait for the worker. An intent is open during the pause: if the daemon restarts and reads a probe,
/// recovery removes its groups.
#[must_use]
pub struct ProbePause {
    pub(super) _guard: oneshot::Sender<()>,
    pub(super) daemon: Arc<Daemon>,
    pub(super) include: Arc<IncludeDir>,
    pub(super) delivery: Delivery,
}

impl ProbePause {
    /// Lets the daemon read `text`, if any, beside its files, and then makes `calls`, in one multicall.
    /// Returns all results, that of `reloadConfig` first.
    ///
    /// # Errors
    /// When the daemon does not answer, or the file cannot be written.
    pub async fn read(
        &self,
        text: Option<&str>,
        calls: &[(&str, Vec<Value>)],
    ) -> Result<Vec<Result<Value, Fault>>, ChangeError> {
        let staged = text.map(|text| self.include.stage(text, self.delivery));
        let staged = staged
            .transpose()
            .map_err(|error| fault(FAILED, unwritable(self.include.path(), &error)))?;
        failpoint::hit("question");
        let mut all = vec![("supervisor.reloadConfig", vec![])];
        all.extend_from_slice(calls);
        let results = self.daemon.multicall(&all).await;
        drop(staged);
        Ok(results?)
    }
}
