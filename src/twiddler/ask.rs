//! Questions to the daemon, all of them in one round trip.

use super::plan::{Answers, Found, Question};
use super::{Refusal, Twiddler};
use crate::daemon::Reloaded;
use crate::daemon::fault::BAD_NAME;
use crate::xmlrpc::{Fault, Value};

/// Puts the questions to the daemon in one round trip.
pub(super) async fn ask(twiddler: &Twiddler, questions: Vec<Question>) -> Result<Answers, Refusal> {
    let results = twiddler.multicall(&calls(&questions)).await?;
    answers(questions, results)
}

/// The same, and lets the daemon read its files on the way.
pub(super) async fn ask_and_reload(
    twiddler: &Twiddler,
    questions: Vec<Question>,
) -> Result<(Answers, Result<Reloaded, Fault>), Refusal> {
    let (results, reloaded) = twiddler.multicall_and_reload(calls(&questions)).await?;
    Ok((answers(questions, results)?, reloaded))
}

fn calls(questions: &[Question]) -> Vec<(&'static str, Vec<Value>)> {
    let call = |question: &Question| match question {
        // A signal without a name reaches nobody and tells whether the group is active.
        Question::Group(name) => (
            "supervisor.signalProcessGroup",
            vec![name.as_str().into(), "".into()],
        ),
        Question::Process { real, process } => (
            "supervisor.getProcessInfo",
            vec![format!("{real}:{process}").into()],
        ),
        Question::AllProcesses => ("supervisor.getAllProcessInfo", vec![]),
    };
    questions.iter().map(call).collect()
}

fn answers(
    questions: Vec<Question>,
    results: Vec<Result<Value, Fault>>,
) -> Result<Answers, Refusal> {
    let mut answers = Answers::default();
    for (question, result) in questions.into_iter().zip(results) {
        if let Err(fault) = &result
            && fault.code != BAD_NAME
        {
            return Err(Refusal::Fault(fault.clone()));
        }
        note(&mut answers, question, result.ok());
    }
    Ok(answers)
}

pub(super) fn note(answers: &mut Answers, question: Question, result: Option<Value>) {
    match question {
        Question::Group(name) => {
            answers.groups.insert(name, result.is_some());
        }
        Question::Process { .. } => note_process(answers, result.as_ref()),
        Question::AllProcesses => {
            let all = result.unwrap_or(Value::Nil);
            all.as_array()
                .unwrap_or_default()
                .iter()
                .for_each(|info| note_process(answers, Some(info)));
        }
    }
}

pub(super) fn note_process(answers: &mut Answers, info: Option<&Value>) {
    if let Some(found) = info.and_then(found) {
        answers
            .processes
            .insert((found.real.clone(), found.process.clone()), found);
    }
}

/// Reads one process info struct of the daemon.
pub(super) fn found(info: &Value) -> Option<Found> {
    Some(Found {
        real: info.get("group")?.as_str()?.to_owned(),
        process: info.get("name")?.as_str()?.to_owned(),
        state: info.get("state")?.as_int()?,
        start: info.get("start")?.as_int()?,
        exitstatus: info.get("exitstatus")?.as_int()?,
    })
}
