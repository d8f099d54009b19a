//! `restart --rolling N`: N processes at a time.

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

/// Restarts the processes that `names` mean in batches of `size`. A batch begins when all of the one
/// before run, that is, have been up for their `startsecs`. Ends at the first process that does not
/// come up, and, after Ctrl-C, when the batch under way is done; a second Ctrl-C does not wait for that.
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
            never = announce_the_end(&signals) => match never {},
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

/// Says what the first signal brings.
async fn announce_the_end(signals: &Signals) -> Infallible {
    signals.more_than(0).await;
    if signals.count() == 1 {
        say!("twiddler: ending when these run; Ctrl-C again does not wait for them");
    }
    pending().await
}

#[derive(Default)]
struct Progress {
    restarted: Vec<String>,
    failed: Vec<(String, String)>,
    /// Those of the batch under way of which is not known yet whether they run.
    in_doubt: Vec<String>,
    untouched: Vec<String>,
}

impl Progress {
    async fn batch(&mut self, session: &Session, batch: &[ProcessInfo]) -> Result<(), Error> {
        self.in_doubt = batch.iter().map(spec).collect();
        let _waiting = Waiting::on(&format!("{} to restart", self.in_doubt.join(", ")));
        let stopped = on_processes(session, &Action::Stop, batch).await;
        for entry in stopped.into_iter().collect::<Result<Vec<_>, _>>()? {
            if !matches!(entry.status, SUCCESS | NOT_RUNNING) {
                self.settle(session, &entry)?;
            }
        }
        // Those that did stop are not left behind where another one did not.
        let mut outcome = Ok(());
        for started in on_processes(session, &Action::Start, batch).await {
            outcome = outcome.and(match started {
                Ok(entry) => self.settle(session, &entry),
                Err(error) => Err(error),
            });
        }
        outcome
    }

    /// Takes note of how a process in doubt has come out of it.
    fn settle(&mut self, session: &Session, entry: &StatusEntry) -> Result<(), Error> {
        let name = namespec(&entry.group, &entry.name);
        let Some(index) = self.in_doubt.iter().position(|doubted| *doubted == name) else {
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
        for (what, names) in [
            ("may be stopped", &self.in_doubt),
            ("not restarted", &self.untouched),
        ] {
            if !names.is_empty() {
                summary += &format!(", {} {what}: {}", names.len(), names.join(" "));
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
