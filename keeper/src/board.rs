//! Which calls a worker has begun: a word for each worker, in memory that it shares with the server.
//!
//! A call may be sent to a worker that still makes another one: it finds the next without being
//! woken, and without the server, which has other things to do. Should that other one take long, the
//! server takes back what has not begun. Both write the same word, so that a call is either begun or
//! taken back, and who kills a worker knows what it kills.
//!
//! Each worker has a page of its own, and none of the others': one that a guest has taken over can
//! confuse the server about its own calls, and about nobody else's.
//!
//! A worker's calls are numbered, and the numbers wrap around, as TCP's do (RFC 9293, 3.4).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::Shared;

/// The words of all workers, and who may have which.
#[derive(Debug)]
pub struct Board {
    pages: Shared,
    /// Those that somebody has.
    taken: RefCell<Vec<bool>>,
    crowded: Cell<bool>,
}

impl Board {
    /// For so many workers at a time. Whoever is forked from now on shares it.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn new(workers: usize) -> io::Result<Self> {
        let (taken, crowded) = (RefCell::new(vec![false; workers]), Cell::new(false));
        Ok(Board { pages: Shared::new(workers)?, taken, crowded })
    }

    /// Whether there are so many calls that workers are not to interrupt the server when they are
    /// woken: it has more for them.
    pub fn set_crowded(&self, crowded: bool) {
        self.crowded.set(crowded);
        let taken = self.taken.borrow();
        let indices = (0..).zip(taken.iter()).filter_map(|(index, taken)| taken.then_some(index));
        for index in indices {
            self.tell_crowded(index);
        }
    }

    /// What was said last; at first, that there are not.
    pub fn is_crowded(&self) -> bool {
        self.crowded.get()
    }

    fn tell_crowded(&self, index: u32) {
        if let Some(turn) = self.turn(index) {
            turn.crowded.store(self.crowded.get().into(), Ordering::Relaxed);
        }
    }

    /// A worker's word; nothing if there is none left.
    pub fn slot(self: &Rc<Self>) -> Option<Slot> {
        let free = self.taken.borrow().iter().position(|taken| !taken)?;
        let index = u32::try_from(free).ok()?;
        let word = self.turn(index)?.word;
        // Later than any of whoever has had it before.
        let Word { first, begun } = Word::of(word.load(Ordering::SeqCst));
        let before = first.wrapping_sub(1);
        let last = if is_later(begun, before) { begun } else { before };
        word.store(Word::after(last).bits(), Ordering::SeqCst);
        self.tell_crowded(index);
        self.taken.borrow_mut()[free] = true;
        let [marked, begun] = [last; 2].map(Cell::new);
        Some(Slot { board: Rc::clone(self), index, marked, begun })
    }

    /// The worker's side of a slot; nothing if there is none of that index.
    pub fn turn(&self, index: u32) -> Option<Turn<'_>> {
        match self.pages.words(index as usize)? {
            [word, crowded, ..] => Some(Turn { word, crowded }),
            _ => None,
        }
    }

    /// Lets go of all but one worker's, for that worker.
    pub fn keep(&mut self, index: u32) {
        self.pages.keep(index as usize);
    }
}

/// The server's side of a worker's word, which another worker may have when this is dropped.
#[derive(Debug)]
pub struct Slot {
    board: Rc<Board>,
    /// Which it is.
    pub index: u32,
    /// What was put there as begun when calls were taken back the last time.
    marked: Cell<u32>,
    /// What was begun then.
    begun: Cell<u32>,
}

impl Slot {
    /// The last call that is known to have begun; at first, the number before the first call's.
    pub fn begun(&self) -> u32 {
        self.begun.get()
    }

    /// Takes back every call up to `last` that has not begun; returns the last one that has.
    ///
    /// One step, whatever the worker does: to keep what it has begun would take a loop, in which it
    /// could hold the server.
    pub fn take_back(&self, last: u32) -> u32 {
        let Some(Turn { word, .. }) = self.board.turn(self.index) else { return self.begun.get() };
        let seen = Word::of(word.swap(Word::after(last).bits(), Ordering::SeqCst)).begun;
        // Calls up to the mark cannot begin any more: whoever says that one has is this very function.
        if seen != self.marked.replace(last) {
            self.begun.set(seen);
        }
        self.begun.get()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(taken) = self.board.taken.borrow_mut().get_mut(self.index as usize) {
            *taken = false;
        }
    }
}

/// The worker's side of its word.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    word: &'a AtomicU64,
    crowded: &'a AtomicU64,
}

impl Turn<'_> {
    /// Begins a call. False if it was taken back.
    pub fn begin(self, number: u32) -> bool {
        let begun = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |bits| {
            let Word { first, .. } = Word::of(bits);
            (!is_later(first, number)).then_some(Word { first, begun: number }.bits())
        });
        begun.is_ok()
    }

    /// See [`Board::set_crowded`].
    pub fn is_crowded(self) -> bool {
        self.crowded.load(Ordering::Relaxed) != 0
    }
}

/// Whether one number is a later call's than another.
pub fn is_later(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

#[derive(Clone, Copy, Debug)]
struct Word {
    /// The first call that may be begun.
    first: u32,
    /// The last one that was.
    begun: u32,
}

impl Word {
    /// Only later calls than `last` may be begun.
    fn after(last: u32) -> Self {
        Word { first: last.wrapping_add(1), begun: last }
    }

    fn of(bits: u64) -> Self {
        Word { first: (bits >> 32) as u32, begun: bits as u32 }
    }

    fn bits(self) -> u64 {
        u64::from(self.first) << 32 | u64::from(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_begun_or_taken_back() {
        let board = Rc::new(Board::new(2).unwrap());
        let (one, other) = (board.slot().unwrap(), board.slot().unwrap());
        let last = one.begun();
        assert!(board.slot().is_none() && board.turn(2).is_none());
        assert_ne!(one.index, other.index);
        let turn = board.turn(one.index).unwrap();
        let number = |after: u32| last.wrapping_add(after);
        assert!(turn.begin(number(1)) && turn.begin(number(2)));
        assert_eq!(one.take_back(number(5)), number(2));
        for after in 1..=5 {
            assert!(!turn.begin(number(after)), "{after}");
        }
        assert!(turn.begin(number(6)));
        assert!(is_later(number(3), other.take_back(number(1))), "it is another's");
        drop(one);
        let again = board.slot().unwrap();
        let later = again.begun();
        assert!(!turn.begin(number(6)) && !turn.begin(later), "that one had");
        assert_eq!(again.take_back(later.wrapping_add(1)), later);
    }

    #[test]
    fn numbers_wrap_around() {
        let board = Rc::new(Board::new(1).unwrap());
        let slot = board.slot().unwrap();
        let turn = board.turn(slot.index).unwrap();
        slot.take_back(u32::MAX - 1);
        assert!(turn.begin(u32::MAX) && turn.begin(0) && !turn.begin(u32::MAX - 1));
        assert_eq!(slot.take_back(3), 0);
        assert!(!turn.begin(3) && turn.begin(4));
        assert!(is_later(0, u32::MAX) && !is_later(u32::MAX, 0) && !is_later(7, 7));
    }

    #[test]
    fn a_worker_keeps_its_own() {
        for (index, others) in [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])] {
            let mut board = Board::new(3).unwrap();
            board.keep(index);
            assert!(board.turn(index).unwrap().begin(0));
            assert!(others.iter().all(|&other| board.turn(other).is_none()), "{index}");
        }
    }

    #[test]
    fn whoever_comes_later_hears_of_the_crowd() {
        let board = Rc::new(Board::new(2).unwrap());
        let crowded = |slot: &Slot| board.turn(slot.index).unwrap().is_crowded();
        let one = board.slot().unwrap();
        assert!(!crowded(&one));
        board.set_crowded(true);
        let other = board.slot().unwrap();
        assert!(crowded(&one) && crowded(&other));
        board.set_crowded(false);
        assert!(!crowded(&one) && !crowded(&other));
    }

    #[test]
    fn a_forked_process_shares_it() {
        let board = Rc::new(Board::new(1).unwrap());
        let slot = board.slot().unwrap();
        // What a child does between fork and its end is no more than a worker does.
        let crate::sys::Forked::Parent(child) = crate::sys::fork().unwrap() else {
            let begun = board.turn(slot.index).is_some_and(|turn| turn.begin(6));
            crate::sys::exit(i32::from(!begun));
        };
        let (_, status) =
            rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
                .unwrap()
                .unwrap();
        assert_eq!(status.exit_status(), Some(0));
        assert_eq!(slot.take_back(9), 6);
    }
}
