//! The daemon's web interface and log tails, in the names of clients.
//!
//! Pure: reads one request as the daemon does, and rewrites one reply. Paths and forms name a
//! process on the way in (`supervisor/web.py`, `supervisor/http.py`); rows, titles, links and
//! messages on the way out.

mod quote;
mod reply;
mod request;

pub use reply::{Rewritten, message_back, restarted, status_back, tail_back};
pub use request::{Asked, Page, refresh};
