//! Granary.
pub mod app;
pub mod cli;
pub mod config;
pub mod download;
pub mod envelope;
pub mod key;
pub mod operation;
pub mod picture;
pub mod secret;
pub mod store;
pub mod teams;
pub mod upstream;
