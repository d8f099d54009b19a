//! The configuration: it is read as the daemon reads it, options have their precedence, and mistakes are
//! explained.

mod daemon_reading;
mod random;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use supervisor_twiddler::config::{
    Config, ConfigErrors, IncludeTarget, ListenAddr, LogFormat, ServeArgs,
};
use supervisor_twiddler::daemon::conf::{self, DaemonAddress};
use tempfile::TempDir;
use tracing::Level;

// --- supervisord's files ---

/// Files by their paths. supervisord is started with the first.
#[derive(Clone, Debug, Default)]
struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    fn of(files: &[(&str, &str)]) -> Self {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), text.as_bytes().to_vec());
        Files(files.iter().map(owned).collect())
    }

    /// Writes the files below `dir`; a path with a slash at the end is a directory. Returns the path of
    /// the first.
    fn write(&self, dir: &Path) -> Result<PathBuf> {
        for (path, text) in &self.0 {
            let path = dir.join(path);
            let parent = path.parent().context("a path without a directory")?;
            fs::create_dir_all(parent)?;
            if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                fs::create_dir_all(&path)?
            } else {
                fs::write(&path, text).with_context(|| path.display().to_string())?
            }
        }
        Ok(dir.join(&self.0.first().context("no files")?.0))
    }

    fn to_text(&self) -> String {
        self.0
            .iter()
            .fold(String::new(), |mut to_text, (path, text)| {
                let _ = writeln!(to_text, "--- {path}\n{}", String::from_utf8_lossy(text));
                to_text
            })
    }
}

/// Returns the environment in which the proxy and the daemon read the files.
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

// --- Precedence and defaults ---

/// Returns a valid configuration with `twiddler` as the text of `[twiddler]`.
fn valid_files(twiddler: &str) -> Files {
    let main = format!(
        "[supervisord]\n[unix_http_server]\nfile=/run/s.sock\nusername=u\npassword=p\n[inet_http_server]\nport=9001\nusername=v\npassword=q\n[include]\nfiles=conf.d/*.conf\n[twiddler]\n{twiddler}\n"
    );
    Files::of(&[("s.conf", &main), ("conf.d/", "")])
}

/// Loads `files` from a new directory. `DIR` in the values of `env` stands for its path.
fn load(
    files: &Files,
    args: ServeArgs,
    env: &[(&str, &str)],
) -> Result<(TempDir, Result<Config, ConfigErrors>)> {
    let dir = TempDir::new()?;
    let args = args.with("config", files.write(dir.path())?);
    let env = |name: &str| {
        let (_, value) = env.iter().find(|(key, _)| *key == name)?;
        Some(value.replace("DIR", &dir.path().to_string_lossy()))
    };
    let config = Config::load_with_env(&args, &env);
    Ok((dir, config))
}

fn load_valid(files: &Files, args: ServeArgs, env: &[(&str, &str)]) -> Result<Config> {
    Ok(load(files, args, env)?.1?)
}

/// Returns the mistakes, with `DIR` in place of the directory of the files.
fn mistakes(files: &Files, args: ServeArgs, env: &[(&str, &str)]) -> Result<Vec<String>> {
    let (dir, config) = load(files, args, env)?;
    let Err(errors) = config else {
        bail!("no mistake was found\n{}", files.to_text())
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
    let config = load_valid(&valid_files(""), ServeArgs::default(), &[])?;
    assert_eq!(
        config.settings.listen,
        [ListenAddr::Tcp("127.0.0.1:9002".parse()?)]
    );
    assert_eq!(config.daemon, DaemonAddress::Unix("/run/s.sock".into()));
    assert_eq!(
        config
            .credentials
            .map(|credentials| (credentials.username, credentials.password)),
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
    let files = valid_files(
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
    let settings = |config: Config| {
        let listen: Vec<_> = config
            .settings
            .listen
            .iter()
            .map(ToString::to_string)
            .collect();
        let texts = [
            listen.join(" "),
            config.daemon.to_string(),
            config.settings.whitelist.join(" "),
        ];
        (
            texts,
            config.settings.persist,
            config.settings.log_level,
            config.settings.log_format,
        )
    };
    let texts = |texts: [&str; 3]| texts.map(str::to_owned);

    let file = settings(load_valid(&files, ServeArgs::default(), &[])?);
    let expected = texts([
        "http://127.0.0.1:1 unix:///a.sock",
        "unix:///f.sock",
        "addGroup",
    ]);
    assert_eq!(file, (expected, true, Level::ERROR, LogFormat::Json));

    let environment = settings(load_valid(&files, ServeArgs::default(), &env)?);
    let expected = texts([
        "http://127.0.0.1:2 http://[::1]:2",
        "unix:///e.sock",
        "log removeGroup",
    ]);
    assert_eq!(environment, (expected, false, Level::WARN, LogFormat::Text));

    let command_line = settings(load_valid(&files, args, &env)?);
    let expected = texts(["http://127.0.0.1:3 http://[::1]:3", "http://h:9001", ""]);
    assert_eq!(
        command_line,
        (expected, true, Level::TRACE, LogFormat::Json)
    );
    Ok(())
}

#[test]
fn an_empty_variable_counts_as_not_set() -> Result<()> {
    let files = valid_files("persist=on\nlisten=127.0.0.1:1");
    let env = [("TWIDDLER_PERSIST", ""), ("TWIDDLER_LISTEN", "")];
    let config = load_valid(&files, ServeArgs::default(), &env)?;
    assert!(config.settings.persist);
    assert_eq!(
        config.settings.listen,
        [ListenAddr::Tcp("127.0.0.1:1".parse()?)]
    );
    Ok(())
}

#[test]
fn an_environment_variable_may_name_the_file() -> Result<()> {
    let dir = TempDir::new()?;
    let main = valid_files("persist=on").write(dir.path())?;
    let env = |name: &str| (name == "TWIDDLER_CONFIG").then(|| main.to_string_lossy().into_owned());
    let config = Config::load_with_env(&ServeArgs::default(), &env)?;
    assert_eq!(config.daemon_conf.file, main);
    Ok(())
}

#[test]
fn credentials_are_those_of_the_address() -> Result<()> {
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
        let config = load_valid(&valid_files(""), args, &[])?;
        let name = config.credentials.map(|credentials| credentials.username);
        assert_eq!(name.as_deref(), expected, "{supervisord:?}");
    }
    Ok(())
}

#[test]
fn a_digest_is_not_presented_as_a_password() -> Result<()> {
    let text = "[supervisord]\n[unix_http_server]\nfile=/a\nusername=u\npassword={SHA}00\n[include]\nfiles=*.ini\n";
    let config = load_valid(&Files::of(&[("s.conf", text)]), ServeArgs::default(), &[])?;
    // The digest only shows that the daemon requires a password.
    assert!(
        config
            .credentials
            .is_some_and(|credentials| credentials.is_hashed())
    );
    Ok(())
}

#[test]
fn the_include_directory_is_one_that_the_daemon_reads() -> Result<()> {
    // The patterns, the option `include_dir`, and the expected directory and file pattern.
    for (patterns, include_dir, dir, file_pattern) in [
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
        let variable = include_dir
            .map(|dir| format!("DIR/{dir}"))
            .unwrap_or_default();
        let env = [("TWIDDLER_INCLUDE_DIR", &*variable)];
        let config = load_valid(&files, ServeArgs::default(), &env).context(patterns)?;
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
fn the_check_of_the_include_directory_leaves_no_file() -> Result<()> {
    let (_dir, config) = load(&valid_files(""), ServeArgs::default(), &[])?;
    assert_eq!(fs::read_dir(config?.include.dir)?.count(), 0);
    Ok(())
}

#[test]
fn an_invalid_program_is_not_a_mistake() -> Result<()> {
    let mut files = valid_files("");
    let broken = b"[program:a]\ncommand\npriority=high\nnumprocs=%(nothing)s\n[program:b/c]\n[group:g]\nprograms=%\n";
    files.0.push(("conf.d/a.conf".to_owned(), broken.to_vec()));
    let config = load_valid(&files, ServeArgs::default(), &[])?;
    assert_eq!(config.daemon_conf.groups.len(), 3);
    Ok(())
}

// --- Messages ---

/// A configuration whose daemon also listens on a port, so that the proxy needs no socket beside the
/// daemon's.
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
fn the_option_include_dir_needs_a_pattern_too() -> Result<()> {
    let main = format!("{HEAD}[include]\nfiles=conf.d/x.conf /etc/y.conf\n");
    let files = Files::of(&[("s.conf", &main), ("conf.d/", "")]);
    let errors = mistakes(
        &files,
        ServeArgs::default(),
        &[("TWIDDLER_INCLUDE_DIR", "DIR/conf.d")],
    )?;
    let expected = [
        "DIR/s.conf: [include] files: DIR/conf.d/x.conf: no file that twiddler writes can match it; write DIR/conf.d/*.conf beside it",
        "DIR/s.conf: [include] files: /etc/y.conf: no file that twiddler writes can match it; write /etc/*.conf beside it",
    ];
    assert_eq!(errors, expected);
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
fn invalid_option_values_are_explained() -> Result<()> {
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
        let errors = mistakes(
            &valid_files(&format!("{key} = {value}")),
            ServeArgs::default(),
            &[],
        )?;
        assert_eq!(
            errors,
            [format!("DIR/s.conf: [twiddler] {key}: {expected}")]
        );
        if !value.is_empty() {
            let variable = format!("TWIDDLER_{}", key.to_uppercase());
            let errors = mistakes(
                &valid_files(""),
                ServeArgs::default(),
                &[(&variable, value)],
            )?;
            assert_eq!(errors, [format!("{variable}: {expected}")]);
        }
        let option = format!("--{}", key.replace('_', "-"));
        let errors = mistakes(&valid_files(""), ServeArgs::default().with(key, value), &[])?;
        assert_eq!(errors, [format!("{option}: {expected}")]);
    }
    Ok(())
}

#[test]
fn a_directory_that_cannot_be_written_to_is_explained() -> Result<()> {
    // Even root cannot create files in /proc.
    let text = format!("{HEAD}[include]\nfiles=/proc/*.conf\n");
    let [errors] = &mistakes(&Files::of(&[("s.conf", &text)]), ServeArgs::default(), &[])?[..]
    else {
        bail!("not one mistake");
    };
    assert!(
        errors.starts_with(
            "DIR/s.conf: [include] files: /proc/*.conf: twiddler may not write to /proc ("
        ),
        "{errors}"
    );
    assert!(
        errors.ends_with(
            "); make it writable, or name another directory that supervisord includes with --include-dir"
        ),
        "{errors}"
    );
    Ok(())
}

#[test]
fn files_that_cannot_be_read_are_explained() -> Result<()> {
    let errors = mistakes(&Files::of(&[("s.conf/", "")]), ServeArgs::default(), &[])?;
    assert_eq!(
        errors,
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
fn with_the_option_supervisord_the_file_needs_no_server() -> Result<()> {
    let files = Files::of(&[
        ("s.conf", &format!("[supervisord]\n{INCLUDE}")),
        ("conf.d/", ""),
    ]);
    let args = ServeArgs::default().with("supervisord", "http://h:9001");
    let config = load_valid(&files, args, &[])?;
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
    let errors = mistakes(&Files::of(&[("s.conf", text)]), args, &env)?;
    let keys: Vec<_> = errors
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
