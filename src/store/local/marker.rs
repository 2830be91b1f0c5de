//! The archive's marker as a file. Blocks on the disk.

use std::io::ErrorKind;

use super::files::{Files, failed};
use crate::base::archive::ArchiveId;
use crate::base::disk::{self, TempFile};
use crate::base::record::RECORDS;
use crate::store::{MARKER, MAX_MARKER_BYTES, StoreError, archive_of};

/// Readable for all, because it is not secret.
const MODE: u32 = 0o644;

impl Files {
    pub(super) fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        // Without the folder of records the volume may not be mounted.
        self.read(RECORDS, MARKER, MAX_MARKER_BYTES)?.map(|marker| archive_of(&marker)).transpose()
    }

    pub(super) fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        let write = failed("write", MARKER);
        let mut temp = TempFile::create(self.tmp(), MODE).map_err(&write)?;
        temp.write(archive.to_marker().as_bytes()).map_err(&write)?;
        temp.sync().map_err(failed("sync", MARKER))?;
        match temp.link(&self.root().join(MARKER)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(write(error)),
            Ok(()) | Err(_) => {}
        }
        disk::sync_folder(self.root()).map_err(failed("sync the folder of", MARKER))?;
        Ok(self.archive()?.unwrap_or(archive))
    }
}
