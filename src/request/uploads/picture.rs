//! A client's picture, wherever its bytes are: [`Picture`].

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use memchr::memmem::Finder;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::quota::Share;
use super::spill::SpillFile;

/// How much of a picture is handed on at once.
const PIECE_BYTES: usize = 64 * 1024;

/// The bytes of a picture, and the room they take for as long as anybody has them. Cheap to clone.
#[derive(Clone)]
pub struct Picture(Content);

#[derive(Clone)]
enum Content {
    /// With its share inside, if it is an upload.
    Memory(Bytes),
    File(Arc<Spilled>),
}

/// A picture in a spill file, which nothing is written to any more.
pub(super) struct Spilled {
    file: SpillFile,
    turns: Arc<Semaphore>,
}

/// Bytes and the memory they are counted against: a slice of them keeps both.
struct Counted {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Picture {
    pub(crate) fn in_memory(bytes: Vec<u8>, share: Share) -> Self {
        Self(Content::Memory(Bytes::from_owner(Counted { bytes, _share: share })))
    }

    pub(super) fn in_file(spilled: Spilled) -> Self {
        Self(Content::File(Arc::new(spilled)))
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty picture is refused before it is one")]
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Memory(bytes) => bytes.len(),
            Content::File(spilled) => spilled.file.len(),
        }
    }

    /// All of it, in memory. May block on the disk, and a spilled one then takes memory that is not
    /// counted: the caller bounds how many do at once.
    pub fn whole(&self) -> io::Result<Bytes> {
        match &self.0 {
            Content::Memory(bytes) => Ok(bytes.clone()),
            Content::File(spilled) => spilled.read(0, spilled.file.len()),
        }
    }

    /// What `look` sees in all of it: one in memory is shown here and now, a spilled one on a thread that
    /// may block, few at a time.
    pub async fn show<T: Send + 'static>(
        &self,
        look: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> io::Result<T> {
        match &self.0 {
            Content::Memory(bytes) => Ok(look(bytes)),
            Content::File(spilled) => {
                let spilled = spilled.clone();
                let turn = spilled.turns.clone().acquire_owned().await;
                // Allocated and freed here: what many threads have allocated once, the allocator keeps
                // for each of them.
                let mut bytes = vec![0; spilled.file.len()];
                let shown = move || {
                    let turn = turn.expect("the semaphore is never closed");
                    let shown = spilled.file.read_at(&mut bytes, 0).map(|()| look(&bytes));
                    (shown, bytes, turn)
                };
                let (shown, bytes, turn) = tokio::task::spawn_blocking(shown).await?;
                drop((bytes, turn));
                shown
            }
        }
    }

    /// Does `needle` occur in it?
    pub async fn contains(&self, needle: &[u8]) -> io::Result<bool> {
        let finder = Finder::new(needle).into_owned();
        self.show(move |bytes| finder.find(bytes).is_some()).await
    }

    /// Its bytes from the first to the last, piece by piece.
    pub fn pieces(&self) -> PicturePieces {
        PicturePieces { content: self.0.clone(), at: 0, reading: None }
    }
}

impl From<Bytes> for Picture {
    /// One that is no upload, and takes no room of theirs.
    fn from(bytes: Bytes) -> Self {
        Self(Content::Memory(bytes))
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.0 {
            Content::Memory(_) => "memory",
            Content::File(_) => "a file",
        };
        write!(f, "a picture of {} bytes in {place}", self.len())
    }
}

impl Spilled {
    pub(super) fn new(file: SpillFile, turns: Arc<Semaphore>) -> Self {
        Self { file, turns }
    }

    fn read(&self, at: usize, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.file.read_at(&mut bytes, at)?;
        Ok(bytes.into())
    }
}

/// See [`Picture::pieces`]. Dropped, it lets go of the picture.
pub struct PicturePieces {
    content: Content,
    /// How far the file has been read.
    at: usize,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl PicturePieces {
    /// The next piece, never empty, at most 64 KiB; a slice of what is in memory, or what another thread
    /// read meanwhile.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match &mut self.content {
            Content::Memory(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Memory(bytes) => Poll::Ready(Some(Ok(bytes.split_to(bytes.len().min(PIECE_BYTES))))),
            Content::File(spilled) => {
                let (at, length) = (self.at, PIECE_BYTES.min(spilled.file.len() - self.at));
                if length == 0 {
                    return Poll::Ready(None);
                }
                let reading = self.reading.get_or_insert_with(|| {
                    let spilled = spilled.clone();
                    tokio::task::spawn_blocking(move || spilled.read(at, length))
                });
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                self.at += length;
                Poll::Ready(Some(read.unwrap_or_else(|error| Err(io::Error::other(error)))))
            }
        }
    }
}
