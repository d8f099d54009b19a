//! `restart --rolling N`: N processes at a time.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Session;
use super::control::{Action, on_processes};
use crate::client::args::Format;
use crate::client::error::{Error, INTERRUPTED, NOT_DONE};
use crate::client::names::select;
use crate::client::output::Waiting;
use crate::daemon::fault::{NOT_RUNNING, SUCCESS};
use crate::daemon::{ProcessInfo, StatusEntry};
use crate::namespec::namespec;
use crate::xmlrpc::Value;

/// Restarts the processes that `names` mean in batches of `size`. A batch begins when all of the one
/// before run, that is, have been up for their `startsecs`. Ends at the first process that does not
/// come up, and, after Ctrl-C, when the batch under way is done.
///
/// # Errors
/// When the server does not answer, or a name is unknown.
pub async fn restart(session: &Session, names: &[String], size: u32) -> Result<u8, Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (table, _) = session.table().await?;
    let chosen = select(&table, names)?;
    let mut progress = Progress::default();
    let mut batches = chosen.chunks(usize::try_from(size).unwrap_or(usize::MAX));
    for batch in batches.by_ref() {
        progress.batch(session, batch).await?;
        progress.interrupted = came(&mut interrupt).await;
        if !progress.failed.is_empty() || progress.interrupted {
            break;
        }
    }
    progress.untouched = batches.flatten().map(spec).collect();
    progress.finish(session)
}

/// Whether the signal has come since it was last looked at.
async fn came(interrupt: &mut Signal) -> bool {
    tokio::select! {
        biased;
        _ = interrupt.recv() => true,
        () = std::future::ready(()) => false,
    }
}

#[derive(Default)]
struct Progress {
    restarted: Vec<String>,
    failed: Vec<(String, String)>,
    untouched: Vec<String>,
    interrupted: bool,
}

impl Progress {
    async fn batch(&mut self, session: &Session, batch: &[ProcessInfo]) -> Result<(), Error> {
        let names: Vec<String> = batch.iter().map(spec).collect();
        let _waiting = Waiting::on(&format!("{} to restart", names.join(", ")));
        let stopped = on_processes(session, &Action::Stop, batch).await?;
        for entry in &stopped {
            if !matches!(entry.status, SUCCESS | NOT_RUNNING) {
                self.fail(entry);
            }
        }
        if !self.failed.is_empty() {
            // Those of the batch that did stop are not left behind.
            on_processes(session, &Action::Start, batch).await?;
            return Ok(());
        }
        for entry in on_processes(session, &Action::Start, batch).await? {
            if entry.status != SUCCESS {
                self.fail(&entry);
                continue;
            }
            let name = namespec(&entry.group, &entry.name);
            match session.output.format {
                Format::Table => session.output.line(&format!("{name}: restarted"))?,
                Format::Name => session.output.line(&name)?,
                Format::Json => {}
            }
            self.restarted.push(name);
        }
        Ok(())
    }

    fn fail(&mut self, entry: &StatusEntry) {
        let name = namespec(&entry.group, &entry.name);
        self.failed.push((name, entry.description.clone()));
    }

    fn finish(self, session: &Session) -> Result<u8, Error> {
        if session.output.format == Format::Json {
            session.output.json(&self.value())?;
        }
        for (name, reason) in &self.failed {
            say!("{name}: ERROR ({reason})");
        }
        let untouched = match self.untouched.len() {
            0 => String::new(),
            count => format!(", {count} not restarted: {}", self.untouched.join(" ")),
        };
        let failed = match self.failed.len() {
            0 => String::new(),
            count => format!(", {count} did not come up"),
        };
        say!("{} restarted{failed}{untouched}", self.restarted.len());
        Ok(match (self.failed.is_empty(), self.interrupted) {
            (false, _) => NOT_DONE,
            (true, true) if !self.untouched.is_empty() => INTERRUPTED,
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
            ("untouched".to_owned(), names(&self.untouched)),
        ])
    }
}

fn spec(info: &ProcessInfo) -> String {
    namespec(&info.group, &info.name)
}
