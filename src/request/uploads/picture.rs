//! A client's picture, in memory or in a spill file ([`Picture`]).

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use memchr::memmem::Finder;
use tokio::sync::Semaphore;

use super::blocks::{BLOCK_BYTES, Blocks};
use super::spill::SpillFile;

/// The bytes of a picture, and the room they take. Cheap to clone.
#[derive(Clone)]
pub struct Picture(Content);

#[derive(Clone)]
enum Content {
    /// Its blocks own their permits, if it is an upload.
    Memory(Blocks),
    File(Arc<Spilled>),
}

struct Spilled {
    file: SpillFile,
    turns: Arc<Semaphore>,
}

impl Picture {
    pub(crate) fn in_memory(blocks: Blocks) -> Self {
        Self(Content::Memory(blocks))
    }

    /// `turns` limits the threads that read whole files.
    pub(super) fn in_file(file: SpillFile, turns: Arc<Semaphore>) -> Self {
        Self(Content::File(Arc::new(Spilled { file, turns })))
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty picture is refused before it is one")]
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Memory(blocks) => blocks.len(),
            Content::File(spilled) => spilled.file.len(),
        }
    }

    /// The whole picture in one piece. May block on the disk, and may take memory that is not counted: the caller
    /// bounds how many do so at once.
    pub fn whole(&self) -> io::Result<Bytes> {
        match &self.0 {
            Content::Memory(blocks) => Ok(blocks.whole()),
            Content::File(spilled) => spilled.read(0, spilled.file.len()),
        }
    }

    /// Calls `look` with the whole picture: for a spilled one on a blocking thread, few at a time.
    pub async fn show<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Blocks) -> T + Send + 'static,
    ) -> io::Result<T> {
        match &self.0 {
            Content::Memory(blocks) => Ok(look(blocks)),
            Content::File(spilled) => {
                let spilled = spilled.clone();
                let turn =
                    spilled.turns.clone().acquire_owned().await.expect("the semaphore is never closed");
                // Allocated and freed here, because the allocator keeps freed memory for each thread.
                let mut bytes = vec![0; spilled.file.len()];
                let shown = move || {
                    let read = spilled.file.read_at(&mut bytes, 0);
                    let blocks = Blocks::from(Bytes::from(bytes));
                    (read.map(|()| look(&blocks)), blocks, turn)
                };
                tokio::task::spawn_blocking(shown).await?.0
            }
        }
    }

    pub async fn contains(&self, needle: &[u8]) -> io::Result<bool> {
        let finder = Finder::new(needle).into_owned();
        self.show(move |blocks| blocks.contain(&finder)).await
    }

    /// The bytes in pieces, none empty, of at most 64 KiB: slices of memory, or reads on a blocking thread.
    pub fn pieces(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        stream::unfold((self.clone(), 0), |(picture, at)| async move {
            let length = BLOCK_BYTES.min(picture.len() - at);
            if length == 0 {
                return None;
            }
            let piece = match &picture.0 {
                Content::Memory(blocks) => Ok(blocks.piece(at, length)),
                Content::File(spilled) => {
                    let spilled = spilled.clone();
                    let read = tokio::task::spawn_blocking(move || spilled.read(at, length)).await;
                    read.unwrap_or_else(|error| Err(error.into()))
                }
            };
            let read = piece.as_ref().map_or(0, Bytes::len);
            Some((piece, (picture, at + read)))
        })
    }
}

impl From<Bytes> for Picture {
    /// A picture that is no upload takes no room.
    fn from(bytes: Bytes) -> Self {
        Self::in_memory(bytes.into())
    }
}

impl Spilled {
    fn read(&self, at: usize, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.file.read_at(&mut bytes, at)?;
        Ok(bytes.into())
    }
}
