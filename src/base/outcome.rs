//! How a crop request was answered: one closed set of words for header, log and label.

/// Where an answer came from. After pingora's enum of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheStatus {
    /// From memory.
    HitMemory,
    /// From the ledger.
    HitLedger,
    /// From the store's record.
    HitStore,
    /// Made for another caller who asked for the same.
    Coalesced,
    /// Made for this caller.
    Miss,
    /// Made anew for this caller, who asked for that.
    Refresh,
}

impl CacheStatus {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::HitMemory, Self::HitLedger, Self::HitStore, Self::Coalesced, Self::Miss, Self::Refresh];

    /// The word in log and label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HitMemory => "hit_memory",
            Self::HitLedger => "hit_ledger",
            Self::HitStore => "hit_store",
            Self::Coalesced => "coalesced",
            Self::Miss => "miss",
            Self::Refresh => "refresh",
        }
    }

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

    /// Did answering cost the caller's team nothing?
    pub fn is_free(self) -> bool {
        self.saving().is_some()
    }

    /// Why answering cost the caller's team nothing; `None` when it did.
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

/// Why an answer cost its team nothing: the label of what is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavingCause {
    /// It was in memory.
    HitMemory,
    /// It was in the ledger.
    HitLedger,
    /// It was in the store.
    HitStore,
    /// It was being made for another caller.
    Coalesced,
    /// It was looked up by its key.
    HashFirst,
}

impl SavingCause {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::HitMemory, Self::HitLedger, Self::HitStore, Self::Coalesced, Self::HashFirst];

    /// The word in ledger, label and report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HitMemory => "hit_memory",
            Self::HitLedger => "hit_ledger",
            Self::HitStore => "hit_store",
            Self::Coalesced => "coalesced",
            Self::HashFirst => "hash_first",
        }
    }
}
