//! The gateway and its filler between fakes: where an answer may come from when parts are away,
//! and that nothing is bought that need not be.

mod address;
mod fakes;
mod faults;
mod purge;
mod reload;
mod unsettled;
mod waits;

use std::time::Duration;

use granary_kit::form::Form;
use http::{HeaderMap, StatusCode};

use self::fakes::*;
use super::*;
use crate::base::key::{CacheKey, Digest};
use crate::base::operation::IMAGE_CROPPING;
use crate::base::secret::Secret;
use crate::ledger::budget::{Scope, Window};
use crate::ledger::{Booking, CallState, Permit, Recovery, Reservation, Reserved};
use crate::request::RequestLimits;
use crate::request::body::{ClientBody, Pace};
use crate::store::Store;
use crate::teams::BudgetMode;
use crate::upstream::{ErrorReply, Refusal, RefusalKind, Reply, UnknownCause};

const PATIENCE: Duration = Duration::from_secs(28);

fn caller() -> Caller {
    caller_of(Arc::new(Team::local()))
}

fn caller_of(team: Arc<Team>) -> Caller {
    Caller { team, refresh: false, only_if_cached: false, deadline: Instant::now() + PATIENCE }
}

fn refresher() -> Caller {
    Caller { refresh: true, ..caller() }
}

/// A picture whose header can be read; `tag` tells it from others.
fn picture(tag: u8) -> Vec<u8> {
    [&b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR\0\0\0\x20\0\0\0\x20\x08\x02\0\0\0"[..], &[tag]].concat()
}

fn key(tag: u8) -> CacheKey {
    CacheKey::of(&picture(tag), 400, 300)
}

fn identity(key: CacheKey) -> Identity {
    Identity::new(NAMESPACE, key)
}

fn offer() -> Offer {
    Offer { operation: &IMAGE_CROPPING, namespace: NAMESPACE.into(), credits: CREDITS }
}

async fn ask_as(gateway: &Gateway, caller: &Caller, tag: u8) -> Result<CropReply, GatewayError> {
    let form = Form::crop(picture(tag), 400, 300);
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, form.content_type().parse().unwrap());
    let head = request::check_head(&IMAGE_CROPPING, &headers, &RequestLimits::default()).unwrap();
    let body = ClientBody::new(http_body_util::Full::new(Bytes::from(form.into_bytes())), Pace::of_tests());
    gateway.handle(&offer(), caller, head, body, &mut RequestTiming::default()).await
}

impl World {
    async fn ask(&self, tag: u8) -> Result<CropReply, GatewayError> {
        ask_as(&self.gateway, &caller(), tag).await
    }

    /// Asks in the background.
    fn ask_meanwhile(&self, tag: u8) -> tokio::task::JoinHandle<Result<CropReply, GatewayError>> {
        let gateway = self.gateway.clone();
        tokio::spawn(async move { ask_as(&gateway, &caller(), tag).await })
    }
}

fn text(reply: &CropReply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

/// How a request ended: its cache status, or the name of its error.
fn ended(outcome: &Result<CropReply, GatewayError>) -> String {
    match outcome {
        Ok(reply) => reply.status.as_str().to_owned(),
        Err(error) => format!("{error:?}").chars().take_while(char::is_ascii_alphanumeric).collect(),
    }
}

#[tokio::test]
async fn a_crop_is_bought_once_and_found_in_memory_ledger_and_store() {
    let world = World::new();
    let bought = world.ask(1).await.unwrap();
    assert_eq!((bought.status, bought.charged, bought.saved), (CacheStatus::Miss, CREDITS, 0));
    assert_eq!(bought.record.key, key(1));
    let name = ObjectName::of(&result_bytes(1)).unwrap();
    assert!(text(&bought).contains(&format!("\"url\":\"https://granary.example/{}\"", name.path())));
    assert_eq!(world.gateway.result(name, &Party::new("client")).await.unwrap(), result_bytes(1));

    let after_restart = world.restarted();
    let elsewhere = world.with_a_fresh_ledger();
    for (world, status) in [
        (&world, CacheStatus::HitMemory),
        (&after_restart, CacheStatus::HitLedger),
        (&after_restart, CacheStatus::HitMemory),
        (&elsewhere, CacheStatus::HitStore),
    ] {
        let hit = world.ask(1).await.unwrap();
        assert_eq!((hit.status, hit.charged, hit.saved), (status, 0, CREDITS));
        assert_eq!((hit.body, hit.record), (bought.body.clone(), bought.record.clone()));
    }
    // What only the store knew, the ledger knows from then on.
    assert_eq!(ended(&elsewhere.restarted().ask(1).await), "hit_ledger");
    assert_eq!(world.upstream.paid(), 1);
}

#[tokio::test]
async fn hits_need_nothing_but_memory() {
    let world = World::new();
    world.ask(1).await.unwrap();
    world.ledger.switch.fail(&["all"]);
    world.store.switch.fail(&["all"]);
    world.upstream.switch.fail(&["all"]);
    world.results.switch.fail(&["all"]);
    assert_eq!(ended(&world.ask(1).await), "hit_memory");
    assert_eq!(
        world
            .gateway
            .look_up_key(&Team::local(), &identity(key(1)), &mut RequestTiming::default())
            .await
            .unwrap()
            .status,
        CacheStatus::HitMemory
    );
    let refused = world.ask(2).await;
    assert_eq!(ended(&refused), "LedgerUnavailable");
}

/// What stands in a tier.
#[derive(Clone, Copy, Debug)]
enum Tier {
    Has,
    HasNot,
    Away,
}

#[tokio::test]
async fn only_what_is_known_to_be_absent_is_bought() {
    use Tier::{Away, Has, HasNot};
    for (ledger, store, expected) in [
        (Has, Has, "hit_ledger"),
        (Has, Away, "hit_ledger"),
        (HasNot, Has, "hit_store"),
        (HasNot, HasNot, "miss"),
        // Nothing new could be kept.
        (HasNot, Away, "NoRoom"),
        (Away, Has, "hit_store"),
        (Away, HasNot, "LedgerUnavailable"),
        (Away, Away, "LedgerUnavailable"),
    ] {
        let world = World::new();
        world.ask(1).await.unwrap();
        let world = match (ledger, store) {
            (Has | Away, Has | Away) => world.restarted(),
            (HasNot, Has) => world.with_a_fresh_ledger(),
            (Away, HasNot) => world.with_a_fresh_store(),
            (HasNot, HasNot | Away) => World::new(),
            (Has, HasNot) => unreachable!("a lost object has tests of its own"),
        };
        if matches!(ledger, Away) {
            world.ledger.switch.fail(&["all"]);
        }
        if matches!(store, Away) {
            world.store.switch.fail(&["all"]);
        }
        let bought_before = world.upstream.paid();
        let outcome = world.ask(1).await;
        assert_eq!(ended(&outcome), expected, "ledger {ledger:?}, store {store:?}");
        let bought = world.upstream.paid() - bought_before;
        assert_eq!(bought, usize::from(expected == "miss"), "ledger {ledger:?}, store {store:?}");
        // With the ledger away, it is not told either.
        let imported = usize::from(expected == "hit_store" && matches!(ledger, HasNot));
        assert_eq!(
            world.ledger.switch.count("import_record"),
            imported,
            "ledger {ledger:?}, store {store:?}"
        );
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_read_leaves_the_decision_to_the_ledger() {
    let world = World::new();
    world.store.switch.fail(&["record"]);
    assert_eq!(ended(&world.ask(1).await), "miss");
}

#[tokio::test]
async fn key_is_not_bought_while_store_is_away_and_its_records_are_not_imported() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let elsewhere = world.with_a_fresh_ledger();
    elsewhere.store.switch.fail(&["record"]);
    let bought = elsewhere.upstream.paid();
    for number in [1, 2] {
        assert_eq!(ended(&elsewhere.ask(number).await), "LedgerIncomplete");
        let looked_up = elsewhere
            .gateway
            .look_up_key(&Team::local(), &identity(key(number)), &mut RequestTiming::default())
            .await;
        assert!(matches!(looked_up, Err(GatewayError::LedgerIncomplete)), "and it is not said to be absent");
    }
    assert_eq!((elsewhere.upstream.paid(), elsewhere.ledger.states()), (bought, Vec::new()));
    // The store itself says what it has not.
    elsewhere.store.switch.fail(&[]);
    assert_eq!(ended(&elsewhere.ask(2).await), "miss");
}

#[tokio::test]
async fn key_is_not_bought_while_store_is_away_and_ledger_cannot_say_what_it_knows() {
    let world = World::new();
    world.store.switch.fail(&["record"]);
    world.ledger.switch.fail(&["absence"]);
    assert_eq!(ended(&world.ask(1).await), "LedgerUnavailable");
    assert_eq!(world.upstream.paid(), 0);
}

#[tokio::test]
async fn key_of_an_open_call_is_not_said_to_be_absent_while_store_is_away() {
    let world = World::new();
    world.upstream.hold();
    let first = world.ask_meanwhile(1);
    world.until_paid(1).await;
    world.store.switch.fail(&["record"]);
    let look_up = async |tag| {
        let found = world
            .gateway
            .look_up_key(&Team::local(), &identity(key(tag)), &mut RequestTiming::default())
            .await;
        ended(&found)
    };
    // Another replica that works on it may have stored its result without having booked it.
    assert_eq!((look_up(1).await.as_str(), look_up(2).await.as_str()), ("LedgerIncomplete", "KeyNotFound"));
    let frugal = Caller { only_if_cached: true, ..caller() };
    assert_eq!(ended(&ask_as(&world.gateway, &frugal, 1).await), "LedgerIncomplete");
    let second = world.ask_meanwhile(1);
    world.until_waiting(2).await;
    world.upstream.release();
    assert_eq!(ended(&first.await.unwrap()), "miss");
    assert_eq!(ended(&second.await.unwrap()), "coalesced", "a purchase joins the call");
}

#[tokio::test]
async fn a_key_whose_record_is_damaged_is_not_bought() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let elsewhere = world.with_a_fresh_ledger();
    elsewhere.store.switch.fail(&["damaged"]);
    let bought = elsewhere.upstream.paid();
    assert_eq!(ended(&elsewhere.ask(1).await), "StoreUnavailable");
    assert_eq!(elsewhere.upstream.paid(), bought);
    // The ledger's own knowledge is enough for a hit.
    let here = world.restarted();
    here.store.switch.fail(&["damaged"]);
    assert_eq!(ended(&here.ask(1).await), "hit_ledger");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_forbids_buying() {
    let world = World::new();
    world.ledger.switch.fail(&["look_up"]);
    assert_eq!(ended(&world.ask(1).await), "LedgerUnavailable");
    assert_eq!(world.upstream.switch.count("open"), 0);
}

#[tokio::test]
async fn a_record_that_turns_up_after_the_look_up_is_imported_and_not_bought() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let elsewhere = world.with_a_fresh_ledger();
    // It is not there yet for the first look-up; the second look, with the key in hand, finds it.
    elsewhere.store.switch.fail_once("absent");
    assert_eq!(ended(&elsewhere.ask(1).await), "hit_store");
    assert_eq!(elsewhere.ledger.states(), [CallState::Released, CallState::Stored]);
    assert_eq!(elsewhere.upstream.paid(), 1);
}

#[tokio::test]
async fn a_dead_record_that_turns_up_after_the_look_up_is_not_bought_over() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let elsewhere = world.with_a_fresh_ledger();
    elsewhere.store.lose_objects();
    elsewhere.store.switch.fail_once("absent");
    assert_eq!(ended(&elsewhere.ask(1).await), "StoreUnavailable");
    assert_eq!(elsewhere.upstream.paid(), 1);
    // The next look-up books the loss, so that the record can be replaced.
    let again = elsewhere.ask(1).await.unwrap();
    assert_eq!((again.status, again.record.digest), (CacheStatus::Miss, Digest::of(&result_bytes(2))));
}

#[tokio::test]
async fn a_record_that_turns_up_counts_as_a_result_while_its_object_cannot_be_looked_for() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let elsewhere = world.with_a_fresh_ledger();
    elsewhere.store.switch.fail_once("absent");
    elsewhere.store.switch.fail(&["has_object"]);
    assert_eq!(ended(&elsewhere.ask(1).await), "hit_store");
    assert_eq!(elsewhere.upstream.paid(), 1);
}

#[tokio::test]
async fn a_result_the_store_has_lost_is_bought_again_and_replaces_its_record() {
    for has_ledger in [true, false] {
        let before = World::new();
        before.ask(1).await.unwrap();
        let world = if has_ledger { before.restarted() } else { before.with_a_fresh_ledger() };
        world.store.lose_objects();
        let again = world.ask(1).await.unwrap();
        assert_eq!((again.status, again.record.generation), (CacheStatus::Miss, 1));
        assert_eq!(world.store.record(NAMESPACE, key(1)).await.unwrap().as_ref(), Some(&*again.record));
        assert!(world.ledger.states().ends_with(&[CallState::Lost, CallState::Stored]));
        let hit = world.restarted().ask(1).await.unwrap();
        assert_eq!((hit.status, hit.record), (CacheStatus::HitLedger, again.record));
    }
}

#[tokio::test]
async fn a_loss_that_cannot_be_booked_is_no_hit_and_no_purchase() {
    let before = World::new();
    before.ask(1).await.unwrap();
    let world = before.restarted();
    world.store.lose_objects();
    for failing in [&["lose"][..], &["all"]] {
        world.ledger.switch.fail(failing);
        assert_eq!(ended(&world.ask(1).await), "LedgerUnavailable", "{failing:?}");
    }
    assert_eq!(world.upstream.paid(), 1);
}

#[tokio::test]
async fn an_object_that_cannot_be_looked_for_counts_as_there() {
    let before = World::new();
    before.ask(1).await.unwrap();
    let world = before.restarted();
    world.store.lose_objects();
    world.store.switch.fail(&["has_object"]);
    assert_eq!(ended(&world.ask(1).await), "hit_ledger");
    assert_eq!(world.ledger.switch.count("lose"), 0);
}

#[tokio::test]
async fn a_look_up_by_key_and_a_request_for_the_cache_only_never_buy() {
    let world = World::new();
    assert!(matches!(
        world.gateway.look_up_key(&Team::local(), &identity(key(1)), &mut RequestTiming::default()).await,
        Err(GatewayError::KeyNotFound)
    ));
    let frugal = Caller { only_if_cached: true, ..caller() };
    assert_eq!(ended(&ask_as(&world.gateway, &frugal, 1).await), "NotCached");
    assert_eq!(world.upstream.switch.count("open"), 0);
    world.ask(1).await.unwrap();
    assert_eq!(ended(&ask_as(&world.gateway, &frugal, 1).await), "hit_memory");
}

#[tokio::test]
async fn a_result_is_served_missing_or_unreadable() {
    let world = World::new();
    let name = ObjectName::of(&result_bytes(1)).unwrap();
    assert!(matches!(
        world.gateway.result(name, &Party::new("client")).await,
        Err(GatewayError::ResultNotFound)
    ));
    world.store.switch.fail(&["object"]);
    assert!(matches!(
        world.gateway.result(name, &Party::new("client")).await,
        Err(GatewayError::StoreUnavailable)
    ));
    world.store.switch.fail(&[]);
    world.ask(1).await.unwrap();
    assert_eq!(world.gateway.result(name, &Party::new("client")).await.unwrap(), result_bytes(1));
}

#[tokio::test]
async fn a_refresh_buys_anew_for_teams_that_may() {
    let world = World::new();
    let first = world.ask(1).await.unwrap();
    let modest = Arc::new(Team { may_refresh: false, ..Team::local() });
    let refused = Caller { refresh: true, ..caller_of(modest) };
    assert_eq!(ended(&ask_as(&world.gateway, &refused, 1).await), "RefreshNotAllowed");
    let second = ask_as(&world.gateway, &refresher(), 1).await.unwrap();
    assert_eq!((second.status, second.charged), (CacheStatus::Refresh, CREDITS));
    assert_eq!((second.record.generation, second.record.digest), (1, Digest::of(&result_bytes(2))));
    for world in [&world, &world.restarted()] {
        assert_eq!(world.ask(1).await.unwrap().record, second.record);
    }
    let old = first.record.object().unwrap();
    assert_eq!(
        world.gateway.result(old, &Party::new("client")).await.unwrap(),
        result_bytes(1),
        "its URL serves on"
    );
}

fn refusal(kind: RefusalKind, status: u16) -> Reply {
    Reply::Refused(Refusal { kind, reply: error_reply(status) })
}

fn error_reply(status: u16) -> ErrorReply {
    let status = StatusCode::from_u16(status).unwrap();
    ErrorReply { status, body: Some(Bytes::from_static(b"{\"theirs\":1}")), code: "CODE".to_owned() }
}

#[tokio::test]
async fn a_refusal_of_the_order_is_remembered_whoever_asks() {
    for status in [400, 413, 415, 422] {
        let world = World::new();
        world.upstream.reply(move || refusal(RefusalKind::Order, status));
        let other_team = Arc::new(Team { name: "other".to_owned(), ..Team::local() });
        for asker in [caller(), caller(), caller_of(other_team), refresher()] {
            let Err(GatewayError::Upstream { status: seen, body, .. }) =
                ask_as(&world.gateway, &asker, 1).await
            else {
                panic!("{status} was not passed through")
            };
            assert_eq!((seen.as_u16(), &body[..]), (status, &b"{\"theirs\":1}"[..]));
        }
        assert_eq!(world.upstream.paid(), 1, "{status}");
        // Of this picture in this size only.
        assert!(world.ask(2).await.is_err());
        assert_eq!(world.upstream.paid(), 2, "{status}");
    }
}

#[tokio::test]
async fn no_other_failure_is_remembered() {
    type Make = fn() -> Reply;
    let replies: [(Make, &str); 3] = [
        (|| refusal(RefusalKind::Other, 404), "Upstream"),
        (|| refusal(RefusalKind::Flow { retry_after: None }, 503), "UpstreamThrottled"),
        (|| Reply::Failed(error_reply(500)), "Upstream"),
    ];
    for (reply, error) in replies {
        let world = World::new();
        world.upstream.reply(reply);
        for times in 1..=2 {
            assert_eq!(ended(&world.ask(1).await), error);
            assert_eq!(world.upstream.paid(), times, "{error}");
        }
        *world.upstream.reply.lock().unwrap() = None;
        assert_eq!(ended(&world.ask(1).await), "miss");
    }
}

#[tokio::test]
async fn after_an_unknown_outcome_the_key_rests_and_is_not_bought() {
    for (cause, error) in
        [(UnknownCause::Garbage, "UpstreamNonsense"), (UnknownCause::Cut, "UpstreamUnreachable")]
    {
        let world = World::new();
        world.upstream.reply(move || Reply::Unknown(cause));
        assert_eq!(ended(&world.ask(1).await), error);
        *world.upstream.reply.lock().unwrap() = None;
        assert_eq!((ended(&world.ask(1).await).as_str(), world.upstream.paid()), ("Resting", 1));
    }
}

#[tokio::test]
async fn callers_of_one_crop_share_it_and_one_of_them_pays() {
    let world = World::new();
    world.upstream.hold();
    let asking: Vec<_> = (0..5).map(|_| world.ask_meanwhile(1)).collect();
    world.until_waiting(5).await;
    world.upstream.release();
    let mut charged = 0;
    for asking in asking {
        let reply = asking.await.unwrap().unwrap();
        charged += reply.charged;
        let is_payer = reply.charged > 0;
        assert_eq!(reply.status, if is_payer { CacheStatus::Miss } else { CacheStatus::Coalesced });
        assert_eq!(reply.charged + reply.saved, CREDITS);
    }
    assert_eq!((charged, world.upstream.paid()), (CREDITS, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_time_is_over_is_answered_and_the_crop_is_made_all_the_same() {
    let world = World::new();
    world.upstream.hold();
    let asked = tokio::time::Instant::now();
    assert_eq!(ended(&world.ask(1).await), "StillBeingMade");
    // The paused clock lags behind the one deadlines are made with, by as long as the test has run.
    let waited = asked.elapsed();
    assert!(waited >= PATIENCE && waited < 2 * PATIENCE, "{waited:?}");
    assert_eq!(ended(&world.ask(1).await), "StillBeingMade", "whoever comes later joins");
    world.upstream.release();
    world.rest().await;
    assert_eq!(world.ledger.states(), [CallState::Stored]);
    assert_eq!((ended(&world.ask(1).await).as_str(), world.upstream.paid()), ("hit_memory", 1));
}

#[tokio::test]
async fn a_client_that_hangs_up_wastes_nothing() {
    let world = World::new();
    world.upstream.hold();
    let asking = world.ask_meanwhile(1);
    world.until_paid(1).await;
    asking.abort();
    assert!(asking.await.is_err());
    world.upstream.release();
    world.rest().await;
    assert_eq!((ended(&world.ask(1).await).as_str(), world.upstream.paid()), ("hit_memory", 1));
}

#[tokio::test]
async fn a_panic_in_a_fill_answers_all_its_callers_and_ends_it() {
    let world = World::with(1, &[]);
    world.upstream.hold();
    world.upstream.reply(|| panic!("planted"));
    let asking: Vec<_> = (0..3).map(|_| world.ask_meanwhile(1)).collect();
    world.until_waiting(3).await;
    world.upstream.release();
    for asking in asking {
        let outcome = asking.await.unwrap();
        assert_eq!(ended(&outcome), "Bug");
        assert_eq!(outcome.err().unwrap().response().status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(world.filler.load(), (0, 0, 0, 0), "group and slot are free");
    *world.upstream.reply.lock().unwrap() = None;
    assert_eq!(ended(&world.ask(2).await), "miss");
}

#[tokio::test]
async fn nothing_is_paid_for_that_the_ledger_did_not_take_down() {
    for (failing, expected, opened) in
        [("reserve", "LedgerUnavailable", 0), ("mark_sent", "LedgerUnavailable", 1)]
    {
        let world = World::new();
        world.ledger.switch.fail(&[failing]);
        assert_eq!(ended(&world.ask(1).await), expected);
        assert_eq!((world.upstream.switch.count("open"), world.upstream.paid()), (opened, 0));
        world.ledger.switch.fail(&[]);
        assert_eq!(ended(&world.ask(1).await), "miss", "after {failing}");
    }
    for (permit, expected) in [(Permit::Frozen(Scope::Global), "Frozen"), (Permit::Lost, "StillBeingMade")] {
        let world = World::new();
        *world.ledger.permit.lock().unwrap() = Some(permit);
        assert_eq!(ended(&world.ask(1).await), expected);
        assert_eq!(world.upstream.paid(), 0);
    }
    let world = World::new();
    world.store.switch.fail(&["check_room"]);
    assert_eq!(ended(&world.ask(1).await), "NoRoom");
    assert_eq!(world.ledger.switch.count("reserve"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_be_sent_is_hung_up_before_it_is_booked() {
    let world = World::new();
    *world.ledger.permit.lock().unwrap() = Some(Permit::Frozen(Scope::Global));
    world.ledger.switch.fail(&["book"]);
    let asking = world.ask_meanwhile(1);
    while world.ledger.switch.count("book") == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.upstream.held(), 0);
    world.ledger.switch.fail(&[]);
    assert_eq!(ended(&asking.await.unwrap()), "Frozen");
}

#[tokio::test(start_paused = true)]
async fn paid_result_is_kept_and_answered_while_ledger_is_away_and_booked_later() {
    let world = World::new();
    world.upstream.hold();
    let asking = world.ask_meanwhile(1);
    world.until_paid(1).await;
    world.ledger.switch.fail(&["book"]);
    world.upstream.release();
    assert_eq!(ended(&asking.await.unwrap()), "miss");
    assert_eq!((world.ledger.states(), world.filler.load().0), (vec![CallState::Sent], 1));
    assert_eq!(ended(&world.ask(1).await), "hit_memory");
    world.ledger.switch.fail(&[]);
    world.rest().await;
    assert_eq!(world.ledger.states(), [CallState::Stored]);
    let metrics = String::from_utf8(world.metrics.render()).unwrap();
    assert!(metrics.contains("granary_credits_spent_total{team=\"local\"} 3"), "counted once: {metrics}");
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_a_paid_result_that_is_nowhere_yet() {
    let world = World::new();
    world.upstream.hold();
    let asking = world.ask_meanwhile(1);
    world.until_paid(1).await;
    world.ledger.switch.fail(&["book"]);
    world.results.switch.fail(&["fetch"]);
    world.upstream.release();
    while world.results.switch.count("fetch") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.filler.drain();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.filler.load().0, 1, "the next process could not go on with it");
    world.results.switch.fail(&[]);
    world.filler.settled().await;
    assert_eq!(
        world.ledger.states(),
        [CallState::Sent],
        "its record is in the store, where the next process finds it"
    );
    drop(asking);
}

#[tokio::test(start_paused = true)]
async fn a_drain_refuses_what_is_queued_and_finishes_what_is_paid() {
    let world = World::with(1, &[]);
    world.upstream.hold();
    let paid = world.ask_meanwhile(1);
    world.until_paid(1).await;
    let queued = world.ask_meanwhile(2);
    world.until_waiting(2).await;
    world.filler.drain();
    assert_eq!(ended(&world.ask(3).await), "Draining");
    world.upstream.release();
    assert_eq!(ended(&paid.await.unwrap()), "miss");
    assert_eq!(ended(&queued.await.unwrap()), "Draining");
    world.filler.settled().await;
    assert_eq!(world.ledger.states(), [CallState::Stored]);
    assert_eq!(ended(&world.ask(1).await), "hit_memory");
    assert_eq!(world.upstream.paid(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_a_result_that_cannot_be_fetched_to_the_next_process() {
    let world = World::new();
    world.results.switch.fail(&["all"]);
    let asking = world.ask_meanwhile(1);
    while world.ledger.states() != [CallState::Answered] {
        tokio::task::yield_now().await;
    }
    world.filler.drain();
    world.filler.settled().await;
    assert_eq!(ended(&asking.await.unwrap()), "StillBeingMade");
    assert_eq!(world.ledger.states(), [CallState::Answered]);
}

/// What a start finds when a process died after it had booked these answers.
fn unfinished(world: &World, answers: &[(u8, &str)]) -> Recovery {
    let ledger = &world.ledger.ledger;
    for &(tag, text) in answers {
        let reserved = ledger.reserve(&Reservation {
            namespace: NAMESPACE.to_owned(),
            key: key(tag),
            refresh: false,
            team: "local".to_owned(),
            credits: CREDITS,
            budgets: Vec::new(),
            image: Digest::of(&picture(tag)),
            width: 400,
            height: 300,
        });
        let Reserved::Won(won) = reserved else { panic!("{reserved:?}") };
        assert_eq!(ledger.mark_sent(won.id), Permit::Granted);
        let ids = (format!("R{tag}"), format!("L{tag}"));
        let booking = Booking::Answered { text: Secret::new(text), request_id: ids.0, log_id: ids.1 };
        ledger.book_call(won.id, &booking).unwrap();
    }
    ledger.recover_calls().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_process_paid_for_is_fetched_and_kept_without_a_client() {
    let world = World::new();
    world.filler.resume(unfinished(&world, &[(1, &answer_text(1)), (2, "not an answer")]));
    world.rest().await;
    assert_eq!(world.ledger.states(), [CallState::Stored, CallState::Answered]);
    let hit = world.ask(1).await.unwrap();
    assert_eq!((hit.status, hit.record.digest), (CacheStatus::HitMemory, Digest::of(&result_bytes(1))));
    assert_eq!(world.upstream.switch.count("open"), 0);
}

#[tokio::test(start_paused = true)]
async fn two_results_a_dead_process_paid_for_under_one_key_are_both_kept() {
    let world = World::new();
    let mut recovery = unfinished(&world, &[(1, &answer_text(1)), (2, &answer_text(2))]);
    // The second one's answer had come late: by then the first held the key.
    recovery.unfinished[1].reservation = recovery.unfinished[0].reservation.clone();
    world.filler.resume(recovery);
    let reply = world.ask(1).await.unwrap();
    let both = async {
        while world.ledger.states() != [CallState::Stored, CallState::Stored] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("both are kept");
    for number in 1..=2 {
        let name = ObjectName::of(&result_bytes(number)).unwrap();
        assert_eq!(world.gateway.result(name, &Party::new("client")).await.unwrap(), result_bytes(number));
    }
    assert_eq!(world.ask(1).await.unwrap().record, reply.record, "one of them keeps the key");
    assert_eq!(world.upstream.switch.count("open"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_for_what_a_dead_process_paid_for_joins_it() {
    let world = World::new();
    world.results.switch.fail(&["all"]);
    world.filler.resume(unfinished(&world, &[(1, &answer_text(1))]));
    let asking = world.ask_meanwhile(1);
    world.until_waiting(1).await;
    world.results.switch.fail(&[]);
    let reply = asking.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.charged), (CacheStatus::Coalesced, 0));
    assert_eq!(world.upstream.switch.count("open"), 0);
}

#[tokio::test]
async fn the_tightest_enforced_budget_is_what_a_team_is_told() {
    let world = World::new();
    let team = Team { daily_credits: Some(30), monthly_credits: Some(20), ..Team::local() };
    let budgets = |team: &Team| world.policy.get().budgets(team);
    let tightest = world.gateway.tightest_budget(budgets(&team)).await.unwrap().unwrap();
    assert_eq!((tightest.left(), tightest.budget.window), (20, Window::Month));
    let shadow = Team { mode: BudgetMode::Shadow, ..team };
    assert_eq!(world.gateway.tightest_budget(budgets(&shadow)).await.unwrap().unwrap().left(), 1000);
    world.ledger.switch.fail(&["used"]);
    let away = world.gateway.tightest_budget(budgets(&shadow)).await;
    assert!(matches!(away, Err(GatewayError::LedgerUnavailable)));
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_answered_in_time_although_the_ledger_is_not() {
    let world = World::new();
    world.ask(1).await.unwrap();
    let restarted = world.restarted();
    world.ledger.switch.hang("look_up");
    let asked = Instant::now();
    assert_eq!(ended(&restarted.ask(2).await), "StillBeingMade");
    assert!(asked.elapsed() <= PATIENCE + Duration::from_millis(10), "{:?}", asked.elapsed());
    assert_eq!((ended(&world.ask(1).await).as_str(), world.upstream.paid()), ("hit_memory", 1));
}

fn paced(misses_per_second: f64) -> Arc<Team> {
    Arc::new(Team { misses_per_second: Some(misses_per_second), ..Team::local() })
}

#[tokio::test]
async fn a_team_that_is_a_little_fast_waits_for_its_turn() {
    let team = paced(20.0);
    let world = World::with(4, std::slice::from_ref(&team));
    let started = Instant::now();
    for tag in 1..=3 {
        let reply = ask_as(&world.gateway, &caller_of(team.clone()), tag).await;
        assert_eq!(ended(&reply), "miss");
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(100), "three crops at 20 a second in {took:?}");
    // Hits have no pace.
    assert_eq!(ended(&ask_as(&world.gateway, &caller_of(team), 1).await), "hit_memory");
}

#[tokio::test]
async fn a_team_that_is_too_fast_to_be_served_in_time_is_refused_with_the_wait() {
    let team = paced(0.01);
    let world = World::with(4, std::slice::from_ref(&team));
    assert_eq!(ended(&ask_as(&world.gateway, &caller_of(team.clone()), 1).await), "miss");
    let refused = ask_as(&world.gateway, &caller_of(team), 2).await;
    let Err(GatewayError::RateLimited { wait }) = refused else { panic!("{}", ended(&refused)) };
    assert!(wait > PATIENCE && wait <= Duration::from_secs(100), "{wait:?}");
    assert_eq!(ended(&world.ask(3).await), "RateLimited", "the limit is the team's");
    assert_eq!(world.upstream.paid(), 1);
}
