//! Which system call the kernel lacks: asked only once one of them has answered ENOSYS, so that the
//! error can say what is missing.

use crate::sys::{self, Probe};

/// The newest of those that kiln cannot do without: mount_setattr(2).
const OLDEST_KERNEL: &str = "5.12";

/// What every container needs, with the version of Linux that brought it; the oldest first. Each is
/// called so that a kernel that has it refuses the arguments and does nothing.
const NEEDED: [(&str, libc::c_long, Probe, &str); 11] = {
    use Probe::{Empty, Invalid};
    [
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal, Invalid, "5.1"),
        ("open_tree", libc::SYS_open_tree, Invalid, "5.2"),
        ("move_mount", libc::SYS_move_mount, Invalid, "5.2"),
        ("fsopen", libc::SYS_fsopen, Invalid, "5.2"),
        ("fsconfig", libc::SYS_fsconfig, Invalid, "5.2"),
        ("fsmount", libc::SYS_fsmount, Invalid, "5.2"),
        ("pidfd_open", libc::SYS_pidfd_open, Invalid, "5.3"),
        ("clone3", libc::SYS_clone3, Empty, "5.3"),
        ("openat2", libc::SYS_openat2, Invalid, "5.6"),
        ("close_range", libc::SYS_close_range, Empty, "5.9"),
        ("mount_setattr", libc::SYS_mount_setattr, Invalid, OLDEST_KERNEL),
    ]
};

/// For the error of a call that the kernel does not know; None if it knows all that every
/// container needs. Makes a few system calls that do nothing.
pub fn hint() -> Option<String> {
    let lacks = |number, probe| sys::probe(number, probe) == rustix::io::Errno::NOSYS;
    let (name, _, _, version) =
        NEEDED.into_iter().find(|&(_, number, probe, _)| lacks(number, probe))?;
    Some(format!(
        "the kernel has no {name}(2), which came with Linux {version}; kiln needs {OLDEST_KERNEL}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_do_nothing_and_are_refused() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        for (name, number, probe, _) in NEEDED {
            let errno = sys::probe(number, probe);
            use rustix::io::Errno;
            let refused = [Errno::INVAL, Errno::BADF, Errno::PERM, Errno::FAULT, Errno::TOOBIG];
            assert!(refused.contains(&errno), "{name}: {errno:?}");
        }
        assert_eq!(hint(), None);
        assert_eq!(rustix::io::write(&write, b"x").unwrap(), 1);
        drop(read);
    }
}
