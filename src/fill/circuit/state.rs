//! The circuit's rules ([`State`]): what opens it, for how long, and what closes it. Pure.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::window::Window;
use super::{Attempt, OpenReason, Pass};
use crate::base::identity::Identity;

const UNFETCHABLE_IN_A_ROW: u32 = 3;
/// Complete errors in a row after which a team rests.
const TEAM_FAILURES: u32 = 5;
const TEAM_REST: Duration = Duration::from_secs(10);

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Opening {
    since: Instant,
    until: Instant,
    failed_probes: u32,
    /// The last purchase number before it opened: only later purchases bear on it.
    before: u64,
}

/// A team whose last attempt failed with a complete error.
struct Failing {
    in_a_row: u32,
    last: Instant,
    rests_until: Instant,
}

pub(super) struct State {
    openings: [Option<Opening>; OpenReason::ALL.len()],
    probe: Option<u64>,
    /// Numbers all purchases.
    purchases: u64,
    window: Window,
    /// The order of the last complete error: the same again says nothing new, so that one bad picture cannot
    /// stop all purchases.
    last_failed: Option<Identity>,
    failing: HashMap<String, Failing>,
    unfetchable_in_a_row: u32,
    /// Number of our key for the upstream.
    pub(super) api_key: u64,
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            openings: [None; OpenReason::ALL.len()],
            probe: None,
            purchases: 0,
            window: Window::new(now),
            last_failed: None,
            failing: HashMap::new(),
            unfetchable_in_a_row: 0,
            api_key: 0,
        }
    }

    /// In the order of [`OpenReason::ALL`].
    pub(super) fn reasons(&self) -> [bool; OpenReason::ALL.len()] {
        self.openings.map(|opening| opening.is_some())
    }

    pub(super) fn is_open(&self, reason: OpenReason) -> bool {
        self.openings[reason as usize].is_some()
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some() && self.openings.iter().any(Option::is_some)
    }

    /// Why nothing may be bought, and for how long: may be zero while a probe is under way.
    pub(super) fn refusal(&self, now: Instant) -> Option<(OpenReason, Duration)> {
        let openings = || {
            let pairs = OpenReason::ALL.into_iter().zip(self.openings);
            pairs.filter_map(|(reason, opening)| Some((reason, opening?)))
        };
        let (first, _) = openings().next()?;
        let latest = openings().map(|(_, opening)| opening.until).max()?;
        let wait = latest.saturating_duration_since(now);
        (self.probe.is_some() || !wait.is_zero()).then_some((first, wait))
    }

    /// Admits a purchase; returns its number if it is the probe. After a rest a team has one attempt.
    pub(super) fn enter(
        &mut self,
        team: Option<&str>,
        now: Instant,
    ) -> Result<Option<u64>, (OpenReason, Duration)> {
        if let Some(refusal) = self.refusal(now) {
            return Err(refusal);
        }
        if let Some(failing) = team.and_then(|team| self.failing.get_mut(team))
            && failing.in_a_row >= TEAM_FAILURES
        {
            if failing.rests_until > now {
                return Err((OpenReason::Outage, failing.rests_until - now));
            }
            failing.rests_until = now + TEAM_REST;
        }
        self.purchases += 1;
        self.probe = self.reasons().contains(&true).then_some(self.purchases);
        Ok(self.probe)
    }

    pub(super) fn is_probe(&self, probe: Option<u64>) -> bool {
        probe.is_some() && self.probe == probe
    }

    /// Ends the probe without a verdict; the next purchase may be one.
    pub(super) fn leave(&mut self, probe: Option<u64>) {
        if self.is_probe(probe) {
            self.probe = None;
        }
    }

    /// Returns true if the pass's team rests from now on.
    pub(super) fn attempted(&mut self, attempt: Attempt, pass: &Pass, now: Instant) -> bool {
        let rests = self.judge(attempt, pass, now);
        // A sold crop's result is still to be fetched.
        if attempt != Attempt::Sold || !self.is_open(OpenReason::Unfetchable) {
            self.leave(pass.probe);
        }
        rests
    }

    fn judge(&mut self, attempt: Attempt, pass: &Pass, now: Instant) -> bool {
        if let Some(team) = pass
            .team
            .as_ref()
            .filter(|_| !matches!(attempt, Attempt::Failed | Attempt::Broken | Attempt::Lost))
        {
            self.failing.remove(team);
        }
        let (identity, is_probe) = (&pass.identity, self.is_probe(pass.probe));
        match attempt {
            Attempt::Sold => {
                self.works(is_probe, now);
                if is_probe {
                    self.close(OpenReason::KeyRefused, now);
                    self.close(OpenReason::NoCredits, now);
                }
            }
            Attempt::Refused => self.works(is_probe, now),
            Attempt::KeyRefused => {
                self.works(is_probe, now);
                if pass.api_key == self.api_key {
                    self.open(OpenReason::KeyRefused, is_probe, now);
                }
            }
            Attempt::NoCredits => {
                self.works(is_probe, now);
                self.open(OpenReason::NoCredits, is_probe, now);
            }
            Attempt::Failed | Attempt::Broken
                if self.last_failed.replace(identity.clone()).as_ref() == Some(identity) && !is_probe => {}
            Attempt::Failed => {
                let (rests, is_of_one_team) = self.team_failed(pass.team.as_ref(), now);
                if is_probe || !is_of_one_team {
                    self.failed(is_probe, now);
                }
                return rests;
            }
            Attempt::Broken | Attempt::Lost => self.failed(is_probe, now),
        }
        false
    }

    /// Returns whether the team rests from now on, and whether it is the only one of several that fails.
    fn team_failed(&mut self, team: Option<&String>, now: Instant) -> (bool, bool) {
        let Some(team) = team else { return (false, false) };
        self.failing.retain(|_, failing| now - failing.last < MINUTE);
        let new = Failing { in_a_row: 0, last: now, rests_until: now };
        let failing = self.failing.entry(team.clone()).or_insert(new);
        failing.in_a_row += 1;
        (failing.last, failing.rests_until) = (now, now + TEAM_REST);
        (failing.in_a_row == TEAM_FAILURES, self.failing.len() == 1)
    }

    fn works(&mut self, is_probe: bool, now: Instant) {
        self.last_failed = None;
        // Only a probe closes the circuit, not an attempt that began before it opened.
        if is_probe {
            self.close(OpenReason::Outage, now);
        }
        self.window.succeeded(now);
    }

    fn failed(&mut self, is_probe: bool, now: Instant) {
        let is_outage = self.window.failed(now);
        if self.is_open(OpenReason::Outage) {
            // An attempt that began before it opened says nothing new.
            if is_probe {
                self.open(OpenReason::Outage, true, now);
            }
        } else if is_outage {
            self.open(OpenReason::Outage, is_probe, now);
        } else if is_probe {
            for reason in OpenReason::ALL {
                if self.is_open(reason) {
                    self.open(reason, true, now);
                }
            }
        }
    }

    /// Opens for a reason, or, after a probe, keeps it open for longer.
    fn open(&mut self, reason: OpenReason, is_probe: bool, now: Instant) {
        let before = self.purchases;
        let opening = &mut self.openings[reason as usize];
        let known = match *opening {
            Some(known) if is_probe => Opening { failed_probes: known.failed_probes + 1, ..known },
            Some(_) => return,
            None => Opening { since: now, until: now, failed_probes: 0, before },
        };
        *opening = Some(Opening { until: now + wait(reason, &known, now), ..known });
    }

    fn close(&mut self, reason: OpenReason, now: Instant) {
        if self.openings[reason as usize].take().is_some() && reason == OpenReason::Outage {
            self.window = Window::new(now);
        }
    }

    pub(super) fn key_changed(&mut self, now: Instant) {
        self.api_key += 1;
        self.close(OpenReason::KeyRefused, now);
        // The new key may be of another account.
        self.credits_are_back(now);
    }

    /// Permits a probe at once; only the probe closes.
    pub(super) fn credits_are_back(&mut self, now: Instant) {
        if let Some(opening) = &mut self.openings[OpenReason::NoCredits as usize] {
            opening.until = opening.until.min(now);
        }
    }

    /// A paid result is permanent. That of a probe closes however late it comes, because it was bought after
    /// the circuit had opened.
    pub(super) fn result_kept(&mut self, probe: Option<u64>, now: Instant) {
        self.unfetchable_in_a_row = 0;
        let opening = self.openings[OpenReason::Unfetchable as usize];
        if opening.is_some_and(|opening| probe.is_some_and(|probe| probe > opening.before)) {
            self.close(OpenReason::Unfetchable, now);
        }
        self.leave(probe);
    }

    /// A paid result could not be fetched so far, so a probe has failed.
    pub(super) fn result_delayed(&mut self, probe: Option<u64>, now: Instant) {
        if self.is_probe(probe) && self.is_open(OpenReason::Unfetchable) {
            self.open(OpenReason::Unfetchable, true, now);
        }
        self.leave(probe);
    }

    pub(super) fn result_lost(&mut self, probe: Option<u64>, now: Instant) {
        self.result_delayed(probe, now);
        self.unfetchable_in_a_row += 1;
        if self.unfetchable_in_a_row >= UNFETCHABLE_IN_A_ROW {
            self.open(OpenReason::Unfetchable, false, now);
        }
    }
}

/// Time until the next probe.
fn wait(reason: OpenReason, opening: &Opening, now: Instant) -> Duration {
    match reason {
        // A sixth of its duration so far: frequent in a short outage, rare in a long one.
        OpenReason::Outage => {
            let lasted = now.saturating_duration_since(opening.since);
            (lasted / 6).clamp(Duration::from_secs(10), MINUTE)
        }
        // Probes are free; a change of the key's file or of the balance comes sooner.
        OpenReason::KeyRefused | OpenReason::NoCredits => MINUTE,
        // Each probe costs credits.
        OpenReason::Unfetchable => (MINUTE * (1 << opening.failed_probes.min(6))).min(60 * MINUTE),
    }
}
