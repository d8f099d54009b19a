//! One of the outputs of a process, copied to the same output of this command.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::client::error::Error;
use crate::client::log_stream::{BURST, Seen, burst};
use crate::client::verbs::Session;
use crate::fault::NO_FILE;
use crate::xmlrpc::Value;

/// Between attempts to open the stream.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The end of a log comes this fast: an idle daemon looks after its streams once a second.
const LAST_OUTPUT: Duration = Duration::from_secs(3);
/// The daemon is kept awake by a call so often, while the end of a log is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// An output of a process.
pub struct Output<'a> {
    session: &'a Session,
    namespec: &'a str,
    channel: &'static str,
    /// The log's size before the process was started; nothing where there was no log.
    before: Option<u64>,
    first: RefCell<Option<Incoming>>,
    /// How much was copied.
    copied: Cell<u64>,
    /// When something last was.
    last: Cell<Instant>,
    /// Something is being printed: a reader may take his time.
    is_writing: Cell<bool>,
    seen: RefCell<Seen>,
    /// A stream broke off, and what was copied cannot be counted any more.
    has_broken: Cell<bool>,
}

impl<'a> Output<'a> {
    /// Opens the stream of a process that was not started yet.
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
            before: None,
            first: RefCell::default(),
            copied: Cell::new(0),
            last: Cell::new(Instant::now()),
            is_writing: Cell::new(false),
            seen: RefCell::default(),
            has_broken: Cell::new(false),
        };
        let Some(size) = output.size().await? else {
            return Ok(output);
        };
        match session.server.follow(namespec, channel).await {
            Ok(stream) => {
                output.before = Some(size);
                *output.first.get_mut() = Some(stream);
            }
            // The size of a file that is not there is 0 (`supervisor/options.py`, `tailFile`).
            Err(Error::Status { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(output)
    }

    /// How large the log is; nothing where there is none. Reads none of it: it may be binary.
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

    /// Copies what the process writes, for as long as it is waited for.
    ///
    /// # Errors
    /// When this command's own output is gone.
    pub async fn copy(&self) -> Result<Infallible, Error> {
        let mut stream = match self.first.take() {
            Some(stream) => stream,
            None => self.begin_late().await?,
        };
        // The stream begins with the end of what was there before.
        let mut old = self.before.unwrap_or_default().min(BURST as u64);
        loop {
            while let Some(Ok(frame)) = stream.frame().await {
                if let Ok(data) = frame.into_data() {
                    let skipped = old.min(data.len() as u64);
                    old -= skipped;
                    let (before, data) =
                        data.split_at(usize::try_from(skipped).unwrap_or_default());
                    self.seen.borrow_mut().remember(before);
                    self.take(data).await?;
                }
            }
            self.has_broken.set(true);
            sleep(FIRST_PAUSE).await;
            stream = self.stream().await;
            let burst = burst(&mut stream).await;
            let fresh = self.seen.borrow().fresh(&burst).to_vec();
            self.take(&fresh).await?;
        }
    }

    /// The stream, as soon as there is one.
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

    /// Opens the stream of a log that was not there before the process was started, and takes what
    /// was written meanwhile, as far as that is text.
    async fn begin_late(&self) -> Result<Incoming, Error> {
        let mut stream = self.stream().await;
        let burst = burst(&mut stream).await;
        let text = if burst.len() < BURST {
            String::new()
        } else {
            self.text().await
        };
        // The stream goes on behind what it began with.
        let end = text
            .as_bytes()
            .windows(burst.len().max(1))
            .rposition(|window| window == burst);
        self.take(&text.as_bytes()[..end.unwrap_or_default()])
            .await?;
        self.take(&burst).await?;
        Ok(stream)
    }

    /// The whole log, where it is text.
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
        self.seen.borrow_mut().remember(data);
        self.is_writing.set(true);
        let length = data.len() as u64;
        let data = data.to_vec();
        // A reader who takes none keeps no signal from being seen.
        let written = match self.channel {
            "stderr" => spawn_blocking(move || write(io::stderr().lock(), &data)),
            _ => spawn_blocking(move || write(io::stdout().lock(), &data)),
        };
        let written = written.await.map_err(io::Error::other);
        self.is_writing.set(false);
        self.copied.set(self.copied.get() + length);
        self.last.set(Instant::now());
        written?
    }

    /// Waits until all is copied that a process has written which has ended: the daemon has it in
    /// the log by then (`supervisor/process.py`, `drain`).
    pub async fn completed(&self) {
        self.last.set(Instant::now());
        while self.is_writing.get() || self.last.get().elapsed() < LAST_OUTPUT {
            // A reader who takes his time is waited for.
            if self.is_writing.get() {
                sleep(LOOK).await;
                continue;
            }
            // The process may be gone, and its log with it.
            let Ok(Some(size)) = self.size().await else {
                return;
            };
            let written = size.saturating_sub(self.before.unwrap_or_default());
            if !self.has_broken.get() && self.copied.get() >= written {
                return;
            }
            sleep(LOOK).await;
        }
    }
}

fn write(mut out: impl Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.flush()
}
