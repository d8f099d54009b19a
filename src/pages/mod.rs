//! Translation of names in the daemon's web pages and log tails.
//!
//! Pure: it reads one request as the daemon does, and rewrites one reply. A request has names in its path and
//! form (`supervisor/web.py`, `supervisor/http.py`), a reply in rows, titles, links and messages.

mod quote;
mod reply;
mod request;

pub use reply::{
    Rewritten, rewrite_message, rewrite_refresh_message, rewrite_status, rewrite_tail,
};
pub use request::{Page, PageRequest, refresh};
