//! Follows a command and its children, step by step, until each has executed another program.

use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;

use kiln_integration::Cli;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::symbols::Symbols;

/// What was executed so far, of a static executable that is not position-independent.
#[derive(Debug)]
pub struct Tracer {
    symbols: Symbols,
    /// Of the executable, in bytes.
    size: u64,
    instructions: HashSet<u64>,
    /// Where each function begins, in the order of their first calls.
    functions: Vec<u64>,
}

impl Tracer {
    pub fn of(executable: &Path) -> Self {
        let symbols = Symbols::of(executable);
        let size = executable.metadata().unwrap().len();
        Self { symbols, size, instructions: HashSet::new(), functions: Vec::new() }
    }

    /// The names of the functions.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        let names = self.functions.iter().flat_map(|&begin| self.symbols.names(begin));
        names.map(String::as_str)
    }

    /// Runs a command to its end, which must be a good one. What it leaves running is followed on,
    /// beside the next commands.
    pub fn run(&mut self, cli: Cli) {
        let mut command = cli.under(&["sh", "-c", "kill -STOP $$; exec \"$@\"", "sh"]).command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = Pid::from_raw(command.spawn().unwrap().id().cast_signed());
        waitpid(child, Some(WaitPidFlag::WUNTRACED)).unwrap();
        ptrace::attach(child).unwrap();
        waitpid(child, None).unwrap();
        let options = Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        ptrace::setoptions(child, options).unwrap();
        kill(child, Signal::SIGCONT).unwrap();
        ptrace::cont(child, None).unwrap();
        let mut begun = false;
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Exited(pid, status) if pid == child => {
                    assert_eq!(status, 0, "{command:?}");
                    return;
                }
                WaitStatus::Stopped(pid, signal) if begun || pid != child => self.step(pid, signal),
                // The shell that goes on, and executes it.
                WaitStatus::Stopped(pid, _) => ptrace::cont(pid, None).unwrap(),
                WaitStatus::PtraceEvent(pid, _, event) => {
                    begun |= pid == child;
                    if event == Event::PTRACE_EVENT_EXEC as i32 && !self.is_executed_by(pid) {
                        gone(ptrace::detach(pid, None));
                    } else {
                        gone(ptrace::step(pid, None));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether it is the executable, or a copy of it, and not another program.
    fn is_executed_by(&self, pid: Pid) -> bool {
        std::fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|found| found.len() == self.size)
    }

    fn step(&mut self, pid: Pid, signal: Signal) {
        let Ok(registers) = ptrace::getregs(pid) else { return };
        if self.instructions.insert(registers.rip)
            && let Some(begin) = self.symbols.function(registers.rip)
            && !self.functions.contains(&begin)
        {
            self.functions.push(begin);
        }
        // A step, or the stop of a child that has begun; all else is the process's.
        let own = matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP);
        gone(ptrace::step(pid, (!own).then_some(signal)));
    }
}

/// A process may be killed while it is stopped.
fn gone(done: nix::Result<()>) {
    assert!(matches!(done, Ok(()) | Err(Errno::ESRCH)), "ptrace: {done:?}");
}
