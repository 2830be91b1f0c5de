//! A small HTTP/1.1 client for tests: the ordinary calls in one line, and the extraordinary ones a library will not make.
//!
//! Every call opens its own connection unless it is made on a [`RawConnection`]. Nothing is retried, no redirect is
//! followed, and an answer that is not whole is an error. Every wait ends after a minute.

mod connection;

use std::io;

pub use connection::RawConnection;

use crate::form::Form;
use crate::wire::Head;

/// The path of the crop endpoint.
pub const CROP_PATH: &str = "/api/image/editing/image-cropping";

/// One whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, headers in order.
    pub head: Head,
    /// The body, chunk framing removed.
    pub body: Vec<u8>,
    /// The interim answers that came before, such as 100.
    pub interim: Vec<u16>,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Every value of a header.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.head.all(name)
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// If it is not JSON, with the body.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `data.url` of a successful answer.
    ///
    /// # Panics
    ///
    /// If there is none, with the answer.
    pub fn result_url(&self) -> String {
        let json = self.json();
        json["data"]["url"]
            .as_str()
            .unwrap_or_else(|| panic!("no data.url: {} {json}", self.status))
            .to_owned()
    }

    /// `error_detail.code` of a refusal, or nothing.
    pub fn code(&self) -> String {
        self.json()["error_detail"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// `GET` of a whole URL.
pub async fn get(url: &str) -> io::Result<Answer> {
    Call::new("GET", url).send().await
}

/// `HEAD` of a whole URL.
pub async fn head(url: &str) -> io::Result<Answer> {
    Call::new("HEAD", url).send().await
}

/// A crop: `POST` of a form to the endpoint, with a token or without.
pub async fn post_form(base_url: &str, token: impl Into<Option<&str>>, form: &Form) -> io::Result<Answer> {
    Call::crop(base_url, token, form).send().await
}

/// One request, to be sent in one of several ways.
#[derive(Clone, Debug)]
pub struct Call {
    method: String,
    authority: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

/// What came of a request that asked with `Expect: 100-continue`.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Whether a 100 arrived, and so the body was sent.
    pub continued: bool,
    /// The final answer.
    pub answer: Answer,
}

impl Call {
    /// A request for a whole `http://host:port/target` URL, without headers besides `Host`.
    pub fn new(method: &str, url: &str) -> Call {
        let (authority, target) = split(url);
        Call { method: method.to_owned(), authority, target, headers: Vec::new(), body: None }
    }

    /// A crop.
    pub fn crop<'a>(base_url: &str, token: impl Into<Option<&'a str>>, form: &Form) -> Call {
        let call = Call::new("POST", &format!("{}{CROP_PATH}", base_url.trim_end_matches('/')))
            .header("Content-Type", &form.content_type())
            .body(form.to_bytes());
        match token.into() {
            Some(token) => call.header("ailabapi-api-key", token),
            None => call,
        }
    }

    /// Adds a header line; names may repeat.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Call {
        self.body = Some(body.into());
        self
    }

    /// The length of the body, for choosing where to cut it.
    pub fn body_len(&self) -> usize {
        self.body.as_ref().map_or(0, Vec::len)
    }

    /// Sends it whole, on a connection of its own, and then reads the answer. If the server closes during the upload,
    /// the answer counts only if it can be read all the same.
    pub async fn send(&self) -> io::Result<Answer> {
        RawConnection::open(&self.authority).await?.call(self).await
    }

    /// Sends it as curl does: as soon as the server says anything, the rest of the upload is not sent.
    pub async fn send_until_answered(&self) -> io::Result<Answer> {
        let mut connection = RawConnection::open(&self.authority).await?;
        connection.send_until_answered(&self.to_bytes()).await?;
        connection.read_answer(self.method == "HEAD").await
    }

    /// Sends the head with `Expect: 100-continue`, and the body only if a 100 arrives. There is no timer that sends it anyway.
    pub async fn send_expecting_continue(&self) -> io::Result<Expected> {
        let mut connection = RawConnection::open(&self.authority).await?;
        let length = self.body_len();
        connection
            .send(&self.head_bytes(&format!("Expect: 100-continue\r\nContent-Length: {length}\r\n")))
            .await?;
        let first = connection.read_head().await?;
        if first.start[1] == "100" {
            connection.send(self.body.as_deref().unwrap_or_default()).await?;
            return Ok(Expected { continued: true, answer: connection.read_answer(false).await? });
        }
        Ok(Expected { continued: false, answer: connection.read_rest(first, Vec::new(), false).await? })
    }

    /// Sends the body chunked, in chunks of `piece` bytes, without a length.
    pub async fn send_chunked(&self, piece: usize) -> io::Result<Answer> {
        let mut connection = RawConnection::open(&self.authority).await?;
        connection.send(&self.head_bytes("Transfer-Encoding: chunked\r\n")).await?;
        for chunk in self.body.as_deref().unwrap_or_default().chunks(piece.max(1)) {
            connection.send(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).await?;
        }
        connection.send(b"0\r\n\r\n").await?;
        connection.read_answer(false).await
    }

    /// Sends it with its length, the body in pieces cut at these offsets, each in a write of its own.
    pub async fn send_split(&self, offsets: &[usize]) -> io::Result<Answer> {
        let mut connection = RawConnection::open(&self.authority).await?;
        let body = self.body.as_deref().unwrap_or_default();
        connection.send(&self.head_bytes(&format!("Content-Length: {}\r\n", body.len()))).await?;
        let mut from = 0;
        for &to in offsets.iter().chain([&body.len()]) {
            connection.send(&body[from..to]).await?;
            // Lets the other side run, so that it sees the pieces as pieces.
            tokio::task::yield_now().await;
            from = to;
        }
        connection.read_answer(false).await
    }

    /// Sends the head with the true length and this many bytes of the body; what then happens to the connection is the caller's choice.
    pub async fn send_part(&self, bytes: usize) -> io::Result<RawConnection> {
        let mut connection = RawConnection::open(&self.authority).await?;
        let body = self.body.as_deref().unwrap_or_default();
        connection.send(&self.head_bytes(&format!("Content-Length: {}\r\n", body.len()))).await?;
        connection.send(&body[..bytes]).await?;
        Ok(connection)
    }

    /// The request as bytes, with its length.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Some(body) = &self.body else {
            return self.head_bytes("");
        };
        let mut bytes = self.head_bytes(&format!("Content-Length: {}\r\n", body.len()));
        bytes.extend_from_slice(body);
        bytes
    }

    fn head_bytes(&self, framing: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.authority));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{head}{framing}\r\n").into_bytes()
    }
}

fn split(url: &str) -> (String, String) {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    match rest.find('/') {
        Some(slash) => (rest[..slash].to_owned(), rest[slash..].to_owned()),
        None => (rest.to_owned(), "/".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Accepts one connection, reads `read` bytes, sends `answer`, waits for the peer's end, and returns what it had read.
    async fn serve_once(read: usize, answer: &'static [u8]) -> (String, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; read];
            stream.read_exact(&mut seen).await.unwrap();
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.ok();
            seen
        });
        (url, task)
    }

    async fn check(answer: &'static [u8], expected: Result<(u16, &[u8]), io::ErrorKind>) {
        let (url, _task) = serve_once(1, answer).await;
        let got = get(&url).await;
        let got = got.as_ref().map(|a| (a.status, a.body.as_slice())).map_err(io::Error::kind);
        assert_eq!(got, expected, "{}", String::from_utf8_lossy(answer));
    }

    #[tokio::test]
    async fn only_whole_answers_are_answers() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Ok((200, b"hi"))).await;
        check(b"HTTP/1.1 200 OK\r\n\r\nto the end", Ok((200, b"to the end"))).await;
        check(b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 304 N\r\nContent-Length: 9\r\n\r\n", Ok((304, b""))).await;
        check(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\nT: 1\r\n\r\n",
            Ok((200, b"hi")),
        )
        .await;
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", Err(UnexpectedEof)).await;
        check(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", Err(UnexpectedEof)).await;
        check(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n0\r\n\r\n",
            Err(InvalidData),
        )
        .await;
        check(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
            Err(InvalidData),
        )
        .await;
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", Err(InvalidData)).await;
        check(b"HTTP/1.1 200 OK\r\nContent-", Err(UnexpectedEof)).await;
        check(b"", Err(UnexpectedEof)).await;
    }

    #[tokio::test]
    async fn an_early_answer_stops_an_upload_that_listens() {
        let (url, task) = serve_once(10, b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n").await;
        // More than the socket's buffers hold, so that a client that only sends would wait.
        let call = Call::new("POST", &url).body(vec![0; 64 << 20]);
        assert_eq!(call.send_until_answered().await.unwrap().status, 413);
        assert_eq!(task.await.unwrap(), b"POST /x HT");
    }

    #[tokio::test]
    async fn a_request_is_written_as_it_was_put_together() {
        let call = Call::new("PUT", "http://h:1/a?b").header("X-a", "1").header("X-A", "2").body("hi");
        let expected = "PUT /a?b HTTP/1.1\r\nHost: h:1\r\nX-a: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(String::from_utf8(call.to_bytes()).unwrap(), expected);
        let bare = Call::new("GET", "http://h:1").header("host", "other");
        assert_eq!(String::from_utf8(bare.to_bytes()).unwrap(), "GET / HTTP/1.1\r\nhost: other\r\n\r\n");
    }
}
