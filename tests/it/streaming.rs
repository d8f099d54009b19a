//! Replies that never end or take long: followed logs, waiting calls, and a daemon that stops and starts.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::http::shown;
use crate::common::{
    Addr, Client, Connection, Daemon, DaemonOptions, LIMIT, Reply, Sidecar, Until, eventually,
    member, text,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

const PROGRAMS: &str = "\
[program:web]
command=/bin/cat
startsecs=0
stdout_logfile=%(here)s/web.log

[program:slow]
command=/bin/cat
autostart=false
startsecs=5

[program:stubborn]
command=/bin/sh -c 'trap \"\" TERM; echo ready; while :; do sleep 0.1; done'
autostart=false
startsecs=0
stopwaitsecs=3
stopasgroup=true
killasgroup=true
stdout_logfile=%(here)s/stubborn.log
";
/// How soon a line must arrive. The daemon looks at its logs once a second, when it has nothing
/// else to do.
const SOON: Duration = Duration::from_secs(2);

struct Tested {
    daemon: Daemon,
    sidecar: Sidecar,
}

impl Tested {
    fn over_socket() -> Result<Tested> {
        Tested::start(DaemonOptions::default())
    }

    fn over_port() -> Result<Tested> {
        Tested::start(DaemonOptions {
            socket: false,
            tcp: true,
            ..DaemonOptions::default()
        })
    }

    fn start(options: DaemonOptions<'_>) -> Result<Tested> {
        let daemon = Daemon::start_with(DaemonOptions {
            body: PROGRAMS,
            ..options
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        Ok(Tested { daemon, sidecar })
    }

    fn web_log(&self) -> PathBuf {
        self.daemon.dir().join("web.log")
    }

    fn write_log(&self, bytes: &[u8]) -> Result<()> {
        let mut log = OpenOptions::new().append(true).open(self.web_log())?;
        Ok(log.write_all(bytes)?)
    }

    /// The number of the daemon's sockets: accepted connections and listeners. (Open log files are no measure,
    /// because the daemon closes them only when Python collects its garbage.)
    fn sockets(&self) -> Result<usize> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.daemon.pid()))?;
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        Ok(targets
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count())
    }

    /// The number of sockets without a request in progress, once the proxy has opened all connections that
    /// it keeps: the one by which it notices a restart of the daemon, which it opens in the background at
    /// its start, and one for each share.
    fn sockets_at_rest(&self) -> Result<usize> {
        let client = self.sidecar.client();
        // This is answered once the proxy knows the daemon's epoch.
        client.call("twiddler.getGroupNames", ())?;
        client.call("supervisor.getAllProcessInfo", ())?;
        let tail = Tail::open(self.sidecar.tcp_addr(), "/logtail/web", "1.1")?;
        let at_rest = self.sockets()? - 1;
        drop(tail);
        self.wait_for_sockets(at_rest)?;
        Ok(at_rest)
    }

    fn wait_for_sockets(&self, wanted: usize) -> Result<()> {
        eventually(LIMIT, || {
            let count = self.sockets()?;
            ensure!(count == wanted, "{count} sockets, not {wanted}");
            Ok(())
        })
    }
}

/// A followed log.
struct Tail {
    connection: Connection,
    head: Reply,
}

impl Tail {
    fn open(addr: impl Into<Addr>, path: &str, version: &str) -> Result<Tail> {
        let mut connection = Connection::open(addr)?;
        connection.send(format!("GET {path} HTTP/{version}\r\nHost: h\r\n\r\n").as_bytes())?;
        let head = Reply::parse(&connection.read(Until::Head)?)?;
        ensure!(head.status == 200, "{head:?}");
        Ok(Tail { connection, head })
    }

    /// The bytes up to and including this text, with chunk sizes.
    fn read(&mut self, wanted: &str) -> Result<Vec<u8>> {
        self.connection.read_within(SOON, Until::Text(wanted))
    }

    /// All bytes until the other side closes.
    fn read_to_end(&mut self) -> Result<Vec<u8>> {
        self.connection.read(Until::Close)
    }
}

fn lines_arrive_one_by_one(tested: &Tested, addr: Addr, version: &str) -> Result<()> {
    let mut tail = Tail::open(addr, "/logtail/web", version)?;
    ensure!(
        tail.head.is_chunked() == (version == "1.1"),
        "{:?}",
        tail.head
    );
    for number in 0..5 {
        let line = format!("line {version} {number}");
        tested.write_log(format!("{line}\n").as_bytes())?;
        let received = tail.read(&line)?;
        let later = format!("line {version} {}", number + 1);
        ensure!(!String::from_utf8_lossy(&received).contains(&later));
    }
    Ok(())
}

#[test]
fn each_line_of_a_log_arrives_as_it_is_written() -> Result<()> {
    let tested = Tested::over_socket()?;
    for version in ["1.1", "1.0"] {
        lines_arrive_one_by_one(&tested, tested.sidecar.tcp_addr().into(), version)?;
        lines_arrive_one_by_one(&tested, tested.sidecar.socket().into(), version)?;
    }
    Ok(())
}

#[test]
fn each_line_of_a_log_arrives_from_a_daemon_on_a_port() -> Result<()> {
    let tested = Tested::over_port()?;
    for version in ["1.1", "1.0"] {
        lines_arrive_one_by_one(&tested, tested.sidecar.tcp_addr().into(), version)?;
    }
    Ok(())
}

/// The heads are the daemon's own. The head for an empty log is sent at once.
#[test]
fn followed_logs_have_the_daemons_heads() -> Result<()> {
    let tested = Tested::over_socket()?;
    for path in [
        "/logtail/web",
        "/logtail/web:web",
        "/logtail/web%3Aweb/stdout",
        "/logtail/web/stderr",
    ] {
        let direct = Tail::open(tested.daemon.addr(), path, "1.1")?.head;
        let proxied = Tail::open(tested.sidecar.tcp_addr(), path, "1.1")?.head;
        ensure!(direct.header("x-accel-buffering") == Some("no"));
        proxied
            .ensure_same_as(&direct.with_proxy_headers(path))
            .context(path)?;
    }
    for path in ["/mainlogtail", "/mainlogtail/anything"] {
        let direct = Tail::open(tested.daemon.addr(), path, "1.1")?.head;
        let direct = direct.with_proxy_headers(path);
        let proxied = Tail::open(tested.sidecar.tcp_addr(), path, "1.1")?.head;
        // A header has the time of the last write to the log.
        ensure!(
            direct.header_names() == proxied.header_names(),
            "{direct:?}\n{proxied:?}"
        );
    }
    Ok(())
}

/// A client that asks to close the connection afterwards gets each line at once too. From the daemon
/// itself, and with HTTP/1.0, it would get them only after 64 KB.
#[test]
fn logs_stream_to_clients_that_ask_to_close_the_connection() -> Result<()> {
    let tested = Tested::over_socket()?;
    let mut connection = Connection::open(tested.sidecar.tcp_addr())?;
    connection.send(b"GET /logtail/web HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
    connection.read(Until::Head)?;
    tested.write_log(b"hello\n")?;
    connection.read_within(SOON, Until::Text("hello"))?;
    Ok(())
}

#[test]
fn the_main_log_is_followed() -> Result<()> {
    let tested = Tested::over_socket()?;
    for version in ["1.1", "1.0"] {
        let mut tail = Tail::open(tested.sidecar.tcp_addr(), "/mainlogtail", version)?;
        tested.daemon.call("supervisor.stopProcess", ("web",))?;
        tail.read("stopped: web")?;
        tested.daemon.call("supervisor.startProcess", ("web",))?;
        tail.read("spawned: 'web'")?;
    }
    Ok(())
}

#[test]
fn bytes_of_logs_are_forwarded_unchanged() -> Result<()> {
    let tested = Tested::over_socket()?;
    let odd: Vec<u8> = [
        b"\xff\xfe\x00\x1b[31m\xc3(\r\n\r\n0\r\n\r\n".as_slice(),
        &(0..=255).collect::<Vec<u8>>(),
    ]
    .concat();
    for path in ["/logtail/web", "/logtail/web/stdout"] {
        fs::write(tested.web_log(), b"")?;
        let mut direct = Tail::open(tested.daemon.addr(), path, "1.1")?;
        let mut proxied = Tail::open(tested.sidecar.tcp_addr(), path, "1.1")?;
        let mut plain = Tail::open(tested.sidecar.tcp_addr(), path, "1.0")?;
        tested.write_log(&[&odd, b"END".as_slice()].concat())?;
        let content = |tail: &mut Tail| -> Result<Vec<u8>> {
            let mut reply = tail.head.clone();
            reply.body = tail.read("END\r\n")?;
            Ok(reply.content())
        };
        let wanted = [&odd, b"END".as_slice()].concat();
        ensure!(content(&mut direct)? == wanted && content(&mut proxied)? == wanted);
        let raw = plain.read("END")?;
        ensure!(raw == wanted, "{}", shown(&raw));
    }
    Ok(())
}

/// A follower gets only the end of a long log. Text that is written at once arrives whole.
#[test]
fn a_large_log_arrives_whole() -> Result<()> {
    let tested = Tested::over_socket()?;
    let mut tail = Tail::open(tested.sidecar.tcp_addr(), "/logtail/web", "1.0")?;
    let text: String = (0..200_000)
        .map(|number| format!("{number:09}\n"))
        .collect();
    tested.write_log(text.as_bytes())?;
    let received = tail.connection.read(Until::Text("000199999\n"))?;
    ensure!(received == text.as_bytes(), "{}", shown(&received));
    let mut late = Tail::open(tested.sidecar.tcp_addr(), "/logtail/web", "1.0")?;
    ensure!(late.read("000199999\n")? == text.as_bytes()[text.len() - 1024..]);
    Ok(())
}

#[test]
fn connections_of_disconnected_followers_are_closed() -> Result<()> {
    let tested = Tested::over_socket()?;
    let before = tested.sockets_at_rest()?;
    let open = |version| Tail::open(tested.sidecar.tcp_addr(), "/logtail/web", version);
    let tails = (0..10)
        .map(|_| open("1.1"))
        .collect::<Result<Vec<Tail>>>()?;
    let others = (0..5).map(|_| open("1.0")).collect::<Result<Vec<Tail>>>()?;
    tested.wait_for_sockets(before + 15)?;
    drop(tails);
    tested.wait_for_sockets(before + 5)?;
    drop(others);
    tested.wait_for_sockets(before)
}

#[test]
fn followed_logs_end_with_the_daemon() -> Result<()> {
    let tested = Tested::over_socket()?;
    let mut chunked = Tail::open(tested.sidecar.tcp_addr(), "/logtail/web", "1.1")?;
    let mut plain = Tail::open(tested.sidecar.tcp_addr(), "/mainlogtail", "1.0")?;
    let mut direct = Tail::open(tested.daemon.addr(), "/logtail/web", "1.1")?;
    tested.daemon.restart_rpc()?;
    // The stream is cut without its last chunk, so that a client can notice it.
    ensure!(!chunked.read_to_end()?.ends_with(b"0\r\n\r\n"));
    direct.read_to_end()?;
    plain.read_to_end()?;
    Ok(())
}

// --- Connections ---

/// Calls of many clients share few connections. Each other request uses a connection of its own, which is
/// closed.
#[test]
fn calls_share_connections_and_pages_close_theirs() -> Result<()> {
    let tested = Tested::over_socket()?;
    let before = tested.sockets_at_rest()?;
    for _ in 0..30 {
        tested.sidecar.client().call("supervisor.getState", ())?;
        tested
            .sidecar
            .client()
            .call("supervisor.getAllProcessInfo", ())?;
        ensure!(tested.sockets()? == before);
    }
    for path in ["/", "/images/icon.png", "/nothing", "/RPC2"] {
        tested.sidecar.client().get(path)?;
    }
    tested.wait_for_sockets(before)
}

// --- Waiting calls ---

#[test]
fn reads_during_a_waiting_call_are_answered_at_once() -> Result<()> {
    let tested = Tested::over_socket()?;
    let persistent = tested.sidecar.client().kept_alive();
    persistent.call("supervisor.getState", ())?;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            tested
                .sidecar
                .client()
                .call("supervisor.startProcess", ("slow",))
        });
        tested.daemon.wait_for_state("slow", "STARTING")?;
        let start = Instant::now();
        let readers: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    for _ in 0..3 {
                        let info = tested
                            .sidecar
                            .client()
                            .call("supervisor.getProcessInfo", ("slow",))?;
                        ensure!(text(member(&info, "statename")?)? == "STARTING");
                    }
                    Ok(())
                })
            })
            .collect();
        for reader in readers {
            reader
                .join()
                .map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        }
        persistent.call("supervisor.getState", ())?;
        ensure!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        ensure!(!waiting.is_finished());
        let started = waiting
            .join()
            .map_err(|_| anyhow::anyhow!("the starter panicked"))??;
        ensure!(started == Value::Bool(true));
        Ok(())
    })
}

#[test]
fn calls_continue_after_their_client_disconnects() -> Result<()> {
    let tested = Tested::over_socket()?;
    tested
        .daemon
        .call("supervisor.startProcess", ("stubborn",))?;
    // Only after this line does the process ignore SIGTERM.
    eventually(LIMIT, || {
        let log = tested.daemon.read("stubborn.log")?;
        ensure!(log == "ready\n", "{log:?}");
        Ok(())
    })?;
    let disconnect_during = |method: &str, name: &str, state: &str| -> Result<()> {
        let client: Client = tested.sidecar.client();
        let body = write::call(method, &[name.into()]);
        let mut connection = client.connect()?;
        connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&body)))?;
        tested.daemon.wait_for_state(name, state)
    };
    disconnect_during("supervisor.startProcess", "slow", "STARTING")?;
    disconnect_during("supervisor.stopProcess", "stubborn", "STOPPING")?;
    tested.daemon.wait_for_state("slow", "RUNNING")?;
    tested.daemon.wait_for_state("stubborn", "STOPPED")?;
    tested.sidecar.client().call("supervisor.getState", ())?;
    Ok(())
}

// --- A daemon that stops and starts ---

fn ensure_bad_gateway(sidecar: &Sidecar) -> Result<()> {
    let body = write::call("supervisor.getState", &[]);
    let twiddler = write::call("twiddler.getGroupNames", &[]);
    let client = sidecar.client();
    let start = Instant::now();
    for reply in [
        client.post_call(&body)?,
        client.post_call(&twiddler)?,
        client.get("/")?,
        client.get("/logtail/web")?,
        client.get("/images/icon.png")?,
    ] {
        ensure!(reply.status == 502, "{reply:?}");
        let text = reply.text();
        let is_a_line = text.ends_with('\n') && text.lines().count() == 1;
        ensure!(is_a_line && text.contains("supervisord at "), "{text:?}");
        ensure!(
            reply
                .header("server")
                .is_some_and(|server| server.starts_with("twiddler/"))
        );
    }
    ensure!(start.elapsed() < SOON, "{:?}", start.elapsed());
    client.wait_for_health(503).map(drop)
}

fn stops_and_starts(tested: &Tested) -> Result<()> {
    let persistent = tested.sidecar.client().kept_alive();
    for _ in 0..2 {
        persistent.call("supervisor.getState", ())?;
        tested.daemon.stop()?;
        ensure_bad_gateway(&tested.sidecar)?;
        tested.daemon.start_again()?;
        persistent.call("supervisor.getState", ())?;
        tested.sidecar.client().call("supervisor.getState", ())?;
        ensure!(tested.sidecar.client().get("/")?.status == 200);
        tested.sidecar.client().wait_for_health(200)?;
        tested.daemon.kill_and_start_again()?;
        persistent.call("supervisor.getState", ())?;
    }
    Ok(())
}

#[test]
fn an_unreachable_daemon_is_reported_at_once_and_used_again_later() -> Result<()> {
    stops_and_starts(&Tested::over_socket()?)
}

#[test]
fn an_unreachable_daemon_on_a_port_is_reported_at_once_and_used_again_later() -> Result<()> {
    stops_and_starts(&Tested::over_port()?)
}

/// After a restart of the daemon, no call uses a connection from before it.
#[test]
fn the_first_calls_after_a_restart_succeed() -> Result<()> {
    let tested = Tested::over_socket()?;
    for _ in 0..3 {
        // The proxy keeps several connections open.
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    tested
                        .sidecar
                        .client()
                        .call("supervisor.getAllProcessInfo", ())
                });
            }
        });
        tested.daemon.restart_rpc()?;
        tested.sidecar.client().call("twiddler.getGroupNames", ())?;
        for _ in 0..6 {
            tested.sidecar.client().call("supervisor.getState", ())?;
        }
    }
    Ok(())
}

#[test]
fn a_call_during_which_the_daemon_dies_is_a_bad_gateway() -> Result<()> {
    let tested = Tested::over_socket()?;
    let body = write::call("supervisor.startProcess", &["slow".into()]);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| tested.sidecar.client().post_call(&body));
        tested.daemon.wait_for_state("slow", "STARTING")?;
        tested.daemon.kill()?;
        let reply = waiting
            .join()
            .map_err(|_| anyhow::anyhow!("the caller panicked"))??;
        ensure!(reply.status == 502, "{reply:?}");
        Ok(())
    })
}

#[test]
fn the_proxy_can_start_before_the_daemon() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    daemon.stop()?;
    let sidecar = Sidecar::start(&daemon)?;
    ensure_bad_gateway(&sidecar)?;
    daemon.start_again()?;
    sidecar.client().call("supervisor.getState", ())?;
    let groups = sidecar.client().call("twiddler.getGroupNames", ())?;
    ensure!(
        crate::common::texts(&groups)?.contains(&"web"),
        "{groups:?}"
    );
    Ok(())
}
