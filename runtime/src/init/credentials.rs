//! From root to the container's user: keyring, ids, capabilities, no_new_privs, seccomp.

use std::ffi::CString;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::notify;
use crate::channel::Channel;
use crate::error::{Error, Failure, Step};
use crate::plan::{Capabilities, ProcessPlan};
use crate::scheduling::Scheduling;
use crate::seccomp::Filter;
use crate::sys;

/// Joins a new session keyring: the caller's must not be reachable from inside.
pub fn join_keyring(id: &str) -> Result<(), Error> {
    let name = CString::new(format!("_ses.{id}")).unwrap_or_default();
    match sys::join_session_keyring(&name) {
        // A kernel without keyrings has nothing to hide.
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(Failure {
            hint: Some("--no-new-keyring goes without".to_owned()),
            ..Failure::new("join a new session keyring", errno)
        }
        .into()),
    }
}

/// Gives up all that this process will not need on its way to the program, for good: from here on
/// others may see it, and one with CAP_SYS_PTRACE in its user namespace can make it do anything.
/// What is left are the program's capabilities and those that become the user, enter directories,
/// give away stdio and, where the process has them, set limits and priorities.
///
/// `filter` as for [`become_user`].
pub fn shed(process: &mut ProcessPlan, filter: bool) -> Result<(), Error> {
    let step = || "give up capabilities".to_owned();
    let own = process.capabilities;
    let mut needed = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | kept_for_filter(process, filter);
    if !process.rlimits.is_empty() {
        needed |= CapabilitySet::SYS_RESOURCE;
    }
    if process.scheduling != Scheduling::default() {
        // The I/O class for realtime was CAP_SYS_ADMIN's before Linux 5.14.
        needed |= CapabilitySet::SYS_NICE | CapabilitySet::SYS_ADMIN;
    }
    drop_bounding(own.bounding)?;
    process.bounded = true;
    let now = rustix::thread::capabilities(None).step(step)?;
    let left = (needed | own.permitted | own.inheritable) & now.permitted;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: now.inheritable };
    rustix::thread::set_capabilities(None, sets).step(step)
}

fn kept_for_filter(process: &ProcessPlan, filter: bool) -> CapabilitySet {
    match filter && !process.no_new_privileges {
        true => CapabilitySet::SYS_ADMIN,
        false => CapabilitySet::empty(),
    }
}

/// Becomes the container's user with its capabilities and no_new_privs.
///
/// Without no_new_privs a filter needs CAP_SYS_ADMIN, so with `filter` that one is kept for
/// [`confine`].
pub fn become_user(process: &ProcessPlan, filter: bool) -> Result<(), Error> {
    let capabilities = process.capabilities;
    own_stdio(process.uid)?;
    if !process.bounded {
        drop_bounding(capabilities.bounding)?;
    }
    // Afterwards the setuid below does not empty the permitted set.
    rustix::thread::set_keep_capabilities(true).step(|| "keep capabilities".to_owned())?;
    set_ids(process)?;
    set_capabilities(capabilities, kept_for_filter(process, filter))?;
    for capability in capabilities.ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .step(|| format!("set process.capabilities.ambient {capability:?}"))?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
    }
    Ok(())
}

/// Installs the seccomp filter: the very last step, so that it need not allow anything for us but
/// execve(2), and capset(2) where there is no no_new_privs.
///
/// One that notifies has its listener sent over `channel`.
pub fn confine(
    process: &ProcessPlan,
    filter: Option<&Filter>,
    channel: &Channel,
) -> Result<(), Error> {
    let Some(filter) = filter else { return Ok(()) };
    if filter.needs_listener() {
        notify::install(filter, channel)?;
    } else {
        sys::seccomp_set_filter(filter.program(), filter.flags())
            .step(|| "install the seccomp filter".to_owned())?;
    }
    match process.no_new_privileges {
        true => Ok(()),
        false => set_capabilities(process.capabilities, CapabilitySet::empty()),
    }
}

fn set_capabilities(capabilities: Capabilities, kept: CapabilitySet) -> Result<(), Error> {
    let sets = CapabilitySets {
        effective: capabilities.effective | kept,
        permitted: capabilities.permitted | kept,
        inheritable: capabilities.inheritable,
    };
    rustix::thread::set_capabilities(None, sets).step(|| "set process.capabilities".to_owned())
}

/// Gives stdin, stdout and stderr to the user, who could not open /dev/stdout otherwise. Not the
/// null device, which is everybody's; what cannot be given away (a read-only filesystem, an id
/// without a name in the user namespace) stays as it is.
fn own_stdio(uid: u32) -> Result<(), Error> {
    let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for file in stdio {
        let Ok(stat) = rustix::fs::fstat(file) else { continue };
        if stat.st_uid == uid || stat.st_rdev == rustix::fs::makedev(1, 3) {
            continue;
        }
        match rustix::fs::fchown(file, Some(Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS | Errno::OVERFLOW) => {}
            Err(errno) => return Err(errno).step(|| format!("give stdio to uid {uid}")),
        }
    }
    Ok(())
}

fn drop_bounding(keep: CapabilitySet) -> Result<(), Error> {
    // The kernel's last capability may be newer or older than the ones that we know.
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => {
                return Err(errno)
                    .step(|| format!("drop capability {number} from the bounding set"));
            }
        }
    }
    Ok(())
}

fn groups_are_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim_end() == "deny")
}

fn set_ids(process: &ProcessPlan) -> Result<(), Error> {
    if !process.keep_groups {
        set_groups(&process.additional_gids)?;
    }
    let gid = Gid::from_raw(process.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .step(|| format!("set process.user.gid {}", process.gid))?;
    let uid = Uid::from_raw(process.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .step(|| format!("set process.user.uid {}", process.uid))?;
    let umask = process.umask.unwrap_or(0o022);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask & 0o777));
    Ok(())
}

fn set_groups(gids: &[u32]) -> Result<(), Error> {
    let groups: Vec<_> = gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => Ok(()),
        // user_namespaces(7): setgroups is denied where an unprivileged user made the namespace.
        Err(Errno::PERM) if groups.is_empty() => Ok(()),
        // Not by us (that is found before), but around us: as runc, which says nothing.
        Err(Errno::PERM) if groups_are_denied() => {
            log::warn!("process.user.additionalGids are left out: setgroups is denied here");
            Ok(())
        }
        Err(errno) => Err(errno).step(|| format!("set groups {gids:?}")),
    }
}
