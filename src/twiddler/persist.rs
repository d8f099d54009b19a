//! What outlives the daemon: one file that it reads when it starts, and that a person can read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::change::{blames, not_read};
use super::plan::{Answers, Question};
use super::registry::{Event, Member, Registry};
use super::script::ADD;
use super::settle::left;
use super::{Refusal, Twiddler, ask, plan};
use crate::daemon::Reloaded;
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::fault::{CANT_REREAD, SHUTDOWN_STATE};
use crate::include_dir::Prepared;
use crate::program::{self, Scope};
use crate::seam;
use crate::xmlrpc::Value;

const HEADER: &str = "\
; Groups and programs that were added while supervisord ran, written by twiddler --persist.
; It is written anew with every change: edits are lost. Remove what is not wanted through
; twiddler.removeProcessFromGroup and twiddler.removeGroup.
";

impl Twiddler {
    /// Before a change: makes sure that what is to be kept after it can be written. What is to go is
    /// kept no longer from here on: a daemon that starts again once it has made the change must not
    /// bring it back. What does not go after all is kept again afterwards.
    pub(super) fn prepare_kept(&self, events: &[Event]) -> Result<Option<Kept>, Refusal> {
        if !self.persists {
            return Ok(None);
        }
        let configured = self.configured_groups();
        let (without, after) = self.with_registry(|registry| {
            let mut registry = registry.clone();
            let (going, coming): (Vec<&Event>, Vec<&Event>) =
                events.iter().partition(|event| event.takes_away());
            going
                .into_iter()
                .for_each(|event| registry.apply(event.clone()));
            let without = render(&registry, &configured);
            coming
                .into_iter()
                .for_each(|event| registry.apply(event.clone()));
            (without, render(&registry, &configured))
        });
        let prepared = || {
            self.keep_text(&without, None)?;
            seam::reach("kept without");
            if after == without {
                return Ok(None);
            }
            let prepared = self.include.prepare(&after)?;
            let text = after;
            Ok(Some(Kept { text, prepared }))
        };
        prepared().map_err(|error| self.cannot_write(&error))
    }

    /// After a change: keeps what it came to.
    pub(super) fn keep(&self, kept: Option<Kept>) {
        if !self.persists {
            return;
        }
        let configured = self.configured_groups();
        let text = self.with_registry(|registry| render(registry, &configured));
        if let Err(error) = self.keep_text(&text, kept) {
            tracing::error!(%error, dir = %self.include.path().display(), "what was changed will not outlive supervisord");
        }
    }

    /// Keeps `text`, which may be what was prepared.
    fn keep_text(&self, text: &str, kept: Option<Kept>) -> std::io::Result<()> {
        if self.include.kept().as_deref() == Some(text) {
            return Ok(());
        }
        let prepared = match kept {
            Some(kept) if kept.text == text => kept.prepared,
            _ => self.include.prepare(text)?,
        };
        self.include.keep(prepared)
    }

    /// The daemon started again and read what was kept. What it has is made to be what was answered,
    /// and no more and no less than that: it may have read a file that a change had not reached yet,
    /// or that somebody has put there. All of it can be done twice, and is when it is cut short.
    pub(super) async fn take_up_new_life(&self) -> Result<(), Refusal> {
        let before = self.with_registry(Registry::clone);
        let answers = ask(self, questions(&before)).await?;
        let mut now = self.in_new_life(&before, &answers);
        // Configured processes that were removed: the file has started them again.
        let hidden = now.hidden();
        self.stop(hidden.filter_map(|(group, process, _)| answers.found(group, process)))
            .await?;
        let settled = match self.persists {
            true => self.put_right(&mut now).await,
            false => Ok(()),
        };
        if let Err(refusal) = &settled
            && !is_about_files(refusal)
        {
            return settled;
        }
        self.renew(now.snapshot());
        if self.persists {
            self.open_ends().clear();
        }
        match settled {
            Ok(()) => self.mark_if_possible().await,
            Err(refusal) => {
                tracing::error!(%refusal, "supervisord lacks what it did not read when it started: it is added again before the next change");
                Ok(())
            }
        }
    }

    /// Puts right what could not be when the daemon's present life was taken up. Until then that is
    /// not marked.
    pub(super) async fn catch_up(&self) -> Result<(), Refusal> {
        let is_behind = |known: &Registry| known.marker().is_none() && !known.is_empty();
        if !self.persists || !self.with_registry(is_behind) {
            return Ok(());
        }
        let _settling = self.settling.lock().await;
        let mut now = self.with_registry(Registry::clone);
        self.put_right(&mut now).await?;
        self.mark().await
    }

    /// What is known of a daemon that started again, according to its answers.
    fn in_new_life(&self, before: &Registry, answers: &Answers) -> Registry {
        let mut events = vec![Event::Next(before.next())];
        for name in before.added_groups() {
            if (self.persists || answers.is_active(name))
                && let Some(priority) = before.added_group(name)
            {
                let name = name.to_owned();
                events.push(Event::Group { name, priority });
            }
        }
        // Before those that joined: one of them may bear the name of a hidden one.
        let hidden = before
            .hidden()
            .filter(|(group, _, _)| !self.persists || before.added_group(group).is_none())
            .filter_map(|(group, process, _)| answers.found(group, process));
        events.extend(hidden.map(|found| Event::Hidden {
            group: found.real.clone(),
            process: found.process.clone(),
            start: found.start,
        }));
        let members = before
            .members()
            .filter_map(|member| self.member_in_new_life(before, member, answers));
        events.extend(members.map(|member| Event::Joined(Box::new(member))));
        let mut now = Registry::default();
        events.into_iter().for_each(|event| now.apply(event));
        now
    }

    /// The member as it is to be, if it can be.
    fn member_in_new_life(
        &self,
        before: &Registry,
        member: &Member,
        answers: &Answers,
    ) -> Option<Member> {
        let there = answers.found(&member.real, &member.process).is_some();
        if there {
            return Some(member.clone());
        }
        let can_be_made = member.program.is_some() || member.section.is_some();
        if !self.persists || !can_be_made {
            return None;
        }
        let mut member = member.clone();
        if !member.is_placed() && before.added_group(&member.group).is_none() {
            // A group of the user's is as his file says.
            member.real = self.take_number(&member.group);
        }
        Some(member)
    }

    /// Makes the daemon have of ours what `now` says, and keeps that. A member that the daemon does
    /// not take any more is taken out of `now`.
    async fn put_right(&self, now: &mut Registry) -> Result<(), Refusal> {
        let configured = self.configured_groups();
        self.remove_strays(self.names_kept(), &real_groups(now))
            .await?;
        // Each time without one member.
        for _ in 0..=now.members().count() {
            self.keep_text(&render(now, &configured), None)
                .map_err(|error| self.cannot_write(&error))?;
            match self.read_what_is_kept(now).await {
                Err(Refusal::Fault(told)) if told.code == CANT_REREAD => {
                    let event = refused_member(now, &told.text).ok_or(told.clone())?;
                    tracing::error!(
                        fault = told.text,
                        ?event,
                        "it cannot be added again, and is forgotten"
                    );
                    self.note(vec![event.clone()]);
                    now.apply(event);
                }
                other => return other,
            }
        }
        Err(not_read(self).into())
    }

    /// Lets the daemon read what is kept, and adds what it has not or has otherwise.
    async fn read_what_is_kept(&self, now: &Registry) -> Result<(), Refusal> {
        // Not while a generated file is there.
        let _turn = self.staging.lock().await;
        let reloaded = self.call("supervisor.reloadConfig", &[]).await?;
        let reloaded = Reloaded::read(&reloaded);
        let ours = real_groups(now);
        let ours = || ours.iter().map(String::as_str);
        // Groups of one member bear a number that no other member has had.
        let changed: BTreeSet<&str> = ours()
            .filter(|name| reloaded.changed.contains(*name) && now.added_group(name).is_some())
            .collect();
        let lacking: Vec<&str> = ours()
            .filter(|name| reloaded.added.contains(*name) || changed.contains(name))
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        tracing::warn!(groups = ?lacking, "adding what supervisord did not read when it started");
        self.stop_and_remove(&changed).await?;
        let calls: Vec<_> = lacking
            .iter()
            .map(|name| (ADD, vec![Value::from(*name)]))
            .collect();
        for (group, added) in lacking.into_iter().zip(self.multicall(&calls).await?) {
            if let Err(told) = added {
                tracing::error!(group, fault = told.text, "it cannot be added again");
            }
        }
        Ok(())
    }

    /// Groups that the daemon may have read from what was kept, now or when this proxy started.
    fn names_kept(&self) -> BTreeSet<String> {
        let now = self.include.kept();
        let texts = now.iter().chain(&self.kept_before);
        texts
            .flat_map(|text| KeptBefore::read(text).groups.into_keys())
            .collect()
    }

    /// Gives the daemon back real groups of ours that a refused change has removed. Their processes
    /// were stopped, and stay so. Hands over what cannot be made, because only the daemon knew it.
    pub(super) async fn add_back(&self, reals: &[&str]) -> Result<Vec<Event>, Refusal> {
        let configured = self.configured_groups();
        let (texts, lost) = self.with_registry(|registry| {
            let mut texts = BTreeMap::new();
            let mut lost = Vec::new();
            for real in reals {
                match stopped_group(registry, &configured, real) {
                    Some(text) => drop(texts.insert(*real, text)),
                    None => lost.extend(owner(registry, real).map(left)),
                }
            }
            (texts, lost)
        });
        if !texts.is_empty() {
            let names: Vec<&str> = texts.keys().copied().collect();
            let text: String = texts.into_values().collect();
            self.add_read(&text, &names).await?;
        }
        Ok(lost)
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

/// Whether the user's files or the disk are what is in the way.
fn is_about_files(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Fault(told) if told.code != SHUTDOWN_STATE)
}

/// The daemon's groups that are ours: those that were added, and those that hold one member.
fn real_groups(registry: &Registry) -> BTreeSet<String> {
    let placed = registry.members().filter(|member| member.is_placed());
    let placed = placed.map(|member| member.real.clone());
    let added = registry.added_groups().map(str::to_owned);
    added.chain(placed).collect()
}

/// Takes the member away whose section the daemon complains about.
fn refused_member(registry: &Registry, complaint: &str) -> Option<Event> {
    let placed = registry.members().filter(|member| member.is_placed());
    let placed = placed.map(|member| (member.real.clone(), member));
    let own = registry.added_groups().flat_map(|name| {
        let own = registry
            .members_of(name)
            .filter(|member| !member.is_placed());
        (0..).map(move |number| own_section(name, number)).zip(own)
    });
    let mut sections = placed.chain(own);
    let (_, member) = sections.find(|(section, _)| blames(complaint, section))?;
    Some(left(member))
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

/// The member that has this real group to itself.
fn owner<'r>(registry: &'r Registry, real: &str) -> Option<&'r Member> {
    let (group, process) = registry.owner(real)?;
    registry.member(group, process)
}

/// A real group of ours whose processes are not started when it is added.
fn stopped_group(
    registry: &Registry,
    configured: &[ConfiguredGroup],
    real: &str,
) -> Option<String> {
    let (group, programs) = match owner(registry, real) {
        Some(member) => {
            let program = member_program(member, real)?;
            (member.group.as_str(), vec![(real.to_owned(), program)])
        }
        None => {
            registry.added_group(real)?;
            let own = registry.members_of(real);
            let own: Vec<&Member> = own.filter(|member| !member.is_placed()).collect();
            (real, own_programs(real, &own))
        }
    };
    let sections: Vec<&str> = programs.iter().map(|(name, _)| name.as_str()).collect();
    let priority = plan::priority(registry, configured, group);
    let mut text = program::render_group(real, priority, &sections);
    for (_, program) in &programs {
        // Of an option that is there twice, the daemon takes the latter.
        text += program;
        text += "autostart=false\n";
    }
    Some(text)
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
        let priority = plan::priority(registry, configured, &member.group);
        let Some(sections) = placed_member(member, priority) else {
            continue;
        };
        // The comment is for people; the names cannot hold a line break.
        let _ = write!(text, "\n; {}:{}\n", member.group, member.process);
        text += &sections;
    }
    text
}

/// The sections of a member in a real group of its own; none where [`member_program`] has none.
fn placed_member(member: &Member, priority: i64) -> Option<String> {
    let real = &member.real;
    if let Some(program) = &member.program {
        return Some(program.render_alone(real, member.index, priority));
    }
    let program = member_program(member, real)?;
    Some(program::render_group(real, priority, &[real]) + &program)
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
