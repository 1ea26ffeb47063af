//! From root to the container's user: keyring, ids, capabilities, no_new_privs, seccomp.

use std::ffi::CString;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Error, Failure, Step};
use crate::plan::ProcessPlan;
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

/// Becomes the container's user with its capabilities and, last, its seccomp filter.
///
/// Without no_new_privs a filter needs CAP_SYS_ADMIN, so that one is kept until it is installed:
/// the filter must then allow capset(2) and execve(2), and no more, for us.
pub fn become_user(process: &ProcessPlan, seccomp: Option<&Filter>) -> Result<(), Error> {
    let capabilities = process.capabilities;
    drop_bounding(capabilities.bounding)?;
    // Afterwards the setuid below does not empty the permitted set.
    rustix::thread::set_keep_capabilities(true).step(|| "keep capabilities".to_owned())?;
    set_ids(process)?;
    let filter_early = seccomp.filter(|_| !process.no_new_privileges);
    let kept = match filter_early {
        Some(_) => CapabilitySet::SYS_ADMIN,
        None => CapabilitySet::empty(),
    };
    let set = |extra: CapabilitySet| {
        let sets = CapabilitySets {
            effective: capabilities.effective | extra,
            permitted: capabilities.permitted | extra,
            inheritable: capabilities.inheritable,
        };
        rustix::thread::set_capabilities(None, sets).step(|| "set process.capabilities".to_owned())
    };
    set(kept)?;
    for capability in capabilities.ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .step(|| format!("set process.capabilities.ambient {capability:?}"))?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
    }
    if let Some(filter) = seccomp {
        sys::seccomp_set_filter(filter.program(), filter.flags())
            .step(|| "install the seccomp filter".to_owned())?;
    }
    match filter_early {
        Some(_) => set(CapabilitySet::empty()),
        None => Ok(()),
    }
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

fn set_ids(process: &ProcessPlan) -> Result<(), Error> {
    let groups: Vec<_> = process.additional_gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        // user_namespaces(7): setgroups is denied where an unprivileged user made the namespace.
        Err(Errno::PERM) if groups.is_empty() => {}
        Err(errno) => {
            return Err(errno).step(|| format!("set groups {:?}", process.additional_gids));
        }
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
