//! Real clients have the same output and the same exit codes with the proxy as with the daemon: one run uses a
//! daemon directly, and another one an equal daemon through the proxy.

use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use crate::common::ctl::{supervisorctl_as, supervisorctl_command, supervisorctl_shell};
use crate::common::http::shown;
use crate::common::provision::scrub;
use crate::common::tools::{self, CURL, RUBY};
use crate::common::{
    Addr, Daemon, DaemonOptions, LIMIT, Process, Sidecar, Until, eventually, exchange, run,
    run_python, stderr_text, stdout_text,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, read, write};

const PROGRAMS: &str = "\
[program:web]
command=/bin/cat
startsecs=0
stdout_logfile=%(here)s/web.log

[program:pair]
command=/bin/cat
process_name=%(program_name)s_%(process_num)d
numprocs=2
startsecs=0

[program:idle]
command=/bin/cat
autostart=false
startsecs=0

[program:failing]
command=/bin/false
autostart=false
startretries=0

[program:missing]
command=/nowhere/nothing
autostart=false

[program:silent]
command=/bin/cat
autostart=false
stdout_logfile=NONE
";
const EXTRA: &str = "[program:extra]\ncommand=/bin/cat\nstartsecs=0\n";
const PROMPT: &str = "supervisor> ";
const CREDENTIALS: (&str, &str) = ("user", "secret");

/// A daemon for direct calls, and an equal one behind a proxy.
struct Twins {
    direct: Daemon,
    behind: Daemon,
    sidecar: Sidecar,
}

impl Twins {
    fn start() -> Result<Twins> {
        Twins::start_with(None)
    }

    fn start_with(credentials: Option<(&str, &str)>) -> Result<Twins> {
        let options = DaemonOptions {
            tcp: true,
            body: PROGRAMS,
            credentials,
            ..DaemonOptions::default()
        };
        let (direct, behind) = (Daemon::start_with(options)?, Daemon::start_with(options)?);
        let sidecar = Sidecar::start(&behind)?;
        for daemon in [&direct, &behind] {
            for process in ["web", "pair:pair_0", "pair:pair_1"] {
                daemon.wait_for_state(process, "RUNNING")?;
            }
            std::fs::write(daemon.dir().join("web.log"), "one\ntwo\nthree\n")?;
        }
        Ok(Twins {
            direct,
            behind,
            sidecar,
        })
    }

    /// The TCP addresses of the first daemon and of the proxy.
    fn over_tcp(&self) -> [Addr; 2] {
        [
            self.direct.tcp_addr().into(),
            self.sidecar.tcp_addr().into(),
        ]
    }

    fn over_socket(&self) -> [Addr; 2] {
        [self.direct.socket().into(), self.sidecar.socket().into()]
    }

    fn each(&self, change: impl Fn(&Daemon) -> Result<()>) -> Result<()> {
        change(&self.direct)?;
        change(&self.behind)
    }

    /// Runs the same command against both concurrently. Fails unless output and exit status are the same.
    fn ensure_same(
        &self,
        addrs: [Addr; 2],
        ask: impl Fn(&Addr) -> Result<Output> + Sync,
    ) -> Result<Output> {
        let [direct, proxied] = addrs;
        let (one, other) = thread::scope(|scope| {
            let one = scope.spawn(|| ask(&direct));
            let other = ask(&proxied);
            (one.join(), other)
        });
        let one = one.map_err(|_| anyhow::anyhow!("the direct client panicked"))??;
        let other = other?;
        let (expected, seen) = (self.plain(&one), self.plain(&other));
        ensure!(
            expected == seen,
            "--- directly:\n{expected}\n--- through the proxy:\n{seen}"
        );
        Ok(other)
    }

    /// Both outputs of a command, without paths, pids and times.
    fn plain(&self, output: &Output) -> String {
        let text = format!(
            "{}\n{}\n{}",
            output.status,
            stdout_text(output),
            stderr_text(output)
        );
        let mut text = text
            .replace(&*self.direct.dir().to_string_lossy(), "DIR")
            .replace(&*self.behind.dir().to_string_lossy(), "DIR")
            .replace(&self.sidecar.socket().display().to_string(), "DIR/s.sock");
        if let Some(status) = text.find('\n') {
            text = text[..status].to_owned() + &in_order(&without_numbers(&text[status..]));
        }
        text
    }
}

/// The text with the lines about processes sorted. supervisord reports them in the order of their stops and
/// starts.
fn in_order(text: &str) -> String {
    let sorted = |text: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        if text.contains(": stopped") || text.contains(": started") {
            lines.sort_unstable();
        }
        lines.join("\n")
    };
    let answers: Vec<String> = text.split(PROMPT).map(sorted).collect();
    answers.join(PROMPT)
}

/// The text without pids, uptimes and dates: all numbers of two and more digits.
fn without_numbers(text: &str) -> String {
    let mut plain = String::new();
    let mut digits = String::new();
    for letter in text.chars().chain(['\0']) {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        plain += if digits.len() > 1 { "N" } else { &digits };
        digits.clear();
        plain.push(letter);
    }
    plain
}

// --- supervisorctl ---

/// Each verb is a command of its own, so that the exit codes are compared.
#[test]
fn supervisorctl_with_its_verbs_and_exit_codes() -> Result<()> {
    let twins = Twins::start()?;
    let commands = [
        ("status", 3),
        ("status web", 0),
        ("status idle", 3),
        ("status nobody", 4),
        ("start failing", 7),
        ("start idle", 0),
        ("stop nobody", 1),
        ("signal HUP nobody", 1),
        ("pid", 0),
        ("pid idle", 0),
        ("tail nobody", 1),
        ("version", 0),
        ("update nobody", 1),
        ("bogus", 1),
    ];
    for (command, code) in commands {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = twins
            .ensure_same(twins.over_tcp(), |addr| {
                supervisorctl_as(None, &arguments, addr)
            })
            .context(command)?;
        let text = || {
            format!(
                "{command}: {}{}",
                stdout_text(&output),
                stderr_text(&output)
            )
        };
        ensure!(
            output.status.code() == Some(code),
            "{} {}",
            text(),
            output.status
        );
    }
    Ok(())
}

/// All verbs in supervisorctl's shell, whose session continues after errors.
#[test]
fn supervisorctl_as_a_shell() -> Result<()> {
    let twins = Twins::start()?;
    let before = "\
        status\nstatus web pair:*\nstatus pair:\nstatus pair:nobody\nstart idle\nstart idle web\n\
        start nobody\nstart failing\nstart missing\nstart pair:*\nstop pair:*\nstop pair:*\nstart pair:\n\
        stop idle\nstop idle\nrestart web\nrestart pair:*\nrestart nobody\nsignal CONT web\n\
        signal CONT idle\nsignal BOGUS web\nsignal CONT all\nsignal\nclear nobody\n\
        tail web\ntail -4 web stdout\ntail web stderr\ntail nobody\ntail silent\ntail web bogus\n\
        clear web\ntail web\nclear all\npid\npid web\npid all\npid nobody\nversion\navail\n\
        add nobody\nadd web\nremove web\nremove nobody\nfg nobody\nfg idle\nmaintail bogus\n\
        start\nstop\nrestart\nhelp fg\n?\nstart all\n";
    let after = "stop all\nreread\navail\nadd extra\nstatus\nadd extra\nremove extra\nstop extra\nremove extra\n\
        update\nstatus\nreread\n";
    let last = "reread\nupdate\nstatus\nupdate all\nupdate web\nupdate nobody\n";
    let shell = |lines: &str| {
        let output =
            twins.ensure_same(twins.over_socket(), |addr| supervisorctl_shell(lines, addr))?;
        ensure!(output.status.success(), "{}", stderr_text(&output));
        Ok(stdout_text(&output))
    };
    let text = shell(before)?;
    for expected in [
        "web: ERROR (already started)",
        "failing: ERROR (spawn error)",
        "one\ntwo\nthree\n",
    ] {
        ensure!(text.contains(expected), "no {expected:?} in {text}");
    }
    // Before that, `stop all` would stop it, too.
    twins.each(|daemon| daemon.wait_for_state("failing", "FATAL"))?;
    twins.each(|daemon| daemon.write("conf.d/extra.conf", EXTRA))?;
    let text = shell(after)?;
    for expected in [
        "extra: available",
        "extra: added process group",
        "extra: removed process group",
    ] {
        ensure!(text.contains(expected), "no {expected:?} in {text}");
    }
    twins.each(|daemon| daemon.write("conf.d/extra.conf", &format!("{EXTRA}priority=5\n")))?;
    let text = shell(last)?;
    ensure!(text.contains("extra: updated process group"), "{text}");
    twins.each(|daemon| daemon.write("conf.d/extra.conf", "[program:extra]\n"))?;
    let text = shell("reread\nupdate\nstatus\n")?;
    ensure!(text.contains("ERROR: CANT_REREAD:"), "{text}");
    Ok(())
}

#[test]
fn supervisorctl_with_credentials() -> Result<()> {
    let twins = Twins::start_with(Some(CREDENTIALS))?;
    for addrs in [twins.over_tcp(), twins.over_socket()] {
        for credentials in [None, Some(CREDENTIALS), Some(("user", "wrong"))] {
            twins.ensure_same(addrs.clone(), |addr| {
                supervisorctl_as(credentials, &["status", "web"], addr)
            })?;
        }
    }
    Ok(())
}

/// Verbs that run until they are interrupted.
#[test]
fn supervisorctl_follows_logs() -> Result<()> {
    let twins = Twins::start()?;
    let conf = twins.behind.dir().join("empty.conf");
    std::fs::write(&conf, "[supervisorctl]\n")?;
    for addr in [
        twins.sidecar.tcp_addr().into(),
        twins.sidecar.socket().into(),
    ] {
        follow(&twins.behind, &conf, &addr).with_context(|| format!("{addr}"))?;
    }
    Ok(())
}

fn follow(daemon: &Daemon, conf: &Path, addr: &Addr) -> Result<()> {
    let spawn =
        |arguments: &[&str]| Process::spawn(supervisorctl_command(conf, addr).args(arguments));
    let tail = spawn(&["tail", "-f", "web"])?;
    let main = spawn(&["maintail", "-f"])?;
    let foreground = spawn(&["fg", "web"])?;
    // The old output appears first, and shows that the follower is connected.
    tail.wait_for_stdout("==> Press Ctrl-C to exit <==")?;
    main.wait_for_stdout("==> Press Ctrl-C to exit <==")?;
    foreground.wait_for_stdout("==> Press Ctrl-C to exit <==")?;
    main.wait_for_stdout("success: web entered RUNNING state")?;
    for line in ["first", "second"] {
        foreground.write(format!("{line} {addr}\n").as_bytes())?;
        let expected = format!("{line} {addr}\n");
        foreground.wait_for_stdout(&expected)?;
        tail.wait_for_stdout(&expected)?;
    }
    daemon.call("supervisor.signalProcess", ("pair:pair_0", "KILL"))?;
    main.wait_for_stdout("exited: pair_0 (terminated by SIGKILL; not expected)")?;
    daemon.wait_for_state("pair:pair_0", "RUNNING")?;
    for process in [&tail, &main, &foreground] {
        process.signal("INT")?;
    }
    tail.wait()?;
    main.wait()?;
    // `fg` notices the end only at the next output.
    eventually(LIMIT, || {
        daemon.call("supervisor.sendProcessStdin", ("web", "more\n"))?;
        ensure!(!foreground.is_alive(), "fg goes on");
        Ok(())
    })?;
    ensure!(foreground.stdout_text().contains("Exiting foreground"));
    Ok(())
}

#[test]
fn supervisorctl_reloads_and_shuts_down() -> Result<()> {
    let twins = Twins::start()?;
    let ctl = |arguments: &[&str]| {
        twins.ensure_same(twins.over_tcp(), |addr| {
            supervisorctl_as(None, arguments, addr)
        })
    };
    let restarts = |daemon: &Daemon| daemon.log().matches("supervisord started with pid").count();
    ctl(&["reload"])?;
    twins.each(|daemon| {
        eventually(LIMIT, || {
            ensure!(restarts(daemon) == 2, "{}", restarts(daemon));
            daemon.call("supervisor.getState", ())?;
            Ok(())
        })?;
        daemon.wait_for_state("web", "RUNNING")
    })?;
    ctl(&["status", "web"])?;
    ctl(&["shutdown"])?;
    twins.each(|daemon| {
        eventually(LIMIT, || {
            ensure!(!daemon.is_alive(), "it still runs");
            Ok(())
        })
    })?;
    // The daemon has ended. The direct connection fails, and the proxy answers 502 with the reason.
    let output = supervisorctl_as(None, &["status"], twins.over_tcp()[1].clone())?;
    let text = stdout_text(&output) + &stderr_text(&output);
    ensure!(
        text.contains("502 supervisord at unix://") && !output.status.success(),
        "{text}"
    );
    Ok(())
}

// --- Python ---

const PYTHON: &str = r#"
import sys, time, xmlrpc.client
url = sys.argv[1]
s = xmlrpc.client.ServerProxy(url)
def show(what, call):
    try:
        print(what, repr(call()))
    except Exception as error:
        print(what, type(error).__name__, error)
show('version', s.supervisor.getAPIVersion)
show('state', s.supervisor.getState)
show('all', lambda: [(i['group'], i['name'], i['statename']) for i in s.supervisor.getAllProcessInfo()])
show('stop', lambda: s.supervisor.stopProcess('web'))
show('start', lambda: s.supervisor.startProcess('web', True))
show('start again', lambda: s.supervisor.startProcess('web'))
# They stop and start in any order.
by_name = lambda infos: sorted(infos, key=lambda info: info['name'])
show('group', lambda: by_name(s.supervisor.stopProcessGroup('pair')))
show('group', lambda: by_name(s.supervisor.startProcess('pair:*')))
show('stdin', lambda: s.supervisor.sendProcessStdin('web', 'h\u00e9llo \U0001f600 <&>]]>\n'))
show('log', lambda: s.supervisor.readProcessStdoutLog('web', 0, 10))
# It comes back when the process has read it.
deadline = time.monotonic() + 20
while ']]>' not in s.supervisor.tailProcessStdoutLog('web', 0, 99)[0] and time.monotonic() < deadline:
    pass
show('tail', lambda: s.supervisor.tailProcessStdoutLog('web', 0, 5))
show('nobody', lambda: s.supervisor.getProcessInfo('nobody'))
show('failing', lambda: s.supervisor.startProcess('failing'))
show('wrong type', lambda: s.supervisor.readLog([], {}))
show('wrong count', lambda: s.supervisor.readLog(1, 2, 3))
show('none', lambda: s.supervisor.getProcessInfo(None))
show('no method', lambda: s.supervisor.nothing())
show('no namespace', lambda: s.nothing.at.all())
show('escape', lambda: s.supervisor.sendProcessStdin('web', '\x01'))
show('help', lambda: s.system.methodHelp('supervisor.startProcess'))
show('signature', lambda: s.system.methodSignature('supervisor.startProcess'))
m = xmlrpc.client.MultiCall(s)
m.supervisor.getAPIVersion()
m.supervisor.getAllProcessInfo()
show('multicall', lambda: len(list(m())))
show('raw multicall', lambda: s.system.multicall([
    {'methodName': 'supervisor.getAPIVersion', 'params': []},
    {'methodName': 'supervisor.nothing', 'params': []},
    {'methodName': 'supervisor.stopProcess', 'params': ['web']},
    {'methodName': 'supervisor.startProcess', 'params': ['web']}]))
with xmlrpc.client.ServerProxy(url + '/RPC2', use_builtin_types=True, allow_none=True) as t:
    for _ in range(3):
        show('kept', t.supervisor.getIdentification)
show('wrong path', xmlrpc.client.ServerProxy(url + '/elsewhere').supervisor.getState)
"#;

#[test]
fn pythons_own_client() -> Result<()> {
    let twins = Twins::start()?;
    let output = twins.ensure_same(twins.over_tcp(), |addr| {
        run_python(PYTHON, &[&addr.to_string()])
    })?;
    let text = stdout_text(&output);
    ensure!(
        output.status.success() && text.contains("nobody Fault <Fault 10"),
        "{text}"
    );
    Ok(())
}

/// The URL contains the credentials.
#[test]
fn pythons_own_client_with_credentials() -> Result<()> {
    let twins = Twins::start_with(Some(CREDENTIALS))?;
    for login in ["", "user:secret@", "user:wrong@"] {
        twins.ensure_same(twins.over_tcp(), |addr| {
            let script = "import sys, xmlrpc.client\n\
                try: print(xmlrpc.client.ServerProxy(sys.argv[1]).supervisor.getState())\n\
                except xmlrpc.client.ProtocolError as e: print(e.errcode, e.errmsg, e.headers['WWW-Authenticate'])";
            run_python(script, &[&addr.to_string().replace("http://", &format!("http://{login}"))])
        })?;
    }
    Ok(())
}

// --- Ruby ---

const SESSION: &str = r##"
require 'xmlrpc/client'
url = ARGV[0]
s = XMLRPC::Client.new2(url)
def show(what)
  puts "#{what} #{yield.inspect}"
rescue XMLRPC::FaultException => e
  puts "#{what} fault #{e.faultCode} #{e.faultString}"
rescue => e
  puts "#{what} #{e.class} #{e.message}"
end
show('version') { s.call('supervisor.getAPIVersion') }
show('state') { s.call('supervisor.getState') }
show('all') { s.call('supervisor.getAllProcessInfo').map { |i| [i['group'], i['name'], i['statename']] } }
show('stop') { s.call('supervisor.stopProcess', 'web') }
show('start') { s.call('supervisor.startProcess', 'web', true) }
show('stdin') { s.call('supervisor.sendProcessStdin', 'web', "h\u00e9llo <&>\n") }
show('log') { s.call('supervisor.readProcessStdoutLog', 'web', 0, 10) }
show('nobody') { s.call('supervisor.getProcessInfo', 'nobody') }
show('wrong type') { s.call('supervisor.readLog', [], {}) }
show('no method') { s.call('supervisor.nothing') }
show('call2') { s.call2('supervisor.getProcessInfo', 'nobody')[0] }
show('proxy') { s.proxy('supervisor').getIdentification }
show('async') { s.call_async('supervisor.getState') }
show('multicall') { s.multicall(['supervisor.getState'], ['supervisor.nothing']) }
show('multicall2') { s.multicall2(['supervisor.getState'], ['supervisor.nothing']) }
ARGV.drop(1).each do |user|
  t = XMLRPC::Client.new2(url)
  t.user, t.password = user, 'secret'
  show("as #{user}") { t.call('supervisor.getState') }
end
"##;

#[test]
fn rubys_xmlrpc() -> Result<()> {
    if !tools::have(&[RUBY])? {
        return Ok(());
    }
    for credentials in [None, Some(CREDENTIALS)] {
        let twins = Twins::start_with(credentials)?;
        let output = twins.ensure_same(twins.over_tcp(), |addr| {
            let addr = addr.to_string();
            run_tool("ruby", &["-W0", "-e", SESSION, &addr, "user", "wrong"])
        })?;
        let (text, errors) = (stdout_text(&output), stderr_text(&output));
        ensure!(output.status.success(), "{text}{errors}");
        let expected = match credentials {
            None => "nobody fault 10 BAD_NAME: nobody",
            Some(_) => "as user {\"statecode\"=>1, \"statename\"=>\"RUNNING\"}",
        };
        ensure!(text.contains(expected), "no {expected:?} in {text}");
    }
    Ok(())
}

fn run_tool(program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    scrub(&mut command);
    run(command.args(arguments))
}

// --- curl ---

#[test]
fn curl_prints_the_same() -> Result<()> {
    if !tools::have(&[CURL])? {
        return Ok(());
    }
    let twins = Twins::start_with(Some(CREDENTIALS))?;
    let large = twins.direct.dir().join("large.xml");
    let name = Value::from("n".repeat(2 << 20));
    std::fs::write(&large, write::call("supervisor.getProcessInfo", &[name]))?;
    let large = format!("@{}", large.display());
    let call = "<methodCall><methodName>supervisor.getState</methodName></methodCall>";
    let commands: [(&str, &[&str]); 14] = [
        ("/", &["-u", "user:secret"]),
        ("/", &[]),
        ("/", &["-u", "user:wrong"]),
        ("/", &["-u", "user:secret", "--digest"]),
        ("/?action=refresh", &["-u", "user:secret"]),
        ("/images/icon.png", &["-u", "user:secret", "-I"]),
        (
            "/images/icon.png",
            &["-u", "user:secret", "-z", "1 Jan 2038"],
        ),
        ("/RPC2", &["-u", "user:secret", "-d", call]),
        ("/RPC2", &["-u", "user:secret", "-d", call, "--http1.0"]),
        ("/RPC2", &["-u", "user:secret", "-d", call, "--anyauth"]),
        (
            "/RPC2",
            &[
                "-u",
                "user:secret",
                "-H",
                "Transfer-Encoding: chunked",
                "-d",
                call,
            ],
        ),
        // Above 1 MB, curl waits for 100 Continue.
        ("/RPC2", &["-u", "user:secret", "--data-binary", &large]),
        ("/nothing", &["-u", "user:secret", "-X", "DELETE"]),
        (
            "/images/../images/./icon.png",
            &["-u", "user:secret", "--path-as-is"],
        ),
    ];
    for (path, arguments) in commands {
        for (addrs, host) in [
            (twins.over_tcp(), None),
            (twins.over_socket(), Some("http://localhost")),
        ] {
            twins
                .ensure_same(addrs, |addr| curl(addr, host, path, arguments))
                .with_context(|| format!("curl {arguments:?} {path}"))?;
        }
    }
    Ok(())
}

/// The headers that the proxy adds to pages.
const OF_PAGES: [&str; 3] = [
    "Referrer-Policy: ",
    "X-Frame-Options: ",
    "Content-Security-Policy: ",
];

/// The output of curl: head and body, without the date, without 100 Continue, and without the headers that the
/// proxy adds or changes.
fn curl(addr: &Addr, host: Option<&str>, path: &str, arguments: &[&str]) -> Result<Output> {
    let url = format!("{}{path}", host.map_or(addr.to_string(), str::to_owned));
    let socket = match addr {
        Addr::Unix(path) => path.display().to_string(),
        Addr::Tcp(_) => String::new(),
    };
    let mut all = vec!["-s", "-S", "-i", "--max-time", "30", "-H", "Host: h"];
    if !socket.is_empty() {
        all.extend(["--unix-socket", &socket]);
    }
    all.extend(arguments);
    all.push(&url);
    let mut output = run_tool("curl", &all)?;
    let text = String::from_utf8_lossy(&output.stdout)
        .replace("HTTP/1.1 100 Continue\r\n\r\n", "")
        .replace("Location: http://h/", "Location: ./");
    // A 304 of the proxy has no header for chunks, because it has no body.
    let is_chunked_304 =
        |line: &str| text.starts_with("HTTP/1.1 304") && line == "Transfer-Encoding: chunked";
    let lines: Vec<&str> = text
        .split("\r\n")
        .filter(|line| !line.starts_with("Date: ") && !is_chunked_304(line))
        .filter(|line| !OF_PAGES.iter().any(|name| line.starts_with(name)))
        .collect();
    output.stdout = lines.join("\r\n").into_bytes();
    Ok(output)
}

// --- A client over a bare socket ---

/// A client as some PHP libraries are: HTTP/1.0, no `Host`, and a case-sensitive search for `Content-Length`.
#[test]
fn a_client_that_looks_for_a_content_length() -> Result<()> {
    let twins = Twins::start()?;
    let body = write::call("supervisor.getAllProcessInfo", &[]);
    let length = body.len();
    let head = format!(
        "POST /RPC2 HTTP/1.0\r\nUser-Agent: client\r\nContent-Type: text/xml\r\nContent-Length: {length}\r\n\r\n"
    );
    let request = [head.as_bytes(), &body].concat();
    for addr in twins.over_tcp().into_iter().chain(twins.over_socket()) {
        let received = exchange(addr, &request, Until::Close)?;
        let text = String::from_utf8(received)?;
        let (head, content) = text.split_once("\r\n\r\n").context("no empty line")?;
        ensure!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
        let (_, length) = head
            .split_once("Content-Length: ")
            .with_context(|| head.to_owned())?;
        let length: usize = length.lines().next().unwrap_or_default().parse()?;
        ensure!(length == content.len(), "{}", shown(content.as_bytes()));
        ensure!(
            head.lines().skip(1).all(|line| line.contains(": ")),
            "{head}"
        );
        let infos = read::response(content.as_bytes())??;
        ensure!(crate::common::items(&infos)?.len() == 7, "{infos:?}");
    }
    Ok(())
}
