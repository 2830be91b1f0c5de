//! Slots in paused time: never more than the limit, no waiter lost, teams in turn, honest waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;

const PATIENT: Duration = Duration::from_secs(3600);

fn slots(concurrency: usize, max_concurrency: usize, queue: usize) -> Arc<Slots> {
    Slots::new(SlotsConfig { concurrency, max_concurrency, queue })
}

fn queued(slots: &Slots) -> usize {
    slots.load().queued.values().sum()
}

/// Asks in a task of its own, and returns once it waits or has its answer.
async fn ask(slots: &Arc<Slots>, team: &'static str) -> JoinHandle<Result<Slot, TooBusy>> {
    let asking = tokio::spawn({
        let slots = slots.clone();
        async move { slots.take(team, PATIENT).await }
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    asking
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_cannot_come_in_time_is_refused_at_once() {
    let slots = slots(1, 1, 256);
    let taken = slots.take("a", Duration::ZERO).await.expect("a free slot needs no patience");
    let busy = slots.take("a", Duration::from_millis(3999)).await.err().expect("too late");
    assert_eq!(busy, TooBusy { wait: FIRST_GUESS, cause: ShedReason::WaitTimeout });
    assert_eq!(slots.load().in_flight, 1);
    assert_eq!(queued(&slots), 0, "who was refused does not count as waiting");
    drop(taken);
    assert!(slots.take("a", Duration::ZERO).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn other_bounds_serve_who_waits_and_put_nobody_out() {
    let slots = slots(1, 1, 2);
    let taken = slots.take("a", PATIENT).await.ok().unwrap();
    let waiting = [ask(&slots, "a").await, ask(&slots, "b").await];
    slots.set_bounds(SlotsConfig { concurrency: 1, max_concurrency: 1, queue: 0 });
    assert_eq!(queued(&slots), 2, "who waits goes on waiting");
    let refused = slots.take("c", PATIENT).await.err().map(|busy| busy.cause);
    assert_eq!(refused, Some(ShedReason::QueueFull), "and nobody else");
    slots.set_bounds(SlotsConfig { concurrency: 3, max_concurrency: 3, queue: 2 });
    assert_eq!(queued(&slots), 0, "both have their turn at once");
    let [first, second] = waiting;
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(first.is_ok() && second.is_ok(), "without a call having ended");
    assert_eq!(slots.load().in_flight, 3);
    slots.set_bounds(SlotsConfig { concurrency: 1, max_concurrency: 1, queue: 2 });
    let last = ask(&slots, "a").await;
    drop((taken, first));
    assert_eq!((queued(&slots), slots.load().in_flight), (1, 1), "calls under way count still");
    drop(second);
    assert!(last.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_wait_follows_from_what_calls_take_and_from_the_fair_place() {
    let slots = slots(2, 2, 256);
    let (first, second) =
        (slots.take("a", PATIENT).await.ok().unwrap(), slots.take("a", PATIENT).await.ok().unwrap());
    tokio::time::advance(Duration::from_secs(18)).await;
    first.end(CallEnd::Served);
    // Seven eighths of two seconds and one of eighteen.
    assert_eq!(slots.state.lock().held, Duration::from_secs(4));
    let third = slots.take("a", PATIENT).await.ok().unwrap();
    let waiting = [ask(&slots, "a").await, ask(&slots, "a").await, ask(&slots, "a").await];
    let wait_of = async |team: &str| slots.take(team, Duration::ZERO).await.err().unwrap().wait;
    assert_eq!(wait_of("a").await, Duration::from_secs(8), "after three others, two at a time");
    assert_eq!(wait_of("b").await, Duration::from_secs(4), "after one of the other team");
    // What fails at once, and what was never called, says nothing of how long a turn takes.
    third.end(CallEnd::Failed);
    drop(second);
    assert_eq!(slots.state.lock().held, Duration::from_secs(4));
    drop(waiting);
}

#[tokio::test(start_paused = true)]
async fn teams_take_turns_and_a_bounded_queue_keeps_a_place_for_another_team() {
    let slots = slots(1, 1, 3);
    let taken = slots.take("a", PATIENT).await.ok().unwrap();
    let of_a = [ask(&slots, "a").await, ask(&slots, "a").await];
    let refused = slots.take("a", PATIENT).await.err().map(|busy| busy.cause);
    assert_eq!(refused, Some(ShedReason::QueueFull), "the last place is for another team");
    let of_b = ask(&slots, "b").await;
    let refused = slots.take("c", PATIENT).await.err().map(|busy| busy.cause);
    assert_eq!(refused, Some(ShedReason::QueueFull), "now it is full");
    assert_eq!(slots.load().queued, [("a".to_owned(), 2), ("b".to_owned(), 1)].into());
    drop(taken);
    let [first, second] = of_a;
    drop(first.await.unwrap().ok().unwrap());
    assert_eq!(queued(&slots), 1, "b is on its way");
    drop(of_b.await.unwrap().ok().unwrap());
    drop(second.await.unwrap().ok().unwrap());
    assert_eq!((slots.load().in_flight, queued(&slots)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_leaves_the_queue_and_keeps_no_slot() {
    let slots = slots(1, 1, 256);
    let taken = slots.take("a", PATIENT).await.ok().unwrap();
    let (leaves, stays) = (ask(&slots, "a").await, ask(&slots, "a").await);
    leaves.abort();
    assert!(leaves.await.is_err());
    assert_eq!(queued(&slots), 1);
    // One who is given its turn and does not look any more gives it back.
    let mut late = Box::pin(slots.take("b", PATIENT));
    assert!(tokio::time::timeout(Duration::ZERO, late.as_mut()).await.is_err());
    drop(taken);
    drop(stays.await.unwrap().ok().unwrap());
    assert_eq!(slots.load().in_flight, 1, "the slot is on its way");
    drop(late);
    assert_eq!((slots.load().in_flight, queued(&slots)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_limit_grows_while_it_is_in_use_and_is_halved_by_a_burst_of_refusals() {
    let slots = slots(4, 16, 256);
    for _ in 0..200 {
        let mut taken = Vec::new();
        while let Ok(slot) = slots.take("a", Duration::ZERO).await {
            taken.push(slot);
        }
        assert_eq!(taken.len(), slots.load().limit);
        tokio::time::advance(Duration::from_secs(1)).await;
        taken.into_iter().for_each(|slot| slot.end(CallEnd::Served));
    }
    assert_eq!(slots.load().limit, 16);
    let mut taken = Vec::new();
    for _ in 0..16 {
        taken.push(slots.take("a", Duration::ZERO).await.ok().unwrap());
    }
    taken.into_iter().for_each(|slot| slot.end(CallEnd::Throttled(None)));
    assert_eq!(slots.load().limit, 8);
}

#[tokio::test(start_paused = true)]
async fn a_wait_the_upstream_asks_for_is_kept_by_all_and_told_to_those_who_ask() {
    let slots = slots(4, 4, 256);
    let slot = slots.take("a", PATIENT).await.ok().unwrap();
    let asked = Duration::from_secs(3);
    slot.end(CallEnd::Throttled(Some(asked)));
    let busy = slots.take("a", Duration::from_secs(2)).await.err().expect("not before it is over");
    assert_eq!((busy.wait, busy.cause), (asked, ShedReason::WaitTimeout));
    let before = Instant::now();
    let waiting = ask(&slots, "a").await;
    assert!(waiting.await.unwrap().is_ok());
    assert_eq!(before.elapsed().as_secs(), 3);
    assert!(slots.take("a", Duration::ZERO).await.is_ok(), "over for all");
}

/// Lets a crowd through, each with a random call, and says how many were under way at once and how
/// each of them ended.
async fn crowd(plan: &[(u8, u8, u8)], concurrency: usize, queue: usize) -> Result<(), TestCaseError> {
    let slots = slots(concurrency, 8, queue);
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut asking = Vec::new();
    for (team, millis, end) in plan.iter().copied() {
        let (slots, under_way, most) = (slots.clone(), under_way.clone(), most.clone());
        asking.push(tokio::spawn(async move {
            let team = ["a", "b", "c"][usize::from(team) % 3];
            let slot = slots.take(team, PATIENT).await?;
            let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(millis.into())).await;
            under_way.fetch_sub(1, Ordering::SeqCst);
            match end % 4 {
                0 => slot.end(CallEnd::Served),
                1 => slot.end(CallEnd::Throttled(None)),
                2 => slot.end(CallEnd::Failed),
                _ => drop(slot),
            }
            Ok(())
        }));
        if end > 200 {
            asking.pop().into_iter().for_each(|asking| asking.abort());
        }
    }
    let mut served = 0;
    for asking in asking {
        let ended: Result<(), TooBusy> = asking.await.expect("nobody panics");
        match ended {
            Ok(()) => served += 1,
            Err(busy) => prop_assert_eq!(busy.cause, ShedReason::QueueFull),
        }
    }
    // A team may hold seven eighths of the places.
    prop_assert!(served >= plan.iter().filter(|(_, _, end)| *end <= 200).count().min(queue * 7 / 8));
    // Those who were aborted may be asleep with a slot in hand.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let load = slots.load();
    prop_assert_eq!((load.in_flight, load.queued.len()), (0, 0), "{:?}", load);
    prop_assert!(most.load(Ordering::SeqCst) <= 8);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn never_more_than_the_limit_and_everyone_is_served_or_told(
        plan in proptest::collection::vec(any::<(u8, u8, u8)>(), 1..60),
        concurrency in 1usize..8, queue in 0usize..40,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(crowd(&plan, concurrency, queue))?;
    }
}
