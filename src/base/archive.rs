//! The id of an archive, which its ledger and its store both carry; see [`guard`](crate::ledger::guard).

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use uuid::Uuid;

/// 32 hexadecimal digits. Not secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveId(Uuid);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub archive: ArchiveId,
    /// The store has been seen to carry the same id. Before that nothing is bought.
    pub is_settled: bool,
    pub import: Import,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// A position of the store's list; `None` at the begin.
    UpTo(Option<String>),
    /// The ledger knows every record of the archive.
    Complete,
}

impl Membership {
    pub fn new(archive: ArchiveId, is_settled: bool) -> Self {
        Self { archive, is_settled, import: Import::UpTo(None) }
    }
}

#[async_trait]
pub trait ArchiveCheck: Send + Sync {
    /// Returns true when store and ledger belonged together a moment ago.
    async fn is_ours(&self) -> bool;
}

impl ArchiveId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub fn to_marker(self) -> String {
        format!("{MARKER}{self}\n")
    }

    pub fn from_marker(bytes: &[u8]) -> Result<Self, NoArchiveId> {
        let text = std::str::from_utf8(bytes).map_err(|_| NoArchiveId)?;
        text.strip_prefix(MARKER).ok_or(NoArchiveId)?.trim_end().parse()
    }
}

const MARKER: &str = "granary archive ";

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

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
