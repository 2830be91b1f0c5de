//! Forms and the headers of pictures, byte by byte.

/// A part of a form.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    /// Its header lines, without the last line end.
    pub(super) head: String,
    pub(super) data: Vec<u8>,
}

impl Part {
    pub(super) fn with_head(head: &str, data: &[u8]) -> Self {
        Self { name: "", head: head.to_owned(), data: data.to_vec() }
    }
}

/// A part as most clients write it.
pub(super) fn part(name: &'static str, data: &[u8]) -> Part {
    Part { name, head: format!("Content-Disposition: form-data; name=\"{name}\""), data: data.to_vec() }
}

pub(super) fn form(boundary: &str, parts: &[Part]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend_from_slice(format!("--{boundary}\r\n{}\r\n\r\n", part.head).as_bytes());
        body.extend_from_slice(&part.data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

pub(super) fn png(width: u32, height: u32) -> Vec<u8> {
    let start = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
    [&start[..], &width.to_be_bytes(), &height.to_be_bytes()].concat()
}

pub(super) fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let side = |side: u32| u16::try_from(side).expect("a side of a JPEG").to_be_bytes();
    let start = b"\xFF\xD8\xFF\xE0\0\x04ab\xFF\xC0\0\x11\x08";
    [&start[..], &side(height), &side(width)].concat()
}

/// The extended header, which can say every size.
pub(super) fn webp(width: u32, height: u32) -> Vec<u8> {
    let start = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0";
    [&start[..], &(width - 1).to_le_bytes()[..3], &(height - 1).to_le_bytes()[..3]].concat()
}

pub(super) fn bmp(width: u32, height: u32) -> Vec<u8> {
    let start = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0";
    [&start[..], &width.to_le_bytes(), &height.to_le_bytes()].concat()
}
