//! The daemon's fault numbers and texts (`supervisor/xmlrpc.py`, `Faults` and `RPCError`).

pub mod complaint;

use crate::marked_text::MarkedText;
use crate::xmlrpc::Fault;

/// A name that no method has.
pub const UNKNOWN_METHOD: i32 = 1;
/// Parameters of a wrong number, type or value.
pub const INCORRECT_PARAMETERS: i32 = 2;
/// No help or signature for that name.
pub const SIGNATURE_UNSUPPORTED: i32 = 4;
/// The daemon is shutting down or restarting.
pub const SHUTDOWN_STATE: i32 = 6;
/// No such group or process, or one that is there already.
pub const BAD_NAME: i32 = 10;
/// A signal that does not exist.
pub const BAD_SIGNAL: i32 = 11;
/// A file that is not there or cannot be used.
pub const NO_FILE: i32 = 20;
/// A program that may not be executed.
pub const NOT_EXECUTABLE: i32 = 21;
/// An operation that did not work.
pub const FAILED: i32 = 30;
/// A process ended before it was up.
pub const ABNORMAL_TERMINATION: i32 = 40;
/// A process could not be spawned.
pub const SPAWN_ERROR: i32 = 50;
/// A process that is to start is up already.
pub const ALREADY_STARTED: i32 = 60;
/// A process that is to stop or to get a signal is not up.
pub const NOT_RUNNING: i32 = 70;
/// Not a fault: the `status` of a process whose part of a group call went well.
pub const SUCCESS: i32 = 80;
/// A group that is active already.
pub const ALREADY_ADDED: i32 = 90;
/// A process is not stopped.
pub const STILL_RUNNING: i32 = 91;
/// The daemon could not read its configuration files.
pub const CANT_REREAD: i32 = 92;
/// A method that the whitelist leaves out (the in-process twiddler's own number).
pub const NOT_IN_WHITELIST: i32 = 230;

/// The fault `code` with the daemon's text for it, and `detail` after a colon, be it empty: a
/// process whose name is empty is unknown all the same.
pub fn fault(code: i32, detail: impl Into<MarkedText>) -> Fault {
    let told = MarkedText::from(name(code)).and(": ").then(&detail.into());
    let (text, without_values) = told.into_parts();
    Fault {
        without_values: Some(without_values),
        ..Fault::received(code, text)
    }
}

/// The fault `code` with the daemon's text for it alone.
pub fn bare(code: i32) -> Fault {
    Fault::received(code, name(code).to_owned())
}

/// The fault's text as it may stand in the log: what options are set to may be a secret.
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
        // The in-process twiddler says UNKNOWN here: the daemon's own table does not know the number.
        NOT_IN_WHITELIST => "NOT_IN_WHITELIST",
        _ => "UNKNOWN",
    }
}

/// Whether the text of a fault [`CANT_REREAD`], without its name, is the proxy's own: the daemon
/// does not see the proxy's files. It holds the directory and an account, and no client's value;
/// none of the daemon's own texts begins so.
pub fn is_unread(text: &str) -> bool {
    ["supervisord runs as ", "supervisord did not read "]
        .iter()
        .any(|beginning| text.starts_with(beginning))
}
