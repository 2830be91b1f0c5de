//! The integration tests: one binary, a module per promise.
//!
//! Most drive a whole Granary in this process over loopback ([`harness`]), in front of a fake AILab
//! that is itself a ledger; those about restarts and crashes start the real binary.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod admin_api;
mod architecture;
mod archive;
mod bucket;
#[cfg(feature = "crash-points")]
mod campaign;
mod canonical;
mod coalescing;
mod connections;
#[cfg(feature = "crash-points")]
mod crash;
mod deployment;
mod disconnects;
mod disk;
mod downloads;
mod drop_in;
mod error_table;
mod faults;
mod fleet;
mod found;
mod framing;
mod fuzz;
mod harness;
mod http;
mod integrity;
mod lingering;
mod log;
mod metrics;
mod mutated_results;
mod neighbours;
mod observability;
#[cfg(feature = "crash-points")]
mod operations;
mod postgres;
mod proxies;
mod public_url;
mod purge;
mod race;
mod readme;
mod reload;
mod requests;
mod restart;
mod result_memory;
mod secrets;
mod soak;
mod spool;
mod stopping;
mod surface;
mod tls;
mod upgrade;
mod upload_memory;
mod uploads;
mod upstream_faults;
mod upstream_matrix;
mod usage;
mod waits;
