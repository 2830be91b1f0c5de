//! Removes addresses of the upstream from an answer. Works on the JSON text, so that everything else keeps
//! its spelling. Escapes are honoured: `\/` and `\u0026` spell the same URL as `/` and `&`.

use super::decode::decodings;

const REMOVED: &str = "[address removed]";

/// In lower case: parts of addresses and of pieces of signed ones.
const MARKS: [&str; 6] =
    ["://", "signature=", "accesskeyid=", "security-token=", ".aliyuncs.com", ".ailabtools.com"];

/// Removes every address except `result`: an address alone becomes empty, one in a text is replaced.
pub(super) fn without_foreign(text: &str, result: Option<&str>) -> String {
    map_strings(text, |meaning| {
        let is_ours = result == Some(meaning) || meaning.starts_with("data:image/");
        if is_ours { None } else { without_addresses(meaning, result) }
    })
}

/// Copies JSON text, replacing every string that means `from` by one that means `to`.
pub(super) fn replace_strings(text: &str, from: &str, to: &str) -> String {
    map_strings(text, |meaning| (meaning == from).then(|| to.to_owned()))
}

/// A string without its addresses; `None` when it contains none.
fn without_addresses(meaning: &str, result: Option<&str>) -> Option<String> {
    let host = result.and_then(|url| url.split("://").nth(1)?.split(['/', '?', '#']).next());
    let host = host.filter(|host| host.len() > 3).map(str::to_ascii_lowercase);
    let is_address = |word: &str| {
        decodings(word).iter().any(|form| {
            let form = form.to_ascii_lowercase();
            MARKS.iter().any(|mark| form.contains(mark))
                || host.as_ref().is_some_and(|host| form.contains(host))
        })
    };
    if !is_address(meaning) {
        return None;
    }
    let (scheme, _) = meaning.trim_start().split_once("//").unwrap_or((" ", ""));
    if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':') {
        // With its blanks.
        return Some(String::new());
    }
    let is_gap = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>');
    let words = meaning.split_inclusive(is_gap).map(|word| {
        let gap = word.chars().next_back().filter(|last| is_gap(*last));
        let bare = word.trim_end_matches(is_gap);
        if is_address(bare) {
            format!("{REMOVED}{}", gap.map_or(String::new(), String::from))
        } else {
            word.to_owned()
        }
    });
    Some(words.collect())
}

/// Copies JSON text, with each string for which `map` returns another one replaced.
fn map_strings(text: &str, map: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('"') {
        let token = string_token(&rest[start..]);
        out.push_str(&rest[..start]);
        match serde_json::from_str::<String>(token).ok().and_then(|meaning| map(&meaning)) {
            Some(mapped) => out.push_str(&serde_json::Value::from(mapped).to_string()),
            None => out.push_str(token),
        }
        rest = &rest[start + token.len()..];
    }
    out + rest
}

/// The nesting of arrays and objects.
pub(super) fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut rest = text;
    while let Some(at) = rest.find(['"', '[', '{', ']', '}']) {
        let mut length = 1;
        match rest.as_bytes()[at] {
            b'"' => length = string_token(&rest[at..]).len(),
            b'[' | b'{' => depth += 1,
            _ => depth = depth.saturating_sub(1),
        }
        deepest = deepest.max(depth);
        rest = &rest[at + length..];
    }
    deepest
}

/// The JSON string at the start of `text`, quotes included.
fn string_token(text: &str) -> &str {
    let mut escaped = false;
    let end = text.bytes().enumerate().skip(1).find_map(|(at, byte)| match byte {
        _ if escaped => {
            escaped = false;
            None
        }
        b'\\' => {
            escaped = true;
            None
        }
        b'"' => Some(at + 1),
        _ => None,
    });
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://h.example/p/a.png?Expires=1&Signature=s%2F1";

    #[test]
    fn every_address_but_the_results_is_removed() {
        for (text, left) in [
            (r#"{"a": 1,  "b":"x", "c":"5 // 3: a/b"}"#, r#"{"a": 1,  "b":"x", "c":"5 // 3: a/b"}"#),
            (r#"{"url":"URL","copy":"URL"}"#, r#"{"url":"URL","copy":"URL"}"#),
            (r#"{"url":"URL","b":"URL."}"#, r#"{"url":"URL","b":""}"#),
            (r#"{"b":"http://other.example/a?Signature=s"}"#, r#"{"b":""}"#),
            (r#"{"b":"https:\/\/other.example\/a b.png?Signature=s"}"#, r#"{"b":""}"#),
            (r#"{"b":"//b.oss.aliyuncs.com/a"}"#, r#"{"b":""}"#),
            (r#"{"b":"ftp:\u002f/other.example/a"}"#, r#"{"b":""}"#),
            (
                r#"{"b":"see URL or (http://x/y), thanks"}"#,
                r#"{"b":"see [address removed] or [address removed] thanks"}"#,
            ),
            (r#"{"b":"failed: h.example/p/a.png"}"#, r#"{"b":"failed: [address removed]"}"#),
            (r#"{"b":"on b.oss-cn-shanghai.AliyunCS.com now"}"#, r#"{"b":"on [address removed] now"}"#),
            (r#"{"b":"at Expires=1&Signature=s2"}"#, r#"{"b":"at [address removed]"}"#),
            (r#"{"b":"to=https%3A%2F%2Fx%2Fy%3FSignature%3Ds x"}"#, r#"{"b":"[address removed] x"}"#),
            (r#"{"b":"to=https%253A%252F%252Fx y"}"#, r#"{"b":"[address removed] y"}"#),
            (
                r#"{"b":"{\"Url\":\"http:\\/\\/x\\/y?Signature=s\",\"n\":1}"}"#,
                r#"{"b":"{\"Url\":\"[address removed]\",\"n\":1}"}"#,
            ),
            (r#"{"https://x/y":1}"#, r#"{"":1}"#),
            (r#"{"b":"data:image/png;base64,AAAA"}"#, r#"{"b":"data:image/png;base64,AAAA"}"#),
            ("<html>", "<html>"),
        ] {
            let text = text.replace("URL", URL);
            assert_eq!(without_foreign(&text, Some(URL)), left.replace("URL", URL), "{text}");
            // What was done once is not done again.
            assert_eq!(without_foreign(&left.replace("URL", URL), Some(URL)), left.replace("URL", URL));
        }
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        for (text, expected) in [("1", 0), ("[]", 1), (r#"{"a":[{"b":"[[[\"{"}]}"#, 3), ("[[],[[]]]", 3)] {
            assert_eq!(depth(text), expected, "{text}");
        }
    }
}
