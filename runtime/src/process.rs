//! A process, told from any other that has had its pid.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Error, Step};
use crate::sys;

/// A pid and when its process began: the pair is not used again until the next boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The pid in the runtime's pid namespace.
    pub pid: i32,
    /// Clock ticks from boot to its beginning: field 22 of /proc/PID/stat (proc_pid_stat(5)).
    pub start_ticks: u64,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.start_ticks)
    }
}

impl FromStr for Process {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, start_ticks) = text.split_once(' ').ok_or(())?;
        let pid = pid.parse().ok().filter(|&pid| pid > 0).ok_or(())?;
        Ok(Self { pid, start_ticks: start_ticks.parse().map_err(drop)? })
    }
}

impl Process {
    /// Describes a living (or unreaped) process.
    ///
    /// # Errors
    /// /proc has no such process.
    pub fn of(pid: i32) -> Result<Self, Error> {
        let (start_ticks, _) = stat(pid).step(|| format!("read /proc/{pid}/stat"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether the process is still there; a zombie has ended.
    pub fn is_alive(&self) -> bool {
        stat(self.pid)
            .is_ok_and(|(start_ticks, state)| start_ticks == self.start_ticks && !has_ended(state))
    }

    /// Whether the process has ended, or is on its way out and has perhaps let go already of what is
    /// looked for in its directory in /proc, or killed who was in its pid namespace.
    pub fn is_leaving(&self) -> bool {
        let leaves = |(_, fields): (char, Vec<String>)| has_flag(&fields, PF_EXITING);
        !self.is_alive() || fields(self.pid).map_or(true, leaves)
    }

    /// Whether the process, once a copy of the runtime's, has executed another program: it has not
    /// if it ended before. True as well if it has been reaped, when nobody can tell any more.
    pub fn has_left_runtime(&self) -> bool {
        fields(self.pid).map_or(true, |(_, fields)| has_executed(&fields))
    }

    /// A pidfd of the process, and whether it has executed a program since it was made; None if it
    /// has ended.
    ///
    /// # Errors
    /// Those of pidfd_open(2).
    pub fn open(&self) -> Result<Option<(OwnedFd, bool)>, Error> {
        let Some(pidfd) = self.pidfd_of_pid()? else {
            return Ok(None);
        };
        // While the pidfd pins the process: if it is this one now, it is in the pidfd.
        Ok(fields(self.pid).ok().and_then(|(state, fields)| {
            let same = fields.get(19)?.parse() == Ok(self.start_ticks);
            (same && !has_ended(state)).then(|| (pidfd, has_executed(&fields)))
        }))
    }

    /// A pidfd of the process; None if it has ended.
    ///
    /// # Errors
    /// Those of pidfd_open(2).
    pub fn pidfd(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(self.open()?.map(|(pidfd, _)| pidfd))
    }

    /// Of whatever process has the pid now.
    fn pidfd_of_pid(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // The second is what Linux before 6.9 says of a process that has ended while others are
            // in its session: the number is still theirs.
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            pidfd => pidfd.step(|| format!("open process {}", self.pid)).map(Some),
        }
    }

    /// Sends signal `number`; false if the process has ended.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn signal(&self, number: i32) -> Result<bool, Error> {
        let Some(pidfd) = self.pidfd()? else {
            return Ok(false);
        };
        match sys::pidfd_send_signal(pidfd.as_fd(), number) {
            Err(Errno::SRCH) => Ok(false),
            sent => sent.step(|| format!("send signal {number} to {}", self.pid)).map(|()| true),
        }
    }
}

fn has_ended(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

// include/linux/sched.h
const PF_EXITING: u64 = 0x4;
const PF_FORKNOEXEC: u64 = 0x40;

fn has_executed(fields: &[String]) -> bool {
    !has_flag(fields, PF_FORKNOEXEC)
}

/// Of the flags, field 9.
fn has_flag(fields: &[String], flag: u64) -> bool {
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & flag != 0)
}

/// Start time and state letter.
fn stat(pid: i32) -> std::io::Result<(u64, char)> {
    let (state, fields) = fields(pid)?;
    let ticks = fields.get(19).and_then(|field| field.parse().ok());
    ticks.map(|ticks| (ticks, state)).ok_or(std::io::ErrorKind::InvalidData.into())
}

/// The state letter (field 3 of /proc/PID/stat), and all fields from it on: proc_pid_stat(5).
fn fields(pid: i32) -> std::io::Result<(char, Vec<String>)> {
    let text = read(&format!("/proc/{pid}/stat"))?;
    // The command's name is in parentheses and may hold anything; count from its end.
    let end = text.iter().rposition(|&byte| byte == b')').unwrap_or(0);
    let fields = String::from_utf8_lossy(&text[end..]);
    let fields: Vec<_> = fields.split_ascii_whitespace().skip(1).map(str::to_owned).collect();
    let state = fields.first().and_then(|field| field.chars().next());
    state.map(|state| (state, fields)).ok_or(std::io::ErrorKind::InvalidData.into())
}

/// A page at a time: std::fs::read would begin with 32 bytes, because files of procfs say that they
/// are empty.
fn read(path: &str) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut text = Vec::with_capacity(4096);
    loop {
        text.reserve(2048);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) => return Ok(text),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = Process::of(std::process::id() as i32).unwrap();
        assert!(own.is_alive() && !own.is_leaving());
        assert!(own.pidfd().unwrap().is_some());
        let other = Process { start_ticks: own.start_ticks + 1, ..own };
        assert!(!other.is_alive());
        assert!(!other.signal(0).unwrap());
    }

    /// EINVAL on older kernels, not ESRCH.
    #[test]
    fn the_number_of_a_group_is_no_process() {
        use std::os::unix::process::CommandExt;
        let mut leader = std::process::Command::new("sh");
        let mut leader = leader.args(["-c", "sleep 9 &"]).process_group(0).spawn().unwrap();
        leader.wait().unwrap();
        let ended = Process { pid: leader.id() as i32, start_ticks: 1 };
        let opened = ended.pidfd();
        rustix::process::kill_process_group(
            Pid::from_child(&leader),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        assert!(opened.unwrap().is_none());
    }

    #[test]
    fn a_process_is_written_and_read() {
        let process = Process { pid: 7, start_ticks: 12345 };
        assert_eq!(process.to_string().parse(), Ok(process));
        for bad in ["", "7", "-7 1", "0 1", "7 x", "7 1 2"] {
            assert!(bad.parse::<Process>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_program_is_told_from_a_fork() {
        let mut child = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        assert!(Process::of(child.id() as i32).unwrap().has_left_runtime());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_ended_process_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive() && process.is_leaving());
        assert!(!process.signal(9).unwrap());
    }
}
