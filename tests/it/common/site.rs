//! A web site that somebody else runs.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

/// How long a browser may take to send its request on a connection that it has opened.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server on a free port of loopback that answers every request with the same page. On drop it
/// ends.
#[derive(Debug)]
pub struct Site {
    addr: SocketAddr,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Site {
    /// Serves this page.
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
                // Browsers open connections in advance, on which nothing may ever come.
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

/// Reads one head; a client that goes away is its own affair.
fn answer(mut client: TcpStream, reply: &str) {
    let _ = client.set_read_timeout(Some(PATIENCE));
    let mut lines = BufReader::new(&client).lines().map_while(Result::ok);
    if lines.any(|line| line.is_empty()) {
        let _ = client.write_all(reply.as_bytes());
    }
}
