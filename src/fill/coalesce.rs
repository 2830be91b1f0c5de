//! Many callers, one fill: [`Coalescer`]. The first caller for a key starts the fill; later ones join its group. No
//! caller's future drives the work, so any of them may hang up. Callers share the outcome, not the admission: if the
//! payer's team may not pay, its waiters are refused and the next waiter's team becomes the payer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;

use tokio::sync::oneshot;

/// Groups of callers by key. `T` is a caller, `V` the shared outcome.
pub struct Coalescer<K, T, V> {
    groups: Mutex<HashMap<K, Group<T, V>>>,
}

struct Group<T, V> {
    waiters: Vec<Follower<T, V>>,
    next_id: u64,
    /// The outcome that callers get while the fill goes on in the background.
    stalled: Option<V>,
}

struct Follower<T, V> {
    id: WaiterId,
    who: T,
    sender: oneshot::Sender<V>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaiterId(u64);

pub struct Ticket<V> {
    pub id: WaiterId,
    pub first: bool,
    outcome: oneshot::Receiver<V>,
}

impl<V> Ticket<V> {
    /// `None` if the group ended without an outcome, which is a bug.
    pub async fn outcome(self) -> Option<V> {
        self.outcome.await.ok()
    }
}

impl<K: Eq + Hash + Clone, T: Clone + PartialEq, V: Clone> Coalescer<K, T, V> {
    /// Joins the group of `key`, or founds it. A stalled group answers at once.
    pub fn join(&self, key: &K, who: T) -> Ticket<V> {
        let (sender, outcome) = oneshot::channel();
        let mut groups = self.lock();
        let first = !groups.contains_key(key);
        let group = groups.entry(key.clone()).or_default();
        let id = WaiterId(group.next_id);
        group.next_id += 1;
        match &group.stalled {
            Some(verdict) => drop(sender.send(verdict.clone())),
            None => group.waiters.push(Follower { id, who, sender }),
        }
        Ticket { id, first, outcome }
    }

    /// Founds a group without waiters; returns `false` if there is one.
    pub fn found(&self, key: &K) -> bool {
        let mut groups = self.lock();
        let is_new = !groups.contains_key(key);
        groups.entry(key.clone()).or_default();
        is_new
    }

    /// The longest-waiting caller who has not hung up. If there is none, the group is dissolved under the
    /// same lock, so that no one joins a fill that will not happen.
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

    /// The waiters who have not hung up, the longest-waiting first.
    pub fn waiting(&self, key: &K) -> Vec<T> {
        let groups = self.lock();
        let waiters = groups.get(key).into_iter().flat_map(|group| &group.waiters);
        waiters.filter(|waiter| !waiter.sender.is_closed()).map(|waiter| waiter.who.clone()).collect()
    }

    /// Resolves once the group has no waiters; another may join before the caller acts.
    pub async fn deserted(&self, key: &K) {
        std::future::poll_fn(|context| {
            let mut groups = self.lock();
            let Some(group) = groups.get_mut(key) else { return Poll::Ready(()) };
            // The first remaining waiter wakes this task when it hangs up; only then the others are polled.
            let mut waiters = group.waiters.iter_mut();
            let stays = waiters.position(|waiter| waiter.sender.poll_closed(context).is_pending());
            let gone = stays.unwrap_or(group.waiters.len());
            group.waiters.drain(..gone);
            if stays.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Answers only the waiters that equal `who`.
    pub fn refuse(&self, key: &K, who: &T, verdict: &V) {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(key) else { return };
        let refused = group.waiters.extract_if(.., |waiter| waiter.who == *who).collect();
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

    /// Numbers of groups and of their waiters who have not hung up.
    pub fn sizes(&self) -> (usize, usize) {
        let groups = self.lock();
        let waiters = groups.values().flat_map(|group| &group.waiters);
        (groups.len(), waiters.filter(|waiter| !waiter.sender.is_closed()).count())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Group<T, V>>> {
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<K, T, V> Default for Coalescer<K, T, V> {
    fn default() -> Self {
        Self { groups: Mutex::default() }
    }
}

impl<T, V> Default for Group<T, V> {
    fn default() -> Self {
        Self { waiters: Vec::new(), next_id: 0, stalled: None }
    }
}

fn answer<T, V: Clone>(waiters: Vec<Follower<T, V>>, verdict: &V) {
    for waiter in waiters {
        let _ = waiter.sender.send(verdict.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Groups = Coalescer<u8, &'static str, Result<u8, &'static str>>;

    #[tokio::test]
    async fn everyone_who_joined_gets_the_one_outcome() {
        let groups = Groups::default();
        let first = groups.join(&1, "a");
        let second = groups.join(&1, "b");
        assert!(first.first && !second.first);
        groups.finish(&1, &Ok(7));
        assert_eq!((first.outcome().await, second.outcome().await), (Some(Ok(7)), Some(Ok(7))));
        assert!(groups.join(&1, "a").first, "the group has ended");
    }

    #[tokio::test]
    async fn refusing_a_team_asks_the_next_one() {
        let groups = Groups::default();
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
        let groups = Groups::default();
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
        let groups = Groups::default();
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
        let groups = Groups::default();
        let (stays, leaves) = (groups.join(&1, "a"), groups.join(&1, "b"));
        assert_eq!(groups.sizes(), (1, 2));
        drop(leaves);
        assert_eq!(groups.sizes(), (1, 1));
        drop(stays);
        assert_eq!(groups.sizes(), (1, 0), "the fill goes on");
    }

    #[tokio::test]
    async fn a_group_is_deserted_when_the_last_one_has_hung_up() {
        let groups = Arc::new(Groups::default());
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
}
