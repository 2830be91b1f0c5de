//! `S3Server`: a bucket in memory that checks signatures and checksums and honours conditional writes.
//!
//! The protocol is the crate `s3s`; here are one bucket behind one lock, so that `If-None-Match` and `If-Match` are
//! decided and done in one step, and the faults a test can ask for. Anonymous requests are denied; what a static
//! server on the bucket would show to anyone is served by [`S3Server::site`].

mod backend;
mod listen;
mod objects;
mod script;
mod site;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use backend::Backend;
use objects::Objects;
pub use objects::StoredObject;
use script::Script;
pub use script::{Fault, Operation};
pub use site::StaticSite;

/// A running server. Dropping it closes its listener and every connection.
pub struct S3Server {
    address: SocketAddr,
    access_key: String,
    secret_key: String,
    objects: Arc<Objects>,
    script: Arc<Script>,
    service: S3Service,
    task: Option<AbortOnDropHandle<()>>,
}

impl S3Server {
    /// Starts on loopback with one empty bucket and random credentials.
    pub async fn start() -> S3Server {
        let access_key = format!("KIT{}", &Uuid::new_v4().simple().to_string().to_uppercase()[..17]);
        let secret_key = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        S3Server::start_for(access_key, secret_key).await
    }

    /// The same, for whoever has these credentials.
    pub async fn start_for(access_key: String, secret_key: String) -> S3Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let objects = Arc::new(Objects::default());
        let backend =
            Backend { bucket: BUCKET.to_owned(), objects: Arc::clone(&objects), made: Default::default() };
        let mut builder = S3ServiceBuilder::new(backend);
        builder.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
        let mut server = S3Server {
            address,
            access_key,
            secret_key,
            objects,
            script: Arc::default(),
            service: builder.build(),
            task: None,
        };
        server.listen(listener);
        server
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The one bucket there is.
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// The access key; random for each server.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret key; random for each server, so that it can be searched for.
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// Writes a credentials file as AWS's tools do.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn write_credentials(&self, file: &Path) -> io::Result<()> {
        let (id, secret) = (&self.access_key, &self.secret_key);
        std::fs::write(
            file,
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"),
        )
    }

    /// Scripts the next `count` requests for which nothing is scripted yet.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.script.next(count, None, fault);
    }

    /// The same for requests of one kind.
    pub fn fail_next_of(&self, operation: Operation, count: usize, fault: Fault) {
        self.script.next(count, Some(operation), fault);
    }

    /// What happens to every request for which nothing else is scripted.
    pub fn fail_always(&self, fault: Fault) {
        self.script.always(Some((None, fault)));
    }

    /// The same for requests of one kind.
    pub fn fail_always_of(&self, operation: Operation, fault: Fault) {
        self.script.always(Some((Some(operation), fault)));
    }

    /// Ends [`S3Server::fail_always`].
    pub fn heal(&self) {
        self.script.always(None);
    }

    /// Makes it a server that overwrites whatever is asked, as some that call themselves compatible do.
    pub fn ignore_conditions(&self, if_none_match: bool, if_match: bool) {
        self.objects.ignore_conditions(if_none_match, if_match);
    }

    /// Requests of one kind whose heads have been seen, failed ones included.
    pub fn count(&self, operation: Operation) -> u64 {
        self.script.seen(operation)
    }

    /// All requests whose heads have been seen.
    pub fn requests(&self) -> u64 {
        self.script.all_seen()
    }

    /// All names, in order.
    pub fn names(&self) -> Vec<String> {
        self.objects.map().keys().cloned().collect()
    }

    /// What is under a name.
    pub fn object(&self, name: &str) -> Option<StoredObject> {
        self.objects.map().get(name).cloned()
    }

    /// Puts bytes under a name, behind everyone's back. What else is known of the name stays.
    pub fn set(&self, name: &str, bytes: impl Into<Bytes>) {
        self.objects.overwrite(name, bytes.into());
    }

    /// Turns one bit in the middle of what is under a name.
    ///
    /// # Panics
    ///
    /// When there is nothing.
    pub fn corrupt(&self, name: &str) {
        let mut bytes = self.object(name).unwrap_or_else(|| panic!("nothing is under {name}")).bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        self.set(name, bytes);
    }

    /// Removes a name; says whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.objects.map().remove(name).is_some()
    }

    /// Removes everything.
    pub fn empty(&self) {
        self.objects.map().clear();
    }

    /// A plain static file server on what is below `prefix` in the bucket, open to anyone.
    pub async fn site(&self, prefix: &str) -> StaticSite {
        StaticSite::start(Arc::clone(&self.objects), prefix).await
    }

    /// Closes the listener and its connections; connecting is refused until [`S3Server::come_back`].
    pub async fn go_down(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            task.await.ok();
        }
    }

    /// Listens again on the old address, with all that was in the bucket.
    pub async fn come_back(&mut self) {
        self.listen(TcpListener::bind(self.address).await.unwrap());
    }

    fn listen(&mut self, listener: TcpListener) {
        let (service, script) = (self.service.clone(), Arc::clone(&self.script));
        self.task = Some(listen::listen(listener, move |request| {
            listen::serve(service.clone(), Arc::clone(&script), request)
        }));
    }
}

const BUCKET: &str = "granary-test";
