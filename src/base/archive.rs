//! The name of an archive: a random id that its ledger and its store both carry.
//!
//! By it each knows the other again, so that a mistyped prefix, an emptied bucket or a replaced
//! database is noticed before anything is bought twice; see [`guard`](crate::ledger::guard).

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use uuid::Uuid;

/// 122 random bits, written as 32 hexadecimal digits. No secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveId(Uuid);

/// What a ledger knows of its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The archive it belongs to.
    pub archive: ArchiveId,
    /// Has the store been seen to carry the same id? Until then nothing was ever bought.
    pub is_settled: bool,
    /// How many of the store's records the ledger knows.
    pub import: Import,
}

/// How far the import of a store's records into a ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// Everything up to this position of the store's list is imported; `None`: nothing yet.
    UpTo(Option<String>),
    /// The ledger knows every record of the archive.
    Complete,
}

impl Membership {
    /// A ledger that has just met its archive.
    pub fn new(archive: ArchiveId, is_settled: bool) -> Self {
        Self { archive, is_settled, import: Import::UpTo(None) }
    }
}

/// Tells whether a store is the one that the ledger belongs to.
#[async_trait]
pub trait ArchiveCheck: Send + Sync {
    /// As of a moment ago, by asking both; no when one of them cannot be asked.
    async fn is_ours(&self) -> bool;
}

impl ArchiveId {
    /// An id that nobody else has.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// What a marker says, for a person who comes upon it too.
    pub fn to_marker(self) -> String {
        format!("{MARKER}{self}\n")
    }

    /// Reads a marker.
    ///
    /// # Errors
    /// [`NoArchiveId`]: it is damaged, or somebody else's.
    pub fn from_marker(bytes: &[u8]) -> Result<Self, NoArchiveId> {
        let text = std::str::from_utf8(bytes).map_err(|_| NoArchiveId)?;
        text.strip_prefix(MARKER).ok_or(NoArchiveId)?.trim_end().parse()
    }
}

/// How a marker begins.
const MARKER: &str = "granary archive ";

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an archive's id is 32 hexadecimal digits")]
pub struct NoArchiveId;

impl FromStr for ArchiveId {
    type Err = NoArchiveId;

    fn from_str(text: &str) -> Result<Self, NoArchiveId> {
        let is_plain = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_plain { Uuid::try_parse(text).map(Self).map_err(|_| NoArchiveId) } else { Err(NoArchiveId) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_and_read_and_nothing_else_is() {
        let id = ArchiveId::random();
        assert_ne!(id, ArchiveId::random());
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "archive", &id.to_string()[1..], &format!("{{{id}}}"), &id.0.to_string()] {
            assert_eq!(wrong.parse::<ArchiveId>(), Err(NoArchiveId), "{wrong}");
        }
    }

    #[test]
    fn a_marker_is_written_and_read_and_nothing_else_is() {
        let id = ArchiveId::random();
        assert_eq!(ArchiveId::from_marker(id.to_marker().as_bytes()), Ok(id));
        for wrong in
            [&b""[..], b"granary archive", b"granary archive x\n", id.to_string().as_bytes(), b"\xff"]
        {
            assert_eq!(ArchiveId::from_marker(wrong), Err(NoArchiveId), "{wrong:?}");
        }
    }
}
