//! Variables of the daemon's environment, by which the files say how many processes there are, what they
//! are called and who belongs to a group. The proxy may have others, so the daemon is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::Updates;
use super::probe::Probe;
use super::survey::put;
use crate::daemon::conf::{self, Definitions};
use crate::twiddler::{ChangeError, QuestionPause};

/// What the daemon's variables hold, as long as it goes on. They may be secrets.
pub(super) type Known = Mutex<BTreeMap<String, String>>;

impl Updates {
    /// What the files say now, and the variables in them that the daemon was not asked for yet. Files
    /// that cannot be read say nothing.
    fn files_and_unknown(&self) -> (Definitions, BTreeSet<String>) {
        let known = super::lock(&self.variables).clone();
        let unknown = Mutex::new(BTreeSet::new());
        let of_daemon = |name: &str| {
            known.get(name).cloned().or_else(|| {
                super::lock(&unknown).insert(name.to_owned());
                conf::process_environment(name)
            })
        };
        let file = self.twiddler.conf_file();
        let files = conf::definitions(file, &conf::process_environment, &of_daemon);
        (files.unwrap_or_default(), super::lock(&unknown).clone())
    }

    /// What the files say now, as far as that is known.
    pub(super) fn files(&self) -> Definitions {
        self.files_and_unknown().0
    }

    /// What the files say now, where the daemon says what its variables hold. It reads the files twice
    /// for those that are new.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn files_as_read(
        &self,
        pause: &QuestionPause,
    ) -> Result<Definitions, ChangeError> {
        let (files, unknown) = self.files_and_unknown();
        if unknown.is_empty() {
            return Ok(files);
        }
        let mut probe = Probe::default();
        probe.variables(unknown);
        match put(pause, &probe).await {
            Ok(reply) => super::lock(&self.variables).extend(reply.variables),
            // It says so as well when it reads the files alone.
            Err(ChangeError::Fault(_)) => return Ok(files),
            Err(error) => return Err(error),
        }
        let files = self.files();
        self.read_plain(&files).await?;
        Ok(files)
    }

    /// The same where nothing else is to be asked. Where questions cannot be put, the proxy's own variables
    /// count.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn files_as_read_at_start(&self) -> Result<Definitions, ChangeError> {
        let (files, unknown) = self.files_and_unknown();
        if unknown.is_empty() {
            return Ok(files);
        }
        match self.twiddler.pause_for_questions().await {
            Ok(pause) => self.files_as_read(&pause).await,
            Err(_) => Ok(files),
        }
    }

    /// The daemon has started again, maybe with another environment.
    pub(super) fn forget_variables(&self) {
        super::lock(&self.variables).clear();
    }
}
