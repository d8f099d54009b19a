//! What outlives the daemon: one file that it reads when it starts, and that a person can read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::plan::{Answers, Found, Question};
use super::registry::{Event, Member, Registry};
use super::{Refusal, Twiddler, ask, plan};
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::fault::SHUTDOWN_STATE;
use crate::include_dir::Prepared;
use crate::program::{self, Scope};
use crate::xmlrpc::Value;

const HEADER: &str = "\
; Groups and programs that were added while supervisord ran, written by twiddler --persist.
; It is written anew with every change: edits are lost. Remove what is not wanted through
; twiddler.removeProcessFromGroup and twiddler.removeGroup.
";

impl Twiddler {
    /// Before a change: makes sure that what is to be kept after it can be written.
    pub(super) fn prepare_kept(&self, events: &[Event]) -> Result<Option<Kept>, Refusal> {
        if !self.persists {
            return Ok(None);
        }
        let configured = self.configured_groups();
        let text = self.with_registry(|registry| {
            let mut after = registry.clone();
            events.iter().for_each(|event| after.apply(event.clone()));
            render(&after, &configured)
        });
        let prepared = self
            .include
            .prepare(&text)
            .map_err(|error| self.cannot_write(&error))?;
        Ok(Some(Kept { text, prepared }))
    }

    /// After a change: keeps what it came to.
    pub(super) fn keep(&self, kept: Option<Kept>) {
        if !self.persists {
            return;
        }
        let configured = self.configured_groups();
        let text = self.with_registry(|registry| render(registry, &configured));
        if self.include.kept().as_ref() == Some(&text) {
            return;
        }
        let prepared = match kept {
            Some(kept) if kept.text == text => Ok(kept.prepared),
            _ => self.include.prepare(&text),
        };
        if let Err(error) = prepared.and_then(|prepared| self.include.keep(prepared)) {
            tracing::error!(%error, dir = %self.include.path().display(), "what was changed will not outlive supervisord");
        }
    }

    /// The daemon started again and read what was kept: what it has of that is known from now on,
    /// what it lacks is added again, and configured processes that were removed are stopped again.
    pub(super) async fn take_up_new_life(&self) -> Result<(), Refusal> {
        let before = self.with_registry(Registry::clone);
        let answers = ask(self, questions(&before)).await?;
        let is_there = |member: &&Member| answers.found(&member.real, &member.process).is_some();
        let (there, missing): (Vec<&Member>, Vec<&Member>) = before.members().partition(is_there);
        let group = |name: &str| {
            Some(Event::Group {
                name: name.to_owned(),
                priority: before.added_group(name)?,
            })
        };
        let (groups, lost): (Vec<&str>, Vec<&str>) = before
            .added_groups()
            .partition(|name| answers.is_active(name));
        let hidden: Vec<&Found> = before
            .hidden()
            .filter_map(|(group, process, _)| answers.found(group, process))
            .collect();
        let mut events: Vec<Event> = groups.iter().filter_map(|name| group(name)).collect();
        // Before those that joined: one of them may bear the name of a hidden one.
        events.extend(hidden.iter().map(|found| Event::Hidden {
            group: found.real.clone(),
            process: found.process.clone(),
            start: found.start,
        }));
        events.extend(
            there
                .into_iter()
                .map(|member| Event::Joined(Box::new(member.clone()))),
        );
        self.stop_again(&hidden).await?;
        self.journal_mut().clear();
        self.note(events);
        if self.persists {
            let again = lost.iter().filter_map(|name| group(name)).collect();
            self.add_again(again, missing).await?;
            self.keep(None);
        }
        self.mark_if_possible().await
    }

    /// Adds what the daemon did not read when it started: a change was kept too late for it, or was
    /// made while nothing was kept.
    async fn add_again(
        &self,
        mut events: Vec<Event>,
        missing: Vec<&Member>,
    ) -> Result<(), Refusal> {
        let configured = self.configured_groups();
        let mut text = String::new();
        let mut names = Vec::new();
        for event in &events {
            if let Event::Group { name, priority } = event {
                text += &program::render_group(name, *priority, &[]);
                names.push(name.clone());
            }
        }
        for member in missing {
            let real = match member.is_placed() {
                true => member.real.clone(),
                false => self.take_number(&member.group),
            };
            let Some(program) = member_program(member, &real) else {
                continue;
            };
            let priority =
                self.with_registry(|registry| plan::priority(registry, &configured, &member.group));
            text += &program::render_group(&real, priority, &[&real]);
            text += &program;
            names.push(real.clone());
            events.push(Event::Joined(Box::new(Member {
                real,
                ..member.clone()
            })));
        }
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        tracing::warn!(groups = ?names, "adding again what supervisord did not read when it started");
        match self.add_read(&text, &names).await {
            Ok(()) => self.note(events),
            Err(Refusal::Fault(told)) if told.code != SHUTDOWN_STATE => {
                tracing::error!(
                    fault = told.text,
                    "it cannot be added again, and is forgotten"
                );
            }
            Err(refusal) => return Err(refusal),
        }
        Ok(())
    }

    async fn stop_again(&self, hidden: &[&Found]) -> Result<(), Refusal> {
        let calls: Vec<(&str, Vec<Value>)> = hidden
            .iter()
            .filter(|found| !found.is_stopped())
            .map(|found| {
                let name = format!("{}:{}", found.real, found.process);
                (
                    "supervisor.stopProcess",
                    vec![name.into(), Value::Bool(false)],
                )
            })
            .collect();
        self.multicall(&calls).await?;
        Ok(())
    }

    /// Marks this life of the daemon. While the user's files are not valid it cannot be marked, and
    /// is taken for a new one the next time.
    pub(super) async fn mark_if_possible(&self) -> Result<(), Refusal> {
        match self.mark().await {
            Err(Refusal::Fault(told)) if told.code != SHUTDOWN_STATE => {
                tracing::warn!(
                    fault = told.text,
                    "supervisord's present life cannot be marked yet"
                );
                Ok(())
            }
            marked => marked,
        }
    }

    /// Marks this life of the daemon.
    pub(super) async fn mark(&self) -> Result<(), Refusal> {
        let marker = self.marker_name();
        self.add_read(
            &program::render_group(&marker, plan::DEFAULT_PRIORITY, &[]),
            &[&marker],
        )
        .await?;
        self.note(vec![Event::Marker(marker)]);
        Ok(())
    }
}

/// What an earlier proxy kept, for the case that its journal is lost.
#[derive(Default)]
pub(super) struct KeptBefore {
    /// Groups that were added, with their priorities.
    pub(super) groups: BTreeMap<String, i64>,
    /// The bodies of programs' sections, by section name.
    sections: BTreeMap<String, String>,
}

impl KeptBefore {
    /// Reads what [`render`] wrote.
    pub(super) fn read(text: &str) -> Self {
        let mut kept = KeptBefore::default();
        let mut body: Option<&mut String> = None;
        for line in text.lines() {
            if let Some(section) = header(line, "program") {
                body = Some(kept.sections.entry(section.to_owned()).or_default());
            } else if line.starts_with('[') {
                body = None;
                if let Some(group) = header(line, "group")
                    && plan::number_of_real_name(group).is_none()
                {
                    kept.groups.insert(group.to_owned(), plan::DEFAULT_PRIORITY);
                }
            } else if let Some(body) = &mut body
                && !line.is_empty()
                && !line.starts_with(';')
            {
                body.push_str(line);
                body.push('\n');
            }
        }
        kept.read_priorities(text);
        kept
    }

    fn read_priorities(&mut self, text: &str) {
        let mut group = None;
        for line in text.lines() {
            if line.starts_with('[') {
                group = header(line, "group");
            } else if let Some(priority) = line.strip_prefix("priority=")
                && let Some(place) = group.and_then(|group| self.groups.get_mut(group))
            {
                *place = priority.parse().unwrap_or(*place);
            }
        }
    }

    /// The body of `[program:SECTION]`.
    pub(super) fn section(&self, section: &str) -> Option<String> {
        self.sections.get(section).cloned()
    }

    /// Groups that the daemon has, with the processes that they hold themselves.
    pub(super) fn strays(&self, registry: &Registry, answers: &Answers) -> Vec<Event> {
        let mut strays = Vec::new();
        for (name, priority) in self
            .groups
            .iter()
            .filter(|(name, _)| answers.is_active(name))
        {
            strays.push(Event::Group {
                name: name.clone(),
                priority: *priority,
            });
            let held: BTreeSet<&String> = answers
                .processes
                .values()
                .filter(|found| found.real == *name)
                .filter(|found| registry.hidden_start(name, &found.process).is_none())
                .map(|found| &found.process)
                .collect();
            // One process is in one section; several in a section each, in the same order, or all
            // in one that cannot be taken apart without its program.
            let sections: Vec<Option<String>> = (0..held.len())
                .map(|number| self.section(&own_section(name, number)))
                .collect();
            for (process, section) in held.into_iter().zip(sections) {
                strays.push(Event::Joined(Box::new(Member {
                    group: name.clone(),
                    process: process.clone(),
                    real: name.clone(),
                    index: 0,
                    program: None,
                    section,
                })));
            }
        }
        strays
    }
}

/// The name in `[KIND:NAME]`.
fn header<'l>(line: &'l str, kind: &str) -> Option<&'l str> {
    line.strip_prefix('[')?
        .strip_prefix(kind)?
        .strip_prefix(':')?
        .strip_suffix(']')
}

/// What is to be kept after a change.
pub(super) struct Kept {
    text: String,
    prepared: Prepared,
}

fn questions(registry: &Registry) -> Vec<Question> {
    let groups = registry
        .added_groups()
        .map(|name| Question::Group(name.to_owned()));
    let process = |real: &str, process: &str| Question::Process {
        real: real.to_owned(),
        process: process.to_owned(),
    };
    let members = registry
        .members()
        .map(|member| process(&member.real, &member.process));
    let hidden = registry
        .hidden()
        .map(|(group, name, _)| process(group, name));
    groups.chain(members).chain(hidden).collect()
}

/// The file: every group that was added, and every member in the real group where it lives.
fn render(registry: &Registry, configured: &[ConfiguredGroup]) -> String {
    let mut text = HEADER.to_owned();
    for name in registry.added_groups() {
        let own: Vec<&Member> = registry
            .members_of(name)
            .filter(|member| !member.is_placed())
            .collect();
        let programs: Vec<(String, String)> = own_programs(name, &own);
        let sections: Vec<&str> = programs
            .iter()
            .map(|(section, _)| section.as_str())
            .collect();
        text.push('\n');
        text += &program::render_group(name, plan::priority(registry, configured, name), &sections);
        text.extend(programs.iter().map(|(_, program)| program.as_str()));
    }
    for member in registry.members().filter(|member| member.is_placed()) {
        let Some(program) = member_program(member, &member.real) else {
            continue;
        };
        let priority = plan::priority(registry, configured, &member.group);
        // The comment is for people; the names cannot hold a line break.
        let _ = write!(text, "\n; {}:{}\n", member.group, member.process);
        text += &program::render_group(&member.real, priority, &[&member.real]);
        text += &program;
    }
    text
}

/// The sections of the processes that a group holds itself, which are all of one program. While none
/// has left they are one section, as they were added: the daemon compares.
fn own_programs(group: &str, own: &[&Member]) -> Vec<(String, String)> {
    let whole = own.first().and_then(|member| member.program.as_ref());
    if let Some(program) = whole.filter(|program| program.numprocs() as usize == own.len()) {
        let section = own_section(group, 0);
        let text = program.render(&section, Scope::All);
        return vec![(section, text)];
    }
    let numbered = own.iter().enumerate().filter_map(|(number, member)| {
        let section = own_section(group, number);
        let text = member_program(member, &section)?;
        Some((section, text))
    });
    numbered.collect()
}

fn own_section(group: &str, number: usize) -> String {
    format!("twiddler~{group}~{number}")
}

/// The section of one process; none where it was only found in the daemon, which would refuse a
/// group without it.
fn member_program(member: &Member, section: &str) -> Option<String> {
    let rendered = member
        .program
        .as_ref()
        .map(|program| program.render(section, Scope::One(member.index)));
    rendered.or_else(|| Some(format!("[program:{section}]\n{}", member.section.as_ref()?)))
}
