//! What outlives the daemon, on disk: one file that it reads when it starts.

use std::sync::Arc;

use super::model::persist_file::{
    HEADER, KeptBefore, Parts, is_same_but_for_address, render, touched,
};
use super::model::registry::{Event, Registry};
use crate::daemon::conf::ConfiguredGroup;
use crate::failpoint;
use crate::include_dir::{self, IncludeDir};

/// The file, in the include directory.
pub(super) struct PersistFile {
    include: Arc<IncludeDir>,
    /// What it was when it was written last, as long as nothing else has changed what is known.
    written: Option<Written>,
}

/// What was written, and for what.
struct Written {
    parts: Parts,
    configured: Vec<ConfiguredGroup>,
    proxy: Option<String>,
}

/// What the file will be after a change.
pub(super) struct Prepared {
    events: Vec<Event>,
    written: Written,
    /// Under a name that the daemon does not read; nothing where the file is that already.
    file: Option<include_dir::Prepared>,
}

impl PersistFile {
    pub(super) fn new(include: Arc<IncludeDir>) -> Self {
        PersistFile {
            include,
            written: None,
        }
    }

    /// Forgets what was written: something else has changed what is known.
    pub(super) fn forget(&mut self) {
        self.written = None;
    }

    /// Before a change: makes sure that what is to be kept after it can be written. What is to go is
    /// kept no longer from here on: a daemon that starts again once it has made the change must not
    /// bring it back. What does not go after all is kept again afterwards. Of what was written, only the
    /// groups that the change touches are rendered again.
    pub(super) fn prepare(
        &mut self,
        registry: &Registry,
        events: &[Event],
        configured: &[ConfiguredGroup],
        proxy: Option<&str>,
    ) -> std::io::Result<Prepared> {
        let parts = self.parts_for(configured, proxy);
        let touched = parts.as_ref().and_then(|_| touched(registry, events));
        let mut part = match &touched {
            Some(reals) => registry.part(reals),
            None => registry.clone(),
        };
        let mut parts = parts.unwrap_or_default();
        let (going, coming): (Vec<&Event>, Vec<&Event>) =
            events.iter().partition(|event| event.takes_away());
        let mut text_after = |events: Vec<&Event>| {
            events
                .into_iter()
                .for_each(|event| part.apply(event.clone()));
            let rendered = Parts::of(&part, configured, proxy);
            match &touched {
                Some(reals) => parts.replace(reals, rendered),
                None => parts = rendered,
            }
            parts.text()
        };
        let without = text_after(going);
        let text = text_after(coming);
        self.write(&without)?;
        failpoint::hit("kept without");
        let file = (text != without).then(|| self.include.prepare(&text));
        Ok(Prepared {
            events: events.to_vec(),
            written: Written {
                parts,
                configured: configured.to_vec(),
                proxy: proxy.map(str::to_owned),
            },
            file: file.transpose()?,
        })
    }

    fn parts_for(&mut self, configured: &[ConfiguredGroup], proxy: Option<&str>) -> Option<Parts> {
        let written = self.written.take()?;
        let is_same = written.configured == configured && written.proxy.as_deref() == proxy;
        is_same.then_some(written.parts)
    }

    /// After the change: keeps what was prepared for it, if `happened` is just that. Whether it was.
    pub(super) fn keep(&mut self, prepared: Prepared, happened: &[Event]) -> std::io::Result<bool> {
        let is_visible = |event: &&Event| !matches!(event, Event::Marker(_) | Event::Next(_));
        if !happened.iter().filter(is_visible).eq(&prepared.events) {
            return Ok(false);
        }
        if let Some(file) = prepared.file {
            self.include.keep(file)?;
        }
        self.written = Some(prepared.written);
        Ok(true)
    }

    /// Keeps `text`.
    pub(super) fn write(&self, text: &str) -> std::io::Result<()> {
        // What is not ours there is replaced.
        if self.include.kept().ok().flatten().as_deref() == Some(text) {
            return Ok(());
        }
        self.include.keep(self.include.prepare(text)?)
    }

    /// What is kept now; nothing where that cannot be read.
    pub(super) fn read(&self) -> Option<String> {
        self.include.kept().ok().flatten()
    }
}

/// Puts aside what is kept where nothing is to be kept any more, and says so.
///
/// # Errors
/// When the include directory does not allow it.
pub(super) fn set_aside(include: &IncludeDir, kept: Option<&str>) -> std::io::Result<()> {
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
pub(super) fn is_ours(kept: &str) -> bool {
    kept.lines().next() == HEADER.lines().next()
}

/// How many programs a kept text has.
pub(super) fn programs_in(kept: &str) -> usize {
    KeptBefore::read(kept).programs()
}

/// Keeps again what was put aside while nothing was to be kept, if it is what is known now to the
/// letter but for the address of the proxy. Otherwise something has changed since: it stays aside,
/// because what clients were told is gone must not come back.
pub(super) fn take_up_aside(
    include: &IncludeDir,
    registry: &Registry,
    configured: &[ConfiguredGroup],
) {
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
