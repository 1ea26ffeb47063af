//! A connection to a message bus, or to systemd itself: the D-Bus specification's "Server
//! Addresses" and "Authentication Protocol".
//!
//! Blocks, with a deadline; has no thread. Knows nothing of systemd's methods.

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::message::{self, Call, FIXED_HEADER, Incoming, Refusal};
use super::value::Value;

/// Of the authentication's answers.
const MAX_LINE: usize = 512;

/// Where a bus listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Address {
    /// A socket in the filesystem.
    Path(PathBuf),
    /// One in the abstract namespace.
    Abstract(Vec<u8>),
}

impl Address {
    /// The unix addresses of a list such as `unix:path=/run/user/0/bus,guid=...;tcp:...`.
    pub fn parse_list(text: &str) -> Vec<Self> {
        text.split(';').filter_map(Self::parse).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let keys = text.trim().strip_prefix("unix:")?;
        keys.split(',').find_map(|key| match key.split_once('=')? {
            ("path", path) => {
                let path = PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(path)?));
                Some(Self::Path(path))
            }
            ("abstract", name) => Some(Self::Abstract(unescape(name)?)),
            _ => None,
        })
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        let address = match self {
            Self::Path(path) => SocketAddr::from_pathname(path)?,
            Self::Abstract(name) => SocketAddr::from_abstract_name(name)?,
        };
        UnixStream::connect_addr(&address)
    }

    /// Whether this is the socket of systemd itself, without a bus between.
    fn is_private(&self) -> bool {
        matches!(self, Self::Path(path) if path.ends_with("systemd/private"))
    }
}

impl From<&str> for Address {
    fn from(path: &str) -> Self {
        Self::Path(Path::new(path).to_owned())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

/// `%2f` is a slash.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let code = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        rest = &rest[2..];
    }
    Some(bytes)
}

/// Why a call came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection broke, timed out, or spoke nonsense.
    Lost(String),
    /// The other side answered an error.
    Refused(Refusal),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(reason) => f.write_str(reason),
            Self::Refused(Refusal { name, message }) if message.is_empty() => f.write_str(name),
            Self::Refused(refusal) => f.write_str(refusal.message.trim_end_matches('.')),
        }
    }
}

/// A signal's member and body.
pub(crate) type Signal = (String, Vec<Value>);

/// Open and authenticated. The socket is close-on-exec.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// Received and not yet taken apart.
    buffer: Vec<u8>,
    serial: u32,
    /// Came while a reply was waited for.
    signals: Vec<Signal>,
    deadline: Instant,
    private: bool,
}

impl Connection {
    /// Connects and authenticates as the caller's user; everything up to [`Self::extend`] must
    /// be done within `patience`.
    pub fn open(address: &Address, patience: Duration) -> Result<Self, Failure> {
        let stream = address.connect().map_err(|error| Failure::Lost(plain(&error)))?;
        let mut connection = Self {
            stream,
            buffer: Vec::new(),
            serial: 0,
            signals: Vec::new(),
            deadline: Instant::now() + patience,
            private: address.is_private(),
        };
        connection.authenticate()?;
        Ok(connection)
    }

    /// Whether there is no bus between: no names, no matches, and every signal comes.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// A new deadline for what follows.
    pub fn extend(&mut self, patience: Duration) {
        self.deadline = Instant::now() + patience;
    }

    /// EXTERNAL without a name: the other side takes the user from the socket, which is right in
    /// a user namespace, too, where we do not know our own uid's name outside.
    fn authenticate(&mut self) -> Result<(), Failure> {
        self.write(b"\0AUTH EXTERNAL\r\n")?;
        let mut answer = self.line()?;
        if answer == "DATA" {
            self.write(b"DATA\r\n")?;
            answer = self.line()?;
        }
        if !answer.starts_with("OK") {
            return Err(Failure::Lost(format!("authentication: it answered {answer:?}")));
        }
        self.write(b"BEGIN\r\n")
    }

    /// Sends a call and waits for its answer.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Vec<Value>, Failure> {
        let serial = self.send(call)?;
        self.reply(serial)
    }

    /// Sends a call; [`Self::reply`] gets the answer. Several at once save waiting; their answers
    /// must be asked for in the order of the calls.
    pub fn send(&mut self, call: &Call<'_>) -> Result<u32, Failure> {
        self.serial += 1;
        let message = call.encode(self.serial);
        self.write(&message)?;
        Ok(self.serial)
    }

    /// Waits for the answer to a call.
    pub fn reply(&mut self, wanted: u32) -> Result<Vec<Value>, Failure> {
        loop {
            match self.next()? {
                Incoming::Reply { serial, result } if serial == wanted => {
                    return result.map_err(Failure::Refused);
                }
                Incoming::Signal { member, body, .. } => self.signals.push((member, body)),
                Incoming::Reply { .. } | Incoming::Other => {}
            }
        }
    }

    /// The next signal, those that have come already first.
    pub fn signal(&mut self) -> Result<Signal, Failure> {
        if !self.signals.is_empty() {
            return Ok(self.signals.remove(0));
        }
        loop {
            if let Incoming::Signal { member, body, .. } = self.next()? {
                return Ok((member, body));
            }
        }
    }

    fn next(&mut self) -> Result<Incoming, Failure> {
        let nonsense = || Failure::Lost("it sent what is no D-Bus message".to_owned());
        self.fill(FIXED_HEADER)?;
        let length = message::length(&self.buffer).ok_or_else(nonsense)?;
        self.fill(length)?;
        let incoming = message::decode(&self.buffer[..length]);
        self.buffer.drain(..length);
        incoming.ok_or_else(nonsense)
    }

    /// Up to CR LF, which are not returned.
    fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(Failure::Lost("authentication: no answer but noise".to_owned()));
            }
            self.fill(self.buffer.len() + 1)?;
        }
    }

    /// Reads until the buffer has this many bytes.
    fn fill(&mut self, length: usize) -> Result<(), Failure> {
        let mut chunk = [0; 4096];
        while self.buffer.len() < length {
            self.stream.set_read_timeout(Some(self.left()?)).map_err(lost)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Failure::Lost("it closed the connection".to_owned())),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.set_write_timeout(Some(self.left()?)).map_err(lost)?;
        self.stream.write_all(bytes).map_err(lost)
    }

    fn left(&self) -> Result<Duration, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(too_late()) } else { Ok(left) }
    }
}

fn too_late() -> Failure {
    Failure::Lost("it did not answer in time".to_owned())
}

fn lost(error: std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => too_late(),
        _ => Failure::Lost(plain(&error)),
    }
}

/// As the crate's other messages have an errno.
fn plain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => rustix::io::Errno::from_raw_os_error(errno).to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn addresses_are_taken_from_a_list() {
        let list = "tcp:host=x;unix:path=/run/user/1000/bus,guid=00;unix:abstract=/tmp/a%2cb";
        let expected =
            [Address::from("/run/user/1000/bus"), Address::Abstract(b"/tmp/a,b".to_vec())];
        assert_eq!(Address::parse_list(list), expected);
        for nothing in ["", "unix:", "unix:guid=1", "unix:path=%2", "unix:path=%zz"] {
            assert!(Address::parse_list(nothing).is_empty(), "{nothing}");
        }
    }

    /// Answers the authentication with these lines and then sends these bytes.
    fn server(answers: &'static [&'static str], then: Vec<u8>) -> (tempfile::TempDir, Address) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            for answer in answers {
                assert_ne!(stream.read(&mut buffer).unwrap(), 0);
                stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
            }
            let _ = stream.write_all(&then);
            // BEGIN, the call, and then until the client has gone.
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        (dir, Address::Path(path))
    }

    const SOON: Duration = Duration::from_millis(200);
    const LATER: Duration = Duration::from_secs(20);
    const PING: Call<'static> =
        Call { destination: "a.b", path: "/", interface: "a.b.C", member: "Ping", body: &[] };

    #[test]
    fn both_ways_of_authentication_are_understood() {
        // A reply to serial 1 without a body.
        let reply = b"l\x02\0\x01\0\0\0\0\x07\0\0\0\x08\0\0\0\x05\x01u\0\x01\0\0\0".to_vec();
        for answers in [&["DATA", "OK 00"][..], &["OK 00"]] {
            let (_dir, address) = server(answers, reply.clone());
            let mut connection = Connection::open(&address, LATER).unwrap();
            assert_eq!(connection.call(&PING).unwrap(), []);
        }
        let (_dir, address) = server(&["REJECTED EXTERNAL"], vec![]);
        let error = Connection::open(&address, LATER).unwrap_err().to_string();
        assert!(error.contains("REJECTED"), "{error}");
    }

    #[test]
    fn silence_and_noise_are_errors() {
        let (_dir, address) = server(&["OK 00"], vec![]);
        let mut connection = Connection::open(&address, SOON).unwrap();
        let error = connection.call(&PING).unwrap_err().to_string();
        assert_eq!(error, "it did not answer in time");
        let (_dir, address) = server(&["OK 00"], b"HTTP/1.1 400 Bad Request\r\n".to_vec());
        let mut connection = Connection::open(&address, LATER).unwrap();
        let error = connection.call(&PING).unwrap_err().to_string();
        assert_eq!(error, "it sent what is no D-Bus message");
        let error = Connection::open(&Address::from("/nonexistent"), SOON).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
    }
}
