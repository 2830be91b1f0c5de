//! `[upstream]`: who makes the crops, and the key that pays for them.

use std::path::PathBuf;
use std::time::Duration;

use super::secret_file::read_secret_file;
use super::setting::section;
use super::units::ByteSize;
use super::urls::Origin;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::secret::Secret;
use crate::base::words::words;
use crate::billing::money::Price;

words! {
    /// The engine inside this program, which is free; or the paid AILabTools API.
    pub enum UpstreamKind { Builtin = "builtin", Ailab = "ailab" }
}

impl UpstreamKind {
    pub fn default_namespace(self) -> &'static str {
        match self {
            Self::Builtin => "builtin-v1",
            Self::Ailab => "ailab-v1",
        }
    }
}

section! {
    /// Who makes the crops that are not stored yet.
    pub struct UpstreamConfig {
        /// builtin, the engine inside this program; or ailab, the paid API, which needs a key.
        pub kind: UpstreamKind = UpstreamKind::Builtin,
        /// What results are filed under, so that those of different upstreams never mix: 1 to 64
        /// of a-z, 0-9 and -. By default builtin-v1 or ailab-v1, by kind. Another namespace is an
        /// empty one: everything is bought again.
        pub namespace: String = UpstreamKind::Builtin.default_namespace().to_owned(),
        /// Where the paid API is; https, unless it is on this machine.
        pub base_url: Origin = Origin::parse("https://www.ailabapi.com").expect("a valid origin"),
        /// The key of the account that pays. With kind ailab, either this or api_key_file; it is
        /// better off in the variable GRANARY_UPSTREAM_API_KEY than in a file others may read.
        pub api_key: Option<Secret> = None,
        /// A file that holds the key of the account that pays and nothing else, not readable by
        /// every user of this machine. A relative path starts at the working directory.
        pub api_key_file: Option<PathBuf> = None,
        /// Paid calls under way at the same time, to begin with. The number grows while all of them
        /// are in use, and is halved when the paid API says that there are too many.
        pub concurrency: usize = 4,
        /// Paid calls under way at the same time, at most.
        pub max_concurrency: usize = 16,
        /// Misses that wait for their turn, at most; teams take turns, and one team has at most seven
        /// eighths of the places. More are refused at once, and so is a miss whose turn cannot come in
        /// time.
        pub queue: usize = 256,
        /// What one crop costs, in credits.
        pub credits_per_call: u64 = IMAGE_CROPPING.credits,
        /// What one credit costs, such as 0.003, in the currency of whoever reads the reports; with at
        /// most 6 digits behind the point. Usage is told in money too when it is set.
        pub credit_price: Option<Price> = None,
        /// How often the account's balance is asked for, which is free, and shown beside the ledger;
        /// 0s for never.
        pub balance_interval: Duration = Duration::from_secs(300),
        /// How long connecting may take.
        pub connect_timeout: Duration = Duration::from_secs(3),
        /// How long sending a picture may take.
        pub upload_timeout: Duration = Duration::from_secs(20),
        /// How long the answer to a paid call is waited for. After that nobody knows whether it
        /// cost credits, and the call is booked as unknown.
        pub hard_stop: Duration = Duration::from_secs(180),
        /// Where results may be read from: entries `[scheme://]host[:port]`, where a leading "*."
        /// stands for any subdomain. Empty: https from any public host, and http from the vendor's
        /// own. Private addresses are read only when an entry names them. Redirects are followed to places
        /// that are allowed, three at most.
        pub result_hosts: Vec<String> = Vec::new(),
        /// How long the upstream's link to a result works; within that time a result that cannot be
        /// fetched is tried again. The vendor promises 24 hours.
        pub result_url_ttl: Duration = Duration::from_secs(23 * 3600 + 30 * 60),
        /// The largest result that is kept.
        pub result_max_bytes: ByteSize = ByteSize::mib(32),
        /// How long one attempt to fetch a result may take.
        pub result_timeout: Duration = Duration::from_secs(30),
    }
}

/// Bytes; real keys have some sixty.
const LONGEST_KEY: usize = 1024;

impl UpstreamConfig {
    /// Blocks while it reads a small file. Errors repeat neither the key nor the file's name.
    pub fn key(&self) -> Result<Option<Secret>, String> {
        match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => usable(key.expose()).map(Some),
            (None, Some(file)) => usable(&read_secret_file(file, "the key", LONGEST_KEY as u64)?).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// As it can be sent in a header.
fn usable(text: &str) -> Result<Secret, String> {
    let key = text.trim();
    if key.is_empty() {
        return Err("holds no key; put the key of the AILabTools account there".to_owned());
    }
    if key.len() > LONGEST_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds something that is no key; put the key there, in one line and alone".to_owned());
    }
    Ok(Secret::new(key))
}
