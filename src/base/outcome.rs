//! How a crop request was answered: one closed set of words for header, log and label.

#![allow(missing_docs, reason = "a variant whose name says it needs no more")]

use crate::base::words::words;

words! {
    /// Where an answer came from, by its word in log and label. After pingora's enum of the same name.
    #[derive(Hash)]
    pub enum CacheStatus {
        HitMemory = "hit_memory",
        HitLedger = "hit_ledger",
        /// From the store's record.
        HitStore = "hit_store",
        /// Bought for another client that asked for the same.
        Coalesced = "coalesced",
        /// Bought for this client.
        Miss = "miss",
        /// Bought anew, because this client asked for that.
        Refresh = "refresh",
    }
}

impl CacheStatus {
    /// The member of the `Cache-Status` header (RFC 9211) before its `key` parameter.
    pub fn header(self) -> &'static str {
        match self {
            Self::HitMemory => "granary; hit; detail=memory",
            Self::HitLedger => "granary; hit; detail=ledger",
            Self::HitStore => "granary; hit; detail=store",
            Self::Coalesced => "granary; fwd=uri-miss; fwd-status=200; stored; collapsed",
            Self::Miss => "granary; fwd=uri-miss; fwd-status=200; stored",
            Self::Refresh => "granary; fwd=request; fwd-status=200; stored",
        }
    }

    /// Returns true when the answer cost the client's team nothing.
    pub fn is_free(self) -> bool {
        self.saving().is_some()
    }

    /// Why the answer cost the client's team nothing; `None` when it did.
    pub fn saving(self) -> Option<SavingCause> {
        match self {
            Self::HitMemory => Some(SavingCause::HitMemory),
            Self::HitLedger => Some(SavingCause::HitLedger),
            Self::HitStore => Some(SavingCause::HitStore),
            Self::Coalesced => Some(SavingCause::Coalesced),
            Self::Miss | Self::Refresh => None,
        }
    }
}

words! {
    /// Why an answer cost its team nothing, by its word in ledger, label and report.
    #[derive(Hash, PartialOrd, Ord)]
    pub enum SavingCause {
        HitMemory = "hit_memory",
        HitLedger = "hit_ledger",
        HitStore = "hit_store",
        /// Bought for another client at the same time.
        Coalesced = "coalesced",
        /// A lookup by key, without an upload.
        HashFirst = "hash_first",
    }
}
