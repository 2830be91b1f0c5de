//! A disk that fails under a running process: chosen system calls return errors, by strace's fault injection.
//!
//! The calls themselves are not made, which is how a failing disk looks from above. strace needs to be installed and
//! ptrace to be permitted; where it is not, the test fails and says so, because to pass unseen would be worse.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long attaching and detaching may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which calls fail, how, and from when on.
#[derive(Clone, Copy, Debug)]
pub struct Failing<'a> {
    /// Names of system calls, separated by commas.
    pub calls: &'a str,
    /// The error's name, such as `EIO`.
    pub error: &'a str,
    /// strace's `when`: `3` is the third call of each thread, `3+` that one and all after it.
    pub when: &'a str,
    /// Only calls on these files; none means all.
    pub only: &'a [&'a Path],
}

/// Faults under a process, until they are lifted or this is dropped.
#[derive(Debug)]
pub struct DiskFault {
    strace: Child,
    folder: TempDir,
}

impl DiskFault {
    /// Attaches to a process and all its threads; calls fail from when this returns.
    ///
    /// # Panics
    ///
    /// When strace is missing or may not attach, with what to do.
    pub async fn under(pid: u32, failing: Failing<'_>) -> DiskFault {
        let Failing { calls, error, when, only } = failing;
        DiskFault::attach(pid, calls, &format!("error={error}:when={when}"), only).await
    }

    /// Attaches likewise; nothing fails, but every one of these calls takes so much longer.
    ///
    /// # Panics
    ///
    /// As [`under`](Self::under).
    pub async fn slow(pid: u32, calls: &str, by: Duration) -> DiskFault {
        DiskFault::attach(pid, calls, &format!("delay_enter={}", by.as_micros()), &[]).await
    }

    async fn attach(pid: u32, calls: &str, what: &str, only: &[&Path]) -> DiskFault {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new("strace");
        command.args(["-f", "-o"]).arg(folder.path().join("calls"));
        command.arg("-e").arg(format!("trace={calls}"));
        command.arg("-e").arg(format!("inject={calls}:{what}"));
        for path in only {
            command.arg("-P").arg(path);
        }
        command.arg("-p").arg(pid.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut strace = command.spawn().unwrap_or_else(|error| {
            panic!("strace cannot be started ({error}): install it, as `make test` does")
        });
        let mut said = BufReader::new(strace.stderr.take().expect("piped")).lines();
        let mut all = String::new();
        // Said once, when every thread is held.
        let attached = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = said.next_line().await.unwrap() {
                if line.contains(&format!("Process {pid} attached")) {
                    return true;
                }
                all.push_str(&line);
                all.push('\n');
            }
            false
        });
        if !attached.await.unwrap_or(false) {
            panic!(
                "strace cannot attach to a process of ours: {all}\n\
                 these tests need ptrace: in a container, allow SYS_PTRACE; see /proc/sys/kernel/yama/ptrace_scope"
            );
        }
        // So that it is never stopped by a pipe that nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        DiskFault { strace, folder }
    }

    /// How many calls have failed so far.
    pub fn failed(&self) -> usize {
        let calls = std::fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.matches("(INJECTED)").count()
    }

    /// Waits until at least so many calls have failed.
    ///
    /// # Panics
    ///
    /// After half a minute.
    pub async fn wait_for_failed(&self, calls: usize) {
        let reached = async {
            while self.failed() < calls {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, reached).await;
        assert!(waited.is_ok(), "only {} of {calls} calls have failed", self.failed());
    }

    /// Detaches; the disk works again when this returns. Says how many calls had failed.
    pub async fn lift(mut self) -> usize {
        if let Some(pid) = self.strace.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It ends of itself when the process does; until it is waited for, the id is its own.
            kill_process(pid, Signal::TERM).ok();
        }
        let ended = tokio::time::timeout(PATIENCE, self.strace.wait()).await;
        assert!(ended.is_ok(), "strace does not end");
        self.failed()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Syncs a file whenever it is told to, and says how that went.
    fn child(file: &Path) -> std::process::Child {
        let script = format!(
            "while read -r line; do sync {} 2>/dev/null && echo yes || echo no; done",
            file.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn ask(child: &mut std::process::Child) -> String {
        use std::io::{BufRead, BufReader, Write};
        child.stdin.as_mut().unwrap().write_all(b"now\n").unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    #[tokio::test]
    async fn calls_fail_from_the_moment_they_should_until_it_is_lifted() {
        let folder = TempDir::new().unwrap();
        let (file, other) = (folder.path().join("a"), folder.path().join("b"));
        for path in [&file, &other] {
            std::fs::write(path, "x").unwrap();
        }
        let mut child = child(&file);
        assert_eq!(ask(&mut child), "yes");
        let failing = Failing { calls: "fsync", error: "EIO", when: "1+", only: &[] };
        // Every sync is a process of its own, so `when` counts from one in each.
        for (only, said, failed) in
            [(&[][..], "no", 2), (&[file.as_path()], "no", 2), (&[other.as_path()], "yes", 0)]
        {
            let fault = DiskFault::under(child.id(), Failing { only, ..failing }).await;
            assert_eq!([ask(&mut child), ask(&mut child)], [said, said], "{only:?}");
            assert_eq!(fault.lift().await, failed, "{only:?}");
            assert_eq!(ask(&mut child), "yes");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    #[should_panic(expected = "strace cannot attach")]
    async fn a_process_that_cannot_be_attached_to_is_named() {
        let mut gone = Command::new("true").spawn().unwrap();
        let pid = gone.id();
        gone.wait().unwrap();
        DiskFault::under(pid, Failing { calls: "fsync", error: "EIO", when: "1+", only: &[] }).await;
    }
}
