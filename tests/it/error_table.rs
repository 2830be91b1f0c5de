//! The error table: each situation is driven through a whole Granary, and answered as the table
//! says, in the upstream's envelope, and for nothing.
//!
//! Not here because this version does not have it yet: an erased result (410). Elsewhere: the archive
//! guard (`archive.rs`), an open circuit (`upstream_faults.rs`), the spool (`spool.rs`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, CROP_PATH, Call, RawConnection};
use granary_kit::form::{Form, Part};
use granary_kit::images;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{Granary, cache_status, files_below, team, upstream_section, within};

/// How many rows are driven at once.
const AT_ONCE: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_situation_is_answered_as_the_table_says_and_spends_nothing() {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut under_way = JoinSet::new();
    let mut rows = Vec::new();
    rows.extend(credentials());
    rows.extend(budgets());
    rows.extend(forms());
    rows.extend(pictures());
    rows.extend(requests());
    rows.extend(upstreams());
    rows.extend(results());
    rows.extend(ourselves());
    for row in rows {
        let turns = turns.clone();
        under_way.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            check(row).await;
        });
    }
    let mut broken = 0;
    while let Some(ended) = under_way.join_next().await {
        broken += usize::from(ended.is_err());
    }
    assert_eq!(broken, 0, "rows that differ from the table; each has said above what it is");
}

/// One situation of the table, and how a Granary is brought into it.
struct Row {
    situation: String,
    status: u16,
    code: &'static str,
    reason: Option<&'static str>,
    says: Vec<&'static str>,
    charges: u64,
    spends: f64,
    play: Pin<Box<dyn Future<Output = Scene> + Send>>,
}

fn row(
    situation: impl Into<String>,
    status: u16,
    code: &'static str,
    play: impl Future<Output = Scene> + Send + 'static,
) -> Row {
    Row {
        situation: situation.into(),
        status,
        code,
        reason: None,
        says: Vec::new(),
        charges: 0,
        spends: 0.0,
        play: Box::pin(play),
    }
}

impl Row {
    /// `Granary-Reason`.
    fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// What the message must name.
    fn says(mut self, words: &'static str) -> Self {
        self.says.push(words);
        self
    }

    /// The upstream charges for this although it gives no answer that could be booked.
    fn charged(self) -> Self {
        Self { charges: 1, ..self }
    }

    /// The upstream charges for this, and it is booked: only the result is still to be had.
    fn paid(self) -> Self {
        Self { charges: 1, spends: 3.0, ..self }
    }
}

/// A Granary in front of a fake AILab, and what had been spent before the request in question.
struct World {
    upstream: FakeAilab,
    granary: Granary,
    charges: u64,
    spent: f64,
}

/// How a play ends.
struct Scene {
    world: World,
    answer: Answer,
}

impl World {
    /// One team, `local`, with the defaults.
    async fn open() -> Self {
        Self::with("", "").await
    }

    /// `lines` go into `[upstream]`, `sections` follow it.
    async fn with(lines: &str, sections: &str) -> Self {
        let upstream = FakeAilab::start().await;
        let granary = Granary::builtin(&format!("{}\n{sections}", upstream_section(&upstream, lines))).await;
        Self { upstream, granary, charges: 0, spent: 0.0 }
    }

    /// One team, `web`, with these lines, and its token.
    async fn of_team(lines: &str) -> (Self, String) {
        let (table, token) = team("web", lines);
        (Self::with("", &table).await, token)
    }

    /// From here on nothing more may be spent.
    async fn mark(&mut self) {
        self.charges = self.upstream.charges();
        self.spent = self.granary.metric_sum("granary_credits_spent_total").await;
    }

    fn crop_call(&self, token: Option<&str>) -> Call {
        Call::crop(&self.granary.url(), token, &form())
    }

    async fn get(&self, path: &str) -> Answer {
        client::get(&format!("{}{path}", self.granary.url())).await.unwrap()
    }

    /// Buys the crop of [`form`], which must work.
    async fn buy(&self, token: Option<&str>) -> Answer {
        let answer = self.crop_call(token).send().await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    async fn admin(&self, path: &str) {
        let answer = Call::new("POST", &format!("{}{path}", self.granary.admin())).send().await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn end(self, answer: Answer) -> Scene {
        Scene { world: self, answer }
    }
}

/// The request that most rows send.
fn form() -> Form {
    Form::curl(images::photo_jpeg(), 300, 200)
}

async fn check(row: Row) {
    let Scene { world, answer } = row.play.await;
    let situation = &row.situation;
    assert_envelope(&answer, situation, row.status, row.code, &row.says);
    if let Some(reason) = row.reason {
        assert_eq!(answer.header("granary-reason"), Some(reason), "{situation}");
    }
    assert_eq!(world.upstream.charges() - world.charges, row.charges, "{situation}: charges");
    let spent = world.granary.metric_sum("granary_credits_spent_total").await - world.spent;
    assert_eq!(spent, row.spends, "{situation}: credits spent");
    assert_nothing_reserved(&world.granary, situation).await;
}

/// Nobody's credits are tied up by a request that was refused.
async fn assert_nothing_reserved(granary: &Granary, situation: &str) {
    let reserved = granary.metric("granary_ledger_credits{state=\"reserved\"}").await;
    assert_eq!(reserved, 0.0, "{situation}: credits still reserved");
}

/// Everything that holds for each error that Granary itself makes.
fn assert_envelope(answer: &Answer, situation: &str, status: u16, code: &str, says: &[&str]) {
    let all = format!("{situation}: {answer:?}");
    assert_eq!(answer.status, status, "{all}");
    let json = answer.json();
    let detail = &json["error_detail"];
    assert_eq!((&json["error_code"], &detail["status_code"]), (&status.into(), &status.into()), "{all}");
    assert_eq!((&json["error_code_str"], &detail["code"]), (&code.into(), &code.into()), "{all}");
    let text = text(code);
    assert_eq!(detail["code_message"], text, "{all}");
    let message = json["error_msg"].as_str().unwrap_or_else(|| panic!("{all}"));
    assert_eq!(detail["message"], message, "{all}");
    let sentence = message.strip_prefix(&format!("{text} - ")).unwrap_or_else(|| panic!("{all}"));
    assert!(sentence.split_whitespace().count() >= 4, "{all}");
    for words in says {
        assert!(sentence.contains(words), "{words:?} is not in {all}");
    }
    let id = answer.header("x-request-id").unwrap_or_else(|| panic!("{all}"));
    assert!(is_upper_case_uuid(id), "{all}");
    assert_eq!((&json["request_id"], &json["log_id"]), (&id.into(), &"0".into()), "{all}");
    assert_eq!(answer.headers("content-type"), ["application/json"], "{all}");
    assert_eq!(answer.headers("cache-control"), ["no-store"], "{all}");
    assert_waits(answer, situation);
    let challenge = if status == 401 { vec!["Bearer"] } else { vec![] };
    assert_eq!(answer.headers("www-authenticate"), challenge, "{all}");
    assert_eq!(answer.headers("allow").len(), usize::from(status == 405), "{all}");
}

/// `Retry-After` on every 429 and 503: whole seconds, at most an hour.
fn assert_waits(answer: &Answer, situation: &str) {
    let waits = answer.headers("retry-after");
    assert!(waits.len() == 1 || !matches!(answer.status, 429 | 503), "{situation}: {answer:?}");
    for wait in waits {
        assert!(wait.bytes().all(|byte| byte.is_ascii_digit()), "{situation}: {wait}");
        assert!((1..=3600).contains(&wait.parse::<u32>().unwrap()), "{situation}: {wait}");
    }
}

fn is_upper_case_uuid(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F' | b'-');
    groups == [8, 4, 4, 4, 12] && text.bytes().all(is_digit)
}

/// The texts of the vendor's table, written down a second time on purpose.
fn text(code: &str) -> String {
    let later = "Please try again later. If not resolved promptly, contact the platform.";
    match code {
        "ERROR_PARAMETERS" => "Invalid parameters.".to_owned(),
        "MISSING_PARAMETERS" => "Missing parameters.".to_owned(),
        "PARAMETERS_CANNOT_EMPTY" => "Parameters cannot be empty.".to_owned(),
        "ERROR_INVALID_PARAMETER" => "Invalid parameter.".to_owned(),
        "ERROR_APPLICATIONS_NOT_EXISTS" => "The application does not exist.".to_owned(),
        "ERROR_USER_LOCKED" => "The user is locked.".to_owned(),
        "ERROR_ILLEGAL_OPERATION" => "Illegal operation.".to_owned(),
        "ERROR_AI_NOT_EXISTS" => {
            "AI does not exist or has been deactivated, please contact the platform.".to_owned()
        }
        "ERROR_RESOURCE_NOT_FOUND" => "Resource not found.".to_owned(),
        "ERROR_FILE_NOT_FOUND" => "File not found.".to_owned(),
        "FILE_SIZE_EXCEEDS_LIMIT" => "File size exceeds limit.".to_owned(),
        "FILE_RESOLUTION_EXCEEDS_LIMITS" => "File resolution exceeds limits.".to_owned(),
        "ERROR_REQUEST_BODY_TOO_LARGE" => "Request body size exceeds limit.".to_owned(),
        "UNSUPPORTED_FILE_TYPES" => "Unsupported file types.".to_owned(),
        "FILE_DECODING_FAILURE" => "File decoding failed.".to_owned(),
        "ERROR_NOT_ENOUGH_CREDITS" => "Insufficient credits.".to_owned(),
        "EXCEEDING_LIMITS" => "Exceeds limit.".to_owned(),
        "ERROR_FILE_DOWNLOAD_FAILED" => "File download failed.".to_owned(),
        "ERROR_FILE_DOWNLOAD_TIMEOUT" => "File download timeout.".to_owned(),
        "ERROR_RESOURCE_UNAVAILABLE" => "Resource temporarily unavailable.".to_owned(),
        "SERVICE_INTERNAL_ERROR" => format!("Service internal error. {later}"),
        "AI_SERVICE_ERROR" => format!("AI service error. {later}"),
        "AI_SERVICE_INTERNAL_ERROR" => format!("AI service internal error. {later}"),
        "AI_SERVICE_UNAUTHORIZED" => format!("AI service unauthorized. {later}"),
        "AI_SERVICE_FLOW_RESTRICTION" => format!("AI service is rate-limited. {later}"),
        "AI_SERVICE_TIMEOUT" => format!("AI service timeout. {later}"),
        other => panic!("{other} is not in the table"),
    }
}

/// No, unknown and expired tokens; disabled teams; refreshes nobody may ask for.
fn credentials() -> Vec<Row> {
    const UNAUTHORISED: &str = "ERROR_APPLICATIONS_NOT_EXISTS";
    let presented = |situation: &'static str, headers: &'static [(&'static str, &'static str)]| {
        row(situation, 401, UNAUTHORISED, async move {
            let (world, _) = World::of_team("").await;
            let call =
                headers.iter().fold(world.crop_call(None), |call, (name, value)| call.header(name, value));
            let answer = call.send().await.unwrap();
            world.end(answer)
        })
    };
    const NOBODYS: &str = "granary_abcdefgh_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let mut rows = vec![
        presented("no token", &[]).says("ailabapi-api-key"),
        presented("an empty token", &[("ailabapi-api-key", "")]),
        presented("an unknown token", &[("ailabapi-api-key", NOBODYS)]),
        presented("an unknown token after Bearer", &[("Authorization", "Bearer granary_x_y")]),
        presented("the upstream's kind of key", &[("ailabapi-api-key", "0123456789abcdef")]),
        presented("a credential of another scheme", &[("Authorization", "Basic Z3JhbmFyeTpncmFuYXJ5")]),
    ];
    for path in [format!("{CROP_PATH}/{}", "0".repeat(64)), "/api/common/query-credits".to_owned()] {
        rows.push(row(format!("no token for {path}"), 401, UNAUTHORISED, async move {
            let (world, _) = World::of_team("").await;
            let answer = world.get(&path).await;
            world.end(answer)
        }));
    }
    rows.push(
        row("an expired token", 401, UNAUTHORISED, async {
            let (token, table) = team_whose_token_ends_in_an_hour();
            let mut world = World::with("", &table).await;
            world.buy(Some(&token)).await;
            world.granary.clock().turn(3600);
            world.mark().await;
            let answer = world.crop_call(Some(&token)).send().await.unwrap();
            world.end(answer)
        })
        .says("expired"),
    );
    let two = |situation: &'static str, more: &'static [(&'static str, &'static str)]| {
        row(situation, 400, "ERROR_PARAMETERS", async move {
            let (world, token) = World::of_team("").await;
            let call = world.crop_call(Some(&token));
            let answer = more.iter().fold(call, |call, (n, v)| call.header(n, v)).send().await.unwrap();
            world.end(answer)
        })
        .says("more than one credential")
    };
    rows.push(two("two credentials that differ", &[("Authorization", "Bearer granary_other")]));
    rows.push(two("one credential repeated", &[("ailabapi-api-key", NOBODYS)]));
    rows.push(
        row("a disabled team", 403, "ERROR_USER_LOCKED", async {
            let (world, token) = World::of_team("disabled = true").await;
            let answer = world.crop_call(Some(&token)).send().await.unwrap();
            world.end(answer)
        })
        .says("the team web"),
    );
    for is_stored in [false, true] {
        let situation = format!("a refresh it may not ask for, stored: {is_stored}");
        rows.push(
            row(situation, 403, "ERROR_ILLEGAL_OPERATION", async move {
                let (mut world, token) = World::of_team("may_refresh = false").await;
                if is_stored {
                    world.buy(Some(&token)).await;
                    world.mark().await;
                }
                let call = world.crop_call(Some(&token)).header("Granary-Refresh", "1");
                let answer = call.send().await.unwrap();
                world.end(answer)
            })
            .says("may_refresh"),
        );
    }
    rows
}

fn team_whose_token_ends_in_an_hour() -> (String, String) {
    let (secret, token) = granary::teams::Token::generate(None).unwrap();
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(60);
    let table = format!(
        "[[team]]\nname = \"web\"\ntokens = [{{ id = \"{}\", hash = \"{}\", expires = \"{end}\" }}]\n",
        token.id,
        token.hash.to_hex()
    );
    (secret.expose().to_owned(), table)
}

/// Used-up budgets, frozen spending, an empty account, a rate.
fn budgets() -> Vec<Row> {
    const NO_CREDITS: &str = "ERROR_NOT_ENOUGH_CREDITS";
    let of_team = |situation: &'static str, lines: &'static str| {
        row(situation, 429, NO_CREDITS, async move {
            let (world, token) = World::of_team(lines).await;
            let answer = world.crop_call(Some(&token)).send().await.unwrap();
            world.end(answer)
        })
    };
    let of_all = |situation: &'static str, lines: &'static str| {
        row(situation, 429, NO_CREDITS, async move {
            let world = World::with("", &format!("[budget]\n{lines}")).await;
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
    };
    let frozen = |situation: &'static str, path: &'static str| {
        row(situation, 429, NO_CREDITS, async move {
            let (world, token) = World::of_team("").await;
            world.admin(path).await;
            let answer = world.crop_call(Some(&token)).send().await.unwrap();
            world.end(answer)
        })
        .because("frozen")
    };
    vec![
        of_team("a team's daily budget is too small", "daily_credits = 2")
            .because("team_daily")
            .says("daily")
            .says("the team web")
            .says("resets at 20")
            .says("T00:00:00Z"),
        of_team("a team's monthly budget is too small", "monthly_credits = 2")
            .because("team_monthly")
            .says("monthly")
            .says("the team web")
            .says("-01T00:00:00Z"),
        of_all("the global daily budget is too small", "daily_credits = 2")
            .because("global_daily")
            .says("daily")
            .says("all teams")
            .says("T00:00:00Z"),
        of_all("the global monthly budget is too small", "monthly_credits = 2")
            .because("global_monthly")
            .says("monthly")
            .says("all teams")
            .says("-01T00:00:00Z"),
        row("a daily budget is used up", 429, NO_CREDITS, async {
            let (mut world, token) = World::of_team("daily_credits = 5").await;
            world.buy(Some(&token)).await;
            world.mark().await;
            let answer = world.granary.crop(Some(&token), images::photo_png(), 100, 100).await;
            world.end(answer)
        })
        .because("team_daily"),
        frozen("spending is frozen for all", "/admin/v1/freeze").says("all teams"),
        frozen("spending is frozen for the team", "/admin/v1/freeze?team=web").says("the team web"),
        row("the shared upstream account is empty", 429, NO_CREDITS, async {
            let world = World::open().await;
            world.upstream.set_balance(0, 2);
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .because("upstream_credits")
        .says("the shared upstream account"),
        row("a team's rate limit", 429, "EXCEEDING_LIMITS", async {
            let (mut world, token) = World::of_team("misses_per_second = 0.001").await;
            world.buy(Some(&token)).await;
            world.mark().await;
            let answer = world.granary.crop(Some(&token), images::photo_png(), 100, 100).await;
            world.end(answer)
        })
        .because("rate")
        .says("misses_per_second"),
    ]
}

/// A row about one form, sent to a Granary of its own.
fn of_form(situation: impl Into<String>, status: u16, code: &'static str, form: Form) -> Row {
    row(situation, status, code, async move {
        let world = World::open().await;
        let answer = client::post_form(&world.granary.url(), None, &form).await.unwrap();
        world.end(answer)
    })
}

/// What can be wrong with the multipart body and its fields.
fn forms() -> Vec<Row> {
    let typed = |situation: &'static str, content_type: Option<&'static str>| {
        row(situation, 400, "ERROR_PARAMETERS", async move {
            let world = World::open().await;
            let call =
                Call::new("POST", &format!("{}{CROP_PATH}", world.granary.url())).body(form().to_bytes());
            let call = content_type.into_iter().fold(call, |call, kind| call.header("Content-Type", kind));
            let answer = call.send().await.unwrap();
            world.end(answer)
        })
    };
    let mut rows = vec![
        typed("no media type", None).says("multipart/form-data"),
        typed("not multipart", Some("application/json")).says("multipart/form-data"),
        typed("multipart without a boundary", Some("multipart/form-data")).says("boundary"),
        typed("multipart with another boundary", Some("multipart/form-data; boundary=other")),
        of_form("multipart without its end", 400, "ERROR_PARAMETERS", form().unclosed()),
        of_form("a nested multipart", 400, "ERROR_PARAMETERS", {
            let nested = Part::file("image", "a", "multipart/mixed; boundary=b", b"--b--".as_slice());
            form().without("image").part(nested)
        }),
    ];
    for field in ["image", "width", "height"] {
        let twice = form().duplicate(field);
        rows.push(of_form(format!("two of {field}"), 400, "ERROR_PARAMETERS", twice));
        let without = form().without(field);
        rows.push(of_form(format!("{field} is missing"), 400, "MISSING_PARAMETERS", without));
        let empty = form().edit(field, |part| part.body.clear());
        rows.push(of_form(format!("{field} is empty"), 400, "PARAMETERS_CANNOT_EMPTY", empty));
    }
    let nothing = Form::empty();
    rows.push(of_form("a form without fields", 400, "MISSING_PARAMETERS", nothing).says("image"));
    for (field, value) in [
        ("width", "0"),
        ("width", "65536"),
        ("width", "-5"),
        ("width", "+5"),
        ("width", "5.0"),
        ("width", "1e3"),
        ("width", "0x10"),
        ("width", "4294967297"),
        ("width", "٣٠٠"),
        ("width", "3 0"),
        ("height", "0"),
        ("height", "65536"),
        ("height", "many"),
    ] {
        let wrong = form().edit(field, |part| part.body = value.into());
        rows.push(
            of_form(format!("{field} is {value}"), 400, "ERROR_INVALID_PARAMETER", wrong).says("65535"),
        );
    }
    rows
}

/// What can be wrong with the picture, and with the length of the body.
fn pictures() -> Vec<Row> {
    const LIMIT: usize = 3_670_016;
    let of_image = |situation: &'static str, status: u16, code: &'static str, image: Vec<u8>| {
        of_form(situation, status, code, Form::curl(image, 300, 200))
    };
    let too_wide = |width: u32, height: u32| images::png_header_claiming(width, height);
    vec![
        of_image("an image over 3.5 MiB by a byte", 413, "FILE_SIZE_EXCEEDS_LIMIT", {
            images::padded(images::photo_jpeg(), LIMIT + 1)
        })
        .says("3670016"),
        of_image("a declared length far over the limit", 413, "FILE_SIZE_EXCEEDS_LIMIT", {
            images::padded(images::photo_jpeg(), 5_000_000)
        }),
        row("an image over 3.5 MiB without a declared length", 413, "FILE_SIZE_EXCEEDS_LIMIT", async {
            let world = World::open().await;
            let image = images::padded(images::photo_jpeg(), LIMIT + 1);
            let call = Call::crop(&world.granary.url(), None, &Form::curl(image, 300, 200));
            let answer = call.send_chunked(64 * 1024).await.unwrap();
            world.end(answer)
        }),
        row("another body over the limit", 413, "ERROR_REQUEST_BODY_TOO_LARGE", async {
            let world = World::open().await;
            let note = form().field("note", vec![b'x'; LIMIT + 16 * 1024]);
            let answer = Call::crop(&world.granary.url(), None, &note).send_chunked(64 * 1024).await.unwrap();
            world.end(answer)
        }),
        of_image("a width over 2000 px", 413, "FILE_RESOLUTION_EXCEEDS_LIMITS", too_wide(2001, 10))
            .says("2001 x 10"),
        of_image("a height over 2000 px", 413, "FILE_RESOLUTION_EXCEEDS_LIMITS", too_wide(10, 2001)),
        of_image("a pixel bomb", 413, "FILE_RESOLUTION_EXCEEDS_LIMITS", too_wide(60_000, 60_000)),
        of_image("a GIF", 415, "UNSUPPORTED_FILE_TYPES", b"GIF89a\x01\0\x01\0\0\0\0;".to_vec()),
        of_image(
            "an SVG",
            415,
            "UNSUPPORTED_FILE_TYPES",
            b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_vec(),
        ),
        of_image("a PDF", 415, "UNSUPPORTED_FILE_TYPES", b"%PDF-1.7\n".to_vec()),
        of_image("a web page called image.jpg", 415, "UNSUPPORTED_FILE_TYPES", b"<!doctype html>".to_vec()),
        of_image("a PNG cut within its header", 422, "FILE_DECODING_FAILURE", {
            images::photo_png()[..12].to_vec()
        }),
        of_image("a JPEG cut before its size", 422, "FILE_DECODING_FAILURE", {
            images::photo_jpeg()[..6].to_vec()
        }),
        of_image("a picture without width", 422, "FILE_DECODING_FAILURE", too_wide(0, 10)),
    ]
}

/// Routes, methods, expectations, pace, names of keys and results, only-if-cached.
fn requests() -> Vec<Row> {
    let got = |path: String, code: &'static str| {
        row(format!("GET {path}"), 404, code, async move {
            let world = World::open().await;
            let answer = world.get(&path).await;
            world.end(answer)
        })
    };
    let mut rows = vec![
        row("a body too slow", 408, "ERROR_PARAMETERS", async {
            let world = World::with("", "[server]\nbody_timeout = \"300ms\"").await;
            let call = world.crop_call(None);
            let mut connection = call.send_part(call.body_len() / 2).await.unwrap();
            let answer = connection.read_answer(false).await.unwrap();
            world.end(answer)
        })
        .says("in time"),
        row("an unknown expectation", 417, "ERROR_PARAMETERS", async {
            let world = World::open().await;
            let answer = world.crop_call(None).header("Expect", "a-miracle").send().await.unwrap();
            world.end(answer)
        })
        .says("100-continue"),
        row("only-if-cached, and nothing stored", 504, "AI_SERVICE_TIMEOUT", async {
            let world = World::open().await;
            let answer =
                world.crop_call(None).header("Cache-Control", "only-if-cached").send().await.unwrap();
            assert_eq!(world.upstream.attempts(), 0);
            world.end(answer)
        })
        .says("only-if-cached"),
        got(format!("{CROP_PATH}/{}", "ab".repeat(32)), "ERROR_RESOURCE_NOT_FOUND"),
        got(format!("{CROP_PATH}/no-key"), "ERROR_RESOURCE_NOT_FOUND"),
        got(format!("/results/{}.png", "ab".repeat(32)), "ERROR_FILE_NOT_FOUND"),
        got("/results/no-result.png".to_owned(), "ERROR_FILE_NOT_FOUND"),
    ];
    for path in
        ["/api/image/editing/hairstyle-pro", "/api/common/query-async-task-result", "/admin/v1/freeze"]
    {
        rows.push(got(path.to_owned(), "ERROR_AI_NOT_EXISTS").says("image cropping"));
    }
    for (method, path) in [
        ("GET", CROP_PATH.to_owned()),
        ("PUT", CROP_PATH.to_owned()),
        ("DELETE", format!("{CROP_PATH}/{}", "ab".repeat(32))),
        ("POST", format!("/results/{}.png", "ab".repeat(32))),
        ("POST", "/api/common/query-credits".to_owned()),
        ("POST", "/".to_owned()),
        ("TRACE", "/".to_owned()),
    ] {
        rows.push(row(format!("{method} {path}"), 405, "ERROR_ILLEGAL_OPERATION", async move {
            let world = World::open().await;
            let answer = Call::new(method, &format!("{}{path}", world.granary.url())).send().await.unwrap();
            let allow = answer.header("allow").unwrap_or_default();
            assert!(!allow.split(", ").any(|allowed| allowed == method), "{method} {path}: {allow}");
            assert!(allow.split(", ").any(|allowed| allowed == "OPTIONS"), "{method} {path}: {allow}");
            world.end(answer)
        }));
    }
    rows
}

/// A row about one crop that the upstream treats in a special way.
fn of_upstream(situation: &'static str, status: u16, code: &'static str, behaviour: Behaviour) -> Row {
    row(situation, status, code, async move {
        let world = World::with("hard_stop = \"500ms\"", "").await;
        world.upstream.always(behaviour);
        let answer = world.crop_call(None).send().await.unwrap();
        world.end(answer)
    })
}

/// Everything that can go wrong with the paid call.
fn upstreams() -> Vec<Row> {
    const UNREACHABLE: &str = "AI_SERVICE_ERROR";
    const NONSENSE: &str = "AI_SERVICE_INTERNAL_ERROR";
    const THROTTLED: &str = "AI_SERVICE_FLOW_RESTRICTION";
    let with_code = r#"{"error_code":500,"error_detail":{"status_code":500,"code":"PROCESSING_FAILURE"}}"#;
    let without_url = r#"{"error_code":0,"data":{"retain_location":{"x":0}}}"#;
    let flow = |status, retry_after| Behaviour::FlowLimit { status, retry_after };
    let mut rows = vec![
        row("the upstream is down", 502, UNREACHABLE, async {
            let mut world = World::open().await;
            world.upstream.go_down().await;
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .says("nothing was charged"),
        of_upstream("the upload is reset", 502, UNREACHABLE, Behaviour::ResetDuringUpload(1000)),
        of_upstream("the upstream hangs up before its answer", 502, UNREACHABLE, Behaviour::CutBeforeAnswer)
            .charged(),
        of_upstream("half an answer", 502, UNREACHABLE, Behaviour::CutMidAnswer(150)).charged(),
        of_upstream("no answer at the hard stop", 502, UNREACHABLE, Behaviour::NeverAnswer).charged(),
        of_upstream("an answer that stalls", 502, UNREACHABLE, Behaviour::StallMidAnswer(150)).charged(),
        of_upstream("200 and a web page", 502, NONSENSE, Behaviour::raw(200, "text/html", "<html>"))
            .charged(),
        of_upstream(
            "200 and cut JSON",
            502,
            NONSENSE,
            Behaviour::raw(200, "application/json", "{\"data\":{"),
        )
        .charged(),
        of_upstream(
            "200 with an error code",
            502,
            NONSENSE,
            Behaviour::Raw {
                status: 200,
                content_type: "application/json".to_owned(),
                body: with_code.into(),
                charged: false,
            },
        )
        .says("PROCESSING_FAILURE"),
        of_upstream("200 without a URL", 502, NONSENSE, Behaviour::raw(200, "application/json", without_url))
            .charged(),
        of_upstream("500 and a web page", 502, NONSENSE, Behaviour::raw(500, "text/html", "<html>")),
        of_upstream("502 of something in between", 502, NONSENSE, Behaviour::raw(502, "text/html", "<html>")),
        of_upstream("a bare 413", 502, NONSENSE, Behaviour::raw(413, "text/html", "<html>")),
        of_upstream("a redirect", 502, NONSENSE, Behaviour::Redirect("http://127.0.0.1:1/".to_owned())),
        of_upstream("our key is unknown", 502, "AI_SERVICE_UNAUTHORIZED", Behaviour::KeyRefused)
            .says("your token is fine"),
        of_upstream("our account is locked", 502, "AI_SERVICE_UNAUTHORIZED", {
            Behaviour::refuse(403, "ERROR_USER_LOCKED")
        }),
        of_upstream(
            "our key is refused early",
            502,
            "AI_SERVICE_UNAUTHORIZED",
            Behaviour::RefuseEarly { status: 401, code: "ERROR_APPLICATIONS_NOT_EXISTS".to_owned() },
        ),
        of_upstream("a bare 401", 502, "AI_SERVICE_UNAUTHORIZED", Behaviour::raw(401, "text/plain", "no")),
        of_upstream("its flow limit, 429", 503, THROTTLED, flow(429, None)),
        of_upstream("its flow limit, 503", 503, THROTTLED, flow(503, Some(1))),
        row("no answer by the request's deadline", 504, "AI_SERVICE_TIMEOUT", async {
            let world = World::with("", "[server]\nanswer_within = \"500ms\"").await;
            world.upstream.always(Behaviour::Hold);
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .says("still being made; ask again, it will not be charged twice")
        .charged(),
    ];
    rows.push(
        row("a key on hold after an unknown outcome", 503, THROTTLED, async {
            let mut world = World::open().await;
            world.upstream.on_next(Behaviour::CutBeforeAnswer);
            assert_eq!(world.crop_call(None).send().await.unwrap().status, 502);
            world.mark().await;
            let answer = world.crop_call(None).send().await.unwrap();
            assert_eq!(world.upstream.attempts(), 1);
            world.end(answer)
        })
        .because("hold")
        .says("before 20"),
    );
    rows.push(
        row("the circuit is open", 503, THROTTLED, async {
            let mut world = World::open().await;
            world.upstream.go_down().await;
            for size in [90, 91] {
                world.granary.crop(None, images::photo_png(), size, size).await;
            }
            world.mark().await;
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .because("circuit_open")
        .says("nothing was spent"),
    );
    rows.push(
        row("the purchase stop", 503, THROTTLED, async {
            let mut world = World::with("result_url_ttl = \"100ms\"", "").await;
            world.upstream.always_results(ResultBehaviour::NotFound);
            for (size, lost) in [(90, 1.0), (91, 2.0), (92, 3.0)] {
                world.granary.crop(None, images::photo_png(), size, size).await;
                let series = "granary_fills_total{state=\"unfetchable\"}";
                within("the result to be given up", async {
                    while world.granary.metric(series).await < lost {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                })
                .await;
            }
            world.mark().await;
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .because("purchase_stop")
        .says("could not be fetched"),
    );
    rows.push(
        row("too busy", 503, THROTTLED, async {
            let mut world = World::with("concurrency = 1\nqueue = 0", "").await;
            let _first = busy_with_another_picture(&world).await;
            world.mark().await;
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .because("busy"),
    );
    rows.push(
        row("no turn can be expected in time", 503, THROTTLED, async {
            let mut world = World::with("concurrency = 1", "[server]\nanswer_within = \"1s\"").await;
            let _first = busy_with_another_picture(&world).await;
            world.mark().await;
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .because("busy"),
    );
    rows
}

/// A request for another picture, whose paid call is under way and stays so.
async fn busy_with_another_picture(world: &World) -> RawConnection {
    world.upstream.on_next(Behaviour::Hold);
    let call = Call::crop(&world.granary.url(), None, &Form::curl(images::photo_png(), 90, 90));
    let connection = call.send_part(call.body_len()).await.unwrap();
    world.upstream.wait_for_held(1).await;
    connection
}

/// Results that cannot be fetched, kept, or read.
fn results() -> Vec<Row> {
    const UNAVAILABLE: &str = "ERROR_RESOURCE_UNAVAILABLE";
    let unfetched = |situation: &'static str, status, code, behaviour: ResultBehaviour| {
        row(situation, status, code, async move {
            // Where nothing is said about time, a busy machine must not run out of it.
            let hangs = matches!(behaviour, ResultBehaviour::Hang);
            let world = World::with(if hangs { "result_timeout = \"100ms\"" } else { "" }, "").await;
            world.upstream.always_results(behaviour);
            let answer = world.crop_call(None).send().await.unwrap();
            world.end(answer)
        })
        .says("it will not be charged twice")
        .paid()
    };
    vec![
        unfetched("the result is not there", 502, "ERROR_FILE_DOWNLOAD_FAILED", ResultBehaviour::NotFound),
        unfetched("the result is a web page", 502, "ERROR_FILE_DOWNLOAD_FAILED", ResultBehaviour::Html),
        unfetched("the result breaks off", 502, "ERROR_FILE_DOWNLOAD_FAILED", ResultBehaviour::Truncate(50)),
        unfetched("the result does not come", 504, "ERROR_FILE_DOWNLOAD_TIMEOUT", ResultBehaviour::Hang),
        row("the result is at an address that is not allowed", 502, "ERROR_FILE_DOWNLOAD_FAILED", async {
            let world = World::open().await;
            let elsewhere = "http://169.254.169.254/latest/meta-data".to_owned();
            world.upstream.always(Behaviour::UrlOverride(elsewhere));
            let answer = world.crop_call(None).send().await.unwrap();
            assert!(!answer.text().contains("169.254"), "{}", answer.text());
            world.end(answer)
        })
        .paid(),
        row("no place to keep a result", 503, UNAVAILABLE, async {
            let world = World::open().await;
            std::fs::remove_dir_all(world.granary.store_path().join("tmp")).unwrap();
            let answer = world.crop_call(None).send().await.unwrap();
            assert_eq!(world.upstream.attempts(), 0);
            world.end(answer)
        })
        .says("no place"),
        row("the ledger is away", 503, UNAVAILABLE, async {
            let world = World::open().await;
            let ledger = world.granary.ledger_file();
            ledger.execute_batch("ALTER TABLE calls RENAME TO hidden").unwrap();
            let answer = world.crop_call(None).send().await.unwrap();
            ledger.execute_batch("ALTER TABLE hidden RENAME TO calls").unwrap();
            assert_eq!(world.upstream.attempts(), 0);
            world.end(answer)
        })
        .because("ledger"),
        row("the ledger cannot be written", 503, UNAVAILABLE, async {
            let world = World::open().await;
            let ledger = world.granary.ledger_file();
            ledger.execute_batch("BEGIN EXCLUSIVE").unwrap();
            let answer = world.crop_call(None).send().await.unwrap();
            ledger.execute_batch("ROLLBACK").unwrap();
            assert_eq!(world.upstream.attempts(), 0);
            world.end(answer)
        })
        .because("ledger"),
        row("a stored result is damaged", 503, UNAVAILABLE, async {
            let mut world = World::open().await;
            let url = world.buy(None).await.result_url();
            let path = url.strip_prefix(&world.granary.url()).unwrap();
            let file = world.granary.store_path().join(path.trim_start_matches('/'));
            let mut bytes = std::fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&file, bytes).unwrap();
            world.mark().await;
            let answer = world.get(path).await;
            world.end(answer)
        }),
    ]
}

/// Mistakes of our own.
fn ourselves() -> Vec<Row> {
    vec![
        row("a panic in a handler", 500, "SERVICE_INTERNAL_ERROR", async {
            let world = World::open().await;
            // A time of day beyond all calendars: whoever adds it up panics.
            let beyond = i64::MAX / 4;
            world.granary.clock().turn(beyond);
            let answer = world.get("/api/common/query-credits").await;
            world.granary.clock().turn(-beyond);
            let series = "granary_request_errors_total{class=\"gateway\",code=\"SERVICE_INTERNAL_ERROR\"}";
            assert_eq!(world.granary.metric(series).await, 1.0);
            world.end(answer)
        })
        .says("log"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_complete_errors_of_the_upstream_pass_through_with_status_and_body() {
    for (status, code) in [
        (400, "UNSUPPORTED_PARAMETER_VALUES"),
        (404, "ERROR_AI_NOT_EXISTS"),
        (413, "FILE_RESOLUTION_EXCEEDS_LIMITS"),
        (415, "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE"),
        (422, "FILE_CONTENT_NON_COMPLIANCE"),
        (500, "PROCESSING_FAILURE"),
        (502, "ERROR_FILE_UPLOAD_FAILED"),
        (503, "ERROR_INSUFFICIENT_RESOURCES"),
        (504, "AI_SERVICE_TIMEOUT"),
    ] {
        let world = World::open().await;
        let body = format!(
            "{{\"error_code\":{status},\"odd\" : [1 ,2],\"error_detail\":{{\"code\":\"{code}\"}},\"log_id\":\"77\"}}"
        );
        let (kind, sent) = ("application/json".to_owned(), body.clone().into_bytes());
        world.upstream.always(Behaviour::Raw { status, content_type: kind, body: sent, charged: false });
        let answer = world.crop_call(None).send().await.unwrap();
        assert_eq!((answer.status, answer.text()), (status, body), "{code}");
        assert_eq!(answer.headers("content-type"), ["application/json"], "{code}");
        assert_eq!(answer.headers("cache-control"), ["no-store"], "{code}");
        assert!(answer.header("x-request-id").is_some_and(is_upper_case_uuid), "{code}");
        assert_waits(&answer, code);
        assert_nothing_reserved(&world.granary, code).await;
        assert_eq!(world.granary.metric_sum("granary_credits_spent_total").await, 0.0, "{code}");
        // Four refusals depend on nothing but the order and are remembered; the others are asked again.
        assert_eq!(world.crop_call(None).send().await.unwrap().status, status);
        let is_remembered = matches!(status, 400 | 413 | 415 | 422);
        assert_eq!(world.upstream.attempts(), if is_remembered { 1 } else { 2 }, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_missed_its_deadline_is_made_all_the_same_and_charged_once() {
    let world = World::with("", "[server]\nanswer_within = \"1s\"").await;
    world.upstream.on_next(Behaviour::Hold);
    for _ in 0..2 {
        let answer = world.crop_call(None).send().await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (504, "AI_SERVICE_TIMEOUT"));
    }
    world.upstream.release();
    world.granary.wait_for_metric("granary_ledger_credits{state=\"stored\"}", 3.0).await;
    let answer = world.buy(None).await;
    assert!(cache_status(&answer).starts_with("granary; hit"), "{answer:?}");
    assert_eq!((world.upstream.charges(), world.upstream.attempts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_could_not_be_fetched_is_fetched_later_and_not_bought_again() {
    let world = World::open().await;
    world.upstream.always_results(ResultBehaviour::NotFound);
    let answer = world.crop_call(None).send().await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (502, "ERROR_FILE_DOWNLOAD_FAILED"));
    world.upstream.always_results(ResultBehaviour::Serve);
    world.granary.wait_for_metric("granary_ledger_credits{state=\"stored\"}", 3.0).await;
    world.buy(None).await;
    assert_eq!(world.upstream.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_unknown_outcomes_a_key_rests_a_minute_then_ten_then_until_the_day_is_over() {
    let world = World::open().await;
    world.upstream.always(Behaviour::CutBeforeAnswer);
    let ask = async |expected: u16, attempts: u64, when: &str| {
        let answer = world.crop_call(None).send().await.unwrap();
        assert_eq!((answer.status, world.upstream.attempts()), (expected, attempts), "{when}");
        answer
    };
    let clock = world.granary.clock();
    ask(502, 1, "the first").await;
    ask(503, 1, "at once").await;
    clock.turn(45);
    ask(503, 1, "before the minute is over").await;
    clock.turn(16);
    ask(502, 2, "after a minute").await;
    clock.turn(61);
    ask(503, 2, "a minute after the second").await;
    clock.turn(540);
    ask(502, 3, "ten minutes after the second").await;
    clock.turn(3600);
    let held = ask(503, 3, "an hour after the third").await;
    assert_envelope(&held, "the third", 503, "AI_SERVICE_FLOW_RESTRICTION", &["may have been charged"]);
    assert_eq!(held.header("granary-reason"), Some("hold"));
    // Another key is not concerned.
    world.upstream.on_next(Behaviour::Success);
    assert_eq!(world.granary.crop(None, images::photo_png(), 100, 100).await.status, 200);
    clock.turn(86_400);
    world.upstream.always(Behaviour::Success);
    ask(200, 5, "a day later").await;
    let unknown = world.granary.metric("granary_ledger_credits{state=\"unknown\"}").await;
    assert_eq!(unknown, 9.0, "until an operator settles them, they count");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_spending_stops_misses_alone_and_is_thawed_again() {
    let (web, web_token) = team("web", "");
    let (app, app_token) = team("app", "");
    let world = World::with("", &format!("{web}\n{app}")).await;
    world.buy(Some(&web_token)).await;
    let other = images::tiny_png(50, 50, 1);
    let miss = async |token: &str| world.granary.crop(Some(token), &other, 20, 20).await;

    world.admin("/admin/v1/freeze").await;
    for token in [&web_token, &app_token] {
        assert_eq!(miss(token).await.header("granary-reason"), Some("frozen"));
    }
    assert_eq!(cache_status(&world.buy(Some(&app_token)).await), "granary; hit; detail=memory");
    world.admin("/admin/v1/thaw").await;

    world.admin("/admin/v1/freeze?team=web").await;
    assert_eq!(miss(&web_token).await.header("granary-reason"), Some("frozen"));
    let restarted = World { granary: world.granary.restart().await, ..world };
    let miss = async |token: &str| restarted.granary.crop(Some(token), &other, 20, 20).await;
    assert_eq!(miss(&web_token).await.header("granary-reason"), Some("frozen"), "it outlives a restart");
    assert_eq!(miss(&app_token).await.status, 200, "another team is not frozen");
    restarted.admin("/admin/v1/thaw?team=web").await;
    let third = restarted.granary.crop(Some(&web_token), images::photo_png(), 20, 20).await;
    assert_eq!((third.status, restarted.upstream.charges()), (200, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_ledger_hits_go_on_from_memory_and_from_the_store() {
    for (memory, expected) in [("64MiB", "granary; hit; detail=memory"), ("0B", "granary; hit; detail=store")]
    {
        let world = World::with("", &format!("[cache]\nmemory = \"{memory}\"")).await;
        world.buy(None).await;
        let ledger = world.granary.ledger_file();
        ledger.execute_batch("ALTER TABLE calls RENAME TO hidden").unwrap();
        let hit = world.buy(None).await;
        assert_eq!(cache_status(&hit), expected);
        let result = client::get(&hit.result_url()).await.unwrap();
        assert_eq!(result.body, world.upstream.result_bytes(1));
        let miss = world.granary.crop(None, images::photo_png(), 100, 100).await;
        assert_eq!((miss.status, miss.header("granary-reason")), (503, Some("ledger")));
        ledger.execute_batch("ALTER TABLE hidden RENAME TO calls").unwrap();
        let healed = world.granary.crop(None, images::photo_png(), 100, 100).await;
        assert_eq!((healed.status, world.upstream.charges()), (200, 2), "{}", healed.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_nothing_is_bought_until_there_is_room() {
    let world = World::open().await;
    let stored = world.buy(None).await;
    std::fs::remove_dir_all(world.granary.store_path().join("tmp")).unwrap();
    let miss = world.granary.crop(None, images::photo_png(), 100, 100).await;
    assert_eq!((miss.status, miss.header("granary-reason")), (503, Some("no_room")));
    assert_eq!(world.buy(None).await.result_url(), stored.result_url());
    std::fs::create_dir(world.granary.store_path().join("tmp")).unwrap();
    let healed = world.granary.crop(None, images::photo_png(), 100, 100).await;
    assert_eq!((healed.status, world.upstream.charges()), (200, 2), "{}", healed.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miss_whose_body_arrives_while_granary_stops_is_refused_and_a_hit_is_served() {
    let world = World::open().await;
    world.buy(None).await;
    let url = world.granary.url();
    let miss = Call::crop(&url, None, &Form::curl(images::photo_png(), 100, 100));
    let hit = world.crop_call(None);
    let mut connections = Vec::new();
    for call in [&miss, &hit] {
        // The 100 tells that the head has been read: from there on the request is accepted.
        let mut connection = RawConnection::open(&url).await.unwrap();
        let bytes = call.clone().header("Expect", "100-continue").to_bytes();
        let (head, body) = bytes.split_at(bytes.len() - call.body_len());
        connection.send(head).await.unwrap();
        assert_eq!(connection.read_interim().await.unwrap(), 100);
        connections.push((connection, body.to_vec()));
    }
    let stopping = tokio::spawn(world.granary.stop());
    within("the listener to close", async {
        while RawConnection::open(&url).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut answers = Vec::new();
    for (mut connection, body) in connections {
        connection.send(&body).await.unwrap();
        answers.push(connection.read_answer(false).await.unwrap());
    }
    assert_envelope(&answers[0], "draining", 503, "AI_SERVICE_FLOW_RESTRICTION", &["stopping"]);
    assert_eq!(answers[0].header("granary-reason"), Some("draining"));
    assert_eq!(cache_status(&answers[1]), "granary; hit; detail=memory");
    let folder = within("the end", stopping).await.unwrap();
    assert_eq!((world.upstream.charges(), world.upstream.attempts()), (1, 1));
    let ledger = rusqlite::Connection::open(folder.path().join("state/ledger.sqlite")).unwrap();
    let rows: i64 = ledger.query_row("SELECT count(*) FROM calls", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1, "nothing was reserved for the refused one");
    assert_eq!(files_below(&folder.path().join("store/results")), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_built_in_engine_refuses_in_the_same_envelope() {
    let granary = Granary::builtin("").await;
    for (situation, image, width, status, code) in [
        ("grey", images::grey_jpeg(60, 60), 30, 415, "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE"),
        ("alpha", images::alpha_png(60, 60), 30, 415, "UNSUPPORTED_FILE_TYPES"),
        ("CMYK", images::cmyk_jpeg(64, 64), 30, 415, "UNSUPPORTED_FILE_TYPES"),
        ("too small a target", images::tiny_png(60, 60, 1), 9, 400, "ERROR_INVALID_PARAMETER"),
        ("too large a target", images::tiny_png(60, 60, 1), 2001, 400, "ERROR_INVALID_PARAMETER"),
        ("no pixels", images::png_header_claiming(60, 60), 30, 422, "FILE_DECODING_FAILURE"),
    ] {
        let answer = granary.crop(None, &image, width, 30).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{situation}");
        assert_eq!(answer.json()["error_code"], status, "{situation}");
        assert_nothing_reserved(&granary, situation).await;
    }
    assert_eq!(granary.metric_sum("granary_credits_spent_total").await, 0.0);
    tokio::time::timeout(Duration::from_secs(20), granary.stop()).await.unwrap();
}
