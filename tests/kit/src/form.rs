//! Multipart bodies, byte for byte as real clients send them, and as broken or hostile ones might.
//!
//! A [`Form`] is a list of parts and a few switches. The presets differ only in what the key must not depend on:
//! boundary, order, file name, part headers.

use uuid::Uuid;

/// One part of a form, before it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The `name` parameter.
    pub name: String,
    /// The `filename` parameter; `Some("")` is written as `filename=""`.
    pub filename: Option<String>,
    /// The part's Content-Type.
    pub content_type: Option<String>,
    /// Further header lines, written as they are.
    pub headers: Vec<String>,
    /// The content.
    pub body: Vec<u8>,
}

impl Part {
    /// A text field: a name and a value, nothing else.
    pub fn text(name: &str, value: impl Into<Vec<u8>>) -> Part {
        Part {
            name: name.to_owned(),
            filename: None,
            content_type: None,
            headers: Vec::new(),
            body: value.into(),
        }
    }

    /// A file field.
    pub fn file(name: &str, filename: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Part {
        Part {
            filename: Some(filename.to_owned()),
            content_type: Some(content_type.to_owned()),
            ..Part::text(name, body)
        }
    }
}

/// A multipart body in the making.
#[derive(Clone, Debug)]
pub struct Form {
    boundary: String,
    quoted_boundary: bool,
    unquoted_names: bool,
    preamble: Vec<u8>,
    epilogue: Vec<u8>,
    closed: bool,
    parts: Vec<Part>,
}

impl Form {
    /// `image`, `width`, `height` in this order, the image as `image.bin` without a type, a random boundary.
    pub fn crop(image: impl AsRef<[u8]>, width: impl ToString, height: impl ToString) -> Form {
        let image = Part { filename: Some("image.bin".to_owned()), ..Part::text("image", image.as_ref()) };
        Form {
            boundary: format!("granary-kit-{}", Uuid::new_v4().simple()),
            quoted_boundary: false,
            unquoted_names: false,
            preamble: Vec::new(),
            epilogue: b"\r\n".to_vec(),
            closed: true,
            parts: vec![
                image,
                Part::text("width", width.to_string()),
                Part::text("height", height.to_string()),
            ],
        }
    }

    /// What a page's `FormData` sends.
    pub fn browser(image: impl AsRef<[u8]>, width: impl ToString, height: impl ToString) -> Form {
        let boundary = format!("----WebKitFormBoundary{}", &Uuid::new_v4().simple().to_string()[..16]);
        let kind = sniff(image.as_ref());
        Form::crop(image, width, height)
            .boundary(&boundary)
            .file_name("photo of me.jpg")
            .part_type(Some(kind))
    }

    /// What `curl -F image=@x -F width=.. -F height=..` sends.
    pub fn curl(image: impl AsRef<[u8]>, width: impl ToString, height: impl ToString) -> Form {
        let boundary = format!("------------------------{}", &Uuid::new_v4().simple().to_string()[..16]);
        let kind = sniff(image.as_ref());
        Form::crop(image, width, height).boundary(&boundary).file_name("rocket.jpg").part_type(Some(kind))
    }

    /// What the vendor's Rust client sends: four hex groups as boundary, `application/octet-stream`.
    pub fn sdk_rust(image: impl AsRef<[u8]>, width: impl ToString, height: impl ToString) -> Form {
        let id = Uuid::new_v4().simple().to_string();
        let id = format!("{id}{}", Uuid::new_v4().simple());
        let boundary = [&id[..16], &id[16..32], &id[32..48], &id[48..]].join("-");
        Form::crop(image, width, height)
            .boundary(&boundary)
            .file_name("image.jpg")
            .part_type(Some("application/octet-stream"))
    }

    /// What the vendor's C# client sends: unquoted names, a type on the text parts too, a quoted boundary.
    pub fn sdk_csharp(image: impl AsRef<[u8]>, width: impl ToString, height: impl ToString) -> Form {
        let kind = sniff(image.as_ref());
        let mut form = Form::crop(image, width, height)
            .boundary(&Uuid::new_v4().to_string())
            .quoted_boundary()
            .unquoted_names()
            .part_type(Some(kind));
        for part in form.parts.iter_mut().filter(|part| part.filename.is_none()) {
            part.content_type = Some("text/plain; charset=utf-8".to_owned());
        }
        form
    }

    /// No parts at all.
    pub fn empty() -> Form {
        let mut form = Form::crop([], 0, 0);
        form.parts.clear();
        form
    }

    /// Sets the boundary.
    #[must_use]
    pub fn boundary(mut self, boundary: &str) -> Form {
        boundary.clone_into(&mut self.boundary);
        self
    }

    /// Quotes the boundary in the Content-Type.
    #[must_use]
    pub fn quoted_boundary(mut self) -> Form {
        self.quoted_boundary = true;
        self
    }

    /// Puts the named parts first, in this order; the others follow as they were.
    #[must_use]
    pub fn order(mut self, names: &[&str]) -> Form {
        self.parts.sort_by_key(|part| names.iter().position(|n| *n == part.name).unwrap_or(names.len()));
        self
    }

    /// Sets the image's file name.
    #[must_use]
    pub fn file_name(self, name: &str) -> Form {
        self.edit("image", |part| part.filename = Some(name.to_owned()))
    }

    /// Sets the image's Content-Type, or removes it.
    #[must_use]
    pub fn part_type(self, content_type: Option<&str>) -> Form {
        self.edit("image", |part| part.content_type = content_type.map(str::to_owned))
    }

    /// Writes names without quotes, as some clients do.
    #[must_use]
    pub fn unquoted_names(mut self) -> Form {
        self.unquoted_names = true;
        self
    }

    /// Gives every text field `filename=""`, as one deployed client does.
    #[must_use]
    pub fn empty_filenames(mut self) -> Form {
        for part in self.parts.iter_mut().filter(|part| part.filename.is_none()) {
            part.filename = Some(String::new());
        }
        self
    }

    /// Adds a text field at the end.
    #[must_use]
    pub fn field(self, name: &str, value: impl Into<Vec<u8>>) -> Form {
        self.part(Part::text(name, value))
    }

    /// Adds any part at the end.
    #[must_use]
    pub fn part(mut self, part: Part) -> Form {
        self.parts.push(part);
        self
    }

    /// Adds a copy of every part of this name at the end.
    #[must_use]
    pub fn duplicate(mut self, name: &str) -> Form {
        let copies: Vec<_> = self.parts.iter().filter(|part| part.name == name).cloned().collect();
        self.parts.extend(copies);
        self
    }

    /// Removes every part of this name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Form {
        self.parts.retain(|part| part.name != name);
        self
    }

    /// Changes every part of this name.
    #[must_use]
    pub fn edit(mut self, name: &str, change: impl Fn(&mut Part)) -> Form {
        self.parts.iter_mut().filter(|part| part.name == name).for_each(change);
        self
    }

    /// Bytes before the first boundary.
    #[must_use]
    pub fn preamble(mut self, bytes: impl Into<Vec<u8>>) -> Form {
        self.preamble = bytes.into();
        self
    }

    /// Bytes after the closing boundary instead of a line end.
    #[must_use]
    pub fn epilogue(mut self, bytes: impl Into<Vec<u8>>) -> Form {
        self.epilogue = bytes.into();
        self
    }

    /// Leaves the closing boundary out.
    #[must_use]
    pub fn unclosed(mut self) -> Form {
        self.closed = false;
        self
    }

    /// The request's Content-Type.
    pub fn content_type(&self) -> String {
        let quote = if self.quoted_boundary { "\"" } else { "" };
        format!("multipart/form-data; boundary={quote}{}{quote}", self.boundary)
    }

    /// The body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = self.preamble.clone();
        if !body.is_empty() {
            body.extend_from_slice(b"\r\n");
        }
        let quote = if self.unquoted_names { "" } else { "\"" };
        for part in &self.parts {
            let mut head = format!(
                "--{}\r\nContent-Disposition: form-data; name={quote}{}{quote}",
                self.boundary, part.name
            );
            if let Some(filename) = &part.filename {
                // A name with blanks, or an empty one, cannot go without quotes.
                let quote = if filename.is_empty() || filename.contains(' ') { "\"" } else { quote };
                head.push_str(&format!("; filename={quote}{filename}{quote}"));
            }
            head.push_str("\r\n");
            if let Some(kind) = &part.content_type {
                head.push_str(&format!("Content-Type: {kind}\r\n"));
            }
            for line in &part.headers {
                head.push_str(&format!("{line}\r\n"));
            }
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(&part.body);
            body.extend_from_slice(b"\r\n");
        }
        if self.closed {
            body.extend_from_slice(format!("--{}--", self.boundary).as_bytes());
            body.extend_from_slice(&self.epilogue);
        }
        body
    }

    /// The body; the form is no longer needed.
    pub fn into_bytes(self) -> Vec<u8> {
        self.to_bytes()
    }
}

/// The type a browser would guess.
fn sniff(image: &[u8]) -> &'static str {
    match image::guess_format(image) {
        Ok(format) => format.to_mime_type(),
        Err(_) => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ailab::parse_multipart;

    #[test]
    fn a_form_is_what_it_says_on_the_wire() {
        let form = Form::crop(b"IMG", 400, 300).boundary("X").part_type(Some("image/png"));
        assert_eq!(form.content_type(), "multipart/form-data; boundary=X");
        assert_eq!(
            String::from_utf8(form.into_bytes()).unwrap(),
            "--X\r\nContent-Disposition: form-data; name=\"image\"; filename=\"image.bin\"\r\nContent-Type: image/png\r\n\r\nIMG\r\n\
             --X\r\nContent-Disposition: form-data; name=\"width\"\r\n\r\n400\r\n\
             --X\r\nContent-Disposition: form-data; name=\"height\"\r\n\r\n300\r\n--X--\r\n"
        );
    }

    #[test]
    fn every_preset_says_the_same_with_other_bytes() {
        let image = b"\xff\xd8\xff\xe0 not really";
        let presets = [
            Form::browser(image, 40, 30),
            Form::curl(image, 40, 30),
            Form::sdk_rust(image, 40, 30),
            Form::sdk_csharp(image, 40, 30),
            Form::crop(image, 40, 30).order(&["height", "image", "width"]).empty_filenames(),
        ];
        for form in presets {
            let parts = parse_multipart(&form.content_type(), &form.to_bytes().into()).unwrap();
            let find = |name: &str| parts.iter().find(|p| p.name == name).unwrap().bytes.clone();
            assert_eq!(parts.len(), 3, "{form:?}");
            assert_eq!(
                (&find("image")[..], &find("width")[..], &find("height")[..]),
                (&image[..], &b"40"[..], &b"30"[..])
            );
        }
    }

    #[test]
    fn broken_forms_are_broken() {
        let broken = |form: Form| parse_multipart(&form.content_type(), &form.to_bytes().into()).is_err();
        assert!(broken(Form::crop(b"x", 1, 2).unclosed()));
        assert!(broken(Form::crop(b"x", 1, 2).epilogue("junk")));
        assert!(broken(Form::crop(b"x", 1, 2).preamble("junk")));
        assert!(!broken(Form::crop(b"x", 1, 2).duplicate("width").without("height")));
    }
}
