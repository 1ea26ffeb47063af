//! `run` in the foreground: passes signals on to init and its exit status back.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use crate::create::Container;
use crate::error::{Error, Step};
use crate::sys;

/// Blocks all signals, so that [`wait`] gets each. Called before the container exists, lest one
/// be lost.
pub fn block_signals() {
    sys::block_signals();
}

/// Waits for init, our child, to end and returns its exit status, 128 + n for signal n. Every
/// signal that this process gets meanwhile is passed on to init; on SIGWINCH `resized` is called
/// instead.
///
/// # Errors
/// The workload could not be executed ([`crate::create::Confirm::AtEnd`]); those of
/// sigwaitinfo(2) and waitid(2).
pub fn wait(container: &Container, mut resized: impl FnMut()) -> Result<i32, Error> {
    loop {
        match sys::wait_signal().step(|| "wait for the container".to_owned())? {
            libc::SIGCHLD => {
                if let Some(status) = reap(container)? {
                    return Ok(status);
                }
            }
            libc::SIGWINCH => resized(),
            // These are about this process, not for the container.
            libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU => {}
            number => match sys::pidfd_send_signal(container.pidfd().as_fd(), number) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => log::warn!("pass signal {number} on to init: {errno}"),
            },
        }
    }
}

/// Init's status if it has ended. Others that have come to us, a subreaper, are reaped, too: what
/// is not would count against the container's pids limit.
fn reap(container: &Container) -> Result<Option<i32>, Error> {
    let id = WaitId::PidFd(container.pidfd().as_fd());
    let step = || "wait for init".to_owned();
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(id.clone(), ended | WaitIdOptions::NOWAIT).step(step)?;
    if status.is_some() {
        container.confirm_ended()?;
        rustix::process::waitid(id, ended).step(step)?;
    }
    if status.is_none() {
        reap_others(container.pid());
    }
    Ok(status.and_then(|status| {
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        status.exit_status().or(signal)
    }))
}

fn reap_others(init: i32) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) {
        // Init's end is looked at first, next time.
        if pid.as_raw() == init || waitid(Id::Pid(pid), WaitPidFlag::WEXITED).is_err() {
            return;
        }
    }
}
