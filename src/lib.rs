//! Granary.
pub mod download;
pub mod envelope;
pub mod key;
pub mod net;
pub mod operation;
pub mod picture;
pub mod secret;
pub mod store;
pub mod upstream;
