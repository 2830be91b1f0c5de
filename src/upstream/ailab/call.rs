//! One paid call under way: [`upload`]ed but for its tail, then [`AilabCall`], then a [`Reply`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use tokio::time::{Instant, timeout_at};

use super::answer::{MAX_ANSWER_BYTES, classify};
use super::form::{FormBody, Progress, Release};
use crate::base::crash::crash_point;
use crate::base::operation::Operation;
use crate::base::secret::Secret;
use crate::upstream::net::exchange::{Exchange, ExchangeError};
use crate::upstream::{CallPhase, CallTimer, HeldCall, NotSent, Reply, UnknownCause};

/// What an answer is read by: which operation was called, and with which of our keys.
pub(super) struct Sent {
    pub(super) operation: &'static Operation,
    pub(super) key: Arc<Secret>,
}

pub(super) enum Uploaded {
    /// All but the tail was handed to the kernel.
    Held(Exchange),
    /// It was answered before that.
    Answered(Reply),
}

/// Sends all of a request but its tail. The caller sets the time limit.
pub(super) async fn upload<S>(
    io: S,
    request: Request<FormBody>,
    progress: &Progress,
    order: &Sent,
) -> Result<Uploaded, NotSent>
where
    S: Read + Write + Send + Unpin + 'static,
{
    let broken = |error: ExchangeError| NotSent::Upload(error.to_string());
    let mut exchange = Exchange::start(io, request).await.map_err(broken)?;
    match exchange.head_or(|| progress.is_held().then_some(())).await.map_err(broken)? {
        Err(()) => Ok(Uploaded::Held(exchange)),
        Ok(head) => match read_early(&mut exchange, head, order).await.map_err(broken)? {
            Ok(reply) => Ok(Uploaded::Answered(reply)),
            Err(status) => Err(answered_early(status)),
        },
    }
}

/// A call whose tail is held back.
pub(super) struct AilabCall {
    exchange: Exchange,
    release: Release,
    order: Sent,
    hard_stop: Duration,
    watch: Stopwatch,
}

/// Reports how long a call took, without the time its tail was held back.
pub(super) struct Stopwatch {
    pub(super) timer: Option<Arc<dyn CallTimer>>,
    pub(super) until_held: Duration,
}

impl Stopwatch {
    fn took(&self, phase: CallPhase, time: Duration) {
        self.timer.iter().for_each(|timer| timer.took(phase, time));
    }
}

impl AilabCall {
    pub(super) fn new(
        exchange: Exchange,
        release: Release,
        order: Sent,
        hard_stop: Duration,
        watch: Stopwatch,
    ) -> Self {
        Self { exchange, release, order, hard_stop, watch }
    }

    /// What came while the tail was held, if anything: then the tail stays here.
    async fn early(&mut self) -> Option<Reply> {
        let lost = |error: ExchangeError| Reply::NotSent(NotSent::Upload(error.to_string()));
        match self.exchange.head_or(|| Some(())).await {
            Err(error) => Some(lost(error)),
            Ok(Err(())) => None,
            Ok(Ok(head)) => Some(match read_early(&mut self.exchange, head, &self.order).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(status)) => Reply::NotSent(answered_early(status)),
                Err(error) => lost(error),
            }),
        }
    }

    async fn finish(mut self: Box<Self>) -> Result<Reply, ExchangeError> {
        let released = Instant::now();
        self.release.release();
        // Drives the connection once, so that the tail is with the kernel.
        let at_once = self.exchange.head_or(|| Some(())).await?;
        crash_point("CP8");
        let head = match at_once {
            Ok(head) => head,
            Err(()) => self.exchange.head().await?,
        };
        crash_point("CP10");
        self.watch.took(CallPhase::FirstByte, released.elapsed());
        let reply = read(&mut self.exchange, head, &self.order).await?;
        self.watch.took(CallPhase::Total, self.watch.until_held + released.elapsed());
        Ok(reply)
    }
}

#[async_trait]
impl HeldCall for AilabCall {
    async fn send(mut self: Box<Self>) -> Reply {
        let deadline = Instant::now() + self.hard_stop;
        match timeout_at(deadline, self.early()).await {
            Ok(Some(reply)) => return reply,
            Ok(None) => {}
            Err(_) => return Reply::NotSent(NotSent::Upload("an early answer did not end".to_owned())),
        }
        match timeout_at(deadline, self.finish()).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(ExchangeError::Cut(_))) => Reply::Unknown(UnknownCause::Cut),
            Ok(Err(ExchangeError::NotHttp(_) | ExchangeError::Interim | ExchangeError::TooLarge)) => {
                Reply::Unknown(UnknownCause::Garbage)
            }
            Err(_) => Reply::Unknown(UnknownCause::Timeout),
        }
    }
}

fn answered_early(status: StatusCode) -> NotSent {
    NotSent::Upload(format!("it was answered early with status {}", status.as_u16()))
}

/// Reads an answer that came before the order was complete, so the order cannot have been done.
///
/// A complete refusal or error says so itself. A success is nonsense: it may be someone else's, or
/// be charged all the same, so its outcome is not known. Anything else, such as the page of a gateway
/// that gave up, is no answer to the order: its status is returned.
async fn read_early(
    exchange: &mut Exchange,
    head: Response<Incoming>,
    order: &Sent,
) -> Result<Result<Reply, StatusCode>, ExchangeError> {
    let status = head.status();
    Ok(match read(exchange, head, order).await? {
        reply @ (Reply::Refused(_) | Reply::Failed(_) | Reply::NotSent(_)) => Ok(reply),
        Reply::Answered(_) | Reply::Unknown(_) if status.is_success() => {
            Ok(Reply::Unknown(UnknownCause::Garbage))
        }
        Reply::Answered(_) | Reply::Unknown(_) => Err(status),
    })
}

/// Reads an answer to its end and classifies it.
async fn read(
    exchange: &mut Exchange,
    head: Response<Incoming>,
    order: &Sent,
) -> Result<Reply, ExchangeError> {
    let (head, body) = exchange.whole(head, MAX_ANSWER_BYTES).await?;
    Ok(classify(head.status, &head.headers, &body, order.operation, &order.key))
}
