//! The registry on disk: a journal beside the generated files, one JSON line for each step.
//!
//! A change is written twice: what is about to happen, before the daemon is asked, and what did
//! happen, before the client is answered. After a crash the first without the second tells which
//! questions to put to the daemon. The name begins with a dot, so the daemon never reads it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::registry::{Event, Registry};
use crate::include_dir::IncludeDir;

/// Begins with a dot: the daemon's include pattern skips such names whatever it is.
pub const FILE_NAME: &str = ".twiddler-journal";
/// A journal this much longer than what it says is written anew.
const COMPACT_AFTER: usize = 4096;

#[derive(Serialize, Deserialize)]
enum Line {
    /// About to happen.
    Begin(Vec<Event>),
    /// Did happen; ends the last `Begin`, whatever else of it did not happen.
    Done(Vec<Event>),
    /// Did happen beside whatever is about to.
    Also(Vec<Event>),
    /// The daemon started again: of all the above, this alone holds.
    Life(Vec<Event>),
}

/// The registry together with its file.
pub struct Journal {
    registry: Registry,
    /// What was about to happen and has not ended.
    begun: Vec<Event>,
    include: Arc<IncludeDir>,
    file: Option<File>,
    lines: usize,
    /// More than one line was read.
    is_long: bool,
}

/// What a journal says, and what it leaves open.
pub struct Opened {
    /// The journal, ready for more.
    pub journal: Journal,
    /// Steps of a change that was cut short: the daemon knows whether they happened.
    pub unfinished: Vec<Event>,
}

impl Journal {
    /// Reads the journal in the include directory; none is an empty one. Lines that cannot be read are
    /// skipped with a warning, because what the daemon runs counts for more than what a file says.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(include: Arc<IncludeDir>) -> io::Result<Opened> {
        let mut registry = Registry::default();
        let mut unfinished = Vec::new();
        let file = include.read(FILE_NAME).map_err(or_remove)?;
        let read = match file {
            Some(file) => read_lines(BufReader::new(file), &mut registry, &mut unfinished)?,
            None => 0,
        };
        let journal = Journal {
            registry,
            begun: unfinished.clone(),
            include,
            file: None,
            lines: 0,
            is_long: read > 1,
        };
        Ok(Opened {
            journal,
            unfinished,
        })
    }

    /// What is known.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What was about to happen and has not ended.
    pub fn begun(&self) -> &[Event] {
        &self.begun
    }

    /// Writes down what is about to happen.
    ///
    /// # Errors
    /// When the disk does not take it; then it must not happen.
    pub fn begin(&mut self, events: &[Event]) -> io::Result<()> {
        self.append(&Line::Begin(events.to_vec()))?;
        self.begun = events.to_vec();
        self.registry.expect(events);
        Ok(())
    }

    /// Takes note of what happened of that which was about to, on disk as well as the disk allows:
    /// it has happened anyway.
    pub fn done(&mut self, events: Vec<Event>) {
        let came_to_nothing = |event: &Event| is_addition(event) && !events.contains(event);
        let leaves_values = self.begun.iter().any(came_to_nothing);
        self.begun.clear();
        self.registry.expect(&[]);
        self.apply(&events);
        self.write(&Line::Done(events), leaves_values);
    }

    /// Takes note of what happened beside whatever is about to, in the same way.
    pub fn also(&mut self, events: Vec<Event>) {
        self.apply(&events);
        self.write(&Line::Also(events), false);
    }

    /// Forgets all but these: the daemon started again. One line, so that a proxy that dies here
    /// has either life on disk and not a part of one.
    pub fn renew(&mut self, events: Vec<Event>) {
        self.begun.clear();
        self.registry.clear();
        self.apply(&events);
        self.write(&Line::Life(events), true);
    }

    /// Writes the journal anew if an earlier proxy has left more than what it says.
    pub fn tidy(&mut self) {
        if self.is_long
            && let Err(error) = self.compact()
        {
            tracing::warn!(%error, path = %self.path().display(), "the journal still has values of what was removed");
        }
    }

    /// Writes the journal anew, as short as what it says.
    ///
    /// # Errors
    /// When the new file cannot be written; the old one stays then.
    pub fn compact(&mut self) -> io::Result<()> {
        let (registry, begun) = (&self.registry, &self.begun);
        let file = self.include.replace(FILE_NAME, |file| {
            write_line(file, &Line::Done(registry.snapshot()))?;
            match begun.is_empty() {
                true => Ok(()),
                false => write_line(file, &Line::Begin(begun.clone())),
            }
        })?;
        self.file = Some(file);
        self.lines = 1;
        Ok(())
    }

    fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.registry.apply(event.clone());
        }
    }

    /// Writes the line down. Where it takes something away, or what stands there `leaves_values` of
    /// what is not there, the journal is written anew: the values of options are secrets.
    fn write(&mut self, line: &Line, leaves_values: bool) {
        let (Line::Begin(events) | Line::Done(events) | Line::Also(events) | Line::Life(events)) =
            line;
        let forgets = leaves_values || events.iter().any(Event::takes_away);
        if forgets && self.compact().is_ok() {
            return;
        }
        if let Err(error) = self.append(line) {
            tracing::error!(%error, path = %self.path().display(), "the journal cannot be written: what was changed is known until this proxy ends");
        }
        self.compact_if_long();
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        if !self.is_in_place() {
            self.compact()?;
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

    fn compact_if_long(&mut self) {
        let live = self.registry.members().count() + self.registry.hidden().count();
        if self.lines > COMPACT_AFTER + 2 * live
            && let Err(error) = self.compact()
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
    unfinished: &mut Vec<Event>,
) -> io::Result<usize> {
    let mut lines = 0;
    for (number, line) in reader.split(b'\n').enumerate() {
        lines += 1;
        match serde_json::from_slice(&line?) {
            Ok(Line::Begin(events)) => {
                keep_numbers(&events, registry);
                *unfinished = events;
            }
            Ok(Line::Done(events)) => {
                unfinished.clear();
                events.into_iter().for_each(|event| registry.apply(event));
            }
            Ok(Line::Also(events)) => events.into_iter().for_each(|event| registry.apply(event)),
            Ok(Line::Life(events)) => {
                unfinished.clear();
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

    fn open(dir: &std::path::Path) -> io::Result<Opened> {
        let include = IncludeDir::open(dir.to_owned(), "zz-twiddler.conf".to_owned())?;
        Journal::open(Arc::new(include))
    }

    fn group(name: &str) -> Event {
        Event::Group {
            name: name.to_owned(),
            priority: 999,
        }
    }

    #[test]
    fn what_was_done_is_known_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).unwrap().journal;
        journal.begin(&[group("a")]).unwrap();
        journal.done(vec![group("a")]);
        journal.begin(&[group("b"), Event::Next(7)]).unwrap();
        let opened = open(dir.path()).unwrap();
        assert_eq!(
            opened.journal.registry().added_groups().collect::<Vec<_>>(),
            ["a"]
        );
        assert_eq!(opened.unfinished, [group("b"), Event::Next(7)]);
        assert_eq!(opened.journal.registry().next(), 7);
    }

    #[test]
    fn what_is_noted_beside_a_change_does_not_end_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).unwrap().journal;
        journal.begin(&[group("b")]).unwrap();
        journal.also(vec![group("a")]);
        journal.compact().unwrap();
        let mut again = open(dir.path()).unwrap();
        assert_eq!(again.unfinished, [group("b")]);
        again.journal.done(vec![group("b")]);
        let opened = open(dir.path()).unwrap();
        assert!(opened.unfinished.is_empty());
        assert_eq!(opened.journal.registry().added_groups().count(), 2);
    }

    #[test]
    fn a_journal_that_was_taken_away_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).unwrap().journal;
        journal.done(vec![group("a")]);
        std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        journal.done(vec![group("b")]);
        let opened = open(dir.path()).unwrap();
        assert_eq!(opened.journal.registry().added_groups().count(), 2);
    }

    #[test]
    fn what_was_removed_or_refused_leaves_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).unwrap().journal;
        let text = || std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let gone = |name: &str| Event::GroupGone {
            name: name.to_owned(),
        };
        journal.done(vec![group("canary")]);
        assert!(text().contains("canary"));
        journal.done(vec![gone("canary")]);
        assert!(!text().contains("canary"), "{}", text());
        journal.done(vec![group("canary")]);
        journal.also(vec![gone("canary")]);
        assert!(!text().contains("canary"), "{}", text());
        journal.done(vec![group("canary")]);
        journal.renew(Vec::new());
        assert!(!text().contains("canary"), "{}", text());
        // As an earlier version left it.
        std::fs::write(
            dir.path().join(FILE_NAME),
            "{\"Done\":[{\"Group\":{\"name\":\"canary\",\"priority\":1}}]}\n\
             {\"Done\":[{\"GroupGone\":{\"name\":\"canary\"}}]}\n",
        )
        .unwrap();
        open(dir.path()).unwrap().journal.tidy();
        assert!(!text().contains("canary"), "{}", text());
    }

    #[test]
    fn a_line_cut_short_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).unwrap().journal;
        journal.done(vec![group("a")]);
        let path = dir.path().join(FILE_NAME);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"Done\":[{\"Gro");
        std::fs::write(&path, text).unwrap();
        let opened = open(dir.path()).unwrap();
        assert_eq!(opened.journal.registry().added_groups().count(), 1);
    }

    #[test]
    fn a_daemon_that_started_again_leaves_what_it_has_and_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path()).unwrap().journal;
        journal.done(vec![Event::Marker("m".into()), group("a"), Event::Next(3)]);
        for left in [vec![group("b")], Vec::new()] {
            journal.renew(left.clone());
            let opened = open(dir.path()).unwrap().journal;
            let mut expected = vec![Event::Next(3)];
            expected.extend(left);
            assert_eq!(opened.registry().snapshot(), expected);
        }
    }
}
