//! Who was served and who paid: counting requests, credits, and the comparison with the upstream's account.

pub mod metering;
pub mod money;
pub mod reconcile;
