//! Live names for completion in a shell.

use std::ffi::OsStr;
use std::time::Duration;

use clap::Parser;
use clap_complete::CompletionCandidate;

use super::args::ClientOptions;
use super::server;
use super::verbs::Session;
use super::verbs::programs::{self, ProgramInfo};
use super::{Connection, Output};
use crate::namespec::namespec;
use crate::xmlrpc::Value;

/// Nobody waits longer for a completion.
const PATIENCE: Duration = Duration::from_secs(1);

/// Processes and whole groups that begin as what was typed.
pub fn process_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = ask(async |session| {
        let (table, _) = session.table().await.ok()?;
        let mut names = Vec::new();
        for info in &table {
            names.push((namespec(&info.group, &info.name), info.state_name.clone()));
            let group = format!("{}:*", info.group);
            if info.group != info.name && !names.iter().any(|(name, _)| *name == group) {
                names.push((group, "all of the group".to_owned()));
            }
        }
        Some(names)
    });
    beginning_as(current, found)
}

/// Groups that begin as what was typed.
pub fn group_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |session| {
        let method = "twiddler.getGroupNames";
        let names = session.server.call(method, &[], method).await.ok()?;
        let names = names.as_array().unwrap_or_default().iter();
        let names = names.filter_map(Value::as_str);
        Some(names.map(|name| (name.to_owned(), String::new())).collect())
    });
    beginning_as(current, names)
}

/// Programs that begin as what was typed.
pub fn program_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |session| {
        let (programs, _) = programs::all(session).await.ok()?;
        let named = |info: &ProgramInfo| (info.namespec(), info.origin.clone());
        Some(programs.iter().map(named).collect())
    });
    beginning_as(current, names)
}

/// The same with the number of their processes.
pub fn scalable_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |session| {
        let (programs, _) = programs::all(session).await.ok()?;
        let named = |info: &ProgramInfo| {
            let name = format!("{}={}", info.namespec(), info.numprocs);
            (name, String::new())
        };
        Some(programs.iter().map(named).collect())
    });
    beginning_as(current, names)
}

/// Candidates of the names, with what the shell says beside each.
fn beginning_as(current: &OsStr, names: Vec<(String, String)>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    names
        .into_iter()
        .filter(|(name, _)| name.starts_with(&*current))
        .map(|(name, help)| {
            let help = (!help.is_empty()).then(|| help.into());
            CompletionCandidate::new(name).help(help)
        })
        .collect()
}

/// Asks the server that the words typed so far name; nothing where it does not answer at once.
fn ask<F>(question: F) -> Vec<(String, String)>
where
    F: AsyncFnOnce(&Session) -> Option<Vec<(String, String)>>,
{
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return Vec::new();
    };
    let Ok((address, authorization)) = server::resolve(&typed()) else {
        return Vec::new();
    };
    let session = Session {
        server: Connection::new(address, authorization),
        output: Output::new(None, None),
    };
    let asking = async { tokio::time::timeout(PATIENCE, question(&session)).await };
    runtime.block_on(asking).ok().flatten().unwrap_or_default()
}

/// The client options among the words of the command line that is being completed.
fn typed() -> ClientOptions {
    #[derive(Parser)]
    #[command(no_binary_name = true, ignore_errors = true, disable_help_flag = true)]
    struct Words {
        #[command(flatten)]
        client: ClientOptions,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _rest: Vec<String>,
    }
    let words: Vec<String> = std::env::args()
        .skip_while(|word| word != "--")
        .skip(2)
        .collect();
    let mut options = ClientOptions::default();
    // Options may stand before or after the verb, and half a word anywhere.
    for start in 0..words.len() {
        if words[start].starts_with('-')
            && let Ok(found) = Words::try_parse_from(&words[start..])
        {
            options = options.or(found.client);
        }
    }
    options
}
