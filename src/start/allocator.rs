//! The allocator's settings. mimalloc reads them from the environment before `main`, and only there.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// How many milliseconds mimalloc keeps freed memory.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// The delay of this program. Without a delay, mimalloc returns memory and gets it again for each request, which
/// costs an eighth of the processor time of a forwarded call.
const MILLISECONDS: &str = "50";

/// Executes this program again, in the same process, with a short purge delay: freed memory returns to the
/// system soon. By default mimalloc returns it at an allocation at least a second later, so the memory
/// of many closed connections stays while the proxy is idle.
///
/// Returns if the variable is set already, or if the program cannot be executed; then the proxy holds more
/// memory, and nothing else differs.
pub fn set_purge_delay() {
    if env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut arguments = env::args_os();
    let name = arguments.next();
    // `exec` returns only on failure.
    let _error = Command::new(&program)
        .arg0(name.as_deref().unwrap_or(OsStr::new("twiddler")))
        .args(arguments)
        .env(PURGE_DELAY, MILLISECONDS)
        .exec();
}
