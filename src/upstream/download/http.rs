//! Reads results over HTTP ([`Downloader`]). It knows no credential and sends four constant headers. It reads
//! only where the rules allow, at addresses that were checked after resolution, and checks each redirect like
//! the first URL. It returns only pictures that are complete up to their end mark, with any bytes after it.
//! Its errors name at most the host.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::rules::{HostRule, Scheme, permission};
use super::url::ResultUrl;
use super::{FetchError, Fetched, ResultSource};
use crate::base::picture::{self, ObjectName};
use crate::base::secret::Secret;
use crate::upstream::net::address::is_public;
use crate::upstream::net::coding::decoded;
use crate::upstream::net::exchange::{Exchange, ExchangeError};
use crate::upstream::net::{Net, NetError};

const MAX_REDIRECTS: usize = 3;

#[derive(Debug, Clone)]
pub struct DownloadConfig {
    pub hosts: Vec<HostRule>,
    pub max_bytes: usize,
    /// Limit on name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Limit on the wait for the head, and for the next bytes.
    pub gap_timeout: Duration,
    pub total_timeout: Duration,
}

impl Default for DownloadConfig {
    fn default() -> Self {
        Self {
            hosts: HostRule::defaults(),
            max_bytes: 32 * 1024 * 1024,
            connect_timeout: Duration::from_secs(3),
            gap_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(30),
        }
    }
}

pub struct Downloader {
    config: DownloadConfig,
    net: Net,
}

impl Downloader {
    pub fn new(config: DownloadConfig) -> Self {
        Self::with_net(config, Net::system())
    }

    pub fn with_net(config: DownloadConfig, net: Net) -> Self {
        Self { config, net }
    }

    async fn follow(&self, mut url: ResultUrl) -> Result<Fetched, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let (exchange, head) = self.open(&url).await?;
            match redirect(&url, &head)? {
                None => return self.picture(&url, exchange, head).await,
                Some(next) => url = next,
            }
        }
        Err(FetchError::Transient(format!("{}: more than {MAX_REDIRECTS} redirects", url.host)))
    }

    async fn open(&self, url: &ResultUrl) -> Result<(Exchange, Response<Incoming>), FetchError> {
        let permission = permission(&self.config.hosts, url.scheme, &url.host, url.port)
            .ok_or(FetchError::NotAllowed("no entry of result_hosts allows its scheme, host and port"))?;
        let deadline = Instant::now() + self.config.connect_timeout;
        let allowed = |address| permission.anywhere || is_public(address);
        // Once for both schemes, so that a name whose addresses change gains nothing.
        let addresses =
            self.net.resolve(&url.host, allowed, deadline).await.map_err(|error| unreachable(url, error))?;
        if permission.https_first
            && let Ok((exchange, head)) = self.ask(url, &addresses, Scheme::Https, 443).await
            && head.status() == StatusCode::OK
        {
            return Ok((exchange, head));
        }
        self.ask(url, &addresses, url.scheme, url.port).await
    }

    async fn ask(
        &self,
        url: &ResultUrl,
        addresses: &[std::net::IpAddr],
        scheme: Scheme,
        port: u16,
    ) -> Result<(Exchange, Response<Incoming>), FetchError> {
        let deadline = Instant::now() + self.config.connect_timeout;
        let tls = scheme == Scheme::Https;
        let stream = self
            .net
            .connect(addresses, &url.host, port, tls, deadline)
            .await
            .map_err(|error| unreachable(url, error))?;
        let host =
            if port == scheme.default_port() { url.host.to_string() } else { format!("{}:{port}", url.host) };
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = Uri::from(url.path_and_query.clone());
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::try_from(host).expect("a host is letters, digits and dots"));
        headers.insert(ACCEPT, HeaderValue::from_static("image/*"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("granary/", env!("CARGO_PKG_VERSION"))));
        let head = timeout(self.config.gap_timeout, async {
            let mut exchange = Exchange::start(TokioIo::new(stream), request).await?;
            let head = exchange.head().await?;
            Ok((exchange, head))
        });
        let head: Result<_, ExchangeError> = head.await.map_err(|_| FetchError::Timeout)?;
        head.map_err(|error| FetchError::Transient(format!("{}: {error}", url.host)))
    }

    async fn picture(
        &self,
        url: &ResultUrl,
        mut exchange: Exchange,
        head: Response<Incoming>,
    ) -> Result<Fetched, FetchError> {
        check_head(url, &head)?;
        let too_large = || FetchError::TooLarge(self.config.max_bytes);
        let declared = head
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
            .unwrap_or(0);
        if declared > self.config.max_bytes {
            return Err(too_large());
        }
        let (parts, mut body) = head.into_parts();
        // The declared length is within the limit, and leaves no unused memory.
        let mut bytes = BytesMut::with_capacity(declared);
        while let Some(chunk) = timeout(self.config.gap_timeout, exchange.chunk(&mut body))
            .await
            .map_err(|_| FetchError::Timeout)?
            .map_err(|error| FetchError::Incomplete(format!("{}: {error}", url.host)))?
        {
            if bytes.len() + chunk.len() > self.config.max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        // Coded and decoded bytes are in memory together, and within the limit together.
        let left = self.config.max_bytes - bytes.len();
        let bytes = decoded(&parts.headers, bytes.freeze(), left).ok_or_else(|| {
            FetchError::Incomplete(format!("{}: its content coding cannot be undone", url.host))
        })?;
        let name = ObjectName::of(&bytes).ok_or(FetchError::NotPicture)?;
        if picture::end(&bytes).is_none() {
            return Err(FetchError::Incomplete(format!("{}: the picture is cut short", url.host)));
        }
        Ok(Fetched { name, bytes })
    }
}

#[async_trait]
impl ResultSource for Downloader {
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError> {
        let url = ResultUrl::parse(url.expose()).map_err(FetchError::NotAllowed)?;
        let fetched = timeout(self.config.total_timeout, self.follow(url)).await;
        fetched.unwrap_or(Err(FetchError::Timeout))
    }
}

/// The target of a redirect; the same rules apply to it.
fn redirect(url: &ResultUrl, head: &Response<Incoming>) -> Result<Option<ResultUrl>, FetchError> {
    let location = match head.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => head.headers().get(LOCATION),
        _ => None,
    };
    let location = location.and_then(|location| std::str::from_utf8(location.as_bytes()).ok());
    location.map(|location| url.join(location)).transpose().map_err(FetchError::NotAllowed)
}

fn check_head(url: &ResultUrl, head: &Response<Incoming>) -> Result<(), FetchError> {
    match head.status() {
        // The second comes from a proxy that changed something.
        StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION => Ok(()),
        status @ (StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE) => {
            Err(FetchError::Dead(format!("{} answered {}", url.host, status.as_u16())))
        }
        // Also a redirect without a location: it does not say that the result is gone.
        status => Err(FetchError::Transient(format!("{} answered {}", url.host, status.as_u16()))),
    }
}

fn unreachable(url: &ResultUrl, error: NetError) -> FetchError {
    match error {
        NetError::Forbidden => FetchError::NotAllowed("its host has an address that is not public"),
        NetError::Timeout => FetchError::Timeout,
        error => FetchError::Transient(format!("{}: {error}", url.host)),
    }
}

#[cfg(test)]
mod tests;
