//! A ledger's random life, told twice: to the ledger, and to a naive model of the specification
//! that keeps all rows in a vector. After every step both must say the same.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use proptest::prelude::*;

use super::{
    Bench, SPOOL_MAX, TurnableClock, WholeLedger, answer, picture, record, released, signed_answer, stored,
    team, unfetchable, unknown, zone,
};
use crate::base::key::{CacheKey, Digest};
use crate::base::record::Record;
use crate::ledger::admin::{Actor, GivenBack, Purge, Settled, Settlement};
use crate::ledger::budget::{Budget, BudgetRefusal, Scope, Window};
use crate::ledger::{
    Booking, CallId, CallState, LedgerError, Permit, Reservation, Reserved, StateTotal, Won, rules,
};

const TEAMS: [&str; 2] = ["press", "print"];

/// What happens next. Calls are named by how many were reserved after them.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Reserve { key: u32, team: usize, credits: u64, refresh: bool },
    MarkSent { back: usize },
    Book { back: usize, to: CallState, claims_key: bool },
    Spool { back: usize, bytes: usize },
    Unspool { nth: usize, by_another: bool },
    Lose { key: u32 },
    Import { key: u32, generation: u64 },
    Purge { key: u32 },
    Settle { back: usize, settlement: Settlement },
    Freeze { scope: usize, frozen: bool },
    Turn { seconds: i64 },
    Crash,
}

/// A life: the limits of the budgets, and its steps.
pub(crate) fn lives() -> impl Strategy<Value = ([u64; 4], Vec<Step>)> {
    let reserve = (0..3_u32, 0..2_usize, 1..5_u64, prop::bool::weighted(0.3))
        .prop_map(|(key, team, credits, refresh)| Step::Reserve { key, team, credits, refresh });
    let outcomes = prop::sample::select(vec![
        CallState::Released,
        CallState::Answered,
        CallState::Answered,
        CallState::Answered,
        CallState::Stored,
        CallState::Stored,
        CallState::Stored,
        CallState::Refused,
        CallState::Failed,
        CallState::Unknown,
        CallState::Unknown,
        CallState::Unfetchable,
        CallState::Lost,
    ]);
    let book = (0..5_usize, outcomes, prop::bool::weighted(0.8))
        .prop_map(|(back, to, claims_key)| Step::Book { back, to, claims_key });
    let turns = prop::sample::select(vec![1, 59, 60, 599, 600, 3600, 40_000, 86_400, 86_400 * 15]);
    let step = prop_oneof![
        8 => reserve,
        6 => (0..3_usize).prop_map(|back| Step::MarkSent { back }),
        14 => book,
        4 => (0..5_usize, 1..900_usize).prop_map(|(back, bytes)| Step::Spool { back, bytes }),
        3 => (0..3_usize, prop::bool::weighted(0.3))
            .prop_map(|(nth, by_another)| Step::Unspool { nth, by_another }),
        1 => (0..3_u32).prop_map(|key| Step::Lose { key }),
        1 => (0..3_u32, 0..4_u64).prop_map(|(key, generation)| Step::Import { key, generation }),
        1 => (0..3_u32).prop_map(|key| Step::Purge { key }),
        2 => (0..5_usize, prop::sample::select(vec![Settlement::Free, Settlement::Charged]))
            .prop_map(|(back, settlement)| Step::Settle { back, settlement }),
        1 => (0..3_usize, prop::bool::weighted(0.3)).prop_map(|(scope, frozen)| Step::Freeze { scope, frozen }),
        4 => turns.prop_map(|seconds| Step::Turn { seconds }),
        1 => Just(Step::Crash),
    ];
    // Single steps seldom lead as far as a result, or as an answer that comes when another call has
    // the key.
    let chapter = prop_oneof![
        20 => step.prop_map(|step| vec![step]),
        1 => (0..3_u32, any::<bool>()).prop_map(|(key, refresh)| bought(key, refresh).to_vec()),
        2 => (0..3_u32, any::<bool>()).prop_map(|(key, refresh)| rivals(key, refresh).to_vec()),
        2 => (0..3_u32, 1..900_usize).prop_map(|(key, bytes)| {
            let mut steps = bought(key, true).to_vec();
            steps[3] = Step::Spool { back: 0, bytes };
            steps
        }),
    ];
    let chapters = prop::collection::vec(chapter, 1..50);
    (prop::array::uniform4(3..40_u64), chapters.prop_map(|chapters| chapters.concat()))
}

fn bought(key: u32, refresh: bool) -> [Step; 4] {
    let book = |to| Step::Book { back: 0, to, claims_key: true };
    [
        Step::Reserve { key, team: 0, credits: 1, refresh },
        Step::MarkSent { back: 0 },
        book(CallState::Answered),
        book(CallState::Stored),
    ]
}

/// The answer to a call that was thought unknown comes while a second call is under way.
fn rivals(key: u32, refresh: bool) -> [Step; 6] {
    let book = |back, to| Step::Book { back, to, claims_key: true };
    let reserve = Step::Reserve { key, team: 0, credits: 1, refresh };
    [
        reserve.clone(),
        Step::MarkSent { back: 0 },
        book(0, CallState::Unknown),
        Step::Turn { seconds: 600 },
        reserve,
        book(1, CallState::Answered),
    ]
}

/// Lives a life on the ledgers that `open` gives: each is the same book, after a crash of the one
/// before.
pub(crate) async fn live<F: Future<Output = Arc<dyn WholeLedger>>>(
    (limits, steps): ([u64; 4], Vec<Step>),
    clock: TurnableClock,
    open: impl Fn() -> F,
) {
    let [day, month, team_day, team_month] = limits;
    let limit = |scope, window, limit, enforced| Budget { scope, window, limit, enforced };
    let mut model = Model {
        rows: Vec::new(),
        spool: Vec::new(),
        frozen: HashSet::new(),
        purged: HashMap::new(),
        told: Vec::new(),
        budgets: vec![
            limit(team(TEAMS[0]), Window::Day, team_day, true),
            limit(team(TEAMS[1]), Window::Month, team_month, true),
            limit(Scope::Global, Window::Day, day, true),
            limit(Scope::Global, Window::Month, month * 3, true),
            limit(team(TEAMS[1]), Window::Day, 1, false),
        ],
    };
    let mut bench = Bench { ledger: open().await, clock };
    for step in steps {
        if matches!(step, Step::Crash) {
            drop(bench.ledger);
            bench.ledger = open().await;
        }
        model.take(&bench, &step).await;
        model.compare(&bench, &step).await;
    }
}

struct Row {
    id: CallId,
    bought: Reservation,
    generation: u64,
    state: CallState,
    late: bool,
    adopted: bool,
    reserved_on: Date,
    ended_at: Timestamp,
    record: Option<Record>,
    /// Its owner died while it was sent.
    is_orphan: bool,
    settled: Option<Settlement>,
}

impl Row {
    fn is_open(&self) -> bool {
        matches!(self.state, CallState::Reserved | CallState::Sent | CallState::Answered)
    }

    fn holds(&self, key: &Reservation) -> bool {
        !self.late && self.bought.key == key.key && (self.is_open() || self.state == CallState::Stored)
    }

    fn costs(&self) -> u64 {
        let free = [CallState::Released, CallState::Refused, CallState::Failed].contains(&self.state);
        if free || self.adopted { 0 } else { self.bought.credits }
    }
}

struct Model {
    rows: Vec<Row>,
    /// What waits for the store, oldest first.
    spool: Vec<(CallId, Bytes)>,
    frozen: HashSet<Scope>,
    /// Up to which generation a key counts as absent.
    purged: HashMap<CacheKey, u64>,
    /// What must have been told as changed, oldest first.
    told: Vec<CacheKey>,
    budgets: Vec<Budget>,
}

impl Model {
    /// Takes one step, and asserts that the ledger answers it as it must.
    async fn take(&mut self, bench: &Bench, step: &Step) {
        let now = bench.clock.now();
        match *step {
            Step::Reserve { key, team: payer, credits, refresh } => {
                let wanted = Reservation {
                    refresh,
                    team: TEAMS[payer].to_owned(),
                    credits,
                    budgets: self.budgets_of(TEAMS[payer]),
                    ..picture(key)
                };
                self.reserve(bench, wanted, now).await;
            }
            Step::MarkSent { back } => self.mark_sent(bench, back).await,
            Step::Book { back, to, claims_key } => self.book(bench, back, to, claims_key).await,
            Step::Spool { back, bytes } => self.spool(bench, back, bytes).await,
            Step::Unspool { nth, by_another } => self.unspool(bench, nth, by_another, now).await,
            Step::Lose { key } => {
                let Some(row) = self.newest(&picture(key)) else { return };
                let record = self.rows[row].record.clone().expect("a stored row has a record");
                bench.ledger.lose(&record).await.expect("the ledger can be asked");
                self.rows[row].state = CallState::Lost;
            }
            Step::Import { key, generation } => {
                let bought = picture(key);
                let record = self.foreign(&bought, generation, now);
                bench.ledger.import_record(&record).await.expect("the ledger can be asked");
                if !self.settle_orphan(&bought, &record, now) {
                    self.import_record(bought, record, now);
                }
            }
            Step::Freeze { scope, frozen } => {
                let scope = [Scope::Global, team(TEAMS[0]), team(TEAMS[1])][scope].clone();
                let by = Actor::loopback();
                bench.ledger.freeze(scope.clone(), frozen, &by).await.expect("the ledger can be asked");
                if frozen {
                    self.frozen.insert(scope)
                } else {
                    self.frozen.remove(&scope)
                };
            }
            Step::Purge { key } => self.purge(bench, picture(key)).await,
            Step::Settle { back, settlement } => self.settle(bench, back, settlement, now).await,
            Step::Turn { seconds } => bench.clock.turn(seconds),
            Step::Crash => self.recover(bench, now).await,
        }
    }

    async fn purge(&mut self, bench: &Bench, wanted: Reservation) {
        let purge = bench
            .ledger
            .purge(&wanted.namespace, wanted.key, &Actor::loopback())
            .await
            .expect("the ledger can be asked");
        let before = self.purged.get(&wanted.key).copied();
        if self.newest(&wanted).is_none() {
            let repeated = before.map_or(Purge::Nothing, |generation| Purge::Repeated { generation });
            assert_eq!(purge, repeated);
            return;
        }
        let generation = self.newest_kept(wanted.key).expect("one is stored");
        assert_eq!(purge, Purge::Done { generation });
        self.purged.insert(wanted.key, generation);
        self.told.push(wanted.key);
    }

    async fn settle(&mut self, bench: &Bench, back: usize, settlement: Settlement, now: Timestamp) {
        let Some(row) = self.call(back) else { return };
        let settled = bench.ledger.settle(row.id, settlement, &Actor::loopback()).await;
        let month = row.reserved_on.strftime("%Y-%m").to_string();
        let is_closed = rules::is_closed(&month, &date(now).to_string());
        let expected = match row.settled {
            Some(before) if before == settlement => Settled::Repeated,
            Some(before) => Settled::Otherwise(before),
            None if row.state != CallState::Unknown => Settled::NotUnknown(row.state),
            None if settlement == Settlement::Charged => Settled::Done { given_back: None },
            None if is_closed => Settled::Done { given_back: Some(GivenBack::Adjustment) },
            None => Settled::Done { given_back: Some(GivenBack::Budgets) },
        };
        assert_eq!(settled.expect("the ledger can be asked"), expected);
        if let Settled::Done { given_back } = expected {
            row.settled = Some(settlement);
            if given_back.is_some() {
                row.state = CallState::Failed;
            }
        }
    }

    /// The highest generation that was ever stored under a key.
    fn newest_kept(&self, key: CacheKey) -> Option<u64> {
        let was_stored = |row: &&Row| {
            let kept = [CallState::Stored, CallState::Lost].contains(&row.state);
            row.bought.key == key && kept && !row.late
        };
        self.rows.iter().filter(was_stored).map(|row| row.generation).max()
    }

    /// A record that no call of this ledger made.
    fn foreign(&self, bought: &Reservation, generation: u64, now: Timestamp) -> Record {
        let id = CallId(1_000_000 + self.rows.len() as i64);
        record(bought, Won { id, generation }, now)
    }

    /// The newest call whose owner died is taken for the one that made the record.
    fn settle_orphan(&mut self, bought: &Reservation, record: &Record, now: Timestamp) -> bool {
        let generation = record.generation;
        let is_its = |kept: &Record| kept.upstream_request_id == record.upstream_request_id;
        let mut of_key = self.rows.iter().filter(|row| row.bought.key == bought.key);
        if Some(&generation) <= self.purged.get(&bought.key)
            || of_key.any(|row| row.record.as_ref().is_some_and(is_its))
        {
            return false;
        }
        let fits = |row: &Row| {
            let paid = |of: &Reservation| (of.key, of.team.clone(), of.credits);
            let is_orphan = row.is_orphan && row.state == CallState::Unknown;
            is_orphan && row.generation == generation && paid(&row.bought) == paid(bought)
        };
        let Some(at) = self.rows.iter().rposition(fits) else { return false };
        let late = self.is_taken(self.rows[at].id, bought, generation);
        let row = &mut self.rows[at];
        (row.state, row.late, row.ended_at, row.record) =
            (CallState::Stored, late, now, Some(record.clone()));
        self.tell(bought, generation);
        true
    }

    fn import_record(&mut self, bought: Reservation, record: Record, now: Timestamp) {
        let generation = record.generation;
        if Some(&generation) <= self.purged.get(&bought.key) {
            return;
        }
        if !self.rows.iter().any(|row| row.holds(&bought) && row.generation == generation) {
            if generation > 0 {
                self.told.push(bought.key);
            }
            self.rows.push(Row {
                id: CallId(1_000_000 + self.rows.len() as i64),
                bought,
                generation,
                state: CallState::Stored,
                late: false,
                adopted: true,
                reserved_on: date(now),
                ended_at: now,
                record: Some(record),
                is_orphan: false,
                settled: None,
            });
        }
    }

    async fn spool(&mut self, bench: &Bench, back: usize, length: usize) {
        let now = bench.clock.now();
        let used: usize = self.spool.iter().map(|(_, bytes)| bytes.len()).sum();
        let Some(row) = self.call(back) else { return };
        let (id, from, key, generation) = (row.id, row.state, row.bought.clone(), row.generation);
        let bytes = Bytes::from(vec![id.0 as u8; length]);
        let made = record(&key, Won { id, generation }, now);
        let kept = Record { digest: Digest::of(&bytes), bytes: length as u64, ..made };
        let booking = Booking::Spooled { record: Box::new(kept.clone()), bytes: bytes.clone() };
        let booked = bench.ledger.book(id, booking).await;
        if !super::table(from).contains(&CallState::Stored) {
            let repeats = from == CallState::Stored;
            assert_eq!(booked.is_ok(), repeats, "{from:?}: {booked:?}");
            return;
        }
        if (used + length) as u64 > SPOOL_MAX {
            assert!(matches!(booked, Err(LedgerError::SpoolFull { .. })), "{used} and {length}: {booked:?}");
            return;
        }
        assert!(booked.is_ok(), "{booked:?}");
        let taken = self.is_taken(id, &key, generation);
        let row = self.call(back).expect("it was there");
        (row.state, row.late, row.ended_at, row.record) = (CallState::Stored, taken, now, Some(kept));
        self.tell(&key, generation);
        self.spool.push((id, bytes));
    }

    async fn unspool(&mut self, bench: &Bench, nth: usize, by_another: bool, now: Timestamp) {
        if nth >= self.spool.len() {
            return;
        }
        let (id, _) = self.spool.remove(nth);
        let at = self.rows.iter().position(|row| row.id == id).expect("its row is there for ever");
        let row = &mut self.rows[at];
        let (bought, generation) = (row.bought.clone(), row.generation);
        let ours = row.record.clone().expect("a stored row has a record");
        if !by_another {
            bench.unspool(id, &ours).await;
            return;
        }
        row.late = true;
        let theirs = self.foreign(&bought, generation, now);
        bench.unspool(id, &theirs).await;
        self.import_record(bought, theirs, now);
    }

    /// A result was stored: what was read of an older one is out of date.
    fn tell(&mut self, wanted: &Reservation, generation: u64) {
        if generation > 0 {
            self.told.push(wanted.key);
        }
    }

    fn is_taken(&self, id: CallId, key: &Reservation, generation: u64) -> bool {
        self.rows.iter().any(|other| other.id != id && other.holds(key) && other.generation == generation)
    }

    fn budgets_of(&self, payer: &str) -> Vec<Budget> {
        let concerns = |budget: &&Budget| budget.scope == Scope::Global || budget.scope == team(payer);
        self.budgets.iter().filter(concerns).cloned().collect()
    }

    /// The row whose result is found under a key.
    fn newest(&self, key: &Reservation) -> Option<usize> {
        let stored = (0..self.rows.len()).filter(|&n| {
            let row = &self.rows[n];
            let is_purged = Some(&row.generation) <= self.purged.get(&key.key);
            row.holds(key) && row.state == CallState::Stored && !is_purged
        });
        stored.max_by_key(|&n| self.rows[n].generation)
    }

    fn used(&self, budget: &Budget, now: Timestamp) -> u64 {
        let today = date(now);
        let counted = self.rows.iter().filter(|row| {
            let on = row.reserved_on;
            let in_window = match budget.window {
                Window::Day => on == today,
                Window::Month => (on.year(), on.month()) == (today.year(), today.month()),
            };
            in_window && (budget.scope == Scope::Global || budget.scope == team(&row.bought.team))
        });
        counted.map(Row::costs).sum()
    }

    async fn reserve(&mut self, bench: &Bench, wanted: Reservation, now: Timestamp) {
        let got = bench.reserve(wanted.clone()).await;
        let open: Vec<CallId> =
            self.rows.iter().filter(|row| row.holds(&wanted) && row.is_open()).map(|row| row.id).collect();
        if !open.is_empty() {
            assert!(matches!(got, Reserved::Held(id) if open.contains(&id)), "{got:?}, open: {open:?}");
            return;
        }
        if !wanted.refresh
            && let Some(row) = self.newest(&wanted)
        {
            let record = self.rows[row].record.clone().expect("a stored row has a record");
            assert_eq!(got, Reserved::Stored(Box::new(record)));
            return;
        }
        if let Some(wait) = self.rest(&wanted, now) {
            assert_eq!(got, Reserved::Resting { until: now + wait, wait });
            return;
        }
        for scope in [Scope::Global, team(&wanted.team)] {
            if self.frozen.contains(&scope) {
                assert_eq!(got, Reserved::Frozen(scope));
                return;
            }
        }
        for budget in wanted.budgets.iter().filter(|budget| budget.enforced) {
            if self.used(budget, now) + wanted.credits > budget.limit {
                let resets_at = next(budget.window, now);
                let resets_in = Duration::try_from(resets_at.duration_since(now)).expect("it is to come");
                let budget = budget.clone();
                assert_eq!(got, Reserved::OverBudget(BudgetRefusal { budget, resets_at, resets_in }));
                return;
            }
        }
        let Reserved::Won(won) = got else { panic!("free, but {got:?}") };
        let last = self.newest_kept(wanted.key).max(self.purged.get(&wanted.key).copied());
        assert_eq!(won.generation, last.map_or(0, |last| last + 1));
        self.rows.push(Row {
            id: won.id,
            bought: wanted,
            generation: won.generation,
            state: CallState::Reserved,
            late: false,
            adopted: false,
            reserved_on: date(now),
            ended_at: now,
            record: None,
            is_orphan: false,
            settled: None,
        });
    }

    fn rest(&self, wanted: &Reservation, now: Timestamp) -> Option<Duration> {
        let day = 86_400;
        let mut ages: Vec<i64> = self
            .rows
            .iter()
            .filter(|row| row.bought.key == wanted.key)
            .filter(|row| [CallState::Unknown, CallState::Unfetchable].contains(&row.state))
            .map(|row| now.duration_since(row.ended_at).as_secs())
            .filter(|&age| age < day)
            .collect();
        ages.sort_unstable();
        let left = match ages[..] {
            [] => 0,
            [last] => 60 - last,
            [last, _] => 600 - last,
            [_, _, third, ..] => day - third,
        };
        u64::try_from(left).ok().filter(|&left| left > 0).map(Duration::from_secs)
    }

    fn call(&mut self, back: usize) -> Option<&mut Row> {
        self.rows.iter_mut().rev().filter(|row| !row.adopted).nth(back)
    }

    async fn mark_sent(&mut self, bench: &Bench, back: usize) {
        let frozen = self.frozen.clone();
        let Some(row) = self.call(back) else { return };
        let scopes = [Scope::Global, team(&row.bought.team)];
        let expected = match scopes.into_iter().find(|scope| frozen.contains(scope)) {
            _ if row.state != CallState::Reserved => Permit::Lost,
            Some(scope) => Permit::Frozen(scope),
            None => Permit::Granted,
        };
        assert_eq!(bench.mark_sent(row.id).await, expected);
        if expected == Permit::Granted {
            row.state = CallState::Sent;
        }
    }

    async fn book(&mut self, bench: &Bench, back: usize, to: CallState, claims_key: bool) {
        let now = bench.clock.now();
        let Some(row) = self.call(back) else { return };
        let (id, from, key, generation) = (row.id, row.state, row.bought.clone(), row.generation);
        let kept = record(&key, Won { id, generation }, now);
        let booking = match to {
            CallState::Released => released(),
            CallState::Answered => answer(id),
            CallState::Stored => {
                let Booking::Stored { record, .. } = stored(&kept) else { unreachable!("it is") };
                Booking::Stored { record, holds_key: claims_key }
            }
            CallState::Refused => super::refused(),
            CallState::Failed => super::failed(),
            CallState::Unknown => unknown(),
            CallState::Unfetchable => unfetchable(),
            CallState::Lost => Booking::Lost,
            CallState::Reserved | CallState::Sent => unreachable!("no booking leads there"),
        };
        let booked = bench.ledger.book(id, booking).await;
        if from == to {
            assert!(booked.is_ok(), "{booked:?}");
            return;
        }
        if !super::table(from).contains(&to) {
            assert!(
                matches!(booked, Err(LedgerError::Contradiction { .. })),
                "{from:?} to {to:?}: {booked:?}"
            );
            return;
        }
        assert!(booked.is_ok(), "{from:?} to {to:?}: {booked:?}");
        let taken = self.is_taken(id, &key, generation);
        let row = self.call(back).expect("it was there");
        row.state = to;
        match to {
            CallState::Answered => row.late = taken,
            CallState::Stored => {
                row.late = !claims_key || taken;
                row.record = Some(kept);
            }
            CallState::Lost => return,
            _ => {}
        }
        row.ended_at = now;
        if to == CallState::Stored {
            self.tell(&key, generation);
        }
    }

    async fn recover(&mut self, bench: &Bench, now: Timestamp) {
        let found = bench.recover().await;
        let (mut released, mut unknown, mut unfinished) = (0, 0, Vec::new());
        for row in &mut self.rows {
            match row.state {
                CallState::Reserved => {
                    released += 1;
                    (row.state, row.ended_at) = (CallState::Released, now);
                }
                CallState::Sent => {
                    unknown += 1;
                    (row.state, row.ended_at, row.is_orphan) = (CallState::Unknown, now, true);
                }
                CallState::Answered => unfinished.push((row.id, row.generation, signed_answer(row.id.0))),
                _ => {}
            }
        }
        assert_eq!((found.released, found.unknown), (released, unknown));
        let told = found.unfinished.iter();
        let told: Vec<_> =
            told.map(|call| (call.id, call.generation, call.text.expose().to_owned())).collect();
        assert_eq!(told, unfinished);
    }

    /// Asserts that the ledger's book is the model's, and that no budget is overspent.
    async fn compare(&self, bench: &Bench, step: &Step) {
        let now = bench.clock.now();
        for key in (0..3).map(picture) {
            let expected = self.newest(&key).and_then(|row| self.rows[row].record.clone());
            assert_eq!(bench.look_up(&key).await, expected, "after {step:?}");
        }
        let totals = CallState::ALL.map(|state| {
            let rows = self.rows.iter().filter(|row| row.state == state && !row.adopted);
            let (calls, credits) =
                rows.fold((0, 0), |(calls, credits), row| (calls + 1, credits + row.bought.credits));
            StateTotal { state, calls, credits }
        });
        assert_eq!(bench.totals().await, totals, "after {step:?}");
        for used in bench.ledger.used(self.budgets.clone()).await.expect("the ledger can be asked") {
            assert_eq!(used.used, self.used(&used.budget, now), "after {step:?}: {:?}", used.budget);
            assert!(!used.budget.enforced || used.used <= used.budget.limit, "overspent: {used:?}");
        }
        let changes = bench.ledger.changes(Some(0)).await.expect("the ledger can be asked");
        let keys: Vec<_> = changes.keys.into_iter().map(|(_, key)| key).collect();
        assert_eq!(last_of_each(&keys), last_of_each(&self.told), "after {step:?}");
        for key in (0..3).map(picture) {
            let purged = bench.ledger.purged(&key.namespace, key.key).await.expect("the ledger can be asked");
            assert_eq!(purged, self.purged.get(&key.key).copied(), "after {step:?}");
        }
        let waiting = bench.waiting().await;
        let told: Vec<_> = waiting.iter().map(|spooled| spooled.id).collect();
        assert_eq!(told, self.spool.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "after {step:?}");
        for (spooled, (_, bytes)) in waiting.iter().zip(&self.spool) {
            assert_eq!(bench.object(&spooled.record).await.as_ref(), Some(bytes), "after {step:?}");
        }
        let usage = bench.usage().await;
        let bytes: usize = self.spool.iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!((usage.objects, usage.bytes), (self.spool.len() as u64, bytes as u64), "after {step:?}");
        let open = self.rows.iter().filter(|row| row.is_open()).count();
        assert_eq!(usage.open_calls, open as u64, "after {step:?}");
        for (n, row) in self.rows.iter().enumerate().filter(|(_, row)| row.holds(&row.bought)) {
            let rival = self.rows[n + 1..]
                .iter()
                .any(|other| other.holds(&row.bought) && other.generation == row.generation);
            assert!(!rival, "two calls hold generation {} of a key", row.generation);
        }
    }
}

/// The keys in the order of their last change: a ledger may tell each change, or each key once.
fn last_of_each(told: &[CacheKey]) -> Vec<CacheKey> {
    let is_last = |(at, key): &(usize, &CacheKey)| !told[at + 1..].contains(key);
    told.iter().enumerate().filter(is_last).map(|(_, key)| *key).collect()
}

fn date(now: Timestamp) -> Date {
    now.to_zoned_datetime(zone()).date()
}

fn next(window: Window, now: Timestamp) -> Timestamp {
    let first = match window {
        Window::Day => date(now) + 1.day(),
        Window::Month => date(now).first_of_month() + 1.month(),
    };
    first.to_zoned_datetime(zone()).expect("a day that begins").timestamp()
}
