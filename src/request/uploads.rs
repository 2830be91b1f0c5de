//! Room for what clients upload: [`UploadRoom`] gives it out, a [`Picture`] holds it until it is gone.
//!
//! All uploads together may take so many bytes of memory, counted as they arrive and not as they were
//! declared; what gets no more goes on in a file without a name, which ends with its process. Only when
//! that has no room either is an upload refused. Who has the bytes has their share of the room too, in
//! the same value, so that nothing is forgotten and nothing is given back early: not by a client that
//! hangs up, nor by a fill that outlives its clients.
//!
//! This module knows no forms and no keys. What it does on a disk it does on threads that may block, few
//! at a time.

mod picture;
mod quota;
mod spill;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use self::picture::Spilled;
pub use self::picture::{Picture, PicturePieces};
use self::quota::Quota;
pub(crate) use self::quota::Share;
pub(crate) use self::spill::SpillFile;
use self::spill::SpillFolder;

/// Threads that write to spill files, or read a whole one, at once: as many pictures may be in memory
/// beside the budget for a moment.
const DISK_TURNS: usize = 4;

/// How much room there is, and where.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Bytes of all uploads that may be in memory at once.
    pub memory: u64,
    /// Bytes of all uploads that may be in files at once.
    pub spill: u64,
    /// Where the files are: a folder of this process alone, made when it is missing.
    pub folder: PathBuf,
    /// Bytes that stay free on its disk.
    pub min_free: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for the upload")]
pub struct NoRoom;

/// The room of one process. Cheap to clone.
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

/// What is taken of the room at the moment, and what has become of uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLoad {
    pub memory: u64,
    pub memory_limit: u64,
    pub spill: u64,
    pub spill_limit: u64,
    /// Uploads that went on in a file, ever.
    pub spilled: u64,
    /// Uploads that were refused for want of room, ever.
    pub refused: u64,
}

impl UploadRoom {
    /// Makes the folder ready, and removes what a killed process may have left there. Blocks on the disk.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(config: UploadConfig) -> io::Result<Self> {
        let folder = SpillFolder::open(&config.folder, config.min_free)?;
        Ok(Self::new(config.memory, config.spill, Some(Arc::new(folder))))
    }

    /// Room for so many bytes in memory, and none in files.
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
            memory_limit: memory.limit(),
            spill: spill.used(),
            spill_limit: spill.limit(),
            spilled: spilled.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    /// An empty share of the memory, for a new upload.
    pub(crate) fn memory(&self) -> Share {
        self.0.memory.share()
    }

    /// Appends to an upload's file, or begins one. The memory of `bytes` counts until they are written,
    /// also when the caller has gone.
    ///
    /// # Errors
    /// [`NoRoom`]; what was written before is gone too.
    pub(crate) async fn spill(
        &self,
        file: Option<SpillFile>,
        bytes: Vec<u8>,
        memory: Share,
    ) -> Result<SpillFile, NoRoom> {
        let is_first = file.is_none();
        let written = self.write(file, bytes, memory).await;
        match &written {
            Ok(_) if is_first => self.0.spilled.fetch_add(1, Ordering::Relaxed),
            Ok(_) => 0,
            Err(NoRoom) => self.0.refused.fetch_add(1, Ordering::Relaxed),
        };
        written
    }

    async fn write(
        &self,
        file: Option<SpillFile>,
        bytes: Vec<u8>,
        memory: Share,
    ) -> Result<SpillFile, NoRoom> {
        let folder = self.0.folder.clone().ok_or(NoRoom)?;
        let mut share = self.0.spill.share();
        if !share.grow_to(bytes.len() as u64) {
            return Err(NoRoom);
        }
        let turn = self.0.turns.clone().acquire_owned().await.expect("the semaphore is never closed");
        let write = move || {
            let _held = (turn, memory);
            // Freed before its share is given back.
            let bytes = bytes;
            let mut file = match file {
                Some(file) => file,
                None => folder.create()?,
            };
            folder.check_space(bytes.len() as u64)?;
            file.append(&bytes, share)?;
            Ok(file)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(file)) => Ok(file),
            Ok(Err(error)) => Err(refused_by_the_disk(&error)),
            Err(error) => Err(refused_by_the_disk(&io::Error::other(error))),
        }
    }

    /// A picture whose bytes were written to `file`.
    pub(crate) fn in_file(&self, file: SpillFile) -> Picture {
        Picture::in_file(Spilled::new(file, self.0.turns.clone()))
    }
}

fn refused_by_the_disk(error: &io::Error) -> NoRoom {
    tracing::error!(%error, "an upload that memory has no room for cannot be kept in a file");
    NoRoom
}
