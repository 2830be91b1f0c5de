//! The README does not lie: its tables are those of the program, its commands run as written.
//!
//! A fenced block is run when its info string says where: `sh embedded` against a Granary with no
//! configuration, `sh paid` on the way to one in front of a fake AILab. A block `text output` after
//! it shows the output: its pieces between `…` must occur in that order.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use granary::base::key::Digest;
use granary::config::{Config, Environment, is_live};
use granary::error::{GatewayError, kinds};
use granary::ledger::CallState;
use granary::ledger::budget::{Budget, BudgetRefusal, Scope, Window};
use granary::request::RequestError;
use granary::request::framing::HeadError;
use granary::teams::AuthError;
use granary::upstream::code;
use granary_kit::ailab::FakeAilab;
use granary_kit::client;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::{Granary, team};

const README: &str = include_str!("../../README.md");
const EXAMPLE: &str = include_str!("../../deploy/granary.example.toml");
const FLEET: &str = include_str!("../../deploy/granary.fleet.example.toml");
const COMPOSE: &str = include_str!("../../deploy/compose/granary.toml");

mod sdk {
    include!("readme/sdk.rs");

    pub(super) async fn run(base_url: &str, token: &str) -> Result<Option<String>> {
        crop(base_url, token).await
    }
}

/// The rows below the first table with this header.
fn table(header: &str) -> Vec<&'static str> {
    let lines = README.lines().skip_while(|line| *line != header).skip(2);
    lines.take_while(|line| line.starts_with('|')).collect()
}

/// The words in backticks of one cell.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

fn check_table(header: &str, expected: &[String]) {
    let rows = table(header);
    assert_eq!(rows, expected, "the table should read:\n{}\n", expected.join("\n"));
}

#[test]
fn what_changes_without_a_restart_is_listed_and_nothing_else() {
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in Config::default().to_commented_toml().lines() {
        let bare = line.trim_start_matches('#');
        if bare.starts_with('[') {
            section = bare.trim_matches(['[', ']']).to_owned();
        } else if let Some((field, _)) = bare.split_once(" =").filter(|_| !bare.starts_with(' ')) {
            settings.push(format!("{section}.{field}"));
        }
    }
    assert!(settings.len() > 40, "{settings:#?}");
    let rows = table("| takes effect without a restart | what it means for those who are there |");
    let listed: Vec<&str> = rows.iter().flat_map(|row| words(cells(row)[0])).collect();
    let is_meant = |listed: &str, setting: &str| match listed.strip_suffix('*') {
        Some(all) => setting.starts_with(all),
        None => setting == listed,
    };
    for setting in &settings {
        let is_listed = listed.iter().any(|listed| is_meant(listed, setting));
        assert_eq!(is_listed, is_live(setting), "{setting}");
    }
    for listed in listed {
        assert!(settings.iter().any(|setting| is_meant(listed, setting)), "there is no {listed}");
    }
}

#[test]
fn every_setting_has_its_row_with_default_and_meaning() {
    let (mut section, mut doc, mut rows) = (String::new(), Vec::new(), Vec::new());
    for line in Config::default().to_commented_toml().lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        if line.is_empty() {
            doc.clear();
        } else if let Some(text) = bare.strip_prefix(' ') {
            doc.push(text.to_owned());
        } else if bare.starts_with('[') {
            section = bare.trim_matches(['[', ']']).to_owned();
            rows.push(format!("| `{bare}` | | {} |", doc.join(" ")));
            doc.clear();
        } else if let Some((field, default)) = bare.split_once(" =") {
            let default = match default.trim() {
                "" => "not set".to_owned(),
                value => format!("`{value}`"),
            };
            rows.push(format!("| `{section}.{field}` | {default} | {} |", doc.join(" ")));
            doc.clear();
        }
    }
    assert!(rows.len() > 40, "{rows:#?}");
    check_table("| setting | default | meaning |", &rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_family_has_its_row_with_type_labels_and_help() {
    // Budgets have series when there are any.
    let granary = Granary::builtin("[budget]\ndaily_credits = 300\n").await;
    // Families without a closed set of labels begin with their first event.
    granary.crop(None, images::photo_jpeg(), 40, 40).await;
    client::get(&format!("{}/nowhere", granary.url())).await.unwrap();
    let text = granary.metrics().await;
    let mut rows = Vec::new();
    for line in text.lines() {
        let Some((family, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let kind = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {family} "))).unwrap();
        let series = text.lines().find(|line| line.starts_with(family)).unwrap();
        let labels = series.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
        let labels: Vec<_> = labels.filter(|name| *name != "le").map(|name| format!("`{name}`")).collect();
        rows.push(format!("| `{family}` | {kind} | {} | {help} |", labels.join(", ")));
    }
    assert!(rows.len() > 10, "{text}");
    check_table("| family | type | labels | meaning |", &rows);
}

#[test]
fn every_state_of_the_ledger_has_its_row() {
    let said: Vec<_> = table("| state | meaning | key is held | credits count |")
        .into_iter()
        .map(|row| {
            let cells = cells(row);
            (words(cells[0])[0], cells[2].starts_with("yes"), cells[3].starts_with("yes"))
        })
        .collect();
    let expected: Vec<_> =
        CallState::ALL.map(|state| (state.as_str(), state.holds_key(), state.counts_credits())).into();
    assert_eq!(said, expected);
}

/// One of each kind. An arm that is missing in [`is_listed`] does not compile: add it there, here,
/// and to the README.
fn errors() -> Vec<GatewayError> {
    let wait = Duration::from_secs(1);
    let request = |error: RequestError| GatewayError::Request(error.into());
    let over = |scope: Scope, window| {
        GatewayError::OverBudget(BudgetRefusal {
            budget: Budget { scope, window, limit: 1, enforced: true },
            resets_at: Timestamp::UNIX_EPOCH,
            resets_in: wait,
        })
    };
    let web = || Scope::Team("web".to_owned());
    let head = HeadError::ALL.into_iter().map(GatewayError::Head);
    let others = [
        GatewayError::TooManyConnections,
        request(RequestError::Encoded { shown: "gzip".to_owned() }),
        request(RequestError::DuplicateField { field: "image" }),
        request(RequestError::MissingField { field: "image" }),
        request(RequestError::EmptyField { field: "image" }),
        request(RequestError::NumberOutOfRange { field: "width", shown: String::new() }),
        request(RequestError::ImageTooLarge { max: 1 }),
        request(RequestError::DeclaredTooLarge { declared: 1, max_image: 1 }),
        request(RequestError::BodyTooLarge { max: 1 }),
        request(RequestError::ResolutionTooHigh { width: 1, height: 1 }),
        request(RequestError::UnsupportedFile),
        request(RequestError::UnreadableHeader),
        request(RequestError::BodyTimeout),
        request(RequestError::Body("cut".into())),
        GatewayError::Auth(AuthError::Missing),
        GatewayError::Auth(AuthError::Malformed),
        GatewayError::Auth(AuthError::Incomplete),
        GatewayError::Auth(AuthError::Unknown),
        GatewayError::Auth(AuthError::Expired),
        GatewayError::Auth(AuthError::Conflicting),
        GatewayError::Auth(AuthError::Disabled { team: String::new() }),
        GatewayError::CrossSite,
        GatewayError::ForeignName,
        GatewayError::RefreshNotAllowed,
        GatewayError::NoSuchRoute,
        GatewayError::MethodNotAllowed { allow: "GET" },
        GatewayError::UnknownExpectation,
        GatewayError::KeyNotFound,
        GatewayError::NotAKey,
        GatewayError::ResultNotFound,
        GatewayError::NotCached,
        over(Scope::Global, Window::Day),
        over(Scope::Global, Window::Month),
        over(web(), Window::Day),
        over(web(), Window::Month),
        over(Scope::Refused("web".to_owned()), Window::Day),
        GatewayError::Frozen(Scope::Global),
        GatewayError::UpstreamCredits,
        GatewayError::RateLimited { wait },
        GatewayError::UpstreamUnreachable { detail: String::new() },
        GatewayError::UpstreamNonsense { detail: String::new() },
        GatewayError::UpstreamKeyRefused,
        GatewayError::UpstreamThrottled { wait },
        GatewayError::CircuitOpen { wait },
        GatewayError::PurchaseStopped { wait },
        GatewayError::StillBeingMade,
        GatewayError::ResultNotFetched { timed_out: false },
        GatewayError::ResultNotFetched { timed_out: true },
        GatewayError::TooBusy { wait },
        GatewayError::Draining,
        GatewayError::Resting { until: Timestamp::UNIX_EPOCH, wait },
        GatewayError::NoRoom,
        GatewayError::NoUploadRoom,
        GatewayError::NoResultRoom,
        GatewayError::ArchiveGuard,
        GatewayError::LedgerUnavailable,
        GatewayError::LedgerIncomplete,
        GatewayError::StoreUnavailable,
        GatewayError::StoreBusy,
        GatewayError::Bug,
    ];
    head.chain(others).collect()
}

fn is_listed(error: &GatewayError) -> bool {
    use GatewayError as E;
    match error {
        E::Head(_) | E::TooManyConnections => true,
        E::Request(_) | E::Auth(_) | E::RefreshNotAllowed | E::NoSuchRoute | E::MethodNotAllowed { .. } => {
            true
        }
        E::CrossSite | E::ForeignName | E::NotAKey => true,
        E::UnknownExpectation | E::KeyNotFound | E::ResultNotFound | E::NotCached | E::OverBudget(_) => true,
        E::Frozen(_) | E::UpstreamCredits | E::RateLimited { .. } | E::UpstreamUnreachable { .. } => true,
        E::UpstreamNonsense { .. } | E::UpstreamKeyRefused | E::UpstreamThrottled { .. } => true,
        E::CircuitOpen { .. } | E::PurchaseStopped { .. } => true,
        E::StillBeingMade | E::ResultNotFetched { .. } | E::TooBusy { .. } | E::Draining => true,
        E::Resting { .. } | E::NoRoom | E::NoUploadRoom | E::NoResultRoom => true,
        E::ArchiveGuard | E::LedgerUnavailable | E::LedgerIncomplete => true,
        E::StoreUnavailable | E::StoreBusy | E::Bug => true,
        // Clients see the upstream's own status and code.
        E::Upstream { .. } => false,
    }
}

/// A complete error of the upstream.
fn passed_through(status: u16, code: &str) -> GatewayError {
    let body = format!("{{\"error_code\":{status},\"error_detail\":{{\"code\":\"{code}\"}}}}");
    GatewayError::passed_through(http::StatusCode::from_u16(status).unwrap(), body.into())
}

#[test]
fn every_error_is_counted_from_zero() {
    let kind = |error: &GatewayError| {
        let situation = error.response();
        (situation.fault.as_str(), situation.code.name)
    };
    // What passes through, with each code that is known, and with one that is not.
    let names = code::ALL.iter().map(|code| code.name).chain(["ERROR_OF_A_LATER_YEAR"]);
    let passed_through = names.flat_map(|name| [415, 500].map(|status| passed_through(status, name)));
    let all: Vec<_> = errors().into_iter().chain(passed_through).collect();
    let known: BTreeSet<_> = kinds().map(|(fault, code)| (fault.as_str(), code.name)).collect();
    assert_eq!(known, all.iter().map(kind).collect(), "left: error::kinds; right: the errors there are");
}

#[test]
fn every_error_has_its_row() {
    type Row = (u16, String, Option<String>);
    assert!(!is_listed(&passed_through(415, "UNSUPPORTED_FILE_TYPES")));
    let mut expected: BTreeSet<Row> = BTreeSet::new();
    let mut to_explain = BTreeSet::new();
    for error in errors().iter().filter(|error| is_listed(error)) {
        let situation = error.response();
        let (status, reason) = (situation.status.as_u16(), situation.reason.map(str::to_owned));
        assert_eq!(
            situation.retry_after.is_some(),
            [429, 503].contains(&status) || matches!(error, GatewayError::StillBeingMade),
            "the README says when Retry-After is sent: {error:?}"
        );
        if [429, 503].contains(&status) {
            to_explain.insert(reason.clone().unwrap_or_else(|| panic!("{error:?} has no Granary-Reason")));
        }
        expected.insert((status, situation.code.name.to_owned(), reason));
    }
    let mut said: BTreeSet<Row> = BTreeSet::new();
    for row in table("| status | code | `Granary-Reason` | situation |") {
        let cells = cells(row);
        for code in words(cells[1]) {
            let reasons = words(cells[2]);
            let reasons = if reasons.is_empty() {
                vec![None]
            } else {
                reasons.into_iter().map(|reason| Some(reason.to_owned())).collect()
            };
            said.extend(
                reasons.into_iter().map(|reason| (cells[0].parse().unwrap(), code.to_owned(), reason)),
            );
        }
    }
    assert_eq!(said, expected);
    let explained: BTreeSet<String> = table("| `Granary-Reason` | what it means | what to do |")
        .into_iter()
        .flat_map(|row| words(cells(row)[0]))
        .map(str::to_owned)
        .collect();
    assert_eq!(explained, to_explain);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_example_is_this_code_and_works() {
    let code = include_str!("readme/sdk.rs");
    assert!(README.contains(&format!("```rust\n{code}```\n")), "the README should have:\n{code}");
    let (table, token) = team("web", "");
    let granary = Granary::builtin(&table).await;
    let url = sdk::run(&granary.url(), &token).await.unwrap().expect("an answer with data.url");
    let picture = client::get(&url).await.unwrap();
    assert!(url.contains(&Digest::of(&picture.body).to_string()), "{url}");
    assert!(sdk::run(&granary.url(), "granary_wrong").await.is_err());
}

/// Where `](…)` leads, in a text without its code.
fn links(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        is_code ^= line.trim_start().starts_with("```");
        !is_code
    });
    lines.flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchors that a heading gets where people read it.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            words.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for page in ["README.md", "deploy/sizing.md", "deploy/runbook.md"] {
        let page = root.join(page);
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} is not there", page.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let has = anchors(&text).contains(anchor) || text.contains(&format!("<a id=\"{anchor}\">"));
                assert!(has, "{}: {link} has no such heading", page.display());
            }
            count += 1;
        }
    }
    assert!(count > 40, "only {count} links were found");
}

#[test]
fn the_example_configurations_are_valid_and_let_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("ailab.key", "a-key"),
        ("admin-tokens", "0123456789abcdef0123456789abcdef"),
        ("database-url", "postgres://granary:secret@db.example.com/granary"),
        ("s3-credentials", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"),
    ] {
        write_secretly(&folder.path().join(name), text);
    }
    let folder = folder.path().to_str().unwrap();
    for (example, teams) in [(EXAMPLE, 2), (FLEET, 1), (COMPOSE, 1)] {
        let example = example.replace("/etc/granary/", &format!("{folder}/"));
        let example = example.replace("/run/secrets/granary/", &format!("{folder}/"));
        let loaded = Config::parse(&example, &Environment::default())
            .unwrap_or_else(|problems| panic!("{problems}\n{example}"));
        assert_eq!(loaded.warnings, [""; 0]);
        assert_eq!(loaded.config.teams.len(), teams);
        for token in loaded.config.teams.iter().flat_map(|team| &team.tokens) {
            assert_eq!(token.hash.as_bytes(), &[0; 32], "a hash that no token has");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_default_prints_a_line_that_works_as_pasted() {
    let mut shell = Shell::new(GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")));
    let granary = shell.start().await;
    // It is printed after the log's line that a start waits for.
    let printed = async {
        loop {
            let said = granary.stdout_text();
            if let Some(line) = said.lines().find(|line| line.trim_start().starts_with("curl ")) {
                break line.to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    let line = tokio::time::timeout(Duration::from_secs(20), printed).await;
    let line = &line.unwrap_or_else(|_| panic!("no line to paste in:\n{}", granary.stdout_text()));
    assert!(line.contains("image=@tests/images/rocket.jpg"), "{line}");
    let output = shell.run(line).await;
    assert!(output.contains(&format!("\"url\":\"{}/results/", granary.public_url())), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granary_that_spends_money_invites_nobody() {
    let upstream = FakeAilab::start().await;
    let (table, _) = team("web", "");
    for config in [table, crate::harness::upstream_section(&upstream, "")] {
        let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")).config_text(config);
        let mut granary = builder.env("GRANARY_SERVER_DRAIN_GRACE", "0s").start().await.unwrap();
        granary.terminate();
        granary.wait_exit(Duration::from_secs(20)).await.expect("it stops");
        assert_eq!(granary.stdout_text(), "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_requests_work_as_written() {
    let mut shell = Shell::new(GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")));
    let _granary = shell.start().await;
    assert!(shell.run_blocks("sh embedded").await >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_to_the_paid_api_works_as_written() {
    let upstream = FakeAilab::start().await;
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"))
        .env("GRANARY_UPSTREAM_BASE_URL", upstream.base_url())
        .env("GRANARY_UPSTREAM_RESULT_HOSTS", upstream.result_host());
    let mut shell = Shell::new(builder);
    shell.stdin = format!("{}\n", upstream.api_key());
    assert!(shell.run_blocks("sh paid-setup").await >= 3);

    // What the README asks to be done by hand: the printed line goes where the example's is.
    let printed = shell.run("granary token new web").await;
    shell.token = printed.lines().find(|line| line.starts_with("granary_")).unwrap().to_owned();
    let pasted = printed.lines().find(|line| line.trim_start().starts_with("{ id =")).unwrap().trim();
    let file = shell.home().join("etc/granary.toml");
    let text = fs::read_to_string(&file).unwrap();
    let placeholder = text.lines().find(|line| line.trim_start().starts_with("{ id =")).unwrap().trim();
    write_secretly(&file, &text.replacen(placeholder, pasted, 1));

    let serve = blocks().into_iter().find(|block| block.info == "sh paid-serve").unwrap();
    let arguments = serve.text.trim().strip_prefix("granary ").expect("it starts the program");
    let arguments = shell.replaced(arguments);
    shell.builder = shell.builder.clone().args(arguments.split(' '));
    let _granary = shell.start().await;
    assert!(shell.run_blocks("sh paid").await >= 3);
    assert_eq!(upstream.charges(), 1, "the walk buys one crop");
}

/// A person at a terminal, in a directory that looks like the repository's root.
struct Shell {
    builder: GranaryBuilder,
    public: String,
    admin: String,
    token: String,
    stdin: String,
}

impl Shell {
    fn new(builder: GranaryBuilder) -> Self {
        let home = builder.home();
        for folder in ["tests/images", "deploy", "etc", "var"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        fs::write(home.join("tests/images/rocket.jpg"), images::photo_jpeg()).unwrap();
        let shell = Self {
            builder,
            public: String::new(),
            admin: String::new(),
            token: String::new(),
            stdin: String::new(),
        };
        fs::write(shell.home().join("deploy/granary.example.toml"), shell.replaced(EXAMPLE)).unwrap();
        shell
    }

    fn home(&self) -> &Path {
        self.builder.home()
    }

    async fn start(&mut self) -> GranaryProcess {
        let granary = self.builder.start().await.unwrap_or_else(|ended| panic!("{ended:#?}"));
        (self.public, self.admin) = (granary.public_url(), granary.admin_url());
        granary
    }

    /// Ports and folders as they are in this test.
    fn replaced(&self, text: &str) -> String {
        let home = self.home().display();
        text.replace("http://127.0.0.1:8080", &self.public)
            .replace("http://127.0.0.1:9090", &self.admin)
            .replace("/etc/granary", &format!("{home}/etc"))
            .replace("/var/lib/granary", &format!("{home}/var"))
    }

    /// Runs every block of this kind in order and returns how many there were.
    async fn run_blocks(&self, info: &str) -> usize {
        let mut count = 0;
        for block in blocks().into_iter().filter(|block| block.info == info) {
            let output = self.run(&block.text).await;
            let mut rest = output.as_str();
            let expected = self.replaced(block.output.as_deref().unwrap_or_default());
            for piece in expected.split(['…', '\n']).filter(|piece| !piece.trim().is_empty()) {
                let at = rest.find(piece);
                let at = at.unwrap_or_else(|| panic!("{}\n{output}\nlacks, in order: {piece}", block.text));
                rest = &rest[at + piece.len()..];
            }
            count += 1;
        }
        count
    }

    /// What a command writes, standard error first; it must succeed.
    async fn run(&self, command: &str) -> String {
        let binaries = Path::new(env!("CARGO_BIN_EXE_granary")).parent().unwrap();
        let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
        let mut child = Command::new("sh")
            .args(["-euc", &self.replaced(command)])
            .env_clear()
            .env("PATH", path)
            .env("TOKEN", &self.token)
            .envs(self.admin.strip_prefix("http://").map(|at| ("GRANARY_SERVER_ADMIN_LISTEN", at)))
            .current_dir(self.home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Most commands read nothing and may be gone by now.
        let _ = stdin.write_all(self.stdin.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("{command}\ndoes not end")).unwrap();
        let text = [output.stderr, output.stdout].concat();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        assert!(output.status.success(), "{command}\n{text}");
        text
    }
}

/// A fenced block of the README, without the indentation it has in a list.
struct Block {
    info: &'static str,
    text: String,
    /// The block `text output` that follows it.
    output: Option<String>,
}

fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = README.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        let text = text.join("\n");
        match blocks.last_mut() {
            Some(before) if info == "text output" => before.output = Some(text),
            _ => blocks.push(Block { info, text, output: None }),
        }
    }
    blocks
}

/// A file that only its owner reads.
fn write_secretly(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
