//! A new network namespace has a loopback interface that is down.

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{Error, Step};
use crate::sys;

/// Brings `lo` up, as runc and crun do; the rest of the network is CNI's or a hook's.
pub fn loopback_up() -> Result<(), Error> {
    use std::os::fd::AsFd;
    let step = || "bring the loopback interface up".to_owned();
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
    sys::interface_up(socket.step(step)?.as_fd(), c"lo").step(step)
}
