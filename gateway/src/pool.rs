//! Connections to one container, HTTP/1.1 over its Unix socket, kept alive between requests.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kiln_keeper::front::{Upload, UploadError};
use tokio::net::UnixStream;

/// How many connections are kept without a request.
const IDLE: usize = 64;
/// How long. Less than the container keeps them: one that it closes while a request is on its way
/// would lose the request. A container that has been frozen for longer does so as soon as it is
/// thawed.
const KEPT: Duration = Duration::from_secs(20);

/// A connection that takes a request.
pub type Connection = SendRequest<Outgoing>;

/// The body of a request to a function.
#[derive(Debug)]
pub enum Outgoing {
    /// All of it, perhaps nothing: the request can be sent once more.
    Whole(Option<Bytes>),
    /// As the client sends it.
    Stream(Upload),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Stream(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// A container's connections that have nothing to do.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    idle: RefCell<Vec<(Connection, Instant)>>,
}

impl Pool {
    /// Of the container that listens at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, idle: RefCell::new(Vec::new()) }
    }

    /// One that has been used before, the last one first: the older ones are closed by the container
    /// in time.
    pub async fn reuse(&self) -> Option<Connection> {
        loop {
            let (mut connection, since) = self.idle.borrow_mut().pop()?;
            if since.elapsed() > KEPT {
                // Those below it are older.
                self.clear();
            } else if !connection.is_closed() && connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    /// A new one. It may wait in the container's backlog for as long as that takes to run.
    ///
    /// # Errors
    /// The container has gone (ECONNREFUSED, ENOENT), or its backlog is full (EAGAIN).
    pub async fn connect(&self) -> io::Result<Connection> {
        let stream = UnixStream::connect(&self.path).await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                log::debug!("connection to a container: {error}");
            }
        });
        Ok(sender)
    }

    /// Takes one back whose answer has been read to its end.
    pub fn put(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if !connection.is_closed() && idle.len() < IDLE {
            idle.push((connection, Instant::now()));
        }
    }

    /// Lets go of all that have nothing to do.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }
}
