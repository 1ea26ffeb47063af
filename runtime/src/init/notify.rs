//! SCMP_ACT_NOTIFY: installs a filter with a listener and hands the listener over.
//!
//! From the filter on, each call of this process may be one that waits for an agent who does not
//! have the listener yet: a deadlock; or one that the filter refuses. So what hands it over is a
//! thread of its own, which was made before the filter and is not under it, and this thread waits
//! without a system call. Nothing but capset(2) and execve(2) is made under the filter, as
//! without a listener. execve(2) ends the thread.
//!
//! runc, which writes the descriptor's number from under the filter, therefore refuses to be
//! notified of write(2). kiln refuses that, too, because callers rely on it, but need not.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;

use crate::channel::{Channel, ToRuntime};
use crate::error::{Error, Failure, Step};
use crate::seccomp::Filter;
use crate::sys;

/// How often the thread looks whether the filter is installed; that takes some 100 us.
const INTERVAL: Duration = Duration::from_micros(50);
/// Enough for one message.
const STACK_BYTES: usize = 256 << 10;

const PENDING: u8 = 0;
const SENT: u8 = 1;
const FAILED: u8 = 2;

/// What both threads see. `try_lock` alone is used on it: it makes no system call.
#[derive(Default)]
struct Shared {
    listener: Mutex<Option<OwnedFd>>,
    outcome: AtomicU8,
}

/// Installs `filter` for this thread and sends its listener over `channel`
/// ([`ToRuntime::Listener`]). Returns when it is on its way; makes no system call after the
/// filter's.
///
/// # Errors
/// The thread cannot be made (pids limit, memory limit), or the filter is refused.
pub fn install(filter: &Filter, channel: &Channel) -> Result<(), Error> {
    let step = || "hand over the seccomp listener".to_owned();
    let shared = Arc::new(Shared::default());
    let channel = channel.as_fd().try_clone_to_owned().map(Channel::from_socket).step(step)?;
    let theirs = Arc::clone(&shared);
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || hand_over(&theirs, &channel))
        .step(step)?;
    let listener = sys::seccomp_set_filter(filter.program(), filter.flags())
        .step(|| "install the seccomp filter".to_owned())?;
    // From here on not one system call, and none by a destructor either.
    let mut listener = std::mem::ManuallyDrop::new(listener);
    while listener.is_some() {
        if let Ok(mut slot) = shared.listener.try_lock() {
            *slot = listener.take();
        }
    }
    loop {
        match shared.outcome.load(Ordering::Acquire) {
            PENDING => std::hint::spin_loop(),
            SENT => break,
            _ => return Err(Failure::new(step(), Errno::PIPE).into()),
        }
    }
    std::mem::forget(shared);
    Ok(())
}

/// The thread: waits for the listener, sends it, and lets go of it, so that the agent's end is
/// the only one.
fn hand_over(shared: &Shared, channel: &Channel) {
    let listener = loop {
        std::thread::sleep(INTERVAL);
        if let Ok(Some(listener)) = shared.listener.try_lock().map(|mut slot| slot.take()) {
            break listener;
        }
    };
    let outcome = match channel.send_with(&ToRuntime::Listener, &[listener]) {
        Ok(()) => SENT,
        Err(_) => FAILED,
    };
    shared.outcome.store(outcome, Ordering::Release);
}
