//! The access log: a line for each request, when its answer has ended.
//!
//! Lines are handed to a thread that writes them, in their order and many at a time if they come
//! fast: the loop that serves does not wait for a disk or for whoever reads the log. If the reader
//! stalls, up to [`QUEUE_BYTES`] wait; what comes then is lost, and a line says how many were as soon as
//! there is room. Requests are served all the while.
//!
//! Of requests that are refused before they are read, only the peer and the reason are logged; those
//! that hyper's own parser refuses are only counted.
//!
//! A line is ASCII whatever the client has sent: nothing in it ends the line, nor does anything to
//! a terminal. Queries are left out, they may be secret.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{io, thread};

use hyper::header::USER_AGENT;
use hyper::{Request, StatusCode};

use super::Peer;
use crate::journal;

/// How much may wait to be written.
pub const QUEUE_BYTES: usize = 1 << 20;

/// How long the end of the log is waited for.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Of a path or a user agent, in characters: lines stay lines.
const LONGEST_WORD: usize = 2048;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `2026-11-29T09:30:35.123Z 127.0.0.1:4711 "GET /sort" 200 12 0.531 "curl/8.5"`: time, peer,
    /// method and path, status, bytes of the body, milliseconds, user agent. `-` stands for what is
    /// not there; `broken` or `refused=REASON` may follow.
    Text,
    /// An object with `time`, `peer`, `method`, `path`, `status`, `bytes`, `ms`, `agent`, `whole`
    /// and, if the front has answered for the service, `refused`.
    Json,
}

/// An access log. Its last lines are waited for, for a second, when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Access {
    format: Format,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    lost: u64,
    /// The thread waits for lines.
    waiting: bool,
    ended: bool,
}

impl Access {
    /// Starts the thread that writes to `file`, which may be a pipe or a terminal. A process that
    /// forks must do so before.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn new(file: OwnedFd, format: Format) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(64 << 10)
            .spawn(move || theirs.run(File::from(file)))?;
        Ok(Access { format, writer: Arc::new(Writer(shared)) })
    }

    /// One line. Does not wait.
    pub(super) fn write(&self, line: &Line) {
        let (now, duration) = (SystemTime::now(), line.started.elapsed());
        let text = match self.format {
            Format::Text => line.text(now, duration),
            Format::Json => line.json(now, duration),
        };
        let shared = &self.writer.0;
        let mut queue = shared.queue();
        if queue.lines.len() + text.len() > QUEUE_BYTES {
            queue.lost += 1;
            return;
        }
        if queue.lost > 0 {
            let lost = mem::take(&mut queue.lost);
            let note = match self.format {
                Format::Text => format!("- lost {lost} lines\n"),
                Format::Json => format!("{{\"lost\":{lost}}}\n"),
            };
            queue.lines.extend_from_slice(note.as_bytes());
        }
        queue.lines.extend_from_slice(text.as_bytes());
        if mem::take(&mut queue.waiting) {
            drop(queue);
            shared.filled.notify_one();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut file: File) {
        loop {
            let mut queue = self.queue();
            while queue.lines.is_empty() {
                if queue.ended {
                    self.written.notify_all();
                    return;
                }
                queue.waiting = true;
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = mem::take(&mut queue.lines);
            drop(queue);
            if let Err(error) = write_all(&mut file, &lines) {
                journal::warning(format_args!("write the access log: {error}"));
            }
        }
    }
}

/// The file may have been made non-blocking by whoever shares it.
fn write_all(file: &mut File, mut lines: &[u8]) -> io::Result<()> {
    while !lines.is_empty() {
        match file.write(lines) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => lines = lines.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                use rustix::event::{PollFd, PollFlags, poll};
                poll(&mut [PollFd::new(file, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.ended = true;
        self.0.filled.notify_one();
        let _ = self.0.written.wait_timeout(queue, LAST_LINES);
    }
}

/// What is logged of a request.
#[derive(Debug)]
pub(super) struct Line {
    peer: Peer,
    method: Option<String>,
    path: Option<String>,
    agent: Option<Vec<u8>>,
    /// `None`: the client has gone before there was one.
    pub status: Option<StatusCode>,
    pub refused: Option<&'static str>,
    pub bytes: u64,
    started: Instant,
    /// The answer has been taken to its end.
    pub whole: bool,
}

impl Line {
    /// A request that has been refused before it was read. Its time begins now.
    pub fn unread(peer: Peer) -> Self {
        Line {
            peer,
            method: None,
            path: None,
            agent: None,
            status: None,
            refused: None,
            bytes: 0,
            started: Instant::now(),
            whole: false,
        }
    }

    pub fn of<B>(request: &Request<B>, peer: Peer) -> Self {
        Line {
            method: Some(request.method().to_string()),
            path: Some(request.uri().path().to_owned()),
            agent: request.headers().get(USER_AGENT).map(|agent| agent.as_bytes().to_vec()),
            ..Line::unread(peer)
        }
    }

    fn text(&self, now: SystemTime, duration: Duration) -> String {
        let mut text = format!("{} {} \"", time(now), peer(self.peer));
        word(&mut text, self.method.as_deref().unwrap_or("-").as_bytes());
        text.push(' ');
        word(&mut text, self.path.as_deref().unwrap_or("-").as_bytes());
        let status = self.status.map(|status| status.as_u16().to_string());
        let _ = write!(text, "\" {} {} ", status.as_deref().unwrap_or("-"), self.bytes);
        let _ = write!(text, "{:.3} \"", milliseconds(duration));
        word(&mut text, self.agent.as_deref().unwrap_or(b"-"));
        text.push('"');
        if let Some(refused) = self.refused {
            let _ = write!(text, " refused={refused}");
        }
        if !self.whole {
            text.push_str(" broken");
        }
        text.push('\n');
        text
    }

    fn json(&self, now: SystemTime, duration: Duration) -> String {
        let mut text = format!("{{\"time\":\"{}\",\"peer\":\"{}\"", time(now), peer(self.peer));
        member(&mut text, "method", self.method.as_deref().map(str::as_bytes));
        member(&mut text, "path", self.path.as_deref().map(str::as_bytes));
        let status = self.status.map(|status| status.as_u16().to_string());
        let _ = write!(
            text,
            ",\"status\":{},\"bytes\":{},\"ms\":{:.3}",
            status.as_deref().unwrap_or("null"),
            self.bytes,
            milliseconds(duration)
        );
        member(&mut text, "agent", self.agent.as_deref());
        let _ = write!(text, ",\"whole\":{}", self.whole);
        if let Some(refused) = self.refused {
            member(&mut text, "refused", Some(refused.as_bytes()));
        }
        text.push_str("}\n");
        text
    }
}

/// RFC 3339, UTC, milliseconds.
fn time(now: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(now)
}

fn peer(peer: Peer) -> String {
    match peer {
        Peer::Address(address) => address.to_string(),
        Peer::Local => "unix".to_owned(),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Between quotes: `"` and `\` behind a backslash, and `\xHH` for what is not visible ASCII.
fn word(text: &mut String, bytes: &[u8]) {
    for &byte in bytes.iter().take(LONGEST_WORD) {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
}

/// `,"name":"value"` (RFC 8259, 7), ASCII. What is not UTF-8 becomes U+FFFD.
fn member(text: &mut String, name: &str, value: Option<&[u8]>) {
    let _ = write!(text, ",\"{name}\":");
    let Some(value) = value else {
        text.push_str("null");
        return;
    };
    text.push('"');
    for character in String::from_utf8_lossy(value).chars().take(LONGEST_WORD) {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            ' '..='~' => text.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const DURATION: Duration = Duration::from_micros(1530);

    fn line(agent: &[u8]) -> Line {
        Line {
            method: Some("GET".to_owned()),
            path: Some("/a\"b\\".to_owned()),
            agent: Some(agent.to_vec()),
            status: Some(StatusCode::OK),
            bytes: 12,
            whole: true,
            ..Line::unread(Peer::Local)
        }
    }

    #[test]
    fn text_is_one_line_whatever_the_client_sent() {
        let text = line("x\n\"\\\u{1b}[2Jä".as_bytes()).text(SystemTime::UNIX_EPOCH, DURATION);
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000Z unix \"GET /a\\\"b\\\\\" 200 12 1.530 \
             \"x\\x0a\\\"\\\\\\x1b[2J\\xc3\\xa4\"\n"
        );
        let unread = Line { refused: Some("fold"), ..Line::unread(Peer::Local) };
        let text = unread.text(SystemTime::UNIX_EPOCH, DURATION);
        assert!(text.ends_with("unix \"- -\" - 0 1.530 \"-\" refused=fold broken\n"), "{text}");
    }

    #[test]
    fn json_says_what_the_client_sent() {
        let agent = "x\n\"\\\u{1b}\u{9b}\u{2028}ä😀".as_bytes();
        let text = line(agent).json(SystemTime::UNIX_EPOCH, DURATION);
        assert!(text.is_ascii() && text.lines().count() == 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["agent"].as_str().unwrap().as_bytes(), agent);
        assert_eq!((value["path"].as_str(), value["ms"].as_f64()), (Some("/a\"b\\"), Some(1.53)));
        let text = line(b"\xff\xfe").json(SystemTime::UNIX_EPOCH, DURATION);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["agent"].as_str(), Some("\u{fffd}\u{fffd}"));
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_only() {
        let (mut reader, writer) = io::pipe().unwrap();
        let access = Access::new(writer.into(), Format::Text).unwrap();
        let sent = 20_000;
        for number in 0..sent {
            let path = Some(format!("/{number}"));
            access.write(&Line { path, ..line(&[b'x'; 100]) });
        }
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        // Until there is room again.
        while access.writer.0.queue().lines.len() > QUEUE_BYTES / 2 {
            thread::yield_now();
        }
        access.write(&Line { path: Some("/last".to_owned()), ..line(b"") });
        drop(access);
        let text = reading.join().unwrap();
        let numbers: Vec<u32> = text
            .lines()
            .filter_map(|line| line.split_once("GET /")?.1.split_once('"')?.0.parse().ok())
            .collect();
        assert!(numbers.is_sorted() && numbers.len() < sent, "{}", numbers.len());
        let lost = sent - numbers.len();
        assert!(text.contains(&format!("- lost {lost} lines\n")), "{lost}");
        assert!(text.lines().last().unwrap().contains("/last"));
    }
}
