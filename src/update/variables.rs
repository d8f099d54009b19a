//! Variables of the daemon's environment. The files can use them in `numprocs`, in names of processes and in
//! lists of programs. The proxy's environment can differ, so the daemon is asked for their values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::Updates;
use super::probe::Probe;
use super::survey::read_probe;
use crate::daemon::conf::{self, Definitions};
use crate::twiddler::{ChangeError, ProbePause};

/// The values of the daemon's environment variables in this epoch, by name. Values may be secrets.
pub(super) type KnownVariables = Mutex<BTreeMap<String, String>>;

impl Updates {
    /// The definitions in the files now, and the variables in them whose values in the daemon are not known
    /// yet. Files that cannot be read define nothing.
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

    /// The definitions in the files now. The proxy's own environment stands in for variables whose values in
    /// the daemon are not known.
    pub(super) fn files(&self) -> Definitions {
        self.files_and_unknown().0
    }

    /// The definitions in the files now, with the values of variables from the daemon. For variables that are
    /// not known yet, the daemon reads the files twice.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn files_as_read(
        &self,
        pause: &ProbePause,
    ) -> Result<Definitions, ChangeError> {
        let (files, unknown) = self.files_and_unknown();
        if unknown.is_empty() {
            return Ok(files);
        }
        let mut probe = Probe::default();
        probe.variables(unknown);
        match read_probe(pause, &probe).await {
            Ok(reply) => super::lock(&self.variables).extend(reply.variables),
            // The files are not valid. The next reading of the files alone reports this.
            Err(ChangeError::Fault(_)) => return Ok(files),
            Err(error) => return Err(error),
        }
        let files = self.files();
        self.read_plain(&files).await?;
        Ok(files)
    }

    /// As [`Updates::files_as_read`], but pauses reloads itself. Where probes are not possible, the proxy's
    /// own environment is used.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub(super) async fn files_as_read_at_start(&self) -> Result<Definitions, ChangeError> {
        let (files, unknown) = self.files_and_unknown();
        if unknown.is_empty() {
            return Ok(files);
        }
        match self.twiddler.pause_for_probes().await {
            Ok(pause) => self.files_as_read(&pause).await,
            Err(_) => Ok(files),
        }
    }

    /// Forgets the values of variables, because a restarted daemon can have another environment.
    pub(super) fn forget_variables(&self) {
        super::lock(&self.variables).clear();
    }
}
