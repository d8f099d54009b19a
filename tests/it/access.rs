//! Access: credentials, addresses, sockets, browsers, and the methods that may be called.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::{
    Addr, Client, Daemon, DaemonOptions, Reply, Sidecar, SidecarOptions, TWIDDLER_METHODS, Until,
    basic, ensure_fault, eventually, exchange, refused, run_python, stdout_text, text, value,
};
use anyhow::Result;
use supervisor_twiddler::xmlrpc::{Value, write};

const LONG_RUNNING: &str = "[program:cat]\ncommand = /bin/cat\n";
/// The digest of `secret` in supervisord's form.
const SHA_OF_SECRET: &str = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4";
const DAEMONS: (&str, &str) = ("daemon", "of the daemon");

fn sidecar(daemon: &Daemon, environment: &[(&str, &str)]) -> Result<Sidecar> {
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            environment,
            ..SidecarOptions::default()
        },
    )
}

fn with_own(daemon: &Daemon, password: &str) -> Result<Sidecar> {
    sidecar(
        daemon,
        &[
            ("TWIDDLER_USERNAME", "own"),
            ("TWIDDLER_PASSWORD", password),
        ],
    )
}

fn own_client(sidecar: &Sidecar) -> Client {
    Client::new(sidecar.tcp_addr()).with_credentials("own", "secret")
}

#[test]
fn own_credentials_are_required_and_the_daemons_are_presented() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        body: LONG_RUNNING,
        ..DaemonOptions::default()
    })?;
    for password in ["secret", SHA_OF_SECRET, &argon2_of("secret")] {
        let sidecar = with_own(&daemon, password)?;
        let own = own_client(&sidecar);
        assert_eq!(own.call("twiddler.getAPIVersion", ())?, value("1.0"));
        let info = own.call("supervisor.getProcessInfo", ("cat",))?;
        assert_eq!(text(info.get("name").unwrap_or(&Value::Nil))?, "cat");
        assert_eq!(own.get("/")?.status, 200);
        assert_eq!(own.get("/twiddler/health")?.status, 200);
        // The daemon ignores header names in `Connection`.
        for named in [
            "Authorization",
            "authorization, Host, Content-Length, close",
        ] {
            let named = own.request("GET", "/", &[("Connection", named)], None)?;
            assert_eq!(named.status, 200);
        }

        let (user, secret) = DAEMONS;
        for (user, password) in [
            (user, secret),
            ("own", "Secret"),
            ("own", ""),
            ("", "secret"),
            ("own", password),
        ] {
            if (user, password) != ("own", "secret") {
                let other = Client::new(sidecar.tcp_addr()).with_credentials(user, password);
                assert_eq!(
                    other.call("supervisor.getState", ()).unwrap_err().status(),
                    Some(401),
                    "{user}:{password}"
                );
            }
        }
    }
    Ok(())
}

/// An argon2 hash as a PHC string. supervisord does not know this form.
fn argon2_of(password: &str) -> String {
    use argon2::password_hash::PasswordHasher;
    let cheap = argon2::Params::new(64, 1, 1, None).expect("fitting parameters");
    let hash =
        argon2::Argon2::from(cheap).hash_password_with_salt(password.as_bytes(), b"salt of tests");
    hash.expect("a hash").to_string()
}

#[test]
fn paths_below_twiddler_are_not_forwarded() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    for path in ["/twiddler/", "/twiddler/nothing", "/twiddler/health/"] {
        let reply = sidecar.client().get(path)?;
        assert_eq!(reply.status, 404, "{path}");
        let expected = format!("twiddler has no page {path}");
        assert_eq!(reply.text().trim(), expected);
    }
    Ok(())
}

#[test]
fn own_credentials_guard_every_path_but_health() -> Result<()> {
    let daemon = Daemon::start(LONG_RUNNING)?;
    let sidecar = with_own(&daemon, "secret")?;
    let stranger = Client::new(sidecar.tcp_addr());
    let call = write::call("twiddler.addGroup", &[value("sneaked"), value(1)]);
    for (method, path, body) in [
        ("POST", "/RPC2", Some(&call[..])),
        ("POST", "/RPC2/x", Some(b"rubbish")),
        ("GET", "/RPC2", None),
        ("GET", "/", None),
        ("GET", "/index.html?action=stopall", None),
        ("POST", "/index.html", Some(b"action=stopall")),
        ("GET", "/logtail/cat", None),
        ("GET", "/mainlogtail", None),
        ("GET", "/stylesheets/supervisor.css", None),
        ("GET", "/twiddler/", None),
        ("GET", "/twiddler/health/", None),
        ("GET", "/twiddler/health%2f..", None),
        ("GET", "//twiddler/health", None),
        ("OPTIONS", "*", None),
        ("DELETE", "/nothing", None),
    ] {
        let reply = stranger.request(method, path, &[], body)?;
        assert_eq!(reply.status, 401, "{method} {path}: {reply:?}");
        assert_eq!(
            reply.header("www-authenticate"),
            Some("Basic realm=\"default\""),
            "{method} {path}"
        );
    }
    assert_eq!(
        stranger.get("/twiddler/health")?.text().trim(),
        r#"{"status":"up"}"#
    );
    daemon.wait_for_state("cat", "RUNNING")?;
    daemon.stop()?;
    let down = stranger.wait_for_health(503)?;
    assert_eq!(down.text(), r#"{"status":"down"}"#);
    assert_eq!(
        stranger
            .call("supervisor.getState", ())
            .unwrap_err()
            .status(),
        Some(401)
    );
    Ok(())
}

#[test]
fn the_challenge_is_the_daemons_own() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        tcp: true,
        ..DaemonOptions::default()
    })?;
    let call = write::call("supervisor.getState", &[]);
    let mut requests = Vec::new();
    for version in ["1.1", "1.0"] {
        let post = format!(
            "POST /RPC2 HTTP/{version}\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
            basic("a", "b"),
            call.len()
        );
        requests.push([post.as_bytes(), &call].concat());
        for rest in [
            "/ HTTP/VERSION\r\n",
            "/x HTTP/VERSION\r\nConnection: close\r\n",
        ] {
            let rest = rest.replace("VERSION", version);
            requests.push(format!("GET {rest}Host: localhost\r\n\r\n").into_bytes());
        }
    }
    let ask = |addr: Addr| -> Result<Vec<Reply>> {
        let replies = requests
            .iter()
            .map(|request| Reply::parse(&exchange(&addr, request, Until::Reply)?));
        replies.collect()
    };
    let own = with_own(&daemon, "secret")?;
    let proxy_replies = ask(own.tcp_addr().into())?;
    drop(own);
    let passed_on = ask(Sidecar::start(&daemon)?.tcp_addr().into())?;
    let daemons = ask(daemon.tcp_addr().into())?;
    for ((reply, passed_on), daemons) in proxy_replies.iter().zip(&passed_on).zip(&daemons) {
        assert_eq!(reply.status, 401);
        reply.ensure_same_as(passed_on)?;
        reply.ensure_same_as(daemons)?;
    }
    Ok(())
}

#[test]
fn a_password_that_the_daemon_rejects_is_a_502() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        ..DaemonOptions::default()
    })?;
    let conf = daemon.read("supervisord.conf")?;
    daemon.write(
        "supervisord.conf",
        &conf.replace("of the daemon", "changed since"),
    )?;
    let sidecar = with_own(&daemon, "secret")?;
    let error = own_client(&sidecar)
        .call("supervisor.getState", ())
        .unwrap_err();
    assert_eq!(error.status(), Some(502), "{error}");
    assert!(
        error.to_string().contains("username and password"),
        "{error}"
    );
    Ok(())
}

#[test]
fn no_caller_acts_with_another_callers_credentials() -> Result<()> {
    let (user, password) = DAEMONS;
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        ..DaemonOptions::default()
    })?;
    let conf = daemon.read("supervisord.conf")?;
    let digest = "{SHA}3a7bd3e2360a3d29eea436fcfb7e44c735d117c4"; // of something else: it is never presented
    for changed in [
        conf.replace(
            &format!("password = {password}"),
            &format!("password = {digest}"),
        ),
        conf.replace(&format!("username = {user}\npassword = {password}\n"), ""),
    ] {
        assert_ne!(changed, conf);
        daemon.write("supervisord.conf", &changed)?;
        let sidecar = Sidecar::start(&daemon)?;
        let authorized = sidecar.client();
        let stranger = Client::new(sidecar.tcp_addr());
        authorized.call("twiddler.getAPIVersion", ())?;
        for method in ["twiddler.addGroup", "twiddler.removeGroup"] {
            let params = if method == "twiddler.addGroup" {
                vec![value("g"), value(1)]
            } else {
                vec![value("g")]
            };
            let error = stranger.call(method, params).unwrap_err();
            assert_eq!(error.status(), Some(401), "{method}: {error}");
        }
    }
    Ok(())
}

/// How often each order of callers is tried against a daemon that is busy when the proxy starts.
const RACES: usize = 6;

#[test]
fn an_unauthorized_change_is_never_made_with_another_callers_credentials() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        body: LONG_RUNNING,
        ..DaemonOptions::default()
    })?;
    let (user, password) = DAEMONS;
    let conf = daemon.read("supervisord.conf")?;
    let open = conf.replace(&format!("username = {user}\npassword = {password}\n"), "");
    assert_ne!(open, conf);
    daemon.write("supervisord.conf", &open)?;
    for order in ["sk", "ks", "sks", "ksk", "ssk", "kks"] {
        for attempt in 0..RACES {
            let group = format!("sneaked-{order}-{attempt}");
            let groups = groups_after_a_race(&daemon, order, &group)?;
            assert_eq!(groups, ["cat"], "{group}");
        }
    }
    Ok(())
}

/// The daemon's groups after calls that waited for it: each `s` in `order` is a caller without credentials who
/// adds a group, each `k` a caller with credentials.
fn groups_after_a_race(daemon: &Daemon, order: &str, group: &str) -> Result<Vec<String>> {
    daemon.signal("STOP")?;
    let sidecar = Sidecar::start(daemon)?;
    let authorized = sidecar.client();
    let stranger = Client::new(sidecar.tcp_addr());
    let addition = write::call("twiddler.addGroup", &[value(group), value(1)]);
    let question = write::call("twiddler.getAPIVersion", &[]);
    let mut callers = Vec::new();
    for caller in order.chars() {
        let (client, body, expected) = match caller {
            's' => (&stranger, &addition, 401),
            _ => (&authorized, &question, 200),
        };
        let mut connection = client.connect()?;
        connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(body)))?;
        callers.push((connection, expected));
    }
    daemon.signal("CONT")?;
    for (connection, expected) in &mut callers {
        assert_eq!(connection.read_reply()?.status, *expected, "{group}");
    }
    let names = authorized.call("twiddler.getGroupNames", ())?;
    let names = names.as_array().unwrap_or_default().iter();
    names.map(|name| Ok(text(name)?.to_owned())).collect()
}

#[test]
fn incomplete_credentials_and_unusable_hashes_are_mistakes() -> Result<()> {
    let daemon = Daemon::start("")?;
    for (arguments, expected) in [
        (
            &["--username", "own"][..],
            "--username: there is no password",
        ),
        (
            &["--password", "canary"],
            "--password: there is no username",
        ),
        (
            &["--username", "own", "--password", "{SHA}canary"],
            "40 hexadecimal digits",
        ),
        (
            &["--username", "own", "--password", "$2y$canary"],
            "not understood",
        ),
        (&["--username", "o:wn", "--password", "canary"], "no colon"),
    ] {
        let error = refused(&daemon, arguments)?;
        assert!(
            error.contains(expected) && !error.contains("canary"),
            "{error}"
        );
    }
    let hashed = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        ..DaemonOptions::default()
    })?;
    let conf = hashed.read("supervisord.conf")?;
    hashed.write(
        "supervisord.conf",
        &conf.replace("of the daemon", SHA_OF_SECRET),
    )?;
    let error = refused(&hashed, &["--username", "own", "--password", "secret"])?;
    assert!(error.contains("only the digest"), "{error}");
    Ok(())
}

#[test]
fn an_address_that_opens_the_daemon_is_refused() -> Result<()> {
    let open = "0.0.0.0:0";
    let behind_socket = Daemon::start("")?;
    let on_loopback = Daemon::start_with(DaemonOptions {
        socket: false,
        tcp: true,
        ..DaemonOptions::default()
    })?;
    let with_password = Daemon::start_with(DaemonOptions {
        socket: false,
        tcp: true,
        credentials: Some(DAEMONS),
        ..DaemonOptions::default()
    })?;
    for (daemon, guard) in [
        (&behind_socket, "permissions of its socket"),
        (&on_loopback, "on this machine alone"),
        (&with_password, "password that the proxy holds"),
    ] {
        for address in [open, "[::]:0"] {
            let error = refused(daemon, &["--listen", address])?;
            assert!(
                error.contains("--listen") && error.contains(guard),
                "{error}"
            );
            assert!(
                error.contains("username = NAME") && error.contains("--allow-open"),
                "{error}"
            );
        }
        let arguments = ["--listen", open];
        let options = SidecarOptions {
            arguments: &arguments,
            own_listeners: Some(1),
            ..SidecarOptions::default()
        };
        let own = [
            ("TWIDDLER_USERNAME", "own"),
            ("TWIDDLER_PASSWORD", "secret"),
        ];
        let guarded = Sidecar::start_options(
            daemon,
            SidecarOptions {
                environment: &own,
                ..options
            },
        )?;
        assert!(
            !guarded.stderr_text().contains("is open"),
            "{}",
            guarded.stderr_text()
        );
        drop(guarded);
        let arguments = ["--listen", open, "--allow-open"];
        let opened = Sidecar::start_options(
            daemon,
            SidecarOptions {
                arguments: &arguments,
                ..options
            },
        )?;
        opened.wait_for_stderr("is open: whoever reaches it can run commands")?;
        opened.stop()?;
        opened.start_again()?;
        assert_eq!(opened.stderr_text().matches("is open: whoever").count(), 2);
    }
    Ok(())
}

#[test]
fn a_socket_has_the_configured_mode_and_owner() -> Result<()> {
    let daemon = Daemon::start("")?;
    let mode =
        |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o7777) };
    assert_eq!(mode(&Sidecar::start(&daemon)?.socket())?, 0o700);
    let mine = fs::metadata(daemon.dir())?;
    let owner = format!("{}:{}", mine.uid(), mine.gid());
    let sidecar = Sidecar::start_with(&daemon, &["--chmod", "0770", "--chown", &owner])?;
    assert_eq!(mode(&sidecar.socket())?, 0o770);
    let metadata = fs::metadata(sidecar.socket())?;
    assert_eq!((metadata.uid(), metadata.gid()), (mine.uid(), mine.gid()));
    for (option, value) in [
        ("--chmod", "rwx"),
        ("--chmod", "0999"),
        ("--chmod", "7777"),
        ("--chown", "no-such-user"),
        ("--chown", "root:no-such-group"),
    ] {
        let error = refused(&daemon, &[option, value])?;
        assert!(error.contains(option) && error.contains(value), "{error}");
    }
    Ok(())
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let socket = sidecar.socket();
    sidecar.kill()?;
    assert!(fs::symlink_metadata(&socket)?.file_type().is_socket());
    sidecar.start_again()?;
    sidecar.socket_client().call("supervisor.getState", ())?;

    let path = daemon.dir().join("live.sock");
    let live = UnixListener::bind(&path)?;
    let address = Addr::Unix(path.clone()).to_string();
    let error = refused(&Daemon::start("")?, &["--listen", &address])?;
    assert!(error.contains("is taken by another program"), "{error}");
    drop(live);
    let file = daemon.dir().join("file");
    fs::write(&file, "mine")?;
    let error = refused(
        &Daemon::start("")?,
        &["--listen", &Addr::Unix(file.clone()).to_string()],
    )?;
    assert!(error.contains("exists and is not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&file)?, "mine");
    Ok(())
}

#[test]
fn browsers_that_act_for_another_site_are_refused() -> Result<()> {
    let daemon = Daemon::start(LONG_RUNNING)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let call = write::call("supervisor.stopAllProcesses", &[]);
    let host = sidecar.tcp_addr().to_string();
    let send = |method: &str, path: &str, headers: &[(&str, &str)]| -> Result<u16> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let body: &[u8] = if method == "POST" { &call } else { b"" };
        if method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let request = [head.as_bytes(), b"\r\n", body].concat();
        Ok(Reply::parse(&exchange(sidecar.tcp_addr(), &request, Until::Reply)?)?.status)
    };
    let own_host = ("Host", host.as_str());
    for (method, path) in [
        ("POST", "/RPC2"),
        ("POST", "/RPC2/x"),
        ("GET", "/?action=stopall"),
        ("GET", "/index.html?processname=cat&action=stop"),
        ("POST", "/index.html"),
    ] {
        for headers in [
            [own_host, ("Sec-Fetch-Site", "cross-site")],
            [own_host, ("Sec-Fetch-Site", "same-site")],
            [own_host, ("Origin", "http://evil.example")],
            [own_host, ("Origin", "null")],
            [("Host", "evil.example"), ("Accept", "*/*")],
            [
                ("Host", "evil.example:9002"),
                ("Origin", "http://evil.example:9002"),
            ],
        ] {
            assert_eq!(
                send(method, path, &headers)?,
                403,
                "{method} {path} {headers:?}"
            );
        }
    }
    assert_eq!(daemon.state("cat")?, "RUNNING");
    assert_eq!(
        send("GET", "/", &[own_host, ("Sec-Fetch-Site", "cross-site")])?,
        200
    );
    for headers in [
        &[
            own_host,
            ("Sec-Fetch-Site", "same-origin"),
            ("User-Agent", "Mozilla/5.0"),
        ][..],
        &[own_host, ("Sec-Fetch-Site", "none")],
        &[own_host, ("Origin", &format!("http://{host}"))],
        &[("Host", "twiddler:9001")],
    ] {
        assert_eq!(
            send("GET", "/index.html?action=refresh", headers)?,
            301,
            "{headers:?}"
        );
    }
    let old = Reply::parse(&exchange(
        sidecar.tcp_addr(),
        b"GET /?action=refresh HTTP/1.0\r\n\r\n",
        Until::Close,
    )?)?;
    assert_eq!(old.status, 301);
    assert_eq!(
        text(
            client
                .call("supervisor.getState", ())?
                .get("statename")
                .unwrap_or(&Value::Nil)
        )?,
        "RUNNING"
    );
    Ok(())
}

#[test]
fn configured_host_names_are_accepted() -> Result<()> {
    let daemon = Daemon::start("")?;
    let hosts = "proxy.example.com, other.example, https://sup.example.com";
    let sidecar = Sidecar::start_with(&daemon, &["--hosts", hosts])?;
    let call = write::call("supervisor.getState", &[]);
    for (host, origin, expected) in [
        ("proxy.example.com", "", 200),
        ("OTHER.example:9002", "", 200),
        ("sup.example.com", "", 200),
        ("x.proxy.example.com", "", 403),
        ("other.example:81", "http://other.example:81", 200),
        ("other.example:81", "http://other.example:82", 403),
        ("other.example", "https://other.example", 403),
        // A request as a reverse proxy with TLS forwards it.
        ("sup.example.com", "https://sup.example.com", 200),
        ("127.0.0.1:9002", "https://sup.example.com", 200),
        ("sup.example.com", "http://sup.example.com:81", 403),
    ] {
        let origin = match origin {
            "" => String::new(),
            origin => format!("Origin: {origin}\r\n"),
        };
        let head = format!(
            "POST /RPC2 HTTP/1.1\r\nHost: {host}\r\n{origin}Content-Length: {}\r\n\r\n",
            call.len()
        );
        let reply = exchange(
            sidecar.tcp_addr(),
            &[head.as_bytes(), &call].concat(),
            Until::Reply,
        )?;
        assert_eq!(Reply::parse(&reply)?.status, expected, "{head}");
    }
    for wrong in ["proxy.example.com:80", "http://proxy.example.com/x"] {
        let error = refused(&daemon, &["--hosts", wrong])?;
        assert!(
            error.contains(&format!(
                "--hosts: `{wrong}` is not a host name; write a name such as"
            )),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn supervisorctl_and_python_are_never_refused_as_browsers() -> Result<()> {
    let daemon = Daemon::start(LONG_RUNNING)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let sidecar = Sidecar::start(&daemon)?;
    for addr in sidecar.addrs() {
        let status = daemon.supervisorctl_at(&["status"], &addr)?;
        assert!(
            stdout_text(&status).contains("RUNNING"),
            "{}",
            stdout_text(&status)
        );
    }
    let script = "import sys, xmlrpc.client\nfor host in ('127.0.0.1', 'localhost'):\n    print(xmlrpc.client.ServerProxy('http://%s:%s/RPC2' % (host, sys.argv[1])).supervisor.getState()['statename'])";
    let port = sidecar.tcp_addr().port().to_string();
    let stdout = stdout_text(&run_python(script, &[&port])?);
    assert_eq!(stdout, "RUNNING\nRUNNING\n");
    Ok(())
}

const READING: &[(&str, &str)] = &[(
    "TWIDDLER_ALLOW",
    "supervisor.get*, supervisor.read*, system.*, twiddler.getGroupNames",
)];

#[test]
fn only_allowed_methods_can_be_called() -> Result<()> {
    let daemon = Daemon::start(LONG_RUNNING)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let sidecar = sidecar(&daemon, READING)?;
    let client = sidecar.client();
    client.call("supervisor.getAllProcessInfo", ())?;
    client.call("supervisor.readLog", (0, 10))?;
    client.call("twiddler.getGroupNames", ())?;
    let listed = client.call("system.listMethods", ())?;
    assert_eq!(listed, names_of_all_methods(&daemon)?);
    for (method, params) in [
        ("supervisor.stopProcess", vec![value("cat")]),
        ("supervisor.stopAllProcesses", vec![]),
        ("supervisor.shutdown", vec![]),
        ("twiddler.addGroup", vec![value("g"), value(1)]),
        ("twiddler.noSuchMethod", vec![]),
        ("plugin.doIt", vec![]),
        ("noNamespace", vec![]),
    ] {
        let fault = client.expect_fault(method, params)?;
        ensure_fault(&fault, 230, &format!("NOT_IN_WHITELIST: {method}"))?;
    }
    assert_eq!(daemon.state("cat")?, "RUNNING");
    sidecar.wait_for_stderr("refused twiddler.addGroup: NOT_IN_WHITELIST: twiddler.addGroup")?;
    let error = refused(&daemon, &["--allow", "getState"])?;
    assert!(
        error.contains("--allow") && error.contains("supervisor.get*"),
        "{error}"
    );
    Ok(())
}

fn names_of_all_methods(daemon: &Daemon) -> Result<Value> {
    let listed = daemon.call("system.listMethods", ())?;
    let mut names: Vec<String> = crate::common::texts(&listed)?
        .into_iter()
        .map(str::to_owned)
        .collect();
    names.extend(TWIDDLER_METHODS.map(|name| format!("twiddler.{name}")));
    names.sort();
    Ok(Value::Array(names.into_iter().map(Value::from).collect()))
}

#[test]
fn methods_are_limited_inside_multicalls_too() -> Result<()> {
    let daemon = Daemon::start(LONG_RUNNING)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let sidecar = sidecar(&daemon, READING)?;
    let results = sidecar.client().multicall(&[
        ("supervisor.getAPIVersion", vec![]),
        ("supervisor.stopProcess", vec![value("cat")]),
        ("twiddler.addGroup", vec![value("g"), value(1)]),
        ("supervisor.getIdentification", vec![]),
        (
            "system.multicall",
            vec![Value::Array(vec![crate::common::options(&[(
                "methodName",
                "supervisor.stopAllProcesses",
            )])])],
        ),
    ])?;
    assert_eq!(results[0], value("3.0"));
    assert_eq!(results[3], value("supervisor"));
    for (at, method) in [(1, "supervisor.stopProcess"), (2, "twiddler.addGroup")] {
        let expected = format!("NOT_IN_WHITELIST: {method}");
        assert_eq!(
            crate::common::values::fault_in(&results[at]),
            Some((230, &*expected))
        );
    }
    assert_eq!(
        crate::common::values::fault_in(&results[4]).map(|(code, _)| code),
        Some(2)
    );
    for call in [
        write::call("system.multicall", &[Value::Struct(vec![("methodName".to_owned(), value("supervisor.stopAllProcesses"))])]),
        b"<methodCall><methodName>supervisor.stopAllProcesses</methodName><methodName>supervisor.getState</methodName></methodCall>".to_vec(),
        b"<methodCall><methodName>supervisor.getState</methodName><params/><x><methodName>supervisor.<!-- -->stopAllProcesses</methodName></x></methodCall>".to_vec(),
    ] {
        let reply = sidecar.client().post_call(&call)?;
        assert!(reply.text().contains("<fault>"), "{reply:?}");
    }
    assert_eq!(daemon.state("cat")?, "RUNNING");
    Ok(())
}

#[test]
fn methods_behind_pages_are_limited() -> Result<()> {
    let daemon = Daemon::start(LONG_RUNNING)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let sidecar = sidecar(&daemon, READING)?;
    let client = sidecar.client();
    for (path, expected) in [
        ("/", 200),
        ("/tail.html?processname=cat", 200),
        ("/stylesheets/supervisor.css", 200),
        ("/?action=refresh", 301),
        ("/?action=stopall", 403),
        ("/?action=restartall", 403),
        ("/index.html?processname=cat&action=stop", 403),
        ("/index.html?processname=cat&%61ction=restart", 403),
        ("/index.html?processname=cat&action=clearlog", 403),
        ("/index.html%3Faction=stopall", 403),
        ("/ok.html?PATH_INFO=/index.html&action=stopall", 403),
        ("/ok.html?action=stopall", 403),
    ] {
        let reply = client.get(path)?;
        assert_eq!(reply.status, expected, "{path}: {reply:?}");
    }
    let form = client.request("POST", "/index.html", &[], Some(b"action=stopall"))?;
    assert_eq!(
        (form.status, form.text().trim()),
        (403, "NOT_IN_WHITELIST: supervisor.stopAllProcesses")
    );
    let started = text(
        daemon
            .call("supervisor.getProcessInfo", ("cat",))?
            .get("statename")
            .unwrap_or(&Value::Nil),
    )?
    .to_owned();
    assert_eq!(started, "RUNNING");
    sidecar.stop()?;
    let blind = self::sidecar(&daemon, &[("TWIDDLER_ALLOW", "supervisor.start*")])?;
    for path in [
        "/",
        "/tail.html?processname=cat",
        "/logtail/cat",
        "/logtail/cat/stderr",
        "/mainlogtail",
    ] {
        assert_eq!(blind.client().get(path)?.status, 403, "{path}");
    }
    Ok(())
}

#[test]
fn strangers_do_not_learn_which_methods_are_allowed() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        ..DaemonOptions::default()
    })?;
    let sidecar = sidecar(&daemon, READING)?;
    let stranger = Client::new(sidecar.tcp_addr());
    for method in [
        "supervisor.getState",
        "supervisor.stopAllProcesses",
        "twiddler.log",
        "twiddler.x",
        "system.listMethods",
        "system.multicall",
        "x",
    ] {
        let params = if method == "system.multicall" {
            vec![Value::Array(vec![])]
        } else {
            vec![]
        };
        assert_eq!(
            stranger.call(method, params).unwrap_err().status(),
            Some(401),
            "{method}"
        );
    }
    for path in ["/", "/?action=stopall", "/mainlogtail", "/x"] {
        assert_eq!(stranger.get(path)?.status, 401, "{path}");
    }
    Ok(())
}

#[test]
fn strangers_do_not_learn_the_address_of_a_daemon_that_is_down() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(DAEMONS),
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.stop()?;
    let socket = daemon.socket().to_string_lossy().into_owned();
    let call = write::call("twiddler.getGroupNames", &[]);
    for (client, expected) in [
        (sidecar.client(), true),
        (Client::new(sidecar.tcp_addr()), false),
        (
            Client::new(sidecar.tcp_addr()).with_credentials("daemon", "x"),
            false,
        ),
    ] {
        for reply in [
            client.post_call(&call)?,
            client.get("/")?,
            client.get("/mainlogtail")?,
        ] {
            assert_eq!(reply.status, 502);
            assert_eq!(reply.text().contains(&socket), expected, "{reply:?}");
        }
    }
    Ok(())
}

#[test]
fn costly_hashes_do_not_delay_authorized_callers() -> Result<()> {
    let daemon = Daemon::start("")?;
    let costly = {
        use argon2::password_hash::PasswordHasher;
        let params = argon2::Params::new(16 * 1024, 3, 1, None).expect("fitting parameters");
        argon2::Argon2::from(params)
            .hash_password_with_salt(b"secret", b"salt of tests")
            .expect("a hash")
            .to_string()
    };
    let sidecar = with_own(&daemon, &costly)?;
    let authorized = own_client(&sidecar);
    authorized.call("supervisor.getState", ())?;
    let addr = sidecar.tcp_addr();
    let guessing: Vec<_> = (0..16)
        .map(|number| {
            std::thread::spawn(move || {
                let client = Client::new(addr).with_credentials("own", &format!("guess {number}"));
                client
                    .call("supervisor.getState", ())
                    .err()
                    .and_then(|error| error.status())
            })
        })
        .collect();
    let mut answered_meanwhile = 0;
    while guessing.iter().any(|guess| !guess.is_finished()) {
        authorized.call("supervisor.getState", ())?;
        answered_meanwhile += 1;
    }
    for guess in guessing {
        assert_eq!(guess.join().ok().flatten(), Some(401));
    }
    assert!(
        answered_meanwhile > 16,
        "{answered_meanwhile} calls beside 16 guesses"
    );
    eventually(crate::common::LIMIT, || {
        authorized.call("supervisor.getState", ())?;
        Ok(())
    })
}
