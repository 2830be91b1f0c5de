//! Granary.
mod crash;
pub mod download;
pub mod envelope;
pub mod key;
pub mod operation;
pub mod picture;
pub mod secret;
pub mod store;
pub mod upstream;
