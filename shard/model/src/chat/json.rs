//! `tojson` as publishers' templates expect it: separators of Python's `json.dumps`, and no letter replaced for HTML.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{Result as Written, Write};

/// Widest indentation: more is not meant to be read.
const MAX_INDENT: usize = 16;

/// A value as JSON, on one line or indented.
///
/// # Errors
/// Values that have no JSON, arguments other than `indent`.
pub fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let wrong = |text: String| Error::new(ErrorKind::InvalidOperation, text);
    let indent: Option<usize> = kwargs.get("indent")?;
    for name in ["ensure_ascii", "sort_keys"] {
        // Written out by some templates with the value that holds anyway.
        if kwargs.get::<Option<bool>>(name)? == Some(true) {
            return Err(wrong(format!("tojson with {name}")));
        }
    }
    kwargs.assert_all_used()?;
    let mut bytes = Vec::new();
    match indent {
        Some(width) if width > MAX_INDENT => return Err(wrong(format!("tojson with an indentation of {width}"))),
        Some(width) => {
            let spaces = [b' '; MAX_INDENT];
            let formatter = PrettyFormatter::with_indent(&spaces[..width]);
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    }
    .map_err(|e| wrong(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| wrong(e.to_string()))
}

/// `{"a": 1, "b": 2}`.
struct Spaced;

fn comma<W: ?Sized + Write>(writer: &mut W, first: bool) -> Written<()> {
    if first { Ok(()) } else { writer.write_all(b", ") }
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Written<()> {
        comma(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Written<()> {
        comma(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Written<()> {
        writer.write_all(b": ")
    }
}
