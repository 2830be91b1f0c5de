//! Objects and the archive's marker as files. Blocks on the disk.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use bytes::Bytes;

use super::files::{Files, RESULTS, failed};
use crate::base::archive::ArchiveId;
use crate::base::crash::crash_point;
use crate::base::disk::{self, TempFile};
use crate::base::key::Digest;
use crate::base::picture::ObjectName;
use crate::base::record::{MAX_OBJECT_BYTES, RECORDS};
use crate::store::{MARKER, MAX_MARKER_BYTES, StoreError, archive_of, check_object, is_object};

/// Public: a static file server may run as another user.
const MODE: u32 = 0o644;

impl Files {
    pub(super) fn put_object(&self, name: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let path = name.path();
        check_object(name, bytes)?;
        let write = failed("write", &path);
        let mut temp = TempFile::create(self.tmp(), MODE).map_err(&write)?;
        temp.write(bytes).map_err(&write)?;
        crash_point("CP17");
        temp.sync().map_err(failed("sync", &path))?;
        crash_point("CP18");

        let target = self.root().join(&path);
        match temp.link(&target) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Equal names are equal bytes, so a replacement is never wrong.
                if !is_whole(&target, name.digest).unwrap_or(false) {
                    tracing::warn!(object = %path, "a damaged object was replaced by a good copy");
                    temp.replace(&target).map_err(failed("replace", &path))?;
                }
            }
            Err(error) => return Err(failed("publish", &path)(error)),
        }
        crash_point("CP19");
        // Even for an existing one: its creator may have died before this.
        disk::sync_folder(&self.root().join(RESULTS)).map_err(failed("sync the folder of", &path))?;
        crash_point("CP20");
        Ok(())
    }

    pub(super) fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        let path = name.path();
        let length = std::fs::metadata(self.root().join(&path)).map_or(0, |found| found.len());
        if length > max && max < MAX_OBJECT_BYTES {
            return Err(StoreError::TooLong(length));
        }
        let Some(bytes) = self.read(RESULTS, &path, MAX_OBJECT_BYTES)? else { return Ok(None) };
        if !is_object(name, &bytes) {
            return Err(StoreError::Corrupt(format!("{path} is not the picture that its name says")));
        }
        Ok(Some(bytes.into()))
    }

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

/// Also syncs the file, which may be part of a copied archive.
fn is_whole(path: &Path, digest: Digest) -> io::Result<bool> {
    let file = File::open(path)?;
    let found = blake3::Hasher::new().update_reader(&file)?.finalize();
    file.sync_all()?;
    Ok(Digest::from_bytes(*found.as_bytes()) == digest)
}
