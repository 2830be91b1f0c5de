//! The circuit in paused time: what opens it, who may try, what closes it, and what callers are told.

use super::*;
use crate::base::key::CacheKey;

const KEY: u8 = 0;

fn key(tag: u8) -> Identity {
    Identity::new("ailab-v1", CacheKey::of(&[tag], 1, 1))
}

struct Rig {
    circuit: Arc<Circuit>,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new(["local"].into_iter()));
        Self { circuit: Circuit::new(metrics.clone()), metrics }
    }

    /// Makes one attempt that must be let through.
    fn attempt(&self, attempt: Attempt) {
        let pass = self.circuit.enter(&key(KEY), None).expect("it is let through");
        pass.tell(attempt);
    }

    /// What a purchase would be refused with: its code and reason, and the seconds to wait.
    fn refused(&self) -> Option<(&'static str, u64)> {
        let entered = self.circuit.enter(&key(KEY), None);
        let looked = self.circuit.refusal();
        let error = entered.err()?;
        let response = error.response();
        assert_eq!(looked.map(|error| error.response().reason), Some(response.reason));
        Some((response.reason.unwrap(), response.retry_after.map_or(0, |wait| wait.as_secs())))
    }

    fn series(&self, series: &str) -> i64 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let value =
            text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
        value.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }
}

async fn pass_time(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn five_lost_attempts_in_a_row_open_it_and_one_real_request_closes_it() {
    let rig = Rig::new();
    for _ in 0..4 {
        rig.attempt(Attempt::Lost);
    }
    rig.attempt(Attempt::Refused);
    for _ in 0..5 {
        assert_eq!(rig.refused(), None, "a refusal showed that it is there");
        rig.attempt(Attempt::Lost);
    }
    assert_eq!(rig.refused(), Some(("circuit_open", 10)));
    pass_time(9).await;
    assert!(rig.refused().is_some());
    pass_time(1).await;
    assert!(rig.circuit.refusal().is_none(), "looking takes nothing");
    let probe = rig.circuit.enter(&key(1), None).expect("the probe");
    assert_eq!(rig.refused(), Some(("circuit_open", 5)), "one at a time");
    assert_eq!(rig.series("granary_purchases_blocked{cause=\"outage\"}"), 1);
    probe.tell(Attempt::Sold);
    assert_eq!(rig.refused(), None);
    rig.attempt(Attempt::Lost);
    assert_eq!(rig.refused(), None, "it counts from the beginning");
}

#[tokio::test(start_paused = true)]
async fn more_than_half_of_twenty_open_it() {
    let rig = Rig::new();
    for _ in 0..6 {
        [Attempt::Lost, Attempt::Lost, Attempt::Sold].into_iter().for_each(|attempt| rig.attempt(attempt));
    }
    rig.attempt(Attempt::Lost);
    assert_eq!(rig.refused(), None);
    rig.attempt(Attempt::Lost);
    assert_eq!(rig.refused(), Some(("circuit_open", 10)));
}

#[tokio::test(start_paused = true)]
async fn one_bad_picture_does_not_stop_everybody() {
    let rig = Rig::new();
    (0..30).for_each(|_| rig.attempt(Attempt::Failed));
    assert_eq!(rig.refused(), None);
    for tag in 1..5 {
        rig.circuit.enter(&key(tag), None).expect("closed").tell(Attempt::Failed);
    }
    assert_eq!(rig.refused(), Some(("circuit_open", 10)), "five of them say more");
}

#[tokio::test(start_paused = true)]
async fn errors_about_one_teams_pictures_rest_that_team_alone() {
    let rig = Rig::new();
    let enter = |team, tag| rig.circuit.enter(&key(tag), Some(team));
    let fails = |team, tag| enter(team, tag).expect("it is let through").tell(Attempt::Failed);
    (0..5).for_each(|tag| fails("careless", tag));
    assert!(enter("careless", 9).is_err(), "it rests");
    assert_eq!(rig.refused(), None, "no other does");
    enter("other", 10).expect("let through").tell(Attempt::Sold);
    pass_time(10).await;
    let only = enter("careless", 11).expect("one attempt after its rest");
    assert!(enter("careless", 12).is_err());
    only.tell(Attempt::Failed);
    assert!(enter("careless", 13).is_err());
    pass_time(10).await;
    enter("careless", 14).expect("one attempt").tell(Attempt::Refused);
    (0..4).for_each(|tag| fails("careless", tag));
    enter("careless", 15).expect("it counts from the beginning").tell(Attempt::Sold);

    // Pictures of several teams: the upstream does not work.
    (0..3).for_each(|tag| fails("careless", tag));
    (3..8).for_each(|tag| fails(if tag % 2 == 0 { "careless" } else { "other" }, tag));
    assert_eq!(rig.refused(), Some(("circuit_open", 10)));

    // An error that is not the upstream's own says nothing about pictures.
    let rig = Rig::new();
    for tag in 0..5 {
        rig.circuit.enter(&key(tag), Some("only")).expect("let through").tell(Attempt::Broken);
    }
    assert_eq!(rig.refused(), Some(("circuit_open", 10)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_keeps_it_open_longer_in_a_long_outage_and_never_over_a_minute() {
    let rig = Rig::new();
    (0..5).for_each(|_| rig.attempt(Attempt::Lost));
    let mut waits = Vec::new();
    for _ in 0..40 {
        let (_, wait) = rig.refused().expect("open");
        waits.push(wait);
        pass_time(wait + 1).await;
        rig.attempt(Attempt::Lost);
    }
    assert_eq!(waits[..6], [10; 6], "for the first minute");
    assert!(waits.is_sorted() && waits.last() == Some(&60), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_a_verdict_leaves_its_place_to_another() {
    let rig = Rig::new();
    (0..5).for_each(|_| rig.attempt(Attempt::Lost));
    pass_time(10).await;
    for _ in 0..3 {
        drop(rig.circuit.enter(&key(KEY), None).expect("the place is free"));
    }
    // Only the probe's own word counts, not that of a probe before it.
    let probe = rig.circuit.enter(&key(KEY), None).expect("the probe");
    probe.tell(Attempt::Lost);
    pass_time(10).await;
    let next = rig.circuit.enter(&key(KEY), None).expect("the next one");
    drop(probe);
    assert!(rig.refused().is_some());
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn what_began_before_it_opened_neither_closes_it_nor_keeps_it_open() {
    let rig = Rig::new();
    let early = [(); 3].map(|()| rig.circuit.enter(&key(KEY), None).expect("closed"));
    (0..5).for_each(|_| rig.attempt(Attempt::Lost));
    early[0].tell(Attempt::Lost);
    early[1].tell(Attempt::Sold);
    assert_eq!(rig.refused(), Some(("circuit_open", 10)));
    assert!(!early[2].may_retry());
    pass_time(10).await;
    rig.attempt(Attempt::Sold);
    assert!(early[2].may_retry());
}

#[tokio::test(start_paused = true)]
async fn without_credits_nothing_is_bought_until_a_probe_or_the_balance_says_so() {
    let rig = Rig::new();
    let early = rig.circuit.enter(&key(KEY), None).expect("closed");
    rig.attempt(Attempt::NoCredits);
    assert_eq!(rig.refused(), Some(("upstream_credits", 300)));
    assert!(rig.circuit.lacks_credits());
    early.tell(Attempt::Sold);
    assert!(rig.circuit.lacks_credits(), "that was bought before");
    pass_time(60).await;
    rig.attempt(Attempt::NoCredits);
    assert_eq!(rig.refused(), Some(("upstream_credits", 300)));
    pass_time(60).await;
    // What is refused for the picture's sake says nothing of credits.
    rig.attempt(Attempt::Refused);
    assert!(rig.circuit.lacks_credits());
    rig.attempt(Attempt::Sold);
    assert_eq!(rig.refused(), None);
    rig.attempt(Attempt::NoCredits);
    // The balance is no proof: it lets one real request through, however often it is told.
    rig.circuit.credits_are_back();
    let probe = rig.circuit.enter(&key(1), None).expect("the probe, at once");
    rig.circuit.credits_are_back();
    assert_eq!(rig.refused(), Some(("upstream_credits", 300)), "one at a time");
    assert_eq!(rig.series("granary_purchases_blocked{cause=\"no_credits\"}"), 1);
    probe.tell(Attempt::NoCredits);
    assert_eq!(rig.refused(), Some(("upstream_credits", 300)));
    rig.circuit.credits_are_back();
    rig.attempt(Attempt::Sold);
    assert_eq!(rig.refused(), None);
    rig.circuit.credits_are_back();
    assert_eq!((rig.refused(), rig.circuit.is_closed()), (None, true));
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_stops_all_until_it_changes_or_works() {
    let rig = Rig::new();
    let with_the_old_key = rig.circuit.enter(&key(KEY), None).expect("closed");
    rig.attempt(Attempt::KeyRefused);
    assert_eq!(rig.refused(), Some(("upstream_key", 0)));
    pass_time(60).await;
    rig.attempt(Attempt::KeyRefused);
    assert!(rig.refused().is_some());
    rig.circuit.key_changed();
    assert_eq!(rig.refused(), None);
    with_the_old_key.tell(Attempt::KeyRefused);
    assert_eq!(rig.refused(), None, "nothing is said of the new key");
    rig.attempt(Attempt::KeyRefused);
    pass_time(60).await;
    rig.attempt(Attempt::Sold);
    assert_eq!(rig.refused(), None);
}

#[tokio::test(start_paused = true)]
async fn three_lost_results_in_a_row_stop_all_buying_until_one_is_stored() {
    let rig = Rig::new();
    let lose = || rig.circuit.result_lost(Some(rig.circuit.enter(&key(KEY), None).expect("closed")));
    lose();
    lose();
    rig.circuit.result_kept(None);
    lose();
    lose();
    assert_eq!(rig.refused(), None);
    // One that a dead process had bought counts as well.
    rig.circuit.result_lost(None);
    assert_eq!(rig.refused(), Some(("purchase_stop", 60)));
    pass_time(60).await;
    let probe = rig.circuit.enter(&key(KEY), None).expect("the probe");
    probe.tell(Attempt::Sold);
    assert_eq!(rig.refused(), Some(("purchase_stop", 5)), "that it was sold is not enough");
    rig.circuit.result_lost(Some(probe));
    assert_eq!(rig.refused(), Some(("purchase_stop", 120)), "each probe may cost credits for nothing");
    pass_time(120).await;
    let probe = rig.circuit.enter(&key(KEY), None).expect("the probe");
    probe.tell(Attempt::Sold);
    rig.circuit.result_kept(Some(probe));
    assert_eq!(rig.refused(), None);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_result_is_delayed_has_failed_until_it_comes_after_all() {
    let rig = Rig::new();
    let before = rig.circuit.enter(&key(9), None).expect("closed");
    (0..3).for_each(|_| rig.circuit.result_lost(None));
    pass_time(60).await;
    let probe = rig.circuit.enter(&key(KEY), None).expect("the probe");
    probe.tell(Attempt::Sold);
    rig.circuit.result_delayed(&probe);
    assert_eq!(rig.refused(), Some(("purchase_stop", 120)), "the real wait, and a longer one");
    pass_time(120).await;
    let second = rig.circuit.enter(&key(1), None).expect("the next probe");
    second.tell(Attempt::Sold);
    // What ends meanwhile tells nothing new, and takes the place of nobody.
    rig.circuit.result_lost(Some(probe));
    rig.circuit.result_kept(Some(before));
    assert_eq!(rig.refused(), Some(("purchase_stop", 5)));
    // Nor does a success from before make the next failure count for less.
    rig.circuit.result_lost(Some(second));
    assert_eq!(rig.refused(), Some(("purchase_stop", 240)));
    pass_time(240).await;
    let third = rig.circuit.enter(&key(2), None).expect("the next probe");
    third.tell(Attempt::Sold);
    rig.circuit.result_delayed(&third);
    rig.circuit.result_kept(Some(third));
    assert_eq!(rig.refused(), None, "one real request has succeeded");
}

#[tokio::test(start_paused = true)]
async fn troubles_may_come_together_and_each_is_over_by_itself() {
    let rig = Rig::new();
    (0..3).for_each(|_| rig.circuit.result_lost(None));
    pass_time(60).await;
    rig.attempt(Attempt::KeyRefused);
    assert_eq!(rig.refused(), Some(("upstream_key", 0)));
    rig.circuit.key_changed();
    let probe = rig.circuit.enter(&key(KEY), None).expect("the stop's wait is over");
    probe.tell(Attempt::NoCredits);
    rig.circuit.credits_are_back();
    let probe = rig.circuit.enter(&key(KEY), None).expect("the stop's wait is over");
    probe.tell(Attempt::Sold);
    rig.circuit.result_kept(Some(probe));
    assert_eq!(rig.refused(), None);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_it_to_refuse_is_told() {
    let rig = Rig::new();
    let waiting = tokio::spawn({
        let circuit = rig.circuit.clone();
        async move { circuit.refuses().await.response().reason }
    });
    tokio::task::yield_now().await;
    rig.attempt(Attempt::NoCredits);
    assert_eq!(waiting.await.unwrap(), Some("upstream_credits"));
    assert_eq!(rig.circuit.refuses().await.response().reason, Some("upstream_credits"));
}

#[tokio::test(start_paused = true)]
async fn every_change_is_in_the_metrics_once() {
    let rig = Rig::new();
    let blocked = |cause: &str| rig.series(&format!("granary_purchases_blocked{{cause=\"{cause}\"}}"));
    assert_eq!((blocked("outage"), blocked("key_refused")), (0, 0));
    (0..5).for_each(|_| rig.attempt(Attempt::Lost));
    rig.attempt_refused();
    assert_eq!((blocked("outage"), blocked("key_refused")), (1, 0));
    pass_time(10).await;
    rig.attempt(Attempt::KeyRefused);
    assert_eq!((blocked("outage"), blocked("key_refused")), (0, 1), "it is there, and refuses the key");
    rig.circuit.key_changed();
    assert_eq!((blocked("outage"), blocked("key_refused")), (0, 0));
}

impl Rig {
    fn attempt_refused(&self) {
        assert!(self.refused().is_some());
    }
}
