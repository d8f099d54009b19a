//! Translates queries into the calls of one multicall, and the results into answers.

use super::model::answers::{Answers, Query};
use super::model::script::{Call, CallResult};
use crate::daemon::{CallError, Daemon, ProcessInfo};
use crate::fault::BAD_NAME;
use crate::xmlrpc::{Fault, Value};

/// Sends queries to the daemon in one multicall and returns its answers.
pub(super) async fn query(daemon: &Daemon, queries: Vec<Query>) -> Result<Answers, CallError> {
    let results = daemon.multicall(&calls(&queries)).await?;
    Ok(answers(queries, results)?)
}

/// The calls that answer `queries`, in the same order.
pub(super) fn calls(queries: &[Query]) -> Vec<Call> {
    let call = |query: &Query| match query {
        // The daemon sends no signal without a name, and its fault tells whether the group is active
        // (`supervisor/rpcinterface.py`, `signalProcessGroup`).
        Query::Group(name) => (
            "supervisor.signalProcessGroup",
            vec![name.as_str().into(), "".into()],
        ),
        Query::Process { real, process } => (
            "supervisor.getProcessInfo",
            vec![format!("{real}:{process}").into()],
        ),
        Query::AllProcesses => ("supervisor.getAllProcessInfo", vec![]),
    };
    queries.iter().map(call).collect()
}

/// The answers that `results` contain.
///
/// # Errors
/// The first fault other than `BAD_NAME`, which means that there is no such group or process.
pub(super) fn answers(queries: Vec<Query>, results: Vec<CallResult>) -> Result<Answers, Fault> {
    let mut answers = Answers::default();
    for (query, result) in queries.into_iter().zip(results) {
        let result = match result {
            Ok(value) => Some(value),
            Err(fault) if fault.code == BAD_NAME => None,
            Err(fault) => return Err(fault),
        };
        add(&mut answers, query, result);
    }
    Ok(answers)
}

fn add(answers: &mut Answers, query: Query, result: Option<Value>) {
    match query {
        Query::Group(name) => {
            answers.groups.insert(name, result.is_some());
        }
        Query::Process { .. } => {
            if let Some(info) = result.as_ref().and_then(ProcessInfo::read) {
                answers.insert(info);
            }
        }
        Query::AllProcesses => {
            let all = result.unwrap_or(Value::Nil);
            ProcessInfo::read_all(&all)
                .into_iter()
                .for_each(|info| answers.insert(info));
        }
    }
}
