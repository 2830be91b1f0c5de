//! One real purchase, to see what the upstream's answer looks like: through ledger and store like any
//! other, so that it is booked and its result kept.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::app::ledger::Books;
use crate::app::{fill_config, ledger, open_upstream, store, terms};
use crate::cache::MemoryCache;
use crate::clock::Clock;
use crate::config::{Config, UpstreamKind};
use crate::envelope;
use crate::fill::machine::Filled;
use crate::fill::{FillParts, Filler, Seat, Wanted};
use crate::guard::ArchiveGuard;
use crate::key::{CacheKey, Digest};
use crate::metrics::Metrics;
use crate::picture::{self, ImageFormat};
use crate::policy::{CurrentPolicy, Terms};
use crate::results::ResultRoom;
use crate::state::{StateDir, StateDirError};
use crate::store::{Store, StoreBudget};
use crate::teams::{Team, Teams};
use crate::upstream::{ErrorReply, HeldCall, NotSent, Opened, Order, Reply, Upstream};

/// The picture that is cropped: a photograph, since what is too small or too plain may be refused.
const PICTURE: &[u8] = include_bytes!("../../../tests/images/rocket.jpg");
const WIDTH: u32 = 320;
const HEIGHT: u32 = 320;
/// Who pays for it, in the ledger.
const TEAM: &str = "granary-check";

/// Buys one crop, whatever is stored, and tells what came of it.
pub(super) async fn buy(config: &Config) -> anyhow::Result<String> {
    let state = match StateDir::open(&config.state.path) {
        Ok(state) => state,
        Err(error @ StateDirError::InUse(_)) => {
            return Err(anyhow!(error)).context("nothing was bought, because it could not be booked");
        }
        Err(error) => return Err(error.into()),
    };
    let store = store::open(&config.store).await?;
    store.prove().await?;
    let Books { ledger, .. } = ledger::open(config, &state, Clock::system()).await?;
    let guard = Arc::new(ArchiveGuard::new(ledger.clone(), store.clone()));
    guard.look().await;
    let metrics = Arc::new(Metrics::new([TEAM].into_iter(), 0));
    let (upstream, results, _) = open_upstream(config, metrics.clone())?;
    let seen = Arc::new(Mutex::new(None));
    let team = Team { name: TEAM.to_owned(), ..Team::local() };
    let parts = FillParts {
        ledger,
        store: store.clone(),
        upstream: Arc::new(ShownUpstream { inner: upstream.clone(), seen: seen.clone() }),
        results,
        cache: Arc::new(MemoryCache::new(0, ResultRoom::new(0))),
        metrics,
        guard,
        policy: CurrentPolicy::new(Terms {
            teams: Teams::new([(team.clone(), Vec::new())]),
            ..terms(config)
        }),
        clock: Clock::system(),
    };
    // What an earlier process left open comes first: it may be this very purchase.
    let recovery = parts.ledger.recover().await.context("the ledger cannot be read")?;
    let filler = Filler::new(parts, fill_config(config));
    filler.resume(recovery);
    let before = upstream.credits_left().await;
    let order = Order {
        image: Bytes::from_static(PICTURE).into(),
        format: ImageFormat::Jpeg,
        width: WIDTH,
        height: HEIGHT,
    };
    let wanted = Wanted {
        order: Arc::new(order),
        key: CacheKey::of(PICTURE, WIDTH, HEIGHT),
        image: Digest::of(PICTURE),
        // It is there to see an answer, and one that is stored would not do.
        refresh: true,
        budget: StoreBudget::default(),
    };
    let patience = config.upstream.hard_stop + Duration::from_secs(60);
    let deadline = Instant::now() + patience;
    let ticket = filler.join(wanted, Seat { team: Arc::new(team), deadline });
    let outcome = tokio::time::timeout_at(deadline, ticket.outcome()).await;
    let after = upstream.credits_left().await;
    filler.drain();
    filler.settled().await;

    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    let seen = seen.unwrap_or_else(|| "there was no answer".to_owned());
    let cost = cost(config, before, after);
    let Ok(Some(outcome)) = outcome else {
        return Err(anyhow!("there was no result within {patience:?}; {cost}\n{seen}"));
    };
    match outcome.verdict {
        Ok(filled) => Ok(format!("{cost}\n{seen}\n{}", kept(&filled, &*store).await)),
        Err(error) => Err(anyhow!("{}; {cost}\n{seen}", error.situation().detail)),
    }
}

fn cost(config: &Config, before: Option<u64>, after: Option<u64>) -> String {
    let price = config.upstream.credits_per_call;
    let mut text = match config.upstream.kind {
        UpstreamKind::Builtin => {
            format!("a crop by the built-in engine is free; the ledger counts it as {price} credits")
        }
        UpstreamKind::Ailab => format!("a crop that is sold costs {price} credits, booked for {TEAM}"),
    };
    if let (Some(before), Some(after)) = (before, after) {
        // A failed write to a text cannot be.
        let _ = write!(text, "; the account had {before} and has {after}");
    }
    text
}

/// What became of the result.
async fn kept(filled: &Filled, store: &dyn Store) -> String {
    let Some(object) = filled.record.object() else { return "its record names no result".to_owned() };
    let bytes = match store.object(object).await {
        Ok(Some(bytes)) => bytes,
        // It is paid for and kept: the next start brings it to the store.
        Ok(None) | Err(_) => {
            return "its result was fetched, and waits in the ledger for the store".to_owned();
        }
    };
    let size =
        picture::dimensions(&bytes).map_or("unknown size".to_owned(), |(w, h)| format!("{w} x {h} pixels"));
    let kind = object.format.content_type();
    format!("its result was fetched and kept: {} bytes of {kind}, {size}, {}", bytes.len(), object.path())
}

type Seen = Arc<Mutex<Option<String>>>;

/// Writes down what the upstream answers, without its addresses.
struct ShownUpstream {
    inner: Arc<dyn Upstream>,
    seen: Seen,
}

#[async_trait]
impl Upstream for ShownUpstream {
    async fn open(&self, order: Arc<Order>) -> Result<Opened, NotSent> {
        Ok(match self.inner.open(order).await? {
            Opened::Held(call) => Opened::Held(Box::new(ShownCall { call, seen: self.seen.clone() })),
            Opened::Answered(reply) => {
                note(&self.seen, &reply);
                Opened::Answered(reply)
            }
        })
    }
}

struct ShownCall {
    call: Box<dyn HeldCall>,
    seen: Seen,
}

#[async_trait]
impl HeldCall for ShownCall {
    async fn send(self: Box<Self>) -> Reply {
        let reply = self.call.send().await;
        note(&self.seen, &reply);
        reply
    }
}

fn note(seen: &Seen, reply: &Reply) {
    let of_error = |reply: &ErrorReply| {
        let body = reply
            .body
            .as_ref()
            .map_or("no body in its envelope".into(), |body| String::from_utf8_lossy(body));
        format!("the answer, with status {}: {}", reply.status.as_u16(), envelope::without_addresses(&body))
    };
    let text = match reply {
        Reply::Answered(answer) => {
            format!("the answer, with status 200: {}", envelope::without_addresses(answer.text().expose()))
        }
        Reply::Refused(refusal) => of_error(&refusal.reply),
        Reply::Failed(reply) => of_error(reply),
        Reply::NotSent(error) => error.to_string(),
        Reply::Unknown(cause) => cause.to_string(),
    };
    *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
}
