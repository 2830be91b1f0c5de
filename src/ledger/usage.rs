//! The seam to what people ask of the book: trait [`UsageBook`], who paid, who was served, what that
//! saved, and how it agrees with the upstream's account.
//!
//! It stands beside [`Ledger`](super::Ledger) and is no part of the money path: nothing waits for it
//! before paying.
//!
//! What was paid is read off the calls themselves, each on the day it was reserved, and so exact. What
//! was served is counted by each process and booked in batches ([`ServedBatch`]); a process that is
//! killed takes its last seconds of these counts with it, and never money.
//!
//! # Closed months
//!
//! A month is *closed* when the first day of the next is over. From then on its figures never change. A
//! call of it that changes its state all the same, as an `unknown` that an operator settles, stays in its
//! month what it was, and is an [`Adjustment`] of the day on which it changed: credits that count no more
//! are given back on that day. What was served in a month that is closed by the time it is booked counts
//! on the day of booking.

use std::ops::AddAssign;

use async_trait::async_trait;
use jiff::civil::Date;
use uuid::Uuid;

use super::{CallId, CallState, LedgerError};
use crate::base::outcome::SavingCause;
use crate::base::words::words;

/// Keeps and tells the usage. All methods may be called concurrently; a dropped future may still take
/// effect.
#[async_trait]
pub trait UsageBook: Send + Sync {
    /// Books what a process has served. A batch that is booked already is success and changes nothing,
    /// so that one whose outcome was lost can be repeated; a process books its batches one after the
    /// other, by number.
    async fn book_served(&self, batch: ServedBatch) -> Result<(), LedgerError>;

    /// What each team paid and was served on each of these days, `from` and `to` included, by day and
    /// team. Days and teams without anything are left out.
    async fn usage(&self, from: Date, to: Date) -> Result<Vec<DayUsage>, LedgerError>;

    /// What each team has spent and saved in the present month, by team; cheap, for who asks often.
    async fn month(&self) -> Result<Vec<TeamMonth>, LedgerError>;

    /// Every adjustment booked on these days, `from` and `to` included, in the order of booking.
    async fn adjustments(&self, from: Date, to: Date) -> Result<Vec<Adjustment>, LedgerError>;
}

/// The most that one line of [`ServedBatch`] can count: 64-bit sums hold thousands of such lines.
const MAX_SERVED: u64 = 1 << 50;

words! {
    /// Who had paid for what a team was served.
    #[derive(PartialOrd, Ord)]
    pub enum Payer {
        /// The team itself: saved within the team.
        Own = "own",
        Other = "other",
    }
}

/// Answers of one kind that cost a team nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// When they were served, in the ledger's time zone.
    pub day: Date,
    pub team: String,
    pub cause: SavingCause,
    pub payer: Payer,
    /// How many, and what they would have cost.
    pub count: Count,
}

/// What a process has served since its last batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBatch {
    /// The process, by a random id of its own.
    pub process: Uuid,
    /// 1 for its first, and one more for each.
    pub number: u64,
    /// Each day, team, cause and payer at most once.
    pub served: Vec<Served>,
}

impl ServedBatch {
    /// The lines that a ledger can add up. Others are dropped with a line in the log, because the rest of
    /// the batch would wait for them for as long as the process lives.
    pub fn bookable(&self) -> impl Iterator<Item = &Served> {
        self.served.iter().filter(|line| {
            let is_bookable = line.count.number.max(line.count.credits) <= MAX_SERVED;
            if !is_bookable {
                tracing::error!(team = line.team, day = %line.day, "usage line dropped: its numbers cannot be");
            }
            is_bookable
        })
    }
}

/// A number of calls or requests, and the sum of their credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub number: u64,
    pub credits: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.number = self.number.saturating_add(other.number);
        self.credits = self.credits.saturating_add(other.credits);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayUsage {
    pub day: Date,
    pub team: String,
    pub figures: Figures,
}

/// What was paid and served; sums of them are sums of each figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub(crate) calls: [Count; CallState::ALL.len()],
    pub(crate) served: [[Count; Payer::ALL.len()]; SavingCause::ALL.len()],
    /// Credits by which calls of closed months changed; less than 0 when they are given back.
    pub adjusted: i64,
}

impl Figures {
    /// Calls reserved in the period, by the state they have now or had when their month was closed.
    pub fn calls(&self, state: CallState) -> Count {
        self.calls[state as usize]
    }

    /// The same, to be added to.
    pub fn calls_mut(&mut self, state: CallState) -> &mut Count {
        &mut self.calls[state as usize]
    }

    /// Requests that were answered without a purchase, and what each would have cost.
    pub fn served(&self, cause: SavingCause, payer: Payer) -> Count {
        self.served[cause as usize][payer as usize]
    }

    /// The same, to be added to.
    pub fn served_mut(&mut self, cause: SavingCause, payer: Payer) -> &mut Count {
        &mut self.served[cause as usize][payer as usize]
    }

    /// Calls whose credits count.
    pub fn bought(&self) -> Count {
        let mut bought = Count::default();
        for state in CallState::ALL.into_iter().filter(|state| state.counts_credits()) {
            bought += self.calls(state);
        }
        bought
    }

    /// Credits spent: those of calls that count, and the adjustments.
    pub fn spent(&self) -> i64 {
        i64::try_from(self.bought().credits).unwrap_or(i64::MAX).saturating_add(self.adjusted)
    }

    /// All that was served of what somebody had paid before.
    pub fn saved(&self, payer: Payer) -> Count {
        let mut saved = Count::default();
        for cause in SavingCause::ALL {
            saved += self.served(cause, payer);
        }
        saved
    }
}

impl AddAssign<&Figures> for Figures {
    fn add_assign(&mut self, other: &Figures) {
        for state in CallState::ALL {
            *self.calls_mut(state) += other.calls(state);
        }
        for cause in SavingCause::ALL {
            for payer in Payer::ALL {
                *self.served_mut(cause, payer) += other.served(cause, payer);
            }
        }
        self.adjusted = self.adjusted.saturating_add(other.adjusted);
    }
}

/// What a team has spent and saved in a month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamMonth {
    pub team: String,
    /// Credits, adjustments included.
    pub spent: i64,
    pub saved: u64,
}

/// A change of a call whose month was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustment {
    pub call: CallId,
    pub team: String,
    pub from: CallState,
    pub to: CallState,
    /// Credits by which the day's spending changes: 0, or less when they count no more.
    pub credits: i64,
    pub day: Date,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_cause_has_a_place_of_its_own() {
        let mut figures = Figures::default();
        for (state, number) in CallState::ALL.into_iter().zip(1..) {
            *figures.calls_mut(state) += Count { number, credits: 3 * number };
        }
        for (place, number) in
            SavingCause::ALL.into_iter().flat_map(|cause| Payer::ALL.map(|payer| (cause, payer))).zip(1..)
        {
            *figures.served_mut(place.0, place.1) += Count { number, credits: 3 * number };
        }
        figures.adjusted = -3;
        let mut twice = figures;
        twice += &figures;
        for (state, number) in CallState::ALL.into_iter().zip(1..) {
            assert_eq!(twice.calls(state), Count { number: 2 * number, credits: 6 * number });
        }
        // All but released, refused and failed, which are the 2nd, the 6th and the 7th.
        assert_eq!(figures.bought().number, 55 - 2 - 6 - 7);
        assert_eq!(twice.spent(), 2 * (3 * 40 - 3));
        assert_eq!((figures.saved(Payer::Own).number, figures.saved(Payer::Other).number), (25, 30));
        assert_eq!(twice.saved(Payer::Other).credits, 180);
    }
}
