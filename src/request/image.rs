//! A form's picture while it arrives ([`ImageBuffer`]): in blocks of memory while there is room, then in a file. Each
//! block is hashed when it is full, while it is still in the CPU's cache.

use bytes::Bytes;

use super::RequestError;
use crate::base::key::KeyHasher;
use crate::base::permits::Permit;
use crate::request::uploads::{BLOCK_BYTES, Blocks, Picture, SpillFile, UploadRoom};

/// The first block has a multiple of this length, so that a client that sends little takes little.
const PAGE_BYTES: usize = 4096;

pub(super) struct ImageBuffer {
    room: UploadRoom,
    /// Full blocks, which follow the bytes in the file.
    blocks: Vec<Bytes>,
    /// The block that grows, never beyond `block_bytes`, and its permit unless memory was refused.
    last: Vec<u8>,
    block_bytes: usize,
    memory: Permit,
    /// Memory was refused: all further bytes go to the file.
    is_refused: bool,
    file: Option<SpillFile>,
    length: usize,
    hasher: KeyHasher,
    max: usize,
}

impl ImageBuffer {
    pub(super) fn new(max: usize, room: UploadRoom) -> Self {
        Self {
            memory: room.memory(),
            room,
            blocks: Vec::new(),
            last: Vec::new(),
            block_bytes: 0,
            is_refused: false,
            file: None,
            length: 0,
            hasher: KeyHasher::default(),
            max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, mut piece: &[u8]) -> Result<(), RequestError> {
        if piece.len() > self.max - self.length {
            return Err(RequestError::ImageTooLarge { max: self.max });
        }
        while !piece.is_empty() {
            if self.last.len() == self.block_bytes {
                self.close_block();
                self.open_block(piece.len());
            }
            let (fits, rest) = piece.split_at(piece.len().min(self.block_bytes - self.last.len()));
            self.last.extend_from_slice(fits);
            self.length += fits.len();
            piece = rest;
        }
        Ok(())
    }

    /// The declared length is not reserved: it may never arrive.
    fn open_block(&mut self, wanted: usize) {
        self.block_bytes = match self.length {
            0 => wanted.next_multiple_of(PAGE_BYTES).min(BLOCK_BYTES),
            length => BLOCK_BYTES - length % BLOCK_BYTES,
        };
        self.is_refused = self.is_refused || !self.memory.grow_to(self.block_bytes as u64);
        self.last.reserve_exact(self.block_bytes);
    }

    fn close_block(&mut self) {
        self.block_bytes = 0;
        if !self.last.is_empty() {
            self.hasher.update(&self.last);
            let memory = std::mem::replace(&mut self.memory, self.room.memory());
            self.blocks.push(memory.hold(std::mem::take(&mut self.last)));
        }
    }

    /// Writes to the file what memory has no room for; called after each piece of the body.
    pub(super) async fn settle(&mut self) -> Result<(), RequestError> {
        if self.is_refused {
            self.close_block();
            let blocks = std::mem::take(&mut self.blocks);
            if !blocks.is_empty() {
                self.file = Some(self.room.spill(self.file.take(), blocks).await?);
            }
        }
        Ok(())
    }

    /// The picture must not be empty.
    pub(super) async fn finish(mut self) -> Result<(KeyHasher, Picture), RequestError> {
        self.settle().await?;
        self.close_block();
        let picture = match self.file {
            Some(file) => self.room.in_file(file),
            None => Picture::in_memory(Blocks::new(self.blocks)),
        };
        Ok((self.hasher, picture))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// What memory counts after each piece, and whether all were accepted.
    fn counted(max: usize, pieces: &[usize]) -> (Vec<u64>, bool) {
        let room = UploadRoom::in_memory(1 << 30);
        let mut image = ImageBuffer::new(max, room.clone());
        let (mut counted, mut whole) = (Vec::new(), Vec::new());
        for piece in pieces {
            let piece: Vec<u8> = (0..*piece).map(|n| n as u8).collect();
            if image.push(&piece).is_err() {
                return (counted, false);
            }
            whole.extend_from_slice(&piece);
            let taken = image.blocks.iter().map(Bytes::len).sum::<usize>() + image.last.capacity();
            assert_eq!(room.load().memory, taken as u64, "blocks count with their real size");
            counted.push(room.load().memory);
        }
        let (hasher, picture) = image.finish().now_or_never().expect("memory is there").expect("and room");
        assert_eq!(picture.whole().expect("in memory"), whole);
        assert_eq!(hasher.finish(1, 2).1, crate::base::key::CacheKey::of(&whole, 1, 2));
        drop(picture);
        assert_eq!(room.load().memory, 0);
        (counted, true)
    }

    #[test]
    fn blocks_are_taken_as_bytes_arrive_and_none_beyond_the_limit() {
        const KIB: u64 = 1024;
        assert_eq!(counted(1 << 20, &[1, 4095, 1, 100]).0, [4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB]);
        assert_eq!(counted(1 << 20, &[8000, 50_000, 100_000]).0, [8 * KIB, 64 * KIB, 192 * KIB]);
        assert_eq!(counted(1 << 20, &[1 << 20]).0, [1024 * KIB]);
        assert_eq!(counted(100, &[50, 50]), (vec![4 * KIB, 4 * KIB], true));
        assert_eq!(counted(100, &[50, 51]), (vec![4 * KIB], false));
        assert_eq!(counted(100, &[101]), (vec![], false));
    }

    #[test]
    fn hash_does_not_depend_on_the_pieces() {
        for piece in [1, 1000, 4095, 65_535, 65_536, 65_537, 200_000] {
            let (_, is_accepted) = counted(300_000, &vec![piece; 200_000 / piece]);
            assert!(is_accepted);
        }
    }
}
