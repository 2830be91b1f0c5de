//! Connections: how many there are, which were turned away, which were too slow; and certificates.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::{Families, Metrics};
use crate::framing::HeadError;

/// Which listener a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerName {
    /// Clients.
    Public,
    /// Operators.
    Admin,
}

impl ListenerName {
    const ALL: [Self; 2] = [Self::Public, Self::Admin];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Admin => "admin",
        }
    }
}

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// There were as many as may be.
    Limit,
    /// Its TLS handshake failed.
    Handshake,
}

impl ConnectionRefusal {
    const ALL: [Self; 2] = [Self::Limit, Self::Handshake];

    fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshake => "handshake",
        }
    }
}

/// What a connection was closed for not doing in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPhase {
    /// Sending anything at all.
    FirstByte,
    /// Sending the rest of a head.
    Head,
    /// Sending another request: the ordinary end of a kept connection.
    Idle,
    /// Its TLS handshake.
    Handshake,
    /// Taking an answer.
    Write,
}

impl SlowPhase {
    const ALL: [Self; 5] = [Self::FirstByte, Self::Head, Self::Idle, Self::Handshake, Self::Write];

    fn as_str(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Handshake => "handshake",
            Self::Write => "write",
        }
    }
}

pub(super) struct ServerFamilies {
    open: IntGaugeVec,
    refused: IntCounterVec,
    timed_out: IntCounterVec,
    malformed: IntCounterVec,
    certificate_expiry: IntGauge,
    tls_reloads: IntCounterVec,
}

impl ServerFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let found = Self {
            open: families.gauge("granary_connections_open", "Connections that are open", &["listener"]),
            refused: families.counter(
                "granary_connections_refused_total",
                "Connections turned away: there were too many, or their TLS handshake failed",
                &["listener", "reason"],
            ),
            timed_out: families.counter(
                "granary_connections_timed_out_total",
                "Connections closed because their time was over, by what they were to do in it",
                &["listener", "phase"],
            ),
            malformed: families.counter(
                "granary_requests_malformed_total",
                "Requests refused for their head alone, before routing, by what was wrong with it (grain: requests)",
                &["reason"],
            ),
            certificate_expiry: families.plain(
                "granary_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, as a Unix time; 0 without TLS",
            ),
            tls_reloads: families.counter(
                "granary_tls_reloads_total",
                "Changes of the certificate's files that were noticed, by whether they could be used",
                &["result"],
            ),
        };
        for listener in ListenerName::ALL {
            found.open.with_label_values(&[listener.as_str()]);
            for reason in ConnectionRefusal::ALL {
                found.refused.with_label_values(&[listener.as_str(), reason.as_str()]);
            }
            for phase in SlowPhase::ALL {
                found.timed_out.with_label_values(&[listener.as_str(), phase.as_str()]);
            }
        }
        for reason in HeadError::MALFORMED {
            found.malformed.with_label_values(&[reason.as_str()]);
        }
        for result in ["ok", "error"] {
            found.tls_reloads.with_label_values(&[result]);
        }
        found
    }
}

/// Counts a connection as open for as long as it lives.
pub struct OpenConnection(prometheus::IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// A connection was accepted.
    pub fn connection_opened(&self, listener: ListenerName) -> OpenConnection {
        let open = self.server.open.with_label_values(&[listener.as_str()]);
        open.inc();
        OpenConnection(open)
    }

    /// A connection was turned away.
    pub fn connection_refused(&self, listener: ListenerName, reason: ConnectionRefusal) {
        self.server.refused.with_label_values(&[listener.as_str(), reason.as_str()]).inc();
    }

    /// A connection's time was over.
    pub fn connection_timed_out(&self, listener: ListenerName, phase: SlowPhase) {
        self.server.timed_out.with_label_values(&[listener.as_str(), phase.as_str()]).inc();
    }

    /// A head was refused. One that was too slow is counted as a connection that was.
    pub fn head_refused(&self, error: HeadError) {
        if error != HeadError::Slow {
            self.server.malformed.with_label_values(&[error.as_str()]).inc();
        }
    }

    /// This certificate is in use from now on.
    pub fn certificate_in_use(&self, expires: jiff::Timestamp) {
        self.server.certificate_expiry.set(expires.as_second());
    }

    /// The certificate's files have changed, and can be used, or cannot.
    pub fn certificate_reloaded(&self, is_usable: bool) {
        self.server.tls_reloads.with_label_values(&[if is_usable { "ok" } else { "error" }]).inc();
    }
}
