//! The fake is held to what it claims: it is the authority on money in every other test.

use std::io;
use std::time::Duration;

use ailabtools::FileInput;
use ailabtools::generated::params::{CommonQueryCreditsParams, ImageAIImageCroppingParams};

use super::*;
use crate::client::{Answer, Call, RawConnection, get, head, post_form};
use crate::form::Form;

fn png(seed: u64) -> Vec<u8> {
    picture::draw(seed, 32, 24, picture::Format::Png)
}

async fn crop(fake: &FakeAilab, image: &[u8], width: u32, height: u32) -> io::Result<Answer> {
    let key = fake.api_key();
    post_form(&fake.base_url(), key.as_str(), &Form::curl(image, width, height)).await
}

#[tokio::test]
async fn the_official_client_gets_a_crop_and_its_picture() {
    let fake = FakeAilab::start().await;
    let client = ailabtools::Client::builder(fake.api_key()).base_url(fake.base_url()).build().unwrap();
    let jpeg = picture::draw(9, 64, 64, picture::Format::Jpeg);
    let file = FileInput::from_bytes(jpeg.clone(), "image.jpg", Some("image/jpeg"));
    let answer =
        client.image.image_ai_image_cropping(ImageAIImageCroppingParams::new(file, 40, 30)).await.unwrap();
    let data = answer.data.unwrap();
    let url = data.url.unwrap();
    assert_eq!(data.retain_location.unwrap()["width"], 40);
    assert_eq!(answer.error_code, Some(0));

    let result = get(&url).await.unwrap();
    let picture = image::load_from_memory(&result.body).unwrap();
    assert_eq!((picture.width(), picture.height()), (40, 30));
    assert_eq!(image::guess_format(&result.body).unwrap(), image::ImageFormat::Jpeg);
    assert_eq!(result.body, fake.result_bytes(1));
    assert_eq!(result.header("content-type"), Some("image/jpeg"));

    let credits = client.common.common_query_credits(CommonQueryCreditsParams::new()).await.unwrap();
    let rows = credits.data.unwrap();
    assert_eq!(rows[0].unique_sign.as_deref(), Some("image_cropping"));
    assert_eq!(rows[0].balance, Some(999_997.0));

    let seen = fake.seen();
    assert_eq!(seen[0].part("image").unwrap().bytes, jpeg);
    assert_eq!(seen[0].part("image").unwrap().filename.as_deref(), Some("image.jpg"));
    assert!(seen[0].complete && seen[0].charged);
}

#[tokio::test]
async fn head_lines_are_kept_as_they_were_sent() {
    let fake = FakeAilab::start().await;
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 20, 20))
        .header("X-OdD", "1");
    assert_eq!(call.send().await.unwrap().status, 200);
    let head = &fake.seen()[0].head;
    assert!(call.to_bytes().starts_with(&head.raw));
    let names: Vec<_> = head.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Host", "Content-Type", "ailabapi-api-key", "X-OdD", "Content-Length"]);
}

#[tokio::test]
async fn the_answer_is_the_documented_envelope_in_the_order_of_the_wire() {
    let fake = FakeAilab::start().await;
    let text = crop(&fake, &png(1), 40, 30).await.unwrap().text();
    let places: Vec<_> = [
        "\"data\"",
        "\"url\"",
        "\"retain_location\"",
        "\"error_code\":0",
        "\"error_detail\"",
        "\"error_msg\":\"\"",
        "\"log_id\":\"",
        "\"request_id\":\"",
    ]
    .iter()
    .map(|field| text.find(field).unwrap_or_else(|| panic!("{field} in {text}")))
    .collect();
    assert!(places.is_sorted(), "{text}");
}

#[tokio::test]
async fn two_purchases_of_one_key_are_two_charges_and_two_pictures() {
    let fake = FakeAilab::start().await;
    let first = crop(&fake, &png(1), 40, 30).await.unwrap();
    let second = crop(&fake, &png(1), 40, 30).await.unwrap();
    let bytes = [get(&first.result_url()).await.unwrap().body, get(&second.result_url()).await.unwrap().body];
    assert_ne!(bytes[0], bytes[1]);
    assert_eq!(fake.charges(), 2);
    assert_eq!(fake.charges_by_key().into_values().collect::<Vec<_>>(), [2]);
    let key = blake3::hash(&[&png(1)[..], &40_u32.to_le_bytes(), &30_u32.to_le_bytes()].concat());
    assert_eq!(fake.purchases()[0].key, key.to_hex().as_str());
    assert_eq!(fake.balance().0, 1_000_000 - 6);
}

#[tokio::test]
async fn a_wrong_missing_or_doubled_key_is_401_and_free() {
    let fake = FakeAilab::start().await;
    fake.on_next(Behaviour::refuse(500, "UNKNOWN_ERROR"));
    let form = Form::crop(png(1), 40, 30);
    let doubled = Call::crop(&fake.base_url(), fake.api_key().as_str(), &form)
        .header("ailabapi-api-key", &fake.api_key());
    for answer in [
        post_form(&fake.base_url(), "wrong", &form).await.unwrap(),
        post_form(&fake.base_url(), None, &form).await.unwrap(),
        doubled.send().await.unwrap(),
        get(&format!("{}/api/common/query-credits", fake.base_url())).await.unwrap(),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (401, "ERROR_USER_NOT_EXISTS"));
        assert_eq!(answer.json()["error_code"], 401);
    }
    let old = fake.api_key();
    fake.rotate_key();
    assert_eq!(post_form(&fake.base_url(), old.as_str(), &form).await.unwrap().status, 401);
    assert_eq!((fake.charges(), fake.attempts()), (0, 4));
    // The script was not used up by requests that never got so far.
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().status, 500);
}

#[tokio::test]
async fn a_request_cut_before_its_closing_boundary_is_not_charged() {
    let fake = FakeAilab::start().await;
    let call =
        Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30).epilogue(""));
    let mut total = 0;
    for (n, sent) in (1..).zip([0, 1, 100, call.body_len() - 1]) {
        let connection = call.send_part(sent).await.unwrap();
        total += sent as u64;
        fake.wait_until("the part", |s| s.attempts == n && s.body_bytes == total).await;
        drop(connection);
        fake.wait_for_idle().await;
    }
    let stats = fake.stats();
    assert_eq!((stats.attempts, stats.fully_received, stats.charges), (4, 0, 0));
    assert!(fake.seen().iter().all(|seen| !seen.complete && !seen.charged));
    assert_eq!(fake.seen()[3].body.len(), call.body_len() - 1);

    // The right length without a closing boundary is not whole either, and the last byte makes the difference.
    let unclosed = Form::crop(png(1), 40, 30).unclosed();
    assert_eq!(post_form(&fake.base_url(), fake.api_key().as_str(), &unclosed).await.unwrap().status, 400);
    assert_eq!((fake.fully_received(), fake.charges()), (0, 0));
    let mut connection = call.send_part(call.body_len() - 1).await.unwrap();
    connection.send(b"-").await.unwrap();
    assert_eq!(connection.read_answer(false).await.unwrap().status, 200);
    assert_eq!((fake.fully_received(), fake.charges()), (1, 1));
}

#[tokio::test]
async fn a_chunked_upload_is_whole_only_with_its_last_chunk() {
    let fake = FakeAilab::start().await;
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    assert_eq!(call.send_chunked(7).await.unwrap().status, 200);
    let mut cut = RawConnection::open(&fake.base_url()).await.unwrap();
    let head = String::from_utf8_lossy(&fake.seen()[0].head.raw).into_owned();
    let body = call.to_bytes().split_off(call.to_bytes().len() - call.body_len());
    cut.send(format!("{head}{:x}\r\n", body.len()).as_bytes()).await.unwrap();
    cut.send(&body).await.unwrap();
    fake.wait_until("both bodies", |s| s.body_bytes == 2 * call.body_len() as u64).await;
    drop(cut);
    fake.wait_for_idle().await;
    assert_eq!(fake.charges(), 1);
}

#[tokio::test]
async fn a_held_request_is_paid_and_waits_for_its_release() {
    let fake = FakeAilab::start().await;
    fake.always(Behaviour::Hold);
    let (image, other) = (png(1), png(2));
    let (one, two, ()) = tokio::join!(crop(&fake, &image, 40, 30), crop(&fake, &other, 40, 30), async {
        fake.wait_for_held(2).await;
        assert_eq!((fake.charges(), fake.in_flight()), (2, 2));
        fake.release_one();
        fake.wait_until("one answered", |s| s.held == 1).await;
        fake.release();
    });
    assert_eq!((one.unwrap().status, two.unwrap().status), (200, 200));
    fake.wait_for_idle().await;

    // A release is for those that were there. A peer that leaves is noticed, and its charge stands.
    let key = fake.api_key();
    let call = Call::crop(&fake.base_url(), key.as_str(), &Form::crop(&image, 40, 30));
    let gone = call.send_part(call.body_len()).await.unwrap();
    fake.wait_for_held(1).await;
    drop(gone);
    assert_eq!(fake.wait_for_idle().await.charges, 3);
    assert_eq!(fake.stats().max_in_flight, 2);
}

#[tokio::test]
async fn a_release_reaches_a_request_whose_body_is_still_on_its_way() {
    let fake = FakeAilab::start().await;
    fake.on_next(Behaviour::Hold);
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    let mut connection = call.send_part(100).await.unwrap();
    fake.wait_for_in_flight(1).await;
    fake.release();
    connection.send(&call.to_bytes()[call.to_bytes().len() - call.body_len() + 100..]).await.unwrap();
    assert_eq!(connection.read_answer(false).await.unwrap().status, 200);
}

#[tokio::test]
async fn refusals_are_envelopes_and_free() {
    let fake = FakeAilab::start().await;
    let script = [
        (Behaviour::refuse(422, "FILE_DECODING_FAILURE"), 422, "FILE_DECODING_FAILURE"),
        (
            Behaviour::RefuseEarly { status: 503, code: "AI_SERVICE_ERROR".to_owned() },
            503,
            "AI_SERVICE_ERROR",
        ),
        (Behaviour::NoCredits, 429, "ERROR_NOT_ENOUGH_CREDITS"),
        (Behaviour::KeyRefused, 401, "ERROR_USER_NOT_EXISTS"),
        (Behaviour::FlowLimit { status: 429, retry_after: Some(7) }, 429, "EXCEEDING_LIMITS"),
        (Behaviour::FlowLimit { status: 503, retry_after: None }, 503, "AI_SERVICE_FLOW_RESTRICTION"),
    ];
    for (behaviour, status, code) in script {
        assert!(!behaviour.charges());
        fake.on_next(behaviour);
        let answer = crop(&fake, &png(1), 40, 30).await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        let json = answer.json();
        assert_eq!(
            (&json["error_detail"]["status_code"], &json["error_code_str"]),
            (&status.into(), &code.into())
        );
        assert_eq!(
            answer.header("retry-after"),
            (status == 429 && code == "EXCEEDING_LIMITS").then_some("7")
        );
    }
    fake.on_next(Behaviour::Redirect("http://127.0.0.1:1/".to_owned()));
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().header("location"), Some("http://127.0.0.1:1/"));
    assert_eq!((fake.charges(), fake.attempts(), fake.fully_received()), (0, 7, 6));
}

#[tokio::test]
async fn bad_fields_are_refused_as_the_service_does() {
    let fake = FakeAilab::start().await;
    let image = png(1);
    let form = || Form::crop(&image, 40, 30);
    for (form, code) in [
        (form().without("image"), "UNSUPPORTED_PARAMETER_VALUES"),
        (form().without("width"), "UNSUPPORTED_PARAMETER_VALUES"),
        (form().duplicate("height"), "ERROR_PARAMETERS"),
        (Form::crop(&image, 9, 30), "ERROR_INVALID_PARAMETER"),
        (Form::crop(&image, 40, 2001), "ERROR_INVALID_PARAMETER"),
        (Form::crop(&image, "4x", 30), "ERROR_INVALID_PARAMETER"),
        (Form::crop(b"GIF89a", 40, 30), "UNSUPPORTED_FILE_TYPES"),
        (Form::crop([&image[..], &[0; 3_670_016]].concat(), 40, 30), "FILE_SIZE_EXCEEDS_LIMIT"),
    ] {
        let answer = post_form(&fake.base_url(), fake.api_key().as_str(), &form).await.unwrap();
        assert_eq!(answer.code(), code, "{}", answer.text());
    }
    assert_eq!(fake.charges(), 0);
    let lost = get(&format!("{}/api/image/editing/photo-retouching", fake.base_url())).await.unwrap();
    assert_eq!((lost.status, lost.code().as_str()), (404, "ERROR_AI_NOT_EXISTS"));
}

#[tokio::test]
async fn cuts_come_where_they_were_asked_for() {
    let fake = FakeAilab::start().await;
    fake.on_next(Behaviour::CutBeforeAnswer);
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(fake.charges(), 1);

    for sent in [20, 300] {
        fake.on_next(Behaviour::CutMidAnswer(sent));
        let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
        let mut connection = call.send_part(call.body_len()).await.unwrap();
        assert_eq!(connection.read_to_close().await.unwrap().len(), sent);
    }
    assert_eq!(fake.charges(), 3);

    fake.on_next(Behaviour::ResetDuringUpload(50));
    assert!(crop(&fake, &png(1), 40, 30).await.is_err());
    fake.wait_for_idle().await;
    assert_eq!(fake.seen().last().unwrap().body.len(), 50);
    assert_eq!((fake.charges(), fake.fully_received()), (3, 3));

    fake.on_next(Behaviour::StallMidAnswer(20));
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    let mut connection = call.send_part(call.body_len()).await.unwrap();
    fake.wait_for_held(1).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), connection.read_to_close()).await.is_err());
    drop(connection);
    assert_eq!(fake.wait_for_idle().await.charges, 4);

    fake.on_next(Behaviour::NeverAnswer);
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    let connection = call.send_part(call.body_len()).await.unwrap();
    fake.wait_for_held(1).await;
    drop(connection);
    assert_eq!(fake.wait_for_idle().await.charges, 5);
}

#[tokio::test]
async fn odd_answers_are_odd_in_the_way_they_say() {
    let fake = FakeAilab::start().await;
    fake.on_next(Behaviour::NewEnvelope);
    let json = crop(&fake, &png(1), 40, 30).await.unwrap().json();
    assert!(
        json.get("error_code").is_none()
            && json.get("error_msg").is_none()
            && json["error_detail"].get("status_code").is_none()
    );
    assert!(json["data"]["url"].as_str().unwrap().starts_with(&fake.result_host()));

    fake.on_next(Behaviour::ExtraFields);
    let answer = crop(&fake, &png(1), 40, 30).await.unwrap();
    assert!(answer.text().contains(ODD_RETAIN_LOCATION));
    assert_eq!(answer.json()["data"]["retain_location"]["x"], -156);
    assert_eq!(get(&answer.result_url()).await.unwrap().status, 200);

    fake.on_next(Behaviour::UrlOverride("http://10.0.0.1/x\"y".to_owned()));
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().result_url(), "http://10.0.0.1/x\"y");

    fake.on_next(Behaviour::raw(200, "text/html", "<h1>hello"));
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().text(), "<h1>hello");
    assert_eq!(fake.charges(), 4);
    fake.on_next(Behaviour::raw(502, "", "bad gateway"));
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().header("content-type"), None);
    assert_eq!(fake.charges(), 4);

    fake.on_next(Behaviour::Bytes(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 No\r\n\r\n".to_vec()));
    let answer = crop(&fake, &png(1), 40, 30).await.unwrap();
    assert_eq!((answer.interim, answer.status), (vec![103], 204));

    fake.on_next(Behaviour::Delay(Duration::from_millis(1)));
    fake.on_next(Behaviour::Drip(Duration::from_micros(1)));
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().status, 200);
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_empty_account_refuses_by_itself() {
    let fake = FakeAilab::start().await;
    fake.set_balance(4, 3);
    for status in [200, 200, 429] {
        assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().status, status);
    }
    assert_eq!((fake.balance(), fake.charges()), ((1, 0), 2));
}

#[tokio::test]
async fn results_misbehave_as_scripted() {
    let fake = FakeAilab::start().await;
    let url = crop(&fake, &png(1), 40, 30).await.unwrap().result_url();
    let picture = fake.result_bytes(1);
    assert_eq!(get(&url).await.unwrap().body, picture);
    assert_eq!(head(&url).await.unwrap().header("content-length"), Some(picture.len().to_string().as_str()));

    // One escape undone, and the signature no longer fits.
    assert_eq!(get(&url.replace("%2F", "/")).await.unwrap().status, 403);
    assert!(get(&format!("{}/", fake.result_host())).await.unwrap().text().contains("SignatureDoesNotMatch"));

    let next = |behaviour| fake.on_next_result(behaviour);
    next(ResultBehaviour::NotFound);
    assert!(get(&url).await.unwrap().text().contains("NoSuchKey"));
    next(ResultBehaviour::Forbidden);
    assert_eq!(get(&url).await.unwrap().status, 403);
    next(ResultBehaviour::Html);
    assert_eq!(get(&url).await.unwrap().header("content-type"), Some("text/html"));
    next(ResultBehaviour::ContentType("text/plain".to_owned()));
    assert_eq!(get(&url).await.unwrap().header("content-type"), Some("text/plain"));
    next(ResultBehaviour::Redirect("http://127.0.0.1:1/".to_owned()));
    assert_eq!(get(&url).await.unwrap().status, 302);
    next(ResultBehaviour::WrongSize(11, 12));
    assert_eq!(image::load_from_memory(&get(&url).await.unwrap().body).unwrap().width(), 11);
    next(ResultBehaviour::Drip { bytes: 50, every: Duration::from_micros(1) });
    assert_eq!(get(&url).await.unwrap().body, picture);
    next(ResultBehaviour::Raw {
        status: 200,
        headers: vec![("Content-Encoding".into(), "gzip".into())],
        body: vec![1],
    });
    assert_eq!(get(&url).await.unwrap().header("content-encoding"), Some("gzip"));
    next(ResultBehaviour::Truncate(30));
    assert_eq!(get(&url).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    next(ResultBehaviour::Reset);
    assert_eq!(get(&url).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    next(ResultBehaviour::TooLarge(1_000_000));
    assert_eq!(get(&url).await.unwrap().body.len(), 1_000_000);

    let raw = async |behaviour| {
        next(behaviour);
        let mut connection = RawConnection::open(&url).await.unwrap();
        connection.send(&Call::new("GET", &url).to_bytes()).await.unwrap();
        connection
    };
    let longer = raw(ResultBehaviour::LongerThanDeclared(5)).await.read_to_close().await.unwrap();
    let plain = raw(ResultBehaviour::Truncate(usize::MAX)).await.read_to_close().await.unwrap();
    assert_eq!(longer.len(), plain.len() + 1 + 5);

    let mut endless = raw(ResultBehaviour::Endless).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), endless.read_answer(false)).await.is_err());
    let mut stall = raw(ResultBehaviour::Stall(30)).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), stall.read_answer(false)).await.is_err());
    let mut hang = raw(ResultBehaviour::Hang).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), hang.read_answer(false)).await.is_err());

    fake.expire_all();
    assert_eq!(get(&url).await.unwrap().status, 403);
    assert_eq!(fake.fetches() as usize, fake.fetched().len());
    assert_eq!(fake.fetched()[0].all("ailabapi-api-key"), Vec::<&str>::new());
    assert_eq!(url.matches(&fake.last_signature().unwrap()).count(), 1);
}

#[tokio::test]
async fn it_goes_down_and_comes_back_with_its_memory() {
    let mut fake = FakeAilab::start().await;
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().status, 200);
    fake.go_down().await;
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    fake.come_back().await;
    assert_eq!(crop(&fake, &png(1), 40, 30).await.unwrap().status, 200);
    fake.results_go_down().await;
    assert!(get(&fake.purchases()[0].url).await.is_err());
    fake.results_come_back().await;
    assert_eq!(get(&fake.purchases()[0].url).await.unwrap().status, 200);
    assert_eq!(fake.charges(), 2);
}

#[tokio::test]
async fn a_connection_serves_several_requests() {
    let fake = FakeAilab::start().await;
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    let mut connection = RawConnection::open(&fake.base_url()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(connection.call(&call).await.unwrap().status, 200);
    }
    assert_eq!(call.send().await.unwrap().status, 200);
    assert_eq!(fake.seen().iter().map(|s| s.connection).collect::<Vec<_>>(), [0, 0, 1]);
}

#[tokio::test]
async fn a_hundred_is_sent_when_asked_for_and_only_then() {
    let fake = FakeAilab::start().await;
    let call = Call::crop(&fake.base_url(), fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    assert!(call.send().await.unwrap().interim.is_empty());
    let expected = call.send_expecting_continue().await.unwrap();
    assert!(expected.continued && expected.answer.status == 200);
    fake.on_next(Behaviour::RefuseEarly { status: 413, code: "FILE_SIZE_EXCEEDS_LIMIT".to_owned() });
    let expected = call.send_expecting_continue().await.unwrap();
    assert!(!expected.continued && expected.answer.status == 413);
    assert_eq!(call.send_split(&[1, 50, 51]).await.unwrap().status, 200);
    assert_eq!(fake.charges(), 3);
}

#[tokio::test]
async fn a_dropped_fake_is_gone_with_its_connections() {
    let fake = FakeAilab::start().await;
    fake.always(Behaviour::Hold);
    let (api, results) = (fake.base_url(), fake.result_host());
    let call = Call::crop(&api, fake.api_key().as_str(), &Form::crop(png(1), 40, 30));
    let mut held = call.send_part(call.body_len()).await.unwrap();
    let mut idle = RawConnection::open(&results).await.unwrap();
    fake.wait_for_held(1).await;
    drop(fake);
    assert_eq!(held.read_to_close().await.unwrap_or_default(), b"");
    assert_eq!(idle.read_to_close().await.unwrap_or_default(), b"");
    for url in [api, results] {
        assert_eq!(get(&url).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
