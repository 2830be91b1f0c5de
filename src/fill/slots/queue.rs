//! First come first served within a team, and the teams in turn ([`FairQueue`]). Pure.

use std::collections::VecDeque;

pub(super) struct FairQueue<T> {
    /// Teams with waiters in the order of their turns; no line is empty.
    lines: VecDeque<Line<T>>,
    next_place: u64,
}

struct Line<T> {
    team: String,
    waiting: VecDeque<(Place, T)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64);

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self { lines: VecDeque::new(), next_place: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.iter().map(|line| line.waiting.len()).sum()
    }

    pub(super) fn by_team(&self) -> impl Iterator<Item = (&str, usize)> {
        self.lines.iter().map(|line| (line.team.as_str(), line.waiting.len()))
    }

    /// Maximum number of waiters served before a newcomer of the team.
    pub(super) fn ahead_of(&self, team: &str) -> usize {
        let own = self.waiting_of(team);
        // Each other team has one turn for each of ours, and one before ours.
        let others = self.by_team().filter(|(name, _)| *name != team);
        own + others.map(|(_, waiting)| waiting.min(own + 1)).sum::<usize>()
    }

    pub(super) fn push(&mut self, team: &str, who: T) -> Place {
        let place = Place(self.next_place);
        self.next_place += 1;
        match self.lines.iter_mut().find(|line| line.team == team) {
            Some(line) => line.waiting.push_back((place, who)),
            None => self.lines.push_back(Line { team: team.to_owned(), waiting: [(place, who)].into() }),
        }
        place
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let mut line = self.lines.pop_front()?;
        let (_, who) = line.waiting.pop_front()?;
        if !line.waiting.is_empty() {
            self.lines.push_back(line);
        }
        Some(who)
    }

    /// Removes a waiter that gives up; `None` if it was served.
    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        let find = |line: &Line<T>| line.waiting.iter().position(|(found, _)| *found == place);
        let (at, inner) = self.lines.iter().enumerate().find_map(|(at, line)| Some((at, find(line)?)))?;
        self.take_out(at, inner)
    }

    /// Makes room for a newcomer of the team in a full queue: takes out the newest waiter of the team that
    /// has most, if that team keeps no fewer than the newcomer's team has.
    pub(super) fn displace_for(&mut self, team: &str) -> Option<T> {
        let own = self.waiting_of(team);
        let (at, longest) = self.lines.iter().enumerate().max_by_key(|(_, line)| line.waiting.len())?;
        let last = longest.waiting.len() - 1;
        if last > own { self.take_out(at, last) } else { None }
    }

    fn waiting_of(&self, team: &str) -> usize {
        self.lines.iter().find(|line| line.team == team).map_or(0, |line| line.waiting.len())
    }

    fn take_out(&mut self, at: usize, inner: usize) -> Option<T> {
        let line = self.lines.get_mut(at)?;
        let (_, who) = line.waiting.remove(inner)?;
        if line.waiting.is_empty() {
            self.lines.remove(at);
        }
        Some(who)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn queue(teams: &str) -> FairQueue<String> {
        let mut queue = FairQueue::new();
        for (number, team) in teams.chars().enumerate() {
            let team = team.to_string();
            queue.push(&team, format!("{team}{number}"));
        }
        queue
    }

    fn drain(queue: &mut FairQueue<String>) -> String {
        std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn teams_take_turns_and_within_a_team_the_first_is_served_first() {
        assert_eq!(drain(&mut queue("aaabbc")), "a0 b3 c5 a1 b4 a2");
        // A newcomer does not wait for all who came before it.
        let mut late = queue("aaaaaaaa");
        assert_eq!((late.ahead_of("a"), late.ahead_of("b")), (8, 1));
        late.push("b", "late".to_owned());
        assert_eq!(drain(&mut late), "a0 late a1 a2 a3 a4 a5 a6 a7");
    }

    #[test]
    fn whoever_leaves_is_not_served() {
        let mut queue = FairQueue::new();
        let places = ["a", "b", "a"].map(|team| queue.push(team, team.to_owned()));
        assert_eq!(queue.remove(places[1]).as_deref(), Some("b"));
        assert_eq!(queue.remove(places[1]), None);
        assert_eq!((queue.len(), queue.by_team().collect::<Vec<_>>()), (2, vec![("a", 2)]));
        assert_eq!(queue.remove(places[0]).as_deref(), Some("a"));
        assert_eq!(queue.pop().as_deref(), Some("a"));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_full_queue_makes_room_at_the_cost_of_the_team_that_has_most() {
        let mut full = queue("aaab");
        assert_eq!(full.displace_for("b").as_deref(), Some("a2"), "its newest");
        full.push("b", "b4".to_owned());
        assert_eq!(full.displace_for("b"), None, "two and two is fair");
        assert_eq!(full.displace_for("a"), None);
        assert_eq!(full.displace_for("c").map(|who| who.len()), Some(2));
        assert_eq!(FairQueue::<u8>::new().displace_for("a"), None);
    }

    proptest! {
        /// Whatever is pushed and removed: each comes out once, in its team's order, no team is
        /// passed over while another has two turns, and none waits longer than was expected.
        #[test]
        fn nobody_is_lost_and_no_team_starves(
            steps in proptest::collection::vec((0usize..4, 0u8..4), 1..120),
        ) {
            const TEAMS: [&str; 4] = ["a", "b", "c", "d"];
            let mut queue = FairQueue::new();
            let mut waiting: Vec<(usize, Place)> = Vec::new();
            for (team, action) in steps {
                match action {
                    0 if !waiting.is_empty() => {
                        let (number, place) = waiting.remove(team % waiting.len());
                        prop_assert_eq!(queue.remove(place).map(|(_, told)| told), Some(number));
                    }
                    _ => {
                        let number = waiting.last().map_or(0, |(number, _)| number + 1);
                        waiting.push((number, queue.push(TEAMS[team], (team, number))));
                    }
                }
            }
            let mut expected: BTreeMap<usize, usize> = BTreeMap::new();
            let newcomer = queue.ahead_of("new");
            queue.push("new", (9, usize::MAX));
            let mut left: BTreeMap<usize, usize> = BTreeMap::new();
            for line in &queue.lines {
                let (_, (team, _)) = line.waiting[0];
                left.insert(team, line.waiting.len());
            }
            let (mut last, mut served, mut order) = (BTreeMap::new(), 0, Vec::new());
            prop_assert_eq!(queue.len(), waiting.len() + 1);
            while let Some((team, number)) = queue.pop() {
                if team == 9 {
                    prop_assert!(served <= newcomer, "{} turns instead of {}", served, newcomer);
                }
                prop_assert!(last.insert(team, number).is_none_or(|before| before < number));
                // Between two turns of one team, each other team that waits has one.
                if let Some(before) = expected.insert(team, order.len()) {
                    for other in left.iter().filter(|(_, left)| **left > 0).map(|(other, _)| *other) {
                        let had_one = order[before..].contains(&other);
                        prop_assert!(had_one, "{} was passed over", other);
                    }
                }
                *left.get_mut(&team).unwrap() -= 1;
                order.push(team);
                served += 1;
            }
            prop_assert_eq!(served, waiting.len() + 1);
        }
    }
}
