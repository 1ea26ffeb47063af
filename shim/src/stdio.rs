//! Standard streams without a terminal. The process gets containerd's FIFOs themselves: no byte of
//! a log passes through the shim.
//!
//! What the shim keeps open of them makes them outlive whoever is at the other end:
//! - of stdout and stderr a reading end, so that a container does not die of SIGPIPE, but waits,
//!   while containerd is restarted; and what it said last is not lost (`unread`);
//! - of stdin a writing end, so that it does not end when one client detaches: CloseIO does that.
//!
//! Besides FIFOs: `file://PATH`, and `binary://PATH?ARGUMENTS`, a program that gets both streams
//! (containerd's runtime-v2.md, IO).

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_runtime::sys::{self, CStringArray, Cloned};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Uid, getpid};

use crate::container::Io;
use crate::error::{Context, Error};
use crate::jobs;
use crate::unread::Unread;

/// How long a logging program may take until it is ready: so long nobody else is served.
const READY_LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How long a reader of a process's output is waited for: so long nobody else is served.
const READER_LIMIT: Duration = Duration::from_secs(1);

/// What the shim keeps open for a process's FIFOs.
#[derive(Debug, Default)]
pub struct Held {
    /// The writing end of stdin.
    pub stdin: Option<OwnedFd>,
    /// Reading ends of stdout and stderr.
    outputs: Vec<OwnedFd>,
}

impl Held {
    /// Of a process that has ended: what it has said that nobody has read yet.
    pub fn end(self) -> Vec<Unread> {
        self.outputs.into_iter().filter_map(Unread::new).collect()
    }
}

/// A stream's other end.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    None,
    Fifo(PathBuf),
    File(PathBuf),
    Binary { program: PathBuf, args: Vec<String> },
}

/// Opens stdin, stdout and stderr for a process. Blocks for nobody but a logging program, which is
/// waited for until it is ready.
///
/// # Errors
/// One cannot be opened.
pub fn open(io: &Io, id: &str, namespace: &str) -> Result<([OwnedFd; 3], Held), Error> {
    let mut held = Held::default();
    let stdin = match Target::parse(&io.stdin)? {
        Target::None => null(OFlags::RDONLY)?,
        Target::Fifo(path) | Target::File(path) => {
            let reader = open_at_once(&path, OFlags::RDONLY)?;
            held.stdin = Some(open_at_once(&path, OFlags::WRONLY)?);
            blocking(reader)?
        }
        Target::Binary { .. } => return Err(wrong("stdin", "is no file")),
    };
    let (stdout, stderr) = (Target::parse(&io.stdout)?, Target::parse(&io.stderr)?);
    if let Target::Binary { program, args } = &stdout {
        let [stdout, stderr] = log_to(program, args, id, namespace)?;
        return Ok(([stdin, stdout, stderr], held));
    }
    let mut output = |target| match target {
        Target::None => null(OFlags::WRONLY),
        Target::Fifo(path) => {
            let writer = meet_reader(&path);
            held.outputs.push(open_at_once(&path, OFlags::RDONLY)?);
            blocking(writer.map_or_else(|| open_at_once(&path, OFlags::WRONLY), Ok)?)
        }
        Target::File(path) => append_to(path),
        Target::Binary { .. } => Err(wrong("stderr", "is a program, but stdout is none")),
    };
    let outputs = [output(stdout)?, output(stderr)?];
    let [stdout, stderr] = outputs;
    Ok(([stdin, stdout, stderr], held))
}

/// Gives pipes to an owner: in a user namespace its root may not change that of files whose owner
/// it does not know, and `/dev/stdout` could not be opened.
///
/// # Errors
/// Those of fchown(2).
pub fn give(files: &[OwnedFd], uid: u32, gid: u32) -> Result<(), Error> {
    for file in files {
        let mode = rustix::fs::fstat(file).step("look at a stream")?.st_mode;
        if FileType::from_raw_mode(mode) == FileType::Fifo {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let given = rustix::fs::fchown(file, Some(uid), Some(gid));
            given.step(format!("give a stream to user {}", uid.as_raw()))?;
        }
    }
    Ok(())
}

/// Where a terminal is typed, which never blocks.
///
/// # Errors
/// It cannot be opened, or is something else.
pub fn terminal_input(name: &str, held: &mut Held) -> Result<Option<OwnedFd>, Error> {
    match Target::parse(name)? {
        Target::None => Ok(None),
        Target::Fifo(path) | Target::File(path) => {
            let reader = open_at_once(&path, OFlags::RDONLY)?;
            held.stdin = Some(open_at_once(&path, OFlags::WRONLY)?);
            Ok(Some(reader))
        }
        Target::Binary { .. } => Err(wrong("stdin", "is no file")),
    }
}

/// Where a terminal is read, which never blocks.
///
/// # Errors
/// It cannot be opened.
pub fn terminal_output(
    name: &str,
    id: &str,
    namespace: &str,
    held: &mut Held,
) -> Result<Option<OwnedFd>, Error> {
    match Target::parse(name)? {
        Target::None => Ok(None),
        Target::Fifo(path) => {
            held.outputs.push(open_at_once(&path, OFlags::RDONLY)?);
            open_at_once(&path, OFlags::WRONLY).map(Some)
        }
        Target::File(path) => append_to(path).map(Some),
        Target::Binary { program, args } => {
            let [stdout, _] = log_to(&program, &args, id, namespace)?;
            let flags = rustix::fs::fcntl_getfl(&stdout).step("look at a stream")?;
            rustix::fs::fcntl_setfl(&stdout, flags | OFlags::NONBLOCK).step("prepare a stream")?;
            Ok(Some(stdout))
        }
    }
}

/// A file for a log, made with the directories that it is to lie in, as by runc's shim.
fn append_to(path: PathBuf) -> Result<OwnedFd, Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).file("make", dir)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644)).file("open", path)
}

impl Target {
    fn parse(name: &str) -> Result<Self, Error> {
        let Some((scheme, rest)) = name.split_once("://") else {
            return Ok(if name.is_empty() { Self::None } else { Self::Fifo(name.into()) });
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path)?;
        match scheme {
            "fifo" => Ok(Self::Fifo(path.into())),
            "file" => Ok(Self::File(path.into())),
            "binary" => {
                let mut args = Vec::new();
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    args.push(decode(key)?);
                    args.extend(Some(decode(value)?).filter(|value| !value.is_empty()));
                }
                Ok(Self::Binary { program: path.into(), args })
            }
            other => Err(wrong("stdout", &format!("scheme {other} is not supported"))),
        }
    }
}

/// RFC 3986, 2.1, and a form's `+`.
fn decode(text: &str) -> Result<String, Error> {
    let bad = || wrong("stdout", "is no URI");
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = digit(rest.next()).zip(digit(rest.next())).ok_or_else(bad)?;
                u8::try_from(high * 16 + low).map_err(|_| bad())?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn wrong(field: &'static str, problem: &str) -> Error {
    Error::Request { field, problem: problem.to_owned() }
}

fn null(flags: OFlags) -> Result<OwnedFd, Error> {
    let null = "/dev/null";
    rustix::fs::open(null, flags | OFlags::CLOEXEC, Mode::empty()).file("open", null)
}

/// A FIFO's writing end, once somebody is there to read it; None if nobody has come in time.
///
/// containerd's clients open FIFOs in the background, and give up what is not open by the time that
/// the task ends: what it has said would be lost. runc's shim waits without a limit.
fn meet_reader(path: &Path) -> Option<OwnedFd> {
    let since = Instant::now();
    loop {
        match open_at_once(path, OFlags::WRONLY) {
            Ok(writer) => return Some(writer),
            Err(Error::File { errno: libc::ENXIO, .. }) if since.elapsed() < READER_LIMIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return None,
        }
    }
}

/// Opens a FIFO that never blocks. Reading ends first: a writing end does not open before there is
/// one.
///
/// # Errors
/// Those of open(2).
pub fn open_at_once(path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).file("open", path)
}

/// The process expects streams that block.
fn blocking(file: OwnedFd) -> Result<OwnedFd, Error> {
    let flags = rustix::fs::fcntl_getfl(&file).step("look at a stream")?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).step("prepare a stream")?;
    Ok(file)
}

/// Starts a logging program, which gets the reading ends as descriptors 3 and 4, and closes 5 when
/// it is ready. It ends when nobody can write any more.
fn log_to(
    program: &Path,
    args: &[String],
    id: &str,
    namespace: &str,
) -> Result<[OwnedFd; 2], Error> {
    let pipe = || {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe for the log")
    };
    let ((out_reader, out), (err_reader, err)) = (pipe()?, pipe()?);
    let ((ready, said), (failed, failure)) = (pipe()?, pipe()?);
    // Out of the way of 3 to 5, where the program expects its ends.
    let high = |end: OwnedFd| rustix::io::fcntl_dupfd_cloexec(end, 10).step("pass a pipe on");
    let (out_reader, err_reader) = (high(out_reader)?, high(err_reader)?);
    let (said, failure) = (high(said)?, high(failure)?);
    let shim = getpid();
    let what = || format!("execute the logging program {}", program.display());
    let pid = match sys::clone3(0, None).step("fork")? {
        Cloned::Parent { pid, .. } => pid,
        Cloned::Child => {
            let ends = [&out_reader, &err_reader, &said].map(AsFd::as_fd);
            let executed =
                become_logger(shim, program, args, ends, failure.as_fd(), [id, namespace]);
            let Err(errno) = executed;
            let _ = rustix::io::write(&failure, &errno.raw_os_error().to_ne_bytes());
            sys::exit_now(1);
        }
    };
    drop((out_reader, err_reader, said, failure));
    let mut errno = [0; 4];
    // Its end without a word is the beginning of the program.
    if rustix::io::read(&failed, &mut errno) == Ok(4) {
        return Err(Errno::from_raw_os_error(i32::from_ne_bytes(errno))).step(what());
    }
    let mut polled = [PollFd::new(&ready, PollFlags::IN)];
    if poll(&mut polled, Some(&READY_LIMIT)) == Ok(0) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        return Err(wrong("stdout", &format!("{} is not ready in 10 s", program.display())));
    }
    // Some say it by a byte, others by its end; runc's shim takes both.
    let mut byte = [0; 1];
    rustix::io::read(&ready, &mut byte).step(what())?;
    Ok([out, err])
}

fn become_logger(
    shim: Pid,
    program: &Path,
    args: &[String],
    ends: [BorrowedFd<'_>; 3],
    failure: BorrowedFd<'_>,
    [id, namespace]: [&str; 2],
) -> Result<Infallible, Errno> {
    let [out, err, ready] = ends;
    jobs::alone(shim, &[out, err, ready, failure]).map_err(|_| Errno::INVAL)?;
    sys::reset_signals();
    // It outlives the shim: what is in the pipes is not lost.
    rustix::process::set_parent_process_death_signal(None)?;
    for (number, end) in (3..).zip(ends) {
        sys::leave_open(end, number)?;
    }
    let c_string = |bytes: Vec<u8>| std::ffi::CString::new(bytes).unwrap_or_default();
    let path = c_string(program.as_os_str().to_owned().into_vec());
    let words = args.iter().map(|arg| c_string(arg.clone().into_bytes()));
    let words = [path.clone()].into_iter().chain(words).collect();
    let variable =
        |name: &str, value: OsString| c_string([name.as_bytes(), b"=", &value.into_vec()].concat());
    let env = vec![
        variable("CONTAINER_ID", id.into()),
        variable("CONTAINER_NAMESPACE", namespace.into()),
        variable("PATH", std::env::var_os("PATH").unwrap_or_default()),
    ];
    sys::execve(&path, &CStringArray::new(words), &CStringArray::new(env))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_streams() {
        assert_eq!(Target::parse("").unwrap(), Target::None);
        assert_eq!(Target::parse("/run/f").unwrap(), Target::Fifo("/run/f".into()));
        assert_eq!(Target::parse("file:///a%20b").unwrap(), Target::File("/a b".into()));
        let Target::Binary { program, args } =
            Target::parse("binary:///bin/log?--to=a+b&--quiet&n=%2F").unwrap()
        else {
            panic!()
        };
        assert_eq!(program, Path::new("/bin/log"));
        assert_eq!(args, ["--to", "a b", "--quiet", "n", "/"]);
        for bad in ["tcp://host", "file:///%zz", "file:///%ff", "file:///%2"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fifo_outlives_its_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let (kind, mode) = (rustix::fs::FileType::Fifo, Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let stdout = path.to_str().unwrap().to_owned();
        let io = Io { stdout, ..Io::default() };
        let ([_, out, _], held) = open(&io, "c", "n").unwrap();
        assert_eq!(rustix::io::write(&out, b"kept").unwrap(), 4);
        let reader = open_at_once(&path, OFlags::RDONLY).unwrap();
        let mut text = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut text), Ok(4));
        rustix::io::write(&out, b"last").unwrap();
        drop((out, reader));
        let unread = held.end();
        assert!(unread.len() == 1 && !unread[0].is_read() && unread[0].has_text());
        let reader = open_at_once(&path, OFlags::RDONLY).unwrap();
        assert_eq!(rustix::io::read(&reader, &mut text), Ok(4));
        assert!(unread[0].is_read());
        drop(unread);
        assert_eq!(rustix::io::read(&reader, &mut text), Ok(0), "no writer is left");
        let missing =
            Io { stdout: dir.path().join("no").to_str().unwrap().into(), ..Io::default() };
        assert!(open(&missing, "c", "n").unwrap_err().to_string().contains("/no: no such file"));
    }
}
