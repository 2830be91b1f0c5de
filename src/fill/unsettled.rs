//! How many fills are still to be settled without holding a slot: [`Unsettled`] counts them.
//!
//! A fill whose answer is there gives its slot to the next, and may go on for as long as the
//! result's URL may live. Each needs memory, so from a bound on nothing more is bought until some
//! of them are settled; what may come above it are the calls that were under way by then.

use std::sync::Arc;

/// As many as may wait for a slot by default.
const MOST: usize = 256;

/// The fills that go on by themselves.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Arc<()>);

/// One of them, while it lives.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl Unsettled {
    pub(super) fn enter(&self) -> Place {
        Place(self.0.clone())
    }

    /// Are there too many for another purchase?
    pub(super) fn is_full(&self) -> bool {
        Arc::strong_count(&self.0) > MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_while_there_are_so_many() {
        let unsettled = Unsettled::default();
        let mut places: Vec<_> = (1..MOST).map(|_| unsettled.enter()).collect();
        assert!(!unsettled.is_full());
        places.push(unsettled.enter());
        assert!(unsettled.is_full());
        places.pop();
        assert!(!unsettled.is_full());
    }
}
