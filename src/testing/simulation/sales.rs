//! The upstream and its results: what was sold to whom, what it cost, and what became of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use super::clients;
use super::faults::{Line, Place, ms};
use super::process::{Life, URL_TTL};
use super::world::World;
use crate::base::envelope::Answer;
use crate::base::key::CacheKey;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::ObjectName;
use crate::base::secret::Secret;
use crate::ledger::CallId;
use crate::request::Order;
use crate::upstream::download::{FetchError, Fetched, ResultSource};
use crate::upstream::{
    ErrorReply, HeldCall, NotSent, Opened, Refusal, RefusalKind, Reply, UnknownCause, Upstream,
};

/// The longest time a paid call is waited for.
pub(super) const HARD_STOP: Duration = Duration::from_secs(180);

/// A tail that went out.
pub(super) struct Sale {
    /// Ledger and row it was paid by.
    pub(super) ledger: usize,
    pub(super) row: CallId,
    pub(super) key: CacheKey,
    /// What came of it.
    pub(super) outcome: Sold,
    /// Did it cost credits?
    pub(super) is_charged: bool,
    /// The process that got the reply alive.
    pub(super) delivered_to: Option<usize>,
    /// Its record was in the store, perhaps until a later generation took its place.
    pub(super) was_recorded: bool,
    pub(super) bytes: Bytes,
    /// When its URL serves nothing, on the world's own clock.
    pub(super) dead: Option<(Instant, Instant)>,
}

/// What a paid call brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sold {
    Answer,
    Refusal,
    Failure,
    Unknown(UnknownCause),
}

impl Sale {
    /// Does its URL serve nothing at the moment?
    fn is_dead(&self) -> bool {
        let now = Instant::now();
        self.dead.is_some_and(|(from, to)| from <= now && now < to)
    }

    /// Has its URL been dead for so long at a stretch?
    pub(super) fn was_dead_for(&self, time: Duration) -> bool {
        self.dead.is_some_and(|(from, to)| from + time <= to.min(Instant::now()))
    }

    pub(super) fn object(&self) -> ObjectName {
        ObjectName::of(&self.bytes).expect("results are pictures by their first bytes")
    }
}

/// An answer that names the result of this number.
fn answer(number: usize) -> Answer {
    let text = format!(
        r#"{{"request_id":"R{number}","log_id":"L{number}","data":{{"url":"https://results.example/{number}"}}}}"#
    );
    Answer::read(&text, &IMAGE_CROPPING).expect("an answer")
}

/// The number of the sale with this `request_id`.
pub(super) fn number_of(request_id: &str) -> Option<usize> {
    request_id.strip_prefix('R')?.parse().ok()
}

fn refusal(kind: RefusalKind, status: u16, code: &str) -> Reply {
    let status = StatusCode::from_u16(status).expect("a status");
    let reply =
        ErrorReply { status, body: Some(Bytes::from(format!("{{\"{code}\"}}"))), code: code.to_owned() };
    Reply::Refused(Refusal { kind, reply })
}

impl World {
    fn draw_refusal(&self) -> Reply {
        match self.below(6) {
            0 | 1 => refusal(RefusalKind::Order, 422, "FILE_DECODING_FAILURE"),
            2 => refusal(RefusalKind::Key, 401, "ERROR_APPLICATIONS_NOT_EXISTS"),
            3 => refusal(RefusalKind::Credits, 429, "ERROR_NOT_ENOUGH_CREDITS"),
            4 => {
                let retry_after = Some(Duration::from_secs(self.below(5))).filter(|wait| !wait.is_zero());
                refusal(RefusalKind::Flow { retry_after }, 429, "EXCEEDING_LIMITS")
            }
            _ => refusal(RefusalKind::Other, 404, "ERROR_AI_NOT_EXISTS"),
        }
    }

    fn draw_failure(&self) -> Reply {
        let status = if self.chance(5000) { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        let body = self.chance(5000).then(|| Bytes::from_static(b"{}"));
        Reply::Failed(ErrorReply { status, body, code: "PROCESSING_FAILURE".to_owned() })
    }

    fn draw_outcome(&self) -> Sold {
        let sales = &self.plan.sales;
        if self.strikes(sales.refused) {
            Sold::Refusal
        } else if self.strikes(sales.failed) {
            Sold::Failure
        } else if self.strikes(sales.unknown) {
            let causes =
                [UnknownCause::Timeout, UnknownCause::Cut, UnknownCause::Garbage, UnknownCause::NoResult];
            Sold::Unknown(causes[self.below(4) as usize])
        } else {
            Sold::Answer
        }
    }

    /// How long a reply takes.
    fn draw_work(&self, outcome: Sold) -> Duration {
        match (outcome, self.below(100)) {
            _ if self.calm.is_cancelled() => ms(500),
            (Sold::Unknown(UnknownCause::Timeout), _) => HARD_STOP,
            (Sold::Refusal | Sold::Failure, _) => self.between(20, 3000),
            (_, 0..70) if self.plan.long_calls => self.between(40_000, 179_000),
            (_, 0..50) => self.between(50, 2000),
            (_, 50..75) => self.between(2000, 12_000),
            (_, 75..88) => self.between(12_000, 60_000),
            _ => self.between(60_000, 179_000),
        }
    }

    /// When the URL of a result serves nothing: hardly ever, for a while, for ever, or at last.
    fn draw_dead(&self) -> Option<(Instant, Instant)> {
        let now = Instant::now();
        let ever = now + Duration::from_secs(400 * 86_400);
        if self.strikes(self.plan.sales.dead_for_ever) {
            return Some((now, ever));
        }
        if self.strikes(self.plan.sales.dead) {
            let from = now + self.between(0, 10_000);
            return Some((from, from + self.between(1000, 25 * 60_000)));
        }
        Some((now + URL_TTL, ever))
    }

    /// The tail of an order goes out. Whatever comes of it, from here on it may have cost credits.
    fn tail(&self, life: &Life, key: CacheKey) -> usize {
        let purchase = life.take_purchase(key);
        self.check_tail(life, key, purchase.as_ref());
        let outcome = self.draw_outcome();
        let is_charged = match outcome {
            Sold::Answer => true,
            Sold::Refusal | Sold::Failure => false,
            Sold::Unknown(_) => self.chance(5000),
        };
        let number = self.state().sales.len();
        let of = if self.plan.same_bytes { self.teams.name_of(key) } else { number.to_string() };
        let sale = Sale {
            ledger: life.ledger,
            row: purchase.map_or(CallId(0), |purchase| purchase.id),
            key,
            outcome,
            is_charged,
            delivered_to: None,
            was_recorded: false,
            bytes: Bytes::from(format!("BM result {of} of {}", self.teams.name_of(key))),
            dead: self.draw_dead(),
        };
        self.note(|| {
            let (row, name) = (sale.row.0, self.teams.name_of(key));
            format!(
                "{} pays for {name} by row {row}: sale R{number}, {outcome:?}, charged: {is_charged}",
                life.name()
            )
        });
        self.count(match outcome {
            Sold::Answer => "sales answered",
            Sold::Refusal => "sales refused",
            Sold::Failure => "sales failed",
            Sold::Unknown(UnknownCause::Timeout) => "sales unknown: timeout",
            Sold::Unknown(UnknownCause::Cut) => "sales unknown: cut",
            Sold::Unknown(_) => "sales unknown: garbage",
        });
        self.state().sales.push(sale);
        self.check();
        number
    }
}

/// The upstream, as a process meets it.
pub(super) struct UpstreamLine(pub(super) Line);

#[async_trait]
impl Upstream for UpstreamLine {
    async fn open(&self, order: Arc<Order>) -> Result<Opened, NotSent> {
        let (line, world) = (&self.0, &self.0.world);
        let image = order.image.whole().expect("it is in memory");
        let key = CacheKey::of(&image, order.width, order.height);
        line.may_die("open");
        line.live().await;
        let slow = world.strikes(300);
        tokio::time::sleep(if slow { world.between(2000, 20_000) } else { world.between(0, 300) }).await;
        line.live().await;
        if world.is_away(Place::Upstream) || world.strikes(world.plan.sales.not_opened) {
            world.count("orders not opened");
            world.note(|| format!("{} open {}: in vain", line.life.name(), world.teams.name_of(key)));
            return Err(if world.chance(5000) {
                NotSent::Connect("planted".to_owned())
            } else {
                NotSent::Upload("planted".to_owned())
            });
        }
        if !(10..=2000).contains(&order.width) {
            return Ok(Opened::Answered(refusal(RefusalKind::Order, 400, "ERROR_INVALID_PARAMETER")));
        }
        if world.strikes(world.plan.sales.early) {
            world.count("orders answered early");
            world.note(|| format!("{} open {}: answered early", line.life.name(), world.teams.name_of(key)));
            return Ok(Opened::Answered(match world.below(4) {
                0 | 1 => world.draw_refusal(),
                2 => world.draw_failure(),
                _ => Reply::Unknown(UnknownCause::Garbage),
            }));
        }
        line.life.held.fetch_add(1, Ordering::Relaxed);
        Ok(Opened::Held(Box::new(HeldSale { line: line.clone(), key })))
    }
}

struct HeldSale {
    line: Line,
    key: CacheKey,
}

impl Drop for HeldSale {
    fn drop(&mut self) {
        self.line.life.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl HeldCall for HeldSale {
    async fn send(self: Box<Self>) -> Reply {
        let (line, world) = (&self.line, &self.line.world);
        line.may_die("the tail");
        // A process that is stopped within its last step sends all the same when it goes on.
        if line.life.is_dead() {
            return std::future::pending().await;
        }
        if world.strikes(world.plan.sales.not_sent) {
            world.count("tails that could not be sent");
            world.note(|| format!("{} send {}: not sent", line.life.name(), world.teams.name_of(self.key)));
            return Reply::NotSent(NotSent::Upload("planted".to_owned()));
        }
        let number = world.tail(&line.life, self.key);
        line.may_die("the paid call");
        let outcome = world.state().sales[number].outcome;
        tokio::time::sleep(world.draw_work(outcome)).await;
        line.live().await;
        world.state().sales[number].delivered_to = Some(line.life.number);
        world.note(|| format!("{} has the reply of R{number}: {outcome:?}", line.life.name()));
        match outcome {
            Sold::Answer => Reply::Answered(answer(number)),
            Sold::Refusal => world.draw_refusal(),
            Sold::Failure => world.draw_failure(),
            Sold::Unknown(cause) => Reply::Unknown(cause),
        }
    }
}

/// Where results are fetched, as a process meets it.
pub(super) struct ResultsLine(pub(super) Line);

#[async_trait]
impl ResultSource for ResultsLine {
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
        let (world, life) = (self.0.world.clone(), self.0.life.clone());
        let number = url.expose().strip_prefix("https://results.example/");
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        let fetched = self
            .0
            .call("fetch", move || {
                let state = world.state();
                let found = number.and_then(|number| Some((number, state.sales.get(number)?)));
                let Some((number, sale)) = found else {
                    return Err(FetchError::Dead("never sold".to_owned()));
                };
                let is_dead = sale.is_dead();
                let bytes = sale.bytes.clone();
                drop(state);
                world.note(|| format!("{} fetch R{number}: dead: {is_dead}", life.name()));
                if is_dead {
                    world.count("fetches of a dead URL");
                    return Err(FetchError::Dead("planted".to_owned()));
                }
                clients::fetched(bytes)
            })
            .await;
        fetched.unwrap_or_else(|_| {
            let timed_out = self.0.world.chance(5000);
            Err(if timed_out { FetchError::Timeout } else { FetchError::Transient("planted".to_owned()) })
        })
    }
}

/// While nothing goes wrong, it does what every upstream must.
mod tests {
    use super::*;
    use crate::testing::upstream_contract::{UpstreamFixture, upstream_contract};

    struct Fixture(Line);

    impl Fixture {
        fn new() -> Self {
            let world = World::new(0, None, false, Duration::ZERO);
            world.heal();
            Self(Line { life: Life::new(&world, 0), world, place: Place::Upstream })
        }
    }

    #[async_trait]
    impl UpstreamFixture for Fixture {
        fn upstream(&self) -> Arc<dyn Upstream> {
            Arc::new(UpstreamLine(self.0.clone()))
        }

        fn results(&self) -> Arc<dyn ResultSource> {
            Arc::new(ResultsLine(Line { place: Place::Results, ..self.0.clone() }))
        }

        async fn charges(&self) -> Option<u64> {
            Some(self.0.world.state().sales.iter().filter(|sale| sale.is_charged).count() as u64)
        }
    }

    upstream_contract!(async { Fixture::new() });
}
