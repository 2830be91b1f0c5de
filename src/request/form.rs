//! What the fields of a form mean: collects them while they arrive, then judges them.
//!
//! Judgement waits until the form is complete, so that it does not depend on the order of the
//! fields; only an image over its limit is refused at once. Called by `request::read` alone.

use bytes::Bytes;

use super::{CropRequest, Field, MAX_SIDE_PIXELS, MAX_TARGET_PIXELS, RequestError};
use crate::key::KeyHasher;
use crate::multipart::{Event, trim};
use crate::picture::{self, ImageFormat};
use crate::upstream::Order;

/// The longest width or height that is looked at; a longer one is out of range anyway, unless it
/// is nothing but leading zeros.
const MAX_NUMBER_BYTES: usize = 64;
/// How much of a wrong number is shown. Enough to recognise it, too little for a credential that
/// was sent in the wrong field.
const MAX_SHOWN: usize = 16;
/// How much of an unknown field's name is shown.
const MAX_NAME_SHOWN: usize = 40;

/// The fields seen so far.
pub(super) struct Form {
    /// Where the data of the current part goes; `None` skips it.
    current: Option<Field>,
    /// By the order of [`Field::ALL`].
    is_seen: [bool; 3],
    duplicate: Option<Field>,
    image: ImageBuffer,
    width: NumberText,
    height: NumberText,
    ignored: Vec<String>,
}

impl Form {
    pub(super) fn new(max_image_bytes: usize, declared_bytes: Option<usize>) -> Self {
        Self {
            current: None,
            is_seen: [false; 3],
            duplicate: None,
            image: ImageBuffer::new(max_image_bytes, declared_bytes),
            width: NumberText::default(),
            height: NumberText::default(),
            ignored: Vec::new(),
        }
    }

    /// Takes what the parser found next.
    pub(super) fn take(&mut self, event: Event<'_>) -> Result<(), RequestError> {
        match event {
            Event::PartStart { name } => self.start(name),
            Event::Data(piece) => match self.current {
                None => {}
                Some(Field::Image) => self.image.push(piece)?,
                Some(Field::Width) => self.width.push(piece),
                Some(Field::Height) => self.height.push(piece),
            },
            Event::PartEnd => self.current = None,
        }
        Ok(())
    }

    fn start(&mut self, name: Option<&[u8]>) {
        let Some(field) = name.and_then(Field::named) else {
            let name = name.filter(|name| !name.is_empty()).unwrap_or(b"?");
            // The names become a list, with commas between them.
            let shown = visible(name, MAX_NAME_SHOWN).replace(',', "?");
            if !self.ignored.contains(&shown) {
                self.ignored.push(shown);
            }
            return;
        };
        if std::mem::replace(&mut self.is_seen[field as usize], true) {
            self.duplicate = Some(self.duplicate.map_or(field, |other| other.min(field)));
        } else {
            self.current = Some(field);
        }
    }

    /// Judges a complete form.
    pub(super) fn finish(self) -> Result<CropRequest, RequestError> {
        if let Some(field) = self.duplicate {
            return Err(RequestError::DuplicateField { field });
        }
        if let Some(field) = Field::ALL.into_iter().find(|field| !self.is_seen[*field as usize]) {
            return Err(RequestError::MissingField { field });
        }
        let is_empty = [self.image.bytes.is_empty(), self.width.is_empty(), self.height.is_empty()];
        if let Some(field) = Field::ALL.into_iter().find(|field| is_empty[*field as usize]) {
            return Err(RequestError::EmptyField { field });
        }
        let width = self.width.number(Field::Width)?;
        let height = self.height.number(Field::Height)?;
        let format = check_image(&self.image.bytes)?;
        let (hasher, image) = self.image.finish();
        let (image_digest, key) = hasher.finish(width, height);
        Ok(CropRequest {
            order: Order { image, format, width, height },
            key,
            image_digest,
            ignored: self.ignored,
        })
    }
}

/// Format by the first bytes, size by the header; nothing is decoded.
fn check_image(bytes: &[u8]) -> Result<ImageFormat, RequestError> {
    let format = ImageFormat::sniff(bytes).ok_or(RequestError::UnsupportedFile)?;
    let (width, height) = picture::dimensions(bytes).ok_or(RequestError::UnreadableHeader)?;
    if width.max(height) > MAX_SIDE_PIXELS {
        return Err(RequestError::ResolutionTooHigh { width, height });
    }
    Ok(format)
}

/// The image, hashed behind the end that still grows.
struct ImageBuffer {
    bytes: Vec<u8>,
    hasher: KeyHasher,
    hashed: usize,
    max: usize,
    declared: Option<usize>,
}

impl ImageBuffer {
    /// BLAKE3 is at its fastest on whole pieces of this size, and they are still in the CPU's cache.
    const HASH_PIECE: usize = 64 * 1024;
    /// What is reserved for an image of undeclared length, at first.
    const FIRST_RESERVE: usize = 64 * 1024;

    fn new(max: usize, declared: Option<usize>) -> Self {
        Self { bytes: Vec::new(), hasher: KeyHasher::default(), hashed: 0, max, declared }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        let length = self.bytes.len() + piece.len();
        if length > self.max {
            return Err(RequestError::ImageTooLarge { max: self.max });
        }
        self.reserve(length);
        self.bytes.extend_from_slice(piece);
        let whole = (self.bytes.len() - self.hashed) / Self::HASH_PIECE * Self::HASH_PIECE;
        self.hash_to(self.hashed + whole);
        Ok(())
    }

    /// Reserves once what was declared: memory that is not written to costs nothing. Without a
    /// declaration, or against a false one, doubles. Never reserves more than an image may have.
    fn reserve(&mut self, length: usize) {
        if length > self.bytes.capacity() {
            let wanted = match self.declared.take() {
                Some(declared) => declared,
                None => Self::FIRST_RESERVE.max(2 * self.bytes.capacity()),
            };
            self.bytes.reserve_exact(wanted.min(self.max).max(length) - self.bytes.len());
        }
    }

    fn hash_to(&mut self, end: usize) {
        if end > self.hashed {
            self.hasher.update(&self.bytes[self.hashed..end]);
            self.hashed = end;
        }
    }

    fn finish(mut self) -> (KeyHasher, Bytes) {
        self.hash_to(self.bytes.len());
        (self.hasher, Bytes::from(self.bytes))
    }
}

/// A width or height as it was written, up to a limit.
#[derive(Default)]
struct NumberText {
    text: Vec<u8>,
    is_cut: bool,
}

impl NumberText {
    fn push(&mut self, piece: &[u8]) {
        let room = MAX_NUMBER_BYTES - self.text.len();
        self.text.extend_from_slice(&piece[..piece.len().min(room)]);
        self.is_cut |= piece.len() > room;
    }

    fn is_empty(&self) -> bool {
        !self.is_cut && trim(&self.text).is_empty()
    }

    /// ASCII digits; blanks around them and zeros before them do not count.
    fn number(&self, field: Field) -> Result<u32, RequestError> {
        let text = trim(&self.text);
        let digits =
            std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits
            .filter(|_| !self.is_cut)
            .and_then(|digits| digits.parse().ok())
            .filter(|number| (1..=MAX_TARGET_PIXELS).contains(number))
            .ok_or_else(|| RequestError::NumberOutOfRange { field, shown: visible(text, MAX_SHOWN) })
    }
}

/// At most `most` characters of a client's text, `?` for each that is not visible ASCII.
fn visible(text: &[u8], most: usize) -> String {
    let visible = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * most)]);
    text.chars().take(most).map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The capacity after each piece, and what came of it.
    fn capacities(max: usize, declared: Option<usize>, pieces: &[usize]) -> (Vec<usize>, bool) {
        let mut image = ImageBuffer::new(max, declared);
        let mut capacities = vec![image.bytes.capacity()];
        for piece in pieces {
            let piece: Vec<u8> = (0..*piece).map(|n| n as u8).collect();
            if image.push(&piece).is_err() {
                return (capacities, false);
            }
            capacities.push(image.bytes.capacity());
            assert!(image.bytes.len() - image.hashed < ImageBuffer::HASH_PIECE, "hashing lags behind");
        }
        let whole = image.bytes.clone();
        let (hasher, bytes) = image.finish();
        assert_eq!(bytes, whole);
        assert_eq!(hasher.finish(1, 2).1, crate::key::CacheKey::of(&whole, 1, 2));
        (capacities, true)
    }

    #[test]
    fn no_more_is_reserved_than_declared_or_allowed_or_twice_what_came() {
        const MIB: usize = 1 << 20;
        let steps = &[1, MIB / 4, MIB / 4];
        // As declared, in one go and without another allocation.
        assert_eq!(capacities(4 * MIB, Some(MIB), steps).0, [0, MIB, MIB, MIB]);
        // More declared than allowed.
        assert_eq!(capacities(MIB, Some(9 * MIB), steps).0, [0, MIB, MIB, MIB]);
        // Less declared than sent, which a server does not let happen.
        assert_eq!(capacities(4 * MIB, Some(10), steps).0, [0, 10, MIB / 4 + 1, MIB / 2 + 2]);
        // Nothing declared: doubled.
        assert_eq!(capacities(4 * MIB, None, steps).0, [0, 65_536, MIB / 4 + 1, MIB / 2 + 2]);
        assert_eq!(capacities(70_000, None, &[65_536, 1]).0, [0, 65_536, 70_000]);
        assert_eq!(capacities(100, None, &[50, 50]), (vec![0, 100, 100], true));
        // Nothing is kept of what is over the limit.
        assert_eq!(capacities(100, None, &[50, 51]), (vec![0, 100], false));
        assert_eq!(capacities(100, Some(1000), &[101]), (vec![0], false));
    }

    #[test]
    fn the_hash_does_not_depend_on_the_pieces() {
        for piece in [1, 1000, 65_535, 65_536, 65_537, 200_000] {
            let (_, is_accepted) = capacities(300_000, None, &vec![piece; 200_000 / piece]);
            assert!(is_accepted);
        }
    }
}
