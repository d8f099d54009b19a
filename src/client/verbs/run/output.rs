//! Copies standard output or standard error of a process to the same output of this command.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::client::error::Error;
use crate::client::log_stream::{BURST, LastRead, read_burst};
use crate::client::verbs::Session;
use crate::fault::NO_FILE;
use crate::xmlrpc::Value;

/// The first and the longest pause between attempts to open the stream.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A stream that brings nothing for this long has brought the end of the log. An idle daemon serves its
/// streams once a second.
const LAST_OUTPUT: Duration = Duration::from_secs(3);
/// The pause between two calls while the command waits for the end of the log. A call wakes the daemon,
/// which then serves its streams.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Standard output or standard error of a process.
pub struct Output<'a> {
    session: &'a Session,
    namespec: &'a str,
    channel: &'static str,
    /// The log's size in bytes before the process started; `None` if there was no log.
    initial_size: Option<u64>,
    /// The stream that was opened before the process started.
    first_stream: RefCell<Option<Incoming>>,
    /// How many bytes were copied.
    copied: Cell<u64>,
    /// When bytes were last copied.
    last_copy: Cell<Instant>,
    /// Whether bytes are being written. The reader of this command's output may be slow.
    is_writing: Cell<bool>,
    last_read: RefCell<LastRead>,
    /// Whether a stream broke off. Bytes may be missing then, so that `copied` does not show the end.
    has_broken: Cell<bool>,
}

impl<'a> Output<'a> {
    /// Opens the stream of a process that has not been started.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn open(
        session: &'a Session,
        namespec: &'a str,
        channel: &'static str,
    ) -> Result<Self, Error> {
        let mut output = Output {
            session,
            namespec,
            channel,
            initial_size: None,
            first_stream: RefCell::default(),
            copied: Cell::new(0),
            last_copy: Cell::new(Instant::now()),
            is_writing: Cell::new(false),
            last_read: RefCell::default(),
            has_broken: Cell::new(false),
        };
        let Some(size) = output.size().await? else {
            return Ok(output);
        };
        match session.server.follow(namespec, channel).await {
            Ok(stream) => {
                output.initial_size = Some(size);
                *output.first_stream.get_mut() = Some(stream);
            }
            // The daemon returns the size 0 for a missing file (`supervisor/options.py`, `tailFile`).
            Err(Error::Status { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(output)
    }

    /// The size of the log in bytes; `None` if there is no log. Reads no bytes, because the daemon cannot
    /// return binary ones.
    async fn size(&self) -> Result<Option<u64>, Error> {
        let method = match self.channel {
            "stderr" => "supervisor.tailProcessStderrLog",
            _ => "supervisor.tailProcessStdoutLog",
        };
        let params = [self.namespec.into(), 0.into(), 0.into()];
        match self.session.server.try_call(method, &params).await? {
            Ok(tail) => {
                let size = tail
                    .as_array()
                    .and_then(|tail| tail.get(1))
                    .and_then(Value::as_int);
                Ok(size.and_then(|size| u64::try_from(size).ok()))
            }
            Err(fault) if fault.code == NO_FILE => Ok(None),
            Err(fault) => Err(Error::Fault {
                fault,
                subject: self.namespec.to_owned(),
            }),
        }
    }

    /// Copies the output of the process. Returns only an error.
    ///
    /// # Errors
    /// When this command's output cannot be written.
    pub async fn copy(&self) -> Result<Infallible, Error> {
        let mut stream = match self.first_stream.take() {
            Some(stream) => stream,
            None => self.begin_late().await?,
        };
        // The stream begins with bytes that were in the log before the process started.
        let mut old = self.initial_size.unwrap_or_default().min(BURST as u64);
        loop {
            while let Some(Ok(frame)) = stream.frame().await {
                if let Ok(data) = frame.into_data() {
                    let skipped = old.min(data.len() as u64);
                    old -= skipped;
                    let (old_data, data) =
                        data.split_at(usize::try_from(skipped).unwrap_or_default());
                    self.last_read.borrow_mut().push(old_data);
                    self.take(data).await?;
                }
            }
            self.has_broken.set(true);
            sleep(FIRST_PAUSE).await;
            stream = self.stream().await;
            let burst = read_burst(&mut stream).await;
            let new_part = self.last_read.borrow().new_part(&burst).to_vec();
            self.take(&new_part).await?;
        }
    }

    /// Opens the stream; tries again until the server has it.
    async fn stream(&self) -> Incoming {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(stream) = self
                .session
                .server
                .follow(self.namespec, self.channel)
                .await
            {
                return stream;
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    /// Opens the stream of a log that did not exist before the process started. Copies what the process
    /// wrote before the stream's burst, if that is text.
    async fn begin_late(&self) -> Result<Incoming, Error> {
        let mut stream = self.stream().await;
        let burst = read_burst(&mut stream).await;
        let text = if burst.len() < BURST {
            String::new()
        } else {
            self.text().await
        };
        // The stream continues behind its burst.
        let end = text
            .as_bytes()
            .windows(burst.len().max(1))
            .rposition(|window| window == burst);
        self.take(&text.as_bytes()[..end.unwrap_or_default()])
            .await?;
        self.take(&burst).await?;
        Ok(stream)
    }

    /// The whole log; empty if the daemon cannot return it as text.
    async fn text(&self) -> String {
        let method = match self.channel {
            "stderr" => "supervisor.readProcessStderrLog",
            _ => "supervisor.readProcessStdoutLog",
        };
        let params = [self.namespec.into(), 0.into(), 0.into()];
        let text = self.session.server.call(method, &params, self.namespec);
        let text = text.await.unwrap_or(Value::Nil);
        text.as_str().unwrap_or_default().to_owned()
    }

    async fn take(&self, data: &[u8]) -> io::Result<()> {
        self.last_read.borrow_mut().push(data);
        self.is_writing.set(true);
        let length = data.len() as u64;
        let data = data.to_vec();
        // A slow reader blocks the write; on another thread, the command still handles signals.
        let writing = match self.channel {
            "stderr" => spawn_blocking(move || write(io::stderr().lock(), &data)),
            _ => spawn_blocking(move || write(io::stdout().lock(), &data)),
        };
        let result = writing.await.map_err(io::Error::other);
        self.is_writing.set(false);
        self.copied.set(self.copied.get() + length);
        self.last_copy.set(Instant::now());
        result?
    }

    /// Waits until the whole output of a process that has ended is copied. The daemon has written it to
    /// the log by then (`supervisor/process.py`, `drain`).
    pub async fn completed(&self) {
        self.last_copy.set(Instant::now());
        while self.is_writing.get() || self.last_copy.get().elapsed() < LAST_OUTPUT {
            if self.is_writing.get() {
                sleep(POLL_PAUSE).await;
                continue;
            }
            // The process may have been removed, and its log with it.
            let Ok(Some(size)) = self.size().await else {
                return;
            };
            let expected = size.saturating_sub(self.initial_size.unwrap_or_default());
            if !self.has_broken.get() && self.copied.get() >= expected {
                return;
            }
            sleep(POLL_PAUSE).await;
        }
    }
}

fn write(mut out: impl Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.flush()
}
