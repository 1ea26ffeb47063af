//! What has no safe form: waiting for a descriptor that tokio does not know the kind of.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that is only waited for.
struct Waiting<'a, T: AsFd>(&'a T);

impl<T: AsFd> AsRawFd for Waiting<'_, T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits until a read of `file`, a channel or a start that is on its way, would not block. Changes
/// nothing of it.
///
/// # Errors
/// Those of epoll_ctl(2).
pub async fn readable(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: AsFd gives an open descriptor, which `file`, borrowed until after the AsyncFd is
    // dropped, keeps open; types of this workspace own one and give always the same.
    let waiting = unsafe { AsyncFd::register_with_interest(Waiting(file), Interest::READABLE) }?;
    waiting.readable().await.map(drop)
}
