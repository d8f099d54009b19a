//! `diff` and `update`: shows where supervisord's files differ from the configuration in force, and puts
//! the files in force.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Effects, Style};

use super::Session;
use crate::client::args::{DiffArgs, Format, UpdateArgs};
use crate::client::error::{Error, NOT_DONE};
use crate::client::output::Waiting;
use crate::daemon::ProcessInfo;
use crate::namespec::{namespec, split_namespec};
use crate::xmlrpc::Value;

/// The change of a program whose number of processes `scale` has set.
const SCALED: &str = "scaled";
/// The change of a group whose configuration in force is not known.
const UNKNOWN: &str = "unknown";
const DIFF: &str = "twiddler.diffConfig";
const UPDATE: &str = "twiddler.updateConfig";

/// `diff`. Returns 1 where something differs beside the number of processes of scaled programs, else 0.
///
/// # Errors
/// When the server does not answer, or cannot compare. The status of the error is not 1.
pub async fn diff(session: &Session, args: &DiffArgs) -> Result<u8, Error> {
    let result = differences(session, &args.groups).await;
    let (value, differences) = result.map_err(|error| match error.status() {
        NOT_DONE => Error::ComparisonFailed(Box::new(error)),
        _ => error,
    })?;
    match session.output.format {
        Format::Json => session.output.json(&value)?,
        Format::Name => session.output.names(
            differences
                .iter()
                .map(|difference| difference.name.as_str()),
        )?,
        Format::Table => print(session, &differences)?,
    }
    let differs = differences
        .iter()
        .any(|difference| difference.change != SCALED);
    Ok(u8::from(differs))
}

fn print(session: &Session, differences: &[Difference]) -> io::Result<()> {
    for difference in differences {
        for line in difference.lines() {
            session.output.line(&line.painted(session.output.colored))?;
        }
        session.output.line("")?;
    }
    match differences {
        [] => Ok(()),
        _ => session.output.line(&Plan::of(differences).sentence()),
    }
}

/// `update`. With `--dry-run` it prints the same output and changes nothing.
///
/// # Errors
/// When the server does not answer, or refuses the files.
pub async fn update(session: &Session, args: &UpdateArgs) -> Result<u8, Error> {
    if args.dry_run {
        return dry_run(session, args).await;
    }
    // Only a terminal shows which processes the verb waits for, so only a terminal is worth the call.
    let plan = if io::stderr().is_terminal() {
        Plan::of(&differences(session, &args.groups).await?.1)
    } else {
        Plan::default()
    };
    let (before, _) = session.table().await?;
    let waiting = Waiting::on(&plan.waiting_text());
    let result = session
        .server
        .call(UPDATE, &[names(&args.groups)], "")
        .await?;
    drop(waiting);
    match session.output.format {
        Format::Json => session.output.json(&result)?,
        _ => Plan::from_result(&result).print(session, &before, &args.groups)?,
    }
    let mut status = 0;
    for (member, name) in [("skipped", "group"), ("failed", "name")] {
        let entries = result.get(member).and_then(Value::as_array);
        for entry in entries.unwrap_or_default() {
            let (name, reason) = (text(entry, name), text(entry, "reason"));
            say!("{}: ERROR ({member}: {reason})", short(&name));
            status = NOT_DONE;
        }
    }
    Ok(status)
}

async fn dry_run(session: &Session, args: &UpdateArgs) -> Result<u8, Error> {
    let (value, differences) = differences(session, &args.groups).await?;
    match session.output.format {
        Format::Json => session.output.json(&value)?,
        _ => {
            let (before, _) = session.table().await?;
            Plan::of(&differences).print(session, &before, &args.groups)?;
        }
    }
    let mut status = 0;
    for difference in differences
        .iter()
        .filter(|difference| difference.change == UNKNOWN)
    {
        say!(
            "{}: ERROR (skipped: {})",
            difference.group,
            difference.reason
        );
        status = NOT_DONE;
    }
    say!("twiddler: a dry run: nothing was changed");
    Ok(status)
}

/// The result of `diffConfig`, as the server returned it and parsed.
async fn differences(
    session: &Session,
    groups: &[String],
) -> Result<(Value, Vec<Difference>), Error> {
    let value = session.server.call(DIFF, &[names(groups)], "").await?;
    let structs = value.as_array().unwrap_or_default();
    let differences = structs.iter().map(Difference::read).collect();
    Ok((value, differences))
}

fn names(groups: &[String]) -> Value {
    let names = groups.iter().map(|group| group_name(group).into());
    Value::Array(names.collect())
}

/// The name of a group in an argument: `web` for `web`, `web:` and `web:*`.
fn group_name(group: &str) -> &str {
    group.trim_end_matches('*').trim_end_matches(':')
}

/// A program or a group that differs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Difference {
    group: String,
    /// The program's namespec, or `group NAME`.
    name: String,
    change: String,
    /// Name, old and new value of each option.
    options: Vec<(String, String, String)>,
    plan: Plan,
    /// Whether the update replaces the whole group.
    replaces_group: bool,
    reason: String,
}

impl Difference {
    fn read(value: &Value) -> Self {
        let group = text(value, "group");
        let name = match text(value, "program").as_str() {
            "" => format!("group {group}"),
            program => namespec(&group, program),
        };
        let options = value.get("options").and_then(Value::as_array);
        let option = |option: &Value| {
            (
                text(option, "name"),
                text(option, "old"),
                text(option, "new"),
            )
        };
        Difference {
            name,
            change: text(value, "change"),
            options: options.unwrap_or_default().iter().map(option).collect(),
            plan: Plan::read(value, ["stop", "restart", "start"]),
            replaces_group: value.get("whole").and_then(Value::as_bool) == Some(true),
            reason: text(value, "reason"),
            group,
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![Line::Title(format!("{} {}", self.change, self.name))];
        if !self.reason.is_empty() {
            lines.push(Line::Note(self.reason.clone()));
        } else if self.replaces_group {
            let group = &self.group;
            lines.push(Line::Note(format!("group {group} is replaced as a whole")));
        }
        for (name, old, new) in &self.options {
            if old.is_empty() && new.is_empty() {
                lines.push(Line::Hidden(name.clone()));
            }
            if !old.is_empty() {
                lines.push(Line::Old(format!("{name} = {old}")));
            }
            if !new.is_empty() {
                lines.push(Line::New(format!("{name} = {new}")));
            }
        }
        lines
    }
}

/// One line of the output of `diff`. A value of several lines continues indented.
#[derive(Clone, Debug, PartialEq)]
enum Line {
    Title(String),
    Note(String),
    Old(String),
    New(String),
    /// A variable of the environment: its values may be secret.
    Hidden(String),
}

impl Line {
    fn text(&self) -> String {
        let (sign, text) = match self {
            Line::Title(text) => ("", text.clone()),
            Line::Note(text) => ("  ", text.clone()),
            Line::Old(text) => ("- ", text.clone()),
            Line::New(text) => ("+ ", text.clone()),
            Line::Hidden(name) => ("~ ", format!("{name} differs; its values are not shown")),
        };
        format!("{sign}{}", text.replace('\n', &format!("\n{sign}    ")))
    }

    fn painted(&self, colored: bool) -> String {
        let style = match self {
            _ if !colored => Style::new(),
            Line::Title(_) => Style::new().effects(Effects::BOLD),
            Line::Note(_) => Style::new().effects(Effects::DIMMED),
            Line::Old(_) => Style::new().fg_color(Some(AnsiColor::Red.into())),
            Line::New(_) => Style::new().fg_color(Some(AnsiColor::Green.into())),
            Line::Hidden(_) => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
        };
        format!("{style}{}{style:#}", self.text())
    }
}

/// The namespecs of the processes that an update stops, restarts and starts.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    stop: BTreeSet<String>,
    restart: BTreeSet<String>,
    start: BTreeSet<String>,
}

impl Plan {
    /// Reads the three `members` of a struct, in the order stop, restart, start.
    fn read(value: &Value, members: [&str; 3]) -> Self {
        let [stop, restart, start] = members.map(|member| {
            let names = value
                .get(member)
                .and_then(Value::as_array)
                .unwrap_or_default();
            names.iter().filter_map(Value::as_str).map(short).collect()
        });
        Plan {
            stop,
            restart,
            start,
        }
    }

    /// The processes in a result of `updateConfig`.
    fn from_result(result: &Value) -> Self {
        Plan::read(result, ["stopped", "restarted", "started"])
    }

    /// The processes that `updateConfig` would stop, restart and start.
    fn of(differences: &[Difference]) -> Self {
        let mut all = Plan::default();
        for difference in differences {
            all.stop.extend(difference.plan.stop.iter().cloned());
            all.restart.extend(difference.plan.restart.iter().cloned());
            all.start.extend(difference.plan.start.iter().cloned());
        }
        all
    }

    fn processes(&self) -> impl Iterator<Item = &str> {
        let all = self.stop.iter().chain(&self.restart).chain(&self.start);
        all.map(String::as_str)
    }

    fn lines(&self) -> Vec<String> {
        let line = |outcome: &'static str| move |name: &String| format!("{name}: {outcome}");
        let stopped = self.stop.iter().map(line("stopped"));
        let restarted = self.restart.iter().map(line("restarted"));
        let started = self.start.iter().map(line("started"));
        stopped.chain(restarted).chain(started).collect()
    }

    /// Prints names, or lines and a summary. `before` has the processes before the update: the summary
    /// counts the untouched ones among them, with and without `--dry-run`.
    fn print(
        &self,
        session: &Session,
        before: &[ProcessInfo],
        groups: &[String],
    ) -> io::Result<()> {
        if session.output.format == Format::Name {
            return session.output.names(self.processes());
        }
        for line in self.lines() {
            session.output.line(&line)?;
        }
        session.output.line(&format!(
            "{} restarted, {} started, {} stopped, {} untouched",
            self.restart.len(),
            self.start.len(),
            self.stop.len(),
            self.untouched(before, groups)
        ))
    }

    /// How many processes of `groups`, or of all groups, the update does not touch.
    fn untouched(&self, before: &[ProcessInfo], groups: &[String]) -> usize {
        let touched: BTreeSet<&str> = self.processes().collect();
        let groups: BTreeSet<&str> = groups.iter().map(|group| group_name(group)).collect();
        before
            .iter()
            .filter(|info| groups.is_empty() || groups.contains(info.group.as_str()))
            .filter(|info| !touched.contains(namespec(&info.group, &info.name).as_str()))
            .count()
    }

    /// The last line of `diff`.
    fn sentence(&self) -> String {
        let parts: Vec<String> = [
            ("stop", &self.stop),
            ("restart", &self.restart),
            ("start", &self.start),
        ]
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(verb, names)| format!("{verb} {}", joined(names)))
        .collect();
        match parts.as_slice() {
            [] => "update would stop, restart and start nothing".to_owned(),
            parts => format!("update would {}", parts.join("; ")),
        }
    }

    /// The text of the spinner.
    fn waiting_text(&self) -> String {
        let stopping: BTreeSet<String> = self.stop.union(&self.restart).cloned().collect();
        if stopping.is_empty() {
            "supervisord to read its files".to_owned()
        } else {
            format!("{} to stop", joined(&stopping))
        }
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

/// The namespec of a name: `name` for `name:name`.
fn short(name: &str) -> String {
    match split_namespec(name) {
        (group, Some(process)) => namespec(group, process),
        (group, None) => group.to_owned(),
    }
}

fn text(value: &Value, member: &str) -> String {
    value
        .get(member)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(members: &[(&str, Value)]) -> Value {
        let owned = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
        Value::Struct(members.iter().map(owned).collect())
    }

    fn names(names: &[&str]) -> Value {
        Value::Array(names.iter().map(|name| Value::from(*name)).collect())
    }

    fn changed_program() -> Difference {
        let option = |name: &str, old: &str, new: &str| {
            entry(&[
                ("name", name.into()),
                ("old", old.into()),
                ("new", new.into()),
            ])
        };
        Difference::read(&entry(&[
            ("group", "web".into()),
            ("program", "api".into()),
            ("change", "changed".into()),
            (
                "options",
                Value::Array(vec![
                    option("command", "api -p 80", "api -p 81"),
                    option("environment.TOKEN", "", ""),
                    option("user", "", "www"),
                    option("umask", "022", ""),
                    option("exitcodes", "", "0,\n2"),
                ]),
            ),
            ("start", names(&[])),
            ("restart", names(&["web:api"])),
            ("stop", names(&[])),
            ("whole", false.into()),
            ("reason", "".into()),
        ]))
    }

    #[test]
    fn a_program_that_differs_is_a_block() {
        let text: Vec<String> = changed_program().lines().iter().map(Line::text).collect();
        let expected = [
            "changed web:api",
            "- command = api -p 80",
            "+ command = api -p 81",
            "~ environment.TOKEN differs; its values are not shown",
            "+ user = www",
            "- umask = 022",
            "+ exitcodes = 0,\n+     2",
        ];
        assert_eq!(text, expected);
        let bold = Line::Title("x".to_owned()).painted(true);
        assert_eq!(bold, "\u{1b}[1mx\u{1b}[0m");
    }

    #[test]
    fn a_replaced_group_has_a_note() {
        let group = Difference {
            group: "fast".to_owned(),
            name: "group fast".to_owned(),
            change: "changed".to_owned(),
            replaces_group: true,
            ..Difference::default()
        };
        let text: Vec<String> = group.lines().iter().map(Line::text).collect();
        assert_eq!(
            text,
            ["changed group fast", "  group fast is replaced as a whole"]
        );
    }

    #[test]
    fn a_plan_and_its_result_are_printed_alike() {
        let mut other = changed_program();
        other.plan = Plan::read(
            &entry(&[
                ("start", names(&["new:new"])),
                ("restart", names(&["web:api"])),
                ("stop", names(&["web:old", "a:b"])),
            ]),
            ["stop", "restart", "start"],
        );
        let plan = Plan::of(&[changed_program(), other]);
        let result = Plan::from_result(&entry(&[
            ("stopped", names(&["a:b", "web:old"])),
            ("restarted", names(&["web:api"])),
            ("started", names(&["new:new"])),
        ]));
        assert_eq!(plan, result);
        assert_eq!(
            plan.lines(),
            [
                "a:b: stopped",
                "web:old: stopped",
                "web:api: restarted",
                "new: started"
            ]
        );
        assert_eq!(
            plan.sentence(),
            "update would stop a:b, web:old; restart web:api; start new"
        );
        assert_eq!(
            Plan::default().sentence(),
            "update would stop, restart and start nothing"
        );
    }
}
