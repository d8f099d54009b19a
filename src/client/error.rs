//! What can go wrong for a verb: one sentence each, and an exit status.

use crate::fault::{
    BAD_NAME, CANT_REREAD, INCORRECT_PARAMETERS, NO_FILE, NOT_IN_WHITELIST, SHUTDOWN_STATE,
    STILL_RUNNING, UNKNOWN_METHOD, is_unread,
};
use crate::xmlrpc::Fault;

/// Something that was asked for did not happen.
pub const NOT_DONE: u8 = 1;
/// Bad usage.
pub const USAGE: u8 = 2;
/// `diff`: it cannot be told whether something differs.
pub const TROUBLE: u8 = 2;
/// `status`: a process does not run.
pub const NOT_RUNNING: u8 = 3;
/// `status`: a name is unknown.
pub const UNKNOWN_NAME: u8 = 4;
/// The server cannot be reached.
pub const UNREACHABLE: u8 = 69;
/// The server refused the credentials.
pub const REFUSED: u8 = 77;
/// `wait`: the time is up.
pub const TIME_IS_UP: u8 = 124;

/// Why a verb did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached.
    #[error("cannot reach {server}: {reason}. {advice}")]
    Unreachable {
        /// The server's URL.
        server: String,
        /// What the system said.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The server is there, and supervisord behind it is not.
    #[error("supervisord behind {server} cannot be reached: {reason}")]
    NoSupervisord {
        /// The server's URL.
        server: String,
        /// What the server said.
        reason: String,
    },
    /// The server refused the credentials, or wants some.
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
        /// What the server said, if it did.
        reason: String,
    },
    /// The answer cannot be read.
    #[error("{server} does not answer as a supervisord does: {reason}")]
    Unreadable {
        /// The server's URL.
        server: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The server has no such method.
    #[error("{}", without_method(.0))]
    NoMethod(String),
    /// What a comparison could not find out, and why: its status is not the one for a difference.
    #[error("{0}")]
    Trouble(Box<Error>),
    /// The server answered with a fault.
    #[error("{}", explain(.fault, .subject))]
    Fault {
        /// The fault.
        fault: Fault,
        /// The name that the call was about; empty for none.
        subject: String,
    },
    /// A sentence of a verb's own.
    #[error("{0}")]
    NotDone(String),
    /// Bad usage.
    #[error("{0}")]
    Usage(String),
    /// A name that nobody has.
    #[error("{0}")]
    UnknownName(String),
    /// A signal asked the command to end before it had done what it should.
    #[error("{text}")]
    Interrupted {
        /// What is left, and what becomes of it.
        text: String,
        /// The exit status.
        status: u8,
    },
    /// Standard output is gone, such as a pipe to `head`.
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// The error for a fault of `method`; `subject` is the name that the call was about.
    pub fn of(fault: Fault, method: &str, subject: &str) -> Self {
        match fault.code {
            UNKNOWN_METHOD => Error::NoMethod(method.to_owned()),
            _ => Error::Fault {
                fault,
                subject: subject.to_owned(),
            },
        }
    }

    /// The exit status for it.
    pub fn status(&self) -> u8 {
        match self {
            Error::Unreachable { .. } | Error::NoSupervisord { .. } | Error::Unreadable { .. } => {
                UNREACHABLE
            }
            Error::Refused { .. } => REFUSED,
            Error::Usage(_) => USAGE,
            Error::Trouble(_) => TROUBLE,
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

/// What supervisord and a twiddler answer to no verb.
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

/// A fault in one sentence, with what to do.
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
        CANT_REREAD if is_unread(detail) => detail.to_owned(),
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
            let fault = Fault::received(code, text.to_owned());
            assert_eq!(explain(&fault, subject), expected);
        }
    }
}
