//! Limits the number of connections and the time of each, so that a slow or stuck client does not block
//! the others.
//!
//! Every connection has a [`ClientSlot`]. When all slots are taken, a new connection gets the slot of
//! another one, which is closed: first one without an authorized request that is idle, slow or waiting,
//! then an authorized one that is idle or slow. The new connection is refused only if all others are
//! authorized and wait for the daemon.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, Sleep, sleep};

/// How many connections are open at a time.
pub const MAX_CONNECTIONS: usize = 1024;
/// How long the head of a request may take after its first byte.
pub const HEAD_TIME: Duration = Duration::from_secs(20);
/// How long a client may leave the bytes of a reply unread.
pub const UNREAD_TIME: Duration = Duration::from_secs(10 * 60);

/// A connection does not count as slow for this long after its phase has begun.
const FRESH: Duration = Duration::from_secs(1);
/// How long the rest of a request is read after an early reply.
pub const LINGER_TIME: Duration = Duration::from_secs(5);
/// How many bytes one read takes. hyper's buffer grows with the size of the reads and never shrinks.
const READ_SIZE: usize = 8 * 1024;
/// A head of more bytes than this is large; [`MAX_LARGE_HEADS`] limits how many connections have one.
pub const LARGE_HEAD: usize = 16 * 1024;
/// How many connections with a large head there may be at a time.
pub const MAX_LARGE_HEADS: usize = 32;
/// The permits for large heads.
static LARGE_HEADS: Semaphore = Semaphore::const_new(MAX_LARGE_HEADS);

/// How many reads a lingering connection makes before other tasks run.
const READS_AT_A_TIME: usize = 16;

/// The reply to a head that does not end within [`HEAD_TIME`].
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/// The reply to a connection for which there is no slot.
pub const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between two requests.
    Idle,
    /// The client sends the head of a request.
    Head,
    /// The client sends the body of a request.
    Body,
    /// The client waits for the reply to a request that has not been authorized.
    Unauthorized,
    /// The client waits for the reply to an authorized request, or reads it.
    Busy,
}

/// The slots of all connections.
#[derive(Debug, Default)]
pub struct ClientSlots {
    taken: Mutex<HashMap<u64, Arc<State>>>,
    next: AtomicU64,
}

/// The state of one connection. Requests have clones of it.
#[derive(Clone, Debug)]
pub struct ClientSlot(Arc<State>);

#[derive(Debug)]
struct State {
    lingers: AtomicBool,
    /// Whether a request of the connection was authorized.
    is_authorized: AtomicBool,
    /// The phase, and when it began.
    phase: Mutex<(Phase, Instant)>,
    evicted: Notify,
    endless: Notify,
    large_head: Mutex<Option<SemaphorePermit<'static>>>,
}

impl State {
    fn phase(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSlot {
    /// A slot outside of [`ClientSlots`], for a request without a connection, as in tests.
    pub fn alone() -> Self {
        ClientSlot(Arc::new(State {
            lingers: AtomicBool::new(false),
            is_authorized: AtomicBool::new(false),
            phase: Mutex::new((Phase::Idle, Instant::now())),
            evicted: Notify::new(),
            endless: Notify::new(),
            large_head: Mutex::default(),
        }))
    }

    /// Sets the phase, which begins now.
    pub fn set(&self, phase: Phase) {
        *self.0.phase() = (phase, Instant::now());
    }

    /// Records that a request was authorized, and sets [`Phase::Busy`].
    pub fn set_authorized(&self) {
        self.0.is_authorized.store(true, Ordering::Relaxed);
        self.set(Phase::Busy);
    }

    /// Whether the connection has had a large head.
    pub fn had_large_head(&self) -> bool {
        self.large_head().is_some()
    }

    /// Counts the connection as one with a large head, until it ends. Returns false if there are
    /// [`MAX_LARGE_HEADS`] already.
    fn may_have_large_head(&self) -> bool {
        let mut large_head = self.large_head();
        if large_head.is_none() {
            *large_head = LARGE_HEADS.try_acquire().ok();
        }
        large_head.is_some()
    }

    fn large_head(&self) -> MutexGuard<'_, Option<SemaphorePermit<'static>>> {
        let permit = self.0.large_head.lock();
        permit.unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the connection read and drop the rest of the request after the reply. A client that is still
    /// sending would lose the reply if the connection were closed at once.
    pub fn linger(&self) {
        self.0.lingers.store(true, Ordering::Relaxed);
    }

    /// Waits until the slot is needed for a new connection.
    pub async fn evicted(&self) {
        self.0.evicted.notified().await;
    }

    /// Records that the current reply is a stream without an end.
    pub fn set_endless(&self) {
        self.0.endless.notify_one();
    }

    /// Waits until the connection has a reply without an end.
    pub async fn endless(&self) {
        self.0.endless.notified().await;
    }

    fn phase(&self) -> Phase {
        self.0.phase().0
    }

    /// `body`, which sets [`Phase::Idle`] when it is sent or dropped.
    pub fn keep_busy(self, body: Body) -> Body {
        holding(body, IdleOnDrop(self))
    }
}

/// Sets [`Phase::Idle`] when it is dropped.
struct IdleOnDrop(ClientSlot);

impl Drop for IdleOnDrop {
    fn drop(&mut self) {
        self.0.set(Phase::Idle);
    }
}

/// `body`, with a `guard` that is dropped when the body is sent or dropped.
pub fn holding<T: Send + Unpin + 'static>(body: Body, guard: T) -> Body {
    Body::new(Holding {
        body,
        _guard: guard,
    })
}

impl ClientSlots {
    /// Takes a slot, if need be that of another connection. `None` if no connection can be evicted.
    pub fn take(self: &Arc<Self>) -> Option<TakenSlot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= MAX_CONNECTIONS {
            evict(&mut taken)?;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = ClientSlot::alone();
        taken.insert(number, slot.0.clone());
        Some(TakenSlot {
            slot,
            number,
            slots: self.clone(),
        })
    }

    /// Evicts a connection that is idle, slow or not authorized, if there is one.
    pub fn make_room(&self) {
        evict(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How many slots are taken.
    pub fn count(&self) -> usize {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

fn evict(taken: &mut HashMap<u64, Arc<State>>) -> Option<()> {
    let number = eviction_candidate(taken)?;
    taken.remove(&number)?.evicted.notify_one();
    Some(())
}

/// The connection to evict: one without an authorized request before an authorized one, then by the rank
/// of its phase, then the one that has been in its phase for the longest time. A busy one is never evicted.
fn eviction_candidate(taken: &HashMap<u64, Arc<State>>) -> Option<u64> {
    let candidates = taken.iter().filter_map(|(number, state)| {
        let (phase, since) = *state.phase();
        let rank = match phase {
            Phase::Unauthorized => 2,
            Phase::Busy => return None,
            _ if since.elapsed() < FRESH => 3,
            Phase::Idle | Phase::Head => 0,
            Phase::Body => 1,
        };
        let is_authorized = state.is_authorized.load(Ordering::Relaxed);
        Some((is_authorized, rank, since, *number))
    });
    candidates.min().map(|(.., number)| number)
}

/// A slot that is freed on drop.
#[derive(Debug)]
pub struct TakenSlot {
    /// The slot.
    pub slot: ClientSlot,
    number: u64,
    slots: Arc<ClientSlots>,
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        self.slots
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.number);
    }
}

struct Holding<T> {
    body: Body,
    _guard: T,
}

impl<T: Unpin> hyper::body::Body for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection with limits on its time: of a request's head, of unread bytes and of lingering.
#[derive(Debug)]
pub struct TimedStream<S> {
    stream: S,
    slot: ClientSlot,
    head_timer: Option<Pin<Box<Sleep>>>,
    /// How many bytes of the current head have arrived.
    head_size: usize,
    unread_timer: Option<Pin<Box<Sleep>>>,
    linger_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedStream<S> {
    /// A connection on `slot`.
    pub fn new(stream: S, slot: ClientSlot) -> Self {
        TimedStream {
            stream,
            slot,
            head_timer: None,
            head_size: 0,
            unread_timer: None,
            linger_timer: None,
        }
    }

    /// The connection.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut piece =
            ReadBuf::new(buffer.initialize_unfilled_to(READ_SIZE.min(buffer.remaining())));
        let read = Pin::new(&mut this.stream).poll_read(cx, &mut piece);
        let count = piece.filled().len();
        match this.slot.phase() {
            Phase::Idle if count > 0 => {
                this.slot.set(Phase::Head);
                this.head_timer = Some(Box::pin(sleep(HEAD_TIME)));
                this.head_size = count;
            }
            Phase::Head => {
                // The timer is polled at every read: a client that sends single bytes has no more time.
                let is_late = this.head_timer.as_mut().is_some_and(|timer| {
                    timer.deadline() <= Instant::now() || timer.as_mut().poll(cx).is_ready()
                });
                if is_late && (read.is_pending() || count > 0) {
                    return this.reject(cx, TOO_SLOW);
                }
                // The phase is still `Head`, so the head is longer than the bytes counted so far.
                if count > 0 && this.head_size > LARGE_HEAD && !this.slot.may_have_large_head() {
                    return this.reject(cx, TOO_MANY);
                }
                this.head_size += count;
            }
            Phase::Idle | Phase::Body | Phase::Unauthorized | Phase::Busy => {
                this.head_timer = None;
            }
        }
        buffer.advance(count);
        read
    }
}

impl<S: AsyncWrite + Unpin> TimedStream<S> {
    /// Replies to a head that does not end, and reports the end of input. It does not wait until the reply
    /// is written, because such a client may not read, either.
    fn reject(&mut self, cx: &mut Context<'_>, reply: &[u8]) -> Poll<io::Result<()>> {
        let _ = Pin::new(&mut self.stream).poll_write(cx, reply);
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> TimedStream<S> {
    /// The result of a write; the error `TimedOut` if it has been pending for [`UNREAD_TIME`].
    fn limit_unread<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.unread_timer = None;
            return result;
        }
        let timer = self
            .unread_timer
            .get_or_insert_with(|| Box::pin(sleep(UNREAD_TIME)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> TimedStream<S> {
    /// Reads and drops bytes until the client closes the connection, or for [`LINGER_TIME`].
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .linger_timer
            .get_or_insert_with(|| Box::pin(sleep(LINGER_TIME)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 16 * 1024];
        for _ in 0..READS_AT_A_TIME {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        // Other tasks run, and the timer is polled, before the next reads.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limit_unread(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.limit_unread(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        if matches!(result, Poll::Ready(Ok(()))) && self.slot.0.lingers.load(Ordering::Relaxed) {
            return self.linger(cx).map(Ok);
        }
        self.limit_unread(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.limit_unread(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_head_of_single_bytes_has_no_more_time() {
        let (server, mut client) = tokio::io::duplex(64);
        let mut stream = TimedStream::new(server, ClientSlot::alone());
        let sending = tokio::spawn(async move {
            let mut reply = [0; 12];
            for _ in 0..100 {
                client.write_all(b"X").await.ok()?;
                tokio::time::sleep(HEAD_TIME / 10).await;
            }
            client.read_exact(&mut reply).await.ok()?;
            Some(reply)
        });
        let start = Instant::now();
        let mut buffer = [0; 8];
        while stream.read(&mut buffer).await.unwrap() > 0 {}
        let time = start.elapsed();
        assert!(time >= HEAD_TIME && time < HEAD_TIME * 2, "{time:?}");
        drop(stream);
        let _ = sending.await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_within_a_head_times_out_and_silence_between_requests_does_not() {
        let (server, mut client) = tokio::io::duplex(1024);
        let mut stream = TimedStream::new(server, ClientSlot::alone());
        let mut buffer = [0; 8];
        let idle = tokio::time::timeout(HEAD_TIME * 100, stream.read(&mut buffer)).await;
        assert!(idle.is_err());
        client.write_all(b"GET").await.unwrap();
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
        drop(stream);
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_times_out() {
        let (server, _client) = tokio::io::duplex(16);
        let mut stream = TimedStream::new(server, ClientSlot::alone());
        let start = Instant::now();
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= UNREAD_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_get_the_slots_of_the_slowest() {
        let slots = Arc::new(ClientSlots::default());
        let mut all: Vec<TakenSlot> = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            all.push(slots.take().unwrap());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        for slot in &all {
            slot.slot.set(Phase::Busy);
        }
        all[8].slot.set_authorized();
        all[8].slot.set(Phase::Idle);
        all[9].slot.set(Phase::Unauthorized);
        tokio::time::advance(Duration::from_millis(1)).await;
        all[3].slot.set(Phase::Body);
        tokio::time::advance(Duration::from_millis(1)).await;
        all[7].slot.set(Phase::Idle);
        tokio::time::advance(Duration::from_millis(1)).await;
        all[5].slot.set(Phase::Head);
        tokio::time::advance(FRESH).await;
        all[13].slot.set(Phase::Idle);
        let mut newcomers = Vec::new();
        for expected in [7, 5, 3, 9, 13, 8] {
            let newcomer = slots.take().unwrap();
            newcomer.slot.set(Phase::Busy);
            newcomers.push(newcomer);
            tokio::time::timeout(Duration::from_secs(1), all[expected].slot.evicted())
                .await
                .unwrap();
        }
        assert!(slots.take().is_none());
        assert_eq!(slots.count(), MAX_CONNECTIONS);
        all.clear();
        newcomers.clear();
        assert_eq!(slots.count(), 0);
    }
}
