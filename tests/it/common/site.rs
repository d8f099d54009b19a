//! The web site of an attacker.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

/// How long a browser may take to send a request on an open connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server on a free port of 127.0.0.1 that answers every request with the same page. It ends on drop.
#[derive(Debug)]
pub struct Site {
    addr: SocketAddr,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Site {
    /// Starts a server for this page.
    pub fn serve(page: &str) -> Result<Site> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let reply = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{page}",
            page.len()
        );
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        let server = thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if has_ended.load(Ordering::Acquire) {
                    return;
                }
                let reply = reply.clone();
                // Browsers open connections in advance, and may send no request on them.
                thread::spawn(move || answer(client, &reply));
            }
        });
        Ok(Site {
            addr,
            ended,
            server: Some(server),
        })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.addr); // so that it looks
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Reads the head of a request. An error, such as a closed connection, is ignored.
fn answer(mut client: TcpStream, reply: &str) {
    let _ = client.set_read_timeout(Some(PATIENCE));
    let mut lines = BufReader::new(&client).lines().map_while(Result::ok);
    if lines.any(|line| line.is_empty()) {
        let _ = client.write_all(reply.as_bytes());
    }
}
