//! What this program reads and touches is its own: forged records, prepared folders, core dumps.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use granary::base::key::{CacheKey, Digest};
use granary_kit::ailab::FakeAilab;
use granary_kit::client::{self, Answer};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use serde_json::{Value, json};

use crate::harness::{Granary, cache_status, real, until};

const PATIENCE: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "ailab-v1";

fn record_file(granary: &Granary, key: &str) -> PathBuf {
    granary.store_path().join(format!("records/{NAMESPACE}/{}/{key}.json", &key[..2]))
}

async fn look_up(granary: &Granary, key: &str) -> Answer {
    client::get(&format!("{}{}/{key}", granary.url(), client::CROP_PATH)).await.unwrap()
}

/// A real record, as if it were about another picture, with something changed.
fn forged(real: &Value, picture: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut forged = real.clone();
    forged["key"] = json!(CacheKey::of(picture, 24, 24).to_string());
    forged["image"] = json!(Digest::of(picture).to_string());
    change(&mut forged);
    serde_json::to_vec(&forged).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_record_is_not_served_not_imported_and_not_bought_over() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let real_key = CacheKey::of(images::photo_png(), 24, 24).to_string();
    assert_eq!(granary.crop(None, images::photo_png(), 24, 24).await.status, 200);
    let real: Value =
        serde_json::from_slice(&std::fs::read(record_file(&granary, &real_key)).unwrap()).unwrap();
    let path =
        format!("results/{}.{}", real["digest"].as_str().unwrap(), real["extension"].as_str().unwrap());

    type Change<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let answer = |from: String, to: &'static str| -> Change<'_> {
        Box::new(move |record| {
            let text = record["answer"].as_str().unwrap().replace(&from, to);
            record["answer"] = json!(text);
        })
    };
    let forgeries: [Change<'_>; 6] = [
        answer(path.clone(), "https://evil.example/1.png"),
        answer(real["answer"].as_str().unwrap().to_owned(), "<script>alert(1)</script>"),
        answer(real["answer"].as_str().unwrap().to_owned(), "{}"),
        Box::new(|record| record["credits"] = json!(1_u64 << 63)),
        Box::new(|record| record["generation"] = json!(u64::MAX)),
        Box::new(|record| record["width"] = json!(0)),
    ];
    let rows = || {
        let count = "SELECT count(*) FROM calls WHERE state <> 'released'";
        granary.ledger_file().query_row(count, [], |row| row.get::<_, u64>(0)).unwrap()
    };
    for (seed, change) in (0..).zip(&forgeries) {
        let picture = images::tiny_png(24, 24, seed);
        let key = CacheKey::of(&picture, 24, 24).to_string();
        let file = record_file(&granary, &key);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, forged(&real, &picture, change)).unwrap();
        for answer in [granary.crop(None, &picture, 24, 24).await, look_up(&granary, &key).await] {
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (503, "ERROR_RESOURCE_UNAVAILABLE"),
                "{seed}"
            );
        }
        assert_eq!((rows(), upstream.attempts()), (1 + seed, 1 + seed), "{seed}");
        // The key is as good as any other when the record is gone.
        std::fs::remove_file(&file).unwrap();
        let bought = granary.crop(None, &picture, 24, 24).await;
        assert_eq!(cache_status(&bought), "granary; fwd=uri-miss; fwd-status=200; stored", "{seed}");
    }
    // The control: the same record with nothing changed is imported.
    let picture = images::tiny_png(24, 24, 99);
    let key = CacheKey::of(&picture, 24, 24).to_string();
    let file = record_file(&granary, &key);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, forged(&real, &picture, |_| {})).unwrap();
    assert_eq!(cache_status(&granary.crop(None, &picture, 24, 24).await), "granary; hit; detail=store");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_record_does_not_keep_a_new_ledger_from_importing_the_others() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let pictures = [1, 2, 3].map(|seed| images::tiny_png(24, 24, seed));
    for picture in &pictures {
        assert_eq!(granary.crop(None, picture, 24, 24).await.status, 200);
    }
    let file = record_file(&granary, &CacheKey::of(&pictures[1], 24, 24).to_string());
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record["credits"] = json!(1_u64 << 63);
    std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();

    let granary = granary.restart_without_state().await;
    granary.adopt().await;
    until("the import to be complete", async || {
        let ready = client::get(&format!("{}/readyz", granary.admin())).await.unwrap();
        ready.json()["import"] == "complete"
    })
    .await;
    for (picture, status) in pictures.iter().zip([200, 503, 200]) {
        assert_eq!(granary.crop(None, picture, 24, 24).await.status, status);
    }
    let rows = "SELECT count(*) FROM calls WHERE adopted = 1";
    assert_eq!(granary.ledger_file().query_row(rows, [], |row| row.get::<_, u64>(0)).unwrap(), 2);
    assert_eq!(upstream.charges(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_that_is_no_picture_is_not_served() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    let picture = images::tiny_png(24, 24, 1);
    for (bytes, extension, is_served) in [
        (&b"<!doctype html><script>alert(1)</script>"[..], "jpg", false),
        (b"{}", "png", false),
        (&picture, "jpg", false),
        (&picture, "png", true),
    ] {
        let name = format!("{}.{extension}", Digest::of(bytes));
        std::fs::write(granary.store_path().join("results").join(&name), bytes).unwrap();
        let answer = client::get(&format!("{}/results/{name}", granary.url())).await.unwrap();
        assert_eq!(answer.status == 200, is_served, "{name}: {}", answer.status);
        assert_eq!(answer.body == bytes, is_served, "{name}");
    }
}

/// An earlier program may have imported a record with any number in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_of_all_teams_is_booked_beside_a_row_with_forged_credits() {
    let upstream = FakeAilab::start().await;
    let granary = Granary::ailab(&upstream, "").await;
    for side in [24, 25] {
        assert_eq!(granary.crop(None, images::photo_png(), side, side).await.status, 200);
    }
    let forge = "UPDATE calls SET credits = 9223372036854775807, adopted = 1 WHERE width = 24";
    assert_eq!(granary.ledger_file().execute(forge, []).unwrap(), 1);
    let granary = granary.restart().await;
    for side in [24, 24, 24, 25] {
        let hit = granary.crop(None, images::photo_png(), side, side).await;
        assert!(cache_status(&hit).starts_with("granary; hit"), "{}", cache_status(&hit));
    }
    let granary = granary.restart().await;
    let sum = "SELECT sum(requests) FROM served";
    assert_eq!(granary.ledger_file().query_row(sum, [], |row| row.get::<_, u64>(0)).unwrap(), 4);
}

/// Why a start is refused.
async fn refusal(builder: &GranaryBuilder) -> String {
    let finished = builder.run(PATIENCE).await;
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    finished.stderr.lines().last().unwrap_or_default().to_owned()
}

/// A folder of somebody else, with files under names that this program gives too.
fn victim(folder: &Path) -> Vec<PathBuf> {
    std::fs::create_dir_all(folder).unwrap();
    let names = ["0123456789abcdef0123456789abcdef", "notes.txt"].map(|name| folder.join(name));
    names.iter().for_each(|file| std::fs::write(file, b"theirs").unwrap());
    names.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_follows_no_link_that_another_user_prepared() {
    for (planted, named) in [("state/uploads", "uploads"), ("store/tmp", "tmp"), ("state/lock", "lock")] {
        let builder = real();
        let data = builder.home().join("granary-data");
        let files = victim(&builder.home().join("victim"));
        std::fs::create_dir_all(data.join(planted).parent().unwrap()).unwrap();
        let target = if named == "lock" { &files[1] } else { files[0].parent().unwrap() };
        symlink(target, data.join(planted)).unwrap();
        let said = refusal(&builder).await;
        assert!(said.starts_with("granary: ") && said.contains(named), "{planted}: {said}");
        for file in files {
            assert_eq!(std::fs::read(&file).unwrap(), b"theirs", "{planted}");
        }
        // Without it the start works.
        std::fs::remove_file(data.join(planted)).unwrap();
        builder.start().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_removes_only_names_of_its_own() {
    let builder = real();
    let data = builder.home().join("granary-data");
    let mut kept = Vec::new();
    for folder in ["state/uploads", "store/tmp"] {
        let files = victim(&data.join(folder));
        kept.push(files[1].clone());
        assert!(files[0].exists());
    }
    let _granary = builder.start().await.unwrap();
    for file in kept {
        assert_eq!(std::fs::read(&file).unwrap(), b"theirs");
        assert!(!file.with_file_name("0123456789abcdef0123456789abcdef").exists(), "an orphan of ours");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_folder_that_another_user_can_change_is_refused() {
    let builder = real();
    let state = builder.home().join("granary-data/state");
    std::fs::create_dir_all(&state).unwrap();
    let set_mode = |mode| std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o777, 0o1777, 0o703] {
        set_mode(mode);
        let said = refusal(&builder).await;
        assert!(said.contains("state") && said.contains("chmod o-w"), "{said}");
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "and left untouched");
    }
    set_mode(0o755);
    if rustix::process::geteuid().is_root() {
        chown(&state, Some(12_345), None).unwrap();
        let said = refusal(&builder).await;
        assert!(said.contains("belongs to user 12345"), "{said}");
        chown(&state, Some(0), None).unwrap();
    }
    builder.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_is_private_also_one_that_an_earlier_program_made() {
    let builder = real();
    let state = builder.home().join("granary-data/state");
    let mut granary = builder.start().await.unwrap();
    let form = Form::curl(images::photo_jpeg(), 40, 40);
    assert_eq!(client::post_form(&granary.public_url(), None, &form).await.unwrap().status, 200);
    let files = || {
        let names = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    let is_private = |path: &PathBuf| path.metadata().unwrap().permissions().mode() & 0o077 == 0;
    assert!(files().len() >= 3 && files().iter().all(is_private), "{:?}", files());
    granary.kill().await;
    for file in files() {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let _granary = builder.start().await.unwrap();
    assert!(files().len() >= 3 && files().iter().all(is_private), "{:?}", files());
}

/// Runs a program without the right to look into every process, which root has.
fn unprivileged(program: &str) -> (String, Vec<String>) {
    if rustix::process::geteuid().is_root() {
        let arguments = ["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--", program];
        ("setpriv".to_owned(), arguments.map(str::to_owned).to_vec())
    } else {
        (program.to_owned(), Vec::new())
    }
}

/// Asks for what only a process that may trace another one is told.
fn can_look_into(pid: u32) -> bool {
    let (program, arguments) = unprivileged("readlink");
    let read = Command::new(program).args(arguments).arg(format!("/proc/{pid}/exe")).output().unwrap();
    read.status.success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_cannot_be_dumped_or_looked_into() {
    let (program, arguments) = unprivileged(env!("CARGO_BIN_EXE_granary"));
    let start = |builder: GranaryBuilder| {
        let builder = builder.args(arguments.clone());
        async move { builder.start().await.unwrap() }
    };
    let granary = start(GranaryProcess::builder(&program)).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", granary.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    assert!(!can_look_into(granary.pid()));
    // The control: another process of this user, started in the same way, as soon as it has begun.
    let (program, arguments) = unprivileged("sleep");
    let mut other = tokio::process::Command::new(program);
    let other = other.args(arguments).arg("600").kill_on_drop(true).spawn().unwrap();
    let pid = other.id().unwrap();
    until("another process to be looked into", async || can_look_into(pid)).await;
}
