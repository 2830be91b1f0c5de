//! Uploads that share too little memory: what each means does not depend on who was refused it, or when.

use futures_util::future::join_all;

use super::*;
use crate::request::uploads::UploadConfig;

/// A body whose pieces come one at a time, with others between them.
struct Turns(Pieces<'static>, bool);

impl Body for Turns {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.1 = !self.1;
        if self.1 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

fn room_of(memory: u64, spill: u64) -> (tempfile::TempDir, UploadRoom) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = UploadConfig { memory, spill, folder: folder.path().join("uploads"), min_free: 0 };
    (folder, UploadRoom::open(config).expect("a writable folder"))
}

/// Reads all of them at once, in one room.
fn read_together(bodies: &[Vec<u8>], cuts: &[Vec<Index>], room: &UploadRoom) -> Vec<Result<Seen, String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let reading = bodies.iter().zip(cuts).map(|(body, cuts)| {
        let body = Turns(pieces_cut(body, cuts), false);
        let head = head_of("b", None, RequestLimits::default());
        async move { super::super::read(head, body, room).await }
    });
    let read = runtime.block_on(join_all(reading));
    read.into_iter().map(seen).collect()
}

#[test]
fn an_upload_without_any_room_is_refused_and_not_for_its_own_fault() {
    let (_folder, room) = room_of(10, 20);
    let refused = read_together(&[form("b", &good())], &[Vec::new()], &room);
    assert_eq!(refused, [Err("NoRoom".to_owned())]);
    assert_eq!(room.load().refused, 1);
    assert_eq!(room.load().memory, 0);
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn key_and_picture_are_the_same_whoever_is_refused_memory(
        images in vec(picture(), 1..4),
        memory in prop_oneof![Just(0_u64), 1..2000_u64, 0..400_000_u64],
        cuts in vec(vec(any::<Index>(), 0..8), 4),
        turn in 0..3_usize,
    ) {
        let (_folder, room) = room_of(memory, 10 << 20);
        let bodies: Vec<_> = images.iter().map(|image| {
            let mut parts = [part("image", image), number("width", "17"), number("height", "18")];
            parts.rotate_left(turn);
            form("b", &parts)
        }).collect();
        for (result, image) in read_together(&bodies, &cuts, &room).into_iter().zip(&images) {
            let result = result.expect("there is room on the disk");
            prop_assert_eq!(result.key, CacheKey::of(image, 17, 18));
            prop_assert_eq!(&result.image[..], &image[..]);
        }
        let load = room.load();
        prop_assert_eq!((load.memory, load.refused), (0, 0));
        prop_assert!(load.spilled > 0 || images.iter().map(Vec::len).max() <= Some(memory as usize));
    }
}
