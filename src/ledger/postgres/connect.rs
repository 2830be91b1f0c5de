//! One connection, and by what certificates the server is checked: chain, name and dates, always.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufReader};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_postgres::Client;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::{Connect, TlsConnector};

use crate::ledger::address::DatabaseAddress;

/// Connects and lets the connection live on in a task of its own.
///
/// # Errors
/// Whatever the server or the way to it say.
pub(super) async fn connect(
    address: &DatabaseAddress,
    tls: &Tls,
) -> Result<Connection, tokio_postgres::Error> {
    let (client, connection) = address.config().connect(tls.clone()).await?;
    let task = tokio::spawn(async move {
        // Whoever uses it is told the same.
        let _ = connection.await;
    });
    Ok(Connection { client: Arc::new(client), task: task.abort_handle() })
}

/// Closed for good when it is dropped, whatever is still to come over it.
pub(super) struct Connection {
    pub(super) client: Arc<Client>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Checks servers by root certificates.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// By the certificates in a file, in PEM; or by the system's.
    ///
    /// Blocks for as long as reading files does.
    ///
    /// # Errors
    /// A sentence about the file.
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
        Self(Arc::new(config))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        // Asked for also where nothing will be encrypted, as over a Unix socket, which has no name.
        let name = ServerName::try_from(host.to_owned()).ok();
        Ok(Handshake { connector: TlsConnector::from(self.0.clone()), name })
    }
}

/// A handshake with a server of this name, to be made.
pub(super) struct Handshake {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Handshake {
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Shaking<S>;

    fn connect(self, stream: S) -> Shaking<S> {
        Shaking(self.name.map(|name| self.connector.connect(name, stream)))
    }
}

/// A handshake under way.
pub(super) struct Shaking<S>(Option<Connect<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Shaking<S> {
    type Output = io::Result<Encrypted<S>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Some(handshake) => Pin::new(handshake).poll(context).map_ok(Encrypted),
            None => Poll::Ready(Err(io::Error::other("a server without a name has no certificate"))),
        }
    }
}

/// A verified, encrypted connection.
pub(super) struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        // The certificate is checked, and that is what binding adds where it is not.
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
