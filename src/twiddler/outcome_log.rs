//! What each change came to, in the proxy's own log.

use super::model::change::{Change, ChangeError, Outcome};
use crate::audit::{Record, log_text, reason};
use crate::registry::losses::listed;

/// Says what a change came to, and whose it was. Never with a value.
pub(super) fn log_outcome(change: &Change, record: &Record, outcome: &Outcome) {
    let (done, undone, subject) = in_words(change);
    let (user, ms) = (record.user(), record.millis());
    let peer = record.peer();
    match outcome {
        Ok(()) => {
            tracing::info!(%peer, user, ms, "{done} {subject}");
            warn_of_misspelt(change, &subject);
        }
        // The caller is asked for credentials, and tries again.
        Err(ChangeError::Status(status)) => tracing::debug!(%peer, %status, "{undone} {subject}"),
        Err(ChangeError::Unreachable(reason)) => {
            tracing::warn!(%peer, user, ms, "could not {undone} {subject}: {reason}");
        }
        Err(error) => {
            let reason = error.fault().as_ref().map(reason).unwrap_or_default();
            tracing::info!(%peer, user, ms, "did not {undone} {subject}: {reason}");
        }
    }
}

/// Names options that supervisord takes and ignores. Never with a value.
fn warn_of_misspelt(change: &Change, subject: &str) {
    if let Change::AddProgram(program) = change {
        for (option, meant) in program.misspelt_options() {
            let option = log_text(option);
            tracing::warn!("{subject}: supervisord ignores the option {option}; write {meant}");
        }
    }
}

/// What was done, what was not, and to what.
fn in_words(change: &Change) -> (&'static str, &'static str, String) {
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
