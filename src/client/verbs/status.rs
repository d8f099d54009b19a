//! `status`: prints the table of processes and returns supervisorctl's exit statuses.

use super::Session;
use crate::client::args::{Format, StatusArgs};
use crate::client::error::{Error, NOT_RUNNING, UNKNOWN_NAME};
use crate::client::names::{Selector, unknown};
use crate::daemon::ProcessInfo;
use crate::namespec::namespec;
use crate::xmlrpc::Value;

/// Prints the processes that the arguments select, or all.
///
/// # Errors
/// When the server does not answer.
pub async fn run(session: &Session, args: &StatusArgs) -> Result<u8, Error> {
    let (table, value) = session.table().await?;
    let mut selectors = Vec::new();
    let mut status = 0;
    for name in &args.names {
        let selector = Selector::parse(name)?;
        if selector != Selector::All && !table.iter().any(|info| selector.matches(info)) {
            say!("twiddler: {}", unknown(&table, name));
            status = UNKNOWN_NAME;
        }
        selectors.push(selector);
    }
    let is_chosen = |info: &ProcessInfo| {
        selectors.is_empty() || selectors.iter().any(|selector| selector.matches(info))
    };
    let chosen: Vec<ProcessInfo> = table.into_iter().filter(is_chosen).collect();
    match session.output.format {
        Format::Json => session.output.json(&only(value, &chosen))?,
        Format::Name => {
            for info in &chosen {
                let line = namespec(&info.group, &info.name);
                session.output.line(&line)?;
            }
        }
        Format::Table if chosen.is_empty() => {}
        Format::Table => session.output.processes(&chosen)?,
    }
    // As in supervisorctl, the status for a process that does not run wins over the one for an unknown
    // name (`do_status`).
    if chosen.iter().any(|info| info.state.is_stopped()) {
        status = NOT_RUNNING;
    }
    Ok(status)
}

/// The server's structs for the chosen processes.
fn only(value: Value, chosen: &[ProcessInfo]) -> Value {
    match value {
        Value::Array(infos) => Value::Array(
            infos
                .into_iter()
                .filter(|info| ProcessInfo::read(info).is_some_and(|info| chosen.contains(&info)))
                .collect(),
        ),
        other => other,
    }
}
