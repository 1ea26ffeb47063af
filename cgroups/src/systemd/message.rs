//! D-Bus messages: the D-Bus specification's "Message Protocol".

use super::value::{Reader, Value, Writer};

/// The fixed part of a header, with the length of the fields that follow it.
pub(crate) const FIXED_HEADER: usize = 16;
/// Far above anything that systemd answers us with.
const MAX_MESSAGE: usize = 1 << 20;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A method call.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    pub body: &'a [Value],
}

impl Call<'_> {
    /// The message's bytes.
    pub fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Writer::default();
        self.body.iter().for_each(|value| body.put(value));
        let text = |text: &str| Value::Text(text.to_owned());
        let signature: String = self.body.iter().map(Value::signature).collect();
        let mut fields = vec![
            field(FIELD_PATH, Value::Path(self.path.to_owned())),
            field(FIELD_DESTINATION, text(self.destination)),
            field(FIELD_INTERFACE, text(self.interface)),
            field(FIELD_MEMBER, text(self.member)),
        ];
        if !signature.is_empty() {
            fields.push(field(FIELD_SIGNATURE, Value::Signature(signature)));
        }
        // Little-endian, no flags, version 1.
        let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
        message.put(&Value::Uint32(body.0.len() as u32));
        message.put(&Value::Uint32(serial));
        message.put(&Value::Array("(yv)".to_owned(), fields));
        message.align(8);
        message.0.extend(body.0);
        message.0
    }
}

fn field(code: u8, value: Value) -> Value {
    Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))])
}

/// What came from the bus.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    /// The answer to the call with this serial.
    Reply { serial: u32, result: Result<Vec<Value>, Refusal> },
    /// A signal.
    Signal { interface: String, member: String, body: Vec<Value> },
    /// A method call to us, or something newer than this file.
    Other,
}

/// An error that the other side answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    /// Such as `org.freedesktop.systemd1.UnitExists`.
    pub name: String,
    /// In words.
    pub message: String,
}

/// The length of the whole message that begins with these [`FIXED_HEADER`] bytes; None if they
/// are no header, or the message is too long.
pub(crate) fn length(header: &[u8]) -> Option<usize> {
    let big_endian = match header.first()? {
        b'l' => false,
        b'B' => true,
        _ => return None,
    };
    let mut reader = Reader::new(header.get(..FIXED_HEADER)?, big_endian);
    let mut next = || reader.uint32().map(|number| number as usize);
    let (_kind, body, _serial, fields) = (next()?, next()?, next()?, next()?);
    let length =
        FIXED_HEADER.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)?;
    (length <= MAX_MESSAGE).then_some(length)
}

/// Reads one whole message.
pub(crate) fn decode(message: &[u8]) -> Option<Incoming> {
    let big_endian = *message.first()? == b'B';
    let kind = *message.get(1)?;
    let mut reader = Reader::new(message, big_endian);
    reader.values("yyyyuu")?;
    let Value::Array(_, fields) = reader.values("a(yv)")?.pop()? else { return None };
    reader.align(8);
    let body = message.get(reader.position()..)?;
    let text = |code| match find(&fields, code) {
        Some(Value::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let serial = match find(&fields, FIELD_REPLY_SERIAL) {
        Some(Value::Uint32(serial)) => *serial,
        _ => 0,
    };
    let signature = match find(&fields, FIELD_SIGNATURE) {
        Some(Value::Signature(signature)) => signature.as_str(),
        _ => "",
    };
    let mut body = Reader::new(body, big_endian);
    Some(match kind {
        METHOD_RETURN => Incoming::Reply { serial, result: Ok(body.values(signature)?) },
        ERROR => {
            let message = match body.values(signature).unwrap_or_default().into_iter().next() {
                Some(Value::Text(message)) => message,
                _ => String::new(),
            };
            let refusal = Refusal { name: text(FIELD_ERROR_NAME), message };
            Incoming::Reply { serial, result: Err(refusal) }
        }
        // Signals have types that we do not know (dictionaries): those are not for us.
        SIGNAL => Incoming::Signal {
            interface: text(FIELD_INTERFACE),
            member: text(FIELD_MEMBER),
            body: body.values(signature).unwrap_or_default(),
        },
        _ => Incoming::Other,
    })
}

fn find(fields: &[Value], code: u8) -> Option<&Value> {
    fields.iter().find_map(|field| match field {
        Value::Struct(pair) => match pair.as_slice() {
            [Value::Byte(found), Value::Variant(value)] if *found == code => Some(value.as_ref()),
            _ => None,
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, fields: Vec<Value>, body: &[Value]) -> Vec<u8> {
        let mut bytes = Writer::default();
        body.iter().for_each(|value| bytes.put(value));
        let mut message = Writer(vec![b'l', kind, 0, 1]);
        message.put(&Value::Uint32(bytes.0.len() as u32));
        message.put(&Value::Uint32(1));
        message.put(&Value::Array("(yv)".into(), fields));
        message.align(8);
        message.0.extend(bytes.0);
        message.0
    }

    #[test]
    fn a_call_has_its_length_in_its_header() {
        let body = [Value::Text("kiln-x.scope".into()), Value::Text("replace".into())];
        let call = Call {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "StopUnit",
            body: &body,
        };
        let bytes = call.encode(3);
        assert_eq!(length(&bytes[..FIXED_HEADER]), Some(bytes.len()));
        assert_eq!(decode(&bytes), Some(Incoming::Other));
        assert_eq!(&bytes[..4], b"l\x01\0\x01");
        assert_eq!(bytes[8], 3);
    }

    #[test]
    fn replies_errors_and_signals_are_told_apart() {
        let serial = || field(FIELD_REPLY_SERIAL, Value::Uint32(9));
        let signature = |text: &str| field(FIELD_SIGNATURE, Value::Signature(text.into()));
        let job = Value::Path("/org/freedesktop/systemd1/job/1".into());
        let reply =
            message(METHOD_RETURN, vec![serial(), signature("o")], std::slice::from_ref(&job));
        let expected = Incoming::Reply { serial: 9, result: Ok(vec![job]) };
        assert_eq!(decode(&reply), Some(expected));

        let name = field(FIELD_ERROR_NAME, Value::Text("a.b.C".into()));
        let words = Value::Text("no".into());
        let error = message(ERROR, vec![serial(), name, signature("s")], &[words]);
        let refusal = Refusal { name: "a.b.C".into(), message: "no".into() };
        assert_eq!(decode(&error), Some(Incoming::Reply { serial: 9, result: Err(refusal) }));

        let member = field(FIELD_MEMBER, Value::Text("JobRemoved".into()));
        let signal = message(SIGNAL, vec![member, signature("a{sv}")], &[]);
        let expected = Incoming::Signal {
            interface: String::new(),
            member: "JobRemoved".into(),
            body: vec![],
        };
        assert_eq!(decode(&signal), Some(expected));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r"), None);
        assert_eq!(length(b"l\x01\0\x01\xff\xff\xff\x7f\x01\0\0\0\0\0\0\0"), None);
        assert_eq!(length(b"l"), None);
        assert_eq!(decode(b"l\x02\0\x01"), None);
    }
}
