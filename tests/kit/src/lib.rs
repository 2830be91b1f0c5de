//! Test servers and tools for Granary. Nothing here depends on the crate `granary`, so nothing here can share its mistakes.
//!
//! | module | what it is |
//! |---|---|
//! | [`ailab`] | a fake AILab on loopback that is also a ledger: it knows what it would have charged, and what it was sent |
//! | [`s3`] | a bucket in memory: signatures, checksums, conditional writes, faults, and a static site over it |
//! | [`postgres`] | a PostgreSQL server of one's own: its death, its return, its silence |
//! | [`prometheus`] | a real Prometheus of one's own that scrapes and evaluates, and promtool |
//! | [`reverse_proxy`] | nginx, HAProxy, Apache httpd and Varnish in front of an origin |
//! | [`proxy`] | a TCP proxy that delays, cuts, resets, stalls or damages at exact bytes, and counts them |
//! | [`form`] | multipart bodies as real clients build them, and as hostile ones do |
//! | [`client`] | a small HTTP/1.1 client that can stop half way, wait for a 100, or send any bytes |
//! | [`process`] | the real binary as a child process: its log, its addresses, its death |
//! | [`disk`] | a disk that fails under a running process, call by call (strace) |
//! | [`leak`] | looks for secrets in bytes, files and directories, in every encoding they might wear |
//! | [`images`] | pictures in memory: photographs, tiny ones, bombs |
//! | [`model`] | what must be true of any Granary, whatever happens to it |
//! | [`dice`] | numbers that look random and come again with the same seed |
//!
//! Everything listens on port 0 of loopback and stops when it is dropped. Waits are for an event and bounded;
//! when a bound is hit the kit panics and says what it saw.
#![expect(
    clippy::unwrap_used,
    reason = "a test kit: a poisoned lock or a broken fixture should end the test where it happened"
)]

pub mod ailab;
mod bound;
pub mod certificate;
pub mod client;
pub mod dice;
pub mod disk;
pub mod form;
pub mod images;
pub mod leak;
pub mod model;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod reverse_proxy;
pub mod s3;
mod wire;
