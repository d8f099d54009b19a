//! Handles a client that closes its side of the connection, or vanishes, before it has its reply.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::listener::Stream;

/// How long a client that has closed its side may still wait for its reply.
const GRACE: Duration = Duration::from_secs(1);

/// How long the peer of a connection with a user timeout may leave bytes unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Counts the pending replies of a connection by its clones. Its value is whether the connection is about
/// to get a TCP user timeout.
#[derive(Clone, Default)]
pub(super) struct PendingReplies(Arc<AtomicBool>);

impl PendingReplies {
    /// Sets a TCP user timeout before the next write: the kernel then closes the connection of a client
    /// that vanished without a FIN, by a power cut for instance.
    pub(super) fn set_user_timeout(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether there are any. The connection and the service have a clone each.
    fn is_any(&self) -> bool {
        Arc::strong_count(&self.0) > 2
    }
}

/// A stream that delays the end of input while a reply is pending.
///
/// hyper drops a request at the end of input. But some scripts close their side after the request
/// (`socat` does) and still get a reply from the daemon, which answers before it notices.
pub(super) struct HalfCloseGrace {
    stream: Box<dyn Stream>,
    pending: PendingReplies,
    timer: Option<Pin<Box<Sleep>>>,
}

impl HalfCloseGrace {
    pub(super) fn new(stream: Box<dyn Stream>, pending: PendingReplies) -> Self {
        Self {
            stream,
            pending,
            timer: None,
        }
    }

    /// Sets the user timeout that [`PendingReplies::set_user_timeout`] has asked for.
    fn apply_user_timeout(&self) -> io::Result<()> {
        if self.pending.0.swap(false, Ordering::Relaxed)
            && let Some(tcp) = self.stream.tcp()
        {
            SockRef::from(tcp).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        }
        Ok(())
    }
}

impl AsyncRead for HalfCloseGrace {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() == before && self.pending.is_any() {
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(GRACE)));
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HalfCloseGrace {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.apply_user_timeout()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.apply_user_timeout()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
