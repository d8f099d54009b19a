//! The `[include]` section: its patterns and the files that they match.

use std::path::{Path, PathBuf};

use super::error::{ConfError, MissingVariable};
use super::paths::{dir_in, dir_of, join};
use super::pattern::glob;
use super::reader::{Reader, read_text};
use crate::python::is_space;

/// A pattern of `[include] files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludePattern {
    /// The pattern, expanded and absolute.
    pub pattern: String,
    /// The directory of the pattern, which may have wildcards itself.
    pub dir: PathBuf,
}

impl IncludePattern {
    /// Returns the part after the last slash, which matches the names of files.
    pub fn file_part(&self) -> &str {
        self.pattern
            .rsplit_once('/')
            .map_or(&*self.pattern, |(_, file)| file)
    }
}

/// A pattern of `[include] files` with a variable that is not set in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnresolvedPattern {
    /// The missing variable.
    pub missing: MissingVariable,
    /// The part after the last slash, if it can be expanded.
    pub file_part: Option<String>,
}

/// The patterns of `[include]` and the files that were read.
#[derive(Default)]
pub(super) struct Include {
    pub(super) patterns: Vec<IncludePattern>,
    pub(super) unresolved: Vec<UnresolvedPattern>,
    pub(super) files: Vec<PathBuf>,
}

impl Reader<'_> {
    /// Reads the included files in the order of the patterns, and sorted by name within a pattern.
    ///
    /// The daemon ignores the `[include]` of an included file. If the main file has an `[include]`, the
    /// daemon replaces `%(here)s` in each file by the directory of that file.
    pub(super) fn include(&mut self) -> Include {
        let Some(section) = self.sections.get("include") else {
            return Include::default();
        };
        let section_file = section.file.to_path_buf();
        self.sections.expand_here(&self.names.here);
        let files = self.required("include", "files", &section_file, &self.include_example());
        let (patterns, unresolved) = match files {
            Err(ConfError::Variable(_)) => self.resolve_patterns(),
            files => {
                let files = self.collect_mistake(files);
                let patterns = files.map(|(files, _)| self.patterns(&files));
                (patterns.unwrap_or_default(), Vec::new())
            }
        };
        let matches: Vec<_> = patterns
            .iter()
            .flat_map(|pattern| glob(&pattern.pattern))
            .filter(|file| !is_generated(file))
            .collect();
        let files = matches
            .into_iter()
            .filter(|file| self.include_file(file))
            .collect();
        Include {
            patterns,
            unresolved,
            files,
        }
    }

    /// Expands each pattern for itself. Returns the patterns that can be expanded, and the others.
    fn resolve_patterns(&mut self) -> (Vec<IncludePattern>, Vec<UnresolvedPattern>) {
        let Some(setting) = self.sections.find("include", "files").cloned() else {
            return Default::default();
        };
        let words = setting
            .value
            .split(is_space)
            .filter(|word| !word.is_empty());
        let (mut patterns, mut unresolved) = (Vec::new(), Vec::new());
        for word in words {
            match self.expand_text("include", &setting, word) {
                Err(ConfError::Variable(missing)) => {
                    let file_part = word.rsplit('/').next().unwrap_or(word);
                    let file_part = self.names.format(file_part).ok();
                    unresolved.push(UnresolvedPattern { missing, file_part });
                }
                files => {
                    let files = self.collect_mistake(files);
                    patterns.extend(files.iter().flat_map(|(files, _)| self.patterns(files)));
                }
            }
        }
        (patterns, unresolved)
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

    /// Adds the sections of a file. Returns false for a file that cannot be read, which the daemon skips
    /// without a message.
    fn include_file(&mut self, file: &Path) -> bool {
        let Ok(text) = read_text(file) else {
            return false;
        };
        self.sections.add(file, &text);
        self.sections.expand_here(&dir_of(file));
        true
    }
}

/// Returns whether the proxy has written the file. Such a file is not the user's configuration.
fn is_generated(file: &Path) -> bool {
    file.file_name()
        .is_some_and(|name| name.to_string_lossy().contains("zz-twiddler"))
}
