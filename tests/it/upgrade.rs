//! Upgrades: today's program on copies of archives that earlier programs left (`tests/fixtures`). Totals
//! stay, stored keys are hits, and calls that were open are finished.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use granary_kit::ailab::FakeAilab;
use granary_kit::client;
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::postgres::Postgres;
use granary_kit::s3::S3Server;
use image::ImageFormat;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::bucket::path_of;
use crate::harness::{
    Folder, Granary, TurnedClock, bucket_section, bytes_of, cache_status, team, until, upstream_section_at,
};

const PREFIX: &str = "granary/test";
/// The host of the answered row's result, in the fixtures.
const PLACEHOLDER: &str = "results.invalid";
/// While the answered row's URL may still live.
const NEXT_DAY: &str = "2026-01-31T00:30:00Z";
/// Each stored key by the seed of its picture, and the purchase whose result is its answer.
const STORED: [(u64, u8); 9] =
    [(1, 1), (3, 4), (5, 6), (15, 16), (17, 17), (18, 18), (22, 22), (30, 30), (31, 31)];
/// Purchases whose URLs were given to clients, and whose keys have another result now or none.
const REPLACED: [u8; 4] = [3, 5, 7, 15];
/// Keys of results that were purged, lost or never bought.
const ABSENT: [u64; 4] = [7, 14, 20, 32];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn picture(seed: u64) -> Vec<u8> {
    images::tiny_png(16, 16, seed)
}

/// The result of one purchase, as the fixtures have it.
fn result(number: u8) -> Bytes {
    images::solid(ImageFormat::Png, 40, 40, [number, 255 - number, 90]).into()
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry?.file_name()));
        if path.is_dir() { copy(&path, &target)? } else { std::fs::copy(&path, &target).map(drop)? }
    }
    Ok(())
}

/// Serves the answered row's result.
async fn result_host() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = result(22);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    address
}

/// An upgraded Granary, and how to ask its ledger. `{}` in a statement stands for the schema.
struct World<'a> {
    granary: &'a Granary,
    upstream: &'a FakeAilab,
    tokens: &'a [String; 3],
    today: String,
    sql: &'a dyn Fn(&str) -> String,
}

/// The teams of the fixtures, and their tokens.
fn teams() -> (String, [String; 3]) {
    let teams = ["alpha", "beta", "gamma"].map(|name| team(name, "daily_credits = 100"));
    (teams.iter().map(|(table, _)| table.as_str()).collect(), teams.map(|(_, token)| token))
}

impl World<'_> {
    async fn crop(&self, team: usize, seed: u64) -> client::Answer {
        let form = Form::curl(picture(seed), 40, 40);
        client::post_form(&self.granary.url(), self.tokens[team].as_str(), &form).await.unwrap()
    }

    fn count(&self, what: &str) -> String {
        (self.sql)(&format!("SELECT count(*) FROM {{}}{what}"))
    }

    /// Everything that was booked is there, and what was open is finished.
    async fn keeps_its_totals(&self) {
        until("the open calls to be finished", async || {
            self.count("calls WHERE state IN ('reserved', 'sent', 'answered')") == "0"
        })
        .await;
        until("the spool to be copied", async || self.count("spool") == "0").await;
        let totals = "SELECT state, count(*), sum(credits) FROM {}calls WHERE team <> 'delta' GROUP BY state ORDER BY state";
        assert_eq!(
            (self.sql)(totals),
            "failed|2|6\nlost|1|3\nrefused|1|3\nreleased|3|9\nstored|11|33\nunfetchable|1|3\nunknown|3|9"
        );
        for (state, credits) in [("stored", 33.0), ("unknown", 9.0), ("unfetchable", 3.0), ("lost", 3.0)] {
            let series = format!("granary_ledger_credits{{state=\"{state}\"}}");
            assert_eq!(self.granary.metric(&series).await, credits, "{state}");
        }
        assert_eq!(
            (self.sql)("SELECT scope, period, credits FROM {}spent ORDER BY scope, period"),
            "global|2025-12|3\nglobal|2025-12-15|3\nglobal|2026-01|45\nglobal|2026-01-29|33\n\
             global|2026-01-30|12\nteam:alpha|2025-12|3\nteam:alpha|2025-12-15|3\nteam:alpha|2026-01|21\n\
             team:alpha|2026-01-29|15\nteam:alpha|2026-01-30|6\nteam:beta|2026-01|24\nteam:beta|2026-01-29|18\n\
             team:beta|2026-01-30|6"
        );
        assert_eq!(self.count("audit"), "8");
        assert_eq!((self.sql)("SELECT scope FROM {}frozen"), "team:gamma");
        let period = format!("from=2025-12-01&to={}", self.today);
        let usage = client::get(&format!("{}/admin/v1/usage?{period}", self.granary.admin())).await.unwrap();
        let total = &usage.json()["total"];
        assert_eq!((&total["spent_credits"], &total["saved_credits"]), (&48.into(), &45.into()), "{total:#}");
    }

    /// What is stored is served without a purchase, from every URL that was ever given.
    async fn serves_what_is_stored(&self) {
        for (seed, number) in STORED {
            // A hit costs nothing, so a frozen team gets it too.
            let hit = self.crop(2, seed).await;
            assert_eq!(hit.status, 200, "{seed}: {}", hit.text());
            assert!(cache_status(&hit).starts_with("granary; hit; "), "{seed}: {}", cache_status(&hit));
            assert_eq!(bytes_of(&hit.result_url()).await, result(number), "{seed}");
        }
        for number in REPLACED {
            let name = format!("{}.png", granary::base::key::Digest::of(&result(number)));
            let url = format!("{}/results/{name}", self.granary.url());
            assert_eq!(bytes_of(&url).await, result(number), "{number}");
        }
        assert_eq!(self.upstream.attempts(), 0);
    }

    /// What is absent is bought, as often as it was before: once, and not for a frozen team.
    async fn buys_what_is_absent(&self) {
        for seed in ABSENT {
            assert_eq!(self.crop(2, seed).await.header("granary-reason"), Some("frozen"), "{seed}");
            let bought = self.crop(0, seed).await;
            assert_eq!(bought.status, 200, "{seed}: {}", bought.text());
            let again = self.crop(1, seed).await;
            assert_eq!(path_of(&again.result_url()), path_of(&bought.result_url()), "{seed}");
        }
        assert_eq!((self.upstream.charges(), self.upstream.attempts()), (4, 4));
        let generations = "SELECT generation, count(*) FROM {}calls WHERE id > 23 AND team <> 'delta' GROUP BY generation ORDER BY generation";
        assert_eq!((self.sql)(generations), "0|2\n1|2", "what was purged or lost has a new generation");
    }

    async fn is_upgraded(&self) {
        self.keeps_its_totals().await;
        self.serves_what_is_stored().await;
        self.buys_what_is_absent().await;
    }
}

/// A clock on the day after the fixtures' last.
fn next_day() -> TurnedClock {
    let then: Timestamp = NEXT_DAY.parse().unwrap();
    let clock = TurnedClock::default();
    clock.turn(then.as_second() - Timestamp::now().as_second());
    clock
}

/// A copy of the SQLite ledger and the store, with the answered row's result at `host`.
fn copy_of_one_machine(host: &str) -> Folder {
    let folder = Arc::new(TempDir::new().unwrap());
    copy(&fixture("store"), &folder.path().join("store")).unwrap();
    let file = folder.path().join("state/ledger.sqlite");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::copy(fixture("ledger.sqlite"), &file).unwrap();
    let copied = rusqlite::Connection::open(&file).unwrap();
    let answered = "UPDATE calls SET answer = replace(answer, ?1, ?2) WHERE state = 'answered'";
    assert_eq!(copied.execute(answered, [PLACEHOLDER, host]).unwrap(), 1);
    folder
}

/// Rows as lines, columns between bars, as psql prints them.
fn rows(ledger: &rusqlite::Connection, statement: &str) -> String {
    let mut statement = ledger.prepare(statement).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let text = |value: rusqlite::types::Value| match value {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        };
        Ok((0..columns).map(|at| text(row.get(at).unwrap())).collect::<Vec<_>>().join("|"))
    });
    rows.unwrap().map(Result::unwrap).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archive_of_one_machine_is_upgraded_without_a_purchase() {
    let (upstream, host) = (FakeAilab::start().await, result_host().await);
    let folder = copy_of_one_machine(&host);
    let (teams, tokens) = teams();
    let hosts = [format!("http://{host}"), upstream.result_host()];
    let hosts = [hosts[0].as_str(), &hosts[1]];
    let config = format!(
        "{}[budget]\ntime_zone = \"UTC\"\n{teams}",
        upstream_section_at(&upstream.base_url(), &upstream, &hosts, "")
    );
    let granary = Granary::start_in(folder, config, next_day()).await;
    let sql = |statement: &str| rows(&granary.ledger_file(), &statement.replace("{}", ""));
    let today = NEXT_DAY[..10].to_owned();
    World { granary: &granary, upstream: &upstream, tokens: &tokens, today, sql: &sql }.is_upgraded().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archive_of_a_fleet_is_upgraded_without_a_purchase() {
    let (upstream, bucket, postgres) = (FakeAilab::start().await, S3Server::start().await, Postgres::start());
    let (host, folder) = (result_host().await, TempDir::new().unwrap());
    let dump = std::fs::read_to_string(fixture("ledger.sql")).unwrap();
    assert!(dump.contains(PLACEHOLDER));
    postgres.sql("postgres", &dump.replace(PLACEHOLDER, &host));
    fill_bucket(&bucket, &fixture("store"), PREFIX);
    let (teams, tokens) = teams();
    let hosts = [format!("http://{host}"), upstream.result_host()];
    let hosts = [hosts[0].as_str(), &hosts[1]];
    let config = format!(
        "{}{}[state]\ndatabase_url = \"{}\"\n[budget]\ntime_zone = \"UTC\"\n{teams}",
        upstream_section_at(&upstream.base_url(), &upstream, &hosts, "hard_stop = \"1s\""),
        bucket_section(&bucket, &folder, PREFIX),
        postgres.url("postgres"),
    );
    let granary = Granary::start_in(Arc::new(TempDir::new().unwrap()), config, TurnedClock::default()).await;
    let sql = |statement: &str| postgres.sql("postgres", &statement.replace("{}", "granary."));
    let today = Timestamp::now().to_string()[..10].to_owned();
    World { granary: &granary, upstream: &upstream, tokens: &tokens, today, sql: &sql }.is_upgraded().await;
}

fn fill_bucket(bucket: &S3Server, folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            fill_bucket(bucket, &path, &name);
        } else {
            bucket.set(&name, std::fs::read(path).unwrap());
        }
    }
}
