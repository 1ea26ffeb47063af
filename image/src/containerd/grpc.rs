//! gRPC over one HTTP/2 connection: a request, the messages of its answer, its status.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request, StatusCode};
use percent_encoding::percent_decode;
use prost::Message;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout_at;

use crate::Error;

/// The status that says that there is no such thing.
pub(crate) const NOT_FOUND: u32 = 5;

/// The largest message that containerd sends, and some.
const MAX_MESSAGE: usize = (16 << 20) + 1024;
/// How much of what containerd says of an error is passed on.
const MAX_TEXT: usize = 1024;
/// The most bytes of fields that an answer may have, before or behind its data.
const MAX_FIELDS: u32 = 64 << 10;
/// How many bytes of data may have come that nobody has looked at yet. A blob comes in messages of
/// 1 MiB.
const WINDOW: u32 = 2 << 20;

/// A connection to containerd, in one of its namespaces.
#[derive(Debug)]
pub(crate) struct Channel {
    client: SendRequest<Bytes>,
    /// Of this thread alone. The connection is a task of it, which goes on while a call waits.
    runtime: Runtime,
    namespace: String,
    deadline: Instant,
}

/// One of containerd's methods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    /// For messages.
    pub(crate) name: &'static str,
    /// Of the request.
    pub(crate) path: &'static str,
}

impl Channel {
    /// Connects to a socket; all that is ever done must be done by `deadline`.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub(crate) fn connect(path: &Path, namespace: &str, deadline: Instant) -> Result<Self, Error> {
        let channel =
            connected(path, deadline).and_then(|socket| Channel::over(socket, namespace, deadline));
        channel.map_err(|source| Error::Connect { path: path.to_owned(), source })
    }

    /// A channel over a socket that is connected.
    fn over(socket: UnixStream, namespace: &str, deadline: Instant) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let socket = tokio::net::UnixStream::from_std(socket)?;
            timeout_at(deadline.into(), handshake(socket)).await?.map_err(io::Error::other)
        })?;
        Ok(Channel { client, runtime, namespace: namespace.to_owned(), deadline })
    }

    /// The answer to a request that has one.
    ///
    /// # Errors
    /// [`Error::Refused`] with containerd's status, or how the connection failed.
    pub(crate) fn call<R: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
    ) -> Result<R, Error> {
        let mut answer = None;
        self.stream(method, request, |message| {
            answer = Some(message);
            Ok(())
        })?;
        let missing = Error::Protocol { call: method.name, what: "an answer without a message" };
        answer.ok_or(missing)
    }

    /// Hands each message of the answer to `each`, whose error ends it.
    ///
    /// # Errors
    /// As for [`Channel::call`], or those of `each`.
    pub(crate) fn stream<R: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
        each: impl FnMut(R) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let call = method.name;
        let (head, body) = (self.head(method)?, framed(request));
        let exchange = exchange(self.client.clone(), call, head, body, each);
        let done =
            self.runtime.block_on(async { timeout_at(self.deadline.into(), exchange).await });
        done.unwrap_or(Err(Error::Deadline { call }))
    }

    fn head(&self, method: Method) -> Result<Request<()>, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let request = Request::post(format!("http://localhost{}", method.path))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", format!("{}m", left.as_millis().clamp(1, 99_999_999)))
            .header("containerd-namespace", &self.namespace);
        let bad =
            |_| Error::Protocol { call: method.name, what: "a namespace that cannot be sent" };
        request.body(()).map_err(bad)
    }
}

async fn handshake(socket: tokio::net::UnixStream) -> Result<SendRequest<Bytes>, h2::Error> {
    let (client, connection) = client::Builder::new()
        .enable_push(false)
        .max_header_list_size(MAX_FIELDS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(socket)
        .await?;
    // How it fails is told to whoever waits for an answer.
    tokio::spawn(connection);
    Ok(client)
}

async fn exchange<R: Message + Default>(
    client: SendRequest<Bytes>,
    call: &'static str,
    head: Request<()>,
    body: Bytes,
    mut each: impl FnMut(R) -> Result<(), Error>,
) -> Result<(), Error> {
    let broken = |source| Error::Connection { call, source };
    let wrong = |what| Error::Protocol { call, what };
    let mut client = client.ready().await.map_err(broken)?;
    let (answer, mut sending) = client.send_request(head, false).map_err(broken)?;
    sending.send_data(body, true).map_err(broken)?;
    let (head, mut body) = answer.await.map_err(broken)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(wrong("an HTTP status other than 200"));
    }
    let mut parts = Parts::default();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(broken)?;
        parts.add(&piece);
        body.flow_control().release_capacity(piece.len()).map_err(broken)?;
        while let Some(message) = parts.next().map_err(wrong)? {
            each(R::decode(message).map_err(|_| wrong("a malformed message"))?)?;
        }
    }
    // The status is behind the data, or instead of it.
    let behind = body.trailers().await.map_err(broken)?;
    status(call, &behind.unwrap_or(head.headers))?;
    match parts.0.is_empty() {
        true => Ok(()),
        false => Err(wrong("a message that is cut off")),
    }
}

fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    // Not compressed; the length.
    [&[0], &(bytes.len() as u32).to_be_bytes()[..], &bytes].concat().into()
}

/// What has come of messages that were not handed out yet.
#[derive(Default)]
pub(crate) struct Parts(BytesMut);

impl Parts {
    pub(crate) fn add(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next message, if it is whole, or what is wrong with it.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, &'static str> {
        let Some(&[compressed, ref length @ ..]) = self.0.first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if compressed != 0 {
            return Err("a compressed message");
        }
        if length > MAX_MESSAGE {
            return Err("a message is too large");
        }
        if self.0.len() < 5 + length {
            return Ok(None);
        }
        self.0.advance(5);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

/// Whether all went well.
fn status(call: &'static str, fields: &HeaderMap) -> Result<(), Error> {
    let status = fields.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
    match status {
        Some(0) => Ok(()),
        Some(status) => {
            let escaped = fields.get("grpc-message").map_or(&b""[..], |text| text.as_bytes());
            let bytes: Vec<u8> = percent_decode(escaped).take(MAX_TEXT).collect();
            // One line, as all errors are.
            let message = String::from_utf8_lossy(&bytes).replace(char::is_control, " ");
            Err(Error::Refused { call, status, message })
        }
        None => Err(Error::Protocol { call, what: "an answer without a status" }),
    }
}

/// tokio's does not wait where the queue is full.
fn connected(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // connect(2) waits as long as the socket would to send.
    set_socket_timeout(&socket, Timeout::Send, Some(left(deadline)?))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A timeout of 0 would be none.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;

    use super::super::messages::{Get, ReadContentResponse};
    use super::*;

    const METHOD: Method = Method { name: "Test/Get", path: "/test.Test/Get" };

    /// The data of a call's messages if the server answers so and is silent then, or has gone.
    fn call(says: &[Vec<u8>], limit: Duration, gone: bool) -> Result<Vec<Bytes>, Error> {
        let (socket, server) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| serve(server, says, gone));
            let mut channel = Channel::over(socket, "test", Instant::now() + limit).unwrap();
            let mut messages = Vec::new();
            channel.stream(METHOD, &Get::default(), |message: ReadContentResponse| {
                messages.push(message.data);
                Ok(())
            })?;
            Ok(messages)
        })
    }

    /// Answers once there is a request, as an answer to none is an error. The client may have gone.
    fn serve(mut server: UnixStream, says: &[Vec<u8>], gone: bool) {
        let request = frame(0, 1, 1, &framed(&Get::default()));
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(&request) && server.read_exact(&mut byte).is_ok() {
            heard.extend_from_slice(&byte);
        }
        let _ = server.write_all(&[&[frame(4, 0, 0, &[])], says].concat().concat());
        if !gone {
            let _ = server.read_to_end(&mut heard);
        }
    }

    /// A frame of HTTP/2 (RFC 9113).
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A field as HPACK has it (RFC 7541) that nobody is to remember.
    fn field(name: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    }

    fn says(frames: &[Vec<u8>]) -> Result<Vec<Bytes>, Error> {
        call(frames, Duration::from_secs(10), false)
    }

    fn begin() -> Vec<u8> {
        frame(1, 4, 1, &[0x88])
    }

    fn data(bytes: &[u8]) -> Vec<u8> {
        frame(0, 0, 1, bytes)
    }

    fn end(status: &str, message: &str) -> Vec<u8> {
        frame(1, 5, 1, &[field("grpc-status", status), field("grpc-message", message)].concat())
    }

    #[test]
    fn messages_are_put_together() {
        let pieces = [&b"\0\0\0\0\x05\x12\x03on"[..], b"e\0\0\0\0\0\0\0", b"\0\0\x03\x12\x01x"];
        let [one, two, three] = pieces.map(data);
        let frames = [begin(), one, two, three];
        let messages = says(&[&frames[..], &[end("0", "")]].concat()).unwrap();
        assert_eq!(messages, [&b"one"[..], b"", b"x"]);
    }

    #[test]
    fn a_refusal_is_passed_on() {
        let message = "container %22c%22: not found%0A100%";
        let Err(Error::Refused { call, status, message }) = says(&[begin(), end("5", message)])
        else {
            panic!("not refused");
        };
        assert_eq!((call, status), ("Test/Get", NOT_FOUND));
        assert_eq!(message, "container \"c\": not found 100%");
    }

    #[test]
    fn what_is_not_grpc_is_refused() {
        let refused = |frames: &[Vec<u8>]| says(frames).unwrap_err().to_string();
        let cut = [begin(), data(b"\0\0\0\0\x05abc"), end("0", "")];
        assert_eq!(refused(&cut), "containerd: Test/Get: a message that is cut off");
        let squeezed = [begin(), data(b"\x01\0\0\0\0")];
        assert_eq!(refused(&squeezed), "containerd: Test/Get: a compressed message");
        let odd = [begin(), data(b"\0\0\0\0\x02\x12\x7f")];
        assert_eq!(refused(&odd), "containerd: Test/Get: a malformed message");
        let large = [begin(), data(b"\0\xff\0\0\0")];
        assert_eq!(refused(&large), "containerd: Test/Get: a message is too large");
        let silent = [frame(1, 5, 1, &[0x88])];
        assert_eq!(refused(&silent), "containerd: Test/Get: an answer without a status");
        let http = [frame(1, 5, 1, &[0x8d])];
        assert_eq!(refused(&http), "containerd: Test/Get: an HTTP status other than 200");
    }

    #[test]
    fn what_is_not_http2_breaks_the_connection() {
        for (frame, why) in [
            (frame(3, 0, 1, &[0, 0, 0, 2]), "stream error received: unexpected internal error"),
            (frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]), "connection error received: detected exc"),
            (frame(0, 0, 5, b"x"), "connection error detected: unspecific protocol error"),
            (frame(0, 8, 1, b"\x01"), "connection error detected: unspecific protocol error"),
            (frame(1, 4, 1, &[0xff]), "connection error detected: unspecific protocol error"),
            (data(&[0; (16 << 10) + 1]), "connection error detected: frame with invalid size"),
        ] {
            let error = says(&[frame]).unwrap_err();
            assert!(matches!(error, Error::Connection { .. }), "{error:?}");
            let expected = format!("containerd: Test/Get: {why}");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn fields_are_bounded() {
        let says = |count| {
            let block = [vec![0x88], field("other", &"x".repeat(100)).repeat(count)].concat();
            let mut frames = vec![frame(1, 0, 1, &[])];
            frames.extend(block.chunks(16 << 10).map(|bytes| frame(9, 0, 1, bytes)));
            frames.extend([frame(9, 4, 1, &[]), end("0", "")]);
            says(&frames)
        };
        // Each counts as 32 bytes more (RFC 9113, 6.5.2).
        let most = MAX_FIELDS as usize / 137;
        assert_eq!(says(most - 1).unwrap(), [&b""[..]; 0]);
        let error = says(most + 1).unwrap_err();
        assert!(matches!(error, Error::Connection { .. }), "{error:?}");
    }

    #[test]
    fn nobody_waits_for_longer_than_the_deadline() {
        let start = Instant::now();
        let late = call(&[begin()], Duration::from_millis(50), false);
        assert!(matches!(late, Err(Error::Deadline { call: "Test/Get" })), "{late:?}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let (socket, _server) = UnixStream::pair().unwrap();
        let none = Channel::over(socket, "test", Instant::now()).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::TimedOut);
        let gone = call(&[begin()], Duration::from_secs(10), true);
        assert!(matches!(gone, Err(Error::Connection { .. })), "{gone:?}");
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        for path in [dir.path().join("none"), dir.path().join("x".repeat(200))] {
            let error = Channel::connect(&path, "test", deadline).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_queue_that_is_full_is_not_waited_for_longer_either() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let listener = listener.unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let late = Channel::connect(&path, "test", deadline);
        assert!(matches!(late, Err(Error::Connect { .. })), "{late:?}");
    }
}
