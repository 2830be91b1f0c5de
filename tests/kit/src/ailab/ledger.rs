//! What the fake remembers: every request it saw, every charge it made, and counters a test can wait on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::behaviour::{Behaviour, ResultBehaviour};
use super::multipart::SeenPart;
use super::picture::Format;
use crate::wire::Head;

/// What one paid crop costs.
pub const CREDITS_PER_CROP: i64 = 3;

/// The counters of one fake, as they were at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Heads of crop requests seen, whatever became of them.
    pub attempts: u64,
    /// Crop requests received whole: a valid body to its closing boundary, and exactly as long as declared.
    pub fully_received: u64,
    /// Crops the vendor would have billed.
    pub charges: u64,
    /// Crop requests between their head and the end of their answer (or of their connection).
    pub in_flight: u64,
    /// The most there have been in flight at once.
    pub max_in_flight: u64,
    /// Requests received whole that are being kept waiting: held, delayed, or never to be answered.
    pub held: u64,
    /// Body bytes of crop requests that have arrived.
    pub body_bytes: u64,
    /// Heads seen by the result server.
    pub fetches: u64,
    /// Balance queries answered.
    pub balance_queries: u64,
}

/// One crop request as it arrived.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    /// Which connection brought it, counted from 0.
    pub connection: u64,
    /// The request line and headers: raw bytes, and in order.
    pub head: Head,
    /// The body as far as it came, chunk framing removed.
    pub body: Bytes,
    /// The parts, when the body was whole and valid.
    pub parts: Vec<SeenPart>,
    /// Received whole and valid.
    pub complete: bool,
    /// Billed.
    pub charged: bool,
}

impl SeenRequest {
    /// The content of the only part of this name; `None` if there is none or several.
    pub fn part(&self, name: &str) -> Option<&SeenPart> {
        let mut named = self.parts.iter().filter(|part| part.name == name);
        let first = named.next();
        if named.next().is_some() { None } else { first }
    }
}

/// One billed crop.
#[derive(Clone, Debug)]
pub struct Purchase {
    /// Counted from 1 over the life of the fake.
    pub number: u64,
    /// BLAKE3 of the image bytes and both numbers as u32 little-endian, computed from what arrived; 64 hex digits.
    pub key: String,
    /// The size that was bought.
    pub width: u32,
    /// The size that was bought.
    pub height: u32,
    /// The full result URL.
    pub url: String,
    /// The random core of its signature: a secret to look for.
    pub signature: String,
    /// Decides the pixels of the result.
    pub(crate) drawn: u64,
    pub(crate) format: Format,
    pub(crate) target: String,
    pub(crate) expired: bool,
}

#[derive(Default)]
pub(crate) struct Book {
    pub(crate) api_key: String,
    /// Keys that are accepted beside it.
    pub(crate) other_keys: Vec<String>,
    pub(crate) seen: Vec<SeenRequest>,
    pub(crate) purchases: Vec<Purchase>,
    pub(crate) fetched: Vec<Head>,
    pub(crate) next: VecDeque<Behaviour>,
    pub(crate) always: Behaviour,
    pub(crate) next_result: VecDeque<ResultBehaviour>,
    pub(crate) always_result: ResultBehaviour,
    pub(crate) cropping_credits: i64,
    pub(crate) common_credits: i64,
    pub(crate) total_credits: i64,
    pub(crate) forget_bodies: bool,
    pub(crate) result_host: String,
    pub(crate) always_png: bool,
    pub(crate) same_again: bool,
    pub(crate) url_life: Option<Duration>,
}

/// The one state behind both listeners of a fake.
pub(crate) struct Ledger {
    book: Mutex<Book>,
    pub(crate) stats: watch::Sender<Stats>,
    /// Raised by `release`: a request waits for a generation later than the one its head arrived in.
    pub(crate) gate: watch::Sender<u64>,
    pub(crate) permits: Semaphore,
}

impl Ledger {
    pub(crate) fn new(book: Book) -> Ledger {
        let (stats, gate) = (watch::Sender::default(), watch::Sender::default());
        Ledger { book: Mutex::new(book), stats, gate, permits: Semaphore::new(0) }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Stats)) {
        self.stats.send_modify(change);
    }

    /// Bills a request and names its result, or says that the account is empty.
    pub(crate) fn charge(
        &self,
        index: usize,
        image: &[u8],
        size: (u32, u32),
        format: Format,
    ) -> Option<Purchase> {
        let mut book = self.book();
        if book.cropping_credits >= CREDITS_PER_CROP {
            book.cropping_credits -= CREDITS_PER_CROP;
        } else if book.common_credits >= CREDITS_PER_CROP {
            book.common_credits -= CREDITS_PER_CROP;
        } else {
            return None;
        }
        let (width, height) = size;
        let format = if book.always_png { Format::Png } else { format };
        let expires = match book.url_life {
            Some(life) => (SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + life).as_secs(),
            None => 1_795_392_000,
        };
        let signature = Uuid::new_v4().simple().to_string();
        // Escapes that a URL parser likes to undo: the store would refuse the request, and so does the result server.
        let target = format!(
            "/image/changeImageSize/2026-11-22/{}.{}?Expires={expires}&OSSAccessKeyId=LTAI5tFAKEFAKEFAKE&Signature={signature}%2Bq%2F7%3D",
            Uuid::new_v4(),
            format.extension(),
        );
        let (number, key) = (book.purchases.len() as u64 + 1, key(image, width, height));
        let drawn = if book.same_again { u64::from_str_radix(&key[..8], 16).unwrap() } else { number };
        let purchase = Purchase {
            number,
            key,
            drawn,
            width,
            height,
            url: format!("{}{target}", book.result_host),
            signature,
            format,
            target,
            expired: false,
        };
        book.purchases.push(purchase.clone());
        book.seen[index].charged = true;
        // Inside the lock, so that nobody sees a purchase that is not counted.
        self.count(|s| s.charges += 1);
        Some(purchase)
    }

    pub(crate) fn charges_by_key(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for purchase in &self.book().purchases {
            *all.entry(purchase.key.clone()).or_default() += 1;
        }
        all
    }
}

/// The key of spec section 3, written down a second time on purpose.
fn key(image: &[u8], width: u32, height: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(image).update(&width.to_le_bytes()).update(&height.to_le_bytes());
    hasher.finalize().to_hex().to_string()
}

/// Counts a request in flight until it is dropped, so that an aborted connection is not in flight for ever.
pub(crate) struct InFlight<'a>(&'a Ledger);

impl<'a> InFlight<'a> {
    pub(crate) fn begin(ledger: &'a Ledger) -> InFlight<'a> {
        ledger.count(|s| {
            s.attempts += 1;
            s.in_flight += 1;
            s.max_in_flight = s.max_in_flight.max(s.in_flight);
        });
        InFlight(ledger)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.count(|s| s.in_flight -= 1);
    }
}

/// Counts a request as held until it is dropped.
pub(crate) struct Held<'a>(&'a Ledger);

impl<'a> Held<'a> {
    pub(crate) fn begin(ledger: &'a Ledger) -> Held<'a> {
        ledger.count(|s| s.held += 1);
        Held(ledger)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.count(|s| s.held -= 1);
    }
}
