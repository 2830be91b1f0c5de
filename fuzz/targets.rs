//! What the fuzzer feeds, one function per target; `tests/it/fuzz.rs` replays the corpus through the same.
//! Each takes any bytes, and panics when something does not hold for them.
#![allow(dead_code, reason = "each target uses one of them")]

use std::collections::BTreeMap;

use granary::base::envelope::{self, Answer, Envelope};
use granary::base::key::Digest;
use granary::base::operation::IMAGE_CROPPING;
use granary::base::picture::{self, ImageFormat, ObjectName};
use granary::base::record::Record;
use granary::gateway::rewrite;
use granary::request::framing::chunked::Chunks;
use granary::request::framing::{self, Next};
use granary::request::multipart::{Boundary, Broken, Event, Parser};
use serde_json::value::RawValue;

/// A connection's first request: its head ends where it ends without what follows, means the same without
/// `Upgrade`, and its chunks end at the same byte however they were cut.
pub(crate) fn heads(bytes: &[u8]) {
    let Ok(Some(end)) = framing::head_end(bytes) else { return };
    let (head, body) = bytes.split_at(end);
    assert_eq!(framing::head_end(head), Ok(Some(end)));
    assert_eq!(framing::head_end(&head[..end - 1]), Ok(None));
    let Ok(next) = framing::check_head(head) else { return };
    let mut hidden = head.to_vec();
    framing::hide_upgrade(&mut hidden);
    assert_eq!(framing::check_head(&hidden).as_ref(), Ok(&next));
    if let Next::Chunks(_) = next {
        chunks(body);
    }
}

fn chunks(bytes: &[u8]) {
    let mut whole = Chunks::default();
    let taken = whole.advance(bytes);
    let (mut cut, mut at) = (Chunks::default(), 0);
    let cut_taken = (1..=bytes.len()).try_for_each(|end| {
        at += cut.advance(&bytes[at..end])?;
        Ok(())
    });
    assert_eq!(cut_taken.map(|()| at), taken);
    assert!(taken.is_err() || cut.is_at_end() == whole.is_at_end());
}

/// A form: the same events however its bytes were cut. The first byte says how they are cut.
pub(crate) fn forms(bytes: &[u8]) {
    let Some((&cut, body)) = bytes.split_first() else { return };
    let boundary = Boundary::parse(b"multipart/form-data; boundary=b").expect("a boundary");
    let read = |length: usize| {
        let (mut parts, mut parser) = (Vec::new(), Parser::new(&boundary));
        let mut sink = |event: Event<'_>| {
            match event {
                Event::PartStart { name } => parts.push((name.map(<[u8]>::to_vec), Vec::new(), false)),
                Event::Data(data) => {
                    assert!(!data.is_empty());
                    parts.last_mut().expect("data belongs to a part").1.extend_from_slice(data);
                }
                Event::PartEnd => parts.last_mut().expect("an end belongs to a part").2 = true,
            }
            Ok::<(), Broken>(())
        };
        let outcome = body.chunks(length).try_for_each(|piece| parser.feed(piece, &mut sink));
        let outcome = outcome.and_then(|()| parser.finish(&mut sink));
        (parts, outcome)
    };
    let (parts, outcome) = read(body.len().max(1));
    let (cut_parts, cut_outcome) = read(usize::from(cut).max(1));
    assert_eq!(cut_outcome, outcome, "pieces of {cut}");
    if outcome.is_ok() {
        assert_eq!(cut_parts, parts, "pieces of {cut}");
        assert!(parts.iter().all(|(.., is_complete)| *is_complete));
    }
}

/// An answer of the upstream: what is kept of a success names our object instead of its URL, reads
/// again, and clients get our URL.
pub(crate) fn answers(bytes: &[u8]) {
    let Ok(Envelope::Success(answer)) = Envelope::read(bytes, &IMAGE_CROPPING) else { return };
    // A URL without a scheme cannot be fetched, so its answer is never kept; it may equal a field's name.
    if !answer.url().expose().contains(':') {
        return;
    }
    let object = ObjectName { digest: Digest::of(b"result"), format: ImageFormat::Png };
    let kept = answer.keep(&object);
    let read = Answer::read(&kept, &IMAGE_CROPPING).expect("a kept answer can be read");
    assert_eq!(read.url().expose(), object.path());
    let complete = envelope::complete(&kept);
    serde_json::from_str::<&serde_json::value::RawValue>(&complete).expect("JSON for clients");
    // A number that no machine type holds is passed on as it is.
    let Ok(complete) = serde_json::from_str::<serde_json::Value>(&complete) else { return };
    assert_eq!(complete["data"]["url"], object.path());
    assert_eq!(complete["error_code"], 0);
}

/// A picture's header: a size only for a format that we know, and never 0.
pub(crate) fn pictures(bytes: &[u8]) {
    if let Some((width, height)) = picture::dimensions(bytes) {
        assert!(width > 0 && height > 0);
        let name = ObjectName::of(bytes).expect("a picture has a name");
        let path = name.path();
        assert_eq!(ObjectName::parse(path.strip_prefix("results/").expect("below results")), Some(name));
    }
}

/// A stored record: one that is believed is about its own name, names its own object to clients, and has
/// numbers that a ledger can add up.
pub(crate) fn records(bytes: &[u8]) {
    // The name it would be read under.
    let Ok(claimed) = serde_json::from_slice::<Record>(bytes) else { return };
    let Ok(record) = Record::from_json("a record", bytes, &claimed.namespace, claimed.key) else { return };
    let object = record.object().expect("a believed record names an object");
    let answer = rewrite::answer(&record, "https://granary.example").expect("an answer for clients");
    // JSON does not limit numbers, so a number that no float can hold is passed on.
    type Fields<'json> = BTreeMap<String, &'json RawValue>;
    let fields: Fields = serde_json::from_str(&answer).expect("JSON for clients");
    let data: Fields = serde_json::from_str(fields["data"].get()).expect("an object");
    let url: String = serde_json::from_str(data["url"].get()).expect("a string");
    assert_eq!(url, format!("https://granary.example/{}", object.path()));
    for number in [record.credits, record.generation, record.bytes] {
        assert!(number < 1 << 40);
    }
}
