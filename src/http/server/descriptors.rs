//! The limit of open files and connections.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files, the ledger, the bucket, the upstream.
const OTHERS: u64 = 512;

/// Raises the limit as far as allowed, and warns when it is too low for the configuration.
pub(crate) fn make_room(max_connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if setrlimit(Resource::Nofile, limit).is_err() {
            limit = getrlimit(Resource::Nofile);
        }
    }
    let wanted = max_connections as u64 + OTHERS;
    // No limit at all is `None`.
    if let Some(allowed) = limit.current
        && allowed < wanted
    {
        tracing::warn!(
            allowed,
            wanted,
            "this process may open fewer files than server.max_connections needs; raise its limit (ulimit -n, \
             LimitNOFILE) or lower the setting"
        );
    }
}
