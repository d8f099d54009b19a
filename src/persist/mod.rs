//! The persist file: additions that outlive the daemon, which reads them when it starts.
//!
//! Additions in new real groups are appended. Any other change replaces the file.

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
    /// The file that this proxy wrote last. `None` if the file may have other contents.
    last_file: Option<LastFile>,
}

/// A persist file, and the inputs of its text.
struct LastFile {
    file: FileId,
    basis: Basis,
}

/// The inputs of the text besides the registry's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// The number of changes to the registry.
    pub changes: u64,
    /// The groups that the user's files define.
    pub configured: Vec<ConfiguredGroup>,
    /// The URL at which placed processes call supervisord.
    pub proxy: Option<String>,
}

impl Basis {
    fn render(&self, registry: &Registry) -> String {
        render(registry, &self.configured, self.proxy.as_deref())
    }
}

/// A persist file that is prepared for a change.
pub struct Prepared {
    events: Vec<Event>,
    basis: Basis,
    step: Step,
}

/// How the prepared file gets in place.
enum Step {
    /// It is in place already. `None` if another writer may have replaced it.
    Nothing(Option<FileId>),
    /// A new file replaces it.
    Replace(include_dir::Prepared),
    /// Text is appended.
    Grow(Growth),
}

impl Prepared {
    /// Whether the file fits the state after these events, on a registry with this number of `changes`.
    pub fn is_after(&self, changes: u64, events: &[Event]) -> bool {
        let is_in_file = |event: &&Event| !matches!(event, Event::Marker(_) | Event::Next(_));
        self.basis.changes == changes && events.iter().filter(is_in_file).eq(&self.events)
    }

    /// Starts to sync the file to disk, concurrently with other work.
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
            last_file: None,
        }
    }

    /// Prepares the file before a change, so that writing it afterwards cannot fail for lack of space or
    /// permissions. Removes from the file at once what the change removes: a daemon that restarts after the
    /// change must not start it again. If the change fails, [`PersistFile::write`] restores it.
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

    /// Reserves space for the text to append, if the file is up to date and nothing in it changes.
    fn prepare_growth(
        &self,
        registry: &Registry,
        events: &[Event],
        basis: &Basis,
    ) -> io::Result<Option<Growth>> {
        let is_up_to_date = |last: &&LastFile| last.basis == *basis;
        let Some(last_file) = self.last_file.as_ref().filter(is_up_to_date) else {
            return Ok(None);
        };
        let proxy = basis.proxy.as_deref();
        let Some(text) = render_placed(registry, events, &basis.configured, proxy) else {
            return Ok(None);
        };
        self.include.prepare_growth(last_file.file, &text)
    }

    fn prepare_replacement(
        &mut self,
        registry: &Registry,
        events: &[Event],
        basis: &Basis,
    ) -> io::Result<Step> {
        let (removals, additions): (Vec<&Event>, Vec<&Event>) =
            events.iter().partition(|event| event.is_removal());
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

    /// Puts the prepared file in place after the change.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it. The file lacks the change then.
    pub fn put(&mut self, prepared: Prepared) -> io::Result<()> {
        self.last_file = None;
        let file = match prepared.step {
            Step::Nothing(file) => file,
            Step::Replace(file) => self.include.put(file)?,
            Step::Grow(growth) => Some(growth.write()?),
        };
        let basis = Basis {
            changes: prepared.basis.changes + 1,
            ..prepared.basis
        };
        self.last_file = file.map(|file| LastFile { file, basis });
        Ok(())
    }

    /// Writes the registry to the file, unless the file has the same groups already.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it. The old file stays then.
    pub fn write(&mut self, registry: &Registry, basis: Basis) -> io::Result<()> {
        let text = basis.render(registry);
        if self.read().is_some_and(|current| is_same(&current, &text)) {
            return Ok(());
        }
        self.replace_with(&text, basis)
    }

    /// Writes the registry to the file, whatever the file has: it may not be on the disk yet.
    ///
    /// # Errors
    /// When the directory or the disk does not allow it. The old file stays then.
    pub fn rewrite(&mut self, registry: &Registry, basis: Basis) -> io::Result<()> {
        self.replace_with(&basis.render(registry), basis)
    }

    fn replace_with(&mut self, text: &str, basis: Basis) -> io::Result<()> {
        let file = self.replace(text)?;
        self.last_file = file.map(|file| LastFile { file, basis });
        Ok(())
    }

    fn replace(&mut self, text: &str) -> io::Result<Option<FileId>> {
        self.last_file = None;
        self.include.put(self.include.prepare(text)?)
    }

    /// The text of the file. `None` if it cannot be read.
    pub fn read(&self) -> Option<String> {
        self.include.read_persist_file().ok().flatten()
    }
}

/// Puts the persist file aside, because `--persist` is off, and logs a warning. `text` is its text.
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

/// Returns whether twiddler wrote this text.
pub fn is_written_by_twiddler(text: &str) -> bool {
    text.lines().next() == HEADER.lines().next()
}

/// Returns the number of programs in the text of a persist file.
pub fn programs_in(text: &str) -> usize {
    Contents::read(text).programs()
}

/// Makes the file that was put aside the persist file again, if it has the same groups as the registry
/// apart from the proxy's URL. Otherwise something has changed since, and it stays aside: programs that
/// clients know to be removed must not start again.
pub fn restore_aside(include: &IncludeDir, registry: &Registry, configured: &[ConfiguredGroup]) {
    let Some(text) = include.read_aside() else {
        return;
    };
    let (programs, path) = (programs_in(&text), include.aside());
    let path = path.display();
    let now = render(registry, configured, None);
    if is_same_but_for_address(&now, &text) && include.restore_aside().is_ok() {
        tracing::info!(
            programs,
            "the persist file is again the one that was put aside as {path}"
        );
    } else {
        tracing::warn!(
            programs,
            "{path} was put aside while persist was off, and something has changed since: it stays there. Remove it, or stop supervisord and twiddler, rename it to the persist file, and start both"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::format::tests::members;
    use super::*;
    use crate::registry::tests::left;

    /// What happens between two additions.
    type Happening = fn(&mut Stage);

    /// A persist file with its directory, and the registry that it is about.
    struct Stage {
        dir: tempfile::TempDir,
        file: PersistFile,
        registry: Registry,
        basis: Basis,
    }

    impl Stage {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let include = IncludeDir::open(dir.path().to_owned(), "zz.conf".to_owned()).unwrap();
            let include = include.with_persist_file("persist.conf".to_owned());
            Stage {
                dir,
                file: PersistFile::new(Arc::new(include)),
                registry: Registry::default(),
                basis: Basis {
                    changes: 0,
                    configured: Vec::new(),
                    proxy: None,
                },
            }
        }

        /// Makes a change. Returns whether the file grew.
        fn make(&mut self, events: Vec<Event>) -> bool {
            let (registry, basis) = (&self.registry, self.basis.clone());
            let prepared = self.file.prepare(registry, events.clone(), basis).unwrap();
            let grows = matches!(prepared.step, Step::Grow(_));
            self.file.put(prepared).unwrap();
            self.apply(events);
            grows
        }

        fn apply(&mut self, events: Vec<Event>) {
            events
                .into_iter()
                .for_each(|event| self.registry.apply(event));
            self.basis.changes += 1;
        }

        fn ensure_complete(&self) {
            let text = std::fs::read_to_string(self.dir.path().join("persist.conf")).unwrap();
            let expected = self.basis.render(&self.registry);
            assert!(is_same(&text, &expected), "{text}\nis not\n{expected}");
        }
    }

    fn defining_a() -> Vec<ConfiguredGroup> {
        vec![ConfiguredGroup {
            name: "web".to_owned(),
            priority: 3,
            empty: false,
            processes: vec!["a_0".to_owned()],
        }]
    }

    #[test]
    fn the_file_grows_only_if_it_says_what_the_registry_said_before() {
        let cases: [(&str, Happening, bool); 4] = [
            ("nothing else", |_| {}, true),
            (
                "a loss",
                |stage| stage.apply(vec![left("web", "a_0")]),
                false,
            ),
            (
                "edited files",
                |stage| stage.basis.configured = defining_a(),
                false,
            ),
            (
                "another address",
                |stage| stage.basis.proxy = Some("http://there".to_owned()),
                false,
            ),
        ];
        for (case, happens, grows) in cases {
            let mut stage = Stage::new();
            assert!(!stage.make(members("web", "a", 1, "web~000001")), "{case}");
            assert!(stage.make(members("web", "b", 1, "web~000002")), "{case}");
            happens(&mut stage);
            assert_eq!(
                stage.make(members("web", "c", 1, "web~000003")),
                grows,
                "{case}"
            );
            stage.ensure_complete();
        }
    }

    #[test]
    fn a_removal_writes_the_file_anew_and_additions_append_to_that() {
        let mut stage = Stage::new();
        stage.make(members("web", "a", 2, "web~000001"));
        assert!(!stage.make(vec![left("web", "a_0")]));
        stage.ensure_complete();
        assert!(stage.make(members("web", "b", 1, "web~000002")));
        stage.ensure_complete();
    }
}
