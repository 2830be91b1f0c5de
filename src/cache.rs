//! The memory tier: [`MemoryCache`]. Losing it costs time, never money.
//!
//! Answers by key, small result objects by name, and for ten minutes the upstream's deterministic
//! refusals by key. Weighed in bytes against one configured budget.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use moka::future::Cache;

use crate::key::CacheKey;
use crate::picture::ObjectName;
use crate::store::{Record, Store, StoreError};

/// Objects above this size are read from the store each time: a few of them would evict all answers.
const MAX_OBJECT: usize = 8 << 20;
/// How long a deterministic refusal of the upstream is believed.
const REFUSAL_LIFE: Duration = Duration::from_secs(600);
/// How many refusals are remembered: a few hundred bytes each.
const MAX_REFUSALS: u64 = 4096;
/// What an entry costs beside its texts: map slots, pointers, bookkeeping.
const ENTRY_OVERHEAD: usize = 512;

/// See the module.
pub struct MemoryCache {
    entries: Cache<Slot, Entry>,
    refusals: Cache<CacheKey, (StatusCode, Bytes)>,
}

/// One namespace of names for one budget of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    Answer(CacheKey),
    Object(ObjectName),
}

#[derive(Clone)]
enum Entry {
    Answer(Answer),
    Object(Bytes),
}

/// An answer, and what is known of its object.
#[derive(Clone)]
struct Answer {
    record: Arc<Record>,
    /// The store has confirmed the object, which it keeps for ever. `false`: not known.
    is_in_store: bool,
}

impl Entry {
    fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Answer(Answer { record, .. }) => {
                record.answer.len() + record.team.len() + record.namespace.len()
            }
            Self::Object(bytes) => bytes.len(),
        };
        u32::try_from(bytes + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
    }
}

impl MemoryCache {
    /// Holds at most `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            entries: Cache::builder()
                .max_capacity(capacity)
                .weigher(|_, entry: &Entry| entry.weight())
                .build(),
            refusals: Cache::builder().max_capacity(MAX_REFUSALS).time_to_live(REFUSAL_LIFE).build(),
        }
    }

    /// The answer under a key.
    pub async fn answer(&self, key: CacheKey) -> Option<Arc<Record>> {
        Some(self.entry(key).await?.record)
    }

    /// Is the store known to have the object of this answer?
    pub async fn is_in_store(&self, record: &Arc<Record>) -> bool {
        self.entry(record.key).await.is_some_and(|known| known.is_in_store && known.record == *record)
    }

    async fn entry(&self, key: CacheKey) -> Option<Answer> {
        match self.entries.get(&Slot::Answer(key)).await? {
            Entry::Answer(answer) => Some(answer),
            Entry::Object(_) => None,
        }
    }

    /// Keeps an answer, unless one of a higher generation is there.
    pub async fn keep_answer(&self, record: Arc<Record>) {
        self.update(record.key, |old| match old {
            Some(old) if old.record.generation > record.generation => None,
            Some(old) if old.record == record => None,
            Some(_) | None => Some(Answer { record: record.clone(), is_in_store: false }),
        })
        .await;
    }

    /// Remembers that the store has confirmed the object of this answer, if the answer is here.
    pub async fn know_in_store(&self, record: &Arc<Record>) {
        self.update(record.key, |old| {
            let old = old.filter(|old| !old.is_in_store && old.record == *record)?;
            Some(Answer { record: old.record, is_in_store: true })
        })
        .await;
    }

    /// Puts what `change` makes of the answer under a key; nothing when that is `None`.
    async fn update(&self, key: CacheKey, change: impl FnOnce(Option<Answer>) -> Option<Answer>) {
        self.entries
            .entry(Slot::Answer(key))
            .and_compute_with(|old| {
                let old = match old.map(moka::Entry::into_value) {
                    Some(Entry::Answer(old)) => Some(old),
                    Some(Entry::Object(_)) | None => None,
                };
                std::future::ready(match change(old) {
                    Some(answer) => moka::ops::compute::Op::Put(Entry::Answer(answer)),
                    None => moka::ops::compute::Op::Nop,
                })
            })
            .await;
    }

    /// Forgets the answer under a key.
    pub async fn forget_answer(&self, key: CacheKey) {
        self.entries.invalidate(&Slot::Answer(key)).await;
    }

    /// A result's bytes, from memory or read once for everyone who asks at the same time.
    ///
    /// # Errors
    /// The store's; errors and absences are not kept.
    pub async fn object(&self, name: ObjectName, store: &dyn Store) -> Result<Option<Bytes>, StoreError> {
        enum Absence {
            Missing,
            TooLarge(Bytes),
            Failed(StoreError),
        }
        let read = async {
            match store.object(name).await {
                Ok(Some(bytes)) if bytes.len() > MAX_OBJECT => Err(Absence::TooLarge(bytes)),
                Ok(Some(bytes)) => Ok(Entry::Object(bytes)),
                Ok(None) => Err(Absence::Missing),
                Err(error) => Err(Absence::Failed(error)),
            }
        };
        match self.entries.try_get_with(Slot::Object(name), read).await {
            Ok(Entry::Object(bytes)) => Ok(Some(bytes)),
            Ok(Entry::Answer(_)) => Ok(None),
            Err(absence) => match &*absence {
                Absence::Missing => Ok(None),
                Absence::TooLarge(bytes) => Ok(Some(bytes.clone())),
                Absence::Failed(error) => Err(error.clone()),
            },
        }
    }

    /// The refusal remembered for a key.
    pub async fn refusal(&self, key: CacheKey) -> Option<(StatusCode, Bytes)> {
        self.refusals.get(&key).await
    }

    /// Remembers a deterministic refusal.
    pub async fn keep_refusal(&self, key: CacheKey, status: StatusCode, body: Bytes) {
        self.refusals.insert(key, (status, body)).await;
    }

    /// Entries and bytes; lags behind by moka's housekeeping, which this call runs.
    pub async fn size(&self) -> (u64, u64) {
        self.entries.run_pending_tasks().await;
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_believed_for_ten_minutes_and_their_number_is_bounded() {
        let policy = MemoryCache::new(1 << 20).refusals.policy();
        assert_eq!(policy.time_to_live(), Some(Duration::from_secs(600)));
        assert_eq!(policy.time_to_idle(), None, "asking does not prolong it");
        assert_eq!(policy.max_capacity(), Some(MAX_REFUSALS));
    }
}
