//! The directory that generated files go to, and what they are named.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::ConfigError;
use super::origin::Origin;
use super::sources::{RawValue, Resolver};
use crate::daemon::conf::{
    ConfError, DaemonConf, IncludePattern, UnresolvedPattern, has_wildcard, name_matches,
};

/// Begins every generated name. Late in the alphabet: where a name occurs twice, the daemon takes
/// what it reads last.
const GENERATED: &str = "zz-twiddler";
/// What file systems commonly allow.
const MAX_NAME_BYTES: usize = 255;

/// What names of generated files are held against where the pattern is not known.
const USUAL_PATTERN: &str = "*.conf";

/// A directory that the daemon includes files from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeTarget {
    /// The directory, as the proxy sees it.
    pub dir: PathBuf,
    /// What the daemon holds the names in it against, such as `*.conf`. [`generated_name`] has a
    /// name for it.
    pub file_pattern: String,
}

/// A name for a generated file that matches the pattern `file_pattern` of `[include] files`, such as
/// `zz-twiddler-STEM.conf` for `*.conf`; without the dash where `stem` is empty.
///
/// None where no such name can match, or only one that begins with a dot, which stands for files
/// that are not to be read yet.
pub fn generated_name(file_pattern: &str, stem: &str) -> Option<String> {
    let dash = if stem.is_empty() { "" } else { "-" };
    let mut ours = Some(format!("{GENERATED}{dash}{stem}"));
    let mut name = String::new();
    let mut rest = file_pattern;
    while let Some(first) = rest.chars().next() {
        let piece = &rest[..piece_len(rest)];
        rest = &rest[piece.len()..];
        match first {
            '*' => name.push_str(&ours.take().unwrap_or_default()),
            _ if piece.len() > 1 || has_wildcard(piece) => name.push(fitting_letter(piece)?),
            literal => name.push(literal),
        }
    }
    let usable = ours.is_none() && !name.starts_with('.') && !name.contains(['/', '\0']);
    let usable = usable && name.len() <= MAX_NAME_BYTES && name_matches(file_pattern, &name);
    usable.then_some(name)
}

/// How long the first piece of a pattern is: a set in brackets, or one character.
fn piece_len(pattern: &str) -> usize {
    let one = pattern.chars().next().map_or(0, char::len_utf8);
    if !pattern.starts_with('[') {
        return one;
    }
    let inner = pattern[one..].strip_prefix('!').unwrap_or(&pattern[one..]);
    // The first character of a set is never its end.
    let start = pattern.len() - inner.len() + inner.chars().next().map_or(0, char::len_utf8);
    pattern[start..]
        .find(']')
        .map_or(one, |end| start + end + 1)
}

/// A character that a set in brackets, `?` or an unclosed bracket matches; late ones first, so that
/// the name sorts late.
fn fitting_letter(piece: &str) -> Option<char> {
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
        // The dot alone would be hidden from a set; behind another letter it is like any other.
        name_matches(&format!("x{piece}"), &format!("x{letter}"))
    })
}

impl Resolver<'_> {
    /// Where generated files go.
    pub(super) fn include(&mut self) -> Option<IncludeTarget> {
        let conf = self.conf.as_ref()?;
        let example = format!("{}/conf.d/*.conf", conf.here.display());
        let needed = conf.unresolved_include.iter();
        let needed = needed.map(|pattern| ConfError::Variable(pattern.missing.clone()).into());
        let needed: Vec<ConfigError> = needed.collect();
        let named = self.raw("include_dir");
        if named.is_none() && conf.include.is_empty() && needed.is_empty() {
            // An [include] whose `files` is wrong or missing has been reported with the file.
            let reported = self.mistakes.iter().any(is_about_include);
            if !reported {
                self.mistakes.push(ConfigError::NoInclude {
                    file: conf.file.clone(),
                    example,
                });
            }
            return None;
        }
        let chosen = match named {
            Some(raw) => named_include_dir(conf, &raw),
            None => first_include_dir(conf)
                .map_err(|mistakes| mistakes.into_iter().chain(needed).collect()),
        };
        let record = |mistakes: Vec<ConfigError>| self.mistakes.extend(mistakes);
        chosen.map_err(record).ok()
    }
}

fn is_about_include(mistake: &ConfigError) -> bool {
    matches!(mistake, ConfigError::Daemon(ConfError::Section { section, .. }) if section == "include")
}

/// The first pattern through which the daemon would see files of ours, or why none is of use.
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
    if !is_fitting(pattern) {
        return Err(no_place(pattern));
    }
    check_dir(dir)?;
    Ok(IncludeTarget {
        dir: dir.clone(),
        file_pattern: pattern.file_part().to_owned(),
    })
}

/// A directory that matches a pattern of directories.
fn matching_dir(pattern: &Path) -> Option<PathBuf> {
    let named = |part: Component<'_>| {
        let text = part.as_os_str().to_str()?;
        if !has_wildcard(text) {
            Some(text.to_owned())
        } else if name_matches(text, "main") {
            Some("main".to_owned())
        } else {
            generated_name(text, "")
        }
    };
    pattern.components().map(named).collect()
}

/// The directory that was named, with the pattern that is most likely meant for it.
fn named_include_dir(conf: &DaemonConf, raw: &RawValue) -> Result<IncludeTarget, Vec<ConfigError>> {
    let dir = match raw.origin {
        // As the daemon has it for its own relative patterns.
        Origin::File { .. } => conf.here.join(&raw.text),
        _ => std::path::absolute(&raw.text).unwrap_or_else(|_| raw.text.clone().into()),
    };
    check_dir(&dir).map_err(|reason| vec![raw.wrong(reason)])?;
    let fitting = || conf.include.iter().filter(|pattern| is_fitting(pattern));
    let same = fitting().find(|pattern| pattern.dir == dir);
    let alike = || fitting().find(|pattern| pattern.dir.file_name() == dir.file_name());
    let unresolved = || conf.unresolved_include.first().map(file_pattern);
    let known = same.or_else(alike).map(IncludePattern::file_part);
    let known = known.map(str::to_owned).or_else(unresolved);
    let any = || Some(fitting().next()?.file_part().to_owned());
    match known.or_else(any) {
        Some(file_pattern) => Ok(IncludeTarget { dir, file_pattern }),
        // supervisord may have been started with another file, or include it later.
        None if conf.include.is_empty() => Ok(IncludeTarget {
            dir,
            file_pattern: USUAL_PATTERN.to_owned(),
        }),
        None => Err(conf
            .include
            .iter()
            .map(|one| unusable(conf, one, no_place(one)))
            .collect()),
    }
}

/// What the name of a generated file is held against, for a pattern that is not known as a whole.
fn file_pattern(pattern: &UnresolvedPattern) -> String {
    let known = pattern.file_part.clone();
    known
        .filter(|known| generated_name(known, "x").is_some())
        .unwrap_or_else(|| USUAL_PATTERN.to_owned())
}

fn is_fitting(pattern: &IncludePattern) -> bool {
    generated_name(pattern.file_part(), "x").is_some()
}

fn no_place(pattern: &IncludePattern) -> String {
    let example = pattern.dir.join("*.conf");
    format!(
        "no file that twiddler writes can match it; write {} beside it",
        example.display()
    )
}

/// Whether files can be created in a directory; if not, what to do. Only trying tells: permission
/// bits say nothing of read-only mounts, access lists and privileges.
fn check_dir(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let refused = |cause: io::Error| {
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
        Ok(found) if found.is_dir() => try_writing(dir).map_err(refused),
        Ok(_) => Err(format!("{shown} is not a directory; name one that is")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(format!(
            "the directory {shown} does not exist here; create it, or write --include-dir DIR if it is elsewhere for twiddler"
        )),
        Err(cause) => Err(refused(cause)),
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
