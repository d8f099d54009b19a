//! Who may have a connection to the daemon, and in which order.
//!
//! Every connection takes a slot, and there are as many slots as the daemon can spare descriptors.
//! Each kind of call has a [`Share`] of them, so that one kind never stands behind another. Within a
//! share turns go round between the clients that wait, and one client never has all of it. Checks of
//! passwords take turns in the same way, in a pool of their own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::clients::Client;

/// Calls of clients that wait for a slot at a time. Beyond it the client that has most of them
/// waiting loses its newest.
pub const MAX_QUEUED: usize = 768;
/// A follower of a log costs the daemon a connection and an open file.
const TAIL_COST: usize = 2;
/// Followers that calls which wait always leave room for.
const ASSURED_TAILS: usize = 4;
/// Logs that are followed at a time, at most: one client may follow those of fifty processes.
const MOST_TAILS: usize = 68;
/// Calls that wait which followers leave room for where there are many connections.
const LEAST_WAITING: usize = 10;
/// Connections that only watch whether the daemon has started again, or ask for its account.
const WATCHING: usize = 2;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// A call that the daemon answers at once.
    Quick,
    /// A call that waits for processes.
    Waiting,
    /// A log that is followed. There is no waiting for this one.
    Tail,
    /// A call of the proxy's own.
    Own,
    /// A reading of the daemon's files, whose reply may be read to its end after it is of use.
    Reload,
}

/// How many slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// Connections that may be kept open while nobody uses them.
    pub idle: usize,
    /// Slots of [`Share::Quick`].
    pub quick: usize,
    /// Slots of [`Share::Waiting`], if nobody follows a log.
    pub waiting: usize,
    /// Slots of [`Share::Tail`], if no call waits.
    pub tails: usize,
    /// What waiting calls and followers may cost together.
    long: usize,
    own: usize,
    reload: usize,
}

impl SlotLimits {
    /// One slot of [`Share::Quick`], for work that is done one at a time.
    pub(crate) const ONE: SlotLimits = SlotLimits {
        idle: 0,
        quick: 1,
        waiting: 0,
        tails: 0,
        long: 0,
        own: 0,
        reload: 0,
    };

    /// Divides `ceiling` connections, of which there are 16 or more.
    pub fn of(ceiling: usize) -> Self {
        let idle = (ceiling / 4).min(8);
        let own = (ceiling / 16).clamp(2, 4);
        let reload = (ceiling / 16).clamp(1, 8);
        let rest = ceiling.saturating_sub(idle + WATCHING + own + reload);
        let quick = (rest / 4).clamp(2, 32);
        let long = rest.saturating_sub(quick);
        let tails = (long / 3).max(long.saturating_sub(LEAST_WAITING) / TAIL_COST);
        let tails = tails.clamp(1, MOST_TAILS);
        let waiting = long.saturating_sub(TAIL_COST * tails.min(ASSURED_TAILS));
        SlotLimits {
            idle,
            quick,
            waiting: waiting.max(1),
            tails,
            long,
            own,
            reload,
        }
    }

    fn of_share(&self, share: Share) -> usize {
        match share {
            Share::Quick => self.quick,
            Share::Waiting => self.waiting,
            Share::Tail => self.tails,
            Share::Own => self.own,
            Share::Reload => self.reload,
        }
    }

    /// How many slots of `share` one client may have: three in four, so that another's next call
    /// waits for nobody's end.
    pub fn of_one(&self, share: Share) -> usize {
        let all = self.of_share(share);
        match share {
            Share::Own | Share::Reload => all,
            Share::Quick | Share::Waiting | Share::Tail => (all * 3).div_ceil(4),
        }
    }
}

/// A call's place in a queue.
type Ticket = u64;

/// A slot that is free for whoever has this ticket.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    ticket: Ticket,
    client: Client,
    share: Share,
}

/// The slots that are taken, and the calls that wait for one.
///
/// After each of its methods no call waits that could have a slot.
#[derive(Debug)]
struct Queue {
    limits: SlotLimits,
    taken: HashMap<Share, usize>,
    taken_by: HashMap<(Share, Client), usize>,
    lines: HashMap<Share, Line>,
    next: Ticket,
}

/// The calls that wait for one share.
#[derive(Debug, Default)]
struct Line {
    /// Whose turn is next. Each client of `calls` is here once.
    turns: VecDeque<Client>,
    calls: HashMap<Client, VecDeque<Ticket>>,
}

impl Line {
    fn push(&mut self, client: Client, ticket: Ticket) {
        let calls = self.calls.entry(client).or_default();
        if calls.is_empty() {
            self.turns.push_back(client);
        }
        calls.push_back(ticket);
    }

    /// The oldest call of the first client in turn that `may` have a slot.
    fn pop(&mut self, may: impl Fn(&Client) -> bool) -> Option<(Client, Ticket)> {
        let at = self.turns.iter().position(may)?;
        let client = self.turns.remove(at)?;
        let calls = self.calls.get_mut(&client)?;
        let ticket = calls.pop_front()?;
        if calls.is_empty() {
            self.calls.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        Some((client, ticket))
    }

    fn remove(&mut self, client: Client, ticket: Ticket) {
        let Some(calls) = self.calls.get_mut(&client) else {
            return;
        };
        calls.retain(|waiting| *waiting != ticket);
        if calls.is_empty() {
            self.calls.remove(&client);
            self.turns.retain(|other| *other != client);
        }
    }

    fn longest(&self) -> Option<(&Client, &VecDeque<Ticket>)> {
        self.calls.iter().max_by_key(|(_, calls)| calls.len())
    }

    fn len(&self) -> usize {
        self.calls.values().map(VecDeque::len).sum()
    }
}

impl Queue {
    fn new(limits: SlotLimits) -> Self {
        Queue {
            limits,
            taken: HashMap::new(),
            taken_by: HashMap::new(),
            lines: HashMap::new(),
            next: 0,
        }
    }

    fn taken(&self, share: Share) -> usize {
        self.taken.get(&share).copied().unwrap_or_default()
    }

    /// Whether a slot of `share` is free for `client`.
    fn is_free(&self, client: Client, share: Share) -> bool {
        let long = self.taken(Share::Waiting) + TAIL_COST * self.taken(Share::Tail);
        let fits = match share {
            Share::Waiting => long < self.limits.long,
            Share::Tail => long + TAIL_COST <= self.limits.long,
            Share::Quick | Share::Own | Share::Reload => true,
        };
        let key = (share, client);
        let by_one = self.taken_by.get(&key).copied().unwrap_or_default();
        fits && self.taken(share) < self.limits.of_share(share)
            && by_one < self.limits.of_one(share)
    }

    /// Takes a slot, if one is free.
    fn take(&mut self, client: Client, share: Share) -> bool {
        let is_free = self.is_free(client, share);
        if is_free {
            *self.taken.entry(share).or_default() += 1;
            *self.taken_by.entry((share, client)).or_default() += 1;
        }
        is_free
    }

    /// Has a call wait. Returns its ticket, and that of the call which has to go for it, if any has.
    fn wait(&mut self, client: Client, share: Share) -> (Ticket, Option<Ticket>) {
        let ticket = self.next;
        self.next += 1;
        self.lines.entry(share).or_default().push(client, ticket);
        let queued = [Share::Quick, Share::Waiting].map(|share| self.queued(share));
        let too_many = queued.iter().sum::<usize>() > MAX_QUEUED;
        (ticket, too_many.then(|| self.drop_newest()).flatten())
    }

    fn queued(&self, share: Share) -> usize {
        self.lines.get(&share).map(Line::len).unwrap_or_default()
    }

    /// Drops the newest call of the client that has most waiting.
    fn drop_newest(&mut self) -> Option<Ticket> {
        let lines = [Share::Quick, Share::Waiting]
            .into_iter()
            .filter_map(|share| {
                let (client, calls) = self.lines.get(&share)?.longest()?;
                Some((calls.len(), share, *client, *calls.back()?))
            });
        let (_, share, client, ticket) = lines.max_by_key(|(length, ..)| *length)?;
        self.leave(client, share, ticket);
        Some(ticket)
    }

    /// A call waits no longer.
    fn leave(&mut self, client: Client, share: Share, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&share) {
            line.remove(client, ticket);
        }
    }

    /// Takes a slot back and gives it to whoever is next.
    fn give_back(&mut self, client: Client, share: Share) -> Vec<Grant> {
        if let Some(taken) = self.taken.get_mut(&share) {
            *taken = taken.saturating_sub(1);
        }
        let key = (share, client);
        if let Some(taken) = self.taken_by.get_mut(&key) {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                self.taken_by.remove(&key);
            }
        }
        match share {
            Share::Tail => self.grant(Share::Waiting),
            share => self.grant(share),
        }
    }

    /// Exchanges a slot for one of another share, if one is free.
    fn exchange(&mut self, client: Client, from: Share, to: Share) -> Option<Vec<Grant>> {
        self.take(client, to).then(|| self.give_back(client, from))
    }

    /// Goes by other limits from now on. What is taken stays taken.
    fn resize(&mut self, limits: SlotLimits) -> Vec<Grant> {
        self.limits = limits;
        [Share::Quick, Share::Waiting, Share::Own, Share::Reload]
            .into_iter()
            .flat_map(|share| self.grant(share))
            .collect()
    }

    fn grant(&mut self, share: Share) -> Vec<Grant> {
        let mut grants = Vec::new();
        let Some(mut line) = self.lines.remove(&share) else {
            return grants;
        };
        // Each turn takes a slot, and there are only so many.
        while let Some((client, ticket)) = line.pop(|client| self.is_free(*client, share)) {
            self.take(client, share);
            grants.push(Grant {
                ticket,
                client,
                share,
            });
        }
        if !line.turns.is_empty() {
            self.lines.insert(share, line);
        }
        grants
    }
}

/// All slots of one daemon.
#[derive(Debug)]
pub(crate) struct Slots(Mutex<State>);

#[derive(Debug)]
struct State {
    queue: Queue,
    waiting: HashMap<Ticket, oneshot::Sender<Slot>>,
}

/// A slot, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    client: Client,
    share: Share,
}

/// No slot is free, and too many calls wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Slots {
    pub(crate) fn new(limits: SlotLimits) -> Self {
        Slots(Mutex::new(State {
            queue: Queue::new(limits),
            waiting: HashMap::new(),
        }))
    }

    /// Waits for a slot, as long as it takes.
    ///
    /// # Errors
    /// When as many calls wait as may, or, for a follower of a log, when there is none now.
    pub(crate) async fn take(self: &Arc<Self>, client: Client, share: Share) -> Result<Slot, Full> {
        let turn = {
            let mut state = self.state();
            if state.queue.take(client, share) {
                return Ok(self.slot(client, share));
            }
            if share == Share::Tail {
                return Err(Full);
            }
            let (sender, receiver) = oneshot::channel();
            let (ticket, dropped) = state.queue.wait(client, share);
            state.waiting.insert(ticket, sender);
            if let Some(dropped) = dropped {
                state.waiting.remove(&dropped);
            }
            Turn {
                receiver,
                place: Place {
                    slots: self.clone(),
                    client,
                    share,
                    ticket,
                },
            }
        };
        turn.come().await
    }

    /// Takes a slot where one is free now.
    pub(crate) fn take_free(self: &Arc<Self>, client: Client, share: Share) -> Option<Slot> {
        let mut state = self.state();
        let is_free = state.queue.take(client, share);
        is_free.then(|| self.slot(client, share))
    }

    /// How many descriptors of the daemon those take that are taken.
    pub(crate) fn cost(&self) -> usize {
        let state = self.state();
        let all = state.queue.taken.values().sum::<usize>();
        all + (TAIL_COST - 1) * state.queue.taken(Share::Tail)
    }

    /// Goes by other limits from now on.
    pub(crate) fn resize(self: &Arc<Self>, limits: SlotLimits) {
        let grants = {
            let mut state = self.state();
            if state.queue.limits == limits {
                return;
            }
            state.queue.resize(limits)
        };
        self.hand_over(grants);
    }

    /// The limits now.
    pub(crate) fn limits(&self) -> SlotLimits {
        self.state().queue.limits
    }

    fn hand_over(self: &Arc<Self>, grants: Vec<Grant>) {
        for grant in grants {
            let waiting = self.state().waiting.remove(&grant.ticket);
            let slot = self.slot(grant.client, grant.share);
            if let Some(waiting) = waiting {
                // Whoever has hung up this very moment leaves it to the next.
                let _ = waiting.send(slot);
            }
        }
    }

    fn slot(self: &Arc<Self>, client: Client, share: Share) -> Slot {
        Slot {
            slots: self.clone(),
            client,
            share,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Whether it is for a call that the daemon answers at once.
    pub(crate) fn is_quick(&self) -> bool {
        self.share == Share::Quick
    }

    /// Counts a quick call among those that take long, as far as there is room: its reply is so large
    /// that its reader decides how long it takes.
    pub(crate) fn take_long(&mut self) {
        if self.share != Share::Quick {
            return;
        }
        let exchanged = self
            .slots
            .state()
            .queue
            .exchange(self.client, self.share, Share::Waiting);
        if let Some(grants) = exchanged {
            self.share = Share::Waiting;
            self.slots.hand_over(grants);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let grants = self.slots.state().queue.give_back(self.client, self.share);
        self.slots.hand_over(grants);
    }
}

/// A call that waits for its slot.
struct Turn {
    receiver: oneshot::Receiver<Slot>,
    place: Place,
}

/// Its place in the queue, which it leaves when nobody waits any more.
struct Place {
    slots: Arc<Slots>,
    client: Client,
    share: Share,
    ticket: Ticket,
}

impl Turn {
    async fn come(self) -> Result<Slot, Full> {
        let Turn { receiver, place } = self;
        let came = receiver.await;
        drop(place);
        came.map_err(|_| Full)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        if state.waiting.remove(&self.ticket).is_some() {
            state.queue.leave(self.client, self.share, self.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SlotLimits = SlotLimits {
        idle: 8,
        quick: 4,
        waiting: 6,
        tails: 3,
        long: 8,
        own: 2,
        reload: 1,
    };
    const A: Client = Client::At(None, Some(1));
    const B: Client = Client::At(None, Some(2));
    const C: Client = Client::At(None, Some(3));
    const NOBODY: Vec<(Client, Ticket)> = Vec::new();

    fn granted(grants: &[Grant]) -> Vec<(Client, Ticket)> {
        let pairs = grants.iter().map(|grant| (grant.client, grant.ticket));
        pairs.collect()
    }

    #[test]
    fn all_shares_together_keep_to_the_ceiling() {
        for ceiling in 16..=200 {
            let limits = SlotLimits::of(ceiling);
            let calls = limits.quick + limits.long + limits.own + limits.reload;
            assert!(calls + limits.idle + WATCHING <= ceiling, "{limits:?}");
            let followed = TAIL_COST * limits.tails.min(ASSURED_TAILS);
            assert!(limits.waiting + followed <= limits.long, "{limits:?}");
            assert!(limits.idle > 2 && limits.idle <= 8);
        }
        let most = SlotLimits::of(200);
        assert_eq!((most.quick, most.waiting, most.tails), (32, 138, 68));
        let fewest = SlotLimits::of(16);
        assert_eq!((fewest.quick, fewest.waiting, fewest.tails), (2, 3, 1));
    }

    #[test]
    fn turns_go_round_between_clients_and_in_order_within_one() {
        let mut queue = Queue::new(LIMITS);
        assert!((0..3).all(|_| queue.take(A, Share::Quick)));
        assert!(!queue.take(A, Share::Quick), "three in four");
        assert!(queue.take(B, Share::Quick), "another's is kept");
        for client in [A, A, A, C, B] {
            queue.wait(client, Share::Quick);
        }
        let mut order = Vec::new();
        // Whoever has a slot is soon through.
        for client in [A, A, C, A, B] {
            order.extend(granted(&queue.give_back(client, Share::Quick)));
        }
        assert_eq!(order, [(A, 0), (C, 3), (B, 4), (A, 1), (A, 2)]);
    }

    #[test]
    fn whoever_has_his_share_is_passed_over() {
        let mut queue = Queue::new(LIMITS);
        assert!((0..3).all(|_| queue.take(A, Share::Quick)));
        assert!(queue.take(B, Share::Quick));
        queue.wait(A, Share::Quick);
        queue.wait(C, Share::Quick);
        let next = queue.give_back(B, Share::Quick);
        assert_eq!(granted(&next), [(C, 1)]);
        let next = queue.give_back(C, Share::Quick);
        assert_eq!(granted(&next), NOBODY, "A has three already");
        assert!(queue.take(B, Share::Quick));
    }

    #[test]
    fn one_share_stands_behind_no_other() {
        let mut queue = Queue::new(LIMITS);
        let clients = [A, B, A, B, A, B];
        assert!(
            clients
                .iter()
                .all(|client| queue.take(*client, Share::Waiting))
        );
        assert!(!queue.take(C, Share::Waiting));
        for share in [Share::Quick, Share::Own, Share::Reload, Share::Tail] {
            assert!(queue.take(C, share), "{share:?}");
        }
    }

    #[test]
    fn a_follower_takes_the_place_of_two_calls() {
        let mut queue = Queue::new(LIMITS);
        assert!(
            [A, B, A]
                .iter()
                .all(|client| queue.take(*client, Share::Tail))
        );
        assert!(
            [A, B]
                .iter()
                .all(|client| queue.take(*client, Share::Waiting))
        );
        queue.wait(A, Share::Waiting);
        queue.wait(B, Share::Waiting);
        queue.wait(C, Share::Waiting);
        assert!(!queue.take(C, Share::Tail));
        let next = queue.give_back(B, Share::Tail);
        assert_eq!(granted(&next), [(A, 0), (B, 1)]);
        assert!(!queue.take(C, Share::Tail));
    }

    #[tokio::test]
    async fn a_quick_call_that_takes_long_makes_room_for_another() {
        let slots = Arc::new(Slots::new(SlotLimits {
            quick: 1,
            waiting: 1,
            ..LIMITS
        }));
        let mut first = slots.take(A, Share::Quick).await.unwrap();
        first.take_long();
        first.take_long();
        let mut second = slots.take(B, Share::Quick).await.unwrap();
        second.take_long();
        assert!(!slots.state().queue.is_free(C, Share::Quick), "no room");
        drop(first);
        second.take_long();
        assert!(slots.state().queue.is_free(C, Share::Quick));
        drop(second);
        assert!(slots.state().queue.taken_by.is_empty());
    }

    #[test]
    fn the_newest_of_whoever_waits_most_has_to_go() {
        let mut queue = Queue::new(LIMITS);
        assert!(
            [A, A, A, B]
                .iter()
                .all(|client| queue.take(*client, Share::Quick))
        );
        for ticket in 0..MAX_QUEUED as u64 - 1 {
            let share = [Share::Quick, Share::Waiting][usize::from(ticket % 3 == 0)];
            assert_eq!(queue.wait(A, share), (ticket, None));
        }
        let last = MAX_QUEUED as u64 - 1;
        assert_eq!(queue.wait(B, Share::Quick), (last, None));
        let (b, dropped) = queue.wait(B, Share::Quick);
        assert_eq!((b, dropped), (last + 1, Some(last - 1)));
        let (a, dropped) = queue.wait(A, Share::Quick);
        assert_eq!(dropped, Some(a));
        let queued = [Share::Quick, Share::Waiting].map(|share| queue.queued(share));
        assert_eq!(queued.iter().sum::<usize>(), MAX_QUEUED);
    }

    #[test]
    fn other_limits_let_in_more_or_fewer() {
        let mut queue = Queue::new(LIMITS);
        assert!(
            [A, A, A, B]
                .iter()
                .all(|client| queue.take(*client, Share::Quick))
        );
        queue.wait(B, Share::Quick);
        let more = SlotLimits { quick: 8, ..LIMITS };
        assert_eq!(granted(&queue.resize(more)), [(B, 0)]);
        let fewer = SlotLimits { quick: 2, ..LIMITS };
        assert_eq!(granted(&queue.resize(fewer)), NOBODY);
        assert!(!queue.take(C, Share::Quick));
        queue.wait(C, Share::Quick);
        for client in [A, A, A] {
            assert_eq!(granted(&queue.give_back(client, Share::Quick)), NOBODY);
        }
        let next = queue.give_back(B, Share::Quick);
        assert_eq!(granted(&next), [(C, 1)]);
    }

    #[tokio::test]
    async fn whoever_hangs_up_leaves_his_place_and_his_slot() {
        let slots = Arc::new(Slots::new(LIMITS));
        let first = slots.take(Client::Proxy, Share::Reload).await.unwrap();
        let ask = |client| {
            let slots = slots.clone();
            tokio::spawn(async move { slots.take(client, Share::Reload).await })
        };
        let (one, two, three) = (ask(A), ask(B), ask(C));
        tokio::task::yield_now().await;
        one.abort();
        assert!(one.await.is_err());
        drop(first);
        // The slot is on its way to this one.
        two.abort();
        assert!(two.await.is_err());
        let slot = three.await.unwrap().unwrap();
        assert_eq!(slots.take(A, Share::Tail).await.map(drop), Ok(()));
        drop(slot);
        let state = slots.state();
        assert!(state.waiting.is_empty() && state.queue.lines.is_empty());
        assert!(state.queue.taken_by.is_empty());
    }
}
