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
    let Err(StoreError::Unavailable(text)) = store.object(name).await else { panic!("it was overwhelmed") };
    assert!(text.contains("503 SlowDown"), "{text}");
    assert_eq!(fixture.server.count(Operation::Get), 3);
}

#[tokio::test]
async fn a_dead_bucket_costs_no_time_and_is_used_again_when_it_is_back() {
    let mut fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 2, 500);
    store.put_object(name, bytes.clone()).await.unwrap();
    store.check_room().await.unwrap();
    fixture.server.go_down().await;
    for _ in 0..3 {
        assert!(is_away(store.object(name).await));
    }
    // Nothing is sent any more: who comes back now is not noticed.
    fixture.server.come_back().await;
    let (seen, begun) = (fixture.server.requests(), Instant::now());
    for _ in 0..1000 {
        assert!(is_away(store.object(name).await) && is_away(store.check_room().await));
        if store.bucket.left_alone_for().is_none() {
            break;
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(fixture.server.requests(), seen);

    while let Some(wait) = store.bucket.left_alone_for() {
        tokio::time::sleep(wait).await;
    }
    assert_eq!(store.object(name).await.unwrap(), Some(bytes));
    store.check_room().await.unwrap();
}

#[tokio::test]
async fn a_bucket_that_never_answers_is_given_up_in_time() {
    let fixture = S3Fixture::start().await;
    fixture.server.fail_always(Fault::Hang);
    let (name, bytes) = picture(ImageFormat::Jpeg, 3, 500);
    for call in 0..3 {
        let store = fixture.hasty(QUICK, 3 * QUICK).await;
        let begun = Instant::now();
        let away = match call {
            0 => is_away(store.object(name).await),
            1 => is_away(store.put_object(name, bytes.clone()).await),
            _ => is_away(store.record("space", key(1)).await),
        };
        let took = begun.elapsed();
        assert!(away && took >= 2 * QUICK && took < 3 * QUICK + Duration::from_secs(5), "{took:?}");
    }
    // Each attempt had its own limit, and was followed by another.
    assert!(fixture.server.requests() >= 6, "{}", fixture.server.requests());
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up_in_time() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 4, 100_000);
    fixture.s3().await.put_object(name, bytes.clone()).await.unwrap();
    let store = fixture.hasty(20 * QUICK, 2 * QUICK).await;
    fixture.server.fail_always_of(Operation::Get, Fault::StallBody);
    let begun = Instant::now();
    assert!(is_away(store.object(name).await));
    assert!(
        begun.elapsed() >= 2 * QUICK && begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_read_again_and_half_of_it_is_never_returned() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 5, 100_000);
    store.put_object(name, bytes.clone()).await.unwrap();
    fixture.server.fail_next_of(Operation::Get, 1, Fault::CutBody);
    assert_eq!(store.object(name).await.unwrap(), Some(bytes));
    fixture.server.fail_always_of(Operation::Get, Fault::CutBody);
    assert!(is_away(store.object(name).await));
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
    let put = store.bucket.put("records/x", Bytes::from_static(b"x"), headers, Condition::Matches("\"tag\""));
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
            assert!(is_away(store.object(name).await), "{fault:?}");
            assert!(is_away(store.has_object(name).await), "{fault:?}");
            assert!(is_away(store.record("space", key(4)).await), "{fault:?}");
            assert!(is_away(store.put_object(name, bytes.clone()).await), "{fault:?}");
            assert!(is_away(store.check_room().await), "{fault:?}");
        }
        fixture.server.heal();
        assert_eq!(store.object(name).await.unwrap(), None);
    }
    store.check_room().await.unwrap();
}

#[tokio::test]
async fn a_missing_bucket_is_away_and_nothing_in_it_absent() {
    let fixture = S3Fixture::start().await;
    let store = S3Store::open(S3StoreConfig { bucket: "another".to_owned(), ..fixture.config() }).await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 10, 500);
    let Err(StoreError::Unavailable(text)) = store.object(name).await else { panic!("there is no bucket") };
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
    assert_eq!(store.object(name).await.unwrap(), None);
    fixture.server.heal();
    store.put_object(name, bytes).await.unwrap();
    store.check_room().await.unwrap();
}
