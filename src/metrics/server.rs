//! Connections: how many there are, which were turned away, which were too slow; and certificates.

use prometheus::{IntCounter, IntGauge};

use super::Metrics;
use super::families::{Each, Families};
use super::labels::labels;
use crate::request::framing::HeadError;

labels! {
    /// Which listener a connection came to.
    pub enum ListenerName {
        /// Clients.
        Public = "public",
        /// Operators.
        Admin = "admin",
    }
}

labels! {
    /// Why a connection was turned away.
    pub enum ConnectionRefusal {
        /// There were as many as may be.
        Limit = "limit",
        /// Its TLS handshake failed.
        Handshake = "handshake",
    }
}

labels! {
    /// What a connection was closed for not doing in time.
    pub enum SlowPhase {
        /// Sending anything at all.
        FirstByte = "first_byte",
        /// Sending the rest of a head.
        Head = "head",
        /// Sending another request: the ordinary end of a kept connection.
        Idle = "idle",
        /// Its TLS handshake.
        Handshake = "handshake",
        /// Taking an answer.
        Write = "write",
    }
}

labels! {
    /// What was wrong with a head.
    enum Malformed {
        Host = "host",
        Framing = "framing",
        HeadTooLarge = "head_too_large",
        UriTooLong = "uri_too_long",
        Method = "method",
    }
}

labels! {
    /// What came of a certificate's files.
    enum Reload {
        Ok = "ok",
        Error = "error",
    }
}

/// See the module.
pub(super) struct ServerFamilies {
    open: Each<ListenerName, IntGauge>,
    refused: Each<ListenerName, Each<ConnectionRefusal, IntCounter>>,
    timed_out: Each<ListenerName, Each<SlowPhase, IntCounter>>,
    malformed: Each<Malformed, IntCounter>,
    certificate_expiry: IntGauge,
    tls_reloads: Each<Reload, IntCounter>,
}

impl ServerFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            open: families.gauges("granary_connections_open", "Connections that are open", "listener"),
            refused: families.counter_pairs(
                "granary_connections_refused_total",
                "Connections turned away: there were too many, or their TLS handshake failed",
                ["listener", "reason"],
            ),
            timed_out: families.counter_pairs(
                "granary_connections_timed_out_total",
                "Connections closed because their time was over, by what they were to do in it",
                ["listener", "phase"],
            ),
            malformed: families.counters(
                "granary_requests_malformed_total",
                "Requests refused for their head alone, before routing, by what was wrong with it (grain: requests)",
                "reason",
            ),
            certificate_expiry: families.plain(
                "granary_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, as a Unix time; 0 without TLS",
            ),
            tls_reloads: families.counters(
                "granary_tls_reloads_total",
                "Changes of the certificate's files that were noticed, by whether they could be used",
                "result",
            ),
        }
    }
}

/// Counts a connection as open for as long as it lives.
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// A connection was accepted.
    pub fn connection_opened(&self, listener: ListenerName) -> OpenConnection {
        let open = self.server.open[listener].clone();
        open.inc();
        OpenConnection(open)
    }

    /// A connection was turned away.
    pub fn connection_refused(&self, listener: ListenerName, reason: ConnectionRefusal) {
        self.server.refused[listener][reason].inc();
    }

    /// A connection's time was over.
    pub fn connection_timed_out(&self, listener: ListenerName, phase: SlowPhase) {
        self.server.timed_out[listener][phase].inc();
    }

    /// A head was refused. One that was too slow is counted as a connection that was.
    pub fn head_refused(&self, error: HeadError) {
        let malformed = match error {
            HeadError::Host => Malformed::Host,
            HeadError::Framing => Malformed::Framing,
            HeadError::TooLarge => Malformed::HeadTooLarge,
            HeadError::UriTooLong => Malformed::UriTooLong,
            HeadError::Method => Malformed::Method,
            HeadError::Slow => return,
        };
        self.server.malformed[malformed].inc();
    }

    /// This certificate is in use from now on.
    pub fn certificate_in_use(&self, expires: jiff::Timestamp) {
        self.server.certificate_expiry.set(expires.as_second());
    }

    /// The certificate's files have changed, and can be used, or cannot.
    pub fn certificate_reloaded(&self, is_usable: bool) {
        self.server.tls_reloads[if is_usable { Reload::Ok } else { Reload::Error }].inc();
    }
}
