//! `FaultProxy`: a TCP proxy on loopback that delays, cuts, resets, stalls or damages at exact bytes, and counts what passes.
//!
//! Each connection follows one [`Plan`]: the next scripted one, or what is said for all. Offsets count the bytes of one
//! direction of one connection from 0; a fault at `n` comes when exactly `n` bytes have been passed on. Besides that,
//! everything that is open can be held or ended at any moment. It knows nothing of HTTP.

mod pump;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use pump::connect;

/// How long a wait for an event may take before the test is told what was seen instead.
const PATIENCE: Duration = Duration::from_secs(20);

/// What goes wrong in one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every piece is passed on this much later.
    Delay(Duration),
    /// After so many bytes both sides see an orderly end.
    Cut(u64),
    /// After so many bytes both sides get a reset.
    Reset(u64),
    /// After so many bytes this direction stands still. The sender is not read from any more, as behind a full queue.
    Stall(u64),
    /// The byte at this offset arrives with its lowest bit turned.
    Corrupt(u64),
}

/// What goes wrong on one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    to_server: Vec<Fault>,
    to_client: Vec<Fault>,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn clean() -> Plan {
        Plan::default()
    }

    /// Adds a fault on the way from the client to the server.
    #[must_use]
    pub fn to_server(mut self, fault: Fault) -> Plan {
        self.to_server.push(fault);
        self
    }

    /// Adds a fault on the way from the server to the client.
    #[must_use]
    pub fn to_client(mut self, fault: Fault) -> Plan {
        self.to_client.push(fault);
        self
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides had said all they wanted.
    Finished,
    /// In order, but before that: a [`Fault::Cut`], or [`FaultProxy::end_all`].
    Cut,
    /// With a reset: a [`Fault::Reset`], [`FaultProxy::end_all`], or one side's own.
    Reset,
    /// The server took no connection.
    Refused,
}

/// What passed on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes handed to the server.
    pub to_server: u64,
    /// Bytes handed to the client.
    pub to_client: u64,
    /// How it ended, if it has.
    pub ending: Option<Ending>,
}

/// A running proxy. Dropping it closes its listener and every connection.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: Option<AbortOnDropHandle<()>>,
}

struct Shared {
    server: String,
    script: Mutex<Script>,
    traffic: watch::Sender<Vec<Traffic>>,
    held: watch::Sender<bool>,
    /// The newest order to end everything, and how many there have been.
    end: watch::Sender<(u64, Ending)>,
}

#[derive(Default)]
struct Script {
    next: VecDeque<Plan>,
    always: Plan,
}

impl FaultProxy {
    /// Starts before a server, given as a base URL or `host:port`; it need not be there yet.
    pub async fn start(server: &str) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/').to_owned();
        let shared = Arc::new(Shared {
            server,
            script: Mutex::default(),
            traffic: watch::Sender::default(),
            held: watch::Sender::new(false),
            end: watch::Sender::new((0, Ending::Cut)),
        });
        let address = listener.local_addr().unwrap();
        let task = Some(listen(listener, Arc::clone(&shared)));
        FaultProxy { address, shared, task }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Scripts one more of the coming connections; each takes one plan when it is accepted.
    pub fn on_next(&self, plan: Plan) {
        self.shared.script().next.push_back(plan);
    }

    /// What happens to connections for which no plan is left.
    pub fn always(&self, plan: Plan) {
        self.shared.script().always = plan;
    }

    /// Holds every connection, open ones and new ones, or lets them all go on.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// Ends every open connection at once, with a reset or in order.
    pub fn end_all(&self, ending: Ending) {
        self.shared.end.send_modify(|(orders, last)| (*orders, *last) = (*orders + 1, ending));
    }

    /// Closes the listener and every connection; connecting is refused until [`FaultProxy::come_back`].
    pub async fn go_down(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            task.await.ok();
        }
    }

    /// Listens again on the old address.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = Some(listen(listener, Arc::clone(&self.shared)));
    }

    /// Every connection so far, in the order in which they were accepted.
    pub fn traffic(&self) -> Vec<Traffic> {
        self.shared.traffic.borrow().clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.traffic.borrow().len()
    }

    /// Waits until the connections so far satisfy `enough`, and returns them.
    ///
    /// # Panics
    ///
    /// After 20 seconds, with the connections as they are.
    pub async fn wait_until(&self, what: &str, enough: impl Fn(&[Traffic]) -> bool) -> Vec<Traffic> {
        let mut traffic = self.shared.traffic.subscribe();
        let waited = tokio::time::timeout(PATIENCE, traffic.wait_for(|seen| enough(seen))).await;
        match waited {
            Ok(Ok(traffic)) => traffic.clone(),
            _ => panic!("waited {PATIENCE:?} for {what}; the proxy has {:?}", self.traffic()),
        }
    }

    /// Waits until no connection is open, and returns them all.
    pub async fn wait_for_idle(&self) -> Vec<Traffic> {
        self.wait_until("no open connection", |seen| seen.iter().all(|one| one.ending.is_some())).await
    }
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn plan(&self) -> Plan {
        let mut script = self.script();
        script.next.pop_front().unwrap_or_else(|| script.always.clone())
    }

    fn count(&self, number: usize, change: impl FnOnce(&mut Traffic)) {
        self.traffic.send_modify(|all| change(&mut all[number]));
    }
}

fn listen(listener: TcpListener, shared: Arc<Shared>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        // Owned by this task, so that aborting it aborts every connection.
        let mut connections = JoinSet::new();
        loop {
            if let Ok((client, _)) = listener.accept().await {
                let mut number = 0;
                shared.traffic.send_modify(|all| {
                    number = all.len();
                    all.push(Traffic::default());
                });
                connections.spawn(serve(Arc::clone(&shared), client, number));
            }
            while connections.try_join_next().is_some() {}
        }
    }))
}

/// Counts a connection as ended when it is dropped, so that an aborted one is not open for ever.
struct Open<'a>(&'a Shared, usize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.count(self.1, |one| one.ending = one.ending.or(Some(Ending::Cut)));
    }
}

async fn serve(shared: Arc<Shared>, client: TcpStream, number: usize) {
    let _open = Open(&shared, number);
    let plan = shared.plan();
    let ending = connect(&shared, &plan, client, number).await;
    shared.count(number, |one| one.ending = Some(ending));
}
