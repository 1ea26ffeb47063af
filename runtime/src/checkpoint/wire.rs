//! The few bytes of protocol buffers that CRIU's RPC is made of (criu.org/RPC; rpc.proto).
//!
//! Two forms of field suffice: numbers and bytes. A library for it, rust-criu's included, brings
//! thousands of generated lines and reflection for a message in each direction.

/// A message being written: its fields one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

impl Message {
    /// An enum, an unsigned number or a bool.
    pub fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3 | VARINT);
        self.varint(value);
        self
    }

    /// An int32: negative ones are sign-extended to 64 bits.
    pub fn int(&mut self, field: u64, value: i32) -> &mut Self {
        self.number(field, i64::from(value) as u64)
    }

    /// A bool; false, the default of all of CRIU's, is left out.
    pub fn flag(&mut self, field: u64, value: bool) -> &mut Self {
        if value { self.number(field, 1) } else { self }
    }

    /// A string, or a message inside this one.
    pub fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A message inside this one.
    pub fn message(&mut self, field: u64, value: &Self) -> &mut Self {
        self.bytes(field, &value.0)
    }

    /// What goes over the socket.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field that was read. CRIU's messages have no floats, fixed-size ones are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An enum, a number or a bool.
    Number(u64),
    /// A string or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number, 0 for anything else.
    pub fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    /// An int32.
    pub fn int(self) -> i32 {
        self.number() as i32
    }

    /// The bytes, none for a number.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }

    /// The text.
    pub fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// The fields of a message in their order; it ends early where the bytes are not a message.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Of these bytes.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.varint()?;
            let field = key >> 3;
            match key & 7 {
                VARINT => return Some((field, Value::Number(self.varint()?))),
                BYTES => {
                    let length = self.varint()?.try_into().ok()?;
                    return Some((field, Value::Bytes(self.take(length)?)));
                }
                FIXED64 => drop(self.take(8)?),
                FIXED32 => drop(self.take(4)?),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut inner = Message::default();
        inner.bytes(1, b"key").int(2, -1);
        let mut message = Message::default();
        message.number(1, 300).flag(2, false).flag(3, true).message(27, &inner);
        let fields: Vec<_> = Fields::of(message.as_bytes()).collect();
        assert_eq!(fields[0], (1, Value::Number(300)));
        assert_eq!(fields[1], (3, Value::Number(1)));
        assert_eq!((fields.len(), fields[2].0), (3, 27));
        let inner: Vec<_> = Fields::of(fields[2].1.bytes()).collect();
        assert_eq!((inner[0].1.text(), inner[1].1.int()), ("key".to_owned(), -1));
    }

    #[test]
    fn as_the_specification_has_it() {
        // protobuf.dev/programming-guides/encoding: 150 in field 1; "testing" in field 2.
        let mut message = Message::default();
        message.number(1, 150).bytes(2, b"testing");
        assert_eq!(message.as_bytes(), b"\x08\x96\x01\x12\x07testing");
        let mut negative = Message::default();
        negative.int(1, -2);
        assert_eq!(negative.as_bytes(), b"\x08\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    }

    #[test]
    fn what_is_no_message_ends() {
        for bytes in [&b"\x08"[..], b"\x12\x7ftoo short", b"\x0f\x01", &[0xff; 20]] {
            assert_eq!(Fields::of(bytes).count(), 0, "{bytes:?}");
        }
        // A fixed field is passed over.
        let fields: Vec<_> = Fields::of(b"\x0d1234\x08\x05").collect();
        assert_eq!(fields, [(1, Value::Number(5))]);
    }
}
