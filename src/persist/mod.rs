//! The persist file: what outlives the daemon, which reads it when it starts.
//!
//! An addition that nothing else depends on is written at its end. Every other change replaces it.

mod format;

use std::io;
use std::sync::Arc;

pub use format::{Contents, real_groups, refused_member, render, stopped_group};
use format::{HEADER, is_same, is_same_but_for_address, render_placed};

use crate::daemon::conf::ConfiguredGroup;
use crate::failpoint;
use crate::include_dir::{self, FileId, Growth, IncludeDir};
use crate::registry::{Event, Registry};

/// The persist file, in the include directory.
pub struct PersistFile {
    include: Arc<IncludeDir>,
    /// What this proxy wrote last; `None` where the file may have other contents.
    written: Option<Written>,
}

/// A persist file, and everything from which its text follows.
struct Written {
    file: FileId,
    basis: Basis,
}

/// What a text follows from, besides the registry's own contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// How often the registry was changed.
    pub changes: u64,
    /// What the user's files define.
    pub configured: Vec<ConfiguredGroup>,
    /// Where placed processes call supervisord.
    pub proxy: Option<String>,
}

impl Basis {
    fn render(&self, registry: &Registry) -> String {
        render(registry, &self.configured, self.proxy.as_deref())
    }
}

/// The persist file after a change that is about to be made.
pub struct Prepared {
    events: Vec<Event>,
    basis: Basis,
    step: Step,
}

/// How the file gets there.
enum Step {
    /// It is there already; `None` where it may be another one's.
    Nothing(Option<FileId>),
    /// A new one takes its place.
    Replace(include_dir::Prepared),
    /// It grows.
    Grow(Growth),
}

impl Prepared {
    /// Whether this is the file after these events, on a registry that had been changed `changes` times.
    pub fn is_after(&self, changes: u64, events: &[Event]) -> bool {
        let is_in_file = |event: &&Event| !matches!(event, Event::Marker(_) | Event::Next(_));
        self.basis.changes == changes && events.iter().filter(is_in_file).eq(&self.events)
    }

    /// Has the disk begin with it beside other work.
    pub async fn sync(&self) {
        if let Step::Replace(file) = &self.step {
            file.sync().await;
        }
    }
}

impl PersistFile {
    /// The persist file of this directory.
    pub fn new(include: Arc<IncludeDir>) -> Self {
        PersistFile {
            include,
            written: None,
        }
    }

    /// Makes sure before a change that the file can be written after it. Takes out of the file at once what
    /// the change removes: a daemon that starts again after the change must not bring it back. If the change
    /// fails, [`PersistFile::write`] puts it in again.
    ///
    /// # Errors
    /// When the include directory or the disk does not allow it.
    pub fn prepare(
        &mut self,
        registry: &Registry,
        events: Vec<Event>,
        basis: Basis,
    ) -> io::Result<Prepared> {
        let step = match self.prepare_growth(registry, &events, &basis)? {
            Some(growth) => {
                failpoint::hit("kept without");
                Step::Grow(growth)
            }
            None => self.prepare_replacement(registry, &events, &basis)?,
        };
        Ok(Prepared {
            events,
            basis,
            step,
        })
    }

    /// Makes room for what comes, if the file is what the registry says and nothing in it changes.
    fn prepare_growth(
        &self,
        registry: &Registry,
        events: &[Event],
        basis: &Basis,
    ) -> io::Result<Option<Growth>> {
        let is_up_to_date = |written: &&Written| written.basis == *basis;
        let Some(written) = self.written.as_ref().filter(is_up_to_date) else {
            return Ok(None);
        };
        let proxy = basis.proxy.as_deref();
        let Some(text) = render_placed(registry, events, &basis.configured, proxy) else {
            return Ok(None);
        };
        self.include.prepare_growth(written.file, &text)
    }

    fn prepare_replacement(
        &mut self,
        registry: &Registry,
        events: &[Event],
        basis: &Basis,
    ) -> io::Result<Step> {
        let (removals, additions): (Vec<&Event>, Vec<&Event>) =
            events.iter().partition(|event| event.takes_away());
        let mut after = registry.clone();
        let mut text_after = |events: &[&Event]| {
            for event in events {
                after.apply((*event).clone());
            }
            basis.render(&after)
        };
        let mut file = None;
        if !removals.is_empty() {
            file = self.replace(&text_after(&removals))?;
        }
        failpoint::hit("kept without");
        if additions.is_empty() {
            return Ok(Step::Nothing(file));
        }
        let file = self.include.prepare(&text_after(&additions))?;
        Ok(Step::Replace(file))
    }

    /// Puts in place what was prepared for a change that was made.
    ///
    /// # Errors
    /// When the include directory or the disk does not allow it. The file does not have the change then.
    pub fn put(&mut self, prepared: Prepared) -> io::Result<()> {
        self.written = None;
        let file = match prepared.step {
            Step::Nothing(file) => file,
            Step::Replace(file) => self.include.put(file)?,
            Step::Grow(growth) => Some(growth.write()?),
        };
        let basis = Basis {
            changes: prepared.basis.changes + 1,
            ..prepared.basis
        };
        self.written = file.map(|file| Written { file, basis });
        Ok(())
    }

    /// Makes the file say what the registry says.
    ///
    /// # Errors
    /// When the include directory or the disk does not allow it. The former file stays then.
    pub fn write(&mut self, registry: &Registry, basis: Basis) -> io::Result<()> {
        let text = basis.render(registry);
        if self.read().is_some_and(|there| is_same(&there, &text)) {
            return Ok(());
        }
        let file = self.replace(&text)?;
        self.written = file.map(|file| Written { file, basis });
        Ok(())
    }

    fn replace(&mut self, text: &str) -> io::Result<Option<FileId>> {
        self.written = None;
        self.include.put(self.include.prepare(text)?)
    }

    /// The text of the file; `None` where that cannot be read.
    pub fn read(&self) -> Option<String> {
        self.include.read_persist_file().ok().flatten()
    }
}

/// Puts the persist file with this text aside where nothing is to persist any more, and says so.
///
/// # Errors
/// When the include directory does not allow it.
pub fn set_aside(include: &IncludeDir, text: Option<&str>) -> io::Result<()> {
    if let Some(path) = include.set_aside()? {
        let programs = programs_in(text.unwrap_or_default());
        tracing::warn!(
            programs,
            "persist is off: supervisord starts no longer what was kept, which is now {}",
            path.display()
        );
    }
    Ok(())
}

/// Whether a proxy has written this text.
pub fn is_ours(text: &str) -> bool {
    text.lines().next() == HEADER.lines().next()
}

/// How many programs the text of a persist file has.
pub fn programs_in(text: &str) -> usize {
    Contents::read(text).programs()
}

/// Makes the file that was put aside the persist file again, if it says what the registry says but for
/// the address of the proxy. Otherwise something has changed since: it stays aside, because programs
/// that clients know to be gone must not come back.
pub fn restore_aside(include: &IncludeDir, registry: &Registry, configured: &[ConfiguredGroup]) {
    let Some(text) = include.read_aside() else {
        return;
    };
    let (programs, path) = (programs_in(&text), include.aside());
    let path = path.display();
    let now = render(registry, configured, None);
    if is_same_but_for_address(&now, &text) && include.restore_aside().is_ok() {
        tracing::info!(programs, "keeps again what was put aside in {path}");
    } else {
        tracing::warn!(
            programs,
            "{path} was put aside while persist was off, and something has changed since: it stays there. Remove it, or stop supervisord and twiddler, rename it to the persist file, and start both"
        );
    }
}
