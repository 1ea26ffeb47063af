//! The last steps: working directory, descriptors, and the workload itself.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Launch, credentials};
use crate::channel::{Channel, ToRuntime};
use crate::engine::{Engine, Workload};
use crate::error::{Error, Failure, Step};
use crate::plan::ProcessPlan;
use crate::rooted::Rooted;
use crate::seccomp::Filter;
use crate::sys;

/// Makes the working directory where the image has none, as runc and crun do.
pub fn make_cwd(process: &ProcessPlan, root: &Rooted<'_>) -> Result<(), Error> {
    match root.make_dirs(&process.cwd) {
        // Read-only, or not ours to look into: entering it will say.
        Ok(_) | Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => Ok(()),
        Err(errno) => Err(errno).step(|| cwd_step(process)),
    }
}

/// Enters the working directory. Never through a magic link: `/proc/self/fd/N` could be a
/// directory of the host that the caller left open (CVE-2024-21626).
pub fn enter_cwd(process: &ProcessPlan) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(rustix::fs::CWD, &process.cwd, flags, Mode::empty(), resolve)
        .and_then(rustix::process::fchdir)
        .step(|| cwd_step(process))
}

/// That the working directory is below the root of this process: getcwd(2) says `(unreachable)`
/// where it is not (Linux 2.6.36).
pub fn verify_cwd(process: &ProcessPlan) -> Result<(), Error> {
    let cwd = rustix::process::getcwd(Vec::new()).step(|| cwd_step(process))?;
    match cwd.as_bytes().first() {
        Some(b'/') => Ok(()),
        _ => Err(Failure::because(cwd_step(process), "it is outside of the container").into()),
    }
}

fn cwd_step(process: &ProcessPlan) -> String {
    format!("enter process.cwd {}", process.cwd.display())
}

/// Looks for the executable at `create` already, as runc does: a container that cannot run is not
/// created. The words are runc's; Podman matches them.
pub fn check_executable(process: &ProcessPlan, root: &Rooted<'_>) -> Result<(), Error> {
    candidates(process, |path| {
        let file = root.open(path, OFlags::PATH)?;
        executable(&file)
    })
    .map(drop)
}

/// Executes the workload; returns only if it cannot.
pub fn execute(
    process: &ProcessPlan,
    seccomp: Option<&Filter>,
    channel: &Channel,
) -> Result<i32, Error> {
    let (args, env) = process.c_strings()?;
    sys::reset_signals();
    let program = candidates(process, |path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        executable(&rustix::fs::open(path, flags, Mode::empty())?)
    })?;
    let path = CString::new(program.as_os_str().as_bytes())
        .map_err(|_| Error::config("process.args[0]", "has a NUL byte"))?;
    credentials::confine(process, seccomp, channel)?;
    let Err(errno) = sys::execve(&path, &args, &env);
    Err(Failure::new(format!("exec {}", path.to_string_lossy()), errno).into())
}

fn executable(file: &std::os::fd::OwnedFd) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(file)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Errno::ACCESS);
    }
    // By mode, because the look at `create` is root's, whom access(2) lets pass.
    match stat.st_mode & 0o111 {
        0 => Err(Errno::ACCESS),
        _ => Ok(()),
    }
}

/// execvp(3)'s search: a name with a slash as it is, any other along the container's PATH.
fn candidates(
    process: &ProcessPlan,
    check: impl Fn(&Path) -> Result<(), Errno>,
) -> Result<PathBuf, Error> {
    let name = &process.args[0];
    if name.contains('/') {
        let path = process.cwd.join(name);
        return match check(&path) {
            Ok(()) => Ok(path),
            Err(Errno::ACCESS) => Err(exec_failure(process, Errno::ACCESS)),
            Err(errno) => {
                let step = format!("exec: {name:?}: stat {}", path.display());
                Err(Failure::new(step, errno).into())
            }
        };
    }
    let mut denied = false;
    for directory in process.variable("PATH").unwrap_or_default().split(':') {
        let path = process.cwd.join(directory).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    match denied {
        true => Err(exec_failure(process, Errno::ACCESS)),
        false => {
            let reason = "executable file not found in $PATH";
            Err(Failure::because(format!("exec: {name:?}"), reason).into())
        }
    }
}

fn exec_failure(process: &ProcessPlan, errno: Errno) -> Error {
    Failure::new(format!("exec: {:?}", process.args[0]), errno).into()
}

/// Closes every descriptor but stdio, the preserved ones and `keep`: all of the host's.
///
/// Now, and not by close-on-exec: execve(2) still resolves the workload's path, and that of a
/// script's interpreter, while they are open. `#!/proc/self/fd/3/../../bin/sh` would be a program
/// of the host's, if 3 were one of its directories (CVE-2024-21626).
///
/// Nothing that owned one may be used or dropped from here on; init never drops anything. Nothing
/// is logged either: the log's number may soon be another file's.
pub fn close_descriptors(preserve: u32, keep: &[Option<BorrowedFd<'_>>]) -> Result<(), Error> {
    log::set_max_level(log::LevelFilter::Off);
    let mut first = 3_u32.saturating_add(preserve);
    let keep = keep.iter().flatten().map(|fd| fd.as_raw_fd().cast_unsigned());
    let mut keep: Vec<_> = keep.collect();
    keep.sort_unstable();
    for kept in keep.into_iter().chain([u32::MAX]) {
        if first < kept {
            let last = if kept == u32::MAX { kept } else { kept - 1 };
            sys::close_between(first, last).step(|| "close descriptors".to_owned())?;
        }
        first = first.max(kept.saturating_add(1));
    }
    Ok(())
}

/// Hands the process to the engine; returns the guest's exit status. The guest runs in this very
/// process, so what execve(2) would have closed is closed here: all descriptors of the host's.
pub fn run_engine(engine: Box<dyn Engine>, launch: &Launch<'_>) -> Result<i32, Error> {
    let process = &*launch.process;
    sys::reset_signals();
    sys::die_on_signals();
    let name = engine.name();
    let workload = Workload {
        args: &process.args,
        env: &process.env,
        cwd: &process.cwd,
        mounts: launch.mounts.clone(),
        is_init: launch.is_init,
    };
    // Nobody uses or drops the objects that own its descriptors any more: init ends when the guest
    // does.
    let engine = Box::leak(engine);
    engine.open(&workload).map_err(|source| Error::Engine { engine: name, source })?;
    launch.channel.send(&ToRuntime::Started).step(|| "tell the runtime".to_owned())?;
    let close = || {
        let keep: Vec<_> = engine.descriptors().into_iter().map(Some).collect();
        close_descriptors(launch.preserve_fds, &keep)
    };
    let confine = || credentials::confine(process, launch.seccomp, launch.channel);
    // The listener goes over the channel, which is one of them.
    let confined = match launch.seccomp.is_some_and(Filter::needs_listener) {
        false => close().and_then(|()| confine()),
        true => confine().and_then(|()| close()),
    };
    if let Err(error) = confined {
        eprintln!("kiln: {error}");
        return Ok(1);
    }
    Ok(engine.run(&workload).unwrap_or_else(|error| {
        eprintln!("kiln: {name}: {error}");
        1
    }))
}
