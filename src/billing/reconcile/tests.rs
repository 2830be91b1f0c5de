//! Comparing with accounts that are charged early, late, by somebody else, and topped up.

use proptest::prelude::*;

use super::*;

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_795_392_000 + second).unwrap()
}

fn exact(credits: u64) -> Bounds {
    Bounds { least: credits, most: credits }
}

#[test]
fn what_the_ledger_does_not_know_was_spent_outside() {
    let first = next(None, 1000, exact(30), at(0));
    assert_eq!((first.version, first.outside, first.baseline.balance), (1, 0, 1000));
    // Nine more in the ledger, and eleven gone.
    let second = next(Some(&first), 989, exact(39), at(1));
    assert_eq!((second.version, second.outside, &second.baseline), (2, 2, &first.baseline));
    // Nothing new.
    let third = next(Some(&second), 989, exact(39), at(2));
    assert_eq!((third.outside, third.seen_at), (2, at(2)));
    // A call that is booked and was not charged.
    assert_eq!(next(Some(&third), 989, exact(42), at(3)).outside, -1);
}

#[test]
fn a_balance_that_rises_is_a_new_baseline() {
    let first = next(None, 1000, exact(0), at(0));
    let spent = next(Some(&first), 900, exact(3), at(1));
    assert_eq!(spent.outside, 97);
    let filled = next(Some(&spent), 901, exact(3), at(2));
    assert_eq!((filled.outside, filled.baseline.balance, filled.baseline.least), (0, 901, 3));
    assert_eq!(next(Some(&filled), 898, exact(6), at(3)).outside, 0);
}

#[test]
fn calls_under_way_raise_no_false_alarm_and_hide_no_true_one_for_ever() {
    let first = next(None, 1000, exact(0), at(0));
    // Two calls are under way; one of them is charged.
    let second = next(Some(&first), 997, Bounds { least: 0, most: 6 }, at(1));
    assert_eq!(second.outside, 0);
    // Nine are gone, and the calls explain six at most.
    let third = next(Some(&second), 991, Bounds { least: 0, most: 6 }, at(2));
    assert_eq!(third.outside, 3);
    // They were booked: what is left is exact.
    assert_eq!(next(Some(&third), 991, exact(6), at(3)).outside, 3);
    assert_eq!(next(Some(&third), 988, exact(6), at(3)).outside, 6);
}

#[test]
fn a_baseline_that_was_seen_in_a_rush_is_replaced_by_a_calm_one() {
    let rushed = next(None, 1000, Bounds { least: 0, most: 30 }, at(0));
    let calm = next(Some(&rushed), 985, exact(30), at(1));
    assert_eq!((calm.outside, calm.baseline.balance, calm.baseline.most), (0, 985, 30));
    assert_eq!(next(Some(&calm), 984, exact(30), at(2)).outside, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    Charge,
    Book,
    Outside(u64),
    TopUp(u64),
    Compare,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Send),
        4 => Just(Step::Charge),
        4 => Just(Step::Book),
        1 => (1_u64..5).prop_map(Step::Outside),
        1 => (1_u64..500).prop_map(Step::TopUp),
        4 => Just(Step::Compare),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// An account that is charged for each call at any moment between its sending and its booking, by
    /// somebody else too, and topped up: never is more found outside than was spent there, and when
    /// nothing is under way it is found to the credit, but for what was spent before the baseline.
    #[test]
    fn what_is_found_outside_was_spent_outside(steps in steps()) {
        let (mut balance, mut outside) = (10_000_u64, 0_u64);
        // Calls sent and not charged yet; charged and not booked; and booked.
        let (mut sent, mut charged, mut booked) = (0_u64, 0_u64, 0_u64);
        let mut account: Option<AccountRow> = None;
        for (step, second) in steps.into_iter().chain([Step::Compare]).zip(0..) {
            match step {
                Step::Send => sent += 1,
                Step::Charge if sent > 0 => (sent, charged, balance) = (sent - 1, charged + 1, balance - 3),
                Step::Book if charged > 0 => (charged, booked) = (charged - 1, booked + 1),
                Step::Outside(credits) => (outside, balance) = (outside + credits, balance - credits),
                Step::TopUp(credits) => balance += credits,
                Step::Compare => {
                    let bounds = Bounds { least: 3 * booked, most: 3 * (booked + charged + sent) };
                    let before = account.take();
                    let now = next(before.as_ref(), balance, bounds, at(second));
                    let is_new = before.is_none_or(|before| balance > before.balance);
                    if is_new {
                        outside = 0;
                    }
                    prop_assert!(now.outside <= i64::try_from(outside).unwrap(), "{now:?}, {outside}");
                    account = Some(now);
                }
                Step::Charge | Step::Book => {}
            }
            // A balance that was topped up unseen, by more than was spent, is a lower figure until it rises.
        }
        let known = account.unwrap();
        prop_assert!(known.baseline.least <= known.baseline.most);
    }

    /// With a baseline seen in peace and no top-up, the figure in peace is exact, whatever came between.
    #[test]
    fn in_peace_it_is_exact(steps in steps()) {
        let (mut balance, mut outside) = (10_000_u64, 0_i64);
        let (mut sent, mut charged, mut booked) = (0_u64, 0_u64, 0_u64);
        let mut account = next(None, balance, exact(0), at(0));
        for (step, second) in steps.into_iter().zip(1..) {
            match step {
                Step::Send => sent += 1,
                Step::Charge if sent > 0 => (sent, charged, balance) = (sent - 1, charged + 1, balance - 3),
                Step::Book if charged > 0 => (charged, booked) = (charged - 1, booked + 1),
                Step::Outside(credits) => {
                    (outside, balance) = (outside + i64::try_from(credits).unwrap(), balance - credits);
                }
                Step::Compare => {
                    let bounds = Bounds { least: 3 * booked, most: 3 * (booked + charged + sent) };
                    account = next(Some(&account), balance, bounds, at(second));
                    prop_assert!(account.outside <= outside, "{account:?}, {outside}");
                }
                Step::TopUp(_) | Step::Charge | Step::Book => {}
            }
        }
        let booked = booked + charged + sent;
        balance -= 3 * sent;
        account = next(Some(&account), balance, exact(3 * booked), at(1000));
        prop_assert_eq!(account.outside, outside);
    }
}
