//! What the two ends of a connection tell each other: the socket's ([`wire`](super::wire)) and the
//! requests' ([`request`](super::request)), with hyper between them; and who closes it when.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Limits, Refusal};

/// How long a connection is held open after its last byte, for the client to take it: closed with
/// bytes unread it would be reset, and the answer lost (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    /// HTTP/1: heads that hyper has been given.
    passed: Cell<u64>,
    /// HTTP/1: requests that hyper has made of them.
    called: Cell<u64>,
    /// Of the head behind the passed ones.
    refusal: Cell<Option<Refusal>>,
    /// Of the body behind the last passed head.
    body_refusal: Cell<Option<Refusal>>,
    /// Requests whose answers have not ended.
    active: Cell<usize>,
    http2: Cell<bool>,
    /// Whether there has been a byte.
    used: Cell<bool>,
    /// When what is being waited for began.
    idle_since: Cell<Option<Instant>>,
    head_since: Cell<Option<Instant>>,
    body_since: Cell<Option<Instant>>,
    write_since: Cell<Option<Instant>>,
    end_since: Cell<Option<Instant>>,
    /// The deadline of head or body is over; the wire has not been told.
    expired: Cell<bool>,
    order: Cell<Order>,
    waker: RefCell<Option<Waker>>,
    /// In the roll.
    index: Cell<usize>,
}

/// What the server wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Serve,
    /// End after the requests that are under way.
    Finish,
    /// End now: its place is needed.
    Leave,
}

/// What is to be done when a deadline is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nobody has asked for anything: end it in order.
    Idle,
    /// A head or a body is late: the wire says so to hyper.
    Input,
    /// The client takes nothing, or is silent where there is nothing to say: drop it.
    Drop,
}

impl Link {
    fn new(index: usize) -> Self {
        Link {
            passed: Cell::new(0),
            called: Cell::new(0),
            refusal: Cell::new(None),
            body_refusal: Cell::new(None),
            active: Cell::new(0),
            http2: Cell::new(false),
            used: Cell::new(false),
            idle_since: Cell::new(None),
            head_since: Cell::new(Some(Instant::now())),
            body_since: Cell::new(None),
            write_since: Cell::new(None),
            end_since: Cell::new(None),
            expired: Cell::new(false),
            order: Cell::new(Order::Serve),
            waker: RefCell::new(None),
            index: Cell::new(index),
        }
    }

    // The wire's side.

    /// So many heads have been passed, and whether the next has begun.
    pub fn heads(&self, passed: u64, begun: bool) {
        self.used.set(true);
        self.body_since.set(None);
        if passed != self.passed.replace(passed) {
            self.head_since.set(None);
            self.idle_since.set(None);
        }
        if begun && self.head_since.get().is_none() {
            self.head_since.set(Some(Instant::now()));
        }
    }

    pub fn speaks_http2(&self) {
        self.http2.set(true);
        self.head_since.set(None);
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.head_since.set(None);
        self.refusal.set(Some(refusal));
    }

    pub fn refuse_body(&self, refusal: Refusal) {
        self.body_since.set(None);
        self.body_refusal.set(Some(refusal));
    }

    /// hyper waits for a body's bytes.
    pub fn waits_for_body(&self) {
        since(&self.body_since);
    }

    pub fn write(&self, blocked: bool) {
        if blocked {
            since(&self.write_since);
        } else {
            self.write_since.set(None);
        }
    }

    pub fn lingers(&self) {
        since(&self.end_since);
    }

    pub fn take_expired(&self) -> bool {
        self.expired.replace(false)
    }

    // The requests' side.

    /// A request begins, if it is one: or else the refusal that it stands for.
    pub fn begin(&self) -> Option<Refusal> {
        self.active.set(self.active.get() + 1);
        self.idle_since.set(None);
        self.end_since.set(None);
        if self.http2.get() {
            return None;
        }
        let before = self.called.get();
        self.called.set(before + 1);
        // hyper asks once for every head, in their order: this one has not been passed.
        self.refusal.get().filter(|_| before == self.passed.get())
    }

    /// Why the body of the request that is under way ends before time. It may have been known before
    /// the request: what hyper has not looked at yet comes behind other requests.
    pub fn body_refusal(&self) -> Option<Refusal> {
        self.body_refusal.get().filter(|_| self.called.get() == self.passed.get())
    }

    pub fn end(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        // Of a pipelined request: while the one before ran, nobody asked for the rest.
        if self.head_since.get().is_some() {
            self.head_since.set(Some(Instant::now()));
        }
    }

    pub fn is_http2(&self) -> bool {
        self.http2.get()
    }

    // The connection's.

    /// Remembers whom to wake when the order changes.
    pub fn polled_by(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    pub fn order(&self) -> Order {
        self.order.get()
    }

    fn tell(&self, order: Order) {
        if order > self.order.get() {
            self.order.set(order);
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// No request is under way or about to be, and no answer is waiting to be taken.
    fn is_idle(&self) -> bool {
        self.active.get() == 0
            && (self.http2.get() || self.passed.get() <= self.called.get())
            && self.write_since.get().is_none()
            && self.end_since.get().is_none()
    }

    /// Since when there has been nothing to do but to wait for a head.
    fn without_request_since(&self) -> Option<Instant> {
        let since = self.head_since.get().or(self.idle_since.get())?;
        self.is_idle().then_some(since)
    }

    /// Until when the connection may stay as it is, and what to do then.
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, Due)> {
        let at = |since: Option<Instant>, timeout: Duration, due: Due| {
            since.and_then(|since| since.checked_add(timeout)).map(|at| (at, due))
        };
        let mut first = at(self.end_since.get(), LINGER, Due::Drop);
        let mut add = |other: Option<(Instant, Due)>| {
            first = match (first, other) {
                (Some(first), Some(other)) if other.0 < first.0 => Some(other),
                (None, other) => other,
                (first, _) => first,
            };
        };
        add(at(self.write_since.get(), limits.write_timeout, Due::Drop));
        add(at(self.body_since.get(), limits.body_timeout, Due::Input));
        if self.is_idle() {
            if self.order.get() == Order::Serve {
                let silent = if self.used.get() { Due::Input } else { Due::Drop };
                if self.head_since.get().is_some() {
                    add(at(self.head_since.get(), limits.header_timeout, silent));
                } else {
                    since(&self.idle_since);
                    add(at(self.idle_since.get(), limits.idle_timeout, Due::Idle));
                }
            } else {
                // HTTP/2: the client has been told, and may not answer.
                since(&self.end_since);
                add(at(self.end_since.get(), LINGER, Due::Drop));
            }
        }
        first
    }

    pub fn expire(&self) {
        self.expired.set(true);
        // Not again for the same: if hyper does not read now, nothing is late.
        self.body_since.set(None);
        self.head_since.set(None);
    }

    /// From here on it has only to end.
    pub fn finish(&self) {
        if self.order.get() == Order::Serve {
            self.order.set(Order::Finish);
        }
        self.idle_since.set(None);
    }
}

fn since(cell: &Cell<Option<Instant>>) {
    if cell.get().is_none() {
        cell.set(Some(Instant::now()));
    }
}

/// The connections of one server.
#[derive(Debug, Default)]
pub(super) struct Roll {
    links: RefCell<Vec<Rc<Link>>>,
    left: Notify,
}

impl Roll {
    pub fn len(&self) -> usize {
        self.links.borrow().len()
    }

    /// A new connection, which is in the roll as long as the result lives.
    pub fn enter(self: &Rc<Self>, open: Gauge) -> Member {
        let mut links = self.links.borrow_mut();
        let link = Rc::new(Link::new(links.len()));
        links.push(Rc::clone(&link));
        open.inc();
        Member { link, roll: Rc::clone(self), open }
    }

    /// Until a connection ends.
    pub async fn left(&self) {
        self.left.notified().await;
    }

    pub fn finish(&self) {
        // The waker may run nothing here: it only puts tasks on a list.
        for link in &*self.links.borrow() {
            link.tell(Order::Finish);
        }
    }

    /// Ends the connection that has been longest without a request, if that is longer than `spared`.
    /// It looks at all of them, but only when there is no room.
    pub fn make_room(&self, spared: Duration) -> Room {
        let links = self.links.borrow();
        let waiting = links.iter().filter(|link| link.order() != Order::Leave);
        let longest = waiting
            .filter_map(|link| link.without_request_since().map(|since| (since, link)))
            .min_by_key(|(since, _)| *since);
        let Some((since, link)) = longest else { return Room::None };
        let idle = since.elapsed();
        if idle < spared {
            return Room::After(spared - idle);
        }
        link.tell(Order::Leave);
        Room::Soon
    }
}

/// A connection's place in the roll.
#[derive(Debug)]
pub(super) struct Member {
    pub link: Rc<Link>,
    roll: Rc<Roll>,
    open: Gauge,
}

/// Whether there is room for another connection.
pub(super) enum Room {
    /// One is about to end.
    Soon,
    /// None has been without a request for long enough.
    After(Duration),
    /// Each has a request.
    None,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut links = self.roll.links.borrow_mut();
        let index = self.link.index.get();
        if index < links.len() {
            links.swap_remove(index);
        }
        if let Some(moved) = links.get(index) {
            moved.index.set(index);
        }
        self.open.dec();
        self.roll.left.notify_one();
    }
}
