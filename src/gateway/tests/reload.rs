//! What another policy means for those who are already waiting.

use tokio::task::JoinHandle;

use super::*;
use crate::teams::Teams;
use crate::teams::policy::PolicyConfig;

/// Asks in the background, for a team of [`terms`].
fn ask_for(world: &World, team: &str, tag: u8) -> JoinHandle<Result<CropReply, GatewayError>> {
    let caller = caller_of(Arc::new(Team { name: team.to_owned(), ..Team::local() }));
    let gateway = world.gateway.clone();
    tokio::spawn(async move { ask_as(&gateway, &caller, tag).await })
}

#[tokio::test]
async fn a_team_that_is_taken_away_while_it_waits_pays_nothing_any_more() {
    for (disabled, status) in [(false, 401), (true, 403)] {
        let world = World::with(1, &[]);
        world.upstream.hold();
        let under_way = ask_for(&world, "other", 1);
        world.until_paid(1).await;
        // Two wait for their turn: one of them for what a team that stays wants too.
        let alone = ask_for(&world, "other", 2);
        world.until_waiting(2).await;
        let first = ask_for(&world, "other", 3);
        world.until_waiting(3).await;
        let second = ask_for(&world, "local", 3);
        world.until_waiting(4).await;
        let other = Team { name: "other".to_owned(), disabled, ..Team::local() };
        let given = [Team::local(), other].into_iter().filter(|team| disabled || team.name == "local");
        world
            .policy
            .replace(PolicyConfig { teams: Teams::new(given.map(|team| (team, Vec::new()))), ..terms(&[]) });
        world.upstream.release();
        let bought = under_way.await.unwrap().unwrap();
        assert_eq!(
            (bought.status, bought.charged),
            (CacheStatus::Miss, CREDITS),
            "what was admitted goes on"
        );
        for refused in [alone, first] {
            let error = refused.await.unwrap().err().expect("it may not pay");
            assert_eq!(error.response().status.as_u16(), status, "{error:?}");
        }
        let reply = second.await.unwrap().unwrap();
        assert_eq!((reply.charged, reply.record.team.as_str()), (CREDITS, "local"));
        world.rest().await;
        assert_eq!(world.upstream.paid(), 2);
    }
}

#[tokio::test]
async fn a_budget_that_is_changed_while_a_miss_waits_is_the_one_it_must_fit_into() {
    let world = World::with(1, &[]);
    world.upstream.hold();
    let under_way = ask_for(&world, "local", 1);
    world.until_paid(1).await;
    let waits = ask_for(&world, "other", 2);
    world.until_waiting(2).await;
    let other = Team { name: "other".to_owned(), daily_credits: Some(CREDITS - 1), ..Team::local() };
    world.policy.replace(terms(&[Arc::new(other)]));
    world.upstream.release();
    assert!(under_way.await.unwrap().is_ok());
    let error = waits.await.unwrap().err().expect("it does not fit");
    assert_eq!(error.response().reason, Some("team_daily"));
    let global = PolicyConfig { daily_credits: Some(CREDITS), ..terms(&[]) };
    world.policy.replace(global);
    let error = ask_for(&world, "other", 3).await.unwrap().err().expect("neither does this");
    assert_eq!(error.response().reason, Some("global_daily"));
    world.policy.replace(terms(&[]));
    assert!(ask_for(&world, "other", 3).await.unwrap().is_ok(), "raised again");
}

#[tokio::test]
async fn a_refresh_that_was_forbidden_while_it_waits_is_not_bought() {
    let world = World::with(1, &[]);
    world.ask(1).await.unwrap();
    world.upstream.hold();
    let under_way = ask_for(&world, "local", 2);
    world.until_paid(2).await;
    let refresh = Caller { refresh: true, ..caller() };
    let gateway = world.gateway.clone();
    let waits = tokio::spawn(async move { ask_as(&gateway, &refresh, 1).await });
    world.until_waiting(2).await;
    world.policy.replace(terms(&[Arc::new(Team { may_refresh: false, ..Team::local() })]));
    world.upstream.release();
    assert!(under_way.await.unwrap().is_ok());
    assert!(matches!(waits.await.unwrap().err(), Some(GatewayError::RefreshNotAllowed)));
    assert_eq!(world.upstream.paid(), 2);
}
