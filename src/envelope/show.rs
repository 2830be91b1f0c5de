//! An answer for a person to look at: everything but where its results are.

use url::Url;

use super::map_strings;

/// The JSON text with every address cut after its host, since the rest may be signed.
pub fn without_addresses(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    map_strings(text, &mut shown, |meaning| {
        hide(meaning).map(|hidden| serde_json::Value::from(hidden).to_string())
    });
    shown
}

/// What is shown of a string that is, or has in it, an address.
fn hide(text: &str) -> Option<String> {
    if let Some((kind, _)) = text.strip_prefix("data:").and_then(|rest| rest.split_once(',')) {
        return Some(format!("data:{kind},…"));
    }
    if !text.contains("://") && !text.contains("Signature=") {
        return None;
    }
    let address = Url::parse(text).ok();
    let host = address.as_ref().and_then(|url| Some((url.scheme(), url.host_str()?, url.port())));
    Some(match host {
        Some((scheme, host, Some(port))) => format!("{scheme}://{host}:{port}/…"),
        Some((scheme, host, None)) => format!("{scheme}://{host}/…"),
        None => "…".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_cut_after_the_host_and_all_else_stays_as_it_is() {
        for (text, shown) in [
            (r#"{"a": 1,  "b":"x"}"#, r#"{"a": 1,  "b":"x"}"#),
            (r#"{"url":"http://h.example/p/q.png?Signature=s"}"#, r#"{"url":"http://h.example/…"}"#),
            (r#"{"url":"https:\/\/u:p@h.example:81\/p"}"#, r#"{"url":"https://h.example:81/…"}"#),
            (r#"{"m":"see https://h.example/p?Signature=s"}"#, r#"{"m":"…"}"#),
            (r#"{"m":"Expires=1&Signature=s"}"#, r#"{"m":"…"}"#),
            (r#"{"url":"data:image/png;base64,AAAA"}"#, r#"{"url":"data:image/png;base64,…"}"#),
            (r#"{"https://h.example/secret":1}"#, r#"{"https://h.example/…":1}"#),
            ("<html>", "<html>"),
        ] {
            assert_eq!(without_addresses(text), shown);
        }
    }
}
