//! The configuration: read as the daemon reads it, decided in the right order, and explained.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use supervisor_twiddler::config::{
    Config, ConfigErrors, IncludeTarget, ListenAddr, LogFormat, ServeArgs,
};
use supervisor_twiddler::daemon::conf::{
    self, ConfError, DaemonAddress, DaemonConf, Inspection, LogFile,
};
use tempfile::TempDir;
use tracing::Level;

/// How many random configurations are compared with the daemon's reading.
const RANDOM_CASES: u64 = 800;
/// From this version on, Python finds comments in another order (see `conf`).
const OTHER_COMMENTS: [u32; 2] = [3, 13];
/// From this version on, the name of a section may have brackets in it.
const BRACKETS_IN_NAMES: [u32; 2] = [3, 10];

/// Reasons of the daemon's that are ours as well.
const CONCERNS_US: &[&str] = &[
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

// --- What supervisord reads ---

/// Files by their paths, the first of which is the one that supervisord is started with.
#[derive(Clone, Debug, Default)]
struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    fn of(files: &[(&str, &str)]) -> Self {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), text.as_bytes().to_vec());
        Files(files.iter().map(owned).collect())
    }

    /// Writes them below `dir`; a path that ends with a slash is a directory. Returns the first.
    fn write(&self, dir: &Path) -> Result<PathBuf> {
        for (path, text) in &self.0 {
            let path = dir.join(path);
            let parent = path.parent().context("a path without a directory")?;
            fs::create_dir_all(parent)?;
            match path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                true => fs::create_dir_all(&path)?,
                false => fs::write(&path, text).with_context(|| path.display().to_string())?,
            }
        }
        Ok(dir.join(&self.0.first().context("no files")?.0))
    }

    fn shown(&self) -> String {
        self.0
            .iter()
            .fold(String::new(), |mut shown, (path, text)| {
                let _ = writeln!(shown, "--- {path}\n{}", String::from_utf8_lossy(text));
                shown
            })
    }
}

/// What is compared of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Understood {
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
    Understood(Understood),
    Refused(String),
}

impl Understood {
    /// What the daemon listens on, as a client must call it; and groups in one order, since the
    /// daemon sorts them by priority.
    fn in_our_terms(mut self) -> Self {
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
        Understood {
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
                .map(|set| (set.key, set.value))
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

/// The environment in which both read.
fn environment(home: &Path) -> HashMap<String, String> {
    [
        ("HOME", &*home.to_string_lossy()),
        ("LANG", "C.UTF-8"),
        ("A", "value of A"),
        ("EMPTY", ""),
        ("PORT", "9005"),
        ("PERCENT", "100%"),
        ("S", "outer"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// A temporary directory with one directory for each case, and what the daemon reads there.
struct Compared {
    dir: TempDir,
    answers: Vec<Answer>,
}

impl Compared {
    fn case_dir(dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("case-{index}"))
    }

    fn ask(cases: &[Files]) -> Result<Self> {
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
        Ok(Compared { dir, answers })
    }

    /// Reads a case ourselves and compares. Where the daemon refuses it, the reason: then it is
    /// enough that we find a mistake too if that is in a part that we need.
    fn check(&self, index: usize, files: &Files) -> Result<Option<&str>> {
        let main = Self::case_dir(self.dir.path(), index).join(&files.0[0].0);
        let env = environment(self.dir.path());
        let inspection = conf::inspect(&main, &|name| env.get(name).cloned());
        let Inspection { conf, mistakes } = inspection.with_context(|| files.shown())?;
        let theirs = match &self.answers[index] {
            Answer::Understood(theirs) => theirs,
            Answer::Refused(reason) => {
                // We take `%(here)s` everywhere, the daemon only in some options.
                let concerns_us = CONCERNS_US.iter().any(|words| reason.contains(words))
                    && !reason.contains("('here')");
                let is_silent = mistakes.is_empty() && conf.all_missing().next().is_none();
                let missed = concerns_us && is_silent;
                ensure!(
                    !missed,
                    "case {index}: we take it: {reason}\n{}",
                    files.shown()
                );
                return Ok(Some(reason));
            }
        };
        let missing: Vec<String> = conf.all_missing().map(ToString::to_string).collect();
        let ours = Understood::from_conf(conf);
        ensure!(
            missing.is_empty(),
            "case {index}: the daemon has what we miss: {missing:?}\n{}",
            files.shown()
        );
        let serious = mistakes
            .iter()
            .find(|mistake| !matches!(mistake, ConfError::NoServer { .. }));
        if let Some(mistake) = serious {
            bail!(
                "case {index}: the daemon takes what we do not: {mistake}\n{}",
                files.shown()
            );
        }
        let theirs = theirs.clone().in_our_terms();
        ensure!(
            ours == theirs,
            "case {index}\nours   {ours:#?}\ntheirs {theirs:#?}\n{}",
            files.shown()
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

/// Odd configurations that supervisord takes, each with what is odd about it.
const ODD: &[(&str, &[(&str, &str)])] = &[
    (
        "nothing but the one section",
        &[("s.conf", "[supervisord]")],
    ),
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
        "capitals in section names are others",
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
        "indentation that goes back",
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
        "servers that only begin like one",
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
        "here with a form of its own",
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
        "an include that names nothing",
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
        "our own section",
        &[(
            "s.conf",
            "[supervisord]\n[twiddler]\nlisten=[::1]:9002\nwhitelist=addGroup, log ; two\n",
        )],
    ),
    (
        "characters that mean something elsewhere",
        &[(
            "s.conf",
            "[supervisord]\n[unix_http_server]\nfile=/a\\b\\\nusername=%%20\\x41\npassword=\"a'b`$(c)\u{0}\u{7f}\u{10ffff}\n",
        )],
    ),
];

#[test]
fn odd_configurations_are_read_as_the_daemon_reads_them() -> Result<()> {
    let cases: Vec<_> = ODD.iter().map(|(_, files)| Files::of(files)).collect();
    let python = python_version()?;
    let compared = Compared::ask(&cases)?;
    for (index, files) in cases.iter().enumerate() {
        let odd = ODD[index].0;
        if odd.contains("brackets") && python < BRACKETS_IN_NAMES {
            continue;
        }
        let refused = compared
            .check(index, files)
            .with_context(|| odd.to_owned())?;
        ensure!(refused.is_none(), "{odd}: {refused:?}\n{}", files.shown());
    }
    Ok(())
}

#[test]
fn random_configurations_are_read_as_the_daemon_reads_them() -> Result<()> {
    let python = python_version()?;
    let cases: Vec<_> = (1..=RANDOM_CASES)
        .map(|seed| Random::new(seed, python).files())
        .collect();
    let compared = Compared::ask(&cases)?;
    let mut refused = Vec::new();
    for (index, files) in cases.iter().enumerate() {
        refused.extend(compared.check(index, files)?);
    }
    // Most must be compared, or this proves nothing.
    let (count, all) = (refused.len(), cases.len());
    println!("compared {} of {all}", all - count);
    ensure!(
        count * 2 < all,
        "the daemon refuses {count} of {all}:\n{}",
        refused.join("\n")
    );
    Ok(())
}

#[test]
fn bytes_that_are_no_text_do_not_hide_the_rest() -> Result<()> {
    let dir = TempDir::new()?;
    let text =
        b"[supervisord]\n# \xff\n[unix_http_server]\nfile=/a\n[program:\xfe]\ncommand=\xfd\n";
    let main = Files(vec![("s.conf".to_owned(), text.to_vec())]).write(dir.path())?;
    assert_eq!(conf::read(&main)?.servers.len(), 1);
    Ok(())
}

#[test]
fn a_relative_log_is_looked_for_where_the_daemon_goes() -> Result<()> {
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

/// Random configurations: mostly valid ones, in every way of writing them.
struct Random {
    state: u64,
    python: [u32; 2],
    /// What programs and groups are called next, so that most names are defined once.
    names: u32,
}

impl Random {
    fn new(seed: u64, python: [u32; 2]) -> Self {
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

    fn files(&mut self) -> Files {
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

    /// What may follow on a line without being part of it.
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
        if self.python < OTHER_COMMENTS && self.one_in(3) {
            self.pick(&mixed)
        } else {
            self.pick(&plain)
        }
    }

    /// Lines between two options.
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
        let name = match unix {
            true => self.pick(&[
                "unix_http_server",
                "unix_http_server:a",
                "unix_http_server2",
                "unix_http_server:[x",
            ]),
            false => self.pick(&[
                "inet_http_server",
                "inet_http_server:a",
                "inet_http_servers",
                "inet_http_server: b ",
            ]),
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

    /// Any letters at all, where supervisord does not mind.
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
                2 if self.python < OTHER_COMMENTS => self.pick(&both),
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
            // Without the space after its name, by which the group would not find it.
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

// --- What is decided ---

/// A configuration that works; `twiddler` is put under `[twiddler]`.
fn working(twiddler: &str) -> Files {
    let main = format!(
        "[supervisord]\n[unix_http_server]\nfile=/run/s.sock\nusername=u\npassword=p\n[inet_http_server]\nport=9001\nusername=v\npassword=q\n[include]\nfiles=conf.d/*.conf\n[twiddler]\n{twiddler}\n"
    );
    Files::of(&[("s.conf", &main), ("conf.d/", "")])
}

/// Loads `files` from a directory of their own, which mistakes name DIR.
fn load(
    files: &Files,
    args: ServeArgs,
    env: &[(&str, &str)],
) -> Result<(TempDir, Result<Config, ConfigErrors>)> {
    let dir = TempDir::new()?;
    let args = args.with("config", files.write(dir.path())?);
    let env = |name: &str| {
        let set = env.iter().find(|(key, _)| *key == name)?;
        Some(set.1.replace("DIR", &dir.path().to_string_lossy()))
    };
    let loaded = Config::load_with_env(&args, &env);
    Ok((dir, loaded))
}

fn loaded(files: &Files, args: ServeArgs, env: &[(&str, &str)]) -> Result<Config> {
    Ok(load(files, args, env)?.1?)
}

fn mistakes(files: &Files, args: ServeArgs, env: &[(&str, &str)]) -> Result<Vec<String>> {
    let (dir, loaded) = load(files, args, env)?;
    let Err(errors) = loaded else {
        bail!("no mistake was found\n{}", files.shown())
    };
    let text = errors
        .to_string()
        .replace(&*dir.path().to_string_lossy(), "DIR");
    Ok(text.lines().map(str::to_owned).collect())
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn defaults_are_those_of_the_contract() -> Result<()> {
    let config = loaded(&working(""), ServeArgs::default(), &[])?;
    assert_eq!(
        config.settings.listen,
        [ListenAddr::Tcp("127.0.0.1:9002".parse()?)]
    );
    assert_eq!(config.daemon, DaemonAddress::Unix("/run/s.sock".into()));
    assert_eq!(
        config
            .credentials
            .map(|found| (found.username, found.password)),
        some("u").zip(some("p"))
    );
    assert_eq!(config.include.dir, config.daemon_conf.here.join("conf.d"));
    assert_eq!(config.include.file_pattern, "*.conf");
    assert!(config.settings.whitelist.is_empty() && !config.settings.persist);
    assert_eq!(
        (config.settings.log_level, config.settings.log_format),
        (Level::INFO, LogFormat::Text)
    );
    Ok(())
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() -> Result<()> {
    let files = working(
        "listen = 127.0.0.1:1,\n  unix:///a.sock ; both\nsupervisord: unix:///f.sock\nwhitelist=addGroup\npersist=YES\nlog_level=error\nLOG_FORMAT=json\ninclude_dir=conf.d/../conf.d",
    );
    let env = [
        ("TWIDDLER_LISTEN", "127.0.0.1:2, [::1]:2"),
        ("TWIDDLER_SUPERVISORD", "unix:///e.sock"),
        ("TWIDDLER_WHITELIST", "twiddler.log, removeGroup"),
        ("TWIDDLER_PERSIST", "off"),
        ("TWIDDLER_LOG_LEVEL", "WARN"),
        ("TWIDDLER_LOG_FORMAT", "text"),
    ];
    let args = ServeArgs::default()
        .with("listen", "127.0.0.1:3,[::1]:3")
        .with("supervisord", "http://h:9001")
        .with("whitelist", "")
        .with("persist", "true")
        .with("log_level", "trace")
        .with("log_format", "json");
    let decided = |config: Config| {
        let listen: Vec<_> = config
            .settings
            .listen
            .iter()
            .map(ToString::to_string)
            .collect();
        let words = [
            listen.join(" "),
            config.daemon.to_string(),
            config.settings.whitelist.join(" "),
        ];
        (
            words,
            config.settings.persist,
            config.settings.log_level,
            config.settings.log_format,
        )
    };
    let words = |words: [&str; 3]| words.map(str::to_owned);

    let file = decided(loaded(&files, ServeArgs::default(), &[])?);
    let expected = words([
        "http://127.0.0.1:1 unix:///a.sock",
        "unix:///f.sock",
        "addGroup",
    ]);
    assert_eq!(file, (expected, true, Level::ERROR, LogFormat::Json));

    let environment = decided(loaded(&files, ServeArgs::default(), &env)?);
    let expected = words([
        "http://127.0.0.1:2 http://[::1]:2",
        "unix:///e.sock",
        "log removeGroup",
    ]);
    assert_eq!(environment, (expected, false, Level::WARN, LogFormat::Text));

    let typed = decided(loaded(&files, args, &env)?);
    let expected = words(["http://127.0.0.1:3 http://[::1]:3", "http://h:9001", ""]);
    assert_eq!(typed, (expected, true, Level::TRACE, LogFormat::Json));
    Ok(())
}

#[test]
fn an_empty_variable_counts_as_not_set() -> Result<()> {
    let files = working("persist=on\nlisten=127.0.0.1:1");
    let env = [("TWIDDLER_PERSIST", ""), ("TWIDDLER_LISTEN", "")];
    let config = loaded(&files, ServeArgs::default(), &env)?;
    assert!(config.settings.persist);
    assert_eq!(
        config.settings.listen,
        [ListenAddr::Tcp("127.0.0.1:1".parse()?)]
    );
    Ok(())
}

#[test]
fn the_file_may_be_named_by_a_variable() -> Result<()> {
    let dir = TempDir::new()?;
    let main = working("persist=on").write(dir.path())?;
    let env = |name: &str| (name == "TWIDDLER_CONFIG").then(|| main.to_string_lossy().into_owned());
    let config = Config::load_with_env(&ServeArgs::default(), &env)?;
    assert_eq!(config.daemon_conf.file, main);
    Ok(())
}

#[test]
fn credentials_belong_to_the_address() -> Result<()> {
    for (supervisord, expected) in [
        (None, Some("u")),
        (some("unix:///run/s.sock"), Some("u")),
        (some("http://localhost:9001"), Some("v")),
        (some("http://supervisord:9001"), Some("v")),
        (some("unix:///elsewhere.sock"), Some("u")),
    ] {
        let args = supervisord.iter().fold(ServeArgs::default(), |args, url| {
            args.with("supervisord", url.clone())
        });
        let config = loaded(&working(""), args, &[])?;
        let name = config.credentials.map(|credentials| credentials.username);
        assert_eq!(name.as_deref(), expected, "{supervisord:?}");
    }
    Ok(())
}

#[test]
fn a_digest_is_not_presented_as_a_password() -> Result<()> {
    let text = "[supervisord]\n[unix_http_server]\nfile=/a\nusername=u\npassword={SHA}00\n[include]\nfiles=*.ini\n";
    let config = loaded(&Files::of(&[("s.conf", text)]), ServeArgs::default(), &[])?;
    // It tells that the daemon asks for one, and no more.
    assert!(
        config
            .credentials
            .is_some_and(|credentials| credentials.is_hashed())
    );
    Ok(())
}

#[test]
fn generated_files_go_where_the_daemon_reads_them() -> Result<()> {
    // The patterns, the directory that is named (relative to where the file is), and what comes out.
    for (patterns, named, dir, file_pattern) in [
        ("a/*.conf b/*.conf", None, "a", "*.conf"),
        ("none/*.conf b/*.conf", None, "b", "*.conf"),
        ("a/x.conf b/[0-9]*", None, "b", "[0-9]*"),
        ("*/*.ini /proc/*.conf b/*.conf", None, "b", "*.conf"),
        ("a/.* s.conf/*.conf a/*", None, "a", "*"),
        ("%(here)s/a/*.conf", None, "a", "*.conf"),
        ("a/*.1 b/*.2", Some("b"), "b", "*.2"),
        ("/etc/a/*.1 /etc/b/*.2", Some("b"), "b", "*.2"),
        ("/etc/x.conf /etc/*.1 /etc/y/*.2", Some("b"), "b", "*.1"),
    ] {
        let text =
            format!("[supervisord]\n[unix_http_server]\nfile=/s\n[include]\nfiles={patterns}\n");
        let files = Files::of(&[("s.conf", &text), ("a/", ""), ("b/", "")]);
        let variable = named
            .map(|named| format!("DIR/{named}"))
            .unwrap_or_default();
        let env = [("TWIDDLER_INCLUDE_DIR", &*variable)];
        let config = loaded(&files, ServeArgs::default(), &env).context(patterns)?;
        let dir = config.daemon_conf.here.join(dir);
        let expected = IncludeTarget {
            dir,
            file_pattern: file_pattern.to_owned(),
        };
        assert_eq!(config.include, expected, "{patterns}");
    }
    Ok(())
}

#[test]
fn trying_a_directory_leaves_nothing_in_it() -> Result<()> {
    let (_dir, config) = load(&working(""), ServeArgs::default(), &[])?;
    assert_eq!(fs::read_dir(config?.include.dir)?.count(), 0);
    Ok(())
}

#[test]
fn a_broken_program_is_left_to_the_daemon() -> Result<()> {
    let mut files = working("");
    let broken = b"[program:a]\ncommand\npriority=high\nnumprocs=%(nothing)s\n[program:b/c]\n[group:g]\nprograms=%\n";
    files.0.push(("conf.d/a.conf".to_owned(), broken.to_vec()));
    let config = loaded(&files, ServeArgs::default(), &[])?;
    assert_eq!(config.daemon_conf.groups.len(), 3);
    Ok(())
}

// --- What is said ---

/// With a port, so that it needs no socket beside that of the daemon.
const HEAD: &str =
    "[supervisord]\n[unix_http_server]\nfile=/run/s.sock\n[inet_http_server:first]\nport=9001\n";
const INCLUDE: &str = "[include]\nfiles=conf.d/*.conf\n";

#[test]
fn mistakes_in_the_file_are_explained() -> Result<()> {
    let rest = format!("{HEAD}{INCLUDE}");
    for (text, expected) in [
        (
            "[unix_http_server]\nfile=/a\n".to_owned() + INCLUDE,
            "DIR/s.conf: there is no [supervisord] section, without which supervisord does not start; write [supervisord], even an empty one",
        ),
        (
            "[supervisord]\n".to_owned() + INCLUDE,
            "DIR/s.conf: there is no [unix_http_server] and no [inet_http_server] section, so nothing can talk to supervisord; write [unix_http_server] and below it file = /run/supervisor.sock",
        ),
        (
            format!("listen = 1\nsupervisord = 2\n{rest}"),
            "DIR/s.conf: line 1 stands before any section; write [supervisord] above it, or name supervisord's configuration file with -c PATH",
        ),
        (
            format!("{rest}[twiddler]\npersist\n"),
            "DIR/s.conf: line 9 in [twiddler] is not an option; write key = value, or indent it if it continues a value",
        ),
        (
            format!("{rest}[inet_http_server]\n"),
            "DIR/s.conf: [inet_http_server] has no port; write port = 127.0.0.1:9001",
        ),
        (
            format!("{rest}[unix_http_server:b]\n"),
            "DIR/s.conf: [unix_http_server:b] has no file; write file = /run/supervisor.sock",
        ),
        (
            format!("{HEAD}[include]\n"),
            "DIR/s.conf: [include] has no files; write files = DIR/conf.d/*.conf",
        ),
        (
            format!("{rest}[inet_http_server]\nport=localhost\n"),
            "DIR/s.conf: [inet_http_server] port: `localhost` is no port from 1 to 65535, alone or after a host and a colon; write port = 127.0.0.1:9001",
        ),
        (
            format!("{rest}[inet_http_server]\nport=h:0\n"),
            "DIR/s.conf: [inet_http_server] port: `h:0` is no port from 1 to 65535, alone or after a host and a colon; write port = 127.0.0.1:9001",
        ),
        (
            format!("{rest}[supervisord]\nloglevel=loud\n"),
            "DIR/s.conf: [supervisord] loglevel: `loud` is no level; write one of critical, error, warn, info, debug, trace, blather",
        ),
        (
            format!("{rest}[inet_http_server]\nport=1\nusername=u\n"),
            "DIR/s.conf: [inet_http_server] has a username but no password; write both or neither",
        ),
        (
            format!("{rest}[inet_http_server]\nport=1\npassword=p\n"),
            "DIR/s.conf: [inet_http_server] has a password but no username; write both or neither",
        ),
        (
            format!("{rest}[inet_http_server]\nport=1\nusername=u\npassword=hush%\n"),
            "DIR/s.conf: [inet_http_server] password: a % alone stands for nothing; write %% for a percent sign",
        ),
        (
            format!("{rest}[supervisord]\nlogfile=%(there)s/x\n"),
            "DIR/s.conf: [supervisord] logfile: %(there)s stands for nothing here; write %(here)s, %(host_node_name)s or %(ENV_NAME)s, or %% for a percent sign",
        ),
        (
            format!("{rest}[twiddler]\nlisten=%(ENV_X)s\n"),
            "DIR/s.conf: [twiddler] listen: the environment variable X is not set; start twiddler with the value that supervisord has, or write %% for a percent sign",
        ),
        (
            HEAD.to_owned(),
            "DIR/s.conf: [include] lists no files, so supervisord would not read what twiddler writes; write [include] and below it files = DIR/conf.d/*.conf",
        ),
        (
            format!("{HEAD}[include]\nfiles=none/*.conf\n"),
            "DIR/s.conf: [include] files: DIR/none/*.conf: the directory DIR/none does not exist here; create it, or write --include-dir DIR if it is elsewhere for twiddler",
        ),
        (
            format!("{HEAD}[include]\nfiles=s.conf/*.conf\n"),
            "DIR/s.conf: [include] files: DIR/s.conf/*.conf: DIR/s.conf is not a directory; name one that is",
        ),
        (
            format!("{HEAD}[include]\nfiles=conf.d/x.conf\n"),
            "DIR/s.conf: [include] files: DIR/conf.d/x.conf: no file that twiddler writes can match it; write DIR/conf.d/*.conf beside it",
        ),
        (
            format!("{HEAD}[include]\nfiles=*/*.conf\n"),
            "DIR/s.conf: [include] files: DIR/*/*.conf: its directory is a pattern itself; write --include-dir DIR/main, and create DIR/main if there is none",
        ),
        (
            format!("{rest}[twiddler]\nlistn=127.0.0.1:1\n"),
            "DIR/s.conf: [twiddler] listn is not a twiddler option; write listen",
        ),
        (
            format!("{rest}[twiddler]\ncolour=blue\n"),
            "DIR/s.conf: [twiddler] colour is not a twiddler option; write one of listen, supervisord, include_dir, username, password, password_file, allow_open, hosts, chmod, chown, tls_cert, tls_key, allow, whitelist, persist, live_update, log_level, log_format",
        ),
    ] {
        let files = Files::of(&[("s.conf", &text), ("conf.d/", "")]);
        assert_eq!(
            mistakes(&files, ServeArgs::default(), &[])?,
            [expected],
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn a_named_directory_needs_a_pattern_too() -> Result<()> {
    let main = format!("{HEAD}[include]\nfiles=conf.d/x.conf /etc/y.conf\n");
    let files = Files::of(&[("s.conf", &main), ("conf.d/", "")]);
    let found = mistakes(
        &files,
        ServeArgs::default(),
        &[("TWIDDLER_INCLUDE_DIR", "DIR/conf.d")],
    )?;
    let expected = [
        "DIR/s.conf: [include] files: DIR/conf.d/x.conf: no file that twiddler writes can match it; write DIR/conf.d/*.conf beside it",
        "DIR/s.conf: [include] files: /etc/y.conf: no file that twiddler writes can match it; write /etc/*.conf beside it",
    ];
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn a_mistake_in_an_included_file_names_that_file() -> Result<()> {
    let main = format!("{HEAD}{INCLUDE}");
    let included = "[inet_http_server]\nport=x\n[twiddler]\npersist=perhaps\n";
    let files = Files::of(&[("s.conf", &main), ("conf.d/a.conf", included)]);
    let expected = [
        "DIR/conf.d/a.conf: [inet_http_server] port: `x` is no port from 1 to 65535, alone or after a host and a colon; write port = 127.0.0.1:9001",
        "DIR/conf.d/a.conf: [twiddler] persist: `perhaps` is not understood; write true or false",
    ];
    assert_eq!(mistakes(&files, ServeArgs::default(), &[])?, expected);
    Ok(())
}

#[test]
fn values_that_an_option_cannot_have_are_explained() -> Result<()> {
    for (key, value, expected) in [
        ("listen", "", "there is no address; write 127.0.0.1:9002"),
        (
            "listen",
            "9002",
            "`9002` is not an address to listen on; write 127.0.0.1:9002, [::1]:9002 or unix:///run/twiddler/twiddler.sock",
        ),
        (
            "listen",
            "*:9002",
            "`*:9002` would open a port to everybody; write 127.0.0.1:9002 for this machine, or 0.0.0.0:9002 if that is meant",
        ),
        (
            "listen",
            "unix://a",
            "the socket's path in `unix://a` is not absolute; write unix:///run/twiddler/twiddler.sock, with three slashes",
        ),
        (
            "supervisord",
            "h:9001",
            "`h:9001` is not an address of supervisord; write unix:///run/supervisor.sock or http://127.0.0.1:9001",
        ),
        (
            "supervisord",
            "https://h:9001",
            "supervisord speaks no TLS; write http:// for https:// in `https://h:9001`",
        ),
        (
            "supervisord",
            "unix://a",
            "the socket's path in `unix://a` is not absolute; write unix:///run/supervisor.sock, with three slashes",
        ),
        (
            "supervisord",
            "http://me:hush@h:9001",
            "a user name or password does not belong into the address; write http://HOST:PORT, and both into the [inet_http_server] of supervisord.conf",
        ),
        (
            "supervisord",
            "http://h:9001/RPC2",
            "`http://h:9001/RPC2` goes on after the port; write http://HOST:PORT",
        ),
        (
            "supervisord",
            "http://h",
            "`http://h` lacks a host, or a port from 1 to 65535; write http://127.0.0.1:9001",
        ),
        (
            "include_dir",
            "/none/here",
            "the directory /none/here does not exist here; create it, or write --include-dir DIR if it is elsewhere for twiddler",
        ),
        (
            "include_dir",
            "/dev/null",
            "/dev/null is not a directory; name one that is",
        ),
        (
            "whitelist",
            "addgroup",
            "`addgroup` is no method of twiddler; write addGroup",
        ),
        (
            "whitelist",
            "log, supervisor.stop",
            "`supervisor.stop` is no method of twiddler; write one of getAPIVersion, getGroupNames, addGroup, addProcessToGroup, addProgramToGroup, removeProcessFromGroup, removeGroup, log, diffConfig, updateConfig, getAllProgramInfo, getProgramOptions, updateProgram, scaleProgram",
        ),
        (
            "persist",
            "perhaps",
            "`perhaps` is not understood; write true or false",
        ),
        (
            "log_level",
            "loud",
            "`loud` is not understood; write error, warn, info, debug or trace",
        ),
        (
            "log_format",
            "xml",
            "`xml` is not understood; write text or json",
        ),
    ] {
        let found = mistakes(
            &working(&format!("{key} = {value}")),
            ServeArgs::default(),
            &[],
        )?;
        assert_eq!(found, [format!("DIR/s.conf: [twiddler] {key}: {expected}")]);
        if !value.is_empty() {
            let variable = format!("TWIDDLER_{}", key.to_uppercase());
            let found = mistakes(&working(""), ServeArgs::default(), &[(&variable, value)])?;
            assert_eq!(found, [format!("{variable}: {expected}")]);
        }
        let option = format!("--{}", key.replace('_', "-"));
        let found = mistakes(&working(""), ServeArgs::default().with(key, value), &[])?;
        assert_eq!(found, [format!("{option}: {expected}")]);
    }
    Ok(())
}

#[test]
fn a_directory_that_cannot_be_written_to_is_explained() -> Result<()> {
    // Not even root can create files in /proc.
    let text = format!("{HEAD}[include]\nfiles=/proc/*.conf\n");
    let [found] = &mistakes(&Files::of(&[("s.conf", &text)]), ServeArgs::default(), &[])?[..]
    else {
        bail!("not one mistake");
    };
    assert!(
        found.starts_with(
            "DIR/s.conf: [include] files: /proc/*.conf: twiddler may not write to /proc ("
        ),
        "{found}"
    );
    assert!(
        found.ends_with(
            "); make it writable, or name another directory that supervisord includes with --include-dir"
        ),
        "{found}"
    );
    Ok(())
}

#[test]
fn files_that_cannot_be_read_are_explained() -> Result<()> {
    let found = mistakes(&Files::of(&[("s.conf/", "")]), ServeArgs::default(), &[])?;
    assert_eq!(
        found,
        [
            "DIR/s.conf/: it cannot be read (Is a directory (os error 21)); name a file with -c PATH that the account of twiddler may read"
        ]
    );
    let dir = TempDir::new()?;
    let error = conf::read(&dir.path().join("none"))
        .map(|_| ())
        .expect_err("there is no file");
    let expected =
        "none: there is no such file; name supervisord's configuration file with -c PATH";
    assert!(error.to_string().ends_with(expected), "{error}");
    Ok(())
}

#[test]
fn who_says_where_supervisord_listens_need_not_have_it_in_the_file() -> Result<()> {
    let files = Files::of(&[
        ("s.conf", &format!("[supervisord]\n{INCLUDE}")),
        ("conf.d/", ""),
    ]);
    let args = ServeArgs::default().with("supervisord", "http://h:9001");
    let config = loaded(&files, args, &[])?;
    assert_eq!(
        (config.daemon.to_string().as_str(), config.credentials),
        ("http://h:9001", None)
    );
    Ok(())
}

#[test]
fn all_mistakes_are_reported_at_once() -> Result<()> {
    let text = "[supervisord]\nloglevel=x\n[unix_http_server]\nusername=u\n[inet_http_server]\nport=x\npassword=%\n[include]\nfiles=/none/1/*.conf /none/2/x\n[twiddler]\nlisten=1,2\nlistn=1\npersist=x\n";
    let env = [("TWIDDLER_LOG_LEVEL", "x")];
    let args = ServeArgs::default().with("log_format", "x");
    let found = mistakes(&Files::of(&[("s.conf", text)]), args, &env)?;
    let keys: Vec<_> = found
        .iter()
        .map(|line| line.split(['`', ';']).next().unwrap_or_default())
        .collect();
    let expected = [
        "DIR/s.conf: [supervisord] loglevel: ",
        "DIR/s.conf: [unix_http_server] has no file",
        "DIR/s.conf: [unix_http_server] has a username but no password",
        "DIR/s.conf: [inet_http_server] port: ",
        "DIR/s.conf: [inet_http_server] password: a % alone stands for nothing",
        "DIR/s.conf: [twiddler] listn is not a twiddler option",
        "DIR/s.conf: [twiddler] listen: ",
        "DIR/s.conf: [twiddler] listen: ",
        "DIR/s.conf: [include] files: /none/1/*.conf: the directory /none/1 does not exist here",
        "DIR/s.conf: [include] files: /none/2/x: no file that twiddler writes can match it",
        "DIR/s.conf: [twiddler] persist: ",
        "TWIDDLER_LOG_LEVEL: ",
        "--log-format: ",
    ];
    assert_eq!(keys, expected);
    Ok(())
}
