//! `twiddler`: reads arguments, starts logging, serves, and says by its exit code how it went.

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

/// Gives back what was needed once: the C library's allocator keeps twice the largest piece that was
/// ever freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What changed for those who relied on the former default.
const BESIDE_DAEMON: &str = "no listen is written, so whoever may open supervisord's socket may open this one beside it; 127.0.0.1:9002, the former default, would let in every account of this machine";
/// It failed while running.
const FAILED: u8 = 1;
/// It was told something that cannot be right; starting it again does not help.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    // A shell that completes is answered, and the process ends.
    CompleteEnv::with_factory(Args::command).complete();
    let Args {
        client: before,
        command,
    } = Args::read(std::env::args_os());
    match command {
        Command::Serve(args) => {
            start::give_back_at_once();
            match Config::load(&args) {
                Ok(config) => {
                    let settings = &config.settings;
                    let level = logging::start(settings.log_level, settings.log_format);
                    raise_file_limit();
                    serve(args, config, level)
                }
                Err(errors) => ended(&StartError::Misconfigured(errors.to_string())),
            }
        }
        Command::Check(args) => check(&Draft::load(&args), &typed_after_check()),
        Command::CleanUp {
            dir,
            file_name,
            kept_name,
        } => {
            include_dir::clean_up_after_proxy(&dir, file_name, kept_name);
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
        Err(error) => return ended(&error.into()),
    };
    let outcome = runtime.block_on(run(args, config, level));
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
        let _ = writeln!(std::io::stderr(), "twiddler: {line}");
    }
    ExitCode::from(match error {
        StartError::Misconfigured(_) => BAD_CONFIGURATION,
        StartError::Failed(_) => FAILED,
    })
}

/// The arguments of `check`. What stands before it is for other verbs, and may be a password.
fn typed_after_check() -> Vec<String> {
    let all = std::env::args_os().skip_while(|argument| argument != "check");
    all.skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

#[tokio::main(flavor = "current_thread")]
async fn check(draft: &Draft, typed: &[String]) -> ExitCode {
    let findings = supervisor_twiddler::check::check(draft, typed).await;
    for line in findings.lines() {
        // Whoever reads may have seen enough, as with `| head`.
        let _ = writeln!(std::io::stdout(), "{line}");
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
async fn run(args: ServeArgs, config: Config, level: LevelHandle) -> Result<(), StartError> {
    let settings = &config.settings;
    // First of all: a signal that comes before its handler ends the process its own way, or, for
    // the first process of a container, does nothing.
    let signals = signals()?;
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
    let (in_front_of, conf, known) = (daemon.clone(), conf.clone(), settings.clone());
    tokio::spawn(async move { start::warn(&in_front_of, &conf, &known).await });
    let endings = rpc.endings();
    let leases = Arc::new(Leases::default());
    tokio::spawn(lease::watch(rpc.clone(), leases.clone()));
    let app = AccessRules::guard(access.clone(), routes::app(rpc, leases));
    let floods = Arc::new(Floods::default());
    let app = RequestLog::new(daemon.clone(), floods.clone()).guard(app);
    read_again(
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
    let served = async {
        let stop = async {
            asked_to_stop(signals.clone()).await;
            endings.hurry();
        };
        server::serve(listeners, app, tls, floods.clone(), stop).await;
        // Also where nobody waits for it any more.
        let _ = tokio::time::timeout(server::GRACE, endings.told()).await;
        floods.flush();
        twiddler.shut_down(server::GRACE).await;
    };
    tokio::select! {
        () = served => {
            tracing::info!("stopped");
            Ok(())
        }
        why = twiddler.ousted() => Err(anyhow!(why).into()),
        () = asked(signals.clone(), 2) => {
            Err(anyhow!("asked to stop twice: cut what was under way").into())
        }
    }
}

/// Reads the options again at each SIGHUP.
fn read_again(mut hangups: Signal, mut live: Live) {
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            live.read_again().await;
        }
    });
}

/// Signals that mean something to other daemons (supervisord itself opens its logs again on SIGUSR2),
/// or here a little later.
const HARMLESS: [SignalKind; 6] = [
    SignalKind::hangup(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
    SignalKind::alarm(),
    SignalKind::io(),
    SignalKind::pipe(),
];

/// Counts the signals that ask the proxy to stop.
fn signals() -> anyhow::Result<watch::Receiver<u32>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for harmless in HARMLESS {
        // Its default action would end the process; a handler that was once there stays.
        drop(signal(harmless)?);
    }
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
