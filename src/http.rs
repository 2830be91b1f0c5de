//! Bytes in, bytes out: connections and TLS ([`server`]), public and admin routes ([`routes`]).

#![allow(missing_docs, reason = "a name that says it needs no more")]

pub(crate) mod certificate;
pub mod routes;
pub(crate) mod server;
