//! Opens the configured store, and proves a bucket at the start.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::{StoreConfig, StoreKind};
use crate::store::local::LocalStore;
use crate::store::s3::{S3Store, S3StoreConfig};
use crate::store::{Store, StoreError};

const START_PATIENCE: Duration = Duration::from_secs(8);
/// For a bucket that is unavailable; while its breaker is open, at no cost.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// For a bucket that lacks a required ability.
const UNFIT_PAUSE: Duration = Duration::from_secs(30);

/// Does not ask a bucket anything.
pub(super) async fn open(settings: &StoreConfig) -> anyhow::Result<Arc<dyn Store>> {
    match settings.kind {
        StoreKind::Local => {
            let store = LocalStore::open(&settings.path).context("store.path: the store cannot be opened")?;
            Ok(Arc::new(store))
        }
        StoreKind::S3 => {
            let bucket = settings.bucket.clone().context("store.bucket is missing")?;
            let store = S3Store::open(S3StoreConfig {
                prefix: settings.prefix.clone(),
                region: settings.region.clone(),
                endpoint: settings.endpoint.clone(),
                path_style: settings.path_style.unwrap_or(settings.endpoint.is_some()),
                credentials_file: settings.credentials_file.clone(),
                bucket,
                ..S3StoreConfig::default()
            });
            Ok(Arc::new(store.await))
        }
    }
}

/// Proves the bucket before anything is bought for it; fails when it lacks a required ability. An unavailable one is
/// tried again until `stopping`: meanwhile only hits are served, because an unproved store has no room.
pub(super) async fn prove_bucket(store: Arc<dyn Store>, stopping: CancellationToken) -> anyhow::Result<()> {
    let error = match tokio::time::timeout(START_PATIENCE, store.prove()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error @ StoreError::Unfit(_))) => return Err(error).context("store.bucket"),
        Ok(Err(error)) => error,
        Err(_) => StoreError::Unavailable(format!("the bucket did not answer within {START_PATIENCE:?}")),
    };
    tracing::warn!(%error, "starting without the bucket: hits are served from memory and ledger, nothing is bought");
    tokio::spawn(stopping.run_until_cancelled_owned(async move {
        loop {
            tokio::time::sleep(AWAY_PAUSE).await;
            match store.prove().await {
                Ok(()) => break tracing::info!("the bucket is there, and proved"),
                Err(error @ StoreError::Unfit(_)) => {
                    tracing::error!(%error, "nothing is bought for this bucket; use another and restart");
                    tokio::time::sleep(UNFIT_PAUSE).await;
                }
                Err(error) => tracing::debug!(%error, "the bucket cannot be proved yet"),
            }
        }
    }));
    Ok(())
}
