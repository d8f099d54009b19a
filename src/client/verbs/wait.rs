//! `wait`: waits until processes have reached a state.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Session;
use crate::client::args::{Awaited, WaitArgs};
use crate::client::error::{Error, TIMED_OUT};
use crate::client::names::select;
use crate::client::output::Waiting;
use crate::daemon::{ProcessInfo, ProcessState};
use crate::namespec::namespec;

/// The first and the longest pause between two calls of `getAllProcessInfo`. A call costs the daemon half
/// a millisecond for each process.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Waits until all processes that the arguments select have reached the state.
///
/// # Errors
/// When the server does not answer, or a name selects no process, at the start or later. Also when a
/// process that is to run is FATAL, because the daemon does not start it again.
pub async fn run(session: &Session, args: &WaitArgs) -> Result<u8, Error> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut waiting = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let (table, _) = session.table().await?;
        let chosen = select(&table, &args.names)?;
        let pending: Vec<&ProcessInfo> = chosen
            .iter()
            .filter(|info| !has_reached(args.state, info.state))
            .collect();
        if pending.is_empty() {
            return Ok(0);
        }
        if let Some(fatal) = pending
            .iter()
            .find(|info| is_hopeless(args.state, info.state))
        {
            let reason = match fatal.description.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            return Err(Error::NotDone(format!("{} is FATAL{reason}", spec(fatal))));
        }
        let names: Vec<String> = pending.iter().map(|info| spec(info)).collect();
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            say!(
                "twiddler: the time is up, still waiting for {}",
                names.join(", ")
            );
            return Ok(TIMED_OUT);
        }
        waiting.get_or_insert_with(|| Waiting::on(&names.join(", ")));
        let next = Instant::now() + pause;
        sleep_until(deadline.map_or(next, |deadline| deadline.min(next))).await;
        pause = (pause * 5 / 4).min(LONGEST_PAUSE);
    }
}

fn has_reached(awaited: Awaited, state: ProcessState) -> bool {
    match awaited {
        Awaited::Running => state == ProcessState::Running,
        Awaited::Stopped => state.is_stopped(),
        Awaited::Exited => state == ProcessState::Exited,
    }
}

/// Whether a process in `state` never reaches the awaited one by itself.
fn is_hopeless(awaited: Awaited, state: ProcessState) -> bool {
    state == ProcessState::Fatal && awaited != Awaited::Stopped
}

fn spec(info: &ProcessInfo) -> String {
    namespec(&info.group, &info.name)
}
