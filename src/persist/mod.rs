//! What outlives the daemon, on disk: one file that it reads when it starts.

mod format;

use std::sync::Arc;

pub use format::{Contents, real_groups, refused_member, render, stopped_group};

use crate::daemon::conf::ConfiguredGroup;
use crate::failpoint;
use crate::include_dir::{self, IncludeDir};
use crate::registry::{Event, Registry};
use format::{HEADER, is_same_but_for_address};

/// The file, in the include directory.
pub struct PersistFile {
    include: Arc<IncludeDir>,
}

/// What the file will be after a change.
pub struct Prepared {
    events: Vec<Event>,
    /// How often what is known had been changed before.
    changes: u64,
    /// Under a name that the daemon does not read; nothing where the file is that already.
    file: Option<include_dir::Prepared>,
}

impl Prepared {
    /// Whether this is what the file is after these events, where what was known before has been changed
    /// `changes` times.
    pub fn is_after(&self, changes: u64, events: &[Event]) -> bool {
        let is_seen = |event: &&Event| !matches!(event, Event::Marker(_) | Event::Next(_));
        self.changes == changes && events.iter().filter(is_seen).eq(&self.events)
    }

    /// Has the disk begin with it.
    pub async fn sync(&self) {
        if let Some(file) = &self.file {
            file.sync().await;
        }
    }
}

impl PersistFile {
    /// The persist file of this directory.
    pub fn new(include: Arc<IncludeDir>) -> Self {
        PersistFile { include }
    }

    /// Before a change: makes sure that what is to be kept after it can be written. What is to go is
    /// kept no longer from here on: a daemon that starts again once it has made the change must not
    /// bring it back. What does not go after all is kept again afterwards.
    ///
    /// # Errors
    /// When the include directory or the disk does not allow it.
    pub fn prepare(
        &self,
        mut registry: Registry,
        changes: u64,
        events: Vec<Event>,
        configured: &[ConfiguredGroup],
        proxy: Option<&str>,
    ) -> std::io::Result<Prepared> {
        let (going, coming): (Vec<&Event>, Vec<&Event>) =
            events.iter().partition(|event| event.takes_away());
        let mut text_after = |events: &[&Event]| {
            for event in events {
                registry.apply((*event).clone());
            }
            render(&registry, configured, proxy)
        };
        if !going.is_empty() {
            self.write(&text_after(&going))?;
        }
        failpoint::hit("kept without");
        let file = (!coming.is_empty()).then(|| self.include.prepare(&text_after(&coming)));
        let file = file.transpose()?;
        Ok(Prepared {
            events,
            changes,
            file,
        })
    }

    /// After a change: keeps what was prepared for it.
    ///
    /// # Errors
    /// When the include directory or the disk does not allow it.
    pub fn keep(&self, prepared: Prepared) -> std::io::Result<()> {
        prepared.file.map_or(Ok(()), |file| self.include.keep(file))
    }

    /// Keeps `text`.
    ///
    /// # Errors
    /// When the include directory or the disk does not allow it.
    pub fn write(&self, text: &str) -> std::io::Result<()> {
        // What is not ours there is replaced.
        if self.include.kept().ok().flatten().as_deref() == Some(text) {
            return Ok(());
        }
        self.include.keep(self.include.prepare(text)?)
    }

    /// What is kept now; nothing where that cannot be read.
    pub fn read(&self) -> Option<String> {
        self.include.kept().ok().flatten()
    }
}

/// Puts aside what is kept where nothing is to be kept any more, and says so.
///
/// # Errors
/// When the include directory does not allow it.
pub fn set_aside(include: &IncludeDir, kept: Option<&str>) -> std::io::Result<()> {
    if let Some(path) = include.set_aside()? {
        let programs = programs_in(kept.unwrap_or_default());
        tracing::warn!(
            programs,
            "persist is off: supervisord starts no longer what was kept, which is now {}",
            path.display()
        );
    }
    Ok(())
}

/// Whether a proxy has written this text.
pub fn is_ours(kept: &str) -> bool {
    kept.lines().next() == HEADER.lines().next()
}

/// How many programs a kept text has.
pub fn programs_in(kept: &str) -> usize {
    Contents::read(kept).programs()
}

/// Keeps again what was put aside while nothing was to be kept, if it is what is known now to the
/// letter but for the address of the proxy. Otherwise something has changed since: it stays aside,
/// because what clients were told is gone must not come back.
pub fn take_up_aside(include: &IncludeDir, registry: &Registry, configured: &[ConfiguredGroup]) {
    let Some(text) = include.read_aside() else {
        return;
    };
    let (programs, path) = (programs_in(&text), include.aside());
    let path = path.display();
    let now = render(registry, configured, None);
    if is_same_but_for_address(&now, &text) && include.take_up_aside().is_ok() {
        tracing::info!(programs, "keeps again what was put aside in {path}");
    } else {
        tracing::warn!(
            programs,
            "{path} was put aside while persist was off, and something has changed since: it stays there. Remove it, or stop supervisord and twiddler, rename it to the persist file, and start both"
        );
    }
}
