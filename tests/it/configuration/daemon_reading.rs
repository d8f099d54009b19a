//! The proxy reads supervisord's files as supervisord reads them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::random::Random;
use super::{Files, environment};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use supervisor_twiddler::daemon::conf::{
    self, ConfError, DaemonAddress, DaemonConf, Inspection, LogFile,
};
use tempfile::TempDir;

/// The number of random configurations.
const RANDOM_CASES: u64 = 800;
/// The first version of Python in which the name of a section may have brackets.
const BRACKETS_IN_NAMES: [u32; 2] = [3, 10];

/// Reasons for which the proxy has to refuse a configuration too.
const REASONS_FOR_PROXY: &[&str] = &[
    "does not include supervisord section",
    "has [include] section, but no files setting",
    "'include.files'",
    "bad logging level name",
    "'supervisord.logfile'",
    "has no port value",
    "has no file value",
    "not a valid port number",
    "is below lower bound",
    "is above upper bound",
    "incomplete authentication",
    "http_server.port'",
    "http_server.file'",
    "http_server.username'",
    "http_server.password'",
];

/// The parts of a configuration that the test compares.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Reading {
    servers: Vec<Server>,
    logfile: String,
    loglevel: i64,
    included: Vec<String>,
    groups: Vec<Group>,
    twiddler: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Server {
    section: String,
    file: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Group {
    name: String,
    priority: i64,
    empty: bool,
    processes: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Accepted(Reading),
    Refused(String),
}

impl Reading {
    /// Converts the daemon's reading to the proxy's form: with the addresses to which clients connect, and
    /// with sorted groups, because the daemon orders them by priority.
    fn in_proxys_form(mut self) -> Self {
        for server in &mut self.servers {
            server.host = server.host.take().map(|host| match &*host {
                "" | "0.0.0.0" => "127.0.0.1".to_owned(),
                host => host.trim_matches(['[', ']']).to_owned(),
            });
            if server.username.as_deref() == Some("") {
                (server.username, server.password) = (None, None);
            }
        }
        self.groups.sort();
        self
    }

    fn from_conf(conf: DaemonConf) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut groups: Vec<_> = conf
            .groups
            .into_iter()
            .map(|group| Group {
                name: group.name,
                priority: group.priority,
                empty: group.empty,
                processes: group.processes,
            })
            .collect();
        groups.sort();
        Reading {
            servers: conf.servers.into_iter().map(Server::from_conf).collect(),
            logfile: match conf.logfile {
                LogFile::File(path) => text(&path),
                LogFile::Syslog => "syslog".to_owned(),
                LogFile::Unknown(missing) => missing.to_string(),
            },
            loglevel: conf.loglevel.number(),
            included: conf.included.iter().map(|path| text(path)).collect(),
            groups,
            twiddler: conf
                .twiddler
                .into_iter()
                .map(|key| (key.key, key.value))
                .collect(),
        }
    }
}

impl Server {
    fn from_conf(server: conf::HttpServer) -> Self {
        let (file, host, port) = match server.address {
            DaemonAddress::Unix(path) => (Some(path.to_string_lossy().into_owned()), None, None),
            DaemonAddress::Tcp { host, port } => (None, Some(host), Some(port)),
        };
        let (username, password) = server
            .credentials
            .map(|credentials| (credentials.username, credentials.password))
            .unzip();
        Server {
            section: server.section,
            file,
            host,
            port,
            username,
            password,
        }
    }
}

/// A temporary directory with one directory per case, and the daemon's answers.
struct Comparison {
    dir: TempDir,
    answers: Vec<Answer>,
}

impl Comparison {
    fn case_dir(dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("case-{index}"))
    }

    /// Writes the cases and makes the daemon's code read them.
    fn start(cases: &[Files]) -> Result<Self> {
        let dir = TempDir::new()?;
        let mut list = String::new();
        for (index, files) in cases.iter().enumerate() {
            let main = files.write(&Self::case_dir(dir.path(), index))?;
            writeln!(list, "{}", main.display())?;
        }
        let answers = answers(dir.path(), &list)?;
        ensure!(
            answers.len() == cases.len(),
            "{} answers to {} files",
            answers.len(),
            cases.len()
        );
        Ok(Comparison { dir, answers })
    }

    /// Reads a case with the proxy's code and compares the results. Returns the reason if the daemon
    /// refuses the case. The proxy then has to find a mistake too, if it is in a part that the proxy needs.
    fn check(&self, index: usize, files: &Files) -> Result<Option<&str>> {
        let main = Self::case_dir(self.dir.path(), index).join(&files.0[0].0);
        let env = environment(self.dir.path());
        let inspection = conf::inspect(&main, &|name| env.get(name).cloned());
        let Inspection { conf, mistakes } = inspection.with_context(|| files.to_text())?;
        let daemons = match &self.answers[index] {
            Answer::Accepted(reading) => reading,
            Answer::Refused(reason) => {
                // The proxy expands `%(here)s` in all options, the daemon only in some.
                let is_needed = REASONS_FOR_PROXY.iter().any(|text| reason.contains(text))
                    && !reason.contains("('here')");
                let accepts = mistakes.is_empty() && conf.all_missing().next().is_none();
                ensure!(
                    !(is_needed && accepts),
                    "case {index}: the proxy accepts it: {reason}\n{}",
                    files.to_text()
                );
                return Ok(Some(reason));
            }
        };
        let missing: Vec<String> = conf.all_missing().map(ToString::to_string).collect();
        let proxys = Reading::from_conf(conf);
        ensure!(
            missing.is_empty(),
            "case {index}: only the proxy misses variables: {missing:?}\n{}",
            files.to_text()
        );
        let serious = mistakes
            .iter()
            .find(|mistake| !matches!(mistake, ConfError::NoServer { .. }));
        if let Some(mistake) = serious {
            bail!(
                "case {index}: only the proxy refuses it: {mistake}\n{}",
                files.to_text()
            );
        }
        let daemons = daemons.clone().in_proxys_form();
        ensure!(
            proxys == daemons,
            "case {index}\nproxy  {proxys:#?}\ndaemon {daemons:#?}\n{}",
            files.to_text()
        );
        Ok(None)
    }
}

fn oracle(dir: &Path, list: &str) -> Result<String> {
    let paths = dir.join("list");
    fs::write(&paths, list)?;
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle/read_server_config.py");
    let mut command = Command::new(crate::common::python());
    command
        .env_clear()
        .envs(environment(dir))
        .arg(script)
        .arg(&paths);
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn answers(dir: &Path, list: &str) -> Result<Vec<Answer>> {
    let output = oracle(dir, list)?;
    let lines = output.lines().skip(1);
    lines
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn python_version() -> Result<[u32; 2]> {
    let dir = TempDir::new()?;
    let output = oracle(dir.path(), "")?;
    Ok(serde_json::from_str(
        output.lines().next().context("no version")?,
    )?)
}

/// Unusual configurations that supervisord accepts, each with its description.
const UNUSUAL: &[(&str, &[(&str, &str)])] = &[
    ("only the required section", &[("s.conf", "[supervisord]")]),
    (
        "inline comments",
        &[(
            "s.conf",
            "[supervisord]\nloglevel=warn ; quiet\n[unix_http_server] # here\nfile=/run/s;no#comment.sock ;yes\n",
        )],
    ),
    (
        "both comment characters in a line",
        &[(
            "s.conf",
            "[supervisord]\n[unix_http_server]\nfile=/s # one ; two\n[inet_http_server]\nport=9001 ; one # two\n",
        )],
    ),
    (
        "comments that fill a line",
        &[(
            "s.conf",
            "; a\n# b\n   ; c\n[supervisord]\n;loglevel=debug\n  #logfile=/x\nloglevel=error\n",
        )],
    ),
    (
        "colons between key and value",
        &[(
            "s.conf",
            "[supervisord]\nloglevel: debug\n[inet_http_server]\nport : 127.0.0.1:9001\n",
        )],
    ),
    (
        "capitals in keys",
        &[(
            "s.conf",
            "[supervisord]\nLogLevel=trace\n[inet_http_server]\nPORT=1\nUserName=a\nPASSWORD=B\n",
        )],
    ),
    (
        "section names that differ in case",
        &[(
            "s.conf",
            "[supervisord]\n[Unix_http_server]\nfile=/a\n[unix_http_server]\nfile=/b\n",
        )],
    ),
    (
        "values over several lines",
        &[
            (
                "s.conf",
                "[supervisord]\n[include]\nfiles =\n  a.ini\n\n  b.ini\n; c.ini\n    c.ini ; d.ini\n",
            ),
            ("a.ini", "[group:a]"),
            ("b.ini", "[group:b]"),
            ("c.ini", "[group:c]"),
            ("d.ini", "[group:d]"),
        ],
    ),
    (
        "a section header that continues a value",
        &[(
            "s.conf",
            "[supervisord]\n[unix_http_server]\nfile=/a\nusername=u\npassword=p\n [inet_http_server]\n port=1\n",
        )],
    ),
    (
        "an indented file",
        &[(
            "s.conf",
            "  [supervisord]\n  loglevel=warn\n  [unix_http_server]\n  file=/a\n   b\n  username=u\n  password=p\n",
        )],
    ),
    (
        "indentation that decreases",
        &[(
            "s.conf",
            "[supervisord]\n    loglevel=warn\n  [unix_http_server]\n      file=/a\n    username=u\n    password=p\n     q\n",
        )],
    ),
    (
        "tabs and other white space",
        &[(
            "s.conf",
            "[supervisord]\n\tloglevel\t=\tinfo\t\n[unix_http_server]\nfile=\u{a0}/a\u{3000}\nusername=\u{1f}u\nmore\u{85}=x\npassword=p\u{2003}q\n",
        )],
    ),
    (
        "a section in two parts",
        &[(
            "s.conf",
            "[unix_http_server]\nfile=/a\n[supervisord]\n[unix_http_server]\nusername=u\npassword=p\nfile=/b\n",
        )],
    ),
    (
        "an option set twice",
        &[("s.conf", "[supervisord]\nloglevel=info\nloglevel=debug\n")],
    ),
    (
        "names with brackets and spaces",
        &[(
            "s.conf",
            "[supervisord]\n[unix_http_server:a]b] x\nfile=/a\n[ inet_http_server]\nport=1\n[group: x ]\n[group:[y]]\n",
        )],
    ),
    (
        "section names that begin like a server's",
        &[(
            "s.conf",
            "[supervisord]\n[inet_http_servers]\nport=2\n[inet_http_server:b]\nport=1\n[unix_http_server2:c]\nfile=/c\n[unix_http_server]\nfile=/d\n",
        )],
    ),
    (
        "hosts in all forms",
        &[(
            "s.conf",
            "[supervisord]\n[inet_http_server:1]\nport=*:1\n[inet_http_server:2]\nport=:2\n[inet_http_server:3]\nport=3\n[inet_http_server:4]\nport=LocalHost:4\n[inet_http_server:5]\nport=0.0.0.0:5\n[inet_http_server:6]\nport=[::1]:6\n[inet_http_server:7]\nport=127.0.0.1: +9_001\n",
        )],
    ),
    (
        "credentials in all forms",
        &[(
            "s.conf",
            "[supervisord]\n[inet_http_server:1]\nport=1\nusername=\npassword=\n[inet_http_server:2]\nport=2\nusername=\"u\"\npassword='p\\n'\n[inet_http_server:3]\nport=3\nusername=u=v:w\npassword={SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1d\n[inet_http_server:4]\nport=4\nusername=ü\npassword=\n[inet_http_server:5]\nport=5\nusername=\n u\npassword=p%%(here)s\n",
        )],
    ),
    (
        "paths in all forms",
        &[(
            "s.conf",
            "[supervisord]\n[unix_http_server:1]\nfile=/a/../b/./c//d/\n[unix_http_server:2]\nfile=rel/a.sock\n[unix_http_server:3]\nfile=~/a\n[unix_http_server:4]\nfile=//a\n[unix_http_server:5]\nfile=~nobody-has-this-name/a\n[unix_http_server:6]\nfile=~root\n[unix_http_server:7]\nfile=/../../a\n",
        )],
    ),
    (
        "here without an include",
        &[(
            "s.conf",
            "[supervisord]\nlogfile=%(here)s/d.log\n[unix_http_server]\nfile=%(here)s/../s.sock\n",
        )],
    ),
    (
        "here in an included file",
        &[
            (
                "s.conf",
                "[supervisord]\nlogfile=%(here)s/d.log\n[include]\nfiles=%(here)s/x/*.conf\n[unix_http_server]\nfile=%(here)s/1.sock\n",
            ),
            (
                "x/a.conf",
                "[unix_http_server:2]\nfile=%(here)s/2.sock\n[unix_http_server]\nusername=%(here)s\npassword=%(here)s|%(ENV_A).2s\n",
            ),
        ],
    ),
    (
        "here with a flag",
        &[(
            "s.conf",
            "[supervisord]\n[include]\nfiles=none\n[unix_http_server]\nfile=%(here)-s/1.sock\n",
        )],
    ),
    (
        "variables",
        &[(
            "s.conf",
            "[supervisord]\nlogfile=%(here)s/%(ENV_A)s\n[include]\nfiles=%(ENV_A)s.ini %(ENV_EMPTY)s x\n[inet_http_server]\nport=%(ENV_PORT)s\nusername=%(ENV_A).3s|%(ENV_A)-12s|%(ENV_A)12s\npassword=%(ENV_PERCENT)s%%\n",
        )],
    ),
    (
        "variables that supervisord sets itself",
        &[(
            "s.conf",
            "[inet_http_server]\nport=1%(ENV_Q)s\nusername=%(ENV_S)s\npassword=%(ENV_R)s\n[supervisord]\nlogfile=%(here)s/%(ENV_S)s\nenvironment=Q=\"2\",R='a,b',S='%(ENV_A)s/x',T=\"%%%%\"\n",
        )],
    ),
    (
        "an environment over lines",
        &[(
            "s.conf",
            "[inet_http_server]\nport=1\nusername=%(ENV_Q)s%(ENV_R)s\npassword=%(ENV_W)s\n[supervisord]\nenvironment=Q=1#2\n  3,\n  R=a-b.c/(d):e\n  , W='x y';Z=1\n",
        )],
    ),
    (
        "the name of the host",
        &[(
            "s.conf",
            "[supervisord]\n[include]\nfiles=%(host_node_name)s.ini *.conf\n[program:a]\ncommand=x\nnumprocs=1\n",
        )],
    ),
    (
        "patterns in all forms",
        &[
            (
                "main/s.conf",
                "[supervisord]\n[include]\nfiles=*.conf ../main/x/[!b].ini x/../y?/**.ini */.h* x/[.]h* y[z]/a[.ini none/* x/\n",
            ),
            ("main/z.conf", "[group:z]"),
            ("main/.h.conf", "[group:h]"),
            ("main/x/a.ini", "[group:xa]"),
            ("main/x/b.ini", "[group:xb]"),
            ("main/x/.h", "[group:xh]"),
            ("main/yz/a.ini", "[group:yza]"),
            ("main/yz/a[.ini", "[group:yza2]"),
            ("main/yz/b/c.ini", "[group:yzbc]"),
        ],
    ),
    (
        "directories and dangling names among the files",
        &[
            ("s.conf", "[supervisord]\n[include]\nfiles=x/*\n"),
            ("x/d.conf/", ""),
            ("x/a.conf", "[group:a]"),
        ],
    ),
    (
        "the same file twice",
        &[
            ("s.conf", "[supervisord]\n[include]\nfiles=x/*.conf x/a*\n"),
            ("x/a.conf", "[unix_http_server]\nfile=/a"),
            ("x/b.conf", "[unix_http_server]\nfile=/b"),
        ],
    ),
    (
        "an include in an included file",
        &[
            ("s.conf", "[supervisord]\n[include]\nfiles=a.ini\n"),
            ("a.ini", "[include]\nfiles=b.ini\n[group:a]"),
            ("b.ini", "[group:b]"),
        ],
    ),
    (
        "an empty include",
        &[("s.conf", "[supervisord]\n[include]\nfiles=\n")],
    ),
    (
        "included files that change and complete sections",
        &[
            (
                "s.conf",
                "[include]\nfiles=*.ini\n[unix_http_server]\nfile=/a\n[group:g]\npriority=5\n",
            ),
            (
                "a.ini",
                "[supervisord]\nloglevel=blather\n[unix_http_server]\nfile=/b\nusername=u\n",
            ),
            (
                "b.ini",
                "[unix_http_server]\npassword=p\n[group:g]\npriority=6\n",
            ),
        ],
    ),
    (
        "a value that is not continued over files",
        &[
            (
                "s.conf",
                "[supervisord]\n[include]\nfiles=*.ini\n[unix_http_server]\nfile=/a\n",
            ),
            (
                "a.ini",
                "[unix_http_server]\n  username=u\n  password=p\n   q",
            ),
        ],
    ),
    (
        "defaults",
        &[
            (
                "s.conf",
                "[DEFAULT]\nport=7\nfiles=x/a.ini\nusername=%(here)s\npassword=p\npriority=3\nfile=%(here)s/x\n[include]\n[supervisord]\n[inet_http_server]\n[group:g]\n",
            ),
            (
                "x/a.ini",
                "[unix_http_server]\n[DEFAULT]\npriority=4\n[group:h]\n",
            ),
        ],
    ),
    (
        "levels in capitals",
        &[("s.conf", "[supervisord]\nloglevel=CRITICAL\n")],
    ),
    (
        "the system's log",
        &[("s.conf", "[supervisord]\nlogfile=syslog\n")],
    ),
    (
        "log files in all forms: relative",
        &[("s.conf", "[supervisord]\nlogfile=d.log\ndirectory=/\n")],
    ),
    (
        "log files in all forms: none is a name",
        &[("s.conf", "[supervisord]\nlogfile=none\n")],
    ),
    (
        "log files in all forms: a home",
        &[("s.conf", "[supervisord]\nlogfile=~/d.log\n")],
    ),
    (
        "log files in all forms: empty",
        &[("s.conf", "[supervisord]\nlogfile=\n")],
    ),
    (
        "groups of all kinds",
        &[(
            "s.conf",
            "[program:a]\ncommand=x\n[supervisord]\n[group:g]\nprograms=b, f\n[program:b]\ncommand=x\n[fcgi-program:f]\ncommand=x\nsocket=tcp://h:1\n[fcgi-program:e]\ncommand=x\nsocket=tcp://h:1\npriority=2\n[eventlistener:l]\ncommand=x\nevents=TICK_5\n[eventlistener:m]\ncommand=x\nevents=TICK_5\npriority=+1_0\n[group:h]\nprograms=\npriority= 1 ; one\n[group:i]\n",
        )],
    ),
    (
        "processes in the order of their group and of their names",
        &[(
            "s.conf",
            "[supervisord]\n[group:g]\nprograms=z,m,a,z\n[program:a]\ncommand=x\n[program:m]\ncommand=x\nnumprocs=11\nnumprocs_start=1\nprocess_name=%(group_name)s-%(process_num)d\n[program:z]\ncommand=x\npriority=1\nprocess_name= %(host_node_name)s%(ENV_EMPTY)s%(numprocs)02d\n[program:lone]\ncommand=x\nnumprocs=3\nprocess_name=%(program_name)s%(process_num)x\n",
        )],
    ),
    (
        "groups without processes",
        &[(
            "s.conf",
            "[supervisord]\n[program:a]\ncommand=x\nnumprocs=0\n[program:b]\ncommand=x\nnumprocs=-1\n[group:g]\nprograms=b\n[group:h]\nprograms=c,d\n[program:c]\ncommand=x\nnumprocs=0\n[program:d]\ncommand=x\nnumprocs=%(ENV_EMPTY)s2\nprocess_name=%(process_num)s\n",
        )],
    ),
    (
        "groups with the name of a program",
        &[(
            "s.conf",
            "[supervisord]\n[program: a ]\ncommand=x\n[program:b]\ncommand=x\n[group:a]\nprograms=b\n[program:c]\ncommand=x\n[fcgi-program:c]\ncommand=x\nsocket=tcp://h:1\n",
        )],
    ),
    (
        "listeners keep the spaces of their names",
        &[(
            "s.conf",
            "[supervisord]\n[eventlistener: l]\ncommand=x\nevents=TICK_5\n",
        )],
    ),
    (
        "Windows line ends",
        &[(
            "s.conf",
            "[supervisord]\r\nloglevel=warn\r\n[unix_http_server]\r\nfile=/a\r\nusername=u\r v\r\npassword=p\r\n",
        )],
    ),
    (
        "the section of twiddler",
        &[(
            "s.conf",
            "[supervisord]\n[twiddler]\nlisten=[::1]:9002\nwhitelist=addGroup, log ; two\n",
        )],
    ),
    (
        "characters that are special in other formats",
        &[(
            "s.conf",
            "[supervisord]\n[unix_http_server]\nfile=/a\\b\\\nusername=%%20\\x41\npassword=\"a'b`$(c)\u{0}\u{7f}\u{10ffff}\n",
        )],
    ),
];

#[test]
fn unusual_configurations_are_read_as_the_daemon_reads_them() -> Result<()> {
    let cases: Vec<_> = UNUSUAL.iter().map(|(_, files)| Files::of(files)).collect();
    let python = python_version()?;
    let comparison = Comparison::start(&cases)?;
    for (index, files) in cases.iter().enumerate() {
        let description = UNUSUAL[index].0;
        if description.contains("brackets") && python < BRACKETS_IN_NAMES {
            continue;
        }
        let reason = comparison
            .check(index, files)
            .with_context(|| description.to_owned())?;
        ensure!(
            reason.is_none(),
            "{description}: {reason:?}\n{}",
            files.to_text()
        );
    }
    Ok(())
}

#[test]
fn random_configurations_are_read_as_the_daemon_reads_them() -> Result<()> {
    let python = python_version()?;
    let cases: Vec<_> = (1..=RANDOM_CASES)
        .map(|seed| Random::new(seed, python).files())
        .collect();
    let comparison = Comparison::start(&cases)?;
    let mut reasons = Vec::new();
    for (index, files) in cases.iter().enumerate() {
        reasons.extend(comparison.check(index, files)?);
    }
    // The daemon has to accept most cases, because only these are compared.
    let (refused, all) = (reasons.len(), cases.len());
    println!("compared {} of {all}", all - refused);
    ensure!(
        refused * 2 < all,
        "the daemon refuses {refused} of {all}:\n{}",
        reasons.join("\n")
    );
    Ok(())
}

#[test]
fn bytes_that_are_not_utf8_do_not_hide_other_sections() -> Result<()> {
    let dir = TempDir::new()?;
    let text =
        b"[supervisord]\n# \xff\n[unix_http_server]\nfile=/a\n[program:\xfe]\ncommand=\xfd\n";
    let main = Files(vec![("s.conf".to_owned(), text.to_vec())]).write(dir.path())?;
    assert_eq!(conf::read(&main)?.servers.len(), 1);
    Ok(())
}

#[test]
fn a_relative_logfile_is_resolved_in_the_daemons_directory() -> Result<()> {
    let dir = TempDir::new()?;
    let text = format!(
        "[supervisord]\ndirectory={0}\n[unix_http_server]\nfile=/a\n",
        dir.path().display()
    );
    let main = Files::of(&[("s.conf", &text), ("supervisord.log", "")]).write(dir.path())?;
    assert_eq!(
        conf::read(&main)?.logfile,
        LogFile::File(dir.path().join("supervisord.log"))
    );
    Ok(())
}
