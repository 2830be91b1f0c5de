//! Two real processes in front of one bucket, each with a ledger of its own: what one has put there the other never
//! overwrites, they agree on one record, and every URL that either has answered serves its bytes from both for ever.
//!
//! Without a common ledger a key may be paid for by each. That is not lost either: it becomes a URL of its own.

use std::collections::{BTreeMap, BTreeSet};

use granary::base::key::Digest;
use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{self, Answer, Call};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use granary_kit::s3::S3Server;
use serde_json::Value;
use tempfile::TempDir;

use crate::bucket::store_section;
use crate::harness::{adopt, cache_status, real, team, upstream_section};

/// Keys asked for by both at the same moments.
const KEYS: u64 = 40;
/// Of them at once.
const AT_ONCE: u64 = 8;
const PREFIX: &str = "granary/test/";

/// Everything ever seen in the bucket, and what it was.
#[derive(Default)]
struct Seen {
    objects: BTreeMap<String, String>,
    records: BTreeMap<String, (u64, String)>,
}

impl Seen {
    /// Looks again: objects are for ever, and a record changes only with its generation.
    fn look(&mut self, bucket: &S3Server) {
        for name in bucket.names() {
            let stored = bucket.object(&name).unwrap();
            let Some(path) = name.strip_prefix(PREFIX) else { panic!("{name} is outside the prefix") };
            if let Some(object) = path.strip_prefix("results/") {
                assert!(
                    object.starts_with(&Digest::of(&stored.bytes).to_string()),
                    "{object} has other bytes"
                );
                let first = self.objects.entry(path.to_owned()).or_insert_with(|| stored.tag.clone());
                assert_eq!(*first, stored.tag, "{path} was written twice");
            } else if path.starts_with("records/") {
                let record: Value = serde_json::from_slice(&stored.bytes).unwrap();
                let generation = record["generation"].as_u64().unwrap();
                let (known, tag) =
                    self.records.entry(path.to_owned()).or_insert((generation, stored.tag.clone()));
                assert!(generation >= *known, "{path} went back");
                assert!(generation > *known || *tag == stored.tag, "{path} was replaced in its generation");
                (*known, *tag) = (generation, stored.tag);
            }
        }
        let now: BTreeSet<String> = bucket.names().into_iter().collect();
        for path in self.objects.keys() {
            assert!(now.contains(&format!("{PREFIX}{path}")), "{path} is gone");
        }
    }

    /// The path of the URL that the record of a key names.
    fn winner(bucket: &S3Server, key: &str) -> String {
        let name = format!("{PREFIX}records/ailab-v1/{}/{key}.json", &key[..2]);
        let stored = bucket.object(&name).unwrap_or_else(|| panic!("no {name}"));
        let record: Value = serde_json::from_slice(&stored.bytes).unwrap();
        format!("/results/{}.{}", record["digest"].as_str().unwrap(), record["extension"].as_str().unwrap())
    }
}

fn path_of(answer: &Answer) -> String {
    let url = answer.result_url();
    url[url.find("/results/").unwrap()..].to_owned()
}

async fn ask(granary: &GranaryProcess, token: &str, seed: u64, refresh: bool) -> Answer {
    let form = Form::curl(images::tiny_png(16, 16, seed), 64, 64);
    let call = Call::crop(&granary.public_url(), token, &form);
    let call = if refresh { call.header("Granary-Refresh", "1") } else { call };
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status, 200, "{seed}: {}", answer.text());
    answer
}

/// Both are asked for every key at the same moment; returns the paths of all URLs they answered.
async fn race(
    both: [&GranaryProcess; 2],
    token: &str,
    bucket: &S3Server,
    seen: &mut Seen,
    refresh: bool,
) -> BTreeSet<String> {
    let mut urls = BTreeSet::new();
    for first in (0..KEYS).step_by(AT_ONCE as usize) {
        let asked = (first..first + AT_ONCE).map(|seed| async move {
            tokio::join!(ask(both[0], token, seed, refresh), ask(both[1], token, seed, refresh))
        });
        for (one, other) in futures_util::future::join_all(asked).await {
            let key = one.header("granary-key").unwrap();
            assert_eq!(Some(key), other.header("granary-key"));
            let winner = Seen::winner(bucket, key);
            for answer in [&one, &other] {
                assert_eq!(path_of(answer), winner, "{key}: {}", cache_status(answer));
                urls.insert(path_of(answer));
            }
        }
        seen.look(bucket);
    }
    urls
}

async fn serves_all(granary: &GranaryProcess, urls: &BTreeSet<String>) {
    for url in urls {
        let answer = client::get(&format!("{}{url}", granary.public_url())).await.unwrap();
        assert_eq!(answer.status, 200, "{url}: {}", answer.text());
        assert!(url.contains(&Digest::of(&answer.body).to_string()), "{url} serves other bytes");
        assert_eq!(answer.header("content-type"), Some("image/png"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_one_bucket_agree_and_never_overwrite() {
    let (upstream, bucket, folder) =
        (FakeAilab::start().await, S3Server::start().await, TempDir::new().unwrap());
    // Both pay before either has stored anything.
    upstream.always(Behaviour::Delay(std::time::Duration::from_millis(30)));
    let (table, token) = team("web", "may_refresh = true");
    let config = format!(
        "{}\n{}\n[server]\ndrain_grace = \"0s\"\n{table}",
        upstream_section(&upstream, "concurrency = 16"),
        store_section(&bucket, &folder)
    );
    let builders: [GranaryBuilder; 2] =
        [real().config_text(config.clone()), real().config_text(config.clone())];
    let (mut one, mut other) = (builders[0].start().await.unwrap(), builders[1].start().await.unwrap());
    // The second ledger comes to a store that is not its own yet.
    adopt(&other.admin_url()).await;
    let mut seen = Seen::default();

    let mut urls = race([&one, &other], &token, &bucket, &mut seen, false).await;
    assert_eq!(urls.len() as u64, KEYS);
    let bought = upstream.charges();
    assert!(bought > KEYS + KEYS / 4, "{bought} charges for {KEYS} keys: there was no race");
    assert!(upstream.charges_by_key().values().all(|&charges| charges <= 2));
    assert_eq!(seen.objects.len() as u64, bought, "what was paid for is kept, winner or not");
    assert_eq!(seen.records.len() as u64, KEYS);

    // The same again with records that stand and are to be replaced.
    let refreshed = race([&one, &other], &token, &bucket, &mut seen, true).await;
    assert!(refreshed.is_disjoint(&urls) && refreshed.len() as u64 == KEYS, "{} new URLs", refreshed.len());
    assert!(seen.records.values().all(|(generation, _)| *generation == 1), "{:?}", seen.records);
    let bought = upstream.charges();
    assert_eq!(seen.objects.len() as u64, bought);
    urls.extend(refreshed);
    // Those that lost their race have never been answered; they are permanent all the same.
    let every: BTreeSet<String> = seen.objects.keys().map(|path| format!("/{path}")).collect();
    assert!(every.is_superset(&urls));

    let site = bucket.site(PREFIX).await;
    for url in &every {
        let answer = client::get(&format!("{}{url}", site.url())).await.unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
    }
    for granary in [&one, &other] {
        serves_all(granary, &every).await;
    }
    // And after everything: restarts, and a machine that has never seen any of it.
    for (granary, builder) in [(&mut one, &builders[0]), (&mut other, &builders[1])] {
        granary.kill().await;
        *granary = builder.start().await.unwrap();
    }
    let third = real().config_text(config).start().await.unwrap();
    for granary in [&one, &other, &third] {
        serves_all(granary, &every).await;
        for seed in 0..KEYS {
            let hit = ask(granary, &token, seed, false).await;
            assert!(cache_status(&hit).starts_with("granary; hit"), "{}", cache_status(&hit));
            assert_eq!(path_of(&hit), Seen::winner(&bucket, hit.header("granary-key").unwrap()));
        }
    }
    seen.look(&bucket);
    assert_eq!((upstream.charges(), seen.objects.len() as u64), (bought, bought));
    println!("{KEYS} keys by two processes, twice: {bought} charges, as many objects, none written twice");
}
