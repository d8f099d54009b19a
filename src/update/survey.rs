//! The state that differences are computed from: the daemon's processes, the files, and the daemon's
//! replies about both. It takes at most four `reloadConfig` calls.

use std::collections::{BTreeMap, BTreeSet};

use super::Updates;
use super::baseline::Base;
use super::difference::{GroupDifference, Input, Origin, Questions, Replies, VisibleProcess};
use super::no_group;
use super::probe::{Probe, Reply};
use crate::daemon::ProcessInfo;
use crate::daemon::conf::Definitions;
use crate::registry::{Registry, is_still_hidden};
use crate::twiddler::{ChangeError, Epoch, ProbePause};
use crate::xmlrpc::Value;

/// The state of files and daemon at one moment.
pub(super) struct Survey {
    /// The daemon's epoch at that moment.
    pub(super) epoch: Epoch,
    /// The definitions in the files.
    pub(super) files: Definitions,
    /// All processes that clients see.
    pub(super) processes: Vec<VisibleProcess>,
    /// Groups that clients added.
    pub(super) added_groups: BTreeSet<String>,
    /// The sections that the groups were made from.
    pub(super) bases: BTreeMap<String, Base>,
    /// The differences between files and daemon.
    pub(super) differences: Vec<GroupDifference>,
}

impl Survey {
    /// Whether the group was made from a `[group:x]` section.
    pub(super) fn had_section(&self, group: &str) -> bool {
        let base = self.bases.get(group);
        base.is_some_and(|base| base.group.has_section)
    }
}

impl Updates {
    /// Finds the differences in `groups`, or in all groups where none is named. Afterwards the daemon's last
    /// reading is of the files without a probe.
    ///
    /// # Errors
    /// When the files are not valid, a group is not known, or the daemon does not answer.
    pub(super) async fn survey(&self, groups: &[String]) -> Result<Survey, ChangeError> {
        let epoch = self.twiddler.current().await?;
        let pause = self.twiddler.pause_for_probes().await?;
        let files = self.files_as_read(&pause).await?;
        let (plain, processes) = self.read_and_list(&files).await?;
        self.note_confirmed_by(&files, &plain, &processes);
        let added_groups: BTreeSet<String> = self
            .twiddler
            .with_registry(|registry| registry.added_groups().map(str::to_owned).collect());
        let mut known: BTreeSet<&str> = files
            .groups
            .iter()
            .map(|group| group.name.as_str())
            .collect();
        known.extend(processes.iter().map(|process| process.group.as_str()));
        known.extend(plain.removed.iter().map(String::as_str));
        known.extend(added_groups.iter().map(String::as_str));
        if let Some(unknown) = groups.iter().find(|name| !known.contains(name.as_str())) {
            return Err(no_group(unknown));
        }
        let baseline = self.baseline().clone();
        let input = Input {
            files: &files,
            baseline: &baseline,
            processes: &processes,
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
            processes,
            added_groups,
            differences,
        })
    }

    /// Lets the daemon read the files, and lists its processes.
    ///
    /// # Errors
    /// When the files are not valid, or the daemon does not answer.
    pub(super) async fn read_and_list(
        &self,
        files: &Definitions,
    ) -> Result<(Reply, Vec<VisibleProcess>), ChangeError> {
        let list = [("supervisor.getAllProcessInfo", vec![])];
        let mut results = self.twiddler.read_files(&list).await?.into_iter();
        let reloaded = results.next().unwrap_or(Ok(Value::Nil))?;
        let infos = results.next().unwrap_or(Ok(Value::Nil))?;
        *self.last_read() = Some(files.clone());
        let mut reply = Probe::new(None, None).interpret(&reloaded, None);
        let processes = self.twiddler.with_registry(|registry| {
            reply
                .removed
                .retain(|name| !belongs_to_twiddler(registry, name));
            visible_processes(registry, &ProcessInfo::read_all(&infos))
        });
        Ok((reply, processes))
    }

    fn note_confirmed_by(&self, files: &Definitions, plain: &Reply, processes: &[VisibleProcess]) {
        let mut reply = plain.clone();
        // A group that holds added processes differs from the files anyway, so its base is not confirmed.
        let own = processes.iter().filter(|process| {
            process.real_group == process.group && !matches!(process.origin, Origin::Base)
        });
        reply
            .changed
            .extend(own.map(|process| process.group.clone()));
        self.note_confirmed(files, &reply);
    }

    /// Finds the differences in `groups`, and asks the daemon where the texts alone do not answer.
    async fn judge(
        &self,
        pause: &ProbePause,
        input: Input<'_>,
        groups: &[&str],
    ) -> Result<Vec<GroupDifference>, ChangeError> {
        let questions = Questions::new(input, groups);
        let mut replies = Replies::default();
        if questions.probes.is_empty() {
            return Ok(questions.differences(&replies));
        }
        for probe in &questions.probes {
            replies.probes.push(read_probe(pause, probe).await?);
        }
        if questions.probes.len() == 1 {
            let completeness = questions.completeness(&replies);
            if !completeness.is_empty() {
                replies.completeness = read_probe(pause, &completeness).await?;
            }
        }
        self.read_plain(input.files).await?;
        Ok(questions.differences(&replies))
    }
}

/// Lets the daemon read a probe, and interprets its reply.
///
/// # Errors
/// The daemon's fault about the probe, or that it does not answer.
pub(super) async fn read_probe(pause: &ProbePause, probe: &Probe) -> Result<Reply, ChangeError> {
    let list = [("supervisor.getAllConfigInfo", vec![])];
    let calls = if probe.asks_for_values() {
        &list[..]
    } else {
        &[]
    };
    let text = probe.text();
    let results = pause.read(Some(&text), calls).await;
    let mut results = results?.into_iter();
    let mut next = || results.next().unwrap_or(Ok(Value::Nil));
    match (next(), next()) {
        (Ok(reloaded), Ok(configs)) => Ok(probe.interpret(&reloaded, Some(&configs))),
        (Err(fault), _) | (_, Err(fault)) => {
            // Without this reading, the next `addProcessGroup` would use the definitions of the probe.
            let _ = pause.read(None, &[]).await;
            Err(fault.into())
        }
    }
}

/// Whether a group may differ. According to the daemon, all other groups are as the files define them.
fn is_suspect(input: Input<'_>, name: &str) -> bool {
    let plain = input.plain;
    let is_made_later = |process: &VisibleProcess| {
        process.group == name && matches!(process.origin, Origin::Update(_))
    };
    let is_configured = input.files.group(name).is_some();
    let is_added = |process: &VisibleProcess| {
        process.group == name && matches!(process.origin, Origin::Added(_))
    };
    plain.added.contains(name)
        || plain.changed.contains(name)
        || plain.removed.contains(name)
        || input.processes.iter().any(is_made_later)
        || is_configured && input.processes.iter().any(is_added)
        || is_configured && input.added_groups.contains(name)
        || input
            .baseline
            .scales
            .iter()
            .any(|scale| scale.group == name)
        || is_configured && lacks_processes(input, name)
}

/// Whether the daemon lacks a process that the files define, because a client has removed it.
fn lacks_processes(input: Input<'_>, name: &str) -> bool {
    let Some(group) = input.files.group(name) else {
        return false;
    };
    let wanted: i64 = group.programs.iter().map(|program| program.numprocs).sum();
    let present = input.processes.iter();
    let present = present.filter(|process| process.group == name).count();
    i64::try_from(present).unwrap_or(i64::MAX) < wanted
}

/// Whether twiddler added the daemon's group of this name.
fn belongs_to_twiddler(registry: &Registry, real: &str) -> bool {
    registry.marker() == Some(real)
        || registry.owner(real).is_some()
        || registry.added_group(real).is_some()
}

/// The daemon's processes as clients see them, each with its origin.
pub(super) fn visible_processes(registry: &Registry, infos: &[ProcessInfo]) -> Vec<VisibleProcess> {
    let visible = |info: &ProcessInfo| {
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
        Some(VisibleProcess {
            group: group.to_owned(),
            name: info.name.clone(),
            real_group: info.group.clone(),
            state: info.state,
            start: info.start,
            origin: member.map_or(Origin::Base, Origin::of_member),
        })
    };
    infos.iter().filter_map(visible).collect()
}
