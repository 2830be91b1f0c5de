//! Fills that go on after their callers were told: what they keep, how many there may be, and what
//! they leave to others.

use super::*;
use crate::fill::{Seat, Wanted};
use crate::picture::ImageFormat;
use crate::upstream::Order;

impl World {
    /// Asks for a crop without a gateway; the test keeps an eye on the picture.
    fn join(
        &self,
        number: u32,
    ) -> (std::sync::Weak<Order>, crate::coalesce::Ticket<crate::fill::FillOutcome>) {
        let image = Bytes::from(format!("picture {number}"));
        let key = CacheKey::of(&image, 400, 300);
        let digest = Digest::of(&image);
        let order = Arc::new(Order { image, format: ImageFormat::Png, width: 400, height: 300 });
        let eye = Arc::downgrade(&order);
        let seat = Seat { team: Arc::new(Team::local()), deadline: Instant::now() + PATIENCE };
        let wanted = Wanted { order, key, image: digest, refresh: false };
        (eye, self.filler.join(wanted, seat))
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
