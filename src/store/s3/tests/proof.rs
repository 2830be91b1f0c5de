//! What a bucket is asked to prove, and whether it has room.

use super::*;

#[tokio::test]
async fn a_fit_bucket_is_proved_and_left_as_it_was() {
    let fixture = S3Fixture::start().await;
    fixture.s3().await.prove().await.unwrap();
    assert_eq!(fixture.server.names(), [""; 0]);
}

#[tokio::test]
async fn a_bucket_that_ignores_conditions_is_found_out_and_has_no_room() {
    for (if_none_match, if_match, named) in
        [(true, false, "If-None-Match"), (false, true, "If-Match"), (true, true, "If-None-Match")]
    {
        let fixture = S3Fixture::start().await;
        fixture.server.ignore_conditions(if_none_match, if_match);
        let store = fixture.s3().await;
        for found in [store.prove().await, store.check_room().await] {
            let Err(StoreError::Unfit(text)) = found else { panic!("{found:?}") };
            assert!(text.contains(&format!("ignores {named},")), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_prove_the_same_bucket_at_once() {
    let fixture = S3Fixture::start().await;
    let mut proofs = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let store = fixture.s3().await;
        proofs.spawn(async move { store.prove().await });
    }
    for proved in proofs.join_all().await {
        assert!(proved.is_ok(), "{proved:?}");
    }
}

#[tokio::test]
async fn an_archive_that_may_not_be_deleted_from_is_fit() {
    let fixture = S3Fixture::start().await;
    fixture.server.fail_always_of(Operation::Delete, Fault::Forbidden);
    for _ in 0..2 {
        fixture.s3().await.prove().await.unwrap();
        assert_eq!(fixture.server.names(), ["trial"]);
    }
}

#[tokio::test]
async fn room_is_proved_once_and_then_believed_for_a_while() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    store.check_room().await.unwrap();
    let asked = fixture.server.requests();
    for _ in 0..100 {
        store.check_room().await.unwrap();
    }
    // A slow machine may need longer than the belief holds.
    assert!(fixture.server.requests() - asked <= 20, "{}", fixture.server.requests() - asked);
}

#[tokio::test]
async fn whoever_asks_for_room_at_the_same_time_shares_one_failure() {
    let fixture = S3Fixture::start().await;
    let store = Arc::new(fixture.s3().await);
    fixture.server.fail_always(Fault::Forbidden);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = Arc::clone(&store);
        asking.spawn(async move { store.check_room().await });
    }
    assert!(asking.join_all().await.into_iter().all(is_away));
    assert_eq!(fixture.server.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_proves_room_for_five_seconds_and_fullness_for_thirty() {
    let room = super::super::proof::Room::default();
    let believed = |after: u64| {
        let room = &room;
        async move {
            tokio::time::advance(Duration::from_secs(after)).await;
            room.believed().map(|written| written.is_ok())
        }
    };
    assert_eq!(believed(0).await, None);
    room.learn(&Ok(()));
    assert_eq!((believed(4).await, believed(1).await), (Some(true), None));
    room.learn(&Err(StoreError::Full("full".into())));
    assert_eq!((believed(29).await, believed(1).await), (Some(false), None));
    room.learn(&Ok(()));
    room.learn(&Err(StoreError::Unavailable("an outage is the breaker's matter".into())));
    assert_eq!(believed(0).await, Some(true));
}
