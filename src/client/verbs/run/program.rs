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

/// What the program has unless the options say otherwise: it runs once, and counts as up at once.
/// A log that is rotated would lose what nobody has read yet.
const DEFAULTS: [(&str, &str); 5] = [
    ("startsecs", "0"),
    ("autorestart", "false"),
    ("startretries", "0"),
    ("stdout_logfile_maxbytes", "0"),
    ("stderr_logfile_maxbytes", "0"),
];
/// What the options may not say, because the command does.
const OWN: [&str; 5] = [
    "command",
    "autostart",
    "numprocs",
    "process_name",
    lease::OPTION,
];
/// The priority of its group, which is supervisord's own default.
const PRIORITY: i64 = 999;
/// Letters that make a name one of its own.
const SUFFIX: usize = 6;
/// How often another name is tried.
const ATTEMPTS: usize = 5;
/// How much of the command's name is taken.
const LONGEST_NAME: usize = 32;

/// A program that was added.
#[derive(Debug)]
pub struct Program {
    /// Its name, which is also that of its lease.
    pub name: String,
    /// The process, as it is called in calls.
    pub namespec: String,
    /// The options have the daemon start it again when it ends.
    pub starts_again: bool,
    group: String,
}

impl Program {
    /// Adds a program of a name that nobody has.
    ///
    /// # Errors
    /// When the server does not answer, or refuses the program.
    pub async fn add(session: &Session, args: &RunArgs, signals: &Signals) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS {
            let name = format!("{}-{}", base_name(&args.command[0]), suffix()?);
            let program = Program {
                group: args.group.clone().unwrap_or_else(|| name.clone()),
                namespec: namespec(args.group.as_deref().unwrap_or(&name), &name),
                starts_again: args.options.iter().any(|(key, value)| {
                    key.eq_ignore_ascii_case("autorestart") && !value.eq_ignore_ascii_case("false")
                }),
                name,
            };
            match signals.limit(0, program.try_add(session, args)).await {
                None => return Err(program.in_doubt(args, signals)),
                Some(Ok(false)) => {}
                Some(added) => return added.map(|_| program),
            }
        }
        Err(Error::NotDone("no name is free: try again".to_owned()))
    }

    /// A signal came while the server was asked to add it.
    fn in_doubt(&self, args: &RunArgs, signals: &Signals) -> Error {
        let name = &self.namespec;
        let then = if args.keep {
            format!("remove it with `twiddler remove --stop {name}` where it was")
        } else {
            "where it was, the proxy removes it, because nobody holds its lease".to_owned()
        };
        Error::Interrupted {
            text: format!("the server has not said whether {name} was added; {then}"),
            status: signals.status(),
        }
    }

    /// Whether it was added; not where somebody has the name.
    async fn try_add(&self, session: &Session, args: &RunArgs) -> Result<bool, Error> {
        let options = Value::Struct(options(args, &self.name)?);
        let group = self.group.as_str();
        let add = call(
            "twiddler.addProcessToGroup",
            vec![group.into(), self.name.as_str().into(), options],
        );
        let calls = if self.has_own_group() {
            // In one request, which is carried out whatever becomes of this command meanwhile.
            vec![
                call("twiddler.addGroup", vec![group.into(), PRIORITY.into()]),
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
                Err(Error::of(fault, method, method))
            }
        }
    }

    /// Whether the group is there for this program alone.
    fn has_own_group(&self) -> bool {
        self.group == self.name
    }

    /// Removes it, with a group of its own.
    ///
    /// # Errors
    /// When the server does not answer, or the process still runs.
    pub async fn remove(&self, session: &Session) -> Result<(), Error> {
        let (group, name) = (self.group.as_str().into(), self.name.as_str().into());
        let removed = if self.has_own_group() {
            session
                .server
                .try_call("twiddler.removeGroup", &[group])
                .await?
        } else {
            let method = "twiddler.removeProcessFromGroup";
            session.server.try_call(method, &[group, name]).await?
        };
        match removed {
            Err(fault) if fault.code != BAD_NAME => Err(Error::Fault {
                fault,
                subject: self.namespec.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// The options, as XML-RPC wants them.
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
        if OWN.contains(&key.as_str()) {
            return Err(Error::Usage(format!(
                "run settles {key} itself: leave it out, or use add"
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

/// The last part of the command's path, as far as it may stand in a name.
fn base_name(command: &str) -> String {
    let base = Path::new(command).file_name().unwrap_or_default();
    let may_stand = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let name: String = base
        .to_string_lossy()
        .chars()
        .filter(may_stand)
        .take(LONGEST_NAME)
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

/// One call of a multicall.
fn call(method: &str, params: Vec<Value>) -> Value {
    Value::Struct(vec![
        ("methodName".to_owned(), method.into()),
        ("params".to_owned(), Value::Array(params)),
    ])
}

/// The fault among the results of a multicall.
fn fault(result: &Value) -> Option<Fault> {
    let code = i32::try_from(result.get("faultCode")?.as_int()?).ok()?;
    let text = result.get("faultString")?.as_str()?.to_owned();
    Some(Fault::received(code, text))
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
        assert_eq!(base_name(&"x".repeat(300)).len(), LONGEST_NAME);
        assert_ne!(suffix().unwrap(), suffix().unwrap());
    }
}
