//! A client of HTTP/1.1 that does what it is told, also what no client should: bytes as they are, half
//! a request, half a connection, slow reading.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::patience;

/// How long an answer may take before the test fails, in seconds.
const DEADLINE: u64 = 60;

/// What may not fit into the buffers of a connection, in bytes.
const LARGE: usize = 32 << 10;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// A port of this machine, or of the network namespace that the thread is in.
    pub fn port(port: u16) -> Self {
        Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Connects.
    ///
    /// # Errors
    /// connect(2)'s.
    pub fn connect(&self) -> io::Result<Connection> {
        let deadline = Some(patience(DEADLINE));
        let stream = match self {
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect(address)?),
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        match &stream {
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(deadline)?;
            }
            Stream::Unix(stream) => stream.set_read_timeout(deadline)?,
        }
        Ok(Connection { stream, buffer: Vec::new() })
    }

    /// Asks once, on a connection of its own.
    ///
    /// # Errors
    /// The connection's, or that what came is no answer.
    pub fn try_ask(&self, request: &Request) -> io::Result<Answer> {
        self.connect()?.try_ask(request)
    }

    /// As [`Address::try_ask`].
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ask(&self, request: &Request) -> Answer {
        self.try_ask(request).unwrap_or_else(|err| panic!("{request:?} to {self:?}: {err}"))
    }

    /// `GET`s a path.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&Request::new("GET", path))
    }

    /// `POST`s a body to `/`.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn post(&self, body: impl AsRef<[u8]>) -> Answer {
        self.ask(&Request::new("POST", "/").body(body))
    }
}

/// A request to be.
#[derive(Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    chunk: Option<usize>,
}

impl Request {
    /// Without headers but `Host`, and without a body.
    pub fn new(method: &str, path: &str) -> Self {
        let headers = vec![("host".to_owned(), "test".to_owned())];
        Request {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: None,
            chunk: None,
        }
    }

    /// For another host than `test`.
    pub fn host(mut self, name: &str) -> Self {
        name.clone_into(&mut self.headers[0].1);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a body, whose length is told.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// Its body comes in chunks of this many bytes.
    pub fn chunked(mut self, bytes: usize) -> Self {
        self.chunk = Some(bytes);
        self
    }

    /// As it is sent, but for the body.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match (&self.body, self.chunk) {
            (Some(_), Some(_)) => head.push_str("transfer-encoding: chunked\r\n"),
            (Some(body), None) => head.push_str(&format!("content-length: {}\r\n", body.len())),
            (None, _) => {}
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        let body = self.body.as_deref().unwrap_or_default();
        match self.chunk {
            None => bytes.extend_from_slice(body),
            Some(size) => {
                for chunk in body.chunks(size) {
                    bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
        }
        bytes
    }
}

/// Without the body, which may be long.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// What has come and was not asked for yet.
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The stream's.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes.as_ref()),
            Stream::Unix(stream) => stream.write_all(bytes.as_ref()),
        }
    }

    /// Another handle of the same connection, to send while somebody reads.
    ///
    /// # Panics
    /// If no descriptor can be had.
    pub fn sender(&self) -> Connection {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone().unwrap()),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone().unwrap()),
        };
        Connection { stream, buffer: Vec::new() }
    }

    /// Says that no more will be sent.
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn half_close(&self) {
        let closed = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
        closed.unwrap();
    }

    /// How long a read may take from now on.
    ///
    /// # Panics
    /// If the time is zero.
    pub fn read_timeout(&self, limit: Duration) {
        let set = match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit)),
        };
        set.unwrap();
    }

    /// What comes next, at most 64 KiB; nothing at the end.
    ///
    /// # Errors
    /// The stream's.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        if !self.buffer.is_empty() {
            return Ok(std::mem::take(&mut self.buffer));
        }
        let mut buffer = vec![0; 64 << 10];
        let count = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut buffer),
            Stream::Unix(stream) => stream.read(&mut buffer),
        }?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// All that comes until the server closes the connection, or resets it.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.read() {
                Ok(bytes) if bytes.is_empty() => return all,
                Ok(bytes) => all.extend(bytes),
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return all,
                Err(err) => panic!("not closed: {err}, after {} bytes", all.len()),
            }
        }
    }

    /// Reads until `part` is among what has come, and returns all of that.
    ///
    /// # Panics
    /// If it does not come.
    #[track_caller]
    pub fn read_until(&mut self, part: &str) -> String {
        let mut all = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&all).into_owned();
            if text.contains(part) {
                return text;
            }
            let bytes = self.read().unwrap_or_else(|err| panic!("no {part:?}: {err}: {text}"));
            assert!(!bytes.is_empty(), "the end, and no {part:?}: {text}");
            all.extend(bytes);
        }
    }

    /// Sends a request and awaits its answer.
    ///
    /// # Errors
    /// The stream's, or that what came is no answer.
    pub fn try_ask(&mut self, request: &Request) -> io::Result<Answer> {
        let bytes = request.bytes();
        let (sent, answer) = if bytes.len() < LARGE {
            (self.send(bytes), self.answer(request.method == "HEAD"))
        } else {
            // The answer may come while the body goes, and either may wait for the other.
            let mut sender = self.sender();
            std::thread::scope(|scope| {
                let sending = scope.spawn(move || sender.send(bytes));
                let answer = self.answer(request.method == "HEAD");
                (sending.join().unwrap_or(Ok(())), answer)
            })
        };
        // A server may answer and close before it has read all.
        if answer.is_err() {
            sent?;
        }
        answer
    }

    /// As [`Connection::try_ask`].
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Answer {
        self.try_ask(request).unwrap_or_else(|err| panic!("{request:?}: {err}"))
    }

    /// The next answer. Those to `HEAD` have no body whatever they say.
    ///
    /// # Errors
    /// The stream's, or that what came is no answer.
    pub fn answer(&mut self, to_head: bool) -> io::Result<Answer> {
        let mut answer = loop {
            let head = self.head()?;
            let answer = parse_head(&head)?;
            if answer.status != 100 {
                break answer;
            }
        };
        let bodiless = to_head || matches!(answer.status, 204 | 304);
        answer.whole = true;
        if bodiless {
            return Ok(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.whole = self.chunks(&mut answer.body)?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| bad(&format!("length {length:?}")))?;
            answer.whole = self.exactly(length, &mut answer.body)?;
        } else {
            while self.fill()? {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        Ok(answer)
    }

    fn head(&mut self) -> io::Result<String> {
        loop {
            let end = self.buffer.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return String::from_utf8(head).map_err(|_| bad("a head that is no text"));
            }
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// False if the connection was closed before the end.
    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let Some(line) = self.line()? else { return Ok(false) };
            let size =
                usize::from_str_radix(&line, 16).map_err(|_| bad(&format!("chunk {line:?}")))?;
            if !self.exactly(size, body)? {
                return Ok(false);
            }
            match self.line()? {
                None => return Ok(false),
                Some(line) if !line.is_empty() => return Err(bad("no end of the chunk")),
                Some(_) if size == 0 => return Ok(true),
                Some(_) => {}
            }
        }
    }

    fn exactly(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<bool> {
        let mut left = length;
        loop {
            let take = left.min(self.buffer.len());
            body.extend(self.buffer.drain(..take));
            left -= take;
            if left == 0 {
                return Ok(true);
            }
            if !self.fill()? {
                return Ok(false);
            }
        }
    }

    /// False at the end, also at an end by a reset.
    fn fill(&mut self) -> io::Result<bool> {
        let mut before = std::mem::take(&mut self.buffer);
        let read = self.read();
        let more = match read {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset && !before.is_empty() => {
                Vec::new()
            }
            Err(err) => {
                self.buffer = before;
                return Err(err);
            }
        };
        before.extend_from_slice(&more);
        self.buffer = before;
        Ok(!more.is_empty())
    }
}

fn parse_head(head: &str) -> io::Result<Answer> {
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").or(first.strip_prefix("HTTP/1.0 "));
    let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| bad(&format!("no answer: {first:?}")))?;
    let split = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.filter_map(split).collect();
    Ok(Answer { status, headers, body: Vec::new(), whole: false })
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What a server has answered.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Without the chunks' sizes.
    pub body: Vec<u8>,
    /// Whether the body's end has come; else the connection was closed before.
    pub whole: bool,
}

impl Answer {
    /// A header's value, the first if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// Asserts the status, and that the answer is whole.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "status of {self:?}");
        assert!(self.whole, "broken off: {self:?}");
        self
    }

    /// Asserts a part of the body.
    #[track_caller]
    pub fn shows(self, part: &str) -> Self {
        assert!(self.text().contains(part), "no {part:?} in {self:?}");
        self
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let begin: String = text.chars().take(1000).collect();
        let whole = if self.whole { "" } else { ", broken off" };
        write!(f, "{} {:?}{whole}, {} bytes: {begin}", self.status, self.headers, text.len())
    }
}
