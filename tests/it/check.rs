//! `twiddler check` tries the steps of `serve`, prints the same errors, and changes nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use crate::common::sidecar::twiddler;
use crate::common::{
    Client, Daemon, DaemonOptions, LIMIT, Process, Sidecar, Version, eventually, run, stderr_text,
    stdout_text, value, venv,
};
use anyhow::{Context, Result, ensure};

/// The result of a verb.
struct Outcome {
    code: Option<i32>,
    /// Its problems, a sentence each.
    sentences: Vec<String>,
    /// Its output and its errors.
    printed: String,
}

/// Runs a verb to its end.
fn outcome(verb: &str, daemon: &Daemon, setup: &Setup<'_>) -> Result<Outcome> {
    let dir = daemon.dir().to_string_lossy().into_owned();
    let mut command = crate::common::sidecar::twiddler_command();
    command
        .args([verb, "-c", &format!("{dir}/supervisord.conf")])
        .args(setup.arguments.iter().map(|text| text.replace("DIR", &dir)))
        .env("TWIDDLER_ALLOW_OPEN", "true") // a port opens the socket that is the daemon's
        .envs(
            setup
                .environment
                .iter()
                .map(|(name, text)| (name, text.replace("DIR", &dir))),
        )
        .current_dir(&dir);
    let output = run(&mut command)?;
    let begins = if verb == "serve" {
        "twiddler: "
    } else {
        "problem  "
    };
    let printed = format!("{}{}", stdout_text(&output), stderr_text(&output));
    let sentences = printed
        .lines()
        .filter_map(|line| line.strip_prefix(begins))
        .map(str::to_owned);
    Ok(Outcome {
        code: output.status.code(),
        sentences: sentences.collect(),
        printed: printed.clone(),
    })
}

/// The changes that make a valid configuration invalid, and the expected error.
#[derive(Clone, Copy, Default)]
struct Setup<'a> {
    name: &'a str,
    /// Arguments. DIR stands for the directory of the daemon.
    arguments: &'a [&'a str],
    environment: &'a [(&'a str, &'a str)],
    /// Lines below `[twiddler]`.
    section: &'a str,
    /// A text in the file, and its replacement.
    replacement: Option<(&'a str, &'a str)>,
    /// A path below the daemon's directory at which a directory takes the place of a file.
    directory: &'a str,
    /// A part of the error; DIR as above.
    expected: &'a str,
}

const FREE: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// Fails unless both verbs print the expected error and exit with 2.
fn ensure_same(daemon: &Daemon, setup: &Setup<'_>) -> Result<()> {
    let good = daemon.read("supervisord.conf")?;
    let mut text = format!("{good}\n[twiddler]\n{}\n", setup.section);
    if let Some((old, new)) = setup.replacement {
        ensure!(text.contains(old), "{old:?} is not in\n{text}");
        text = text.replace(old, new);
    }
    daemon.write("supervisord.conf", &text)?;
    let directory = daemon.dir().join(setup.directory);
    if !setup.directory.is_empty() {
        let _ = fs::remove_file(&directory); // it may not have been there
        fs::create_dir(&directory)?;
    }
    let serve = outcome("serve", daemon, setup)?;
    let before = snapshot(daemon)?;
    let check = outcome("check", daemon, setup)?;
    ensure!(snapshot(daemon)? == before, "check has changed something");
    daemon.write("supervisord.conf", &good)?;
    if !setup.directory.is_empty() {
        fs::remove_dir(&directory)?;
    }
    ensure!(serve.code == Some(2), "serve: {}", serve.printed);
    ensure!(check.code == Some(2), "check: {}", check.printed);
    ensure!(!serve.sentences.is_empty(), "serve: {}", serve.printed);
    for sentence in &serve.sentences {
        ensure!(
            check.sentences.contains(sentence),
            "serve says {sentence}\ncheck: {}",
            check.printed
        );
    }
    let expected = setup
        .expected
        .replace("DIR", &daemon.dir().to_string_lossy());
    ensure!(
        serve
            .sentences
            .iter()
            .any(|sentence| sentence.contains(&expected)),
        "not {expected:?} but {:#?}",
        serve.sentences
    );
    ensure!(
        check
            .printed
            .lines()
            .last()
            .is_some_and(|line| line.starts_with("next     mend")),
        "{}",
        check.printed
    );
    Ok(())
}

/// The paths, times and sizes of all files below the daemon's directory. Of logs, only the paths.
fn snapshot(daemon: &Daemon) -> Result<Vec<String>> {
    fn walk(dir: &Path, entries: &mut Vec<String>) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let is_log = path.extension().is_some_and(|end| end == "log");
            entries.push(if metadata.is_dir() || is_log {
                path.display().to_string()
            } else {
                format!(
                    "{} {:?} {}",
                    path.display(),
                    metadata.modified()?,
                    metadata.len()
                )
            });
            if metadata.is_dir() {
                walk(&path, entries)?;
            }
        }
        Ok(())
    }
    let mut entries = Vec::new();
    walk(daemon.dir(), &mut entries)?;
    entries.sort();
    Ok(entries)
}

#[test]
fn serve_and_check_report_the_same_mistakes() -> Result<()> {
    let daemon = Daemon::start("")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let _socket = UnixListener::bind(daemon.dir().join("taken.sock"))?;
    daemon.write("plain", "")?;
    daemon.write("cert.pem", "rubbish")?;
    let long = format!("unix://DIR/{}", "x".repeat(120));
    let listen = |address| ["--listen", address];
    let free = Setup {
        arguments: &FREE,
        ..Setup::default()
    };
    for setup in [
        Setup {
            name: "a taken port",
            arguments: &listen(&taken),
            expected: &format!(
                "--listen: http://{taken} is taken by another program; choose another address"
            ),
            ..Setup::default()
        },
        Setup {
            name: "a taken socket",
            arguments: &listen("unix://DIR/taken.sock"),
            expected: "--listen: unix://DIR/taken.sock is taken by another program; choose another address",
            ..Setup::default()
        },
        Setup {
            name: "a file where the socket is to be",
            environment: &[("TWIDDLER_LISTEN", "unix://DIR/plain")],
            expected: "TWIDDLER_LISTEN: DIR/plain exists and is not a socket; remove it, or choose another path",
            ..Setup::default()
        },
        Setup {
            name: "no directory for the socket",
            section: "listen = unix:///nowhere/x.sock",
            expected: "DIR/supervisord.conf: [twiddler] listen: the directory of /nowhere/x.sock does not exist; create it, or choose another path",
            ..Setup::default()
        },
        Setup {
            name: "a file as the directory of the socket",
            arguments: &listen("unix://DIR/plain/x.sock"),
            expected: "--listen: the directory of DIR/plain/x.sock is not a directory; choose another path",
            ..Setup::default()
        },
        Setup {
            name: "a path too long for a socket",
            arguments: &listen(&long),
            expected: "is longer than the path of a socket may be (107 bytes); choose a shorter one",
            ..Setup::default()
        },
        Setup {
            name: "an address of another machine",
            arguments: &["--listen", "192.0.2.1:9002", "--allow-open"],
            expected: "--listen: 192.0.2.1 is not an address of this machine; choose 127.0.0.1, or one that is",
            ..Setup::default()
        },
        Setup {
            name: "the daemon's own socket through another path",
            environment: &[("TWIDDLER_LISTEN", "unix://DIR/conf.d/../s.sock")],
            expected: "TWIDDLER_LISTEN: unix://DIR/conf.d/../s.sock is where supervisord listens, by [unix_http_server]; choose another address",
            ..Setup::default()
        },
        Setup {
            name: "two spellings of one place",
            section: "listen = 127.0.0.1:19, 0.0.0.0:19",
            arguments: &["--allow-open"],
            expected: "[twiddler] listen: http://0.0.0.0:19 and http://127.0.0.1:19 are one place; leave one of them out",
            ..Setup::default()
        },
        Setup {
            name: "a directory in the place of the journal",
            directory: "conf.d/.twiddler-journal",
            expected: "DIR/conf.d/.twiddler-journal",
            ..free
        },
        Setup {
            name: "a directory in the place of the lock",
            directory: "conf.d/.twiddler-lock",
            expected: "DIR/conf.d/.twiddler-lock",
            ..free
        },
        Setup {
            name: "a directory in the place of the persist file",
            directory: "conf.d/zz-twiddler-persist.conf",
            expected: "DIR/conf.d/zz-twiddler-persist.conf",
            ..free
        },
        Setup {
            name: "a word that is no level",
            section: "log_level = loud",
            expected: "DIR/supervisord.conf: [twiddler] log_level: `loud`",
            ..free
        },
        Setup {
            name: "no directory for generated files",
            replacement: Some(("conf.d/*.conf", "none/*.conf")),
            expected: "DIR/supervisord.conf: [include] files: DIR/none/*.conf: the directory DIR/none does not exist here",
            ..free
        },
        Setup {
            name: "certificates that are none",
            section: "tls_cert = cert.pem\ntls_key = cert.pem",
            expected: "DIR/supervisord.conf: [twiddler] tls_cert: there is no certificate in PEM in DIR/cert.pem",
            ..free
        },
        Setup {
            name: "an address that is open",
            arguments: &listen("0.0.0.0:0"),
            environment: &[("TWIDDLER_ALLOW_OPEN", "")],
            expected: "--listen: http://0.0.0.0:0 would let in",
            ..Setup::default()
        },
        Setup {
            name: "a port beside a socket that is not for all",
            environment: &[("TWIDDLER_ALLOW_OPEN", "")],
            expected: "--listen: http://127.0.0.1:0 would let in accounts of this machine",
            ..free
        },
    ] {
        ensure_same(&daemon, &setup).context(setup.name.to_owned())?;
    }
    Ok(())
}

#[test]
fn it_goes_on_after_a_problem() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        include: "none/*.conf",
        ..DaemonOptions::default()
    })?;
    fs::remove_dir(daemon.include_dir())?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let setup = Setup {
        arguments: &["--listen", &taken.local_addr()?.to_string()],
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup)?;
    ensure!(
        check.code == Some(2) && check.sentences.len() == 2,
        "{}",
        check.printed
    );
    for expected in [
        "problem  ",
        "ok       supervisord 4.3.0 answers at",
        "ok       supervisord's log",
        "is taken by another program",
    ] {
        ensure!(
            check.printed.contains(expected),
            "{expected}: {}",
            check.printed
        );
    }
    Ok(())
}

#[test]
fn searched_paths_are_absolute() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = crate::common::sidecar::twiddler_command();
    // The machine may have a file in `/etc`.
    let printed = stdout_text(&run(command
        .arg("check")
        .current_dir(dir.path())
        .env("PATH", ""))?);
    let here = dir.path().join("supervisord.conf");
    let lists_path = printed.contains(&format!("{}, ", here.display()));
    let has_file = printed.starts_with("ok       configuration /");
    ensure!(lists_path || has_file, "{printed}");
    Ok(())
}

#[test]
fn a_refused_value_hides_no_other_mistake() -> Result<()> {
    let daemon = Daemon::start("")?;
    daemon.write("conf.d/zz-twiddler-persist.conf", "; not ours\n")?;
    fs::create_dir(daemon.include_dir().join(".twiddler-journal"))?;
    let journal = outcome("check", &daemon, &Setup::default())?;
    ensure!(
        journal
            .printed
            .contains("/.twiddler-journal is a directory"),
        "{}",
        journal.printed
    );
    for (arguments, expected) in [
        (
            &["--supervisord", "nope", "--persist=maybe"][..],
            &[
                "problem  --supervisord: ",
                "problem  --persist: ",
                "/.twiddler-journal is a directory",
            ][..],
        ),
        (
            &["--username", "a:b", "--password-file", "/nope"],
            &["problem  --username: ", "problem  --password-file: "],
        ),
        (
            &["--tls-cert", "/nope/cert", "--tls-key", "/nope/key"],
            &["problem  --tls-cert: ", "problem  --tls-key: "],
        ),
    ] {
        let listen = ["--listen", "unix:///nowhere/x.sock"];
        let arguments = [&listen, arguments].concat();
        let setup = Setup {
            arguments: &arguments,
            ..Setup::default()
        };
        let check = outcome("check", &daemon, &setup)?;
        for part in expected.iter().chain(&["problem  --listen: "]) {
            ensure!(check.printed.contains(part), "no {part}: {}", check.printed);
        }
    }
    fs::remove_dir(daemon.include_dir().join(".twiddler-journal"))?;
    for (persist, verb_text) in [
        ("--persist=true", "replaces"),
        ("--persist=false", "sets aside"),
    ] {
        let arguments = [&FREE[..], &[persist]].concat();
        let setup = Setup {
            arguments: &arguments,
            ..Setup::default()
        };
        let check = outcome("check", &daemon, &setup)?;
        let note = format!(
            "note     the persist file in {} is not one that twiddler has written; twiddler serve {verb_text} it",
            daemon.include_dir().display()
        );
        ensure!(check.code == Some(0), "{}", check.printed);
        ensure!(
            check.printed.contains(&note),
            "no {note}: {}",
            check.printed
        );
    }
    Ok(())
}

#[test]
fn it_ends_with_the_next_command() -> Result<()> {
    let daemon = Daemon::start("")?;
    let next = |arguments: &[&str]| -> Result<String> {
        let setup = Setup {
            arguments,
            ..Setup::default()
        };
        let check = outcome("check", &daemon, &setup)?;
        ensure!(check.code == Some(0), "{}", check.printed);
        let last = check.printed.lines().last().context("nothing")?;
        Ok(last.replace(&*daemon.dir().to_string_lossy(), "DIR"))
    };
    let socket = "unix://DIR/t.sock";
    ensure!(
        next(&["--listen", socket])?
            == format!(
                "next     twiddler serve -c DIR/supervisord.conf --listen {socket}, then: supervisorctl -s {socket} status"
            )
    );
    // If supervisord requires a password, the next command has credentials.
    let guarded = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "secret")),
        ..DaemonOptions::default()
    })?;
    let setup = Setup {
        arguments: &["--listen", socket],
        ..Setup::default()
    };
    let check = outcome("check", &guarded, &setup)?;
    let last = check.printed.lines().last().context("nothing")?;
    ensure!(last.ends_with("-u USERNAME -p PASSWORD status"), "{last}");
    let open = next(&["--listen", "0.0.0.0:0", "--allow-open"])?;
    ensure!(
        open.ends_with("supervisorctl -s http://127.0.0.1:0 status"),
        "{open}"
    );
    Ok(())
}

#[test]
fn it_changes_nothing() -> Result<()> {
    let daemon = Daemon::start("[program:cat]\ncommand = /bin/cat\n")?;
    let reread = |what: &str| daemon.expect_fault("supervisor.addProcessGroup", (what,));
    // The user has edited a file that supervisord has not read yet.
    daemon.write("conf.d/new.conf", "[program:new]\ncommand = /bin/cat\n")?;
    let read_before = daemon.call("supervisor.getAllConfigInfo", ())?;
    let before = snapshot(&daemon)?;
    let setup = Setup {
        arguments: &["--listen", "unix://DIR/t.sock", "--listen", "127.0.0.1:0"],
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup)?;
    ensure!(check.code == Some(0), "{}", check.printed);
    ensure!(
        snapshot(&daemon)? == before,
        "{:#?}\n{:#?}",
        before,
        snapshot(&daemon)?
    );
    ensure!(daemon.call("supervisor.getAllConfigInfo", ())? == read_before);
    ensure!(reread("new")?.code == 10, "it was let read");
    let log = daemon.log();
    ensure!(!log.contains("twiddler~"), "{log}");
    Ok(())
}

#[test]
fn a_proxy_that_runs_is_not_disturbed() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("one", 1))?;
    let log = sidecar.wait_for_stderr("added group one")?;
    let address = sidecar.tcp_addr().to_string();
    let setup = Setup {
        arguments: &["--listen", &address],
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup)?;
    ensure!(
        check.code == Some(2)
            && check.printed.contains(&format!(
                "http://{address} is taken by another twiddler; stop it"
            )),
        "{}",
        check.printed
    );
    let holder = format!("problem  another twiddler (pid {}, ", sidecar.pid());
    ensure!(
        check.printed.contains(&holder),
        "{holder}: {}",
        check.printed
    );
    ensure!(sidecar.stderr_text() == log, "{}", sidecar.stderr_text());
    client.call("twiddler.addGroup", ("two", 1))?;
    ensure!(client.call("twiddler.getGroupNames", ())? == value(vec!["one", "two"]));
    Ok(())
}

#[test]
fn the_daemons_own_port_is_refused_however_it_is_spelled() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        tcp: true,
        ..DaemonOptions::default()
    })?;
    let port = daemon.tcp_addr().port();
    // The port is free when the daemon has ended. A proxy on it would call itself.
    daemon.stop()?;
    for (host, supervisord) in [
        ("127.0.0.1", None),
        ("localhost", None),
        ("0.0.0.0", None),
        ("[::]", None),
        ("127.0.0.1", Some("http://localhost:PORT")),
        ("[::1]", Some("http://localhost:PORT")),
    ] {
        let listen = format!("{host}:{port}");
        let supervisord = supervisord.map(|url| url.replace("PORT", &port.to_string()));
        let mut arguments = vec!["--listen", &listen, "--allow-open"];
        if let Some(url) = &supervisord {
            arguments.extend(["--supervisord", url]);
        }
        let setup = Setup {
            arguments: &arguments,
            ..Setup::default()
        };
        let by = match &supervisord {
            Some(_) => "--supervisord",
            None => "[inet_http_server]",
        };
        let expected = format!("is where supervisord listens, by {by}; choose another address");
        for verb in ["serve", "check"] {
            let outcome = outcome(verb, &daemon, &setup)?;
            ensure!(
                outcome.code == Some(2) && outcome.printed.contains(&expected),
                "{verb} {arguments:?}: {}",
                outcome.printed
            );
        }
    }
    Ok(())
}

#[test]
fn misspelt_names_are_noted() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: "[twidler]\npersist = true\n[program:proxy]\nautostart = false\n\
               command = /usr/local/bin/twiddler serve --persist\n",
        ..DaemonOptions::default()
    })?;
    let environment = [
        ("TWIDDLER_PERSISTS", "1"),
        ("TWIDLER_LISTEN", "127.0.0.1:0"),
        // An orchestrator sets these variables for a service named twiddler.
        ("TWIDDLER_PORT", "tcp://10.0.0.1:9002"),
        ("TWIDDLER_SERVICE_HOST", "10.0.0.1"),
    ];
    let file = daemon.conf().display().to_string();
    let notes = [
        "the variable TWIDDLER_PERSISTS counts for nothing; write TWIDDLER_PERSIST".to_owned(),
        "the variable TWIDLER_LISTEN counts for nothing; write TWIDDLER_LISTEN".to_owned(),
        format!("{file}: [twidler] counts for nothing; write [twiddler]"),
        format!(
            "{file}: [program:proxy] runs twiddler below the supervisord that it is in front of"
        ),
    ];
    let setup = Setup {
        arguments: &FREE,
        environment: &environment,
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup)?;
    ensure!(check.code == Some(0), "{}", check.printed);
    let sidecar = Sidecar::start_options(
        &daemon,
        crate::common::SidecarOptions {
            environment: &environment,
            ..Default::default()
        },
    )?;
    for note in &notes {
        ensure!(
            check.printed.contains(&format!("note     {note}")),
            "{note}: {}",
            check.printed
        );
        sidecar.wait_for_stderr(note)?;
    }
    ensure!(!check.printed.contains("TWIDDLER_PORT") && !check.printed.contains("SERVICE_HOST"));
    Ok(())
}

#[test]
fn an_address_in_the_list_twice_counts_once() -> Result<()> {
    let daemon = Daemon::start("")?;
    let socket = format!("unix://{}/twice.sock", daemon.dir().display());
    let sidecar = Sidecar::start_options(
        &daemon,
        crate::common::SidecarOptions {
            arguments: &["--listen", &socket, "--listen", &socket],
            own_listeners: Some(1),
            ..Default::default()
        },
    )?;
    sidecar.socket_client().call("supervisor.getState", ())?;
    ensure!(sidecar.addrs().len() == 1);
    Ok(())
}

/// Fails unless `check` prints this problem with the daemon, and `serve`, which starts all the same, logs it.
fn ensure_both_report(daemon: &Daemon, arguments: &[&str], expected: &str) -> Result<()> {
    let mut all = FREE.to_vec();
    all.extend(arguments);
    let setup = Setup {
        arguments: &all,
        ..Setup::default()
    };
    let check = outcome("check", daemon, &setup)?;
    ensure!(
        check.printed.contains(expected),
        "{expected}: {}",
        check.printed
    );
    let sidecar = Sidecar::start_with(daemon, arguments)?;
    sidecar.wait_for_stderr(expected)?;
    Ok(())
}

#[test]
fn a_daemon_that_is_down_or_refuses_credentials_is_reported() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "secret")),
        ..DaemonOptions::default()
    })?;
    let file = daemon.conf().display().to_string();
    let socket = daemon.socket().display().to_string();
    // The file has another password than the running daemon.
    let text = daemon.read("supervisord.conf")?;
    daemon.write(
        "supervisord.conf",
        &text.replace("password = secret", "password = other"),
    )?;
    ensure_both_report(
        &daemon,
        &[],
        &format!(
            "{file}: [unix_http_server]: supervisord at unix://{socket} rejects this username and password"
        ),
    )?;
    daemon.stop()?;
    daemon.write("supervisord.conf", &text)?;
    ensure_both_report(
        &daemon,
        &[],
        &format!("there is no socket {socket}; start supervisord"),
    )?;
    let listener = UnixListener::bind(&socket)?;
    drop(listener);
    ensure_both_report(
        &daemon,
        &[],
        &format!("nobody listens on the socket {socket}; start supervisord"),
    )?;
    Ok(())
}

#[test]
fn check_does_not_wait_forever() -> Result<()> {
    let daemon = Daemon::start("")?;
    daemon.signal("STOP")?;
    let setup = Setup {
        arguments: &FREE,
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup);
    daemon.signal("CONT")?;
    let check = check?;
    let expected = format!(
        "problem  supervisord at unix://{} has not answered for 10 s; start supervisord, or name where it listens with --supervisord",
        daemon.socket().display()
    );
    ensure!(
        check.code == Some(2) && check.printed.contains(&expected),
        "{}",
        check.printed
    );
    ensure!(check.printed.contains("ok       can listen on"));
    Ok(())
}

#[test]
fn a_server_that_is_no_supervisord_is_reported() -> Result<()> {
    let daemon = Daemon::start("")?;
    // A supervisord without an rpcinterface has no methods.
    let dir = daemon.dir().display().to_string();
    let socket = format!("{dir}/bare.sock");
    daemon.write(
        "bare.conf",
        &format!("[unix_http_server]\nfile = {socket}\n[supervisord]\nlogfile = {dir}/bare.log\npidfile = {dir}/bare.pid\n"),
    )?;
    let mut command = venv(Version::default()).command("supervisor.supervisord");
    let _bare = Process::spawn(command.args(["-n", "-c", "bare.conf"]).current_dir(&dir))?;
    eventually(LIMIT, || Ok(UnixStream::connect(&socket)?))?;
    ensure_both_report(
        &daemon,
        &["--supervisord", &format!("unix://{socket}")],
        &format!(
            "supervisord at unix://{socket} does not know supervisor.getSupervisorVersion; in "
        ),
    )?;
    // A web server that does not answer XML-RPC calls.
    let server = Process::spawn(Command::new(crate::common::python()).args([
        "-u",
        "-c",
        "import http.server as h\nserver = h.ThreadingHTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler)\nprint('port', server.server_port)\nserver.serve_forever()",
    ]))?;
    let printed = server.wait_for_stdout("port ")?;
    let port = printed.trim().rsplit(' ').next().context("no port")?;
    let url = format!("http://127.0.0.1:{port}");
    ensure_both_report(
        &daemon,
        &["--supervisord", &url],
        &format!(
            "what listens at {url} answers supervisor.getSupervisorVersion with HTTP 501 Not Implemented, as no supervisord does"
        ),
    )
}

#[test]
fn a_digest_is_noted_and_its_password_can_be_presented() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "secret")),
        ..DaemonOptions::default()
    })?;
    let digest = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4";
    let text = daemon.read("supervisord.conf")?;
    let section = "[unix_http_server]";
    let text = text.replacen("password = secret", &format!("password = {digest}"), 1);
    daemon.write("supervisord.conf", &text)?;
    let check = outcome(
        "check",
        &daemon,
        &Setup {
            arguments: &FREE,
            ..Setup::default()
        },
    )?;
    let file = daemon.conf().display().to_string();
    let note = format!(
        "note     {file}: {section} password is a digest, so supervisord judges each caller"
    );
    ensure!(
        check.code == Some(0) && check.printed.contains(&note) && !check.printed.contains(digest),
        "{}",
        check.printed
    );
    // The advice of the note works.
    let environment = [
        ("TWIDDLER_USERNAME", "user"),
        ("TWIDDLER_PASSWORD", "secret"),
    ];
    let check = outcome(
        "check",
        &daemon,
        &Setup {
            arguments: &FREE,
            environment: &environment,
            ..Setup::default()
        },
    )?;
    ensure!(
        check.code == Some(0) && check.printed.contains("ok       supervisord 4.3.0 answers"),
        "{}",
        check.printed
    );
    let sidecar = Sidecar::start_options(
        &daemon,
        crate::common::SidecarOptions {
            environment: &environment,
            ..Default::default()
        },
    )?;
    let client = Client::new(sidecar.tcp_addr());
    assert_eq!(
        client.call("supervisor.getState", ()).unwrap_err().status(),
        Some(401)
    );
    client
        .with_credentials("user", "secret")
        .call("twiddler.addGroup", ("one", 1))?;
    Ok(())
}

#[test]
fn supervisorctl_that_bypasses_the_proxy_is_noted() -> Result<()> {
    let daemon = Daemon::start("")?;
    let file = daemon.conf().display().to_string();
    let url = format!("unix://{}", daemon.socket().display());
    let proxy_url = format!("unix://{}/t.sock", daemon.dir().display());
    let setup = Setup {
        arguments: &["--listen", "unix://DIR/t.sock"],
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup)?;
    let note = format!(
        "note     {file}: [supervisorctl] serverurl = {url} leads past twiddler: `supervisorctl update` there stops what was added"
    );
    ensure!(
        check.code == Some(0)
            && check.printed.contains(&note)
            && check
                .printed
                .contains(&format!("write serverurl = {proxy_url}")),
        "{}",
        check.printed
    );
    // When the advice is followed, the note disappears, and the proxy still finds the daemon.
    let text = daemon.read("supervisord.conf")?;
    daemon.write(
        "supervisord.conf",
        &text.replace(
            &format!("serverurl = {url}"),
            &format!("serverurl = {proxy_url}"),
        ),
    )?;
    let check = outcome("check", &daemon, &setup)?;
    ensure!(
        check.code == Some(0) && !check.printed.contains("leads past"),
        "{}",
        check.printed
    );
    Ok(())
}

#[test]
fn added_programs_that_are_persisted_or_configured_are_noted() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("dyn", 1))?;
    let options = crate::common::options(&[("command", value("/bin/cat"))]);
    client.call("twiddler.addProcessToGroup", ("dyn", "a", options))?;
    sidecar.stop()?;
    daemon.write(
        "conf.d/user.conf",
        "[program:a]\ncommand = /bin/cat\n[group:dyn]\nprograms = a\n",
    )?;
    let setup = Setup {
        arguments: &FREE,
        ..Setup::default()
    };
    let check = outcome("check", &daemon, &setup)?;
    for note in [
        "note     persist is off, and ",
        "holds a persist file with 1 program, which twiddler serve sets aside",
        "note     the group dyn was added, and ",
        "note     dyn:a was added, and ",
    ] {
        ensure!(check.printed.contains(note), "{note}: {}", check.printed);
    }
    ensure!(check.code == Some(0), "{}", check.printed);
    ensure!(
        daemon
            .include_files()?
            .contains(&"zz-twiddler-persist.conf".to_owned())
    );
    Ok(())
}

#[test]
fn a_pattern_that_allows_nothing_is_warned_about() -> Result<()> {
    let daemon = Daemon::start("")?;
    ensure_both_report(
        &daemon,
        &[
            "--allow",
            "supervisor.getstate, supervisor.get*, twiddler.*",
        ],
        "allow: `supervisor.getstate` names no method that supervisord has; write supervisor.getState",
    )
}

/// A daemon with a port. Password, log and include directory in its file come from environment variables that
/// only the daemon has.
fn daemon_with_variables() -> Result<Daemon> {
    let daemon = Daemon::start_with(DaemonOptions {
        tcp: true,
        credentials: Some(("user", "secret")),
        environment: &[
            ("ONLY_PASSWORD", "secret"),
            ("ONLY_LOG", "supervisord"),
            ("ONLY_DIR", "conf.d"),
        ],
        extra_supervisord: "logfile = %(here)s/%(ENV_ONLY_LOG)s.log\n",
        ..DaemonOptions::default()
    })?;
    let text = daemon.read("supervisord.conf")?;
    let text = text.replace("password = secret", "password = %(ENV_ONLY_PASSWORD)s");
    let (before, include) = text.split_once("[include]").context("no [include]")?;
    let include = include.replacen("conf.d/*.conf", "%(ENV_ONLY_DIR)s/*.conf", 1);
    ensure!(include.contains("ONLY_DIR"), "{text}");
    daemon.write("supervisord.conf", &format!("{before}[include]{include}"))?;
    daemon.kill_and_start_again()?;
    Ok(daemon)
}

#[test]
fn variables_that_only_supervisord_has_are_noted_where_they_are_not_needed() -> Result<()> {
    let daemon = daemon_with_variables()?;
    let file = daemon.conf().display().to_string();
    let check = outcome(
        "check",
        &daemon,
        &Setup {
            arguments: &FREE,
            ..Setup::default()
        },
    )?;
    let expected = format!(
        "{file}: [include] files: the environment variable ONLY_DIR is not set; start twiddler with the value that supervisord has, or name the directory that it includes with --include-dir, or write %% for a percent sign"
    );
    ensure!(
        check.code == Some(2) && check.sentences == [expected],
        "{}",
        check.printed
    );
    // The advice of the error works.
    let dir = daemon.include_dir().to_string_lossy().into_owned();
    let arguments = ["--listen", "127.0.0.1:0", "--include-dir", &dir];
    let check = outcome(
        "check",
        &daemon,
        &Setup {
            arguments: &arguments,
            ..Setup::default()
        },
    )?;
    let notes = [
        "[include] files: the environment variable ONLY_DIR is not set, so twiddler knows nothing",
        "[supervisord] logfile: the environment variable ONLY_LOG is not set, so twiddler.log answers a fault",
        "[unix_http_server] password and [inet_http_server] password: the environment variable ONLY_PASSWORD is not set, so twiddler has nothing to present there: supervisord judges each caller",
    ]
    .map(|note| format!("note     {file}: {note}"));
    for note in &notes {
        ensure!(check.printed.contains(note), "{note}\n{}", check.printed);
    }
    ensure!(
        check.code == Some(0) && !check.printed.contains("secret"),
        "{}",
        check.printed
    );

    let sidecar = Sidecar::start_with(&daemon, &["--include-dir", &dir])?;
    let stranger = Client::new(sidecar.tcp_addr());
    let refused = stranger.call("supervisor.getState", ()).unwrap_err();
    assert_eq!(refused.status(), Some(401));
    let client = Client::new(sidecar.tcp_addr()).with_credentials("user", "secret");
    client.call("twiddler.addGroup", ("one", 1))?;
    let fault = client.expect_fault("twiddler.log", ("hello",))?;
    ensure!(
        fault.text.contains("[supervisord] logfile") && fault.text.contains("ONLY_LOG"),
        "{fault:?}"
    );
    let logged = sidecar.wait_for_stderr("waiting for a caller whom supervisord lets in")?;
    let warned = logged.lines().filter(|line| line.contains(" WARN "));
    let about_password: Vec<&str> = warned.filter(|line| line.contains("password")).collect();
    ensure!(about_password.len() == 1, "{logged}");
    let about_log = logged
        .lines()
        .filter(|line| line.contains("so twiddler.log answers a fault"));
    let about_log: Vec<&str> = about_log.collect();
    ensure!(
        about_log.len() == 1 && about_log[0].contains("WARN") && !logged.contains("secret"),
        "{logged}"
    );
    Ok(())
}

#[test]
fn an_option_gives_the_password_that_only_supervisord_knows() -> Result<()> {
    let daemon = daemon_with_variables()?;
    let dir = daemon.include_dir().to_string_lossy().into_owned();
    let arguments = ["--listen", "127.0.0.1:0", "--include-dir", &dir];
    let with = |password| {
        let environment = [
            ("TWIDDLER_USERNAME", "user"),
            ("TWIDDLER_PASSWORD", password),
        ];
        outcome(
            "check",
            &daemon,
            &Setup {
                arguments: &arguments,
                environment: &environment,
                ..Setup::default()
            },
        )
    };
    let check = with("secret")?;
    ensure!(
        check.code == Some(0)
            && check.printed.contains("ok       supervisord 4.3.0 answers")
            && check
                .printed
                .contains("ok       supervisord reads generated files in"),
        "{}",
        check.printed
    );
    let check = with("another")?;
    ensure!(
        check.code == Some(2) && check.printed.contains("rejects this username and password"),
        "{}",
        check.printed
    );
    let check = with("{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4")?;
    ensure!(
        check.code == Some(2) && check.printed.contains("a digest cannot be presented"),
        "{}",
        check.printed
    );
    Ok(())
}

#[test]
fn an_option_gives_the_address_that_only_supervisord_knows() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("user", "secret")),
        environment: &[("ONLY_PLACE", ".")],
        ..DaemonOptions::default()
    })?;
    let text = daemon.read("supervisord.conf")?;
    let socket = daemon.socket();
    let dir = daemon.dir().to_string_lossy().into_owned();
    let name = socket.file_name().context("no name")?.to_string_lossy();
    let line = text
        .lines()
        .find(|line| line.starts_with("file") && line.ends_with(&*name))
        .context("no file")?;
    let hidden = format!("file = {dir}/%(ENV_ONLY_PLACE)s/{name}");
    daemon.write("supervisord.conf", &text.replacen(line, &hidden, 1))?;
    daemon.kill_and_start_again()?;
    let expected = format!(
        "{}: [unix_http_server] file: the environment variable ONLY_PLACE is not set; start twiddler with the value that supervisord has, or name where it listens with --supervisord, or write %% for a percent sign",
        daemon.conf().display()
    );
    for verb in ["serve", "check"] {
        let setup = Setup {
            arguments: &FREE,
            ..Setup::default()
        };
        let outcome = outcome(verb, &daemon, &setup)?;
        ensure!(
            outcome.code == Some(2) && outcome.sentences == [expected.as_str()],
            "{}",
            outcome.printed
        );
    }
    // The advice of the error works. The proxy presents the credentials in that section.
    let url = format!("unix://{}", socket.display());
    let check = outcome(
        "check",
        &daemon,
        &Setup {
            arguments: &["--listen", "127.0.0.1:0", "--supervisord", &url],
            ..Setup::default()
        },
    )?;
    ensure!(
        check.code == Some(0) && check.printed.contains("ok       supervisord 4.3.0 answers"),
        "{}",
        check.printed
    );
    Ok(())
}

#[test]
fn a_password_that_only_supervisord_knows_opens_no_port() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        tcp: true,
        environment: &[("ONLY_PASSWORD", "secret")],
        ..DaemonOptions::default()
    })?;
    let text = daemon.read("supervisord.conf")?;
    let section = "[inet_http_server]\n";
    let guarded = format!("{section}username = user\npassword = %(ENV_ONLY_PASSWORD)s\n");
    ensure!(text.contains(section), "{text}");
    daemon.write("supervisord.conf", &text.replacen(section, &guarded, 1))?;
    daemon.kill_and_start_again()?;
    let check = |arguments: &[&str]| {
        outcome(
            "check",
            &daemon,
            &Setup {
                arguments,
                environment: &[("TWIDDLER_ALLOW_OPEN", "false")],
                ..Setup::default()
            },
        )
    };
    let beside = check(&[])?;
    ensure!(
        beside.code == Some(0)
            && beside.printed.contains("ok       can listen on unix://")
            && !beside.printed.contains("can listen on http"),
        "{}",
        beside.printed
    );
    let port = check(&FREE)?;
    ensure!(
        port.code == Some(2) && port.printed.contains("that supervisord keeps out"),
        "{}",
        port.printed
    );
    Ok(())
}

/// Only an attempt shows whether supervisord was started with the file that the proxy reads. The advice of the
/// error works without a restart.
#[test]
fn include_dir_works_once_the_file_includes_it() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        include: "",
        ..DaemonOptions::default()
    })?;
    let dir = daemon.include_dir().display().to_string();
    let conf = daemon.conf().display().to_string();
    let arguments = ["--include-dir", dir.as_str()];
    let advice = format!("write files = {dir}/*.conf below [include] in the file that");
    let check = || twiddler(&[&["check", "-c", &conf][..], &arguments].concat());
    let printed = stdout_text(&check()?);
    ensure!(
        printed.contains("problem  ") && printed.contains(&advice),
        "{printed}"
    );
    let sidecar = Sidecar::start_with(&daemon, &arguments)?;
    let client = sidecar.client();
    let fault = client.expect_fault("twiddler.addGroup", ("dyn", 1))?;
    ensure!(
        fault.code == 92 && fault.text.contains(&advice),
        "{fault:?}"
    );
    let text = daemon.read("supervisord.conf")? + &format!("\n[include]\nfiles = {dir}/*.conf\n");
    daemon.write("supervisord.conf", &text)?;
    client.call("twiddler.addGroup", ("dyn", 1))?;
    sidecar.stop()?;
    let printed = stdout_text(&check()?);
    ensure!(!printed.contains("problem  "), "{printed}");
    Ok(())
}
