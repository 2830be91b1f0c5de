//! Files without a name: [`SpillFolder`] creates them; a [`SpillFile`] keeps its permit until it is closed. Blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};

use crate::base::disk;
use crate::base::permits::Permit;

#[derive(Debug)]
pub(super) struct SpillFolder {
    path: PathBuf,
    min_free: u64,
}

impl SpillFolder {
    pub(super) fn open(path: &Path, min_free: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // Files with a name remain where the filesystem has none without.
        disk::sweep(&disk::open_own_folder(path)?)?;
        Ok(Self { path: path.to_owned(), min_free })
    }

    /// Creates an empty file without a name, so that it ends with its process.
    pub(super) fn create(&self) -> io::Result<SpillFile> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            // Not every filesystem supports this; any other error occurs here again.
            Err(_) => {
                let path = self.path.join(disk::temp_name());
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
                fs::remove_file(&path)?;
                file
            }
        };
        Ok(SpillFile { open: Some((file, None)), length: 0 })
    }

    pub(super) fn check_space(&self, bytes: u64) -> io::Result<()> {
        disk::check_space(&self.path, self.min_free.saturating_add(bytes))
    }
}

#[derive(Debug)]
pub(crate) struct SpillFile {
    /// The file and its permit, until it is closed.
    open: Option<(File, Option<Permit>)>,
    length: usize,
}

impl SpillFile {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn append(&mut self, blocks: &[Bytes], permit: Permit) -> io::Result<()> {
        let (file, own) = self.open.as_mut().expect("a file is closed when it is dropped");
        match own {
            Some(own) => own.join(permit),
            None => *own = Some(permit),
        }
        for block in blocks {
            file.write_all(block)?;
            self.length += block.len();
        }
        Ok(())
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], at: usize) -> io::Result<()> {
        let (file, _) = self.open.as_ref().expect("a file is closed when it is dropped");
        file.read_exact_at(buffer, at as u64)
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        // Closing frees the disk, which may take long; the permit is given back afterwards.
        let open = self.open.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(open))),
            Err(_) => drop(open),
        }
    }
}
