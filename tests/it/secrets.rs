//! The upstream's key, team tokens and signed result URLs are nowhere: not in an answer, a log line at
//! any level, a metric, a file, nor in what another party is sent. Each place is searched beside a
//! control, something that must be found there, so that an empty place does not pass for a clean one.

use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, CROP_PATH, Call};
use granary_kit::form::{Form, Part};
use granary_kit::images;
use granary_kit::leak::Secrets;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use tokio::task::JoinSet;

use crate::harness::{team, within};

const TEAM: &str = "the-web-team";
const PATIENCE: Duration = Duration::from_secs(20);
/// A piece of a secret is a leak too; of this length none is there by chance.
const FRAGMENT: usize = 12;

/// The program in front of a fake AILab, with everything it keeps below its home, saying all it can.
struct World {
    upstream: FakeAilab,
    token: String,
    builder: GranaryBuilder,
}

impl World {
    async fn new(more: &str) -> Self {
        let upstream = FakeAilab::start().await;
        let (table, token) = team(TEAM, "may_refresh = true");
        let config = format!(
            "[upstream]\nkind = \"ailab\"\nbase_url = \"{}\"\nresult_hosts = [\"{}\"]\nresult_timeout = \"1s\"\n\
             {more}\n[log]\nlevel = \"trace\"\n[server]\ndrain_grace = \"0s\"\n{table}",
            upstream.base_url(),
            upstream.result_host(),
        );
        let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"));
        let home = builder.home().to_str().unwrap().to_owned();
        let builder = builder
            .state_dir(format!("{home}/state"))
            .env("GRANARY_STORE_PATH", format!("{home}/store"))
            .env("GRANARY_UPSTREAM_API_KEY", upstream.api_key())
            .config_text(config);
        Self { upstream, token, builder }
    }

    /// What nobody knows but the two who share it: without the token's public name.
    fn secrets(&self) -> Vec<(String, String)> {
        let of_token = self.token.rsplit_once('_').unwrap().1.to_owned();
        let signatures = self.upstream.signatures().into_iter().enumerate();
        let signatures = signatures.map(|(number, secret)| (format!("signature {number}"), secret));
        [("upstream key".to_owned(), self.upstream.api_key()), ("team token".to_owned(), of_token)]
            .into_iter()
            .chain(signatures)
            .collect()
    }

    fn crop(&self, granary: &GranaryProcess, image: &[u8], width: u32) -> Call {
        Call::crop(&granary.public_url(), self.token.as_str(), &Form::curl(image, width, 200))
    }
}

/// Everything of an answer, as it came.
fn everything(answer: &Answer) -> Vec<u8> {
    [&answer.head.raw[..], &answer.body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_answer_log_line_metric_or_file() {
    let world = World::new("").await;
    let (upstream, token) = (&world.upstream, world.token.as_str());
    let mut granary = world.builder.start().await.unwrap();
    let url = granary.public_url();
    let mut answers = Vec::new();
    let mut keep = |situation: &str, expected: u16, answer: Answer| {
        assert_eq!(answer.status, expected, "{situation}: {}", answer.text());
        answers.push((situation.to_owned(), everything(&answer)));
        answer
    };
    let crop = |width: u32| world.crop(&granary, images::photo_jpeg(), width);

    // While a result is being fetched, its signed URL is in the ledger and nowhere else.
    upstream.always_results(ResultBehaviour::Hang);
    let first = tokio::spawn({
        let call = crop(300);
        async move { call.send().await.unwrap() }
    });
    upstream.wait_for_fetches(1).await;
    let signature = || Secrets::new([("signature", upstream.last_signature().unwrap())]);
    let held = signature().scan_dir(world.builder.home()).unwrap();
    assert!(!held.is_empty(), "the control: an answered row holds the URL");
    for leak in &held {
        assert!(leak.place.contains("ledger.sqlite"), "{leak:?}");
    }
    upstream.always_results(ResultBehaviour::Serve);
    let miss = keep("miss", 200, within("the miss", first).await.unwrap());
    let key = miss.header("granary-key").unwrap().to_owned();
    within("the ledger to forget the URL", async {
        while !signature().scan_dir(world.builder.home()).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    keep("hit", 200, crop(300).send().await.unwrap());
    keep("refresh", 200, crop(300).header("Granary-Refresh", "1").send().await.unwrap());
    keep("result", 200, client::get(&miss.result_url()).await.unwrap());
    let get = async |path: &str| {
        Call::new("GET", &format!("{url}{path}")).header("ailabapi-api-key", token).send().await.unwrap()
    };
    keep("look-up", 200, get(&format!("{CROP_PATH}/{key}")).await);
    keep("credits", 200, get("/api/common/query-credits").await);
    keep("page", 200, get("/").await);

    // The token where it does not belong.
    let unauthorised = |call: Call| async move { call.send().await.unwrap() };
    let form = Form::curl(images::photo_jpeg(), 300, 200);
    let half = format!("{}{}", &token[..token.len() - 1], if token.ends_with('0') { '1' } else { '0' });
    let by = |name: &str, value: &str| Call::crop(&url, None, &form).header(name, value);
    keep("almost the token", 401, unauthorised(by("ailabapi-api-key", &half)).await);
    keep("as a basic credential", 401, unauthorised(by("Authorization", &format!("Basic {token}"))).await);
    keep("the upstream's key", 401, unauthorised(by("ailabapi-api-key", &upstream.api_key())).await);
    keep("as a cookie", 401, unauthorised(by("Cookie", token)).await);
    let with_two = by("ailabapi-api-key", token).header("Authorization", &format!("Bearer {half}"));
    keep("two credentials", 400, unauthorised(with_two).await);
    for path in [format!("/{token}"), format!("/results/{token}"), format!("{CROP_PATH}/{token}")] {
        keep("in the path", 404, get(&path).await);
    }
    let queried = Call::new("POST", &format!("{url}{CROP_PATH}?{token}&key={token}"));
    let queried = queried.header("ailabapi-api-key", token).header("Content-Type", &form.content_type());
    keep("in the query", 200, queried.body(form.to_bytes()).send().await.unwrap());
    let with_token = |form: Form| Call::crop(&url, token, &form);
    for (situation, status, form) in [
        ("as a field's name", 200, form.clone().field(token, "1")),
        ("as a field's value", 200, form.clone().field("key", token)),
        ("as the file's name", 200, form.clone().file_name(token)),
        ("as the part's type", 200, form.clone().part_type(Some(token))),
        ("as the width", 400, form.clone().edit("width", |part| part.body = token.into())),
        ("as the image", 415, form.clone().edit("image", |part| part.body = token.into())),
        (
            "in a broken part",
            400,
            form.clone().part(Part { headers: vec![token.to_owned()], ..Part::text("note", "1") }),
        ),
    ] {
        keep(situation, status, with_token(form).send().await.unwrap());
    }
    let expecting = with_token(form.clone()).header("Expect", token);
    keep("as an expectation", 417, expecting.send().await.unwrap());
    let method = Call::new(token, &url);
    keep("as a method", 405, method.send().await.unwrap());
    let ours = with_token(form.clone()).header("X-Request-Id", token).header("Origin", token);
    keep("as an id", 200, ours.header("User-Agent", token).send().await.unwrap());

    // An upstream that quotes what it was sent.
    let quoting = |status: u16, text: &str| {
        let body = format!(
            "{{\"error_code\":{status},\"error_detail\":{{\"status_code\":{status},\"code\":\"ERROR_PARAMETERS\",\
             \"message\":\"{text}\"}},\"error_msg\":\"{text}\"}}"
        );
        let kind = "application/json".to_owned();
        Behaviour::Raw { status, content_type: kind, body: body.into(), charged: false }
    };
    let upstream_key = upstream.api_key();
    for (width, status, expected) in [(101, 400, 400), (104, 422, 422), (105, 429, 503), (106, 500, 500)] {
        upstream.on_next(quoting(status, &format!("bad key {upstream_key}!")));
        keep(&format!("a {status} that quotes the key"), expected, crop(width).send().await.unwrap());
    }
    for (width, behaviour, expected) in [
        (111, Behaviour::raw(200, "text/html", format!("<p>{upstream_key}")), 502),
        (112, Behaviour::raw(200, "application/json", format!("{{\"{upstream_key}\":")), 502),
        (113, Behaviour::Bytes(format!("HTTP/1.1 200 {upstream_key}\r\n{upstream_key}\r\n\r\n").into()), 502),
        (114, Behaviour::Redirect(format!("http://127.0.0.1:1/?{upstream_key}")), 502),
        (115, Behaviour::CutMidAnswer(400), 502),
        (118, quoting(400, "nothing secret"), 400),
    ] {
        // So many in a row would be an outage.
        keep("in between", 200, crop(width + 100).send().await.unwrap());
        upstream.on_next(behaviour);
        keep(&format!("width {width}"), expected, crop(width).send().await.unwrap());
    }
    // Storage that quotes the URL it was asked for.
    for (width, behaviour) in [
        (121, ResultBehaviour::NotFound),
        (122, ResultBehaviour::Reset),
        (123, ResultBehaviour::Truncate(40)),
        (124, ResultBehaviour::Redirect(upstream.purchases()[0].url.clone())),
    ] {
        upstream.on_next_result(behaviour);
        keep(&format!("result of width {width}"), 200, crop(width).send().await.unwrap());
    }
    let early = crop(300).send_part(100).await.unwrap();
    early.reset();
    let debug = granary.wait_for_log("connection ended early", PATIENCE).await;
    assert!(debug.is_some(), "the control: the log says all it can");
    let admin = granary.admin_url();
    for path in ["/readyz", "/livez"] {
        keep(path, 200, client::get(&format!("{admin}{path}")).await.unwrap());
    }
    for path in ["/admin/v1/freeze", "/admin/v1/thaw"] {
        keep(path, 200, Call::new("POST", &format!("{admin}{path}")).send().await.unwrap());
    }
    let metrics = everything(&client::get(&format!("{admin}/metrics")).await.unwrap());

    // Searched while it runs, as soon as it is at rest, and after its end.
    let secrets = Secrets::new(world.secrets());
    let home = world.builder.home();
    within("the ledger to forget every URL", async {
        while !secrets.scan_dir(home).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    granary.terminate();
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0));
    let (mut stdout, mut stderr) = (granary.stdout_text(), granary.stderr_text());
    // What stops all buying, each in a process of its own.
    for (width, behaviour, expected) in [
        (102, quoting(401, &format!("bad key {upstream_key}!")), 502),
        (103, quoting(403, &format!("bad key {upstream_key}!")), 502),
        (116, Behaviour::KeyRefused, 502),
        (117, Behaviour::NoCredits, 429),
    ] {
        let mut granary = world.builder.start().await.unwrap();
        upstream.on_next(behaviour);
        for situation in ["the first", "while nothing is bought"] {
            let answer = world.crop(&granary, images::photo_jpeg(), width).send().await.unwrap();
            keep(&format!("width {width}, {situation}"), expected, answer);
        }
        granary.terminate();
        assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0));
        stdout += &granary.stdout_text();
        stderr += &granary.stderr_text();
    }

    let control = Secrets::new([("control", key.clone())]);
    let is_found =
        |place: &str, text: &[u8]| assert!(!control.find_leaks([(place, text)]).is_empty(), "{place}");
    is_found("the log", stderr.as_bytes());
    is_found("the miss", &answers[0].1);
    is_found("the hit", &answers[1].1);
    let has_files = control.scan_dir(home.join("store")).unwrap();
    assert!(!has_files.is_empty(), "the name of a record");
    let in_ledger = Secrets::new([("control", TEAM)]).scan_dir(home.join("state")).unwrap();
    assert!(!in_ledger.is_empty(), "the team of a call");
    assert!(!Secrets::new([("control", TEAM)]).find_leaks([("metrics", &metrics)]).is_empty());

    assert_eq!(secrets.find_leaks(answers), []);
    let pieces = Secrets::new(world.secrets()).with_fragments(FRAGMENT);
    assert_eq!(pieces.find_leaks([("stdout", stdout), ("stderr", stderr)]), []);
    assert_eq!(pieces.find_leaks([("metrics", metrics)]), []);
    assert_eq!(pieces.scan_dir(home).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_url_that_cannot_be_read_is_in_no_answer_and_no_log_line() {
    const PLANTED: &str = "c0ffee0123456789deadbeef98765432";
    let world = World::new("").await;
    let granary = world.builder.start().await.unwrap();
    let mut answers = Vec::new();
    let port = world.upstream.result_host().rsplit_once(':').unwrap().1.to_owned();
    let mut asked = JoinSet::new();
    for (width, url) in [
        (101, format!("https://169.254.169.254/{PLANTED}?Signature={PLANTED}")),
        (102, format!("http://user:{PLANTED}@127.0.0.1:{port}/a.png?{PLANTED}")),
        (103, format!("http://127.0.0.1:{port}/a.png?Signature={PLANTED}")),
        (104, format!("http://127.0.0.1:1/a.png?Signature={PLANTED}")),
        (105, format!("gopher://127.0.0.1/{PLANTED}")),
        (106, format!("not a URL at all, {PLANTED}")),
        (107, format!("http://{PLANTED}.invalid/{PLANTED}")),
    ] {
        world.upstream.on_next(Behaviour::UrlOverride(url));
        let call = world.crop(&granary, images::photo_jpeg(), width);
        asked.spawn(async move { call.send().await.unwrap() });
    }
    while let Some(answer) = asked.join_next().await {
        let answer = answer.unwrap();
        assert!(matches!(answer.status, 502 | 504), "{}", answer.text());
        answers.push(("a crop", everything(&answer)));
    }
    let log = granary.stderr_text();
    assert!(log.contains("cannot be fetched"), "the control: it was logged\n{log}");
    let planted = Secrets::new([("planted", PLANTED)]);
    assert_eq!(planted.find_leaks(answers), []);
    // A host is no secret, and it is logged so that people can mend result_hosts.
    let log: Vec<_> = log.lines().map(|line| line.replace(&format!("{PLANTED}.invalid"), "host")).collect();
    assert_eq!(planted.with_fragments(FRAGMENT).find_leaks([("stderr", log.join("\n"))]), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_ours_reaches_another_party() {
    let world = World::new("").await;
    let granary = world.builder.start().await.unwrap();
    let call = world
        .crop(&granary, images::photo_jpeg(), 300)
        .header("Authorization", &format!("Bearer {}", world.token));
    assert_eq!(call.send().await.unwrap().status, 200);
    let of_token = world.token.rsplit_once('_').unwrap().1;
    let token = Secrets::new([("team token", of_token)]).with_fragments(FRAGMENT);
    let key = Secrets::new([("upstream key", world.upstream.api_key())]).with_fragments(FRAGMENT);
    let seen = &world.upstream.seen()[0];
    assert_eq!(token.find_leaks([("to the upstream", [&seen.head.raw[..], &seen.body].concat())]), []);
    assert!(
        !key.find_leaks([("to the upstream", &seen.head.raw)]).is_empty(),
        "the control: it pays with it"
    );
    let fetched = world.upstream.fetched().remove(0);
    for secrets in [&token, &key] {
        assert_eq!(secrets.find_leaks([("to the storage", &fetched.raw)]), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_refused_and_a_printed_configuration_repeat_no_secret() {
    let key = "5ecret0123456789abcdef5ecret0123456789abcdef".to_owned();
    let (table, token) = team(TEAM, "");
    let secret = token.rsplit_once('_').unwrap().1.to_owned();
    let secrets = Secrets::new([("key", key.clone()), ("token", secret)]).with_fragments(FRAGMENT);
    let builder = || GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"));
    let ailab = |more: &str| format!("[upstream]\nkind = \"ailab\"\n{more}\n");
    let check = async |situation: &str, expected: i32, builder: GranaryBuilder| {
        let ended = builder.run(PATIENCE).await;
        assert_eq!(ended.status.code(), Some(expected), "{situation}: {ended:?}");
        let said = [("stdout", &ended.stdout), ("stderr", &ended.stderr)];
        assert_eq!(secrets.find_leaks(said), [], "{situation}");
        assert!(!(ended.stdout.is_empty() && ended.stderr.is_empty()), "{situation}: it says something");
        ended
    };
    let spaced = format!("{key} {key}");
    let by_variable = |value: &str| builder().env("GRANARY_UPSTREAM_API_KEY", value);
    check("a key for the built-in engine", 3, by_variable(&key)).await;
    check("a key that is none", 3, by_variable(&spaced).config_text(ailab(""))).await;
    let with_both = format!("api_key = \"{key}\"\napi_key_file = \"{key}\"");
    check("a key and a file", 3, builder().config_text(ailab(&with_both))).await;
    let as_file = format!("api_key_file = \"{key}\"");
    check("a key in the place of a file", 3, builder().config_text(ailab(&as_file))).await;
    let pasted = format!("[[team]]\nname = \"web\"\ntokens = [\"{token}\"]\n");
    check("a token in the place of its hash", 3, builder().config_text(pasted)).await;
    let hashed =
        format!("[[team]]\nname = \"web\"\ntokens = [{{ id = \"abcdefgh\", hash = \"{token}\" }}]\n");
    check("a token as hash", 3, builder().config_text(hashed)).await;
    check("no TOML", 3, builder().config_text(ailab(&format!("api_key = {key} = {token}")))).await;
    let config = format!("{}{table}", ailab(&format!("api_key = \"{key}\"")));
    let printed = check("config", 0, builder().config_text(config).args(["config"])).await;
    assert!(printed.stdout.contains("api_key = \"***\""), "the control: {}", printed.stdout);

    // The one place where a token is said, once.
    let made = builder().args(["token", "new", TEAM]).run(PATIENCE).await;
    let said = made.stdout.split_whitespace().find(|word| word.starts_with("granary_")).unwrap();
    let made_secret = Secrets::new([("new token", said.rsplit_once('_').unwrap().1)]);
    assert_eq!(made_secret.find_leaks([("stdout", &made.stdout)]).len(), 1);
    assert_eq!(made_secret.find_leaks([("stderr", &made.stderr)]), []);
}
