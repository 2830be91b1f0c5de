//! Granary: a caching reverse proxy in front of the paid AILabTools *AI image cropping* API.
//!
//! Teams send it the request they would send the upstream. It pays for each distinct crop once,
//! keeps the result permanently, and answers every repeat by itself.
//!
//! # Life of a request
//!
//! | step | where | note |
//! |---|---|---|
//! | accept | [`http::server`], [`request::framing`] | every phase of a connection has a time limit; an ambiguous head is refused |
//! | route, authenticate | [`http::routes`], [`teams`] | refused by its head before the body is read |
//! | parse | [`request`], [`request::multipart`], [`request::uploads`] | limits before anything is kept; the picture is hashed as it arrives, in bounded memory, then in a file |
//! | key | [`base::key`] | BLAKE3 of picture, width and height, and nothing else |
//! | look up | [`gateway`], [`cache`], [`ledger`], [`store`] | memory, ledger, store; only what is known to be absent is bought |
//! | coalesce | [`fill::coalesce`] | many clients, one fill |
//! | admit | [`fill`], [`teams::policy`], [`ledger::guard`], [`fill::slots`], [`fill::circuit`] | misses only: hits and followers spend nothing |
//! | **pay** | [`fill`], [`upstream`] | the only step that costs money, in a task no client can cancel |
//! | fetch | [`upstream::download`] | an HTTP client that has no credential |
//! | **persist** | [`store`], [`ledger::spooling`] | object, record, then `stored` in the ledger: from here the URL is permanent; while the store is away, all of it in the ledger |
//! | rewrite | [`gateway::rewrite`] | pure, on the way out, for hits as well |
//! | respond | [`http::routes`], [`error`], [`billing::metering`] | ids, envelopes, counting, one log line |
//!
//! [`gateway::Gateway::handle`] is that list as code. The decisions of the paid part are the state
//! machine in [`fill::machine`], which performs no I/O; [`fill`] performs its effects.
//!
//! # Beside it
//!
//! | what | where |
//! |---|---|
//! | several processes on one ledger | [`ledger::postgres`]; [`fill`] keeps leases; [`gateway::freshness`] follows the changes of other replicas |
//! | who paid, who was served, what that saved | [`ledger::usage`], [`billing`] |
//! | what is counted, and where time goes | [`metrics`] |
//! | what operators ask and change | the admin listener in [`http::routes`]; [`ledger::admin`], with an audit line for each change; [`gateway::keys`] |
//! | configuration reload | [`app::reload`] replaces the [`teams::policy`] |
//!
//! # Promises
//!
//! A paid result is never lost once `answered` is durable; one charge per key while each call gets a
//! complete answer; a URL once answered serves the same bytes permanently; secrets are printed nowhere
//! ([`base::secret`]); budgets are exact ([`ledger::budget`]); memory is bounded; ledger, metrics and
//! the upstream's count agree; no request byte decides where the key is sent.
//!
//! # Who may import whom
//!
//! ```text
//! main > cli > app > config > http > gateway > fill > cache > {metrics, error} > {billing, teams}
//!      > {ledger, upstream} > {store, request} > base
//! ```
//!
//! Within one pair of braces, too, no two import each other. [`app`] alone names concrete stores,
//! ledgers and upstreams. A test reads this map and the imports, and keeps both true.

pub mod app;
pub mod base;
pub(crate) mod billing;
#[cfg(not(feature = "bench"))]
pub(crate) mod cache;
#[cfg(feature = "bench")]
pub mod cache;
pub mod cli;
pub mod config;
pub mod error;
pub(crate) mod fill;
pub mod gateway;
pub mod http;
pub mod ledger;
#[cfg(not(feature = "bench"))]
pub(crate) mod metrics;
#[cfg(feature = "bench")]
pub mod metrics;
pub mod request;
pub mod store;
pub mod teams;
#[cfg(test)]
mod testing;
pub mod upstream;
