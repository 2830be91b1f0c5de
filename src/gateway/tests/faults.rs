//! The upstream under fire, in paused time: how often it is called, what callers are told, what is in
//! the ledger, and how long it takes until all is well again.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::upstream::NotSent;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// The next calls are answered with these, and those after them with results.
    fn script(&self, replies: impl IntoIterator<Item = fn() -> Option<Reply>>) {
        let replies: Mutex<VecDeque<_>> = Mutex::new(replies.into_iter().collect());
        let number = Mutex::new(1000);
        self.upstream.reply(move || {
            let next = replies.lock().unwrap().pop_front();
            next.and_then(|reply| reply()).unwrap_or_else(|| {
                let mut number = number.lock().unwrap();
                *number += 1;
                Reply::Answered(
                    crate::base::envelope::Answer::read(&answer_text(*number), &IMAGE_CROPPING).unwrap(),
                )
            })
        });
    }

    /// From now on every call is answered with results again.
    fn heal(&self) {
        *self.upstream.reply.lock().unwrap() = None;
        self.upstream.switch.fail(&[]);
        self.results.switch.fail(&[]);
    }

    fn opened(&self) -> usize {
        self.upstream.switch.count("open")
    }

    async fn ask_with_patience(&self, tag: u8, patience: Duration) -> Result<CropReply, GatewayError> {
        let caller = Caller { deadline: Instant::now() + patience, ..caller() };
        ask_as(&self.gateway, &caller, tag).await
    }

    /// Waits for fills that take their time.
    async fn settle(&self) {
        while self.filler.load().0 > 0 {
            tokio::time::sleep(SECOND).await;
        }
    }

    /// Many callers at once, each for a picture of its own; how they ended.
    async fn ask_many(&self, tags: std::ops::Range<u8>) -> Vec<String> {
        let asking: Vec<_> = tags.map(|tag| self.ask_meanwhile(tag)).collect();
        let mut ends = Vec::new();
        for asking in asking {
            ends.push(ended(&asking.await.unwrap()));
        }
        ends
    }
}

fn throttled() -> Option<Reply> {
    Some(refusal(RefusalKind::Flow { retry_after: None }, 429))
}

fn throttled_for_seven_seconds() -> Option<Reply> {
    Some(refusal(RefusalKind::Flow { retry_after: Some(Duration::from_secs(7)) }, 429))
}

fn lost_before_the_tail() -> Option<Reply> {
    Some(Reply::NotSent(NotSent::Upload("planted".to_owned())))
}

fn no_credits() -> Reply {
    refusal(RefusalKind::Credits, 429)
}

fn key_refused() -> Reply {
    refusal(RefusalKind::Key, 401)
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_cannot_be_reached_is_tried_three_times_within_the_callers_time() {
    let world = World::new();
    world.upstream.switch.fail(&["open"]);
    let started = Instant::now();
    assert_eq!(ended(&world.ask(1).await), "UpstreamUnreachable");
    assert_eq!((world.opened(), world.ledger.states()), (3, vec![CallState::Released]));
    assert!(started.elapsed() >= Duration::from_millis(100) && started.elapsed() <= 2 * SECOND);
    // Who has no time for a wait is told at once.
    let hurried = World::new();
    hurried.upstream.switch.fail(&["open"]);
    assert_eq!(ended(&hurried.ask_with_patience(1, Duration::from_millis(49)).await), "UpstreamUnreachable");
    assert_eq!(hurried.opened(), 1);
    // The second try may be the good one.
    let lucky = World::new();
    lucky.upstream.switch.fail_once("open");
    assert_eq!(ended(&lucky.ask(1).await), "miss");
    assert_eq!((lucky.opened(), lucky.ledger.states()), (2, vec![CallState::Stored]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_while_the_tail_is_held_is_tried_again_on_a_row_of_its_own() {
    let world = World::new();
    world.script([lost_before_the_tail as fn() -> _; 2]);
    assert_eq!(ended(&world.ask(1).await), "miss");
    use CallState::{Released, Stored};
    assert_eq!(world.ledger.states(), [Released, Released, Stored]);
    let world = World::new();
    world.script([lost_before_the_tail as fn() -> _; 9]);
    assert_eq!(ended(&world.ask(1).await), "UpstreamUnreachable");
    assert_eq!((world.opened(), world.ledger.states()), (3, vec![Released; 3]));
}

#[tokio::test(start_paused = true)]
async fn flow_control_is_retried_within_a_tenth_of_all_purchases_and_honours_the_wait() {
    use CallState::{Refused, Stored};
    let world = World::new();
    world.script([throttled_for_seven_seconds as fn() -> _]);
    assert_eq!(ended(&world.ask(0).await), "UpstreamThrottled", "nothing is saved up yet");
    assert_eq!(world.ledger.states(), [Refused]);
    tokio::time::advance(7 * SECOND).await;
    for tag in 1..10 {
        assert_eq!(ended(&world.ask(tag).await), "miss");
    }
    world.script([throttled_for_seven_seconds as fn() -> _]);
    let started = Instant::now();
    assert_eq!(ended(&world.ask(10).await), "miss", "the tenth purchase gave one retry");
    assert!((7..9).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!(world.ledger.states()[10..], [Refused, Stored]);
    // A wait that does not fit the caller's time uses up no budget.
    for tag in 11..22 {
        assert_eq!(ended(&world.ask(tag).await), "miss");
    }
    world.script([throttled_for_seven_seconds as fn() -> _]);
    assert_eq!(ended(&world.ask_with_patience(22, 6 * SECOND).await), "UpstreamThrottled");
    tokio::time::advance(7 * SECOND).await;
    world.script([throttled as fn() -> _]);
    assert_eq!(ended(&world.ask(23).await), "miss");
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_throttling_makes_hardly_more_calls_than_there_are_pictures_and_is_over_soon() {
    let world = World::with(4, &[]);
    world.upstream.reply(|| throttled().unwrap());
    let mut offered = 0;
    let mut clients = Vec::new();
    for tag in 0..200 {
        // Clients that come back at once, five times.
        let gateway = world.gateway.clone();
        clients.push(tokio::spawn(async move {
            let mut ends = Vec::new();
            for _ in 0..6 {
                ends.push(ended(&ask_as(&gateway, &caller(), tag).await));
            }
            ends
        }));
        offered += 1;
        tokio::time::sleep(SECOND / 5).await;
    }
    for client in clients {
        for end in client.await.unwrap() {
            assert!(["UpstreamThrottled", "TooBusy", "StillBeingMade"].contains(&end.as_str()), "{end}");
        }
    }
    assert!(world.opened() * 10 <= offered * 11, "{} calls for {offered} pictures", world.opened());
    assert!(world.opened() > 10 && world.filler.slots().limit == 1);
    assert!(world.ledger.states().iter().all(|state| *state == CallState::Refused));
    world.heal();
    let healed = Instant::now();
    while world.ask(201).await.is_err() {
        tokio::time::advance(SECOND).await;
    }
    assert!(healed.elapsed() <= 10 * SECOND, "{:?}", healed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_credits_no_call_is_made_until_the_balance_says_so() {
    let world = World::new();
    world.ask(0).await.unwrap();
    world.upstream.reply(no_credits);
    assert!(world.ask_many(1..40).await.iter().all(|end| end == "UpstreamCredits"));
    assert!(world.opened() <= 1 + 4, "{} calls", world.opened());
    let calls = world.opened();
    tokio::time::advance(30 * SECOND).await;
    assert_eq!(ended(&world.ask(1).await), "UpstreamCredits");
    assert_eq!((world.opened(), ended(&world.ask(0).await).as_str()), (calls, "hit_memory"));
    *world.upstream.credits.lock().unwrap() = Some(2);
    tokio::time::sleep(11 * SECOND).await;
    assert_eq!(ended(&world.ask(1).await), "UpstreamCredits", "not enough for one");
    *world.upstream.credits.lock().unwrap() = Some(3);
    for tried in 1..4 {
        tokio::time::sleep(11 * SECOND).await;
        assert!(!world.filler.upstream_is_called(), "the balance alone proves nothing");
        assert!(world.ask_many(1..20).await.iter().all(|end| end == "UpstreamCredits"));
        assert_eq!(world.opened(), calls + tried, "one real request finds out");
    }
    world.heal();
    tokio::time::sleep(11 * SECOND).await;
    assert_eq!(ended(&world.ask(1).await), "miss");
    assert!(world.filler.upstream_is_called());
    let asked = world.upstream.switch.count("credits_left");
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(world.upstream.switch.count("credits_left"), asked, "it is not asked any more");
}

#[tokio::test(start_paused = true)]
async fn without_credits_and_without_a_balance_one_real_request_finds_out() {
    let world = World::new();
    world.upstream.reply(no_credits);
    assert_eq!(ended(&world.ask(1).await), "UpstreamCredits");
    for calls in 2..5 {
        tokio::time::sleep(61 * SECOND).await;
        assert!(world.ask_many(1..20).await.iter().all(|end| end == "UpstreamCredits"));
        assert_eq!(world.opened(), calls);
    }
    world.heal();
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(ended(&world.ask(1).await), "miss");
    assert_eq!(world.ask_many(1..4).await, ["hit_memory", "miss", "miss"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_called_with_again_when_it_changes() {
    let world = World::new();
    world.upstream.reply(key_refused);
    assert!(world.ask_many(1..40).await.iter().all(|end| end == "UpstreamKeyRefused"));
    assert!(world.opened() <= 4);
    let calls = world.opened();
    assert_eq!(ended(&world.ask(1).await), "UpstreamKeyRefused");
    assert_eq!(world.opened(), calls);
    world.heal();
    world.filler.key_changed();
    assert_eq!(ended(&world.ask(1).await), "miss");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_left_alone_and_one_real_request_ends_it() {
    let world = World::new();
    world.ask(0).await.unwrap();
    world.upstream.switch.fail(&["open"]);
    assert_eq!(ended(&world.ask(1).await), "UpstreamUnreachable");
    assert_eq!(ended(&world.ask(2).await), "UpstreamUnreachable");
    assert_eq!(world.opened(), 1 + 5, "the fifth failure in a row is the last");
    assert!(world.ask_many(1..40).await.iter().all(|end| end == "CircuitOpen"));
    assert_eq!((world.opened(), world.ledger.states().len()), (6, 3), "nothing was reserved");
    assert_eq!(ended(&world.ask(0).await), "hit_memory");
    tokio::time::sleep(10 * SECOND).await;
    let ends = world.ask_many(1..40).await;
    assert_eq!(ends.iter().filter(|end| *end == "UpstreamUnreachable").count(), 1, "{ends:?}");
    assert_eq!(world.opened(), 7, "one real request, once");
    tokio::time::sleep(10 * SECOND).await;
    world.heal();
    assert_eq!(ended(&world.ask(1).await), "miss");
    assert!(world.ask_many(2..40).await.iter().all(|end| end == "miss"));
}

#[tokio::test(start_paused = true)]
async fn fills_that_wait_for_a_turn_are_told_at_once_when_the_circuit_opens() {
    let world = World::with(1, &[]);
    world.upstream.reply(no_credits);
    world.upstream.hold();
    let asking: Vec<_> = (1..6).map(|tag| world.ask_meanwhile(tag)).collect();
    world.until_waiting(5).await;
    world.until_paid(1).await;
    world.upstream.release();
    for asking in asking {
        assert_eq!(ended(&asking.await.unwrap()), "UpstreamCredits");
    }
    assert_eq!((world.opened(), world.filler.slots().in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_may_not_pay_leaves_its_place_to_the_next() {
    let world = World::new();
    world.upstream.switch.fail(&["open"]);
    assert!(world.ask(1).await.is_err() && world.ask(2).await.is_err());
    tokio::time::sleep(10 * SECOND).await;
    world.heal();
    *world.ledger.permit.lock().unwrap() = Some(Permit::Frozen(Scope::Global));
    assert_eq!(ended(&world.ask(1).await), "Frozen");
    assert_eq!(ended(&world.ask(2).await), "Frozen", "it may try as well");
    *world.ledger.permit.lock().unwrap() = None;
    assert_eq!(ended(&world.ask(3).await), "miss");
}

#[tokio::test(start_paused = true)]
async fn three_results_that_cannot_be_had_stop_all_buying_until_one_is_stored() {
    let world = World::new();
    world.ask(0).await.unwrap();
    world.results.switch.fail(&["dead"]);
    for tag in 1..4 {
        assert_eq!(ended(&world.ask(tag).await), "ResultNotFetched");
        assert!(world.filler.upstream_is_called());
        world.settle().await;
    }
    assert_eq!(world.ledger.states()[1..], [CallState::Unfetchable; 3]);
    assert_eq!(world.upstream.paid(), 4);
    assert!(!world.filler.upstream_is_called());
    assert!(world.ask_many(4..20).await.iter().all(|end| end == "PurchaseStopped"));
    assert_eq!(ended(&world.ask(0).await), "hit_memory");
    // One real purchase finds out. When its result is not there in time the wait is longer, but it
    // is not the whole time for which that result is tried to be had.
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(ended(&world.ask(4).await), "ResultNotFetched");
    let Err(GatewayError::PurchaseStopped { wait }) = world.ask(5).await else { panic!("it is stopped") };
    assert!((110..=120).contains(&wait.as_secs()), "{wait:?}");
    assert_eq!(world.upstream.paid(), 5);
    world.heal();
    world.results.switch.fail(&["fetch"]);
    tokio::time::sleep(121 * SECOND).await;
    assert_eq!(
        ended(&world.ask(5).await),
        "ResultNotFetched",
        "the next probe, while both are fetched still"
    );
    assert_eq!((world.filler.load().0, world.upstream.paid()), (2, 6));
    // The probe's result comes late, and is as good.
    world.heal();
    world.settle().await;
    assert!(world.filler.upstream_is_called());
    assert!(world.ask_many(6..20).await.iter().all(|end| end == "miss"));
}

#[tokio::test(start_paused = true)]
async fn a_queued_fill_that_nobody_waits_for_leaves_the_queue_at_once() {
    let world = World::with(1, &[]);
    world.upstream.hold();
    let blocking = world.ask_meanwhile(1);
    world.until_paid(1).await;
    let queued = world.ask_meanwhile(2);
    world.until_waiting(2).await;
    while world.filler.slots().queued.is_empty() {
        tokio::task::yield_now().await;
    }
    queued.abort();
    while !world.filler.slots().queued.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.filler.load().0, 1, "its group is dissolved while the slot is taken still");
    world.upstream.release();
    assert_eq!(ended(&blocking.await.unwrap()), "miss");
    world.rest().await;
    assert_eq!((world.opened(), world.upstream.paid()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_is_tried_again_is_one_miss_to_its_teams_rate() {
    let team = Arc::new(Team { misses_per_second: Some(0.001), ..Team::local() });
    let world = World::with(4, std::slice::from_ref(&team));
    world.script([lost_before_the_tail as fn() -> _; 2]);
    assert_eq!(ended(&ask_as(&world.gateway, &caller_of(team.clone()), 1).await), "miss");
    assert_eq!(ended(&ask_as(&world.gateway, &caller_of(team), 2).await), "RateLimited");
}
