//! `wait`: until processes have reached a state.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Session;
use crate::client::args::{Awaited, WaitArgs};
use crate::client::error::{Error, TIME_IS_UP};
use crate::client::names::select;
use crate::client::output::Waiting;
use crate::daemon::{ProcessInfo, ProcessState};
use crate::namespec::namespec;

/// How often the table is looked at: a call costs the daemon half a millisecond a process.
const PAUSE: Duration = Duration::from_millis(100);
/// The same once it takes long.
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// Waits. Each name must be known at the start, and for as long as is waited.
///
/// # Errors
/// When the server does not answer, a name is unknown, or a process that should run is FATAL: the
/// daemon does not try again then.
pub async fn run(session: &Session, args: &WaitArgs) -> Result<u8, Error> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut waiting = None;
    let mut pause = PAUSE;
    loop {
        let (table, _) = session.table().await?;
        let chosen = select(&table, &args.names)?;
        let missing: Vec<&ProcessInfo> = chosen
            .iter()
            .filter(|info| !has_reached(args.state, info.state))
            .collect();
        if missing.is_empty() {
            return Ok(0);
        }
        if let Some(fatal) = missing
            .iter()
            .find(|info| is_hopeless(args.state, info.state))
        {
            let reason = match fatal.description.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            return Err(Error::NotDone(format!("{} is FATAL{reason}", spec(fatal))));
        }
        let names: Vec<String> = missing.iter().map(|info| spec(info)).collect();
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            say!(
                "twiddler: the time is up, still waiting for {}",
                names.join(", ")
            );
            return Ok(TIME_IS_UP);
        }
        waiting.get_or_insert_with(|| Waiting::on(&names.join(", ")));
        let next = Instant::now() + pause;
        sleep_until(deadline.map_or(next, |deadline| deadline.min(next))).await;
        pause = (pause * 5 / 4).min(LONG_PAUSE);
    }
}

fn has_reached(awaited: Awaited, state: ProcessState) -> bool {
    match awaited {
        Awaited::Running => state == ProcessState::Running,
        Awaited::Stopped => state.is_stopped(),
        Awaited::Exited => state == ProcessState::Exited,
    }
}

fn is_hopeless(awaited: Awaited, state: ProcessState) -> bool {
    state == ProcessState::Fatal && awaited != Awaited::Stopped
}

fn spec(info: &ProcessInfo) -> String {
    namespec(&info.group, &info.name)
}
