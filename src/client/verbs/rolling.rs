//! `restart --rolling N`: restarts N processes at a time.

use std::convert::Infallible;
use std::future::pending;

use super::Session;
use super::control::{Action, on_processes};
use crate::client::args::Format;
use crate::client::error::{Error, NOT_DONE};
use crate::client::names::select;
use crate::client::output::Waiting;
use crate::client::signals::Signals;
use crate::daemon::{ProcessInfo, StatusEntry};
use crate::fault::{NOT_RUNNING, SUCCESS};
use crate::namespec::namespec;
use crate::xmlrpc::Value;

/// Restarts the processes that `names` select, in batches of `size`. A batch begins when all processes of
/// the previous one are RUNNING, that is, have been up for their `startsecs`. Ends after the batch in
/// which a process does not come up, and after the batch during which Ctrl-C is pressed; a second Ctrl-C
/// does not wait for the batch.
///
/// # Errors
/// When the server does not answer, or a name is unknown.
pub async fn restart(session: &Session, names: &[String], size: u32) -> Result<u8, Error> {
    let (table, _) = session.table().await?;
    let chosen = select(&table, names)?;
    let signals = Signals::new()?;
    let mut progress = Progress::default();
    let mut error = None;
    let mut batches = chosen.chunks(usize::try_from(size).unwrap_or(usize::MAX));
    for batch in batches.by_ref() {
        let outcome = tokio::select! {
            outcome = signals.limit(1, progress.batch(session, batch)) => outcome,
            never = announce_end(&signals) => match never {},
        };
        error = outcome.and_then(Result::err);
        if error.is_some() || !progress.failed.is_empty() || signals.count() > 0 {
            break;
        }
    }
    progress.untouched = batches.flatten().map(spec).collect();
    let status = progress.finish(session, &signals)?;
    error.map_or(Ok(status), Err)
}

/// Waits for the first signal and prints its effect. Never returns.
async fn announce_end(signals: &Signals) -> Infallible {
    signals.more_than(0).await;
    if signals.count() == 1 {
        say!("twiddler: ending when these run; Ctrl-C again does not wait for them");
    }
    pending().await
}

/// The namespecs of the processes, by what the restart has done with them.
#[derive(Default)]
struct Progress {
    restarted: Vec<String>,
    /// Processes that did not stop or did not start, with the reason.
    failed: Vec<(String, String)>,
    /// Processes of the current batch whose outcome is not known yet.
    in_doubt: Vec<String>,
    untouched: Vec<String>,
}

impl Progress {
    async fn batch(&mut self, session: &Session, batch: &[ProcessInfo]) -> Result<(), Error> {
        self.in_doubt = batch.iter().map(spec).collect();
        let _waiting = Waiting::on(&format!("{} to restart", self.in_doubt.join(", ")));
        let results = on_processes(session, &Action::Stop, batch).await;
        for entry in results.into_iter().collect::<Result<Vec<_>, _>>()? {
            if !matches!(entry.status, SUCCESS | NOT_RUNNING) {
                self.record(session, &entry)?;
            }
        }
        // The processes that did stop are started again, even if another one did not stop.
        let mut outcome = Ok(());
        for result in on_processes(session, &Action::Start, batch).await {
            outcome = outcome.and(match result {
                Ok(entry) => self.record(session, &entry),
                Err(error) => Err(error),
            });
        }
        outcome
    }

    /// Moves a process from `in_doubt` to `restarted` or `failed`, and prints a restarted one.
    fn record(&mut self, session: &Session, entry: &StatusEntry) -> Result<(), Error> {
        let name = namespec(&entry.group, &entry.name);
        let Some(index) = self.in_doubt.iter().position(|other| *other == name) else {
            return Ok(());
        };
        self.in_doubt.remove(index);
        if entry.status != SUCCESS {
            self.failed.push((name, entry.description.clone()));
            return Ok(());
        }
        self.restarted.push(name.clone());
        match session.output.format {
            Format::Table => session.output.line(&format!("{name}: restarted"))?,
            Format::Name => session.output.line(&name)?,
            Format::Json => {}
        }
        Ok(())
    }

    /// Prints the summary and returns the exit status.
    fn finish(self, session: &Session, signals: &Signals) -> Result<u8, Error> {
        if session.output.format == Format::Json {
            session.output.json(&self.value())?;
        }
        for (name, reason) in &self.failed {
            say!("{name}: ERROR ({reason})");
        }
        let mut summary = format!("{} restarted", self.restarted.len());
        if !self.failed.is_empty() {
            summary += &format!(", {} did not come up", self.failed.len());
        }
        for (outcome, names) in [
            ("may be stopped", &self.in_doubt),
            ("not restarted", &self.untouched),
        ] {
            if !names.is_empty() {
                summary += &format!(", {} {outcome}: {}", names.len(), names.join(" "));
            }
        }
        say!("{summary}");
        let is_complete = self.in_doubt.is_empty() && self.untouched.is_empty();
        Ok(match (self.failed.is_empty(), signals.count()) {
            (false, _) => NOT_DONE,
            (true, 1..) if !is_complete => signals.status(),
            (true, _) => 0,
        })
    }

    fn value(&self) -> Value {
        let names = |names: &[String]| {
            Value::Array(names.iter().map(|name| name.as_str().into()).collect())
        };
        let failed = self.failed.iter().map(|(name, reason)| {
            Value::Struct(vec![
                ("name".to_owned(), name.as_str().into()),
                ("reason".to_owned(), reason.as_str().into()),
            ])
        });
        Value::Struct(vec![
            ("restarted".to_owned(), names(&self.restarted)),
            ("failed".to_owned(), Value::Array(failed.collect())),
            ("in_doubt".to_owned(), names(&self.in_doubt)),
            ("untouched".to_owned(), names(&self.untouched)),
        ])
    }
}

fn spec(info: &ProcessInfo) -> String {
    namespec(&info.group, &info.name)
}
