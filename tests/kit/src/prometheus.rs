//! A real Prometheus of one's own, and `promtool`: both of the Debian package `prometheus`.
//!
//! It scrapes and evaluates as its configuration says, keeps its data in a folder that goes with it, and listens on
//! loopback. It is asked over its HTTP API, as Grafana asks it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::bound::{Bound, free_port};
use crate::client::{self, Call};

/// How long a start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, until it is dropped.
#[derive(Debug)]
pub struct Prometheus {
    server: Bound,
    url: String,
    folder: TempDir,
}

/// One series of the answer to an instant query.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its labels, the name among them, as JSON.
    pub labels: Value,
    /// Its value; `NaN` and infinities are such.
    pub value: f64,
}

impl Prometheus {
    /// Starts one with this configuration file, beside whose copy are the files of `folder`, such as its rules.
    ///
    /// # Panics
    ///
    /// When it cannot be started, with what it said.
    pub async fn start(configuration: &str, folder: &Path) -> Self {
        let own = tempfile::Builder::new().prefix("kit-prometheus").tempdir().unwrap();
        let copied = Command::new("cp").arg("-r").arg(folder).arg(own.path().join("etc")).status().unwrap();
        assert!(copied.success(), "{} was not copied", folder.display());
        fs::write(own.path().join("etc/prometheus.yaml"), configuration).unwrap();
        for _ in 0..20 {
            let port = free_port();
            let mut server = launch(own.path(), port);
            let url = format!("http://127.0.0.1:{port}");
            if is_ready(&mut server, &url, own.path()).await {
                return Self { server, url, folder: own };
            }
        }
        panic!("Prometheus did not start: {}", log(own.path()));
    }

    /// What an instant query answers.
    ///
    /// # Errors
    ///
    /// What Prometheus says of an expression that it cannot evaluate.
    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let call = Call::new("POST", &format!("{}/api/v1/query", self.url));
        let call = call.header("Content-Type", "application/x-www-form-urlencoded");
        let answer = call.body(format!("query={}", escaped(expression))).send().await.unwrap().json();
        if answer["status"] != "success" {
            return Err(answer["error"].as_str().unwrap_or_default().to_owned());
        }
        let data = &answer["data"];
        if data["resultType"] == "scalar" {
            return Ok(vec![Sample { labels: Value::Null, value: number(&data["result"][1]) }]);
        }
        let series = data["result"].as_array().expect("a vector is a list");
        Ok(series
            .iter()
            .map(|series| Sample { labels: series["metric"].clone(), value: number(&series["value"][1]) })
            .collect())
    }

    /// `data` of a route of the API, such as `rules`.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub async fn api(&self, route: &str) -> Value {
        let answer = client::get(&format!("{}/api/v1/{route}", self.url)).await.unwrap().json();
        assert_eq!(answer["status"], "success", "{route}: {answer}");
        answer["data"].clone()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        log(self.folder.path())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.server.child.kill().ok();
        self.server.child.wait().ok();
    }
}

/// Runs `promtool` with this on its standard input.
///
/// # Panics
///
/// When it cannot be run.
pub fn promtool(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("promtool: {error}: install the package prometheus, as `make test` does")
    });
    // It may end before it has read all, and says why.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().unwrap()
}

fn launch(folder: &Path, port: u16) -> Bound {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "prometheus"]);
    command.arg(format!("--config.file={}", folder.join("etc/prometheus.yaml").display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    command.arg("--log.level=warn");
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.current_dir(folder);
    Bound::spawn(command)
}

/// Waits until it serves; `false` when it has ended, as when somebody took its port.
async fn is_ready(server: &mut Bound, url: &str, folder: &Path) -> bool {
    let begun = Instant::now();
    loop {
        let ready = client::get(&format!("{url}/-/ready")).await;
        if server.child.try_wait().unwrap().is_some() {
            return false;
        }
        if ready.is_ok_and(|answer| answer.status == 200) {
            return true;
        }
        assert!(begun.elapsed() < PATIENCE, "Prometheus is not ready: {}", log(folder));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    match value.as_str().expect("values are strings") {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        text => text.parse().unwrap_or_else(|_| panic!("{text} is no number")),
    }
}

/// As a form wants it: whatever is not plain is given as its bytes.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_evaluates_what_it_scrapes_and_says_what_is_wrong_with_an_expression() {
        let folder = TempDir::new().unwrap();
        let rule = "groups: [{name: x, rules: [{record: a:b, expr: vector(7)}]}]";
        fs::write(folder.path().join("rules.yaml"), rule).unwrap();
        let server =
            Prometheus::start("global: {evaluation_interval: 1s}\nrule_files: [rules.yaml]\n", folder.path())
                .await;
        let begun = Instant::now();
        while server.query("a:b").await.unwrap().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{}", server.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(server.query("a:b + 1").await.unwrap()[0].value, 8.0);
        assert!(server.query("-1 / 0").await.unwrap()[0].value == f64::NEG_INFINITY);
        assert_eq!(server.query("a:b > 8").await.unwrap().len(), 0);
        assert!(server.query("sum(").await.unwrap_err().contains("parse error"));
        assert_eq!(server.api("rules").await["groups"][0]["rules"][0]["name"], "a:b");
        let url = server.url.clone();
        drop(server);
        assert!(client::get(&url).await.is_err());
    }

    #[test]
    fn promtool_reads_what_it_is_given() {
        let good =
            promtool(&["check", "metrics"], b"# HELP a_total Some.\n# TYPE a_total counter\na_total 1\n");
        assert!(good.status.success(), "{good:?}");
        assert!(!promtool(&["check", "metrics"], b"# TYPE a counter\na 1\n").status.success());
    }
}
