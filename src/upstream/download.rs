//! The seam through which result bytes come in: trait [`ResultSource`].
//!
//! A type of its own, apart from [`upstream`](crate::upstream), because it must not be able to
//! carry a credential. Implementation: [`http`]; [`bounded`] keeps any within its memory.

pub mod bounded;
pub mod http;
mod rules;
mod url;

pub use self::rules::HostRule;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::picture::ObjectName;
use crate::base::secret::Secret;

/// A result's bytes, whole and known to be a picture by their first bytes.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub name: ObjectName,
    pub bytes: Bytes,
}

#[async_trait]
pub trait ResultSource: Send + Sync {
    /// Fetches once, whole, within the limits. Free, so it may be repeated; may be cancelled.
    ///
    /// # Errors
    /// Whatever kept the whole picture from arriving; see [`FetchError`].
    async fn fetch(&self, url: &Secret) -> Result<Fetched, FetchError>;
}

/// Why a result did not arrive. No variant carries the URL: it may be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL names a place we do not read from.
    #[error("the result's address is not allowed: {0}")]
    NotAllowed(&'static str),
    /// The server says that there is no such result any more: 403, 404 or 410.
    #[error("the result is not there: {0}")]
    Dead(String),
    #[error("the result is not there: not a picture")]
    NotPicture,
    /// What is there has more bytes than are read.
    #[error("the result is not there: larger than {0} bytes")]
    TooLarge(usize),
    /// Connection, any other status: worth another try.
    #[error("the result could not be read: {0}")]
    Transient(String),
    /// It broke off, or ended before the picture did: worth another try.
    #[error("the result could not be read: {0}")]
    Incomplete(String),
    /// As [`Transient`](Self::Transient), and it was time that ran out.
    #[error("the result did not arrive in time")]
    Timeout,
}

impl FetchError {
    /// Does the server have something else there, or nothing at all?
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Dead(_) | Self::NotPicture | Self::TooLarge(_) => true,
            Self::NotAllowed(_) | Self::Transient(_) | Self::Incomplete(_) | Self::Timeout => false,
        }
    }
}
