//! Many callers, one fill: [`Coalescer`].
//!
//! A caller for a key that is being made joins its group and waits; the first one only starts the
//! fill. No caller's future drives the work, so any of them may hang up. Callers share the outcome,
//! not the admission: when the payer's team may not pay, its waiters are refused and the next
//! waiter's team becomes the payer.
//!
//! Bookkeeping only: nothing here spends, sleeps or reads a clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use tokio::sync::oneshot;

/// Groups of callers by key. `T` is who a caller is, `V` what all of them wait for.
pub struct Coalescer<K, T, V> {
    groups: Mutex<HashMap<K, Group<T, V>>>,
}

struct Group<T, V> {
    waiters: Vec<Follower<T, V>>,
    next_id: u64,
    /// Set while the fill goes on and its callers were sent away to retry later.
    stalled: Option<V>,
}

struct Follower<T, V> {
    id: WaiterId,
    who: T,
    sender: oneshot::Sender<V>,
}

/// Tells the waiters of one group apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaiterId(u64);

pub struct Ticket<V> {
    /// Compared with the payer of the outcome.
    pub id: WaiterId,
    pub first: bool,
    outcome: oneshot::Receiver<V>,
}

impl<V> Ticket<V> {
    /// What became of the fill; `None` when the group ended without a word, which is a bug.
    pub async fn outcome(self) -> Option<V> {
        self.outcome.await.ok()
    }
}

impl<K: Eq + Hash + Clone, T: Clone + PartialEq, V: Clone> Coalescer<K, T, V> {
    pub fn new() -> Self {
        Self { groups: Mutex::new(HashMap::new()) }
    }

    /// Joins the group of `key`, or founds it. A group that is stalled answers at once.
    pub fn join(&self, key: &K, who: T) -> Ticket<V> {
        let (sender, outcome) = oneshot::channel();
        let mut groups = self.lock();
        let first = !groups.contains_key(key);
        let group = groups.entry(key.clone()).or_insert_with(Group::new);
        let id = WaiterId(group.next_id);
        group.next_id += 1;
        match &group.stalled {
            Some(verdict) => drop(sender.send(verdict.clone())),
            None => group.waiters.push(Follower { id, who, sender }),
        }
        Ticket { id, first, outcome }
    }

    /// Founds a group without waiters, for work that goes on by itself; `false` when there is one.
    pub fn found(&self, key: &K) -> bool {
        let mut groups = self.lock();
        let is_new = !groups.contains_key(key);
        groups.entry(key.clone()).or_insert_with(Group::new);
        is_new
    }

    /// The longest-waiting caller who has not hung up. When there is none the group is dissolved in
    /// the same instant, so that no one can join a fill that will not happen.
    pub fn candidate(&self, key: &K) -> Option<(WaiterId, T)> {
        let mut groups = self.lock();
        let group = groups.get_mut(key)?;
        group.waiters.retain(|waiter| !waiter.sender.is_closed());
        let found = group.waiters.first().map(|waiter| (waiter.id, waiter.who.clone()));
        if found.is_none() {
            groups.remove(key);
        }
        found
    }

    /// Who waits and has not hung up, the longest-waiting first.
    pub fn waiting(&self, key: &K) -> Vec<T> {
        let groups = self.lock();
        let waiters = groups.get(key).into_iter().flat_map(|group| &group.waiters);
        waiters.filter(|waiter| !waiter.sender.is_closed()).map(|waiter| waiter.who.clone()).collect()
    }

    /// Resolves once the group has no waiters. Another may join before the caller acts on that:
    /// check [`candidate`](Self::candidate).
    pub async fn deserted(&self, key: &K) {
        std::future::poll_fn(|context| {
            let mut groups = self.lock();
            let Some(group) = groups.get_mut(key) else { return Poll::Ready(()) };
            // The first who waits still wakes us; the others are looked at when that one has gone.
            let mut waiters = group.waiters.iter_mut();
            let stays = waiters.position(|waiter| waiter.sender.poll_closed(context).is_pending());
            let gone = stays.unwrap_or(group.waiters.len());
            group.waiters.drain(..gone);
            if stays.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Answers every waiter of one kind, and leaves the others waiting.
    pub fn refuse(&self, key: &K, who: &T, verdict: &V) {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(key) else { return };
        let (refused, kept) =
            std::mem::take(&mut group.waiters).into_iter().partition(|waiter| waiter.who == *who);
        group.waiters = kept;
        drop(groups);
        answer(refused, verdict);
    }

    /// Answers every waiter, and each that joins until the group ends, while the fill goes on.
    pub fn stall(&self, key: &K, verdict: &V) {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(key) else { return };
        group.stalled = Some(verdict.clone());
        let waiters = std::mem::take(&mut group.waiters);
        drop(groups);
        answer(waiters, verdict);
    }

    /// Answers every waiter and dissolves the group.
    pub fn finish(&self, key: &K, verdict: &V) {
        let group = self.lock().remove(key);
        answer(group.map(|group| group.waiters).unwrap_or_default(), verdict);
    }

    /// Numbers of groups and of waiters in them, without those who have hung up.
    pub fn sizes(&self) -> (usize, usize) {
        let groups = self.lock();
        let waiters = groups.values().flat_map(|group| &group.waiters);
        (groups.len(), waiters.filter(|waiter| !waiter.sender.is_closed()).count())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Group<T, V>>> {
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone, T: Clone + PartialEq, V: Clone> Default for Coalescer<K, T, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, V> Group<T, V> {
    fn new() -> Self {
        Self { waiters: Vec::new(), next_id: 0, stalled: None }
    }
}

fn answer<T, V: Clone>(waiters: Vec<Follower<T, V>>, verdict: &V) {
    for waiter in waiters {
        // A receiver that is gone has hung up.
        let _ = waiter.sender.send(verdict.clone());
    }
}

/// Ends a group even if the fill that serves it panics, so that its callers are not left waiting.
pub struct GroupGuard<K: Eq + Hash + Clone, T: Clone + PartialEq, V: Clone> {
    coalescer: Arc<Coalescer<K, T, V>>,
    key: K,
    verdict: Option<V>,
}

impl<K: Eq + Hash + Clone, T: Clone + PartialEq, V: Clone> GroupGuard<K, T, V> {
    /// Will answer `verdict` unless [`disarm`](Self::disarm)ed.
    pub fn new(coalescer: Arc<Coalescer<K, T, V>>, key: K, verdict: V) -> Self {
        Self { coalescer, key, verdict: Some(verdict) }
    }

    /// The group has been ended in good order.
    pub fn disarm(mut self) {
        self.verdict = None;
    }
}

impl<K: Eq + Hash + Clone, T: Clone + PartialEq, V: Clone> Drop for GroupGuard<K, T, V> {
    fn drop(&mut self) {
        if let Some(verdict) = self.verdict.take() {
            self.coalescer.finish(&self.key, &verdict);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Groups = Coalescer<u8, &'static str, Result<u8, &'static str>>;

    #[tokio::test]
    async fn everyone_who_joined_gets_the_one_outcome() {
        let groups = Groups::new();
        let first = groups.join(&1, "a");
        let second = groups.join(&1, "b");
        assert!(first.first && !second.first);
        groups.finish(&1, &Ok(7));
        assert_eq!((first.outcome().await, second.outcome().await), (Some(Ok(7)), Some(Ok(7))));
        assert!(groups.join(&1, "a").first, "the group has ended");
    }

    #[tokio::test]
    async fn refusing_a_team_asks_the_next_one() {
        let groups = Groups::new();
        let (poor, also_poor, solvent) =
            (groups.join(&1, "poor"), groups.join(&1, "poor"), groups.join(&1, "solvent"));
        assert_eq!(groups.candidate(&1), Some((poor.id, "poor")));
        groups.refuse(&1, &"poor", &Err("no budget"));
        assert_eq!(groups.candidate(&1), Some((solvent.id, "solvent")));
        groups.finish(&1, &Ok(7));
        assert_eq!(poor.outcome().await, Some(Err("no budget")));
        assert_eq!(also_poor.outcome().await, Some(Err("no budget")));
        assert_eq!(solvent.outcome().await, Some(Ok(7)));
    }

    #[tokio::test]
    async fn a_caller_who_hung_up_is_no_candidate_and_an_empty_group_dissolves() {
        let groups = Groups::new();
        let gone = groups.join(&1, "a");
        let stays = groups.join(&1, "b");
        drop(gone);
        assert_eq!(groups.candidate(&1), Some((stays.id, "b")));
        drop(stays);
        assert_eq!(groups.candidate(&1), None);
        assert!(groups.join(&1, "c").first);
    }

    #[tokio::test]
    async fn a_stalled_group_answers_at_once_until_it_ends() {
        let groups = Groups::new();
        let before = groups.join(&1, "a");
        groups.stall(&1, &Err("later"));
        let after = groups.join(&1, "b");
        assert!(!after.first);
        assert_eq!((before.outcome().await, after.outcome().await), (Some(Err("later")), Some(Err("later"))));
        groups.finish(&1, &Ok(7));
        assert!(groups.join(&1, "c").first);
    }

    #[test]
    fn whoever_has_hung_up_is_not_counted_as_waiting() {
        let groups = Groups::new();
        let (stays, leaves) = (groups.join(&1, "a"), groups.join(&1, "b"));
        assert_eq!(groups.sizes(), (1, 2));
        drop(leaves);
        assert_eq!(groups.sizes(), (1, 1));
        drop(stays);
        assert_eq!(groups.sizes(), (1, 0), "the fill goes on");
    }

    #[tokio::test]
    async fn a_group_is_deserted_when_the_last_one_has_hung_up() {
        let groups = Arc::new(Groups::new());
        let first = groups.join(&1, "a");
        let deserted = tokio::spawn({
            let groups = groups.clone();
            async move { groups.deserted(&1).await }
        });
        tokio::task::yield_now().await;
        // Who joins while it is being watched counts as well.
        let second = groups.join(&1, "b");
        drop(first);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!deserted.is_finished());
        assert_eq!(groups.waiting(&1), ["b"]);
        drop(second);
        deserted.await.expect("no panic");
        assert_eq!((groups.waiting(&1), groups.candidate(&1)), (Vec::new(), None));
        groups.deserted(&1).await;
    }

    #[tokio::test]
    async fn a_fill_that_panics_answers_its_callers() {
        let groups = Arc::new(Groups::new());
        let waiting = groups.join(&1, "a");
        let guard = GroupGuard::new(groups.clone(), 1, Err("bug"));
        let fill = tokio::spawn(async move {
            let _guard = guard;
            panic!("planted");
        });
        assert!(fill.await.is_err());
        assert_eq!(waiting.outcome().await, Some(Err("bug")));
        assert_eq!(groups.sizes(), (0, 0));
    }
}
