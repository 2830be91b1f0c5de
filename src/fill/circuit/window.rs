//! Detects an outage of the upstream from the outcomes of attempts ([`Window`]). Pure.

use tokio::time::Instant;

/// Failures in a row that are an outage.
const IN_A_ROW: u32 = 5;
/// Seconds over which attempts are counted.
const SLICES: usize = 10;
/// Minimum number of attempts for their share to count.
const ENOUGH: u32 = 20;

#[derive(Debug)]
pub(super) struct Window {
    began: Instant,
    slices: [Slice; SLICES],
    in_a_row: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    second: u64,
    succeeded: u32,
    failed: u32,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, slices: [Slice::default(); SLICES], in_a_row: 0 }
    }

    pub(super) fn succeeded(&mut self, now: Instant) {
        self.in_a_row = 0;
        self.slice(now).succeeded += 1;
    }

    /// Returns true for an outage: five failures in a row, or more than half of at least 20 attempts within 10 s.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.in_a_row += 1;
        self.slice(now).failed += 1;
        let second = self.second(now);
        let (mut succeeded, mut failed) = (0, 0);
        for slice in self.slices.iter().filter(|slice| second - slice.second < SLICES as u64) {
            succeeded += slice.succeeded;
            failed += slice.failed;
        }
        self.in_a_row >= IN_A_ROW || (succeeded + failed >= ENOUGH && failed > succeeded)
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    fn slice(&mut self, now: Instant) -> &mut Slice {
        let second = self.second(now);
        let slice = &mut self.slices[(second % SLICES as u64) as usize];
        if slice.second != second {
            *slice = Slice { second, ..Slice::default() };
        }
        slice
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Plays attempts, `.` for a success, `x` for a failure, and a space for a second that passes;
    /// returns how many it took to see an outage.
    fn outage_after(attempts: &str) -> Option<usize> {
        let mut now = Instant::now();
        let mut window = Window::new(now);
        for (number, attempt) in attempts.chars().enumerate() {
            match attempt {
                '.' => window.succeeded(now),
                'x' if window.failed(now) => return Some(number + 1),
                'x' => {}
                _ => now += Duration::from_secs(1),
            }
        }
        None
    }

    #[test]
    fn five_failures_in_a_row_are_an_outage_however_slowly_they_come() {
        assert_eq!(outage_after("xxxx.xxxx.xxxx.xxxx"), None);
        assert_eq!(outage_after("...xxxxx"), Some(8));
        assert_eq!(outage_after("x         x         x         x            x"), Some(44));
    }

    #[test]
    fn more_than_half_of_twenty_within_ten_seconds_are_an_outage() {
        // Half is not more than half, and nineteen are not twenty.
        assert_eq!(outage_after("x.x.x.x.x.x.x.x.x.x."), None);
        assert_eq!(outage_after("xx.xx.xx.xx.xx.xx.x"), None);
        assert_eq!(outage_after("xx.xx.xx.xx.xx.xx.xx"), Some(20));
        // What was long ago does not count.
        assert_eq!(outage_after("xx.xx.xx.xx.xx.xx.           xx"), None);
        assert_eq!(outage_after("xx.xx.xx. xx.xx.xx. xx"), Some(22));
    }
}
