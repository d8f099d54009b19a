//! The bodies of requests: how much of a body is read, when, and how many bodies are in memory.
//!
//! Before a client is authorized, at most [`FREE_BODY`] of its body is read, and at most [`MAX_FREE`] of
//! all such bodies. The rest is not read from the network until the daemon has authorized the client.
//! Larger bodies of authorized clients wait for their share of the memory, so that clients together cannot
//! take all of it.

use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::failure::{self, Failure};
use crate::limits::{ClientSlot, Phase};

/// The largest body in bytes. Arguments of 8 MB work with the daemon itself, and each body is in memory
/// while it is handled.
pub const MAX_BODY: usize = 32 * 1024 * 1024;
/// How many bytes of a body are read before its sender is authorized. Hardly any call is larger.
pub const FREE_BODY: usize = 64 * 1024;
/// The size in bytes up to which a body needs no share, because it costs less memory than its connection.
const SMALL_BODY: usize = 8 * 1024;
/// The memory in bytes for all free bodies that are not small. Further bodies are read only after their
/// senders are authorized.
pub const MAX_FREE: usize = 4 * 1024 * 1024;
/// The size in bytes above which bodies are handled one at a time.
pub const LARGE_BODY: usize = 4 * 1024 * 1024;
/// The memory in bytes for all bodies that are neither small nor large, after their senders are authorized.
pub const MAX_HELD: usize = 4 * LARGE_BODY;

/// The longest time between two pieces of a body.
pub const BODY_PAUSE: Duration = Duration::from_secs(20);
/// The longest time for a whole body.
pub const BODY_TIME: Duration = Duration::from_secs(5 * 60);

/// The number of bytes that one permit stands for.
const UNIT: usize = 1024;

/// The permits for free bodies that are not small.
static FREE: Semaphore = Semaphore::const_new(MAX_FREE / UNIT);
/// The permits for bodies of authorized senders that are neither small nor large.
static HELD: Semaphore = Semaphore::const_new(MAX_HELD / UNIT);
/// The permit for one large body.
static LARGE: Semaphore = Semaphore::const_new(1);

/// The extension of a request whose sender was already authorized.
#[derive(Clone, Copy, Debug)]
pub struct AuthorizedSender;

/// A body in memory, with its share of the memory for bodies.
#[derive(Debug)]
pub struct HeldBody {
    /// The whole body; empty for a request without a `Content-Length`.
    pub bytes: Bytes,
    _share: Option<SemaphorePermit<'static>>,
}

impl HeldBody {
    /// No body.
    pub fn empty() -> Self {
        HeldBody {
            bytes: Bytes::new(),
            _share: None,
        }
    }
}

/// Reads the body of the request with this `head`. It calls `authorize` once before it reads more than the
/// free part. A body without a `Content-Length` is read to its end and dropped, because the daemon does not
/// accept it.
///
/// # Errors
/// The failure of `authorize`, or the refusal of a body that is too large, too slow or incomplete. The rest of
/// the body is then unread.
pub async fn read(
    head: &Parts,
    body: Body,
    slot: &ClientSlot,
    authorize: impl AsyncFnOnce() -> Result<(), Failure>,
) -> Result<HeldBody, Failure> {
    let authorize = async || match head.extensions.get::<AuthorizedSender>() {
        Some(AuthorizedSender) => Ok(()),
        None => {
            slot.set(Phase::Unauthorized);
            authorize().await.map_err(closed)
        }
    };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut reader = BodyReader {
        body,
        bytes: BytesMut::new(),
        length: 0,
        keeps_bytes: head.headers.contains_key(CONTENT_LENGTH),
        deadline: Instant::now() + BODY_TIME,
    };
    slot.set(Phase::Body);
    let room = free_share(announced);
    let first = match &room {
        None => Ok(Progress::More),
        Some(_) => reader.read_up_to(FREE_BODY, announced).await,
    };
    match &first {
        Ok(Progress::Whole) => return Ok(reader.into_held(room.flatten())),
        // The client has disconnected, so it cannot be authorized.
        Err(Failure::Unread(StatusCode::BAD_REQUEST, _)) => {}
        Ok(Progress::More) | Err(_) => authorize().await?,
    }
    first?;
    if announced > MAX_BODY {
        return Err(too_large());
    }
    // The connection limit may close a connection in this phase in favour of others.
    slot.set(Phase::Body);
    let share = share(announced).await;
    reader.deadline = Instant::now() + BODY_TIME;
    match reader.read_up_to(MAX_BODY, announced).await? {
        Progress::Whole => Ok(reader.into_held(share)),
        Progress::More => Err(too_large()),
    }
}

/// The share for a body of this length before its sender is authorized: `None` if there is no room now, and
/// `Some(None)` for a small body, which needs no share.
fn free_share(length: usize) -> Option<Option<SemaphorePermit<'static>>> {
    if length <= SMALL_BODY {
        return Some(None);
    }
    let is_free = length <= FREE_BODY;
    is_free
        .then(|| FREE.try_acquire_many(units(length)).ok())?
        .map(Some)
}

/// Waits for the share of a body of this length; none for a small body, which needs none.
async fn share(length: usize) -> Option<SemaphorePermit<'static>> {
    if length <= SMALL_BODY {
        return None;
    }
    // An error would mean that the semaphore is closed, which never happens.
    if length > LARGE_BODY {
        return LARGE.acquire().await.ok();
    }
    HELD.acquire_many(units(length)).await.ok()
}

fn units(length: usize) -> u32 {
    u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// How far a body was read.
enum Progress {
    /// The body was read to its end.
    Whole,
    /// The limit was reached before the end.
    More,
}

/// The state of a body that is being read.
struct BodyReader {
    body: Body,
    bytes: BytesMut,
    /// The number of bytes that have arrived.
    length: usize,
    keeps_bytes: bool,
    deadline: Instant,
}

impl BodyReader {
    /// Reads until the body has more than `limit` bytes or ends. Memory for the `announced` length is
    /// reserved at once.
    async fn read_up_to(&mut self, limit: usize, announced: usize) -> Result<Progress, Failure> {
        if self.keeps_bytes {
            self.bytes.reserve(announced);
        }
        loop {
            let moment = self.deadline.min(Instant::now() + BODY_PAUSE);
            let frame = match timeout_at(moment, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(Progress::Whole),
                Ok(Some(Err(_))) => {
                    return Err(unread(
                        StatusCode::BAD_REQUEST,
                        "the request body did not arrive",
                    ));
                }
                Err(_) => {
                    return Err(unread(
                        StatusCode::REQUEST_TIMEOUT,
                        "the request body took too long",
                    ));
                }
            };
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            self.length += piece.len();
            if self.keeps_bytes {
                self.bytes.extend_from_slice(&piece);
            }
            if self.length > limit {
                return Ok(Progress::More);
            }
        }
    }

    fn into_held(self, share: Option<SemaphorePermit<'static>>) -> HeldBody {
        HeldBody {
            bytes: self.bytes.freeze(),
            _share: share,
        }
    }
}

fn too_large() -> Failure {
    unread(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("a request body may have {MAX_BODY} bytes"),
    )
}

/// The failure for a request that was not read to its end.
fn unread(status: StatusCode, text: &str) -> Failure {
    Failure::Unread(status, text.to_owned())
}

fn closed(failure: Failure) -> Failure {
    Failure::Reply(Box::new(failure::closing(failure.into_response())))
}
