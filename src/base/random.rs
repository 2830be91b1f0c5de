//! Randomness for jitter, never for secrets, boundaries or names. A simulation replaces the generator.

use std::time::Duration;

/// A time between half of `time` and all of it, so that retries do not come together.
pub fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + 0.5 * fraction())
}

/// A number from 0 to 1.
pub fn fraction() -> f64 {
    f64::from(dice::throw()) / f64::from(u32::MAX)
}

#[cfg(not(test))]
mod dice {
    /// Without a generator there is no jitter.
    pub(super) fn throw() -> u32 {
        getrandom::u32().unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
pub(crate) mod dice {
    use std::cell::RefCell;

    use granary_kit::dice::Dice;

    thread_local! {
        static DICE: RefCell<Option<Dice>> = const { RefCell::new(None) };
    }

    /// From now on this thread's jitter comes from these dice; `None` for the system's generator.
    pub(crate) fn put(dice: Option<Dice>) {
        DICE.set(dice);
    }

    pub(super) fn throw() -> u32 {
        DICE.with_borrow_mut(|dice| match dice {
            Some(dice) => dice.below(1 << 32) as u32,
            None => getrandom::u32().unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use granary_kit::dice::Dice;

    use super::*;

    #[test]
    fn jitter_spreads_over_the_upper_half_and_comes_again_with_its_seed() {
        let throws = |seed| {
            dice::put(Some(Dice::new(seed)));
            let throws: Vec<Duration> = (0..1000).map(|_| jittered(Duration::from_secs(8))).collect();
            dice::put(None);
            throws
        };
        let first = throws(7);
        assert_eq!(first, throws(7));
        assert_ne!(first, throws(8));
        let (least, most) = (first.iter().min().unwrap(), first.iter().max().unwrap());
        assert!(*least >= Duration::from_secs(4) && *least < Duration::from_millis(4200), "{least:?}");
        assert!(*most <= Duration::from_secs(8) && *most > Duration::from_millis(7800), "{most:?}");
    }
}
