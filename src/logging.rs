//! The proxy's log on standard error: text or JSON, at a level that can be changed.
//!
//! Where standard error is a stream of the systemd journal (systemd.exec(5), `JOURNAL_STREAM`), each line
//! begins with its priority (sd-daemon(3)) and has no time, because the journal adds the time.

use std::io::IsTerminal;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::LogFormat;

/// Changes the level of the log.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

impl LevelHandle {
    /// Sets the level of the log.
    pub fn set(&self, level: Level) {
        if let Err(error) = self.0.reload(filter(level)) {
            tracing::error!(%error, "the log level stays as it is");
        }
    }
}

/// Starts the log on standard error.
///
/// # Panics
/// When it is called twice in a process.
pub fn start(level: Level, format: LogFormat) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match (format, is_journal()) {
        (LogFormat::Text, false) => lines.with_target(false).boxed(),
        (LogFormat::Text, true) => lines
            .with_target(false)
            .without_time()
            .map_event_format(Prioritized)
            .boxed(),
        (LogFormat::Json, false) => lines.json().flatten_event(true).boxed(),
        (LogFormat::Json, true) => lines
            .json()
            .flatten_event(true)
            .without_time()
            .map_event_format(Prioritized)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    LevelHandle(handle)
}

/// Messages of this crate from `level` on, and warnings and errors of other crates.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets([("supervisor_twiddler", level), ("twiddler", level)])
}

/// Whether standard error is a stream of the journal. A child process inherits `JOURNAL_STREAM` and may
/// have another standard error, so the device and the inode are compared.
fn is_journal() -> bool {
    let stderr = std::io::stderr();
    !stderr.is_terminal()
        && std::env::var("JOURNAL_STREAM").is_ok_and(|stream| {
            fstat(&stderr).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
        })
}

/// The lines of the format `F`, each with its priority in front.
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The priority of syslog(3) for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
