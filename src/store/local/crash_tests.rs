//! Death at each named point of keeping a result, and what the next process finds.
//!
//! SIGKILL loses nothing the kernel already has, so these show what is visible when; that it would
//! also survive a power cut rests on the order of the syncs.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::base::picture::ImageFormat;
use crate::testing::store_contract::{picture, record};

/// Tells the child where to work.
const FOLDER: &str = "GRANARY_CRASH_TEST_FOLDER";

fn key() -> CacheKey {
    CacheKey::of(b"crash", 1, 1)
}

fn open(folder: &Path) -> LocalStore {
    LocalStore::open_with(folder, 0, OBJECT_READS).unwrap()
}

/// What a fill does, and a refresh after it.
async fn keep_all(store: &LocalStore) {
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 100_000);
    store.put_object(name, bytes).await.unwrap();
    for generation in 0..2 {
        store.put_record(&record("space", key(), generation, "red")).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "the child of the test below, of no use alone"]
async fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        keep_all(&open(Path::new(&folder))).await;
    }
}

#[tokio::test]
async fn after_a_death_at_any_point_there_is_a_whole_file_or_none_and_the_work_can_be_repeated() {
    let (name, bytes) = picture(ImageFormat::Jpeg, 1, 100_000);
    for (point, object, generation) in [
        ("CP17", false, None),
        ("CP18", false, None),
        ("CP19", true, None),
        ("CP20", true, None),
        ("CP23", true, None),
        ("CP25", true, None),
        ("CP26", true, Some(0)),
        ("CP23:2", true, Some(0)),
        ("CP25:2", true, Some(0)),
        ("CP26:2", true, Some(1)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let died = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::local::crash_tests::child", "--ignored", "--nocapture"])
            .env("GRANARY_CRASH_AT", point)
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let line = format!("crash point {}\n", &point[..4]);
        assert!(String::from_utf8_lossy(&died.stderr).contains(&line), "{point} was not reached");
        assert_eq!(died.status.code(), None, "{point}: not killed");

        let names = |below: &str| {
            let entries = std::fs::read_dir(folder.path().join(below)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names("").len(), 3, "{point}: {:?}", names(""));
        let strange = names("results").into_iter().find(|file| ObjectName::parse(file) != Some(name));
        assert_eq!(strange, None, "{point}: a half object could be served");

        let store = open(folder.path());
        assert_eq!(names("tmp"), [""; 0], "{point}: orphans");
        assert!(
            store.object(name, u64::MAX).await.unwrap() == object.then(|| bytes.clone()),
            "{point}: object"
        );
        let found = store.record("space", key()).await.unwrap().map(|record| record.generation);
        assert_eq!(found, generation, "{point}: record");
        keep_all(&store).await;
        assert!(store.object(name, u64::MAX).await.unwrap().as_ref() == Some(&bytes));
        assert_eq!(store.record("space", key()).await.unwrap().map(|record| record.generation), Some(1));
        assert_eq!(names("tmp"), [""; 0]);
    }
}
