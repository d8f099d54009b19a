//! What the daemon is asked to do for plans, all in one multicall.

use std::ops::Range;

use super::plan::Plan;
use crate::xmlrpc::Value;

pub(super) const ADD: &str = "supervisor.addProcessGroup";

pub(super) const REMOVE: &str = "supervisor.removeProcessGroup";

/// The calls of one multicall, and whose they are.
#[derive(Default)]
pub(super) struct Script {
    pub(super) calls: Vec<(&'static str, Vec<Value>)>,
    /// The first call adds the group by which the daemon's life is known.
    pub(super) marks: bool,
    /// Each plan's number, and which calls are made for it.
    pub(super) steps: Vec<(usize, Range<usize>)>,
}

impl Script {
    pub(super) fn push(&mut self, method: &'static str, group: &str) {
        self.calls.push((method, vec![group.into()]));
    }

    pub(super) fn plan(&mut self, index: usize, plan: &Plan) {
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
}
