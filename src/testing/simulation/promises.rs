//! The promises, checked after every step against what the world knows and its processes do not.

use std::collections::BTreeMap;
use std::time::Duration;

use granary_kit::model::{Balance, Served, check_charges};
use tokio::task::Id;

use super::NAMESPACE;
use super::clients::{CREDITS, ROOT};
use super::process::{Life, Purchase, URL_TTL};
use super::sales::{Sold, number_of};
use super::world::World;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::error::GatewayError;
use crate::gateway::CropReply;
use crate::ledger::{
    Booking, CallId, CallState, ForeignOpenCall, LedgerError, Recovery, Reservation, Reserved,
};
use crate::testing::memory_ledger::{Book, Row};

/// How long a URL is dead before its result counts as gone: a quarter of an hour, as far as a fetch
/// that takes half a minute can tell.
const DEAD_FOR: Duration = Duration::from_secs(14 * 60);

/// Was the answer of a call in this state booked?
fn is_booked(row: &Row) -> bool {
    let booked = [CallState::Answered, CallState::Stored, CallState::Unfetchable, CallState::Lost];
    booked.contains(&row.state) && !row.adopted
}

/// Returns true when a row was stored with the result of another sale, which may be lost by now.
fn is_of_another_sale(row: &Row, number: usize) -> bool {
    let is_kept = matches!(row.state, CallState::Stored | CallState::Lost);
    let record = row.record.as_ref().filter(|_| is_kept);
    record.is_some_and(|record| number_of(&record.upstream_request_id) != Some(number))
}

impl World {
    /// What must hold at any time: every row agrees with what the upstream charged for it, every
    /// ledger as a whole, every counter with its rows, and no budget is overspent.
    pub(super) fn check(&self) {
        let ledgers = self.state().ledgers.len();
        for number in 0..ledgers {
            if let Err(what) = self.check_ledger(number) {
                self.violate(what);
            }
        }
    }

    fn check_ledger(&self, number: usize) -> Result<(), String> {
        let ledger = self.ledger(number);
        let book = ledger.book();
        let mut state = self.state();
        let present = (book.version, state.sales.len());
        if std::mem::replace(&mut state.checked[number], present) == present {
            return Ok(());
        }
        let mut balance = Balance::default();
        let mut charged: BTreeMap<CallId, u64> = BTreeMap::new();
        for sale in state.sales.iter().filter(|sale| sale.ledger == number) {
            *charged.entry(sale.row).or_default() += u64::from(sale.is_charged);
            balance.charges += u64::from(sale.is_charged);
        }
        let unknown = book.rows.iter().filter(|row| row.state == CallState::Unknown);
        state.doubted.extend(unknown.map(|row| (number, row.id)));
        drop(state);
        for row in &book.rows {
            let charges = charged.get(&row.id).copied();
            if self.is_settled_by_another(number, row) {
                if charges.unwrap_or(0) > 1 {
                    return Err(format!("ledger {number}: row {} was charged {charges:?}", row.id.0));
                }
                balance.unknown += 1;
                continue;
            }
            let agrees = match row.state {
                CallState::Reserved => charges.is_none(),
                CallState::Released | CallState::Refused | CallState::Failed => charges.unwrap_or(0) == 0,
                CallState::Sent | CallState::Unknown => charges.unwrap_or(0) <= 1,
                _ if row.adopted => charges.is_none(),
                _ => charges == Some(1),
            };
            if !agrees {
                let state = row.state.as_str();
                return Err(format!(
                    "ledger {number}: row {} is {state}, and charges are {charges:?}",
                    row.id.0
                ));
            }
            balance.booked += u64::from(is_booked(row));
            balance.unknown += u64::from(row.state == CallState::Unknown);
            balance.open += u64::from(row.state == CallState::Sent);
        }
        balance.check().map_err(|what| format!("ledger {number}: {what}"))?;
        self.check_counters(&book)
    }

    /// A call that is unknown, for all that is true: the record of another call was taken for its own. Only
    /// where two ledgers buy into one store, or two of its owners died, can that be.
    fn is_settled_by_another(&self, number: usize, row: &Row) -> bool {
        let Some(record) = row.record.as_ref().filter(|_| !row.adopted) else { return false };
        let state = self.state();
        let sale = number_of(&record.upstream_request_id).and_then(|sale| state.sales.get(sale));
        sale.is_none_or(|sale| (sale.ledger, sale.row) != (number, row.id))
    }

    /// Calls whose owner died although the store has their result, unless it was taken for that of another such
    /// call of the same team and price.
    pub(super) fn orphans_with_a_record(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, ledger) in self.ledgers().iter().enumerate() {
            let orphans = ledger.book().orphans();
            for orphan in orphans {
                let Ok(Some(record)) = self.store.record(&orphan.namespace, orphan.key) else { continue };
                let is_kept = |row: &Row| {
                    row.record
                        .as_ref()
                        .is_some_and(|own| own.upstream_request_id == record.upstream_request_id)
                };
                if ledger.book().rows.iter().any(is_kept) {
                    continue;
                }
                let state = self.state();
                let sale = number_of(&record.upstream_request_id).and_then(|sale| state.sales.get(sale));
                if sale.is_some_and(|sale| (sale.ledger, sale.row) == (number, orphan.id)) {
                    found.push(format!(
                        "row {} of ledger {number} is unknown, and the store has its result",
                        orphan.id.0
                    ));
                }
            }
        }
        found
    }

    fn check_counters(&self, book: &Book) -> Result<(), String> {
        let mut sums: BTreeMap<(String, String), i64> = BTreeMap::new();
        for row in book.rows.iter().filter(|row| row.state.counts_credits() && !row.adopted) {
            for counter in row.counters() {
                *sums.entry(counter).or_default() += row.bought.credits as i64;
            }
        }
        // Refused calls have a counter of their own, which is no sum of credits.
        let budgets = book.spent.iter().filter(|((scope, _), _)| !scope.starts_with("refused:"));
        for (counter @ (scope, window), &credits) in budgets {
            let sum = sums.remove(counter).unwrap_or(0);
            if sum != credits {
                return Err(format!("the counter of {scope} in {window} is {credits}, its rows say {sum}"));
            }
            let is_day = window.len() == "2026-11-22".len();
            if let Some(limit) = self.teams.limit(scope, is_day).filter(|&limit| credits > limit as i64) {
                return Err(format!("{scope} spent {credits} of {limit} in {window}"));
            }
        }
        match sums.first_key_value() {
            Some(((scope, window), sum)) => Err(format!("{scope} in {window} has {sum} and no counter")),
            None => Ok(()),
        }
    }

    /// A reservation was decided. Whoever wins may buy, so everything bought before must have come
    /// to an end that permits it.
    pub(super) fn was_reserved(
        &self,
        life: &Life,
        wanted: &Reservation,
        reserved: &Reserved,
        task: Option<Id>,
    ) {
        let Reserved::Won(won) = reserved else {
            self.count(match reserved {
                Reserved::Held(_) => "reservations held",
                Reserved::Stored(_) => "reservations that found it stored",
                Reserved::Resting { .. } => "reservations of a resting key",
                Reserved::OverBudget(_) => "reservations over budget",
                Reserved::Frozen(_) => "reservations frozen",
                Reserved::Won(_) => "reservations won",
            });
            return;
        };
        self.count("reservations won");
        let key = wanted.key;
        self.note(|| {
            let (row, name) = (won.id.0, self.teams.name_of(key));
            format!(
                "{} reserves {name} for {}: row {row}, generation {}",
                life.name(),
                wanted.team,
                won.generation
            )
        });
        if let Some((row, state)) = self.bought_before(life.ledger, wanted) {
            let (name, state) = (self.teams.name_of(key), state.as_str());
            self.violate(format!("{} may buy {name}, for which row {} is {state}", life.name(), row.0));
        }
        self.state().owners.insert((life.ledger, won.id), life.number);
        let is_permanent = self.is_permanent(key, won.generation);
        life.won(wanted, *won, task, is_permanent);
    }

    /// A charged call of the key that has not come to an end which permits another.
    fn bought_before(&self, number: usize, wanted: &Reservation) -> Option<(CallId, CallState)> {
        let ledger = self.ledger(number);
        let book = ledger.book();
        let state = self.state();
        let sales = state.sales.iter().filter(|sale| sale.ledger == number && sale.key == wanted.key);
        let rows = sales.filter(|sale| sale.is_charged).filter_map(|sale| book.row(sale.row));
        let mut bought = rows.filter(|row| match row.state {
            CallState::Unknown | CallState::Unfetchable | CallState::Lost => false,
            CallState::Stored => !wanted.refresh && !row.late,
            _ => !row.late,
        });
        bought.next().map(|row| (row.id, row.state))
    }

    /// Does the store have a result that stands in the way of this generation?
    pub(super) fn is_permanent(&self, key: CacheKey, generation: u64) -> bool {
        let record = self.store.record(NAMESPACE, key).ok().flatten();
        record.is_some_and(|record| {
            record.generation >= generation
                && record.object().is_some_and(|object| self.store.has_object(object))
        })
    }

    /// The tail is about to go: the journal says so, and nothing permanent is bought again.
    pub(super) fn check_tail(&self, life: &Life, key: CacheKey, purchase: Option<&Purchase>) {
        let name = self.teams.name_of(key);
        let Some(purchase) = purchase.filter(|purchase| purchase.is_permitted) else {
            return self.violate(format!("{} pays for {name}, and the ledger has not let it", life.name()));
        };
        let state = self.ledger(life.ledger).book().row(purchase.id).map(|row| row.state);
        // `unknown` when somebody has declared the process dead meanwhile, which its lease forbids.
        let is_in_order = match state {
            Some(CallState::Sent) => true,
            Some(CallState::Unknown) => !self.plan.is_fleet,
            _ => false,
        };
        if !is_in_order {
            let row = purchase.id.0;
            self.violate(format!("{} pays for {name} by row {row}, which is {state:?}", life.name()));
        }
        let is_permanent = purchase.was_permanent && self.is_permanent(key, purchase.generation);
        let cannot_know = purchase.is_excused && (purchase.is_refresh || self.cannot_know(life, key));
        if is_permanent && !cannot_know {
            self.violate(format!("{} buys {name}, which was permanent before it was reserved", life.name()));
        }
    }

    /// While the store cannot be asked: did a process read before that the key is absent, or did another
    /// ledger store it after the import of this one began? A page that was read does not show later records.
    pub(super) fn cannot_know(&self, life: &Life, key: CacheKey) -> bool {
        let state = self.state();
        let Some(&(since, payer)) = state.permanent_since.get(&key) else { return true };
        let import_began = state.import_began.get(&life.ledger);
        let is_foreign = payer != life.ledger && import_began.is_some_and(|&began| began <= since);
        is_foreign || life.was_absent_before(key, since)
    }

    /// Calls whose owner was silent were settled, or have a new owner.
    pub(super) fn was_taken(&self, life: &Life, silent: &[ForeignOpenCall], taken: &Recovery) {
        let (released, unknown) = (taken.released, taken.unknown);
        let unfinished: Vec<i64> = taken.unfinished.iter().map(|call| call.id.0).collect();
        self.note(|| {
            let silent: Vec<i64> = silent.iter().map(|call| call.id.0).collect();
            format!(
                "{} takes over {silent:?}: {released} released, {unknown} unknown, unfinished {unfinished:?}",
                life.name()
            )
        });
        let mut state = self.state();
        for call in silent {
            state.owners.remove(&(life.ledger, call.id));
        }
        for call in &taken.unfinished {
            state.owners.insert((life.ledger, call.id), life.number);
        }
        drop(state);
        for (what, count) in [
            ("calls released by another", released),
            ("calls made unknown by another", unknown),
            ("answered calls taken over", unfinished.len() as u64),
        ] {
            (0..count).for_each(|_| self.count(what));
        }
    }

    /// A call was booked, or not.
    pub(super) fn was_booked(
        &self,
        life: &Life,
        id: CallId,
        from: Option<CallState>,
        booking: &Booking,
        booked: &Result<(), LedgerError>,
    ) {
        let state = booking.state();
        let from = from.map_or("nothing", CallState::as_str);
        self.note(|| {
            let outcome = booked.as_ref().err().map_or("done".to_owned(), ToString::to_string);
            format!("{} books row {} from {from} to {}: {outcome}", life.name(), id.0, state.as_str())
        });
        if booked.is_err() {
            return self.count("bookings that contradict the ledger");
        }
        if from == "unknown" && state != CallState::Unknown {
            self.count("answers booked late");
        }
        self.count(&format!("booked: {}", state.as_str()));
        if state == CallState::Unfetchable && from != state.as_str() {
            self.check_unfetchable(life, id);
        }
    }

    /// A result is given up only when its URL has been dead for long, or should be.
    fn check_unfetchable(&self, life: &Life, id: CallId) {
        let ledger = self.ledger(life.ledger);
        let answered_at = ledger.book().row(id).and_then(|row| row.answered_at);
        let age = answered_at.and_then(|at| Duration::try_from(self.wall().duration_since(at)).ok());
        // The clock that people turn may be behind.
        let is_old = age.is_some_and(|age| age >= URL_TTL);
        let state = self.state();
        let sale = state.sales.iter().find(|sale| sale.ledger == life.ledger && sale.row == id);
        let is_gone = sale.is_some_and(|sale| sale.was_dead_for(DEAD_FOR));
        drop(state);
        if !is_gone && !is_old {
            self.violate(format!("{} gives up row {}, whose result can be had", life.name(), id.0));
        }
    }

    /// A client was answered.
    pub(super) fn was_answered(&self, key: CacheKey, outcome: &Result<CropReply, GatewayError>) {
        match outcome {
            Ok(reply) => {
                if let Err(what) = self.check_reply(key, reply) {
                    self.violate(what);
                }
            }
            Err(error @ (GatewayError::Bug | GatewayError::Request(_))) => {
                self.violate(format!("a client was told {error:?}"));
            }
            Err(_) => {}
        }
    }

    /// What a client is told is the result of a purchase of this key, which is in the book and whose
    /// bytes are kept.
    fn check_reply(&self, key: CacheKey, reply: &CropReply) -> Result<(), String> {
        let (record, name) = (&reply.record, self.teams.name_of(key));
        let number = number_of(&record.upstream_request_id).ok_or("a reply of no sale")?;
        let (ledger, row, object, bytes, was_recorded) = {
            let state = self.state();
            let sale = state.sales.get(number).ok_or("a reply of no sale")?;
            if (sale.key, record.key) != (key, key) {
                return Err(format!("a client asked for {name} and was told R{number}"));
            }
            (sale.ledger, sale.row, sale.object(), sale.bytes.clone(), sale.was_recorded)
        };
        let path = object.path();
        if record.object() != Some(object)
            || !String::from_utf8_lossy(&reply.body).contains(&format!("\"{ROOT}/{path}\""))
        {
            return Err(format!("R{number} was told with another URL than its own"));
        }
        let row = self.ledger(ledger).book().row(row).cloned().ok_or("a reply of no row")?;
        // The ledger may have been away since the payment: then the store's record is what there is. Memory
        // may serve it still when a later generation has taken its place.
        if row.answered_at.is_none() && !was_recorded {
            let state = row.state.as_str();
            return Err(format!(
                "a client was told R{number}, whose row {} is {state}: not booked",
                row.id.0
            ));
        }
        let is_spooled = self.ledger(ledger).book().spooled_object(object).is_some();
        let is_kept = is_spooled || self.store.has_object(object);
        let has_record = is_spooled || self.store.record(NAMESPACE, key).is_ok_and(|record| record.is_some());
        let mut state = self.state();
        let is_taken = state.taken.contains(&path);
        state.archive.told(&name, &path, &bytes)?;
        if is_taken {
            state.archive.lost(&path);
        }
        if !is_taken && (!is_kept || !has_record) {
            return Err(format!("a client was told R{number}, which is not kept"));
        }
        Ok(())
    }

    /// Does a result wait for the store in a ledger other than this? Then nobody here can know of it.
    pub(super) fn waits_elsewhere(&self, object: ObjectName, number: usize) -> bool {
        let mut ledgers = self.ledgers().into_iter().enumerate();
        ledgers.any(|(other, ledger)| other != number && ledger.book().spooled_object(object).is_some())
    }

    /// A permanent URL was read; perhaps where it could not be known yet.
    pub(super) fn was_read(
        &self,
        object: ObjectName,
        waited_elsewhere: bool,
        read: &Result<bytes::Bytes, GatewayError>,
    ) {
        let path = object.path();
        let served = match read {
            Ok(bytes) => Served::Bytes(bytes),
            Err(GatewayError::ResultNotFound) if waited_elsewhere => Served::Later,
            Err(GatewayError::ResultNotFound) => Served::NotThere,
            Err(GatewayError::StoreUnavailable | GatewayError::StoreBusy | GatewayError::ArchiveGuard) => {
                Served::Later
            }
            Err(error) => return self.violate(format!("{path} was read, and the answer was {error:?}")),
        };
        let outcome = self.state().archive.served(&path, served);
        self.expect(outcome);
    }

    /// What processes that are alive began and have not brought to an end.
    pub(super) fn open_rows_of_the_living(&self) -> Vec<String> {
        let alive: Vec<usize> = self.alive().iter().map(|process| process.life.number).collect();
        let mut open = Vec::new();
        for (number, ledger) in self.ledgers().iter().enumerate() {
            for row in ledger.book().rows.iter().filter(|row| row.state.is_open()) {
                let owner = self.state().owners.get(&(number, row.id)).copied();
                if let Some(owner) = owner.filter(|owner| alive.contains(owner)) {
                    let (row, state) = (row.id.0, row.state.as_str());
                    open.push(format!("p{owner} is idle, and its row {row} of ledger {number} is {state}"));
                }
            }
        }
        open
    }

    /// At rest, while the processes that lived are still there: whoever got a complete reply and
    /// lived on has booked it, whatever happened to its lease meanwhile; and nobody has left open
    /// what it began.
    pub(super) fn check_delivered(&self) {
        let alive: Vec<usize> = self.alive().iter().map(|process| process.life.number).collect();
        let mut broken = self.open_rows_of_the_living();
        let state = self.state();
        for (number, sale) in state.sales.iter().enumerate() {
            let is_owner_alive = sale.delivered_to.is_some_and(|process| alive.contains(&process));
            let Some(row) = state.ledgers[sale.ledger].book().row(sale.row).cloned() else { continue };
            let is_booked = match sale.outcome {
                Sold::Answer => row.answered_at.is_some(),
                Sold::Refusal => row.state == CallState::Refused,
                Sold::Failure => row.state == CallState::Failed,
                Sold::Unknown(_) => row.state == CallState::Unknown,
            };
            // Taken over, it may have been settled by what another ledger bought of the same picture.
            let is_booked = is_booked || sale.outcome != Sold::Answer && is_of_another_sale(&row, number);
            if is_owner_alive && !is_booked {
                let (outcome, row_state) = (sale.outcome, row.state.as_str());
                broken.push(format!("R{number} ended as {outcome:?}, but row {} is {row_state}", row.id.0));
            }
        }
        drop(state);
        broken.into_iter().for_each(|what| self.violate(what));
    }

    /// At the end, after a last start on every ledger: nothing is open, everything that was answered
    /// has its result, and no key was charged for more often than can be explained.
    pub(super) fn check_at_rest(&self) {
        self.orphans_with_a_record().into_iter().for_each(|what| self.violate(what));
        for (number, ledger) in self.ledgers().into_iter().enumerate() {
            let book = ledger.book();
            if let Err(what) = self.check_rows_at_rest(number, &book) {
                drop(book);
                self.violate(format!("ledger {number} at rest: {what}"));
            }
        }
    }

    /// Where nobody died, or was thought to be dead, the metrics agree with the ledgers and with the
    /// upstream to the unit.
    pub(super) fn check_metrics(&self) {
        const DEATHS: [&str; 10] = [
            "crashes at a step",
            "crashes from outside",
            "exits with open calls",
            "starts refused",
            "starts beside a living process",
            "calls released by another",
            "calls made unknown by another",
            "answered calls taken over",
            // Not deaths, but bookings whose word was lost: the process has left, or the result was lost.
            "stops in times of trouble",
            "bookings that contradict the ledger",
        ];
        if DEATHS.iter().any(|death| self.counted(death) > 0) {
            return;
        }
        self.count("worlds without a death");
        let ledgers = self.ledgers();
        let count = |is_it: &dyn Fn(&Row) -> bool| -> u64 {
            let books = ledgers.iter().map(|ledger| ledger.book());
            books.map(|book| book.rows.iter().filter(|row| !row.adopted && is_it(row)).count() as u64).sum()
        };
        let mut expected = vec![
            ("granary_credits_spent_total".to_owned(), CREDITS * count(&|row| row.answered_at.is_some())),
            ("granary_upstream_attempts_total{outcome=\"ok\"}".to_owned(), {
                let state = self.state();
                state.sales.iter().filter(|sale| sale.outcome == Sold::Answer).count() as u64
            }),
        ];
        for state in CallState::ALL.into_iter().filter(|state| !state.is_open() && *state != CallState::Lost)
        {
            // What was lost later was stored once.
            let was =
                |row: &Row| row.state == state || (row.state, state) == (CallState::Lost, CallState::Stored);
            expected.push((format!("granary_fills_total{{state=\"{}\"}}", state.as_str()), count(&was)));
        }
        let text = String::from_utf8(self.metrics.render()).unwrap_or_default();
        for (series, expected) in expected {
            let lines = text.lines().filter(|line| line.starts_with(&series));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            let value = values.sum::<f64>() as u64;
            if value != expected {
                self.violate(format!("{series} is {value}, and the ledgers and the upstream say {expected}"));
            }
        }
    }

    fn check_rows_at_rest(&self, number: usize, book: &Book) -> Result<(), String> {
        let settled_by_another: Vec<CallId> = {
            let rows = book.rows.iter().filter(|row| self.is_settled_by_another(number, row));
            rows.map(|row| row.id).collect()
        };
        let state = self.state();
        let mut charges: BTreeMap<CacheKey, u64> = BTreeMap::new();
        for sale in state.sales.iter().filter(|sale| sale.ledger == number && sale.is_charged) {
            *charges.entry(sale.key).or_default() += 1;
        }
        let mut doubtful: BTreeMap<CacheKey, u64> = BTreeMap::new();
        for row in &book.rows {
            if row.state.is_open() {
                return Err(format!("row {} is still {}", row.id.0, row.state.as_str()));
            }
            let sale = state.sales.iter().find(|sale| sale.ledger == number && sale.row == row.id);
            // What was unknown once has let another call take the key, even if it was answered later.
            // What came second to a record of another ledger's leaves the key to a row that is adopted
            // as soon as it can be: until then only the store knows of it, and may be away.
            let is_doubtful = row.bought.refresh
                || row.late
                || state.doubted.contains(&(number, row.id))
                || matches!(row.state, CallState::Unfetchable | CallState::Lost);
            *doubtful.entry(row.bought.key).or_default() += u64::from(is_doubtful);
            if row.answered_at.is_none() || settled_by_another.contains(&row.id) {
                continue;
            }
            let Some(sale) = sale else { return Err(format!("row {} was answered by nobody", row.id.0)) };
            match row.state {
                CallState::Stored | CallState::Lost => {
                    let object = row.record.as_ref().and_then(|record| record.object());
                    if object != Some(sale.object()) {
                        return Err(format!("row {} has another result than it bought", row.id.0));
                    }
                    let is_taken = state.taken.contains(&sale.object().path());
                    if !is_taken && !self.store.has_object(sale.object()) {
                        return Err(format!("the result of row {} is not kept", row.id.0));
                    }
                }
                CallState::Unfetchable => {}
                other => return Err(format!("row {} was answered, and is {}", row.id.0, other.as_str())),
            }
        }
        for (key, charges) in charges {
            check_charges(&self.teams.name_of(key), charges, doubtful.get(&key).copied().unwrap_or(0))?;
        }
        Ok(())
    }
}
