//! The streams of Exec and Attach: SPDY/3.1 over an upgraded HTTP request, as kubectl and the
//! kubelet speak it, with `v4.channel.k8s.io` on top (k8s.io/apimachinery, remotecommand).
//!
//! Headers are compressed in SPDY, by one zlib stream per direction. What we send goes into stored
//! blocks of such a stream; of what comes we need none.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kiln_integration::console::readable;
use serde_json::{Value, json};

/// A zlib header that names SPDY/3's dictionary (RFC 1950; the checksum of the dictionary).
const ZLIB_HEADER: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

/// How long a session may be silent.
const DEADLINE: Duration = Duration::from_secs(30);

const SYN_STREAM: u16 = 1;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// What a stream carries; the order is that of the streams' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

/// Which streams a session has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams {
    /// The caller sends input.
    pub stdin: bool,
    /// There is a terminal: sizes are sent, and there is no stderr.
    pub tty: bool,
}

/// A session with a process in a container.
#[derive(Debug)]
pub struct Session {
    connection: TcpStream,
    kinds: Vec<Kind>,
    sent_headers: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    error: Vec<u8>,
    ended: bool,
}

/// What a session that ended gave.
#[derive(Debug)]
pub struct Ended {
    /// What came on stdout, or from the terminal.
    pub stdout: String,
    /// What came on stderr.
    pub stderr: String,
    /// The `metav1.Status` of the error stream, if the server sent one.
    pub status: Option<Value>,
}

impl Ended {
    /// The process's exit status.
    ///
    /// # Panics
    /// If the server said that something else went wrong.
    #[track_caller]
    pub fn exit_code(&self) -> i32 {
        let status = self.status.as_ref().unwrap_or_else(|| panic!("no status in {self:?}"));
        if status["status"] == "Success" {
            return 0;
        }
        let code = status["details"]["causes"][0]["message"].as_str();
        let code = code.filter(|_| status["reason"] == "NonZeroExitCode");
        code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }
}

impl Session {
    /// Connects to the address that Exec or Attach gave.
    pub fn open(url: &str, streams: Streams) -> Self {
        let address = url.strip_prefix("http://").unwrap();
        let (host, path) = address.split_once('/').unwrap();
        let mut connection = TcpStream::connect(host).unwrap();
        connection.set_nodelay(true).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        upgrade(&mut connection, host, path);
        let wanted = [
            (Kind::Error, true),
            (Kind::Stdin, streams.stdin),
            (Kind::Stdout, true),
            (Kind::Stderr, !streams.tty),
            (Kind::Resize, streams.tty),
        ];
        let kinds = wanted.iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| *kind).collect();
        let mut session = Session {
            connection,
            kinds,
            sent_headers: false,
            stdout: Vec::new(),
            stderr: Vec::new(),
            error: Vec::new(),
            ended: false,
        };
        for kind in session.kinds.clone() {
            session.open_stream(kind);
        }
        session
    }

    /// Sends input.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.send_on(Kind::Stdin, 0, bytes.as_ref());
    }

    /// Ends the input.
    pub fn close_stdin(&mut self) {
        self.send_on(Kind::Stdin, FIN, &[]);
    }

    /// Tells the size of the terminal.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = json!({ "Width": columns, "Height": rows }).to_string();
        self.send_on(Kind::Resize, 0, size.as_bytes());
    }

    /// Waits until stdout has this text, and gives all that has come.
    #[track_caller]
    pub fn await_text(&mut self, text: &str) -> String {
        let since = Instant::now();
        loop {
            let have = String::from_utf8_lossy(&self.stdout).into_owned();
            if have.contains(text) {
                return have;
            }
            assert!(!self.ended && since.elapsed() < DEADLINE, "no {text:?} in {self:?}");
            self.receive();
        }
    }

    /// Sends a line until the answer comes: containerd attaches a container's input before its
    /// output, and what is answered in between only the log gets.
    #[track_caller]
    pub fn ask(&mut self, line: &str, answer: &str) {
        let since = Instant::now();
        while !String::from_utf8_lossy(&self.stdout).contains(answer) {
            assert!(!self.ended && since.elapsed() < DEADLINE, "no {answer:?} in {self:?}");
            self.send(line);
            let sent = Instant::now();
            while let Some(left) = Duration::from_secs(1).checked_sub(sent.elapsed())
                && !String::from_utf8_lossy(&self.stdout).contains(answer)
            {
                if readable(&self.connection, left) {
                    self.receive();
                }
            }
        }
    }

    /// Waits for the server to end the session.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        while !self.ended {
            self.receive();
        }
        Ended {
            stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
            status: serde_json::from_slice(&self.error).ok(),
        }
    }

    fn number(&self, kind: Kind) -> u32 {
        let at = self.kinds.iter().position(|other| *other == kind);
        // A client's streams have the odd numbers.
        u32::try_from(at.unwrap_or_else(|| panic!("no stream {kind:?}"))).unwrap() * 2 + 1
    }

    fn open_stream(&mut self, kind: Kind) {
        let mut body = self.number(kind).to_be_bytes().to_vec();
        // No associated stream, priority and slot 0.
        body.extend([0; 6]);
        if !std::mem::replace(&mut self.sent_headers, true) {
            body.extend(ZLIB_HEADER);
        }
        let name = format!("{kind:?}").to_lowercase();
        body.extend(stored(&headers("streamtype", &name)));
        self.write(&control(SYN_STREAM, &body));
    }

    fn send_on(&mut self, kind: Kind, flags: u8, bytes: &[u8]) {
        let mut frame = self.number(kind).to_be_bytes().to_vec();
        frame.extend(flags_and_length(flags, bytes.len()));
        frame.extend(bytes);
        self.write(&frame);
    }

    fn write(&mut self, frame: &[u8]) {
        self.connection.write_all(frame).unwrap();
    }

    /// Takes in one frame.
    #[track_caller]
    fn receive(&mut self) {
        let mut head = [0; 8];
        match self.connection.read_exact(&mut head) {
            Ok(()) => {}
            Err(err)
                if matches!(err.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
            {
                self.ended = true;
                return;
            }
            Err(err) => panic!("{err}: {self:?}"),
        }
        let [a, b, c, d, _, e, f, g] = head;
        let mut body = vec![0; u32::from_be_bytes([0, e, f, g]) as usize];
        self.connection.read_exact(&mut body).unwrap();
        if a & 0x80 == 0 {
            self.take(u32::from_be_bytes([a, b, c, d]), &body);
            return;
        }
        match u16::from_be_bytes([c, d]) {
            PING => self.write(&control(PING, &body)),
            GOAWAY => self.ended = true,
            // Replies, settings, windows: nothing that we wait for.
            _ => {}
        }
    }

    fn take(&mut self, stream: u32, body: &[u8]) {
        match self.kinds.get(stream as usize / 2) {
            Some(Kind::Error) => self.error.extend(body),
            Some(Kind::Stdout) => self.stdout.extend(body),
            Some(Kind::Stderr) => self.stderr.extend(body),
            other => panic!("data on stream {stream}, {other:?}: {self:?}"),
        }
    }
}

fn upgrade(connection: &mut TcpStream, host: &str, path: &str) {
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = 0x8003_u16.to_be_bytes().to_vec();
    frame.extend(kind.to_be_bytes());
    frame.extend(flags_and_length(0, body.len()));
    frame.extend(body);
    frame
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, rest @ ..] = u32::try_from(length).unwrap().to_be_bytes();
    [flags, rest[0], rest[1], rest[2]]
}

/// A block of one header.
fn headers(name: &str, value: &str) -> Vec<u8> {
    let mut block = 1_u32.to_be_bytes().to_vec();
    for text in [name, value] {
        block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        block.extend(text.as_bytes());
    }
    block
}

/// A stored block of deflate (RFC 1951, 3.2.4) and an empty one, which makes the reader hand over
/// what it has.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0];
    let length = u16::try_from(bytes.len()).unwrap();
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(bytes);
    block.extend([0, 0, 0, 0xff, 0xff]);
    block
}
