//! The errors of the verbs: each is one sentence and has an exit status.

use crate::fault::{
    BAD_NAME, CANT_REREAD, INCORRECT_PARAMETERS, NO_FILE, NOT_IN_WHITELIST, SHUTDOWN_STATE,
    STILL_RUNNING, UNKNOWN_METHOD, is_proxys_cant_reread,
};
use crate::xmlrpc::Fault;

/// A part of the verb's work failed.
pub const NOT_DONE: u8 = 1;
/// Bad usage.
pub const USAGE: u8 = 2;
/// `diff`: the comparison failed, as for diff(1).
pub const COMPARISON_FAILED: u8 = 2;
/// `status`: a process does not run.
pub const NOT_RUNNING: u8 = 3;
/// `status`: a name is unknown.
pub const UNKNOWN_NAME: u8 = 4;
/// The server cannot be reached: `EX_UNAVAILABLE` of sysexits.h.
pub const UNREACHABLE: u8 = 69;
/// The server refused the credentials: `EX_NOPERM` of sysexits.h.
pub const REFUSED: u8 = 77;
/// `wait`: the timeout has passed, as for timeout(1).
pub const TIMED_OUT: u8 = 124;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached.
    #[error("cannot reach {server}: {reason}. {advice}")]
    Unreachable {
        /// The server's URL.
        server: String,
        /// The operating system's error.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The server answers, and cannot reach supervisord.
    #[error("supervisord behind {server} cannot be reached: {reason}")]
    NoSupervisord {
        /// The server's URL.
        server: String,
        /// The first line of the server's reply.
        reason: String,
    },
    /// The server refused the credentials, or requires credentials and got none.
    #[error(
        "{server} refused the credentials: pass -u and -p, set TWIDDLER_CLIENT_USERNAME and \
         TWIDDLER_CLIENT_PASSWORD, or write username and password in [supervisorctl]"
    )]
    Refused {
        /// The server's URL.
        server: String,
    },
    /// The server answered with another status than 200.
    #[error("{server} answered HTTP {status}{}{}", after_colon(.reason), advice(*.status))]
    Status {
        /// The server's URL.
        server: String,
        /// The status.
        status: u16,
        /// The first line of the server's reply; empty for a page.
        reason: String,
    },
    /// The reply is no XML-RPC response.
    #[error("{server} does not answer as a supervisord does: {reason}")]
    Unreadable {
        /// The server's URL.
        server: String,
        /// What is wrong with the reply.
        reason: String,
    },
    /// The server has no such method.
    #[error("{}", without_method(.0))]
    NoMethod(String),
    /// An error of `diff`, whose exit status differs from the one for a difference.
    #[error("{0}")]
    ComparisonFailed(Box<Error>),
    /// The server answered with a fault.
    #[error("{}", explain(.fault, .subject))]
    Fault {
        /// The fault.
        fault: Fault,
        /// The name that the call was about; empty for none.
        subject: String,
    },
    /// A sentence that the verb has written itself.
    #[error("{0}")]
    NotDone(String),
    /// Bad usage.
    #[error("{0}")]
    Usage(String),
    /// A name that no process, group or program has.
    #[error("{0}")]
    UnknownName(String),
    /// A signal asked the command to end before its work was done.
    #[error("{text}")]
    Interrupted {
        /// What may be left in supervisord, and who removes it.
        text: String,
        /// The exit status.
        status: u8,
    },
    /// Standard output cannot be written, such as a pipe whose reader has exited.
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// The error for a fault of `method`; `subject` is the name that the call was about.
    pub fn from_fault(fault: Fault, method: &str, subject: &str) -> Self {
        match fault.code {
            UNKNOWN_METHOD => Error::NoMethod(method.to_owned()),
            _ => Error::Fault {
                fault,
                subject: subject.to_owned(),
            },
        }
    }

    /// The exit status of a command that ends with this error.
    pub fn status(&self) -> u8 {
        match self {
            Error::Unreachable { .. } | Error::NoSupervisord { .. } | Error::Unreadable { .. } => {
                UNREACHABLE
            }
            Error::Refused { .. } => REFUSED,
            Error::Usage(_) => USAGE,
            Error::ComparisonFailed(_) => COMPARISON_FAILED,
            Error::Interrupted { status, .. } => *status,
            Error::Status { .. }
            | Error::NoMethod(_)
            | Error::Fault { .. }
            | Error::NotDone(_)
            | Error::UnknownName(_)
            | Error::Output(_) => NOT_DONE,
        }
    }
}

fn without_method(method: &str) -> String {
    if method.starts_with("twiddler.") {
        format!(
            "this supervisord has no twiddler.* methods: {method} needs the address of a twiddler \
         proxy, with -s or TWIDDLER_SERVER"
        )
    } else {
        format!("the server has no method {method}")
    }
}

/// The advice for a status that neither supervisord nor twiddler answers to a verb.
fn advice(status: u16) -> &'static str {
    match status {
        300..=400 | 404 | 405 | 411 | 501 => {
            ". Is it a supervisord? Name another server with -s or TWIDDLER_SERVER"
        }
        _ => "",
    }
}

fn after_colon(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}

/// The sentence for a fault, with what to do about it; `subject` is the name that the call was about, or
/// empty.
pub fn explain(fault: &Fault, subject: &str) -> String {
    let detail = fault
        .text
        .split_once(": ")
        .map_or("", |(_, detail)| detail)
        .trim();
    let about = if subject.is_empty() { detail } else { subject };
    match fault.code {
        INCORRECT_PARAMETERS if detail.is_empty() => {
            format!(
                "the server does not take these arguments{}",
                for_subject(subject)
            )
        }
        INCORRECT_PARAMETERS => detail.to_owned(),
        SHUTDOWN_STATE => {
            "supervisord is shutting down or restarting: try again in a moment".into()
        }
        BAD_NAME => match detail.strip_prefix("group: ") {
            Some(group) => format!("no such group: {group}"),
            None => format!("no such process or group: {about}"),
        },
        NO_FILE => format!("{about} has no log file"),
        STILL_RUNNING => format!("{about} is still running: stop it first, or add --stop"),
        CANT_REREAD if is_proxys_cant_reread(detail) => detail.to_owned(),
        CANT_REREAD => format!(
            "supervisord's configuration files are not valid: {detail}; mend them and try again"
        ),
        NOT_IN_WHITELIST => {
            format!("{detail} is not allowed here: see allow and whitelist in [twiddler]")
        }
        _ => fault.text.clone(),
    }
}

fn for_subject(subject: &str) -> String {
    match subject {
        "" => String::new(),
        subject => format!(" for {subject}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_sentences() {
        for (code, text, subject, expected) in [
            (2, "INCORRECT_PARAMETERS: priority: no", "", "priority: no"),
            (
                2,
                "INCORRECT_PARAMETERS",
                "x.y",
                "the server does not take these arguments for x.y",
            ),
            (10, "BAD_NAME: group: web", "", "no such group: web"),
            (
                10,
                "BAD_NAME: api",
                "web:api",
                "no such process or group: web:api",
            ),
            (30, "FAILED: disk full", "web:api", "FAILED: disk full"),
            (
                92,
                "CANT_REREAD: supervisord did not read /etc/x; write y",
                "web:api",
                "supervisord did not read /etc/x; write y",
            ),
            (
                91,
                "STILL_RUNNING: api",
                "web:api",
                "web:api is still running: stop it first, or add --stop",
            ),
        ] {
            let fault = Fault::from_reply(code, text.to_owned());
            assert_eq!(explain(&fault, subject), expected);
        }
    }
}
