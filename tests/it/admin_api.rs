//! The admin listener: it is what its description says, lets in whom it should, and lets no page in a
//! browser change anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use boon::{Compiler, Schemas};
use granary::http::routes::admin_paths;
use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::GranaryProcess;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Granary, real, team, until};

const PATIENCE: Duration = Duration::from_secs(30);
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// The description, and the operations of each path in it.
struct Described {
    document: Value,
    operations: BTreeMap<String, Vec<String>>,
}

impl Described {
    async fn by(admin: &str) -> Self {
        let document = client::get(&format!("{admin}/admin/openapi.json")).await.unwrap().json();
        assert_eq!(document["openapi"], "3.1.0");
        let operations = document["paths"].as_object().unwrap().iter().map(|(path, operations)| {
            let methods = operations.as_object().unwrap().keys().map(|method| method.to_uppercase());
            (path.clone(), methods.collect())
        });
        Self { operations: operations.collect(), document: document.clone() }
    }

    /// Asserts that an answer of `method path` is one of those described, in status, type and shape.
    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let context = format!("{method} {path}: {} {}", answer.status, answer.text());
        let operation = &self.document["paths"][path][method.to_lowercase()];
        let mut response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "not described: {context}");
        if let Some(reference) = response["$ref"].as_str() {
            response = self.document.pointer(reference.trim_start_matches('#')).unwrap();
        }
        let content = response["content"].as_object().unwrap();
        let said = answer.header("content-type").unwrap_or_default();
        let kind = said.split(';').next().unwrap();
        let shape = content.get(kind).unwrap_or_else(|| panic!("{kind} is not described: {context}"));
        if kind != "application/json" {
            return;
        }
        // The whole document is the schema's surroundings, so that its references lead somewhere.
        let mut whole = self.document.clone();
        whole["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        whole["$defs"] = json!({ "wanted": shape["schema"] });
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource("mem:///openapi.json", whole).unwrap();
        let mut schemas = Schemas::new();
        let index = compiler.compile("mem:///openapi.json#/$defs/wanted", &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{context}: {error:#}"));
        if let Err(error) = schemas.validate(&answer.json(), index) {
            panic!("{context}\n{error:#}");
        }
    }
}

async fn ask(method: &str, url: &str) -> Answer {
    Call::new(method, url).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_described_route_is_served_and_each_served_route_is_described() {
    let granary = Granary::builtin("").await;
    let described = Described::by(&granary.admin()).await;
    let mut served: Vec<&str> = admin_paths();
    served.sort_unstable();
    assert_eq!(described.operations.keys().collect::<Vec<_>>(), served);
    let id = "0".repeat(64);
    for (path, methods) in &described.operations {
        let url = format!("{}{}", granary.admin(), path.replace("{key}", &id).replace("{id}", "1"));
        for method in METHODS {
            let answer = ask(method, &url).await;
            if methods.iter().any(|described| described == method) {
                assert!(![404, 405].contains(&answer.status) || answer.text().contains("reason"), "{path}");
                assert_ne!(answer.status, 405, "{method} {path}");
            } else {
                assert_eq!(answer.status, 405, "{method} {path} is not described");
                assert_eq!(answer.json()["reason"], "method_not_allowed");
                assert!(answer.header("allow").unwrap().contains(methods[0].as_str()), "{answer:?}");
            }
        }
    }
    // What changes something is never asked for by GET, which a picture in a page can do.
    for (path, methods) in &described.operations {
        let changes =
            ["/purge", "/settle", "/freeze", "/thaw", "/adopt"].iter().any(|end| path.ends_with(end));
        assert_eq!(methods == &["POST"], changes, "{path}");
    }
    for path in ["/admin", "/admin/", "/admin/v1/nothing", "/admin/v2/calls", "/console"] {
        let answer = ask("GET", &format!("{}{path}", granary.admin())).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (404, &json!("no_such_route")), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_shape_that_is_described() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let admin = granary.admin();
    let described = Described::by(&admin).await;
    let bought = granary.crop(None, images::photo_jpeg(), 300, 200).await;
    let key = bought.header("granary-key").unwrap().to_owned();
    upstream.on_next(Behaviour::CutBeforeAnswer);
    let unknown = granary.crop(None, images::photo_jpeg(), 301, 200).await;
    assert_eq!(unknown.status, 502, "{}", unknown.text());
    let doubtful = granary::base::key::CacheKey::of(images::photo_jpeg(), 301, 200).to_string();
    let nobody = "1".repeat(64);
    let mut seen = BTreeMap::new();
    for (method, path, rest, status) in [
        ("GET", "/livez", String::new(), 200),
        ("GET", "/readyz", String::new(), 200),
        ("GET", "/metrics", String::new(), 200),
        ("GET", "/admin/openapi.json", String::new(), 200),
        ("GET", "/admin/v1/build", String::new(), 200),
        ("GET", "/admin/v1/config", String::new(), 200),
        ("GET", "/admin/v1/calls", String::new(), 200),
        ("GET", "/admin/v1/calls", "?state=unknown&team=local&limit=1".to_owned(), 200),
        ("GET", "/admin/v1/calls", format!("?key={key}&before=99"), 200),
        ("GET", "/admin/v1/calls", "?state=lost".to_owned(), 200),
        ("GET", "/admin/v1/calls", "?state=gone".to_owned(), 400),
        ("GET", "/admin/v1/calls", "?limit=many".to_owned(), 400),
        ("GET", "/admin/v1/calls", "?tema=local".to_owned(), 400),
        ("GET", "/admin/v1/calls", "?key=abc".to_owned(), 400),
        ("GET", "/admin/v1/keys/{key}", key.clone(), 200),
        ("GET", "/admin/v1/keys/{key}", doubtful.clone(), 200),
        ("GET", "/admin/v1/keys/{key}", nobody.clone(), 200),
        ("GET", "/admin/v1/keys/{key}", "abc".to_owned(), 400),
        ("POST", "/admin/v1/calls/{id}/settle", "2?outcome=free".to_owned(), 200),
        ("POST", "/admin/v1/calls/{id}/settle", "2?outcome=free".to_owned(), 200),
        ("POST", "/admin/v1/calls/{id}/settle", "2?outcome=charged".to_owned(), 409),
        ("POST", "/admin/v1/calls/{id}/settle", "1?outcome=free".to_owned(), 409),
        ("POST", "/admin/v1/calls/{id}/settle", "4711?outcome=free".to_owned(), 404),
        ("POST", "/admin/v1/calls/{id}/settle", "x?outcome=free".to_owned(), 400),
        ("POST", "/admin/v1/calls/{id}/settle", "2?outcome=perhaps".to_owned(), 400),
        ("POST", "/admin/v1/calls/{id}/settle", "2".to_owned(), 400),
        ("POST", "/admin/v1/keys/{key}/purge", key.clone(), 200),
        ("POST", "/admin/v1/keys/{key}/purge", key.clone(), 200),
        ("POST", "/admin/v1/keys/{key}/purge", nobody, 404),
        ("POST", "/admin/v1/keys/{key}/purge", "abc".to_owned(), 400),
        ("GET", "/admin/v1/keys/{key}", key.clone(), 200),
        ("POST", "/admin/v1/freeze", String::new(), 200),
        ("POST", "/admin/v1/freeze", "?team=local".to_owned(), 200),
        ("POST", "/admin/v1/freeze", "?team=nobody".to_owned(), 404),
        ("POST", "/admin/v1/freeze", "?teem=local".to_owned(), 400),
        ("GET", "/admin/v1/frozen", String::new(), 200),
        ("POST", "/admin/v1/thaw", String::new(), 200),
        ("POST", "/admin/v1/thaw", "?team=nobody".to_owned(), 404),
        ("POST", "/admin/v1/adopt", String::new(), 200),
        ("GET", "/admin/v1/audit", String::new(), 200),
        ("GET", "/admin/v1/audit", "?limit=2".to_owned(), 200),
        ("GET", "/admin/v1/audit", "?before=-1".to_owned(), 400),
        ("GET", "/admin/v1/usage", String::new(), 200),
        ("GET", "/admin/v1/usage", "?by=team,day&from=2026-11-01&to=2026-12-31".to_owned(), 200),
        ("GET", "/admin/v1/usage", "?format=csv".to_owned(), 200),
        ("GET", "/admin/v1/usage", "?by=picture".to_owned(), 400),
        ("GET", "/admin/v1/usage", "?from=2026-12-01&to=2026-11-01".to_owned(), 400),
    ] {
        // What stands for a parameter of the path comes first, then the query.
        let (parameter, query) = match rest.split_once('?') {
            Some((parameter, query)) => (parameter, format!("?{query}")),
            None => (rest.as_str(), String::new()),
        };
        let place = path.replace("{key}", parameter).replace("{id}", parameter);
        let answer = ask(method, &format!("{admin}{place}{query}")).await;
        assert_eq!(answer.status, status, "{method} {place}{query}: {}", answer.text());
        described.check(method, path, &answer);
        if path.starts_with("/admin") {
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
        seen.entry(path).or_insert_with(Vec::new).push(answer);
    }
    assert!(described.operations.keys().all(|path| seen.contains_key(path.as_str())), "all were asked");

    let told = |path: &str, n: usize| seen[path][n].json();
    let known = told("/admin/v1/keys/{key}", 0);
    assert_eq!((&known["answer"]["team"], &known["answer"]["credits"]), (&json!("local"), &json!(3)));
    let object = &known["answer"]["object"];
    assert!(bought.result_url().ends_with(object["path"].as_str().unwrap()));
    assert_eq!((&object["there"], &object["spooled"]), (&json!(true), &json!(false)));
    assert_eq!(known["memory"], json!({"generation": 0, "current": true}));
    assert_eq!(known["record"], known["answer"]);
    let (request_id, upstream_id) =
        (&known["calls"][0]["upstream_request_id"], bought.json()["request_id"].clone());
    assert_eq!(*request_id, upstream_id);
    let doubted = told("/admin/v1/keys/{key}", 1);
    assert_eq!((&doubted["answer"], &doubted["calls"][0]["state"]), (&Value::Null, &json!("unknown")));
    assert!(doubted["rests_until"].is_string(), "{doubted}");
    let purged = told("/admin/v1/keys/{key}", 4);
    assert_eq!(
        (&purged["answer"], &purged["memory"], &purged["record"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!((&purged["purged_up_to"], &purged["calls"][0]["state"]), (&json!(0), &json!("stored")));
    assert_eq!(told("/admin/v1/frozen", 0), json!({"frozen": ["global", "team:local"]}));
    let settled = told("/admin/v1/calls/{id}/settle", 0);
    assert_eq!(settled, json!({"call": 2, "outcome": "free", "changed": true, "given_back": "budgets"}));

    let audit = told("/admin/v1/audit", 0);
    let actions: Vec<&str> =
        audit["lines"].as_array().unwrap().iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["adopt", "thaw", "freeze", "freeze", "purge", "settle"]);
    assert!(audit["lines"].as_array().unwrap().iter().all(|line| line["who"] == "loopback"));
    assert_eq!(granary.metric("granary_admin_actions_total{action=\"purge\",result=\"done\"}").await, 2.0);
    assert_eq!(granary.metric("granary_admin_actions_total{action=\"purge\",result=\"refused\"}").await, 1.0);
    let config = seen["/admin/v1/config"][0].text();
    assert!(config.contains("api_key = \"***\"") && !config.contains(&upstream.api_key()), "{config}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_signed_url_nor_a_secret_is_in_what_operators_are_told() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    // Its result is not to be had, so its row keeps the signed URL.
    upstream.on_next_result(ResultBehaviour::Hang);
    let key = granary::base::key::CacheKey::of(images::photo_jpeg(), 300, 200);
    let request = Form::curl(images::photo_jpeg(), 300, 200);
    let (url, admin) = (granary.url(), granary.admin());
    let waiting = tokio::spawn(async move { client::post_form(&url, None, &request).await });
    let answered = format!("{admin}/admin/v1/calls?state=answered");
    until("the call to be answered", async || {
        ask("GET", &answered).await.json()["calls"].as_array().is_some_and(|calls| !calls.is_empty())
    })
    .await;
    let mut everything = String::new();
    for path in ["calls", &format!("keys/{key}"), "audit", "config", "build", "frozen"] {
        everything += &ask("GET", &format!("{admin}/admin/v1/{path}")).await.text();
    }
    assert!(everything.contains("\"state\":\"answered\""), "control");
    for secret in [upstream.api_key().to_owned(), upstream.result_host(), "ignature".to_owned()] {
        let shown = everything.replace(&format!("result_hosts = [\"{}\"]", upstream.result_host()), "");
        assert!(!shown.contains(&secret), "{secret} in {shown}");
    }
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_in_a_browser_can_change_nothing() {
    let granary = Granary::builtin("").await;
    let admin = granary.admin();
    let own = admin.clone();
    let key = "0".repeat(64);
    let adopt = "/admin/v1/adopt".to_owned();
    let paths = [
        "/admin/v1/freeze".to_owned(),
        "/admin/v1/thaw".to_owned(),
        format!("/admin/v1/keys/{key}/purge"),
        "/admin/v1/calls/1/settle?outcome=free".to_owned(),
        adopt,
    ];
    for path in &paths {
        for (header, value) in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:1"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let answer =
                Call::new("POST", &format!("{admin}{path}")).header(header, value).send().await.unwrap();
            let told = (answer.status, answer.json()["reason"].clone());
            assert_eq!(told, (403, json!("cross_site")), "{path}, {header}: {value}");
        }
    }
    // A site whose name leads here is same-origin to the browser.
    for (method, path) in [("GET", "/admin/v1/calls"), ("POST", "/admin/v1/freeze")] {
        let call = Call::new(method, &format!("{admin}{path}")).header("host", "rebound.example:9090");
        let answer = call.header("sec-fetch-site", "same-origin").send().await.unwrap();
        assert_eq!((answer.status, answer.json()["reason"].clone()), (403, json!("foreign_name")));
    }
    assert_eq!(ask("GET", &format!("{admin}/admin/v1/frozen")).await.json(), json!({"frozen": []}));
    assert_eq!(ask("GET", &format!("{admin}/admin/v1/audit")).await.json()["lines"], json!([]));
    // What is asked for by itself, by hand or by a page of our own, is let through; no page may read it.
    for (header, value) in [("sec-fetch-site", "none"), ("origin", own.as_str())] {
        let call = Call::new("POST", &format!("{admin}/admin/v1/freeze")).header(header, value);
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_listener_knows_none_of_it() {
    let (table, token) = team("web", "");
    let granary = Granary::builtin(&table).await;
    for path in admin_paths() {
        let path = path.replace("{key}", &"0".repeat(64)).replace("{id}", "1");
        for method in ["GET", "POST"] {
            let call = Call::new(method, &format!("{}{path}", granary.url()));
            let answer = call.header("authorization", &format!("Bearer {token}")).send().await.unwrap();
            assert_eq!(
                (answer.status, answer.code()),
                (404, "ERROR_AI_NOT_EXISTS".to_owned()),
                "{method} {path}"
            );
        }
    }
}

const ONE: &str = "first-admin-token-0123456789-0123456789";
const OTHER: &str = "other-admin-token-0123456789-0123456789";

fn write_tokens(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tokens_are_configured_nothing_but_health_is_told_without_one() {
    let (team_table, team_token) = team("web", "");
    let builder = real();
    let file = builder.home().join("admin-tokens");
    write_tokens(&file, &format!("{ONE}\n"));
    // Beyond loopback, where nobody may be let in without one.
    let builder = builder
        .env("GRANARY_SERVER_ADMIN_LISTEN", "0.0.0.0:0")
        .env("GRANARY_SERVER_ADMIN_TOKEN_FILE", file.to_str().unwrap())
        .env("GRANARY_SERVER_DRAIN_GRACE", "0s")
        .config_text(team_table);
    let mut granary = builder.start().await.unwrap();
    let admin = granary.admin_url().replace("0.0.0.0", "127.0.0.1");
    let described = {
        let call = Call::new("GET", &format!("{admin}/admin/openapi.json"));
        let document = call.header("authorization", &format!("Bearer {ONE}")).send().await.unwrap().json();
        Described { operations: BTreeMap::new(), document }
    };
    let with = async |method: &str, path: &str, authorization: Option<&str>| {
        let mut call = Call::new(method, &format!("{admin}{path}"));
        if let Some(value) = authorization {
            call = call.header("authorization", value);
        }
        call.send().await.unwrap()
    };
    for path in admin_paths() {
        let method = if described.document["paths"][path]["get"].is_object() { "GET" } else { "POST" };
        let place = path.replace("{key}", &"0".repeat(64)).replace("{id}", "1?outcome=free");
        let is_open = !path.starts_with("/admin");
        let wrong = [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer first-admin-token"),
            Some(&format!("Bearer {OTHER}")),
            Some(&format!("Bearer {team_token}")),
            Some(&format!("Basic {ONE}")),
        ]
        .map(|value| value.map(str::to_owned));
        for authorization in wrong {
            let answer = with(method, &place, authorization.as_deref()).await;
            if is_open {
                assert_eq!(answer.status, 200, "{path}");
                continue;
            }
            assert_eq!(answer.status, 401, "{path} {authorization:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            described.check(method, path, &answer);
        }
        let answer = with(method, &place, Some(&format!("Bearer {ONE}"))).await;
        assert!(![401, 403].contains(&answer.status), "{path}: {}", answer.text());
        described.check(method, path, &answer);
    }
    // With a token it may be called by any name; but a page of another site still changes nothing.
    let call = Call::new("POST", &format!("{admin}/admin/v1/freeze"));
    let call = call.header("authorization", &format!("Bearer {ONE}")).header("host", "granary.example");
    assert_eq!(call.clone().send().await.unwrap().status, 200);
    assert_eq!(call.header("origin", "https://evil.example").send().await.unwrap().status, 403);

    // The verbs take it from the environment, and say so when they have none.
    let verb = |token: Option<&str>| {
        let verb = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"));
        let verb = verb.args(["thaw", "--admin-url", &admin]);
        token.map_or(verb.clone(), |token| verb.env("GRANARY_ADMIN_TOKEN", token))
    };
    let refused = verb(None).run(PATIENCE).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("GRANARY_ADMIN_TOKEN"), "{}", refused.stderr);
    let thawed = verb(Some(ONE)).run(PATIENCE).await;
    assert_eq!(
        (thawed.status.code(), thawed.stdout.as_str()),
        (Some(0), "global: thawed\n"),
        "{}",
        thawed.stderr
    );

    // Another file takes effect soon, and one that cannot be used changes nothing.
    write_tokens(&file, &format!("{ONE}\n{OTHER}\n"));
    let is_let_in = async |token: &str| {
        with("GET", "/admin/v1/build", Some(&format!("Bearer {token}"))).await.status == 200
    };
    until("the other token to be known", async || is_let_in(OTHER).await).await;
    assert!(is_let_in(ONE).await);
    write_tokens(&file, &format!("{OTHER}\n"));
    until("the first token to be refused", async || !is_let_in(ONE).await).await;
    write_tokens(&file, "");
    let problem = granary.wait_for_line(PATIENCE, |line| {
        line["message"].as_str().is_some_and(|text| text.contains("the tokens read before stay in use"))
    });
    assert!(problem.await.is_some(), "{}", granary.stderr_text());
    assert!(is_let_in(OTHER).await);
    assert_eq!(with("GET", "/admin/v1/build", None).await.status, 401);

    let audit = with("GET", "/admin/v1/audit", Some(&format!("Bearer {OTHER}"))).await.json();
    let id = &blake3::hash(ONE.as_bytes()).to_hex()[..8];
    assert_eq!(audit["lines"][0]["who"], format!("token {id}"));
    granary.terminate();
    assert_eq!(granary.wait_exit(PATIENCE).await.unwrap().code(), Some(0));
    for secret in [ONE, OTHER, &team_token] {
        assert!(!granary.stderr_text().contains(secret) && !granary.stdout_text().contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_listener_that_others_reach_is_not_opened_without_tokens() {
    let start = |file: Option<&str>| {
        let builder = real().env("GRANARY_SERVER_ADMIN_LISTEN", "0.0.0.0:0");
        file.map_or(builder.clone(), |file| builder.env("GRANARY_SERVER_ADMIN_TOKEN_FILE", file))
    };
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let open = folder.path().join("open");
    std::fs::write(&open, ONE).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let weak = folder.path().join("weak");
    write_tokens(&weak, "sesame\n");
    for (file, expected) in [
        (None, "server.admin_token_file"),
        (open.to_str(), "every user of this machine may read"),
        (weak.to_str(), "holds a line that is no token"),
        (Some("/nowhere/tokens"), "cannot be read"),
        (Some("/dev/null"), "does not name a file"),
    ] {
        let refused = start(file).start().await.unwrap_err();
        assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
        assert!(!refused.stderr.contains(ONE) && !refused.stderr.contains("sesame"), "{}", refused.stderr);
    }
}
