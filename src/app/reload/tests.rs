//! Files of all kinds, one after another: what is in force is always one of them, whole.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use granary_kit::dice::Dice;
use tempfile::TempDir;

use super::*;
use crate::app::App;
use crate::base::clock::Clock;
use crate::config::Environment;
use crate::ledger::budget::{Scope, Window};
use crate::teams::Team;

/// A running Granary, and what it is asked to be.
struct World {
    app: App,
    folder: TempDir,
    level: Arc<AtomicU8>,
    set_level: SetLevel,
}

const LEVELS: [LogLevel; 5] =
    [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

fn number_of(level: LogLevel) -> u8 {
    let number = LEVELS.iter().position(|known| *known == level).unwrap();
    u8::try_from(number).unwrap()
}

fn environment(folder: &Path) -> Environment {
    let path = |name: &str| folder.join(name).display().to_string();
    let variables = [
        ("GRANARY_SERVER_LISTEN", "127.0.0.1:0".to_owned()),
        ("GRANARY_SERVER_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("GRANARY_SERVER_DRAIN_GRACE", "0s".to_owned()),
        ("GRANARY_STORE_PATH", path("store")),
        ("GRANARY_STATE_PATH", path("state")),
    ];
    Environment::of(folder, variables.iter().map(|(name, value)| (*name, value.as_str())))
}

impl World {
    async fn start(text: &str) -> (Self, Config) {
        let folder = TempDir::new().unwrap();
        let config = Config::parse(text, &environment(folder.path())).unwrap().config;
        let app = App::start(config.clone(), Clock::system()).await.unwrap();
        let level = Arc::new(AtomicU8::new(number_of(config.log.level)));
        let told = level.clone();
        let set_level: SetLevel = Box::new(move |level| told.store(number_of(level), Ordering::SeqCst));
        (Self { app, folder, level, set_level }, config)
    }

    /// All of what is in force is what `config` says.
    fn check(&self, config: &Config, what: &str) {
        let parts = &self.app.reloader;
        let policy = parts.policy.get();
        assert_eq!(*policy.teams(), config.to_teams(), "{what}");
        let origins: Vec<&str> = policy.origins().iter().map(|origin| origin.to_str().unwrap()).collect();
        let expected: Vec<&str> = config.server.cors_origins.iter().map(|origin| origin.as_str()).collect();
        assert_eq!(origins, expected, "{what}");
        let unlimited = Team { name: "nobody".to_owned(), ..Team::local() };
        let of = |window| {
            let budgets = policy.budgets(&unlimited).into_iter();
            budgets.filter(|budget| budget.scope == Scope::Global).find(|budget| budget.window == window)
        };
        let limits = [Window::Day, Window::Month].map(|window| of(window).map(|budget| budget.limit));
        assert_eq!(limits, [config.budget.daily_credits, config.budget.monthly_credits], "{what}");
        let key = parts.keys.as_ref().map(|keys| keys.current().expose().to_owned());
        let expected = config.upstream.key().unwrap().map(|key| key.expose().to_owned());
        assert_eq!(key, expected, "{what}");
        assert_eq!(self.level.load(Ordering::SeqCst), number_of(config.log.level), "{what}");
        assert!(parts.filler.slots().limit <= config.upstream.max_concurrency, "{what}");
        let metrics = String::from_utf8(parts.metrics.render()).unwrap();
        for team in policy.teams().names() {
            assert!(metrics.contains(&format!("granary_credits_spent_total{{team=\"{team}\"}} 0")), "{what}");
        }
    }
}

/// A file with a value of each live field, and now and then of one that takes a restart.
fn draw(dice: &mut Dice, folder: &Path) -> String {
    let mut below = |limit: u64| dice.below(limit);
    let token = |number: u64| {
        let hash = blake3::hash(&number.to_le_bytes());
        format!("{{ id = \"token{number:03}\", hash = \"{hash}\" }}")
    };
    let concurrency = below(4) + 1;
    let key = if below(2) == 0 {
        format!("api_key = \"sesame-{}\"", below(3))
    } else {
        format!("api_key_file = \"{}\"", folder.join(["one.key", "two.key"][below(2) as usize]).display())
    };
    let restart = if below(8) == 0 { "[cache]\nmemory = \"1MiB\"\n" } else { "" };
    let mut text = format!(
        "[server]\ncors_origins = [\"https://{}.example.com\"]\n[upstream]\nkind = \"ailab\"\nconcurrency = {concurrency}\n\
         max_concurrency = {}\nqueue = {}\n{key}\n[budget]\ndaily_credits = {}\nmonthly_credits = {}\n[log]\n\
         level = \"{}\"\n{restart}",
        ["a", "b"][below(2) as usize],
        concurrency + below(4),
        below(3),
        below(1000),
        below(1000),
        LEVELS[below(5) as usize].as_str(),
    );
    for team in 0..below(5) {
        text.push_str(&format!(
            "[[team]]\nname = \"team-{}\"\ntokens = [{}]\ndaily_credits = {}\nmisses_per_second = {}\ndisabled = {}\n",
            // Two of one name are a mistake.
            if below(30) == 0 { 0 } else { team },
            token(team * 10 + below(3)),
            below(100),
            below(3) + 1,
            below(2) == 0,
        ));
    }
    text
}

fn damage(text: String, dice: &mut Dice) -> String {
    let mut bytes = text.into_bytes();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len() as u64) as usize;
        match dice.below(4) {
            0 => bytes[at] = dice.below(128) as u8,
            1 if bytes.len() > 1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"0\"\n[]=#,"[dice.below(8) as usize]),
            1 => {}
            _ => bytes.truncate(at.max(1)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `RELOAD_CASES` says how many files, `RELOAD_SEED` gives the dice of a former run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_file_holds_all_of_it_is_in_force_or_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("RELOAD_SEED").unwrap_or_else(|| u64::from(getrandom::u32().unwrap()));
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let (web, key) = ("[[team]]\nname = \"web\"\n", "[upstream]\nkind = \"ailab\"\napi_key = \"sesame-0\"\n");
    let (world, mut config) = World::start(&format!("{key}{web}")).await;
    for name in ["one.key", "two.key"] {
        let path = world.folder.path().join(name);
        fs::write(&path, format!("sesame-{name}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let (mut taken, mut refused, mut bad) = (0_u64, 0_u64, 0_u64);
    for _ in 0..number("RELOAD_CASES").unwrap_or(1500) {
        let mut text = draw(&mut dice, world.folder.path());
        if dice.below(2) == 0 {
            text = damage(text, &mut dice);
        }
        match Config::parse(&text, &environment(world.folder.path())) {
            Err(problems) => {
                assert!(!problems.to_string().contains("sesame-"), "{problems}");
                bad += 1;
            }
            Ok(loaded) => match world.app.reloader.take(&loaded.config, &world.set_level) {
                Ok(changed) => {
                    assert!(changed.iter().all(|field| !field.contains("sesame")), "{changed:?}");
                    let slots = world.app.reloader.filler.slots();
                    if loaded.config.upstream.concurrency != config.upstream.concurrency {
                        assert_eq!(slots.limit, loaded.config.upstream.concurrency, "{text}");
                    }
                    config = loaded.config;
                    taken += 1;
                }
                Err(problems) => {
                    assert!(!problems.is_empty() && !problems.to_string().contains("sesame"), "{problems}");
                    refused += 1;
                }
            },
        }
        world.check(&config, &text);
    }
    println!("{taken} taken, {refused} need a restart, {bad} bad");
    assert!([taken, refused, bad].into_iter().all(|times| times > 50), "{taken}, {refused}, {bad}");
    world.app.stop().await;
}

/// A watch in paused time, on a file.
async fn watch(text: &str) -> (World, watch::Watch, std::path::PathBuf) {
    let (world, config) = World::start(text).await;
    let file = world.folder.path().join("granary.toml");
    fs::write(&file, text).unwrap();
    let loaded = crate::config::Loaded { config, warnings: Vec::new(), file: Some(file.clone()) };
    let environment = environment(world.folder.path());
    let watch = watch::Watch::new(&loaded, environment, world.app.reloader.clone(), Box::new(|_| {}));
    tokio::time::pause();
    (world, watch.unwrap(), file)
}

fn teams(world: &World) -> Vec<String> {
    world.app.reloader.policy.get().teams().names().map(str::to_owned).collect()
}

#[tokio::test]
async fn half_a_file_that_is_being_written_is_not_taken_for_a_whole_one() {
    let (web, shop) = ("[[team]]\nname = \"web\"\n", "[[team]]\nname = \"shop\"\n");
    let (world, mut watch, file) = watch(&format!("{web}{shop}")).await;
    watch.poll().await;
    assert_eq!(teams(&world), ["web", "shop"]);
    // At the moment it is looked at there is half of it, which is a whole file by its form.
    fs::write(&file, web).unwrap();
    let completed = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        fs::write(&file, format!("{web}# the rest\n{shop}")).unwrap();
    };
    tokio::join!(watch.poll(), completed);
    assert_eq!(teams(&world), ["web", "shop"]);
    watch.poll().await;
    assert_eq!(teams(&world), ["web", "shop"]);
    // What stays is meant.
    fs::write(&file, web).unwrap();
    watch.poll().await;
    assert_eq!(teams(&world), ["web"]);
    // As with an editor that is away for a moment.
    fs::remove_file(&file).unwrap();
    let completed = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        fs::write(&file, web).unwrap();
    };
    tokio::join!(watch.poll(), completed);
    watch.poll().await;
    let metrics = String::from_utf8(world.app.reloader.metrics.render()).unwrap();
    assert!(
        metrics.contains("granary_reloads_total{file=\"configuration\",result=\"error\"} 0"),
        "{metrics}"
    );
    assert!(metrics.contains("granary_reloads_total{file=\"configuration\",result=\"ok\"} 2"), "{metrics}");
}
