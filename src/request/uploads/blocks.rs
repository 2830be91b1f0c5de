//! The bytes of an upload in the blocks that they arrived in ([`Blocks`]).

use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem::Finder;

use crate::base::picture::Source;

/// Blocks end at multiples of this length, on which BLAKE3 is fastest; the first may end before.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;

#[derive(Clone)]
pub struct Blocks {
    /// None is empty.
    blocks: Arc<[Bytes]>,
    length: usize,
}

impl Blocks {
    /// All but the first and the last must end at a multiple of [`BLOCK_BYTES`].
    pub(crate) fn new(blocks: Vec<Bytes>) -> Self {
        Self { length: blocks.iter().map(Bytes::len).sum(), blocks: blocks.into() }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The block with the byte at `at`, and where it begins.
    fn block(&self, at: usize) -> Option<(&Bytes, usize)> {
        let first = self.blocks.first()?;
        if at < first.len() {
            return Some((first, 0));
        }
        // A short first block shares its multiple with the second.
        let index = at / BLOCK_BYTES + usize::from(first.len() < BLOCK_BYTES);
        let start = first.len().max(at / BLOCK_BYTES * BLOCK_BYTES);
        self.blocks.get(index).filter(|block| at - start < block.len()).map(|block| (block, start))
    }

    /// The bytes from `at` to the end of their block, at most `most`; empty behind the end.
    pub(super) fn piece(&self, at: usize, most: usize) -> Bytes {
        self.block(at).map_or_else(Bytes::new, |(block, start)| {
            let from = at - start;
            block.slice(from..block.len().min(from + most))
        })
    }

    /// The bytes by which formats are recognised, with zeros behind a short file.
    pub(crate) fn start(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.byte(at).unwrap_or(0))
    }

    /// Copies the bytes, unless they are one block.
    pub(super) fn whole(&self) -> Bytes {
        match &*self.blocks {
            [block] => block.clone(),
            blocks => blocks.concat().into(),
        }
    }

    pub(super) fn contain(&self, needle: &Finder<'_>) -> bool {
        let overlap = needle.needle().len().saturating_sub(1);
        // The last bytes before a block, and then the first of it.
        let mut joint: Vec<u8> = Vec::new();
        self.blocks.iter().any(|block| {
            joint.extend_from_slice(&block[..block.len().min(overlap)]);
            let is_found = needle.find(&joint).is_some() || needle.find(block).is_some();
            if block.len() > overlap {
                joint.clear();
                joint.extend_from_slice(&block[block.len() - overlap..]);
            } else {
                joint.drain(..joint.len().saturating_sub(overlap));
            }
            is_found
        })
    }
}

impl Source for Blocks {
    fn byte(&self, at: usize) -> Option<u8> {
        let (block, start) = self.block(at)?;
        block.get(at - start).copied()
    }
}

impl From<Bytes> for Blocks {
    fn from(bytes: Bytes) -> Self {
        Self::new(vec![bytes])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As an upload has them: the first ends anywhere, the others at multiples.
    fn blocks(bytes: &[u8], first: usize) -> Blocks {
        let (first, rest) = bytes.split_at(first.min(bytes.len()));
        let (second, rest) = rest.split_at((BLOCK_BYTES - first.len()).min(rest.len()));
        let all = [first, second].into_iter().chain(rest.chunks(BLOCK_BYTES));
        Blocks::new(all.filter(|block| !block.is_empty()).map(Bytes::copy_from_slice).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn blocks_have_the_bytes_of_the_whole(
            length in 1_usize..200_000,
            first in 1..=BLOCK_BYTES,
            at in 0_usize..200_000,
            needle in 1_usize..80,
        ) {
            let bytes: Vec<u8> = (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
            let blocks = blocks(&bytes, first);
            prop_assert_eq!(blocks.len(), length);
            prop_assert_eq!(&blocks.whole()[..], &bytes[..]);
            for at in [at, 0, first - 1, first, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES, length - 1, length] {
                prop_assert_eq!(blocks.byte(at), bytes.get(at).copied(), "byte {}", at);
                let piece = blocks.piece(at, 1000);
                prop_assert_eq!(&piece[..], &bytes[at.min(length)..(at + piece.len()).min(length)]);
                prop_assert_eq!(piece.is_empty(), at >= length);
                // A text across the end of a block, and one that is not there.
                let from = at.saturating_sub(needle / 2).min(length - 1);
                let mut text = bytes[from..(from + needle).min(length)].to_vec();
                prop_assert!(blocks.contain(&Finder::new(&text)));
                text.extend_from_slice(b"\0absent\0");
                prop_assert!(!blocks.contain(&Finder::new(&text)));
            }
        }
    }

    #[test]
    fn text_over_more_than_two_blocks_is_found() {
        let parts = ["a", "bc", "d", "efgh", "i"].map(|part| Bytes::from_static(part.as_bytes()));
        let blocks = Blocks { length: 9, blocks: parts.into() };
        for text in ["abcdefghi", "cde", "bcdef", "hi", "i", "a"] {
            assert!(blocks.contain(&Finder::new(text)), "{text}");
        }
        assert!(!blocks.contain(&Finder::new("ad")) && !blocks.contain(&Finder::new("abcdefghij")));
    }
}
