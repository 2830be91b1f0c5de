//! A ledger that goes away at the worst moments, and what the next process makes of the files.

use std::fs;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::key::Digest;
use crate::ledger::Won;
use crate::ledger::sqlite::SqliteLedger;
use crate::secret::Secret;

/// A ledger that can be taken away, and the folder of its files.
struct Rig {
    folder: TempDir,
    ledger: SpillLedger,
    beside: Connection,
}

impl Rig {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap(), 1 << 20)
    }

    fn on(folder: TempDir, spool_max: u64) -> Self {
        let file = folder.path().join("ledger.db");
        let sqlite = SqliteLedger::open(&file, Clock::system(), TimeZone::UTC).unwrap();
        let ledger =
            SpillLedger::new(Arc::new(sqlite.with_spool_max(spool_max)), folder.path().join("spill"));
        Self { beside: Connection::open(&file).unwrap(), ledger, folder }
    }

    /// A new process on what this one left.
    fn restarted(self) -> Self {
        let Self { folder, .. } = self;
        Self::on(folder, 1 << 20)
    }

    fn away(&self, is_away: bool) {
        let (from, to) = if is_away { ("calls", "hidden") } else { ("hidden", "calls") };
        self.beside.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
    }

    fn spill(&self, name: &str) -> PathBuf {
        self.folder.path().join("spill").join(name)
    }

    /// The files, in order.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("spill")) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn send(&self, n: u32) -> Won {
        let Reserved::Won(won) = self.ledger.reserve(picture(n)).await.unwrap() else {
            panic!("it was free")
        };
        assert_eq!(self.ledger.mark_sent(won.id).await.unwrap(), Permit::Granted);
        won
    }

    async fn state(&self, id: CallId) -> CallState {
        self.ledger.call(id).await.unwrap().unwrap().state
    }

    /// Books what the ledger does not take.
    async fn book_in_vain(&self, id: CallId, booking: Booking) {
        self.away(true);
        for _ in 0..2 {
            let booked = self.ledger.book(id, booking.clone()).await;
            assert!(matches!(booked, Err(LedgerError::Unavailable(_))), "{booked:?}");
        }
        self.away(false);
    }
}

fn picture(n: u32) -> Reservation {
    Reservation {
        namespace: "ailab-v1".to_owned(),
        key: CacheKey::of(b"picture", n, 1),
        refresh: false,
        team: "web".to_owned(),
        credits: 3,
        budgets: Vec::new(),
        image: Digest::of(b"picture"),
        width: n,
        height: 1,
    }
}

fn answered() -> Booking {
    Booking::Answered {
        text: Secret::new(r#"{"data":{"url":"https://results.example/1?signed"}}"#),
        request_id: "R".to_owned(),
        log_id: "L".to_owned(),
    }
}

const RESULT: &[u8] = b"BM with\nlines and \0 in it";

fn spooled(n: u32) -> Booking {
    let Reservation { namespace, key, team, credits, image, width, height, .. } = picture(n);
    let record = Record {
        version: Record::VERSION,
        namespace,
        key,
        generation: 0,
        answer: "{}".to_owned(),
        digest: Digest::of(RESULT),
        extension: "bmp".to_owned(),
        bytes: RESULT.len() as u64,
        team,
        credits,
        stored_at: "2026-11-22T10:00:00Z".parse().unwrap(),
        upstream_request_id: "R".to_owned(),
        upstream_log_id: "L".to_owned(),
        image,
        width,
        height,
    };
    Booking::Spooled { record: Box::new(record), bytes: Bytes::from_static(RESULT) }
}

#[tokio::test]
async fn a_booking_is_in_a_file_until_the_ledger_has_it() {
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.book_in_vain(won.id, answered()).await;
    assert_eq!(rig.files(), ["1.answered"]);
    rig.ledger.book(won.id, answered()).await.unwrap();
    assert_eq!(rig.files(), Vec::<String>::new());

    rig.book_in_vain(won.id, spooled(1)).await;
    assert_eq!(rig.files(), ["1.spooled"]);
    // The bucket was back before the ledger.
    let Booking::Spooled { record, .. } = spooled(1) else { unreachable!("it is") };
    rig.ledger.book(won.id, Booking::Stored { record, holds_key: true }).await.unwrap();
    assert_eq!(rig.files(), Vec::<String>::new());
}

#[tokio::test]
async fn only_what_was_paid_for_is_worth_a_file() {
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.book_in_vain(won.id, Booking::Unknown { reason: String::new() }).await;
    assert_eq!(rig.files(), Vec::<String>::new());
    rig.ledger.book(won.id, answered()).await.unwrap();
    // Refused for a reason of its own is not away.
    assert!(rig.ledger.book(won.id, Booking::Lost).await.is_err());
    let booked = rig.ledger.book(CallId(1), Booking::Released { reason: String::new() }).await;
    assert!(matches!(booked, Err(LedgerError::Contradiction { .. })));
    assert_eq!(rig.files(), Vec::<String>::new());
}

#[tokio::test]
async fn the_next_start_books_an_answer_on_a_row_whose_owner_died() {
    let rig = Rig::new();
    let (paid, other) = (rig.send(1).await, rig.send(2).await);
    rig.book_in_vain(paid.id, answered()).await;
    let rig = rig.restarted();
    let found = rig.ledger.recover().await.unwrap();
    assert_eq!((found.released, found.unknown, found.unfinished.len()), (0, 1, 1));
    assert_eq!(found.unfinished[0].id, paid.id);
    let Booking::Answered { text, .. } = answered() else { unreachable!("it is") };
    assert_eq!(found.unfinished[0].text, text);
    assert_eq!(rig.files(), Vec::<String>::new());
    assert_eq!(rig.state(other.id).await, CallState::Unknown);
    // And what was resumed is looked after like any other.
    rig.book_in_vain(paid.id, spooled(1)).await;
    assert_eq!(rig.files(), ["1.spooled"]);
}

#[tokio::test]
async fn the_next_start_books_a_result_and_nothing_is_left_to_be_fetched() {
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.ledger.book(won.id, answered()).await.unwrap();
    rig.book_in_vain(won.id, spooled(1)).await;
    let rig = rig.restarted();
    assert!(rig.ledger.recover().await.unwrap().unfinished.is_empty());
    assert_eq!((rig.state(won.id).await, rig.files()), (CallState::Stored, Vec::new()));
    let name = ObjectName::of(RESULT).unwrap();
    assert_eq!(rig.ledger.spooled_object(name).await.unwrap().as_deref(), Some(RESULT));
}

#[tokio::test]
async fn a_result_that_does_not_fit_stays_in_its_file_until_it_is_kept() {
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.ledger.book(won.id, answered()).await.unwrap();
    rig.book_in_vain(won.id, spooled(1)).await;
    let rig = Rig::on(rig.folder, 5);
    assert_eq!(rig.ledger.recover().await.unwrap().unfinished.len(), 1);
    assert_eq!(rig.files(), ["1.spooled"]);
    let Booking::Spooled { record, .. } = spooled(1) else { unreachable!("it is") };
    rig.ledger.book(won.id, Booking::Stored { record, holds_key: true }).await.unwrap();
    assert_eq!(rig.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_result_in_a_file_is_not_given_up_when_its_url_is_dead() {
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.ledger.book(won.id, answered()).await.unwrap();
    rig.book_in_vain(won.id, spooled(1)).await;
    let gone = || Booking::Unfetchable { reason: "its URL is dead".to_owned() };
    // Without room the file stays, and the row as it is.
    let rig = Rig::on(rig.folder, 5);
    assert_eq!(rig.ledger.recover().await.unwrap().unfinished.len(), 1);
    let refused = rig.ledger.book(won.id, gone()).await;
    assert!(matches!(refused, Err(LedgerError::SpoolFull { .. })), "{refused:?}");
    assert_eq!(rig.files(), ["1.spooled"]);
    // With room it is booked, and not lost.
    let rig = Rig::on(rig.folder, 1 << 20);
    rig.ledger.recover().await.unwrap();
    let told = rig.ledger.book(won.id, gone()).await;
    assert!(matches!(told, Err(LedgerError::Contradiction { .. })), "{told:?}");
    let facts = rig.ledger.call(won.id).await.unwrap().unwrap();
    assert_eq!((facts.state, rig.files()), (CallState::Stored, Vec::<String>::new()));
}

#[tokio::test]
async fn a_file_whose_booking_the_ledger_has_is_erased() {
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.book_in_vain(won.id, answered()).await;
    let copy = fs::read(rig.spill("1.answered")).unwrap();
    for last in [answered(), Booking::Unfetchable { reason: String::new() }] {
        rig.ledger.book(won.id, last).await.unwrap();
        fs::write(rig.spill("1.answered"), &copy).unwrap();
        rig.ledger.recover().await.unwrap();
        assert_eq!(rig.files(), Vec::<String>::new());
    }
    assert_eq!(rig.state(won.id).await, CallState::Unfetchable);
}

#[tokio::test]
async fn a_file_is_never_booked_on_a_row_it_is_not_about() {
    let rig = Rig::new();
    rig.book_in_vain(rig.send(1).await.id, answered()).await;
    let copy = fs::read(rig.spill("1.answered")).unwrap();
    // Another ledger, whose row of that number is another's; and one that has none.
    for has_row in [true, false] {
        let rig = Rig::new();
        fs::create_dir(rig.folder.path().join("spill")).unwrap();
        fs::write(rig.spill("1.answered"), &copy).unwrap();
        if has_row {
            rig.send(7).await;
        }
        assert!(rig.ledger.recover().await.unwrap().unfinished.is_empty());
        assert_eq!(rig.files(), ["1.answered.damaged"]);
        assert_eq!(fs::read(rig.spill("1.answered.damaged")).unwrap(), copy);
        // It stays there.
        rig.ledger.recover().await.unwrap();
        assert_eq!(rig.files(), ["1.answered.damaged"]);
    }
    // A row of which the ledger says that nothing was sent.
    let rig = Rig::new();
    let won = rig.send(1).await;
    rig.book_in_vain(won.id, answered()).await;
    let copy = fs::read(rig.spill("1.answered")).unwrap();
    rig.ledger.book(won.id, Booking::Released { reason: String::new() }).await.unwrap();
    fs::write(rig.spill("1.answered"), &copy).unwrap();
    rig.ledger.recover().await.unwrap();
    assert_eq!(rig.files(), ["1.answered.damaged"]);
}

#[tokio::test]
async fn whatever_is_damaged_is_set_aside_and_the_rest_is_booked() {
    let rig = Rig::new();
    let (one, two) = (rig.send(1).await, rig.send(2).await);
    rig.book_in_vain(one.id, answered()).await;
    rig.book_in_vain(two.id, answered()).await;
    let whole = fs::read(rig.spill("1.answered")).unwrap();
    fs::write(rig.spill("1.answered"), &whole[..whole.len() - 1]).unwrap();
    // A whole one under a name that is not its own, and what a death left half written.
    fs::write(rig.spill("3.answered"), &whole).unwrap();
    fs::write(rig.spill("0123456789abcdef0123456789abcdef"), b"half").unwrap();
    let found = rig.ledger.recover().await.unwrap();
    assert_eq!(found.unfinished.iter().map(|call| call.id).collect::<Vec<_>>(), [two.id]);
    assert_eq!(rig.files(), ["1.answered.damaged", "3.answered.damaged"]);
}

#[test]
fn a_file_with_one_bit_changed_or_one_byte_missing_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let files = Folder::new(folder.path().join("spill"));
    let Reservation { namespace, key, .. } = picture(1);
    for booking in [answered(), spooled(1)] {
        let state = booking.state();
        let facts = CallFacts { namespace: namespace.clone(), key, generation: 3, state };
        files.write(&Spilled { id: CallId(5), facts: facts.clone(), booking }).unwrap();
        let name = Folder::name(CallId(5), state);
        let read = files.read(&name).unwrap();
        assert_eq!((read.id, read.facts), (CallId(5), facts));
        match (read.booking, spooled(1)) {
            (Booking::Spooled { record, bytes }, Booking::Spooled { record: kept, .. }) => {
                assert_eq!((record, &bytes[..]), (kept, RESULT));
            }
            (booking, _) => assert_eq!(booking.state(), CallState::Answered),
        }
        let path = folder.path().join("spill").join(&name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, &changed).unwrap();
            assert!(files.read(&name).is_err(), "bit in byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(files.read(&name).is_err(), "{at} bytes");
        }
    }
}

#[test]
fn errors_repeat_nothing_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let files = Folder::new(folder.path().to_owned());
    let head = br#"{"call":1,"namespace":"sesame","booking":"answered","text":"sesame","#;
    let body = [b"granary-spill 1\n", &head[..], b"\n"].concat();
    let sealed = [&body[..], blake3::hash(&body).as_bytes()].concat();
    fs::write(folder.path().join("1.answered"), sealed).unwrap();
    let error = files.read("1.answered").expect_err("its head is torn").to_string();
    assert!(!error.contains("sesame"), "{error}");
}

#[tokio::test]
async fn a_result_for_which_the_spool_is_full_is_in_a_file_until_it_is_kept() {
    let rig = Rig::on(tempfile::tempdir().unwrap(), 1);
    let mut ids = Vec::new();
    for n in 1..=2 {
        let won = rig.send(n).await;
        rig.ledger.book(won.id, answered()).await.unwrap();
        for _ in 0..2 {
            let booked = rig.ledger.book(won.id, spooled(n)).await;
            assert!(matches!(booked, Err(LedgerError::SpoolFull { .. })), "{booked:?}");
        }
        ids.push(won.id);
    }
    assert_eq!(rig.files(), ["1.spooled", "2.spooled"]);
    // The store took the first after all; then the process is killed.
    let Booking::Spooled { record, .. } = spooled(1) else { panic!("it is spooled") };
    rig.ledger.book(ids[0], Booking::Stored { record, holds_key: true }).await.unwrap();
    assert_eq!(rig.files(), ["2.spooled"]);
    let rig = rig.restarted();
    rig.ledger.recover().await.unwrap();
    assert_eq!((rig.files(), rig.state(ids[1]).await), (Vec::new(), CallState::Stored));
}

#[tokio::test]
async fn an_answer_that_was_set_aside_is_removed_after_a_day_and_a_result_is_not() {
    let rig = Rig::new();
    fs::create_dir(rig.folder.path().join("spill")).unwrap();
    let names = ["7.answered.damaged", "8.answered.damaged", "9.spooled.damaged"];
    for (name, hours) in names.into_iter().zip([25, 23, 25]) {
        let file = fs::File::create(rig.spill(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    }
    rig.ledger.recover().await.unwrap();
    while rig.files().len() > 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(rig.files(), names[1..]);
}
