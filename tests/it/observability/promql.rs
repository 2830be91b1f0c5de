//! As much of PromQL as it takes to find the names in it.

/// Names of series that are ours to tell: families, the process's, and what rules record.
pub(super) fn names(text: &str) -> Vec<String> {
    let is_ours = |name: &&str| {
        ["granary_", "process_"].iter().any(|start| name.starts_with(start) && name.len() > start.len())
            || ["team:", "fleet:", "budget:"]
                .iter()
                .any(|level| name.starts_with(level) && name.len() > level.len())
    };
    words(text).map(|(_, word)| word).filter(is_ours).map(str::to_owned).collect()
}

/// Every name with the conditions on its labels.
pub(super) fn selectors(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (end, word) in words(expression) {
        if !expression[end..].starts_with('{') {
            continue;
        }
        let mut is_quoted = false;
        let close = expression[end..].find(|letter| {
            is_quoted ^= letter == '"';
            letter == '}' && !is_quoted
        });
        let close = end + close.unwrap_or_else(|| panic!("no end of {word} in {expression}"));
        found.push(format!("{word}{}", &expression[end..=close]));
    }
    found
}

/// Each word with the place where it ends.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let mut rest = 0;
    std::iter::from_fn(move || {
        let begin = rest + text[rest..].find(is_part)?;
        let end = text[begin..].find(|letter| !is_part(letter)).map_or(text.len(), |length| begin + length);
        rest = end;
        Some((end, &text[begin..end]))
    })
}

#[test]
fn names_and_selectors_are_found_in_an_expression() {
    let expression =
        r#"sum by (team) (rate(granary_a_total{x="}", y=~"a|b"}[5m])) / team:granary_b:max > process_c"#;
    assert_eq!(names(expression), ["granary_a_total", "team:granary_b:max", "process_c"]);
    assert_eq!(selectors(expression), [r#"granary_a_total{x="}", y=~"a|b"}"#]);
}
