//! Clients that are silent, slow or too many: they are closed in time, cost no memory for long, and keep
//! nobody else from being served.
//!
//! `CONNECTIONS` says how many of each kind there are, and takes the real limits of time then (default
//! 200, with short ones).

use std::time::{Duration, Instant};

use granary_kit::ailab::{Behaviour, FakeAilab};
use granary_kit::client::{Answer, CROP_PATH, Call, RawConnection};
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::GranaryProcess;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::harness::{
    Granary, cache_status, metric, number, real, real_ailab, team, until, upstream_section, within,
};
use crate::result_memory::{begin, end, keep_result};

/// A field of `/proc/PID/status` in KiB.
fn memory(process: &GranaryProcess, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// CPU time of a process so far, in clock ticks.
fn ticks(process: &GranaryProcess) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// This process, too, has to hold all of them.
fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// The median and the 99th percentile.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Hits on a kept connection, one after the other, while `going`.
async fn hits(url: String, call: Call, mut going: impl FnMut() -> bool) -> Vec<Duration> {
    let mut connection = RawConnection::open(&url).await.unwrap();
    let mut times = Vec::new();
    while going() {
        let asked = Instant::now();
        let answer = connection.call(&call).await.unwrap();
        assert_eq!(cache_status(&answer), "granary; hit; detail=memory");
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_slow_clients_are_closed_in_time_and_hits_go_on_meanwhile() {
    allow_many_files();
    let long = number("CONNECTIONS");
    let clients = usize::try_from(long.unwrap_or(200)).unwrap();
    let (head, body) = match long {
        Some(_) => (Duration::from_secs(5), Duration::from_secs(60)),
        None => (Duration::from_secs(2), Duration::from_secs(4)),
    };
    let config =
        format!("[server]\nhead_timeout = \"{}s\"\nbody_timeout = \"{}s\"", head.as_secs(), body.as_secs());
    let process = real().config_text(config).start().await.unwrap();
    let url = process.public_url();
    let call = Call::crop(&url, None, &Form::curl(images::photo_jpeg(), 60, 60));
    assert_eq!(call.send().await.unwrap().status, 200);
    let upload = Call::crop(&url, None, &Form::curl(images::padded(images::photo_jpeg(), 3_500_000), 60, 60));
    let undisturbed = hits(url.clone(), call.clone(), count_down(100)).await;

    let resting = memory(&process, "VmRSS");
    for _ in 0..2 {
        let before = memory(&process, "VmRSS");
        let opened = Instant::now();
        let mut waiting = Vec::new();
        for number in 0..3 * clients {
            let mut connection = RawConnection::open(&url).await.unwrap();
            match number % 3 {
                0 => {}
                1 => connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap(),
                _ => {
                    let bytes = upload.to_bytes();
                    connection.send(&bytes[..bytes.len() - upload.body_len() + 100]).await.unwrap();
                }
            }
            waiting.push((number % 3, connection));
        }
        let took_to_open = opened.elapsed();
        let peak = memory(&process, "VmRSS");
        let (limit, slack) = (body.max(Duration::from_secs(6)), Duration::from_secs(15));
        let serving = tokio::spawn(hits(url.clone(), call.clone(), {
            let end = opened + took_to_open + head;
            move || Instant::now() < end
        }));
        let mut tasks = tokio::task::JoinSet::new();
        for (kind, mut connection) in waiting {
            tasks.spawn(async move {
                let deadline = tokio::time::Instant::now() + limit + slack;
                let answer = tokio::time::timeout_at(deadline, async {
                    match kind {
                        0 => {
                            assert_eq!(connection.read_to_close().await.unwrap(), b"");
                            None
                        }
                        _ => Some(connection.read_answer(false).await.unwrap()),
                    }
                });
                let answer: Option<Answer> = answer.await.expect("closed in time");
                if let Some(answer) = answer {
                    assert_eq!((answer.status, answer.code().as_str()), (408, "ERROR_PARAMETERS"));
                }
                (kind, opened.elapsed())
            });
        }
        let mut last = [Duration::ZERO; 3];
        while let Some(ended) = tasks.join_next().await {
            let (kind, took) = ended.unwrap();
            last[kind] = last[kind].max(took);
        }
        let disturbed = serving.await.unwrap();
        assert!(disturbed.len() > 10, "hits were served meanwhile");
        for (kind, limit) in [(0, head), (1, head), (2, body.min(Duration::from_secs(8)))] {
            assert!(last[kind] < took_to_open + limit + slack, "{kind}: {last:?}");
        }
        until("connections to end", async || {
            metric(&process.admin_url(), "granary_connections_open{listener=\"public\"}").await <= 0.0
        })
        .await;
        // The allocator gives back in its own time, while others are served.
        let limit = resting + resting / 20 + 16 * 1024;
        let closed = Instant::now();
        until("memory to be back where it was", async || {
            hits(url.clone(), call.clone(), count_down(20)).await;
            memory(&process, "VmRSS") < limit
        })
        .await;
        let (after, returned) = (memory(&process, "VmRSS"), closed.elapsed());
        println!(
            "3 x {clients} clients, opened in {took_to_open:?}; the last silent, slow-header, slow-body one was closed \
             after {last:?}; RSS {before} KiB before, {peak} with them, {after} {returned:?} after; a hit (median, p99) took {:?} \
             before, {:?} meanwhile ({} hits)",
            percentiles(undisturbed.clone()),
            percentiles(disturbed.clone()),
            disturbed.len(),
        );
    }
    for phase in ["first_byte", "head"] {
        let series = format!("granary_connections_closed_total{{listener=\"public\",reason=\"{phase}\"}}");
        assert_eq!(metric(&process.admin_url(), &series).await, 2.0 * clients as f64, "{phase}");
    }
}

/// True so many times.
fn count_down(mut left: u32) -> impl FnMut() -> bool {
    move || {
        left = left.saturating_sub(1);
        left > 0
    }
}

/// A connection with a request that stays under way: its body does not come.
async fn uploading(url: &str) -> RawConnection {
    let mut connection = RawConnection::open(url).await.unwrap();
    let head = format!(
        "POST {CROP_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n\
         Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    );
    connection.send(head.as_bytes()).await.unwrap();
    assert_eq!(connection.read_interim().await.unwrap(), 100);
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_above_the_limit_is_refused_while_none_is_idle() {
    let granary = Granary::builtin("[server]\nmax_connections = 20\nmin_upload_rate = 0").await;
    let call = Call::new("GET", &granary.url());
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(uploading(&granary.url()).await);
    }
    for _ in 0..5 {
        let answer = call.send().await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (503, "AI_SERVICE_FLOW_RESTRICTION"));
        assert_eq!(answer.header("granary-reason"), Some("connections"));
        assert_eq!(answer.headers("connection"), ["close"]);
        assert!(answer.header("retry-after").is_some());
    }
    let refused = "granary_connections_closed_total{listener=\"public\",reason=\"limit\"}";
    assert_eq!(granary.metric(refused).await, 5.0);
    // A place that is left is taken.
    drop(open.pop());
    until("a place", async || call.send().await.is_ok_and(|answer| answer.status == 200)).await;
    // Far more than can be refused with an answer at once, and silent: they are closed.
    open.push(uploading(&granary.url()).await);
    let url = granary.url();
    let flood = futures_util::future::join_all((0..600).map(|_| RawConnection::open(&url))).await;
    let asked = Instant::now();
    let admin = "granary_connections_closed_total{listener=\"admin\",reason=\"limit\"}";
    assert_eq!(granary.metric(admin).await, 0.0);
    println!("an operator was answered in {:?}", asked.elapsed());
    for connection in flood {
        let mut connection = connection.unwrap();
        within("the end", async {
            let _ = connection.read_to_close().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longest_idle_connection_of_the_peer_with_most_makes_way_for_another() {
    let granary = Granary::builtin("[server]\nmax_connections = 20\nmin_upload_rate = 0").await;
    let url = granary.url();
    let call = Call::new("GET", &url);
    let idle = async |from: [u8; 4]| {
        let mut connection = RawConnection::open_from(&url, from).await.unwrap();
        assert_eq!(connection.call(&call).await.unwrap().status, 200);
        connection
    };
    // The longest-idle of all, of a peer that holds few.
    let mut few = vec![idle([127, 0, 0, 2]).await, idle([127, 0, 0, 2]).await];
    let mut working = uploading(&url).await;
    let mut many = Vec::new();
    for _ in 0..17 {
        many.push(idle([127, 0, 0, 1]).await);
    }
    // The oldest is not the longest-idle any more.
    assert_eq!(many[0].call(&call).await.unwrap().status, 200);
    for from in [[127, 0, 0, 3], [127, 0, 0, 4], [127, 0, 0, 1]] {
        few.push(idle(from).await);
    }
    for (number, connection) in many.iter_mut().enumerate() {
        let is_open = connection.call(&call).await.is_ok_and(|answer| answer.status == 200);
        assert_eq!(is_open, !(1..4).contains(&number), "{number}");
    }
    for connection in &mut few {
        assert_eq!(connection.call(&call).await.unwrap().status, 200);
    }
    working.send(&[b'x'; 1000]).await.unwrap();
    assert_eq!(working.read_answer(false).await.unwrap().status, 400, "its request goes on");
    let evicted = "granary_connections_closed_total{listener=\"public\",reason=\"limit\"}";
    assert_eq!(granary.metric(evicted).await, 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_answer_while_256_idle_admin_connections_are_held() {
    let granary = Granary::builtin("").await;
    let admin = granary.admin();
    // Silent ones and kept ones make way.
    let mut held = Vec::new();
    for number in 0..256 {
        let mut connection = RawConnection::open(&admin).await.unwrap();
        if number % 2 == 0 {
            assert_eq!(
                connection.call(&Call::new("GET", &format!("{admin}/livez"))).await.unwrap().status,
                200
            );
        }
        held.push(connection);
    }
    for path in ["/livez", "/readyz", "/metrics", "/admin/v1/build"] {
        for _ in 0..5 {
            let call = Call::new("GET", &format!("{admin}{path}"));
            assert_eq!(within("health", call.send()).await.unwrap().status, 200, "{path}");
        }
    }
    drop(held);
}

/// In stages, each with more load than the one before: what is refused first is what costs most and is
/// missed least, and what was paid for is finished in every one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_more_and_more_load_misses_go_first_and_what_is_stored_is_served_to_the_last_place() {
    let upstream = FakeAilab::start().await;
    let (web, token) = team("web", "");
    let (greedy, greedy_token) = team("greedy", "");
    let section = upstream_section(&upstream, "concurrency = 1\nmax_concurrency = 1\nqueue = 3");
    let granary =
        Granary::builtin(&format!("[server]\nmax_connections = 20\n{section}\n{web}\n{greedy}")).await;
    let url = granary.url();
    let call = |token: &str, seed| {
        Call::crop(&url, Some(token), &Form::curl(images::tiny_png(16, 16, seed), 64, 64))
    };
    let stored = call(&token, 0).send().await.unwrap();
    let (hit, result) = (call(&token, 0), Call::new("GET", &stored.result_url()));
    upstream.always(Behaviour::Hold);
    let wait = async |token: &str, seed| {
        let mut connection = RawConnection::open(&url).await.unwrap();
        connection.send(&call(token, seed).to_bytes()).await.unwrap();
        connection
    };
    let served = async || {
        for (call, status) in [(&hit, 200), (&result, 200), (&call("no-token", 9), 401)] {
            let answer = call.send().await.unwrap();
            assert_eq!(answer.status, status, "{}", answer.text());
        }
    };
    let is_busy = |answer: &Answer| {
        assert_eq!(
            (answer.status, answer.header("granary-reason")),
            (503, Some("busy")),
            "{}",
            answer.text()
        );
    };
    let queued = "granary_upstream_queue_depth{team=\"greedy\"}";
    // The slot is taken, and one team has all the places of the queue that it may have.
    let mut waiting = vec![wait(&greedy_token, 1).await];
    upstream.wait_for_held(1).await;
    for seed in [2, 3] {
        waiting.push(wait(&greedy_token, seed).await);
        granary.wait_for_metric(queued, (seed - 1) as f64).await;
    }
    served().await;
    // First go the misses of a team that has its share.
    is_busy(&call(&greedy_token, 4).send().await.unwrap());
    waiting.push(wait(&token, 5).await);
    granary.wait_for_metric("granary_upstream_queue_depth{team=\"web\"}", 1.0).await;
    served().await;
    // Then all misses that are not being made already.
    is_busy(&call(&token, 6).send().await.unwrap());
    // Then those too that would only wait: two teams have their shares of fifteen places.
    while waiting.len() < 13 {
        waiting.push(wait(&token, 1).await);
        granary.wait_for_metric("granary_coalesce_followers", waiting.len() as f64).await;
    }
    is_busy(&call(&token, 1).send().await.unwrap());
    served().await;
    // To the last place what is stored is served.
    let mut kept = Vec::new();
    for _ in 0..7 {
        let mut connection = RawConnection::open(&url).await.unwrap();
        assert_eq!(connection.call(&hit).await.unwrap().status, 200);
        kept.push(connection);
    }
    // And beyond: the longest-idle connection makes way.
    assert_eq!(hit.send().await.unwrap().status, 200);
    assert!(kept.remove(0).call(&result).await.is_err());
    for mut connection in kept {
        assert_eq!(connection.call(&result).await.unwrap().status, 200);
    }
    // And nothing that had begun was given up.
    upstream.always(Behaviour::Success);
    upstream.release();
    for mut connection in waiting {
        assert_eq!(connection.read_answer(false).await.unwrap().status, 200);
    }
    assert_eq!(upstream.charges(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_take_its_answer_is_closed_and_others_are_served() {
    let config = "[server]\nwrite_timeout = \"1s\"\nmin_download_rate = \"64MiB\"";
    let granary = Granary::builtin(config).await;
    let url = granary.crop(None, images::photo_png(), 800, 800).await.result_url();
    let call = Call::new("GET", &url);
    let size = call.send().await.unwrap().body.len();
    // More than the buffers of both ends hold.
    let requests = 32 * 1024 * 1024 / size;
    let mut greedy = Vec::new();
    for _ in 0..5 {
        let mut connection = RawConnection::open(&granary.url()).await.unwrap();
        let bytes = call.to_bytes().repeat(requests);
        // It reads nothing, so after a while nobody reads what it sends.
        let sent = tokio::time::timeout(Duration::from_millis(200), connection.send(&bytes)).await;
        drop(sent);
        greedy.push(connection);
    }
    let slow = "granary_connections_closed_total{listener=\"public\",reason=\"write\"}";
    until("slow readers to be closed", async || granary.metric(slow).await == 5.0).await;
    assert_eq!(call.send().await.unwrap().status, 200);
    until("an end", async || granary.metric("granary_connections_open{listener=\"public\"}").await == 0.0)
        .await;
    // Whoever takes it, however large, is not.
    let mut connection = RawConnection::open(&granary.url()).await.unwrap();
    for _ in 0..requests.min(100) {
        assert_eq!(connection.call(&call).await.unwrap().body.len(), size);
    }
    assert_eq!(granary.metric(slow).await, 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_an_answer_for_longer_than_a_connection_may_rest_gets_all_of_it() {
    let granary = Granary::builtin("[server]\nidle_timeout = \"1s\"").await;
    let url = granary.url();
    // More than the buffers of both ends hold.
    let (path, bytes) = keep_result(&granary.store_path(), 1, 24 << 20);
    let taking = begin(&url, &path).await;
    for _ in 0..2 {
        let mut resting = RawConnection::open(&url).await.unwrap();
        assert_eq!(resting.call(&Call::new("GET", &url)).await.unwrap().status, 200);
        assert_eq!(resting.read_to_close().await.unwrap(), b"", "it has rested for too long");
    }
    assert!(end(taking, &bytes).await, "an answer was cut short");
    let idle = "granary_connections_closed_total{listener=\"public\",reason=\"idle\"}";
    assert_eq!(granary.metric(idle).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_ended_its_half_is_still_answered_and_waiting_for_that_costs_nothing() {
    let upstream = FakeAilab::start().await;
    upstream.always(Behaviour::Hold);
    let process = real_ailab(&upstream).start().await.unwrap();
    let url = process.public_url();
    let call = Call::crop(&url, None, &Form::curl(images::tiny_png(16, 16, 1), 64, 64));
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut connection = RawConnection::open(&url).await.unwrap();
        connection.send(&call.to_bytes()).await.unwrap();
        connection.shutdown_write().await.unwrap();
        waiting.push(connection);
    }
    let followers = "granary_coalesce_followers";
    until("all to wait", async || metric(&process.admin_url(), followers).await == 50.0).await;
    upstream.wait_for_held(1).await;
    let (before, asked) = (ticks(&process), Instant::now());
    // The time itself is what is tested.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (used, passed) = (ticks(&process) - before, asked.elapsed().as_millis() / 10);
    assert!(u128::from(used) < passed / 2, "{used} of {passed} hundredths of a second were spent on waiting");
    assert_eq!(metric(&process.admin_url(), followers).await, 50.0, "nobody has been given up");
    upstream.release();
    for mut connection in waiting {
        let answer = connection.read_answer(false).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.interim.iter().all(|status| *status == 100), "{:?}", answer.interim);
    }
    assert_eq!(upstream.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_politely_is_not_waited_for() {
    let upstream = FakeAilab::start().await;
    upstream.on_next(Behaviour::Hold);
    let config = upstream_section(&upstream, "concurrency = 1");
    let granary = Granary::builtin(&config).await;
    let call = |seed| Call::crop(&granary.url(), None, &Form::curl(images::tiny_png(16, 16, seed), 64, 64));
    let mut blocking = RawConnection::open(&granary.url()).await.unwrap();
    blocking.send(&call(1).to_bytes()).await.unwrap();
    upstream.wait_for_held(1).await;
    let mut queued = Vec::new();
    for _ in 0..3 {
        let mut connection = RawConnection::open(&granary.url()).await.unwrap();
        connection.send(&call(2).to_bytes()).await.unwrap();
        queued.push(connection);
    }
    granary.wait_for_metric("granary_coalesce_followers", 4.0).await;
    // All has been read, so this is an orderly end and no reset.
    drop(queued);
    granary.wait_for_metric("granary_coalesce_followers", 1.0).await;
    upstream.release();
    assert_eq!(blocking.read_answer(false).await.unwrap().status, 200);
    granary.wait_for_metric("granary_coalesce_groups_in_flight", 0.0).await;
    assert_eq!((upstream.attempts(), upstream.charges()), (1, 1), "what nobody waits for is not bought");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_open_files_is_raised_and_one_that_is_too_low_is_said() {
    let start = async |limits: &str| {
        let binary = env!("CARGO_BIN_EXE_granary");
        let shell = GranaryProcess::builder("/bin/sh").args(["-c", &format!("{limits}; exec {binary}")]);
        let process = shell.start().await.unwrap();
        let text = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers, process.stderr_text().contains("may open fewer files"))
    };
    assert_eq!(start("ulimit -Sn 400; ulimit -Hn 1000").await, (vec![1000, 1000], true));
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if hard >= 10_512 {
        assert_eq!(start("ulimit -Sn 400; ulimit -Hn 10512").await, (vec![10_512, 10_512], false));
    }
}
