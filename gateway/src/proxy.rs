//! A request on its way to a function, and the answer on its way back. Both bodies are streamed.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Version};
use kiln_keeper::front::{self, Body, Broken, Limits, Peer, Upload, UploadError};
use tokio::sync::mpsc;

use crate::config::Protocol;
use crate::container::Container;
use crate::function::{Function, Lease, Refusal};
use crate::headers::{outgoing, strip};
use crate::measure::Refused;
use crate::pool::{Connection, Outgoing};

/// An answer of this size is taken whole before it is passed on, in one piece.
const SMALL: u64 = 64 << 10;
/// Of a head, and of a body: twice that is less than a server reads at once.
const PIECE: usize = 3 << 10;
/// Pieces of an answer that are read ahead of a client.
const AHEAD: usize = 4;
/// What is added to a function's own timeout, which its server keeps.
const MARGIN: Duration = Duration::from_secs(5);
/// How long after a connection has broken off its container may take to be seen to have ended.
const AFTERMATH: Duration = Duration::from_millis(500);

/// A request that has its function.
#[derive(Debug)]
pub struct Call<'a> {
    /// Counts the request when it is over, however.
    pub tally: Tally,
    /// Who sent it.
    pub peer: Peer,
    /// What a client may take.
    pub limits: &'a Limits,
}

/// Counts one request at its end: at the answer's, or when the client has gone.
#[derive(Debug)]
pub struct Tally {
    function: Rc<Function>,
    since: Instant,
    code: u16,
}

/// nginx's, for a client that has closed the connection: it never gets to see it.
const CLIENT_GONE: u16 = 499;
/// Another function will count it.
const UNCOUNTED: u16 = 0;

impl Tally {
    /// Of a request that begins now.
    pub fn new(function: Rc<Function>) -> Self {
        Self { function, since: Instant::now(), code: CLIENT_GONE }
    }

    fn gone(&mut self) {
        self.code = CLIENT_GONE;
    }

    fn refused(&self, why: Refused) {
        self.function.metrics().refused(self.function.name(), why);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self.code == UNCOUNTED {
            return;
        }
        let (metrics, numbers) = (self.function.metrics(), &self.function.named.numbers);
        metrics.answered(self.function.name(), numbers, self.code, self.since.elapsed());
    }
}

/// What comes of a request.
#[derive(Debug)]
pub enum Outcome {
    /// This answer.
    Answer(Response<Body>),
    /// The function has been replaced while the request waited: the request, for whoever has the
    /// route now.
    Again(Request<Incoming>),
}

/// Has a function answer a request.
pub async fn call(function: &Rc<Function>, request: Request<Incoming>, call: Call<'_>) -> Outcome {
    let Call { mut tally, peer, limits } = call;
    let mut lease = match function.acquire().await {
        Ok(lease) => lease,
        Err(Refusal::Retired) => {
            tally.code = UNCOUNTED;
            return Outcome::Again(request);
        }
        Err(refusal) => return Outcome::Answer(refused(function, &mut tally, &refusal)),
    };
    let (parts, body) = request.into_parts();
    let body = match replayable(&parts, Upload::new(body, limits)).await {
        Ok(body) => body,
        Err(error) => return Outcome::Answer(bad_body(function, &mut tally, &error)),
    };
    let rooted = function.config.protocol == Some(Protocol::Keeper);
    let outgoing = match outgoing(parts, body, peer, rooted) {
        Ok(outgoing) => outgoing,
        Err(problem) => {
            let code = StatusCode::BAD_REQUEST;
            tally.code = code.as_u16();
            return Outcome::Answer(answer(function, code, problem));
        }
    };
    let copy = copy(&outgoing);
    let limit = function.config.timeout.saturating_mul(2) + MARGIN;
    let mut exchanged = within(limit, exchange(&lease.container, outgoing)).await;
    // The container has died with the request unread, or before it was sent: another reads it.
    let again = match exchanged {
        Err(Failure::Unsent(request)) => Err(*request),
        Err(Failure::Broken(error)) if is_unread(&error) => match copy {
            Some(copy) => Err(copy),
            None => Ok(Err(Failure::Broken(error))),
        },
        other => Ok(other),
    };
    exchanged = match again {
        Ok(exchanged) => exchanged,
        Err(request) => {
            let _ = tokio::time::timeout(AFTERMATH, lease.container.end()).await;
            drop(lease);
            lease = match function.acquire().await {
                Ok(lease) => lease,
                // It was this request that has seen it fail.
                Err(Refusal::BackOff(reason, _)) => {
                    let refusal = Refusal::Failed(reason);
                    return Outcome::Answer(refused(function, &mut tally, &refusal));
                }
                Err(refusal) => {
                    return Outcome::Answer(refused(function, &mut tally, &refusal));
                }
            };
            within(limit, exchange(&lease.container, request)).await
        }
    };
    let failure = match exchanged {
        Ok((response, connection)) => {
            lease.answered();
            return Outcome::Answer(relay(response, connection, lease, tally).await);
        }
        Err(failure) => failure,
    };
    if let Failure::Broken(error) = &failure
        && let Some(error) = cause::<UploadError>(error)
    {
        return Outcome::Answer(bad_body(function, &mut tally, error));
    }
    let (code, why, problem) = match failure {
        Failure::Full => (
            StatusCode::SERVICE_UNAVAILABLE,
            Refused::Busy,
            "too many requests wait already".to_owned(),
        ),
        Failure::Broken(error) => {
            let problem = aftermath(&lease.container, &error).await;
            (StatusCode::BAD_GATEWAY, Refused::Broken, problem)
        }
        Failure::Unsent(_) => {
            let problem = "its containers end as soon as they have begun".to_owned();
            (StatusCode::BAD_GATEWAY, Refused::Broken, problem)
        }
        Failure::Timeout => (
            StatusCode::GATEWAY_TIMEOUT,
            Refused::Timeout,
            format!("no answer after {} s", limit.as_secs()),
        ),
    };
    tally.refused(why);
    tally.code = code.as_u16();
    Outcome::Answer(answer(function, code, &problem))
}

async fn within<T>(
    limit: Duration,
    exchange: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(Failure::Timeout))
}

/// Takes a small body whole, so that the request can be sent once more if it has not been read. It is
/// sent in one piece with its head, and read in one: either all of it has been read or nothing.
async fn replayable(parts: &Parts, body: Upload) -> Result<Outgoing, UploadError> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let head = parts.uri.path().len()
        + parts.uri.query().map_or(0, str::len)
        + parts.headers.iter().map(field).sum::<usize>();
    match body.size_hint().exact() {
        Some(0) => Ok(Outgoing::Whole(None)),
        Some(size) if size <= PIECE as u64 && head <= PIECE => {
            Ok(Outgoing::Whole(Some(body.collect().await?.to_bytes())))
        }
        _ => Ok(Outgoing::Stream(body)),
    }
}

/// The same once more, if that can be.
fn copy(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let Outgoing::Whole(body) = request.body() else { return None };
    let mut copy = Request::new(Outgoing::Whole(body.clone()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether the other end has gone with what was sent unread: a Unix socket says ECONNRESET then, and
/// of one that has read all of it no more than the end (unix_release_sock() in net/unix/af_unix.c).
fn is_unread(error: &hyper::Error) -> bool {
    cause::<std::io::Error>(error).is_some_and(|error| {
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    })
}

/// The first cause of this type.
fn cause<T: std::error::Error + 'static>(error: &hyper::Error) -> Option<&T> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The client's body is not one, too large, or does not come. If it has gone nobody hears this.
fn bad_body(function: &Function, tally: &mut Tally, error: &UploadError) -> Response<Body> {
    let code = error.refusal().map_or(StatusCode::BAD_REQUEST, front::Refusal::status);
    tally.code = code.as_u16();
    answer(function, code, &error.to_string())
}

enum Failure {
    /// Its backlog is.
    Full,
    /// The connection has ended before an answer.
    Broken(hyper::Error),
    /// The container has ended before anything was sent.
    Unsent(Box<Request<Outgoing>>),
    /// It took too long.
    Timeout,
}

/// Sends a request and waits for the answer's head. A connection that was kept may have been closed
/// meanwhile: then nothing of the request has been sent, and another takes it.
async fn exchange(
    container: &Container,
    mut request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Connection), Failure> {
    while let Some(mut connection) = container.pool.reuse().await {
        match connection.try_send_request(request).await {
            Ok(response) => return Ok((response, connection)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(Failure::Broken(error.into_error())),
            },
        }
    }
    let mut connection = match container.pool.connect().await {
        Ok(connection) => connection,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Failure::Full),
        Err(error) => {
            log::debug!("container {}: connect: {error}", container.id);
            return Err(Failure::Unsent(Box::new(request)));
        }
    };
    match connection.try_send_request(request).await {
        Ok(response) => Ok((response, connection)),
        Err(mut error) => Err(match error.take_message() {
            Some(request) => Failure::Unsent(Box::new(request)),
            None => Failure::Broken(error.into_error()),
        }),
    }
}

/// Why a connection has broken off.
async fn aftermath(container: &Container, error: &hyper::Error) -> String {
    match tokio::time::timeout(AFTERMATH, container.end()).await {
        Ok(exit) => {
            let reason = container.reason(exit).await;
            format!("its container has ended before the answer: {reason}")
        }
        Err(_) => format!("no answer: {error}"),
    }
}

/// The answer as the client gets it.
async fn relay(
    response: Response<Incoming>,
    connection: Connection,
    lease: Lease,
    mut tally: Tally,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    tally.code = parts.status.as_u16();
    let body = match body.size_hint().exact() {
        Some(size) if size <= SMALL => match body.collect().await {
            Ok(whole) => {
                lease.container.pool.put(connection);
                Body::full(whole.to_bytes())
            }
            Err(error) => {
                let problem = aftermath(&lease.container, &error).await;
                tally.refused(Refused::Broken);
                tally.code = StatusCode::BAD_GATEWAY.as_u16();
                return answer(lease.function(), StatusCode::BAD_GATEWAY, &problem);
            }
        },
        _ => stream(body, connection, lease, tally),
    };
    Response::from_parts(parts, body)
}

/// Passes pieces on as they come. It ends with the body, or when the client has gone; then the
/// function's connection is closed, by which its server knows.
fn stream(mut body: Incoming, connection: Connection, lease: Lease, mut tally: Tally) -> Body {
    let (send, receive) = mpsc::channel::<Result<Bytes, Broken>>(AHEAD);
    tokio::task::spawn_local(async move {
        while let Some(frame) = next(&mut body, &send).await {
            let piece = match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    // Trailers.
                    Err(_) => continue,
                },
                Err(error) => {
                    log::debug!("container {}: the answer broke off: {error}", lease.container.id);
                    tally.refused(Refused::Broken);
                    Err(Broken)
                }
            };
            let broken = piece.is_err();
            if send.send(piece).await.is_err() {
                tally.gone();
                return;
            }
            if broken {
                return;
            }
        }
        if body.is_end_stream() {
            lease.container.pool.put(connection);
        }
    });
    Body::stream(receive)
}

type Frame = Result<hyper::body::Frame<Bytes>, hyper::Error>;

/// The next piece; None at the end, or when nobody wants one any more.
async fn next(body: &mut Incoming, send: &mpsc::Sender<Result<Bytes, Broken>>) -> Option<Frame> {
    tokio::select! {
        frame = body.frame() => frame,
        () = send.closed() => None,
    }
}

fn refused(function: &Function, tally: &mut Tally, refusal: &Refusal) -> Response<Body> {
    let (code, why, problem, wait) = match refusal {
        Refusal::Failed(reason) => (StatusCode::BAD_GATEWAY, Refused::Failed, reason.clone(), None),
        Refusal::BackOff(reason, wait) => {
            (StatusCode::SERVICE_UNAVAILABLE, Refused::Failed, reason.clone(), Some(*wait))
        }
        Refusal::Busy | Refusal::Retired => (
            StatusCode::SERVICE_UNAVAILABLE,
            Refused::Busy,
            "too many requests run and wait already".to_owned(),
            Some(Duration::from_secs(1)),
        ),
    };
    tally.refused(why);
    tally.code = code.as_u16();
    let mut response = answer(function, code, &problem);
    if let Some(wait) = wait {
        let seconds = wait.as_millis().div_ceil(1000);
        if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
    }
    response
}

/// An answer of the gateway's own for a function, in the form of the function's answers.
fn answer(function: &Function, code: StatusCode, problem: &str) -> Response<Body> {
    let problem = format!("function {}: {problem}", function.name());
    match function.config.protocol {
        Some(Protocol::Keeper) => {
            let text = serde_json::json!({ "status": 1, "error": problem });
            plain(code, "application/json", text.to_string())
        }
        Some(Protocol::Cgi) | None => plain(code, "text/plain; charset=utf-8", problem + "\n"),
    }
}

/// An answer with this text.
pub fn plain(code: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
