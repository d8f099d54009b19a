//! Bytes on a connection, and replies byte for byte.
//!
//! This module uses no HTTP library: tests compare the bytes of a daemon and of the sidecar, and send
//! requests that no library sends.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::wait::LIMIT;

/// How many bytes of a body a failure shows.
const SHOWN_BYTES: usize = 2000;

/// An address to connect to. Displays as the URL that supervisorctl takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addr {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Tcp(addr) => write!(f, "http://{addr}"),
            Addr::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Addr {
        Addr::Tcp(addr)
    }
}

impl From<PathBuf> for Addr {
    fn from(path: PathBuf) -> Addr {
        Addr::Unix(path)
    }
}

impl From<&Path> for Addr {
    fn from(path: &Path) -> Addr {
        Addr::Unix(path.to_owned())
    }
}

impl From<&Addr> for Addr {
    fn from(addr: &Addr) -> Addr {
        addr.clone()
    }
}

/// The end of a read.
#[derive(Clone, Copy, Debug)]
pub enum Until<'a> {
    /// The other side has closed or reset the connection.
    Close,
    /// One reply is complete by its headers, or by the close if they have no length.
    Reply,
    /// This many replies are complete.
    Replies(usize),
    /// The empty line after the headers of one reply.
    Head,
    /// This text has arrived.
    Text(&'a str),
    /// No bytes have arrived for this long, or the other side has closed.
    Quiet(Duration),
}

impl Until<'_> {
    /// The end in the received bytes; `None` if it has not arrived.
    fn end(self, received: &[u8], closed: bool) -> Option<usize> {
        match self {
            Until::Close | Until::Quiet(_) => closed.then_some(received.len()),
            Until::Reply => replies_end(received, 1, closed),
            Until::Replies(count) => replies_end(received, count, closed),
            Until::Head => head_end(received),
            Until::Text(text) => find(received, text.as_bytes()).map(|start| start + text.len()),
        }
    }
}

/// Connects, sends these bytes, and returns the bytes received.
///
/// # Errors
///
/// When the end has not arrived within [`LIMIT`], or the connection is closed before it.
pub fn exchange(addr: impl Into<Addr>, request: &[u8], until: Until<'_>) -> Result<Vec<u8>> {
    let mut connection = Connection::open(addr)?;
    connection.send(request)?;
    connection.read(until)
}

/// A connection that is read and written step by step.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// The bytes received after the end of the last read.
    received: Vec<u8>,
    closed: bool,
}

impl Connection {
    /// Connects.
    pub fn open(addr: impl Into<Addr>) -> Result<Connection> {
        let addr = addr.into();
        let stream = Stream::open(&addr).with_context(|| format!("connecting to {addr}"))?;
        Ok(Connection {
            stream,
            received: Vec::new(),
            closed: false,
        })
    }

    /// Sends these bytes. A connection that the other side has closed is no error, because its reply may have
    /// arrived.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self
            .stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush())
        {
            Err(error) if is_close(&error) => Ok(()),
            result => result.context("sending"),
        }
    }

    /// Closes the writing side.
    pub fn finish_sending(&self) -> Result<()> {
        Ok(self.stream.shutdown_write()?)
    }

    /// Reads up to the end. Further bytes are kept for the next read.
    pub fn read(&mut self, until: Until<'_>) -> Result<Vec<u8>> {
        self.read_within(LIMIT, until)
    }

    /// Like [`Connection::read`], with this time limit.
    pub fn read_within(&mut self, limit: Duration, until: Until<'_>) -> Result<Vec<u8>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = until.end(&self.received, self.closed) {
                return Ok(self.received.drain(..end).collect());
            }
            ensure!(
                !self.closed,
                "closed before {until:?}, after {}",
                shown(&self.received)
            );
            let remaining = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !remaining.is_zero(),
                "no {until:?} within {limit:?}, but {}",
                shown(&self.received)
            );
            let quiet = if let Until::Quiet(quiet) = until {
                quiet
            } else {
                remaining
            };
            let silent = !self.receive(quiet.min(remaining))?;
            if silent && quiet < remaining {
                return Ok(std::mem::take(&mut self.received));
            }
        }
    }

    /// Reads one reply.
    pub fn read_reply(&mut self) -> Result<Reply> {
        Reply::parse(&self.read(Until::Reply)?)
    }

    /// Whether the other side has closed the connection. Does not wait.
    pub fn is_closed(&mut self) -> Result<bool> {
        self.stream.set_nonblocking(true)?;
        while !self.closed && self.receive_next()? {}
        self.stream.set_nonblocking(false)?;
        Ok(self.closed)
    }

    /// Receives the next bytes. Returns false if none arrive within `patience`.
    fn receive(&mut self, patience: Duration) -> Result<bool> {
        self.stream.set_read_timeout(patience)?;
        self.receive_next()
    }

    fn receive_next(&mut self) -> Result<bool> {
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if is_close(&error) => self.closed = true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receiving"),
        }
        Ok(true)
    }
}

fn is_close(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn open(addr: &Addr) -> io::Result<Stream> {
        Ok(match addr {
            Addr::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, LIMIT)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(LIMIT))?;
                Stream::Tcp(stream)
            }
            Addr::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(LIMIT))?;
                Stream::Unix(stream)
            }
        })
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_nonblocking(nonblocking),
            Stream::Unix(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.flush(),
            Stream::Unix(stream) => stream.flush(),
        }
    }
}

/// A reply byte for byte: the header lines in their order and case, and the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status line.
    pub status_line: String,
    /// The status.
    pub status: u16,
    /// The header lines.
    pub header_lines: Vec<String>,
    /// All bytes after the empty line, with the chunk sizes.
    pub body: Vec<u8>,
}

impl Reply {
    /// Parses a single reply. All bytes after the empty line are its body.
    pub fn parse(bytes: &[u8]) -> Result<Reply> {
        let end =
            head_end(bytes).with_context(|| format!("not a whole reply: {}", shown(bytes)))?;
        // Latin-1 keeps all bytes of a header.
        let head: String = bytes[..end - 4].iter().copied().map(char::from).collect();
        let mut lines = head.split("\r\n").map(str::to_owned);
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok());
        Ok(Reply {
            status: status.with_context(|| format!("no status in {status_line:?}"))?,
            status_line,
            header_lines: lines.collect(),
            body: bytes[end..].to_vec(),
        })
    }

    /// Parses replies that follow one another, with the interim ones (1xx).
    pub fn parse_all(mut bytes: &[u8]) -> Result<Vec<Reply>> {
        let mut replies = Vec::new();
        while !bytes.is_empty() {
            let end = single_reply_end(bytes, true)
                .with_context(|| format!("not whole: {}", shown(bytes)))?;
            replies.push(Reply::parse(&bytes[..end])?);
            bytes = &bytes[end..];
        }
        Ok(replies)
    }

    /// The value of the first header with this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).into_iter().next()
    }

    /// The values of all headers with this name, in any case.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let pairs = self
            .header_lines
            .iter()
            .filter_map(|line| line.split_once(':'));
        pairs
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    /// The header names in their order and case.
    pub fn header_names(&self) -> Vec<&str> {
        self.header_lines
            .iter()
            .map(|line| line.split(':').next().unwrap_or_default())
            .collect()
    }

    /// Whether the body has the transfer encoding `chunked`.
    pub fn is_chunked(&self) -> bool {
        self.header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    /// The body without chunk sizes. Of an incomplete stream, it has the complete chunks.
    pub fn content(&self) -> Vec<u8> {
        if self.is_chunked() {
            Chunks::of(&self.body).content
        } else {
            self.body.clone()
        }
    }

    /// [`Reply::content`] as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content()).into_owned()
    }

    /// The status line and the header lines, without `Date`.
    pub fn head_without_date(&self) -> Vec<&str> {
        let is_date = |line: &&str| {
            line.split(':')
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("date"))
        };
        let headers = self
            .header_lines
            .iter()
            .map(String::as_str)
            .filter(|line| !is_date(line));
        std::iter::once(self.status_line.as_str())
            .chain(headers)
            .collect()
    }

    /// The daemon's reply to a request for `target`, as the proxy forwards it. Pages get headers that keep them
    /// out of other sites' frames, logs get one that keeps reverse proxies from buffering, and redirects are
    /// relative.
    pub fn with_proxy_headers(mut self, target: &str) -> Reply {
        let path = target.split('?').next().unwrap_or_default();
        for line in &mut self.header_lines {
            if let Some(location) = line.strip_prefix("Location: ") {
                let relative = match location.rsplit_once("?message=") {
                    Some((_, message)) => format!("./?message={message}"),
                    None => format!("./{}/", path.trim_start_matches('/')),
                };
                *line = format!("Location: {relative}");
            }
        }
        let mut added = Vec::new();
        if path.starts_with("/mainlogtail") {
            added.push("X-Accel-Buffering: no");
        }
        let kind = self.header("content-type").unwrap_or_default();
        if kind.starts_with("text/html") || kind.starts_with("text/plain") {
            added.extend([
                "Referrer-Policy: same-origin",
                "X-Frame-Options: SAMEORIGIN",
                "Content-Security-Policy: frame-ancestors 'self'",
            ]);
        }
        if self.status == 200 {
            self.header_lines
                .extend(added.into_iter().map(str::to_owned));
        }
        self
    }

    /// Fails with both replies unless they are the same, byte for byte, except for the `Date`.
    pub fn ensure_same_as(&self, other: &Reply) -> Result<()> {
        let same = self.head_without_date() == other.head_without_date() && self.body == other.body;
        ensure!(
            same,
            "two replies differ\n--- one:\n{self:?}\n--- the other:\n{other:?}"
        );
        Ok(())
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status_line)?;
        for line in &self.header_lines {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", shown(&self.body))
    }
}

/// The bytes as text for a failure message.
pub fn shown(bytes: &[u8]) -> String {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]);
    let rest = if bytes.len() > SHOWN_BYTES {
        " ..."
    } else {
        ""
    };
    format!("{} bytes: {start:?}{rest}", bytes.len())
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    find(bytes, b"\r\n\r\n").map(|start| start + 4)
}

/// The end of the first `count` final replies. Interim ones (1xx) do not count.
fn replies_end(bytes: &[u8], count: usize, closed: bool) -> Option<usize> {
    let mut end = 0;
    let mut missing = count;
    while missing > 0 {
        let rest = &bytes[end..];
        let interim = is_interim(&Reply::parse(&rest[..head_end(rest)?]).ok()?);
        end += single_reply_end(rest, closed)?;
        missing -= usize::from(!interim);
    }
    Some(end)
}

fn single_reply_end(bytes: &[u8], closed: bool) -> Option<usize> {
    let start = head_end(bytes)?;
    let head = Reply::parse(&bytes[..start]).ok()?;
    let body = &bytes[start..];
    let length = if is_interim(&head) {
        Some(0)
    } else if head.is_chunked() {
        Chunks::of(body).end
    } else if let Some(length) = head.header("content-length") {
        length.parse().ok().filter(|length| *length <= body.len())
    } else if matches!(head.status, 204 | 304) {
        Some(0)
    } else {
        closed.then_some(body.len())
    };
    length.map(|length| start + length)
}

fn is_interim(head: &Reply) -> bool {
    (100..200).contains(&head.status) && head.status != 101
}

/// A parsed chunked body.
#[derive(Default)]
struct Chunks {
    content: Vec<u8>,
    /// The end of the body; `None` if it has not arrived.
    end: Option<usize>,
}

impl Chunks {
    fn of(body: &[u8]) -> Chunks {
        let mut chunks = Chunks::default();
        let mut at = 0;
        while let Some((data, after)) = next_chunk(body, at) {
            if data.is_empty() {
                chunks.end = trailers_end(body, at);
                break;
            }
            chunks.content.extend_from_slice(data);
            at = after;
        }
        chunks
    }
}

/// The chunk that begins at `at`, and the beginning of the next one. The last chunk is empty.
fn next_chunk(body: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let line_end = at + find(&body[at..], b"\r\n")?;
    let line = std::str::from_utf8(&body[at..line_end]).ok()?;
    let length = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
    let start = line_end + 2;
    let data = body.get(start..start.checked_add(length)?)?;
    let after = start + length + 2;
    (length == 0 || body.len() >= after).then_some((data, after))
}

/// The end of the body: after the last chunk's line follow the trailers, usually none, and an empty line.
fn trailers_end(body: &[u8], last_chunk: usize) -> Option<usize> {
    let mut at = last_chunk + find(&body[last_chunk..], b"\r\n")? + 2;
    loop {
        let length = find(&body[at..], b"\r\n")?;
        at += length + 2;
        if length == 0 {
            return Some(at);
        }
    }
}
