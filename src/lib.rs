//! Granary.
pub mod download;
pub mod envelope;
pub mod key;
pub mod multipart;
pub mod operation;
pub mod picture;
pub mod request;
pub mod secret;
pub mod store;
pub mod upstream;
