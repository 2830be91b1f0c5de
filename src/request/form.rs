//! Collects the fields of a form while they arrive, then checks them ([`Form`]). The checks wait for the complete
//! form, so that they do not depend on the order of the fields; only an image over its limit is refused at once.

use super::image::ImageBuffer;
use super::{CropRequest, Field, FormHead, MAX_SIDE_PIXELS, MAX_TARGET_PIXELS, Order, RequestError};
use crate::base::operation::Operation;
use crate::base::picture::ImageFormat;
use crate::request::multipart::{Event, trim};
use crate::request::uploads::{Blocks, UploadRoom};

/// A longer width or height is refused, even if it has leading zeros.
const MAX_NUMBER_BYTES: usize = 64;
/// Characters shown of a wrong number: enough to recognise it, too few for a misplaced credential.
pub(super) const MAX_SHOWN: usize = 16;
/// Characters of an unknown field's name that are shown.
const MAX_NAME_SHOWN: usize = 40;
/// Unknown fields that are named: proxies limit the bytes of an answer's head.
const MAX_NAMES_SHOWN: usize = 16;

pub(super) struct Form {
    operation: &'static Operation,
    /// The field of the current part; `None` skips its data.
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
    pub(super) fn new(head: &FormHead, room: UploadRoom) -> Self {
        Self {
            operation: head.operation,
            current: None,
            is_seen: [false; 3],
            duplicate: None,
            image: ImageBuffer::new(head.limits.max_image_bytes, room),
            width: NumberText::default(),
            height: NumberText::default(),
            ignored: Vec::new(),
        }
    }

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
        let Some(field) = name.and_then(|name| self.named(name)) else {
            let name = name.filter(|name| !name.is_empty()).unwrap_or(b"?");
            // The names become a comma-separated list.
            let shown = visible(name, MAX_NAME_SHOWN).replace(',', "?");
            if self.ignored.len() < MAX_NAMES_SHOWN && !self.ignored.contains(&shown) {
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

    fn named(&self, name: &[u8]) -> Option<Field> {
        Field::ALL.into_iter().find(|field| self.name(*field).as_bytes() == name)
    }

    fn name(&self, field: Field) -> &'static str {
        self.operation.fields[field as usize]
    }

    /// To be called after each piece of the body.
    pub(super) async fn settle(&mut self) -> Result<(), RequestError> {
        self.image.settle().await
    }

    pub(super) async fn finish(self) -> Result<CropRequest, RequestError> {
        if let Some(field) = self.duplicate {
            return Err(RequestError::DuplicateField { field: self.name(field) });
        }
        if let Some(field) = Field::ALL.into_iter().find(|field| !self.is_seen[*field as usize]) {
            return Err(RequestError::MissingField { field: self.name(field) });
        }
        let is_empty = [self.image.is_empty(), self.width.is_empty(), self.height.is_empty()];
        if let Some(field) = Field::ALL.into_iter().find(|field| is_empty[*field as usize]) {
            return Err(RequestError::EmptyField { field: self.name(field) });
        }
        let width = self.width.number(self.name(Field::Width))?;
        let height = self.height.number(self.name(Field::Height))?;
        let (hasher, image) = self.image.finish().await?;
        let format = image.show(check_image).await.map_err(|error| {
            tracing::error!(%error, "an upload cannot be read back from its file");
            RequestError::NoRoom
        })??;
        let (image_digest, key) = hasher.finish(width, height);
        Ok(CropRequest {
            order: Order { operation: self.operation, image, format, width, height },
            key,
            image_digest,
            ignored: self.ignored,
        })
    }
}

/// Reads format and size from the header; nothing is decoded.
fn check_image(file: &Blocks) -> Result<ImageFormat, RequestError> {
    let format = ImageFormat::sniff(&file.start()).ok_or(RequestError::UnsupportedFile)?;
    let (width, height) = format.dimensions(file).ok_or(RequestError::UnreadableHeader)?;
    if width.max(height) > MAX_SIDE_PIXELS {
        return Err(RequestError::ResolutionTooHigh { width, height });
    }
    Ok(format)
}

/// The beginning of a width or height.
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

    /// ASCII digits, perhaps with leading zeros and surrounding blanks.
    fn number(&self, field: &'static str) -> Result<u32, RequestError> {
        let text = trim(&self.text);
        let is_plain = !self.is_cut && text.iter().all(u8::is_ascii_digit);
        let digits = std::str::from_utf8(text).ok().filter(|_| is_plain);
        digits
            .and_then(|digits| digits.parse().ok())
            .filter(|number| (1..=MAX_TARGET_PIXELS).contains(number))
            .ok_or_else(|| RequestError::NumberOutOfRange { field, shown: visible(text, MAX_SHOWN) })
    }
}

/// At most `most` characters, with `?` for each that is not visible ASCII.
pub(super) fn visible(text: &[u8], most: usize) -> String {
    let visible = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * most)]);
    text.chars().take(most).map(visible).collect()
}
