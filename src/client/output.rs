//! Printing: results go to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value as Json;

use super::args::{ColorChoice, Format};
use super::verbs::programs::ProgramInfo;
use crate::daemon::{ProcessInfo, ProcessState};
use crate::namespec::namespec;
use crate::xmlrpc::Value;

/// A spinner appears after this time of waiting.
const SPINNER_DELAY: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
/// The text of a cell without a value.
const NO_VALUE: &str = "-";
/// A table shows this many letters of a note; `-o json` has all of them.
const MAX_NOTE: usize = 200;
/// Spaces between columns.
const COLUMN_GAP: usize = 2;
/// The smallest width of a column whose text is wrapped.
const MIN_WRAPPED_WIDTH: usize = 10;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The form of results.
    pub format: Format,
    /// Whether to use colours.
    pub colored: bool,
}

impl Output {
    /// Colours are on by `ColorChoice::Always`, and by default where standard output is a terminal,
    /// `TERM` is not `dumb` and `NO_COLOR` is not set (<https://no-color.org>).
    pub fn new(format: Option<Format>, color: Option<ColorChoice>) -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let colored = match color.unwrap_or(ColorChoice::Auto) {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => !forbidden && io::stdout().is_terminal(),
        };
        Output {
            format: format.unwrap_or_default(),
            colored,
        }
    }

    /// Prints one line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn line(self, text: &str) -> io::Result<()> {
        writeln!(io::stdout(), "{text}")
    }

    /// Prints a result of the server as JSON.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json(self, value: &Value) -> io::Result<()> {
        self.line(&format!("{:#}", json(value)))
    }

    /// Prints names: one a line, or as a JSON array.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn names<'a>(self, names: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        if self.format == Format::Json {
            let names = names.into_iter().map(Value::from).collect();
            return self.json(&Value::Array(names));
        }
        names.into_iter().try_for_each(|name| self.line(name))
    }

    /// Prints a table of processes that fits the terminal.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn processes(self, infos: &[ProcessInfo]) -> io::Result<()> {
        let rows = infos.iter().map(|info| self.row(info)).collect();
        self.table(&["NAME", "STATE", "PID", "UPTIME", "NOTE"], rows)
    }

    /// Prints a table of programs that fits the terminal.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn programs(self, programs: &[ProgramInfo]) -> io::Result<()> {
        let row = |info: &ProgramInfo| {
            vec![
                Cell::new(info.namespec()),
                Cell::new(&info.origin),
                Cell::new(&info.kind),
                Cell::new(info.numprocs),
                Cell::new(info.processes.join(" ")),
            ]
        };
        let header = ["NAME", "ORIGIN", "KIND", "NUMPROCS", "PROCESSES"];
        self.table(&header, programs.iter().map(row).collect())
    }

    /// Prints a table. On a terminal, the last column is wrapped into the remaining width, and columns on
    /// the right are dropped where it would be too narrow.
    fn table(self, header: &[&str], mut rows: Vec<Vec<Cell>>) -> io::Result<()> {
        let mut table = Table::new();
        let terminal_width = table.width().filter(|_| io::stdout().is_terminal());
        let count = terminal_width.map_or(header.len(), |width| {
            columns_that_fit(&widths(header, &rows), usize::from(width))
        });
        let header = &header[..count];
        rows.iter_mut().for_each(|row| row.truncate(count));
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(header)
            .set_constraints(vec![ColumnConstraint::ContentWidth; header.len() - 1]);
        if self.colored {
            table.enforce_styling();
            // `Output::new` has taken NO_COLOR into account.
            crossterm::style::force_color_output(true);
        }
        if !io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        if !self.colored {
            table.force_no_tty();
        }
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, u16::try_from(COLUMN_GAP).unwrap_or_default()));
        }
        table
            .lines()
            .try_for_each(|line| self.line(line.trim_end()))
    }

    fn row(self, info: &ProcessInfo) -> Vec<Cell> {
        let uptime = info
            .description
            .split_once("uptime ")
            .map(|(_, uptime)| uptime);
        let note = if uptime.is_some() {
            ""
        } else {
            &info.description
        };
        let pid = match info.pid {
            0 => NO_VALUE.to_owned(),
            pid => pid.to_string(),
        };
        vec![
            Cell::new(namespec(&info.group, &info.name)),
            Cell::new(&info.state_name).fg(color(info.state)),
            Cell::new(pid),
            Cell::new(uptime.unwrap_or(NO_VALUE)),
            Cell::new(shortened(note)),
        ]
    }
}

/// The widths of a table's columns, in letters.
fn widths(header: &[&str], rows: &[Vec<Cell>]) -> Vec<usize> {
    let width = |(index, name): (usize, &&str)| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        let cells = cells.map(|cell| cell.content().chars().count());
        cells.chain([name.len()]).max().unwrap_or_default()
    };
    header.iter().enumerate().map(width).collect()
}

/// How many columns of these widths fit into `terminal_width`, two at least. The last of them may be
/// wrapped.
fn columns_that_fit(widths: &[usize], terminal_width: usize) -> usize {
    let fits = |count: &usize| {
        let (last, others) = widths[..*count].split_last().unwrap_or((&0, &[]));
        let others: usize = others.iter().map(|width| width + COLUMN_GAP).sum();
        others + (*last).min(MIN_WRAPPED_WIDTH) <= terminal_width
    };
    (2..=widths.len()).rev().find(fits).unwrap_or(2)
}

/// The first letters of a note. The note of a program that could not be started may contain its whole
/// command.
fn shortened(note: &str) -> String {
    match note.char_indices().nth(MAX_NOTE) {
        None => note.to_owned(),
        Some((end, _)) => format!("{}…", &note[..end]),
    }
}

fn color(state: ProcessState) -> Color {
    match state {
        ProcessState::Running => Color::Green,
        ProcessState::Starting | ProcessState::Stopping | ProcessState::Backoff => Color::Yellow,
        ProcessState::Fatal | ProcessState::Unknown => Color::Red,
        ProcessState::Stopped | ProcessState::Exited => Color::DarkGrey,
    }
}

/// A spinner on the terminal for a wait of more than [`SPINNER_DELAY`]; it goes away when this is
/// dropped.
pub struct Waiting {
    bar: ProgressBar,
    show_later: tokio::task::JoinHandle<()>,
}

impl Waiting {
    /// Shows `waiting for {text}`; `text` is for instance `web:api to stop`.
    pub fn on(text: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(format!("waiting for {text}"));
        let spinner = bar.clone();
        let show_later = tokio::spawn(async move {
            tokio::time::sleep(SPINNER_DELAY).await;
            spinner.set_draw_target(ProgressDrawTarget::stderr());
            spinner.enable_steady_tick(TICK);
        });
        Waiting { bar, show_later }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.show_later.abort();
        self.bar.finish_and_clear();
    }
}

/// An XML-RPC value as JSON. JSON has no dates: a `dateTime.iso8601` becomes a string with dashes.
pub fn json(value: &Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Bool(truth) => Json::Bool(*truth),
        Value::Int(number) => Json::from(*number),
        Value::Double(number) => Json::from(*number),
        Value::String(text) => Json::String(text.clone()),
        Value::DateTime(text) => Json::String(iso_8601(text)),
        Value::Array(items) => Json::Array(items.iter().map(json).collect()),
        Value::Struct(members) => Json::Object(
            members
                .iter()
                .map(|(name, value)| (name.clone(), json(value)))
                .collect(),
        ),
    }
}

/// XML-RPC's `20261126T20:00:00` as `2026-11-26T20:00:00`.
fn iso_8601(text: &str) -> String {
    match (text.get(..4), text.get(4..6), text.get(6..)) {
        (Some(year), Some(month), Some(rest)) if rest.get(2..3) == Some("T") => {
            format!("{year}-{month}-{rest}")
        }
        _ => text.to_owned(),
    }
}

/// A word of the command line as a value: JSON if it is valid JSON, else a string.
pub fn value(word: &str) -> Value {
    serde_json::from_str(word).map_or_else(|_| word.into(), |json: Json| from_json(&json))
}

fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::Array(items.iter().map(from_json).collect()),
        Json::Object(members) => Value::Struct(
            members
                .iter()
                .map(|(name, value)| (name.clone(), from_json(value)))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_shortened() {
        assert_eq!(shortened("Exited too quickly"), "Exited too quickly");
        assert_eq!(shortened(&"é".repeat(MAX_NOTE)), "é".repeat(MAX_NOTE));
        let long = shortened(&"é".repeat(130_000));
        assert_eq!(long, "é".repeat(MAX_NOTE) + "…");
    }

    #[test]
    fn columns_on_the_right_are_dropped_on_a_narrow_terminal() {
        let widths = [13, 7, 5, 7, 50];
        for (room, expected) in [
            (200, 5),
            (50, 5),
            (49, 4),
            (38, 4),
            (37, 3),
            (29, 3),
            (5, 2),
        ] {
            assert_eq!(columns_that_fit(&widths, room), expected, "{room}");
        }
        assert_eq!(columns_that_fit(&[13, 7, 4], 28), 3);
    }

    #[test]
    fn words_are_json_or_strings() {
        for (word, expected) in [
            ("5", Value::Int(5)),
            ("1.5", Value::Double(1.5)),
            ("true", Value::Bool(true)),
            ("null", Value::Nil),
            ("web:api", "web:api".into()),
            ("\"5\"", "5".into()),
            ("[1, \"a\"]", Value::Array(vec![Value::Int(1), "a".into()])),
            (
                "{\"a\": 1}",
                Value::Struct(vec![("a".to_owned(), Value::Int(1))]),
            ),
            ("{a", "{a".into()),
            ("", "".into()),
        ] {
            assert_eq!(value(word), expected, "{word}");
        }
    }

    #[test]
    fn values_become_json() {
        let date = Value::DateTime("20261126T20:01:02".to_owned());
        assert_eq!(json(&date), Json::from("2026-11-26T20:01:02"));
        assert_eq!(json(&Value::Nil), Json::Null);
        let nested = Value::Struct(vec![("a".to_owned(), Value::Array(vec![Value::Int(1)]))]);
        assert_eq!(json(&nested).to_string(), r#"{"a":[1]}"#);
    }
}
