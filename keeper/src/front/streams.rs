//! The tasks of HTTP/2 streams, and clients that open no window for an answer.
//!
//! In HTTP/1 such a client blocks the socket, and the [`link`](super::link) sees it. In HTTP/2 the
//! socket goes on, for the other streams; so each stream keeps its own time.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Whether the client is waited for, and since when: a part of the answer is there, and nobody has
/// asked for the next.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    pub offered: Cell<Option<Instant>>,
}

/// Starts the tasks of one connection's streams.
#[derive(Clone)]
pub(super) struct Streams {
    write_timeout: Duration,
    /// Of the request that hyper has just asked for; it starts the stream's task next.
    next: Rc<RefCell<Option<Rc<Transfer>>>>,
}

impl Streams {
    pub fn new(write_timeout: Duration) -> Self {
        Streams { write_timeout, next: Rc::default() }
    }

    /// For the next task.
    pub fn transfer(&self) -> Rc<Transfer> {
        let transfer = Rc::new(Transfer::default());
        *self.next.borrow_mut() = Some(Rc::clone(&transfer));
        transfer
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let transfer = self.next.borrow_mut().take().unwrap_or_default();
        let timeout = self.write_timeout;
        tokio::task::spawn_local(async move {
            let mut stream = pin!(stream);
            let mut sleep = pin!(None);
            poll_fn(|context| {
                if stream.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                loop {
                    let deadline = transfer.offered.get().and_then(|at| at.checked_add(timeout));
                    let Some(deadline) = deadline else {
                        sleep.set(None);
                        return Poll::Pending;
                    };
                    if deadline <= Instant::now() {
                        // Dropped, it is reset.
                        return Poll::Ready(());
                    }
                    if sleep.is_none() {
                        sleep.set(Some(sleep_until(deadline)));
                    }
                    if let Some(sleep) = sleep.as_mut().as_pin_mut() {
                        ready!(sleep.poll(context));
                    }
                    sleep.set(None);
                }
            })
            .await;
        });
    }
}
