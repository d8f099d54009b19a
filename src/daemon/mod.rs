//! The supervisord on the other side: how it is reached, what its configuration says, its faults.
//!
//! Knows nothing of groups that were added at run time, nor of the clients in front of us.

mod client;
pub mod conf;
mod connections;
pub mod fault;
mod info;
mod life;
mod reload;

pub use client::{CallError, Daemon, multicall_result};
pub use connections::{Body, ReplyBody, Reuse};
pub use info::{ProcessInfo, ProcessState, StatusEntry};
pub use life::Life;
pub use reload::Reloaded;
