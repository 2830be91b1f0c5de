//! `granary key IMAGE WIDTH HEIGHT`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::Failure;
use crate::base::key::{CacheKey, KeyHasher};

#[derive(clap::Args)]
pub(super) struct KeyArguments {
    /// The picture's file, or - for standard input
    image: PathBuf,
    /// Width of the crop in pixels
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65535))]
    width: u32,
    /// Height of the crop in pixels
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65535))]
    height: u32,
}

pub(super) fn run(arguments: &KeyArguments, stdin: &mut dyn Read) -> Result<String, Failure> {
    let KeyArguments { image, width, height } = arguments;
    let key = if image == Path::new("-") {
        hash(stdin, *width, *height).context("cannot read the picture from standard input")?
    } else {
        let read = || hash(&mut File::open(image)?, *width, *height);
        read().with_context(|| format!("cannot read the picture {}", image.display()))?
    };
    Ok(format!("{key}\n"))
}

/// In pieces, so that the size of the file does not matter.
fn hash(picture: &mut dyn Read, width: u32, height: u32) -> anyhow::Result<CacheKey> {
    let mut hasher = KeyHasher::default();
    let mut piece = vec![0; 64 * 1024];
    let mut length = 0;
    loop {
        match picture.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&piece[..count]);
                length += count;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(length > 0, "it is empty; name a file that holds a picture");
    Ok(hasher.finish(width, height).1)
}
