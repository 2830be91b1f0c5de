//! The balance, by the API's free `query-credits` call.

use bytes::Bytes;
use http::response::Parts;
use http::{Method, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

use super::answer::{MAX_ANSWER_BYTES, classify};
use super::{AilabUpstream, key_header};
use crate::base::envelope::Envelope;
use crate::base::operation::{IMAGE_CROPPING, QUERY_CREDITS_PATH};
use crate::upstream::Reply;
use crate::upstream::net::coding::decoded;
use crate::upstream::net::exchange::Exchange;

/// The pool of operations without one of their own.
const COMMON_POOL: &str = "common";

/// The texts are safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreditsError {
    #[error("the upstream could not be asked: {0}")]
    Unreachable(String),
    #[error("the upstream refused the key with status {0}")]
    Key(u16),
    #[error("the upstream's answer, with status {0}, names no balance")]
    Format(u16),
}

impl AilabUpstream {
    /// The credits in the pool that crops are paid from, within the connect and upload timeouts. May be cancelled.
    pub async fn query_credits(&self) -> Result<u64, CreditsError> {
        let (head, body) = self.ask_for_credits().await?;
        let status = head.status.as_u16();
        match head.status {
            StatusCode::OK => decoded(&head.headers, body, MAX_ANSWER_BYTES)
                .and_then(|body| balance(&body))
                .ok_or(CreditsError::Format(status)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CreditsError::Key(status)),
            _ => Err(CreditsError::Format(status)),
        }
    }

    /// The refusal of the same free call, for trying a wrong key; `None` without an answer.
    pub async fn refusal_of_key(&self) -> Option<Reply> {
        let (head, body) = self.ask_for_credits().await.ok()?;
        Some(classify(head.status, &head.headers, &body, &IMAGE_CROPPING, &self.config.api_key.load()))
    }

    async fn ask_for_credits(&self) -> Result<(Parts, Bytes), CreditsError> {
        let unreachable = |error: &dyn std::fmt::Display| CreditsError::Unreachable(error.to_string());
        let key = key_header(&self.config.api_key.load()).ok_or(CreditsError::Key(0))?;
        let stream = self.connect().await.map_err(|error| unreachable(&error))?;
        let request = self.request(Method::GET, QUERY_CREDITS_PATH, key, Empty::new());
        let answer = timeout(self.config.upload_timeout, async {
            let mut exchange = Exchange::start(TokioIo::new(stream), request).await?;
            let head = exchange.head().await?;
            exchange.whole(head, MAX_ANSWER_BYTES).await
        });
        answer.await.map_err(|_| unreachable(&"it took too long"))?.map_err(|error| unreachable(&error))
    }
}

/// Reads `data[]{unique_sign, balance}`: our pool's, else the common one's. An overdrawn balance is 0.
fn balance(body: &[u8]) -> Option<u64> {
    let Ok(Envelope::NoResult) = Envelope::read(body, &IMAGE_CROPPING) else { return None };
    let (text, ..) = encoding_rs::UTF_8.decode(body);
    let answer: Value = serde_json::from_str(&text).ok()?;
    let pools = answer.get("data")?.as_array()?;
    let of = |name: &str| {
        let pool = pools.iter().find(|pool| pool.get("unique_sign").and_then(Value::as_str) == Some(name))?;
        let balance = pool.get("balance")?;
        let number = balance.as_f64().or_else(|| balance.as_str()?.trim().parse().ok())?;
        // A float cast saturates, and NaN cannot be written in JSON.
        Some(number.max(0.0) as u64)
    };
    of(IMAGE_CROPPING.credit_pool).or_else(|| of(COMMON_POOL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balance_is_our_pools_else_the_common_ones() {
        for (data, expected) in [
            (
                r#"[{"unique_sign":"common","balance":7},{"unique_sign":"image_cropping","balance":299}]"#,
                Some(299),
            ),
            (r#"[{"unique_sign":"common","name":"x","balance":"7","total":9}]"#, Some(7)),
            (r#"[{"unique_sign":"image_cropping","balance":-3.5}]"#, Some(0)),
            (
                r#"[{"unique_sign":"image_cropping","balance":null},{"unique_sign":"common","balance":1.9}]"#,
                Some(1),
            ),
            (r#"[{"unique_sign":"other","balance":5}]"#, None),
            ("[]", None),
            (r#"{"unique_sign":"common","balance":5}"#, None),
        ] {
            let body = format!(r#"{{"request_id":"r","error_detail":{{"code":""}},"data":{data}}}"#);
            assert_eq!(balance(body.as_bytes()), expected, "{data}");
        }
        assert_eq!(balance(br#"{"error_code":401,"data":[{"unique_sign":"common","balance":5}]}"#), None);
        assert_eq!(balance(b"<html>"), None);
    }
}
