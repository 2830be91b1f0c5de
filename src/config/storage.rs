//! `[store]`, `[state]` and `[cache]`: where results, the ledger and copies of answers are kept.

use std::path::PathBuf;

use super::setting::{section, words};
use super::units::ByteSize;

/// Where results rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Files below a folder.
    Local,
}

words!(StoreKind { "local" => Local });

section! {
    /// Where results rest for ever.
    pub struct StoreConfig {
        /// local: files below a folder.
        pub kind: StoreKind = StoreKind::Local,
        /// The folder of the results; made when missing. Never delete anything in it. A relative
        /// path starts at the working directory.
        pub path: PathBuf = PathBuf::from("granary-data/store"),
    }
}

section! {
    /// What Granary has to remember besides the results: the ledger above all.
    pub struct StateConfig {
        /// The folder of the ledger; made when missing, and locked by the process that uses it. On
        /// a local disk. A relative path starts at the working directory.
        pub path: PathBuf = PathBuf::from("granary-data/state"),
    }
}

section! {
    /// Answers kept in memory, to answer repeats without a look at the disk.
    pub struct CacheConfig {
        /// The memory they may take.
        pub memory: ByteSize = ByteSize::mib(256),
    }
}
