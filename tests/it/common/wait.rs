//! Waiting for something to become true, never for time to pass.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long anything may take before a test gives up: far above what it takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks until the check succeeds, and hands over what it returned; after `limit`, its last error.
///
/// The check is made at least once, and once more after the limit has passed.
pub fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let late = Instant::now() >= deadline;
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if late => {
                return Err(error).with_context(|| format!("not within {limit:?}"));
            }
            Err(_) => sleep(pause),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether nothing else runs on the machine, as `TEST_ALONE=1` says.
pub fn is_alone() -> bool {
    std::env::var_os("TEST_ALONE").is_some()
}
