//! Small files that settings name, with a secret or not.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Errors repeat neither name nor contents, because people put one where the other belongs.
pub(super) fn read_secret_file(path: &Path, what: &str, longest: u64) -> Result<String, String> {
    let file = open(path, what)?;
    if is_open_to_everyone(&file.metadata().map_err(failed)?) {
        return Err("names a file that every user of this machine may read; take that away with \
                    chmod o= (in Kubernetes, defaultMode: 0440)"
            .to_owned());
    }
    read(file, longest)
}

/// For public contents.
pub(super) fn read_small_file(path: &Path, what: &str, longest: u64) -> Result<String, String> {
    read(open(path, what)?, longest)
}

fn failed(error: io::Error) -> String {
    format!("names a file that cannot be read ({}); make it readable to this user", error.kind())
}

fn open(path: &Path, what: &str) -> Result<File, String> {
    // Opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("does not name a file; write the path of the file that holds {what}"));
    }
    File::open(path).map_err(failed)
}

fn read(file: File, longest: u64) -> Result<String, String> {
    let mut text = String::new();
    file.take(longest + 64).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Returns true when others than owner and group may read or write.
pub(super) fn is_open_to_everyone(metadata: &fs::Metadata) -> bool {
    metadata.mode() & 0o006 != 0
}
