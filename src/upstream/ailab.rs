//! The paid API: [`AilabUpstream`]. Each call has a new HTTP/1.1 connection, so that a stale one never leaves
//! it unknown whether an order arrived. Scheme, host, port and path come from configuration and
//! [`operation`](crate::base::operation); of the client's request, only the picture and the two numbers reach
//! the upstream. Nothing is retried or logged, and no redirect is followed.

mod answer;
mod call;
mod credits;
mod echo;
mod form;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use url::{Host, Url};

use self::call::{AilabCall, Sent, Timer, Uploaded};
use self::form::{Form, Watch};
use crate::base::secret::Secret;
use crate::request::Order;
use crate::upstream::net::{Net, NetError, Stream};
use crate::upstream::{CallPhase, CallTimer, NotSent, Opened, Upstream};

const API_KEY: HeaderName = HeaderName::from_static("ailabapi-api-key");

#[derive(Debug, Clone)]
pub struct AilabConfig {
    /// An origin: `https`, or `http` on loopback; no path.
    pub base_url: Url,
    /// May be swapped at any time: calls opened afterwards carry the new key.
    pub api_key: Arc<ArcSwap<Secret>>,
    /// Limit on resolving, connecting and the TLS handshake together. Default 3 s.
    pub connect_timeout: Duration,
    /// Limit on uploading all but the tail. Default 20 s.
    pub upload_timeout: Duration,
    /// Limit from the tail to the end of the answer. Default 180 s.
    pub hard_stop: Duration,
}

impl AilabConfig {
    pub fn new(base_url: Url, api_key: Arc<ArcSwap<Secret>>) -> Self {
        Self {
            base_url,
            api_key,
            connect_timeout: Duration::from_secs(3),
            upload_timeout: Duration::from_secs(20),
            hard_stop: Duration::from_secs(180),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AilabConfigError {
    #[error("the upstream's base_url must be https://HOST or https://HOST:PORT")]
    Scheme,
    #[error("the upstream's base_url must end after the host and port: no path, query, fragment or password")]
    NotAnOrigin,
    #[error(
        "the upstream's base_url must be https: over http the key would cross the network readably; http is for a loopback address only"
    )]
    Plaintext,
    #[error("the upstream's api_key is empty, or has characters that an HTTP header cannot carry")]
    Key,
    #[error(
        "no root certificates were found to check the upstream's by: install the system's CA certificates or set SSL_CERT_FILE"
    )]
    NoRoots,
}

pub struct AilabUpstream {
    net: Net,
    host: Host,
    port: u16,
    tls: bool,
    authority: HeaderValue,
    config: AilabConfig,
    timer: Timer,
}

impl AilabUpstream {
    pub fn new(config: AilabConfig) -> Result<Self, AilabConfigError> {
        Self::with_net(config, Net::system())
    }

    pub fn with_net(config: AilabConfig, net: Net) -> Result<Self, AilabConfigError> {
        let url = &config.base_url;
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(AilabConfigError::Scheme),
        };
        let host = url.host().ok_or(AilabConfigError::Scheme)?.to_owned();
        let is_origin = matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !is_origin {
            return Err(AilabConfigError::NotAnOrigin);
        }
        let is_loopback = match &host {
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
            // Its addresses are checked each time it is resolved.
            Host::Domain(name) => name == "localhost",
        };
        if !tls && !is_loopback {
            return Err(AilabConfigError::Plaintext);
        }
        if tls && !net.has_roots() {
            return Err(AilabConfigError::NoRoots);
        }
        key_header(&config.api_key.load()).ok_or(AilabConfigError::Key)?;
        let port = url.port_or_known_default().ok_or(AilabConfigError::Scheme)?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let authority = HeaderValue::try_from(authority).map_err(|_| AilabConfigError::Scheme)?;
        Ok(Self { net, host, port, tls, authority, config, timer: Timer::default() })
    }

    pub fn timed_by(self, timer: Arc<dyn CallTimer>) -> Self {
        Self { timer: Timer(Some(timer)), ..self }
    }

    async fn connect(&self) -> Result<Stream, NetError> {
        let deadline = Instant::now() + self.config.connect_timeout;
        // Without TLS, a resolver must not lead `localhost` elsewhere.
        let allowed = |address: IpAddr| self.tls || address.is_loopback();
        let addresses = self.net.resolve(&self.host, allowed, deadline).await?;
        self.net.connect(&addresses, &self.host, self.port, self.tls, deadline).await
    }

    fn request<B>(&self, method: Method, path: &'static str, key: HeaderValue, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(API_KEY, key);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("granary/", env!("CARGO_PKG_VERSION"))));
        request
    }
}

/// The key as a header value that dependencies do not print.
fn key_header(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(key.expose()).ok().filter(|value| !value.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

#[async_trait]
impl Upstream for AilabUpstream {
    async fn open(&self, order: Arc<Order>) -> Result<Opened, NotSent> {
        let key = self.config.api_key.load_full();
        let header = key_header(&key)
            .ok_or_else(|| NotSent::Connect("the key has characters no header can carry".to_owned()))?;
        let form = Form::new(&order).await?;
        let begun = Instant::now();
        let stream = self.connect().await.map_err(|error| NotSent::Connect(error.to_string()))?;
        self.timer.took(CallPhase::Connect, begun.elapsed());

        let (content_type, length) = (HeaderValue::try_from(&form.content_type), form.length);
        let (body, release, progress) = form.into_body();
        let mut request = self.request(Method::POST, order.operation.path, header, body);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, content_type.expect("a boundary is of hex digits"));
        headers.insert(CONTENT_LENGTH, length.into());

        let io = Watch::new(TokioIo::new(stream), progress.clone());
        let sent = Sent { operation: order.operation, key };
        let upload = call::upload(io, request, &progress, &sent);
        match timeout(self.config.upload_timeout, upload).await {
            Err(_) => Err(NotSent::Upload("it took too long".to_owned())),
            Ok(Err(not_sent)) => Err(progress.blame(not_sent)),
            Ok(Ok(Uploaded::Answered(reply))) => {
                self.timer.took(CallPhase::Total, begun.elapsed());
                Ok(Opened::Answered(reply))
            }
            Ok(Ok(Uploaded::Held(exchange))) => {
                let (hard_stop, timer) = (self.config.hard_stop, self.timer.clone());
                let until_held = begun.elapsed();
                let call = AilabCall { exchange, release, order: sent, hard_stop, timer, until_held };
                Ok(Opened::Held(Box::new(call)))
            }
        }
    }

    async fn credits_left(&self) -> Option<u64> {
        self.query_credits().await.ok()
    }
}

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod tests;
