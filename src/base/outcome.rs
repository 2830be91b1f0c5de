//! The source of an answer, for header, log and label.

use crate::base::words::words;

words! {
    /// After pingora's enum of the same name.
    #[derive(Hash)]
    pub enum CacheStatus {
        HitMemory = "hit_memory",
        HitLedger = "hit_ledger",
        HitStore = "hit_store",
        /// Bought for another client.
        Coalesced = "coalesced",
        Miss = "miss",
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

    pub fn is_free(self) -> bool {
        self.saving().is_some()
    }

    /// `None` when it cost credits. The causes have the same words.
    pub fn saving(self) -> Option<SavingCause> {
        self.as_str().parse().ok()
    }
}

words! {
    /// For ledger, label and report.
    #[derive(Hash, PartialOrd, Ord)]
    pub enum SavingCause {
        HitMemory = "hit_memory",
        HitLedger = "hit_ledger",
        HitStore = "hit_store",
        Coalesced = "coalesced",
        /// A lookup by key, without an upload.
        HashFirst = "hash_first",
    }
}
