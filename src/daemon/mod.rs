//! The supervisord on the other side: how it is reached, what its configuration says.
//!
//! Knows nothing of groups that were added at run time, nor of the clients in front of us.

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
    CallError, Daemon, MULTICALL, Unanswered, multicall_entries, multicall_result,
    multicall_results,
};
pub use clients::{Client, Origin};
pub use connections::{Body, ReplyBody, Reuse};
pub use descriptors::Descriptors;
pub use info::{ConfigInfo, ProcessInfo, ProcessState, StatusEntry};
pub use liveness::Liveness;
pub use main_log::MainLog;
pub use reload::Reloaded;
#[cfg(test)]
pub(crate) use slots::Slot;
pub(crate) use slots::Slots;
pub use slots::{MAX_QUEUED, Share, SlotLimits};
