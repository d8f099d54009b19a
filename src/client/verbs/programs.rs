//! `programs`, `set` and `scale`: lists programs, changes their options and their numbers of processes.

use super::Session;
use super::changes::report;
use crate::client::args::{Format, Number, ProgramsArgs, ScaleArgs, SetArgs};
use crate::client::error::Error;
use crate::client::names::nearest_of;
use crate::client::output::Waiting;
use crate::fault::BAD_NAME;
use crate::namespec::{namespec, split_namespec};
use crate::xmlrpc::Value;

/// An entry of `getAllProgramInfo`.
#[derive(Clone, Debug)]
pub struct ProgramInfo {
    /// Its group.
    pub group: String,
    /// Its name.
    pub program: String,
    /// `configured` or `added`.
    pub origin: String,
    /// `program`, `fcgi-program` or `eventlistener`.
    pub kind: String,
    /// How many processes it has.
    pub numprocs: i64,
    /// Their names.
    pub processes: Vec<String>,
}

impl ProgramInfo {
    fn read(value: &Value) -> Option<Self> {
        let text = |member: &str| Some(value.get(member)?.as_str()?.to_owned());
        let processes = value.get("processes").and_then(Value::as_array);
        let processes = processes.unwrap_or_default().iter();
        Some(ProgramInfo {
            group: text("group")?,
            program: text("program")?,
            origin: text("origin")?,
            kind: text("kind")?,
            numprocs: value.get("numprocs")?.as_int()?,
            processes: processes
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Its namespec: `name` for `name:name`.
    pub fn namespec(&self) -> String {
        namespec(&self.group, &self.program)
    }
}

/// All programs, parsed and as the server returned them.
///
/// # Errors
/// When the server does not answer, or has no such method.
pub async fn all(session: &Session) -> Result<(Vec<ProgramInfo>, Value), Error> {
    let method = "twiddler.getAllProgramInfo";
    let value = session.server.call(method, &[], "").await?;
    let programs = value.as_array().unwrap_or_default();
    let programs = programs.iter().filter_map(ProgramInfo::read).collect();
    Ok((programs, value))
}

/// The options of a program's definition.
///
/// # Errors
/// When the server does not answer, or there is no such program.
pub async fn options(
    session: &Session,
    group: &str,
    program: &str,
) -> Result<Vec<(String, Value)>, Error> {
    let params = [group.into(), program.into()];
    let method = "twiddler.getProgramOptions";
    match session.server.try_call(method, &params).await? {
        Ok(Value::Struct(options)) => Ok(options),
        Ok(_) => Ok(Vec::new()),
        Err(fault) if fault.code == BAD_NAME => Err(unknown(session, group, program).await?),
        Err(fault) => Err(Error::from_fault(fault, method, &namespec(group, program))),
    }
}

/// The error for a program that does not exist, with the nearest name.
async fn unknown(session: &Session, group: &str, program: &str) -> Result<Error, Error> {
    let name = namespec(group, program);
    let (programs, _) = all(session).await?;
    let nearest = nearest_of(&name, programs.iter().map(ProgramInfo::namespec));
    let tip = nearest.map_or(String::new(), |other| format!("; did you mean {other}?"));
    Ok(Error::UnknownName(format!("no such program: {name}{tip}")))
}

/// Splits an argument `GROUP:PROGRAM` or `NAME`.
fn parse(name: &str) -> Result<(&str, &str), Error> {
    match split_namespec(name) {
        (group, Some(program)) if !group.is_empty() => Ok((group, program)),
        _ => Err(Error::Usage(format!(
            "`{name}` names no program: write GROUP:PROGRAM"
        ))),
    }
}

/// `programs`.
///
/// # Errors
/// When the server does not answer, or has no such method.
pub async fn list(session: &Session, _: &ProgramsArgs) -> Result<u8, Error> {
    let (programs, value) = all(session).await?;
    match session.output.format {
        Format::Json => session.output.json(&value)?,
        Format::Name => {
            let names: Vec<String> = programs.iter().map(ProgramInfo::namespec).collect();
            session.output.names(names.iter().map(String::as_str))?;
        }
        Format::Table => session.output.programs(&programs)?,
    }
    Ok(0)
}

/// `set`: changes some options of an added program, and keeps the others.
///
/// # Errors
/// When the server does not answer, or refuses the options.
pub async fn set(session: &Session, args: &SetArgs) -> Result<u8, Error> {
    let (group, program) = parse(&args.name)?;
    let name = namespec(group, program);
    let mut options = options(session, group, program).await?;
    for (key, value) in &args.options {
        let key = key.to_lowercase();
        options.retain(|(known, _)| *known != key);
        if !value.is_empty() {
            options.push((key, value.as_str().into()));
        }
    }
    let _waiting = Waiting::on(&format!("{name} to restart"));
    let params = [group.into(), program.into(), Value::Struct(options)];
    session
        .server
        .call("twiddler.updateProgram", &params, &name)
        .await?;
    report(session, "changed", &name)
}

/// `scale`.
///
/// # Errors
/// When the server does not answer, or refuses the number of a program. The programs before it are scaled
/// and printed.
pub async fn scale(session: &Session, args: &ScaleArgs) -> Result<u8, Error> {
    let (mut started, mut stopped) = (Vec::new(), Vec::new());
    let mut outcome = Ok(0);
    for (name, number) in &args.programs {
        match scale_one(session, name, number).await {
            Ok(result) => {
                started.extend(print(session, &result, "started")?);
                stopped.extend(print(session, &result, "stopped")?);
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    if started.is_empty() && stopped.is_empty() && outcome.is_err() {
        return outcome;
    }
    let counts = format!("{} started, {} stopped", started.len(), stopped.len());
    match session.output.format {
        Format::Json => session.output.json(&Value::Struct(vec![
            ("started".to_owned(), Value::Array(started)),
            ("stopped".to_owned(), Value::Array(stopped)),
        ]))?,
        Format::Table => say!("{counts}"),
        Format::Name => {}
    }
    outcome
}

/// Scales one program and returns the result of `scaleProgram`.
async fn scale_one(session: &Session, name: &str, number: &Number) -> Result<Value, Error> {
    let (group, program) = parse(name)?;
    let name = namespec(group, program);
    let count = match number {
        Number::Absolute(count) => *count,
        Number::Relative(more) => (numprocs(session, group, program).await? + more).max(0),
    };
    let _waiting = Waiting::on(&format!("{name} to have {count} processes"));
    let params = [group.into(), program.into(), count.into()];
    let method = "twiddler.scaleProgram";
    match session.server.try_call(method, &params).await? {
        Ok(result) => Ok(result),
        Err(fault) if fault.code == BAD_NAME => Err(unknown(session, group, program).await?),
        Err(fault) => Err(Error::from_fault(fault, method, &name)),
    }
}

/// How many processes a program has now.
async fn numprocs(session: &Session, group: &str, program: &str) -> Result<i64, Error> {
    let (programs, _) = all(session).await?;
    let info = programs
        .iter()
        .find(|info| info.group == group && info.program == program);
    match info {
        Some(info) => Ok(info.numprocs),
        None => Err(unknown(session, group, program).await?),
    }
}

/// Prints the processes in the member `outcome` of a result of `scaleProgram`, and returns their names.
fn print(session: &Session, result: &Value, outcome: &str) -> Result<Vec<Value>, Error> {
    let names = result
        .get(outcome)
        .and_then(Value::as_array)
        .unwrap_or_default();
    for name in names.iter().filter_map(Value::as_str) {
        let (group, process) = split_namespec(name);
        let name = namespec(group, process.unwrap_or_default());
        match session.output.format {
            Format::Table => session.output.line(&format!("{name}: {outcome}"))?,
            Format::Name => session.output.line(&name)?,
            Format::Json => {}
        }
    }
    Ok(names.to_vec())
}
