//! The circuit's rules, as [`State`]: what opens it, for how long, and what closes it. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::window::Window;
use super::{Attempt, OpenReason};
use crate::base::identity::Identity;

/// Results in a row that could not be fetched before all buying stops.
const UNFETCHABLE_IN_A_ROW: u32 = 3;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Opening {
    since: Instant,
    until: Instant,
    failed_probes: u32,
    /// The last number that was given before it opened: what was bought later bears on it.
    before: u64,
}

pub(super) struct State {
    openings: [Option<Opening>; OpenReason::ALL.len()],
    /// The one request that is under way to find out.
    probe: Option<u64>,
    probes: u64,
    window: Window,
    /// Whose order the last complete error was about: the same again says nothing new, so that one
    /// bad picture cannot stop everybody.
    last_failed: Option<Identity>,
    unfetchable_in_a_row: u32,
    /// Counts changes of our key for the upstream.
    pub(super) api_key: u64,
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            openings: [None; OpenReason::ALL.len()],
            probe: None,
            probes: 0,
            window: Window::new(now),
            last_failed: None,
            unfetchable_in_a_row: 0,
            api_key: 0,
        }
    }

    /// Which reasons there are, in the order of [`OpenReason::ALL`].
    pub(super) fn reasons(&self) -> [bool; OpenReason::ALL.len()] {
        self.openings.map(|opening| opening.is_some())
    }

    pub(super) fn is_open(&self, trouble: OpenReason) -> bool {
        self.openings[trouble as usize].is_some()
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some() && self.openings.iter().any(Option::is_some)
    }

    /// Why nothing may be bought now, and for how long; zero while a probe is under way.
    pub(super) fn refusal(&self, now: Instant) -> Option<(OpenReason, Duration)> {
        let openings = || {
            let pairs = OpenReason::ALL.into_iter().zip(self.openings);
            pairs.filter_map(|(trouble, opening)| Some((trouble, opening?)))
        };
        let (first, _) = openings().next()?;
        let latest = openings().map(|(_, opening)| opening.until).max()?;
        let wait = latest.saturating_duration_since(now);
        (self.probe.is_some() || !wait.is_zero()).then_some((first, wait))
    }

    /// Lets a purchase through; with a number when it is the probe.
    pub(super) fn enter(&mut self, now: Instant) -> Result<Option<u64>, (OpenReason, Duration)> {
        if let Some(refusal) = self.refusal(now) {
            return Err(refusal);
        }
        self.probes += 1;
        self.probe = self.reasons().contains(&true).then_some(self.probes);
        Ok(self.probe)
    }

    /// Is this the probe that is under way?
    pub(super) fn is_probe(&self, probe: Option<u64>) -> bool {
        probe.is_some() && self.probe == probe
    }

    /// The probe ends without a verdict; the next purchase may be one.
    pub(super) fn leave(&mut self, probe: Option<u64>) {
        if self.is_probe(probe) {
            self.probe = None;
        }
    }

    pub(super) fn attempted(
        &mut self,
        attempt: Attempt,
        identity: &Identity,
        is_current_key: bool,
        probe: Option<u64>,
        now: Instant,
    ) {
        let is_probe = self.is_probe(probe);
        match attempt {
            Attempt::Sold => {
                self.works(is_probe, now);
                if is_probe {
                    self.close(OpenReason::KeyRefused, now);
                    self.close(OpenReason::NoCredits, now);
                    // That something was sold again is not all there is to find out.
                    if self.is_open(OpenReason::Unfetchable) {
                        return;
                    }
                }
            }
            Attempt::Refused => self.works(is_probe, now),
            Attempt::KeyRefused => {
                self.works(is_probe, now);
                if is_current_key {
                    self.open(OpenReason::KeyRefused, is_probe, now);
                }
            }
            Attempt::NoCredits => {
                self.works(is_probe, now);
                self.open(OpenReason::NoCredits, is_probe, now);
            }
            Attempt::Failed
                if self.last_failed.replace(identity.clone()).as_ref() == Some(identity) && !is_probe => {}
            Attempt::Failed | Attempt::Lost => self.failed(is_probe, now),
        }
        self.leave(probe);
    }

    fn works(&mut self, is_probe: bool, now: Instant) {
        self.last_failed = None;
        // What began before the circuit opened does not close it: only a probe does.
        if is_probe {
            self.close(OpenReason::Outage, now);
        }
        self.window.succeeded(now);
    }

    fn failed(&mut self, is_probe: bool, now: Instant) {
        let is_outage = self.window.failed(now);
        if self.is_open(OpenReason::Outage) {
            // An attempt that began before it opened brings no news.
            if is_probe {
                self.open(OpenReason::Outage, true, now);
            }
        } else if is_outage {
            self.open(OpenReason::Outage, is_probe, now);
        } else if is_probe {
            // Whatever the trouble was, it has not been found to be over.
            let unclear = OpenReason::ALL.into_iter().filter(|trouble| self.is_open(*trouble));
            for trouble in unclear.collect::<Vec<_>>() {
                self.open(trouble, true, now);
            }
        }
    }

    /// Opens for a trouble, or, after a probe, keeps it open for longer.
    fn open(&mut self, trouble: OpenReason, is_probe: bool, now: Instant) {
        let before = self.probes;
        let opening = &mut self.openings[trouble as usize];
        let known = match *opening {
            Some(known) if is_probe => Opening { failed_probes: known.failed_probes + 1, ..known },
            Some(_) => return,
            None => Opening { since: now, until: now, failed_probes: 0, before },
        };
        *opening = Some(Opening { until: now + wait(trouble, &known, now), ..known });
    }

    fn close(&mut self, trouble: OpenReason, now: Instant) {
        if self.openings[trouble as usize].take().is_some() && trouble == OpenReason::Outage {
            self.window = Window::new(now);
        }
    }

    pub(super) fn key_changed(&mut self, now: Instant) {
        self.api_key += 1;
        self.close(OpenReason::KeyRefused, now);
        // It may be of another account.
        self.credits_are_back(now);
    }

    /// The account may be filled again: worth a probe at once, and only a probe closes.
    pub(super) fn credits_are_back(&mut self, now: Instant) {
        if let Some(opening) = &mut self.openings[OpenReason::NoCredits as usize] {
            opening.until = opening.until.min(now);
        }
    }

    /// A result that was bought is permanent. That of a probe closes however late it comes: it was
    /// bought after the circuit had opened.
    pub(super) fn result_kept(&mut self, probe: Option<u64>, now: Instant) {
        self.unfetchable_in_a_row = 0;
        let opening = self.openings[OpenReason::Unfetchable as usize];
        if opening.is_some_and(|opening| probe.is_some_and(|probe| probe > opening.before)) {
            self.close(OpenReason::Unfetchable, now);
        }
        self.leave(probe);
    }

    /// What was bought could not be had so far, and may never be: a probe has found nothing better.
    pub(super) fn result_delayed(&mut self, probe: Option<u64>, now: Instant) {
        if self.is_probe(probe) && self.is_open(OpenReason::Unfetchable) {
            self.open(OpenReason::Unfetchable, true, now);
        }
        self.leave(probe);
    }

    /// What was bought could not be had.
    pub(super) fn result_lost(&mut self, probe: Option<u64>, now: Instant) {
        self.result_delayed(probe, now);
        self.unfetchable_in_a_row += 1;
        if self.unfetchable_in_a_row >= UNFETCHABLE_IN_A_ROW {
            self.open(OpenReason::Unfetchable, false, now);
        }
    }
}

/// Until the next probe.
fn wait(trouble: OpenReason, opening: &Opening, now: Instant) -> Duration {
    match trouble {
        // A sixth of what it has lasted so far: noticed soon after a short outage, rarely in a long one.
        OpenReason::Outage => {
            let lasted = now.saturating_duration_since(opening.since);
            (lasted / 6).clamp(Duration::from_secs(10), MINUTE)
        }
        // A refusal is free; a change of the key's file or of the balance comes sooner.
        OpenReason::KeyRefused | OpenReason::NoCredits => MINUTE,
        // Each probe costs credits, perhaps for nothing.
        OpenReason::Unfetchable => (MINUTE * (1 << opening.failed_probes.min(6))).min(60 * MINUTE),
    }
}
