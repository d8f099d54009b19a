//! Sections for an included file that mean what the client's mean in the main file.

use std::fmt::Write as _;

use super::guard::guarded;
use super::options::Reading;
use super::template::{FormatError, Known, Piece, Template};
use super::{DEFAULT_PRIORITY, Program, Scope};

/// `[group:GROUP]` with these programs.
pub fn render_group(group: &str, priority: i64, programs: &[&str]) -> String {
    let programs = guarded(&[Piece::Text(programs.join(","))]);
    format!("[group:{group}]\npriority={priority}\nprograms={programs}\n")
}

impl Program {
    /// The section `[program:SECTION]` with the processes of `scope`.
    pub fn render(&self, section: &str, scope: Scope) -> String {
        self.render_with_proxy_url(section, scope, None)
    }

    /// As [`Program::render`]. The processes are told to call supervisord at `proxy`, where that was
    /// asked for ([`Program::calling_proxy`]): under the name that they are told, only the proxy
    /// knows them. The variable in `environment` wins by itself, because the daemon sets it last
    /// (`supervisor/process.py`, `_spawn_as_child`).
    pub fn render_with_proxy_url(
        &self,
        section: &str,
        scope: Scope,
        proxy: Option<&str>,
    ) -> String {
        let mut text = format!("[program:{section}]\n");
        let proxy = proxy.filter(|_| self.calls_proxy);
        if let Some(url) = proxy {
            let url = guarded(&[Piece::Text(url.to_owned())]);
            let _infallible = writeln!(text, "serverurl={url}");
        }
        for (option, value) in self.file_texts(scope) {
            if proxy.is_some() && option == "serverurl" {
                continue;
            }
            // Without the indent, the parser would take further lines for options and sections.
            let value = value.replace('\n', "\n ");
            let _infallible = writeln!(text, "{option}={value}");
        }
        text
    }

    /// The processes of `scope` in the group `real` of this priority. Where the daemon would make the
    /// same group of the program's section, that says it all: each section takes the daemon its time
    /// (`supervisor/options.py`, `process_groups_from_parser`). `proxy` as in [`Program::render_with_proxy_url`].
    pub fn render_placed(
        &self,
        real: &str,
        scope: Scope,
        priority: i64,
        proxy: Option<&str>,
    ) -> String {
        let program = self.render_with_proxy_url(real, scope, proxy);
        if self.is_whole_group(priority) {
            return program;
        }
        render_group(real, priority, &[real]) + &program
    }

    /// Whether the daemon makes of the program's section alone a group of this priority.
    pub fn is_whole_group(&self, priority: i64) -> bool {
        priority == DEFAULT_PRIORITY && self.text("priority").is_none()
    }

    /// The options of a section, with the text that the daemon's parser has for each before it is
    /// expanded.
    pub(super) fn file_texts(&self, scope: Scope) -> Vec<(&str, String)> {
        let (numprocs, numprocs_start) = match scope {
            Scope::All | Scope::Placed => (self.numprocs, self.numprocs_start),
            Scope::One(index) => (1, self.numprocs_start + i64::from(index)),
        };
        // Without a `process_name` the section's own name would come out.
        let process_name = self.text("process_name").unwrap_or_default();
        let mut texts = vec![
            ("process_name", self.file_text("process_name", process_name)),
            ("numprocs", numprocs.to_string()),
            ("numprocs_start", numprocs_start.to_string()),
        ];
        if scope != Scope::All {
            texts.push(("environment", self.environment_with_group()));
        }
        for (option, text) in &self.options {
            if texts.iter().all(|(name, _)| name != option) {
                texts.push((option, self.file_text(option, text)));
            }
        }
        texts
    }

    fn file_text(&self, option: &str, text: &str) -> String {
        guarded(&self.file_pieces(option, text))
    }

    /// A process in a group of another name is told the one that its users know. The
    /// daemon applies it after its own setting (`supervisor/process.py`, `_spawn_as_child`), and of
    /// two pairs of one name the later, which is the client's.
    fn environment_with_group(&self) -> String {
        let mut pieces = vec![Piece::Text(group_setting(self.group()).unwrap_or_default())];
        let text = self.options.get("environment").map_or("", String::as_str);
        pieces.extend(self.file_pieces("environment", text));
        guarded(&pieces)
    }

    fn file_pieces(&self, option: &str, text: &str) -> Vec<Piece> {
        let reading = Reading::of(option);
        // A bad format is left in options that the daemon ignores alone: nobody will expand it.
        pieces(reading, text, &self.known(reading, None))
            .unwrap_or_else(|_| vec![Piece::Text(text.to_owned())])
    }
}

/// The pair for `environment` that sets the group, in quotes that the daemon takes off again
/// (`supervisor/datatypes.py`, `dict_of_key_value_pairs`): nothing inside them is escaped, and of
/// the value it strips both kinds.
pub(super) fn group_setting(group: &str) -> Option<String> {
    let quotes = ['"', '\''];
    let quote = quotes.into_iter().find(|quote| !group.contains(*quote))?;
    let whole = !group.starts_with(quotes) && !group.ends_with(quotes);
    whole.then(|| format!("SUPERVISOR_GROUP_NAME={quote}{group}{quote},"))
}

/// What the daemon has to find for `text`.
fn pieces(reading: Reading, text: &str, known: &Known<'_>) -> Result<Vec<Piece>, FormatError> {
    let template = Template::parse(text)?.resolved(known);
    if reading != Reading::Twice {
        return Ok(template.0);
    }
    let again = template.0.into_iter().map(|piece| match piece {
        Piece::Text(text) => second_text(&text, known).map(Piece::Text),
        conversion => Ok(conversion),
    });
    again.collect()
}

/// What the second expansion has to find for `text`: known values in place of their conversions,
/// everything else as it is.
fn second_text(text: &str, known: &Known<'_>) -> Result<String, FormatError> {
    let mut out = String::new();
    for piece in Template::parse(text)?.0 {
        match piece {
            Piece::Text(text) => out.push_str(&text.replace('%', "%%")),
            Piece::Conversion(conversion) => match known.text(&conversion) {
                Some(text) => out.push_str(&text.replace('%', "%%")),
                None => out.push_str(&conversion.source),
            },
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::{Name, tests::program};
    use super::*;

    const KNOWN: Known<'_> = Known {
        program_name: "ls",
        group_name: "50%",
        numprocs: Some(3),
        process_num: None,
    };

    fn written(reading: Reading, text: &str) -> Result<String, FormatError> {
        pieces(reading, text, &KNOWN).map(|pieces| guarded(&pieces).replace("%(here).0s", "|"))
    }

    #[test]
    fn known_values_are_written_in_place_of_their_conversions() {
        let table = [
            ("%(program_name)-4s;", "ls  |;"),
            ("%(group_name)s", "50%%"),
            ("%(numprocs)02d %(process_num)02d", "03 %(process_num)02d"),
            ("%(program_name)d", "%(program_name)d"),
        ];
        for (text, expected) in table {
            assert_eq!(written(Reading::PerProcess, text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn log_files_are_written_for_two_expansions() {
        let table = [
            ("/a/%(program_name)s.log", "/a/ls.log"),
            ("/a/%%(program_name)s.log", "/a/ls.log"),
            ("/a/%%(group_name)s", "/a/50%%%%"),
            ("%(here)s/%%(here)s", "%(here)-s/%%|(here)s"),
            ("/a/%%%%", "/a/%%%%"),
            (
                "%%(process_num)d%(process_num)d",
                "%%|(process_num)d%(process_num)d",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(
                written(Reading::Twice, text).as_deref(),
                Ok(expected),
                "{text:?}"
            );
        }
        for text in ["/a/%%", "/a/%(group_name)s", "/a/%%s", "%%%(here)s"] {
            assert!(written(Reading::Twice, text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sections_hold_what_follows_from_the_name() {
        let program = program(&[
            ("command", "a\n[x]"),
            ("NUMPROCS", " 1 "),
            ("x-odd", "%s ;"),
        ]);
        assert_eq!(
            program
                .render("ls~000001", Scope::All)
                .replace("%(here).0s", "|"),
            "[program:ls~000001]\nprocess_name=ls\nnumprocs=1\nnumprocs_start=0\n\
             command=a\n |[x]\nx-odd=%%s |;\n",
        );
        assert_eq!(
            program
                .render("ls~000001", Scope::One(0))
                .replace("%(here).0s", "|"),
            "[program:ls~000001]\nprocess_name=ls\nnumprocs=1\nnumprocs_start=0\n\
             environment=SUPERVISOR_GROUP_NAME=\"g\",\ncommand=a\n |[x]\nx-odd=%%s |;\n",
        );
    }

    #[test]
    fn one_process_is_set_apart_by_its_number() {
        let program = program(&[
            ("command", "/bin/cat"),
            ("environment", "A=%(numprocs)d"),
            ("numprocs", "3"),
            ("numprocs_start", "5"),
            ("process_name", " p%(process_num)02d "),
        ]);
        assert_eq!(
            program.render("ls~000002", Scope::One(2)),
            "[program:ls~000002]\nprocess_name=p%(process_num)02d\nnumprocs=1\n\
             numprocs_start=7\nenvironment=SUPERVISOR_GROUP_NAME=\"g\",A=3\ncommand=/bin/cat\n",
        );
        assert!(
            program
                .render("x", Scope::All)
                .contains("numprocs=3\nnumprocs_start=5\n")
        );
    }

    #[test]
    fn who_says_no_other_address_is_told_that_of_the_proxy() {
        const PROXY: &str = "unix:///run/50%.sock";
        const WRITTEN: &str = "serverurl=unix:///run/50%%.sock\n";
        let table = [
            (None, Some(WRITTEN)),
            (Some(" auto "), Some(WRITTEN)),
            (Some("AUTO"), Some(WRITTEN)),
            (Some("http://h:1"), Some("serverurl=http://h:1\n")),
            (Some(""), Some("serverurl=\n")),
            (Some("%(ENV_A)s"), Some("serverurl=%(ENV_A)s\n")),
        ];
        for (sent, expected) in table {
            let mut options = vec![("command", "/bin/cat")];
            options.extend(sent.map(|text| ("serverurl", text)));
            let program = program(&options).calling_proxy();
            let text = program.render_with_proxy_url("g~000001", Scope::Placed, Some(PROXY));
            let mut lines = text.split_inclusive('\n');
            let line = lines.find(|line| line.starts_with("serverurl="));
            assert_eq!(line, expected, "{sent:?}");
            assert!(lines.all(|line| !line.starts_with("serverurl=")), "{text}");
            let text = program.render("g~000001", Scope::Placed);
            assert!(!text.contains("/run/"), "{text}");
        }
    }

    #[test]
    fn groups_are_quoted_for_the_environment() {
        let table = [
            ("g", Some("SUPERVISOR_GROUP_NAME=\"g\",")),
            ("a\"b", Some("SUPERVISOR_GROUP_NAME='a\"b',")),
            ("a'b\"c", None),
            ("'a", None),
        ];
        for (group, expected) in table {
            assert_eq!(group_setting(group).as_deref(), expected);
        }
    }

    #[test]
    fn groups_name_their_programs() {
        assert_eq!(
            render_group("g", -1, &[]),
            "[group:g]\npriority=-1\nprograms=\n"
        );
        let name = Name::parse("%(here)s").unwrap();
        assert_eq!(
            render_group("50%", 999, &["a%", name.as_str()]),
            "[group:50%]\npriority=999\nprograms=a%%,%%%(here).0s(here)s\n"
        );
    }
}
