//! The memory limits of uploads and results.

use anyhow::Context;

use crate::base::results::ResultRoom;
use crate::base::state::StateDir;
use crate::config::Config;
use crate::http::routes::Memory;
use crate::request::uploads::{UploadConfig, UploadRoom};

/// Bytes that uploads leave free on the disk of the state, because paid results come first.
const SPILL_MIN_FREE: u64 = 1 << 30;

pub(super) fn open(config: &Config, state: &StateDir) -> anyhow::Result<Memory> {
    let folder = state.upload_folder();
    let uploads = UploadRoom::open(UploadConfig {
        memory: config.server.upload_memory.0,
        spill: config.server.upload_spill.0,
        folder: folder.clone(),
        min_free: SPILL_MIN_FREE,
    });
    let uploads = uploads.with_context(|| format!("the folder {} cannot be used", folder.display()))?;
    let results = || ResultRoom::new(config.server.result_memory.0);
    Ok(Memory { uploads, sent: results(), fetched: results() })
}
