//! A child of somebody else's making that does not outlive us, not even when we are killed: [`Bound`].

use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;

/// A running child. Linux ends it with the *thread* that started it, if it is started through `setpriv --pdeathsig`;
/// so it is started by a thread that lives as long as this.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) child: Child,
    /// Dropped with the child.
    _parent: mpsc::Sender<()>,
}

impl Bound {
    /// Starts it.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let (started, child) = mpsc::channel();
        let (parent, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            let _ = started.send(command.spawn());
            let _ = ended.recv();
        });
        Self { child: child.recv().unwrap().unwrap(), _parent: parent }
    }
}

/// A port of loopback that nobody has at the moment, for programs that cannot be given port 0. Somebody may take it
/// before they do: they are started again on another one.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
