//! Queries to the daemon, all of them in one round trip, as calls and from results.

use super::model::answers::{Answers, Query};
use super::model::script::{Call, CallResult};
use crate::daemon::{CallError, Daemon, ProcessInfo};
use crate::fault::BAD_NAME;
use crate::xmlrpc::{Fault, Value};

/// Puts queries to the daemon for somebody who only reads.
pub(super) async fn query(daemon: &Daemon, queries: Vec<Query>) -> Result<Answers, CallError> {
    let results = daemon.multicall(&calls(&queries)).await?;
    Ok(answers(queries, results)?)
}

/// The calls that answer queries.
pub(super) fn calls(queries: &[Query]) -> Vec<Call> {
    let call = |query: &Query| match query {
        // A signal without a name reaches nobody and tells whether the group is active.
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

/// What the results of these calls say.
///
/// # Errors
/// The first fault that says something else than that there is nobody of that name.
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
