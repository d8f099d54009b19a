//! `run`: supervisord runs a command, which is removed when it has ended.
//!
//! The program is added with a lease, which this command holds by an open request. If this command is
//! killed, the request ends, and the proxy stops and removes the program.

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

/// The first and the longest pause between two calls of `getProcessInfo`. A call costs the daemon a
/// quarter of a millisecond.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long the command waits for a server that does not answer.
const OUTAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// A process with `autorestart` has ended for good when it stays EXITED for this long.
const RESTART_TIME: Duration = Duration::from_secs(2);
/// The pause between attempts to hold the lease again.
const LEASE_PAUSE: Duration = Duration::from_millis(500);
/// The HTTP statuses of a server that has no leases.
const NO_LEASES: [u16; 2] = [404, 405];

/// Adds the program, starts it, prints its output until it has ended, and removes it.
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
        handled_signals: Cell::new(0),
        exited: Cell::new(None),
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
    /// How many signals have had their effect. One more limits the time of a call.
    handled_signals: Cell<u32>,
    /// The start time (Unix) of the process that was last seen EXITED, and since when it is.
    exited: Cell<Option<(i64, Instant)>>,
}

impl Run<'_> {
    async fn carry_out(&self) -> Result<End, Error> {
        let (session, namespec) = (self.session, &self.program.namespec);
        // The lease is held until the output is complete: the log is removed with the program.
        let mut holding = pin!(self.hold_lease());
        let opening = async {
            Ok::<_, Error>((
                Output::open(session, namespec, "stdout").await?,
                Output::open(session, namespec, "stderr").await?,
            ))
        };
        let (stdout, stderr) = tokio::select! {
            outputs = self.in_time(opening) => outputs?,
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
        let result = tokio::select! {
            result = ending => result,
            Err(error) = &mut copying => Err(error),
            never = &mut holding => match never {},
        };
        // The signals were to end the process, and it has ended.
        self.handled_signals.set(self.signals.count());
        let end = result?;
        let completing = async { tokio::join!(stdout.completed(), stderr.completed()) };
        tokio::select! {
            _ = self.signals.limit(self.handled_signals.get(), completing) => Ok(end),
            Err(error) = copying => Err(error),
            never = holding => match never {},
        }
    }

    /// Calls a method of the server.
    async fn call(&self, method: &str, params: &[Value]) -> Result<Result<Value, Fault>, Error> {
        self.in_time(self.session.server.try_call(method, params))
            .await
    }

    /// The output of `call`; an error if another signal arrives and the server does not answer in time.
    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let outcome = self.signals.limit(self.handled_signals.get(), call).await;
        outcome.unwrap_or_else(|| Err(self.interruption()))
    }

    /// The error for a command that a signal ends while the process may run.
    fn interruption(&self) -> Error {
        let name = &self.program.namespec;
        let then = if self.keep {
            format!("`twiddler remove --stop {name}` ends it")
        } else {
            "the proxy stops and removes it, because nobody holds its lease".to_owned()
        };
        Error::Interrupted {
            text: format!("{name} may still run, and this command does not wait for it; {then}"),
            status: self.signals.status(),
        }
    }

    /// Starts the process. Returns the end of a process that could not be started.
    async fn start(&self) -> Result<Option<End>, Error> {
        // The call does not wait for the start: it would answer with a fault for a process that ends at
        // once.
        let params = [self.program.namespec.as_str().into(), false.into()];
        match self.call("supervisor.startProcess", &params).await? {
            Ok(_) => Ok(None),
            // The daemon answers so, too, for a process that ran and exited before the daemon checked it
            // (`supervisor/rpcinterface.py`, `startProcess`). `poll` finds out by the process's state.
            Err(fault) if fault.code == SPAWN_ERROR => Ok(None),
            Err(fault) if fault.code == NO_FILE => Ok(Some(End::NotFound)),
            Err(fault) if fault.code == NOT_EXECUTABLE => Ok(Some(End::NotExecutable)),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Waits until the process has ended. The first signal stops it, the second kills it, and the third
    /// ends the wait.
    async fn until_ended(&self) -> Result<End, Error> {
        let (mut announced, mut stops) = (false, 0);
        let mut pause = FIRST_PAUSE;
        let mut outage_start = None;
        loop {
            let signals = self.signals.count();
            match signals {
                0 | 2 => {}
                1 if announced => {}
                1 => {
                    let name = &self.program.namespec;
                    say!("twiddler: stopping {name}; Ctrl-C again kills it");
                    announced = true;
                }
                _ => return Err(self.interruption()),
            }
            let step = async {
                while stops < signals && self.stop(stops).await? {
                    stops += 1;
                }
                self.poll().await
            };
            match step.await {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => outage_start = None,
                Err(error) if !may_pass(&error) => return Err(error),
                Err(error) => {
                    let start = *outage_start.get_or_insert_with(Instant::now);
                    if start.elapsed() > OUTAGE_TIMEOUT {
                        return Err(error);
                    }
                    // After a signal, the command does not wait for the server.
                    if signals > 0 && start.elapsed() > LONGEST_PAUSE {
                        return Err(self.interruption());
                    }
                }
            }
            if stops < signals {
                // The process is about to be restarted, and cannot be stopped before.
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 5 / 4).min(LONGEST_PAUSE),
                () = self.signals.more_than(signals) => pause = FIRST_PAUSE,
            }
        }
    }

    /// How the process ended; `None` while it runs or may be restarted.
    async fn poll(&self) -> Result<Option<End>, Error> {
        let Some(info) = self.info().await? else {
            return Ok(Some(End::Gone));
        };
        match info.state {
            ProcessState::Stopped if info.start == 0 => Ok(Some(End::Gone)),
            ProcessState::Fatal => Ok(Some(End::Fatal(info.spawn_error))),
            ProcessState::Exited if self.program.restarts && !self.stays_exited(&info) => Ok(None),
            ProcessState::Stopped | ProcessState::Exited => self.end_of(&info).await.map(Some),
            _ => Ok(None),
        }
    }

    /// The daemon's information about the process; `None` if the daemon has no such process.
    async fn info(&self) -> Result<Option<ProcessInfo>, Error> {
        let params = [self.program.namespec.as_str().into()];
        match self.call("supervisor.getProcessInfo", &params).await? {
            Ok(info) => Ok(ProcessInfo::read(&info)),
            Err(fault) if fault.code == BAD_NAME => Ok(None),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Whether the process has been EXITED for [`RESTART_TIME`] without a restart.
    fn stays_exited(&self, info: &ProcessInfo) -> bool {
        let (start, since) = self.exited.get().unwrap_or((info.start, Instant::now()));
        let since = if start == info.start {
            since
        } else {
            Instant::now()
        };
        self.exited.set(Some((info.start, since)));
        since.elapsed() >= RESTART_TIME
    }

    async fn end_of(&self, info: &ProcessInfo) -> Result<End, Error> {
        if let Ok(status) = u8::try_from(info.exit_status) {
            return Ok(End::Exited(status));
        }
        // The daemon returns -1 for every signal, and names the signal only in its log
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

    /// Sends the process its stopsignal; SIGKILL if it was stopped `stops` times before. Returns whether
    /// the process was running.
    async fn stop(&self, stops: u32) -> Result<bool, Error> {
        let name = self.program.namespec.as_str();
        let (method, params) = match stops {
            0 => ("supervisor.stopProcess", [name.into(), false.into()]),
            _ => ("supervisor.signalProcess", [name.into(), "KILL".into()]),
        };
        match self.call(method, &params).await? {
            Ok(_) => Ok(true),
            Err(fault) if [NOT_RUNNING, BAD_NAME].contains(&fault.code) => Ok(false),
            Err(fault) => Err(self.error(fault)),
        }
    }

    /// Holds the lease of the program, and again whenever the request has ended.
    async fn hold_lease(&self) -> Infallible {
        loop {
            match self.session.server.hold_lease(&self.program.name).await {
                Ok(mut stream) => while let Some(Ok(_)) = stream.frame().await {},
                // Other errors may pass, for instance those of a reverse proxy.
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

    /// Stops the process if it may still run, and removes the program. If that fails, the proxy removes it
    /// when the lease ends.
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
                // The removal fails, too, if the process was not stopped.
                let _ = stopping.await;
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

/// Whether the error may pass: the server does not answer, or supervisord is about to end or to restart.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Fault { fault, .. } => fault.code == SHUTDOWN_STATE,
        Error::Refused { .. } | Error::Interrupted { .. } => false,
        _ => true,
    }
}
