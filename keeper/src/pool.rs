//! The workers as the server sees them: who waits for a call, who is at work, and which requests wait
//! for one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::board::is_later;
use crate::desk::{Ahead, Desk, SMALL, Waiting};
use crate::journal;
use crate::lease::{Call, Lease};
use crate::parent::{End, Started};
use crate::parent_link::{Fate, Made, Parent, PidCell};
use crate::worker_link::Link;

/// How long a request waits for one of the workers that there are before there is another worker: a
/// call may be shorter than a fork. With few workers they wait for each other's wake-ups, so a few
/// for each processor are there soon.
const PATIENCE: Duration = Duration::from_millis(1);
/// The same once there are [`FEW`] for each processor.
const LONG_PATIENCE: Duration = Duration::from_millis(20);
const FEW: usize = 4;
/// How many requests may wait behind the call that a worker is at, and for how long as it seems.
const AHEAD: usize = 4;
const SOON: Duration = Duration::from_micros(500);
/// How long more workers than are kept warm may have nothing to do.
const IDLE: Duration = Duration::from_secs(10);
/// How often that is looked at in this time.
const LOOKS: u32 = 20;

/// The workers of one function.
pub struct Pool {
    parent: RefCell<Rc<Parent>>,
    warm: usize,
    max: usize,
    queue_limit: usize,
    idle: RefCell<VecDeque<Worker>>,
    /// Those at a call behind which others may wait.
    busy: RefCell<Vec<Rc<Desk>>>,
    queue: RefCell<VecDeque<Waiting>>,
    /// Workers that there are, whether idle or not.
    alive: Cell<usize>,
    /// Grows when workers from before are of no use any more.
    generation: Cell<u64>,
    closed: Cell<bool>,
    /// Whether somebody looks after the queue.
    watched: Cell<bool>,
    /// Whether somebody will end workers that are not needed.
    thinning: Cell<bool>,
    few: usize,
    /// How long a call takes a worker, lately; zero before it is known.
    pace: Cell<Duration>,
    counts: Counts,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Workers started.
    pub started: Cell<u64>,
    /// Workers started because a request waited for one.
    pub cold: Cell<u64>,
    /// Workers killed or lost in a call.
    pub lost: Cell<u64>,
}

/// A process that makes calls.
#[derive(Debug)]
pub(crate) struct Worker {
    pub link: Link,
    pub desk: Rc<Desk>,
    pid: PidCell,
    generation: u64,
    parent: Rc<Parent>,
}

/// Why there is no worker for a request.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may.
    #[error("too many requests wait")]
    Full,
    /// The server is about to end.
    #[error("the server is about to end")]
    Closed,
    /// No process can be had.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
}

impl Pool {
    /// With `warm` workers that wait, and never more than `max`; `queue_limit` requests may wait.
    ///
    /// # Errors
    /// The parent's socket cannot be watched.
    pub fn new(
        parent: Started,
        warm: usize,
        max: usize,
        queue_limit: usize,
    ) -> io::Result<Rc<Self>> {
        let parent = Parent::new(parent)?;
        let pool = Rc::new(Pool {
            parent: RefCell::new(Rc::clone(&parent)),
            warm,
            max,
            queue_limit,
            idle: RefCell::default(),
            busy: RefCell::default(),
            queue: RefCell::default(),
            alive: Cell::new(0),
            generation: Cell::new(0),
            closed: Cell::new(false),
            watched: Cell::new(false),
            thinning: Cell::new(false),
            few: FEW * std::thread::available_parallelism().map_or(1, usize::from),
            pace: Cell::default(),
            counts: Counts::default(),
        });
        pool.listen(parent);
        pool.warm_up();
        Ok(pool)
    }

    /// A worker for a call that is handed to it then. Waits in the queue if none is idle.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn worker(self: &Rc<Self>) -> Result<Lease, Refused> {
        if self.closed.get() {
            return Err(Refused::Closed);
        }
        match self.pop_idle() {
            Some(worker) => Ok(Lease::new(worker, self, Call::None)),
            None => self.wait(None).await,
        }
    }

    /// A worker that has this call, [`SMALL`] and without descriptors. If none is idle it waits in the
    /// queue, or, if calls have been short lately, behind the call that a worker is at.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn call(self: &Rc<Self>, mut message: Vec<u8>) -> Result<Lease, Refused> {
        debug_assert!(message.len() <= SMALL);
        if self.closed.get() {
            return Err(Refused::Closed);
        }
        self.note_load();
        while let Some(worker) = self.pop_idle() {
            match self.hand_over(worker, message) {
                Ok(lease) => return Ok(lease),
                Err(again) => message = again,
            }
        }
        let behind = match self.queue.borrow().is_empty() {
            true => self.desk_with_room(),
            false => None,
        };
        match behind {
            Some(desk) => self.wait_behind(desk, message).await,
            None => self.wait(Some(message)).await,
        }
    }

    /// The one that has been idle for longest: the last that came still makes its next instance.
    fn pop_idle(&self) -> Option<Worker> {
        self.idle.borrow_mut().pop_front()
    }

    async fn wait(self: &Rc<Self>, message: Option<Vec<u8>>) -> Result<Lease, Refused> {
        if self.is_full() {
            return Err(Refused::Full);
        }
        let (taker, receiver) = oneshot::channel();
        self.queue.borrow_mut().push_back(Waiting { since: Instant::now(), message, taker });
        if self.alive.get() == 0 {
            increment(&self.counts.cold);
            self.start()?;
        }
        self.dispatch();
        receiver.await.map_err(|_| self.why_none())
    }

    async fn wait_behind(
        self: &Rc<Self>,
        desk: Rc<Desk>,
        message: Vec<u8>,
    ) -> Result<Lease, Refused> {
        let (taker, receiver) = oneshot::channel();
        let waiting = Waiting { since: Instant::now(), message: Some(message), taker };
        let sent = send_ahead(&desk, waiting);
        // It has the taker: whoever waits for that must not keep it.
        drop(desk);
        if let Err(waiting) = sent {
            self.queue.borrow_mut().push_back(waiting);
            self.dispatch();
        }
        receiver.await.map_err(|_| self.why_none())
    }

    /// Why nobody answers to who waits.
    fn why_none(&self) -> Refused {
        match self.closed.get() {
            true => Refused::Closed,
            false => Refused::NoWorker("the one that it waited for has died".to_owned()),
        }
    }

    /// Whether no more requests may wait.
    fn is_full(&self) -> bool {
        let room = self.queue_limit + self.max.saturating_sub(self.alive.get());
        self.queue.borrow().len() + self.ahead() >= room && self.queued() >= room
    }

    /// Of those at work the one behind whose call the fewest wait, if one more may.
    fn desk_with_room(&self) -> Option<Rc<Desk>> {
        let busy = self.busy.borrow();
        let (ahead, desk) = busy
            .iter()
            .filter(|desk| !desk.slow.get())
            .map(|desk| (desk.ahead(), desk))
            .min_by_key(|(ahead, _)| *ahead)?;
        (self.has_room(ahead) && !self.is_full()).then(|| Rc::clone(desk))
    }

    /// Whether one more may wait where so many do.
    fn has_room(&self, ahead: usize) -> bool {
        let pace = self.pace.get();
        let turn = pace * u32::try_from(ahead + 1).unwrap_or(u32::MAX);
        ahead < AHEAD && !pace.is_zero() && turn <= SOON
    }

    /// Tells the workers whether there are so many calls that they are in the server's way.
    fn note_load(&self) {
        let calls = self.busy.borrow().len() + self.ahead() + self.queue.borrow().len();
        let board = &self.parent.borrow().board;
        let crowded = board.is_crowded();
        if (crowded && calls < self.few / 2) || (!crowded && calls >= self.few) {
            board.set_crowded(!crowded);
        }
    }

    /// A call took this long.
    pub(crate) fn spent(&self, time: Duration) {
        let pace = self.pace.get();
        self.pace.set(if pace.is_zero() { time } else { (pace * 7 + time) / 8 });
    }

    /// Gives an idle worker its call. Gives the message back if that is none any more.
    fn hand_over(self: &Rc<Self>, worker: Worker, mut message: Vec<u8>) -> Result<Lease, Vec<u8>> {
        match worker.desk.send_small(&mut message) {
            Ok(number) => {
                worker.desk.slow.set(false);
                self.busy.borrow_mut().push(Rc::clone(&worker.desk));
                Ok(Lease::new(worker, self, Call::Sent(number, Some(message))))
            }
            Err(_) => {
                self.lose(worker);
                Err(message)
            }
        }
    }

    /// Takes back what a worker has not begun, for others; returns the last call that it has.
    pub(crate) fn take_back(self: &Rc<Self>, desk: &Desk) -> u32 {
        let (begun, waiting) = desk.take_back();
        if !waiting.is_empty() {
            let mut queue = self.queue.borrow_mut();
            for waiting in waiting.into_iter().rev() {
                queue.push_front(waiting);
            }
            drop(queue);
            self.dispatch();
        }
        begun
    }

    /// Gives those who wait the workers that are idle; looks after them if they are too few.
    fn dispatch(self: &Rc<Self>) {
        while !self.queue.borrow().is_empty() {
            let Some(worker) = self.pop_idle() else {
                if !self.watched.replace(true) {
                    self.watch_queue();
                }
                return;
            };
            self.give_back(worker);
        }
    }

    /// As long as requests wait, starts workers for those that have waited for long.
    fn watch_queue(self: &Rc<Self>) {
        let pool = Rc::downgrade(self);
        spawn_local(async move {
            loop {
                tokio::time::sleep(PATIENCE).await;
                let Some(pool) = Weak::upgrade(&pool) else { return };
                if pool.in_queue() == 0 || pool.closed.get() {
                    pool.watched.set(false);
                    return;
                }
                let waits = pool.queue.borrow().front().map(|first| first.since.elapsed());
                let many = pool.alive.get() >= pool.few;
                let patience = if many { LONG_PATIENCE } else { PATIENCE };
                if waits.is_none_or(|waits| waits < patience) || pool.alive.get() >= pool.max {
                    continue;
                }
                increment(&pool.counts.cold);
                if let Err(refused) = pool.start() {
                    journal::error(&refused);
                    tokio::time::sleep(LONG_PATIENCE).await;
                }
            }
        });
    }

    /// Idle workers and all that there are.
    pub fn workers(&self) -> (usize, usize) {
        (self.idle.borrow().len(), self.alive.get())
    }

    /// Requests that wait for a worker, or behind the call that one is at.
    pub fn queued(&self) -> usize {
        self.in_queue() + self.ahead()
    }

    fn in_queue(&self) -> usize {
        let mut queue = self.queue.borrow_mut();
        queue.retain(|waiting| !waiting.taker.is_closed());
        queue.len()
    }

    fn ahead(&self) -> usize {
        self.busy.borrow().iter().map(|desk| desk.ahead()).sum()
    }

    /// What has happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether calls are taken: until [`Pool::close`].
    pub fn is_open(&self) -> bool {
        !self.closed.get()
    }

    /// No more calls: who waits is refused, idle workers end.
    pub fn close(&self) {
        self.closed.set(true);
        self.queue.borrow_mut().clear();
        for worker in self.idle.take() {
            self.discard(worker, false);
        }
    }

    /// Takes the place of a parent that has died.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn adopt(self: &Rc<Self>, parent: Started) -> io::Result<()> {
        let parent = Parent::new(parent)?;
        *self.parent.borrow_mut() = Rc::clone(&parent);
        self.retire();
        self.listen(parent);
        self.warm_up();
        Ok(())
    }

    /// Hands the module's compiled code on: later workers run it.
    ///
    /// # Errors
    /// The parent has died.
    pub fn give_compiled(&self, code: &OwnedFd) -> io::Result<()> {
        self.parent.borrow().give_compiled(code)
    }

    /// The parent's pid, for whoever reaps.
    pub fn parent_pid(&self) -> Pid {
        self.parent.borrow().pid
    }

    fn warm_up(self: &Rc<Self>) {
        while self.alive.get() < self.warm && !self.closed.get() {
            if let Err(refused) = self.start() {
                journal::error(&refused);
                return;
            }
        }
    }

    /// Workers from before are replaced as soon as they have nothing to do.
    fn retire(self: &Rc<Self>) {
        self.generation.set(self.generation.get() + 1);
        self.busy.borrow_mut().clear();
        for worker in self.idle.take() {
            self.discard(worker, false);
        }
        self.warm_up();
    }

    fn start(self: &Rc<Self>) -> Result<(), Refused> {
        let parent = Rc::clone(&self.parent.borrow());
        let made = parent.fork().map_err(|error| Refused::NoWorker(error.to_string()))?;
        increment(&self.counts.started);
        self.alive.set(self.alive.get() + 1);
        let Made { link, desk, pid } = made;
        let (desk, generation) = (Rc::new(desk), self.generation.get());
        self.give_back(Worker { link, desk, pid, generation, parent });
        Ok(())
    }

    /// A worker that has ended a call: there may be another behind it, or in the queue.
    pub(crate) fn give_back(self: &Rc<Self>, mut worker: Worker) {
        while let Some(Ahead { number, waiting }) = worker.desk.pop() {
            if waiting.taker.is_closed() && is_later(number, self.take_back(&worker.desk)) {
                continue;
            }
            worker.desk.slow.set(false);
            let lease = Lease::new(worker, self, Call::Sent(number, waiting.message));
            // Of who has gone meanwhile it comes back at once, which stops the call.
            let _ = waiting.taker.send(lease);
            return;
        }
        self.forget(&worker.desk);
        if worker.generation != self.generation.get() || self.closed.get() {
            self.discard(worker, false);
            if !self.closed.get() {
                self.warm_up();
            }
            return;
        }
        while let Some(Waiting { since, message, taker }) = self.next_waiting() {
            if taker.is_closed() {
                continue;
            }
            let Some(message) = message else {
                // Whoever waits may go before it is taken: then it comes back as the lease is dropped.
                match taker.send(Lease::new(worker, self, Call::None)) {
                    Ok(()) => return,
                    Err(mut refused) => match refused.worker.take() {
                        Some(returned) => worker = returned,
                        None => return,
                    },
                }
                continue;
            };
            let desk = Rc::clone(&worker.desk);
            match self.hand_over(worker, message) {
                Ok(lease) => {
                    let _ = taker.send(lease);
                    self.fill(&desk);
                }
                Err(message) => {
                    let message = Some(message);
                    self.queue.borrow_mut().push_front(Waiting { since, message, taker });
                }
            }
            return;
        }
        self.idle.borrow_mut().push_back(worker);
        if self.idle.borrow().len() > self.warm && !self.thinning.replace(true) {
            self.thin_out();
        }
    }

    /// Sends those who wait ahead to a worker that has begun.
    fn fill(&self, desk: &Desk) {
        while self.has_room(desk.ahead()) {
            let mut queue = self.queue.borrow_mut();
            if queue.front().is_none_or(|first| first.message.is_none()) {
                return;
            }
            let Some(waiting) = queue.pop_front() else { return };
            if waiting.taker.is_closed() {
                continue;
            }
            if let Err(waiting) = send_ahead(desk, waiting) {
                queue.push_front(waiting);
                return;
            }
        }
    }

    fn next_waiting(&self) -> Option<Waiting> {
        self.queue.borrow_mut().pop_front()
    }

    /// Nobody is sent to this worker any more while it is at work.
    fn forget(&self, desk: &Rc<Desk>) {
        self.busy.borrow_mut().retain(|busy| !Rc::ptr_eq(busy, desk));
    }

    /// Kills a worker, in whose place another may come. How it ends is heard if it was there.
    pub(crate) fn lose(self: &Rc<Self>, worker: Worker) -> Option<oneshot::Receiver<End>> {
        increment(&self.counts.lost);
        self.take_back(&worker.desk);
        // An honest one has not begun any of those.
        while worker.desk.pop().is_some() {}
        let end = self.discard(worker, true);
        self.warm_up();
        end
    }

    /// After a while, ends the workers that were not needed since.
    fn thin_out(self: &Rc<Self>) {
        let pool = Rc::downgrade(self);
        spawn_local(async move {
            let mut least = usize::MAX;
            for _ in 0..LOOKS {
                tokio::time::sleep(IDLE / LOOKS).await;
                let Some(pool) = Weak::upgrade(&pool) else { return };
                least = least.min(pool.idle.borrow().len());
            }
            let Some(pool) = Weak::upgrade(&pool) else { return };
            for _ in pool.warm..pool.alive.get().min(pool.warm + least) {
                let idle = pool.idle.borrow_mut().pop_front();
                let Some(worker) = idle else { break };
                pool.discard(worker, false);
            }
            pool.thinning.set(false);
            if pool.idle.borrow().len() > pool.warm && !pool.thinning.replace(true) {
                pool.thin_out();
            }
        });
    }

    /// Has a worker end: it is killed, or sees that nobody will call any more.
    fn discard(&self, worker: Worker, kill: bool) -> Option<oneshot::Receiver<End>> {
        self.forget(&worker.desk);
        self.alive.set(self.alive.get() - 1);
        let mut fate = worker.pid.borrow_mut();
        match &*fate {
            Fate::Known(pid) => {
                let pid = *pid;
                drop(fate);
                worker.parent.end(pid, kill)
            }
            Fate::Coming => {
                // Without a call it ends by itself; the answer to the fork has it reaped.
                let (sender, receiver) = oneshot::channel();
                *fate = Fate::Doomed(sender);
                Some(receiver)
            }
            Fate::Doomed(_) | Fate::Never => None,
        }
    }

    /// Hears what the parent says.
    fn listen(self: &Rc<Self>, parent: Rc<Parent>) {
        let pool = Rc::downgrade(self);
        spawn_local(async move {
            let compiled = |result| match (result, pool.upgrade()) {
                (Ok(()), Some(pool)) => {
                    log::info!("the module is compiled now");
                    pool.retire();
                }
                (Err(reason), _) => {
                    journal::warning(format_args!(
                        "interpreting, compiled code was not usable: {reason}"
                    ));
                }
                (Ok(()), None) => {}
            };
            parent.listen(compiled).await;
        });
    }
}

/// Sends a call to a worker that is at another one. Gives it back if the worker has gone, or the call
/// is none that can be sent so.
fn send_ahead(desk: &Desk, mut waiting: Waiting) -> Result<(), Waiting> {
    let sent = waiting.message.as_mut().and_then(|message| desk.send_small(message).ok());
    match sent {
        Some(number) => {
            desk.push(Ahead { number, waiting });
            Ok(())
        }
        None => Err(waiting),
    }
}

fn increment(count: &Cell<u64>) {
    count.set(count.get() + 1);
}
