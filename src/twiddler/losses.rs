//! What was added and is gone, although nobody asked this proxy for it.
//!
//! Somebody's `supervisorctl update` or `remove` straight on the daemon takes it away, and so does a
//! daemon that starts again. It is said by name, and forgotten: what was said to be gone does not come
//! back by itself.

use std::time::Duration;

use super::ask::ask;
use super::change::Refusal;
use super::plan::Question;
use super::registry::{Event, Registry};
use super::{Twiddler, reconcile};
use crate::daemon::conf::ConfiguredGroup;

/// How often the daemon is asked whether the marker is still there, where no reply has told.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// The least time between two looks for the sake of a reply.
const PAUSE: Duration = Duration::from_secs(1);

/// More names are not said in one line.
const MAX_NAMES: usize = 50;

/// How it is known that something is gone.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    /// The daemon goes on, and has it no more.
    Removed,
    /// The daemon has started again.
    Restarted,
    /// It was there when an earlier proxy ran.
    Unknown,
}

impl Twiddler {
    /// Has the daemon looked at soon, because a reply speaks against what is known.
    pub fn doubt(&self) {
        self.doubts.notify_one();
    }

    /// Done when the daemon has broken the connection by which its life is known. Until then looks for
    /// what is gone whenever there is a doubt, and sometimes without.
    pub(super) async fn watch_life(&self) {
        loop {
            let doubted = tokio::select! {
                () = self.life.broken() => return,
                () = self.doubts.notified() => true,
                () = tokio::time::sleep(LOOK_AROUND) => false,
            };
            let looked = match doubted || self.lacks_marker().await {
                true => self.look_for_losses().await,
                false => Ok(()),
            };
            if let Err(refusal) = looked {
                tracing::debug!(reason = %refusal, "cannot look for what is gone");
            }
            if doubted {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn lacks_marker(&self) -> bool {
        let marker = self.with_registry(|registry| registry.marker().map(str::to_owned));
        let Some(marker) = marker else { return false };
        let answers = ask(self, vec![Question::Group(marker.clone())]).await;
        answers.is_ok_and(|answers| !answers.is_active(&marker))
    }

    /// Asks the daemon for all that was added. What is gone is said, and forgotten.
    async fn look_for_losses(&self) -> Result<(), Refusal> {
        // A change under way would be taken for a loss.
        let _busy = self.busy.lock().await;
        let life = self.life_number();
        let known = self.with_registry(Registry::clone);
        if known.is_empty() || !self.is_settled() {
            return Ok(());
        }
        let groups = known.added_groups().chain(known.marker());
        let mut questions = vec![Question::AllProcesses];
        questions.extend(groups.map(|name| Question::Group(name.to_owned())));
        let answers = ask(self, questions).await?;
        if !self.is_settled() || self.life_number() != life {
            return Ok(()); // what started again is another story
        }
        let lost = reconcile::lost(&known, &answers);
        if !lost.is_empty() {
            self.say_gone(&lost, Cause::Removed);
            self.note_in(life, lost);
            self.keep(None);
        }
        let lacks_marker = known.marker().is_some_and(|name| !answers.is_active(name));
        match self.with_registry(Registry::holds_nothing) {
            _ if !lacks_marker => Ok(()),
            true => {
                self.renew(Vec::new());
                Ok(())
            }
            false => self.mark_if_possible().await,
        }
    }

    /// Says by name what is gone after these, if anything.
    pub(super) fn say_gone(&self, events: &[Event], cause: Cause) {
        let Some(gone) = self.with_registry(|registry| gone(registry, events)) else {
            return;
        };
        match (cause, self.persists) {
            (Cause::Removed, false) => tracing::warn!(
                "{gone}: gone, because somebody ran supervisorctl update or remove on supervisord itself. Write the address of twiddler as serverurl in [supervisorctl], or use --persist"
            ),
            (Cause::Removed, true) => tracing::warn!(
                "{gone}: gone, because somebody removed it on supervisord itself. Write the address of twiddler as serverurl in [supervisorctl]"
            ),
            (Cause::Restarted, _) => tracing::warn!(
                "supervisord was started again without --persist: only its configuration files count now. Gone: {gone}"
            ),
            (Cause::Unknown, _) => tracing::warn!(
                "{gone}: gone since twiddler last ran, because supervisord was started again without --persist, or somebody ran supervisorctl update on it"
            ),
        }
    }

    /// Says that nothing of what was added is left.
    pub(super) fn say_all_gone(&self, cause: Cause) {
        let all = self.with_registry(everything);
        let restarted = matches!(cause, Cause::Restarted);
        match all.is_empty() {
            false => self.say_gone(&all, cause),
            true if restarted => tracing::info!(
                "supervisord was started again: only its configuration files count now"
            ),
            true => {}
        }
    }

    /// Says which names are in use twice: by what was added, and by the user's files.
    pub fn warn_of_clashes(&self) {
        let configured = self.configured_groups();
        for clash in self.with_registry(|registry| clashes(registry, &configured)) {
            tracing::warn!("{clash}");
        }
    }

    /// Says what is known of earlier changes.
    pub(super) fn say_known(&self) {
        let known = self.with_registry(|registry| gone(registry, &everything(registry)));
        if let Some(known) = known {
            tracing::info!("known from before: {known}");
        }
    }
}

/// The steps after which nothing is left of what was added.
fn everything(registry: &Registry) -> Vec<Event> {
    let members = registry.members().map(super::settle::left);
    let groups = registry.added_groups().map(|name| Event::GroupGone {
        name: name.to_owned(),
    });
    members.chain(groups).collect()
}

/// What goes with these, in words: programs with the names of their processes, and groups.
fn gone(registry: &Registry, events: &[Event]) -> Option<String> {
    let mut groups: Vec<&str> = Vec::new();
    let mut processes: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::GroupGone { name } => groups.push(name),
            Event::Left { group, process } => processes.push(format!("{group}:{process}")),
            _ => {}
        }
    }
    let programs: std::collections::BTreeSet<(&str, &str)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Left { group, process } => registry.member(group, process),
            _ => None,
        })
        .map(|member| {
            let program = member.program.as_ref().map(|program| program.name());
            (member.group.as_str(), program.unwrap_or(&member.process))
        })
        .collect();
    let programs = match programs.len() {
        0 => None,
        count => Some(counted(count, "program", &processes)),
    };
    let groups = match groups.len() {
        0 => None,
        count => Some(counted(count, "group", &groups)),
    };
    let parts: Vec<String> = programs.into_iter().chain(groups).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

fn counted<T: AsRef<str>>(count: usize, what: &str, names: &[T]) -> String {
    let plural = if count == 1 { "" } else { "s" };
    let shown: Vec<&str> = names.iter().take(MAX_NAMES).map(AsRef::as_ref).collect();
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{count} {what}{plural} ({}{more})", shown.join(", "))
}

/// One sentence for each name that was added and that the user's files define as well.
fn clashes(registry: &Registry, configured: &[ConfiguredGroup]) -> Vec<String> {
    let mut clashes = Vec::new();
    for group in configured {
        let name = &group.name;
        if registry.added_group(name).is_some() {
            clashes.push(format!(
                "the group {name} was added, and supervisord's files define it now: they do not count until it is removed by twiddler.removeGroup and supervisorctl update adds theirs"
            ));
            continue;
        }
        let twice = registry
            .members_of(name)
            .filter(|member| group.processes.contains(&member.process));
        clashes.extend(twice.map(|member| {
            let process = &member.process;
            format!(
                "{name}:{process} was added, and supervisord's files define it now: it runs twice after supervisorctl update and after each start. Stop it and call twiddler.removeProcessFromGroup, or take it out of the files"
            )
        }));
    }
    clashes
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{left, registry, two};
    use super::*;

    fn added(name: &str) -> Event {
        Event::Group {
            name: name.to_owned(),
            priority: 5,
        }
    }

    #[test]
    fn what_is_gone_is_said_by_name() {
        let known = registry(&[two(), vec![added("own"), added("other")]].concat());
        let gone_group = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        let table: [(&[Event], Option<&str>); 4] = [
            (&[], None),
            (&[left("web", "a")], Some("1 program (web:a)")),
            (&[gone_group("own")], Some("1 group (own)")),
            (
                &[
                    left("web", "a"),
                    left("web", "b"),
                    gone_group("other"),
                    gone_group("own"),
                ],
                Some("2 programs (web:a, web:b) and 2 groups (other, own)"),
            ),
        ];
        for (events, expected) in table {
            assert_eq!(gone(&known, events).as_deref(), expected);
        }
        assert_eq!(
            gone(&known, &everything(&known)).as_deref(),
            Some("2 programs (web:a, web:b) and 2 groups (other, own)")
        );
        let names: Vec<String> = (0..60).map(|number| number.to_string()).collect();
        assert!(counted(60, "program", &names).ends_with(" 49 and 10 more)"));
    }

    #[test]
    fn names_in_use_twice_are_found() {
        let known = registry(&[two(), vec![added("own")]].concat());
        let group = |name: &str, processes: &[&str]| ConfiguredGroup {
            name: name.to_owned(),
            priority: 999,
            empty: processes.is_empty(),
            processes: processes.iter().map(|name| (*name).to_owned()).collect(),
        };
        let table = [
            (group("web", &["x", "y"]), 0),
            (group("web", &["a", "x"]), 1),
            (group("web", &["a", "b"]), 2),
            (group("own", &[]), 1),
            (group("other", &["a"]), 0),
        ];
        for (group, expected) in table {
            let found = clashes(&known, std::slice::from_ref(&group));
            assert_eq!(found.len(), expected, "{group:?}");
        }
    }
}
