//! Completion in a shell: the names of the server's processes, groups and programs.

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

/// The server has this long to answer; the shell waits meanwhile.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Processes (`group:process`) and groups (`group:*`) whose names begin with `current`.
pub fn process_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = query(async |session| {
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
    beginning_with(current, names)
}

/// Groups whose names begin with `current`.
pub fn group_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = query(async |session| {
        let method = "twiddler.getGroupNames";
        let names = session.server.call(method, &[], method).await.ok()?;
        let names = names.as_array().unwrap_or_default().iter();
        let names = names.filter_map(Value::as_str);
        Some(names.map(|name| (name.to_owned(), String::new())).collect())
    });
    beginning_with(current, names)
}

/// Programs whose names begin with `current`.
pub fn program_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = query(async |session| {
        let (programs, _) = programs::all(session).await.ok()?;
        let named = |info: &ProgramInfo| (info.namespec(), info.origin.clone());
        Some(programs.iter().map(named).collect())
    });
    beginning_with(current, names)
}

/// Programs whose names begin with `current`, as `group:program=numprocs`.
pub fn scalable_names(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = query(async |session| {
        let (programs, _) = programs::all(session).await.ok()?;
        let named = |info: &ProgramInfo| {
            let name = format!("{}={}", info.namespec(), info.numprocs);
            (name, String::new())
        };
        Some(programs.iter().map(named).collect())
    });
    beginning_with(current, names)
}

/// The pairs of name and help whose name begins with `current`, as candidates. The shell shows the help
/// beside the name.
fn beginning_with(current: &OsStr, names: Vec<(String, String)>) -> Vec<CompletionCandidate> {
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

/// Runs `query` against the server that the words of the command line name. The result is empty where
/// the server does not answer within [`TIMEOUT`].
fn query<F>(query: F) -> Vec<(String, String)>
where
    F: AsyncFnOnce(&Session) -> Option<Vec<(String, String)>>,
{
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return Vec::new();
    };
    let Ok((address, authorization)) = server::resolve(&typed_options()) else {
        return Vec::new();
    };
    let session = Session {
        server: Connection::new(address, authorization),
        output: Output::new(None, None),
    };
    let limited = async { tokio::time::timeout(TIMEOUT, query(&session)).await };
    runtime.block_on(limited).ok().flatten().unwrap_or_default()
}

/// The client options among the words of the command line that the shell completes.
fn typed_options() -> ClientOptions {
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
    // Options may stand before or after the verb, and any word may be incomplete.
    for start in 0..words.len() {
        if words[start].starts_with('-')
            && let Ok(parsed) = Words::try_parse_from(&words[start..])
        {
            options = options.or(parsed.client);
        }
    }
    options
}
