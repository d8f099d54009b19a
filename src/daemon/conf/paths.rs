//! Paths, cut and joined as Python's `os.path` does.

use std::path::Path;

pub(super) fn absolute(path: &str) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    normal_path(&join(&current.to_string_lossy(), path))
}

pub(super) fn dir_of(file: &Path) -> String {
    absolute(dir_in(&file.to_string_lossy()))
}

/// The part before the last slash, as Python's `os.path.dirname` cuts it.
pub(super) fn dir_in(path: &str) -> &str {
    let head = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    let cut = head.trim_end_matches('/');
    if cut.is_empty() { head } else { cut }
}

pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", base.strip_suffix('/').unwrap_or(base))
}

/// Python's `os.path.normpath`: a matter of text, which follows no links.
pub(super) fn normal_path(path: &str) -> String {
    let root = match path {
        // Exactly two slashes are another root than one, says POSIX.
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
    let whole = format!("{root}{}", parts.join("/"));
    if whole.is_empty() {
        ".".to_owned()
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_cut_off_as_python_does() {
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
    fn paths_are_normal_as_python_has_them() {
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
