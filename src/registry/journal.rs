//! The journal: the changes of the registry on disk, beside the generated files, one JSON line for each
//! step.
//!
//! Each change has two lines: its intent before the calls to the daemon, and its outcome before the reply
//! to the client. After a crash, an intent without an outcome tells what to query from the daemon. The file
//! name begins with a dot, so the daemon never reads it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Event, Registry};
use crate::include_dir::IncludeDir;

/// Begins with a dot: the daemon's include pattern skips such names whatever it is.
const FILE_NAME: &str = ".twiddler-journal";
/// The number of excess lines after which the journal is compacted.
const COMPACT_AFTER: usize = 4096;

/// A line of the journal. The names are those of version 0.1.0.
#[derive(Serialize, Deserialize)]
enum Line {
    /// The intent of a change.
    Begin(Vec<Event>),
    /// The outcome of a change. It closes the last intent: the other steps of that were not executed.
    Done(Vec<Event>),
    /// Events that leave the open intent open.
    Also(Vec<Event>),
    /// A checkpoint. It replaces all lines before it.
    Life(Vec<Event>),
}

/// The journal file, and the open intent.
pub struct Journal {
    intent: Vec<Event>,
    include: Arc<IncludeDir>,
    file: Option<File>,
    lines: usize,
    /// Whether the file had more than one line when it was opened.
    is_long: bool,
}

impl Journal {
    /// Reads the journal in the include directory. A missing file is an empty journal. Unreadable lines are
    /// skipped with a warning, because the state of the daemon counts for more than the journal.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn open(include: Arc<IncludeDir>) -> io::Result<(Self, Registry)> {
        let mut registry = Registry::default();
        let mut intent = Vec::new();
        let file = include.read(FILE_NAME).map_err(add_removal_hint)?;
        let read = match file {
            Some(file) => read_lines(BufReader::new(file), &mut registry, &mut intent)?,
            None => 0,
        };
        let journal = Journal {
            intent,
            include,
            file: None,
            lines: 0,
            is_long: read > 1,
        };
        Ok((journal, registry))
    }

    /// The steps of the open intent. Empty if no intent is open.
    pub fn intent(&self) -> &[Event] {
        &self.intent
    }

    /// Writes `events` as the open intent. `registry` is the state before them.
    ///
    /// # Errors
    /// When the file cannot be written. The steps must not be executed then.
    pub fn begin(&mut self, events: Vec<Event>, registry: &Registry) -> io::Result<()> {
        self.append(&Line::Begin(events.clone()), registry)?;
        self.intent = events;
        Ok(())
    }

    /// Writes the outcome and closes the intent. Only logs an error, because the events have happened.
    /// `registry` is the state after them.
    pub fn close(&mut self, events: Vec<Event>, registry: &Registry) {
        let is_not_executed = |event: &Event| is_addition(event) && !events.contains(event);
        let has_stale_values = self.intent.iter().any(is_not_executed);
        self.intent.clear();
        self.write(&Line::Done(events), has_stale_values, registry);
    }

    /// Writes `events` and leaves the intent open. Only logs an error. `registry` is the state after them.
    pub fn note(&mut self, events: Vec<Event>, registry: &Registry) {
        self.write(&Line::Also(events), false, registry);
    }

    /// Replaces the contents by `registry`, and discards the intent. It is one line, so that a proxy that
    /// dies here leaves either the old or the new epoch on disk.
    pub fn checkpoint(&mut self, registry: &Registry) {
        self.intent.clear();
        self.write(&Line::Life(registry.snapshot()), true, registry);
    }

    /// Compacts the journal if an earlier proxy left more than one line.
    pub fn tidy(&mut self, registry: &Registry) {
        if self.is_long
            && let Err(error) = self.compact(registry)
        {
            tracing::warn!(%error, path = %self.path().display(), "the journal still has option values of removed programs");
        }
    }

    fn compact(&mut self, registry: &Registry) -> io::Result<()> {
        let intent = &self.intent;
        let file = self.include.replace(FILE_NAME, |file| {
            write_line(file, &Line::Done(registry.snapshot()))?;
            if intent.is_empty() {
                Ok(())
            } else {
                write_line(file, &Line::Begin(intent.clone()))
            }
        })?;
        self.file = Some(file);
        self.lines = 1;
        Ok(())
    }

    /// Writes a line. If it removes something, or if the file `has_stale_values`, the journal is compacted
    /// instead, because option values are secrets and must leave the file.
    fn write(&mut self, line: &Line, has_stale_values: bool, registry: &Registry) {
        let (Line::Begin(events) | Line::Done(events) | Line::Also(events) | Line::Life(events)) =
            line;
        let removes_values = has_stale_values || events.iter().any(Event::is_removal);
        if removes_values && self.compact(registry).is_ok() {
            return;
        }
        if let Err(error) = self.append(line, registry) {
            tracing::error!(%error, path = %self.path().display(), "the journal cannot be written: changes are lost when this proxy ends");
        }
        self.compact_if_long(registry);
    }

    /// Appends a line. Compacts first if the file was replaced or removed. The compacted file may have the
    /// events of the line already: applying an event twice changes nothing.
    fn append(&mut self, line: &Line, registry: &Registry) -> io::Result<()> {
        if !self.is_in_place() {
            self.compact(registry)?;
        }
        self.lines += 1;
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let result = write_line(file, line);
        if result.is_err() {
            // The file may end with half a line. The next line starts a new file.
            self.file = None;
        }
        result
    }

    /// Whether the open file is still the one in the directory.
    fn is_in_place(&self) -> bool {
        let is_same = |file: &File| {
            let (open_file, path_file) =
                (file.metadata().ok()?, self.path().symlink_metadata().ok()?);
            Some((open_file.dev(), open_file.ino()) == (path_file.dev(), path_file.ino()))
        };
        self.file.as_ref().and_then(is_same).unwrap_or(false)
    }

    fn path(&self) -> PathBuf {
        self.include.path().join(FILE_NAME)
    }

    fn compact_if_long(&mut self, registry: &Registry) {
        let entries = registry.members().count() + registry.hidden().count();
        if self.lines > COMPACT_AFTER + 2 * entries
            && let Err(error) = self.compact(registry)
        {
            tracing::warn!(%error, path = %self.path().display(), "the journal cannot be compacted");
            self.lines = 0;
        }
    }
}

/// Adds the alternative to remove the journal, if its permissions prevent reading it.
fn add_removal_hint(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::new(
            error.kind(),
            format!("{error}, or remove it (what was added is then read from supervisord)"),
        ),
        _ => error,
    }
}

/// Whether the event contains option values.
fn is_addition(event: &Event) -> bool {
    matches!(event, Event::Joined(_))
}

/// Writes a line with one system call, so that a crash truncates at most one line.
fn write_line(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

fn read_lines(
    reader: impl BufRead,
    registry: &mut Registry,
    intent: &mut Vec<Event>,
) -> io::Result<usize> {
    let mut lines = 0;
    for (number, line) in reader.split(b'\n').enumerate() {
        lines += 1;
        match serde_json::from_slice(&line?) {
            Ok(Line::Begin(events)) => {
                reserve_numbers(&events, registry);
                *intent = events;
            }
            Ok(Line::Done(events)) => {
                intent.clear();
                events.into_iter().for_each(|event| registry.apply(event));
            }
            Ok(Line::Also(events)) => events.into_iter().for_each(|event| registry.apply(event)),
            Ok(Line::Life(events)) => {
                intent.clear();
                registry.clear();
                events.into_iter().for_each(|event| registry.apply(event));
            }
            Err(error) => {
                tracing::warn!(line = number + 1, %error, "a line of the journal cannot be read and is skipped");
            }
        }
    }
    Ok(lines)
}

/// Marks the numbers of an intent as used. A change that failed may have used them.
fn reserve_numbers(events: &[Event], registry: &mut Registry) {
    for event in events {
        if let Event::Next(_) = event {
            registry.apply(event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal with its registry.
    struct JournalAndRegistry {
        journal: Journal,
        registry: Registry,
    }

    impl JournalAndRegistry {
        fn open(dir: &std::path::Path) -> JournalAndRegistry {
            let include = IncludeDir::open(dir.to_owned(), "zz-twiddler.conf".to_owned()).unwrap();
            let (journal, registry) = Journal::open(Arc::new(include)).unwrap();
            JournalAndRegistry { journal, registry }
        }

        fn apply(&mut self, events: &[Event]) {
            events
                .iter()
                .for_each(|event| self.registry.apply(event.clone()));
        }

        fn close(&mut self, events: Vec<Event>) {
            self.apply(&events);
            self.journal.close(events, &self.registry);
        }

        fn note(&mut self, events: Vec<Event>) {
            self.apply(&events);
            self.journal.note(events, &self.registry);
        }

        fn begin(&mut self, events: Vec<Event>) {
            self.journal.begin(events, &self.registry).unwrap();
        }

        fn checkpoint(&mut self, events: Vec<Event>) {
            self.registry.clear();
            self.apply(&events);
            self.journal.checkpoint(&self.registry);
        }

        fn groups(&self) -> Vec<&str> {
            self.registry.added_groups().collect()
        }
    }

    fn group(name: &str) -> Event {
        Event::Group {
            name: name.to_owned(),
            priority: 999,
        }
    }

    #[test]
    fn outcomes_and_the_open_intent_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        state.begin(vec![group("a")]);
        state.close(vec![group("a")]);
        state.begin(vec![group("b"), Event::Next(7)]);
        let again = JournalAndRegistry::open(dir.path());
        assert_eq!(again.groups(), ["a"]);
        assert_eq!(again.journal.intent(), [group("b"), Event::Next(7)]);
        assert_eq!(again.registry.next(), 7);
    }

    #[test]
    fn a_note_leaves_the_intent_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        state.begin(vec![group("b")]);
        state.note(vec![group("a")]);
        state.journal.compact(&state.registry).unwrap();
        let mut again = JournalAndRegistry::open(dir.path());
        assert_eq!(again.journal.intent(), [group("b")]);
        again.close(vec![group("b")]);
        let again = JournalAndRegistry::open(dir.path());
        assert!(again.journal.intent().is_empty());
        assert_eq!(again.groups(), ["a", "b"]);
    }

    #[test]
    fn a_removed_journal_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        state.close(vec![group("a")]);
        std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        state.close(vec![group("b")]);
        assert_eq!(JournalAndRegistry::open(dir.path()).groups(), ["a", "b"]);
    }

    #[test]
    fn values_of_removed_programs_leave_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        let text = || std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        state.close(vec![group("canary")]);
        assert!(text().contains("canary"));
        state.close(vec![gone("canary")]);
        assert!(!text().contains("canary"), "{}", text());
        state.close(vec![group("canary")]);
        state.note(vec![gone("canary")]);
        assert!(!text().contains("canary"), "{}", text());
        state.close(vec![group("canary")]);
        state.checkpoint(Vec::new());
        assert!(!text().contains("canary"), "{}", text());
        // A file of an earlier version.
        std::fs::write(
            dir.path().join(FILE_NAME),
            "{\"Done\":[{\"Group\":{\"name\":\"canary\",\"priority\":1}}]}\n\
             {\"Done\":[{\"GroupGone\":{\"name\":\"canary\"}}]}\n",
        )
        .unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        state.journal.tidy(&state.registry);
        assert!(!text().contains("canary"), "{}", text());
    }

    #[test]
    fn a_line_cut_short_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        state.close(vec![group("a")]);
        let path = dir.path().join(FILE_NAME);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"Done\":[{\"Gro");
        std::fs::write(&path, text).unwrap();
        assert_eq!(JournalAndRegistry::open(dir.path()).groups(), ["a"]);
    }

    #[test]
    fn a_checkpoint_keeps_its_events_and_the_next_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = JournalAndRegistry::open(dir.path());
        state.close(vec![Event::Marker("m".into()), group("a"), Event::Next(3)]);
        for left in [vec![group("b")], Vec::new()] {
            state.checkpoint(left.clone());
            let mut expected = vec![Event::Next(3)];
            expected.extend(left);
            assert_eq!(
                JournalAndRegistry::open(dir.path()).registry.snapshot(),
                expected
            );
        }
    }
}
