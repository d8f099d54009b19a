//! Text to sections, as Python's `configparser` does it under the settings of
//! supervisor/options.py, `UnhosedConfigParser`.
//!
//! Comments, continued values and section names are settled here, line by line. What is left is
//! a plain document of one option a line, which rust-ini reads.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use ::ini::{Ini, ParseOption, Properties};

use crate::python::{is_space, strip};

/// The prefixes of the sections that make the daemon listen. It compares no more than these letters:
/// `[unix_http_server:a]` and `[unix_http_servers]` are servers too.
pub(super) const UNIX_SERVER: &str = "unix_http_server";
pub(super) const INET_SERVER: &str = "inet_http_server";

/// Whether a section makes the daemon listen.
pub(super) fn is_server(section: &str) -> bool {
    section.starts_with(UNIX_SERVER) || section.starts_with(INET_SERVER)
}

/// The section whose options all others inherit.
const DEFAULTS: &str = "DEFAULT";
const HERE: &str = "%(here)s";

/// rust-ini with all that the daemon does not do turned off.
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
    /// The file in which it appeared first.
    pub(super) file: Arc<Path>,
    /// What the section itself sets.
    pub(super) own: Vec<Setting>,
    /// What it once took from the defaults, because `%(here)s` had to be replaced for it.
    inherited: Vec<Setting>,
}

/// A line that the daemon refuses.
pub(super) struct OddLine {
    pub(super) file: Arc<Path>,
    pub(super) line: usize,
    pub(super) section: Option<String>,
}

/// All sections of the files added so far; same-named ones are merged.
#[derive(Default)]
pub(super) struct Sections {
    defaults: Vec<Setting>,
    sections: Vec<Section>,
    /// Where each section is in `sections`.
    places: HashMap<String, usize>,
    pub(super) odd_lines: Vec<OddLine>,
}

impl Sections {
    pub(super) fn add(&mut self, file: &Path, text: &str) {
        let file: Arc<Path> = file.into();
        let mut lines = Lines::default();
        for (index, line) in text.split('\n').enumerate() {
            lines.take(index + 1, line);
        }
        let (document, odd) = lines.finish();
        let odd = odd.into_iter().map(|(line, section)| OddLine {
            file: file.clone(),
            line,
            section,
        });
        self.odd_lines.extend(odd);
        let ini = Ini::load_from_str_opt(&document, PLAIN).expect(
            "the document has only headers and `key=value` lines, without special characters",
        );
        for (name, properties) in ini.iter() {
            let Some(name) = name else { continue };
            self.merge(&unguard(name), properties, &file);
        }
    }

    fn merge(&mut self, name: &str, properties: &Properties, file: &Arc<Path>) {
        let settings = self.settings_of(name, file);
        for (key, value) in properties.iter() {
            let (key, value, file) = (unguard(key), unguard(value), file.clone());
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
        let index = *self.places.entry(name.to_owned()).or_insert_with(|| {
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
    /// A default is replaced for each section on its own: a section that a later file brings
    /// gets the directory of that file.
    pub(super) fn expand_here(&mut self, here: &str) {
        for section in &mut self.sections {
            let open = |setting: &&Setting| setting.value.contains(HERE);
            let taken: Vec<_> = self
                .defaults
                .iter()
                .filter(open)
                .filter(|default| !section.has(&default.key))
                .cloned()
                .collect();
            section.inherited.extend(taken);
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
        self.places.get(name).map(|index| &self.sections[*index])
    }

    /// All options that a section has, its own before those that it inherits.
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

/// Goes through the lines of one file and writes the plain document.
#[derive(Default)]
struct Lines {
    document: String,
    odd: Vec<(usize, Option<String>)>,
    section: Option<String>,
    /// The option whose value may go on in the next line.
    open: Option<(String, String)>,
    indent: usize,
}

impl Lines {
    fn take(&mut self, number: usize, line: &str) {
        let comment = comment_start(line);
        let content = strip(&line[..comment.unwrap_or(line.len())]);
        let indent = line.chars().take_while(|letter| is_space(*letter)).count();
        match &mut self.open {
            // A line with nothing but a comment is no part of a value, a blank one is.
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
            self.document.push_str(&format!("[{}]\n", guard(name)));
            self.section = Some(name.to_owned());
        } else if let Some(option) = option(content).filter(|_| self.section.is_some()) {
            self.close();
            self.open = Some(option);
        } else {
            self.odd.push((number, self.section.clone()));
        }
    }

    fn close(&mut self) {
        if let Some((key, value)) = self.open.take() {
            let value = value.trim_end_matches(is_space);
            self.document
                .push_str(&format!("{}={}\n", guard(&key), guard(value)));
        }
    }

    fn finish(mut self) -> (String, Vec<(usize, Option<String>)>) {
        self.close();
        (self.document, self.odd)
    }
}

/// Where the comment in a line begins: at a `;` or `#` that is its first visible character, or
/// that follows white space.
///
/// Python goes through the occurrences of both in step and stops at the first step that finds a
/// comment, so in `a;b ;c #d` the comment is `#d`. (From 3.13 on it takes the first of all.)
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
        let found = step.into_iter().flatten().filter(begins).min();
        if found.is_some() {
            return found;
        }
    }
}

/// The name in `[name]`: up to the last bracket of the line, and with its spaces.
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

/// Hides from rust-ini the characters that mean something to it (`%` stands for itself as `%25`).
fn guard(text: &str) -> String {
    let special =
        |letter: char| "%\\[]".contains(letter) || is_space(letter) || letter.is_control();
    let mut guarded = String::with_capacity(text.len());
    for letter in text.chars() {
        if !special(letter) {
            guarded.push(letter)
        } else {
            letter
                .encode_utf8(&mut [0; 4])
                .bytes()
                .for_each(|byte| guarded.push_str(&format!("%{byte:02x}")))
        }
    }
    guarded
}

fn unguard(text: &str) -> String {
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
    fn values_are_read_as_the_daemon_reads_them() {
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
    fn headers_are_read_as_the_daemon_reads_them() {
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
                sections.odd_lines.is_empty(),
                expected.is_some(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn lines_that_are_no_options_are_remembered() {
        let sections = read("outside\n[a]\nk = v\n\n= x\nl = w\n  more\n[");
        let odd: Vec<_> = sections
            .odd_lines
            .iter()
            .map(|odd| (odd.line, odd.section.as_deref()))
            .collect();
        assert_eq!(odd, [(1, None), (5, Some("a")), (8, Some("a"))]);
        assert_eq!(value(&sections, "l"), Some("w\nmore"));
    }

    #[test]
    fn defaults_are_seen_by_every_section_and_keep_its_here() {
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
            "DEFAULT is no section of its own"
        );
    }

    #[test]
    fn guarded_text_comes_back_whole() {
        for text in [
            "",
            "a b",
            "%",
            "%41",
            "a]\\[",
            "\n\t\u{1c}\u{85}\u{3000}é",
            "=:;#'\"",
        ] {
            assert_eq!(unguard(&guard(text)), text);
        }
    }
}
