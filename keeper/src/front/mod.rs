//! The HTTP server: HTTP/1.1 and h2c (with prior knowledge) on one port, with limits on whatever a
//! client may take.
//!
//! All of it runs in one thread, in a `tokio::task::LocalSet`: nothing need be `Send`.
//!
//! What comes in is refused unless it reads in one way only ([`Refusal`] says what is refused, and
//! [`path`] which paths): the answer takes its turn, and the connection ends behind it. So no service
//! sees two requests where somebody in front of it saw one. `Upgrade` is ignored.
//!
//! A client that closes its sending side has gone: its request is dropped. It is not noticed while
//! bytes wait that nobody reads: of a body that the service has not asked for, or of another request.
//!
//! A connection waits for a place when [`Limits::connections`] are open. To make room, the one that
//! has been longest without a request is closed, whether it is silent or sends a head slowly, if that
//! is longer than [`Limits::spared`]. So those who only hold connections keep nobody out.

pub mod access;
mod body;
mod connection;
mod framing;
mod link;
mod listener;
mod metrics;
pub mod path;
mod refusal;
mod request;
mod streams;
mod upload;
mod wire;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub use body::{Body, Broken};
#[cfg(fuzzing)]
pub use framing::fuzzing;
pub use listener::{Listener, Peer};
pub use metrics::Metrics;
pub use refusal::Refusal;
pub use upload::{Upload, UploadError};

use access::Access;
use link::{Roll, Room};
use listener::Trouble;

use crate::journal;

/// How long no connection is accepted after the machine was short of something: at first, and at
/// most.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

/// What a client may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the connection's acceptance, or the first byte of a later head, to the end of the head:
    /// then 408, or nothing if there has been no byte.
    pub header_timeout: Duration,
    /// Without a byte of a request's body: then 408. It does not run for a body that the service has
    /// dropped, or leaves alone after the first piece.
    pub body_timeout: Duration,
    /// Without a byte of the answer being taken: then the connection is closed, or the stream reset.
    pub write_timeout: Duration,
    /// How long a connection may be kept without a request after the first.
    pub idle_timeout: Duration,
    /// A request's line and headers, in bytes: else 431.
    pub head_bytes: usize,
    /// A request's line, in bytes: else 414. In HTTP/2, path and query.
    pub line_bytes: usize,
    /// How many headers: else 431.
    pub headers: usize,
    /// A request's body, in bytes: else 413. See [`Upload`] for HTTP/2.
    pub body_bytes: u64,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// How long a connection may be without a request before it is closed to make room.
    pub spared: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            head_bytes: 64 << 10,
            line_bytes: 16 << 10,
            headers: 100,
            body_bytes: 64 << 20,
            connections: 4096,
            spared: Duration::from_secs(1),
        }
    }
}

/// What answers requests.
pub trait Service: 'static {
    /// One request. The future is dropped when the client has gone.
    fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Response<Body>>;
}

/// Serves until `stop` says true, then finishes the requests that are under way: [`Server::serve`]
/// without metrics and access log.
///
/// # Errors
/// The listener is of no use any more.
pub async fn serve<S: Service>(
    listener: Listener,
    limits: Limits,
    service: Rc<S>,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    Server::new(limits).serve(listener, service, stop).await
}

/// A server, and who is told what it does.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// What a client may take.
    pub limits: Limits,
    /// What is counted. Several servers may share them.
    pub metrics: Metrics,
    /// Where requests are logged.
    pub access: Option<Access>,
}

impl Server {
    /// One that nobody is told about.
    pub fn new(limits: Limits) -> Self {
        Server { limits, ..Server::default() }
    }

    /// Serves until `stop` says true (or its sender is gone), then accepts nothing more, closes the
    /// listener and the connections without a request, and returns when the requests that are under
    /// way have been answered. That may take as long as they do: the caller sets its own deadline,
    /// and drops this future, and its `LocalSet`, to end the rest.
    ///
    /// # Errors
    /// The listener is of no use any more. The requests have been finished.
    pub async fn serve<S: Service>(
        self,
        listener: Listener,
        service: Rc<S>,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let server = Rc::new(self);
        let roll = Rc::new(Roll::default());
        let result = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Ok(()),
            error = server.accept_all(&listener, &roll, service) => Err(error),
        };
        drop(listener);
        roll.finish();
        while roll.len() > 0 {
            roll.left().await;
        }
        result
    }

    /// Until the listener is of no use.
    async fn accept_all<S: Service>(
        self: &Rc<Self>,
        listener: &Listener,
        roll: &Rc<Roll>,
        service: Rc<S>,
    ) -> io::Error {
        let mut back_off = BACK_OFF[0];
        loop {
            self.wait_for_room(roll).await;
            match listener.accept().await {
                Ok((stream, peer)) => {
                    back_off = BACK_OFF[0];
                    self.metrics.accepted.inc();
                    let member = roll.enter(self.metrics.open.clone());
                    let (server, service) = (Rc::clone(self), Rc::clone(&service));
                    tokio::task::spawn_local(connection::serve(
                        server, stream, peer, member, service,
                    ));
                }
                Err(error) => match Trouble::of(&error) {
                    Trouble::Connection => {}
                    Trouble::Listener => return error,
                    Trouble::Shortage => {
                        if back_off == BACK_OFF[0] {
                            journal::warning(format_args!("accept a connection: {error}"));
                        }
                        self.make_room(roll);
                        sleep(back_off).await;
                        back_off = (back_off * 2).min(BACK_OFF[1]);
                    }
                },
            }
        }
    }

    async fn wait_for_room(&self, roll: &Rc<Roll>) {
        while roll.len() >= self.limits.connections.max(1) {
            let again = self.make_room(roll);
            let _ = timeout(again, roll.left()).await;
        }
    }

    /// Ends a connection without a request, if there is one. Otherwise there may be one after the
    /// result: none tells when it comes to be without a request.
    fn make_room(&self, roll: &Rc<Roll>) -> Duration {
        let spared = self.limits.spared;
        match roll.make_room(spared) {
            Room::Soon => {
                self.metrics.displaced.inc();
                spared
            }
            Room::After(duration) => duration.min(spared),
            Room::None => spared,
        }
        .max(Duration::from_millis(1))
    }
}
