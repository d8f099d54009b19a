//! The verbs. A verb turns its arguments into calls, and the results into output.

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

/// The server and the output of one command.
pub struct Session {
    /// The server.
    pub server: Connection,
    /// How to print.
    pub output: Output,
}

impl Session {
    /// All processes in the server's order, parsed and as the server returned them.
    ///
    /// # Errors
    /// When the server does not answer, or answers with a fault.
    pub async fn table(&self) -> Result<(Vec<ProcessInfo>, Value), Error> {
        let infos = self
            .server
            .call("supervisor.getAllProcessInfo", &[], "")
            .await?;
        Ok((ProcessInfo::read_all(&infos), infos))
    }
}
