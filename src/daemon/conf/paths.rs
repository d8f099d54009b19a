//! Path functions with the results of Python's `os.path`.

use std::path::Path;

/// Returns the absolute path, as `os.path.abspath` does.
pub(super) fn absolute(path: &str) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    normal_path(&join(&current.to_string_lossy(), path))
}

/// Returns the absolute directory of a file.
pub(super) fn dir_of(file: &Path) -> String {
    absolute(dir_in(&file.to_string_lossy()))
}

/// Returns the part before the last slash, as `os.path.dirname` does.
pub(super) fn dir_in(path: &str) -> &str {
    let head = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    let trimmed = head.trim_end_matches('/');
    if trimmed.is_empty() { head } else { trimmed }
}

/// Joins two paths, as `os.path.join` does.
pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", base.strip_suffix('/').unwrap_or(base))
}

/// Normalizes a path, as `os.path.normpath` does. It does not follow symbolic links.
pub(super) fn normal_path(path: &str) -> String {
    let root = match path {
        // In POSIX, exactly two slashes are another root than one.
        _ if path.starts_with("//") && !path.starts_with("///") => "//",
        _ if path.starts_with('/') => "/",
        _ => "",
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
    {
        match parts.last() {
            Some(&last) if part == ".." && last != ".." => drop(parts.pop()),
            None if part == ".." && !root.is_empty() => {}
            _ => parts.push(part),
        }
    }
    let path = format!("{root}{}", parts.join("/"));
    if path.is_empty() {
        ".".to_owned()
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_those_of_python() {
        for (path, expected) in [
            ("/a/b", "/a"),
            ("/a", "/"),
            ("a", ""),
            ("/a/b/", "/a/b"),
            ("//a", "//"),
        ] {
            assert_eq!(dir_in(path), expected, "{path}");
        }
    }

    #[test]
    fn paths_are_normalized_as_python_normalizes_them() {
        for (path, expected) in [
            ("/a/./b//c/", "/a/b/c"),
            ("/a/../b", "/b"),
            ("/../a", "/a"),
            ("../../a", "../../a"),
            ("a/..", "."),
            ("//a", "//a"),
            ("///a", "/a"),
            ("", "."),
        ] {
            assert_eq!(normal_path(path), expected, "{path:?}");
        }
    }
}
