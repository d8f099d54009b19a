//! The supervisord behind the proxy: connections and calls to it, its configuration file, and the
//! structs of its replies.
//!
//! This module knows neither the groups that were added at run time nor the proxy's HTTP server.

mod client;
mod clients;
pub mod conf;
mod connections;
mod descriptors;
mod health;
mod info;
mod liveness;
pub mod main_log;
mod reload;
mod slots;

pub use client::{
    CallError, Daemon, MULTICALL, NoReply, multicall_entries, multicall_result, multicall_results,
};
pub use clients::{Client, Origin};
pub use connections::{Body, ReplyBody, Reuse};
pub use descriptors::Descriptors;
pub use info::{ConfigInfo, ProcessInfo, ProcessState, StatusEntry};
pub use liveness::Liveness;
pub use main_log::MainLog;
pub use reload::ReloadResult;
#[cfg(test)]
pub(crate) use slots::Slot;
pub(crate) use slots::Slots;
pub use slots::{MAX_QUEUED, Share, SlotLimits};
