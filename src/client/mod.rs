//! The command line's verbs: a client of the proxy, and of any supervisord.
//!
//! Talks XML-RPC to a server like any other client. Knows nothing of the proxy's inside.

/// Writes a line to standard error. Nobody may read it any more: a terminal that was closed does not
/// keep a verb from ending what it has begun.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _nobody_reads_it = writeln!(std::io::stderr(), $($text)*);
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

/// Carries out a verb; `before` are the options that stood before it. The manual is made of `all`, the
/// whole command line.
pub fn main(before: ClientOptions, verb: Verb, all: Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let status = runtime.block_on(perform(before, verb, all));
            runtime.shutdown_background();
            ExitCode::from(status)
        }
        Err(error) => {
            say!("twiddler: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(before: ClientOptions, verb: Verb, all: Command) -> u8 {
    match carry_out(before, verb, all).await {
        Ok(status) => status,
        // Whoever reads has seen enough, as with `| head`.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            say!("twiddler: {error}");
            error.status()
        }
    }
}

async fn carry_out(before: ClientOptions, verb: Verb, all: Command) -> Result<u8, Error> {
    let options = match &verb {
        Verb::Completions(args) => return generated::completions(args),
        Verb::Man(args) => return generated::man(args, all),
        verb => verb.options().cloned().unwrap_or_default().or(before),
    };
    let (address, authorization) = server::resolve(&options)?;
    let session = Session {
        server: Connection::new(address, authorization),
        output: Output::new(options.output, options.color),
    };
    match carry_out_with(&session, &verb).await {
        Err(Error::NoMethod(method)) => Err(missing(&session, method).await),
        Err(Error::Trouble(error)) => match *error {
            Error::NoMethod(method) => {
                Err(Error::Trouble(Box::new(missing(&session, method).await)))
            }
            error => Err(Error::Trouble(Box::new(error))),
        },
        outcome => outcome,
    }
}

/// A method that a twiddler does not have is another matter than a supervisord without any of them.
async fn missing(session: &Session, method: String) -> Error {
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
