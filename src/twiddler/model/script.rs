//! What the daemon is asked to do for plans, all in one multicall, and what its answers mean.

use std::ops::Range;

use super::change::{ChangeError, Outcome};
use super::plan::Plan;
use crate::fault::{ALREADY_ADDED, BAD_NAME, FAILED, SHUTDOWN_STATE, STILL_RUNNING, fault};
use crate::registry::{Event, Registry};
use crate::xmlrpc::{Fault, Value};

pub const ADD: &str = "supervisor.addProcessGroup";

pub const REMOVE: &str = "supervisor.removeProcessGroup";

/// What the daemon answered to one call of a multicall.
pub type CallResult = Result<Value, Fault>;

/// A call of the daemon: its method and parameters.
pub type Call = (&'static str, Vec<Value>);

/// The calls of one multicall, and whose they are.
#[derive(Default)]
pub struct Script {
    pub calls: Vec<Call>,
    /// The group that marks the daemon's epoch, which the first call adds.
    marker: Option<String>,
    /// Each plan's number, and which calls are made for it.
    steps: Vec<(usize, Range<usize>)>,
}

/// What the daemon's answers to a script come to.
#[derive(Default)]
pub struct Verdict {
    /// What happened.
    pub events: Vec<Event>,
    /// What became of each plan.
    pub outcomes: Vec<(usize, Outcome)>,
    /// What must be done before anybody is told.
    pub repairs: Vec<(usize, Repair)>,
    /// Hidings that cannot be known again, because the marker was not added.
    pub unmarked: Vec<usize>,
    /// What was gone already.
    pub gone: Vec<Event>,
    /// The daemon starts something that was added, by itself.
    pub starts: bool,
}

/// What puts the daemon right after a change that it made half.
#[derive(Debug, PartialEq)]
pub enum Repair {
    /// Something hidden in this real group may be what keeps it from being removed.
    StopHidden { real: String },
    /// These groups were removed, and the change is refused.
    AddBack { reals: Vec<String> },
    /// This group was removed, and its process not added.
    AddEmpty { group: String, text: String },
}

impl Script {
    /// The calls for these plans, by their numbers. `marker` is added with them.
    pub fn compose<'p>(
        marker: Option<String>,
        plans: impl Iterator<Item = (usize, &'p Plan)>,
    ) -> Self {
        let mut script = Script::default();
        if let Some(marker) = marker {
            script.push(ADD, &marker);
            script.marker = Some(marker);
        }
        for (index, plan) in plans {
            script.plan(index, plan);
        }
        script
    }

    fn push(&mut self, method: &'static str, group: &str) {
        self.calls.push((method, vec![group.into()]));
    }

    fn plan(&mut self, index: usize, plan: &Plan) {
        let first = self.calls.len();
        match plan {
            Plan::Create { group, .. } => self.push(ADD, group),
            Plan::Fill { group, .. } | Plan::Reset { group, .. } => {
                self.push(REMOVE, group);
                self.push(ADD, group);
            }
            Plan::Place { real, .. } => self.push(ADD, real),
            Plan::Drop { real, .. } => self.push(REMOVE, real),
            Plan::Dissolve { reals, .. } => {
                for real in reals {
                    self.push(REMOVE, real);
                }
            }
            Plan::Hide { .. } => {}
        }
        self.steps.push((index, first..self.calls.len()));
    }

    /// What the daemon's `results` mean for `plans`, which it was composed of.
    pub fn interpret(
        &self,
        plans: &[Option<Plan>],
        results: &[CallResult],
        registry: &Registry,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let mut is_marked = true;
        if let Some(marker) = &self.marker {
            is_marked = results.first().is_some_and(is_there);
            if is_marked {
                verdict.events.push(Event::Marker(marker.clone()));
            }
        }
        for (index, calls) in &self.steps {
            let results = results.get(calls.clone()).unwrap_or_default();
            match plans.get(*index) {
                Some(Some(Plan::Hide { .. })) if !is_marked => verdict.unmarked.push(*index),
                Some(Some(plan)) => verdict.add(*index, plan, results, registry),
                _ => {}
            }
        }
        verdict
    }
}

impl Verdict {
    fn add(&mut self, index: usize, plan: &Plan, results: &[CallResult], registry: &Registry) {
        match plan {
            Plan::Hide { .. } => self.made(index, plan.events()),
            Plan::Drop {
                processes, real, ..
            } => {
                let first = processes.first().unwrap_or(real);
                self.dropped(index, plan, first, real, results.first());
            }
            Plan::Dissolve { group, reals } => {
                self.dissolved(index, group, reals, results, registry);
            }
            _ => self.added(index, plan, results, registry),
        }
    }

    fn made(&mut self, index: usize, events: Vec<Event>) {
        self.events.extend(events);
        self.outcomes.push((index, Ok(())));
    }

    fn refused(&mut self, index: usize, error: impl Into<ChangeError>) {
        self.outcomes.push((index, Err(error.into())));
    }

    fn dropped(
        &mut self,
        index: usize,
        plan: &Plan,
        process: &str,
        real: &str,
        result: Option<&CallResult>,
    ) {
        match result {
            Some(Err(fault)) if fault.code == STILL_RUNNING => {
                let real = real.to_owned();
                self.repairs.push((index, Repair::StopHidden { real }));
                self.refused(index, ChangeError::StillRunning(process.to_owned()));
            }
            Some(Err(fault)) if fault.code == BAD_NAME => {
                self.gone.extend(plan.events());
                self.events.extend(plan.events());
                self.refused(index, ChangeError::UnknownProcess(process.to_owned()));
            }
            Some(Err(fault)) => self.refused(index, fault.clone()),
            _ => self.made(index, plan.events()),
        }
    }

    fn dissolved(
        &mut self,
        index: usize,
        group: &str,
        reals: &[String],
        results: &[CallResult],
        registry: &Registry,
    ) {
        let is_kept = |result: &CallResult| matches!(result, Err(fault) if fault.code != BAD_NAME);
        let (kept, gone): (Vec<_>, Vec<_>) = reals
            .iter()
            .zip(results)
            .partition(|(_, result)| is_kept(result));
        let Some((first, _)) = kept.first() else {
            let name = group.to_owned();
            return self.made(index, vec![Event::GroupGone { name }]);
        };
        let reals: Vec<String> = gone.into_iter().map(|(real, _)| real.clone()).collect();
        let lost = reals
            .iter()
            .flat_map(|real| registry.lost_if_made_anew(real));
        self.events.extend(lost);
        self.repairs.push((index, Repair::AddBack { reals }));
        let held = registry.members_in(first).next();
        let process = held.map_or_else(|| (*first).clone(), |member| member.process.clone());
        self.refused(index, ChangeError::StillRunning(process));
    }

    fn added(&mut self, index: usize, plan: &Plan, results: &[CallResult], registry: &Registry) {
        let recreated = plan.recreates();
        let added = match recreated {
            Some(_) => results.get(1..).unwrap_or_default(),
            None => results,
        };
        let failed = added.iter().find(|added| match plan {
            // Whoever else read the file meanwhile may have added what is in it.
            Plan::Place { .. } => !is_there(added),
            _ => added.is_err(),
        });
        let Some(Err(failed)) = failed else {
            self.starts |= plan.autostarts();
            let uncovered = recreated.iter();
            let uncovered = uncovered.flat_map(|(group, _)| registry.uncovered(group));
            return self.made(index, plan.events().into_iter().chain(uncovered).collect());
        };
        let first = results.first();
        let is_cleared = recreated.is_some() && matches!(first, Some(Ok(_)));
        if let Some((group, text)) = recreated
            && is_cleared
        {
            let group = group.to_owned();
            self.repairs.push((index, Repair::AddEmpty { group, text }));
        }
        match plan {
            // It is made anew, and empty, which is what was wanted.
            Plan::Reset { .. } if is_cleared => self.made(index, plan.events()),
            _ => self.refused(index, addition_error(plan, failed, first)),
        }
    }
}

/// Whether a group that was to be added is there now.
fn is_there(result: &CallResult) -> bool {
    match result {
        Ok(_) => true,
        Err(fault) => fault.code == ALREADY_ADDED,
    }
}

/// Why a group was not added although the daemon has read it; `first` is what it said before that,
/// where the group was to be made anew.
fn addition_error(plan: &Plan, failed: &Fault, first: Option<&CallResult>) -> ChangeError {
    match plan {
        Plan::Reset { process, .. } if matches!(first, Some(Err(first)) if first.code == STILL_RUNNING) => {
            ChangeError::StillRunning(process.clone())
        }
        Plan::Create { group, .. } if failed.code == ALREADY_ADDED => {
            ChangeError::NameTaken(group.clone())
        }
        _ if failed.code == SHUTDOWN_STATE => ChangeError::Fault(failed.clone()),
        _ => ChangeError::Fault(fault(
            FAILED,
            format!("the group changed meanwhile, call again ({})", failed.text),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::program;
    use super::*;
    use crate::program::Program;
    use crate::registry::Member;
    use crate::registry::tests::{hidden, joined, registry, two};

    const FINE: CallResult = Ok(Value::Bool(true));

    fn no(code: i32) -> CallResult {
        Err(fault(code, "x"))
    }

    fn member(group: &str, process: &str, real: &str) -> Vec<Member> {
        match joined(group, process, real, 0) {
            Event::Joined(member) => vec![(*member).clone()],
            _ => Vec::new(),
        }
    }

    fn cat(group: &str) -> Box<Program> {
        match program(group, "p", 1) {
            super::super::change::Change::AddProgram(program) => program,
            other => unreachable!("{other:?}"),
        }
    }

    fn create() -> Plan {
        Plan::Create {
            group: "own".to_owned(),
            priority: 5,
        }
    }

    fn fill() -> Plan {
        Plan::Fill {
            group: "own".to_owned(),
            priority: 5,
            section: "own~000009".to_owned(),
            program: cat("own"),
            members: member("own", "p", "own"),
            may_hold: false,
        }
    }

    fn place() -> Plan {
        Plan::Place {
            real: "web~000009".to_owned(),
            priority: 5,
            program: cat("web"),
            members: member("web", "p", "web~000009"),
        }
    }

    fn drop_b() -> Plan {
        Plan::Drop {
            group: "web".to_owned(),
            processes: vec!["b".to_owned()],
            real: "web~000001".to_owned(),
        }
    }

    fn hide() -> Plan {
        Plan::Hide {
            real: "web~000001".to_owned(),
            process: "a".to_owned(),
            start: 5,
            may_start: false,
        }
    }

    fn reset() -> Plan {
        Plan::Reset {
            group: "own".to_owned(),
            priority: 5,
            process: "p".to_owned(),
        }
    }

    fn dissolve() -> Plan {
        Plan::Dissolve {
            group: "web".to_owned(),
            reals: vec!["web~000001".to_owned(), "web".to_owned()],
        }
    }

    /// The outcome in short: what a client is told, and what is done about it.
    fn short(verdict: &Verdict) -> String {
        let outcome = match verdict.outcomes.as_slice() {
            [(0, Ok(()))] => "made".to_owned(),
            [(0, Err(error))] => error.to_string(),
            other => format!("{other:?}"),
        };
        let repair = match verdict.repairs.as_slice() {
            [] => "",
            [(0, Repair::StopHidden { .. })] => ", stop hidden",
            [(0, Repair::AddBack { .. })] => ", add back",
            [(0, Repair::AddEmpty { .. })] => ", add empty",
            _ => ", ?",
        };
        let gone = if verdict.gone.is_empty() {
            ""
        } else {
            ", gone"
        };
        format!("{outcome}{repair}{gone} +{}", verdict.events.len())
    }

    #[test]
    fn each_answer_of_the_daemon_has_one_meaning() {
        let known = registry(
            &[
                two(),
                vec![hidden("own", "q"), joined("own", "p", "own", 0)],
            ]
            .concat(),
        );
        let again = "call again (ALREADY_ADDED: x)";
        let changed = format!("FAILED: the group changed meanwhile, {again}");
        let lacking = "FAILED: the group changed meanwhile, call again (BAD_NAME: x)";
        let table: [(Plan, Vec<CallResult>, &str); 32] = [
            (create(), vec![FINE], "made +1"),
            (create(), vec![no(ALREADY_ADDED)], "BAD_NAME: own +0"),
            (create(), vec![no(BAD_NAME)], &format!("{lacking} +0")),
            (create(), vec![no(SHUTDOWN_STATE)], "SHUTDOWN_STATE: x +0"),
            // What was hidden in a group that is made anew is not there any more.
            (fill(), vec![FINE, FINE], "made +2"),
            (
                fill(),
                vec![FINE, no(BAD_NAME)],
                &format!("{lacking}, add empty +0"),
            ),
            (
                fill(),
                vec![FINE, no(SHUTDOWN_STATE)],
                "SHUTDOWN_STATE: x, add empty +0",
            ),
            (
                fill(),
                vec![no(STILL_RUNNING), no(ALREADY_ADDED)],
                &format!("{changed} +0"),
            ),
            (fill(), vec![no(BAD_NAME), FINE], "made +2"),
            (
                fill(),
                vec![no(BAD_NAME), no(BAD_NAME)],
                &format!("{lacking} +0"),
            ),
            (place(), vec![FINE], "made +1"),
            // Whoever else let the daemon read may have added it.
            (place(), vec![no(ALREADY_ADDED)], "made +1"),
            (place(), vec![no(BAD_NAME)], &format!("{lacking} +0")),
            (place(), vec![no(SHUTDOWN_STATE)], "SHUTDOWN_STATE: x +0"),
            (drop_b(), vec![FINE], "made +1"),
            (
                drop_b(),
                vec![no(STILL_RUNNING)],
                "STILL_RUNNING: b, stop hidden +0",
            ),
            (drop_b(), vec![no(BAD_NAME)], "BAD_NAME: b, gone +1"),
            (drop_b(), vec![no(FAILED)], "FAILED: x +0"),
            (drop_b(), vec![no(SHUTDOWN_STATE)], "SHUTDOWN_STATE: x +0"),
            (hide(), vec![], "made +1"),
            (reset(), vec![FINE, FINE], "made +2"),
            // It is empty, which was wanted.
            (reset(), vec![FINE, no(BAD_NAME)], "made, add empty +1"),
            (reset(), vec![FINE, no(FAILED)], "made, add empty +1"),
            (
                reset(),
                vec![no(STILL_RUNNING), no(ALREADY_ADDED)],
                "STILL_RUNNING: p +0",
            ),
            (
                reset(),
                vec![no(BAD_NAME), no(BAD_NAME)],
                &format!("{lacking} +0"),
            ),
            (reset(), vec![no(BAD_NAME), FINE], "made +2"),
            (dissolve(), vec![FINE, FINE], "made +1"),
            (dissolve(), vec![no(BAD_NAME), FINE], "made +1"),
            (dissolve(), vec![no(BAD_NAME), no(BAD_NAME)], "made +1"),
            (
                dissolve(),
                vec![no(STILL_RUNNING), FINE],
                "STILL_RUNNING: a, add back +0",
            ),
            // Nobody knows how to make the two that were only found in the daemon.
            (
                dissolve(),
                vec![FINE, no(STILL_RUNNING)],
                "STILL_RUNNING: web, add back +2",
            ),
            (
                dissolve(),
                vec![no(STILL_RUNNING), no(STILL_RUNNING)],
                "STILL_RUNNING: a, add back +0",
            ),
        ];
        for (plan, results, expected) in table {
            let plans = [Some(plan)];
            let pending = plans.iter().flatten().map(|plan| (0, plan));
            let script = Script::compose(None, pending);
            assert_eq!(script.calls.len(), results.len(), "{plans:?}");
            let verdict = script.interpret(&plans, &results, &known);
            assert_eq!(short(&verdict), *expected, "{plans:?} {results:?}");
        }
    }

    #[test]
    fn the_marker_comes_first_and_is_known_once_it_is_there() {
        let marker = Event::Marker("m".to_owned());
        for (result, is_known) in [
            (FINE, true),
            (no(ALREADY_ADDED), true),
            (no(BAD_NAME), false),
            (no(SHUTDOWN_STATE), false),
        ] {
            let plans = [Some(place())];
            let pending = plans.iter().flatten().map(|plan| (0, plan));
            let script = Script::compose(Some("m".to_owned()), pending);
            assert_eq!(script.calls[0], (ADD, vec!["m".into()]));
            let verdict = script.interpret(&plans, &[result, FINE], &Registry::default());
            assert_eq!(verdict.events.contains(&marker), is_known);
            assert!(matches!(verdict.outcomes[0], (0, Ok(()))));
        }
    }

    #[test]
    fn nothing_is_hidden_where_the_marker_is_not_there() {
        for (result, is_made) in [
            (FINE, true),
            (no(ALREADY_ADDED), true),
            (no(BAD_NAME), false),
        ] {
            let plans = [Some(hide())];
            let pending = plans.iter().flatten().map(|plan| (0, plan));
            let script = Script::compose(Some("m".to_owned()), pending);
            let verdict = script.interpret(&plans, &[result], &Registry::default());
            assert_eq!(verdict.outcomes.is_empty(), !is_made);
            assert_eq!(verdict.unmarked.is_empty(), is_made);
            let hides = |event: &Event| matches!(event, Event::Hidden { .. });
            assert_eq!(verdict.events.iter().any(hides), is_made);
        }
    }
}
