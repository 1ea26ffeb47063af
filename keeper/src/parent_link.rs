//! The server's side of what connects it with the workers' parent.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::board::Board;
use crate::desk::Desk;
use crate::journal;
use crate::parent::{self, Ask, End, Ends, Started, Tell};
use crate::sys;
use crate::worker_link::Link;

/// The parent, and who waits for its answers.
#[derive(Debug)]
pub struct Parent {
    socket: AsyncFd<OwnedFd>,
    /// Its pid.
    pub pid: Pid,
    /// What it shares with its workers.
    pub board: Rc<Board>,
    forks: RefCell<VecDeque<oneshot::Sender<Result<i32, i32>>>>,
    ends: RefCell<HashMap<i32, oneshot::Sender<End>>>,
}

/// A worker that was asked for.
#[derive(Debug)]
pub struct Made {
    /// What it says.
    pub link: Link,
    /// What it has to do.
    pub desk: Desk,
    /// Who it is.
    pub pid: PidCell,
}

/// Known once the parent has said it.
pub type PidCell = Rc<RefCell<Fate>>;

/// What becomes of a worker.
#[derive(Debug)]
pub enum Fate {
    /// It was asked for.
    Coming,
    /// To be killed as soon as it is known; somebody may wait for how it ends.
    Doomed(oneshot::Sender<End>),
    /// It is there.
    Known(i32),
    /// It could not be made.
    Never,
}

impl Parent {
    /// That of the server's.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn new(started: Started) -> io::Result<Rc<Self>> {
        let Started { socket, pid, board } = started;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Rc::new(Parent {
            socket: sys::watch(socket, Interest::READABLE)?,
            pid,
            board,
            forks: RefCell::default(),
            ends: RefCell::default(),
        }))
    }

    /// Asks for a worker, which is as good as there: calls wait in its socket.
    ///
    /// # Errors
    /// The parent has died, or descriptors are short.
    pub fn fork(self: &Rc<Self>) -> io::Result<Made> {
        let ends = Ends::new()?;
        let taken = || io::Error::other("every place is taken");
        let slot = self.board.slot().ok_or_else(taken)?;
        let link = Link::new(ends.answers, ends.output)?;
        let packet = parent::encode(Ask::Fork(slot.index))?;
        crate::call::send(&self.socket, &packet, &ends.theirs.each_ref().map(AsFd::as_fd))?;
        let (sender, receiver) = oneshot::channel();
        self.forks.borrow_mut().push_back(sender);
        let pid: PidCell = Rc::new(RefCell::new(Fate::Coming));
        let (known, parent) = (Rc::clone(&pid), Rc::clone(self));
        spawn_local(async move {
            let Ok(forked) = receiver.await else { return };
            let before = std::mem::replace(&mut *known.borrow_mut(), Fate::Never);
            match forked {
                Ok(pid) => {
                    *known.borrow_mut() = Fate::Known(pid);
                    if let Fate::Doomed(waiting) = before
                        && let Some(end) = parent.end(pid, true)
                        && let Ok(end) = end.await
                    {
                        let _ = waiting.send(end);
                    }
                }
                // Whoever has called it finds its socket closed.
                Err(errno) => {
                    journal::error(format_args!(
                        "fork a worker: {}",
                        io::Error::from_raw_os_error(errno)
                    ));
                }
            }
        });
        Ok(Made { link, desk: Desk::new(ends.calls, slot), pid })
    }

    /// Has a worker killed, if need be, and reaped. Only the parent knows that its pid is its own
    /// still, and without the parent there is no worker.
    pub fn end(&self, pid: i32, kill: bool) -> Option<oneshot::Receiver<End>> {
        let packet = parent::encode(if kill { Ask::Kill(pid) } else { Ask::Reap(pid) }).ok()?;
        let (sender, receiver) = oneshot::channel();
        self.ends.borrow_mut().insert(pid, sender);
        if let Err(errno) = crate::call::send(&self.socket, &packet, &[]) {
            // It has too much to do, but is there, and has not reaped it.
            if let (true, Errno::AGAIN, Some(pid)) = (kill, errno, Pid::from_raw(pid)) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            journal::warning(format_args!("reap worker {pid}: {errno}"));
            self.ends.borrow_mut().remove(&pid);
            return None;
        }
        Some(receiver)
    }

    /// Hands the module's compiled code on: later workers run it.
    ///
    /// # Errors
    /// The parent has died.
    pub fn give_compiled(&self, code: &OwnedFd) -> io::Result<()> {
        let packet = parent::encode(Ask::Compiled)?;
        crate::call::send(&self.socket, &packet, &[code.as_fd()])?;
        Ok(())
    }

    /// Hears what the parent says until it has died; what that is about its module goes to
    /// `compiled`.
    pub async fn listen(&self, compiled: impl Fn(Result<(), String>)) {
        loop {
            match self.hear().await {
                Ok(Tell::Forked(result)) => {
                    let waiting = self.forks.borrow_mut().pop_front();
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(result);
                    }
                }
                Ok(Tell::Ended(pid, end)) => {
                    let waiting = self.ends.borrow_mut().remove(&pid);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(end);
                    }
                }
                Ok(Tell::Compiled(result)) => compiled(result),
                // Its end is seen as that of a child, see the server. It will answer nobody.
                Err(_) => {
                    self.forks.take();
                    self.ends.take();
                    return;
                }
            }
        }
    }

    async fn hear(&self) -> io::Result<Tell> {
        let mut packet = [0; parent::PACKET];
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| {
                let flags = rustix::net::RecvFlags::empty();
                Ok(rustix::net::recv(socket.get_ref(), &mut packet[..], flags)?.0)
            });
            match received {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(count)) => return parent::decode(&packet[..count]),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}
