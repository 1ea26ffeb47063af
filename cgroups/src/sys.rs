//! System calls that rustix has no safe wrapper for: bpf(2), and signals by
//! number (rustix knows only the named ones, `kill` must send any).
//!
//! Each function makes one call and holds no policy.
#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// kill(2), for one process: `pid` must be positive.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    if pid <= 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: kill takes two integers and touches no memory of ours.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// pidfd_send_signal(2), Linux 5.1.
pub(crate) fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is borrowed for the call; a null siginfo is
    // allowed and means what kill(2) would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, no_info, 0) })
        .map(drop)
}

/// An instruction of `struct bpf_insn`, linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub code: u8,
    /// The C bit fields `dst_reg` and `src_reg`, see `device_bpf`.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The parts of `union bpf_attr` up to what we use; the kernel takes what is
/// beyond `size` as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// BPF_PROG_LOAD of a cgroup device filter; the kernel verifies it. The
/// descriptor is close-on-exec.
pub(crate) fn load_device_filter(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let mut prog_name = [0; 16];
    prog_name[..12].copy_from_slice(b"kiln_devices");
    let mut attr = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len().try_into().map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        prog_name,
        ..Load::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: a successful load returns a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// BPF_PROG_ATTACH beside whatever is attached already; all must allow.
pub(crate) fn attach_device_filter(cgroup: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    bpf(BPF_PROG_ATTACH, &mut target(&cgroup, &program, BPF_F_ALLOW_MULTI)).map(drop)
}

/// BPF_PROG_DETACH.
pub(crate) fn detach_device_filter(cgroup: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    bpf(BPF_PROG_DETACH, &mut target(&cgroup, &program, 0)).map(drop)
}

/// Borrows both, so that they outlive the call that the result is for.
fn target(cgroup: &impl AsFd, program: &impl AsFd, attach_flags: u32) -> Attach {
    Attach {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_bpf_fd: program.as_fd().as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags,
    }
}

/// BPF_PROG_QUERY: the ids of the device filters attached to the cgroup
/// itself, 64 at most (the kernel's limit).
pub(crate) fn device_filters(cgroup: impl AsFd) -> Result<Vec<u32>, Errno> {
    let mut ids = [0u32; 64];
    let mut attr = Query {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok(ids.iter().take(attr.prog_cnt as usize).copied().collect())
}

/// BPF_PROG_GET_FD_BY_ID.
pub(crate) fn device_filter_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut ById { id, next_id: 0, open_flags: 0 })?;
    // SAFETY: a successful call returns a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// bpf(2). Private: every `attr` type above is `repr(C)`, laid out as the
/// member of `union bpf_attr` that belongs to its command, and its pointers
/// are to memory that the function above keeps alive during the call.
fn bpf<T>(command: i32, attr: &mut T) -> Result<i64, Errno> {
    let attr: *mut T = attr;
    // SAFETY: `attr` points to `size` bytes that we may read and write; what
    // it holds is as the callers above promise.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) })
}

fn check(result: i64) -> Result<i64, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
