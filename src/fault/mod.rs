//! The daemon's fault numbers and texts (`supervisor/xmlrpc.py`, `Faults` and `RPCError`).

pub mod complaint;

use crate::marked_text::MarkedText;
use crate::xmlrpc::Fault;

/// No method has this name.
pub const UNKNOWN_METHOD: i32 = 1;
/// The number, type or value of the parameters is wrong.
pub const INCORRECT_PARAMETERS: i32 = 2;
/// There is no help or signature for this name.
pub const SIGNATURE_UNSUPPORTED: i32 = 4;
/// The daemon is shutting down or restarting.
pub const SHUTDOWN_STATE: i32 = 6;
/// The group or process does not exist, or exists already.
pub const BAD_NAME: i32 = 10;
/// The signal does not exist.
pub const BAD_SIGNAL: i32 = 11;
/// A file does not exist or cannot be used.
pub const NO_FILE: i32 = 20;
/// The daemon may not execute the program.
pub const NOT_EXECUTABLE: i32 = 21;
/// An operation failed.
pub const FAILED: i32 = 30;
/// A process exited before it counted as started.
pub const ABNORMAL_TERMINATION: i32 = 40;
/// The daemon could not spawn a process.
pub const SPAWN_ERROR: i32 = 50;
/// The process to start runs already.
pub const ALREADY_STARTED: i32 = 60;
/// The process to stop or signal does not run.
pub const NOT_RUNNING: i32 = 70;
/// Not a fault: the `status` of a process for which a call for its group has succeeded.
pub const SUCCESS: i32 = 80;
/// The group is active already.
pub const ALREADY_ADDED: i32 = 90;
/// A process is not stopped.
pub const STILL_RUNNING: i32 = 91;
/// The daemon could not read its configuration files.
pub const CANT_REREAD: i32 = 92;
/// The option `allow` does not allow the method. The number is that of the in-process
/// supervisor_twiddler.
pub const NOT_IN_WHITELIST: i32 = 230;

/// Returns the fault `code` with the text `NAME: detail`. The colon stays if `detail` is empty, for example
/// the name of an unknown process.
pub fn fault(code: i32, detail: impl Into<MarkedText>) -> Fault {
    let text = MarkedText::from(name(code)).and(": ").then(&detail.into());
    let (text, without_values) = text.into_parts();
    Fault {
        without_values: Some(without_values),
        ..Fault::from_reply(code, text)
    }
}

/// Returns the fault `code` with its name as the text.
pub fn without_detail(code: i32) -> Fault {
    Fault::from_reply(code, name(code).to_owned())
}

/// Returns the fault's text for the log, without option values, which may be secrets.
pub fn without_values(fault: &Fault) -> String {
    match &fault.without_values {
        Some(text) => text.clone(),
        None if matches!(fault.code, INCORRECT_PARAMETERS | CANT_REREAD) => {
            complaint::fault_text(&fault.text).into_parts().1
        }
        None => fault.text.clone(),
    }
}

fn name(code: i32) -> &'static str {
    match code {
        UNKNOWN_METHOD => "UNKNOWN_METHOD",
        INCORRECT_PARAMETERS => "INCORRECT_PARAMETERS",
        SIGNATURE_UNSUPPORTED => "SIGNATURE_UNSUPPORTED",
        SHUTDOWN_STATE => "SHUTDOWN_STATE",
        BAD_NAME => "BAD_NAME",
        BAD_SIGNAL => "BAD_SIGNAL",
        NO_FILE => "NO_FILE",
        NOT_EXECUTABLE => "NOT_EXECUTABLE",
        FAILED => "FAILED",
        ABNORMAL_TERMINATION => "ABNORMAL_TERMINATION",
        SPAWN_ERROR => "SPAWN_ERROR",
        ALREADY_STARTED => "ALREADY_STARTED",
        NOT_RUNNING => "NOT_RUNNING",
        ALREADY_ADDED => "ALREADY_ADDED",
        STILL_RUNNING => "STILL_RUNNING",
        CANT_REREAD => "CANT_REREAD",
        // The in-process supervisor_twiddler returns UNKNOWN, because the daemon's table has no such number.
        NOT_IN_WHITELIST => "NOT_IN_WHITELIST",
        _ => "UNKNOWN",
    }
}

/// Returns whether the detail of a [`CANT_REREAD`] fault is the proxy's: the daemon does not read the
/// proxy's files. Such a text has a directory and an account, but no value of a client. No text of the
/// daemon begins with the same words.
pub fn is_proxys_cant_reread(text: &str) -> bool {
    ["supervisord runs as ", "supervisord did not read "]
        .iter()
        .any(|prefix| text.starts_with(prefix))
}
