//! Results on their way to clients: read once and in memory once for any number of clients, which all permits for
//! bytes together limit.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::base::permits::{Party, Permit, Permits, Sharing};
use crate::base::picture::ObjectName;
use crate::store::StoreError;

/// Wait for memory that other clients hold.
const PATIENCE: Duration = Duration::from_secs(5);
const READERS: u64 = 6;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ObjectError {
    /// Results of other clients hold all memory.
    #[error("too many results are in memory")]
    NoRoom,
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) type Outcome = Result<Option<Bytes>, ObjectError>;

type Places = Arc<Mutex<HashMap<ObjectName, Weak<Place>>>>;

pub(super) struct Serving {
    bytes: Permits,
    /// Concurrent reads of the store: fewer than the store's own limit, so that clients wait here, in turns.
    readers: Permits,
    places: Places,
}

/// One result, for as long as it is held.
struct Place {
    name: ObjectName,
    outcome: OnceCell<Outcome>,
    places: Places,
}

struct Served {
    bytes: Bytes,
    _place: Arc<Place>,
}

impl AsRef<[u8]> for Served {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Serving {
    pub(super) fn new(bytes: Permits) -> Self {
        Self { bytes, readers: Permits::new(READERS, Sharing::Whole), places: Places::default() }
    }

    /// Waits for room for as many bytes.
    pub(super) async fn room(&self, party: &Party, bytes: u64) -> Result<Permit, ObjectError> {
        self.bytes.take_within(party, bytes, PATIENCE).await.ok_or(ObjectError::NoRoom)
    }

    /// Room for a result, and the turn of a reader.
    pub(super) async fn room_to_read(
        &self,
        party: &Party,
        bytes: u64,
    ) -> Result<(Permit, Permit), ObjectError> {
        let begun = Instant::now();
        let turn = self.readers.take_within(party, 1, PATIENCE).await.ok_or(ObjectError::NoRoom)?;
        let patience = PATIENCE.saturating_sub(begun.elapsed());
        let permit = self.bytes.take_within(party, bytes, patience).await.ok_or(ObjectError::NoRoom)?;
        Ok((permit, turn))
    }

    /// Single-flight read: concurrent callers share one read, including its error. A miss is not cached.
    pub(super) async fn object(&self, name: ObjectName, read: impl Future<Output = Outcome>) -> Outcome {
        let place = self.place(name);
        let bytes = place.outcome.get_or_init(|| read).await.clone()?;
        Ok(bytes.map(|bytes| Bytes::from_owner(Served { bytes, _place: place })))
    }

    fn place(&self, name: ObjectName) -> Arc<Place> {
        let mut places = self.places.lock();
        if let Some(place) = places.get(&name).and_then(Weak::upgrade) {
            return place;
        }
        let place = Arc::new(Place { name, outcome: OnceCell::new(), places: self.places.clone() });
        places.insert(name, Arc::downgrade(&place));
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        // Another caller may have made a new place.
        if places.get(&self.name).is_some_and(|place| place.strong_count() == 0) {
            places.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn name(bytes: &[u8]) -> ObjectName {
        ObjectName::of(&[b"BM", bytes].concat()).expect("a picture by its first bytes")
    }

    /// A result of so many bytes, in the room.
    async fn result(serving: &Serving, length: u64) -> Outcome {
        let mut permit = serving.room(&Party::new("client"), 4 * MIB).await?;
        tokio::task::yield_now().await;
        permit.shrink_to(length);
        Ok(Some(permit.hold(vec![1; length as usize])))
    }

    #[tokio::test]
    async fn thousands_who_ask_at_once_share_one_read_and_its_memory() {
        let serving = Serving::new(Permits::new(4 * MIB, Sharing::Whole));
        let reads = AtomicUsize::new(0);
        let read = async || {
            reads.fetch_add(1, Ordering::Relaxed);
            result(&serving, MIB).await
        };
        let asked = join_all((0..10_000).map(|_| serving.object(name(b"hot"), read()))).await;
        let bytes: Vec<Bytes> = asked.into_iter().map(|bytes| bytes.expect("room").expect("found")).collect();
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        assert!(bytes.iter().all(|other| other.as_ptr() == bytes[0].as_ptr()), "one copy");
        assert_eq!(serving.bytes.used(), MIB);
        let (slow, rest) = bytes.split_first().expect("ten thousand");
        let (slow, _) = (slow.slice(5..), drop(rest.to_vec()));
        drop(bytes);
        // Who comes later shares what the slowest still has.
        serving.object(name(b"hot"), read()).await.expect("room").expect("found");
        assert_eq!((reads.load(Ordering::Relaxed), serving.bytes.used()), (1, MIB));
        drop(slow);
        assert_eq!(serving.bytes.used(), 0);
        assert!(serving.places.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn distinct_results_wait_for_room_and_are_refused_when_it_does_not_come() {
        let serving = Serving::new(Permits::new(4 * MIB, Sharing::Whole));
        let get = async |n: u8| serving.object(name(&[n]), result(&serving, 3 * MIB)).await;
        let first = get(1).await.expect("room").expect("found");
        let second = get(2).await;
        assert!(matches!(second, Err(ObjectError::NoRoom)));
        let (third, ()) = tokio::join!(get(3), async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(first);
        });
        assert_eq!(third.expect("room").expect("found").len() as u64, 3 * MIB);
        assert_eq!(serving.bytes.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn result_in_memory_goes_out_and_another_party_reads_next_while_a_silent_store_keeps_all_readers() {
        let serving = Serving::new(Permits::new(64 * MIB, Sharing::Headroom));
        let [party, other] = ["attacker", "other"].map(Party::new);
        let mut reading = join_all((0..READERS).map(|_| serving.room_to_read(&party, MIB))).await;
        let mut waiting = join_all((0..10).map(|_| serving.room_to_read(&party, MIB))).boxed();
        assert!(futures_util::poll!(&mut waiting).is_pending());
        serving.room(&other, MIB).await.expect("room for a result in memory");
        let mut turn = serving.room_to_read(&other, MIB).boxed();
        assert!(futures_util::poll!(&mut turn).is_pending());
        drop(reading.pop());
        assert!(futures_util::poll!(&mut turn).is_ready(), "the next turn is another's");
        let waited = waiting.await;
        assert!(waited.iter().all(|permit| permit.is_ok() || matches!(permit, Err(ObjectError::NoRoom))));
        drop((reading, waited));
        assert_eq!(serving.bytes.used(), 0);
    }

    #[tokio::test]
    async fn errors_and_absences_are_shared_and_not_kept() {
        let serving = Serving::new(Permits::new(MIB, Sharing::Whole));
        let outcomes = std::sync::Mutex::new(vec![
            Ok(None),
            Err(ObjectError::Store(StoreError::Unavailable("planted".to_owned()))),
        ]);
        let read = async || {
            tokio::task::yield_now().await;
            outcomes.lock().expect("no panic").pop().expect("read twice at most")
        };
        let asked = join_all((0..100).map(|_| serving.object(name(b"x"), read()))).await;
        assert!(asked.iter().all(|outcome| matches!(outcome, Err(ObjectError::Store(_)))));
        drop(asked);
        let asked = join_all((0..100).map(|_| serving.object(name(b"x"), read()))).await;
        assert!(asked.iter().all(|outcome| matches!(outcome, Ok(None))));
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_leaves_the_reading_to_another() {
        let serving = Serving::new(Permits::new(MIB, Sharing::Whole));
        let mut first = Box::pin(serving.object(name(b"x"), std::future::pending()));
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = serving.object(name(b"x"), async { Ok(Some(Bytes::from_static(b"found"))) });
        let (second, ()) = tokio::join!(second, async { drop(first) });
        assert_eq!(second.expect("no error").expect("found"), "found");
    }
}
