//! The scripts beside `deploy/compose.yaml`, run as written: what they make is what Granary starts with; and
//! what `deploy/sizing.md` says of bucket and database.
//!
//! No container engine runs here, so the containers are left out: the program, a PostgreSQL and a
//! bucket stand at loopback addresses in their place. The files themselves are the subject of
//! `deploy/check`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use granary_kit::client;
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::postgres::Postgres;
use granary_kit::process::GranaryProcess;
use granary_kit::s3::{Operation, S3Server};
use tempfile::TempDir;
use tokio::process::Command;

use crate::bucket::store_section;
use crate::harness::{bytes_of, cache_status, number, real, team, until};

/// A copy of `deploy/compose`, as in a fresh clone.
struct Compose {
    deploy: TempDir,
}

impl Compose {
    fn new() -> Self {
        let deploy = TempDir::new().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose");
        fs::create_dir(deploy.path().join("compose")).unwrap();
        for name in ["prepare", "bucket.sh", "granary.toml"] {
            fs::copy(source.join(name), deploy.path().join("compose").join(name)).unwrap();
        }
        Self { deploy }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.deploy.path().join("compose").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The value of a variable in one of the files with variables.
    fn variable(&self, file: &str, name: &str) -> String {
        let text = self.read(file);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{file} has no {name}")).to_owned()
    }

    /// Runs `prepare` with the program of this build, and returns what it says.
    async fn prepare(&self) -> String {
        let granary = [("GRANARY", env!("CARGO_BIN_EXE_granary"))];
        let (success, said) = run(Command::new(self.path("prepare")).envs(granary)).await;
        assert!(success, "{said}");
        said
    }

    /// Every file below, with its bytes and its permissions.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.deploy.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                    found.insert(path.clone(), (fs::read(&path).unwrap(), mode));
                }
            }
        }
        found
    }
}

/// Runs a script that ends by itself; whether it succeeded, and all it wrote.
async fn run(command: &mut Command) -> (bool, String) {
    let ended = tokio::time::timeout(Duration::from_secs(60), command.kill_on_drop(true).output()).await;
    let output = ended.expect("it ends within a minute").unwrap();
    let text = [output.stderr, output.stdout].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

async fn make_bucket(compose: &Compose, url: &str, access_key: &str, secret_key: &str) -> (bool, String) {
    let mut command = Command::new("sh");
    command.arg(compose.path("bucket.sh")).arg(url);
    let credentials = [("RUSTFS_ACCESS_KEY", access_key), ("RUSTFS_SECRET_KEY", secret_key)];
    run(command.envs(credentials)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_compose_is_prepared_with_buys_and_serves_a_crop() {
    let compose = Compose::new();
    let said = compose.prepare().await;
    let token = said.split_whitespace().find(|word| word.starts_with("granary_")).expect("a token is shown");

    let database = Postgres::start();
    let password = compose.variable("secrets/database.env", "POSTGRES_PASSWORD");
    database.sql("postgres", &format!("ALTER ROLE granary PASSWORD '{password}'"));
    database.sql("postgres", "CREATE DATABASE granary OWNER granary");
    let access_key = compose.variable("secrets/s3.env", "RUSTFS_ACCESS_KEY");
    let secret_key = compose.variable("secrets/s3.env", "RUSTFS_SECRET_KEY");
    let bucket = S3Server::start_for(access_key.clone(), secret_key.clone()).await;
    let url = format!("{}/granary", bucket.endpoint());
    let (success, said) = make_bucket(&compose, &url, &access_key, &secret_key).await;
    assert!(success && said.contains("was made"), "{said}");

    // The container's user is not the one that runs this test.
    let owner = fs::metadata(compose.path("config")).unwrap().uid();
    std::os::unix::fs::chown(compose.path("state"), Some(owner), None).unwrap();
    // Where the containers have their folders and each other.
    let url_file = compose.path("secrets/granary/database-url");
    let inside = compose.read("secrets/granary/database-url");
    fs::write(&url_file, inside.replace("@database/", &format!("@127.0.0.1:{}/", database.port()))).unwrap();
    let config = compose.read("config/granary.toml");
    let config = config
        .replace("/run/secrets/granary", compose.path("secrets/granary").to_str().unwrap())
        .replace("/var/lib/granary", compose.path("state").to_str().unwrap())
        .replace("http://s3:9000", &bucket.endpoint());
    let builder = GranaryProcess::builder(env!("CARGO_BIN_EXE_granary")).config_text(config);
    let checked = builder.clone().args(["check", "--live"]).run(Duration::from_secs(60)).await;
    assert!(checked.status.success(), "{checked:#?}");
    assert!(checked.stdout.contains("the bucket granary keeps what is written"), "{checked:#?}");
    let granary = builder.start().await.unwrap_or_else(|ended| panic!("{ended:#?}"));

    let form = Form::curl(images::tiny_png(24, 24, 1), 40, 40);
    let refused = client::post_form(&granary.public_url(), None, &form).await.unwrap();
    assert_eq!(refused.status, 401, "{}", refused.text());
    let bought = client::post_form(&granary.public_url(), token, &form).await.unwrap();
    assert_eq!(bought.status, 200, "{}", bought.text());
    assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored");
    let path = bought.result_url().replace("http://127.0.0.1:8080", &granary.public_url());
    assert!(!bytes_of(&path).await.is_empty());
    assert_eq!(database.sql("granary", "SELECT state FROM granary.calls"), "stored");
    assert!(bucket.names().iter().any(|name| name.starts_with("granary:results/")), "{:?}", bucket.names());
    let usage = format!("{}/admin/v1/usage", granary.admin_url());
    assert_eq!(client::get(&usage).await.unwrap().status, 401, "operators have a token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preparing_compose_again_changes_nothing_and_nobody_else_reads_its_secrets() {
    let compose = Compose::new();
    compose.prepare().await;
    let before = compose.files();
    let said = compose.prepare().await;
    assert!(!said.contains("granary_"), "a second token: {said}");
    assert_eq!(compose.files(), before);
    let secrets = before.iter().filter(|(path, _)| path.starts_with(compose.path("secrets")));
    let modes: Vec<u32> = secrets.map(|(_, (_, mode))| *mode).collect();
    assert_eq!(modes, [0o600; 6]);

    let others = Compose::new();
    others.prepare().await;
    for file in ["secrets/database.env", "secrets/grafana.env", "secrets/s3.env", "config/granary.toml"] {
        assert_ne!(others.read(file), compose.read(file), "{file} is the same everywhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_made_once_and_only_with_the_right_secret() {
    let compose = Compose::new();
    let server = S3Server::start().await;
    let url = format!("{}/crops", server.endpoint());
    let (id, secret) = (server.access_key(), server.secret_key());
    let (success, said) = make_bucket(&compose, &url, id, "wrong").await;
    assert!(!success && said.contains("403"), "{said}");
    for expected in ["the bucket was made", "the bucket is there"] {
        let (success, said) = make_bucket(&compose, &url, id, secret).await;
        assert!(success && said.contains(expected), "{said}");
        assert!(!said.contains(secret), "{said}");
    }
}

/// The full form, `PURCHASES=2000`, is where the figures in `deploy/sizing.md` come from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purchase_takes_from_bucket_and_database_what_the_sizing_page_says() {
    let purchases = number("PURCHASES").unwrap_or(20);
    let (bucket, database, folder) = (S3Server::start().await, Postgres::start(), TempDir::new().unwrap());
    database.create_database("crops");
    let (table, token) = team("web", "");
    let state = format!("[state]\ndatabase_url = \"{}\"\n", database.url("crops"));
    let config = format!("{}\n{state}\n{table}", store_section(&bucket, &folder));
    let granary = real().config_text(config).start().await.unwrap_or_else(|ended| panic!("{ended:#?}"));
    let crop = async |seed: u64| {
        let form = Form::curl(images::tiny_png(24, 24, seed), 40, 40);
        let answer = client::post_form(&granary.public_url(), token.as_str(), &form).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    };
    // What a process asks of a bucket once is not a purchase's.
    crop(0).await;
    let size = || -> u64 {
        let sum = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n \
                   ON n.oid = c.relnamespace WHERE n.nspname = 'granary' AND c.relkind = 'r'";
        database.sql("crops", sum).parse().unwrap()
    };
    let (empty, asked, written) = (size(), bucket.requests(), bucket.count(Operation::Put));
    let mut first = None;
    for seed in 1..=purchases {
        first.get_or_insert(crop(seed).await);
    }
    let for_each = |all: u64| all as f64 / purchases as f64;
    let writes = for_each(bucket.count(Operation::Put) - written);
    let reads = for_each(bucket.requests() - asked) - writes;
    let row = for_each(size() - empty);
    database.sql("crops", "VACUUM FULL");
    let kept = for_each(size().saturating_sub(empty));
    println!("{purchases} purchases, for each: {writes:.2} writes and {reads:.2} reads of the bucket,");
    println!("{row:.0} bytes of database, and {kept:.0} when all that is dead in there is gone");
    assert!((2.0..=2.5).contains(&writes), "the object and the record: {writes}");
    // And the archive's marker, every 30 s.
    assert!((2.0..=3.0).contains(&reads), "the record, before buying and before it is written: {reads}");
    if purchases >= 1000 {
        assert!(row < 16_384.0 && kept < 2048.0, "{row} bytes, and {kept}");
    }

    let asked = bucket.requests();
    assert_eq!(cache_status(&crop(1).await), "granary; hit; detail=memory");
    assert_eq!(bucket.requests(), asked, "a hit in memory asks nobody");
    let url = first.expect("there were purchases").result_url();
    until("one request for a result", async || {
        let asked = bucket.requests();
        bytes_of(&url).await;
        bucket.requests() == asked + 1
    })
    .await;
}
