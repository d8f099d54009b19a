//! Whether the daemon answers, found out by one question for all who ask.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The daemon is asked no more often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A daemon that takes longer does not answer. It is not asked again before it has.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The last question, if there was one.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Question>>);

/// A question, and its answer once it is there. Without a sender there will be none.
#[derive(Clone, Debug)]
struct Question {
    asked: Instant,
    answer: watch::Receiver<Option<bool>>,
}

impl Question {
    /// Whether it answers for those who come now.
    fn is_good(&self) -> bool {
        let is_open = self.answer.borrow().is_none() && self.answer.has_changed().is_ok();
        is_open || self.asked.elapsed() < ASK_AGAIN
    }
}

impl Health {
    /// Whether the daemon answers. `ask` is what finds out, and goes on if nobody waits any more.
    pub(super) async fn is_up<F>(&self, ask: impl FnOnce() -> F) -> bool
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let mut question = self.question(ask);
        let answer = question.answer.wait_for(Option::is_some);
        let answered = timeout_at(question.asked + ANSWER_TIME, answer).await;
        answered.is_ok_and(|answer| answer.is_ok_and(|answer| *answer == Some(true)))
    }

    fn question<F>(&self, ask: impl FnOnce() -> F) -> Question
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(question) = last.as_ref().filter(|question| question.is_good()) {
            return question.clone();
        }
        let (sender, answer) = watch::channel(None);
        let asking = ask();
        tokio::spawn(async move { sender.send_replace(Some(asking.await)) });
        let question = Question {
            asked: Instant::now(),
            answer,
        };
        *last = Some(question.clone());
        question
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn one_question_answers_all_who_ask_within_a_second() {
        let (health, asked) = (Arc::new(Health::default()), Arc::new(AtomicUsize::new(0)));
        let ask = |takes: Duration, up: bool| {
            let (health, asked) = (health.clone(), asked.clone());
            tokio::spawn(async move {
                let question = || async move {
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(takes).await;
                    up
                };
                health.is_up(question).await
            })
        };
        let second = Duration::from_secs(1);
        let all: Vec<_> = (0..1000).map(|_| ask(second * 5, true)).collect();
        // Whoever hangs up takes the question from nobody.
        tokio::time::sleep(second / 10).await;
        all[0].abort();
        for asking in all.into_iter().skip(1) {
            assert!(asking.await.unwrap());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(!ask(Duration::ZERO, false).await.unwrap());
        assert!(!ask(Duration::ZERO, true).await.unwrap());
        tokio::time::sleep(second).await;
        assert!(ask(Duration::ZERO, true).await.unwrap());
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_in_time_is_down_and_nobody_asks_again() {
        let health = Health::default();
        let began = Instant::now();
        assert!(!health.is_up(std::future::pending::<bool>).await);
        assert_eq!(began.elapsed(), ANSWER_TIME);
        assert!(!health.is_up(|| async { true }).await);
        assert_eq!(began.elapsed(), ANSWER_TIME);
    }
}
