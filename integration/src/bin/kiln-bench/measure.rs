//! Starting a command, and how long it takes or how much memory it needs.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kiln_integration::{Cli, reaper};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

/// A runtime to compare.
pub struct Runtime {
    /// How the table calls it.
    pub name: &'static str,
    /// Its binary.
    pub binary: PathBuf,
}

impl Runtime {
    /// The runtime called so, from this binary.
    pub fn new(name: &str, binary: PathBuf) -> Self {
        let name = ["kiln", "crun", "runc"].into_iter().find(|known| *known == name).unwrap();
        Runtime { name, binary }
    }

    /// Its name and version, from the first line of `--version`.
    pub fn version(&self) -> String {
        let outcome = Cli::new(["--version"]).binary(&self.binary).output();
        let line = outcome.stdout.lines().next().unwrap_or_default();
        line.replace("version ", "")
    }

    /// A command line of it, with the state root `root`.
    pub fn command(&self, root: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(root).args(words);
        // Containers write to what they are started with; nobody reads it.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// Runs the command and gives its time in milliseconds.
///
/// # Panics
/// If it does not exit with 0.
pub fn time_ms(mut command: Command) -> f64 {
    let start = Instant::now();
    let status = reaper::wait(&mut reaper::spawn(&mut command));
    let elapsed = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    elapsed.as_secs_f64() * 1e3
}

/// Makes this process the parent of detached containers, to wait for them.
pub fn become_subreaper() {
    set_child_subreaper(Some(getpid())).unwrap();
}

/// Waits for the end of a detached container's init.
pub fn reap(pid: i32) {
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
}

/// The peak memory of a command in KiB: `ru_maxrss` of it and of the processes
/// that it waited for, the largest of them.
///
/// The kernel hands the peak of the memory from which a program is started on to it (exec_mmap,
/// mm->hiwater_rss), so a process of its own starts it, this program once more, by fork(2): a
/// fork's memory begins without the pages of files.
pub fn peak_kib(command: &Command) -> f64 {
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.arg("--peak").arg(command.get_program()).args(command.get_args());
    let output = own.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

/// The other side of [`peak_kib`]: runs the command and prints its peak.
pub fn peak_child(words: &[OsString]) -> ! {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    // What it is already; with vfork(2), as without, it would have our memory until it executes.
    command.uid(rustix::process::getuid().as_raw());
    let status = command.status().unwrap();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    println!("{}", usage.max_rss());
    std::process::exit(status.code().unwrap_or(1));
}

/// The peak memory so far of a living process in KiB: `VmHWM` of proc(5).
pub fn high_water_kib(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
