//! Content codings of responses (RFC 9110, section 8.4). We ask for none, but some servers send one.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};
use http::{HeaderMap, header};

const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];

/// Undoes a body's content codings; `None` if one is damaged, cut short, larger than `max_bytes` decoded, or
/// not supported (`br`, `zstd`, `compress`). Other names, such as `utf-8`, change nothing, as in browsers.
pub(crate) fn decoded(headers: &HeaderMap, body: Bytes, max_bytes: usize) -> Option<Bytes> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings: Vec<String> = codings
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|coding| String::from_utf8_lossy(coding).trim().to_ascii_lowercase())
        .collect();
    // The last one was applied last.
    codings.iter().rev().try_fold(body, |body, coding| match coding.as_str() {
        "gzip" | "x-gzip" => gunzip(&body, max_bytes).map(Bytes::from),
        "deflate" => inflate(&body, max_bytes).map(Bytes::from),
        "br" | "zstd" | "compress" | "x-compress" => None,
        _ => Some(body),
    })
}

/// Reads all members, and ignores bytes after the last one.
fn gunzip(mut rest: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let mut member = GzDecoder::new(rest);
        read(&mut member, &mut bytes, max_bytes).ok()?;
        rest = member.into_inner();
        if !rest.starts_with(&GZIP_MAGIC) {
            return Some(bytes);
        }
    }
}

/// With the standard's zlib header or, as some servers send it, without.
fn inflate(body: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if read(&mut ZlibDecoder::new(body), &mut bytes, max_bytes).is_ok() {
        return Some(bytes);
    }
    bytes.clear();
    read(&mut DeflateDecoder::new(body), &mut bytes, max_bytes).ok().map(|()| bytes)
}

fn read(decoder: &mut impl Read, bytes: &mut Vec<u8>, max_bytes: usize) -> io::Result<()> {
    let left = (max_bytes - bytes.len()) as u64;
    decoder.take(left + 1).read_to_end(bytes)?;
    if bytes.len() > max_bytes { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http::HeaderValue;

    use super::*;

    const TEXT: &[u8] = b"{\"data\":{\"url\":\"https://h.example/a.png\"},\"error_code\":0}";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_as(codings: &[&str], body: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
        let headers = codings.iter().map(|coding| HeaderValue::from_str(coding).unwrap());
        let headers = headers.map(|value| (header::CONTENT_ENCODING, value)).collect();
        decoded(&headers, Bytes::copy_from_slice(body), max_bytes).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn body_without_a_coding_is_unchanged() {
        for codings in
            [&[][..], &[""], &["identity"], &["", "identity"], &["Identity, "], &["utf-8"], &["none"]]
        {
            assert_eq!(read_as(codings, TEXT, 1000).as_deref(), Some(TEXT), "{codings:?}");
        }
    }

    #[test]
    fn gzip_and_deflate_are_decoded_in_reverse_order() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(TEXT).unwrap();
        let zlib = zlib.finish().unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(TEXT).unwrap();
        let raw = raw.finish().unwrap();
        let members = [gzip(&TEXT[..10]), gzip(&TEXT[10..])].concat();
        for (codings, body) in [
            (&["gzip"][..], gzip(TEXT)),
            (&["X-GZip"], gzip(TEXT)),
            (&[" gzip , identity"], gzip(TEXT)),
            (&["gzip"], [gzip(TEXT), b"\0\0padding".to_vec()].concat()),
            (&["gzip"], members),
            (&["deflate"], zlib.clone()),
            (&["deflate"], raw),
            (&["deflate, gzip"], gzip(&zlib)),
            (&["deflate", "gzip"], gzip(&zlib)),
        ] {
            assert_eq!(read_as(codings, &body, 1000).as_deref(), Some(TEXT), "{codings:?}");
        }
    }

    #[test]
    fn cut_unknown_or_too_large_body_is_refused() {
        let whole = gzip(TEXT);
        for length in 0..whole.len() {
            assert_eq!(read_as(&["gzip"], &whole[..length], 1000), None, "{length}");
        }
        assert_eq!(read_as(&["gzip"], TEXT, 1000), None);
        for coding in ["br", "zstd", "compress", "gzip, br"] {
            assert_eq!(read_as(&[coding], &whole, 1000), None, "{coding}");
        }
        let bomb = gzip(&vec![0; 1 << 20]);
        assert_eq!(read_as(&["gzip"], &bomb, (1 << 20) - 1), None);
        assert_eq!(read_as(&["gzip"], &bomb, 1 << 20).map(|bytes| bytes.len()), Some(1 << 20));
        assert_eq!(read_as(&["gzip, gzip"], &gzip(&bomb), 2000), None);
    }
}
