//! A request's body with its limits, for whoever reads it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{Limits, Refusal};

/// A request's body, at most [`Limits::body_bytes`] of it, and an error when nothing comes for
/// [`Limits::body_timeout`] while it is asked for.
///
/// In HTTP/1 the front sees to both limits by itself, whatever a service does with the body. In
/// HTTP/2 it can hold a client only to the length that it has announced: there this is what bounds
/// a body without length and one that does not come.
#[derive(Debug)]
pub struct Upload {
    body: Incoming,
    left: u64,
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// Why a body has not come whole.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It is larger than it may be: the answer is 413.
    #[error("the body is too large")]
    Long,
    /// Nothing came in time: the answer is 408.
    #[error("the body did not come in time")]
    Slow,
    /// The client has gone, or what it sends is no body.
    #[error("read the body")]
    Broken(#[source] hyper::Error),
}

impl Upload {
    /// Bounds a body.
    pub fn new(body: Incoming, limits: &Limits) -> Self {
        Upload { body, left: limits.body_bytes, timeout: limits.body_timeout, sleep: None }
    }
}

impl UploadError {
    /// What to answer. `None`: nobody takes an answer, or the front gives it.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            UploadError::Long => Some(Refusal::LongBody),
            UploadError::Slow => Some(Refusal::SlowBody),
            UploadError::Broken(_) => None,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Pending => {
                let timeout = this.timeout;
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep(timeout)));
                ready!(sleep.as_mut().poll(context));
                Poll::Ready(Some(Err(UploadError::Slow)))
            }
            Poll::Ready(frame) => {
                this.sleep = None;
                Poll::Ready(match frame {
                    Some(Ok(frame)) => {
                        let count = frame.data_ref().map_or(0, Bytes::len) as u64;
                        Some(match this.left.checked_sub(count) {
                            Some(left) => {
                                this.left = left;
                                Ok(frame)
                            }
                            None => Err(UploadError::Long),
                        })
                    }
                    Some(Err(error)) => Some(Err(UploadError::Broken(error))),
                    None => None,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
