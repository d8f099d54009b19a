//! Renders programs as sections of an included file that have the effect of the client's program in the
//! main file.

use std::fmt::Write as _;

use super::guard::escape;
use super::options::Expansion;
use super::template::{FormatError, KnownValues, Piece, Template};
use super::{DEFAULT_PRIORITY, Program, Scope};

/// Renders the section `[group:GROUP]` with these programs.
pub fn render_group(group: &str, priority: i64, programs: &[&str]) -> String {
    let programs = escape(&[Piece::Text(programs.join(","))]);
    format!("[group:{group}]\npriority={priority}\nprograms={programs}\n")
}

impl Program {
    /// Renders the section `[program:SECTION]` with the processes of `scope`.
    pub fn render(&self, section: &str, scope: Scope) -> String {
        self.render_with_proxy_url(section, scope, None)
    }

    /// Renders as [`Program::render`] does. For a program that calls the proxy
    /// ([`Program::calling_proxy`]) it sets `serverurl` to `proxy`, because only the proxy knows the
    /// processes by the names in their environment. If the client's `environment` sets
    /// `SUPERVISOR_SERVER_URL`, that value wins, because the daemon applies it last
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
            let url = escape(&[Piece::Text(url.to_owned())]);
            let _infallible = writeln!(text, "serverurl={url}");
        }
        for (option, value) in self.file_texts(scope) {
            if proxy.is_some() && option == "serverurl" {
                continue;
            }
            // The parser reads a line without an indent as a new option or section.
            let value = value.replace('\n', "\n ");
            let _infallible = writeln!(text, "{option}={value}");
        }
        text
    }

    /// Renders the processes of `scope` in the real group `real` with this priority. The `[group:x]`
    /// section is left out if the daemon makes the same group without it, because each section costs the
    /// daemon time (`supervisor/options.py`, `process_groups_from_parser`). `proxy` is as in
    /// [`Program::render_with_proxy_url`].
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

    /// Returns whether the daemon makes a group of this priority from the program's section alone.
    pub fn is_whole_group(&self, priority: i64) -> bool {
        priority == DEFAULT_PRIORITY && self.text("priority").is_none()
    }

    /// Returns the options of a section with the texts that the daemon's parser reads for them, before
    /// their expansion.
    pub(super) fn file_texts(&self, scope: Scope) -> Vec<(&str, String)> {
        let (numprocs, numprocs_start) = match scope {
            Scope::All | Scope::Placed => (self.numprocs, self.numprocs_start),
            Scope::One(index) => (1, self.numprocs_start + i64::from(index)),
        };
        // The default of `process_name` would give the name of the generated section.
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
        escape(&self.file_pieces(option, text))
    }

    /// Returns `environment` with `SUPERVISOR_GROUP_NAME` set to the group that clients know. The daemon
    /// applies `environment` after its own variables (`supervisor/process.py`, `_spawn_as_child`). If the
    /// client sets the variable too, that setting comes later and wins.
    fn environment_with_group(&self) -> String {
        let mut pieces = vec![Piece::Text(group_setting(self.group()).unwrap_or_default())];
        let text = self.options.get("environment").map_or("", String::as_str);
        pieces.extend(self.file_pieces("environment", text));
        escape(&pieces)
    }

    fn file_pieces(&self, option: &str, text: &str) -> Vec<Piece> {
        let expansion = Expansion::of(option);
        // Only an option that the daemon ignores can have an invalid format here. The daemon does not
        // expand it.
        pieces(expansion, text, &self.known_values(expansion, None))
            .unwrap_or_else(|_| vec![Piece::Text(text.to_owned())])
    }
}

/// Returns the pair for `environment` that sets `SUPERVISOR_GROUP_NAME`, or `None` if the group's name
/// cannot be quoted. The daemon knows no escapes inside quotes, and strips both kinds of quotes from the
/// value (`supervisor/datatypes.py`, `dict_of_key_value_pairs`).
pub(super) fn group_setting(group: &str) -> Option<String> {
    let quotes = ['"', '\''];
    let quote = quotes.into_iter().find(|quote| !group.contains(*quote))?;
    let survives_strip = !group.starts_with(quotes) && !group.ends_with(quotes);
    survives_strip.then(|| format!("SUPERVISOR_GROUP_NAME={quote}{group}{quote},"))
}

/// Returns the pieces from which the daemon expands the same value as from `text` in the client's
/// section. Values that the proxy knows replace their conversions, because the generated section has
/// other names.
fn pieces(
    expansion: Expansion,
    text: &str,
    values: &KnownValues<'_>,
) -> Result<Vec<Piece>, FormatError> {
    let template = Template::parse(text)?.resolve(values);
    if expansion != Expansion::Twice {
        return Ok(template.0);
    }
    let again = template.0.into_iter().map(|piece| match piece {
        Piece::Text(text) => second_text(&text, values).map(Piece::Text),
        conversion => Ok(conversion),
    });
    again.collect()
}

/// Returns the format string for the second expansion: `text` with the known values in place of their
/// conversions.
fn second_text(text: &str, values: &KnownValues<'_>) -> Result<String, FormatError> {
    let mut out = String::new();
    for piece in Template::parse(text)?.0 {
        match piece {
            Piece::Text(text) => out.push_str(&text.replace('%', "%%")),
            Piece::Conversion(conversion) => match values.text(&conversion) {
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

    const KNOWN: KnownValues<'_> = KnownValues {
        program_name: "ls",
        group_name: "50%",
        numprocs: Some(3),
        process_num: None,
    };

    fn escaped(expansion: Expansion, text: &str) -> Result<String, FormatError> {
        pieces(expansion, text, &KNOWN).map(|pieces| escape(&pieces).replace("%(here).0s", "|"))
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
            assert_eq!(
                escaped(Expansion::PerProcess, text).as_deref(),
                Ok(expected)
            );
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
                escaped(Expansion::Twice, text).as_deref(),
                Ok(expected),
                "{text:?}"
            );
        }
        for text in ["/a/%%", "/a/%(group_name)s", "/a/%%s", "%%%(here)s"] {
            assert!(escaped(Expansion::Twice, text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sections_set_the_options_that_depend_on_the_name() {
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
    fn a_section_of_one_process_has_its_number() {
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
    fn serverurl_is_the_proxys_unless_the_client_sets_it() {
        const PROXY: &str = "unix:///run/50%.sock";
        const ESCAPED: &str = "serverurl=unix:///run/50%%.sock\n";
        let table = [
            (None, Some(ESCAPED)),
            (Some(" auto "), Some(ESCAPED)),
            (Some("AUTO"), Some(ESCAPED)),
            (Some("http://h:1"), Some("serverurl=http://h:1\n")),
            (Some(""), Some("serverurl=\n")),
            (Some("%(ENV_A)s"), Some("serverurl=%(ENV_A)s\n")),
        ];
        for (serverurl, expected) in table {
            let mut options = vec![("command", "/bin/cat")];
            options.extend(serverurl.map(|text| ("serverurl", text)));
            let program = program(&options).calling_proxy();
            let text = program.render_with_proxy_url("g~000001", Scope::Placed, Some(PROXY));
            let mut lines = text.split_inclusive('\n');
            let line = lines.find(|line| line.starts_with("serverurl="));
            assert_eq!(line, expected, "{serverurl:?}");
            assert!(lines.all(|line| !line.starts_with("serverurl=")), "{text}");
            let text = program.render("g~000001", Scope::Placed);
            assert!(!text.contains("/run/"), "{text}");
        }
    }

    #[test]
    fn group_names_are_quoted_for_the_environment() {
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
    fn group_sections_list_their_programs() {
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
