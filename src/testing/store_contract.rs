//! What every [`Store`] must do, as tests: one function for each clause, one list of them all.
//!
//! A store runs it by implementing [`StoreFixture`] for its surroundings and writing, in its tests,
//! `crate::testing::store_contract::store_contract!(MyFixture::new())`: a test with a fresh fixture for each.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::archive::ArchiveId;
use crate::base::key::{CacheKey, Digest};
use crate::base::picture::{ImageFormat, ObjectName};
use crate::base::record::MAX_GENERATION;
use crate::base::record::{MAX_CREDITS, MAX_OBJECT_BYTES, Record};
use crate::store::{Store, StoreError};

/// Where a store under test lives.
#[async_trait]
pub(crate) trait StoreFixture: Send + Sync {
    /// Opens the store as a new process would: empty the first time.
    async fn open(&self) -> Arc<dyn Store>;

    /// Puts other bytes at `results/…` or `records/…`, behind the store's back.
    async fn overwrite(&self, path: &str, bytes: &[u8]);
}

/// Makes a test of each clause.
macro_rules! store_contract {
    ($fixture:expr) => {
        $crate::testing::store_contract::store_contract! { $fixture;
            an_object_is_read_back_byte_for_byte
            an_object_may_be_put_again
            what_was_never_put_is_none
            concurrent_puts_of_one_object_all_succeed
            bytes_are_refused_under_a_name_not_theirs
            a_put_nobody_waits_for_leaves_no_half_object
            a_damaged_object_is_never_returned
            a_record_is_read_back_in_every_field
            the_first_record_of_a_generation_stands
            a_record_is_replaced_by_a_higher_generation_only
            concurrent_records_of_one_generation_have_one_winner
            concurrent_generations_end_with_the_highest
            records_of_other_keys_and_namespaces_do_not_mix
            records_are_listed_once_in_pages_of_any_size
            names_that_are_no_records_are_not_listed
            a_namespace_is_a_plain_word
            what_was_put_survives_reopening
            a_garbled_record_is_corrupt_and_not_absent
            a_record_that_is_not_about_its_name_is_corrupt
            a_forged_record_is_corrupt
            an_object_that_is_no_picture_is_corrupt
            a_healthy_store_has_room
            a_fit_store_proves_it_and_keeps_what_it_has
            a_store_is_marked_once
            a_garbled_marker_is_corrupt_and_not_absent
            a_forgotten_record_is_gone_and_its_object_stays
            a_record_of_a_higher_generation_is_not_forgotten
            what_is_absent_may_be_forgotten
            a_record_is_put_again_after_it_was_forgotten
            forgetting_and_putting_at_once_never_loses_the_higher_generation
            a_garbled_record_is_not_forgotten
        }
    };
    ($fixture:expr; $($clause:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                $crate::testing::store_contract::$clause(&$fixture).await;
            }
        )*
    };
}
pub(crate) use store_contract;

/// `len` bytes that are a picture by their first ones, and differ by `seed`.
pub(crate) fn picture(format: ImageFormat, seed: u8, len: usize) -> (ObjectName, Bytes) {
    let head: &[u8] = match format {
        ImageFormat::Jpeg => b"\xFF\xD8\xFF",
        ImageFormat::Png => b"\x89PNG\r\n\x1a\n",
        ImageFormat::Webp => b"RIFF\0\0\0\0WEBP",
        ImageFormat::Bmp => b"BM",
    };
    let body = (0..len).map(|at| (at % 251) as u8 ^ seed).skip(head.len());
    let bytes: Bytes = head.iter().copied().chain(body).collect();
    (ObjectName::of(&bytes).expect("a picture by its first bytes"), bytes)
}

/// A record of `generation`; `team` tells it from others of the same key and generation.
pub(crate) fn record(namespace: &str, key: CacheKey, generation: u64, team: &str) -> Record {
    let (name, bytes) = picture(ImageFormat::Jpeg, 7, 100);
    Record {
        version: Record::VERSION,
        namespace: namespace.to_owned(),
        key,
        generation,
        answer: format!(r#"{{"data":{{"url":"{}"}},"note":"é\u0000🖼 \\ \" "}}"#, name.path()),
        digest: name.digest,
        extension: name.format.extension().to_owned(),
        bytes: bytes.len() as u64,
        team: team.to_owned(),
        credits: MAX_CREDITS,
        stored_at: "2026-01-02T03:04:05.678901234Z".parse().expect("a timestamp"),
        upstream_request_id: "7C2C5B55-1E1B-4B5C-A6BD-5F5B4D2F0A11".to_owned(),
        upstream_log_id: String::new(),
        image: Digest::of(b"upload"),
        width: 65_535,
        height: 1,
    }
}

fn key(seed: u32) -> CacheKey {
    CacheKey::of(b"contract", seed, 1)
}

pub(crate) async fn an_object_is_read_back_byte_for_byte(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    for (format, len) in ImageFormat::ALL.into_iter().zip([3, 64, 200_001, (8 << 20) + 1]) {
        let (name, bytes) = picture(format, 1, len);
        store.put_object(name, bytes.clone()).await.unwrap();
        assert!(store.object(name, u64::MAX).await.unwrap() == Some(bytes), "{}", name.path());
    }
}

pub(crate) async fn an_object_may_be_put_again(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (name, bytes) = picture(ImageFormat::Png, 2, 5000);
    for _ in 0..3 {
        store.put_object(name, bytes.clone()).await.unwrap();
    }
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes));
}

pub(crate) async fn what_was_never_put_is_none(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (there, bytes) = picture(ImageFormat::Jpeg, 3, 50);
    store.put_object(there, bytes).await.unwrap();
    let other_extension = ObjectName { format: ImageFormat::Png, ..there };
    for absent in [other_extension, picture(ImageFormat::Jpeg, 4, 50).0] {
        assert_eq!(store.object(absent, u64::MAX).await.unwrap(), None);
    }
    assert_eq!(store.record("space", key(1)).await.unwrap(), None);
}

pub(crate) async fn concurrent_puts_of_one_object_all_succeed(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (name, bytes) = picture(ImageFormat::Webp, 5, 300_000);
    let mut puts = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (store, bytes) = (Arc::clone(&store), bytes.clone());
        puts.spawn(async move {
            store.put_object(name, bytes).await.unwrap();
            store.object(name, u64::MAX).await.unwrap()
        });
    }
    for read in puts.join_all().await {
        assert!(read.as_ref() == Some(&bytes));
    }
}

pub(crate) async fn bytes_are_refused_under_a_name_not_theirs(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (name, _) = picture(ImageFormat::Jpeg, 6, 80);
    let (_, others) = picture(ImageFormat::Jpeg, 7, 80);
    assert!(matches!(store.put_object(name, others).await, Err(StoreError::Corrupt(_))));
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), None);
}

pub(crate) async fn a_put_nobody_waits_for_leaves_no_half_object(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    for round in 0..16 {
        let (name, bytes) = picture(ImageFormat::Jpeg, round, 1 << 20);
        let put = store.put_object(name, bytes.clone());
        let _ = tokio::time::timeout(Duration::from_millis(round.into()), put).await;
        for _ in 0..3 {
            let read = store.object(name, u64::MAX).await.unwrap();
            assert!(read.is_none_or(|read| read == bytes), "round {round}");
        }
    }
}

pub(crate) async fn a_damaged_object_is_never_returned(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 8, 4000);
    store.put_object(name, bytes.clone()).await.unwrap();
    let mut flipped = bytes.to_vec();
    flipped[2000] ^= 1;
    let longer = [&bytes[..], b"\0"].concat();
    let (_, swapped) = picture(ImageFormat::Jpeg, 9, 4000);
    for damaged in [&flipped, &longer, &bytes[..3999], b"", &swapped] {
        fixture.overwrite(&name.path(), damaged).await;
        assert!(matches!(store.object(name, u64::MAX).await, Err(StoreError::Corrupt(_))));
    }
}

pub(crate) async fn a_record_is_read_back_in_every_field(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let put = record("ailab-v1", key(2), 0, "red");
    assert_eq!(store.put_record(&put).await.unwrap(), put);
    assert_eq!(store.record("ailab-v1", key(2)).await.unwrap(), Some(put));
}

pub(crate) async fn the_first_record_of_a_generation_stands(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let first = record("space", key(3), 4, "first");
    store.put_record(&first).await.unwrap();
    let late = store.put_record(&record("space", key(3), 4, "late")).await.unwrap();
    assert_eq!(late, first);
    assert_eq!(store.record("space", key(3)).await.unwrap(), Some(first));
}

pub(crate) async fn a_record_is_replaced_by_a_higher_generation_only(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    for (put, stands) in
        [(1, 1), (0, 1), (2, 2), (7, 7), (6, 7), (MAX_GENERATION, MAX_GENERATION), (7, MAX_GENERATION)]
    {
        let answer = store.put_record(&record("space", key(4), put, "red")).await.unwrap();
        assert_eq!(answer.generation, stands, "after {put}");
        assert_eq!(store.record("space", key(4)).await.unwrap(), Some(answer));
    }
}

pub(crate) async fn concurrent_records_of_one_generation_have_one_winner(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    for generation in 0..4 {
        let mut puts = tokio::task::JoinSet::new();
        for caller in 0..12 {
            let store = Arc::clone(&store);
            let record = record("space", key(5), generation, &format!("team {caller}"));
            puts.spawn(async move { store.put_record(&record).await.unwrap().team });
        }
        let mut winners: HashSet<String> = puts.join_all().await.into_iter().collect();
        winners.insert(store.record("space", key(5)).await.unwrap().expect("it was put").team);
        assert_eq!(winners.len(), 1, "{winners:?}");
    }
}

pub(crate) async fn concurrent_generations_end_with_the_highest(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let mut puts = tokio::task::JoinSet::new();
    for generation in 0..16 {
        let store = Arc::clone(&store);
        let record = record("space", key(6), generation, "red");
        puts.spawn(async move {
            assert!(store.put_record(&record).await.unwrap().generation >= generation);
        });
    }
    puts.join_all().await;
    assert_eq!(store.record("space", key(6)).await.unwrap().expect("it was put").generation, 15);
}

pub(crate) async fn records_of_other_keys_and_namespaces_do_not_mix(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let neighbour = |last| CacheKey::from_bytes(std::array::from_fn(|at| if at == 31 { last } else { 9 }));
    let places = [("a", neighbour(0)), ("b", neighbour(0)), ("a-", neighbour(0)), ("a", neighbour(1))];
    for (at, (namespace, key)) in places.into_iter().enumerate() {
        assert_eq!(store.record(namespace, key).await.unwrap(), None);
        store.put_record(&record(namespace, key, 0, &format!("team {at}"))).await.unwrap();
    }
    for (at, (namespace, key)) in places.into_iter().enumerate() {
        let read = store.record(namespace, key).await.unwrap().expect("it was put");
        assert_eq!(read.team, format!("team {at}"));
    }
}

/// Lists in pages; `meanwhile` is done after each.
async fn list(store: &dyn Store, limit: usize, meanwhile: impl AsyncFn()) -> Vec<(String, CacheKey)> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_records(after.as_deref(), limit).await.unwrap();
        assert!(page.records.len() <= limit);
        all.extend(page.records);
        meanwhile().await;
        match page.next {
            None => return all,
            next => after = next,
        }
    }
}

pub(crate) async fn records_are_listed_once_in_pages_of_any_size(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    assert_eq!(list(&*store, 10, async || {}).await, []);
    let mut put = Vec::new();
    // Two of one folder, and namespaces whose order depends on what follows the name.
    let neighbour = |last| CacheKey::from_bytes(std::array::from_fn(|at| if at == 31 { last } else { 9 }));
    for (namespace, key) in
        (0..5).map(|n| ("a", key(n))).chain([("a-", key(0)), ("b", neighbour(0)), ("b", neighbour(1))])
    {
        store.put_record(&record(namespace, key, 0, "red")).await.unwrap();
        put.push((namespace.to_owned(), key));
    }
    put.sort_unstable();
    for limit in [1, 2, 3, 7, 8, 9, 1000] {
        let mut listed = list(&*store, limit, async || {}).await;
        listed.sort_unstable();
        assert_eq!(listed, put, "pages of {limit}");
    }
    // What comes and goes meanwhile may be listed or not; what stays is.
    let (come, gone) = (key(200), key(201));
    store.put_record(&record("a", gone, 0, "red")).await.unwrap();
    let change = async || {
        store.put_record(&record("a", come, 0, "red")).await.unwrap();
        store.forget_record("a", gone, 0).await.unwrap();
    };
    let mut listed = list(&*store, 2, change).await;
    listed.retain(|(_, key)| ![come, gone].contains(key));
    listed.sort_unstable();
    assert_eq!(listed, put);
}

pub(crate) async fn names_that_are_no_records_are_not_listed(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let put = [key(1), key(2), key(3)];
    for key in put {
        store.put_record(&record("space", key, 0, "red")).await.unwrap();
        for wrong in [".json", ".json~", ""] {
            let path = Record::path("space", CacheKey::of(wrong.as_bytes(), 1, 1));
            let folder = Record::path("space", key);
            let (folder, _) = folder.rsplit_once('/').unwrap();
            let (_, name) = path.rsplit_once('/').unwrap();
            // A record's name in another record's folder, and names that only begin or end like one.
            fixture.overwrite(&format!("{folder}/{}", name.replace(".json", wrong)), b"{}").await;
        }
    }
    let mut expected = put.map(|key| ("space".to_owned(), key));
    expected.sort_unstable();
    for limit in [1, 2, 100] {
        let mut listed = list(&*store, limit, async || {}).await;
        listed.sort_unstable();
        assert_eq!(listed, expected, "pages of {limit}");
    }
}

pub(crate) async fn a_namespace_is_a_plain_word(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let long = "a".repeat(65);
    for wrong in ["", "..", ".", "a/b", "/", "../results", "A", "é", "a b", "a\0", "a_b", "a%2fb", &long] {
        assert!(store.record(wrong, key(7)).await.is_err(), "{wrong:?}");
        assert!(store.put_record(&record(wrong, key(7), 0, "red")).await.is_err(), "{wrong:?}");
    }
    for right in ["a", "0", "ailab-v1", &long[1..]] {
        store.put_record(&record(right, key(7), 0, "red")).await.unwrap();
    }
}

pub(crate) async fn what_was_put_survives_reopening(fixture: &impl StoreFixture) {
    let (name, bytes) = picture(ImageFormat::Bmp, 10, 9000);
    let second = record("space", key(8), 1, "second");
    let store = fixture.open().await;
    store.put_object(name, bytes.clone()).await.unwrap();
    store.put_record(&record("space", key(8), 0, "first")).await.unwrap();
    store.put_record(&second).await.unwrap();
    drop(store);

    let store = fixture.open().await;
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes.clone()));
    assert_eq!(store.record("space", key(8)).await.unwrap(), Some(second.clone()));
    store.put_object(name, bytes).await.unwrap();
    assert_eq!(store.put_record(&record("space", key(8), 1, "late")).await.unwrap(), second);
}

pub(crate) async fn a_garbled_record_is_corrupt_and_not_absent(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let whole = record("space", key(9), 0, "red");
    store.put_record(&whole).await.unwrap();
    let json = serde_json::to_vec(&whole).unwrap();
    let newer = serde_json::to_string(&Record { version: 2, ..whole.clone() }).unwrap();
    let foreign = serde_json::to_string(&Record { extension: "gif".to_owned(), ..whole.clone() }).unwrap();
    let torn = &json[..json.len() / 2];
    let twice = [&json[..], &json[..]].concat();
    let zeroes = vec![0; json.len()];
    for garbled in [b"", torn, &twice, &zeroes, b"{}", b"null", newer.as_bytes(), foreign.as_bytes()] {
        fixture.overwrite(&Record::path("space", key(9)), garbled).await;
        assert!(matches!(store.record("space", key(9)).await, Err(StoreError::Corrupt(_))));
        // A new record in its place would hide what was paid for, even one of a higher generation.
        let put = store.put_record(&Record { generation: 1, ..whole.clone() }).await;
        assert!(matches!(put, Err(StoreError::Corrupt(_))));
    }
    fixture.overwrite(&Record::path("space", key(9)), &json).await;
    assert_eq!(store.record("space", key(9)).await.unwrap(), Some(whole));
}

pub(crate) async fn a_record_that_is_not_about_its_name_is_corrupt(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    store.put_record(&record("space", key(10), 0, "red")).await.unwrap();
    for (namespace, other) in [("space", key(11)), ("other", key(10))] {
        let json = serde_json::to_vec(&record(namespace, other, 0, "red")).unwrap();
        fixture.overwrite(&Record::path("space", key(10)), &json).await;
        assert!(matches!(store.record("space", key(10)).await, Err(StoreError::Corrupt(_))));
    }
}

/// A record that no purchase leaves, and what is forged in it.
pub(crate) fn forgeries(real: &Record) -> Vec<(&'static str, Record)> {
    let with = |change: &dyn Fn(&mut Record)| {
        let mut forged = real.clone();
        change(&mut forged);
        forged
    };
    let (other, _) = picture(ImageFormat::Jpeg, 99, 100);
    let answer = |from: &str, to: &str| with(&|forged| forged.answer = real.answer.replace(from, to));
    let path = real.object().expect("a real record names an object").path();
    let at = |text: &str| with(&|forged| forged.stored_at = text.parse().expect("a timestamp"));
    vec![
        ("no answer", with(&|forged| forged.answer = "{}".to_owned())),
        ("HTML for an answer", with(&|forged| forged.answer = "<script>alert(1)</script>".to_owned())),
        ("an error for an answer", answer("{\"data\"", "{\"error_code\":500,\"data\"")),
        ("a foreign URL", answer(&path, "https://evil.example/1.jpg")),
        ("a foreign host before the path", answer(&path, &format!("//evil.example/{path}"))),
        ("another object's URL", answer(&path, &other.path())),
        ("another digest", with(&|forged| forged.digest = other.digest)),
        ("another extension", with(&|forged| forged.extension = "png".to_owned())),
        ("no format of ours", with(&|forged| forged.extension = "html".to_owned())),
        ("an empty result", with(&|forged| forged.bytes = 0)),
        ("a result longer than any", with(&|forged| forged.bytes = MAX_OBJECT_BYTES + 1)),
        ("too many credits", with(&|forged| forged.credits = MAX_CREDITS + 1)),
        ("credits of 2^63", with(&|forged| forged.credits = 1 << 63)),
        ("a generation that cannot be followed", with(&|forged| forged.generation = MAX_GENERATION + 1)),
        ("the last generation", with(&|forged| forged.generation = u64::MAX)),
        ("no width", with(&|forged| forged.width = 0)),
        ("too high", with(&|forged| forged.height = 65_536)),
        ("too early", at("2019-12-31T23:59:59Z")),
        ("too late", at("2200-01-01T00:00:00Z")),
        ("a team's name that is none", with(&|forged| forged.team = "x".repeat(65))),
    ]
}

pub(crate) async fn a_forged_record_is_corrupt(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let real = record("space", key(18), 0, "red");
    store.put_record(&real).await.unwrap();
    for (what, forged) in forgeries(&real) {
        fixture.overwrite(&Record::path("space", key(18)), &serde_json::to_vec(&forged).unwrap()).await;
        let read = store.record("space", key(18)).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{what}: {read:?}");
        // Nothing takes its place, nor is such a record ever written.
        assert!(matches!(store.put_record(&real).await, Err(StoreError::Corrupt(_))), "{what}");
        assert!(matches!(store.put_record(&forged).await, Err(StoreError::Corrupt(_))), "{what}");
    }
}

pub(crate) async fn an_object_that_is_no_picture_is_corrupt(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    // Whoever can write to a bucket can name these by their digests.
    let (real, png) = picture(ImageFormat::Png, 12, 700);
    for bytes in [&b"<script>alert(1)</script>"[..], b"{}", b"", &png] {
        let name = ObjectName { digest: Digest::of(bytes), format: ImageFormat::Jpeg };
        assert!(matches!(
            store.put_object(name, Bytes::copy_from_slice(bytes)).await,
            Err(StoreError::Corrupt(_))
        ));
        fixture.overwrite(&name.path(), bytes).await;
        assert!(matches!(store.object(name, u64::MAX).await, Err(StoreError::Corrupt(_))));
    }
    store.put_object(real, png.clone()).await.unwrap();
    assert_eq!(store.object(real, u64::MAX).await.unwrap(), Some(png));
}

pub(crate) async fn a_healthy_store_has_room(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    for _ in 0..3 {
        store.check_room().await.unwrap();
    }
}

pub(crate) async fn a_fit_store_proves_it_and_keeps_what_it_has(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (name, bytes) = picture(ImageFormat::Png, 11, 700);
    let put = record("space", key(12), 3, "red");
    store.put_object(name, bytes.clone()).await.unwrap();
    store.put_record(&put).await.unwrap();
    for _ in 0..2 {
        store.prove().await.unwrap();
    }
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes));
    assert_eq!(store.record("space", key(12)).await.unwrap(), Some(put));
}

pub(crate) async fn a_store_is_marked_once(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    assert_eq!(store.archive().await.unwrap(), None);
    let ids: Vec<ArchiveId> = (0..8).map(|_| ArchiveId::random()).collect();
    let marks = ids.iter().map(|id| {
        let (store, id) = (store.clone(), *id);
        tokio::spawn(async move { store.mark_archive(id).await.unwrap() })
    });
    let mut standing = HashSet::new();
    for mark in marks.collect::<Vec<_>>() {
        standing.insert(mark.await.unwrap());
    }
    assert_eq!(standing.len(), 1, "all were told of the same one");
    let winner = standing.into_iter().next();
    assert!(winner.is_some_and(|winner| ids.contains(&winner)));
    assert_eq!(store.archive().await.unwrap(), winner);
    assert_eq!(Some(fixture.open().await.mark_archive(ids[0]).await.unwrap()), winner);
}

pub(crate) async fn a_garbled_marker_is_corrupt_and_not_absent(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    fixture.overwrite("archive", b"granary archive").await;
    assert!(matches!(store.archive().await, Err(StoreError::Corrupt(_))));
    let marked = store.mark_archive(ArchiveId::random()).await;
    assert!(matches!(marked, Err(StoreError::Corrupt(_))), "{marked:?}");
}

pub(crate) async fn a_forgotten_record_is_gone_and_its_object_stays(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let (name, bytes) = picture(ImageFormat::Png, 12, 900);
    store.put_object(name, bytes.clone()).await.unwrap();
    store.put_record(&record("space", key(13), 3, "red")).await.unwrap();
    store.put_record(&record("other", key(13), 3, "red")).await.unwrap();
    assert!(store.forget_record("space", key(13), 3).await.unwrap());
    assert_eq!(store.record("space", key(13)).await.unwrap(), None);
    assert!(store.record("other", key(13)).await.unwrap().is_some());
    let reopened = fixture.open().await;
    assert_eq!(reopened.record("space", key(13)).await.unwrap(), None);
    assert_eq!(reopened.object(name, u64::MAX).await.unwrap(), Some(bytes));
}

pub(crate) async fn a_record_of_a_higher_generation_is_not_forgotten(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let put = record("space", key(14), 5, "red");
    store.put_record(&put).await.unwrap();
    for up_to in [0, 4] {
        assert!(!store.forget_record("space", key(14), up_to).await.unwrap(), "{up_to}");
        assert_eq!(store.record("space", key(14)).await.unwrap(), Some(put.clone()));
    }
    assert!(store.forget_record("space", key(14), u64::MAX).await.unwrap());
}

pub(crate) async fn what_is_absent_may_be_forgotten(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    assert!(!store.forget_record("space", key(15), u64::MAX).await.unwrap());
    store.put_record(&record("space", key(15), 0, "red")).await.unwrap();
    assert!(store.forget_record("space", key(15), 0).await.unwrap());
    assert!(!store.forget_record("space", key(15), 0).await.unwrap());
    assert!(store.forget_record("../space", key(15), 0).await.is_err());
}

pub(crate) async fn a_record_is_put_again_after_it_was_forgotten(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    store.put_record(&record("space", key(16), 0, "first")).await.unwrap();
    assert!(store.forget_record("space", key(16), 0).await.unwrap());
    let next = record("space", key(16), 1, "second");
    assert_eq!(store.put_record(&next).await.unwrap(), next);
    assert_eq!(store.record("space", key(16)).await.unwrap(), Some(next));
}

pub(crate) async fn forgetting_and_putting_at_once_never_loses_the_higher_generation(
    fixture: &impl StoreFixture,
) {
    let store = fixture.open().await;
    for round in 0..8_u64 {
        let key = key(100 + round as u32);
        store.put_record(&record("space", key, round, "old")).await.unwrap();
        let new = record("space", key, round + 1, "new");
        let forget = store.forget_record("space", key, round);
        let (forgotten, put) = tokio::join!(forget, store.put_record(&new));
        forgotten.unwrap();
        assert_eq!(put.unwrap(), new);
        assert_eq!(store.record("space", key).await.unwrap(), Some(new), "round {round}");
    }
}

pub(crate) async fn a_garbled_record_is_not_forgotten(fixture: &impl StoreFixture) {
    let store = fixture.open().await;
    let whole = record("space", key(17), 0, "red");
    store.put_record(&whole).await.unwrap();
    fixture.overwrite(&Record::path("space", key(17)), b"{}").await;
    assert!(matches!(store.forget_record("space", key(17), 9).await, Err(StoreError::Corrupt(_))));
    fixture.overwrite(&Record::path("space", key(17)), &serde_json::to_vec(&whole).unwrap()).await;
    assert_eq!(store.record("space", key(17)).await.unwrap(), Some(whole));
}
