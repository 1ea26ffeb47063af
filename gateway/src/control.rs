//! The control socket: what `kiln fn` says to a gateway that runs. HTTP over a Unix socket that only
//! its owner and root may open; who they are is asked of the kernel as well (SO_PEERCRED), in case
//! the directory's mode was changed.
//!
//! | | |
//! |---|---|
//! | `GET /functions` | all of them, as `/api/functions` of the admin address |
//! | `POST /functions` | adds the `[[function]]` in the body |
//! | `GET /functions/NAME` | one |
//! | `DELETE /functions/NAME` | removes one that was added |
//! | `GET /functions/NAME/logs` | what it has written; `?follow` goes on |

use std::convert::Infallible;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kiln_keeper::front::{Body, Broken};
use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::mpsc;

use crate::admin::{Report, json};
use crate::function::Function;
use crate::gateway::{Error, Gateway, PLAIN};
use crate::logs::Log;
use crate::proxy::plain;

/// A function's description, in bytes.
const MOST: usize = 64 << 10;
/// Clients that wait to be accepted.
const BACKLOG: u32 = 128;
/// Read of a log at once.
const CHUNK: usize = 32 << 10;

/// Listens at the path, which nobody but the owner may open (0600) from the moment it is there. The
/// directory is 0700 and locked.
///
/// # Errors
/// Those of bind(2); the path is too long.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listen = || {
        let socket = UnixSocket::new_stream()?;
        // bind(2) gives the file the mode of the socket.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(path)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("listen at {}", path.display()))
}

/// Serves whoever may, for as long as the gateway lives.
pub async fn serve(listener: UnixListener, gateway: Rc<Gateway>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("control socket: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        if !is_allowed(&stream) {
            log::warn!("control socket: refused a user who is neither the owner nor root");
            continue;
        }
        let gateway = Rc::clone(&gateway);
        tokio::task::spawn_local(async move {
            let answer = service_fn(move |request| {
                let gateway = Rc::clone(&gateway);
                async move { Ok::<_, Infallible>(answer(&gateway, request).await) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                log::debug!("control socket: {error}");
            }
        });
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn answer(gateway: &Rc<Gateway>, request: Request<Incoming>) -> Response<Body> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (&method, parts.as_slice()) {
        (&Method::GET, ["functions"]) => json(&Report::of_all(gateway).await),
        (&Method::POST, ["functions"]) => add(gateway, request).await,
        (&Method::GET, ["functions", name]) => match gateway.function(name) {
            Some(function) => json(&Report::of(gateway, &function).await),
            None => refused(&Error::None((*name).to_owned())),
        },
        (&Method::DELETE, ["functions", name]) => match gateway.remove(name) {
            Ok(()) => plain(StatusCode::OK, PLAIN, format!("{name}\n")),
            Err(error) => refused(&error),
        },
        (&Method::GET, ["functions", name, "logs"]) => match gateway.function(name) {
            Some(function) => logs(&function, request.uri().query() == Some("follow")),
            None => refused(&Error::None((*name).to_owned())),
        },
        _ => plain(StatusCode::NOT_FOUND, PLAIN, "there is nothing here\n"),
    }
}

async fn add(gateway: &Gateway, request: Request<Incoming>) -> Response<Body> {
    let body = match Limited::new(request.into_body(), MOST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, PLAIN, format!("{error}\n"));
        }
    };
    let added = match std::str::from_utf8(&body) {
        Ok(text) => gateway.add(text),
        Err(_) => Err(Error::Wrong("the description is not UTF-8".to_owned())),
    };
    match added {
        Ok(name) => plain(StatusCode::CREATED, PLAIN, format!("{name}\n")),
        Err(error) => refused(&error),
    }
}

fn refused(error: &Error) -> Response<Body> {
    let code = match error {
        Error::Wrong(_) => StatusCode::BAD_REQUEST,
        Error::Taken(_) | Error::OfFile(..) => StatusCode::CONFLICT,
        Error::None(_) => StatusCode::NOT_FOUND,
        Error::Record(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    plain(code, PLAIN, format!("{error}\n"))
}

fn logs(function: &Function, follow: bool) -> Response<Body> {
    let (send, receive) = mpsc::channel(2);
    let log = Rc::clone(&function.named.log);
    tokio::task::spawn_local(async move {
        let _ = copy(&log, &send, follow).await;
    });
    let mut response = Response::new(Body::stream(receive));
    let kind = hyper::header::HeaderValue::from_static(PLAIN);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

type Pieces = mpsc::Sender<Result<Bytes, Broken>>;

/// The older file, the file, and then what is added to it. Ends when nobody reads any more.
async fn copy(log: &Log, send: &Pieces, follow: bool) -> Option<()> {
    let turn = log.turns();
    if let Ok(mut older) = std::fs::File::open(log.older()) {
        rest(&mut older, send).await?;
    }
    let mut turn = if log.turns() == turn { turn } else { log.turns() };
    let mut file = std::fs::File::open(log.path()).ok()?;
    loop {
        let changed = log.changed();
        tokio::pin!(changed);
        rest(&mut file, send).await?;
        if log.turns() != turn {
            // The file that is open has been moved aside; its end has been read.
            turn = log.turns();
            file = std::fs::File::open(log.path()).ok()?;
            continue;
        }
        if !follow {
            return Some(());
        }
        tokio::select! {
            () = changed => {}
            () = send.closed() => return None,
            // What is said between the read and the wait is not waited for long.
            () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
        }
    }
}

async fn rest(file: &mut std::fs::File, send: &Pieces) -> Option<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let at = file.stream_position().ok()?;
        let length = file.read(&mut buffer).ok()?;
        if length == 0 {
            file.seek(SeekFrom::Start(at)).ok()?;
            return Some(());
        }
        send.send(Ok(Bytes::copy_from_slice(&buffer[..length]))).await.ok()?;
    }
}
