//! An edited file restarts only what changed: the judge is supervisord's own parser.
//!
//! `TEST_EFFORT` multiplies the random edits, `TEST_SEED` repeats them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use supervisor_twiddler::xmlrpc::{Value, write};

use crate::common::dice::{Dice, seed, times};
use crate::common::provision::{Version, venv};
use crate::common::stuck::wait_until_stopped;
use crate::common::values::{items, texts};
use crate::common::view::{Row, rows};
use crate::common::{
    Client, Connection, Daemon, DaemonOptions, LIMIT, Sidecar, SidecarOptions, eventually, member,
    options, text, value,
};

const FILE: &str = "conf.d/web.conf";
/// Below another pattern of `[include]`.
const OTHER: &str = "more/web.conf";

const WEB: &str = "\
[group:web]
programs = a,b,c

[program:a]
command = /bin/sleep 600

[program:b]
command = /bin/sleep 601
environment = TOKEN=\"secret\",MODE=x

[program:c]
command = /bin/sleep 602
numprocs = 2
process_name = %(program_name)s_%(process_num)02d

[program:lone]
command = /bin/sleep 603
";

/// supervisord's parser, which remembers what is in force.
struct Judge {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    main: String,
}

/// What an update has to do.
#[derive(Debug, Default)]
struct Verdict {
    same: BTreeSet<String>,
    /// With whether they are started by themselves.
    changed: BTreeMap<String, bool>,
    added: BTreeMap<String, bool>,
    removed: BTreeSet<String>,
}

impl Judge {
    fn of(daemon: &Daemon) -> Result<Judge> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle/compare.py");
        let mut command = venv(daemon.version()).bare_command();
        let mut child = command
            .arg(script)
            .env("N", "60")
            .env("DIR", "/tmp")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let main = daemon.conf().to_string_lossy().into_owned();
        let mut judge = Judge {
            child,
            requests,
            answers,
            main,
        };
        judge.start()?;
        Ok(judge)
    }

    fn ask(&mut self, action: &str) -> Result<Json> {
        let request = json!({ "action": action, "main": self.main });
        writeln!(self.requests, "{request}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let answer: Json = serde_json::from_str(&answer).context("no answer of the parser")?;
        ensure!(answer.get("fault").is_none(), "the parser says {answer}");
        Ok(answer)
    }

    /// The daemon has started with the files as they are.
    fn start(&mut self) -> Result<()> {
        self.ask("start").map(|_| ())
    }

    /// What an update to the files as they are has to do.
    fn update(&mut self) -> Result<Verdict> {
        let answer = self.ask("update")?;
        let names = |list: &str| -> BTreeSet<String> {
            let names = answer[list].as_array().into_iter().flatten();
            names.filter_map(Json::as_str).map(str::to_owned).collect()
        };
        let changed = answer["changed"].as_array().into_iter().flatten();
        let added = answer["added"].as_object().into_iter().flatten();
        Ok(Verdict {
            same: names("same"),
            changed: changed
                .filter_map(|pair| Some((pair[0].as_str()?.to_owned(), pair[1].as_bool()?)))
                .collect(),
            added: added
                .filter_map(|(name, starts)| Some((name.clone(), starts.as_bool()?)))
                .collect(),
            removed: names("removed"),
        })
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn table(client: &Client) -> Result<BTreeMap<String, Row>> {
    let rows = rows(client)?;
    Ok(rows.into_iter().map(|row| (row.namespec(), row)).collect())
}

fn is_running(row: &Row) -> bool {
    matches!(row.state.as_str(), "STARTING" | "RUNNING" | "BACKOFF")
}

/// Waits until the daemon is through with what it starts by itself.
fn settled(client: &Client) -> Result<BTreeMap<String, Row>> {
    eventually(LIMIT, || {
        let table = table(client)?;
        let busy = table.values().find(|row| row.state == "STARTING");
        ensure!(busy.is_none(), "{busy:?}");
        Ok(table)
    })
}

/// Fails unless exactly that happened which the verdict says.
fn ensure_as_judged(
    verdict: &Verdict,
    added: &BTreeSet<String>,
    before: &BTreeMap<String, Row>,
    after: &BTreeMap<String, Row>,
) -> Result<()> {
    for name in verdict.same.iter().chain(added) {
        let (was, is) = (before.get(name), after.get(name));
        ensure!(was == is, "{name} did not change: {was:?}, and now {is:?}");
    }
    for (name, starts) in &verdict.changed {
        let is = after.get(name).with_context(|| format!("{name} is gone"))?;
        let was = before.get(name);
        let ran = was.is_some_and(is_running);
        ensure!(
            is_running(is) == (ran || *starts),
            "{name} changed, ran {ran}, starts {starts}: {is:?}"
        );
        ensure!(
            !ran || was.map(|was| was.pid) != Some(is.pid),
            "{name} changed and was not restarted: {is:?}"
        );
    }
    for (name, starts) in &verdict.added {
        let is = after
            .get(name)
            .with_context(|| format!("{name} did not come"))?;
        ensure!(
            is_running(is) == *starts,
            "{name} is new, starts {starts}: {is:?}"
        );
    }
    for name in &verdict.removed {
        ensure!(!after.contains_key(name), "{name} is still there");
    }
    ensure_all_known(verdict, added, after)
}

fn ensure_all_known(
    verdict: &Verdict,
    added: &BTreeSet<String>,
    after: &BTreeMap<String, Row>,
) -> Result<()> {
    let known = verdict.same.iter().chain(verdict.changed.keys());
    let known = known.chain(verdict.added.keys()).chain(added);
    let known: BTreeSet<&String> = known.collect();
    ensure!(
        known.iter().copied().eq(after.keys()),
        "{known:?} are defined: {:?}",
        after.keys()
    );
    Ok(())
}

/// Fails unless exactly the groups were made anew that supervisorctl names, and those are all in which
/// something changed.
fn ensure_groups_made_anew(
    said: &str,
    verdict: &Verdict,
    added: &BTreeSet<String>,
    before: &BTreeMap<String, Row>,
    after: &BTreeMap<String, Row>,
) -> Result<()> {
    let named: BTreeSet<&str> = said
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    let group = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let differing = verdict.changed.keys().chain(verdict.added.keys());
    for name in differing.chain(&verdict.removed) {
        ensure!(
            named.contains(group(name).as_str()),
            "{name} differs: {said}"
        );
    }
    for name in &verdict.same {
        let is_alone = !named.contains(group(name).as_str());
        ensure!(
            !is_alone || before.get(name) == after.get(name),
            "{name} did not change: {:?}, and now {:?}",
            before.get(name),
            after.get(name)
        );
    }
    for (name, starts) in verdict.changed.iter().chain(&verdict.added) {
        let is = after.get(name).with_context(|| format!("{name} is gone"))?;
        ensure!(is_running(is) == *starts, "{name} starts {starts}: {is:?}");
    }
    for name in added {
        let is = after.get(name).with_context(|| format!("{name} is lost"))?;
        ensure!(
            before.get(name).map(is_running) == Some(is_running(is)),
            "{is:?}"
        );
    }
    ensure_all_known(verdict, added, after)
}

fn names(reply: &Value, list: &str) -> Result<BTreeSet<String>> {
    let names = texts(member(reply, list)?)?;
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Fails unless the reply says what happened.
fn ensure_told(reply: &Value, verdict: &Verdict, before: &BTreeMap<String, Row>) -> Result<()> {
    let ran = |name: &&String| before.get(*name).is_some_and(is_running);
    let restarted: BTreeSet<String> = verdict.changed.keys().filter(ran).cloned().collect();
    let stopped: BTreeSet<String> = verdict.removed.iter().filter(ran).cloned().collect();
    ensure!(
        names(reply, "restarted")? == restarted,
        "{reply:?}: {verdict:?}"
    );
    ensure!(
        names(reply, "stopped")? == stopped,
        "{reply:?}: {verdict:?}"
    );
    ensure!(items(member(reply, "failed")?)?.is_empty(), "{reply:?}");
    ensure!(items(member(reply, "skipped")?)?.is_empty(), "{reply:?}");
    Ok(())
}

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
            4 if dice.one_in(4) => {
                self.environment = (*dice
                    .choose(&["ALL=\"1\"", "ALL=1,", "ALL=2", "ALL=1,P=x"])
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
            match options.contains_key("process_name") {
                true => {
                    let count = 1 + dice.roll(4);
                    options.insert("numprocs".to_owned(), count.to_string());
                    if dice.one_in(4) {
                        let start = dice.roll(3).to_string();
                        options.insert("numprocs_start".to_owned(), start);
                    }
                }
                false => {
                    let name = "%(program_name)s_%(process_num)02d".to_owned();
                    options.insert("process_name".to_owned(), name);
                }
            }
            return;
        }
        let (name, texts) = CHOICES[dice.roll(CHOICES.len())];
        match dice.one_in(4) && name != "command" {
            true => drop(options.remove(name)),
            false => {
                drop(options.insert(name.to_owned(), texts[dice.roll(texts.len())].to_owned()))
            }
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

    /// The texts of the included files, spelt in one of many ways.
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
                // Of a section that is there twice, the daemon makes one.
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

/// One line of a section, or more.
fn spelt(name: &str, text: &str, dice: &mut Dice) -> String {
    let name = match dice.one_in(6) {
        true => name.to_uppercase(),
        false => name.to_owned(),
    };
    let text = match name.eq_ignore_ascii_case("environment") && dice.one_in(3) {
        true => text.replace(',', ",\n  "),
        false => text.to_owned(),
    };
    let space = *dice.choose(&["", " "]).expect("there are some");
    let comment = *dice
        .choose(&["", "", " ; c", "\n# c"])
        .expect("there are some");
    format!("{name}{space}={space}{text}{comment}\n")
}

/// How the files are put in force.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// `updateConfig`
    Config,
    /// `supervisorctl update` with `live_update`
    Live,
    /// `supervisorctl update`
    Plain,
}

/// A daemon with random files, the proxy in front of it, and what is known of them.
struct Field {
    by: By,
    dice: Dice,
    files: Files,
    daemon: Daemon,
    sidecar: Sidecar,
    judge: Judge,
    /// Namespecs of what was added.
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
            include: "more/*.conf conf.d/*.conf",
            files: &[
                (FILE, &one),
                (OTHER, &other),
                ("conf.d/env.conf", "[supervisord]\nenvironment=ALL=\"1\"\n"),
            ],
            environment: &[("N", "60"), ("DIR", &dir)],
            ..DaemonOptions::default()
        })?;
        // What the daemon reads last counts.
        let last = daemon.dir().join("conf.d").to_string_lossy().into_owned();
        let mut arguments = vec!["--include-dir", &last];
        if by == By::Live {
            arguments.push("--live-update");
        }
        let sidecar = Sidecar::start_with(&daemon, &arguments)?;
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

    /// All that the files say.
    fn text(&self) -> Result<String> {
        Ok(self.daemon.read(FILE)? + "# another file\n" + &self.daemon.read(OTHER)?)
    }

    /// Something else happens before the files are edited.
    fn happen(&mut self) -> Result<()> {
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

    /// Something else happens after that.
    fn interfere(&mut self) -> Result<()> {
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
        self.happen()?;
        for _ in 0..=self.dice.roll(3) {
            self.files.edit(&mut self.dice);
        }
        self.files.write(&self.daemon, &mut self.dice)?;
        self.interfere()?;
        let client = self.client();
        let before = settled(&client)?;
        let (reply, said) = match self.by {
            By::Config => (
                Some(client.call("twiddler.updateConfig", ())?),
                String::new(),
            ),
            By::Live | By::Plain => (None, ctl(&client, &["update"])?),
        };
        let verdict = self.judge.update()?;
        let after = settled(&client)?;
        let told = match (&reply, self.by) {
            (Some(reply), _) => ensure_told(reply, &verdict, &before),
            _ => Ok(()),
        };
        let judged = told.and_then(|()| match self.by {
            By::Plain => ensure_groups_made_anew(&said, &verdict, &self.added, &before, &after),
            _ => ensure_as_judged(&verdict, &self.added, &before, &after),
        });
        judged.with_context(|| format!("verdict {verdict:#?}\n{said}"))?;
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
fn random_edits_restart_what_the_parser_calls_changed() -> Result<()> {
    random_edits(Version::V4_3_0, 12, times(40)?, By::Config)
}

#[test]
fn random_edits_do_the_same_by_supervisorctl_with_live_update() -> Result<()> {
    random_edits(Version::V4_3_0, 7, times(40)?, By::Live)
}

#[test]
fn random_edits_make_whole_groups_anew_by_supervisorctl_without_it() -> Result<()> {
    random_edits(Version::V4_3_0, 9, times(40)?, By::Plain)
}

#[test]
fn random_edits_do_the_same_in_an_older_release() -> Result<()> {
    random_edits(Version::V4_2_5, 5, times(15)?, By::Config)
}

fn diff(client: &Client) -> Result<Vec<Value>> {
    Ok(items(&client.call("twiddler.diffConfig", ())?)?.to_vec())
}

#[test]
fn only_the_edited_program_restarts_and_the_answer_says_so() -> Result<()> {
    for version in Version::STOCK {
        let daemon = Daemon::start_with(DaemonOptions {
            version,
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        let before = settled(&client)?;
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        daemon.write(
            FILE,
            &WEB.replace("secret", "other")
                .replace("sleep 602", "sleep 602 ; c"),
        )?;
        let told = diff(&client)?;
        ensure!(told.len() == 1, "{told:?}");
        ensure!(text(member(&told[0], "change")?)? == "changed", "{told:?}");
        let options = items(member(&told[0], "options")?)?;
        ensure!(options.len() == 1, "{options:?}");
        ensure!(text(member(&options[0], "name")?)? == "environment.TOKEN");
        ensure!(
            !format!("{told:?}").contains("other"),
            "a secret in {told:?}"
        );
        let reply = client.call("twiddler.updateConfig", ())?;
        ensure!(
            texts(member(&reply, "restarted")?)? == ["web:b"],
            "{reply:?}"
        );
        let after = settled(&client)?;
        for (name, row) in &before {
            ensure!(
                (after.get(name) == Some(row)) == (name != "web:b"),
                "{name}: {after:?}"
            );
        }
        ensure!(diff(&client)?.is_empty());
        let ctl = crate::common::supervisorctl(&["reread"], client.addr())?;
        let said = String::from_utf8_lossy(&ctl.stdout).into_owned();
        ensure!(said.trim() == "No config updates to processes", "{said}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_not_valid_stops_nobody() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "611\numask = 99"))?;
    let fault = client.expect_fault("twiddler.updateConfig", ())?;
    ensure!(fault.code == 92, "{fault:?}");
    ensure!(table(&client)? == before);
    Ok(())
}

#[test]
fn numbers_go_up_and_down_and_survive_the_proxy() -> Result<()> {
    let (_daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let scale = |numprocs: i64| client.call("twiddler.scaleProgram", ("web", "c", numprocs));
    let reply = scale(4)?;
    ensure!(names(&reply, "started")? == ["web:c_02", "web:c_03"].map(str::to_owned).into());
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "scaled",
        "{told:?}"
    );
    sidecar.kill()?;
    sidecar.start_again()?;
    let client = sidecar.client();
    let reply = client.call("twiddler.updateConfig", ())?;
    ensure!(texts(member(&reply, "restarted")?)?.is_empty(), "{reply:?}");
    ensure!(table(&client)?.len() == before.len() + 2);
    client.call("twiddler.scaleProgram", ("web", "c", 0))?;
    ensure!(
        !table(&client)?
            .keys()
            .any(|name| name.starts_with("web:c_"))
    );
    client.call("twiddler.scaleProgram", ("web", "c", 2))?;
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    let fault = client.expect_fault("twiddler.scaleProgram", ("web", "a", 2))?;
    ensure!(fault.code == 2, "{fault:?}");
    Ok(())
}

#[test]
fn an_added_program_gets_other_options() -> Result<()> {
    let (_daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let given = |command: &str, count: i64| {
        options(&[
            ("command", value(command)),
            ("numprocs", value(count)),
            ("process_name", value("z%(process_num)d")),
        ])
    };
    client.call(
        "twiddler.addProcessToGroup",
        ("web", "z", given("/bin/sleep 9", 2)),
    )?;
    let before = settled(&client)?;
    let update = "twiddler.updateProgram";
    client.call(update, ("web", "z", given("/bin/sleep 9", 3)))?;
    let after = settled(&client)?;
    ensure!(after.get("web:z0") == before.get("web:z0"), "{after:?}");
    ensure!(after.contains_key("web:z2"), "{after:?}");
    client.call(update, ("web", "z", given("/bin/sleep 8", 1)))?;
    let last = settled(&client)?;
    ensure!(last.get("web:a") == before.get("web:a"));
    ensure!(last["web:z0"].pid != after["web:z0"].pid && !last.contains_key("web:z1"));
    let fault = client.expect_fault(update, ("web", "a", given("/bin/sleep 8", 1)))?;
    ensure!(
        fault.code == 2 && fault.text.contains("edit them and update"),
        "{fault:?}"
    );
    let told = client.call("twiddler.getProgramOptions", ("web", "z"))?;
    ensure!(
        text(member(&told, "command")?)? == "/bin/sleep 8",
        "{told:?}"
    );
    Ok(())
}

/// Runs supervisorctl, which has to end well.
fn ctl(client: &Client, arguments: &[&str]) -> Result<String> {
    let output = crate::common::supervisorctl(arguments, client.addr())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(said)
}

/// The processes whose rows differ.
fn differing(before: &BTreeMap<String, Row>, after: &BTreeMap<String, Row>) -> Vec<String> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |name: &&&String| before.get(**name) != after.get(**name);
    names
        .iter()
        .filter(differs)
        .map(|name| (*name).clone())
        .collect()
}

fn started(arguments: &[&str]) -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start_with(&daemon, arguments)?;
    // The proxy takes note of what the groups were started from.
    sidecar.client().call("twiddler.diffConfig", ())?;
    settled(&sidecar.client())?;
    Ok((daemon, sidecar))
}

#[test]
fn with_live_update_supervisorctl_restarts_only_what_changed() -> Result<()> {
    let (daemon, sidecar) = started(&["--live-update"])?;
    let client = sidecar.client();
    for seconds in ["611", "612"] {
        let before = settled(&client)?;
        daemon.write(FILE, &WEB.replace("601", seconds))?;
        ensure!(ctl(&client, &["reread"])? == "web: changed\n");
        let said = ctl(&client, &["update"])?;
        ensure!(
            said == "web: stopped\nweb: updated process group\n",
            "{said}"
        );
        let after = settled(&client)?;
        ensure!(differing(&before, &after) == ["web:b"], "{after:?}");
        ensure!(is_running(&after["web:b"]), "{after:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        ensure!(ctl(&client, &["update"])?.is_empty());
    }
    // Somebody who means the whole group gets it.
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "613"))?;
    ctl(&client, &["reread"])?;
    ctl(&client, &["stop", "web:*"])?;
    let after = table(&client)?;
    ensure!(differing(&before, &after).len() == 4, "{after:?}");
    Ok(())
}

#[test]
fn without_it_the_group_restarts_as_a_whole_and_nobody_is_there_twice() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    daemon.write(FILE, &WEB.replace("601", "611"))?;
    client.call("twiddler.updateConfig", ())?;
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "612"))?;
    ctl(&client, &["update"])?;
    let after = settled(&client)?;
    ensure!(differing(&before, &after) == ["web:a", "web:b", "web:c_00", "web:c_01"]);
    let direct = table(&daemon.client())?;
    ensure!(direct.keys().eq(after.keys()), "{:?}", direct.keys());
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    Ok(())
}

fn sleeper() -> Value {
    options(&[("command", "/bin/sleep 9000")])
}

#[test]
fn what_was_added_and_comes_into_the_file_is_there_once() -> Result<()> {
    for arguments in [&[][..], &["--persist"], &["--live-update"]] {
        let (daemon, sidecar) = started(arguments)?;
        let client = sidecar.client();
        client.call("twiddler.addProcessToGroup", ("web", "z", sleeper()))?;
        client.call("twiddler.addGroup", ("dyn", 5))?;
        client.call("twiddler.addProcessToGroup", ("dyn", "x", sleeper()))?;
        let before = settled(&client)?;
        let web = WEB.replace("a,b,c", "a,b,c,z");
        let z = "\n[program:z]\ncommand = /bin/sleep 9000\n";
        let added = "\n[group:dyn]\nprograms = x,y\n[program:x]\ncommand = /bin/sleep 9000\n[program:y]\ncommand = /bin/sleep 8000\n";
        daemon.write(FILE, &format!("{web}{z}{added}"))?;
        let told = ctl(&client, &["reread"])?;
        ensure!(
            told.contains("dyn: changed") && told.contains("web: changed"),
            "{told}"
        );
        ctl(&client, &["update"])?;
        let after = settled(&client)?;
        for name in ["web:z", "dyn:x", "lone:lone"] {
            ensure!(
                before.get(name) == after.get(name),
                "{name} with {arguments:?}"
            );
        }
        let names =
            |rows: &BTreeMap<String, Row>| -> Vec<String> { rows.keys().cloned().collect() };
        ensure!(
            names(&after).len() == before.len() + 1,
            "{:?}",
            names(&after)
        );
        let running = table(&daemon.client())?;
        let running = running.values().filter(|row| is_running(row)).count();
        ensure!(running == after.len(), "{running} run with {arguments:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        ensure!(ctl(&client, &["reread"])? == "No config updates to processes\n");
        daemon.restart_rpc()?;
        let again = settled(&client)?;
        ensure!(names(&again) == names(&after), "{:?}", names(&again));
        let direct = eventually(LIMIT, || {
            let direct = table(&daemon.client())?;
            ensure!(direct.len() == again.len(), "{:?}", names(&direct));
            Ok(direct)
        })?;
        ensure!(names(&direct) == names(&again));
    }
    Ok(())
}

#[test]
fn a_group_whose_start_nobody_saw_is_unknown_and_left_alone() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    daemon.write(FILE, &WEB.replace("601", "611"))?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "unknown",
        "{told:?}"
    );
    let reply = client.call("twiddler.updateConfig", ())?;
    let skipped = items(member(&reply, "skipped")?)?;
    ensure!(
        skipped.len() == 1 && text(member(&skipped[0], "group")?)? == "web",
        "{reply:?}"
    );
    ensure!(table(&client)? == before);
    Ok(())
}

#[test]
fn a_daemon_that_starts_during_a_question_runs_the_files_alone() -> Result<()> {
    for kills_proxy in [false, true] {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        let expected: Vec<String> = settled(&sidecar.client())?.into_keys().collect();
        ensure!(diff(&sidecar.client())?.is_empty());
        daemon.write(FILE, &WEB.replace("601", "611"))?;
        let _connection = stop_at(&daemon, &sidecar, "question", ("twiddler.diffConfig", &[]))?;
        daemon.kill_and_start_again()?;
        // It has met the question, and runs nobody twice for that.
        let running = |row: &Row| (is_running(row)).then(|| row.namespec());
        let twice = rows(&daemon.client())?.iter().filter_map(running).count();
        ensure!(twice <= expected.len(), "{:?}", rows(&daemon.client())?);
        match kills_proxy {
            true => {
                sidecar.kill()?;
                sidecar.start_again()?;
            }
            false => sidecar.signal("CONT")?,
        }
        let client = sidecar.client();
        eventually(LIMIT, || {
            let there: Vec<String> = table(&daemon.client())?.into_keys().collect();
            ensure!(there == expected, "kills_proxy {kills_proxy}: {there:?}");
            Ok(())
        })?;
        client.call("twiddler.updateConfig", ())?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "kills_proxy {kills_proxy}: {left:?}");
        let there: Vec<String> = settled(&client)?.into_keys().collect();
        ensure!(there == expected, "{there:?}");
    }
    Ok(())
}

#[test]
fn an_update_goes_on_when_its_caller_hangs_up() -> Result<()> {
    const SLOW: &str = "[program:slow]\ncommand = /bin/sh -c \"trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done\"\n\
        environment = STEP=\"1\"\n";
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, SLOW)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let slow = "slow:slow";
    let before = settled(&client)?[slow].clone();
    ensure!(diff(&client)?.is_empty());
    daemon.write(FILE, &SLOW.replace("STEP=\"1\"", "STEP=\"2\""))?;
    let caller = sidecar.socket_client();
    let mut connection = caller.connect()?;
    let call = write::call("twiddler.updateConfig", &[]);
    connection.send(&caller.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
    daemon.wait_for_state("slow", "STOPPING")?;
    drop(connection);
    eventually(LIMIT, || {
        let table = table(&client)?;
        let now = table.get(slow).context("it is taken out")?;
        ensure!(is_running(now) && now.pid != before.pid, "{now:?}");
        Ok(())
    })?;
    ensure!(diff(&client)?.is_empty());
    Ok(())
}

/// A proxy in front of the daemon that stops itself where `stop-at` says.
fn stopping(daemon: &Daemon) -> Result<Sidecar> {
    let stop_at = daemon.dir().join("stop-at").to_string_lossy().into_owned();
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            environment: &[("TEST_STOP_AT", &stop_at)],
            ..SidecarOptions::default()
        },
    )
}

/// Sends a call, and waits until the proxy has stopped at a point of it.
fn stop_at(
    daemon: &Daemon,
    sidecar: &Sidecar,
    point: &str,
    (method, params): (&str, &[Value]),
) -> Result<Connection> {
    daemon.write("stop-at", point)?;
    let client = sidecar.socket_client();
    let mut connection = client.connect()?;
    let call = write::call(method, params);
    connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
    wait_until_stopped(sidecar.pid())?;
    Ok(connection)
}

#[test]
fn an_update_is_finished_whatever_point_the_proxy_dies_at() -> Result<()> {
    const POINTS: [&str; 6] = [
        "update intended",
        "update stopped",
        "update left",
        "update made",
        "update joined",
        "update started",
    ];
    for (number, point) in POINTS.into_iter().enumerate() {
        // It would not start by itself.
        let text = WEB.replace("sleep 601", "sleep 601\nautostart = false");
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, &text)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        sidecar
            .client()
            .call("supervisor.startProcess", ("web:b",))?;
        let before = settled(&sidecar.client())?;
        ensure!(diff(&sidecar.client())?.is_empty());
        daemon.write(FILE, &text.replace("sleep 601", "sleep 611"))?;
        let connection = stop_at(&daemon, &sidecar, point, ("twiddler.updateConfig", &[]))?;
        sidecar.kill()?;
        drop(connection);
        sidecar.start_again()?;
        let client = sidecar.client();
        client.call("twiddler.updateConfig", ())?;
        eventually(LIMIT, || {
            let after = table(&client)?;
            let b = after.get("web:b").context("web:b is gone")?;
            ensure!(is_running(b), "{point}: {b:?}");
            ensure!(b.pid != before["web:b"].pid, "{point}: {b:?}");
            for (name, row) in before.iter().filter(|(name, _)| *name != "web:b") {
                ensure!(after.get(name) == Some(row), "{point}: {name}: {after:?}");
            }
            ensure!(after.len() == before.len(), "{point}: {after:?}");
            Ok(())
        })
        .with_context(|| format!("{number}: {point}"))?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "{point}: {left:?}");
    }
    Ok(())
}

/// A program that sleeps so long.
fn sleeping(seconds: &str) -> Value {
    let command = format!("/bin/sleep {seconds}");
    options(&[
        ("command", value(command.as_str())),
        ("startsecs", value("0")),
    ])
}

#[test]
fn a_program_whose_options_change_is_there_whatever_point_the_proxy_dies_at() -> Result<()> {
    for point in [
        "update intended",
        "update stopped",
        "update left",
        "update joined",
        "update started",
    ] {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        let client = sidecar.client();
        client.call("twiddler.addGroup", ("dyn", 5))?;
        client.call(
            "twiddler.addProcessToGroup",
            ("dyn", "own", sleeping("901")),
        )?;
        client.call("twiddler.addProcessToGroup", ("web", "z", sleeping("901")))?;
        let before = settled(&client)?;
        for (group, name) in [("dyn", "own"), ("web", "z")] {
            let params = [value(group), value(name), sleeping("902")];
            let call = ("twiddler.updateProgram", &params[..]);
            let connection = stop_at(&daemon, &sidecar, point, call)?;
            sidecar.kill()?;
            drop(connection);
            sidecar.start_again()?;
        }
        let client = sidecar.client();
        eventually(LIMIT, || {
            let after = table(&client)?;
            for (name, row) in &before {
                let is = after.get(name).with_context(|| format!("{name} is lost"))?;
                ensure!(is_running(is), "{is:?}");
                let is_touched = ["dyn:own", "web:z"].contains(&name.as_str());
                ensure!(is_touched || is == row, "{name}: {is:?}");
            }
            ensure!(after.len() == before.len(), "{:?}", after.keys());
            Ok(())
        })
        .with_context(|| point.to_owned())?;
        let told = client.call("twiddler.getProgramOptions", ("web", "z"))?;
        let command = text(member(&told, "command")?)?;
        ensure!(["/bin/sleep 901", "/bin/sleep 902"].contains(&command));
        // It can be done again.
        client.call("twiddler.updateProgram", ("web", "z", sleeping("903")))?;
    }
    Ok(())
}

/// Somebody else lets the daemon read files without the group after it was accepted.
#[test]
fn a_group_that_is_refused_after_it_was_stopped_runs_as_before() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = stopping(&daemon)?;
    let client = sidecar.client();
    ensure!(diff(&client)?.is_empty());
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("603", "613"))?;
    let mut connection = stop_at(
        &daemon,
        &sidecar,
        "update left",
        ("twiddler.updateConfig", &[]),
    )?;
    let (without, _) = WEB.split_once("[program:lone]").context("lone")?;
    daemon.write(FILE, without)?;
    daemon.call("supervisor.reloadConfig", ())?;
    sidecar.signal("CONT")?;
    let reply = connection.read_reply()?.text();
    ensure!(
        reply.contains("skipped") && reply.contains("BAD_NAME"),
        "{reply}"
    );
    let after = settled(&client)?;
    ensure!(differing(&before, &after) == ["lone:lone"], "{after:?}");
    ensure!(is_running(&after["lone:lone"]), "{after:?}");
    let infos = daemon.call("supervisor.getAllConfigInfo", ())?;
    ensure!(!format!("{infos:?}").contains("twiddler~"), "{infos:?}");
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "removed",
        "{told:?}"
    );
    client.call("twiddler.updateConfig", ())?;
    ensure!(!table(&client)?.contains_key("lone:lone"));
    Ok(())
}

#[test]
fn numbers_survive_the_daemon_with_persist_alone() -> Result<()> {
    let names = |client: &Client| -> Result<Vec<String>> {
        let names = table(client)?.into_keys();
        Ok(names.filter(|name| name.contains(":c_")).collect())
    };
    for (arguments, kept) in [(&["--persist"][..], true), (&[], false)] {
        for numprocs in [1, 4] {
            let (daemon, sidecar) = started(arguments)?;
            let client = sidecar.client();
            client.call("twiddler.scaleProgram", ("web", "c", numprocs))?;
            let scaled = names(&client)?;
            for restarts in [Daemon::restart_rpc, Daemon::kill_and_start_again] {
                restarts(&daemon)?;
                eventually(LIMIT, || {
                    let now = names(&client)?;
                    let expected = if kept { scaled.len() } else { 2 };
                    ensure!(now.len() == expected, "{numprocs} {arguments:?}: {now:?}");
                    let told = diff(&client)?;
                    ensure!(told.is_empty() != kept, "{told:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_the_file_defines_by_now_is_kept_no_longer_and_starts_once() -> Result<()> {
    let (daemon, sidecar) = started(&["--persist"])?;
    let client = sidecar.client();
    for name in ["z", "other"] {
        client.call("twiddler.addProcessToGroup", ("web", name, sleeper()))?;
    }
    let kept = || daemon.read("conf.d/zz-twiddler-persist.conf");
    ensure!(kept()?.contains("; web:z\n"), "{}", kept()?);
    let web = WEB.replace("a,b,c", "a,b,c,z");
    let z = "\n[program:z]\ncommand = /bin/sleep 9000\n";
    daemon.write(FILE, &format!("{web}{z}"))?;
    // Nobody calls.
    eventually(LIMIT, || {
        let kept = kept()?;
        ensure!(
            !kept.contains("; web:z\n") && kept.contains("; web:other\n"),
            "{kept}"
        );
        Ok(())
    })?;
    let once = |daemon: &Daemon| -> Result<()> {
        eventually(LIMIT, || {
            let there = table(&daemon.client())?;
            let named = there.values().filter(|row| row.name == "z");
            ensure!(named.count() == 1, "{:?}", there.keys());
            Ok(())
        })
    };
    daemon.kill_and_start_again()?;
    once(&daemon)?;
    settled(&client)?;
    // Both start where the proxy was away.
    client.call("twiddler.addProcessToGroup", ("web", "y", sleeper()))?;
    sidecar.kill()?;
    let y = "\n[program:y]\ncommand = /bin/sleep 9001\n";
    daemon.write(FILE, &format!("{}{z}{y}", web.replace("b,c,z", "b,c,z,y")))?;
    daemon.kill_and_start_again()?;
    sidecar.start_again()?;
    let log = sidecar.wait_for_stderr("there is only theirs from now on")?;
    ensure!(log.contains("web:y"), "{log}");
    once(&daemon)?;
    eventually(LIMIT, || {
        let direct = table(&daemon.client())?;
        let named = direct.values().filter(|row| row.name == "y");
        let named: Vec<&Row> = named.collect();
        ensure!(named.len() == 1 && named[0].group == "web", "{named:?}");
        Ok(())
    })
}

#[test]
fn another_priority_of_a_group_is_shown_and_restarts_nobody() -> Result<()> {
    let (daemon, sidecar) = started(&["--live-update"])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let with_priority = |priority: i64| {
        let section = format!("[group:web]\npriority = {priority}\n");
        daemon.write(FILE, &WEB.replace("[group:web]\n", &section))
    };
    with_priority(5)?;
    let told = diff(&client)?;
    ensure!(told.len() == 1, "{told:?}");
    let own = &told[0];
    ensure!(text(member(own, "program")?)?.is_empty(), "{own:?}");
    ensure!(text(member(own, "change")?)? == "changed", "{own:?}");
    let option = &items(member(own, "options")?)?[0];
    ensure!(text(member(option, "name")?)? == "priority", "{own:?}");
    ensure!(text(member(option, "new")?)? == "5", "{own:?}");
    client.call("twiddler.updateConfig", ())?;
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    ensure!(ctl(&client, &["reread"])? == "No config updates to processes\n");
    with_priority(6)?;
    ensure!(ctl(&client, &["update"])?.contains("web: updated process group"));
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    ensure!(table(&client)? == before);
    Ok(())
}
