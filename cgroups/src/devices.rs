//! `linux.resources.devices`: v1's devices controller, or an eBPF filter on
//! the v2 cgroup.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::io::Errno;

use crate::cgroup::{Cgroup, Member};
use crate::device_bpf;
use crate::device_rules::{Access, Exception, Kind, Policy};
use crate::error::{Error, Hint};
use crate::sys;
use crate::target::Target;

const FIELD: &str = "linux.resources.devices";

pub(crate) fn apply(cgroup: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    let policy = Policy::new(rules)?;
    let result = match (cgroup.v1("devices"), cgroup.unified()) {
        (None, Some(member)) => apply_v2(member, &policy),
        _ => apply_v1(&cgroup.target("devices", FIELD)?, &policy),
    };
    match result {
        // Nobody in a user namespace may change device access, nor needs to:
        // the kernel lets them open no device node that they made. As runc.
        Err(error) if is_refusal(&error) && in_user_namespace() => {
            log::warn!("device access is left as it is, in a user namespace: {error}");
            Ok(())
        }
        result => result,
    }
}

/// Sets the default, which clears all exceptions, and then adds ours: one
/// write each, the kernel parses no more.
fn apply_v1(target: &Target<'_>, policy: &Policy) -> Result<(), Error> {
    let (all, others) = match policy.allow {
        true => ("devices.allow", "devices.deny"),
        false => ("devices.deny", "devices.allow"),
    };
    target.write(FIELD, all, "a")?;
    let mut file = None;
    for exception in &policy.exceptions {
        let line = line(exception);
        let opened = match &file {
            Some(opened) => opened,
            None => file.insert(target.open(FIELD, others, &line)?),
        };
        target.write_to(opened, FIELD, others, &line)?;
    }
    Ok(())
}

/// `c 1:3 rwm`
fn line(exception: &Exception) -> String {
    let kind = match exception.kind {
        Kind::Char => 'c',
        Kind::Block => 'b',
    };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let mut line = format!("{kind} {}:{} ", number(exception.major), number(exception.minor));
    for (bit, letter) in [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::MKNOD, 'm')] {
        if exception.access.0 & bit != 0 {
            line.push(letter);
        }
    }
    line
}

/// Attaches the new filter before the old ones go: all of them must allow, so
/// at no moment is there more access than one of them gives.
pub(crate) fn apply_v2(member: &Member, policy: &Policy) -> Result<(), Error> {
    let failed = |step| {
        move |errno| Error::DeviceFilter {
            step,
            path: member.path(),
            errno,
            hint: match errno {
                Errno::INVAL | Errno::NOSYS => Hint::new("the kernel needs CONFIG_CGROUP_BPF"),
                _ => Hint::none(),
            },
        }
    };
    let cgroup = member.dir.as_fd();
    let old = sys::device_filters(cgroup).map_err(failed("query device filters"))?;
    if !(policy.allow && policy.exceptions.is_empty()) {
        let program = device_bpf::program(policy);
        let program = sys::load_device_filter(&program).map_err(failed("load device filter"))?;
        sys::attach_device_filter(cgroup, program).map_err(failed("attach device filter"))?;
    }
    for id in old {
        let program = sys::device_filter_by_id(id).map_err(failed("open device filter"))?;
        sys::detach_device_filter(cgroup, program).map_err(failed("detach device filter"))?;
    }
    Ok(())
}

fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::Write { errno: Errno::PERM | Errno::ACCESS, .. }
            | Error::DeviceFilter { errno: Errno::PERM | Errno::ACCESS, .. }
    )
}

/// Whether the caller is in another user namespace than the initial one, which maps all ids to
/// themselves; user_namespaces(7).
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn v1_lines() {
        let policy = Policy::new(&[]).unwrap();
        let lines: Vec<String> = policy.exceptions.iter().map(line).collect();
        assert_eq!(lines[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(lines[8], "c 136:* rwm");
    }

    #[test]
    fn allow_all_is_one_write() {
        // No devices.deny: opening it would fail.
        let fake = Fake::new(false, &["devices"], &["devices.allow"]);
        let rules: Vec<LinuxDeviceCgroup> =
            serde_json::from_str(r#"[{"allow": true, "access": "rwm"}]"#).unwrap();
        apply(&fake.cgroup, &rules).unwrap();
        assert_eq!(fake.read("devices.allow"), "a");
    }

    #[test]
    fn without_the_controller_the_error_says_so() {
        let fake = Fake::new(false, &["memory"], &[]);
        let error = apply(&fake.cgroup, &[]).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.devices: no devices controller"), "{error}");
    }
}
