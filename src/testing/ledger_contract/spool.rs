//! What the spool promises: bytes come with their row, stay until they are taken out, and are bounded.

use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;

use super::{Bench, SPOOL_MAX, answer, foreign, picture, record, released, stored};
use crate::base::key::Digest;
use crate::base::picture::ObjectName;
use crate::base::record::Record;
use crate::ledger::{Booking, CallId, CallState, LedgerError, Permit, Reservation, Reserved, Won};
use crate::ledger::{SpoolUsage, Spooled};

/// The bytes a record on the bench is about.
pub(crate) fn bytes_of(record: &Record) -> Bytes {
    let call = record.upstream_request_id.strip_prefix("request ").expect("a record of the bench");
    format!("result of call {call}").into()
}

/// Its result is to wait in the spool.
pub(crate) fn spooled(record: &Record) -> Booking {
    Booking::Spooled { record: Box::new(record.clone()), bytes: bytes_of(record) }
}

fn name(record: &Record) -> ObjectName {
    record.object().expect("a record of the bench")
}

impl Bench {
    /// Buys what must be free, and leaves its result in the spool.
    async fn spool(&self, wanted: Reservation) -> (Won, Record) {
        let won = self.answered(wanted.clone()).await;
        let record = record(&wanted, won, self.clock.now());
        self.book(won.id, spooled(&record)).await;
        (won, record)
    }

    pub(crate) async fn object(&self, record: &Record) -> Option<Bytes> {
        let bytes = self.ledger.spooled_object(name(record)).await.expect("the ledger can be asked");
        let is_there = self.ledger.is_spooled(name(record)).await.expect("the ledger can be asked");
        assert_eq!(bytes.is_some(), is_there);
        bytes
    }

    pub(crate) async fn waiting(&self) -> Vec<Spooled> {
        self.ledger.spooled(0, 1000).await.expect("the ledger can be asked")
    }

    pub(crate) async fn unspool(&self, id: CallId, standing: &Record) {
        self.ledger.unspool(id, standing).await.expect("the ledger can be asked");
    }

    pub(crate) async fn usage(&self) -> SpoolUsage {
        self.ledger.spool_usage().await.expect("the ledger can be asked")
    }
}

pub(crate) async fn a_spooled_result_is_stored_and_its_bytes_are_found_by_name(bench: &Bench) {
    let won = bench.answered(picture(1)).await;
    let kept = record(&picture(1), won, bench.clock.now());
    assert_eq!(bench.object(&kept).await, None);
    bench.book(won.id, spooled(&kept)).await;

    assert_eq!(bench.look_up(&picture(1)).await, Some(kept.clone()));
    assert_eq!(bench.reserve(picture(1)).await, Reserved::Stored(Box::new(kept.clone())));
    assert_eq!(bench.calls(CallState::Stored).await, 1);
    assert_eq!(bench.object(&kept).await, Some(bytes_of(&kept)));
    assert!(bench.recover().await.unfinished.is_empty(), "nothing is left to be fetched");
    let other = Record { extension: "jpg".to_owned(), ..kept.clone() };
    assert_eq!(bench.object(&other).await, None, "another name");

    bench.unspool(won.id, &kept).await;
    assert_eq!(bench.object(&kept).await, None);
    assert_eq!(bench.waiting().await, []);
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept), "it is stored as before");
}

pub(crate) async fn what_waits_is_listed_oldest_first_in_pieces(bench: &Bench) {
    // Reserved in one order, and spooled in another.
    let mut won = Vec::new();
    for n in 0..5 {
        won.push((n, bench.answered(picture(n)).await));
    }
    won.reverse();
    let mut expected = Vec::new();
    for (n, won) in won {
        let kept = record(&picture(n), won, bench.clock.now());
        bench.book(won.id, spooled(&kept)).await;
        expected.push((won.id, kept));
        bench.clock.turn(1);
    }
    let list =
        async |after, limit| bench.ledger.spooled(after, limit).await.expect("the ledger can be asked");
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let piece = list(after, 2).await;
        let Some(last) = piece.last() else { break };
        assert!(piece.len() <= 2 && last.position > after);
        after = last.position;
        found.extend(piece.into_iter().map(|spooled| (spooled.id, spooled.record)));
    }
    assert_eq!(found, expected);
    // What is taken out in the middle does not disturb the rest.
    bench.unspool(expected[2].0, &expected[2].1).await;
    expected.remove(2);
    let left: Vec<_> = list(0, 100).await.into_iter().map(|spooled| (spooled.id, spooled.record)).collect();
    assert_eq!(left, expected);
}

pub(crate) async fn a_result_that_does_not_fit_is_refused_and_its_row_stays_answered(bench: &Bench) {
    let half = vec![b'x'; usize::try_from(SPOOL_MAX / 2).expect("a small number")];
    let of_half = |won: Won, n: u32| {
        let made = record(&picture(n), won, bench.clock.now());
        let record = Record { digest: Digest::of(&half), bytes: half.len() as u64, ..made };
        Booking::Spooled { record: Box::new(record), bytes: half.clone().into() }
    };
    let mut ids = Vec::new();
    for n in 0..2 {
        let won = bench.answered(picture(n)).await;
        bench.book(won.id, of_half(won, n)).await;
        ids.push(won.id);
    }
    assert_eq!(bench.usage().await.bytes, SPOOL_MAX, "to the last byte");
    let won = bench.answered(picture(2)).await;
    let small = record(&picture(2), won, bench.clock.now());
    let refused = bench.ledger.book(won.id, spooled(&small)).await;
    let Err(LedgerError::SpoolFull { wanted, used, max }) = refused else { panic!("{refused:?}") };
    assert_eq!((wanted, used, max), (small.bytes, SPOOL_MAX, SPOOL_MAX));
    assert_eq!(bench.reserve(picture(2)).await, Reserved::Held(won.id));
    assert_eq!((bench.calls(CallState::Answered).await, bench.object(&small).await), (1, None));
    // One that has been booked is booked, however full it is.
    bench.book(ids[0], of_half(Won { id: ids[0], generation: 0 }, 0)).await;

    let first = bench.waiting().await.remove(0);
    bench.unspool(first.id, &first.record).await;
    bench.book(won.id, spooled(&small)).await;
    assert_eq!(bench.object(&small).await, Some(bytes_of(&small)));
}

pub(crate) async fn equal_results_of_two_calls_leave_the_spool_one_by_one(bench: &Bench) {
    let (first, one) = bench.spool(picture(1)).await;
    let won = bench.answered(picture(2)).await;
    let two = Record { digest: one.digest, bytes: one.bytes, ..record(&picture(2), won, bench.clock.now()) };
    bench.book(won.id, Booking::Spooled { record: Box::new(two.clone()), bytes: bytes_of(&one) }).await;
    bench.unspool(first.id, &one).await;
    assert_eq!(bench.object(&two).await, Some(bytes_of(&one)), "the second still waits");
    bench.unspool(won.id, &two).await;
    assert_eq!(bench.object(&two).await, None);
}

pub(crate) async fn a_spooled_result_whose_record_stands_elsewhere_leaves_the_key_to_it(bench: &Bench) {
    // The same purchase, written before a crash: only the time is another.
    let (won, ours) = bench.spool(picture(1)).await;
    let earlier = Record { stored_at: ours.stored_at - SignedDuration::from_secs(9), ..ours };
    bench.unspool(won.id, &earlier).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(earlier));

    // Another's, of the same generation and of a higher one.
    for (n, generation) in [(2, 0), (3, 4)] {
        let (won, ours) = bench.spool(picture(n)).await;
        let theirs = foreign(n, generation, bench.clock.now());
        bench.unspool(won.id, &theirs).await;
        assert_eq!(bench.look_up(&picture(n)).await, Some(theirs), "generation {generation}");
        assert_eq!(bench.object(&ours).await, None);
        assert_eq!(bench.win(super::refresh(n)).await.generation, generation + 1);
    }
    assert_eq!(bench.calls(CallState::Stored).await, 3, "ours are paid for, and imported ones are not");
}

pub(crate) async fn spooling_and_taking_out_may_be_repeated(bench: &Bench) {
    let (won, kept) = bench.spool(picture(1)).await;
    bench.book(won.id, spooled(&kept)).await;
    // The store took it after all, when nobody knew yet that it was spooled.
    bench.book(won.id, stored(&kept)).await;
    assert_eq!(bench.waiting().await.len(), 1);
    for _ in 0..2 {
        bench.unspool(won.id, &kept).await;
        assert_eq!(bench.look_up(&picture(1)).await.as_ref(), Some(&kept));
    }
    // What is not there is not taken for a reason to change anything.
    bench.unspool(won.id, &foreign(1, 0, bench.clock.now())).await;
    bench.unspool(CallId(4711), &kept).await;
    assert_eq!(bench.look_up(&picture(1)).await, Some(kept));
}

pub(crate) async fn usage_tells_what_waits_and_what_may_still_come(bench: &Bench) {
    assert_eq!(bench.usage().await, SpoolUsage::default());
    for (n, state) in (1..).zip(CallState::ALL) {
        bench.bring(n, state).await;
    }
    bench.clock.turn(5);
    let (first, one) = bench.spool(picture(21)).await;
    bench.clock.turn(7);
    let (_, two) = bench.spool(picture(22)).await;
    let expected = SpoolUsage {
        objects: 2,
        bytes: one.bytes + two.bytes,
        oldest_age: Some(Duration::from_secs(7)),
        open_calls: 3,
        answered_calls: 1,
        oldest_answer_age: Some(Duration::from_secs(12)),
    };
    assert_eq!(bench.usage().await, expected);
    bench.unspool(first.id, &one).await;
    let won = bench.win(picture(23)).await;
    assert_eq!(bench.ledger.mark_sent(won.id).await.expect("the ledger can be asked"), Permit::Granted);
    bench.book(won.id, answer(won.id)).await;
    let last = bench.win(picture(24)).await;
    bench.book(last.id, released()).await;
    let expected = SpoolUsage {
        objects: 1,
        bytes: two.bytes,
        oldest_age: Some(Duration::ZERO),
        open_calls: 4,
        answered_calls: 2,
        ..expected
    };
    assert_eq!(bench.usage().await, expected);
}
