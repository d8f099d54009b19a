//! `[include]`: its patterns, and the files that they match.

use std::path::{Path, PathBuf};

use super::error::{ConfError, MissingVariable};
use super::paths::{dir_in, dir_of, join};
use super::pattern::glob;
use super::reader::{Reader, read_text};
use crate::python::is_space;

/// A pattern of `[include] files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludePattern {
    /// The whole pattern, expanded and absolute.
    pub pattern: String,
    /// Its directory, which may be a pattern itself.
    pub dir: PathBuf,
}

impl IncludePattern {
    /// The part after the last slash, which the names of files are held against.
    pub fn file_part(&self) -> &str {
        self.pattern
            .rsplit_once('/')
            .map_or(&*self.pattern, |(_, file)| file)
    }
}

/// A pattern of `[include] files` that is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnplacedPattern {
    /// What it lacks.
    pub missing: MissingVariable,
    /// The part after the last slash, where that is known.
    pub file_part: Option<String>,
}

/// What `[include]` says, and what it leads to.
#[derive(Default)]
pub(super) struct Include {
    pub(super) patterns: Vec<IncludePattern>,
    pub(super) unplaced: Vec<UnplacedPattern>,
    pub(super) included: Vec<PathBuf>,
}

impl Reader<'_> {
    /// Reads the included files, in the order of the patterns and sorted for each of them.
    ///
    /// Only the main file's `[include]` counts, and it is what makes `%(here)s` a textual
    /// replacement, file by file.
    pub(super) fn include(&mut self) -> Include {
        let Some(section) = self.sections.get("include") else {
            return Include::default();
        };
        let section_file = section.file.to_path_buf();
        self.sections.expand_here(&self.names.here);
        let files = self.required("include", "files", &section_file, &self.include_example());
        let (patterns, unplaced) = match files {
            Err(ConfError::Variable(_)) => self.known_patterns(),
            files => {
                let files = self.keep(files);
                let patterns = files.map(|(files, _)| self.patterns(&files));
                (patterns.unwrap_or_default(), Vec::new())
            }
        };
        let matched: Vec<_> = patterns
            .iter()
            .flat_map(|one| glob(&one.pattern))
            .filter(|file| !is_generated(file))
            .collect();
        let included = matched
            .into_iter()
            .filter(|file| self.include_file(file))
            .collect();
        Include {
            patterns,
            unplaced,
            included,
        }
    }

    /// The patterns that can be expanded, where not all can, and the others.
    fn known_patterns(&mut self) -> (Vec<IncludePattern>, Vec<UnplacedPattern>) {
        let Some(setting) = self.sections.find("include", "files").cloned() else {
            return Default::default();
        };
        let words = setting
            .value
            .split(is_space)
            .filter(|word| !word.is_empty());
        let (mut known, mut unplaced) = (Vec::new(), Vec::new());
        for word in words {
            match self.expanded_as("include", &setting, word) {
                Err(ConfError::Variable(missing)) => {
                    let file_part = word.rsplit('/').next().unwrap_or(word);
                    let file_part = self.names.format(file_part).ok();
                    unplaced.push(UnplacedPattern { missing, file_part });
                }
                expanded => {
                    let expanded = self.keep(expanded);
                    known.extend(expanded.iter().flat_map(|(files, _)| self.patterns(files)));
                }
            }
        }
        (known, unplaced)
    }

    fn include_example(&self) -> String {
        format!("{}/conf.d/*.conf", self.names.here.trim_end_matches('/'))
    }

    fn patterns(&self, files: &str) -> Vec<IncludePattern> {
        let words = files.split(is_space).filter(|word| !word.is_empty());
        let patterns = words.map(|word| join(&self.names.here, word));
        patterns
            .map(|pattern| IncludePattern {
                dir: dir_in(&pattern).into(),
                pattern,
            })
            .collect()
    }

    /// Adds a file; one that cannot be read is passed over in silence, as the daemon does.
    fn include_file(&mut self, file: &Path) -> bool {
        let Ok(text) = read_text(file) else {
            return false;
        };
        self.sections.add(file, &text);
        self.sections.expand_here(&dir_of(file));
        true
    }
}

/// Files that the proxy itself wrote say nothing about what the user configured.
fn is_generated(file: &Path) -> bool {
    file.file_name()
        .is_some_and(|name| name.to_string_lossy().contains("zz-twiddler"))
}
