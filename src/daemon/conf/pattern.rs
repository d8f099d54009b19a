//! File patterns with the results of Python's `glob`.

use std::fs;
use std::path::PathBuf;

use ::glob::{MatchOptions, Pattern};

/// [`name_matches`] handles names with a leading dot: in Python they match if and only if the pattern
/// begins with a dot.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Returns whether a pattern can match more than its own text.
pub fn has_wildcard(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Returns whether the part of a pattern after the last slash matches the name of a file for the daemon.
pub fn name_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let pattern = Pattern::new(&to_glob_crate(pattern));
    pattern.is_ok_and(|pattern| pattern.matches_with(name, OPTIONS))
}

/// Translates a pattern for the glob crate. To Python, `**` is the same as `*` here, and a bracket that is
/// not closed is a literal.
fn to_glob_crate(pattern: &str) -> String {
    let letters: Vec<char> = pattern.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while let Some(&letter) = letters.get(at) {
        at += 1;
        match letter {
            '*' if out.ends_with('*') => {}
            '[' => match set_end(&letters, at) {
                Some(end) => {
                    out.extend(&letters[at - 1..=end]);
                    at = end + 1;
                }
                None => out.push_str("[[]"),
            },
            _ => out.push(letter),
        }
    }
    out
}

/// Returns the position of the bracket that closes the set before `start`. A closing bracket directly
/// after the opening one or its `!` is a member of the set.
fn set_end(letters: &[char], start: usize) -> Option<usize> {
    let start = start + usize::from(letters.get(start) == Some(&'!'));
    let closing = letters
        .iter()
        .skip(start + 1)
        .position(|letter| *letter == ']')?;
    Some(start + 1 + closing)
}

/// Returns the paths that an absolute pattern matches, sorted.
pub(super) fn glob(pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        paths = if has_wildcard(part) {
            paths.iter().flat_map(|dir| entries(dir, part)).collect()
        } else {
            paths.into_iter().map(|dir| dir.join(part)).collect()
        };
    }
    paths.retain(|path| path.symlink_metadata().is_ok());
    paths.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
    paths
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
