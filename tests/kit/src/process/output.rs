//! What a child says and that it has ended, collected by threads so that neither a full pipe nor a busy test disturbs it.

use std::io::Read;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;
use tokio::sync::watch;

/// Waits for the end in a thread without reaping, so that the id stays the child's until its owner has seen the end.
pub(super) fn watch_exit(child: &Child) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    let pid = Pid::from_child(child);
    std::thread::spawn(move || {
        let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), unreaped) {}
        sender.send_replace(true);
    });
    receiver
}

/// One output of the child, read to its end.
#[derive(Debug)]
pub(super) struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Changes with every piece; the value says whether that was the last.
    ended: Arc<watch::Sender<bool>>,
    is_paused: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    pub(super) fn follow(mut pipe: impl Read + Send + 'static) -> Output {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(watch::Sender::new(false));
        let is_paused = Arc::new(AtomicBool::new(false));
        let (all, tell, paused) = (Arc::clone(&bytes), Arc::clone(&ended), Arc::clone(&is_paused));
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 8192];
            while let Ok(read @ 1..) = pipe.read(&mut piece) {
                all.lock().unwrap().extend_from_slice(&piece[..read]);
                tell.send_replace(false);
                while paused.load(Ordering::SeqCst) {
                    std::thread::park();
                }
            }
            tell.send_replace(true);
        });
        Output { bytes, ended, is_paused, reader: Some(reader) }
    }

    /// Leaves the pipe alone, after one more piece at most.
    pub(super) fn pause(&self) {
        self.is_paused.store(true, Ordering::SeqCst);
    }

    pub(super) fn go_on(&self) {
        self.is_paused.store(false, Ordering::SeqCst);
        self.reader.iter().for_each(|reader| reader.thread().unpark());
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// The first JSON line that is wanted, as soon as it is there; `None` when the output has ended without it.
    pub(super) async fn find_line(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let mut ended = self.ended.subscribe();
        let mut read = 0;
        loop {
            // Asked before the bytes are looked at, so that the last line before the end is looked at too.
            let over = *ended.borrow_and_update();
            {
                let bytes = self.bytes.lock().unwrap();
                while let Some(length) = memchr::memchr(b'\n', &bytes[read..]) {
                    let line = serde_json::from_slice(&bytes[read..read + length]);
                    read += length + 1;
                    if let Ok(line) = line
                        && wanted(&line)
                    {
                        return Some(line);
                    }
                }
            }
            if over {
                return None;
            }
            ended.changed().await.ok()?;
        }
    }

    /// Waits until everything is read. Only after the child's end, and it must not have left children of its own behind.
    pub(super) fn finish(&mut self) {
        self.go_on();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
    }
}
