//! How many clients there may be, and how long each may take: one that is slow or stuck holds up
//! no other.
//!
//! Every connection has a [`ClientSlot`]. When all are taken, a newcomer gets that of whoever was never
//! let in and idles, is slow or waits, and then that of whoever was let in and idles or is slow. Only where
//! all were let in and wait for the daemon is it turned away.

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

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 1024;
/// How long the head of a request may take from its first byte on.
pub const HEAD_TIME: Duration = Duration::from_secs(20);
/// How long a client may leave bytes unread that wait for it.
pub const UNREAD_TIME: Duration = Duration::from_secs(10 * 60);

/// Whoever has sent nothing for so short a time is not slow yet: it may just have come.
const FRESH: Duration = Duration::from_secs(1);
/// How long is read after an answer that came before the request had ended.
pub const LINGER_TIME: Duration = Duration::from_secs(5);
/// What is read at a time. A connection's buffer grows with what a reading fills, and stays.
const READ_SIZE: usize = 8 * 1024;
/// Larger heads than this are few, and each may be as large as is taken.
pub const LARGE_HEAD: usize = 16 * 1024;
/// So many connections with a large head there may be at a time.
pub const MAX_LARGE_HEADS: usize = 32;
/// Who may have one.
static LARGE_HEADS: Semaphore = Semaphore::const_new(MAX_LARGE_HEADS);

/// How many pieces are read of that before others have their turn.
const READS_AT_A_TIME: usize = 16;

/// What a head that does not end is answered.
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/// What a connection too many is answered.
pub const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between requests.
    Idle,
    /// In the head of a request.
    Head,
    /// In the body of a request.
    Body,
    /// Waiting for its answer, and nobody has let its sender in.
    Stranger,
    /// Waiting for its answer, or reading it.
    Busy,
}

/// All slots.
#[derive(Debug, Default)]
pub struct ClientSlots {
    taken: Mutex<HashMap<u64, Arc<State>>>,
    next: AtomicU64,
}

/// One connection's place. It is free again when the slot and its clones in requests are gone.
#[derive(Clone, Debug)]
pub struct ClientSlot(Arc<State>);

#[derive(Debug)]
struct State {
    lingers: AtomicBool,
    /// Whether anybody has let in whoever is there.
    was_let_in: AtomicBool,
    phase: Mutex<(Phase, Instant)>,
    asked_to_leave: Notify,
    endless: Notify,
    large_head: Mutex<Option<SemaphorePermit<'static>>>,
}

impl State {
    fn phase(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSlot {
    /// A slot of no pool, for requests that come without a connection.
    pub fn alone() -> Self {
        ClientSlot(Arc::new(State {
            lingers: AtomicBool::new(false),
            was_let_in: AtomicBool::new(false),
            phase: Mutex::new((Phase::Idle, Instant::now())),
            asked_to_leave: Notify::new(),
            endless: Notify::new(),
            large_head: Mutex::default(),
        }))
    }

    /// Takes note of what the connection is at now.
    pub fn set(&self, phase: Phase) {
        *self.0.phase() = (phase, Instant::now());
    }

    /// Takes note that whoever is there was let in, and waits for his answer or reads it.
    pub fn let_in(&self) {
        self.0.was_let_in.store(true, Ordering::Relaxed);
        self.set(Phase::Busy);
    }

    /// Whether a head was counted as a large one.
    pub fn had_large_head(&self) -> bool {
        self.large_head().is_some()
    }

    /// Counts the connection as one with a large head, until it ends. False where there are too many
    /// already.
    fn may_have_large_head(&self) -> bool {
        let mut large_head = self.large_head();
        if large_head.is_none() {
            *large_head = LARGE_HEADS.try_acquire().ok();
        }
        large_head.is_some()
    }

    fn large_head(&self) -> MutexGuard<'_, Option<SemaphorePermit<'static>>> {
        let held = self.0.large_head.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what still comes in read after the answer: the client may be sending and would lose an
    /// answer to a connection that is shut on it.
    pub fn linger(&self) {
        self.0.lingers.store(true, Ordering::Relaxed);
    }

    /// Done when the slot is needed for somebody else.
    pub async fn asked_to_leave(&self) {
        self.0.asked_to_leave.notified().await;
    }

    /// Takes note that the answer under way never ends by itself.
    pub fn set_endless(&self) {
        self.0.endless.notify_one();
    }

    /// Done when the connection has an answer that never ends by itself.
    pub async fn endless(&self) {
        self.0.endless.notified().await;
    }

    fn phase(&self) -> Phase {
        self.0.phase().0
    }

    /// The same answer, which keeps the connection busy until it was passed on.
    pub fn keep_busy(self, body: Body) -> Body {
        holding(body, IdleAfter(self))
    }
}

/// Ends a connection's being busy.
struct IdleAfter(ClientSlot);

impl Drop for IdleAfter {
    fn drop(&mut self) {
        self.0.set(Phase::Idle);
    }
}

/// The same body, with something that is dropped when it is through.
pub fn holding<T: Send + Unpin + 'static>(body: Body, held: T) -> Body {
    Body::new(Holding { body, _held: held })
}

impl ClientSlots {
    /// A slot, in somebody else's place if need be; none where nobody can be asked to leave.
    pub fn take(self: &Arc<Self>) -> Option<TakenSlot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= MAX_CONNECTIONS {
            ask_to_leave(&mut taken)?;
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

    /// Asks somebody to leave who idles, is slow or was not let in, if anybody does.
    pub fn make_room(&self) {
        ask_to_leave(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How many are taken.
    pub fn count(&self) -> usize {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

fn ask_to_leave(taken: &mut HashMap<u64, Arc<State>>) -> Option<()> {
    let slowest = slowest(taken)?;
    taken.remove(&slowest)?.asked_to_leave.notify_one();
    Some(())
}

/// Whoever was never let in goes first, where he idles, sends slowly, waits or has just come, and then
/// whoever was.
fn slowest(taken: &HashMap<u64, Arc<State>>) -> Option<u64> {
    let candidates = taken.iter().filter_map(|(number, state)| {
        let (phase, since) = *state.phase();
        let rank = match phase {
            Phase::Stranger => 2,
            Phase::Busy => return None,
            _ if since.elapsed() < FRESH => 3,
            Phase::Idle | Phase::Head => 0,
            Phase::Body => 1,
        };
        let was_let_in = state.was_let_in.load(Ordering::Relaxed);
        Some((was_let_in, rank, since, *number))
    });
    candidates.min().map(|(.., number)| number)
}

/// A slot that is given back on drop.
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
    _held: T,
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

/// A connection that may not dawdle.
#[derive(Debug)]
pub struct TimedStream<S> {
    stream: S,
    slot: ClientSlot,
    head: Option<Pin<Box<Sleep>>>,
    /// How much of the present head has come.
    head_size: usize,
    unread: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedStream<S> {
    /// A connection on `slot`.
    pub fn new(stream: S, slot: ClientSlot) -> Self {
        TimedStream {
            stream,
            slot,
            head: None,
            head_size: 0,
            unread: None,
            linger: None,
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
        let came = piece.filled().len();
        match this.slot.phase() {
            Phase::Idle if came > 0 => {
                this.slot.set(Phase::Head);
                this.head = Some(Box::pin(sleep(HEAD_TIME)));
                this.head_size = came;
            }
            Phase::Head => {
                // The deadline stands even if bytes keep coming.
                let is_late = this.head.as_mut().is_some_and(|timer| {
                    timer.deadline() <= Instant::now() || timer.as_mut().poll(cx).is_ready()
                });
                if is_late && (read.is_pending() || came > 0) {
                    return this.answer(cx, TOO_SLOW);
                }
                // What came before has not ended the head.
                if came > 0 && this.head_size > LARGE_HEAD && !this.slot.may_have_large_head() {
                    return this.answer(cx, TOO_MANY);
                }
                this.head_size += came;
            }
            Phase::Idle | Phase::Body | Phase::Stranger | Phase::Busy => this.head = None,
        }
        buffer.advance(came);
        read
    }
}

impl<S: AsyncWrite + Unpin> TimedStream<S> {
    /// Answers a head that does not end, and reads no more. As much is written as fits now: whoever
    /// sends so may also not read.
    fn answer(&mut self, cx: &mut Context<'_>, answer: &[u8]) -> Poll<io::Result<()>> {
        let _ = Pin::new(&mut self.stream).poll_write(cx, answer);
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> TimedStream<S> {
    /// Gives up on a reader who takes nothing for too long.
    fn patient<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let timer = self
            .unread
            .get_or_insert_with(|| Box::pin(sleep(UNREAD_TIME)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> TimedStream<S> {
    /// Reads what nobody wants until the client has ended.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .linger
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
        // Others have their turn, and the time is looked at, before more is read.
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
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.patient(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.patient(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        if matches!(shut, Poll::Ready(Ok(()))) && self.slot.0.lingers.load(Ordering::Relaxed) {
            return self.linger(cx).map(Ok);
        }
        self.patient(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.patient(cx, written)
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
    async fn a_head_must_end_in_time_however_it_drips() {
        let (here, mut there) = tokio::io::duplex(64);
        let slot = ClientSlot::alone();
        let mut paced = TimedStream::new(here, slot.clone());
        let dripping = tokio::spawn(async move {
            let mut answer = [0; 12];
            for _ in 0..100 {
                there.write_all(b"X").await.ok()?;
                tokio::time::sleep(HEAD_TIME / 10).await;
            }
            there.read_exact(&mut answer).await.ok()?;
            Some(answer)
        });
        let began = Instant::now();
        let mut buffer = [0; 8];
        while paced.read(&mut buffer).await.unwrap() > 0 {}
        let took = began.elapsed();
        assert!(took >= HEAD_TIME && took < HEAD_TIME * 2, "{took:?}");
        drop(paced);
        let _ = dripping.await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_in_a_head_is_answered_and_silence_between_heads_is_not() {
        let (here, mut there) = tokio::io::duplex(1024);
        let mut paced = TimedStream::new(here, ClientSlot::alone());
        let mut buffer = [0; 8];
        let idle = tokio::time::timeout(HEAD_TIME * 100, paced.read(&mut buffer)).await;
        assert!(idle.is_err());
        there.write_all(b"GET").await.unwrap();
        assert_eq!(paced.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(paced.read(&mut buffer).await.unwrap(), 0);
        drop(paced);
        let mut answer = String::new();
        there.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_nothing_is_given_up() {
        let (here, _there) = tokio::io::duplex(16);
        let mut paced = TimedStream::new(here, ClientSlot::alone());
        let began = Instant::now();
        let error = paced.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= UNREAD_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_get_the_seats_of_the_slowest() {
        let slots = Arc::new(ClientSlots::default());
        let mut all: Vec<TakenSlot> = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            all.push(slots.take().unwrap());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        for slot in &all {
            slot.slot.set(Phase::Busy);
        }
        all[8].slot.let_in();
        all[8].slot.set(Phase::Idle);
        all[9].slot.set(Phase::Stranger);
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
            tokio::time::timeout(Duration::from_secs(1), all[expected].slot.asked_to_leave())
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
