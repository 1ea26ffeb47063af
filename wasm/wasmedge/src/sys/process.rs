//! The system calls that start the compiler.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Memory that the compiler may map, in bytes.
const MEMORY_LIMIT_BYTES: libc::rlim_t = 4 << 30;
/// How long the compiler may take, in seconds.
const TIME_LIMIT: u32 = 600;

/// Starts a process of which nobody waits for the end: in a session of its own, with `input` as
/// its standard input, `output`, if any, as its standard output, and no other descriptor of this process, at the lowest priority, limited
/// in memory and time. `command` is a path and its arguments. Returns once the process exists;
/// whether it could execute the path is not known.
pub fn spawn_detached(
    command: &[OsString],
    input: OwnedFd,
    output: Option<OwnedFd>,
) -> io::Result<()> {
    let command: Vec<CString> =
        command.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>()?;
    let mut args: Vec<_> = command.iter().map(|arg| arg.as_ptr()).collect();
    args.push(std::ptr::null());
    // SAFETY: this process has one thread (the engine starts none before it runs), so the child
    // may do whatever it likes; it ends in execv or _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // A child whose parent ends at once is inherited by init, or by a subreaper.
        // SAFETY: as above. Nothing is called but system calls, and `args` is null-terminated.
        0 => unsafe {
            if libc::fork() == 0 {
                become_compiler(&args, &input, output.as_ref());
            }
            libc::_exit(0)
        },
        child => reap(child),
    }
}

/// # Safety
/// `args` is null-terminated and points to strings. Replaces or ends the process.
unsafe fn become_compiler(
    args: &[*const libc::c_char],
    input: &OwnedFd,
    output: Option<&OwnedFd>,
) -> ! {
    let memory = libc::rlimit { rlim_cur: MEMORY_LIMIT_BYTES, rlim_max: MEMORY_LIMIT_BYTES };
    // SAFETY: all pointers are to live objects; of the calls, only execv must not fail.
    unsafe {
        libc::setsid();
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        libc::setrlimit(libc::RLIMIT_AS, &memory);
        // Survives execv; the signal ends the process.
        libc::alarm(TIME_LIMIT);
        libc::dup2(input.as_raw_fd(), 0);
        libc::lseek(0, 0, libc::SEEK_SET);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
        libc::dup2(output.map_or(null, AsRawFd::as_raw_fd), 1);
        libc::dup2(null, 2);
        // Whoever waits for the end of a pipe that this process inherited waits for it no longer.
        libc::close_range(3, libc::c_uint::MAX, 0);
        libc::chdir(c"/".as_ptr());
        libc::execv(args[0], args.as_ptr());
        libc::_exit(127)
    }
}

/// A copy, closed on execve(2), of a descriptor that whoever has started this process left open for it.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes a number; the result is checked.
    match unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: made just now, and nobody else's.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
    }
}

fn reap(child: libc::pid_t) -> io::Result<()> {
    loop {
        // SAFETY: waits for our own child, and does not ask for its status.
        if unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } == child {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Where the kernel has put this process's arguments and environment: what /proc/PID/cmdline and
/// /proc/PID/environ show, also to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLine {
    start: usize,
    args_end: usize,
    end: usize,
}

impl CommandLine {
    /// Asks the kernel: proc_pid_stat(5), fields 48 to 51. Only of use in this process and its
    /// children, whose memory is the same.
    pub fn find() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        Self::parse(&stat).ok_or_else(|| io::Error::other("/proc/self/stat: not understood"))
    }

    fn parse(stat: &str) -> Option<Self> {
        // The second field is the name, which may hold spaces; 50 fields follow it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<usize>().ok();
        let (start, args_end, env_start, end) =
            (number(48)?, number(49)?, number(50)?, number(51)?);
        // As execve(2) lays them out: one behind the other.
        let ordered = start > 0 && start < args_end && args_end <= env_start && env_start <= end;
        ordered.then_some(Self { start, args_end, end })
    }

    /// Puts `args`, as far as there is room, in the place of the arguments and nothing in that of
    /// the environment: both were the runtime's caller's, and are no business of the guest's.
    pub fn replace(self, args: &[String]) {
        let mut text = args.join("\0").into_bytes();
        text.truncate(self.args_end - self.start - 1);
        let start = self.start as *mut u8;
        // SAFETY: the kernel says that start to end is the part of this process's stack in which
        // execve(2) has put the strings; it is mapped and writable as long as the process lives.
        // What still points there (argv, environ) finds empty strings. No reference to it exists:
        // std::env copies. There is one thread.
        unsafe {
            std::ptr::write_bytes(start, 0, self.end - self.start);
            std::ptr::copy_nonoverlapping(text.as_ptr(), start, text.len());
        }
    }
}

/// Names the process after its guest, as execve(2) would: the last component of `entrypoint`.
pub fn set_name(entrypoint: &str) {
    let name = Path::new(entrypoint).file_name().unwrap_or_default().as_bytes();
    if let Ok(name) = CString::new(name) {
        // The kernel takes the first 15 bytes. It is for people to read: no error matters.
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_command_line_is_where_the_kernel_says() {
        let own = CommandLine::find().unwrap();
        let name = std::env::args_os().next().unwrap();
        assert!(own.args_end - own.start > name.len() && own.end > own.args_end);
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let parsed = CommandLine::parse(&format!("7 (a) b) {fields}")).unwrap();
        assert_eq!(parsed, CommandLine { start: 48, args_end: 49, end: 51 });
        assert_eq!(CommandLine::parse("7 (a) R 1 2 3"), None);
    }

    #[test]
    fn the_compiler_is_on_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(b"module").unwrap();
        // As a pipe that the caller waits on, born without close-on-exec.
        let leaked = rustix::io::fcntl_dupfd_cloexec(File::open("/dev/null").unwrap(), 500);
        let leaked = leaked.unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        let script = format!(
            "cd {} && {{ cat; echo; ls /proc/$$/fd; ulimit -v; cat /proc/$$/stat; }} >t; \
             mv t report",
            dir.path().display()
        );
        let command = ["/bin/sh", "-c", &script].map(OsString::from);
        spawn_detached(&command, input.into(), None).unwrap();

        let report = dir.path().join("report");
        let start = Instant::now();
        while !report.exists() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let report = std::fs::read_to_string(report).unwrap();
        let mut lines = report.lines();
        assert_eq!(lines.next(), Some("module"), "{report}");
        assert!(lines.any(|line| line == "0") && lines.any(|line| line == "2"), "{report}");
        assert!(lines.any(|line| line == "4194304"), "{report}");
        let leaked = format!("\n{}\n", leaked.as_raw_fd());
        assert!(!report.contains(&leaked), "{report}");
        // proc_pid_stat(5): pid, comm, state, ppid, pgrp, session ... nice is the 19th.
        let stat: Vec<&str> = report.lines().last().unwrap().split(' ').collect();
        assert_eq!((stat[0], stat[18]), (stat[5], "19"), "{report}");
    }
}
