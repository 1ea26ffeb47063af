//! Running the binary under test with a deadline, and judging what it did.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{binary, patience, reaper};

/// How long a command may take before the test fails.
const DEADLINE: u64 = 30;

/// One command line of the binary under test, not yet run.
#[derive(Debug, Default)]
pub struct Cli {
    binary: Option<PathBuf>,
    args: Vec<OsString>,
    wrapper: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
}

impl Cli {
    /// A command line with these arguments after the program's name.
    pub fn new<I, S>(args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Cli { args: args.into_iter().map(|arg| arg.as_ref().into()).collect(), ..Cli::default() }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: &[S]) -> Self {
        self.args.extend(args.iter().map(|arg| arg.as_ref().into()));
        self
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Runs this copy of the binary under test.
    pub fn binary(mut self, path: impl AsRef<Path>) -> Self {
        self.binary = Some(path.as_ref().into());
        self
    }

    /// Runs the command under another program: `strace -f`, say. The binary's
    /// path and its arguments are appended to `wrapper`.
    pub fn under<S: AsRef<OsStr>>(mut self, wrapper: &[S]) -> Self {
        self.wrapper = wrapper.iter().map(|word| word.as_ref().into()).collect();
        self
    }

    /// Sets a variable of the command's environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.into(), value.as_ref().into()));
        self
    }

    /// Sets the command's working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().into());
        self
    }

    /// What the command reads from its standard input; nothing by default.
    pub fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdin = bytes.as_ref().to_vec();
        self
    }

    /// The command for the caller to spawn with stdio of its own.
    pub fn command(&self) -> Command {
        let program = self.binary.as_deref().unwrap_or(binary::path()).as_os_str().to_owned();
        let mut words = self.wrapper.iter().chain([&program]).chain(&self.args);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).envs(self.envs.iter().cloned());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Starts the command. Its output goes to files, so that a container that
    /// outlives it and keeps them open blocks nobody.
    pub fn spawn(self) -> Running {
        let mut stdin = tempfile::tempfile().unwrap();
        stdin.write_all(&self.stdin).unwrap();
        stdin.seek(SeekFrom::Start(0)).unwrap();
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut command = self.command();
        command.stdin(stdin);
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let line = format!("{command:?}");
        let child = reaper::spawn(&mut command);
        Running { child, waited: false, line, stdout, stderr, since: Instant::now() }
    }

    /// Runs the command to its end.
    ///
    /// # Panics
    /// If it has not ended after 30 seconds (it is killed).
    pub fn output(self) -> Outcome {
        self.spawn().wait()
    }
}

/// A command that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    waited: bool,
    line: String,
    stdout: File,
    stderr: File,
    since: Instant,
}

impl Running {
    /// The command's process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it has printed so far.
    pub fn stdout(&mut self) -> String {
        contents(&mut self.stdout)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it has not ended 30 seconds after its start (it is killed).
    pub fn wait(self) -> Outcome {
        self.try_wait().unwrap_or_else(|hung| panic!("{hung}"))
    }

    /// As [`Running::wait`], but says it when the command hangs: for destructors.
    pub fn try_wait(mut self) -> Result<Outcome, String> {
        let left = patience(DEADLINE).saturating_sub(self.since.elapsed());
        let ended = wait_child(&mut self.child, left);
        self.waited = ended.is_some();
        let elapsed = self.since.elapsed();
        let (stdout, stderr) = (contents(&mut self.stdout), contents(&mut self.stderr));
        let line = self.line.clone();
        match ended {
            Some(status) => Ok(Outcome { line, status, stdout, stderr, elapsed }),
            None => Err(format!(
                "{line} did not end in {:?}\nstdout: {stdout}\nstderr: {stderr}",
                patience(DEADLINE)
            )),
        }
    }
}

impl Drop for Running {
    /// A command that nobody waited for must not outlive its test.
    fn drop(&mut self) {
        if !self.waited {
            reaper::end(&mut self.child);
        }
    }
}

/// Waits for a child up to `limit`; nothing if it is still alive then.
pub fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let limit = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    match poll(&mut polled, Some(&limit)).unwrap() {
        0 => None,
        _ => Some(reaper::wait(child)),
    }
}

/// Reads a whole file through a descriptor that others write to.
fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let mut own = File::open(proc_path(file)).unwrap();
    own.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A path that opens `file` anew, with an offset of its own: a read through the
/// shared one would move where the command writes.
fn proc_path(file: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Whether a program of this name is in `PATH`.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Does nothing to a command's stdio but keep the caller's out of it.
pub fn no_stdio(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// What a command that ended gave.
#[derive(Debug)]
pub struct Outcome {
    line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it and the container printed.
    pub stdout: String,
    /// Likewise, on standard error.
    pub stderr: String,
    /// From spawn to end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Asserts the exit status 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Asserts the exit status.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit status of {self}");
        self
    }

    /// Asserts that the signal killed the command.
    #[track_caller]
    pub fn killed_by(self, signal: i32) -> Self {
        assert_eq!(self.status.signal(), Some(signal), "signal that ended {self}");
        self
    }

    /// Asserts the whole standard output.
    #[track_caller]
    pub fn prints(self, stdout: &str) -> Self {
        assert_eq!(self.stdout, stdout, "standard output of {self}");
        self
    }

    /// Asserts a part of the standard output.
    #[track_caller]
    pub fn shows(self, part: &str) -> Self {
        assert!(self.stdout.contains(part), "no {part:?} in standard output of {self}");
        self
    }

    /// Asserts that the command failed as runc does, with status 1 and an error
    /// that has all of `parts` in it, in any case of letters.
    #[track_caller]
    pub fn fails(self, parts: &[&str]) -> Self {
        self.fails_with(1, parts)
    }

    /// Asserts a failure with this status and these parts of the error.
    #[track_caller]
    pub fn fails_with(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit status of {self}");
        let error = self.stderr.to_lowercase();
        for part in parts {
            assert!(error.contains(&part.to_lowercase()), "no {part:?} in the error of {self}");
        }
        assert!(!error.contains("panicked at"), "{self}");
        self
    }

    /// Asserts that the error is one of several texts: runtimes word it differently.
    #[track_caller]
    pub fn fails_any(self, texts: &[&str]) -> Self {
        let outcome = self.fails(&[]);
        let error = outcome.stderr.to_lowercase();
        let said = texts.iter().any(|text| error.contains(&text.to_lowercase()));
        assert!(said, "none of {texts:?} in the error of {outcome}");
        outcome
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { line, status, stdout, stderr, elapsed } = self;
        write!(f, "{line}\n{status} after {elapsed:?}\nstdout: {stdout}\nstderr: {stderr}")
    }
}
