//! What is asked of a bucket beyond the contract, over the network, against the kit's server and,
//! where a variable names one, against another.

mod elsewhere;
mod faults;
mod proof;
mod shared;

use std::sync::Arc;

use aws_credential_types::provider::ProvideCredentials as _;
use granary_kit::leak::Secrets;
use granary_kit::s3::{Fault, Operation, S3Server};
use tempfile::TempDir;

use super::bucket::{Condition, Headers, Kind, Written};
use super::*;
use crate::base::picture::ImageFormat;
use crate::testing::store_contract::{StoreFixture, picture, record, store_contract};

/// A bucket of its own, and credentials for it.
struct S3Fixture {
    server: S3Server,
    folder: TempDir,
}

impl S3Fixture {
    async fn start() -> Self {
        let (server, folder) = (S3Server::start().await, TempDir::new().unwrap());
        server.write_credentials(&folder.path().join("credentials")).unwrap();
        Self { server, folder }
    }

    /// With limits that no answer comes near, on however slow a machine.
    fn config(&self) -> S3StoreConfig {
        let minute = Duration::from_secs(60);
        S3StoreConfig {
            region: Some("eu-north-1".to_owned()),
            endpoint: Some(self.server.endpoint()),
            path_style: true,
            credentials_file: Some(self.folder.path().join("credentials")),
            limits: S3Limits {
                connect: minute,
                metadata: minute,
                object: minute,
                backoff: Duration::from_millis(1),
                ..S3Limits::default()
            },
            bucket: self.server.bucket().to_owned(),
            ..S3StoreConfig::default()
        }
    }

    async fn s3(&self) -> S3Store {
        S3Store::open(self.config()).await
    }

    /// A store that gives up soon.
    async fn hasty(&self, limit: Duration) -> S3Store {
        let limits = S3Limits { metadata: limit, object: limit, ..self.config().limits };
        S3Store::open(S3StoreConfig { limits, ..self.config() }).await
    }
}

#[async_trait]
impl StoreFixture for S3Fixture {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.s3().await)
    }

    async fn overwrite(&self, path: &str, bytes: &[u8]) {
        self.server.set(path, bytes.to_vec());
    }
}

store_contract!(S3Fixture::start().await);

fn key(seed: u32) -> CacheKey {
    CacheKey::of(b"s3", seed, 1)
}

fn is_away<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable(_)))
}

#[tokio::test]
async fn a_static_server_on_the_bucket_could_serve_every_url() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    for format in ImageFormat::ALL {
        let (name, bytes) = picture(format, 1, 3000);
        store.put_object(name, bytes.clone()).await.unwrap();
        let kept = fixture.server.object(&name.path()).expect("under the URL's own path");
        assert_eq!(kept.bytes, bytes);
        assert_eq!(kept.content_type.as_deref(), Some(format.content_type()));
        assert_eq!(kept.cache_control.as_deref(), Some("public, max-age=31536000, immutable"));
    }
    let put = record("space", key(1), 0, "red");
    store.put_record(&put).await.unwrap();
    let kept = fixture.server.object(&Record::path("space", key(1))).unwrap();
    assert_eq!(kept.content_type.as_deref(), Some("application/json"));
    assert_eq!(kept.cache_control.as_deref(), Some("private, no-cache"));
}

#[tokio::test]
async fn every_write_carries_a_checksum_and_nothing_is_ever_listed() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    store.prove().await.unwrap();
    store.check_room().await.unwrap();
    let (name, bytes) = picture(ImageFormat::Jpeg, 2, 5000);
    store.put_object(name, bytes).await.unwrap();
    for generation in 0..3 {
        store.put_record(&record("space", key(2), generation, "red")).await.unwrap();
    }
    for name in fixture.server.names() {
        assert!(fixture.server.object(&name).unwrap().checksummed, "{name}");
    }
    assert_eq!((fixture.server.count(Operation::Other), fixture.server.count(Operation::Head)), (0, 0));
}

#[tokio::test]
async fn bytes_that_do_not_fit_their_checksum_are_refused() {
    let fixture = S3Fixture::start().await;
    let client = client::connect(&fixture.config()).await;
    let put = || client.put_object().bucket(fixture.server.bucket()).key("x").body(b"bytes".to_vec().into());
    assert!(put().checksum_crc32("AAAAAA==").send().await.is_err());
    assert_eq!(fixture.server.names(), [""; 0]);
    put().send().await.unwrap();
}

#[tokio::test]
async fn a_damaged_object_is_reported_and_never_overwritten() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, bytes) = picture(ImageFormat::Png, 3, 5000);
    store.put_object(name, bytes.clone()).await.unwrap();
    fixture.server.corrupt(&name.path());
    let damaged = fixture.server.object(&name.path());
    let Err(StoreError::Corrupt(text)) = store.put_object(name, bytes.clone()).await else {
        panic!("damage was taken for success")
    };
    assert!(text.contains("restore or delete it"), "{text}");
    assert_eq!(fixture.server.object(&name.path()), damaged);

    fixture.server.remove(&name.path());
    store.put_object(name, bytes.clone()).await.unwrap();
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes));
}

#[tokio::test]
async fn what_is_too_long_is_neither_kept_nor_read() {
    let fixture = S3Fixture::start().await;
    let store = fixture.s3().await;
    let (name, _) = picture(ImageFormat::Bmp, 4, 100);
    let long = Bytes::from(vec![0; usize::try_from(crate::base::record::MAX_OBJECT_BYTES).unwrap() + 1]);
    assert!(matches!(store.put_object(name, long.clone()).await, Err(StoreError::Full(_))));
    fixture.server.set(&name.path(), long);
    assert!(matches!(store.object(name, u64::MAX).await, Err(StoreError::Corrupt(_))));
    assert!(store.has_object(name).await.unwrap());
}

#[tokio::test]
async fn prefixes_do_not_mix_and_slashes_at_their_ends_make_no_difference() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 5, 500);
    let open = |prefix: &str| S3Store::open(S3StoreConfig { prefix: prefix.to_owned(), ..fixture.config() });
    for (prefix, same, begins) in [("", "/", ""), ("a", "/a/", "a/"), ("a/b", "a/b//", "a/b/")] {
        let store = open(prefix).await;
        assert_eq!(store.object(name, u64::MAX).await.unwrap(), None, "{prefix:?}");
        assert_eq!(store.record("space", key(3)).await.unwrap(), None, "{prefix:?}");
        store.put_object(name, bytes.clone()).await.unwrap();
        store.put_record(&record("space", key(3), 0, prefix)).await.unwrap();
        assert!(fixture.server.object(&format!("{begins}{}", name.path())).is_some());
        let same = open(same).await;
        assert_eq!(same.record("space", key(3)).await.unwrap().unwrap().team, prefix);
    }
    assert_eq!(fixture.server.names().len(), 6);
}

#[tokio::test]
async fn no_error_and_no_debug_text_holds_a_credential() {
    let fixture = S3Fixture::start().await;
    let (name, bytes) = picture(ImageFormat::Jpeg, 6, 500);
    let mut said = Vec::new();
    for fault in [Fault::Forbidden, Fault::SlowDown, Fault::DropAnswer, Fault::NotFoundPage, Fault::Full] {
        fixture.server.fail_always(fault);
        let store = fixture.s3().await;
        said.push(format!("{store:?} {:?}", fixture.config()));
        said.push(store.put_object(name, bytes.clone()).await.unwrap_err().to_string());
        said.push(store.object(name, u64::MAX).await.unwrap_err().to_string());
        said.push(store.prove().await.unwrap_err().to_string());
    }
    fixture.server.heal();
    // A wrong secret: the server's answer repeats what was signed.
    let credentials = fixture.folder.path().join("credentials");
    let good = std::fs::read_to_string(&credentials).unwrap();
    std::fs::write(&credentials, good.trim_end().to_owned() + "x\n").unwrap();
    let refused = fixture.s3().await.object(name, u64::MAX).await.unwrap_err().to_string();
    assert!(refused.contains("correct the credentials"), "{refused}");
    std::fs::remove_file(&credentials).unwrap();
    let none = fixture.s3().await.object(name, u64::MAX).await.unwrap_err().to_string();
    assert!(none.contains("put credentials into"), "{none}");
    said.extend([refused, none]);

    let secrets = Secrets::new([
        ("access key", fixture.server.access_key()),
        ("secret key", fixture.server.secret_key()),
        ("signature", "Signature="),
        ("algorithm", "AWS4-HMAC"),
    ]);
    assert_eq!(secrets.find_leaks([("said", said.join("\n"))]), []);
}

#[tokio::test]
async fn a_changed_credentials_file_is_noticed_within_seconds_and_an_unusable_one_changes_nothing() {
    let fixture = S3Fixture::start().await;
    let file = fixture.folder.path().join("credentials");
    let credentials = client::credentials(&fixture.config());
    let look_up = async || credentials.provide_credentials().await.unwrap();
    let found = look_up().await;
    assert_eq!(found.secret_access_key(), fixture.server.secret_key());
    // The SDK looks again ten seconds before this.
    let lives = found.expiry().unwrap().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(lives <= Duration::from_secs(12), "{lives:?}");

    std::fs::write(&file, "").unwrap();
    assert_eq!(look_up().await.secret_access_key(), fixture.server.secret_key());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(look_up().await.secret_access_key(), fixture.server.secret_key());
    let other = S3Server::start().await;
    other.write_credentials(&file).unwrap();
    assert_eq!(look_up().await.secret_access_key(), other.secret_key());
}

#[test]
fn one_library_does_tls_and_it_is_ring() {
    let lock = include_str!("../../../Cargo.lock");
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl-sys", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{other}\"")), "{other}");
    }
    assert_eq!(lock.matches("name = \"rustls\"").count(), 1);
    assert!(lock.contains("name = \"ring\""));
}
