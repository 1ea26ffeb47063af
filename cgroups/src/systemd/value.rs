//! D-Bus values and their wire format: the D-Bus specification's "Type System" and
//! "Marshaling".
//!
//! Only as much as systemd's manager speaks with us: no dictionaries, no descriptors.

/// How deep values may lie in each other; what we exchange needs four.
const MAX_DEPTH: u32 = 16;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
    Path(String),
    Signature(String),
    /// All of the type that the signature says.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    /// Its type in D-Bus's letters.
    pub fn signature(&self) -> String {
        let letter = match self {
            Self::Byte(_) => "y",
            Self::Bool(_) => "b",
            Self::Int16(_) => "n",
            Self::Uint16(_) => "q",
            Self::Int32(_) => "i",
            Self::Uint32(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Double(_) => "d",
            Self::Text(_) => "s",
            Self::Path(_) => "o",
            Self::Signature(_) => "g",
            Self::Variant(_) => "v",
            Self::Array(element, _) => return format!("a{element}"),
            Self::Struct(fields) => {
                let fields: String = fields.iter().map(Self::signature).collect();
                return format!("({fields})");
            }
        };
        letter.to_owned()
    }

    /// An array of texts.
    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        let texts = texts.into_iter().map(|text| Self::Text(text.into()));
        Self::Array("s".to_owned(), texts.collect())
    }

    /// An array of bytes.
    pub fn bytes(bytes: impl IntoIterator<Item = u8>) -> Self {
        Self::Array("y".to_owned(), bytes.into_iter().map(Self::Byte).collect())
    }
}

/// What a type is aligned to, by the first letter of its signature.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(') => 8,
        _ => 1,
    }
}

/// Writes values, little-endian.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    /// Fills up with zeroes to a multiple of `to`.
    pub fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn fixed<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N);
        self.0.extend(bytes);
    }

    fn text(&mut self, text: &str) {
        self.fixed((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn short_text(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// Appends one value.
    pub fn put(&mut self, value: &Value) {
        match value {
            Value::Byte(byte) => self.0.push(*byte),
            Value::Bool(on) => self.fixed(u32::from(*on).to_le_bytes()),
            Value::Int16(number) => self.fixed(number.to_le_bytes()),
            Value::Uint16(number) => self.fixed(number.to_le_bytes()),
            Value::Int32(number) => self.fixed(number.to_le_bytes()),
            Value::Uint32(number) => self.fixed(number.to_le_bytes()),
            Value::Int64(number) => self.fixed(number.to_le_bytes()),
            Value::Uint64(number) => self.fixed(number.to_le_bytes()),
            Value::Double(number) => self.fixed(number.to_le_bytes()),
            Value::Text(text) | Value::Path(text) => self.text(text),
            Value::Signature(text) => self.short_text(text),
            Value::Variant(inner) => {
                self.short_text(&inner.signature());
                self.put(inner);
            }
            Value::Struct(fields) => {
                self.align(8);
                fields.iter().for_each(|field| self.put(field));
            }
            Value::Array(element, values) => self.array(element, values),
        }
    }

    /// The length counts neither itself nor the padding before the first element.
    fn array(&mut self, element: &str, values: &[Value]) {
        self.fixed(0_u32.to_le_bytes());
        let length_at = self.0.len() - 4;
        self.align(alignment(element));
        let start = self.0.len();
        values.iter().for_each(|value| self.put(value));
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Reads values; every step checks that the bytes are there.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

macro_rules! number {
    ($reader:expr, $type:ty) => {{
        let bytes = $reader.fixed()?;
        if $reader.big_endian {
            <$type>::from_be_bytes(bytes)
        } else {
            <$type>::from_le_bytes(bytes)
        }
    }};
}

impl<'a> Reader<'a> {
    /// From the beginning of a message or of its body.
    pub fn new(bytes: &'a [u8], big_endian: bool) -> Self {
        Self { bytes, at: 0, big_endian }
    }

    /// How far it has come.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Skips to a multiple of `to`.
    pub fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.align(N);
        self.take(N)?.try_into().ok()
    }

    /// A length, or a number of the header.
    pub fn uint32(&mut self) -> Option<u32> {
        Some(number!(self, u32))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }

    /// All values of a signature; None if the bytes do not hold them.
    pub fn values(&mut self, mut signature: &str) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        while !signature.is_empty() {
            values.push(self.value(&mut signature, 0)?);
        }
        Some(values)
    }

    /// One value of the signature's first type, which is taken off it.
    fn value(&mut self, signature: &mut &str, depth: u32) -> Option<Value> {
        let (first, rest) = split(signature)?;
        *signature = rest;
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match first.as_bytes()[0] {
            b'y' => Value::Byte(self.take(1)?[0]),
            b'b' => Value::Bool(self.uint32()? != 0),
            b'n' => Value::Int16(number!(self, i16)),
            b'q' => Value::Uint16(number!(self, u16)),
            b'i' => Value::Int32(number!(self, i32)),
            b'u' => Value::Uint32(number!(self, u32)),
            b'x' => Value::Int64(number!(self, i64)),
            b't' => Value::Uint64(number!(self, u64)),
            b'd' => Value::Double(number!(self, f64)),
            b's' => {
                let length = self.uint32()?;
                Value::Text(self.text(length as usize)?)
            }
            b'o' => {
                let length = self.uint32()?;
                Value::Path(self.text(length as usize)?)
            }
            b'g' => Value::Signature(self.signature()?),
            b'v' => {
                let signature = self.signature()?;
                let mut rest = signature.as_str();
                let inner = self.value(&mut rest, depth + 1)?;
                Value::Variant(Box::new(inner))
            }
            b'a' => self.array(&first[1..], depth)?,
            b'(' => {
                self.align(8);
                let mut inside = &first[1..first.len() - 1];
                let mut fields = Vec::new();
                while !inside.is_empty() {
                    fields.push(self.value(&mut inside, depth + 1)?);
                }
                Value::Struct(fields)
            }
            _ => return None,
        })
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.take(1)?[0];
        self.text(length.into())
    }

    fn array(&mut self, element: &str, depth: u32) -> Option<Value> {
        let length = self.uint32()? as usize;
        self.align(alignment(element));
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let mut values = Vec::new();
        while self.at < end {
            let before = self.at;
            let mut signature = element;
            values.push(self.value(&mut signature, depth + 1)?);
            if self.at == before {
                return None;
            }
        }
        Some(Value::Array(element.to_owned(), values))
    }
}

/// The first complete type of a signature, and what follows it.
fn split(signature: &str) -> Option<(&str, &str)> {
    let bytes = signature.as_bytes();
    let mut end = 0;
    while *bytes.get(end)? == b'a' {
        end += 1;
    }
    let mut open = 0_u32;
    loop {
        match *bytes.get(end)? {
            b'(' => open += 1,
            b')' => open = open.checked_sub(1)?,
            b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b's' | b'o' | b'g'
            | b'v' | b'a' => {}
            _ => return None,
        }
        end += 1;
        if open == 0 {
            return Some(signature.split_at(end));
        }
    }
}

/// The complete types of a signature that [`is_one_type`] has approved of, one after another.
pub(crate) fn types(mut signature: &str) -> Vec<String> {
    let mut types = Vec::new();
    while let Some((first, rest)) = split(signature) {
        types.push(first.to_owned());
        signature = rest;
    }
    types
}

/// Whether this is the signature of one complete type that a [`Value`] can hold.
pub(crate) fn is_one_type(signature: &str) -> bool {
    let complete = |first: &str| match first.trim_start_matches('a') {
        "" | "()" => false,
        one if one.starts_with('(') => {
            let mut inside = &one[1..one.len() - 1];
            while let Some((first, rest)) = split(inside) {
                if !is_one_type(first) {
                    return false;
                }
                inside = rest;
            }
            inside.is_empty()
        }
        _ => true,
    };
    signature.len() < 64
        && split(signature).is_some_and(|(first, rest)| rest.is_empty() && complete(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(name: &str, value: Value) -> Value {
        Value::Struct(vec![Value::Text(name.into()), Value::Variant(Box::new(value))])
    }

    fn samples() -> Vec<Value> {
        let limits = vec![
            property("Delegate", Value::Bool(true)),
            property("MemoryMax", Value::Uint64(u64::MAX)),
            property("PIDs", Value::Array("u".into(), vec![Value::Uint32(7)])),
            property("AllowedCPUs", Value::bytes([3, 0])),
            property("DeviceAllow", Value::Array("(ss)".into(), vec![])),
            property("After", Value::texts(["a.service", "b.service"])),
        ];
        vec![
            Value::Text("kiln-x.scope".into()),
            Value::Byte(1),
            Value::Int16(-2),
            Value::Uint16(2),
            Value::Int32(-3),
            Value::Int64(i64::MIN),
            Value::Double(0.5),
            Value::Path("/a".into()),
            Value::Signature("a(sv)".into()),
            Value::Array("(sv)".into(), limits),
        ]
    }

    #[test]
    fn what_is_written_is_read_again() {
        let values = samples();
        let mut writer = Writer::default();
        values.iter().for_each(|value| writer.put(value));
        let signature: String = values.iter().map(Value::signature).collect();
        assert_eq!(signature, "synqixdoga(sv)");
        let mut reader = Reader::new(&writer.0, false);
        assert_eq!(reader.values(&signature).unwrap(), values);
        assert_eq!(reader.position(), writer.0.len());
    }

    #[test]
    fn bytes_are_as_the_specification_has_them() {
        let mut writer = Writer::default();
        writer.put(&Value::Byte(1));
        writer.put(&Value::Text("foo".into()));
        writer.put(&Value::Array("t".into(), vec![Value::Uint64(5)]));
        let expected = b"\x01\0\0\0\x03\0\0\0foo\0\x08\0\0\0\x05\0\0\0\0\0\0\0";
        assert_eq!(writer.0, expected);
        let mut reader = Reader::new(b"\0\0\0\x03foo\0", true);
        assert_eq!(reader.values("s").unwrap(), [Value::Text("foo".into())]);
    }

    #[test]
    fn cut_off_and_nonsensical_bytes_are_refused() {
        let values = samples();
        let mut writer = Writer::default();
        values.iter().for_each(|value| writer.put(value));
        for length in 0..writer.0.len() {
            assert!(Reader::new(&writer.0[..length], false).values("synqixdoga(sv)").is_none());
        }
        for signature in ["", "a", "(", ")", "(s", "s)", "m", "a{sv}", "ss", "a()", "(a)", "(sa)"] {
            assert!(!is_one_type(signature), "{signature}");
        }
        for signature in ["s", "as", "aas", "(ss)", "a(sv)", "(a(st)b)"] {
            assert!(is_one_type(signature), "{signature}");
        }
        // A variant in a variant in a variant, ad infinitum.
        let deep = b"\x01v\0".repeat(1000);
        assert!(Reader::new(&deep, false).values("v").is_none());
        let endless = [255, 255, 255, 255];
        assert!(Reader::new(&endless, false).values("ay").is_none());
    }
}
