//! File patterns as Python's `glob` takes them.

use std::fs;
use std::path::PathBuf;

use ::glob::{MatchOptions, Pattern};

/// Hidden names are the caller's: in Python one dot at the beginning of a pattern opens all of
/// them, and only that.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Whether a pattern, or a part of it, can match more than its own text.
pub fn has_wildcard(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Whether the daemon would see a file of this name through this pattern of names (the part
/// after the last slash).
pub fn name_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    Pattern::new(&translated(pattern)).is_ok_and(|pattern| pattern.matches_with(name, OPTIONS))
}

/// The same pattern in the words of the glob crate: `**` is no more than `*` to the daemon, and a
/// bracket that does not close is a bracket.
fn translated(pattern: &str) -> String {
    let letters: Vec<char> = pattern.chars().collect();
    let mut translated = String::new();
    let mut at = 0;
    while let Some(&letter) = letters.get(at) {
        at += 1;
        match letter {
            '*' if translated.ends_with('*') => {}
            '[' => match set_end(&letters, at) {
                Some(end) => {
                    translated.extend(&letters[at - 1..=end]);
                    at = end + 1;
                }
                None => translated.push_str("[[]"),
            },
            _ => translated.push(letter),
        }
    }
    translated
}

/// Where the set closes whose bracket stands before `start`. A bracket closes nothing right
/// after the opening one or its `!`.
fn set_end(letters: &[char], start: usize) -> Option<usize> {
    let start = start + usize::from(letters.get(start) == Some(&'!'));
    let closing = letters
        .iter()
        .skip(start + 1)
        .position(|letter| *letter == ']')?;
    Some(start + 1 + closing)
}

/// The paths that an absolute pattern matches, sorted.
pub(super) fn glob(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = if has_wildcard(part) {
            found.iter().flat_map(|dir| entries(dir, part)).collect()
        } else {
            found.into_iter().map(|dir| dir.join(part)).collect()
        };
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    found.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
    found
}

fn entries(dir: &PathBuf, pattern: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let fitting =
        entries.filter(|entry| name_matches(pattern, &entry.file_name().to_string_lossy()));
    fitting.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_they_do_for_the_daemon() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.ini", false),
            ("*", ".a", false),
            ("?a", ".a", false),
            ("[.]a", ".a", false),
            (".*", ".a", true),
            (".*", "a", false),
            ("**.conf", "a.conf", true),
            ("a**b***", "a1b2", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]a]", "]", true),
            ("[!]a]", "]", false),
            ("[a", "[a", true),
            ("[", "[", true),
            ("[]", "[]", true),
            ("[!]", "[!]", true),
            ("[^a]", "^", true),
            ("[^a]", "b", false),
            ("[a-]", "-", true),
            ("a", "A", false),
        ] {
            assert_eq!(name_matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
