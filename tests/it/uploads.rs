//! The upload of a paid order cut at any byte: it is sent whole once, or it is free.
//!
//! `CUT_UPLOADS` says how many pictures are sent with a cut at every KiB; without it, one with fewer cuts is.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use granary_kit::ailab::FakeAilab;
use granary_kit::images;
use granary_kit::proxy::{Ending, Fault, FaultProxy, Plan};

use crate::harness::{Granary, bytes_of, number, until, upstream_section_at};

/// How often an order that was not sent whole is sent by itself.
const TRIES: usize = 3;
/// The size of a picture, so that every cut of the short form is near one of the long form's.
const PICTURE: usize = 48 * 1024;
const STEP: u64 = 1024;

/// A Granary that reaches the paid API through a proxy.
struct World {
    granary: Granary,
    upstream: FakeAilab,
    proxy: FaultProxy,
    pictures: u64,
}

impl World {
    async fn start(more: &str) -> Self {
        let upstream = FakeAilab::start().await;
        let proxy = FaultProxy::start(&upstream.base_url()).await;
        let hosts = [upstream.result_host()];
        // The connections are counted: nothing but orders is to open one.
        let more = format!("balance_interval = \"0s\"\n{more}");
        let config = upstream_section_at(&proxy.url(), &upstream, &[&hosts[0]], &more);
        Self { granary: Granary::builtin(&config).await, upstream, proxy, pictures: 0 }
    }

    /// A picture nobody has asked for.
    fn picture(&mut self) -> Vec<u8> {
        self.pictures += 1;
        images::padded(&images::tiny_png(16, 16, self.pictures), PICTURE)
    }

    async fn credits(&self, state: &str) -> f64 {
        self.granary.metric(&format!("granary_ledger_credits{{state=\"{state}\"}}")).await
    }

    /// Full sends and charges, the ledger's rows, and nothing left open.
    async fn add_up(&self, unknown: u64) {
        until("no fill to be under way", async || {
            self.granary.metric("granary_coalesce_groups_in_flight").await == 0.0
        })
        .await;
        for state in ["reserved", "sent", "answered"] {
            assert_eq!(self.credits(state).await, 0.0, "{state}");
        }
        assert_eq!(self.upstream.fully_received(), self.upstream.charges());
        let booked = self.credits("stored").await + self.credits("unknown").await;
        let charged = (self.upstream.charges() * 3) as f64;
        assert_eq!(self.credits("unknown").await, (unknown * 3) as f64);
        assert!(charged <= booked && booked - charged <= (unknown * 3) as f64, "{charged} of {booked}");
        for (key, sends) in self.upstream.charges_by_key() {
            assert_eq!(sends, 1, "full sends of {key}");
        }
    }

    /// A purchase without a fault: several lost ones in a row, or most of them, would open the circuit.
    async fn buys_well(&mut self) {
        let picture = self.picture();
        let answer = self.granary.crop(None, &picture, 100, 100).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.proxy.wait_for_idle().await;
    }
}

/// Where the tail begins and where the request ends, in bytes on the wire, by one clean order.
async fn lengths(world: &mut World) -> (u64, u64) {
    let picture = world.picture();
    assert_eq!(world.granary.crop(None, &picture, 100, 100).await.status, 200);
    let whole = world.proxy.wait_for_idle().await[0].to_server;
    let seen = &world.upstream.seen()[0];
    let boundary =
        seen.head.header("content-type").unwrap().split_once("boundary=").unwrap().1.trim_matches('"').len();
    // CRLF, two dashes, the boundary, two dashes, CRLF.
    (whole - (boundary as u64 + 8), whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_cut_at_any_offset_is_sent_whole_once_or_not_at_all() {
    let uploads = number("CUT_UPLOADS");
    let lanes = (0..4_u64).map(|lane| {
        let fault = if lane % 2 == 0 { Fault::Cut } else { Fault::Reset };
        let share = uploads.map_or(1, |uploads| (uploads + 3 - lane) / 4);
        cut_everywhere(fault, share, if uploads.is_some() { 1 } else { 6 }, lane)
    });
    let (cuts, unknown): (Vec<u64>, Vec<u64>) = join_all(lanes).await.into_iter().unzip();
    let (cuts, unknown): (u64, u64) = (cuts.iter().sum(), unknown.iter().sum());
    println!("{cuts} uploads were cut, {unknown} with an unknown outcome; none was sent whole twice");
}

/// Cuts each of `uploads` orders at every `stride`th KiB, and in the tail. Returns cuts and unknown outcomes.
async fn cut_everywhere(fault: fn(u64) -> Fault, uploads: u64, stride: u64, phase: u64) -> (u64, u64) {
    // A key with an unknown outcome rests, and three of them in a row would be many.
    let mut world = World::start("").await;
    let (tail, whole) = lengths(&mut world).await;
    let mut offsets: BTreeSet<u64> =
        (phase..tail / STEP).step_by(stride as usize).map(|kib| kib * STEP).collect();
    offsets.extend([0, 1, tail - 1, tail, tail + 1, tail + 20, whole - 2, whole - 1]);
    let (mut cuts, mut unknown) = (0, 0);
    for _ in 0..uploads {
        for &offset in &offsets {
            let picture = world.picture();
            let (before, received) = (world.proxy.connections(), world.upstream.fully_received());
            world.proxy.on_next(Plan::clean().to_server(fault(offset)));
            let answer = world.granary.crop(None, &picture, 100, 100).await;
            let connections = world.proxy.wait_for_idle().await.split_off(before);
            assert_eq!(connections[0].to_server, offset, "{connections:?}");
            assert!(matches!(connections[0].ending, Some(Ending::Cut | Ending::Reset)), "{connections:?}");
            cuts += 1;
            // What is cut before its tail has left is free: it is sent again at once or, when the cut is noticed late,
            // when somebody asks again. A small order may be with the kernel, tail and all, before the news of the
            // cut is here; then nobody knows.
            let is_again = u64::from(answer.status == 200);
            assert_eq!(connections.len() as u64, 1 + is_again, "at {offset} of {whole}");
            assert_eq!(world.upstream.fully_received(), received + is_again, "at {offset} of {whole}");
            match answer.status {
                200 => {
                    assert!(offset <= tail, "sent again after {offset} of {whole}");
                    let bought = world.upstream.charges();
                    assert!(bytes_of(&answer.result_url()).await == world.upstream.result_bytes(bought));
                }
                502 if answer.text().contains("nothing was charged") => {
                    assert!(offset <= tail, "called free after {offset} of {whole}");
                    let again = world.granary.crop(None, &picture, 100, 100).await;
                    assert_eq!((again.status, world.upstream.fully_received()), (200, received + 1));
                    world.proxy.wait_for_idle().await;
                }
                502 => {
                    unknown += 1;
                    let again = world.granary.crop(None, &picture, 100, 100).await;
                    assert_eq!((again.status, again.header("granary-reason")), (503, Some("hold")));
                }
                other => panic!("{other}: {}", answer.text()),
            }
            world.buys_well().await;
        }
    }
    world.add_up(unknown).await;
    (cuts, unknown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_never_gets_through_is_tried_three_times_and_free() {
    let mut world = World::start("[budget]\ndaily_credits = 3").await;
    world.proxy.go_down().await;
    let picture = world.picture();
    let answer = world.granary.crop(None, &picture, 100, 100).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "AI_SERVICE_ERROR"), "{}", answer.text());
    assert!(answer.text().contains("nothing was charged"), "{}", answer.text());
    let tries = world.granary.metric("granary_upstream_attempts_total{outcome=\"connect\"}").await;
    assert_eq!(tries, TRIES as f64);
    assert_eq!(world.credits("reserved").await + world.credits("sent").await, 0.0);
    // The only credits of the day's budget are still there, and then they are not.
    world.proxy.come_back().await;
    let pictures = [world.picture(), world.picture()];
    assert_eq!(world.granary.crop(None, &pictures[0], 100, 100).await.status, 200);
    let refused = world.granary.crop(None, &pictures[1], 100, 100).await;
    assert_eq!((refused.status, refused.header("granary-reason")), (429, Some("global_daily")));
    assert_eq!((world.proxy.connections(), world.upstream.charges()), (1, 1));
    world.add_up(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_has_a_connection_of_its_own() {
    let mut world = World::start("").await;
    for _ in 0..5 {
        let picture = world.picture();
        assert_eq!(world.granary.crop(None, &picture, 100, 100).await.status, 200);
    }
    // The fake would have kept each open for the next.
    assert_eq!((world.proxy.connections(), world.upstream.attempts()), (5, 5));
    world.proxy.wait_for_idle().await;
    let connections: BTreeSet<u64> = world.upstream.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_cut_at_any_offset_is_unknown_and_never_bought_again_by_itself() {
    let mut world = World::start("").await;
    let (tail, whole) = lengths(&mut world).await;
    assert!(tail < whole);
    let answered = world.proxy.traffic()[0].to_client;
    let mut unknown = 0;
    for (number, fault) in [Fault::Cut, Fault::Reset].into_iter().enumerate() {
        // Before the first byte a cut comes during the upload.
        for part in 1..=6 {
            let offset = (part * answered / 6 + number as u64).min(answered - 1);
            let picture = world.picture();
            world.proxy.on_next(Plan::clean().to_client(fault(offset)));
            let before = world.proxy.connections();
            let answer = world.granary.crop(None, &picture, 100, 100).await;
            assert_eq!(answer.status, 502, "at {offset} of {answered}: {}", answer.text());
            assert_eq!(world.proxy.connections(), before + 1);
            world.buys_well().await;
            unknown += 1;
        }
    }
    assert_eq!(world.upstream.charges(), 1 + 2 * unknown);
    world.add_up(unknown).await;
}
