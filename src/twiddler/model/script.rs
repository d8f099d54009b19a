//! The calls that execute plans, in one multicall, and the interpretation of their results.

use std::ops::Range;

use super::change::{ChangeError, Outcome};
use super::plan::Plan;
use crate::fault::{ALREADY_ADDED, BAD_NAME, FAILED, SHUTDOWN_STATE, STILL_RUNNING, fault};
use crate::registry::{Event, Registry};
use crate::xmlrpc::{Fault, Value};

pub const ADD: &str = "supervisor.addProcessGroup";

pub const REMOVE: &str = "supervisor.removeProcessGroup";

/// The daemon's result of one call of a multicall.
pub type CallResult = Result<Value, Fault>;

/// A call to the daemon: its method and parameters.
pub type Call = (&'static str, Vec<Value>);

/// The calls of one multicall, and the plans that they belong to.
#[derive(Default)]
pub struct Script {
    pub calls: Vec<Call>,
    /// The epoch marker, which the first call adds.
    marker: Option<String>,
    /// The index of each plan, and the range of its calls.
    steps: Vec<(usize, Range<usize>)>,
}

/// The interpretation of the results of a script.
#[derive(Default)]
pub struct Verdict {
    /// The events that happened.
    pub events: Vec<Event>,
    /// The outcome of each plan, by its index.
    pub outcomes: Vec<(usize, Outcome)>,
    /// The repairs that must be done before clients are answered, by the index of the plan.
    pub repairs: Vec<(usize, Repair)>,
    /// The plans to hide a process whose epoch has no marker, because the daemon did not add it. They are
    /// refused.
    pub unmarked: Vec<usize>,
    /// Events about members that the daemon did not have any more.
    pub losses: Vec<Event>,
    /// Whether the daemon starts an added process by itself.
    pub starts: bool,
}

/// A step that repairs the daemon after a change that it made only in part.
#[derive(Debug, PartialEq)]
pub enum Repair {
    /// A hidden process may keep this real group from being removed. Stop it.
    StopHidden { real: String },
    /// These groups were removed, and the change failed. Add them again.
    AddBack { reals: Vec<String> },
    /// This group was removed, and its process was not added. Add it again as an empty group.
    AddEmpty { group: String, text: String },
}

impl Script {
    /// Composes the calls for these plans with their indexes. The first call adds `marker`, if there is
    /// one.
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

    /// Interprets the daemon's `results` for the `plans` that the script was composed of.
    pub fn interpret(
        &self,
        plans: &[Option<Plan>],
        results: &[CallResult],
        registry: &Registry,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let mut is_marked = true;
        if let Some(marker) = &self.marker {
            is_marked = results.first().is_some_and(is_added);
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
            Plan::Hide { .. } => self.succeed(index, plan.events()),
            Plan::Drop {
                processes, real, ..
            } => {
                let first = processes.first().unwrap_or(real);
                self.interpret_drop(index, plan, first, real, results.first());
            }
            Plan::Dissolve { group, reals } => {
                self.interpret_dissolve(index, group, reals, results, registry);
            }
            _ => self.interpret_addition(index, plan, results, registry),
        }
    }

    fn succeed(&mut self, index: usize, events: Vec<Event>) {
        self.events.extend(events);
        self.outcomes.push((index, Ok(())));
    }

    fn fail(&mut self, index: usize, error: impl Into<ChangeError>) {
        self.outcomes.push((index, Err(error.into())));
    }

    fn interpret_drop(
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
                self.fail(index, ChangeError::StillRunning(process.to_owned()));
            }
            Some(Err(fault)) if fault.code == BAD_NAME => {
                self.losses.extend(plan.events());
                self.events.extend(plan.events());
                self.fail(index, ChangeError::UnknownProcess(process.to_owned()));
            }
            Some(Err(fault)) => self.fail(index, fault.clone()),
            _ => self.succeed(index, plan.events()),
        }
    }

    fn interpret_dissolve(
        &mut self,
        index: usize,
        group: &str,
        reals: &[String],
        results: &[CallResult],
        registry: &Registry,
    ) {
        let is_refused =
            |result: &CallResult| matches!(result, Err(fault) if fault.code != BAD_NAME);
        let (remaining, removed): (Vec<_>, Vec<_>) = reals
            .iter()
            .zip(results)
            .partition(|(_, result)| is_refused(result));
        let Some((first, _)) = remaining.first() else {
            let name = group.to_owned();
            return self.succeed(index, vec![Event::GroupGone { name }]);
        };
        let reals: Vec<String> = removed.into_iter().map(|(real, _)| real.clone()).collect();
        let losses = reals
            .iter()
            .flat_map(|real| registry.losses_if_recreated(real));
        self.events.extend(losses);
        self.repairs.push((index, Repair::AddBack { reals }));
        let member = registry.members_in(first).next();
        let process = member.map_or_else(|| (*first).clone(), |member| member.process.clone());
        self.fail(index, ChangeError::StillRunning(process));
    }

    fn interpret_addition(
        &mut self,
        index: usize,
        plan: &Plan,
        results: &[CallResult],
        registry: &Registry,
    ) {
        let recreated = plan.recreated_group();
        let added = match recreated {
            Some(_) => results.get(1..).unwrap_or_default(),
            None => results,
        };
        let failed = added.iter().find(|added| match plan {
            // Another client whose `reloadConfig` read the staged file may have added the group.
            Plan::Place { .. } => !is_added(added),
            _ => added.is_err(),
        });
        let Some(Err(failed)) = failed else {
            self.starts |= plan.autostarts();
            let shown = recreated.iter();
            let shown = shown.flat_map(|(group, _)| registry.unhide_events(group));
            return self.succeed(index, plan.events().into_iter().chain(shown).collect());
        };
        let removal = results.first();
        let is_cleared = recreated.is_some() && matches!(removal, Some(Ok(_)));
        if let Some((group, text)) = recreated
            && is_cleared
        {
            let group = group.to_owned();
            self.repairs.push((index, Repair::AddEmpty { group, text }));
        }
        match plan {
            // The group was added again and is empty, which was the goal.
            Plan::Reset { .. } if is_cleared => self.succeed(index, plan.events()),
            _ => self.fail(index, addition_error(plan, failed, removal)),
        }
    }
}

/// Returns whether the daemon has the group that the call was to add.
fn is_added(result: &CallResult) -> bool {
    match result {
        Ok(_) => true,
        Err(fault) => fault.code == ALREADY_ADDED,
    }
}

/// The error of a group that was not added although the daemon has read it. `removal` is the result of the
/// removal before it, if the plan has one.
fn addition_error(plan: &Plan, failed: &Fault, removal: Option<&CallResult>) -> ChangeError {
    match plan {
        Plan::Reset { process, .. } if matches!(removal, Some(Err(removal)) if removal.code == STILL_RUNNING) => {
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

    const DONE: CallResult = Ok(Value::Bool(true));

    fn refusal(code: i32) -> CallResult {
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
            may_have_processes: false,
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

    /// An outcome in a few words: the client's reply and the repair.
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
        let loss = if verdict.losses.is_empty() {
            ""
        } else {
            ", losses"
        };
        format!("{outcome}{repair}{loss} +{}", verdict.events.len())
    }

    #[test]
    fn each_result_of_the_daemon_gives_one_verdict() {
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
            (create(), vec![DONE], "made +1"),
            (create(), vec![refusal(ALREADY_ADDED)], "BAD_NAME: own +0"),
            (create(), vec![refusal(BAD_NAME)], &format!("{lacking} +0")),
            (
                create(),
                vec![refusal(SHUTDOWN_STATE)],
                "SHUTDOWN_STATE: x +0",
            ),
            // A recreated group has no hidden processes.
            (fill(), vec![DONE, DONE], "made +2"),
            (
                fill(),
                vec![DONE, refusal(BAD_NAME)],
                &format!("{lacking}, add empty +0"),
            ),
            (
                fill(),
                vec![DONE, refusal(SHUTDOWN_STATE)],
                "SHUTDOWN_STATE: x, add empty +0",
            ),
            (
                fill(),
                vec![refusal(STILL_RUNNING), refusal(ALREADY_ADDED)],
                &format!("{changed} +0"),
            ),
            (fill(), vec![refusal(BAD_NAME), DONE], "made +2"),
            (
                fill(),
                vec![refusal(BAD_NAME), refusal(BAD_NAME)],
                &format!("{lacking} +0"),
            ),
            (place(), vec![DONE], "made +1"),
            // Another client may have added it after its own `reloadConfig`.
            (place(), vec![refusal(ALREADY_ADDED)], "made +1"),
            (place(), vec![refusal(BAD_NAME)], &format!("{lacking} +0")),
            (
                place(),
                vec![refusal(SHUTDOWN_STATE)],
                "SHUTDOWN_STATE: x +0",
            ),
            (drop_b(), vec![DONE], "made +1"),
            (
                drop_b(),
                vec![refusal(STILL_RUNNING)],
                "STILL_RUNNING: b, stop hidden +0",
            ),
            (drop_b(), vec![refusal(BAD_NAME)], "BAD_NAME: b, losses +1"),
            (drop_b(), vec![refusal(FAILED)], "FAILED: x +0"),
            (
                drop_b(),
                vec![refusal(SHUTDOWN_STATE)],
                "SHUTDOWN_STATE: x +0",
            ),
            (hide(), vec![], "made +1"),
            (reset(), vec![DONE, DONE], "made +2"),
            // The group is empty, which was the goal.
            (reset(), vec![DONE, refusal(BAD_NAME)], "made, add empty +1"),
            (reset(), vec![DONE, refusal(FAILED)], "made, add empty +1"),
            (
                reset(),
                vec![refusal(STILL_RUNNING), refusal(ALREADY_ADDED)],
                "STILL_RUNNING: p +0",
            ),
            (
                reset(),
                vec![refusal(BAD_NAME), refusal(BAD_NAME)],
                &format!("{lacking} +0"),
            ),
            (reset(), vec![refusal(BAD_NAME), DONE], "made +2"),
            (dissolve(), vec![DONE, DONE], "made +1"),
            (dissolve(), vec![refusal(BAD_NAME), DONE], "made +1"),
            (
                dissolve(),
                vec![refusal(BAD_NAME), refusal(BAD_NAME)],
                "made +1",
            ),
            (
                dissolve(),
                vec![refusal(STILL_RUNNING), DONE],
                "STILL_RUNNING: a, add back +0",
            ),
            // The two members were found in the daemon, and their definitions are unknown.
            (
                dissolve(),
                vec![DONE, refusal(STILL_RUNNING)],
                "STILL_RUNNING: web, add back +2",
            ),
            (
                dissolve(),
                vec![refusal(STILL_RUNNING), refusal(STILL_RUNNING)],
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
    fn the_marker_is_the_first_call_and_an_event_once_the_daemon_has_it() {
        let marker = Event::Marker("m".to_owned());
        for (result, is_known) in [
            (DONE, true),
            (refusal(ALREADY_ADDED), true),
            (refusal(BAD_NAME), false),
            (refusal(SHUTDOWN_STATE), false),
        ] {
            let plans = [Some(place())];
            let pending = plans.iter().flatten().map(|plan| (0, plan));
            let script = Script::compose(Some("m".to_owned()), pending);
            assert_eq!(script.calls[0], (ADD, vec!["m".into()]));
            let verdict = script.interpret(&plans, &[result, DONE], &Registry::default());
            assert_eq!(verdict.events.contains(&marker), is_known);
            assert!(matches!(verdict.outcomes[0], (0, Ok(()))));
        }
    }

    #[test]
    fn no_process_is_hidden_without_the_marker() {
        for (result, is_made) in [
            (DONE, true),
            (refusal(ALREADY_ADDED), true),
            (refusal(BAD_NAME), false),
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
