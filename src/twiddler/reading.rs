//! What the daemon is given to read for a change, from the moment it is written down.

use super::ask::ask_and_reload;
use super::change::Refusal;
use super::plan::{self, Answers, Plan, Question};
use super::registry::Event;
use super::{OnDisk, Twiddler};
use crate::daemon::Reloaded;
use crate::failpoint;
use crate::program;
use crate::xmlrpc::Fault;

/// A generated file that is there for the daemon to read, and written down what it is for: a daemon
/// that starts at this moment reads it too.
pub(super) struct Announced {
    life: u64,
    pub(super) text: String,
    pub(super) events: Vec<Event>,
    marker: Option<String>,
    _file: OnDisk,
}

/// The same when the daemon has read it, and what it said.
pub(super) struct Reading {
    pub(super) staged: Announced,
    pub(super) said: Result<Reloaded, Fault>,
}

impl Announced {
    /// Writes down that `events` are about to happen in this `life` of the daemon, and puts `text` in
    /// place for it.
    pub(super) async fn begin(
        twiddler: &Twiddler,
        life: u64,
        text: String,
        events: Vec<Event>,
    ) -> Result<Self, Refusal> {
        let marker = twiddler.needs_marker().then(|| twiddler.marker_name());
        failpoint::hit("planned");
        twiddler.begin(marker.as_deref(), &events)?;
        failpoint::hit("begun");
        match twiddler.stage(&text).await {
            Ok(file) => Ok(Announced {
                life,
                text,
                events,
                marker,
                _file: file,
            }),
            Err(refusal) => {
                twiddler.end(life, Vec::new())?;
                Err(refusal)
            }
        }
    }

    /// Lets the daemon read it, and answer `questions`.
    pub(super) async fn read(
        self,
        twiddler: &Twiddler,
        questions: Vec<Question>,
    ) -> Result<(Answers, Reading), Refusal> {
        failpoint::hit("staged");
        let heard = ask_and_reload(twiddler, questions).await;
        failpoint::hit("read");
        match heard {
            Ok((answers, said)) => Ok((answers, Reading { staged: self, said })),
            Err(refusal) => {
                twiddler.leave_open(self.life, self.steps());
                Err(refusal)
            }
        }
    }

    /// All that it is for.
    pub(super) fn steps(&self) -> Vec<Event> {
        steps(self.marker.as_deref(), &self.events)
    }
}

/// What the daemon has to read for these plans, where that may be before it is known for sure that
/// they are right: not where a group has to be looked into first.
pub(super) fn text_ahead(twiddler: &Twiddler, plans: &[Plan]) -> Option<String> {
    // Nor where something is hidden, which is done before anything is read.
    let waits = |plan: &Plan| matches!(plan, Plan::Fill { .. } | Plan::Hide { .. });
    if plans.iter().any(waits) {
        return None;
    }
    text(twiddler, plans)
}

/// What the daemon has to read for these plans, if anything.
pub(super) fn text<'p>(
    twiddler: &Twiddler,
    plans: impl IntoIterator<Item = &'p Plan>,
) -> Option<String> {
    let proxy = twiddler.proxy_url();
    let sections: String = plans.into_iter().map(|plan| plan.sections(proxy)).collect();
    if sections.is_empty() {
        return None;
    }
    Some(match twiddler.needs_marker() {
        true => empty_group(&twiddler.marker_name(), plan::DEFAULT_PRIORITY) + &sections,
        false => sections,
    })
}

/// What is about to happen where a marker comes with it.
pub(super) fn steps(marker: Option<&str>, events: &[Event]) -> Vec<Event> {
    let marker = marker.map(|name| Event::Marker(name.to_owned()));
    marker.into_iter().chain(events.iter().cloned()).collect()
}

pub(super) fn empty_group(name: &str, priority: i64) -> String {
    program::render_group(name, priority, &[])
}
