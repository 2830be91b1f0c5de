//! Results in a bucket: what a URL needs is there and nowhere else, and a bucket that is away costs
//! no money.

use std::time::Duration;

use granary::app::App;
use granary::base::clock::Clock;
use granary::config::{Config, Environment};
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client;
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::with_budget;
use granary_kit::s3::{Fault, S3Server};
use image::ImageFormat;
use tempfile::TempDir;

use crate::harness::{Granary, bucket_section, cache_status, upstream_section};

const PREFIX: &str = "granary/test";

/// A Granary with the parts it needs.
struct Fleet {
    granary: Granary,
    upstream: FakeAilab,
    bucket: S3Server,
    _folder: TempDir,
}

impl Fleet {
    async fn start() -> Self {
        let (upstream, bucket, folder) =
            (FakeAilab::start().await, S3Server::start().await, TempDir::new().unwrap());
        let granary = Granary::ailab(&upstream, &store_section(&bucket, &folder)).await;
        Self { granary, upstream, bucket, _folder: folder }
    }
}

/// `[store]` for a bucket, with credentials in `folder`.
pub(crate) fn store_section(bucket: &S3Server, folder: &TempDir) -> String {
    bucket_section(bucket, folder, PREFIX)
}

pub(crate) fn path_of(url: &str) -> &str {
    &url[url.find("/results/").unwrap_or_else(|| panic!("{url} is not one of ours"))..]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_url_is_in_the_bucket_under_its_own_path_for_a_static_server() {
    let fleet = Fleet::start().await;
    let site = fleet.bucket.site("granary/test/").await;
    let bmp = images::solid(ImageFormat::Bmp, 300, 200, [180, 90, 30]);
    let webp = images::solid(ImageFormat::WebP, 300, 200, [20, 90, 130]);
    // In front of the paid API, and in front of the engine inside, which keeps WebP as it is.
    let engine = Granary::builtin(&store_section(&fleet.bucket, &fleet._folder)).await;
    engine.adopt().await;
    for (granary, image, content_type) in [
        (&fleet.granary, images::photo_jpeg(), "image/jpeg"),
        (&fleet.granary, images::photo_png(), "image/png"),
        (&fleet.granary, &bmp, "image/png"),
        (&engine, images::photo_jpeg(), "image/jpeg"),
        (&engine, images::photo_png(), "image/png"),
        (&engine, &webp, "image/webp"),
        (&engine, &bmp, "image/png"),
    ] {
        for size in [100, 200] {
            let answer = granary.crop(None, image, size, size).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let url = answer.result_url();
            let ours = client::get(&url).await.unwrap();
            let static_copy = client::get(&format!("{}{}", site.url(), path_of(&url))).await.unwrap();
            assert_eq!((ours.status, static_copy.status), (200, 200));
            assert!(ours.body == static_copy.body);
            for served in [&ours, &static_copy] {
                assert_eq!(served.header("content-type"), Some(content_type));
            }
            let decoded = image::load_from_memory(&static_copy.body).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (size, size));
            // A server that looks at more than the type finds what we say ourselves.
            let for_ever = Some("public, max-age=31536000, immutable");
            assert_eq!(ours.header("cache-control"), for_ever);
            let stored = fleet.bucket.object(&format!("granary/test{}", path_of(&url))).unwrap();
            assert_eq!(stored.cache_control.as_deref(), for_ever);
        }
    }
    // The bucket itself shows nothing to anyone: whoever wants that puts a server before it.
    let name = fleet.bucket.names().into_iter().find(|name| name.contains("results")).unwrap();
    let direct = format!("{}/{}/{name}", fleet.bucket.endpoint(), fleet.bucket.bucket());
    assert_eq!(client::get(&direct).await.unwrap().status, 403);
    let below = |folder| {
        let names = fleet.bucket.names().into_iter();
        names.filter(|name| name.starts_with(&format!("granary/test/{folder}/"))).count()
    };
    assert_eq!((below("records/ailab-v1"), below("records/builtin-v1")), (6, 8));
    assert!(below("results") >= 13, "two crops of one colour may be the same bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_machine_in_front_of_an_old_bucket_buys_nothing_again() {
    let Fleet { granary, upstream, bucket: _bucket, _folder } = Fleet::start().await;
    let first = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    assert_eq!(cache_status(&first), "granary; fwd=uri-miss; fwd-status=200; stored");
    let bytes = client::get(&first.result_url()).await.unwrap().body;

    let granary = granary.restart_without_state().await;
    let url = format!("{}{}", granary.url(), path_of(&first.result_url()));
    assert_eq!(client::get(&url).await.unwrap().body, bytes);
    let again = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    assert_eq!(cache_status(&again), "granary; hit; detail=store");
    assert_eq!(path_of(&again.result_url()), path_of(&first.result_url()));
    assert_eq!((upstream.charges(), upstream.attempts()), (1, 1));
    // Once the operator has adopted the bucket, its records are imported, and look-ups do not need them.
    granary.adopt().await;
    let granary = granary.restart().await;
    let again = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    assert_eq!(cache_status(&again), "granary; hit; detail=ledger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_bucket_hits_go_on_and_nothing_is_bought() {
    let Fleet { granary, upstream, mut bucket, _folder } = Fleet::start().await;
    let first = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    assert_eq!(client::get(&first.result_url()).await.unwrap().status, 200);
    bucket.go_down().await;

    let hit = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory");
    assert_eq!(client::get(&hit.result_url()).await.unwrap().status, 200);
    // Proved room holds for five seconds, and nobody knows in that time; a restart knows nothing.
    let granary = granary.restart().await;
    let hit = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    assert_eq!(cache_status(&hit), "granary; hit; detail=ledger");
    let result = client::get(&hit.result_url()).await.unwrap();
    assert_eq!((result.status, result.header("retry-after").is_some()), (503, true));
    for size in [40, 50, 60, 70] {
        let refused = granary.crop(None, images::photo_jpeg(), size, size).await;
        assert_eq!((refused.status, refused.code().as_str()), (503, "ERROR_RESOURCE_UNAVAILABLE"));
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(upstream.attempts(), 1);

    bucket.come_back().await;
    let bought = loop {
        let answer = granary.crop(None, images::photo_jpeg(), 40, 40).await;
        if answer.status == 200 {
            break answer;
        }
        assert_eq!(answer.status, 503, "{}", answer.text());
        // Until the breaker has let one call through.
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(client::get(&hit.result_url()).await.unwrap().status, 200);
    assert_eq!(upstream.charges(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_paid_for_while_the_bucket_is_away_is_kept_when_it_is_back() {
    let Fleet { granary, upstream, bucket, _folder } = Fleet::start().await;
    upstream.on_next(Behaviour::Hold);
    let url = granary.url();
    let asked = tokio::spawn(async move {
        let form = Form::curl(images::photo_jpeg(), 300, 200);
        client::post_form(&url, None, &form).await.unwrap()
    });
    upstream.wait_for_held(1).await;
    let before = bucket.requests();
    bucket.fail_always(Fault::SlowDown);
    upstream.release();
    let answer = asked.await.unwrap();
    assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored");
    assert!(bucket.requests() > before, "it was asked first");
    let bytes = client::get(&answer.result_url()).await.unwrap();
    assert_eq!((bytes.status, bytes.body), (200, upstream.result_bytes(1)));
    assert!(!bucket.names().iter().any(|name| name.contains("/results/")), "it waits in the ledger");
    bucket.heal();
    granary.wait_for_metric("granary_space_used_bytes{space=\"spool\"}", 0.0).await;
    let name = format!("granary/test{}", path_of(&answer.result_url()));
    assert_eq!(bucket.object(&name).unwrap().bytes, upstream.result_bytes(1));
    assert_eq!((upstream.charges(), upstream.attempts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_overwrites_is_refused_at_the_start() {
    let (upstream, bucket, folder) =
        (FakeAilab::start().await, S3Server::start().await, TempDir::new().unwrap());
    bucket.ignore_conditions(true, false);
    let started = start(&upstream, &bucket, &folder).await;
    let error = format!("{:#}", started.err().expect("nothing may be kept there"));
    assert!(error.starts_with("store.bucket: ") && error.contains("ignores If-None-Match"), "{error}");

    // And one that cannot be asked is no reason not to serve hits.
    bucket.ignore_conditions(false, false);
    bucket.fail_always(Fault::Forbidden);
    start(&upstream, &bucket, &folder).await.unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_found_where_the_tools_of_aws_look() {
    let (bucket, folder) = (S3Server::start().await, TempDir::new().unwrap());
    let file = folder.path().join("aws");
    bucket.write_credentials(&file).unwrap();
    let check = |variables: &[(&str, &str)]| {
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_granary"));
        check.args(["check", "--live"]).current_dir(folder.path()).env_clear();
        check.env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", folder.path());
        check.env("GRANARY_STORE_KIND", "s3").env("GRANARY_STORE_BUCKET", bucket.bucket());
        check.env("GRANARY_STORE_ENDPOINT", bucket.endpoint()).envs(variables.iter().copied());
        let output = check.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let keys = [("AWS_ACCESS_KEY_ID", bucket.access_key()), ("AWS_SECRET_ACCESS_KEY", bucket.secret_key())];
    assert_eq!(check(&keys), (Some(0), String::new()));
    assert_eq!(check(&[("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())]), (Some(0), String::new()));
    let (code, said) = check(&[]);
    assert!(code == Some(1) && said.contains("put credentials into AWS_ACCESS_KEY_ID"), "{said}");
}

async fn start(upstream: &FakeAilab, bucket: &S3Server, folder: &TempDir) -> anyhow::Result<App> {
    let config = format!("{}\n{}", upstream_section(upstream, ""), store_section(bucket, folder));
    let config = with_budget(config);
    let state = folder.path().join("state").display().to_string();
    let variables = [
        ("GRANARY_SERVER_LISTEN", "127.0.0.1:0"),
        ("GRANARY_SERVER_ADMIN_LISTEN", "127.0.0.1:0"),
        ("GRANARY_SERVER_DRAIN_GRACE", "0s"),
        ("GRANARY_STATE_PATH", &state),
    ];
    let loaded = Config::parse(&config, &Environment::of(folder.path(), variables)).unwrap();
    App::start(loaded.config, Clock::system()).await
}
