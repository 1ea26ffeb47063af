//! `kill`: runtime.md#kill.

use std::os::fd::AsFd;

use kiln_cgroups::Cgroup;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use rustix::time::Timespec;

use crate::error::{Error, Failure, Step};
use crate::process::Process;
use crate::state::{ContainerDir, State, Status};
use crate::sys;

/// How long a process may take to end after SIGKILL: it may have much memory to give back.
const END_LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// After this it is asked whether something keeps it from ending.
const PROMPT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Sends signal `number` to init, or to every process of the container.
///
/// # Errors
/// The container is neither created nor running (`container not running`).
pub fn kill(dir: &ContainerDir, number: i32, all: bool) -> Result<(), Error> {
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    if let (true, Some(paths)) = (all, &state.cgroup) {
        // Also after init has ended: with a shared pid namespace its children live on.
        let cgroup = Cgroup::open(paths)?;
        cgroup.signal(number)?;
        // A frozen process of cgroup v1 does not even end.
        return match number == libc::SIGKILL && dir.status(&state) == Status::Paused {
            true => Ok(cgroup.thaw()?),
            false => Ok(()),
        };
    }
    let status = dir.status(&state);
    if let (true, Some(init)) = (all && status != Status::Stopped, &state.init) {
        return signal_pid_namespace(init, number);
    }
    // Looked at before it ends.
    let shared = number == libc::SIGKILL && state.init.as_ref().is_some_and(shares_pid_namespace);
    let sent = match &state.init {
        Some(init) if status != Status::Stopped => init.signal(number)?,
        _ => false,
    };
    if !sent {
        return kill_orphans(&state, number);
    }
    let (Some(paths), libc::SIGKILL) = (&state.cgroup, number) else { return Ok(()) };
    if shared {
        // Nobody else would end what init leaves behind: runc does it, too.
        return Ok(Cgroup::open(paths)?.signal(number)?);
    }
    match status {
        // A frozen process of cgroup v1 does not even end.
        Status::Paused => Ok(Cgroup::open(paths)?.thaw()?),
        _ => Ok(()),
    }
}

/// SIGKILL to what a shared pid namespace has kept of a container whose init has ended: nothing but
/// its cgroup leads to it, and runc does it.
fn kill_orphans(state: &State, number: i32) -> Result<(), Error> {
    let (Some(paths), Some(_), libc::SIGKILL) = (&state.cgroup, &state.init, number) else {
        return Err(Error::NotRunning);
    };
    let cgroup = Cgroup::open(paths)?;
    match cgroup.pids()?.is_empty() {
        true => Err(Error::NotRunning),
        false => Ok(cgroup.signal(number)?),
    }
}

/// Whether init is in the runtime's pid namespace; false where that cannot be told any more.
fn shares_pid_namespace(init: &Process) -> bool {
    let theirs = pid_namespace(&init.pid.to_string());
    theirs.is_some() && theirs == pid_namespace("self")
}

fn pid_namespace(pid: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Signals all processes of init's pid namespace: what there is to tell them by without a cgroup.
/// Where that is the runtime's own, init alone.
fn signal_pid_namespace(init: &Process, number: i32) -> Result<(), Error> {
    let theirs = pid_namespace(&init.pid.to_string());
    if theirs.is_none() || theirs == pid_namespace("self") {
        return init.signal(number)?.then_some(()).ok_or(Error::NotRunning);
    }
    let step = || "list the processes".to_owned();
    for entry in std::fs::read_dir("/proc").step(step)? {
        let name = entry.step(step)?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // Opened first: if the number were another's by the time of the look, this one would have
        // ended, and nobody is signalled.
        let Some(pid) = pid else { continue };
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if pid_namespace(&pid.as_raw_nonzero().to_string()) != theirs {
            continue;
        }
        match sys::pidfd_send_signal(pidfd.as_fd(), number) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).step(|| format!("send signal {number} to {pid:?}")),
        }
    }
    Ok(())
}

/// A signal by number or by name, with or without SIG, in any case; signal(7).
///
/// # Errors
/// There is no such signal.
pub fn parse_signal(text: &str) -> Result<i32, Error> {
    let unknown = || Error::config("signal", format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        // 0 only checks. 64 is SIGRTMAX.
        return (0..=64).contains(&number).then_some(number).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(libc::SIGRTMIN(), offset).ok_or_else(unknown);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(libc::SIGRTMAX(), offset).ok_or_else(unknown);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

/// `""`, `+3`, `-2` from SIGRTMIN or SIGRTMAX.
fn real_time(base: i32, offset: &str) -> Option<i32> {
    let offset = if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
    let number = base.checked_add(offset)?;
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

/// Sends SIGKILL to init and waits on its pidfd until it has ended. One that has ended is fine.
///
/// If that takes long, all of its cgroup is killed and thawed: a v1 container that may write its
/// own cgroups can have frozen itself or, in its pid namespace, children that it must wait for.
///
/// # Errors
/// The signal cannot be sent, or init has not ended after 10 s.
pub(crate) fn end_init(init: &Process, cgroup: Option<&Cgroup>) -> Result<(), Error> {
    let Some(pidfd) = init.pidfd()? else {
        return Ok(());
    };
    let step = || format!("kill process {}", init.pid);
    match sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(Errno::SRCH) => return Ok(()),
        sent => sent.step(step)?,
    }
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    let mut limit = PROMPT;
    loop {
        match rustix::event::poll(&mut poll, Some(&limit)) {
            Err(Errno::INTR) => {}
            Ok(0) if limit == PROMPT => {
                limit = END_LIMIT;
                cgroup.map_or(Ok(()), Cgroup::kill)?;
            }
            Ok(0) => return Err(Failure::because(step(), "it has not ended in 10 s").into()),
            ended => return ended.step(step).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("hup", 1),
            ("9", 9),
            ("0", 0),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("USR2", 12),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "SIG", "65", "-1", "SIGSIGKILL", "RTMIN+40", "RTMAX+1", "RTMIN+", "9 "] {
            assert!(parse_signal(bad).is_err(), "{bad:?}");
        }
    }
}
