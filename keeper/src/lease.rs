//! A worker for one request.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use crate::board::is_later;
use crate::guest::Ended;
use crate::parent::End;
use crate::pool::{Pool, Worker};
use crate::worker_link::Said;

/// How often a call is given to another worker because its own has died before it began.
const TRIES: u32 = 3;

/// A worker for one request. Dropped before the call has ended, it kills the worker.
pub struct Lease {
    pub(crate) worker: Option<Worker>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) call: Call,
    pub(crate) tries: u32,
}

/// How far the call has come.
#[derive(Debug)]
pub(crate) enum Call {
    /// There is none yet.
    None,
    /// Some of it was sent.
    Sending,
    /// All of it was sent. The message of a small one is kept, in case that it never begins.
    Sent(u32, Option<Vec<u8>>),
    /// It has ended, and all that it has said was heard.
    Ended,
}

/// What comes of a call.
#[derive(Debug)]
pub enum Event {
    /// Of the guest's standard output.
    Output(bytes::Bytes),
    /// The call has ended; there will be no more output.
    Ended(Ended),
    /// The worker has died, for this reason.
    Died(String),
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("call", &self.call).finish_non_exhaustive()
    }
}

impl Lease {
    pub(crate) fn new(worker: Worker, pool: &Rc<Pool>, call: Call) -> Self {
        Lease { worker: Some(worker), pool: Rc::clone(pool), call, tries: 0 }
    }

    /// Hands the call over, with its `streams`, stdin and stderr, as it says.
    ///
    /// # Errors
    /// The worker is of no use.
    pub async fn send(&mut self, message: &mut [u8], streams: &[OwnedFd]) -> io::Result<()> {
        let streams: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
        let Some(worker) = &self.worker else { return Err(io::ErrorKind::NotConnected.into()) };
        self.call = Call::Sending;
        self.call = Call::Sent(worker.desk.send(message, &streams).await?, None);
        Ok(())
    }

    /// What comes next of the call.
    pub async fn next(&mut self) -> Event {
        loop {
            let (Some(worker), Call::Sent(number, message)) = (&mut self.worker, &mut self.call)
            else {
                return Event::Died("it has ended".to_owned());
            };
            match worker.link.next(*number).await {
                Ok(Said::Output(bytes)) => return Event::Output(bytes),
                Ok(Said::Ended(ended, spent)) => {
                    self.call = Call::Ended;
                    self.pool.spent(spent);
                    return Event::Ended(ended);
                }
                Ok(Said::Slow) => {
                    worker.desk.slow.set(true);
                    // There may be calls behind it, which have better things to do than to wait.
                    if let Some(message) = message {
                        let begun = self.pool.take_back(&worker.desk);
                        if is_later(begun, *number) {
                            // It has ended: that is about to be heard.
                            continue;
                        }
                        if is_later(*number, begun) {
                            match worker.desk.send_small(message) {
                                Ok(again) => *number = again,
                                Err(error) => return self.bury(&error.to_string()).await,
                            }
                        }
                    }
                    if let Err(error) = worker.link.watch() {
                        return self.bury(&error.to_string()).await;
                    }
                }
                Ok(Said::Gone) => {
                    let never_begun = is_later(*number, self.pool.take_back(&worker.desk));
                    match (message.take().filter(|_| never_begun), self.worker.take()) {
                        (Some(message), Some(worker)) if self.tries < TRIES => {
                            self.pool.lose(worker);
                            match self.pool.call(message).await {
                                Ok(mut lease) => {
                                    lease.tries = self.tries + 1;
                                    *self = lease;
                                }
                                Err(refused) => return Event::Died(refused.to_string()),
                            }
                        }
                        (_, worker) => {
                            self.worker = worker;
                            return self.bury("it ended").await;
                        }
                    }
                }
                Err(error) => return self.bury(&error.to_string()).await,
            }
        }
    }

    async fn bury(&mut self, reason: &str) -> Event {
        let Some(worker) = self.worker.take() else { return Event::Died(reason.to_owned()) };
        let end = match self.pool.lose(worker) {
            Some(end) => end.await.ok(),
            None => None,
        };
        Event::Died(match end {
            // A compiled guest without end in its calls meets the end of the stack.
            Some(End::Signal(libc::SIGSEGV)) => "call stack exhausted".to_owned(),
            Some(End::Signal(libc::SIGKILL)) => {
                "killed, as whoever takes more memory than the container may have is".to_owned()
            }
            // What an interpreter does, too, when it may have no more memory for its stack.
            Some(End::Signal(libc::SIGABRT)) => {
                "aborted, out of memory or with the call stack exhausted".to_owned()
            }
            Some(End::Signal(signal)) => format!("ended by signal {signal}"),
            Some(End::Exit(_)) | None => reason.to_owned(),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        match self.call {
            Call::None | Call::Ended => self.pool.give_back(worker),
            Call::Sent(number, _) if worker.link.has_ended(number) => self.pool.give_back(worker),
            // If a later one has begun, this one has ended: the next in line is who hears that one.
            Call::Sent(number, _)
                if is_later(self.pool.take_back(&worker.desk), number)
                    && worker.desk.ahead() > 0 =>
            {
                self.pool.give_back(worker);
            }
            Call::Sent(..) | Call::Sending => {
                self.pool.lose(worker);
            }
        }
    }
}
