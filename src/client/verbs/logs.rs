//! `logs`: the last lines of processes' logs, and what follows.

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
use crate::client::log_stream::{BURST, Seen, burst};
use crate::client::names::select;
use crate::client::signals::unless_ignored;
use crate::fault::NO_FILE;
use crate::namespec::namespec;

/// Lines that are printed first, as `tail` does.
const LINES: usize = 10;
/// How much of a log is read at first for its last lines.
const FIRST_READ: i64 = 16 * 1024;
/// A line without an end is printed when it is so long.
const LONGEST_LINE: usize = 64 * 1024;
/// Pauses between attempts to connect again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A log that stays missing for so long on a server that answers is gone for good.
const MISSING: Duration = Duration::from_secs(10);
/// Lines that wait to be printed.
const WAITING: usize = 256;

const COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
];

/// Prints the last lines; with `-f` goes on until Ctrl-C.
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

/// The last lines of a log. A log that is not UTF-8 cannot be read by a call; its stream can.
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
                let burst = burst(&mut session.server.follow(name, channel).await?).await;
                return Ok(tail(&String::from_utf8_lossy(&burst), lines).to_owned());
            }
            Err(error) => return Err(error),
        };
        let is_whole = i64::try_from(text.len()).is_ok_and(|read| read < size);
        if is_whole || text.lines().count() > lines {
            return Ok(tail(&text, lines).to_owned());
        }
        size = size.saturating_mul(4);
    }
}

/// The file that a process writes to.
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

/// As much of a log as was there when a stream began with `burst`, whose first line may lack its
/// beginning; the burst alone where the log does not have it any more.
fn up_to<'t>(log: &'t str, burst: &'t str) -> &'t str {
    let whole = burst.split_once('\n').map_or("", |(_, whole)| whole);
    match log.rfind(whole) {
        Some(at) if !whole.is_empty() => &log[..at + whole.len()],
        _ => burst,
    }
}

/// Follows all logs side by side until Ctrl-C, or until all of them are gone.
async fn follow_all(
    session: &Session,
    names: &[String],
    channel: &str,
    lines: usize,
    printer: Printer,
) -> Result<u8, Error> {
    let mut interrupt = unless_ignored(SignalKind::interrupt())?;
    let (out, mut waiting) = mpsc::channel::<(usize, Vec<u8>)>(WAITING);
    let mut followers = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let follower = Follower {
            session,
            name,
            channel,
            index,
            out: out.clone(),
            seen: Seen::default(),
            path: log_path(session, name, channel).await,
            line: Vec::new(),
        };
        followers.push(follower.run(lines));
    }
    drop(out);
    let following = futures_util::future::join_all(followers);
    let printing = async {
        while let Some((index, line)) = waiting.recv().await {
            printer.print(index, &line)?;
        }
        Ok::<(), io::Error>(())
    };
    let interrupted = async {
        match &mut interrupt {
            Some(interrupt) => interrupt.recv().await,
            None => pending().await,
        }
    };
    tokio::select! {
        _ = interrupted => Ok(0),
        printed = printing => printed.map(|()| NOT_DONE).map_err(Error::from),
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
    seen: Seen,
    /// The file that it was read from.
    path: Option<String>,
    /// A line that has not ended yet.
    line: Vec<u8>,
}

impl Follower<'_> {
    /// Goes on until the log is gone for good.
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
                let burst = burst(stream).await;
                // supervisord begins a new file when it starts, unless the program names one.
                let path = log_path(self.session, self.name, self.channel).await;
                if path != self.path {
                    self.seen = Seen::default();
                    self.path = path;
                }
                let fresh = self.seen.fresh(&burst).to_vec();
                self.take(&fresh).await;
            }
        }
    }

    /// Prints the last lines of what was there when the stream began, which goes on behind them.
    async fn begin(&mut self, stream: &mut Incoming, lines: usize) -> Result<(), Error> {
        let first = burst(stream).await;
        self.seen.remember(&first);
        let text = String::from_utf8_lossy(&first);
        let last = if first.len() < BURST || text.lines().count() > lines {
            tail(&text, lines).to_owned()
        } else {
            // With what was written since the stream began, which it brings too.
            let more = lines.saturating_add(BURST);
            let longer = last_lines(self.session, self.name, self.channel, more).await?;
            tail(up_to(&longer, &text), lines).to_owned()
        };
        self.print(last.as_bytes()).await;
        Ok(())
    }

    /// The stream after the daemon or the connection has come back; nothing if the log is gone.
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
                    if since.elapsed() > MISSING {
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
        self.seen.remember(data);
        self.print(data).await;
    }

    async fn print(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() > LONGEST_LINE {
                let mut line = std::mem::take(&mut self.line);
                line.truncate(line.trim_ascii_end().len());
                // Nobody prints any more: the command is ending.
                let _ = self.out.send((self.index, line)).await;
            }
        }
    }
}

/// Prints lines with the names of their processes in front.
struct Printer {
    format: Format,
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl Printer {
    /// A name stands in front only where there are several.
    fn new(session: &Session, names: &[String], is_plain: bool) -> Self {
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
        let prefixes = if names.len() > 1 && !is_plain {
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
    fn what_a_stream_brings_too_is_left_to_it() {
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
    fn the_last_lines_are_whole_lines() {
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
