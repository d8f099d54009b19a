//! `twiddler`: reads arguments, starts logging, serves, and says by its exit code how it went.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use supervisor_twiddler::cli::{Args, Command};
use supervisor_twiddler::config::{Config, Draft};
use supervisor_twiddler::daemon::Daemon;
use supervisor_twiddler::doors::Doors;
use supervisor_twiddler::logging;
use supervisor_twiddler::password::Login;
use supervisor_twiddler::rpc::Rpc;
use supervisor_twiddler::server;
use supervisor_twiddler::start::{self, StartError};
use supervisor_twiddler::tls::Tls;
use supervisor_twiddler::twiddler::{MainLog, Twiddler};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// It failed while running.
const FAILED: u8 = 1;
/// It was told something that cannot be right; starting it again does not help.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Serve(args) => match Config::load(&args) {
            Ok(config) => {
                logging::start(config.settings.log_level, config.settings.log_format);
                raise_file_limit();
                serve(config)
            }
            Err(errors) => ended(&StartError::Misconfigured(errors.to_string())),
        },
        Command::Check(args) => check(&Draft::load(&args)),
    }
}

fn serve(config: Config) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime.context("cannot start") {
        Ok(runtime) => runtime,
        Err(error) => return ended(&error.into()),
    };
    let outcome = runtime.block_on(run(config));
    // Drops what is under way, and with it generated files; waits for nothing.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ended(&error),
    }
}

/// Says why it ends, each sentence on a line of its own.
fn ended(error: &StartError) -> ExitCode {
    for line in error.to_string().lines() {
        eprintln!("twiddler: {line}");
    }
    ExitCode::from(match error {
        StartError::Misconfigured(_) => BAD_CONFIGURATION,
        StartError::Failed(_) => FAILED,
    })
}

#[tokio::main(flavor = "current_thread")]
async fn check(draft: &Draft) -> ExitCode {
    let findings = supervisor_twiddler::check::check(draft).await;
    for line in findings.lines() {
        println!("{line}");
    }
    if findings.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(BAD_CONFIGURATION)
    }
}

/// Connections take descriptors, of which few are given by default but many may be had.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// One thread is enough in front of a daemon that has one, and spares handing calls across.
async fn run(config: Config) -> Result<(), StartError> {
    let settings = &config.settings;
    // First of all: a signal that comes before its handler ends the process its own way, or, for
    // the first process of a container, does nothing.
    let signals = signals()?;
    let daemon = Arc::new(Daemon::new(
        config.daemon.clone(),
        config.credentials.clone(),
    )?);
    let include = start::include_dir(&config.include, "", &daemon).await?;
    let conf = &config.daemon_conf;
    let twiddler = Twiddler::open(daemon.clone(), include, conf.file.clone(), settings.persist)
        .map_err(|error| start::unusable_dir(&config.include.dir, &error))?;
    let main_log = MainLog::new(conf.logfile.clone(), conf.loglevel);
    let main_file = conf.file.display().to_string();
    let doors = Doors::new(
        settings.login.clone(),
        daemon.own_authorization().cloned(),
        &settings.hosts,
        daemon.is_open(),
    )
    .knowing(asked_for(&config));
    for address in &settings.opened {
        tracing::warn!(
            "{address} is open: whoever reaches it can run commands as supervisord's user"
        );
    }
    let rpc = Rpc::new(
        daemon,
        twiddler.clone(),
        settings.whitelist.clone(),
        main_log,
        main_file,
    )
    .allowing(settings.allow.clone());
    let tls = start::tls(settings)?;
    read_again_on_hangup(tls.clone())?;
    let mut listeners = Vec::new();
    for address in &settings.listen {
        let listener = start::listen(address, settings).await?;
        let url = match &tls {
            Some(_) => listener.url().replacen("http://", "https://", 1),
            None => listener.url(),
        };
        tracing::info!("listening on {url}");
        listeners.push(listener);
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "in front of supervisord at {}",
        config.daemon
    );
    let doors = match &tls {
        Some(_) => doors.behind_tls(),
        None => doors,
    };
    let app = doors.guard(supervisor_twiddler::http::app(Arc::new(rpc)));
    let served = async {
        server::serve(listeners, app, tls, asked_to_stop(signals.clone())).await;
        twiddler.wind_up(server::GRACE).await;
    };
    tokio::select! {
        () = served => {
            tracing::info!("stopped");
            Ok(())
        }
        () = asked(signals.clone(), 2) => {
            Err(anyhow!("asked to stop twice: cut what was under way").into())
        }
    }
}

/// What the daemon asks callers for, as far as its file tells.
fn asked_for(config: &Config) -> Option<Login> {
    let asked = config.credentials.as_ref()?;
    Login::new(&asked.username, &asked.password).ok()
}

/// SIGHUP means new certificates. Where there are none, it means nothing, and ends nothing.
fn read_again_on_hangup(tls: Option<Arc<Tls>>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match tls.as_ref().map(|tls| tls.reload()) {
                Some(Ok(())) => tracing::info!("read certificate and key again"),
                Some(Err(error)) => tracing::error!(%error, "the former certificate stays in use"),
                None => tracing::info!("nothing to read again"),
            }
        }
    });
    Ok(())
}

/// Counts the signals that ask the proxy to stop.
fn signals() -> anyhow::Result<watch::Receiver<u32>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            either(&mut terminate, &mut interrupt).await;
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(counted)
}

/// Done when the first signal comes that asks the proxy to stop.
async fn asked_to_stop(signals: watch::Receiver<u32>) {
    asked(signals, 1).await;
    tracing::info!("stopping: no new connections");
}

/// Done when so many signals have come.
async fn asked(mut signals: watch::Receiver<u32>, times: u32) {
    if signals.wait_for(|count| *count >= times).await.is_err() {
        std::future::pending().await
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
