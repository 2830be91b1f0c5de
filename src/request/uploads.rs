//! Room for uploads: [`UploadRoom`] gives it out, and a [`Picture`] keeps its share.
//!
//! The memory of all uploads together is limited, counted as bytes arrive and not as they were declared.
//! Beyond it an upload goes on in a file without a name, which ends with its process, and it is refused only
//! if that has no room either. The bytes and their share are one value, so no share is leaked or given back
//! early. Disk access runs on few blocking threads at a time.

mod blocks;
mod picture;
mod quota;
mod spill;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::Semaphore;

pub use self::blocks::Blocks;
pub(crate) use self::blocks::{BLOCK_BYTES, counted};
pub use self::picture::Picture;
use self::quota::Quota;
pub(crate) use self::quota::Share;
pub(crate) use self::spill::SpillFile;
use self::spill::SpillFolder;

/// Threads that write to spill files or read whole ones at once: as many pictures may be in memory without
/// being counted.
const DISK_TURNS: usize = 4;

#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Maximum bytes in memory.
    pub memory: u64,
    /// Maximum bytes in files.
    pub spill: u64,
    /// A folder of this process alone, created if it is missing.
    pub folder: PathBuf,
    /// Bytes that stay free on the disk.
    pub min_free: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for the upload")]
pub struct NoRoom;

#[derive(Clone)]
pub struct UploadRoom(Arc<Room>);

struct Room {
    memory: Arc<Quota>,
    spill: Arc<Quota>,
    folder: Option<Arc<SpillFolder>>,
    turns: Arc<Semaphore>,
    spilled: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLoad {
    pub memory: u64,
    pub memory_limit: u64,
    pub spill: u64,
    pub spill_limit: u64,
    /// Uploads that went on in a file, since the start.
    pub spilled: u64,
    /// Uploads refused for lack of room, since the start.
    pub refused: u64,
}

impl UploadRoom {
    /// Creates the folder, and removes files that a killed process left there. Blocks on the disk.
    pub fn open(config: UploadConfig) -> io::Result<Self> {
        let folder = SpillFolder::open(&config.folder, config.min_free)?;
        Ok(Self::new(config.memory, config.spill, Some(Arc::new(folder))))
    }

    /// Without files.
    pub fn in_memory(bytes: u64) -> Self {
        Self::new(bytes, 0, None)
    }

    fn new(memory: u64, spill: u64, folder: Option<Arc<SpillFolder>>) -> Self {
        Self(Arc::new(Room {
            memory: Arc::new(Quota::new(memory)),
            spill: Arc::new(Quota::new(spill)),
            folder,
            turns: Arc::new(Semaphore::new(DISK_TURNS)),
            spilled: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    pub fn load(&self) -> UploadLoad {
        let Room { memory, spill, spilled, refused, .. } = &*self.0;
        UploadLoad {
            memory: memory.used(),
            memory_limit: memory.limit,
            spill: spill.used(),
            spill_limit: spill.limit,
            spilled: spilled.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn memory(&self) -> Share {
        self.0.memory.share()
    }

    /// Appends to an upload's file, or creates one. `blocks` count as memory until they are written, even if
    /// the caller is gone. After an error the whole file is gone.
    pub(crate) async fn spill(
        &self,
        file: Option<SpillFile>,
        blocks: Vec<Bytes>,
    ) -> Result<SpillFile, NoRoom> {
        let is_first = file.is_none();
        let written = self.write(file, blocks).await;
        match &written {
            Ok(_) if is_first => self.0.spilled.fetch_add(1, Ordering::Relaxed),
            Ok(_) => 0,
            Err(NoRoom) => self.0.refused.fetch_add(1, Ordering::Relaxed),
        };
        written
    }

    async fn write(&self, file: Option<SpillFile>, blocks: Vec<Bytes>) -> Result<SpillFile, NoRoom> {
        let folder = self.0.folder.clone().ok_or(NoRoom)?;
        let mut share = self.0.spill.share();
        let length = blocks.iter().map(Bytes::len).sum::<usize>() as u64;
        if !share.grow_to(length) {
            return Err(NoRoom);
        }
        let turn = self.0.turns.clone().acquire_owned().await.expect("the semaphore is never closed");
        let write = move || -> io::Result<SpillFile> {
            let _turn = turn;
            let mut file = match file {
                Some(file) => file,
                None => folder.create()?,
            };
            folder.check_space(length)?;
            file.append(&blocks, share)?;
            Ok(file)
        };
        let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(error.into()));
        written.map_err(|error| {
            tracing::error!(%error, "an upload that memory has no room for cannot be kept in a file");
            NoRoom
        })
    }

    pub(crate) fn in_file(&self, file: SpillFile) -> Picture {
        Picture::in_file(file, self.0.turns.clone())
    }
}
