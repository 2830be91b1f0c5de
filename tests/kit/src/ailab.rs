//! `FakeAilab`: the vendor's crop endpoint, its balance query and its result store on two loopback listeners, and a ledger of what they did.
//!
//! It is the authority on money in every test: a request is charged when it has been received whole (closing boundary,
//! declared length) with the right key and good fields, unless its script entry says the vendor would not bill it.
//! It never depends on the gateway and never forgives a malformed request.

mod answers;
mod behaviour;
mod crop;
mod envelope;
mod ledger;
mod listen;
mod multipart;
mod mutation;
mod picture;
mod results;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use behaviour::{Behaviour, ResultBehaviour};
pub use envelope::ODD_RETAIN_LOCATION;
pub use ledger::{CREDITS_PER_CROP, Purchase, SeenRequest, Stats};
pub use multipart::{SeenPart, parse as parse_multipart};
pub use mutation::{Coding, Framing, Mutation};

pub use crate::wire::Head;
use ledger::{Book, Ledger};
use listen::{Side, listen, stop};

/// How long a wait for an event may take before the test is told what was seen instead.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running fake. Dropping it closes its listeners and every connection.
pub struct FakeAilab {
    ledger: Arc<Ledger>,
    api: SocketAddr,
    results: SocketAddr,
    api_task: Option<AbortOnDropHandle<()>>,
    results_task: Option<AbortOnDropHandle<()>>,
}

impl FakeAilab {
    /// Starts both servers on loopback, with a random key and a million credits.
    pub async fn start() -> FakeAilab {
        let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let results = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let result_address = results.local_addr().unwrap();
        let ledger = Arc::new(Ledger::new(Book {
            api_key: random_key(),
            cropping_credits: 1_000_000,
            total_credits: 1_000_000,
            result_host: format!("http://{result_address}"),
            ..Book::default()
        }));
        FakeAilab {
            api: api.local_addr().unwrap(),
            results: result_address,
            api_task: Some(listen(api, Arc::clone(&ledger), Side::Api)),
            results_task: Some(listen(results, Arc::clone(&ledger), Side::Results)),
            ledger,
        }
    }

    /// `http://127.0.0.1:PORT` of the API.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// `http://127.0.0.1:PORT` of the result server: the scheme, host and port of every `data.url`.
    pub fn result_host(&self) -> String {
        format!("http://{}", self.results)
    }

    /// From now on result URLs name this host, `http://host:port`, which must lead to [`FakeAilab::result_host`].
    pub fn sell_results_at(&self, host: &str) {
        self.ledger.book().result_host = host.trim_end_matches('/').to_owned();
    }

    /// From now on every result is a PNG, whatever was sent.
    pub fn sell_png(&self) {
        self.ledger.book().always_png = true;
    }

    /// From now on the same order brings the same picture; without it, each purchase has its own.
    pub fn sell_the_same_again(&self) {
        self.ledger.book().same_again = true;
    }

    /// From now on URLs say that they end after this time.
    pub fn sell_urls_for(&self, time: Duration) {
        self.ledger.book().url_life = Some(time);
    }

    /// The only key that is accepted; random for each fake, so that it can be searched for.
    pub fn api_key(&self) -> String {
        self.ledger.book().api_key.clone()
    }

    /// Replaces the key: the old one is refused from now on. Returns the new one.
    pub fn rotate_key(&self) -> String {
        let key = random_key();
        self.ledger.book().api_key.clone_from(&key);
        key
    }

    /// Makes a new key, which is accepted from now on beside the old one, until that one is retired.
    pub fn add_key(&self) -> String {
        let mut book = self.ledger.book();
        let old = std::mem::replace(&mut book.api_key, random_key());
        book.other_keys.push(old);
        book.api_key.clone()
    }

    /// Refuses all keys but the newest from now on.
    pub fn retire_old_keys(&self) {
        self.ledger.book().other_keys.clear();
    }

    /// Sets what the account holds: credits for cropping, and common ones, which are used when those are gone.
    pub fn set_balance(&self, cropping: i64, common: i64) {
        let mut book = self.ledger.book();
        (book.cropping_credits, book.common_credits, book.total_credits) = (cropping, common, cropping);
    }

    /// What is left of the credits for cropping and of the common ones.
    pub fn balance(&self) -> (i64, i64) {
        let book = self.ledger.book();
        (book.cropping_credits, book.common_credits)
    }

    /// Scripts one more of the coming requests; each request with the right key takes one entry when its head arrives.
    pub fn on_next(&self, behaviour: Behaviour) {
        self.ledger.book().next.push_back(behaviour);
    }

    /// What happens to requests for which no entry is left.
    pub fn always(&self, behaviour: Behaviour) {
        self.ledger.book().always = behaviour;
    }

    /// Scripts one more of the coming result fetches.
    pub fn on_next_result(&self, behaviour: ResultBehaviour) {
        self.ledger.book().next_result.push_back(behaviour);
    }

    /// What happens to result fetches for which no entry is left.
    pub fn always_results(&self, behaviour: ResultBehaviour) {
        self.ledger.book().always_result = behaviour;
    }

    /// From now on every URL sold so far answers 403, as after its 24 hours.
    pub fn expire_all(&self) {
        self.ledger.book().purchases.iter_mut().for_each(|p| p.expired = true);
    }

    /// Lets every request go on whose head has arrived and that is, or will be, held. Later ones are held again.
    pub fn release(&self) {
        self.ledger.gate.send_modify(|generation| *generation += 1);
    }

    /// Lets exactly one held request go on: one that waits already, or else the next.
    pub fn release_one(&self) {
        self.ledger.permits.add_permits(1);
    }

    /// All counters at once.
    pub fn stats(&self) -> Stats {
        *self.ledger.stats.borrow()
    }

    /// Crops billed.
    pub fn charges(&self) -> u64 {
        self.stats().charges
    }

    /// Crop request heads seen.
    pub fn attempts(&self) -> u64 {
        self.stats().attempts
    }

    /// Crop requests received whole and valid.
    pub fn fully_received(&self) -> u64 {
        self.stats().fully_received
    }

    /// Crop requests between their head and the end of their answer.
    pub fn in_flight(&self) -> u64 {
        self.stats().in_flight
    }

    /// Requests for results.
    pub fn fetches(&self) -> u64 {
        self.stats().fetches
    }

    /// Every crop request, in the order of their heads.
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.ledger.book().seen.clone()
    }

    /// The heads the result server got, to prove that they carry no credential.
    pub fn fetched(&self) -> Vec<Head> {
        self.ledger.book().fetched.clone()
    }

    /// Every billed crop, in order.
    pub fn purchases(&self) -> Vec<Purchase> {
        self.ledger.book().purchases.clone()
    }

    /// Charges per key: what "exactly one charge per key" is asserted on.
    pub fn charges_by_key(&self) -> BTreeMap<String, u64> {
        self.ledger.charges_by_key()
    }

    /// The bytes sold with purchase `number` (from 1), as the result server sends them.
    pub fn result_bytes(&self, number: u64) -> Vec<u8> {
        let index = usize::try_from(number).unwrap() - 1;
        let p = self.ledger.book().purchases[index].clone();
        picture::draw(p.drawn, p.width, p.height, p.format)
    }

    /// The random core of every signature sold: secrets to search for.
    pub fn signatures(&self) -> Vec<String> {
        self.ledger.book().purchases.iter().map(|p| p.signature.clone()).collect()
    }

    /// The newest of [`FakeAilab::signatures`].
    pub fn last_signature(&self) -> Option<String> {
        self.signatures().pop()
    }

    /// Keeps request bodies (the default) or drops them once counted, for tests that send gigabytes.
    pub fn keep_bodies(&self, keep: bool) {
        self.ledger.book().forget_bodies = !keep;
    }

    /// Waits until the counters satisfy `enough`, and returns them.
    ///
    /// # Panics
    ///
    /// After 20 seconds, with the counters as they are.
    pub async fn wait_until(&self, what: &str, enough: impl Fn(&Stats) -> bool) -> Stats {
        let mut stats = self.ledger.stats.subscribe();
        let waited = tokio::time::timeout(PATIENCE, stats.wait_for(|s| enough(s))).await;
        match waited {
            Ok(Ok(stats)) => *stats,
            _ => panic!("waited {PATIENCE:?} for {what}; the fake has {:?}", self.stats()),
        }
    }

    /// Waits until at least `n` crop requests are in flight.
    pub async fn wait_for_in_flight(&self, n: u64) -> Stats {
        self.wait_until(&format!("{n} requests in flight"), |s| s.in_flight >= n).await
    }

    /// Waits until at least `n` whole requests are being kept waiting: paid, and not answered.
    pub async fn wait_for_held(&self, n: u64) -> Stats {
        self.wait_until(&format!("{n} requests held"), |s| s.held >= n).await
    }

    /// Waits until at least `n` crop request heads have been seen.
    pub async fn wait_for_attempts(&self, n: u64) -> Stats {
        self.wait_until(&format!("{n} attempts"), |s| s.attempts >= n).await
    }

    /// Waits until the result server has seen at least `n` requests.
    pub async fn wait_for_fetches(&self, n: u64) -> Stats {
        self.wait_until(&format!("{n} fetches"), |s| s.fetches >= n).await
    }

    /// Waits until nothing is in flight.
    pub async fn wait_for_idle(&self) -> Stats {
        self.wait_until("nothing in flight", |s| s.in_flight == 0).await
    }

    /// Closes the API's listener and its connections; connecting is refused until [`FakeAilab::come_back`]. Results stay up.
    pub async fn go_down(&mut self) {
        stop(&mut self.api_task).await;
    }

    /// Listens again on the API's old address.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.api).await.unwrap();
        self.api_task = Some(listen(listener, Arc::clone(&self.ledger), Side::Api));
    }

    /// The same for the result server.
    pub async fn results_go_down(&mut self) {
        stop(&mut self.results_task).await;
    }

    /// Listens again on the result server's old address.
    pub async fn results_come_back(&mut self) {
        let listener = TcpListener::bind(self.results).await.unwrap();
        self.results_task = Some(listen(listener, Arc::clone(&self.ledger), Side::Results));
    }
}

fn random_key() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests;
