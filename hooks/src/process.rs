//! One hook as a child process: start it, feed it, watch it, end it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::Context;
use crate::error::{Error, HookName};

/// How much of a hook's stderr is kept for the error, in bytes.
const STDERR_KEPT: usize = 4096;

/// Runs one hook to its end or to its timeout.
pub(crate) fn run(
    name: &HookName,
    hook: &Hook,
    timeout: Option<Duration>,
    context: &Context<'_>,
) -> Result<(), Error> {
    let failed = |call| move |errno| Error::Watch { hook: name.clone(), call, errno };
    let stdin = state_file(context.state_json).map_err(failed("memfd for the state"))?;
    let (stdout, stdout_child) = Output::to(context.stdout, 0).map_err(failed("pipe"))?;
    let (stderr, stderr_child) = Output::to(context.stderr, STDERR_KEPT).map_err(failed("pipe"))?;
    // The command owns the child's ends and drops them here, so that the pipes end with the hook.
    let child = command(hook, context.env, stdin, stdout_child, stderr_child)
        .spawn()
        .map_err(|source| Error::Start { hook: name.clone(), source })?;
    // A timeout too far away to be represented is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));

    let mut running = Running { child, output: [stdout, stderr] };
    let end = running.watch(deadline, context.end);
    if !matches!(end, Ok(End::Exited)) {
        running.kill_group();
    }
    let status = running.child.wait().map_err(|source| {
        let errno = Errno::from_io_error(&source).unwrap_or(Errno::IO);
        Error::Watch { hook: name.clone(), call: "waitpid", errno }
    })?;
    let stderr = running.stderr();
    match (end, timeout) {
        (Err(errno), _) => Err(failed("watch the hook")(errno)),
        (Ok(End::TimedOut), timeout) => Err(Error::TimedOut {
            hook: name.clone(),
            timeout: timeout.unwrap_or_default(),
            stderr,
        }),
        (Ok(End::Asked), _) => Err(Error::Ended { hook: name.clone() }),
        (Ok(End::Exited), _) if status.success() => Ok(()),
        (Ok(End::Exited), _) => Err(Error::Failed { hook: name.clone(), status, stderr }),
    }
}

fn command(
    hook: &Hook,
    default_env: Option<&[String]>,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Command {
    let mut command = Command::new(hook.path());
    if let Some((arg0, args)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(arg0).args(args);
    }
    if let Some(env) = hook.env().as_deref().or(default_env) {
        command.env_clear().envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        // A group of its own, so that the timeout reaches what the hook has started as well.
        .process_group(0);
    command
}

/// The state document as a file that only memory holds.
///
/// Not a pipe: a hook that reads nothing can neither block us, whatever the size of the document,
/// nor send us SIGPIPE. Sealed, because every process of the hook shares it.
fn state_file(state_json: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create("kiln-state", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("kiln-state", flags)?, // before Linux 6.3
        file => file?,
    };
    let mut rest = state_json;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// A pipe whose read end does not block; both ends are close-on-exec.
fn pipe_to_read() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((read, write))
}

enum End {
    Exited,
    TimedOut,
    Asked,
}

struct Running {
    child: Child,
    output: [Output; 2],
}

impl Running {
    /// Reads the hook's output until it has ended, `deadline` has come or `end` is readable. Does not reap it, so
    /// that its process group's number stays taken.
    fn watch(
        &mut self,
        deadline: Option<Instant>,
        end: Option<BorrowedFd<'_>>,
    ) -> Result<End, Errno> {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(end.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN)));
            let open = self.output.iter().filter_map(|output| output.pipe.as_ref());
            fds.extend(open.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
            let ready = match poll(&mut fds, left.map(to_timespec).as_ref()) {
                Err(Errno::INTR) => continue,
                ready => ready?,
            };
            let exited = !fds[0].revents().is_empty();
            let asked = end.is_some() && !fds[1].revents().is_empty();
            drop(fds);
            // After the end too: what the hook wrote last is still in the pipes.
            for output in &mut self.output {
                output.read_some()?;
            }
            if exited {
                return Ok(End::Exited);
            }
            if asked {
                return Ok(End::Asked);
            }
            if ready == 0 || left == Some(Duration::ZERO) {
                return Ok(End::TimedOut);
            }
        }
    }

    fn kill_group(&mut self) {
        // Fails only if nobody of the group is left.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    fn stderr(&mut self) -> String {
        let _ = self.output[1].read_some();
        String::from_utf8_lossy(&self.output[1].tail).into_owned()
    }
}

fn to_timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// The read end of a hook's stdout or stderr and the last bytes that came from it.
struct Output {
    pipe: Option<OwnedFd>,
    keep: usize,
    tail: Vec<u8>,
}

impl Output {
    /// The output, of which the last `keep` bytes are kept, and the hook's end of it: a pipe, or
    /// `elsewhere`, of which nothing comes back.
    fn to(elsewhere: Option<BorrowedFd<'_>>, keep: usize) -> Result<(Self, OwnedFd), Errno> {
        let (pipe, child) = match elsewhere {
            Some(file) => (None, rustix::io::fcntl_dupfd_cloexec(file, 3)?),
            None => {
                let (read, write) = pipe_to_read()?;
                (Some(read), write)
            }
        };
        Ok((Output { pipe, keep, tail: Vec::new() }, child))
    }

    /// Takes what is in the pipe now, at most a pipe's worth, so that a hook that writes without
    /// end cannot keep us from looking at the clock.
    fn read_some(&mut self) -> Result<(), Errno> {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &self.pipe else {
                return Ok(());
            };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(len) => self.keep_tail(&buffer[..len]),
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(self.keep);
        self.tail.drain(..excess);
    }
}
