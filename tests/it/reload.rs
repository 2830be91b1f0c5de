//! The configuration of a running program is changed under load: it takes effect within seconds, whole
//! or not at all, and nobody else notices.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, Call};
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess, Signal, with_budget};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::harness::{metric, number, real, team, until, upstream_section, within};

/// The promise: in effect so long after the file was changed.
const SOON: Duration = Duration::from_secs(5);
/// Longer than any of these processes has a reason to take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The point in the middle of a reload.
#[cfg(feature = "crash-points")]
pub(crate) const RELOAD_POINT: &str = "CP36";
const CREDITS_PATH: &str = "/api/common/query-credits";
const OK: &str = "granary_reloads_total{file=\"configuration\",result=\"ok\"}";
const ERROR: &str = "granary_reloads_total{file=\"configuration\",result=\"error\"}";
const SUCCESSFUL: &str = "granary_reload_ok{file=\"configuration\"}";

/// The program and its file.
struct Program {
    granary: GranaryProcess,
    file: PathBuf,
    builder: GranaryBuilder,
}

impl Program {
    /// The log once nothing was added to it for three of its batches, each of 100 ms.
    async fn whole_log(&self) -> String {
        loop {
            let before = self.granary.stderr_text();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if self.granary.stderr_text() == before {
                return before;
            }
        }
    }

    async fn start(config: &str) -> Self {
        let builder = real().env("GRANARY_SERVER_DRAIN_GRACE", "0s").config_text(config);
        let granary = builder.start().await.unwrap();
        Self { granary, file: builder.home().join("granary.toml"), builder }
    }

    /// Puts another file in the place of the one there is, as editors do.
    fn write(&self, config: &str) {
        replace(&self.file, with_budget(config.to_owned()).as_bytes());
    }

    /// Makes the program read its file now, and waits until it has, well or not.
    async fn hang_up(&mut self) -> Outcome {
        // It may be polled as well, so the counts do not tell.
        let heeded = |program: &Self| program.granary.stderr_text().matches("\"cause\":\"signal\"").count();
        let before = heeded(self);
        self.granary.signal(Signal::HUP);
        until("the signal to be heeded", async || heeded(self) > before).await;
        let is_told = |line: &Value| line["cause"] == "signal";
        let line = self.granary.log_lines().into_iter().rfind(is_told).unwrap();
        if line["level"] == "INFO" { Outcome::Taken } else { Outcome::Refused }
    }

    async fn take(&mut self, config: &str) {
        self.write(config);
        assert_eq!(self.hang_up().await, Outcome::Taken, "{config}\n{}", self.granary.stderr_text());
    }

    async fn counts(&self) -> (f64, f64) {
        (self.metric(OK).await, self.metric(ERROR).await)
    }

    async fn metric(&self, series: &str) -> f64 {
        metric(&self.granary.admin_url(), series).await
    }

    fn url(&self) -> String {
        self.granary.public_url()
    }

    async fn crop(&self, token: Option<&str>, number: u64) -> Answer {
        crop(&self.url(), token, number).await
    }

    /// The status of a request that costs nothing.
    async fn is_let_in(&self, token: &str) -> bool {
        match credits(&self.url(), token).send().await.unwrap().status {
            200 => true,
            401 | 403 => false,
            other => panic!("{other}"),
        }
    }

    /// The lines in which a configuration was refused.
    fn refusals(&self) -> Vec<Value> {
        let is_refusal = |line: &Value| line["level"] == "ERROR" && line["problems"].is_string();
        self.granary.log_lines().into_iter().filter(is_refusal).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Taken,
    Refused,
}

fn replace(file: &Path, content: &[u8]) {
    let next = file.with_extension("next");
    fs::write(&next, content).unwrap();
    fs::rename(&next, file).unwrap();
}

async fn crop(url: &str, token: Option<&str>, number: u64) -> Answer {
    let form = Form::browser(images::tiny_png(16, 16, number), 20, 20);
    client::post_form(url, token, &form).await.unwrap()
}

fn credits(url: &str, token: &str) -> Call {
    Call::new("GET", &format!("{url}{CREDITS_PATH}")).header("ailabapi-api-key", token)
}

/// Waits for something that must happen soon after a change, and says how long it took.
async fn soon(what: &str, is_so: impl AsyncFn() -> bool) -> Duration {
    let changed = Instant::now();
    until(what, is_so).await;
    let took = changed.elapsed();
    assert!(took < SOON, "{what} took {took:?}");
    took
}

/// Clients of teams that no reload is about: hits and misses, as fast as they are answered.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<BTreeMap<u16, u64>>>,
    misses: Arc<AtomicU64>,
}

impl Load {
    fn start(url: &str, tokens: &[&str]) -> Self {
        let (stop, misses) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = tokens.iter().flat_map(|token| [(token, false), (token, true)]).map(|(token, new)| {
            let (url, token) = (url.to_owned(), (*token).to_owned());
            let (stop, misses) = (stop.clone(), misses.clone());
            tokio::spawn(async move {
                let mut ends = BTreeMap::new();
                while !stop.load(Ordering::SeqCst) {
                    let number = if new { 1_000 + misses.fetch_add(1, Ordering::SeqCst) } else { 999 };
                    let answer = crop(&url, Some(&token), number).await;
                    *ends.entry(answer.status).or_default() += 1;
                    // Enough to be there at every moment, and to leave the machine to others.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                ends
            })
        });
        Self { clients: clients.collect(), stop, misses }
    }

    /// Every one of them was served. Returns how many there were, and how many different crops.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::SeqCst);
        let mut all: BTreeMap<u16, u64> = BTreeMap::new();
        for client in self.clients {
            for (status, times) in within("a client", client).await.unwrap() {
                *all.entry(status).or_default() += times;
            }
        }
        assert_eq!(all.keys().collect::<Vec<_>>(), [&200], "{all:?}");
        (all[&200], self.misses.load(Ordering::SeqCst) + 1)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_under_load_takes_effect_within_seconds_and_fails_nobody_else() {
    let upstream = FakeAilab::start().await;
    upstream.keep_bodies(false);
    let (steady_a, token_a) = team("steady-a", "");
    let (steady_b, token_b) = team("steady-b", "daily_credits = 1000000");
    let (web, old_token) = team("web", "");
    let (other, new_token) = team("web", "");
    // A second token for the same team, and how much it may spend in a day.
    let id = |table: &str| table.lines().find_map(|line| line.strip_prefix("tokens = [")).unwrap().to_owned();
    let (old_line, new_line) = (id(&web), id(&other));
    let (old_line, new_line) = (old_line.trim_end_matches(']'), new_line.trim_end_matches(']'));
    let config = |tokens: &[&str], daily: u64, level: &str, more: &str| {
        format!(
            "{}[log]\nlevel = \"{level}\"\n{steady_a}{steady_b}[[team]]\nname = \"web\"\ntokens = [{}]\n\
             daily_credits = {daily}\n{more}",
            upstream_section(&upstream, ""),
            tokens.join(", "),
        )
    };
    let mut program = Program::start(&config(&[old_line], 3, "info", "")).await;
    let url = program.url();
    let load = Load::start(&url, &[&token_a, &token_b]);
    let total = async || credits(&url, &old_token).send().await.unwrap().json()["data"][0]["total"].clone();

    // By itself, within seconds: tokens, budgets, the log.
    assert_eq!(program.crop(Some(&old_token), 1).await.status, 200);
    assert_eq!(program.crop(Some(&old_token), 2).await.header("granary-reason"), Some("team_daily"));
    let mut took = Vec::new();
    program.write(&config(&[old_line], 6, "info", ""));
    took.push(soon("a budget raised", async || total().await == 6).await);
    assert_eq!(program.crop(Some(&old_token), 2).await.status, 200);
    program.write(&config(&[old_line, new_line], 6, "debug", ""));
    took.push(soon("a token added", async || program.is_let_in(&new_token).await).await);
    assert!(program.is_let_in(&old_token).await, "both work while clients change over");
    let half = Call::crop(&url, &*new_token, &Form::curl(images::photo_jpeg(), 9, 9));
    half.send_part(100).await.unwrap().reset();
    let debug = program.granary.wait_for_log("connection ended early", PATIENCE).await;
    assert_eq!(debug.expect("the level is debug now")["level"], "DEBUG");
    program.write(&config(&[new_line], 5, "error", ""));
    took.push(soon("a token removed", async || !program.is_let_in(&old_token).await).await);
    let refused = program.crop(Some(&old_token), 1).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "ERROR_APPLICATIONS_NOT_EXISTS"));
    assert_eq!(program.crop(Some(&new_token), 1).await.status, 200, "a hit");
    let lowered = program.crop(Some(&new_token), 3).await;
    assert_eq!(lowered.header("granary-reason"), Some("team_daily"), "6 of 5 are spent");
    println!("in effect after {took:?}");
    // Nothing is said of a request at this level, nor of the reloads; those who look see the count.
    let said = program.whole_log().await;
    for _ in 0..5 {
        assert_eq!(program.crop(Some(&token_a), 999).await.status, 200);
    }
    assert_eq!(program.whole_log().await, said);
    assert_eq!(program.counts().await, (3.0, 0.0));

    // On a signal, at once, and again and again.
    for round in 0..45_u64 {
        let disabled = if round % 3 == 0 { "disabled = true\n" } else { "" };
        program.take(&config(&[new_line], 1_000 + round, "info", disabled)).await;
        let answer = credits(&url, &new_token).send().await.unwrap();
        if round % 3 == 0 {
            assert_eq!((answer.status, answer.code().as_str()), (403, "ERROR_USER_LOCKED"));
        } else {
            assert_eq!(answer.json()["data"][0]["total"], 1_000 + round);
        }
    }
    let (served, different) = load.stop().await;
    println!("{served} requests of others were served, {different} of them bought");
    assert!(served > 300 && different > 100, "{served}, {different}");
    // And the two of `web`.
    assert_eq!(upstream.charges(), different + 2);
    assert!(upstream.charges_by_key().values().all(|&charges| charges == 1));
    assert_eq!(program.metric(SUCCESSFUL).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_used_changes_nothing_and_says_why_without_a_secret() {
    let upstream = FakeAilab::start().await;
    let (web, token) = team("web", "daily_credits = 300");
    let (shop, shop_token) = team("shop", "");
    let good = format!("{}{web}{shop}", upstream_section(&upstream, ""));
    let mut program = Program::start(&good).await;
    let key = upstream.api_key();
    // Each also takes the shop's token away and raises the other's budget: neither may happen.
    let changed = format!("{}{}", upstream_section(&upstream, ""), web.replace("300", "3000"));
    let changed = |from: &str, to: &str| {
        assert!(changed.contains(from), "{from}");
        changed.replacen(from, to, 1)
    };
    let unusable: [(&str, Vec<u8>, &[&str]); 10] = [
        ("nothing at all", Vec::new(), &["upstream.kind: ", "team: "]),
        (
            "without any team",
            with_budget(upstream_section(&upstream, "")).into(),
            &["team: was removed for every team"],
        ),
        (
            "no TOML, beside the key",
            changed("[[team]]", &format!("= \"{key}\"\n[[team]]")).into(),
            &["line "],
        ),
        ("cut off", changed("]", "").into(), &["line "]),
        (
            "unknown",
            changed("[[team]]", "[server]\nlisen = \"\"\n[[team]]").into(),
            &["server.lisen: is unknown"],
        ),
        (
            "two problems",
            changed("daily_credits = 3000", "daily_credits = -1\nmode = \"off\"").into(),
            &["team.web.daily_credits: ", "team.web.mode: "],
        ),
        (
            "a restart",
            changed("[[team]]", "[cache]\nmemory = \"1MiB\"\n[state]\nspool_max = \"1GiB\"\n[[team]]").into(),
            &[
                "cache.memory: was changed, which takes effect at a start only",
                "state.spool_max: was changed",
            ],
        ),
        (
            "another upstream",
            changed(&upstream.base_url(), "https://www.ailabapi.com").into(),
            &["upstream.base_url: "],
        ),
        (
            "no UTF-8",
            [changed("[[team]]", "#\n[[team]]").into_bytes(), vec![0xFF]].concat(),
            &["is not UTF-8"],
        ),
        ("too large", vec![b'#'; 5 << 20], &["is larger than 4 MiB"]),
    ];
    let is_as_it_was = async |program: &Program| {
        let total = credits(&program.url(), &token).send().await.unwrap().json()["data"][0]["total"].clone();
        total == 300 && program.is_let_in(&shop_token).await
    };
    for (what, content, problems) in &unusable {
        replace(&program.file, content);
        let before = program.refusals().len();
        assert_eq!(program.hang_up().await, Outcome::Refused, "{what}");
        let lines = program.refusals();
        let said = lines[before]["problems"].as_str().unwrap();
        for problem in *problems {
            assert!(said.contains(problem), "{what}: {said}");
        }
        assert!(is_as_it_was(&program).await, "{what}");
        assert_eq!(program.metric(SUCCESSFUL).await, 0.0, "{what}");
    }
    // The same by itself: one that is gone, and one that is a folder.
    let (_, refused) = program.counts().await;
    fs::remove_file(&program.file).unwrap();
    until("the file to be missed", async || program.counts().await.1 == refused + 1.0).await;
    fs::create_dir(&program.file).unwrap();
    until("the folder to be noticed", async || program.counts().await.1 == refused + 2.0).await;
    assert!(is_as_it_was(&program).await);
    // It is told once, however often it is looked at; a signal is told of each time.
    assert_eq!(program.hang_up().await, Outcome::Refused);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(program.counts().await, (0.0, refused + 3.0));
    assert_eq!(program.refusals().len() as f64, refused + 3.0, "one line each");

    // The file it started with is no change, and the end of the trouble.
    fs::remove_dir(&program.file).unwrap();
    program.write(&good);
    until("the file to be there again", async || program.counts().await == (1.0, refused + 3.0)).await;
    assert_eq!(program.metric(SUCCESSFUL).await, 1.0);
    assert!(is_as_it_was(&program).await);
    program.granary.terminate();
    within("the end", program.granary.wait_exit(PATIENCE)).await;
    let log = program.granary.stderr_text();
    assert!(!log.contains(&key[..12]) && !log.contains(&token[20..]), "a secret is in the log:\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_the_file_is_changed_it_is_noticed() {
    let (web, first) = team("web", "");
    let (shop, second) = team("shop", "");
    let builder = real().env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    let home = builder.home().to_owned();
    // As Kubernetes mounts a ConfigMap: the file is a link into a link, and the latter is swapped.
    for (version, content) in [("v1", web.clone()), ("v2", format!("{web}{shop}"))] {
        fs::create_dir(home.join(version)).unwrap();
        fs::write(home.join(version).join("granary.toml"), content).unwrap();
    }
    let swap = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, home.join("next")).unwrap();
        fs::rename(home.join("next"), home.join(name)).unwrap();
    };
    swap("v1", "..data");
    swap("..data/granary.toml", "granary.toml");
    let file = home.join("granary.toml");
    let granary = builder.clone().env("GRANARY_CONFIG", file.to_str().unwrap()).start().await.unwrap();
    let program = Program { granary, file, builder };
    assert!(program.is_let_in(&first).await && !program.is_let_in(&second).await);
    swap("v2", "..data");
    soon("links that are swapped", async || program.is_let_in(&second).await).await;
    // Written over, with the time of change that it had.
    let inner = home.join("v2").join("granary.toml");
    let then = fs::metadata(&inner).unwrap().modified().unwrap();
    fs::write(&inner, &shop).unwrap();
    fs::File::options().write(true).open(&inner).unwrap().set_modified(then).unwrap();
    soon("a file that is written over", async || !program.is_let_in(&first).await).await;
    // Replaced by another file.
    program.write(&format!("{web}{shop}"));
    soon("a file that is replaced", async || program.is_let_in(&first).await).await;
}

/// What a program says that has this key for a picture: whether it is served.
async fn buys(program: &Program, number: u64) -> (u16, Option<String>) {
    let answer = program.crop(None, number).await;
    (answer.status, answer.header("granary-reason").map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_the_configuration_is_changed_and_moves_to_a_file_of_its_own() {
    let upstream = FakeAilab::start().await;
    let mut program = Program::start(&upstream_section(&upstream, "")).await;
    assert_eq!(buys(&program, 1).await.0, 200);
    upstream.rotate_key();
    assert_eq!(buys(&program, 2).await, (502, Some("upstream_key".to_owned())));
    program.take(&upstream_section(&upstream, "")).await;
    assert_eq!(buys(&program, 2).await.0, 200);
    // Into a file, which is watched from then on.
    let key = program.builder.home().join("ailab.key");
    let write_key = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let next = key.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&next, &key).unwrap();
    };
    let in_file = upstream_section(&upstream, "").replace(
        &format!("api_key = \"{}\"", upstream.api_key()),
        &format!("api_key_file = \"{}\"", key.display()),
    );
    program.write(&in_file);
    assert_eq!(program.hang_up().await, Outcome::Refused, "there is no such file yet");
    assert_eq!(buys(&program, 3).await.0, 200);
    // What was wrong was elsewhere, so it is tried again by itself.
    write_key(&upstream.rotate_key());
    until("the key's file", async || program.metric(SUCCESSFUL).await == 1.0).await;
    assert_eq!(buys(&program, 4).await.0, 200);
    write_key(&upstream.rotate_key());
    until("the next key", async || buys(&program, 5).await.0 == 200).await;
    // And back.
    program.take(&upstream_section(&upstream, "")).await;
    write_key("another-key-altogether");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(buys(&program, 6).await.0, 200, "the file is not looked at any more");
    assert_eq!(program.metric("granary_reloads_total{file=\"upstream_key\",result=\"ok\"}").await, 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_team_closes_the_gate_and_the_last_one_cannot_open_it() {
    let mut program = Program::start("[cache]\nmemory = \"1MiB\"\n").await;
    assert_eq!(program.crop(None, 1).await.status, 200);
    assert_eq!(program.crop(Some("anything"), 1).await.status, 200);
    let (web, token) = team("web", "");
    program.take(&format!("[cache]\nmemory = \"1MiB\"\n{web}")).await;
    assert_eq!(program.crop(None, 1).await.status, 401);
    assert_eq!(program.crop(Some("anything"), 1).await.status, 401);
    assert_eq!(program.crop(Some(&token), 1).await.status, 200);
    let freeze = |team: &str| {
        Call::new("POST", &format!("{}/admin/v1/freeze?team={team}", program.granary.admin_url()))
    };
    assert_eq!(freeze("web").send().await.unwrap().status, 200, "the emergency brake knows it");
    assert_eq!(freeze("local").send().await.unwrap().status, 404);
    program.write("[cache]\nmemory = \"1MiB\"\n");
    assert_eq!(program.hang_up().await, Outcome::Refused);
    assert_eq!(program.crop(None, 1).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_at_once_begin_without_a_call_having_ended() {
    let upstream = FakeAilab::start().await;
    let config = |at_once: usize, queue: usize| {
        upstream_section(
            &upstream,
            &format!("concurrency = {at_once}\nmax_concurrency = {at_once}\nqueue = {queue}"),
        )
    };
    let mut program = Program::start(&config(1, 256)).await;
    upstream.always(Behaviour::Hold);
    let url = program.url();
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let url = url.clone();
            tokio::spawn(async move { crop(&url, None, number).await })
        })
        .collect();
    upstream.wait_for_attempts(1).await;
    until("two to wait", async || {
        program.metric("granary_upstream_queue_depth{team=\"local\"}").await == 2.0
    })
    .await;
    program.take(&config(3, 0)).await;
    upstream.wait_for_attempts(3).await;
    assert_eq!(program.metric("granary_upstream_concurrency_limit").await, 3.0);
    assert_eq!(buys(&program, 4).await, (503, Some("busy".to_owned())), "nobody may wait any more");
    upstream.release();
    for client in clients {
        assert_eq!(within("an answer", client).await.unwrap().status, 200);
    }
}

/// Two configurations take turns, as fast as they can. Whatever a request is told must be of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_sees_half_of_two_configurations() {
    let (web, token) = team("web", "");
    const EVEN: &str = "https://even.example.com";
    // What the team may spend follows from the least of three limits, and the page's right from a fourth.
    let config = |even: bool| {
        let (origin, daily, monthly, team) =
            if even { (EVEN, 4_000, 9_000, 1_000) } else { ("https://odd.example.com", 2_000, 3_000, 5_000) };
        format!(
            "[server]\ncors_origins = [\"{origin}\"]\n[budget]\ndaily_credits = {daily}\nmonthly_credits = {monthly}\n\
             {web}daily_credits = {team}\n"
        )
    };
    let mut program = Program::start(&config(true)).await;
    let url = program.url();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (url, token, stop) = (url.clone(), token.clone(), stop.clone());
            tokio::spawn(async move {
                let mut seen: BTreeMap<(Option<String>, u64), u64> = BTreeMap::new();
                while !stop.load(Ordering::SeqCst) {
                    let answer = credits(&url, &token).header("Origin", EVEN).send().await.unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let allowed = answer.header("access-control-allow-origin").map(str::to_owned);
                    *seen
                        .entry((allowed, answer.json()["data"][0]["total"].as_u64().unwrap()))
                        .or_default() += 1;
                }
                seen
            })
        })
        .collect();
    for round in 1..=200 {
        let even = round % 2 == 0;
        program.write(&config(even));
        program.granary.signal(Signal::HUP);
        let total = if even { 1_000 } else { 2_000 };
        let told = async || credits(&url, &token).send().await.unwrap().json()["data"][0]["total"].clone();
        until("the next one", async || told().await == total).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut seen: BTreeMap<(Option<String>, u64), u64> = BTreeMap::new();
    for client in clients {
        for (what, times) in client.await.unwrap() {
            *seen.entry(what).or_default() += times;
        }
    }
    println!("{seen:?}");
    let even = (Some(EVEN.to_owned()), 1_000);
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&(None, 2_000), &even], "{seen:?}");
}

/// Random damage to the last team of the file, under the load of the others. `RELOAD_DAMAGE` says how
/// many files, `RELOAD_SEED` which dice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_never_disturbs_anyone_else() {
    let seed = number("RELOAD_SEED").unwrap_or_else(|| u64::from(getrandom::u32().unwrap()));
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let (steady, token) = team("steady", "");
    let (web, _) =
        team("web", "daily_credits = 300\nmode = \"shadow\"\nmisses_per_second = 2.5\nmay_refresh = true");
    let mut program = Program::start(&format!("{steady}{web}")).await;
    let load = Load::start(&program.url(), &[&token]);
    let mut outcomes = BTreeMap::new();
    for round in 0..number("RELOAD_DAMAGE").unwrap_or(60) {
        let mut bytes = web.replace("300", &format!("{}", 300 + round)).into_bytes();
        // Now and then all of it is good.
        for _ in 0..(round + dice.below(2)) % 4 {
            let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
            match dice.below(4) {
                0 => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"0\"\n[]=#"[usize::try_from(dice.below(7)).unwrap()]),
                1 => {}
                _ => bytes.truncate(at.max(1)),
            }
        }
        replace(&program.file, &[steady.as_bytes(), &bytes].concat());
        *outcomes.entry(format!("{:?}", program.hang_up().await)).or_insert(0) += 1;
        assert!(program.is_let_in(&token).await);
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes.len(), 2, "some damage does no harm: {outcomes:?}");
    let (served, _) = load.stop().await;
    assert!(served > 50, "{served}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_file_a_hang_up_is_the_end_in_good_order() {
    let mut granary = real().env("GRANARY_SERVER_DRAIN_GRACE", "0s").start().await.unwrap();
    assert_eq!(crop(&granary.public_url(), None, 1).await.status, 200);
    granary.signal(Signal::HUP);
    let ended = within("the end", granary.wait_exit(PATIENCE)).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", granary.stderr_text());
}

#[cfg(feature = "crash-points")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_the_middle_of_a_reload_loses_nothing() {
    let upstream = FakeAilab::start().await;
    let (web, token) = team("web", "daily_credits = 30");
    let builder = real().env("GRANARY_SERVER_DRAIN_GRACE", "0s");
    let config = format!("{}{web}", upstream_section(&upstream, ""));
    let dying = builder.clone().env("GRANARY_CRASH_AT", RELOAD_POINT).config_text(config.clone());
    let mut granary = dying.start().await.unwrap();
    assert_eq!(crop(&granary.public_url(), Some(&token), 1).await.status, 200);
    upstream.always(Behaviour::Hold);
    let url = granary.public_url();
    let waiting = tokio::spawn({
        let (url, token) = (url.clone(), token.clone());
        async move { client::post_form(&url, &*token, &Form::browser(images::tiny_png(16, 16, 2), 20, 20)).await }
    });
    upstream.wait_for_attempts(2).await;
    replace(&builder.home().join("granary.toml"), config.replace("= 30", "= 60").as_bytes());
    granary.signal(Signal::HUP);
    let ended = within("the death", granary.wait_exit(PATIENCE)).await.unwrap();
    assert_eq!(granary.died_by_signal(), Some(9), "{ended:?} {}", granary.stderr_text());
    assert!(waiting.await.unwrap().is_err());
    upstream.always(Behaviour::Success);
    let granary = builder.config_text(config.replace("= 30", "= 60")).start().await.unwrap();
    let again = crop(&granary.public_url(), Some(&token), 1).await;
    assert_eq!((again.status, again.header("granary-credits-charged")), (200, Some("0")));
    let unknown = metric(&granary.admin_url(), "granary_ledger_credits{state=\"unknown\"}").await;
    assert_eq!(unknown, 3.0, "the call that was under way");
    let total = credits(&granary.public_url(), &token).send().await.unwrap().json();
    assert_eq!((&total["data"][0]["total"], &total["data"][0]["balance"]), (&60.into(), &54.into()));
}
