//! A relay in front of a daemon, which can drop connections.

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

/// How long a dropped connection stays open.
const OPEN_FOR: Duration = Duration::from_millis(3);

/// Forwards connections to a daemon's socket, or drops new ones.
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

/// A connection that is forwarded.
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

    /// Listens on a socket in `dir`, in front of any server. `look` gets the bytes of clients before they are
    /// forwarded.
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
                // Without a daemon, the connection is closed.
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

    /// Its address, for the proxy's option `--supervisord`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Drops new connections, and open ones that were never used. The others stay open.
    pub fn drop_connections(&self) {
        self.state.drops.store(true, Ordering::Relaxed);
        for handed in lock(&self.state.connections).iter() {
            if !handed.is_used.load(Ordering::Relaxed) {
                let _ = handed.stream.shutdown(Shutdown::Both); // gone already
            }
        }
    }

    /// Forwards new connections again.
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

/// Copies both directions, each to its end.
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
