//! Slots: the fair distribution of the daemon's connections among calls.
//!
//! Every connection takes a slot, and there are as many slots as the daemon can spare descriptors. Each
//! kind of call has a [`Share`] of them, so that no kind waits for another. Within a share, the waiting
//! clients take turns, and one client never gets all slots. The checks of password hashes take turns in
//! the same way, in a pool of their own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::clients::Client;

/// The largest number of clients' calls that wait for a slot. Beyond it, the client with the most
/// waiting calls loses its newest.
pub const MAX_QUEUED: usize = 768;
/// The descriptors that `tail -f` of a log costs the daemon: a connection and an open file.
const TAIL_COST: usize = 2;
/// The number of tails for which waiting calls always leave room.
const RESERVED_TAILS: usize = 4;
/// The largest number of tails. One client gets three in four, enough for fifty processes.
const MAX_TAILS: usize = 68;
/// The number of waiting calls for which tails leave room if there are many connections.
const RESERVED_WAITING: usize = 10;
/// The connections outside of the shares: the one that detects restarts, and the one that reads the
/// daemon's account.
const WATCHING: usize = 2;

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// A call that the daemon answers at once.
    Quick,
    /// A call that waits for processes.
    Waiting,
    /// A log that a client follows. If no slot is free, the call fails instead of waiting.
    Tail,
    /// A call of the proxy.
    Own,
    /// A `reloadConfig` of the proxy. The end of its reply arrives after the proxy has used the rest.
    Reload,
}

/// The number of slots of each share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// The largest number of idle connections.
    pub idle: usize,
    /// Slots of [`Share::Quick`].
    pub quick: usize,
    /// Slots of [`Share::Waiting`] if there are no tails.
    pub waiting: usize,
    /// Slots of [`Share::Tail`] if there are no waiting calls.
    pub tails: usize,
    /// The descriptors for waiting calls and tails together.
    long: usize,
    own: usize,
    reload: usize,
}

impl SlotLimits {
    /// One slot of [`Share::Quick`], for work that runs one at a time.
    pub(crate) const ONE: SlotLimits = SlotLimits {
        idle: 0,
        quick: 1,
        waiting: 0,
        tails: 0,
        long: 0,
        own: 0,
        reload: 0,
    };

    /// Divides `ceiling` connections, at least 16, among the shares.
    pub fn of(ceiling: usize) -> Self {
        let idle = (ceiling / 4).min(8);
        let own = (ceiling / 16).clamp(2, 4);
        let reload = (ceiling / 16).clamp(1, 8);
        let rest = ceiling.saturating_sub(idle + WATCHING + own + reload);
        let quick = (rest / 4).clamp(2, 32);
        let long = rest.saturating_sub(quick);
        let tails = (long / 3).max(long.saturating_sub(RESERVED_WAITING) / TAIL_COST);
        let tails = tails.clamp(1, MAX_TAILS);
        let waiting = long.saturating_sub(TAIL_COST * tails.min(RESERVED_TAILS));
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

    /// Returns how many slots of `share` one client may have: three in four, so that a call of another
    /// client finds a free slot.
    pub fn per_client(&self, share: Share) -> usize {
        let all = self.of_share(share);
        match share {
            Share::Own | Share::Reload => all,
            Share::Quick | Share::Waiting | Share::Tail => (all * 3).div_ceil(4),
        }
    }
}

/// The number of a waiting call.
type Ticket = u64;

/// A slot for the waiting call with this ticket.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    ticket: Ticket,
    client: Client,
    share: Share,
}

/// The occupied slots and the waiting calls.
///
/// Invariant: after each method, no call waits for a slot that is free for it.
#[derive(Debug)]
struct Queue {
    limits: SlotLimits,
    occupied: HashMap<Share, usize>,
    occupied_by: HashMap<(Share, Client), usize>,
    lines: HashMap<Share, Line>,
    next_ticket: Ticket,
}

/// The calls that wait for a slot of one share.
#[derive(Debug, Default)]
struct Line {
    /// The clients in the order of their turns. Each client of `calls` is in it once.
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

    /// Removes the oldest call of the first client in turn for which `is_free` returns true.
    fn pop(&mut self, is_free: impl Fn(&Client) -> bool) -> Option<(Client, Ticket)> {
        let at = self.turns.iter().position(is_free)?;
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
            occupied: HashMap::new(),
            occupied_by: HashMap::new(),
            lines: HashMap::new(),
            next_ticket: 0,
        }
    }

    fn occupied(&self, share: Share) -> usize {
        self.occupied.get(&share).copied().unwrap_or_default()
    }

    /// Returns whether a slot of `share` is free for `client`.
    fn is_free(&self, client: Client, share: Share) -> bool {
        let long = self.occupied(Share::Waiting) + TAIL_COST * self.occupied(Share::Tail);
        let fits = match share {
            Share::Waiting => long < self.limits.long,
            Share::Tail => long + TAIL_COST <= self.limits.long,
            Share::Quick | Share::Own | Share::Reload => true,
        };
        let key = (share, client);
        let of_client = self.occupied_by.get(&key).copied().unwrap_or_default();
        fits && self.occupied(share) < self.limits.of_share(share)
            && of_client < self.limits.per_client(share)
    }

    /// Takes a slot if one is free. Returns whether it did.
    fn take(&mut self, client: Client, share: Share) -> bool {
        let is_free = self.is_free(client, share);
        if is_free {
            *self.occupied.entry(share).or_default() += 1;
            *self.occupied_by.entry((share, client)).or_default() += 1;
        }
        is_free
    }

    /// Adds a waiting call. Returns its ticket, and that of the call that is dropped for it, if any.
    fn wait(&mut self, client: Client, share: Share) -> (Ticket, Option<Ticket>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.lines.entry(share).or_default().push(client, ticket);
        let queued = [Share::Quick, Share::Waiting].map(|share| self.queued(share));
        let too_many = queued.iter().sum::<usize>() > MAX_QUEUED;
        (ticket, too_many.then(|| self.drop_newest()).flatten())
    }

    fn queued(&self, share: Share) -> usize {
        self.lines.get(&share).map(Line::len).unwrap_or_default()
    }

    /// Drops the newest call of the client with the most waiting calls in one share.
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

    /// Removes a waiting call.
    fn leave(&mut self, client: Client, share: Share, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&share) {
            line.remove(client, ticket);
        }
    }

    /// Frees a slot. Returns the grants for the next waiting calls.
    fn release(&mut self, client: Client, share: Share) -> Vec<Grant> {
        if let Some(occupied) = self.occupied.get_mut(&share) {
            *occupied = occupied.saturating_sub(1);
        }
        let key = (share, client);
        if let Some(occupied) = self.occupied_by.get_mut(&key) {
            *occupied = occupied.saturating_sub(1);
            if *occupied == 0 {
                self.occupied_by.remove(&key);
            }
        }
        match share {
            Share::Tail => self.grant(Share::Waiting),
            share => self.grant(share),
        }
    }

    /// Exchanges a slot for one of another share, if one is free. Returns the grants for waiting calls.
    fn exchange(&mut self, client: Client, from: Share, to: Share) -> Option<Vec<Grant>> {
        self.take(client, to).then(|| self.release(client, from))
    }

    /// Replaces the limits. Occupied slots stay occupied.
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
        // Each iteration takes a slot, so the number of slots bounds the loop.
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

/// A slot. Dropping it frees it.
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

    /// Waits for a slot without a timeout.
    ///
    /// # Errors
    /// If [`MAX_QUEUED`] calls wait already and this client has the most of them, or if no slot is free
    /// for a tail.
    pub(crate) async fn take(self: &Arc<Self>, client: Client, share: Share) -> Result<Slot, Full> {
        let waiting = {
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
            WaitingCall {
                receiver,
                place: Place {
                    slots: self.clone(),
                    client,
                    share,
                    ticket,
                },
            }
        };
        waiting.slot().await
    }

    /// Takes a slot if one is free now.
    pub(crate) fn take_free(self: &Arc<Self>, client: Client, share: Share) -> Option<Slot> {
        let mut state = self.state();
        let is_free = state.queue.take(client, share);
        is_free.then(|| self.slot(client, share))
    }

    /// Returns how many of the daemon's descriptors the occupied slots need.
    pub(crate) fn cost(&self) -> usize {
        let state = self.state();
        let all = state.queue.occupied.values().sum::<usize>();
        all + (TAIL_COST - 1) * state.queue.occupied(Share::Tail)
    }

    /// Replaces the limits.
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

    /// Returns the current limits.
    pub(crate) fn limits(&self) -> SlotLimits {
        self.state().queue.limits
    }

    fn hand_over(self: &Arc<Self>, grants: Vec<Grant>) {
        for grant in grants {
            let waiting = self.state().waiting.remove(&grant.ticket);
            let slot = self.slot(grant.client, grant.share);
            if let Some(waiting) = waiting {
                // If the caller has just hung up, dropping the slot grants it to the next call.
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
    /// Returns whether the slot is for a call that the daemon answers at once.
    pub(crate) fn is_quick(&self) -> bool {
        self.share == Share::Quick
    }

    /// Moves a quick call to [`Share::Waiting`] if a slot is free there. Its reply is so large that it
    /// takes as long as the client's reading.
    pub(crate) fn move_to_waiting(&mut self) {
        if self.share != Share::Quick {
            return;
        }
        let grants = self
            .slots
            .state()
            .queue
            .exchange(self.client, self.share, Share::Waiting);
        if let Some(grants) = grants {
            self.share = Share::Waiting;
            self.slots.hand_over(grants);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let grants = self.slots.state().queue.release(self.client, self.share);
        self.slots.hand_over(grants);
    }
}

/// A call that waits for its slot.
struct WaitingCall {
    receiver: oneshot::Receiver<Slot>,
    place: Place,
}

/// The place of a waiting call in the queue. Dropping it removes the call.
struct Place {
    slots: Arc<Slots>,
    client: Client,
    share: Share,
    ticket: Ticket,
}

impl WaitingCall {
    async fn slot(self) -> Result<Slot, Full> {
        let WaitingCall { receiver, place } = self;
        let slot = receiver.await;
        drop(place);
        slot.map_err(|_| Full)
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
    const NONE: Vec<(Client, Ticket)> = Vec::new();

    fn tickets(grants: &[Grant]) -> Vec<(Client, Ticket)> {
        let pairs = grants.iter().map(|grant| (grant.client, grant.ticket));
        pairs.collect()
    }

    #[test]
    fn all_shares_together_fit_the_ceiling() {
        for ceiling in 16..=200 {
            let limits = SlotLimits::of(ceiling);
            let calls = limits.quick + limits.long + limits.own + limits.reload;
            assert!(calls + limits.idle + WATCHING <= ceiling, "{limits:?}");
            let tails = TAIL_COST * limits.tails.min(RESERVED_TAILS);
            assert!(limits.waiting + tails <= limits.long, "{limits:?}");
            assert!(limits.idle > 2 && limits.idle <= 8);
        }
        let most = SlotLimits::of(200);
        assert_eq!((most.quick, most.waiting, most.tails), (32, 138, 68));
        let fewest = SlotLimits::of(16);
        assert_eq!((fewest.quick, fewest.waiting, fewest.tails), (2, 3, 1));
    }

    #[test]
    fn clients_take_turns_and_calls_of_one_client_keep_their_order() {
        let mut queue = Queue::new(LIMITS);
        assert!((0..3).all(|_| queue.take(A, Share::Quick)));
        assert!(!queue.take(A, Share::Quick), "A has three in four");
        assert!(queue.take(B, Share::Quick), "one is reserved for others");
        for client in [A, A, A, C, B] {
            queue.wait(client, Share::Quick);
        }
        let mut order = Vec::new();
        for client in [A, A, C, A, B] {
            order.extend(tickets(&queue.release(client, Share::Quick)));
        }
        assert_eq!(order, [(A, 0), (C, 3), (B, 4), (A, 1), (A, 2)]);
    }

    #[test]
    fn a_client_at_its_limit_is_passed_over() {
        let mut queue = Queue::new(LIMITS);
        assert!((0..3).all(|_| queue.take(A, Share::Quick)));
        assert!(queue.take(B, Share::Quick));
        queue.wait(A, Share::Quick);
        queue.wait(C, Share::Quick);
        let next = queue.release(B, Share::Quick);
        assert_eq!(tickets(&next), [(C, 1)]);
        let next = queue.release(C, Share::Quick);
        assert_eq!(tickets(&next), NONE, "A has three already");
        assert!(queue.take(B, Share::Quick));
    }

    #[test]
    fn no_share_waits_for_another() {
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
    fn a_tail_takes_the_place_of_two_calls() {
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
        let next = queue.release(B, Share::Tail);
        assert_eq!(tickets(&next), [(A, 0), (B, 1)]);
        assert!(!queue.take(C, Share::Tail));
    }

    #[tokio::test]
    async fn a_quick_call_with_a_large_reply_moves_to_the_waiting_share() {
        let slots = Arc::new(Slots::new(SlotLimits {
            quick: 1,
            waiting: 1,
            ..LIMITS
        }));
        let mut first = slots.take(A, Share::Quick).await.unwrap();
        first.move_to_waiting();
        first.move_to_waiting();
        let mut second = slots.take(B, Share::Quick).await.unwrap();
        second.move_to_waiting();
        assert!(!slots.state().queue.is_free(C, Share::Quick));
        drop(first);
        second.move_to_waiting();
        assert!(slots.state().queue.is_free(C, Share::Quick));
        drop(second);
        assert!(slots.state().queue.occupied_by.is_empty());
    }

    #[test]
    fn the_client_with_the_most_waiting_calls_loses_its_newest() {
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
    fn new_limits_grant_more_or_fewer_slots() {
        let mut queue = Queue::new(LIMITS);
        assert!(
            [A, A, A, B]
                .iter()
                .all(|client| queue.take(*client, Share::Quick))
        );
        queue.wait(B, Share::Quick);
        let more = SlotLimits { quick: 8, ..LIMITS };
        assert_eq!(tickets(&queue.resize(more)), [(B, 0)]);
        let fewer = SlotLimits { quick: 2, ..LIMITS };
        assert_eq!(tickets(&queue.resize(fewer)), NONE);
        assert!(!queue.take(C, Share::Quick));
        queue.wait(C, Share::Quick);
        for client in [A, A, A] {
            assert_eq!(tickets(&queue.release(client, Share::Quick)), NONE);
        }
        let next = queue.release(B, Share::Quick);
        assert_eq!(tickets(&next), [(C, 1)]);
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_frees_its_place_and_its_slot() {
        let slots = Arc::new(Slots::new(LIMITS));
        let first = slots.take(Client::Proxy, Share::Reload).await.unwrap();
        let call = |client| {
            let slots = slots.clone();
            tokio::spawn(async move { slots.take(client, Share::Reload).await })
        };
        let (one, two, three) = (call(A), call(B), call(C));
        tokio::task::yield_now().await;
        one.abort();
        assert!(one.await.is_err());
        drop(first);
        // The slot is already granted to this call.
        two.abort();
        assert!(two.await.is_err());
        let slot = three.await.unwrap().unwrap();
        assert_eq!(slots.take(A, Share::Tail).await.map(drop), Ok(()));
        drop(slot);
        let state = slots.state();
        assert!(state.waiting.is_empty() && state.queue.lines.is_empty());
        assert!(state.queue.occupied_by.is_empty());
    }
}
