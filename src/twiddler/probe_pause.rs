//! Questions to the daemon: files that it reads beside the user's, and from which nobody adds anything.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::model::change::ChangeError;
use crate::daemon::Daemon;
use crate::failpoint;
use crate::fault::{FAILED, fault};
use crate::include_dir::{Delivery, IncludeDir, unwritable};
use crate::xmlrpc::{Fault, Value};

/// A pause in which questions may be put. Changes wait until it is dropped, and so must whoever holds
/// it not wait for the worker. An intent is open as long as it lasts: a daemon that starts meanwhile has
/// met a question, and what it has of that is removed.
#[must_use]
pub struct ProbePause {
    pub(super) _held: oneshot::Sender<()>,
    pub(super) daemon: Arc<Daemon>,
    pub(super) include: Arc<IncludeDir>,
    pub(super) delivery: Delivery,
}

impl ProbePause {
    /// Lets the daemon read `text` beside its files, or its files alone, and makes `calls` while that is
    /// what it has read last. The first result is that of `reloadConfig`.
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
