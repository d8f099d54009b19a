//! The bodies of requests: how much of them is read, at which moment, and how many are held.
//!
//! Of a caller whom nobody has let in yet, [`FREE_BODY`] are read and no more, and of many of them
//! together [`MAX_FREE`]: the rest waits in the network until the daemon has judged them. What is let in and still large waits for its share of
//! the memory, so that no number of callers can take all of it.

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

/// The largest body that is taken: arguments of 8 MB work with the daemon itself, and each body is
/// held in memory while it is looked at.
pub const MAX_BODY: usize = 32 * 1024 * 1024;
/// What is read of a body before anybody has let its sender in. Hardly any call is larger.
pub const FREE_BODY: usize = 64 * 1024;
/// Smaller ones cost less than their connections.
const SMALL_BODY: usize = 8 * 1024;
/// How much memory the bodies may take together that are free and not small. What comes beyond is read
/// once its sender was let in.
pub const MAX_FREE: usize = 4 * 1024 * 1024;
/// Larger bodies than this are handled one at a time.
pub const LARGE_BODY: usize = 4 * 1024 * 1024;
/// How much memory all bodies may take together that are neither free nor large.
pub const MAX_HELD: usize = 4 * LARGE_BODY;

/// How long a body may pause.
pub const BODY_PAUSE: Duration = Duration::from_secs(20);
/// How long a body may take in all.
pub const BODY_TIME: Duration = Duration::from_secs(5 * 60);

/// What is counted of a body at a time.
const HELD_UNIT: usize = 1024;

/// Who may hold one of those that are free and not small.
static FREE: Semaphore = Semaphore::const_new(MAX_FREE / HELD_UNIT);
/// Who may hold one of the bodies that are not free.
static HELD: Semaphore = Semaphore::const_new(MAX_HELD / HELD_UNIT);
/// Who may hold the large one.
static LARGE: Semaphore = Semaphore::const_new(1);

/// Stands among a request's extensions once its sender was let in.
#[derive(Clone, Copy, Debug)]
pub struct LetIn;

/// A body, and its share of the memory for bodies.
#[derive(Debug)]
pub struct Held {
    /// All of it; nothing where the request does not say how long it is.
    pub bytes: Bytes,
    _share: Option<SemaphorePermit<'static>>,
}

impl Held {
    /// No body at all.
    pub fn nothing() -> Self {
        Held {
            bytes: Bytes::new(),
            _share: None,
        }
    }
}

/// Reads the body of the request with this `head`. Before it reads more than is free, it `judge`s the
/// sender, once. A body without a length is read to its end and not kept, because the daemon does not
/// take it.
///
/// # Errors
/// The answer to a body that is too large, too slow or not whole, and to a sender who is not let in:
/// that one comes first. The rest of the body is still to come.
pub async fn read(
    head: &Parts,
    body: Body,
    slot: &ClientSlot,
    judge: impl AsyncFnOnce() -> Result<(), Failure>,
) -> Result<Held, Failure> {
    let judge = async || match head.extensions.get::<LetIn>() {
        Some(LetIn) => Ok(()),
        None => {
            slot.set(Phase::Unauthorized);
            judge().await.map_err(closed)
        }
    };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut reading = Reading {
        body,
        bytes: BytesMut::new(),
        length: 0,
        is_kept: head.headers.contains_key(CONTENT_LENGTH),
        deadline: Instant::now() + BODY_TIME,
    };
    slot.set(Phase::Body);
    let room = free_share(announced);
    let first = match &room {
        None => Ok(Progress::More),
        Some(_) => reading.go_on(announced, FREE_BODY).await,
    };
    match &first {
        Ok(Progress::Whole) => return Ok(reading.held(room.flatten())),
        // Nobody is there to be judged.
        Err(Failure::Unread(StatusCode::BAD_REQUEST, _)) => {}
        Ok(Progress::More) | Err(_) => judge().await?,
    }
    first?;
    if announced > MAX_BODY {
        return Err(too_large());
    }
    // Whoever waits here may have to make room for others.
    slot.set(Phase::Body);
    let share = share(announced).await;
    reading.deadline = Instant::now() + BODY_TIME;
    match reading.go_on(announced, MAX_BODY).await? {
        Progress::Whole => Ok(reading.held(share)),
        Progress::More => Err(too_large()),
    }
}

/// Room for a body of this length whose sender may not have been let in, if there is any now. A small
/// one needs no share.
fn free_share(length: usize) -> Option<Option<SemaphorePermit<'static>>> {
    if length <= SMALL_BODY {
        return Some(None);
    }
    let is_free = length <= FREE_BODY;
    is_free
        .then(|| FREE.try_acquire_many(units(length)).ok())?
        .map(Some)
}

/// Waits until there is room for a body of this length.
async fn share(length: usize) -> Option<SemaphorePermit<'static>> {
    if length <= SMALL_BODY {
        return None;
    }
    // Neither is ever closed.
    if length > LARGE_BODY {
        return LARGE.acquire().await.ok();
    }
    HELD.acquire_many(units(length)).await.ok()
}

fn units(length: usize) -> u32 {
    u32::try_from(length.div_ceil(HELD_UNIT)).unwrap_or(u32::MAX)
}

/// How far a body was read.
enum Progress {
    /// To its end.
    Whole,
    /// To the limit, and there is more.
    More,
}

/// A body on its way in.
struct Reading {
    body: Body,
    bytes: BytesMut,
    /// How much of it has come.
    length: usize,
    is_kept: bool,
    deadline: Instant,
}

impl Reading {
    /// Reads up to `limit` bytes in all, in one piece of memory for those that were `announced`.
    async fn go_on(&mut self, announced: usize, limit: usize) -> Result<Progress, Failure> {
        if self.is_kept {
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
            if self.is_kept {
                self.bytes.extend_from_slice(&piece);
            }
            if self.length > limit {
                return Ok(Progress::More);
            }
        }
    }

    fn held(self, share: Option<SemaphorePermit<'static>>) -> Held {
        Held {
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

/// A request that was not read to its end.
fn unread(status: StatusCode, text: &str) -> Failure {
    Failure::Unread(status, text.to_owned())
}

fn closed(failure: Failure) -> Failure {
    Failure::Reply(Box::new(failure::closing(failure.into_response())))
}
