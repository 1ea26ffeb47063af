//! A connection's bytes; up to the first NUL byte, the sizes of the pieces in which the rest comes.
//!
//! What is passed does not depend on the pieces; httparse finds the same heads in it; and hyper sees
//! no request but those, in their order. Then the first request's target as a path.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use kiln_keeper::front::{fuzzing, path};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (pieces, bytes) = match bytes.iter().position(|&byte| byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (&[][..], bytes),
    };
    let whole = fuzzing::pass(bytes, &[]);
    assert_eq!(whole, fuzzing::pass(bytes, pieces));
    if whole.http2 {
        return;
    }
    let mut targets = Vec::new();
    for head in &whole.heads {
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(&bytes[head.clone()]);
        assert_eq!(parsed, Ok(httparse::Status::Complete(head.len())));
        targets.push(request.path.unwrap_or_default().to_owned());
    }
    let seen = hyper_sees(&bytes[..whole.count]);
    assert!(seen.len() <= targets.len(), "{seen:?}, not {targets:?}");
    for (seen, target) in seen.iter().zip(&targets) {
        assert_eq!(Some(seen), target.parse().ok().as_ref());
    }
    if let Some(target) = targets.first()
        && let Ok(normal) = path::normalize(target)
    {
        assert_eq!(path::normalize(&normal).as_ref(), Ok(&normal));
        assert!(normal.split('/').all(|segment| !matches!(segment, "." | "..")));
    }
});

/// The requests that hyper makes of these bytes.
fn hyper_sees(bytes: &[u8]) -> Vec<hyper::Uri> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            seen.borrow_mut().push(request.uri().clone());
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut connection = pin!(http1::Builder::new().serve_connection(Socket(bytes), service));
    let mut context = Context::from_waker(Waker::noop());
    // It is never without something to read; it lets others have their turn now and then.
    for _ in 0..10_000 {
        if connection.as_mut().poll(&mut context).is_ready() {
            break;
        }
    }
    seen.take()
}

/// Gives bytes, then the end; takes everything.
struct Socket<'a>(&'a [u8]);

impl Read for Socket<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
