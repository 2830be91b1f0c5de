//! The address of a PostgreSQL database: [`DatabaseAddress`]. TLS is always verified. It is the default,
//! except for this machine.

use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use crate::base::secret::Secret;

/// For each address of the server.
const CONNECT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(15);
const UNCONFIRMED: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct DatabaseAddress(pub(super) Config);

impl DatabaseAddress {
    /// `postgres://user:password@host:port/database?sslmode=…`, or `host=… dbname=…`. Errors quote nothing.
    pub fn parse(url: &Secret) -> Result<Self, String> {
        // Every TLS connection is verified, so these modes mean the same.
        let text = ["verify-full", "verify-ca"].iter().fold(url.expose().trim().to_owned(), |text, mode| {
            text.replace(&format!("sslmode={mode}"), "sslmode=require")
        });
        let says_mode = text.contains("sslmode=");
        let mut config: Config = text.parse().map_err(|_| {
            "is not the address of a database, or has an option that is not known here; write \
             postgres://user:password@host:5432/database, with %-codes for special characters, and \
             certificates of your own into state.database_ca"
                .to_owned()
        })?;
        if config.get_hosts().is_empty() {
            return Err("names no host; write postgres://user:password@host:5432/database".to_owned());
        }
        let is_here = config.get_hosts().iter().all(is_this_machine)
            && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback);
        let mode = match (config.get_ssl_mode(), says_mode) {
            (SslMode::Prefer, false) if is_here => SslMode::Disable,
            // With `prefer` an attacker in between could refuse TLS.
            (SslMode::Prefer, _) => SslMode::Require,
            (mode, _) => mode,
        };
        config.ssl_mode(mode);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            // A standby answers too, and accepts no writes.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name("granary");
        }
        config.keepalives_idle(KEEPALIVE).tcp_user_timeout(UNCONFIRMED);
        Ok(Self(config))
    }

    /// Host, port and database, for a log line.
    pub fn place(&self) -> String {
        let host = match self.0.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(folder)) => folder.display().to_string(),
            None => "nowhere".to_owned(),
        };
        let port = self.0.get_ports().first().copied().unwrap_or(5432);
        format!("{host}:{port}/{}", self.0.get_dbname().unwrap_or_default())
    }
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> SslMode {
        DatabaseAddress::parse(&Secret::new(url)).unwrap_or_else(|error| panic!("{error}")).0.get_ssl_mode()
    }

    #[test]
    fn only_this_machine_and_an_explicit_word_do_without_tls() {
        for (url, expected) in [
            ("postgres://u:p@db.example.com/granary", SslMode::Require),
            ("postgres://u:p@db.example.com/granary?sslmode=prefer", SslMode::Require),
            ("postgresql://u:p@db.example.com/granary?sslmode=verify-full", SslMode::Require),
            ("postgres://u:p@127.0.0.1,db.example.com/granary", SslMode::Require),
            ("postgres://u:p@db.example.com/granary?sslmode=disable", SslMode::Disable),
            ("postgres://u:p@127.0.0.1:5433/granary", SslMode::Disable),
            ("postgres://u:p@localhost/granary?sslmode=require", SslMode::Require),
            ("postgres://u@%2Frun%2Fpostgresql/granary", SslMode::Disable),
            ("host=::1 user=u dbname=granary", SslMode::Disable),
            ("host=10.0.0.1 user=u dbname=granary", SslMode::Require),
        ] {
            assert_eq!(mode(url), expected, "{url}");
        }
    }

    #[test]
    fn a_broken_url_is_told_without_a_piece_of_it() {
        for url in [
            "postgres://u:sesame@host:port/granary",
            "postgres://u:p@host/granary?sesame=1",
            "sesame",
            "postgres://u:sesame@/granary",
        ] {
            let Err(why) = DatabaseAddress::parse(&Secret::new(url)) else { panic!("{url} was taken") };
            assert!(!why.contains("sesame"), "{why}");
        }
    }
}
