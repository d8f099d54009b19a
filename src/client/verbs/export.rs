//! `export`: prints the added programs as sections for supervisord.conf.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::Session;
use super::programs::{self, ProgramInfo};
use crate::client::args::{ExportArgs, Format};
use crate::client::error::{Error, NOT_DONE};
use crate::daemon::ConfigInfo;
use crate::lease;
use crate::program;
use crate::xmlrpc::Value;

const ADDED: &str = "added";
/// supervisord's default of `priority`.
const DEFAULT_PRIORITY: i64 = 999;

/// Prints the sections; with `-o json` and `-o name` the programs.
///
/// # Errors
/// When the server does not answer, or has no such method.
pub async fn run(session: &Session, args: &ExportArgs) -> Result<u8, Error> {
    let (all, value) = programs::all(session).await?;
    let is_wanted = |info: &ProgramInfo| {
        info.origin == ADDED && (args.groups.is_empty() || args.groups.contains(&info.group))
    };
    let mut exported = Vec::new();
    for info in all.iter().filter(|info| is_wanted(info)) {
        let options = match programs::options(session, &info.group, &info.program).await {
            // Another client removed it after `all` had listed it.
            Err(Error::UnknownName(_)) => continue,
            options => options?,
        };
        // The proxy removes a program with a lease when its client ends.
        if options.iter().all(|(name, _)| name != lease::OPTION) {
            let text = |(name, value): (String, Value)| Some((name, value.as_str()?.to_owned()));
            exported.push(Exported {
                group: info.group.clone(),
                program: info.program.clone(),
                options: options.into_iter().filter_map(text).collect(),
            });
        }
    }
    match session.output.format {
        Format::Json => session.output.json(&only(value, &exported))?,
        Format::Name => {
            let names = exported.iter().map(Exported::namespec).collect::<Vec<_>>();
            session.output.names(names.iter().map(String::as_str))?;
        }
        Format::Table => {
            let configured = all.iter().filter(|info| info.origin != ADDED);
            let configured: Vec<&ProgramInfo> = configured.collect();
            let priorities = priorities(session).await?;
            let text = sections(&exported, &configured, &priorities);
            match text.trim_end() {
                "" if args.groups.is_empty() => say!("twiddler: nothing was added"),
                "" => {}
                text => session.output.line(text)?,
            }
        }
    }
    let mut status = 0;
    for group in &args.groups {
        if exported.iter().all(|program| program.group != *group) {
            say!("twiddler: nothing was added to a group {group}");
            status = NOT_DONE;
        }
    }
    Ok(status)
}

/// A program to export.
#[derive(Debug)]
struct Exported {
    group: String,
    program: String,
    options: BTreeMap<String, String>,
}

impl Exported {
    fn namespec(&self) -> String {
        crate::namespec::namespec(&self.group, &self.program)
    }
}

/// The server's structs for the exported programs.
fn only(value: Value, exported: &[Exported]) -> Value {
    let is_exported = |info: &Value| {
        exported.iter().any(|program| {
            let text = |member: &str| info.get(member).and_then(Value::as_str);
            text("group") == Some(&program.group) && text("program") == Some(&program.program)
        })
    };
    match value {
        Value::Array(infos) => Value::Array(infos.into_iter().filter(is_exported).collect()),
        other => other,
    }
}

/// The priority of each group. `getAllConfigInfo` has it in the entries of the group's processes.
async fn priorities(session: &Session) -> Result<BTreeMap<String, i64>, Error> {
    let configs = session
        .server
        .call("supervisor.getAllConfigInfo", &[], "")
        .await?;
    let configs = ConfigInfo::read_all(&configs).into_iter();
    Ok(configs
        .filter_map(|config| Some((config.group, config.group_priority?)))
        .collect())
}

/// The sections. A program whose name another program has gets the section name `GROUP-PROGRAM`.
fn sections(
    exported: &[Exported],
    configured: &[&ProgramInfo],
    priorities: &BTreeMap<String, i64>,
) -> String {
    let mut names: BTreeSet<String> = configured.iter().map(|info| info.program.clone()).collect();
    let mut groups: BTreeMap<&str, Vec<(String, &Exported)>> = BTreeMap::new();
    for program in exported {
        let short = program.program.clone();
        let long = format!("{}-{}", program.group, program.program);
        let name = if names.contains(&short) { long } else { short };
        names.insert(name.clone());
        groups
            .entry(&program.group)
            .or_default()
            .push((name, program));
    }
    let mut text = String::new();
    for (group, programs) in groups {
        let priority = priorities.get(group).copied().unwrap_or(DEFAULT_PRIORITY);
        text += &group_section(group, priority, &programs, configured);
        for (name, program) in programs {
            text += &program_section(&name, program);
        }
    }
    text
}

/// The section `[group:x]`. It is empty where supervisord makes the same group from the section of its
/// only program, and a comment where a configured group has the name.
fn group_section(
    group: &str,
    priority: i64,
    programs: &[(String, &Exported)],
    configured: &[&ProgramInfo],
) -> String {
    let names: Vec<&str> = programs.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(",");
    if configured.iter().any(|info| info.group == group) {
        return format!("; Add to programs of the group {group}: {names}\n\n");
    }
    if let [(name, program)] = programs
        && name == group
        && program.priority() == Some(priority)
    {
        return String::new();
    }
    let mut text = format!("[group:{group}]\nprograms={names}\n");
    if priority != DEFAULT_PRIORITY {
        let _infallible = writeln!(text, "priority={priority}");
    }
    text + "\n"
}

impl Exported {
    /// Its priority; `None` if that is no number. A group that supervisord makes for one program has the
    /// program's priority.
    fn priority(&self) -> Option<i64> {
        match self.options.get("priority") {
            None => Some(DEFAULT_PRIORITY),
            Some(text) => text.trim().parse().ok(),
        }
    }
}

fn program_section(name: &str, program: &Exported) -> String {
    let mut text = format!("[program:{name}]\n");
    let mut options = program.options.clone();
    if name != program.program {
        // The processes keep their names.
        options
            .entry("process_name".to_owned())
            .or_insert_with(|| "%(program_name)s".to_owned());
        let own = program.program.replace('%', "%%");
        for value in options.values_mut() {
            *value = value.replace("%(program_name)s", &own);
        }
    }
    let command = options.remove_entry("command");
    for (option, value) in command.into_iter().chain(options) {
        let _infallible = writeln!(text, "{option}={}", program::value_in_file(&value));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(group: &str, program: &str, options: &[(&str, &str)]) -> Exported {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Exported {
            group: group.to_owned(),
            program: program.to_owned(),
            options: options.iter().map(owned).collect(),
        }
    }

    fn configured(group: &str, program: &str) -> ProgramInfo {
        ProgramInfo {
            group: group.to_owned(),
            program: program.to_owned(),
            origin: "configured".to_owned(),
            kind: "program".to_owned(),
            numprocs: 1,
            processes: vec![program.to_owned()],
        }
    }

    #[test]
    fn sections_name_groups_programs_and_options() {
        let web = configured("web", "api");
        let exported = [
            exported(
                "jobs",
                "api",
                &[("command", "cat %(program_name)s ;x"), ("user", "www")],
            ),
            exported("jobs", "mail", &[("command", "cat")]),
            exported("lone", "lone", &[("command", "cat"), ("priority", "7")]),
            exported("web", "extra", &[("command", "a\nb")]),
        ];
        let priorities = [("jobs", 5), ("lone", 7)].map(|(name, number)| (name.to_owned(), number));
        let text = sections(&exported, &[&web], &priorities.into());
        assert_eq!(
            text,
            "[group:jobs]\nprograms=jobs-api,mail\npriority=5\n\n\
             [program:jobs-api]\ncommand=cat api %(here).0s;x\nprocess_name=api\nuser=www\n\n\
             [program:mail]\ncommand=cat\n\n\
             [program:lone]\ncommand=cat\npriority=7\n\n\
             ; Add to programs of the group web: extra\n\n\
             [program:extra]\ncommand=a\n b\n\n"
        );
    }
}
