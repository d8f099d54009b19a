//! Parses files into sections, as Python's `configparser` does with the settings of
//! `UnhosedConfigParser` in `supervisor/options.py`.
//!
//! This module handles comments, continued values and section names line by line. It produces a plain
//! document with one option per line, which rust-ini parses.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use ::ini::{Ini, ParseOption, Properties};

use crate::python::{is_space, strip};

/// The prefixes of the sections that make the daemon listen. The daemon only compares prefixes, so that
/// `[unix_http_server:a]` and `[unix_http_servers]` are servers too.
pub(super) const UNIX_SERVER: &str = "unix_http_server";
pub(super) const INET_SERVER: &str = "inet_http_server";

/// Returns whether a section makes the daemon listen.
pub(super) fn is_server(section: &str) -> bool {
    section.starts_with(UNIX_SERVER) || section.starts_with(INET_SERVER)
}

/// The section from which all others inherit options.
const DEFAULTS: &str = "DEFAULT";
const HERE: &str = "%(here)s";

/// The options of rust-ini without the features that the daemon's parser does not have.
const PLAIN: ParseOption = ParseOption {
    enabled_quote: false,
    enabled_escape: false,
    enabled_indented_mutiline_value: false,
    enabled_preserve_key_leading_whitespace: false,
};

/// An option, the text of its value, and the file that sets it.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) file: Arc<Path>,
}

#[derive(Clone)]
pub(super) struct Section {
    pub(super) name: String,
    /// The first file with this section.
    pub(super) file: Arc<Path>,
    /// The options in the section itself.
    pub(super) own: Vec<Setting>,
    /// Options that the section inherited when `%(here)s` was replaced in them.
    inherited: Vec<Setting>,
}

/// A line that the daemon refuses.
pub(super) struct InvalidLine {
    pub(super) file: Arc<Path>,
    pub(super) line: usize,
    pub(super) section: Option<String>,
}

/// The sections of all files so far. Sections of the same name are merged.
#[derive(Default)]
pub(super) struct Sections {
    defaults: Vec<Setting>,
    sections: Vec<Section>,
    /// The index of each section in `sections`.
    indexes: HashMap<String, usize>,
    pub(super) invalid_lines: Vec<InvalidLine>,
}

impl Sections {
    /// Adds the sections of a file.
    pub(super) fn add(&mut self, file: &Path, text: &str) {
        let file: Arc<Path> = file.into();
        let mut lines = Lines::default();
        for (index, line) in text.split('\n').enumerate() {
            lines.push(index + 1, line);
        }
        let (document, invalid) = lines.finish();
        let invalid = invalid.into_iter().map(|(line, section)| InvalidLine {
            file: file.clone(),
            line,
            section,
        });
        self.invalid_lines.extend(invalid);
        let ini = Ini::load_from_str_opt(&document, PLAIN).expect(
            "the document has only headers and `key=value` lines, without special characters",
        );
        for (name, properties) in ini.iter() {
            let Some(name) = name else { continue };
            self.merge(&decode(name), properties, &file);
        }
    }

    fn merge(&mut self, name: &str, properties: &Properties, file: &Arc<Path>) {
        let settings = self.settings_of(name, file);
        for (key, value) in properties.iter() {
            let (key, value, file) = (decode(key), decode(value), file.clone());
            let new = Setting { key, value, file };
            match settings.iter_mut().find(|setting| setting.key == new.key) {
                Some(setting) => *setting = new,
                None => settings.push(new),
            }
        }
    }

    fn settings_of(&mut self, name: &str, file: &Arc<Path>) -> &mut Vec<Setting> {
        if name == DEFAULTS {
            return &mut self.defaults;
        }
        let index = *self.indexes.entry(name.to_owned()).or_insert_with(|| {
            self.sections.push(Section {
                name: name.to_owned(),
                file: file.clone(),
                own: Vec::new(),
                inherited: Vec::new(),
            });
            self.sections.len() - 1
        });
        &mut self.sections[index].own
    }

    /// Replaces `%(here)s` in all values so far (`UnhosedConfigParser.expand_here`).
    ///
    /// `%(here)s` in a default is replaced for each section separately, so that a section of a later file
    /// gets the directory of that file.
    pub(super) fn expand_here(&mut self, here: &str) {
        for section in &mut self.sections {
            let has_here = |setting: &&Setting| setting.value.contains(HERE);
            let inherited: Vec<_> = self
                .defaults
                .iter()
                .filter(has_here)
                .filter(|default| !section.has(&default.key))
                .cloned()
                .collect();
            section.inherited.extend(inherited);
            for setting in section.own.iter_mut().chain(&mut section.inherited) {
                setting.value = setting.value.replace(HERE, here);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Section> {
        self.sections.iter()
    }

    pub(super) fn starting_with(&self, prefix: &str) -> impl Iterator<Item = &Section> {
        self.iter()
            .filter(move |section| section.name.starts_with(prefix))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Section> {
        self.indexes.get(name).map(|index| &self.sections[*index])
    }

    /// Returns all options of a section, including the defaults.
    pub(super) fn options(&self, section: &str) -> BTreeMap<String, String> {
        let Some(section) = self.get(section) else {
            return BTreeMap::new();
        };
        let settings = section
            .own
            .iter()
            .chain(&section.inherited)
            .chain(&self.defaults);
        let mut options = BTreeMap::new();
        for setting in settings {
            options
                .entry(setting.key.clone())
                .or_insert_with(|| setting.value.clone());
        }
        options
    }

    pub(super) fn find(&self, section: &str, key: &str) -> Option<&Setting> {
        let section = self.get(section)?;
        let mut settings = section
            .own
            .iter()
            .chain(&section.inherited)
            .chain(&self.defaults);
        settings.find(|setting| setting.key == key)
    }
}

impl Section {
    fn has(&self, key: &str) -> bool {
        self.own
            .iter()
            .chain(&self.inherited)
            .any(|setting| setting.key == key)
    }
}

/// Builds the plain document from the lines of one file.
#[derive(Default)]
struct Lines {
    document: String,
    /// The numbers and sections of the invalid lines.
    invalid: Vec<(usize, Option<String>)>,
    section: Option<String>,
    /// The option whose value may continue on the next line.
    open: Option<(String, String)>,
    indent: usize,
}

impl Lines {
    fn push(&mut self, number: usize, line: &str) {
        let comment = comment_start(line);
        let content = strip(&line[..comment.unwrap_or(line.len())]);
        let indent = line.chars().take_while(|letter| is_space(*letter)).count();
        match &mut self.open {
            // An empty line is part of a value. A line that only has a comment is not.
            _ if content.is_empty() && comment.is_some() => {}
            Some((_, value)) if content.is_empty() || indent > self.indent => {
                value.push('\n');
                value.push_str(content);
            }
            None if content.is_empty() => {}
            _ => {
                self.indent = indent;
                self.begin(number, content);
            }
        }
    }

    fn begin(&mut self, number: usize, content: &str) {
        if let Some(name) = header(content) {
            self.close();
            self.document.push_str(&format!("[{}]\n", encode(name)));
            self.section = Some(name.to_owned());
        } else if let Some(option) = option(content).filter(|_| self.section.is_some()) {
            self.close();
            self.open = Some(option);
        } else {
            self.invalid.push((number, self.section.clone()));
        }
    }

    fn close(&mut self) {
        if let Some((key, value)) = self.open.take() {
            let value = value.trim_end_matches(is_space);
            self.document
                .push_str(&format!("{}={}\n", encode(&key), encode(value)));
        }
    }

    fn finish(mut self) -> (String, Vec<(usize, Option<String>)>) {
        self.close();
        (self.document, self.invalid)
    }
}

/// Returns where the comment of a line begins: at a `;` or `#` that is the first visible character or
/// follows white space.
///
/// Python searches for the nth `;` and the nth `#` together, and stops at the first n with a comment. In
/// `a;b ;c #d` the comment is therefore `#d`. (Since Python 3.13 it is the first comment of the line.)
fn comment_start(line: &str) -> Option<usize> {
    if strip(line).starts_with([';', '#']) {
        return Some(0);
    }
    let begins = |at: &usize| line[..*at].ends_with(is_space);
    let mut semicolons = line.match_indices(';').map(|(at, _)| at).fuse();
    let mut hashes = line.match_indices('#').map(|(at, _)| at).fuse();
    loop {
        let step = [semicolons.next(), hashes.next()];
        if step == [None, None] {
            return None;
        }
        let comment = step.into_iter().flatten().filter(begins).min();
        if comment.is_some() {
            return comment;
        }
    }
}

/// Returns the name in `[name]`, up to the last bracket of the line and with its spaces.
fn header(content: &str) -> Option<&str> {
    let rest = content.strip_prefix('[')?;
    let name = &rest[..rest.rfind(']')?];
    (!name.is_empty()).then_some(name)
}

fn option(content: &str) -> Option<(String, String)> {
    let (key, value) = content.split_once(['=', ':'])?;
    let key = key.trim_end_matches(is_space).to_lowercase();
    (!key.is_empty()).then(|| (key, strip(value).to_owned()))
}

/// Percent-encodes the characters that are special to rust-ini, and `%` itself.
fn encode(text: &str) -> String {
    let is_special =
        |letter: char| "%\\[]".contains(letter) || is_space(letter) || letter.is_control();
    let mut encoded = String::with_capacity(text.len());
    for letter in text.chars() {
        if !is_special(letter) {
            encoded.push(letter)
        } else {
            letter
                .encode_utf8(&mut [0; 4])
                .bytes()
                .for_each(|byte| encoded.push_str(&format!("%{byte:02x}")))
        }
    }
    encoded
}

/// Reverts [`encode`].
fn decode(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2).unwrap_or((piece, ""));
        bytes.extend(u8::from_str_radix(code, 16));
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Sections {
        let mut sections = Sections::default();
        sections.add(Path::new("/x.conf"), text);
        sections
    }

    fn value<'a>(sections: &'a Sections, key: &str) -> Option<&'a str> {
        sections.find("a", key).map(|setting| &*setting.value)
    }

    #[test]
    fn values_are_parsed_as_the_daemon_parses_them() {
        for (text, expected) in [
            ("k=v", "v"),
            ("k : v", "v"),
            ("K=v", "v"),
            ("k = a=b:c", "a=b:c"),
            ("k =", ""),
            ("k = v ; comment", "v"),
            ("k = v # comment", "v"),
            ("k = v;no comment", "v;no comment"),
            ("k = v\t;comment", "v"),
            ("k = ;comment", ""),
            ("k = a;b ;c #d", "a;b ;c"),
            ("k = a\n b\n\tc", "a\nb\nc"),
            ("k =\n a\n b", "\na\nb"),
            ("k = a\n\n b\n\n\n", "a\n\nb"),
            ("k = a\n ; comment\n b", "a\nb"),
            ("k = a\n# comment\n b", "a\nb"),
            ("k = a\n [b]\n", "a\n[b]"),
            ("k = a\n x = b", "a\nx = b"),
            ("  k = a\n  l = b", "a"),
            ("k = \"a\\n' b", "\"a\\n' b"),
            ("k = a\\\nl = b", "a\\"),
            ("k = 100%% %20", "100%% %20"),
            ("k = \u{a0}\u{1f}v\u{2003}", "v"),
            ("k = a\nk = b", "b"),
            ("k = a\n[b]\nk = c\n[a]\nl = d", "a"),
        ] {
            assert_eq!(
                value(&read(&format!("[a]\n{text}")), "k"),
                Some(expected),
                "{text:?}"
            );
        }
    }

    #[test]
    fn headers_are_parsed_as_the_daemon_parses_them() {
        for (text, expected) in [
            ("[a]", Some("a")),
            ("[ a b ]", Some(" a b ")),
            ("[a]b]c", Some("a]b")),
            ("[a] ; comment", Some("a")),
            ("[[a]]", Some("[a]")),
            ("[]]", Some("]")),
            ("[a\\n%20]", Some("a\\n%20")),
            ("[]", None),
            ("[a", None),
        ] {
            let sections = read(text);
            assert_eq!(
                sections.iter().next().map(|section| &*section.name),
                expected,
                "{text:?}"
            );
            assert_eq!(
                sections.invalid_lines.is_empty(),
                expected.is_some(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn invalid_lines_are_collected() {
        let sections = read("outside\n[a]\nk = v\n\n= x\nl = w\n  more\n[");
        let invalid: Vec<_> = sections
            .invalid_lines
            .iter()
            .map(|invalid| (invalid.line, invalid.section.as_deref()))
            .collect();
        assert_eq!(invalid, [(1, None), (5, Some("a")), (8, Some("a"))]);
        assert_eq!(value(&sections, "l"), Some("w\nmore"));
    }

    #[test]
    fn sections_inherit_defaults_with_the_directory_of_their_file() {
        let mut sections = read("[DEFAULT]\nk=%(here)s\nl=1\n[a]\nm=%(here)s");
        sections.expand_here("/one");
        sections.add(Path::new("/two/x"), "[b]\nn=%(here)s");
        sections.expand_here("/two");
        let find = |section, key| sections.find(section, key).map(|setting| &*setting.value);
        assert_eq!(find("a", "k"), Some("/one"));
        assert_eq!(find("a", "m"), Some("/one"));
        assert_eq!(find("b", "k"), Some("/two"));
        assert_eq!(find("b", "n"), Some("/two"));
        assert_eq!((find("b", "l"), find("c", "l")), (Some("1"), None));
        assert_eq!(
            sections.iter().count(),
            2,
            "DEFAULT is not listed as a section"
        );
    }

    #[test]
    fn encoded_texts_are_decoded_unchanged() {
        for text in [
            "",
            "a b",
            "%",
            "%41",
            "a]\\[",
            "\n\t\u{1c}\u{85}\u{3000}é",
            "=:;#'\"",
        ] {
            assert_eq!(decode(&encode(text)), text);
        }
    }
}
