//! What clients, browsers and tools really send, whose fault a failure is, and the limits of a team.

use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, CROP_PATH, Call};
use granary_kit::form::Form;
use granary_kit::images::{photo_jpeg, tiny_png};
use tokio::task::JoinSet;

use crate::fleet::Fleet;
use crate::harness::{Granary, cache_status, metric, real, team, until, upstream_section};

fn crop_of(granary: &Granary, token: Option<&str>, picture: u64) -> Call {
    Call::crop(&granary.url(), token, &Form::curl(tiny_png(40, 30, picture), 20, 20))
}

async fn send(call: Call) -> Answer {
    call.send().await.unwrap()
}

fn reason(answer: &Answer) -> Option<&str> {
    answer.header("granary-reason")
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap()
}

#[tokio::test]
async fn authorization_of_another_scheme_is_ignored_beside_a_token() {
    let (table, token) = team("web", "");
    let granary = Granary::builtin(&table).await;
    for value in ["Basic dTpw", "Digest username=\"u\"", "Negotiate"] {
        let answer = send(crop_of(&granary, Some(&token), 1).header("Authorization", value)).await;
        assert_eq!(answer.status, 200, "{value}: {}", answer.text());
    }
    let answer = send(crop_of(&granary, None, 1).header("Authorization", "Basic dTpw")).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    let cut = &token[..token.len() - 2];
    let answer = send(crop_of(&granary, Some(cut), 1)).await;
    assert_eq!(answer.status, 401);
    assert!(
        answer.text().contains("incomplete") && answer.text().contains("copy it again"),
        "{}",
        answer.text()
    );
    assert!(!answer.text().contains(cut));
}

/// A form as it stands on the wire, with the boundary `BND`.
async fn post_raw(granary: &Granary, body: Vec<u8>) -> Answer {
    let call = Call::new("POST", &format!("{}{CROP_PATH}", granary.url()));
    send(call.header("Content-Type", "multipart/form-data; boundary=BND").body(body)).await
}

#[tokio::test]
async fn forms_whose_meaning_is_clear_are_served_however_they_are_written() {
    let granary = Granary::builtin("").await;
    let image = |head: &str| [format!("--BND\r\n{head}\r\n\r\n").as_bytes(), photo_jpeg(), b"\r\n"].concat();
    let sizes = |end: &str| {
        let field =
            |name: &str| format!("--BND\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n80\r\n");
        format!("{}{}--BND--{end}", field("width"), field("height")).into_bytes()
    };
    let plain = "Content-Disposition: form-data; name=\"image\"; filename=\"p.jpg\"";
    let extra = |count: usize| {
        let field = |n| format!("--BND\r\nContent-Disposition: form-data; name=\"f{n}\"\r\n\r\nx\r\n");
        (0..count).map(field).collect::<String>().into_bytes()
    };
    let forms = [
        ("LF after the closing boundary", [image(plain), sizes("\n")].concat()),
        ("CR after the closing boundary", [image(plain), sizes("\r")].concat()),
        (
            "a folded header",
            [image("Content-Disposition: form-data; name=\"image\";\r\n filename=\"long.jpg\""), sizes("")]
                .concat(),
        ),
        (
            "quotes in a file name",
            [image(&plain.replace("p.jpg", "my \"best\" photo.jpg")), sizes("\r\n")].concat(),
        ),
        ("17 more parts", [extra(17), image(plain), sizes("\r\n")].concat()),
        ("as many parts as there may be", [extra(125), image(plain), sizes("\r\n")].concat()),
    ];
    for (what, body) in forms {
        let answer = post_raw(&granary, body).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        // A proxy takes a head of 4 KiB at least.
        assert!(answer.header("granary-ignored").is_none_or(|names| names.len() < 1000), "{answer:?}");
    }
    let answer = post_raw(&granary, [extra(126), image(plain), sizes("\r\n")].concat()).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("more than 128 parts"), "{}", answer.text());
}

#[tokio::test]
async fn body_with_a_content_encoding_is_415_and_named() {
    let granary = Granary::builtin("").await;
    for (coding, status) in [
        ("gzip", 415),
        ("Br", 415),
        ("identity, deflate", 415),
        ("identity", 200),
        ("", 200),
        ("x".repeat(90).as_str(), 415),
    ] {
        let answer = send(crop_of(&granary, None, 1).header("Content-Encoding", coding)).await;
        assert_eq!(answer.status, status, "{coding}: {}", answer.text());
        if status == 415 {
            let named = coding.rsplit(", ").next().unwrap();
            assert_eq!(answer.code(), "UNSUPPORTED_FILE_TYPES");
            assert!(answer.text().contains(&named[..named.len().min(16)]), "{}", answer.text());
        }
    }
    let compressed = Call::new("POST", &format!("{}{CROP_PATH}", granary.url()));
    let answer = send(compressed.header("Content-Encoding", "gzip").body("x")).await;
    assert_eq!(answer.status, 415, "before its Content-Type is looked at");
}

#[tokio::test]
async fn lookup_takes_a_key_in_either_case_and_says_what_a_key_is() {
    let granary = Granary::builtin("").await;
    let key = send(crop_of(&granary, None, 1)).await.header("granary-key").unwrap().to_owned();
    let look_up =
        async |key: &str| client::get(&format!("{}{CROP_PATH}/{key}", granary.url())).await.unwrap();
    for spelling in [key.clone(), key.to_uppercase()] {
        let answer = look_up(&spelling).await;
        assert_eq!((answer.status, answer.header("granary-key")), (200, Some(&*key)), "{spelling}");
    }
    for wrong in
        [&key[1..], &format!("{key}0"), "key", &key.replace(|digit: char| digit.is_ascii_digit(), "g")]
    {
        let answer = look_up(wrong).await;
        assert_eq!((answer.status, &*answer.code()), (404, "ERROR_RESOURCE_NOT_FOUND"), "{wrong}");
        assert!(answer.text().contains("a key has 64 hex digits"), "{}", answer.text());
    }
    let unknown = look_up(&"0".repeat(64)).await;
    assert!(unknown.text().contains("nothing is stored"), "{}", unknown.text());
    let ignored = look_up(&format!("{key}?fresh=1&token=x")).await;
    assert_eq!((ignored.status, ignored.header("granary-ignored")), (200, Some("?fresh, ?token")));
}

#[tokio::test]
async fn result_has_one_spelling_and_may_be_embedded_anywhere() {
    let granary = Granary::builtin("").await;
    let url = send(crop_of(&granary, None, 1)).await.result_url();
    let (root, name) = url.rsplit_once('/').unwrap();
    let good = client::get(&url).await.unwrap();
    assert_eq!((good.status, good.header("cross-origin-resource-policy")), (200, Some("cross-origin")));
    let (first, rest) = name.split_at(1);
    let encoded = format!("%{:02X}{rest}", first.as_bytes()[0]);
    for alias in [
        format!("{name}?"),
        format!("{name}?x=1"),
        encoded,
        name.replace('.', "%2E"),
        name.replace('.', "%2e"),
        name.to_uppercase(),
    ] {
        let answer = client::get(&format!("{root}/{alias}")).await.unwrap();
        assert_eq!((answer.status, &*answer.code()), (404, "ERROR_FILE_NOT_FOUND"), "{alias}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("cross-origin"), "{alias}");
    }
    let seen = Call::new("GET", &url).header("If-None-Match", good.header("etag").unwrap());
    let seen = send(seen).await;
    assert_eq!((seen.status, seen.header("cross-origin-resource-policy")), (304, Some("cross-origin")));
}

#[tokio::test]
async fn page_with_tracing_on_a_private_network_may_call_and_polls_what_is_still_being_made() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let origin = "https://shop.example";
    let server = format!("[server]\ncors_origins = [\"{origin}\"]\nanswer_within = \"300ms\"");
    let granary = Granary::ailab(&upstream, &server).await;
    let wanted = "traceparent, tracestate, baggage, x-requested-with, x-request-id, if-none-match, pragma";
    let preflight = |origin: &str| {
        Call::new("OPTIONS", &format!("{}{CROP_PATH}", granary.url()))
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", wanted)
            .header("Access-Control-Request-Private-Network", "true")
    };
    let answer = send(preflight(origin)).await;
    let allowed: Vec<_> = answer.header("access-control-allow-headers").unwrap().split(", ").collect();
    for name in wanted.split(", ").chain(["ailabapi-api-key", "content-type", "granary-refresh"]) {
        assert!(allowed.contains(&name), "{name} in {allowed:?}");
    }
    assert_eq!(answer.header("access-control-allow-private-network"), Some("true"));
    let answer = send(preflight("https://evil.example")).await;
    assert_eq!(answer.header("access-control-allow-private-network"), None);

    let answer = send(crop_of(&granary, None, 1).header("Origin", origin)).await;
    assert_eq!((answer.status, reason(&answer)), (504, Some("still_being_made")));
    let key = answer.header("granary-key").unwrap().to_owned();
    let expected = format!("granary; detail=still_being_made; key=\"{key}\"");
    assert_eq!(answer.header("cache-status"), Some(&*expected));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("granary-key") && exposed.contains("cache-status"), "{exposed}");
    upstream.release();
    let poll = format!("{}{CROP_PATH}/{key}", granary.url());
    until("the crop", async || client::get(&poll).await.unwrap().status == 200).await;
}

#[tokio::test]
async fn refusal_of_the_picture_is_the_callers_fault_in_every_figure() {
    let upstream = FakeAilab::start().await;
    let (table, token) = team("web", "");
    let granary = Granary::ailab(&upstream, &table).await;
    let count = async |class: &str, code: &str| {
        granary.metric(&format!("granary_request_errors_total{{class=\"{class}\",code=\"{code}\"}}")).await
    };
    let ended = async |outcome: &str| {
        granary.metric(&format!("granary_requests_total{{outcome=\"{outcome}\",team=\"web\"}}")).await
    };
    let cases = [
        (400, "ERROR_INVALID_PARAMETER", "ERROR_INVALID_PARAMETER"),
        (413, "FILE_SIZE_EXCEEDS_LIMIT", "FILE_SIZE_EXCEEDS_LIMIT"),
        (415, "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE", "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE"),
        (422, "ERROR_OF_A_LATER_YEAR", "other"),
    ];
    for (number, (status, code, label)) in cases.into_iter().enumerate() {
        upstream.on_next(Behaviour::refuse(status, code));
        let attempts = upstream.attempts();
        // The second time from memory.
        for time in 1..=2 {
            let answer = send(crop_of(&granary, Some(&token), number as u64)).await;
            assert_eq!((answer.status, &*answer.code()), (status, code));
            assert_eq!(count("caller", label).await, f64::from(time), "{code}");
        }
        assert_eq!(upstream.attempts(), attempts + 1);
    }
    assert_eq!((ended("rejected").await, ended("error").await), (8.0, 0.0));
    assert_eq!(count("upstream", "AI_SERVICE_ERROR").await, 0.0);

    upstream.on_next(Behaviour::refuse(500, "PROCESSING_FAILURE"));
    let answer = send(crop_of(&granary, Some(&token), 100)).await;
    assert_eq!((answer.status, ended("error").await), (500, 1.0));
    assert_eq!(count("upstream", "PROCESSING_FAILURE").await, 1.0, "its own code");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_line_of_a_passed_through_refusal_has_what_the_client_saw() {
    let upstream = FakeAilab::start().await;
    let config = upstream_section(&upstream, "");
    let granary = real().config_text(config).start().await.unwrap();
    upstream.on_next(Behaviour::refuse(415, "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE"));
    let form = Form::curl(tiny_png(40, 30, 1), 20, 20);
    let answer = client::post_form(&granary.public_url(), None, &form).await.unwrap();
    let id = answer.header("x-request-id").unwrap();
    let line = granary.wait_for_line(Duration::from_secs(20), |line| line["request_id"] == id).await.unwrap();
    assert_eq!((&line["status"], &line["code"]), (&415.into(), &"ERROR_UNSUPPORTED_GRAYSCALE_IMAGE".into()));
    assert_eq!(line["upstream_status"], 415);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_miss_beyond_the_rate_has_its_own_time_or_is_refused_at_once_with_it() {
    let upstream = FakeAilab::start().await;
    let (table, token) = team("web", "misses_per_second = 4");
    let granary = Granary::ailab(&upstream, &format!("[server]\nanswer_within = \"3s\"\n{table}")).await;
    let mut calls = JoinSet::new();
    let begun = Instant::now();
    for number in 0..60 {
        let call = crop_of(&granary, Some(&token), number);
        calls.spawn(async move {
            let answer = call.send().await.unwrap();
            (answer, begun.elapsed())
        });
    }
    let all = calls.join_all().await;
    // Those whose time comes shortly before the deadline may be told that the crop is still being made.
    let is_bought = |answer: &Answer| matches!(answer.status, 200 | 504);
    let (served, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(answer, _)| is_bought(answer));
    // 12 times of a quarter of a second, and those of the time over which a busy machine spreads the arrivals: a
    // refused one is answered as soon as it arrives.
    let spread = refused.iter().map(|(_, took)| took.as_secs_f64()).fold(0.0, f64::max);
    let most = 13 + (4.0 * spread) as usize;
    assert!((11..=most).contains(&served.len()), "{} of at most {most} were served", served.len());
    assert!(upstream.charges() <= served.len() as u64);
    let mut told: Vec<_> = Vec::new();
    for (answer, took) in &refused {
        assert_eq!((answer.status, reason(answer), &*answer.code()), (429, Some("rate"), "EXCEEDING_LIMITS"));
        assert!(*took < Duration::from_millis(1500), "refused after {took:?}");
        told.push(retry_after(answer));
    }
    told.sort_unstable();
    told.dedup();
    // 48 refused ones at 4 a second are sent back over 12 seconds.
    assert!(told.len() >= 8 && told[0] >= 2, "{told:?}");

    // Whoever comes back when it was told is served.
    let (first, _) = refused.iter().min_by_key(|(answer, _)| retry_after(answer)).unwrap();
    let wait = Duration::from_secs(retry_after(first));
    tokio::time::sleep(wait.saturating_sub(begun.elapsed())).await;
    let answer = send(crop_of(&granary, Some(&token), 1000)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_the_purchase_of_another_replica_is_coalesced() {
    let fleet = Fleet::new("", "", "").await;
    let [one, other] = fleet.start::<2>().await;
    fleet.upstream.on_next(Behaviour::Hold);
    let leader = fleet.ask(&one, 1);
    fleet.upstream.wait_for_held(1).await;
    let follower = fleet.ask(&other, 1);
    let admin = other.admin_url();
    let follows = "granary_coalesce_followers_total{scope=\"cluster\"}";
    until("the second replica to wait", async || metric(&admin, follows).await == 1.0).await;
    fleet.upstream.release();
    let (bought, found) = (leader.await.unwrap().unwrap(), follower.await.unwrap().unwrap());
    assert_eq!((bought.status, found.status, fleet.upstream.charges()), (200, 200, 1));
    assert_eq!(cache_status(&found), "granary; fwd=uri-miss; fwd-status=200; stored; collapsed");
    let charged = |answer: &Answer| answer.header("granary-credits-charged").map(str::to_owned);
    assert_eq!((charged(&bought).as_deref(), charged(&found).as_deref()), (Some("3"), Some("0")));
    for (series, value) in [
        ("granary_requests_total{outcome=\"coalesced\",team=\"web\"}", 1.0),
        ("granary_requests_total{outcome=\"hit_ledger\",team=\"web\"}", 0.0),
        ("granary_credits_saved_total{cause=\"coalesced\",team=\"web\"}", 3.0),
        ("granary_request_duration_seconds_count{outcome=\"hit_ledger\"}", 0.0),
    ] {
        assert_eq!(metric(&admin, series).await, value, "{series}");
    }
    // Without a wait it is a hit.
    let hit = fleet.ask(&one, 1).await.unwrap().unwrap();
    assert_eq!(cache_status(&hit), "granary; hit; detail=memory");
}

#[tokio::test]
async fn polling_and_head_lookups_save_once_what_a_post_would_have_cost() {
    let tables = [team("web", ""), team("app", "")];
    let granary = Granary::builtin(&format!("{}\n{}", tables[0].0, tables[1].0)).await;
    let [web, app] = [&tables[0].1, &tables[1].1];
    let key = send(crop_of(&granary, Some(web), 1)).await.header("granary-key").unwrap().to_owned();
    let saved = async |team: &str| {
        granary.metric(&format!("granary_credits_saved_total{{cause=\"hash_first\",team=\"{team}\"}}")).await
    };
    let look_up = async |method: &str, token: &str| {
        let url = format!("{}{CROP_PATH}/{key}", granary.url());
        let answer = send(Call::new(method, &url).header("ailabapi-api-key", token)).await;
        assert_eq!((answer.status, answer.header("granary-credits-saved")), (200, Some("3")));
    };
    for _ in 0..3 {
        look_up("HEAD", app).await;
    }
    assert_eq!(saved("app").await, 0.0, "a HEAD is no POST");
    for _ in 0..5 {
        look_up("GET", app).await;
    }
    assert_eq!(saved("app").await, 3.0);
    look_up("GET", web).await;
    assert_eq!(saved("web").await, 3.0, "each team once");
    granary.clock().turn(86_400);
    look_up("GET", app).await;
    assert_eq!(saved("app").await, 6.0, "and each day");
}

#[tokio::test]
async fn refused_pictures_are_limited_by_team_and_day_and_survive_a_restart() {
    let upstream = FakeAilab::start().await;
    let tables = [team("web", "refused_per_day = 2"), team("app", "")];
    let (web, app) = (tables[0].1.clone(), tables[1].1.clone());
    let granary = Granary::ailab(&upstream, &format!("{}\n{}", tables[0].0, tables[1].0)).await;
    let refused = async |granary: &Granary, token: &str, picture| {
        upstream.on_next(Behaviour::refuse(415, "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE"));
        send(crop_of(granary, Some(token), picture)).await
    };
    // What the upstream's flow control or an outage refuses is not the team's.
    for behaviour in
        [Behaviour::refuse(500, "PROCESSING_FAILURE"), Behaviour::refuse(404, "ERROR_AI_NOT_EXISTS")]
    {
        upstream.on_next(behaviour);
        assert!(send(crop_of(&granary, Some(&web), 50)).await.status >= 404);
    }
    assert_eq!(refused(&granary, &web, 1).await.status, 415);
    // From memory it costs no call, and does not count.
    for _ in 0..3 {
        assert_eq!(send(crop_of(&granary, Some(&web), 1)).await.status, 415);
    }
    assert_eq!(refused(&granary, &web, 2).await.status, 415);
    let hit = send(crop_of(&granary, Some(&app), 10)).await;
    assert_eq!(hit.status, 200, "another team buys");

    let attempts = upstream.attempts();
    let granary = granary.restart().await;
    let answer = send(crop_of(&granary, Some(&web), 3)).await;
    assert_eq!((answer.status, &*answer.code(), reason(&answer)), (429, "EXCEEDING_LIMITS", Some("refused")));
    assert!((1..=3600).contains(&retry_after(&answer)), "{answer:?}");
    let text = answer.text();
    assert!(
        text.contains("refused_per_day") && text.contains("team web") && text.contains("T00:00:00Z"),
        "{text}"
    );
    assert_eq!(send(crop_of(&granary, Some(&web), 10)).await.status, 200, "hits go on");
    assert_eq!(upstream.attempts(), attempts, "nothing was sent");
    let denied = "granary_limit_decisions_total{decision=\"deny\",kind=\"refused\",mode=\"enforce\"}";
    assert_eq!(granary.metric(denied).await, 1.0);
    assert_eq!(send(crop_of(&granary, Some(&app), 11)).await.status, 200);

    granary.clock().turn(86_400);
    assert_eq!(send(crop_of(&granary, Some(&web), 3)).await.status, 200, "another day");
}

#[tokio::test]
async fn without_teams_another_sites_page_buys_nothing() {
    let upstream = FakeAilab::start().await;
    let origin = "https://shop.example";
    let granary = Granary::ailab(&upstream, &format!("[server]\ncors_origins = [\"{origin}\"]")).await;
    let host = granary.url().replace("http://", "");
    let ask = async |headers: &[(&str, &str)]| {
        let call = crop_of(&granary, None, 1);
        send(headers.iter().fold(call, |call, (name, value)| call.header(name, value))).await
    };
    for (headers, expected) in [
        (&[("Sec-Fetch-Site", "cross-site")][..], "cross_site"),
        (&[("Origin", "https://evil.example")], "cross_site"),
        (&[("Origin", "null")], "cross_site"),
        (&[("Host", "evil.example")], "foreign_name"),
    ] {
        let answer = ask(headers).await;
        assert_eq!((answer.status, &*answer.code()), (403, "ERROR_ILLEGAL_OPERATION"), "{headers:?}");
        assert_eq!(reason(&answer), Some(expected));
    }
    assert_eq!(upstream.attempts(), 0);
    let own = format!("http://{host}");
    for headers in [
        &[("Origin", origin), ("Sec-Fetch-Site", "cross-site")][..],
        &[("Origin", &*own), ("Sec-Fetch-Site", "same-origin")],
        &[("Host", "localhost:8080")],
        &[],
    ] {
        assert_eq!(ask(headers).await.status, 200, "{headers:?}");
    }
    // With a token to show, another site's page has nothing to gain.
    let (table, token) = team("web", "");
    let granary = Granary::ailab(&upstream, &table).await;
    let answer = send(crop_of(&granary, Some(&token), 1).header("Host", "granary.example")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_bad_tokens_leaves_a_few_lines_and_their_number() {
    let (table, _) = team("web", "");
    let granary = real().config_text(table).start().await.unwrap();
    let url = format!("{}/api/common/query-credits", granary.public_url());
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        calls.spawn(async move {
            for _ in 0..50 {
                assert_eq!(client::get(&url).await.unwrap().status, 401);
            }
        });
    }
    calls.join_all().await;
    let own = || granary.log_lines().iter().filter(|line| line["message"] == "request").count() as u64;
    let left_out = || granary.log_lines().iter().filter_map(|line| line["left_out"].as_u64()).sum::<u64>();
    until("the rest to be counted", async || own() + left_out() == 400).await;
    assert!(left_out() >= 300, "{} lines of their own", own());
    let failures = metric(&granary.admin_url(), "granary_auth_failures_total{reason=\"missing\"}").await;
    assert_eq!(failures, 400.0, "all are counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_admin_login_is_logged_counted_and_slow_and_a_good_token_is_not() {
    let good = "0123456789abcdef0123456789abcdef";
    let builder = real();
    let file = builder.home().join("admin-tokens");
    std::fs::write(&file, good).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = format!("[server]\nadmin_token_file = \"{}\"\n", file.display());
    let granary = builder.config_text(config).start().await.unwrap();
    let ask = async |token: &str| {
        let begun = Instant::now();
        let call = Call::new("GET", &format!("{}/admin/v1/build", granary.admin_url()));
        let status = send(call.header("Authorization", &format!("Bearer {token}"))).await.status;
        (status, begun.elapsed())
    };
    for _ in 0..2 {
        let (status, took) = ask("fedcba9876543210fedcba9876543210").await;
        assert!(status == 401 && took >= Duration::from_millis(250), "{status} after {took:?}");
    }
    assert_eq!(ask(good).await.0, 200, "nobody is locked out");
    let failures = metric(&granary.admin_url(), "granary_auth_failures_total{reason=\"admin\"}").await;
    assert_eq!(failures, 2.0);
    let failed = |line: &serde_json::Value| line["message"] == "admin login failed";
    let line = granary.wait_for_line(Duration::from_secs(20), failed).await.unwrap();
    assert_eq!((&line["level"], &line["method"]), (&"WARN".into(), &"GET".into()));
}
