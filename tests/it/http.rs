//! HTTP as clients, browsers and caches rely on it: results as files for ever, CORS, expectations,
//! early refusals, the clocks of a connection, and the headers that say where an answer came from.

use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, CROP_PATH, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::GranaryProcess;
use image::ImageFormat;

use crate::harness::{Granary, cache_status, team, within};

const CREDITS_PATH: &str = "/api/common/query-credits";
/// A page that may call.
const APP: &str = "https://app.example.com";

/// Headers that differ from one call to the next.
const OF_THE_CALL: [&str; 3] = ["x-request-id", "server-timing", "date"];

fn form() -> Form {
    Form::curl(images::photo_jpeg(), 300, 200)
}

async fn buy(granary: &Granary, token: Option<&str>) -> Answer {
    let answer = client::post_form(&granary.url(), token, &form()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// The headers by name, without those of the call.
fn headers(answer: &Answer) -> Vec<(String, String)> {
    let lower = |(name, value): &(String, String)| (name.to_ascii_lowercase(), value.clone());
    let mut headers: Vec<_> = answer.head.headers.iter().map(lower).collect();
    headers.retain(|(name, _)| !OF_THE_CALL.contains(&name.as_str()));
    headers.sort();
    headers
}

// Results: files for ever.

#[tokio::test]
async fn head_answers_as_get_does_without_the_body() {
    let (web, token) = team("web", "");
    let granary = Granary::builtin(&web).await;
    let bought = buy(&granary, Some(&token)).await;
    let key = bought.header("granary-key").unwrap();
    for (url, status) in [
        (bought.result_url(), 200),
        (format!("{}/results/{}.png", granary.url(), "0".repeat(64)), 404),
        (format!("{}{CROP_PATH}/{key}", granary.url()), 200),
        (format!("{}{CROP_PATH}/{}", granary.url(), "0".repeat(64)), 404),
        (format!("{}{CREDITS_PATH}", granary.url()), 200),
        (format!("{}/", granary.url()), 200),
        (format!("{}/elsewhere", granary.url()), 404),
        (format!("{}{CROP_PATH}", granary.url()), 405),
    ] {
        let [get, head] =
            ["GET", "HEAD"].map(|method| Call::new(method, &url).header("ailabapi-api-key", &token));
        let (get, head) = (get.send().await.unwrap(), head.send().await.unwrap());
        assert_eq!((get.status, head.status), (status, status), "{url}");
        assert_eq!(headers(&get), headers(&head), "{url}");
        assert_eq!(get.header("content-length"), Some(get.body.len().to_string().as_str()), "{url}");
        assert!(!get.body.is_empty() && head.body.is_empty(), "{url}");
        for name in OF_THE_CALL {
            assert!(get.header(name).is_some() && head.header(name).is_some(), "{name} of {url}");
        }
    }
    let url = format!("{}{CREDITS_PATH}", granary.url());
    let [get, head] = [client::get(&url).await.unwrap(), client::head(&url).await.unwrap()];
    assert_eq!((get.status, headers(&get)), (401, headers(&head)));
}

#[tokio::test]
async fn a_result_says_what_it_is_and_may_be_kept_for_ever() {
    let granary = Granary::builtin("").await;
    for (format, extension, content_type) in [
        (ImageFormat::Jpeg, "jpg", "image/jpeg"),
        (ImageFormat::Png, "png", "image/png"),
        (ImageFormat::WebP, "webp", "image/webp"),
        // What the engine makes of it.
        (ImageFormat::Bmp, "png", "image/png"),
    ] {
        let picture = images::solid(format, 60, 40, [200, 90, 30]);
        let bought = granary.crop(None, &picture, 20, 20).await;
        let url = bought.result_url();
        let answer = client::get(&url).await.unwrap();
        assert_eq!(answer.status, 200);
        let digest = blake3::hash(&answer.body).to_hex();
        assert_eq!(url, format!("{}/results/{digest}.{extension}", granary.url()));
        for (name, value) in [
            ("content-type", content_type),
            ("etag", &format!("\"{digest}\"")),
            ("cache-control", "public, max-age=31536000, immutable"),
            ("accept-ranges", "bytes"),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; sandbox"),
            ("content-disposition", &format!("inline; filename=\"{digest}.{extension}\"")),
        ] {
            assert_eq!(answer.headers(name), [value], "{name}");
        }
        let header = [&answer.body[..4], &answer.body[answer.body.len() - 4..]].concat();
        assert_eq!(image::guess_format(&answer.body).unwrap().to_mime_type(), content_type, "{header:?}");
    }
}

#[tokio::test]
async fn who_has_a_result_already_is_told_so() {
    let granary = Granary::builtin("").await;
    let url = buy(&granary, None).await.result_url();
    let whole = client::get(&url).await.unwrap();
    let tag = whole.header("etag").unwrap();
    let [weak, listed] = [format!("W/{tag}"), format!("\"a\", {tag} , W/\"b\"")];
    for (value, status) in [
        (tag, 304),
        (&weak, 304),
        (&listed, 304),
        ("*", 304),
        ("\"other\"", 200),
        ("W/\"other\"", 200),
        (&tag.replace('"', ""), 200),
        ("", 200),
    ] {
        for method in ["GET", "HEAD"] {
            let call = Call::new(method, &url).header("If-None-Match", value);
            // The condition is looked at before the range is.
            for call in [call.clone(), call.header("Range", "bytes=0-0")] {
                let answer = call.send().await.unwrap();
                if status == 304 {
                    assert_eq!((answer.status, answer.body.len()), (304, 0), "{method} {value}");
                    assert_eq!(answer.header("etag"), Some(tag));
                    assert_eq!(answer.header("cache-control"), whole.header("cache-control"));
                    // Of the result, if any: caches update what they have by it.
                    let length = answer.header("content-length");
                    assert!(length.is_none() || length == whole.header("content-length"), "{answer:?}");
                } else {
                    assert!(matches!(answer.status, 200 | 206), "{method} {value}: {answer:?}");
                }
            }
        }
    }
    // Two lines are one list.
    let two = Call::new("GET", &url).header("If-None-Match", "\"a\"").header("If-None-Match", tag);
    assert_eq!(two.send().await.unwrap().status, 304);
}

#[tokio::test]
async fn one_range_of_a_result_is_cut_out_and_anything_else_is_the_whole() {
    let granary = Granary::builtin("").await;
    let url = buy(&granary, None).await.result_url();
    let whole = client::get(&url).await.unwrap();
    let all = whole.body.as_slice();
    let (length, last) = (all.len(), all.len() - 1);
    let tag = whole.header("etag").unwrap();
    let ask = async |method: &str, range: &str, if_range: Option<&str>| {
        let call = Call::new(method, &url).header("Range", range);
        let call = if_range.into_iter().fold(call, |call, value| call.header("If-Range", value));
        call.send().await.unwrap()
    };
    for (range, from, to) in [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-199", 100, 199),
        ("bytes=5-", 5, last),
        ("bytes=-7", length - 7, last),
        ("bytes=0-99999999", 0, last),
        (&format!("bytes={last}-{last}"), last, last),
        (&format!("bytes=-{}", length + 1000), 0, last),
        ("Bytes=1-2", 1, 2),
    ] {
        let answer = ask("GET", range, None).await;
        assert_eq!((answer.status, answer.body.as_slice()), (206, &all[from..=to]), "{range}");
        assert_eq!(answer.header("content-range"), Some(format!("bytes {from}-{to}/{length}").as_str()));
        assert_eq!(answer.header("content-length"), Some((to - from + 1).to_string().as_str()));
        for name in ["etag", "content-type", "cache-control", "x-content-type-options"] {
            assert_eq!(answer.header(name), whole.header(name), "{name}");
        }
    }
    for range in [format!("bytes={length}-"), format!("bytes={length}-{}", length + 5), "bytes=-0".to_owned()]
    {
        let answer = ask("GET", &range, None).await;
        assert_eq!((answer.status, answer.body.len()), (416, 0), "{range}");
        assert_eq!(answer.header("content-range"), Some(format!("bytes */{length}").as_str()));
        assert_eq!(answer.header("cache-control"), Some("no-store"), "an error is not kept: {answer:?}");
        assert_eq!(answer.header("content-type"), None, "there is no content: {answer:?}");
    }
    for range in [
        "bytes=0-1,5-9",
        "bytes=0-1, 3-3, 5-9",
        "bytes=9-2",
        "bytes=a-b",
        "bytes=",
        "bytes=0x0-0x5",
        "bytes 0-5",
        "pages=0-5",
        "bytes=0-99999999999999999999999999999999999",
        &format!("bytes={}", "0-0,".repeat(2000)),
    ] {
        let answer = ask("GET", range, None).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, all), "{range}");
        assert_eq!(answer.header("content-range"), None, "{range}");
    }
    assert_eq!(ask("GET", "bytes=0-4", Some(tag)).await.status, 206);
    for if_range in ["\"other\"", &format!("W/{tag}"), "Sun, 22 Nov 2026 00:00:00 GMT", "*", ""] {
        assert_eq!(ask("GET", "bytes=0-4", Some(if_range)).await.status, 200, "{if_range}");
    }
    // Ranges are defined for GET alone.
    let head = ask("HEAD", "bytes=0-4", None).await;
    assert_eq!((head.status, headers(&head)), (200, headers(&whole)));
}

#[tokio::test]
async fn a_name_of_another_grammar_reaches_no_store() {
    let granary = Granary::builtin("").await;
    // Whatever is asked of store or ledger from here on fails.
    for folder in ["results", "records"] {
        std::fs::remove_dir_all(granary.store_path().join(folder)).unwrap();
    }
    granary.ledger_file().execute_batch("ALTER TABLE calls RENAME TO hidden").unwrap();
    let digest = "0123456789abcdef".repeat(4);
    let get = async |path: String| client::get(&format!("{}{path}", granary.url())).await.unwrap();
    assert_eq!(get(format!("/results/{digest}.png")).await.status, 503, "the control");
    assert_eq!(get(format!("{CROP_PATH}/{digest}")).await.status, 503, "the control");
    let upper = digest.to_uppercase();
    for wrong in [
        &digest[1..],
        &format!("{digest}0"),
        &upper,
        &digest.replace('0', "g"),
        &digest.replace('0', "%ff"),
        "%00",
        "%ff",
        "..",
        "..%2f..%2fstate%2fledger.sqlite",
        "%2e%2e%2frecords",
        &"a".repeat(1500),
        "*",
        "%F0%9F%98%80",
    ] {
        // A key may be written in either case.
        let look_up = (*wrong != *upper).then(|| format!("{CROP_PATH}/{wrong}"));
        for path in [format!("/results/{wrong}.png"), format!("/results/{wrong}")].into_iter().chain(look_up)
        {
            let answer = get(path.clone()).await;
            let expected = if path.starts_with("/results") {
                "ERROR_FILE_NOT_FOUND"
            } else {
                "ERROR_RESOURCE_NOT_FOUND"
            };
            assert_eq!((answer.status, answer.code().as_str()), (404, expected), "{path}: {}", answer.text());
        }
    }
    for extension in ["jpeg", "PNG", "gif", "svg", "png.html", "", "png%00", "png%20", "bmp.png"] {
        let answer = get(format!("/results/{digest}.{extension}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "ERROR_FILE_NOT_FOUND"), "{extension}");
    }
}

// CORS.

/// The origins that may read an answer, and what of it.
fn cors(answer: &Answer) -> (Vec<&str>, String) {
    let exposed = answer.headers("access-control-expose-headers").join(",").to_ascii_lowercase();
    (answer.headers("access-control-allow-origin"), exposed)
}

#[tokio::test]
async fn pages_of_the_configured_origins_may_call_and_read_errors_too() {
    let (web, token) = team("web", "daily_credits = 3");
    let config = format!("[server]\ncors_origins = [\"{APP}\", \"https://b.example.com\"]\n{web}");
    let granary = Granary::builtin(&config).await;
    let url = granary.url();
    let crop = |token: Option<&str>, form: Form| Call::crop(&url, token, &form);
    let other = Form::curl(images::photo_png(), 50, 50);
    let too_large = Form::curl(images::padded(images::photo_png(), 5_000_000), 50, 50);
    for (status, call) in [
        (200, crop(Some(&token), form())),
        (200, crop(Some(&token), form())),
        (401, crop(None, form())),
        (404, Call::new("GET", &format!("{url}/elsewhere"))),
        (404, Call::new("GET", &format!("{url}{CROP_PATH}/none")).header("ailabapi-api-key", &token)),
        (405, Call::new("GET", &format!("{url}{CROP_PATH}"))),
        (413, crop(Some(&token), too_large)),
        (417, crop(Some(&token), form()).header("Expect", "more")),
        (429, crop(Some(&token), other)),
        (200, Call::new("GET", &format!("{url}{CREDITS_PATH}")).header("ailabapi-api-key", &token)),
        (200, Call::new("GET", &url)),
    ] {
        for origin in [APP, "https://b.example.com"] {
            let answer = call.clone().header("Origin", origin).send().await.unwrap();
            assert_eq!(answer.status, status, "{call:?}: {}", answer.text());
            let (allowed, exposed) = cors(&answer);
            assert_eq!(allowed, [origin], "{status} {answer:?}");
            for name in [
                "retry-after",
                "cache-status",
                "granary-reason",
                "granary-key",
                "granary-credits-charged",
                "granary-credits-saved",
                "granary-ignored",
                "granary-upstream",
                "x-request-id",
            ] {
                assert!(
                    exposed.split(',').any(|exposed| exposed.trim() == name),
                    "{name} is not in {exposed}"
                );
            }
            assert_eq!(answer.headers("access-control-allow-credentials"), [""; 0]);
            assert!(
                answer.headers("vary").iter().any(|vary| vary.eq_ignore_ascii_case("origin")),
                "{answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn other_origins_are_never_allowed_nor_repeated() {
    let foreign = [
        "https://evil.example.net",
        "https://app.example.com.evil.example.net",
        "https://app.example.com:8443",
        "http://app.example.com",
        "https://APP.example.com/",
        "null",
        "*",
        "",
    ];
    let configured = Granary::builtin(&format!("[server]\ncors_origins = [\"{APP}\"]")).await;
    let without = Granary::builtin("").await;
    for (granary, origins) in [(&configured, &foreign[..]), (&without, &[APP, "null", ""][..])] {
        for origin in origins {
            for call in [
                Call::crop(&granary.url(), None, &form()),
                Call::new("GET", &format!("{}/elsewhere", granary.url())),
                preflight(&format!("{}{CROP_PATH}", granary.url()), "POST", "ailabapi-api-key"),
            ] {
                let answer = call.header("Origin", origin).send().await.unwrap();
                let allowed = answer
                    .head
                    .headers
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case("access-control-allow-origin"));
                assert_eq!(allowed, None, "{origin}");
            }
        }
    }
}

fn preflight(url: &str, method: &str, headers: &str) -> Call {
    Call::new("OPTIONS", url)
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", headers)
}

#[tokio::test]
async fn a_preflight_is_allowed_what_clients_send_and_needs_no_token() {
    let (web, _) = team("web", "");
    let granary = Granary::builtin(&format!("[server]\ncors_origins = [\"{APP}\"]\n{web}")).await;
    for (path, method) in [
        (CROP_PATH.to_owned(), "POST"),
        (format!("{CROP_PATH}/{}", "0".repeat(64)), "GET"),
        (CREDITS_PATH.to_owned(), "GET"),
        // The call itself is then told 404, which the page can read.
        ("/elsewhere".to_owned(), "POST"),
    ] {
        let wanted =
            ["ailabapi-api-key", "content-type", "authorization", "cache-control", "granary-refresh"];
        let call = preflight(&format!("{}{path}", granary.url()), method, &wanted.join(","));
        let answer = call.header("Origin", APP).send().await.unwrap();
        assert!(matches!(answer.status, 200 | 204), "{path}: {answer:?}");
        assert!(answer.body.is_empty());
        assert_eq!(answer.headers("access-control-allow-origin"), [APP], "{path}");
        let list = |name: &str| answer.headers(name).join(",").to_ascii_lowercase().replace(' ', "");
        let (methods, allowed) = (list("access-control-allow-methods"), list("access-control-allow-headers"));
        assert!(methods.split(',').any(|allowed| allowed == method.to_ascii_lowercase()), "{methods}");
        for name in wanted {
            assert!(allowed.split(',').any(|allowed| allowed == name), "{name} is not in {allowed}");
        }
    }
}

#[tokio::test]
async fn results_may_be_read_by_any_page() {
    let granary = Granary::builtin("").await;
    let url = buy(&granary, None).await.result_url();
    let missing = format!("{}/results/none.png", granary.url());
    for (url, status) in [(&url, 200), (&missing, 404)] {
        for origin in ["https://evil.example.net", "null"] {
            let answer = Call::new("GET", url).header("Origin", origin).send().await.unwrap();
            assert_eq!((answer.status, cors(&answer).0), (status, vec!["*"]));
            // For every origin the same, so that caches keep one copy.
            assert_eq!(answer.headers("vary"), [""; 0]);
        }
        let answer = preflight(url, "GET", "range,if-none-match").header("Origin", APP).send().await.unwrap();
        assert_eq!(cors(&answer).0, ["*"], "{answer:?}");
        let allowed = answer.headers("access-control-allow-headers").join(",").to_ascii_lowercase();
        assert!(allowed.contains("range") && allowed.contains("if-none-match"), "{answer:?}");
    }
}

#[tokio::test]
async fn options_of_its_own_says_what_a_path_allows() {
    for config in ["", "[server]\ncors_origins = [\"https://app.example.com\"]"] {
        let granary = Granary::builtin(config).await;
        for (path, allow) in [
            (CROP_PATH, "POST, OPTIONS"),
            (&format!("{CROP_PATH}/none"), "GET, HEAD, OPTIONS"),
            (CREDITS_PATH, "GET, HEAD, OPTIONS"),
            ("/results/none.png", "GET, HEAD, OPTIONS"),
            ("/", "GET, HEAD, OPTIONS"),
        ] {
            let answer = Call::new("OPTIONS", &format!("{}{path}", granary.url())).send().await.unwrap();
            assert_eq!((answer.status, answer.headers("allow")), (204, vec![allow]), "{path}");
            assert_eq!(answer.headers("content-length"), [""; 0], "a 204 has no content: {answer:?}");
        }
        let answer = Call::new("OPTIONS", &format!("{}/elsewhere", granary.url())).send().await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (404, "ERROR_AI_NOT_EXISTS"));
    }
}

// Expectations and early refusals.

#[tokio::test]
async fn what_the_head_forbids_is_refused_before_a_byte_of_the_body_is_asked_for() {
    let (web, token) = team("web", "");
    let (shut, shut_token) = team("shut", "disabled = true");
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, &format!("{web}\n{shut}")).await;
    let url = granary.url();
    let as_text = Call::new("POST", &format!("{url}{CROP_PATH}"))
        .header("ailabapi-api-key", &token)
        .header("Content-Type", "text/plain")
        .body(form().to_bytes());
    let too_large = Form::curl(images::padded(images::photo_jpeg(), 5_000_000), 10, 10);
    for (status, call) in [
        (401, Call::crop(&url, "not-a-token", &form())),
        (401, Call::crop(&url, None, &form())),
        (400, Call::crop(&url, Some(token.as_str()), &form()).header("Authorization", "Bearer other")),
        (403, Call::crop(&url, Some(shut_token.as_str()), &form())),
        (400, as_text),
        (413, Call::crop(&url, Some(token.as_str()), &too_large)),
        (404, Call::new("POST", &format!("{url}/api/image/editing/other")).body(form().to_bytes())),
        (405, Call::new("PUT", &format!("{url}{CROP_PATH}")).body(form().to_bytes())),
    ] {
        let expected = call.send_expecting_continue().await.unwrap();
        assert_eq!((expected.answer.status, expected.continued), (status, false), "{call:?}");
    }
    for value in ["a-miracle", "100-continue, a-miracle", "200-ok", ""] {
        let call = Call::crop(&url, Some(token.as_str()), &form()).header("Expect", value);
        let answer = call.send_until_answered().await.unwrap();
        assert_eq!((answer.status, answer.interim), (417, vec![]), "{value:?}");
    }
    let two = Call::crop(&url, Some(token.as_str()), &form()).header("Expect", "100-continue");
    let two = two.header("Expect", "a-miracle").send_until_answered().await.unwrap();
    assert_eq!((two.status, two.interim), (417, vec![]));
    assert_eq!(upstream.attempts(), 0);

    let good = Call::crop(&url, Some(token.as_str()), &form()).send_expecting_continue().await.unwrap();
    assert_eq!((good.answer.status, good.continued), (200, true));
    // A client that does not wait for the 100 is served all the same.
    let hasty = Call::crop(&url, Some(token.as_str()), &form()).header("Expect", "100-Continue");
    assert_eq!(hasty.send().await.unwrap().status, 200);
    assert_eq!(upstream.charges(), 1);
}

/// One thread, on which the server's tasks run in the order in which they were woken.
#[tokio::test]
async fn a_head_that_arrives_while_granary_stops_is_refused_before_its_body_is_asked_for() {
    let granary = Granary::builtin("").await;
    let url = granary.url();
    let call = Call::crop(&url, None, &form()).header("Expect", "100-continue").to_bytes();
    let (first, rest) = call.split_at(40);
    let mut connection = RawConnection::open(&url).await.unwrap();
    connection.send(first).await.unwrap();
    // Answered only after the half head has been read, because it was sent before.
    for _ in 0..3 {
        assert_eq!(client::get(&url).await.unwrap().status, 200);
    }
    let stopping = tokio::spawn(granary.stop());
    within("the listener to close", async {
        while RawConnection::open(&url).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let head_end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    connection.send(&rest[..head_end]).await.unwrap();
    let answer = connection.read_answer(false).await.unwrap();
    assert_eq!((answer.status, answer.interim.as_slice()), (503, &[][..]), "{}", answer.text());
    assert_eq!(answer.header("granary-reason"), Some("draining"));
    drop(connection);
    within("the end", stopping).await.unwrap();
}

/// A request in the body of another, and after it.
const CANARY: &str = "GET /canary HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_a_body_is_ever_taken_for_a_request() {
    let (web, token) = team("web", "");
    let (shut, shut_token) = team("shut", "disabled = true");
    let granary = Granary::builtin(&format!("{web}\n{shut}")).await;
    let url = granary.url();
    buy(&granary, Some(&token)).await;
    let crop =
        |token: &str| Call::new("POST", &format!("{url}{CROP_PATH}")).header("ailabapi-api-key", token);
    let multipart = |call: Call| call.header("Content-Type", "multipart/form-data; boundary=x");
    let look_up = format!("{url}{CROP_PATH}/{}", "0".repeat(64));
    let calls = [
        multipart(crop("wrong")),
        multipart(crop(&shut_token)),
        multipart(crop(&token)),
        crop(&token),
        multipart(crop(&token)).header("Expect", "a-miracle"),
        Call::new("POST", &format!("{url}/elsewhere")),
        Call::new("PUT", &format!("{url}{CROP_PATH}")),
        Call::new("GET", &look_up).header("ailabapi-api-key", &token),
        Call::new("GET", &format!("{url}{CREDITS_PATH}")).header("ailabapi-api-key", &token),
        Call::new("GET", &format!("{url}/results/none.png")),
        Call::new("GET", &url),
        Call::new("OPTIONS", &format!("{url}{CROP_PATH}")),
        Call::crop(&url, Some(token.as_str()), &form().field("canary", CANARY.repeat(3))),
    ];
    let last = Call::new("GET", &format!("{url}{CREDITS_PATH}")).header("ailabapi-api-key", &token);
    let last = last.header("Connection", "close").to_bytes();
    for call in &calls {
        for repeats in [1, 100, 10_000, 120_000] {
            let call =
                if call.body_len() > 0 { call.clone() } else { call.clone().body(CANARY.repeat(repeats)) };
            for bytes in [call.to_bytes(), chunked(&call)] {
                let mut connection = RawConnection::open(&url).await.unwrap();
                // The server may have closed by then.
                let _ = connection.send(&[&bytes[..], &last].concat()).await;
                let first = connection.read_answer(false).await.unwrap();
                let mut statuses = vec![first.status];
                while let Ok(answer) = connection.read_answer(false).await {
                    statuses.push(answer.status);
                }
                // What follows the body is answered, or the client was told that the connection ends:
                // else it would send its next request where nobody listens.
                let told = first.header("connection") == Some("close");
                assert_eq!(
                    statuses.get(1..),
                    Some(if told { &[][..] } else { &[200][..] }),
                    "{repeats}: {first:?}"
                );
            }
        }
    }
    let heard = "granary_http_requests_total{code=\"404\",method=\"GET\",route=\"unmatched\"}";
    assert_eq!(granary.metric(heard).await, 0.0, "a canary was heard");
    assert_eq!(client::get(&format!("{url}/canary")).await.unwrap().status, 404);
    assert_eq!(granary.metric(heard).await, 1.0, "the control");
}

/// The request with its body in chunks.
fn chunked(call: &Call) -> Vec<u8> {
    let bytes = call.to_bytes();
    let (head, body) = bytes.split_at(bytes.len() - call.body_len());
    let head = std::str::from_utf8(head).unwrap();
    let length = format!("Content-Length: {}\r\n", body.len());
    let head = head.replace(&length, "Transfer-Encoding: chunked\r\n");
    let mut chunked = head.into_bytes();
    for chunk in body.chunks(50_000) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    chunked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_naive_clients_that_send_too_much_all_read_why() {
    let granary = Granary::builtin("").await;
    let image = images::padded(images::photo_jpeg(), 4_000_000);
    let form = Form::curl(image, 300, 200);
    let declared = Call::crop(&granary.url(), None, &form);
    let mut unread = Vec::new();
    for number in 0..1000 {
        // One in ten does not say how much it will send.
        let answer =
            if number % 10 == 0 { declared.send_chunked(256 * 1024).await } else { declared.send().await };
        match answer {
            Ok(answer) => {
                assert_eq!((answer.status, answer.code().as_str()), (413, "FILE_SIZE_EXCEEDS_LIMIT"));
            }
            Err(error) => unread.push((number, error.to_string())),
        }
    }
    // 99.9 in a hundred.
    assert!(unread.len() <= 1, "{unread:?}");
}

// Money and headers.

#[tokio::test]
async fn only_if_cached_never_spends_and_no_cache_never_buys_again() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let ask = async |directives: &str| {
        Call::crop(&granary.url(), None, &form()).header("Cache-Control", directives).send().await.unwrap()
    };
    for directives in ["only-if-cached", "max-age=0, Only-If-Cached", "only-if-cached,no-store"] {
        let answer = ask(directives).await;
        assert_eq!((answer.status, answer.code().as_str()), (504, "AI_SERVICE_TIMEOUT"), "{directives}");
    }
    assert_eq!(upstream.attempts(), 0);
    let bought = ask("no-cache").await;
    assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored");
    for directives in ["no-cache", "no-store", "max-age=0", "max-age=0, must-revalidate", "only-if-cached"] {
        let hit = Call::crop(&granary.url(), None, &form())
            .header("Cache-Control", directives)
            .header("Pragma", "no-cache")
            .send()
            .await
            .unwrap();
        assert_eq!(cache_status(&hit), "granary; hit; detail=memory", "{directives}");
        assert_eq!(hit.result_url(), bought.result_url());
    }
    assert_eq!(upstream.attempts(), 1);
}

#[tokio::test]
async fn a_refresh_buys_anew_and_the_old_url_serves_on() {
    let upstream = FakeAilab::start().await;
    let (may, may_token) = team("may", "may_refresh = true");
    let (not, not_token) = team("not", "");
    let granary = Granary::ailab(&upstream, &format!("{may}\n{not}")).await;
    let ask = async |token: &str, refresh: &str| {
        let call = Call::crop(&granary.url(), Some(token), &form()).header("Granary-Refresh", refresh);
        call.send().await.unwrap()
    };
    let first = ask(&may_token, "0").await;
    assert_eq!(cache_status(&first), "granary; fwd=uri-miss; fwd-status=200; stored");
    let hit = ask(&may_token, "0").await;
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory");
    let refused = ask(&not_token, "1").await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "ERROR_ILLEGAL_OPERATION"));
    assert_eq!(upstream.attempts(), 1);

    let fresh = ask(&may_token, "1").await;
    assert_eq!(cache_status(&fresh), "granary; fwd=request; fwd-status=200; stored");
    assert_eq!((fresh.header("granary-credits-charged"), upstream.charges()), (Some("3"), 2));
    assert_ne!(fresh.result_url(), first.result_url());
    let later = ask(&not_token, "0").await;
    assert_eq!(later.result_url(), fresh.result_url(), "from now on the fresh one is answered");
    for (number, answer) in [(1, &first), (2, &fresh)] {
        let result = client::get(&answer.result_url()).await.unwrap();
        assert_eq!(result.body, upstream.result_bytes(number));
    }
    let generation: i64 = granary
        .ledger_file()
        .query_row("SELECT max(generation) FROM calls WHERE state = 'stored'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(generation, 1);
    let old = first.result_url();
    let old = old.strip_prefix(&granary.url()).unwrap();
    let granary = granary.restart().await;
    let again = client::post_form(&granary.url(), may_token.as_str(), &form()).await.unwrap();
    assert_eq!(cache_status(&again), "granary; hit; detail=ledger");
    assert!(again.result_url().ends_with(fresh.result_url().rsplit_once('/').unwrap().1));
    let result = client::get(&format!("{}{old}", granary.url())).await.unwrap();
    assert_eq!(result.body, upstream.result_bytes(1));
}

#[tokio::test]
async fn a_look_up_by_key_never_spends_and_anyone_can_compute_the_key() {
    let upstream = FakeAilab::start().await;
    let (web, token) = team("web", "may_refresh = true");
    let granary = Granary::ailab(&upstream, &web).await;
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"));
    let file = builder.home().join("rocket");
    std::fs::write(&file, images::photo_jpeg()).unwrap();
    let key = builder.args(["key", file.to_str().unwrap(), "300", "200"]).run(Duration::from_secs(20)).await;
    assert!(key.status.success(), "{key:?}");
    let key = key.stdout.trim();

    let look_up = Call::new("GET", &format!("{}{CROP_PATH}/{key}", granary.url()))
        .header("ailabapi-api-key", &token)
        .header("Granary-Refresh", "1");
    let absent = look_up.send().await.unwrap();
    assert_eq!((absent.status, absent.code().as_str()), (404, "ERROR_RESOURCE_NOT_FOUND"));
    assert_eq!(upstream.attempts(), 0);
    let bought = buy(&granary, Some(&token)).await;
    assert_eq!(bought.header("granary-key"), Some(key));
    let found = look_up.send().await.unwrap();
    assert_eq!((found.status, found.json()), (200, bought.json()));
    assert_eq!(cache_status(&found), "granary; hit; detail=memory");
    assert_eq!(found.header("granary-credits-charged"), Some("0"));
    assert_eq!(found.header("granary-credits-saved"), Some("3"));
    assert_eq!((upstream.attempts(), upstream.charges()), (1, 1));
    let saved = "granary_credits_saved_total{cause=\"hash_first\",team=\"web\"}";
    assert_eq!(granary.metric(saved).await, 3.0);
}

#[tokio::test]
async fn what_means_nothing_here_is_named_and_not_forwarded() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let form = form().field("mode", "x").field("a,b", "y").field("mode", "z").field("größe", "1");
    let url = format!("{}{CROP_PATH}?width=9&debug&a%2Cb=1&x,y=2&debug=1", granary.url());
    let call = Call::new("POST", &url)
        .header("Content-Type", &form.content_type())
        .header("X-Secret", "s")
        .header("Cookie", "c=1")
        .header("User-Agent", "client/1")
        .body(form.to_bytes());
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let names: Vec<_> = answer.header("granary-ignored").unwrap().split(", ").collect();
    assert_eq!(names, ["mode", "a?b", "gr??e", "?width", "?debug", "?a%2Cb", "?x?y"]);

    let seen = &upstream.seen()[0];
    assert_eq!(seen.head.start[1], CROP_PATH);
    let parts: Vec<_> = seen.parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(parts, ["image", "width", "height"]);
    let sent: Vec<_> = seen.head.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    for name in ["x-secret", "cookie"] {
        assert!(!sent.iter().any(|sent| sent == name), "{sent:?}");
    }
    assert_ne!(seen.head.header("user-agent"), Some("client/1"));

    let plain = buy(&granary, None).await;
    assert_eq!(plain.header("granary-ignored"), None);
    assert_eq!(cache_status(&plain), "granary; hit; detail=memory", "they are not in the key");
    // A long name is cut, lest a credential in the wrong place is repeated.
    let long = format!("{}{CROP_PATH}?{}", granary.url(), "q".repeat(90));
    let call = Call::new("POST", &long).header("Content-Type", &form.content_type()).body(form.to_bytes());
    let answer = call.send().await.unwrap();
    let longest = answer.header("granary-ignored").unwrap().split(", ").map(str::len).max();
    assert!(longest <= Some(41), "{answer:?}");
}

#[tokio::test]
async fn query_credits_tells_what_the_team_may_still_spend() {
    let (web, web_token) = team("web", "daily_credits = 20\nmonthly_credits = 10");
    let (app, app_token) = team("app", "");
    let (free, free_token) = team("free", "daily_credits = 1\nmode = \"shadow\"");
    let upstream = FakeAilab::start().await;
    let budget = "[budget]\ndaily_credits = 9\nmonthly_credits = 1000";
    let granary = Granary::ailab(&upstream, &format!("{budget}\n{web}\n{app}\n{free}")).await;
    let left = async |token: &str| {
        let call = Call::new("GET", &format!("{}{CREDITS_PATH}", granary.url()));
        let answer = call.header("ailabapi-api-key", token).send().await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        assert_eq!(json["data"].as_array().unwrap().len(), 1);
        for (field, value) in [("error_code", 0.into()), ("error_msg", serde_json::Value::from(""))] {
            assert_eq!(json[field], value, "{json}");
        }
        assert_eq!(json["error_detail"]["status_code"], 200);
        assert!(json["request_id"].is_string() && json["log_id"].is_string(), "{json}");
        let row = &json["data"][0];
        assert_eq!(row["unique_sign"], "image_cropping");
        assert!(row["name"].as_str().is_some_and(|name| !name.is_empty()));
        (row["balance"].as_i64().unwrap(), row["total"].as_i64().unwrap())
    };
    for token in [&web_token, &app_token, &free_token] {
        assert_eq!(left(token).await, (9, 9), "the global day is the least");
    }
    buy(&granary, Some(&web_token)).await;
    assert_eq!(left(&app_token).await, (6, 9));
    granary.clock().turn(2 * 86_400);
    // Another day, and most days of the year the same month; the month's last days are left out.
    let (balance, total) = left(&web_token).await;
    assert!(matches!((balance, total), (7, 10) | (9, 9)), "{balance} of {total}");
    assert_eq!(left(&app_token).await, (9, 9));
    // Asked for once, at the start, and not by any of these calls.
    upstream.wait_until("the balance", |stats| stats.balance_queries == 1).await;

    let (alone, alone_token) = team("alone", "");
    let granary = Granary::builtin(&alone).await;
    let call = Call::new("GET", &format!("{}{CREDITS_PATH}", granary.url()));
    let answer = call.header("Authorization", &format!("Bearer {alone_token}")).send().await.unwrap();
    assert_eq!(answer.json()["data"][0]["balance"], i32::MAX, "nothing limits this team");
}

#[tokio::test]
async fn every_answer_says_where_it_came_from_and_what_it_cost() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "[cache]\nmemory = \"64MiB\"").await;
    let key = {
        let key = granary::base::key::CacheKey::of(images::photo_jpeg(), 300, 200);
        key.to_string()
    };
    let check = |answer: &Answer, status: &str, charged: &str, saved: &str| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let expected = format!("granary; {status}; key=\"{key}\"");
        for (name, value) in [
            ("cache-status", expected.as_str()),
            ("granary-key", &key),
            ("granary-credits-charged", charged),
            ("granary-credits-saved", saved),
            ("cache-control", "no-store"),
            ("content-type", "application/json"),
        ] {
            assert_eq!(answer.headers(name), [value], "{name}");
        }
        assert_eq!(answer.headers("granary-upstream"), [""; 0]);
        let timing = answer.header("server-timing").unwrap();
        let took = timing.strip_prefix("total;dur=").unwrap_or_else(|| panic!("{timing}"));
        assert!(took.parse::<f64>().unwrap() >= 0.0);
        assert_eq!(answer.headers("retry-after"), [""; 0]);
    };

    upstream.always(Behaviour::Hold);
    let call = Call::crop(&granary.url(), None, &form());
    let [mut first, mut second] =
        [call.send_part(call.body_len()).await.unwrap(), RawConnection::open(&granary.url()).await.unwrap()];
    upstream.wait_for_held(1).await;
    second.send(&call.to_bytes()).await.unwrap();
    granary.wait_for_metric("granary_coalesce_followers", 2.0).await;
    upstream.release();
    let first = first.read_answer(false).await.unwrap();
    let second = second.read_answer(false).await.unwrap();
    check(&first, "fwd=uri-miss; fwd-status=200; stored", "3", "0");
    check(&second, "fwd=uri-miss; fwd-status=200; stored; collapsed", "0", "3");
    assert_eq!(first.body, second.body);

    granary.clock().turn(1000);
    let hit = call.send().await.unwrap();
    check(&hit, "hit; detail=memory", "0", "3");
    let age: u64 = hit.header("age").unwrap().parse().unwrap();
    assert!((1000..1100).contains(&age), "{age}");
    let ids = ["request_id", "log_id"].map(|field| hit.json()[field].as_str().unwrap().to_owned());
    assert_eq!(ids, ["request_id", "log_id"].map(|field| first.json()[field].as_str().unwrap().to_owned()));
    assert_ne!(hit.header("x-request-id"), first.header("x-request-id"), "the ids are the purchase's");

    let granary = granary.restart().await;
    let call = Call::crop(&granary.url(), None, &form());
    check(&call.send().await.unwrap(), "hit; detail=ledger", "0", "3");
    let folder = granary.store_path().parent().unwrap().to_owned();
    let stopped = granary.stop().await;
    std::fs::remove_dir_all(folder.join("state")).unwrap();
    let granary = Granary::start_again(stopped, &upstream).await;
    let call = Call::crop(&granary.url(), None, &form());
    check(&call.send().await.unwrap(), "hit; detail=store", "0", "3");
    check(&call.send().await.unwrap(), "hit; detail=memory", "0", "3");
    assert_eq!((upstream.charges(), upstream.attempts()), (1, 1));
}

#[tokio::test]
async fn answers_of_the_built_in_engine_say_so() {
    let granary = Granary::builtin("").await;
    for _ in 0..2 {
        assert_eq!(buy(&granary, None).await.headers("granary-upstream"), ["builtin"]);
    }
}

// The clocks of a connection.

/// Reads to the end and says how long that took.
async fn time_to_close(mut connection: RawConnection, since: Instant) -> (Vec<u8>, Duration) {
    let rest = within("the server to close", connection.read_to_close()).await.unwrap();
    (rest, since.elapsed())
}

#[tokio::test]
async fn a_head_has_seconds_and_an_idle_connection_has_longer() {
    let (head, idle) = (Duration::from_millis(300), Duration::from_millis(1500));
    let granary = Granary::builtin("[server]\nhead_timeout = \"300ms\"\nidle_timeout = \"1500ms\"").await;
    for part in ["", "G", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow"] {
        let mut connection = RawConnection::open(&granary.url()).await.unwrap();
        let opened = Instant::now();
        connection.send(part.as_bytes()).await.unwrap();
        let (_, took) = time_to_close(connection, opened).await;
        assert!(took >= head - Duration::from_millis(20) && took < idle, "{part:?}: {took:?}");
    }
    // Bytes one by one do not buy more time.
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    let opened = Instant::now();
    let mut bytes = "GET / HTTP/1.1\r\nX-Long: ".bytes().chain(std::iter::repeat(b'x'));
    while connection.send(&[bytes.next().unwrap()]).await.is_ok() {
        assert!(opened.elapsed() < idle, "a head drips on and on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    let call = Call::new("GET", &granary.url());
    for _ in 0..2 {
        assert_eq!(connection.call(&call).await.unwrap().status, 200);
        // Idle for longer than a head may take: what is tested is that time.
        tokio::time::sleep(2 * head).await;
    }
    assert_eq!(connection.call(&call).await.unwrap().status, 200);
    let (rest, took) = time_to_close(connection, Instant::now()).await;
    assert_eq!(rest, b"");
    assert!(took >= idle - Duration::from_millis(50) && took < 4 * idle, "{took:?}");

    // A further head that stays incomplete has the head's time, not the idle one's.
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    assert_eq!(connection.call(&call).await.unwrap().status, 200);
    connection.send(b"GET / HT").await.unwrap();
    let (_, took) = time_to_close(connection, Instant::now()).await;
    assert!(took >= head - Duration::from_millis(20) && took < idle, "{took:?}");
}

#[tokio::test]
async fn a_request_that_takes_its_time_is_not_cut_by_the_clocks_of_heads_and_idleness() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Delay(Duration::from_millis(700)));
    let limits = "[server]\nhead_timeout = \"200ms\"\nidle_timeout = \"200ms\"";
    let granary = Granary::ailab(&upstream, limits).await;
    assert_eq!(buy(&granary, None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_takes_longer_than_the_deadline_can_still_be_bought() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "[server]\nanswer_within = \"200ms\"").await;
    let call = Call::crop(&granary.url(), None, &Form::curl(images::photo_jpeg(), 320, 200));
    let bytes = call.to_bytes();
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    connection.send(first).await.unwrap();
    // The time itself is what is tested: the deadline passes while the body is on its way.
    tokio::time::sleep(Duration::from_millis(400)).await;
    connection.send(rest).await.unwrap();
    let answer = connection.read_answer(false).await.unwrap();
    assert_eq!((answer.status, upstream.charges()), (200, 1), "{}", answer.text());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered_408_and_the_connection_closed() {
    let granary = Granary::builtin("[server]\nbody_timeout = \"400ms\"").await;
    let call = Call::crop(&granary.url(), None, &form());
    let mut connection = call.send_part(1000).await.unwrap();
    let sent = Instant::now();
    let answer = connection.read_answer(false).await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (408, "ERROR_PARAMETERS"));
    assert!(sent.elapsed() >= Duration::from_millis(350), "{:?}", sent.elapsed());
    let (rest, took) = time_to_close(connection, sent).await;
    assert_eq!(rest, b"");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another_and_errors_do_not_end_it() {
    let granary = Granary::builtin("").await;
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    let crop = Call::crop(&granary.url(), None, &form());
    let broken = Call::crop(&granary.url(), None, &form().without("width"));
    let result = connection.call(&crop).await.unwrap().result_url();
    for (call, status) in [
        (&broken, 400),
        (&crop, 200),
        (&Call::new("GET", &result), 200),
        (&Call::new("GET", &format!("{}/elsewhere", granary.url())), 404),
        (&Call::new("HEAD", &result), 200),
        (&Call::new("GET", &format!("{}{CROP_PATH}", granary.url())), 405),
        (&crop, 200),
    ] {
        let answer = connection.call(call).await.unwrap();
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.head.start[0], "HTTP/1.1");
        assert!(answer.header("content-length").is_some(), "no answer of ours is chunked");
    }
    // Two at once are answered in their order.
    let both = [crop.to_bytes(), broken.to_bytes()].concat();
    connection.send(&both).await.unwrap();
    assert_eq!(connection.read_answer(false).await.unwrap().status, 200);
    assert_eq!(connection.read_answer(false).await.unwrap().status, 400);
}
