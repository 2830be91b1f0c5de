//! The real binary killed with SIGKILL at every step of a fill, and what the next process makes of it.
//!
//! At a named point the process kills itself (`GRANARY_CRASH_AT`); where the step is a wait for
//! somebody else, it is killed from outside while that lasts. Whatever the step, nothing answered is
//! lost or paid for again, nothing half written is served or left behind, and the upstream's charges
//! minus the booked ones lie between 0 and the number of `unknown` rows. Every statement must also
//! hold after a second death during the recovery.
//!
//! The points have the numbers of the list of crash points this program is built to. Of that list,
//! these are not here, because the step does not exist:
//!
//! | points | why |
//! |---|---|
//! | 2 (half an upload), 9, 11, 16, 30 | they are waits for somebody else, and so killed from outside; the compiled-in `CP2` is before the upload |
//! | 13 | is inside the transaction, so what is written is not durable: the outcome is that of 12 |
//! | 21 | there is no state between `answered` and `stored`: a fetched object without its record is fetched again |
//! | 29 | an answer is one write; half of one is the client's loss alone, as in 30 |
//! | 36 | is in the tests of the reload |
//! | 37 to 39 | one process owns the ledger: it locks the directory, there are no leases |
//! | 40, and 22 to 26 while a bucket is copied to | are in the tests of the spool |

#![expect(clippy::print_stdout, reason = "what was found at each point is worth reading when one fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use granary::base::key::CacheKey;
use granary_kit::ailab::{Behaviour, FakeAilab, ResultBehaviour};
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::model::{Archive, Balance, Served, check_charges};
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use tempfile::TempDir;

use crate::harness::{
    Folder, Granary, TurnedClock, bytes_of, cache_status, files_below, metric, real_ailab, until,
    upstream_section,
};
use crate::reload::RELOAD_POINT;
use crate::spool::COPY_POINTS;

/// Longer than any of these processes has a reason to take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Cases at the same time.
const AT_ONCE: usize = 3;

/// What the next process finds, and what it makes of it before any client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// No row.
    Nothing,
    /// A row that was `reserved`: the key is free.
    Reserved,
    /// A row that was `sent`, and so many charges: the key rests.
    Sent { charges: u64 },
    /// A row that was `answered`: it is finished without being asked for.
    Answered,
    /// All of it.
    Stored,
}

/// The points in the program, in the order in which a fill passes them.
pub(crate) const POINTS: [(&str, Left); 31] = [
    ("CP2", Left::Nothing),
    ("CP1", Left::Nothing),
    ("CP3", Left::Nothing),
    ("CP4", Left::Nothing),
    ("CP5", Left::Reserved),
    ("CP6", Left::Reserved),
    ("CP7", Left::Sent { charges: 0 }),
    ("CP8", Left::Sent { charges: 1 }),
    ("CP10", Left::Sent { charges: 1 }),
    ("CP12", Left::Sent { charges: 1 }),
    ("CP13", Left::Sent { charges: 1 }),
    ("CP14", Left::Answered),
    ("CP15", Left::Answered),
    ("CP22", Left::Answered),
    ("CP17", Left::Answered),
    ("CP18", Left::Answered),
    ("CP19", Left::Answered),
    ("CP20", Left::Answered),
    ("CP24", Left::Answered),
    ("CP23", Left::Answered),
    ("CP25", Left::Answered),
    ("CP26", Left::Answered),
    ("CP27", Left::Answered),
    ("CP31", Left::Stored),
    ("CP32", Left::Stored),
    ("CP28", Left::Stored),
    // In the stop, while the upstream works.
    ("CP35", Left::Sent { charges: 1 }),
    // After these there is another death first, see below.
    ("CP33", Left::Answered),
    ("CP34", Left::Answered),
    ("CP33", Left::Sent { charges: 1 }),
    ("CP34", Left::Sent { charges: 1 }),
];

/// Waits for somebody else, during which the process is killed from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    HalfAnUpload,
    UpstreamWorks,
    HalfAnAnswer,
    NoWordOfTheResult,
    HalfAResult,
    ClientReads,
}

pub(crate) const WAITS: [(Wait, Left); 6] = [
    (Wait::HalfAnUpload, Left::Nothing),
    (Wait::UpstreamWorks, Left::Sent { charges: 1 }),
    (Wait::HalfAnAnswer, Left::Sent { charges: 1 }),
    (Wait::NoWordOfTheResult, Left::Answered),
    (Wait::HalfAResult, Left::Answered),
    (Wait::ClientReads, Left::Stored),
];

/// One death: a world of its own, and a request that is the same before and after.
struct Case {
    name: String,
    upstream: FakeAilab,
    folder: Folder,
    builder: GranaryBuilder,
    form: Form,
}

impl Case {
    async fn new(name: String) -> Self {
        let upstream = FakeAilab::start().await;
        let folder = Arc::new(TempDir::new().unwrap());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let builder = real_ailab(&upstream)
            .env("GRANARY_STORE_PATH", path("store"))
            .env("GRANARY_STATE_PATH", path("state"));
        let form = Form::curl(images::tiny_png(24, 24, 1), 40, 30);
        Self { name, upstream, folder, builder, form }
    }

    /// Starts a process that is to die at a point.
    fn doomed(&self, point: &str) -> GranaryBuilder {
        self.builder.clone().env("GRANARY_CRASH_AT", point)
    }

    /// Sends the request and does not care what comes back, if anything.
    async fn ask_in_vain(&self, granary: &GranaryProcess) {
        let call = Call::crop(&granary.public_url(), None, &self.form);
        let _ = tokio::time::timeout(PATIENCE, call.send()).await;
    }

    async fn ask(&self, url: &str) -> Answer {
        let asked = client::post_form(url, None, &self.form);
        let answer = tokio::time::timeout(PATIENCE, asked).await.expect("an answer in time");
        answer.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Waits until the process has died at a point by its own hand.
    async fn died_at(&self, mut granary: GranaryProcess, point: &str) {
        let exit = granary.wait_exit(PATIENCE).await;
        let said = granary.stderr_text();
        assert!(exit.is_some(), "{}: {point} was not reached\n{said}", self.name);
        assert_eq!(granary.died_by_signal(), Some(9), "{}: {said}", self.name);
        // Another thread may have logged something between the point's line and the signal.
        assert!(said.lines().any(|line| line == format!("crash point {point}")), "{}: {said}", self.name);
    }

    /// Rows of the ledger, oldest first: state, whether another row keeps the key, whether adopted.
    fn rows(&self) -> Vec<(String, bool, bool)> {
        let file = self.folder.path().join("state/ledger.sqlite");
        let db = rusqlite::Connection::open(file).unwrap();
        let mut rows = db.prepare("SELECT state, late, adopted FROM calls ORDER BY id").unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// How many calls of unknown outcome each key has.
    fn unknown_by_key(&self) -> BTreeMap<String, u64> {
        let file = self.folder.path().join("state/ledger.sqlite");
        let db = rusqlite::Connection::open(file).unwrap();
        let sql = "SELECT lower(hex(key)), count(*) FROM calls WHERE state = 'unknown' GROUP BY key";
        let mut rows = db.prepare(sql).unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// What the upstream sold for a key and a URL names.
    fn bought_as(&self, key: &str, url: &str) -> Vec<u8> {
        let purchases = self.upstream.purchases();
        let of_key = purchases.iter().filter(|purchase| purchase.key == key);
        let mut sold = of_key.map(|purchase| self.upstream.result_bytes(purchase.number));
        let named = sold.find(|bytes| url.contains(blake3::hash(bytes).to_hex().as_str()));
        named.unwrap_or_else(|| panic!("{}: {url} is nothing that was sold for {key}", self.name))
    }

    fn assert_rows(&self, states: &[&str]) {
        let expected: Vec<_> = states.iter().map(|state| ((*state).to_owned(), false, false)).collect();
        assert_eq!(self.rows(), expected, "{}", self.name);
    }

    /// Names and bytes of the objects, each of which must be whole, running or not: any static server
    /// could be serving them.
    fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(self.folder.path().join("store/results")).unwrap();
        let objects = entries.map(|entry| {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let digest = blake3::hash(&bytes).to_hex();
            assert_eq!(path.file_stem().unwrap().to_str(), Some(digest.as_str()), "{}", self.name);
            (path.file_name().unwrap().to_str().unwrap().to_owned(), bytes)
        });
        objects.collect()
    }

    /// What must hold at any time, whatever has happened.
    async fn assert_invariants(&self, public: &str, admin: &str) {
        for (name, bytes) in self.objects() {
            assert!(bytes_of(&format!("{public}/results/{name}")).await == bytes, "{}: {name}", self.name);
        }
        let tmp = files_below(&self.folder.path().join("store/tmp"));
        assert_eq!(tmp, 0, "{}: temporary files remain", self.name);
        assert_eq!(self.strange_state_files(), BTreeSet::new(), "{}", self.name);

        let calls = async |state: &str| {
            let credits = metric(admin, &format!("granary_ledger_credits{{state=\"{state}\"}}")).await;
            (credits / 3.0) as u64
        };
        let mut balance = Balance {
            charges: 0,
            booked: 0,
            unknown: calls("unknown").await,
            open: calls("reserved").await + calls("sent").await,
        };
        for state in ["answered", "stored", "unfetchable", "lost"] {
            balance.booked += calls(state).await;
        }
        balance.charges = self.upstream.charges();
        balance.check().unwrap_or_else(|wrong| panic!("{}: {wrong}", self.name));
    }

    /// What is in the state directory and is not the ledger, the lock, or the folder for uploads that
    /// memory has no room for, whose files have no names.
    fn strange_state_files(&self) -> BTreeSet<String> {
        let known = ["lock", "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "uploads"];
        let state = self.folder.path().join("state");
        assert_eq!(files_below(&state.join("uploads")), 0, "{}: an upload remains", self.name);
        let entries = std::fs::read_dir(state).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !known.contains(&name.as_str())).collect()
    }

    /// What the next process must do, before it is asked and after; and then for ever.
    async fn assert_recovers(self, left: Left) {
        self.objects();
        let before = self.upstream.wait_for_idle().await;
        let mut granary = self.builder.start().await.unwrap();
        let (public, admin) = (granary.public_url(), granary.admin_url());
        let fills =
            async |state: &str| metric(&admin, &format!("granary_fills_total{{state=\"{state}\"}}")).await;
        let recovered = match left {
            Left::Nothing => {
                self.assert_rows(&[]);
                (0.0, 0.0)
            }
            Left::Reserved => {
                self.assert_rows(&["released"]);
                (1.0, 0.0)
            }
            Left::Sent { charges } => {
                self.assert_rows(&["unknown"]);
                assert_eq!(before.charges, charges, "{}", self.name);
                (0.0, 1.0)
            }
            Left::Answered => {
                // Nobody has asked, and nobody needs to.
                let what = format!("{}: the fill to be finished", self.name);
                until(&what, async || fills("stored").await == 1.0).await;
                self.assert_rows(&["stored"]);
                (0.0, 0.0)
            }
            Left::Stored => {
                self.assert_rows(&["stored"]);
                (0.0, 0.0)
            }
        };
        // Unless the recovery was another's, who died of it.
        if !self.name.starts_with("CP33") {
            assert_eq!((fills("released").await, fills("unknown").await), recovered, "{}", self.name);
        }
        self.assert_invariants(&public, &admin).await;
        assert_eq!(self.upstream.attempts(), before.attempts, "{}: paid without being asked", self.name);

        let answer = self.ask(&public).await;
        let charges = match left {
            Left::Nothing | Left::Reserved => {
                assert_eq!(cache_status(&answer), "granary; fwd=uri-miss; fwd-status=200; stored");
                1
            }
            Left::Sent { charges } => {
                let reason = answer.header("granary-reason");
                assert_eq!((answer.status, reason), (503, Some("hold")), "{}: {}", self.name, answer.text());
                let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=66).contains(&wait), "{}: {wait}", self.name);
                charges
            }
            Left::Answered => {
                assert_eq!(cache_status(&answer), "granary; hit; detail=memory", "{}", self.name);
                1
            }
            Left::Stored => {
                assert_eq!(cache_status(&answer), "granary; hit; detail=ledger", "{}", self.name);
                1
            }
        };
        assert_eq!(self.upstream.charges(), charges, "{}", self.name);
        println!("{:>18}: {left:?}, then {} {}", self.name, answer.status, first_words(&answer));

        // One more death, of which nothing is expected.
        granary.kill().await;
        if let Left::Sent { charges } = left {
            return self.assert_bought_once_more(charges).await;
        }
        let granary = self.builder.start().await.unwrap();
        let again = self.ask(&granary.public_url()).await;
        assert_eq!(cache_status(&again), "granary; hit; detail=ledger", "{}", self.name);
        assert_eq!(again.result_url(), answer.result_url());
        assert!(bytes_of(&again.result_url()).await == self.upstream.result_bytes(1));
        assert_eq!((self.upstream.charges(), self.rows().last().unwrap().0.as_str()), (1, "stored"));
        self.assert_invariants(&granary.public_url(), &granary.admin_url()).await;
    }

    /// Once the key has rested it is bought again, by a Granary in this process, whose clock can be
    /// turned; and the `unknown` row stays in the book.
    async fn assert_bought_once_more(self, charges: u64) {
        let clock = TurnedClock::default();
        clock.turn(61);
        let config = upstream_section(&self.upstream, "");
        self.upstream.always(Behaviour::Success);
        let granary = Granary::start_in(self.folder.clone(), config, clock).await;
        let answer = self.ask(&granary.url()).await;
        assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
        assert_eq!(self.upstream.charges(), charges + 1, "{}", self.name);
        self.assert_rows(&["unknown", "stored"]);
        self.assert_invariants(&granary.url(), &granary.admin()).await;
    }
}

/// The part of an answer's head that says what it is.
fn first_words(answer: &Answer) -> String {
    match answer.status {
        200 => cache_status(answer),
        _ => answer.header("granary-reason").unwrap_or("for no stated reason").to_owned(),
    }
}

/// Runs cases a few at a time, each on a thread and a runtime of its own.
pub(crate) fn all<T: Copy + Send + Sync, C: Future<Output = ()>>(cases: &[T], check: impl Fn(T) -> C + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(check(*case));
                }
            });
        }
    });
}

pub(crate) async fn check_point(point: &'static str, left: Left) {
    let case = Case::new(format!("{point} {left:?}")).await;
    match (point, left) {
        ("CP33" | "CP34", _) => {
            // A first death leaves something to recover; then the recovery dies, three times.
            let first = if left == Left::Answered { "CP14" } else { "CP12" };
            let granary = case.doomed(first).start().await.unwrap();
            case.ask_in_vain(&granary).await;
            case.died_at(granary, first).await;
            for _ in 0..3 {
                case.died_at(case.doomed(point).spawn(), point).await;
            }
        }
        ("CP35", _) => {
            case.upstream.on_next(Behaviour::Hold);
            let mut granary = case.doomed(point).start().await.unwrap();
            let call = Call::crop(&granary.public_url(), None, &case.form);
            let _waiting = call.send_part(call.body_len()).await.unwrap();
            case.upstream.wait_for_held(1).await;
            granary.terminate();
            case.died_at(granary, point).await;
        }
        _ => {
            let granary = case.doomed(point).start().await.unwrap();
            case.ask_in_vain(&granary).await;
            case.died_at(granary, point).await;
        }
    }
    case.assert_recovers(left).await;
}

pub(crate) async fn check_wait(wait: Wait, left: Left) {
    let case = Case::new(format!("{wait:?}")).await;
    let (upstream, mut granary) = (&case.upstream, case.builder.start().await.unwrap());
    let call = Call::crop(&granary.public_url(), None, &case.form);
    let whole = call.body_len();
    let mut connection = call.send_part(whole / 2).await.unwrap();
    let rest = call.to_bytes().split_off(call.to_bytes().len() - (whole - whole / 2));
    match wait {
        Wait::HalfAnUpload => {}
        Wait::UpstreamWorks => {
            upstream.on_next(Behaviour::Hold);
            connection.send(&rest).await.unwrap();
            upstream.wait_for_held(1).await;
        }
        Wait::HalfAnAnswer => {
            upstream.on_next(Behaviour::StallMidAnswer(200));
            connection.send(&rest).await.unwrap();
            upstream.wait_for_held(1).await;
        }
        Wait::NoWordOfTheResult => {
            upstream.on_next_result(ResultBehaviour::Hang);
            connection.send(&rest).await.unwrap();
            upstream.wait_for_fetches(1).await;
        }
        Wait::HalfAResult => {
            upstream.on_next_result(ResultBehaviour::Stall(100));
            connection.send(&rest).await.unwrap();
            upstream.wait_for_fetches(1).await;
        }
        Wait::ClientReads => {
            connection.send(&rest).await.unwrap();
            assert_eq!(connection.read_answer(false).await.unwrap().status, 200);
        }
    }
    assert!(!granary.has_exited());
    granary.kill().await;
    case.assert_recovers(left).await;
}

#[test]
fn after_a_death_at_any_point_nothing_paid_is_lost_or_paid_again() {
    all(&POINTS, |(point, left)| check_point(point, left));
}

#[test]
fn after_a_death_during_any_wait_nothing_paid_is_lost_or_paid_again() {
    all(&WAITS, |(wait, left)| check_wait(wait, left));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_often_the_resumed_download_dies_its_end_is_the_same() {
    let case = Case::new("a resumed download".to_owned()).await;
    let granary = case.doomed("CP14").start().await.unwrap();
    case.ask_in_vain(&granary).await;
    case.died_at(granary, "CP14").await;
    for fetches in 1..=3 {
        case.upstream.on_next_result(ResultBehaviour::Stall(100));
        let mut granary = case.builder.start().await.unwrap();
        case.upstream.wait_for_fetches(fetches).await;
        case.assert_rows(&["answered"]);
        case.assert_invariants(&granary.public_url(), &granary.admin_url()).await;
        granary.kill().await;
    }
    // And while it keeps what it fetched.
    for point in ["CP17", "CP20", "CP23", "CP26", "CP27"] {
        case.died_at(case.doomed(point).spawn(), point).await;
    }
    case.assert_recovers(Left::Answered).await;
}

#[test]
fn a_refresh_that_dies_leaves_the_old_result_or_the_new_one() {
    all(&["CP5", "CP12", "CP14", "CP19", "CP23", "CP26", "CP27", "CP28"], check_refresh);
}

async fn check_refresh(point: &'static str) {
    let (red, token) = crate::harness::team("red", "may_refresh = true");
    let mut case = Case::new(format!("refresh {point}")).await;
    case.builder = case.builder.config_text(format!("{}\n{red}", upstream_section(&case.upstream, "")));
    let ask = async |url: &str| client::post_form(url, token.as_str(), &case.form).await.unwrap();
    let mut granary = case.builder.start().await.unwrap();
    let old = ask(&granary.public_url()).await.result_url();
    granary.kill().await;

    let granary = case.doomed(point).start().await.unwrap();
    let call = Call::crop(&granary.public_url(), token.as_str(), &case.form).header("Granary-Refresh", "1");
    let _ = tokio::time::timeout(PATIENCE, call.send()).await;
    case.died_at(granary, point).await;

    let granary = case.builder.start().await.unwrap();
    let (states, renewed): (&[&str], bool) = match point {
        "CP5" => (&["stored", "released"], false),
        "CP12" => (&["stored", "unknown"], false),
        _ => (&["stored", "stored"], true),
    };
    let finished = async || case.rows().iter().all(|(state, ..)| state != "answered");
    until(&format!("{}: the fill to be finished", case.name), finished).await;
    case.assert_rows(states);
    let now = ask(&granary.public_url()).await;
    assert_eq!(now.header("granary-credits-charged"), Some("0"), "{}: {}", case.name, now.text());
    assert_eq!(now.result_url() != old, renewed, "{}", case.name);
    assert!(bytes_of(&old).await == case.upstream.result_bytes(1), "{}", case.name);
    assert_eq!(case.upstream.charges(), if point == "CP5" { 1 } else { 2 }, "{}", case.name);
    case.assert_invariants(&granary.public_url(), &granary.admin_url()).await;
    println!("{:>18}: {states:?}", case.name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_under_load_it_loses_nothing() {
    const ROUNDS: u64 = 12;
    let case = Case::new("any moment".to_owned()).await;
    case.upstream.always(Behaviour::Delay(Duration::from_millis(4)));
    let form = |number: u64| Form::curl(images::tiny_png(16, 16, number), 40, 30);
    // What clients were told, by picture: the paths of URLs, which must be one each, and serve for ever.
    let told: Arc<Mutex<BTreeMap<u64, BTreeSet<String>>>> = Arc::default();
    for round in 0..ROUNDS {
        let mut granary = case.builder.start().await.unwrap();
        let (attempts, answers) = (case.upstream.attempts(), told.lock().unwrap().len());
        let clients: Vec<_> = (round * 4..round * 4 + 8)
            .map(|picture| {
                let (url, form, told) = (granary.public_url(), form(picture), told.clone());
                tokio::spawn(async move {
                    while let Ok(answer) = client::post_form(&url, None, &form).await {
                        if answer.status == 200 {
                            told.lock().unwrap().entry(picture).or_default().insert(answer.result_url());
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                })
            })
            .collect();
        // A moment after the first paid call or after the first answer, another in each round.
        if round % 2 == 0 {
            case.upstream.wait_for_attempts(attempts + 1).await;
        } else {
            until("an answer", async || told.lock().unwrap().len() > answers).await;
        }
        tokio::time::sleep(Duration::from_millis(round)).await;
        granary.kill().await;
        for client in clients {
            client.await.unwrap();
        }
    }
    case.upstream.wait_for_idle().await;
    let granary = case.builder.start().await.unwrap();
    let (public, admin) = (granary.public_url(), granary.admin_url());
    let finished = async || case.rows().iter().all(|(state, ..)| state != "answered");
    until("the last fills to be finished", finished).await;
    case.assert_invariants(&public, &admin).await;

    let told = told.lock().unwrap().clone();
    let mut archive = Archive::default();
    for (picture, urls) in &told {
        assert_eq!(urls.len(), 1, "picture {picture} was given two URLs");
        let again = client::post_form(&public, None, &form(*picture)).await.unwrap();
        assert_eq!(again.header("granary-credits-charged"), Some("0"), "{picture}: {}", again.text());
        assert_eq!(Some(&again.result_url()), urls.first());
        let key = CacheKey::of(&images::tiny_png(16, 16, *picture), 40, 30).to_string();
        let bytes = case.bought_as(&key, &again.result_url());
        archive.told(&key, &again.result_url(), &bytes).unwrap();
    }
    for (_, url, _) in archive.standing() {
        archive.served(url, Served::Bytes(&bytes_of(url).await)).unwrap();
    }
    let unknown = case.unknown_by_key();
    for (key, charges) in case.upstream.charges_by_key() {
        check_charges(&key, charges, unknown.get(&key).copied().unwrap_or(0)).unwrap();
    }
    let rows = case.rows();
    let counted = |wanted: &str| rows.iter().filter(|(state, ..)| state == wanted).count();
    println!(
        "{ROUNDS} deaths: {} charges, {} stored, {} unknown, {} released, {} pictures told",
        case.upstream.charges(),
        counted("stored"),
        counted("unknown"),
        counted("released"),
        told.len()
    );
    assert!(told.len() as u64 >= ROUNDS / 2);
}

#[test]
fn every_point_in_the_program_is_in_the_table() {
    fn points_below(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                points_below(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let named = source.split("crash_point(\"").skip(1);
                found.extend(named.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let mut found = BTreeSet::new();
    points_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let copying = COPY_POINTS.iter().map(|point| point.split(':').next().unwrap());
    let others = copying.chain([RELOAD_POINT]);
    let tested = POINTS.iter().map(|(point, _)| *point).chain(others).map(str::to_owned).collect();
    assert_eq!(found, tested);
}
