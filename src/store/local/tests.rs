//! What is asked of files beyond the contract. A full or failing disk is left to the disk-fault
//! campaign, which has a disk to fill; here are its refusals and the texts of its errors.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::files::failed;
use super::*;
use crate::base::disk::temp_name;
use crate::base::key::Digest;
use crate::base::picture::ImageFormat;
use crate::base::record::MAX_OBJECT_BYTES;
use crate::testing::store_contract::{StoreFixture, picture, record, store_contract};

/// A store in a temporary folder.
struct LocalFixture(tempfile::TempDir);

#[async_trait]
impl StoreFixture for LocalFixture {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.local())
    }

    async fn overwrite(&self, path: &str, bytes: &[u8]) {
        fs::write(self.path(path), bytes).unwrap();
    }
}

impl LocalFixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Without the default's demand for free space, which is the machine's business.
    fn local(&self) -> LocalStore {
        LocalStore::open_with(self.0.path(), 0, OBJECT_READS).unwrap()
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.0.path().join(below)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

store_contract!(LocalFixture::new());

#[tokio::test]
async fn a_static_file_server_could_serve_every_object() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, bytes) = picture(ImageFormat::Webp, 1, 3000);
    store.put_object(name, bytes.clone()).await.unwrap();
    let served = fixture.path(&name.path());
    assert_eq!(fs::read(&served).unwrap(), bytes);
    let record = record("space", CacheKey::of(b"x", 1, 1), 0, "red");
    store.put_record(&record).await.unwrap();
    fs::write(fixture.path("any"), b"").unwrap();
    let mode = |path: &str| fs::metadata(fixture.path(path)).unwrap().permissions().mode() & 0o777;
    // As far as the umask allows: everyone reads objects, the group reads records, nobody else writes.
    assert_eq!(mode(&name.path()), mode("any") & 0o644);
    assert_eq!(mode(&Record::path("space", record.key)), mode("any") & 0o640);
    assert_eq!(fs::metadata(&served).unwrap().nlink(), 1);
    assert_eq!(names(&fixture.path("results")).len(), 1);
}

#[tokio::test]
async fn nothing_stays_in_tmp_whatever_happened() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 3000);
    let key = CacheKey::of(b"x", 1, 1);
    for _ in 0..2 {
        store.put_object(name, bytes.clone()).await.unwrap();
        store.check_room().await.unwrap();
    }
    for generation in [0, 0, 1] {
        store.put_record(&record("space", key, generation, "red")).await.unwrap();
    }
    fs::remove_file(fixture.path(&name.path())).unwrap();
    fs::create_dir(fixture.path(&name.path())).unwrap();
    assert!(matches!(store.put_object(name, bytes).await, Err(StoreError::Unavailable(_))));
    assert_eq!(names(&fixture.path("tmp")), [""; 0]);
}

#[tokio::test]
async fn orphans_are_swept_but_not_what_a_living_process_writes() {
    let fixture = LocalFixture::new();
    let living = fixture.local();
    let ours = temp_name();
    let orphan = fixture.path("tmp").join(&ours);
    fs::write(&orphan, b"half").unwrap();
    drop(fixture.local());
    assert_eq!(names(&fixture.path("tmp")), [ours.as_str()]);
    drop(living);
    let _again = fixture.local();
    assert_eq!(names(&fixture.path("tmp")), [""; 0]);
    fs::write(&orphan, b"half").unwrap();
    let _beside = fixture.local();
    assert_eq!(names(&fixture.path("tmp")), [ours.as_str()]);
}

#[test]
fn sweep_of_tmp_follows_no_link_and_removes_no_foreign_file() {
    let fixture = LocalFixture::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = elsewhere.path().join(temp_name());
    fs::write(&theirs, b"theirs").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), fixture.path("tmp")).unwrap();
    let refused = LocalStore::open(fixture.0.path()).unwrap_err().to_string();
    assert!(refused.contains("tmp") && refused.contains("symbolic link"), "{refused}");
    assert_eq!(fs::read(&theirs).unwrap(), b"theirs");

    fs::remove_file(fixture.path("tmp")).unwrap();
    fs::create_dir(fixture.path("tmp")).unwrap();
    for name in ["notes.txt", "lost+found", "0123456789abcdef0123456789abcdef.txt"] {
        fs::write(fixture.path("tmp").join(name), b"theirs").unwrap();
    }
    drop(fixture.local());
    assert_eq!(names(&fixture.path("tmp")).len(), 3);
    fs::set_permissions(fixture.path("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = LocalStore::open(fixture.0.path()).unwrap_err().to_string();
    assert!(refused.contains("every user may write"), "{refused}");
}

#[test]
fn missing_folders_are_made_and_a_file_in_the_way_is_named() {
    let fixture = LocalFixture::new();
    LocalStore::open(fixture.path("a/b/c")).unwrap();
    assert_eq!(names(&fixture.path("a/b/c")).len(), 3);
    fs::write(fixture.path("file"), b"").unwrap();
    for wrong in ["file", "file/below"] {
        let error = LocalStore::open(fixture.path(wrong)).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
}

#[test]
fn no_damage_is_ever_served() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let index = any::<prop::sample::Index>;
    let tail = proptest::collection::vec(any::<u8>(), 1..20);
    proptest!(|(len in 3_usize..50_000, at in index(), bit in 0..8, cut in index(), tail in tail)| {
        let (name, bytes) = picture(ImageFormat::Jpeg, 1, len);
        let mut flipped = bytes.to_vec();
        flipped[at.index(bytes.len())] ^= 1_u8 << bit;
        let truncated = bytes[..cut.index(bytes.len())].to_vec();
        let grown = [&bytes[..], &tail].concat();
        for damaged in [flipped, truncated, grown] {
            fs::write(fixture.path(&name.path()), damaged).unwrap();
            let read = runtime.block_on(store.object(name, u64::MAX));
            prop_assert!(matches!(read, Err(StoreError::Corrupt(_))));
        }
        fs::write(fixture.path(&name.path()), &bytes).unwrap();
        prop_assert_eq!(runtime.block_on(store.object(name, u64::MAX)).unwrap(), Some(bytes));
    });
}

#[tokio::test]
async fn a_damaged_object_is_healed_by_putting_it_again() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 3000);
    let mut flipped = bytes.to_vec();
    flipped[1500] ^= 1;
    for damaged in [&flipped, &bytes[..2999], b"", &[&bytes[..], b"\0"].concat()] {
        fs::write(fixture.path(&name.path()), damaged).unwrap();
        store.put_object(name, bytes.clone()).await.unwrap();
        assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes.clone()));
    }
}

#[tokio::test]
async fn a_whole_object_is_not_written_again() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 3000);
    store.put_object(name, bytes.clone()).await.unwrap();
    let before = fs::metadata(fixture.path(&name.path())).unwrap().ino();
    store.put_object(name, bytes).await.unwrap();
    assert_eq!(fs::metadata(fixture.path(&name.path())).unwrap().ino(), before);
}

#[tokio::test]
async fn a_file_too_long_to_be_ours_is_corrupt_unread() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, _) = picture(ImageFormat::Jpeg, 1, 30);
    let file = fs::File::create(fixture.path(&name.path())).unwrap();
    file.set_len(1 << 40).or_else(|_| file.set_len(MAX_OBJECT_BYTES + 1)).unwrap();
    let error = store.object(name, u64::MAX).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("longer")), "{error}");

    let bytes = Bytes::from(vec![0; 1 + usize::try_from(MAX_OBJECT_BYTES).unwrap()]);
    let name = ObjectName { digest: Digest::of(&bytes), format: ImageFormat::Jpeg };
    assert!(matches!(store.put_object(name, bytes).await, Err(StoreError::Full(_))));
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), None);
}

#[tokio::test]
async fn what_cannot_be_read_is_not_absent() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, _) = picture(ImageFormat::Jpeg, 1, 30);
    let key = CacheKey::of(b"x", 1, 1);
    // A folder can be opened and not read; a link to itself cannot even be opened.
    for linked in [false, true] {
        for path in [name.path(), Record::path("space", key)].map(|path| fixture.path(&path)) {
            if linked {
                fs::remove_dir(&path).unwrap();
                std::os::unix::fs::symlink(&path, &path).unwrap();
            } else {
                fs::create_dir_all(&path).unwrap();
            }
        }
        assert!(matches!(store.object(name, u64::MAX).await, Err(StoreError::Unavailable(_))));
        assert!(matches!(store.record("space", key).await, Err(StoreError::Unavailable(_))));
        let put = store.put_record(&record("space", key, 0, "red")).await;
        assert!(matches!(put, Err(StoreError::Unavailable(_))));
    }
}

#[tokio::test]
async fn in_a_volume_that_went_away_nothing_is_absent_and_nothing_is_kept() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 30);
    let key = CacheKey::of(b"x", 1, 1);
    store.check_room().await.unwrap();
    for folder in ["results", "records", "tmp"] {
        fs::remove_dir_all(fixture.path(folder)).unwrap();
        // The proof of a moment ago does not hide it.
        assert!(matches!(store.check_room().await, Err(StoreError::Unavailable(_))), "{folder}");
        if folder == "records" {
            let put = store.put_record(&record("space", key, 0, "red")).await;
            assert!(matches!(put, Err(StoreError::Unavailable(_))));
        }
    }
    assert!(matches!(store.object(name, u64::MAX).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.record("space", key).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.put_object(name, bytes).await, Err(StoreError::Unavailable(_))));
    assert_eq!(names(fixture.0.path()), [""; 0]);
}

#[tokio::test]
async fn a_folder_of_records_that_was_removed_is_made_again() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let wanted = record("space", CacheKey::of(b"x", 1, 1), 0, "red");
    store.put_record(&wanted).await.unwrap();
    fs::remove_dir_all(fixture.path("records/space")).unwrap();
    assert!(matches!(store.put_record(&wanted).await, Err(StoreError::Unavailable(_))));
    assert_eq!(store.put_record(&wanted).await.unwrap(), wanted);
    assert_eq!(store.record("space", wanted.key).await.unwrap(), Some(wanted));
}

#[tokio::test]
async fn without_the_wanted_free_space_there_is_no_room() {
    let fixture = LocalFixture::new();
    assert!(matches!(
        LocalStore::open_with(fixture.0.path(), u64::MAX, OBJECT_READS).unwrap().check_room().await,
        Err(StoreError::Full(_))
    ));
}

#[test]
fn errors_of_a_full_disk_are_told_from_others() {
    let kind = |code| failed("write", "results/x")(io::Error::from_raw_os_error(code));
    for full in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        assert!(matches!(kind(full.raw_os_error()), StoreError::Full(_)));
    }
    for other in [rustix::io::Errno::IO, rustix::io::Errno::ROFS, rustix::io::Errno::ACCESS] {
        let error = kind(other.raw_os_error());
        assert!(
            matches!(&error, StoreError::Unavailable(text) if text.contains("write results/x")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn reads_beyond_the_bound_wait_and_a_reader_that_leaves_frees_its_place() {
    let fixture = LocalFixture::new();
    let store = LocalStore::open_with(fixture.0.path(), 0, 1).unwrap();
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 1 << 20);
    store.put_object(name, bytes.clone()).await.unwrap();

    let taken = Arc::clone(&store.reads).acquire_owned().await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(100), store.object(name, u64::MAX)).await;
    assert!(waits.is_err(), "a second read began");
    drop(taken);

    let mut leaves = store.object(name, u64::MAX);
    std::future::poll_fn(|context| std::task::Poll::Ready(leaves.as_mut().poll(context).is_pending())).await;
    drop(leaves);
    assert_eq!(store.object(name, u64::MAX).await.unwrap(), Some(bytes));
}

#[tokio::test]
async fn a_put_that_has_begun_is_finished_without_its_caller() {
    let fixture = LocalFixture::new();
    let store = fixture.local();
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 1 << 20);
    let mut put = store.put_object(name, bytes.clone());
    std::future::poll_fn(|context| std::task::Poll::Ready(put.as_mut().poll(context).is_pending())).await;
    drop(put);
    let appears = async {
        loop {
            if let Some(read) = store.object(name, u64::MAX).await.unwrap() {
                return read;
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), appears).await.unwrap() == bytes);
}
