//! Random configurations.

use std::fmt::Write as _;

use super::Files;

/// The first version of Python that searches for comments in another order (see `conf::ini`).
pub(super) const NEW_COMMENT_ORDER: [u32; 2] = [3, 13];

/// A generator of configurations in all notations, most of them valid.
pub(super) struct Random {
    state: u64,
    python: [u32; 2],
    /// The number of names so far: each program and group has a new name.
    names: u32,
}

impl Random {
    pub(super) fn new(seed: u64, python: [u32; 2]) -> Self {
        Random {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            python,
            names: 0,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub(super) fn files(&mut self) -> Files {
        let mut sections = vec![self.supervisord()];
        for _ in 0..self.below(3) {
            sections.push(self.server());
        }
        if !self.one_in(3) {
            sections.push(self.include());
        }
        if self.one_in(2) {
            sections.push(self.twiddler());
        }
        for _ in 0..self.below(4) {
            sections.push(self.other());
        }
        let mut files = vec![("s.conf".to_owned(), self.shuffled(sections).into_bytes())];
        for name in [
            "a.ini",
            "conf.d/a.conf",
            "conf.d/b.conf",
            "conf.d/.h.conf",
            "conf.d/sub/c.conf",
        ] {
            if self.one_in(2) {
                files.push((name.to_owned(), self.included().into_bytes()));
            }
        }
        Files(files)
    }

    fn included(&mut self) -> String {
        let mut sections = vec![self.other()];
        if self.one_in(3) {
            sections.push(self.server());
        }
        if self.one_in(6) {
            sections.push(self.supervisord());
        }
        self.shuffled(sections)
    }

    fn shuffled(&mut self, mut sections: Vec<String>) -> String {
        for index in (1..sections.len()).rev() {
            sections.swap(index, self.below(index as u64 + 1) as usize);
        }
        let indent = self.pick(&["", "", "", "  ", "\t"]);
        let text = indented(&sections.concat(), indent);
        if self.one_in(8) {
            text.replace('\n', "\r\n")
        } else {
            text
        }
    }

    fn section(&mut self, name: &str, options: &[(&str, String)]) -> String {
        let mut text = String::new();
        for (key, value) in options {
            self.filler(&mut text);
            text.push_str(&self.option(key, value));
        }
        self.filler(&mut text);
        let indent = self.pick(&["", "", "", " ", "\u{3000}"]);
        format!("[{name}]{}\n{}", self.tail(), indented(&text, indent))
    }

    fn option(&mut self, key: &str, value: &str) -> String {
        let key = if self.one_in(4) {
            key.to_uppercase()
        } else {
            key.to_owned()
        };
        let between = self.pick(&["=", "=", " = ", ":", " : ", "=\t", "\u{a0}= "]);
        format!("{key}{between}{value}{}\n", self.tail())
    }

    /// Returns white space or a comment for the end of a line.
    fn tail(&mut self) -> &'static str {
        if self.one_in(2) {
            return "";
        }
        let mixed = [" ; a # b", "\t#;", " ;a;b #c;d"];
        let plain = [
            "  ",
            "\t",
            " ; comment",
            " # comment",
            "\t;x",
            " ;;",
            "\u{2003}#x",
        ];
        if self.python < NEW_COMMENT_ORDER && self.one_in(3) {
            self.pick(&mixed)
        } else {
            self.pick(&plain)
        }
    }

    /// Appends empty lines or comments.
    fn filler(&mut self, text: &mut String) {
        if self.one_in(3) {
            text.push_str(self.pick(&[
                "\n",
                "  \n",
                "; comment\n",
                "   # comment\n",
                "\n\n;\n",
                "#a=b\n",
            ]));
        }
    }

    fn supervisord(&mut self) -> String {
        let mut options = Vec::new();
        if self.one_in(2) {
            let file = self.pick(&[
                "%(here)s/d.log",
                "syslog",
                "d.log",
                "~/d.log",
                "/tmp/../d;d.log",
                "/%(ENV_S)s",
                "x%%",
            ]);
            options.push(("logfile", file.to_owned()));
        }
        if self.one_in(2) {
            let level = self.pick(&[
                "critical", "error", "warn", "info", "debug", "trace", "Blather", "DEBUG",
            ]);
            options.push(("loglevel", level.to_owned()));
        }
        if self.one_in(2) {
            let pairs = self.pick(&[
                "S=1",
                "S=\"a,b\",T='c d'",
                "S='%(ENV_A)s'",
                "S='%(here)s/x',",
                "S=a/b\n  ,T=%(ENV_PORT)s",
                "T=1;S=2",
                "",
                "S=x#y",
                "S='%%%%'",
            ]);
            options.push(("environment", pairs.to_owned()));
        }
        self.section("supervisord", &options)
    }

    fn server(&mut self) -> String {
        let mut options = Vec::new();
        let unix = self.one_in(2);
        if unix {
            let file = self.pick(&[
                "/run/s.sock",
                "%(here)s/s.sock",
                "rel.sock",
                "~/s.sock",
                "/a/../b//c",
                "/x%%y",
                "/x;y#z",
                "/%(ENV_A)s.sock",
                "/%(ENV_S)s",
                "/a b\n  c",
                "\n /a",
                "/%(ENV_A)20.4s|",
                "'/q'",
                "/a\\",
                "/[a]",
            ]);
            options.push(("file", file.to_owned()));
        } else {
            let port = self.pick(&[
                "9001",
                "*:9001",
                "127.0.0.1:9001",
                "Host:1",
                ":9001",
                "+9_001",
                "localhost: 65535",
                "%(ENV_PORT)s",
                "*:%(ENV_PORT)s",
                "[::1]:9001",
                "\n  9001",
                "0",
                "70000",
                "x",
            ]);
            options.push(("port", port.to_owned()));
        }
        if self.one_in(2) {
            let words = [
                "user",
                "",
                "u:s=r",
                "ü",
                "%(ENV_A)s",
                "%(ENV_S)s",
                "a\n  b",
                "{SHA}82ab",
                "p%%",
                "p;q#r",
                "'q'",
                "\"q\"",
                "\\n",
                "%(ENV_PERCENT)s",
                "a,b",
                "%(here)s",
                "%41",
                "\u{3000}x",
            ];
            options.push(("username", self.pick(&words).to_owned()));
            if !self.one_in(12) {
                options.push(("password", self.pick(&words).to_owned()));
            }
        }
        let name = if unix {
            self.pick(&[
                "unix_http_server",
                "unix_http_server:a",
                "unix_http_server2",
                "unix_http_server:[x",
            ])
        } else {
            self.pick(&[
                "inet_http_server",
                "inet_http_server:a",
                "inet_http_servers",
                "inet_http_server: b ",
            ])
        };
        self.section(name, &options)
    }

    fn include(&mut self) -> String {
        let mut files = String::new();
        for _ in 0..=self.below(3) {
            files.push_str(self.pick(&[" ", "\n  ", "\n\n\t", "  "]));
            files.push_str(self.pick(&[
                "*.ini",
                "conf.d/*.conf",
                "conf.d/[ab].conf",
                "%(here)s/conf.d/*",
                "*/*.conf",
                "none/*.conf",
                "conf.d/.*",
                "conf.d/*/*.conf",
                "conf.d/**.conf",
                "./conf.d/../a.ini",
                "conf.d/[!a].conf",
                "%(ENV_S)s/*",
                "conf.d/a*",
                "conf.d/?.conf",
                "/nowhere/[/*",
                "conf.d/[a",
                "conf.d/sub",
            ]));
        }
        self.section("include", &[("files", files)])
    }

    fn other(&mut self) -> String {
        match self.below(11) {
            0..=3 => self.program("program"),
            4 => self.program("fcgi-program"),
            5 => self.program("eventlistener"),
            6..=8 => self.group(),
            9 => {
                let key = self.pick(&["priority", "username", "loglevel", "unused"]);
                let value = self.pick(&["5", "%(here)s", "warn", "%(ENV_A)s"]);
                self.section("DEFAULT", &[(key, value.to_owned())])
            }
            _ => self.section("rpcinterface", &[("a", "b\n  [c]\n  d = e".to_owned())]),
        }
    }

    /// Returns a `[twiddler]` section with any characters, because supervisord does not read its values.
    fn twiddler(&mut self) -> String {
        let mut text = "[twiddler]\n".to_owned();
        for index in 0..=self.below(5) {
            let indent = self.pick(&["", "", " ", "  ", "\t", "   "]);
            let begin = if self.one_in(3) {
                String::new()
            } else {
                format!("k{index}=")
            };
            let _ = writeln!(text, "{indent}{begin}{}", self.letters());
        }
        text
    }

    fn letters(&mut self) -> String {
        let plain = [
            "a", "B", " ", "  ", "=", ":", "[", "]", "\\", "'", "\"", "%%", "%(here)s", ",", "ü",
        ];
        let odd = [
            "\t", "\u{1f}", "\u{85}", "\u{a0}", "\u{2028}", "\u{200b}", "\u{feff}", "\u{b}", "\r",
            "\0",
        ];
        let comment = if self.one_in(2) {
            [";", " ;"]
        } else {
            ["#", " #"]
        };
        let both = [";", "#"];
        let mut letters = String::new();
        for _ in 0..self.below(14) {
            letters.push_str(match self.below(12) {
                0 | 1 => self.pick(&odd),
                2 if self.python < NEW_COMMENT_ORDER => self.pick(&both),
                3 => self.pick(&comment),
                _ => self.pick(&plain),
            });
        }
        letters
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("p{}", self.names)
    }

    fn program(&mut self, kind: &str) -> String {
        let name = self.name();
        self.program_named(kind, &name)
    }

    fn program_named(&mut self, kind: &str, name: &str) -> String {
        let mut options = vec![("command", "/bin/cat %(program_name)s ; x".to_owned())];
        match kind {
            "fcgi-program" => options.push(("socket", "tcp://localhost:1".to_owned())),
            "eventlistener" => options.push(("events", "TICK_5".to_owned())),
            _ => {}
        }
        if self.one_in(2) {
            let count = self.pick(&[
                "0",
                "1",
                "2",
                " +1_0",
                "-1",
                "%(ENV_EMPTY)s0",
                "0%(program_name).0s%(group_name).0s",
            ]);
            options.push(("numprocs", count.to_owned()));
            options.push((
                "process_name",
                "%(program_name)s_%(process_num)02d".to_owned(),
            ));
        }
        self.priority(&mut options);
        let spaced = if self.one_in(8) { " " } else { "" };
        self.section(&format!("{kind}:{name}{spaced}"), &options)
    }

    fn priority(&mut self, options: &mut Vec<(&'static str, String)>) {
        if self.one_in(2) {
            let priority = self.pick(&["1", "-5", "999", "+7", "1_0", "%(ENV_PORT)s"]);
            options.push(("priority", priority.to_owned()));
        }
    }

    fn group(&mut self) -> String {
        let name = self.name();
        let mut options = Vec::new();
        let mut programs = String::new();
        let mut text = String::new();
        for index in 0..self.below(3) {
            let program = self.name();
            let comma = if index == 0 {
                ""
            } else {
                self.pick(&[",", ", ", " ,\n  "])
            };
            let _ = write!(programs, "{comma}{program}");
            let kind = self.pick(&["program", "program", "fcgi-program"]);
            // The space after the program's name is removed, because the group would not find the program.
            text.push_str(
                &self
                    .program_named(kind, &program)
                    .replace(&format!("{program} ]"), &format!("{program}]")),
            );
        }
        if !programs.is_empty() || self.one_in(2) {
            options.push(("programs", programs));
        }
        self.priority(&mut options);
        let section = self.section(&format!("group:{name}"), &options);
        if self.one_in(2) {
            section + &text
        } else {
            text + &section
        }
    }
}

fn indented(text: &str, indent: &str) -> String {
    text.lines()
        .fold(String::new(), |all, line| all + indent + line + "\n")
}
