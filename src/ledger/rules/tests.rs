//! One table for each rule. A table asks other rules for what is theirs, so that a changed rule is
//! found in its own.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::ledger::Won;
use crate::ledger::budget::{Budget, Window};
use crate::testing::ledger_contract::{
    answer, failed, picture, record, refused, released, stored, unfetchable, unknown,
};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn today() -> Windows {
    Windows::at(at("2026-11-22T12:00:00Z"), &TimeZone::UTC)
}

fn kept(generation: u64) -> Record {
    record(&picture(1), Won { id: CallId(1), generation }, at("2026-11-22T09:00:00Z"))
}

#[test]
fn stored_generation_counts_as_absent_up_to_the_purged_one() {
    for (stored, kept, purged, is_stored, purge) in [
        (None, None, None, false, Purge::Nothing),
        (Some(0), Some(0), None, true, Purge::Done { generation: 0 }),
        (Some(0), Some(0), Some(0), false, Purge::Repeated { generation: 0 }),
        (Some(1), Some(1), Some(0), true, Purge::Done { generation: 1 }),
        // Of what was lost a record may be left in the store.
        (Some(1), Some(4), Some(0), true, Purge::Done { generation: 4 }),
        (None, Some(4), None, false, Purge::Nothing),
        (None, Some(4), Some(2), false, Purge::Repeated { generation: 2 }),
    ] {
        let generations = Generations { stored, kept, purged };
        assert_eq!((generations.is_stored(), generations.purge()), (is_stored, purge), "{generations:?}");
    }
}

#[test]
fn next_generation_is_above_all_that_was_kept_or_purged() {
    for (kept, purged, next) in [
        (None, None, 0),
        (Some(0), None, 1),
        (None, Some(3), 4),
        (Some(5), Some(3), 6),
        (Some(3), Some(5), 6),
    ] {
        assert_eq!(Generations { stored: None, kept, purged }.next(), next, "{kept:?}, {purged:?}");
    }
}

#[test]
fn reservation_is_decided_in_the_order_of_reasons() {
    let now = at("2026-11-22T12:00:00Z");
    // The latest first: the order in which a ledger lists them does not matter.
    let ended = [1, 700].map(|seconds| now - SignedDuration::from_secs(seconds)).to_vec();
    let until = budget::rests_until(&[ended[1], ended[0]], now).unwrap();
    let resting = Decision::No(Reserved::Resting { until, wait: budget::until(until, now) });
    let generations = Generations { stored: Some(2), kept: Some(2), purged: None };
    let all = KeyStanding {
        open: Some(CallId(7)),
        generations,
        unknown_outcome_times: ended,
        frozen: Some(Scope::Global),
    };
    let closed = KeyStanding { open: None, ..all.clone() };
    let calm = KeyStanding { unknown_outcome_times: Vec::new(), ..closed.clone() };
    let free = KeyStanding { frozen: None, ..calm.clone() };
    let absent = KeyStanding { generations: Generations::default(), ..free.clone() };
    for (standing, refresh, expected) in [
        (all.clone(), false, Decision::No(Reserved::Held(CallId(7)))),
        (all, true, Decision::No(Reserved::Held(CallId(7)))),
        (closed.clone(), false, Decision::Stored),
        (closed, true, resting),
        (calm.clone(), false, Decision::Stored),
        (calm, true, Decision::No(Reserved::Frozen(Scope::Global))),
        (free.clone(), false, Decision::Stored),
        (free, true, Decision::Buy(generations.next())),
        (absent, false, Decision::Buy(Generations::default().next())),
    ] {
        let decision = decide(standing.clone(), &Reservation { refresh, ..picture(1) }, now);
        assert_eq!(decision, expected, "{standing:?}, refresh {refresh}");
    }
}

#[test]
fn freeze_of_everyone_is_named_before_that_of_the_team() {
    let press = Scope::Team("press".to_owned());
    for (scopes, expected) in [
        (&[][..], None),
        (&["team:web"], None),
        (&["team:press"], Some(press)),
        (&["team:press", "global"], Some(Scope::Global)),
    ] {
        assert_eq!(frozen("press", |scope| scopes.contains(&scope)), expected, "{scopes:?}");
    }
}

#[test]
fn first_enforced_budget_without_the_credits_refuses() {
    let (now, windows) = (at("2026-11-22T12:00:00Z"), today());
    let budget = |window, enforced| Budget { scope: Scope::Global, window, limit: 10, enforced };
    let budgets = [(Window::Day, true), (Window::Day, false), (Window::Month, true)];
    let budgets = budgets.map(|(window, enforced)| budget(window, enforced)).to_vec();
    for (credits, used, refusing, resets_in_hours) in [
        (3, [0, 0], None, 0),
        (3, [7, 7], None, 0),
        (3, [8, 7], Some(Window::Day), 12),
        (3, [7, 8], Some(Window::Month), 8 * 24 + 12),
        (3, [8, 8], Some(Window::Day), 12),
        (11, [0, 0], Some(Window::Day), 12),
        (u64::MAX, [1, 0], Some(Window::Day), 12),
    ] {
        let wanted = Reservation { credits, budgets: budgets.clone(), ..picture(1) };
        let refusal = over_budget(&wanted, &used, now, &windows);
        let found = refusal.map(|no| (no.budget.window, no.resets_in.as_secs() / 3600));
        assert_eq!(found, refusing.map(|window| (window, resets_in_hours)), "{credits}, {used:?}");
    }
}

#[test]
fn spool_takes_what_fits_beside_its_bytes_and_all_open_calls() {
    for (each, spooled, open, fits_in) in
        [(10, 90, 0, true), (10, 91, 0, false), (10, 70, 2, true), (10, 71, 2, false), (101, 0, 0, false)]
    {
        let room = Room { each, max: 100 };
        assert_eq!(has_room(room, spooled, open).is_ok(), fits_in, "{room:?}, {spooled}, {open}");
        let used = spooled + open * each;
        let refusal = fits(each, used, 100).err().map(|error| error.to_string());
        let told = format!("the spool is full: a result of {each} bytes does not fit beside {used} of 100");
        assert_eq!(refusal, (!fits_in).then_some(told));
    }
}

#[test]
fn only_a_reserved_call_of_ours_may_be_sent() {
    let frozen = Some(Scope::Global);
    for state in CallState::ALL {
        for (is_ours, frozen, permit_of_reserved) in [
            (true, None, Permit::Granted),
            (true, frozen.clone(), Permit::Frozen(Scope::Global)),
            (false, None, Permit::Lost),
            (false, frozen.clone(), Permit::Lost),
        ] {
            let expected = if state == CallState::Reserved { permit_of_reserved } else { Permit::Lost };
            assert_eq!(permit(state, is_ours, frozen), expected, "{state:?}, {is_ours}");
        }
    }
}

#[test]
fn credits_count_while_they_may_have_been_charged() {
    let free = [CallState::Released, CallState::Refused, CallState::Failed];
    for from in CallState::ALL {
        for to in CallState::ALL {
            let expected = match (free.contains(&from), free.contains(&to)) {
                (false, true) => -1,
                (true, false) => 1,
                _ => 0,
            };
            assert_eq!(counted(from, to), expected, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn booking_changes_a_call_along_the_table_and_in_no_other_way() {
    use CallState::{Answered, Lost, Reserved, Sent, Stored, Unfetchable, Unknown};
    let holds_not = Booking::Stored { record: Box::new(kept(0)), holds_key: false };
    let spooled = Booking::Spooled { record: Box::new(kept(1)), bytes: bytes::Bytes::new() };
    let free_of_charge = Booking::Refused { reason: String::new(), for_order: false };
    // The booking; from where; late when another row holds the key, and when none does; refused; told.
    for (booking, froms, late, counts_refused, invalidates) in [
        (released(), &[Reserved, Sent][..], [None; 2], false, false),
        (answer(CallId(1)), &[Sent, Unknown], [Some(true), Some(false)], false, false),
        (stored(&kept(0)), &[Sent, Unknown, Answered], [Some(true), Some(false)], false, false),
        (stored(&kept(1)), &[Sent, Unknown, Answered], [Some(true), Some(false)], false, true),
        (holds_not, &[Sent, Unknown, Answered], [Some(true); 2], false, false),
        (spooled, &[Sent, Unknown, Answered], [Some(true), Some(false)], false, true),
        (refused(), &[Reserved, Sent, Unknown], [None; 2], true, false),
        (free_of_charge, &[Reserved, Sent, Unknown], [None; 2], false, false),
        (failed(), &[Reserved, Sent, Unknown], [None; 2], false, false),
        (unknown(), &[Reserved, Sent, Unknown], [None; 2], false, false),
        (unfetchable(), &[Answered], [None; 2], false, false),
        (Booking::Lost, &[Stored], [None; 2], false, false),
    ] {
        let to = booking.state();
        assert!([Unfetchable, Lost].contains(&to) || froms.len() > 1);
        for from in CallState::ALL {
            for (held, late) in [true, false].into_iter().zip(late) {
                let change = Change { to, late, counted: counted(from, to), counts_refused, invalidates };
                match apply((CallId(1), from, None), &booking, held) {
                    Ok(Some(found)) => {
                        assert!(found == change && froms.contains(&from), "{from:?}: {found:?}")
                    }
                    Ok(None) => assert!(from == to && !froms.contains(&from), "{from:?}: nothing"),
                    Err(error) => {
                        assert!(!froms.contains(&from) && from != to, "{error}");
                        let (from, to) = (from.as_str(), to.as_str());
                        assert_eq!(error.to_string(), format!("call 1 is {from} and cannot become {to}"));
                    }
                }
            }
        }
    }
}

#[test]
fn owner_that_lived_on_corrects_a_result_that_is_not_its_own() {
    let own = kept(0);
    let [request_id, log_id] = [own.upstream_request_id.as_str(), &own.upstream_log_id];
    let spooled = Booking::Spooled { record: Box::new(own.clone()), bytes: bytes::Bytes::new() };
    for booking in [stored(&own), spooled] {
        for (ids, corrects) in [
            (Some((request_id, log_id)), false),
            (None, false),
            (Some(("another", log_id)), true),
            (Some((request_id, "another")), true),
        ] {
            let change = apply((CallId(1), CallState::Stored, ids), &booking, false).unwrap();
            assert_eq!(
                change.map(|change| (change.to, change.counted)),
                corrects.then_some((CallState::Stored, 0))
            );
        }
    }
}

#[test]
fn abandoned_call_is_released_unknown_or_finished() {
    for state in CallState::ALL {
        let found = match abandon(state, "died") {
            Abandoned::Book(Booking::Released { reason }) if reason == "died" => "released",
            Abandoned::Book(Booking::Unknown { reason }) if reason == "died" => "unknown",
            Abandoned::Book(booking) => panic!("{booking:?}"),
            Abandoned::Finish => "finished",
            Abandoned::Nothing => "left alone",
        };
        let expected = match state {
            CallState::Reserved => "released",
            CallState::Sent => "unknown",
            CallState::Answered => "finished",
            _ => "left alone",
        };
        assert_eq!(found, expected, "{state:?}");
    }
}

#[test]
fn open_call_that_has_not_moved_is_silent() {
    let seen = |state| ForeignOpenCall { id: CallId(1), state, heartbeat: 5 };
    for (seen, state, heartbeat, expected) in [
        (seen(CallState::Sent), CallState::Sent, 5, true),
        (seen(CallState::Sent), CallState::Sent, 6, false),
        (seen(CallState::Sent), CallState::Answered, 5, false),
        (seen(CallState::Stored), CallState::Stored, 5, false),
    ] {
        assert_eq!(is_silent(&seen, state, heartbeat), expected, "{seen:?}, {state:?}, {heartbeat}");
    }
}

#[test]
fn record_settles_its_orphan_or_becomes_a_row_of_its_own() {
    let nothing = ImportStanding::default();
    let orphan = ImportStanding { orphan: Some(CallId(7)), ..nothing };
    for (standing, expected) in [
        (nothing, Imported::Added),
        (orphan, Imported::Settles(CallId(7))),
        (ImportStanding { is_lost: true, ..nothing }, Imported::Ignored),
        (ImportStanding { is_lost: true, ..orphan }, Imported::Settles(CallId(7))),
        (ImportStanding { has_purchase: true, ..nothing }, Imported::Added),
        (ImportStanding { has_purchase: true, ..orphan }, Imported::Added),
        (ImportStanding { has_purchase: true, is_lost: true, ..orphan }, Imported::Ignored),
        (ImportStanding { purged: Some(0), ..orphan }, Imported::Settles(CallId(7))),
        (ImportStanding { purged: Some(1), ..orphan }, Imported::Ignored),
        (ImportStanding { purged: Some(1), ..nothing }, Imported::Ignored),
    ] {
        assert_eq!(import(1, standing), expected, "{standing:?}");
    }
}

#[test]
fn records_of_one_purchase_differ_in_their_time_only() {
    let ours = kept(0);
    let later = Record { stored_at: at("2026-11-23T09:00:00Z"), ..ours.clone() };
    let other = Record { upstream_request_id: "another".to_owned(), ..ours.clone() };
    for (standing, expected) in [(ours.clone(), true), (later, true), (other, false), (kept(1), false)] {
        assert_eq!(is_same_purchase(&ours, &standing), expected, "{standing:?}");
    }
}

#[test]
fn a_month_is_closed_when_the_first_day_of_the_next_is_over() {
    for (month, today, expected) in [
        ("2026-11", "2026-11-30", false),
        ("2026-11", "2026-12-01", false),
        ("2026-11", "2026-12-02", true),
        // The first of a later month, too.
        ("2026-11", "2027-01-01", true),
        ("2026-11", "2027-01-02", true),
        ("2026-12", "2027-01-01", false),
        ("2026-12", "2026-11-30", false),
        ("2026-11", "", false),
    ] {
        assert_eq!(is_closed(month, today), expected, "{month} on {today}");
    }
}

#[test]
fn change_in_a_closed_month_is_an_adjustment_of_today() {
    use CallState::{Failed, Sent, Unknown};
    for (month, from, to, is_adjusted) in [
        ("2026-09", Unknown, Failed, true),
        ("2026-09", Sent, Unknown, true),
        ("2026-09", Unknown, Unknown, false),
        ("2026-11", Unknown, Failed, false),
    ] {
        let expected = is_adjusted.then(|| counted(from, to));
        assert_eq!(adjustment(month, from, to, &today()), expected, "{month}, {from:?} to {to:?}");
    }
}

#[test]
fn what_was_served_in_a_closed_month_counts_today() {
    for (day, expected) in
        [("2026-09-15", "2026-11-22"), ("2026-11-15", "2026-11-15"), ("2026-11-22", "2026-11-22")]
    {
        assert_eq!(served_on(day.parse().unwrap(), &today()), expected);
    }
}

#[test]
fn unknown_call_is_settled_once_and_in_one_way() {
    use Settlement::{Charged, Free};
    let free = |given_back| Settling {
        to: CallState::Failed,
        counted: counted(CallState::Unknown, CallState::Failed),
        given_back: Some(given_back),
    };
    let charged = Settling { to: CallState::Unknown, counted: 0, given_back: None };
    for (state, settled, word, month, expected) in [
        (CallState::Unknown, None, Charged, "2026-11", Ok(charged.clone())),
        (CallState::Unknown, None, Charged, "2026-09", Ok(charged)),
        (CallState::Unknown, None, Free, "2026-11", Ok(free(GivenBack::Budgets))),
        (CallState::Unknown, None, Free, "2026-09", Ok(free(GivenBack::Adjustment))),
        (CallState::Unknown, Some(Charged), Charged, "2026-11", Err(Settled::Repeated)),
        (CallState::Unknown, Some(Charged), Free, "2026-11", Err(Settled::Otherwise(Charged))),
        (CallState::Failed, Some(Free), Free, "2026-11", Err(Settled::Repeated)),
        (CallState::Failed, Some(Free), Charged, "2026-11", Err(Settled::Otherwise(Free))),
        (CallState::Failed, None, Free, "2026-11", Err(Settled::NotUnknown(CallState::Failed))),
        (CallState::Sent, None, Charged, "2026-11", Err(Settled::NotUnknown(CallState::Sent))),
    ] {
        let found = settle((state, settled), word, month, &today());
        assert_eq!(found, expected, "{state:?}, {settled:?}, {word:?}, {month}");
    }
}
