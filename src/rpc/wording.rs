//! The errors of changes, in the words of the API that was called.

use crate::fault::{BAD_NAME, STILL_RUNNING, fault};
use crate::twiddler::ChangeError;

/// The API by which a change was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `twiddler.removeGroup` and the others, which name the process that is not stopped.
    Twiddler,
    /// `supervisor.removeProcessGroup` of this group, which names that alone.
    Supervisor(String),
}

impl Api {
    /// The error as this API tells it.
    pub(super) fn word(&self, error: ChangeError) -> ChangeError {
        match (self, error) {
            (Api::Supervisor(group), ChangeError::UnknownGroup(_)) => fault(BAD_NAME, group).into(),
            (Api::Supervisor(group), ChangeError::StillRunning(_)) => {
                fault(STILL_RUNNING, group).into()
            }
            (_, error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_has_its_own_words() {
        let unknown = || ChangeError::UnknownGroup("g".to_owned());
        let running = || ChangeError::StillRunning("p".to_owned());
        let taken = || ChangeError::NameTaken("g".to_owned());
        let supervisor = || Api::Supervisor("g".to_owned());
        let table = [
            (Api::Twiddler, unknown(), "BAD_NAME: group: g"),
            (supervisor(), unknown(), "BAD_NAME: g"),
            (Api::Twiddler, running(), "STILL_RUNNING: p"),
            (supervisor(), running(), "STILL_RUNNING: g"),
            (Api::Twiddler, taken(), "BAD_NAME: g"),
            (supervisor(), taken(), "BAD_NAME: g"),
        ];
        for (api, error, expected) in table {
            let told = api.word(error).fault().map(|fault| fault.text);
            assert_eq!(told.as_deref(), Some(expected), "{api:?}");
        }
    }
}
