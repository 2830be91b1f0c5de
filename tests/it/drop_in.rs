//! Deployed clients work as they are, and all of them mean the same key.

use std::process::Stdio;

use ailabtools::FileInput;
use ailabtools::generated::params::{CommonQueryCreditsParams, ImageAIImageCroppingParams};
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, CROP_PATH, Call};
use granary_kit::form::Form;
use granary_kit::images;
use image::GenericImageView;

use crate::harness::{Granary, bytes_of, cache_status, team, until, upstream_section};

/// The vendor's client, told nothing but where Granary is and a team's token.
fn official_client(granary: &Granary, token: &str) -> ailabtools::Client {
    ailabtools::Client::builder(token).base_url(granary.url()).build().unwrap()
}

fn crop_params(image: &[u8], width: i64, height: i64) -> ImageAIImageCroppingParams {
    ImageAIImageCroppingParams::new(FileInput::from_bytes(image, "rocket.jpg", None), width, height)
}

/// Crops with the vendor's client and returns its two fields.
async fn official_crop(client: &ailabtools::Client, width: i64, height: i64) -> (String, serde_json::Value) {
    let answer = client
        .image
        .image_ai_image_cropping(crop_params(images::photo_jpeg(), width, height))
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer.error_code, Some(0));
    let data = answer.data.unwrap();
    (data.url.unwrap(), data.retain_location.unwrap())
}

/// The error the vendor's client makes of an answer.
async fn official_error(client: &ailabtools::Client, image: &[u8], width: i64) -> ailabtools::ApiError {
    match client.image.image_ai_image_cropping(crop_params(image, width, 300)).await {
        Err(ailabtools::Error::Api(error)) => error,
        other => panic!("not understood: {other:?}"),
    }
}

async fn size_of(url: &str) -> (u32, u32) {
    image::load_from_memory(&bytes_of(url).await).unwrap().dimensions()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_crops_with_the_engine_inside() {
    let (team, token) = team("red", "daily_credits = 30");
    let granary = Granary::builtin(&team).await;
    let client = official_client(&granary, &token);

    let (url, retained) = official_crop(&client, 400, 300).await;
    assert!(url.starts_with(&format!("{}/results/", granary.url())), "{url}");
    assert_eq!(size_of(&url).await, (400, 300));
    for side in ["width", "height", "x", "y"] {
        assert!(retained[side].is_i64(), "{retained}");
    }
    assert_eq!(official_crop(&client, 400, 300).await, (url, retained), "a repeat");

    let credits = client.common.common_query_credits(CommonQueryCreditsParams::new()).await.unwrap();
    let pool = &credits.data.unwrap()[0];
    assert_eq!(
        (pool.unique_sign.as_deref(), pool.balance, pool.total),
        (Some("image_cropping"), Some(27.0), Some(30.0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_crops_through_the_paid_api() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let client = official_client(&granary, "any-key-at-all");
    let (url, retained) = official_crop(&client, 400, 300).await;
    assert!(url.starts_with(&format!("{}/results/", granary.url())), "{url}");
    assert_eq!(size_of(&url).await, (400, 300));
    assert_eq!(retained, serde_json::json!({"width": 400, "height": 300, "y": 0, "x": 0}));
    assert_eq!(official_crop(&client, 400, 300).await.0, url);
    assert_eq!(upstream.charges(), 1);

    // With no teams only what is known of the account limits the caller, and nobody asks for it anew.
    let left = async || {
        let credits = client.common.common_query_credits(CommonQueryCreditsParams::new()).await.unwrap();
        let pool = &credits.data.unwrap()[0];
        assert_eq!(pool.unique_sign.as_deref(), Some("image_cropping"));
        pool.balance.unwrap()
    };
    until("the balance to be known", async || left().await <= 1_000_000.0).await;
    upstream.set_balance(4711, 0);
    assert!(left().await >= 999_997.0);
    assert_eq!(upstream.stats().balance_queries, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_understands_every_refusal() {
    let upstream = FakeAilab::start().await;
    let (red, token) = team("red", "daily_credits = 2");
    let (blue, rich) = team("blue", "");
    let config = format!("{}\n{red}\n{blue}", upstream_section(&upstream, ""));
    let granary = Granary::builtin(&config).await;
    let check = |error: ailabtools::ApiError, status: u16, code: &str, says: &str| {
        assert_eq!((error.status_code, error.error_code), (status, Some(i64::from(status))), "{error:?}");
        assert_eq!(error.raw["error_detail"]["code"], code, "{error:?}");
        assert!(error.message.contains(says), "{says:?} is not in {:?}", error.message);
        assert!(error.request_id.is_some_and(|id| id.len() == 36) && error.log_id.is_some());
    };

    let stranger = official_client(&granary, "not-a-token");
    let error = official_error(&stranger, images::photo_jpeg(), 400).await;
    check(error, 401, "ERROR_APPLICATIONS_NOT_EXISTS", "The application does not exist. - ");
    let Err(ailabtools::Error::Api(error)) =
        stranger.common.common_query_credits(CommonQueryCreditsParams::new()).await
    else {
        panic!("the credential test must fail");
    };
    check(error, 401, "ERROR_APPLICATIONS_NOT_EXISTS", "The application does not exist. - ");

    let poor = official_client(&granary, &token);
    let error = official_error(&poor, images::photo_jpeg(), 400).await;
    check(error, 429, "ERROR_NOT_ENOUGH_CREDITS", "the daily budget of the team red");

    let client = official_client(&granary, &rich);
    let error = official_error(&client, images::photo_jpeg(), 0).await;
    check(error, 400, "ERROR_INVALID_PARAMETER", "width");
    let error = official_error(&client, b"GIF89a and no more", 400).await;
    check(error, 415, "UNSUPPORTED_FILE_TYPES", "Unsupported file types. - ");
    assert_eq!(upstream.attempts(), 0);

    upstream.on_next(Behaviour::Refuse { status: 422, code: "FILE_DECODING_FAILURE".to_owned() });
    let error = official_error(&client, images::photo_jpeg(), 400).await;
    check(error, 422, "FILE_DECODING_FAILURE", "File decoding failed. - scripted");
}

/// What the curl program made of a call: its account of what it sent and got, and the answer's body.
struct Curl {
    trace: String,
    sent_bytes: u64,
    body: serde_json::Value,
}

/// `curl -F image=@… -F width=… -F height=…`, as people type it.
async fn curl(granary: &Granary, token: &str, image: &[u8]) -> Curl {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rocket.jpg");
    std::fs::write(&file, image).unwrap();
    let output = tokio::process::Command::new("curl")
        .env_clear()
        .args(["--disable", "--noproxy", "*", "--silent", "--verbose", "--write-out", "\n%{size_upload}"])
        .args(["--header", &format!("ailabapi-api-key: {token}")])
        .args([
            "--form",
            &format!("image=@{}", file.display()),
            "--form",
            "width=400",
            "--form",
            "height=400",
        ])
        .arg(format!("{}{CROP_PATH}", granary.url()))
        .stdin(Stdio::null())
        .output()
        .await
        .expect("this test needs the curl program");
    let trace = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{trace}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, sent_bytes) = text.rsplit_once('\n').unwrap();
    Curl { trace, sent_bytes: sent_bytes.parse().unwrap(), body: serde_json::from_str(body).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_crops_small_and_large_pictures() {
    let (team, token) = team("red", "");
    let granary = Granary::builtin(&team).await;
    let small = curl(&granary, &token, images::photo_jpeg()).await;
    assert_eq!(size_of(small.body["data"]["url"].as_str().unwrap()).await, (400, 400));

    // Beyond a megabyte curl asks first, and sends the body only when it was told to go on.
    let large = images::padded(images::photo_jpeg(), 1_500_000);
    let answer = curl(&granary, &token, &large).await;
    assert!(answer.trace.contains("> Expect: 100-continue"), "{}", answer.trace);
    assert!(answer.trace.contains("< HTTP/1.1 100 Continue"), "{}", answer.trace);
    assert!(answer.sent_bytes > 1_500_000);
    assert_eq!(size_of(answer.body["data"]["url"].as_str().unwrap()).await, (400, 400));

    // Refused by the head alone: the picture stays at home.
    let refused = curl(&granary, "not-a-token", &large).await;
    assert_eq!(refused.body["error_detail"]["code"], "ERROR_APPLICATIONS_NOT_EXISTS");
    assert!(!refused.trace.contains("100 Continue"), "{}", refused.trace);
    assert_eq!(refused.sent_bytes, 0);
}

/// The key of spec section 3, as anyone can compute it.
fn key_of(image: &[u8], width: u32, height: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(image).update(&width.to_le_bytes()).update(&height.to_le_bytes());
    hasher.finalize().to_hex().to_string()
}

/// One request in all the ways clients of today write it.
fn every_shape(image: &[u8], width: u32, height: u32) -> Vec<Form> {
    let plain = || Form::crop(image, width, height);
    vec![
        plain(),
        Form::browser(image, width, height),
        Form::curl(image, width, height),
        Form::sdk_rust(image, width, height),
        Form::sdk_csharp(image, width, height),
        plain().unquoted_names(),
        plain().empty_filenames(),
        plain().file_name(""),
        plain().file_name("../../etc/passwd").part_type(Some("text/html")),
        plain().file_name("photo.gif").part_type(Some("image/gif")),
        plain().order(&["height", "image", "width"]),
        plain().order(&["width", "height", "image"]).part_type(Some("image/webp")),
        plain().boundary("b").quoted_boundary(),
        plain().boundary("0123456789012345678901234567890123456789012345678901234567890123456789"),
        plain().preamble("a preamble").epilogue("\r\nan epilogue"),
        Form::crop(image, format!(" 0{width} "), format!("000{height}\t")),
        plain().field("upscale", "2").field("seed", "7"),
        plain().edit("image", |part| part.headers.push("Content-Transfer-Encoding: binary".to_owned())),
        plain().edit("width", |part| part.headers.push("X-Of-The-Client: 1".to_owned())),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_of_a_request_is_one_key_and_is_paid_for_once() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let image = images::photo_png();
    let key = key_of(image, 120, 80);
    let mut urls = std::collections::BTreeSet::new();
    let mut first = true;
    for (number, form) in every_shape(image, 120, 80).into_iter().enumerate() {
        let call = Call::crop(&granary.url(), None, &form);
        let length = call.body_len();
        let ways = [
            call.send().await,
            call.send_chunked(length).await,
            call.send_chunked(8191 + number).await,
            call.send_split(&[1, 60, 61, length / 3, length - 3, length - 1]).await,
        ];
        for answer in ways {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200, "{form:.300?}: {}", answer.text());
            assert_eq!(answer.header("granary-key"), Some(key.as_str()), "{form:.300?}");
            let expected = if first {
                "granary; fwd=uri-miss; fwd-status=200; stored"
            } else {
                "granary; hit; detail=memory"
            };
            assert_eq!(cache_status(&answer), expected, "{form:.300?}");
            urls.insert(answer.result_url());
            first = false;
        }
    }
    assert_eq!((urls.len(), upstream.charges()), (1, 1));
    assert_eq!(upstream.charges_by_key().keys().collect::<Vec<_>>(), [&key]);
    let found = client::get(&format!("{}{CROP_PATH}/{key}", granary.url())).await.unwrap();
    assert_eq!(Some(&found.result_url()), urls.first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_byte_of_the_picture_and_either_number_is_another_key() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let image = images::tiny_png(30, 20, 1);
    let longer = images::padded(&image, image.len() + 1);
    let mut flipped = image.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let different = [
        (&image, 120, 80),
        (&image, 80, 120),
        (&image, 121, 80),
        (&image, 120, 81),
        (&longer, 120, 80),
        (&flipped, 120, 80),
    ];
    for (image, width, height) in different {
        let answer = granary.crop(None, image, width, height).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("granary-key"), Some(key_of(image, width, height).as_str()));
    }
    assert_eq!(upstream.charges(), different.len() as u64);
    assert!(upstream.charges_by_key().values().all(|&charges| charges == 1));
}
