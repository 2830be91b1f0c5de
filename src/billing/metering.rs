//! Requests served without paying, counted in memory and booked in batches: [`Meter`]. A hit must not wait
//! for the ledger. A batch has the process's id and a number, so that one whose commit was not acknowledged
//! is booked once. While the ledger is unavailable the counts stay a few numbers for each team and day. A
//! killed process loses the counts since its last batch: figures, never money.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::base::clock::Clock;
use crate::base::identity::Identity;
use crate::base::outcome::SavingCause;
use crate::base::random::jittered;
use crate::base::record::MAX_CREDITS;
use crate::ledger::LedgerError;
use crate::ledger::usage::{Count, Payer, Served, ServedBatch, UsageBook};

/// At most, between two batches.
pub const FLUSH_PERIOD: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(5);
/// Days kept apart while the ledger is unavailable; the oldest ones become one.
const MOST_DAYS: usize = 32;
/// In about 2 MiB; savings of further lookups of a day are not counted.
const MOST_LOOK_UPS: usize = 100_000;
/// For a cached date.
const SAME_DAY: SignedDuration = SignedDuration::from_secs(30);

pub struct Meter {
    counts: Mutex<Counts>,
    /// One batch at a time is in flight.
    flushing: tokio::sync::Mutex<Outbox>,
    process: Uuid,
    clock: Clock,
    zone: TimeZone,
    hasher: RandomState,
}

#[derive(Default)]
struct Counts {
    days: VecDeque<(Date, HashMap<String, TeamCounts>)>,
    today: Option<Today>,
    /// The counted lookups of a day, by a hash of team and key.
    looked_up: (Option<Date>, HashSet<u64>),
    /// In the batch in flight, and in `days`.
    unbooked: u64,
}

type TeamCounts = [[Count; Payer::ALL.len()]; SavingCause::ALL.len()];

/// A cached calendar day: computing it costs more than a hit should.
#[derive(Clone, Copy)]
struct Today {
    date: Date,
    looked_at: Timestamp,
    ends: Timestamp,
}

/// Does not change until it is booked.
#[derive(Default)]
struct Outbox {
    booked: u64,
    pending: Option<ServedBatch>,
}

impl Meter {
    pub fn new(clock: Clock, zone: TimeZone) -> Self {
        let (counts, flushing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { counts, flushing, process: Uuid::new_v4(), clock, zone, hasher: RandomState::new() }
    }

    /// `credits`: the price of a purchase.
    pub fn served(&self, team: &str, cause: SavingCause, payer: Payer, credits: u64) {
        let now = self.clock.now();
        let mut counts = self.counts.lock();
        let today = counts.today(now, &self.zone);
        let teams = counts.of_day(today);
        let team = match teams.get_mut(team) {
            Some(team) => team,
            None => teams.entry(team.to_owned()).or_default(),
        };
        // A ledger may have records that were imported before their numbers were checked.
        let credits = credits.min(MAX_CREDITS);
        team[cause as usize][payer as usize] += Count { number: 1, credits };
        counts.unbooked += 1;
    }

    /// As far as this process remembers.
    pub fn is_first_look_up(&self, team: &str, identity: &Identity) -> bool {
        let now = self.clock.now();
        let mut counts = self.counts.lock();
        let today = counts.today(now, &self.zone);
        let (day, seen) = &mut counts.looked_up;
        if *day != Some(today) {
            (*day, *seen) = (Some(today), HashSet::new());
        }
        seen.len() < MOST_LOOK_UPS && seen.insert(self.hasher.hash_one((team, identity)))
    }

    pub fn unbooked(&self) -> u64 {
        self.counts.lock().unbooked
    }

    /// After an error the batch is kept, and booked by the next call.
    pub async fn flush(&self, book: &dyn UsageBook) -> Result<(), LedgerError> {
        let mut outbox = self.flushing.lock().await;
        // A pending batch goes first, and alone: it may be booked already.
        loop {
            let was_pending = outbox.pending.is_some();
            if !was_pending {
                outbox.pending = self.take(outbox.booked + 1);
            }
            let Some(batch) = outbox.pending.clone() else { return Ok(()) };
            let number = batch.number;
            let requests: u64 = batch.served.iter().map(|served| served.count.number).sum();
            let booked = tokio::time::timeout(PATIENCE, book.book_served(batch)).await;
            booked.unwrap_or_else(|_| {
                Err(LedgerError::Unavailable(format!("it did not answer within {PATIENCE:?}")))
            })?;
            (outbox.booked, outbox.pending) = (number, None);
            let mut counts = self.counts.lock();
            counts.unbooked = counts.unbooked.saturating_sub(requests);
            if !was_pending {
                return Ok(());
            }
        }
    }

    pub async fn run(self: Arc<Self>, book: Arc<dyn UsageBook>) {
        let mut is_away = false;
        loop {
            tokio::time::sleep(jittered(FLUSH_PERIOD)).await;
            let booked = self.flush(&*book).await;
            match &booked {
                Ok(()) if is_away => tracing::info!("what was served is booked again"),
                Err(error) if !is_away => {
                    tracing::warn!(%error, "what was served cannot be booked, and is counted in memory");
                }
                Ok(()) | Err(_) => {}
            }
            is_away = booked.is_err();
        }
    }

    /// Books the rest at a stop. Counts that cannot be booked are lost, and logged.
    pub async fn close(&self, book: &dyn UsageBook) {
        if let Err(error) = self.flush(book).await {
            tracing::error!(
                %error,
                requests = self.unbooked(),
                "what was served last could not be booked and is missing in the usage"
            );
        }
    }

    fn take(&self, number: u64) -> Option<ServedBatch> {
        let days = std::mem::take(&mut self.counts.lock().days);
        let mut served = Vec::new();
        for (day, teams) in days {
            for (team, counts) in teams {
                for cause in SavingCause::ALL {
                    for payer in Payer::ALL {
                        let count = counts[cause as usize][payer as usize];
                        if count != Count::default() {
                            served.push(Served { day, team: team.clone(), cause, payer, count });
                        }
                    }
                }
            }
        }
        (!served.is_empty()).then_some(ServedBatch { process: self.process, number, served })
    }
}

impl Counts {
    fn today(&mut self, now: Timestamp, zone: &TimeZone) -> Date {
        if let Some(today) = self.today
            && today.looked_at <= now
            && now < today.ends
            && now.duration_since(today.looked_at) < SAME_DAY
        {
            return today.date;
        }
        let date = now.to_zoned_datetime(zone.clone()).date();
        let tomorrow = date.tomorrow().and_then(|date| date.to_zoned_datetime(zone.clone()));
        let ends = tomorrow.map_or(Timestamp::MAX, |tomorrow| tomorrow.timestamp());
        self.today = Some(Today { date, looked_at: now, ends });
        date
    }

    fn of_day(&mut self, day: Date) -> &mut HashMap<String, TeamCounts> {
        let found = self.days.iter().rposition(|(date, _)| *date == day);
        let place = found.unwrap_or_else(|| {
            if self.days.len() >= MOST_DAYS {
                self.join_the_oldest();
            }
            self.days.push_back((day, HashMap::new()));
            self.days.len() - 1
        });
        &mut self.days[place].1
    }

    /// Its counts go to the next day.
    fn join_the_oldest(&mut self) {
        let Some((_, oldest)) = self.days.pop_front() else { return };
        let Some((_, next)) = self.days.front_mut() else { return };
        for (team, counts) in oldest {
            let sums = next.entry(team).or_default();
            for (sum, count) in sums.iter_mut().flatten().zip(counts.into_iter().flatten()) {
                *sum += count;
            }
        }
    }
}

#[cfg(test)]
mod tests;
