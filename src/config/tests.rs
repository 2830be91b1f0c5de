//! Files and variables, good and bad, and what becomes of them.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::base::secret::Secret;
use crate::teams::{BudgetMode, TokenId};

const HASH: &str = "c66f676610923a5e4ddaf2e9da5b1b0849b90ec2b57b78b2f1d70a7bf45455e6";

/// A file in which every field is set, to something else than its default.
fn full() -> String {
    format!(
        r#"
[server]
listen = "0.0.0.0:80"
admin_listen = "[::1]:9999"
public_url = "https://granary.example.com/"
cors_origins = ["https://app.example.com", "http://localhost:3000"]
max_connections = 12
head_timeout = "1s"
idle_timeout = "2m"
body_timeout = "3s"
min_upload_rate = "4KiB"
answer_within = "500ms"
drain_grace = "0s"

[upstream]
kind = "ailab"
namespace = "ailab-v2"
base_url = "http://localhost:4000"
api_key = "sesame-open"
concurrency = 1
queue = 0
credits_per_call = 7
credit_price = 0.0029
balance_interval = "1h"
connect_timeout = "1s500ms"
upload_timeout = "6s"
hard_stop = "1h"
result_hosts = ["*.example.com", "http://127.0.0.1:4001"]
result_url_ttl = "20h"
result_max_bytes = 1000
result_timeout = "9s"

[store]
kind = "local"
path = "/srv/granary/it's"
public_url = "https://cdn.example.com/granary/"

[state]
path = "/srv/granary/\"state\""

[cache]
memory = "0B"

[budget]
time_zone = "europe/berlin"
daily_credits = 100
monthly_credits = 2000

[log]
level = "trace"
format = "json"

[[team]]
name = "web"
tokens = [
    {{ id = "abcdefgh", hash = "{HASH}", expires = 2027-01-31 }},
    {{ id = "abcdefg2", hash = "{HASH}", expires = "2027-01-31T12:00:00+01:00" }},
    {{ id = "abcdefg3", hash = "{HASH}" }},
]
daily_credits = 0
monthly_credits = 9
mode = "shadow"
misses_per_second = 2
may_refresh = true
disabled = true

[[team]]
name = "shop-2"
tokens = [{{ id = "zzzzzzzz", hash = "{HASH}" }}]
"#
    )
}

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
    Config::parse(text, &Environment::of(Path::new(""), variables.iter().copied()))
}

fn valid(text: &str, variables: &[(&str, &str)]) -> Config {
    parse(text, variables).unwrap_or_else(|problems| panic!("{problems}")).config
}

/// The problems are exactly these: each line begins with the one expected.
#[track_caller]
fn check(text: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let problems = parse(text, variables).err().unwrap_or_default().to_string();
    let lines: Vec<&str> = problems.lines().collect();
    let agree = lines.len() == expected.len()
        && lines.iter().zip(expected).all(|(line, expected)| line.starts_with(expected));
    assert!(agree, "{text}\n{variables:?}\nfound    {lines:#?}\nexpected {expected:#?}");
}

#[test]
fn nothing_at_all_is_the_embedded_mode() {
    let loaded = parse("", &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.warnings.is_empty());
    let config = loaded.config;
    assert_eq!(config.upstream.kind, UpstreamKind::Builtin);
    assert_eq!(config.upstream.namespace, "builtin-v1");
    assert!(config.server.listen.ip().is_loopback() && config.server.admin_listen.ip().is_loopback());
    assert_eq!(config.server.public_origin(config.server.listen).as_str(), "http://127.0.0.1:8080");
    assert!(config.to_teams().is_open());
    assert_eq!(config.upstream.key(), Ok(None));
}

#[test]
fn every_field_is_read() {
    let config = valid(&full(), &[]);
    assert_eq!(config.server.listen, "0.0.0.0:80".parse().unwrap());
    assert_eq!(config.server.public_origin(config.server.listen).as_str(), "https://granary.example.com");
    assert_eq!(config.server.cors_origins.len(), 2);
    assert_eq!(config.server.max_connections, 12);
    assert_eq!(config.server.answer_within, Duration::from_millis(500));
    assert_eq!(config.server.drain_grace, Duration::ZERO);
    assert_eq!(config.upstream.namespace, "ailab-v2");
    assert_eq!(config.upstream.key(), Ok(Some(Secret::new("sesame-open"))));
    assert_eq!(config.upstream.connect_timeout, Duration::from_millis(1500));
    assert_eq!(config.upstream.result_max_bytes, ByteSize(1000));
    assert_eq!(config.upstream.result_hosts, ["*.example.com", "http://127.0.0.1:4001"]);
    assert_eq!(config.store.path, Path::new("/srv/granary/it's"));
    let served_at = config.store.public_url.as_ref().map(BaseUrl::as_str);
    assert_eq!(served_at, Some("https://cdn.example.com/granary"));
    assert_eq!(config.budget.time_zone.iana_name(), Some("Europe/Berlin"));
    assert_eq!(config.budget.daily_credits, Some(100));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Trace, LogFormat::Json));

    let [web, shop] = &config.teams[..] else { panic!("two teams") };
    let expiries: Vec<_> = web.tokens.iter().map(|token| token.expires.map(|at| at.to_string())).collect();
    assert_eq!(expiries, [Some("2027-01-31T00:00:00Z".into()), Some("2027-01-31T11:00:00Z".into()), None]);
    assert_eq!(web.tokens[0].id, TokenId::parse("abcdefgh").unwrap());
    assert_eq!(web.tokens[0].hash.to_hex().as_str(), HASH);
    assert_eq!((web.daily_credits, web.monthly_credits), (Some(0), Some(9)));
    assert_eq!((web.mode, web.misses_per_second), (BudgetMode::Shadow, Some(2.0)));
    assert_eq!((shop.mode, shop.misses_per_second), (BudgetMode::Enforce, None));

    let teams = config.to_teams();
    let team = teams.get("web").unwrap();
    assert!(team.may_refresh && team.disabled && team.mode == BudgetMode::Shadow);
    assert_eq!((team.daily_credits, team.monthly_credits), (Some(0), Some(9)));
}

/// No field of the full example has its default, so a field that is not printed, or not read, shows.
#[test]
fn what_is_printed_parses_back() {
    for text in [
        "",
        &full(),
        "[budget]\ndaily_credits = 9\n[upstream]\nkind = \"ailab\"\napi_key_file = \"/dev/null\"\n",
    ] {
        let mut reading = read::ConfigReader::default();
        let mut config = reading.file(text).unwrap();
        check::check(&mut config, &mut reading);
        let printed = config.to_commented_toml();
        let again = read::ConfigReader::default().file(&printed).unwrap();
        if config.upstream.api_key.is_some() {
            assert_eq!(again.upstream.api_key, Some(Secret::new("***")));
            config.upstream.api_key = again.upstream.api_key.clone();
        }
        assert_eq!(again, config, "{printed}");
        assert_eq!(again.to_commented_toml(), printed);
    }
    let loaded = parse(&valid(&full(), &[]).to_commented_toml(), &[]).unwrap();
    assert!(loaded.warnings[0].starts_with("upstream.api_key holds the stars"), "{:?}", loaded.warnings);
}

#[test]
fn every_field_is_printed_with_its_docs() {
    let printed = Config::default().to_commented_toml();
    for line in [
        "[server]",
        "# Address and port for clients. Beyond loopback, teams must be configured.",
        "listen = \"127.0.0.1:8080\"",
        "#public_url =",
        "# What one crop costs, in credits.",
        "credits_per_call = 3",
        "result_url_ttl = \"23h30m\"",
        "memory = \"256MiB\"",
        "#[[team]]",
        "#tokens = []",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
    let documented = |before: &str| before.starts_with("# ");
    for pair in printed.lines().collect::<Vec<_>>().windows(2) {
        let is_setting = pair[1].contains(" =") && !pair[1].starts_with("# ");
        assert!(!is_setting || documented(pair[0]), "{pair:?}");
    }
}

#[test]
fn a_balance_is_asked_for_at_most_every_second_or_never() {
    let check = |written: &str, is_valid: bool| {
        let config = parse(&format!("[upstream]\nbalance_interval = \"{written}\""), &[]);
        assert_eq!(config.is_ok(), is_valid, "{written}");
        let problems = config.err().map(|problems| problems.to_string()).unwrap_or_default();
        assert_eq!(problems.contains("write at least 1s, or 0s for never"), !is_valid, "{problems}");
    };
    check("1s", true);
    check("0s", true);
    check("999ms", false);
}

#[test]
fn a_price_is_as_exact_as_it_was_written() {
    let check = |written: &str, printed: Option<&str>| {
        let config = parse(&format!("[upstream]\ncredit_price = {written}"), &[]);
        let price = config.ok().map(|loaded| loaded.config.upstream.credit_price.unwrap().to_string());
        assert_eq!(price.as_deref(), printed, "{written}");
    };
    check("0.0029", Some("0.0029"));
    check("\"0.0029\"", Some("0.0029"));
    check("0.1", Some("0.1"));
    check("2", Some("2"));
    check("1e-3", Some("0.001"));
    for wrong in ["-1", "0.0000001", "nan", "\"cheap\"", "true", "1000001"] {
        check(wrong, None);
    }
}

#[test]
fn no_secret_is_shown() {
    let config = valid(&full(), &[]);
    for text in [format!("{config:?}"), format!("{config:#?}"), config.to_commented_toml()] {
        assert!(text.contains("***") && !text.contains("sesame"), "{text}");
    }
}

#[test]
fn variables_go_before_the_file() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\nmax_connections = 5\n";
    let config = valid(
        file,
        &[
            ("GRANARY_SERVER_LISTEN", "127.0.0.1:2"),
            ("GRANARY_SERVER_CORS_ORIGINS", "https://a.example, https://b.example,"),
            ("GRANARY_SERVER_DRAIN_GRACE", ""),
            ("GRANARY_UPSTREAM_KIND", "ailab"),
            ("GRANARY_UPSTREAM_API_KEY", "sesame\n"),
            ("GRANARY_BUDGET_DAILY_CREDITS", "12"),
            ("GRANARY_BUDGET_TIME_ZONE", "Asia/Tokyo"),
            ("GRANARY_CACHE_MEMORY", "1MiB"),
            ("GRANARY_STATE_PATH", "elsewhere"),
            ("GRANARY_LOG_LEVEL", "debug"),
        ],
    );
    assert_eq!(config.server.listen.port(), 2);
    assert_eq!(config.server.max_connections, 5);
    assert_eq!(config.server.cors_origins.len(), 2);
    assert_eq!(config.server.drain_grace, Duration::from_secs(5));
    assert_eq!(config.upstream.namespace, "ailab-v1");
    assert_eq!(config.upstream.api_key, Some(Secret::new("sesame")));
    assert_eq!(config.budget.daily_credits, Some(12));
    assert_eq!(config.budget.time_zone.iana_name(), Some("Asia/Tokyo"));
    assert_eq!(config.cache.memory, ByteSize::mib(1));
    assert_eq!(config.state.path, Path::new("elsewhere"));
    assert_eq!(config.log.level, LogLevel::Debug);
}

#[test]
fn every_scalar_field_has_a_variable() {
    let printed = Config::default().to_commented_toml();
    let mut section = "";
    for line in printed.lines().take_while(|line| *line != "#[[team]]") {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((field, _)) = line.split_once(" =").filter(|_| !line.starts_with("# ")) {
            let name = format!("GRANARY_{section}_{}", field.trim_start_matches('#')).to_uppercase();
            let warnings = parse("", &[(&name, "\u{1}")]).map(|loaded| loaded.warnings);
            assert!(!warnings.is_ok_and(|warnings| !warnings.is_empty()), "{name}");
        }
    }
}

#[test]
fn unknown_variables_are_warnings_and_others_are_left_alone() {
    let warnings = |variables| parse("", variables).unwrap().warnings;
    assert_eq!(
        warnings(&[("GRANARY_PORT", "tcp://10.0.0.1:80"), ("GRANARY_SERVER_LISTNE", "x"), ("OTHER", "x")]),
        [
            "the variable GRANARY_PORT is no setting of Granary and is ignored",
            "the variable GRANARY_SERVER_LISTNE is no setting of Granary and is ignored",
        ]
    );
    let ours = [
        ("GRANARY_CONFIG", "x.toml"),
        ("GRANARY_ADMIN_TOKEN", "x"),
        ("GRANARY_CRASH_AT", "x"),
        ("GRANARY_CLOCK_OFFSET", "x"),
        ("GRANARY_DUMPABLE", "x"),
        ("RUST_LOG", "x"),
    ];
    assert!(warnings(&ours).is_empty());
}

/// A configuration with a bucket, and more lines in `[state]`.
fn with_state(lines: &str) -> String {
    format!("[store]\nkind = \"s3\"\nbucket = \"b\"\n\n[state]\n{lines}\n")
}

const DATABASE: &str = "database_url = \"postgres://granary:sesame@db.example.com/granary\"";

#[test]
fn a_database_is_named_once_and_wants_a_bucket() {
    let config = parse(&with_state(DATABASE), &[]).unwrap().config;
    assert_eq!(config.state.database().unwrap().unwrap().place(), "db.example.com:5432/granary");
    assert!(!config.to_commented_toml().contains("sesame"));
    let from_variable =
        parse(&with_state(""), &[("GRANARY_STATE_DATABASE_URL", "postgres://db.example.com/x\n")]);
    assert!(from_variable.unwrap().config.state.has_database());

    check(
        &format!("[state]\n{DATABASE}"),
        &[],
        &["state.database_url: is set, but results are kept in files"],
    );
    check(
        &with_state(&format!("{DATABASE}\ndatabase_url_file = \"/nowhere\"")),
        &[],
        &["state.database_url: is set, and so is state.database_url_file"],
    );
    check(
        &with_state("database_url = \"sesame\""),
        &[],
        &["state.database_url: is not the address of a database"],
    );
    check(
        &with_state("database_url_file = \"/nowhere\""),
        &[],
        &["state.database_url_file: names a file that cannot be read"],
    );
    check(
        &with_state("database_ca = \"ca.pem\""),
        &[],
        &["state.database_ca: is set, but the ledger is kept in a file"],
    );
}

#[test]
fn a_databases_address_may_rest_in_a_file_that_not_everyone_may_read() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("address");
    fs::write(&file, "postgres://granary:sesame@db.example.com/granary\n").unwrap();
    let text = with_state(&format!("database_url_file = \"{}\"", file.display()));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    check(&text, &[], &["state.database_url_file: names a file that every user of this machine may read"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let state = parse(&text, &[]).unwrap().config.state;
    assert_eq!(state.database().unwrap().unwrap().place(), "db.example.com:5432/granary");
    // Read again for each connection.
    fs::write(&file, "postgres://granary:sesame2@other.example.com/granary\n").unwrap();
    assert_eq!(state.database().unwrap().unwrap().place(), "other.example.com:5432/granary");
}

#[test]
fn a_variable_that_is_no_text_is_a_problem() {
    let value = OsString::from_vec(vec![0xFF]);
    let environment =
        Environment::of_variables([("GRANARY_STORE_PATH".into(), value.clone()), ("LANG".into(), value)]);
    let problems = Config::parse("", &environment).unwrap_err().to_string();
    assert_eq!(
        problems,
        "GRANARY_STORE_PATH: is a variable that is not UTF-8; set it again in that encoding"
    );
}

#[test]
fn values_that_cannot_be_read_are_named() {
    check(
        "[server]\nlisten = \"localhost\"",
        &[],
        &["server.listen: is \"localhost\"; write an IP address and a port"],
    );
    check("[server]\nlisten = 8080", &[], &["server.listen: is a whole number; write a text in quotes"]);
    check(
        "[server]\npublic_url = \"granary\"",
        &[],
        &["server.public_url: is not an origin; write http:// or"],
    );
    check(
        "[server]\ncors_origins = [\"https://a.example\", \"*\", 5]",
        &[],
        &[
            "server.cors_origins[1]: is not an origin",
            "server.cors_origins[2]: is a whole number; write a text in quotes",
        ],
    );
    check(
        "[server]\ncors_origins = \"https://a.example\"",
        &[],
        &["server.cors_origins: is a text in quotes; write a list in square brackets"],
    );
    check(
        "[server]\nmax_connections = \"5\"",
        &[],
        &["server.max_connections: is a text in quotes; write a whole number, without quotes"],
    );
    check(
        "[server]\nmax_connections = -5",
        &[],
        &["server.max_connections: is -5; write a whole number, 0 or more"],
    );
    check(
        "[server]\nhead_timeout = 5",
        &[],
        &["server.head_timeout: is a whole number; write a text in quotes"],
    );
    check(
        "[server]\nhead_timeout = \"5\"",
        &[],
        &["server.head_timeout: is \"5\"; write a duration with its unit"],
    );
    check(
        "[server]\nhead_timeout = \"-5s\"",
        &[],
        &["server.head_timeout: is \"-5s\"; a duration cannot be negative"],
    );
    check(
        "[server]\nhead_timeout = \"9000h\"",
        &[],
        &["server.head_timeout: is \"9000h\"; write at most a year"],
    );
    check(
        "[server]\nmin_upload_rate = \"fast\"",
        &[],
        &["server.min_upload_rate: is \"fast\"; write a whole number of bytes with its unit"],
    );
    check("[cache]\nmemory = true", &[], &["cache.memory: is true or false; write a size such as"]);
    check("[upstream]\nkind = \"aws\"", &[], &["upstream.kind: is \"aws\"; write one of builtin, ailab"]);
    check("[store]\nkind = \"gcs\"", &[], &["store.kind: is \"gcs\"; write one of local, s3"]);
    check("[store]\npath = \"\"", &[], &["store.path: is not a path; write the name of a file or folder"]);
    check(
        "[budget]\ntime_zone = \"Mars/Base\"",
        &[],
        &["budget.time_zone: is \"Mars/Base\"; write the IANA name"],
    );
    check("[budget]\ntime_zone = \"\"", &[], &["budget.time_zone: is \"\"; write the IANA name"]);
    check(
        "[log]\nlevel = \"granary=trace\"",
        &[],
        &["log.level: is \"granary=trace\"; write one of error, warn,"],
    );
    check("[log]\nformat = []", &[], &["log.format: is a list; write a text in quotes"]);
    check(
        "",
        &[("GRANARY_UPSTREAM_QUEUE", "many")],
        &["upstream.queue (from GRANARY_UPSTREAM_QUEUE): is \"many\"; write a whole number, 0 or more"],
    );
    check(
        "",
        &[("GRANARY_SERVER_CORS_ORIGINS", "*")],
        &["server.cors_origins (from GRANARY_SERVER_CORS_ORIGINS): is not an origin"],
    );
    check(
        &format!("[log]\nlevel = \"{}\"", "x".repeat(1000)),
        &[],
        &["log.level: is a text of 1000 characters; write one of"],
    );
}

#[test]
fn what_is_unknown_is_refused() {
    check(
        "[server]\nport = 80\n[tracing]\nx = 1",
        &[],
        &[
            "server.port: is unknown; the fields here are listen, admin_listen, admin_token_file, public_url,",
            "tracing: is unknown; the sections are [server], [upstream], [store], [state], [cache], [budget], [log] and",
        ],
    );
    check("[server]\n\"a\\nb\" = 80", &[], &["server.\"a\\nb\": is unknown"]);
    check("[server]\nport = \"x\"", &[], &["server.port: is unknown"]);
    check("[teams]", &[], &["teams: is unknown"]);
    check("server = 5", &[], &["server: is a whole number; write a section [server]"]);
    check(
        "team = 5",
        &[("GRANARY_SERVER_LISTEN", "0.0.0.0:80"), ("GRANARY_SERVER_PUBLIC_URL", "http://x")],
        &["team: is not a team; begin each team with a line [[team]] and its name"],
    );
    check("team = [5]", &[], &["team[0]: is not a team; begin each team"]);
    check("[team]\nname = \"web\"", &[], &["team: is not a team; begin each team"]);
}

#[test]
fn what_is_not_toml_is_reported_by_line_and_never_quoted() {
    check("\n[server\nlisten = \"x\"", &[], &["line 2: is not TOML ("]);
    check("[server]\nmax_connections = 1\nmax_connections = 2", &[], &["line 3: is not TOML (duplicate key"]);
    check(
        "[upstream]\napi_key = sesame\nqueue == 5",
        &[("GRANARY_UPSTREAM_KIND", "x"), ("GRANARY_SERVER_LISTEN", "0.0.0.0:80")],
        &[
            "line 2: is not TOML (",
            "line 3: is not TOML (",
            "upstream.kind (from GRANARY_UPSTREAM_KIND): is \"x\"; write one of builtin, ailab",
        ],
    );
    for text in ["[upstream]\napi_key = sesame", "[upstream]\nsesame", "sesame = \"sesame", "[sesame"] {
        let problems = parse(text, &[]).unwrap_err().to_string();
        assert!(!problems.contains("sesame"), "{problems}");
    }
}

#[test]
fn listeners_beyond_loopback_need_what_makes_them_safe() {
    let team = "[[team]]\nname = \"web\"\n";
    check(
        "[server]\nlisten = \"0.0.0.0:80\"",
        &[],
        &[
            "server.listen: is 0.0.0.0:80, which other machines can reach, and no teams are configured, so anyone \
         could spend credits; add a [[team]] with a token (granary token new TEAM), or listen on 127.0.0.1",
            "server.public_url: is missing; permanent URLs begin with it",
        ],
    );
    check(&format!("[server]\nlisten = \"[::]:80\"\n{team}"), &[], &["server.public_url: is missing"]);
    check(&format!("[server]\nlisten = \"10.0.0.1:80\"\npublic_url = \"http://10.0.0.1\"\n{team}"), &[], &[]);
    check("[server]\nlisten = \"[::ffff:127.0.0.1]:80\"", &[], &[]);
    check("[server]\nlisten = \"127.0.0.2:0\"\nadmin_listen = \"127.0.0.2:0\"", &[], &[]);
    check(
        "[server]\nadmin_listen = \"0.0.0.0:9090\"",
        &[],
        &["server.admin_listen: is 0.0.0.0:9090, which other machines can reach, and no admin token is"],
    );
    check(
        "[server]\nadmin_listen = \"127.0.0.1:8080\"",
        &[],
        &["server.admin_listen: is the same address as server.listen; give it another port"],
    );
    // Nothing follows from a value that could not be read.
    check(
        "[server]\nlisten = \"0.0.0.0:80\"\npublic_url = \"x\"\n[[team]]\nname = \"web\"",
        &[],
        &["server.public_url: is not an origin"],
    );
}

#[test]
fn limits_have_limits() {
    check(
        "[server]\nhead_timeout = \"0s\"\nidle_timeout = \"1us\"",
        &[],
        &[
            "server.head_timeout: leaves no time at all; write at least 1ms",
            "server.idle_timeout: leaves no time at all",
        ],
    );
    check(
        "[server]\nmax_connections = 0",
        &[],
        &["server.max_connections: is 0; write a number from 1 to 1000000"],
    );
    check(
        "[upstream]\nconcurrency = 0\nqueue = 9999999\ncredits_per_call = 0\nresult_max_bytes = \"2GiB\"",
        &[],
        &[
            "upstream.concurrency: is 0; write a number from 1 to 1000",
            "upstream.queue: is 9999999; write a number from 0 to",
            "upstream.credits_per_call: is 0; write a number from 1 to",
            "upstream.result_max_bytes: is 2147483648; write a number from 1 to 67108864",
        ],
    );
    check(
        "[store]\npath = \"same\"\n[state]\npath = \"same\"",
        &[],
        &["state.path: is the same folder as store.path"],
    );
}

#[test]
fn a_bucket_is_named_and_its_service_has_an_address() {
    let s3 = |rest: &str| format!("[store]\nkind = \"s3\"\n{rest}");
    let bucket = |rest: &str| s3(&format!("bucket = \"b\"\n{rest}"));
    check(&s3(""), &[], &["store.bucket: is missing; write the name of an existing bucket"]);
    check(&s3(""), &[("GRANARY_STORE_BUCKET", "b")], &[]);
    check(
        &s3("bucket = \"s3://b/c\""),
        &[],
        &["store.bucket: is not a bucket's name; write it without s3://"],
    );
    check("[store]\nbucket = \"b\"", &[], &["store.bucket: is set, but results are kept in files"]);
    for right in ["", "/", "a", "/a/b-1_2.x/"] {
        check(&bucket(&format!("prefix = \"{right}\"")), &[], &[]);
    }
    for wrong in ["a//b", "..", "a/../b", "./a", "a b", "é", "a?b"] {
        check(&bucket(&format!("prefix = \"{wrong}\"")), &[], &["store.prefix: is not of a-z, A-Z, 0-9"]);
    }
    for right in ["http://127.0.0.1:9000", "https://minio.example.com", "https://x.example.com/storage/s3"] {
        check(&bucket(&format!("endpoint = \"{right}\"")), &[], &[]);
    }
    for wrong in
        ["minio.example.com:9000", "ftp://x", "https://id:word@x", "https://x?y", "https://x#y", "https://"]
    {
        check(
            &bucket(&format!("endpoint = \"{wrong}\"")),
            &[],
            &["store.endpoint: is not the address of a service"],
        );
    }
    // Whoever serves the store's results may do so below a path, from a folder as well.
    let serves = "public_url = \"https://cdn.example.com/granary\"";
    check(&bucket(serves), &[], &[]);
    check(&format!("[store]\n{serves}"), &[], &[]);
    check("", &[("GRANARY_STORE_PUBLIC_URL", "http://10.0.0.1:8081/")], &[]);
    for wrong in ["cdn.example.com", "s3://b", "https://x/?y", "https://x/#y", "https://id:word@x"] {
        let expected = ["store.public_url: is not the beginning of a URL; write http:// or"];
        check(&bucket(&format!("public_url = \"{wrong}\"")), &[], &expected);
    }
    // Only what is used must make sense.
    check(&format!("{}\n[state]\npath = \"same\"", bucket("path = \"same\"")), &[], &[]);
}

#[test]
fn the_upstream_needs_what_its_kind_needs() {
    let ailab = |rest: &str| format!("[budget]\nmonthly_credits = 9\n[upstream]\nkind = \"ailab\"\n{rest}");
    let key = [("GRANARY_UPSTREAM_API_KEY", "sesame")];
    check(&ailab(""), &[], &["upstream.api_key: is missing; put the key of the AILabTools account into"]);
    check(&ailab(""), &key, &[]);
    let unlimited = "[upstream]\nkind = \"ailab\"\n";
    let refused =
        ["upstream.kind: is \"ailab\", which costs credits, and neither teams nor a budget limit who"];
    check(unlimited, &key, &refused);
    check(&format!("{unlimited}[budget]\ndaily_credits = 0"), &key, &[]);
    check(unlimited, &[key[0], ("GRANARY_BUDGET_MONTHLY_CREDITS", "30")], &[]);
    let team = format!("{unlimited}[[team]]\nname = \"web\"\ndisabled = true");
    check(&team, &key, &[]);
    check(
        &ailab("api_key_file = \"/nowhere\""),
        &key,
        &["upstream.api_key: is set, and so is upstream.api_key_file"],
    );
    check(
        &ailab("api_key = \"open sesame\""),
        &[],
        &["upstream.api_key: holds something that is no key; put"],
    );
    check(&ailab("api_key = \"  \""), &[], &["upstream.api_key: holds no key; put the key"]);
    check(
        "",
        &key,
        &["upstream.api_key: is set, but the built-in engine needs no key; remove it, or write kind"],
    );
    check(
        "[upstream]\napi_key_file = \"x\"",
        &[],
        &["upstream.api_key_file: is set, but the built-in engine needs"],
    );
    check("[upstream]\nkind = \"x\"", &key, &["upstream.kind: is \"x\"; write one of"]);
    check(
        &ailab("base_url = \"http://www.ailabapi.com\""),
        &key,
        &["upstream.base_url: is not encrypted, and the key"],
    );
    check(
        &ailab("base_url = \"https://www.ailabapi.com/api\""),
        &key,
        &["upstream.base_url: is not an origin"],
    );
    check(&ailab("base_url = \"http://[::1]:4000\""), &key, &[]);
    check(
        &ailab("namespace = \"builtin-v1\""),
        &key,
        &["upstream.namespace: is one for kind builtin, whose results"],
    );
    check(
        "[upstream]\nnamespace = \"ailab-v1\"",
        &[],
        &["upstream.namespace: is one for kind ailab, whose results"],
    );
    let long = format!("[upstream]\nnamespace = \"{}\"", "a".repeat(65));
    for text in [
        "[upstream]\nnamespace = \"\"",
        "[upstream]\nnamespace = \"../x\"",
        "[upstream]\nnamespace = \"A\"",
        &long,
    ] {
        check(text, &[], &["upstream.namespace: is not 1 to 64 of a-z, 0-9 and -"]);
    }
    check(
        "[upstream]\nresult_hosts = [\"a.example\", \" \"]",
        &[],
        &["upstream.result_hosts: has an empty entry"],
    );
}

#[test]
fn teams_and_tokens_are_checked() {
    let team = |rest: &str| format!("[[team]]\nname = \"web\"\n{rest}");
    let token = |id: &str| format!("{{ id = \"{id}\", hash = \"{HASH}\" }}");
    check("[[team]]", &[], &["team[0].name: is missing; give the team a name"]);
    check("[[team]]\nname = \"Web\"", &[], &["team[0].name: is not 1 to 64 of a-z, 0-9, _ and -, beginning"]);
    check("[[team]]\nname = \"local\"", &[], &["team.local.name: is reserved for the time when no teams"]);
    check("[[team]]\nname = \"other\"", &[], &["team.other.name: is what metrics call all teams beyond"]);
    check(&format!("{}{}", team(""), team("")), &[], &["team.web.name: is the name of two teams"]);
    check("[[team]]\nname = 5", &[], &["team[0].name: is a whole number; write a text in quotes"]);
    check(
        &team("daily_credits = -1"),
        &[],
        &["team.web.daily_credits: is -1; write a whole number, 0 or more"],
    );
    check(&team("mode = \"off\""), &[], &["team.web.mode: is \"off\"; write one of enforce, shadow"]);
    check(&team("disabled = \"no\""), &[], &["team.web.disabled: is a text in quotes; write true or false"]);
    check(
        &team("misses_per_second = 0"),
        &[],
        &["team.web.misses_per_second: is out of range; write a number from"],
    );
    check(
        &team("misses_per_second = nan"),
        &[],
        &["team.web.misses_per_second: is a fraction; write a number such as"],
    );
    check(
        &team("color = 1"),
        &[],
        &["team.web.color: is unknown; the fields here are name, tokens, daily_credits,"],
    );
    check(
        &team("tokens = [5, \"x\", {}]"),
        &[],
        &[
            "team.web.tokens[0]: is a whole number; write { id",
            "team.web.tokens[1]: is a text in quotes; write { id",
            "team.web.tokens[2].id: is missing; copy the line",
            "team.web.tokens[2].hash: is missing; copy the line",
        ],
    );
    check(
        &team("tokens = [{ id = \"X\", hash = \"X\", expires = \"soon\", secret = \"X\" }]"),
        &[],
        &[
            "team.web.tokens[0].id: is not 8 of a-z and 0-9; copy it",
            "team.web.tokens[0].hash: is not 64 hex digits; copy it",
            "team.web.tokens[0].expires: is \"soon\"; write a date such as 2027-01-31",
            "team.web.tokens[0].secret: is unknown here; write id, hash and expires",
        ],
    );
    check(
        &team("tokens = [{ id = 5, hash = 5, expires = 2027-01-31T00:00:00 }]"),
        &[],
        &[
            "team.web.tokens[0].id: is a whole number; write a text in quotes",
            "team.web.tokens[0].hash: is a whole number; write a text in quotes",
            "team.web.tokens[0].expires: is \"2027-01-31T00:00:00\"; write a date",
        ],
    );
    let both = format!(
        "[[team]]\nname = \"a\"\ntokens = [{}, {}]\n[[team]]\nname = \"b\"\ntokens = [{}]",
        token("abcdefgh"),
        token("bbbbbbbb"),
        token("abcdefgh")
    );
    check(&both, &[], &["team.b.tokens[0].id: is also in team.a.tokens; make another token"]);
    assert_eq!(
        parse(&team(""), &[]).unwrap().warnings,
        ["team.web has no tokens, so nobody can call as that team"]
    );
}

/// People put a token where its hash belongs; the message must not spread it.
#[test]
fn a_token_in_the_wrong_place_is_not_repeated() {
    let token = crate::teams::Token::generate(None).unwrap().0;
    let token = token.expose();
    for text in [
        format!("[[team]]\nname = \"web\"\ntokens = [\"{token}\"]"),
        format!("[[team]]\nname = \"web\"\ntokens = [{{ id = \"{token}\", hash = \"{token}\" }}]"),
        format!("[[team]]\nname = \"{token}\""),
        format!("[budget]\ndaily_credits = 9\n[upstream]\nkind = \"ailab\"\napi_key_file = \"{token}\""),
        format!("[server]\nlisten = \"{token}\"\nhead_timeout = \"{token}\"\n{token} = 1\n[{token}]"),
        format!("[upstream]\nbase_url = \"{token}\"\nnamespace = \"{token}\""),
        format!("[upstream]\nbase_url = \"https://user:{token}@www.ailabapi.com\""),
    ] {
        let problems = parse(&text, &[]).unwrap_err();
        assert!(!format!("{problems} {problems:?}").contains(&token[17..]), "{problems}");
    }
}

#[test]
fn all_problems_are_reported_together() {
    check(
        "[server]\nlisten = \"x\"\nnope = 1\n[cache]\nmemory = \"x\"\n[[team]]\nname = \"X\"\n[nope]",
        &[("GRANARY_UPSTREAM_QUEUE", "x")],
        &[
            "server.listen: is \"x\"",
            "server.nope: is unknown",
            "cache.memory: is \"x\"",
            "nope: is unknown",
            "upstream.queue (from GRANARY_UPSTREAM_QUEUE): is \"x\"",
            "team[0].name: is not 1 to 64",
        ],
    );
}

fn write(directory: &TempDir, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn the_key_may_be_in_a_file_of_its_own() {
    let directory = TempDir::new().unwrap();
    let check = |path: &Path, expected: Result<&str, &str>| {
        let upstream = UpstreamConfig { api_key_file: Some(path.to_owned()), ..UpstreamConfig::default() };
        match (upstream.key(), expected) {
            (Ok(Some(key)), Ok(expected)) => assert_eq!(key.expose(), expected),
            (Err(why), Err(expected)) => assert!(why.starts_with(expected), "{why}"),
            (other, expected) => panic!("{other:?} instead of {expected:?}"),
        }
        let text = format!(
            "[budget]\ndaily_credits = 9\n[upstream]\nkind = \"ailab\"\napi_key_file = \"{}\"",
            path.display()
        );
        match expected {
            Ok(_) => super::tests::check(&text, &[], &[]),
            Err(why) => super::tests::check(&text, &[], &[&format!("upstream.api_key_file: {why}")]),
        }
    };
    check(&write(&directory, "good", b"sesame\n", 0o600), Ok("sesame"));
    check(&write(&directory, "group", b" sesame\r\n", 0o640), Ok("sesame"));
    check(
        &write(&directory, "world", b"sesame", 0o644),
        Err("names a file that every user of this machine may read"),
    );
    check(
        &write(&directory, "write", b"sesame", 0o602),
        Err("names a file that every user of this machine may"),
    );
    check(&write(&directory, "empty", b"\n", 0o600), Err("holds no key"));
    check(&write(&directory, "words", b"open sesame", 0o600), Err("holds something that is no key"));
    check(&write(&directory, "binary", b"\xFF", 0o600), Err("names a file that cannot be read"));
    check(&write(&directory, "large", &[b'x'; 5000], 0o600), Err("holds something that is no key"));
    check(&directory.path().join("missing"), Err("names a file that cannot be read (entity not found)"));
    check(directory.path(), Err("does not name a file"));
}

#[test]
fn a_file_is_found_where_it_is_named() {
    let directory = TempDir::new().unwrap();
    let load = |named: Option<&Path>, variables: &[(&str, &str)]| {
        Config::load(named, &Environment::of(directory.path(), variables.iter().copied()))
    };
    let port = |loaded: Result<Loaded, Problems>| loaded.unwrap().config.server.listen.port();
    let listen = |port: u16| format!("[server]\nlisten = \"127.0.0.1:{port}\"").into_bytes();

    let loaded = load(None, &[]).unwrap();
    assert_eq!((loaded.file, loaded.config), (None, Config::default()));

    let here = write(&directory, "granary.toml", &listen(1), 0o644);
    let other = write(&directory, "other.toml", &listen(2), 0o644);
    let third = write(&directory, "third.toml", &listen(3), 0o644);
    assert_eq!(load(None, &[]).unwrap().file, Some(here.clone()));
    assert_eq!(port(load(None, &[])), 1);
    assert_eq!(port(load(None, &[("GRANARY_CONFIG", other.to_str().unwrap())])), 2);
    assert_eq!(port(load(Some(&third), &[("GRANARY_CONFIG", other.to_str().unwrap())])), 3);
    assert_eq!(port(load(Some(&third), &[("GRANARY_SERVER_LISTEN", "127.0.0.1:4")])), 4);

    let fails = |named: Option<&Path>, variables: &[(&str, &str)], expected: &str| {
        let problems = load(named, variables).unwrap_err().to_string();
        assert!(problems.contains(expected), "{problems}");
    };
    fails(Some(Path::new("/nowhere.toml")), &[], "/nowhere.toml: cannot be read (No such file");
    fails(None, &[("GRANARY_CONFIG", "/nowhere.toml")], "/nowhere.toml: cannot be read");
    fails(Some(directory.path()), &[], ": cannot be read (Is a directory");
    fails(Some(&write(&directory, "latin", b"# \xE9", 0o644)), &[], "latin: is not UTF-8");
    fails(Some(&write(&directory, "large", &vec![b'#'; 5 << 20], 0o644)), &[], "large: is larger than 4 MiB");
    fs::remove_file(&here).unwrap();
    std::os::unix::fs::symlink("gone.toml", &here).unwrap();
    fails(None, &[], "granary.toml: cannot be read (No such file");
}

#[test]
fn a_key_in_a_file_that_all_may_read_is_a_warning() {
    let directory = TempDir::new().unwrap();
    let text = b"[budget]\ndaily_credits = 9\n[upstream]\nkind = \"ailab\"\napi_key = \"sesame\"";
    let warnings = |mode| {
        let path = write(&directory, "granary.toml", text, mode);
        Config::load(Some(&path), &Environment::default()).unwrap().warnings
    };
    assert!(warnings(0o600).is_empty());
    let [warning] = &warnings(0o644)[..] else { panic!("one warning") };
    assert!(
        warning.contains("holds upstream.api_key and every user") && !warning.contains("sesame"),
        "{warning}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever happens to a file, it is read or refused, and the key does not show.
    #[test]
    fn a_damaged_file_never_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        let mut bytes = full().into_bytes();
        for (index, byte, how) in damage {
            let index = index.index(bytes.len());
            match how {
                0 => bytes[index] = byte,
                1 => drop(bytes.remove(index)),
                _ => bytes.insert(index, byte & 0x7F),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match parse(&text, &[]) {
            Ok(loaded) => drop(parse(&loaded.config.to_commented_toml(), &[])),
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                prop_assert!(!problems.to_string().contains("sesame"), "{}", problems);
            }
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,200}", variable in ".{1,40}") {
        let _ = parse(&text, &[("GRANARY_UPSTREAM_HARD_STOP", &variable), ("GRANARY_SERVER_PUBLIC_URL", &variable)]);
    }
}
