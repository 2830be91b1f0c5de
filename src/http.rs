//! Bytes in, bytes out: connections and TLS ([`server`]), public and admin routes ([`routes`]).

pub(crate) mod certificate;
pub(crate) mod client;
pub mod routes;
pub(crate) mod server;
