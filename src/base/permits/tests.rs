//! That no unit is granted twice or lost, that no waiter is forgotten, and that what each party gets is fair.

use std::task::Poll;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, poll};
use proptest::prelude::*;

use super::*;

fn party(name: &str) -> Party {
    Party::new(name)
}

fn whole(capacity: u64) -> Permits {
    Permits::new(capacity, Sharing::Whole)
}

/// Waiters in the order of their names, each for one unit; the order in which they are served when one unit is given back
/// after the other.
async fn order(waiters: &str) -> String {
    let parties: Vec<Party> = waiters.chars().map(|name| party(&name.to_string())).collect();
    let permits = whole(1);
    let mut held = permits.try_take(&party("holder"), 1);
    let mut waiting: Vec<(String, BoxFuture<'_, Permit>)> = Vec::new();
    for (number, party) in parties.iter().enumerate() {
        let mut turn = permits.take(party, 1).boxed();
        assert!(poll!(&mut turn).is_pending());
        waiting.push((format!("{}{number}", party.name()), turn));
    }
    let mut served = Vec::new();
    while held.take().is_some() {
        for at in 0..waiting.len() {
            if let Poll::Ready(permit) = poll!(&mut waiting[at].1) {
                assert!(held.is_none(), "one unit was granted twice");
                held = Some(permit);
                served.push(waiting.remove(at).0);
                break;
            }
        }
    }
    assert!(waiting.is_empty() && permits.used() == 0);
    served.join(" ")
}

#[tokio::test]
async fn parties_take_turns_and_within_a_party_the_first_is_served_first() {
    assert_eq!(order("aaabbc").await, "a0 b3 c5 a1 b4 a2");
    assert_eq!(order("aaaab").await, "a0 b4 a1 a2 a3");
}

#[tokio::test]
async fn what_becomes_free_goes_to_the_party_that_holds_least() {
    let permits = whole(4);
    let (a, b) = (party("a"), party("b"));
    let mut held: Vec<Permit> = (0..4).filter_map(|_| permits.try_take(&a, 1)).collect();
    assert_eq!(held.len(), 4, "a party alone has all");
    let mut turns: Vec<_> = [&a, &a, &b, &b, &b].map(|party| permits.take(party, 1).boxed()).into();
    for turn in &mut turns {
        assert!(poll!(turn).is_pending());
    }
    assert_eq!((permits.ahead_of(&a), permits.ahead_of(&b), permits.ahead_of(&party("c"))), (5, 5, 2));
    let mut given: Vec<Permit> = Vec::new();
    for _ in 0..4 {
        held.pop();
        let ready = turns.iter_mut().enumerate().find_map(|(at, turn)| Some((at, turn.now_or_never()?)));
        let (at, permit) = ready.expect("a waiter is served");
        drop(turns.remove(at));
        given.push(permit);
    }
    let names: String = given.iter().map(|permit| permit.party.name()).collect();
    assert_eq!(names, "bbaa", "b until it has two, then a, which has one");
}

#[tokio::test]
async fn large_taker_holds_up_no_other_party() {
    let permits = whole(10);
    let (small, large) = (party("small"), party("large"));
    let first = permits.take(&small, 6).await;
    let mut waits = permits.take(&large, 8).boxed();
    assert!(poll!(&mut waits).is_pending());
    let second = permits.take(&small, 1).now_or_never().expect("it fits");
    let mut behind = permits.take(&large, 1).boxed();
    assert!(poll!(&mut behind).is_pending(), "within a party the first is served first");
    drop((first, second));
    assert!(poll!(&mut waits).is_ready() && poll!(&mut behind).is_ready());
}

#[tokio::test]
async fn large_taker_that_gives_up_lets_a_smaller_one_of_its_party_pass() {
    let permits = whole(10);
    let (small, large) = (party("small"), party("large"));
    let _held = permits.take(&small, 6).await;
    let mut leaves = permits.take(&large, 8).boxed();
    assert!(poll!(&mut leaves).is_pending());
    assert_eq!(permits.waiting(), [(large.clone(), 1)]);
    let mut behind = permits.take(&large, 1).boxed();
    assert!(poll!(&mut behind).is_pending());
    drop(leaves);
    assert!(poll!(&mut behind).is_ready());
}

#[tokio::test]
async fn waiter_that_gives_up_leaves_its_turn_to_the_next() {
    let permits = whole(1);
    let [a, b, holder] = ["a", "b", "holder"].map(party);
    let held = permits.take(&holder, 1).await;
    let mut leaves = permits.take(&b, 1).boxed();
    let mut stays = permits.take(&a, 1).boxed();
    assert!(poll!(&mut leaves).is_pending() && poll!(&mut stays).is_pending());
    drop(held);
    drop(leaves);
    assert!(poll!(&mut stays).is_ready(), "it has the turn that the other was granted");
    assert_eq!((permits.used(), permits.waiting()), (0, vec![]));
    assert!(permits.0.state.lock().parties.is_empty());
}

#[tokio::test]
async fn capacity_may_change_while_permits_are_held() {
    let permits = whole(2);
    let a = party("a");
    let held = [permits.take(&a, 1).await, permits.take(&a, 1).await];
    permits.set_capacity(0);
    let mut turn = permits.take(&a, 1).boxed();
    drop(held);
    assert!(poll!(&mut turn).is_pending());
    permits.set_capacity(1);
    assert!(poll!(&mut turn).is_ready());
}

#[tokio::test(start_paused = true)]
async fn wait_asks_for_at_most_all_units_and_ends_with_its_patience() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let permits = whole(3);
    let [a, b] = ["a", "b"].map(party);
    let all = permits.take_within(&a, 4, PATIENCE).await.expect("all are free");
    assert_eq!((permits.capacity(), all.units, permits.waiting()), (3, 3, vec![]));
    assert!(permits.take_within(&b, 1, PATIENCE).await.is_none());
    assert!(permits.none(&b).grow_to(0));
    drop(all);
    assert!(permits.0.state.lock().parties.is_empty(), "without units a party leaves no trace");
}

#[test]
fn headroom_leaves_room_for_each_newcomer() {
    let permits = Permits::new(1600, Sharing::Headroom);
    let fill = |name: &str| {
        let mut permit = permits.none(&party(name));
        while permit.grow_to(permit.units + 1) {}
        permit
    };
    let alone = fill("alone");
    assert_eq!(alone.units, 1400, "seven eighths");
    let second = fill("second");
    assert_eq!(second.units, 175, "seven eighths of the rest");
    drop(alone);
    assert_eq!(fill("third").units, 1246);
    assert!(!permits.none(&party("large")).grow_to(1601));
    drop(second);
    let small = Permits::new(1, Sharing::Headroom);
    assert!(small.try_take(&party("a"), 1).is_some(), "a party without any always has one");
}

#[test]
fn permit_grows_shrinks_joins_and_is_part_of_its_bytes() {
    let permits = whole(1000);
    let a = party("a");
    let mut permit = permits.try_take(&a, 400).expect("free");
    assert!(
        permit.grow_to(400) && permit.grow_to(1000) && !permit.grow_to(1001) && !permit.grow_to(u64::MAX)
    );
    permit.shrink_to(300);
    permit.shrink_to(500);
    let other = permits.try_take(&a, 700).expect("free again");
    assert!(permits.try_take(&party("b"), 1).is_none());
    permit.join(other);
    let bytes = permit.hold(vec![7; 10]);
    let slice = bytes.slice(2..4);
    drop(bytes);
    assert_eq!((permits.used(), &slice[..]), (1000, &[7, 7][..]));
    drop(slice);
    assert_eq!(permits.used(), 0);
}

proptest! {
    /// Random arrivals of random parties: never more than the capacity is granted, no unit stays free while a party waits,
    /// each grant goes to a waiting party that holds least, and of several that hold as much to the longest without a turn.
    #[test]
    fn no_unit_is_lost_and_no_party_starves(
        capacity in 1_u64..6,
        steps in proptest::collection::vec((0_usize..4, 0_u8..3, 0_usize..8), 1..150),
    ) {
        let names = ["a", "b", "c", "d"].map(party);
        let permits = whole(capacity);
        let mut held: Vec<(usize, Permit)> = Vec::new();
        let mut waiting: Vec<(usize, BoxFuture<'_, Permit>)> = Vec::new();
        let mut turns = [0; 4];
        for (step, (who, action, which)) in steps.into_iter().enumerate() {
            let holds = |held: &[(usize, Permit)], party| held.iter().filter(|(holder, _)| *holder == party).count();
            match action {
                0 if !held.is_empty() => drop(held.remove(which % held.len())),
                1 if !waiting.is_empty() && which == 0 => drop(waiting.remove(who % waiting.len())),
                _ => {
                    if holds(&held, who) == 0 && waiting.iter().all(|(waiter, _)| *waiter != who) {
                        turns[who] = step;
                    }
                    waiting.push((who, permits.take(&names[who], 1).boxed()));
                }
            }
            let granted = waiting.iter_mut().enumerate().find_map(|(at, (_, turn))| Some((at, turn.now_or_never()?)));
            if let Some((at, permit)) = granted {
                let who = waiting.remove(at).0;
                for (other, _) in &waiting {
                    let (ours, theirs) = (holds(&held, who), holds(&held, *other));
                    prop_assert!(ours < theirs || *other == who || (ours == theirs && turns[who] <= turns[*other]));
                }
                turns[who] = step;
                held.push((who, permit));
            }
            prop_assert_eq!(permits.used(), held.len() as u64);
            prop_assert!(permits.used() <= capacity);
            prop_assert!(waiting.is_empty() || permits.used() == capacity, "a unit is free, and a party waits");
        }
        drop((held, waiting));
        prop_assert_eq!(permits.used(), 0);
        prop_assert!(permits.0.state.lock().parties.is_empty());
    }
}
