//! Points of a change at which a test lets the proxy stop, so that it can be killed there, or the
//! daemon, or the disk fail it from there on. Release builds pass them without a look.

use std::time::Duration;

/// The variable that names a file; the file names the point at which to stop, once.
#[cfg(debug_assertions)]
const FILE: &str = "TEST_STOP_AT";

/// Stops this process where it is told to, until somebody lets it go on.
#[cfg(debug_assertions)]
pub(crate) fn hit(point: &str) {
    use nix::sys::signal::{Signal, raise};
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let is_wanted = std::fs::read_to_string(&file).is_ok_and(|wanted| wanted == point);
    if is_wanted && std::fs::remove_file(&file).is_ok() {
        let _ = raise(Signal::SIGSTOP);
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn hit(_point: &str) {}

/// How long to wait: `usual`, or as many milliseconds as a test says.
#[cfg(debug_assertions)]
pub(crate) fn or_sooner(usual: Duration) -> Duration {
    let text = std::env::var("TEST_WAIT_MS").ok();
    let millis = text.and_then(|text| text.parse().ok());
    millis.map_or(usual, Duration::from_millis)
}

/// How long to wait: `usual`.
#[cfg(not(debug_assertions))]
pub(crate) fn or_sooner(usual: Duration) -> Duration {
    usual
}
