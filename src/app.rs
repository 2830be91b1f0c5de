//! Composition root; to come.

/// Serves until it is told to stop.
///
/// # Errors
/// None yet.
pub async fn serve(_: crate::config::Config) -> anyhow::Result<()> {
    Ok(())
}
