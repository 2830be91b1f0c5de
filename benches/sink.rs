//! The reference of the benchmarks: what any server must do that wants to know the key of a picture. hyper with its
//! defaults and the system's allocator reads the body, hashes it and answers 400 bytes.

#![allow(clippy::print_stderr, reason = "its address is printed as the program prints it")]
#![allow(clippy::unwrap_used, reason = "a panic is the report of what cannot be measured")]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    eprintln!(r#"{{"message":"listening","public":"{}"}}"#, listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(hash));
        tokio::spawn(connection);
    }
}

async fn hash(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let mut hasher = blake3::Hasher::new();
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            hasher.update(&piece);
        }
    }
    Ok(Response::new(Full::from(format!("{:<400}", hasher.finalize().to_hex()))))
}
