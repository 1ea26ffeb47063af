//! A read-only view of this executable to run from.
//!
//! A container can reach the executable of its runtime: an image whose entrypoint is
//! `/proc/self/exe`, or a script of that interpreter, executes kiln itself inside the container,
//! and from there, or from a wasm container's init, /proc/PID/exe opens the file on the host,
//! which uid 0 may write (CVE-2019-5736). On a mount that is read-only nobody may: so kiln
//! executes itself once more, from a detached, read-only copy of the mount that it lies on. That
//! costs one execve(2); a copy of the file, as runc and youki make it, costs milliseconds. Most
//! often `kiln`'s entry point has done it already, before libc was started (src/entry.rs).

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use kiln_runtime::error::errno_text;
use kiln_runtime::sys::{self, CStringArray, MountAttr};
use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

const OWN: &str = "/proc/self/exe";

/// Returns if this executable lies on a read-only mount; else executes it again from one.
pub fn ensure() -> Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    let own = Path::new(OWN);
    // Inside the view the executable has no path; it keeps the one that it had as argv[0].
    let path = own.read_link().context("read /proc/self/exe")?;
    let args = [path.into_os_string()].into_iter().chain(std::env::args_os().skip(1));
    execute(own, args.collect())
}

/// Whether this executable lies on a read-only mount.
pub fn is_sealed() -> Result<bool> {
    let mount = rustix::fs::statvfs(OWN).map_err(text).with_context(|| format!("look at {OWN}"))?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Executes `program` from a read-only mount with `args` and this process's environment.
pub fn execute(program: &Path, args: Vec<OsString>) -> Result<()> {
    let execute = || {
        let file = read_only(program)?;
        let environment = std::env::vars_os().map(|(name, value)| {
            let mut entry = name;
            entry.push("=");
            entry.push(value);
            entry
        });
        let (args, env) = (c_strings(args), c_strings(environment.collect()));
        sys::execve_fd(file.as_fd(), &args, &env)
    };
    match execute() {
        Ok(never) => match never {},
        Err(errno) => Err(text(errno)).with_context(|| format!("execute {}", program.display())),
    }
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

fn text(errno: Errno) -> anyhow::Error {
    anyhow!(errno_text(errno.raw_os_error()))
}
