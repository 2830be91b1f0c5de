//! Somebody else serves the bucket: answers name that address for what the bucket has confirmed, and
//! Granary's own for what waits in the spool. Whatever is named serves its bytes when it is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::s3::{Fault, Operation, S3Server, StaticSite};
use image::ImageFormat;
use tempfile::TempDir;

use crate::bucket::{path_of, store_section};
use crate::harness::{Granary, TurnedClock, cache_status, until, upstream_section, within};

/// A Granary before a bucket that a static server shows to anyone.
struct World {
    upstream: FakeAilab,
    bucket: S3Server,
    site: StaticSite,
    folder: Arc<TempDir>,
}

impl World {
    async fn new() -> Self {
        let (upstream, bucket) = (FakeAilab::start().await, S3Server::start().await);
        let site = bucket.site("granary/test/").await;
        Self { upstream, bucket, site, folder: Arc::new(TempDir::new().unwrap()) }
    }

    async fn granary(&self, more: &str) -> Granary {
        let config = format!(
            "{}\n{}public_url = \"{}/\"\n{more}",
            upstream_section(&self.upstream, ""),
            store_section(&self.bucket, &self.folder),
            self.site.url()
        );
        Granary::start_in(self.folder.clone(), config, TurnedClock::default()).await
    }

    /// Asserts that an answer's URL is at the site, and what is behind it.
    async fn assert_at_site(&self, answer: &Answer) {
        assert_at(&self.site.url(), answer).await;
    }
}

/// Asserts that an answer's URL begins with `root` and serves its bytes as what they are.
async fn assert_at(root: &str, answer: &Answer) {
    let url = answer.result_url();
    let served = client::get(&url).await.unwrap();
    assert_eq!(served.status, 200, "{url}: {}", served.text());
    assert_eq!(url, format!("{root}{}", path_of(&url)));
    let format = image::guess_format(&served.body).unwrap();
    assert_eq!(served.header("content-type"), Some(format.to_mime_type()));
    assert!(is_named_by_its_bytes(&url, &served.body), "{url}");
}

fn is_named_by_its_bytes(url: &str, bytes: &[u8]) -> bool {
    path_of(url).starts_with(&format!("/results/{}.", blake3::hash(bytes).to_hex()))
}

async fn crop(url: &str, seed: u64) -> Answer {
    let form = Form::curl(images::tiny_png(24, 24, seed), 40, 40);
    let answer = client::post_form(url, None, &form).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// `fwd=uri-miss`, `hit; detail=memory` and so on.
fn how(answer: &Answer) -> String {
    cache_status(answer).strip_prefix("granary; ").unwrap().replace("; fwd-status=200; stored", "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bucket_has_is_named_where_somebody_else_serves_it() {
    let world = World::new().await;
    let granary = world.granary("").await;
    for (image, size) in [(images::photo_jpeg(), 100), (images::photo_png(), 90)] {
        let miss = granary.crop(None, image, size, size).await;
        world.assert_at_site(&miss).await;
        assert_eq!(how(&miss), "fwd=uri-miss");
        let hit = granary.crop(None, image, size, size).await;
        world.assert_at_site(&hit).await;
        assert_eq!(how(&hit), "hit; detail=memory");
        let key = miss.header("granary-key").unwrap();
        let call = Call::new("GET", &format!("{}/api/image/editing/image-cropping/{key}", granary.url()));
        world.assert_at_site(&call.send().await.unwrap()).await;
        // Ours serves the same, and the answers are the same but for nothing at all.
        assert_eq!(miss.body, hit.body);
        let ours = format!("{}{}", granary.url(), path_of(&miss.result_url()));
        let (ours, theirs) =
            (client::get(&ours).await.unwrap(), client::get(&miss.result_url()).await.unwrap());
        assert_eq!((ours.status, &ours.body), (200, &theirs.body));
        assert_eq!(ours.header("content-type"), theirs.header("content-type"));
    }
    let granary = granary.restart().await;
    for status in ["hit; detail=ledger", "hit; detail=memory"] {
        let hit = granary.crop(None, images::photo_jpeg(), 100, 100).await;
        world.assert_at_site(&hit).await;
        assert_eq!(how(&hit), status);
    }
    // While nobody has said that this ledger belongs to the bucket, it is no witness.
    let granary = granary.restart_without_state().await;
    let hit = granary.crop(None, images::photo_jpeg(), 100, 100).await;
    assert_at(&granary.url(), &hit).await;
    assert_eq!(how(&hit), "hit; detail=store");
    granary.adopt().await;
    world.assert_at_site(&granary.crop(None, images::photo_jpeg(), 100, 100).await).await;
    assert_eq!(world.upstream.charges(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_for_one_result_can_read_it_when_they_are_told() {
    let world = World::new().await;
    let granary = world.granary("").await;
    world.upstream.on_next(Behaviour::Hold);
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let url = granary.url();
            let site = world.site.url();
            tokio::spawn(async move {
                let answer = crop(&url, 1).await;
                assert_at(&site, &answer).await;
                how(&answer)
            })
        })
        .collect();
    world.upstream.wait_for_held(1).await;
    granary.wait_for_metric("granary_coalesce_followers", 8.0).await;
    world.upstream.release();
    let mut ends = Vec::new();
    for asked in asking {
        ends.push(within("an answer", asked).await.unwrap());
    }
    ends.sort();
    let mut expected = vec!["fwd=uri-miss".to_owned()];
    expected.resize(8, "fwd=uri-miss; collapsed".to_owned());
    assert_eq!((ends, world.upstream.charges()), (expected, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_bucket_is_named_here_until_the_bucket_has_it() {
    let mut world = World::new().await;
    let granary = world.granary("").await;
    let old = crop(&granary.url(), 1).await;
    world.bucket.go_down().await;
    // Even the bucket being away does not unmake what it has confirmed.
    assert_eq!(crop(&granary.url(), 1).await.body, old.body);
    world.assert_at_site(&old).await;

    let miss = crop(&granary.url(), 2).await;
    assert_at(&granary.url(), &miss).await;
    let hit = crop(&granary.url(), 2).await;
    assert_at(&granary.url(), &hit).await;
    assert_eq!((how(&miss).as_str(), how(&hit).as_str()), ("fwd=uri-miss", "hit; detail=memory"));
    let granary = granary.restart().await;
    let hit = crop(&granary.url(), 2).await;
    assert_at(&granary.url(), &hit).await;
    assert_eq!(how(&hit), "hit; detail=ledger");
    world.assert_at_site(&crop(&granary.url(), 1).await).await;

    world.bucket.come_back().await;
    granary.wait_for_metric("granary_space_used_bytes{space=\"spool\"}", 0.0).await;
    let hit = crop(&granary.url(), 2).await;
    world.assert_at_site(&hit).await;
    assert_eq!(how(&hit), "hit; detail=memory");
    // The URL that was given meanwhile is as good as ever.
    let ours = client::get(&format!("{}{}", granary.url(), path_of(&miss.result_url()))).await.unwrap();
    assert_eq!((ours.status, ours.body), (200, world.upstream.result_bytes(2)));
    let granary = granary.restart().await;
    world.assert_at_site(&crop(&granary.url(), 2).await).await;
    assert_eq!((world.upstream.charges(), world.upstream.attempts()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_ledger_cannot_be_asked_for_is_named_here() {
    let world = World::new().await;
    let granary = world.granary("").await;
    world.assert_at_site(&crop(&granary.url(), 1).await).await;
    let granary = granary.restart().await;
    let ledger = granary.ledger_file();
    ledger.execute_batch("ALTER TABLE spool RENAME TO hidden").unwrap();
    for _ in 0..2 {
        assert_at(&granary.url(), &crop(&granary.url(), 1).await).await;
    }
    ledger.execute_batch("ALTER TABLE hidden RENAME TO spool").unwrap();
    world.assert_at_site(&crop(&granary.url(), 1).await).await;
    // From here on it is known.
    ledger.execute_batch("ALTER TABLE spool RENAME TO hidden").unwrap();
    world.assert_at_site(&crop(&granary.url(), 1).await).await;
}

/// What clients were given.
#[derive(Default)]
struct Seen {
    at_site: AtomicU64,
    here: AtomicU64,
    stop: AtomicBool,
}

/// Asks for new crops and old ones, and reads each where the answer says, at once.
async fn client(url: String, site: String, number: u64, seen: Arc<Seen>) {
    let mut rounds = 0..;
    while let (Some(round), false) = (rounds.next(), seen.stop.load(Ordering::Relaxed)) {
        for seed in [round, round, round / 2] {
            let answer = crop(&url, number * 1_000_000 + seed).await;
            let is_at_site = answer.result_url().starts_with(&site);
            assert_at(if is_at_site { &site } else { &url }, &answer).await;
            let count = if is_at_site { &seen.at_site } else { &seen.here };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_url_is_given_before_it_serves_while_the_bucket_comes_and_goes() {
    let world = World::new().await;
    world.upstream.keep_bodies(false);
    // Too little memory to be of much help.
    let granary = world.granary("[cache]\nmemory = \"16KiB\"").await;
    let seen = Arc::new(Seen::default());
    let clients: Vec<_> = (0..3)
        .map(|number| tokio::spawn(client(granary.url(), world.site.url(), number, seen.clone())))
        .collect();
    let are_well = || assert!(!clients.iter().any(tokio::task::JoinHandle::is_finished), "a client gave up");
    for fault in [Fault::SlowDown, Fault::DropAnswer, Fault::Forbidden] {
        let at_site = seen.at_site.load(Ordering::Relaxed);
        until("URLs of the site", async || {
            are_well();
            seen.at_site.load(Ordering::Relaxed) > at_site + 10
        })
        .await;
        let here = seen.here.load(Ordering::Relaxed);
        world.bucket.fail_always_of(Operation::Put, fault);
        until("URLs of ours", async || {
            are_well();
            seen.here.load(Ordering::Relaxed) > here + 10
        })
        .await;
        world.bucket.heal();
    }
    seen.stop.store(true, Ordering::Relaxed);
    for client in clients {
        within("a client to stop", client).await.unwrap();
    }
    granary.wait_for_metric("granary_space_used_bytes{space=\"spool\"}", 0.0).await;
    assert_eq!(world.upstream.attempts(), world.upstream.charges());
    println!(
        "{} answers named the site, {} named us",
        seen.at_site.load(Ordering::Relaxed),
        seen.here.load(Ordering::Relaxed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_may_be_served_by_somebody_else_as_well() {
    let granary = Granary::builtin("[store]\npublic_url = \"https://cdn.example.com/pictures\"").await;
    let image = images::solid(ImageFormat::Png, 300, 200, [180, 90, 30]);
    let answer = granary.crop(None, &image, 100, 100).await;
    let url = answer.result_url();
    assert_eq!(url, format!("https://cdn.example.com/pictures{}", path_of(&url)));
    let bytes = std::fs::read(granary.store_path().join(&path_of(&url)[1..])).unwrap();
    assert!(is_named_by_its_bytes(&url, &bytes));
    let ours = client::get(&format!("{}{}", granary.url(), path_of(&url))).await.unwrap();
    assert!(ours.body == bytes);
}
