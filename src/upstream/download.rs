//! The seam for result bytes: trait [`ResultSource`]. It is apart from [`upstream`](crate::upstream) because
//! it must not be able to carry a credential. [`http`] implements it; [`bounded`] limits the memory.

pub mod bounded;
pub mod http;
mod rules;
mod url;

pub use self::rules::HostRule;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::picture::ObjectName;
use crate::base::secret::Secret;

/// A whole result, and a picture by its first bytes.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub name: ObjectName,
    pub bytes: Bytes,
}

#[async_trait]
pub trait ResultSource: Send + Sync {
    /// Fetches once. Free, so it may be repeated; may be cancelled.
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError>;
}

/// No variant carries the URL, because it may be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("the result's address is not allowed: {0}")]
    NotAllowed(&'static str),
    /// 403, 404 or 410.
    #[error("the result is not there: {0}")]
    Dead(String),
    #[error("the result is not there: not a picture")]
    NotPicture,
    #[error("the result is not there: larger than {0} bytes")]
    TooLarge(usize),
    /// No connection, or any other status.
    #[error("the result could not be read: {0}")]
    Transient(String),
    /// It broke off, or ended before the picture did.
    #[error("the result could not be read: {0}")]
    Incomplete(String),
    #[error("the result did not arrive in time")]
    Timeout,
}

impl FetchError {
    /// Returns true if the server has no result there.
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Dead(_) | Self::NotPicture | Self::TooLarge(_) => true,
            Self::NotAllowed(_) | Self::Transient(_) | Self::Incomplete(_) | Self::Timeout => false,
        }
    }
}
