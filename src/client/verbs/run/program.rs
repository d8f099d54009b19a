//! The program that `run` adds.

use std::path::Path;

use crate::client::args::RunArgs;
use crate::client::error::Error;
use crate::client::signals::Signals;
use crate::client::verbs::Session;
use crate::client::words;
use crate::fault::BAD_NAME;
use crate::lease;
use crate::namespec::namespec;
use crate::xmlrpc::{Fault, Value};

/// Defaults of options: the program runs once and is RUNNING at once. Its logs are not rotated, because
/// output that has not been read would be lost.
const DEFAULTS: [(&str, &str); 5] = [
    ("startsecs", "0"),
    ("autorestart", "false"),
    ("startretries", "0"),
    ("stdout_logfile_maxbytes", "0"),
    ("stderr_logfile_maxbytes", "0"),
];
/// The options that the verb sets itself, so that `-O` may not.
const RESERVED: [&str; 5] = [
    "command",
    "autostart",
    "numprocs",
    "process_name",
    lease::OPTION,
];
/// The priority of the program's own group: supervisord's default.
const DEFAULT_PRIORITY: i64 = 999;
/// How many random letters a name ends with.
const SUFFIX: usize = 6;
/// How many names are tried.
const ATTEMPTS: usize = 5;
/// How many letters of the command's name become part of the program's name.
const MAX_BASE_NAME: usize = 32;

/// The program that `run` adds.
#[derive(Debug)]
pub struct Program {
    /// Its name, which is also that of its lease.
    pub name: String,
    /// The namespec of its process.
    pub namespec: String,
    /// Whether the daemon restarts the process when it exits (`autorestart`).
    pub restarts: bool,
    group: String,
}

impl Program {
    /// Adds a program with a name that no other program has.
    ///
    /// # Errors
    /// When the server does not answer, or refuses the program.
    pub async fn add(session: &Session, args: &RunArgs, signals: &Signals) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS {
            let name = format!("{}-{}", base_name(&args.command[0]), suffix()?);
            let program = Program {
                group: args.group.clone().unwrap_or_else(|| name.clone()),
                namespec: namespec(args.group.as_deref().unwrap_or(&name), &name),
                restarts: args.options.iter().any(|(key, value)| {
                    key.eq_ignore_ascii_case("autorestart") && !value.eq_ignore_ascii_case("false")
                }),
                name,
            };
            match signals.limit(0, program.try_add(session, args)).await {
                None => return Err(program.interruption(args, signals)),
                Some(Ok(false)) => {}
                Some(result) => return result.map(|_| program),
            }
        }
        Err(Error::NotDone("no name is free: try again".to_owned()))
    }

    /// The error for a signal that arrived before the server's reply.
    fn interruption(&self, args: &RunArgs, signals: &Signals) -> Error {
        let name = &self.namespec;
        let then = if args.keep {
            format!("if it was, remove it with `twiddler remove --stop {name}`")
        } else {
            "if it was, the proxy removes it, because nobody holds its lease".to_owned()
        };
        Error::Interrupted {
            text: format!("the server has not said whether {name} was added; {then}"),
            status: signals.status(),
        }
    }

    /// Adds the program. Returns `false` if its name is taken.
    async fn try_add(&self, session: &Session, args: &RunArgs) -> Result<bool, Error> {
        let options = Value::Struct(options(args, &self.name)?);
        let group = self.group.as_str();
        let add = call(
            "twiddler.addProcessToGroup",
            vec![group.into(), self.name.as_str().into(), options],
        );
        let calls = if self.has_own_group() {
            // One request: if this command is killed meanwhile, no group is left without its program.
            vec![
                call(
                    "twiddler.addGroup",
                    vec![group.into(), DEFAULT_PRIORITY.into()],
                ),
                add,
            ]
        } else {
            vec![add]
        };
        let method = "twiddler.addProcessToGroup";
        let results = session
            .server
            .call("system.multicall", &[Value::Array(calls)], method)
            .await?;
        let faults: Vec<Option<Fault>> = results
            .as_array()
            .unwrap_or_default()
            .iter()
            .map(fault)
            .collect();
        match faults.last().cloned().flatten() {
            None => Ok(true),
            Some(fault) if fault.code == BAD_NAME && !fault.text.contains("group: ") => Ok(false),
            Some(fault) => {
                if self.has_own_group() && faults[0].is_none() {
                    self.remove(session).await?;
                }
                Err(Error::from_fault(fault, method, method))
            }
        }
    }

    /// Whether the verb adds the group together with the program.
    fn has_own_group(&self) -> bool {
        self.group == self.name
    }

    /// Removes the program, and its own group if it has one. A program that does not exist is no error.
    ///
    /// # Errors
    /// When the server does not answer, or the process is still running.
    pub async fn remove(&self, session: &Session) -> Result<(), Error> {
        let (group, name) = (self.group.as_str().into(), self.name.as_str().into());
        let result = if self.has_own_group() {
            session
                .server
                .try_call("twiddler.removeGroup", &[group])
                .await?
        } else {
            let method = "twiddler.removeProcessFromGroup";
            session.server.try_call(method, &[group, name]).await?
        };
        match result {
            Err(fault) if fault.code != BAD_NAME => Err(Error::Fault {
                fault,
                subject: self.namespec.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// The options as members of the struct that `addProcessToGroup` takes.
fn options(args: &RunArgs, name: &str) -> Result<Vec<(String, Value)>, Error> {
    let command = words::command(&args.command);
    let mut options = vec![
        ("command".to_owned(), Value::from(command)),
        ("autostart".to_owned(), "false".into()),
    ];
    if !args.keep {
        options.push((lease::OPTION.to_owned(), name.into()));
    }
    for (key, value) in &args.options {
        let key = key.to_lowercase();
        if RESERVED.contains(&key.as_str()) {
            return Err(Error::Usage(format!(
                "run sets {key} itself: leave it out, or use add"
            )));
        }
        if options.iter().any(|(known, _)| *known == key) {
            return Err(Error::Usage(format!(
                "{key} is given twice: keep one of them"
            )));
        }
        options.push((key, value.as_str().into()));
    }
    for (key, value) in DEFAULTS {
        if options.iter().all(|(known, _)| known != key) {
            options.push((key.to_owned(), value.into()));
        }
    }
    Ok(options)
}

/// The last part of the command's path, without the characters that names may not have; `run` if none is
/// left.
fn base_name(command: &str) -> String {
    let base = Path::new(command).file_name().unwrap_or_default();
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let name: String = base
        .to_string_lossy()
        .chars()
        .filter(is_allowed)
        .take(MAX_BASE_NAME)
        .collect();
    match name.trim_matches(['.', '-']) {
        "" => "run".to_owned(),
        name => name.to_owned(),
    }
}

fn suffix() -> Result<String, Error> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0; SUFFIX];
    getrandom::fill(&mut random).map_err(std::io::Error::from)?;
    let letters = random.map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
    Ok(letters.iter().collect())
}

/// A call as an element of the array that `system.multicall` takes.
fn call(method: &str, params: Vec<Value>) -> Value {
    Value::Struct(vec![
        ("methodName".to_owned(), method.into()),
        ("params".to_owned(), Value::Array(params)),
    ])
}

/// The fault in a result of `system.multicall`; `None` if the call succeeded.
fn fault(result: &Value) -> Option<Fault> {
    let code = i32::try_from(result.get("faultCode")?.as_int()?).ok()?;
    let text = result.get("faultString")?.as_str()?.to_owned();
    Some(Fault::from_reply(code, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_from_commands() {
        for (command, expected) in [
            ("/usr/bin/backup.sh", "backup.sh"),
            ("ls", "ls"),
            ("/", "run"),
            ("..", "run"),
            ("été:x y", "txy"),
            ("-", "run"),
        ] {
            assert_eq!(base_name(command), expected, "{command}");
        }
        assert_eq!(base_name(&"x".repeat(300)).len(), MAX_BASE_NAME);
        assert_ne!(suffix().unwrap(), suffix().unwrap());
    }
}
