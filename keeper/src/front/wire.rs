//! The socket as hyper sees it: only heads that are beyond doubt come through.
//!
//! What the socket has is read into hyper's buffer and looked at there; nothing is copied unless a
//! head comes in pieces. A head that is refused is replaced by another request, which stands for the
//! refusal: so the answer takes its turn behind the requests before it, and hyper writes it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Refusal;
use super::framing::{Bounds, Framing};
use super::link::Link;
use super::listener::Stream;

/// Stands for a request that has been refused. Nobody else can make hyper ask for it out of turn:
/// requests are counted.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";

/// Less room than this is hyper's search for the version, not its buffer.
const IN_PLACE_BYTES: usize = 1024;

const READ_BYTES: usize = 8192;

pub(super) struct Wire {
    stream: Stream,
    framing: Framing,
    held: Held,
    refused: Option<Place>,
    link: Rc<Link>,
    shut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    Body,
}

/// What has been read and not been given to hyper.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    given: usize,
    /// The end of what may be given.
    passed: usize,
}

impl Wire {
    pub fn new(stream: Stream, bounds: Bounds, link: Rc<Link>) -> Self {
        Wire {
            stream,
            framing: Framing::new(bounds),
            held: Held::default(),
            refused: None,
            link,
            shut: false,
        }
    }

    /// Notes what the framing has made of some bytes.
    fn passed(&mut self, result: Result<(), Refusal>) {
        let begun = !self.held.unpassed().is_empty() && !self.framing.in_body();
        self.link.heads(self.framing.heads(), begun);
        if self.framing.is_http2() {
            self.link.speaks_http2();
        }
        if let Err(refusal) = result {
            self.refuse(refusal);
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.held.keep_passed();
        if self.framing.in_body() {
            self.refused = Some(Place::Body);
            self.link.refuse_body(refusal);
        } else {
            self.held.push_passed(REFUSED);
            self.refused = Some(Place::Head);
            self.link.refuse(refusal);
        }
    }

    /// Whether closing now might destroy the answer.
    fn is_clean(&self) -> bool {
        self.refused.is_none() && self.held.is_empty() && !self.framing.in_body()
    }

    fn poll_input(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.held.give(buffer) {
                return Poll::Ready(Ok(()));
            }
            match self.refused {
                // An end would make hyper give up before it has answered.
                Some(Place::Head) => return Poll::Pending,
                Some(Place::Body) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the body is refused",
                    )));
                }
                None => {}
            }
            let in_body = self.framing.in_body();
            if self.link.take_expired() {
                let late = if in_body { Refusal::SlowBody } else { Refusal::SlowHead };
                self.refuse(late);
                continue;
            }
            let read = if self.held.is_empty() && buffer.remaining() >= IN_PLACE_BYTES {
                self.poll_in_place(context, buffer)
            } else {
                self.poll_held(context)
            };
            match read {
                Poll::Ready(Ok(Read::End | Read::Given)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(Read::Held)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if in_body {
                        self.link.waits_for_body();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_in_place(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Read>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let bytes = &buffer.filled()[before..];
        if bytes.is_empty() {
            return Poll::Ready(Ok(Read::End));
        }
        let (passed, result) = self.framing.pass(bytes);
        if result.is_ok() && passed < bytes.len() {
            self.held.push(&bytes[passed..]);
        }
        buffer.set_filled(before + passed);
        self.passed(result);
        Poll::Ready(Ok(if passed > 0 { Read::Given } else { Read::Held }))
    }

    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Read>> {
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        if read.filled().is_empty() {
            return Poll::Ready(Ok(Read::End));
        }
        self.held.push(read.filled());
        let (passed, result) = self.framing.pass(self.held.unpassed());
        self.held.pass(passed);
        self.passed(result);
        Poll::Ready(Ok(Read::Held))
    }
}

enum Read {
    End,
    /// Into hyper's buffer.
    Given,
    /// Into ours.
    Held,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn unpassed(&self) -> &[u8] {
        self.bytes.get(self.passed..).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn pass(&mut self, count: usize) {
        self.passed += count;
    }

    fn keep_passed(&mut self) {
        self.bytes.truncate(self.passed);
    }

    fn push_passed(&mut self, bytes: &[u8]) {
        self.push(bytes);
        self.passed = self.bytes.len();
    }

    /// Gives what may be given; `false` if that is nothing.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let ready = self.bytes.get(self.given..self.passed).unwrap_or_default();
        if ready.is_empty() {
            return false;
        }
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready[..count]);
        self.given += count;
        if self.given == self.bytes.len() {
            // Idle connections keep no buffer.
            *self = Held::default();
        } else if self.given == self.passed {
            self.bytes.drain(..self.given);
            (self.given, self.passed) = (0, 0);
        }
        true
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_input(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.link.write(written.is_pending());
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.link.write(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    /// Ends our side, then takes what the client still sends, until it ends too or the link's
    /// deadline is over.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            this.shut = true;
        }
        if this.is_clean() {
            return Poll::Ready(Ok(()));
        }
        this.link.lingers();
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        // Not for ever: others are to have their turn.
        for _ in 0..16 {
            let mut read = ReadBuf::uninit(&mut room);
            match Pin::new(&mut this.stream).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
