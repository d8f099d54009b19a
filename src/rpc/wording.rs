//! The faults for failed changes, with the texts of the API that was called.

use crate::fault::{BAD_NAME, STILL_RUNNING, fault};
use crate::twiddler::ChangeError;

/// The API that a client called for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// The `twiddler` namespace, whose `removeGroup` names the process that is not stopped.
    Twiddler,
    /// `supervisor.removeProcessGroup` of this group, which names only the group.
    Supervisor(String),
}

impl Api {
    /// The error with the text that this API uses.
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
    fn each_api_has_its_own_texts() {
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
            let text = api.word(error).fault().map(|fault| fault.text);
            assert_eq!(text.as_deref(), Some(expected), "{api:?}");
        }
    }
}
