//! The body of an answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// The body of an answer: at once, or as it comes.
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Full(Full<Bytes>),
    Stream(mpsc::Receiver<Result<Bytes, Broken>>),
}

/// The rest of a body will not come: the connection is closed before its end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct Broken;

impl Body {
    /// All of it.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Body(Kind::Full(Full::new(bytes.into())))
    }

    /// As it comes, until the other end of the channel is dropped.
    pub fn stream(chunks: mpsc::Receiver<Result<Bytes, Broken>>) -> Self {
        Body(Kind::Stream(chunks))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.get_mut().0 {
            Kind::Full(full) => hyper::body::Body::poll_frame(Pin::new(full), context)
                .map_err(|never: Infallible| match never {}),
            Kind::Stream(chunks) => {
                chunks.poll_recv(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(full) => hyper::body::Body::is_end_stream(full),
            Kind::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(full) => hyper::body::Body::size_hint(full),
            Kind::Stream(_) => SizeHint::default(),
        }
    }
}
