//! Granary: a caching reverse proxy in front of the paid AILabTools *AI image cropping* API.
//!
//! Teams send it the request they would send the upstream. It pays for each distinct crop once,
//! keeps the result for ever, and answers every repeat by itself.
//!
//! # Life of a request
//!
//! | step | where | remember |
//! |---|---|---|
//! | accept | [`server`], [`framing`] | a clock on every connection; a head that could be understood in two ways goes no further |
//! | route, authenticate | [`routes`], [`teams`] | what the head forbids is refused before the body is read; a clock on every body |
//! | parse | [`request`], [`multipart`], [`uploads`] | limits before anything is kept; the picture is hashed as it arrives; memory for so much, then a file |
//! | key | [`key`] | BLAKE3 of picture, width and height, and nothing else |
//! | look up | [`gateway`], [`cache`], [`ledger`], [`store`] | memory, ledger, store; only what is known to be absent is bought |
//! | coalesce | [`coalesce`] | many callers, one fill |
//! | admit | [`fill`], [`policy`], [`guard`], [`slots`], [`circuit`], [`ledger`] | only here: hits and followers spend nothing |
//! | **pay** | [`fill`], [`upstream`] | the only step that costs money, in a task no client can cancel |
//! | fetch | [`download`] | a client that cannot carry a credential |
//! | **persist** | [`store`], [`spool`] | object first, then the record, then the ledger's `stored`: from here the URL is permanent; without the store, all of it in the ledger |
//! | rewrite | [`rewrite`] | pure, on the way out, for hits as well |
//! | respond | [`routes::respond`], [`error`], [`metering`] | ids, envelopes, counting, one log line |
//!
//! [`gateway::Gateway::handle`] is that list as code. The paid part is the state machine in
//! [`fill::machine`], which performs nothing itself; [`fill`] is its hands.
//!
//! # Beside it
//!
//! | what | where |
//! |---|---|
//! | several processes on one ledger | [`ledger::postgres`]; [`fill`] keeps leases; [`gateway::freshness`] lets memory follow what others change |
//! | who paid, who was served, what that saved | [`ledger::usage`], [`metering`]; [`reconcile`] compares the ledger with the upstream's account |
//! | what is counted, and where time goes | [`metrics`]: a request carries its [`gateway::Trail`], a fill its [`fill::Course`] |
//! | what operators ask and change | the admin listener in [`routes`]; [`ledger::admin`], with a line in the audit for each change; [`gateway::keys`] |
//! | another configuration while it runs | [`app::reload`] puts another [`policy`] in force |
//!
//! # Promises
//!
//! A paid result is never lost once `answered` is durable; one charge per key while each call gets a
//! complete answer; a URL once answered serves the same bytes for ever; secrets are printed nowhere
//! ([`secret`]); budgets are exact ([`ledger::budget`]); memory is bounded; ledger, metrics and the
//! upstream's count agree; no request byte decides where the key is sent.
//!
//! # Who may import whom
//!
//! ```text
//! main > cli > app > {config, server} > routes > gateway > {cache, circuit, coalesce, fill, slots, rewrite}
//!      > {error, guard, metering, metrics, policy, reconcile} > spool > {ledger, store, upstream, download, request, teams}
//!      > {archive, net, breaker, certificate, envelope, framing, code, money, multipart, outcome, operation, picture,
//!         results, uploads, key, clock, random, secret, crash, disk, state}
//! ```
//!
//! Within one pair of braces, too, no two import each other. [`app`] alone names concrete stores,
//! ledgers and upstreams. A test reads this map and the imports, and keeps both true.

pub mod app;
pub mod archive;
pub mod breaker;
pub mod cache;
pub mod certificate;
pub mod circuit;
pub mod cli;
pub mod clock;
pub mod coalesce;
pub mod code;
pub mod config;
pub(crate) mod crash;
pub(crate) mod disk;
pub mod download;
pub mod envelope;
pub mod error;
pub mod fill;
pub mod framing;
pub mod gateway;
pub mod guard;
pub mod key;
pub mod ledger;
pub mod metering;
pub mod metrics;
pub mod money;
pub mod multipart;
pub mod net;
pub mod operation;
pub mod outcome;
pub mod picture;
pub mod policy;
pub mod random;
pub mod reconcile;
pub mod request;
pub mod results;
pub mod rewrite;
pub mod routes;
pub mod secret;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod slots;
pub mod spool;
pub mod state;
pub mod store;
pub mod teams;
pub mod uploads;
pub mod upstream;
