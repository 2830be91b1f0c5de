//! The memory tier: [`MemoryCache`]. Losing it costs time, never money. It has answers by identity, small
//! objects by name, and for ten minutes the upstream's deterministic refusals. Objects on their way to
//! clients have a budget of their own, since a slow client holds one for longer than memory keeps it.

mod serving;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::sync::Cache;

pub use self::serving::ObjectError;
use self::serving::Serving;
use crate::base::identity::Identity;
use crate::base::permits::{Party, Permits};
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::metrics::{Eviction, Metrics, SizedTier};
use crate::store::{Store, StoreBudget, StoreError};

/// Larger objects are read from the store each time: a few of them would evict all answers.
const MAX_OBJECT: usize = 8 << 20;
/// Bytes that a read takes before the object's length is known.
const USUAL_OBJECT: u64 = 4 << 20;
const REFUSAL_LIFE: Duration = Duration::from_secs(600);
/// A few hundred bytes each.
const MAX_REFUSALS: u64 = 4096;
/// A refusal with a longer body is not remembered.
const MAX_REFUSAL_BYTES: usize = 4096;
/// Bytes beside the texts: map slots, pointers, bookkeeping.
const ENTRY_OVERHEAD: usize = 512;

pub struct MemoryCache {
    entries: Cache<Slot, Entry>,
    refusals: Cache<Identity, (StatusCode, Bytes)>,
    serving: Serving,
    /// Counts of forgotten answers, by the first byte of the key.
    forgotten: Box<[AtomicU64; 256]>,
    is_closed: AtomicBool,
}

/// Taken before an answer is read, and needed to keep it: the answer may be forgotten in between.
#[derive(Clone, Copy, Debug)]
pub struct FillToken {
    forgotten: u64,
}

/// One namespace of names for one budget of bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Slot {
    Answer(Identity),
    Object(ObjectName),
}

#[derive(Clone)]
enum Entry {
    Answer(Answer),
    Object(Bytes),
}

#[derive(Clone)]
struct Answer {
    record: Arc<Record>,
    /// The store has confirmed the object. `false`: not known.
    is_in_store: bool,
    /// By the root of its URL: ours, and that of the store.
    bodies: Arc<[OnceLock<Option<Bytes>>; 2]>,
}

impl Entry {
    fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Answer(Answer { record, .. }) => {
                let Record { answer, team, namespace, extension, .. } = &**record;
                let ids = record.upstream_request_id.len() + record.upstream_log_id.len();
                // Once more for the body.
                2 * answer.len() + team.len() + namespace.len() + extension.len() + ids
            }
            Self::Object(bytes) => bytes.len(),
        };
        u32::try_from(bytes + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
    }
}

impl MemoryCache {
    /// `capacity` in bytes; `room` for the bytes of results that are being sent.
    pub fn new(capacity: u64, room: Permits, metrics: Arc<Metrics>) -> Self {
        let count = move |_: Arc<Slot>, _: Entry, cause| {
            let cause = match cause {
                RemovalCause::Size => Eviction::Size,
                RemovalCause::Expired => Eviction::Expired,
                RemovalCause::Replaced => Eviction::Replaced,
                RemovalCause::Explicit => Eviction::Explicit,
            };
            metrics.cache_evictions_total[(SizedTier::Memory, cause)].inc();
        };
        let entries = Cache::builder().max_capacity(capacity).weigher(|_, entry: &Entry| entry.weight());
        Self {
            serving: Serving::new(room),
            entries: entries.eviction_listener(count).build(),
            refusals: Cache::builder().max_capacity(MAX_REFUSALS).time_to_live(REFUSAL_LIFE).build(),
            forgotten: Box::new([const { AtomicU64::new(0) }; 256]),
            is_closed: AtomicBool::new(false),
        }
    }

    /// No answers are kept until [`open`](Self::open).
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Keeps answers that are read from now on.
    pub fn open(&self) {
        for forgotten in &*self.forgotten {
            forgotten.fetch_add(1, Ordering::SeqCst);
        }
        self.is_closed.store(false, Ordering::SeqCst);
    }

    /// Call before reading an answer from the ledger or the store.
    pub fn begin_reading(&self, identity: &Identity) -> FillToken {
        FillToken { forgotten: self.forgotten(identity).load(Ordering::SeqCst) }
    }

    fn forgotten(&self, identity: &Identity) -> &AtomicU64 {
        &self.forgotten[usize::from(identity.key.as_bytes()[0])]
    }

    pub fn answer(&self, identity: &Identity) -> Option<Arc<Record>> {
        Some(self.entry(identity)?.record)
    }

    pub fn is_in_store(&self, record: &Arc<Record>) -> bool {
        self.entry(&record.identity()).is_some_and(|known| known.is_in_store && known.record == *record)
    }

    /// The body for clients, which is rendered once as long as the answer is here.
    pub fn body(
        &self,
        record: &Arc<Record>,
        is_at_store: bool,
        render: impl FnOnce() -> Option<Bytes>,
    ) -> Option<Bytes> {
        let known = self.entry(&record.identity()).filter(|known| Arc::ptr_eq(&known.record, record));
        match known {
            Some(known) => known.bodies[usize::from(is_at_store)].get_or_init(render).clone(),
            None => render(),
        }
    }

    fn entry(&self, identity: &Identity) -> Option<Answer> {
        match self.entries.get(&Slot::Answer(identity.clone()))? {
            Entry::Answer(answer) => Some(answer),
            Entry::Object(_) => None,
        }
    }

    /// Unless a higher generation is there, or [`forget_answer`](Self::forget_answer) was called after the
    /// read.
    pub fn keep_answer(&self, record: Arc<Record>, reading: FillToken) {
        let identity = record.identity();
        self.update(&identity, |old| match old {
            Some(old) if old.record.generation > record.generation => Op::Nop,
            Some(old) if old.record == record => Op::Nop,
            // The older one is out of date in any case.
            _ if self.is_closed.load(Ordering::SeqCst) => Op::Remove,
            _ if self.begin_reading(&identity).forgotten != reading.forgotten => Op::Remove,
            Some(_) | None => {
                Op::Put(Answer { record: record.clone(), is_in_store: false, bodies: Arc::default() })
            }
        });
    }

    /// Marks the object of this answer as stored, if the answer is here.
    pub fn know_in_store(&self, record: &Arc<Record>) {
        self.update(&record.identity(), |old| {
            let old = old.filter(|old| !old.is_in_store && old.record == *record);
            old.map_or(Op::Nop, |old| Op::Put(Answer { is_in_store: true, ..old }))
        });
    }

    fn update(&self, identity: &Identity, change: impl FnOnce(Option<Answer>) -> Op<Answer>) {
        self.entries.entry(Slot::Answer(identity.clone())).and_compute_with(|old| {
            let old = match old.map(moka::Entry::into_value) {
                Some(Entry::Answer(old)) => Some(old),
                Some(Entry::Object(_)) | None => None,
            };
            match change(old) {
                Op::Put(answer) => Op::Put(Entry::Answer(answer)),
                Op::Remove => Op::Remove,
                Op::Nop => Op::Nop,
            }
        });
    }

    /// Forgets the answer or refusal under a key, and answers that are being read.
    pub fn forget_answer(&self, identity: &Identity) {
        self.forgotten(identity).fetch_add(1, Ordering::SeqCst);
        // Serialized with `keep_answer`: one that has read the count before comes first.
        self.update(identity, |_| Op::Remove);
        self.refusals.invalidate(identity);
    }

    /// A result's bytes: shared with another client, from memory, or by a single-flight read. They count
    /// against the room for results until their last slice is dropped. Errors and absences are not kept.
    ///
    /// `party` is whose turn and room it takes.
    pub async fn object(
        &self,
        name: ObjectName,
        party: &Party,
        store: &dyn Store,
    ) -> Result<Option<Bytes>, ObjectError> {
        let read = async {
            if let Some(Entry::Object(bytes)) = self.entries.get(&Slot::Object(name)) {
                // It may be evicted while it is being sent.
                return Ok(Some(self.serving.room(party, bytes.len() as u64).await?.hold(bytes)));
            }
            let mut budget = StoreBudget::default();
            let (mut permit, mut _turn) = self.serving.room_to_read(party, USUAL_OBJECT).await?;
            let mut read = budget.wait(store.object(name, USUAL_OBJECT)).await;
            if let Err(StoreError::TooLong(length)) = read {
                // Given back before it waits for more: several that hold some and wait would never go on.
                drop((permit, _turn));
                (permit, _turn) = self.serving.room_to_read(party, length).await?;
                read = budget.wait(store.object(name, length)).await;
            }
            let Some(bytes) = read? else { return Ok(None) };
            if bytes.len() <= MAX_OBJECT {
                self.entries.insert(Slot::Object(name), Entry::Object(bytes.clone()));
            }
            permit.shrink_to(bytes.len() as u64);
            Ok(Some(permit.hold(bytes)))
        };
        self.serving.object(name, read).await
    }

    pub fn refusal(&self, identity: &Identity) -> Option<(StatusCode, Bytes)> {
        self.refusals.get(identity)
    }

    pub fn keep_refusal(&self, identity: &Identity, status: StatusCode, body: Bytes) {
        if body.len() <= MAX_REFUSAL_BYTES {
            self.refusals.insert(identity.clone(), (status, body));
        }
    }

    /// Entries and bytes. Runs moka's housekeeping.
    pub fn size(&self) -> (u64, u64) {
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::key::CacheKey;
    use crate::base::permits::Sharing;

    fn cache() -> MemoryCache {
        let metrics = Arc::new(Metrics::new(std::iter::empty()));
        MemoryCache::new(1 << 20, Permits::new(64 << 20, Sharing::Whole), metrics)
    }

    fn record(generation: u64) -> Arc<Record> {
        let key = CacheKey::of(b"picture", 1, 1);
        Arc::new(crate::testing::store_contract::record("ailab-v1", key, generation, "web"))
    }

    #[test]
    fn answer_weighs_all_texts_of_its_record() {
        const LONG: usize = 50_000;
        let long = || "x".repeat(LONG);
        let plain = Record::clone(&record(0));
        for (forged, texts) in [
            (Record { answer: long(), ..plain.clone() }, 2),
            (Record { team: long(), ..plain.clone() }, 1),
            (Record { namespace: long(), ..plain.clone() }, 1),
            (Record { extension: long(), ..plain.clone() }, 1),
            (Record { upstream_request_id: long(), ..plain.clone() }, 1),
            (Record { upstream_log_id: long(), ..plain.clone() }, 1),
        ] {
            let answer = Answer { record: Arc::new(forged), is_in_store: false, bodies: Arc::default() };
            assert!(Entry::Answer(answer).weight() as usize >= texts * LONG);
        }
    }

    #[test]
    fn what_was_read_before_it_was_forgotten_is_not_kept() {
        let cache = cache();
        let identity = &record(0).identity();
        let before = cache.begin_reading(identity);
        cache.keep_answer(record(0), before);
        assert_eq!(cache.answer(identity), Some(record(0)));
        cache.forget_answer(identity);
        assert_eq!(cache.answer(identity), None);
        cache.keep_answer(record(0), before);
        assert_eq!(cache.answer(identity), None, "it may be what was purged");
        cache.keep_answer(record(1), cache.begin_reading(identity));
        assert_eq!(cache.answer(identity), Some(record(1)));
        // Nor is what it would have replaced.
        let before = cache.begin_reading(identity);
        cache.forget_answer(identity);
        cache.keep_answer(record(1), cache.begin_reading(identity));
        cache.keep_answer(record(2), before);
        assert_eq!(cache.answer(identity), None);
    }

    #[test]
    fn a_closed_memory_keeps_nothing_and_an_open_one_what_is_read_from_then_on() {
        let cache = cache();
        cache.close();
        let identity = &record(0).identity();
        let early = cache.begin_reading(identity);
        cache.keep_answer(record(0), early);
        assert_eq!(cache.answer(identity), None);
        cache.open();
        cache.keep_answer(record(0), early);
        assert_eq!(cache.answer(identity), None);
        cache.keep_answer(record(0), cache.begin_reading(identity));
        assert_eq!(cache.answer(identity), Some(record(0)));
    }

    #[test]
    fn a_forgotten_refusal_is_not_believed() {
        let cache = cache();
        let identity = &record(0).identity();
        cache.keep_refusal(identity, StatusCode::BAD_REQUEST, Bytes::new());
        cache.forget_answer(identity);
        assert_eq!(cache.refusal(identity), None);
    }

    #[test]
    fn a_refusal_that_takes_much_memory_is_not_kept() {
        let cache = cache();
        let identity = &record(0).identity();
        for (length, is_kept) in [(MAX_REFUSAL_BYTES + 1, false), (MAX_REFUSAL_BYTES, true)] {
            cache.keep_refusal(identity, StatusCode::BAD_REQUEST, vec![b' '; length].into());
            assert_eq!(cache.refusal(identity).is_some(), is_kept);
        }
    }

    #[test]
    fn refusals_are_believed_for_ten_minutes_and_their_number_is_bounded() {
        let policy = cache().refusals.policy();
        assert_eq!(policy.time_to_live(), Some(Duration::from_secs(600)));
        assert_eq!(policy.time_to_idle(), None, "asking does not prolong it");
        assert_eq!(policy.max_capacity(), Some(MAX_REFUSALS));
    }
}
