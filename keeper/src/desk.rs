//! What a worker has to do: the calls that were sent to it, and those of them that wait behind another.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::board::{Slot, is_later};
use crate::call::{Sent, send};
use crate::lease::Lease;
use crate::sys;

/// A message up to this length is sent as a whole or not at all: it is one buffer of the socket's.
pub const SMALL: usize = 4096;

/// A worker's socket, and what is in it.
#[derive(Debug)]
pub struct Desk {
    socket: OwnedFd,
    slot: Slot,
    /// The number of the last call that was sent.
    sent: Cell<u32>,
    ahead: RefCell<VecDeque<Ahead>>,
    /// Whether the call that is at work takes long: then nobody is to wait behind it.
    pub slow: Cell<bool>,
}

/// A request that waits for a worker.
#[derive(Debug)]
pub struct Waiting {
    /// Since then.
    pub since: Instant,
    /// Its call, if that is a small one that brings no descriptors.
    pub message: Option<Vec<u8>>,
    /// It has the worker then.
    pub taker: oneshot::Sender<Lease>,
}

/// One whose call the worker has already.
#[derive(Debug)]
pub struct Ahead {
    /// The call's.
    pub number: u32,
    /// Who waits.
    pub waiting: Waiting,
}

impl Desk {
    /// A worker's that has no calls yet.
    pub fn new(socket: OwnedFd, slot: Slot) -> Self {
        let (sent, ahead, slow) = (Cell::new(slot.begun()), RefCell::default(), Cell::new(false));
        Desk { socket, slot, sent, ahead, slow }
    }

    /// Sends a message that is [`SMALL`]; returns its number.
    ///
    /// # Errors
    /// The worker has gone, or has too much to do.
    pub fn send_small(&self, message: &mut [u8]) -> io::Result<u32> {
        let number = self.next_number(message);
        loop {
            return match send(&self.socket, message, &[]) {
                Ok(sent) if sent == message.len() => Ok(number),
                Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Sends all of a message, and the descriptors with its first byte; returns its number.
    ///
    /// # Errors
    /// The worker has gone.
    pub async fn send(
        &self,
        message: &mut [u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        let number = self.next_number(message);
        let (mut rest, mut descriptors) = (&*message, descriptors);
        // Nearly every call fits into the socket's buffer. To watch it would wake the server
        // whenever the worker has read one.
        let mut watched = None;
        while !rest.is_empty() {
            match send(&self.socket, rest, descriptors) {
                Ok(sent) => (rest, descriptors) = (&rest[sent..], &[]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let watched = match &mut watched {
                        Some(watched) => watched,
                        none => {
                            none.insert(sys::watch(self.socket.try_clone()?, Interest::WRITABLE)?)
                        }
                    };
                    watched.writable().await?.clear_ready();
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(number)
    }

    fn next_number(&self, message: &mut [u8]) -> u32 {
        let number = self.sent.get().wrapping_add(1);
        self.sent.set(number);
        Sent::set_number(message, number);
        number
    }

    /// How many wait behind the call that is at work.
    pub fn ahead(&self) -> usize {
        self.ahead.borrow().len()
    }

    /// One more; its call was sent.
    pub fn push(&self, ahead: Ahead) {
        self.ahead.borrow_mut().push_back(ahead);
    }

    /// The first of them.
    pub fn pop(&self) -> Option<Ahead> {
        self.ahead.borrow_mut().pop_front()
    }

    /// Takes back what has not begun: the number of the last call that has, and who has waited in
    /// vain, in order.
    pub fn take_back(&self) -> (u32, Vec<Waiting>) {
        let begun = self.slot.take_back(self.sent.get());
        let mut ahead = self.ahead.borrow_mut();
        let kept = ahead.iter().take_while(|ahead| !is_later(ahead.number, begun)).count();
        (begun, ahead.drain(kept..).map(|ahead| ahead.waiting).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::board::Board;
    use crate::call::Call;

    #[test]
    fn what_has_begun_is_known_however_often_it_is_asked() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let board = Rc::new(Board::new(1).unwrap());
        let slot = board.slot().unwrap();
        let (turn, last) = (board.turn(slot.index).unwrap(), slot.begun());
        let desk = Desk::new(ours.into(), slot);
        let send = || {
            let mut message = Sent::encode(Call::default()).unwrap();
            let number = desk.send_small(&mut message).unwrap();
            let (taker, _) = oneshot::channel();
            desk.push(Ahead {
                number,
                waiting: Waiting { since: Instant::now(), message: None, taker },
            });
            number
        };
        assert_eq!(desk.take_back().0, last, "nothing yet");
        let numbers = [send(), send(), send()];
        assert!(turn.begin(numbers[0]) && turn.begin(numbers[1]));
        let (begun, waiting) = desk.take_back();
        assert_eq!((begun, waiting.len(), desk.ahead()), (numbers[1], 1, 2));
        assert!(!turn.begin(numbers[2]));
        for _ in 0..2 {
            assert_eq!(desk.take_back().0, numbers[1]);
        }
        let next = send();
        assert_eq!(desk.take_back().0, numbers[1], "it has not begun");
        assert!(!turn.begin(next));
        let next = send();
        assert!(turn.begin(next));
        for _ in 0..2 {
            let (begun, waiting) = desk.take_back();
            assert_eq!((begun, waiting.len()), (next, 0));
        }
    }
}
