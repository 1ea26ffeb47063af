//! Properties in annotations: `org.systemd.property.NAME`, with a value in GVariant's text format
//! (runc's docs/systemd.md; GLib's "GVariant Text Format").
//!
//! Texts, booleans, numbers, arrays and tuples, with or without a type before them (`uint64 5`,
//! `@as []`). Dictionaries, variants and maybe-types are refused: no property of a unit has one.

use super::manager::Property;
use super::value::{Value, is_one_type};
use crate::error::Error;

/// What such an annotation begins with.
pub const PREFIX: &str = "org.systemd.property.";

/// "Signatures" in the D-Bus specification: their length is one byte.
const MAX_SIGNATURE: usize = 255;

/// What decides which processes are in the container and where its cgroup is.
const OURS: [&str; 3] = ["PIDs", "PIDFDs", "Slice"];

/// The properties among the annotations. As runc has it, `NAMESec` is in seconds and becomes
/// systemd's `NAMEUSec`.
pub(crate) fn properties<'a>(
    annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Property>, Error> {
    let named = annotations.into_iter().filter_map(|(key, text)| {
        let name = key.strip_prefix(PREFIX)?;
        let failed =
            |reason: &'static str| Error::invalid(format!("annotations.{key}"), text, reason);
        Some(property(name, text).map_err(failed))
    });
    named.collect()
}

fn property(name: &str, text: &str) -> Result<Property, &'static str> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err("the property's name must be made of three or more latin letters");
    }
    if OURS.contains(&name) {
        return Err("this property is set by kiln");
    }
    let value = parse(text)?;
    if value.signature().len() > MAX_SIGNATURE {
        return Err("is a tuple of too many values");
    }
    match name.strip_suffix("Sec") {
        Some(stem) if stem.ends_with(|c: char| c.is_ascii_lowercase()) => {
            Ok((format!("{stem}USec"), micros(&value)?))
        }
        _ => Ok((name.to_owned(), value)),
    }
}

/// Seconds in microseconds.
fn micros(seconds: &Value) -> Result<Value, &'static str> {
    const REASON: &str = "a time in seconds must be a number, and not a negative one";
    let whole = |number: i128| {
        let micros = u64::try_from(number.saturating_mul(1_000_000)).map_err(|_| REASON)?;
        Ok(Value::Uint64(micros))
    };
    match *seconds {
        Value::Byte(number) => whole(number.into()),
        Value::Int16(number) => whole(number.into()),
        Value::Uint16(number) => whole(number.into()),
        Value::Int32(number) => whole(number.into()),
        Value::Uint32(number) => whole(number.into()),
        Value::Int64(number) => whole(number.into()),
        Value::Uint64(number) => whole(number.into()),
        Value::Double(number) if (0.0..1e12).contains(&number) => {
            Ok(Value::Uint64((number * 1e6) as u64))
        }
        _ => Err(REASON),
    }
}

/// One value, and nothing after it.
fn parse(text: &str) -> Result<Value, &'static str> {
    let mut parser = Parser { rest: text, depth: 0 };
    let value = parser.value(None)?;
    parser.blank();
    if parser.rest.is_empty() { Ok(value) } else { Err("there is something after the value") }
}

const NOT_A_VALUE: &str = "is not a value in GVariant's text format";
const WRONG_TYPE: &str = "is not of the type that is asked for";

struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl Parser<'_> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: char) -> bool {
        self.blank();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A word of the characters that names, numbers and signatures are made of.
    fn word(&mut self) -> String {
        self.blank();
        let part = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    /// One value; `wanted` is its signature, if something before it has said so.
    fn value(&mut self, wanted: Option<&str>) -> Result<Value, &'static str> {
        self.depth += 1;
        if self.depth > 8 {
            return Err("is nested too deeply");
        }
        self.blank();
        let value = match self.rest.chars().next() {
            Some('\'' | '"') => text_as(self.text()?, wanted),
            Some('[') => self.array(wanted),
            Some('(') => self.tuple(wanted),
            Some('@') => {
                let signature = self.signature()?;
                self.value(Some(&signature))
            }
            Some('b') if self.rest[1..].starts_with(['\'', '"']) => {
                self.rest = &self.rest[1..];
                let mut bytes = self.text()?.into_bytes();
                bytes.push(0);
                check(Value::bytes(bytes), wanted)
            }
            Some('{' | '<') => Err("dictionaries and variants are not supported"),
            Some(_) => self.plain(wanted),
            None => Err("a value is missing"),
        };
        self.depth -= 1;
        value
    }

    /// `@as`: a signature has brackets, which words do not.
    fn signature(&mut self) -> Result<String, &'static str> {
        let text = &self.rest[1..];
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        // "@as[]" has no space.
        let end = text.find(['[', '\'', '"']).map_or(end, |other| end.min(other));
        let (signature, rest) = text.split_at(end);
        self.rest = rest;
        if !is_one_type(signature) {
            return Err("has a type after @ that is not supported");
        }
        Ok(signature.to_owned())
    }

    /// Booleans, numbers, and types in words.
    fn plain(&mut self, wanted: Option<&str>) -> Result<Value, &'static str> {
        let word = self.word();
        let keyword = match word.as_str() {
            "true" => return check(Value::Bool(true), wanted),
            "false" => return check(Value::Bool(false), wanted),
            "boolean" => "b",
            "byte" => "y",
            "int16" => "n",
            "uint16" => "q",
            "int32" => "i",
            "uint32" => "u",
            "int64" => "x",
            "uint64" => "t",
            "double" => "d",
            "string" => "s",
            "objectpath" => "o",
            "signature" => "g",
            number => return self::number(number, wanted),
        };
        let value = self.value(Some(keyword))?;
        check(value, wanted)
    }

    fn text(&mut self) -> Result<String, &'static str> {
        const UNCLOSED: &str = "has a text without its closing quote";
        let mut chars = self.rest.chars();
        let quote = chars.next();
        let mut text = String::new();
        loop {
            let c = match chars.next().ok_or(UNCLOSED)? {
                '\\' => match chars.next().ok_or(UNCLOSED)? {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    c @ ('u' | 'U') => {
                        let digits = if c == 'u' { 4 } else { 8 };
                        let code: String = chars.by_ref().take(digits).collect();
                        let code = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                        code.ok_or("has a \\u without a character's number")?
                    }
                    c => c,
                },
                c if Some(c) == quote => break,
                c => c,
            };
            if c == '\0' {
                return Err("must not have a NUL byte");
            }
            text.push(c);
        }
        self.rest = chars.as_str();
        Ok(text)
    }

    fn array(&mut self, wanted: Option<&str>) -> Result<Value, &'static str> {
        let mut element = match wanted {
            Some(wanted) => Some(wanted.strip_prefix('a').ok_or(WRONG_TYPE)?.to_owned()),
            None => None,
        };
        let mut values: Vec<Value> = Vec::new();
        self.eat('[');
        while !self.eat(']') {
            if !values.is_empty() && !self.eat(',') {
                return Err(NOT_A_VALUE);
            }
            let value = self.value(element.as_deref())?;
            // The first says what the others are: ['a', 1] is no array.
            element.get_or_insert_with(|| value.signature());
            values.push(value);
        }
        let element = element.ok_or("an empty array needs its type: @as []")?;
        Ok(Value::Array(element, values))
    }

    fn tuple(&mut self, wanted: Option<&str>) -> Result<Value, &'static str> {
        let mut fields = Vec::new();
        self.eat('(');
        let mut types = match wanted {
            Some(wanted) => {
                let inside = wanted.strip_prefix('(').and_then(|wanted| wanted.strip_suffix(')'));
                Some(super::value::types(inside.ok_or(WRONG_TYPE)?).into_iter())
            }
            None => None,
        };
        while !self.eat(')') {
            if !fields.is_empty() && !self.eat(',') {
                return Err(NOT_A_VALUE);
            }
            // ('a',) has one field.
            if !fields.is_empty() && self.eat(')') {
                break;
            }
            let field = match &mut types {
                Some(types) => Some(types.next().ok_or(WRONG_TYPE)?),
                None => None,
            };
            fields.push(self.value(field.as_deref())?);
        }
        if fields.is_empty() {
            return Err("an empty tuple is no property");
        }
        check(Value::Struct(fields), wanted)
    }
}

fn check(value: Value, wanted: Option<&str>) -> Result<Value, &'static str> {
    match wanted {
        Some(wanted) if value.signature() != wanted => Err(WRONG_TYPE),
        _ => Ok(value),
    }
}

fn text_as(text: String, wanted: Option<&str>) -> Result<Value, &'static str> {
    match wanted {
        None | Some("s") => Ok(Value::Text(text)),
        Some("o") if is_path(&text) => Ok(Value::Path(text)),
        Some("g") if text.is_empty() || is_one_type(&text) => Ok(Value::Signature(text)),
        Some(_) => Err(WRONG_TYPE),
    }
}

/// "Valid Object Paths" in the D-Bus specification: a bus drops the connection over a wrong one.
fn is_path(text: &str) -> bool {
    let valid = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text == "/" || text.strip_prefix('/').is_some_and(|path| path.split('/').all(valid))
}

/// Without a type a number is an int32, or a double if it has a point or an exponent; `0x` is
/// hexadecimal and a leading 0 octal, as in C.
fn number(word: &str, wanted: Option<&str>) -> Result<Value, &'static str> {
    const RANGE: &str = "is a number out of its type's range";
    let hexadecimal = word.contains("0x") || word.contains("0X");
    let fraction = !hexadecimal && word.contains(['.', 'e', 'E']);
    let wanted = wanted.unwrap_or(if fraction { "d" } else { "i" });
    if wanted == "d" && !hexadecimal {
        let finite = word.parse().ok().filter(|number: &f64| number.is_finite());
        return finite.map(Value::Double).ok_or(NOT_A_VALUE);
    }
    let number = integer(word).ok_or(if word.is_empty() { NOT_A_VALUE } else { UNKNOWN })?;
    let value = match wanted {
        "y" => number.try_into().ok().map(Value::Byte),
        "n" => number.try_into().ok().map(Value::Int16),
        "q" => number.try_into().ok().map(Value::Uint16),
        "i" => number.try_into().ok().map(Value::Int32),
        "u" => number.try_into().ok().map(Value::Uint32),
        "x" => number.try_into().ok().map(Value::Int64),
        "t" => number.try_into().ok().map(Value::Uint64),
        _ => return Err(WRONG_TYPE),
    };
    value.ok_or(RANGE)
}

const UNKNOWN: &str = "is neither a number nor a known type (hint: texts are in quotes)";

fn integer(word: &str) -> Option<i128> {
    let (negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    let lower = digits.to_ascii_lowercase();
    let number = match lower.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None if lower.len() > 1 && lower.starts_with('0') => u64::from_str_radix(&lower[1..], 8),
        None => lower.parse(),
    };
    let number = i128::from(number.ok()?);
    Some(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(text: &str, value: Value) {
        assert_eq!(parse(text).unwrap_or_else(|error| panic!("{text}: {error}")), value, "{text}");
    }

    #[test]
    fn plain_values() {
        is("true", Value::Bool(true));
        is(" false ", Value::Bool(false));
        is("'it\\'s'", Value::Text("it's".into()));
        is("\"a\\u0041\\n\"", Value::Text("aA\n".into()));
        is("42", Value::Int32(42));
        is("-0x10", Value::Int32(-16));
        is("010", Value::Int32(8));
        is("1.5", Value::Double(1.5));
        is("uint64 18446744073709551615", Value::Uint64(u64::MAX));
        is("@t 5", Value::Uint64(5));
        is("byte 0xff", Value::Byte(255));
        is("double 2", Value::Double(2.0));
        is("objectpath '/a/b'", Value::Path("/a/b".into()));
        is("b'ab'", Value::bytes(*b"ab\0"));
    }

    #[test]
    fn a_signature_fits_into_its_length() {
        let tuple = |fields: usize| format!("({})", "1,".repeat(fields));
        assert!(property("Some", &tuple(253)).is_ok());
        let error = property("Some", &tuple(254)).unwrap_err();
        assert_eq!(error, "is a tuple of too many values");
    }

    #[test]
    fn arrays_and_tuples() {
        is("['a.service', \"b.service\"]", Value::texts(["a.service", "b.service"]));
        is("@as []", Value::texts::<String>([]));
        is("@as[]", Value::texts::<String>([]));
        is("[uint32 1, 2]", Value::Array("u".into(), vec![Value::Uint32(1), Value::Uint32(2)]));
        is("@ay [1, 2]", Value::bytes([1, 2]));
        let pair =
            |path: &str| Value::Struct(vec![Value::Text(path.into()), Value::Text("rw".into())]);
        is("[('/dev/a', 'rw')]", Value::Array("(ss)".into(), vec![pair("/dev/a")]));
        is("@a(ss) [('/dev/a', 'rw')]", Value::Array("(ss)".into(), vec![pair("/dev/a")]));
        is("('a',)", Value::Struct(vec![Value::Text("a".into())]));
        let limit = Value::Struct(vec![Value::Text("/dev/a".into()), Value::Uint64(9)]);
        is("@a(st) [('/dev/a', 9)]", Value::Array("(st)".into(), vec![limit]));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "",
            " ",
            "nonsense",
            "'open",
            "[",
            "[1,",
            "[1 2]",
            "[1, 'a']",
            "[]",
            "()",
            "{'a': 1}",
            "<1>",
            "just 'a'",
            "1 2",
            "'a' 'b'",
            "uint32 -1",
            "byte 256",
            "4294967296",
            "uint32 'a'",
            "@s 1",
            "@x{} 1",
            "@as ['a', 1]",
            "@a{sv} []",
            "@(ss) ('a',)",
            "objectpath 'a'",
            "objectpath '/a/'",
            "int32",
            "@",
            "@as",
            "'\\u00'",
            "0x",
            "--1",
            "nan",
            "infinity",
            "boolean 1",
            "[[[[[[[[[[1]]]]]]]]]]",
            "b",
            "'\\u0000'",
            "handle 1",
        ] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn annotations_become_properties() {
        let all = [
            ("org.systemd.property.TimeoutStopSec", "1"),
            ("org.systemd.property.RuntimeMaxSec", "0.5"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.other", "x"),
        ];
        let found = properties(all).unwrap();
        assert_eq!(found[0], ("TimeoutStopUSec".to_owned(), Value::Uint64(1_000_000)));
        assert_eq!(found[1], ("RuntimeMaxUSec".to_owned(), Value::Uint64(500_000)));
        assert_eq!(found[2].1, Value::Text("inactive-or-failed".into()));
        assert_eq!(found.len(), 3);
        for (name, text) in [
            ("Ab", "1"),
            ("", "1"),
            ("A.b", "1"),
            ("Memory_Max", "1"),
            ("PIDs", "[uint32 1]"),
            ("Slice", "'a.slice'"),
            ("StopSec", "'a'"),
            ("StopSec", "-1"),
        ] {
            let key = format!("{PREFIX}{name}");
            let error = properties([(key.as_str(), text)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotations.{key}: ")), "{error}");
        }
    }
}
