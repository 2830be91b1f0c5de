//! Usage and savings by team and day: trait [`UsageBook`], beside the money path. Paid calls are read from
//! the rows themselves, each on the day of its reservation, and are exact. Served requests are counted by
//! each process and booked in batches ([`ServedBatch`]); a killed process loses some.
//!
//! A month is *closed* when the first day of the next is over; its figures never change from then on. Then a call
//! that changes its state gets an adjustment on that day, and requests booked late count on the day of booking.

use std::ops::AddAssign;

use async_trait::async_trait;
use jiff::civil::Date;
use uuid::Uuid;

use super::{CallState, LedgerError};
use crate::base::outcome::SavingCause;
use crate::base::words::words;

#[async_trait]
pub trait UsageBook: Send + Sync {
    /// Booking a batch again changes nothing. A process books its batches one after the other, by number.
    async fn book_served(&self, batch: ServedBatch) -> Result<(), LedgerError>;

    /// By day and team; `to` is included. Days without usage are left out.
    async fn usage(&self, from: Date, to: Date) -> Result<Vec<DayUsage>, LedgerError>;

    /// Of the current month, by team; cheap, for frequent calls.
    async fn month(&self) -> Result<Vec<TeamMonth>, LedgerError>;
}

/// 64-bit sums hold thousands of such lines.
const MAX_SERVED: u64 = 1 << 50;

words! {
    /// Who paid for the result that a team was served.
    #[derive(PartialOrd, Ord)]
    pub enum Payer {
        Own = "own",
        Other = "other",
    }
}

/// Requests of one kind that cost their team nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// In the ledger's time zone.
    pub day: Date,
    pub team: String,
    pub cause: SavingCause,
    pub payer: Payer,
    pub count: Count,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBatch {
    pub process: Uuid,
    /// From 1 on, without gaps.
    pub number: u64,
    /// Each day, team, cause and payer at most once.
    pub served: Vec<Served>,
}

impl ServedBatch {
    /// The lines that a ledger can add up. Others are dropped, because they would block the batch.
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub(crate) calls: [Count; CallState::ALL.len()],
    pub(crate) served: [[Count; Payer::ALL.len()]; SavingCause::ALL.len()],
    /// Credits of adjustments; below 0 when they are given back.
    pub adjusted: i64,
}

impl Figures {
    /// Calls reserved in the period, by their state now or when their month was closed.
    pub fn calls(&self, state: CallState) -> Count {
        self.calls[state as usize]
    }

    pub fn calls_mut(&mut self, state: CallState) -> &mut Count {
        &mut self.calls[state as usize]
    }

    pub fn served(&self, cause: SavingCause, payer: Payer) -> Count {
        self.served[cause as usize][payer as usize]
    }

    pub fn served_mut(&mut self, cause: SavingCause, payer: Payer) -> &mut Count {
        &mut self.served[cause as usize][payer as usize]
    }

    pub fn bought(&self) -> Count {
        let mut bought = Count::default();
        for state in CallState::ALL.into_iter().filter(|state| state.counts_credits()) {
            bought += self.calls(state);
        }
        bought
    }

    /// Credits of calls that count, and of adjustments.
    pub fn spent(&self) -> i64 {
        i64::try_from(self.bought().credits).unwrap_or(i64::MAX).saturating_add(self.adjusted)
    }

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
        for (sum, more) in self.calls.iter_mut().zip(other.calls) {
            *sum += more;
        }
        for (sum, more) in self.served.as_flattened_mut().iter_mut().zip(other.served.as_flattened()) {
            *sum += *more;
        }
        self.adjusted = self.adjusted.saturating_add(other.adjusted);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamMonth {
    pub team: String,
    /// With adjustments.
    pub spent: i64,
    pub saved: u64,
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
