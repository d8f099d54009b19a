//! A warning that comes again and again: a line when it begins, then counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Peer;

/// How often a count is said.
const EACH: Duration = Duration::from_secs(60);
/// Places that are told apart. Those beyond are counted together.
const MAX_PLACES: usize = 64;

/// What tells one flood from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flood {
    /// What is said of each.
    pub what: &'static str,
    /// Where it comes from, where that matters.
    pub from: Option<Peer>,
}

/// How often it came since it was last said.
#[derive(Debug, Default)]
struct Count {
    more: u64,
    /// Its end was said already.
    ended: bool,
}

/// The warnings that are counted.
#[derive(Debug, Default)]
pub struct Floods(Mutex<HashMap<Flood, Count>>);

impl Floods {
    /// Lets `say` warn where this begins, and otherwise counts: the count is said each minute as
    /// long as it goes on.
    pub fn warn(self: &Arc<Self>, flood: Flood, say: impl FnOnce()) {
        let flood = {
            let mut counts = self.counts();
            let flood = if counts.len() < MAX_PLACES || counts.contains_key(&flood) {
                flood
            } else {
                Flood {
                    from: None,
                    ..flood
                }
            };
            if let Some(count) = counts.get_mut(&flood) {
                count.more += 1;
                return;
            }
            counts.insert(flood, Count::default());
            flood
        };
        say();
        tokio::spawn(count_each_minute(self.clone(), flood));
    }

    /// Says at once how often it came, where it has come to an end. What begins again within the
    /// minute is counted on.
    pub fn end(&self, what: &'static str) {
        let mut ended = Vec::new();
        for (flood, count) in self.counts().iter_mut() {
            if flood.what == what && count.more > 0 && !count.ended {
                ended.push((*flood, std::mem::take(&mut count.more)));
                count.ended = true;
            }
        }
        for (flood, more) in ended {
            say_count(flood, more);
        }
    }

    /// Says what has not been said yet.
    pub fn flush(&self) {
        let counts = std::mem::take(&mut *self.counts());
        for (flood, count) in counts {
            if count.more > 0 {
                say_count(flood, count.more);
            }
        }
    }

    /// Says the count; whether it goes on.
    fn tick(&self, flood: Flood) -> bool {
        let mut counts = self.counts();
        let more = counts.get_mut(&flood).map(|count| {
            count.ended = false;
            std::mem::take(&mut count.more)
        });
        match more {
            Some(more) if more > 0 => {
                drop(counts);
                say_count(flood, more);
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

/// Ends after a minute without.
async fn count_each_minute(floods: Arc<Floods>, flood: Flood) {
    loop {
        tokio::time::sleep(EACH).await;
        if !floods.tick(flood) {
            return;
        }
    }
}

fn say_count(flood: Flood, more: u64) {
    let peer = flood.from.map(Peer::place);
    tracing::warn!(peer, "{}: {more} times more", flood.what);
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Flood = Flood {
        what: "answered 502",
        from: None,
    };

    /// What is still to be said of it.
    fn unsaid(floods: &Floods) -> Option<u64> {
        floods.counts().get(&AWAY).map(|count| count.more)
    }

    #[test]
    fn a_place_is_an_address_or_an_account() {
        for (peer, place) in [
            (Peer::Tcp(([127, 0, 0, 1], 9002).into()), "127.0.0.1"),
            (Peer::Tcp("[::1]:9002".parse().expect("an address")), "::1"),
            (Peer::Account(0), "uid:0"),
            (Peer::Unknown, "?"),
        ] {
            assert_eq!(peer.place(), place);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_said_once_and_then_counted() {
        let floods = Arc::new(Floods::default());
        let mut said = 0;
        for _ in 0..50 {
            floods.warn(AWAY, || said += 1);
        }
        assert_eq!((said, unsaid(&floods)), (1, Some(49)));
        tokio::time::sleep(EACH + Duration::from_secs(1)).await;
        assert_eq!(unsaid(&floods), Some(0), "said after a minute");
        tokio::time::sleep(EACH).await;
        assert_eq!(unsaid(&floods), None, "over after a minute without");
        floods.warn(AWAY, || said += 1);
        assert_eq!(said, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_said_once_a_minute() {
        let floods = Arc::new(Floods::default());
        let mut said = 0;
        for _ in 0..3 {
            floods.warn(AWAY, || said += 1);
        }
        floods.end("answered 403");
        assert_eq!(unsaid(&floods), Some(2));
        floods.end(AWAY.what);
        assert_eq!(unsaid(&floods), Some(0));
        floods.warn(AWAY, || said += 1);
        floods.end(AWAY.what);
        assert_eq!((said, unsaid(&floods)), (1, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_places_are_counted_together() {
        let floods = Arc::new(Floods::default());
        let mut said = 0;
        for uid in 0..1000 {
            let from = Some(Peer::Account(uid));
            floods.warn(Flood { from, ..AWAY }, || said += 1);
        }
        assert_eq!(said, MAX_PLACES + 1);
        assert_eq!(floods.counts().len(), MAX_PLACES + 1);
    }
}
