//! One connection, from its acceptance to its end.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::time::{Instant, sleep_until};

use super::framing::Bounds;
use super::link::{Due, Member, Order};
use super::listener::Stream;
use super::request::answer;
use super::streams::Streams;
use super::wire::Wire;
use super::{Limits, Peer, Server, Service};

/// HTTP/2: how many requests one connection may have under way.
const STREAMS: u32 = 128;

/// HTTP/2: streams that are reset before they have been looked at, and for errors of the client's,
/// until the connection is ended (CVE-2023-44487, RUSTSEC-2024-0003).
const RESETS: usize = 20;
const ERROR_RESETS: usize = 128;

/// HTTP/2: how much of a body may come before somebody reads it, by stream and in all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// HTTP/2: of an answer, how much may wait in each stream.
const SEND_BUFFER: usize = 128 << 10;

/// When nothing has a deadline.
const LATER: Duration = Duration::from_secs(3600);

/// hyper wants more room than a head has, and not less than this.
const LEAST_BUFFER: usize = 8192;

/// Serves one connection until it ends.
pub(super) async fn serve<S: Service>(
    server: Rc<Server>,
    stream: Stream,
    peer: Peer,
    member: Member,
    service: Rc<S>,
) {
    let link = Rc::clone(&member.link);
    let streams = Streams::new(server.limits.write_timeout);
    let builder = builder(&server.limits, streams.clone());
    let wire = Wire::new(stream, Bounds::from(&server.limits), Rc::clone(&link));
    let requests = service_fn({
        let (server, link) = (Rc::clone(&server), Rc::clone(&link));
        move |request| answer(&server, &service, &link, &streams, request, peer)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), requests));
    let mut sleep = pin!(sleep_until(Instant::now() + LATER));
    let mut finishing = false;
    let ended = poll_fn(|context| {
        link.polled_by(context);
        loop {
            match link.order() {
                Order::Serve => {}
                Order::Finish if finishing => {}
                Order::Finish => {
                    // First it may see what the client has sent already.
                    if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                        return Poll::Ready(Ended::By(ended));
                    }
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Order::Leave => return Poll::Ready(Ended::Dropped("its place was needed")),
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Ended::By(ended));
            }
            link.take_expired();
            // The timer is set back seldom: it may go off early, and is then set again.
            let now = loop {
                if let Some((at, _)) = link.deadline(&server.limits)
                    && at < sleep.deadline()
                {
                    sleep.as_mut().reset(at);
                }
                ready!(sleep.as_mut().poll(context));
                let now = Instant::now();
                match link.deadline(&server.limits) {
                    Some((at, _)) if at <= now => break now,
                    Some((at, _)) => sleep.as_mut().reset(at),
                    None => sleep.as_mut().reset(now + LATER),
                }
            };
            match link.deadline(&server.limits).filter(|(at, _)| *at <= now) {
                Some((_, Due::Idle)) => link.finish(),
                Some((_, Due::Input)) => link.expire(),
                Some((_, Due::Drop)) => return Poll::Ready(Ended::Dropped("the client is slow")),
                None => {}
            }
        }
    })
    .await;
    if let Ended::By(Err(error)) = &ended
        && error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
    {
        server.metrics.refused("parse");
    }
    match ended {
        Ended::By(Ok(())) => {}
        Ended::By(Err(error)) => log::debug!("connection of {peer:?}: {error}"),
        Ended::Dropped(why) => log::debug!("connection of {peer:?} closed: {why}"),
    }
}

enum Ended {
    By(Result<(), Box<dyn std::error::Error + Send + Sync>>),
    Dropped(&'static str),
}

fn builder(limits: &Limits, streams: Streams) -> auto::Builder<Streams> {
    let buffer = limits.head_bytes.min(1 << 30) + LEAST_BUFFER;
    let mut builder = auto::Builder::new(streams);
    // Deadlines are kept by the link: it knows whether a request is under way.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(buffer);
    if limits.headers > 100 {
        // Up to its own bound hyper needs no heap.
        builder.http1().max_headers(limits.headers);
    }
    // hyper adds it to the time, and asks again at once for none.
    let ping = limits.body_timeout.clamp(Duration::from_secs(1), Duration::from_secs(24 * 3600));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(ping)
        .keep_alive_timeout(ping);
    builder
}
