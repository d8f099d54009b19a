//! The stream of a process's log, and how a new stream continues where the previous one broke off.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

/// A stream begins with the end of the log, this many bytes at most (`supervisor/http.py`,
/// `tail_f_producer`).
pub const BURST: usize = 1024;
/// The burst is complete when the server sends nothing for this long.
const BURST_PAUSE: Duration = Duration::from_millis(150);

/// Reads the end of the log that `stream` begins with.
pub async fn read_burst(stream: &mut Incoming) -> Vec<u8> {
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

/// The last bytes that were read of a log, [`BURST`] at most. The next stream may begin with them.
#[derive(Debug, Default)]
pub struct LastRead(VecDeque<u8>);

impl LastRead {
    /// Records bytes that were read.
    pub fn push(&mut self, data: &[u8]) {
        self.0.extend(data);
        let surplus = self.0.len().saturating_sub(BURST);
        self.0.drain(..surplus);
    }

    /// The part of a new stream's burst that was not read before. A full burst that shares nothing with
    /// the bytes read lost lines in between; its first line may be incomplete and is left out.
    pub fn new_part<'b>(&self, burst: &'b [u8]) -> &'b [u8] {
        let last_read: Vec<u8> = self.0.iter().copied().collect();
        let overlap = (1..=burst.len().min(last_read.len()))
            .rev()
            .find(|length| last_read.ends_with(&burst[..*length]));
        match overlap {
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
    fn bytes_that_were_read_before_are_skipped() {
        let long = "x".repeat(BURST - 4) + "\nabc";
        for (read, burst, expected) in [
            ("a\nb\n", "b\nc\n", "c\n"),
            ("a\nb\n", "a\nb\n", ""),
            ("", "a\n", "a\n"),
            ("a\n", "b\n", "b\n"),
            ("a\n", long.as_str(), "abc"),
        ] {
            let mut last_read = LastRead::default();
            last_read.push(read.as_bytes());
            let new_part = last_read.new_part(burst.as_bytes());
            assert_eq!(new_part, expected.as_bytes(), "{read}");
        }
    }
}
