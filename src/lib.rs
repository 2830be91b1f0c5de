//! Granary.
pub mod clock;
pub mod coalesce;
mod crash;
pub mod download;
pub mod envelope;
pub mod key;
pub mod ledger;
pub mod multipart;
pub mod operation;
pub mod picture;
pub mod request;
pub mod secret;
pub mod slots;
pub mod store;
pub mod upstream;
