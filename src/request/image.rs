//! A form's picture while it arrives ([`ImageBuffer`]): hashed on the way, in memory while there is room,
//! then in a file.

use super::RequestError;
use crate::base::key::KeyHasher;
use crate::request::uploads::{Picture, Share, SpillFile, UploadRoom};

pub(super) struct ImageBuffer {
    room: UploadRoom,
    /// The bytes in memory, which follow those in the file.
    bytes: Vec<u8>,
    /// The share of `bytes`; smaller once memory was refused, until they are written.
    memory: Share,
    /// Memory was refused: all further bytes go to the file.
    is_refused: bool,
    file: Option<SpillFile>,
    length: usize,
    hasher: KeyHasher,
    hashed: usize,
    max: usize,
    declared: Option<usize>,
}

impl ImageBuffer {
    /// BLAKE3 is fastest on pieces of this size, and they are still in the CPU's cache.
    const HASH_PIECE: usize = 64 * 1024;
    /// First reservation for an image of undeclared length.
    const FIRST_RESERVE: usize = 64 * 1024;

    pub(super) fn new(max: usize, declared: Option<usize>, room: UploadRoom) -> Self {
        Self {
            memory: room.memory(),
            room,
            bytes: Vec::new(),
            is_refused: false,
            file: None,
            length: 0,
            hasher: KeyHasher::default(),
            hashed: 0,
            max,
            declared,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.length += piece.len();
        if self.length > self.max {
            return Err(RequestError::ImageTooLarge { max: self.max });
        }
        self.is_refused = self.is_refused || !self.memory.grow_to(self.length as u64);
        if !self.is_refused {
            self.reserve();
        }
        self.bytes.extend_from_slice(piece);
        let whole = (self.bytes.len() - self.hashed) / Self::HASH_PIECE * Self::HASH_PIECE;
        self.hash_to(self.hashed + whole);
        Ok(())
    }

    /// Reserves the declared length at once, because unwritten memory costs nothing; doubles if there is
    /// none, or a false one. Reserves at most `max`.
    fn reserve(&mut self) {
        if self.length > self.bytes.capacity() {
            let wanted = match self.declared.take() {
                Some(declared) => declared,
                None => Self::FIRST_RESERVE.max(2 * self.bytes.capacity()),
            };
            self.bytes.reserve_exact(wanted.min(self.max).max(self.length) - self.bytes.len());
        }
    }

    fn hash_to(&mut self, end: usize) {
        if end > self.hashed {
            self.hasher.update(&self.bytes[self.hashed..end]);
            self.hashed = end;
        }
    }

    /// Writes to the file what memory has no room for; called after each piece of the body.
    pub(super) async fn settle(&mut self) -> Result<(), RequestError> {
        if self.is_refused && !self.bytes.is_empty() {
            self.hash_to(self.bytes.len());
            self.hashed = 0;
            let bytes = std::mem::take(&mut self.bytes);
            let memory = std::mem::replace(&mut self.memory, self.room.memory());
            self.file = Some(self.room.spill(self.file.take(), bytes, memory).await?);
        }
        Ok(())
    }

    /// The picture must not be empty.
    pub(super) async fn finish(mut self) -> Result<(KeyHasher, Picture), RequestError> {
        self.settle().await?;
        self.hash_to(self.bytes.len());
        let picture = match self.file {
            Some(file) => self.room.in_file(file),
            None => Picture::in_memory(self.bytes, self.memory),
        };
        Ok((self.hasher, picture))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// The capacity after each piece, and what came of it.
    fn capacities(max: usize, declared: Option<usize>, pieces: &[usize]) -> (Vec<usize>, bool) {
        let room = UploadRoom::in_memory(1 << 30);
        let mut image = ImageBuffer::new(max, declared, room.clone());
        let mut capacities = vec![image.bytes.capacity()];
        for piece in pieces {
            let piece: Vec<u8> = (0..*piece).map(|n| n as u8).collect();
            if image.push(&piece).is_err() {
                return (capacities, false);
            }
            capacities.push(image.bytes.capacity());
            assert!(image.bytes.len() - image.hashed < ImageBuffer::HASH_PIECE, "hashing lags behind");
            assert_eq!(room.load().memory, image.bytes.len() as u64, "what has come counts, and no more");
        }
        let whole = image.bytes.clone();
        let (hasher, picture) = image.finish().now_or_never().expect("memory is there").expect("and room");
        assert_eq!(picture.whole().expect("in memory"), whole);
        assert_eq!(hasher.finish(1, 2).1, crate::base::key::CacheKey::of(&whole, 1, 2));
        (capacities, true)
    }

    #[test]
    fn no_more_is_reserved_than_declared_or_allowed_or_twice_what_came() {
        const MIB: usize = 1 << 20;
        let steps = &[1, MIB / 4, MIB / 4];
        // As declared, in one go and without another allocation.
        assert_eq!(capacities(4 * MIB, Some(MIB), steps).0, [0, MIB, MIB, MIB]);
        // More declared than allowed.
        assert_eq!(capacities(MIB, Some(9 * MIB), steps).0, [0, MIB, MIB, MIB]);
        // Less declared than sent, which a server does not let happen.
        assert_eq!(capacities(4 * MIB, Some(10), steps).0, [0, 10, MIB / 4 + 1, MIB / 2 + 2]);
        // Nothing declared: doubled.
        assert_eq!(capacities(4 * MIB, None, steps).0, [0, 65_536, MIB / 4 + 1, MIB / 2 + 2]);
        assert_eq!(capacities(70_000, None, &[65_536, 1]).0, [0, 65_536, 70_000]);
        assert_eq!(capacities(100, None, &[50, 50]), (vec![0, 100, 100], true));
        // Nothing is kept of what is over the limit.
        assert_eq!(capacities(100, None, &[50, 51]), (vec![0, 100], false));
        assert_eq!(capacities(100, Some(1000), &[101]), (vec![0], false));
    }

    #[test]
    fn the_hash_does_not_depend_on_the_pieces() {
        for piece in [1, 1000, 65_535, 65_536, 65_537, 200_000] {
            let (_, is_accepted) = capacities(300_000, None, &vec![piece; 200_000 / piece]);
            assert!(is_accepted);
        }
    }
}
