//! ttrpc's frames over a socket that does not block.
//!
//! The protocol is containerd/ttrpc's PROTOCOL.md, as far as unary calls go: a header of ten bytes,
//! then a request or a response. Both ends use it: the server for containerd's calls, the
//! publisher for events.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{
    MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST,
    MESSAGE_TYPE_RESPONSE, MessageHeader,
};
use containerd_shim_protos::ttrpc::{Request, Response};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which call it belongs to: the client numbers them.
    pub stream: u32,
    /// MESSAGE_TYPE_*.
    pub kind: u8,
    /// A [`Request`] or [`Response`].
    pub payload: Result<Vec<u8>, TooLong>,
}

/// A message has more bytes than ttrpc allows. They are passed over and the connection goes on, as
/// with containerd's own servers: containerd takes its end for the shim's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes is longer than {MESSAGE_LENGTH_MAX}")]
pub struct TooLong(u32);

/// Why a connection is of no use any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// The peer has closed it.
    Closed,
    /// What arrived is not ttrpc.
    Garbage,
}

/// One connection, with what has arrived in part and what could not be sent yet.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    input: Input,
    output: VecDeque<u8>,
}

/// What has arrived of a frame.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    /// How much more is to come of a message that is too long.
    passed_over: usize,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Takes a connected socket, which must not block.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, input: Input::default(), output: VecDeque::new() }
    }

    /// Reads what there is.
    ///
    /// # Errors
    /// There will be no more, and all before that has been returned.
    pub fn read(&mut self) -> Result<Vec<Frame>, Broken> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => {
                    // The last words count: an event that was confirmed is not sent again.
                    let frames = self.input.take_frames()?;
                    return if frames.is_empty() { Err(Broken::Closed) } else { Ok(frames) };
                }
                Ok(length) => self.input.add(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Broken::Closed),
            }
        }
        self.input.take_frames()
    }

    /// Sends a frame, or keeps what the socket does not take now for [`Self::flush`].
    pub fn send(&mut self, stream: u32, kind: u8, message: &impl Message) {
        let payload = message.write_to_bytes().unwrap_or_default();
        let length = u32::try_from(payload.len()).unwrap_or_default();
        let header = MessageHeader { length, stream_id: stream, type_: kind, flags: 0 };
        self.output.extend(Vec::from(header));
        self.output.extend(payload);
        self.flush();
    }

    /// Sends a request.
    pub fn request(&mut self, stream: u32, request: &Request) {
        self.send(stream, MESSAGE_TYPE_REQUEST, request);
    }

    /// Sends a response.
    pub fn respond(&mut self, stream: u32, response: &Response) {
        self.send(stream, MESSAGE_TYPE_RESPONSE, response);
    }

    /// Sends as much as the socket takes. That the peer has gone is seen by reading.
    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            match self.socket.write(front) {
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.output.clear(),
            }
        }
        self.output = VecDeque::new();
    }

    /// Whether something is kept for when the socket takes it.
    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }
}

/// Connects to a socket. Waits for nobody: one whose queue is full, because whoever listens is
/// stopped, gives EAGAIN.
///
/// # Errors
/// Those of connect(2).
pub fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Whether somebody listens on a socket.
pub fn listens(path: &Path) -> bool {
    matches!(connect(path), Ok(_) | Err(Errno::AGAIN))
}

impl Input {
    fn add(&mut self, bytes: &[u8]) {
        let passed_over = self.passed_over.min(bytes.len());
        self.passed_over -= passed_over;
        self.bytes.extend_from_slice(&bytes[passed_over..]);
    }

    /// Takes the whole frames from the beginning.
    fn take_frames(&mut self) -> Result<Vec<Frame>, Broken> {
        let mut frames = Vec::new();
        let mut rest = &self.bytes[..];
        while let Some((header, after)) = rest.split_at_checked(MESSAGE_HEADER_LENGTH) {
            let header = MessageHeader::from(header);
            let length = header.length as usize;
            let payload = match after.split_at_checked(length) {
                _ if !KINDS.contains(&header.type_) => return Err(Broken::Garbage),
                _ if length > MESSAGE_LENGTH_MAX => {
                    let here = length.min(after.len());
                    self.passed_over = length - here;
                    rest = &after[here..];
                    Err(TooLong(header.length))
                }
                Some((payload, after)) => {
                    rest = after;
                    Ok(payload.to_vec())
                }
                None => break,
            };
            frames.push(Frame { stream: header.stream_id, kind: header.type_, payload });
        }
        self.bytes = rest.to_vec();
        Ok(frames)
    }
}

/// Of streams there are none in the Task API, but whoever speaks ttrpc may send their data.
const KINDS: [u8; 3] = [MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MESSAGE_TYPE_DATA];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_pieces_and_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut ours, mut theirs) = (Connection::new(ours), Connection::new(theirs));
        let mut request = Request::new();
        request.service = "s".repeat(100_000);
        ours.request(1, &request);
        request.service = "short".into();
        ours.request(3, &request);
        let mut frames = Vec::new();
        while frames.len() < 2 {
            frames.extend(theirs.read().unwrap());
            ours.flush();
        }
        let payload = |at: usize| frames[at].payload.as_ref().unwrap();
        assert_eq!((frames[0].stream, payload(0).len()), (1, 100_004));
        assert_eq!(Request::parse_from_bytes(payload(1)).unwrap().service, "short");
        assert!(theirs.read().unwrap().is_empty() && !ours.wants_to_write());
        ours.request(5, &request);
        drop(ours);
        assert_eq!(theirs.read().unwrap()[0].stream, 5);
        assert_eq!(theirs.read(), Err(Broken::Closed));
    }

    fn header(length: u32, kind: u8) -> Vec<u8> {
        MessageHeader { length, stream_id: 1, type_: kind, flags: 0 }.into()
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        let mut input = Input::default();
        input.add(&header((4 << 20) + 1, MESSAGE_TYPE_REQUEST));
        let frames = input.take_frames().unwrap();
        assert_eq!(frames[0].payload, Err(TooLong((4 << 20) + 1)));
        input.add(&[0; 4 << 20]);
        assert_eq!((input.take_frames(), input.bytes.len()), (Ok(Vec::new()), 0));
        input.add(&[&[0], &header(1, MESSAGE_TYPE_REQUEST)[..], &[7]].concat());
        assert_eq!(input.take_frames().unwrap()[0].payload, Ok(vec![7]));
        input.add(&header(4 << 20, MESSAGE_TYPE_REQUEST));
        assert_eq!((input.take_frames(), input.bytes.len()), (Ok(Vec::new()), 10));
    }

    #[test]
    fn what_is_no_frame_is_garbage() {
        let mut input = Input::default();
        input.add(b"GET / HTTP/1.1\r\n");
        assert_eq!(input.take_frames(), Err(Broken::Garbage));
    }
}
