//! Does the ledger agree with the upstream's account? [`Reconciler`] asks for the balance, which is
//! free, now and then, and compares: what left the account since a baseline and is not in the ledger was
//! spent *outside* of Granary.
//!
//! ```text
//! outside = (balance at the baseline − balance) − credits the ledger has booked since the baseline
//! ```
//!
//! The ledger is read before and after the balance. A call that is sent and not booked by then may have
//! been charged or not, so the figure is known only to lie between two bounds; it is then left where it
//! was, or moved to the nearer bound, so that no call under way looks like somebody else's. An `unknown`
//! call counts as charged, as it does against budgets: when it was not, the figure is less than 0 until
//! somebody settles it.
//!
//! The baseline is the first balance ever seen. A balance that rises was topped up, and begins a new one.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::base::clock::Clock;
use crate::base::random::jittered;
use crate::ledger::LedgerError;
use crate::ledger::usage::{AccountRow, Baseline, Charged, UsageBook};
use crate::upstream::Upstream;

/// Compares one account with one ledger; see the module.
pub struct Reconciler {
    book: Arc<dyn UsageBook>,
    upstream: Arc<dyn Upstream>,
    namespace: String,
    clock: Clock,
    last: Mutex<Option<Reconciliation>>,
}

/// What the last comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// The account, as it is kept.
    pub account: AccountRow,
    /// Credits that the ledger had booked since the baseline, at the last comparison.
    pub booked: u64,
    /// Credits of calls that were under way then, and may have been charged or not.
    pub open: u64,
}

impl Reconciler {
    /// The account of `upstream` pays for the calls of `namespace`.
    pub fn new(
        book: Arc<dyn UsageBook>,
        upstream: Arc<dyn Upstream>,
        namespace: String,
        clock: Clock,
    ) -> Self {
        Self { book, upstream, namespace, clock, last: Mutex::default() }
    }

    /// What was found last, by this process or an earlier one; `None` before the first balance.
    pub fn last(&self) -> Option<Reconciliation> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Compares for ever: at once, and then every `interval` or somewhat less, unless `may_ask` says
    /// that the upstream is to be left alone.
    pub async fn run(self: Arc<Self>, interval: Duration, may_ask: impl Fn() -> bool) {
        if let Err(error) = self.remember().await {
            tracing::warn!(%error, "what was known of the upstream's account cannot be read");
        }
        loop {
            if may_ask()
                && let Err(error) = self.compare().await
            {
                tracing::warn!(%error, "ledger and account could not be compared");
            }
            tokio::time::sleep(jittered(interval)).await;
        }
    }

    /// What an earlier process knew is known until there is news.
    async fn remember(&self) -> Result<(), LedgerError> {
        let Some(account) = self.book.account(&self.namespace).await? else { return Ok(()) };
        let charged = self.book.charged(&self.namespace).await?;
        self.know(account, charged);
        Ok(())
    }

    /// Asks for the balance and compares once. Without a balance everything stays as it is.
    ///
    /// # Errors
    /// [`LedgerError`]: what is known is what was known before.
    pub async fn compare(&self) -> Result<(), LedgerError> {
        // Read first: whoever keeps a balance meanwhile has seen it later than this row's, and ours is
        // not kept then, because it may be older than theirs.
        let before = self.book.account(&self.namespace).await?;
        let charged_before = self.book.charged(&self.namespace).await?;
        let Some(balance) = self.upstream.credits_left().await else {
            tracing::debug!("the upstream did not tell its balance");
            return Ok(());
        };
        let charged = self.book.charged(&self.namespace).await?;
        let bounds = Bounds {
            // A call that was settled in between counts no more.
            least: charged_before.booked.min(charged.booked),
            most: charged.booked + charged.open,
        };
        let account = next(before.as_ref(), balance, bounds, self.clock.now());
        if !self.book.keep_account(&self.namespace, &account).await? {
            return self.remember().await;
        }
        tell(before.as_ref(), &account);
        self.know(account, charged);
        Ok(())
    }

    fn know(&self, account: AccountRow, charged: Charged) {
        let booked = charged.booked.saturating_sub(account.baseline.least);
        let found = Reconciliation { account, booked, open: charged.open };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }
}

/// What had been charged for calls when a balance was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    least: u64,
    most: u64,
}

/// What is to be kept once a balance was seen.
fn next(before: Option<&AccountRow>, balance: u64, charged: Bounds, now: jiff::Timestamp) -> AccountRow {
    let here = Baseline { balance, least: charged.least, most: charged.most, at: now };
    let Some(before) = before.filter(|before| balance <= before.balance) else {
        let version = before.map_or(0, |before| before.version) + 1;
        return AccountRow { version, balance, seen_at: now, baseline: here, outside: 0 };
    };
    let (low, high) = outside(&before.baseline, balance, charged);
    let outside = before.outside.clamp(low, high);
    let is_exact = |baseline: &Baseline| baseline.least == baseline.most;
    // Nothing is lost by beginning anew where it is known exactly, and the bounds become tight.
    let is_better = outside == 0 && is_exact(&here) && !is_exact(&before.baseline);
    let baseline = if is_better { here } else { before.baseline.clone() };
    AccountRow { version: before.version + 1, balance, seen_at: now, baseline, outside }
}

/// Between what bounds the credits lie that were spent outside since the baseline.
fn outside(baseline: &Baseline, balance: u64, charged: Bounds) -> (i64, i64) {
    let number = |credits: u64| i64::try_from(credits).unwrap_or(i64::MAX);
    let gone = number(baseline.balance).saturating_sub(number(balance));
    let most = number(charged.most).saturating_sub(number(baseline.least));
    let least = number(charged.least).saturating_sub(number(baseline.most));
    (gone.saturating_sub(most), gone.saturating_sub(least))
}

/// Says what is news.
fn tell(before: Option<&AccountRow>, now: &AccountRow) {
    match before {
        None => tracing::info!(balance = now.balance, "the upstream's balance is known: it is the baseline"),
        Some(before) if now.balance > before.balance => tracing::info!(
            balance = now.balance,
            was = before.balance,
            outside = before.outside,
            "the upstream's account was topped up: its balance is the new baseline"
        ),
        Some(before) if now.outside > before.outside && now.outside > 0 => tracing::warn!(
            outside = now.outside,
            balance = now.balance,
            baseline = now.baseline.balance,
            "credits were spent from the upstream's account that are not in this ledger"
        ),
        Some(_) => {}
    }
}
