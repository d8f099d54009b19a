//! Limits repeated warnings: the first one is logged, and then their number each minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Peer;

/// How often the number of repetitions is logged.
const INTERVAL: Duration = Duration::from_secs(60);
/// The largest number of floods with counts of their own. Further sources are counted together.
const MAX_FLOODS: usize = 64;

/// The key of repeated warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flood {
    /// The text of the warning.
    pub message: &'static str,
    /// The peer that causes it, if the warning is about one.
    pub source: Option<Peer>,
}

/// The repetitions since the last log line.
#[derive(Debug, Default)]
struct Count {
    repetitions: u64,
    /// Whether the end was logged in this interval.
    has_ended: bool,
}

/// All repeated warnings.
#[derive(Debug, Default)]
pub struct Floods(Mutex<HashMap<Flood, Count>>);

impl Floods {
    /// Calls `log` for the first warning of a flood, and counts repetitions. Their number is logged each minute
    /// until a minute passes without one.
    pub fn warn(self: &Arc<Self>, flood: Flood, log: impl FnOnce()) {
        let flood = {
            let mut counts = self.counts();
            let flood = if counts.len() < MAX_FLOODS || counts.contains_key(&flood) {
                flood
            } else {
                Flood {
                    source: None,
                    ..flood
                }
            };
            if let Some(count) = counts.get_mut(&flood) {
                count.repetitions += 1;
                return;
            }
            counts.insert(flood, Count::default());
            flood
        };
        log();
        tokio::spawn(count_each_minute(self.clone(), flood));
    }

    /// Logs the number of repetitions at once, because their cause has ended. A repetition within the same
    /// minute is counted again.
    pub fn end(&self, message: &'static str) {
        let mut ended = Vec::new();
        for (flood, count) in self.counts().iter_mut() {
            if flood.message == message && count.repetitions > 0 && !count.has_ended {
                ended.push((*flood, std::mem::take(&mut count.repetitions)));
                count.has_ended = true;
            }
        }
        for (flood, more) in ended {
            log_count(flood, more);
        }
    }

    /// Logs all numbers that were not logged yet.
    pub fn flush(&self) {
        let counts = std::mem::take(&mut *self.counts());
        for (flood, count) in counts {
            if count.repetitions > 0 {
                log_count(flood, count.repetitions);
            }
        }
    }

    /// Logs the number of repetitions in this interval. Returns false if there were none, which ends the flood.
    fn tick(&self, flood: Flood) -> bool {
        let mut counts = self.counts();
        let more = counts.get_mut(&flood).map(|count| {
            count.has_ended = false;
            std::mem::take(&mut count.repetitions)
        });
        match more {
            Some(more) if more > 0 => {
                drop(counts);
                log_count(flood, more);
                true
            }
            _ => {
                counts.remove(&flood);
                false
            }
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Flood, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the number of repetitions each minute, until a minute passes without one.
async fn count_each_minute(floods: Arc<Floods>, flood: Flood) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !floods.tick(flood) {
            return;
        }
    }
}

fn log_count(flood: Flood, more: u64) {
    let peer = flood.source.map(Peer::source);
    tracing::warn!(peer, "{}: {more} times more", flood.message);
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Flood = Flood {
        message: "answered 502",
        source: None,
    };

    /// The number of repetitions that were not logged yet.
    fn unlogged(floods: &Floods) -> Option<u64> {
        floods.counts().get(&AWAY).map(|count| count.repetitions)
    }

    #[test]
    fn a_source_is_an_address_or_an_account() {
        for (peer, source) in [
            (Peer::Tcp(([127, 0, 0, 1], 9002).into()), "127.0.0.1"),
            (Peer::Tcp("[::1]:9002".parse().expect("an address")), "::1"),
            (Peer::Account(0), "uid:0"),
            (Peer::Unknown, "?"),
        ] {
            assert_eq!(peer.source(), source);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_logged_once_and_then_counted() {
        let floods = Arc::new(Floods::default());
        let mut logged = 0;
        for _ in 0..50 {
            floods.warn(AWAY, || logged += 1);
        }
        assert_eq!((logged, unlogged(&floods)), (1, Some(49)));
        tokio::time::sleep(INTERVAL + Duration::from_secs(1)).await;
        assert_eq!(unlogged(&floods), Some(0), "logged after a minute");
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(unlogged(&floods), None, "over after a minute without");
        floods.warn(AWAY, || logged += 1);
        assert_eq!(logged, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_logged_once_a_minute() {
        let floods = Arc::new(Floods::default());
        let mut logged = 0;
        for _ in 0..3 {
            floods.warn(AWAY, || logged += 1);
        }
        floods.end("answered 403");
        assert_eq!(unlogged(&floods), Some(2));
        floods.end(AWAY.message);
        assert_eq!(unlogged(&floods), Some(0));
        floods.warn(AWAY, || logged += 1);
        floods.end(AWAY.message);
        assert_eq!((logged, unlogged(&floods)), (1, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_are_counted_together() {
        let floods = Arc::new(Floods::default());
        let mut logged = 0;
        for uid in 0..1000 {
            let source = Some(Peer::Account(uid));
            floods.warn(Flood { source, ..AWAY }, || logged += 1);
        }
        assert_eq!(logged, MAX_FLOODS + 1);
        assert_eq!(floods.counts().len(), MAX_FLOODS + 1);
    }
}
