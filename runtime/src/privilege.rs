//! What this process may ask of the kernel: everything, or what a user namespace leaves.
//!
//! Found out once per container, by one stat(2). It decides who makes the mounts (the runtime, or
//! init in the container's user namespace), how ids are mapped, and whether cgroups can be done
//! without.

use std::os::unix::fs::MetadataExt;

/// PROC_USER_INIT_INO, include/linux/proc_ns.h: the initial user namespace's number, the same on
/// every machine since Linux 3.8.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Who we are to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the machine.
    Root,
    /// Root of a user namespace that somebody else has made: Podman without root, `unshare -r`, a
    /// container in a container.
    NestedRoot,
    /// Anybody else. Only a user namespace gives such a caller the right to mount.
    User,
}

impl Privilege {
    /// Of the calling process.
    pub fn of_caller() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::User;
        }
        match std::fs::metadata("/proc/self/ns/user") {
            Ok(namespace) if namespace.ino() != INITIAL_USER_NAMESPACE => Self::NestedRoot,
            // A kernel without user namespaces has no such file.
            _ => Self::Root,
        }
    }

    /// The effective user id, by which this was found out.
    pub fn uid(self) -> u32 {
        match self {
            Self::Root | Self::NestedRoot => 0,
            Self::User => rustix::process::geteuid().as_raw(),
        }
    }

    /// Whether it is root of the machine.
    pub fn is_root(self) -> bool {
        self == Self::Root
    }
}
