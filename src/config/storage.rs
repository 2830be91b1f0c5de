//! `[store]`, `[state]` and `[cache]`: where results, the ledger and copies of answers are kept.

use std::path::PathBuf;

use super::secret_file::read_secret_file;
use super::setting::section;
use super::units::ByteSize;
use super::urls::BaseUrl;
use crate::base::secret::Secret;
use crate::base::words::words;
use crate::ledger::address::DatabaseAddress;

/// Bytes.
const LONGEST_URL: u64 = 4096;

words! {
    pub enum StoreKind { Local = "local", S3 = "s3" }
}

section! {
    /// Where results rest for ever.
    pub struct StoreConfig {
        /// local: files below a folder. s3: a bucket of any service that speaks S3 and honours
        /// conditional writes (If-None-Match, If-Match).
        pub kind: StoreKind = StoreKind::Local,
        /// local: the folder of the results; made when missing. Never delete anything in it. A
        /// relative path starts at the working directory.
        pub path: PathBuf = PathBuf::from("granary-data/store"),
        /// s3: the bucket; it must exist. Never delete anything in it, and let no lifecycle rule do.
        pub bucket: Option<String> = None,
        /// s3: what the names of everything in the bucket begin with, such as granary/prod.
        pub prefix: String = String::new(),
        /// s3: the bucket's region. Left out: what AWS_REGION or the AWS profile says, else us-east-1
        /// with an endpoint and what the machine's metadata say without.
        pub region: Option<String> = None,
        /// s3: where the service is, such as `https://minio.example.com:9000`. Left out: AWS.
        pub endpoint: Option<String> = None,
        /// s3: whether the bucket is part of the path and not of the host. Left out: true with an
        /// endpoint, false without.
        pub path_style: Option<bool> = None,
        /// s3: a file with aws_access_key_id and aws_secret_access_key in its section default, as AWS's tools
        /// write it; a change is noticed within seconds. Left out: AWS's variables
        /// (AWS_ACCESS_KEY_ID, …), files, web identity, container or machine, in this order.
        pub credentials_file: Option<PathBuf> = None,
        /// Where somebody else serves the store, such as a CDN or a static server on the bucket or
        /// the folder: `https://cdn.example.com/granary`, when the object results/x is at
        /// `https://cdn.example.com/granary/results/x`. Answers then name URLs there, once the
        /// store has confirmed the result. s3: it leads to what is below prefix. Left out: answers
        /// name this server, which goes on serving every result in any case.
        pub public_url: Option<BaseUrl> = None,
    }
}

section! {
    /// What Granary has to remember besides the results: the ledger above all.
    pub struct StateConfig {
        /// The folder of the ledger, and of what a ledger that is away cannot take; made when missing,
        /// and locked by the process that uses it; refused while another user can change it. On a local
        /// disk. A relative path starts at the working directory.
        pub path: PathBuf = PathBuf::from("granary-data/state"),
        /// Keeps the ledger in a PostgreSQL database instead, so that several processes can share it,
        /// such as `postgres://granary:PASSWORD@db.example.com/granary`. Its certificate is verified;
        /// only this very machine, or ?sslmode=disable, does without. Needs store.kind = s3. It is
        /// better off in the variable GRANARY_STATE_DATABASE_URL than in a file others may read.
        pub database_url: Option<Secret> = None,
        /// A file that holds that address and nothing else, not readable by every user of this
        /// machine; read again for each connection. A relative path starts at the working directory.
        pub database_url_file: Option<PathBuf> = None,
        /// A file with the certificates (PEM) that the database's is verified by. Left out: the
        /// system's.
        pub database_ca: Option<PathBuf> = None,
        /// Results that may wait in the ledger for a store that is away, in bytes. When no more fit,
        /// nothing is bought until the store is back. 0: none may wait.
        pub spool_max: ByteSize = ByteSize::mib(2048),
    }
}

impl StateConfig {
    pub fn has_database(&self) -> bool {
        self.database_url.is_some() || self.database_url_file.is_some()
    }

    /// `None` when there is none. Blocks while it reads a small file. Errors quote nothing.
    pub fn database(&self) -> Result<Option<DatabaseAddress>, String> {
        let url = match (&self.database_url, &self.database_url_file) {
            (Some(url), _) => url.clone(),
            (None, Some(file)) => Secret::new(read_secret_file(file, "the address", LONGEST_URL)?),
            (None, None) => return Ok(None),
        };
        DatabaseAddress::parse(&url).map(Some)
    }
}

section! {
    /// Answers kept in memory, to answer repeats without a look at the disk.
    pub struct CacheConfig {
        /// The memory they may take.
        pub memory: ByteSize = ByteSize::mib(256),
    }
}
