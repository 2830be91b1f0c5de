//! The time that one request may wait for the store: [`StoreBudget`].

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::StoreError;
use crate::base::permits::{Party, Permits};

/// Leaves time for the spool: the first miss must be answered within 8 s.
const WHOLE: Duration = Duration::from_secs(5);

/// Left for one request, from lookup to fill, or for one background attempt.
#[derive(Clone, Debug)]
pub struct StoreBudget {
    left: Duration,
    /// Whose turns its [reads](Self::read) take, if others wait for theirs.
    turns: Option<(Permits, Party)>,
}

impl Default for StoreBudget {
    fn default() -> Self {
        Self { left: WHOLE, turns: None }
    }
}

impl StoreBudget {
    pub fn of(reads: Permits, party: Party) -> Self {
        Self { turns: Some((reads, party)), ..Self::default() }
    }

    /// Reads a record: so many at once that a party's flood of them would make others wait.
    pub async fn read<T>(
        &mut self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let turns = self.turns.clone();
        self.wait(async {
            let _turn = match &turns {
                Some((reads, party)) => Some(reads.take(party, 1).await),
                None => None,
            };
            work.await
        })
        .await
    }

    /// After the time left, [`StoreError::Busy`]: the store or this process may be slow.
    pub async fn wait<T>(
        &mut self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let done = timeout(self.left, work).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        done.unwrap_or_else(|_| Err(StoreError::Busy(format!("one request waits no longer than {WHOLE:?}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_waits_of_one_request_together_end_after_five_seconds() {
        let mut budget = StoreBudget::default();
        let begun = Instant::now();
        let slow = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(())
        };
        budget.wait(slow).await.unwrap();
        // What is done meanwhile is not waiting for the store.
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..3 {
            let hung = budget.wait(std::future::pending::<Result<(), _>>()).await;
            assert!(matches!(hung, Err(StoreError::Busy(_))), "{hung:?}");
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(65));
        budget.wait(async { Ok(()) }).await.unwrap();
    }
}
