//! That what is taken is counted exactly, for as long as it is taken, and that no file remains.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::TempDir;

use super::*;

/// Room below a folder of its own.
struct Fixture {
    folder: TempDir,
    room: UploadRoom,
}

impl Fixture {
    fn new(memory: u64, spill: u64) -> Self {
        Self::leaving(memory, spill, 0)
    }

    fn leaving(memory: u64, spill: u64, min_free: u64) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("state/uploads");
        let room = UploadRoom::open(UploadConfig { memory, spill, folder: path, min_free });
        Self { room: room.expect("a writable folder"), folder }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("state/uploads")
    }

    /// What is taken of memory and of the disk.
    fn taken(&self) -> (u64, u64) {
        let load = self.room.load();
        (load.memory, load.spill)
    }

    /// A block that holds its permit.
    fn counted(&self, bytes: Vec<u8>) -> Bytes {
        let mut permit = self.room.memory();
        assert!(permit.grow_to(bytes.len() as u64), "memory is there");
        permit.hold(bytes)
    }

    async fn spilled(&self, pieces: &[&[u8]]) -> Result<Picture, NoRoom> {
        let mut file = None;
        for piece in pieces {
            file = Some(self.room.spill(file, vec![self.counted(piece.to_vec())]).await?);
        }
        Ok(self.room.in_file(file.expect("at least one piece")))
    }

    async fn is_empty_soon(&self) {
        let empty = async {
            while self.taken() != (0, 0) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let left = tokio::time::timeout(Duration::from_secs(20), empty).await;
        assert!(left.is_ok(), "still taken: {:?}", self.taken());
    }
}

fn names(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("the folder").count()
}

async fn collected(picture: &Picture) -> io::Result<Vec<u8>> {
    let (mut pieces, mut all) = (Box::pin(picture.pieces()), Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        assert!((1..=64 * 1024).contains(&piece.len()));
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[tokio::test]
async fn memory_counts_until_the_last_slice_is_dropped() {
    let fixture = Fixture::new(1000, 0);
    let picture = Picture::from(fixture.counted(noise(900)));
    let other = picture.clone();
    let slice = picture.whole().expect("memory").slice(100..200);
    let piece = Box::pin(other.pieces()).next().await;
    drop((picture, other));
    assert_eq!(fixture.taken(), (900, 0));
    drop(piece);
    assert_eq!(fixture.taken(), (900, 0));
    drop(slice);
    assert_eq!(fixture.taken(), (0, 0));
}

#[tokio::test]
async fn a_spilled_picture_is_what_came_and_has_no_name() {
    let fixture = Fixture::new(1 << 20, 1 << 20);
    let all = noise(200_001);
    let picture = fixture.spilled(&[&all[..1], &all[1..70_000], &all[70_000..]]).await.expect("room");
    assert_eq!(fixture.taken(), (0, 200_001));
    assert_eq!(names(&fixture.path()), 0, "a file of a killed process must not remain");
    assert_eq!(picture.len(), all.len());
    assert_eq!(collected(&picture).await.expect("readable"), all);
    assert_eq!(picture.whole().expect("readable"), all);
    assert!(picture.contains(&all[131_000..131_100]).await.expect("readable"));
    assert!(!picture.contains(b"it is not there").await.expect("readable"));
    let copy = picture.clone();
    let mut pieces = Box::pin(copy.pieces());
    drop((picture, copy));
    assert!(pieces.next().await.is_some());
    assert_eq!(fixture.taken(), (0, 200_001), "it is being read");
    drop(pieces);
    fixture.is_empty_soon().await;
    assert_eq!(fixture.room.load().spilled, 1);
}

#[tokio::test]
async fn what_neither_has_room_for_is_refused_and_leaves_nothing() {
    // One party may take seven eighths.
    let fixture = Fixture::new(1000, 1720);
    let kept = fixture.spilled(&[&noise(1000)]).await.expect("room");
    assert_eq!(fixture.spilled(&[&noise(500), &noise(10)]).await.err(), Some(NoRoom));
    let other = UploadRoom { party: Party::new("other"), ..fixture.room.clone() };
    let block = fixture.counted(noise(100));
    drop(other.spill(None, vec![block]).await.expect("room for another party"));
    drop(kept);
    fixture.is_empty_soon().await;
    fixture.spilled(&[&noise(1000), &noise(500)]).await.expect("room again");
    assert_eq!(fixture.room.load().refused, 1);

    let block = Fixture::new(10, 0).counted(vec![1]);
    assert!(UploadRoom::in_memory(10).spill(None, vec![block]).await.is_err(), "no files at all");
}

#[tokio::test]
async fn a_disk_that_fails_or_is_full_refuses_and_gives_the_room_back() {
    let fixture = Fixture::leaving(1000, 1500, u64::MAX / 2);
    assert!(fixture.spilled(&[b"x"]).await.is_err(), "what must stay free is not there");
    fixture.is_empty_soon().await;

    let fixture = Fixture::new(1000, 1500);
    std::fs::remove_dir(fixture.path()).expect("it is empty");
    assert!(fixture.spilled(&[b"x"]).await.is_err());
    fixture.is_empty_soon().await;
}

#[tokio::test]
async fn a_file_that_was_cut_is_an_error_and_no_shorter_picture() {
    let fixture = Fixture::new(1 << 20, 1 << 20);
    let picture = fixture.spilled(&[&noise(100_000)]).await.expect("room");
    let opened = std::fs::read_dir("/proc/self/fd").expect("this is Linux").flatten();
    let ours = opened
        .map(|entry| entry.path())
        .find(|path| std::fs::read_link(path).is_ok_and(|target| target.starts_with(fixture.path())));
    let file = std::fs::OpenOptions::new().write(true).open(ours.expect("it is open")).expect("a file");
    file.set_len(70_000).expect("it can be cut");
    assert!(collected(&picture).await.is_err());
    assert!(picture.whole().is_err());
    assert!(picture.show(Blocks::len).await.is_err());
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let fixture = Fixture::new(1, 1);
    std::fs::write(fixture.path().join(crate::base::disk::temp_name()), "half").expect("a writable folder");
    let again = UploadConfig { memory: 1, spill: 1, folder: fixture.path(), min_free: 0 };
    UploadRoom::open(again).expect("as before");
    assert_eq!(names(&fixture.path()), 0);
}

#[tokio::test]
async fn a_picture_that_is_no_upload_takes_no_room() {
    let picture = Picture::from(Bytes::from_static(b"picture"));
    assert_eq!(collected(&picture).await.expect("memory"), b"picture");
}
