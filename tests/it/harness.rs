//! A whole Granary in this process: configuration as text, ports 0, directories of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use granary::app::App;
use granary::clock::Clock;
use granary::config::{Config, Environment};
use granary_kit::ailab::FakeAilab;
use granary_kit::client::{self, Answer};
use granary_kit::form::Form;
use tempfile::TempDir;

/// A running Granary; stops when dropped, its directories go with it.
pub(crate) struct Granary {
    app: App,
    folder: Folder,
    clock: TurnedClock,
    config: String,
}

/// Directories that outlive a restart.
type Folder = Arc<TempDir>;

/// A clock that runs, ahead of the machine's by as much as a test says.
#[derive(Clone, Default)]
pub(crate) struct TurnedClock(Arc<AtomicI64>);

impl TurnedClock {
    /// Turns it forward.
    pub(crate) fn turn(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
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

    async fn start_in(folder: Folder, config: String, clock: TurnedClock) -> Self {
        let variables = [
            ("GRANARY_SERVER_LISTEN", "127.0.0.1:0".to_owned()),
            ("GRANARY_SERVER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("GRANARY_SERVER_DRAIN_GRACE", "0s".to_owned()),
            ("GRANARY_STORE_PATH", folder.path().join("store").display().to_string()),
            ("GRANARY_STATE_PATH", folder.path().join("state").display().to_string()),
        ];
        let variables = variables.iter().map(|(name, value)| (*name, value.as_str()));
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

    /// Where clients call: the base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.app.public_addr)
    }

    /// Where operators look: the base URL.
    pub(crate) fn admin(&self) -> String {
        format!("http://{}", self.app.admin_addr)
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
        client::get(&format!("{}/metrics", self.admin())).await.unwrap().text()
    }

    /// The value of one series, spelled as in the exposition; panics when there is none.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.metrics().await;
        let line =
            text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no series {series} in\n{text}")).parse().unwrap()
    }
}

/// `[upstream]` for a fake AILab; `more` are lines that go into the section.
pub(crate) fn upstream_section(upstream: &FakeAilab, more: &str) -> String {
    format!(
        "[upstream]\nkind = \"ailab\"\nbase_url = \"{}\"\napi_key = \"{}\"\nresult_hosts = [\"{}\"]\n{more}\n",
        upstream.base_url(),
        upstream.api_key(),
        upstream.result_host(),
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

/// How many files there are below a directory.
pub(crate) fn files_below(path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}
