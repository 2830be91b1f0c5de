//! Fills that go on after their callers were told: what they keep, how many there may be, and what
//! they leave to others.

use super::*;
use crate::base::picture::ImageFormat;
use crate::fill::{FillRequest, Waiter};
use crate::request::Order;
use crate::store::StoreBudget;

impl World {
    /// Asks for a crop without a gateway; the test keeps an eye on the picture.
    fn join(
        &self,
        number: u32,
    ) -> (std::sync::Weak<Order>, crate::fill::coalesce::Ticket<crate::fill::FillOutcome>) {
        let image = Bytes::from(format!("picture {number}"));
        let key = CacheKey::of(&image, 400, 300);
        let digest = Digest::of(&image);
        let order = Arc::new(Order {
            operation: &IMAGE_CROPPING,
            image: image.into(),
            format: ImageFormat::Png,
            width: 400,
            height: 300,
        });
        let eye = Arc::downgrade(&order);
        let waiter = Waiter { team: Arc::new(Team::local()), deadline: Instant::now() + PATIENCE };
        let budget = StoreBudget::default();
        let wanted =
            FillRequest { order, identity: identity(key), credits: 3, image: digest, refresh: false, budget };
        (eye, self.filler.join(wanted, waiter))
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_fetches_in_the_background_keeps_no_picture() {
    let world = World::new();
    world.results.switch.fail(&["fetch"]);
    let (picture, ticket) = world.join(1);
    let told = ticket.outcome().await.unwrap().verdict;
    assert!(matches!(told, Err(GatewayError::ResultNotFetched { .. })), "{told:?}");
    assert_eq!(world.filler.load().0, 1, "it goes on");
    assert_eq!(picture.strong_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_panics_answers_its_callers() {
    let world = World::new();
    world.upstream.reply(|| panic!("planted"));
    let outcome = world.join(1).1.outcome().await.unwrap();
    assert!(matches!(outcome.verdict, Err(GatewayError::Bug)), "{outcome:?}");
    assert_eq!(world.filler.load().0, 0, "its group has ended");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_bought_while_256_results_are_still_to_be_fetched() {
    let world = World::with(16, &[]);
    world.results.switch.fail(&["fetch"]);
    for number in 0..256 {
        let told = world.join(number).1.outcome().await.unwrap().verdict;
        assert!(matches!(told, Err(GatewayError::ResultNotFetched { .. })), "{number}: {told:?}");
    }
    let refused = world.join(256).1.outcome().await.unwrap().verdict;
    assert!(matches!(refused, Err(GatewayError::NoRoom)), "{refused:?}");
    assert_eq!((world.upstream.paid(), world.ledger.states().len()), (256, 256), "nothing was reserved");
    world.results.switch.fail(&[]);
    world.rest().await;
    assert!(world.join(256).1.outcome().await.unwrap().verdict.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ended_is_told_and_leaves_its_turn_although_the_ledger_cannot_book_it() {
    // Its books are closed, but the ledger reserves: others must not wait for that.
    let world = World::with(1, &[]);
    world.ledger.switch.fail(&["book", "mark_sent"]);
    let asked = Instant::now();
    assert_eq!(ended(&world.ask(1).await), "LedgerUnavailable");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!((world.filler.load().0, world.filler.slots().in_flight), (1, 0), "it goes on without a turn");
    world.ledger.switch.fail(&["book"]);
    world.upstream.reply(|| refusal(RefusalKind::Flow { retry_after: Some(Duration::from_secs(7)) }, 429));
    assert_eq!(ended(&world.ask(2).await), "UpstreamThrottled");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    world.ledger.switch.fail(&[]);
    world.rest().await;
    assert_eq!(world.ledger.states(), [CallState::Released, CallState::Refused]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_booked_leaves_its_place_to_the_next() {
    let world = World::new();
    world.upstream.switch.fail(&["open"]);
    assert!(world.ask(1).await.is_err() && world.ask(2).await.is_err());
    assert!(!world.filler.upstream_is_called());
    world.upstream.switch.fail(&[]);
    tokio::time::sleep(Duration::from_secs(11)).await;
    world.ledger.switch.fail(&["book", "mark_sent"]);
    assert_eq!(ended(&world.ask(3).await), "LedgerUnavailable");
    assert_eq!(ended(&world.ask(4).await), "LedgerUnavailable", "and not that the circuit is open");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_is_won_after_all_callers_have_gone_buys_nothing() {
    let world = World::new();
    world.ledger.hold_reservations();
    let asking = world.ask_meanwhile(1);
    while world.ledger.switch.count("reserve") == 0 {
        tokio::task::yield_now().await;
    }
    asking.abort();
    assert!(asking.await.is_err_and(|error| error.is_cancelled()));
    world.ledger.release_reservations();
    world.rest().await;
    while world.ledger.states() != [CallState::Released] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((world.upstream.switch.count("open"), world.upstream.paid()), (0, 0));
    assert_eq!(ended(&world.ask(1).await), "miss", "whoever comes next starts anew");
}
