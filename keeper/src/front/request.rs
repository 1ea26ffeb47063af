//! One request: refused here, or answered by the service; counted and logged.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;

use super::access::Line;
use super::framing::number;
use super::link::Link;
use super::streams::{Streams, Transfer};
use super::{Body, Broken, Limits, Peer, Refusal, Server, Service, path};

/// Answers one request. What is not in the future is done in the order of the requests.
pub(super) fn answer<S: Service>(
    server: &Rc<Server>,
    service: &Rc<S>,
    link: &Rc<Link>,
    streams: &Streams,
    request: Request<Incoming>,
    peer: Peer,
) -> impl Future<Output = Result<Response<Tracked>, Infallible>> + use<S> {
    let refused = link.begin();
    let transfer = link.is_http2().then(|| streams.transfer());
    let line = server.access.as_ref().map(|_| {
        Box::new(match refused {
            Some(_) => Line::unread(peer),
            None => Line::of(&request, peer),
        })
    });
    let mut entry = Entry {
        server: Rc::clone(server),
        link: Rc::clone(link),
        line,
        bodiless: *request.method() == Method::HEAD,
        whole: false,
    };
    let refused = refused.or_else(|| check(&request, &server.limits).err());
    let service = Rc::clone(service);
    async move {
        let response = match refused {
            Some(refusal) => entry.refuse(refusal),
            None => {
                let mut answering = pin!(service.answer(request, peer));
                let link = Rc::clone(&entry.link);
                poll_fn(|context| match link.body_refusal() {
                    // Whatever the service makes of half a body.
                    Some(refusal) => Poll::Ready(entry.refuse(refusal)),
                    None => answering.as_mut().poll(context),
                })
                .await
            }
        };
        entry.answered(response.status());
        Ok(response.map(|body| Tracked { body, transfer, entry }))
    }
}

/// What holds for both versions. In HTTP/1 the framing has seen to some of it already.
fn check(request: &Request<Incoming>, limits: &Limits) -> Result<(), Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    if *request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if headers.len() > limits.headers {
        return Err(Refusal::LongHead);
    }
    if uri.path().len() + uri.query().map_or(0, str::len) > limits.line_bytes {
        return Err(Refusal::LongUri);
    }
    let all = *request.method() == Method::OPTIONS && uri.path() == "*";
    if !all && path::check(uri.path()).is_err() {
        return Err(Refusal::Path);
    }
    if !uri.query().unwrap_or_default().is_ascii() {
        return Err(Refusal::RequestLine);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let length = number(length.as_bytes()).filter(|_| lengths.next().is_none());
        if length.ok_or(Refusal::Length)? > limits.body_bytes {
            return Err(Refusal::LongBody);
        }
    }
    Ok(())
}

/// A request under way, until its answer has been taken or the client has gone.
struct Entry {
    server: Rc<Server>,
    link: Rc<Link>,
    /// Boxed, for most servers have no log and what is large is moved about.
    line: Option<Box<Line>>,
    /// The answer to HEAD has no body, whatever it says.
    bodiless: bool,
    whole: bool,
}

impl Entry {
    fn refuse(&mut self, refusal: Refusal) -> Response<Body> {
        self.server.metrics.refused(refusal.label());
        if let Some(line) = &mut self.line {
            line.refused = Some(refusal.label());
        }
        refusal.response(!self.link.is_http2())
    }

    fn answered(&mut self, status: StatusCode) {
        self.bodiless |= status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        if let Some(line) = &mut self.line {
            line.status = Some(status);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.link.end();
        if let (Some(mut line), Some(access)) = (self.line.take(), &self.server.access) {
            line.whole = self.whole || (self.bodiless && line.status.is_some());
            access.write(&line);
        }
    }
}

/// An answer's body, and what is to be known about it.
pub(super) struct Tracked {
    body: Body,
    transfer: Option<Rc<Transfer>>,
    entry: Entry,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let (Some(line), Some(data)) = (&mut this.entry.line, frame.data_ref())
        {
            line.bytes += data.len() as u64;
        }
        if let Some(transfer) = &this.transfer {
            let offered = matches!(frame, Poll::Ready(Some(Ok(_))));
            transfer.offered.set(offered.then(Instant::now));
        }
        this.entry.whole |= matches!(frame, Poll::Ready(None));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.entry.whole |= hyper::body::Body::is_end_stream(&self.body);
    }
}
