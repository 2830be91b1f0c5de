//! One connection: two directions, their faults, and the ways in which it ends.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};

use super::{Ending, Fault, Plan, Shared, Traffic};

/// How long the peers may take to read what they were sent before an orderly end.
const LINGER: Duration = Duration::from_secs(5);
/// How often the sender of a direction that stands still is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Connects to the server and passes on until it is over.
pub(super) async fn connect(shared: &Shared, plan: &Plan, mut client: TcpStream, number: usize) -> Ending {
    let mut end = shared.end.subscribe();
    let Ok(mut server) = TcpStream::connect(&shared.server).await else {
        client.set_zero_linger().ok();
        return Ending::Refused;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).ok();
    }
    let ending = {
        let over = Notify::new();
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let way = |faults, count| Way { shared, faults, number, count, over: &over, passed: 0 };
        let up = way(&plan.to_server, |one, bytes| one.to_server += bytes).pump(from_client, to_server);
        let down = way(&plan.to_client, |one, bytes| one.to_client += bytes).pump(from_server, to_client);
        tokio::select! {
            both = async { tokio::try_join!(up, down) } => both.err().unwrap_or(Ending::Finished),
            _ = end.changed() => end.borrow().1,
        }
    };
    match ending {
        Ending::Reset => {
            client.set_zero_linger().ok();
            server.set_zero_linger().ok();
        }
        Ending::Cut => {
            // So that both can read what they were sent, before a reset for what nobody reads destroys it.
            let linger = async { tokio::join!(say_goodbye(&mut client), say_goodbye(&mut server)) };
            tokio::time::timeout(LINGER, linger).await.ok();
        }
        Ending::Finished | Ending::Refused => {}
    }
    ending
}

/// One direction.
struct Way<'a> {
    shared: &'a Shared,
    faults: &'a [Fault],
    number: usize,
    count: fn(&mut Traffic, u64),
    /// Notified when a direction has ended: one that stands still then gives up.
    over: &'a Notify,
    passed: u64,
}

impl Way<'_> {
    /// Passes on to the end of what is sent; an error is what ends the other direction too.
    async fn pump(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Ending> {
        let mut held = self.shared.held.subscribe();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            self.here(&from).await?;
            // Never past a fault, or what is sent behind it would be read, and lost to the sender.
            let most = usize::try_from(self.distance()).unwrap_or(usize::MAX).min(buffer.len());
            let length = from.read(&mut buffer[..most]).await.map_err(|_| Ending::Reset)?;
            let_go(&mut held).await;
            for fault in self.faults {
                match fault {
                    Fault::Delay(time) => tokio::time::sleep(*time).await,
                    Fault::Corrupt(at) => {
                        let place = at.checked_sub(self.passed).and_then(|place| usize::try_from(place).ok());
                        if let Some(byte) = place.and_then(|place| buffer[..length].get_mut(place)) {
                            *byte ^= 1;
                        }
                    }
                    Fault::Cut(_) | Fault::Reset(_) | Fault::Stall(_) => {}
                }
            }
            if length == 0 {
                to.shutdown().await.ok();
                self.over.notify_one();
                return Ok(());
            }
            to.write_all(&buffer[..length]).await.map_err(|_| Ending::Reset)?;
            self.passed += length as u64;
            self.shared.count(self.number, |one| (self.count)(one, length as u64));
        }
    }

    /// What goes wrong at this very offset.
    async fn here(&self, from: &ReadHalf<'_>) -> Result<(), Ending> {
        for fault in self.faults {
            match fault {
                Fault::Cut(at) if *at == self.passed => return Err(Ending::Cut),
                Fault::Reset(at) if *at == self.passed => return Err(Ending::Reset),
                Fault::Stall(at) if *at == self.passed => {
                    tokio::select! {
                        () = self.over.notified() => {}
                        () = gone(from) => {}
                    }
                    return Err(Ending::Reset);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How many bytes may be read before something goes wrong.
    fn distance(&self) -> u64 {
        let ends = self.faults.iter().filter_map(|fault| match fault {
            Fault::Cut(at) | Fault::Reset(at) | Fault::Stall(at) => at.checked_sub(self.passed),
            Fault::Delay(_) | Fault::Corrupt(_) => None,
        });
        ends.min().unwrap_or(u64::MAX)
    }
}

async fn let_go(held: &mut watch::Receiver<bool>) {
    // An error means that the proxy is being dropped, and this task with it.
    held.wait_for(|held| !held).await.ok();
}

/// Returns when a peer that nobody reads from has closed or reset, however much it had sent before.
async fn gone(from: &ReadHalf<'_>) {
    let stream: &TcpStream = from.as_ref();
    loop {
        let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut polled, Some(&now)) {
            Ok(0) => tokio::time::sleep(LOOK).await,
            _ => return,
        }
    }
}

/// Ends our half and reads the other to its end.
async fn say_goodbye(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut thrown_away = [0; 16 * 1024];
    while stream.read(&mut thrown_away).await? > 0 {}
    Ok(())
}
