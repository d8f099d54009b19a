//! The directory for generated files, and the names of these files.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::ConfigError;
use super::origin::Origin;
use super::sources::{RawValue, Resolver};
use crate::daemon::conf::{
    ConfError, DaemonConf, IncludePattern, UnresolvedPattern, has_wildcard, name_matches,
};

/// The prefix of the names of generated files. It sorts late, because the daemon uses the last of two
/// sections with the same name.
const GENERATED: &str = "zz-twiddler";
/// The longest file name on common file systems.
const MAX_NAME_BYTES: usize = 255;

/// The pattern for generated files if the daemon's pattern is not known.
const USUAL_PATTERN: &str = "*.conf";

/// A directory that the daemon includes files from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeTarget {
    /// The path of the directory for the proxy. The daemon may see it at another path.
    pub dir: PathBuf,
    /// The daemon's pattern for the names of files in the directory, such as `*.conf`. [`generated_name`]
    /// returns a name that matches it.
    pub file_pattern: String,
}

/// A name for a generated file that matches the pattern `file_pattern` of `[include] files`, such as
/// `zz-twiddler-STEM.conf` for `*.conf`. An empty `stem` leaves out the dash.
///
/// `None` if no name with this stem matches, or only one that begins with a dot: the proxy uses such names
/// for files that the daemon is not to read yet.
pub fn generated_name(file_pattern: &str, stem: &str) -> Option<String> {
    let dash = if stem.is_empty() { "" } else { "-" };
    let mut core = Some(format!("{GENERATED}{dash}{stem}"));
    let mut name = String::new();
    let mut rest = file_pattern;
    while let Some(first) = rest.chars().next() {
        let piece = &rest[..piece_len(rest)];
        rest = &rest[piece.len()..];
        match first {
            '*' => name.push_str(&core.take().unwrap_or_default()),
            _ if piece.len() > 1 || has_wildcard(piece) => name.push(matching_letter(piece)?),
            literal => name.push(literal),
        }
    }
    let usable = core.is_none() && !name.starts_with('.') && !name.contains(['/', '\0']);
    let usable = usable && name.len() <= MAX_NAME_BYTES && name_matches(file_pattern, &name);
    usable.then_some(name)
}

/// The length in bytes of the first piece of a pattern: a set in brackets, or one character.
fn piece_len(pattern: &str) -> usize {
    let one = pattern.chars().next().map_or(0, char::len_utf8);
    if !pattern.starts_with('[') {
        return one;
    }
    let inner = pattern[one..].strip_prefix('!').unwrap_or(&pattern[one..]);
    // A bracket that closes is part of the set if it is the first character.
    let start = pattern.len() - inner.len() + inner.chars().next().map_or(0, char::len_utf8);
    pattern[start..]
        .find(']')
        .map_or(one, |end| start + end + 1)
}

/// A character that matches a set in brackets, `?` or an unclosed bracket. Late characters are tried
/// first, so that the name sorts late.
fn matching_letter(piece: &str) -> Option<char> {
    let plain = ('a'..='z')
        .rev()
        .chain(('A'..='Z').rev())
        .chain(('0'..='9').rev());
    let others = (' '..='~')
        .rev()
        .filter(|letter| !letter.is_ascii_alphanumeric() && !"/.".contains(*letter));
    let own = piece.chars();
    let mut letters = plain.chain(others).chain(own).chain(['.']);
    letters.find(|letter| {
        // A wildcard does not match a dot at the beginning of a name, so a letter is put in front.
        name_matches(&format!("x{piece}"), &format!("x{letter}"))
    })
}

impl Resolver<'_> {
    /// The directory for generated files: the option `include_dir`, else the first of supervisord's
    /// `[include]` that can be used.
    pub(super) fn include(&mut self) -> Option<IncludeTarget> {
        let conf = self.conf.as_ref()?;
        let example = format!("{}/conf.d/*.conf", conf.here.display());
        let missing = conf.unresolved_include.iter();
        let missing = missing.map(|pattern| ConfError::Variable(pattern.missing.clone()).into());
        let missing: Vec<ConfigError> = missing.collect();
        let option = self.raw("include_dir");
        if option.is_none() && conf.include.is_empty() && missing.is_empty() {
            // A mistake in [include] was recorded when the file was read.
            let reported = self.mistakes.iter().any(is_about_include);
            if !reported {
                self.mistakes.push(ConfigError::NoInclude {
                    file: conf.file.clone(),
                    example,
                });
            }
            return None;
        }
        let target = match option {
            Some(raw) => named_include_dir(conf, &raw),
            None => first_include_dir(conf)
                .map_err(|mistakes| mistakes.into_iter().chain(missing).collect()),
        };
        let record = |mistakes: Vec<ConfigError>| self.mistakes.extend(mistakes);
        target.map_err(record).ok()
    }
}

fn is_about_include(mistake: &ConfigError) -> bool {
    matches!(mistake, ConfigError::Daemon(ConfError::Section { section, .. }) if section == "include")
}

/// The directory of the first pattern that can be used, or why no pattern can.
fn first_include_dir(conf: &DaemonConf) -> Result<IncludeTarget, Vec<ConfigError>> {
    let mut mistakes = Vec::new();
    for pattern in &conf.include {
        match usable_pattern(pattern) {
            Ok(dir) => return Ok(dir),
            Err(reason) => mistakes.push(unusable(conf, pattern, reason)),
        }
    }
    Err(mistakes)
}

fn unusable(conf: &DaemonConf, pattern: &IncludePattern, reason: String) -> ConfigError {
    let (file, pattern) = (conf.file.clone(), pattern.pattern.clone());
    ConfigError::IncludePattern {
        file,
        pattern,
        reason,
    }
}

fn usable_pattern(pattern: &IncludePattern) -> Result<IncludeTarget, String> {
    let dir = &pattern.dir;
    if has_wildcard(&dir.to_string_lossy()) {
        let fixed = dir
            .ancestors()
            .find(|dir| !has_wildcard(&dir.to_string_lossy()));
        let instead = match matching_dir(dir).map(|dir| dir.display().to_string()) {
            Some(dir) => format!("--include-dir {dir}, and create {dir} if there is none"),
            None => {
                let example = fixed.unwrap_or(dir).join("conf.d/*.conf");
                format!("{} beside it", example.display())
            }
        };
        return Err(format!(
            "its directory is a pattern itself; write {instead}"
        ));
    }
    if !has_generated_name(pattern) {
        return Err(no_generated_name(pattern));
    }
    check_dir(dir)?;
    Ok(IncludeTarget {
        dir: dir.clone(),
        file_pattern: pattern.file_part().to_owned(),
    })
}

/// A directory that matches a pattern of directories.
fn matching_dir(pattern: &Path) -> Option<PathBuf> {
    let matching_name = |part: Component<'_>| {
        let text = part.as_os_str().to_str()?;
        if !has_wildcard(text) {
            Some(text.to_owned())
        } else if name_matches(text, "main") {
            Some("main".to_owned())
        } else {
            generated_name(text, "")
        }
    };
    pattern.components().map(matching_name).collect()
}

/// The directory in the option `include_dir`, with a pattern of `[include]`: the one for this directory,
/// else for a directory with the same last name, else the first that has names for generated files.
fn named_include_dir(conf: &DaemonConf, raw: &RawValue) -> Result<IncludeTarget, Vec<ConfigError>> {
    let dir = match raw.origin {
        // The daemon resolves relative patterns in the same way.
        Origin::File { .. } => conf.here.join(&raw.text),
        _ => std::path::absolute(&raw.text).unwrap_or_else(|_| raw.text.clone().into()),
    };
    check_dir(&dir).map_err(|reason| vec![raw.error(reason)])?;
    let usable = || {
        let patterns = conf.include.iter();
        patterns.filter(|pattern| has_generated_name(pattern))
    };
    let same_dir = usable().find(|pattern| pattern.dir == dir);
    let same_name = || usable().find(|pattern| pattern.dir.file_name() == dir.file_name());
    let unresolved = || conf.unresolved_include.first().map(file_pattern);
    let best = same_dir.or_else(same_name).map(IncludePattern::file_part);
    let best = best.map(str::to_owned).or_else(unresolved);
    let any = || Some(usable().next()?.file_part().to_owned());
    match best.or_else(any) {
        Some(file_pattern) => Ok(IncludeTarget { dir, file_pattern }),
        // supervisord may run with another file, or may include the directory later.
        None if conf.include.is_empty() => Ok(IncludeTarget {
            dir,
            file_pattern: USUAL_PATTERN.to_owned(),
        }),
        None => Err(conf
            .include
            .iter()
            .map(|pattern| unusable(conf, pattern, no_generated_name(pattern)))
            .collect()),
    }
}

/// The pattern for generated files, from a pattern whose directory contains a missing variable.
fn file_pattern(pattern: &UnresolvedPattern) -> String {
    let file_part = pattern.file_part.clone();
    file_part
        .filter(|file_part| generated_name(file_part, "x").is_some())
        .unwrap_or_else(|| USUAL_PATTERN.to_owned())
}

fn has_generated_name(pattern: &IncludePattern) -> bool {
    generated_name(pattern.file_part(), "x").is_some()
}

fn no_generated_name(pattern: &IncludePattern) -> String {
    let example = pattern.dir.join("*.conf");
    format!(
        "no file that twiddler writes can match it; write {} beside it",
        example.display()
    )
}

/// Checks that files can be created in a directory. The error says what to do. It creates a file, because
/// permission bits do not show read-only mounts, ACLs and privileges.
fn check_dir(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let not_writable = |cause: io::Error| {
        let remedy = match cause.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "as root: chgrp GROUP {shown} && chmod 2775 {shown}, with a group that twiddler's account is in"
            ),
            _ => "make it writable".to_owned(),
        };
        format!(
            "twiddler may not write to {shown} ({cause}); {remedy}, or name another directory that supervisord includes with --include-dir"
        )
    };
    match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => try_writing(dir).map_err(not_writable),
        Ok(_) => Err(format!("{shown} is not a directory; name one that is")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(format!(
            "the directory {shown} does not exist here; create it, or write --include-dir DIR if it is elsewhere for twiddler"
        )),
        Err(cause) => Err(not_writable(cause)),
    }
}

/// Creates and removes an empty file whose name begins with a dot, which the daemon never reads.
fn try_writing(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".{GENERATED}-probe-{}", std::process::id()));
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
        _ => {}
    }
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_match_their_pattern() {
        for (pattern, stem, expected) in [
            ("*.conf", "1", Some("zz-twiddler-1.conf")),
            ("*.conf", "", Some("zz-twiddler.conf")),
            ("*", "1", Some("zz-twiddler-1")),
            ("**", "1", Some("zz-twiddler-1")),
            ("*.conf*", "1", Some("zz-twiddler-1.conf")),
            ("app-*.ini", "1", Some("app-zz-twiddler-1.ini")),
            ("[0-9]*.conf", "1", Some("9zz-twiddler-1.conf")),
            ("[!a-z]*.conf", "1", Some("Zzz-twiddler-1.conf")),
            ("?*.conf", "1", Some("zzz-twiddler-1.conf")),
            ("*[", "1", Some("zz-twiddler-1[")),
            ("[*", "1", Some("[zz-twiddler-1")),
            ("[]*]*", "1", Some("]zz-twiddler-1")),
            ("*[é]", "1", Some("zz-twiddler-1é")),
            ("*[.]conf", "1", Some("zz-twiddler-1.conf")),
            ("[.]*", "1", None),
            (".*.conf", "1", None),
            ("a.conf", "1", None),
            ("????", "1", None),
            ("*[z-a]", "1", None),
            ("", "1", None),
        ] {
            assert_eq!(
                generated_name(pattern, stem).as_deref(),
                expected,
                "{pattern}"
            );
        }
        assert_eq!(generated_name("*.conf", "a/b"), None);
        assert_eq!(generated_name("*.conf", &"x".repeat(MAX_NAME_BYTES)), None);
    }
}
