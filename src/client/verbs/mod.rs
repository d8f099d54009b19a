//! The verbs, each of which turns its arguments into calls and their results into text.

pub mod call;
pub mod changes;
pub mod control;
pub mod diff;
pub mod export;
pub mod generated;
pub mod logs;
pub mod programs;
pub mod rolling;
pub mod run;
pub mod status;
pub mod wait;

use super::connection::Connection;
use super::error::Error;
use super::output::Output;
use crate::daemon::ProcessInfo;
use crate::xmlrpc::Value;

/// What every verb works with.
pub struct Session {
    /// The server.
    pub server: Connection,
    /// How to print.
    pub output: Output,
}

impl Session {
    /// All processes, in the server's order, beside the value that they were read from.
    ///
    /// # Errors
    /// When the server does not answer with a table.
    pub async fn table(&self) -> Result<(Vec<ProcessInfo>, Value), Error> {
        let infos = self
            .server
            .call("supervisor.getAllProcessInfo", &[], "")
            .await?;
        Ok((ProcessInfo::read_all(&infos), infos))
    }
}
