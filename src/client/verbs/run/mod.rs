//! `run`: a command that supervisord runs and that goes when it has ended.
//!
//! The program is added with a lease, which this command holds by an open request: whatever becomes
//! of the command, the proxy stops and removes what nobody holds any more.

mod exit;
mod output;
mod program;

use std::cell::Cell;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};

use super::Session;
use crate::client::args::RunArgs;
use crate::client::error::Error;
use crate::client::signals::Signals;
use crate::daemon::{ProcessInfo, ProcessState};
use crate::fault::{BAD_NAME, NO_FILE, NOT_EXECUTABLE, NOT_RUNNING, SHUTDOWN_STATE, SPAWN_ERROR};
use crate::xmlrpc::{Fault, Value};
use exit::End;
use output::Output;
use program::Program;

/// How often the process is looked at, at first and later: a call costs the daemon a quarter of a
/// millisecond.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A server that is away for so long does not come back soon.
const PATIENCE: Duration = Duration::from_secs(60);
/// A process that supervisord would start again has ended for good when it stays so for so long.
const STARTS_AGAIN: Duration = Duration::from_secs(2);
/// Between attempts to hold the lease again.
const LEASE_PAUSE: Duration = Duration::from_millis(500);
/// The server knows no leases.
const NO_LEASES: [u16; 2] = [404, 405];

/// Adds the program, starts it, prints what it writes until it has ended, and removes it.
///
/// # Errors
/// When the server does not answer, or refuses the program.
pub async fn run(session: &Session, args: &RunArgs) -> Result<u8, Error> {
    let signals = Signals::new()?;
    let program = Program::add(session, args, &signals).await?;
    let run = Run {
        session,
        signals,
        program,
        keep: args.keep,
        heeded: Cell::new(0),
        ended: Cell::new(None),
    };
    let outcome = run.carry_out().await;
    if !run.keep && !matches!(outcome, Err(Error::Interrupted { .. })) {
        run.clean_up(&outcome).await;
    }
    match outcome {
        Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(exit::BROKEN_PIPE),
        outcome => outcome.map(|end| end.report(&run.program.namespec)),
    }
}

struct Run<'a> {
    session: &'a Session,
    signals: Signals,
    program: Program,
    keep: bool,
    /// So many signals have had their effect; one more means that nobody wants to wait.
    heeded: Cell<u32>,
    /// Which of its lives the process was last seen at the end of, and since when.
    ended: Cell<Option<(i64, Instant)>>,
}

impl Run<'_> {
    async fn carry_out(&self) -> Result<End, Error> {
        let (session, namespec) = (self.session, &self.program.namespec);
        // Until all is printed: the log goes with the program.
        let mut holding = pin!(self.hold_lease());
        let opening = async {
            Ok::<_, Error>((
                Output::open(session, namespec, "stdout").await?,
                Output::open(session, namespec, "stderr").await?,
            ))
        };
        let (stdout, stderr) = tokio::select! {
            opened = self.in_time(opening) => opened?,
            never = &mut holding => match never {},
        };
        if self.signals.count() > 0 {
            return Ok(End::NotStarted(self.signals.status()));
        }
        let mut copying = pin!(async { tokio::try_join!(stdout.copy(), stderr.copy()) });
        let ending = async {
            if let Some(end) = self.start().await? {
                return Ok(end);
            }
            self.until_ended().await
        };
        let ended = tokio::select! {
            ended = ending => ended,
            Err(broken) = &mut copying => Err(broken),
            never = &mut holding => match never {},
        };
        // They have done what they were for.
        self.heeded.set(self.signals.count());
        let end = ended?;
        let printed = async { tokio::join!(stdout.completed(), stderr.completed()) };
        tokio::select! {
            _ = self.signals.limit(self.heeded.get(), printed) => Ok(end),
            Err(broken) = copying => Err(broken),
            never = holding => match never {},
        }
    }

    /// Calls a method of the server.
    async fn call(&self, method: &str, params: &[Value]) -> Result<Result<Value, Fault>, Error> {
        self.in_time(self.session.server.try_call(method, params))
            .await
    }

    /// What `call` comes to; an error where the server takes its time and a signal comes.
    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let outcome = self.signals.limit(self.heeded.get(), call).await;
        outcome.unwrap_or_else(|| Err(self.given_up()))
    }

    /// A signal came, and it is not known what becomes of the process.
    fn given_up(&self) -> Error {
        let name = &self.program.namespec;
        let then = if self.keep {
            format!("`twiddler remove --stop {name}` ends it")
        } else {
            "the proxy stops and removes it, because nobody holds its lease".to_owned()
        };
        Error::Interrupted {
            text: format!("{name} may still run, and is not waited for; {then}"),
            status: self.signals.status(),
        }
    }

    /// Starts the process; how it ended, where it could not be started.
    async fn start(&self) -> Result<Option<End>, Error> {
        // Not waited for: one that ends at once would be told as a fault.
        let params = [self.program.namespec.as_str().into(), false.into()];
        match self.call("supervisor.startProcess", &params).await? {
            Ok(_) => Ok(None),
            // Also said of one that ran, and has ended with a status of its own before the daemon
            // looked (`supervisor/rpcinterface.py`, `startProcess`): its state tells.
            Err(fault) if fault.code == SPAWN_ERROR => Ok(None),
            Err(fault) if fault.code == NO_FILE => Ok(Some(End::NotFound)),
            Err(fault) if fault.code == NOT_EXECUTABLE => Ok(Some(End::NotExecutable)),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Waits until the process has ended, and stops it when a signal asks for it.
    async fn until_ended(&self) -> Result<End, Error> {
        let (mut said, mut done) = (false, 0);
        let mut pause = FIRST_PAUSE;
        let mut away_since = None;
        loop {
            let asked = self.signals.count();
            match asked {
                0 | 2 => {}
                1 if said => {}
                1 => {
                    let name = &self.program.namespec;
                    say!("twiddler: stopping {name}; Ctrl-C again kills it");
                    said = true;
                }
                _ => return Err(self.given_up()),
            }
            let step = async {
                while done < asked && self.stop(done).await? {
                    done += 1;
                }
                self.look().await
            };
            match step.await {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => away_since = None,
                Err(error) if !may_pass(&error) => return Err(error),
                Err(error) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        return Err(error);
                    }
                    // Nor does somebody who wants to leave wait for it.
                    if asked > 0 && since.elapsed() > LONGEST_PAUSE {
                        return Err(self.given_up());
                    }
                }
            }
            if done < asked {
                // It is about to be started again, and can be stopped once it was.
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 5 / 4).min(LONGEST_PAUSE),
                () = self.signals.more_than(asked) => pause = FIRST_PAUSE,
            }
        }
    }

    /// Looks whether the process has ended.
    async fn look(&self) -> Result<Option<End>, Error> {
        let Some(info) = self.info().await? else {
            return Ok(Some(End::Gone));
        };
        match info.state {
            ProcessState::Stopped if info.start == 0 => Ok(Some(End::Gone)),
            ProcessState::Fatal => Ok(Some(End::Fatal(info.spawn_error))),
            ProcessState::Exited if self.program.starts_again && !self.stays_ended(&info) => {
                Ok(None)
            }
            ProcessState::Stopped | ProcessState::Exited => self.end_of(&info).await.map(Some),
            _ => Ok(None),
        }
    }

    /// What is known of the process; nothing where there is none of its name.
    async fn info(&self) -> Result<Option<ProcessInfo>, Error> {
        let params = [self.program.namespec.as_str().into()];
        match self.call("supervisor.getProcessInfo", &params).await? {
            Ok(info) => Ok(ProcessInfo::read(&info)),
            Err(fault) if fault.code == BAD_NAME => Ok(None),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Whether the process was not started again for a moment.
    fn stays_ended(&self, info: &ProcessInfo) -> bool {
        let (start, since) = self.ended.get().unwrap_or((info.start, Instant::now()));
        let since = if start == info.start {
            since
        } else {
            Instant::now()
        };
        self.ended.set(Some((info.start, since)));
        since.elapsed() >= STARTS_AGAIN
    }

    async fn end_of(&self, info: &ProcessInfo) -> Result<End, Error> {
        if let Ok(status) = u8::try_from(info.exit_status) {
            return Ok(End::Exited(status));
        }
        // The daemon says -1 for every signal, and its name in its own log alone
        // (`supervisor/options.py`, `decode_wait_status`).
        let params = [(-exit::LOG_END).into(), 0.into()];
        let log = self.call("supervisor.readLog", &params).await;
        let log = log.ok().and_then(Result::ok);
        let log = log
            .as_ref()
            .and_then(|log| log.as_str())
            .unwrap_or_default();
        Ok(End::Killed(exit::signal_in(log, &self.program.name)))
    }

    /// Stops the process by its stopsignal; kills it where that was `done` once already. Whether there was
    /// something to stop.
    async fn stop(&self, done: u32) -> Result<bool, Error> {
        let name = self.program.namespec.as_str();
        let (method, params) = match done {
            0 => ("supervisor.stopProcess", [name.into(), false.into()]),
            _ => ("supervisor.signalProcess", [name.into(), "KILL".into()]),
        };
        match self.call(method, &params).await? {
            Ok(_) => Ok(true),
            Err(fault) if [NOT_RUNNING, BAD_NAME].contains(&fault.code) => Ok(false),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Holds the lease of the program, again whenever that broke off.
    async fn hold_lease(&self) -> Infallible {
        loop {
            match self.session.server.hold_lease(&self.program.name).await {
                Ok(mut held) => while let Some(Ok(_)) = held.frame().await {},
                // Anything else may pass: a relay's own trouble, say.
                Err(Error::Status { status, .. }) if NO_LEASES.contains(&status) => {
                    say!(
                        "twiddler: cannot hold the lease of {}: the server answered HTTP {status}",
                        self.program.namespec
                    );
                    std::future::pending().await
                }
                Err(_) => {}
            }
            sleep(LEASE_PAUSE).await;
        }
    }

    /// Stops what still runs, and removes the program. What cannot be removed is the lease's matter.
    async fn clean_up(&self, outcome: &Result<End, Error>) {
        if matches!(outcome, Ok(End::Gone)) && matches!(self.info().await, Ok(None)) {
            return;
        }
        let removing = async {
            if outcome.is_err() {
                let params = [self.program.namespec.as_str().into()];
                let stopping = self
                    .session
                    .server
                    .try_call("supervisor.stopProcess", &params);
                let _removal_says_what_is_wrong = stopping.await;
            }
            self.program.remove(self.session).await
        };
        match self.in_time(removing).await {
            Ok(()) => {}
            Err(error @ Error::Interrupted { .. }) => say!("twiddler: {error}"),
            Err(error) => say!(
                "twiddler: {} is still in supervisord, and the proxy will remove it: {error}",
                self.program.namespec
            ),
        }
    }

    fn error(&self, fault: Fault) -> Error {
        Error::Fault {
            fault,
            subject: self.program.namespec.clone(),
        }
    }
}

/// Whether the server may answer again: it is away, or supervisord is about to end or to start again.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Fault { fault, .. } => fault.code == SHUTDOWN_STATE,
        Error::Refused { .. } | Error::Interrupted { .. } => false,
        _ => true,
    }
}
