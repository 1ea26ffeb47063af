//! The ends of processes. A container's init becomes a child of the gateway, a subreaper, as soon as
//! the fork that has created it ends; so do processes that nobody waits for.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;

use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How many ends are remembered of processes that nobody has asked for yet: a container may have
/// ended before the answer is read that says which process it is.
const EARLY: usize = 64;

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    fn of(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (_, Some(signal)) => Self::Signal(signal),
            (status, None) => Self::Status(status.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "it has ended with status {status}"),
            Self::Signal(libc::SIGKILL) => {
                write!(f, "it was killed (signal 9), by somebody or for want of memory")
            }
            Self::Signal(signal) => write!(f, "it was ended by signal {signal}"),
        }
    }
}

/// Whoever waits for the end of a process.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: RefCell<HashMap<i32, oneshot::Sender<Exit>>>,
    early: RefCell<VecDeque<(i32, Exit)>>,
}

impl Reaper {
    /// Tells of the end of a process that is a child of ours, or will be.
    pub fn watch(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (tell, told) = oneshot::channel();
        let mut early = self.early.borrow_mut();
        match early.iter().position(|(ended, _)| *ended == pid) {
            Some(at) => {
                if let Some((_, exit)) = early.remove(at) {
                    let _ = tell.send(exit);
                }
            }
            None => drop(self.waiting.borrow_mut().insert(pid, tell)),
        }
        told
    }

    /// Reaps for as long as the gateway lives.
    ///
    /// # Errors
    /// There can be no handler of SIGCHLD.
    pub fn start(self: &Rc<Self>) -> std::io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        let reaper = Rc::clone(self);
        tokio::task::spawn_local(async move {
            loop {
                reaper.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let exit = Exit::of(status);
            log::debug!("process {pid}: {exit}");
            match self.waiting.borrow_mut().remove(&pid) {
                Some(tell) => drop(tell.send(exit)),
                None => {
                    let mut early = self.early.borrow_mut();
                    early.push_back((pid, exit));
                    if early.len() > EARLY {
                        early.pop_front();
                    }
                }
            }
        }
    }
}
