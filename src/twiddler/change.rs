//! Changes that clients want: what they are, why they are not made, and what is asked and decided
//! before any is made.

use http::StatusCode;

use super::Twiddler;
use super::ask::ask;
use super::log_files;
use super::losses::Cause;
use super::plan::{self, Answers, Plan, Planner, Question};
use super::reading::{Announced, Reading, text_ahead};
use super::registry::Event;
use super::transaction::Transaction;
use crate::daemon::CallError;
use crate::daemon::conf::ConfiguredGroup;
use crate::daemon::fault::{CANT_REREAD, FAILED, INCORRECT_PARAMETERS, fault};
use crate::include_dir;
use crate::program::{Name, Program, Scope};
use crate::xmlrpc::{Fault, Value};

/// Something that a client wants changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new, empty group.
    AddGroup {
        /// What it is to be called.
        name: Name,
        /// Its place among the groups.
        priority: i64,
    },
    /// The processes of a program join its group.
    AddProgram(Box<Program>),
    /// A stopped process leaves its group.
    RemoveProcess {
        /// The group that clients know.
        group: String,
        /// The process's name.
        process: String,
    },
    /// A group goes, with its stopped processes.
    RemoveGroup {
        /// The group that clients know.
        name: String,
        /// How a refusal is told.
        wording: Wording,
    },
}

/// Whose words a refused removal of a group is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// `twiddler.removeGroup` names the process that is not stopped.
    Process,
    /// `supervisor.removeProcessGroup` names the group.
    Group,
}

/// Why a change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The client is told this fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The daemon did not take the credentials.
    #[error("supervisord answered HTTP {0}")]
    Status(StatusCode),
    /// The daemon is away.
    #[error("{0}")]
    Unreachable(String),
}

/// What a change came to.
pub type Outcome = Result<(), Refusal>;

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Fault(fault) => Refusal::Fault(fault),
            CallError::Status(status) => Refusal::Status(status),
            CallError::Unreachable(reason) => Refusal::Unreachable(reason),
            CallError::Unreadable(error) => Refusal::Fault(fault(FAILED, error)),
        }
    }
}

impl Change {
    /// The group that is concerned.
    pub fn group(&self) -> &str {
        match self {
            Change::AddGroup { name, .. } => name.as_str(),
            Change::AddProgram(program) => program.group(),
            Change::RemoveProcess { group, .. } => group,
            Change::RemoveGroup { name, .. } => name,
        }
    }
}

/// Carries out `changes`, which do not concern each other, as one transaction.
pub(super) async fn transact(twiddler: &Twiddler, changes: &[Change]) -> Vec<Outcome> {
    match prepare(twiddler, changes).await {
        Ok(transaction) => transaction.run().await,
        Err(refusal) => changes.iter().map(|_| Err(refusal.clone())).collect(),
    }
}

/// Asks what must be known and decides what to do for each change. On the way the daemon reads what
/// it will have to if it answers as expected: reading alone changes nothing in it.
async fn prepare<'a>(
    twiddler: &'a Twiddler,
    changes: &[Change],
) -> Result<Transaction<'a>, Refusal> {
    let life = twiddler.present_life().await?;
    twiddler.end_what_is_settled(life)?;
    twiddler.catch_up().await?;
    let configured = twiddler.configured_groups();
    let names = process_names(twiddler, changes).await;
    let known: Vec<Vec<String>> = names
        .iter()
        .map(|names| names.clone().unwrap_or_default())
        .collect();
    let (questions, expected) = twiddler.with_registry(|registry| {
        let questions = plan::questions(registry, changes, &known);
        let expected = Answers::expected(registry, &configured, &questions);
        (questions, expected)
    });
    let first = twiddler.next_number();
    let draft =
        |answers: &Answers| Draft::new(twiddler, changes, &configured, &names, answers, first);
    let guess = draft(&expected);
    twiddler.reserve_numbers(guess.next);
    let (answers, ahead) = ask_reading_ahead(twiddler, life, questions, guess.plans).await?;
    let Draft {
        plans,
        corrections,
        next,
    } = draft(&answers);
    // What a daemon lacks that has just started again is no news.
    if !corrections.is_empty() && twiddler.is_settled() {
        twiddler.say_gone(&corrections, Cause::Removed);
        twiddler.note_in(life, corrections);
    }
    twiddler.reserve_numbers(next);
    let lacks = |name: &str| answers.groups.get(name) == Some(&false);
    if twiddler.with_registry(|registry| registry.added_groups().any(lacks)) {
        twiddler.doubt();
    }
    Ok(Transaction::new(twiddler, life, plans, ahead))
}

/// What is to be done if the daemon answers like this.
struct Draft {
    plans: Vec<Result<Plan, Refusal>>,
    /// What turned out not to be as it was known.
    corrections: Vec<Event>,
    /// The first number that is free after it.
    next: u64,
}

impl Draft {
    fn new(
        twiddler: &Twiddler,
        changes: &[Change],
        configured: &[ConfiguredGroup],
        names: &[Result<Vec<String>, Refusal>],
        answers: &Answers,
        next: u64,
    ) -> Self {
        twiddler.with_registry(|registry| {
            let mut planner = Planner::new(registry, configured, answers, next, twiddler.persists);
            let plans = changes
                .iter()
                .zip(names)
                .map(|(change, names)| {
                    let names = names.as_ref().map_err(Clone::clone)?;
                    Ok(planner.plan(change, names)?)
                })
                .collect();
            let (corrections, next) = planner.finish();
            Draft {
                plans,
                corrections,
                next,
            }
        })
    }
}

/// Asks, and lets the daemon read on the way what `guess` takes. Where that cannot be written, only
/// asks.
async fn ask_reading_ahead(
    twiddler: &Twiddler,
    life: u64,
    questions: Vec<Question>,
    guess: Vec<Result<Plan, Refusal>>,
) -> Result<(Answers, Option<Reading>), Refusal> {
    let plans: Vec<Plan> = guess.into_iter().flatten().collect();
    if let Some(text) = text_ahead(twiddler, &plans)
        && let Ok(staged) = Announced::begin(twiddler, life, text, plan::events(&plans)).await
    {
        let (answers, reading) = staged.read(twiddler, questions).await?;
        return Ok((answers, Some(reading)));
    }
    Ok((ask(twiddler, questions).await?, None))
}

/// The names of the processes of each program; empty for other changes.
async fn process_names(
    twiddler: &Twiddler,
    changes: &[Change],
) -> Vec<Result<Vec<String>, Refusal>> {
    let mut all = Vec::with_capacity(changes.len());
    for change in changes {
        all.push(match change {
            Change::AddProgram(program) => names_of(twiddler, program).await,
            _ => Ok(Vec::new()),
        });
    }
    all
}

async fn names_of(twiddler: &Twiddler, program: &Program) -> Result<Vec<String>, Refusal> {
    log_files::check(program).await?;
    match program.process_names() {
        Some(names) => Ok(names),
        None => names_from_daemon(twiddler, program).await,
    }
}

/// Lets the daemon expand a `process_name` that speaks of things only it knows: each process in a
/// group of its own, because the daemon's list does not keep their order.
async fn names_from_daemon(twiddler: &Twiddler, program: &Program) -> Result<Vec<String>, Refusal> {
    let sections: Vec<String> = (0..program.numprocs())
        .map(|_| twiddler.take_number(program.group()))
        .collect();
    let text: String = (0..)
        .zip(&sections)
        .map(|(index, section)| {
            program.render_placed(section, Scope::One(index), plan::DEFAULT_PRIORITY, None)
        })
        .collect();
    let staged = twiddler.stage(&text).await?;
    let calls = [
        ("supervisor.reloadConfig", vec![]),
        ("supervisor.getAllConfigInfo", vec![]),
    ];
    let mut results = twiddler.multicall(&calls).await?.into_iter();
    drop(staged);
    if let Some(Err(told)) = results.next() {
        let guilty = sections.iter().find(|section| blames(&told.text, section));
        let blamed = guilty.map(|section| (program, section.as_str()));
        return Err(Refusal::Fault(reread_fault(twiddler, &told, blamed)));
    }
    let configs = results.next().unwrap_or(Ok(Value::Nil))?;
    let names: Vec<String> = sections
        .iter()
        .filter_map(|section| name_in_group(&configs, section))
        .collect();
    if names.len() != sections.len() {
        return Err(Refusal::Fault(not_read(twiddler).await));
    }
    program
        .check_process_names(&names)
        .map_err(|error| fault(INCORRECT_PARAMETERS, error))?;
    Ok(names)
}

/// The name of the process that `getAllConfigInfo` has in a group of one.
fn name_in_group(configs: &Value, group: &str) -> Option<String> {
    let text = |config: &Value, member: &str| Some(config.get(member)?.as_str()?.to_owned());
    let configs = configs.as_array()?.iter();
    configs
        .filter(|config| text(config, "group").as_deref() == Some(group))
        .find_map(|config| text(config, "name"))
}

/// The daemon's complaint about its configuration, in words about what the client sent.
pub(super) fn reread_fault(
    twiddler: &Twiddler,
    told: &Fault,
    program: Option<(&Program, &str)>,
) -> Fault {
    let Some((program, section)) = program else {
        return told.clone();
    };
    if told.code != CANT_REREAD || !blames(&told.text, section) {
        return told.clone();
    }
    let reason = told
        .text
        .strip_prefix("CANT_REREAD: ")
        .unwrap_or(&told.text);
    let main_file = twiddler.main_file();
    fault(
        INCORRECT_PARAMETERS,
        program.in_client_words(reason, section, &main_file),
    )
}

/// Whether the daemon's text speaks of the generated `section`.
pub(super) fn blames(text: &str, section: &str) -> bool {
    let name = format!("program:{section}");
    text.match_indices(&name)
        .any(|(at, _)| !text[at + name.len()..].starts_with(goes_on))
}

/// Whether a longer name of a section may follow.
fn goes_on(next: char) -> bool {
    next.is_ascii_digit() || next == '~'
}

/// The fault for a file that the daemon has not read. It needs no restart: the daemon reads
/// `[include]` again whenever it reads its files.
pub(super) async fn not_read(twiddler: &Twiddler) -> Fault {
    let dir = twiddler.include.path();
    let text = match twiddler.daemon.other_account().await {
        Some(account) => include_dir::unreadable_for(&account, dir),
        None => format!(
            "supervisord did not read {0}; write files = {0}/*.conf below [include] in the file that supervisord was started with, and let its account read {0}",
            dir.display()
        ),
    };
    fault(CANT_REREAD, text)
}
