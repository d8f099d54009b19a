//! The stream of a process's log, and how one goes on where the one before broke off.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

/// What a stream begins with, at most (`supervisor/http.py`, `tail_f_producer`).
pub const BURST: usize = 1024;
/// The beginning of a stream has come when nothing more does for so long.
const BURST_PAUSE: Duration = Duration::from_millis(150);

/// What a stream begins with.
pub async fn burst(stream: &mut Incoming) -> Vec<u8> {
    let mut burst = Vec::new();
    while burst.len() < BURST
        && let Ok(Some(Ok(frame))) = timeout(BURST_PAUSE, stream.frame()).await
    {
        if let Ok(data) = frame.into_data() {
            burst.extend_from_slice(&data);
        }
    }
    burst
}

/// The last bytes that were read, to know them again at the beginning of the next stream.
#[derive(Debug, Default)]
pub struct Seen(VecDeque<u8>);

impl Seen {
    /// Takes note of what was read.
    pub fn remember(&mut self, data: &[u8]) {
        self.0.extend(data);
        let surplus = self.0.len().saturating_sub(BURST);
        self.0.drain(..surplus);
    }

    /// The part of a stream's beginning that was not read before. Nothing in common means that more
    /// was written meanwhile than a stream begins with: then half a line at the start is left out.
    pub fn fresh<'b>(&self, burst: &'b [u8]) -> &'b [u8] {
        let seen: Vec<u8> = self.0.iter().copied().collect();
        let known = (1..=burst.len().min(seen.len()))
            .rev()
            .find(|length| seen.ends_with(&burst[..*length]));
        match known {
            Some(length) => &burst[length..],
            None if burst.len() < BURST => burst,
            None => {
                let start = burst.iter().position(|byte| *byte == b'\n');
                &burst[start.map_or(0, |at| at + 1)..]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_behind_what_was_read() {
        let long = "x".repeat(BURST - 4) + "\nabc";
        for (read, burst, expected) in [
            ("a\nb\n", "b\nc\n", "c\n"),
            ("a\nb\n", "a\nb\n", ""),
            ("", "a\n", "a\n"),
            ("a\n", "b\n", "b\n"),
            ("a\n", long.as_str(), "abc"),
        ] {
            let mut seen = Seen::default();
            seen.remember(read.as_bytes());
            assert_eq!(seen.fresh(burst.as_bytes()), expected.as_bytes(), "{read}");
        }
    }
}
