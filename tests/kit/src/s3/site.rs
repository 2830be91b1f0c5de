//! What the plainest static file server on the bucket would answer: an object's bytes and the type they were stored
//! with, or 404.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::listen::{self, Answer};
use super::objects::Objects;

/// A running one. Dropping it closes it.
pub struct StaticSite {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl StaticSite {
    pub(super) async fn start(objects: Arc<Objects>, prefix: &str) -> StaticSite {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let prefix = prefix.to_owned();
        let task = listen::listen(listener, move |request| {
            let answer = find(&objects, &format!("{prefix}{}", request.uri().path().trim_start_matches('/')));
            async move { Ok(answer) }
        });
        StaticSite { address, _task: task }
    }

    /// `http://127.0.0.1:PORT`, to which a URL's path can be appended.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn find(objects: &Objects, name: &str) -> Answer {
    let Some(object) = objects.map().get(name).cloned() else {
        return listen::page(404, "text/plain", "not here\n".into());
    };
    let mut answer = listen::page(200, "application/octet-stream", object.bytes);
    if let Some(content_type) = object.content_type {
        answer.headers_mut().insert(CONTENT_TYPE, content_type.parse().unwrap());
    }
    answer
}
