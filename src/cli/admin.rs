//! Requests of a verb to the admin listener of a running Granary: [`AdminClient`]. The token comes from the
//! variable `GRANARY_ADMIN_TOKEN`, never from an argument, which other users of the machine could read; it is
//! printed nowhere. Nothing is retried or followed.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{Failure, block_on};
use crate::base::secret::Secret;
use crate::config::{Environment, Origin, ServerConfig, parse_service_url};
use crate::upstream::net::Net;
use crate::upstream::net::exchange::Exchange;

const TOKEN_VARIABLE: &str = "GRANARY_ADMIN_TOKEN";
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where the running Granary is; every verb of this kind takes it.
#[derive(clap::Args)]
pub(super) struct AdminArguments {
    /// The admin listener of the running Granary
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:9090",
        value_parser = admin_url,
        long_help = "The admin listener of the running Granary; the variable GRANARY_ADMIN_TOKEN holds the \
                     token, if it asks for one"
    )]
    admin_url: Url,
}

pub(super) struct AdminClient {
    base: Url,
    token: Option<Secret>,
    /// Of the token.
    source: &'static str,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

impl AdminClient {
    pub(super) fn new(arguments: &AdminArguments, environment: &Environment) -> Self {
        let token = environment.get(TOKEN_VARIABLE).map(|text| Secret::new(text.trim()));
        Self { base: arguments.admin_url.clone(), token, source: TOKEN_VARIABLE }
    }

    pub(super) fn of_config(server: &ServerConfig, environment: &Environment) -> anyhow::Result<Self> {
        let base = Origin::of_address(server.admin_listen, false).as_url().clone();
        let client = Self::new(&AdminArguments { admin_url: base }, environment);
        Ok(match server.admin_token().map_err(anyhow::Error::msg)? {
            Some(token) => Self { token: Some(token), source: "server.admin_token_file", ..client },
            None => client,
        })
    }

    /// `path` begins with a slash and may have a query. After an error a change may have taken effect.
    pub(super) fn ask(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        let (status, body) = block_on(self.exchange(method, path))?.with_context(|| {
            format!(
                "the granary at {} cannot be asked; start it, or name its admin listener with --admin-url",
                self.shown()
            )
        })?;
        if status.is_success() {
            return Ok(body);
        }
        let said = serde_json::from_slice::<Refused>(&body).map(|refused| refused.error);
        Err(match (status, said) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) if self.token.is_none() => anyhow!(
                "the granary at {} asks for the admin token; put it into the variable {TOKEN_VARIABLE}",
                self.shown()
            ),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => anyhow!(
                "the granary at {} does not know the admin token in {}; copy it again",
                self.shown(),
                self.source
            ),
            (_, Ok(said)) => anyhow!(said),
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, Err(_)) => anyhow!(
                "what answers at {} does not know this; name the admin listener of a granary of this version \
                 with --admin-url",
                self.shown()
            ),
            (status, Err(_)) => {
                anyhow!("the granary at {} answered {status}; look into its log", self.shown())
            }
        }
        .into())
    }

    async fn exchange(&self, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let deadline = Instant::now() + PATIENCE;
        let host = self.base.host().context("the URL has no host")?.to_owned();
        let port = self.base.port_or_known_default().context("the URL has no port")?;
        let net = Net::system();
        let addresses = net.resolve(&host, |_| true, deadline).await?;
        let is_encrypted = self.base.scheme() == "https";
        let stream = net.connect(&addresses, &host, port, is_encrypted, deadline).await?;
        let prefix = self.base.path().trim_end_matches('/');
        let authority = format!("{host}:{port}");
        let mut request =
            Request::builder().method(method).uri(format!("{prefix}{path}")).header(HOST, authority);
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                .map_err(|_| anyhow!("the variable {TOKEN_VARIABLE} holds something that is no token"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let answer = timeout_at(deadline, async {
            let mut exchange = Exchange::start(TokioIo::new(stream), request).await?;
            let head = exchange.head().await?;
            exchange.whole(head, MAX_ANSWER_BYTES).await
        });
        let Ok(answer) = answer.await else { bail!("there was no answer within {PATIENCE:?}") };
        let (head, body) = answer?;
        Ok((head.status, body))
    }

    /// Printable: [`admin_url`] refuses passwords.
    fn shown(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }
}

/// The error repeats nothing: people put credentials into URLs.
fn admin_url(text: &str) -> Result<Url, String> {
    parse_service_url(text).ok_or_else(|| {
        "write http:// or https://, a host and a port, such as http://127.0.0.1:9090".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::Path;
    use std::thread::JoinHandle;

    use super::*;

    const TOKEN: &str = "not-to-be-printed";

    /// Answers one request and returns what it was.
    fn server(answer: &'static str) -> (Url, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece).unwrap();
                assert!(count > 0, "the request ends early");
                request.extend_from_slice(&piece[..count]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (url, served)
    }

    fn client(base: Url, token: Option<&str>) -> AdminClient {
        let environment = Environment::of(Path::new("/nowhere"), token.map(|token| (TOKEN_VARIABLE, token)));
        AdminClient::new(&AdminArguments { admin_url: base }, &environment)
    }

    fn error(done: Result<Bytes, Failure>) -> String {
        let Err(Failure::Work(error)) = done else { panic!("it should have failed at work") };
        let text = format!("{error:#}");
        assert!(!text.contains(TOKEN) && text.lines().count() == 1, "{text}");
        text
    }

    #[test]
    fn a_question_carries_the_token_and_brings_the_answer() {
        let (url, served) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        assert_eq!(client(url, Some(TOKEN)).ask(Method::GET, "/admin/v1/usage?by=day").ok().unwrap(), "ok");
        let request = served.join().unwrap();
        assert!(request.starts_with("GET /admin/v1/usage?by=day HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("authorization: Bearer {TOKEN}\r\n")), "{request}");

        let (url, served) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let base = url.join("granary/").unwrap();
        client(base, None).ask(Method::POST, "/admin/v1/settle").ok().unwrap();
        let request = served.join().unwrap();
        assert!(request.starts_with("POST /granary/admin/v1/settle HTTP/1.1\r\n"), "{request}");
        assert!(!request.contains("authorization"), "{request}");
    }

    #[test]
    fn a_failure_is_one_sentence_that_says_what_to_do() {
        for (answer, token, expected) in [
            ("401 Unauthorized\r\ncontent-length: 0\r\n\r\n", None, "put it into the variable"),
            ("401 Unauthorized\r\ncontent-length: 0\r\n\r\n", Some(TOKEN), "does not know the admin token"),
            (
                "404 Not Found\r\ncontent-length: 24\r\n\r\n{\"error\":\"no such team\"} ",
                Some(TOKEN),
                "no such team",
            ),
            ("404 Not Found\r\ncontent-length: 0\r\n\r\n", None, "--admin-url"),
            ("500 Oops\r\ncontent-length: 0\r\n\r\n", None, "look into its log"),
            ("200 OK\r\ncontent-length: 9\r\n\r\ncut", None, "cannot be asked"),
        ] {
            let answer: &'static str = format!("HTTP/1.1 {answer}").leak();
            let (url, served) = server(answer);
            let said = error(client(url, token).ask(Method::GET, "/x"));
            assert!(said.contains(expected), "{answer:?}: {said}");
            served.join().unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let said = error(client(format!("http://{free}").parse().unwrap(), None).ask(Method::GET, "/x"));
        assert!(
            said.starts_with(&format!("the granary at http://{free} cannot be asked; start it")),
            "{said}"
        );
        let said =
            error(client(format!("http://{free}").parse().unwrap(), Some("a\nb")).ask(Method::GET, "/x"));
        assert!(said.contains("cannot be asked"), "{said}");
    }

    #[test]
    fn a_url_of_an_admin_listener_has_no_credential_in_it() {
        for good in ["http://127.0.0.1:9090", "https://granary.example.com/admin-of", "http://[::1]:9"] {
            assert!(admin_url(good).is_ok(), "{good}");
        }
        for wrong in ["", "127.0.0.1:9090", "ftp://x", "http://u:secret@x:1", "http://x/?token=secret"] {
            let said = admin_url(wrong).unwrap_err();
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
