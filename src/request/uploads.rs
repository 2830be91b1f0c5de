//! Room for uploads: [`UploadRoom`] gives it out, and a [`Picture`] keeps its permits. The memory of all uploads
//! together is limited, counted as bytes arrive and not as they were declared. Beyond it an upload goes on in a file
//! without a name, which ends with its process, and it is refused only if that has no room either. Disk access runs
//! on few blocking threads at a time.

mod blocks;
mod picture;
mod spill;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::Semaphore;

pub(crate) use self::blocks::BLOCK_BYTES;
pub use self::blocks::Blocks;
pub use self::picture::Picture;
pub(crate) use self::spill::SpillFile;
use self::spill::SpillFolder;
use crate::base::permits::{Party, Permit, Permits, Sharing};

/// Threads that write to spill files or read whole ones at once: so many pictures may be in memory uncounted.
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

/// The room for one party's uploads.
#[derive(Clone)]
pub struct UploadRoom {
    room: Arc<Room>,
    party: Party,
}

struct Room {
    memory: Permits,
    spill: Permits,
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
        let room = Room {
            memory: Permits::new(memory, Sharing::Headroom),
            spill: Permits::new(spill, Sharing::Headroom),
            folder,
            turns: Arc::new(Semaphore::new(DISK_TURNS)),
            spilled: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Self { room: Arc::new(room), party: Party::new("") }
    }

    pub fn of(&self, party: Party) -> Self {
        Self { room: self.room.clone(), party }
    }

    pub fn load(&self) -> UploadLoad {
        let Room { memory, spill, spilled, refused, .. } = &*self.room;
        UploadLoad {
            memory: memory.used(),
            memory_limit: memory.capacity(),
            spill: spill.used(),
            spill_limit: spill.capacity(),
            spilled: spilled.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn memory(&self) -> Permit {
        self.room.memory.none(&self.party)
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
            Ok(_) if is_first => self.room.spilled.fetch_add(1, Ordering::Relaxed),
            Ok(_) => 0,
            Err(NoRoom) => self.room.refused.fetch_add(1, Ordering::Relaxed),
        };
        written
    }

    async fn write(&self, file: Option<SpillFile>, blocks: Vec<Bytes>) -> Result<SpillFile, NoRoom> {
        let folder = self.room.folder.clone().ok_or(NoRoom)?;
        let length = blocks.iter().map(Bytes::len).sum::<usize>() as u64;
        let permit = self.room.spill.try_take(&self.party, length).ok_or(NoRoom)?;
        let turn = self.room.turns.clone().acquire_owned().await.expect("the semaphore is never closed");
        let write = move || -> io::Result<SpillFile> {
            let _turn = turn;
            let mut file = match file {
                Some(file) => file,
                None => folder.create()?,
            };
            folder.check_space(length)?;
            file.append(&blocks, permit)?;
            Ok(file)
        };
        let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(error.into()));
        written.map_err(|error| {
            tracing::error!(%error, "an upload that memory has no room for cannot be kept in a file");
            NoRoom
        })
    }

    pub(crate) fn in_file(&self, file: SpillFile) -> Picture {
        Picture::in_file(file, self.room.turns.clone())
    }
}
