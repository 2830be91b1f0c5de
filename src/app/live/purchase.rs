//! One real purchase, to see the upstream's answer: through ledger and store like any other, so that it is
//! booked and its result kept.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::report;
use crate::app::ledger::LedgerHandles;
use crate::app::settings::{fill_config, policy_config};
use crate::app::upstream::{open_ailab, open_upstream};
use crate::app::{ledger, store};
use crate::base::clock::Clock;
use crate::base::identity::Identity;
use crate::base::key::{CacheKey, Digest};
use crate::base::operation::IMAGE_CROPPING;
use crate::base::permits::{Permits, Sharing};
use crate::base::picture::{self, ImageFormat};
use crate::base::record::{MAX_OBJECT_BYTES, Record};
use crate::base::secret::Secret;
use crate::base::state::StateDir;
use crate::cache::MemoryCache;
use crate::config::{Config, UpstreamKind};
use crate::fill::machine::Filled;
use crate::fill::{Core, FillRequest, Filler, Waiter};
use crate::ledger::guard::ArchiveGuard;
use crate::metrics::Metrics;
use crate::request::Order;
use crate::store::{Store, StoreBudget};
use crate::teams::policy::{CurrentPolicy, PolicyConfig};
use crate::teams::{Team, Teams};
use crate::upstream::{ErrorReply, HeldCall, NotSent, Opened, Reply, Upstream};

/// A photograph, because the upstream may refuse small or plain pictures.
const PICTURE: &[u8] = include_bytes!("../../../tests/images/rocket.jpg");
const WIDTH: u32 = 320;
const HEIGHT: u32 = 320;
const TEAM: &str = "granary-check";

/// Buys one crop even if it is stored, and describes the outcome; with more detail in `report`.
pub(super) async fn buy(config: &Config, report: Option<File>) -> anyhow::Result<String> {
    let state =
        StateDir::open(&config.state.path).context("nothing was bought, because it could not be booked")?;
    let store = store::open(&config.store).await?;
    store.prove().await?;
    let LedgerHandles { ledger, .. } = ledger::open(config, &state, Clock::system(), None).await?;
    let guard = Arc::new(ArchiveGuard::new(ledger.clone(), store.clone()));
    guard.look().await;
    let metrics = Arc::new(Metrics::new([TEAM].into_iter()));
    let (upstream, results, _) = open_upstream(config, metrics.clone())?;
    let seen = Arc::new(Mutex::new(None));
    let team = Team { name: TEAM.to_owned(), ..Team::local() };
    let teams = Teams::new([(team.clone(), Vec::new())]);
    let upstream_shown = Arc::new(ShownUpstream { inner: upstream.clone(), seen: seen.clone() });
    let core = Core {
        ledger,
        store: store.clone(),
        cache: Arc::new(MemoryCache::new(0, Permits::new(0, Sharing::Whole), metrics.clone())),
        metrics,
        guard,
        policy: CurrentPolicy::new(PolicyConfig { teams, ..policy_config(config) }),
        clock: Clock::system(),
    };
    let key = CacheKey::of(PICTURE, WIDTH, HEIGHT);
    let earlier = store.record(&config.upstream.namespace, key).await.ok().flatten();
    // Calls that an earlier process left open come first: one may be this very purchase.
    let recovery = core.ledger.recover().await.context("the ledger cannot be read")?;
    let filler = Filler::new(Arc::new(core), upstream_shown, results, fill_config(config));
    filler.resume(recovery);
    let before = upstream.credits_left().await;
    let wanted = FillRequest {
        order: Arc::new(Order {
            operation: &IMAGE_CROPPING,
            image: Bytes::from_static(PICTURE).into(),
            format: ImageFormat::Jpeg,
            width: WIDTH,
            height: HEIGHT,
        }),
        identity: Identity::new(&config.upstream.namespace, key),
        credits: config.upstream.credits_per_call,
        image: Digest::of(PICTURE),
        // To see an answer, not a stored one.
        refresh: true,
        budget: StoreBudget::default(),
    };
    let patience = config.upstream.hard_stop + Duration::from_secs(60);
    let deadline = Instant::now() + patience;
    let ticket = filler.join(wanted, Waiter { team: Arc::new(team), deadline });
    let outcome = tokio::time::timeout_at(deadline, ticket.outcome()).await;
    let after = upstream.credits_left().await;
    filler.drain();
    filler.settled().await;

    let reply = seen.lock().take();
    let cost = cost(config, before, after);
    let verdict = match outcome {
        Ok(Some(outcome)) => outcome.verdict.map_err(|error| error.response().detail),
        Ok(None) | Err(_) => Err(format!("there was no result within {patience:?}")),
    };
    if let Some(mut file) = report {
        let report = full_report(config, reply.as_ref(), &verdict, earlier.as_ref(), &*store).await;
        writeln!(file, "{report:#}").context("the report cannot be written")?;
    }
    let seen = reply.as_ref().map_or("there was no answer".to_owned(), describe);
    match verdict {
        Ok(filled) => Ok(format!("{cost}\n{seen}\n{}", kept(&filled, &*store).await)),
        Err(detail) => Err(anyhow!("{detail}; {cost}\n{seen}")),
    }
}

async fn full_report(
    config: &Config,
    reply: Option<&Reply>,
    verdict: &Result<Filled, String>,
    earlier: Option<&Record>,
    store: &dyn Store,
) -> Value {
    let at = Timestamp::now();
    let mut report = json!({
        "at": at,
        "upstream": config.upstream.base_url.to_string(),
        "outcome": verdict.as_ref().map_or_else(String::as_str, |_| "bought and kept"),
        "envelope": null,
        "result_url": null,
        "retain_location": null,
        "result": null,
        // Whether an earlier purchase of the same crop brought the same bytes.
        "repeat": "unknown",
        "refusal": reply.and_then(report::error),
        "wrong_key": null,
    });
    if let Some(Reply::Answered(answer)) = reply {
        let body: Value = serde_json::from_str(answer.text().expose()).unwrap_or_default();
        let (width, height) = picture::dimensions(PICTURE).unwrap_or_default();
        let place = body.pointer("/data/retain_location");
        report["envelope"] = report::envelope(&body);
        report["result_url"] = report::url(answer.url().expose(), at);
        report["retain_location"] = report::place(place, (width as u32, height as u32), (WIDTH, HEIGHT));
    }
    if let Ok(filled) = verdict
        && let Some(object) = filled.record.object()
    {
        if let Ok(Some(bytes)) = store.object(object, MAX_OBJECT_BYTES).await {
            report["result"] = report::result(ImageFormat::Jpeg, object.format, &bytes, (WIDTH, HEIGHT));
        }
        if let Some(earlier) = earlier {
            let is_same = earlier.digest == object.digest;
            report["repeat"] = if is_same { "same" } else { "different" }.into();
        }
    }
    if config.upstream.kind == UpstreamKind::Ailab {
        report["wrong_key"] = refused_key(config).await.into();
    }
    report
}

/// The refusal of a wrong key, by a call that is free with any key; `None` when it is accepted.
async fn refused_key(config: &Config) -> Option<Value> {
    let (upstream, key) = open_ailab(&config.upstream).ok()?;
    key.store(Arc::new(Secret::new("granary-check-of-a-wrong-key")));
    upstream.refusal_of_key().await.as_ref().and_then(report::error)
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
        // Writing to a String cannot fail.
        let _ = write!(text, "; the account had {before} and has {after}");
    }
    text
}

async fn kept(filled: &Filled, store: &dyn Store) -> String {
    let Some(object) = filled.record.object() else { return "its record names no result".to_owned() };
    let bytes = match store.object(object, MAX_OBJECT_BYTES).await {
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

type Seen = Arc<Mutex<Option<Reply>>>;

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
    *seen.lock() = Some(reply.clone());
}

fn describe(reply: &Reply) -> String {
    let of_error = |reply: &ErrorReply| {
        let body = reply
            .body
            .as_ref()
            .map_or("no body in its envelope".into(), |body| String::from_utf8_lossy(body));
        format!("the answer, with status {}: {body}", reply.status.as_u16())
    };
    match reply {
        Reply::Answered(answer) => format!("the answer, with status 200: {}", answer.shown()),
        Reply::Refused(refusal) => of_error(&refusal.reply),
        Reply::Failed(reply) => of_error(reply),
        Reply::NotSent(error) => error.to_string(),
        Reply::Unknown(cause) => cause.to_string(),
    }
}
