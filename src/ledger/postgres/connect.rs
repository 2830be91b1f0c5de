//! One connection, with TLS that always verifies chain, name and dates.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::AbortHandle;
use tokio_postgres::Client;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::ledger::address::DatabaseAddress;

pub(super) async fn connect(
    address: &DatabaseAddress,
    tls: &Tls,
) -> Result<Connection, tokio_postgres::Error> {
    let (client, connection) = address.0.connect(tls.0.clone()).await?;
    let task = tokio::spawn(async move {
        // The client gets the same error.
        let _ = connection.await;
    });
    Ok(Connection { client: Arc::new(client), task: task.abort_handle() })
}

/// Closed when it is dropped.
pub(super) struct Connection {
    pub(super) client: Arc<Client>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
pub(super) struct Tls(MakeRustlsConnect);

impl Tls {
    /// With the roots of a PEM file, or the system's. Blocks while it reads files.
    pub(super) fn new(roots: Option<&Path>) -> Result<Self, String> {
        let Some(file) = roots else { return Ok(Self::system()) };
        let failed = |error: io::Error| {
            format!("the certificates of state.database_ca cannot be read ({})", error.kind())
        };
        let mut store = RootCertStore::empty();
        let reader = BufReader::new(File::open(file).map_err(failed)?);
        for certificate in rustls::pki_types::CertificateDer::pem_reader_iter(reader) {
            let certificate =
                certificate.map_err(|_| "state.database_ca is not a file of certificates (PEM)")?;
            store.add(certificate).map_err(|_| "state.database_ca has a certificate that cannot be used")?;
        }
        if store.is_empty() {
            return Err("state.database_ca has no certificate in it (PEM)".to_owned());
        }
        Ok(Self::with(store))
    }

    fn system() -> Self {
        static SYSTEM: OnceLock<Tls> = OnceLock::new();
        SYSTEM
            .get_or_init(|| {
                let mut roots = RootCertStore::empty();
                // Single unreadable certificates are common in system stores.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Self::with(roots)
            })
            .clone()
    }

    fn with(roots: RootCertStore) -> Self {
        // The provider is named, because with two of them in the tree rustls would panic at run time.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring serves TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Self(MakeRustlsConnect::new(config))
    }
}
