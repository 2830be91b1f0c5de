//! Which database the ledger takes: its layout, its promises, its certificate, its user.

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::ledger::postgres::ProofError;
use crate::ledger::{LedgerError, Reserved};
use crate::testing::ledger_contract::picture;

fn at(url: &str) -> PostgresConfig {
    config(url, Clock::system(), zone())
}

async fn proof(config: PostgresConfig) -> Result<(), ProofError> {
    PostgresLedger::new(config).prove().await
}

async fn unfit(server: &Postgres) -> String {
    match proof(at(&server.socket_url("postgres"))).await {
        Err(ProofError::Unfit(why)) => why,
        other => panic!("{other:?}"),
    }
}

async fn unavailable(config: PostgresConfig) -> String {
    match proof(config).await {
        Err(ProofError::Unavailable(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_layout_is_refused_untouched_and_does_not_stop_who_runs_already() {
    let server = Postgres::start();
    let ledger = PostgresLedger::new(at(&server.socket_url("postgres")));
    assert!(matches!(ledger.reserve(picture(1)).await, Ok(Reserved::Won(_))));
    server.sql("postgres", "UPDATE granary.layout SET version = 99");
    let why = unfit(&server).await;
    assert!(why.contains("layout 99"), "{why}");
    assert_eq!(server.sql("postgres", "SELECT version FROM granary.layout"), "99");
    // A rolling update: the new layout only adds, and the old replicas are still serving.
    server.kill();
    server.restart();
    assert!(matches!(ledger.reserve(picture(2)).await, Ok(Reserved::Won(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_make_the_tables_once() {
    let server = Postgres::start();
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        starting.spawn(proof(at(&server.socket_url("postgres"))));
    }
    for started in starting.join_all().await {
        started.unwrap();
    }
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM granary.layout"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_only_use_the_tables_is_enough() {
    let server = Postgres::start();
    proof(at(&server.socket_url("postgres"))).await.unwrap();
    server.sql(
        "postgres",
        "CREATE ROLE replica LOGIN; GRANT USAGE ON SCHEMA granary TO replica;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA granary TO replica;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA granary TO replica",
    );
    let url = server.socket_url("postgres").replace("granary@", "replica@");
    let ledger = PostgresLedger::new(at(&url));
    ledger.prove().await.unwrap();
    assert!(matches!(ledger.reserve(picture(1)).await, Ok(Reserved::Won(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_may_be_lost_are_refused_whenever_they_begin() {
    let server = Postgres::start();
    let ledger = PostgresLedger::new(at(&server.socket_url("postgres")));
    assert!(matches!(ledger.reserve(picture(1)).await, Ok(Reserved::Won(_))));
    server.sql("postgres", "ALTER SYSTEM SET synchronous_commit = off");
    server.sql("postgres", "SELECT pg_reload_conf()");
    let refused = async {
        loop {
            match ledger.reserve(picture(2)).await {
                Err(LedgerError::Unavailable(why)) => break why,
                // The server takes its time to read its settings again.
                outcome => {
                    assert!(matches!(outcome, Ok(Reserved::Won(_) | Reserved::Held(_))), "{outcome:?}")
                }
            }
        }
    };
    let why = tokio::time::timeout(std::time::Duration::from_secs(30), refused).await.unwrap();
    assert!(why.contains("synchronous_commit"), "{why}");
    let why = unfit(&server).await;
    assert!(why.contains("synchronous_commit"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_a_missing_database_are_told_without_the_password() {
    let server = Postgres::start();
    proof(at(&server.url("postgres"))).await.unwrap();
    let wrong = server.url("postgres").replace(granary_kit::postgres::PASSWORD, "sesame-open-the-door");
    let why = unavailable(at(&wrong)).await;
    assert!(why.contains("password authentication failed") && !why.contains("sesame"), "{why}");
    let why = unavailable(at(&server.url("nowhere"))).await;
    assert!(why.contains("nowhere") && !why.contains(granary_kit::postgres::PASSWORD), "{why}");
}

/// A server with a certificate for these names, and a file with the root that it is checked by.
fn with_certificate(names: &[&str]) -> (Postgres, tempfile::NamedTempFile) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = pem("CERTIFICATE", made.cert.der());
    let mut roots = tempfile::NamedTempFile::new().unwrap();
    roots.write_all(certificate.as_bytes()).unwrap();
    let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
    (Postgres::start_with_tls(&certificate, &key), roots)
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_certificate_is_verified() {
    let (server, roots) = with_certificate(&["localhost"]);
    let url = |host: &str| server.url("postgres").replace("127.0.0.1", host) + "?sslmode=require";
    let trusting = |host| PostgresConfig { roots: Some(roots.path().to_owned()), ..at(&url(host)) };
    let ledger = PostgresLedger::new(trusting("localhost"));
    assert!(matches!(ledger.reserve(picture(1)).await, Ok(Reserved::Won(_))));
    let encrypted = "SELECT count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                     WHERE ssl AND application_name = 'granary'";
    assert_eq!(server.sql("postgres", encrypted), "t");

    let why = unavailable(trusting("127.0.0.1")).await;
    assert!(why.contains("certificate"), "another name: {why}");
    let why = unavailable(at(&url("localhost"))).await;
    assert!(why.contains("certificate"), "a root that the system does not have: {why}");
    let mut other = tempfile::NamedTempFile::new().unwrap();
    other.write_all(b"no certificate").unwrap();
    let roots = Some(other.path().to_owned());
    let why = unavailable(PostgresConfig { roots, ..at(&url("localhost")) }).await;
    assert!(why.contains("state.database_ca"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_tls_is_wanted() {
    let server = Postgres::start();
    let url = server.url("postgres") + "?sslmode=verify-full";
    let why = unavailable(at(&url)).await;
    assert!(why.contains("TLS"), "{why}");
}
