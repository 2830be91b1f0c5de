//! A small HTTP/1.1 client for tests: the ordinary calls in one line, and the extraordinary ones a library will not make.
//!
//! Every call opens its own connection unless it is made on a [`RawConnection`]. Nothing is retried, no redirect is
//! followed, and an answer that is not whole is an error. Every wait ends after a minute.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::form::Form;
use crate::wire::{Framing, Head, Wire};

/// The path of the crop endpoint.
pub const CROP_PATH: &str = "/api/image/editing/image-cropping";

const PATIENCE: Duration = Duration::from_secs(60);

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
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
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
        self.json()["error_detail"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
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
pub async fn post_form(
    base_url: &str,
    token: impl Into<Option<&str>>,
    form: &Form,
) -> io::Result<Answer> {
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
        Call {
            method: method.to_owned(),
            authority,
            target,
            headers: Vec::new(),
            body: None,
        }
    }

    /// A crop.
    pub fn crop<'a>(base_url: &str, token: impl Into<Option<&'a str>>, form: &Form) -> Call {
        let call = Call::new(
            "POST",
            &format!("{}{CROP_PATH}", base_url.trim_end_matches('/')),
        )
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

    /// Sends it whole, on a connection of its own, and reads the answer.
    pub async fn send(&self) -> io::Result<Answer> {
        RawConnection::open(&self.authority).await?.call(self).await
    }

    /// Sends the head with `Expect: 100-continue`, and the body only if a 100 arrives. There is no timer that sends it anyway.
    pub async fn send_expecting_continue(&self) -> io::Result<Expected> {
        let mut connection = RawConnection::open(&self.authority).await?;
        let length = self.body_len();
        connection
            .send(&self.head_bytes(&format!(
                "Expect: 100-continue\r\nContent-Length: {length}\r\n"
            )))
            .await?;
        let first = connection.read_head().await?;
        if first.start[1] == "100" {
            connection
                .send(self.body.as_deref().unwrap_or_default())
                .await?;
            return Ok(Expected {
                continued: true,
                answer: connection.read_answer(false).await?,
            });
        }
        Ok(Expected {
            continued: false,
            answer: connection.read_rest(first, Vec::new(), false).await?,
        })
    }

    /// Sends the body chunked, in chunks of `piece` bytes, without a length.
    pub async fn send_chunked(&self, piece: usize) -> io::Result<Answer> {
        let mut connection = RawConnection::open(&self.authority).await?;
        connection
            .send(&self.head_bytes("Transfer-Encoding: chunked\r\n"))
            .await?;
        for chunk in self
            .body
            .as_deref()
            .unwrap_or_default()
            .chunks(piece.max(1))
        {
            connection
                .send(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
                .await?;
        }
        connection.send(b"0\r\n\r\n").await?;
        connection.read_answer(false).await
    }

    /// Sends it with its length, the body in pieces cut at these offsets, each in a write of its own.
    pub async fn send_split(&self, offsets: &[usize]) -> io::Result<Answer> {
        let mut connection = RawConnection::open(&self.authority).await?;
        let body = self.body.as_deref().unwrap_or_default();
        connection
            .send(&self.head_bytes(&format!("Content-Length: {}\r\n", body.len())))
            .await?;
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
        connection
            .send(&self.head_bytes(&format!("Content-Length: {}\r\n", body.len())))
            .await?;
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
        if !self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head.push_str(&format!("Host: {}\r\n", self.authority));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{head}{framing}\r\n").into_bytes()
    }
}

/// One connection, on which any bytes can be sent. Dropping it closes it.
#[derive(Debug)]
pub struct RawConnection(Wire);

impl RawConnection {
    /// Connects to a base URL or to `host:port`.
    pub async fn open(base_url: &str) -> io::Result<RawConnection> {
        let (authority, _) = split(base_url);
        Ok(RawConnection(Wire::new(
            within(TcpStream::connect(authority)).await?,
        )))
    }

    /// Sends a request whole and reads its answer; the connection can be used again if the server keeps it.
    pub async fn call(&mut self, call: &Call) -> io::Result<Answer> {
        self.send(&call.to_bytes()).await?;
        self.read_answer(call.method == "HEAD").await
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        within(self.0.send(bytes)).await
    }

    /// Ends our half; the answer can still be read.
    pub async fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    /// Closes with a reset.
    pub fn reset(self) {
        self.0.reset();
    }

    /// Reads interim answers and the final one, whole. `to_head` says that the request was a HEAD.
    pub async fn read_answer(&mut self, to_head: bool) -> io::Result<Answer> {
        let mut interim = Vec::new();
        loop {
            let head = self.read_head().await?;
            match head.start[1].parse().unwrap_or(0) {
                status @ 100..=199 => interim.push(status),
                _ => return self.read_rest(head, interim, to_head).await,
            }
        }
    }

    /// Waits for the server to close, and says how many bytes it sent before.
    pub async fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = within(self.0.piece(&mut Framing::UntilClose, usize::MAX)).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    async fn read_head(&mut self) -> io::Result<Head> {
        within(self.0.answer_head()).await?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed without an answer",
            )
        })
    }

    async fn read_rest(
        &mut self,
        head: Head,
        interim: Vec<u16>,
        to_head: bool,
    ) -> io::Result<Answer> {
        let status = head.start[1].parse().map_err(io::Error::other)?;
        let mut framing = Framing::of_answer(&head, to_head)?;
        let mut body = Vec::new();
        while let Some(piece) = within(self.0.piece(&mut framing, usize::MAX)).await? {
            body.extend_from_slice(&piece);
        }
        Ok(Answer {
            status,
            head,
            body,
            interim,
        })
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn split(url: &str) -> (String, String) {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    match rest.find('/') {
        Some(slash) => (rest[..slash].to_owned(), rest[slash..].to_owned()),
        None => (rest.to_owned(), "/".to_owned()),
    }
}
