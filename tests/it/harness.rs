//! A whole Granary in this process: configuration as text, ports 0, directories of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use granary::app::App;
use granary::base::clock::Clock;
use granary::config::{Config, Environment};
use granary_kit::ailab::FakeAilab;
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::process::{GranaryBuilder, GranaryProcess, with_budget};
use granary_kit::s3::S3Server;
use tempfile::TempDir;
use uuid::Uuid;

/// A running Granary; stops when dropped, its directories go with it.
pub(crate) struct Granary {
    app: App,
    folder: Folder,
    clock: TurnedClock,
    config: String,
}

/// Directories that outlive a restart.
pub(crate) type Folder = Arc<TempDir>;

/// A clock that runs, ahead of the machine's by as much as a test says.
#[derive(Clone, Default)]
pub(crate) struct TurnedClock(Arc<AtomicI64>);

impl TurnedClock {
    /// Turns it forward.
    pub(crate) fn turn(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    /// By how many seconds it is ahead.
    pub(crate) fn ahead(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn clock(&self) -> Clock {
        let ahead = self.0.clone();
        Clock::from_fn(move || {
            jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead.load(Ordering::SeqCst))
        })
    }
}

impl Granary {
    /// In front of the built-in engine. `config` is TOML without `[server]` addresses and paths.
    pub(crate) async fn builtin(config: &str) -> Self {
        Self::start_in(Arc::new(TempDir::new().unwrap()), config.to_owned(), TurnedClock::default()).await
    }

    /// In front of a fake AILab. `config` may add sections; see [`upstream_section`].
    pub(crate) async fn ailab(upstream: &FakeAilab, config: &str) -> Self {
        Self::builtin(&format!("{}\n{config}", upstream_section(upstream, ""))).await
    }

    /// On directories that may have been another's, `store` and `state` below `folder`.
    pub(crate) async fn start_in(folder: Folder, config: String, clock: TurnedClock) -> Self {
        let variables = [
            ("GRANARY_SERVER_LISTEN", "127.0.0.1:0".to_owned()),
            ("GRANARY_SERVER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("GRANARY_SERVER_DRAIN_GRACE", "0s".to_owned()),
            ("GRANARY_STORE_PATH", folder.path().join("store").display().to_string()),
            ("GRANARY_STATE_PATH", folder.path().join("state").display().to_string()),
        ];
        let variables = variables.iter().map(|(name, value)| (*name, value.as_str()));
        let config = with_budget(config);
        let loaded = Config::parse(&config, &Environment::of(folder.path(), variables));
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\n{config}"));
        let app = App::start(loaded.config, clock.clock()).await.unwrap();
        Self { app, folder, clock, config }
    }

    /// Stops in good order and starts again on the same directories.
    pub(crate) async fn restart(self) -> Self {
        let Self { app, folder, clock, config } = self;
        app.stop().await;
        Self::start_in(folder, config, clock).await
    }

    /// As [`restart`](Self::restart), on an empty state directory: a new ledger, as on a new machine.
    pub(crate) async fn restart_without_state(self) -> Self {
        let Self { app, folder, clock, config } = self;
        app.stop().await;
        std::fs::remove_dir_all(folder.path().join("state")).unwrap();
        Self::start_in(folder, config, clock).await
    }

    /// Stops in good order; the directories remain as long as the returned handle.
    pub(crate) async fn stop(self) -> Folder {
        self.app.stop().await;
        self.folder
    }

    /// Starts on the directories that another one left, in front of the same fake AILab.
    pub(crate) async fn start_again(folder: Folder, upstream: &FakeAilab) -> Self {
        Self::start_in(folder, upstream_section(upstream, ""), TurnedClock::default()).await
    }

    /// Where clients call: the base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.app.public_addr)
    }

    /// Where operators look: the base URL.
    pub(crate) fn admin(&self) -> String {
        format!("http://{}", self.app.admin_addr)
    }

    /// Says, as an operator, that ledger and store belong together.
    pub(crate) async fn adopt(&self) {
        adopt(&self.admin()).await;
    }

    /// Its clock, which a test may turn.
    pub(crate) fn clock(&self) -> &TurnedClock {
        &self.clock
    }

    /// Where the store's files are.
    pub(crate) fn store_path(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    /// Where the ledger is.
    pub(crate) fn state_path(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    /// Sends one crop request, as `curl` would, with a token or without.
    pub(crate) async fn crop(&self, token: Option<&str>, image: &[u8], width: u32, height: u32) -> Answer {
        client::post_form(&self.url(), token, &Form::curl(image, width, height)).await.unwrap()
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        metrics(&self.admin()).await
    }

    /// The value of one series, spelled as in the exposition; panics when there is none.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        metric(&self.admin(), series).await
    }

    /// The sum of all series of a family; panics when there is none.
    pub(crate) async fn metric_sum(&self, family: &str) -> f64 {
        let text = self.metrics().await;
        let series = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(family)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit_once(' ').unwrap().1)
        });
        let values: Vec<f64> = series.map(|value| value.parse().unwrap()).collect();
        assert!(!values.is_empty(), "no series of {family} in\n{text}");
        values.iter().sum()
    }

    /// Waits until a series has a value; see [`within`].
    pub(crate) async fn wait_for_metric(&self, series: &str, value: f64) {
        until(&format!("{series} to be {value}"), async || self.metric(series).await == value).await;
    }

    /// The ledger's file, opened beside the server that is using it.
    pub(crate) fn ledger_file(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.state_path().join("ledger.sqlite")).unwrap()
    }
}

/// Waits for something that must happen; panics, saying what, when it has not in a minute.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| panic!("waited {patience:?} for {what}"))
}

/// `granary adopt`, for the process with this admin URL.
pub(crate) async fn adopt(admin: &str) {
    let answer = Call::new("POST", &format!("{admin}/admin/v1/adopt")).send().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn metrics(admin: &str) -> String {
    client::get(&format!("{admin}/metrics")).await.unwrap().text()
}

/// The value of one series of the exposition at an admin URL; panics when there is none.
pub(crate) async fn metric(admin: &str, series: &str) -> f64 {
    let text = metrics(admin).await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
    line.unwrap_or_else(|| panic!("no series {series} in\n{text}")).parse().unwrap()
}

/// Asks again and again, for at most 20 seconds, until the answer is yes.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    within(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The real binary without any configuration but its addresses.
///
/// The public one is a loopback address nobody else has, so that a process started again can be
/// given the same port, and so the same URLs, without taking anybody's.
pub(crate) fn real() -> GranaryBuilder {
    let [.., a, b, c] = Uuid::new_v4().into_bytes();
    let address = format!("127.{}.{b}.{}:8080", a % 254 + 1, c % 254 + 1);
    GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")).env("GRANARY_SERVER_LISTEN", address)
}

/// The real binary in front of a fake AILab; it stops without a grace.
pub(crate) fn real_ailab(upstream: &FakeAilab) -> GranaryBuilder {
    real().config_text(upstream_section(upstream, "")).env("GRANARY_SERVER_DRAIN_GRACE", "0s")
}

/// `[upstream]` for a fake AILab; `more` are lines that go into the section.
pub(crate) fn upstream_section(upstream: &FakeAilab, more: &str) -> String {
    upstream_section_at(&upstream.base_url(), upstream, &[&upstream.result_host()], more)
}

/// The same for one that is reached at another address, with the hosts that results may be read from.
pub(crate) fn upstream_section_at(
    base_url: &str,
    upstream: &FakeAilab,
    result_hosts: &[&str],
    more: &str,
) -> String {
    format!(
        "[upstream]\nkind = \"ailab\"\nbase_url = \"{base_url}\"\napi_key = \"{}\"\nresult_hosts = {result_hosts:?}\n{more}\n",
        upstream.api_key(),
    )
}

/// `[store]` for a bucket, with credentials in `folder`.
pub(crate) fn bucket_section(bucket: &S3Server, folder: &TempDir, prefix: &str) -> String {
    let file = folder.path().join("credentials");
    bucket.write_credentials(&file).unwrap();
    format!(
        "[store]\nkind = \"s3\"\nbucket = \"{}\"\nprefix = \"{prefix}\"\nendpoint = \"{}\"\n\
         credentials_file = \"{}\"\n",
        bucket.bucket(),
        bucket.endpoint(),
        file.display(),
    )
}

/// A team with a token of its own: its `[[team]]` table, and the token. `more` are lines that go
/// into the table.
pub(crate) fn team(name: &str, more: &str) -> (String, String) {
    let (secret, token) = granary::teams::Token::generate(None).unwrap();
    let table = format!(
        "[[team]]\nname = \"{name}\"\ntokens = [{{ id = \"{}\", hash = \"{}\" }}]\n{more}\n",
        token.id,
        token.hash.to_hex()
    );
    (table, secret.expose().to_owned())
}

/// The value of `Cache-Status` without its key.
pub(crate) fn cache_status(answer: &Answer) -> String {
    let header = answer.header("cache-status").unwrap_or_else(|| panic!("no Cache-Status in {answer:?}"));
    header.split("; key=").next().unwrap().to_owned()
}

/// The bytes behind a URL, which must serve.
pub(crate) async fn bytes_of(url: &str) -> Vec<u8> {
    let answer = client::get(url).await.unwrap();
    assert_eq!(answer.status, 200, "{url}: {}", answer.text());
    answer.body
}

/// A line of `/proc/PID/status`, such as `VmRSS`, in MiB.
pub(crate) fn memory_of(process: &GranaryProcess, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<usize>().unwrap() / 1024
}

/// A number that somebody who runs a test may set in the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, and not {text:?}")))
}

/// How many files there are below a directory.
pub(crate) fn files_below(path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}
