//! Calls and replies about no placed process are forwarded unchanged.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use super::{ADD, REMOVE, USER, front, program};
use crate::common::process::lock;
use crate::common::{Daemon, LIMIT, Sidecar, eventually, infos, rows};
use anyhow::{Result, bail, ensure};
use supervisor_twiddler::xmlrpc::write;

/// A relay between the sidecar and the daemon that records the bytes of the sidecar.
struct Tap {
    addr: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn before(socket: &Path) -> Result<Tap> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (recorded, socket) = (Arc::clone(&sent), socket.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(daemon) = UnixStream::connect(&socket) {
                    join(&client, &daemon, &recorded);
                }
            }
        });
        Ok(Tap { addr, sent })
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.sent))
    }
}

fn join(client: &TcpStream, daemon: &UnixStream, recorded: &Arc<Mutex<Vec<u8>>>) {
    let (Ok(mut from), Ok(mut to)) = (client.try_clone(), daemon.try_clone()) else {
        return;
    };
    let recorded = Arc::clone(recorded);
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            lock(&recorded).extend_from_slice(&buffer[..length]);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    let (Ok(mut from), Ok(mut to)) = (daemon.try_clone(), client.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn calls_about_no_placed_process_are_forwarded_byte_for_byte() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    let tap = Tap::before(daemon.socket())?;
    let sidecar =
        Sidecar::start_with(&daemon, &["--supervisord", &format!("http://{}", tap.addr)])?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call(ADD, ("g", "own", program(&[])))?;
    client.call(ADD, ("web", "placed", program(&[])))?;
    client.call(REMOVE, ("web", "b"))?;
    // With the first forwarded call, and then once a minute, the proxy queries the daemon's
    // process id, to check its limit of open files.
    client.call("supervisor.getState", ())?;
    let mut received = Vec::new();
    eventually(LIMIT, || {
        received.extend(tap.take());
        let text = String::from_utf8_lossy(&received);
        ensure!(text.contains("supervisor.getPID"), "{text}");
        Ok(())
    })?;
    let calls = [
        ("supervisor.getState", params![]),
        ("supervisor.getProcessInfo", params!["web:a"]),
        ("supervisor.getProcessInfo", params!["g:own"]),
        ("supervisor.getProcessInfo", params!["lone"]),
        ("supervisor.getProcessInfo", params!["web~000002:placed"]),
        ("supervisor.startProcess", params!["g:own"]),
        ("supervisor.readProcessLog", params!["g:own", 0, 10]),
        ("supervisor.sendProcessStdin", params!["web:a", "x\n"]),
        ("supervisor.stopProcess", params!["g:own"]),
        ("supervisor.signalProcess", params!["web:a", "CONT"]),
        ("supervisor.startProcessGroup", params!["lone"]),
        ("supervisor.startProcess", params!["lone:*"]),
        ("supervisor.getProcessInfo", params!["nope"]),
        ("supervisor.readLog", params![0, 10]),
        ("supervisor.nope", params!["web:placed"]),
        ("system.methodHelp", params!["supervisor.getState"]),
        ("nope", params![]),
    ];
    for (method, params) in calls {
        // A body that no library writes.
        let plain = String::from_utf8(write::call(method, &params))?;
        let odd = plain.replace("<params>", "\n <params >\t<!-- odd -->");
        let whole = [odd.as_bytes(), b"\n\n"].concat();
        tap.take();
        client.request("POST", "/RPC2?x=1", &[("X-Odd", "a  b")], Some(&whole))?;
        let sent = tap.take();
        let mut position = sent.windows(whole.len()).filter(|part| *part == whole);
        ensure!(
            position.next().is_some() && position.next().is_none() && sent.ends_with(&whole),
            "{method}{params:?} was sent as {}",
            String::from_utf8_lossy(&sent)
        );
        ensure!(
            sent.starts_with(b"POST /RPC2?x=1 HTTP/1.1\r\n"),
            "{}",
            String::from_utf8_lossy(&sent)
        );
    }
    // A call about a placed process shows that the tap records changes.
    tap.take();
    client.call("supervisor.getProcessInfo", ("web:placed",))?;
    let sent = String::from_utf8_lossy(&tap.take()).into_owned();
    if !sent.contains("web~000002:placed") {
        bail!("{sent}");
    }
    Ok(())
}

#[test]
fn lists_are_in_the_daemons_order() -> Result<()> {
    let (_daemon, _sidecar, client) = front(USER)?;
    for name in ["z", "a1", "0", "m"] {
        for group in ["web", "lone", "ears"] {
            client.call(ADD, (group, name, program(&[])))?;
        }
    }
    let names: Vec<(String, String)> = rows(&client)?
        .into_iter()
        .map(|row| (row.group, row.name))
        .collect();
    ensure!(names.is_sorted(), "{names:?}");
    ensure!(infos(&client)?.len() == 5 + 12);
    Ok(())
}
