//! The outcome of each change, in the proxy's log.

use super::model::change::{Change, ChangeError, Outcome};
use crate::audit::{Record, log_text, reason};
use crate::registry::losses::listed;

/// Logs the outcome of a change and its caller. Logs no option values.
pub(super) fn log_outcome(change: &Change, record: &Record, outcome: &Outcome) {
    let (past, infinitive, subject) = words(change);
    let (user, ms) = (record.user(), record.millis());
    let peer = record.peer();
    match outcome {
        Ok(()) => {
            tracing::info!(%peer, user, ms, "{past} {subject}");
            warn_of_misspelt(change, &subject);
        }
        // The reply asks the caller for credentials, and the caller tries again.
        Err(ChangeError::Status(status)) => {
            tracing::debug!(%peer, %status, "{infinitive} {subject}")
        }
        Err(ChangeError::Unreachable(reason)) => {
            tracing::warn!(%peer, user, ms, "could not {infinitive} {subject}: {reason}");
        }
        Err(error) => {
            let reason = error.fault().as_ref().map(reason).unwrap_or_default();
            tracing::info!(%peer, user, ms, "did not {infinitive} {subject}: {reason}");
        }
    }
}

/// Warns about options that supervisord accepts and ignores. Logs no option values.
fn warn_of_misspelt(change: &Change, subject: &str) {
    if let Change::AddProgram(program) = change {
        for (option, suggestion) in program.misspelt_options() {
            let option = log_text(option);
            tracing::warn!(
                "{subject}: supervisord ignores the option {option}; write {suggestion}"
            );
        }
    }
}

/// The verb for a success, the verb for a failure, and the object.
fn words(change: &Change) -> (&'static str, &'static str, String) {
    let member = |group: &str, name: &str| format!("{}:{}", log_text(group), log_text(name));
    match change {
        Change::AddGroup { name, .. } => {
            ("added", "add", format!("group {}", log_text(name.as_str())))
        }
        Change::AddProgram(program) => {
            let name = member(program.group(), program.name());
            ("added", "add", format!("program {name}"))
        }
        Change::RemoveProcess { group, process } => {
            let name = member(group, process);
            ("removed", "remove", format!("process {name}"))
        }
        Change::RemovePlaced {
            group, processes, ..
        } => {
            let names: Vec<String> = processes.iter().map(|name| member(group, name)).collect();
            ("removed", "remove", format!("processes {}", listed(&names)))
        }
        Change::RemoveGroup { name } => ("removed", "remove", format!("group {}", log_text(name))),
    }
}
