//! From a request to a call, and from what comes of it to an answer.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, timeout_at};

use super::Server;
use crate::call::{Call, Sent};
use crate::desk::SMALL;
use crate::front::{Body, Broken, Limits, Peer, Refusal, Upload, UploadError};
use crate::journal;
use crate::lease::{Event, Lease};
use crate::protocol::keeper::{self, Outcome, Wanted};
use crate::protocol::{Failure, cgi};

/// Chunks of an answer that its reader has not taken yet.
const CHUNKS: usize = 4;
/// How much a guest may say to its standard error where the answer is to have it, in bytes.
const STDERR: u64 = 1 << 20;

impl Server {
    pub(super) async fn keeper(
        &self,
        request: Request<Incoming>,
    ) -> (Response<Body>, Option<Failure>) {
        if let Some(misplaced) = keeper::misplaced(request.method(), request.uri()) {
            let failure = Failure::Request(misplaced.status(), String::new());
            return (misplaced, Some(failure));
        }
        let verbose = keeper::is_verbose(request.uri());
        let mut outcome = Outcome { stderr: verbose.then(Vec::new), ..Outcome::default() };
        let deadline = Instant::now() + self.settings.timeout;
        let answered = timeout_at(deadline, self.keeper_call(request.into_body(), &mut outcome));
        outcome.failure = match answered.await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Failure::Timeout(self.settings.timeout)),
        };
        (keeper::answer(&outcome), outcome.failure)
    }

    async fn keeper_call(&self, body: Incoming, outcome: &mut Outcome) -> Result<(), Failure> {
        let body = collect(body, &self.limits).await?;
        let Wanted { mut call, stdin } = keeper::wanted(&self.base, &body)?;
        call.stderr = outcome.stderr.is_some();
        let (mut writer, mut reader) = (None, None);
        let (has_stdin, has_stderr) = (call.stdin, call.stderr);
        let streams = || {
            let mut streams = Vec::new();
            if has_stdin {
                let (theirs, sender) = pipe_to_guest()?;
                streams.push(theirs);
                writer =
                    Some(Aborting(spawn_local(async move { write_all(sender, &stdin).await })));
            }
            if has_stderr {
                let (theirs, receiver) = pipe_from_guest()?;
                streams.push(theirs);
                reader = Some(Aborting(spawn_local(read_all(receiver))));
            }
            Ok(streams)
        };
        let mut lease = self.begin(call, streams).await?;
        let ended = loop {
            match lease.next().await {
                Event::Output(bytes) => {
                    if outcome.output.len() + bytes.len() > self.settings.output {
                        outcome.output = Vec::new();
                        let most = self.settings.output;
                        return Err(Failure::Output(format!("more than {most} bytes of output")));
                    }
                    outcome.output.extend_from_slice(&bytes);
                }
                Event::Ended(ended) => break ended,
                Event::Died(reason) => return Err(Failure::Worker(reason)),
            }
        };
        drop(writer);
        if let Some(mut reader) = reader {
            outcome.stderr = Some((&mut reader.0).await.unwrap_or_default());
        }
        Failure::of(ended).map_or(Ok(()), Err)
    }

    pub(super) async fn cgi(
        self: Rc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Result<Response<Body>, Failure> {
        let deadline = Instant::now() + self.settings.timeout;
        let timed = timeout_at(deadline, self.cgi_call(request, peer, deadline)).await;
        timed.unwrap_or(Err(Failure::Timeout(self.settings.timeout)))
    }

    async fn cgi_call(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        deadline: Instant,
    ) -> Result<Response<Body>, Failure> {
        let (mut parts, body) = request.into_parts();
        let mut body = Some(body).filter(|body| !body.is_end_stream());
        for _ in 0..=cgi::MAX_REDIRECTS {
            let request = Request::from_parts(parts.clone(), ());
            let call = cgi::call(&self.base, &request, peer, body.is_some())?;
            match self.cgi_once(call, body.take(), parts.method == Method::HEAD, deadline).await? {
                Answered::Response(response) => return Ok(response),
                Answered::Redirect(to) => {
                    parts.uri = to.parse().map_err(|_| {
                        Failure::Output(format!("the function answered with a bad path: {to:?}"))
                    })?;
                    // RFC 3875, 6.2.2: as if the client had asked for it.
                    if parts.method != Method::HEAD {
                        parts.method = Method::GET;
                    }
                    parts.headers.remove(hyper::header::CONTENT_LENGTH);
                    parts.headers.remove(hyper::header::CONTENT_TYPE);
                }
            }
        }
        Err(Failure::Output("the function answered with a path again and again".to_owned()))
    }

    /// Has the call begin. Without the whole of a call it has not, so if a worker has died which had
    /// nothing to do another may have it.
    async fn begin(
        &self,
        call: Call,
        streams: impl FnOnce() -> io::Result<Vec<OwnedFd>>,
    ) -> Result<Lease, Failure> {
        let brings_none = !call.stdin && !call.stderr;
        let mut message = Sent::encode(call).map_err(|error| Failure::Worker(error.to_string()))?;
        if brings_none && message.len() <= SMALL {
            return Ok(self.pool.call(message).await?);
        }
        let mut lease = self.pool.worker().await?;
        let streams = streams().map_err(no_pipe)?;
        let mut attempts = self.settings.max;
        while let Err(error) = lease.send(&mut message, &streams).await {
            // It may be the only one that there may be.
            drop(lease);
            if attempts == 0 {
                return Err(Failure::Worker(error.to_string()));
            }
            attempts -= 1;
            lease = self.pool.worker().await?;
        }
        Ok(lease)
    }

    async fn cgi_once(
        &self,
        call: Call,
        body: Option<Incoming>,
        head_only: bool,
        deadline: Instant,
    ) -> Result<Answered, Failure> {
        let mut input = None;
        let streams = || {
            let Some(body) = body else { return Ok(Vec::new()) };
            let (theirs, sender) = pipe_to_guest()?;
            input = Some(Aborting(spawn_local(copy(Upload::new(body, &self.limits), sender))));
            Ok(vec![theirs])
        };
        let mut lease = self.begin(call, streams).await?;
        let mut output = BytesMut::new();
        let (head, ended) = loop {
            let event = tokio::select! {
                event = lease.next() => event,
                failure = failed(&mut input) => return Err(failure),
            };
            match event {
                Event::Output(bytes) => output.extend_from_slice(&bytes),
                Event::Ended(ended) => {
                    let head = cgi::head(&mut output)?;
                    let head = match (head, Failure::of(ended)) {
                        (_, Some(failure)) => return Err(failure),
                        (None, None) => return Err(cgi::headless(&output)),
                        (Some(head), None) => head,
                    };
                    break (head, true);
                }
                Event::Died(reason) => return Err(Failure::Worker(reason)),
            }
            if let Some(head) = cgi::head(&mut output)? {
                break (head, false);
            }
        };
        match head {
            cgi::Answer::Redirect(to) => {
                finish(lease, ended).await?;
                Ok(Answered::Redirect(to))
            }
            cgi::Answer::Head(head) => {
                let body = if head_only {
                    finish(lease, ended).await?;
                    Body::full(Bytes::new())
                } else if ended {
                    Body::full(output.freeze())
                } else {
                    stream(lease, output.freeze(), input, deadline)
                };
                Ok(Answered::Response(head.map(|()| body)))
            }
        }
    }
}

enum Answered {
    Response(Response<Body>),
    Redirect(String),
}

/// Waits for a call's end, whatever it still says.
async fn finish(mut lease: Lease, ended: bool) -> Result<(), Failure> {
    if ended {
        return Ok(());
    }
    loop {
        match lease.next().await {
            Event::Output(_) => {}
            Event::Ended(ended) => return Failure::of(ended).map_or(Ok(()), Err),
            Event::Died(reason) => return Err(Failure::Worker(reason)),
        }
    }
}

/// A body that comes from a call that goes on. When nobody reads it any more, the call is stopped.
fn stream(
    mut lease: Lease,
    begin: Bytes,
    mut input: Option<Aborting<Result<(), Failure>>>,
    deadline: Instant,
) -> Body {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    spawn_local(async move {
        let pump = async {
            if !begin.is_empty() && sender.send(Ok(begin)).await.is_err() {
                return None;
            }
            loop {
                let event = tokio::select! {
                    event = lease.next() => event,
                    failure = failed(&mut input) => return Some(failure),
                    // The client has gone, and the guest says nothing: nobody would notice.
                    () = sender.closed() => return None,
                };
                match event {
                    Event::Output(bytes) => {
                        if sender.send(Ok(bytes)).await.is_err() {
                            return None;
                        }
                    }
                    Event::Ended(ended) => return Failure::of(ended),
                    Event::Died(reason) => return Some(Failure::Worker(reason)),
                }
            }
        };
        let failure = match timeout_at(deadline, pump).await {
            Ok(failure) => failure.map(|failure| failure.to_string()),
            Err(_) => Some("timed out".to_owned()),
        };
        if let Some(failure) = failure {
            journal::warning(format_args!("in mid-answer: {failure}"));
            let _ = sender.try_send(Err(Broken));
        }
    });
    Body::stream(receiver)
}

/// A task that ends when nobody waits for it any more.
struct Aborting<T>(JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why the request's body stopped coming; not before it does.
async fn failed(input: &mut Option<Aborting<Result<(), Failure>>>) -> Failure {
    if let Some(copying) = input {
        let copied = (&mut copying.0).await;
        *input = None;
        if let Ok(Err(failure)) = copied {
            return failure;
        }
    }
    std::future::pending().await
}

async fn copy(mut body: Upload, mut guest: pipe::Sender) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| body_failure(&error))?;
        // A guest that does not read it all has a right to.
        if let Ok(data) = frame.into_data()
            && guest.write_all(&data).await.is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

/// A request's whole body.
async fn collect(body: Incoming, limits: &Limits) -> Result<Bytes, Failure> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let body = Upload::new(body, limits);
    let collected = body.collect().await.map_err(|error| body_failure(&error))?;
    Ok(collected.to_bytes())
}

fn body_failure(error: &UploadError) -> Failure {
    let status = error.refusal().map_or(StatusCode::BAD_REQUEST, Refusal::status);
    Failure::Request(status, format!("the request's body: {error}"))
}

fn no_pipe(error: io::Error) -> Failure {
    Failure::Worker(format!("make a pipe: {error}"))
}

fn pipe_to_guest() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((theirs, pipe::Sender::from_owned_fd(ours)?))
}

fn pipe_from_guest() -> io::Result<(OwnedFd, pipe::Receiver)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((theirs, pipe::Receiver::from_owned_fd(ours)?))
}

/// What the guest does not read is lost, as it should be.
async fn write_all(mut guest: pipe::Sender, input: &[u8]) {
    let _ = guest.write_all(input).await;
}

/// What comes beyond the limit is dropped: the guest is not to be stopped by it.
async fn read_all(mut guest: pipe::Receiver) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut guest).take(STDERR).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut guest, &mut tokio::io::sink()).await;
    kept
}
