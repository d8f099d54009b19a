//! The allocator's settings, which it reads before `main` and nowhere else.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// How many milliseconds mimalloc keeps what was freed.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Starts this program again, in the same process, with an allocator that gives memory back at once.
/// By itself it does so when it is next busy after a second, so that after a crowd the memory of all its
/// connections stays. Returns where it runs so already, was told another delay, or cannot be started
/// again: then more memory is held, and nothing else differs.
pub fn give_back_at_once() {
    if env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut arguments = env::args_os();
    let name = arguments.next();
    // Returns only where it fails.
    let _error = Command::new(&program)
        .arg0(name.as_deref().unwrap_or(OsStr::new("twiddler")))
        .args(arguments)
        .env(PURGE_DELAY, "0")
        .exec();
}
