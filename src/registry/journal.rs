//! What clients were told, on disk: a journal beside the generated files, one JSON line for each step.
//!
//! A change is written twice: its intent before the daemon is asked, and its outcome before the client
//! is answered. After a crash the first without the second tells which questions to put to the daemon.
//! The name begins with a dot, so the daemon never reads it.

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
/// A journal this much longer than what it says is written anew.
const COMPACT_AFTER: usize = 4096;

/// The names are those of version 0.1.0.
#[derive(Serialize, Deserialize)]
enum Line {
    /// The intent of a change.
    Begin(Vec<Event>),
    /// Its outcome; it closes the last intent, whatever else of that did not happen.
    Done(Vec<Event>),
    /// Something that happened while an intent stays open.
    Also(Vec<Event>),
    /// A checkpoint: of all the above, this alone holds.
    Life(Vec<Event>),
}

/// The file, and the intent that is open.
pub struct Journal {
    intent: Vec<Event>,
    include: Arc<IncludeDir>,
    file: Option<File>,
    lines: usize,
    /// More than one line was read.
    is_long: bool,
}

impl Journal {
    /// Reads the journal in the include directory; none is an empty one. Lines that cannot be read are
    /// skipped with a warning, because what the daemon runs counts for more than what a file says.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(include: Arc<IncludeDir>) -> io::Result<(Self, Registry)> {
        let mut registry = Registry::default();
        let mut intent = Vec::new();
        let file = include.read(FILE_NAME).map_err(or_remove)?;
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

    /// The steps of a change whose outcome is not known; none where that of each is.
    pub fn intent(&self) -> &[Event] {
        &self.intent
    }

    /// Writes down what is about to happen. `registry` is what is known.
    ///
    /// # Errors
    /// When the disk does not take it; then it must not happen.
    pub fn begin(&mut self, events: Vec<Event>, registry: &Registry) -> io::Result<()> {
        self.append(&Line::Begin(events.clone()), registry)?;
        self.intent = events;
        Ok(())
    }

    /// Writes down what happened and closes the intent, as well as the disk allows: it has happened
    /// anyway. `registry` is what is known after it.
    pub fn close(&mut self, events: Vec<Event>, registry: &Registry) {
        let came_to_nothing = |event: &Event| is_addition(event) && !events.contains(event);
        let leaves_values = self.intent.iter().any(came_to_nothing);
        self.intent.clear();
        self.write(&Line::Done(events), leaves_values, registry);
    }

    /// Writes down what happened, and leaves the intent open, in the same way.
    pub fn note(&mut self, events: Vec<Event>, registry: &Registry) {
        self.write(&Line::Also(events), false, registry);
    }

    /// Forgets all but what is known now, and the intent with it. One line, so that a proxy that dies
    /// here has either epoch on disk and not a part of one.
    pub fn checkpoint(&mut self, registry: &Registry) {
        self.intent.clear();
        self.write(&Line::Life(registry.snapshot()), true, registry);
    }

    /// Writes the journal anew if an earlier proxy has left more than what it says.
    pub fn tidy(&mut self, registry: &Registry) {
        if self.is_long
            && let Err(error) = self.compact(registry)
        {
            tracing::warn!(%error, path = %self.path().display(), "the journal still has values of what was removed");
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

    /// Writes the line down. Where it takes something away, or what stands there `leaves_values` of
    /// what is not there, the journal is written anew: the values of options are secrets.
    fn write(&mut self, line: &Line, leaves_values: bool, registry: &Registry) {
        let (Line::Begin(events) | Line::Done(events) | Line::Also(events) | Line::Life(events)) =
            line;
        let forgets = leaves_values || events.iter().any(Event::takes_away);
        if forgets && self.compact(registry).is_ok() {
            return;
        }
        if let Err(error) = self.append(line, registry) {
            tracing::error!(%error, path = %self.path().display(), "the journal cannot be written: what was changed is known until this proxy ends");
        }
        self.compact_if_long(registry);
    }

    /// A file that is begun anew has what is known before the line, or has it already.
    fn append(&mut self, line: &Line, registry: &Registry) -> io::Result<()> {
        if !self.is_in_place() {
            self.compact(registry)?;
        }
        self.lines += 1;
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let written = write_line(file, line);
        if written.is_err() {
            // Half a line may stand there now: the next step begins the file anew.
            self.file = None;
        }
        written
    }

    /// Whether what is written goes to the file of that name, and not to one that was taken away.
    fn is_in_place(&self) -> bool {
        let same = |file: &File| {
            let (ours, there) = (file.metadata().ok()?, self.path().symlink_metadata().ok()?);
            Some((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        };
        self.file.as_ref().and_then(same).unwrap_or(false)
    }

    fn path(&self) -> PathBuf {
        self.include.path().join(FILE_NAME)
    }

    fn compact_if_long(&mut self, registry: &Registry) {
        let live = registry.members().count() + registry.hidden().count();
        if self.lines > COMPACT_AFTER + 2 * live
            && let Err(error) = self.compact(registry)
        {
            tracing::warn!(%error, path = %self.path().display(), "the journal cannot be shortened");
            self.lines = 0;
        }
    }
}

/// Adds what else can be done about a journal that may not be read.
fn or_remove(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::new(
            error.kind(),
            format!("{error}, or remove it (what was added is then read from supervisord)"),
        ),
        _ => error,
    }
}

/// Whether options come with it.
fn is_addition(event: &Event) -> bool {
    matches!(event, Event::Joined(_))
}

/// One write for one line, so that a crash leaves at most one that is cut short.
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
                keep_numbers(&events, registry);
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

/// A number that a change was about to use is used, whatever became of the change.
fn keep_numbers(events: &[Event], registry: &mut Registry) {
    for event in events {
        if let Event::Next(_) = event {
            registry.apply(event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal with the registry that it speaks of.
    struct Both {
        journal: Journal,
        registry: Registry,
    }

    impl Both {
        fn open(dir: &std::path::Path) -> Both {
            let include = IncludeDir::open(dir.to_owned(), "zz-twiddler.conf".to_owned()).unwrap();
            let (journal, registry) = Journal::open(Arc::new(include)).unwrap();
            Both { journal, registry }
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
    fn an_outcome_is_known_and_an_open_intent_is_found_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::open(dir.path());
        both.begin(vec![group("a")]);
        both.close(vec![group("a")]);
        both.begin(vec![group("b"), Event::Next(7)]);
        let again = Both::open(dir.path());
        assert_eq!(again.groups(), ["a"]);
        assert_eq!(again.journal.intent(), [group("b"), Event::Next(7)]);
        assert_eq!(again.registry.next(), 7);
    }

    #[test]
    fn a_note_leaves_the_intent_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::open(dir.path());
        both.begin(vec![group("b")]);
        both.note(vec![group("a")]);
        both.journal.compact(&both.registry).unwrap();
        let mut again = Both::open(dir.path());
        assert_eq!(again.journal.intent(), [group("b")]);
        again.close(vec![group("b")]);
        let again = Both::open(dir.path());
        assert!(again.journal.intent().is_empty());
        assert_eq!(again.groups(), ["a", "b"]);
    }

    #[test]
    fn a_journal_that_was_taken_away_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::open(dir.path());
        both.close(vec![group("a")]);
        std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        both.close(vec![group("b")]);
        assert_eq!(Both::open(dir.path()).groups(), ["a", "b"]);
    }

    #[test]
    fn what_was_removed_or_refused_leaves_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::open(dir.path());
        let text = || std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        both.close(vec![group("canary")]);
        assert!(text().contains("canary"));
        both.close(vec![gone("canary")]);
        assert!(!text().contains("canary"), "{}", text());
        both.close(vec![group("canary")]);
        both.note(vec![gone("canary")]);
        assert!(!text().contains("canary"), "{}", text());
        both.close(vec![group("canary")]);
        both.checkpoint(Vec::new());
        assert!(!text().contains("canary"), "{}", text());
        // As an earlier version left it.
        std::fs::write(
            dir.path().join(FILE_NAME),
            "{\"Done\":[{\"Group\":{\"name\":\"canary\",\"priority\":1}}]}\n\
             {\"Done\":[{\"GroupGone\":{\"name\":\"canary\"}}]}\n",
        )
        .unwrap();
        let mut both = Both::open(dir.path());
        both.journal.tidy(&both.registry);
        assert!(!text().contains("canary"), "{}", text());
    }

    #[test]
    fn a_line_cut_short_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::open(dir.path());
        both.close(vec![group("a")]);
        let path = dir.path().join(FILE_NAME);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"Done\":[{\"Gro");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Both::open(dir.path()).groups(), ["a"]);
    }

    #[test]
    fn a_checkpoint_leaves_what_it_says_and_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::open(dir.path());
        both.close(vec![Event::Marker("m".into()), group("a"), Event::Next(3)]);
        for left in [vec![group("b")], Vec::new()] {
            both.checkpoint(left.clone());
            let mut expected = vec![Event::Next(3)];
            expected.extend(left);
            assert_eq!(Both::open(dir.path()).registry.snapshot(), expected);
        }
    }
}
