//! Clients as people use them, unchanged but for address and token: the vendor's Python SDK, `requests`, and Node's
//! `fetch` and `node:http`. The vendor's Rust client is in `drop_in.rs`.

use std::path::Path;
use std::process::Stdio;

use granary_kit::ailab::FakeAilab;
use granary_kit::client;
use granary_kit::reverse_proxy::{Kind, ReverseProxy};
use serde_json::{Value, json};

use super::granary;
use crate::harness::bytes_of;

/// Refused uploads of 20 MB per client.
const TRIES: u64 = 5;

/// Runs one of the scripts beside this file and returns what its clients saw.
async fn run(program: &Path, script: &str, url: &str, token: &str) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new(program)
        .arg(root.join("tests/it/proxies").join(script))
        .args([url, token])
        .arg(root.join("tests/images/rocket.jpg"))
        .arg(TRIES.to_string())
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{}: {error}: run `make test-all`", program.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{script}: {error}: {said}"))
}

/// All clients get one crop, which is paid once, and read every refusal.
async fn every_client_works(kind: Option<Kind>) {
    let upstream = FakeAilab::start().await;
    let (granary, token) = granary(&upstream).await;
    let proxy = kind.map(|kind| ReverseProxy::start(kind, &granary.url()));
    let url = proxy.as_ref().map_or_else(|| granary.url(), ReverseProxy::url);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/proxies/python/bin/python");
    let python = run(&python, "client.py", &url, &token).await;
    let node = run(Path::new("node"), "client.mjs", &url, &token).await;
    println!("{kind:?}: {python} {node}");

    let result = &python["sdk"]["url"];
    let refusals = json!({"401 ERROR_APPLICATIONS_NOT_EXISTS": TRIES});
    let expected = json!({"url": result, "refusals": refusals});
    assert_eq!(python["sdk"]["again"], *result);
    assert_eq!(python["sdk"]["pool"], "image_cropping");
    assert_eq!(python["sdk"]["refusals"], refusals);
    assert_eq!(python["requests"], expected);
    assert_eq!(node, json!({"fetch": expected, "http": expected}));
    assert_eq!(upstream.charges(), 1);

    let result = result.as_str().unwrap();
    let through = client::get(&result.replace(&granary.url(), &url)).await.unwrap();
    assert_eq!(through.body, bytes_of(result).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn official_python_sdk_requests_and_node_work_directly() {
    every_client_works(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs target/proxies, which `make test-all` makes"]
async fn official_python_sdk_requests_and_node_work_through_nginx() {
    every_client_works(Some(Kind::Nginx)).await;
}
