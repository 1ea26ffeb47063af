//! The system calls that neither rustix nor nix wraps, and nothing else.
//!
//! Each function makes one call, takes and returns safe types, holds no policy and logs nothing.
//! This is the only module of `runtime` in which `unsafe` is allowed.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::io::Errno;

fn result(value: c_long) -> Result<c_long, Errno> {
    if value == -1 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(value)
}

/// linux/sched.h; libc's constant is an i32, which cannot hold it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of [`clone3`] this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller: the child's pid in the caller's pid namespace, and a close-on-exec pidfd.
    Parent {
        /// The child.
        pid: i32,
        /// Refers to the child even after its pid has been reused.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// Creates a process in new namespaces, and on cgroup v2 straight in its cgroup: clone3(2), as
/// fork(2) does, without sharing memory.
///
/// `namespaces` holds CLONE_NEW* bits, and CLONE_PARENT to make a sibling. Needs Linux 5.7 (CLONE_INTO_CGROUP), 5.3 without `cgroup`.
///
/// # Errors
/// Those of clone3(2).
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    // With CLONE_PARENT the kernel takes over the signal that the caller was made with.
    if namespaces & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` and `pidfd` outlive the call. Memory is copied, not shared (no CLONE_VM), and
    // runtime has a single thread until the workload (a rule of this crate), so the child finds
    // every lock and the allocator in a consistent state.
    let pid = result(unsafe {
        libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor, which nobody else owns, before it returned.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid as i32, pidfd })
}

/// Ends the process without running destructors or exit handlers: _exit(2).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes any value and does not return.
    unsafe { libc::_exit(status) }
}

/// Attributes for [`mount_setattr`]: MOUNT_ATTR_* bits to set and to clear, and MS_SHARED,
/// MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// The propagation type, or 0 to leave it.
    pub propagation: u64,
}

/// Changes the mount that `mount` refers to, with all below it if `recursive`: mount_setattr(2),
/// Linux 5.12. `userns` is the user namespace whose maps an idmapped mount takes.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    attr: MountAttr,
    recursive: bool,
    userns: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: attr.set | if userns.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and `attr` outlives the call with its size.
    result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(&attr),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// A NULL-terminated array of C strings for execve(2).
#[derive(Debug)]
pub struct CStringArray {
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStringArray {
    /// Takes ownership of the strings.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self { _strings: strings, pointers }
    }
}

/// Replaces the program: execve(2).
///
/// # Errors
/// Those of execve(2); on success it does not return.
pub fn execve(path: &CStr, args: &CStringArray, env: &CStringArray) -> Result<Infallible, Errno> {
    // SAFETY: both arrays end in NULL, and they own the strings that they point to.
    let value =
        unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    result(value.into()).map(|_| unreachable!("execve returns only on failure"))
}

/// Replaces the program by the file that `file` refers to: execveat(2) with AT_EMPTY_PATH.
///
/// # Errors
/// Those of execveat(2); on success it does not return.
pub fn execve_fd(
    file: BorrowedFd<'_>,
    args: &CStringArray,
    env: &CStringArray,
) -> Result<Infallible, Errno> {
    // SAFETY: both arrays end in NULL, and they own the strings that they point to.
    let value = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    result(value).map(|_| unreachable!("execveat returns only on failure"))
}

/// Installs a seccomp filter for this process: seccomp(2), SECCOMP_SET_MODE_FILTER.
///
/// The process needs CAP_SYS_ADMIN in its user namespace or no_new_privs. With
/// SECCOMP_FILTER_FLAG_NEW_LISTENER in `flags` the listener's descriptor is returned.
///
/// # Errors
/// Those of seccomp(2); EINVAL for a program that is empty or longer than 4096 instructions.
pub fn seccomp_set_filter(
    program: &[libc::sock_filter],
    flags: u32,
) -> Result<Option<OwnedFd>, Errno> {
    let len = program.len().try_into().map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` describes a slice that outlives the call; the kernel only reads it.
    let value = result(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            ptr::from_ref(&program),
        )
    })?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER the call returns a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(value as RawFd) }))
}

/// What [`close_range`] does to the descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseRange {
    /// Close them. Only for descriptors that no Rust object owns.
    Close,
    /// Mark them close-on-exec (Linux 5.11).
    Cloexec,
}

/// Closes or marks all descriptors from `first` upwards: close_range(2), Linux 5.9.
///
/// # Errors
/// Those of close_range(2).
pub fn close_range(first: u32, what: CloseRange) -> Result<(), Errno> {
    let flags = match what {
        CloseRange::Close => 0,
        CloseRange::Cloexec => libc::CLOSE_RANGE_CLOEXEC,
    };
    // SAFETY: marking is harmless; closing is called before this process has opened anything that
    // a Rust object owns, or right before it ends in the guest (see the callers).
    result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Closes the descriptors from `first` to `last`: close_range(2), Linux 5.9.
///
/// For a process that ends without dropping what it owns: a Rust object whose descriptor is
/// closed here must be neither used nor dropped afterwards.
///
/// # Errors
/// Those of close_range(2).
pub fn close_between(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: touches no memory. The callers are init and the shim's jobs, which end in execve(2)
    // or _exit(2): the objects that own these descriptors are never dropped (see there).
    result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Arguments that a system call refuses before it does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No descriptor, no address, and flags that do not exist.
    Invalid,
    /// A structure of no size, a range that ends before it begins.
    Empty,
}

/// Calls system call `number` so that it fails, and returns how: ENOSYS if the kernel lacks it.
///
/// Only for calls that are known to refuse the arguments.
pub fn probe(number: c_long, probe: Probe) -> Errno {
    let none: c_long = -1;
    let value = match probe {
        // SAFETY: every pointer argument is null or not mapped, which the kernel answers with an
        // error; no descriptor is -1, and no call knows these flags.
        Probe::Invalid => unsafe { libc::syscall(number, none, 0_usize, none, none, none, none) },
        // SAFETY: (NULL, 0) is no clone_args; from 1 to 0 is no range of descriptors.
        Probe::Empty if number == libc::SYS_close_range => unsafe {
            libc::syscall(number, 1_usize, 0_usize, 0_usize)
        },
        // SAFETY: as above.
        Probe::Empty => unsafe { libc::syscall(number, 0_usize, 0_usize) },
    };
    result(value).err().unwrap_or(Errno::INVAL)
}

/// Takes over a descriptor that this program's caller has left open for it, for writing;
/// close-on-exec from here on.
///
/// # Errors
/// EBADF if it is not open, not for writing, or not the caller's; EINVAL for one of the standard
/// streams.
pub fn inherited_for_writing(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < 3 {
        return Err(Errno::INVAL);
    }
    // SAFETY: takes a number, and changes nothing.
    let get = |what| result(unsafe { libc::fcntl(number, what) }.into());
    let (access, flags) = (get(libc::F_GETFL)? as c_int, get(libc::F_GETFD)? as c_int);
    if access & libc::O_ACCMODE == libc::O_RDONLY || flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: as above; from here on it is told from one that was inherited.
    result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: nobody in this program owns it: all that it opens is close-on-exec, this was not.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `number` refer to what `file` does, across execve(2), for the program that this process is
/// about to become: dup2(2).
///
/// # Errors
/// Those of dup2(2); EBUSY if the number is taken.
pub fn leave_open(file: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    // SAFETY: takes a number, and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } != -1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: the number is free, as this program has one thread: no owner's descriptor is replaced.
    result(unsafe { libc::dup2(file.as_raw_fd(), number) }.into()).map(drop)
}

/// Joins a new session keyring of this name, so that the container does not see the caller's:
/// keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.
///
/// # Errors
/// Those of keyctl(2); ENOSYS where the kernel has no keyrings.
pub fn join_session_keyring(name: &CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(drop)
}

/// Brings the network interface of this name up: SIOCGIFFLAGS, SIOCSIFFLAGS (netdevice(7)).
///
/// # Errors
/// Those of ioctl(2); ENAMETOOLONG for a name of 16 bytes or more.
pub fn interface_up(socket: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.to_bytes();
    if bytes.len() >= request.ifr_name.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: `request` is a valid ifreq, which SIOCSIFFLAGS only reads.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }.into())
        .map(drop)
}

/// Sends signal `number` to the process of a pidfd: pidfd_send_signal(2), Linux 5.1. 0 only
/// checks. Any number is passed on, real-time signals too.
///
/// # Errors
/// Those of pidfd_send_signal(2).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: a NULL siginfo is allowed; the kernel fills one in.
    result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            ptr::null::<c_void>(),
            0,
        )
    })
    .map(drop)
}

/// Sets the execution domain: personality(2).
///
/// # Errors
/// Those of personality(2).
pub fn personality(persona: u32) -> Result<(), Errno> {
    // SAFETY: takes a number, touches no memory of ours.
    result(unsafe { libc::personality(persona.into()) }.into()).map(drop)
}

/// Attributes for [`sched_setattr`]; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "sched_setattr(2) has the words")]
pub struct SchedAttr {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// SCHED_ATTR_SIZE_VER1 (Linux 5.3), without which the kernel refuses the flags for clamping.
#[repr(C)]
struct SchedAttrV1 {
    v0: libc::sched_attr,
    /// Minimum and maximum: the spec has no fields for them, runc leaves them 0 as well.
    _util: [u32; 2],
}

/// Sets policy and attributes of the calling thread: sched_setattr(2).
///
/// # Errors
/// Those of sched_setattr(2).
pub fn sched_setattr(attr: SchedAttr) -> Result<(), Errno> {
    let attr = SchedAttrV1 {
        v0: libc::sched_attr {
            size: size_of::<SchedAttrV1>() as u32,
            sched_policy: attr.policy,
            sched_flags: attr.flags,
            sched_nice: attr.nice,
            sched_priority: attr.priority,
            sched_runtime: attr.runtime,
            sched_deadline: attr.deadline,
            sched_period: attr.period,
        },
        _util: [0; 2],
    };
    // SAFETY: `attr` holds its own size and outlives the call, which only reads it.
    result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, ptr::from_ref(&attr), 0) }).map(drop)
}

/// Sets the NUMA policy of the calling thread: set_mempolicy(2). `mode` holds its flags, too;
/// `nodes` has one bit per node.
///
/// # Errors
/// Those of set_mempolicy(2).
pub fn set_mempolicy(mode: c_int, nodes: &[u64]) -> Result<(), Errno> {
    // The kernel takes one bit less than it is told of (get_nodes() in mm/mempolicy.c).
    let (mask, bits) = match nodes.len() {
        0 => (ptr::null(), 0),
        words => (nodes.as_ptr(), words * u64::BITS as usize + 1),
    };
    // SAFETY: `mask` is NULL or points to `bits - 1` bits, which the kernel only reads; of the
    // bit more it reads nothing.
    result(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

/// Sets the I/O class and priority of the calling thread: ioprio_set(2).
///
/// # Errors
/// Those of ioprio_set(2).
pub fn ioprio_set(priority: i32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: takes numbers, touches no memory of ours.
    result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })
        .map(drop)
}

/// Ends this process with status 128 + n on the signals that end a Linux program by default.
///
/// The first process of a pid namespace is immune to signals whose action is the default one
/// (pid_namespaces(7)); a guest that runs inside init must still end on SIGTERM.
pub fn die_on_signals() {
    extern "C" fn die(signal: c_int) {
        // SAFETY: _exit is async-signal-safe.
        unsafe { libc::_exit(128 + signal) }
    }
    let mut numbers = vec![
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGXCPU,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
    ];
    numbers.extend(libc::SIGRTMIN()..=libc::SIGRTMAX());
    for number in numbers {
        // SAFETY: sigaction is plain data for which all zeroes is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = die as extern "C" fn(c_int) as libc::sighandler_t;
        // SAFETY: `action` outlives the call, and its handler is async-signal-safe.
        unsafe { libc::sigaction(number, &action, ptr::null_mut()) };
    }
}

/// What [`catch_interrupts`]' handler knows; -1 and 0 are nothing.
static INTERRUPTED: AtomicI32 = AtomicI32::new(0);
static INTERRUPTED_INIT: AtomicI32 = AtomicI32::new(-1);
static INTERRUPTED_DIR: AtomicI32 = AtomicI32::new(-1);
static INTERRUPTS_END: AtomicBool = AtomicBool::new(false);

/// Catches SIGTERM, SIGINT and SIGHUP, unless the caller ignores them: what the process waits for
/// is ended ([`interrupt_ends`]), and [`interrupted`] says so.
pub fn catch_interrupts() {
    extern "C" fn interrupt(signal: c_int) {
        if INTERRUPTS_END.load(Ordering::Relaxed) {
            // SAFETY: _exit is async-signal-safe.
            unsafe { libc::_exit(128 + signal) }
        }
        INTERRUPTED.store(signal, Ordering::Relaxed);
        let init = INTERRUPTED_INIT.load(Ordering::Relaxed);
        let dir = INTERRUPTED_DIR.load(Ordering::Relaxed);
        // SAFETY: the calls are async-signal-safe, and touch no memory but errno, which is put
        // back. The descriptors are open, as `interrupt_ends` demands.
        unsafe {
            let errno = *libc::__errno_location();
            if init >= 0 {
                libc::syscall(libc::SYS_pidfd_send_signal, init, libc::SIGKILL, 0, 0);
            }
            if dir >= 0 {
                libc::fchmod(dir, 0o700);
            }
            *libc::__errno_location() = errno;
        }
    }
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: sigaction is plain data for which all zeroes is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = interrupt as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: both outlive the calls, and the handler is async-signal-safe.
        unsafe {
            libc::sigaction(number, &action, &mut old);
            if old.sa_sigaction == libc::SIG_IGN {
                libc::sigaction(number, &old, ptr::null_mut());
            }
        }
    }
}

/// What an interrupt ends from now on: the process `init`, and whoever watches the directory `dir`
/// for a change of its mode. Both must stay open until this is called again.
pub fn interrupt_ends(init: Option<BorrowedFd<'_>>, dir: Option<BorrowedFd<'_>>) {
    INTERRUPTED_INIT.store(init.map_or(-1, |init| init.as_raw_fd()), Ordering::Relaxed);
    INTERRUPTED_DIR.store(dir.map_or(-1, |dir| dir.as_raw_fd()), Ordering::Relaxed);
}

/// In a child: an interrupt is about itself and ends it.
pub fn end_on_interrupts() {
    INTERRUPTS_END.store(true, Ordering::Relaxed);
}

/// The signal that has interrupted this process.
pub fn interrupted() -> Option<i32> {
    Some(INTERRUPTED.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
}

/// A set of signals, all or none, to block or to wait for.
fn full_set() -> libc::sigset_t {
    // SAFETY: sigfillset initialises the whole set.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        set
    }
}

/// Blocks every signal in this process, so that [`wait_signal`] receives them: sigprocmask(2).
pub fn block_signals() {
    // SAFETY: the set is initialised; a NULL old set is allowed.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &full_set(), ptr::null_mut()) };
}

/// Stops ignoring SIGCHLD, which a caller may have left so: children would vanish unseen.
pub fn watch_children() {
    // SAFETY: SIG_DFL needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Ignores SIGCHLD: children that end are not kept for anybody to wait for (wait(2), NOTES).
pub fn forget_children() {
    // SAFETY: SIG_IGN needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Unblocks every signal and gives each its default action: a container does not inherit what the
/// caller ignores (a shell's background jobs SIGINT, Rust's start-up SIGPIPE).
pub fn reset_signals() {
    // SAFETY: SIG_DFL needs no handler; the set is initialised. SIGKILL, SIGSTOP and libc's own
    // two are refused, which does no harm.
    unsafe {
        for number in 1..=libc::SIGRTMAX() {
            libc::signal(number, libc::SIG_DFL);
        }
        libc::sigprocmask(libc::SIG_UNBLOCK, &full_set(), ptr::null_mut());
    }
}

/// Waits for the next blocked signal and returns its number: sigwaitinfo(2).
///
/// # Errors
/// Those of sigwaitinfo(2); EINTR is retried.
pub fn wait_signal() -> Result<i32, Errno> {
    loop {
        // SAFETY: the set is initialised; a NULL siginfo is allowed.
        match result(unsafe { libc::sigwaitinfo(&full_set(), ptr::null_mut()) }.into()) {
            Err(Errno::INTR) => {}
            other => return other.map(|number| number as i32),
        }
    }
}
