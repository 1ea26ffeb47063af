//! sd_notify(3): a container tells the service manager that it is ready.
//!
//! With NOTIFY_SOCKET the directory `ROOT/ID/notify` is mounted on [`IN_CONTAINER`], read-only. The
//! runtime listens in it from before the workload begins until that is ready, and then tells the
//! manager so in its own words: of what a container says nothing is passed on, and of that one word
//! only that it was said. For the manager the sender is the runtime, which it trusts.
//!
//! As with runc, whoever starts the workload listens: `run`, or `start` if that has a NOTIFY_SOCKET
//! as well. What comes later (STATUS=, WATCHDOG=1) nobody hears; conmon, which lives on, listens by
//! itself.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::Mount;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::time::Timespec;

use crate::channel::send_descriptor;
use crate::error::{Error, Step, errno_text};
use crate::mounts::MountPlan;
use crate::plan::Plan;
use crate::state::ContainerDir;

/// Where the container finds the socket's directory, as runc has it.
const IN_CONTAINER: &str = "/run/notify";
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify/notify.sock";
const VARIABLE: &str = "NOTIFY_SOCKET";
/// A state is a few words; the rest of what is longer is lost.
const MAX_MESSAGE: usize = 4096;
/// How long the manager may take to read what it was told, as systemd-notify(1) has it.
const BARRIER: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The service manager's socket.
#[derive(Clone, Debug)]
pub struct Manager(SocketAddrUnix);

impl Manager {
    /// What NOTIFY_SOCKET names: a path, or `@` and an abstract name. Another form is none, with a
    /// warning (sd_notify(3) knows AF_VSOCK as well).
    pub fn from_environment() -> Option<Self> {
        let value = std::env::var_os(VARIABLE).filter(|value| !value.is_empty())?;
        let manager = Self::parse(&value);
        if manager.is_none() {
            log::warn!("{VARIABLE}={} is not used", value.display());
        }
        manager
    }

    fn parse(value: &OsStr) -> Option<Self> {
        let address = match value.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
            [b'/', ..] => SocketAddrUnix::new(value),
            _ => return None,
        };
        address.ok().map(Self)
    }
}

/// Makes the directory, has it mounted in the container, and tells the workload.
///
/// # Errors
/// It cannot be made.
pub(crate) fn prepare(dir: &ContainerDir, plan: &mut Plan) -> Result<(), Error> {
    let step = || "make the directory for NOTIFY_SOCKET".to_owned();
    rustix::fs::mkdirat(dir, DIRECTORY, Mode::RWXU).step(step)?;
    // Whatever the umask: the container's user has to get through.
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::chmodat(dir, DIRECTORY, mode, AtFlags::empty()).step(step)?;
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned);
    let mut mount = Mount::default();
    mount.set_destination(IN_CONTAINER.into()).set_source(Some(dir.short_path(DIRECTORY)));
    mount.set_typ(None).set_options(Some(options.to_vec()));
    let mut mount = MountPlan::new(plan.mounts.len(), &mount)?;
    if !plan.late {
        // Root of the container's user namespace could not get at it.
        mount.open_source()?;
    }
    plan.mounts.push(mount);
    let name = format!("{VARIABLE}=");
    plan.process.env.retain(|entry| !entry.starts_with(&name));
    plan.process.env.push(format!("{name}{IN_CONTAINER}/notify.sock"));
    Ok(())
}

/// Listens for the container, on behalf of the service manager.
#[derive(Debug)]
pub struct Ready {
    socket: OwnedFd,
    manager: Manager,
}

impl Ready {
    /// Listens in the container's directory for what is to be told to `manager`. None for a
    /// container that was created without one. To be called with the container locked.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn listen(dir: &ContainerDir, manager: Manager) -> Result<Option<Self>, Error> {
        let step = || "listen on the container's NOTIFY_SOCKET".to_owned();
        match rustix::fs::unlinkat(dir, SOCKET, AtFlags::empty()) {
            // Of a `start` that was killed before it had started anything.
            Ok(()) => {}
            Err(Errno::NOENT) if !has_directory(dir) => return Ok(None),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).step(step),
        }
        let socket = datagram().step(step)?;
        let path = SocketAddrUnix::new(dir.short_path(SOCKET)).step(step)?;
        rustix::net::bind(&socket, &path).step(step)?;
        // Any user of the container's may be the one who says it.
        let mode = Mode::from_raw_mode(0o777);
        rustix::fs::chmodat(dir, SOCKET, mode, AtFlags::empty()).step(step)?;
        Ok(Some(Self { socket, manager }))
    }

    /// Waits until the container is ready, or has ended, and tells the manager, with `main` as the
    /// service's main process. A manager that does not hear it is a warning: the container runs.
    ///
    /// If `leaving`, waits for the manager to have read it: it cannot tell any more who a sender
    /// was that has ended.
    pub fn pass_on(&self, init: BorrowedFd<'_>, main: i32, leaving: bool) {
        match self
            .wait(init)
            .and_then(|ready| if ready { self.tell(main, leaving) } else { Ok(()) })
        {
            Ok(()) => {}
            Err(errno) => log::warn!("{VARIABLE}: {}", errno_text(errno.raw_os_error())),
        }
    }

    /// Whether the container has become ready; else it has ended.
    fn wait(&self, init: BorrowedFd<'_>) -> Result<bool, Errno> {
        loop {
            let mut polled =
                [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&init, PollFlags::IN)];
            match rustix::event::poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let [said, ended] = polled.map(|polled| !polled.revents().is_empty());
            // One that says it and ends was ready.
            if said && self.says_ready()? {
                return Ok(true);
            }
            if ended && !said {
                return Ok(false);
            }
        }
    }

    /// Descriptors that come with a message are not taken: the kernel closes them.
    fn says_ready(&self) -> Result<bool, Errno> {
        let mut buffer = [0; MAX_MESSAGE];
        match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => Ok(is_ready(&buffer[..length])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn tell(&self, main: i32, leaving: bool) -> Result<(), Errno> {
        let socket = datagram()?;
        rustix::net::connect(&socket, &self.manager.0)?;
        let message = format!("MAINPID={main}\nREADY=1\n");
        rustix::net::send(&socket, message.as_bytes(), SendFlags::NOSIGNAL)?;
        if leaving {
            // sd_notify_barrier(3)
            let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            send_descriptor(&socket, b"BARRIER=1", theirs)?;
            let mut closed = [PollFd::new(&ours, PollFlags::empty())];
            rustix::event::poll(&mut closed, Some(&BARRIER))?;
        }
        Ok(())
    }
}

fn has_directory(dir: &ContainerDir) -> bool {
    rustix::fs::statat(dir, DIRECTORY, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn datagram() -> Result<OwnedFd, Errno> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

fn is_ready(message: &[u8]) -> bool {
    message.split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_line() {
        assert!(is_ready(b"READY=1") && is_ready(b"STATUS=up\nREADY=1\n"));
        assert!(!is_ready(b"") && !is_ready(b"READY=0\nSTATUS=READY=1") && !is_ready(b"READY=11"));
    }

    #[test]
    fn managers_are_paths_or_names() {
        let parse = |value: &str| Manager::parse(OsStr::new(value));
        assert!(parse("/run/systemd/notify").is_some() && parse("@/org/manager").is_some());
        for bad in ["run/notify", "vsock:2:1", "", &format!("/{}", "x".repeat(200))] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
