//! Limits the memory of results: [`ResultRoom`]. A task takes the largest size before it reads a result, and
//! gives the rest back when the length is known. The share is part of the bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Results take whole units.
const UNIT_BYTES: u64 = 4096;

#[derive(Clone, Debug)]
pub struct ResultRoom {
    free: Arc<Semaphore>,
    units: u32,
}

#[derive(Debug)]
pub struct ResultShare(OwnedSemaphorePermit);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many results are in memory")]
pub struct NoResultRoom;

impl ResultRoom {
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits in turn, at most `patience`, for room for `bytes`, or for all of it.
    pub async fn take(&self, bytes: u64, patience: Duration) -> Result<ResultShare, NoResultRoom> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units);
        let taken = self.free.clone().acquire_many_owned(units);
        match tokio::time::timeout(patience, taken).await {
            Ok(taken) => Ok(ResultShare(taken.expect("the semaphore is never closed"))),
            Err(_) => Err(NoResultRoom),
        }
    }

    /// Bytes.
    pub fn used(&self) -> u64 {
        self.limit() - (self.free.available_permits() as u64 * UNIT_BYTES).min(self.limit())
    }

    /// Bytes.
    pub fn limit(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }
}

impl ResultShare {
    /// Binds the share to `bytes`, and gives back what they do not need.
    pub fn hold(mut self, bytes: Bytes) -> Bytes {
        let needed = bytes.len().div_ceil(UNIT_BYTES as usize);
        let surplus = self.0.num_permits().saturating_sub(needed);
        drop(self.0.split(surplus));
        Bytes::from_owner(Counted { bytes, _share: self })
    }
}

struct Counted {
    bytes: Bytes,
    _share: ResultShare,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const NOW: Duration = Duration::ZERO;

    #[tokio::test]
    async fn a_result_takes_its_length_until_its_last_slice_is_gone() {
        let room = ResultRoom::new(MIB);
        let share = room.take(MIB, NOW).await.expect("all of it is free");
        assert_eq!((room.used(), room.limit()), (MIB, MIB));
        assert_eq!(room.take(1, NOW).await.expect_err("nothing is free"), NoResultRoom);
        let held = share.hold(Bytes::from(vec![7; 5000]));
        assert_eq!(room.used(), 8192);
        let slice = held.slice(10..20);
        drop(held);
        assert_eq!(room.used(), 8192);
        assert_eq!(slice[..], [7; 10]);
        drop(slice);
        assert_eq!(room.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_has_room_as_soon_as_another_is_done_and_not_for_ever() {
        let room = ResultRoom::new(MIB);
        let first = room.take(MIB, NOW).await.expect("all of it is free");
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.take(MIB, Duration::from_secs(5)).await }
        });
        tokio::time::sleep(Duration::from_secs(4)).await;
        drop(first);
        let second = waiting.await.expect("no panic").expect("it was in time");
        assert!(room.take(1, Duration::from_secs(5)).await.is_err());
        drop(second);
        assert_eq!(room.used(), 0);
    }

    #[tokio::test]
    async fn what_is_larger_than_the_room_takes_all_of_it() {
        let room = ResultRoom::new(MIB);
        let share = room.take(u64::MAX, NOW).await.expect("all of it");
        assert_eq!(room.used(), MIB);
        let held = share.hold(Bytes::from(vec![0; 2 * MIB as usize]));
        assert_eq!(room.used(), MIB);
        drop(held);
        assert_eq!(room.used(), 0);
    }
}
