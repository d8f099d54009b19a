//! Failpoints: points of a change at which a test stops the proxy, to kill it or the daemon there, or to
//! make the disk fail from there on. They do nothing in release builds.

use std::time::Duration;

/// The environment variable with the path of a file. The file has the name of the failpoint at which to
/// stop once.
#[cfg(debug_assertions)]
const FILE: &str = "TEST_STOP_AT";

/// Stops this process with SIGSTOP if the test has named this failpoint. The test continues it with
/// SIGCONT.
#[cfg(debug_assertions)]
pub(crate) fn hit(point: &str) {
    use nix::sys::signal::{Signal, raise};
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let is_active = std::fs::read_to_string(&file).is_ok_and(|active| active == point);
    if is_active && std::fs::remove_file(&file).is_ok() {
        let _ = raise(Signal::SIGSTOP);
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn hit(_point: &str) {}

/// Returns `usual`, or the number of milliseconds that a test has set in `TEST_WAIT_MS`.
#[cfg(debug_assertions)]
pub(crate) fn wait_time(usual: Duration) -> Duration {
    let text = std::env::var("TEST_WAIT_MS").ok();
    let millis = text.and_then(|text| text.parse().ok());
    millis.map_or(usual, Duration::from_millis)
}

/// Returns `usual`.
#[cfg(not(debug_assertions))]
pub(crate) fn wait_time(usual: Duration) -> Duration {
    usual
}
