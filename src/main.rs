//! `twiddler`: parses the arguments, runs the proxy, a check or a verb, and returns the exit code.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::CommandFactory;
use clap_complete::CompleteEnv;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use supervisor_twiddler::access::AccessRules;
use supervisor_twiddler::audit::Floods;
use supervisor_twiddler::cli::{Args, Command};
use supervisor_twiddler::client;
use supervisor_twiddler::config::{Config, Draft, ServeArgs};
use supervisor_twiddler::current::Current;
use supervisor_twiddler::daemon::{Daemon, MainLog};
use supervisor_twiddler::include_dir;
use supervisor_twiddler::lease::{self, Leases};
use supervisor_twiddler::logging::{self, LevelHandle};
use supervisor_twiddler::reload::Live;
use supervisor_twiddler::request_log::RequestLog;
use supervisor_twiddler::routes;
use supervisor_twiddler::rpc::Rpc;
use supervisor_twiddler::server;
use supervisor_twiddler::start::{self, StartError};
use supervisor_twiddler::twiddler::Twiddler;
use supervisor_twiddler::update::Updates;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Returns freed memory to the system. The C library's allocator keeps twice the largest block that was
/// ever freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The log message for the default of `listen`, which used to be a port.
const BESIDE_DAEMON: &str = "no listen is written, so whoever may open supervisord's socket may open this one beside it; 127.0.0.1:9002, the former default, would let in every account of this machine";
/// Exit code: the proxy failed.
const FAILED: u8 = 1;
/// Exit code: the configuration is not valid, so that another start fails, too.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    // Where a shell asks for completions, this prints them and exits.
    CompleteEnv::with_factory(Args::command).complete();
    let Args {
        client: before,
        command,
    } = Args::read(std::env::args_os());
    match command {
        Command::Serve(args) => {
            start::set_purge_delay();
            match Config::load(&args) {
                Ok(config) => {
                    let settings = &config.settings;
                    let level = logging::start(settings.log_level, settings.log_format);
                    raise_file_limit();
                    serve(args, config, level)
                }
                Err(errors) => report(&StartError::Misconfigured(errors.to_string())),
            }
        }
        Command::Check(args) => check(&Draft::load(&args), &arguments_of_check()),
        Command::CleanUp {
            dir,
            file_name,
            persist_name,
        } => {
            include_dir::clean_up_after_proxy(&dir, file_name, persist_name);
            ExitCode::SUCCESS
        }
        Command::Client(verb) => client::main(before, verb, Args::command()),
    }
}

fn serve(args: ServeArgs, config: Config, level: LevelHandle) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime.context("cannot start") {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let outcome = runtime.block_on(run(args, config, level));
    // Drops the remaining tasks, and with them the generated files, without waiting for blocking work.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Prints the error, a line for each sentence, and returns its exit code.
fn report(error: &StartError) -> ExitCode {
    for line in error.to_string().lines() {
        let _ = writeln!(std::io::stderr(), "twiddler: {line}");
    }
    ExitCode::from(match error {
        StartError::Misconfigured(_) => BAD_CONFIGURATION,
        StartError::Failed(_) => FAILED,
    })
}

/// The arguments behind `check`. The options in front of it are for the verbs and may contain a password.
fn arguments_of_check() -> Vec<String> {
    let all = std::env::args_os().skip_while(|argument| argument != "check");
    all.skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

#[tokio::main(flavor = "current_thread")]
async fn check(draft: &Draft, arguments: &[String]) -> ExitCode {
    let findings = supervisor_twiddler::check::check(draft, arguments).await;
    for line in findings.lines() {
        // The reader may have closed the pipe, as with `| head`. The exit code counts all the same.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    if findings.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(BAD_CONFIGURATION)
    }
}

/// Raises the soft limit of open files to the hard limit: each connection takes a descriptor, and the
/// default soft limit is low.
fn raise_file_limit() {
    let result = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = result {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Starts the proxy and runs it until a signal ends it. It runs on one thread: the daemon has only one,
/// too, and tasks of one thread need no locks across threads.
async fn run(args: ServeArgs, config: Config, level: LevelHandle) -> Result<(), StartError> {
    let settings = &config.settings;
    // The handlers are installed first. A signal without a handler would end the process without a
    // shutdown, or have no effect on the first process of a container.
    let signals = count_stop_signals()?;
    let hangups = signal(SignalKind::hangup()).context("cannot wait for signals")?;
    let daemon = Arc::new(Daemon::with(
        config.daemon.clone(),
        config.credentials.clone(),
        config.daemon_conf.descriptors(),
    )?);
    let include = start::include_dir(&config.include, "", Some(&daemon)).await?;
    let conf = &config.daemon_conf;
    let twiddler = Twiddler::open(daemon.clone(), include, conf.file.clone(), settings.persist)
        .map_err(|error| StartError::Misconfigured(error.to_string()))?;
    let main_log = MainLog::new(conf.logfile.clone(), conf.loglevel);
    let main_file = conf.file.display().to_string();
    let access = Arc::new(Current::new(config.access_rules(&daemon)));
    let policy = Arc::new(Current::new(settings.policy()));
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if settings.is_beside_daemon {
        tracing::info!("{BESIDE_DAEMON}");
    }
    let updates = Updates::open(twiddler.clone(), settings.live_update);
    let rpc = Arc::new(Rpc::new(
        daemon.clone(),
        twiddler.clone(),
        updates.clone(),
        policy.clone(),
        main_log,
        main_file,
    ));
    let tls = start::tls(settings)?;
    let (mut listeners, mut urls) = (Vec::new(), Vec::new());
    for address in &settings.listen {
        let listener = start::listen(address, settings).await?;
        let url = match &tls {
            Some(_) => listener.url().replacen("http://", "https://", 1),
            None => listener.url(),
        };
        tracing::info!("listening on {url}");
        listeners.push(listener);
        urls.push(url);
    }
    let proxy_url = start::child_url(&listeners, settings, &daemon).await;
    twiddler.listens_on(&urls.join(", "), proxy_url);
    tokio::spawn(updates.clone().watch_files());
    tokio::spawn(updates.watch());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "in front of supervisord at {}",
        config.daemon
    );
    let (warned_daemon, conf, settings) = (daemon.clone(), conf.clone(), settings.clone());
    tokio::spawn(async move { start::warn(&warned_daemon, &conf, &settings).await });
    let endings = rpc.endings();
    let leases = Arc::new(Leases::default());
    tokio::spawn(lease::watch(rpc.clone(), leases.clone()));
    let app = AccessRules::guard(access.clone(), routes::app(rpc, leases));
    let floods = Arc::new(Floods::default());
    let app = RequestLog::new(daemon.clone(), floods.clone()).guard(app);
    reload_at_hangup(
        hangups,
        Live {
            args,
            config,
            daemon,
            access,
            policy,
            tls: tls.clone(),
            level,
        },
    );
    let serving = async {
        let stop = async {
            first_stop_signal(signals.clone()).await;
            endings.hurry();
        };
        server::serve(listeners, app, tls, floods.clone(), stop).await;
        // The end of the daemon goes on even if the client that called for it has disconnected.
        let _ = tokio::time::timeout(server::GRACE, endings.finished()).await;
        floods.flush();
        twiddler.shut_down(server::GRACE).await;
    };
    tokio::select! {
        () = serving => {
            tracing::info!("stopped");
            Ok(())
        }
        why = twiddler.lock_lost() => Err(anyhow!(why).into()),
        () = stop_signals(signals.clone(), 2) => {
            Err(anyhow!("asked to stop twice: cut what was under way").into())
        }
    }
}

/// Reloads the options at each SIGHUP.
fn reload_at_hangup(mut hangups: Signal, mut live: Live) {
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            live.reload().await;
        }
    });
}

/// Signals that must not end the proxy: an operator may send them to all daemons (supervisord itself
/// reopens its logs at SIGUSR2), and SIGHUP may arrive before its handler is installed.
const HARMLESS: [SignalKind; 6] = [
    SignalKind::hangup(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
    SignalKind::alarm(),
    SignalKind::io(),
    SignalKind::pipe(),
];

/// Counts SIGTERM and SIGINT, and lets the signals in [`HARMLESS`] have no effect.
fn count_stop_signals() -> anyhow::Result<watch::Receiver<u32>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for harmless in HARMLESS {
        // tokio's handler replaces the default action, and stays when the stream is dropped.
        drop(signal(harmless)?);
    }
    let (count, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            either(&mut terminate, &mut interrupt).await;
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// Waits for the first signal that asks the proxy to stop.
async fn first_stop_signal(signals: watch::Receiver<u32>) {
    stop_signals(signals, 1).await;
    tracing::info!("stopping: no new connections");
}

/// Waits until `expected` signals have arrived.
async fn stop_signals(mut signals: watch::Receiver<u32>, expected: u32) {
    if signals.wait_for(|count| *count >= expected).await.is_err() {
        std::future::pending().await
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
