//! Durable operations on files and folders, and the space of a disk. Blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatVfs, StatVfsMountFlags};
use rustix::process::geteuid;

/// An unpublished file, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct TempFile {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl TempFile {
    /// With the permission bits `mode`.
    pub(crate) fn create(folder: &Path, mode: u32) -> io::Result<Self> {
        let path = folder.join(temp_name());
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        Ok(Self { path, file, renamed: false })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// After an error the bytes must be written to another file: the kernel may have dropped them, and a
    /// second sync would not report it.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Publishes under `target` unless that name is taken: [`ErrorKind::AlreadyExists`].
    pub(crate) fn link(&self, target: &Path) -> io::Result<()> {
        fs::hard_link(&self.path, target)
    }

    /// Publishes under `target` in place of an existing file.
    pub(crate) fn replace(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.renamed {
            // A file that cannot be removed is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A name of a temporary file for [`sweep`].
pub(crate) fn temp_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Refuses a symbolic link, and a folder of another user.
pub(crate) fn open_own_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(folder) => File::from(folder),
        Err(_) if path.is_symlink() => {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "it is a symbolic link; remove it"));
        }
        Err(error) => return Err(error.into()),
    };
    check_owner(&folder)?;
    Ok(folder)
}

/// Refuses a folder that another user can change. Its group may write, and its owner may be root.
pub(crate) fn check_owner(folder: &File) -> io::Result<()> {
    let refused = |why: String| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    let (metadata, user) = (folder.metadata()?, geteuid().as_raw());
    if ![0, user].contains(&metadata.uid()) {
        return refused(format!(
            "it belongs to user {}, and this process runs as user {user}; run it as that user, or use a folder \
             of its own",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o002 != 0 {
        return refused(format!(
            "every user may write to it (mode {:o}); take that away with chmod o-w, or use a folder below it",
            metadata.mode() & 0o7777
        ));
    }
    Ok(())
}

/// Removes the temporary files in an open folder; returns their number.
pub(crate) fn sweep(folder: &File) -> io::Result<usize> {
    let is_hex = |name: &[u8]| name.len() == 32 && name.iter().all(u8::is_ascii_hexdigit);
    let mut removed = 0;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if is_hex(name.strip_prefix(b"link-").unwrap_or(name)) {
            removed += usize::from(rustix::fs::unlinkat(folder, entry.file_name(), AtFlags::empty()).is_ok());
        }
    }
    Ok(removed)
}

/// Creates an empty file that only we may read, or makes the existing one private.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => make_private(path),
        created => created.map(drop),
    }
}

/// Takes away the rights of other users to a file, if it exists. It is not opened: closing it would release
/// the locks that a database of this process has on it.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_file() {
        let why = format!("{} is not a plain file; remove it", path.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates one folder durably. An existing one is synced too: its creator may have died before the sync.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        other => other?,
    }
    match folder.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Creates a folder and the missing ones above it durably.
pub(crate) fn create_folders(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent().filter(|parent| !parent.is_dir()) {
        create_folders(parent)?;
    }
    match create_folder(folder) {
        // It exists below a folder that we may not read.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && folder.is_dir() => Ok(()),
        other => other,
    }
}

/// Reads a file; [`ErrorKind::FileTooLarge`] for one longer than `max` bytes.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(max)).unwrap_or(0));
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
}

/// For sixteen concurrent paid calls: each takes an object, a record and up to two folders.
const MIN_FREE_INODES: u64 = 64;

/// Checks that the filesystem of `folder` has space and inodes, and is writable.
pub(crate) fn check_space(folder: &Path, min_free_bytes: u64) -> io::Result<()> {
    judge(&rustix::fs::statvfs(folder)?, min_free_bytes)
}

fn judge(space: &StatVfs, min_free_bytes: u64) -> io::Result<()> {
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let text = "the filesystem is mounted read-only";
        return Err(io::Error::new(ErrorKind::ReadOnlyFilesystem, text));
    }
    let full = |text: String| Err(io::Error::new(ErrorKind::StorageFull, text));
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < min_free_bytes {
        return full(format!("{free} bytes are free, {min_free_bytes} are wanted"));
    }
    // Filesystems without a fixed number of inodes have 0 of 0.
    if space.f_files > 0 && space.f_favail < MIN_FREE_INODES {
        return full(format!("{} inodes are free", space.f_favail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A real answer of the system, with what a test wants changed.
    fn space(change: impl FnOnce(&mut StatVfs)) -> StatVfs {
        let mut space = rustix::fs::statvfs(std::env::temp_dir()).expect("the system has a temporary folder");
        space.f_flag.remove(StatVfsMountFlags::RDONLY);
        (space.f_frsize, space.f_bavail) = (4096, 1000);
        (space.f_files, space.f_favail) = (100_000, 90_000);
        change(&mut space);
        space
    }

    #[test]
    fn room_is_space_and_inodes_on_a_writable_filesystem() {
        let wanted = 1000 * 4096;
        judge(&space(|_| {}), wanted).expect("exactly what is wanted");
        judge(&space(|space| (space.f_files, space.f_favail) = (0, 0)), wanted)
            .expect("no fixed number of inodes");
        judge(&space(|space| space.f_bavail = u64::MAX), u64::MAX).expect("more than can be counted");

        let refused = |space: StatVfs, wanted| judge(&space, wanted).expect_err("there is no room").kind();
        assert_eq!(refused(space(|_| {}), wanted + 1), ErrorKind::StorageFull);
        assert_eq!(refused(space(|space| space.f_favail = 63), wanted), ErrorKind::StorageFull);
        let read_only = space(|space| space.f_flag.insert(StatVfsMountFlags::RDONLY));
        assert_eq!(refused(read_only, wanted), ErrorKind::ReadOnlyFilesystem);
    }
}
