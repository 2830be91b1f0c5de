//! The SDK's client: TLS by rustls on ring, limits, checksums only on request, fresh credentials.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryPartition;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use parking_lot::Mutex;

use super::S3StoreConfig;

/// Without an expiry.
const CREDENTIALS_LIVE: Duration = Duration::from_secs(60);
/// Of a configured file. The SDK reads credentials ten seconds before their expiry: every two seconds.
const FILE_LIVES: Duration = Duration::from_secs(12);

/// Most compatible stores ignore it.
const USUAL_REGION: &str = "us-east-1";

/// Connects only to find AWS's region when none is configured.
pub(super) async fn connect(config: &S3StoreConfig) -> Client {
    let http = http_client();
    let limits = &config.limits;
    // `bucket` limits whole calls.
    let timeouts = TimeoutConfig::builder().connect_timeout(limits.connect).build();
    let retries = RetryConfig::standard()
        .with_max_attempts(limits.attempts)
        .with_initial_backoff(limits.backoff)
        .with_max_backoff(limits.metadata);
    let region = region(config, &providers(&http)).region().await;
    let credentials = Credentials {
        file: config.credentials_file.clone(),
        region: region.clone(),
        http: http.clone(),
        last: Mutex::default(),
    };
    let shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http.clone())
        .region(region)
        .credentials_provider(credentials)
        .timeout_config(timeouts)
        .retry_config(retries)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Many compatible stores do not know trailers, the SDK's default for streams.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .load()
        .await;
    let mut builder = aws_sdk_s3::config::Builder::from(&shared)
        .http_client(http)
        .force_path_style(config.path_style)
        // The SDK's default partition would let one bucket use up the retries of another.
        .retry_partition(
            RetryPartition::custom(format!("{}/{}", config.bucket, uuid::Uuid::new_v4())).build(),
        );
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    Client::from_conf(builder.build())
}

/// The SDK's default client would bring a second TLS library.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

/// Without a client, providers of regions and credentials panic.
fn providers(http: &SharedHttpClient) -> ProviderConfig {
    ProviderConfig::without_region().with_http_client(http.clone())
}

/// The configured region; else AWS's variables and profile; else the usual one, or AWS's metadata.
fn region(config: &S3StoreConfig, providers: &ProviderConfig) -> RegionProviderChain {
    let chain = RegionProviderChain::first_try(config.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::builder().configure(providers).build());
    match &config.endpoint {
        Some(_) => chain.or_else(Region::new(USUAL_REGION)),
        None => chain.or_else(ImdsRegionProvider::builder().configure(providers).build()),
    }
}

#[derive(Debug)]
struct Credentials {
    file: Option<PathBuf>,
    region: Option<Region>,
    http: SharedHttpClient,
    /// From the last successful read of the file, and whether it can still be read.
    last: Mutex<Option<(aws_credential_types::Credentials, bool)>>,
}

impl Credentials {
    async fn look_up(&self) -> provider::Result {
        // A new provider each time: one that has read its file does not read it again.
        let providers = providers(&self.http).with_region(self.region.clone());
        let mut found = match &self.file {
            Some(file) => {
                let read = self.or_last(of_file(file, &providers).provide_credentials().await);
                let mut found = read?;
                *found.expiry_mut() = Some(SystemTime::now() + FILE_LIVES);
                found
            }
            None => {
                let chain =
                    DefaultCredentialsChain::builder().configure(providers).region(self.region.clone());
                chain.build().await.provide_credentials().await?
            }
        };
        found.expiry_mut().get_or_insert_with(|| SystemTime::now() + CREDENTIALS_LIVE);
        Ok(found)
    }

    /// While a file is being replaced, its last credentials stay in use.
    fn or_last(&self, read: provider::Result) -> provider::Result {
        let mut last = self.last.lock();
        match (read, &mut *last) {
            (Ok(found), known) => {
                if known.as_ref().is_some_and(|(known, _)| *known != found) {
                    tracing::info!(
                        "store.credentials_file has changed; new requests carry the new credentials"
                    );
                }
                *known = Some((found.clone(), true));
                Ok(found)
            }
            (Err(_), Some((known, can_be_read))) => {
                // Logged once, and without the error, which might quote the file.
                if std::mem::take(can_be_read) {
                    tracing::error!(
                        "store.credentials_file cannot be used; what was read before stays in use"
                    );
                }
                Ok(known.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.look_up())
    }
}

#[cfg(test)]
pub(super) fn credentials(config: &S3StoreConfig) -> impl ProvideCredentials + use<> {
    let file = config.credentials_file.clone();
    Credentials { file, region: None, http: http_client(), last: Mutex::default() }
}

#[expect(deprecated, reason = "the named replacements are in a crate we have no other use for")]
fn of_file(file: &Path, providers: &ProviderConfig) -> ProfileFileCredentialsProvider {
    use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
    let files = ProfileFiles::builder().with_file(ProfileFileKind::Credentials, file).build();
    let builder = ProfileFileCredentialsProvider::builder().configure(providers);
    builder.profile_files(files).profile_name("default").build()
}
