//! Bytes in, bytes out: connections and TLS ([`server`]), public and admin routes ([`routes`]).

pub mod certificate;
pub mod routes;
pub mod server;
