//! Listeners with routes of their own, over TCP.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::*;
use crate::http::routes::from_router;
use crate::http::routes::respond::Refused;

async fn refuse(request: Request, next: Next) -> Response {
    match request.extensions().get::<Refused>() {
        Some(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        None => next.run(request).await,
    }
}

/// A listener with two places. Its `/stuck` never answers, and adds a permit when it is asked.
async fn listen(name: ListenerName) -> (SocketAddr, Arc<Semaphore>) {
    let asked = Arc::new(Semaphore::new(0));
    let stuck = asked.clone();
    let routes = Router::new()
        .route(
            "/stuck",
            get(async move || {
                stuck.add_permits(1);
                std::future::pending::<StatusCode>().await
            }),
        )
        .route("/livez", get(async || "ok"))
        .route("/other", get(async || "ok"))
        .layer(from_fn(refuse));
    let routes = from_router(routes);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let write = WriteLimits { grace: Duration::from_secs(30), bytes_per_second: 0 };
    let limits = ConnectionLimits {
        max_connections: 2,
        head: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        socket_buffer: 1 << 17,
        write,
    };
    let metrics = Arc::new(Metrics::new(std::iter::empty()));
    let stops = Stops::default();
    let listener = Listener { name, routes, limits, certificate: None, metrics, stops };
    tokio::spawn(listener.serve(socket));
    (address, asked)
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    stream
}

/// The status of the next answer, or nothing if the connection ends instead.
async fn status(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(head).unwrap()[9..12].to_owned()
}

#[tokio::test]
async fn admin_connections_above_the_limit_get_health_and_nothing_else() {
    for (name, health) in [(ListenerName::Admin, "200"), (ListenerName::Public, "503")] {
        let (address, asked) = listen(name).await;
        let _stuck = [ask(address, "/stuck").await, ask(address, "/stuck").await];
        let _ = asked.acquire_many(2).await.unwrap();
        assert_eq!(status(&mut ask(address, "/livez").await).await, health);
        assert_eq!(status(&mut ask(address, "/other").await).await, "503");
    }
}

#[tokio::test]
async fn silent_connections_make_way_and_busy_ones_do_not() {
    let (address, asked) = listen(ListenerName::Public).await;
    let mut stuck = ask(address, "/stuck").await;
    let _ = asked.acquire().await.unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        let mut next = ask(address, "/livez").await;
        assert_eq!(status(&mut next).await, "200");
        // It is closed, after the body of its answer.
        silent.read_to_end(&mut Vec::new()).await.unwrap();
        silent = next;
    }
    let answer = tokio::time::timeout(Duration::from_millis(50), status(&mut stuck)).await;
    assert!(answer.is_err(), "it is open");
}
