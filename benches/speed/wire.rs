//! The load generator's side of a connection: one blocking socket, kept alive, whole requests out
//! and whole replies in. Does no more for a call than find the end of its reply.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use supervisor_twiddler::xmlrpc::{Value, read, write};

use crate::common::Addr;

/// Longer than anything takes here: a row that hangs must end.
const LIMIT: Duration = Duration::from_secs(60);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One kept-alive connection.
pub(crate) struct Wire {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    filled: usize,
}

impl Wire {
    /// Connects.
    pub(crate) fn open(addr: &Addr) -> Result<Wire> {
        let stream: Box<dyn Stream> = match addr {
            Addr::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, LIMIT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(LIMIT))?;
                Box::new(stream)
            }
            Addr::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(LIMIT))?;
                Box::new(stream)
            }
        };
        Ok(Wire {
            stream,
            buffer: vec![0; 64 * 1024],
            filled: 0,
        })
    }

    /// Sends a request and waits for all of its reply; the reply's body.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request).context("sending")?;
        self.filled = 0;
        let mut end = None;
        loop {
            if let Some((start, end)) = end
                && self.filled >= end
            {
                ensure!(self.filled == end, "more than one reply");
                return Ok(&self.buffer[start..end]);
            }
            if self.filled == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            ensure!(read > 0, "the connection was closed before a whole reply");
            self.filled += read;
            if end.is_none() {
                end = reply_bounds(&self.buffer[..self.filled])?;
            }
        }
    }

    /// A call that must not fault, without a look at what it answers.
    pub(crate) fn call(&mut self, request: &[u8]) -> Result<()> {
        let body = self.exchange(request)?;
        let head = &body[..body.len().min(200)];
        if contains(head, b"<fault>") {
            bail!("a fault: {}", String::from_utf8_lossy(body));
        }
        Ok(())
    }

    /// A call and its answer.
    pub(crate) fn value(&mut self, request: &[u8]) -> Result<Value> {
        Ok(read::response(self.exchange(request)?)??)
    }
}

/// Where the body begins and ends, once the head is there.
fn reply_bounds(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(head) = find(bytes, b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes[..head]);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.contains(" 200"), "not answered with 200: {status}");
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("a reply without a length")?;
    let start = head + 4;
    Ok(Some((start, start + length.1.trim().parse::<usize>()?)))
}

/// Where `wanted` begins.
pub(crate) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    find(bytes, wanted).is_some()
}

/// A whole request for this call, as XML-RPC clients send it.
pub(crate) fn request(method: &str, params: &[Value]) -> Vec<u8> {
    let body = write::call(method, params);
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\nAccept: text/xml\r\n\
         User-Agent: bench\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// A `system.multicall` of these calls.
pub(crate) fn multicall(calls: impl Iterator<Item = (&'static str, Vec<Value>)>) -> Vec<u8> {
    let entries = calls.map(|(method, params)| {
        Value::Struct(vec![
            ("methodName".to_owned(), method.into()),
            ("params".to_owned(), Value::Array(params)),
        ])
    });
    request("system.multicall", &[Value::Array(entries.collect())])
}
