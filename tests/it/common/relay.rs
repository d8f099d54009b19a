//! A relay before a daemon, whose connections can be made to fail.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use super::daemon::Daemon;
use super::process::lock;

/// How long a connection that is to be dropped stays open.
const OPEN_FOR: Duration = Duration::from_millis(3);

/// Hands connections on to a daemon's socket, unless it drops new ones.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    drops: AtomicBool,
    dropped: AtomicUsize,
    ends: AtomicBool,
    connections: Mutex<Vec<Handed>>,
}

type Look = dyn Fn(&[u8]) + Send + Sync;

/// A connection that was handed on.
#[derive(Debug)]
struct Handed {
    stream: UnixStream,
    is_used: Arc<AtomicBool>,
}

impl Relay {
    /// Listens on a socket beside the daemon's own.
    pub fn start(daemon: &Daemon) -> Result<Relay> {
        Relay::looking(daemon.dir(), daemon.socket(), |_| ())
    }

    /// Listens on a socket in `dir`, before that of any server. `look` sees what clients send before it
    /// is handed on.
    pub fn looking(
        dir: &Path,
        socket: &Path,
        look: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<Relay> {
        let path = dir.join("relay.sock");
        let listener = UnixListener::bind(&path)?;
        let state = Arc::new(State::default());
        let (socket, shared) = (socket.to_owned(), Arc::clone(&state));
        let look: Arc<Look> = Arc::new(look);
        let accepting = thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if shared.ends.load(Ordering::Relaxed) {
                    break;
                }
                if shared.drops.load(Ordering::Relaxed) {
                    thread::sleep(OPEN_FOR); // the fault itself, not a wait
                    shared.dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                // Closed where the daemon is away.
                if let Ok(handed) = hand_on(connection, &socket, Arc::clone(&look)) {
                    lock(&shared.connections).push(handed);
                }
            }
        });
        Ok(Relay {
            path,
            state,
            accepting: Some(accepting),
        })
    }

    /// Its address, as the proxy is told it.
    pub fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Drops connections that are made from now on as soon as they are there, and those that were
    /// never used. The others go on.
    pub fn drop_connections(&self) {
        self.state.drops.store(true, Ordering::Relaxed);
        for handed in lock(&self.state.connections).iter() {
            if !handed.is_used.load(Ordering::Relaxed) {
                let _ = handed.stream.shutdown(Shutdown::Both); // gone already
            }
        }
    }

    /// Hands all on again.
    pub fn hand_on_again(&self) {
        self.state.drops.store(false, Ordering::Relaxed);
    }

    /// How many connections it has dropped.
    pub fn dropped(&self) -> usize {
        self.state.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.path); // so that it looks
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join(); // a panic there has been printed
        }
    }
}

/// Copies both ways, each until its end.
fn hand_on(client: UnixStream, socket: &Path, look: Arc<Look>) -> io::Result<Handed> {
    let daemon = UnixStream::connect(socket)?;
    let is_used = Arc::new(AtomicBool::new(false));
    let handed = Handed {
        stream: client.try_clone()?,
        is_used: Arc::clone(&is_used),
    };
    let look = move |bytes: &[u8]| {
        is_used.store(true, Ordering::Relaxed);
        look(bytes);
    };
    let (from_client, to_daemon) = (client.try_clone()?, daemon.try_clone()?);
    thread::spawn(move || copy(from_client, to_daemon, look));
    thread::spawn(move || copy(daemon, client, |_| ()));
    Ok(handed)
}

fn copy(mut from: UnixStream, mut to: UnixStream, look: impl Fn(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        look(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both); // gone already
}
