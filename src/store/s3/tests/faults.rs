//! Faults of a bucket: each ends in success or in an error that says that nothing is known, in time.

use std::time::Instant;

use super::*;

const QUICK: Duration = Duration::from_millis(400);

#[tokio::test]
async fn an_overwhelmed_bucket_is_asked_three_times() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 500);
    fixture.server.fail_next(2, Fault::SlowDown);
    store.put_object(name, bytes).await.unwrap();
    assert_eq!(fixture.server.count(Operation::Put), 3);

    fixture.server.fail_next(3, Fault::SlowDown);
    let Err(StoreError::Unavailable(text)) = store.object(name, u64::MAX).await else {
        panic!("it was overwhelmed")
    };
    assert!(text.contains("503 SlowDown"), "{text}");
    assert_eq!(fixture.server.count(Operation::Get), 3);
}

/// Waits, without asking the store for anything, until its breaker has closed.
async fn heals(store: &S3Store) {
    let begun = Instant::now();
    while store.bucket.is_open() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the probe does not find the bucket");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asserts that a call fails without being sent.
async fn fails_at_once(store: &S3Store, name: ObjectName) {
    assert!(store.bucket.is_open());
    let begun = Instant::now();
    for _ in 0..500 {
        assert!(is_away(store.object(name, u64::MAX).await) && is_away(store.check_room().await));
    }
    assert!(begun.elapsed() < QUICK, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_dead_bucket_costs_no_time_and_heals_without_traffic() {
    let mut fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 2, 500);
    store.put_object(name, bytes.clone()).await.unwrap();
    store.check_room().await.unwrap();
    fixture.server.go_down().await;
    for _ in 0..3 {
        assert!(is_away(store.object(name, u64::MAX).await));
    }
    fails_at_once(&store, name).await;
    fixture.server.come_back().await;
    heals(&store).await;
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes));
    store.check_room().await.unwrap();
}

#[tokio::test]
async fn the_first_timeout_of_a_silent_bucket_opens_the_breaker_also_for_a_caller_that_has_left() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 3, 500);
    for call in 0..4 {
        let store = fixture.hasty(QUICK).await;
        fixture.server.fail_always(Fault::Hang);
        let begun = Instant::now();
        let asked = async {
            match call {
                0 => is_away(store.object(name, u64::MAX).await),
                1 => is_away(store.put_object(name, bytes.clone()).await),
                _ => is_away(store.record("space", key(1)).await),
            }
        };
        if call == 3 {
            tokio::time::timeout(QUICK / 4, asked).await.unwrap_err();
            tokio::time::sleep(QUICK).await;
        } else {
            assert!(asked.await && begun.elapsed() >= QUICK, "{:?}", begun.elapsed());
        }
        fails_at_once(&store, name).await;
        fixture.server.heal();
        heals(&store).await;
        assert_eq!(store.object(name, u64::MAX).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up_in_time() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 4, 100_000);
    fixture.s3().await.put_object(name, bytes.clone()).await.unwrap();
    let store = fixture.hasty(2 * QUICK).await;
    fixture.server.fail_always_of(Operation::Get, Fault::StallBody);
    let begun = Instant::now();
    assert!(is_away(store.object(name, u64::MAX).await));
    assert!(
        begun.elapsed() >= 2 * QUICK && begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_without_a_turn_is_busy_and_records_have_turns_of_their_own() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 12, 100_000);
    let limits = S3Limits { object: 4 * QUICK, metadata: 4 * QUICK, ..fixture.config().limits };
    let config = S3StoreConfig { limits, ..fixture.config() };
    let store = Arc::new(S3Store::open(config).await);
    store.put_object(name, bytes.clone()).await.unwrap();
    let put = record("space", key(7), 0, "red");
    store.put_record(&put).await.unwrap();

    let (all, one) = (store.bucket.turns(Kind::Object, 8).await, store.bucket.turns(Kind::Object, 1));
    assert!(tokio::time::timeout(QUICK, one).await.is_err(), "all turns are taken");
    // Neither a lookup nor a record that is kept waits for those who read results.
    assert_eq!(store.record("space", key(7)).await.unwrap(), Some(put.clone()));
    assert_eq!(store.put_record(&put).await.unwrap(), put);
    assert!(store.has_object(name).await.unwrap());
    for _ in 0..3 {
        let read = store.object(name, u64::MAX).await;
        assert!(matches!(read, Err(StoreError::Busy(_))), "{read:?}");
    }
    drop(all);
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes), "the breaker is closed");

    // When even the turns of records are taken, nothing is said to be absent or away.
    let all = store.bucket.turns(Kind::Metadata, 64).await;
    for seed in [7, 8] {
        let looked = store.record("space", key(seed)).await;
        assert!(matches!(looked, Err(StoreError::Busy(_))), "{looked:?}");
    }
    drop(all);
    assert_eq!(store.record("space", key(8)).await.unwrap(), None);
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_read_again_and_half_of_it_is_never_returned() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 5, 100_000);
    store.put_object(name, bytes.clone()).await.unwrap();
    fixture.server.fail_next_of(Operation::Get, 1, Fault::CutBody);
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes));
    fixture.server.fail_always_of(Operation::Get, Fault::CutBody);
    assert!(is_away(store.object(name, u64::MAX).await));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_a_success() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 6, 500);
    fixture.server.fail_next_of(Operation::Put, 1, Fault::DropAnswer);
    store.put_object(name, bytes.clone()).await.unwrap();
    assert_eq!(fixture.server.count(Operation::Put), 2);

    for generation in 0..3 {
        let put = record("space", key(2), generation, "red");
        fixture.server.fail_next_of(Operation::Put, 1, Fault::DropAnswer);
        assert_eq!(store.put_record(&put).await.unwrap(), put);
        assert_eq!(store.record("space", key(2)).await.unwrap(), Some(put));
    }

    // Every answer of a call is lost: it is not known to be there, and then it is.
    let (name, bytes) = picture(ImageFormat::Jpeg, 7, 500);
    fixture.server.fail_next_of(Operation::Put, 3, Fault::DropAnswer);
    store.put_object(name, bytes.clone()).await.ok();
    store.put_object(name, bytes).await.unwrap();
    assert_eq!(fixture.server.names().len(), 3);
}

#[tokio::test]
async fn a_conflict_is_tried_again_five_times() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 8, 500);
    fixture.server.fail_next_of(Operation::Put, 5, Fault::Conflict);
    assert!(is_away(store.put_object(name, bytes.clone()).await));
    fixture.server.fail_next_of(Operation::Put, 4, Fault::Conflict);
    store.put_object(name, bytes).await.unwrap();
    assert_eq!(fixture.server.count(Operation::Put), 10);

    let put = record("space", key(3), 0, "red");
    fixture.server.fail_next_of(Operation::Put, 5, Fault::Conflict);
    assert!(is_away(store.put_record(&put).await));
    fixture.server.fail_next_of(Operation::Put, 4, Fault::Conflict);
    assert_eq!(store.put_record(&put).await.unwrap(), put);
}

#[tokio::test]
async fn a_replacement_of_what_is_gone_is_refused() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let headers = Headers { content_type: "text/plain", cache_control: "no-store" };
    let put = store.bucket.put(
        Kind::Metadata,
        "records/x",
        Bytes::from_static(b"x"),
        headers,
        Condition::Matches("\"tag\""),
    );
    assert_eq!(put.await.unwrap(), Written::Refused);
    assert_eq!(fixture.server.names().len(), 0);
}

#[tokio::test]
async fn forbidden_is_away_and_never_absent_and_heals_at_once() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 9, 500);
    for fault in [Fault::Forbidden, Fault::NotFoundPage] {
        fixture.server.fail_always(fault);
        for _ in 0..5 {
            assert!(is_away(store.object(name, u64::MAX).await), "{fault:?}");
            assert!(is_away(store.has_object(name).await), "{fault:?}");
            assert!(is_away(store.record("space", key(4)).await), "{fault:?}");
            assert!(is_away(store.put_object(name, bytes.clone()).await), "{fault:?}");
            assert!(is_away(store.check_room().await), "{fault:?}");
        }
        fixture.server.heal();
        assert_eq!(store.object(name, u64::MAX).await.unwrap(), None);
    }
    store.check_room().await.unwrap();
}

#[tokio::test]
async fn a_missing_bucket_is_away_and_nothing_in_it_absent() {
    let fixture = S3Fixture::start().await;
    let store = S3Store::open(S3StoreConfig { bucket: "another".to_owned(), ..fixture.config() }).await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 10, 500);
    let Err(StoreError::Unavailable(text)) = store.object(name, u64::MAX).await else {
        panic!("there is no bucket")
    };
    assert!(text.contains("NoSuchBucket; make the bucket, or correct store.bucket"), "{text}");
    assert!(is_away(store.has_object(name).await));
    assert!(is_away(store.record("space", key(5)).await));
    assert!(is_away(store.put_object(name, bytes).await));
    assert!(is_away(store.prove().await));
}

#[tokio::test]
async fn a_server_that_cannot_do_tls_is_away() {
    let fixture = S3Fixture::start().await;
    let endpoint = Some(fixture.server.endpoint().replace("http://", "https://"));
    let store = S3Store::open(S3StoreConfig { endpoint, ..fixture.config() }).await;
    let Err(StoreError::Unavailable(text)) = store.record("space", key(6)).await else {
        panic!("without TLS?")
    };
    assert!(text.contains("the connection failed: "), "{text}");
}

#[tokio::test]
async fn a_full_bucket_has_no_room_until_a_write_succeeds() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 11, 500);
    store.check_room().await.unwrap();
    fixture.server.fail_always_of(Operation::Put, Fault::Full);
    for _ in 0..5 {
        assert!(matches!(store.put_object(name, bytes.clone()).await, Err(StoreError::Full(_))));
    }
    assert!(matches!(store.check_room().await, Err(StoreError::Full(_))));
    // What is there can still be read.
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), None);
    fixture.server.heal();
    store.put_object(name, bytes).await.unwrap();
    store.check_room().await.unwrap();
}
