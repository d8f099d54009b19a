//! What a connection does with a client that closes its side, or vanishes, before the answer has come.

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

/// How long a client that has closed its side may still wait for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a client may leave unconfirmed what it is sent, where it matters that it is there.
const SILENCE: Duration = Duration::from_secs(10);

/// Counts the answers that are under way on a connection, by its clones. Holds whether it matters that
/// the client is there: a power cut or a pulled cable says nothing.
#[derive(Clone, Default)]
pub(super) struct Underway(Arc<AtomicBool>);

impl Underway {
    /// From the next bytes on, the client has to confirm what it is sent.
    pub(super) fn expect_confirmation(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The connection and the service hold one each.
    fn is_any(&self) -> bool {
        Arc::strong_count(&self.0) > 2
    }
}

/// A stream that is in no hurry to say that the client has closed its side.
///
/// hyper drops a request as soon as it hears that. But many a script sends its request and says
/// that it is done (`socat` does), and the daemon has answered before it hears it.
pub(super) struct HalfCloseGrace {
    stream: Box<dyn Stream>,
    underway: Underway,
    grace: Option<Pin<Box<Sleep>>>,
}

impl HalfCloseGrace {
    pub(super) fn new(stream: Box<dyn Stream>, underway: Underway) -> Self {
        Self {
            stream,
            underway,
            grace: None,
        }
    }

    /// Has the kernel end the connection of a client that has to confirm, and does not.
    fn limit_silence(&self) -> io::Result<()> {
        if self.underway.0.swap(false, Ordering::Relaxed)
            && let Some(tcp) = self.stream.tcp()
        {
            SockRef::from(tcp).set_tcp_user_timeout(Some(SILENCE))?;
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
        if buffer.filled().len() == before && self.underway.is_any() {
            let grace = self
                .grace
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            ready!(grace.as_mut().poll(cx));
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
        self.limit_silence()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.limit_silence()?;
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
