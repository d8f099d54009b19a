//! The daemon's health: one probe answers all callers that ask at the same time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The shortest time between two probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a daemon may take to answer. While it has not answered, no other probe starts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The last probe.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Probe>>);

/// A probe and its result, which is `None` until the daemon answers. If the probe's task has panicked,
/// the channel is closed.
#[derive(Clone, Debug)]
struct Probe {
    started: Instant,
    result: watch::Receiver<Option<bool>>,
}

impl Probe {
    /// Returns whether a new caller may use this probe.
    fn is_recent(&self) -> bool {
        let is_running = self.result.borrow().is_none() && self.result.has_changed().is_ok();
        is_running || self.started.elapsed() < PROBE_INTERVAL
    }
}

impl Health {
    /// Returns whether the daemon answers. `probe` asks it, and continues if all callers hang up.
    pub(super) async fn is_up<F>(&self, probe: impl FnOnce() -> F) -> bool
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let mut probe = self.probe(probe);
        let result = probe.result.wait_for(Option::is_some);
        let result = timeout_at(probe.started + PROBE_TIMEOUT, result).await;
        result.is_ok_and(|result| result.is_ok_and(|is_up| *is_up == Some(true)))
    }

    /// Returns the last probe if it is recent, and starts another one otherwise.
    fn probe<F>(&self, probe: impl FnOnce() -> F) -> Probe
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probe) = last.as_ref().filter(|probe| probe.is_recent()) {
            return probe.clone();
        }
        let (sender, result) = watch::channel(None);
        let probe = probe();
        tokio::spawn(async move { sender.send_replace(Some(probe.await)) });
        let probe = Probe {
            started: Instant::now(),
            result,
        };
        *last = Some(probe.clone());
        probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn one_probe_answers_all_callers_within_a_second() {
        let (health, probes) = (Arc::new(Health::default()), Arc::new(AtomicUsize::new(0)));
        let call = |duration: Duration, is_up: bool| {
            let (health, probes) = (health.clone(), probes.clone());
            tokio::spawn(async move {
                let probe = || async move {
                    probes.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(duration).await;
                    is_up
                };
                health.is_up(probe).await
            })
        };
        let second = Duration::from_secs(1);
        let calls: Vec<_> = (0..1000).map(|_| call(second * 5, true)).collect();
        // The probe continues after its first caller has hung up.
        tokio::time::sleep(second / 10).await;
        calls[0].abort();
        for call in calls.into_iter().skip(1) {
            assert!(call.await.unwrap());
        }
        assert_eq!(probes.load(Ordering::Relaxed), 1);
        assert!(!call(Duration::ZERO, false).await.unwrap());
        assert!(!call(Duration::ZERO, true).await.unwrap());
        tokio::time::sleep(second).await;
        assert!(call(Duration::ZERO, true).await.unwrap());
        assert_eq!(probes.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_without_an_answer_is_down_and_is_not_repeated() {
        let health = Health::default();
        let start = Instant::now();
        assert!(!health.is_up(std::future::pending::<bool>).await);
        assert_eq!(start.elapsed(), PROBE_TIMEOUT);
        assert!(!health.is_up(|| async { true }).await);
        assert_eq!(start.elapsed(), PROBE_TIMEOUT);
    }
}
