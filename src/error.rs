//! The error table: everything that can go wrong with a request, and its answer. Statuses, codes and texts
//! are the upstream's own vocabulary, which deployed clients understand; where that is too coarse, a stable
//! word of ours goes into `Granary-Reason`.

mod response;
mod rows;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;

pub use self::response::{ErrorResponse, Fault, kinds};
use self::rows::{auth_row, head_row, over_budget, request_row};
use crate::base::envelope::Envelope;
use crate::base::operation::IMAGE_CROPPING;
use crate::ledger::budget::{self, BudgetRefusal, Scope};
use crate::request::RequestError;
use crate::request::framing::HeadError;
use crate::teams::AuthError;
use crate::upstream::code::{self, Code};

/// Cheap to clone: coalesced callers share one.
#[derive(Clone, Debug)]
pub enum GatewayError {
    /// Refused before routing.
    Head(HeadError),
    TooManyConnections,
    Request(Arc<RequestError>),
    Auth(AuthError),
    /// Without teams: a browser request of another site's page.
    CrossSite,
    /// Without teams: called by a name that is not this machine's.
    ForeignName,
    RefreshNotAllowed,
    NoSuchRoute,
    MethodNotAllowed {
        allow: &'static str,
    },
    /// An `Expect` other than `100-continue`.
    UnknownExpectation,
    KeyNotFound,
    NotAKey,
    ResultNotFound,
    NotCached,
    OverBudget(BudgetRefusal),
    Frozen(Scope),
    /// The shared upstream account is empty.
    UpstreamCredits,
    /// `wait`: until the team's next miss.
    RateLimited {
        wait: Duration,
    },
    /// The order was not sent in full, or no complete answer came back.
    UpstreamUnreachable {
        detail: String,
    },
    /// The answer is not in the upstream's format.
    UpstreamNonsense {
        detail: String,
    },
    UpstreamKeyRefused,
    UpstreamThrottled {
        wait: Duration,
    },
    /// `wait`: until the next request may probe the upstream.
    CircuitOpen {
        wait: Duration,
    },
    /// Paid results could not be fetched several times in a row. `wait`: until the next purchase may probe.
    PurchaseStopped {
        wait: Duration,
    },
    /// A complete error of the upstream, passed through; see [`GatewayError::passed_through`].
    Upstream {
        status: StatusCode,
        body: Bytes,
        code: Code,
    },
    /// The client's time is over; the fill goes on.
    StillBeingMade,
    /// Paid for and not fetched yet.
    ResultNotFetched {
        timed_out: bool,
    },
    /// With the expected wait.
    TooBusy {
        wait: Duration,
    },
    Draining,
    /// After an unclear outcome. `wait`: from now.
    Resting {
        until: Timestamp,
        wait: Duration,
    },
    NoRoom,
    NoUploadRoom,
    /// Slow clients hold all memory for results.
    NoResultRoom,
    ArchiveGuard,
    LedgerUnavailable,
    /// The store is unavailable, and may have records that the ledger does not know.
    LedgerIncomplete,
    StoreUnavailable,
    /// Congestion of this process.
    StoreBusy,
    Bug,
}

impl From<RequestError> for GatewayError {
    fn from(error: RequestError) -> Self {
        match error {
            // Not the request's fault.
            RequestError::NoRoom => Self::NoUploadRoom,
            error => Self::Request(Arc::new(error)),
        }
    }
}

const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(30);

/// Returns true for refusals of the picture or its numbers, which are the same every time.
pub fn is_about_the_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 413 | 415 | 422)
}

impl GatewayError {
    pub fn passed_through(status: StatusCode, body: Bytes) -> Self {
        let code = match Envelope::read(&body, &IMAGE_CROPPING) {
            Ok(Envelope::Error { code, .. }) => Code::named(&code),
            Ok(Envelope::Success(_) | Envelope::NoResult) | Err(_) => code::OTHER,
        };
        Self::Upstream { status, body, code }
    }

    pub fn response(&self) -> ErrorResponse {
        use Fault::{Gateway, Policy, Upstream};
        match self {
            Self::Head(error) => caller(head_row(*error), error),
            Self::TooManyConnections => restricted(
                Gateway,
                "as many connections are open as this Granary takes; close idle ones, or ask again",
            )
            .later("connections", SOON),
            Self::Request(error) => caller(request_row(error), error),
            Self::Auth(error) => caller(auth_row(error), error),
            Self::CrossSite => caller(
                (403, code::ERROR_ILLEGAL_OPERATION),
                "a browser sent this for a page of another site, which could spend credits here because no teams are \
                 configured; add the page's origin to server.cors_origins, or configure teams",
            )
            .because("cross_site"),
            Self::ForeignName => caller(
                (403, code::ERROR_ILLEGAL_OPERATION),
                "while no teams are configured, Granary is called by its address, as localhost, or by the host of \
                 server.public_url; the request's Host is none of them",
            )
            .because("foreign_name"),
            Self::RefreshNotAllowed => ErrorResponse::new(
                (403, code::ERROR_ILLEGAL_OPERATION),
                Policy,
                "this team may not buy a result anew; leave the Granary-Refresh header out, or ask whoever runs \
                 this Granary to set may_refresh",
            )
            .because("refresh_not_allowed"),
            Self::NoSuchRoute => caller(
                (404, code::ERROR_AI_NOT_EXISTS),
                "Granary serves image cropping only (POST /api/image/editing/image-cropping); other calls need a \
                 client of their own, with a key of their own, for now",
            ),
            Self::MethodNotAllowed { allow } => {
                caller((405, code::ERROR_ILLEGAL_OPERATION), format!("this path answers {allow} only"))
            }
            Self::UnknownExpectation => caller(
                (417, code::ERROR_PARAMETERS),
                "the only expectation Granary can meet is 100-continue; leave the Expect header out",
            ),
            Self::KeyNotFound => caller(
                (404, code::ERROR_RESOURCE_NOT_FOUND),
                "nothing is stored under this key; send the picture with POST to have it cropped",
            ),
            Self::NotAKey => caller(
                (404, code::ERROR_RESOURCE_NOT_FOUND),
                "a key has 64 hex digits; copy it from the Granary-Key header of an answer",
            ),
            Self::ResultNotFound => caller(
                (404, code::ERROR_FILE_NOT_FOUND),
                "no result has this name; copy the URL from data.url of an answer as it is",
            ),
            Self::NotCached => caller(
                (504, code::AI_SERVICE_TIMEOUT),
                "nothing is stored for this request, and Cache-Control: only-if-cached forbids buying it",
            )
            .because("only_if_cached"),
            Self::OverBudget(refusal) => over_budget(refusal),
            Self::Frozen(scope) => {
                let whose = match scope {
                    Scope::Global => "all teams".to_owned(),
                    Scope::Team(name) | Scope::Refused(name) => format!("the team {name}"),
                };
                ErrorResponse::new(
                    (429, code::ERROR_NOT_ENOUGH_CREDITS),
                    Policy,
                    format!(
                        "an operator has frozen spending for {whose}, until it is thawed; stored results are still \
                         answered"
                    ),
                )
                .later("frozen", Duration::from_secs(300))
            }
            Self::UpstreamCredits => ErrorResponse::new(
                (429, code::ERROR_NOT_ENOUGH_CREDITS),
                Upstream,
                "the shared upstream account has no credits left, until whoever runs this Granary tops it up; \
                 stored results are still answered",
            )
            .later("upstream_credits", Duration::from_secs(300)),
            Self::RateLimited { wait } => ErrorResponse::new(
                (429, code::EXCEEDING_LIMITS),
                Policy,
                "this team asks for new crops faster than its misses_per_second allows; slow down",
            )
            .later("rate", *wait),
            Self::UpstreamUnreachable { detail } => ErrorResponse::new(
                (502, code::AI_SERVICE_ERROR),
                Upstream,
                format!("{detail}; try again in a moment"),
            ),
            Self::UpstreamNonsense { detail } => ErrorResponse::new(
                (502, code::AI_SERVICE_INTERNAL_ERROR),
                Upstream,
                format!("{detail}; nothing was stored"),
            ),
            Self::UpstreamKeyRefused => ErrorResponse::new(
                (502, code::AI_SERVICE_UNAUTHORIZED),
                Upstream,
                "the upstream refused Granary's own key; your token is fine, whoever runs this Granary must mend it",
            )
            .because("upstream_key"),
            Self::UpstreamThrottled { wait } => {
                restricted(Upstream, "the upstream is limiting how fast Granary may call it")
                    .later("upstream_flow", *wait)
            }
            Self::CircuitOpen { wait } => restricted(
                Upstream,
                "the upstream does not work at the moment, or not for this team's pictures, and is left alone for a \
                 while; nothing was spent, and stored results are still answered",
            )
            .later("circuit_open", *wait),
            Self::PurchaseStopped { wait } => restricted(
                Upstream,
                "results that were paid for could not be fetched several times in a row, so nothing is bought until \
                 one works again; stored results are still answered",
            )
            .later("purchase_stop", *wait),
            Self::Upstream { status, code, .. } => {
                // Clients see the upstream's own body; this row serves log and metrics.
                let fault = if is_about_the_request(*status) { Fault::Caller } else { Upstream };
                let detail = format!("the upstream answered {status}");
                let response = ErrorResponse::new((status.as_u16(), *code), fault, detail);
                let asks_to_wait =
                    matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
                if asks_to_wait { response.retry_after(SOON) } else { response }
            }
            Self::StillBeingMade => ErrorResponse::new(
                (504, code::AI_SERVICE_TIMEOUT),
                Upstream,
                "still being made; ask again, it will not be charged twice",
            )
            .later("still_being_made", SOON),
            Self::ResultNotFetched { timed_out } => ErrorResponse::new(
                match timed_out {
                    true => (504, code::ERROR_FILE_DOWNLOAD_TIMEOUT),
                    false => (502, code::ERROR_FILE_DOWNLOAD_FAILED),
                },
                Upstream,
                "the crop is paid for, but its result could not be fetched yet; Granary keeps trying, ask again \
                 later, it will not be charged twice",
            )
            .because("result_not_fetched"),
            Self::TooBusy { wait } => {
                restricted(Gateway, "more new crops are waiting than can be made in time; nothing was spent")
                    .later("busy", *wait)
            }
            Self::Draining => restricted(
                Gateway,
                "this Granary is stopping and buys nothing new; ask again, another one will answer",
            )
            .later("draining", SOON),
            Self::Resting { until, wait } => restricted(
                Upstream,
                format!(
                    "an earlier call for this picture had an unclear outcome and may have been charged, so it is not \
                     bought again before {}",
                    budget::show(*until)
                ),
            )
            .later("hold", *wait),
            Self::NoRoom => unavailable(
                "there is no place to keep a new result, so none is bought; stored results are still answered",
            )
            .later("no_room", LATER),
            Self::NoUploadRoom => unavailable(
                "there is no room to keep this upload until its crop is made; nothing was spent, send it again in a \
                 moment",
            )
            .later("no_room", SOON),
            Self::NoResultRoom => restricted(
                Gateway,
                "too many results are being sent to slow clients at the moment; ask again",
            )
            .later("busy", SOON),
            Self::ArchiveGuard => unavailable(
                "what was bought before may be missing, so nothing is bought until the operator has looked; results \
                 that are there are still answered",
            )
            .later("archive_guard", LATER),
            Self::LedgerUnavailable => unavailable(
                "the ledger cannot be written, so nothing is bought; stored results are still answered",
            )
            .later("ledger", LATER),
            Self::LedgerIncomplete => unavailable(
                "this crop may be stored already: the store cannot be asked, and the ledger does not know all of its \
                 records yet; nothing was bought, ask again",
            )
            .later("ledger_incomplete", LATER),
            Self::StoreUnavailable => unavailable("the result exists and cannot be read at the moment")
                .later("store", SOON),
            Self::StoreBusy => restricted(
                Gateway,
                "too many results are being looked for at the moment; nothing was spent, ask again",
            )
            .later("busy", SOON),
            Self::Bug => ErrorResponse::new(
                (500, code::SERVICE_INTERNAL_ERROR),
                Gateway,
                "Granary made a mistake; its log has the details under this request's id",
            ),
        }
    }
}

fn caller(row: (u16, Code), detail: impl ToString) -> ErrorResponse {
    ErrorResponse::new(row, Fault::Caller, detail)
}

fn restricted(fault: Fault, detail: impl ToString) -> ErrorResponse {
    ErrorResponse::new((503, code::AI_SERVICE_FLOW_RESTRICTION), fault, detail)
}

fn unavailable(detail: impl ToString) -> ErrorResponse {
    ErrorResponse::new((503, code::ERROR_RESOURCE_UNAVAILABLE), Fault::Gateway, detail)
}
