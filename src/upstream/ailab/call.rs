//! One paid call: [`upload`]ed except for its tail, then an [`AilabCall`], then a [`Reply`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::answer::{MAX_ANSWER_BYTES, classify};
use super::form::{FormBody, Progress};
use crate::base::crash::crash_point;
use crate::base::operation::Operation;
use crate::base::secret::Secret;
use crate::upstream::net::exchange::{Exchange, ExchangeError};
use crate::upstream::{CallPhase, CallTimer, HeldCall, NotSent, Reply, UnknownCause};

pub(super) struct Sent {
    pub(super) operation: &'static Operation,
    pub(super) key: Arc<Secret>,
}

pub(super) enum Uploaded {
    /// All but the tail is with the kernel.
    Held(Exchange),
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
    let mut exchange = Exchange::start(io, request).await.map_err(broken)?;
    match exchange.head_unless(|| progress.is_held()).await.map_err(broken)? {
        None => Ok(Uploaded::Held(exchange)),
        Some(head) => read_early(&mut exchange, head, order).await.map(Uploaded::Answered),
    }
}

#[derive(Clone, Default)]
pub(super) struct Timer(pub(super) Option<Arc<dyn CallTimer>>);

impl Timer {
    pub(super) fn took(&self, phase: CallPhase, time: Duration) {
        if let Some(timer) = &self.0 {
            timer.took(phase, time);
        }
    }
}

pub(super) struct AilabCall {
    pub(super) exchange: Exchange,
    pub(super) release: oneshot::Sender<()>,
    pub(super) order: Sent,
    pub(super) hard_stop: Duration,
    pub(super) timer: Timer,
    pub(super) until_held: Duration,
}

impl AilabCall {
    /// The answer that came while the tail was held, if any: then the tail is not sent.
    async fn early(&mut self) -> Option<Reply> {
        let early = match self.exchange.head_unless(|| true).await {
            Ok(None) => return None,
            Ok(Some(head)) => read_early(&mut self.exchange, head, &self.order).await,
            Err(error) => Err(broken(error)),
        };
        Some(early.unwrap_or_else(Reply::NotSent))
    }

    async fn finish(mut self: Box<Self>) -> Result<Reply, ExchangeError> {
        let released = Instant::now();
        // If the body is gone, the connection is too, and reports it.
        let _ = self.release.send(());
        // Drives the connection once, so that the tail is with the kernel.
        let at_once = self.exchange.head_unless(|| true).await?;
        crash_point("CP8");
        let head = match at_once {
            Some(head) => head,
            None => self.exchange.head().await?,
        };
        crash_point("CP10");
        self.timer.took(CallPhase::FirstByte, released.elapsed());
        let reply = read(&mut self.exchange, head, &self.order).await?;
        self.timer.took(CallPhase::Total, self.until_held + released.elapsed());
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

fn broken(error: ExchangeError) -> NotSent {
    NotSent::Upload(error.to_string())
}

/// Reads an answer that came before the order was complete, so the order cannot have been executed. A
/// complete refusal or error stands. A success may be charged all the same, so its outcome is unknown.
/// Anything else, such as the page of a gateway that gave up, is no answer to the order.
async fn read_early(
    exchange: &mut Exchange,
    head: Response<Incoming>,
    order: &Sent,
) -> Result<Reply, NotSent> {
    let status = head.status();
    match read(exchange, head, order).await.map_err(broken)? {
        reply @ (Reply::Refused(_) | Reply::Failed(_) | Reply::NotSent(_)) => Ok(reply),
        Reply::Answered(_) | Reply::Unknown(_) if status.is_success() => {
            Ok(Reply::Unknown(UnknownCause::Garbage))
        }
        Reply::Answered(_) | Reply::Unknown(_) => {
            Err(NotSent::Upload(format!("it was answered early with status {}", status.as_u16())))
        }
    }
}

async fn read(
    exchange: &mut Exchange,
    head: Response<Incoming>,
    order: &Sent,
) -> Result<Reply, ExchangeError> {
    let (head, body) = exchange.whole(head, MAX_ANSWER_BYTES).await?;
    Ok(classify(head.status, &head.headers, &body, order.operation, &order.key))
}
