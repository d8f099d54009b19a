//! The command line's verbs: a client of the proxy, and of any supervisord.
//!
//! It talks XML-RPC like any other client and knows nothing of the proxy's internals.

/// Writes a line to standard error and ignores an error: a verb whose terminal was closed still finishes
/// its work.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

pub mod args;
mod complete;
mod connection;
mod error;
mod log_stream;
mod names;
mod output;
mod server;
mod signals;
mod verbs;
pub mod words;

use std::process::ExitCode;

use clap::Command;

use args::{ClientOptions, Verb};
use connection::Connection;
use error::Error;
use output::Output;
use verbs::{
    Session, call, changes, control, diff, export, generated, logs, programs, rolling, run, status,
    wait,
};

/// Carries out `verb` and returns the exit status of the command. `before` has the options in front of
/// the verb. `man` writes its pages from `command`, the definition of the whole command line.
pub fn main(before: ClientOptions, verb: Verb, command: Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let status = runtime.block_on(perform(before, verb, command));
            runtime.shutdown_background();
            ExitCode::from(status)
        }
        Err(error) => {
            say!("twiddler: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(before: ClientOptions, verb: Verb, command: Command) -> u8 {
    match carry_out(before, verb, command).await {
        Ok(status) => status,
        // The reader needs no more output, as with `| head`.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            say!("twiddler: {error}");
            error.status()
        }
    }
}

async fn carry_out(before: ClientOptions, verb: Verb, command: Command) -> Result<u8, Error> {
    let options = match &verb {
        Verb::Completions(args) => return generated::completions(args),
        Verb::Man(args) => return generated::man(args, command),
        verb => verb.options().cloned().unwrap_or_default().or(before),
    };
    let (address, authorization) = server::resolve(&options)?;
    let session = Session {
        server: Connection::new(address, authorization),
        output: Output::new(options.output, options.color),
    };
    match carry_out_with(&session, &verb).await {
        Err(Error::NoMethod(method)) => Err(missing_method(&session, method).await),
        Err(Error::ComparisonFailed(error)) => {
            let error = match *error {
                Error::NoMethod(method) => missing_method(&session, method).await,
                error => error,
            };
            Err(Error::ComparisonFailed(Box::new(error)))
        }
        outcome => outcome,
    }
}

/// The error for a method that the server lacks: a twiddler proxy may be older than this command, and a
/// supervisord has none of the `twiddler.*` methods.
async fn missing_method(session: &Session, method: String) -> Error {
    let version = session.server.try_call("twiddler.getAPIVersion", &[]);
    if method.starts_with("twiddler.") && matches!(version.await, Ok(Ok(_))) {
        return Error::NotDone(format!(
            "the server has no method {method}: it may be older than this command"
        ));
    }
    Error::NoMethod(method)
}

async fn carry_out_with(session: &Session, verb: &Verb) -> Result<u8, Error> {
    match verb {
        Verb::Status(args) => status::run(session, args).await,
        Verb::Start(args) => control::start(session, args).await,
        Verb::Stop(args) => control::stop(session, args).await,
        Verb::Restart(args) => match args.rolling {
            Some(size) => rolling::restart(session, &args.names, size).await,
            None => control::restart(session, &args.names).await,
        },
        Verb::Signal(args) => control::signal(session, args).await,
        Verb::Logs(args) => logs::run(session, args).await,
        Verb::Wait(args) => wait::run(session, args).await,
        Verb::Add(args) => changes::add(session, args).await,
        Verb::Remove(args) => changes::remove(session, args).await,
        Verb::AddGroup(args) => changes::add_group(session, args).await,
        Verb::RemoveGroup(args) => changes::remove_group(session, args).await,
        Verb::Set(args) => programs::set(session, args).await,
        Verb::Scale(args) => programs::scale(session, args).await,
        Verb::Diff(args) => diff::diff(session, args).await,
        Verb::Update(args) => diff::update(session, args).await,
        Verb::Programs(args) => programs::list(session, args).await,
        Verb::Export(args) => export::run(session, args).await,
        Verb::Groups(_) => changes::groups(session).await,
        Verb::Run(args) => run::run(session, args).await,
        Verb::Call(args) => call::run(session, args).await,
        Verb::Completions(_) | Verb::Man(_) => Ok(0),
    }
}
