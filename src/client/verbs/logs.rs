//! `logs`: prints the last lines of processes' logs, and follows the logs.

use std::future::pending;
use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Session;
use crate::client::args::{Format, LogsArgs};
use crate::client::error::{Error, NOT_DONE};
use crate::client::log_stream::{BURST, LastRead, read_burst};
use crate::client::names::select;
use crate::client::signals::unless_ignored;
use crate::fault::NO_FILE;
use crate::namespec::namespec;

/// The default of `--lines`, as of tail(1).
const LINES: usize = 10;
/// How many bytes the first call reads to find the last lines.
const FIRST_READ: i64 = 16 * 1024;
/// A line of this many bytes is printed before its end arrives.
const MAX_LINE: usize = 64 * 1024;
/// The first and the longest pause between attempts to connect again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The verb stops following a log for which the server answers 404 for this long.
const MISSING_TIMEOUT: Duration = Duration::from_secs(10);
/// How many lines the channel to the printer holds.
const LINE_BUFFER: usize = 256;

const COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
];

/// Prints the last lines of each log; with `-f` follows the logs until Ctrl-C.
///
/// # Errors
/// When the server does not answer at the start, or a name is unknown.
pub async fn run(session: &Session, args: &LogsArgs) -> Result<u8, Error> {
    let (table, _) = session.table().await?;
    let names: Vec<String> = select(&table, &args.names)?
        .iter()
        .map(|info| namespec(&info.group, &info.name))
        .collect();
    let printer = Printer::new(session, &names, args.no_prefix);
    let channel = if args.stderr { "stderr" } else { "stdout" };
    if args.follow {
        return follow_all(
            session,
            &names,
            channel,
            args.lines.unwrap_or(LINES),
            printer,
        )
        .await;
    }
    let mut status = 0;
    for (index, name) in names.iter().enumerate() {
        match last_lines(session, name, channel, args.lines.unwrap_or(LINES)).await {
            Ok(text) => {
                for line in text.lines() {
                    printer.print(index, line.as_bytes())?;
                }
            }
            Err(error @ Error::Fault { .. }) => {
                say!("twiddler: {error}");
                status = NOT_DONE;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(status)
}

/// The last lines of a log. The daemon cannot return a log that is not UTF-8 from a call; then the
/// beginning of its stream is used.
async fn last_lines(
    session: &Session,
    name: &str,
    channel: &str,
    lines: usize,
) -> Result<String, Error> {
    let method = match channel {
        "stderr" => "supervisor.readProcessStderrLog",
        _ => "supervisor.readProcessStdoutLog",
    };
    let mut size = FIRST_READ;
    loop {
        let params = [name.into(), (-size).into(), 0.into()];
        let text = match session.server.call(method, &params, name).await {
            Ok(text) => text.as_str().unwrap_or_default().to_owned(),
            Err(Error::Fault { fault, .. }) if fault.code == NO_FILE => {
                return Err(Error::Fault {
                    fault,
                    subject: name.to_owned(),
                });
            }
            Err(Error::Status { .. }) => {
                let burst = read_burst(&mut session.server.follow(name, channel).await?).await;
                return Ok(tail(&String::from_utf8_lossy(&burst), lines).to_owned());
            }
            Err(error) => return Err(error),
        };
        let is_complete = i64::try_from(text.len()).is_ok_and(|length| length < size);
        if is_complete || text.lines().count() > lines {
            return Ok(tail(&text, lines).to_owned());
        }
        size = size.saturating_mul(4);
    }
}

/// The path of a process's log file.
async fn log_path(session: &Session, name: &str, channel: &str) -> Option<String> {
    let method = "supervisor.getProcessInfo";
    let info = session.server.try_call(method, &[name.into()]).await;
    let path = format!("{channel}_logfile");
    Some(info.ok()?.ok()?.get(&path)?.as_str()?.to_owned())
}

/// The last `lines` lines of a text.
fn tail(text: &str, lines: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let mut breaks = body.rmatch_indices('\n');
    match lines {
        0 => "",
        lines => breaks
            .nth(lines - 1)
            .map_or(text, |(at, _)| &text[at + 1..]),
    }
}

/// The part of `log` up to the end of `burst`: the stream that began with `burst` continues there. The
/// first line of `burst` may be incomplete and is not compared. Returns `burst` if `log` does not contain
/// it, for instance after a rotation.
fn up_to<'t>(log: &'t str, burst: &'t str) -> &'t str {
    let lines = burst.split_once('\n').map_or("", |(_, lines)| lines);
    match log.rfind(lines) {
        Some(at) if !lines.is_empty() => &log[..at + lines.len()],
        _ => burst,
    }
}

/// Follows all logs concurrently until Ctrl-C, or until the last of them is gone.
async fn follow_all(
    session: &Session,
    names: &[String],
    channel: &str,
    lines: usize,
    printer: Printer,
) -> Result<u8, Error> {
    let mut interrupt = unless_ignored(SignalKind::interrupt())?;
    let (out, mut received) = mpsc::channel::<(usize, Vec<u8>)>(LINE_BUFFER);
    let mut followers = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let follower = Follower {
            session,
            name,
            channel,
            index,
            out: out.clone(),
            last_read: LastRead::default(),
            path: log_path(session, name, channel).await,
            line: Vec::new(),
        };
        followers.push(follower.run(lines));
    }
    drop(out);
    let following = futures_util::future::join_all(followers);
    let printing = async {
        while let Some((index, line)) = received.recv().await {
            printer.print(index, &line)?;
        }
        Ok::<(), io::Error>(())
    };
    let ctrl_c = async {
        match &mut interrupt {
            Some(interrupt) => interrupt.recv().await,
            None => pending().await,
        }
    };
    tokio::select! {
        _ = ctrl_c => Ok(0),
        result = printing => result.map(|()| NOT_DONE).map_err(Error::from),
        results = following => {
            results.into_iter().find_map(Result::err).map_or(Ok(NOT_DONE), Err)
        }
    }
}

/// Follows one log across restarts of the process and of the daemon.
struct Follower<'a> {
    session: &'a Session,
    name: &'a str,
    channel: &'a str,
    index: usize,
    out: mpsc::Sender<(usize, Vec<u8>)>,
    last_read: LastRead,
    /// The path of the log file that the stream reads.
    path: Option<String>,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
}

impl Follower<'_> {
    /// Prints the last lines, then follows the log until it is missing for [`MISSING_TIMEOUT`] or the
    /// server refuses the credentials.
    async fn run(mut self, lines: usize) -> Result<(), Error> {
        let mut stream = self.session.server.follow(self.name, self.channel).await;
        if let Err(Error::Status { status: 404, .. }) = stream {
            say!("twiddler: {} has no log file", self.name);
            return Ok(());
        }
        if let Ok(stream) = &mut stream {
            self.begin(stream, lines).await?;
        }
        loop {
            if let Ok(stream) = &mut stream {
                while let Some(Ok(frame)) = stream.frame().await {
                    if let Ok(data) = frame.into_data() {
                        self.take(&data).await;
                    }
                }
            }
            stream = match self.connect_again().await {
                Some(stream) => Ok(stream),
                None => return Ok(()),
            };
            if let Ok(stream) = &mut stream {
                let burst = read_burst(stream).await;
                // supervisord creates a new log file at its start, unless the program names one.
                let path = log_path(self.session, self.name, self.channel).await;
                if path != self.path {
                    self.last_read = LastRead::default();
                    self.path = path;
                }
                let new_part = self.last_read.new_part(&burst).to_vec();
                self.take(&new_part).await;
            }
        }
    }

    /// Prints the last lines of the log as it was when the stream began. The stream continues behind them.
    async fn begin(&mut self, stream: &mut Incoming, lines: usize) -> Result<(), Error> {
        let burst = read_burst(stream).await;
        self.last_read.push(&burst);
        let text = String::from_utf8_lossy(&burst);
        let last = if burst.len() < BURST || text.lines().count() > lines {
            tail(&text, lines).to_owned()
        } else {
            // The log may have grown since the stream began. `up_to` cuts off the lines that the stream
            // brings, too, so more lines than `lines` are read.
            let more = lines.saturating_add(BURST);
            let log = last_lines(self.session, self.name, self.channel, more).await?;
            tail(up_to(&log, &text), lines).to_owned()
        };
        self.print(last.as_bytes()).await;
        Ok(())
    }

    /// Opens the stream again, after the daemon has restarted or the connection has broken. `None` if the
    /// log is gone or the server refuses the credentials.
    async fn connect_again(&self) -> Option<Incoming> {
        let mut pause = FIRST_PAUSE;
        let mut missing_since: Option<Instant> = None;
        loop {
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            match self.session.server.follow(self.name, self.channel).await {
                Ok(stream) => return Some(stream),
                Err(Error::Status { status: 404, .. }) => {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > MISSING_TIMEOUT {
                        say!("twiddler: {} is gone", self.name);
                        return None;
                    }
                }
                Err(Error::Refused { server }) => {
                    say!("twiddler: {server} refuses the credentials now");
                    return None;
                }
                Err(_) => missing_since = None,
            }
        }
    }

    async fn take(&mut self, data: &[u8]) {
        self.last_read.push(data);
        self.print(data).await;
    }

    async fn print(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() > MAX_LINE {
                let mut line = std::mem::take(&mut self.line);
                line.truncate(line.trim_ascii_end().len());
                // Without a receiver the command is about to end.
                let _ = self.out.send((self.index, line)).await;
            }
        }
    }
}

/// Prints lines with a prefix that names their process.
struct Printer {
    format: Format,
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl Printer {
    /// With one process, or with `no_prefix`, the prefixes are empty.
    fn new(session: &Session, names: &[String], no_prefix: bool) -> Self {
        let width = names.iter().map(|name| name.chars().count()).max();
        let width = width.unwrap_or_default();
        let prefix = |(index, name): (usize, &String)| {
            let style = if session.output.colored {
                Style::new().fg_color(Some(COLORS[index % COLORS.len()].into()))
            } else {
                Style::new()
            };
            format!("{style}{name:width$} |{style:#} ")
        };
        let prefixes = if names.len() > 1 && !no_prefix {
            names.iter().enumerate().map(prefix).collect()
        } else {
            vec![String::new(); names.len()]
        };
        Printer {
            format: session.output.format,
            names: names.to_vec(),
            prefixes,
        }
    }

    fn print(&self, index: usize, line: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.format == Format::Json {
            let line = serde_json::json!({
                "name": self.names[index],
                "line": String::from_utf8_lossy(line),
            });
            return writeln!(out, "{line}");
        }
        out.write_all(self.prefixes[index].as_bytes())?;
        out.write_all(line)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_the_stream_brings_are_cut_off() {
        for (log, burst, expected) in [
            ("a\nb\nc\nd\n", "b\nc\n", "a\nb\nc\n"),
            ("a\nb\nc\nd\n", "x\nc\n", "a\nb\nc\n"),
            ("new\n", "b\nc\n", "b\nc\n"),
            ("a\nbc", "b", "b"),
        ] {
            assert_eq!(up_to(log, burst), expected, "{log:?} {burst:?}");
        }
    }

    #[test]
    fn tail_returns_complete_lines() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\n", 0, ""),
            ("", 3, ""),
            ("\n\n\n", 1, "\n"),
        ] {
            assert_eq!(tail(text, lines), expected, "{text:?} {lines}");
        }
    }
}
