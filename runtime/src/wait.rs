//! `run` and `exec` in the foreground: signals are passed on to the process, its exit status back.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use crate::error::{Error, Step};
use crate::sys;

/// A child to [`wait`] for: a container's init, or an exec'd process.
pub trait Child {
    /// Its pid.
    fn pid(&self) -> i32;

    /// Its pidfd.
    fn pidfd(&self) -> BorrowedFd<'_>;

    /// When it has ended and is not yet reaped: says why, if it has not executed its program.
    ///
    /// # Errors
    /// The program could not be executed.
    fn confirm_ended(&self) -> Result<(), Error>;
}

/// Blocks all signals, so that [`wait`] gets each. Called before the container exists, lest one
/// be lost.
pub fn block_signals() {
    sys::block_signals();
}

/// Makes SIGTERM, SIGINT and SIGHUP undo a container that is being created, rather than leave it
/// half made. Called before it exists, by what does not [`wait`] for it.
pub fn catch_interrupts() {
    sys::catch_interrupts();
}

/// Waits for the process, our child, to end and returns its exit status, 128 + n for signal n. Every
/// signal that this process gets meanwhile is passed on to it; on SIGWINCH `resized` is called
/// instead.
///
/// # Errors
/// The workload could not be executed ([`crate::create::Confirm::AtEnd`]); those of
/// sigwaitinfo(2) and waitid(2).
pub fn wait(child: &impl Child, mut resized: impl FnMut()) -> Result<i32, Error> {
    loop {
        match sys::wait_signal().step(|| "wait for the process".to_owned())? {
            libc::SIGCHLD => {
                if let Some(status) = reap(child)? {
                    return Ok(status);
                }
            }
            libc::SIGWINCH => resized(),
            // These are about this process, not for the child.
            libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU => {}
            number => match sys::pidfd_send_signal(child.pidfd(), number) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => log::warn!("pass signal {number} on: {errno}"),
            },
        }
    }
}

/// Its status if it has ended. Others that have come to us, a subreaper, are reaped, too: what
/// is not would count against the container's pids limit.
fn reap(child: &impl Child) -> Result<Option<i32>, Error> {
    let id = WaitId::PidFd(child.pidfd());
    let step = || "wait for the process".to_owned();
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(id.clone(), ended | WaitIdOptions::NOWAIT).step(step)?;
    if status.is_some() {
        child.confirm_ended()?;
        rustix::process::waitid(id, ended).step(step)?;
    }
    if status.is_none() {
        reap_others(child.pid());
    }
    Ok(status.and_then(|status| {
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        status.exit_status().or(signal)
    }))
}

fn reap_others(child: i32) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) {
        // The child's end is looked at first, next time.
        if pid.as_raw() == child || waitid(Id::Pid(pid), WaitPidFlag::WEXITED).is_err() {
            return;
        }
    }
}
