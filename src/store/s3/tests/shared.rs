//! One bucket, several processes: whoever is first wins, and all agree on who that was.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clients_that_create_a_record_one_wins_and_both_get_it() {
    let fixture = S3Fixture::start().await;
    let clients = [Arc::new(fixture.s3().await), Arc::new(fixture.s3().await)];
    for round in 0..20 {
        let mut puts = tokio::task::JoinSet::new();
        for (at, client) in clients.iter().enumerate() {
            let client = Arc::clone(client);
            let put = record("space", key(round), 0, &format!("team {at}"));
            puts.spawn(async move { client.put_record(&put).await.unwrap() });
        }
        let got = puts.join_all().await;
        assert_eq!(got[0], got[1]);
        let kept = fixture.server.object(&Record::path("space", key(round))).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&kept.bytes).unwrap(), got[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_of_several_clients_end_with_the_highest() {
    let fixture = S3Fixture::start().await;
    let mut puts = tokio::task::JoinSet::new();
    for generation in 0..4 {
        let client = fixture.s3().await;
        puts.spawn(async move {
            let put = record("space", key(1), generation, "red");
            assert!(client.put_record(&put).await.unwrap().generation >= generation);
        });
    }
    puts.join_all().await;
    assert_eq!(fixture.s3().await.record("space", key(1)).await.unwrap().unwrap().generation, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_create_one_object_all_succeed_and_write_it_once() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 20_000);
    let mut puts = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (client, bytes) = (fixture.s3().await, bytes.clone());
        puts.spawn(async move { client.put_object(name, bytes).await.unwrap() });
    }
    puts.join_all().await;
    let tag = fixture.server.object(&name.path()).unwrap().tag;
    fixture.s3().await.put_object(name, bytes).await.unwrap();
    assert_eq!(fixture.server.object(&name.path()).unwrap().tag, tag);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_another_client_has_replaced_meanwhile_is_not_forgotten() {
    let fixture = S3Fixture::start().await;
    let (one, other) = (fixture.s3().await, fixture.s3().await);
    for round in 0..30 {
        one.put_record(&record("space", key(round), 0, "old")).await.unwrap();
        let new = record("space", key(round), 1, "new");
        let (forgotten, put) =
            tokio::join!(one.forget_record("space", key(round), 0), other.put_record(&new));
        forgotten.unwrap();
        assert_eq!(put.unwrap(), new);
        assert_eq!(other.record("space", key(round)).await.unwrap(), Some(new), "round {round}");
    }
}

#[tokio::test]
async fn a_bucket_that_lets_nothing_be_deleted_says_so() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    store.put_record(&record("space", key(1), 0, "red")).await.unwrap();
    fixture.server.fail_always_of(Operation::Delete, Fault::Forbidden);
    let error = store.forget_record("space", key(1), 0).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unfit(_)) && error.to_string().contains("s3:DeleteObject"),
        "{error}"
    );
    assert!(store.record("space", key(1)).await.unwrap().is_some());
}
