//! What runs, what the files say, and what the daemon says of both: everything that a difference is
//! made from, in at most four readings of the files.

use std::collections::{BTreeMap, BTreeSet};

use super::Updates;
use super::baseline::Base;
use super::difference::{GroupDifference, Input, Made, Questions, Replies, Seen};
use super::no_group;
use super::probe::{Probe, Reply};
use crate::daemon::ProcessInfo;
use crate::daemon::conf::Definitions;
use crate::registry::{Registry, is_still_hidden};
use crate::twiddler::{ChangeError, Epoch, QuestionPause};
use crate::xmlrpc::Value;

/// What is known of files and daemon at one moment.
pub(super) struct Survey {
    /// The daemon's life that it is about.
    pub(super) epoch: Epoch,
    /// What the files say.
    pub(super) files: Definitions,
    /// All processes that clients see.
    pub(super) seen: Vec<Seen>,
    /// Groups that clients have added.
    pub(super) added_groups: BTreeSet<String>,
    /// What the groups were made from.
    pub(super) bases: BTreeMap<String, Base>,
    /// What differs.
    pub(super) differences: Vec<GroupDifference>,
}

impl Survey {
    /// Whether a `[group:x]` of its own made a group.
    pub(super) fn had_section(&self, group: &str) -> bool {
        let base = self.bases.get(group);
        base.is_some_and(|base| base.group.has_section)
    }
}

impl Updates {
    /// Finds what differs in `groups`, or in all where none is named. At the end the daemon has read
    /// the files as they are.
    ///
    /// # Errors
    /// When the files are not valid, a group is not known, or the daemon does not answer.
    pub(super) async fn survey(&self, groups: &[String]) -> Result<Survey, ChangeError> {
        let epoch = self.twiddler.current().await?;
        let pause = self.twiddler.pause_for_questions().await?;
        let files = self.files_as_read(&pause).await?;
        let (plain, seen) = self.read_and_look(&files).await?;
        self.note_confirmed_by(&files, &plain, &seen);
        let added_groups: BTreeSet<String> = self
            .twiddler
            .with_registry(|registry| registry.added_groups().map(str::to_owned).collect());
        let mut known: BTreeSet<&str> = files
            .groups
            .iter()
            .map(|group| group.name.as_str())
            .collect();
        known.extend(seen.iter().map(|seen| seen.group.as_str()));
        known.extend(plain.removed.iter().map(String::as_str));
        known.extend(added_groups.iter().map(String::as_str));
        if let Some(unknown) = groups.iter().find(|name| !known.contains(name.as_str())) {
            return Err(no_group(unknown));
        }
        let baseline = self.baseline().clone();
        let input = Input {
            files: &files,
            baseline: &baseline,
            seen: &seen,
            added_groups: &added_groups,
            plain: &plain,
        };
        let wanted = |name: &&str| groups.is_empty() || groups.iter().any(|group| group == name);
        let suspects: Vec<&str> = known
            .iter()
            .copied()
            .filter(wanted)
            .filter(|name| is_suspect(input, name))
            .collect();
        let differences = if suspects.is_empty() {
            Vec::new()
        } else {
            self.judge(&pause, input, &suspects).await?
        };
        Ok(Survey {
            epoch,
            bases: baseline.groups,
            files,
            seen,
            added_groups,
            differences,
        })
    }

    /// Lets the daemon read the files, and lists what it runs.
    pub(super) async fn read_and_look(
        &self,
        files: &Definitions,
    ) -> Result<(Reply, Vec<Seen>), ChangeError> {
        let look = [("supervisor.getAllProcessInfo", vec![])];
        let mut results = self.twiddler.read_files(&look).await?.into_iter();
        let reloaded = results.next().unwrap_or(Ok(Value::Nil))?;
        let infos = results.next().unwrap_or(Ok(Value::Nil))?;
        *self.last_read() = Some(files.clone());
        let mut reply = Probe::new(None, None).interpret(&reloaded, None);
        let seen = self.twiddler.with_registry(|registry| {
            reply.removed.retain(|name| !is_ours(registry, name));
            seen(registry, &ProcessInfo::read_all(&infos))
        });
        Ok((reply, seen))
    }

    fn note_confirmed_by(&self, files: &Definitions, plain: &Reply, seen: &[Seen]) {
        let mut reply = plain.clone();
        // What was added stands where no base can be confirmed.
        let own = seen
            .iter()
            .filter(|seen| seen.real == seen.group && !matches!(seen.made, Made::Base));
        reply.changed.extend(own.map(|seen| seen.group.clone()));
        self.note_confirmed(files, &reply);
    }

    /// Puts what cannot be told from texts to the daemon.
    async fn judge(
        &self,
        pause: &QuestionPause,
        input: Input<'_>,
        groups: &[&str],
    ) -> Result<Vec<GroupDifference>, ChangeError> {
        let questions = Questions::new(input, groups);
        let mut replies = Replies::default();
        if questions.probes.is_empty() {
            return Ok(questions.differences(&replies));
        }
        for probe in &questions.probes {
            replies.told.push(put(pause, probe).await?);
        }
        if questions.probes.len() == 1 {
            let completeness = questions.completeness(&replies);
            if !completeness.is_empty() {
                replies.same = put(pause, &completeness).await?;
            }
        }
        self.read_plain(input.files).await?;
        Ok(questions.differences(&replies))
    }
}

/// Lets the daemon read a probe, and reads its answer.
pub(super) async fn put(pause: &QuestionPause, probe: &Probe) -> Result<Reply, ChangeError> {
    let list = [("supervisor.getAllConfigInfo", vec![])];
    let calls = if probe.asks_for_values() {
        &list[..]
    } else {
        &[]
    };
    let text = probe.text();
    let results = pause.read(Some(&text), calls).await;
    let mut results = results?.into_iter();
    let mut told = || results.next().unwrap_or(Ok(Value::Nil));
    match (told(), told()) {
        (Ok(reloaded), Ok(configs)) => Ok(probe.interpret(&reloaded, Some(&configs))),
        (Err(fault), _) | (_, Err(fault)) => {
            // Nobody is to meet the probe in what was read last.
            let _ = pause.read(None, &[]).await;
            Err(fault.into())
        }
    }
}

/// Whether a group may differ: all others are as the files are, because the daemon says so.
fn is_suspect(input: Input<'_>, name: &str) -> bool {
    let plain = input.plain;
    let is_made_later = |seen: &Seen| seen.group == name && matches!(seen.made, Made::Update(_));
    let is_configured = input.files.group(name).is_some();
    let is_added = |seen: &Seen| seen.group == name && matches!(seen.made, Made::Added(_));
    plain.added.contains(name)
        || plain.changed.contains(name)
        || plain.removed.contains(name)
        || input.seen.iter().any(is_made_later)
        || is_configured && input.seen.iter().any(is_added)
        || is_configured && input.added_groups.contains(name)
        || input
            .baseline
            .scales
            .iter()
            .any(|scale| scale.group == name)
        || is_configured && lacks_processes(input, name)
}

/// Whether a process of the files is not there: somebody has taken it out.
fn lacks_processes(input: Input<'_>, name: &str) -> bool {
    let Some(group) = input.files.group(name) else {
        return false;
    };
    let wanted: i64 = group.programs.iter().map(|program| program.numprocs).sum();
    let there = input.seen.iter().filter(|seen| seen.group == name).count();
    i64::try_from(there).unwrap_or(i64::MAX) < wanted
}

/// Whether the daemon's group of this name is of our making.
fn is_ours(registry: &Registry, real: &str) -> bool {
    registry.marker() == Some(real)
        || registry.owner(real).is_some()
        || registry.added_group(real).is_some()
}

/// The daemon's processes as clients see them, with what they were made from.
pub(super) fn seen(registry: &Registry, infos: &[ProcessInfo]) -> Vec<Seen> {
    let look = |info: &ProcessInfo| {
        let group = registry.owner(&info.group).unwrap_or(&info.group);
        let member = registry.member(group, &info.name);
        let member = member.filter(|member| member.real == info.group);
        if member.is_none() {
            let is_real = registry.owner(&info.group).is_some();
            let hidden = registry.hidden_start(&info.group, &info.name);
            if is_real || hidden.is_some_and(|start| is_still_hidden(start, info.state, info.start))
            {
                return None;
            }
        }
        Some(Seen {
            group: group.to_owned(),
            process: info.name.clone(),
            real: info.group.clone(),
            state: info.state,
            start: info.start,
            made: member.map_or(Made::Base, Made::member),
        })
    };
    infos.iter().filter_map(look).collect()
}
