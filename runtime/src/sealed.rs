//! A read-only view of this executable to run from.
//!
//! A container can reach the executable of its runtime: an image whose entrypoint is
//! `/proc/self/exe`, or a script of that interpreter, executes kiln itself inside the container,
//! and from there, or from a wasm container's init, /proc/PID/exe opens the file on the host,
//! which uid 0 may write (CVE-2019-5736). On a mount that is read-only nobody may: so kiln
//! executes itself once more, from a detached, read-only copy of the mount that it lies on. That
//! costs one execve(2); runc and youki copy the file, megabytes for each container. Most
//! often `kiln`'s entry point has done it already, before libc was started (cli/src/entry.rs).
//!
//! A user may not make such a view, and mostly needs none: nobody in the container has more rights
//! to the host's files than that user, so a root's executable that others may not write is safe as
//! it is. Only for one that the user could write, a sealed copy in memory is executed.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::error::{Error, Step};
use crate::sys::{self, CStringArray, MountAttr};

const OWN: &str = "/proc/self/exe";

/// Returns if the container cannot write this executable; else executes it again, with this
/// process's arguments and environment, from where it cannot.
///
/// # Errors
/// No such view can be made, or it cannot be executed.
pub fn ensure() -> Result<(), Error> {
    if is_sealed()? {
        return Ok(());
    }
    let own = Path::new(OWN);
    // Inside the view the executable has no path; it keeps the one that it had as argv[0].
    let path = own.read_link().step(|| format!("read {OWN}"))?;
    let file = match read_only(own) {
        Err(Errno::PERM) if is_anothers(own) || is_copy() => return Ok(()),
        Err(Errno::PERM) => copy(own),
        view => view,
    };
    let args = [path.clone().into_os_string()].into_iter().chain(std::env::args_os().skip(1));
    match file.and_then(|file| execute_file(&file, args.collect())) {
        Ok(never) => match never {},
        Err(errno) => Err(errno).step(|| format!("execute {}", path.display())),
    }
}

/// Where this executable lies. Run from its read-only view it has no path any more, but then
/// argv[0] says it ([`ensure`]).
pub fn own_path() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let own = Path::new(OWN);
    let is_own = |path: &Path| {
        let id = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
        path.is_absolute() && id(path).is_some() && id(path) == id(own)
    };
    match std::env::args_os().next().map(PathBuf::from) {
        Some(name) if is_own(&name) || is_copy() => name,
        _ => own.read_link().unwrap_or_default(),
    }
}

/// Whether the container cannot write this executable.
///
/// # Errors
/// Those of statvfs(3).
pub fn is_safe() -> Result<bool, Error> {
    Ok(is_sealed()? || is_anothers(Path::new(OWN)) || is_copy())
}

/// Whether it is root's, who is not us, and only root may write it.
fn is_anothers(program: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let roots = |file: std::fs::Metadata| file.uid() == 0 && file.mode() & 0o022 == 0;
    !rustix::process::geteuid().is_root() && program.metadata().is_ok_and(roots)
}

/// Whether this executable is a copy in memory that nobody can write.
fn is_copy() -> bool {
    let seals = |file: OwnedFd| rustix::fs::fcntl_get_seals(&file);
    let file = rustix::fs::open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    file.and_then(seals).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}

/// A copy of `program` in memory that nobody can write: memfd_create(2).
fn copy(program: &Path) -> Result<OwnedFd, Errno> {
    let source = rustix::fs::open(program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match rustix::fs::memfd_create("kiln", flags | MemfdFlags::EXEC) {
        // Linux before 6.3, where all can be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create("kiln", flags)?,
        memory => memory?,
    };
    while rustix::fs::sendfile(&memory, &source, None, 1 << 30)? > 0 {}
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}

/// Whether this executable lies on a read-only mount.
fn is_sealed() -> Result<bool, Error> {
    let mount = rustix::fs::statvfs(OWN).step(|| format!("look at {OWN}"))?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Executes `program`, so that the container cannot write it, with `args` and this process's
/// environment. Returns only if that fails.
///
/// # Errors
/// No such view can be made, or it cannot be executed.
pub fn execute(program: &Path, args: Vec<OsString>) -> Result<Infallible, Error> {
    let file = match read_only(program) {
        Err(Errno::PERM) if is_anothers(program) => {
            rustix::fs::open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        }
        Err(Errno::PERM) => copy(program),
        view => view,
    };
    match file.and_then(|file| execute_file(&file, args)) {
        Ok(never) => match never {},
        Err(errno) => Err(errno).step(|| format!("execute {}", program.display())),
    }
}

fn execute_file(file: &OwnedFd, args: Vec<OsString>) -> Result<Infallible, Errno> {
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        entry
    });
    let (args, env) = (c_strings(args), c_strings(environment.collect()));
    sys::execve_fd(file.as_fd(), &args, &env)
}

fn read_only(program: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = rustix::mount::open_tree(CWD, program, flags)?;
    let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    sys::mount_setattr(file.as_fd(), attr, false, None)?;
    Ok(file)
}

/// Arguments and environment come from execve(2) and have no NUL in them.
fn c_strings(strings: Vec<OsString>) -> CStringArray {
    let strings = strings.into_iter().filter_map(|string| CString::new(string.into_vec()).ok());
    CStringArray::new(strings.collect())
}
