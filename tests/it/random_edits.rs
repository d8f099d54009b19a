//! Random edits of random files: the judge is supervisord's own parser.
//!
//! `TEST_EFFORT` multiplies the random edits, `TEST_SEED` repeats them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::common::dice::{Dice, seed, times};
use crate::common::judge::{
    Judge, ctl, diff, ensure_as_judged, ensure_groups_replaced, ensure_reported, settled,
};
use crate::common::provision::Version;
use crate::common::values::sleeping;
use crate::common::{Client, Daemon, DaemonOptions, Sidecar, SidecarOptions};

const FILE: &str = "conf.d/web.conf";
/// Below another pattern of `[include]`.
const OTHER: &str = "more/web.conf";

/// One program of random files.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    options: BTreeMap<String, String>,
}

/// Random files: groups by name with their programs, and programs in no group.
#[derive(Clone, Debug)]
struct Files {
    groups: BTreeMap<String, Vec<usize>>,
    entries: Vec<Entry>,
    environment: String,
    /// The commands of an event listener and a FastCGI program.
    whole: [u64; 2],
    next: usize,
}

impl Files {
    fn new(dice: &mut Dice) -> Files {
        let mut files = Files {
            groups: BTreeMap::new(),
            entries: Vec::new(),
            environment: "ALL=\"1\"".to_owned(),
            whole: [600, 600],
            next: 0,
        };
        for _ in 0..6 {
            files.add(dice);
        }
        files.groups.insert("web".to_owned(), vec![0, 1, 2]);
        files.groups.insert("site".to_owned(), vec![3]);
        files
    }

    fn add(&mut self, dice: &mut Dice) -> usize {
        let mut options = BTreeMap::from([
            (
                "command".to_owned(),
                format!("/bin/sleep {}", 600 + dice.roll(5)),
            ),
            ("startsecs".to_owned(), "0".to_owned()),
        ]);
        if dice.one_in(3) {
            options.insert("numprocs".to_owned(), "2".to_owned());
            let name = "%(program_name)s_%(process_num)02d".to_owned();
            options.insert("process_name".to_owned(), name);
        }
        let name = format!("p{}", self.next);
        self.next += 1;
        self.entries.push(Entry { name, options });
        self.entries.len() - 1
    }

    /// Changes something, which may mean the same as before.
    fn edit(&mut self, dice: &mut Dice) {
        match dice.roll(13) {
            12 => self.whole[dice.roll(2)] += 1,
            0 => {
                let added = self.add(dice);
                if dice.one_in(2) {
                    let groups: Vec<String> = self.groups.keys().cloned().collect();
                    if let Some(name) = dice.choose(&groups) {
                        self.groups.entry(name.clone()).or_default().push(added);
                    }
                }
            }
            1 if self.entries.len() > 4 => self.remove(dice),
            2 => self.move_one(dice),
            3 => {
                let name = format!("g{}", dice.roll(3));
                if self.groups.remove(&name).is_none() {
                    let one = dice.roll(self.entries.len());
                    self.leave(one);
                    self.groups.insert(name, vec![one]);
                }
            }
            4 if dice.one_in(2) => {
                self.environment = (*dice
                    .choose(&["ALL=\"1\"", "ALL=1,", "ALL=2", "ALL='2'", "ALL=1,P=x"])
                    .expect("there are some"))
                .to_owned();
            }
            _ => self.edit_option(dice),
        }
    }

    fn leave(&mut self, one: usize) {
        for members in self.groups.values_mut() {
            members.retain(|member| *member != one);
        }
        self.groups.retain(|_, members| !members.is_empty());
    }

    fn remove(&mut self, dice: &mut Dice) {
        let gone = dice.roll(self.entries.len());
        self.leave(gone);
        self.entries.remove(gone);
        for members in self.groups.values_mut() {
            for member in members {
                if *member > gone {
                    *member -= 1;
                }
            }
        }
    }

    fn move_one(&mut self, dice: &mut Dice) {
        let one = dice.roll(self.entries.len());
        self.leave(one);
        let groups: Vec<String> = self.groups.keys().cloned().collect();
        if let Some(name) = dice.choose(&groups)
            && !dice.one_in(3)
        {
            self.groups.entry(name.clone()).or_default().push(one);
        }
    }

    fn edit_option(&mut self, dice: &mut Dice) {
        const CHOICES: [(&str, &[&str]); 22] = [
            (
                "command",
                &[
                    "/bin/sleep 700",
                    "/bin/sleep  700",
                    "/bin/sleep 701",
                    "/bin/sleep %(ENV_N)s0",
                    "/bin/sleep 60%(ENV_ALL)s",
                ],
            ),
            (
                "environment",
                &[
                    "A=\"1\"",
                    "A=1,B=2",
                    "B='2', A=\"1\"",
                    "A=\"1\",",
                    "ALL=3",
                    "A=%(program_name)s",
                ],
            ),
            ("autostart", &["true", "1", "false", "off", "yes"]),
            (
                "autorestart",
                &["true", "unexpected", "1", "false", "UNEXPECTED"],
            ),
            ("startretries", &["3", "4", " 3"]),
            ("stopsignal", &["TERM", "15", "INT", "SIGTERM"]),
            ("stopwaitsecs", &["10", "9"]),
            ("stopasgroup", &["true", "false", "on"]),
            ("killasgroup", &["true", "TRUE"]),
            ("exitcodes", &["0", "0,2", "0, 2"]),
            ("redirect_stderr", &["true", "false"]),
            ("umask", &["022", "0022", "077", "22"]),
            ("directory", &["/tmp", "%(here)s"]),
            ("priority", &["999", "5", "1"]),
            (
                "stdout_logfile",
                &[
                    "AUTO",
                    "NONE",
                    "%(here)s/%(program_name)s%(process_num)d.log",
                    "/dev/null",
                ],
            ),
            ("stderr_logfile", &["AUTO", "auto", "NONE"]),
            ("stdout_logfile_maxbytes", &["0", "50MB", "52428800"]),
            ("stdout_logfile_backups", &["10", "2"]),
            ("stderr_logfile_maxbytes", &["50MB", "1MB"]),
            ("stdout_capture_maxbytes", &["0", "1KB", "1024"]),
            ("stdout_events_enabled", &["true", "false"]),
            ("serverurl", &["AUTO", "http://127.0.0.1:1"]),
        ];
        let one = dice.roll(self.entries.len());
        let options = &mut self.entries[one].options;
        if dice.one_in(5) {
            if options.contains_key("process_name") {
                let count = match 1 + dice.roll(5) {
                    5 => "%(ENV_TWO)s".to_owned(),
                    count => count.to_string(),
                };
                options.insert("numprocs".to_owned(), count);
                if dice.one_in(4) {
                    let start = dice.roll(3).to_string();
                    options.insert("numprocs_start".to_owned(), start);
                }
            } else {
                let name = "%(program_name)s_%(process_num)02d".to_owned();
                options.insert("process_name".to_owned(), name);
            }
            return;
        }
        let (name, texts) = CHOICES[dice.roll(CHOICES.len())];
        if dice.one_in(4) && name != "command" {
            drop(options.remove(name))
        } else {
            drop(options.insert(name.to_owned(), texts[dice.roll(texts.len())].to_owned()))
        }
        if options
            .get("stdout_logfile")
            .is_some_and(|log| log == "/dev/null")
        {
            options.insert("stdout_logfile_maxbytes".to_owned(), "0".to_owned());
        }
        let is_off = |name: &str| options.get(name).is_none_or(|text| text == "false");
        if !is_off("stopasgroup") {
            options.remove("killasgroup");
        }
    }

    /// The texts of the included files, in a random spelling.
    fn texts(&self, dice: &mut Dice) -> [String; 2] {
        let mut sections: Vec<String> = Vec::new();
        for (name, members) in &self.groups {
            let members: Vec<&str> = members
                .iter()
                .map(|at| self.entries[*at].name.as_str())
                .collect();
            let comma = *dice.choose(&[",", ", ", ",\n  "]).expect("there are some");
            sections.push(format!(
                "[group:{name}]\nprograms = {}\n",
                members.join(comma)
            ));
        }
        for entry in &self.entries {
            let header = format!("[program:{}]\n", entry.name);
            let mut section = header.clone();
            for (name, text) in &entry.options {
                // The daemon merges two sections of the same name.
                if dice.one_in(12) {
                    sections.push(std::mem::replace(&mut section, header.clone()));
                }
                section += &spelt(name, text, dice);
            }
            sections.push(section);
        }
        let [listener, fast] = self.whole;
        sections.push(format!(
            "[eventlistener:ears]\nevents = TICK_3600\ncommand = /bin/sleep {listener}\nstartsecs = 0\n"
        ));
        sections.push(format!(
            "[fcgi-program:fast]\nsocket = unix://%(ENV_DIR)s/fast.sock\ncommand = /bin/sleep {fast}\nstartsecs = 0\n"
        ));
        let start = dice.roll(sections.len());
        if dice.one_in(3) {
            sections.rotate_left(start);
        }
        let between = *dice
            .choose(&["\n", "\n; a comment\n"])
            .expect("there are some");
        let half = dice.roll(sections.len());
        let (one, other) = sections.split_at(if dice.one_in(2) { half } else { 0 });
        [one, other].map(|sections| sections.join(between))
    }

    fn write(&self, daemon: &Daemon, dice: &mut Dice) -> Result<()> {
        let environment = format!("[supervisord]\nenvironment={}\n", self.environment);
        let [one, other] = self.texts(dice);
        daemon.write(FILE, &one)?;
        daemon.write(OTHER, &other)?;
        daemon.write("conf.d/env.conf", &environment)
    }
}

/// An option in a random spelling, in one line or several.
fn spelt(name: &str, text: &str, dice: &mut Dice) -> String {
    let name = if dice.one_in(6) {
        name.to_uppercase()
    } else {
        name.to_owned()
    };
    let text = if name.eq_ignore_ascii_case("environment") && dice.one_in(3) {
        text.replace(',', ",\n  ")
    } else {
        text.to_owned()
    };
    let space = *dice.choose(&["", " "]).expect("there are some");
    let comment = *dice
        .choose(&["", "", " ; c", "\n# c"])
        .expect("there are some");
    format!("{name}{space}={space}{text}{comment}\n")
}

/// How an edit is applied.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// `updateConfig`
    Config,
    /// `supervisorctl update` with `live_update`
    Live,
    /// `supervisorctl update`
    Plain,
}

/// A daemon with random files, the proxy in front of it, and the judge of their updates.
struct Field {
    by: By,
    dice: Dice,
    files: Files,
    daemon: Daemon,
    sidecar: Sidecar,
    judge: Judge,
    /// The namespecs of added processes.
    added: BTreeSet<String>,
    serial: usize,
    _sockets: tempfile::TempDir,
}

impl Field {
    fn new(version: Version, seed: u64, by: By) -> Result<Field> {
        let mut dice = Dice::new(seed);
        let files = Files::new(&mut dice);
        let [one, other] = files.texts(&mut dice);
        let sockets = tempfile::tempdir()?;
        let dir = sockets.path().to_string_lossy().into_owned();
        let daemon = Daemon::start_with(DaemonOptions {
            version,
            // The proxy's directory is the last one, or others are read after it.
            include: match seed % 2 {
                0 => "more/*.conf conf.d/*.conf",
                _ => "conf.d/*.conf more/*.conf",
            },
            files: &[
                (FILE, &one),
                (OTHER, &other),
                ("conf.d/env.conf", "[supervisord]\nenvironment=ALL=\"1\"\n"),
            ],
            environment: &[("N", "60"), ("TWO", "2"), ("DIR", &dir)],
            ..DaemonOptions::default()
        })?;
        let dir = daemon.dir().join("conf.d").to_string_lossy().into_owned();
        let mut arguments = vec!["--include-dir", &dir];
        if by == By::Live {
            arguments.push("--live-update");
        }
        // The proxy has another environment than the daemon.
        let sidecar = Sidecar::start_options(
            &daemon,
            SidecarOptions {
                arguments: &arguments,
                environment: &[("N", "61"), ("TWO", "3")],
                ..SidecarOptions::default()
            },
        )?;
        let judge = Judge::of(&daemon)?;
        let field = Field {
            by,
            dice,
            files,
            daemon,
            sidecar,
            judge,
            added: BTreeSet::new(),
            serial: 0,
            _sockets: sockets,
        };
        settled(&field.client())?;
        ensure!(diff(&field.client())?.is_empty());
        Ok(field)
    }

    fn client(&self) -> Client {
        self.sidecar.client()
    }

    /// The text of both files.
    fn text(&self) -> Result<String> {
        Ok(self.daemon.read(FILE)? + "# another file\n" + &self.daemon.read(OTHER)?)
    }

    /// Restarts the daemon or adds a program, at random, before an edit.
    fn act_before_edit(&mut self) -> Result<()> {
        if self.dice.one_in(10) {
            self.daemon.restart_rpc()?;
            self.judge.start()?;
            self.added.clear();
            settled(&self.client())?;
            let left = diff(&self.client())?;
            ensure!(left.is_empty(), "a daemon that has just started: {left:?}");
        }
        let groups: Vec<String> = self.files.groups.keys().cloned().collect();
        if self.dice.one_in(5)
            && let Some(group) = self.dice.choose(&groups)
        {
            let name = format!("x{}", self.serial);
            self.serial += 1;
            let parameters = (group.as_str(), name.as_str(), sleeping("9000"));
            self.client()
                .call("twiddler.addProcessToGroup", parameters)?;
            self.added.insert(format!("{group}:{name}"));
        }
        Ok(())
    }

    /// Stops a process or restarts the proxy, at random, after an edit.
    fn act_after_edit(&mut self) -> Result<()> {
        if self.dice.one_in(4) {
            let table = settled(&self.client())?;
            let names: Vec<&String> = table.keys().collect();
            if let Some(name) = self.dice.choose(&names) {
                let _not_running = self
                    .client()
                    .call("supervisor.stopProcess", (name.as_str(),));
            }
        }
        if self.dice.one_in(8) {
            self.sidecar.kill()?;
            self.sidecar.start_again()?;
        }
        Ok(())
    }

    fn edit(&mut self) -> Result<()> {
        self.act_before_edit()?;
        for _ in 0..=self.dice.roll(3) {
            self.files.edit(&mut self.dice);
        }
        self.files.write(&self.daemon, &mut self.dice)?;
        self.act_after_edit()?;
        let client = self.client();
        let before = settled(&client)?;
        let (reply, output) = match self.by {
            By::Config => (
                Some(client.call("twiddler.updateConfig", ())?),
                String::new(),
            ),
            By::Live | By::Plain => (None, ctl(&client, &["update"])?),
        };
        let verdict = self.judge.update()?;
        let after = settled(&client)?;
        let reported = match (&reply, self.by) {
            (Some(reply), _) => ensure_reported(reply, &verdict, &before),
            _ => Ok(()),
        };
        let result = reported.and_then(|()| match self.by {
            By::Plain => ensure_groups_replaced(&output, &verdict, &self.added, &before, &after),
            _ => ensure_as_judged(&verdict, &self.added, &before, &after),
        });
        result.with_context(|| format!("verdict {verdict:#?}\n{output}"))?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "still differs: {left:?}");
        Ok(())
    }
}

fn random_edits(version: Version, usual_seed: u64, edits: usize, by: By) -> Result<()> {
    let mut field = Field::new(version, seed(usual_seed)?, by)?;
    for edit in 0..edits {
        let before = field.text()?;
        if let Err(error) = field.edit() {
            let after = field.text()?;
            return Err(error.context(format!("edit {edit} of\n{before}\nto\n{after}")));
        }
    }
    Ok(())
}

#[test]
fn random_edits_restart_the_processes_that_the_parser_calls_changed() -> Result<()> {
    random_edits(Version::V4_3_0, 12, times(40)?, By::Config)
}

#[test]
fn random_edits_with_live_update_restart_the_same_processes_by_supervisorctl() -> Result<()> {
    random_edits(Version::V4_3_0, 7, times(40)?, By::Live)
}

#[test]
fn random_edits_without_live_update_replace_whole_groups_by_supervisorctl() -> Result<()> {
    random_edits(Version::V4_3_0, 9, times(40)?, By::Plain)
}

#[test]
fn random_edits_restart_the_same_processes_in_an_older_release() -> Result<()> {
    random_edits(Version::V4_2_5, 5, times(15)?, By::Config)
}
